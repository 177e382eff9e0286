//! What the state knows of one session, and of its parts that wait.
//!
//! Knows what is kept; refuses to know when it changes ([`super::Change`]) and how it is written.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::part::{PartEntry, PartName, SessionKey};
use crate::redact::Counts;
use crate::source::database::About;
use crate::source::{Cursor, Encoding, Stat};

/// One generation of one session. There are thousands, of which nearly all are idle: what few have is boxed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Path of the source.
    #[serde(with = "super::path_text")]
    pub(crate) source: Arc<Path>,
    /// How the file stores its content.
    pub(crate) encoding: Encoding,
    /// Working directory that the agent recorded.
    pub(crate) cwd: Option<String>,
    /// When the session began or was first seen, RFC 3339.
    pub(crate) started_at: String,
    /// Everything before it is captured.
    pub(crate) cursor: Cursor,
    /// Number of the next part.
    pub(crate) next_seq: u32,
    /// Captured parts that no manifest is known to name, in ascending sequence.
    pub(crate) pending: Vec<PendingPart>,
    /// What the manifest says in sum.
    #[serde(default)]
    pub(crate) totals: Totals,
    /// Bytes of this writer's parts before the pending ones. The manifest may name another writer's parts beside them.
    #[serde(default)]
    pub(crate) named_bytes: u64,
    /// When the session ended, RFC 3339; cleared when it is written to again.
    #[serde(default)]
    pub(crate) ended_at: Option<String>,
    /// What its agent's database says about it, where it is rows of one. Without secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) about: Option<Box<About>>,
    /// Whether its agent set the file aside.
    #[serde(default)]
    pub(crate) archived: bool,
    /// Whether the source is gone.
    #[serde(default)]
    pub(crate) gone: bool,
    /// `stop` was said, `start` was not.
    #[serde(default)]
    pub(crate) stopped: bool,
    /// A later generation follows: nothing is read for this one any more.
    #[serde(default)]
    pub(crate) superseded: bool,
    /// Why this generation began, for later ones.
    #[serde(default)]
    pub(crate) reason: Option<String>,
    /// The manifest says less than this record (an end, a stop): it is to be put again.
    #[serde(default)]
    pub(crate) manifest_due: bool,
    /// A compaction that was begun.
    #[serde(default)]
    pub(crate) compaction: Option<Box<Compaction>>,
    /// What is to be removed here once it is safe elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) leaving: Option<Box<Leaving>>,
}

/// Objects of ours whose numbers another writer has given too: their bytes went on to a generation of their own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Leaving {
    /// The objects.
    pub(crate) parts: Vec<PartName>,
    /// Where their bytes are now…
    pub(crate) to: SessionKey,
    /// … in parts below this number.
    pub(crate) below: u32,
}

impl Record {
    /// Of a session of which nothing is captured yet.
    pub(crate) fn new(
        source: Arc<Path>,
        encoding: Encoding,
        started_at: String,
        stat: Stat,
    ) -> Record {
        Record {
            source,
            encoding,
            cwd: None,
            started_at,
            cursor: Cursor::start(stat),
            next_seq: 0,
            pending: Vec::new(),
            totals: Totals::default(),
            named_bytes: 0,
            ended_at: None,
            about: None,
            archived: false,
            gone: false,
            stopped: false,
            superseded: false,
            reason: None,
            manifest_due: false,
            compaction: None,
            leaving: None,
        }
    }

    /// The file that the source is, or is in.
    pub(crate) fn source_file(&self) -> &Path {
        match self.encoding {
            Encoding::Rows | Encoding::Events => self.source.parent().unwrap_or(&self.source),
            Encoding::Plain | Encoding::Zstd => &self.source,
        }
    }
}

/// A captured part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PendingPart {
    /// Sequence number.
    pub(crate) seq: u32,
    /// SHA-256 of its bytes (after redaction), hex.
    pub(crate) sha256: String,
    /// Source positions `[start, end)`, bytes.
    pub(crate) range: [u64; 2],
    /// Size in bytes.
    pub(crate) bytes: u64,
    /// Secrets removed.
    #[serde(default, skip_serializing_if = "FewCounts::is_empty")]
    pub(crate) redactions: FewCounts,
    /// It ends or begins inside a record that was too large to be read whole.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) cut: bool,
    /// When it was captured, RFC 3339.
    pub(crate) captured_at: String,
    /// When it was stored, RFC 3339; the outbox is then rid of it, and only the manifest lacks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stored_at: Option<String>,
    /// A manifest was put that names it, and none was read yet: another writer's may have replaced it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) named: bool,
}

impl PendingPart {
    /// Whether only the manifest lacks it.
    pub(crate) fn is_unnamed(&self) -> bool {
        self.stored_at.is_some() && !self.named
    }

    /// The object's name.
    pub(crate) fn name(&self) -> PartName {
        PartName::new(self.seq, &self.sha256)
    }

    /// What the manifest says of it.
    pub(crate) fn entry(&self) -> PartEntry {
        let mut other = serde_json::Map::new();
        if self.cut {
            other.insert("cut".to_owned(), true.into());
        }
        PartEntry {
            seq: self.seq,
            uuid: self.name().uuid,
            cursor_range: Some(self.range),
            source_bytes: Some(self.range[1] - self.range[0]),
            uploaded_bytes: self.bytes,
            redactions: self.redactions.clone().into(),
            uploaded_at: self.stored_at.clone().unwrap_or_else(|| self.captured_at.clone()),
            compacted_from: None,
            sha256: Some(self.sha256.clone()),
            other,
        }
    }
}

/// The counts of one part. After a long outage tens of thousands of parts wait, and a map takes 400 bytes for its first entry.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Counts", into = "Counts")]
pub(crate) struct FewCounts(Box<[(Box<str>, u64)]>);

impl FewCounts {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Pattern names and counts.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|(name, count)| (&**name, *count))
    }
}

impl From<Counts> for FewCounts {
    fn from(counts: Counts) -> FewCounts {
        FewCounts(counts.into_iter().map(|(name, count)| (name.into(), count)).collect())
    }
}

impl From<FewCounts> for Counts {
    fn from(few: FewCounts) -> Counts {
        few.iter().map(|(name, count)| (name.to_owned(), count)).collect()
    }
}

/// Sums over the parts that the manifest names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Totals {
    /// Objects.
    pub(crate) parts: u64,
    /// Bytes of those objects.
    pub(crate) bytes: u64,
    /// Secrets removed.
    pub(crate) redactions: Counts,
    /// When the newest was stored, RFC 3339.
    pub(crate) last_stored_at: Option<String>,
    /// How many of them automatic compaction would merge next: so that a start need not ask the store.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) mergeable: u32,
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Totals {
    /// These, but for bytes that were named before: merges keep them, so that a manifest with fewer is an older one that came
    /// back. It may say what it will; that something is missing from it stays known.
    pub(crate) fn above(self, known: &Totals) -> Totals {
        Totals { bytes: self.bytes.max(known.bytes), ..self }
    }
}

/// A compaction whose merged part is in the outbox or stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Compaction {
    /// What is merged, in order.
    pub(crate) inputs: Vec<PartName>,
    /// The manifest entry of the merged part.
    pub(crate) merged: PartEntry,
}
