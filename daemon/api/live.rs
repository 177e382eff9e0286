//! Wire types of what goes on: the stream of events, and what the daemon uses itself.

use serde::{Deserialize, Serialize};

use super::{Phase, Problem, Status};

/// One line of the stream that `GET /v1/events` answers with. It begins with a snapshot and goes on until the daemon stops,
/// which ends it properly, or the client goes away.
///
/// Events come from the moment of the request on; nothing is kept for who asks later. A client reads a kind that it does not know as
/// [`Event::Unknown`] and passes over it, so that a new one is a compatible addition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// All of the status: at first, and whenever something of it changed, four times a second at most.
    Status {
        /// As it is now.
        status: Box<Status>,
    },
    /// The daemon is in another phase of its life.
    Phase {
        /// When, RFC 3339.
        at: String,
        /// The new phase.
        phase: Phase,
    },
    /// A session, or a new generation of one, is known from now on.
    Found {
        /// When, RFC 3339.
        at: String,
        /// Harness name.
        harness: String,
        /// Session id as in the bucket.
        id: String,
    },
    /// A part is stored.
    Stored {
        /// When, RFC 3339.
        at: String,
        /// Harness name.
        harness: String,
        /// Session id as in the bucket.
        id: String,
        /// Number of the part.
        seq: u32,
        /// Its size.
        bytes: u64,
    },
    /// Something is wrong from now on.
    Problem {
        /// What it is about: a path, a session's key; empty for the daemon or the store as a whole.
        object: String,
        /// What is wrong, and since when.
        problem: Problem,
    },
    /// It is not wrong any more.
    ProblemOver {
        /// When, RFC 3339.
        at: String,
        /// As the problem had it.
        object: String,
        /// The problem's code.
        code: String,
    },
    /// The client did not read fast enough: so many events were left out here. The snapshot that follows is of after them.
    Missed {
        /// How many.
        events: u64,
    },
    /// Nothing has happened for a while, and the daemon is there.
    Heartbeat,
    /// A kind that this program does not know; never sent.
    #[serde(other)]
    Unknown,
}

/// What the daemon uses of its machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Memory that is in RAM; absent where the system does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    /// Processor time since the start.
    pub cpu_seconds: f64,
    /// That time as a share of the time since the start; 100 is one processor.
    pub cpu_percent: f64,
    /// Open descriptors; absent where the system does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub descriptors: Option<u64>,
}
