//! One file a harness: where its sessions live, what a path is, which id and working directory.
//!
//! Knows names and records of agents; knows nothing of cursors, parts or stores. Classification by name is cheap and is done
//! at every scan; what needs the first records of a file ([`Harness::identify`]) is asked once per file.

use std::path::{Path, PathBuf};

use crate::source::Encoding;

/// The variables and directories that decide where agents keep their sessions, read once at start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Env {
    /// The user's home directory.
    pub(crate) home: PathBuf,
    /// Environment variables, as a map so that tests need not change their own.
    pub(crate) vars: std::collections::BTreeMap<String, String>,
}

/// A directory below which a harness keeps sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Root {
    /// Name of the harness.
    pub(crate) harness: &'static str,
    /// Absolute path; need not exist.
    pub(crate) path: PathBuf,
}

/// A file that is a transcript, judged by its path alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Name of the harness.
    pub(crate) harness: &'static str,
    /// Absolute path.
    pub(crate) path: PathBuf,
    /// Session id as the path tells it, unescaped. [`Harness::identify`] may refine it.
    pub(crate) id: String,
    /// Whether the id is final, or the first records have a say.
    pub(crate) id_from_records: bool,
    /// How the file stores its content.
    pub(crate) encoding: Encoding,
    /// Whether an agent still writes to it.
    pub(crate) standing: Standing,
}

/// Whether an agent still writes to a file. The order is the order of age: where one id has several files, a live one is the
/// successor of an archived one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// Set aside or ended by its agent; the text orders several (a timestamp from the name, or empty).
    Archived(String),
    /// In the place where the agent appends.
    Live,
}

/// What the first records of a file say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Session id, where the records have a say in it.
    pub(crate) id: Option<String>,
    /// Working directory of the session.
    pub(crate) cwd: Option<String>,
    /// When the session began, as the records say it (RFC 3339).
    pub(crate) started_at: Option<String>,
}

/// A coding agent whose sessions we know how to find and read.
pub(crate) trait Harness: Send + Sync + std::fmt::Debug {
    /// Name in keys and messages: `claude-code`, `codex`, `openclaw`, as the reference tool has it.
    fn name(&self) -> &'static str;
    /// Where sessions live, given the environment. Directories need not exist.
    fn roots(&self, env: &Env) -> Vec<Root>;
    /// Whether a directory below a root can hold transcripts; `false` prunes it (and its events).
    fn descend(&self, relative: &Path) -> bool;
    /// What a file below a root is, by its path alone; `None` when it is not a transcript.
    fn classify(&self, root: &Root, path: &Path) -> Option<Candidate>;
    /// What the first complete records (bytes up to some limit, ending at a newline or not) say.
    fn facts(&self, candidate: &Candidate, head: &[u8]) -> Facts;
}
