//! Rows with a role and a content: Hermes' database as lines, and the many agents that keep what they send to their model.

use serde_json::Value;

use super::{Entry, Reader, Who, message, text_of, time};

/// The entries of one row.
pub(super) fn read(reader: &mut Reader, row: &Value) -> Vec<Entry> {
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
