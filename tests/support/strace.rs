//! strace around the real binary: counts the gates of its writing, and holds each one open long enough to be killed there.
//!
//! A gate is a system call that changes the program's own files. The product needs no hooks: strace delays these calls, the
//! test reads strace's record while it grows, and sends SIGKILL at the gate that it wants.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::home::Home;

/// System calls by which a program can change files.
const WRITING: &str = "open,openat,openat2,creat,write,pwrite64,writev,fsync,fdatasync,syncfs,rename,renameat,\
renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,link,linkat,symlink,symlinkat,ftruncate,truncate,chmod,fchmod,fchmodat,\
chown,fchown,lchown,fchownat,utimensat,futimesat,setxattr,fsetxattr,lsetxattr,removexattr,fallocate,copy_file_range,flock,mknod,mknodat";

/// More of them that no gate is: locks, and what some systems have and others have not (`?`).
const ALSO_WATCHED: &str = "fcntl,?fchmodat2,?utime,?utimes,?fremovexattr,?lremovexattr,?pwritev,?pwritev2,?splice,?sendfile";

/// How long each call is held at its entry, microseconds: longer than the test takes to see it, short enough for hundreds.
const HELD_MICROSECONDS: u32 = 4000;

/// The calls that are held: those that make things durable or visible. Plain opens for reading are not worth the wait.
const HELD: &str = "write,pwrite64,fsync,fdatasync,syncfs,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,openat";

/// Time between two looks at strace's record.
const LOOK: Duration = Duration::from_micros(300);

/// How long a run may take from its start to the gate: each gate is held for some milliseconds.
pub(crate) const TO_THE_GATE: Duration = Duration::from_secs(60);

/// strace's record of one run.
#[derive(Debug)]
pub(crate) struct Record {
    path: PathBuf,
    /// Only calls that name something below this directory count.
    below: String,
    read_to: u64,
    partial: String,
    gates: usize,
}

/// Whether strace is there and may trace.
pub(crate) fn usable() -> Result<(), String> {
    let tried =
        Command::new("strace").args(["-D", "-f", "-qq", "-o", "/dev/null", "true"]).output();
    match tried {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            Err(format!("strace cannot trace: {}", String::from_utf8_lossy(&output.stderr)))
        }
        Err(why) => Err(format!("strace cannot be run: {why}")),
    }
}

/// `command` under strace, its writing calls held (`hold`) or only recorded. The process that is spawned is the traced one,
/// strace is its grandchild, so that signals and exit codes are those of the program.
pub(crate) fn traced(home: &Home, command: &Command, hold: bool) -> (Command, Record) {
    let path = home.path().join(format!("strace-{}.out", fastrand::u64(..)));
    File::create(&path).unwrap();
    let mut traced = home.command("strace");
    traced.args(["-D", "-f", "-qq", "-y", "-s", "0", "-o"]).arg(&path);
    let also = if hold { String::new() } else { format!(",{ALSO_WATCHED}") };
    traced.arg(format!("--trace={WRITING}{also}"));
    if hold {
        traced.arg(format!("--inject={HELD}:delay_enter={HELD_MICROSECONDS}"));
    }
    traced.arg(command.get_program()).args(command.get_args());
    let below = home.path().join(".local").display().to_string();
    (traced, Record { path, below, read_to: 0, partial: String::new(), gates: 0 })
}

impl Record {
    /// Gates that were entered so far.
    pub(crate) fn gates(&mut self) -> usize {
        let mut file = File::open(&self.path).unwrap();
        file.seek(SeekFrom::Start(self.read_to)).unwrap();
        let mut fresh = Vec::new();
        self.read_to += file.read_to_end(&mut fresh).unwrap() as u64;
        self.partial.push_str(&String::from_utf8_lossy(&fresh));
        while let Some(end) = self.partial.find('\n') {
            let line: String = self.partial.drain(..=end).collect();
            self.gates += usize::from(is_gate(&line, &self.below));
        }
        // strace writes a call's arguments before it lets the call go on; the rest of the line comes afterwards.
        self.gates + usize::from(is_gate(&self.partial, &self.below))
    }

    /// Waits for a gate, looking far more often than a gate is held; `false` when `over` says that none will come.
    pub(crate) fn reaches(&mut self, gate: usize, mut over: impl FnMut() -> bool) -> bool {
        let deadline = Instant::now() + TO_THE_GATE;
        while self.gates() < gate {
            if over() {
                return false;
            }
            assert!(Instant::now() < deadline, "gate {gate} was not reached");
            std::thread::sleep(LOOK);
        }
        true
    }

    /// Every call that was recorded, as text.
    pub(crate) fn lines(&self) -> Vec<String> {
        let text = std::fs::read(&self.path).unwrap();
        String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
    }

    /// Calls that change, create or lock something below `root`.
    pub(crate) fn changes_below(&self, root: &Path) -> Vec<String> {
        let root = root.display().to_string();
        self.lines().into_iter().filter(|line| is_gate(line, &root)).collect()
    }

    /// Calls that open something below `root`.
    pub(crate) fn opens_below(&self, root: &Path) -> Vec<String> {
        let root = root.display().to_string();
        let opens = |line: &String| call(line).is_some_and(|(name, _)| name.starts_with("open"));
        self.lines().into_iter().filter(|line| line.contains(&root) && opens(line)).collect()
    }
}

/// Name and arguments of the call that a line enters; a line that resumes a call enters none.
fn call(line: &str) -> Option<(&str, &str)> {
    let text = line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
    let (name, arguments) = text.split_once('(')?;
    let is_name = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    is_name.then_some((name, arguments))
}

/// Whether a line enters a call that changes something below a directory.
pub(crate) fn is_gate(line: &str, below: &str) -> bool {
    let Some((name, arguments)) = call(line) else { return false };
    if !arguments.contains(below) {
        return false;
    }
    match name {
        // Only a lock can hurt; all else tells of a descriptor.
        "fcntl" => arguments.contains("SETLK"),
        "open" | "openat" | "openat2" => ["O_CREAT", "O_WRONLY", "O_RDWR", "O_TRUNC", "O_APPEND"]
            .iter()
            .any(|f| arguments.contains(f)),
        _ => true,
    }
}
