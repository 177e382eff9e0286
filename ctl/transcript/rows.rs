//! Rows with a role and a content: Hermes' database as lines, and the many agents that keep what they send to their model.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use jiff::Timestamp;
use serde_json::Value;

use super::{Entry, Reader, Who, message, text_of, time};

/// Rows that are remembered, to see that one comes again; a log with more shows the later ones twice.
const ROWS_MAX: usize = 1 << 20;

/// Rows of a log in which a row comes again when it changed, and its last line counts.
#[derive(Debug, Default)]
pub(super) struct Rows {
    seen: HashMap<i64, Row>,
    /// What was said of the row before: a compaction changes a hundred rows, and one note tells it.
    told: Option<&'static str>,
}

/// What is remembered of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    said: u64,
    active: bool,
}

/// The entries of one row.
pub(super) fn read(reader: &mut Reader, row: &Value) -> Vec<Entry> {
    let at = time(&row["timestamp"]);
    let told = reader.rows.told.take();
    match again(&mut reader.rows, row) {
        None => said(reader, row),
        Some(None) => {
            reader.rows.told = told; // A change that no reader sees does not end a run of those that one does.
            vec![]
        }
        Some(Some(text)) => {
            reader.rows.told = Some(text);
            let note = |at: Option<Timestamp>| Entry::Note { at, text: text.to_owned() };
            let mut entries: Vec<Entry> =
                (told != Some(text)).then(|| note(at)).into_iter().collect();
            if text == CHANGED {
                entries.extend(said(reader, row));
            }
            entries
        }
    }
}

const REMOVED: &str = "messages were removed";
const COMPACTED: &str = "messages were compacted away";
const TAKEN_BACK: &str = "messages were taken back";
const RESTORED: &str = "messages were restored";
const CHANGED: &str = "a message was changed to";

/// What happened to a row that was there before, if it was: `Some(None)` is a change that nobody needs to read.
fn again(rows: &mut Rows, row: &Value) -> Option<Option<&'static str>> {
    let id = row["id"].as_i64().filter(|_| row["session_id"].is_string())?;
    if row["deleted"] == true {
        rows.seen.remove(&id);
        return Some(Some(REMOVED));
    }
    let mut said = DefaultHasher::new();
    for field in ["role", "content", "tool_calls", "reasoning", "reasoning_content"] {
        row[field].to_string().hash(&mut said);
    }
    let now = Row { said: said.finish(), active: row["active"] != 0 };
    if rows.seen.len() >= ROWS_MAX {
        rows.seen.clear();
    }
    let before = rows.seen.insert(id, now)?;
    Some(match (before.said == now.said, before.active, now.active) {
        (false, ..) => Some(CHANGED),
        (true, true, false) if row["compacted"] == 1 => Some(COMPACTED),
        (true, true, false) => Some(TAKEN_BACK),
        (true, false, true) => Some(RESTORED),
        (true, ..) => None,
    })
}

/// What a row says.
fn said(reader: &mut Reader, row: &Value) -> Vec<Entry> {
    let at = time(&row["timestamp"]).or_else(|| time(&row["created_at"]));
    let content = embedded(&row["content"]);
    let who = match row["role"].as_str().unwrap_or_default() {
        "user" => Who::User,
        "assistant" | "model" => Who::Assistant,
        "tool" => {
            let tool = row["tool_name"].as_str().or(row["name"].as_str());
            let text = text_of(&content);
            return vec![reader.result(at, &row["tool_call_id"], tool, false, text)];
        }
        // Prompts of the system are long and the same in each session.
        _ => return vec![],
    };
    let mut entries = Vec::new();
    let reasoning = ["reasoning", "reasoning_content"];
    if let Some(text) =
        reasoning.iter().find_map(|name| row[*name].as_str()).filter(|t| !t.is_empty())
    {
        entries.push(Entry::Thinking { at, text: text.to_owned() });
    }
    if let Value::Array(blocks) = &content {
        for block in blocks.iter().filter(|block| block["type"] == "think") {
            let text = block["think"].as_str().unwrap_or_default().to_owned();
            entries.push(Entry::Thinking { at, text });
        }
    }
    entries.extend(message(who, at, false, &text_of(&content)));
    if let Value::Array(calls) = embedded(&row["tool_calls"]) {
        for call in &calls {
            let function = if call["function"].is_object() { &call["function"] } else { call };
            let tool = function["name"].as_str().unwrap_or("?");
            let id = if call["id"].is_string() { &call["id"] } else { &call["call_id"] };
            entries.push(reader.call(at, id, tool, arguments(&function["arguments"])));
        }
    }
    entries
}

/// JSON that stands inside a string, as columns of a database keep it; anything else as it is.
fn embedded(value: &Value) -> Value {
    let Value::String(text) = value else { return value.clone() };
    match text.trim_start().as_bytes().first() {
        Some(b'[' | b'{') => match serde_json::from_str(text) {
            // A message may well be JSON itself; only what has the shape of blocks or calls is taken apart.
            Ok(inner) if is_blocks(&inner) => inner,
            _ => value.clone(),
        },
        _ => value.clone(),
    }
}

/// Arguments are an object inside a string.
fn arguments(value: &Value) -> Value {
    let object = value.as_str().and_then(|text| serde_json::from_str(text).ok());
    object.filter(Value::is_object).unwrap_or_else(|| value.clone())
}

fn is_blocks(value: &Value) -> bool {
    value.as_array().is_some_and(|blocks| {
        !blocks.is_empty()
            && blocks.iter().all(|b| b["type"].is_string() || b["function"].is_object())
    })
}
