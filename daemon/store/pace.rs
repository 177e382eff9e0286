//! How much a store is asked at a time: less as soon as it asks for less, more again while it answers.
//!
//! Knows that requests begin, and how they end; refuses to know what they are. Waiting before another try is the retry's.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

/// Requests at a time while nobody complains: more than the mirror and the transport ever have under way.
const MOST: f64 = 64.0;

/// However much a store complains: one long upload must not hold up everything else.
const LEAST: f64 = 2.0;

/// What is left of the requests at a time when the store asks for fewer.
const CUT: f64 = 0.5;

/// How much more is asked at a time after as many answers as are asked at a time: slowly, since each step too far is turned away.
const GROWTH: f64 = 0.5;

/// The requests that a store is asked at a time.
#[derive(Debug)]
pub(super) struct Pace {
    now: Mutex<Now>,
    freed: Notify,
}

#[derive(Debug)]
struct Now {
    limit: f64,
    under_way: u32,
    cut_at: Option<Instant>,
}

/// One request that may be made; dropped when it has ended.
#[derive(Debug)]
pub(super) struct Slot<'a> {
    pace: &'a Pace,
    began: Instant,
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.pace.now().under_way -= 1;
        self.pace.freed.notify_one();
    }
}

impl Pace {
    pub(super) fn new() -> Pace {
        let now = Now { limit: MOST, under_way: 0, cut_at: None };
        Pace { now: Mutex::new(now), freed: Notify::new() }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until one more request may be made.
    pub(super) async fn slot(&self) -> Slot<'_> {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Before the look: what is freed between look and wait must not be missed.
            freed.as_mut().enable();
            {
                let mut now = self.now();
                if f64::from(now.under_way) < now.limit.floor() {
                    now.under_way += 1;
                    return Slot { pace: self, began: Instant::now() };
                }
            }
            freed.await;
        }
    }

    /// A request was answered: a little more may be asked.
    pub(super) fn answered(&self) {
        let mut now = self.now();
        let before = now.limit.floor();
        now.limit = (now.limit + GROWTH / now.limit).min(MOST);
        if now.limit.floor() > before {
            self.freed.notify_one();
        }
    }

    /// The store asked for fewer requests. Those that were under way together are turned away together: what began before the
    /// last complaint was heard is no other one.
    pub(super) fn slow_down(&self, slot: &Slot<'_>) {
        let mut now = self.now();
        if now.cut_at.is_some_and(|at| slot.began <= at) {
            return;
        }
        now.cut_at = Some(Instant::now());
        // What was allowed and not used has no part in what was too much.
        now.limit = (now.limit.min(f64::from(now.under_way)) * CUT).max(LEAST);
    }

    /// Requests at a time now.
    #[cfg(test)]
    pub(super) fn limit(&self) -> f64 {
        self.now().limit
    }
}
