//! Hermes at work while its sessions go to a real S3 server: every state that a look can see is stored, the log is what the
//! rows were, and nothing comes twice.
//!
//! Writer and judge are those of `hermes.rs`, servers those of `support/bucket.rs`; what is not there is skipped with a line.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::bucket::behind_a_proxy;
use crate::hermes::{Hermes, SESSION, any_step, folded, log, steps, told};
use crate::once;
use crate::support::bucket::Kind as ServerKind;
use crate::support::daemon::{Daemon, ctl, ctl_ok};
use crate::support::home::{Home, lay_out_samples, said};
use crate::support::oracle::Bucket;
use crate::support::planted::Planted;
use crate::support::proxy::{Kind, Plan, Side};
use crate::support::{pace, wait_until_ok};
use crate::verify::has;

/// Transactions at least of a writer that does not wait for the daemon, and looks at least while it works.
const TRANSACTIONS: usize = 60;
const LOOKS: usize = 6;

/// The longest pause between two of them: some fall into one look, some into none.
const BETWEEN_TRANSACTIONS: Duration = Duration::from_millis(40);

/// A session with one row.
fn begun(home: &Home) -> Hermes {
    let hermes = Hermes::new(home, None);
    hermes.session(SESSION, "/home/you/app");
    hermes.say(SESSION, "user", "first");
    hermes
}

/// All states that the rows of [`SESSION`] ever had, by id, in their order.
#[derive(Debug, Default)]
struct History(BTreeMap<i64, Vec<Option<Value>>>);

impl History {
    fn of(hermes: &Hermes) -> History {
        let mut history = History::default();
        history.note(hermes.rows(SESSION));
        history
    }

    fn note(&mut self, now: BTreeMap<i64, Value>) {
        for (id, states) in &mut self.0 {
            if !now.contains_key(id) && states.last() != Some(&None) {
                states.push(None);
            }
        }
        for (id, state) in now {
            let states = self.0.entry(id).or_default();
            if states.last() != Some(&Some(state.clone())) {
                states.push(Some(state));
            }
        }
    }

    /// A log says of each row what it was, in the order in which it was that. It may leave out what no look saw.
    fn assert_tells(&self, log: &str) {
        let mut left: BTreeMap<_, _> = self.0.iter().map(|(id, all)| (*id, all.iter())).collect();
        for line in log.lines() {
            let (id, state) = told(line);
            let states = left.get_mut(&id).unwrap_or_else(|| panic!("no such row: {line}"));
            assert!(states.any(|was| *was == state), "this was never so, or is told late: {line}");
        }
    }
}

/// Writes, marks, deletes and replaces rows for a while, as an agent that knows of no daemon.
fn work(hermes: &Hermes, history: &mut History, seed: u64, looks: &AtomicUsize) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut number = 0;
    while number < TRANSACTIONS || looks.load(Ordering::Relaxed) < LOOKS {
        number += 1;
        let step = any_step(&mut rng, SESSION, number);
        hermes.step(&step);
        history.note(hermes.rows(SESSION));
        pace(&mut rng, BETWEEN_TRANSACTIONS);
    }
    println!("{number} transactions, {} looks meanwhile", looks.load(Ordering::Relaxed));
}

/// Lets a writer work, and meanwhile does `look` again and again.
fn work_while(
    hermes: Hermes,
    mut history: History,
    seed: u64,
    mut look: impl FnMut(),
) -> (Hermes, History) {
    let looks = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&looks);
    let writer = std::thread::spawn(move || {
        work(&hermes, &mut history, seed, &counted);
        (hermes, history)
    });
    while !writer.is_finished() {
        look();
        looks.fetch_add(1, Ordering::Relaxed);
    }
    writer.join().expect("the writer works to its end")
}

/// The bucket has all rows as they are and nothing that never was; the program's own replay gives the same bytes.
fn assert_exact(home: &Home, hermes: &Hermes, history: &History) {
    assert_eq!(folded(home, SESSION), hermes.rows(SESSION));
    let stored = log(home, SESSION);
    history.assert_tells(&stored);
    let bucket = Bucket::read_one(home.objects(), "hermes", SESSION);
    assert_eq!(bucket.generations("hermes", SESSION).len(), 1, "one database, one generation");
    once::assert_none("at rest", &bucket.faults_at_rest());
    let shown = ctl_ok(home, &["show", SESSION, "--raw"]);
    assert_eq!(String::from_utf8(shown).unwrap(), stored, "show --raw");
}

/// A daemon records: each step that it is given time for is in the bucket, and so is what a writer without patience leaves.
fn daemon_to(kind: ServerKind, test: &str) {
    let Some((_proxy, home)) = behind_a_proxy(kind, test, 1) else { return };
    let hermes = begun(&home);
    let mut daemon = Daemon::start(&home, &["--interval", "100ms"]);
    let (inodes, mut history) = (hermes.inodes(), History::of(&hermes));
    for step in steps() {
        hermes.step(&step);
        history.note(hermes.rows(SESSION));
        ctl_ok(&home, &["flush"]);
        assert_eq!(folded(&home, SESSION), hermes.rows(SESSION), "after {step}");
    }
    let before = log(&home, SESSION);
    let flush = || drop(ctl_ok(&home, &["flush"]));
    let (hermes, history) = work_while(hermes, history, 71, flush);
    ctl_ok(&home, &["flush"]);
    assert_eq!(hermes.inodes(), inodes);
    assert!(log(&home, SESSION).starts_with(&before), "what is stored stays");
    assert_exact(&home, &hermes, &history);
    assert_eq!(daemon.term().code(), Some(0), "{}", daemon.said());
}

/// `--once`, again and again, with all samples beside the writer's database.
fn once_to(kind: ServerKind, test: &str) {
    let Some((_proxy, home)) = behind_a_proxy(kind, test, 1) else { return };
    let planted = Planted::every_pattern(72).with_those_of_samples();
    let mut laid = lay_out_samples(&home).unwrap_or_default();
    laid.extend(once::lay_out_planted(&home, &planted));
    let hermes = begun(&home);
    let (inodes, history) = (hermes.inodes(), History::of(&hermes));
    let (hermes, history) = work_while(hermes, history, 72, || drop(home.once()));
    home.once();
    assert_eq!(hermes.inodes(), inodes);
    let bucket = Bucket::read(home.objects());
    let mut complaints = bucket.faults_at_rest();
    let about = |one| once::complaints_about(&bucket, one, &planted);
    complaints.extend(laid.iter().flat_map(about));
    once::assert_none("the samples", &complaints);
    assert_eq!(bucket.sessions.len(), laid.len() + 1);
    println!("{test}: {} transcripts beside the database", laid.len());
    let before = home.objects().versions();
    home.once();
    assert_eq!(home.objects().versions(), before, "nothing new, and something was stored");
    let _daemon = Daemon::start(&home, &[]);
    assert_exact(&home, &hermes, &history);
}

#[test]
fn t41_t57_a_live_database_is_recorded_to_s3s_fs_row_by_row() {
    daemon_to(ServerKind::S3sFs, "a live database, to s3s-fs");
}

#[test]
fn t41_t57_a_live_database_is_recorded_to_moto_row_by_row() {
    daemon_to(ServerKind::Moto, "a live database, to moto");
}

#[test]
fn t41_t57_a_live_database_is_recorded_to_garage_row_by_row() {
    daemon_to(ServerKind::Garage, "a live database, to Garage");
}

#[test]
fn t41_t57_a_live_database_is_recorded_to_the_named_endpoint_row_by_row() {
    daemon_to(ServerKind::Environment, "a live database, to the named endpoint");
}

#[test]
fn t41_t57_once_to_s3s_fs_with_the_samples_and_a_live_database_is_exact() {
    once_to(ServerKind::S3sFs, "--once beside a live database, to s3s-fs");
}

#[test]
fn t41_t57_once_to_moto_with_the_samples_and_a_live_database_is_exact() {
    once_to(ServerKind::Moto, "--once beside a live database, to moto");
}

#[test]
fn t41_t57_once_to_garage_with_the_samples_and_a_live_database_is_exact() {
    once_to(ServerKind::Garage, "--once beside a live database, to Garage");
}

#[test]
fn t41_t57_once_to_the_named_endpoint_with_the_samples_and_a_live_database_is_exact() {
    once_to(ServerKind::Environment, "--once beside a live database, to the named endpoint");
}

#[test]
fn t36_t43_t57_a_live_database_is_recorded_to_a_store_that_fails_a_third_of_all_requests() {
    let test = "a live database, with failures";
    let Some((proxy, home)) = behind_a_proxy(ServerKind::S3sFs, test, 6) else { return };
    let hermes = begun(&home);
    let history = History::of(&hermes);
    // Such a store takes some five parts a second of one session: the interval leaves it room to catch up.
    let mut daemon = Daemon::start(&home, &["--interval", "1s"]);
    proxy.fail(Plan::a_third());
    // A flush may fail, and is asked for again.
    let flush = || drop(ctl(&home, &["flush"]));
    let (hermes, history) = work_while(hermes, history, 73, flush);
    wait_until_ok("a flush that gets done", || {
        let output = ctl(&home, &["flush"]);
        if output.status.success() { Ok(()) } else { Err(said(&output)) }
    });
    println!("{test}: {:?}", proxy.by_fate());
    assert_eq!(folded(&home, SESSION), hermes.rows(SESSION), "while it still fails");
    proxy.fail(Plan::default());
    ctl_ok(&home, &["flush"]);
    assert_exact(&home, &hermes, &history);
    assert_eq!(daemon.term().code(), Some(0), "{}", daemon.said());
}

#[test]
fn rows_that_wait_to_be_stored_are_no_difference_between_rows_and_store() {
    let test = "a deep verification of rows that wait";
    let Some((proxy, home)) = behind_a_proxy(ServerKind::S3sFs, test, 12) else { return };
    let hermes = begun(&home);
    let daemon = Daemon::start(&home, &["--interval", "200ms"]);
    ctl_ok(&home, &["flush"]);
    proxy.hold(1, Some(Kind::PutPart), Side::Before);
    hermes.say(SESSION, "assistant", "second");
    hermes.run("UPDATE messages SET content = 'changed' WHERE id = 1");
    wait_until_ok("a part that waits", || if proxy.holds() { Ok(()) } else { Err("none".into()) });
    let deep = || ctl(&home, &["verify", SESSION, "--deep", "--json"]);
    let told = deep();
    assert_eq!(told.status.code(), Some(0), "{}", said(&told));
    assert!(has(&told, "source_equal", "note"), "{}", said(&told));
    proxy.release();
    ctl_ok(&home, &["flush"]);
    let told = deep();
    assert_eq!(told.status.code(), Some(0), "{}", said(&told));
    drop(daemon);
}
