//! Bodies of answers: documents, errors, and the streams. Knows nothing of routes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;

use super::health::Health;
use crate::api::{self, ErrorBody, ErrorCode, Progress, SESSION_HEADER, Session, Verifying};
use crate::mirror::handle::{Feed, Replay};

/// An answer of the control server.
pub(crate) type Reply = Response<UnsyncBoxBody<Bytes, Broken>>;

/// Compaction reports as it goes; when it says nothing for so long, the client is told to stop waiting.
const SILENCE_MAX: Duration = Duration::from_secs(600);

/// Between two lines of events. A client that hears nothing for some of these knows that nobody is there.
pub(super) const HEARTBEAT_EVERY: Duration = Duration::from_secs(15);

/// A replay that failed half-way. hyper drops the connection without ending the body, so that the client cannot take what it
/// has for the whole.
#[derive(Debug, thiserror::Error)]
#[error("the replay broke off: {0}")]
pub(crate) struct Broken(String);

/// A JSON document, ended by a newline for whoever reads it in a terminal.
pub(super) fn document(value: &impl Serialize) -> Reply {
    with_status(StatusCode::OK, value)
}

/// The same for what is only begun.
pub(super) fn accepted(value: &impl Serialize) -> Reply {
    with_status(StatusCode::ACCEPTED, value)
}

fn with_status(status: StatusCode, value: &impl Serialize) -> Reply {
    match serde_json::to_vec(value) {
        Ok(mut json) => {
            json.push(b'\n');
            reply(status, "application/json", full(json))
        }
        Err(error) => failure(&ErrorBody {
            code: ErrorCode::Internal,
            message: format!("the answer cannot be written as JSON: {error}"),
            hint: None,
        }),
    }
}

/// An error with the status of its code.
pub(super) fn failure(error: &ErrorBody) -> Reply {
    let mut json = serde_json::to_vec(error).expect("three strings are always JSON");
    json.push(b'\n');
    let status = StatusCode::from_u16(error.code.status()).expect("api.rs has real statuses");
    reply(status, "application/json", full(json))
}

/// The bytes of a session as they come. One chunk is asked for when the one before is written: a slow reader slows the
/// mirror's reading and costs no memory. The permit is held until the last byte is gone.
pub(super) async fn replay(replay: Replay, permit: OwnedSemaphorePermit) -> Reply {
    let Replay { session, mut bytes } = replay;
    // What fails before the first byte can still be said with a status and a reason.
    let first = match bytes.recv().await {
        Some(Err(message)) => {
            let hint = "`tracecraftctl doctor` looks at the store, `tracecraftctl verify` at what is in it";
            let hint = Some(hint.to_owned());
            return failure(&ErrorBody { code: ErrorCode::Store, message, hint });
        }
        first => first,
    };
    let key = format!("{}/{}", session.harness, session.id);
    let frames =
        stream::unfold((first, bytes, permit, key), async |(first, mut bytes, permit, key)| {
            let item = match first {
                Some(item) => item,
                None => bytes.recv().await?,
            };
            let frame = item.map(Frame::data).map_err(|reason| {
                tracing::warn!(session = key, reason, "replay broke off");
                Broken(reason)
            });
            Some((frame, (None, bytes, permit, key)))
        });
    let mut reply =
        reply(StatusCode::OK, "application/jsonl", StreamBody::new(frames).boxed_unsync());
    reply.headers_mut().insert(SESSION_HEADER, session_header(&session));
    reply
}

/// What goes on, as lines of JSON, for as long as both sides are there. A reader that has nothing to read gets a sign of life now and
/// then, or is told that the mirror gives none; that it went away shows at the next write at the latest.
pub(super) fn events(feed: Arc<Feed>, health: Arc<Health>) -> Reply {
    let lines = stream::unfold((feed, health, false), async |(feed, health, stalled)| {
        let event = match timeout(HEARTBEAT_EVERY, feed.next()).await {
            Ok(Some(api::Event::Status { status })) => {
                api::Event::Status { status: Box::new(health.heard(*status)) }
            }
            Ok(event) => event?,
            Err(_) => health.sign_of_life(stalled).await,
        };
        let stalled = match &event {
            api::Event::Status { status } => status.stalled_seconds.is_some(),
            _ => stalled,
        };
        let mut line = serde_json::to_vec(&event).expect("wire types are always JSON");
        line.push(b'\n');
        Some((Ok(Frame::data(Bytes::from(line))), (feed, health, stalled)))
    });
    reply(StatusCode::OK, "application/jsonl", StreamBody::new(lines).boxed_unsync())
}

/// Text of some kind.
pub(super) fn text(content_type: &'static str, text: String) -> Reply {
    reply(StatusCode::OK, content_type, full(text.into_bytes()))
}

/// What a stream of progress is made of.
pub(super) trait Event: Serialize + Send + 'static {
    /// The last line when the work failed, or could not be followed.
    fn failed(error: ErrorBody) -> Self;
    /// The error, if this is one.
    fn error(&self) -> Option<&ErrorBody>;
    /// Whether nothing comes after it.
    fn is_last(&self) -> bool;
}

impl Event for Progress {
    fn failed(error: ErrorBody) -> Progress {
        Progress::Failed { error }
    }

    fn error(&self) -> Option<&ErrorBody> {
        if let Progress::Failed { error } = self { Some(error) } else { None }
    }

    fn is_last(&self) -> bool {
        !matches!(self, Progress::Working { .. })
    }
}

impl Event for Verifying {
    fn failed(error: ErrorBody) -> Verifying {
        Verifying::Failed { error }
    }

    fn error(&self) -> Option<&ErrorBody> {
        if let Verifying::Failed { error } = self { Some(error) } else { None }
    }

    fn is_last(&self) -> bool {
        matches!(self, Verifying::Done { .. } | Verifying::Failed { .. })
    }
}

/// Progress as lines of JSON. The contract's last line is `done` or `failed`, whatever becomes of the mirror.
pub(super) async fn progress<E: Event>(mut events: mpsc::Receiver<E>) -> Reply {
    // A refusal (no such session, busy) is an error like that of any other route.
    let first = next(&mut events).await;
    if let Some(error) = first.error() {
        return failure(error);
    }
    let lines = stream::unfold(Some((Some(first), events)), async |state| {
        let (first, mut events) = state?;
        let event = match first {
            Some(event) => event,
            None => next(&mut events).await,
        };
        let last = event.is_last();
        let mut line = serde_json::to_vec(&event).expect("numbers and strings are always JSON");
        line.push(b'\n');
        Some((Ok(Frame::data(Bytes::from(line))), (!last).then_some((None, events))))
    });
    reply(StatusCode::OK, "application/jsonl", StreamBody::new(lines).boxed_unsync())
}

async fn next<E: Event>(events: &mut mpsc::Receiver<E>) -> E {
    let failed = |code, message: String| E::failed(ErrorBody { code, message, hint: None });
    match timeout(SILENCE_MAX, events.recv()).await {
        Ok(Some(event)) => event,
        Ok(None) => failed(
            ErrorCode::Unavailable,
            "the daemon is stopping; the work is finished or undone at its next start".into(),
        ),
        Err(_) => failed(
            ErrorCode::Timeout,
            format!("no progress for {} s; the work goes on in the daemon", SILENCE_MAX.as_secs()),
        ),
    }
}

fn reply(
    status: StatusCode,
    content_type: &'static str,
    body: UnsyncBoxBody<Bytes, Broken>,
) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

fn full(bytes: Vec<u8>) -> UnsyncBoxBody<Bytes, Broken> {
    Full::new(Bytes::from(bytes)).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// JSON in the characters that a header may have: what is not printable ASCII is written as `\uXXXX`.
fn session_header(session: &Session) -> HeaderValue {
    let json = serde_json::to_string(session).expect("strings and numbers are always JSON");
    let mut ascii = String::with_capacity(json.len());
    for character in json.chars() {
        if matches!(character, ' '..='~') {
            ascii.push(character);
        } else {
            // Outside strings JSON of serde_json is printable ASCII, so an escape is always allowed here.
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                ascii.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    HeaderValue::try_from(ascii).expect("only printable ASCII is left")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_header_is_printable_ascii_and_reads_back_the_same() {
        let mut session = crate::control::tests::session("codex", "a\u{7f}b");
        session.cwd = Some("/home/jörg/数据/\u{1f980}/\u{1b}[31m\n".into());
        let header = session_header(&session);
        assert!(header.as_bytes().iter().all(|byte| (b' '..=b'~').contains(byte)));
        assert_eq!(serde_json::from_slice::<Session>(header.as_bytes()).unwrap(), session);
    }

    #[tokio::test]
    async fn a_replay_is_read_only_as_fast_as_its_reader_reads() {
        let (sender, bytes) = mpsc::channel(1);
        let permit = std::sync::Arc::new(tokio::sync::Semaphore::new(1)).try_acquire_owned();
        let session = crate::control::tests::session("codex", "a");
        sender.try_send(Ok(Bytes::from("first"))).unwrap();
        let mut reply = replay(Replay { session, bytes }, permit.unwrap()).await;
        sender.try_send(Ok(Bytes::from("second"))).unwrap();
        assert!(sender.try_send(Ok(Bytes::from("third"))).is_err(), "taken before it was wanted");
        let body = reply.body_mut();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "second");
        sender.try_send(Ok(Bytes::from("third"))).unwrap();
    }
}
