//! Reading on from a cursor: whole records in bounded chunks, each believed only after a second look at the file.
//!
//! A file can change while it is read. So each chunk is read, then the file is looked at again: if nothing moved, the chunk
//! is what the file held; if something did, the chunk and the bytes around the cursor are read once more and must be the
//! same. Appends pass, a rewrite does not. Knows records and cursors; knows nothing of what is done with a chunk.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use memchr::{memchr, memrchr};

use super::check::{Depth, Opened, Source, Verdict, compare, feed, open};
use super::content::Content;
use super::fingerprint::Walk;
use super::record::{Begun, Limits, cut};
use super::{Cursor, Encoding, Files, SourceError, Stat};

/// Whether an unfinished last record is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unfinished {
    /// It waits for its newline.
    Wait,
    /// It is taken as it is.
    Take,
}

/// What came next.
#[expect(clippy::large_enum_variant, reason = "one at a time, moved a few times")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// Captured bytes.
    Chunk(Chunk),
    /// No complete record is left.
    End {
        /// Bytes of a record that waits for its newline.
        unfinished_bytes: u64,
    },
    /// The file was rewritten or replaced while it was read; what was read since the last chunk is discarded, and nothing
    /// more comes. A check from the last cursor tells what happened.
    Changed,
}

/// New bytes of a source.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// The bytes.
    pub(crate) bytes: Vec<u8>,
    /// The last bytes of the record that was begun before this chunk; empty at a record boundary.
    pub(crate) context: Vec<u8>,
    /// After these bytes.
    pub(crate) cursor: Cursor,
    /// Position of the first byte.
    pub(crate) start: u64,
    /// Whether a record larger than [`RECORD_BYTES_MAX`](super::RECORD_BYTES_MAX) was cut at the end of this chunk.
    pub(crate) cut: bool,
    /// Whether the last byte ends a record.
    pub(crate) ends_record: bool,
}

// By hand, because a transcript's text must not get into a log by way of a derived one.
impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunk")
            .field("start", &self.start)
            .field("bytes", &self.bytes.len())
            .field("context", &self.context.len())
            .field("cut", &self.cut)
            .field("ends_record", &self.ends_record)
            .finish_non_exhaustive()
    }
}

/// Reads on from a cursor. Owns the descriptor; closed when dropped.
pub(crate) struct Reading {
    path: PathBuf,
    content: Content,
    /// After the last chunk. Its `stat` is older than every byte in the buffer: what the second look is compared with.
    cursor: Cursor,
    walk: Walk,
    begun: Begun,
    /// Read and not yet given away: what follows the cursor.
    buffer: Vec<u8>,
    /// After a failure or a change the buffer and the position mean nothing any more.
    over: bool,
    limits: Limits,
}

impl fmt::Debug for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reading")
            .field("path", &self.path)
            .field("offset", &self.cursor.offset)
            .field("buffered", &self.buffer.len())
            .finish_non_exhaustive()
    }
}

impl Reading {
    /// Opens a source, checks what is before the cursor and goes there. The inner error is always [`Verdict::Rewritten`].
    pub(crate) fn open(
        files: &dyn Files,
        path: &Path,
        encoding: Encoding,
        cursor: &Cursor,
    ) -> Result<Result<Reading, Verdict>, SourceError> {
        Reading::open_within(files, path, encoding, cursor, Limits::REAL)
    }

    pub(super) fn open_within(
        files: &dyn Files,
        path: &Path,
        encoding: Encoding,
        cursor: &Cursor,
        limits: Limits,
    ) -> Result<Result<Reading, Verdict>, SourceError> {
        let Opened { content, stat, before } =
            open(Source { files, path, encoding, cursor }, Depth::Quick, limits)?;
        let before = match before {
            Ok(before) => before,
            Err(why) => return Ok(Err(Verdict::Rewritten { stat, why })),
        };
        Ok(Ok(Reading {
            path: path.to_owned(),
            content,
            cursor: Cursor { stat, ..cursor.clone() },
            walk: before.walk,
            begun: before.begun,
            buffer: Vec::new(),
            over: false,
            limits,
        }))
    }

    /// The next chunk: whole records, at most [`CHUNK_BYTES`](super::CHUNK_BYTES) unless one record is larger. Asking again
    /// after an end finds what was appended since.
    pub(crate) fn next(&mut self, unfinished: Unfinished) -> Result<Next, SourceError> {
        if self.over {
            return Ok(Next::Changed);
        }
        let next = self.read_and_look_again(unfinished);
        if !matches!(next, Ok(Next::Chunk(_) | Next::End { .. })) {
            self.over = true;
            self.buffer = Vec::new();
        }
        next
    }

    /// The next chunk, at most up to a position, which may lie inside a record: to compare content with parts whose bounds are
    /// known. An unfinished record is taken.
    pub(crate) fn next_until(&mut self, end: u64) -> Result<Next, SourceError> {
        let limit = usize::try_from(end.saturating_sub(self.cursor.offset)).unwrap_or(usize::MAX);
        if self.over || limit == 0 {
            return self.next(Unfinished::Take);
        }
        let Piece { bytes, cut } = if limit > self.limits.chunk {
            match self.find_piece(Unfinished::Take).map_err(|error| self.failed(error))? {
                Some(piece) if piece.bytes <= limit => piece,
                Some(_) => Piece::whole(limit),
                None => return Ok(Next::End { unfinished_bytes: self.buffer.len() as u64 }),
            }
        } else {
            self.fill(limit).map_err(|error| self.failed(error))?;
            if self.buffer.len() < limit {
                return Ok(Next::End { unfinished_bytes: self.buffer.len() as u64 });
            }
            Piece::whole(limit)
        };
        match self.look_again(bytes)? {
            Some(stat) => Ok(Next::Chunk(self.give(bytes, cut, stat))),
            None => {
                self.over = true;
                Ok(Next::Changed)
            }
        }
    }

    fn read_and_look_again(&mut self, unfinished: Unfinished) -> Result<Next, SourceError> {
        let piece = self.find_piece(unfinished).map_err(|error| self.failed(error))?;
        let Some(Piece { bytes, cut }) = piece else {
            return Ok(Next::End { unfinished_bytes: self.buffer.len() as u64 });
        };
        match self.look_again(bytes)? {
            Some(stat) => Ok(Next::Chunk(self.give(bytes, cut, stat))),
            None => Ok(Next::Changed),
        }
    }

    /// Reads until the buffer begins with something to give away, and says how much that is.
    fn find_piece(&mut self, unfinished: Unfinished) -> io::Result<Option<Piece>> {
        let mut at_end = match self.fill(self.limits.chunk) {
            // Whole records before a place that cannot be read are not held back by it.
            Err(_) if self.content.is_plain() && memrchr(b'\n', &self.buffer).is_some() => false,
            filled => filled?,
        };
        let first = self.buffer.len().min(self.limits.chunk);
        if let Some(newline) = memrchr(b'\n', &self.buffer[..first]) {
            let all = at_end && unfinished == Unfinished::Take && self.buffer.len() == first;
            return Ok(Some(Piece::whole(if all { first } else { newline + 1 })));
        }
        // One record is larger than a chunk, or unfinished. What was searched is not searched again.
        let mut searched = first;
        loop {
            if let Some(newline) = memchr(b'\n', &self.buffer[searched..]) {
                return Ok(Some(Piece::whole(searched + newline + 1)));
            }
            searched = self.buffer.len();
            if searched >= self.limits.record {
                let bytes = cut(&self.buffer, self.limits.cut_search);
                return Ok(Some(Piece { bytes, cut: true }));
            }
            if at_end {
                let take = unfinished == Unfinished::Take && searched > 0;
                return Ok(take.then_some(Piece::whole(searched)));
            }
            at_end = self.fill((searched + self.limits.step).min(self.limits.record))?;
        }
    }

    /// Reads until the buffer has so many bytes; `true` when the content ends before.
    fn fill(&mut self, bytes: usize) -> io::Result<bool> {
        while self.buffer.len() < bytes {
            let filled = self.buffer.len();
            let step = self.limits.step.min(bytes - filled);
            if self.buffer.capacity() - filled < step {
                // Half as much again each time: linear in the end, and never twice a large record.
                let most =
                    if bytes > self.limits.chunk { self.limits.record } else { self.limits.chunk };
                let larger = (filled + filled / 2).min(most).max(filled + step);
                self.buffer.reserve_exact(larger - filled);
            }
            self.buffer.resize(filled + step, 0);
            let read = self.content.read(&mut self.buffer[filled..]);
            self.buffer.truncate(filled + *read.as_ref().unwrap_or(&0));
            if read? == 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The file as it is after the first bytes of the buffer were read, if they are still what it holds; `None` otherwise.
    fn look_again(&mut self, bytes: usize) -> Result<Option<Stat>, SourceError> {
        let seen = self.cursor.stat;
        match self.content.file().stat_path() {
            Ok(there) if there.same_inode(&seen) => {}
            // Deleted, or moved away by its agent: the last records are here and nowhere else, so they are taken.
            Err(SourceError::Missing(_)) => {}
            Ok(_) | Err(SourceError::Unfit { .. }) => return Ok(None),
            Err(failed) => return Err(failed),
        }
        let stat = self.content.file().stat().map_err(|error| self.failed(error))?;
        if stat == seen {
            return Ok(Some(stat));
        }
        let holds = if self.content.is_plain() {
            stat.size >= seen.size && self.read_again(bytes).map_err(|error| self.failed(error))?
        } else {
            // Compressed content never changes in place; only its name or mode may.
            stat.size == seen.size && stat.mtime_ns == seen.mtime_ns
        };
        Ok(holds.then_some(stat))
    }

    /// Whether the file still holds what is around the cursor and the first bytes of the buffer. The rest of the buffer may
    /// be older than the change, and is left to be read again.
    fn read_again(&mut self, bytes: usize) -> io::Result<bool> {
        if compare(&mut self.content, &self.cursor, false, self.limits)?.is_err() {
            return Ok(false);
        }
        self.buffer.truncate(bytes);
        let mut expected = self.buffer.as_slice();
        let mut same = true;
        let mut block = vec![0; self.limits.step.min(bytes)];
        let there = feed(&mut self.content, &mut block, bytes as u64, |found| {
            let (now, later) = expected.split_at(found.len());
            same &= now == found;
            expected = later;
        })?;
        Ok(there && same)
    }

    /// Gives away the first bytes of the buffer, with their memory, so that a huge record does not stay behind.
    fn give(&mut self, bytes: usize, cut: bool, stat: Stat) -> Chunk {
        // Buffers of chunks are all of one size: of others each would leave a hole that the next one, a little larger, does not
        // fit into, and the process would grow with the file.
        let more = self.buffer.len() > bytes;
        let mut rest = Vec::with_capacity(if more { self.limits.chunk } else { 0 });
        rest.extend_from_slice(&self.buffer[bytes..]);
        self.buffer.truncate(bytes);
        let mut bytes = std::mem::replace(&mut self.buffer, rest);
        if bytes.capacity() > self.limits.chunk {
            bytes.shrink_to_fit();
        }
        let start = self.cursor.offset;
        let context = self.begun.tail().to_vec();
        self.walk.push(&bytes);
        self.begun.push(&bytes);
        self.cursor = Cursor {
            offset: self.walk.offset(),
            stat,
            fingerprint: self.walk.fingerprint(),
            verified: false,
            rest: None,
            events: self.content.file().mark(self.walk.offset()).or(self.cursor.events),
        };
        let ends_record = self.begun.tail().is_empty();
        Chunk { bytes, context, cursor: self.cursor.clone(), start, cut, ends_record }
    }

    #[cfg(test)]
    pub(super) fn buffer_capacity(&self) -> usize {
        self.buffer.capacity()
    }

    fn failed(&self, error: io::Error) -> SourceError {
        SourceError::io(&self.path, error)
    }
}

/// The beginning of the buffer that becomes a chunk.
struct Piece {
    bytes: usize,
    cut: bool,
}

impl Piece {
    fn whole(bytes: usize) -> Piece {
        Piece { bytes, cut: false }
    }
}

/// Up to so many bytes from the start of the content.
pub(crate) fn head(
    files: &dyn Files,
    path: &Path,
    encoding: Encoding,
    bytes_max: usize,
) -> Result<Vec<u8>, SourceError> {
    let failed = |error| SourceError::io(path, error);
    let mut content = Content::new(files.open(path)?, encoding).map_err(failed)?;
    let mut head = Vec::new();
    let mut block = vec![0; Limits::REAL.blocks.block.min(bytes_max)];
    // A content shorter than that is no failure: the head is all of it.
    feed(&mut content, &mut block, bytes_max as u64, |bytes| head.extend_from_slice(bytes))
        .map_err(failed)?;
    Ok(head)
}
