//! Looking for sessions: what the mirror asks of the file system, and what it gets told.
//!
//! The real [`Finder`] walks the roots of all harnesses and has the directories watched; the model test has one over files in
//! memory. Runs on a blocking thread, decides nothing about keys.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::api;
use crate::harness::{Candidate, Facts, Harness, Root, Standing, scan};
use crate::part::SessionKey;
use crate::source::database::{Databases, SessionRow, session_path};
use crate::source::{self, Encoding, Files, Stat};
use crate::state::Record;
use crate::watch::{self, Watcher};

/// Bytes of a file that are read to learn what it is. Real sessions name their directory in the first row or two; rows before
/// it can hold a prompt or a picture.
const HEAD_BYTES_MAX: usize = 256 * 1024;

/// Bytes of a file that are read where the first ones do not name the directory: a first record can hold several pictures. While
/// a rule asks for the directory, a session that does not name it within these is not captured.
const CWD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A transcript that the mirror does not know yet.
#[derive(Debug, Clone)]
pub(crate) struct NewFile {
    pub(crate) candidate: Candidate,
    pub(crate) stat: Stat,
    pub(crate) facts: Facts,
}

impl NewFile {
    /// The session's first key.
    pub(crate) fn key(&self) -> SessionKey {
        let id = self.facts.id.as_deref().unwrap_or(&self.candidate.id);
        SessionKey::new(self.candidate.harness, id)
    }

    /// The source of a record, as it is now.
    pub(super) fn of_record(record: &Record, stat: Stat) -> NewFile {
        NewFile {
            candidate: Candidate {
                harness: "",
                path: record.source.to_path_buf(),
                id: String::new(),
                id_from_records: false,
                encoding: record.encoding,
                standing: Standing::Live,
            },
            stat,
            facts: Facts::default(),
        }
    }

    /// Whether its agent set it aside.
    pub(crate) fn archived(&self) -> bool {
        matches!(self.candidate.standing, Standing::Archived(_))
    }
}

/// Paths that are known. Where nothing is left to be seen of a file as long as it is as it was: how it was, and whether its
/// agent had set it aside.
pub(crate) type Known = HashMap<Arc<Path>, Option<(Stat, bool)>>;

/// A candidate that was known.
#[derive(Debug)]
pub(crate) struct Met {
    pub(crate) path: Arc<Path>,
    pub(crate) archived: bool,
    /// There is something to look at, or nobody can say that there is not.
    pub(crate) changed: bool,
}

/// What a scan found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    /// Candidates that were known.
    pub(crate) known: Vec<Met>,
    /// Candidates that were not, archived ones before live ones.
    pub(crate) new: Vec<NewFile>,
    /// Things that look like transcripts and cannot be read: path and what is wrong.
    pub(crate) problems: Vec<(PathBuf, String)>,
    /// Something could not be looked at just now; nothing is wrong with it.
    pub(crate) unclear: bool,
    /// The roots and how they are covered.
    pub(crate) roots: Vec<api::Root>,
}

/// What is at a path that an event named.
#[derive(Debug)]
pub(crate) enum Looked {
    /// A transcript.
    Session(Box<NewFile>),
    /// It looks like one and cannot be read.
    Unreadable(String),
    /// A database, with all that it has.
    Sessions(Vec<NewFile>),
    /// What it means only a scan can tell: a directory, or one of two files with the same session.
    Unclear,
    /// Nothing that we record.
    Nothing,
}

/// Finds sessions.
pub(crate) trait Finder: Send + Sync + std::fmt::Debug {
    /// Looks everywhere.
    fn scan(&self, known: &Known) -> Findings;
    /// Looks at one path.
    fn look(&self, path: &Path) -> Looked;
    /// The working directory that records of a harness name, from the start of a transcript or from further on.
    fn cwd(&self, harness: &str, records: &[u8], from_start: bool) -> Option<String>;
    /// The directory where the sessions of a database were files before there was one.
    fn former(&self, _database: &Path) -> Option<PathBuf> {
        None
    }
    /// The database that a file is, or belongs to, by its name alone.
    fn database(&self, _path: &Path) -> Option<PathBuf> {
        None
    }
}

/// The real one.
#[derive(Debug)]
pub(crate) struct RootsFinder {
    files: Arc<dyn Files>,
    databases: Arc<Databases>,
    harnesses: Vec<Arc<dyn Harness>>,
    roots: Vec<Root>,
    /// `None` with `--once`: nothing changes that the scan would not see.
    watcher: Option<Mutex<Watcher>>,
}

impl RootsFinder {
    /// Over these roots.
    pub(crate) fn new(
        databases: Arc<Databases>,
        harnesses: Vec<Arc<dyn Harness>>,
        roots: Vec<Root>,
        watcher: Option<Watcher>,
    ) -> RootsFinder {
        let files = databases.clone();
        RootsFinder { files, databases, harnesses, roots, watcher: watcher.map(Mutex::new) }
    }

    fn harness(&self, name: &str) -> Option<&Arc<dyn Harness>> {
        self.harnesses.iter().find(|h| h.name() == name)
    }

    /// Asks a database for its sessions, or only for those that it was not known to have.
    fn sessions(&self, candidate: &Candidate, all: bool) -> Looked {
        let Some(harness) = self.harness(candidate.harness) else { return Looked::Nothing };
        let session = |row: &SessionRow| {
            let path = session_path(&candidate.path, &row.id);
            let stat = self.databases.stat_of(&path)?.ok()?;
            let (cwd, started_at) = (row.cwd.clone(), row.started_at.clone());
            let id = harness.session_id(candidate, &row.id);
            Some(NewFile {
                candidate: Candidate { path, id, id_from_records: false, ..candidate.clone() },
                stat,
                facts: Facts { id: None, cwd, started_at },
            })
        };
        let found = match all {
            true => self.databases.sessions(candidate.harness, &candidate.path),
            false => self.databases.new_sessions(candidate.harness, &candidate.path),
        };
        match found {
            Ok(rows) => Looked::Sessions(rows.iter().filter_map(session).collect()),
            Err(source::SourceError::Missing(_)) => Looked::Nothing,
            Err(source::SourceError::Busy(_)) => Looked::Unclear,
            Err(error) => Looked::Unreadable(chain(&error)),
        }
    }

    /// Reads what the first records say; an empty file has nothing to say yet and is not a session.
    fn describe(&self, candidate: Candidate) -> Looked {
        let Some(harness) = self.harness(candidate.harness) else { return Looked::Nothing };
        let read = || {
            let stat = self.files.stat(&candidate.path)?;
            let head =
                source::head(&*self.files, &candidate.path, candidate.encoding, HEAD_BYTES_MAX)?;
            Ok((stat, head))
        };
        match read() {
            Ok((_, head)) if head.is_empty() => Looked::Nothing,
            Ok((stat, head)) => {
                let mut facts = harness.facts(&candidate, &head);
                // Without its first record, a file whose id the records decide would get the wrong name for ever.
                let unfinished = !head.contains(&b'\n') && head.len() < HEAD_BYTES_MAX;
                if candidate.id_from_records && facts.id.is_none() && unfinished {
                    return Looked::Nothing;
                }
                if facts.cwd.is_none() && head.len() >= HEAD_BYTES_MAX {
                    facts.cwd = self.cwd_further_on(&**harness, &candidate);
                }
                Looked::Session(Box::new(NewFile { candidate, stat, facts }))
            }
            Err(source::SourceError::Missing(_)) => Looked::Nothing,
            Err(error) => Looked::Unreadable(chain(&error)),
        }
    }
}

impl RootsFinder {
    /// Only the directory: an id that depended on how far one reads would change with this limit. A failure to read is found by
    /// whoever captures the file.
    fn cwd_further_on(&self, harness: &dyn Harness, candidate: &Candidate) -> Option<String> {
        let (path, encoding) = (&candidate.path, candidate.encoding);
        let head = source::head(&*self.files, path, encoding, CWD_BYTES_MAX).ok()?;
        harness.facts(candidate, &head).cwd
    }
}

impl Finder for RootsFinder {
    fn cwd(&self, harness: &str, records: &[u8], from_start: bool) -> Option<String> {
        // Most chunks of a transcript that never names a directory are passed over without being parsed.
        memchr::memmem::find(records, br#""cwd""#)?;
        self.harness(harness)?.cwd(records, from_start)
    }

    fn scan(&self, known: &Known) -> Findings {
        let mut findings = Findings::default();
        for harness in &self.harnesses {
            let mut candidates = Vec::new();
            for root in self.roots.iter().filter(|root| root.harness == harness.name()) {
                let scanned = scan::scan(&**harness, root, scan::Limits::default());
                findings.roots.push(api::Root {
                    harness: root.harness.to_owned(),
                    path: root.path.display().to_string(),
                    coverage: self.cover(root, &scanned),
                });
                let problems = scanned.problems.into_iter();
                findings.problems.extend(problems.map(|p| (p.path, p.what.to_string())));
                candidates.extend(scanned.candidates);
            }
            let (databases, files): (Vec<_>, Vec<_>) = scan::without_twins(candidates)
                .into_iter()
                .partition(|candidate| candidate.encoding.is_in_database());
            let mut heirs = Heirs::default();
            let mut found = Vec::new();
            for candidate in databases {
                self.sort_in_database(candidate, known, &mut findings, &mut heirs, &mut found);
            }
            for candidate in files.into_iter().filter(|candidate| !heirs.have(candidate)) {
                self.sort_in(candidate, known, &mut findings);
            }
            // What the agent writes to now goes behind what it set aside.
            findings.new.extend(found);
        }
        findings
    }

    fn look(&self, path: &Path) -> Looked {
        // A root, or a directory on the way to one, came or went.
        if self.roots.iter().any(|root| root.path.starts_with(path)) {
            return Looked::Unclear;
        }
        let Some(root) = self.roots.iter().find(|root| path.starts_with(&root.path)) else {
            return Looked::Nothing;
        };
        let Some(harness) = self.harness(root.harness) else { return Looked::Nothing };
        let relative = path.strip_prefix(&root.path).unwrap_or(path);
        let pruned = |folder: &Path| !folder.as_os_str().is_empty() && !harness.descend(folder);
        if relative.ancestors().skip(1).any(pruned) {
            return Looked::Nothing;
        }
        match harness.classify(root, path) {
            // Of a plain file and its compressed twin only the scan can tell which one counts.
            Some(candidate) if candidate.encoding == Encoding::Zstd => Looked::Unclear,
            Some(candidate) if candidate.encoding.is_in_database() => {
                match self.sessions(&candidate, false) {
                    Looked::Sessions(new) => {
                        Looked::Sessions(new.into_iter().filter_map(|s| self.known_by(s)).collect())
                    }
                    looked => looked,
                }
            }
            Some(candidate) => self.describe(candidate),
            None if std::fs::symlink_metadata(path).is_ok_and(|m| !m.is_file()) => Looked::Unclear,
            None => Looked::Nothing,
        }
    }

    fn database(&self, path: &Path) -> Option<PathBuf> {
        let root = self.roots.iter().find(|root| path.starts_with(&root.path))?;
        let name = path.file_name()?.to_str()?;
        // What SQLite writes beside a database. Its shared memory (`-shm`) says nothing that these do not.
        let name =
            ["-wal", "-journal"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        let candidate = self.harness(root.harness)?.classify(root, &path.with_file_name(name))?;
        candidate.encoding.is_in_database().then_some(candidate.path)
    }

    fn former(&self, database: &Path) -> Option<PathBuf> {
        let root = self.roots.iter().find(|root| database.starts_with(&root.path))?;
        self.harness(root.harness)?.former(database)
    }
}

impl RootsFinder {
    fn sort_in_database(
        &self,
        candidate: Candidate,
        known: &Known,
        findings: &mut Findings,
        heirs: &mut Heirs,
        found: &mut Vec<NewFile>,
    ) {
        match self.sessions(&candidate, true) {
            Looked::Sessions(sessions) => {
                heirs.add(self.former(&candidate.path), &sessions);
                let is_known = |s: &NewFile| known.contains_key(s.candidate.path.as_path());
                let (old, new): (Vec<_>, Vec<_>) = sessions.into_iter().partition(is_known);
                let old =
                    old.iter().filter_map(|s| known.get_key_value(s.candidate.path.as_path()));
                let met =
                    |path: &Arc<Path>| Met { path: path.clone(), archived: false, changed: true };
                findings.known.extend(old.map(|(path, _)| met(path)));
                found.extend(new.into_iter().filter(has_rows).filter_map(|s| self.known_by(s)));
            }
            Looked::Unreadable(what) => findings.problems.push((candidate.path, what)),
            Looked::Unclear => {
                findings.unclear = true;
                heirs.unclear.extend(self.former(&candidate.path));
            }
            Looked::Session(_) | Looked::Nothing => {}
        }
    }

    /// A session in a database with what its first records say, where these are read like a file's.
    fn known_by(&self, session: NewFile) -> Option<NewFile> {
        if session.candidate.encoding != Encoding::Events {
            return Some(session);
        }
        match self.describe(session.candidate.clone()) {
            Looked::Session(described) => {
                let started_at = described.facts.started_at.or(session.facts.started_at);
                let facts = Facts { started_at, ..described.facts };
                Some(NewFile { facts, stat: described.stat, candidate: described.candidate })
            }
            // Whoever captures it finds out what is wrong.
            Looked::Unreadable(_) => Some(session),
            _ => None,
        }
    }

    fn sort_in(&self, candidate: Candidate, known: &Known, findings: &mut Findings) {
        if let Some((path, was)) = known.get_key_value(candidate.path.as_path()) {
            let archived = matches!(candidate.standing, Standing::Archived(_));
            let changed = was.is_none_or(|(stat, was_archived)| {
                archived != was_archived || !self.files.stat(path).is_ok_and(|now| now == stat)
            });
            findings.known.push(Met { path: path.clone(), archived, changed });
            return;
        }
        let path = candidate.path.clone();
        match self.describe(candidate) {
            Looked::Session(new) => findings.new.push(*new),
            Looked::Unreadable(what) => findings.problems.push((path, what)),
            Looked::Sessions(_) | Looked::Unclear | Looked::Nothing => {}
        }
    }

    fn cover(&self, root: &Root, scanned: &scan::Scan) -> api::Coverage {
        if scanned.problems.iter().any(|problem| problem.path == root.path) {
            return api::Coverage::Unreadable;
        }
        // A poisoned lock means that a scan panicked; watching goes on.
        let watcher = self.watcher.as_ref();
        let watcher = watcher.map(|w| w.lock().unwrap_or_else(PoisonError::into_inner));
        if !scanned.present {
            watcher.into_iter().for_each(|mut watcher| watcher.await_root(&root.path));
            return api::Coverage::Missing;
        }
        let Some(mut watcher) = watcher else { return api::Coverage::Polled };
        match watcher.cover(&root.path, &scanned.directories) {
            watch::Coverage::Events => api::Coverage::Events,
            watch::Coverage::Polled(_) => api::Coverage::Polled,
        }
    }
}

/// Sessions that a database has and that were files before: where such a file still lies, it is an archive.
#[derive(Debug, Default)]
struct Heirs {
    /// Directory of the files, and id.
    of: HashSet<(PathBuf, String)>,
    /// Directories of files whose database could not be asked just now: any of them may be one.
    unclear: HashSet<PathBuf>,
}

impl Heirs {
    fn add(&mut self, former: Option<PathBuf>, sessions: &[NewFile]) {
        let Some(former) = former else { return };
        let heirs = sessions.iter().filter(|session| has_rows(session));
        self.of.extend(heirs.map(|session| (former.clone(), session.candidate.id.clone())));
    }

    fn have(&self, file: &Candidate) -> bool {
        let directory = file.path.parent().unwrap_or(&file.path).to_owned();
        let unclear = self.unclear.contains(&directory);
        file.standing == Standing::Live
            && (unclear || self.of.contains(&(directory, file.id.clone())))
    }
}

/// Whether there is anything in a session that is rows: as an empty file, one without is none yet.
fn has_rows(session: &NewFile) -> bool {
    session.stat.size > 0
}

/// An error with its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
