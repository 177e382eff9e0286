//! Reading the first records of a transcript without trusting them.
//!
//! Owns what the harnesses share: the split into rows, fields of the wrong type, and which values may become an id, a working
//! directory or a time. Knows no harness. A transcript is written by a model and its tools, so every value in it is hostile.

use std::borrow::Cow;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};

/// Longest working directory that is kept: Linux's `PATH_MAX`; no agent can have been started in a longer one by its path.
const CWD_BYTES_MAX: usize = 4096;

/// Longest id that records may give: three UUIDs; two such ids joined still fit a key segment of 180 bytes or its digest.
const ID_BYTES_MAX: usize = 128;

/// Longest timestamp that is kept: nanoseconds and an offset need 35 bytes.
const TIME_BYTES_MAX: usize = 40;

/// A field that counts as absent when its value is of another type, so that one odd field does not cost the whole row.
#[derive(Debug)]
pub(super) struct Lax<T>(pub(super) Option<T>);

impl<T> Default for Lax<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Lax<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either<T> {
            Expected(T),
            Other(IgnoredAny),
        }
        Ok(Self(match Either::deserialize(deserializer)? {
            Either::Expected(value) => Some(value),
            Either::Other(_) => None,
        }))
    }
}

/// The rows that can be read, in order. All others are passed over: torn ones (a torn JSON object never parses, so the last
/// line needs no newline), binary ones, ones that are no objects.
pub(super) fn rows<R: DeserializeOwned>(head: &[u8]) -> impl Iterator<Item = R> {
    let head = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head);
    head.split(|byte| *byte == b'\n').filter_map(|line| {
        // After a power loss a line may begin with a run of NULs; the agents themselves skip it.
        let start = line.iter().position(|byte| *byte != 0)?;
        // A broken byte in one field must not cost the others.
        let text: Cow<'_, str> = String::from_utf8_lossy(&line[start..]);
        // An array would be read as a struct's fields in order; a record is an object.
        text.trim_start().starts_with('{').then(|| serde_json::from_str(&text).ok())?
    })
}

/// An id from a record, if it is fit to be one. It becomes part of an object key, and `__` separates parent and child.
pub(super) fn fit_id(id: &str) -> Option<&str> {
    let fit = !id.is_empty()
        && id.len() <= ID_BYTES_MAX
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !id.starts_with('.')
        && !id.contains("..")
        && !id.contains("__");
    fit.then_some(id)
}

/// A working directory from a record. One that is too long is cut, not dropped: a rule that excludes a directory must
/// still match what is below it. Control characters are kept: they are legal in a path, and who prints it escapes it.
pub(super) fn fit_cwd(mut cwd: String) -> Option<String> {
    if cwd.len() > CWD_BYTES_MAX {
        let mut end = CWD_BYTES_MAX;
        while !cwd.is_char_boundary(end) {
            end -= 1;
        }
        cwd.truncate(end);
    }
    (!cwd.is_empty()).then_some(cwd)
}

/// A timestamp from a record, as it stands there, if it is one.
pub(super) fn fit_time(time: String) -> Option<String> {
    let plain = time.len() <= TIME_BYTES_MAX
        && time.bytes().all(|byte| byte.is_ascii_digit() || b"TZtz:.+-".contains(&byte));
    (plain && time.parse::<jiff::Timestamp>().is_ok()).then_some(time)
}
