//! kill -9 at every gate of the real binary: capture, send, compaction, recovery and shutdown.
//!
//! A gate is a system call that changes the program's own files. A scenario is run once to count its gates, then again and
//! again with a kill at one gate each; every kill is followed by a verdict on what lies there, a clean restart, and a verdict
//! on the whole. Without strace only the random kills remain.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::daemon::Daemon;
use crate::support::home::{Home, age, files_below, said};
use crate::support::judge::{self, Source};
use crate::support::oracle::Bucket;
use crate::support::planted::Planted;
use crate::support::strace::{self, Record, TO_THE_GATE};
use crate::support::writers::Transcript;
use crate::support::{POLL, pace, seed, skipped, try_wait_for};

/// Kills of one scenario in a normal run; `TRACECRAFT_KILLS` gives another number. With more gates than this a spread of
/// them is taken, with another offset in every run.
const KILLS: usize = 30;

/// A small home with one session of each harness.
pub(crate) struct Scene {
    pub(crate) home: Home,
    pub(crate) planted: Planted,
    pub(crate) transcripts: Vec<Transcript>,
}

impl Scene {
    fn new(seed: u64) -> Scene {
        Scene::in_home(Home::new(), seed)
    }

    /// A scene in a home that was made elsewhere.
    pub(crate) fn in_home(home: Home, seed: u64) -> Scene {
        let planted = Planted::exact_only(seed);
        let harnesses = ["claude-code", "codex", "openclaw"].into_iter().zip(0..);
        let new = |(harness, number)| Transcript::new(&home, harness, number, seed);
        let transcripts: Vec<_> = harnesses.map(new).collect();
        let mut scene = Scene { home, planted, transcripts };
        scene.grow(6);
        scene
    }

    pub(crate) fn grow(&mut self, records: u64) {
        self.transcripts.iter_mut().for_each(|one| one.grow(&self.planted, records));
    }

    fn sources(&self) -> Vec<Source> {
        self.transcripts.iter().map(|one| one.source(&self.planted)).collect()
    }

    pub(crate) fn bucket(&self) -> Bucket {
        Bucket::read(self.home.objects())
    }

    pub(crate) fn interrupted(&self, when: &str) {
        if let Err(why) = judge::verdict(judge::interrupted(&self.bucket(), &self.sources())) {
            panic!("{when}: right after the kill: {why}\n{}", self.tree());
        }
    }

    /// A clean `--once`, then everything is as it should be. Returns what the restart should have swept and did not: that
    /// loses nothing, so a scenario collects it and complains at its end.
    #[must_use]
    pub(crate) fn recovered(&self, when: &str) -> Vec<String> {
        let output = self.home.once_with(&[]);
        assert!(output.status.success(), "{when}: the restart failed: {}", said(&output));
        let mut bucket = self.bucket();
        let mut litter = std::mem::take(&mut bucket.litter);
        if let Err(why) = judge::verdict(judge::at_rest(&bucket, &self.sources())) {
            panic!("{when}: after the restart: {why}\n{}\n{}", self.tree(), said(&output));
        }
        litter.extend(outbox(&self.home.state_dir()).iter().map(|path| path.display().to_string()));
        litter.iter().map(|name| format!("{when}: {name}")).collect()
    }

    /// Names of all the program's files, for failure texts.
    fn tree(&self) -> String {
        let files = files_below(&self.home.path().join(".local"));
        let line =
            |(path, body): (PathBuf, Vec<u8>)| format!("{} {}\n", body.len(), path.display());
        files.into_iter().map(line).collect()
    }

    fn traced_daemon(&self, arguments: &[&str]) -> (Command, Record) {
        let mut command = self.home.tracecraftd();
        command.args(arguments);
        strace::traced(&self.home, &command, true)
    }
}

/// Parts and temporary files that lie outside the bucket.
fn outbox(state_dir: &Path) -> Vec<PathBuf> {
    let files = files_below(state_dir).into_iter().map(|(path, _)| path);
    files
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with("part-") || name.contains(".tmp") || name.contains("tmp-")
        })
        .collect()
}

/// Complains about what restarts left behind.
pub(crate) fn assert_swept(litter: &[String]) {
    let shown = litter.iter().take(10).cloned().collect::<Vec<_>>().join("\n");
    assert!(litter.is_empty(), "restarts left {} files behind:\n{shown}", litter.len());
}

/// Lets a traced process run to its gate number `gate` (from 1) and kills it there. `false` when it ended before.
fn kill_at(daemon: &mut Daemon, record: &mut Record, gate: usize) -> bool {
    let reached = record.reaches(gate, || daemon.exited().is_some());
    daemon.kill9();
    reached
}

/// The gates to kill at: all of them, or a spread.
pub(crate) fn chosen(name: &str, gates: usize, seed: u64) -> Vec<usize> {
    let most =
        std::env::var("TRACECRAFT_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(KILLS);
    assert!(gates > 4, "{name}: only {gates} gates: nothing is seen of the program's writing");
    let count = gates.min(most);
    let offset = fastrand::Rng::with_seed(seed).f64();
    let mut chosen: Vec<usize> = (0..count)
        .map(|n| (((n as f64 + offset) * gates as f64 / count as f64) as usize).min(gates - 1) + 1)
        .collect();
    chosen.dedup();
    println!("{name}: killed at {} of {gates} gates", chosen.len());
    chosen
}

/// Skips, with a line, where strace cannot be used.
fn can_trace(name: &str) -> bool {
    match strace::usable() {
        Ok(()) => true,
        Err(why) => {
            skipped(name, &why);
            false
        }
    }
}

/// A scenario of one `--once`: `prepare` makes a scene whose next `--once` is killed at each gate in turn.
fn once_at_every_gate(name: &str, prepare: impl Fn(u64) -> Scene) {
    if !can_trace(name) {
        return;
    }
    let seed = seed(name);
    let scene = prepare(seed);
    let (command, mut record) = scene.traced_daemon(&["--once"]);
    let mut daemon = Daemon::spawn_command(&scene.home, command);
    let status = daemon.exits_within(TO_THE_GATE).expect("an unharmed run ends");
    assert!(status.success(), "{name}: the unharmed run ended with {status}:\n{}", daemon.said());
    let gates = record.gates();
    let mut litter = scene.recovered(&format!("{name}: unharmed"));
    for gate in chosen(name, gates, seed) {
        let scene = prepare(seed);
        let (command, mut record) = scene.traced_daemon(&["--once"]);
        let mut daemon = Daemon::spawn_command(&scene.home, command);
        let killed = kill_at(&mut daemon, &mut record, gate);
        let when = format!("{name}: gate {gate} of {gates} (killed: {killed}, seed {seed})");
        scene.interrupted(&when);
        litter.extend(scene.recovered(&when));
    }
    assert_swept(&litter);
}

#[test]
fn t27_kill_at_every_gate_of_capture_and_send() {
    once_at_every_gate("capture and send", Scene::new);
}

#[test]
fn t27_kill_at_every_gate_of_growth() {
    once_at_every_gate("growth", |seed| {
        let mut scene = Scene::new(seed);
        scene.home.once();
        scene.grow(3);
        scene
    });
}

#[test]
fn t27_kill_at_every_gate_of_a_rewrite() {
    once_at_every_gate("rewrite", |seed| {
        let mut scene = Scene::new(seed);
        scene.home.once();
        scene.transcripts[0].replace(&scene.planted);
        scene.transcripts[2].truncate();
        scene.transcripts[2].grow(&scene.planted, 2);
        // A rewrite that is still warm would make every run wait for it to cool down.
        scene.transcripts.iter().for_each(|one| age(&one.path));
        scene
    });
}

#[test]
fn t27_kill_at_every_gate_of_recovery() {
    once_at_every_gate("recovery", |seed| {
        let mut scene = Scene::new(seed);
        scene.home.once();
        scene.grow(4);
        let (command, mut record) = scene.traced_daemon(&["--once"]);
        let mut daemon = Daemon::spawn_command(&scene.home, command);
        // In the middle of the second run's writing, wherever that is for this seed.
        kill_at(&mut daemon, &mut record, 8 + seed as usize % 12);
        scene
    });
}

#[test]
fn t27_t31_kill_at_every_gate_of_rebuilding_a_lost_state() {
    once_at_every_gate("rebuilding", |seed| {
        let mut scene = Scene::new(seed);
        scene.home.once();
        std::fs::remove_dir_all(scene.home.state_dir()).unwrap();
        scene.grow(2);
        scene
    });
}

/// Several parts for each session of a scene.
pub(crate) fn many_parts(mut scene: Scene) -> Scene {
    for _ in 0..5 {
        scene.home.once();
        scene.grow(1);
    }
    scene.home.once();
    let bucket = scene.bucket();
    let least = bucket.sessions.iter().map(|stored| stored.named).min();
    assert!(least >= Some(4), "six flushes made only {least:?} parts");
    scene
}

/// A daemon under strace that has nothing to do, and the number of gates it took so far.
fn idle_daemon(scene: &Scene, interval: &str) -> (Daemon, Record, usize) {
    let (command, mut record) = scene.traced_daemon(&["--interval", interval]);
    let mut daemon = Daemon::spawn_command(&scene.home, command);
    daemon.wait_ready(&scene.home);
    let mut before = record.gates();
    let mut since = Instant::now();
    // Ready means that it answers; what it still writes then must not be counted to the scenario.
    try_wait_for(Duration::from_secs(3), || {
        let now = record.gates();
        if now != before {
            (before, since) = (now, Instant::now());
        }
        (since.elapsed() > POLL * 30).then_some(())
    });
    (daemon, record, before)
}

/// A scenario of a running daemon: `act` makes it work, `over` says when that work is done.
fn daemon_at_every_gate(
    name: &str,
    prepare: impl Fn(u64) -> Scene,
    interval: &str,
    act: impl Fn(&mut Scene, &Daemon) -> Option<std::process::Child>,
) {
    if !can_trace(name) {
        return;
    }
    let seed = seed(name);
    let mut gates = None;
    let mut left = vec![usize::MAX];
    let mut litter = Vec::new();
    while let Some(gate) = left.pop() {
        let mut scene = prepare(seed);
        let (mut daemon, mut record, before) = idle_daemon(&scene, interval);
        let mut work = act(&mut scene, &daemon);
        let killed = match gates {
            None => run_to_the_end(&mut daemon, work.as_mut()),
            Some(_) => kill_in_work(&mut daemon, &mut record, before + gate, work.as_mut()),
        };
        if gates.is_none() {
            let count = record.gates() - before;
            gates = Some(count);
            left = chosen(name, count, seed);
        }
        daemon.kill9();
        if let Some(mut work) = work {
            work.wait().unwrap();
        }
        let when = format!("{name}: gate {gate} (killed: {killed}, seed {seed})");
        scene.interrupted(&when);
        litter.extend(scene.recovered(&when));
    }
    assert_swept(&litter);
}

/// Lets the work end unharmed: the client's end where there is one, else the daemon's.
fn run_to_the_end(daemon: &mut Daemon, work: Option<&mut std::process::Child>) -> bool {
    match work {
        Some(work) => {
            let status =
                try_wait_for(TO_THE_GATE, || work.try_wait().unwrap()).expect("the work ends");
            assert!(status.success(), "unharmed work failed:\n{}", daemon.said());
        }
        None => {
            let status = daemon.exits_within(TO_THE_GATE).expect("the drain ends");
            assert_eq!(status.code(), Some(0), "unharmed drain:\n{}", daemon.said());
        }
    }
    false
}

/// Kills the daemon at a gate, or when the work is over before.
fn kill_in_work(
    daemon: &mut Daemon,
    record: &mut Record,
    gate: usize,
    mut work: Option<&mut std::process::Child>,
) -> bool {
    let reached = record.reaches(gate, || {
        let done = work.as_mut().is_some_and(|work| work.try_wait().unwrap().is_some());
        done || daemon.exited().is_some()
    });
    daemon.kill9();
    reached
}

#[test]
fn t27_kill_at_every_gate_of_compaction() {
    daemon_at_every_gate(
        "compaction",
        |seed| many_parts(Scene::new(seed)),
        "10m",
        |scene, _| {
            let id = scene.transcripts[0].id.clone();
            let mut command = scene.home.tracecraftctl();
            command.args(["compact", &id, "--keep-tail", "1"]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            Some(command.spawn().unwrap())
        },
    );
}

#[test]
fn t27_kill_at_every_gate_of_the_drain() {
    daemon_at_every_gate("drain", Scene::new, "10m", |scene, daemon| {
        scene.grow(3);
        daemon.signal(Signal::TERM);
        None
    });
}

#[test]
fn t27_random_kills_of_once_cost_nothing() {
    let seed = seed("random kills");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut scene = Scene::new(seed);
    let started = Instant::now();
    scene.home.once();
    let whole = started.elapsed();
    let mut litter = Vec::new();
    for kill in 0..20 {
        scene.grow(2);
        let mut daemon = Daemon::spawn(&scene.home, &["--once"]);
        pace(&mut rng, whole);
        daemon.kill9();
        scene.interrupted(&format!("random kill {kill} (seed {seed})"));
        if kill % 4 == 3 {
            litter.extend(scene.recovered(&format!("random kill {kill} (seed {seed})")));
        }
    }
    litter.extend(scene.recovered(&format!("random kills (seed {seed})")));
    assert_swept(&litter);
}
