//! The model test of the protocol: random source actions, store answers, ticks, compactions and crashes at every step, on
//! parts in memory with paused time, against a plain model of what each source ever held.
//!
//! [`cases`] are played step by step. `TRACECRAFT_MODEL_SEQUENCES` sets how many sequences run (300), `TRACECRAFT_MODEL_FIRST`
//! with which seed they begin (0); `TRACECRAFT_MODEL_SEED` runs one of them again and prints what happened in it.

mod cases;
mod oracle;
mod others;
mod outages;
mod remote;
mod requests;
mod verifications;
mod world;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use tokio::sync::mpsc;

use self::others::{Others, Second, reference_acts};
use self::world::{STATE, World};
use super::handle::{Hint, Mirror, Options};
use super::{Engine, Fatal, Signal, Summary};
use crate::api::{Finding, Verifying, Weight};
use crate::durable::Disk;
use crate::store::Conditions;

/// Sequences of a plain `cargo test`.
const SEQUENCES: u64 = 300;

/// Actions of a sequence.
const ACTIONS: usize = 40;

/// Sequences that may fail on a thread before it stops: a defect shows in several, a broken build in all.
const FAILURES_MAX: usize = 5;

/// Virtual time within which everything has to be safe once the faults stop: several back-offs and a rewrite's quiet time.
const SETTLED_WITHIN: Duration = Duration::from_secs(30 * 60);

/// Virtual time within which idle sessions are looked after and their parts merged, also where each merge has to wait.
const IDLE: Duration = Duration::from_secs(20 * 60);

/// A running recorder.
struct Process {
    engine: Pin<Box<dyn Future<Output = Result<Summary, Fatal>> + Send>>,
    mirror: Mirror,
    signals: mpsc::Sender<Signal>,
}

struct Play {
    world: World,
    process: Option<Process>,
    second: Option<Second>,
    log: Vec<String>,
    verbose: bool,
}

impl Play {
    fn say(&mut self, what: String) {
        if self.verbose {
            println!("{what}");
        }
        self.log.push(what);
    }

    /// Opens a recorder.
    fn open(world: &World) -> Result<Process, Fatal> {
        let (mirror, commands) = Mirror::new();
        let (signals, receiver) = mpsc::channel(8);
        let engine = Engine::open(world.tools(), world.settings())?;
        Ok(Process { engine: Box::pin(engine.run(commands, receiver)), mirror, signals })
    }

    /// Starts a process; one that dies while it opens its state is started again by the next action.
    fn start(&mut self) -> Result<(), String> {
        match Play::open(&self.world) {
            Ok(process) => self.process = Some(process),
            Err(_) if self.is_dead() => self.bury(),
            // A state that cannot be written or read now ends the start; the service manager tries again.
            Err(_) if self.world.faults.lock().unwrap().disk_fails_one_in.is_some() => {}
            Err(e) => return Err(format!("cannot start: {}", super::chain(&e))),
        }
        Ok(())
    }

    fn is_dead(&self) -> bool {
        self.world.faults.lock().unwrap().dead || self.world.disk.is_dead()
    }

    /// The process is gone: by a kill, or by a power loss that forgets what was not synced.
    fn bury(&mut self) {
        self.process = None;
        let power_loss = self.world.rng.bool();
        if power_loss {
            self.world.disk.crash(&mut self.world.rng);
        } else {
            self.world.disk.kill();
        }
        self.world.disk.revive();
        let mut faults = self.world.faults.lock().unwrap();
        faults.dead = false;
        faults.dies_in = None;
        drop(faults);
        self.say(format!("died{}", if power_loss { " by power loss" } else { "" }));
    }

    /// Lets time pass.
    async fn run(&mut self, time: Duration) -> Result<(), String> {
        if self.process.is_none() {
            self.start()?;
        }
        self.start_second()?;
        let Some(process) = &mut self.process else { return Ok(()) };
        let ended = tokio::select! {
            biased;
            ended = &mut process.engine => Some(ended),
            Err(what) = goes_on(&mut self.second) => return Err(what),
            () = tokio::time::sleep(time) => None,
        };
        if self.is_dead() {
            self.bury();
        } else if let Some(ended) = ended {
            self.process = None;
            ended.map_err(|e| format!("ended by itself: {}", super::chain(&e)))?;
        }
        Ok(())
    }

    /// Asks something while time passes; `None`: no answer in time, or the process died.
    async fn ask<T>(
        &mut self,
        within: Duration,
        question: impl AsyncFnOnce(Mirror) -> T,
    ) -> Result<Option<T>, String> {
        if self.process.is_none() {
            self.start()?;
        }
        self.start_second()?;
        let Some(process) = &mut self.process else { return Ok(None) };
        let answer = question(process.mirror.clone());
        let outcome = tokio::select! {
            biased;
            _ = &mut process.engine => None,
            Err(what) = goes_on(&mut self.second) => return Err(what),
            answer = answer => Some(answer),
            () = tokio::time::sleep(within) => None,
        };
        if self.is_dead() {
            self.bury();
            return Ok(None);
        }
        Ok(outcome)
    }

    /// The second recorder begins when there is something to record, and again after it was killed.
    fn start_second(&mut self) -> Result<(), String> {
        let meets = matches!(self.world.others, Others::Diverging | Others::Sharing);
        if meets && self.second.is_none() && !self.world.sources.is_empty() {
            let others = self.world.others;
            self.second = Some(Second::new(&mut self.world, others));
            self.say("a second recorder begins".into());
        }
        let Some(second) = &mut self.second else { return Ok(()) };
        if second.process.is_none() {
            let opened = Play::open(&second.world);
            let opened = opened.map_err(|e| format!("the second: {}", super::chain(&e)))?;
            second.process = Some(opened);
        }
        Ok(())
    }

    /// What the others do.
    fn others_act(&mut self) {
        if self.world.others == Others::Reference && !self.world.sources.is_empty() {
            let number = self.world.rng.usize(..self.world.sources.len());
            let Some(store) = self.world.memory_store.clone() else { return };
            // After a lost state parts may be there twice for readers by listing, of which its `compact` is one.
            if !self.world.damaged
                && let Some(what) = reference_acts(&store, &mut self.world.rng, number)
            {
                self.say(what);
            }
        }
        let Some(second) = &mut self.second else { return };
        let what = match self.world.rng.u8(..8) {
            0 => {
                second.kill();
                "is killed".to_owned()
            }
            1 => {
                let fails = second.world.rng.bool().then(|| second.world.rng.u64(2..8));
                second.world.faults.lock().unwrap().store_fails_one_in = fails;
                format!("its store fails one in {fails:?}")
            }
            _ if self.world.others == Others::Sharing => {
                second.world.hints.rescan();
                "looks".to_owned()
            }
            _ => second.world.change_source(),
        };
        self.say(format!("the second: {what}"));
    }

    async fn act(&mut self) -> Result<(), String> {
        if self.world.rng.u8(..4) == 0 {
            self.others_act();
        }
        let roll = self.world.rng.u8(..100);
        match roll {
            0..=44 => {
                let what = self.world.change_source();
                self.say(what);
            }
            45..=69 => {
                let time = Duration::from_millis(self.world.rng.u64(10..5000));
                self.say(format!("{} ms pass", time.as_millis()));
                self.run(time).await?;
            }
            70..=71 => {
                let time = Duration::from_secs(self.world.rng.u64(30..900));
                self.say(format!("{} s pass", time.as_secs()));
                self.run(time).await?;
            }
            72..=79 => {
                let steps = self.world.rng.u64(1..60);
                self.world.faults.lock().unwrap().dies_in = Some(steps);
                self.say(format!("dies in {steps} steps"));
            }
            80..=83 => self.compact().await?,
            84..=85 => self.verify_meanwhile().await?,
            86..=87 => self.flush(Duration::from_secs(20)).await?,
            88 => self.hint().await?,
            89..=91 => self.set_faults(),
            92..=93 => self.stop_and_start().await?,
            94..=95 => self.drain().await?,
            96..=97 => {
                self.say("is away".into());
                self.bury();
                for _ in 0..self.world.rng.u8(1..6) {
                    let what = self.world.change_source();
                    self.say(what);
                }
            }
            _ => self.damage_state(),
        }
        Ok(())
    }

    fn set_faults(&mut self) {
        let store = self.world.rng.bool().then(|| self.world.rng.u64(2..8));
        let disk = (self.world.rng.u8(..4) == 0).then(|| self.world.rng.u64(5..30));
        let mut faults = self.world.faults.lock().unwrap();
        faults.store_fails_one_in = store;
        faults.disk_fails_one_in = disk;
        drop(faults);
        self.say(format!("store fails one in {store:?}, disk one in {disk:?}"));
    }

    async fn compact(&mut self) -> Result<(), String> {
        if self.world.sources.is_empty() {
            return Ok(());
        }
        let id = format!("s{}", self.world.rng.usize(..self.world.sources.len()));
        let keep = self.world.rng.usize(..3);
        self.say(format!("compacts {id}, keeping {keep}"));
        let ask = async |mirror: Mirror| {
            let mut progress = mirror.compact(id, keep).await;
            while progress.recv().await.is_some() {}
        };
        let within = Duration::from_millis(self.world.rng.u64(1..3000));
        self.ask(within, ask).await.map(drop)
    }

    /// A verification at any moment, and a repair: nothing that stays may be called wrong, and no repair may do harm.
    async fn verify_meanwhile(&mut self) -> Result<(), String> {
        let options = Options { deep: self.world.rng.bool(), repair: self.world.rng.bool() };
        self.say(format!("verifies: {options:?}"));
        let within = Duration::from_millis(self.world.rng.u64(1..60_000));
        let told = self.ask(within, async |mirror: Mirror| verified(mirror, options).await).await?;
        // Leftovers of a lost state are told, and taken away by a repair.
        match told.unwrap_or_default().into_iter().find(|f| f.code != "leftover") {
            Some(finding) => Err(format!("verified meanwhile: {finding:?}")),
            None => Ok(()),
        }
    }

    /// A hook runs at any moment, and is gone before anything comes of it.
    async fn hint(&mut self) -> Result<(), String> {
        let known = self.world.rng.bool() && !self.world.sources.is_empty();
        let id = known.then(|| format!("s{}", self.world.rng.usize(..self.world.sources.len())));
        self.say(format!("a hook names {id:?}"));
        let hint = Hint { sessions: id.into_iter().collect(), paths: Vec::new() };
        let ask = async |mirror: Mirror| mirror.hint(hint.clone()).await;
        self.ask(Duration::from_millis(1), ask).await.map(drop)
    }

    async fn flush(&mut self, within: Duration) -> Result<(), String> {
        self.say("flushes".into());
        // A session that is stopped is none that a flush speaks of.
        let started = self.start_all().await?;
        let before: Vec<Vec<u8>> = self.world.sources.iter().map(|s| self.complete(s)).collect();
        let answer = self.ask(within, async |mirror: Mirror| mirror.flush(None).await).await?;
        if matches!(answer, Some(Ok(_))) {
            let sources = self.world.sources.iter_mut().zip(before).zip(started);
            for ((source, flushed), _) in sources.filter(|(_, started)| *started) {
                source.flushed = flushed;
            }
        }
        Ok(())
    }

    async fn start_all(&mut self) -> Result<Vec<bool>, String> {
        let mut started = Vec::new();
        for number in 0..self.world.sources.len() {
            let start = async |mirror: Mirror| mirror.start(format!("s{number}")).await;
            let answer = self.ask(Duration::from_secs(5), start).await?;
            started.push(matches!(answer, Some(Ok(_))));
        }
        Ok(started)
    }

    /// What a flush that is asked for now promises of a source: its complete records.
    fn complete(&self, source: &world::Source) -> Vec<u8> {
        if !source.exists {
            return source.flushed.clone();
        }
        let content = source.held.last().map_or(&[][..], Vec::as_slice);
        let end = content.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        oracle::redact(&self.world.redactor, &content[..end])
    }

    async fn stop_and_start(&mut self) -> Result<(), String> {
        if self.world.sources.is_empty() {
            return Ok(());
        }
        let id = format!("s{}", self.world.rng.usize(..self.world.sources.len()));
        self.say(format!("stops and starts {id}"));
        let ask = async |mirror: Mirror| {
            let _ = mirror.stop(id.clone()).await;
            mirror.start(id).await
        };
        self.ask(Duration::from_secs(30), ask).await.map(drop)
    }

    async fn drain(&mut self) -> Result<(), String> {
        self.say("drains".into());
        if let Some(process) = &self.process {
            let _ = process.signals.try_send(Signal::Drain);
            self.run(Duration::from_secs(60)).await?;
            if self.process.is_some() {
                return Err("did not end within its drain limit".into());
            }
        }
        Ok(())
    }

    /// State that is lost or damaged while nobody runs.
    fn damage_state(&mut self) {
        self.bury();
        let garbage = self.world.rng.bool();
        self.lose_state(garbage);
    }

    fn lose_state(&mut self, garbage: bool) {
        self.world.damaged = true;
        let disk = &self.world.disk;
        let files = disk.list(Path::new(STATE)).unwrap_or_default();
        let state: Vec<_> =
            files.into_iter().filter(|(p, _)| p.parent() == Some(Path::new(STATE))).collect();
        for (path, size) in state {
            if garbage {
                let keep = usize::try_from(size / 2).unwrap_or(0);
                let mut bytes = disk.read(&path).unwrap_or_default();
                bytes.truncate(keep);
                bytes.extend(b"\0\0garbage\n{\"change\":\"none\"}\n");
                let _ = disk.replace(&path, &bytes);
            } else {
                let _ = disk.remove(&path);
                let _ = disk.sync(&[Path::new(STATE).to_owned()]);
            }
        }
        self.say(format!("state {}", if garbage { "damaged" } else { "lost" }));
    }

    /// The second recorder becomes safe, too, and whoever left something behind has cleared it away.
    async fn settle_second(&mut self) -> Result<(), String> {
        let Some(mirror) = self.second.as_ref().and_then(Second::mirror) else { return Ok(()) };
        // A stop of one is a stop for both, when the other one takes it over with the manifest.
        for number in 0..self.world.sources.len() {
            let mirror = mirror.clone();
            let start = async |_: Mirror| mirror.start(format!("s{number}")).await;
            self.ask(Duration::from_secs(5), start).await?;
        }
        // Both meet what the other one named only when they name something of their own, one after the other.
        for _ in 0..3 {
            self.ask(SETTLED_WITHIN, async |mirror: Mirror| mirror.flush(None).await).await?;
            let mirror = mirror.clone();
            let flush = async |_: Mirror| mirror.flush(None).await;
            match self.ask(SETTLED_WITHIN, flush).await? {
                Some(Ok(_)) => {}
                other => return Err(format!("a flush of the second: {other:?}")),
            }
            self.run(Duration::from_secs(300)).await?;
        }
        Ok(())
    }

    /// What the oracle finds in order a verification finds in order, and a repair leaves it so.
    async fn verify_at_rest(&mut self) -> Result<(), String> {
        // Where conditions are ignored, another writer's put that had begun before may replace a manifest that nobody writes again.
        // Readers that list lose nothing by it; a verification says it, and a repair mends it.
        let store = self.world.memory_store.as_ref().map(crate::store::Store::conditions);
        let replaced = self.second.is_some() && store == Some(Conditions::Ignored);
        for (repair, behind) in [(false, replaced), (true, replaced), (false, false)] {
            let options = Options { deep: true, repair };
            let told = self
                .ask(SETTLED_WITHIN, async |mirror: Mirror| verified(mirror, options).await)
                .await?
                .ok_or("a verification did not end")?;
            let is_allowed = |f: &Finding| {
                f.code == "leftover"
                    || behind && ["manifest_behind", "unnamed"].contains(&f.code.as_str())
            };
            if let Some(finding) = told.into_iter().find(|f| !is_allowed(f)) {
                return Err(format!("verified at rest: {finding:?}"));
            }
            let second = self.second.as_ref().map(|second| &second.world);
            oracle::check(&self.world, second).map_err(|what| format!("repaired: {what}"))?;
        }
        Ok(())
    }

    /// The faults stop: everything has to become safe, and then to be right.
    async fn settle(&mut self) -> Result<(), String> {
        {
            let mut faults = self.world.faults.lock().unwrap();
            faults.dies_in = None;
            faults.store_fails_one_in = None;
            faults.disk_fails_one_in = None;
        }
        if self.is_dead() {
            self.bury();
        }
        if let Some(second) = &mut self.second {
            second.world.faults.lock().unwrap().store_fails_one_in = None;
        }
        // What the store knows of a session says whether it is stopped: it is known again before it is started.
        self.run(Duration::from_secs(130)).await?;
        self.start_all().await?;
        // An empty file is no session: whoever lost its state learns what it left there when the file is written to again.
        for number in 0..self.world.sources.len() {
            let source = &self.world.sources[number];
            if self.world.damaged && source.exists && source.held.last().is_some_and(Vec::is_empty)
            {
                self.world.grow(number);
            }
        }
        // Half of the time the torn records get their ends, so that the last start has nothing to wait for.
        let complete = self.world.rng.bool();
        if complete {
            self.world.complete_records();
            if let Some(second) = &mut self.second
                && self.world.others == Others::Diverging
            {
                second.world.complete_records();
            }
        }
        // Rewrites have to hold still for a while, and idle sessions are compared as a whole.
        self.run(Duration::from_secs(200)).await?;
        self.settle_second().await?;
        let flush = async |mirror: Mirror| mirror.flush(None).await;
        match self.ask(SETTLED_WITHIN, flush).await? {
            Some(Ok(_)) => {}
            other => {
                let status = self.ask(Duration::from_secs(5), async |m: Mirror| m.status().await);
                return Err(format!("a flush without faults: {other:?}; {:?}", status.await));
            }
        }
        // Sessions that are idle are compacted by themselves; a stop would leave that to the next start.
        self.run(IDLE).await?;
        let second = self.second.as_ref().map(|second| &second.world);
        oracle::check(&self.world, second)?;
        self.verify_at_rest().await?;
        self.drain().await?;
        let before = self.world.objects();
        let second = self.second.as_ref().map(|second| &second.world);
        oracle::check(&self.world, second)?;
        // A start that finds all in order changes nothing but what it says of ends, and what the stop left to be merged.
        self.run(Duration::from_secs(200)).await?;
        let parts = |objects: BTreeMap<String, Vec<u8>>| {
            let mut of_session: BTreeMap<String, Vec<u8>> = BTreeMap::new();
            for (key, bytes) in objects.into_iter().filter(|(key, _)| !key.ends_with("meta.json")) {
                let (session, _) = key.rsplit_once('/').expect("a key of a session");
                of_session.entry(session.to_owned()).or_default().extend(bytes);
            }
            of_session
        };
        let (before, after) = (parts(before), parts(self.world.objects()));
        if complete && before != after {
            let differs = |session: &&String| before.get(*session) != after.get(*session);
            let sessions: Vec<_> = before.keys().chain(after.keys()).filter(differs).collect();
            return Err(format!("a start that had nothing to do changed {sessions:?}"));
        }
        Ok(())
    }
}

fn play(seed: u64, verbose: bool) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without drivers");
    runtime.block_on(async {
        let world = World::new(seed);
        let mut play = Play { world, process: None, second: None, log: Vec::new(), verbose };
        let (others, store) = (play.world.others, play.world.memory_store.as_ref());
        let conditions = store.map(crate::store::Store::conditions);
        play.say(format!("conditions {conditions:?}, others {others:?}"));
        let mut outcome = Ok(());
        for _ in 0..ACTIONS {
            outcome = play.act().await;
            if outcome.is_err() {
                break;
            }
        }
        if outcome.is_ok() {
            outcome = play.settle().await;
        }
        if verbose && outcome.is_err() {
            for (key, bytes) in play.world.objects() {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                println!(
                    "{key}: {} bytes {}",
                    bytes.len(),
                    if key.ends_with("meta.json") { &text } else { "" }
                );
            }
        }
        outcome.map_err(|what| format!("seed {seed}: {what}\n  {}", play.log.join("\n  ")))
    })
}

/// What a verification calls wrong.
async fn verified(mirror: Mirror, options: Options) -> Vec<Finding> {
    let mut events = mirror.verify(None, options).await;
    let mut wrong = Vec::new();
    while let Some(event) = events.recv().await {
        if let Verifying::Session { session } = event {
            wrong.extend(session.findings.into_iter().filter(|f| f.weight == Weight::Wrong));
        }
    }
    wrong
}

/// Lets the second recorder run as long as somebody waits; answers only when it ended by itself.
async fn goes_on(second: &mut Option<Second>) -> Result<(), String> {
    let Some(process) = second.as_mut().and_then(|second| second.process.as_mut()) else {
        return std::future::pending().await;
    };
    match (&mut process.engine).await {
        Ok(_) => Err("the second ended by itself".to_owned()),
        Err(e) => Err(format!("the second ended by itself: {}", super::chain(&e))),
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn t27_every_reader_sees_every_record_once_whatever_happens() {
    if let Some(seed) = number("TRACECRAFT_MODEL_SEED") {
        let _ = tracing_subscriber::fmt().with_env_filter("debug").without_time().try_init();
        play(seed, true).unwrap();
        return;
    }
    let sequences = number("TRACECRAFT_MODEL_SEQUENCES").unwrap_or(SEQUENCES);
    let first_seed = number("TRACECRAFT_MODEL_FIRST").unwrap_or(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let failures: Vec<String> = std::thread::scope(|scope| {
        let run = |first: u64| {
            let seeds = (first..first_seed + sequences).step_by(threads as usize);
            let failures = seeds.filter_map(|seed| play(seed, false).err());
            failures.take(FAILURES_MAX).collect::<Vec<_>>()
        };
        let workers: Vec<_> =
            (0..threads).map(|thread| scope.spawn(move || run(first_seed + thread))).collect();
        workers.into_iter().flat_map(|w| w.join().expect("no panic in a sequence")).collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    println!("{sequences} sequences of {ACTIONS} actions: gap 0, overlap 0");
}
