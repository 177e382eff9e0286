//! Surroundings that are not as a recorder would like them: names that go round in a circle, files from long ago, a system that
//! tells of no changes, few descriptors.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use rustix::process::Signal;

use crate::support::daemon::{Daemon, ctl_ok, status};
use crate::support::home::{Home, files_below};
use crate::support::judge;
use crate::support::oracle::{self, Bucket};
use crate::support::planted::Planted;
use crate::support::writers::Transcript;
use crate::support::{skipped, wait_for, wait_until_ok};

/// Seconds since 1970 of a day in 2001.
const LONG_AGO: u64 = 1_000_000_000;

/// Descriptors that a daemon may have, whatever the number of sessions.
const DESCRIPTORS_MAX: usize = 64;

/// Everything that the bucket holds of a harness, a generation an element.
fn stored(home: &Home) -> Vec<Vec<u8>> {
    let bucket = Bucket::read(home.objects());
    assert_eq!(bucket.faults_at_rest(), Vec::<String>::new());
    bucket.sessions.iter().map(|stored| stored.by_manifest.clone()).collect()
}

#[test]
fn t11_names_that_go_round_in_a_circle_lose_nothing_and_come_to_rest() {
    let home = Home::new();
    let planted = Planted::exact_only(11);
    let mut transcripts: Vec<_> =
        (0..3).map(|number| Transcript::new(&home, "claude-code", number, 11)).collect();
    // All in one folder, as the files of one project are.
    let folder = transcripts[0].path.parent().unwrap().to_owned();
    for one in &mut transcripts {
        one.grow(&planted, 3);
        let name = one.path.file_name().unwrap().to_owned();
        one.move_to(&folder.join(name));
    }
    home.once();
    let paths: Vec<_> = transcripts.iter().map(|one| one.path.clone()).collect();
    let aside = folder.join("aside.tmp");
    let mut daemon = Daemon::start(&home, &["--interval", "100ms"]);
    for round in 1..=4 {
        // With a daemon that looks on, and with one that was not there.
        if round % 2 == 0 {
            assert_eq!(daemon.term().code(), Some(0));
        }
        fs::rename(&paths[2], &aside).unwrap();
        fs::rename(&paths[1], &paths[2]).unwrap();
        fs::rename(&paths[0], &paths[1]).unwrap();
        fs::rename(&aside, &paths[0]).unwrap();
        transcripts.rotate_right(1);
        for (one, path) in transcripts.iter_mut().zip(&paths) {
            one.path.clone_from(path);
            one.grow(&planted, 2);
        }
        if round % 2 == 0 {
            daemon = Daemon::start(&home, &["--interval", "100ms"]);
        }
        wait_until_ok("each content to be stored", || {
            ctl_ok(&home, &["flush"]);
            let stored = stored(&home);
            let content = |one: &Transcript| planted.redact(&one.lives[0]);
            match transcripts.iter().position(|one| !stored.contains(&content(one))) {
                Some(missing) => Err(format!("round {round}: content {missing} is not whole")),
                None => Ok(()),
            }
        });
    }
    assert_eq!(daemon.term().code(), Some(0));
    let before = oracle::parts(home.objects());
    home.once();
    assert_eq!(before, oracle::parts(home.objects()), "it does not come to rest");
}

#[test]
fn t12_a_file_from_long_ago_is_stored_and_its_cursor_does_not_expire() {
    let home = Home::new();
    let planted = Planted::exact_only(12);
    let mut transcript = Transcript::new(&home, "codex", 1, 12);
    let date_back = |path: &Path| {
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(LONG_AGO);
        fs::File::options().append(true).open(path).unwrap().set_modified(then).unwrap();
    };
    transcript.grow(&planted, 3);
    date_back(&transcript.path);
    home.once();
    for (path, _) in files_below(&home.state_dir()) {
        date_back(&path);
    }
    let first = oracle::parts(home.objects());
    assert_eq!(first.len(), 1, "{first:?}");
    home.once();
    assert_eq!(first, oracle::parts(home.objects()), "stored again");
    transcript.grow(&planted, 2);
    date_back(&transcript.path);
    home.once();
    let grown = oracle::parts(home.objects());
    assert!(grown.len() == 2 && first.iter().all(|(key, one)| grown[key] == *one), "{grown:?}");
    let sources = [transcript.source(&planted)];
    judge::verdict(judge::at_rest(&Bucket::read(home.objects()), &sources)).unwrap();
}

/// A daemon in a user namespace of its own, in which it may have only so many of something; `None`: not here.
fn limited(home: &Home, test: &str, limit: &str, most: u32) -> Option<Daemon> {
    let lower = format!("echo {most} >/proc/sys/user/{limit} && exec \"$@\"");
    let wrapped = ["-Ur", "sh", "-c", &lower, "sh"];
    let allowed = Command::new("unshare").args(wrapped).arg("true").output();
    if !allowed.is_ok_and(|output| output.status.success()) {
        skipped(test, "user namespaces with limits of their own are not allowed");
        return None;
    }
    let mut command = home.command("unshare");
    command.args(wrapped).arg(home.tracecraftd().get_program()).args(["--interval", "200ms"]);
    let mut daemon = Daemon::spawn_command(home, command);
    daemon.wait_ready(home);
    Some(daemon)
}

/// How the roots are covered, as `status` tells it.
fn coverages(home: &Home) -> Vec<String> {
    wait_for("the roots", || {
        let roots = status(home)?["roots"].as_array()?.clone();
        let told = roots.iter().filter_map(|root| root["coverage"].as_str()).map(str::to_owned);
        Some(told.collect::<Vec<_>>()).filter(|told| !told.is_empty())
    })
}

/// A session that grows and one that appears are found, although nobody says so.
fn is_found_all_the_same(home: &Home, mut daemon: Daemon, mut first: Transcript, number: u64) {
    let planted = Planted::exact_only(49);
    let mut second = Transcript::new(home, "codex", number, 49);
    first.grow(&planted, 2);
    second.grow(&planted, 2);
    wait_until_ok("all to be stored", || {
        let sources = [first.source(&planted), second.source(&planted)];
        judge::verdict(judge::at_rest(&Bucket::read(home.objects()), &sources))
    });
    assert_eq!(daemon.term().code(), Some(0));
}

#[test]
fn t47_t49_without_any_events_the_timer_finds_everything_and_status_says_so() {
    let home = Home::new();
    let mut first = Transcript::new(&home, "claude-code", 1, 49);
    first.grow(&Planted::exact_only(49), 2);
    let Some(daemon) = limited(&home, "no events", "max_inotify_instances", 0) else { return };
    let told = coverages(&home);
    assert!(told.iter().any(|one| one == "polled"), "{told:?}");
    assert!(told.iter().all(|one| one != "events"), "{told:?}");
    is_found_all_the_same(&home, daemon, first, 2);
}

#[test]
fn t47_with_too_few_watches_the_rest_is_polled_and_status_says_so() {
    let home = Home::new();
    let mut first = Transcript::new(&home, "claude-code", 1, 49);
    first.grow(&Planted::exact_only(49), 2);
    for number in 0..10 {
        fs::create_dir_all(home.path().join(format!(".claude/projects/-home-dev-{number}")))
            .unwrap();
    }
    let Some(daemon) = limited(&home, "few watches", "max_inotify_watches", 3) else { return };
    let told = coverages(&home);
    assert!(told.iter().any(|one| one == "polled"), "{told:?}");
    is_found_all_the_same(&home, daemon, first, 2);
}

#[test]
fn t48_an_overflow_of_the_event_queue_loses_nothing() {
    let queue = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events");
    let Some(queue) = queue.ok().and_then(|text| text.trim().parse::<usize>().ok()) else {
        return skipped("the overflow of events", "the size of the queue is not told");
    };
    let home = Home::new();
    let planted = Planted::exact_only(48);
    let new = |number| Transcript::new(&home, "claude-code", number, 48);
    let mut transcripts: Vec<_> = (0..2).map(new).collect();
    transcripts.iter_mut().for_each(|one| one.grow(&planted, 1));
    let daemon = Daemon::start(&home, &["--interval", "200ms"]);
    ctl_ok(&home, &["flush"]);
    daemon.signal(Signal::STOP);
    // Two files in turn: what is said twice in a row is said once. A write is one event, a creation another.
    let noise: Vec<_> = transcripts.iter().map(|one| one.path.with_extension("tmp")).collect();
    let mut noise: Vec<_> = noise.iter().map(|path| fs::File::create(path).unwrap()).collect();
    for turn in 0..queue + 1000 {
        std::io::Write::write_all(&mut noise[turn % 2], b"x").unwrap();
    }
    // Nobody is told of these: the queue is full.
    transcripts.iter_mut().for_each(|one| one.grow(&planted, 2));
    transcripts.push(new(2));
    transcripts[2].grow(&planted, 2);
    goes_on(&home, daemon, &transcripts, &planted);
}

/// A daemon that was stopped goes on, and stores what happened meanwhile.
fn goes_on(home: &Home, mut daemon: Daemon, transcripts: &[Transcript], planted: &Planted) {
    daemon.signal(Signal::CONT);
    wait_until_ok("all to be stored", || {
        let sources: Vec<_> = transcripts.iter().map(|one| one.source(planted)).collect();
        judge::verdict(judge::at_rest(&Bucket::read(home.objects()), &sources))
    });
    assert_eq!(daemon.term().code(), Some(0));
}

/// To a process the sleep of a machine is a stop: the clock of the day jumps, and what happened meanwhile was seen by nobody.
#[test]
fn t71_after_a_sleep_it_goes_on_by_itself_with_what_changed_meanwhile() {
    let home = Home::new();
    let planted = Planted::exact_only(71);
    let new = |number| Transcript::new(&home, "claude-code", number, 71);
    let mut transcripts: Vec<_> = (0..3).map(new).collect();
    transcripts.iter_mut().for_each(|one| one.grow(&planted, 2));
    let daemon = Daemon::start(&home, &["--interval", "200ms"]);
    ctl_ok(&home, &["flush"]);
    daemon.signal(Signal::STOP);
    transcripts[0].grow(&planted, 3);
    fs::remove_file(&transcripts[1].path).unwrap();
    transcripts.push(new(3));
    transcripts[3].grow(&planted, 2);
    goes_on(&home, daemon, &transcripts, &planted);
}

#[test]
fn t51_descriptors_do_not_grow_with_the_number_of_sessions() {
    if !Path::new("/proc/self/fd").exists() {
        return skipped("the count of descriptors", "there is no /proc");
    }
    let home = Home::new();
    let planted = Planted::exact_only(51);
    let mut transcripts: Vec<_> =
        (0..200).map(|number| Transcript::new(&home, "claude-code", number, 51)).collect();
    transcripts.iter_mut().for_each(|one| one.grow(&planted, 1));
    let mut command = home.command("sh");
    // A limit below the number of files makes every descriptor that is kept an error.
    command.args(["-c", "ulimit -n 64 && exec \"$@\"", "sh"]);
    command.arg(home.tracecraftd().get_program()).args(["--interval", "200ms"]);
    let mut daemon = Daemon::spawn_command(&home, command);
    daemon.wait_ready(&home);
    for _ in 0..3 {
        transcripts.iter_mut().for_each(|one| one.grow(&planted, 1));
        ctl_ok(&home, &["flush"]);
        let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
        assert!(open <= DESCRIPTORS_MAX, "{open} descriptors");
    }
    let sources: Vec<_> = transcripts.iter().map(|one| one.source(&planted)).collect();
    assert_eq!(daemon.term().code(), Some(0));
    judge::verdict(judge::at_rest(&Bucket::read(home.objects()), &sources)).unwrap();
    assert!(!daemon.said().contains("Too many open files"), "{}", daemon.said());
}
