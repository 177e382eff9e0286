//! Answers as text for people and JSON for programs. Pure: a value and a [`crate::terminal::Terminal`] in, a string out.
//!
//! Everything that comes from a transcript, a path or a bucket goes through [`crate::text`] before it is printed.

pub(crate) mod compact;
pub(crate) mod doctor;
pub(crate) mod event;
pub(crate) mod list;
pub(crate) mod meter;
pub(crate) mod session;
pub(crate) mod status;
pub(crate) mod verify;

#[cfg(test)]
pub(crate) mod tests;

use jiff::Timestamp;
use serde::Serialize;

use crate::terminal::{Ink, Terminal};
use crate::text;

/// A document of the wire contract, laid out to be read by people, too.
pub(crate) fn json(value: &impl Serialize) -> String {
    let json = serde_json::to_string_pretty(value).expect("the wire types are always JSON");
    harmless(&json) + "\n"
}

/// A document on one line, without its end.
pub(crate) fn json_line(value: &impl Serialize) -> String {
    harmless(&serde_json::to_string(value).expect("the wire types are always JSON"))
}

/// JSON leaves some characters as they are that a terminal obeys; the same string can be written without them.
pub(crate) fn harmless(json: &str) -> String {
    if !json.chars().any(|character| character != '\n' && text::is_hostile(character)) {
        return json.to_owned();
    }
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        if character == '\n' || !text::is_hostile(character) {
            escaped.push(character);
            continue;
        }
        let mut units = [0; 2];
        for unit in character.encode_utf16(&mut units) {
            escaped.push_str(&format!("\\u{unit:04x}"));
        }
    }
    escaped
}

/// Seconds since a time of the wire, 0 for one in the future; `None` where it is no time.
fn seconds_since(time: Option<&str>, terminal: &Terminal) -> Option<u64> {
    let time: Timestamp = time?.parse().ok()?;
    Some(u64::try_from(terminal.now.duration_since(time).as_secs()).unwrap_or(0))
}

/// Seconds to a time of the wire; `None` where it is over, or no time.
fn seconds_until(time: Option<&str>, terminal: &Terminal) -> Option<u64> {
    let time: Timestamp = time?.parse().ok()?;
    u64::try_from(time.duration_since(terminal.now).as_secs()).ok().filter(|wait| *wait > 0)
}

/// A problem: what is wrong, and on a line of its own what to do.
fn problem(problem: &tracecraft::api::Problem, indent: &str, terminal: &Terminal) -> String {
    let mut when = String::new();
    if let Some(seconds) = seconds_since(Some(&problem.since), terminal) {
        when.push_str(&format!(" (for {})", text::duration(seconds)));
    }
    if let Some(seconds) = seconds_until(problem.next_try_at.as_deref(), terminal) {
        when.push_str(&format!(", next try in {}", text::age(seconds)));
    }
    let words = text::line(&problem.message) + &when;
    let mut out = marked(&terminal.paint(Ink::Bad, "!"), &words, indent, terminal);
    if let Some(words) = out.strip_suffix(&when) {
        out = words.to_owned() + &terminal.paint(Ink::Faint, &when);
    }
    out.push('\n');
    if let Some(hint) = &problem.hint {
        out.push_str(&fitted(&format!("{indent}  try: {}", text::line(hint)), terminal));
        out.push('\n');
    }
    out
}

/// A value behind a label of so many columns; what does not fit goes on below. One that is painted, or has columns of its own, is
/// left to the terminal.
fn beside(label: usize, value: &str, terminal: &Terminal) -> String {
    match terminal.columns {
        Some(columns) if !value.contains('\u{1b}') && !value.contains("  ") => {
            text::wrap(value, columns - label).join(&format!("\n{:label$}", ""))
        }
        _ => value.to_owned(),
    }
}

/// Words behind a mark, which may be painted; what does not fit goes on below the first word.
fn marked(mark: &str, words: &str, indent: &str, terminal: &Terminal) -> String {
    let fitted = fitted(&format!("{indent}  {words}"), terminal);
    format!("{indent}{mark} {}", fitted.trim_start())
}

/// A line as it fits the terminal, below its own beginning where it takes several; in a pipe as it is.
fn fitted(line: &str, terminal: &Terminal) -> String {
    match terminal.columns {
        Some(columns) => text::wrap(line, columns).join("\n"),
        None => line.to_owned(),
    }
}
