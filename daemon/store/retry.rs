//! Asks a store again when it was away for a moment, so that no caller has to.
//!
//! Knows which errors pass by themselves; knows nothing of the store. Every operation of a [`Store`] may be repeated, and a
//! download goes on where it was cut off. An outage that lasts is the caller's: it keeps what it has and comes back. Tries are
//! saved up from answers, so that a store that answers nothing is soon asked no more than its callers ask.

use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use super::pace::{Pace, Slot};
use super::resume::{Again, Resuming};
use super::{Body, Conditions, ErrorKind, Listed, Object, Store, StoreError, Version};
use crate::durable::{Blocking, Disk};

/// Attempts in all. Together with the waits below it covers a store that restarts or sheds load for a moment; where a third
/// of all requests fails, one operation in 700 does.
const ATTEMPTS_MAX: u32 = 6;

/// No attempt begins this long after the first: the next interval's work is waiting.
const ELAPSED_MAX: Duration = Duration::from_secs(10);

/// Second and later attempts that may be made without an answer in between; each answer allows one more. In an outage they are
/// used up within seconds: what asks a dead store six times for everything keeps it from coming back.
const SAVED_MAX: u32 = 32;

/// The least wait before another attempt: most often a connection was cut, and the next one is fine.
const BACKOFF_MIN: Duration = Duration::from_millis(50);

/// The least wait before another attempt where the store asked for fewer.
const OVERLOADED_MIN: Duration = Duration::from_millis(200);

/// The longest wait before another attempt.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// The next wait is at most this many times the last one.
const BACKOFF_GROWTH: u32 = 3;

/// A store that is asked again.
#[derive(Debug)]
pub(crate) struct Retry<S> {
    asked: Arc<Asked<S>>,
    disk: Arc<dyn Disk>,
    blocking: Blocking,
}

/// The store, and what decides how it is asked. Downloads hold it too: they may have to ask again.
#[derive(Debug)]
struct Asked<S> {
    inner: S,
    pace: Pace,
    /// Attempts beyond the first that may be made now.
    saved: AtomicU32,
    /// Spreads the attempts of many sessions, and of many machines.
    rng: Mutex<fastrand::Rng>,
}

impl<S: Store> Asked<S> {
    /// Runs `attempt` (which is told its number, from 1) until it succeeds, fails for good, or a limit is reached.
    async fn again<T, F, A>(&self, operation: &'static str, mut attempt: F) -> Result<T, StoreError>
    where
        F: FnMut(u32) -> A + Send,
        A: Future<Output = Result<T, StoreError>> + Send,
        T: Send,
    {
        let began = Instant::now();
        let mut wait = Duration::ZERO;
        let mut number = 1;
        loop {
            let result = {
                let slot = self.pace.slot().await;
                let result = attempt(number).await;
                // With the slot still taken: what was under way together is what was too much.
                self.note(&result, &slot);
                result
            };
            let error = match result {
                Err(error) if error.kind.passes() => error,
                result => return result,
            };
            wait = self.next_wait(wait, error.kind);
            let late = began.elapsed() + wait > ELAPSED_MAX;
            if number == ATTEMPTS_MAX || late || !self.take_saved() {
                return Err(error);
            }
            let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            tracing::debug!(operation, object = error.object, number, wait_ms, "asking again");
            tokio::time::sleep(wait).await;
            number += 1;
        }
    }

    /// What an attempt says of the store. Refusals are answers too.
    fn note<T>(&self, result: &Result<T, StoreError>, slot: &Slot<'_>) {
        match result {
            Err(error) if error.kind == ErrorKind::Overloaded => self.pace.slow_down(slot),
            Err(error) if error.kind.passes() => {}
            _ => {
                self.pace.answered();
                let more = |saved: u32| Some(saved.saturating_add(1).min(SAVED_MAX));
                let _ = self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
            }
        }
    }

    fn take_saved(&self) -> bool {
        let less = |saved: u32| saved.checked_sub(1);
        self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    /// Somewhere between the least wait and a multiple of the last one: grows on average, and never in step with others.
    fn next_wait(&self, last: Duration, kind: ErrorKind) -> Duration {
        let part = self.rng.lock().unwrap_or_else(PoisonError::into_inner).f64();
        let least = if kind == ErrorKind::Overloaded { OVERLOADED_MIN } else { BACKOFF_MIN };
        let most = (last.max(least) * BACKOFF_GROWTH).min(BACKOFF_MAX);
        least + (most.saturating_sub(least)).mul_f64(part)
    }

    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        self.again("get", |_| self.inner.get(key)).await
    }

    /// As [`Asked::get`], after a wait: a download was just cut off.
    async fn get_again(&self, key: &str) -> Result<Object, StoreError> {
        let wait = self.next_wait(Duration::ZERO, ErrorKind::Unavailable);
        tokio::time::sleep(wait).await;
        self.get(key).await
    }
}

impl<S: Store> Retry<S> {
    /// `disk` is where the files of [`Body::File`] are.
    pub(crate) fn new(
        inner: S,
        disk: Arc<dyn Disk>,
        blocking: Blocking,
        rng: fastrand::Rng,
    ) -> Retry<S> {
        let saved = AtomicU32::new(SAVED_MAX);
        let asked = Asked { inner, pace: Pace::new(), saved, rng: Mutex::new(rng) };
        Retry { asked: Arc::new(asked), disk, blocking }
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
        match self.asked.inner.put(key, body, note).await {
            Err(error)
                if error.kind == ErrorKind::NotFound && number > 1 && file_size.is_some() =>
            {
                if self.asked.inner.size(key).await? == file_size { Ok(()) } else { Err(error) }
            }
            result => result,
        }
    }
}

#[async_trait]
impl<S: Store + 'static> Store for Retry<S> {
    fn identity(&self) -> &str {
        self.asked.inner.identity()
    }

    fn is_local(&self) -> bool {
        self.asked.inner.is_local()
    }

    fn conditions(&self) -> Conditions {
        self.asked.inner.conditions()
    }

    async fn put(&self, key: &str, body: Body, note: Option<&str>) -> Result<(), StoreError> {
        let size = match &body {
            Body::Bytes(_) => None,
            Body::File(path) => self.file_size(path.clone()).await,
        };
        self.asked.again("put", |number| self.put_once(key, body.clone(), note, number, size)).await
    }

    /// After a lost answer the object may be the one that was put: the caller, who knows its content, looks again.
    async fn swap(&self, key: &str, body: Bytes, seen: Option<&Version>) -> Result<(), StoreError> {
        self.asked.again("put", |_| self.asked.inner.swap(key, body.clone(), seen)).await
    }

    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        let object = self.asked.get(key).await?;
        let (asked, key) = (Arc::clone(&self.asked), key.to_owned());
        let again: Again = Arc::new(move || {
            let (asked, key) = (Arc::clone(&asked), key.clone());
            Box::pin(async move { asked.get_again(&key).await })
        });
        Ok(Resuming::object(object, again))
    }

    async fn persist(&self, key: &str) -> Result<(), StoreError> {
        self.asked.again("sync", |_| self.asked.inner.persist(key)).await
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
        self.asked.again("size", |_| self.asked.inner.size(key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        self.asked.again("list", |_| self.asked.inner.list(prefix)).await
    }

    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.asked.again("list", |_| self.asked.inner.list_folders(prefix)).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.asked.again("delete", |_| self.asked.inner.delete(key)).await
    }
}

#[cfg(test)]
mod pace_tests;
#[cfg(test)]
mod tests;
