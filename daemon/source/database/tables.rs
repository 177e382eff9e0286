//! How a harness keeps sessions in a database, as far as reading has to know: what a session is, what a row is, what may be read.
//!
//! Knows no SQL; the tables' names and columns are the harness's ([`Tables`]).

use std::fmt;
use std::ops::ControlFlow;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Bytes of a digest that are kept: no one who could choose rows gains anything from two with the same.
const DIGEST_BYTES: usize = 16;

/// Digest of a row as it is in the database, unredacted: it stays on this machine.
pub(crate) type RowDigest = [u8; DIGEST_BYTES];

/// What a database's row about a session says beside its messages. Redacted before it goes anywhere.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    /// What its agent calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) title: Option<String>,
    /// The model that it was begun with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<String>,
    /// Id of the session that it is a branch or a continuation of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<String>,
    /// The branch of the working directory's repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) git_branch: Option<String>,
    /// When its agent ended it, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ended_at: Option<String>,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) end_reason: Option<String>,
}

impl About {
    /// Whether it says nothing.
    pub(crate) fn is_empty(&self) -> bool {
        *self == About::default()
    }
}

/// A session as the overview shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SessionRow {
    /// Its id, as it stands in the database.
    pub(crate) id: String,
    /// Working directory.
    pub(crate) cwd: Option<String>,
    /// When it began, RFC 3339.
    pub(crate) started_at: Option<String>,
    /// What else is known of it.
    pub(crate) about: About,
    /// Number of its rows.
    pub(crate) rows: u64,
    /// When the newest row was written, nanoseconds since the Unix epoch.
    pub(crate) last_ns: i64,
    /// Another one says that its rows were rewritten; its agent's own mark, where it keeps one.
    pub(crate) rewritten: Option<String>,
    /// Differs whenever the overview does.
    pub(crate) overview: RowDigest,
}

/// What is done with a row: its id, its digest, and its line if that is wanted.
pub(crate) type EachRow<'a> =
    &'a mut dyn FnMut(i64, RowDigest, &dyn Fn() -> Vec<u8>) -> ControlFlow<()>;

/// What is done with the line of an event: its number and its bytes.
pub(crate) type EachLine<'a> = &'a mut dyn FnMut(i64, Vec<u8>) -> ControlFlow<()>;

/// How a harness keeps sessions in a database: its tables, and what a row is as a line.
///
/// Rows either change ([`Encoding::Rows`](crate::source::Encoding::Rows)) or are events that do not
/// ([`Encoding::Events`](crate::source::Encoding::Events)); of the other kind there are none.
pub(crate) trait Tables: Send + Sync + fmt::Debug {
    /// The tables that are read. A database may hold keys beside its sessions: of any other table SQLite tells nothing.
    fn readable(&self) -> &'static [&'static str];
    /// All sessions. Must not read their rows.
    fn sessions(&self, db: &Connection) -> rusqlite::Result<Vec<SessionRow>>;
    /// The events of a session in ascending order: number, and bytes of the line with its newline.
    fn events(
        &self,
        _db: &Connection,
        _session: &str,
        _each: &mut dyn FnMut(i64, u64),
    ) -> rusqlite::Result<()> {
        Ok(())
    }
    /// The lines of a session's events from a number on, each with its newline, until told to stop. Lines before one that
    /// cannot be read are given all the same.
    fn lines(
        &self,
        _db: &Connection,
        _session: &str,
        _from: i64,
        _each: EachLine<'_>,
    ) -> rusqlite::Result<()> {
        Ok(())
    }
    /// The highest row id that the database ever gave, if it remembers: ids above it will be given again.
    fn last_id(&self, _db: &Connection) -> rusqlite::Result<Option<i64>> {
        Ok(None)
    }
    /// The rows of a session in ascending order of id, until told to stop.
    fn rows(&self, _db: &Connection, _session: &str, _each: EachRow<'_>) -> rusqlite::Result<()> {
        Ok(())
    }
    /// The line that says that a row is gone.
    fn tombstone(&self, _session: &str, _id: i64) -> Vec<u8> {
        Vec::new()
    }
    /// What a stored line, with its secrets replaced, is about.
    fn read_line(&self, _line: &[u8]) -> Option<Line> {
        None
    }
    /// Whether a stored line is what the row says now, whichever rules its secrets were replaced by. `Some`: it is, and this is
    /// the row's digest.
    fn is_row(
        &self,
        _db: &Connection,
        _session: &str,
        _line: &[u8],
    ) -> rusqlite::Result<Option<RowDigest>> {
        Ok(None)
    }
}

/// What a stored line is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line {
    /// The state of a row.
    Row(i64),
    /// That a row is gone.
    Gone(i64),
}

/// A digest of some pieces, such that no two lists of pieces have the same by being put together otherwise.
pub(crate) fn digest_of(pieces: &[&[u8]]) -> RowDigest {
    let mut sum = Sha256::new();
    for piece in pieces {
        sum.update((piece.len() as u64).to_le_bytes());
        sum.update(piece);
    }
    let sum = sum.finalize();
    std::array::from_fn(|at| sum[at])
}
