//! Source → outbox: looks at a batch of sources, writes what is new as redacted parts, and makes them durable in one sync.
//!
//! Runs on a blocking thread and changes no state: the mirror commits what comes back, and only then does a cursor move. A
//! kill anywhere in here leaves files in the outbox that no state names; they are swept at the next start and captured again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::durable::Disk;
use crate::ledger::Ledgers;
use crate::mirror::find::Finder;
use crate::outbox::Outbox;
use crate::part::{SessionKey, hex};
use crate::redact::{Counts, Redactor};
use crate::source::database::{About, Databases, SessionRow};
use crate::source::{self, Chunk, Cursor, Depth, Encoding, Files, Next, Reading, Rewrite};
use crate::source::{SourceError, Stat, Unfinished, Verdict};
use crate::state::PendingPart;

use super::rows;

/// Bytes captured before a commit: one sync for many small sessions, and not much to do again after a kill.
pub(crate) const BATCH_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Sources looked at in one batch, so that the mirror answers commands in between.
pub(crate) const BATCH_LOOKS_MAX: usize = 512;

/// A buffer that a huge record made larger than this is not kept.
const REDACTED_BYTES_KEPT: usize = 4 * source::CHUNK_BYTES;

/// What capture works with.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    pub(crate) files: Arc<dyn Files>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) redactor: Arc<Redactor>,
    pub(crate) outbox: Outbox,
    /// Knows how each agent names a working directory.
    pub(crate) finder: Arc<dyn Finder>,
    pub(crate) databases: Arc<Databases>,
    pub(crate) ledgers: Ledgers,
}

/// How closely a source is compared with what was captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Care {
    /// Its first bytes and those before the cursor.
    Quick,
    /// All of it, if it changed at all.
    WholeIfChanged,
    /// All of it.
    Whole,
}

/// A source to look at.
#[derive(Debug)]
pub(crate) struct Look {
    pub(crate) key: SessionKey,
    pub(crate) path: PathBuf,
    pub(crate) encoding: Encoding,
    pub(crate) cursor: Cursor,
    pub(crate) next_seq: u32,
    pub(crate) care: Care,
    pub(crate) unfinished: Unfinished,
    /// The session's working directory is not known: the records that are captured may name it.
    pub(crate) wants_cwd: bool,
    /// RFC 3339, for the parts.
    pub(crate) now: String,
}

/// What was seen there.
#[derive(Debug)]
pub(crate) enum Seen {
    /// All complete records are captured. `unfinished_bytes` of a record without its newline wait.
    Read {
        parts: Vec<(PendingPart, Cursor)>,
        cursor: Cursor,
        unfinished_bytes: u64,
        /// What the agent's database says about the session, where it is rows of one.
        told: Option<Box<Told>>,
    },
    /// The batch was full before the source was read to its end.
    More { parts: Vec<(PendingPart, Cursor)> },
    /// What is before the cursor is not what was captured.
    Rewritten { stat: Stat, why: Rewrite },
    /// Which of its rows are captured is not known any more; the store knows.
    Unledgered,
    /// It moved while it was read: look again.
    Changed { parts: Vec<(PendingPart, Cursor)> },
    /// The source cannot be read; what was read before is kept.
    Failed { parts: Vec<(PendingPart, Cursor)>, error: SourceError },
}

impl Seen {
    /// The parts that were captured, each with the cursor after it.
    pub(crate) fn parts(&self) -> &[(PendingPart, Cursor)] {
        match self {
            Seen::Read { parts, .. }
            | Seen::More { parts }
            | Seen::Changed { parts }
            | Seen::Failed { parts, .. } => parts,
            Seen::Rewritten { .. } | Seen::Unledgered => &[],
        }
    }
}

/// What an agent's database says about a session, without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) cwd: Option<String>,
    pub(crate) about: About,
}

/// What came of a batch.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// What was seen, by session.
    pub(crate) seen: Vec<(SessionKey, Seen)>,
    /// Working directories that captured records named, where they were not known.
    pub(crate) cwds: BTreeMap<SessionKey, String>,
    /// Looks that the batch had no room for.
    pub(crate) rest: Vec<SessionKey>,
    /// The outbox could not be written: nothing of this batch may be committed.
    pub(crate) error: Option<std::io::Error>,
}

/// Captures what is new. Everything that the result names is durable in the outbox.
pub(crate) fn capture(tools: &Tools, looks: Vec<Look>) -> Batch {
    let mut batch = Batch::default();
    let mut written = Written::default();
    tools.databases.begin_look();
    for look in looks {
        if written.bytes >= BATCH_BYTES_MAX || batch.error.is_some() {
            batch.rest.push(look.key);
            continue;
        }
        match look_at(tools, &look, &mut written) {
            Ok(seen) => {
                let cwd = written.cwd.take();
                batch.cwds.extend(cwd.map(|cwd| (look.key.clone(), cwd)));
                batch.seen.push((look.key, seen));
            }
            Err(error) => {
                batch.error = Some(error);
                batch.rest.push(look.key);
            }
        }
    }
    if batch.error.is_none()
        && !written.paths.is_empty()
        && let Err(error) = tools.disk.sync(&written.paths)
    {
        batch.error = Some(error);
    }
    batch
}

#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) paths: Vec<PathBuf>,
    pub(super) bytes: u64,
    redacted: Vec<u8>,
    /// Of the session that is being read.
    cwd: Option<String>,
}

/// An `Err` is a failure to write the outbox; failures to read are part of what was seen.
fn look_at(tools: &Tools, look: &Look, written: &mut Written) -> std::io::Result<Seen> {
    if look.encoding == Encoding::Rows {
        return rows::look_at(tools, look, written);
    }
    let session = match untold(tools, look) {
        Ok(session) => session,
        Err(error) => return Ok(Seen::Failed { parts: Vec::new(), error }),
    };
    let told = session.as_ref().map(|session| Box::new(rows::told(&tools.redactor, session)));
    let seen = look_into(tools, look, told, written)?;
    if let (Some(session), Seen::Read { .. }) = (session, &seen) {
        tools.databases.note_told(&look.path, &session);
    }
    Ok(seen)
}

/// What the agent's database says of a session whose events are in one, where that is not what it said before.
fn untold(tools: &Tools, look: &Look) -> Result<Option<SessionRow>, SourceError> {
    if look.encoding != Encoding::Events {
        return Ok(None);
    }
    tools.databases.untold(look.key.harness(), &look.path, look.care == Care::Whole)
}

fn look_into(
    tools: &Tools,
    look: &Look,
    told: Option<Box<Told>>,
    written: &mut Written,
) -> std::io::Result<Seen> {
    let verdict = check(tools, look);
    let cursor = match verdict {
        Ok(Verdict::Unchanged) if has_nothing(look) => return Ok(quiet(&look.cursor, told)),
        Ok(Verdict::Unchanged) => look.cursor.clone(),
        // What is in a database may end before the cursor, where its agent has put it away.
        Ok(Verdict::Intact { cursor, more: false }) if look.encoding == Encoding::Events => {
            return Ok(quiet(&Cursor { rest: Some(0), ..cursor }, told));
        }
        Ok(Verdict::Intact { cursor, .. }) => cursor,
        Ok(Verdict::Rewritten { stat, why }) => return Ok(Seen::Rewritten { stat, why }),
        Err(error) => return Ok(Seen::Failed { parts: Vec::new(), error }),
    };
    let mut parts = Vec::new();
    let opened = Reading::open(&*tools.files, &look.path, look.encoding, &cursor);
    let mut reading = match opened {
        Ok(Ok(reading)) => reading,
        Ok(Err(Verdict::Rewritten { stat, why })) => return Ok(Seen::Rewritten { stat, why }),
        Ok(Err(_)) => return Ok(Seen::Changed { parts }),
        Err(error) => return Ok(Seen::Failed { parts, error }),
    };
    let mut seq = look.next_seq;
    let mut at = cursor;
    loop {
        if written.bytes >= BATCH_BYTES_MAX {
            return Ok(Seen::More { parts });
        }
        match reading.next(look.unfinished) {
            Ok(Next::Chunk(chunk)) => {
                at = chunk.cursor.clone();
                if look.wants_cwd && written.cwd.is_none() {
                    written.cwd =
                        tools.finder.cwd(look.key.harness(), &chunk.bytes, chunk.start == 0);
                }
                let part = write_part(tools, look, seq, chunk, written)?;
                seq += 1;
                parts.push((part, at.clone()));
            }
            Ok(Next::End { unfinished_bytes }) => {
                let cursor = Cursor { rest: Some(unfinished_bytes), ..at };
                return Ok(Seen::Read { parts, cursor, unfinished_bytes, told });
            }
            Ok(Next::Changed) => return Ok(Seen::Changed { parts }),
            Err(error) => return Ok(Seen::Failed { parts, error }),
        }
    }
}

fn check(tools: &Tools, look: &Look) -> Result<Verdict, SourceError> {
    let check =
        |depth| source::check(&*tools.files, &look.path, look.encoding, &look.cursor, depth);
    match look.care {
        Care::Quick => check(Depth::Quick),
        Care::Whole => check(Depth::Whole),
        Care::WholeIfChanged => match check(Depth::Quick)? {
            Verdict::Intact { .. } => check(Depth::Whole),
            verdict => Ok(verdict),
        },
    }
}

/// Whether an unchanged file has nothing that this look would take.
fn has_nothing(look: &Look) -> bool {
    let rest = look.cursor.rest;
    rest == Some(0) || (rest.is_some() && look.unfinished == Unfinished::Wait)
}

fn quiet(cursor: &Cursor, told: Option<Box<Told>>) -> Seen {
    let unfinished_bytes = cursor.rest.unwrap_or(0);
    Seen::Read { parts: Vec::new(), cursor: cursor.clone(), unfinished_bytes, told }
}

pub(super) fn write_part(
    tools: &Tools,
    look: &Look,
    seq: u32,
    chunk: Chunk,
    written: &mut Written,
) -> std::io::Result<PendingPart> {
    let mut redactions = Counts::new();
    // One buffer for a whole batch: memory that is given back and asked for again tears holes that stay in the process.
    let mut bytes = std::mem::take(&mut written.redacted);
    bytes.clear();
    tools.redactor.redact(&chunk.context, &chunk.bytes, &mut bytes, &mut redactions);
    let range = [chunk.start, chunk.start + chunk.bytes.len() as u64];
    drop(chunk.bytes); // A record may be large: it and its redacted form are all that is held.
    let part = PendingPart {
        seq,
        sha256: hex(&Sha256::digest(&bytes)),
        range,
        bytes: bytes.len() as u64,
        redactions: redactions.into(),
        cut: chunk.cut,
        captured_at: look.now.clone(),
        stored_at: None,
        named: false,
    };
    let path = tools.outbox.path(&look.key, &part);
    let mut file = tools.disk.create(&path)?;
    file.write_all(&bytes)?;
    file.flush()?;
    written.bytes += part.bytes;
    written.paths.push(path);
    if bytes.capacity() <= REDACTED_BYTES_KEPT {
        written.redacted = bytes;
    }
    Ok(part)
}
