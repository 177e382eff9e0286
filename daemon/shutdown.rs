//! What the operating system asks for: stop, reload, flush.
//!
//! Knows signals; refuses to know what is done about them. The handlers only write a byte into a socket, which keeps it until
//! somebody reads, so that a signal which comes before the mirror runs is not lost. SIGPIPE stays ignored, as the
//! standard library has it.

use std::io;
use std::os::unix::net::UnixStream as StdStream;

use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::low_level::{pipe, unregister};
use tokio::net::UnixStream;

/// Signals that are read at once where their number does not matter.
const COALESCED_MAX: usize = 64;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// First SIGTERM or SIGINT: stop taking work, flush, end.
    Drain,
    /// A further one: end now; what is pending is in the outbox.
    Abandon,
    /// SIGHUP: read the configuration again.
    Reload,
    /// SIGUSR1: flush now.
    Flush,
}

/// The signals of this process. Their default actions come back as "ignored" when this is dropped.
#[derive(Debug)]
pub(crate) struct Signals {
    stop: Line,
    reload: Line,
    flush: Line,
    /// Whether [`Signal::Drain`] was answered already.
    draining: bool,
}

impl Signals {
    /// Takes the signals over from their default actions, which would end the process. Must be called within a runtime.
    pub(crate) fn new() -> io::Result<Signals> {
        Ok(Signals {
            stop: Line::new(&[SIGTERM, SIGINT])?,
            reload: Line::new(&[SIGHUP])?,
            flush: Line::new(&[SIGUSR1])?,
            draining: false,
        })
    }

    /// The next signal; stopping goes before all else. Loses nothing when it is cancelled.
    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            biased;
            () = self.stop.one() => {
                let again = std::mem::replace(&mut self.draining, true);
                if again { Signal::Abandon } else { Signal::Drain }
            }
            () = self.reload.all() => Signal::Reload,
            () = self.flush.all() => Signal::Flush,
        }
    }
}

/// Some signals and the socket that keeps one byte for each that came.
#[derive(Debug)]
struct Line {
    read: UnixStream,
    ids: Vec<SigId>,
}

impl Line {
    fn new(signals: &[i32]) -> io::Result<Line> {
        let (read, write) = StdStream::pair()?;
        read.set_nonblocking(true)?;
        let mut line = Line { read: UnixStream::from_std(read)?, ids: Vec::new() };
        for &signal in signals {
            line.ids.push(pipe::register(signal, write.try_clone()?)?);
        }
        Ok(line)
    }

    /// Waits for a signal and takes it alone: the second one means something else than the first.
    async fn one(&self) {
        self.take(&mut [0; 1]).await;
    }

    /// Waits for a signal and takes all that came: asking twice for the same is asking once.
    async fn all(&self) {
        self.take(&mut [0; COALESCED_MAX]).await;
    }

    async fn take(&self, buffer: &mut [u8]) {
        loop {
            let ready = self.read.readable().await;
            match ready.and_then(|()| self.read.try_read(buffer)) {
                Ok(taken) if taken > 0 => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The other end lives in the handler as long as we do; without it no signal can come.
                _ => std::future::pending().await,
            }
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        for &id in &self.ids {
            unregister(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use signal_hook::low_level::raise;

    use super::*;

    /// One test for all signals: they belong to the whole process, and its tests run side by side.
    #[tokio::test]
    async fn t28_signals_that_come_early_are_kept_and_the_second_stop_abandons() {
        let mut signals = Signals::new().unwrap();
        for signal in [SIGHUP, SIGUSR1, SIGUSR1, SIGTERM] {
            raise(signal).unwrap();
        }
        assert_eq!(signals.next().await, Signal::Drain, "stopping goes first");
        assert_eq!(signals.next().await, Signal::Reload);
        assert_eq!(signals.next().await, Signal::Flush);
        // Cancelled before anything came.
        let idle = std::time::Duration::from_millis(1);
        assert!(tokio::time::timeout(idle, signals.next()).await.is_err(), "flushes are one");
        raise(SIGINT).unwrap();
        assert_eq!(signals.next().await, Signal::Abandon);
        raise(SIGTERM).unwrap();
        assert_eq!(signals.next().await, Signal::Abandon);
    }
}
