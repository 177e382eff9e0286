//! Where objects go: the [`Store`] trait, its errors, and the stores themselves.
//!
//! Knows keys and bytes; knows neither parts nor state. Keys are relative to the project (`sessions/codex/…/meta.json`).

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncRead;

/// An object store, as small as the recorder needs it. Every method may be called again after an error.
#[async_trait]
pub(crate) trait Store: Send + Sync + fmt::Debug {
    /// Scheme, endpoint, bucket and project in one string, without credentials. State belongs to exactly one of these.
    fn identity(&self) -> &str;

    /// Whether a put costs no request: manifests then follow their parts at once.
    fn is_local(&self) -> bool;

    /// Stores an object durably under `key`, replacing what is there. When it returns, the object survives a power loss.
    async fn put(&self, key: &str, body: Body) -> Result<(), StoreError>;

    /// Opens an object for reading. Fails with [`ErrorKind::NotFound`] when there is none.
    async fn get(&self, key: &str) -> Result<Object, StoreError>;

    /// Size in bytes of the object, `None` when there is none.
    async fn size(&self, key: &str) -> Result<Option<u64>, StoreError>;

    /// All objects whose key starts with `prefix`, in ascending order of key. A failure is never an empty list.
    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError>;

    /// The names directly below `prefix` (which ends in `/`) that have objects below them, ascending, without `/`.
    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError>;

    /// Deletes an object; that there is none is no error.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;
}

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
    /// Size in bytes.
    pub(crate) size: u64,
    /// Its bytes.
    pub(crate) reader: Pin<Box<dyn AsyncRead + Send>>,
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
    /// Not allowed: a person has to change rights or credentials.
    Denied,
    /// The key or the request is not acceptable; asking again will not help.
    Invalid,
    /// No room: a person has to make some; asked again slowly.
    Full,
    /// Away or overloaded; asked again with back-off.
    Unavailable,
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
