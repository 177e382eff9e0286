//! Which known sessions the rules leave out, and how the working directory of a session becomes known after it was placed.
//!
//! While a rule asks for a directory that no record has named, nothing is captured: who excludes a directory means it from now
//! on, also for a session that is half recorded. Such a session is looked at without being captured, and is shown as held back.
//! Knows rules and records; refuses to know how a transcript names a directory.

use tracing::{debug, info};

use super::Engine;
use super::find::NewFile;
use crate::api::{Session, SessionState};
use crate::config::Decision;
use crate::part::SessionKey;
use crate::redact::Counts;
use crate::state::{Change, Record};

/// Why a session is not captured, for a person.
const HELD_BACK: &str = "held back: a rule asks for its directory, and no record has named it yet";

impl Engine {
    /// Files that are held back before they have become sessions: nothing is stored of them.
    pub(super) fn held_back_files(&self) -> impl Iterator<Item = Session> {
        // One with the id of a session is known by that one.
        self.undecided.iter().filter(|(_, key)| self.state.get(key).is_none()).map(|(path, key)| {
            let hint =
                "nothing of it is stored; the rule decides as soon as a record names the directory";
            Session {
                harness: key.harness().to_owned(),
                id: key.id().to_owned(),
                generation: key.generation(),
                state: SessionState::Idle,
                source_path: path.to_string_lossy().into_owned(),
                cwd: None,
                parts: 0,
                source_bytes: 0,
                stored_bytes: 0,
                pending_bytes: 0,
                redactions: Counts::new(),
                started_at: None,
                last_stored_at: None,
                ended_at: None,
                problem: Some(self.new_problem("directory_unknown", HELD_BACK, Some(hint))),
                excluded: true,
            }
        })
    }

    /// Decides anew whether a session is left out.
    pub(super) fn apply_rules(&mut self, key: &SessionKey) {
        let Some(record) = self.state.get(key) else { return };
        let decision = self.settings.rules.decide(key.harness(), record.cwd.as_deref());
        let undecided = decision == Decision::NeedsCwd && !record.superseded;
        let held = undecided.then(|| {
            let hint = "what was stored before is safe; the rule decides as soon as a record names the directory";
            self.new_problem("directory_unknown", HELD_BACK, Some(hint))
        });
        let live = self.live.entry(key.clone()).or_default();
        let before = live.excluded;
        live.excluded = decision != Decision::Follow;
        if held.is_some() && live.undecided.is_none() {
            info!(session = %key, "held back until a record names its directory: a rule asks for it");
        }
        // The first one says since when.
        live.undecided = held.map(|new| live.undecided.take().unwrap_or(Box::new(new)));
        match (before, live.excluded) {
            (true, false) => self.mark_dirty(key),
            (false, true) => self.note_unwatched(key),
            _ => {}
        }
    }

    /// Whether a session is held back until its directory is known.
    pub(super) fn is_undecided(&self, key: &SessionKey) -> bool {
        self.live.get(key).is_some_and(|live| live.undecided.is_some())
    }

    /// A file that no record names is followed, left out, or held back until its records say where it ran.
    pub(super) fn decide_new(&mut self, file: NewFile) {
        let path = file.candidate.path.clone();
        self.undecided.remove(&path);
        match self.settings.rules.decide(file.candidate.harness, file.facts.cwd.as_deref()) {
            Decision::Follow => self.unplaced.push(file),
            Decision::Exclude => {
                self.excluded.insert(path);
            }
            // The next scan or event asks again.
            Decision::NeedsCwd => {
                debug!(path = %path.display(), "cwd unknown: held back");
                self.undecided.insert(path, file.key());
            }
        }
    }

    /// A session that is held back was looked at again.
    pub(super) fn found_undecided(&mut self, key: &SessionKey, file: &NewFile) {
        let (Some(record), Some(cwd)) = (self.state.get(key), &file.facts.cwd) else { return };
        let record = with_cwd(record, cwd);
        let change = Change::Session { key: key.clone(), record: Box::new(record) };
        // After a commit that failed the next scan asks again.
        if self.commit(vec![change]) {
            self.apply_rules(key);
            self.queue_send(key);
        }
    }
}

/// A record that knows its directory now; its manifest has to say so.
pub(super) fn with_cwd(record: &Record, cwd: &str) -> Record {
    Record { cwd: Some(cwd.to_owned()), manifest_due: true, ..record.clone() }
}
