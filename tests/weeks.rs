//! A run that stands for weeks: what grows with time and not with what is recorded would show in its second half.
//!
//! Sessions appear, grow, end and are deleted; parts are merged; the store fails and goes away; clients ask. Owns the campaign
//! and what it may cost: `TRACECRAFT_WEEKS_SECONDS` (100) sets its length.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::bucket::behind_a_proxy;
use crate::live::seconds;
use crate::support::bucket::Kind as ServerKind;
use crate::support::daemon::{Daemon, ctl, ctl_ok, status, status_bytes};
use crate::support::home::Home;
use crate::support::judge;
use crate::support::oracle::Bucket;
use crate::support::planted::Planted;
use crate::support::proxy::{Plan, Proxy};
use crate::support::writers::Transcript;
use crate::support::{skipped, wait_for, wait_for_the_end_of, wait_until_ok};

/// Flush interval of the daemon, and the pace of the writers.
const INTERVAL: Duration = Duration::from_millis(100);

/// Sessions that are written to at a time.
const WRITTEN: usize = 12;

/// A new session takes the place of the oldest every so many rounds; every second one of those that end is deleted.
const NEW_EVERY: u64 = 4;

/// Every so many rounds a client asks, one merges a session, and the store goes away for some.
const ASKED_EVERY: u64 = 5;
const MERGED_EVERY: u64 = 15;
const AWAY_EVERY: u64 = 100;
const AWAY_FOR: u64 = 20;

/// What a session that is known costs for ever: its record, its path, its watch. What is kept beyond that would be a leak.
const KNOWN_SESSION: u64 = 6 << 10;

/// How much more resident memory the second half may end with, beyond its new sessions: what the allocator keeps differs by
/// this from one moment to the next.
const GROWTH_MAX: u64 = 4 << 20;

/// Threads: the main one, those of the runtime and of its pool, and one each for capture, signals and events.
const THREADS_MAX: usize = 1 + 2 + 8 + 3;

/// How many descriptors more or fewer there may be at a moment: requests under way, and files that are being read.
const DESCRIPTORS_MARGIN: usize = 24;

/// What a process holds.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    resident: u64,
    descriptors: usize,
    threads: usize,
}

impl Held {
    fn by(pid: u32) -> Held {
        let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
        let resident = status_bytes(pid, "VmRSS:").unwrap();
        Held { resident, descriptors: count("fd"), threads: count("task") }
    }

    fn most(self, other: Held) -> Held {
        Held {
            resident: self.resident.max(other.resident),
            descriptors: self.descriptors.max(other.descriptors),
            threads: self.threads.max(other.threads),
        }
    }
}

/// Children that a process has, and the page faults of those that it had and has waited for.
fn children(pid: u32) -> (usize, u64) {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let of_task = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).ok();
    let living = tasks.filter_map(of_task).map(|text| text.split_whitespace().count()).sum();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (living, fields[8].parse().unwrap())
}

struct Weeks {
    planted: Planted,
    /// All sessions that ever were; the last ones are written to.
    transcripts: Vec<Transcript>,
    rounds: u64,
    merged: u64,
    asked: u64,
    rng: fastrand::Rng,
    proxy: Proxy,
    home: Home,
}

impl Weeks {
    /// Lives on for a while; what the daemon held at most.
    fn live(&mut self, pid: u32, length: Duration) -> Held {
        let started = Instant::now();
        let mut most = Held::default();
        while started.elapsed() < length {
            let round = Instant::now();
            self.round();
            most = most.most(Held::by(pid));
            assert_eq!(children(pid), (0, 0), "it started a process");
            wait_for_the_end_of(round, INTERVAL);
        }
        self.proxy.there(true);
        self.proxy.fail(Plan::default());
        wait_for("everything to be stored", || {
            (status(&self.home)?["pending"]["parts"] == 0).then_some(())
        });
        ctl_ok(&self.home, &["flush"]);
        self.proxy.forget();
        most
    }

    fn round(&mut self) {
        self.rounds += 1;
        if self.rounds % NEW_EVERY == 1 {
            let number = self.transcripts.len();
            let harness = ["claude-code", "codex", "openclaw"][number % 3];
            self.transcripts.push(Transcript::new(&self.home, harness, number as u64, 53));
            let over = number.checked_sub(WRITTEN).filter(|over| over % 2 == 0);
            if let Some(over) = over.filter(|over| !self.transcripts[*over].gone) {
                self.transcripts[over].delete();
            }
        }
        let first = self.transcripts.len().saturating_sub(WRITTEN);
        for one in self.transcripts[first..].iter_mut().filter(|one| !one.gone) {
            if one.size() == 0 || self.rng.u8(..3) == 0 {
                one.grow(&self.planted, 1);
            }
        }
        let since_away = self.rounds % AWAY_EVERY;
        match since_away {
            AWAY_FOR => {
                self.proxy.there(true);
                self.proxy.fail(Plan { slow_down: 0.05, lost_after: 0.05, ..Plan::default() });
            }
            0 => self.proxy.there(false),
            _ => {}
        }
        self.ask(since_away > 2 * AWAY_FOR);
    }

    fn ask(&mut self, is_there: bool) {
        let id = self.transcripts[self.rng.usize(..self.transcripts.len())].id.clone();
        if self.rounds.is_multiple_of(ASKED_EVERY) {
            self.asked += 3;
            ctl_ok(&self.home, &["status"]);
            ctl_ok(&self.home, &["list"]);
            // Not there yet, or not any more, or not to be had: all of them are answers.
            ctl(&self.home, &["show", &id, "--tail", "3"]);
        }
        if is_there && self.rounds.is_multiple_of(MERGED_EVERY) {
            self.merged += u64::from(ctl(&self.home, &["compact", &id]).status.success());
        }
    }
}

#[test]
#[ignore = "two minutes that stand for weeks; .ci runs it"]
fn t53_after_weeks_it_holds_no_more_than_before_and_has_no_children() {
    let test = "weeks";
    if !Path::new("/proc/self/task").exists() {
        return skipped(test, "there is no /proc");
    }
    let Some((proxy, home)) = behind_a_proxy(ServerKind::S3sFs, test, 53) else { return };
    let planted = Planted::exact_only(53);
    let rng = fastrand::Rng::with_seed(53);
    let transcripts = Vec::new();
    let mut weeks =
        Weeks { planted, transcripts, rounds: 0, merged: 0, asked: 0, rng, proxy, home };
    let mut daemon = Daemon::start(&weeks.home, &["--interval", "100ms"]);
    let half = seconds("TRACECRAFT_WEEKS_SECONDS", 100) / 2;
    let first = weeks.live(daemon.pid(), half);
    let (after_first, known) = (Held::by(daemon.pid()), weeks.transcripts.len());
    let second = weeks.live(daemon.pid(), half);
    let after_second = Held::by(daemon.pid());
    let mb = |bytes: u64| bytes as f64 / 1048576.0;
    println!(
        "{test}: {} rounds, {} sessions, {} merges, {} questions; resident {:.1} MB after the first half, {:.1} MB after \
         the second, {:.1} MB at the peak; descriptors at most {} and {}, threads {} and {}, no child",
        weeks.rounds,
        weeks.transcripts.len(),
        weeks.merged,
        weeks.asked,
        mb(after_first.resident),
        mb(after_second.resident),
        mb(daemon.peak_bytes()),
        first.descriptors,
        second.descriptors,
        first.threads,
        second.threads,
    );
    assert_eq!(daemon.term().code(), Some(0));
    weeks.home.once(); // What was deleted before it was captured is nobody's; all else is stored.
    let model = |one: &Transcript| one.source(&weeks.planted);
    let sources: Vec<_> = weeks.transcripts.iter().map(model).collect();
    wait_until_ok("the verdict", || {
        judge::verdict(judge::at_rest(&Bucket::read(weeks.home.objects()), &sources))
    });
    let new = (weeks.transcripts.len() - known) as u64;
    let limit = after_first.resident + new * KNOWN_SESSION + GROWTH_MAX;
    assert!(after_second.resident <= limit, "{after_first:?}, then {after_second:?}");
    assert!(second.descriptors <= first.descriptors + DESCRIPTORS_MARGIN, "{first:?}, {second:?}");
    assert!(second.threads.max(first.threads) <= THREADS_MAX, "{first:?}, {second:?}");
}
