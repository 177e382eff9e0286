//! The real file system, opened so that looking at a source can neither change it nor hang.
//!
//! The only file that opens sources. Knows system calls; knows nothing of content.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::{Files, SourceError, SourceFile, Stat};

/// Files of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OsFiles;

impl Files for OsFiles {
    fn open(&self, path: &Path) -> Result<Box<dyn SourceFile>, SourceError> {
        // Looking first spares devices and FIFOs the open itself, which can have effects. What was put in its place
        // meanwhile is caught by the look at the descriptor.
        stat_path(path)?;
        let file = open_read_only(path).map_err(|error| match error {
            rustix::io::Errno::LOOP | rustix::io::Errno::MLINK => {
                SourceError::unfit(path, "a symbolic link")
            }
            rustix::io::Errno::NXIO => SourceError::unfit(path, "a socket"),
            other => SourceError::io(path, other.into()),
        })?;
        let found = file.metadata().map_err(|error| SourceError::io(path, error))?;
        fit(path, &found)?;
        Ok(Box::new(OsFile { file, path: path.to_owned() }))
    }

    fn stat(&self, path: &Path) -> Result<Stat, SourceError> {
        stat_path(path)
    }
}

/// Never follows a link in the last place, never waits for a writer of a FIFO, is not inherited by a child and, where that
/// can be had, leaves the access time alone.
fn open_read_only(path: &Path) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    #[cfg(target_os = "linux")]
    match rustix::fs::open(path, flags | OFlags::NOATIME, Mode::empty()) {
        // Only the owner may ask for it, and some network file systems grant it to no one.
        Err(rustix::io::Errno::PERM) => {}
        done => return done.map(File::from),
    }
    rustix::fs::open(path, flags, Mode::empty()).map(File::from)
}

fn stat_path(path: &Path) -> Result<Stat, SourceError> {
    let found = std::fs::symlink_metadata(path).map_err(|error| SourceError::io(path, error))?;
    fit(path, &found)
}

/// Refuses all but regular files of this user.
fn fit(path: &Path, found: &Metadata) -> Result<Stat, SourceError> {
    let kind = found.file_type();
    let what = if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_block_device() || kind.is_char_device() {
        "a device"
    } else if !kind.is_file() {
        "something unknown"
    } else if found.uid() != rustix::process::geteuid().as_raw() {
        "another user's file"
    } else {
        return Ok(stat(found));
    };
    Err(SourceError::unfit(path, what))
}

fn stat(found: &Metadata) -> Stat {
    Stat {
        dev: found.dev(),
        ino: found.ino(),
        size: found.size(),
        mtime_ns: nanoseconds(found.mtime(), found.mtime_nsec()),
        ctime_ns: nanoseconds(found.ctime(), found.ctime_nsec()),
    }
}

/// A file may carry any time, also one that nanoseconds cannot express; then the nearest does.
fn nanoseconds(seconds: i64, nanoseconds: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

struct OsFile {
    file: File,
    path: PathBuf,
}

impl SourceFile for OsFile {
    fn stat(&self) -> io::Result<Stat> {
        self.file.metadata().map(|found| stat(&found))
    }

    fn stat_path(&self) -> Result<Stat, SourceError> {
        stat_path(&self.path)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buffer, offset)
    }
}
