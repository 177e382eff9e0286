//! Which of two sources of one session counts, where an agent went over from files to a database: the database, once the file
//! is read to its end. What is left of the time before, or of the time after, is a copy.
//!
//! Knows records and what was found; refuses to know where an agent keeps either ([`Finder::former`](super::find::Finder)).

use std::path::Path;

use super::Engine;
use super::find::NewFile;
use crate::part::SessionKey;
use crate::source::Encoding;
use crate::state::Record;

/// What a source that was found is to a session of the same id.
pub(super) enum Kin {
    /// Nothing that is known here.
    Stranger,
    /// It has nothing that the session's own source has not.
    Copy,
    /// Where the session goes on.
    Heir,
    /// The same, as soon as all of the file is captured.
    NotYet,
}

impl Engine {
    /// Asks how a source that was found is related to a session, whose own source may be `gone`.
    pub(super) fn kin(&self, file: &NewFile, key: &SessionKey, gone: bool) -> Kin {
        let Some(record) = self.state.get(key) else { return Kin::Stranger };
        let (path, own) = (&file.candidate.path, record.source_file());
        // An older version of the agent that writes to it again would have made it longer or newer.
        let is_outdated = !file.archived()
            && file.stat.size < record.cursor.offset
            && file.stat.mtime_ns <= record.cursor.stat.mtime_ns;
        match (file.candidate.encoding, record.encoding) {
            (Encoding::Events, Encoding::Plain | Encoding::Zstd) => {
                let database = path.parent().unwrap_or(path);
                // A session that was set aside has its own life, and the next one its own.
                if record.archived || !self.lies_before(own, database) {
                    Kin::Stranger
                } else if gone || self.is_read_out(key, record) {
                    Kin::Heir
                } else {
                    Kin::NotYet
                }
            }
            (Encoding::Plain | Encoding::Zstd, Encoding::Events) if self.lies_before(path, own) => {
                if !gone || is_outdated {
                    Kin::Copy
                } else {
                    Kin::Stranger
                }
            }
            // Deleted from its database, its agent has made an archive of it: what is older than that is older than the database.
            (Encoding::Plain, Encoding::Plain | Encoding::Zstd)
                if record.archived && record.cursor.events.is_some() && is_outdated =>
            {
                Kin::Copy
            }
            _ => Kin::Stranger,
        }
    }

    /// Whether a file lies where the sessions of a database were before.
    fn lies_before(&self, file: &Path, database: &Path) -> bool {
        let former = self.tools.finder.former(database);
        former.is_some() && former.as_deref() == file.parent()
    }

    /// Whether all that can be captured of a session's file is captured: what its agent wrote last before it went over to the
    /// database is in the file for certain.
    fn is_read_out(&self, key: &SessionKey, record: &Record) -> bool {
        let held = self.live.get(key).is_some_and(|live| live.excluded || live.problem.is_some());
        let now = self.tools.files.stat(&record.source);
        let unchanged = now.is_ok_and(|stat| stat == record.cursor.stat);
        record.stopped || held || record.cursor.rest.is_some() && unchanged
    }
}
