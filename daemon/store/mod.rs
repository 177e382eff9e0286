//! Where objects go: the [`Store`] trait, its errors, and the stores themselves.
//!
//! Knows keys and bytes; knows neither parts nor state. Keys are relative to the project (`sessions/codex/…/meta.json`).

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncRead;

mod counted;
mod fs;
#[cfg(test)]
pub(crate) mod memory;
mod pace;
mod resume;
mod retry;
mod s3;
#[cfg(test)]
mod suite;

pub(crate) use counted::{Counted, Tally};
pub(crate) use fs::FsStore;
pub(crate) use retry::Retry;
pub use s3::About;
pub(crate) use s3::{S3Settings, S3Store, Signer, Transport, credentials, is_loopback};

/// Longest key that every store takes: the limit of S3.
const KEY_BYTES_MAX: usize = 1024;

/// Longest name between two slashes that every store takes: the limit of file systems.
const SEGMENT_BYTES_MAX: usize = 255;

/// An object store, as small as the recorder needs it. Every method may be called again after an error.
#[async_trait]
pub(crate) trait Store: Send + Sync + fmt::Debug {
    /// Scheme, endpoint, bucket and project in one string, without credentials. State belongs to exactly one of these.
    fn identity(&self) -> &str;

    /// Whether a put costs no request: manifests then follow their parts at once.
    fn is_local(&self) -> bool;

    /// Whether a condition on a put means anything here.
    fn conditions(&self) -> Conditions;

    /// Stores an object durably under `key`, replacing what is there. When it returns, the object survives a power loss. The
    /// note is a few printable characters that come back with the object where the store keeps such things (a local one does
    /// not): a hint, never the only place of a fact.
    async fn put(&self, key: &str, body: Body, note: Option<&str>) -> Result<(), StoreError>;

    /// Stores an object as [`Store::put`] does, but only if `key` still holds the version that `seen` was got with (`None`:
    /// only if it holds nothing). Fails with [`ErrorKind::Changed`] if not. Where conditions mean nothing the put is
    /// unconditional, so whoever swaps has just got the object and notices another writer by what it finds the next time.
    async fn swap(&self, key: &str, body: Bytes, seen: Option<&Version>) -> Result<(), StoreError>;

    /// Opens an object for reading. Fails with [`ErrorKind::NotFound`] when there is none.
    async fn get(&self, key: &str) -> Result<Object, StoreError>;

    /// Makes sure that an object that is there survives a power loss. A former process may have died between a put's effect
    /// and its durability, so whatever is found and not known from an own put goes through here before anything depends on
    /// it. A remote store shows only what is durable.
    async fn persist(&self, key: &str) -> Result<(), StoreError> {
        let _ = key;
        Ok(())
    }

    /// Size in bytes of the object, `None` when there is none.
    async fn size(&self, key: &str) -> Result<Option<u64>, StoreError>;

    /// All objects whose key starts with `prefix`, in ascending order of key. A failure is never an empty list.
    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError>;

    /// The names directly below `prefix` (which ends in `/`) that have objects below them, ascending, without `/`.
    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError>;

    /// Deletes an object; that there is none is no error.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;
}

/// Whether a store does what a condition on a put asks for. Found out by trying, never by the name of the store: some answer
/// 200 to a condition that does not hold, and overwrite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Conditions {
    /// Not tried yet.
    Unknown,
    /// A put whose condition did not hold was refused.
    Honoured,
    /// A put whose condition did not hold was done.
    Ignored,
    /// Every put with a condition is refused, or there is no such thing here.
    Unsupported,
}

/// Which version of an object was got: an ETag. Opaque to all but its store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version(pub(crate) String);

/// What is put.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A durable file of ours. A store on the same file system takes it by rename; after success the caller removes what may be left.
    File(PathBuf),
}

/// An object that is being read.
pub(crate) struct Object {
    /// Its bytes.
    pub(crate) reader: Pin<Box<dyn AsyncRead + Send>>,
    /// What [`Store::swap`] takes; `None` where the store tells no versions.
    pub(crate) version: Option<Version>,
    /// The note of its put, where the store keeps one.
    pub(crate) note: Option<String>,
}

/// An entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Key relative to the project.
    pub(crate) key: String,
    /// Size in bytes.
    pub(crate) size: u64,
}

/// What went wrong, by what the caller can do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// No such object.
    NotFound,
    /// The object is another than the one that was seen.
    Changed,
    /// Not allowed: a person has to change rights or credentials.
    Denied,
    /// The key or the request is not acceptable; asking again will not help.
    Invalid,
    /// No room: a person has to make some; asked again slowly.
    Full,
    /// Away, or its answer was lost; asked again with back-off.
    Unavailable,
    /// It asks for fewer requests; asked again later, and with fewer at a time.
    Overloaded,
}

impl ErrorKind {
    /// Whether time alone mends it.
    pub(crate) fn passes(self) -> bool {
        matches!(self, ErrorKind::Unavailable | ErrorKind::Overloaded)
    }
}

/// A failed operation on a store.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {object}")]
pub(crate) struct StoreError {
    /// What the caller can do.
    pub(crate) kind: ErrorKind,
    /// `put`, `get`, `list`, …
    pub(crate) operation: &'static str,
    /// Key or prefix.
    pub(crate) object: String,
    /// The reason.
    #[source]
    pub(crate) source: Box<dyn std::error::Error + Send + Sync>,
}

impl StoreError {
    /// An error with its cause.
    pub(crate) fn new(
        kind: ErrorKind,
        operation: &'static str,
        object: &str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> StoreError {
        StoreError { kind, operation, object: object.to_owned(), source: source.into() }
    }

    fn invalid(operation: &'static str, object: &str, reason: &'static str) -> StoreError {
        // What is not a key may be anything, and it may end on somebody's terminal.
        let shown: String = object.escape_debug().take(SEGMENT_BYTES_MAX).collect();
        StoreError::new(ErrorKind::Invalid, operation, &shown, reason)
    }
}

/// Whether every store takes this key, and none takes it for a path to elsewhere. Names that begin with a dot are left to
/// temporary files and to what file managers leave behind.
pub(crate) fn check_key(operation: &'static str, key: &str) -> Result<(), StoreError> {
    flaw_of(key).map_or(Ok(()), |flaw| Err(StoreError::invalid(operation, key, flaw)))
}

/// As [`check_key`], for the start of a key: it may end anywhere, after a slash too, and may be empty.
pub(crate) fn check_prefix(operation: &'static str, prefix: &str) -> Result<(), StoreError> {
    match prefix.strip_suffix('/').unwrap_or(prefix) {
        "" if prefix.is_empty() => Ok(()),
        key => {
            flaw_of(key).map_or(Ok(()), |flaw| Err(StoreError::invalid(operation, prefix, flaw)))
        }
    }
}

fn flaw_of(key: &str) -> Option<&'static str> {
    if key.len() > KEY_BYTES_MAX {
        return Some("the key is too long");
    }
    if key.chars().any(char::is_control) {
        return Some("the key has a control character");
    }
    key.split('/').find_map(|name| match name {
        "" => Some("the key has an empty name"),
        _ if name.starts_with('.') => Some("a name in the key begins with a dot"),
        _ if name.len() > SEGMENT_BYTES_MAX => Some("a name in the key is too long"),
        _ => None,
    })
}
