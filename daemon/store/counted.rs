//! Counts what a store is asked, by kind, and how much of it fails: so that what a bucket costs can be seen.
//!
//! Counts operations of the [`Store`] trait as they reach the store, each try of a retry for itself; a listing of many pages
//! is one. Knows nothing of what is asked for.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Body, Conditions, ErrorKind, Listed, Object, Store, StoreError, Version};

/// What was asked since the start.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    puts: AtomicU64,
    gets: AtomicU64,
    lists: AtomicU64,
    deletes: AtomicU64,
    failures: AtomicU64,
}

/// A [`Tally`] as it was at some moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Requests {
    /// Puts of parts and manifests.
    pub(crate) puts: u64,
    /// Gets, and questions for a size.
    pub(crate) gets: u64,
    /// Listings.
    pub(crate) lists: u64,
    /// Deletes.
    pub(crate) deletes: u64,
    /// Those of all these that failed, except by finding nothing or another version.
    pub(crate) failures: u64,
}

impl Tally {
    /// So far.
    pub(crate) fn requests(&self) -> Requests {
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Requests {
            puts: now(&self.puts),
            gets: now(&self.gets),
            lists: now(&self.lists),
            deletes: now(&self.deletes),
            failures: now(&self.failures),
        }
    }
}

/// A store whose requests are counted. Below a retry, so that each try counts.
#[derive(Debug)]
pub(crate) struct Counted<S> {
    inner: S,
    tally: Arc<Tally>,
}

impl<S: Store> Counted<S> {
    /// Counts into a tally that others may read.
    pub(crate) fn new(inner: S, tally: Arc<Tally>) -> Counted<S> {
        Counted { inner, tally }
    }

    async fn count<T>(
        &self,
        kind: impl Fn(&Tally) -> &AtomicU64,
        request: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        kind(&self.tally).fetch_add(1, Ordering::Relaxed);
        let answer = request.await;
        if answer
            .as_ref()
            .is_err_and(|e| !matches!(e.kind, ErrorKind::NotFound | ErrorKind::Changed))
        {
            self.tally.failures.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }
}

#[async_trait]
impl<S: Store> Store for Counted<S> {
    fn identity(&self) -> &str {
        self.inner.identity()
    }

    fn is_local(&self) -> bool {
        self.inner.is_local()
    }

    fn conditions(&self) -> Conditions {
        self.inner.conditions()
    }

    async fn put(&self, key: &str, body: Body, note: Option<&str>) -> Result<(), StoreError> {
        self.count(|t| &t.puts, self.inner.put(key, body, note)).await
    }

    async fn swap(&self, key: &str, body: Bytes, seen: Option<&Version>) -> Result<(), StoreError> {
        self.count(|t| &t.puts, self.inner.swap(key, body, seen)).await
    }

    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        self.count(|t| &t.gets, self.inner.get(key)).await
    }

    /// No request where it matters what requests cost: a remote store shows only what is durable.
    async fn persist(&self, key: &str) -> Result<(), StoreError> {
        self.inner.persist(key).await
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
        self.count(|t| &t.gets, self.inner.size(key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        self.count(|t| &t.lists, self.inner.list(prefix)).await
    }

    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.count(|t| &t.lists, self.inner.list_folders(prefix)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.count(|t| &t.deletes, self.inner.delete(key)).await
    }
}
