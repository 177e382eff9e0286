//! notify → hints: where something may have changed. A lost event costs delay, never data: the scan is the truth.
//!
//! Knows directories and events; refuses to know what a transcript is. The scan says which directories count, and each gets a
//! watch of its own, so that pruned directories cost none. On macOS the system watches whole trees, and a root gets one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use notify::event::{EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Hints that are kept one by one. More than this between two looks, and a scan is cheaper than the list.
pub(crate) const HINTS_MAX: usize = 4096;

/// Watches that we take. The kernel grants a number to all of a user's programs together (8,192 on old kernels) and their
/// editor needs some too; each costs about 1 KiB of kernel memory.
pub(crate) const WATCHES_MAX: usize = 8192;

/// Time until watching is tried again where it failed. A limit that was raised is noticed, and the try costs next to nothing.
const RETRY_AFTER: Duration = Duration::from_secs(10 * 60);

/// Where to look. Filled by the watcher's thread, emptied by the mirror.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    pending: Mutex<Taken>,
    wake: Notify,
}

/// What was pending. A path may be a file or a directory, may be gone again, and may be of no interest; below a directory
/// that is named here anything may be new.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Paths that were written, created, renamed or removed; each once, in order.
    pub(crate) paths: BTreeSet<PathBuf>,
    /// Something may have changed anywhere.
    pub(crate) rescan: bool,
}

impl Taken {
    fn is_empty(&self) -> bool {
        self.paths.is_empty() && !self.rescan
    }
}

impl Hints {
    /// Adds a hint. When there are too many, all of them become one: look everywhere.
    pub(crate) fn push(&self, path: PathBuf) {
        let mut pending = self.lock();
        if pending.rescan {
            return;
        }
        pending.paths.insert(path);
        let overflow = pending.paths.len() > HINTS_MAX;
        drop(pending);
        if overflow {
            self.rescan();
        } else {
            self.wake.notify_one();
        }
    }

    /// Asks for a scan of everything, which makes single hints needless.
    pub(crate) fn rescan(&self) {
        *self.lock() = Taken { paths: BTreeSet::new(), rescan: true };
        self.wake.notify_one();
    }

    /// Returns when there is something to take; at once while there is. Loses nothing when it is cancelled, because what is
    /// pending stays until it is taken.
    pub(crate) async fn changed(&self) {
        while self.lock().is_empty() {
            self.wake.notified().await;
        }
    }

    /// Takes what is pending.
    pub(crate) fn take(&self) -> Taken {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        // Every change is one assignment or insertion, so that a panic elsewhere cannot leave half of one.
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How changes below a root are noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Coverage {
    /// By events; the scan is the safety net.
    Events,
    /// By a scan at every interval, for this reason.
    Polled(String),
}

/// Watches directories and turns events into hints.
#[derive(Debug)]
pub(crate) struct Watcher {
    hints: Arc<Hints>,
    /// Directories whose watch ended by itself, because they were removed or renamed.
    ended: Arc<Mutex<Vec<PathBuf>>>,
    /// The roots that were covered once, for the watcher's thread: only what lies below one of them, or on the way to one, is
    /// hinted. The directory in which a missing root is awaited may be a busy one.
    known: Arc<Mutex<BTreeSet<PathBuf>>>,
    /// `None` until the first root is covered, and where the system refuses: one inotify instance for all roots.
    backend: Option<RecommendedWatcher>,
    roots: BTreeMap<PathBuf, Watched>,
}

/// What is watched below a root.
#[derive(Debug, Default)]
struct Watched {
    directories: BTreeSet<PathBuf>,
    /// Set while the root is polled: why, and when watching is tried again.
    polled: Option<(String, Instant)>,
}

impl Watcher {
    /// A watcher that watches nothing yet and takes nothing from the system. It cannot fail: where watching is refused,
    /// [`Watcher::cover`] says so for each root.
    pub(crate) fn start(hints: Arc<Hints>) -> Watcher {
        let (ended, known, roots) = (Arc::default(), Arc::default(), BTreeMap::new());
        Watcher { hints, ended, known, backend: None, roots }
    }

    /// Watches exactly these directories of a root: what the last scan visited. Called after every scan; without a change it
    /// costs no system call; with one, it blocks for some microseconds a directory. Where a watch was added, a rescan is hinted, because what happened between the scan and the
    /// watch was seen by neither.
    pub(crate) fn cover(&mut self, root: &Path, directories: &[PathBuf]) -> Coverage {
        self.forget_ended();
        self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(root.to_owned());
        let mut watched = self.roots.remove(root).unwrap_or_default();
        if let Some((reason, retry_at)) = &watched.polled
            && Instant::now() < *retry_at
        {
            let coverage = Coverage::Polled(reason.clone());
            self.roots.insert(root.to_owned(), watched);
            return coverage;
        }
        let wanted: BTreeSet<PathBuf> = if cfg!(target_os = "macos") {
            directories.iter().take(1).map(|_| root.to_owned()).collect()
        } else {
            directories.iter().cloned().collect()
        };
        for gone in watched.directories.difference(&wanted) {
            self.unwatch(gone);
        }
        watched.directories.retain(|directory| wanted.contains(directory));
        let new: Vec<PathBuf> = wanted.difference(&watched.directories).cloned().collect();
        let kept = watched.directories.len();
        let coverage = match self.add(&new, &mut watched) {
            Ok(()) => {
                watched.polled = None;
                Coverage::Events
            }
            Err(reason) => {
                // The scan looks everywhere below this root at each interval, so that the watches we have are of no use
                // here; some other program of this user may be short of them.
                for directory in std::mem::take(&mut watched.directories) {
                    self.unwatch(&directory);
                }
                watched.polled = Some((reason.clone(), Instant::now() + RETRY_AFTER));
                Coverage::Polled(reason)
            }
        };
        // Not where each new one was refused: the next scan would be refused the same, and ask for one more.
        if watched.directories.len() > kept {
            self.hints.rescan();
        }
        self.roots.insert(root.to_owned(), watched);
        coverage
    }

    /// Awaits a root that is not there: watches the nearest directory above it that is. When the next one on the way appears,
    /// the scan that its event asks for moves the watch there, until the root itself is covered.
    pub(crate) fn await_root(&mut self, root: &Path) {
        if cfg!(target_os = "macos") {
            return; // The whole tree below that directory would be watched; the scan finds the root.
        }
        let above = root.ancestors().skip(1).find(|directory| directory.is_dir());
        // Where watching is refused, the scan finds the root.
        let _ = self.cover(root, above.map(Path::to_owned).as_slice());
    }

    /// Number of watches.
    fn watches(&self) -> usize {
        self.roots.values().map(|root| root.directories.len()).sum()
    }

    fn add(&mut self, directories: &[PathBuf], watched: &mut Watched) -> Result<(), String> {
        let taken = self.watches() + watched.directories.len();
        if taken + directories.len() > WATCHES_MAX {
            return Err(format!("more than {WATCHES_MAX} directories would have to be watched"));
        }
        let mode = if cfg!(target_os = "macos") {
            RecursiveMode::Recursive
        } else {
            RecursiveMode::NonRecursive
        };
        for directory in directories {
            if let Some(kind) = silent_file_system(directory) {
                return Err(format!("{kind} does not report changes"));
            }
            match self.backend()?.watch(directory, mode) {
                Ok(()) => {
                    watched.directories.insert(directory.clone());
                }
                // Gone since the scan, or not ours to read: the next scan knows more.
                Err(error) if is_of_the_directory(&error) => {}
                Err(error) => return Err(refusal(&error)),
            }
        }
        Ok(())
    }

    fn backend(&mut self) -> Result<&mut RecommendedWatcher, String> {
        if self.backend.is_none() {
            let (hints, ended) = (self.hints.clone(), self.ended.clone());
            let known = self.known.clone();
            let handler = move |event| on_event(event, &hints, &ended, &known);
            let backend = RecommendedWatcher::new(handler, notify::Config::default());
            self.backend = Some(backend.map_err(|error| refusal(&error))?);
        }
        self.backend.as_mut().ok_or_else(|| "watching is not possible".to_owned())
    }

    fn unwatch(&mut self, directory: &Path) {
        // Roots may overlap; another one may still need it.
        let shared = self.roots.values().any(|root| root.directories.contains(directory));
        if let Some(backend) = self.backend.as_mut().filter(|_| !shared) {
            // It fails when the watch has ended by itself, which is what we want.
            let _ = backend.unwatch(directory);
        }
    }

    /// Drops the directories that were removed or renamed, and what was below them, so that a new one in the same place gets
    /// a new watch.
    fn forget_ended(&mut self) {
        let ended = std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner));
        for ended in ended {
            let mut forgotten = Vec::new();
            for root in self.roots.values_mut() {
                root.directories.retain(|directory| {
                    let keep = !directory.starts_with(&ended);
                    if !keep {
                        forgotten.push(directory.clone());
                    }
                    keep
                });
            }
            for directory in forgotten {
                self.unwatch(&directory);
            }
        }
    }
}

/// Runs on the watcher's thread. Whatever it cannot make sense of becomes a rescan.
fn on_event(
    event: notify::Result<notify::Event>,
    hints: &Hints,
    ended: &Mutex<Vec<PathBuf>>,
    known: &Mutex<BTreeSet<PathBuf>>,
) {
    let Some(event) = event.ok().filter(|event| !event.need_rescan()) else {
        // The end of a watch may be among what was lost, so that all of them are in doubt.
        end_all(&mut ended.lock().unwrap_or_else(PoisonError::into_inner));
        hints.rescan();
        return;
    };
    let gone = match event.kind {
        // Opening, reading and closing: mostly our own. They must not wake us, or looking would cause looking. A file that is
        // closed after writing was reported when it was written.
        EventKind::Access(_) => return,
        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => true,
        _ => false,
    };
    for path in event.paths {
        if gone {
            // Files come here too, and are not found among the watched.
            let mut ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
            if ended.len() >= HINTS_MAX {
                end_all(&mut ended);
            }
            ended.push(path.clone());
        }
        let roots = known.lock().unwrap_or_else(PoisonError::into_inner);
        let matters = roots.iter().any(|root| path.starts_with(root) || root.starts_with(&path));
        drop(roots);
        if matters {
            hints.push(path);
        }
    }
}

/// Everything is below the root directory: the next cover takes each watch anew.
fn end_all(ended: &mut Vec<PathBuf>) {
    ended.clear();
    ended.push(PathBuf::from("/"));
}

/// Whether an error is about one directory, and says nothing about the others.
fn is_of_the_directory(error: &notify::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(error) => {
            matches!(error.kind(), NotFound | NotADirectory | PermissionDenied)
        }
        _ => false,
    }
}

/// Why the system refuses, in words that lead to the cure.
fn refusal(error: &notify::Error) -> String {
    let limit = match &error.kind {
        notify::ErrorKind::MaxFilesWatch => Some("fs.inotify.max_user_watches"),
        notify::ErrorKind::Io(error)
            if error.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) =>
        {
            Some("fs.inotify.max_user_instances or the number of open files")
        }
        _ => None,
    };
    match limit {
        Some(limit) => format!("this user's limit is reached: {limit}"),
        None => format!("watching is refused: {error}"),
    }
}

/// Name of the kind of file system, where it is one that other machines or other systems write to without our kernel
/// knowing.
#[cfg(target_os = "linux")]
fn silent_file_system(directory: &Path) -> Option<&'static str> {
    /// Numbers of statfs(2), as the kernel's own headers have them.
    const SILENT: [(u32, &str); 10] = [
        (0x0000_6969, "NFS"),
        (0x0000_517B, "SMB"),
        (0xFE53_4D42, "SMB"),
        (0xFF53_4D42, "CIFS"),
        (0x0102_1997, "9p"),
        (0x6573_5546, "FUSE"),
        (0x5346_414F, "AFS"),
        (0x00C3_6400, "Ceph"),
        (0x786F_4256, "a VirtualBox shared folder"),
        (0xBACB_ACBC, "a VMware shared folder"),
    ];
    // The kernel's field is a signed or unsigned word of 32 or 64 bits; the number is in the low 32.
    let number = rustix::fs::statfs(directory).ok()?.f_type as u32;
    SILENT.iter().find(|(silent, _)| *silent == number).map(|(_, name)| *name)
}

/// Elsewhere the system knows.
#[cfg(not(target_os = "linux"))]
fn silent_file_system(_directory: &Path) -> Option<&'static str> {
    None
}

#[cfg(test)]
mod tests;
