//! Who listens at the path of a socket, found out without a connection.
//!
//! Reads what the kernel tells; refuses to connect, since a service manager that listens starts its service for that.

use std::fs;
use std::path::Path;

/// Whether somebody listens at a path, as the kernel's table of sockets has it; `None` where there is no such table. It knows those of
/// this network namespace alone.
pub(crate) fn is_listened_on(path: &Path) -> Option<bool> {
    let table = fs::read("/proc/net/unix").ok()?;
    // A path is any bytes, also those of others.
    let lines =
        table.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    Some(lines.into_iter().any(|line| is_listener(line, path)))
}

/// Whether a service manager of this user is there, which may listen for a service of its.
pub(crate) fn may_be_a_managers() -> bool {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR");
    runtime.is_some_and(|dir| Path::new(&dir).join("systemd").is_dir())
}

/// Whether a line of the kernel's table of sockets is one that is listened on at this path: the fourth word are flags, the path
/// is what follows the seventh.
fn is_listener(line: &str, path: &Path) -> bool {
    /// The kernel's `__SO_ACCEPTCON`.
    const LISTENS: &str = "00010000";
    // Seven words that are padded with spaces, and the path as it is, which may have some itself.
    let mut rest = line;
    let mut flags = None;
    for column in 0..7 {
        let Some((word, after)) = rest.trim_start().split_once(' ') else { return false };
        if column == 3 {
            flags = Some(word);
        }
        rest = after;
    }
    flags == Some(LISTENS) && path.to_str() == Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_known_by_flags_and_the_whole_path() {
        let line = "0000000000000000: 00000002 00000000 00010000 0001 01 23456 /run/a b/x.sock";
        assert!(is_listener(line, Path::new("/run/a b/x.sock")));
        assert!(!is_listener(line, Path::new("b/x.sock")));
        assert!(!is_listener(line, Path::new("/x.sock")));
        let connected = line.replace("00010000", "00000000");
        assert!(!is_listener(&connected, Path::new("/run/a b/x.sock")));
    }
}
