//! What is remembered of captured bytes, so that it is noticed when they change: digests, never text.
//!
//! Content is seen in blocks from offset 0. The last block before the cursor, full or not, is the tail; the full blocks before
//! the tail are chained, each digest taking in the one before. So a cursor moves on by reading at most one block again, and
//! nothing but finished digests is ever kept: the inner state of a hash holds raw text. Knows bytes; knows nothing of files.

use std::fmt::Write as _;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest as _, Sha256};

/// First bytes that are always compared: a new session nearly always differs here, in its id.
const HEAD_BYTES: usize = 4 << 10;

/// Size of a block: what a look at a growing file reads again at most, and what its cursor costs.
const BLOCK_BYTES: usize = 64 << 10;

/// How content is cut for digests. Tests use small ones, so that short content has many blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks {
    /// Bytes of the head; at most one block.
    pub(super) head: usize,
    /// Bytes of a block.
    pub(super) block: usize,
}

impl Blocks {
    /// The sizes that every kept cursor was made with. Changing them makes every session look rewritten.
    pub(super) const REAL: Blocks = Blocks { head: HEAD_BYTES, block: BLOCK_BYTES };

    /// Where the tail begins: the last block boundary before the offset.
    pub(super) fn tail_start(self, offset: u64) -> u64 {
        let block = self.block as u64;
        offset.saturating_sub(1) / block * block
    }
}

/// A SHA-256, written as hexadecimal digits; all zeros (written as nothing) stands for no bytes at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Sum([u8; 32]);

/// Digests of everything before a cursor. They are of unredacted bytes and never leave this machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Fingerprint {
    head: Sum,
    blocks: Sum,
    tail: Sum,
}

impl Fingerprint {
    /// Whether the first bytes are the same.
    pub(super) fn same_head(&self, other: &Fingerprint) -> bool {
        self.head == other.head
    }

    /// Whether the full blocks before the tail are the same.
    pub(super) fn same_blocks(&self, other: &Fingerprint) -> bool {
        self.blocks == other.blocks
    }

    /// Whether the tail is the same and what came before it was, too, when its digest was taken.
    pub(super) fn same_tail(&self, other: &Fingerprint) -> bool {
        self.tail == other.tail
    }
}

/// Takes in content byte by byte and knows the fingerprint of what it has seen.
#[derive(Debug, Clone)]
pub(super) struct Walk {
    sizes: Blocks,
    offset: u64,
    head: Head,
    blocks: Sum,
    /// The tail so far, begun with the digest of the blocks before it.
    tail: Sha256,
    tail_bytes: usize,
}

#[derive(Debug, Clone)]
enum Head {
    Filling(Sha256),
    Full(Sum),
}

impl Walk {
    /// At offset 0.
    pub(super) fn start(sizes: Blocks) -> Walk {
        let blocks = Sum::default();
        Walk {
            sizes,
            offset: 0,
            head: Head::Filling(Sha256::new()),
            tail: chained(blocks),
            blocks,
            tail_bytes: 0,
        }
    }

    /// At the beginning of the tail of a cursor; the tail itself is to be pushed again. Only where the head is complete by
    /// then, that is where the tail is not the first block.
    pub(super) fn at_tail(sizes: Blocks, fingerprint: &Fingerprint, offset: u64) -> Walk {
        let offset = sizes.tail_start(offset);
        debug_assert!(offset >= sizes.head as u64, "the head would be lost");
        Walk {
            sizes,
            offset,
            head: Head::Full(fingerprint.head),
            blocks: fingerprint.blocks,
            tail: chained(fingerprint.blocks),
            tail_bytes: 0,
        }
    }

    /// Takes in the next bytes.
    pub(super) fn push(&mut self, mut bytes: &[u8]) {
        self.push_head(bytes);
        self.offset += bytes.len() as u64;
        while !bytes.is_empty() {
            if self.tail_bytes == self.sizes.block {
                // Only now, when something follows it, a full tail becomes one of the blocks before the tail.
                self.blocks = finish(&self.tail);
                self.tail = chained(self.blocks);
                self.tail_bytes = 0;
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.sizes.block - self.tail_bytes));
            self.tail.update(now);
            self.tail_bytes += now.len();
            bytes = later;
        }
    }

    fn push_head(&mut self, bytes: &[u8]) {
        if let Head::Filling(sum) = &mut self.head {
            let missing = self.sizes.head - self.offset as usize;
            sum.update(&bytes[..bytes.len().min(missing)]);
            if bytes.len() >= missing {
                self.head = Head::Full(finish(sum));
            }
        }
    }

    /// Bytes taken in, or skipped as known.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// The fingerprint of everything before the offset.
    pub(super) fn fingerprint(&self) -> Fingerprint {
        if self.offset == 0 {
            return Fingerprint::default();
        }
        let head = match &self.head {
            Head::Filling(sum) => finish(sum),
            Head::Full(sum) => *sum,
        };
        Fingerprint { head, blocks: self.blocks, tail: finish(&self.tail) }
    }
}

fn chained(before: Sum) -> Sha256 {
    Sha256::new().chain_update(before.0)
}

fn finish(sum: &Sha256) -> Sum {
    Sum(sum.clone().finalize().into())
}

impl Serialize for Sum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::new();
        if *self != Sum::default() {
            for byte in self.0 {
                write!(text, "{byte:02x}").expect("a string takes everything");
            }
        }
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Sum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Sum, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(Sum::default());
        }
        // Digits are checked first: the number parser below would take a sign, too.
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(D::Error::custom("a digest is 64 hexadecimal digits"));
        }
        let mut sum = Sum::default();
        for (at, byte) in sum.0.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(D::Error::custom)?;
        }
        Ok(sum)
    }
}
