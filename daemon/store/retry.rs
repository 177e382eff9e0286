//! Asks a store again when it was away for a moment, so that no caller has to.
//!
//! Knows which errors pass by themselves; knows nothing of the store. Every operation of a [`Store`] may be repeated. An
//! outage that lasts is the caller's: it keeps what it has and comes back.

use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::{Body, Conditions, ErrorKind, Listed, Object, Store, StoreError, Version};
use crate::durable::{Blocking, Disk};

/// Attempts in all. Together with the waits below it covers a store that restarts or sheds load for a moment.
const ATTEMPTS_MAX: u32 = 4;

/// No attempt begins this long after the first: the next interval's work is waiting.
const ELAPSED_MAX: Duration = Duration::from_secs(10);

/// The least wait before another attempt.
const BACKOFF_MIN: Duration = Duration::from_millis(200);

/// The longest wait before another attempt.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// The next wait is at most this many times the last one.
const BACKOFF_GROWTH: u32 = 3;

/// A store that is asked again.
#[derive(Debug)]
pub(crate) struct Retry<S> {
    inner: S,
    disk: Arc<dyn Disk>,
    blocking: Blocking,
    /// Spreads the attempts of many sessions, and of many machines.
    rng: Mutex<fastrand::Rng>,
}

impl<S: Store> Retry<S> {
    /// `disk` is where the files of [`Body::File`] are.
    pub(crate) fn new(
        inner: S,
        disk: Arc<dyn Disk>,
        blocking: Blocking,
        rng: fastrand::Rng,
    ) -> Retry<S> {
        Retry { inner, disk, blocking, rng: Mutex::new(rng) }
    }

    /// Runs `attempt` (which is told its number, from 1) until it succeeds, fails for good, or a limit is reached.
    async fn again<T, F, A>(&self, operation: &'static str, mut attempt: F) -> Result<T, StoreError>
    where
        F: FnMut(u32) -> A + Send,
        A: Future<Output = Result<T, StoreError>> + Send,
        T: Send,
    {
        let began = Instant::now();
        let mut wait = BACKOFF_MIN;
        let mut number = 1;
        loop {
            let error = match attempt(number).await {
                Err(error) if error.kind == ErrorKind::Unavailable => error,
                result => return result,
            };
            wait = self.next_wait(wait);
            if number == ATTEMPTS_MAX || began.elapsed() + wait > ELAPSED_MAX {
                return Err(error);
            }
            let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            tracing::debug!(operation, object = error.object, number, wait_ms, "asking again");
            tokio::time::sleep(wait).await;
            number += 1;
        }
    }

    /// Somewhere between the least wait and a multiple of the last one: grows on average, and never in step with others.
    fn next_wait(&self, last: Duration) -> Duration {
        let part = self.rng.lock().unwrap_or_else(PoisonError::into_inner).f64();
        let most = (last * BACKOFF_GROWTH).min(BACKOFF_MAX);
        BACKOFF_MIN + (most.saturating_sub(BACKOFF_MIN)).mul_f64(part)
    }

    async fn file_size(&self, path: PathBuf) -> Option<u64> {
        let disk = Arc::clone(&self.disk);
        // If it cannot be told, the put will say why.
        self.blocking.run(move || disk.size(&path).ok().flatten()).await
    }

    /// One attempt to put. If an earlier one took the file and its answer was lost, the file is gone and the object has its
    /// size (its name carries its digest, so it cannot be another): that is success.
    async fn put_once(
        &self,
        key: &str,
        body: Body,
        note: Option<&str>,
        number: u32,
        file_size: Option<u64>,
    ) -> Result<(), StoreError> {
        match self.inner.put(key, body, note).await {
            Err(error)
                if error.kind == ErrorKind::NotFound && number > 1 && file_size.is_some() =>
            {
                if self.inner.size(key).await? == file_size { Ok(()) } else { Err(error) }
            }
            result => result,
        }
    }
}

#[async_trait]
impl<S: Store> Store for Retry<S> {
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
        let size = match &body {
            Body::Bytes(_) => None,
            Body::File(path) => self.file_size(path.clone()).await,
        };
        self.again("put", |number| self.put_once(key, body.clone(), note, number, size)).await
    }

    /// After a lost answer the object may be the one that was put: the caller, who knows its content, looks again.
    async fn swap(&self, key: &str, body: Bytes, seen: Option<&Version>) -> Result<(), StoreError> {
        self.again("put", |_| self.inner.swap(key, body.clone(), seen)).await
    }

    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        self.again("get", |_| self.inner.get(key)).await
    }

    async fn persist(&self, key: &str) -> Result<(), StoreError> {
        self.again("sync", |_| self.inner.persist(key)).await
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
        self.again("size", |_| self.inner.size(key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        self.again("list", |_| self.inner.list(prefix)).await
    }

    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.again("list", |_| self.inner.list_folders(prefix)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.again("delete", |_| self.inner.delete(key)).await
    }
}

#[cfg(test)]
mod tests;
