//! Reading and writing a session's `meta.json` in the store: read, modify, write; entries of others are kept.
//!
//! Knows the store and the manifest; knows nothing of sources or of the state.

use std::str::FromStr;

use tokio::io::AsyncReadExt;

use crate::part::{Manifest, ManifestError, PartEntry, PartName, SEQ_MAX, SessionKey};
use crate::redact::Counts;
use crate::source::database::About;
use crate::state::{Record, Totals};
use crate::store::{Body, ErrorKind, Listed, Store, StoreError};

/// Largest manifest that is read, bytes: a session of 100,000 parts has about 40 MB. More is hostile.
const MANIFEST_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Name and version of this program, as the manifest's `writer`.
const WRITER: &str = concat!("tracecraftd/", env!("CARGO_PKG_VERSION"));

/// Why a manifest could not be read or put.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is there cannot be used.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Another writer gave the same number to another part.
    #[error("part {seq} of {key} was stored by another writer too")]
    Conflict {
        /// The session.
        key: SessionKey,
        /// The number.
        seq: u32,
    },
    /// A part that a manifest names is not what it says.
    #[error("{key} is {what}")]
    Damaged {
        /// The object.
        key: String,
        /// What is wrong.
        what: String,
    },
}

/// What a session's record has to say in its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    source_path: String,
    about: About,
    cwd: Option<String>,
    started_at: String,
    ended_at: Option<String>,
    followed: bool,
    reason: Option<String>,
    rules: String,
    now: String,
    had_parts: bool,
}

impl Header {
    /// From a record.
    pub(crate) fn new(record: &Record, rules: &str, now: &str) -> Header {
        Header {
            source_path: record.source_file().to_string_lossy().into_owned(),
            about: record.about.clone(),
            cwd: record.cwd.clone(),
            started_at: record.started_at.clone(),
            ended_at: record.ended_at.clone(),
            followed: !record.stopped,
            reason: record.reason.clone(),
            rules: rules.to_owned(),
            now: now.to_owned(),
            had_parts: record.totals.parts > 0,
        }
    }

    /// Whether it still says what the record says.
    pub(crate) fn is_of(&self, record: &Record) -> bool {
        let now = Header::new(record, &self.rules, &self.now);
        Header { had_parts: self.had_parts, ..now } == *self
    }

    fn apply(&self, key: &SessionKey, manifest: &mut Manifest) {
        manifest.source_path = Some(self.source_path.clone());
        manifest.cwd = self.cwd.clone().or(manifest.cwd.take());
        if !self.about.is_empty() {
            let About { title, model, parent, git_branch, end_reason, ended_at: _ } =
                self.about.clone();
            (manifest.title, manifest.model, manifest.parent) = (title, model, parent);
            (manifest.git_branch, manifest.end_reason) = (git_branch, end_reason);
        }
        manifest.started_at.get_or_insert_with(|| self.started_at.clone());
        manifest.ended_at = self.ended_at.clone();
        manifest.followed = self.followed;
        manifest.reason = self.reason.clone().or(manifest.reason.take());
        manifest.generation = key.generation();
        if key.generation() > 1 {
            let before = key.with_generation(key.generation() - 1);
            manifest.previous = Some(before.id().to_owned());
        }
        manifest.writer = Some(WRITER.to_owned());
        manifest.rules = Some(self.rules.clone());
        if manifest.last_uploaded_at.is_empty() {
            manifest.last_uploaded_at = self.now.clone(); // The reference tool's `list` sorts by it and fails on null.
        }
    }
}

/// The manifest of a session, `None` when there is none.
pub(crate) async fn read(store: &dyn Store, key: &SessionKey) -> Result<Option<Manifest>, Failure> {
    match read_bytes(store, &key.manifest_key()).await? {
        Some(bytes) => Ok(Some(Manifest::parse(key, &bytes)?)),
        None => Ok(None),
    }
}

async fn read_bytes(store: &dyn Store, name: &str) -> Result<Option<Vec<u8>>, Failure> {
    let object = match store.get(name).await {
        Ok(object) => object,
        Err(e) if e.kind == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let mut bytes = Vec::new();
    let limited = object.reader.take(MANIFEST_BYTES_MAX + 1);
    tokio::pin!(limited);
    limited.read_to_end(&mut bytes).await.map_err(|e| StoreError {
        kind: ErrorKind::Unavailable,
        operation: "get",
        object: name.to_owned(),
        source: e.into(),
    })?;
    if bytes.len() as u64 > MANIFEST_BYTES_MAX {
        let what = format!("larger than {MANIFEST_BYTES_MAX} bytes");
        return Err(ManifestError::Invalid { key: name.to_owned(), what }.into());
    }
    Ok(Some(bytes))
}

/// Names stored parts in the manifest and says what the header says, if there is one. Doing it twice is doing it once.
pub(crate) async fn name_parts(
    store: &dyn Store,
    key: &SessionKey,
    header: Option<&Header>,
    parts: &[PartEntry],
) -> Result<Manifest, Failure> {
    let mut manifest = match read(store, key).await? {
        Some(manifest) => manifest,
        None if header.is_some_and(|h| h.had_parts) => rebuild(store, key).await?,
        None => Manifest::new(key),
    };
    for part in parts {
        if !manifest.name_part(part.clone()) {
            return Err(Failure::Conflict { key: key.clone(), seq: part.seq });
        }
    }
    if let Some(header) = header {
        header.apply(key, &mut manifest);
    }
    put(store, key, &manifest).await?;
    Ok(manifest)
}

/// Puts the manifest.
pub(crate) async fn put(
    store: &dyn Store,
    key: &SessionKey,
    manifest: &Manifest,
) -> Result<(), StoreError> {
    store.put(&key.manifest_key(), Body::Bytes(manifest.to_bytes().into()), None).await
}

/// A manifest that somebody deleted, from the parts that are listed. Their ranges are not known any more.
async fn rebuild(store: &dyn Store, key: &SessionKey) -> Result<Manifest, Failure> {
    let mut manifest = Manifest::new(key);
    for (name, size) in list_parts(store, key).await? {
        manifest.name_part(PartEntry {
            seq: name.seq,
            uuid: name.uuid,
            cursor_range: None,
            source_bytes: None,
            uploaded_bytes: size,
            redactions: Counts::new(),
            uploaded_at: String::new(),
            compacted_from: None,
            sha256: None,
            other: serde_json::Map::new(),
        });
    }
    Ok(manifest)
}

/// The parts of a session that are listed, in ascending order of name; anything else below its prefix is left out.
pub(crate) async fn list_parts(
    store: &dyn Store,
    key: &SessionKey,
) -> Result<Vec<(PartName, u64)>, StoreError> {
    let prefix = key.prefix();
    let part = |listed: Listed| {
        let name = PartName::from_str(listed.key.strip_prefix(&prefix)?).ok()?;
        Some((name, listed.size))
    };
    Ok(store.list(&prefix).await?.into_iter().filter_map(part).collect())
}

/// What a reader replays: the manifest's parts, then listed ones from `next_seq` on as long as no number is missing.
pub(crate) fn replay_order(
    manifest: &Manifest,
    listed: &[(PartName, u64)],
) -> Vec<(PartName, u64)> {
    let mut order: Vec<(PartName, u64)> =
        manifest.parts.iter().map(|p| (p.name(), p.uploaded_bytes)).collect();
    let mut next = manifest.next_seq;
    for (name, size) in listed {
        if name.seq == next && next <= SEQ_MAX {
            order.push((name.clone(), *size));
            next += 1;
        }
    }
    order
}

/// The manifest's sums.
pub(crate) fn totals(manifest: &Manifest) -> Totals {
    Totals {
        parts: manifest.parts.len() as u64,
        bytes: manifest.parts.iter().fold(0, |sum, p| sum.saturating_add(p.uploaded_bytes)),
        redactions: manifest.redaction_counts.clone(),
        last_stored_at: Some(manifest.last_uploaded_at.clone()).filter(|at| !at.is_empty()),
    }
}
