//! Files that exist only in a test: with inodes that are used again, times that move in steps of one, faults on demand, and
//! changes in the middle of a reading.
//!
//! A clone is another handle on the same files. Knows what a file system does; knows nothing of who looks.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Files, SourceError, SourceFile, Stat};

/// The device number of all files here.
const DEV: u64 = 7;

/// What a look at a path meets instead of a file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fault {
    /// Not a regular file of this user, but this.
    Unfit(&'static str),
    /// The operating system refuses with this error number, at `stat`, `open` and every read.
    Errno(i32),
    /// As before, but only once the file is open.
    ReadErrno(i32),
}

type Hook = Box<dyn FnOnce(&MemoryFiles) + Send>;

/// Files in memory.
#[derive(Clone, Default)]
pub(crate) struct MemoryFiles {
    world: Arc<Mutex<World>>,
}

#[derive(Default)]
struct World {
    clock: i64,
    inodes: u64,
    /// Nodes are never removed, so that an open file outlives its name.
    nodes: Vec<Node>,
    paths: HashMap<PathBuf, usize>,
    faults: HashMap<PathBuf, Fault>,
    hooks: Vec<(u64, Hook)>,
    read_bytes_max: Option<usize>,
    counts: Counts,
}

struct Node {
    ino: u64,
    bytes: Vec<u8>,
    mtime_ns: i64,
    ctime_ns: i64,
}

/// What was asked of the files so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counts {
    /// Opened.
    pub(crate) opens: u64,
    /// Open now.
    pub(crate) open_now: u64,
    /// Calls of `read_at`.
    pub(crate) reads: u64,
    /// Bytes that these gave.
    pub(crate) bytes_read: u64,
}

impl fmt::Debug for MemoryFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let world = self.world();
        f.debug_struct("MemoryFiles")
            .field("paths", &world.paths.keys())
            .field("counts", &world.counts)
            .finish_non_exhaustive()
    }
}

impl MemoryFiles {
    /// No files.
    pub(crate) fn new() -> MemoryFiles {
        MemoryFiles::default()
    }

    /// A new file; one that is there is replaced as by a rename: the path leads to a new inode.
    pub(crate) fn create(&self, path: impl AsRef<Path>, bytes: impl Into<Vec<u8>>) {
        let mut world = self.world();
        world.inodes += 1;
        let ino = world.inodes;
        world.put(path.as_ref(), ino, bytes.into());
    }

    /// Deletes and creates: the new file gets the old inode number. With `keep_mtime` it also gets the old modification
    /// time; the change time can be faked by no one.
    pub(crate) fn recreate_reusing_inode(
        &self,
        path: impl AsRef<Path>,
        bytes: impl Into<Vec<u8>>,
        keep_mtime: bool,
    ) {
        let mut world = self.world();
        let old = world.find(path.as_ref());
        let (ino, mtime_ns) = (world.nodes[old].ino, world.nodes[old].mtime_ns);
        let new = world.put(path.as_ref(), ino, bytes.into());
        if keep_mtime {
            world.nodes[new].mtime_ns = mtime_ns;
        }
    }

    /// Adds to the end, creating the file.
    pub(crate) fn append(&self, path: impl AsRef<Path>, bytes: &[u8]) {
        if !self.world().paths.contains_key(path.as_ref()) {
            self.create(path.as_ref(), []);
        }
        self.change(path.as_ref(), |content| content.extend_from_slice(bytes));
    }

    /// Cuts to a length.
    pub(crate) fn truncate(&self, path: impl AsRef<Path>, length: usize) {
        self.change(path.as_ref(), |content| content.truncate(length));
    }

    /// Overwrites in place, at the same length.
    pub(crate) fn splice(&self, path: impl AsRef<Path>, at: usize, bytes: &[u8]) {
        self.change(path.as_ref(), |content| content[at..at + bytes.len()].copy_from_slice(bytes));
    }

    /// Writes the same inode anew (`O_TRUNC`).
    pub(crate) fn rewrite_in_place(&self, path: impl AsRef<Path>, bytes: impl Into<Vec<u8>>) {
        let bytes = bytes.into();
        self.change(path.as_ref(), |content| *content = bytes);
    }

    /// Moves to another path, replacing what is there.
    pub(crate) fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) {
        let mut world = self.world();
        let node = world.paths.remove(from.as_ref()).expect("there is such a file");
        world.paths.insert(to.as_ref().to_owned(), node);
        world.clock += 1;
        world.nodes[node].ctime_ns = world.clock;
    }

    /// Removes the name; who has the file open keeps it.
    pub(crate) fn delete(&self, path: impl AsRef<Path>) {
        let mut world = self.world();
        if let Some(node) = world.paths.remove(path.as_ref()) {
            world.clock += 1;
            world.nodes[node].ctime_ns = world.clock;
        }
    }

    /// From now on files are stamped with this time or a later one, nanoseconds since the epoch.
    pub(crate) fn set_clock(&self, now_ns: i64) {
        let mut world = self.world();
        world.clock = world.clock.max(now_ns);
    }

    /// Changes times and nothing else, as `touch` and `chmod` do.
    pub(crate) fn touch(&self, path: impl AsRef<Path>) {
        self.change(path.as_ref(), |_| {});
    }

    /// Makes a path fail until [`MemoryFiles::heal`].
    pub(crate) fn fail(&self, path: impl AsRef<Path>, fault: Fault) {
        self.world().faults.insert(path.as_ref().to_owned(), fault);
    }

    /// Takes a fault away.
    pub(crate) fn heal(&self, path: impl AsRef<Path>) {
        self.world().faults.remove(path.as_ref());
    }

    /// Runs a closure just before the n-th `read_at` from now (1 is the next).
    pub(crate) fn at_read(&self, n: u64, hook: impl FnOnce(&MemoryFiles) + Send + 'static) {
        let mut world = self.world();
        let due = world.counts.reads + n;
        world.hooks.push((due, Box::new(hook)));
    }

    /// Drops the closures that have not run.
    pub(crate) fn forget_hooks(&self) {
        let forgotten = std::mem::take(&mut self.world().hooks);
        // A closure may own the last handle on these files, and dropping it must not meet the lock.
        drop(forgotten);
    }

    /// Reads give at most so many bytes from now on.
    pub(crate) fn limit_reads(&self, bytes: usize) {
        self.world().read_bytes_max = Some(bytes);
    }

    /// The content of a file.
    pub(crate) fn content(&self, path: impl AsRef<Path>) -> Option<Vec<u8>> {
        let world = self.world();
        world.paths.get(path.as_ref()).map(|node| world.nodes[*node].bytes.clone())
    }

    /// What was asked so far.
    pub(crate) fn counts(&self) -> Counts {
        self.world().counts
    }

    fn change(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut world = self.world();
        let node = world.find(path);
        world.clock += 1;
        let clock = world.clock;
        let node = &mut world.nodes[node];
        change(&mut node.bytes);
        (node.mtime_ns, node.ctime_ns) = (clock, clock);
    }

    fn world(&self) -> MutexGuard<'_, World> {
        // A test that failed while holding the lock must not hide its reason behind a poisoned one.
        self.world.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl World {
    fn find(&self, path: &Path) -> usize {
        *self.paths.get(path).expect("there is such a file")
    }

    fn put(&mut self, path: &Path, ino: u64, bytes: Vec<u8>) -> usize {
        self.clock += 1;
        self.nodes.push(Node { ino, bytes, mtime_ns: self.clock, ctime_ns: self.clock });
        self.paths.insert(path.to_owned(), self.nodes.len() - 1);
        self.nodes.len() - 1
    }

    fn stat(&self, node: usize) -> Stat {
        let Node { ino, bytes, mtime_ns, ctime_ns } = &self.nodes[node];
        let size = bytes.len() as u64;
        Stat { dev: DEV, ino: *ino, size, mtime_ns: *mtime_ns, ctime_ns: *ctime_ns }
    }

    fn look(&self, path: &Path) -> Result<usize, SourceError> {
        match self.faults.get(path) {
            Some(Fault::Unfit(what)) => return Err(SourceError::unfit(path, what)),
            Some(Fault::Errno(errno)) => {
                return Err(SourceError::io(path, io::Error::from_raw_os_error(*errno)));
            }
            Some(Fault::ReadErrno(_)) | None => {}
        }
        let missing = || SourceError::Missing(path.display().to_string());
        self.paths.get(path).copied().ok_or_else(missing)
    }
}

impl Files for MemoryFiles {
    fn open(&self, path: &Path) -> Result<Box<dyn SourceFile>, SourceError> {
        let mut world = self.world();
        let node = world.look(path)?;
        world.counts.opens += 1;
        world.counts.open_now += 1;
        Ok(Box::new(MemoryFile { files: self.clone(), path: path.to_owned(), node }))
    }

    fn stat(&self, path: &Path) -> Result<Stat, SourceError> {
        let world = self.world();
        world.look(path).map(|node| world.stat(node))
    }
}

struct MemoryFile {
    files: MemoryFiles,
    path: PathBuf,
    node: usize,
}

impl SourceFile for MemoryFile {
    fn stat(&self) -> io::Result<Stat> {
        Ok(self.files.world().stat(self.node))
    }

    fn stat_path(&self) -> Result<Stat, SourceError> {
        self.files.stat(&self.path)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut world = self.files.world();
        world.counts.reads += 1;
        let now = world.counts.reads;
        let (due, later) = std::mem::take(&mut world.hooks).into_iter().partition(|h| h.0 <= now);
        world.hooks = later;
        drop(world); // a hook changes files itself
        let due: Vec<(u64, Hook)> = due;
        due.into_iter().for_each(|(_, hook)| hook(&self.files));

        let mut world = self.files.world();
        if let Some(Fault::Errno(errno) | Fault::ReadErrno(errno)) = world.faults.get(&self.path) {
            return Err(io::Error::from_raw_os_error(*errno));
        }
        let bytes = &world.nodes[self.node].bytes;
        let from = usize::try_from(offset).map_or(bytes.len(), |offset| offset.min(bytes.len()));
        let most = buffer.len().min(world.read_bytes_max.unwrap_or(usize::MAX));
        let read = most.min(bytes.len() - from);
        buffer[..read].copy_from_slice(&bytes[from..from + read]);
        world.counts.bytes_read += read as u64;
        Ok(read)
    }
}

impl Drop for MemoryFile {
    fn drop(&mut self) {
        self.files.world().counts.open_now -= 1;
    }
}
