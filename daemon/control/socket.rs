//! The socket in the file system: made so that only its user can reach it, taken away when it is still ours.
//!
//! Knows nothing of HTTP. Whether another daemon is alive is asked of its socket, never guessed from a file: a socket that
//! answers is respected, one that refuses is what a kill left behind (T64).

use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use tokio::net::UnixListener;

/// Longest path of a socket: the system's `sun_path` without its final NUL.
const SOCKET_PATH_BYTES_MAX: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// Why there is no socket. Each one is for a person to resolve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    /// The system has a short limit for these paths.
    #[error(
        "the socket's path is too long: {} has {bytes} bytes of at most {SOCKET_PATH_BYTES_MAX}; choose a shorter one with --socket", path.display()
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// A daemon is there, or whoever starts one for its first client.
    #[error("somebody listens on {} already: another tracecraftd, or a service manager that starts one", .0.display())]
    AlreadyServing(PathBuf),
    /// Something else is there, and it is not ours to remove.
    #[error("{} exists and is not a socket; remove it or choose another path with --socket", .0.display())]
    NotASocket(PathBuf),
    /// The directory is not one that only its user can change.
    #[error("{} {fault}; choose another place with --socket", path.display())]
    UnsafeDirectory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it, as the rest of a sentence.
        fault: &'static str,
    },
    /// The system refused.
    #[error("cannot {operation} {}", path.display())]
    System {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// The file of a socket that we made, or that was made for us. Dropping it removes the file, unless another one has taken its
/// place, or a service manager made it, which goes on listening without us.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: Identity,
    is_ours: bool,
}

/// Device, inode and time of change: an inode number alone may be given again at once.
type Identity = (u64, u64, i64, i64);

impl SocketFile {
    /// Where it is, or was.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether clients still find our socket under its path. A cleaner of temporary files, or a person, may have removed it:
    /// then the daemon runs and nobody can tell (T65).
    pub(super) fn is_in_place(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_ours && self.is_in_place() {
            // A failure leaves a stale file, which the next start removes.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// As [`bind`], for a daemon that was passed no socket: somebody who listens is seen without a connection, for which a service manager
/// would start its service.
pub(crate) fn bind_first(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    // The table has paths of other mounts, too. Where there is no manager, a connection costs nothing and tells more.
    let is_there = path.exists() && crate::listening::is_listened_on(path) == Some(true);
    if is_there && crate::listening::may_be_a_managers() {
        return Err(BindError::AlreadyServing(path.to_owned()));
    }
    bind(path)
}

/// Makes the socket, mode 0600 in a directory of the user's own, and listens. Must be called inside the runtime.
pub(crate) fn bind(path: &Path) -> Result<(UnixListener, SocketFile), BindError> {
    let path = &std::path::absolute(path).map_err(system("resolve", path))?;
    let bytes = path.as_os_str().as_bytes().len();
    if bytes > SOCKET_PATH_BYTES_MAX {
        return Err(BindError::TooLong { path: path.clone(), bytes });
    }
    if let Some(directory) = path.parent() {
        prepare_directory(directory, path)?;
    }
    remove_stale(path)?;
    let listener = {
        // Between bind and chmod the socket has the mode that the umask leaves: nobody else may connect in between (T72).
        let _mask = PrivateUmask::set();
        std::os::unix::net::UnixListener::bind(path).map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::AlreadyServing(path.clone()),
            _ => system("bind", path)(source),
        })?
    };
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(system("chmod", path))?;
    let found = fs::symlink_metadata(path).map_err(system("look at", path))?;
    let file = SocketFile { path: path.clone(), identity: identity(&found), is_ours: true };
    listener.set_nonblocking(true).map_err(system("listen on", path))?;
    let listener = UnixListener::from_std(listener).map_err(system("listen on", path))?;
    Ok((listener, file))
}

/// Takes a listening socket that a service manager made at `path`. It must be that, and as safe as one of ours; an `Err` says why it
/// is not, and then [`bind`] makes one. Must be called inside the runtime.
pub(crate) fn take_over(
    listener: std::os::unix::net::UnixListener,
    path: &Path,
) -> Result<(UnixListener, SocketFile), String> {
    let told = |error: &dyn std::error::Error| match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    let path = &std::path::absolute(path).map_err(|error| told(&error))?;
    if !matches!(rustix::net::sockopt::socket_acceptconn(&listener), Ok(true)) {
        return Err("it does not listen".to_owned());
    }
    let address = listener.local_addr().map_err(|error| told(&error))?;
    if address.as_pathname() != Some(path) {
        let is_at = address
            .as_pathname()
            .map_or("without a path".into(), |at| format!("at {}", at.display()));
        return Err(format!("it is {is_at}, and the configuration says {}", path.display()));
    }
    let found = fs::symlink_metadata(path).map_err(|error| told(&error))?;
    if !found.file_type().is_socket() {
        return Err("its file was replaced by something else".to_owned());
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err("its file belongs to another user".to_owned());
    }
    if let Some(directory) = path.parent() {
        prepare_directory(directory, path).map_err(|error| told(&error))?;
    }
    // The file may be that of a socket which took this one's place, and whose owner is gone.
    if matches!(probe(path), Err(Errno::CONNREFUSED | Errno::NOENT)) {
        return Err("its file leads nowhere".to_owned());
    }
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(|error| told(&error))?;
    let found = fs::symlink_metadata(path).map_err(|error| told(&error))?;
    let file = SocketFile { path: path.clone(), identity: identity(&found), is_ours: false };
    listener.set_nonblocking(true).map_err(|error| told(&error))?;
    let listener = UnixListener::from_std(listener).map_err(|error| told(&error))?;
    Ok((listener, file))
}

/// Sees to it that nobody else can replace the socket: the directory is made, or tightened when it is for the socket alone.
fn prepare_directory(directory: &Path, socket: &Path) -> Result<(), BindError> {
    let refused = |fault| BindError::UnsafeDirectory { path: directory.to_owned(), fault };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(system("create", directory))?;
    let found = fs::symlink_metadata(directory).map_err(system("look at", directory))?;
    if found.is_symlink() {
        return Err(refused("is a symbolic link"));
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(refused("belongs to another user"));
    }
    let open = found.permissions().mode() & 0o077;
    if open == 0 {
        return Ok(());
    }
    // A directory that holds other things (a home, a project) is not ours to close. It will do as long as only its owner can
    // change it: the socket has its own mode, and the peer is asked for its user.
    if holds_only(directory, socket).map_err(system("read", directory))? {
        let private = Permissions::from_mode(0o700);
        return fs::set_permissions(directory, private).map_err(system("chmod", directory));
    }
    if open & 0o022 != 0 {
        return Err(refused("can be changed by other users"));
    }
    Ok(())
}

fn holds_only(directory: &Path, socket: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(directory)? {
        if Some(&*entry?.file_name()) != socket.file_name() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Removes a socket that nobody listens on. Called under the instance lock, so no other daemon binds in between.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(system("look at", path)(error)),
    };
    if !found.file_type().is_socket() {
        return Err(BindError::NotASocket(path.to_owned()));
    }
    match probe(path) {
        // A full queue of connections is a daemon that is busy, or stuck: alive either way.
        Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS) => {
            Err(BindError::AlreadyServing(path.to_owned()))
        }
        Err(Errno::CONNREFUSED) => {
            let now = fs::symlink_metadata(path).map_err(system("look at", path))?;
            if identity(&now) != identity(&found) {
                return Err(BindError::AlreadyServing(path.to_owned()));
            }
            tracing::info!(socket = %path.display(), "stale control socket removed");
            fs::remove_file(path).map_err(system("remove", path))
        }
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(system("connect to", path)(errno.into())),
    }
}

/// Connects without waiting: a daemon that hangs must not make its successor hang.
fn probe(path: &Path) -> Result<(), Errno> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    let flags = rustix::fs::fcntl_getfl(&socket)?;
    rustix::fs::fcntl_setfl(&socket, flags | rustix::fs::OFlags::NONBLOCK)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)
}

fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
}

fn system(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BindError {
    move |source| BindError::System { operation, path: path.to_owned(), source }
}

/// Takes the rights of others from what is created, until it is dropped. The mask is the whole process's: what other threads
/// create meanwhile is 0600 or 0700 anyway. One at a time, or the second would restore the mask of the first.
struct PrivateUmask {
    before: Mode,
    _turn: MutexGuard<'static, ()>,
}

impl PrivateUmask {
    fn set() -> PrivateUmask {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        PrivateUmask { before: rustix::process::umask(Mode::from_raw_mode(0o077)), _turn: turn }
    }
}

impl Drop for PrivateUmask {
    fn drop(&mut self) {
        rustix::process::umask(self.before);
    }
}

#[cfg(test)]
#[path = "socket_tests.rs"]
mod tests;
