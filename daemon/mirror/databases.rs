//! What the engine does differently for sessions that are rows of a database: hints, failures and facts concern many at once.
//!
//! Knows that a database has sessions; how they are read is the job of a look.

use std::path::{Path, PathBuf};

use tokio::time::Instant;

use super::capture::Seen;
use super::follow::with_cwd;
use super::{Engine, chain};
use crate::part::SessionKey;
use crate::source::{Encoding, SourceError};
use crate::state::Record;

impl Engine {
    /// Takes a hint that is about a database: when the next looks are due, all of its sessions are asked for changes.
    pub(super) fn note_database(&mut self, path: &Path) -> bool {
        let Some(database) = self.tools.finder.database(path) else { return false };
        self.dirty_databases.insert(database);
        // One look after the start finds all of its sessions: from then on the interval counts.
        self.ask_for_tick(self.last_tick.is_some());
        true
    }

    /// Looks are due now: at the sessions that are known of each database, and for new ones.
    pub(super) fn look_into_databases(&mut self) {
        if self.dirty_databases.is_empty() {
            return;
        }
        let databases = std::mem::take(&mut self.dirty_databases);
        let followed = |record: &Record| {
            record.encoding.is_in_database() && !record.superseded && !record.stopped
        };
        let sessions = self.state.state().sessions.iter();
        let known = sessions.filter(|(_, r)| followed(r) && databases.contains(r.source_file()));
        self.dirty.extend(known.map(|(key, _)| key.clone()).collect::<Vec<_>>());
        self.look_for_sessions(databases.into_iter().collect::<Vec<PathBuf>>());
    }

    /// Whether a failure to read is one of a whole database: then it is shown once, not for each of its sessions.
    pub(super) fn is_of_database(&mut self, key: &SessionKey, error: &SourceError) -> bool {
        let Some(record) = self.state.get(key).filter(|r| r.encoding.is_in_database()) else {
            return false;
        };
        // Of a session that is events only what was asked of the whole database is: its own lines are read like a file's.
        if record.encoding == Encoding::Events && matches!(error, SourceError::Io { .. }) {
            return false;
        }
        let file = record.source_file().to_owned();
        if matches!(error, SourceError::Busy(_)) {
            // Nothing is wrong; whoever waits for this look waits for the next one.
            self.dirty.insert(key.clone());
            let at = Instant::now() + self.settings.interval;
            self.tick_at = Some(self.tick_at.map_or(at, |tick| tick.min(at)));
            return true;
        }
        self.source_problem(&file, &chain(error));
        self.note_looked(key);
        true
    }

    /// A scan met a database whose writer did not pause: another one, soon, and who waits for a scan waits for that one.
    pub(super) fn scan_again(&mut self) {
        self.leave_to_scan();
        self.scan_at = Instant::now() + self.settings.interval;
    }

    /// What is told about a session may be what the rules go by.
    pub(super) fn note_told(&mut self, key: &SessionKey) {
        if self.state.get(key).is_some_and(|r| r.encoding.is_in_database()) {
            self.apply_rules(key);
        }
    }
}

/// The record, where a look changed more of it than its cursor.
pub(super) fn changed_by(record: &Record, seen: &Seen, cwd: Option<&str>) -> Option<Record> {
    let mut new = cwd.map_or_else(|| record.clone(), |cwd| with_cwd(record, cwd));
    if !seen.parts().is_empty() && (record.ended_at.is_some() && !record.archived || record.gone) {
        // Written to again after it ended: it is open again, unless its agent says otherwise.
        new.ended_at = agents_end(record).cloned();
        new.gone = false;
    }
    if let Seen::Read { told: Some(told), .. } = seen {
        new.cwd = told.cwd.clone().or(new.cwd);
        if told.about.ended_at.as_ref() != agents_end(record) {
            new.ended_at = told.about.ended_at.clone();
        }
        new.about = (!told.about.is_empty()).then(|| Box::new(told.about.clone()));
        let retold = new.about != record.about || new.cwd != record.cwd;
        new.manifest_due |= retold;
    }
    (new != *record).then_some(new)
}

/// When its agent said that a session ended, as far as is known.
fn agents_end(record: &Record) -> Option<&String> {
    record.about.as_ref()?.ended_at.as_ref()
}
