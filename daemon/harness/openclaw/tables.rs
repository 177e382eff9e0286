//! OpenClaw's database: its transcripts, and nothing else that is in it.
//!
//! `transcript_events` has a row for each line that a session's file had before there was a database: `seq` orders them, and the
//! text is in `event_json`, or, where that saves room, as a zstd frame in `event_zstd` with its size in `event_utf8_bytes`.
//! Beside them lie keys of model providers, which is why the tables that are read have a list. What else these tables have, and
//! all but `transcript_events` itself, may be missing. Knows SQL and columns; knows nothing of copies nor of what was captured.

use std::collections::{BTreeMap, HashMap};

use rusqlite::types::{Type, ValueRef};
use rusqlite::{Connection, Row};

use super::super::tables::{columns, is_table, lacking, shortened};
use crate::source::database::{About, EachLine, SessionRow, Tables, digest_of};
use crate::source::inflated;

/// The lines.
const EVENTS: &str = "transcript_events";

/// What is known of a session.
const WINDOWS: &str = "session_windows";

/// What a conversation is called, which goes through several sessions.
const NODES: &str = "session_nodes";

/// A mark that is another one each time the lines of a session were rewritten.
const WATERMARKS: &str = "transcript_rewrite_watermarks";

/// Tables of versions that keep sessions in the database. One without any of them has none: some versions had it for keys alone.
const OF_SESSIONS: [&str; 3] = [WINDOWS, NODES, "sessions"];

/// Largest event that is kept compressed: OpenClaw compresses none above 4 MiB, and a frame must not decide our memory.
const INFLATED_BYTES_MAX: usize = 16 << 20;

/// What is in the database.
#[derive(Debug)]
pub(super) struct OpenClawTables;

impl Tables for OpenClawTables {
    fn readable(&self) -> &'static [&'static str] {
        &[EVENTS, WINDOWS, NODES, WATERMARKS]
    }

    fn sessions(&self, db: &Connection) -> rusqlite::Result<Vec<SessionRow>> {
        let mut sessions = windows(db)?;
        if !has_events(db)? {
            return Ok(Vec::new());
        }
        let question = format!(
            "SELECT session_id, count(*), min(seq), max(seq) FROM {EVENTS} GROUP BY session_id"
        );
        let mut statement = db.prepare(&question)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let Some(id) = text(row, 0)? else { continue };
            let (count, first, last): (i64, i64, i64) = (row.get(1)?, row.get(2)?, row.get(3)?);
            let session = sessions
                .entry(id.clone())
                .or_insert_with(|| SessionRow { id, ..SessionRow::default() });
            session.rows = count.unsigned_abs();
            session.overview = digest_of(&[
                &session.overview,
                &count.to_le_bytes(),
                &first.to_le_bytes(),
                &last.to_le_bytes(),
            ]);
        }
        for (id, mark) in pairs(db, WATERMARKS, "session_id", &["generation"])? {
            if let Some(session) = sessions.get_mut(&id) {
                session.overview = digest_of(&[&session.overview, mark.as_bytes()]);
                session.rewritten = Some(mark);
            }
        }
        Ok(sessions.into_values().collect())
    }

    fn events(
        &self,
        db: &Connection,
        session: &str,
        each: &mut dyn FnMut(i64, u64),
    ) -> rusqlite::Result<()> {
        let size = if is_compressing(db)? {
            "coalesce(octet_length(event_json), event_utf8_bytes)"
        } else {
            "octet_length(event_json)"
        };
        let question =
            format!("SELECT seq, {size} FROM {EVENTS} WHERE session_id = ?1 ORDER BY seq");
        let mut statement = db.prepare(&question)?;
        let mut rows = statement.query([session])?;
        while let Some(row) = rows.next()? {
            let (number, bytes): (i64, Option<i64>) = (row.get(0)?, row.get(1)?);
            let bytes = bytes.and_then(|bytes| u64::try_from(bytes).ok());
            let bytes = bytes.ok_or_else(|| lacking(&format!("event {number} has no text")))?;
            each(number, bytes + 1);
        }
        Ok(())
    }

    fn lines(
        &self,
        db: &Connection,
        session: &str,
        from: i64,
        each: EachLine<'_>,
    ) -> rusqlite::Result<()> {
        let frame = if is_compressing(db)? { "event_zstd" } else { "NULL" };
        let question = format!(
            "SELECT seq, event_json, {frame} FROM {EVENTS} WHERE session_id = ?1 AND seq >= ?2 ORDER BY seq"
        );
        let mut statement = db.prepare(&question)?;
        let mut rows = statement.query((session, from))?;
        while let Some(row) = rows.next()? {
            if each(row.get(0)?, line(row)?).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// An event as it stood in a file.
fn line(row: &Row<'_>) -> rusqlite::Result<Vec<u8>> {
    let mut line = match (row.get_ref(1)?, row.get_ref(2)?) {
        (ValueRef::Text(text), _) => text.to_vec(),
        (ValueRef::Null, ValueRef::Blob(frame)) => {
            inflated(frame, INFLATED_BYTES_MAX).map_err(|error| {
                rusqlite::Error::FromSqlConversionFailure(2, Type::Blob, error.into())
            })?
        }
        _ => return Err(lacking("an event has no text")),
    };
    line.push(b'\n');
    Ok(line)
}

/// Whether there are events that we can read. That there are sessions without is a database that we do not know.
fn has_events(db: &Connection) -> rusqlite::Result<bool> {
    let columns = columns(db, EVENTS)?;
    if columns.is_empty() {
        for table in OF_SESSIONS {
            if is_table(db, table)? {
                return Err(lacking(&format!("it has sessions, but no table {EVENTS}")));
            }
        }
        return Ok(false);
    }
    for needed in ["session_id", "seq", "event_json"] {
        if !columns.iter().any(|column| column == needed) {
            return Err(lacking(&format!("its table {EVENTS} has no column {needed}")));
        }
    }
    Ok(true)
}

fn is_compressing(db: &Connection) -> rusqlite::Result<bool> {
    let columns = columns(db, EVENTS)?;
    let has = |name: &str| columns.iter().any(|column| column == name);
    Ok(has("event_zstd") && has("event_utf8_bytes"))
}

/// All sessions by id, as far as their own table tells of them.
fn windows(db: &Connection) -> rusqlite::Result<BTreeMap<String, SessionRow>> {
    let known = columns(db, WINDOWS)?;
    let has = |name: &str| known.iter().any(|column| column == name);
    if !has("session_id") {
        return Ok(BTreeMap::new());
    }
    let wanted = [
        "session_id",
        "display_name",
        "model",
        "previous_session_id",
        "status",
        "started_at",
        "created_at",
        "ended_at",
        "transcript_updated_at",
        "updated_at",
    ];
    let list: Vec<&str> =
        wanted.iter().map(|name| if has(name) { *name } else { "NULL" }).collect();
    let labels: HashMap<String, String> =
        pairs(db, NODES, "current_session_id", &["label", "display_name"])?.into_iter().collect();
    let mut statement = db.prepare(&format!("SELECT {} FROM {WINDOWS}", list.join(", ")))?;
    let mut rows = statement.query([])?;
    let mut sessions = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let Some(id) = text(row, 0)? else { continue };
        let title = text(row, 1)?.or_else(|| labels.get(&id).cloned());
        sessions.insert(id.clone(), session_row(row, id, title)?);
    }
    Ok(sessions)
}

fn session_row(row: &Row<'_>, id: String, title: Option<String>) -> rusqlite::Result<SessionRow> {
    let ended_at = time(row, 7)?;
    let about = About {
        title: title.map(shortened),
        model: text(row, 2)?.map(shortened),
        parent: text(row, 3)?.map(shortened),
        git_branch: None,
        // How the last turn went is no end.
        end_reason: text(row, 4)?.map(shortened).filter(|_| ended_at.is_some()),
        ended_at: ended_at.map(|at| at.to_string()),
    };
    let started_at = time(row, 5)?.or(time(row, 6)?).map(|at| at.to_string());
    let last = time(row, 8)?.or(time(row, 9)?).map_or(0, |at| at.as_nanosecond());
    let pieces = format!("{about:?} {started_at:?} {last}");
    Ok(SessionRow {
        id,
        started_at,
        about,
        last_ns: i64::try_from(last).unwrap_or(0),
        overview: digest_of(&[pieces.as_bytes()]),
        ..SessionRow::default()
    })
}

/// What a table says of each key: the first of some columns that says anything. Nothing where there is no such table.
fn pairs(
    db: &Connection,
    table: &str,
    key: &str,
    wanted: &[&str],
) -> rusqlite::Result<Vec<(String, String)>> {
    let known = columns(db, table)?;
    let there: Vec<&str> =
        wanted.iter().filter(|name| known.iter().any(|column| column == *name)).copied().collect();
    if there.is_empty() || !known.iter().any(|column| column == key) {
        return Ok(Vec::new());
    }
    // With a NULL more it is a list of two at least, as SQLite wants it.
    let question = format!("SELECT {key}, coalesce({}, NULL) FROM {table}", there.join(", "));
    let mut statement = db.prepare(&question)?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.extend(text(row, 0)?.zip(text(row, 1)?));
    }
    Ok(found)
}

/// A text, where there is one.
fn text(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<String>> {
    Ok(match row.get_ref(at)? {
        ValueRef::Text(text) => std::str::from_utf8(text).ok().map(str::to_owned),
        _ => None,
    })
}

/// Milliseconds since 1970.
fn time(row: &Row<'_>, at: usize) -> rusqlite::Result<Option<jiff::Timestamp>> {
    Ok(match row.get_ref(at)? {
        ValueRef::Integer(milliseconds) => jiff::Timestamp::from_millisecond(milliseconds).ok(),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
