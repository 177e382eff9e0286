//! Which states of the rows of a session are captured: a file beside the state for each session that is rows of a database.
//!
//! Each line belongs to a position of the session's log, as the parts do. What is added becomes durable with the parts of its
//! batch, before the commit that moves the cursor to that position; so lines behind the cursor speak of a capture that was
//! never committed, and do not count. Digests are of unredacted rows: they never leave this machine. Knows ids, digests and
//! positions; knows nothing of databases or parts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use crate::durable::Disk;
use crate::part::SessionKey;
use crate::state::State;

/// First line of a ledger, before the position that it begins at.
const HEADER: &str = "rows 1 ";

/// A ledger with more lines than this for each row is written anew: rows that change often must not make it grow for ever.
const LINES_A_ROW_MAX: usize = 4;

/// Lines below which that is not worth while.
const LINES_MIN: usize = 256;

/// Bytes of a digest.
const DIGEST_BYTES: usize = 16;

/// What is captured of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The state with this digest.
    Captured([u8; DIGEST_BYTES]),
    /// Something; which state is not known.
    Unknown,
    /// That it is gone.
    Gone,
}

/// What is captured of all rows of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    pub(crate) marks: BTreeMap<i64, Mark>,
    /// Where the log ends.
    pub(crate) position: u64,
    lines: usize,
    /// The file holds more than that, or nothing yet: it is written as a whole.
    whole: bool,
}

/// Where ledgers are.
#[derive(Debug, Clone)]
pub(crate) struct Ledgers {
    dir: PathBuf,
}

impl Ledgers {
    /// Those in a state directory.
    pub(crate) fn new(state_dir: &Path) -> Ledgers {
        Ledgers { dir: state_dir.join("rows") }
    }

    fn path(&self, key: &SessionKey) -> PathBuf {
        self.dir.join(key.harness()).join(format!("{}.ledger", key.id()))
    }

    /// What is captured up to a position. `None`: the ledger is lost, or is another's.
    pub(crate) fn read(
        &self,
        disk: &dyn Disk,
        key: &SessionKey,
        position: u64,
    ) -> io::Result<Option<Ledger>> {
        let bytes = match disk.read(&self.path(key)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let ledger = parse(&bytes, position);
        let fresh = || Ledger { whole: true, ..Ledger::default() };
        Ok(ledger.or_else(|| (position == 0).then(fresh)))
    }

    /// Adds what was captured between the ledger's position and another. The file that comes back is to be synced with the
    /// parts; `None`: it is durable already.
    pub(crate) fn add(
        &self,
        disk: &dyn Disk,
        key: &SessionKey,
        ledger: &mut Ledger,
        marks: &[(i64, Mark)],
        position: u64,
    ) -> io::Result<Option<PathBuf>> {
        let path = self.path(key);
        let mut added = String::new();
        marks.iter().for_each(|(id, mark)| push_line(&mut added, position, *id, *mark));
        let whole =
            ledger.whole || ledger.lines > LINES_MIN.max(LINES_A_ROW_MAX * ledger.marks.len());
        if whole {
            // Not all at the new position: killed before the commit, nothing would be known of the rows at the old one.
            let text = ledger.text() + &added;
            ledger.lines = ledger.marks.len();
            if ledger.position == 0 {
                // Nothing can be lost of it, so that thousands of new sessions can share one wait for the disk.
                disk.create(&path)?.write_all(text.as_bytes())?;
            } else {
                disk.replace(&path, text.as_bytes())?;
            }
        } else {
            disk.append(&path, added.as_bytes())?;
        }
        let durable = whole && ledger.position > 0;
        ledger.whole = false;
        ledger.lines += marks.len();
        ledger.marks.extend(marks.iter().copied());
        ledger.position = position;
        Ok((!durable).then_some(path))
    }

    /// Writes a ledger as a whole, durably.
    pub(crate) fn replace(
        &self,
        disk: &dyn Disk,
        key: &SessionKey,
        ledger: &Ledger,
    ) -> io::Result<()> {
        disk.replace(&self.path(key), ledger.text().as_bytes())
    }

    /// Removes the ledgers of sessions that are not followed any more.
    pub(crate) fn sweep(&self, disk: &dyn Disk, state: &State) -> io::Result<()> {
        for (path, _) in disk.list(&self.dir)? {
            let name = path.strip_prefix(&self.dir).ok().and_then(Path::to_str);
            let key = name.and_then(|name| name.strip_suffix(".ledger")?.parse().ok());
            let record = key.and_then(|key: SessionKey| state.sessions.get(&key));
            if record.is_none_or(|record| record.superseded) {
                disk.remove(&path)?;
            }
        }
        Ok(())
    }
}

impl Ledger {
    /// What is known of rows at a position, from elsewhere.
    pub(crate) fn of(marks: BTreeMap<i64, Mark>, position: u64) -> Ledger {
        Ledger { lines: marks.len(), marks, position, whole: true }
    }

    /// The highest id that ever had a row.
    pub(crate) fn last_id(&self) -> Option<i64> {
        self.marks.last_key_value().map(|(id, _)| *id)
    }

    fn text(&self) -> String {
        let mut text = format!("{HEADER}{}\n", self.position);
        self.marks.iter().for_each(|(id, mark)| push_line(&mut text, self.position, *id, *mark));
        text
    }
}

fn push_line(text: &mut String, position: u64, id: i64, mark: Mark) {
    write!(text, "{position} {id} ").expect("a string takes everything");
    match mark {
        Mark::Captured(digest) => {
            digest.iter().for_each(|b| write!(text, "{b:02x}").expect("a string takes everything"));
        }
        Mark::Unknown => text.push('?'),
        Mark::Gone => text.push('-'),
    }
    text.push('\n');
}

/// What a ledger's file says up to a position; `None` when it does not reach it, or is damaged before it.
fn parse(bytes: &[u8], position: u64) -> Option<Ledger> {
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let header = std::str::from_utf8(lines.next()?.strip_suffix(b"\n")?).ok()?;
    let mut ledger =
        Ledger { position: header.strip_prefix(HEADER)?.parse().ok()?, ..Ledger::default() };
    for line in lines {
        // What a kill left without its end is behind the cursor.
        let parsed = line.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok());
        let Some((at, id, mark)) = parsed.and_then(parse_line).filter(|(at, ..)| *at <= position)
        else {
            ledger.whole = true;
            break;
        };
        ledger.position = at;
        ledger.marks.insert(id, mark);
        ledger.lines += 1;
    }
    (ledger.position == position).then_some(ledger)
}

fn parse_line(line: &str) -> Option<(u64, i64, Mark)> {
    let mut words = line.split(' ');
    let (position, id) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let mark = match words.next()? {
        "?" => Mark::Unknown,
        "-" => Mark::Gone,
        digits
            if digits.len() == 2 * DIGEST_BYTES
                && digits.bytes().all(|b| b.is_ascii_hexdigit()) =>
        {
            let mut digest = [0; DIGEST_BYTES];
            for (at, byte) in digest.iter_mut().enumerate() {
                *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).ok()?;
            }
            Mark::Captured(digest)
        }
        _ => return None,
    };
    words.next().is_none().then_some((position, id, mark))
}

#[cfg(test)]
mod tests;
