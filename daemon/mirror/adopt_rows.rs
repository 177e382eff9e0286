//! Continuing a session that is rows of a database where the store knows it and the state, or its ledger, does not.
//!
//! What is stored is a log whose last line for each id wins. It is folded, line by line: where a line is what its row says now,
//! that state is captured; where it is not, the row is captured again. So nothing is sent twice that did not change, whichever
//! of the two programs wrote it and whichever rules its secrets were replaced by. Positions of the log are bytes in parts of
//! ours and row ids in those of the reference tool; what is added begins where the last of them ends, so that ranges abut.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::Instant;
use tracing::{info, warn};

use super::adopt::{AdoptError, Adopted, Adopter, Held};
use super::find::NewFile;
use super::{Done, Engine, SESSION_RETRY, chain, manifest, rows};
use crate::ledger::{Ledger, Mark};
use crate::mirror::manifest::Failure;
use crate::outbox::Waiting;
use crate::part::{PartEntry, PartName, SessionKey};
use crate::source::CHUNK_BYTES;
use crate::source::database::Line;
use crate::state::{PendingPart, Record};
use crate::store::{ErrorKind, StoreError};

/// A ledger is asked for again after this, where its session is being sent just now.
const RELEARN_AGAIN: Duration = Duration::from_secs(1);

/// Bytes of a stored part that are read at a time.
const READ_BYTES: usize = 64 << 10;

impl Adopter {
    /// As [`Adopter::adopt`], for a session that is rows: the newest generation is continued, whatever changed since, unless
    /// the database gives its ids again.
    pub(super) async fn adopt_rows(
        &self,
        file: &NewFile,
        generations: Vec<SessionKey>,
        waiting: Vec<Waiting>,
    ) -> Result<Adopted, AdoptError> {
        let mut records = Vec::new();
        let mut continued = None;
        let newest = generations.len() - 1;
        for (number, key) in generations.into_iter().enumerate() {
            let own = waiting.iter().filter(|w| w.key == key).cloned().collect();
            let mut held = self.held(key, own).await?;
            let fold = self.fold(file, &held).await?;
            let end = place(&mut held, &fold);
            let record = self.record(file, &mut held, rows::cursor_at(end, file.stat)).await?;
            records.push((held.key.clone(), Record { superseded: true, ..record }));
            if number == newest && !fold.ids_again() {
                continued = Some(Ledger::of(fold.marks, end));
            }
        }
        match continued {
            Some(ledger) => {
                let (key, record) = &mut records[newest];
                record.superseded = false;
                // Killed before the commit: the next adoption writes it again.
                self.tools
                    .ledgers
                    .replace(&*self.tools.disk, key, &ledger)
                    .map_err(AdoptError::Outbox)?;
            }
            None => {
                let why = "its database was replaced: row ids began again";
                let next = self.next_generation(file, &records[newest], why);
                records.push(next);
            }
        }
        Ok(Adopted { records })
    }

    /// Makes a session's ledger anew.
    async fn relearn(&self, key: &SessionKey, record: &Record) -> Result<(), AdoptError> {
        let store = &*self.store;
        let named =
            manifest::read(store, key).await?.unwrap_or_else(|| crate::part::Manifest::new(key));
        let listed = manifest::list_parts(store, key).await?;
        let parts =
            manifest::replay_order(&named, &listed).into_iter().map(|(name, _)| name).collect();
        let mut fold = Fold::new(key, record.source.to_path_buf());
        self.fold_parts(&mut fold, key, parts).await?;
        self.fold_waiting(&mut fold, key, &record.pending).await?;
        let ledger = Ledger::of(fold.marks, record.cursor.offset);
        self.tools.ledgers.replace(&*self.tools.disk, key, &ledger).map_err(AdoptError::Outbox)
    }

    async fn fold(&self, file: &NewFile, held: &Held) -> Result<Fold, AdoptError> {
        let parts = held.manifest.parts.iter().chain(&held.unnamed).map(PartEntry::name).collect();
        let mut fold = Fold::new(&held.key, file.candidate.path.clone());
        self.fold_parts(&mut fold, &held.key, parts).await?;
        self.fold_waiting(&mut fold, &held.key, &held.waiting).await?;
        // Also where nothing is stored: whether ids are given again is asked of the database.
        self.push(&mut fold, Vec::new()).await?;
        Ok(fold)
    }

    /// What the stored log says last of each row, compared with the rows as they are now.
    pub(super) async fn last_states(
        &self,
        file: &NewFile,
        held: &Held,
    ) -> Result<BTreeMap<i64, Mark>, AdoptError> {
        Ok(self.fold(file, held).await?.marks)
    }

    async fn fold_parts(
        &self,
        fold: &mut Fold,
        key: &SessionKey,
        parts: Vec<PartName>,
    ) -> Result<(), AdoptError> {
        let mut buffer = vec![0; READ_BYTES];
        for name in parts {
            let object = key.part_key(&name);
            let mut reader = match self.store.get(&object).await {
                Ok(found) => found.reader,
                Err(error) if error.kind == ErrorKind::NotFound => {
                    self.check_lost(key, &name, error).await?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            loop {
                let read = reader.read(&mut buffer).await.map_err(|error| {
                    StoreError::new(ErrorKind::Unavailable, "get", &object, error)
                })?;
                if read == 0 {
                    break;
                }
                self.push(fold, buffer[..read].to_vec()).await?;
            }
        }
        Ok(())
    }

    /// A part is not there. If the manifest names it all the same, it is lost: what its lines said is not known then, and rows that the
    /// database still has are captured again. If not, another recorder has merged it meanwhile: all is asked for anew.
    async fn check_lost(
        &self,
        key: &SessionKey,
        name: &PartName,
        error: StoreError,
    ) -> Result<(), AdoptError> {
        let named = manifest::read(&*self.store, key).await?;
        if named.is_some_and(|manifest| manifest.parts.iter().any(|part| part.name() == *name)) {
            warn!(session = %key, part = %name, "a part is lost: its rows are captured again");
            return Ok(());
        }
        Err(StoreError { kind: ErrorKind::Unavailable, ..error }.into())
    }

    async fn fold_waiting(
        &self,
        fold: &mut Fold,
        key: &SessionKey,
        parts: &[PendingPart],
    ) -> Result<(), AdoptError> {
        for part in parts.iter().filter(|part| part.stored_at.is_none()) {
            let bytes = self.tools.disk.read(&self.tools.outbox.path(key, part));
            self.push(fold, bytes.map_err(AdoptError::Outbox)?).await?;
        }
        self.push(fold, Vec::new()).await
    }

    /// Takes in what follows; nothing means that what has gathered is looked at now.
    async fn push(&self, fold: &mut Fold, bytes: Vec<u8>) -> Result<(), AdoptError> {
        let now = bytes.is_empty();
        fold.rest.extend(bytes);
        let Some(end) =
            memchr::memrchr(b'\n', &fold.rest).map(|newline| newline + 1).or(now.then_some(0))
        else {
            return Ok(());
        };
        if !now && end < CHUNK_BYTES {
            return Ok(());
        }
        let rest = fold.rest.split_off(end);
        let lines = std::mem::replace(&mut fold.rest, rest);
        let (databases, marks) = (self.tools.databases.clone(), std::mem::take(&mut fold.marks));
        let (harness, path) = (fold.harness.clone(), fold.path.clone());
        let compared = move || {
            databases.look_at(&harness, &path, |view| {
                let mut marks = marks;
                for line in lines.split_inclusive(|byte| *byte == b'\n') {
                    match view.tables().read_line(line) {
                        Some(Line::Gone(id)) => drop(marks.insert(id, Mark::Gone)),
                        Some(Line::Row(id)) => {
                            let mark = view.is_row(line)?.map_or(Mark::Unknown, Mark::Captured);
                            marks.insert(id, mark);
                        }
                        None => {} // Of what cannot be read nothing is known.
                    }
                }
                Ok((marks, view.last_id(), view.session().rows))
            })
        };
        (fold.marks, fold.last_given, fold.rows) = self.blocking.run(compared).await?;
        Ok(())
    }
}

/// A log that is being folded.
struct Fold {
    harness: String,
    path: PathBuf,
    /// Of a line whose end has not come yet.
    rest: Vec<u8>,
    marks: BTreeMap<i64, Mark>,
    /// The highest id that the database ever gave.
    last_given: Option<i64>,
    /// Number of rows that it has of the session.
    rows: u64,
}

impl Fold {
    fn new(key: &SessionKey, path: PathBuf) -> Fold {
        let harness = key.harness().to_owned();
        Fold { harness, path, rest: Vec::new(), marks: BTreeMap::new(), last_given: None, rows: 0 }
    }

    fn last_id(&self) -> i64 {
        self.marks.last_key_value().map_or(0, |(id, _)| *id)
    }

    /// Whether the database is another one: it will give ids to new rows that stored rows have, and has none of these.
    fn ids_again(&self) -> bool {
        let common = self.marks.values().any(|mark| matches!(mark, Mark::Captured(_)));
        self.rows > 0 && !common && self.last_given.is_some_and(|last| self.last_id() > last)
    }
}

/// Gives ranges to the parts that have none and are not named yet, and says where the log ends.
fn place(held: &mut Held, fold: &Fold) -> u64 {
    // A merged entry of the reference tool says no range; its ranges are row ids, and the last line's decides.
    let named = held.manifest.end().unwrap_or_else(|| fold.last_id().unsigned_abs());
    let mut end = named;
    let last = held.unnamed.len();
    for (number, entry) in held.unnamed.iter_mut().enumerate() {
        let [start, mut to] = entry.cursor_range.unwrap_or([end, end + entry.uploaded_bytes]);
        if let Some(waiting) = held.waiting.first().filter(|_| number + 1 == last) {
            to = waiting.range[0].max(start);
        }
        entry.cursor_range = Some([start, to]);
        entry.source_bytes = Some(to - start);
        end = to;
    }
    held.waiting.last().map_or(end, |part| part.range[1])
}

impl Engine {
    /// Asks the store what is captured of a session whose ledger is lost. Until it is known nothing is captured, and nothing
    /// of the session is sent: a part that is on its way would be in neither place.
    pub(super) fn relearn(&mut self, key: &SessionKey) {
        let Some(record) = self.state.get(key).cloned() else { return };
        if self.live(key).sending || !self.store_is_open() {
            self.look_at(key, Instant::now() + RELEARN_AGAIN);
            return;
        }
        let live = self.live(key);
        (live.relearning, live.sending) = (true, true);
        let (adopter, key) = (self.adopter(), key.clone());
        self.jobs.push(Box::pin(async move {
            let learned = adopter.relearn(&key, &record).await;
            Done::Relearned(key, learned)
        }));
    }

    pub(super) fn relearned(&mut self, key: &SessionKey, learned: Result<(), AdoptError>) {
        let live = self.live(key);
        (live.relearning, live.sending) = (false, false);
        self.queue_send(key);
        match learned {
            Ok(()) => {
                info!(session = %key, "which of its rows are captured was learned from the store");
                self.mark_dirty(key);
                return;
            }
            Err(AdoptError::Store(Failure::Store(error))) => self.store_failed(&error),
            Err(error) => {
                let hint = "what was captured before is safe; it is tried again";
                self.session_problem(key, "ledger_lost", &chain(&error), Some(hint));
                self.note_looked(key);
            }
        }
        self.look_at(key, Instant::now() + SESSION_RETRY);
    }
}
