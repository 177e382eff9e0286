//! Puts with a condition, and the look at what the store makes of them.
//!
//! Some stores say yes to a condition that does not hold, and overwrite. So the first swap of a process tries it out, on the
//! very put that is wanted: the object is put with `If-Match` and a tag that no object has, and with `If-None-Match: *` once it
//! is there. A store that honours conditions refuses both and nothing has happened; a store that ignores them has done what an
//! unconditional put would have done, which is all that it can do. Nothing is left behind, and no right is needed but to put.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use tokio::io::AsyncReadExt;

use super::S3Store;
use super::errors::Failure;
use super::requests::{Answer, Call};
use super::upload::Payload;
use crate::store::{Conditions, ErrorKind, Version};

/// An MD5 that nothing is known to have.
const NO_TAG: HeaderValue = HeaderValue::from_static("\"00000000000000000000000000000000\"");

/// Whatever there is.
const ANY: HeaderValue = HeaderValue::from_static("*");

/// What is known about conditions.
#[derive(Debug)]
pub(super) struct Probe {
    verdict: Mutex<Conditions>,
    /// Swaps wait here for the first one: its findings decide how they are done.
    turn: tokio::sync::Mutex<()>,
}

impl Default for Probe {
    fn default() -> Probe {
        Probe { verdict: Mutex::new(Conditions::Unknown), turn: tokio::sync::Mutex::new(()) }
    }
}

impl Probe {
    pub(super) fn verdict(&self) -> Conditions {
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a verdict, and tells it once.
    pub(super) fn set(&self, verdict: Conditions) {
        let mut known = self.verdict.lock().unwrap_or_else(PoisonError::into_inner);
        if *known != verdict {
            *known = verdict;
            tracing::info!(?verdict, "conditional puts");
        }
    }
}

/// What became of a put with a condition.
enum Outcome {
    Done,
    Refused,
    /// The store does not know the header, or refuses all requests with it.
    Unsupported,
}

impl S3Store {
    pub(super) async fn swap_object(
        &self,
        key: &str,
        body: Bytes,
        seen: Option<&Version>,
    ) -> Result<(), Failure> {
        let put = Swap { key, payload: Payload::bytes(body.clone()), body };
        if self.probe.verdict() == Conditions::Unknown {
            let _turn = self.probe.turn.lock().await;
            if self.probe.verdict() == Conditions::Unknown {
                return self.first_swap(&put, seen).await;
            }
        }
        match self.probe.verdict() {
            Conditions::Ignored | Conditions::Unsupported => self.unconditional(&put).await,
            _ => self.honoured_swap(&put, seen).await,
        }
    }

    /// The first swap of this process: finds out what conditions mean here, and does what was asked for on the way. A failure
    /// in between leaves everything to the next attempt.
    async fn first_swap(&self, put: &Swap<'_>, seen: Option<&Version>) -> Result<(), Failure> {
        match self.conditional(put, IF_MATCH, NO_TAG).await? {
            Outcome::Done => {
                self.probe.set(Conditions::Ignored);
                return Ok(());
            }
            Outcome::Unsupported => {
                self.probe.set(Conditions::Unsupported);
                return self.unconditional(put).await;
            }
            Outcome::Refused => {}
        }
        match self.conditional(put, IF_NONE_MATCH, ANY).await? {
            Outcome::Unsupported => {
                self.probe.set(Conditions::Unsupported);
                self.unconditional(put).await
            }
            Outcome::Refused => {
                self.probe.set(Conditions::Honoured);
                self.honoured_swap(put, seen).await
            }
            // Either there was nothing, or the condition was ignored. Now there is something, and it is ours.
            Outcome::Done => {
                let again = self.conditional(put, IF_NONE_MATCH, ANY).await?;
                let honoured = matches!(again, Outcome::Refused);
                let verdict = if honoured { Conditions::Honoured } else { Conditions::Ignored };
                self.probe.set(verdict);
                Ok(())
            }
        }
    }

    async fn honoured_swap(&self, put: &Swap<'_>, seen: Option<&Version>) -> Result<(), Failure> {
        let odd = |_| Failure::new(ErrorKind::Invalid, "the version is none of this store");
        let (name, value) = match seen {
            Some(Version(tag)) => (IF_MATCH, HeaderValue::from_str(tag).map_err(odd)?),
            None => (IF_NONE_MATCH, ANY),
        };
        match self.conditional(put, name, value).await? {
            Outcome::Done => Ok(()),
            // An earlier attempt, whose answer was lost, may have done it.
            Outcome::Refused if self.holds(put).await? => Ok(()),
            Outcome::Refused => {
                Err(Failure::new(ErrorKind::Changed, "the object is another one by now"))
            }
            Outcome::Unsupported => {
                Err(Failure::new(ErrorKind::Invalid, "the store takes no conditions any more"))
            }
        }
    }

    async fn unconditional(&self, put: &Swap<'_>) -> Result<(), Failure> {
        self.put_object(put.key, put.call(), None).await
    }

    async fn conditional(
        &self,
        put: &Swap<'_>,
        name: HeaderName,
        value: HeaderValue,
    ) -> Result<Outcome, Failure> {
        let call = Call { condition: Some((name, value)), ..put.call() };
        match self.put_object(put.key, call, None).await {
            Ok(()) => Ok(Outcome::Done),
            // AWS calls an object that is not there by its name, and not a condition that failed.
            Err(failure) if matches!(failure.kind, ErrorKind::Changed | ErrorKind::NotFound) => {
                Ok(Outcome::Refused)
            }
            Err(failure) if failure.kind == ErrorKind::Invalid => Ok(Outcome::Unsupported),
            Err(failure) => Err(failure),
        }
    }

    /// Whether the object is what is put.
    async fn holds(&self, put: &Swap<'_>) -> Result<bool, Failure> {
        let object = match self.get_object(put.key).await {
            Err(failure) if failure.kind == ErrorKind::NotFound => return Ok(false),
            object => object?,
        };
        let mut bytes = Vec::new();
        // One byte more than wanted is enough to tell the difference.
        let read = object.reader.take(put.body.len() as u64 + 1).read_to_end(&mut bytes).await;
        read.map_err(|error| {
            Failure::new(ErrorKind::Unavailable, "reading back what is there").because(error)
        })?;
        Ok(bytes == put.body)
    }
}

/// A put with a condition.
struct Swap<'a> {
    key: &'a str,
    body: Bytes,
    payload: Payload,
}

impl Swap<'_> {
    fn call(&self) -> Call {
        Call::new("s3:PutObject", Answer::Plain).carrying(self.payload.clone())
    }
}
