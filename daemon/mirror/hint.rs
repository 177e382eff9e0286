//! What an agent's hook says: one of its sessions has news, by its id or by the path of its transcript.
//!
//! Owns what of that counts, and how often. What a hook says is hostile: a path is compared with what is known and never opened,
//! an id counts only whole. What is not known yet is left to a scan, which finds it where sessions are. Nothing else is changed by
//! a hint: an agent with a hook at every step must not cost more than a look now and then, least of all while the store is away.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::Engine;
use super::handle::Hint;
use crate::api::{Flushing, Hinted, Phase};
use crate::part::SessionKey;

/// Between two looks that hooks ask for. A hook may run at every step of an agent, and each look with news costs a request.
const HINTED_LOOK_EVERY: Duration = Duration::from_secs(2);

/// Between two scans that hooks ask for. Each walks all roots.
const HINTED_SCAN_EVERY: Duration = Duration::from_secs(5);

/// What hooks asked for and was not begun yet. Nobody waits for it: sends and manifests go their usual way.
#[derive(Debug)]
pub(super) struct Asked {
    /// Sessions to look at before the interval is over.
    sessions: BTreeSet<SessionKey>,
    looks: Paced,
    scans: Paced,
    /// When this scan is done, everything that has news is looked at.
    scan: Option<u64>,
}

impl Default for Asked {
    fn default() -> Asked {
        Asked {
            sessions: BTreeSet::new(),
            looks: Paced::new(HINTED_LOOK_EVERY),
            scans: Paced::new(HINTED_SCAN_EVERY),
            scan: None,
        }
    }
}

impl Asked {
    pub(super) fn due(&self) -> Option<Instant> {
        self.looks.due.into_iter().chain(self.scans.due).min()
    }
}

/// Something that is begun at once when it was not begun lately, and else when it may be again.
#[derive(Debug)]
struct Paced {
    every: Duration,
    /// When it last began.
    began: Option<Instant>,
    /// When it begins next.
    due: Option<Instant>,
}

impl Paced {
    fn new(every: Duration) -> Paced {
        Paced { every, began: None, due: None }
    }

    fn ask(&mut self) {
        let now = Instant::now();
        let at = self.began.map_or(now, |began| now.max(began + self.every));
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Whether it is due; then it has begun.
    fn begins(&mut self) -> bool {
        let now = Instant::now();
        let begins = self.due.is_some_and(|due| due <= now);
        if begins {
            (self.began, self.due) = (Some(now), None);
        }
        begins
    }
}

impl Engine {
    /// Begins what a hook's words ask for, and says what that is.
    pub(super) fn hint(&mut self, hint: &Hint) -> Hinted {
        let mut sessions = BTreeSet::new();
        let mut unknown_path = false;
        for path in &hint.paths {
            match self.by_path.get(path.as_path()) {
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
            self.hinted.scans.ask();
            Flushing::All
        } else if sessions.is_empty() {
            Flushing::Nothing
        } else {
            Flushing::Sessions
        };
        let names = sessions.iter().map(ToString::to_string).collect();
        if !sessions.is_empty() {
            sessions.iter().for_each(|key| self.mark_dirty(key));
            self.hinted.sessions.extend(sessions);
            self.hinted.looks.ask();
        }
        Hinted { flushing, sessions: names }
    }

    /// Begins what hooks asked for, when it is due.
    pub(super) fn start_hinted(&mut self) {
        if self.phase == Phase::Stopping {
            return;
        }
        if self.hinted.scans.begins() {
            self.scan_at = Instant::now();
            // One that is under way may have passed the newest file already.
            self.hinted.scan = Some(self.scans + 1);
            self.start_scan();
        }
        if self.hinted.scan.is_some_and(|scan| self.scan_done >= scan) && self.nothing_to_place() {
            self.hinted.scan = None;
            self.tick_at = Some(Instant::now());
        }
        if self.hinted.looks.begins() {
            let named = std::mem::take(&mut self.hinted.sessions);
            // Those that are being looked at stay marked for the next time.
            let free = |key: &SessionKey| self.live.get(key).is_none_or(|live| !live.looking);
            let (now, later): (Vec<_>, Vec<_>) = named.into_iter().partition(free);
            for key in now {
                if self.dirty.remove(&key) {
                    self.pass.push_front(key);
                }
            }
            if !later.is_empty() {
                self.hinted.sessions.extend(later);
                self.hinted.looks.ask();
            }
        }
    }

    /// Whether a path that is not known is where sessions are, and not one that the rules leave out.
    fn may_be_transcript(&self, path: &Path) -> bool {
        let unscanned = self.scan_done == 0;
        !self.excluded.contains(path)
            && (unscanned || self.roots.iter().any(|root| path.starts_with(&root.path)))
    }

    /// The sessions that an agent means by an id: its own, wherever there are any of it, and whichever generation is followed.
    fn of_agent(&self, id: &str) -> Vec<SessionKey> {
        let own = |key: &SessionKey| {
            let bare = key.base().split_once('@').map_or(key.base(), |(id, _)| id);
            let meant = SessionKey::new(key.harness(), id);
            let of_openclaw = bare.split_once("__").filter(|_| key.harness() == "openclaw");
            bare == meant.id() || of_openclaw.is_some_and(|(_, own)| own == meant.id())
        };
        let sessions = self.state.state().sessions.iter();
        sessions
            .filter(|(key, record)| !record.superseded && own(key))
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
    async fn what_hooks_ask_for_begins_at_once_and_then_seldom() {
        let mut asked = Paced::new(Duration::from_secs(5));
        assert!(!asked.begins());
        asked.ask();
        assert!(asked.begins() && !asked.begins());
        let next = Instant::now() + Duration::from_secs(5);
        for _ in 0..4 {
            tokio::time::advance(Duration::from_secs(1)).await;
            asked.ask();
            assert!(!asked.begins());
        }
        assert_eq!(asked.due, Some(next), "asking again puts nothing off");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(asked.begins());
        tokio::time::advance(Duration::from_secs(5)).await;
        asked.ask();
        assert!(asked.begins());
    }
}
