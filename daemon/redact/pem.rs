//! Private keys in PEM armour, whole or cut off, through line breaks, escapes, line numbers and
//! the quotes of source code.
//!
//! Written by hand and not as a pattern, because the gaps between the lines may hold almost
//! anything and a pattern for that has more states than input. Knows nothing of other secrets.

/// Base64 characters in a row that count as a line of a key. Shorter than any full line of the
/// armour, longer than the words that come between two lines.
const LINE_MIN: usize = 16;

/// How much else may stand between two lines of a key: the two header lines of an encrypted key
/// with their line numbers fit; a sentence after a header that was only mentioned does not count.
const GAP_MAX: usize = 96;

/// The first line is longer than that and holds letters of every kind, unlike the path that
/// follows a header in `grep -r '-----BEGIN …' /some/folder`.
const FIRST_LINE_MIN: usize = 24;

/// Letters in a row between header and end line that make a key, however short its lines. Prose
/// that names the two markers one after the other has shorter words between them.
const SHORT_LINE_MIN: usize = 12;

/// The same where the header line really ends with a line break, as it does in no prose.
const BROKEN_LINE_MIN: usize = 3;

const END: &[u8] = b"-----END";

/// The longest rest of an end line: type of key, `PRIVATE KEY BLOCK` and the dashes.
const END_LINE_MAX: usize = 64;

/// How far a key's body goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    /// No key material follows.
    Nothing,
    /// Key material up to this offset, then something else.
    Until(usize),
    /// Key material (or nothing yet) up to this offset and no end line: the next text may go on.
    Open(usize),
}

/// Reads the body of a key from `from`, which lies behind the header line (or at the start of the
/// text if the header was in the text before).
pub(crate) fn body(text: &[u8], from: usize) -> Body {
    let mut at = from;
    let mut last = from;
    let mut material = 0;
    let mut longest = 0;
    let broken = matches!(text.get(from), Some(b'\n' | b'\r'));
    let longest_min = if broken { BROKEN_LINE_MIN } else { SHORT_LINE_MIN };
    while at < text.len() && at - last <= GAP_MAX {
        if text[at..].starts_with(END) {
            let key = material > 0 || longest >= longest_min;
            return if key {
                Body::Until(end_of_line(text, at + END.len()))
            } else {
                Body::Nothing
            };
        }
        let line = text[at..].iter().take_while(|&&byte| is_base64(byte)).count();
        if line > 0 {
            at += line;
            // The last line may be short, but then it is padded.
            let is_line = match material {
                0 => is_first_line(&text[at - line..at]),
                _ => line >= LINE_MIN || text[at - 1] == b'=',
            };
            if is_line {
                last = at;
                material += line;
            } else {
                longest = longest.max(line);
            }
        } else if is_gap(text[at]) {
            at += 1;
        } else {
            break;
        }
    }
    if at == text.len() {
        return Body::Open(last);
    }
    if material == 0 { Body::Nothing } else { Body::Until(last) }
}

fn is_first_line(line: &[u8]) -> bool {
    line.len() >= FIRST_LINE_MIN
        && line.iter().any(u8::is_ascii_uppercase)
        && line.iter().any(u8::is_ascii_lowercase)
        && line.iter().any(u8::is_ascii_digit)
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
}

/// What may stand between two lines: line breaks and their escapes, quotes and commas of source
/// code, marks of diffs, quotations and line numbers, and the colons of header lines. No bracket,
/// so that a replacement ends a key.
fn is_gap(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte >= 0x80 || b"\\\"'`,.:-|>#*$_".contains(&byte)
}

fn end_of_line(text: &[u8], from: usize) -> usize {
    let limit = text.len().min(from + END_LINE_MAX);
    let kind =
        text[from..limit].iter().take_while(|b| b.is_ascii_alphanumeric() || **b == b' ').count();
    let dashes = text[from + kind..limit].iter().take(5).take_while(|&&b| b == b'-').count();
    from + kind + dashes
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj";

    #[test]
    fn a_body_ends_with_its_end_line_or_where_something_else_begins() {
        let whole = format!("\n{LINE}\n{LINE}\nAb=\n-----END RSA PRIVATE KEY-----\nrest");
        assert_eq!(body(whole.as_bytes(), 0), Body::Until(whole.len() - 5));
        let cut = format!("\\n{LINE}\\n{LINE}\\n\"; then (code)");
        assert_eq!(body(cut.as_bytes(), 0), Body::Until(2 + LINE.len() * 2 + 2));
        let open = format!("\n    2\u{2192}{LINE}\n    3\u{2192}{LINE}\n");
        assert_eq!(body(open.as_bytes(), 0), Body::Open(open.len() - 1));
        assert_eq!(body(b"\", \"-----END PRIVATE KEY-----\")", 0), Body::Nothing);
        assert_eq!(
            body(b" is how the header of such a key looks (see the manual)", 0),
            Body::Nothing
        );
        assert_eq!(body(b"' /home/dev/Project/source/folder", 0), Body::Open(0));
        assert_eq!(body(b"\nfake\n-----END PRIVATE KEY-----.", 0), Body::Until(31));
        assert_eq!(body(b"", 0), Body::Open(0));
    }
}
