//! Whether what is before a cursor is still what was captured.
//!
//! A file that only grew is believed after a look at its first bytes and at those before the cursor; one that changed in any
//! other way (another inode, other times at the same size) is read up to the cursor and compared as a whole. So an append
//! costs little, a mere move is no rewrite, and a splice is found. Knows content; knows nothing of chunks.

use std::fmt;
use std::io;
use std::path::Path;

use super::content::Content;
use super::fingerprint::Walk;
use super::record::{Begun, Limits};
use super::{Cursor, Encoding, Files, SourceError, Stat};

/// How closely a source is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// First bytes and the bytes before the cursor, and more only when the file changed in an odd way.
    Quick,
    /// Everything before the cursor.
    Whole,
}

/// What a look at a source found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Identity, size and times are those of the cursor: nothing was opened. There may be content after the cursor that was
    /// there before, such as an unfinished record, or all of a session that is new.
    Unchanged,
    /// What is before the cursor is what was captured, as far as the depth looked.
    Intact {
        /// The same position, with the file as it is now.
        cursor: Cursor,
        /// Content may exist after the offset.
        more: bool,
    },
    /// What is before the cursor is not what was captured.
    Rewritten {
        /// The file as it is now.
        stat: Stat,
        /// How that was noticed.
        why: Rewrite,
    },
}

/// How a rewrite was noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rewrite {
    /// The content ends before the cursor.
    Shorter,
    /// The first bytes are others.
    HeadDiffers,
    /// The bytes just before the cursor are others.
    TailDiffers,
    /// Bytes in between are others.
    MiddleDiffers,
    /// A database gives ids to rows that other rows had.
    IdsAgain,
    /// Its agent has put so much of it away that what follows cannot be compared with what was captured.
    PutAway,
}

impl fmt::Display for Rewrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Rewrite::Shorter => "it is shorter than what was captured",
            Rewrite::HeadDiffers => "its first bytes changed",
            Rewrite::TailDiffers => "the last bytes that were captured changed",
            Rewrite::MiddleDiffers => "bytes in its middle changed",
            Rewrite::IdsAgain => "its database was replaced: row ids began again",
            Rewrite::PutAway => {
                "what was captured is no longer in its database, and something follows it"
            }
        })
    }
}

/// Looks whether what is before the cursor is still there. The descriptor is closed when this returns.
///
/// A change within one tick of the file system's clock leaves no trace in the times: so a [`Depth::Whole`] check belongs to
/// the time when a session has been quiet for some seconds.
pub(crate) fn check(
    files: &dyn Files,
    path: &Path,
    encoding: Encoding,
    cursor: &Cursor,
    depth: Depth,
) -> Result<Verdict, SourceError> {
    check_within(Source { files, path, encoding, cursor }, depth, Limits::REAL)
}

/// A source, and how far it was captured.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) files: &'a dyn Files,
    pub(super) path: &'a Path,
    pub(super) encoding: Encoding,
    pub(super) cursor: &'a Cursor,
}

pub(super) fn check_within(
    source: Source<'_>,
    depth: Depth,
    limits: Limits,
) -> Result<Verdict, SourceError> {
    let Source { files, path, encoding, cursor } = source;
    let stat = files.stat(path)?;
    if stat == cursor.stat && (depth == Depth::Quick || cursor.verified) {
        return Ok(Verdict::Unchanged);
    }
    if cursor.offset == 0 {
        return Ok(Verdict::Intact { cursor: Cursor::start(stat), more: stat.size > 0 });
    }
    if is_shorter(stat, encoding, cursor) {
        return Ok(Verdict::Rewritten { stat, why: Rewrite::Shorter });
    }
    let failed = |error| SourceError::io(path, error);
    let mut opened = open(source, depth, limits)?;
    let stat = opened.stat;
    let whole = match opened.before {
        Ok(before) => before.whole,
        // Nothing is left to compare, and nothing to read.
        Err(Rewrite::PutAway) if opened.content.is_at_end(cursor.offset).map_err(failed)? => true,
        Err(why) => return Ok(Verdict::Rewritten { stat, why }),
    };
    let more = match encoding {
        Encoding::Plain | Encoding::Rows => stat.size > cursor.offset,
        Encoding::Zstd | Encoding::Events => {
            !opened.content.is_at_end(cursor.offset).map_err(failed)?
        }
    };
    // Of a file that an agent made of them it stays true.
    let events = opened.content.file().mark(cursor.offset).or(cursor.events);
    let cursor = Cursor { stat, verified: whole, rest: None, events, ..cursor.clone() };
    Ok(Verdict::Intact { cursor, more })
}

/// Whether all that was captured of a source is still in it. Not so where its agent has put the first of it away.
pub(crate) fn is_whole(
    files: &dyn Files,
    path: &Path,
    cursor: &Cursor,
) -> Result<bool, SourceError> {
    Ok(files.open_at(path, cursor)?.starts_at() == 0)
}

/// A source that was opened and compared with a cursor.
pub(super) struct Opened {
    /// At the cursor, if nothing differs.
    pub(super) content: Content,
    /// The file before anything of it was read, so that a change during the comparison shows at the next look.
    pub(super) stat: Stat,
    pub(super) before: Result<Before, Rewrite>,
}

/// What was learned by comparing.
pub(super) struct Before {
    /// At the cursor.
    pub(super) walk: Walk,
    /// The record that the cursor is in.
    pub(super) begun: Begun,
    /// Whether everything before the cursor was read.
    whole: bool,
}

pub(super) fn open(
    source: Source<'_>,
    depth: Depth,
    limits: Limits,
) -> Result<Opened, SourceError> {
    let Source { files, path, encoding, cursor } = source;
    let file = files.open_at(path, cursor)?;
    let failed = |error| SourceError::io(path, error);
    let stat = file.stat().map_err(failed)?;
    let mut content = Content::new(file, encoding).map_err(failed)?;
    if is_shorter(stat, encoding, cursor) {
        return Ok(Opened { content, stat, before: Err(Rewrite::Shorter) });
    }
    let whole = depth == Depth::Whole || is_odd(&stat, &cursor.stat);
    let before = compare(&mut content, cursor, whole, limits).map_err(failed)?;
    Ok(Opened { content, stat, before })
}

fn is_shorter(stat: Stat, encoding: Encoding, cursor: &Cursor) -> bool {
    encoding == Encoding::Plain && stat.size < cursor.offset
}

/// Whether a file changed in a way that an append does not explain.
fn is_odd(now: &Stat, seen: &Stat) -> bool {
    now != seen && (!now.same_inode(seen) || now.size <= seen.size)
}

/// Reads what is before the cursor, all of it or as little as will do, and stays at the cursor.
pub(super) fn compare(
    content: &mut Content,
    cursor: &Cursor,
    whole: bool,
    limits: Limits,
) -> io::Result<Result<Before, Rewrite>> {
    // Compressed content has to be read from its start anyway; and a first block is both head and tail.
    let tail_start = limits.blocks.tail_start(cursor.offset);
    let starts_at = content.file().starts_at();
    if starts_at > 0 && (starts_at > tail_start || tail_start == 0) {
        return Ok(Err(Rewrite::PutAway));
    }
    let whole = whole || !content.is_plain() || tail_start == 0;
    // Of a content that begins later only the tail can be compared: its digest is of the bytes before it, too.
    let whole = whole && starts_at == 0;
    content.seek(0);
    let mut walk = Walk::start(limits.blocks);
    let mut begun = Begun::new(limits.context);
    let mut buffer = vec![0; limits.blocks.block];
    if starts_at == 0 {
        let head = cursor.offset.min(limits.blocks.head as u64);
        if !feed(content, &mut buffer, head, |bytes| walk_on(&mut walk, &mut begun, bytes))? {
            return Ok(Err(Rewrite::Shorter));
        }
        if !walk.fingerprint().same_head(&cursor.fingerprint) {
            return Ok(Err(Rewrite::HeadDiffers));
        }
    }
    if !whole {
        content.seek(tail_start);
        walk = Walk::at_tail(limits.blocks, &cursor.fingerprint, cursor.offset);
        begun = Begun::new(limits.context);
    }
    let rest = cursor.offset - walk.offset();
    if !feed(content, &mut buffer, rest, |bytes| walk_on(&mut walk, &mut begun, bytes))? {
        return Ok(Err(Rewrite::Shorter));
    }
    let found = walk.fingerprint();
    if !found.same_blocks(&cursor.fingerprint) {
        return Ok(Err(Rewrite::MiddleDiffers));
    }
    if !found.same_tail(&cursor.fingerprint) {
        return Ok(Err(Rewrite::TailDiffers));
    }
    if !whole && begun.tail().len() as u64 == rest {
        // The tail is all one record, so that record may have begun before it.
        begun = Begun::new(limits.context);
        let back = (cursor.offset - starts_at).min(limits.context as u64);
        content.seek(cursor.offset - back);
        if !feed(content, &mut buffer, back, |bytes| begun.push(bytes))? {
            return Ok(Err(Rewrite::Shorter));
        }
    }
    Ok(Ok(Before { walk, begun, whole: whole || starts_at > 0 }))
}

fn walk_on(walk: &mut Walk, begun: &mut Begun, bytes: &[u8]) {
    walk.push(bytes);
    begun.push(bytes);
}

/// Reads exactly so many bytes; `false` when the content ends before.
pub(super) fn feed(
    content: &mut Content,
    buffer: &mut [u8],
    mut bytes: u64,
    mut to: impl FnMut(&[u8]),
) -> io::Result<bool> {
    while bytes > 0 {
        let want = usize::try_from(bytes).unwrap_or(usize::MAX).min(buffer.len());
        let read = content.read(&mut buffer[..want])?;
        if read == 0 {
            return Ok(false);
        }
        to(&buffer[..read]);
        bytes -= read as u64;
    }
    Ok(true)
}
