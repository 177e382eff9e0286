//! The outline of a JSON document: which strings it holds, which of them are opaque, and which
//! stand where a named secret stands (a key in one field, its value in the next).
//!
//! Reads in one pass without recursion and without a copy, and reads a torn document as far as it
//! goes. Checks no more of JSON than it needs: it finds strings, it does not judge them.

use std::borrow::Cow;
use std::ops::Range;

use memchr::memchr2;

use super::escape::Unescaped;
use super::opaque::{self, Candidate, Object};
use super::patterns::Rules;

/// Deeper documents are read as plain text from there on. No agent nests its records to a tenth of
/// this, no reader of JSON goes further by default, and it bounds the memory for open objects.
const DEPTH_MAX: usize = 512;

/// Names of fields, types and secrets are shorter; a longer string is never compared with one.
const NAME_BYTES_MAX: usize = 128;

/// Shorter values are never noted: no rule matches so few characters, and a record may hold
/// millions of them.
const VALUE_BYTES_MIN: usize = 16;

/// What a document consists of. All ranges are the insides of strings, without the quotes.
#[derive(Debug, Default)]
pub(crate) struct Outline {
    /// Opaque strings, in order.
    pub(crate) opaque: Vec<Range<usize>>,
    /// Strings in the place of a named secret, with the rule that the name belongs to.
    pub(crate) keyed: Vec<(Range<usize>, usize)>,
    /// How far the document could be read. Beyond it there is only text.
    pub(crate) end: usize,
}

/// An object or array that is still open.
#[derive(Debug, Default)]
struct Open {
    is_object: bool,
    object: Object,
    candidates: Vec<(Range<usize>, Candidate, bool)>,
    key: Range<usize>,
    /// Whether a key has been read and its value has not.
    in_field: bool,
    /// The rule of a secret's name that was a value here: `{"name":"…","value":"…"}`.
    named: Option<usize>,
    /// The `value` field, in case the name comes after it.
    value: Option<Range<usize>>,
}

/// Whether `text` begins like a document. Claude Code skips leading NUL bytes, so do we.
pub(crate) fn is_document(text: &[u8]) -> bool {
    let first = text.iter().find(|byte| !is_blank(**byte));
    matches!(first, Some(b'{' | b'['))
}

/// Reads the outline of `text`.
pub(crate) fn read(rules: &Rules, text: &[u8]) -> Outline {
    let mut reader = Reader { rules, text, open: Vec::new(), outline: Outline::default() };
    reader.outline.end = reader.read();
    while !reader.open.is_empty() {
        reader.close();
    }
    reader.outline.opaque.sort_by_key(|range| range.start);
    reader.outline
}

/// The inside of each string of `text`, in order.
pub(crate) fn strings(text: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + memchr::memchr(b'"', &text[at..])? + 1;
        let end = string_end(text, start)?;
        at = end + 1;
        Some(start..end)
    })
}

struct Reader<'a> {
    rules: &'a Rules,
    text: &'a [u8],
    open: Vec<Open>,
    outline: Outline,
}

impl Reader<'_> {
    /// Reads to the end of the document, or to where it stops being one.
    fn read(&mut self) -> usize {
        let text = self.text;
        let mut at = 0;
        while at < text.len() {
            match text[at] {
                b'"' => {
                    let start = at + 1;
                    let Some(end) = string_end(text, start) else {
                        self.string(start..text.len(), true);
                        return at;
                    };
                    if !self.string(start..end, false) {
                        return at;
                    }
                    at = end;
                }
                byte @ (b'{' | b'[') if self.open.len() < DEPTH_MAX => self.enter(byte == b'{'),
                byte @ (b'}' | b']') => {
                    if self.open.last().is_none_or(|open| open.is_object != (byte == b'}')) {
                        return at;
                    }
                    self.close();
                    if self.open.is_empty() {
                        return at + 1;
                    }
                }
                b',' => self.comma(),
                byte if byte == b':' || is_blank(byte) => {}
                byte if is_scalar(byte) => {
                    // In a damaged record a string's inside may stand where none should: that is text, and searched as such.
                    let length = text[at..].iter().take_while(|byte| is_scalar(**byte)).count();
                    if !is_number_or_word(&text[at..at + length]) {
                        return at;
                    }
                    at += length - 1;
                }
                _ => return at,
            }
            at += 1;
        }
        at
    }

    fn enter(&mut self, is_object: bool) {
        let (text, mut object) = (self.text, Object::default());
        if let Some(open) = self.open.last_mut().filter(|open| open.in_field) {
            let key = name(text, &open.key);
            open.object.see(&key, None);
            object = Object::under(&key);
            open.in_field = false;
        }
        self.open.push(Open { is_object, object, ..Open::default() });
    }

    fn comma(&mut self) {
        let text = self.text;
        if let Some(open) = self.open.last_mut().filter(|open| open.in_field) {
            open.object.see(&name(text, &open.key), None);
            open.in_field = false;
        }
    }

    /// Takes in a string; false if none can stand here.
    fn string(&mut self, inside: Range<usize>, torn: bool) -> bool {
        let (rules, text) = (self.rules, self.text);
        let Some(open) = self.open.last_mut() else { return false };
        if !open.is_object {
            // A command line: the option's name, then its value.
            if let Some(rule) = open.named.take() {
                self.outline.keyed.push((inside.clone(), rule));
            }
            open.named = rules.secret_named(&name(text, &inside));
        } else if !open.in_field {
            open.key = inside;
            open.in_field = true;
        } else {
            open.in_field = false;
            let key = name(text, &open.key);
            let value = name(text, &inside);
            open.object.see(&key, Some(&value));
            if inside.len() < VALUE_BYTES_MIN {
                return true;
            }
            if let Some(candidate) = opaque::candidate(&key) {
                open.candidates.push((inside.clone(), candidate, torn));
            }
            if let Some(rule) = rules.secret_named(&key) {
                self.outline.keyed.push((inside, rule));
            } else if let Some(rule) = rules.secret_named(&value) {
                open.named = Some(rule);
            } else if key.eq_ignore_ascii_case(b"value") {
                open.value = Some(inside);
            }
        }
        true
    }

    fn close(&mut self) {
        let Some(open) = self.open.pop() else { return };
        if let (true, Some(rule), Some(value)) = (open.is_object, open.named, open.value) {
            self.outline.keyed.push((value, rule));
        }
        for (inside, candidate, torn) in open.candidates {
            let Some(shape) = open.object.shape(candidate) else { continue };
            let value = unescaped(&self.text[inside.clone()]);
            // A value that is one secret from end to end is a secret in the wrong place.
            if opaque::has_shape(&value, shape, torn) && !self.rules.is_secret(&value) {
                self.outline.opaque.push(inside);
            }
        }
    }
}

/// The offset of the quote that ends the string whose inside begins at `start`.
fn string_end(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        at += memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some(at);
        }
        at += 2;
    }
}

/// A short string as it reads; empty if it is too long to be a name.
fn name<'a>(text: &'a [u8], inside: &Range<usize>) -> Cow<'a, [u8]> {
    if inside.len() > NAME_BYTES_MAX {
        return Cow::Borrowed(&[]);
    }
    unescaped(&text[inside.clone()])
}

/// A string as it reads.
pub(crate) fn unescaped(inside: &[u8]) -> Cow<'_, [u8]> {
    match memchr::memchr(b'\\', inside) {
        None => Cow::Borrowed(inside),
        Some(_) => Cow::Owned(Unescaped::new(inside).text().to_vec()),
    }
}

fn is_blank(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0
}

fn is_scalar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)
}

/// Whether a run of letters and digits is what a document may hold outside of strings; two words more than JSON has are
/// written by Python.
fn is_number_or_word(run: &[u8]) -> bool {
    const WORDS: [&[u8]; 6] = [b"true", b"false", b"null", b"NaN", b"Infinity", b"-Infinity"];
    WORDS.contains(&run) || run.iter().all(|b| b.is_ascii_digit() || b"+-.eE".contains(b))
}
