//! What one listener is told: a bounded queue of events, and the newest status.
//!
//! Owns what happens when nobody reads; refuses to know what is worth telling. The engine puts in and never waits; the listener
//! takes out at its own pace.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::api::Event;

/// Events that wait for a listener: some seconds of a first start that stores thousands of parts. More are counted.
pub(super) const EVENTS_MAX: usize = 256;

/// The way from the engine to one listener.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    queue: Mutex<Queue>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Event>,
    /// Events that had no room. As long as the listener was not told of them nothing more is queued, so that what was left
    /// out is in one place.
    missed: u64,
    missed_since: Option<Instant>,
    /// The newest snapshot, which no crowd of events can push out. It comes after the events, being of after them.
    status: Option<Event>,
    ended: bool,
}

impl Feed {
    /// Tells of something; if there is no room, that there was something.
    pub(super) fn push(&self, event: Event) {
        let mut queue = self.lock();
        if matches!(event, Event::Status { .. }) {
            queue.status = Some(event);
        } else if queue.missed > 0 || queue.events.len() >= EVENTS_MAX {
            queue.missed += 1;
            queue.missed_since.get_or_insert_with(Instant::now);
        } else {
            queue.events.push_back(event);
        }
        drop(queue);
        self.news.notify_one();
    }

    /// Nothing more will be told.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.news.notify_one();
    }

    /// Since when there has been no room.
    pub(super) fn missed_since(&self) -> Option<Instant> {
        self.lock().missed_since
    }

    /// The next event; `None`: the daemon stops. Loses nothing when it is cancelled.
    pub(crate) async fn next(&self) -> Option<Event> {
        loop {
            {
                let mut queue = self.lock();
                if let Some(event) = queue.take() {
                    return Some(event);
                }
                if queue.ended {
                    return None;
                }
            }
            self.news.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nobody panics while holding it; what it guards is whole in any case.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn take(&mut self) -> Option<Event> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        if self.missed > 0 {
            self.missed_since = None;
            return Some(Event::Missed { events: std::mem::take(&mut self.missed) });
        }
        self.status.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(seq: u32) -> Event {
        let [at, harness, id] = ["", "codex", "a"].map(str::to_owned);
        Event::Stored { at, harness, id, seq, bytes: 1 }
    }

    #[tokio::test]
    async fn a_slow_listener_is_told_in_order_how_much_it_missed() {
        let feed = Feed::default();
        let many = EVENTS_MAX as u32;
        (0..many + 5).for_each(|seq| feed.push(stored(seq)));
        assert!(feed.missed_since().is_some());
        for seq in 0..many {
            assert_eq!(feed.next().await, Some(stored(seq)));
        }
        feed.push(stored(many + 5));
        assert_eq!(feed.next().await, Some(Event::Missed { events: 6 }));
        assert_eq!(feed.missed_since(), None);
        feed.push(stored(7));
        assert_eq!(feed.next().await, Some(stored(7)));
    }

    #[tokio::test]
    async fn a_feed_that_ends_gives_first_what_it_has() {
        let feed = std::sync::Arc::new(Feed::default());
        feed.push(stored(1));
        feed.end();
        assert_eq!(feed.next().await, Some(stored(1)));
        assert_eq!(feed.next().await, None);
        let waiting = std::sync::Arc::new(Feed::default());
        let reader = tokio::spawn({
            let feed = waiting.clone();
            async move { feed.next().await }
        });
        tokio::task::yield_now().await;
        waiting.end();
        assert_eq!(reader.await.unwrap(), None);
    }
}
