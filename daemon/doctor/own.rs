//! The recorder's own files and what the machine grants it: state, lock, socket, outbox, free space, watches, descriptors.
//!
//! Knows where these are and what of them can be told by looking; takes no lock, connects to no socket, and opens files for
//! reading only.

use std::error::Error as _;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use rustix::process::{Resource, getrlimit};

use super::{LocalState, Settings, StateDirOf};
use crate::durable::{Disk, OsDisk};
use crate::instance;
use crate::outbox::Outbox;
use crate::state::{self, Owner, StateError};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own {
    /// The state directory of this store.
    pub state_dir: PathBuf,
    /// How the configured state directory was found.
    pub directory: Directory,
    /// The state's snapshot.
    pub snapshot: Snapshot,
    /// Whether a recorder runs on this state.
    pub lock: Lock,
    /// The control socket.
    pub socket: Socket,
    /// What is unsafe about the directory of the socket, as the end of a sentence.
    pub socket_fault: Option<String>,
    /// Bytes that may still be written to the disk of the state.
    pub free_bytes: Result<u64, String>,
    /// Parts that wait for the store, and their bytes.
    pub outbox: (u64, u64),
    /// What the kernel grants to watchers; `None` where it does not tell.
    pub watches: Option<Watches>,
    /// Descriptors that the recorder may have open, or this process, where none runs.
    pub descriptors: Option<u64>,
}

/// How a directory of the recorder's own was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Directory {
    /// It is not there: the first start makes it.
    Missing,
    /// It is the user's, and closed to others.
    Private,
    /// Others may look into it: these are its rights.
    Open(u32),
    /// It belongs to the user with this number.
    Foreign(u32),
    /// It is no directory, or cannot be looked at.
    Unusable(String),
}

/// How the state's snapshot was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Snapshot {
    /// There is none.
    Missing,
    /// It can be read.
    Fine,
    /// It is not what was written.
    Damaged,
    /// A newer version wrote it; in words.
    Newer(String),
    /// It cannot be read, for this reason.
    Unreadable(String),
}

/// Whether a recorder holds the lock of the state directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lock {
    /// Nobody does.
    Free,
    /// This process does, as far as is known.
    Held {
        /// Its number.
        pid: Option<u32>,
        /// Since when, RFC 3339.
        since: Option<String>,
    },
    /// It cannot be told, for this reason.
    Unknown(String),
}

/// How the control socket was found, without connecting to it: a connection would start a service that waits for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Socket {
    /// There is none.
    Missing,
    /// Something else has its place.
    NotASocket,
    /// Somebody listens.
    Listened,
    /// Nobody listens: what a kill left behind.
    Left,
    /// It is a socket, and the system does not tell more.
    There,
}

/// What the kernel grants to all of a user's programs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watches {
    /// Directories that may be watched.
    pub watches_max: u64,
    /// Watchers that there may be.
    pub instances_max: u64,
    /// Watchers that there are.
    pub instances: u64,
}

/// Looks.
pub(super) fn look(settings: &Settings, identity: &str, state_dir_of: StateDirOf) -> Own {
    let disk = OsDisk::new();
    let state_dir = state_dir_of(&disk, &settings.state_dir, identity);
    let lock = match instance::look(&settings.state_dir) {
        Ok(None) => Lock::Free,
        Ok(Some(holder)) => {
            Lock::Held { pid: holder.pid, since: holder.since.map(|since| format!("{since:.0}")) }
        }
        Err(error) => Lock::Unknown(error.to_string()),
    };
    let waiting = Outbox::new(&state_dir).waiting(&disk).unwrap_or_default();
    let pid = match &lock {
        Lock::Held { pid, .. } => *pid,
        Lock::Free | Lock::Unknown(_) => None,
    };
    Own {
        directory: directory(&settings.state_dir),
        snapshot: snapshot(&disk, &state_dir),
        lock,
        socket: socket(&settings.socket),
        socket_fault: settings.socket.parent().and_then(socket_fault),
        free_bytes: disk.free_bytes(&state_dir).map_err(|error| error.to_string()),
        outbox: (waiting.len() as u64, waiting.iter().map(|part| part.bytes).sum()),
        watches: watches(),
        descriptors: pid.and_then(descriptors_of).or_else(|| getrlimit(Resource::Nofile).current),
        state_dir,
    }
}

/// Looks at the directory of a local store.
pub(super) fn local(
    path: &Path,
    state_dir: &Path,
    identity: &str,
    state_dir_of: StateDirOf,
) -> LocalState {
    let disk = OsDisk::new();
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let state_dir = state_dir_of(&disk, state_dir, identity);
            let stored = Owner::of(&disk, &state_dir).is_some_and(|owner| owner.has_stored());
            if stored { LocalState::Gone } else { LocalState::NotYet }
        }
        Err(error) => LocalState::Unusable(error.to_string()),
        Ok(meta) if !meta.is_dir() => LocalState::Unusable("it is no directory".to_owned()),
        Ok(_) => {
            let wanted = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
            match rustix::fs::access(path, wanted) {
                Ok(()) => LocalState::Fine,
                Err(error) => LocalState::Unusable(io::Error::from(error).to_string()),
            }
        }
    }
}

fn directory(path: &Path) -> Directory {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Directory::Missing,
        Err(error) => Directory::Unusable(error.to_string()),
        Ok(meta) if !meta.is_dir() => Directory::Unusable("it is no directory".to_owned()),
        Ok(meta) if meta.uid() != rustix::process::geteuid().as_raw() => {
            Directory::Foreign(meta.uid())
        }
        Ok(meta) if meta.mode() & 0o077 != 0 => Directory::Open(meta.mode() & 0o777),
        Ok(_) => Directory::Private,
    }
}

fn snapshot(disk: &dyn Disk, state_dir: &Path) -> Snapshot {
    match state::is_intact(disk, state_dir) {
        Ok(true) => Snapshot::Fine,
        Ok(false) => Snapshot::Damaged,
        Err(error @ StateError::UnknownVersion { .. }) => Snapshot::Newer(error.to_string()),
        Err(StateError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Snapshot::Missing
        }
        Err(error) => {
            let why = error.source().map(ToString::to_string).unwrap_or_default();
            Snapshot::Unreadable(format!("{error}: {why}"))
        }
    }
}

fn socket(path: &Path) -> Socket {
    match std::fs::symlink_metadata(path) {
        Err(_) => Socket::Missing,
        Ok(meta) if !meta.file_type().is_socket() => Socket::NotASocket,
        Ok(_) => match crate::listening::is_listened_on(path) {
            Some(true) => Socket::Listened,
            Some(false) => Socket::Left,
            None => Socket::There,
        },
    }
}

/// Who can change the directory can put another socket into the place of ours.
fn socket_fault(dir: &Path) -> Option<String> {
    let meta = std::fs::symlink_metadata(dir).ok()?;
    if meta.is_symlink() {
        Some("is a symbolic link".to_owned())
    } else if meta.uid() != rustix::process::geteuid().as_raw() {
        Some(format!("belongs to another user (uid {})", meta.uid()))
    } else {
        (meta.mode() & 0o022 != 0).then(|| "can be changed by other users".to_owned())
    }
}

fn watches() -> Option<Watches> {
    let limit = |name: &str| -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).ok()?;
        text.trim().parse().ok()
    };
    Some(Watches {
        watches_max: limit("max_user_watches")?,
        instances_max: limit("max_user_instances")?,
        instances: instances(),
    })
}

/// Watchers of this user's programs, as far as they can be looked at.
fn instances() -> u64 {
    let own = rustix::process::geteuid().as_raw();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ours = processes.filter(|entry| entry.metadata().is_ok_and(|meta| meta.uid() == own));
    let descriptors = ours.filter_map(|entry| std::fs::read_dir(entry.path().join("fd")).ok());
    let is_watcher = |path: PathBuf| {
        std::fs::read_link(path).is_ok_and(|to| to.as_os_str() == "anon_inode:inotify")
    };
    descriptors.flatten().flatten().filter(|entry| is_watcher(entry.path())).count() as u64
}

/// What the kernel says of another process: `Max open files  1024  524288  files`.
fn descriptors_of(pid: u32) -> Option<u64> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_socket_is_told_from_what_a_kill_left_and_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        assert_eq!(socket(&path), Socket::Missing);
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(socket(&path), Socket::Listened);
        drop(listener);
        assert_eq!(socket(&path), Socket::Left);
        std::fs::remove_file(&path).unwrap();
        std::fs::File::create(&path).unwrap();
        assert_eq!(socket(&path), Socket::NotASocket);
    }

    #[test]
    fn rights_of_directories_are_told_and_left_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let set = |mode| {
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set(0o700);
        assert_eq!(directory(dir.path()), Directory::Private);
        assert_eq!(socket_fault(dir.path()), None);
        set(0o777);
        assert_eq!(directory(dir.path()), Directory::Open(0o777));
        assert!(socket_fault(dir.path()).is_some());
        assert_eq!(directory(&dir.path().join("none")), Directory::Missing);
    }

    #[test]
    fn the_machine_tells_what_it_grants() {
        let granted = descriptors_of(std::process::id());
        assert_eq!(granted, getrlimit(Resource::Nofile).current);
        assert!(watches().is_some_and(|found| found.watches_max > 0 && found.instances_max > 0));
    }
}
