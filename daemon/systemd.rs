//! What a service manager and the daemon tell each other, in systemd's words: readiness, status, signs of life, and a socket
//! that was opened beforehand.
//!
//! Knows the protocol (environment variables, datagrams, descriptors from number 3 on) and what is worth telling; refuses to
//! know how sessions are recorded: it asks the mirror's handle. Without a manager everything here does nothing and costs nothing.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::time::Duration;

use listenfd::ListenFd;
use tokio::sync::Notify;

use crate::api::{Phase, Status};
use crate::mirror::Pulse;
use crate::mirror::handle::Mirror;

/// Between two looks at what the status line should say, where no watchdog asks for more: `systemctl status` is read by people.
const STATUS_EVERY: Duration = Duration::from_secs(10);

/// From readiness to the first look.
const FIRST_LOOK_AFTER: Duration = Duration::from_secs(1);

/// Signs of life in the time that the watchdog allows: one may come late, one may get lost.
const PINGS_A_PERIOD: u32 = 3;

/// Between two looks at how the last flush gets on.
const DRAIN_LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a drain that gets on asks for: several of its looks, so that one slow part does not end it. The drain's own limit
/// holds all the same.
const EXTENSION: Duration = Duration::from_secs(10);

/// A manager that does not read its socket must not hold the recorder up.
const TELL_TIMEOUT: Duration = Duration::from_secs(1);

/// The way to the manager that started us, if there is one that listens.
#[derive(Debug)]
pub(crate) struct Notifier {
    socket: Option<UnixDatagram>,
    /// Without a sign of life for this long the manager ends us.
    watchdog: Option<Duration>,
    /// The last flush has begun.
    drains: Notify,
}

impl Notifier {
    /// What the environment of this process says.
    pub(crate) fn of_process() -> Notifier {
        Notifier::new(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    /// One that tells nobody anything.
    pub(crate) fn silent() -> Notifier {
        Notifier::new(|_| None)
    }

    fn new(var: impl Fn(&str) -> Option<OsString>) -> Notifier {
        let socket = var("NOTIFY_SOCKET").and_then(|address| match connect(&address) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(%error, "the service manager cannot be told anything");
                None
            }
        });
        let number = |name| var(name)?.to_str()?.parse::<u64>().ok();
        // A watchdog that is meant for another process (a parent's) is none of ours.
        let ours = var("WATCHDOG_PID").is_none()
            || number("WATCHDOG_PID") == Some(u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|usec| ours && *usec > 0);
        Notifier { socket, watchdog: watchdog.map(Duration::from_micros), drains: Notify::new() }
    }

    /// The configuration is read again; [`Notifier::reloaded`] ends it.
    pub(crate) fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        // A manager that waits for the end of a reload tells by this time that it is of this one.
        let microseconds = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }

    /// The reload is over, whatever came of it: the daemon goes on.
    pub(crate) fn reloaded(&self) {
        self.tell("READY=1");
    }

    /// The last flush begins.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=storing what is left");
        self.drains.notify_one();
    }

    /// Tells the manager how the mirror gets on, until it has ended. The first word says that the daemon is there: the mirror's loop
    /// has come round, so that the first scan was begun, and the control socket is served beside this.
    ///
    /// A sign of life is given after a turn of that loop which was asked for after the last sign, and not because a thread
    /// lives: a mirror that hangs is restarted.
    pub(crate) async fn accompany(&self, pulse: &Pulse, mirror: &Mirror) {
        if self.socket.is_none() {
            return;
        }
        pulse.next_turn().await;
        self.tell("READY=1\nSTATUS=looking for sessions");
        let every = self.watchdog.map_or(STATUS_EVERY, |limit| limit / PINGS_A_PERIOD);
        let every = every.min(STATUS_EVERY);
        // The first scan takes a moment: somebody who has just started the service looks now.
        let mut wait = every.min(FIRST_LOOK_AFTER);
        let mut said = String::new();
        let mut turns = 0;
        loop {
            let drains = tokio::select! {
                () = self.drains.notified() => true,
                () = tokio::time::sleep(wait) => false,
            };
            wait = every;
            if drains {
                return self.accompany_drain(pulse, mirror).await;
            }
            pulse.next_turn().await;
            let mut words = String::new();
            if self.watchdog.is_some() {
                words.push_str("WATCHDOG=1\n");
            }
            // One turn was for the asking: then nothing has happened, and the line is as it was.
            if pulse.turns() > turns + 1 {
                let Ok(status) = mirror.status().await else { return };
                let line = status_line(&status);
                if line != said {
                    words.push_str(&format!("STATUS={line}\n"));
                    said = line;
                }
                turns = pulse.turns();
            } else {
                turns += 1;
            }
            self.tell(words.trim_end());
        }
    }

    /// A drain that gets on asks for a little more time, so that a manager with a short limit does not cut it off.
    async fn accompany_drain(&self, pulse: &Pulse, mirror: &Mirror) {
        let mut before = None;
        loop {
            let Ok(status) = mirror.status().await else { return };
            let now = (status.stored_bytes, status.pending.parts, status.pending.bytes);
            if before.replace(now).is_none_or(|before| before != now) {
                let (usec, line) = (EXTENSION.as_micros(), status_line(&status));
                self.tell(&format!("EXTEND_TIMEOUT_USEC={usec}\nWATCHDOG=1\nSTATUS={line}"));
            }
            tokio::time::sleep(DRAIN_LOOK_EVERY).await;
            pulse.next_turn().await;
        }
    }

    fn tell(&self, words: &str) {
        if let Some(socket) = self.socket.as_ref().filter(|_| !words.is_empty())
            && let Err(error) = socket.send(words.as_bytes())
        {
            // If that was a sign of life, the manager does what it does without; nothing is lost by a restart.
            tracing::debug!(%error, "the service manager was not told");
        }
    }
}

/// A datagram socket that talks to the manager's, which has a path or, with an `@`, an abstract name.
fn connect(address: &std::ffi::OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    match address.as_bytes().split_first() {
        Some((b'/', _)) => socket.connect(address)?,
        #[cfg(target_os = "linux")]
        Some((b'@', name)) => {
            use std::os::linux::net::SocketAddrExt;
            socket.connect_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?)?;
        }
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "unknown kind of address")),
    }
    socket.set_write_timeout(Some(TELL_TIMEOUT))?;
    Ok(socket)
}

/// What `systemctl status` shows: one line, with nothing in it that comes from a transcript or a path.
fn status_line(status: &Status) -> String {
    let parts = match status.pending.parts {
        1 => "1 part waits for the store".to_owned(),
        parts => format!("{parts} parts wait for the store"),
    };
    match (status.phase, status.problems.len(), status.pending.parts) {
        (Phase::Stopping, _, 0) => "storing what is left".to_owned(),
        (Phase::Stopping, ..) => format!("storing what is left: {parts}"),
        (_, problems, _) if problems > 0 => {
            let needs = if problems == 1 { "problem needs" } else { "problems need" };
            format!("{problems} {needs} attention: see `tracecraftctl status`")
        }
        (Phase::Starting, ..) => "looking for sessions".to_owned(),
        (Phase::Recording, _, 0) if status.sessions.waiting > 0 => {
            format!("recording; new sessions wait for the store ({})", status.sessions.waiting)
        }
        (Phase::Recording, _, 0) => {
            format!("recording, everything is safe ({} sessions)", status.sessions.total)
        }
        (Phase::Recording, ..) => format!("recording, {parts}"),
    }
}

/// Listening sockets that a service manager opened for this process before it started.
#[derive(Debug, Default)]
pub struct Handed {
    listeners: Vec<UnixListener>,
    /// What was wrong with others. Told later: they are taken before there is a log.
    faults: Vec<String>,
}

impl Handed {
    /// Takes them over; they are not inherited by children (T69), nor are the variables that tell of them. To be called once, before
    /// there are threads: the environment of the process changes.
    pub fn take() -> Handed {
        let pid = std::env::var("LISTEN_PID").ok().and_then(|pid| pid.parse().ok());
        if pid != Some(std::process::id()) {
            // Meant for a parent that did not clear them: what has these numbers here is something else.
            return Handed::default();
        }
        Handed::of(&mut ListenFd::from_env())
    }

    fn of(given: &mut ListenFd) -> Handed {
        let mut handed = Handed::default();
        for number in 0..given.len() {
            match given.take_unix_listener(number) {
                Ok(listener) => handed.listeners.extend(listener),
                Err(error) => handed.faults.push(error.to_string()),
            }
        }
        handed
    }

    /// Whether the service manager listens for us, on whatever.
    pub(crate) fn has_listeners(&self) -> bool {
        !self.listeners.is_empty()
    }

    /// The one that will do for the control socket; all others are closed.
    pub(crate) fn choose<T>(self, take: impl Fn(UnixListener) -> Result<T, String>) -> Option<T> {
        for fault in &self.faults {
            tracing::warn!(fault, "a descriptor that the service manager passed is of no use");
        }
        let mut chosen = None;
        for listener in self.listeners {
            match take(listener) {
                Ok(taken) => chosen = chosen.or(Some(taken)),
                Err(fault) => {
                    tracing::warn!(fault, "a socket that the service manager passed is not used");
                }
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests;
