//! Backslash escapes: text as its reader sees it, with the way back to the bytes it was made of.
//!
//! Knows the escapes of JSON and nothing of what the text says. It is lenient: a backslash that
//! begins no escape stands for itself, so text that was never JSON passes through too.

use memchr::memchr;

/// How often the way back is noted. A note costs eight bytes, a step between two notes a few
/// nanoseconds: at this distance the notes add a thirty-second to the memory of the text.
const STRIDE: usize = 256;

/// What stands for every character beyond ASCII that was written as an escape. No rule asks for a
/// particular one, so the byte only has to be outside every alphabet of secrets.
const BEYOND_ASCII: u8 = 0xFF;

/// The longest escape, `\uXXXX`.
const ESCAPE_BYTES_MAX: usize = 6;

/// Text with one level of escapes undone.
#[derive(Debug)]
pub(crate) struct Unescaped<'a> {
    raw: &'a [u8],
    text: Vec<u8>,
    /// The offset in `raw` of each `STRIDE`th byte of `text`, and of its end.
    notes: Vec<usize>,
}

impl<'a> Unescaped<'a> {
    /// Undoes one level of escapes.
    pub(crate) fn new(raw: &'a [u8]) -> Unescaped<'a> {
        let mut unescaped = Unescaped { raw, text: Vec::with_capacity(raw.len()), notes: vec![0] };
        let mut at = 0;
        while at < raw.len() {
            let plain = memchr(b'\\', &raw[at..]).unwrap_or(raw.len() - at);
            unescaped.push(&raw[at..at + plain], at);
            at += plain;
            if at < raw.len() {
                let (byte, length) = unit(&raw[at..]);
                unescaped.text.push(byte);
                at += length;
                unescaped.note(at);
            }
        }
        unescaped
    }

    /// The text.
    pub(crate) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Where in the escaped bytes the character at `offset` of the text begins.
    pub(crate) fn raw_offset(&self, offset: usize) -> usize {
        let mut raw = self.notes[offset / STRIDE];
        for _ in 0..offset % STRIDE {
            raw += unit(&self.raw[raw..]).1;
        }
        raw
    }

    fn push(&mut self, plain: &[u8], raw: usize) {
        let before = self.text.len();
        self.text.extend_from_slice(plain);
        while self.notes.len() * STRIDE <= self.text.len() && !plain.is_empty() {
            self.notes.push(raw + self.notes.len() * STRIDE - before);
        }
    }

    fn note(&mut self, raw: usize) {
        if self.text.len() == self.notes.len() * STRIDE {
            self.notes.push(raw);
        }
    }
}

/// The first offset at or after `cut` that divides neither an escape nor a UTF-8 sequence.
pub(crate) fn boundary_at_or_after(text: &[u8], cut: usize) -> usize {
    let mut at = cut;
    let nearest = cut.saturating_sub(ESCAPE_BYTES_MAX - 1);
    let backslashes = |end: usize| text[..end].iter().rev().take_while(|&&b| b == b'\\').count();
    for start in nearest..cut {
        // Of a run of backslashes only every second one begins an escape.
        if text[start] == b'\\' && backslashes(start).is_multiple_of(2) {
            at = at.max((start + unit(&text[start..]).1).min(text.len()));
        }
    }
    while at < text.len() && text[at] & 0xC0 == 0x80 {
        at += 1;
    }
    at
}

/// The first character of `raw` and how many bytes it takes.
fn unit(raw: &[u8]) -> (u8, usize) {
    if raw[0] != b'\\' {
        return (raw[0], 1);
    }
    match raw.get(1) {
        Some(b'n') => (b'\n', 2),
        Some(b't') => (b'\t', 2),
        Some(b'r') => (b'\r', 2),
        Some(b'b') => (0x08, 2),
        Some(b'f') => (0x0C, 2),
        Some(&same @ (b'"' | b'\\' | b'/')) => (same, 2),
        Some(b'u') => match raw.get(2..ESCAPE_BYTES_MAX).and_then(code) {
            Some(code) if code < 0x80 => (code as u8, ESCAPE_BYTES_MAX),
            Some(_) => (BEYOND_ASCII, ESCAPE_BYTES_MAX),
            None => (b'\\', 1),
        },
        _ => (b'\\', 1),
    }
}

fn code(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |code, &digit| Some(code * 16 + (digit as char).to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offset_of_the_text_leads_back_to_the_escape_it_came_from() {
        let mut random = fastrand::Rng::with_seed(7);
        let pieces =
            ["a", "bc", r"\n", r"\\", r"\u0041", r"\u00e9", r"\x", "é", r#"\""#, r"\/", "\\u12"];
        for _ in 0..200 {
            let count = random.usize(0..900);
            let parts: Vec<&str> = (0..count).map(|_| pieces[random.usize(0..11)]).collect();
            let raw = parts.concat().into_bytes();
            let unescaped = Unescaped::new(&raw);
            let mut at = 0;
            for (offset, &byte) in unescaped.text().iter().enumerate() {
                assert_eq!(unescaped.raw_offset(offset), at);
                let (expected, length) = unit(&raw[at..]);
                assert_eq!(byte, expected);
                at += length;
            }
            assert_eq!(at, raw.len());
            assert_eq!(unescaped.raw_offset(unescaped.text().len()), raw.len());
        }
    }

    #[test]
    fn a_cut_inside_an_escape_moves_behind_it() {
        let text = br"ab\u0073k\\nx";
        for (cut, expected) in [(2, 2), (3, 8), (7, 8), (8, 8), (9, 9), (10, 11), (11, 11)] {
            assert_eq!(boundary_at_or_after(text, cut), expected, "cut {cut}");
        }
        assert_eq!(boundary_at_or_after("é".as_bytes(), 1), 2);
    }
}
