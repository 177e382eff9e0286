//! The one question that this program asks another instance of itself: `--once` beside a daemon becomes its flush.

use std::error::Error;
use std::iter::successors;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::api::{ErrorBody, Flushed, route};

/// A flush that makes no progress for a minute has failed in the daemon; this is longer, so that its own answer wins.
const ANSWER_MAX: Duration = Duration::from_secs(15 * 60);

/// The answer is a few numbers or an error.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Asks the daemon at a socket to flush everything; answers what it stored, for a person.
pub(crate) async fn flush(socket: &Path) -> Result<String, String> {
    timeout(ANSWER_MAX, ask(socket)).await.map_err(|_| "it did not answer in time".to_owned())?
}

async fn ask(socket: &Path) -> Result<String, String> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(|e| format!("cannot reach it at {}: {}", socket.display(), chain(&e)))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|e| chain(&e))?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(route::FLUSH)
        .header(hyper::header::HOST, "localhost")
        .body(Empty::<Bytes>::new())
        .map_err(|e| chain(&e))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| chain(&e))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok::<_, String>((status, body.map_err(|e| e.to_string())?.to_bytes()))
    };
    tokio::pin!(exchange);
    let (status, body) = tokio::select! {
        answer = &mut exchange => answer?,
        ended = connection => {
            ended.map_err(|e| chain(&e))?;
            exchange.await?
        }
    };
    if status.is_success() {
        let flushed: Flushed = serde_json::from_slice(&body).map_err(|e| chain(&e))?;
        let Flushed { sessions, parts, bytes } = flushed;
        return Ok(format!(
            "the running daemon flushed {sessions} sessions; stored {parts} parts, {bytes} bytes"
        ));
    }
    Err(match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(error) => error.message,
        Err(_) => format!("it answered {status}"),
    })
}

/// An error with its causes, in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let causes: Vec<String> =
        successors(Some(error), |&error| error.source()).map(ToString::to_string).collect();
    causes.join(": ")
}
