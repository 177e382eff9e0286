//! The task that owns the state: timer, hints, commands, capture, send, compaction, recovery.
//!
//! One loop owns everything by value. Work that waits (reading, storing) runs as jobs whose results come back as [`Done`]; only
//! the loop commits, and a failed commit means that nothing happened. Dropping the [`Engine`] at any point is a kill: what a
//! restart needs is on disk.

mod adopt;
mod adopt_rows;
mod answer;
mod automatic;
mod capture;
mod clock;
mod compact;
mod compactions;
mod contents;
mod databases;
mod deliver;
mod feed;
mod find;
mod follow;
pub(crate) mod handle;
mod hint;
mod interface;
mod kin;
mod listen;
mod live;
mod look;
mod manifest;
mod orphans;
mod pause;
mod place;
mod problems;
mod pulse;
mod replay;
mod retreat;
mod rows;
mod scan;
mod send;
mod tiers;
mod verify;
mod wait;

#[cfg(test)]
mod model;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{error, info, warn};

pub(crate) use self::clock::{Clock, SystemClock};
pub(crate) use self::find::{Finder, RootsFinder, chain};
pub(crate) use self::interface::{Automatic, Fatal, Numbers, Settings, Signal, Summary, Tools};
pub(crate) use self::pulse::Pulse;
pub(crate) use self::tiers::Tiers;
use crate::api::{Phase, Problem};
use crate::ledger::Ledgers;
use crate::outbox::{Outbox, Waiting};
use crate::part::SessionKey;
use crate::state::{Change, Found, PendingPart, StateFile};
use crate::store::Conditions;
use handle::Command;
use live::Live;

/// Everything is looked at this often, whatever the events say.
const SCAN_EVERY: Duration = Duration::from_secs(60);

/// After this long without anything new a session is idle: its prefix is compared once, its manifest brought up to date.
const IDLE_AFTER: Duration = Duration::from_secs(60);

/// A remote manifest names stored parts at least this often; readers list what it does not name yet.
const MANIFEST_EVERY: Duration = Duration::from_secs(120);

/// What failed on our own disk is tried again after this.
const DISK_RETRY: Duration = Duration::from_secs(5);

/// First and longest wait after a failure of the store.
const STORE_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A session whose manifest cannot be used is tried again after this: a person may mend it.
const SESSION_RETRY: Duration = Duration::from_secs(60);

/// The last flush of a stopping daemon ends within this, well below the 30 s after which the unit has it killed.
const DRAIN_MAX: Duration = Duration::from_secs(20);

/// `--once` gives up after this long without anything captured or stored.
const ONCE_STALL: Duration = Duration::from_secs(60);

/// Sends in flight to a local store, which shares its waits for the disk among them.
const SENDS_MAX: usize = 32;

/// `--once` gives up after this many refusals in a row (no right, no such bucket): only a person ends those. More than one,
/// since a key that was just made is not known to all servers of a store at once.
const ONCE_REFUSALS_MAX: u32 = 3;

/// Sends in flight to a remote store: enough to drain thousands of manifests in time, few enough for stores that shed load
/// from a dozen requests on.
const SENDS_MAX_REMOTE: usize = 12;

/// What a job brings back.
enum Done {
    Scanned(u64, find::Findings),
    Hinted(Vec<(PathBuf, find::Looked)>),
    Captured(capture::Batch),
    Sent(Box<send::Sent>),
    Folders(String, Result<Vec<String>, crate::store::StoreError>),
    Compared(Box<find::NewFile>, SessionKey, bool),
    Adopted(SessionKey, Box<find::NewFile>, Result<adopt::Adopted, adopt::AdoptError>),
    Relearned(SessionKey, Result<(), adopt::AdoptError>),
    Orphans(SessionKey, Result<adopt::Adopted, adopt::AdoptError>),
    Compaction(Box<compactions::Step>),
    Moved(SessionKey, Box<Result<retreat::Moved, manifest::Failure>>),
    Left(SessionKey, Result<Vec<crate::part::PartName>, manifest::Failure>),
    Replayed,
    Verification(Box<verify::Step>),
}

/// Why a problem is shown, with its object: one of a kind is shown once.
type ProblemKey = (&'static str, String);

/// The owner of the state.
pub(crate) struct Engine {
    tools: Tools,
    settings: Settings,
    state: StateFile,
    outbox: Outbox,
    ledgers: Ledgers,
    /// Set when a commit failed: remnants may lie in the outbox.
    sweep_due: bool,
    jobs: FuturesUnordered<BoxFuture<'static, Done>>,
    started: Instant,
    phase: Phase,
    drain_until: Option<Instant>,
    /// The manifests were told that the sessions ended.
    ends_said: bool,

    /// Boxed, since a third of the table is empty.
    live: HashMap<SessionKey, Box<Live>>,
    /// The paths are shared with scans, which take all of them along.
    by_path: HashMap<Arc<Path>, SessionKey>,
    excluded: HashSet<PathBuf>,
    /// Files that are not placed before a record names their directory.
    undecided: HashMap<PathBuf, SessionKey>,
    unplaced: Vec<find::NewFile>,
    placing: HashSet<PathBuf>,
    /// Their manifests cannot be used; until then nothing is known of them.
    held: HashMap<PathBuf, Instant>,
    /// Nothing is placed before this: the state could not be written.
    place_at: Option<Instant>,
    adoptions: VecDeque<(SessionKey, find::NewFile)>,
    adoptions_running: usize,
    adopting: BTreeSet<SessionKey>,
    folders: BTreeMap<String, place::Folders>,
    /// The outbox's parts that no state names, after a lost state.
    orphans: Vec<Waiting>,
    orphans_started: bool,
    /// They wait for this scan: its files may be theirs.
    orphans_scan: u64,

    scans: u64,
    scan_done: u64,
    scanning: bool,
    scan_at: Instant,
    polled: bool,
    /// Events are not asked for before this.
    hints_at: Instant,
    roots: Vec<crate::api::Root>,

    dirty: BTreeSet<SessionKey>,
    /// Databases of which an event told.
    dirty_databases: BTreeSet<PathBuf>,
    tick_at: Option<Instant>,
    last_tick: Option<Instant>,
    pass: VecDeque<SessionKey>,
    capturing: bool,
    timers: BTreeSet<(Instant, SessionKey)>,

    to_send: BTreeSet<(Reverse<i64>, SessionKey)>,
    sends: usize,
    /// Entries of the manifests that they hold.
    entries_held: u64,
    /// Whether the store is there, as far as the last operations tell.
    standing: pause::Standing,
    /// Sessions whose last send failed, and until when they rest.
    resting: BTreeSet<(Instant, SessionKey)>,
    outbox_bytes: u64,
    compactions: HashMap<SessionKey, compactions::Running>,
    /// Sessions whose manifest has parts that are to be merged, as it was last seen.
    to_merge: BTreeSet<SessionKey>,
    /// Whether this store lets us delete; not known before the first compaction.
    deletes: Option<bool>,
    /// Generations that were left to another writer with objects of ours in them, and when to look at those.
    leaving: BTreeMap<SessionKey, Instant>,

    waiters: Vec<wait::Waiter>,
    /// Flushes of everything that hooks asked for.
    hinted: hint::Asked,
    verification: Option<verify::Verification>,
    /// What verifications since the start found wrong, and none has found right since.
    found_wrong: BTreeSet<SessionKey>,
    problems: BTreeMap<ProblemKey, Problem>,
    listeners: listen::Listeners,
    /// What happened since the start, for monitoring.
    counts: handle::Counts,
    progress_at: Instant,
    summary: Summary,
    last_stored_at: Option<String>,
    /// Something was looked at since everything was last stored.
    flushing: bool,
    last_flush_at: Option<String>,
    fatal: Option<Fatal>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the state; nothing else is read or written yet.
    pub(crate) fn open(tools: Tools, settings: Settings) -> Result<Engine, Fatal> {
        let store = tools.store.identity().to_owned();
        let (state, found) = StateFile::open(tools.disk.clone(), &settings.state_dir, &store)?;
        let outbox = Outbox::new(&settings.state_dir);
        if found == Found::Intact
            && let Err(e) = outbox.sweep(&*tools.disk, state.state())
        {
            warn!(error = %e, "cannot sweep the outbox");
        }
        let ledgers = Ledgers::new(&settings.state_dir);
        if found == Found::Intact
            && let Err(e) = ledgers.sweep(&*tools.disk, state.state())
        {
            warn!(error = %e, "cannot sweep the ledgers");
        }
        // Also of an intact state: the one before it may have been lost and its parts not been adopted yet. Read errors here
        // would hide parts that wait, so they end the start.
        let mut orphans = outbox.waiting(&*tools.disk).map_err(|source| {
            let path = settings.state_dir.join("outbox");
            crate::state::StateError::Io { operation: "list", path, source }
        })?;
        orphans.retain(|waiting| state.get(&waiting.key).is_none());
        if let Found::Damaged(aside) = &found {
            error!(?aside, "the state was damaged: set aside, rebuilding from the store");
        }
        let now = Instant::now();
        let mut engine = Engine {
            tools,
            settings,
            state,
            outbox,
            ledgers,
            sweep_due: false,
            jobs: FuturesUnordered::new(),
            started: now,
            phase: Phase::Starting,
            drain_until: None,
            ends_said: false,
            live: HashMap::new(),
            by_path: HashMap::new(),
            excluded: HashSet::new(),
            undecided: HashMap::new(),
            unplaced: Vec::new(),
            placing: HashSet::new(),
            held: HashMap::new(),
            place_at: None,
            adoptions: VecDeque::new(),
            adoptions_running: 0,
            adopting: BTreeSet::new(),
            folders: BTreeMap::new(),
            orphans,
            orphans_started: false,
            orphans_scan: 1,
            scans: 0,
            scan_done: 0,
            scanning: false,
            scan_at: now,
            polled: false,
            hints_at: now,
            roots: Vec::new(),
            dirty: BTreeSet::new(),
            dirty_databases: BTreeSet::new(),
            tick_at: None,
            last_tick: None,
            pass: VecDeque::new(),
            capturing: false,
            timers: BTreeSet::new(),
            to_send: BTreeSet::new(),
            sends: 0,
            entries_held: 0,
            standing: pause::Standing::default(),
            resting: BTreeSet::new(),
            outbox_bytes: 0,
            compactions: HashMap::new(),
            to_merge: BTreeSet::new(),
            deletes: None,
            leaving: BTreeMap::new(),
            waiters: Vec::new(),
            hinted: hint::Asked::default(),
            verification: None,
            found_wrong: BTreeSet::new(),
            problems: BTreeMap::new(),
            listeners: listen::Listeners::default(),
            counts: handle::Counts::default(),
            progress_at: now,
            summary: Summary::default(),
            last_stored_at: None,
            flushing: false,
            last_flush_at: None,
            fatal: None,
        };
        engine.load();
        Ok(engine)
    }

    /// What the state says, made ready for work: what waits is sent, what was begun is finished.
    fn load(&mut self) {
        if !self.settings.redact {
            let hint = "remove `redact = false` from the configuration";
            self.problem("redaction_off", "", "secrets are NOT removed", Some(hint));
        }
        let keys: Vec<SessionKey> = self.state.state().sessions.keys().cloned().collect();
        keys.iter().for_each(|key| self.adopt_record(key));
    }

    /// Takes a session that is new to this process into the working set.
    fn adopt_record(&mut self, key: &SessionKey) {
        let Some(record) = self.state.get(key).cloned() else { return };
        self.tell_found(key);
        let waiting = record.pending.iter().filter(|p| p.stored_at.is_none());
        self.outbox_bytes += waiting.map(|p| p.bytes).sum::<u64>();
        let live = self.live.entry(key.clone()).or_default();
        // Where a write of ours cannot have been lost to another recorder, what was named is looked at when there is more to
        // name: a start with an intact state asks the store for nothing.
        let sure = self.tools.store.conditions() == Conditions::Honoured;
        let waits = |p: &PendingPart| if sure { p.is_unnamed() } else { p.stored_at.is_some() };
        live.unnamed_since = record.pending.iter().any(waits).then(Instant::now);
        live.named_at = record.pending.iter().any(|p| p.named).then(Instant::now);
        self.apply_rules(key);
        self.last_stored_at = self.last_stored_at.take().max(record.totals.last_stored_at.clone());
        // A file that was set aside never takes the place of one that is followed.
        let set_aside =
            record.archived && !record.gone && !self.by_path.contains_key(&record.source);
        if !record.superseded || set_aside {
            self.by_path.insert(record.source.clone(), key.clone());
        }
        self.queue_send(key);
        if record.leaving.is_some() {
            self.leaving.insert(key.clone(), Instant::now());
        }
        self.note_mergeable(key);
        if record.compaction.is_some() {
            self.finish_compaction(key);
        }
    }

    /// Where state and outbox are.
    pub(crate) fn state_dir(&self) -> &std::path::Path {
        &self.settings.state_dir
    }

    /// Runs until a signal, a fatal error, or (with `once`) until all is done.
    pub(crate) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut signals: mpsc::Receiver<Signal>,
    ) -> Result<Summary, Fatal> {
        loop {
            self.start_work();
            if let Some(fatal) = self.fatal.take() {
                return Err(fatal);
            }
            if self.is_finished() {
                break;
            }
            self.tools.pulse.turn();
            let due = self.next_due();
            let pulse = self.tools.pulse.clone();
            let (hints, hints_at) = (self.tools.hints.clone(), self.hints_at);
            let hinted = async move {
                tokio::time::sleep_until(hints_at).await;
                hints.changed().await;
            };
            tokio::select! {
                biased;
                Some(signal) = signals.recv() => self.signal(signal),
                Some(done) = self.jobs.next(), if !self.jobs.is_empty() => self.done(done),
                Some(command) = commands.recv() => self.command(command),
                () = pulse.asked() => {}
                () = hinted, if self.phase != Phase::Stopping => self.take_hints(),
                () = tokio::time::sleep_until(due) => {}
            }
        }
        if let Err(e) = self.state.close() {
            // The journal has all that the snapshot lacks.
            warn!(error = %chain(&e), "cannot fold the journal");
        }
        Ok(self.sum_up())
    }

    /// Starts whatever is due and has room.
    fn start_work(&mut self) {
        if self.settings.once && self.phase != Phase::Stopping && self.is_settled() {
            self.begin_drain();
        }
        if self.phase != Phase::Stopping {
            self.start_scan();
            self.place_all();
        }
        // Before work is started: an answer may ask for more of it, and nothing else would wake the loop for that.
        self.answer_waiters();
        self.start_hinted();
        self.fire_timers();
        self.start_capture();
        // Before the sends: a repair waits until nobody sends its session, and they would always be faster.
        self.start_verification();
        self.start_sends();
        self.drain_step();
        if self.phase == Phase::Starting && self.scan_done > 0 && self.nothing_to_place() {
            let read = self.dirty.is_empty() && self.pass.is_empty() && !self.capturing;
            if read {
                self.enter(Phase::Recording);
            }
        }
        self.note_flushed();
        self.tell_status();
    }

    fn done(&mut self, done: Done) {
        self.note_news();
        match done {
            Done::Scanned(serial, findings) => self.scanned(serial, findings),
            Done::Hinted(looked) => self.hinted(looked),
            Done::Captured(batch) => self.captured(batch),
            Done::Sent(sent) => self.sent(*sent),
            Done::Folders(harness, listed) => self.listed_folders(harness, listed),
            Done::Compared(file, key, intact) => self.compared(*file, &key, intact),
            Done::Adopted(base, file, adopted) => self.adopted(&base, *file, adopted),
            Done::Relearned(key, learned) => self.relearned(&key, learned),
            Done::Orphans(key, adopted) => self.adopted_orphans(&key, adopted),
            Done::Compaction(step) => self.compaction_step(*step),
            Done::Moved(key, moved) => self.moved(&key, *moved),
            Done::Left(key, left) => self.left(&key, left),
            Done::Replayed => {}
            Done::Verification(step) => self.verification_step(*step),
        }
    }

    fn signal(&mut self, signal: Signal) {
        match signal {
            Signal::Drain if self.phase != Phase::Stopping => self.begin_drain(),
            Signal::Drain => {}
            Signal::Flush => self.flush_all(None),
            Signal::Reload(settings) => self.reload(*settings),
            Signal::Misconfigured(why) => {
                let hint =
                    "mend it and reload or restart; what was read before is in force until then";
                self.problem("config_invalid", "", &why, Some(hint));
            }
        }
    }

    /// Takes new settings; what cannot change while running is kept by the caller as it was.
    fn reload(&mut self, settings: Settings) {
        self.settings = settings;
        self.clear_problem("config_invalid", "");
        self.clear_problem("redaction_off", "");
        if !self.settings.redact {
            self.problem("redaction_off", "", "secrets are NOT removed", None);
        }
        self.excluded.clear();
        self.undecided.clear();
        let keys: Vec<SessionKey> = self.state.state().sessions.keys().cloned().collect();
        keys.iter().for_each(|key| self.apply_rules(key));
        self.scan_at = Instant::now();
        info!("configuration read again");
    }

    /// When the loop has to wake even if nothing happens.
    fn next_due(&self) -> Instant {
        let mut due = if self.scanning || self.phase == Phase::Stopping {
            Instant::now() + SCAN_EVERY
        } else {
            self.scan_at
        };
        // What is overdue waits for something else than time: room, an answer, the end of a job.
        let now = Instant::now();
        let mut earlier =
            |at: Option<Instant>| due = due.min(at.filter(|at| *at > now).unwrap_or(due));
        earlier(self.timers.first().map(|(at, _)| *at));
        let dirty = !self.dirty.is_empty() || !self.dirty_databases.is_empty();
        if !self.capturing && (dirty || !self.pass.is_empty()) {
            earlier(self.tick_at);
        }
        if !self.to_send.is_empty() || !self.compactions.is_empty() || !self.nothing_to_place() {
            self.store_due().into_iter().for_each(&mut earlier);
        }
        earlier(self.resting.first().map(|(until, _)| *until));
        earlier(self.compaction_due());
        earlier(self.leaving_due());
        earlier(self.place_at);
        earlier(self.hinted.due());
        earlier(self.drain_until);
        earlier(self.snapshot_due());
        if self.settings.once {
            earlier(Some(self.progress_at + ONCE_STALL));
        }
        due
    }

    /// Commits changes; a failure is shown, and nothing of them has happened.
    fn commit(&mut self, changes: Vec<Change>) -> bool {
        if changes.is_empty() {
            return true;
        }
        let path = self.settings.state_dir.display().to_string();
        match self.state.commit(changes) {
            Ok(()) => {
                self.clear_problem("state_unwritable", &path);
                if std::mem::take(&mut self.sweep_due)
                    && !self.capturing
                    && let Err(e) = self.outbox.sweep(&*self.tools.disk, self.state.state())
                {
                    self.sweep_due = true;
                    warn!(error = %e, "cannot sweep the outbox");
                }
                true
            }
            Err(e) => {
                self.sweep_due = true;
                self.state_unwritable(&chain(&e));
                false
            }
        }
    }

    fn state_unwritable(&mut self, message: &str) {
        let path = self.settings.state_dir.display().to_string();
        let hint = "make room, or check the rights of the directory";
        self.problem("state_unwritable", &path, message, Some(hint));
    }

    /// A flush is over when all that was looked at is captured, and all that was captured is stored.
    fn note_flushed(&mut self) {
        let looked = !self.capturing && self.pass.is_empty();
        if self.flushing && looked && self.outbox_bytes == 0 {
            self.flushing = false;
            self.last_flush_at = Some(self.now_text());
            self.note_news();
        }
    }

    fn live(&mut self, key: &SessionKey) -> &mut Live {
        self.live.entry(key.clone()).or_default()
    }

    fn now_text(&self) -> String {
        self.tools.clock.now().to_string()
    }
}
