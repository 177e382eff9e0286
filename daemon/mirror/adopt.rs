//! Continuing a session that the store knows and the state does not: after a lost state, or one that another writer began.
//!
//! What is stored is walked along the redacted source until both agree to the end; then capture goes on from there. Where they
//! disagree the source was rewritten, and the next generation begins. Parts that still wait in the outbox are taken along.
//! A failure to read the store is an error to be tried again, never "nothing there".

use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use crate::durable::Blocking;
use crate::mirror::capture::Tools;
use crate::mirror::find::NewFile;
use crate::mirror::manifest::{self, Failure};
use crate::outbox::Waiting;
use crate::part::{Manifest, PartEntry, PartName, SessionKey, hex};
use crate::redact::Counts;
use crate::source::{Cursor, Depth, Next, Reading, SourceError, Unfinished, Verdict, check};
use crate::state::{PendingPart, Record};
use crate::store::{ErrorKind, Store, StoreError};

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
#[derive(Debug, Clone)]
struct Held {
    key: SessionKey,
    manifest: Manifest,
    /// Objects in replay order that the manifest does not name yet.
    unnamed: Vec<PartEntry>,
    /// Parts in the outbox that go on where the objects end.
    waiting: Vec<PendingPart>,
    next_seq: u32,
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
    /// outbox's parts of all of them.
    pub(crate) async fn adopt(
        &self,
        file: &NewFile,
        generations: Vec<SessionKey>,
        waiting: Vec<Waiting>,
    ) -> Result<Adopted, AdoptError> {
        let mut held = Vec::new();
        for key in generations {
            let own = waiting.iter().filter(|w| w.key == key).cloned().collect();
            held.push(self.held(key, own).await?);
        }
        let newest = held.last().map(|h| h.key.clone());
        let mut followed = None;
        for (at, one) in held.iter().enumerate().rev() {
            if let Some(cursor) = self.walk(file, one).await? {
                followed = Some((at, cursor));
                break;
            }
        }
        let mut records: Vec<(SessionKey, Record)> = held
            .iter()
            .map(|one| (one.key.clone(), self.record(file, one, Cursor::start(file.stat))))
            .collect();
        // Whatever the file continues, only the newest generation is followed; an older one is complete as it is.
        match (followed, newest) {
            (Some((at, cursor)), Some(_)) => {
                records[at].1.cursor = cursor;
                records.iter_mut().take(at).for_each(|(_, r)| r.superseded = true);
                if at + 1 < records.len() {
                    records.truncate(at + 1);
                    let (key, old) = records.last_mut().expect("the matched one is there");
                    let next = held.last().expect("it has the matched one").key.generation() + 1;
                    let fresh = self.next_generation(file, old, "its source is at an earlier state again");
                    old.superseded = true;
                    let key = key.with_generation(next);
                    records.push((key, fresh));
                }
            }
            (None, Some(newest)) => {
                records.iter_mut().for_each(|(_, r)| r.superseded = true);
                let (_, old) = records.last().expect("there is a newest one");
                let fresh = self.next_generation(file, old, "its source is not what is stored");
                records.push((newest.with_generation(newest.generation() + 1), fresh));
            }
            (_, None) => {}
        }
        Ok(Adopted { records })
    }

    /// Adopts parts in the outbox whose source is nowhere to be found, so that they are sent all the same.
    pub(crate) async fn adopt_orphans(
        &self,
        key: SessionKey,
        waiting: Vec<Waiting>,
    ) -> Result<Adopted, AdoptError> {
        let held = self.held(key.clone(), waiting).await?;
        let stat = crate::source::Stat { dev: 0, ino: 0, size: 0, mtime_ns: 0, ctime_ns: 0 };
        let file = NewFile::vanished(&key, stat, held.manifest.source_path.as_deref());
        let mut record = self.record(&file, &held, Cursor::start(stat));
        record.gone = true;
        Ok(Adopted { records: vec![(key, record)] })
    }

    fn next_generation(&self, file: &NewFile, old: &Record, reason: &str) -> Record {
        Record {
            cursor: Cursor::start(file.stat),
            next_seq: 0,
            pending: Vec::new(),
            totals: Default::default(),
            ended_at: None,
            superseded: false,
            reason: Some(reason.to_owned()),
            manifest_due: false,
            compaction: None,
            ..old.clone()
        }
    }

    fn record(&self, file: &NewFile, held: &Held, cursor: Cursor) -> Record {
        let mut pending: Vec<PendingPart> = held.unnamed.iter().map(stored_part).collect();
        pending.extend(held.waiting.iter().cloned());
        let manifest = &held.manifest;
        Record {
            source: file.candidate.path.clone(),
            encoding: file.candidate.encoding,
            cwd: file.facts.cwd.clone().or(manifest.cwd.clone()),
            started_at: manifest
                .started_at
                .clone()
                .or(file.facts.started_at.clone())
                .unwrap_or_else(|| self.now.clone()),
            cursor,
            next_seq: held.next_seq,
            pending,
            totals: manifest::totals(manifest),
            ended_at: manifest.ended_at.clone(),
            archived: file.archived(),
            gone: false,
            stopped: !manifest.followed,
            superseded: false,
            reason: manifest.reason.clone(),
            manifest_due: false,
            compaction: None,
        }
    }

    /// Reads what the store has of a generation and puts the outbox's parts behind it.
    async fn held(&self, key: SessionKey, waiting: Vec<Waiting>) -> Result<Held, AdoptError> {
        let store = &*self.store;
        let manifest = manifest::read(store, &key).await?.unwrap_or_else(|| Manifest::new(&key));
        let listed = manifest::list_parts(store, &key).await?;
        let order = manifest::replay_order(&manifest, &listed);
        let mut unnamed = Vec::new();
        for (name, size) in order.iter().skip(manifest.parts.len()) {
            unnamed.push(self.unnamed_entry(&key, name, *size).await?);
        }
        self.sweep_leftovers(&key, &manifest, &listed).await?;
        let next_seq = listed.iter().map(|(name, _)| name.seq + 1).max().unwrap_or(0);
        let mut held =
            Held { key, next_seq: next_seq.max(manifest.next_seq), manifest, unnamed, waiting: Vec::new() };
        self.take_waiting(&mut held, waiting)?;
        Ok(held)
    }

    /// An object that no manifest names yet: its range is not known until the source was walked, its digest is.
    async fn unnamed_entry(
        &self,
        key: &SessionKey,
        name: &PartName,
        size: u64,
    ) -> Result<PartEntry, AdoptError> {
        let object = key.part_key(name);
        let mut reader = self.store.get(&object).await?.reader;
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
        Ok(PartEntry {
            seq: name.seq,
            uuid: name.uuid.clone(),
            cursor_range: None,
            source_bytes: None,
            uploaded_bytes: size,
            redactions: Counts::new(),
            uploaded_at: self.now.clone(),
            compacted_from: None,
            sha256: Some(hex(&digest.finalize())),
            other: serde_json::Map::new(),
        })
    }

    /// Inputs that a compaction did not come to delete: below `next_seq`, not named, and covered by what is named.
    async fn sweep_leftovers(
        &self,
        key: &SessionKey,
        manifest: &Manifest,
        listed: &[(PartName, u64)],
    ) -> Result<(), AdoptError> {
        let ranges: Vec<[u64; 2]> = manifest.parts.iter().filter_map(|p| p.cursor_range).collect();
        let covered = ranges.len() == manifest.parts.len()
            && ranges.first().is_some_and(|first| first[0] == 0)
            && ranges.windows(2).all(|pair| pair[0][1] == pair[1][0]);
        if !covered {
            return Ok(());
        }
        for (name, _) in listed {
            let named = manifest.parts.iter().any(|part| part.name() == *name);
            if name.seq < manifest.next_seq && !named {
                self.store.delete(&key.part_key(name)).await?;
            }
        }
        Ok(())
    }

    /// Takes the outbox's parts that abut, in order. Others were stored already, or never committed.
    fn take_waiting(&self, held: &mut Held, waiting: Vec<Waiting>) -> Result<(), AdoptError> {
        let stored: Vec<PartName> = held.manifest.parts.iter().chain(&held.unnamed).map(PartEntry::name).collect();
        let mut end = if held.unnamed.is_empty() { held.manifest.end() } else { None };
        for one in waiting {
            if stored.contains(&one.name) || one.name.seq < held.next_seq {
                continue;
            }
            // Where stored objects have no known range, the number alone says that nothing is missing between them.
            let follows = end.is_none_or(|end| end == one.range[0]) && one.name.seq == held.next_seq;
            if !follows {
                continue;
            }
            let bytes = self.tools.disk.read(&one.path).map_err(|source| SourceError::Io {
                path: one.path.display().to_string(),
                source,
            })?;
            let sha256 = hex(&Sha256::digest(&bytes));
            if !sha256.starts_with(&one.name.uuid) {
                continue; // Torn by a power loss before it was committed.
            }
            end = Some(one.range[1]);
            held.next_seq = one.name.seq + 1;
            held.waiting.push(PendingPart {
                seq: one.name.seq,
                sha256,
                range: one.range,
                bytes: one.bytes,
                redactions: Counts::new(),
                cut: false,
                captured_at: self.now.clone(),
                stored_at: None,
            });
        }
        Ok(())
    }

    /// Walks what is held along the redacted source. `Some`: all of it agrees, and capture goes on at this cursor. Fills in
    /// nothing: ranges of objects that no manifest names are found again by [`Adopter::ranges`].
    async fn walk(&self, file: &NewFile, held: &Held) -> Result<Option<Cursor>, AdoptError> {
        let mut expected: Vec<Expected> =
            held.manifest.parts.iter().chain(&held.unnamed).map(Expected::of_entry).collect();
        expected.extend(held.waiting.iter().map(Expected::of_part));
        let (tools, path, encoding) =
            (self.tools.clone(), file.candidate.path.clone(), file.candidate.encoding);
        let stat = file.stat;
        let walked = self
            .blocking
            .run(move || walk_source(&tools, path, encoding, stat, &expected))
            .await?;
        Ok(walked)
    }
}

/// A stored or captured part, as the walk has to meet it.
#[derive(Debug, Clone)]
struct Expected {
    bytes: u64,
    range: Option<[u64; 2]>,
    sha256: Option<String>,
    uuid: String,
}

impl Expected {
    fn of_entry(entry: &PartEntry) -> Expected {
        Expected {
            bytes: entry.uploaded_bytes,
            range: entry.cursor_range,
            sha256: entry.sha256.clone(),
            uuid: entry.uuid.clone(),
        }
    }

    fn of_part(part: &PendingPart) -> Expected {
        Expected {
            bytes: part.bytes,
            range: Some(part.range),
            sha256: Some(part.sha256.clone()),
            uuid: part.name().uuid,
        }
    }
}
