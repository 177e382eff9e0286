//! One session: its manifest, its listing, and every object that matters, read from the store and compared.
//!
//! A session may grow, be compacted or be named anew while it is looked at, so nothing is complained about that a second look
//! at the manifest does not confirm: inputs of a compaction are deleted only after the manifest does without them. A store that
//! does not answer is said to be just that. Changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use futures_util::stream;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use super::finding::{Findings, PUTS_BACK, REPAIR, finding, unreachable, wrong};
use super::marks::Marks;
use super::shape::{faults, is_behind, named_below};
use crate::api::{Finding, Verifying, Weight};
use crate::mirror::manifest::{range_of, unreadable};
use crate::part::{Manifest, ManifestError, PartEntry, PartName, SessionKey, hex};
use crate::redact::Counts;
use crate::state::Record;
use crate::store::{ErrorKind, Store, StoreError, Version};

/// How often a session is looked at that changes while it is looked at. What was read once is not read again, so that the
/// second look takes a moment.
const LOOKS_MAX: u32 = 8;

/// Objects of one session that the store may fail to give before the others are not asked for.
const FAILURES_MAX: u32 = 3;

/// How often an object is asked for whose bytes break off on their way.
const READS_MAX: u32 = 3;

/// Bytes read at a time.
const PIECE_BYTES: usize = 64 * 1024;

/// Objects that a remote store is asked for at a time: a session of many small parts waits for answers and not for bytes. A few,
/// since sends go on meanwhile, and some stores shed load from a dozen requests on.
const READS_AT_A_TIME: usize = 6;

/// Largest manifest that is read, bytes: as everywhere.
const MANIFEST_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Whom to tell how far the work is.
#[derive(Debug, Clone)]
pub(super) struct Meter {
    pub(super) events: mpsc::Sender<Verifying>,
    pub(super) done_sessions: u64,
    pub(super) total_sessions: u64,
    /// Of the whole run.
    pub(super) done_bytes: Arc<AtomicU64>,
}

impl Meter {
    /// So many more bytes were read.
    pub(super) fn add(&self, bytes: u64) {
        let done_bytes = self.done_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let Meter { done_sessions, total_sessions, .. } = *self;
        // Progress that nobody reads in time is dropped: it is only progress.
        let _ =
            self.events.try_send(Verifying::Working { done_sessions, total_sessions, done_bytes });
    }

    /// An error once nobody waits for the answer any more.
    pub(super) fn is_watched(&self, object: &str) -> Result<(), StoreError> {
        let why = "nobody waits for the answer any more";
        let gone = || StoreError::new(ErrorKind::Unavailable, "get", object, why);
        if self.events.is_closed() { Err(gone()) } else { Ok(()) }
    }
}

/// A session to look at, and what the state knows of it.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) store: Arc<dyn Store>,
    pub(super) key: SessionKey,
    /// `None`: this daemon does not record it.
    pub(super) record: Option<Record>,
    /// This daemon is compacting it.
    pub(super) compacting: bool,
}

/// What an object holds.
#[derive(Debug, Clone)]
pub(super) struct Content {
    pub(super) bytes: u64,
    pub(super) sha256: String,
    /// As the store's note tells it.
    pub(super) range: Option<[u64; 2]>,
    /// By its marks.
    pub(super) redactions: Counts,
}

/// Objects that were read: parts never change, so once is enough. `None`: not there, which may change.
pub(super) type Contents = BTreeMap<PartName, Content>;

/// The manifest as it was got.
#[derive(Debug, PartialEq)]
pub(super) struct Raw {
    pub(super) bytes: Vec<u8>,
    pub(super) version: Option<Version>,
}

/// What was seen of a session.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) raw: Option<Raw>,
    /// If it can be used.
    pub(super) manifest: Option<Manifest>,
    pub(super) listed: Vec<(PartName, u64)>,
    pub(super) findings: Findings,
    /// Parts that are not there or not what they should be: findings tell of the first ones only.
    pub(super) wrong: BTreeSet<PartName>,
}

impl Subject {
    /// Looks until what is seen holds.
    pub(super) async fn examine(&self, contents: &mut Contents, meter: &mut Meter) -> Seen {
        for _ in 0..LOOKS_MAX {
            match self.look(contents, meter).await {
                Ok(Some(seen)) => return seen,
                Ok(None) => {}
                Err(error) => {
                    return Seen { findings: unreachable(&error).into(), ..Seen::default() };
                }
            }
        }
        let message = "could not be checked: it changed again and again while it was looked at";
        let finding = finding("busy", Weight::Unchecked, &self.key.manifest_key(), message);
        Seen { findings: finding.into(), ..Seen::default() }
    }

    /// One look. `None`: there was something to complain about, and the manifest is another one by now.
    async fn look(
        &self,
        contents: &mut Contents,
        meter: &mut Meter,
    ) -> Result<Option<Seen>, StoreError> {
        // The manifest before the listing: what it names is stored, so a listing that lacks it is a complaint.
        let raw = fetch(&*self.store, &self.key.manifest_key()).await?;
        let (listed, foreign) = self.list().await?;
        let mut seen = Seen { raw, listed, ..Seen::default() };
        self.judge_manifest(&mut seen);
        let parts = seen.manifest.as_ref().map(|m| m.parts.clone()).unwrap_or_default();
        let named: BTreeSet<PartName> = parts.iter().map(PartEntry::name).collect();
        let is_unnamed = |name: &&PartName| !named.contains(*name);
        let unnamed: Vec<PartName> =
            seen.listed.iter().map(|(name, _)| name).filter(is_unnamed).cloned().collect();
        let wanted = parts.iter().map(PartEntry::name).chain(unnamed.iter().cloned());
        let unread = self.read(wanted, contents, meter, &mut seen.findings).await?;
        for part in parts.iter().filter(|part| !unread.contains(&part.name())) {
            let fault = self.named_fault(part, contents.get(&part.name()));
            seen.note_part(&part.name(), fault);
        }
        for name in unnamed {
            // What is not there was deleted since it was listed, as a leftover is.
            let Some(content) = contents.get(&name) else { continue };
            let fault = self.unnamed_fault(&seen, &name, content);
            seen.note_part(&name, fault);
        }
        for key in foreign {
            let message = "is neither a part nor a manifest: no reader needs it";
            seen.findings.push(finding("foreign", Weight::Note, &key, message));
        }
        self.confirm(seen).await
    }

    /// What is complained about has to be so when the manifest is read again.
    async fn confirm(&self, mut seen: Seen) -> Result<Option<Seen>, StoreError> {
        if !seen.findings.iter().any(|finding| finding.weight == Weight::Wrong) {
            return Ok(Some(seen));
        }
        let again = fetch(&*self.store, &self.key.manifest_key()).await?;
        if again.as_ref().map(|raw| &raw.bytes) != seen.raw.as_ref().map(|raw| &raw.bytes) {
            return Ok(None);
        }
        if seen.findings.has("leftover") {
            let (listed, _) = self.list().await?;
            let there: BTreeSet<String> =
                listed.iter().map(|(name, _)| self.key.part_key(name)).collect();
            seen.findings.retain(|f| f.code != "leftover" || there.contains(&f.object));
        }
        Ok(Some(seen))
    }

    async fn list(&self) -> Result<(Vec<(PartName, u64)>, Vec<String>), StoreError> {
        let prefix = self.key.prefix();
        let (mut parts, mut foreign) = (Vec::new(), Vec::new());
        for listed in self.store.list(&prefix).await? {
            let name = listed.key.strip_prefix(&prefix).map(PartName::from_str);
            match name {
                Some(Ok(name)) => parts.push((name, listed.size)),
                _ if listed.key == self.key.manifest_key() => {}
                _ => foreign.push(listed.key),
            }
        }
        Ok((parts, foreign))
    }

    fn judge_manifest(&self, seen: &mut Seen) {
        let object = self.key.manifest_key();
        let Some(raw) = &seen.raw else {
            let stored = self.record.as_ref().map_or(0, |record| record.totals.parts);
            let others = self.record.is_none() && !seen.listed.is_empty();
            if stored > 0 && seen.listed.is_empty() {
                let message = "is gone, and all parts of the session with it";
                let parts = if stored == 1 { "part" } else { "parts" };
                let particulars = Some((format!("{stored} {parts}"), "nothing".to_owned()));
                let hint = "`tracecraftctl verify ID --repair` stores it again if its source is still as it was \
                            captured; else restore it from a copy of the bucket";
                seen.findings.push(wrong("session_missing", &object, message, particulars, hint));
            } else if stored > 0 {
                let message = "is gone: the session has parts and no manifest";
                seen.findings.push(wrong("manifest_missing", &object, message, None, REPAIR));
            } else if others {
                let message = "is not there: whoever stored these parts has not named them yet";
                seen.findings.push(finding("manifest_missing", Weight::Note, &object, message));
            }
            return;
        };
        if raw.bytes.len() as u64 > MANIFEST_BYTES_MAX {
            let message = "is larger than any manifest: it is not read, and its session not sent";
            let most = format!("at most {MANIFEST_BYTES_MAX} bytes");
            let particulars = Some((most, "more".to_owned()));
            let hint = "look who put it there; remove it, then `tracecraftctl verify ID --repair` \
                        puts the manifest together anew";
            seen.findings.push(wrong("manifest_large", &object, message, particulars, hint));
            return;
        }
        match Manifest::parse(&self.key, &raw.bytes) {
            Ok(manifest) => {
                let record = self.record.as_ref();
                faults(&self.key, &raw.bytes, &manifest, record, &mut seen.findings);
                seen.manifest = Some(manifest);
            }
            Err(ManifestError::UnknownVersion { found, .. }) => {
                let message = "was written by a newer program: this one cannot check it";
                let known = crate::part::SCHEMA_VERSION;
                let particulars = Some((format!("schema_version {known}"), found.to_string()));
                let hint = "use a newer tracecraftd; nothing was changed";
                seen.findings.push(wrong("manifest_version", &object, message, particulars, hint));
            }
            Err(ManifestError::Invalid { what, .. }) => {
                let message = format!("is not a manifest that can be used: {what}");
                seen.findings.push(wrong("manifest_invalid", &object, &message, None, REPAIR));
            }
        }
    }

    fn named_fault(&self, part: &PartEntry, content: Option<&Content>) -> Option<Finding> {
        let object = self.key.part_key(&part.name());
        let hint = PUTS_BACK;
        let Some(content) = content else {
            let message = "is named by the manifest and not there";
            let particulars =
                Some((format!("{} bytes", part.uploaded_bytes), "nothing".to_owned()));
            return Some(wrong("part_missing", &object, message, particulars, hint));
        };
        if content.bytes != part.uploaded_bytes {
            let message = "has another size than the manifest says";
            let particulars =
                (format!("{} bytes", part.uploaded_bytes), format!("{} bytes", content.bytes));
            return Some(wrong("part_size", &object, message, Some(particulars), hint));
        }
        let says = part.sha256.as_ref().filter(|sha256| **sha256 != content.sha256)?;
        let message = "does not hold the bytes that the manifest says";
        let particulars = (format!("sha256 {says}"), format!("sha256 {}", content.sha256));
        Some(wrong("part_digest", &object, message, Some(particulars), hint))
    }

    fn unnamed_fault(&self, seen: &Seen, name: &PartName, content: &Content) -> Option<Finding> {
        let object = self.key.part_key(name);
        let ours = self.record.as_ref();
        let pending =
            ours.and_then(|record| record.pending.iter().find(|part| part.name() == *name));
        let is_pending = pending.is_some();
        if !content.sha256.starts_with(&name.uuid) {
            let particulars =
                (format!("sha256 {}…", name.uuid), format!("sha256 {}", content.sha256));
            if pending.is_some_and(|part| part.stored_at.is_none()) {
                let message = "does not hold the bytes that its name says yet: it is sent again";
                return Some(finding("unnamed_digest", Weight::Note, &object, message));
            }
            if is_pending || (seen.manifest.is_none() && ours.is_some()) {
                let message = "does not hold the bytes that its name says";
                let particulars = Some(particulars);
                return Some(wrong("part_digest", &object, message, particulars, PUTS_BACK));
            }
            let message =
                "is not what its name says, and not named: the reference tool's, or damaged";
            return Some(finding("unnamed_digest", Weight::Note, &object, message));
        }
        let manifest = seen.manifest.as_ref()?;
        let note = |message| Some(finding("leftover", Weight::Note, &object, message));
        if ours.and_then(|r| r.leaving.as_ref()).is_some_and(|l| l.parts.contains(name)) {
            return note("is a stray: it goes when its copy is named");
        }
        if name.seq >= manifest.next_seq {
            let record = ours.filter(|record| name.seq < named_below(record) && !is_pending)?;
            if !is_behind(manifest, record) {
                let message =
                    "has a number that was given to other content: another writer's stray";
                return Some(finding("stray", Weight::Note, &object, message));
            }
            let message = "is stored, and the manifest no longer names it";
            let says = format!("next_seq {}", manifest.next_seq);
            let numbers = (format!("next_seq {}", named_below(record)), says);
            return Some(wrong("unnamed", &object, message, Some(numbers), REPAIR));
        }
        match ours {
            Some(_) if is_pending => note("is stored and waits to be named"),
            None => note("is not named: a leftover of whoever records this session, or a stray"),
            Some(record) if self.compacting || record.compaction.is_some() => {
                note("is not named (any more): the compaction that is under way sees to it")
            }
            Some(_) => {
                let message = "is not named (any more), a leftover or another writer's: readers that only \
                               list see its records twice";
                let hint =
                    "`tracecraftctl verify ID --repair` deletes it, if named parts hold its bytes";
                Some(wrong("leftover", &object, message, None, hint))
            }
        }
    }

    /// Reads objects that were not read yet; several at a time where each has to be waited for. Which of them the store did not
    /// give is said, and answered.
    async fn read(
        &self,
        names: impl Iterator<Item = PartName>,
        contents: &mut Contents,
        meter: &Meter,
        findings: &mut Findings,
    ) -> Result<BTreeSet<PartName>, StoreError> {
        let unread: Vec<PartName> = names.filter(|name| !contents.contains_key(name)).collect();
        let most = if self.store.is_local() { 1 } else { READS_AT_A_TIME };
        let read = |name: PartName| {
            let (object, store) = (self.key.part_key(&name), self.store.clone());
            read_patiently(store, name, object, meter.clone())
        };
        let mut reads = stream::iter(unread).map(read).buffered(most);
        let (mut failures, mut failed) = (0, BTreeSet::new());
        while let Some((name, content)) = reads.next().await {
            match content {
                Ok(Some(content)) => drop(contents.insert(name, content)),
                Ok(None) => {}
                Err(error) => {
                    excuse(error, &mut failures, findings)?;
                    failed.insert(name);
                }
            }
        }
        Ok(failed)
    }
}

impl Seen {
    fn note_part(&mut self, name: &PartName, fault: Option<Finding>) {
        let Some(fault) = fault else { return };
        if fault.weight == Weight::Wrong && fault.code.starts_with("part_") {
            self.wrong.insert(name.clone());
        }
        self.findings.push(fault);
    }
}

/// Reads an object, again if its bytes break off on their way: that is not asked for again by the store.
async fn read_patiently(
    store: Arc<dyn Store>,
    name: PartName,
    object: String,
    meter: Meter,
) -> (PartName, Result<Option<Content>, StoreError>) {
    let mut reads = 1;
    loop {
        let content = read(&*store, &object, &meter).await;
        let again = |error: &StoreError| error.kind == ErrorKind::Unavailable && reads < READS_MAX;
        if !content.as_ref().is_err_and(again) || meter.events.is_closed() {
            return (name, content);
        }
        reads += 1;
    }
}

/// Reads an object once; `None` when there is none.
async fn read(
    store: &dyn Store,
    object: &str,
    meter: &Meter,
) -> Result<Option<Content>, StoreError> {
    let mut got = match store.get(object).await {
        Ok(got) => got,
        Err(error) if error.kind == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let (mut bytes, mut digest, mut marks) = (0, Sha256::new(), Marks::default());
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        let read = got.reader.read(&mut buffer).await.map_err(|e| unreadable(object, e))?;
        if read == 0 {
            break;
        }
        digest.update(&buffer[..read]);
        marks.take(&buffer[..read]);
        bytes += read as u64;
        meter.add(read as u64);
        meter.is_watched(object)?;
    }
    let (sha256, range) = (hex(&digest.finalize()), range_of(got.note.as_deref()));
    Ok(Some(Content { bytes, sha256, range, redactions: marks.counts }))
}

/// An object that cannot be had is said to be so; when several cannot, the others are not asked for.
fn excuse(
    error: StoreError,
    failures: &mut u32,
    findings: &mut Findings,
) -> Result<(), StoreError> {
    *failures += 1;
    if *failures >= FAILURES_MAX {
        return Err(error);
    }
    findings.push(unreachable(&error));
    Ok(())
}

/// A manifest's bytes, one more than it may have if it is too large; `None` when there is none.
pub(super) async fn fetch(store: &dyn Store, key: &str) -> Result<Option<Raw>, StoreError> {
    let object = match store.get(key).await {
        Ok(object) => object,
        Err(error) if error.kind == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    let limited = object.reader.take(MANIFEST_BYTES_MAX + 1);
    tokio::pin!(limited);
    limited.read_to_end(&mut bytes).await.map_err(|error| unreadable(key, error))?;
    Ok(Some(Raw { bytes, version: object.version }))
}
