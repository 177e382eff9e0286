//! Whether the mirror's loop comes round, for whoever has to know that it is alive.
//!
//! Counts turns and lets somebody ask for one; refuses to know what is done in a turn.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// The turns of the mirror's loop.
#[derive(Debug)]
pub(crate) struct Pulse {
    turns: AtomicU64,
    began: Instant,
    /// Milliseconds from the beginning to the last turn.
    turned_at: AtomicU64,
    turned: Notify,
    asked: Notify,
}

impl Default for Pulse {
    fn default() -> Pulse {
        Pulse {
            turns: AtomicU64::default(),
            began: Instant::now(),
            turned_at: AtomicU64::default(),
            turned: Notify::default(),
            asked: Notify::default(),
        }
    }
}

impl Pulse {
    /// Waits for a turn that ends after this was called. An idle loop is woken for it; one that hangs lets this wait for ever.
    pub(crate) async fn next_turn(&self) {
        let mut turned = pin!(self.turned.notified());
        // From here on a turn counts, also one that ends before we wait.
        turned.as_mut().enable();
        self.asked.notify_one();
        turned.await;
    }

    /// Turns so far.
    pub(crate) fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// How long ago the last turn was. An idle loop turns seldom: only of one that was asked this says that it hangs.
    pub(crate) fn still_for(&self) -> Duration {
        self.began
            .elapsed()
            .saturating_sub(Duration::from_millis(self.turned_at.load(Ordering::Relaxed)))
    }

    /// The loop has started what was due.
    pub(crate) fn turn(&self) {
        self.turns.fetch_add(1, Ordering::Relaxed);
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.turned_at.store(now, Ordering::Relaxed);
        self.turned.notify_waiters();
    }

    /// Somebody wants to see a turn.
    pub(crate) async fn asked(&self) {
        self.asked.notified().await;
    }
}
