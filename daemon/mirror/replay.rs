//! The stored bytes of a session, in order, as a stream: the same for a person, a test and a restore.
//!
//! A compaction may take away an object between the manifest and its reading: then the manifest is read again, and the stream
//! goes on at the byte where it was, since the bytes of a generation never change.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::find::chain;
use super::manifest::{self, Failure};
use crate::part::{Manifest, PartName, SessionKey};
use crate::store::{ErrorKind, Store};

/// Bytes of a piece in the stream.
const PIECE_BYTES: usize = 64 * 1024;

/// Pieces that wait for a slow reader.
pub(crate) const PIECES_MAX: usize = 8;

/// How often a manifest is read again without a byte of progress.
const RETRIES_MAX: u32 = 5;

/// Streams a session, or its last `tail` lines, until all is sent or the reader goes away.
pub(crate) async fn replay(
    store: Arc<dyn Store>,
    key: SessionKey,
    tail: Option<u64>,
    to: mpsc::Sender<Result<Bytes, String>>,
) {
    if let Err(failure) = stream(&*store, &key, tail, &to).await {
        let _ = to.send(Err(chain(&failure))).await;
    }
}

async fn stream(
    store: &dyn Store,
    key: &SessionKey,
    tail: Option<u64>,
    to: &mpsc::Sender<Result<Bytes, String>>,
) -> Result<(), Failure> {
    let mut position = match tail {
        Some(lines) => tail_start(store, key, lines).await?,
        None => 0,
    };
    let mut retries = 0;
    loop {
        let before = position;
        match pass(store, key, &mut position, to).await {
            Err(Failure::Store(e)) if e.kind == ErrorKind::NotFound && retries < RETRIES_MAX => {
                retries = if position > before { 0 } else { retries + 1 };
            }
            other => return other,
        }
    }
}

/// One walk over the parts, from `position` on.
async fn pass(
    store: &dyn Store,
    key: &SessionKey,
    position: &mut u64,
    to: &mpsc::Sender<Result<Bytes, String>>,
) -> Result<(), Failure> {
    let mut start = 0;
    for (name, size) in order(store, key).await? {
        let end = start + size;
        if end > *position {
            let mut skip = *position - start.min(*position);
            let object = key.part_key(&name);
            let mut reader = store.get(&object).await?.reader;
            let mut buffer = vec![0; PIECE_BYTES];
            loop {
                let n = reader.read(&mut buffer).await.map_err(|e| read_failed(&object, e))?;
                if n == 0 {
                    break;
                }
                let from = usize::try_from(skip).unwrap_or(usize::MAX).min(n);
                skip -= from as u64;
                if from < n {
                    let piece = Bytes::copy_from_slice(&buffer[from..n]);
                    *position += piece.len() as u64;
                    if to.send(Ok(piece)).await.is_err() {
                        return Ok(()); // Nobody reads any more.
                    }
                }
            }
            if *position != end {
                let what = format!("not {size} bytes long, as its manifest says");
                return Err(Failure::Damaged { key: object, what });
            }
        }
        start = end;
    }
    Ok(())
}

async fn order(store: &dyn Store, key: &SessionKey) -> Result<Vec<(PartName, u64)>, Failure> {
    let manifest = manifest::read(store, key).await?.unwrap_or_else(|| Manifest::new(key));
    let listed = manifest::list_parts(store, key).await?;
    Ok(manifest::read_order(store, key, &manifest, &listed).await?)
}

/// The position where the last `lines` lines begin, found from the end so that a long session costs little.
async fn tail_start(store: &dyn Store, key: &SessionKey, lines: u64) -> Result<u64, Failure> {
    let parts = order(store, key).await?;
    let mut end: u64 = parts.iter().map(|(_, size)| size).sum();
    let mut wanted = lines;
    let mut is_last = true;
    for (name, size) in parts.iter().rev() {
        let start = end - size;
        let ends = line_ends(store, &key.part_key(name)).await?;
        // The newline that ends the session ends its last line and begins none.
        let ends: Vec<u64> = ends.into_iter().filter(|at| !(is_last && at + 1 == *size)).collect();
        is_last = is_last && *size == 0;
        if ends.len() as u64 >= wanted {
            if wanted == 0 {
                return Ok(end);
            }
            let at = ends.len() - usize::try_from(wanted).unwrap_or(0);
            return Ok(start + ends[at] + 1);
        }
        wanted -= ends.len() as u64;
        end = start;
    }
    Ok(0)
}

/// Positions of the newlines in an object.
async fn line_ends(store: &dyn Store, object: &str) -> Result<Vec<u64>, Failure> {
    let mut reader = store.get(object).await?.reader;
    let mut buffer = vec![0; PIECE_BYTES];
    let (mut ends, mut at) = (Vec::new(), 0);
    loop {
        let n = reader.read(&mut buffer).await.map_err(|e| read_failed(object, e))?;
        if n == 0 {
            return Ok(ends);
        }
        ends.extend(memchr::memchr_iter(b'\n', &buffer[..n]).map(|i| at + i as u64));
        at += n as u64;
    }
}

fn read_failed(object: &str, error: std::io::Error) -> Failure {
    Failure::Store(crate::store::StoreError {
        kind: ErrorKind::Unavailable,
        operation: "get",
        object: object.to_owned(),
        source: error.into(),
    })
}
