//! What the mirror is given by the program that starts it, and what it says at its end.
//!
//! Refuses to know how either comes about.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::{Clock, Finder, Pulse, Tiers};
use crate::config::Rules;
use crate::durable::{Blocking, Disk};
use crate::redact::Redactor;
use crate::source::Files;
use crate::source::database::Databases;
use crate::store::{Store, Tally};
use crate::watch::Hints;

/// See [`Numbers::turn`]: days of work before the five digits end.
const SEQ_TURN: u32 = 90_000;

/// See [`Numbers::last`].
const SEQ_LAST: u32 = 99_000;

/// What the mirror works with.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    pub(crate) store: Arc<dyn Store>,
    /// What the store was asked.
    pub(crate) tally: Arc<Tally>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) files: Arc<dyn Files>,
    /// Sessions that are rows of databases; to the engine another kind of file.
    pub(crate) databases: Arc<Databases>,
    pub(crate) finder: Arc<dyn Finder>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) hints: Arc<Hints>,
    pub(crate) blocking: Blocking,
    /// Where sources are read and redacted.
    pub(crate) reading: Blocking,
    /// Told when a scan begins: what else wants a look now and then needs no timer of its own.
    pub(crate) scan_began: Arc<Notify>,
    /// Shows to others that the loop comes round.
    pub(crate) pulse: Arc<Pulse>,
}

/// What a person decided.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Least time between two looks at a session.
    pub(crate) interval: Duration,
    /// Which sessions are followed.
    pub(crate) rules: Rules,
    /// The redaction rules; changed by a reload.
    pub(crate) redactor: Arc<Redactor>,
    /// Whether those are any.
    pub(crate) redact: bool,
    /// Bytes in the outbox at which capture waits.
    pub(crate) outbox_bytes_max: u64,
    /// Free bytes below which nothing is captured.
    pub(crate) free_bytes_min: u64,
    /// Whether parts are merged without being asked.
    pub(crate) compaction: Automatic,
    /// When numbers begin again, or a session begins anew.
    pub(crate) numbers: Numbers,
    /// Mirror what is there, then end.
    pub(crate) once: bool,
    /// The store's URL, for people.
    pub(crate) store_url: String,
    /// Where state and outbox are.
    pub(crate) state_dir: PathBuf,
}

/// From which number on a session gets new ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Numbers {
    /// From here on everything is merged into one part, so that numbers can begin again; where that cannot be, a new generation
    /// begins.
    pub(crate) turn: u32,
    /// From here on a new generation begins in any case: a batch may still add some parts before the range ends.
    pub(crate) last: u32,
}

impl Default for Numbers {
    fn default() -> Numbers {
        Numbers { turn: SEQ_TURN, last: SEQ_LAST }
    }
}

/// Whether parts are merged without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Automatic {
    /// So far.
    On(Tiers),
    /// Somebody said so.
    Off,
    /// The store bills what is deleted early.
    Billed,
}

impl Settings {
    /// How far parts are merged without being asked; `None`: not at all.
    pub(crate) fn tiers(&self) -> Option<Tiers> {
        match self.compaction {
            Automatic::On(tiers) => Some(tiers),
            Automatic::Off | Automatic::Billed => None,
        }
    }
}

/// What the program tells the mirror, beside commands.
#[derive(Debug)]
pub(crate) enum Signal {
    /// Last flush, then end.
    Drain,
    /// Flush everything now.
    Flush,
    /// The configuration was read again.
    Reload(Box<Settings>),
    /// It was to be read again and is wrong, for this reason: what was read before stays.
    Misconfigured(String),
}

/// How the mirror ended.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Sessions known, superseded generations left out.
    pub(crate) sessions: u64,
    /// Parts stored since the start.
    pub(crate) parts: u64,
    /// Bytes stored since the start.
    pub(crate) bytes: u64,
    /// Secrets removed since the start.
    pub(crate) redactions: u64,
    /// Files that were found and not captured: whether the store has their sessions is not known.
    pub(crate) waiting: u64,
    /// Parts captured and not stored.
    pub(crate) unsent_parts: u64,
    /// Sessions that are not safe, or a store that is away.
    pub(crate) failures: Vec<String>,
    /// What else a person should know: files that look like sessions and cannot be read, for instance.
    pub(crate) problems: Vec<String>,
}

/// Why the mirror cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fatal {
    /// The state cannot be used.
    #[error(transparent)]
    State(#[from] crate::state::StateError),
    /// A manifest in the store was written by a newer program.
    #[error(transparent)]
    Manifest(#[from] crate::part::ManifestError),
}
