//! Which session a file belongs to: new, moved, the next generation, at a second place, or known to the store already.

use std::collections::{BTreeSet, HashMap};

use tokio::time::Instant;
use tracing::info;

use super::adopt::{AdoptError, Adopted, Adopter};
use super::find::NewFile;
use super::kin::Kin;
use super::{DISK_RETRY, Done, Engine, SESSION_RETRY, chain};
use crate::mirror::manifest::Failure;
use crate::part::{ManifestError, SessionKey};
use crate::source::{self, Depth, SourceError, Verdict};
use crate::state::{Change, Record};
use crate::store::StoreError;

/// Adoptions at a time: each holds a chunk of its source.
const ADOPTIONS_MAX: usize = 2;

/// New sessions in one commit. A first start finds all of them at once: what is said of them is not to be in memory three times.
const CREATED_MAX: usize = 256;

/// What the store has of a harness: listed once per process, before the first new session is placed.
#[derive(Debug)]
pub(super) enum Folders {
    /// The listing is under way.
    Asked,
    /// Session ids with anything below them.
    Known(BTreeSet<String>),
    /// The listing failed; it is asked again when the store's back-off allows. Until then nothing counts as new.
    Failed,
}

/// Where a file belongs.
enum Place {
    /// A session of its own.
    New(SessionKey),
    /// The successor of an archived file.
    Next(SessionKey),
    /// The file of a known session, whose former path is gone.
    Takeover(SessionKey),
    /// The store or the outbox knows it.
    Adopt(SessionKey),
    /// It has a known inode; whether it is that session's file is to be compared.
    Compare(SessionKey),
    /// It is a copy of what another source has: nothing to be done.
    Copy,
    /// Something else has to happen first.
    Wait,
    /// The file is not what was found there any more: the next scan tells.
    Stale,
}

impl Engine {
    /// A candidate that no record names.
    pub(super) fn found_new(&mut self, file: NewFile) {
        let path = &file.candidate.path;
        if let Some(key) =
            self.by_path.get(path.as_path()).cloned().filter(|key| self.is_undecided(key))
        {
            return self.found_undecided(&key, &file);
        }
        let held = self.held.get(path).is_some_and(|until| *until > Instant::now());
        let known =
            held || self.by_path.contains_key(path.as_path()) || self.placing.contains(path);
        if known || self.unplaced.iter().any(|f| f.candidate.path == *path) {
            return;
        }
        self.decide_new(file);
    }

    /// Whether every file that was found has its session.
    pub(super) fn nothing_to_place(&self) -> bool {
        self.unplaced.is_empty() && self.placing.is_empty()
    }

    /// Places what can be placed now; new sessions are committed together.
    pub(super) fn place_all(&mut self) {
        self.start_orphans();
        self.start_adoptions();
        if self.unplaced.is_empty() || self.place_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.place_at = None;
        let inodes = self.inodes();
        let mut created: Vec<(SessionKey, NewFile)> = Vec::new();
        let mut files = std::mem::take(&mut self.unplaced).into_iter();
        for file in files.by_ref() {
            match self.place_of(&file, &inodes) {
                // Two new files with one id: the second one meets the first as a known session.
                Place::New(key) if created.iter().any(|(known, _)| *known == key) => {
                    self.unplaced.push(file);
                }
                Place::New(key) => created.push((key, file)),
                place => self.put_in_place(place, file),
            }
            if created.len() == CREATED_MAX && !self.create(std::mem::take(&mut created)) {
                break;
            }
        }
        let again = !created.is_empty() && !self.unplaced.is_empty();
        let is_whole = files.len() == 0;
        self.unplaced.extend(files);
        if is_whole && self.create(created) && again {
            self.place_all();
        }
    }

    /// Does what a place asks for. A commit that fails leaves the file to be placed again.
    fn put_in_place(&mut self, place: Place, file: NewFile) {
        let placed = match place {
            Place::New(key) => {
                self.create(vec![(key, file)]);
                return;
            }
            Place::Next(key) => self.follow_archive(&key, &file),
            Place::Takeover(key) => self.take_over(&key, &file),
            Place::Adopt(key) => {
                self.placing.insert(file.candidate.path.clone());
                self.adopting.insert(key.clone());
                self.adoptions.push_back((key, file));
                self.start_adoptions();
                return;
            }
            Place::Compare(key) => {
                self.placing.insert(file.candidate.path.clone());
                self.start_comparison(key, file);
                return;
            }
            Place::Stale => {
                self.leave_to_scan();
                return;
            }
            Place::Copy => return,
            Place::Wait => false,
        };
        if !placed {
            self.unplaced.push(file);
        }
    }

    /// After a failed commit: placing waits until the disk may have room.
    fn hold_placing(&mut self) {
        self.place_at = Some(Instant::now() + DISK_RETRY);
    }

    /// Commits new sessions. A failure leaves their files to be placed again when the disk may have room.
    fn create(&mut self, created: Vec<(SessionKey, NewFile)>) -> bool {
        let change = |(key, file): &(SessionKey, NewFile)| Change::Session {
            key: key.clone(),
            record: Box::new(self.new_record(file)),
        };
        if !self.commit(created.iter().map(change).collect()) {
            self.unplaced.extend(created.into_iter().map(|(_, file)| file));
            self.hold_placing();
            return false;
        }
        for (key, _) in &created {
            self.adopt_record(key);
            self.mark_dirty(key);
        }
        true
    }

    fn inodes(&self) -> HashMap<(u64, u64), SessionKey> {
        let sessions = self.state.state().sessions.iter();
        sessions
            .filter(|(_, record)| !record.superseded)
            .map(|(key, r)| ((r.cursor.stat.dev, r.cursor.stat.ino), key.clone()))
            .collect()
    }

    fn place_of(&mut self, file: &NewFile, inodes: &HashMap<(u64, u64), SessionKey>) -> Place {
        let path = &file.candidate.path;
        // It may have waited for a while: for the store, or for room on the disk.
        let there = self.tools.files.stat(path).map(|stat| (stat.dev, stat.ino)).ok();
        if there != Some((file.stat.dev, file.stat.ino)) {
            return Place::Stale;
        }
        if let Some(key) = inodes.get(&(file.stat.dev, file.stat.ino))
            && let Some(record) = self.state.get(key)
            && key.harness() == file.candidate.harness
            && *record.source != **path
        {
            if self.live.get(key).is_some_and(|live| live.looking) {
                return Place::Wait;
            }
            let there = self.tools.files.stat(&record.source);
            if there.is_ok_and(|s| (s.dev, s.ino) == (file.stat.dev, file.stat.ino)) {
                // One file under two names (a hard link): the first one counts.
            } else {
                return Place::Compare(key.clone());
            }
        }
        self.place_by_id(file)
    }

    fn place_by_id(&mut self, file: &NewFile) -> Place {
        let base = self.key_of(file);
        let directory = file.candidate.path.parent().unwrap_or(&file.candidate.path);
        let place = if file.archived() { &file.candidate.path } else { directory };
        let elsewhere = base.at_place(place.as_os_str().as_encoded_bytes());
        for key in [base, elsewhere] {
            let Some((newest, record)) = self.newest(&key) else { return self.place_unknown(key) };
            let (archived, superseded) = (record.archived, record.superseded);
            let (newest, exhausted) = (newest.clone(), record.cursor.rest == Some(0));
            let source = record.source.clone();
            let gone = record.gone;
            let in_database = record.encoding.is_in_database();
            if self.live.get(&newest).is_some_and(|live| live.looking) {
                return Place::Wait;
            }
            if superseded {
                if !self.folders_known(&key) {
                    return Place::Wait; // The next number has to be one that the store does not have.
                }
                return Place::Next(newest); // Adopted without its source: whatever turns up is another life.
            }
            let there = self.tools.files.stat(&source);
            // That a database cannot be read now does not make its sessions another's.
            let lost =
                matches!(there, Err(SourceError::Missing(_))) || there.is_err() && !in_database;
            match self.kin(file, &newest, gone || lost) {
                Kin::Copy => return Place::Copy,
                Kin::Heir => return Place::Takeover(newest),
                Kin::NotYet => {
                    self.mark_dirty(&newest);
                    return Place::Wait;
                }
                Kin::Stranger => {}
            }
            if gone || lost {
                return Place::Takeover(newest);
            }
            if archived && !file.archived() {
                // The old life is read to its end before the new one begins.
                if exhausted {
                    return Place::Next(newest);
                }
                self.mark_dirty(&newest);
                return Place::Wait;
            }
        }
        Place::Wait // The same id at the same place, twice: the scan will not give it again.
    }

    /// The session's first key. The reference tool knows no owners: where it has stored a sub-agent under its bare id, and
    /// nobody under the one that we give, that is where it goes on.
    fn key_of(&self, file: &NewFile) -> SessionKey {
        let own = file.key();
        let bare = SessionKey::new(file.candidate.harness, &file.candidate.id);
        let is_known =
            |key: &SessionKey| self.newest(key).is_some() || !self.generations(key).is_empty();
        if bare != own && !is_known(&own) && is_known(&bare) { bare } else { own }
    }

    fn place_unknown(&mut self, key: SessionKey) -> Place {
        if self.adopting.contains(&key) {
            return Place::Wait;
        }
        if !self.folders_known(&key) {
            Place::Wait
        } else if self.generations(&key).is_empty() {
            Place::New(key)
        } else {
            Place::Adopt(key)
        }
    }

    /// Whether the store was listed for a harness; asks for it where that is possible and was not done.
    pub(super) fn folders_known(&mut self, key: &SessionKey) -> bool {
        match self.folders.get(key.harness()) {
            Some(Folders::Known(_)) => return true,
            Some(Folders::Asked) => {}
            Some(Folders::Failed) if !self.store_is_open() => {}
            Some(Folders::Failed) | None => self.ask_folders(key.harness().to_owned()),
        }
        false
    }

    fn ask_folders(&mut self, harness: String) {
        self.folders.insert(harness.clone(), Folders::Asked);
        let store = self.tools.store.clone();
        self.jobs.push(Box::pin(async move {
            let listed = store.list_folders(&format!("sessions/{harness}/")).await;
            Done::Folders(harness, listed)
        }));
    }

    pub(super) fn listed_folders(
        &mut self,
        harness: String,
        listed: Result<Vec<String>, StoreError>,
    ) {
        let folders = match listed {
            Ok(names) => {
                self.store_works();
                Folders::Known(names.into_iter().collect())
            }
            Err(error) => {
                self.store_failed(&error);
                Folders::Failed
            }
        };
        self.folders.insert(harness, folders);
    }

    /// Every generation of a session that the store or the outbox has, in order.
    pub(super) fn generations(&self, base: &SessionKey) -> Vec<SessionKey> {
        let mut all = BTreeSet::new();
        if let Some(Folders::Known(ids)) = self.folders.get(base.harness()) {
            for id in ids {
                let key = format!("{}/{id}", base.harness()).parse::<SessionKey>();
                all.extend(key.ok().filter(|k| k.base() == base.id()).map(|k| (k.generation(), k)));
            }
        }
        let waiting = self.orphans.iter().map(|w| &w.key);
        let own = waiting.filter(|k| k.harness() == base.harness() && k.base() == base.id());
        all.extend(own.map(|k| (k.generation(), k.clone())));
        all.into_iter().map(|(_, key)| key).collect()
    }

    /// The newest generation that the state has: the one that is followed, if any is. What another writer's parts drove out of
    /// an ended generation has a higher number.
    pub(super) fn newest(&self, base: &SessionKey) -> Option<(&SessionKey, &Record)> {
        self.in_state(base).max_by_key(|(key, record)| (!record.superseded, key.generation()))
    }

    /// All generations of a session that the state has.
    fn in_state(&self, base: &SessionKey) -> impl Iterator<Item = (&SessionKey, &Record)> {
        let base = base.with_generation(1);
        let sessions = &self.state.state().sessions;
        let (from, own) = (base.clone(), base.clone());
        let all = sessions.range(from..).take_while(move |(key, _)| {
            key.harness() == base.harness() && key.id().starts_with(base.base())
        });
        all.filter(move |(key, _)| key.harness() == own.harness() && key.base() == own.base())
            .map(|(key, record)| (key, &**record))
    }

    /// The highest generation number that the state, the store or the outbox has.
    pub(super) fn newest_number(&self, key: &SessionKey) -> u32 {
        let base = key.with_generation(1);
        let in_state = self.in_state(&base).map(|(key, _)| key.generation()).max().unwrap_or(1);
        let elsewhere = self.generations(&base).last().map_or(1, SessionKey::generation);
        in_state.max(elsewhere)
    }

    fn new_record(&self, file: &NewFile) -> Record {
        let started_at = file.facts.started_at.clone().unwrap_or_else(|| self.now_text());
        let candidate = &file.candidate;
        Record {
            cwd: file.facts.cwd.clone(),
            archived: file.archived(),
            ..Record::new(
                candidate.path.as_path().into(),
                candidate.encoding,
                started_at,
                file.stat,
            )
        }
    }

    /// A live file where an archived one had its id: the next life of that session.
    fn follow_archive(&mut self, key: &SessionKey, file: &NewFile) -> bool {
        let Some(old) = self.state.get(key).cloned() else { return false };
        let fresh = Record {
            source: file.candidate.path.as_path().into(),
            encoding: file.candidate.encoding,
            cwd: file.facts.cwd.clone().or(old.cwd.clone()),
            archived: file.archived(),
            ..self.fresh_record(&old, file.stat, "its agent set the former file aside")
        };
        let is_committed = self.supersede(key, fresh);
        if !is_committed {
            self.hold_placing();
        }
        is_committed
    }

    /// The session's file is at another path now. What is in it decides at the next look whether it goes on.
    fn take_over(&mut self, key: &SessionKey, file: &NewFile) -> bool {
        let Some(old) = self.state.get(key).cloned() else { return false };
        let record = Record {
            source: file.candidate.path.as_path().into(),
            encoding: file.candidate.encoding,
            archived: file.archived(),
            cwd: old.cwd.clone().or(file.facts.cwd.clone()),
            gone: false,
            ended_at: old.ended_at.clone().filter(|_| file.archived() || !old.gone),
            manifest_due: true,
            ..old.clone()
        };
        let source = record.source.clone();
        let change = Change::Session { key: key.clone(), record: Box::new(record) };
        if !self.commit(vec![change]) {
            self.hold_placing();
            return false;
        }
        info!(session = %key, "its file moved");
        self.by_path.remove(&old.source);
        self.by_path.insert(source, key.clone());
        self.live(key).trusted = false;
        self.apply_rules(key); // The file may have named the directory.
        self.mark_dirty(key);
        self.queue_send(key);
        true
    }

    fn start_comparison(&mut self, key: SessionKey, file: NewFile) {
        let Some(record) = self.state.get(&key) else { return };
        let (files, blocking) = (self.tools.files.clone(), self.tools.reading.clone());
        let cursor = record.cursor.clone();
        self.jobs.push(Box::pin(async move {
            let (path, encoding) = (file.candidate.path.clone(), file.candidate.encoding);
            let compare = move || source::check(&*files, &path, encoding, &cursor, Depth::Whole);
            let verdict = blocking.run(compare).await;
            let intact = matches!(verdict, Ok(Verdict::Intact { .. } | Verdict::Unchanged));
            Done::Compared(Box::new(file), key, intact)
        }));
    }

    pub(super) fn compared(&mut self, file: NewFile, key: &SessionKey, intact: bool) {
        self.placing.remove(&file.candidate.path);
        let looking = self.live.get(key).is_some_and(|live| live.looking);
        let current = self.state.get(key).is_some_and(|record| !record.superseded);
        let place = match (intact && current, looking) {
            (true, false) => Place::Takeover(key.clone()),
            (true, true) => Place::Wait, // Asked again when the look is done.
            (false, _) => self.place_by_id(&file),
        };
        self.put_in_place(place, file);
    }

    pub(super) fn adopter(&self) -> Adopter {
        Adopter {
            store: self.tools.store.clone(),
            tools: self.capture_tools(),
            blocking: self.tools.reading.clone(),
            now: self.now_text(),
        }
    }

    /// Begins as many adoptions as may run at a time: each one walks a source.
    fn start_adoptions(&mut self) {
        while self.adoptions_running < ADOPTIONS_MAX
            && self.store_is_open()
            && let Some((base, file)) = self.adoptions.pop_front()
        {
            let generations = self.generations(&base);
            let same =
                |key: &SessionKey| key.harness() == base.harness() && key.base() == base.id();
            let waiting: Vec<_> = self.orphans.iter().filter(|w| same(&w.key)).cloned().collect();
            let adopter = self.adopter();
            self.adoptions_running += 1;
            self.jobs.push(Box::pin(async move {
                let adopted = adopter.adopt(&file, generations, waiting).await;
                Done::Adopted(base, Box::new(file), adopted)
            }));
        }
    }

    pub(super) fn adopted(
        &mut self,
        base: &SessionKey,
        file: NewFile,
        adopted: Result<Adopted, AdoptError>,
    ) {
        self.placing.remove(&file.candidate.path);
        self.adopting.remove(base);
        self.adoptions_running -= 1;
        match adopted {
            Ok(adopted) => {
                if !self.take_in(adopted) {
                    self.unplaced.push(file);
                    self.hold_placing();
                }
            }
            Err(AdoptError::Changed) => self.unplaced.push(file),
            Err(AdoptError::Source(SourceError::Missing(_))) => {
                self.leave_to_scan();
            }
            Err(AdoptError::Source(error)) => {
                let path = file.candidate.path.display().to_string();
                self.problem("source_unreadable", &path, &chain(&error), None);
                self.orphans_scan = self.scans + 1;
            }
            Err(AdoptError::Outbox(error)) => {
                self.outbox_unusable(&error);
                self.unplaced.push(file);
                self.hold_placing();
            }
            Err(AdoptError::Store(failure)) => {
                let away = matches!(failure, Failure::Store(_));
                self.adoption_failed(base, failure);
                if away {
                    self.unplaced.push(file);
                } else {
                    // One bad manifest must hold up nobody else: a later scan brings the file again.
                    self.held.insert(file.candidate.path, Instant::now() + SESSION_RETRY);
                }
            }
        }
    }

    pub(super) fn adoption_failed(&mut self, key: &SessionKey, failure: Failure) {
        match failure {
            Failure::Manifest(error @ ManifestError::UnknownVersion { .. }) => {
                self.fatal = Some(error.into());
            }
            Failure::Store(error) => self.store_failed(&error),
            other => {
                let hint = "mend or remove the object; the session is held back until then";
                self.problem("manifest_invalid", &key.to_string(), &chain(&other), Some(hint));
            }
        }
    }

    /// Commits records that adoption brought, and follows the newest.
    pub(super) fn take_in(&mut self, adopted: Adopted) -> bool {
        let changes = adopted
            .records
            .iter()
            .map(|(key, record)| Change::Session {
                key: key.clone(),
                record: Box::new(record.clone()),
            })
            .collect();
        if !self.commit(changes) {
            return false;
        }
        let keys: Vec<SessionKey> = adopted.records.iter().map(|(key, _)| key.clone()).collect();
        self.orphans.retain(|w| !keys.contains(&w.key));
        for (key, _) in &adopted.records {
            self.clear_problem("manifest_invalid", &key.with_generation(1).to_string());
            self.adopt_record(key);
            self.mark_dirty(key);
        }
        if let Some((key, _)) = adopted.records.last() {
            info!(session = %key, "continued from the store");
        }
        true
    }
}
