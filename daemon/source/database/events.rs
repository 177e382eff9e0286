//! The events of a session as a file that is only read: their lines put end to end, in order.
//!
//! So all that is known of files is known of them: cursors, digests of what was captured, the second look after each chunk. A
//! database that changes while it is read is a file that changes. Events that its agent has put away (cold storage, pruning of
//! the oldest) are a beginning that is no longer there: the positions of what is left stay as they were, because the cursor
//! remembers which event ends where. Knows numbers and sizes of events; what a line says is the harness's to know.

use std::cell::RefCell;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::super::{EventMark, OsFiles, SourceError, SourceFile, Stat};
use super::{Database, lock, stat_of};

/// Most events of a session: each has its place in memory while the session is read, 16 bytes.
const EVENTS_MAX: usize = 1_000_000;

/// Bytes of lines that one question asks for, and the rest of a line: as many as a reader takes in one step.
const RUN_BYTES: usize = 256 << 10;

/// The events of one session.
pub(super) struct EventFile {
    files: OsFiles,
    path: PathBuf,
    session: String,
    database: Arc<Mutex<Database>>,
    /// What a cursor remembers.
    mark: Option<EventMark>,
    index: RefCell<Index>,
}

/// Where each event is.
#[derive(Default)]
struct Index {
    /// Of which state of the database; 0 is none.
    version: u64,
    starts_at: u64,
    /// Number and end of each event.
    events: Vec<(i64, u64)>,
    /// Lines that were read last: a reader goes on where it was.
    run: Run,
}

impl Index {
    /// Where the events before one end.
    fn end_before(&self, at: usize) -> u64 {
        at.checked_sub(1).map_or(self.starts_at, |before| self.events[before].1)
    }
}

/// Lines one after the other.
#[derive(Default)]
struct Run {
    /// Position of the first byte.
    start: u64,
    lines: Vec<u8>,
}

impl Run {
    /// What is in it from a position on.
    fn from(&self, position: u64) -> &[u8] {
        let skip = position.checked_sub(self.start).and_then(|skip| usize::try_from(skip).ok());
        skip.and_then(|skip| self.lines.get(skip..)).unwrap_or_default()
    }
}

impl EventFile {
    pub(super) fn new(
        files: OsFiles,
        path: &Path,
        session: String,
        database: Arc<Mutex<Database>>,
        mark: Option<EventMark>,
    ) -> EventFile {
        let path = path.to_owned();
        EventFile { files, path, session, database, mark, index: RefCell::default() }
    }

    /// The index of the database as it is now.
    fn index(&self, database: &mut Database) -> Result<std::cell::RefMut<'_, Index>, SourceError> {
        let mut index = self.index.borrow_mut();
        if index.version != database.version || index.version == 0 {
            let (mut events, mut end) = (Vec::new(), 0);
            database.ask_again(&self.files, |tables, db| {
                tables.events(db, &self.session, &mut |number, bytes| {
                    end += bytes;
                    // One more than may be, so that it shows.
                    if events.len() <= EVENTS_MAX {
                        events.push((number, end));
                    }
                })
            })?;
            if events.len() > EVENTS_MAX {
                let what = format!("it has more than {EVENTS_MAX} events");
                return Err(SourceError::damaged(&self.path, what));
            }
            let starts_at = self.put_away(&events);
            events.iter_mut().for_each(|(_, end)| *end += starts_at);
            *index = Index { version: database.version, starts_at, events, run: Run::default() };
        }
        Ok(index)
    }

    /// Bytes of the events that were captured and are gone from the beginning. Where the first one is still there, or the last
    /// one is gone although earlier ones are there, something else happened, which a comparison finds.
    fn put_away(&self, events: &[(i64, u64)]) -> u64 {
        let Some(mark) = self.mark else { return 0 };
        if events.first().is_some_and(|(number, _)| *number <= mark.first) {
            return 0;
        }
        match events.binary_search_by_key(&mark.last, |(number, _)| *number) {
            Ok(at) => mark.end.saturating_sub(events[at].1),
            Err(0) => mark.end,
            Err(_) => 0,
        }
    }

    /// Fills a buffer from an offset on, as far as there is something.
    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<usize, SourceError> {
        let mut database = lock(&self.database);
        let mut index = self.index(&mut database)?;
        let mut filled = 0;
        while filled < buffer.len() {
            let position = offset + filled as u64;
            if index.run.from(position).is_empty() {
                match self.run(&mut database, &index, position) {
                    Ok(Some(run)) => index.run = run,
                    Ok(None) => break,
                    // What is before an event that cannot be read is given first.
                    Err(_) if filled > 0 => break,
                    Err(error) => return Err(error),
                }
            }
            let rest = index.run.from(position);
            let bytes = rest.len().min(buffer.len() - filled);
            if bytes == 0 {
                break; // Before what is left of the session: nobody who knows where it begins asks.
            }
            buffer[filled..filled + bytes].copy_from_slice(&rest[..bytes]);
            filled += bytes;
            if index.run.from(offset + filled as u64).is_empty() {
                index.run = Run::default(); // It may be large.
            }
        }
        Ok(filled)
    }

    /// The lines from the event on that a position is in; `None` behind the last one.
    fn run(
        &self,
        database: &mut Database,
        index: &Index,
        position: u64,
    ) -> Result<Option<Run>, SourceError> {
        let mut at = index.events.partition_point(|(_, end)| *end <= position);
        let Some((from, _)) = index.events.get(at).copied() else { return Ok(None) };
        let start = index.end_before(at);
        let (mut lines, mut odd) = (Vec::new(), None);
        let read = database.ask_again(&self.files, |tables, db| {
            tables.lines(db, &self.session, from, &mut |number, line| {
                let bytes =
                    index.events.get(at).map(|(known, end)| (*known, end - index.end_before(at)));
                if bytes != Some((number, line.len() as u64)) {
                    odd = Some(number);
                    return ControlFlow::Break(());
                }
                at += 1;
                if lines.is_empty() {
                    lines = line; // It may be large: it is not copied.
                } else {
                    lines.extend(line);
                }
                if lines.len() < RUN_BYTES {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })
        });
        if lines.is_empty() {
            read?;
            let what = format!("event {} is not as long as it should be", odd.unwrap_or(from));
            return Err(SourceError::damaged(&self.path, what));
        }
        Ok(Some(Run { start, lines }))
    }

    fn with_index<T>(&self, ask: impl FnOnce(&Index) -> T) -> Option<T> {
        let mut database = lock(&self.database);
        let index = self.index(&mut database).ok()?;
        Some(ask(&index))
    }
}

impl SourceFile for EventFile {
    fn stat(&self) -> io::Result<Stat> {
        self.stat_path().map_err(io::Error::other)
    }

    fn stat_path(&self) -> Result<Stat, SourceError> {
        let database = lock(&self.database);
        let session = database.sessions.get(&self.session);
        let missing = || SourceError::Missing(self.path.display().to_string());
        Ok(stat_of(&self.path, &database, session.ok_or_else(missing)?))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.read(buffer, offset).map_err(io::Error::other)
    }

    // Where the index cannot be made nothing can be read, and that says why.
    fn starts_at(&self) -> u64 {
        self.with_index(|index| index.starts_at).unwrap_or(0)
    }

    fn mark(&self, offset: u64) -> Option<EventMark> {
        let found = self.with_index(|index| {
            let before = index.events.partition_point(|(_, end)| *end <= offset).checked_sub(1)?;
            let ((first, _), (last, end)) = (index.events[0], index.events[before]);
            let first = self.mark.map_or(first, |mark| mark.first.min(first));
            Some(EventMark { first, last, end })
        });
        found.flatten().or(self.mark)
    }
}
