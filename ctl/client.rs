//! The only client of the control socket: connects, asks, checks the protocol, reads the answer.
//!
//! Every wait has a limit, and every way in which a daemon can be away or strange has its own words and exit code.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracecraft::api::{ErrorBody, ErrorCode, PROTOCOL, PROTOCOL_HEADER, VERSION_HEADER};

use crate::failure::Failure;

/// A daemon accepts within milliseconds; one whose queue of connections stays full is stuck.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Between attempts while the daemon's queue of connections is full.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// `status` is what people and scripts ask a daemon that may be stuck: it must say so soon.
pub(crate) const STATUS_TIMEOUT: Duration = Duration::from_secs(10);

/// A little more than the daemon's own limit, so that its words arrive and not ours.
pub(crate) const QUICK_TIMEOUT: Duration = Duration::from_secs(35);

/// The same for what may take minutes: flush, stop, compact.
pub(crate) const LONG_TIMEOUT: Duration = Duration::from_secs(620);

/// Between two pieces of a replay, which may come from a bucket far away.
pub(crate) const PIECE_TIMEOUT: Duration = Duration::from_secs(120);

/// Largest document that is read: a list of some 100,000 sessions.
const DOCUMENT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Largest line of progress, or of what goes on: a snapshot has tens of KiB.
const LINE_BYTES_MAX: usize = 1024 * 1024;

/// A daemon that may be there.
#[derive(Debug)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    /// Connects later.
    pub(crate) fn new(socket: PathBuf) -> Client {
        Client { socket }
    }

    /// Where the daemon listens.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Reads a document.
    pub(crate) async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        limit: Duration,
    ) -> Result<T, Failure> {
        self.document(Method::GET, path, limit).await
    }

    /// Has something done and reads what came of it.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        limit: Duration,
    ) -> Result<T, Failure> {
        self.document(Method::POST, path, limit).await
    }

    async fn document<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        limit: Duration,
    ) -> Result<T, Failure> {
        let mut stream = self.stream(method, path, limit).await?;
        let body = stream.whole().await?;
        serde_json::from_slice(&body).map_err(|error| {
            Failure::protocol(format!(
                "the daemon's answer is not what this program knows: {error}"
            ))
            .hint("install tracecraftd and tracecraftctl of the same version, then `tracecraftctl service restart`")
        })
    }

    /// Asks, and answers with the body of a success; `limit` is for the head to come, and for each piece after it.
    pub(crate) async fn stream(
        &self,
        method: Method,
        path: &str,
        limit: Duration,
    ) -> Result<Stream, Failure> {
        let socket = self.connect().await?;
        let (mut sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(socket))
            .await
            .map_err(|error| Failure::failed(format!("cannot talk to the daemon: {error}")))?;
        // The set ends the task when the stream is dropped.
        let mut tasks = JoinSet::new();
        tasks.spawn(async { drop(connection.await) });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "tracecraftd")
            .header(PROTOCOL_HEADER, PROTOCOL)
            .body(Empty::<Bytes>::new())
            .map_err(|error| Failure::usage(format!("this cannot be asked: {error}")))?;
        let response = match timeout(limit, sender.send_request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) if error.is_parse() => return Err(stranger()),
            Ok(Err(_)) => return Err(self.hung_up()),
            Err(_) => return Err(self.silent(limit)),
        };
        check_protocol(&response)?;
        let status = response.status();
        let mut stream = Stream { head: response, limit, _connection: tasks };
        if status.is_success() {
            return Ok(stream);
        }
        let body = stream.whole().await?;
        Err(match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(error) => refusal(error, stream.header(VERSION_HEADER)),
            // A code that a later daemon added is still an error with a message.
            Err(_) => Failure::failed(match serde_json::from_slice::<serde_json::Value>(&body) {
                Ok(value) => value["message"].as_str().unwrap_or("the daemon refused").to_owned(),
                Err(_) => format!("the daemon answered {status}"),
            }),
        })
    }

    async fn connect(&self) -> Result<UnixStream, Failure> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let stream = loop {
            match UnixStream::connect(&self.socket).await {
                Ok(stream) => break stream,
                // The queue is full: the daemon is busy, which may pass.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if Instant::now() >= deadline {
                        return Err(self.silent(CONNECT_TIMEOUT));
                    }
                    sleep(CONNECT_PAUSE).await;
                }
                Err(error) => return Err(self.unreachable(&error)),
            }
        };
        // The daemon asks the same of us; saying it here tells root, or who is fooled by a foreign socket, what is wrong.
        let own = rustix::process::geteuid().as_raw();
        match stream.peer_cred() {
            Ok(peer) if peer.uid() != own => Err(Failure::failed(format!(
                "the daemon at {} belongs to another user (uid {}, yours is {own})",
                self.socket.display(),
                peer.uid()
            ))
            .hint("run tracecraftctl as the user whose sessions are recorded")),
            _ => Ok(stream),
        }
    }

    fn unreachable(&self, error: &std::io::Error) -> Failure {
        let socket = self.socket.display();
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => {
                Failure::not_running(&self.socket, "no socket")
            }
            ErrorKind::ConnectionRefused => Failure::not_running(&self.socket, "nobody listens"),
            ErrorKind::InvalidInput => {
                Failure::usage(format!("{socket} cannot be a socket: {error}"))
                    .hint("give a shorter path with --socket")
            }
            ErrorKind::PermissionDenied => {
                Failure::failed(format!("you may not connect to the daemon at {socket}"))
                    .hint("run tracecraftctl as the user whose sessions are recorded")
            }
            _ => Failure::failed(format!("cannot connect to the daemon at {socket}: {error}")),
        }
    }

    pub(crate) fn silent(&self, limit: Duration) -> Failure {
        Failure::failed(format!(
            "the daemon at {} is there but did not answer within {} s",
            self.socket.display(),
            limit.as_secs()
        ))
        .hint("look at its log; if it stays so, restart it: nothing that is captured is lost")
    }

    fn hung_up(&self) -> Failure {
        Failure::failed(format!(
            "the daemon at {} closed the connection without an answer",
            self.socket.display()
        ))
        .hint("it may be stopping, or have too many connections: try again in a moment. If it stays so, `tracecraftctl doctor` looks for the cause")
    }
}

/// The number in the answer decides; additions do not change it, so any other number is another language.
fn check_protocol(response: &Response<Incoming>) -> Result<(), Failure> {
    let header = response.headers().get(PROTOCOL_HEADER);
    let number = header.and_then(|value| value.to_str().ok()?.parse::<u32>().ok());
    judge_protocol(number)
}

fn judge_protocol(number: Option<u32>) -> Result<(), Failure> {
    match number {
        Some(PROTOCOL) => Ok(()),
        Some(number) if number > PROTOCOL => Err(Failure::protocol(format!(
            "the daemon is newer than this program: it speaks protocol {number}, tracecraftctl {PROTOCOL}"
        ))
        .hint("update tracecraftctl")),
        Some(number) => Err(Failure::protocol(format!(
            "the daemon is older than this program: it speaks protocol {number}, tracecraftctl {PROTOCOL}"
        ))
        .hint(RESTART)),
        None => Err(stranger()),
    }
}

/// What brings a daemon to the version that is installed.
const RESTART: &str = "`tracecraftctl service restart`, so that the installed version runs; where it is no service, end tracecraftd and start it again";

/// A refusal in the daemon's words, but for what only a daemon of another version says: that it does not know what is asked.
fn refusal(error: ErrorBody, daemon: &str) -> Failure {
    let own = env!("CARGO_PKG_VERSION");
    let unknown = matches!(
        error.code,
        ErrorCode::NoSuchRoute | ErrorCode::MethodNotAllowed | ErrorCode::BadRequest
    );
    if !unknown || daemon == own {
        return Failure::refused(error);
    }
    let (what, hint) = match numbers(daemon) {
        Some(version) if Some(version) > numbers(own) => (
            format!(
                "the daemon ({daemon}) is newer than this program ({own}), and does not know what it asks for"
            ),
            "update tracecraftctl",
        ),
        Some(_) => (
            format!(
                "the daemon ({daemon}) is older than this program ({own}), and does not know this yet"
            ),
            RESTART,
        ),
        None => (
            format!("the daemon is older than this program ({own}), and does not know this yet"),
            RESTART,
        ),
    };
    Failure::outdated(format!("{what}: {}", error.message), error).hint(hint)
}

/// A version as numbers that can be compared; what follows them names a build.
fn numbers(version: &str) -> Option<[u64; 3]> {
    let plain = version.split(['-', '+']).next()?;
    let mut numbers = plain.splitn(3, '.').map(|number| number.parse().ok());
    Some([numbers.next()??, numbers.next()??, numbers.next()??])
}

fn stranger() -> Failure {
    Failure::protocol("what answers there is not tracecraftd".into())
        .hint("look at --socket and TRACECRAFT_SOCKET")
}

/// The answer of a success while it comes.
pub(crate) struct Stream {
    head: Response<Incoming>,
    limit: Duration,
    _connection: JoinSet<()>,
}

impl Stream {
    /// A header as text, empty when there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.head.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    /// The next piece; `None` is the proper end. A body that breaks off is an error, never an end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            match timeout(self.limit, self.head.body_mut().frame()).await {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => return Ok(Some(data)),
                    Err(_) => continue,
                },
                Ok(Some(Err(_))) => {
                    return Err(Failure::failed(
                        "the answer broke off: what was printed is not the whole".into(),
                    )
                    .hint("try again; the daemon's log and `tracecraftctl status` say why"));
                }
                Err(_) => {
                    return Err(Failure::failed(format!(
                        "nothing came for {} s: what was printed is not the whole",
                        self.limit.as_secs()
                    ))
                    .hint("try again; `tracecraftctl status` says whether the store is there"));
                }
            }
        }
    }

    async fn whole(&mut self) -> Result<Bytes, Failure> {
        let limited = Limited::new(self.head.body_mut(), DOCUMENT_BYTES_MAX);
        match timeout(self.limit, limited.collect()).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) => Err(Failure::failed(format!("the answer broke off: {error}"))),
            Err(_) => Err(Failure::failed("the answer did not come to an end in time".into())),
        }
    }

    /// The body as lines.
    pub(crate) fn lines(self) -> Lines {
        Lines { stream: self, pending: Vec::new() }
    }
}

/// Lines of an answer.
pub(crate) struct Lines {
    stream: Stream,
    pending: Vec<u8>,
}

impl Lines {
    /// The next line without its end.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.pending) {
                let rest = self.pending.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.pending, rest);
                line.pop();
                return Ok(Some(line));
            }
            if self.pending.len() > LINE_BYTES_MAX {
                // No trying again mends it.
                let what = "the daemon's answer has a line without end".to_owned();
                return Err(Failure::protocol(what).hint(RESTART));
            }
            match self.stream.next().await? {
                Some(bytes) => self.pending.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
