//! What it costs: memory for one huge session, for very many and for a long outage, and nothing at all when idle. Measured on the real binary, so release builds
//! give the figures that count; all are `#[ignore]`d and run by `.ci`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use crate::bucket::behind_a_proxy;
use crate::support::bucket::Kind as ServerKind;
use crate::support::daemon::{Daemon, ctl_ok, status, status_bytes};
use crate::support::home::{Home, age, files_below};
use crate::support::judge;
use crate::support::oracle::Bucket;
use crate::support::planted::{Planted, record};
use crate::support::writers::Transcript;
use crate::support::{skipped, try_wait_for, wait_for, wait_for_the_end_of};

/// The size of the huge session (`TRACECRAFT_HUGE_MB` sets another one), and the most memory that reading it may take.
const HUGE: u64 = 400 << 20;
const RESIDENT_MAX: u64 = 64 << 20;

/// How long one piece of work on the huge session, or on very many, may take.
const HUGE_MAX: Duration = Duration::from_secs(900);

/// The test itself reads no larger bucket into its memory.
const READ_MAX: u64 = 512 << 20;

/// The sessions of a first start, and the descriptors that it may need: some files at a time, whatever their number.
const MANY: u64 = 10_000;
const DESCRIPTORS_MAX: usize = 96;

/// The idle daemon: how many sessions it knows, how long it is watched (`TRACECRAFT_IDLE_SECONDS`), and the processor time that it may
/// take in a second, the memory and the descriptors.
const SESSIONS: u64 = 5000;
const WATCHED_SECONDS: u64 = 60;
const PROCESSOR_MAX: f64 = 0.001;
const IDLE_RESIDENT_MAX: u64 = 25_000_000;
const IDLE_DESCRIPTORS_MAX: usize = 64;

/// The unit, which says how memory is to be given back, and why.
const UNIT: &str = include_str!("../systemd/tracecraftd.service");

/// The variables that the unit sets.
fn as_the_service() -> impl Iterator<Item = (&'static str, &'static str)> {
    UNIT.lines().filter_map(|line| line.strip_prefix("Environment=")?.split_once('='))
}

/// The daemon's own limit, and the interval after it.
const IDLE_AFTER: Duration = Duration::from_secs(60 + 10);

/// In a bucket a name is trusted only when it is read two minutes after it was put: another writer's may have replaced it.
pub(crate) const IDLE_IN_BUCKET_AFTER: Duration = Duration::from_secs(60 + 120 + 15);

/// User and system time of a process in clock ticks (1/100 s).
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in parentheses may hold anything; the fields after it are plain.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Writes a session of about `bytes` bytes in records of up to 8 KB, one in a hundred much larger. No two have one length: what
/// an allocator can use again after records of one length is no measure for those of an agent.
fn write_huge(path: &Path, id: &str, bytes: u64) -> u64 {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = std::io::BufWriter::new(fs::File::create(path).unwrap());
    let mut rng = fastrand::Rng::with_seed(24);
    let long = "the quick brown fox jumps over the lazy dog ".repeat(9000);
    let (mut written, mut serial) = (0, 0);
    while written < bytes {
        serial += 1;
        let longest = if serial % 100 == 0 { long.len() } else { 8 << 10 };
        let text = &long[..rng.usize(20..longest)];
        let record = record("claude-code", id, "/home/dev/works/huge", serial, text);
        file.write_all(&record).unwrap();
        written += record.len() as u64;
    }
    file.into_inner().unwrap();
    age(path);
    written
}

#[test]
#[ignore = "writes some GB; .ci runs it"]
fn t24_a_session_of_400_mb_takes_at_most_64_mb_of_memory() {
    if !Path::new("/proc/self/status").exists() {
        return skipped("the memory test", "there is no /proc");
    }
    let home = Home::new();
    let id = "4aa00000-0000-4000-8000-000000000400";
    let huge = number("TRACECRAFT_HUGE_MB", HUGE >> 20) << 20;
    let size = write_huge(&home.claude_code("/home/dev/works/huge", id), id, huge);
    let (peak, took) = once_measured(&home, HUGE_MAX);
    println!("memory: {} MB in {took:.1} s, peak resident {:.1} MB", size >> 20, mb(peak));
    let stored = files_of(&home.bucket()).iter().map(|(_, bytes)| bytes).sum::<u64>();
    assert!(stored >= size, "{stored} bytes are stored, {size} were written");
    if size <= READ_MAX {
        let bucket = Bucket::read(&home.bucket());
        assert_eq!(bucket.faults_at_rest(), Vec::<String>::new());
        assert_eq!(bucket.sessions[0].by_manifest.len() as u64, size);
    }
    assert!(peak > 0 && peak <= RESIDENT_MAX, "peak resident {peak} bytes");
    compact_and_show(&home, id, size);
}

/// `--once`: the most memory that it took, and its time in seconds.
fn once_measured(home: &Home, limit: Duration) -> (u64, f64) {
    let started = Instant::now();
    let mut daemon = Daemon::spawn(home, &["--once"]);
    let mut peak = 0;
    let status = try_wait_for(limit, || {
        peak = peak.max(daemon.peak_bytes());
        daemon.exited()
    });
    let status = status.unwrap_or_else(|| panic!("not done within {limit:?}"));
    assert!(status.success(), "{}", daemon.said());
    (peak, started.elapsed().as_secs_f64())
}

/// Merging, replaying and verifying the huge session stay within the limit too.
fn compact_and_show(home: &Home, id: &str, size: u64) {
    let daemon = Daemon::start(home, &["--interval", "1s"]);
    let told = ctl_long(home, &["verify", "--deep", "--json"]);
    assert!(String::from_utf8_lossy(&told).contains("\"fine\":1,"), "{}", lossy(&told));
    ctl_long(home, &["compact", id]);
    let shown = home.path().join("shown");
    let mut show = home.tracecraftctl();
    show.args(["show", id, "--raw"]).stdout(fs::File::create(&shown).unwrap());
    let mut show = show.spawn().unwrap();
    let status = try_wait_for(HUGE_MAX, || show.try_wait().unwrap());
    assert!(status.is_some_and(|status| status.success()), "not shown within {HUGE_MAX:?}");
    assert_eq!(fs::metadata(&shown).unwrap().len(), size);
    let peak = daemon.peak_bytes();
    println!("memory: verify, compact and show, peak resident {:.1} MB", mb(peak));
    assert!(peak <= RESIDENT_MAX, "peak resident {peak} bytes");
}

/// As [`ctl_ok`], for what takes minutes.
fn ctl_long(home: &Home, arguments: &[&str]) -> Vec<u8> {
    let said = home.path().join("said.out");
    let mut command = home.tracecraftctl();
    command.args(arguments).stdout(fs::File::create(&said).unwrap());
    let mut child = command.spawn().unwrap();
    let status = try_wait_for(HUGE_MAX, || child.try_wait().unwrap());
    let said = fs::read(&said).unwrap();
    assert!(status.is_some_and(|status| status.success()), "{arguments:?}: {}", lossy(&said));
    said
}

fn lossy(text: &[u8]) -> String {
    String::from_utf8_lossy(text).into_owned()
}

fn mb(bytes: u64) -> f64 {
    bytes as f64 / 1048576.0
}

#[test]
#[ignore = "writes 10,000 sessions; .ci runs it"]
fn t25_a_first_start_with_10000_sessions_stores_all_of_them_with_few_descriptors() {
    if !Path::new("/proc/self/fd").exists() {
        return skipped("the first start", "there is no /proc");
    }
    let home = Home::new();
    let planted = Planted::exact_only(25);
    let sources: Vec<_> = (0..MANY)
        .map(|number| {
            let harness = ["claude-code", "codex", "openclaw"][number as usize % 3];
            let mut transcript = Transcript::new(&home, harness, number, 25);
            transcript.grow(&planted, 3);
            age(&transcript.path);
            transcript.source(&planted)
        })
        .collect();
    let started = Instant::now();
    let mut daemon = Daemon::spawn(&home, &[]);
    let (mut descriptors, mut answered) = (0, None);
    let stored = try_wait_for(HUGE_MAX, || {
        descriptors = descriptors.max(self::descriptors(&daemon));
        let status = status(&home)?;
        answered.get_or_insert_with(|| started.elapsed().as_secs_f64());
        let is_done = status["phase"] == "recording" && status["pending"]["parts"] == 0;
        is_done.then(|| started.elapsed().as_secs_f64())
    });
    let stored = stored.unwrap_or_else(|| panic!("not stored:\n{}", daemon.said()));
    ctl_long(&home, &["flush"]);
    let first = daemon.peak_bytes();
    assert_eq!(daemon.term().code(), Some(0));
    judge::verdict(judge::at_rest(&Bucket::read(home.objects()), &sources)).unwrap();
    let mut daemon = Daemon::start(&home, &[]);
    ctl_long(&home, &["flush"]);
    let second = daemon.peak_bytes();
    println!(
        "first start: {MANY} sessions stored in {stored:.1} s (status answers after {:.1} s), peak resident {:.1} MB, at \
         most {descriptors} descriptors; the next start: peak resident {:.1} MB",
        answered.unwrap_or_default(),
        mb(first),
        mb(second)
    );
    assert_eq!(daemon.term().code(), Some(0));
    assert!(first.max(second) <= RESIDENT_MAX, "peak resident {first} and {second} bytes");
    assert!(descriptors <= DESCRIPTORS_MAX, "{descriptors} descriptors");
}

/// How many descriptors a daemon has open.
fn descriptors(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.pid())).map_or(0, Iterator::count)
}

/// Path and size of all files below a directory.
fn files_of(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let metadata = entry.metadata().unwrap();
            match metadata.is_dir() {
                true => dirs.push(entry.path()),
                false => found.push((entry.path(), metadata.len())),
            }
        }
    }
    found
}

/// Path and modification time of all the program's files.
fn times(home: &Home) -> Vec<(String, SystemTime)> {
    let files = files_below(&home.path().join(".local")).into_iter();
    files
        .map(|(path, _)| {
            (path.display().to_string(), fs::metadata(&path).unwrap().modified().unwrap())
        })
        .collect()
}

#[test]
#[ignore = "watches an idle daemon for a minute; .ci runs it"]
fn t25_t50_idle_with_5000_sessions_is_free() {
    idle(&Home::new(), "idle", IDLE_AFTER, || 0);
}

#[test]
#[ignore = "watches an idle daemon for a minute; .ci runs it"]
fn t25_t50_idle_with_5000_sessions_in_a_bucket_makes_no_request() {
    let test = "idle with a bucket";
    let Some((proxy, home)) = behind_a_proxy(ServerKind::S3sFs, test, 25) else { return };
    idle(&home, test, IDLE_IN_BUCKET_AFTER, || proxy.count());
}

/// Stores many sessions, lets the daemon come to rest, and watches what it takes then. `requests`: how many the store has had.
fn idle(home: &Home, test: &str, rest: Duration, requests: impl Fn() -> usize) {
    if !Path::new("/proc/self/stat").exists() {
        return skipped(test, "there is no /proc");
    }
    for number in 0..SESSIONS {
        let id = format!("{number:08x}-0000-4000-8000-000000003000");
        let cwd = format!("/home/dev/works/project-{}", number % 60);
        let lines: Vec<u8> =
            (0..8).flat_map(|n| record("claude-code", &id, &cwd, n, "some words")).collect();
        home.place(&home.claude_code(&cwd, &id), &lines);
    }
    let started = Instant::now();
    let mut command = home.tracecraftd();
    assert!(as_the_service().any(|(name, _)| name == "MALLOC_ARENA_MAX"));
    command.envs(as_the_service());
    let mut daemon = Daemon::spawn_with(home, command, Stdio::null());
    daemon.wait_ready(home);
    ctl_long(home, &["flush"]);
    println!("{test}: {SESSIONS} sessions stored in {:.1} s", started.elapsed().as_secs_f64());
    assert_eq!(Bucket::read(home.objects()).sessions.len() as u64, SESSIONS);
    // A session is idle a minute after its last part: then all of it is compared once more, and that is written down.
    wait_for_the_end_of(Instant::now(), rest);
    quiet(home, daemon.pid());
    let (before, files, asked) = (ticks(daemon.pid()), times(home), requests());
    let watched = Instant::now();
    let limit = Duration::from_secs(number("TRACECRAFT_IDLE_SECONDS", WATCHED_SECONDS));
    wait_for_the_end_of(watched, limit);
    let seconds = (ticks(daemon.pid()) - before) as f64 / 100.0;
    let asked = requests() - asked;
    let resident = status_bytes(daemon.pid(), "VmRSS:").unwrap_or(u64::MAX);
    let descriptors = descriptors(&daemon);
    println!(
        "{test}: {seconds:.2} s of processor time in {:.0} s, resident {:.1} MB, {descriptors} descriptors, {asked} requests",
        watched.elapsed().as_secs_f64(),
        mb(resident)
    );
    assert_eq!(files, times(home), "an idle daemon wrote something");
    let most = (PROCESSOR_MAX * limit.as_secs_f64()).max(0.1);
    assert!(seconds <= most, "{seconds} s of processor time");
    assert!(resident <= IDLE_RESIDENT_MAX, "resident {resident} bytes");
    assert!(descriptors <= IDLE_DESCRIPTORS_MAX, "{descriptors} descriptors");
    assert_eq!(asked, 0, "an idle daemon asked its store");
    assert!(daemon.exited().is_none());
}

/// Waits until the daemon has come to rest after the flush: no processor time within two seconds.
fn quiet(home: &Home, pid: u32) {
    let mut last = (ticks(pid), Instant::now());
    wait_for("the daemon to come to rest", || {
        let now = ticks(pid);
        if now != last.0 {
            last = (now, Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(2)).then_some(())
    });
    assert!(home.state_dir().exists());
}

/// Sessions of the outage, how many of their parts wait at its end, and how long it may take to gather and to store these.
const AWAY_SESSIONS: u64 = 20;
const AWAY_PARTS: u64 = 3000;
const AWAY_MAX: Duration = Duration::from_secs(900);

/// The most memory a process has taken since it was last asked, where the system lets that be asked; else since its start.
fn peak_since(daemon: &Daemon) -> u64 {
    let peak = daemon.peak_bytes();
    // The owner of a process that may not dump is root: where that is refused, the peak only grows.
    let _ = fs::write(format!("/proc/{}/clear_refs", daemon.pid()), "5");
    peak
}

fn pending_parts(home: &Home) -> Option<u64> {
    status(home)?["pending"]["parts"].as_u64()
}

/// Lets all sessions grow until so many parts wait for a store that is away: a part each and flush.
fn gather(home: &Home, transcripts: &mut [Transcript], planted: &Planted, parts: u64) {
    let started = Instant::now();
    while pending_parts(home).unwrap_or(0) < parts {
        assert!(started.elapsed() < AWAY_MAX, "{:?} parts wait", pending_parts(home));
        for _ in 0..10 {
            let round = Instant::now();
            transcripts.iter_mut().for_each(|one| one.grow(planted, 1));
            wait_for_the_end_of(round, Duration::from_millis(100));
        }
    }
}

#[test]
#[ignore = "gathers thousands of parts while a store is away; .ci runs it"]
fn t37_an_outage_of_thousands_of_parts_takes_at_most_64_mb_of_memory() {
    let test = "an outage's memory";
    let Some((proxy, home)) = behind_a_proxy(ServerKind::S3sFs, test, 6) else { return };
    let planted = Planted::exact_only(37);
    let new = |number| Transcript::new(&home, "codex", number, 37);
    let mut transcripts: Vec<_> = (0..AWAY_SESSIONS).map(new).collect();
    transcripts.iter_mut().for_each(|one| one.grow(&planted, 2));
    let mut daemon = Daemon::start(&home, &["--interval", "100ms"]);
    ctl_ok(&home, &["flush"]);
    let mut peaks = vec![("begun", peak_since(&daemon))];
    proxy.there(false);
    let parts = number("TRACECRAFT_AWAY_PARTS", AWAY_PARTS);
    gather(&home, &mut transcripts, &planted, parts);
    peaks.push(("captured", peak_since(&daemon)));
    daemon.kill9();
    let mut daemon = Daemon::start(&home, &["--interval", "100ms"]);
    peaks.push(("started again", peak_since(&daemon)));
    proxy.there(true);
    let started = Instant::now();
    let caught_up = try_wait_for(AWAY_MAX, || (pending_parts(&home)? == 0).then_some(()));
    assert!(caught_up.is_some(), "{:?} parts wait", pending_parts(&home));
    let took = started.elapsed().as_secs_f64();
    peaks.push(("caught up", peak_since(&daemon)));
    ctl_long(&home, &["flush"]);
    peaks.push(("named", peak_since(&daemon)));
    ctl_long(&home, &["verify", "--deep"]);
    peaks.push(("verified", peak_since(&daemon)));
    ctl_long(&home, &["compact", &transcripts[0].id]);
    peaks.push(("compacted", peak_since(&daemon)));
    assert_eq!(daemon.term().code(), Some(0));
    let bucket = Bucket::read(home.objects());
    let sources: Vec<_> = transcripts.iter().map(|one| one.source(&planted)).collect();
    judge::verdict(judge::at_rest(&bucket, &sources)).unwrap();
    let tell = |(at, bytes): &(&str, u64)| format!("{at} {:.1} MB", mb(*bytes));
    let told = peaks.iter().map(tell).collect::<Vec<_>>().join(", ");
    println!(
        "{test}: {parts} parts of {AWAY_SESSIONS} sessions, caught up in {took:.1} s, peak resident: {told}"
    );
    let peak = peaks.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0);
    assert!(peak > 0 && peak <= RESIDENT_MAX, "peak resident {peak} bytes");
}

/// What a variable says, or else `default`.
fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
