//! What an agent's hook says: one of its sessions has news, by its id or by the path of its transcript.
//!
//! Owns what of that counts, and how often. What a hook says is hostile: a path is compared with what is known and never opened,
//! an id counts only whole. What is not known yet is left to a flush of everything, whose scan finds it where sessions are.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::Engine;
use super::handle::Hint;
use super::wait::Reply;
use crate::api::{Flushing, Hinted, Phase};
use crate::part::SessionKey;

/// Between two flushes of everything that hooks ask for. Each walks all roots, and a hook may run at every step of an agent.
const HINTED_FLUSH_EVERY: Duration = Duration::from_secs(5);

/// Flushes of everything that hooks asked for.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// When the last one began.
    began: Option<Instant>,
    /// When the next one begins.
    due: Option<Instant>,
}

impl Asked {
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    fn ask(&mut self) {
        let now = Instant::now();
        let at = self.began.map_or(now, |began| now.max(began + HINTED_FLUSH_EVERY));
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }
}

impl Engine {
    /// Begins what a hook's words ask for, and says what that is.
    pub(super) fn hint(&mut self, hint: &Hint) -> Hinted {
        let mut sessions = BTreeSet::new();
        let mut unknown_path = false;
        for path in &hint.paths {
            match self.by_path.get(path) {
                Some(key) => drop(sessions.insert(key.clone())),
                None => unknown_path |= self.may_be_transcript(path),
            }
        }
        for id in &hint.sessions {
            sessions.extend(self.of_agent(id));
        }
        let unnamed = hint.paths.is_empty() && sessions.is_empty();
        sessions.retain(|key| self.is_followed(key));
        let flushing = if unknown_path || unnamed {
            self.hinted.ask();
            Flushing::All
        } else if sessions.is_empty() {
            Flushing::Nothing
        } else {
            Flushing::Sessions
        };
        for key in &sessions {
            // At most one for each session, however often its hook runs.
            let replaced = |only: Option<&SessionKey>, reply: &Reply| {
                only == Some(key) && matches!(reply, Reply::Nobody)
            };
            self.waiters.retain(|waiter| !replaced(waiter.only.as_ref(), &waiter.reply));
            self.mark_dirty(key);
            self.wait_for(Some(key.clone()), Reply::Nobody);
        }
        Hinted { flushing, sessions: sessions.iter().map(ToString::to_string).collect() }
    }

    /// Begins the flush of everything that a hook asked for, when it is due and the one before it is done.
    pub(super) fn start_hinted(&mut self) {
        let now = Instant::now();
        let due = self.hinted.due.is_some_and(|due| due <= now);
        let running = self
            .waiters
            .iter()
            .any(|waiter| waiter.only.is_none() && matches!(waiter.reply, Reply::Nobody));
        if due && !running && self.phase != Phase::Stopping {
            self.hinted = Asked { began: Some(now), due: None };
            self.flush_all(None);
        }
    }

    /// Whether a path that is not known is where sessions are, and not one that the rules leave out.
    fn may_be_transcript(&self, path: &Path) -> bool {
        let unscanned = self.scan_done == 0;
        !self.excluded.contains(path)
            && (unscanned || self.roots.iter().any(|root| path.starts_with(&root.path)))
    }

    /// The sessions that an agent means by an id: its own, without our marks of place and generation.
    fn of_agent(&self, id: &str) -> Vec<SessionKey> {
        let own = |key: &SessionKey| match key.base().split_once("__") {
            Some((_, own)) if key.harness() == "openclaw" => own == id,
            _ => false,
        };
        let sessions = self.state.state().sessions.iter();
        sessions
            .filter(|(key, record)| !record.superseded && (key.base() == id || own(key)))
            .map(|(key, _)| key.clone())
            .collect()
    }

    fn is_followed(&self, key: &SessionKey) -> bool {
        let excluded = self.live.get(key).is_some_and(|live| live.excluded);
        let stopped = self.state.get(key).is_none_or(|record| record.stopped || record.superseded);
        !excluded && !stopped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn hooks_that_name_nothing_have_everything_flushed_at_once_and_then_seldom() {
        let mut asked = Asked::default();
        asked.ask();
        assert_eq!(asked.due(), Some(Instant::now()));
        asked = Asked { began: Some(Instant::now()), due: None };
        let next = Instant::now() + HINTED_FLUSH_EVERY;
        tokio::time::advance(Duration::from_secs(1)).await;
        asked.ask();
        tokio::time::advance(Duration::from_secs(1)).await;
        asked.ask();
        assert_eq!(asked.due(), Some(next), "asking again puts nothing off");
        tokio::time::advance(HINTED_FLUSH_EVERY).await;
        asked.due = None;
        asked.ask();
        assert_eq!(asked.due(), Some(Instant::now()));
    }
}
