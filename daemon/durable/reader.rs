//! An open file as a stream, read in pieces so that its size never matters.
//!
//! Knows nothing of what the bytes are.

use std::future::Future;
use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::Blocking;

/// Bytes read at once: large enough that the hop to a blocking thread is small beside it, small enough for dozens at a time.
const PIECE_BYTES: usize = 128 << 10;

/// A reader with the buffer that is lent to it.
struct Source {
    reader: Box<dyn Read + Send>,
    buffer: Vec<u8>,
}

type Reading = Pin<Box<dyn Future<Output = (Source, io::Result<usize>)> + Send>>;

enum State {
    /// `buffer[from..to]` is not yet handed out.
    Idle { source: Source, from: usize, to: usize },
    /// The next piece is being read.
    Reading(Reading),
    /// At the end, or broken.
    Done,
}

/// [`AsyncRead`] over a blocking reader.
pub(crate) struct PieceReader {
    blocking: Blocking,
    state: State,
}

impl PieceReader {
    /// Reads from `reader` as `blocking` says.
    pub(crate) fn new(blocking: Blocking, reader: Box<dyn Read + Send>) -> PieceReader {
        let source = Source { reader, buffer: Vec::new() };
        PieceReader { blocking, state: State::Idle { source, from: 0, to: 0 } }
    }
}

fn next_piece(blocking: Blocking, mut source: Source) -> Reading {
    let read = move || {
        source.buffer.resize(PIECE_BYTES, 0);
        let result = loop {
            match source.reader.read(&mut source.buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        (source, result)
    };
    Box::pin(async move { blocking.run(read).await })
}

impl AsyncRead for PieceReader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            match &mut this.state {
                State::Done => return Poll::Ready(Ok(())),
                State::Idle { source, from, to } if *from < *to => {
                    let length = out.remaining().min(*to - *from);
                    out.put_slice(&source.buffer[*from..*from + length]);
                    *from += length;
                    return Poll::Ready(Ok(()));
                }
                State::Idle { .. } => {
                    if let State::Idle { source, .. } =
                        std::mem::replace(&mut this.state, State::Done)
                    {
                        this.state = State::Reading(next_piece(this.blocking.clone(), source));
                    }
                }
                State::Reading(reading) => {
                    let (source, result) = ready!(reading.as_mut().poll(context));
                    this.state = State::Done;
                    match result {
                        Ok(0) => {}
                        Ok(length) => this.state = State::Idle { source, from: 0, to: length },
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                }
            }
        }
    }
}
