//! One record: which of its bytes are to be replaced.
//!
//! Owns the way from a record to the texts inside it (strings, documents in strings, escapes of
//! escapes) and back to the record's bytes. What a secret looks like is for [`super::patterns`].

use std::ops::Range;

use memchr::memchr;

use super::escape::{self, Unescaped};
use super::outline;
use super::patterns::{Rules, Span};
use super::pem::Body;

/// Levels of escapes that are undone. A tool's result in a record is one, JSON in that result two,
/// a log of such records three; each level costs one copy of the text that still has backslashes.
const LEVELS_MAX: usize = 4;

/// The spans of `record` (without its newline) to be replaced: in order and apart.
pub(crate) fn find(rules: &Rules, record: &[u8]) -> Vec<Span> {
    let mut search = Search { rules, key_open: false };
    merge(search.document(record, 0))
}

struct Search<'a> {
    rules: &'a Rules,
    /// The string before ended inside a private key (patches list a file's lines as strings).
    key_open: bool,
}

impl Search<'_> {
    /// Spans of a text that may be a JSON document.
    fn document(&mut self, text: &[u8], level: usize) -> Vec<Span> {
        if !outline::is_document(text) {
            return self.text(text, level);
        }
        let outline = outline::read(self.rules, text);
        let mut spans = Vec::new();
        let mut opaque = outline.opaque.iter().peekable();
        for inside in outline::strings(&text[..outline.end]) {
            while opaque.next_if(|range| range.start < inside.start).is_some() {}
            if opaque.peek().is_some_and(|range| range.start == inside.start) {
                continue;
            }
            let found = self.string(&text[inside.clone()], level);
            spans.extend(found.into_iter().map(|span| span.moved(inside.start)));
        }
        if text[outline.end..].iter().any(|byte| !byte.is_ascii_whitespace()) {
            // No document after all, or a torn one: its text says more than its strings.
            let found = self.text(text, level);
            spans.extend(found.into_iter().filter(|span| !touches(span, &outline.opaque)));
        }
        for (inside, rule) in outline.keyed {
            let value = outline::unescaped(&text[inside.clone()]);
            if self.rules.is_value_of(rule, &value) && !is_among(&inside, &outline.opaque) {
                spans.push(Span { start: inside.start, end: inside.end, rule });
            }
        }
        spans
    }

    /// Spans of the inside of a JSON string.
    fn string(&mut self, inside: &[u8], level: usize) -> Vec<Span> {
        let key_open = std::mem::take(&mut self.key_open);
        let escaped = memchr(b'\\', inside).is_some();
        let mut spans = if escaped && level < LEVELS_MAX {
            self.unescaped(inside, level)
        } else {
            self.plain(inside)
        };
        if key_open {
            match super::pem::body(inside, 0) {
                Body::Until(end) => spans.push(self.rules.private_key(0, end)),
                Body::Open(end) if end > 0 => {
                    spans.push(self.rules.private_key(0, end));
                    self.key_open = true;
                }
                _ => {}
            }
        }
        spans
    }

    /// Spans of text that is in no string: as it stands, and with its escapes undone.
    fn text(&mut self, text: &[u8], level: usize) -> Vec<Span> {
        let mut spans = self.plain(text);
        if level < LEVELS_MAX && memchr(b'\\', text).is_some() {
            // A torn record is JSON all the same once its rest has come: no escape may be divided
            // by a replacement (`\npm_…` begins with a line break, or with a token of npm).
            for span in &mut spans {
                span.start = escape::boundary_at_or_after(text, span.start);
            }
            spans.extend(self.unescaped(text, level));
        }
        spans
    }

    /// Spans of `text` found in what it reads with one level of escapes undone.
    fn unescaped(&mut self, text: &[u8], level: usize) -> Vec<Span> {
        let unescaped = Unescaped::new(text);
        let mut spans = self.document(unescaped.text(), level + 1);
        for span in &mut spans {
            span.start = unescaped.raw_offset(span.start);
            span.end = unescaped.raw_offset(span.end);
        }
        spans
    }

    fn plain(&mut self, text: &[u8]) -> Vec<Span> {
        let (spans, key_open) = self.rules.find(text);
        self.key_open |= key_open;
        spans
    }
}

fn touches(span: &Span, opaque: &[Range<usize>]) -> bool {
    let next = opaque.partition_point(|range| range.end <= span.start);
    opaque.get(next).is_some_and(|range| range.start < span.end)
}

fn is_among(inside: &Range<usize>, opaque: &[Range<usize>]) -> bool {
    opaque.binary_search_by_key(&inside.start, |range| range.start).is_ok()
}

/// Joins spans that overlap: one replacement, named after the most specific of their rules.
fn merge(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_unstable_by_key(|span| (span.start, span.end));
    let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        match merged.last_mut() {
            Some(last) if span.start < last.end => {
                last.end = last.end.max(span.end);
                last.rule = last.rule.min(span.rule);
            }
            _ => merged.push(span),
        }
    }
    merged
}
