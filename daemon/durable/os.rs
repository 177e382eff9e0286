//! The real disk: the only file that renames, and the only one that decides what a sync costs.
//!
//! Knows system calls; knows nothing of what is in the files. Own files are opened without following links and are 0600;
//! new directories are 0700.

use std::collections::HashSet;
use std::fs::{DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::group::{GroupCommit, Request};
use super::{Disk, Temps, WriteAll};

/// Files and directories that are synced one by one. Beyond it one `syncfs` is cheaper, although that also waits for what
/// other programs have written: an fsync costs a few milliseconds on a disk, and 3,000 new sessions may come at once.
const SYNC_SINGLY_MAX: usize = 8;

/// Directories remembered as durable in their parents. When there are more, all are forgotten, which costs syncs only.
const SETTLED_MAX: usize = 1 << 14;

/// Names tried for a temporary file before giving up: they carry a random tag, so even a second try is unheard of.
const TEMP_TRIES: usize = 16;

const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// This machine's files.
#[derive(Debug)]
pub(crate) struct OsDisk {
    group: GroupCommit,
    settled: Mutex<Settled>,
    temps: Temps,
    /// Rounds of the group commit so far: what the disk was really asked to wait for.
    rounds: AtomicU64,
}

/// Directories whose own entry is known to be durable. What an earlier process created shortly before a kill is not known to
/// be, so this starts empty and the first sync below a directory syncs its parents too.
#[derive(Debug, Default)]
struct Settled {
    dirs: HashSet<PathBuf>,
    /// Directories created so far: one that was created while a round ran may have taken the place of one that it synced.
    created: u64,
}

impl OsDisk {
    /// A disk that knows of nothing yet.
    pub(crate) fn new() -> OsDisk {
        OsDisk {
            group: GroupCommit::default(),
            settled: Mutex::default(),
            temps: Temps::new(),
            rounds: AtomicU64::new(0),
        }
    }

    /// Rounds of the group commit so far.
    #[cfg(test)]
    pub(super) fn sync_rounds(&self) -> u64 {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Callers that wait for the next round.
    #[cfg(test)]
    pub(super) fn gathered(&self) -> usize {
        self.group.gathered()
    }

    fn settled(&self) -> MutexGuard<'_, Settled> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit(&self, request: Request) -> io::Result<()> {
        self.group.commit(request, |request| {
            self.rounds.fetch_add(1, Ordering::Relaxed);
            let created = self.settled().created;
            let waits = request.files.len() + request.dirs.len();
            let durable = if waits > SYNC_SINGLY_MAX && SYNCFS.is_usable() {
                sync_file_systems(request)?
            } else {
                self.sync_singly(request)?
            };
            self.settle(durable, created);
            Ok(())
        })
    }

    /// Files first: a power loss between the two leaves bytes without a name, never a name without bytes. Answers which
    /// directories are durable now.
    fn sync_singly(&self, request: &Request) -> io::Result<HashSet<PathBuf>> {
        for path in &request.files {
            match open_own(path, OpenOptions::new().read(true)) {
                Ok(file) => sync_file(&file)?,
                // Renamed or removed meanwhile; whoever did so named the place where it went.
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        let mut synced = HashSet::new();
        for dir in &request.dirs {
            self.sync_entries(dir, &mut synced)?;
        }
        Ok(synced)
    }

    /// Syncs a directory, and its parents up to the first that is known to be durable in its own.
    fn sync_entries(&self, dir: &Path, synced: &mut HashSet<PathBuf>) -> io::Result<()> {
        let (mut dir, mut handle) = open_nearest_dir(dir)?;
        // What this round synced before, it synced with its parents.
        while !synced.contains(&dir) {
            sync_dir(&handle)?;
            synced.insert(dir.clone());
            if self.settled().dirs.contains(&dir) {
                break;
            }
            let Some(parent) = parent_of(&dir) else { break };
            handle = match open_dir(&parent) {
                // Not ours to read, so it is not ours to have created anything in.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
                // Removed together with what was below it.
                Err(error) if is_missing(&error) => break,
                result => result?,
            };
            dir = parent;
        }
        Ok(())
    }

    /// Remembers these directories, unless one was created since there were `created`.
    fn settle(&self, dirs: HashSet<PathBuf>, created: u64) {
        let mut settled = self.settled();
        if settled.created == created {
            if settled.dirs.len() > SETTLED_MAX {
                settled.dirs.clear();
            }
            settled.dirs.extend(dirs);
        }
    }

    /// Opens for writing, creating missing parents. A file that others could read (a restored backup, say) is closed to them.
    fn open_to_write(&self, path: &Path, options: &mut OpenOptions) -> io::Result<File> {
        let file = match open_own(path, options) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(dir) = parent_of(path) {
                    self.create_dirs(&dir)?;
                }
                open_own(path, options)?
            }
            result => result?,
        };
        if file.metadata()?.permissions().mode() & 0o077 != 0 {
            file.set_permissions(Permissions::from_mode(FILE_MODE))?;
        }
        Ok(file)
    }

    fn create_temp(&self, path: &Path) -> io::Result<(PathBuf, File)> {
        for _ in 0..TEMP_TRIES {
            let temp = self.temps.beside(path);
            match self.open_to_write(&temp, OpenOptions::new().write(true).create_new(true)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                result => return result.map(|file| (temp, file)),
            }
        }
        Err(io::Error::new(io::ErrorKind::AlreadyExists, "every temporary name is taken"))
    }

    /// The steps of [`Disk::replace`] after which the temporary file is gone. A kill before the rename leaves the old file
    /// and a temporary one; after it, the new file, which a power loss may still take back for the old one.
    fn replace_with(
        &self,
        temp: &Path,
        file: File,
        path: &Path,
        write: WriteAll<'_>,
    ) -> io::Result<()> {
        let mut file = BufWriter::new(file);
        write(&mut file)?;
        file.flush()?;
        drop(file);
        self.commit(Request { files: [temp.to_owned()].into(), ..Request::default() })?;
        self.rename(temp, path)
    }
}

impl Disk for OsDisk {
    fn create_dirs(&self, dir: &Path) -> io::Result<()> {
        let mut missing = Vec::new();
        let mut nearest = dir.to_owned();
        while !self.is_dir(&nearest)? {
            missing.push(nearest.clone());
            match parent_of(&nearest) {
                Some(parent) => nearest = parent,
                None => break,
            }
        }
        for dir in missing.into_iter().rev() {
            match DirBuilder::new().mode(DIR_MODE).create(&dir) {
                Ok(()) => {
                    let mut settled = self.settled();
                    settled.created += 1;
                    settled.dirs.remove(&dir);
                }
                // Another caller was faster.
                Err(_) if self.is_dir(&dir)? => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Write + Send>> {
        let file =
            self.open_to_write(path, OpenOptions::new().write(true).create(true).truncate(true))?;
        Ok(Box::new(file))
    }

    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let file = self.open_to_write(path, OpenOptions::new().append(true).create(true))?;
        let length = file.metadata()?.len();
        // A kill within the write leaves some of the bytes: who reads the file must know a torn end.
        (&file).write_all(bytes).map_err(|error| match file.set_len(length) {
            Ok(()) => error,
            Err(undo) => io::Error::new(
                undo.kind(),
                format!("half written ({error}), and that could not be undone: {undo}"),
            ),
        })
    }

    fn sync(&self, paths: &[PathBuf]) -> io::Result<()> {
        let mut request = Request::default();
        for path in paths {
            if self.is_dir(path)? {
                request.dirs.insert(path.clone());
            } else {
                request.files.insert(path.clone());
                request.dirs.extend(parent_of(path));
            }
        }
        if paths.is_empty() { Ok(()) } else { self.commit(request) }
    }

    fn replace_by(&self, path: &Path, write: WriteAll<'_>) -> io::Result<()> {
        let (temp, file) = self.create_temp(path)?;
        if let Err(error) = self.replace_with(&temp, file, path, write) {
            // The first error is the one that matters; a temporary file that stays is not read by anybody.
            let _ = std::fs::remove_file(&temp);
            return Err(error);
        }
        self.commit(Request { dirs: parent_of(path).into_iter().collect(), ..Request::default() })
    }

    #[allow(clippy::disallowed_methods, reason = "the one door; sync() makes it durable")]
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        open_own(path, OpenOptions::new().read(true))?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(open_own(path, OpenOptions::new().read(true))?))
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        Ok(regular(path)?.map(|metadata| metadata.len()))
    }

    fn modified(&self, path: &Path) -> io::Result<Option<SystemTime>> {
        regular(path)?.map(|metadata| metadata.modified()).transpose()
    }

    fn is_dir(&self, path: &Path) -> io::Result<bool> {
        match std::fs::metadata(path) {
            Ok(metadata) => Ok(metadata.is_dir()),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
        let mut files = Vec::new();
        let mut dirs = vec![dir.to_owned()];
        while let Some(dir) = dirs.pop() {
            let entries = match std::fs::read_dir(&dir) {
                // There is none, or it was removed while we looked.
                Err(error) if is_missing(&error) => continue,
                result => result?,
            };
            for entry in entries {
                let path = entry?.path();
                match std::fs::symlink_metadata(&path) {
                    Ok(metadata) if metadata.is_dir() => dirs.push(path),
                    Ok(metadata) if metadata.is_file() => files.push((path, metadata.len())),
                    Ok(_) => {}
                    Err(error) if is_missing(&error) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        files.sort();
        Ok(files)
    }

    fn entries(&self, dir: &Path) -> io::Result<Vec<(PathBuf, bool)>> {
        let entries = match std::fs::read_dir(dir) {
            Err(error) if is_missing(&error) => return Ok(Vec::new()),
            result => result?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            match entry.file_type() {
                Ok(kind) if kind.is_dir() || kind.is_file() => {
                    found.push((entry.path(), kind.is_dir()));
                }
                Ok(_) => {}
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if is_missing(&error) => Ok(()),
            result => result,
        }
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        if std::fs::remove_dir(dir).is_ok() {
            self.settled().dirs.remove(dir);
        }
        Ok(())
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        for path in path.ancestors().map(named) {
            match rustix::fs::statvfs(path) {
                Ok(stat) => return Ok(stat.f_bavail.saturating_mul(stat.f_frsize)),
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }
}

/// One wait for each file system on which something is wanted. A file is where its directory is, so the files need no look
/// of their own. Answers which directories are durable now.
fn sync_file_systems(request: &Request) -> io::Result<HashSet<PathBuf>> {
    let mut devices = HashSet::new();
    let mut durable = HashSet::new();
    for dir in &request.dirs {
        let (dir, handle) = open_nearest_dir(dir)?;
        if devices.insert(handle.metadata()?.dev()) {
            SYNCFS.sync(&handle)?;
        }
        durable.extend(dir.ancestors().map(Path::to_owned));
    }
    Ok(durable)
}

/// `syncfs`, where it exists and tells of failed writes.
struct Syncfs;

const SYNCFS: Syncfs = Syncfs;

#[cfg(target_os = "linux")]
impl Syncfs {
    /// Before Linux 5.8 a write error does not fail a syncfs, so there each file is asked.
    fn is_usable(&self) -> bool {
        static USABLE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        *USABLE.get_or_init(|| {
            let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            is_since_5_8(&release)
        })
    }

    fn sync(&self, dir: &File) -> io::Result<()> {
        rustix::fs::syncfs(dir).map_err(io::Error::from)
    }
}

#[cfg(not(target_os = "linux"))]
impl Syncfs {
    fn is_usable(&self) -> bool {
        false
    }

    fn sync(&self, dir: &File) -> io::Result<()> {
        sync_dir(dir)
    }
}

/// Whether a kernel release (`6.1.0-18-amd64`) is 5.8 or later.
fn is_since_5_8(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    matches!((numbers.next(), numbers.next()), (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= (5, 8))
}

/// Opens one of our regular files without following a link, never waiting for a pipe's other end.
fn open_own(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    // The flags fit: they are the platform's own `int`.
    let file = options.custom_flags(flags.bits().cast_signed()).mode(FILE_MODE).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

/// Opens a directory; the user may have put it elsewhere and left a link.
fn open_dir(path: &Path) -> io::Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

/// The directory, or what is left of the path to it: a directory that became empty may be removed while another caller
/// still wants its entries durable, and then their absence is what its parent says.
fn open_nearest_dir(dir: &Path) -> io::Result<(PathBuf, File)> {
    for dir in dir.ancestors().map(named) {
        match open_dir(dir) {
            Err(error) if is_missing(&error) => {}
            result => return result.map(|file| (dir.to_owned(), file)),
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// `fsync`, on macOS down to the platter. A file system that has no such deep flush gets a plain one.
fn sync_file(file: &File) -> io::Result<()> {
    match file.sync_all() {
        Err(error) if is_unsupported(&error) => rustix::fs::fsync(file).map_err(io::Error::from),
        result => result,
    }
}

/// As [`sync_file`], but that a file system cannot sync a directory at all (some network ones) is no error: there is
/// nothing more that could be done.
fn sync_dir(dir: &File) -> io::Result<()> {
    match sync_file(dir) {
        Err(error) if is_unsupported(&error) => Ok(()),
        result => result,
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::INVAL | Errno::NOTSUP | Errno::NOTTY | Errno::NOSYS)
    )
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn regular(path: &Path) -> io::Result<Option<Metadata>> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(metadata.is_file().then_some(metadata)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn parent_of(path: &Path) -> Option<PathBuf> {
    path.parent().map(|parent| named(parent).to_owned())
}

/// The parent of a bare name is the empty path, which system calls do not know.
fn named(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}
