//! Mending what a verification found: parts put back, a manifest put together anew, leftovers taken away.
//!
//! Nothing is done on a guess. A part is put back only where its digest says that these are its bytes; a manifest is rebuilt
//! only from parts that were read in this run and follow each other, and the one that it replaces is kept beside the state;
//! what is deleted is held, byte for byte, by named parts. Whoever calls has the session to themselves, so that no send of
//! this process comes between. Killed anywhere in here, the next verification finds what is left to do.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use super::check::{Content, Contents, Meter, Seen, Subject, fetch};
use super::finding::{finding, unreachable};
use super::shape::{is_behind, named_below, named_bytes, summed};
use crate::api::{Finding, Weight};
use crate::durable::Disk;
use crate::mirror::adopt::{AdoptError, Adopter, Held};
use crate::mirror::find::{NewFile, chain};
use crate::mirror::manifest::{self, Header};
use crate::part::{Manifest, PartEntry, PartName, digest_of};
use crate::redact::Counts;
use crate::source::{Cursor, Encoding, Next, Reading};
use crate::state::{Record, Totals};
use crate::store::{Body, StoreError};

/// Largest part that is put back, bytes: it is held in memory. A chunk, some records longer; most merged parts, too.
const PUT_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Findings that a manifest is the matter of.
const OF_MANIFESTS: [&str; 9] = [
    "gap",
    "overlap",
    "manifest_missing",
    "manifest_invalid",
    "manifest_behind",
    "unnamed",
    "totals",
    "next_seq",
    "source_bytes",
];

/// What a repair works with.
#[derive(Debug)]
pub(super) struct Mender {
    pub(super) adopter: Adopter,
    /// Where manifests are kept that are replaced.
    pub(super) aside: PathBuf,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Mended {
    /// What was done, and what could not be.
    pub(super) findings: Vec<Finding>,
    /// What the manifest says in sum, if it was put.
    pub(super) totals: Option<Totals>,
}

impl Mended {
    fn did(&mut self, code: &str, object: &str, message: &str) {
        self.findings.push(finding(code, Weight::Mended, object, message));
    }

    fn could_not(&mut self, code: &str, object: &str, message: &str) {
        self.findings.push(finding(code, Weight::Unchecked, object, message));
    }
}

impl Mender {
    /// Mends what can be mended, then looks again.
    pub(super) async fn mend(
        &self,
        subject: &Subject,
        mut seen: Seen,
        contents: &mut Contents,
        meter: &mut Meter,
    ) -> (Seen, Option<Totals>) {
        let mut mended = Mended::default();
        let Some(record) = &subject.record else { return (seen, None) };
        let done = async {
            self.put_parts_back(subject, record, &seen, contents, &mut mended).await?;
            if seen
                .findings
                .iter()
                .any(|f| f.weight == Weight::Wrong && OF_MANIFESTS.contains(&&*f.code))
            {
                self.rebuild(subject, record, &seen, contents, &mut mended).await?;
            }
            seen = subject.examine(contents, meter).await;
            self.sweep(subject, &seen, &mut mended).await
        };
        match done.await {
            Ok(()) => seen = subject.examine(contents, meter).await,
            Err(error) => {
                seen = subject.examine(contents, meter).await;
                seen.findings.push(unreachable(&error));
            }
        }
        for done in &mended.findings {
            tracing::info!(object = done.object, what = done.message, "repair");
        }
        seen.findings.append(&mut mended.findings);
        (seen, mended.totals)
    }

    /// Named parts that are gone or are not what they should be, from the outbox or the source.
    async fn put_parts_back(
        &self,
        subject: &Subject,
        record: &Record,
        seen: &Seen,
        contents: &mut Contents,
        mended: &mut Mended,
    ) -> Result<(), StoreError> {
        let Some(manifest) = &seen.manifest else { return Ok(()) };
        for part in &manifest.parts {
            let object = subject.key.part_key(&part.name());
            let is_wrong = |f: &&Finding| f.object == object && f.code.starts_with("part_");
            let Some(fault) = seen.findings.iter().find(is_wrong) else { continue };
            let Some((bytes, from)) = self.bytes_of(subject, record, part).await else {
                let message =
                    "was not put back: neither the outbox nor the source has its bytes any more";
                mended.could_not(&fault.code, &object, message);
                continue;
            };
            let note = part.cursor_range.map(manifest::range_note);
            subject.store.put(&object, Body::Bytes(bytes.into()), note.as_deref()).await?;
            contents.remove(&part.name());
            mended.did(&fault.code, &object, &format!("was put back, from {from}"));
        }
        Ok(())
    }

    /// The bytes of a part, proved by its digest, and where they are from.
    async fn bytes_of(
        &self,
        subject: &Subject,
        record: &Record,
        part: &PartEntry,
    ) -> Option<(Vec<u8>, &'static str)> {
        let sha256 = part.sha256.clone().filter(|_| part.uploaded_bytes <= PUT_BYTES_MAX)?;
        let tools = self.adopter.tools.clone();
        let (key, name, record, range) =
            (subject.key.clone(), part.name(), record.clone(), part.cursor_range);
        let found = move || {
            let waiting = tools.outbox.waiting(&*tools.disk).unwrap_or_default();
            let own = waiting.iter().filter(|one| one.key == key && one.name == name);
            for one in own {
                if let Some(bytes) =
                    tools.disk.read(&one.path).ok().filter(|b| digest_of(b) == sha256)
                {
                    return Some((bytes, "the outbox"));
                }
            }
            let is_there = record.encoding != Encoding::Rows && !record.superseded && !record.gone;
            let bytes = from_source(&tools, &record, range.filter(|_| is_there)?)?;
            (digest_of(&bytes) == sha256).then_some((bytes, "its source"))
        };
        self.adopter.blocking.run(found).await
    }

    /// Puts a manifest together from what it still says and the parts that are there.
    async fn rebuild(
        &self,
        subject: &Subject,
        record: &Record,
        seen: &Seen,
        contents: &Contents,
        mended: &mut Mended,
    ) -> Result<(), StoreError> {
        let object = subject.key.manifest_key();
        match self.rebuilt(subject, record, seen, contents).await {
            Err(why) => {
                let message = format!("was not rebuilt: {why}");
                mended.could_not("manifest_unmended", &object, &message);
            }
            Ok((manifest, kept)) if replace(subject, seen, &manifest).await? => {
                let named = manifest.parts.len();
                let message = format!("was rebuilt and names {named} parts{kept}");
                mended.totals = Some(manifest::totals(&manifest));
                mended.did("manifest_rebuilt", &object, &message);
            }
            Ok(_) => {
                let message = "was put, and is another one by now: somebody else writes it";
                mended.could_not("manifest_unmended", &object, message);
            }
        }
        Ok(())
    }

    /// A manifest that may be put, since the one before is kept, and where that is. An `Err` says why there is none.
    async fn rebuilt(
        &self,
        subject: &Subject,
        record: &Record,
        seen: &Seen,
        contents: &Contents,
    ) -> Result<(Manifest, String), String> {
        if record.leaving.is_some() {
            return Err("the session was left to another writer, whose it is".into());
        }
        let old = seen.manifest.clone().or_else(|| legible(seen));
        let old = old.unwrap_or_else(|| Manifest::new(&subject.key));
        let mut entries = self.entries(record, seen, contents, &old)?;
        self.give_ranges(subject, record, seen, &mut entries).await?;
        let manifest = self.manifest(subject, record, old, entries);
        if Manifest::parse(&subject.key, &manifest.to_bytes()).is_err() {
            return Err("its parts do not follow each other".into());
        }
        let Some(raw) = &seen.raw else { return Ok((manifest, String::new())) };
        match self.keep_aside(subject, &raw.bytes).await {
            Ok(path) => Ok((manifest, format!("; the one before is kept as {}", path.display()))),
            Err(error) => Err(format!("it cannot be kept aside: {}", chain(&error))),
        }
    }

    /// The entries of a manifest that is to be put: those that the old one has, if it can be used, and those of parts that it
    /// should name. An `Err` says why they cannot be told.
    fn entries(
        &self,
        record: &Record,
        seen: &Seen,
        contents: &Contents,
        old: &Manifest,
    ) -> Result<Vec<PartEntry>, String> {
        let usable = seen.manifest.as_ref();
        let mut entries = usable.map(|manifest| manifest.parts.clone()).unwrap_or_default();
        for entry in &mut entries {
            if let Some([start, end]) = entry.cursor_range {
                entry.source_bytes = Some(end - start);
            }
        }
        if !lacks_parts(record, seen) {
            return Ok(entries);
        }
        let from = usable.map_or(0, |manifest| manifest.next_seq);
        let wanted = |name: &PartName| name.seq >= from && name.seq < named_below(record);
        for (name, _) in seen.listed.iter().filter(|(name, _)| wanted(name)) {
            let Some(content) = contents.get(name) else { continue };
            let said = old.parts.iter().find(|part| part.name() == *name);
            let entry = entry_of(name, content, said, &self.adopter.now)
                .ok_or_else(|| format!("{name} is not what its name says"))?;
            entries.push(entry);
        }
        if entries.windows(2).any(|pair| pair[0].seq >= pair[1].seq) {
            let why = "two parts have the same number, and which of them counts cannot be told";
            return Err(why.into());
        }
        // The state knows how much was named: what is more is not all this session's.
        let (bytes, had) = (stored_bytes(&entries), named_bytes(record));
        if bytes > had {
            return Err(format!("there are parts of {bytes} bytes, and only {had} were named"));
        }
        Ok(entries)
    }

    /// Says the ranges of entries, as far as they can be known. An `Err` says why these may not be all of the parts.
    async fn give_ranges(
        &self,
        subject: &Subject,
        record: &Record,
        seen: &Seen,
        entries: &mut [PartEntry],
    ) -> Result<(), String> {
        if let Some(ranges) = self.ranges(subject, record, seen, entries).await {
            for (entry, range) in entries.iter_mut().zip(ranges) {
                entry.cursor_range = Some(range);
                entry.source_bytes = Some(range[1] - range[0]);
            }
            return Ok(());
        }
        if seen.findings.iter().any(|f| f.code == "gap" || f.code == "overlap") {
            return Err("its ranges do not abut, and no source tells them".into());
        }
        if !lacks_parts(record, seen) {
            return Ok(());
        }
        // If all of that is there, these are the parts, whatever their ranges are.
        let (bytes, had) = (stored_bytes(entries), named_bytes(record));
        if bytes != had {
            let why = "and no range tells which";
            return Err(format!("its parts have {bytes} bytes, {had} were named, {why}"));
        }
        let intact = seen.manifest.as_ref().map_or(0, |manifest| manifest.parts.len());
        let mut end = match intact.checked_sub(1) {
            Some(last) => entries[last].cursor_range.map(|[_, end]| end),
            None => Some(0),
        };
        for entry in &mut entries[intact..] {
            // Without a mark of a removed secret a part is as long as what it stands for.
            let length = entry.redactions.is_empty().then_some(entry.uploaded_bytes);
            let range = end.zip(length).map(|(start, length)| [start, start + length]);
            entry.cursor_range = range;
            entry.source_bytes = range.map(|[start, end]| end - start);
            end = range.map(|[_, end]| end);
        }
        Ok(())
    }

    /// The ranges of parts that abut from 0 on: as they say themselves, else as the source says.
    async fn ranges(
        &self,
        subject: &Subject,
        record: &Record,
        seen: &Seen,
        entries: &[PartEntry],
    ) -> Option<Vec<[u64; 2]>> {
        let told: Option<Vec<[u64; 2]>> = entries.iter().map(|entry| entry.cursor_range).collect();
        let abut = |ranges: &Vec<[u64; 2]>| {
            ranges.first().is_none_or(|[start, _]| *start == 0)
                && ranges.windows(2).all(|pair| pair[0][1] == pair[1][0])
        };
        if let Some(ranges) = told.filter(abut) {
            return Some(ranges);
        }
        if record.encoding == Encoding::Rows || record.superseded || record.gone {
            return None;
        }
        let unplaced = |entry: &PartEntry| PartEntry { cursor_range: None, ..entry.clone() };
        let unnamed = entries.iter().map(unplaced).collect();
        let (key, nothing) = (subject.key.clone(), Manifest::new(&subject.key));
        let held = Held::of(key, nothing, seen.listed.clone(), unnamed);
        let (files, path) = (self.adopter.tools.files.clone(), record.source.clone());
        let stat = self.adopter.blocking.run(move || files.stat(&path)).await.ok()?;
        let walked = self.adopter.follow(&NewFile::of_record(record, stat), &held).await;
        Some(walked.ok()?.ok()?.unnamed)
    }

    fn manifest(
        &self,
        subject: &Subject,
        record: &Record,
        old: Manifest,
        entries: Vec<PartEntry>,
    ) -> Manifest {
        let key = &subject.key;
        let mut manifest = Manifest {
            schema_version: crate::part::SCHEMA_VERSION,
            harness: key.harness().to_owned(),
            session_id: key.id().to_owned(),
            generation: key.generation(),
            parts: entries,
            ..old
        };
        manifest.total_uploaded_bytes = manifest.bytes();
        manifest.total_source_bytes =
            manifest.parts.iter().filter_map(|part| part.source_bytes).sum();
        if let Some((_, redactions)) = summed(&manifest) {
            manifest.redaction_counts = redactions;
        }
        let after_last = manifest.parts.last().map_or(0, |part| part.seq + 1);
        // Numbers are never given twice; what is pending is named by the next send.
        manifest.next_seq = after_last.max(named_below(record));
        if let Some(at) = &record.totals.last_stored_at {
            manifest.last_uploaded_at.clone_from(at);
        }
        let rules = self.adopter.tools.redactor.rules_version();
        Header::new(record, rules, &self.adopter.now).apply(key, &mut manifest);
        manifest
    }

    /// Keeps a manifest that is about to be replaced; the same one is kept once.
    async fn keep_aside(&self, subject: &Subject, bytes: &[u8]) -> std::io::Result<PathBuf> {
        let name = format!("meta-{}.json", &digest_of(bytes)[..8]);
        let path = self.aside.join(subject.key.harness()).join(subject.key.id()).join(name);
        let (disk, to, bytes): (Arc<dyn Disk>, _, _) =
            (self.adopter.tools.disk.clone(), path.clone(), bytes.to_vec());
        self.adopter
            .blocking
            .run(move || {
                to.parent().map_or(Ok(()), |folder| disk.create_dirs(folder))?;
                disk.replace(&to, &bytes)
            })
            .await?;
        Ok(path)
    }

    /// Takes leftovers away whose bytes named parts hold, once all of these were read and are as they should be.
    async fn sweep(
        &self,
        subject: &Subject,
        seen: &Seen,
        mended: &mut Mended,
    ) -> Result<(), StoreError> {
        let wrong = |f: &&Finding| f.weight != Weight::Note;
        let only_leftovers = seen.findings.iter().filter(wrong).all(|f| f.code == "leftover");
        let leftovers: Vec<&Finding> =
            seen.findings.iter().filter(wrong).filter(|f| f.code == "leftover").collect();
        let Some(manifest) = seen.manifest.as_ref().filter(|_| !leftovers.is_empty()) else {
            return Ok(());
        };
        if !only_leftovers {
            let message = "leftovers stay before all else is mended";
            mended.could_not("leftover", &subject.key.prefix(), message);
            return Ok(());
        }
        match self.adopter.sweep_leftovers(&subject.key, manifest, &seen.listed).await {
            Ok(_) => {}
            Err(AdoptError::Store(manifest::Failure::Store(error))) => return Err(error),
            Err(error) => {
                mended.could_not("leftover", &subject.key.prefix(), &chain(&error));
                return Ok(());
            }
        }
        for leftover in leftovers {
            if subject.store.size(&leftover.object).await?.is_none() {
                mended.did("leftover", &leftover.object, "was deleted: named parts hold its bytes");
            } else {
                let message = "was left alone: the named parts do not hold its bytes";
                mended.could_not("leftover", &leftover.object, message);
            }
        }
        Ok(())
    }
}

/// Whether the manifest lacks parts that it once named.
fn lacks_parts(record: &Record, seen: &Seen) -> bool {
    seen.manifest.as_ref().is_none_or(|manifest| is_behind(manifest, record))
}

fn stored_bytes(entries: &[PartEntry]) -> u64 {
    entries.iter().map(|entry| entry.uploaded_bytes).sum()
}

/// Puts a manifest over the one that was seen, and reads it back. `false`: it is another one.
async fn replace(subject: &Subject, seen: &Seen, manifest: &Manifest) -> Result<bool, StoreError> {
    let (object, bytes) = (subject.key.manifest_key(), manifest.to_bytes());
    match &seen.raw {
        // A store that tells no versions cannot be asked to compare them.
        Some(raw) if raw.version.is_none() => {
            subject.store.put(&object, Body::Bytes(bytes.clone().into()), None).await?;
        }
        raw => {
            let version = raw.as_ref().and_then(|raw| raw.version.as_ref());
            subject.store.swap(&object, bytes.clone().into(), version).await?;
        }
    }
    Ok(fetch(&*subject.store, &object).await?.is_some_and(|raw| raw.bytes == bytes))
}

/// What can be read of a manifest that cannot be trusted: each entry is compared with its part before it counts.
fn legible(seen: &Seen) -> Option<Manifest> {
    let value: Value = serde_json::from_slice(&seen.raw.as_ref()?.bytes).ok()?;
    serde_json::from_value(value).ok()
}

/// The entry of a part that is there; what the old manifest says of it counts where it fits. `None`: it may be damaged, since
/// neither its name nor the manifest says that these are its bytes.
fn entry_of(
    name: &PartName,
    content: &Content,
    said: Option<&PartEntry>,
    now: &str,
) -> Option<PartEntry> {
    let fits = |entry: &&PartEntry| {
        let length = entry.cursor_range.map(|[start, end]| end.checked_sub(start));
        entry.uploaded_bytes == content.bytes
            && entry.sha256.as_ref().is_none_or(|says| *says == content.sha256)
            && length.is_none_or(|length| length.is_some() && length == entry.source_bytes)
    };
    if let Some(entry) = said.filter(fits) {
        return Some(entry.clone());
    }
    let sha256 = Some(content.sha256.clone()).filter(|sha256| sha256.starts_with(&name.uuid))?;
    let range = content.range;
    Some(PartEntry {
        seq: name.seq,
        uuid: name.uuid.clone(),
        cursor_range: range,
        source_bytes: range.map(|[start, end]| end - start),
        uploaded_bytes: content.bytes,
        redactions: content.redactions.clone(),
        uploaded_at: now.to_owned(),
        compacted_from: None,
        sha256: Some(sha256),
        other: serde_json::Map::new(),
    })
}

/// What a source holds in a range, redacted as it is redacted now. `None`: it is not to be had.
fn from_source(
    tools: &crate::mirror::capture::Tools,
    record: &Record,
    [start, end]: [u64; 2],
) -> Option<Vec<u8>> {
    let stat = tools.files.stat(&record.source).ok()?;
    let cursor = Cursor::start(stat);
    let opened = Reading::open(&*tools.files, &record.source, record.encoding, &cursor);
    let mut reading = opened.ok()?.ok()?;
    let (mut at, mut redacted) = (0, Vec::new());
    while at < end {
        let until = if at < start { start } else { end };
        let Next::Chunk(chunk) = reading.next_until(until).ok()? else { return None };
        at = chunk.cursor.offset;
        if chunk.start >= start {
            let redactor = &tools.redactor;
            redactor.redact(&chunk.context, &chunk.bytes, &mut redacted, &mut Counts::new());
        }
        if redacted.len() as u64 > PUT_BYTES_MAX {
            return None;
        }
    }
    Some(redacted)
}
