//! Who listens at the path of a socket, found out without a connection.
//!
//! Reads what the kernel tells; refuses to connect, since a service manager that listens starts its service for that.

use std::fs;
use std::path::Path;

/// Whether somebody listens at a path, as the kernel's table of sockets has it; `None` where there is no such table. It knows those of
/// this network namespace alone.
pub(crate) fn is_listened_on(path: &Path) -> Option<bool> {
    let table = fs::read_to_string("/proc/net/unix").ok()?;
    Some(table.lines().any(|line| is_listener(line, path)))
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
