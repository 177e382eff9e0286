//! Rollouts of Codex: envelopes with a payload, and the bare items of its first versions.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Entry, Reader, Who, compacted, message, text_of, time};

/// What Codex sends to its model in the user's name at the start of each turn.
const CONTEXT_MARKS: [&str; 8] = [
    "<environment_context>",
    "<user_instructions>",
    "<user_action>",
    "<permissions",
    "<skills_instructions>",
    "<turn_aborted>",
    "<INSTRUCTIONS>",
    "# AGENTS.md instructions",
];

/// Lines before `Output:` in the answer of Codex's shell.
const HEAD_LINES_MAX: usize = 8;

/// The entries of one envelope.
pub(super) fn read(reader: &mut Reader, record: &Value) -> Vec<Entry> {
    let at = time(&record["timestamp"]);
    let payload = &record["payload"];
    match record["type"].as_str().unwrap_or_default() {
        "response_item" => read_item(reader, at, payload),
        "compacted" => {
            let summary = payload["message"].as_str().unwrap_or_default();
            vec![compacted(at, summary)]
        }
        "turn_context" => {
            let model = payload["model"].as_str().unwrap_or_default();
            reader.model(at, model).into_iter().collect()
        }
        // Events repeat what the items say, but for what happened to the turn itself.
        "event_msg" => event(at, payload),
        _ => vec![],
    }
}

fn event(at: Option<Timestamp>, payload: &Value) -> Vec<Entry> {
    let text = match payload["type"].as_str().unwrap_or_default() {
        "turn_aborted" => {
            format!(
                "the turn ended early: {}",
                payload["reason"].as_str().unwrap_or("unknown reason")
            )
        }
        "error" | "stream_error" => {
            format!("error: {}", payload["message"].as_str().unwrap_or("without a message"))
        }
        _ => return vec![],
    };
    vec![Entry::Note { at, text }]
}

/// Whether a record is an item without an envelope.
pub(super) fn is_bare(record: &Value) -> bool {
    match record["type"].as_str() {
        Some("message") => record["role"].is_string(),
        Some("reasoning") => record["summary"].is_array(),
        Some("function_call" | "function_call_output" | "local_shell_call") => true,
        _ => false,
    }
}

/// The entries of one item of the conversation.
pub(super) fn read_item(reader: &mut Reader, at: Option<Timestamp>, item: &Value) -> Vec<Entry> {
    let kind = item["type"].as_str().unwrap_or("message");
    match kind {
        "message" => {
            let text = text_of(&item["content"]);
            let who = match item["role"].as_str() {
                Some("user")
                    if CONTEXT_MARKS.iter().any(|mark| text.trim_start().starts_with(mark)) =>
                {
                    return vec![];
                }
                Some("user") => Who::User,
                Some("assistant") => Who::Assistant,
                // Instructions of the developer or the system: long, and the same in each session.
                _ => return vec![],
            };
            message(who, at, false, &text).into_iter().collect()
        }
        "reasoning" => {
            let text = [&item["summary"], &item["content"]].map(text_of).join("\n");
            vec![Entry::Thinking { at, text: text.trim().to_owned() }]
        }
        "function_call" | "custom_tool_call" | "local_shell_call" | "tool_search_call" => {
            let tool = item["name"].as_str().unwrap_or(match kind {
                "local_shell_call" => "shell",
                _ => "tool",
            });
            vec![reader.call(at, &item["call_id"], tool, input(item))]
        }
        "web_search_call" => {
            vec![reader.call(at, &item["call_id"], "web_search", item["action"].clone())]
        }
        _ if kind.ends_with("_output") => {
            let (text, failed) = output(&item["output"]);
            vec![reader.result(at, &item["call_id"], None, failed, text)]
        }
        _ => vec![],
    }
}

/// What a tool was called with; arguments are JSON inside a string, or plain text.
fn input(item: &Value) -> Value {
    if item["action"].is_object() {
        return item["action"].clone();
    }
    let text = item["arguments"].as_str().or(item["input"].as_str());
    match text {
        Some(text) => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
        None => item["arguments"].clone(),
    }
}

/// What a tool answered: text, blocks, an object with text, or such an object as JSON inside a string.
fn output(output: &Value) -> (String, bool) {
    if let Value::Object(fields) = output {
        let content = fields.get("content").or(fields.get("output")).unwrap_or(&Value::Null);
        return (text_of(content), output["success"] == false);
    }
    let text = text_of(output);
    if let Ok(inner @ Value::Object(_)) = serde_json::from_str(&text)
        && let Some(told) = inner["output"].as_str()
    {
        let failed = inner["metadata"]["exit_code"].as_i64().is_some_and(|code| code != 0);
        return (told.to_owned(), failed);
    }
    // The shell's answer has a head of its own: how long, which code; then the output.
    let head =
        text.split_once("\nOutput:\n").filter(|(head, _)| head.lines().count() <= HEAD_LINES_MAX);
    let Some((head, told)) = head else { return (text, false) };
    let code = head.lines().find_map(|line| {
        line.strip_prefix("Process exited with code ").or(line.strip_prefix("Exit code: "))
    });
    (told.to_owned(), code.is_some_and(|code| code.trim() != "0"))
}
