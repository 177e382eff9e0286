//! What the parts that a manifest names hold, byte for byte: read on from some place, or searched.
//!
//! For the rare case that another writer merged parts and numbers and ranges tell nothing any more. Changes nothing.

use std::collections::VecDeque;
use std::pin::Pin;

use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::manifest::{Failure, range_of, unreadable};
use crate::part::{Manifest, PartName, SessionKey, hex};
use crate::state::PendingPart;
use crate::store::{Object, Store};

/// Bytes read at a time where a merged part is compared with what it should hold.
const COMPARE_BYTES: usize = 64 * 1024;

/// So many bytes are enough to tell the end of one part from that of another: more than what closes a record.
const TELLING_BYTES: u64 = 32;

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
    Ok(find(store, key, manifest, 0, bytes).await?.is_some())
}

/// Where the named parts hold these bytes first from some place on; places are counted from the first byte of the first part.
async fn find(
    store: &dyn Store,
    key: &SessionKey,
    manifest: &Manifest,
    from: u64,
    bytes: &[u8],
) -> Result<Option<u64>, Failure> {
    let mut contents = Contents::new(store, key, manifest, from);
    let finder = memchr::memmem::Finder::new(bytes);
    let mut window: Vec<u8> = Vec::new();
    let mut start = from;
    loop {
        let piece = contents.next(COMPARE_BYTES as u64).await?;
        if piece.is_empty() {
            return Ok(None);
        }
        window.extend_from_slice(piece);
        if let Some(at) = finder.find(&window) {
            return Ok(Some(start + at as u64));
        }
        let gone = window.len() - window.len().min(bytes.len().saturating_sub(1));
        window.drain(..gone);
        start += gone as u64;
    }
}

/// Objects that no manifest names, one after the other in the order of their numbers: which of them the named parts hold.
///
/// Bytes that are there somewhere are not yet the ones that are meant: another writer's part may hold a record that stands
/// elsewhere in ours, and a piece of a record is soon found in many. So an object is looked for at its places: where its range
/// says, else where its number would have it. Only where its range tells nothing, whole records are looked for everywhere.
#[derive(Debug)]
pub(crate) struct Leftovers<'a> {
    store: &'a dyn Store,
    key: &'a SessionKey,
    manifest: &'a Manifest,
    /// The number behind the last one that was found, and the place behind its bytes.
    behind: Option<(u32, u64)>,
}

impl<'a> Leftovers<'a> {
    pub(crate) fn new(
        store: &'a dyn Store,
        key: &'a SessionKey,
        manifest: &'a Manifest,
    ) -> Leftovers<'a> {
        Leftovers { store, key, manifest, behind: None }
    }

    /// Whether the named parts hold the next object.
    pub(crate) async fn is_held(
        &mut self,
        name: &PartName,
        bytes: &[u8],
        range: Option<[u64; 2]>,
    ) -> Result<bool, Failure> {
        let length = bytes.len() as u64;
        let Some((from, to)) = self.window(range) else {
            self.behind = None;
            return Ok(false);
        };
        let by_range = range.map_or(Vec::new(), |range| self.at_range(range, length));
        let is_told = !by_range.is_empty();
        let places = if is_told { by_range } else { self.at_number(name, bytes) };
        let digest = hex(&Sha256::digest(bytes));
        let mut at = None;
        for place in places {
            let mut contents = Contents::new(self.store, self.key, self.manifest, place);
            if contents.digest_of(length).await?.as_ref() == Some(&digest) {
                at = Some(place);
                break;
            }
        }
        if at.is_none() && !is_told && has_record(bytes) {
            let found = find(self.store, self.key, self.manifest, from, bytes).await?;
            at = found.filter(|at| at + length <= to);
        }
        self.behind = at.map(|at| (name.seq.saturating_add(1), at + length));
        Ok(at.is_some())
    }

    /// Where so many bytes of this range have to be: places that are known of a named part that it begins or ends with, or lies
    /// in, if nothing was replaced there.
    fn at_range(&self, [first, last]: [u64; 2], length: u64) -> Vec<u64> {
        let mut places = Vec::new();
        let mut before: u64 = 0;
        for part in &self.manifest.parts {
            let behind = before.saturating_add(part.uploaded_bytes);
            if let Some([start, end]) = part.cursor_range {
                let verbatim = part.redactions.is_empty() && end - start == part.uploaded_bytes;
                if first == start || (verbatim && (start..end).contains(&first)) {
                    places.push(before.saturating_add(first - start));
                } else if last == end {
                    places.extend(behind.checked_sub(length));
                }
            }
            before = behind;
        }
        places
    }

    /// From where to where the named parts hold what is in a range, the parts around its ends included; `None`: they do not
    /// reach so far. Without a range, all of them.
    fn window(&self, range: Option<[u64; 2]>) -> Option<(u64, u64)> {
        let Some([first, last]) = range else { return Some((0, u64::MAX)) };
        let (mut before, mut window) = (0, None);
        for part in &self.manifest.parts {
            let behind = u64::saturating_add(before, part.uploaded_bytes);
            if let Some([start, end]) = part.cursor_range {
                if start <= first {
                    window = Some((before, behind));
                }
                if end >= last {
                    return window.map(|(from, _)| (from, behind));
                }
            }
            before = behind;
        }
        None
    }

    /// Where bytes of this number would be, if they were merged: a merged part has the number of its first, and the next part
    /// follows its last. A few bytes are the end of many a part, so they are looked for only behind what was found before.
    fn at_number(&self, name: &PartName, bytes: &[u8]) -> Vec<u64> {
        let length = bytes.len() as u64;
        let mut places = Vec::new();
        places.extend(self.behind.filter(|(seq, _)| *seq == name.seq).map(|(_, place)| place));
        if length < TELLING_BYTES && !has_record(bytes) {
            return places;
        }
        let mut before: u64 = 0;
        for part in &self.manifest.parts {
            if part.seq == name.seq {
                places.push(before);
            } else if part.seq == name.seq.saturating_add(1) {
                places.extend(before.checked_sub(length));
            }
            before = before.saturating_add(part.uploaded_bytes);
        }
        if self.manifest.next_seq == name.seq.saturating_add(1) {
            places.extend(before.checked_sub(length));
        }
        places
    }
}

/// Whether there is a whole record in these bytes: what one is made of, its identifiers and times, is found in no other place.
fn has_record(bytes: &[u8]) -> bool {
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    lines.any(|line| {
        line.starts_with(b"{")
            && line.ends_with(b"}\n")
            && serde_json::from_slice::<serde::de::IgnoredAny>(line).is_ok()
    })
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
