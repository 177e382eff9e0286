//! Reading and writing a session's `meta.json` in the store: read, modify, write; entries of others are kept.
//!
//! Somebody else may write it too: another recorder, or the reference tool. Where the store honours conditions a write that
//! was overtaken is refused and done again on what is there now; elsewhere it is noticed when the manifest is next read. Knows
//! the store and the manifest; knows nothing of sources or of the state.

use std::str::FromStr;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use super::contents::Contents;
use crate::part::{Manifest, ManifestError, PartEntry, PartName, SEQ_MAX, SessionKey};
use crate::redact::Counts;
use crate::source::database::About;
use crate::state::{Record, Totals};
use crate::store::{Body, Conditions, ErrorKind, Listed, Store, StoreError, Version};

/// Largest manifest that is read, bytes: a session of 100,000 parts has about 40 MB. More is hostile.
const MANIFEST_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Writes of one manifest that another writer may overtake before its session waits: each one means that somebody else came
/// through, so two writers get there long before.
const SWAPS_MAX: u32 = 8;

/// The longest wait after the first write that was overtaken, growing with each one: two writers must not keep step.
const OVERTAKEN_WAIT: Duration = Duration::from_millis(200);

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
    /// Another writer's parts stand where this one's should.
    #[error("part {seq} of {key} cannot be named: another writer's parts are in its place")]
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
    about: Option<Box<About>>,
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

    /// Has a manifest say it.
    pub(super) fn apply(&self, key: &SessionKey, manifest: &mut Manifest) {
        manifest.source_path = Some(self.source_path.clone());
        manifest.cwd = self.cwd.clone().or(manifest.cwd.take());
        if let Some(about) = &self.about {
            let About { title, model, parent, git_branch, end_reason, ended_at: _ } =
                (**about).clone();
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

/// A manifest as it was got, with the version that a swap of it has to name. Whoever changes it takes it: it may be large, and
/// a digest is enough to know it again.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) manifest: Option<Manifest>,
    /// Of what is there; `None`: nothing is.
    digest: Option<[u8; 32]>,
    version: Option<Version>,
}

/// The manifest of a session, `None` when there is none.
pub(crate) async fn read(store: &dyn Store, key: &SessionKey) -> Result<Option<Manifest>, Failure> {
    Ok(see(store, key).await?.manifest)
}

/// The manifest of a session, to be changed and written.
pub(crate) async fn see(store: &dyn Store, key: &SessionKey) -> Result<Seen, Failure> {
    let name = key.manifest_key();
    let object = match store.get(&name).await {
        Ok(object) => object,
        Err(e) if e.kind == ErrorKind::NotFound => {
            return Ok(Seen { manifest: None, digest: None, version: None });
        }
        Err(e) => return Err(e.into()),
    };
    let mut bytes = Vec::new();
    let limited = object.reader.take(MANIFEST_BYTES_MAX + 1);
    tokio::pin!(limited);
    limited.read_to_end(&mut bytes).await.map_err(|e| unreadable(&name, e))?;
    if bytes.len() as u64 > MANIFEST_BYTES_MAX {
        let what = format!("larger than {MANIFEST_BYTES_MAX} bytes");
        return Err(ManifestError::Invalid { key: name, what }.into());
    }
    let manifest = Manifest::parse(key, &bytes)?;
    drop(bytes);
    let digest = Some(Sha256::digest(manifest.to_bytes()).into());
    Ok(Seen { manifest: Some(manifest), digest, version: object.version })
}

/// Writes a manifest over the one that was seen. `false`: another writer was faster; after a wait, see it again. One that
/// says nothing new is only made sure of: an earlier write, whose answer was lost, may have put it.
pub(crate) async fn write(
    store: &dyn Store,
    key: &SessionKey,
    seen: &Seen,
    manifest: &Manifest,
    number: u32,
) -> Result<bool, StoreError> {
    let name = key.manifest_key();
    let bytes = manifest.to_bytes();
    let digest: [u8; 32] = Sha256::digest(&bytes).into();
    if seen.digest == Some(digest) {
        return store.persist(&name).await.map(|()| true);
    }
    // Seeded with what is written, which two writers do not share.
    let seed = digest.iter().take(8).fold(0, |n, byte| n << 8 | u64::from(*byte));
    let written = match (&seen.digest, &seen.version) {
        // A store that tells no versions cannot be asked to compare them.
        (Some(_), None) => store.put(&name, Body::Bytes(bytes.into()), None).await,
        (_, version) => store.swap(&name, bytes.into(), version.as_ref()).await,
    };
    match written {
        Ok(()) => Ok(true),
        Err(e) if e.kind == ErrorKind::Changed && number < SWAPS_MAX => {
            let longest = OVERTAKEN_WAIT * number;
            tokio::time::sleep(longest.mul_f64(fastrand::Rng::with_seed(seed).f64())).await;
            Ok(false)
        }
        Err(e) => Err(e),
    }
}

/// Whether a write that the store accepted may have been done over somebody else's all the same, or be overwritten by a
/// write that was begun before it. The local store has this too, for the few milliseconds between its read and its rename.
pub(crate) fn may_be_overwritten(store: &dyn Store) -> bool {
    !store.is_local() && store.conditions() != Conditions::Honoured
}

/// What a manifest says after its parts were named.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) manifest: Manifest,
    /// Parts below this number were found named when it was read; the others were named just now.
    pub(crate) found_below: u32,
}

/// Names stored parts in the manifest and says what the header says, if there is one. Doing it twice is doing it once.
/// `before` is how many bytes this writer knows to be named before them, where it knows.
pub(crate) async fn name_parts(
    store: &dyn Store,
    key: &SessionKey,
    header: Option<&Header>,
    before: Option<u64>,
    parts: &[PartEntry],
) -> Result<Named, Failure> {
    let mut number = 1;
    loop {
        let mut seen = see(store, key).await?;
        let mut manifest = match seen.manifest.take() {
            Some(manifest) => manifest,
            None if header.is_some_and(|h| h.had_parts) => rebuild(store, key, parts).await?,
            None => Manifest::new(key),
        };
        let merged = match before {
            Some(before) => merged_since(store, key, &manifest, before, parts).await?,
            None => 0,
        };
        let mut found_below = None;
        for part in &parts[merged..] {
            let named = manifest.parts.len();
            if !manifest.name_part(part.clone()) {
                return Err(Failure::Conflict { key: key.clone(), seq: part.seq });
            }
            if manifest.parts.len() > named {
                found_below.get_or_insert(part.seq);
            }
        }
        // Numbers are never given twice, also where somebody's merge has forgotten which were.
        if let Some(last) = parts.last() {
            manifest.next_seq = manifest.next_seq.max(last.seq + 1);
        }
        if let Some(header) = header {
            header.apply(key, &mut manifest);
        }
        if write(store, key, &seen, &manifest, number).await? {
            sweep_merged(store, key, &manifest, &parts[..merged]).await?;
            let found_below = found_below.unwrap_or(manifest.next_seq);
            return Ok(Named { manifest, found_below });
        }
        number += 1;
    }
}

/// Deletes parts whose bytes a merged one was seen to hold: a put whose answer was lost may have been done again since.
async fn sweep_merged(
    store: &dyn Store,
    key: &SessionKey,
    manifest: &Manifest,
    merged: &[PartEntry],
) -> Result<(), StoreError> {
    for part in merged {
        if manifest.parts.iter().any(|named| named.name() == part.name()) {
            continue;
        }
        match store.delete(&key.part_key(&part.name())).await {
            Err(e) if e.kind == ErrorKind::Denied => break, // Readers by listing see it twice.
            other => other?,
        }
    }
    Ok(())
}

/// How many of these parts, from the first on, somebody has merged into what the manifest names. The reference tool merges
/// whatever it finds listed, also what no manifest named yet, and says no range: the bytes themselves have to tell.
async fn merged_since(
    store: &dyn Store,
    key: &SessionKey,
    manifest: &Manifest,
    before: u64,
    parts: &[PartEntry],
) -> Result<usize, Failure> {
    let Some(first) = parts.first() else { return Ok(0) };
    let start = first.cursor_range.map_or(0, |[start, _]| start);
    let may_hold = |part: &PartEntry| {
        part.compacted_from.is_some() && part.cursor_range.is_none_or(|[_, end]| end > start)
    };
    let total = manifest.bytes();
    if !manifest.parts.iter().any(may_hold) || total == before {
        return Ok(0);
    }
    let conflict = |seq| Failure::Conflict { key: key.clone(), seq };
    if total < before {
        return Err(conflict(first.seq));
    }
    let mut contents = Contents::new(store, key, manifest, before);
    let (mut at, mut merged) = (before, 0);
    for part in parts {
        if at == total {
            break;
        }
        let digest = contents.digest_of(part.uploaded_bytes).await?;
        if digest.is_none() || digest != part.sha256 {
            return Err(conflict(part.seq));
        }
        at += part.uploaded_bytes;
        merged += 1;
    }
    Ok(merged)
}

pub(super) fn unreadable(name: &str, error: std::io::Error) -> StoreError {
    StoreError::new(ErrorKind::Unavailable, "get", name, error)
}

/// A manifest that somebody deleted, from the parts that are listed below those that are to be named. Their ranges are not
/// known any more.
async fn rebuild(
    store: &dyn Store,
    key: &SessionKey,
    parts: &[PartEntry],
) -> Result<Manifest, Failure> {
    let mut manifest = Manifest::new(key);
    let own = parts.first().map_or(u32::MAX, |part| part.seq);
    for (name, size) in list_parts(store, key).await? {
        if name.seq >= own {
            break;
        }
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

/// What a reader replays: the chain of the manifest's parts, then listed ones from `next_seq` on as long as no number is missing
/// and none was given twice: of two writers' parts only the manifest can say which one it is.
pub(crate) fn replay_order(
    manifest: &Manifest,
    listed: &[(PartName, u64)],
) -> Vec<(PartName, u64)> {
    let named = manifest.chain().into_iter().map(|link| link.part);
    let mut order: Vec<(PartName, u64)> = named.map(|p| (p.name(), p.uploaded_bytes)).collect();
    let beyond = listed.partition_point(|(name, _)| name.seq < manifest.next_seq);
    let mut next = manifest.next_seq;
    let mut rest = listed[beyond..].iter().peekable();
    while let Some((name, size)) = rest.next() {
        let twice = rest.peek().is_some_and(|(other, _)| other.seq == name.seq);
        if name.seq != next || next > SEQ_MAX || twice {
            break;
        }
        order.push((name.clone(), *size));
        next += 1;
    }
    order
}

/// As [`replay_order`], but for what begins elsewhere than where the one before it ends, as far as notes tell: that is another
/// writer's.
pub(crate) async fn read_order(
    store: &dyn Store,
    key: &SessionKey,
    manifest: &Manifest,
    listed: &[(PartName, u64)],
) -> Result<Vec<(PartName, u64)>, StoreError> {
    let mut order = replay_order(manifest, listed);
    let mut end = manifest.end();
    for at in manifest.parts.len()..order.len() {
        let object = store.get(&key.part_key(&order[at].0)).await?;
        let range = range_of(object.note.as_deref());
        if range.is_some_and(|[start, _]| end.is_some_and(|end| end != start)) {
            order.truncate(at);
            break;
        }
        end = range.map(|[_, end]| end);
    }
    Ok(order)
}

/// The note of a part: its range, so that a reader of the objects alone knows it.
pub(crate) fn range_note([start, end]: [u64; 2]) -> String {
    format!("{start}-{end}")
}

/// Deletes an object whose bytes the named parts hold. Another recorder may be about to name it and to delete those parts: two
/// that merge the same parts give the result one name. So the manifest is read again behind the delete, and what it names by
/// now, or what cannot be told, is put back.
pub(crate) async fn delete_unnamed(
    store: &dyn Store,
    key: &SessionKey,
    name: &PartName,
    content: Body,
    range: Option<[u64; 2]>,
) -> Result<(), Failure> {
    let object = key.part_key(name);
    store.delete(&object).await?;
    let seen = read(store, key).await;
    let names = |m: &Manifest| m.parts.iter().any(|part| part.name() == *name);
    if seen.as_ref().map_or(true, |manifest| manifest.as_ref().is_some_and(names)) {
        store.put(&object, content, range.map(range_note).as_deref()).await?;
    }
    seen.map(drop)
}

/// The range that a part's note tells, if it tells one.
pub(crate) fn range_of(note: Option<&str>) -> Option<[u64; 2]> {
    let (start, end) = note?.split_once('-')?;
    let range = [start.parse().ok()?, end.parse().ok()?];
    (range[0] <= range[1]).then_some(range)
}

/// The manifest's sums.
pub(crate) fn totals(manifest: &Manifest) -> Totals {
    Totals {
        parts: manifest.parts.len() as u64,
        bytes: manifest.bytes(),
        redactions: manifest.redaction_counts.clone(),
        last_stored_at: Some(manifest.last_uploaded_at.clone()).filter(|at| !at.is_empty()),
        mergeable: 0,
    }
}
