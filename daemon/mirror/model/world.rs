//! The world that the model plays: sources and what they held at every moment, a disk, a store, and faults.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::others::Others;
use crate::durable::memory::{DiskFault, MemoryDisk};
use crate::durable::{Blocking, Disk};
use crate::harness::{Candidate, Facts, Standing};
use crate::mirror::find::{Finder, Findings, Known, Looked, Met, NewFile};
use crate::mirror::{Automatic, Clock, Numbers, Settings, Tiers, Tools};
use crate::redact::Redactor;
use crate::source::database::Databases;
use crate::source::memory::MemoryFiles;
use crate::source::{Encoding, Files, Stat};
use crate::store::memory::{MemoryStore, OpKind, StoreFault};
use crate::store::{Conditions, ErrorKind, FsStore, Retry, Store};
use crate::watch::Hints;

pub(super) const STATE: &str = "/state";
pub(super) const BUCKET: &str = "/bucket";

/// Of a secret in the records: `AKIA` and digits.
pub(super) const SECRET_BYTES: usize = 20;

/// One session's source as the model knows it.
#[derive(Debug, Clone, Default)]
pub(super) struct Source {
    pub(super) path: PathBuf,
    pub(super) exists: bool,
    /// Every content that the file ever had, oldest first.
    pub(super) held: Vec<Vec<u8>>,
    /// Changes that may begin a generation.
    pub(super) rewrites: u32,
    /// What the store had to have when a flush was answered: redacted, with the number of the content it was made from.
    pub(super) flushed: Vec<u8>,
}

/// Faults that are to come, shared with the hooks.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// Steps of disk and store until the process dies.
    pub(super) dies_in: Option<u64>,
    pub(super) dead: bool,
    /// One request in so many fails.
    pub(super) store_fails_one_in: Option<u64>,
    /// One step on our own disk in so many fails.
    pub(super) disk_fails_one_in: Option<u64>,
    pub(super) steps: u64,
}

/// Time since the sequence began, so that files and clock agree, and by how much the time of day was set forth or back.
#[derive(Debug)]
pub(super) struct ModelClock {
    began: Instant,
    set_by_ns: AtomicI64,
}

impl ModelClock {
    fn elapsed_ns(&self) -> i64 {
        let elapsed = i64::try_from(self.began.elapsed().as_nanos()).expect("a sequence is short");
        elapsed + self.set_by_ns.load(Ordering::Relaxed)
    }
}

impl Clock for ModelClock {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::from_nanosecond(i128::from(self.elapsed_ns())).expect("a small number")
    }
}

#[derive(Debug, Clone)]
struct ModelFinder {
    files: MemoryFiles,
    paths: Arc<Mutex<BTreeMap<PathBuf, String>>>,
}

impl ModelFinder {
    fn describe(&self, path: &Path, id: &str) -> Option<NewFile> {
        let stat = self.files.stat(path).ok().filter(|stat| stat.size > 0)?;
        Some(NewFile {
            candidate: Candidate {
                harness: "codex",
                path: path.to_owned(),
                id: id.to_owned(),
                id_from_records: false,
                encoding: Encoding::Plain,
                standing: Standing::Live,
            },
            stat,
            facts: Facts::default(),
        })
    }
}

impl Finder for ModelFinder {
    fn scan(&self, known: &Known) -> Findings {
        let mut findings = Findings::default();
        for (path, id) in self.paths.lock().unwrap().iter() {
            if let Some((path, was)) = known.get_key_value(path.as_path()) {
                let is_as = |was: Stat| self.files.stat(path).is_ok_and(|now| now == was);
                let changed = !was.is_some_and(|(stat, archived)| !archived && is_as(stat));
                findings.known.push(Met { path: path.clone(), archived: false, changed });
            } else {
                findings.new.extend(self.describe(path, id));
            }
        }
        findings
    }

    fn look(&self, path: &Path) -> Looked {
        let id = self.paths.lock().unwrap().get(path).cloned();
        match id.and_then(|id| self.describe(path, &id)) {
            Some(file) => Looked::Session(Box::new(file)),
            None => Looked::Nothing,
        }
    }

    fn cwd(&self, _: &str, _: &[u8], _: bool) -> Option<String> {
        None
    }
}

/// Everything outside the engine.
pub(super) struct World {
    pub(super) rng: fastrand::Rng,
    pub(super) files: MemoryFiles,
    pub(super) disk: MemoryDisk,
    pub(super) memory_store: Option<MemoryStore>,
    pub(super) faults: Arc<Mutex<Faults>>,
    pub(super) sources: Vec<Source>,
    pub(super) hints: Arc<Hints>,
    pub(super) redactor: Arc<Redactor>,
    finder: ModelFinder,
    clock: Arc<ModelClock>,
    serial: u64,
    /// Who else writes to the store.
    pub(super) others: Others,
    /// Whether the store is asked again, as the real one is.
    pub(super) retries: bool,
    interval: Duration,
    /// Whether sessions are compacted without being asked.
    pub(super) compaction: Automatic,
    /// When their numbers begin again.
    pub(super) numbers: Numbers,
    /// Whether its state was lost or damaged.
    pub(super) damaged: bool,
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        let mut rng = fastrand::Rng::with_seed(seed);
        let disk = MemoryDisk::new();
        // A third of the sequences run a local store, mostly the real one over a disk that forgets; the others a remote one.
        let remote = || MemoryStore::new(Arc::new(disk.clone()));
        let conditions = [Conditions::Honoured, Conditions::Ignored, Conditions::Unsupported];
        let memory_store = match rng.u8(..12) {
            0 => Some(MemoryStore::local(Arc::new(disk.clone()))),
            1..=3 => None,
            _ => Some(remote().with_conditions(conditions[rng.usize(..3)])),
        };
        let is_remote = memory_store.as_ref().is_some_and(|store| !store.is_local());
        let alone = std::env::var("TRACECRAFT_MODEL_WRITERS").is_ok_and(|writers| writers == "1");
        let others = match rng.u8(..6) {
            _ if alone => Others::Nobody,
            0 | 1 if is_remote => Others::Reference,
            2 if is_remote => Others::Sharing,
            3 if is_remote => Others::Diverging,
            _ => Others::Nobody,
        };
        let meet = matches!(others, Others::Sharing | Others::Diverging);
        let travels = fastrand::Rng::with_seed(seed);
        let memory_store =
            memory_store.map(|store| if meet { store.with_latency(travels) } else { store });
        // A write that is asked again where conditions mean nothing may undo what the reference tool did in between: a limit
        // that the architecture names, and nothing that a sequence has to find again.
        let honoured =
            memory_store.as_ref().is_some_and(|s| s.conditions() == Conditions::Honoured);
        let retries = rng.bool() && (honoured || others != Others::Reference);
        let files = MemoryFiles::new();
        let finder = ModelFinder { files: files.clone(), paths: Arc::default() };
        let world = World {
            rng,
            files,
            disk,
            memory_store,
            faults: Arc::default(),
            sources: Vec::new(),
            hints: Arc::default(),
            redactor: Arc::new(Redactor::standard()),
            finder,
            clock: Arc::new(ModelClock { began: Instant::now(), set_by_ns: AtomicI64::new(0) }),
            serial: 0,
            others,
            retries,
            interval: Duration::from_secs(1),
            compaction: Automatic::On(tiny_tiers(seed)),
            numbers: few_numbers(seed),
            damaged: false,
        };
        world.hook();
        world
    }

    /// A world with a remote store that does as it is told, for tests of their own.
    pub(super) fn remote(interval: Duration) -> (World, MemoryStore) {
        let mut world = World::new(0);
        let store = MemoryStore::new(Arc::new(world.disk.clone()));
        world.memory_store = Some(store.clone());
        (world.others, world.retries, world.interval) = (Others::Nobody, false, interval);
        world.compaction = Automatic::On(Tiers::default());
        world.numbers = Numbers::default();
        (world, store)
    }

    /// Sets the time of day, forth or back; the waits of the runtime go on as before.
    pub(super) fn set_time_of_day(&self, by: jiff::SignedDuration) {
        let by = i64::try_from(by.as_nanos()).expect("less than three centuries");
        self.clock.set_by_ns.fetch_add(by, Ordering::Relaxed);
    }

    /// Appends a record to a session's file, which is made if there is none.
    pub(super) fn append_to(&mut self, number: usize) {
        self.files.set_clock(self.clock.elapsed_ns());
        let path = PathBuf::from(format!("/agent/a/s{number}.jsonl"));
        let record = self.record(false);
        if self.files.content(&path).is_none() {
            self.finder.paths.lock().unwrap().insert(path.clone(), format!("s{number}"));
            self.files.create(&path, record);
        } else {
            self.files.append(&path, &record);
        }
        self.hints.push(path);
    }

    /// Another recorder's world: its own disk and faults, the same clock, and the same files or its own.
    pub(super) fn beside(
        &self,
        disk: MemoryDisk,
        memory_store: Option<MemoryStore>,
        sharing: bool,
    ) -> World {
        let files = if sharing { self.files.clone() } else { MemoryFiles::new() };
        let paths = if sharing {
            self.finder.paths.clone()
        } else {
            Arc::new(Mutex::new(self.finder.paths.lock().unwrap().clone()))
        };
        files.set_clock(self.clock.elapsed_ns());
        let finder = ModelFinder { files: files.clone(), paths };
        let mut sources = self.sources.clone();
        sources.iter_mut().for_each(|source| source.flushed.clear());
        let world = World {
            rng: self.rng.clone(),
            files,
            disk,
            memory_store,
            faults: Arc::default(),
            sources,
            hints: Arc::default(),
            redactor: self.redactor.clone(),
            finder,
            clock: self.clock.clone(),
            serial: 1_000_000,
            others: self.others,
            retries: self.retries,
            interval: self.interval,
            compaction: self.compaction,
            numbers: self.numbers,
            damaged: false,
        };
        world.hook();
        world
    }

    /// Deaths and failures at every step of disk and store.
    fn hook(&self) {
        let faults = self.faults.clone();
        let mut rng = self.rng.clone();
        self.disk.set_hook(Box::new(move |_, path| {
            let mut faults = faults.lock().unwrap();
            if step(&mut faults) {
                return DiskFault::Dead;
            }
            let fails = faults.disk_fails_one_in.is_some_and(|n| rng.u64(..n) == 0);
            // A bucket on the same disk fails as the store fails, not as the state does.
            let ours = path.starts_with(STATE);
            let fails = fails && ours
                || !ours && faults.store_fails_one_in.is_some_and(|n| rng.u64(..n * 4) == 0);
            if fails { DiskFault::Error(std::io::ErrorKind::StorageFull) } else { DiskFault::None }
        }));
        let Some(store) = &self.memory_store else { return };
        let faults = self.faults.clone();
        let mut rng = self.rng.clone();
        store.set_hook(Box::new(move |op| {
            let mut faults = faults.lock().unwrap();
            if faults.dead {
                return StoreFault::Hang;
            }
            if step(&mut faults) {
                // The request may have arrived before the process died.
                let arrives = matches!(op.kind, OpKind::Put | OpKind::Delete) && rng.bool();
                return if arrives { StoreFault::HangAfter } else { StoreFault::Hang };
            }
            match faults.store_fails_one_in.map(|n| rng.u64(..n)) {
                Some(0) if rng.bool() => StoreFault::FailBefore(ErrorKind::Unavailable),
                Some(0) => StoreFault::FailAfter(ErrorKind::Unavailable),
                _ => StoreFault::None,
            }
        }));
    }

    pub(super) fn tools(&self) -> Tools {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let store: Arc<dyn Store> = match &self.memory_store {
            Some(store) if self.retries => {
                let rng = fastrand::Rng::with_seed(1);
                Arc::new(Retry::new(store.clone(), disk.clone(), Blocking::Inline, rng))
            }
            Some(store) => Arc::new(store.clone()),
            None => Arc::new(FsStore::new(disk.clone(), BUCKET.into(), Blocking::Inline)),
        };
        Tools {
            store,
            tally: Arc::default(),
            disk,
            files: Arc::new(self.files.clone()),
            databases: Arc::new(Databases::new(PathBuf::from("/nowhere/copies"), 0, [])),
            finder: Arc::new(self.finder.clone()),
            clock: self.clock.clone(),
            hints: self.hints.clone(),
            blocking: Blocking::Inline,
            reading: Blocking::Inline,
            scan_began: Arc::default(),
            pulse: Arc::default(),
        }
    }

    pub(super) fn settings(&self) -> Settings {
        Settings {
            interval: self.interval,
            rules: Default::default(),
            redactor: self.redactor.clone(),
            redact: true,
            outbox_bytes_max: 4096, // Reached in an outage of a few records.
            free_bytes_min: 0,
            compaction: self.compaction,
            numbers: self.numbers,
            once: false,
            store_url: "model".into(),
            state_dir: STATE.into(),
        }
    }

    /// All objects of the store.
    pub(super) fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        if let Some(store) = &self.memory_store {
            let objects = store.objects().into_iter();
            return objects.map(|(key, bytes)| (key, bytes.to_vec())).collect();
        }
        let listed = self.disk.list(Path::new(BUCKET)).unwrap();
        let object = |(path, _): (PathBuf, u64)| {
            let key = path.strip_prefix(BUCKET).unwrap().to_str().unwrap().to_owned();
            let bytes = self.disk.read(&path).unwrap();
            (key, bytes)
        };
        listed.into_iter().map(object).filter(|(key, _)| !key.ends_with(".tmp")).collect()
    }

    /// Adds a session with one record.
    pub(super) fn new_source(&mut self) -> usize {
        let number = self.sources.len();
        let id = format!("s{number}");
        let path = PathBuf::from(format!("/agent/a/{id}.jsonl"));
        let content = self.record(false);
        self.files.set_clock(self.clock.elapsed_ns());
        self.files.create(&path, content.clone());
        self.finder.paths.lock().unwrap().insert(path.clone(), id);
        self.hints.push(path.clone());
        let held = vec![content];
        self.sources.push(Source { path, exists: true, held, ..Source::default() });
        number
    }

    /// Appends a record to a session.
    pub(super) fn grow(&mut self, number: usize) {
        let record = self.record(false);
        self.files.set_clock(self.clock.elapsed_ns());
        let source = &mut self.sources[number];
        self.files.append(&source.path, &record);
        source.held.push(self.files.content(&source.path).unwrap());
        self.hints.push(source.path.clone());
    }

    /// Deletes a session's file.
    pub(super) fn delete(&mut self, number: usize) {
        let source = &mut self.sources[number];
        self.finder.paths.lock().unwrap().remove(&source.path);
        self.files.delete(&source.path);
        source.exists = false;
    }

    fn record(&mut self, secret: bool) -> Vec<u8> {
        self.serial += 1;
        let secret = if secret { format!("AKIA{:016}", self.serial) } else { String::new() };
        let filler = "x".repeat(self.rng.usize(..60));
        format!("{{\"n\":{},\"text\":\"{filler}{secret}\"}}\n", self.serial).into_bytes()
    }

    fn records(&mut self) -> Vec<u8> {
        let count = self.rng.usize(1..4);
        (0..count)
            .flat_map(|_| {
                let secret = self.rng.u8(..4) == 0;
                self.record(secret)
            })
            .collect()
    }

    /// Does something to a source, and perhaps lets the watcher see it.
    pub(super) fn change_source(&mut self) -> String {
        self.files.set_clock(self.clock.elapsed_ns());
        if self.sources.len() < 3 && (self.sources.is_empty() || self.rng.u8(..8) == 0) {
            let id = format!("s{}", self.sources.len());
            let path = PathBuf::from(format!("/agent/a/{id}.jsonl"));
            self.finder.paths.lock().unwrap().insert(path.clone(), id);
            self.sources.push(Source { path, exists: true, ..Source::default() });
        }
        let which = self.rng.usize(..self.sources.len());
        let mut source = self.sources[which].clone();
        let what = self.change(&mut source);
        if source.exists {
            let content = self.files.content(&source.path).unwrap_or_default();
            if source.held.last() != Some(&content) {
                source.held.push(content);
            }
            if self.rng.u8(..3) > 0 {
                self.hints.push(source.path.clone());
            }
        }
        self.sources[which] = source;
        format!("s{which}: {what}")
    }

    /// Ends every torn record.
    pub(super) fn complete_records(&mut self) {
        self.files.set_clock(self.clock.elapsed_ns());
        for source in self.sources.iter_mut().filter(|source| source.exists) {
            let content = self.files.content(&source.path).unwrap_or_default();
            if !content.is_empty() && !content.ends_with(b"\n") {
                self.files.append(&source.path, b"\"}\n");
                source.held.push(self.files.content(&source.path).unwrap_or_default());
            }
        }
    }

    fn change(&mut self, source: &mut Source) -> &'static str {
        let path = source.path.clone();
        let content = self.files.content(&path).unwrap_or_default();
        if !source.exists || content.is_empty() {
            let fresh = self.records();
            source.exists = true;
            source.rewrites += u32::from(!source.held.is_empty());
            let id = path.file_stem().unwrap().to_str().unwrap().to_owned();
            self.finder.paths.lock().unwrap().insert(path.clone(), id);
            self.files.create(&path, fresh);
            return "created";
        }
        match self.rng.u8(..40) {
            0..=21 => {
                // A record that was torn is completed first, as every agent does.
                let mut bytes =
                    if content.ends_with(b"\n") { Vec::new() } else { b"\"}\n".to_vec() };
                bytes.extend(self.records());
                self.files.append(&path, &bytes);
                "appended"
            }
            22..=25 => {
                let mut bytes =
                    if content.ends_with(b"\n") { Vec::new() } else { b"\"}\n".to_vec() };
                let record = self.record(false);
                bytes.extend(&record[..record.len() - 3]);
                self.files.append(&path, &bytes);
                "appended a torn record"
            }
            26..=27 => self.relocate(source),
            28 => {
                self.files.create(&path, content);
                "copied over itself"
            }
            29 => {
                self.files.touch(&path);
                "touched"
            }
            30 => {
                self.finder.paths.lock().unwrap().remove(&path);
                self.files.delete(&path);
                source.exists = false;
                "deleted"
            }
            other => {
                source.rewrites += 1;
                self.rewrite(&path, content, other)
            }
        }
    }

    fn relocate(&mut self, source: &mut Source) -> &'static str {
        let folder = if source.path.starts_with("/agent/a") { "/agent/b" } else { "/agent/a" };
        let to = Path::new(folder).join(source.path.file_name().unwrap());
        let mut paths = self.finder.paths.lock().unwrap();
        let id = paths.remove(&source.path).unwrap();
        paths.insert(to.clone(), id);
        self.files.rename(&source.path, &to);
        source.path = to;
        "moved"
    }

    fn rewrite(&mut self, path: &Path, content: Vec<u8>, kind: u8) -> &'static str {
        match kind {
            31..=32 => {
                let at = self.rng.usize(..content.len());
                // A secret that the reference tool merged and that is another one by now is nothing that anyone could see.
                let secret = memchr::memmem::rfind(&content[..at], b"AKIA");
                let is_inside = secret.is_some_and(|start| at < start + SECRET_BYTES);
                let before = secret.filter(|_| is_inside && self.others == Others::Reference);
                self.files.truncate(path, before.unwrap_or(at));
                "truncated"
            }
            33 => {
                let at = self.rng.usize(..content.len());
                let byte = if content[at] == b'\n' { b'\n' } else { content[at] ^ 1 };
                self.files.splice(path, at, &[byte]);
                "spliced"
            }
            34 => {
                let keep = content.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
                let mut fresh = content[..keep].to_vec();
                fresh.extend(self.records());
                self.files.create(path, fresh);
                "replaced, with the same first record"
            }
            35..=36 => {
                let fresh = self.records();
                self.files.rewrite_in_place(path, fresh);
                "rewritten in place"
            }
            37 => {
                let mut fresh = self.records();
                fresh.extend(content);
                self.files.rewrite_in_place(path, fresh);
                "rewritten longer"
            }
            _ => {
                let fresh = self.records();
                let keep_mtime = self.rng.bool();
                self.files.recreate_reusing_inode(path, fresh, keep_mtime);
                "recreated on the same inode"
            }
        }
    }
}

/// Tiers so small that sessions of a few parts are compacted again and again; of one sequence in eight only those that are asked
/// for.
fn tiny_tiers(seed: u64) -> Tiers {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x7169_e125);
    let never = rng.u8(..8) == 0;
    Tiers {
        fan_in: if never { 1000 } else { rng.u64(2..=4) },
        bytes_max: rng.u64(200..3000),
        inputs_max: if never { 1000 } else { rng.usize(4..20) },
        live_inputs_min: rng.u32(2..8),
    }
}

/// Numbers that begin again after some parts, in half of the sequences.
fn few_numbers(seed: u64) -> Numbers {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x0a7e_7045);
    match rng.bool() {
        true => Numbers { turn: rng.u32(3..20), ..Numbers::default() },
        false => Numbers::default(),
    }
}

/// Counts a step; `true`: the process dies here.
fn step(faults: &mut Faults) -> bool {
    faults.steps += 1;
    if let Some(left) = &mut faults.dies_in {
        *left = left.saturating_sub(1);
        faults.dead |= *left == 0;
    }
    faults.dead
}
