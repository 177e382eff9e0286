//! Codex: where its rollouts lie, what their names mean, what their first record says.
//!
//! ```text
//! <home>/sessions/YYYY/MM/DD/rollout-<local time>-<thread>.jsonl             a thread
//! <home>/sessions/YYYY/MM/DD/rollout-<local time>-<thread>_<rollout>.jsonl   the same thread after a revert, another file
//! <home>/archived_sessions/rollout-….jsonl                                   moved there by `codex archive`, and back
//! ….jsonl.zst                                                                any of them, compressed when it is old
//! ```
//!
//! A sub-agent's thread has a rollout of its own and only its first record names the parent. A fork names what it was forked
//! from, and is a session in its own right. Knows nothing of reading or decompressing files.

use std::path::Path;

use serde::Deserialize;

use super::records::{self, Lax};
use super::{
    Candidate, Env, Facts, Harness, Root, Standing, hidden, push_root, temporary, with_names,
};
use crate::source::Encoding;

/// The folder of rollouts that were archived. Its name is what tells them from live ones.
const ARCHIVED: &str = "archived_sessions";

/// Year, month and day. The names of these folders mean nothing: a rollout resumes from any.
const FOLDERS_MAX: usize = 3;

/// The harness.
#[derive(Debug)]
pub(super) struct Codex;

impl Harness for Codex {
    fn name(&self) -> &'static str {
        "codex"
    }

    fn roots(&self, env: &Env) -> Vec<Root> {
        let home = env.directory("CODEX_HOME").unwrap_or_else(|| env.home.join(".codex"));
        // Live before archived: a rollout that is archived during a scan is then seen twice and not missed.
        let mut roots = Vec::new();
        push_root(&mut roots, self.name(), home.join("sessions"));
        push_root(&mut roots, self.name(), home.join(ARCHIVED));
        roots
    }

    fn descend(&self, relative: &Path) -> bool {
        with_names(relative, may_hold_rollouts).unwrap_or(false)
    }

    fn classify(&self, root: &Root, path: &Path) -> Option<Candidate> {
        let (id, stamp, encoding) = with_names(path.strip_prefix(&root.path).ok()?, |names| {
            let (file, folders) = names.split_last()?;
            let rollout = parse(file).filter(|_| may_hold_rollouts(folders))?;
            Some((rollout.id.to_owned(), rollout.stamp.to_owned(), rollout.encoding))
        })??;
        let archived = root.path.file_name().is_some_and(|name| name == ARCHIVED);
        Some(Candidate {
            harness: self.name(),
            path: path.to_path_buf(),
            id,
            id_from_records: true,
            encoding,
            standing: if archived { Standing::Archived(stamp) } else { Standing::Live },
        })
    }

    fn cwd(&self, records: &[u8], from_start: bool) -> Option<String> {
        let mut own = from_start;
        records::rows::<Row>(records).find_map(|row| {
            let counts = match row.kind.0.as_deref() {
                // Later ones are repeated from other threads.
                Some("session_meta") => std::mem::take(&mut own),
                kind => kind == Some("turn_context"),
            };
            row.payload.filter(|_| counts)?.cwd.0.and_then(records::fit_cwd)
        })
    }

    fn facts(&self, candidate: &Candidate, head: &[u8]) -> Facts {
        let mut facts = Facts::default();
        for row in records::rows::<Row>(head) {
            let payload = row.payload.unwrap_or_default();
            let kind = row.kind.0.unwrap_or_default();
            // A fork of the older kind and a sub-agent repeat records of others, their `session_meta` too: only the first
            // is the file's own.
            let own = kind == "session_meta" && facts.id.is_none();
            if own {
                facts.id = Some(own_id(candidate, &payload));
            }
            if facts.started_at.is_none() {
                let began = payload.timestamp.0.filter(|_| own).and_then(records::fit_time);
                facts.started_at = began.or_else(|| row.timestamp.0.and_then(records::fit_time));
            }
            if facts.cwd.is_none() && (own || kind == "turn_context") {
                facts.cwd = payload.cwd.0.and_then(records::fit_cwd);
            }
            if facts.id.is_some() && facts.started_at.is_some() && facts.cwd.is_some() {
                break;
            }
        }
        facts
    }
}

/// One line of a rollout.
#[derive(Debug, Deserialize)]
struct Row {
    #[serde(default)]
    timestamp: Lax<String>,
    #[serde(default, rename = "type")]
    kind: Lax<String>,
    #[serde(default)]
    payload: Option<Payload>,
}

/// What `session_meta` and `turn_context` say about a thread.
#[derive(Debug, Default, Deserialize)]
struct Payload {
    #[serde(default)]
    timestamp: Lax<String>,
    #[serde(default)]
    cwd: Lax<String>,
    #[serde(default)]
    parent_thread_id: Lax<String>,
    #[serde(default)]
    source: Lax<Source>,
}

/// Where a thread came from. A plain word (`exec`, `cli`, …) for most of them.
#[derive(Debug, Deserialize)]
struct Source {
    #[serde(default)]
    subagent: Lax<Subagent>,
}

#[derive(Debug, Deserialize)]
struct Subagent {
    #[serde(default)]
    thread_spawn: Lax<ThreadSpawn>,
}

#[derive(Debug, Deserialize)]
struct ThreadSpawn {
    #[serde(default)]
    parent_thread_id: Lax<String>,
}

/// The id of a rollout whose own first record is known. The last piece is always the name's, so that no record can claim
/// another file's id.
fn own_id(candidate: &Candidate, meta: &Payload) -> String {
    let spawn = meta.source.0.as_ref().and_then(|source| source.subagent.0.as_ref());
    let spawn = spawn.and_then(|subagent| subagent.thread_spawn.0.as_ref());
    let parent = spawn
        .and_then(|spawn| spawn.parent_thread_id.0.as_deref())
        .or(meta.parent_thread_id.0.as_deref())
        .and_then(records::fit_id)
        .filter(|parent| *parent != candidate.id);
    match parent {
        Some(parent) => format!("{parent}__{}", candidate.id),
        None => candidate.id.clone(),
    }
}

/// What a rollout's name says.
struct Rollout<'a> {
    id: &'a str,
    /// Local time of its start, or empty.
    stamp: &'a str,
    encoding: Encoding,
}

fn may_hold_rollouts(folders: &[&str]) -> bool {
    folders.len() <= FOLDERS_MAX && !folders.iter().any(|folder| hidden(folder))
}

fn parse(file: &str) -> Option<Rollout<'_>> {
    if temporary(file) {
        return None;
    }
    let (plain, encoding) = match file.strip_suffix(".zst") {
        Some(plain) => (plain, Encoding::Zstd),
        None => (file, Encoding::Plain),
    };
    let stem = plain.strip_suffix(".jsonl")?;
    let rest = stem.strip_prefix("rollout-").filter(|rest| !rest.is_empty())?;
    let dated = rest.split_at_checked("2026-11-22T11-24-15-".len()).filter(|(stamp, id)| {
        let fit = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        is_stamp(stamp) && !id.is_empty() && id.bytes().all(fit)
    });
    Some(match dated {
        Some((stamp, id)) => Rollout { id, stamp: stamp.trim_end_matches('-'), encoding },
        // The reference tool takes the whole stem here, and so do its keys in the bucket.
        None => Rollout { id: stem, stamp: "", encoding },
    })
}

/// Whether a text has the form `YYYY-MM-DDThh-mm-ss-`.
fn is_stamp(text: &str) -> bool {
    let form = "dddd-dd-ddTdd-dd-dd-";
    text.len() == form.len()
        && text.bytes().zip(form.bytes()).all(|(byte, expected)| match expected {
            b'd' => byte.is_ascii_digit(),
            _ => byte == expected,
        })
}
