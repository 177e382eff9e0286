//! Reading a session's source: bounded chunks, no descriptor held between flushes, rewrites noticed.
//!
//! Knows files and their content; knows nothing of redaction, parts or stores. What it learns about a file is kept by its
//! caller as a [`Cursor`], which is opaque to all but this module.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Read-only access to files under an agent's directory: the one door through which sources are opened.
pub(crate) trait Files: Send + Sync + std::fmt::Debug {
    /// Opens a source for reading: `O_NOFOLLOW|O_NONBLOCK|O_CLOEXEC`, regular, owned by this user.
    fn open(&self, path: &Path) -> Result<Box<dyn SourceFile>, SourceError>;
    /// What is at the path, without opening it and without following a link.
    fn stat(&self, path: &Path) -> Result<Stat, SourceError>;
}

/// An open source.
pub(crate) trait SourceFile: Send {
    /// Identity and size now.
    fn stat(&self) -> io::Result<Stat>;
    /// Reads at an offset in bytes; 0 at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
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

/// How the content is stored in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Encoding {
    /// As it is.
    Plain,
    /// One or more zstd frames (RFC 8878); positions are those of the decompressed content.
    Zstd,
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

/// Everything before `offset` is captured. The rest says what the file looked like, so that a rewrite is noticed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    /// Position in the content, bytes.
    pub(crate) offset: u64,
    /// The file when it was last looked at.
    pub(crate) stat: Stat,
}
