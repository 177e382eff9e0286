//! Sources are sacred: nothing under an agent's directory is created, changed, locked or touched, and transcripts are opened
//! so that neither a link nor a FIFO can hurt.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rustix::process::Signal;

use crate::hermes::{Hermes, SESSION};
use crate::openclaw::OpenClaw;
use crate::support::daemon::{Daemon, ctl, ctl_ok};
use crate::support::home::Home;
use crate::support::oracle::{Bucket, snapshot};
use crate::support::planted::{Planted, header};
use crate::support::strace::{self, Record};
use crate::support::writers::Transcript;
use crate::support::{skipped, wait_for};

/// A home with sessions of each harness: files, and rows of a database whose writer is alive.
fn scene(planted: &Planted) -> (Home, Vec<Transcript>, Hermes, OpenClaw) {
    let home = Home::new();
    let hermes = Hermes::new(&home, None);
    hermes.session(SESSION, "/home/you/app");
    hermes.say(SESSION, "user", "first");
    let openclaw = OpenClaw::new(&home, ".openclaw", "main");
    openclaw.append("rows", &header("openclaw", "rows", "/home/you/app"));
    let mut transcripts = Vec::new();
    for (harness, number) in [("claude-code", 0), ("codex", 1), ("openclaw", 2), ("claude-code", 3)]
    {
        let mut transcript = Transcript::new(&home, harness, number, 5);
        transcript.grow(planted, 5);
        transcripts.push(transcript);
    }
    (home, transcripts, hermes, openclaw)
}

fn roots(home: &Home) -> BTreeMap<PathBuf, BTreeMap<String, String>> {
    let roots = home.agent_roots().into_iter();
    roots.map(|root| (root.clone(), snapshot(&root, &[]))).collect()
}

/// The record shows reading below every root, with the flags that make it harmless, and no change.
fn assert_only_read(home: &Home, record: &Record) {
    assert_no_change(home, record);
    for root in home.agent_roots() {
        let names = [".jsonl\"", "/state.db", "/openclaw-agent.sqlite"];
        let is_source = |line: &String| names.iter().any(|name| line.contains(name));
        let seen = record.opens_below(&root).iter().any(is_source);
        assert!(seen, "strace saw no transcript opened below {}", root.display());
    }
}

/// Nothing below any root was changed, and what was opened was opened so that it could do no harm.
fn assert_no_change(home: &Home, record: &Record) {
    for root in home.agent_roots() {
        let changes = record.changes_below(&root);
        assert!(changes.is_empty(), "changes below {}:\n{}", root.display(), changes.join("\n"));
        for line in record.opens_below(&root) {
            let harmless = ["O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_RDONLY"];
            let is_source = line.contains(".jsonl\"") || line.contains("/state.db");
            assert!(!is_source || harmless.iter().all(|flag| line.contains(flag)), "{line}");
        }
    }
}

#[test]
fn once_leaves_the_agents_directories_exactly_as_they_were() {
    let (home, _, _hermes, _openclaw) = scene(&Planted::exact_only(5));
    let before = roots(&home);
    home.once();
    assert_eq!(Bucket::read(&home.bucket()).sessions.len(), 6);
    assert_eq!(before, roots(&home));
}

#[test]
fn once_opens_transcripts_only_to_read() {
    if let Err(why) = strace::usable() {
        return skipped("once_opens_transcripts_only_to_read", &why);
    }
    let (home, _, _hermes, _openclaw) = scene(&Planted::exact_only(5));
    let mut command = home.tracecraftd();
    command.arg("--once");
    let (command, record) = strace::traced(&home, &command, false);
    let mut daemon = Daemon::spawn_command(&home, command);
    let status = wait_for("--once under strace", || daemon.exited());
    assert!(status.success(), "{}", daemon.said());
    assert_only_read(&home, &record);
}

#[test]
fn a_live_daemon_opens_transcripts_only_to_read_and_holds_none_open() {
    if let Err(why) = strace::usable() {
        return skipped("a_live_daemon_opens_transcripts_only_to_read", &why);
    }
    let planted = Planted::exact_only(6);
    let (home, mut transcripts, hermes, openclaw) = scene(&planted);
    let mut command = home.tracecraftd();
    command.args(["--interval", "100ms"]);
    let (command, record) = strace::traced(&home, &command, false);
    let mut daemon = Daemon::spawn_command(&home, command);
    daemon.wait_ready(&home);
    for round in 0..5 {
        transcripts.iter_mut().for_each(|transcript| transcript.grow(&planted, 2));
        hermes.say(SESSION, "user", "more");
        openclaw.append("rows", b"{}\n");
        if round == 2 {
            transcripts[3].replace(&planted);
        }
        ctl_ok(&home, &["flush"]);
    }
    // Also the verbs that look at sessions must leave their sources alone.
    let before = roots(&home);
    for id in
        transcripts.iter().map(|transcript| transcript.id.as_str()).chain([SESSION, "main__rows"])
    {
        ctl(&home, &["show", id, "--raw"]);
        ctl(&home, &["compact", id]);
        ctl(&home, &["stop", id]);
    }
    wait_for("no transcript to be held open", || {
        held_open(&home, daemon.pid()).is_empty().then_some(())
    });
    assert_eq!(daemon.term().code(), Some(0), "{}", daemon.said());
    assert_eq!(before, roots(&home));
    assert_only_read(&home, &record);
}

/// All that may happen to sessions of every harness, and to the program meanwhile.
struct Life {
    home: Home,
    transcripts: Vec<Transcript>,
    hermes: Hermes,
    openclaw: OpenClaw,
    planted: Planted,
    records: Vec<Record>,
}

impl Life {
    fn start(&mut self) -> Daemon {
        let mut command = self.home.tracecraftd();
        command.args(["--interval", "100ms"]);
        let (command, record) = strace::traced(&self.home, &command, false);
        self.records.push(record);
        let mut daemon = Daemon::spawn_command(&self.home, command);
        daemon.wait_ready(&self.home);
        daemon
    }

    fn grow(&mut self) {
        let there = self.transcripts.iter_mut().filter(|one| !one.gone);
        there.for_each(|one| one.grow(&self.planted, 2));
        self.hermes.say(SESSION, "user", "more");
        self.openclaw.append("rows", b"{}\n");
    }

    /// Rewritten, cut, moved, deleted, begun; and rows that change.
    fn be_rude(&mut self) {
        self.transcripts[0].replace(&self.planted);
        self.transcripts[1].truncate();
        self.transcripts[3].delete();
        let archive = self.home.path().join(".codex/archived_sessions");
        let name = self.transcripts[1].path.file_name().unwrap().to_owned();
        self.transcripts[1].move_to(&archive.join(name));
        let number = self.transcripts.len() as u64;
        self.transcripts.push(Transcript::new(&self.home, "openclaw", number, 7));
        self.hermes.step("UPDATE messages SET active = 0, content = 'undone' WHERE id = 2");
        self.hermes.step("DELETE FROM messages WHERE id = 1");
        self.hermes.step("PRAGMA wal_checkpoint(TRUNCATE)");
    }

    /// While no agent writes, all directories of agents stay exactly as they are.
    fn quietly(&self, act: impl FnOnce(&Life)) {
        let before = roots(&self.home);
        act(self);
        assert_eq!(before, roots(&self.home));
    }

    /// Every verb that has to do with sessions. Some are refused for some sessions; none may touch a source.
    fn ask_everything(&self) {
        let home = &self.home;
        for id in self.transcripts.iter().map(|one| one.id.as_str()).chain([SESSION]) {
            ctl(home, &["show", id, "--raw"]);
            ctl(home, &["compact", id]);
            ctl(home, &["stop", id]);
            ctl(home, &["start", id]);
            ctl(home, &["verify", id, "--deep", "--repair"]);
        }
        ctl_ok(home, &["list"]);
        ctl_ok(home, &["flush"]);
        ctl_ok(home, &["verify", "--deep"]);
    }
}

#[test]
fn a_whole_life_with_every_harness_changes_nothing_below_any_agents_directory() {
    if let Err(why) = strace::usable() {
        return skipped("a_whole_life_with_every_harness", &why);
    }
    let planted = Planted::exact_only(7);
    let (home, transcripts, hermes, openclaw) = scene(&planted);
    let mut life = Life { home, transcripts, hermes, openclaw, planted, records: Vec::new() };
    let mut daemon = life.start();
    for round in 0..4 {
        life.grow();
        if round == 2 {
            life.quietly(|life| drop(ctl_ok(&life.home, &["flush"])));
            life.be_rude();
        }
        life.quietly(|life| drop(ctl_ok(&life.home, &["flush"])));
    }
    life.quietly(Life::ask_everything);
    life.grow();
    life.quietly(|_| assert_eq!(daemon.term().code(), Some(0), "{}", daemon.said()));
    // Restarted, killed, and started again without its state: what is stored is walked along the sources.
    life.grow();
    let mut daemon = life.start();
    life.quietly(|life| drop(ctl_ok(&life.home, &["flush"])));
    daemon.kill9();
    life.grow();
    std::fs::rename(life.home.state_dir(), life.home.path().join("lost")).unwrap();
    let mut daemon = life.start();
    life.quietly(Life::ask_everything);
    daemon.signal(Signal::HUP);
    daemon.signal(Signal::USR1);
    life.quietly(|_| assert_eq!(daemon.term().code(), Some(0), "{}", daemon.said()));
    life.quietly(|life| drop(life.home.once()));
    assert_eq!(life.records.len(), 3);
    life.records.iter().for_each(|record| assert_only_read(&life.home, record));
}

/// Regular files below an agent's directory that a process holds open.
fn held_open(home: &Home, pid: u32) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let targets = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let roots = home.agent_roots();
    targets
        .filter(|path| roots.iter().any(|root| path.starts_with(root)) && path.is_file())
        .collect()
}
