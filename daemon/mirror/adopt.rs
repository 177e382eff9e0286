//! Continuing a session that the store knows and the state does not: after a lost state, or one that another writer began.
//!
//! What is stored is walked along the source until both agree to the end ([`walk`]); then capture goes on from there. Where they
//! disagree the source was rewritten, and the next generation begins. Parts that still wait in the outbox are taken along.
//! A failure to read the store is an error to be tried again, never "nothing there".

mod same;
#[cfg(test)]
mod tests;
mod waiting;
mod walk;

use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use self::walk::Walked;
use crate::durable::Blocking;
use crate::harness::{Candidate, Facts, Standing};
use crate::mirror::capture::Tools;
use crate::mirror::contents::{self, Leftovers};
use crate::mirror::find::NewFile;
use crate::mirror::manifest::{self, Failure};
use crate::outbox::Waiting;
use crate::part::{Manifest, PartEntry, PartName, SessionKey, hex};
use crate::redact::Counts;
use crate::source::{Cursor, Encoding, SourceError, Stat};
use crate::state::{PendingPart, Record};
use crate::store::{Body, ErrorKind, Object, Store, StoreError};

/// What adoption works with.
#[derive(Debug, Clone)]
pub(crate) struct Adopter {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) tools: Tools,
    pub(crate) blocking: Blocking,
    /// RFC 3339.
    pub(crate) now: String,
}

/// What the store and the outbox hold of one generation.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) key: SessionKey,
    pub(super) manifest: Manifest,
    /// All parts that are there.
    listed: Vec<(PartName, u64)>,
    /// Objects in replay order that the manifest does not name yet.
    pub(super) unnamed: Vec<PartEntry>,
    /// Parts in the outbox that go on where the objects end.
    pub(super) waiting: Vec<PendingPart>,
    next_seq: u32,
    /// Whether parts are there whose numbers are given to others, and whose bytes the named parts do not hold.
    has_strays: bool,
}

impl Held {
    /// Whether a part of the outbox is stored, and in its place.
    fn is_stored(&self, one: &Waiting) -> bool {
        self.manifest.parts.iter().chain(&self.unnamed).any(|part| part.name() == one.name)
    }

    /// Whether a part of this number that begins here would follow one that is named, or be the first.
    fn leads_to(&self, seq: u32, start: u64) -> bool {
        let ends_here = |part: &PartEntry| {
            part.seq < seq && part.cursor_range.is_some_and(|[_, end]| end == start)
        };
        start == 0 && seq == 0 || self.manifest.parts.iter().chain(&self.unnamed).any(ends_here)
    }
}

/// Why a session could not be adopted now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdoptError {
    /// The store failed, or a manifest cannot be used.
    #[error(transparent)]
    Store(#[from] Failure),
    /// The source cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// What waits in the outbox cannot be read, or cannot be made durable.
    #[error("cannot use the outbox")]
    Outbox(#[source] std::io::Error),
    /// The source changed while it was walked: to be asked again.
    #[error("the source changed while it was compared with what is stored")]
    Changed,
}

impl From<StoreError> for AdoptError {
    fn from(error: StoreError) -> AdoptError {
        AdoptError::Store(error.into())
    }
}

/// What became of it: records to commit, the followed one last.
#[derive(Debug)]
pub(crate) struct Adopted {
    pub(crate) records: Vec<(SessionKey, Record)>,
}

impl Adopter {
    /// Adopts the generations of a session that the store or the outbox has, for a file that was found. `waiting` are the
    /// outbox's parts of all of them, `generations` their keys in order, at least one.
    pub(crate) async fn adopt(
        &self,
        file: &NewFile,
        generations: Vec<SessionKey>,
        waiting: Vec<Waiting>,
    ) -> Result<Adopted, AdoptError> {
        if file.candidate.encoding == Encoding::Rows {
            return self.adopt_rows(file, generations, waiting).await;
        }
        let mut held = Vec::new();
        for key in generations {
            let own = waiting.iter().filter(|w| w.key == key).cloned().collect();
            held.push(self.held(key, own).await?);
        }
        // The newest generation is the likeliest; of the others one may be the file of a session that was set aside.
        for one in &held {
            let names = |entries: &[PartEntry]| {
                entries.iter().map(|e| (e.name().to_string(), e.cursor_range)).collect::<Vec<_>>()
            };
            tracing::debug!(
                session = %one.key,
                named = ?names(&one.manifest.parts),
                unnamed = ?names(&one.unnamed),
                waiting = ?one.waiting.iter().map(|p| (p.seq, p.range)).collect::<Vec<_>>(),
                next_seq = one.next_seq,
                "found in store and outbox"
            );
        }
        let mut followed = None;
        // Why the newest is not continued: that is what a next generation has to say.
        let mut differs = None;
        for (at, one) in held.iter_mut().enumerate().rev() {
            match self.walk_merged(file, one).await? {
                Ok(walked) => {
                    for (entry, range) in one.unnamed.iter_mut().zip(walked.unnamed) {
                        entry.cursor_range = Some(range);
                        entry.source_bytes = Some(range[1] - range[0]);
                    }
                    followed = Some((at, walked.cursor));
                    break;
                }
                Err(why) => {
                    differs.get_or_insert(why);
                }
            }
        }
        let mut records = Vec::new();
        for (at, one) in held.iter_mut().enumerate() {
            // Where another writer has yet to notice that it came second, what seems to follow the named parts may be its own
            // next part: only the source can tell.
            let is_met = followed.as_ref().is_some_and(|(met, _)| *met == at);
            if one.has_strays && !is_met && one.waiting.is_empty() {
                one.unnamed.clear();
            }
            let record = self.record(file, one, Cursor::start(file.stat)).await?;
            records.push((one.key.clone(), Record { superseded: true, ..record }));
        }
        let newest = records.len() - 1;
        match followed {
            Some((at, cursor)) if at == newest => {
                records[at].1 = Record { cursor, superseded: false, ..records[at].1.clone() };
            }
            // An older life whose file is still there: it is complete, and the newest one's own file will turn up.
            Some((at, cursor)) if file.archived() => records[at].1.cursor = cursor,
            Some(_) => {
                let why = "its source is as it was in an earlier generation";
                records.push(self.next_generation(file, &records[newest], why));
            }
            None => {
                let why = differs.unwrap_or("its source was found anew");
                records.push(self.next_generation(file, &records[newest], why));
            }
        }
        Ok(Adopted { records })
    }

    /// Adopts parts in the outbox whose source is nowhere to be found, so that they are sent all the same.
    pub(crate) async fn adopt_orphans(
        &self,
        generations: Vec<SessionKey>,
        waiting: Vec<Waiting>,
    ) -> Result<Adopted, AdoptError> {
        let mut records = Vec::new();
        for key in generations {
            let own = waiting.iter().filter(|w| w.key == key).cloned().collect();
            let mut held = self.held(key.clone(), own).await?;
            let file = NewFile::vanished(&key, held.manifest.source_path.as_deref());
            let record = self.record(&file, &mut held, Cursor::start(file.stat)).await?;
            records.push((key, Record { gone: true, superseded: true, archived: false, ..record }));
        }
        Ok(Adopted { records })
    }

    pub(super) fn next_generation(
        &self,
        file: &NewFile,
        (key, old): &(SessionKey, Record),
        reason: &str,
    ) -> (SessionKey, Record) {
        let record = Record {
            cursor: Cursor::start(file.stat),
            next_seq: 0,
            pending: Vec::new(),
            totals: Default::default(),
            named_bytes: 0,
            ended_at: None,
            superseded: false,
            reason: Some(reason.to_owned()),
            manifest_due: false,
            compaction: None,
            leaving: None,
            ..old.clone()
        };
        (key.with_generation(key.generation() + 1), record)
    }

    /// The record of what is held, once all of it that is stored is named.
    pub(super) async fn record(
        &self,
        file: &NewFile,
        held: &mut Held,
        cursor: Cursor,
    ) -> Result<Record, AdoptError> {
        // Before the manifest is read again: what another writer names meanwhile is not what this one goes on behind.
        let named_bytes = held.bytes_before(&held.waiting);
        if !held.unnamed.is_empty() {
            let named = manifest::name_parts(&*self.store, &held.key, None, None, &held.unnamed);
            held.manifest = named.await?.manifest;
        }
        let manifest = &held.manifest;
        Ok(Record {
            source: file.candidate.path.as_path().into(),
            encoding: file.candidate.encoding,
            cwd: file.facts.cwd.clone().or(manifest.cwd.clone()),
            started_at: manifest
                .started_at
                .clone()
                .or(file.facts.started_at.clone())
                .unwrap_or_else(|| self.now.clone()),
            cursor,
            next_seq: held.next_seq,
            pending: held.waiting.clone(),
            totals: manifest::totals(manifest),
            named_bytes,
            ended_at: manifest.ended_at.clone(),
            about: Default::default(),
            archived: file.archived(),
            gone: false,
            stopped: !manifest.followed,
            superseded: false,
            reason: manifest.reason.clone(),
            manifest_due: false,
            compaction: None,
            leaving: None,
        })
    }

    /// Reads what the store has of a generation and puts the outbox's parts behind it.
    pub(super) async fn held(
        &self,
        key: SessionKey,
        waiting: Vec<Waiting>,
    ) -> Result<Held, AdoptError> {
        let store = &*self.store;
        let manifest = match manifest::read(store, &key).await? {
            Some(manifest) => {
                store.persist(&key.manifest_key()).await?;
                manifest
            }
            None => Manifest::new(&key),
        };
        let listed = manifest::list_parts(store, &key).await?;
        let order = manifest::replay_order(&manifest, &listed);
        let mut unnamed = Vec::new();
        let mut end = manifest.end();
        for (name, size) in order.iter().skip(manifest.chain().len()) {
            let entry = self.unnamed_entry(&key, name, *size).await?;
            // What begins elsewhere is another writer's, which has yet to notice that it came second.
            let follows =
                entry.cursor_range.is_none_or(|[start, _]| end.is_none_or(|e| e == start));
            if !follows {
                break;
            }
            end = entry.cursor_range.map(|[_, end]| end);
            unnamed.push(entry);
        }
        let has_strays = self.sweep_leftovers(&key, &manifest, &listed).await?;
        let outbox = &self.tools.outbox;
        outbox.persist(&*self.tools.disk, &key).map_err(AdoptError::Outbox)?;
        let next_seq = listed.iter().map(|(name, _)| name.seq + 1).max().unwrap_or(0);
        let mut held = Held {
            key,
            listed,
            next_seq: next_seq.max(manifest.next_seq),
            manifest,
            unnamed,
            waiting: Vec::new(),
            has_strays,
        };
        let waiting = self.unmerged(&held, waiting).await?;
        self.take_waiting(&mut held, &waiting)?;
        if held.waiting.is_empty() {
            self.take_driven_out(&mut held, &waiting).await?;
        }
        Ok(held)
    }

    /// As [`Adopter::walk`], but for objects that the reference tool had merged when they were put once more, because the answer
    /// to their put was lost: its merged part says no range, so that they seem to follow it. If the source agrees without them,
    /// reaches beyond their ranges, and their bytes are in the merged part, they are deleted; readers would see them twice.
    async fn walk_merged(
        &self,
        file: &NewFile,
        one: &mut Held,
    ) -> Result<Result<Walked, &'static str>, AdoptError> {
        let why = match self.walk(file, one).await? {
            Ok(walked) => return Ok(Ok(walked)),
            Err(why) => why,
        };
        let last = one.manifest.parts.last();
        if one.unnamed.is_empty() || last.is_none_or(|part| part.cursor_range.is_some()) {
            return Ok(Err(why));
        }
        let again = std::mem::take(&mut one.unnamed);
        let walked = match self.walk(file, one).await? {
            Ok(walked) if self.holds_all(one, &again, walked.cursor.offset).await? => walked,
            _ => {
                one.unnamed = again;
                return Ok(Err(why));
            }
        };
        for entry in again {
            match self.store.delete(&one.key.part_key(&entry.name())).await {
                Err(error) if error.kind == ErrorKind::Denied => break, // Readers by listing see it twice.
                other => other?,
            }
        }
        Ok(Ok(walked))
    }

    /// Whether the named parts, which end at `end` of the source, hold all of these.
    async fn holds_all(
        &self,
        one: &Held,
        entries: &[PartEntry],
        end: u64,
    ) -> Result<bool, AdoptError> {
        let store = &*self.store;
        for entry in entries {
            if entry.cursor_range.is_none_or(|[_, last]| last > end) {
                return Ok(false);
            }
            let (name, size) = (entry.name(), entry.uploaded_bytes);
            let Some((bytes, _)) = contents::part_bytes(store, &one.key, &name, size).await? else {
                return Ok(false);
            };
            if !contents::holds(store, &one.key, &one.manifest, &bytes).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What waits in the outbox, without what the reference tool has merged since it was stored: its merged parts tell neither
    /// range nor number, so that nothing else would show that it is there already.
    async fn unmerged(
        &self,
        held: &Held,
        waiting: Vec<Waiting>,
    ) -> Result<Vec<Waiting>, AdoptError> {
        let mut merged = held.manifest.clone();
        merged.parts.retain(|part| part.compacted_from.is_some() && part.cursor_range.is_none());
        if merged.parts.is_empty() {
            return Ok(waiting);
        }
        let mut rest = Vec::new();
        for one in waiting {
            let bytes = self.tools.disk.read(&one.path).map_err(AdoptError::Outbox)?;
            if !contents::holds(&*self.store, &held.key, &merged, &bytes).await? {
                rest.push(one);
            }
        }
        Ok(rest)
    }

    /// An object that no manifest names yet. Its note tells its range, if the store keeps notes; else the walk along the source
    /// finds it.
    async fn unnamed_entry(
        &self,
        key: &SessionKey,
        name: &PartName,
        size: u64,
    ) -> Result<PartEntry, AdoptError> {
        let object = key.part_key(name);
        self.store.persist(&object).await?;
        let Object { mut reader, note, .. } = self.store.get(&object).await?;
        let range = manifest::range_of(note.as_deref());
        let mut digest = Sha256::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let n = reader.read(&mut buffer).await.map_err(|e| StoreError {
                kind: ErrorKind::Unavailable,
                operation: "get",
                object: object.clone(),
                source: e.into(),
            })?;
            if n == 0 {
                break;
            }
            digest.update(&buffer[..n]);
        }
        // A part of the reference tool has a name by chance, and then no digest: a manifest may only say one that fits the name.
        let sha256 = Some(hex(&digest.finalize())).filter(|sha256| sha256.starts_with(&name.uuid));
        Ok(PartEntry {
            seq: name.seq,
            uuid: name.uuid.clone(),
            cursor_range: range,
            source_bytes: range.map(|[start, end]| end - start),
            uploaded_bytes: size,
            redactions: Counts::new(),
            uploaded_at: self.now.clone(),
            compacted_from: None,
            sha256,
            other: serde_json::Map::new(),
        })
    }

    /// Deletes inputs that a compaction did not come to delete: below `next_seq`, not named, and their bytes in what is named.
    /// Answers whether others are there, whose bytes are not.
    pub(super) async fn sweep_leftovers(
        &self,
        key: &SessionKey,
        manifest: &Manifest,
        listed: &[(PartName, u64)],
    ) -> Result<bool, AdoptError> {
        let ranges: Vec<[u64; 2]> = manifest.parts.iter().filter_map(|p| p.cursor_range).collect();
        let covered = ranges.len() == manifest.parts.len()
            && ranges.first().is_some_and(|first| first[0] == 0)
            && ranges.windows(2).all(|pair| pair[0][1] == pair[1][0]);
        if !covered {
            return Ok(false);
        }
        let mut has_strays = false;
        let store = &*self.store;
        let mut leftovers = Leftovers::new(store, key, manifest);
        for (name, size) in listed {
            let named = manifest.parts.iter().any(|part| part.name() == *name);
            if name.seq >= manifest.next_seq || named {
                continue;
            }
            // Another writer may have given the same number, and not yet noticed that it came second.
            if let Some((bytes, range)) = contents::part_bytes(store, key, name, *size).await?
                && leftovers.is_held(name, &bytes, range).await?
            {
                let content = Body::Bytes(bytes.into());
                manifest::delete_unnamed(store, key, name, content, range).await?;
            } else {
                has_strays = true;
            }
        }
        Ok(has_strays)
    }
}

/// Stands in for a file that is nowhere.
impl NewFile {
    fn vanished(key: &SessionKey, source: Option<&str>) -> NewFile {
        NewFile {
            candidate: Candidate {
                harness: "",
                path: PathBuf::from(source.unwrap_or(key.id())),
                id: String::new(),
                id_from_records: false,
                encoding: Encoding::Plain,
                standing: Standing::Archived(String::new()),
            },
            stat: Stat { dev: 0, ino: 0, size: 0, mtime_ns: 0, ctime_ns: 0 },
            facts: Facts::default(),
        }
    }
}
