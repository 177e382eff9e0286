//! Where records end, and how much of one is held or looked back at.
//!
//! A record is a line: everything up to and including a newline, whatever the bytes. Knows bytes; knows nothing of files.

use memchr::memrchr;

use super::fingerprint::Blocks;
use super::{CHUNK_BYTES, CONTEXT_BYTES_MAX, RECORD_BYTES_MAX};

/// Bytes that one read asks for.
const STEP_BYTES: usize = 256 << 10;

/// How far back from its limit a too long record is searched for a place to cut outside of any word.
const CUT_SEARCH_BYTES: usize = 4 << 10;

/// Everything that has a size, in one place, so that tests can make it small.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) blocks: Blocks,
    pub(super) chunk: usize,
    /// At least a chunk.
    pub(super) record: usize,
    pub(super) context: usize,
    pub(super) step: usize,
    pub(super) cut_search: usize,
}

impl Limits {
    /// What the daemon uses.
    pub(super) const REAL: Limits = Limits {
        blocks: Blocks::REAL,
        chunk: CHUNK_BYTES,
        record: RECORD_BYTES_MAX,
        context: CONTEXT_BYTES_MAX,
        step: STEP_BYTES,
        cut_search: CUT_SEARCH_BYTES,
    };
}

/// The end of a record that has begun and not ended yet; empty at a record boundary.
#[derive(Debug, Clone)]
pub(super) struct Begun {
    tail: Vec<u8>,
    bytes_max: usize,
}

impl Begun {
    /// At a record boundary.
    pub(super) fn new(bytes_max: usize) -> Begun {
        Begun { tail: Vec::new(), bytes_max }
    }

    /// Takes in the next bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let begun = match memrchr(b'\n', bytes) {
            Some(newline) => {
                self.tail.clear();
                &bytes[newline + 1..]
            }
            None => bytes,
        };
        let begun = &begun[begun.len().saturating_sub(self.bytes_max)..];
        let excess = (self.tail.len() + begun.len()).saturating_sub(self.bytes_max);
        self.tail.drain(..excess);
        self.tail.extend_from_slice(begun);
    }

    /// The last bytes before here that belong to the record that goes on here.
    pub(super) fn tail(&self) -> &[u8] {
        &self.tail
    }
}

/// How many bytes of a record without an end are taken: up to a place between words if there is one near, so that a secret
/// is not torn and each half looks like none.
pub(super) fn cut(bytes: &[u8], search: usize) -> usize {
    let from = bytes.len().saturating_sub(search);
    let outside = |byte: &u8| byte.is_ascii_whitespace() || b"\"',[]{}()".contains(byte);
    bytes[from..].iter().rposition(outside).map_or(bytes.len(), |at| from + at + 1)
}
