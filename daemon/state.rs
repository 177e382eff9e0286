//! What survives a restart: a cursor and the pending parts of each session, in a JSON snapshot and a journal beside it.
//!
//! The snapshot (`state.json`) is replaced as a whole; between two snapshots every [`Change`] is appended to
//! `journal-<epoch>.jsonl` and synced, so that a commit costs what changed. The snapshot names the epoch of its journal, which
//! is always there, if empty: a journal of another epoch is a remnant and is removed, a missing one is damage. Live state and replayed state go through the same [`State::apply`].
//! Knows nothing of how sessions are found, read or sent.

mod error;
mod path_text;
mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub(crate) use self::error::StateError;
pub(crate) use self::record::{Compaction, FewCounts, Leaving, PendingPart, Record, Totals};
use crate::durable::Disk;
use crate::part::SessionKey;
use crate::source::Cursor;

/// Version of the state file. A newer one stops the daemon: reading it wrongly could lose sessions.
const VERSION: u32 = 1;

/// The journal is folded into the snapshot when it is larger than the snapshot and larger than this many bytes: small enough
/// to read at start in no time, large enough that folding is rare.
const JOURNAL_BYTES_MIN: u64 = 256 * 1024;

/// All sessions of one store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    version: u32,
    /// [`crate::store::Store::identity`] of the store that this state describes.
    pub(crate) store: String,
    epoch: u64,
    /// Every generation of every session.
    /// Records are boxed: the nodes of the map are half empty after a first start, and a record is large.
    pub(crate) sessions: BTreeMap<SessionKey, Box<Record>>,
}

/// What a commit changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub(crate) enum Change {
    /// A session is new, or something rare about it changed.
    Session {
        /// Which.
        key: SessionKey,
        /// All of it.
        record: Box<Record>,
    },
    /// A part is durable in the outbox: the cursor moves past it.
    Captured {
        /// Whose.
        key: SessionKey,
        /// The part.
        part: PendingPart,
        /// Where capture goes on.
        cursor: Cursor,
    },
    /// The source was looked at; nothing was captured.
    Looked {
        /// Whose.
        key: SessionKey,
        /// The refreshed cursor.
        cursor: Cursor,
    },
    /// A part is stored: the outbox may forget it.
    Stored {
        /// Whose.
        key: SessionKey,
        /// Which.
        seq: u32,
        /// When, RFC 3339.
        at: String,
    },
    /// The manifest names all stored parts below a number, and says what the record says.
    Named {
        /// Whose.
        key: SessionKey,
        /// The manifest's `next_seq`.
        next_seq: u32,
        /// Parts from this number on are to be looked for when the manifest is next read: the store may lose a write of it.
        /// Absent: none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unsure_from: Option<u32>,
        /// Its sums.
        totals: Totals,
        /// Whether it says less than the record all the same.
        due: bool,
    },
}

/// A line of the journal.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Commit {
    All(Vec<Change>),
    One(Box<Change>),
}

impl Change {
    /// Whose change it is.
    fn key(&self) -> &SessionKey {
        match self {
            Change::Session { key, .. }
            | Change::Captured { key, .. }
            | Change::Looked { key, .. }
            | Change::Stored { key, .. }
            | Change::Named { key, .. } => key,
        }
    }

    /// The session that is new or changed as a whole.
    pub(crate) fn session(&self) -> Option<&SessionKey> {
        match self {
            Change::Session { key, .. } => Some(key),
            _ => None,
        }
    }
}

impl State {
    fn new(store: &str) -> State {
        State { version: VERSION, store: store.to_owned(), epoch: 0, sessions: BTreeMap::new() }
    }

    /// The one way in which state changes, live and at replay.
    fn apply(&mut self, change: Change) {
        match change {
            Change::Session { key, record } => {
                self.sessions.insert(key, record);
            }
            Change::Captured { key, part, cursor } => {
                if let Some(record) = self.sessions.get_mut(&key) {
                    record.next_seq = part.seq + 1;
                    record.pending.push(part);
                    record.cursor = cursor;
                }
            }
            Change::Looked { key, cursor } => {
                if let Some(record) = self.sessions.get_mut(&key) {
                    record.cursor = cursor;
                }
            }
            Change::Stored { key, seq, at } => {
                if let Some(record) = self.sessions.get_mut(&key)
                    && let Some(part) = record.pending.iter_mut().find(|p| p.seq == seq)
                {
                    part.stored_at = Some(at);
                }
            }
            Change::Named { key, next_seq, unsure_from, totals, due } => {
                if let Some(record) = self.sessions.get_mut(&key) {
                    let sure = unsure_from.unwrap_or(next_seq).min(next_seq);
                    let waits = |p: &PendingPart| p.stored_at.is_none() || p.seq >= sure;
                    let done = record.pending.iter().filter(|p| !waits(p));
                    record.named_bytes += done.map(|p| p.bytes).sum::<u64>();
                    record.pending.retain(waits);
                    // Of thousands of sessions hardly one has a part that waits.
                    record.pending.shrink_to_fit();
                    for part in record.pending.iter_mut().filter(|p| p.stored_at.is_some()) {
                        part.named |= part.seq < next_seq;
                    }
                    record.totals = totals.above(&record.totals);
                    record.manifest_due = due;
                }
            }
        }
    }
}

/// How the state was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// As it was left.
    Intact,
    /// There was none.
    Fresh,
    /// It was damaged and is set aside under the names given; sessions are rebuilt from the store.
    Damaged(Vec<PathBuf>),
}

/// The state and its files. One task owns it.
pub(crate) struct StateFile {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    state: State,
    journal_bytes: u64,
    snapshot_bytes: u64,
    /// A failed commit may have left bytes in the journal whose fate is unknown: the next commit writes a whole snapshot,
    /// which no longer names that journal.
    doubtful: bool,
}

impl fmt::Debug for StateFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateFile").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl StateFile {
    /// Reads the state of a store from a directory. A damaged one is set aside; one of an unknown version is an error.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        store: &str,
    ) -> Result<(StateFile, Found), StateError> {
        let snapshot = dir.join("state.json");
        let mut file = StateFile {
            disk,
            dir: dir.to_owned(),
            state: State::new(store),
            journal_bytes: 0,
            snapshot_bytes: 0,
            doubtful: false,
        };
        let found = match file.disk.open(&snapshot) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Found::Fresh,
            Err(source) => return Err(cannot_read(&snapshot, source)),
            Ok(_) => match read_snapshot(&*file.disk, &snapshot)? {
                Some(state) if state.store == store => {
                    file.snapshot_bytes = file.disk.size(&snapshot).ok().flatten().unwrap_or(0);
                    file.state = state;
                    if file.replay()? { Found::Intact } else { Found::Damaged(vec![]) }
                }
                _ => Found::Damaged(vec![]),
            },
        };
        file.sweep_temps()?;
        // Epochs only grow, so that a remnant is never taken for the journal of a later snapshot: not one whose snapshot was
        // removed, nor one that a power loss brings back after it was set aside.
        let journals = file.journals()?;
        let newest = journals.iter().map(|(epoch, _)| *epoch).max().unwrap_or(0);
        let newest = newest.max(file.state.epoch);
        let found = match found {
            Found::Damaged(_) => {
                file.state = State::new(store);
                Found::Damaged(file.set_aside()?)
            }
            found => found,
        };
        file.state.epoch = newest;
        // A start that finds all in order writes nothing.
        if found != Found::Intact || journals.len() > 1 || file.journal_bytes > 0 {
            file.fold()?;
        }
        Ok((file, found))
    }

    /// The state now.
    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// One session.
    pub(crate) fn get(&self, key: &SessionKey) -> Option<&Record> {
        self.state.sessions.get(key).map(|record| &**record)
    }

    /// Makes changes durable, then applies them. When it fails, nothing is applied, and the caller must keep whatever the
    /// changes spoke of until a later commit succeeded: the journal may hold them all the same.
    pub(crate) fn commit(&mut self, changes: Vec<Change>) -> Result<(), StateError> {
        if changes.is_empty() {
            return Ok(());
        }
        if self.doubtful {
            let keys: BTreeSet<SessionKey> = changes.iter().map(|it| it.key().clone()).collect();
            let before: Vec<_> =
                keys.into_iter().map(|key| (self.state.sessions.get(&key).cloned(), key)).collect();
            changes.into_iter().for_each(|change| self.state.apply(change));
            return self
                .fold()
                .inspect_err(|_| before.into_iter().for_each(|it| self.put_back(it)));
        }
        // One line, so that a power loss leaves all of a commit or nothing: half of a generation's change of hands would give
        // the other half's numbers away again.
        let mut line = match changes.as_slice() {
            [change] => serde_json::to_vec(change),
            changes => serde_json::to_vec(changes),
        }
        .expect("a change has string keys only");
        line.push(b'\n');
        let journal = self.journal(self.state.epoch);
        self.disk
            .append(&journal, &line)
            .and_then(|()| self.disk.sync(std::slice::from_ref(&journal)))
            .map_err(|source| {
                self.doubtful = true;
                StateError::Io { operation: "write", path: journal, source }
            })?;
        changes.into_iter().for_each(|change| self.state.apply(change));
        self.journal_bytes += line.len() as u64;
        if self.journal_bytes > JOURNAL_BYTES_MIN.max(self.snapshot_bytes) {
            // The changes are durable already, so a failed fold only costs another try later.
            let _ = self.fold();
        }
        Ok(())
    }

    /// A session as it was before a change that did not come to be.
    fn put_back(&mut self, (record, key): (Option<Box<Record>>, SessionKey)) {
        match record {
            Some(record) => self.state.sessions.insert(key, record),
            None => self.state.sessions.remove(&key),
        };
    }

    /// After a failed commit: makes sure that what it spoke of is not in force, by a snapshot without it. Until then nothing
    /// may be written over what it may have named.
    pub(crate) fn resolve(&mut self) -> Result<(), StateError> {
        if self.doubtful { self.fold() } else { Ok(()) }
    }

    /// Leaves a snapshot and no journal, so that the next start reads one file. Writes nothing when nothing changed.
    pub(crate) fn close(&mut self) -> Result<(), StateError> {
        if self.journal_bytes > 0 || self.doubtful { self.fold() } else { Ok(()) }
    }

    /// Writes the whole state as a snapshot and starts a new journal.
    pub(crate) fn fold(&mut self) -> Result<(), StateError> {
        let snapshot = self.dir.join("state.json");
        self.state.epoch += 1;
        // The journal is there before the snapshot that names it, so that one that is missing later was lost.
        let journal = self.journal(self.state.epoch);
        if let Err(source) = self.disk.replace(&journal, b"") {
            self.doubtful = true;
            return Err(StateError::Io { operation: "write", path: journal, source });
        }
        // Written as it goes: with the parts of a long outage it has megabytes.
        let (state, mut bytes) = (&self.state, 0);
        let mut write = |file: &mut dyn io::Write| {
            let mut counted = Counted { file, bytes: 0 };
            serde_json::to_writer(&mut counted, state)?;
            counted.write_all(b"\n")?;
            bytes = counted.bytes;
            Ok(())
        };
        // Killed before the replacement: the old snapshot and its journal hold all. Killed after it: the old journal is a
        // remnant that nothing names.
        if let Err(source) = self.disk.replace_by(&snapshot, &mut write) {
            // The replacement may have happened all the same, so the old journal is not to be trusted with more.
            self.doubtful = true;
            return Err(StateError::Io { operation: "write", path: snapshot, source });
        }
        self.doubtful = false;
        self.journal_bytes = 0;
        self.snapshot_bytes = bytes;
        // The snapshot is in force from here on, so nothing below may fail the fold: a remnant that cannot be listed or
        // removed does no harm.
        for (old, path) in self.journals().unwrap_or_default() {
            if old != self.state.epoch {
                let _ = self.disk.remove(&path);
            }
        }
        Ok(())
    }

    /// Removes what a kill in the middle of a replacement left.
    fn sweep_temps(&self) -> Result<(), StateError> {
        for (path, _) in self.listed()? {
            if path.file_name().is_some_and(crate::durable::is_temp) {
                let _ = self.disk.remove(&path); // One that cannot be removed does no harm.
            }
        }
        Ok(())
    }

    /// The files in the state directory itself.
    fn listed(&self) -> Result<Vec<(PathBuf, u64)>, StateError> {
        let mut listed = self.disk.list(&self.dir).map_err(|source| StateError::Io {
            operation: "list",
            path: self.dir.clone(),
            source,
        })?;
        listed.retain(|(path, _)| path.parent() == Some(&self.dir));
        Ok(listed)
    }

    fn journal(&self, epoch: u64) -> PathBuf {
        self.dir.join(format!("journal-{epoch:08}.jsonl"))
    }

    /// All journals that lie beside the snapshot.
    fn journals(&self) -> Result<Vec<(u64, PathBuf)>, StateError> {
        let epoch_of = |path: &Path| {
            let name = path.file_name()?.to_str()?;
            name.strip_prefix("journal-")?.strip_suffix(".jsonl")?.parse().ok()
        };
        Ok(self
            .listed()?
            .into_iter()
            .filter_map(|(path, _)| Some((epoch_of(&path)?, path)))
            .collect())
    }

    /// Applies the journal. `false`: it is damaged. A torn end is what a kill leaves, and is dropped.
    fn replay(&mut self) -> Result<bool, StateError> {
        let journal = self.journal(self.state.epoch);
        let mut lines = match self.disk.open(&journal) {
            Ok(file) => BufReader::new(file),
            // Changes are missing, and nobody knows which.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(cannot_read(&journal, source)),
        };
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = lines.read_until(b'\n', &mut line);
            self.journal_bytes += read.map_err(|source| cannot_read(&journal, source))? as u64;
            // Only the end of the last append can be missing after a kill. Whatever else is broken may have been a change
            // that something depends on.
            let Some(line) = line.strip_suffix(b"\n") else { return Ok(true) };
            match serde_json::from_slice(line) {
                Ok(Commit::One(change)) => self.state.apply(*change),
                Ok(Commit::All(changes)) => {
                    changes.into_iter().for_each(|change| self.state.apply(change));
                }
                Err(_) => return Ok(false),
            }
        }
    }

    /// Renames snapshot and journals to names that tell what happened; they are kept for a person to look at.
    fn set_aside(&self) -> Result<Vec<PathBuf>, StateError> {
        let mut paths = vec![self.dir.join("state.json")];
        paths.extend(self.journals()?.into_iter().map(|(_, path)| path));
        let mut aside = Vec::new();
        for path in paths {
            let name = path.file_name().expect("a joined path has a name").to_string_lossy();
            let target = (0..)
                .map(|n| self.dir.join(format!("damaged-{n}-{name}")))
                .find(|p| !matches!(self.disk.size(p), Ok(Some(_))))
                .expect("the range has no end");
            let moved = self
                .disk
                .rename(&path, &target)
                .and_then(|()| self.disk.sync(std::slice::from_ref(&target)));
            match moved {
                Ok(()) => aside.push(target),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(StateError::Io { operation: "set aside", path, source }),
            }
        }
        Ok(aside)
    }
}

fn cannot_read(path: &Path, source: io::Error) -> StateError {
    StateError::Io { operation: "read", path: path.to_owned(), source }
}

/// A writer that counts.
struct Counted<'a> {
    file: &'a mut dyn io::Write,
    bytes: u64,
}

impl io::Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A snapshot from its file; `None` when it is damaged. The version is read first and by itself: of another one nothing else
/// may be believed. Never read as a whole: with the parts of a long outage it has megabytes.
fn read_snapshot(disk: &dyn Disk, path: &Path) -> Result<Option<State>, StateError> {
    #[derive(Deserialize)]
    struct Outline {
        version: Option<u64>,
    }
    match parse_file::<Outline>(disk, path)?.and_then(|outline| outline.version) {
        Some(found) if found != u64::from(VERSION) => {
            Err(StateError::UnknownVersion { path: path.to_owned(), found })
        }
        Some(_) => parse_file(disk, path),
        None => Ok(None),
    }
}

/// Whether a snapshot is whole; nothing is set aside. What it holds says little: the newest is in the journal.
pub(crate) fn is_intact(disk: &dyn Disk, dir: &Path) -> Result<bool, StateError> {
    Ok(read_snapshot(disk, &dir.join("state.json"))?.is_some())
}

/// What a file of JSON says; `None` when it says something else.
fn parse_file<T: DeserializeOwned>(disk: &dyn Disk, path: &Path) -> Result<Option<T>, StateError> {
    let file = disk.open(path).map_err(|source| cannot_read(path, source))?;
    match serde_json::from_reader(BufReader::new(file)) {
        Ok(told) => Ok(Some(told)),
        Err(error) if error.is_io() => Err(cannot_read(path, error.into())),
        Err(_) => Ok(None),
    }
}

/// What a state directory's snapshot says of its store, without all the rest.
#[derive(Debug, Deserialize)]
pub(crate) struct Owner {
    /// [`State::store`].
    pub(crate) store: String,
    sessions: BTreeMap<String, OwnerRecord>,
}

#[derive(Debug, Deserialize)]
struct OwnerRecord {
    #[serde(default)]
    totals: Totals,
}

impl Owner {
    /// Reads it, if there is one to be read.
    pub(crate) fn of(disk: &dyn Disk, dir: &Path) -> Option<Owner> {
        serde_json::from_slice(&disk.read(&dir.join("state.json")).ok()?).ok()
    }

    /// Whether anything was stored there.
    pub(crate) fn has_stored(&self) -> bool {
        self.sessions.values().any(|record| record.totals.parts > 0)
    }
}
