//! A look at a session that is rows of a database: what differs from what is captured becomes lines of its log, and parts.
//!
//! A row that is new or changed is written as a line, one that is gone as a line that says so; the last line of an id wins.
//! The ledger says what is captured, so the same state is never written twice. Changes no state: the mirror commits what comes
//! back.

use std::io;
use std::ops::ControlFlow;

use serde_json::json;

use super::capture::{BATCH_BYTES_MAX, Care, Look, Seen, Told, Tools, Written, write_part};
use crate::ledger::{Ledger, Mark};
use crate::redact::{Counts, Redactor};
use crate::source::database::{About, SessionRow, Tables, View};
use crate::source::{CHUNK_BYTES, Chunk, Cursor, Rewrite, SourceError, Stat};
use crate::state::PendingPart;

/// An `Err` is a failure to write the outbox or the ledger; failures to read are part of what was seen.
pub(super) fn look_at(tools: &Tools, look: &Look, written: &mut Written) -> io::Result<Seen> {
    let compare = |view: &mut View<'_>| Ok(compare(tools, look, written, view));
    match tools.databases.look_at(look.key.harness(), &look.path, compare) {
        Ok(seen) => seen,
        Err(error) => Ok(Seen::Failed { parts: Vec::new(), error }),
    }
}

fn compare(
    tools: &Tools,
    look: &Look,
    written: &mut Written,
    view: &mut View<'_>,
) -> io::Result<Seen> {
    let offset = look.cursor.offset;
    if !view.may_differ(offset, look.care == Care::Whole) {
        let cursor = cursor_at(offset, view.stat());
        return Ok(Seen::Read { parts: Vec::new(), cursor, unfinished_bytes: 0, told: None });
    }
    let told = Some(Box::new(told(&tools.redactor, view.session())));
    let Some(ledger) = tools.ledgers.read(&*tools.disk, &look.key, offset)? else {
        return Ok(Seen::Unledgered);
    };
    match is_another(&ledger, view) {
        Ok(true) => return Ok(Seen::Rewritten { stat: view.stat(), why: Rewrite::IdsAgain }),
        Ok(false) => {}
        Err(error) => return Ok(Seen::Failed { parts: Vec::new(), error }),
    }
    let Some(tables) = tools.databases.tables(look.key.harness()).cloned() else {
        return Ok(Seen::Unledgered); // It was looked at by them just now.
    };
    let known = ledger.marks.clone();
    let mut log = Log {
        tools,
        look,
        written,
        stat: view.stat(),
        ledger,
        seq: look.next_seq,
        lines: Vec::new(),
        marks: Vec::new(),
        parts: Vec::new(),
        failed: None,
    };
    let id = view.session().id.clone();
    let read = walk(&*tables, &id, known, view, &mut log);
    if let Some(error) = log.failed.take() {
        return Err(error);
    }
    if let Err(error) = read {
        return Ok(Seen::Failed { parts: log.parts, error });
    }
    if log.is_full() {
        log.flush()?;
        return Ok(Seen::More { parts: log.parts });
    }
    log.flush()?;
    let (parts, position) = (log.parts, log.ledger.position);
    view.note_compared(position, !parts.is_empty());
    let cursor = cursor_at(position, view.stat());
    Ok(Seen::Read { parts, cursor, unfinished_bytes: 0, told })
}

/// Whether the rows are those of another database: it will give ids that captured rows have, and has none of these rows. One
/// that merely lost its newest rows (an older backup, a commit that its dying writer had not announced) goes on: the last
/// line of an id wins.
fn is_another(ledger: &Ledger, view: &mut View<'_>) -> Result<bool, SourceError> {
    let again = |last| ledger.last_id().is_some_and(|id| id > last);
    if !view.last_id().is_some_and(again) || view.session().rows == 0 {
        return Ok(false);
    }
    let mut common = false;
    view.rows(&mut |id, digest, _| {
        common = ledger.marks.get(&id) == Some(&Mark::Captured(digest));
        if common { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    Ok(!common)
}

/// Goes through the rows and what is known of them, both in order of id.
fn walk(
    tables: &dyn Tables,
    session: &str,
    known: std::collections::BTreeMap<i64, Mark>,
    view: &mut View<'_>,
    log: &mut Log<'_>,
) -> Result<(), SourceError> {
    let mut known = known.into_iter().filter(|(_, mark)| *mark != Mark::Gone).peekable();
    let mut full = false;
    view.rows(&mut |id, digest, line| {
        while let Some((gone, _)) = known.next_if(|(known, _)| *known < id) {
            log.push(gone, Mark::Gone, tables.tombstone(session, gone));
        }
        let before = known.next_if(|(known, _)| *known == id).map(|(_, mark)| mark);
        if before != Some(Mark::Captured(digest)) {
            log.push(id, Mark::Captured(digest), line());
        }
        full = log.failed.is_some() || log.is_full();
        if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if !full {
        known.for_each(|(gone, _)| log.push(gone, Mark::Gone, tables.tombstone(session, gone)));
    }
    Ok(())
}

/// The log of a session as it is being written.
struct Log<'a> {
    tools: &'a Tools,
    look: &'a Look,
    written: &'a mut Written,
    stat: Stat,
    ledger: Ledger,
    seq: u32,
    lines: Vec<u8>,
    marks: Vec<(i64, Mark)>,
    parts: Vec<(PendingPart, Cursor)>,
    failed: Option<io::Error>,
}

impl Log<'_> {
    fn is_full(&self) -> bool {
        self.written.bytes >= BATCH_BYTES_MAX
    }

    fn push(&mut self, id: i64, mark: Mark, line: Vec<u8>) {
        if !self.lines.is_empty() && self.lines.len() + line.len() > CHUNK_BYTES {
            self.failed = self.failed.take().or(self.flush().err());
        }
        if self.lines.is_empty() {
            self.lines = line; // A row may be large: it is not copied.
        } else {
            self.lines.extend(line);
        }
        self.marks.push((id, mark));
    }

    /// Writes what has gathered as a part, and its rows to the ledger.
    fn flush(&mut self) -> io::Result<()> {
        if self.lines.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.lines);
        let marks = std::mem::take(&mut self.marks);
        let start = self.ledger.position;
        let cursor = cursor_at(start + bytes.len() as u64, self.stat);
        let chunk = Chunk {
            bytes,
            context: Vec::new(),
            cursor: cursor.clone(),
            start,
            cut: false,
            ends_record: true,
        };
        let part = write_part(self.tools, self.look, self.seq, chunk, self.written)?;
        let (disk, key) = (&*self.tools.disk, &self.look.key);
        let file = self.tools.ledgers.add(disk, key, &mut self.ledger, &marks, cursor.offset)?;
        self.written.paths.extend(file);
        self.seq += 1;
        self.parts.push((part, cursor));
        Ok(())
    }
}

/// There is no file whose bytes could be looked at again, and never half of a record.
pub(super) fn cursor_at(offset: u64, stat: Stat) -> Cursor {
    Cursor { offset, rest: Some(0), ..Cursor::start(stat) }
}

/// What the database says about the session, without secrets: it goes into the manifest.
pub(super) fn told(redactor: &Redactor, session: &SessionRow) -> Told {
    let About { title, model, parent, git_branch, ended_at, end_reason } = &session.about;
    let fields = json!({
        "title": title, "model": model, "parent": parent, "git_branch": git_branch,
        "ended_at": ended_at, "end_reason": end_reason,
    });
    let mut redacted = Vec::new();
    redactor.redact(&[], fields.to_string().as_bytes(), &mut redacted, &mut Counts::new());
    // What redaction leaves is JSON; were it ever not, nothing is better than a secret.
    let about = serde_json::from_slice(&redacted).unwrap_or_default();
    Told { cwd: session.cwd.clone(), about }
}

#[cfg(test)]
mod tests;
