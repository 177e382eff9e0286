//! What is known of a session while the daemon runs, and of nobody's business after that.
//!
//! Knows marks and moments; refuses to know what follows from them: that is decided by whoever sets or reads one.

use std::cmp::Reverse;

use tokio::time::Instant;

use crate::api::Problem;
use crate::source::Stat;

/// What is known of a session while the daemon runs; a restart does without.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// A look is under way.
    pub(super) looking: bool,
    /// A send, or the swap of a manifest, is under way.
    pub(super) sending: bool,
    /// It waits in the send queue under this rank.
    pub(super) queued: Option<Reverse<i64>>,
    /// Its ledger is being learned from the store; it is looked at when that is done.
    pub(super) relearning: bool,
    /// Looked at since the start.
    pub(super) trusted: bool,
    /// Its whole prefix is to be compared at the next look.
    pub(super) verify: bool,
    /// When its source changed and since when it is as it is.
    pub(super) rewriting: Option<Box<Rewriting>>,
    /// Its numbers were tried to be begun again: not once more before this one.
    pub(super) turn_from: u32,
    /// When something was last captured.
    pub(super) captured_at: Option<Instant>,
    /// Since when stored parts wait to be named, or to be seen named.
    pub(super) unnamed_since: Option<Instant>,
    /// When a manifest that names new parts was last put.
    pub(super) named_at: Option<Instant>,
    /// Since when objects of it wait to be known for nobody else's.
    pub(super) leaving_since: Option<Instant>,
    /// Nothing is sent before this: its manifest could not be used.
    pub(super) held_until: Option<Instant>,
    /// Nothing is sent before this: the last send failed on its way.
    pub(super) rests_until: Option<Instant>,
    /// Sends in a row that failed on their way.
    pub(super) failures: u32,
    /// Left out by the rules.
    pub(super) excluded: bool,
    /// … for now: a rule asks for its directory, which is not known.
    pub(super) undecided: Option<Box<Problem>>,
    pub(super) problem: Option<Box<Problem>>,
}

#[derive(Debug)]
pub(super) struct Rewriting {
    pub(super) first: Instant,
    pub(super) since: Instant,
    pub(super) stat: Stat,
}
