//! Secrets out, counts in: one pass over the records of a chunk before a byte is written anywhere.
//!
//! Owns the order of the work: one scan for anything that may be a secret, and for the few
//! records that answer it a careful look ([`record`]), replacement and proof that nothing is
//! left. Knows records and patterns; knows nothing of sessions, files or stores.
//!
//! What may be replaced is in [`patterns`], what never may in [`opaque`]. Every record is treated
//! by itself, so the result cannot depend on how records were grouped into chunks.

mod escape;
mod opaque;
mod outline;
mod patterns;
mod pem;
mod record;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use memchr::{memchr, memrchr};

use patterns::{Rules, Span};

/// Number of replacements by pattern name.
pub(crate) type Counts = BTreeMap<String, u64>;

/// Names the standard rule set in the manifest. It changes whenever a rule, an opaque shape or
/// the replacement text does, so that a reader can tell what a part was held against.
const STANDARD_VERSION: &str = "1";

/// Named in the manifest where the user switched redaction off.
const OFF_VERSION: &str = "off";

/// A replacement can free a neighbour: text that was the middle of a word now follows a `]`.
/// Every rule that asks for a word boundary takes the rest of its word, so two rounds are enough;
/// the limit only keeps a mistake in a rule from becoming an endless loop.
const ROUNDS_MAX: usize = 4;

/// The rule set, compiled once.
#[derive(Debug)]
pub(crate) struct Redactor {
    rules: Option<&'static Rules>,
}

impl Redactor {
    /// The standard rules.
    pub(crate) fn standard() -> Redactor {
        Redactor { rules: Some(Rules::standard()) }
    }

    /// No rules: every byte passes (`redact = false`).
    pub(crate) fn off() -> Redactor {
        Redactor { rules: None }
    }

    /// Identifies the rule set, for the manifest.
    pub(crate) fn rules_version(&self) -> &'static str {
        if self.rules.is_some() { STANDARD_VERSION } else { OFF_VERSION }
    }

    /// Appends the redacted form of `input` to `output` and adds what was replaced to `counts`.
    ///
    /// `input` is a run of records, each ended by `\n` but perhaps the last. `context` is the part of `input`'s first record
    /// that an earlier call was already given (empty at a record boundary): a secret that straddles the cut is completed
    /// here, and only its remainder is replaced.
    pub(crate) fn redact(
        &self,
        context: &[u8],
        input: &[u8],
        output: &mut Vec<u8>,
        counts: &mut Counts,
    ) {
        let Some(rules) = self.rules else {
            output.extend_from_slice(input);
            return;
        };
        let mut rest = input;
        if !context.is_empty() {
            let end = memchr(b'\n', input).unwrap_or(input.len());
            redact_record(rules, context, &input[..end], output, counts);
            rest = &input[end..];
        }
        let mut copied = 0;
        let mut at = 0;
        // No trigger matches a newline, so the end of a hit names the one record to look at, and
        // the search goes on behind that record: every byte is searched once.
        while let Some(hit) = rules.trigger_at(rest, at) {
            let start = memrchr(b'\n', &rest[at..hit - 1]).map_or(at, |newline| at + newline + 1);
            let end = memchr(b'\n', &rest[hit..]).map_or(rest.len(), |newline| hit + newline);
            output.extend_from_slice(&rest[copied..start]);
            redact_record(rules, &[], &rest[start..end], output, counts);
            copied = end;
            at = end;
        }
        output.extend_from_slice(&rest[copied..]);
    }
}

/// The names that [`Counts`] may hold, most specific first, each once.
#[cfg(test)]
fn pattern_names() -> impl Iterator<Item = &'static str> {
    patterns::names()
}

/// Redacts one record, given without its newline.
fn redact_record(
    rules: &Rules,
    context: &[u8],
    record: &[u8],
    output: &mut Vec<u8>,
    counts: &mut Counts,
) {
    let base = output.len();
    let spans = find(rules, context, record);
    apply(rules, record, &spans, output, counts);
    let mut touched = !spans.is_empty();
    let mut rounds = 1;
    while touched && rounds < ROUNDS_MAX {
        let spans = find(rules, context, &output[base..]);
        touched = !spans.is_empty();
        if touched {
            let previous = output.split_off(base);
            apply(rules, &previous, &spans, output, counts);
        }
        rounds += 1;
    }
}

/// The spans of `record` to be replaced, seen together with what came before it.
fn find(rules: &Rules, context: &[u8], record: &[u8]) -> Vec<Span> {
    if context.is_empty() {
        if rules.trigger_at(record, 0).is_none() {
            return Vec::new();
        }
        return record::find(rules, record);
    }
    let joined = [context, record].concat();
    if rules.trigger_at(&joined, 0).is_none() {
        return Vec::new();
    }
    let mut spans = record::find(rules, &joined);
    // What lies in the context has left already: only the remainder can still be replaced. A
    // character that the cut divides is finished first, or the record would end as bad JSON.
    let cut = escape::boundary_at_or_after(&joined, context.len());
    spans.retain(|span| span.end > cut);
    for span in &mut spans {
        span.start = span.start.max(cut) - context.len();
        span.end -= context.len();
    }
    spans
}

/// Appends `record` with each span replaced by the name of its rule.
fn apply(rules: &Rules, record: &[u8], spans: &[Span], output: &mut Vec<u8>, counts: &mut Counts) {
    let mut copied = 0;
    for span in spans {
        let name = rules.name(span.rule);
        output.extend_from_slice(&record[copied..span.start]);
        output.extend_from_slice(b"[REDACTED:");
        output.extend_from_slice(name.as_bytes());
        output.push(b']');
        *counts.entry(name.to_owned()).or_default() += 1;
        copied = span.end;
    }
    output.extend_from_slice(&record[copied..]);
}
