//! Mending what a verification found: parts put back, a manifest put together anew, leftovers taken away.
//!
//! Nothing is done on a guess. A part is put back only where its digest says that these are its bytes; a manifest is rebuilt
//! only if its parts are all bytes that were named ([`super::cover`]), and the one that it replaces is kept beside the state;
//! what is deleted is held, byte for byte, by named parts. Whoever calls has the session to themselves, so that no send of
//! this process comes between. Killed anywhere in here, the next verification finds what is left to do.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use super::check::{Contents, Meter, Seen, Subject, fetch};
use super::cover::place;
use super::finding::{Findings, finding, unreachable};
use super::restore::sourceless;
use super::shape::{is_behind, is_own, named_below, named_bytes, summed};
use crate::api::{Finding, Weight};
use crate::durable::Disk;
use crate::mirror::adopt::{AdoptError, Adopter, Held};
use crate::mirror::contents::COMPARED_BYTES_MAX;
use crate::mirror::find::{NewFile, chain};
use crate::mirror::manifest::{self, Header};
use crate::part::{Manifest, PartEntry, PartName, digest_of};
use crate::state::{PendingPart, Record, Totals};
use crate::store::{Body, ErrorKind, StoreError};

/// Findings that a manifest is the matter of.
const OF_MANIFESTS: [&str; 11] = [
    "gap",
    "overlap",
    "session_missing",
    "manifest_foreign",
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
    pub(super) findings: Findings,
    /// What the manifest says in sum, if it was put.
    pub(super) totals: Option<Totals>,
}

impl Mended {
    pub(super) fn did(&mut self, code: &str, object: &str, message: &str) {
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
            self.put_parts_back((subject, record), &mut seen, contents, meter, &mut mended).await?;
            let is_of_manifest =
                |f: &Finding| f.weight == Weight::Wrong && OF_MANIFESTS.contains(&&*f.code);
            if seen.findings.iter().any(is_of_manifest) {
                // On the heap: it holds two manifests and a source, and is seldom asked for.
                Box::pin(self.rebuild(subject, record, &seen, contents, meter, &mut mended))
                    .await?;
            }
            seen = subject.examine(contents, meter).await;
            self.sweep(subject, record, &seen, &mut mended).await
        };
        match done.await {
            Ok(()) => seen = subject.examine(contents, meter).await,
            Err(error) => {
                seen = subject.examine(contents, meter).await;
                seen.findings.push(unreachable(&error));
            }
        }
        for done in mended.findings.iter() {
            tracing::info!(object = done.object, what = done.message, "repair");
        }
        seen.findings.absorb(mended.findings);
        (seen, mended.totals)
    }

    /// Named parts that are gone or are not what they should be, and those that wait to be named, from the outbox or the source.
    async fn put_parts_back(
        &self,
        (subject, record): (&Subject, &Record),
        seen: &mut Seen,
        contents: &mut Contents,
        meter: &Meter,
        mended: &mut Mended,
    ) -> Result<(), StoreError> {
        let own = seen.manifest.as_ref().filter(|manifest| is_own(&subject.key, manifest));
        let named = own.into_iter().flat_map(|manifest| manifest.parts.iter().cloned());
        let pending = record.pending.iter().filter(|part| part.stored_at.is_some());
        let lost: BTreeMap<PartName, PartEntry> = named
            .chain(pending.map(PendingPart::entry))
            .map(|part| (part.name(), part))
            .filter(|(name, _)| seen.wrong.contains(name))
            .collect();
        let codes: HashMap<String, String> =
            seen.findings.iter().map(|f| (f.object.clone(), f.code.clone())).collect();
        let lost = lost.into_values().collect();
        for (part, found) in Box::pin(self.put_again(subject, record, lost, meter)).await? {
            let object = subject.key.part_key(&part.name());
            let code = codes.get(&object).map_or("part_missing", String::as_str);
            match found {
                Ok(from) => {
                    seen.wrong.remove(&part.name());
                    contents.remove(&part.name());
                    mended.did(code, &object, &format!("was put back, {from}"));
                }
                Err(why) => {
                    let message = format!("was not put back: {why}");
                    mended.could_not(code, &object, &message);
                }
            }
        }
        Ok(())
    }

    /// Puts a manifest together from what it still says and the parts that are there.
    async fn rebuild(
        &self,
        subject: &Subject,
        record: &Record,
        seen: &Seen,
        contents: &mut Contents,
        meter: &Meter,
        mended: &mut Mended,
    ) -> Result<(), StoreError> {
        let object = subject.key.manifest_key();
        match Box::pin(self.rebuilt((subject, record), seen, contents, meter, mended)).await {
            Err(why) => {
                let message = format!("was not rebuilt: {why}");
                mended.could_not("manifest_unmended", &object, &message);
            }
            Ok((manifest, kept)) if replace(subject, seen, &manifest).await? => {
                let named = manifest.parts.len();
                let parts = if named == 1 { "part" } else { "parts" };
                let message = format!("was rebuilt and names {named} {parts}{kept}");
                mended.totals = Some(manifest::totals(&manifest));
                mended.did("manifest_rebuilt", &object, &message);
            }
            Ok(_) => {
                let message =
                    "was not rebuilt: it is another one by now, since somebody else writes it";
                mended.could_not("manifest_unmended", &object, message);
            }
        }
        Ok(())
    }

    /// A manifest that may be put, since the one before is kept, and where that is. An `Err` says why there is none.
    async fn rebuilt(
        &self,
        (subject, record): (&Subject, &Record),
        seen: &Seen,
        contents: &mut Contents,
        meter: &Meter,
        mended: &mut Mended,
    ) -> Result<(Manifest, String), String> {
        let beyond =
            seen.manifest.as_ref().is_some_and(|manifest| manifest.bytes() > named_bytes(record));
        if record.leaving.is_some() || record.superseded && beyond {
            return Err("the session was left to another writer, whose it is".into());
        }
        let usable = seen.manifest.as_ref().filter(|manifest| is_own(&subject.key, manifest));
        let legible = || legible(seen).filter(|manifest| is_own(&subject.key, manifest));
        let old = usable.cloned().or_else(legible);
        let old = old.unwrap_or_else(|| Manifest::new(&subject.key));
        let entries = match usable.filter(|manifest| !is_behind(manifest, record)) {
            Some(manifest) => self.corrected((subject, record), seen, manifest).await?,
            None => {
                let both = (usable, &old);
                self.covered((subject, record), seen, both, contents, meter, mended).await?
            }
        };
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

    /// The entries of a manifest that names all that it should, and does not agree with itself.
    async fn corrected(
        &self,
        (subject, record): (&Subject, &Record),
        seen: &Seen,
        manifest: &Manifest,
    ) -> Result<Vec<PartEntry>, String> {
        if manifest.parts.iter().any(|part| seen.wrong.contains(&part.name())) {
            return Err("parts that it names are to be put right first".into());
        }
        let mut entries = manifest.parts.clone();
        for entry in &mut entries {
            if let Some([start, end]) = entry.cursor_range {
                entry.source_bytes = Some(end - start);
            }
        }
        let intact = entries.len();
        self.give_ranges((subject, record), seen, &mut entries, intact).await?;
        Ok(entries)
    }

    /// Says the ranges of all parts, of which the first ones are of a manifest that can be used, as far as they can be known. An
    /// `Err` says why these may not be the parts.
    pub(super) async fn give_ranges(
        &self,
        (subject, record): (&Subject, &Record),
        seen: &Seen,
        entries: &mut [PartEntry],
        intact: usize,
    ) -> Result<(), String> {
        if let Some(ranges) = self.ranges(subject, record, seen, entries).await {
            place(entries, ranges);
            return Ok(());
        }
        if seen.findings.has("gap") || seen.findings.has("overlap") {
            return Err("its ranges do not abut, and no source tells them".into());
        }
        // All of the parts are there, whatever their ranges are.
        let mut end = match intact.checked_sub(1) {
            Some(last) => entries[last].cursor_range.map(|[_, end]| end),
            None => Some(0),
        };
        for entry in &mut entries[intact..] {
            // Without a mark of a removed secret a part is as long as what it stands for.
            let length = entry.redactions.is_empty().then_some(entry.uploaded_bytes);
            let reckoned = end.zip(length).map(|(start, length)| [start, start + length]);
            let range = entry.cursor_range.or(reckoned);
            entry.cursor_range = range;
            entry.source_bytes = range.map(|[start, end]| end - start);
            end = range.map(|[_, end]| end);
        }
        Ok(())
    }

    /// The ranges of parts that abut from 0 on: as they say themselves, else as the source says.
    pub(super) async fn ranges(
        &self,
        subject: &Subject,
        record: &Record,
        seen: &Seen,
        entries: &[PartEntry],
    ) -> Option<Vec<[u64; 2]>> {
        let told: Option<Vec<[u64; 2]>> = entries.iter().map(|entry| entry.cursor_range).collect();
        // A later generation may begin where an earlier one was left.
        let begins = |ranges: &[[u64; 2]]| {
            subject.key.generation() > 1 || ranges.first().is_none_or(|[start, _]| *start == 0)
        };
        if let Some(ranges) = told.filter(|ranges| abut(ranges) && begins(ranges)) {
            return Some(ranges);
        }
        if sourceless(record).is_some() {
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
        let (key, given) = (&subject.key, old.next_seq);
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
        manifest.next_seq = after_last.max(named_below(record)).max(given);
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
        record: &Record,
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
        // What waits to be named is no leftover, whoever else has its number.
        let pending: BTreeSet<PartName> = record.pending.iter().map(PendingPart::name).collect();
        let mut listed = seen.listed.clone();
        listed.retain(|(name, _)| !pending.contains(name));
        match self.adopter.sweep_leftovers(&subject.key, manifest, &listed).await {
            Ok(_) => {}
            Err(AdoptError::Store(manifest::Failure::Store(error))) => return Err(error),
            Err(error) => {
                mended.could_not("leftover", &subject.key.prefix(), &chain(&error));
                return Ok(());
            }
        }
        for leftover in leftovers {
            let why = match subject.store.size(&leftover.object).await? {
                None => {
                    let message = "was deleted: named parts hold its bytes";
                    mended.did("leftover", &leftover.object, message);
                    continue;
                }
                Some(bytes) if bytes > COMPARED_BYTES_MAX => "it is too large to be compared",
                Some(_) if !are_known(manifest) => {
                    "it was not compared, since not all named parts say their ranges"
                }
                Some(_) => "the named parts do not hold its bytes",
            };
            mended.could_not("leftover", &leftover.object, &format!("was left alone: {why}"));
        }
        Ok(())
    }
}

fn abut(ranges: &[[u64; 2]]) -> bool {
    ranges.windows(2).all(|pair| pair[0][1] == pair[1][0])
}

/// Whether named parts say that they hold everything from 0 on: then leftovers are compared with them.
fn are_known(manifest: &Manifest) -> bool {
    let told: Option<Vec<[u64; 2]>> =
        manifest.parts.iter().map(|entry| entry.cursor_range).collect();
    told.is_some_and(|ranges| abut(&ranges) && ranges.first().is_some_and(|[start, _]| *start == 0))
}

/// Puts a manifest over the one that was seen, if it is still there, and reads it back. `false`: it is another one.
async fn replace(subject: &Subject, seen: &Seen, manifest: &Manifest) -> Result<bool, StoreError> {
    let (object, bytes) = (subject.key.manifest_key(), manifest.to_bytes());
    // Minutes may have passed since it was seen, and not every store asks for the condition of a put.
    let now = fetch(&*subject.store, &object).await?;
    if now.as_ref().map(|raw| &raw.bytes) != seen.raw.as_ref().map(|raw| &raw.bytes) {
        return Ok(false);
    }
    let put = match &now {
        // A store that tells no versions cannot be asked to compare them.
        Some(raw) if raw.version.is_none() => {
            subject.store.put(&object, Body::Bytes(bytes.clone().into()), None).await
        }
        raw => {
            let version = raw.as_ref().and_then(|raw| raw.version.as_ref());
            subject.store.swap(&object, bytes.clone().into(), version).await
        }
    };
    match put {
        Err(error) if error.kind == ErrorKind::Changed => return Ok(false),
        put => put?,
    }
    Ok(fetch(&*subject.store, &object).await?.is_some_and(|raw| raw.bytes == bytes))
}

/// What can be read of a manifest that cannot be trusted: each entry is compared with its part before it counts.
fn legible(seen: &Seen) -> Option<Manifest> {
    let value: Value = serde_json::from_slice(&seen.raw.as_ref()?.bytes).ok()?;
    serde_json::from_value(value).ok()
}
