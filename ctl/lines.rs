//! A stream of bytes as lines, however it is cut and however long a line is. Knows nothing of what a line says.

use std::io;

/// A line of a transcript.
#[derive(Debug, PartialEq)]
pub(crate) enum Line<'a> {
    Whole(&'a [u8]),
    /// Larger than the splitter's limit: so many bytes.
    TooLarge(u64),
}

/// Cuts a stream into lines and keeps no more than one of them.
#[derive(Debug)]
pub(crate) struct Splitter {
    pub(crate) pending: Vec<u8>,
    /// Bytes of the line at hand that were not kept, because it is too large.
    dropped: u64,
    bytes_max: usize,
}

impl Splitter {
    pub(crate) fn new(bytes_max: usize) -> Splitter {
        Splitter { pending: Vec::new(), dropped: 0, bytes_max }
    }

    /// More bytes; each line that they complete is given away.
    pub(crate) fn push(
        &mut self,
        mut bytes: &[u8],
        mut give: impl FnMut(Line<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            self.keep(line);
            self.give(&mut give)?;
        }
        self.keep(bytes);
        Ok(())
    }

    /// What is left without an end is a line, too.
    pub(crate) fn finish(
        mut self,
        mut give: impl FnMut(Line<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.give(&mut give)
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.dropped == 0 && self.pending.len() + bytes.len() <= self.bytes_max {
            self.pending.extend_from_slice(bytes);
            return;
        }
        self.dropped += (self.pending.len() + bytes.len()) as u64;
        self.pending = Vec::new();
    }

    fn give(&mut self, give: &mut impl FnMut(Line<'_>) -> io::Result<()>) -> io::Result<()> {
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            return give(Line::TooLarge(dropped));
        }
        let line = self.pending.strip_suffix(b"\r").unwrap_or(&self.pending);
        if !line.is_empty() {
            give(Line::Whole(line))?;
        }
        self.pending.clear();
        Ok(())
    }
}
