//! Goes on with a download that was cut off, where it was cut off.
//!
//! Knows versions: only the very same object is gone on with. Refuses to know how often a request is repeated and what is read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::{Object, StoreError, Version};

/// How often one download is gone on with. What was read is skipped each time, so a large object costs its bytes again.
const RESUMES_MAX: u32 = 6;

type Reader = Pin<Box<dyn AsyncRead + Send>>;

/// Asks for the object once more, after a wait.
pub(super) type Again =
    Arc<dyn Fn() -> BoxFuture<'static, Result<Object, StoreError>> + Send + Sync>;

/// A download that does not end because a connection does.
pub(super) struct Resuming {
    state: State,
    again: Again,
    version: Version,
    given: u64,
    resumes: u32,
}

enum State {
    Reading(Reader),
    Opening(BoxFuture<'static, io::Result<Reader>>),
}

impl Resuming {
    /// An object whose reading goes on after a failure. One without a version may have been replaced by then: it stays as it is.
    pub(super) fn object(object: Object, again: Again) -> Object {
        let Some(version) = object.version.clone() else { return object };
        let state = State::Reading(object.reader);
        let resuming = Resuming { state, again, version, given: 0, resumes: 0 };
        Object { reader: Box::pin(resuming), ..object }
    }

    fn reopen(&mut self) -> BoxFuture<'static, io::Result<Reader>> {
        self.resumes += 1;
        let (again, version, given) = (self.again.clone(), self.version.clone(), self.given);
        Box::pin(async move {
            let mut object = again().await.map_err(io::Error::other)?;
            if object.version != Some(version) {
                return Err(io::Error::other("the object was replaced while it was read"));
            }
            let mut before = (&mut object.reader).take(given);
            let skipped = tokio::io::copy(&mut before, &mut tokio::io::sink()).await;
            match skipped {
                Ok(skipped) if skipped == given => Ok(object.reader),
                Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
                // Cut off again before the old place: an attempt like any other.
                Err(error) => Ok(Box::pin(Failed(Some(error))) as Reader),
            }
        })
    }
}

/// A reader that fails.
struct Failed(Option<io::Error>);

impl AsyncRead for Failed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Poll::Ready(Err(self.0.take().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())))
    }
}

impl AsyncRead for Resuming {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.state {
                State::Reading(reader) => {
                    let filled = buffer.filled().len();
                    match ready!(reader.as_mut().poll_read(context, buffer)) {
                        Ok(()) => {
                            this.given += (buffer.filled().len() - filled) as u64;
                            return Poll::Ready(Ok(()));
                        }
                        Err(error) if this.resumes == RESUMES_MAX => {
                            return Poll::Ready(Err(error));
                        }
                        Err(_) => this.state = State::Opening(this.reopen()),
                    }
                }
                State::Opening(opening) => match ready!(opening.as_mut().poll(context)) {
                    Ok(reader) => this.state = State::Reading(reader),
                    Err(error) => {
                        // Whoever reads on after an error gets one again.
                        this.state = State::Reading(Box::pin(Failed(None)));
                        this.resumes = RESUMES_MAX;
                        return Poll::Ready(Err(error));
                    }
                },
            }
        }
    }
}
