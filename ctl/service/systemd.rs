//! The units, and what `systemctl --user` is asked.
//!
//! Knows the text of units and where they lie; refuses to know what the daemon does. The units themselves are in `systemd/`: what
//! is written is those, with the program and the socket of this machine.

use std::io;
use std::path::{Path, PathBuf};

use tracecraft::setup::{Survey, Vars, write_file};

use super::shell::{self, Ended};
use crate::failure::Failure;

pub(super) const SERVICE: &str = "tracecraftd.service";
pub(super) const SOCKET: &str = "tracecraftd.socket";

const SERVICE_TEXT: &str = include_str!("../../systemd/tracecraftd.service");
const SOCKET_TEXT: &str = include_str!("../../systemd/tracecraftd.socket");

/// The line of the packaged units that a machine's own program replaces.
const PACKAGED_EXEC: &str = "ExecStart=/usr/bin/tracecraftd\n";

/// The same of the socket.
const PACKAGED_LISTEN: &str = "ListenStream=%t/tracecraft/tracecraftd.sock\n";

/// The first line of what we wrote, so that only that is replaced and removed.
pub(super) const MARK: &str = "# Written by `tracecraftctl service install`";

/// Where packages and administrators put units for all users; the first one that has ours counts, as it does for systemd.
const PACKAGED: [&str; 3] =
    ["/etc/systemd/user", "/usr/local/lib/systemd/user", "/usr/lib/systemd/user"];

/// A unit that lies where it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// The units to write for this program and configuration.
pub(super) fn render(dir: &Path, program: &Path, found: &Survey, vars: &Vars) -> [Unit; 2] {
    let mut exec = exec_word(&program.display().to_string());
    if !found.is_default_file {
        let file = found.config_file.display().to_string();
        exec.push_str(&format!(" --config {}", exec_argument(&file)));
    }
    let mark =
        format!("{MARK}: changes of your own belong into `systemctl --user edit tracecraftd`.\n");
    let service = SERVICE_TEXT.replace(PACKAGED_EXEC, &format!("ExecStart={exec}\n"));
    let listen = match default_socket(vars) {
        Some(usual) if usual == found.socket => PACKAGED_LISTEN.to_owned(),
        _ => format!("ListenStream={}\n", found.socket.display().to_string().replace('%', "%%")),
    };
    let socket = SOCKET_TEXT.replace(PACKAGED_LISTEN, &listen);
    let unit = |name: &str, text: String| Unit {
        path: dir.join(name),
        text: format!("{mark}{}", without_head(&text)),
    };
    [unit(SERVICE, service), unit(SOCKET, socket)]
}

/// The comment at the beginning speaks of packages.
fn without_head(text: &str) -> &str {
    text.find("\n[Unit]").map_or(text, |at| &text[at + 1..])
}

/// Where the packaged socket unit listens.
pub(super) fn default_socket(vars: &Vars) -> Option<PathBuf> {
    Some(Path::new(vars.get("XDG_RUNTIME_DIR")?).join("tracecraft/tracecraftd.sock"))
}

/// The first word of a command: no variables there, but percent signs mean something.
pub(super) fn exec_word(word: &str) -> String {
    let escaped = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%");
    if word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+@%".contains(c)) {
        escaped
    } else {
        format!("\"{escaped}\"")
    }
}

/// A further word, where a dollar sign means something, too.
pub(super) fn exec_argument(word: &str) -> String {
    exec_word(word).replace('$', "$$")
}

/// Where the units of this user lie.
pub(super) fn unit_dir(vars: &Vars, home: &Path) -> PathBuf {
    let config = vars.get("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    config.unwrap_or_else(|| home.join(".config")).join("systemd/user")
}

/// The directory with both units, if a package brought them, and they say what this configuration needs.
pub(super) fn packaged(found: &Survey, vars: &Vars) -> Option<PathBuf> {
    let usual = found.is_default_file && default_socket(vars).as_ref() == Some(&found.socket);
    packaged_in(&PACKAGED.map(PathBuf::from)).filter(|_| usual)
}

pub(super) fn packaged_in(dirs: &[PathBuf]) -> Option<PathBuf> {
    dirs.iter().find(|dir| dir.join(SERVICE).is_file() && dir.join(SOCKET).is_file()).cloned()
}

/// Whether a file at this path is one that we wrote.
pub(super) fn is_ours(path: &Path) -> bool {
    std::fs::read_to_string(path).is_ok_and(|text| text.starts_with(MARK))
}

/// Writes units that are not there as they should be; answers whether any was. A unit of somebody else's making is not ours to replace.
pub(super) fn write(units: &[Unit]) -> Result<bool, Failure> {
    let mut changed = false;
    for unit in units {
        match std::fs::read_to_string(&unit.path) {
            Ok(text) if text == unit.text => continue,
            Ok(text) if !text.starts_with(MARK) => {
                let what =
                    format!("{} is there and was not written by this program", unit.path.display());
                return Err(Failure::failed(what).hint("move it away, and install again"));
            }
            _ => {}
        }
        write_file(&unit.path, &unit.text).map_err(|error| cannot("write", &unit.path, &error))?;
        changed = true;
    }
    Ok(changed)
}

/// Removes units that we wrote, and directories that are empty then; answers with what is gone.
pub(super) fn remove(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut removed = Vec::new();
    for path in [dir.join(SERVICE), dir.join(SOCKET)] {
        if is_ours(&path) {
            std::fs::remove_file(&path).map_err(|error| cannot("remove", &path, &error))?;
            removed.push(path);
        }
    }
    remove_if_empty([dir, dir.parent().unwrap_or(dir)]);
    Ok(removed)
}

/// Removes what starts the units at login. Where the manager does not know their files any more, it does not do that itself.
pub(super) fn remove_links(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut removed = Vec::new();
    for (wants, unit) in [("default.target.wants", SERVICE), ("sockets.target.wants", SOCKET)] {
        let link = dir.join(wants).join(unit);
        if link.is_symlink() {
            std::fs::remove_file(&link).map_err(|error| cannot("remove", &link, &error))?;
            removed.push(link);
        }
        remove_if_empty([&*dir.join(wants), dir, dir.parent().unwrap_or(dir)]);
    }
    Ok(removed)
}

/// That something else is in them is the usual case.
fn remove_if_empty<const N: usize>(dirs: [&Path; N]) {
    for dir in dirs {
        let _ = std::fs::remove_dir(dir);
    }
}

/// Runs `systemctl --user`, which must succeed.
pub(super) fn ask(words: &[&str]) -> Result<Ended, Failure> {
    let ended = try_ask(words).map_err(|error| Failure::failed(format!("systemctl: {error}")))?;
    if ended.success {
        return Ok(ended);
    }
    let what = format!("`systemctl --user {}` failed: {}", words.join(" "), ended.said());
    Err(Failure::failed(what)
        .hint("`tracecraftctl doctor` looks for the cause; `tracecraftctl service logs` says more"))
}

/// Runs `systemctl --user`, whatever comes of it.
pub(super) fn try_ask(words: &[&str]) -> io::Result<Ended> {
    shell::run(&[&["systemctl", "--user"], words].concat())
}

/// Properties of a unit.
pub(super) fn show(unit: &str, properties: &[&str]) -> Vars {
    let wanted = format!("--property={}", properties.join(","));
    match try_ask(&["show", &wanted, unit]) {
        Ok(ended) => {
            let lines = ended.out.lines().filter_map(|line| line.split_once('='));
            lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        }
        Err(_) => Vars::new(),
    }
}

/// Whether the manager knows a unit's file, and whether it runs.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) is_loaded: bool,
    pub(super) is_running: bool,
}

/// How a unit stands. One that nobody knows does not run.
pub(super) fn standing(unit: &str) -> Standing {
    let shown = show(unit, &["LoadState", "ActiveState"]);
    let is_other = |name, than| shown.get(name).is_some_and(|state| state != than);
    Standing {
        is_loaded: is_other("LoadState", "not-found"),
        is_running: is_other("ActiveState", "inactive"),
    }
}

/// Whether a unit is active, or on its way there.
pub(super) fn is_active(unit: &str) -> bool {
    let shown = show(unit, &["ActiveState"]);
    matches!(
        shown.get("ActiveState").map(String::as_str),
        Some("active" | "activating" | "reloading")
    )
}

/// What the system refused.
pub(super) fn cannot(operation: &str, path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot {operation} {}: {error}", path.display()))
}
