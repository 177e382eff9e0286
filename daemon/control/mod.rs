//! The control socket: who may connect, how many, for how long, and what they are answered.
//!
//! [`socket`] makes the socket and takes it away, [`serve`] accepts and sees to it that clients find the socket, [`service`] answers. Nothing here knows how a session is
//! recorded: every answer comes from the [`Mirror`]'s handle, and the wire contract is [`crate::api`].

pub(crate) mod ask;
mod body;
mod health;
mod metrics;
mod request;
mod service;
mod socket;

#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

pub(crate) use self::socket::{BindError, bind, bind_first, take_over};

use self::service::ControlService;
use self::socket::SocketFile;
use crate::mirror::handle::Mirror;

/// Connections that are served at once. A person and a few hooks need two or three; a broken script must not cost the
/// recorder its file handles.
const CONNECTIONS_MAX: usize = 64;

/// Connections beyond [`CONNECTIONS_MAX`] that are still told why they are refused; more are closed without a word.
const REFUSALS_MAX: usize = 16;

/// From the connect, or the end of the last answer, to the end of the next request's head. A local client needs
/// milliseconds; who is silent for longer holds a connection that others may want.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// For answers that are under way when the server stops. The mirror is still there while they end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause after a failed accept (out of file handles, most likely), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Largest head of a request, and what is buffered of an answer. Paths and headers of ours stay far below.
const BUFFER_BYTES_MAX: usize = 64 * 1024;

/// The listening socket is no longer usable; a daemon that nobody can reach should not go on as if nothing had happened.
#[derive(Debug, thiserror::Error)]
#[error("the control socket no longer accepts connections")]
pub(crate) struct ServeError(#[source] io::Error);

/// Answers requests until `shutdown` completes; then lets answers that are under way end, for [`SHUTDOWN_TIMEOUT`] at most.
///
/// At each `look` the socket's file is looked at, and made again when it is gone: the caller has a timer that wakes the process
/// anyway. The file goes when this ends. No task outlives this future.
pub(crate) async fn serve(
    (mut listener, mut file): (UnixListener, SocketFile),
    mirror: Mirror,
    look: Arc<Notify>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let mut server = Server {
        service: ControlService::new(mirror),
        busy: ControlService::busy(),
        connections: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
        graceful: GracefulShutdown::new(),
        tasks: JoinSet::new(),
    };
    let mut shutdown = pin!(shutdown);
    let (mut failing, mut unreachable) = (false, false);
    let outcome = loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break Ok(()),
            Some(_) = server.tasks.join_next() => {}
            () = look.notified() => keep_reachable(&mut listener, &mut file, &mut unreachable),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    if std::mem::take(&mut failing) {
                        tracing::info!("control socket accepts again");
                    }
                    server.admit(stream);
                }
                Err(error) if is_permanent(&error) => break Err(ServeError(error)),
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "control socket cannot accept; trying again");
                    }
                    tokio::select! {
                        () = &mut shutdown => break Ok(()),
                        () = sleep(ACCEPT_PAUSE) => {}
                    }
                }
            },
        }
    };
    // Whoever connects from here on is refused by the system at once, instead of waiting for an accept that never comes.
    drop(listener);
    server.drain().await;
    outcome
}

/// Binds again when clients do not find our socket any more (T65). What is there instead is judged as at a start: a socket that
/// somebody listens on, and what is no socket, stays, and the daemon records on without one. Each is logged once.
fn keep_reachable(listener: &mut UnixListener, file: &mut SocketFile, unreachable: &mut bool) {
    if file.is_in_place() {
        *unreachable = false;
        return;
    }
    match bind(file.path()) {
        Ok(bound) => {
            tracing::warn!(socket = %file.path().display(), "the control socket was gone: made again");
            *unreachable = false;
            (*listener, *file) = bound;
        }
        Err(error) => {
            if !std::mem::replace(unreachable, true) {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the control socket is gone and cannot be made again now");
            }
        }
    }
}

/// What the accept loop owns.
struct Server {
    service: ControlService,
    busy: ControlService,
    connections: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    graceful: GracefulShutdown,
    tasks: JoinSet<()>,
}

impl Server {
    /// Serves a connection, tells it that there are too many, or closes it.
    fn admit(&mut self, stream: UnixStream) {
        if !is_own_user(&stream) {
            return;
        }
        let (permit, service) = if let Ok(permit) = self.connections.clone().try_acquire_owned() {
            (permit, self.service.clone())
        } else if let Ok(permit) = self.refusals.clone().try_acquire_owned() {
            tracing::debug!(limit = CONNECTIONS_MAX, "too many control connections");
            (permit, self.busy.clone())
        } else {
            return;
        };
        self.tasks.spawn(connection(stream, service, self.graceful.watcher(), permit));
    }

    async fn drain(mut self) {
        if timeout(SHUTDOWN_TIMEOUT, self.graceful.shutdown()).await.is_err() {
            tracing::debug!(open = self.tasks.len(), "control connections cut at shutdown");
        }
        self.tasks.shutdown().await;
    }
}

/// One connection, to its end. The permit is held as long as the connection is open.
async fn connection(
    stream: UnixStream,
    service: ControlService,
    watcher: Watcher,
    permit: OwnedSemaphorePermit,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(BUFFER_BYTES_MAX)
        .half_close(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    if let Err(error) = watcher.watch(connection).await {
        // A client that went away, or a replay that broke and was logged where it broke.
        tracing::debug!(%error, "control connection ended early");
    }
    drop(permit);
}

/// Asked before a byte is read. The socket's mode keeps others out already; this holds also where a mode is ignored, changed
/// or raced (T72).
fn is_own_user(stream: &UnixStream) -> bool {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == rustix::process::geteuid().as_raw() => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "control connection of another user refused");
            false
        }
        // A peer that is gone already has no credentials on some systems.
        Err(error) => {
            tracing::debug!(%error, "control connection without credentials refused");
            false
        }
    }
}

/// Errors of `accept` that no waiting cures: the handle itself is wrong.
fn is_permanent(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let permanent = [Errno::BADF, Errno::INVAL, Errno::NOTSOCK, Errno::OPNOTSUPP];
    error.raw_os_error().is_some_and(|raw| permanent.iter().any(|e| e.raw_os_error() == raw))
}
