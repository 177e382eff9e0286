//! What goes up: bytes or a file, with the digests that a store checks, as often as a request has to be sent.
//!
//! Knows how long it is and what it hashes to before the first byte leaves; refuses to know who asked for it. A file is read
//! twice, in pieces, so that its size is never in memory.

use std::io::{self, Read};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use hyper::body::{Frame, SizeHint};
use md5::Md5;
use sha2::{Digest, Sha256};
use tokio::io::AsyncRead;
use tokio::time::Instant;

use crate::durable::{Blocking, Disk, PieceReader};

/// Bytes handed to the connection at once. Small, so that a slow line is seen to move.
const FRAME_BYTES: usize = 64 << 10;

/// Bytes hashed at once.
const HASH_BYTES: usize = 128 << 10;

/// What a request carries. It can be opened again and again, because a request may have to be sent again.
#[derive(Debug, Clone)]
pub(super) struct Payload {
    source: Source,
    length: u64,
    sha256: String,
    md5: String,
}

#[derive(Debug, Clone)]
enum Source {
    Bytes(Bytes),
    File { disk: Arc<dyn Disk>, blocking: Blocking, path: PathBuf },
}

impl Payload {
    /// Nothing, as most requests carry.
    pub(super) fn empty() -> Payload {
        Payload::bytes(Bytes::new())
    }

    /// Bytes in memory.
    pub(super) fn bytes(bytes: Bytes) -> Payload {
        let mut digests = Digests::default();
        digests.update(&bytes);
        let length = bytes.len() as u64;
        digests.of(Source::Bytes(bytes), length)
    }

    /// A file of ours that does not change any more.
    pub(super) async fn file(
        disk: Arc<dyn Disk>,
        blocking: Blocking,
        path: PathBuf,
    ) -> io::Result<Payload> {
        let (from, file) = (Arc::clone(&disk), path.clone());
        let (digests, length) = blocking.run(move || hash(&*from, &file)).await?;
        Ok(digests.of(Source::File { disk, blocking, path }, length))
    }

    /// Its length in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// SHA-256 in hexadecimal digits: part of the signature.
    pub(super) fn sha256(&self) -> &str {
        &self.sha256
    }

    /// MD5 as `Content-MD5` has it.
    pub(super) fn md5(&self) -> &str {
        &self.md5
    }

    /// The body of one attempt.
    pub(super) async fn open(&self) -> io::Result<Upload> {
        let (content, left) = match &self.source {
            Source::Bytes(bytes) => (Content::Bytes(bytes.clone()), self.length),
            Source::File { disk, blocking, path } => {
                let (from, file) = (Arc::clone(disk), path.clone());
                let reader = blocking.run(move || from.open(&file)).await?;
                (Content::File(PieceReader::new(blocking.clone(), reader)), self.length)
            }
        };
        Ok(Upload { content, left, pulse: Pulse::new() })
    }
}

fn hash(disk: &dyn Disk, path: &std::path::Path) -> io::Result<(Digests, u64)> {
    let mut reader = disk.open(path)?;
    let mut buffer = vec![0; HASH_BYTES];
    let (mut digests, mut length) = (Digests::default(), 0);
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok((digests, length)),
            Ok(read) => {
                digests.update(&buffer[..read]);
                length += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[derive(Default)]
struct Digests {
    sha256: Sha256,
    md5: Md5,
}

impl Digests {
    fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        self.md5.update(bytes);
    }

    fn of(self, source: Source, length: u64) -> Payload {
        let sha256 = self.sha256.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Payload { source, length, sha256, md5: BASE64.encode(self.md5.finalize()) }
    }
}

/// When bytes of a request last moved. Shared by the body that moves them and the watch over it.
#[derive(Debug, Clone)]
pub(super) struct Pulse {
    began: Instant,
    milliseconds: Arc<AtomicU64>,
}

impl Pulse {
    fn new() -> Pulse {
        Pulse { began: Instant::now(), milliseconds: Arc::default() }
    }

    /// Something moved just now.
    pub(super) fn beat(&self) {
        let since = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.milliseconds.fetch_max(since, Ordering::Relaxed);
    }

    /// The last time that something moved.
    pub(super) fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.milliseconds.load(Ordering::Relaxed))
    }
}

/// The body of one request.
pub(super) struct Upload {
    content: Content,
    left: u64,
    pulse: Pulse,
}

enum Content {
    Bytes(Bytes),
    File(PieceReader),
}

impl Upload {
    /// A body in memory.
    pub(super) fn of(bytes: Bytes) -> Upload {
        let left = bytes.len() as u64;
        Upload { content: Content::Bytes(bytes), left, pulse: Pulse::new() }
    }

    /// Tells when the body last moved.
    pub(super) fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }
}

impl hyper::body::Body for Upload {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        if this.left == 0 {
            return Poll::Ready(None);
        }
        let piece = match &mut this.content {
            Content::Bytes(bytes) => bytes.split_to(bytes.len().min(FRAME_BYTES)),
            Content::File(reader) => {
                let mut buffer = BytesMut::zeroed(FRAME_BYTES);
                let mut space = tokio::io::ReadBuf::new(&mut buffer);
                std::task::ready!(Pin::new(reader).poll_read(context, &mut space))?;
                let length = space.filled().len();
                buffer.truncate(length);
                buffer.freeze()
            }
        };
        this.pulse.beat();
        // What is signed and announced is what the file held when it was hashed.
        match this.left.checked_sub(piece.len() as u64) {
            Some(left) if !piece.is_empty() => this.left = left,
            _ => return Poll::Ready(Some(Err(io::Error::other("the file has changed")))),
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
