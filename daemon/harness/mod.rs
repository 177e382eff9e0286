//! One file a harness: where its sessions live, what a path is, which id and working directory.
//!
//! Knows names and records of agents; knows nothing of cursors, parts or stores. Classification by name is cheap and is done
//! at every scan; what needs the first records of a file ([`Harness::facts`]) is asked once per file.

mod claude_code;
mod codex;
mod hermes;
mod openclaw;
mod python;
mod records;
pub(crate) mod scan;
mod tables;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::source::Encoding;
use crate::source::database::Tables;

/// Every harness, in the order in which they are shown.
pub(crate) fn all() -> Vec<Arc<dyn Harness>> {
    vec![
        Arc::new(claude_code::ClaudeCode),
        Arc::new(codex::Codex),
        Arc::new(openclaw::OpenClaw),
        Arc::new(hermes::Hermes),
    ]
}

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

/// A file that is a transcript, or a database with many, judged by its path alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Name of the harness.
    pub(crate) harness: &'static str,
    /// Absolute path.
    pub(crate) path: PathBuf,
    /// Session id as the path tells it, unescaped. [`Harness::facts`] may refine it.
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
    /// Session id, where the records have a say in it and have said it. Where the candidate asks for it
    /// ([`Candidate::id_from_records`]) and this is `None` although a complete record was given, the path's id stands.
    pub(crate) id: Option<String>,
    /// Working directory of the session.
    pub(crate) cwd: Option<String>,
    /// When the session began, as the records say it (RFC 3339).
    pub(crate) started_at: Option<String>,
}

/// A coding agent whose sessions we know how to find and read.
pub(crate) trait Harness: Send + Sync + std::fmt::Debug {
    /// Name in keys and messages: `claude-code`, `codex`, `openclaw`, `hermes`, as the reference tool has it.
    fn name(&self) -> &'static str;
    /// Where sessions live, given the environment. Directories need not exist.
    fn roots(&self, env: &Env) -> Vec<Root>;
    /// Whether a directory below a root can hold transcripts; `false` prunes it (and its events). Where a directory is
    /// pruned, all below it is.
    fn descend(&self, relative: &Path) -> bool;
    /// What a file below a root is, by its path alone; `None` when it is not a transcript.
    fn classify(&self, root: &Root, path: &Path) -> Option<Candidate>;
    /// What the first complete records (bytes up to some limit, ending at a newline or not) say.
    fn facts(&self, candidate: &Candidate, head: &[u8]) -> Facts;
    /// The session's working directory, as complete records of its transcript name it, from its start or from further on.
    fn cwd(&self, records: &[u8], from_start: bool) -> Option<String>;
    /// The id of a session in a database that was found, by the id that the database has for it.
    fn session_id(&self, _database: &Candidate, own: &str) -> String {
        own.to_owned()
    }
    /// The directory where the sessions of a database were files before there was one, with the same ids.
    fn former(&self, _database: &Path) -> Option<PathBuf> {
        None
    }
    /// What is in its databases, where its sessions are in one.
    fn tables(&self) -> Option<Arc<dyn Tables>> {
        None
    }
}

impl Env {
    /// The directory that a variable names, absolute; `None` when it is unset or blank, as the agents read it.
    ///
    /// A relative value is joined to the home directory. An agent takes it from wherever it was started, which is another
    /// place each time and not known here; the home directory is where service managers and login shells start programs.
    /// A leading `~` is the home directory: OpenClaw reads it so, and nobody means a directory of that name.
    fn directory(&self, variable: &str) -> Option<PathBuf> {
        let value = self.vars.get(variable).filter(|value| !value.trim().is_empty())?;
        let below_home = match value.strip_prefix('~') {
            Some("") => "",
            Some(rest) if rest.starts_with('/') => rest.trim_start_matches('/'),
            _ => value.as_str(),
        };
        // Joining an absolute path gives that path; joining nothing would leave a slash at the end.
        Some(if below_home.is_empty() { self.home.clone() } else { self.home.join(below_home) })
    }
}

/// Adds a root unless that path is one already: two variables may well name one directory.
fn push_root(roots: &mut Vec<Root>, harness: &'static str, path: PathBuf) {
    if !roots.iter().any(|root| root.path == path) {
        roots.push(Root { harness, path });
    }
}

/// A name as text, such that different names stay different: it becomes part of a session id.
///
/// A byte that is not UTF-8 becomes U+FFFD and its two hexadecimal digits; so that no honest name can look like that, a
/// U+FFFD that was there is doubled.
fn name_text(name: &OsStr) -> Cow<'_, str> {
    const MARK: char = char::REPLACEMENT_CHARACTER;
    if let Some(text) = name.to_str().filter(|text| !text.contains(MARK)) {
        return Cow::Borrowed(text);
    }
    let mut text = String::new();
    for chunk in name.as_bytes().utf8_chunks() {
        for character in chunk.valid().chars() {
            text.extend(std::iter::repeat_n(character, if character == MARK { 2 } else { 1 }));
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("{MARK}{byte:02x}"));
        }
    }
    Cow::Owned(text)
}

/// Calls `judge` with the names of a relative path; `None` for a path that does not go straight down.
fn with_names<T>(relative: &Path, judge: impl FnOnce(&[&str]) -> T) -> Option<T> {
    let text = name_text(relative.as_os_str());
    let names: Vec<&str> = text.split('/').filter(|name| !name.is_empty()).collect();
    let straight = !relative.is_absolute() && !names.iter().any(|name| matches!(*name, "." | ".."));
    straight.then(|| judge(&names))
}

/// Whether a name is hidden. No agent hides transcripts, but archivers and file managers leave hidden twins (`._x.jsonl`),
/// and agents hide what is half done.
fn hidden(name: &str) -> bool {
    name.starts_with('.')
}

/// Whether a file name has a `tmp` after one of its dots: the mark that all three agents put on half-written files.
fn temporary(name: &str) -> bool {
    name.split('.').skip(1).any(|piece| piece.starts_with("tmp"))
}
