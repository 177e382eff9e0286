//! One daemon per state directory: the private directory and the lock in it.
//!
//! The lock is the kernel's (`flock`), so that it ends with the process however that dies; the file stays and says who holds it.
//! Its descriptor is closed on exec, as all of the standard library's are, so that no child keeps the lock. Knows
//! directories and the lock file; refuses to know what else is kept there.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// File name of the lock.
const LOCK: &str = "tracecraftd.lock";

/// The kernel's own table of locks.
const LOCKS: &str = "/proc/locks";

/// Bytes of the lock file that are read to learn who holds it. We write fewer than a hundred.
const HOLDER_BYTES_MAX: u64 = 256;

/// Proof that this process is the only daemon of a state directory. The lock is released on drop.
#[derive(Debug)]
pub(crate) struct Instance {
    /// Kept open: the lock belongs to the open file.
    _lock: File,
}

impl Instance {
    /// Takes the lock of a state directory, which is created where it is missing.
    pub(crate) fn acquire(state_dir: &Path) -> Result<Instance, InstanceError> {
        private_dir(state_dir)?;
        let path = state_dir.join(LOCK);
        let failed = |source| InstanceError::Io { operation: "lock", path: path.clone(), source };
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(no_follow())
            .open(&path)
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(InstanceError::Held { holder: Holder::read(&lock), path });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        // For people and for the message above. Not synced: after a power loss nobody holds the lock.
        lock.set_len(0).map_err(failed)?;
        let holder = format!("pid {}\nsince {}\n", std::process::id(), jiff::Timestamp::now());
        lock.write_all(holder.as_bytes()).map_err(failed)?;
        Ok(Instance { _lock: lock })
    }
}

/// Who holds the lock of a state directory. It is not touched: taking it, for a moment even, would turn away a daemon that
/// starts just then.
pub(crate) fn look(state_dir: &Path) -> io::Result<Option<Holder>> {
    let path = state_dir.join(LOCK);
    let lock = match OpenOptions::new().read(true).custom_flags(no_follow()).open(path) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let inode = lock.metadata()?.ino().to_string();
    let holder = Holder::read(&lock);
    let held = match std::fs::read_to_string(LOCKS) {
        Ok(table) => table.lines().any(|line| is_lock_of(line, &inode, holder.pid)),
        // Not Linux: whoever wrote the file holds it as long as it lives.
        Err(_) => holder.pid.is_some_and(is_alive),
    };
    Ok(held.then_some(holder))
}

/// Whether a line of the kernel's table is a lock on this inode: `1: FLOCK  ADVISORY  WRITE 707 08:01:1234 0 EOF`. The device is
/// not compared: some file systems have another one there than `stat` tells. So that a file of the same number on another
/// disk is not taken for ours, the process has to be the one that the file names.
fn is_lock_of(line: &str, inode: &str, holder: Option<u32>) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let is_lock = words.get(1) == Some(&"FLOCK");
    let pid: Option<u32> = words.get(4).and_then(|pid| pid.parse().ok());
    // The lock is taken a moment before the file says by whom; then, and where another namespace numbers it, the inode decides.
    let is_holder = holder.is_none() || pid.is_none_or(|pid| pid == 0) || pid == holder;
    is_lock && is_holder && words.get(5).and_then(|file| file.rsplit(':').next()) == Some(inode)
}

fn is_alive(pid: u32) -> bool {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed());
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}

/// Makes sure that a directory exists, belongs to this user and is closed to others. An open one of ours is closed.
pub(crate) fn private_dir(dir: &Path) -> Result<(), InstanceError> {
    let failed =
        |operation| move |source| InstanceError::Io { operation, path: dir.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create"))?;
    // Opened once, so that what is checked is what is changed.
    let open = OpenOptions::new()
        .read(true)
        .custom_flags(directory())
        .open(dir)
        .map_err(failed("open"))?;
    let meta = open.metadata().map_err(failed("look at"))?;
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(InstanceError::Foreign { path: dir.to_owned(), owner: meta.uid() });
    }
    if meta.mode() & 0o077 != 0 {
        open.set_permissions(Permissions::from_mode(0o700)).map_err(failed("close to others"))?;
    }
    Ok(())
}

fn no_follow() -> i32 {
    flags(rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK)
}

fn directory() -> i32 {
    flags(rustix::fs::OFlags::DIRECTORY)
}

fn flags(flags: rustix::fs::OFlags) -> i32 {
    i32::try_from(flags.bits()).expect("open flags fit into the C int that they are")
}

/// Who holds a lock, as far as its file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    /// Process id.
    pub(crate) pid: Option<u32>,
    /// Start of the process, RFC 3339.
    pub(crate) since: Option<jiff::Timestamp>,
}

impl Holder {
    fn read(file: &File) -> Holder {
        let mut text = String::new();
        // What cannot be read is not known; the lock is held all the same.
        let _ = file.take(HOLDER_BYTES_MAX).read_to_string(&mut text);
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Holder {
            pid: field("pid").and_then(|pid| pid.parse().ok()),
            since: field("since").and_then(|since| since.parse().ok()),
        }
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.pid, self.since) {
            (Some(pid), Some(since)) => write!(f, "process {pid}, since {since:.0}"),
            (Some(pid), None) => write!(f, "process {pid}"),
            (None, _) => f.write_str("another process"),
        }
    }
}

/// Why this process is not the daemon of the state directory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InstanceError {
    /// Another daemon runs.
    #[error("another tracecraftd uses {}: {holder}", path.parent().unwrap_or(path).display())]
    Held {
        /// Who.
        holder: Holder,
        /// The lock file.
        path: PathBuf,
    },
    /// The directory belongs to someone else, who could read and replace what we keep in it.
    #[error("{} belongs to another user (uid {owner})", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// The operating system refuses.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

impl InstanceError {
    /// What to do about it.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            InstanceError::Held { .. } => {
                "stop the other one, or give this one its own --state-dir and --socket"
            }
            InstanceError::Foreign { .. } => "name a directory of your own with --state-dir",
            InstanceError::Io { .. } => {
                "check the rights of the directory and the disk, or name another with --state-dir"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nobody's, on any machine that runs tests.
    const OTHER_UID: u32 = 54_321;

    /// Takes a lock that nobody holds. Other tests of this process start children, and between fork and exec a child has all
    /// descriptors, so that the lock may be free a moment later than its owner is dropped.
    fn acquire_free(dir: &Path) -> Instance {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            match Instance::acquire(dir) {
                Ok(instance) => return instance,
                Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
            }
            std::thread::yield_now();
        }
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o7777
    }

    #[test]
    fn t33_a_second_daemon_is_told_who_holds_the_lock() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("a/state");
        let first = Instance::acquire(&dir).unwrap();
        let error = Instance::acquire(&dir).unwrap_err();
        let InstanceError::Held { holder, .. } = &error else { panic!("{error}") };
        assert_eq!(holder.pid, Some(std::process::id()));
        assert!(holder.since.is_some());
        let said = error.to_string();
        assert!(said.contains(&format!("process {}", std::process::id())), "{said}");
        assert!(said.contains(dir.to_str().unwrap()), "{said}");
        drop(first);
        acquire_free(&dir);
        assert_eq!((mode(&dir), mode(&dir.join(LOCK))), (0o700, 0o600));
    }

    #[test]
    fn t33_a_lock_file_that_a_killed_daemon_left_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        let mut left = File::create(dir.path().join(LOCK)).unwrap();
        left.write_all(b"pid 1\nsince 2020-01-01T00:00:00Z\nand more, longer than what we write\n")
            .unwrap();
        let instance = Instance::acquire(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join(LOCK)).unwrap();
        assert!(text.starts_with(&format!("pid {}\n", std::process::id())), "{text}");
        assert_eq!(text.lines().count(), 2, "{text}");
        drop(instance);
    }

    #[test]
    fn t69_a_child_does_not_inherit_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Instance::acquire(dir.path()).unwrap();
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        drop(lock);
        acquire_free(dir.path());
        assert_eq!(child.try_wait().unwrap(), None, "the child still ran");
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn an_open_directory_of_ours_is_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        Instance::acquire(dir.path()).unwrap();
        assert_eq!(mode(dir.path()), 0o700);
    }

    #[test]
    fn t72_a_directory_of_another_user_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let foreign = if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(OTHER_UID), None).unwrap();
            dir.path()
        } else {
            Path::new("/usr")
        };
        let error = private_dir(foreign).unwrap_err();
        assert!(matches!(error, InstanceError::Foreign { .. }), "{error}");
    }

    #[test]
    fn who_holds_the_lock_is_found_without_touching_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(look(dir.path()).unwrap(), None);
        assert!(!dir.path().join(LOCK).exists());
        let instance = Instance::acquire(dir.path()).unwrap();
        let holder = look(dir.path()).unwrap().unwrap();
        assert_eq!(holder.pid, Some(std::process::id()));
        drop(instance);
        acquire_free(dir.path());
        let line = "1: FLOCK  ADVISORY  WRITE 707 fe:00:1234 0 EOF";
        let ours = Some(707);
        assert!(is_lock_of(line, "1234", ours) && !is_lock_of(line, "234", ours));
        assert!(is_lock_of(line, "1234", None) && !is_lock_of(line, "1234", Some(708)));
        assert!(!is_lock_of("1: POSIX  ADVISORY  WRITE 707 fe:00:1234 0 EOF", "1234", ours));
    }

    #[test]
    fn a_link_in_place_of_the_lock_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("precious");
        std::os::unix::fs::symlink(&target, dir.path().join(LOCK)).unwrap();
        assert!(matches!(Instance::acquire(dir.path()), Err(InstanceError::Io { .. })));
        assert!(!target.exists());
    }
}
