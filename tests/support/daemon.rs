//! A running `tracecraftd`: started, asked, signalled, killed, and ended with the test.
//!
//! Owns the child process and its log file; knows the exit codes and the two programs' flags, nothing of buckets.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::home::{Home, run, said};
use super::{try_wait_for, wait_for};

/// A daemon in a scratch home. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts a daemon and waits until it records.
    pub(crate) fn start(home: &Home, arguments: &[&str]) -> Daemon {
        let mut daemon = Daemon::spawn(home, arguments);
        daemon.wait_ready(home);
        daemon
    }

    /// Starts a daemon and does not wait.
    pub(crate) fn spawn(home: &Home, arguments: &[&str]) -> Daemon {
        let mut command = home.tracecraftd();
        command.args(arguments);
        Daemon::spawn_command(home, command)
    }

    /// Starts a daemon by a command that was made elsewhere (under strace, for instance).
    pub(crate) fn spawn_command(home: &Home, command: Command) -> Daemon {
        Daemon::spawn_with(home, command, Stdio::null())
    }

    /// The same with a standard input.
    pub(crate) fn spawn_with(home: &Home, mut command: Command, input: Stdio) -> Daemon {
        let log = log_file(home.path());
        let file = File::options().append(true).create(true).open(&log).unwrap();
        command.stdin(input).stdout(file.try_clone().unwrap()).stderr(file);
        Daemon { child: command.spawn().unwrap(), log }
    }

    /// Waits until the daemon answers and records.
    pub(crate) fn wait_ready(&mut self, home: &Home) {
        let ready = try_wait_for(super::PATIENCE, || {
            if let Some(status) = self.exited() {
                panic!("the daemon ended at once with {status}:\n{}", self.said());
            }
            let status = status(home)?;
            let mine = status["pid"].as_u64() == Some(u64::from(self.child.id()));
            (mine && status["phase"] == "recording").then_some(())
        });
        assert!(ready.is_some(), "the daemon never came to record:\n{}", self.said());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that the daemons of this home have written to their streams.
    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The same, where no daemon is left to ask.
    pub(crate) fn said_in(home: &Home) -> String {
        String::from_utf8_lossy(&fs::read(log_file(home.path())).unwrap_or_default()).into_owned()
    }

    /// The exit status, if it has ended.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// The most memory that it has taken so far; 0 where the system does not tell.
    pub(crate) fn peak_bytes(&self) -> u64 {
        status_bytes(self.pid(), "VmHWM:").unwrap_or(0)
    }

    /// SIGKILL, and wait for the end.
    pub(crate) fn kill9(&mut self) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// SIGTERM, and the exit status.
    pub(crate) fn term(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        wait_for("the daemon to drain", || self.exited())
    }

    /// The exit status, if it comes within `limit`.
    pub(crate) fn exits_within(&mut self, limit: Duration) -> Option<ExitStatus> {
        try_wait_for(limit, || self.exited())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where the daemons of a home write what they say.
pub(crate) fn log_file(home: &Path) -> PathBuf {
    home.join("said.log")
}

/// Runs `tracecraftctl`.
pub(crate) fn ctl(home: &Home, arguments: &[&str]) -> Output {
    run(home.tracecraftctl().args(arguments))
}

/// Runs `tracecraftctl`, which must succeed, and returns its standard output.
pub(crate) fn ctl_ok(home: &Home, arguments: &[&str]) -> Vec<u8> {
    let output = ctl(home, arguments);
    assert!(output.status.success(), "tracecraftctl {arguments:?}: {}", said(&output));
    output.stdout
}

/// `status --json`, if a daemon answers.
pub(crate) fn status(home: &Home) -> Option<Value> {
    let output = ctl(home, &["status", "--json"]);
    output
        .status
        .success()
        .then(|| serde_json::from_slice(&output.stdout).expect("status --json is JSON"))
}

/// The sessions of `list --json`.
pub(crate) fn list(home: &Home) -> Vec<Value> {
    sessions_of(&ctl_ok(home, &["list", "--json"]))
}

/// The sessions in what `list --json` printed.
pub(crate) fn sessions_of(printed: &[u8]) -> Vec<Value> {
    let answer: Value = serde_json::from_slice(printed).expect("list --json is JSON");
    answer["sessions"].as_array().expect("list --json has `sessions`").clone()
}

/// A field of `/proc/<pid>/status` in bytes; `None` where there is no such thing.
pub(crate) fn status_bytes(pid: u32, field: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes << 10)
}
