//! The grammar of single settings: durations, sizes, store URLs, log filters.
//!
//! Knows text and what is wrong with it; refuses to know which key, file or variable the text came from: [`super`] adds
//! that. No message repeats a credential that somebody put into a URL.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::paths::absolute;

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

/// Where objects go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoreUrl {
    /// A directory that is bucket and project in one.
    File {
        /// Absolute, without a trailing slash.
        dir: PathBuf,
    },
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreUrl::File { dir } => f.write_str(&file_url(dir)),
        }
    }
}

/// Schemes of the interface. Those that this version cannot use are known, so that the message can say so.
const SCHEMES: [&str; 3] = ["file", "s3", "hf"];

/// Longest scheme that a message repeats: what is longer is no scheme, and may be half of a credential.
const SCHEME_SHOWN_MAX: usize = 12;

impl StoreUrl {
    /// Parses a store URL. `home` is only for the hint to one who wrote a path with a tilde.
    pub(crate) fn parse(text: &str, home: &Path) -> Result<StoreUrl, Bad> {
        if has_credentials(text) {
            return Err(Bad::new(
                "a store URL must not carry credentials",
                "take them out of the URL, and replace them if others could read it",
            ));
        }
        if text.is_empty() {
            return Err(Bad::new("is empty", "write for example file:///absolute/dir"));
        }
        let Some((scheme, rest)) = text.split_once(':') else {
            let path = match text.strip_prefix("~/") {
                Some(below) => home.join(below),
                None => absolute(Path::new(text)),
            };
            return Err(Bad::new("is not a URL", format!("did you mean {}?", file_url(&path))));
        };
        match (scheme, rest.strip_prefix("//")) {
            ("file", Some(path)) => file_dir(path, home).map(|dir| StoreUrl::File { dir }),
            ("file", None) => {
                let path = if rest.starts_with('/') { rest } else { "/absolute/dir" };
                Err(Bad::new("lacks the two slashes", format!("did you mean file://{path}?")))
            }
            ("s3" | "hf", Some(_)) => Err(Bad::new(
                format!("{scheme}:// stores are not supported by this version"),
                "use a directory: file:///absolute/dir",
            )),
            _ => Err(unknown_scheme(scheme)),
        }
    }
}

fn unknown_scheme(scheme: &str) -> Bad {
    let forms = "file:///absolute/dir, s3://bucket/project or hf://user/bucket/project";
    let hint = match nearest(scheme, &SCHEMES) {
        Some(meant) => format!("did you mean {meant}://? A store URL is {forms}"),
        None => format!("write {forms}"),
    };
    let showable = scheme.len() <= SCHEME_SHOWN_MAX
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let problem = if showable {
        format!("does not begin with a known scheme and two slashes, but with \"{scheme}:\"")
    } else {
        "does not begin with a known scheme and two slashes".to_owned()
    };
    Bad::new(problem, hint)
}

/// Whether a URL, well-formed or not, has `user@` or `user:password@` where an authority would be.
fn has_credentials(text: &str) -> bool {
    let (scheme, rest) = text.split_once(':').unwrap_or(("", text));
    // A path of a file URL may have both signs in a directory's name.
    if scheme == "file" && (rest.starts_with("///") || !rest.starts_with("//")) {
        return false;
    }
    let authority = if scheme.is_empty() { "" } else { rest.trim_start_matches('/') };
    let Some(at) = authority.find('@') else { return false };
    // A secret key may contain slashes, so that a colon before the sign counts wherever the sign is.
    let before = &authority[..at];
    before.contains(':') || !before.contains('/')
}

fn file_dir(rest: &str, home: &Path) -> Result<PathBuf, Bad> {
    if !rest.starts_with('/') {
        let hint = match rest.strip_prefix("~/") {
            Some(below) => format!("did you mean {}?", file_url(&home.join(below))),
            None => format!("did you mean file:///{rest}? A directory needs three slashes"),
        };
        return Err(Bad::new("does not name an absolute directory", hint));
    }
    if let Some(sign) = rest.chars().find(|c| matches!(c, '?' | '#')) {
        let hint = format!("write %{:02X} if the directory's name has one", u32::from(sign));
        return Err(Bad::new(format!("has a \"{sign}\""), hint));
    }
    let bytes = percent_decode(rest.as_bytes()).filter(|bytes| !bytes.contains(&0));
    let bytes = bytes.ok_or_else(|| {
        Bad::new("has a % that two hexadecimal digits do not follow", "write %25 for a %")
    })?;
    // Rebuilt from its components, so that one directory has one identity: "/a//b/" is "/a/b".
    let dir: PathBuf = Path::new(&OsString::from_vec(bytes)).components().collect();
    if dir.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(Bad::new("has \"..\" in its path", "write the directory's path without it"));
    }
    if dir.parent().is_none() {
        return Err(Bad::new("names the root directory", "name a directory below it"));
    }
    Ok(dir)
}

fn percent_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter().copied();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    Some(bytes)
}

/// A directory as a URL that parses to the same directory.
fn file_url(dir: &Path) -> String {
    let mut url = String::from("file://");
    for &byte in dir.as_os_str().as_bytes() {
        match byte {
            b'%' | b'?' | b'#' | 0..=b' ' | 0x7f.. => url.push_str(&format!("%{byte:02X}")),
            _ => url.push(char::from(byte)),
        }
    }
    url
}

/// Levels that a log filter may name.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// A log filter: a level, or `target=level` pairs with commas between.
pub(crate) fn log_filter(text: &str) -> Result<String, Bad> {
    let example = "write a level (error, warn, info, debug, trace) or target=level, with commas";
    // The filter's own parser takes a mistyped level for the name of a module and then logs nothing.
    for word in text.split(',').map(str::trim).filter(|word| !word.contains(['=', '[', ':'])) {
        let known = LEVELS.contains(&word.to_lowercase().as_str());
        if let Some(level) = nearest(word, &LEVELS).filter(|_| !known) {
            let hint = format!("did you mean {level}?");
            return Err(Bad::new(format!("has {word:?}, which is not a level"), hint));
        }
    }
    tracing_subscriber::EnvFilter::builder()
        .parse(text)
        .map(|_| text.to_owned())
        .map_err(|error| Bad::new(error.to_string(), example))
}
