//! Where things are: configuration, state, bucket, socket. The only module that asks the platform.

use std::path::{Path, PathBuf};

/// The platform tells no directory for the socket.
#[derive(Debug, thiserror::Error)]
#[error("no directory for the socket is known: neither XDG_RUNTIME_DIR nor HOME is set")]
pub struct PathError;

/// Path of the control socket: the flag, else `TRACECRAFT_SOCKET`, else the runtime directory, else the state directory.
pub fn socket_path(flag: Option<&Path>) -> Result<PathBuf, PathError> {
    let named = flag.map(PathBuf::from);
    let env = || std::env::var_os("TRACECRAFT_SOCKET").filter(|v| !v.is_empty()).map(PathBuf::from);
    let runtime = || {
        let dir = std::env::var_os("XDG_RUNTIME_DIR").filter(|v| !v.is_empty())?;
        Some(PathBuf::from(dir).join("tracecraft/tracecraftd.sock"))
    };
    named.or_else(env).or_else(runtime).ok_or(PathError)
}
