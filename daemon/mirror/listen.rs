//! Telling listeners what goes on: which events there are, and when a new snapshot is worth telling.
//!
//! Without a listener everything here is one question to an empty list: no event is made, nothing is counted, no timer is set.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::feed::Feed;
use super::handle::{Answer, Counts, Measures};
use super::{Engine, answer};
use crate::api::{ErrorCode, Event, Phase, Problem, SessionState, Status};
use crate::part::SessionKey;

/// Listeners at a time: a person with some terminals, and a program or two.
const LISTENERS_MAX: usize = 16;

/// Least time between two snapshots: as often as a person can see. One looks at every session that is known.
const SNAPSHOT_EVERY: Duration = Duration::from_millis(250);

/// Problems of a snapshot. A directory of thousands of sessions that cannot be read is a problem for each of them, and a snapshot
/// is one line, which its reader holds whole.
pub(super) const PROBLEMS_MAX: usize = 50;

/// A listener that has read nothing for so long does not listen; its place is given to others.
const UNREAD_MAX: Duration = Duration::from_secs(600);

/// Who listens, and what they were told last.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    feeds: Vec<Arc<Feed>>,
    /// Something happened since the last snapshot.
    news: bool,
    /// No snapshot before this.
    next_at: Option<Instant>,
    /// The last snapshot, without what changes by itself.
    told: Option<Status>,
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.feeds.iter().for_each(|feed| feed.end());
    }
}

impl Listeners {
    /// Drops those that went away, or do not read.
    fn tidy(&mut self) {
        let unread = |feed: &Feed| feed.missed_since().is_some_and(|at| at.elapsed() > UNREAD_MAX);
        self.feeds.retain(|feed| {
            let stays = Arc::strong_count(feed) > 1 && !unread(feed);
            if !stays {
                feed.end();
            }
            stays
        });
    }

    fn push(&mut self, event: &Event) {
        self.tidy();
        self.feeds.iter().for_each(|feed| feed.push(event.clone()));
    }
}

impl Engine {
    /// A new listener; what it gets first is a snapshot.
    pub(super) fn listen(&mut self) -> Answer<Arc<Feed>> {
        self.listeners.tidy();
        if self.listeners.feeds.len() >= LISTENERS_MAX {
            return Err(answer::error(ErrorCode::Unavailable, "too many listeners at once"));
        }
        let feed = Arc::new(Feed::default());
        feed.push(Event::Status { status: Box::new(snapshot(self.status())) });
        self.listeners.feeds.push(feed.clone());
        Ok(feed)
    }

    /// Tells of something if anybody listens.
    pub(super) fn tell_listeners(&mut self, event: impl FnOnce(&Engine) -> Event) {
        if self.listeners.feeds.is_empty() {
            return;
        }
        let event = event(self);
        self.listeners.push(&event);
        self.listeners.news = true;
    }

    pub(super) fn tell_found(&mut self, key: &SessionKey) {
        self.tell_listeners(|engine| Event::Found {
            at: engine.now_text(),
            harness: key.harness().to_owned(),
            id: key.id().to_owned(),
        });
    }

    pub(super) fn tell_problem(&mut self, object: &str, problem: &Problem) {
        self.tell_listeners(|_| Event::Problem {
            object: object.to_owned(),
            problem: problem.clone(),
        });
    }

    pub(super) fn tell_problem_over(&mut self, object: &str, code: &str) {
        self.tell_listeners(|engine| Event::ProblemOver {
            at: engine.now_text(),
            object: object.to_owned(),
            code: code.to_owned(),
        });
    }

    /// Another phase of life begins.
    pub(super) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.tell_listeners(|engine| Event::Phase { at: engine.now_text(), phase });
    }

    /// Something happened that a snapshot may show.
    pub(super) fn note_news(&mut self) {
        self.listeners.news = !self.listeners.feeds.is_empty();
    }

    /// Tells a new snapshot if one is due and says something new.
    pub(super) fn tell_status(&mut self) {
        if !self.listeners.news || self.listeners.next_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.listeners.news = false;
        self.listeners.next_at = Some(Instant::now() + SNAPSHOT_EVERY);
        let status = snapshot(self.status());
        let lasting = lasting(&status);
        if self.listeners.told.as_ref() != Some(&lasting) {
            self.listeners.told = Some(lasting);
            self.listeners.push(&Event::Status { status: Box::new(status) });
        }
    }

    /// When a snapshot is due, if there is anything to say.
    pub(super) fn snapshot_due(&self) -> Option<Instant> {
        self.listeners.next_at.filter(|_| self.listeners.news)
    }

    /// What monitoring wants to know.
    pub(super) fn measures(&self) -> Measures {
        let states = [
            SessionState::Live,
            SessionState::Idle,
            SessionState::Ended,
            SessionState::Gone,
            SessionState::Stopped,
            SessionState::Superseded,
        ];
        let mut sessions: Vec<(SessionState, u64)> = states.map(|state| (state, 0)).into();
        for (key, record) in &self.state.state().sessions {
            let state = self.session_state(key, record);
            for (_, count) in sessions.iter_mut().filter(|(known, _)| *known == state) {
                *count += 1;
            }
        }
        let asked = self.tools.tally.requests();
        let kinds = [
            ("put", asked.puts),
            ("get", asked.gets),
            ("list", asked.lists),
            ("delete", asked.deletes),
        ];
        Measures {
            status: self.status(),
            sessions,
            requests: kinds.into(),
            failures: asked.failures,
            counts: Counts {
                stored_parts: self.summary.parts,
                stored_bytes: self.summary.bytes,
                scans: self.scan_done,
                ..self.counts.clone()
            },
            listeners: self.listeners.feeds.len() as u64,
        }
    }
}

/// A status as listeners get it: of its problems as many as fit, and how many more there are.
fn snapshot(mut status: Status) -> Status {
    let left_out = status.problems.len().saturating_sub(PROBLEMS_MAX);
    status.problems.truncate(PROBLEMS_MAX);
    status.problems_left_out += left_out as u64;
    status
}

/// A snapshot without what changes while nothing happens.
fn lasting(status: &Status) -> Status {
    let mut status = status.clone();
    status.uptime_seconds = 0;
    status.pending.oldest_seconds = None;
    status
}
