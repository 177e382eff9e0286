//! Hermes, which keeps all sessions of a profile in one SQLite database: where it lies, its tables, a row as a line.
//!
//! ```text
//! <home>/state.db                     the default profile
//! <home>/profiles/<name>/state.db     another one
//! ```
//!
//! A session is a row of `sessions`, its messages are rows of `messages`, which are changed and deleted after they were
//! written: an undo marks them, a retry replaces them, a compaction does both. Knows SQL and columns; knows nothing of copies
//! nor of what was captured.

use std::path::Path;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Row};
use serde_json::Value;

use super::{
    Candidate, Env, Facts, Harness, Root, Standing, hidden, push_root, records, tables, with_names,
};
use crate::source::Encoding;
use crate::source::database::{About, EachRow, Line, RowDigest, SessionRow, Tables, digest_of};

/// The file with all sessions of a profile.
const DATABASE: &str = "state.db";

/// Directory of the profiles that have a name.
const PROFILES: &str = "profiles";

/// What Hermes puts before a content that is no plain string.
const CONTENT_IS_JSON: &str = "\0json:";

/// Columns of `sessions` of which the overview takes notice, beside those that are kept: whatever changes with the messages,
/// and nothing large.
const COUNTED: [&str; 9] = [
    "message_count",
    "tool_call_count",
    "input_tokens",
    "output_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "api_call_count",
    "rewind_count",
    "archived",
];

/// The harness.
#[derive(Debug)]
pub(super) struct Hermes;

impl Harness for Hermes {
    fn name(&self) -> &'static str {
        "hermes"
    }

    fn roots(&self, env: &Env) -> Vec<Root> {
        let mut roots = Vec::new();
        let home = env.directory("HERMES_HOME").unwrap_or_else(|| env.home.join(".hermes"));
        // A launcher names the home of one profile; the others are beside it.
        let above = home.parent().filter(|dir| dir.file_name().is_some_and(|n| n == PROFILES));
        let home = above.and_then(Path::parent).map_or(home.clone(), Path::to_path_buf);
        push_root(&mut roots, self.name(), home);
        roots
    }

    /// The row of the session says it.
    fn cwd(&self, _records: &[u8], _from_start: bool) -> Option<String> {
        None
    }

    fn descend(&self, relative: &Path) -> bool {
        with_names(relative, |names| match names {
            [] => true,
            [profiles] => *profiles == PROFILES,
            [profiles, name] => *profiles == PROFILES && !hidden(name),
            _ => false,
        })
        .unwrap_or(false)
    }

    fn classify(&self, root: &Root, path: &Path) -> Option<Candidate> {
        let profile = |names: &[&str]| match names {
            [file] if *file == DATABASE => Some(String::new()),
            [profiles, name, file]
                if *profiles == PROFILES && !hidden(name) && *file == DATABASE =>
            {
                Some((*name).to_owned())
            }
            _ => None,
        };
        Some(Candidate {
            harness: self.name(),
            path: path.to_path_buf(),
            // It holds many sessions. The profile without a name is looked at first.
            id: with_names(path.strip_prefix(&root.path).ok()?, profile)??,
            id_from_records: true,
            encoding: Encoding::Rows,
            standing: Standing::Live,
        })
    }

    fn facts(&self, _candidate: &Candidate, _head: &[u8]) -> Facts {
        Facts::default()
    }

    fn tables(&self) -> Option<std::sync::Arc<dyn Tables>> {
        Some(std::sync::Arc::new(HermesTables))
    }
}

/// What is in the database.
#[derive(Debug)]
struct HermesTables;

impl Tables for HermesTables {
    fn readable(&self) -> &'static [&'static str] {
        &["sessions", "messages"]
    }

    fn sessions(&self, db: &Connection) -> rusqlite::Result<Vec<SessionRow>> {
        let counts = messages_of_sessions(db)?;
        let columns = columns(db, "sessions")?;
        let named =
            |name: &'static str| columns.iter().any(|column| column.name == name).then_some(name);
        let kept = [
            "id",
            "cwd",
            "title",
            "model",
            "parent_session_id",
            "git_branch",
            "started_at",
            "ended_at",
            "end_reason",
        ];
        let wanted: Vec<&str> = kept.iter().map(|name| named(name).unwrap_or("NULL")).collect();
        let counted = COUNTED.iter().filter_map(|name| named(name));
        let list = wanted.into_iter().chain(counted).collect::<Vec<_>>().join(", ");
        let mut statement = db.prepare(&format!("SELECT {list} FROM sessions"))?;
        let width = statement.column_count();
        let mut rows = statement.query([])?;
        let (mut sessions, none) = (Vec::new(), Counts::default());
        while let Some(row) = rows.next()? {
            let ValueRef::Text(id) = row.get_ref(0)? else { continue };
            let Ok(id) = std::str::from_utf8(id) else { continue };
            sessions.push(session_row(row, width, id, counts.get(id).unwrap_or(&none))?);
        }
        Ok(sessions)
    }

    fn last_id(&self, db: &Connection) -> rusqlite::Result<Option<i64>> {
        // Without this table ids are given again as soon as the newest row was deleted; then they tell nothing.
        let remembers = columns(db, "sqlite_sequence").is_ok_and(|columns| columns.len() == 2);
        if !remembers {
            return Ok(None);
        }
        let question = "SELECT seq FROM sqlite_sequence WHERE name = 'messages'";
        Ok(db.query_row(question, [], |row| row.get(0)).optional()?.or(Some(0)))
    }

    fn rows(&self, db: &Connection, session: &str, each: EachRow<'_>) -> rusqlite::Result<()> {
        let columns = columns(db, "messages")?;
        let mut ids = db.prepare("SELECT id FROM messages WHERE session_id = ?1 ORDER BY id")?;
        let ids = ids.query_map([session], |row| row.get::<_, i64>(0))?;
        // Sorting the rows themselves would hold all of their text in memory.
        let ids = ids.collect::<rusqlite::Result<Vec<i64>>>()?;
        let mut statement = db.prepare("SELECT * FROM messages WHERE id = ?1")?;
        for id in ids {
            let mut rows = statement.query([id])?;
            let Some(row) = rows.next()? else { continue };
            let values = values_of(row, &columns)?;
            if each(id, digest(&columns, &values), &|| line(&columns, &values, None)).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn tombstone(&self, session: &str, id: i64) -> Vec<u8> {
        let mut out = format!("{{\"id\": {id}, \"session_id\": ");
        super::python::push_text(&mut out, session);
        out.push_str(", \"deleted\": true}\n");
        out.into_bytes()
    }

    fn read_line(&self, line: &[u8]) -> Option<Line> {
        // Python writes numbers that JSON does not have; the id comes before them.
        let Ok(value) = serde_json::from_slice::<Value>(line) else {
            return Some(Line::Row(first_id(line)?));
        };
        let id = value.get("id")?.as_i64()?;
        // SQLite has no truth values, so that no column can be `true`.
        let gone = value.get("deleted") == Some(&Value::Bool(true));
        Some(if gone { Line::Gone(id) } else { Line::Row(id) })
    }

    fn is_row(
        &self,
        db: &Connection,
        session: &str,
        line: &[u8],
    ) -> rusqlite::Result<Option<RowDigest>> {
        let Some(Line::Row(id)) = self.read_line(line) else { return Ok(None) };
        let columns = columns(db, "messages")?;
        let mut statement =
            db.prepare("SELECT * FROM messages WHERE id = ?1 AND session_id = ?2")?;
        let mut rows = statement.query((id, session))?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let values = values_of(row, &columns)?;
        Ok(says(&columns, &values, line).then(|| digest(&columns, &values)))
    }
}

/// What the index knows of the messages of a session.
#[derive(Debug, Default)]
struct Counts {
    rows: u64,
    last_seconds: f64,
    /// For the overview.
    pieces: Vec<u8>,
}

/// One question that an index of Hermes answers without a look at the messages themselves.
fn messages_of_sessions(
    db: &Connection,
) -> rusqlite::Result<std::collections::HashMap<String, Counts>> {
    let known = columns(db, "messages")?;
    let has = |name: &str| known.iter().any(|column| column.name == name);
    let active = if has("active") { "active" } else { "NULL" };
    let timestamp = if has("timestamp") { "max(timestamp)" } else { "NULL" };
    let mut statement = db.prepare(&format!(
        "SELECT session_id, {active}, count(*), max(id), total(id), {timestamp} FROM messages \
         GROUP BY 1, 2 ORDER BY 1, 2"
    ))?;
    let mut rows = statement.query([])?;
    let mut sessions = std::collections::HashMap::<String, Counts>::new();
    while let Some(row) = rows.next()? {
        let ValueRef::Text(id) = row.get_ref(0)? else { continue };
        let Ok(id) = std::str::from_utf8(id) else { continue };
        let counts = sessions.entry(id.to_owned()).or_default();
        counts.rows += row.get::<_, i64>(2)?.unsigned_abs();
        if let ValueRef::Real(at) = row.get_ref(5)? {
            counts.last_seconds = counts.last_seconds.max(at);
        }
        for column in 1..6 {
            push_piece(&mut counts.pieces, row.get_ref(column)?);
        }
    }
    Ok(sessions)
}

fn session_row(
    row: &Row<'_>,
    width: usize,
    id: &str,
    counts: &Counts,
) -> rusqlite::Result<SessionRow> {
    let mut pieces = counts.pieces.clone();
    for column in 0..width {
        push_piece(&mut pieces, row.get_ref(column)?);
    }
    let text = |column: usize| -> rusqlite::Result<Option<String>> {
        Ok(match row.get_ref(column)? {
            ValueRef::Text(text) if !text.is_empty() => {
                Some(String::from_utf8_lossy(text).into_owned())
            }
            _ => None,
        })
    };
    let short = |column: usize| Ok::<_, rusqlite::Error>(text(column)?.map(tables::shortened));
    let time = |column: usize| -> rusqlite::Result<Option<String>> {
        Ok(match row.get_ref(column)? {
            ValueRef::Real(seconds) => time_of(seconds).map(|at| at.to_string()),
            ValueRef::Integer(seconds) => time_of(seconds as f64).map(|at| at.to_string()),
            _ => None,
        })
    };
    let about = About {
        title: short(2)?,
        model: short(3)?,
        parent: short(4)?,
        git_branch: short(5)?,
        ended_at: time(7)?,
        end_reason: short(8)?,
    };
    let last = time_of(counts.last_seconds).map_or(0, |at| at.as_nanosecond());
    Ok(SessionRow {
        id: id.to_owned(),
        cwd: text(1)?.and_then(records::fit_cwd),
        started_at: time(6)?,
        about,
        rows: counts.rows,
        last_ns: i64::try_from(last).unwrap_or(0),
        rewritten: None,
        overview: digest_of(&[&pieces]),
    })
}

/// Seconds since 1970, as Python's `time.time()` counts them; to the microsecond, which is what a float of them holds.
fn time_of(seconds: f64) -> Option<jiff::Timestamp> {
    // What is out of range saturates, and is no time then.
    jiff::Timestamp::from_microsecond((seconds * 1e6).round() as i64).ok()
}

/// A column of a table, in its order.
struct Column {
    name: String,
    /// The value that a row has of which nobody said one, if it is a plain one.
    default: Option<Plain>,
}

/// A constant.
enum Plain {
    Integer(i64),
    Text(String),
}

/// The columns of a table. It has to be one.
fn columns(db: &Connection, table: &str) -> rusqlite::Result<Vec<Column>> {
    if !tables::is_table(db, table)? {
        return Err(tables::lacking(&format!("it has no table {table}")));
    }
    let mut statement = db.prepare("SELECT name, dflt_value FROM pragma_table_info(?1)")?;
    let columns = statement.query_map([table], |row| {
        let default = row.get::<_, Option<String>>(1)?;
        Ok(Column { name: row.get(0)?, default: default.as_deref().and_then(plain) })
    })?;
    columns.collect()
}

fn plain(default: &str) -> Option<Plain> {
    let quoted = default.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\''));
    match quoted {
        Some(text) => Some(Plain::Text(text.replace("''", "'"))),
        None => default.parse().ok().map(Plain::Integer),
    }
}

impl Column {
    /// Whether the value says nothing: a column that a newer Hermes adds is so in all older rows.
    fn is_silent(&self, value: ValueRef<'_>) -> bool {
        match (value, &self.default) {
            (ValueRef::Null, _) => true,
            (ValueRef::Integer(value), Some(Plain::Integer(default))) => value == *default,
            (ValueRef::Text(value), Some(Plain::Text(default))) => value == default.as_bytes(),
            _ => false,
        }
    }
}

fn values_of<'a>(row: &'a Row<'_>, columns: &[Column]) -> rusqlite::Result<Vec<ValueRef<'a>>> {
    (0..columns.len()).map(|at| row.get_ref(at)).collect()
}

/// Of all that a row says. Columns that say nothing are left out, so that an agent that adds one changes no row.
fn digest(columns: &[Column], values: &[ValueRef<'_>]) -> RowDigest {
    let mut pieces = Vec::new();
    for (column, value) in columns.iter().zip(values) {
        if !column.is_silent(*value) {
            push_piece(&mut pieces, ValueRef::Text(column.name.as_bytes()));
            push_piece(&mut pieces, *value);
        }
    }
    digest_of(&[&pieces])
}

/// A value as bytes that no other value has.
fn push_piece(pieces: &mut Vec<u8>, value: ValueRef<'_>) {
    let (kind, bytes) = match value {
        ValueRef::Null => (b'n', Vec::new()),
        ValueRef::Integer(number) => (b'i', number.to_le_bytes().to_vec()),
        ValueRef::Real(number) => (b'r', number.to_bits().to_le_bytes().to_vec()),
        ValueRef::Text(text) => (b't', text.to_vec()),
        ValueRef::Blob(bytes) => (b'b', bytes.to_vec()),
    };
    pieces.push(kind);
    pieces.extend((bytes.len() as u64).to_le_bytes());
    pieces.extend(bytes);
}

/// A row as the reference tool writes it; only the columns named, if some are.
fn line(columns: &[Column], values: &[ValueRef<'_>], only: Option<&[String]>) -> Vec<u8> {
    let mut out = String::from("{");
    for (column, value) in columns.iter().zip(values) {
        if only.is_some_and(|only| !only.contains(&column.name)) {
            continue;
        }
        out.push_str(if out.len() > 1 { ", " } else { "" });
        super::python::push_text(&mut out, &column.name);
        out.push_str(": ");
        match decoded(&column.name, *value) {
            Some(content) => out.push_str(&content),
            None => super::python::push_value(&mut out, *value),
        }
    }
    out.push_str("}\n");
    out.into_bytes()
}

/// A content that is no plain string.
fn decoded(column: &str, value: ValueRef<'_>) -> Option<String> {
    let ValueRef::Text(text) = value else { return None };
    let json = text.strip_prefix(CONTENT_IS_JSON.as_bytes()).filter(|_| column == "content")?;
    super::python::rewritten(&String::from_utf8_lossy(json))
}

/// The id with which a line begins.
fn first_id(line: &[u8]) -> Option<i64> {
    let rest = line.strip_prefix(br#"{"id": "#)?;
    let end = rest.iter().position(|byte| *byte == b',')?;
    std::str::from_utf8(&rest[..end]).ok()?.parse().ok()
}

/// Whether a stored line is what a row says, but for its secrets, whichever rules took them out: between the marks that stand
/// for them the text is the same. Columns that the line does not have must say nothing.
fn says(columns: &[Column], values: &[ValueRef<'_>], stored: &[u8]) -> bool {
    let Ok(Value::Object(members)) = serde_json::from_slice::<Value>(stored) else { return false };
    let names: Vec<String> = members.keys().cloned().collect();
    let known = |name: &String| columns.iter().any(|column| column.name == *name);
    let silent = |(column, value): (&Column, &ValueRef<'_>)| {
        names.contains(&column.name) || column.is_silent(*value)
    };
    names.iter().all(known)
        && columns.iter().zip(values).all(silent)
        && fits(stored.trim_ascii_end(), line(columns, values, Some(&names)).trim_ascii_end())
}

/// Whether a text with marks is another one with something in the place of each mark.
fn fits(marked: &[u8], text: &[u8]) -> bool {
    const MARK: &[u8] = b"[REDACTED:";
    let mut rest = text;
    let mut pieces = Vec::new();
    let mut marked = marked;
    while let Some(at) = marked.windows(MARK.len()).position(|window| window == MARK) {
        let Some(end) = marked[at..].iter().position(|byte| *byte == b']') else { break };
        pieces.push(&marked[..at]);
        marked = &marked[at + end + 1..];
    }
    if pieces.is_empty() {
        return marked == text;
    }
    for (number, piece) in pieces.into_iter().enumerate() {
        let at = match number {
            0 => rest.starts_with(piece).then_some(0),
            _ if piece.is_empty() => Some(0),
            _ => memchr::memmem::find(rest, piece),
        };
        let Some(at) = at else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(marked)
}

#[cfg(test)]
mod tests;
