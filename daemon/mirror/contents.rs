//! What the parts that a manifest names hold, byte for byte: read on from some place, or searched.
//!
//! For the rare case that another writer merged parts and numbers and ranges tell nothing any more. Changes nothing.

use std::collections::VecDeque;
use std::pin::Pin;

use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::manifest::{Failure, range_of, unreadable};
use crate::part::{Manifest, PartEntry, PartName, SessionKey, hex};
use crate::state::PendingPart;
use crate::store::{Object, Store};

/// Bytes read at a time where a merged part is compared with what it should hold.
const COMPARE_BYTES: usize = 64 * 1024;

/// Largest part that is looked for in named ones, bytes: one chunk, some records longer. A larger leftover stays.
pub(super) const COMPARED_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// How many of a writer's parts, from the first on, are in what a manifest names, behind so many bytes that it had before.
pub(crate) async fn shared(
    store: &dyn Store,
    key: &SessionKey,
    manifest: &Manifest,
    before: u64,
    parts: &[PendingPart],
) -> Result<usize, Failure> {
    let mut contents = Contents::new(store, key, manifest, before);
    let mut shared = 0;
    for part in parts {
        if contents.digest_of(part.bytes).await?.as_ref() != Some(&part.sha256) {
            break;
        }
        shared += 1;
    }
    Ok(shared)
}

/// The bytes that a manifest names, from some place on, one object after the other.
pub(crate) struct Contents<'a> {
    store: &'a dyn Store,
    /// Objects to come, with how many of their bytes are to be left out.
    objects: VecDeque<(String, u64)>,
    reader: Option<(String, Pin<Box<dyn AsyncRead + Send>>)>,
    buffer: Vec<u8>,
}

impl<'a> Contents<'a> {
    pub(crate) fn new(
        store: &'a dyn Store,
        key: &SessionKey,
        manifest: &Manifest,
        from: u64,
    ) -> Contents<'a> {
        let mut start: u64 = 0;
        let mut objects = VecDeque::new();
        for part in &manifest.parts {
            let end = start.saturating_add(part.uploaded_bytes);
            if end > from {
                objects.push_back((key.part_key(&part.name()), from.saturating_sub(start)));
            }
            start = end;
        }
        Contents { store, objects, reader: None, buffer: vec![0; COMPARE_BYTES] }
    }

    /// The next bytes, at most so many; none at the end.
    pub(crate) async fn next(&mut self, most: u64) -> Result<&[u8], Failure> {
        loop {
            if self.reader.is_none() {
                let Some((name, mut skip)) = self.objects.pop_front() else { return Ok(&[]) };
                let mut reader = self.store.get(&name).await?.reader;
                while skip > 0 {
                    let most = usize::try_from(skip).unwrap_or(usize::MAX).min(COMPARE_BYTES);
                    let read = reader.read(&mut self.buffer[..most]).await;
                    match read.map_err(|e| unreadable(&name, e))? {
                        0 => break,
                        n => skip -= n as u64,
                    }
                }
                self.reader = Some((name, reader));
            }
            let Some((name, reader)) = &mut self.reader else { continue };
            let most = usize::try_from(most).unwrap_or(usize::MAX).min(COMPARE_BYTES);
            match reader.read(&mut self.buffer[..most]).await.map_err(|e| unreadable(name, e))? {
                0 => self.reader = None,
                n => return Ok(&self.buffer[..n]),
            }
        }
    }

    /// The digest of the next so many bytes; `None` when there are fewer.
    pub(crate) async fn digest_of(&mut self, bytes: u64) -> Result<Option<String>, Failure> {
        let (mut left, mut digest) = (bytes, Sha256::new());
        while left > 0 {
            let piece = self.next(left).await?;
            if piece.is_empty() {
                return Ok(None);
            }
            digest.update(piece);
            left -= piece.len() as u64;
        }
        Ok(Some(hex(&digest.finalize())))
    }
}

/// Whether the named parts hold these bytes: then they are safe there, and a second copy of them is one too many.
pub(crate) async fn holds(
    store: &dyn Store,
    key: &SessionKey,
    manifest: &Manifest,
    bytes: &[u8],
) -> Result<bool, Failure> {
    let mut contents = Contents::new(store, key, manifest, 0);
    let finder = memchr::memmem::Finder::new(bytes);
    let mut window: Vec<u8> = Vec::new();
    loop {
        let piece = contents.next(COMPARE_BYTES as u64).await?;
        if piece.is_empty() {
            return Ok(false);
        }
        window.extend_from_slice(piece);
        if finder.find(&window).is_some() {
            return Ok(true);
        }
        let keep = window.len().min(bytes.len().saturating_sub(1));
        window.drain(..window.len() - keep);
    }
}

/// As [`holds`], for an object that says its range: where a named part begins at the same place, that is where its bytes have
/// to be. Another writer's part may hold a record that stands elsewhere in ours.
pub(crate) async fn holds_at(
    store: &dyn Store,
    key: &SessionKey,
    manifest: &Manifest,
    bytes: &[u8],
    range: Option<[u64; 2]>,
) -> Result<bool, Failure> {
    let begins = |part: &PartEntry| match (part.cursor_range, range) {
        (Some([named, _]), Some([start, _])) => named == start,
        _ => false,
    };
    let Some(at) = manifest.parts.iter().position(begins) else {
        return holds(store, key, manifest, bytes).await;
    };
    let before = manifest.parts[..at].iter().map(|part| part.uploaded_bytes).sum();
    let mut contents = Contents::new(store, key, manifest, before);
    let there = contents.digest_of(bytes.len() as u64).await?;
    Ok(there == Some(hex(&Sha256::digest(bytes))))
}

/// The whole of a part and the range that it says, unless it is larger than is worth being held in memory.
pub(crate) async fn part_bytes(
    store: &dyn Store,
    key: &SessionKey,
    name: &PartName,
    size: u64,
) -> Result<Option<(Vec<u8>, Option<[u64; 2]>)>, Failure> {
    if size > COMPARED_BYTES_MAX {
        return Ok(None);
    }
    let object = key.part_key(name);
    let mut bytes = Vec::new();
    let Object { reader, note, .. } = store.get(&object).await?;
    let limited = reader.take(COMPARED_BYTES_MAX);
    tokio::pin!(limited);
    limited.read_to_end(&mut bytes).await.map_err(|e| unreadable(&object, e))?;
    Ok(Some((bytes, range_of(note.as_deref()))))
}
