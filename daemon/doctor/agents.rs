//! The agents' directories: whether they are there and can be read, how many directories would be watched, and when an agent
//! throws its sessions away.
//!
//! Only looks: names of entries, and one file of settings, through the door that sources are read by.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::harness::scan::{Limits, scan};
use crate::harness::{self};
use crate::source::{Files, OsFiles};

/// Name of the harness whose settings say when it deletes sessions.
const CLAUDE_CODE: &str = "claude-code";

/// Its key for that.
const CLEANUP: &str = "cleanupPeriodDays";

/// What it does when its settings do not say.
const CLEANUP_DAYS: u64 = 30;

/// Largest file of settings that is read. Real ones have some thousand bytes.
const SETTINGS_BYTES_MAX: usize = 1 << 20;

/// What was found of the agents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Agents {
    /// Where sessions are looked for.
    pub roots: Vec<Root>,
    /// When Claude Code deletes sessions; `None` where it is not there.
    pub retention: Option<Retention>,
    /// Directories with sessions, each of which is watched.
    pub directories: u64,
}

/// A directory where sessions are looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// Name of the harness.
    pub harness: &'static str,
    /// Its path.
    pub path: PathBuf,
    /// How it was found.
    pub state: RootState,
}

/// How a root was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootState {
    /// It can be read.
    There,
    /// There is nothing, yet.
    Missing,
    /// It belongs to the user with this number.
    Foreign(u32),
    /// It cannot be read, for this reason.
    Unreadable(String),
}

/// When Claude Code deletes a session that nothing was written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// After so many days.
    pub days: u64,
    /// Where that is said, or could be.
    pub settings: PathBuf,
    /// Whether it is said there; otherwise it is the default.
    pub said: bool,
}

/// Looks at each root.
pub(super) fn look(roots: &[harness::Root]) -> Agents {
    let mut found = Agents::default();
    for root in roots {
        let state = state_of(&root.path);
        if state == RootState::There {
            let harness = harness::all().into_iter().find(|one| one.name() == root.harness);
            let walked = harness.map(|one| scan(&*one, root, Limits::default()).directories.len());
            found.directories += walked.unwrap_or(0) as u64;
            if root.harness == CLAUDE_CODE {
                found.retention = root.path.parent().map(retention);
            }
        }
        found.roots.push(Root { harness: root.harness, path: root.path.clone(), state });
    }
    found
}

fn state_of(path: &Path) -> RootState {
    let unreadable = |error: io::Error| RootState::Unreadable(error.to_string());
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => RootState::Missing,
        Err(error) => unreadable(error),
        Ok(meta) if !meta.is_dir() => RootState::Unreadable("it is no directory".to_owned()),
        Ok(meta) if meta.uid() != rustix::process::geteuid().as_raw() => {
            RootState::Foreign(meta.uid())
        }
        Ok(_) => std::fs::read_dir(path).map_or_else(unreadable, |_| RootState::There),
    }
}

/// What the settings in Claude Code's directory say. What cannot be read says nothing.
fn retention(dir: &Path) -> Retention {
    let settings = dir.join("settings.json");
    let said = read(&settings)
        .and_then(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).ok())
        .and_then(|value| value.get(CLEANUP)?.as_u64());
    Retention { days: said.unwrap_or(CLEANUP_DAYS), settings, said: said.is_some() }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let file = OsFiles.open(path).ok()?;
    let mut bytes = Vec::new();
    let mut piece = [0; 8192];
    while bytes.len() < SETTINGS_BYTES_MAX {
        match file.read_at(&mut piece, bytes.len() as u64).ok()? {
            0 => return Some(bytes),
            read => bytes.extend_from_slice(&piece[..read]),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_says_of_its_retention_is_read_and_everything_else_is_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let of = |text: &str| {
            use std::io::Write;
            let mut file = std::fs::File::create(dir.path().join("settings.json")).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            let found = retention(dir.path());
            (found.days, found.said)
        };
        assert_eq!(retention(dir.path()).days, CLEANUP_DAYS);
        assert_eq!(of("{\"cleanupPeriodDays\": 365}"), (365, true));
        assert_eq!(of("{\"cleanupPeriodDays\": \"x\"}"), (CLEANUP_DAYS, false));
        assert_eq!(of("not JSON"), (CLEANUP_DAYS, false));
    }
}
