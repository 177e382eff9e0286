//! A disk in memory that forgets: what was not synced may be lost, whole or torn, when [`MemoryDisk::crash`] pulls the plug.
//!
//! Two views of the same files: what programs see, and what would be there after a power loss. A change of a directory
//! (create, rename, remove) waits in order until a sync names every directory that it touches; bytes wait per file. A crash
//! lets each waiting change happen or not, except that a change never happens without the earlier ones that touched the same
//! names. Single-stepped: a hook sees each step before it happens and may fail it or kill the process there.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::{self, Cursor, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::{Disk, Temps, WriteAll};
use views::{Change, File, FileId, Pending, Tree};

mod views;

/// What happens to a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskFault {
    /// It is done.
    None,
    /// It fails and has no effect.
    Error(ErrorKind),
    /// The process dies before it: this and every later step fails without effect until [`MemoryDisk::revive`].
    Dead,
}

/// Sees the name of a step and its path before it happens.
pub(crate) type Hook = Box<dyn FnMut(&str, &Path) -> DiskFault + Send>;

/// Shared: clones are the same disk.
#[derive(Clone)]
pub(crate) struct MemoryDisk {
    inner: Arc<Mutex<Inner>>,
    temps: Arc<Temps>,
}

#[derive(Default)]
struct Inner {
    files: BTreeMap<FileId, File>,
    next_file: FileId,
    live: Tree,
    durable: Tree,
    pending: Vec<Pending>,
    mounts: Vec<PathBuf>,
    capacity: Option<u64>,
    now: Option<SystemTime>,
    steps: u64,
    dead: bool,
    /// Grows when the process ends: handles of an earlier process write nothing.
    process: u64,
    hook: Option<Hook>,
}

impl Default for MemoryDisk {
    fn default() -> Self {
        MemoryDisk::new()
    }
}

impl fmt::Debug for MemoryDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryDisk")
    }
}

impl MemoryDisk {
    /// An empty disk with room for everything.
    pub(crate) fn new() -> MemoryDisk {
        MemoryDisk { inner: Arc::default(), temps: Arc::new(Temps::tagged("new")) }
    }

    /// Calls `hook` before each step from now on.
    pub(crate) fn set_hook(&self, hook: Hook) {
        self.lock().hook = Some(hook);
    }

    /// No more faults.
    pub(crate) fn clear_hook(&self) {
        self.lock().hook = None;
    }

    /// Steps taken so far, failed ones included, those of the dead not.
    pub(crate) fn steps(&self) -> u64 {
        self.lock().steps
    }

    /// Whether a fault killed the process.
    pub(crate) fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Room for so many bytes of content in all; more fails with [`ErrorKind::StorageFull`] after what fits.
    pub(crate) fn set_capacity(&self, bytes: Option<u64>) {
        self.lock().capacity = bytes;
    }

    /// The time that files are stamped with.
    pub(crate) fn set_now(&self, now: SystemTime) {
        self.lock().now = Some(now);
    }

    /// Everything below `dir` is another file system.
    pub(crate) fn mount(&self, dir: &Path) {
        self.lock().mounts.push(dir.to_owned());
    }

    /// The process ended and the machine runs on: everything is as it was written.
    pub(crate) fn kill(&self) {
        self.lock().process += 1;
    }

    /// The power was lost: what was not synced is there, or partly, or not at all, as `rng` says.
    pub(crate) fn crash(&self, rng: &mut fastrand::Rng) {
        let mut inner = self.lock();
        inner.process += 1;
        let mut lost: Vec<Change> = Vec::new();
        for pending in std::mem::take(&mut inner.pending) {
            if lost.iter().any(|lost| pending.change.needs(lost)) || rng.bool() {
                lost.push(pending.change);
            } else {
                inner.durable.apply(&pending.change);
            }
        }
        inner.live = inner.durable.clone();
        inner.forget_unnamed();
        for file in inner.files.values_mut() {
            file.crash(rng);
        }
    }

    /// A new process: steps are taken again, the hook stays.
    pub(crate) fn revive(&self) {
        let mut inner = self.lock();
        inner.dead = false;
        inner.process += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a step and asks the hook, which may use the disk's own settings.
    fn step(&self, name: &str, path: &Path) -> io::Result<MutexGuard<'_, Inner>> {
        let mut inner = self.lock();
        if inner.dead {
            return Err(dead());
        }
        inner.steps += 1;
        let Some(mut hook) = inner.hook.take() else { return Ok(inner) };
        drop(inner);
        let fault = hook(name, path);
        let mut inner = self.lock();
        inner.hook.get_or_insert(hook);
        match fault {
            DiskFault::None => Ok(inner),
            DiskFault::Error(kind) => Err(kind.into()),
            DiskFault::Dead => {
                inner.dead = true;
                Err(dead())
            }
        }
    }

    fn replace_steps(&self, temp: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let id = self.step("replace:create", temp)?.create(temp)?;
        let written = self.step("replace:write", temp)?.write(id, bytes)?;
        if written < bytes.len() {
            return Err(ErrorKind::StorageFull.into());
        }
        self.step("replace:sync", temp)?.sync_bytes(temp);
        self.step("replace:rename", path)?.rename(temp, path)
    }
}

fn dead() -> io::Error {
    io::Error::other("the process is dead")
}

impl Inner {
    fn is_dir(&self, dir: &Path) -> bool {
        dir.parent().is_none() || self.live.dirs.contains(dir)
    }

    fn change(&mut self, change: Change) {
        self.live.apply(&change);
        let mut waits: Vec<PathBuf> = Vec::new();
        for dir in change.paths().into_iter().filter_map(Path::parent) {
            if !waits.iter().any(|known| known == dir) {
                waits.push(dir.to_owned());
            }
        }
        self.pending.push(Pending { change, waits });
    }

    fn create_dirs(&mut self, dir: &Path) -> io::Result<()> {
        if self.live.files.contains_key(dir) {
            return Err(ErrorKind::NotADirectory.into());
        }
        if !self.is_dir(dir) {
            if let Some(parent) = dir.parent() {
                self.create_dirs(parent)?;
            }
            self.change(Change::MakeDir(dir.to_owned()));
        }
        Ok(())
    }

    /// The file of this name, created if there is none.
    fn open(&mut self, path: &Path) -> io::Result<FileId> {
        if let Some(id) = self.live.files.get(path) {
            return Ok(*id);
        }
        if self.is_dir(path) {
            return Err(ErrorKind::IsADirectory.into());
        }
        if let Some(parent) = path.parent() {
            self.create_dirs(parent)?;
        }
        let id = self.next_file;
        self.next_file += 1;
        self.files.insert(id, File { modified: self.now, ..File::default() });
        self.change(Change::Create(path.to_owned(), id));
        Ok(id)
    }

    fn create(&mut self, path: &Path) -> io::Result<FileId> {
        let id = self.open(path)?;
        self.truncate(id, 0);
        Ok(id)
    }

    fn truncate(&mut self, id: FileId, length: usize) {
        if let Some(file) = self.files.get_mut(&id) {
            file.truncate(length);
        }
    }

    /// Appends what fits and answers how much that was.
    fn write(&mut self, id: FileId, bytes: &[u8]) -> io::Result<usize> {
        let room = self.room().unwrap_or(u64::MAX);
        let length = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        let now = self.now;
        let file = self.files.get_mut(&id).ok_or(ErrorKind::NotFound)?;
        file.bytes.extend_from_slice(&bytes[..length]);
        file.modified = now;
        if length == 0 && !bytes.is_empty() {
            return Err(ErrorKind::StorageFull.into());
        }
        Ok(length)
    }

    fn room(&self) -> Option<u64> {
        let capacity = self.capacity?;
        let used: usize = self.live.files.values().map(|id| self.files[id].bytes.len()).sum();
        Some(capacity.saturating_sub(used as u64))
    }

    fn sync_bytes(&mut self, path: &Path) {
        if let Some(file) = self.live.files.get(path).and_then(|id| self.files.get_mut(id)) {
            file.sync();
        }
    }

    /// Every change of this directory, and the directory's own existence.
    fn sync_entries(&mut self, dir: &Path) {
        if self.pending.is_empty() {
            return;
        }
        for pending in &mut self.pending {
            let makes_it =
                matches!(&pending.change, Change::MakeDir(path) if dir.starts_with(path));
            pending.waits.retain(|wait| wait != dir && !makes_it);
        }
        // A change that is durable takes with it what it needs.
        let mut done: Vec<bool> = self.pending.iter().map(|p| p.waits.is_empty()).collect();
        for last in (0..done.len()).rev() {
            if done[last] {
                let change = &self.pending[last].change;
                for (done, earlier) in done[..last].iter_mut().zip(&self.pending) {
                    *done |= change.needs(&earlier.change);
                }
            }
        }
        let mut rest = Vec::new();
        for (pending, done) in std::mem::take(&mut self.pending).into_iter().zip(done) {
            if done {
                self.durable.apply(&pending.change);
            } else {
                rest.push(pending);
            }
        }
        self.pending = rest;
        if self.files.len() > 2 * self.live.files.len() + 64 {
            self.forget_unnamed();
        }
    }

    fn sync(&mut self, path: &Path) {
        if self.is_dir(path) {
            self.sync_entries(path);
        } else {
            self.sync_bytes(path);
            if let Some(parent) = path.parent() {
                self.sync_entries(parent);
            }
        }
    }

    fn device(&self, path: &Path) -> Option<usize> {
        self.mounts.iter().position(|mount| path.starts_with(mount))
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let id = *self.live.files.get(from).ok_or(ErrorKind::NotFound)?;
        if self.device(from) != self.device(to) {
            return Err(ErrorKind::CrossesDevices.into());
        }
        if self.is_dir(to) {
            return Err(ErrorKind::IsADirectory.into());
        }
        if !to.parent().is_some_and(|dir| self.is_dir(dir)) {
            return Err(ErrorKind::NotFound.into());
        }
        if from != to {
            self.change(Change::Rename(from.to_owned(), to.to_owned(), id));
        }
        Ok(())
    }

    fn remove_dir(&mut self, dir: &Path) {
        let is_used = |path: &Path| path != dir && path.starts_with(dir);
        let mut files = self.live.files.range(dir.to_owned()..).map(|(path, _)| path.as_path());
        let mut dirs = self.live.dirs.range(dir.to_owned()..).skip(1).map(PathBuf::as_path);
        if self.live.dirs.contains(dir)
            && !files.next().is_some_and(is_used)
            && !dirs.next().is_some_and(is_used)
        {
            self.change(Change::RemoveDir(dir.to_owned()));
        }
    }

    /// Drops files that have no name in any view.
    fn forget_unnamed(&mut self) {
        let mut named: HashSet<FileId> = self.live.files.values().copied().collect();
        named.extend(self.durable.files.values());
        named.extend(self.pending.iter().filter_map(|pending| match pending.change {
            Change::Create(_, id) | Change::Rename(_, _, id) => Some(id),
            _ => None,
        }));
        self.files.retain(|id, _| named.contains(id));
    }
}

impl Disk for MemoryDisk {
    fn create_dirs(&self, dir: &Path) -> io::Result<()> {
        self.step("create_dirs", dir)?.create_dirs(dir)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Write + Send>> {
        let mut inner = self.step("create", path)?;
        let file = inner.create(path)?;
        let process = inner.process;
        Ok(Box::new(Handle { disk: self.clone(), path: path.to_owned(), file, process }))
    }

    fn append(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.step("append", path)?;
        let id = inner.open(path)?;
        let length = inner.files[&id].bytes.len();
        match inner.write(id, bytes) {
            Ok(written) if written == bytes.len() => return Ok(()),
            _ => drop(inner),
        }
        // A kill here leaves what fitted.
        self.step("append:restore", path)?.truncate(id, length);
        Err(ErrorKind::StorageFull.into())
    }

    fn sync(&self, paths: &[PathBuf]) -> io::Result<()> {
        paths.iter().try_for_each(|path| {
            self.step("sync", path)?.sync(path);
            Ok(())
        })
    }

    fn replace_by(&self, path: &Path, write: WriteAll<'_>) -> io::Result<()> {
        let mut bytes = Vec::new();
        write(&mut bytes)?;
        let temp = self.temps.beside(path);
        if let Err(error) = self.replace_steps(&temp, path, &bytes) {
            let _ = self.remove(&temp);
            return Err(error);
        }
        if let Some(parent) = path.parent() {
            self.step("replace:sync_dir", parent)?.sync_entries(parent);
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step("rename", to)?.rename(from, to)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let inner = self.step("read", path)?;
        let id = inner.live.files.get(path).ok_or(ErrorKind::NotFound)?;
        Ok(inner.files[id].bytes.clone())
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(Cursor::new(self.read(path)?)))
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        let inner = self.step("size", path)?;
        Ok(inner.live.files.get(path).map(|id| inner.files[id].bytes.len() as u64))
    }

    fn modified(&self, path: &Path) -> io::Result<Option<SystemTime>> {
        let inner = self.step("modified", path)?;
        let id = inner.live.files.get(path);
        Ok(id.map(|id| inner.files[id].modified.unwrap_or(SystemTime::UNIX_EPOCH)))
    }

    fn is_dir(&self, path: &Path) -> io::Result<bool> {
        Ok(self.step("is_dir", path)?.is_dir(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
        let inner = self.step("list", dir)?;
        let files = inner.live.files.range(dir.to_owned()..);
        Ok(files
            .take_while(|(path, _)| path.starts_with(dir))
            .filter(|(path, _)| *path != dir)
            .map(|(path, id)| (path.clone(), inner.files[id].bytes.len() as u64))
            .collect())
    }

    fn entries(&self, dir: &Path) -> io::Result<Vec<(PathBuf, bool)>> {
        let inner = self.step("list", dir)?;
        let files = inner.live.files.range(dir.to_owned()..);
        let mut found: Vec<(PathBuf, bool)> = files
            .take_while(|(path, _)| path.starts_with(dir))
            .filter_map(|(path, _)| {
                let below = path.strip_prefix(dir).ok()?;
                let first = below.components().next()?;
                Some((dir.join(first), below.components().count() > 1))
            })
            .collect();
        found.dedup();
        Ok(found)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.step("remove", path)?;
        if inner.live.files.contains_key(path) {
            inner.change(Change::Remove(path.to_owned()));
        }
        Ok(())
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        self.step("remove_dir", dir)?.remove_dir(dir);
        Ok(())
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let inner = self.step("free_bytes", path)?;
        Ok(inner.room().unwrap_or(u64::MAX))
    }
}

/// An open file; of no use once its process is gone.
struct Handle {
    disk: MemoryDisk,
    path: PathBuf,
    file: FileId,
    process: u64,
}

impl Write for Handle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut inner = self.disk.step("write", &self.path)?;
        if inner.process != self.process {
            return Err(dead());
        }
        inner.write(self.file, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
