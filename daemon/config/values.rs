//! The grammar of single settings: durations, sizes, log filters, words.
//!
//! Knows text and what is wrong with it; refuses to know which key, file or variable the text came from: [`super`] adds
//! that.

use std::fmt;
use std::time::Duration;

/// Shortest interval between flushes. Below it the daemon would be awake all the time and gain nothing a person can see.
pub(crate) const INTERVAL_LEAST: Duration = Duration::from_millis(100);

/// Longest interval between flushes: a day. What is longer is a slip of the hand, and agents purge what nobody has read.
pub(crate) const INTERVAL_MOST: Duration = Duration::from_secs(24 * 60 * 60);

/// Largest number of edits between a wrong word and the one we offer for it. More offers nonsense.
const NEAREST_EDITS: usize = 4;

/// Letters of an abbreviation that is taken for the word it begins. Fewer begin too many words.
const ABBREVIATION_LEAST: usize = 3;

/// What is wrong with a value, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bad {
    /// A clause that follows "key = value:".
    pub(crate) problem: String,
    /// What to write instead, as an imperative.
    pub(crate) hint: String,
}

impl Bad {
    pub(crate) fn new(problem: impl Into<String>, hint: impl Into<String>) -> Bad {
        Bad { problem: problem.into(), hint: hint.into() }
    }
}

/// The known word that is nearest to a mistyped one, if any is near.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let word = word.to_lowercase();
    // An abbreviation is near, however much it leaves out.
    if word.len() >= ABBREVIATION_LEAST
        && let Some(found) = known.iter().find(|known| known.starts_with(&word))
    {
        return Some(found);
    }
    let distances = known.iter().map(|&known| (strsim::damerau_levenshtein(&word, known), known));
    let (edits, found) = distances.min_by_key(|&(edits, _)| edits)?;
    // A word of which more than half must change is another word.
    let alike = edits <= NEAREST_EDITS && edits * 2 <= found.len().max(word.len());
    alike.then_some(found)
}

/// `300ms`, `5s`, `1m`, `2h`.
pub(crate) fn duration(text: &str) -> Result<Duration, Bad> {
    let example = "write a number and a unit, for example 300ms, 5s, 1m or 2h";
    let (number, unit) =
        number_and_unit(text).ok_or_else(|| Bad::new("is not a duration", example))?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" => {
            let hint = format!("write {number}s for seconds or {number}ms for milliseconds");
            return Err(Bad::new("has no unit", hint));
        }
        _ => return Err(Bad::new("has a unit that is not ms, s, m or h", example)),
    };
    number
        .checked_mul(milliseconds)
        .map(Duration::from_millis)
        .ok_or_else(|| Bad::new("is too long", example))
}

/// A duration within the bounds of the interval.
pub(crate) fn interval(text: &str) -> Result<Duration, Bad> {
    let interval = duration(text)?;
    if interval < INTERVAL_LEAST {
        return Err(Bad::new("is shorter than the least interval, 100ms", "write 100ms or more"));
    }
    if interval > INTERVAL_MOST {
        return Err(Bad::new("is longer than the longest interval, 24h", "write 24h or less"));
    }
    Ok(interval)
}

/// A duration as the grammar has it, in the largest unit that loses nothing.
pub(crate) fn show_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    let units = [(3_600_000, "h"), (60_000, "m"), (1_000, "s")];
    match units.iter().find(|(size, _)| milliseconds > 0 && milliseconds.is_multiple_of(*size)) {
        Some((size, unit)) => format!("{}{unit}", milliseconds / size),
        None => format!("{milliseconds}ms"),
    }
}

const SIZE_UNITS: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// `512MiB`, `1GiB`, `0B`: bytes.
pub(crate) fn size(text: &str) -> Result<u64, Bad> {
    let example = "write a number and a unit, for example 512MiB or 1GiB";
    let (number, unit) = number_and_unit(text).ok_or_else(|| Bad::new("is not a size", example))?;
    let Some((_, bytes)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit) else {
        // "MB", "mb", "M" and "m" all mean the unit that starts with that letter.
        let first = unit.chars().next().map(|first| first.to_ascii_uppercase());
        let meant = SIZE_UNITS.iter().find(|(name, _)| name.chars().next() == first);
        let meant = meant.map_or("MiB", |(name, _)| name);
        return Err(Bad::new(
            "has a unit that is not B, KiB, MiB, GiB or TiB",
            format!("did you mean {number}{meant}?"),
        ));
    };
    number.checked_mul(*bytes).ok_or_else(|| Bad::new("is too large", example))
}

/// A size as the grammar has it, in the largest unit that loses nothing.
pub(crate) fn show_size(bytes: u64) -> String {
    let unit = SIZE_UNITS.iter().find(|(_, size)| bytes > 0 && bytes.is_multiple_of(*size));
    let (name, size) = unit.unwrap_or(&("B", 1));
    format!("{}{name}", bytes / size)
}

/// Digits, then letters, nothing else.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let letters = unit.chars().all(|c| c.is_ascii_alphabetic());
    letters.then(|| number.parse().ok()).flatten().map(|number| (number, unit))
}

/// Whether parts are merged without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compaction {
    /// Where deleting is neither refused nor billed.
    Auto,
    /// Only when somebody asks.
    Off,
}

impl fmt::Display for Compaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compaction::Auto => "auto",
            Compaction::Off => "off",
        })
    }
}

/// `auto` or `off`.
pub(crate) fn compaction(text: &str) -> Result<Compaction, Bad> {
    match text {
        "auto" => Ok(Compaction::Auto),
        "off" => Ok(Compaction::Off),
        other => {
            let hint = match nearest(other, &["auto", "off", "automatic"]) {
                Some("off") => "did you mean off?",
                Some(_) => "did you mean auto?",
                None => "write auto or off",
            };
            Err(Bad::new("is neither auto nor off", hint))
        }
    }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For people, and for a journal.
    Text,
    /// A JSON document a line.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        })
    }
}

/// `text` or `json`.
pub(crate) fn log_format(text: &str) -> Result<LogFormat, Bad> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => {
            let hint = match nearest(other, &["text", "json"]) {
                Some(meant) => format!("did you mean {meant}?"),
                None => "write text or json".to_owned(),
            };
            Err(Bad::new("is neither text nor json", hint))
        }
    }
}

/// Levels that a log filter may name.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A log filter: a level, or `target=level` pairs with commas between.
pub(crate) fn log_filter(text: &str) -> Result<String, Bad> {
    let example = "write a level (error, warn, info, debug, trace) or target=level, with commas";
    if text.trim().is_empty() {
        return Err(Bad::new("is empty", example));
    }
    // The filter's own parser takes any word alone for the name of a module, and is silent about everything else.
    let words = text.split(',').map(str::trim).filter(|word| !word.is_empty());
    for word in words.filter(|word| !word.contains(['=', '[', ']', '{', '}'])) {
        if !LEVELS.contains(&word.to_lowercase().as_str()) {
            let hint = match nearest(word, &LEVELS) {
                Some(level) => format!("did you mean {level}?"),
                None => example.to_owned(),
            };
            return Err(Bad::new(format!("has {word:?}, which is not a level"), hint));
        }
    }
    tracing_subscriber::EnvFilter::builder()
        .parse(text)
        .map(|_| text.to_owned())
        .map_err(|error| Bad::new(error.to_string(), example))
}
