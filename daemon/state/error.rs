//! Why a state cannot be used. A damaged one is no error: it is set aside and rebuilt.

use std::io;
use std::path::PathBuf;

use super::VERSION;

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    /// Written by a newer program.
    #[error("{path} has version {found}, this program knows {VERSION}")]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: u64,
    },
    /// The operating system refuses.
    #[error("cannot {operation} {path}")]
    Io {
        /// `read`, `write`, `set aside`.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
}
