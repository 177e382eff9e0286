//! Names, keys and the manifest: `FORMAT.md` in types.
//!
//! Knows what an object is called and what `meta.json` says; knows nothing of sources, stores or state. Whatever comes from a
//! bucket is hostile until it went through here: numbers and names are checked against their grammar.

mod chain;

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

pub(crate) use self::chain::Link;
use crate::redact::Counts;

/// Version of `meta.json` that this program reads and writes (the reference tool's).
pub(crate) const SCHEMA_VERSION: u32 = 1;

/// Sequence numbers have five digits, because readers sort by name.
pub(crate) const SEQ_MAX: u32 = 99_999;

/// Longest id in a key, bytes. File names end at 255; a generation, a place and a temporary name must still fit.
const ID_BYTES_MAX: usize = 180;

/// A session (one generation of it): harness and id as they stand in the bucket.
///
/// Whoever deals with a session holds its key: clones share the text.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct SessionKey {
    /// `harness/id`.
    text: Arc<str>,
    /// Where the slash is.
    slash: usize,
}

impl SessionKey {
    /// The first generation of a session, from an id as its harness tells it.
    pub(crate) fn new(harness: &str, raw_id: &str) -> SessionKey {
        SessionKey::of(harness, &encode_id(raw_id))
    }

    fn of(harness: &str, id: &str) -> SessionKey {
        SessionKey { text: format!("{harness}/{id}").into(), slash: harness.len() }
    }

    /// Harness name.
    pub(crate) fn harness(&self) -> &str {
        &self.text[..self.slash]
    }

    /// Id in the bucket, with place and generation.
    pub(crate) fn id(&self) -> &str {
        &self.text[self.slash + 1..]
    }

    /// The id without its generation.
    pub(crate) fn base(&self) -> &str {
        self.id().split_once('~').map_or(self.id(), |(base, _)| base)
    }

    /// Which generation this is; the first has no suffix.
    pub(crate) fn generation(&self) -> u32 {
        self.id().split_once('~').and_then(|(_, n)| n.parse().ok()).unwrap_or(1)
    }

    /// Another generation of the same session.
    pub(crate) fn with_generation(&self, generation: u32) -> SessionKey {
        match generation {
            1 => SessionKey::of(self.harness(), self.base()),
            n => SessionKey::of(self.harness(), &format!("{}~{n}", self.base())),
        }
    }

    /// The same id at a second place: `<id>@<8 hex of the place>`.
    pub(crate) fn at_place(&self, place: &[u8]) -> SessionKey {
        let digest = hex(&Sha256::digest(place));
        SessionKey::of(self.harness(), &format!("{}@{}", self.base(), &digest[..8]))
    }

    /// `sessions/<harness>/<id>/`.
    pub(crate) fn prefix(&self) -> String {
        format!("sessions/{self}/")
    }

    /// Key of the manifest.
    pub(crate) fn manifest_key(&self) -> String {
        format!("{}meta.json", self.prefix())
    }

    /// Key of a part.
    pub(crate) fn part_key(&self, name: &PartName) -> String {
        format!("{}{name}", self.prefix())
    }
}

impl fmt::Display for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Ord for SessionKey {
    /// By harness, then by id: the text alone would sort by what stands before and behind the slash at once.
    fn cmp(&self, other: &SessionKey) -> Ordering {
        (self.harness(), self.id()).cmp(&(other.harness(), other.id()))
    }
}

impl PartialOrd for SessionKey {
    fn partial_cmp(&self, other: &SessionKey) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl From<SessionKey> for String {
    fn from(key: SessionKey) -> String {
        key.to_string()
    }
}

impl TryFrom<String> for SessionKey {
    type Error = BadName;
    fn try_from(text: String) -> Result<SessionKey, BadName> {
        text.parse()
    }
}

impl FromStr for SessionKey {
    type Err = BadName;
    /// Parses `harness/id` as it stands in a bucket; anything that this program would not have written is refused.
    fn from_str(text: &str) -> Result<SessionKey, BadName> {
        let bad = || BadName(printable(text));
        let (harness, id) = text.split_once('/').ok_or_else(bad)?;
        let harness_ok = !harness.is_empty()
            && harness.len() <= 64
            && harness.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let id_ok = !id.is_empty()
            && id.len() <= 250
            && !id.starts_with('.')
            && id.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'/' && b != b'\\');
        if harness_ok && id_ok { Ok(SessionKey::of(harness, id)) } else { Err(bad()) }
    }
}

/// A name that is not of its grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a name that belongs here")]
pub(crate) struct BadName(String);

/// An id from outside, made safe for a key, a path and a terminal, and reversible by eye: `~ @ %`, separators, a leading
/// dot, control and non-ASCII bytes become `%HH`. A long one keeps its start and gets a digest.
fn encode_id(raw: &str) -> String {
    let mut id = String::with_capacity(raw.len());
    for (at, byte) in raw.bytes().enumerate() {
        let plain = (0x20..0x7f).contains(&byte)
            && !matches!(byte, b'~' | b'@' | b'%' | b'/' | b'\\')
            && !(at == 0 && byte == b'.');
        if plain {
            id.push(char::from(byte));
        } else {
            id.push_str(&format!("%{byte:02X}"));
        }
    }
    if id.is_empty() {
        id.push_str("%00"); // No agent names a session so; an empty segment would merge two levels of the key.
    }
    if id.len() > ID_BYTES_MAX {
        let digest = hex(&Sha256::digest(raw.as_bytes()));
        id.truncate(ID_BYTES_MAX - 17);
        id.push('-');
        id.push_str(&digest[..16]);
    }
    id
}

/// Name of a part: `part-NNNNN-<8 hex>.jsonl`. The digits order parts, the hex is the start of the content's SHA-256 (random
/// in parts of the reference tool).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct PartName {
    /// Sequence number, at most [`SEQ_MAX`].
    pub(crate) seq: u32,
    /// Eight lower-case hex digits.
    pub(crate) uuid: String,
}

impl PartName {
    /// The name of content with this digest.
    pub(crate) fn new(seq: u32, sha256: &str) -> PartName {
        PartName { seq, uuid: sha256[..8].to_owned() }
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "part-{:05}-{}.jsonl", self.seq, self.uuid)
    }
}

impl From<PartName> for String {
    fn from(name: PartName) -> String {
        name.to_string()
    }
}

impl TryFrom<String> for PartName {
    type Error = BadName;
    fn try_from(text: String) -> Result<PartName, BadName> {
        text.parse()
    }
}

impl FromStr for PartName {
    type Err = BadName;
    fn from_str(text: &str) -> Result<PartName, BadName> {
        let parse = || {
            let rest = text.strip_prefix("part-")?.strip_suffix(".jsonl")?;
            let (seq, uuid) = rest.split_once('-')?;
            let digits = seq.len() == 5 && seq.bytes().all(|b| b.is_ascii_digit());
            (digits && is_uuid(uuid))
                .then(|| Some(PartName { seq: seq.parse().ok()?, uuid: uuid.to_owned() }))?
        };
        parse().ok_or_else(|| BadName(printable(text)))
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// One entry of `parts[]`. Fields that this program does not know are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PartEntry {
    /// Sequence number.
    pub(crate) seq: u32,
    /// The hex of the name.
    pub(crate) uuid: String,
    /// Source positions `[start, end)`, bytes; absent in an entry that the reference tool merged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cursor_range: Option<[u64; 2]>,
    /// Bytes of the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) source_bytes: Option<u64>,
    /// Bytes of the object.
    #[serde(default)]
    pub(crate) uploaded_bytes: u64,
    /// Secrets removed, by pattern name.
    #[serde(default)]
    pub(crate) redactions: Counts,
    /// When it was stored, RFC 3339.
    #[serde(default)]
    pub(crate) uploaded_at: String,
    /// Number of parts that were merged into this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) compacted_from: Option<u32>,
    /// SHA-256 of the object's bytes, hex. Ours; absent in entries of the reference tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sha256: Option<String>,
    /// Whatever else a writer put there.
    #[serde(flatten)]
    pub(crate) other: Map<String, Value>,
}

impl PartEntry {
    /// Whether it is a merged part that took in another one.
    fn contains(&self, other: &PartEntry) -> bool {
        // The reference tool's merged parts say no range: there the number has to do.
        self.compacted_from.is_some() && self.covers(other).unwrap_or(self.seq == other.seq)
    }

    /// Whether its range takes in that of another one, where both are known.
    fn covers(&self, other: &PartEntry) -> Option<bool> {
        let ([start, end], [first, last]) = (self.cursor_range?, other.cursor_range?);
        Some(start <= first && last <= end)
    }

    /// The object's name.
    pub(crate) fn name(&self) -> PartName {
        PartName { seq: self.seq, uuid: self.uuid.clone() }
    }
}

/// `meta.json`. Field order and meanings are the reference tool's; what follows `parts` is ours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// [`SCHEMA_VERSION`].
    pub(crate) schema_version: u32,
    /// Harness name.
    pub(crate) harness: String,
    /// Id in the bucket.
    pub(crate) session_id: String,
    /// Path of the source when it was last read.
    #[serde(default)]
    pub(crate) source_path: Option<String>,
    /// Working directory that the agent recorded.
    #[serde(default)]
    pub(crate) cwd: Option<String>,
    /// The reference tool's agent name; kept.
    #[serde(default)]
    pub(crate) agent_id: Option<String>,
    /// When the session was first seen, RFC 3339.
    #[serde(default)]
    pub(crate) started_at: Option<String>,
    /// When the newest part was stored, RFC 3339; never null.
    #[serde(default)]
    pub(crate) last_uploaded_at: String,
    /// When it ended, RFC 3339.
    #[serde(default)]
    pub(crate) ended_at: Option<String>,
    /// Source bytes of all parts ever stored.
    #[serde(default)]
    pub(crate) total_source_bytes: u64,
    /// Object bytes of all parts ever stored.
    #[serde(default)]
    pub(crate) total_uploaded_bytes: u64,
    /// Secrets removed, by pattern name.
    #[serde(default)]
    pub(crate) redaction_counts: Counts,
    /// The parts, in ascending sequence.
    #[serde(default)]
    pub(crate) parts: Vec<PartEntry>,
    /// What the agent calls the session. Ours, as the next four: from agents that keep such things in a database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) title: Option<String>,
    /// The model that it was begun with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
    /// Id of the session that it branches from or goes on with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<String>,
    /// Branch of the working directory's repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) git_branch: Option<String>,
    /// Why the agent ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) end_reason: Option<String>,
    /// Who wrote this: `tracecraftd/<version>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) writer: Option<String>,
    /// Which life of the source.
    #[serde(default = "one")]
    pub(crate) generation: u32,
    /// Session id of the generation before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) previous: Option<String>,
    /// Why this generation began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// Parts listed with a lower number and not named above are leftovers.
    #[serde(default)]
    pub(crate) next_seq: u32,
    /// `false` after `stop`.
    #[serde(default = "yes")]
    pub(crate) followed: bool,
    /// Version of the redaction rules in force when this manifest was put.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rules: Option<String>,
    /// Whatever else a writer put there.
    #[serde(flatten)]
    pub(crate) other: Map<String, Value>,
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}

/// The numbers at the top of a manifest, as they stand there. Read without the rest: a tree of JSON values takes ten times the
/// bytes of the text, and a manifest may have megabytes of them.
#[derive(Debug, Default)]
pub(crate) struct Outline {
    /// `None`: not there, or no number.
    pub(crate) schema_version: Option<u64>,
    /// `None`: not there, or no number.
    pub(crate) next_seq: Option<u64>,
}

impl Outline {
    /// Reads it; JSON that is no object has none of them.
    pub(crate) fn of(bytes: &[u8]) -> Result<Outline, serde_json::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Top {
            schema_version: Value,
            next_seq: Value,
        }
        // serde would take the elements of a list for the fields in order.
        if !bytes.trim_ascii_start().starts_with(b"{") {
            return serde_json::from_slice::<IgnoredAny>(bytes).map(|_| Outline::default());
        }
        let Top { schema_version, next_seq } = serde_json::from_slice(bytes)?;
        Ok(Outline { schema_version: schema_version.as_u64(), next_seq: next_seq.as_u64() })
    }
}

/// A manifest that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    /// Written by a newer program: going on could damage it.
    #[error(
        "{key} has schema_version {found}, this program knows {SCHEMA_VERSION}: use a newer tracecraftd"
    )]
    UnknownVersion {
        /// Its key.
        key: String,
        /// What it says.
        found: u64,
    },
    /// Not JSON, or not of the manifest's form, or with values outside their grammar.
    #[error("{key} is not a manifest that can be trusted: {what}")]
    Invalid {
        /// Its key.
        key: String,
        /// What is wrong with it.
        what: String,
    },
}

impl Manifest {
    /// A manifest without parts.
    pub(crate) fn new(key: &SessionKey) -> Manifest {
        Manifest {
            schema_version: SCHEMA_VERSION,
            harness: key.harness().to_owned(),
            session_id: key.id().to_owned(),
            source_path: None,
            cwd: None,
            agent_id: None,
            started_at: None,
            last_uploaded_at: String::new(),
            ended_at: None,
            total_source_bytes: 0,
            total_uploaded_bytes: 0,
            redaction_counts: Counts::new(),
            parts: Vec::new(),
            title: None,
            model: None,
            parent: None,
            git_branch: None,
            end_reason: None,
            writer: None,
            generation: key.generation(),
            previous: None,
            reason: None,
            next_seq: 0,
            followed: true,
            rules: None,
            other: Map::new(),
        }
    }

    /// Reads a manifest from a bucket, checking version, numbers and names.
    pub(crate) fn parse(key: &SessionKey, bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let name = key.manifest_key();
        let invalid = |what: String| ManifestError::Invalid { key: name.clone(), what };
        let not_json =
            |e: &serde_json::Error| format!("not JSON (line {}, column {})", e.line(), e.column());
        let outline = Outline::of(bytes).map_err(|e| invalid(not_json(&e)))?;
        match outline.schema_version {
            Some(found) if found > u64::from(SCHEMA_VERSION) => {
                return Err(ManifestError::UnknownVersion { key: name, found });
            }
            Some(_) => {}
            None => return Err(invalid("it has no schema_version".into())),
        }
        // serde's message may quote a value from the bucket, so it is made printable and short.
        let mut manifest: Manifest = serde_json::from_slice(bytes).map_err(|e| {
            invalid(if e.is_data() { printable(&e.to_string()) } else { not_json(&e) })
        })?;
        manifest.check().map_err(invalid)?;
        let after_last = manifest.parts.iter().map(|p| p.seq + 1).max().unwrap_or(0);
        manifest.next_seq = manifest.next_seq.max(after_last);
        Ok(manifest)
    }

    fn check(&self) -> Result<(), String> {
        let mut previous: Option<u32> = None;
        for part in &self.parts {
            if part.seq > SEQ_MAX {
                return Err(format!("seq {} is above {SEQ_MAX}", part.seq));
            }
            if !is_uuid(&part.uuid) {
                return Err(format!("uuid {:?} is not 8 hex digits", printable(&part.uuid)));
            }
            if previous.is_some_and(|p| p >= part.seq) {
                return Err(format!("seq {} does not follow {:?}", part.seq, previous));
            }
            if part.cursor_range.is_some_and(|[start, end]| start > end) {
                return Err(format!("the range of seq {} ends before it starts", part.seq));
            }
            let sha_ok = part.sha256.as_ref().is_none_or(|s| {
                s.len() == 64
                    && s.bytes().all(|b| b.is_ascii_hexdigit())
                    && s.starts_with(&part.uuid)
            });
            if !sha_ok {
                return Err(format!("sha256 of seq {} is not its own", part.seq));
            }
            previous = Some(part.seq);
        }
        if self.next_seq > SEQ_MAX + 1 {
            return Err(format!("next_seq {} is above {}", self.next_seq, SEQ_MAX + 1));
        }
        Ok(())
    }

    /// The bytes to store.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("a manifest has string keys only");
        bytes.push(b'\n');
        bytes
    }

    /// Adds a stored part unless it is named already, keeping order and totals. `false` when it cannot follow what is named:
    /// another part has its number, numbers beyond it are given away, or there would be a gap or an overlap before it.
    pub(crate) fn name_part(&mut self, entry: PartEntry) -> bool {
        let at = match self.parts.binary_search_by_key(&entry.seq, |p| p.seq) {
            Ok(at) => return self.parts[at].uuid == entry.uuid || self.parts[at].contains(&entry),
            Err(at) => at,
        };
        if self.parts.iter().any(|part| part.contains(&entry)) {
            return true; // A compaction has taken it in since, and its bytes are already counted.
        }
        if at < self.parts.len() || !self.is_followed_by(&entry) {
            return false;
        }
        // Saturating: what a bucket says of itself may be beyond all numbers.
        self.total_source_bytes =
            self.total_source_bytes.saturating_add(entry.source_bytes.unwrap_or(0));
        self.total_uploaded_bytes = self.total_uploaded_bytes.saturating_add(entry.uploaded_bytes);
        for (name, count) in &entry.redactions {
            let sum = self.redaction_counts.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
        self.next_seq = self.next_seq.max(entry.seq + 1);
        self.last_uploaded_at = entry.uploaded_at.clone();
        self.parts.insert(at, entry);
        true
    }

    /// Whether a new part begins where the last named one ends, as far as both say so.
    fn is_followed_by(&self, entry: &PartEntry) -> bool {
        match (self.parts.last(), entry.cursor_range) {
            (Some(last), Some([start, _])) => last.cursor_range.is_none_or(|[_, end]| end == start),
            (None, Some([start, _])) => start == 0 || entry.seq == 0,
            (_, None) => true,
        }
    }

    /// Bytes of all objects that it names.
    pub(crate) fn bytes(&self) -> u64 {
        self.parts.iter().fold(0, |sum, part| sum.saturating_add(part.uploaded_bytes))
    }

    /// Source position after the last part, where every part says its range.
    pub(crate) fn end(&self) -> Option<u64> {
        match self.parts.last() {
            None => Some(0),
            Some(last) => last.cursor_range.map(|[_, end]| end),
        }
    }
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// SHA-256 of bytes, as hex.
pub(crate) fn digest_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Text from outside for a message: short, and without control characters.
pub(crate) fn printable(text: &str) -> String {
    const SHOWN_MAX: usize = 200;
    text.chars().take(SHOWN_MAX).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests;
