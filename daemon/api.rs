//! The contract of the control socket: wire types, error codes, routes, protocol number, exit codes.
//!
//! Everything that both programs must agree on lives here and nowhere else; `tracecraftctl` sees nothing of the daemon but
//! this module, [`crate::paths`], and what [`crate::setup`] and [`crate::doctor`] find out. HTTP/1.1 with JSON bodies over a Unix socket. Additions to a shape are compatible and
//! do not change [`PROTOCOL`]; a removal or a change of meaning does, and so does a new variant of a state, a phase or a
//! coverage, which an older client could not read.
//!
//! The promise: programs with the same [`PROTOCOL`] understand each other, whichever is older. An older client is answered as
//! before, and passes over what it does not know. A newer one reads the answers of an older daemon: a field that was added later has
//! a default (`tests/golden/released` has the answers of each release). What an older daemon does not know (a route, a name
//! in a query) it refuses with 404 or 400, never half does; the client then says that the daemon has to be restarted, exit code
//! [`exit::PROTOCOL`].

mod live;

use std::collections::BTreeMap;

pub use live::{Event, Usage};
use serde::{Deserialize, Serialize};

/// Number of the control protocol. The daemon names it in `GET /v1/status` and in the [`PROTOCOL_HEADER`] of every answer.
pub const PROTOCOL: u32 = 1;

/// Response header (and optional request header) that carries [`PROTOCOL`]. A request that names a greater number than the
/// daemon's is refused with 400; the answer's own header tells the client which number the daemon speaks.
pub const PROTOCOL_HEADER: &str = "tracecraft-protocol";

/// Response header with the daemon's version. A daemon that does not say it is older than the header, which came after 0.1.0's
/// first builds.
pub const VERSION_HEADER: &str = "tracecraft-version";

/// Paths of the control API. A session in a path is its key `<harness>/<id>`, or any unique prefix of the id, percent-encoded
/// as one segment; the `/` of a key may also stand as it is, for whoever types a path by hand. A query name that a route
/// does not know is refused, so that a newer client learns of an older daemon. Requests have no bodies.
pub mod route {
    /// `GET`: [`super::Status`].
    pub const STATUS: &str = "/v1/status";
    /// `GET`: [`super::SessionList`].
    pub const SESSIONS: &str = "/v1/sessions";
    /// `GET /v1/sessions/<session>/content?tail=N&generation=N`: the replay, `application/jsonl`; the session it belongs to
    /// is in the response header [`super::SESSION_HEADER`] as JSON.
    pub const CONTENT: &str = "content";
    /// `POST /v1/sessions/<session>/compact?keep_tail=N`: a stream of [`super::Progress`], one JSON document a line.
    pub const COMPACT: &str = "compact";
    /// `POST /v1/sessions/<session>/stop`: [`super::Session`].
    pub const STOP: &str = "stop";
    /// `POST /v1/sessions/<session>/start`: [`super::Session`].
    pub const START: &str = "start";
    /// `POST /v1/flush` and `POST /v1/sessions/<session>/flush`: [`super::Flushed`], when all that was there at the call is
    /// stored and named by a manifest.
    pub const FLUSH: &str = "/v1/flush";
    /// Last segment of the flush of one session: see [`FLUSH`].
    pub const FLUSH_SESSION: &str = "flush";
    /// `POST /v1/hint?session=ID&path=PATH`: [`super::Hinted`], with 202 and before anything is done. For agents' hooks: each name
    /// may be given several times or not at all, percent-encoded; ids count only whole, paths only as they are known.
    pub const HINT: &str = "/v1/hint";
    /// `POST /v1/verify?deep=1&repair=1` and `POST /v1/sessions/<session>/verify?…`: a stream of [`super::Verifying`], one JSON
    /// document a line. The first is of all that the bucket holds.
    pub const VERIFY: &str = "/v1/verify";
    /// Last segment of the verification of one session, with all its generations: see [`VERIFY`].
    pub const VERIFY_SESSION: &str = "verify";

    /// `GET`: a stream of [`super::Event`], one JSON document a line, until the daemon stops.
    pub const EVENTS: &str = "/v1/events";
    /// `GET`: what monitoring reads, in the text format of Prometheus, 0.0.4. Not below `/v1`, because its form is not ours.
    pub const METRICS: &str = "/metrics";

    /// The path of a session's route, e.g. `/v1/sessions/codex%2F01a2/stop`.
    pub fn session(session: &str, verb: &str) -> String {
        format!("{SESSIONS}/{}/{verb}", encode(session))
    }

    /// The path of a hint, e.g. `/v1/hint?session=01a2&path=%2Fhome%2Fme%2Fa.jsonl`.
    pub fn hint<'a>(
        sessions: impl Iterator<Item = &'a str>,
        paths: impl Iterator<Item = &'a str>,
    ) -> String {
        let sessions = sessions.map(|session| format!("session={}", encode(session)));
        let paths = paths.map(|path| format!("path={}", encode(path)));
        let names: Vec<String> = sessions.chain(paths).collect();
        if names.is_empty() { HINT.to_owned() } else { format!("{HINT}?{}", names.join("&")) }
    }

    fn encode(text: &str) -> String {
        let mut encoded = String::with_capacity(text.len());
        for byte in text.bytes() {
            if byte.is_ascii_alphanumeric() || b"-_.~@".contains(&byte) {
                encoded.push(char::from(byte));
            } else {
                encoded.push_str(&format!("%{byte:02X}"));
            }
        }
        encoded
    }
}

/// Response header of `content`: the [`Session`] that is replayed, as one line of JSON (non-ASCII escaped). A replay that
/// fails half-way ends without the last chunk of its chunked body: a client that sees no proper end has not seen the session.
pub const SESSION_HEADER: &str = "tracecraft-session";

/// What `GET /v1/status` answers: is it working, is everything safe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the daemon.
    pub version: String,
    /// [`PROTOCOL`] of the daemon.
    pub protocol: u32,
    /// Process id of the daemon.
    pub pid: u32,
    /// Seconds since the daemon started.
    pub uptime_seconds: u64,
    /// `starting` until recovery and the first scan are done, then `recording`, then `stopping`.
    pub phase: Phase,
    /// The store's URL, without credentials.
    pub store: String,
    /// Where the state is kept.
    pub state_dir: String,
    /// Milliseconds between flushes.
    pub interval_ms: u64,
    /// Whether secrets are removed. `false` is shown loudly.
    pub redact: bool,
    /// Whether parts are merged without being asked: `auto`; or not, because it is `off`, the store was seen to have `refused` a
    /// delete, or early deletes are `billed` there.
    #[serde(default)]
    pub compaction: String,
    /// Where sessions are looked for.
    pub roots: Vec<Root>,
    /// Sessions by what they are doing.
    pub sessions: SessionCounts,
    /// Bytes stored for all sessions, superseded generations included.
    #[serde(default)]
    pub stored_bytes: u64,
    /// Parts that are captured and not yet stored.
    pub pending: Pending,
    /// When something was last stored, RFC 3339; `None` before the first.
    pub last_stored_at: Option<String>,
    /// When a look at what was new last ended with everything stored that it found, RFC 3339; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_flush_at: Option<String>,
    /// What the daemon uses of its machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// For how long the daemon's loop has not come round although it was asked to: something hangs, and all else here is as
    /// it was before. Absent when the daemon gets on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalled_seconds: Option<u64>,
    /// What is known of a store that is not on this machine; absent for one that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<Remote>,
    /// What is wrong now; empty when all is well.
    pub problems: Vec<Problem>,
    /// Problems that are not among them: a snapshot of the stream of events has the first fifty, the answer to a question all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub problems_left_out: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What is known of a remote store.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remote {
    /// Where its requests go: host, port and path, without a scheme.
    #[serde(default)]
    pub endpoint: String,
    /// What it does with a condition on a put: `honoured`, `ignored`, `unsupported`, or `unknown` as long as it was not tried.
    /// Nothing depends on it; where it is honoured, two writers of one session notice each other a step earlier.
    pub conditions: String,
    /// Whether it lets us delete; `None` before the first compaction. Without, compaction is off.
    pub deletes: Option<bool>,
    /// Puts since the start, each try for itself.
    pub puts: u64,
    /// Gets and questions for a size since the start.
    pub gets: u64,
    /// Listings since the start.
    pub lists: u64,
    /// Deletes since the start.
    pub deletions: u64,
    /// How many of all these failed.
    pub failures: u64,
}

/// Phase of the daemon's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Recovery or the first scan is not done.
    Starting,
    /// Normal work.
    Recording,
    /// Draining.
    Stopping,
}

/// A directory where sessions are looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Harness name.
    pub harness: String,
    /// Absolute path.
    pub path: String,
    /// How changes below it are noticed.
    pub coverage: Coverage,
}

/// How changes below a root are noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Coverage {
    /// By file-system events; the scan is only the safety net.
    Events,
    /// By a scan at every interval, because events do not come here.
    Polled,
    /// The directory does not exist (yet).
    Missing,
    /// The directory exists and cannot be read.
    Unreadable,
}

/// Number of sessions by [`SessionState`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCounts {
    /// All that are known, superseded generations left out.
    pub total: u64,
    /// State `live`.
    pub live: u64,
    /// Have something that is not yet stored.
    pub pending: u64,
    /// Stopped by `stop`.
    pub stopped: u64,
    /// Left out by include and exclude rules: known ones, which `total` counts, and files that never became sessions.
    pub excluded: u64,
    /// Of these, held back until a record names the directory that a rule asks for.
    #[serde(default)]
    pub held_back: u64,
    /// Found, and not captured before the store has told what it has of them.
    #[serde(default)]
    pub waiting: u64,
}

/// Captured and not yet stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// Number of parts.
    pub parts: u64,
    /// Bytes of those parts.
    pub bytes: u64,
    /// Seconds since the oldest was captured.
    pub oldest_seconds: Option<u64>,
}

/// Something that is wrong and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Stable code for programs, e.g. `store_unavailable`, `source_unreadable`, `redaction_off`.
    pub code: String,
    /// What is wrong, naming the object.
    pub message: String,
    /// What to do, where there is something to do.
    pub hint: Option<String>,
    /// Since when, RFC 3339.
    pub since: String,
    /// When the daemon tries again, RFC 3339; absent where it does not, or does so all the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_try_at: Option<String>,
}

/// What `GET /v1/sessions` answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionList {
    /// Every known session and generation, most recently stored first.
    pub sessions: Vec<Session>,
}

/// One session (one generation of it).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Harness name.
    pub harness: String,
    /// Session id as in the bucket; a later generation ends in `~2`, `~3`, …
    pub id: String,
    /// 1 for the first life of the source.
    pub generation: u32,
    /// What it is doing.
    pub state: SessionState,
    /// Absolute path of the source.
    pub source_path: String,
    /// Working directory that the agent recorded.
    pub cwd: Option<String>,
    /// Objects in the store.
    pub parts: u64,
    /// Bytes of the source that are captured.
    pub source_bytes: u64,
    /// Bytes stored (after redaction).
    pub stored_bytes: u64,
    /// Bytes captured and not yet stored.
    pub pending_bytes: u64,
    /// Secrets removed, by pattern name.
    pub redactions: BTreeMap<String, u64>,
    /// When we first saw it, RFC 3339.
    pub started_at: Option<String>,
    /// When its newest part was stored, RFC 3339.
    pub last_stored_at: Option<String>,
    /// When it ended, RFC 3339.
    pub ended_at: Option<String>,
    /// What is wrong with it, if anything.
    pub problem: Option<Problem>,
    /// Left out by include and exclude rules now, or held back until they can be asked; what was stored before stays.
    #[serde(default)]
    pub excluded: bool,
}

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// Written to lately.
    Live,
    /// Followed; nothing new for a while.
    Idle,
    /// Its agent ended it, or its source is archived.
    Ended,
    /// Its source is gone; what was captured is kept.
    Gone,
    /// Stopped by `stop`; not followed until `start`.
    Stopped,
    /// An earlier generation of a source that was rewritten.
    Superseded,
}

/// One line of the stream that `compact` answers with. The last one is `done` or `failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Progress {
    /// Work is under way.
    Working {
        /// Bytes handled so far.
        done_bytes: u64,
        /// Bytes to handle.
        total_bytes: u64,
    },
    /// The work is done.
    Done {
        /// Parts before.
        parts_before: u64,
        /// Parts after.
        parts_after: u64,
        /// Bytes of the merged part; 0 when there was nothing to merge.
        merged_bytes: u64,
    },
    /// The work failed; nothing is lost.
    Failed {
        /// Why.
        error: ErrorBody,
    },
}

/// One line of the stream that `verify` answers with. The last one is `done` or `failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Verifying {
    /// Work is under way.
    Working {
        /// Sessions looked at so far, each generation for itself.
        done_sessions: u64,
        /// Sessions to look at.
        total_sessions: u64,
        /// Bytes read from the store so far.
        done_bytes: u64,
    },
    /// What came of one session.
    Session {
        /// The session and what was found.
        session: Verified,
    },
    /// All of them were looked at, or counted as not checked.
    Done {
        /// The sums.
        sums: VerifiedSums,
    },
    /// The verification could not go on.
    Failed {
        /// Why.
        error: ErrorBody,
    },
}

/// What came of the verification of one session (one generation of it).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Harness name.
    pub harness: String,
    /// Session id as in the bucket.
    pub id: String,
    /// Whether this daemon records it; `false` for what somebody else stored.
    pub known: bool,
    /// The findings in a word.
    pub verdict: Verdict,
    /// Objects that were read and compared.
    pub parts: u64,
    /// Bytes of those objects.
    pub bytes: u64,
    /// Parts that are captured and not yet stored: no fault.
    pub waiting_parts: u64,
    /// What was found, at most a hundred.
    pub findings: Vec<Finding>,
    /// How many more there were.
    #[serde(default)]
    pub more_findings: u64,
}

/// A verification in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything is as it should be.
    Fine,
    /// Something is wrong.
    Wrong,
    /// It could not be told, or not of everything.
    Unchecked,
}

/// Something that a verification has to say about an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable code for programs, e.g. `part_missing`, `part_digest`, `gap`.
    pub code: String,
    /// How much it matters.
    pub weight: Weight,
    /// The object's key, or the source's path.
    pub object: String,
    /// What is so, in a sentence.
    pub message: String,
    /// What should be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// What is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// What to do about it, where there is something to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// How much a [`Finding`] matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// It is not as it should be.
    Wrong,
    /// It could not be looked at.
    Unchecked,
    /// It was wrong, and this verification has mended it.
    Mended,
    /// Good to know; no fault.
    Note,
}

/// Sums of a verification.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifiedSums {
    /// Sessions, each generation for itself.
    pub sessions: u64,
    /// Those where everything is as it should be.
    pub fine: u64,
    /// Those where something is wrong.
    pub wrong: u64,
    /// Those that could not be checked, or not wholly.
    pub unchecked: u64,
    /// Those that this daemon does not record; they are among the others.
    pub unknown: u64,
    /// Objects that were read and compared.
    pub parts: u64,
    /// Bytes of those objects.
    pub bytes: u64,
    /// Parts that are captured and not yet stored.
    pub waiting_parts: u64,
}

/// What `flush` answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flushed {
    /// Sessions that were looked at.
    pub sessions: u64,
    /// Parts stored by this flush.
    pub parts: u64,
    /// Bytes stored by this flush.
    pub bytes: u64,
    /// Bytes at the ends of sources whose record has no newline yet: they are stored when it comes.
    #[serde(default)]
    pub unfinished_bytes: u64,
}

/// What `hint` answers: what is being flushed now that an agent's hook has said something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hinted {
    /// How much of what the hook said was known.
    pub flushing: Flushing,
    /// Keys of the sessions that are flushed, where they are known.
    pub sessions: Vec<String>,
}

/// What a hint leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flushing {
    /// The sessions that it named.
    Sessions,
    /// Everything, as soon as the last time is long enough ago: what it named is not known yet, or it named nothing.
    All,
    /// Nothing: what it named is not recorded here.
    Nothing,
}

/// Body of every answer whose status is not 2xx.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// Stable code; a client may branch on it.
    pub code: ErrorCode,
    /// What went wrong, in a sentence.
    pub message: String,
    /// What to do about it, where there is something to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Codes of [`ErrorBody`]. One is added only when a client would branch on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// 400: the request is not of its form.
    BadRequest,
    /// 404: no such route.
    NoSuchRoute,
    /// 404: no session has that id.
    NoSuchSession,
    /// 405: the route has other methods.
    MethodNotAllowed,
    /// 409: the id matches several sessions; the message names them.
    AmbiguousId,
    /// 409: the session is busy with work of the same kind.
    Busy,
    /// 413: the request's body is larger than the limit.
    TooLarge,
    /// 503: too many requests at once, or the daemon is stopping.
    Unavailable,
    /// 504: the work did not end within its limit; it goes on in the daemon.
    Timeout,
    /// 502: the store failed.
    Store,
    /// 500: a fault of the daemon.
    Internal,
}

impl ErrorCode {
    /// HTTP status of an answer with this code.
    pub const fn status(self) -> u16 {
        match self {
            ErrorCode::BadRequest => 400,
            ErrorCode::NoSuchRoute | ErrorCode::NoSuchSession => 404,
            ErrorCode::MethodNotAllowed => 405,
            ErrorCode::AmbiguousId | ErrorCode::Busy => 409,
            ErrorCode::TooLarge => 413,
            ErrorCode::Internal => 500,
            ErrorCode::Store => 502,
            ErrorCode::Unavailable => 503,
            ErrorCode::Timeout => 504,
        }
    }
}

/// Exit codes of `tracecraftctl`.
pub mod exit {
    /// Done.
    pub const DONE: u8 = 0;
    /// Failed; of `verify`: something is wrong, or could not be checked.
    pub const FAILED: u8 = 1;
    /// Usage: unknown flag, bad value, an id that matches several sessions.
    pub const USAGE: u8 = 2;
    /// The daemon is not running.
    pub const NOT_RUNNING: u8 = 3;
    /// No such session.
    pub const NO_SUCH_SESSION: u8 = 4;
    /// The daemon speaks another protocol, or is of another version and does not know what was asked.
    pub const PROTOCOL: u8 = 5;
    /// Of `service`: nothing here can keep a service of this user; what it said has the command lines to do without.
    pub const NO_SERVICE_MANAGER: u8 = 6;
}
