//! One daemon per user: the lock, the signals, the drain, the stale socket, and state that was lost or damaged.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::daemon::{Daemon, ctl, ctl_ok, list, status};
use crate::support::home::{Home, run, said};
use crate::support::judge;
use crate::support::oracle::{Bucket, parts};
use crate::support::planted::Planted;
use crate::support::writers::Transcript;
use crate::support::{skipped, try_wait_for, wait_for, wait_until_ok};

/// An interval that never comes round while a test runs.
const NEVER: [&str; 2] = ["--interval", "10m"];

struct Scene {
    home: Home,
    planted: Planted,
    transcripts: Vec<Transcript>,
}

impl Scene {
    fn new() -> Scene {
        let home = Home::new();
        let planted = Planted::exact_only(9);
        let harnesses = ["claude-code", "codex", "openclaw"].into_iter().zip(0..);
        let transcripts = harnesses.map(|(name, n)| Transcript::new(&home, name, n, 9)).collect();
        let mut scene = Scene { home, planted, transcripts };
        scene.grow();
        scene
    }

    fn grow(&mut self) {
        self.transcripts.iter_mut().for_each(|one| one.grow(&self.planted, 5));
    }

    /// Everything is stored, and once.
    fn complete(&self) -> Result<(), String> {
        let sources: Vec<_> =
            self.transcripts.iter().map(|one| one.source(&self.planted)).collect();
        judge::verdict(judge::at_rest(&Bucket::read(&self.home.bucket()), &sources))
    }

    fn manifest(&self, number: usize) -> Value {
        let transcript = &self.transcripts[number];
        let bucket = Bucket::read(&self.home.bucket());
        bucket.generations(transcript.harness, &transcript.id)[0].manifest.clone().unwrap()
    }

    /// Files at the top of the state directory that hold state: not the lock.
    fn state_files(&self) -> Vec<PathBuf> {
        let entries =
            fs::read_dir(self.home.state_dir()).unwrap().flatten().map(|entry| entry.path());
        let is_state = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            path.is_file() && name.starts_with("state") && !name.contains("lock")
        };
        entries.filter(is_state).collect()
    }
}

#[test]
fn t33_a_second_daemon_exits_3_and_says_who_holds_the_lock() {
    let scene = Scene::new();
    let daemon = Daemon::start(&scene.home, &NEVER);
    let output = run(&mut scene.home.tracecraftd());
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    assert!(said(&output).contains(&daemon.pid().to_string()), "{}", said(&output));
    assert!(status(&scene.home).is_some(), "the first one goes on");
}

#[test]
fn once_beside_a_running_daemon_asks_it_to_flush() {
    let mut scene = Scene::new();
    let daemon = Daemon::start(&scene.home, &NEVER);
    scene.grow();
    let output = scene.home.once();
    scene.complete().unwrap_or_else(|why| panic!("{why}\n{}", said(&output)));
    assert_eq!(status(&scene.home).unwrap()["pid"], daemon.pid());
}

#[test]
fn flush_returns_when_everything_is_stored_and_named() {
    let mut scene = Scene::new();
    let _daemon = Daemon::start(&scene.home, &NEVER);
    for _ in 0..3 {
        scene.grow();
        ctl_ok(&scene.home, &["flush"]);
        scene.complete().unwrap();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn an_agent_whose_first_session_comes_while_the_daemon_runs_needs_no_scan_of_the_minute() {
    let scene = Scene::new();
    let absent = Home::new();
    let _daemon = Daemon::start(&absent, &["--interval", "100ms"]);
    ctl_ok(&absent, &["flush"]); // The scan of the start is over.
    let began = Instant::now();
    for one in &scene.transcripts {
        let below = one.path.strip_prefix(scene.home.path()).unwrap();
        absent.place(&absent.path().join(below), &fs::read(&one.path).unwrap());
    }
    wait_for("three sessions", || (list(&absent).len() == 3).then_some(()));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn new_records_and_new_sessions_are_stored_without_being_asked_for() {
    let mut scene = Scene::new();
    let _daemon = Daemon::start(&scene.home, &["--interval", "100ms"]);
    wait_until_ok("what was there", || scene.complete());
    scene.grow();
    let mut fresh = Transcript::new(&scene.home, "claude-code", 77, 9);
    fresh.grow(&scene.planted, 3);
    scene.transcripts.push(fresh);
    wait_until_ok("what came", || scene.complete());
}

#[test]
fn t28_sigterm_drains_and_ends_the_sessions_that_were_written() {
    let mut scene = Scene::new();
    let mut daemon = Daemon::start(&scene.home, &NEVER);
    ctl_ok(&scene.home, &["flush"]);
    scene.grow();
    assert_eq!(daemon.term().code(), Some(0), "{}", daemon.said());
    scene.complete().unwrap();
    for number in 0..3 {
        assert!(scene.manifest(number)["ended_at"].is_string(), "session {number} has no ended_at");
    }
    assert_eq!(ctl(&scene.home, &["status"]).status.code(), Some(3));
}

#[test]
fn t28_sigint_drains_too() {
    let mut scene = Scene::new();
    let mut daemon = Daemon::start(&scene.home, &NEVER);
    scene.grow();
    daemon.signal(Signal::INT);
    let status = wait_for("the daemon to drain", || daemon.exited());
    assert_eq!(status.code(), Some(0), "{}", daemon.said());
    scene.complete().unwrap();
}

#[test]
fn a_session_that_is_written_again_after_it_ended_is_open_again() {
    let mut scene = Scene::new();
    Daemon::start(&scene.home, &NEVER).term();
    assert!(scene.manifest(0)["ended_at"].is_string());
    scene.transcripts[0].grow(&scene.planted, 1);
    let _daemon = Daemon::start(&scene.home, &NEVER);
    ctl_ok(&scene.home, &["flush"]);
    scene.complete().unwrap();
    assert!(scene.manifest(0)["ended_at"].is_null(), "{}", scene.manifest(0)["ended_at"]);
}

/// A daemon with 120 MB to drain, told to end by `signals`; how long it took to obey.
fn slow_drain(signals: &[Duration]) -> (Scene, Duration) {
    let mut scene = Scene::new();
    let mut daemon = Daemon::start(&scene.home, &NEVER);
    ctl_ok(&scene.home, &["flush"]);
    let long = "the quick brown fox jumps over the lazy dog ".repeat(24_000);
    for transcript in &mut scene.transcripts {
        (0..40).for_each(|_| transcript.grow_by(&long));
    }
    let started = Instant::now();
    for after in signals {
        // The second signal has to come a while after the first; there is no other condition.
        let early = daemon.exits_within(after.saturating_sub(started.elapsed()));
        if early.is_some() {
            break;
        }
        daemon.signal(Signal::TERM);
    }
    wait_for("the daemon to end", || daemon.exited());
    (scene, started.elapsed())
}

#[test]
fn t28_a_second_signal_abandons_a_slow_drain_and_costs_nothing() {
    let (scene, whole) = slow_drain(&[Duration::ZERO]);
    scene.complete().unwrap();
    if whole < Duration::from_millis(500) {
        return skipped(
            "t28_a_second_signal_abandons",
            "120 MB are drained too fast to be interrupted",
        );
    }
    let (scene, abandoned) = slow_drain(&[Duration::ZERO, whole / 10]);
    println!("drain of 120 MB: {whole:?}; abandoned by a second signal: {abandoned:?}");
    assert!(abandoned < whole.mul_f64(0.7), "the second signal was not obeyed");
    scene.home.once();
    scene.complete().unwrap();
}

#[test]
fn sigusr1_flushes_now() {
    let mut scene = Scene::new();
    let daemon = Daemon::start(&scene.home, &NEVER);
    ctl_ok(&scene.home, &["flush"]);
    scene.grow();
    daemon.signal(Signal::USR1);
    wait_until_ok("the flush that the signal asks for", || scene.complete());
}

#[test]
fn t35_sighup_reads_the_rules_again_and_keeps_the_cursors() {
    let mut scene = Scene::new();
    let config = scene.home.path().join(".config/tracecraft/config.toml");
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    write_private(&config, "");
    let daemon = Daemon::start(&scene.home, &["--interval", "100ms"]);
    wait_until_ok("what was there", || scene.complete());
    let before = parts(&scene.home.bucket());
    let mut excluded = Transcript::new(&scene.home, "codex", 66, 9);
    write_private(&config, "[[exclude]]\ncwd = \"/home/dev/works/codex-66\"\n");
    daemon.signal(Signal::HUP);
    let excludes = || status(&scene.home).is_some_and(|status| status["phase"] == "recording");
    wait_for("the daemon to go on", || excludes().then_some(()));
    // The rule is in force when a session under it is counted as left out and nothing of it is stored.
    let counted = try_wait_for(Duration::from_secs(20), || {
        excluded.grow(&scene.planted, 1);
        let count = status(&scene.home)?["sessions"]["excluded"].as_u64()?;
        (count == 1).then_some(())
    });
    assert!(counted.is_some(), "no session is excluded:\n{}", daemon.said());
    let stored = Bucket::read_one(&scene.home.bucket(), "codex", &excluded.id);
    assert!(
        stored.sessions.is_empty(),
        "an excluded session was stored after the rule was in force"
    );
    scene.grow();
    wait_until_ok("what came after the signal", || scene.complete());
    let after = parts(&scene.home.bucket());
    assert!(
        before.iter().all(|(name, digest)| after.get(name) == Some(digest)),
        "parts were sent twice"
    );
}

#[test]
fn sighup_with_a_broken_file_keeps_the_old_rules_and_the_daemon() {
    let mut scene = Scene::new();
    let config = scene.home.path().join(".config/tracecraft/config.toml");
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    write_private(&config, "");
    let mut daemon = Daemon::start(&scene.home, &["--interval", "100ms"]);
    write_private(&config, "stroe = \"file:///nowhere\"\n");
    daemon.signal(Signal::HUP);
    wait_for("a word about the broken file", || daemon.said().contains("stroe").then_some(()));
    let problems = || status(&scene.home)?["problems"].as_array().cloned();
    let told = wait_for("status to tell", || problems()?.first().cloned());
    assert!(told["code"] == "config_invalid" && told.to_string().contains("stroe"), "{told}");
    write_private(&config, "");
    daemon.signal(Signal::HUP);
    wait_for("the problem to be over", || problems()?.is_empty().then_some(()));
    scene.grow();
    wait_until_ok("recording to go on", || scene.complete());
    assert!(daemon.exited().is_none());
}

pub(crate) fn write_private(path: &std::path::Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn t65_a_socket_that_was_removed_comes_back_with_the_next_scan() {
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene.home, &NEVER);
    fs::remove_file(scene.home.socket()).unwrap();
    assert_eq!(ctl(&scene.home, &["status"]).status.code(), Some(3));
    daemon.signal(Signal::HUP); // Scans at once; else within a minute.
    wait_for("the socket", || status(&scene.home));
    assert_eq!(daemon.said().matches("made again").count(), 1, "{}", daemon.said());
    assert_eq!(daemon.term().code(), Some(0), "{}", daemon.said());
    assert!(!scene.home.socket().exists());
}

#[test]
fn t64_a_stale_socket_is_no_obstacle() {
    let scene = Scene::new();
    let mut daemon = Daemon::start(&scene.home, &NEVER);
    daemon.kill9();
    assert!(scene.home.socket().exists(), "kill -9 leaves the socket file");
    assert_eq!(ctl(&scene.home, &["status"]).status.code(), Some(3));
    let second = Daemon::start(&scene.home, &NEVER);
    assert_eq!(status(&scene.home).unwrap()["pid"], second.pid());
}

#[test]
fn t30_t31_damaged_or_lost_state_is_rebuilt_from_the_bucket_and_nothing_is_sent_twice() {
    let half = |bytes: Vec<u8>| bytes[..bytes.len() / 2].to_vec();
    type Damage<'a> = (&'a str, &'a dyn Fn(Vec<u8>) -> Vec<u8>);
    let damages: [Damage; 4] = [
        ("empty", &|_| Vec::new()),
        ("half", &half),
        ("garbage", &|_| b"\x00\xffthis is no state\n{{{".to_vec()),
        ("zeros", &|bytes| vec![0; bytes.len()]),
    ];
    for (name, damage) in damages {
        let scene = Scene::new();
        scene.home.once();
        let before = parts(&scene.home.bucket());
        let files = scene.state_files();
        assert!(!files.is_empty(), "there is no state file");
        for file in &files {
            fs::write(file, damage(fs::read(file).unwrap())).unwrap();
        }
        let output = scene.home.once();
        assert_eq!(before, parts(&scene.home.bucket()), "state {name}: {}", said(&output));
        scene.complete().unwrap_or_else(|why| panic!("state {name}: {why}"));
        grows_on(scene, name);
    }
}

#[test]
fn t31_a_lost_state_directory_is_rebuilt_and_nothing_is_sent_twice() {
    let scene = Scene::new();
    scene.home.once();
    let before = parts(&scene.home.bucket());
    fs::remove_dir_all(scene.home.state_dir()).unwrap();
    let output = scene.home.once();
    assert_eq!(before, parts(&scene.home.bucket()), "{}", said(&output));
    scene.complete().unwrap();
    grows_on(scene, "missing");
}

#[test]
fn t30_damaged_state_is_set_aside_and_not_overwritten() {
    let scene = Scene::new();
    scene.home.once();
    let garbage = b"this is no state, and somebody may want to look at it";
    let files = scene.state_files();
    files.iter().for_each(|file| fs::write(file, garbage).unwrap());
    scene.home.once();
    let kept = crate::support::home::files_below(&scene.home.state_dir());
    let kept: Vec<_> = kept.into_iter().filter(|(_, content)| content == garbage).collect();
    assert!(!kept.is_empty(), "the damaged state is gone");
    assert!(
        kept.iter().all(|(path, _)| !files.contains(path)),
        "it still lies where state is read"
    );
}

/// After a recovery the sessions go on where they were.
fn grows_on(mut scene: Scene, what: &str) {
    let before = parts(&scene.home.bucket());
    scene.grow();
    scene.home.once();
    scene.complete().unwrap_or_else(|why| panic!("after state {what}, growth: {why}"));
    let after = parts(&scene.home.bucket());
    assert!(
        before.iter().all(|(name, digest)| after.get(name) == Some(digest)),
        "state {what}: sent twice"
    );
}

#[test]
fn stop_ends_a_session_until_start() {
    let mut scene = Scene::new();
    let _daemon = Daemon::start(&scene.home, &NEVER);
    let id = scene.transcripts[0].id.clone();
    ctl_ok(&scene.home, &["stop", &id]);
    let refused = ctl(&scene.home, &["flush", &id]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("is stopped: it is not looked at"), "{}", said(&refused));
    assert!(scene.manifest(0)["ended_at"].is_string());
    let stored = |scene: &Scene| {
        Bucket::read_one(&scene.home.bucket(), "claude-code", &id).sessions[0].by_manifest.clone()
    };
    let before = stored(&scene);
    scene.grow();
    ctl_ok(&scene.home, &["flush"]);
    assert_eq!(before, stored(&scene), "a stopped session was followed");
    let session =
        list(&scene.home).into_iter().find(|session| session["id"] == id.as_str()).unwrap();
    assert_eq!(session["state"], "stopped");
    ctl_ok(&scene.home, &["start", &id]);
    ctl_ok(&scene.home, &["flush"]);
    scene.complete().unwrap();
}

#[test]
fn a_stopped_session_stays_stopped_when_the_state_is_lost() {
    let mut scene = Scene::new();
    let mut daemon = Daemon::start(&scene.home, &NEVER);
    let id = scene.transcripts[0].id.clone();
    ctl_ok(&scene.home, &["stop", &id]);
    assert_eq!(daemon.term().code(), Some(0));
    fs::remove_dir_all(scene.home.state_dir()).unwrap();
    scene.grow();
    let before =
        Bucket::read_one(&scene.home.bucket(), "claude-code", &id).sessions[0].by_manifest.clone();
    scene.home.once();
    let after =
        Bucket::read_one(&scene.home.bucket(), "claude-code", &id).sessions[0].by_manifest.clone();
    assert_eq!(before, after, "a stopped session was followed");
}

#[test]
fn compact_merges_the_parts_of_a_live_session_and_changes_no_byte() {
    let mut scene = Scene::new();
    let _daemon = Daemon::start(&scene.home, &NEVER);
    for _ in 0..4 {
        ctl_ok(&scene.home, &["flush"]);
        scene.grow();
    }
    ctl_ok(&scene.home, &["flush"]);
    let id = scene.transcripts[1].id.clone();
    let named = || Bucket::read_one(&scene.home.bucket(), "codex", &id).sessions[0].named;
    let before = named();
    assert!(before >= 4, "{before} parts before");
    let raw = ctl_ok(&scene.home, &["show", &id, "--raw"]);
    ctl_ok(&scene.home, &["compact", &id, "--keep-tail", "2"]);
    assert_eq!(named(), 3, "one merged and two kept");
    scene.complete().unwrap();
    assert_eq!(raw, ctl_ok(&scene.home, &["show", &id, "--raw"]));
    ctl_ok(&scene.home, &["compact", &id]);
    assert_eq!(named(), 1);
    scene.complete().unwrap();
}

#[test]
fn stop_of_a_session_whose_manifest_cannot_be_used_fails_with_a_reason_and_a_way_out() {
    let mut scene = Scene::new();
    let _daemon = Daemon::start(&scene.home, &["--interval", "100ms"]);
    ctl_ok(&scene.home, &["flush"]);
    let id = scene.transcripts[0].id.clone();
    let manifest = scene.home.bucket().join("sessions/claude-code").join(&id).join("meta.json");
    let good = fs::read(&manifest).unwrap();
    fs::write(&manifest, b"no manifest").unwrap();
    scene.grow();
    let refused = ctl(&scene.home, &["stop", &id]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    for word in ["stopped, but the store cannot be told", "meta.json", "mend or remove"] {
        assert!(said(&refused).contains(word), "no {word:?} in {}", said(&refused));
    }
    let is_stopped = |session: &Value| session["id"] == *id && session["state"] == "stopped";
    assert!(list(&scene.home).iter().any(is_stopped), "{:?}", list(&scene.home));
    // Once it is mended, asking again tells the store what waited: the last records and the end.
    fs::write(&manifest, good).unwrap();
    ctl_ok(&scene.home, &["stop", &id]);
    assert_eq!(scene.manifest(0)["followed"], false);
    assert!(scene.manifest(0)["ended_at"].is_string());
    ctl_ok(&scene.home, &["flush"]);
    scene.complete().unwrap();
}
