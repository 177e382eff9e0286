//! OpenClaw: where its sessions lie, what their names mean, what their header says.
//!
//! ```text
//! <state>/agents/<agent>/agent/openclaw-agent.sqlite          all sessions of an agent, since 2026.7.2
//! <state>/agents/<agent>/sessions/<id>.jsonl                  a session
//! <state>/agents/<agent>/sessions/<id>-topic-<topic>.jsonl    a topic of it, a session of its own here
//! …/<id>.jsonl.reset.<time>    …/<id>.jsonl.deleted.<time>    its earlier lives, and the same with `.zst`
//! ```
//!
//! A session that was a file goes on in the database with the same lines, and its file may stay as an archive. Session ids are
//! unique only within an agent. Knows nothing of reading files; what is in the database is for `tables` to know.

mod tables;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::records::{self, Lax};
use super::{
    Candidate, Env, Facts, Harness, Root, Standing, hidden, name_text, push_root, temporary,
    with_names,
};
use crate::source::Encoding;
use crate::source::database::Tables;

/// The database of an agent, in a directory beside that of the files.
const DATABASE: [&str; 2] = ["agent", "openclaw-agent.sqlite"];

/// The directory of the files.
const SESSIONS: &str = "sessions";

/// What an ended session's name says before the time. Other endings (`.bak`, `.lock`) are no lives of a session.
const ENDINGS: [&str; 2] = [".jsonl.reset.", ".jsonl.deleted."];

/// Longest time in an archive's name: ISO 8601 with milliseconds has 24 characters.
const TIME_BYTES_MAX: usize = 40;

/// The harness.
#[derive(Debug)]
pub(super) struct OpenClaw;

impl Harness for OpenClaw {
    fn name(&self) -> &'static str {
        "openclaw"
    }

    fn roots(&self, env: &Env) -> Vec<Root> {
        // This variable replaces the home directory; it is not the state directory.
        let home = env.directory("OPENCLAW_HOME").unwrap_or_else(|| env.home.clone());
        let state = env.directory("OPENCLAW_STATE_DIR").unwrap_or_else(|| {
            let (now, before) = (home.join(".openclaw"), home.join(".clawdbot"));
            if !now.exists() && before.is_dir() { before } else { now }
        });
        let mut roots = Vec::new();
        for state in std::iter::once(state).chain(profiles(&home)) {
            push_root(&mut roots, self.name(), state.join("agents"));
        }
        roots
    }

    fn descend(&self, relative: &Path) -> bool {
        with_names(relative, may_hold_transcripts).unwrap_or(false)
    }

    fn classify(&self, root: &Root, path: &Path) -> Option<Candidate> {
        with_names(path.strip_prefix(&root.path).ok()?, |names| {
            let [agent, folder, file] = *names else { return None };
            if !hidden(agent) && [folder, file] == DATABASE {
                return Some(Candidate {
                    harness: self.name(),
                    path: path.to_path_buf(),
                    id: agent.to_owned(),
                    id_from_records: true,
                    encoding: Encoding::Events,
                    standing: Standing::Live,
                });
            }
            let is_transcript = !hidden(agent) && folder == SESSIONS;
            let transcript = parse(file).filter(|_| is_transcript)?;
            Some(Candidate {
                harness: self.name(),
                path: path.to_path_buf(),
                id: format!("{agent}__{}", transcript.stem),
                id_from_records: false,
                encoding: transcript.encoding,
                standing: transcript.standing,
            })
        })?
    }

    fn session_id(&self, database: &Candidate, own: &str) -> String {
        format!("{}__{own}", database.id)
    }

    fn former(&self, database: &Path) -> Option<PathBuf> {
        Some(database.parent()?.parent()?.join(SESSIONS))
    }

    fn tables(&self) -> Option<Arc<dyn Tables>> {
        Some(Arc::new(tables::OpenClawTables))
    }

    fn cwd(&self, records: &[u8], _from_start: bool) -> Option<String> {
        let mut headers =
            records::rows::<Row>(records).filter(|row| row.kind.0.as_deref() == Some("session"));
        headers.find_map(|row| row.cwd.0.and_then(records::fit_cwd))
    }

    fn facts(&self, _candidate: &Candidate, head: &[u8]) -> Facts {
        let mut facts = Facts::default();
        for row in records::rows::<Row>(head) {
            if facts.started_at.is_none() {
                facts.started_at = row.timestamp.0.and_then(records::fit_time);
            }
            if facts.cwd.is_none() && row.kind.0.as_deref() == Some("session") {
                facts.cwd = row.cwd.0.and_then(records::fit_cwd);
            }
            if facts.cwd.is_some() && facts.started_at.is_some() {
                break;
            }
        }
        facts
    }
}

/// What the header and the entries say about a session.
#[derive(Debug, Deserialize)]
struct Row {
    #[serde(default, rename = "type")]
    kind: Lax<String>,
    #[serde(default)]
    timestamp: Lax<String>,
    #[serde(default)]
    cwd: Lax<String>,
}

/// State directories of named profiles (`--profile`, `--dev`). They are looked for and not asked for, because the profile is
/// chosen at each start of the agent. A home that cannot be read has none that we could read either.
fn profiles(home: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(home) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| name_text(&entry.file_name()).starts_with(".openclaw-"))
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found
}

fn may_hold_transcripts(folders: &[&str]) -> bool {
    match folders {
        [] => true,
        [agent] => !hidden(agent),
        [agent, folder] => !hidden(agent) && (*folder == SESSIONS || *folder == DATABASE[0]),
        _ => false,
    }
}

/// What a file's name says.
struct Transcript<'a> {
    stem: &'a str,
    encoding: Encoding,
    standing: Standing,
}

fn parse(file: &str) -> Option<Transcript<'_>> {
    if hidden(file) || temporary(file) {
        return None;
    }
    let transcript = match file.strip_suffix(".jsonl") {
        Some(stem) => Transcript { stem, encoding: Encoding::Plain, standing: Standing::Live },
        None => parse_ended(file)?,
    };
    (!transcript.stem.is_empty() && !is_by_product(transcript.stem)).then_some(transcript)
}

fn parse_ended(file: &str) -> Option<Transcript<'_>> {
    let (plain, encoding) = match file.strip_suffix(".zst") {
        Some(plain) => (plain, Encoding::Zstd),
        None => (file, Encoding::Plain),
    };
    let (stem, time) = ENDINGS.iter().find_map(|ending| plain.rsplit_once(ending))?;
    let is_time = time.len() <= TIME_BYTES_MAX
        && time.starts_with(|first: char| first.is_ascii_digit())
        && time.bytes().all(|byte| byte.is_ascii_digit() || b"TZ-.:".contains(&byte));
    is_time.then(|| Transcript { stem, encoding, standing: Standing::Archived(time.to_owned()) })
}

/// A trace of the agent's steps, or the copy of a session that is made before a compaction: not transcripts, and the second
/// would be a duplicate.
fn is_by_product(stem: &str) -> bool {
    let is_uuid = |text: &str| {
        text.len() == 36 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
    };
    stem.ends_with(".trajectory")
        || stem.rsplit_once(".checkpoint.").is_some_and(|(_, mark)| is_uuid(mark))
}
