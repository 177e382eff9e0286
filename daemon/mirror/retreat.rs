//! Two writers on one session: the one whose number the manifest gave to somebody else goes on in a generation of its own.
//!
//! Whose parts a manifest names first stays; the other one, which learns of it when it names its own, takes everything along
//! that it holds of the session (what is named before its own parts, as one part; its own, as they are) and never writes the
//! old generation again. Nothing is read from the source, so that it does not matter whether that is still what it was. What
//! it had stored under numbers that are the other's now is deleted once a manifest names the copies. A kill before the commit
//! leaves files in the outbox that no state names; one after it leaves objects that the state says are to be deleted.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tracing::{info, warn};

use super::compact::outbox_error;
use super::contents::{self, Contents};
use super::manifest::{self, Failure};
use super::{Done, Engine, SESSION_RETRY, Tools};
use crate::outbox::Outbox;
use crate::part::{Manifest, PartName, SessionKey, hex};
use crate::source::Cursor;
use crate::state::{Change, Leaving, PendingPart, Record};
use crate::store::{ErrorKind, Store, StoreError};

/// Whoever else stored a part has named it after this long, or is away: manifests follow their parts within
/// [`super::MANIFEST_EVERY`].
const OTHERS_NAME_WITHIN: Duration = Duration::from_secs(240);

/// Bytes copied at a time.
const COPY_BYTES: u64 = 64 * 1024;

/// What a retreat works with.
#[derive(Debug)]
struct Job {
    tools: Tools,
    outbox: Outbox,
    key: SessionKey,
    /// The highest generation that this writer knows of.
    newest: u32,
    /// What it holds and no manifest is known to name.
    own: Vec<PendingPart>,
    /// Bytes that are named before them.
    before: u64,
    redactions: crate::redact::Counts,
}

/// What is durable in the outbox now, under the next generation's name.
#[derive(Debug)]
pub(super) struct Moved {
    key: SessionKey,
    next: SessionKey,
    own: Vec<PendingPart>,
    parts: Vec<PendingPart>,
    /// Objects of the old generation that are this writer's alone.
    strays: Vec<PartName>,
}

impl Engine {
    /// Begins to move a session's own parts to the next generation. Sends of it wait meanwhile.
    pub(super) fn start_retreat(&mut self, key: &SessionKey) {
        let Some(record) = self.state.get(key) else { return };
        let job = Job {
            tools: self.tools.clone(),
            outbox: self.outbox.clone(),
            key: key.clone(),
            newest: self.newest_number(key),
            own: record.pending.clone(),
            before: record.named_bytes,
            redactions: record.totals.redactions.clone(),
        };
        self.live(key).sending = true;
        self.sends += 1;
        self.jobs.push(Box::pin(async move {
            let key = job.key.clone();
            Done::Moved(key, Box::new(job.run().await))
        }));
    }

    pub(super) fn moved(&mut self, key: &SessionKey, moved: Result<Moved, Failure>) {
        self.sends -= 1;
        self.live(key).sending = false;
        match moved {
            Ok(moved) => {
                // What was captured meanwhile, or another retreat to the same number: once more.
                let changed = self.state.get(key).is_none_or(|r| r.pending != moved.own);
                if !changed && self.state.get(&moved.next).is_none() && !self.settle(moved) {
                    self.hold_store_retry();
                }
            }
            Err(failure) => {
                self.rest_after(key, &failure, false);
                self.send_failed(key, failure);
            }
        }
        // Whatever did not work: the next send meets the other writer's parts again.
        self.queue_send(key);
    }

    /// Commits a move. `false`: the commit failed, and nothing has happened.
    fn settle(&mut self, moved: Moved) -> bool {
        let Moved { key, next, own, parts, strays } = moved;
        let Some(old) = self.state.get(&key).cloned() else { return false };
        let below = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        let why = format!("another writer stores parts of {} too", key.id());
        // What somebody merged with parts of their own cannot be taken along. A generation has to be whole: the source, if it is
        // there, is captured once more.
        let begins = parts.first().map_or(old.cursor.offset, |part| part.range[0]);
        let source = self.tools.files.stat(&old.source).ok();
        let anew = source.filter(|_| begins > 0 && !old.superseded && !old.stopped);
        let fresh = Record {
            cursor: match anew {
                Some(stat) if parts.is_empty() => Cursor::start(stat),
                _ => old.cursor.clone(),
            },
            next_seq: below,
            pending: parts,
            totals: Default::default(),
            named_bytes: 0,
            reason: Some(why.clone()),
            manifest_due: false,
            compaction: None,
            leaving: None,
            ..old.clone()
        };
        let leaving = Leaving { parts: strays, to: next.clone(), below };
        let gone = Record {
            superseded: true,
            pending: Vec::new(),
            manifest_due: false,
            leaving: (!leaving.parts.is_empty()).then(|| Box::new(leaving)),
            ..old.clone()
        };
        let is_cut_off = anew.is_some() && !fresh.pending.is_empty();
        let mut changes = self.redirected(&key, &next, below);
        changes.extend([(key.clone(), gone), (next.clone(), fresh.clone())].map(change));
        if !self.commit(changes) {
            return false;
        }
        warn!(session = %key, next = %next, "another writer stores parts of this session too");
        let hint = "let one recorder follow a session; nothing is lost";
        let message = format!("{key}: {why}; this one goes on as {next}");
        self.problem("two_writers", &key.with_generation(1).to_string(), &message, Some(hint));
        for part in own.iter().filter(|part| part.stored_at.is_none()) {
            self.outbox_bytes = self.outbox_bytes.saturating_sub(part.bytes);
            let _ = self.tools.disk.remove(&self.outbox.path(&key, part)); // Else the next start sweeps it.
        }
        self.outbox.tidy(&*self.tools.disk, &key);
        self.dirty.remove(&key);
        if !old.superseded {
            self.by_path.remove(&old.source);
        }
        if self.state.get(&key).is_some_and(|record| record.leaving.is_some()) {
            self.leaving.insert(key.clone(), Instant::now());
        }
        self.note_moved(&key, &next, below);
        self.adopt_record(&next);
        self.mark_dirty(&next);
        if is_cut_off {
            // Killed before this: that generation goes on without its beginning, which is in the one that was left.
            self.next_generation(&next, "its beginning was merged with another writer's parts");
        }
        if anew.is_some()
            && let Some(newest) = self.newest(&next).map(|(newest, _)| newest.clone())
        {
            self.note_anew(&next, &newest);
        }
        true
    }

    /// Whoever waits for copies in a generation that is left too waits for those in the next one.
    fn redirected(&self, from: &SessionKey, to: &SessionKey, below: u32) -> Vec<Change> {
        let sessions = self.state.state().sessions.iter();
        let waiting = sessions.filter_map(|(key, record)| {
            let leaving = record.leaving.as_ref().filter(|leaving| leaving.to == *from)?;
            let leaving = Leaving { to: to.clone(), below, ..(**leaving).clone() };
            Some((key.clone(), Record { leaving: Some(Box::new(leaving)), ..(**record).clone() }))
        });
        waiting.map(change).collect()
    }

    /// Deletes what was left behind, once a manifest names its copies and it is known to be nobody else's.
    pub(super) fn start_leaving(&mut self) {
        let now = Instant::now();
        let due: Vec<SessionKey> = self
            .leaving
            .iter()
            .filter(|(key, at)| **at <= now && self.is_copied(key))
            .map(|(key, _)| key.clone())
            .collect();
        for key in due {
            let Some(leaving) = self.state.get(&key).and_then(|r| r.leaving.clone()) else {
                self.leaving.remove(&key);
                continue;
            };
            self.leaving.remove(&key);
            let live = self.live(&key);
            live.sending = true;
            let since = *live.leaving_since.get_or_insert(now);
            let patient = now < since + OTHERS_NAME_WITHIN;
            self.sends += 1;
            let store = self.tools.store.clone();
            self.jobs.push(Box::pin(async move {
                let left = leave(&*store, &key, &leaving, patient).await;
                Done::Left(key, left)
            }));
        }
    }

    /// Whether what a generation left behind is named by the manifest of another, and nobody works on it now.
    fn is_copied(&self, key: &SessionKey) -> bool {
        let Some(leaving) = self.state.get(key).and_then(|r| r.leaving.as_ref()) else {
            return true;
        };
        let next = self.state.get(&leaving.to);
        let busy = self.live.get(key).is_some_and(|live| live.sending);
        !busy && next.is_some_and(|n| !n.pending.iter().any(|part| part.seq < leaving.below))
    }

    /// `left`: what may still be somebody else's.
    pub(super) fn left(&mut self, key: &SessionKey, left: Result<Vec<PartName>, Failure>) {
        self.sends -= 1;
        self.live(key).sending = false;
        let rest = match left {
            Ok(rest) => rest,
            Err(Failure::Store(error)) if error.kind == ErrorKind::Denied => {
                info!(session = %key, "this store allows no deleting: what was stored twice stays");
                Vec::new()
            }
            Err(failure) => {
                if let Failure::Store(error) = &failure {
                    self.store_failed(error);
                }
                self.leaving.insert(key.clone(), Instant::now() + SESSION_RETRY);
                self.queue_send(key);
                return;
            }
        };
        if let Some(record) = self.state.get(key)
            && let Some(leaving) = record.leaving.clone()
        {
            if !rest.is_empty() {
                self.leaving.insert(key.clone(), Instant::now() + OTHERS_NAME_WITHIN);
            }
            let leaving = Leaving { parts: rest, ..*leaving };
            let leaving = (!leaving.parts.is_empty()).then(|| Box::new(leaving));
            if record.leaving != leaving {
                let record = Record { leaving, ..record.clone() };
                // Deleting twice is deleting once.
                let _ = self.commit(vec![change((key.clone(), record))]);
            }
        }
        self.queue_send(key);
    }

    /// When something that was left behind is to be looked at.
    pub(super) fn leaving_due(&self) -> Option<Instant> {
        self.leaving.values().min().copied()
    }
}

fn change((key, record): (SessionKey, Record)) -> Change {
    Change::Session { key, record: Box::new(record) }
}

impl Job {
    async fn run(self) -> Result<Moved, Failure> {
        let store = &*self.tools.store;
        let next = self.next().await?;
        let manifest = manifest::read(store, &self.key).await?;
        let manifest = manifest.unwrap_or_else(|| Manifest::new(&self.key));
        let mut parts = Vec::new();
        // What the other one named of the same, or merged, goes along with what is before it.
        let shared = contents::shared(store, &self.key, &manifest, self.before, &self.own).await?;
        let before = self.before + self.own[..shared].iter().map(|part| part.bytes).sum::<u64>();
        if before > 0 && (shared > 0 || self.has_prefix(&manifest)) {
            let end = match shared {
                0 => self.own.first().map_or(0, |part| part.range[0]),
                shared => self.own[shared - 1].range[1],
            };
            parts.push(self.prefix(&next, &manifest, before, end).await?);
        }
        for own in &self.own[shared..] {
            if !self.copy(&next, own, parts.len(), &mut parts).await? {
                // Somebody merged it away, so its bytes are safe there: what follows begins behind it.
                parts.clear();
            }
        }
        // Also what is not known to be stored: its put may have lost its answer.
        let is_named = |name: &PartName| manifest.parts.iter().any(|part| part.name() == *name);
        let strays =
            self.own.iter().map(PendingPart::name).filter(|name| !is_named(name)).collect();
        let paths: Vec<PathBuf> = parts.iter().map(|p| self.outbox.path(&next, p)).collect();
        if !paths.is_empty() {
            let disk = self.tools.disk.clone();
            let at = paths[0].clone();
            let synced = self.tools.blocking.run(move || disk.sync(&paths)).await;
            synced.map_err(|e| outbox_error(&at, e))?;
        }
        Ok(Moved { key: self.key, next, own: self.own, parts, strays })
    }

    /// A generation that nobody has: neither this writer nor, as far as the store tells now, another.
    async fn next(&self) -> Result<SessionKey, Failure> {
        let first = self.key.with_generation(1);
        let later = format!("sessions/{}/{}~", first.harness(), first.base());
        let listed = self.tools.store.list(&later).await?;
        let generation = |key: &str| {
            let (folder, _) = key.strip_prefix("sessions/")?.rsplit_once('/')?;
            folder.parse::<SessionKey>().ok().map(|key| key.generation())
        };
        let newest = listed.iter().filter_map(|object| generation(&object.key)).max();
        Ok(self.key.with_generation(newest.unwrap_or(1).max(self.newest) + 1))
    }

    /// Whether the manifest begins with what is named before this writer's own parts.
    fn has_prefix(&self, manifest: &Manifest) -> bool {
        let Some([end, _]) = self.own.first().map(|part| part.range) else { return false };
        let mut at = 0;
        for part in &manifest.parts {
            if at >= self.before {
                break;
            }
            at += part.uploaded_bytes;
            let merged = part.compacted_from.is_some();
            let (ends, further) = match part.cursor_range {
                Some([_, own]) => (own == end, own > end),
                None => (true, true),
            };
            if (at == self.before && !ends && !merged) || (at > self.before && !(merged && further))
            {
                return false;
            }
        }
        at >= self.before
    }

    /// Everything before this writer's own parts, as one part.
    async fn prefix(
        &self,
        next: &SessionKey,
        manifest: &Manifest,
        bytes: u64,
        end: u64,
    ) -> Result<PendingPart, Failure> {
        let file = self.outbox.merging(next);
        let disk = &self.tools.disk;
        let mut out = disk.create(&file).map_err(|e| outbox_error(&file, e))?;
        let mut contents = Contents::new(&*self.tools.store, &self.key, manifest, 0);
        let (mut left, mut digest) = (bytes, Sha256::new());
        while left > 0 {
            let piece = contents.next(left.min(COPY_BYTES)).await?;
            if piece.is_empty() {
                let what = "shorter than what was named there".to_owned();
                return Err(Failure::Damaged { key: self.key.to_string(), what });
            }
            digest.update(piece);
            left -= piece.len() as u64;
            out.write_all(piece).map_err(|e| outbox_error(&file, e))?;
        }
        out.flush().map_err(|e| outbox_error(&file, e))?;
        drop(out);
        let part = PendingPart {
            seq: 0,
            sha256: hex(&digest.finalize()),
            range: [0, end],
            bytes,
            redactions: self.redactions.clone().into(),
            cut: false,
            captured_at: self.tools.clock.now().to_string(),
            stored_at: None,
            named: false,
        };
        let path = self.outbox.path(next, &part);
        disk.rename(&file, &path).map_err(|e| outbox_error(&path, e))?;
        Ok(part)
    }

    /// Copies one of this writer's parts. `false`: it is not there any more.
    async fn copy(
        &self,
        next: &SessionKey,
        own: &PendingPart,
        seq: usize,
        parts: &mut Vec<PendingPart>,
    ) -> Result<bool, Failure> {
        let seq = u32::try_from(seq).unwrap_or(u32::MAX);
        let part = PendingPart { seq, stored_at: None, named: false, ..own.clone() };
        let path = self.outbox.path(next, &part);
        let at_outbox = |e: std::io::Error| outbox_error(&path, e);
        let mut out = self.tools.disk.create(&path).map_err(at_outbox)?;
        let mut digest = Sha256::new();
        let waits = self.outbox.path(&self.key, own);
        match self.tools.disk.open(&waits) {
            Ok(mut file) => {
                let mut buffer = vec![0; COPY_BYTES as usize];
                loop {
                    match file.read(&mut buffer).map_err(|e| outbox_error(&waits, e))? {
                        0 => break,
                        n => {
                            digest.update(&buffer[..n]);
                            out.write_all(&buffer[..n]).map_err(at_outbox)?;
                        }
                    }
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let object = match self.tools.store.get(&self.key.part_key(&own.name())).await {
                    Ok(object) => object,
                    Err(e) if e.kind == ErrorKind::NotFound => {
                        drop(out);
                        let _ = self.tools.disk.remove(&path);
                        return Ok(false);
                    }
                    Err(e) => return Err(e.into()),
                };
                read_into(object, &mut digest, &mut *out, &self.key.part_key(&own.name())).await?;
            }
            Err(e) => return Err(outbox_error(&waits, e)),
        }
        out.flush().map_err(at_outbox)?;
        if hex(&digest.finalize()) != own.sha256 {
            let what = "not what its digest says".to_owned();
            return Err(Failure::Damaged { key: self.key.part_key(&own.name()), what });
        }
        parts.push(part);
        Ok(true)
    }
}

async fn read_into(
    mut object: crate::store::Object,
    digest: &mut Sha256,
    out: &mut (dyn std::io::Write + Send),
    name: &str,
) -> Result<(), Failure> {
    use tokio::io::AsyncReadExt;
    let mut buffer = vec![0; COPY_BYTES as usize];
    loop {
        let read = object.reader.read(&mut buffer).await;
        match read.map_err(|e| StoreError::new(ErrorKind::Unavailable, "get", name, e))? {
            0 => return Ok(()),
            n => {
                digest.update(&buffer[..n]);
                let written = out.write_all(&buffer[..n]);
                written.map_err(|e| outbox_error(std::path::Path::new(name), e))?;
            }
        }
    }
}

/// Deletes objects whose bytes are safe elsewhere, but for those that a manifest names by now. What has a number that no
/// manifest gave yet may be the other writer's too (two recorders of one file, with the same bytes in it): while this one is
/// `patient`, that is what is left.
async fn leave(
    store: &dyn Store,
    key: &SessionKey,
    leaving: &Leaving,
    patient: bool,
) -> Result<Vec<PartName>, Failure> {
    let manifest = manifest::read(store, key).await?.unwrap_or_else(|| Manifest::new(key));
    let mut left = Vec::new();
    // The last one first: as long as one is there, the first is, whose number shows that they are strays.
    for name in leaving.parts.iter().rev() {
        if manifest.parts.iter().any(|part| part.name() == *name) {
            continue;
        }
        if patient && name.seq >= manifest.next_seq {
            left.push(name.clone());
            continue;
        }
        store.delete(&key.part_key(name)).await?;
    }
    left.reverse();
    Ok(left)
}
