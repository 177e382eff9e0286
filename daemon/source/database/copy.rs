//! A private copy of a database that somebody else writes to: plain reads there, files of our own here, and SQLite only here.
//!
//! The order of reading makes the copy sound. In WAL mode every page that changed since the WAL began is in the WAL, before a
//! checkpoint puts it into the main file, and the WAL begins anew only with another header. So: header, main file, WAL, header
//! again; if both headers are the same, whatever a checkpoint did to the main file meanwhile is also in the WAL that was read
//! after it. Without a WAL the main file itself has to hold still, and a rollback journal is copied with it, so that a
//! transaction whose writer died is rolled back, in the copy. Knows files and SQLite's headers; knows nothing of tables.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::{Connection, OpenFlags};
use rustix::fs::OFlags;

use super::super::{Files, RECORD_BYTES_MAX, SourceError, SourceFile, Stat};

/// Largest database, with its WAL, that is copied: the largest that users report have some hundred megabytes, and a copy of
/// more would be noticed on their disk.
const DATABASE_BYTES_MAX: u64 = 4 << 30;

/// Readings of a database whose writer does not pause, before the next look is waited for.
const TRIES: u32 = 8;

/// Between two of them: a transaction of an agent takes a few milliseconds.
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// Bytes that are compared, and written where they differ, at once.
const BLOCK_BYTES: usize = 256 << 10;

/// A file that changed less than this before it was looked at may change again without another time: file systems count
/// time in steps of some milliseconds, network ones in steps of a second or two.
const RECENT: Duration = Duration::from_secs(2);

/// Bytes of a WAL's header; the salts in it are others each time the WAL begins anew.
const WAL_HEADER_BYTES: usize = 32;

/// Longest time that SQLite may work on one question: a schema that was made to be slow must not hold up the others.
const WORK_MAX: Duration = Duration::from_secs(60);

/// Instructions of SQLite between two looks at the clock.
const WORK_STEP: i32 = 100_000;

/// Where SQLite itself tells of tables and columns.
const SCHEMA: [&str; 4] =
    ["sqlite_master", "sqlite_schema", "sqlite_sequence", "pragma_table_info"];

/// What the file system says of a database, without opening anything. The same twice means that nothing changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Evidence {
    pub(super) main: Stat,
    wal: Option<Stat>,
    journal: Option<Stat>,
    /// Looked at so soon after a change that the next one may leave no trace.
    recent: bool,
}

impl Evidence {
    /// Looks at a database and what lies beside it.
    pub(super) fn of(files: &dyn Files, path: &Path) -> Result<Evidence, SourceError> {
        let main = files.stat(path)?;
        let wal = beside(files, path, "-wal")?;
        let journal = beside(files, path, "-journal")?;
        let all = [Some(main), wal, journal];
        let touched = all.iter().flatten().map(|s| s.mtime_ns.max(s.ctime_ns)).max().unwrap_or(0);
        let recent = now_ns().saturating_sub(touched) < RECENT.as_nanos() as i64;
        Ok(Evidence { main, wal, journal, recent })
    }

    /// Whether nothing changed since, for certain.
    pub(super) fn is_still(&self, now: &Evidence) -> bool {
        !self.recent && self.same(now)
    }

    fn same(&self, other: &Evidence) -> bool {
        (self.main, self.wal, self.journal) == (other.main, other.wal, other.journal)
    }
}

fn beside(files: &dyn Files, path: &Path, suffix: &str) -> Result<Option<Stat>, SourceError> {
    match files.stat(&sibling(path, suffix)) {
        Ok(stat) => Ok(Some(stat)),
        Err(SourceError::Missing(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The name of a file that SQLite keeps beside a database.
pub(super) fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// The copy of one database.
#[derive(Debug)]
pub(super) struct Copy {
    dir: PathBuf,
    /// Bytes that stay free on our disk.
    free_bytes_min: u64,
    /// What the copied main file was copied from, as long as it can be used again.
    held: Option<Held>,
    /// Whether the files are a database as it was at some moment.
    sound: bool,
}

#[derive(Debug)]
struct Held {
    main: Stat,
    wal: Vec<u8>,
}

impl Copy {
    /// In a directory of its own, which need not exist.
    pub(super) fn new(dir: PathBuf, free_bytes_min: u64) -> Copy {
        Copy { dir, free_bytes_min, held: None, sound: false }
    }

    fn main(&self) -> PathBuf {
        self.dir.join("copy.db")
    }

    /// Whether there is something to open.
    pub(super) fn is_there(&self) -> bool {
        self.sound
    }

    /// Removes the copy.
    pub(super) fn remove(&mut self) {
        (self.held, self.sound) = (None, false);
        // What cannot be removed now is removed at the next start.
        let _ = std::fs::remove_dir_all(&self.dir);
    }

    /// Brings the copy up to date. What comes back was seen before the first byte was read. Nobody may have the copy open.
    pub(super) fn refresh(
        &mut self,
        files: &dyn Files,
        path: &Path,
    ) -> Result<Evidence, SourceError> {
        self.sound = false;
        for attempt in 0..TRIES {
            if attempt > 0 {
                std::thread::sleep(TRY_AGAIN);
            }
            if let Some(evidence) = self.attempt(files, path)? {
                self.sound = true;
                return Ok(evidence);
            }
        }
        Err(SourceError::Busy(path.display().to_string()))
    }

    /// One reading; `None` when the database moved meanwhile.
    fn attempt(&mut self, files: &dyn Files, path: &Path) -> Result<Option<Evidence>, SourceError> {
        let before = Evidence::of(files, path)?;
        self.check_room(path, &before)?;
        let wal = start_of(files, &sibling(path, "-wal"), WAL_HEADER_BYTES)?;
        let journal = journal_of(files, path)?;
        let held = self.held.take();
        let usable = |held: &Held| held.main == before.main && Some(&held.wal) == wal.as_ref();
        let keep = journal.is_none() && held.as_ref().is_some_and(usable);
        if !keep {
            self.take(files, path, "")?;
        }
        self.take_or_remove(files, path, "-wal", wal.is_some())?;
        self.take_or_remove(files, path, "-journal", journal.is_some())?;
        if start_of(files, &sibling(path, "-wal"), WAL_HEADER_BYTES)? != wal
            || journal_of(files, path)? != journal
        {
            return Ok(None);
        }
        let after = Evidence::of(files, path)?;
        let is_sound = match (&wal, &journal) {
            (Some(_), None) => before.main.same_inode(&after.main),
            _ => before.same(&after) && self.held_still(files, path, &before, journal.is_some())?,
        };
        if !is_sound {
            return Ok(None);
        }
        if let (Some(wal), None) = (wal, journal) {
            self.held = Some(Held { main: before.main, wal });
        }
        Ok(Some(before))
    }

    /// Where only times tell that a file held still, and they are too fresh to tell: reads it once more, and nothing may differ.
    fn held_still(
        &self,
        files: &dyn Files,
        path: &Path,
        before: &Evidence,
        journal: bool,
    ) -> Result<bool, SourceError> {
        if !before.recent {
            return Ok(true);
        }
        let same =
            !self.take(files, path, "")? && (!journal || !self.take(files, path, "-journal")?);
        Ok(same && Evidence::of(files, path)?.same(before))
    }

    fn check_room(&self, path: &Path, evidence: &Evidence) -> Result<(), SourceError> {
        let size = |stat: &Option<Stat>| stat.map_or(0, |stat| stat.size);
        let bytes = evidence.main.size + size(&evidence.wal) + size(&evidence.journal);
        if bytes > DATABASE_BYTES_MAX {
            let what = format!(
                "it has {} MiB, and {} are the most",
                bytes >> 20,
                DATABASE_BYTES_MAX >> 20
            );
            return Err(SourceError::uncopied(path, what));
        }
        let there = |name: PathBuf| name.symlink_metadata().map_or(0, |m| m.len());
        let have = there(self.main()) + there(sibling(&self.main(), "-wal"));
        let need = bytes.saturating_sub(have);
        if need > 0 && free_bytes(&self.dir).saturating_sub(self.free_bytes_min) < need {
            let what = format!(
                "{} MiB more would leave too little room on the disk",
                need.div_ceil(1 << 20)
            );
            return Err(SourceError::uncopied(path, what));
        }
        Ok(())
    }

    fn take_or_remove(
        &self,
        files: &dyn Files,
        path: &Path,
        suffix: &str,
        there: bool,
    ) -> Result<(), SourceError> {
        if there {
            match self.take(files, path, suffix) {
                // Gone since; the second look at its beginning will say so.
                Err(SourceError::Missing(_)) => {}
                done => return done.map(drop),
            }
        }
        let own = sibling(&self.main(), suffix);
        match std::fs::remove_file(&own) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SourceError::io(&own, error))
            }
            _ => Ok(()),
        }
    }

    /// Makes our file the same as theirs, writing only what differs; whether anything did.
    fn take(&self, files: &dyn Files, path: &Path, suffix: &str) -> Result<bool, SourceError> {
        let (theirs, own) = (sibling(path, suffix), sibling(&self.main(), suffix));
        let source = files.open(&theirs)?;
        let target = self.open_own(&own).map_err(|error| SourceError::io(&own, error))?;
        let (mut new, mut old) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
        let (mut at, mut differs) = (0, false);
        loop {
            let read = fill(|buffer, at| source.read_at(buffer, at), &mut new, at)
                .map_err(|error| SourceError::io(&theirs, error))?;
            let failed = |error| SourceError::io(&own, error);
            let had = fill(|buffer, at| target.read_at(buffer, at), &mut old[..read], at)
                .map_err(failed)?;
            if new[..read] != old[..had] {
                differs = true;
                target.write_all_at(&new[..read], at).map_err(failed)?;
            }
            at += read as u64;
            if read < BLOCK_BYTES {
                differs |= target.metadata().map_err(failed)?.len() != at;
                target.set_len(at).map_err(failed)?;
                return Ok(differs);
            }
        }
    }

    fn open_own(&self, own: &Path) -> io::Result<File> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(flags.bits().cast_signed())
            .mode(0o600)
            .open(own)
    }

    /// Opens the copy, to read these tables and no others. Its index of the WAL is in memory, and closing it leaves both files
    /// as they are.
    pub(super) fn open(&self, readable: &'static [&'static str]) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(self.main(), flags)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        db.set_limit(Limit::SQLITE_LIMIT_LENGTH, RECORD_BYTES_MAX as i32)?;
        // Temporary tables hold text that is not redacted: never in a file elsewhere.
        db.execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA temp_store = MEMORY; PRAGMA cell_size_check = ON;
             PRAGMA cache_size = -1024;",
        )?;
        // The first read rolls a hot journal back; after that nothing writes.
        db.query_row("SELECT count(*) FROM sqlite_master", [], |_| Ok(()))?;
        db.execute_batch("PRAGMA query_only = ON;")?;
        let is_readable = move |table: &str| readable.contains(&table) || SCHEMA.contains(&table);
        db.authorizer(Some(move |context: AuthContext<'_>| match context.action {
            AuthAction::Read { table_name, .. } if !is_readable(table_name) => Authorization::Deny,
            _ => Authorization::Allow,
        }))?;
        Ok(db)
    }
}

/// From now on SQLite may work for a limited time before it gives up.
pub(super) fn limit_work(db: &Connection) -> rusqlite::Result<()> {
    let until = Instant::now() + WORK_MAX;
    db.progress_handler(WORK_STEP, Some(move || Instant::now() > until))
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The beginning of a file, as much as there is of it; `None` when there is none, or nothing in it.
fn start_of(files: &dyn Files, path: &Path, bytes: usize) -> Result<Option<Vec<u8>>, SourceError> {
    let file: Box<dyn SourceFile> = match files.open(path) {
        Ok(file) => file,
        Err(SourceError::Missing(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut start = vec![0; bytes];
    let read = fill(|buffer, at| file.read_at(buffer, at), &mut start, 0)
        .map_err(|error| SourceError::io(path, error))?;
    start.truncate(read);
    Ok((read > 0).then_some(start))
}

/// The beginning of a rollback journal that is in force: one that ended begins with zeros, or is empty or gone.
fn journal_of(files: &dyn Files, path: &Path) -> Result<Option<Vec<u8>>, SourceError> {
    let start = start_of(files, &sibling(path, "-journal"), WAL_HEADER_BYTES)?;
    Ok(start.filter(|start| start.iter().any(|byte| *byte != 0)))
}

/// Reads until the buffer is full or the file ends.
fn fill(
    mut read_at: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
    buffer: &mut [u8],
    at: u64,
) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Bytes that may still be written where the directory is, or will be.
fn free_bytes(dir: &Path) -> u64 {
    let found = dir.ancestors().find_map(|dir| rustix::fs::statvfs(dir).ok());
    found.map_or(u64::MAX, |stat| stat.f_bavail.saturating_mul(stat.f_frsize))
}
