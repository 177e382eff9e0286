//! A live run: twenty sessions grow and are treated rudely, compactions come at random moments, the daemon is killed and
//! restarted again and again; in the end no byte is missing, none is doubled.
//!
//! Owns the run, which lasts a while; where the objects go, and what goes wrong there, is a parameter ([`Setting`]). Those with
//! a bucket are in `bucket.rs`; a number of kills instead of a while is in `campaign.rs`.

use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::support::daemon::{Daemon, ctl, ctl_ok, sessions_of, status};
use crate::support::home::{Home, said};
use crate::support::judge::{self, Source};
use crate::support::oracle::Bucket;
use crate::support::planted::Planted;
use crate::support::proxy::{Plan, Proxy};
use crate::support::writers::Transcript;
use crate::support::{pace, seed, try_wait_for, wait_for_the_end_of};

/// The sessions of the campaign: eight of Claude Code, six of Codex, six of OpenClaw.
const SESSIONS: u64 = 20;

/// Pause between two writes of one record: long enough that a flush falls between them now and then.
const BETWEEN_WRITES: Duration = Duration::from_millis(15);

/// When the store goes away, as a share of the time that it is there.
const AWAY_AT: f64 = 0.3;

/// How long one wait for a capture lasts: no verdict is given meanwhile.
const CAPTURED_MAX: Duration = Duration::from_secs(5);

/// How long a daemon may take to catch up with what it captured while its store failed or was away.
pub(crate) const CATCH_UP_MAX: Duration = Duration::from_secs(900);

/// What a campaign is run with.
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    /// How long it lasts; the time that the store is away comes on top.
    pub(crate) length: Duration,
    /// How often the daemon is killed at least.
    pub(crate) kills: u32,
    /// Flush interval of the daemon.
    pub(crate) interval: &'static str,
    /// Where the objects go.
    pub(crate) home: Home,
    /// What stands before the store, if it is not a local one.
    pub(crate) proxy: Option<Proxy>,
    /// How long the store is away; meanwhile one session is rewritten and one deleted.
    pub(crate) away: Option<Duration>,
    /// The most memory that the daemon may ever take.
    pub(crate) resident_max: Option<u64>,
}

/// What happens to one session in the course of the campaign.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    Grows,
    StartsLater,
    Truncated,
    Replaced,
    Moved,
    Archived,
    Deleted,
    ReplacedWhileAway,
    DeletedWhileAway,
}

impl Fate {
    fn is_while_away(self) -> bool {
        matches!(self, Fate::ReplacedWhileAway | Fate::DeletedWhileAway)
    }
}

fn harness_of(number: u64) -> &'static str {
    match number {
        0..8 => "claude-code",
        8..14 => "codex",
        _ => "openclaw",
    }
}

fn fate_of(number: u64, away: bool) -> Fate {
    match number {
        4 | 10 if away => Fate::ReplacedWhileAway,
        5 | 15 if away => Fate::DeletedWhileAway,
        1 => Fate::StartsLater,
        2 => Fate::Replaced,
        3 => Fate::Moved,
        8 => Fate::Archived,
        9 => Fate::Deleted,
        14 => Fate::Truncated,
        _ => Fate::Grows,
    }
}

/// What all threads of a campaign share.
struct Campaign {
    setting: Setting,
    planted: Planted,
    transcripts: Vec<Mutex<Transcript>>,
    ending: AtomicBool,
    /// Sessions that have met their fate.
    met: AtomicU64,
    /// How many of those whose fate needs a store that is away have not met it.
    unmet_while_away: AtomicU64,
    /// The store is away.
    away: AtomicBool,
    /// What was captured when its source was rewritten or deleted while the store was away.
    captured: Mutex<Vec<Captured>>,
    started: Instant,
    length: Duration,
}

/// Content that must be in the bucket in the end, although its source is gone.
struct Captured {
    number: u64,
    /// Which life of the source, from 0.
    life: usize,
    content: Vec<u8>,
}

#[derive(Debug, Default)]
struct Tally {
    kills: u32,
    /// Compactions whose asker was answered that they were done, if only because there was nothing to merge.
    compactions: u32,
    /// How long the last daemon needed until nothing was pending, writers and kills being over.
    catch_up: Duration,
    /// What the last compaction said that failed: most do because the daemon is killed.
    refusal: String,
    checks: u32,
    /// The most memory that a daemon took.
    peak: u64,
}

impl Campaign {
    fn new(setting: Setting, seed: u64) -> Campaign {
        let new = |number| Transcript::new(&setting.home, harness_of(number), number, seed);
        let transcripts = (0..SESSIONS).map(new).map(Mutex::new).collect();
        let is_away = setting.away.is_some();
        let unmet_while_away = (0..SESSIONS).filter(|n| fate_of(*n, is_away).is_while_away());
        Campaign {
            planted: Planted::exact_only(seed),
            transcripts,
            ending: AtomicBool::new(false),
            met: AtomicU64::new(0),
            unmet_while_away: AtomicU64::new(unmet_while_away.count() as u64),
            away: AtomicBool::new(false),
            captured: Mutex::new(Vec::new()),
            started: Instant::now(),
            length: setting.length + setting.away.unwrap_or_default(),
            setting,
        }
    }

    fn home(&self) -> &Home {
        &self.setting.home
    }

    fn arguments(&self) -> [&'static str; 2] {
        ["--interval", self.setting.interval]
    }

    fn transcript(&self, number: u64) -> MutexGuard<'_, Transcript> {
        self.transcripts[number as usize].lock().unwrap()
    }

    fn ended(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// The bucket and what the sources held. The bucket is read first: the model may be ahead of it, never behind. What a
    /// killed daemon has asked for may still be done, so that is waited for.
    fn look(&self) -> (Bucket, Vec<Source>) {
        self.setting.proxy.iter().for_each(Proxy::settle);
        let bucket = Bucket::read(self.home().objects());
        let model = self.transcripts.iter().map(|one| one.lock().unwrap().source(&self.planted));
        (bucket, model.collect())
    }

    /// Waits until the bucket holds all that the present life of a session holds; not for ever, since a campaign may end.
    fn mirrored(&self, number: u64) -> bool {
        let (harness, id, life, content) = {
            let transcript = self.transcript(number);
            let source = transcript.source(&self.planted);
            let life = source.generations.len();
            (transcript.harness, transcript.id.clone(), life, source.generations[life - 1].clone())
        };
        try_wait_for(Duration::from_secs(30), || {
            let bucket = Bucket::read_one(self.home().objects(), harness, &id);
            let stored = bucket.generations(harness, &id);
            (stored.len() == life && stored[life - 1].by_manifest == content).then_some(())
        })
        .is_some()
    }

    /// Waits until the daemon says that all that the present life of a session holds is captured, and notes that it is; not for
    /// longer than a daemon is there.
    fn captured(&self, number: u64) -> bool {
        let transcript = self.transcript(number);
        let (path, size) = (transcript.path.to_str().unwrap(), transcript.size() as u64);
        // Asked for, since few daemons live longer than an interval. The answer waits for a store that is away: not wanted.
        let mut flush = self.home().tracecraftctl();
        flush.args(["flush", &format!("{}/{}", transcript.harness, transcript.id)]);
        flush.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut flush = flush.spawn().unwrap();
        let said = try_wait_for(CAPTURED_MAX, || {
            let output = ctl(self.home(), &["list", "--json"]);
            if !output.status.success() {
                return Some(false);
            }
            let is_whole = |session: &serde_json::Value| {
                session["source_path"] == path
                    && session["state"] != "superseded"
                    && session["source_bytes"].as_u64() == Some(size)
            };
            sessions_of(&output.stdout).iter().any(is_whole).then_some(true)
        });
        let _ = flush.kill();
        flush.wait().unwrap();
        if said != Some(true) || size == 0 || !self.away.load(Ordering::SeqCst) {
            return false;
        }
        let mut lives = transcript.source(&self.planted).generations;
        let content = lives.pop().expect("a source has a life");
        self.captured.lock().unwrap().push(Captured { number, life: lives.len(), content });
        true
    }

    /// Takes the store away for a while, if that belongs to the campaign, and for longer if a session whose fate needs that has
    /// not met it: kills decide when a daemon is there to capture it.
    fn take_the_store_away(&self) {
        let (Some(away), Some(proxy)) = (self.setting.away, &self.setting.proxy) else { return };
        wait_for_the_end_of(self.started, self.setting.length.mul_f64(AWAY_AT));
        proxy.there(false);
        self.away.store(true, Ordering::SeqCst);
        wait_for_the_end_of(Instant::now(), away);
        let all_met = || (self.unmet_while_away.load(Ordering::SeqCst) == 0).then_some(());
        let _ = try_wait_for(CATCH_UP_MAX, all_met);
        self.away.store(false, Ordering::SeqCst);
        proxy.there(true);
    }

    /// Complaints about what was captured while the store was away and is not in the bucket.
    fn complaints_about_captured(&self, bucket: &Bucket) -> Vec<String> {
        let captured = self.captured.lock().unwrap();
        let complaint = |one: &Captured| {
            let transcript = self.transcript(one.number);
            let stored = bucket.generations(transcript.harness, &transcript.id);
            let whole = stored.get(one.life).is_some_and(|it| it.by_manifest == one.content);
            let name = format!("{}/{}, life {}", transcript.harness, transcript.id, one.life + 1);
            (!whole).then(|| format!("{name}: {} bytes were captured", one.content.len()))
        };
        captured.iter().filter_map(complaint).collect()
    }
}

/// One session's agent: writes until the campaign ends, and does once what its fate asks for.
fn write(campaign: &Campaign, number: u64, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed.wrapping_mul(31).wrapping_add(number));
    let share = rng.u32(30..60);
    let fateful = campaign.length * share / 100;
    let fate = fate_of(number, campaign.setting.away.is_some());
    let mut done = fate == Fate::Grows;
    campaign.met.fetch_add(u64::from(done), Ordering::Relaxed);
    while !campaign.ended() {
        let due = !done && campaign.started.elapsed() > fateful;
        if due && meet_fate(campaign, number, fate) {
            done = true;
            campaign.met.fetch_add(1, Ordering::Relaxed);
            let was_while_away = u64::from(fate.is_while_away());
            campaign.unmet_while_away.fetch_sub(was_while_away, Ordering::SeqCst);
        }
        let over = done && (campaign.transcript(number).gone || fate == Fate::Archived);
        if !over && (done || fate != Fate::StartsLater) {
            campaign.transcript(number).burst(&campaign.planted, 4, BETWEEN_WRITES);
        }
        pace(&mut rng, Duration::from_millis(250));
    }
    assert!(done, "session {number} never met its fate: {fate:?}");
}

/// Does to a session what has to be done. A rewrite waits until all before it is stored, so that the number of generations
/// is known; nothing is written meanwhile, since the one writer waits here.
fn meet_fate(campaign: &Campaign, number: u64, fate: Fate) -> bool {
    let rewrites =
        matches!(fate, Fate::Truncated | Fate::Replaced | Fate::Archived | Fate::Deleted);
    if rewrites && !campaign.mirrored(number) {
        return false;
    }
    if fate.is_while_away() && !(campaign.away.load(Ordering::SeqCst) && campaign.captured(number))
    {
        return false;
    }
    let mut transcript = campaign.transcript(number);
    match fate {
        Fate::Grows | Fate::StartsLater => {}
        Fate::Truncated => transcript.truncate(),
        Fate::Replaced | Fate::ReplacedWhileAway => transcript.replace(&campaign.planted),
        Fate::DeletedWhileAway => transcript.delete(),
        Fate::Moved => {
            let name = transcript.path.file_stem().unwrap().to_str().unwrap().to_owned();
            let path = campaign.home().claude_code("/home/dev/elsewhere", &name);
            transcript.move_to(&path);
        }
        Fate::Archived => {
            let name = transcript.path.file_name().unwrap().to_owned();
            transcript.move_to(&campaign.home().path().join(".codex/archived_sessions").join(name));
        }
        Fate::Deleted => {
            // The last words may be caught or not; what was stored before must stay.
            transcript.grow(&campaign.planted, 2);
            transcript.delete();
        }
    }
    true
}

/// Starts a compaction of a session and does not wait for it, so that a kill may hit it.
pub(crate) fn compact(home: &Home, transcript: &Mutex<Transcript>, tail: u32) -> Child {
    let (harness, id) = {
        let transcript = transcript.lock().unwrap();
        (transcript.harness, transcript.id.clone())
    };
    let mut command = home.tracecraftctl();
    let tail = tail.to_string();
    command.args(["compact", &format!("{harness}/{id}"), "--keep-tail", &tail, "--json"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Kills and restarts until the time is over, and judges what lies in the bucket after every kill.
fn torment(campaign: &Campaign, seed: u64) -> Tally {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut tally = Tally::default();
    let mut compactions: Vec<Child> = Vec::new();
    let between = campaign.length / (campaign.setting.kills + 2);
    while campaign.started.elapsed() < campaign.length {
        let mut daemon = Daemon::spawn(campaign.home(), &campaign.arguments());
        let kill_at = Instant::now() + between.mul_f64(0.2 + rng.f64());
        while Instant::now() < kill_at {
            pace(&mut rng, between / 4);
            let transcript = &campaign.transcripts[rng.usize(0..campaign.transcripts.len())];
            compactions.push(compact(campaign.home(), transcript, rng.u32(0..3)));
            if let Some(status) = daemon.exited() {
                panic!("the daemon ended by itself with {status}:\n{}", daemon.said());
            }
        }
        tally.peak = tally.peak.max(daemon.peak_bytes());
        daemon.kill9();
        tally.kills += 1;
        for child in compactions.drain(..) {
            let output = child.wait_with_output().unwrap();
            match output.status.success() {
                true => tally.compactions += 1,
                false => tally.refusal = String::from_utf8_lossy(&output.stderr).into_owned(),
            }
        }
        let (bucket, sources) = campaign.look();
        let complaints = judge::interrupted(&bucket, &sources);
        if let Err(why) = judge::verdict(complaints) {
            panic!("after kill {}: {why}\n{}", tally.kills, last_lines(&daemon.said()));
        }
        tally.checks += 1;
    }
    tally
}

pub(crate) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// The whole campaign: writers and torment, then quiet, then the verdict.
pub(crate) fn run(setting: Setting) {
    let seed = seed(setting.name);
    let campaign = Arc::new(Campaign::new(setting, seed));
    let mut threads: Vec<_> = (0..SESSIONS)
        .map(|number| {
            let campaign = Arc::clone(&campaign);
            std::thread::spawn(move || write(&campaign, number, seed))
        })
        .collect();
    let shared = Arc::clone(&campaign);
    threads.push(std::thread::spawn(move || shared.take_the_store_away()));
    let mut tally = torment(&campaign, seed);
    // A writer may still wait for a session to be mirrored before it meets its fate: a daemon must be there for it.
    let mut daemon = Daemon::start(campaign.home(), &campaign.arguments());
    let met = || (campaign.met.load(Ordering::Relaxed) == SESSIONS).then_some(());
    let _ = try_wait_for(CATCH_UP_MAX, met);
    campaign.ending.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let quiet = Instant::now();
    let caught_up = try_wait_for(CATCH_UP_MAX, || {
        let pending = status(campaign.home())?["pending"]["parts"].as_u64()?;
        (pending == 0).then_some(())
    });
    assert!(caught_up.is_some(), "still not caught up:\n{}", last_lines(&daemon.said()));
    tally.catch_up = quiet.elapsed();
    ctl_ok(campaign.home(), &["flush"]);
    let mut complaint = String::new();
    let stored = try_wait_for(CATCH_UP_MAX, || {
        let (mut bucket, sources) = campaign.look();
        // What kills left behind loses nothing; it is complained about at the end.
        bucket.litter.clear();
        judge::verdict(judge::at_rest(&bucket, &sources)).map_err(|why| complaint = why).ok()
    });
    assert!(stored.is_some(), "not all is stored:\n{complaint}");
    // What the oracle finds in order, the program finds in order, too: after kills, compactions, rewrites and moves. The store
    // fails nothing meanwhile: each part is asked for, and all of it has to be checked.
    let plan = |plan: fn() -> Plan| campaign.setting.proxy.iter().for_each(|it| it.fail(plan()));
    plan(Plan::default);
    let told = ctl(campaign.home(), &["verify", "--deep", "--json"]);
    assert!(told.status.success() && said(&told).contains("\"wrong\":0,"), "{}", said(&told));
    plan(Plan::a_third);
    tally.peak = tally.peak.max(daemon.peak_bytes());
    let status = daemon.term();
    assert_eq!(status.code(), Some(0), "after SIGTERM:\n{}", last_lines(&daemon.said()));
    let (mut bucket, sources) = campaign.look();
    let litter = std::mem::take(&mut bucket.litter);
    let mut complaints = judge::at_rest(&bucket, &sources);
    complaints.extend(campaign.complaints_about_captured(&bucket));
    if let Err(why) = judge::verdict(complaints) {
        panic!("after the drain: {why}");
    }
    judge::verdict(secrets_in(campaign.home(), &campaign.planted)).unwrap();
    summary(&campaign, &bucket, &tally);
    assert!(litter.is_empty(), "kills left files in the bucket: {litter:?}");
}

/// Complaints about secrets in what the programs wrote in a home, logs included.
pub(crate) fn secrets_in(home: &Home, planted: &Planted) -> Vec<String> {
    let mut files = crate::support::home::files_below(&home.path().join(".local"));
    let log = crate::support::daemon::log_file(home.path());
    files.push((log.clone(), std::fs::read(log).unwrap()));
    let found = files.iter().map(|(path, content)| (path, planted.found_in(content)));
    let found = found.filter(|(_, found)| !found.is_empty());
    found.map(|(path, found)| format!("{}: {found:?}", path.display())).collect()
}

fn summary(campaign: &Campaign, bucket: &Bucket, tally: &Tally) {
    let Setting { name, kills, proxy, away, resident_max, .. } = &campaign.setting;
    let records: u64 = campaign.transcripts.iter().map(|t| t.lock().unwrap().records).sum();
    let (gap, overlap) = bucket.gap_and_overlap();
    let parts: usize = bucket.sessions.iter().map(|stored| stored.named).sum();
    let rewritten = bucket.sessions.iter().filter(|stored| stored.base().1 > 1).count();
    println!(
        "{name}: {SESSIONS} sessions, {records} records, {} kills ({} verdicts), {} compactions answered, {} merges done, \
         {} generations ({rewritten} of rewritten sessions), {parts} parts, caught up in {:.1} s, gap {gap}, overlap {overlap}, \
         peak resident {:.1} MB",
        tally.kills,
        tally.checks,
        tally.compactions,
        merges(campaign.home()),
        bucket.sessions.len(),
        tally.catch_up.as_secs_f64(),
        tally.peak as f64 / 1048576.0,
    );
    println!("{name}: the last compaction that failed: {}", tally.refusal.trim_end());
    if let Some(proxy) = proxy {
        println!("{name}: {} requests: {:?}", proxy.count(), proxy.by_fate());
    }
    if let Some(away) = away {
        let captured = campaign.captured.lock().unwrap().len();
        println!("{name}: away for {} s, {captured} sessions rewritten or deleted", away.as_secs());
    }
    assert!(records > SESSIONS * 5, "the writers wrote next to nothing");
    assert_eq!((gap, overlap), (0, 0));
    assert!(tally.kills >= *kills, "only {} kills", tally.kills);
    let resident_max = resident_max.unwrap_or(u64::MAX);
    assert!(tally.peak <= resident_max, "{} bytes of memory at the peak", tally.peak);
}

/// Merges that were carried through, by whichever daemon: an asker whose daemon is killed hears of none.
pub(crate) fn merges(home: &Home) -> usize {
    let log = std::fs::read(crate::support::daemon::log_file(home.path())).unwrap();
    String::from_utf8_lossy(&log).lines().filter(|line| line.contains(" compacted ")).count()
}

/// The length of a campaign in seconds: what a variable says, or else `default`.
pub(crate) fn seconds(variable: &str, default: u64) -> Duration {
    let told = std::env::var(variable).ok().and_then(|text| text.parse().ok());
    Duration::from_secs(told.unwrap_or(default))
}

/// `TRACECRAFT_LIVE_SECONDS` makes it longer.
#[test]
fn t3_t17_live_run() {
    let (home, proxy, away, resident_max) = (Home::new(), None, None, None);
    let length = seconds("TRACECRAFT_LIVE_SECONDS", 15);
    let kills = (length.as_secs() as u32 / 6).max(5);
    let (name, interval) = ("live_run", "150ms");
    run(Setting { name, length, kills, interval, home, proxy, away, resident_max });
}
