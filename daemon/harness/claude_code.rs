//! Claude Code: where its transcripts lie, what their names mean, what their first rows say.
//!
//! ```text
//! <config>/projects/<key>/<id>.jsonl                               a session
//! <config>/projects/<key>/<id>/subagents/**/agent-<aid>.jsonl      a sub-agent of it
//! <config>/projects/<key>/agent-<aid>.jsonl                        a sub-agent of the session that its rows name (until 2.1.0)
//! <config>/projects/<key>/<id>.orphaned-<ms>-<hex>.jsonl           set aside by the agent
//! <config>/projects/<key>/<id>.jsonl.superseded-<ms>               set aside by the agent
//! ```
//!
//! Nothing else is a transcript; in particular `<key>/<folder>/chat.jsonl`, which test data of other tools has, is a layout
//! that no version of the agent writes. The key says nothing reliable about the working directory, which is taken from the
//! rows. Knows nothing of reading files.

use std::path::Path;

use serde::Deserialize;

use super::records::{self, Lax};
use super::{Candidate, Env, Facts, Harness, Root, Standing, hidden, temporary, with_names};
use crate::source::Encoding;

/// Entries beside the sessions of a project that are folders and not a session's own.
const NOT_SESSION_FOLDERS: [&str; 3] = ["memory", "cloud-snapshots", "connector-downloads"];

/// Stems of JSON-lines files that are not transcripts: a cache, a workflow's journal, the prompt history.
const NOT_TRANSCRIPTS: [&str; 3] = ["resume-head", "journal", "history"];

/// The harness.
#[derive(Debug)]
pub(super) struct ClaudeCode;

impl Harness for ClaudeCode {
    fn name(&self) -> &'static str {
        "claude-code"
    }

    fn roots(&self, env: &Env) -> Vec<Root> {
        let config = env.directory("CLAUDE_CONFIG_DIR").unwrap_or_else(|| env.home.join(".claude"));
        vec![Root { harness: self.name(), path: config.join("projects") }]
    }

    fn descend(&self, relative: &Path) -> bool {
        with_names(relative, may_hold_transcripts).unwrap_or(false)
    }

    fn classify(&self, root: &Root, path: &Path) -> Option<Candidate> {
        let named = with_names(path.strip_prefix(&root.path).ok()?, |names| {
            let (file, folders) = names.split_last()?;
            if hidden(file) || temporary(file) || !may_hold_transcripts(folders) {
                return None;
            }
            match folders {
                [_key] => beside(file),
                [_key, session, _subagents, ..] => below(session, file),
                _ => None,
            }
        })??;
        Some(Candidate {
            harness: self.name(),
            path: path.to_path_buf(),
            id: named.id,
            id_from_records: named.id_from_records,
            encoding: Encoding::Plain,
            standing: named.standing,
        })
    }

    fn cwd(&self, records: &[u8], _from_start: bool) -> Option<String> {
        records::rows::<Row>(records).find_map(|row| row.cwd.0.and_then(records::fit_cwd))
    }

    fn facts(&self, candidate: &Candidate, head: &[u8]) -> Facts {
        let mut facts = Facts::default();
        for row in records::rows::<Row>(head) {
            if facts.cwd.is_none() {
                facts.cwd = row.cwd.0.and_then(records::fit_cwd);
            }
            if facts.started_at.is_none() {
                facts.started_at = row.timestamp.0.and_then(records::fit_time);
            }
            // The first row that names a session decides, fit or not: a longer head must not lead to another id.
            if let Some(parent) = row.session_id.0.filter(|_| candidate.id_from_records)
                && facts.id.is_none()
            {
                facts.id = Some(match records::fit_id(&parent) {
                    Some(parent) => format!("{parent}__{}", candidate.id),
                    None => candidate.id.clone(),
                });
            }
            let id_settled = facts.id.is_some() || !candidate.id_from_records;
            if facts.cwd.is_some() && facts.started_at.is_some() && id_settled {
                break;
            }
        }
        facts
    }
}

/// What the rows say about a session. Most row types have only some of it.
#[derive(Debug, Deserialize)]
struct Row {
    #[serde(default)]
    cwd: Lax<String>,
    #[serde(default)]
    timestamp: Lax<String>,
    #[serde(default, rename = "sessionId")]
    session_id: Lax<String>,
}

/// What a file's name says.
struct Named {
    id: String,
    id_from_records: bool,
    standing: Standing,
}

impl Named {
    fn live(id: String) -> Self {
        Self { id, id_from_records: false, standing: Standing::Live }
    }

    fn archived(id: String, milliseconds: &str) -> Self {
        let standing = Standing::Archived(milliseconds.to_owned());
        Self { id, id_from_records: false, standing }
    }
}

fn may_hold_transcripts(folders: &[&str]) -> bool {
    let shape = match folders {
        [] | [_] => true,
        [_key, session] => !NOT_SESSION_FOLDERS.contains(session),
        [_key, session, inner, ..] => {
            !NOT_SESSION_FOLDERS.contains(session) && *inner == "subagents"
        }
    };
    shape && !folders.iter().any(|folder| hidden(folder))
}

/// A file in a project's folder.
fn beside(file: &str) -> Option<Named> {
    let Some(stem) = file.strip_suffix(".jsonl") else {
        let (id, milliseconds) = file.rsplit_once(".jsonl.superseded-")?;
        return (!id.is_empty() && is_decimal(milliseconds))
            .then(|| Named::archived(format!("{id}.superseded-{milliseconds}"), milliseconds));
    };
    if NOT_TRANSCRIPTS.contains(&stem) {
        return None;
    }
    if let Some(milliseconds) = orphaned_at(stem) {
        return Some(Named::archived(stem.to_owned(), milliseconds));
    }
    let id_from_records = stem.strip_prefix("agent-").is_some_and(|agent| !agent.is_empty());
    Some(Named { id_from_records, ..Named::live(stem.to_owned()) })
}

/// A file below a session's `subagents`. Only the nearest session counts: workflows nest folders, not sessions.
fn below(session: &str, file: &str) -> Option<Named> {
    let stem = file.strip_suffix(".jsonl")?;
    let agent = stem.strip_prefix("agent-")?;
    (!agent.is_empty()).then(|| Named::live(format!("{session}__{stem}")))
}

/// The time in `<id>.orphaned-<ms>-<hex>`.
fn orphaned_at(stem: &str) -> Option<&str> {
    let (id, mark) = stem.rsplit_once(".orphaned-")?;
    let (milliseconds, hex) = mark.split_once('-')?;
    let is_hex = !hex.is_empty() && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    (!id.is_empty() && is_decimal(milliseconds) && is_hex).then_some(milliseconds)
}

fn is_decimal(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}
