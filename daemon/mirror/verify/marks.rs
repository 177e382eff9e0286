//! Marks of removed secrets in a stream of stored bytes: which, and how many. Knows bytes only.

use memchr::memmem;

use crate::redact::Counts;

/// What stands for a secret begins so…
const MARKER: &[u8] = b"[REDACTED:";

/// … and ends with a `]`, after a name of at most so many bytes.
const NAME_BYTES_MAX: usize = 64;

/// A count that goes on from piece to piece.
#[derive(Debug, Default)]
pub(super) struct Marks {
    pub(super) counts: Counts,
    /// The end of what came, where a mark may have begun.
    rest: Vec<u8>,
}

impl Marks {
    /// Takes the next bytes.
    pub(super) fn take(&mut self, piece: &[u8]) {
        self.rest.extend_from_slice(piece);
        let mut from = 0;
        while let Some(at) = memmem::find(&self.rest[from..], MARKER).map(|at| from + at) {
            let name = &self.rest[at + MARKER.len()..];
            match name.iter().take(NAME_BYTES_MAX).position(|byte| *byte == b']') {
                Some(length) => {
                    if let Ok(name) = str::from_utf8(&name[..length])
                        && is_name(name)
                    {
                        *self.counts.entry(name.to_owned()).or_default() += 1;
                    }
                    from = at + MARKER.len();
                }
                None if name.len() >= NAME_BYTES_MAX => from = at + MARKER.len(),
                // It may end in the next piece.
                None => {
                    self.rest.drain(..at);
                    return;
                }
            }
        }
        let keep = (self.rest.len() - from).min(MARKER.len() - 1);
        self.rest.drain(..self.rest.len() - keep);
    }
}

fn is_name(name: &str) -> bool {
    let may = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    !name.is_empty() && name.bytes().all(may)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_counted_wherever_pieces_are_cut() {
        let text = b"[REDACTED:jwt] x [REDACTED:] [REDACTED:A] [REDACTED:[REDACTED:hf_token] [REDACTED:jwt]\n[REDAC";
        for size in 1..text.len() {
            let mut marks = Marks::default();
            text.chunks(size).for_each(|piece| marks.take(piece));
            let counted: Vec<_> = marks.counts.into_iter().collect();
            assert_eq!(counted, [("hf_token".to_owned(), 1), ("jwt".to_owned(), 2)], "{size}");
        }
    }
}
