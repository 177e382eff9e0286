//! Sessions that are rows of a database: which there are, which may have changed, and what their rows are now.
//!
//! One private copy serves all sessions of a database within a look, and an unchanged database costs three questions to the file
//! system and no copy. What changed is found by an overview (a question that an index answers), and in doubt by comparing all
//! rows of a session. Knows copies, sessions and row ids; what the tables are called and what a row says is the harness's to
//! know ([`Tables`]), and what was captured of it is its caller's.

mod copy;
#[cfg(test)]
mod event_tests;
mod events;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::fmt;
#[cfg(test)]
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use self::copy::{Copy, Evidence, limit_work};
use self::events::EventFile;
pub(crate) use self::tables::{
    About, EachLine, EachRow, Line, RowDigest, SessionRow, Tables, digest_of,
};
use super::{Cursor, EventMark, Files, OsFiles, SourceError, SourceFile, Stat};

/// A database up to this size is compared row by row at every look that finds it changed: it costs some milliseconds. In a
/// larger one only sessions are whose overview changed, and all of them when it has been quiet.
const COMPARED_BYTES_MAX: u64 = 16 << 20;

/// For this long after rows of a session were captured, it is compared row by row whenever its database changed: an agent
/// comes back to the rows that it wrote last.
const WARM: Duration = Duration::from_secs(600);

/// The copy of a database that has not changed for this long is removed: its text lies in one place less.
const COPY_KEPT: Duration = Duration::from_secs(60);

/// The path of a session in a database: below the database's own, where no file can be.
pub(crate) fn session_path(database: &Path, id: &str) -> PathBuf {
    let mut name = Vec::new();
    for byte in id.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            name.push(byte);
        } else {
            name.extend(format!("%{byte:02X}").bytes());
        }
    }
    // Nor may it be a name that a path has a meaning for.
    if name.is_empty() || name.iter().all(|byte| *byte == b'.') {
        name.push(b'%');
    }
    database.join(OsString::from_vec(name))
}

/// The database and the id of such a path.
pub(crate) fn session_of(path: &Path) -> Option<(&Path, String)> {
    let name = path.file_name()?.as_bytes();
    let mut id = Vec::new();
    let mut rest = name.strip_suffix(b"%").unwrap_or(name);
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first == b'%' {
            let pair = std::str::from_utf8(tail.get(..2)?).ok()?;
            id.push(u8::from_str_radix(pair, 16).ok()?);
            rest = &tail[2..];
        } else {
            id.push(*first);
        }
    }
    Some((path.parent()?, String::from_utf8(id).ok()?))
}

/// All databases that are known, behind the door to all other sources.
pub(crate) struct Databases {
    files: OsFiles,
    dir: PathBuf,
    free_bytes_min: u64,
    tables: HashMap<&'static str, Arc<dyn Tables>>,
    known: Mutex<HashMap<PathBuf, Arc<Mutex<Database>>>>,
    /// What the engine may ask at any time, so under a lock of its own that nobody holds for long.
    listed: Mutex<HashMap<PathBuf, HashMap<PathBuf, Stat>>>,
    /// Number of the look that is under way.
    look: AtomicU64,
}

impl fmt::Debug for Databases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Databases").field("dir", &self.dir).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic left is at worst a copy that is made again.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Databases {
    /// Copies go into this directory, which is ours alone: whatever a former process left there is removed.
    pub(crate) fn new(
        dir: PathBuf,
        free_bytes_min: u64,
        tables: impl IntoIterator<Item = (&'static str, Arc<dyn Tables>)>,
    ) -> Databases {
        let _ = std::fs::remove_dir_all(&dir); // One that cannot be removed is written over.
        Databases {
            files: OsFiles,
            dir,
            free_bytes_min,
            tables: tables.into_iter().collect(),
            known: Mutex::default(),
            listed: Mutex::default(),
            look: AtomicU64::new(1),
        }
    }

    /// How a harness keeps its sessions, if it keeps them in databases.
    pub(crate) fn tables(&self, harness: &str) -> Option<&Arc<dyn Tables>> {
        self.tables.get(harness)
    }

    /// From here on, what was looked at before has to be looked at again.
    pub(crate) fn begin_look(&self) {
        self.look.fetch_add(1, Ordering::Relaxed);
    }

    /// The sessions that a database has now.
    pub(crate) fn sessions(
        &self,
        harness: &str,
        path: &Path,
    ) -> Result<Vec<SessionRow>, SourceError> {
        let tables = self.tables_of(harness, path)?;
        let database = self.database(path, tables);
        let mut database = lock(&database);
        database.seen_in = 0;
        self.refresh(&mut database)?;
        let sessions = database.sessions.values().cloned().collect();
        database.note_given();
        database.drop_old_copy();
        Ok(sessions)
    }

    /// Those of its sessions that have rows and were given by no earlier call.
    pub(crate) fn new_sessions(
        &self,
        harness: &str,
        path: &Path,
    ) -> Result<Vec<SessionRow>, SourceError> {
        let tables = self.tables_of(harness, path)?;
        let database = self.database(path, tables);
        let mut database = lock(&database);
        database.seen_in = 0;
        self.refresh(&mut database)?;
        let given = std::mem::take(&mut database.given);
        let new = |session: &&SessionRow| session.rows > 0 && !given.contains(&session.id);
        let sessions = database.sessions.values().filter(new).cloned().collect();
        database.given = given;
        database.note_given();
        Ok(sessions)
    }

    /// Whether a database, as it was last looked at, has a session that this path is not the only one to name.
    pub(crate) fn stat_of(&self, path: &Path) -> Option<Result<Stat, SourceError>> {
        let database = path.parent()?;
        let listed = lock(&self.listed);
        let sessions = listed.get(database)?;
        let missing = || SourceError::Missing(path.display().to_string());
        Some(sessions.get(path).copied().ok_or_else(missing))
    }

    /// Looks at a session, by its path. The database is copied at most once in a look, whichever session asks first.
    pub(crate) fn look_at<T>(
        &self,
        harness: &str,
        path: &Path,
        with: impl FnOnce(&mut View<'_>) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        let missing = || SourceError::Missing(path.display().to_string());
        let tables = self.tables_of(harness, path)?;
        let (file, id) = session_of(path).ok_or_else(missing)?;
        let database = self.database(file, tables);
        let mut database = lock(&database);
        self.refresh(&mut database)?;
        let session = database.sessions.get(&id).cloned().ok_or_else(missing)?;
        let stat = stat_of(path, &database, &session);
        with(&mut View { databases: self, database: &mut database, session, stat })
    }

    /// Brings what is known of a session up to date, and says what the overview says of it now: `None` where its caller took
    /// notice of that before ([`Databases::note_told`]), unless it wants it once more.
    pub(crate) fn untold(
        &self,
        harness: &str,
        path: &Path,
        once_more: bool,
    ) -> Result<Option<SessionRow>, SourceError> {
        let missing = || SourceError::Missing(path.display().to_string());
        let tables = self.tables_of(harness, path)?;
        let (file, id) = session_of(path).ok_or_else(missing)?;
        let database = self.database(file, tables);
        let mut database = lock(&database);
        self.refresh(&mut database)?;
        let session = database.sessions.get(&id).ok_or_else(missing)?;
        let known = !once_more && database.told.get(&id) == Some(&session.overview);
        Ok((!known).then(|| session.clone()))
    }

    /// The caller has taken notice of an overview.
    pub(crate) fn note_told(&self, path: &Path, session: &SessionRow) {
        let known = path.parent().and_then(|file| lock(&self.known).get(file).cloned());
        if let Some(database) = known {
            lock(&database).told.insert(session.id.clone(), session.overview);
        }
    }

    /// The events of a session as a file, if the path is one's.
    fn event_file(&self, path: &Path, mark: Option<EventMark>) -> Option<Box<dyn SourceFile>> {
        let (file, id) = session_of(path)?;
        let database = lock(&self.known).get(file).cloned()?;
        Some(Box::new(EventFile::new(self.files, path, id, database, mark)))
    }

    fn tables_of(&self, harness: &str, path: &Path) -> Result<&Arc<dyn Tables>, SourceError> {
        self.tables(harness).ok_or_else(|| SourceError::unfit(path, "a database of no known kind"))
    }

    fn database(&self, path: &Path, tables: &Arc<dyn Tables>) -> Arc<Mutex<Database>> {
        let mut known = lock(&self.known);
        let database = known.entry(path.to_owned()).or_insert_with(|| {
            let name = hex(&digest_of(&[path.as_os_str().as_bytes()]));
            let copy = Copy::new(self.dir.join(name), self.free_bytes_min);
            Arc::new(Mutex::new(Database::new(path.to_owned(), tables.clone(), copy)))
        });
        database.clone()
    }

    /// Brings a database's overview up to date, unless that was done in this look or nothing changed.
    fn refresh(&self, database: &mut Database) -> Result<(), SourceError> {
        let look = self.look.load(Ordering::Relaxed);
        if database.seen_in == look {
            return Ok(());
        }
        let now = match Evidence::of(&self.files, &database.path) {
            Ok(now) => now,
            Err(error) => {
                if matches!(error, SourceError::Missing(_)) {
                    self.forget(database);
                }
                return Err(error);
            }
        };
        if !database.evidence.as_ref().is_some_and(|seen| seen.is_still(&now)) {
            database.refresh(&self.files)?;
            let paths = database.sessions.values().map(|session| {
                let path = session_path(&database.path, &session.id);
                let stat = stat_of(&path, database, session);
                (path, stat)
            });
            lock(&self.listed).insert(database.path.clone(), paths.collect());
        }
        database.seen_in = look;
        Ok(())
    }

    /// The database is gone, and its sessions with it.
    fn forget(&self, database: &mut Database) {
        database.close();
        database.copy.remove();
        database.evidence = None;
        database.sessions.clear();
        lock(&self.listed).insert(database.path.clone(), HashMap::new());
    }
}

impl Drop for Databases {
    fn drop(&mut self) {
        lock(&self.known).clear();
        let _ = std::fs::remove_dir(&self.dir);
    }
}

/// Sessions in databases are looked at through the same door as files: by name, and those that are events also read.
impl Files for Databases {
    fn open(&self, path: &Path) -> Result<Box<dyn SourceFile>, SourceError> {
        self.event_file(path, None).map_or_else(|| self.files.open(path), Ok)
    }

    fn open_at(&self, path: &Path, cursor: &Cursor) -> Result<Box<dyn SourceFile>, SourceError> {
        self.event_file(path, cursor.events).map_or_else(|| self.files.open(path), Ok)
    }

    fn stat(&self, path: &Path) -> Result<Stat, SourceError> {
        if let Some(known) = self.stat_of(path) {
            return known;
        }
        match self.files.stat(path) {
            // Below a file there are only sessions, and of these nothing is known before the file was read.
            Err(SourceError::Missing(_))
                if path.parent().is_some_and(|file| self.files.stat(file).is_ok()) =>
            {
                Err(SourceError::uncopied(path, "its database was not read yet"))
            }
            stat => stat,
        }
    }
}

/// What a session looks like from outside: an inode that no other session has, and times by its newest row.
fn stat_of(path: &Path, database: &Database, session: &SessionRow) -> Stat {
    // Rows that were rewritten are looked at as a file that was put in the place of another.
    let name = [path.as_os_str().as_bytes(), session.rewritten.as_deref().unwrap_or("").as_bytes()];
    let name = digest_of(&name[..if session.rewritten.is_some() { 2 } else { 1 }]);
    let ino = u64::from_le_bytes(std::array::from_fn(|at| name[at])) | 1 << 63;
    let dev = database.evidence.as_ref().map_or(0, |evidence| evidence.main.dev);
    Stat { dev, ino, size: session.rows, mtime_ns: session.last_ns, ctime_ns: session.last_ns }
}

fn hex(digest: &RowDigest) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One database.
struct Database {
    path: PathBuf,
    tables: Arc<dyn Tables>,
    copy: Copy,
    /// The open copy. Closed before the copy changes.
    db: Option<Connection>,
    /// What the file system said before the copy was made.
    evidence: Option<Evidence>,
    /// In which look that was last compared with the file system.
    seen_in: u64,
    changed_at: Instant,
    /// How often the overview was made.
    version: u64,
    /// From this version on a session that was not compared since is compared, whatever its overview says.
    doubted: u64,
    last_id: Option<i64>,
    sessions: BTreeMap<String, SessionRow>,
    compared: HashMap<String, Compared>,
    /// Overviews of which the caller has taken notice.
    told: HashMap<String, RowDigest>,
    /// Sessions that the finder was told of.
    given: HashSet<String>,
}

/// When a session's rows were last compared with what was captured.
#[derive(Debug, Clone)]
struct Compared {
    version: u64,
    overview: RowDigest,
    /// What was captured then; a commit that failed leaves another.
    offset: u64,
    captured_at: Option<Instant>,
}

impl Database {
    fn new(path: PathBuf, tables: Arc<dyn Tables>, copy: Copy) -> Database {
        Database {
            path,
            tables,
            copy,
            db: None,
            evidence: None,
            seen_in: 0,
            changed_at: Instant::now(),
            version: 0,
            doubted: 0,
            last_id: None,
            sessions: BTreeMap::new(),
            compared: HashMap::new(),
            told: HashMap::new(),
            given: HashSet::new(),
        }
    }

    fn refresh(&mut self, files: &dyn Files) -> Result<(), SourceError> {
        self.close();
        self.evidence = None;
        let evidence = self.copy.refresh(files, &self.path)?;
        let tables = self.tables.clone();
        let read = |db: &Connection| Ok((tables.sessions(db)?, tables.last_id(db)?));
        let (sessions, last_id) = self.ask(read).inspect_err(|_| {
            // What SQLite cannot read is not kept for a second try: the next copy may be better.
            self.close();
            self.copy.remove();
        })?;
        let sessions = sessions.into_iter().map(|session| (session.id.clone(), session)).collect();
        self.version += 1;
        if sessions == self.sessions {
            // Something changed that the overview does not show.
            self.doubted = self.version;
        }
        self.sessions = sessions;
        self.compared.retain(|id, _| self.sessions.contains_key(id));
        self.told.retain(|id, _| self.sessions.contains_key(id));
        self.last_id = last_id;
        self.changed_at = Instant::now();
        self.evidence = Some(evidence);
        Ok(())
    }

    /// Asks the copy something.
    fn ask<T>(
        &mut self,
        question: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SourceError> {
        let failed = |path: &Path, error| SourceError::database(path, error);
        if self.db.is_none() {
            let opened = self.copy.open(self.tables.readable());
            self.db = Some(opened.map_err(|error| failed(&self.path, error))?);
        }
        let db = self.db.as_ref().expect("it was opened just now");
        limit_work(db).and_then(|()| question(db)).map_err(|error| failed(&self.path, error))
    }

    /// As [`Database::ask`], also where the copy was removed meanwhile.
    fn ask_again<T>(
        &mut self,
        files: &dyn Files,
        question: impl FnOnce(&dyn Tables, &Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SourceError> {
        if !self.copy.is_there() {
            self.refresh(files)?;
        }
        let tables = self.tables.clone();
        self.ask(|db| question(&*tables, db))
    }

    fn close(&mut self) {
        self.db = None;
    }

    fn note_given(&mut self) {
        let ids = self.sessions.values().filter(|session| session.rows > 0);
        self.given = ids.map(|session| session.id.clone()).collect();
    }

    fn drop_old_copy(&mut self) {
        if self.copy.is_there() && self.changed_at.elapsed() >= COPY_KEPT {
            self.close();
            self.copy.remove();
        }
    }
}

/// A session of a database, as it was at one moment.
pub(crate) struct View<'a> {
    databases: &'a Databases,
    database: &'a mut Database,
    session: SessionRow,
    stat: Stat,
}

impl View<'_> {
    /// What the overview says of it.
    pub(crate) fn session(&self) -> &SessionRow {
        &self.session
    }

    /// What it looks like from outside.
    pub(crate) fn stat(&self) -> Stat {
        self.stat
    }

    /// What its harness knows of it.
    pub(crate) fn tables(&self) -> Arc<dyn Tables> {
        self.database.tables.clone()
    }

    /// The highest row id that the database ever gave, if it remembers.
    pub(crate) fn last_id(&self) -> Option<i64> {
        self.database.last_id
    }

    /// Whether its rows may be others than those that were captured up to an offset.
    pub(crate) fn may_differ(&mut self, offset: u64, whole: bool) -> bool {
        let database = &mut *self.database;
        let Some(compared) = database.compared.get(&self.session.id) else { return true };
        if compared.offset != offset || compared.overview != self.session.overview {
            return true;
        }
        if whole {
            // One session has been quiet, so its database may have been: then all are looked at once.
            database.doubted = database.doubted.max(compared.version + 1).min(database.version);
            return true;
        }
        if compared.version == database.version {
            return false; // This very copy was compared.
        }
        let small = database.evidence.as_ref().is_some_and(|e| e.main.size <= COMPARED_BYTES_MAX);
        let warm = compared.captured_at.is_some_and(|at| at.elapsed() < WARM);
        small || warm || compared.version < database.doubted
    }

    /// Goes through the rows, in ascending order of id.
    pub(crate) fn rows(&mut self, each: EachRow<'_>) -> Result<(), SourceError> {
        let (tables, id) = (self.tables(), self.session.id.clone());
        self.ask(|db| tables.rows(db, &id, each))
    }

    /// Whether a stored line is what its row says now.
    pub(crate) fn is_row(&mut self, line: &[u8]) -> Result<Option<RowDigest>, SourceError> {
        let (tables, id) = (self.tables(), self.session.id.clone());
        self.ask(|db| tables.is_row(db, &id, line))
    }

    /// All rows were compared with what was captured, up to this offset.
    pub(crate) fn note_compared(&mut self, offset: u64, captured: bool) {
        let before = self.database.compared.get(&self.session.id);
        let captured_at = if captured {
            Some(Instant::now())
        } else {
            before.and_then(|compared| compared.captured_at)
        };
        let (version, overview) = (self.database.version, self.session.overview);
        let compared = Compared { version, overview, offset, captured_at };
        self.database.compared.insert(self.session.id.clone(), compared);
    }

    fn ask<T>(
        &mut self,
        question: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, SourceError> {
        if !self.database.copy.is_there() {
            // It was quiet for a while. Whatever changed since, it is the state of now that is read.
            self.database.refresh(&self.databases.files)?;
            let gone = || SourceError::Missing(self.database.path.display().to_string());
            self.session = self.database.sessions.get(&self.session.id).ok_or_else(gone)?.clone();
        }
        self.database.ask(question)
    }
}
