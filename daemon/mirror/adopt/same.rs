//! Whether stored bytes can be a redaction of source bytes, whoever redacted them and by whatever rules.
//!
//! A stored record is its source with some stretches replaced by `[REDACTED:<name>]`. What is around the markers has to be
//! there, byte for byte and in order, with at least one byte for each marker; what a marker hides cannot be compared, and no
//! rule set is asked for it: another writer has other rules, cuts its parts inside a secret, or removes nothing. Knows bytes;
//! knows nothing of parts or sources.

use memchr::memmem;

/// What stands for a secret begins so…
const MARKER: &[u8] = b"[REDACTED:";

/// … and ends with a `]`, after a name of at most so many bytes.
const NAME_BYTES_MAX: usize = 64;

/// Whether `stored` can be a redaction of `source`: one record, or the same piece of one.
pub(super) fn is_redaction_of(stored: &[u8], source: &[u8]) -> bool {
    if stored == source {
        return true;
    }
    let mut literals = Literals { rest: Some(stored) };
    // The first one is there, perhaps empty.
    let Some(first) = literals.next() else { return false };
    if !source.starts_with(first) {
        return false;
    }
    let mut at = first.len();
    let mut literals = literals.peekable();
    while let Some(literal) = literals.next() {
        let Some(hidden) = source.get(at + 1..) else { return false };
        if literals.peek().is_none() {
            return hidden.ends_with(literal);
        }
        // The leftmost place leaves most room for what follows, so no other has to be tried.
        let Some(found) = memmem::find(hidden, literal) else { return false };
        at += 1 + found + literal.len();
    }
    false // Without a marker there was only the first, and that is not all of it.
}

/// Whether anything was replaced in it.
pub(super) fn has_marker(stored: &[u8]) -> bool {
    Literals { rest: Some(stored) }.nth(1).is_some()
}

/// What is before, between and after the markers.
struct Literals<'a> {
    rest: Option<&'a [u8]>,
}

impl<'a> Iterator for Literals<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest?;
        for start in memmem::find_iter(rest, MARKER) {
            if let Some(end) = marker_end(rest, start) {
                self.rest = Some(&rest[end..]);
                return Some(&rest[..start]);
            }
        }
        self.rest = None;
        Some(rest)
    }
}

fn marker_end(text: &[u8], start: usize) -> Option<usize> {
    let name = &text[start + MARKER.len()..];
    let length = name.iter().take(NAME_BYTES_MAX).position(|byte| *byte == b']')?;
    let is_name = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'_';
    (length > 0 && name[..length].iter().all(is_name)).then_some(start + MARKER.len() + length + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_around_the_markers_has_to_be_there_in_order() {
        let same = [
            ("{\"a\":1}\n", "{\"a\":1}\n"),
            ("[REDACTED:x]", "s"),
            ("key [REDACTED:hf_token]\n", "key hf_0123\n"),
            ("[REDACTED:a] and [REDACTED:b]!", "one and two!"),
            ("[REDACTED:a][REDACTED:b]", "ab"),
            ("a[REDACTED:x]b[REDACTED:x]b", "a1b2bb"),
            // The agent saw a transcript that was redacted before; nothing was replaced here, or something else was.
            ("saw [REDACTED:x] there", "saw [REDACTED:x] there"),
            ("saw [REDACTED:x] and [REDACTED:y]", "saw [REDACTED:x] and secret"),
            // Not a marker, so it is text.
            ("[REDACTED: no name]", "[REDACTED: no name]"),
        ];
        for (stored, source) in same {
            assert!(is_redaction_of(stored.as_bytes(), source.as_bytes()), "{stored} {source}");
        }
        let others = [
            ("{\"a\":1}\n", "{\"a\":2}\n"),
            ("{\"a\":1}", "{\"a\":1}\n"),
            ("key [REDACTED:hf_token]\n", "kez hf_0123\n"),
            ("key [REDACTED:hf_token]\n", "key hf_0123"),
            ("key [REDACTED:x]", "key "),
            ("[REDACTED:a][REDACTED:b]", "a"),
            ("[REDACTED:a] and [REDACTED:b]!", "one or two!"),
            ("[REDACTED: no name]", "something else here"),
            ("", "x"),
        ];
        for (stored, source) in others {
            assert!(!is_redaction_of(stored.as_bytes(), source.as_bytes()), "{stored} {source}");
        }
    }

    #[test]
    fn a_marker_is_told_from_text_that_begins_like_one() {
        assert!(has_marker(b"a [REDACTED:jwt]"));
        assert!(has_marker(b"[REDACTED:] [REDACTED:jwt]"));
        for text in ["", "[REDACTED:", "[REDACTED:]", "[REDACTED:Name]", "[REDACTED:a b]"] {
            assert!(!has_marker(text.as_bytes()), "{text}");
        }
    }
}
