//! A number of kills: agents work, the daemon is killed at random moments, as often as was asked for; in the end no record is
//! missing and none is doubled, for readers of manifests and for readers of listings.
//!
//! Owns the kills, the verdicts between them and the figures at the end; what the agents do is the [`Crowd`]'s. The command
//! `tests/campaign` runs one of the two tests here; its arguments come as `TRACECRAFT_CAMPAIGN_KILLS` (100),
//! `TRACECRAFT_CAMPAIGN_STORE` (s3s-fs), `TRACECRAFT_CAMPAIGN_FAULTS` (10, of a hundred requests) and `TRACECRAFT_SEED`.

use std::collections::HashMap;
use std::env;
use std::fmt::{Display, Formatter, Result as FmtResult};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bucket::{RESIDENT_MAX, behind_a_proxy};
use crate::crowd::{Crowd, Quiet, Session};
use crate::hermes::folded;
use crate::live::{CATCH_UP_MAX, compact, last_lines, merges, secrets_in};
use crate::support::bucket::Kind as ServerKind;
use crate::support::daemon::{Daemon, ctl, status};
use crate::support::home::{Home, run_within, said};
use crate::support::judge::{self, Source};
use crate::support::oracle::{Bucket, Stored};
use crate::support::planted::Planted;
use crate::support::proxy::{Fate, Plan, Proxy};
use crate::support::{PATIENCE, pace, seed, try_wait_for};

/// Kills where nobody says how many.
const KILLS: u32 = 100;

/// After so many kills the whole bucket is judged; after each of the others only some sessions.
const ALL_JUDGED_EVERY: u32 = 100;

/// The longest pause between two compactions that are asked for.
const BETWEEN_COMPACTIONS: Duration = Duration::from_millis(400);

/// How long the last verification may take: a thousand kills leave two thousand sessions, which are asked of the server one after
/// the other, and s3s-fs walks through its whole bucket for each listing.
const VERIFIED_MAX: Duration = Duration::from_secs(1800);

/// A campaign that is to be run.
struct Setting {
    home: Arc<Home>,
    proxy: Option<Proxy>,
    store: String,
    kills: u32,
    /// How many of a hundred requests fail.
    faults: f64,
    /// Flush interval of the daemon.
    interval: &'static str,
    /// Sessions that are judged after each kill: a bucket is read object by object.
    judged: usize,
}

/// What happened until the crowd stopped.
#[derive(Debug, Default)]
struct Tally {
    kills: u32,
    asked: u32,
    answered: u32,
    verdicts: u64,
    peak: u64,
    took: Duration,
    caught_up: Duration,
}

/// What one kind of reader misses of what the sources held, and what it sees twice, in records.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Reading {
    lost: u64,
    doubled: u64,
}

impl Display for Reading {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "lost {}, doubled {}", self.lost, self.doubled)
    }
}

/// How long a daemon lives: some are killed while they start, most while they work, some when they have worked for a while.
fn lifetime(rng: &mut fastrand::Rng) -> Duration {
    let (least, most) = match rng.u8(0..20) {
        0..3 => (20, 150),
        3..15 => (150, 900),
        _ => (900, 2000),
    };
    Duration::from_millis(rng.u64(least..most))
}

fn sources(sessions: &[Session], planted: &Planted) -> Vec<Source> {
    sessions.iter().map(|one| one.lock().unwrap().source(planted)).collect()
}

/// Lets one daemon live and kills it; compactions are asked for meanwhile.
fn one_life(setting: &Setting, crowd: &Crowd, rng: &mut fastrand::Rng, tally: &mut Tally) {
    let mut daemon = Daemon::spawn(&setting.home, &["--interval", setting.interval]);
    let kill_at = Instant::now() + lifetime(rng);
    let mut compactions: Vec<Child> = Vec::new();
    loop {
        let left = kill_at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        pace(rng, left.min(BETWEEN_COMPACTIONS));
        // Soon after the start nobody is there to be asked, and near the end nobody is there to answer: both are wanted.
        for session in crowd.some(rng, 1) {
            compactions.push(compact(&setting.home, &session, rng.u32(0..3)));
        }
        if let Some(status) = daemon.exited() {
            panic!("the daemon ended by itself with {status}:\n{}", last_lines(&daemon.said()));
        }
    }
    tally.peak = tally.peak.max(daemon.peak_bytes());
    daemon.kill9();
    tally.kills += 1;
    tally.asked += compactions.len() as u32;
    for mut child in compactions {
        // Who was not answered is not waited for: no daemon is there.
        tally.answered += u32::from(child.wait().unwrap().success());
    }
}

/// Judges some sessions, or all. The bucket is read first: the model may be ahead of it, never behind.
fn verdict(setting: &Setting, crowd: &Crowd, planted: &Planted, sessions: Option<Vec<Session>>) {
    setting.proxy.iter().for_each(Proxy::settle);
    let complaints = match sessions {
        Some(sessions) => {
            let judged = |session: &Session| {
                let (harness, id) = {
                    let session = session.lock().unwrap();
                    (session.harness, session.id.clone())
                };
                let bucket = Bucket::read_one(setting.home.objects(), harness, &id);
                judge::interrupted(&bucket, &sources(std::slice::from_ref(session), planted))
            };
            sessions.iter().flat_map(judged).collect()
        }
        None => {
            let (bucket, of_hermes) = without_hermes(Bucket::read(setting.home.objects()));
            let mut complaints = judge::interrupted(&bucket, &sources(&crowd.sessions(), planted));
            complaints.extend(of_hermes.faults());
            complaints
        }
    };
    judge::verdict(complaints).unwrap();
}

/// A bucket without the sessions of Hermes, which the judge of files does not know, and one with these alone.
fn without_hermes(mut bucket: Bucket) -> (Bucket, Bucket) {
    let all = std::mem::take(&mut bucket.sessions);
    let (of_hermes, others) = all.into_iter().partition(|stored| stored.harness == "hermes");
    bucket.sessions = others;
    (bucket, Bucket { sessions: of_hermes, ..Bucket::default() })
}

/// Kills as often as it was asked for, with a verdict after each.
fn torment(setting: &Setting, crowd: &Crowd, planted: &Planted, seed: u64, tally: &mut Tally) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let started = Instant::now();
    while tally.kills < setting.kills {
        one_life(setting, crowd, &mut rng, tally);
        let all = tally.kills.is_multiple_of(ALL_JUDGED_EVERY);
        let sessions = (!all).then(|| crowd.some(&mut rng, setting.judged));
        tally.verdicts += 1;
        tally.took = started.elapsed();
        verdict(setting, crowd, planted, sessions);
        if all {
            let (kills, seconds) = (tally.kills, started.elapsed().as_secs());
            println!("campaign: {kills} kills, {} merges, {seconds} s", merges(&setting.home));
        }
    }
    tally.took = started.elapsed();
}

/// A daemon that nobody kills: waits until it says that nothing is pending, stops the crowd, and waits until all is stored and
/// told. Says what is wrong then.
fn quiet(
    setting: &Setting,
    crowd: Crowd,
    planted: &Planted,
    tally: &mut Tally,
) -> (Quiet, Vec<String>) {
    let mut findings = Vec::new();
    let mut daemon = Daemon::start(&setting.home, &["--interval", setting.interval]);
    let quiet = crowd.end();
    let began = Instant::now();
    let pending = || status(&setting.home)?["pending"]["parts"].as_u64();
    let caught_up = try_wait_for(CATCH_UP_MAX, || {
        let flushed = ctl(&setting.home, &["flush"]).status.success();
        (flushed && pending() == Some(0)).then_some(())
    });
    if caught_up.is_none() {
        findings.push(format!("it never caught up:\n{}", last_lines(&daemon.said())));
    }
    tally.caught_up = began.elapsed();
    let expected = sources(&quiet.sessions, planted);
    let _ = try_wait_for(PATIENCE, || {
        let (mut bucket, _) = without_hermes(Bucket::read(setting.home.objects()));
        // What kills left behind loses nothing; it is complained about at the end.
        bucket.litter.clear();
        judge::at_rest(&bucket, &expected).is_empty().then_some(())
    });
    // What the oracle finds in order, the program finds in order, too. The store fails nothing meanwhile: all is to be checked.
    setting.proxy.iter().for_each(|proxy| proxy.fail(Plan::default()));
    let mut verify = setting.home.tracecraftctl();
    let told = run_within(verify.args(["verify", "--deep", "--json"]), VERIFIED_MAX);
    if !(told.status.success() && said(&told).contains("\"wrong\":0,")) {
        findings.push(format!("verify --deep: {}", last_lines(&said(&told))));
    }
    setting.proxy.iter().for_each(|proxy| proxy.fail(Plan::share(setting.faults / 100.0)));
    tally.peak = tally.peak.max(daemon.peak_bytes());
    let status = daemon.term();
    if status.code() != Some(0) {
        findings.push(format!("after SIGTERM: {status}\n{}", last_lines(&daemon.said())));
    }
    setting.proxy.iter().for_each(Proxy::settle);
    (quiet, findings)
}

/// Complaints about rows that are not in the bucket as they are in the database, or came twice.
fn complaints_about_rows(setting: &Setting, quiet: &Quiet) -> Vec<String> {
    let complaint = |id: &String| {
        // The judge of rows panics with what is wrong.
        let told = catch_unwind(AssertUnwindSafe(|| folded(&setting.home, id)));
        match told {
            Ok(rows) if rows == quiet.hermes.rows(id) => None,
            Ok(_) => Some(format!("hermes/{id}: the log does not end with the rows as they are")),
            Err(_) => Some(format!("hermes/{id}: as was said above")),
        }
    };
    quiet.ids.iter().filter_map(complaint).collect()
}

/// What each kind of reader, of manifests and of listings, misses or sees twice. Each life of a source was stored to its end
/// before the next one began, or before the source was deleted, so that every record is owed.
fn readings(bucket: &Bucket, sources: &[Source]) -> [Reading; 2] {
    let mut readings = [Reading::default(); 2];
    let readers: [fn(&Stored) -> &[u8]; 2] = [|it| &it.by_manifest, |it| &it.by_listing];
    for source in sources {
        let stored = bucket.generations(source.harness, &source.id);
        for (life, content) in source.generations.iter().enumerate() {
            for (reading, reader) in readings.iter_mut().zip(readers) {
                let has = stored.get(life).map_or(&[][..], |it| reader(it));
                let mut owed: HashMap<&[u8], i64> = HashMap::new();
                records(content).for_each(|record| *owed.entry(record).or_default() += 1);
                records(has).for_each(|record| *owed.entry(record).or_default() -= 1);
                reading.lost += owed.values().map(|left| (*left).max(0) as u64).sum::<u64>();
                reading.doubled += owed.values().map(|left| (-left).max(0) as u64).sum::<u64>();
            }
        }
    }
    readings
}

fn records(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    content.split_inclusive(|byte| *byte == b'\n')
}

/// The whole campaign: work and kills, then quiet, then the verdict and the figures.
fn run(setting: Setting) {
    let seed = seed("campaign");
    let planted = Planted::exact_only(seed);
    let crowd = Crowd::start(&setting.home, &planted, seed);
    let mut tally = Tally::default();
    let ended = catch_unwind(AssertUnwindSafe(|| {
        torment(&setting, &crowd, &planted, seed, &mut tally);
    }));
    if ended.is_err() {
        // The agents stop first: nobody else then holds the home, which is kept if somebody wants to look at it.
        crowd.end();
        let log = last_lines(&Daemon::said_in(&setting.home));
        panic!("seed {seed}, kill {}: findings, see above\n{log}", tally.kills);
    }
    let (quiet, mut findings) = quiet(&setting, crowd, &planted, &mut tally);
    let (bucket, of_hermes) = without_hermes(Bucket::read(setting.home.objects()));
    let sources = sources(&quiet.sessions, &planted);
    findings.extend(judge::at_rest(&bucket, &sources));
    findings.extend(of_hermes.faults_at_rest());
    findings.extend(complaints_about_rows(&setting, &quiet));
    findings.extend(secrets_in(&setting.home, &planted));
    let readings = readings(&bucket, &sources);
    if readings != [Reading::default(); 2] {
        findings.push("records are lost or doubled".to_owned());
    }
    if tally.peak > RESIDENT_MAX {
        findings.push(format!("{} bytes of memory at the peak", tally.peak));
    }
    let whole = Bucket { sessions: [bucket.sessions, of_hermes.sessions].concat(), ..bucket };
    tell(&setting, seed, &tally, &quiet, &whole, readings);
    let found = if findings.is_empty() { "none".to_owned() } else { findings.len().to_string() };
    println!("campaign: findings: {found}");
    judge::verdict(findings).unwrap();
}

/// The figures.
fn tell(
    setting: &Setting,
    seed: u64,
    tally: &Tally,
    quiet: &Quiet,
    bucket: &Bucket,
    [by_manifest, by_listing]: [Reading; 2],
) {
    let lives = || quiet.sessions.iter().map(|one| one.lock().unwrap().lives.len());
    let rewritten = lives().filter(|lives| *lives > 1).count();
    let written: u64 = quiet.sessions.iter().map(|one| one.lock().unwrap().records).sum();
    let parts: usize = bucket.sessions.iter().map(|stored| stored.named).sum();
    let bytes: usize = bucket.sessions.iter().map(|stored| stored.by_manifest.len()).sum();
    let (gap, overlap) = bucket.gap_and_overlap();
    println!(
        "campaign: seed {seed}, store {}, {} kills in {} s, {} verdicts between, caught up in {:.1} s",
        setting.store,
        tally.kills,
        tally.took.as_secs(),
        tally.verdicts,
        tally.caught_up.as_secs_f64(),
    );
    println!(
        "campaign: {} compactions asked for, {} answered, {} merges done",
        tally.asked,
        tally.answered,
        merges(&setting.home),
    );
    println!(
        "campaign: {} sessions ({rewritten} rewritten) and {} of Hermes, {} generations, {parts} parts, {written} records, \
         {:.1} MiB stored",
        quiet.sessions.len(),
        quiet.ids.len(),
        bucket.sessions.len(),
        bytes as f64 / 1048576.0,
    );
    println!(
        "campaign: gap {gap}, overlap {overlap}; by manifest: {by_manifest}; by listing: {by_listing}"
    );
    if let Some(proxy) = &setting.proxy {
        let fates = proxy.by_fate();
        let failed = proxy.count() - fates.get(&Fate::Passed).copied().unwrap_or(0);
        let share = 100.0 * failed as f64 / proxy.count() as f64;
        println!("campaign: {} requests, {share:.1} % failed: {fates:?}", proxy.count());
    }
    println!("campaign: peak resident {:.1} MiB", tally.peak as f64 / 1048576.0);
}

/// What a variable says, or else `default`.
fn told<T: std::str::FromStr>(variable: &str, default: T) -> T {
    let Ok(text) = env::var(variable) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{variable} is {text:?}"))
}

#[test]
#[ignore = "a hundred kills take minutes; .ci and tests/campaign run it"]
fn t3_t9_t17_t27_t57_kills_at_random_moments_lose_nothing_and_double_nothing() {
    run(Setting {
        home: Arc::new(Home::new()),
        proxy: None,
        store: "file".to_owned(),
        kills: told("TRACECRAFT_CAMPAIGN_KILLS", KILLS),
        faults: 0.0,
        interval: "100ms",
        judged: 20,
    });
}

#[test]
#[ignore = "a hundred kills take minutes; .ci and tests/campaign run it"]
fn t27_t36_t43_t57_kills_with_a_bucket_that_fails_lose_nothing_and_double_nothing() {
    let store = told("TRACECRAFT_CAMPAIGN_STORE", "s3s-fs".to_owned());
    let kind = ServerKind::named(&store).unwrap_or_else(|| panic!("no store is called {store:?}"));
    let Some((proxy, home)) = behind_a_proxy(kind, "campaign", 2) else { return };
    let faults = told("TRACECRAFT_CAMPAIGN_FAULTS", 10.0);
    proxy.fail(Plan::share(faults / 100.0));
    run(Setting {
        home: Arc::new(home),
        proxy: Some(proxy),
        store: format!("{store} with {faults} % faults"),
        kills: told("TRACECRAFT_CAMPAIGN_KILLS", KILLS),
        faults,
        interval: "300ms",
        judged: 3,
    });
}

/// A reader of manifests that misses a record, and one of listings that sees one twice.
#[test]
fn the_figures_of_a_campaign_count_what_is_lost_and_what_is_doubled() {
    let source = Source {
        harness: "codex",
        id: "s".to_owned(),
        generations: vec![b"1\n2\n3\n".to_vec(), b"1\n".to_vec()],
        gone: false,
    };
    let stored = Stored {
        harness: "codex".to_owned(),
        id: "s".to_owned(),
        by_manifest: b"1\n3\n".to_vec(),
        by_listing: b"1\n2\n2\n3\n".to_vec(),
        ..Stored::default()
    };
    let bucket = Bucket { sessions: vec![stored], litter: Vec::new() };
    // The second life is nowhere.
    let expected = [Reading { lost: 2, doubled: 0 }, Reading { lost: 1, doubled: 1 }];
    assert_eq!(readings(&bucket, &[source]), expected);
}
