//! Reading a session's source: bounded chunks, no descriptor held between flushes, rewrites noticed.
//!
//! Knows files and their content; knows nothing of redaction, parts or stores. What it learns about a file is kept by its
//! caller as a [`Cursor`], which is opaque to all but this module.

mod check;
mod content;
pub(crate) mod database;
mod fingerprint;
#[cfg(test)]
pub(crate) mod memory;
#[cfg(test)]
mod model_tests;
mod os;
#[cfg(test)]
mod os_tests;
mod reading;
mod record;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod zstd_tests;

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

#[allow(unused_imports, reason = "the mirror, which uses them, is written at the same time")]
pub(crate) use self::{
    check::{Depth, Rewrite, Verdict, check, is_whole},
    content::inflated,
    fingerprint::Fingerprint,
    os::OsFiles,
    reading::{Chunk, Next, Reading, Unfinished, head},
};

/// Most bytes in a chunk, unless one record alone is larger: a part of this size is sent in a few seconds on a slow line, and
/// several chunks at once stay far below the memory limit.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;

/// Longest record that is captured whole: a record is held in memory until its end is seen, and the largest ever reported was
/// 100 MB. A longer one is cut.
pub(crate) const RECORD_BYTES_MAX: usize = 256 << 20;

/// Most bytes of a record's beginning that go with the chunk that continues it: redaction looks no further back.
pub(crate) const CONTEXT_BYTES_MAX: usize = 64 << 10;

/// Read-only access to files under an agent's directory: the one door through which sources are opened.
pub(crate) trait Files: Send + Sync + std::fmt::Debug {
    /// Opens a source for reading: `O_NOFOLLOW|O_NONBLOCK|O_CLOEXEC`, regular, owned by this user.
    fn open(&self, path: &Path) -> Result<Box<dyn SourceFile>, SourceError>;
    /// What is at the path, without opening it and without following a link.
    fn stat(&self, path: &Path) -> Result<Stat, SourceError>;
    /// As [`Files::open`], to go on from a cursor: what is in a database finds its place again by what the cursor remembers,
    /// also where what stood before it is gone.
    fn open_at(&self, path: &Path, _cursor: &Cursor) -> Result<Box<dyn SourceFile>, SourceError> {
        self.open(path)
    }
}

/// An open source.
pub(crate) trait SourceFile: Send {
    /// Identity and size now.
    fn stat(&self) -> io::Result<Stat>;
    /// What is now at the path by which this file was opened; another inode when the file was replaced meanwhile.
    fn stat_path(&self) -> Result<Stat, SourceError>;
    /// Reads at an offset in bytes; 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Where the content begins now: beyond 0 where its agent has put the first of it away, which is no rewrite.
    fn starts_at(&self) -> u64 {
        0
    }
    /// What a cursor at an offset has to remember beside it.
    fn mark(&self, _offset: u64) -> Option<EventMark> {
        None
    }
}

/// Identity, size and times of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stat {
    /// Device number.
    pub(crate) dev: u64,
    /// Inode number.
    pub(crate) ino: u64,
    /// Size in bytes.
    pub(crate) size: u64,
    /// Modification time, nanoseconds since the Unix epoch.
    pub(crate) mtime_ns: i64,
    /// Status change time, nanoseconds since the Unix epoch.
    pub(crate) ctime_ns: i64,
}

impl Stat {
    /// Whether both are looks at one inode (which may have been given to another file in between).
    fn same_inode(&self, other: &Stat) -> bool {
        (self.dev, self.ino) == (other.dev, other.ino)
    }
}

/// How the content is stored in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Encoding {
    /// As it is.
    Plain,
    /// One or more zstd frames (RFC 8878); positions are those of the decompressed content.
    Zstd,
    /// Rows of a database; positions are those of a log of their changes, which exists only where it was captured. The path is
    /// the database's with the session's id below it.
    Rows,
    /// Events of a database, each a line that is only ever appended; positions are those of all lines put end to end. The path
    /// is as for [`Encoding::Rows`].
    Events,
}

impl Encoding {
    /// Whether the source is in a database, which has others too.
    pub(crate) fn is_in_database(self) -> bool {
        matches!(self, Encoding::Rows | Encoding::Events)
    }
}

/// Why a source cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// Nothing is at the path.
    #[error("{0} is gone")]
    Missing(String),
    /// What is there is not a transcript that we read: a link, a directory, a FIFO, a device, another user's file.
    #[error("{path} is {what}, not a regular file of this user")]
    Unfit {
        /// The path.
        path: String,
        /// What it is instead.
        what: &'static str,
    },
    /// A database whose writer does not pause: to be asked again.
    #[error("{0} is written to without a pause")]
    Busy(String),
    /// A database of which no private copy can be made now.
    #[error("{path} cannot be copied: {what}")]
    Uncopied {
        /// The path.
        path: String,
        /// Why not.
        what: String,
    },
    /// What was copied is not a database, or not one with the tables that it should have.
    #[error("{path} cannot be read as a database")]
    Database {
        /// The path.
        path: String,
        /// What SQLite says.
        #[source]
        source: rusqlite::Error,
    },
    /// What a database says of a session does not hold together.
    #[error("{path} cannot be read: {what}")]
    Damaged {
        /// The path.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// The operating system refuses.
    #[error("cannot read {path}")]
    Io {
        /// The path.
        path: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

impl SourceError {
    /// An error of the operating system about a path: that nothing is there is a case of its own.
    fn io(path: &Path, source: io::Error) -> SourceError {
        let path = path.display().to_string();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => SourceError::Missing(path),
            _ => SourceError::Io { path, source },
        }
    }

    fn uncopied(path: &Path, what: impl Into<String>) -> SourceError {
        SourceError::Uncopied { path: path.display().to_string(), what: what.into() }
    }

    fn damaged(path: &Path, what: impl Into<String>) -> SourceError {
        SourceError::Damaged { path: path.display().to_string(), what: what.into() }
    }

    fn database(path: &Path, source: rusqlite::Error) -> SourceError {
        SourceError::Database { path: path.display().to_string(), source }
    }

    fn unfit(path: &Path, what: &'static str) -> SourceError {
        SourceError::Unfit { path: path.display().to_string(), what }
    }
}

/// Everything before `offset` is captured. The rest says what the file looked like, so that a rewrite is noticed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// Position in the content, bytes.
    pub(crate) offset: u64,
    /// The file when it was last looked at; no later than the last byte that was compared or read.
    pub(crate) stat: Stat,
    /// Digests of what is before the offset.
    pub(crate) fingerprint: Fingerprint,
    /// Whether everything before the offset was read again and compared since the last capture.
    pub(crate) verified: bool,
    /// Bytes of an unfinished record after the offset, when the content was last read to its end; `None` until it was.
    pub(crate) rest: Option<u64>,
    /// Where it stands among events of a database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) events: Option<EventMark>,
}

/// The last event before a cursor: from it on, positions are known also when the events before it are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EventMark {
    /// Number of the first event that was captured.
    pub(crate) first: i64,
    /// Number of the last one that is whole before the cursor.
    pub(crate) last: i64,
    /// Position of its end.
    pub(crate) end: u64,
}

impl Cursor {
    /// Nothing is captured yet.
    pub(crate) fn start(stat: Stat) -> Cursor {
        Cursor {
            offset: 0,
            stat,
            fingerprint: Fingerprint::default(),
            verified: true,
            rest: None,
            events: None,
        }
    }
}
