//! The two views of a file and of the directories: what programs see, and what a power loss leaves.
//!
//! Knows what a change is and which changes belong together; knows nothing of steps, faults or room.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub(super) type FileId = u64;

#[derive(Debug, Default, Clone)]
pub(super) struct File {
    pub(super) bytes: Vec<u8>,
    /// What a power loss leaves for certain.
    pub(super) durable: Vec<u8>,
    /// `bytes` and `durable` are equal up to here.
    pub(super) equal: usize,
    pub(super) modified: Option<SystemTime>,
}

impl File {
    pub(super) fn truncate(&mut self, length: usize) {
        self.bytes.truncate(length);
        self.equal = self.equal.min(length);
    }

    pub(super) fn sync(&mut self) {
        self.durable.truncate(self.equal);
        self.durable.extend_from_slice(&self.bytes[self.equal..]);
        self.equal = self.durable.len();
    }

    pub(super) fn is_synced(&self) -> bool {
        self.equal == self.bytes.len() && self.equal == self.durable.len()
    }

    /// All of the bytes arrived, or some, or none.
    pub(super) fn crash(&mut self, rng: &mut fastrand::Rng) {
        if !self.is_synced() {
            match rng.u8(..3) {
                0 => self.bytes = self.durable.clone(),
                1 => self.bytes.truncate(rng.usize(self.equal..=self.bytes.len())),
                _ => {}
            }
            self.equal = self.equal.min(self.bytes.len());
            self.sync();
        }
    }
}

/// A change of directories that may still be lost.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    pub(super) change: Change,
    /// Syncs that it still waits for: its directories.
    pub(super) waits: Vec<PathBuf>,
}

#[derive(Debug, Clone)]
pub(super) enum Change {
    MakeDir(PathBuf),
    RemoveDir(PathBuf),
    Create(PathBuf, FileId),
    Rename(PathBuf, PathBuf, FileId),
    Remove(PathBuf),
}

impl Change {
    pub(super) fn paths(&self) -> Vec<&Path> {
        match self {
            Change::MakeDir(path) | Change::RemoveDir(path) => vec![path],
            Change::Create(path, _) | Change::Remove(path) => vec![path],
            Change::Rename(from, to, _) => vec![from, to],
        }
    }

    /// Whether this one cannot be without `earlier`: they touch the same name, or one the directory of the other.
    pub(super) fn needs(&self, earlier: &Change) -> bool {
        let theirs = earlier.paths();
        self.paths().iter().any(|mine| {
            theirs.iter().any(|other| {
                mine == other
                    || (matches!(earlier, Change::MakeDir(_)) && mine.starts_with(other))
                    || (matches!(self, Change::RemoveDir(_)) && other.starts_with(mine))
            })
        })
    }
}

/// One view of the directories.
#[derive(Debug, Default, Clone)]
pub(super) struct Tree {
    pub(super) files: BTreeMap<PathBuf, FileId>,
    pub(super) dirs: BTreeSet<PathBuf>,
}

impl Tree {
    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::MakeDir(path) => _ = self.dirs.insert(path.clone()),
            Change::RemoveDir(path) => _ = self.dirs.remove(path),
            Change::Create(path, id) => _ = self.files.insert(path.clone(), *id),
            Change::Rename(from, to, id) => {
                self.files.remove(from);
                self.files.insert(to.clone(), *id);
            }
            Change::Remove(path) => _ = self.files.remove(path),
        }
    }
}
