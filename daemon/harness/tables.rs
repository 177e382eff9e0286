//! What harnesses ask of a database alike: whether a table is one, which columns it has; and texts of it for people to read.
//!
//! Knows no table by name.

use rusqlite::{Connection, ErrorCode, ffi};

/// Longest text that is kept of a session's title, model, branch or reason, bytes: for people to read.
const ABOUT_BYTES_MAX: usize = 512;

/// Whether there is a table of this name. A view is none: it could be made to never end.
pub(super) fn is_table(db: &Connection, name: &str) -> rusqlite::Result<bool> {
    let question = "SELECT 1 FROM sqlite_master WHERE name = ?1 AND type = 'table' \
                    AND sql NOT LIKE 'CREATE VIRTUAL%'";
    db.prepare(question)?.exists([name])
}

/// The columns of a table in their order; none where there is no such table.
pub(super) fn columns(db: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    if !is_table(db, table)? {
        return Ok(Vec::new());
    }
    let mut statement = db.prepare("SELECT name FROM pragma_table_info(?1)")?;
    statement.query_map([table], |row| row.get(0))?.collect()
}

/// A database without something that cannot be done without, in words for a person.
pub(super) fn lacking(what: &str) -> rusqlite::Error {
    let error = ffi::Error { code: ErrorCode::Unknown, extended_code: ffi::SQLITE_ERROR };
    rusqlite::Error::SqliteFailure(error, Some(what.to_owned()))
}

/// As much of a text as is kept.
pub(super) fn shortened(mut text: String) -> String {
    let mut end = text.len().min(ABOUT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}
