//! The one question that this program asks another instance of itself: `--once` beside a daemon becomes its flush.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::api::{ErrorBody, Flushed, route};

/// A flush that makes no progress for a minute has failed in the daemon; this is longer, so that its own answer wins.
const ANSWER_MAX: Duration = Duration::from_secs(15 * 60);

/// The answer is a few numbers or an error.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Why the daemon did not flush.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// Nobody listens, or not for us.
    #[error("cannot reach it at {}", socket.display())]
    Unreachable {
        /// Where it was asked.
        socket: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// It took longer than [`ANSWER_MAX`].
    #[error("it did not answer in time")]
    Late,
    /// The connection ended, or what came is no answer of ours.
    #[error("its answer cannot be read")]
    Unreadable(#[source] Box<dyn Error + Send + Sync>),
    /// It says why.
    #[error("{0}")]
    Refused(String),
    /// It does not say why.
    #[error("it answered {0}")]
    Status(StatusCode),
}

fn unreadable(source: impl Into<Box<dyn Error + Send + Sync>>) -> AskError {
    AskError::Unreadable(source.into())
}

/// Asks the daemon at a socket to flush everything; answers what it stored, for a person.
pub(crate) async fn flush(socket: &Path) -> Result<String, AskError> {
    timeout(ANSWER_MAX, ask(socket)).await.map_err(|_| AskError::Late)?
}

async fn ask(socket: &Path) -> Result<String, AskError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|source| AskError::Unreachable { socket: socket.to_owned(), source })?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(unreadable)?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(route::FLUSH)
        .header(hyper::header::HOST, "localhost")
        .body(Empty::<Bytes>::new())
        .map_err(unreadable)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(unreadable)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok::<_, AskError>((status, body.map_err(unreadable)?.to_bytes()))
    };
    tokio::pin!(exchange);
    let (status, body) = tokio::select! {
        answer = &mut exchange => answer?,
        ended = connection => {
            ended.map_err(unreadable)?;
            exchange.await?
        }
    };
    if status.is_success() {
        let flushed: Flushed = serde_json::from_slice(&body).map_err(unreadable)?;
        let Flushed { sessions, parts, bytes, unfinished_bytes } = flushed;
        let count = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let rest = match unfinished_bytes {
            0 => String::new(),
            rest => format!("; {} of records without an end wait", count(rest, "byte")),
        };
        return Ok(format!(
            "the running daemon flushed {}; stored {}, {}{rest}",
            count(sessions, "session"),
            count(parts, "part"),
            count(bytes, "byte"),
        ));
    }
    Err(match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(error) => AskError::Refused(error.message),
        Err(_) => AskError::Status(status),
    })
}
