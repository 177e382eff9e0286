//! The one door to this program's own files: writes that survive a power loss, and nothing else.
//!
//! Knows paths and bytes; knows nothing of parts, state or stores. What is written is not durable until [`Disk::sync`] has
//! named it, so that many small files cost one wait. Files are 0600, directories 0700.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

mod blocking;
mod group;
#[cfg(test)]
pub(crate) mod memory;
mod os;
mod reader;
#[cfg(test)]
mod tests;

pub(crate) use blocking::Blocking;
pub(crate) use os::OsDisk;
pub(crate) use reader::PieceReader;

/// This program's own files. The real one is [`OsDisk`]; tests have one in memory that forgets what was not synced.
///
/// A failed sync is not repaired by a second one: the kernel may have dropped the bytes that it could not write. Whoever
/// sees it fail writes the bytes again.
pub(crate) trait Disk: Send + Sync + std::fmt::Debug {
    /// Creates a directory (0700) and its missing parents. Durable after [`Disk::sync`] of something below it.
    fn create_dirs(&self, dir: &Path) -> io::Result<()>;
    /// Creates or truncates a file (0600), creating missing parents. Neither bytes nor name are durable until [`Disk::sync`].
    fn create(&self, path: &Path) -> io::Result<Box<dyn Write + Send>>;
    /// Appends to a file, creating it. Not durable until [`Disk::sync`]. On failure the file has its former length again.
    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Makes bytes and names of all these files durable, and renames to and away from their directories. A directory may be
    /// named too: then its entries are made durable. Concurrent calls share their waits.
    fn sync(&self, paths: &[PathBuf]) -> io::Result<()>;
    /// Replaces a file as a whole, durably: temporary sibling, sync, rename, sync of the directory. What it is to hold is written
    /// as it comes, so that it never has to be in memory as a whole.
    fn replace_by(&self, path: &Path, write: WriteAll<'_>) -> io::Result<()>;
    /// As [`Disk::replace_by`], by these bytes.
    fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.replace_by(path, &mut |file| file.write_all(bytes))
    }
    /// Renames, replacing the target. Durable after [`Disk::sync`] of both (of the target path and the old directory).
    /// Fails with [`io::ErrorKind::CrossesDevices`] between file systems.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// The whole file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// A file for reading.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>>;
    /// Size in bytes; `None` when there is no such file.
    fn size(&self, path: &Path) -> io::Result<Option<u64>>;
    /// When the file was last written; `None` when there is no such file.
    fn modified(&self, path: &Path) -> io::Result<Option<SystemTime>>;
    /// Whether there is a directory of this name; a link of the user that leads to one counts.
    fn is_dir(&self, path: &Path) -> io::Result<bool>;
    /// All regular files below a directory, at any depth, with their sizes, sorted by path; empty when there is no such
    /// directory. Links are not followed.
    fn list(&self, dir: &Path) -> io::Result<Vec<(PathBuf, u64)>>;
    /// What is directly in a directory, in no order, and whether it is a directory itself; empty when there is no such directory.
    /// Links and whatever is neither are left out.
    fn entries(&self, dir: &Path) -> io::Result<Vec<(PathBuf, bool)>>;
    /// Removes a file; that there is none is no error. Not durable until [`Disk::sync`] of its directory.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory if it is empty; anything else is no error.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
    /// Bytes that this user may still write on the file system of the path (or of its nearest existing parent).
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;
}

/// Writes all that a file is to hold.
pub(crate) type WriteAll<'a> = &'a mut dyn FnMut(&mut dyn Write) -> io::Result<()>;

/// Names for files that are being written. They begin with a dot and end in `.tmp`, are short whatever they stand in for
/// (a name of 255 bytes has no room for a suffix), and carry a random tag, so that two programs that write to one directory
/// (from two machines even) do not meet.
#[derive(Debug)]
pub(crate) struct Temps {
    tag: String,
    next: AtomicU64,
}

impl Temps {
    /// Names of this process.
    pub(crate) fn new() -> Temps {
        Temps::tagged(&format!("{}-{:08x}", std::process::id(), fastrand::u32(..)))
    }

    /// Names with a tag that the caller chose.
    fn tagged(tag: &str) -> Temps {
        Temps { tag: tag.to_owned(), next: AtomicU64::new(0) }
    }

    /// A new name beside `path`.
    pub(crate) fn beside(&self, path: &Path) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        path.with_file_name(format!(".{}-{number}.tmp", self.tag))
    }
}

/// Whether a file name is one of [`Temps`], of whichever process.
pub(crate) fn is_temp(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b".") && name.ends_with(b".tmp")
}
