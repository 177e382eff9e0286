//! Finding transcripts: one walk over a root, by names alone.
//!
//! Owns which directories are entered and which files are passed on. Never opens a file, keeps nothing between two walks, and
//! does not decide what two files of one id are to each other, except where they are one file in two places
//! ([`without_twins`]). What disappears during the walk is no problem: the next walk is the truth.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{DirEntry, FileType};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{Candidate, Harness, Root, Standing};
use crate::source::Encoding;

/// What a walk may cost. A tree that goes beyond is walked in part and a problem says so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Directories one below another. The deepest known layout (nested workflows of sub-agents) has 6.
    pub(crate) depth: usize,
    /// Directories entered. Each is watched, and a user has some 65,000 watches on a small machine, for all programs.
    pub(crate) directories: usize,
    /// Transcripts. Each costs some 300 bytes here and more in the state; 64 MB of memory are for everything.
    pub(crate) files: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { depth: 16, directories: 50_000, files: 100_000 }
    }
}

/// Problems that one walk reports. Nobody reads more, and a tree full of odd things must not fill the memory.
const PROBLEMS_MAX: usize = 100;

/// What a walk found.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Transcripts by id, within an id from the oldest to the live one, then by path.
    pub(crate) candidates: Vec<Candidate>,
    /// Every directory that was read, the root first: what to watch.
    pub(crate) directories: Vec<PathBuf>,
    /// What could not be looked at, or is not what its name says.
    pub(crate) problems: Vec<ScanProblem>,
    /// Whether there is anything at the root's path.
    pub(crate) present: bool,
}

/// Something in a tree that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScanProblem {
    /// Where. Where a limit was reached, the first that was left out.
    pub(crate) path: PathBuf,
    /// Why.
    pub(crate) what: Obstacle,
}

/// Why something in a tree was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub(crate) enum Obstacle {
    /// The operating system refuses.
    #[error("cannot be read: {0}")]
    Unreadable(io::ErrorKind),
    /// Named like a transcript, but something that is never opened.
    #[error("is named like a transcript and is {0}")]
    NotRegular(&'static str),
    /// A symbolic link that another user made: it may lead where that user wants us to read.
    #[error("is a link that belongs to another user")]
    ForeignLink,
    /// Deeper than [`Limits::depth`].
    #[error("is too deep; what is below is not recorded")]
    TooDeep,
    /// More than [`Limits::directories`].
    #[error("and more are too many directories; the rest is not recorded")]
    TooManyDirectories,
    /// More than [`Limits::files`].
    #[error("and more are too many transcripts; the rest is not recorded")]
    TooManyFiles,
}

/// Walks a root and returns its transcripts, in the same order whenever the tree is the same.
pub(crate) fn scan(harness: &dyn Harness, root: &Root, limits: Limits) -> Scan {
    let mut walk = Walk {
        harness,
        root,
        limits,
        scan: Scan::default(),
        visited: HashSet::new(),
        reached: HashSet::new(),
        ahead: Vec::new(),
        links: BTreeSet::new(),
    };
    walk.begin();
    walk.run();
    let mut scan = walk.scan;
    scan.candidates = without_twins(scan.candidates);
    scan.problems.sort_by(|a, b| a.path.cmp(&b.path));
    scan
}

/// Leaves out what is the same file a second time, and sorts: by id, within an id from the oldest to the live one, then by
/// path. Meant for one root and again for all roots of a harness together.
///
/// A Codex rollout may be there plain and compressed for a moment, and archived and live when it was copied. The plain one is
/// what the agent appends to; of two such, the one in the live tree. Files of one id and name that do not differ in this
/// way (one session in two project folders) are different sessions until someone has read them: all stay.
pub(crate) fn without_twins(mut candidates: Vec<Candidate>) -> Vec<Candidate> {
    fn rank(candidate: &Candidate) -> (bool, bool) {
        (candidate.encoding == Encoding::Plain, candidate.standing == Standing::Live)
    }
    fn identity(candidate: &Candidate) -> (&'static str, &str, &[u8]) {
        let name = candidate.path.file_name().map_or(&[][..], OsStr::as_bytes);
        (candidate.harness, &candidate.id, name.strip_suffix(b".zst").unwrap_or(name))
    }
    // Most harnesses have nothing but live plain files, and then no two can be twins.
    if candidates.iter().any(|candidate| rank(candidate) != (true, true)) {
        let mut best = HashMap::new();
        for candidate in &candidates {
            let best = best.entry(identity(candidate)).or_insert((false, false));
            *best = rank(candidate).max(*best);
        }
        let keep: Vec<bool> =
            candidates.iter().map(|one| best.get(&identity(one)) == Some(&rank(one))).collect();
        let mut keep = keep.into_iter();
        candidates.retain(|_| keep.next().unwrap_or(true));
    }
    candidates.sort_by(|a, b| (&a.id, &a.standing, &a.path).cmp(&(&b.id, &b.standing, &b.path)));
    candidates
}

/// A walk under way.
struct Walk<'a> {
    harness: &'a dyn Harness,
    root: &'a Root,
    limits: Limits,
    scan: Scan,
    /// Device and inode of every directory that was entered: what ends a cycle of links (or of bind mounts).
    visited: HashSet<(u64, u64)>,
    /// Limits that were reported.
    reached: HashSet<Obstacle>,
    /// Directories still to read.
    ahead: Vec<PathBuf>,
    /// Links to directories, followed when all real directories are done: so a session that can be reached in two ways is
    /// found below its real path, whatever order the directory is read in.
    links: BTreeSet<PathBuf>,
}

impl Walk<'_> {
    fn begin(&mut self) {
        let root = &self.root.path;
        match std::fs::symlink_metadata(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                self.scan.present = true;
                self.problem(root, Obstacle::Unreadable(error.kind()));
            }
            Ok(metadata) => {
                self.scan.present = true;
                if metadata.is_symlink() {
                    self.links.insert(root.clone());
                } else {
                    self.ahead.push(root.clone());
                }
            }
        }
    }

    fn run(&mut self) {
        loop {
            if let Some(directory) = self.ahead.pop() {
                self.read(directory);
            } else if let Some(link) = self.links.pop_first() {
                self.follow(link);
            } else {
                break;
            }
        }
    }

    /// Enters what a link leads to if it is a directory and the link is the user's own. A dangling link is no problem: agents
    /// do not make links, so it is none of a session's.
    fn follow(&mut self, link: PathBuf) {
        let Some(own) = self.known(&link, std::fs::symlink_metadata(&link)) else { return };
        if own.uid() != rustix::process::geteuid().as_raw() {
            return self.problem(&link, Obstacle::ForeignLink);
        }
        let Some(target) = self.known(&link, std::fs::metadata(&link)) else { return };
        if target.is_dir() || link == self.root.path {
            self.ahead.push(link);
        }
    }

    fn read(&mut self, directory: PathBuf) {
        let Some(metadata) = self.known(&directory, std::fs::metadata(&directory)) else { return };
        if !self.visited.insert((metadata.dev(), metadata.ino())) {
            return;
        }
        if self.scan.directories.len() >= self.limits.directories {
            return self.limit_reached(&directory, Obstacle::TooManyDirectories);
        }
        let Some(entries) = self.known(&directory, std::fs::read_dir(&directory)) else { return };
        let first = self.ahead.len();
        for entry in entries {
            // After an error the rest of this directory cannot be had; the other directories can.
            let Some(entry) = self.known(&directory, entry) else { break };
            self.look(&entry);
        }
        // The last is taken first.
        self.ahead[first..].sort_by(|a, b| b.cmp(a));
        self.scan.directories.push(directory);
    }

    /// Judges an entry by its name and by the type that the directory itself holds: no system call for most files.
    fn look(&mut self, entry: &DirEntry) {
        let path = entry.path();
        let candidate = self.harness.classify(self.root, &path);
        let below = path.strip_prefix(&self.root.path).unwrap_or(&path);
        if candidate.is_none() && !self.harness.descend(below) {
            return;
        }
        let Some(kind) = self.known(&path, entry.file_type()) else { return };
        match candidate {
            Some(_) if !kind.is_file() => {
                self.problem(&path, Obstacle::NotRegular(name_of(kind)));
            }
            Some(_) if self.scan.candidates.len() >= self.limits.files => {
                self.limit_reached(&path, Obstacle::TooManyFiles);
            }
            Some(candidate) => self.scan.candidates.push(candidate),
            None if !kind.is_dir() && !kind.is_symlink() => {}
            None if below.components().count() > self.limits.depth => {
                self.limit_reached(&path, Obstacle::TooDeep);
            }
            // One directory is counted where it is read; this bounds what waits.
            None if self.ahead.len() + self.links.len() >= self.limits.directories => {
                self.limit_reached(&path, Obstacle::TooManyDirectories);
            }
            None if kind.is_dir() => self.ahead.push(path),
            None => {
                self.links.insert(path);
            }
        }
    }

    /// The value, or a problem; neither when the thing disappeared since its name was read.
    fn known<T>(&mut self, path: &Path, result: io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                self.problem(path, Obstacle::Unreadable(error.kind()));
                None
            }
        }
    }

    fn limit_reached(&mut self, path: &Path, what: Obstacle) {
        if self.reached.insert(what) {
            self.problem(path, what);
        }
    }

    fn problem(&mut self, path: &Path, what: Obstacle) {
        if self.scan.problems.len() < PROBLEMS_MAX {
            self.scan.problems.push(ScanProblem { path: path.to_path_buf(), what });
        }
    }
}

/// What a directory entry is, for a person.
fn name_of(kind: FileType) -> &'static str {
    match () {
        () if kind.is_symlink() => "a link",
        () if kind.is_dir() => "a directory",
        () if kind.is_fifo() => "a FIFO",
        () if kind.is_socket() => "a socket",
        () => "a device",
    }
}
