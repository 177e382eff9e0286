//! Records of pi and of OpenClaw, which keeps pi's.

use serde_json::Value;

use super::{Entry, Reader, Who, attachment, compacted, message, text_of, time};

/// The entries of one message.
pub(super) fn read(reader: &mut Reader, record: &Value) -> Vec<Entry> {
    let said = &record["message"];
    let at = time(&record["timestamp"]).or_else(|| time(&said["timestamp"]));
    match said["role"].as_str().unwrap_or_default() {
        "user" => message(Who::User, at, false, &text_of(&said["content"])).into_iter().collect(),
        "assistant" => {
            let mut entries = Vec::new();
            blocks(reader, at, &said["content"], &mut entries);
            if let Some(error) = said["errorMessage"].as_str() {
                entries.push(Entry::Note { at, text: format!("error: {error}") });
            }
            entries
        }
        "toolResult" => {
            let text = text_of(&said["content"]);
            let failed = said["isError"] == true;
            vec![reader.result(at, &said["toolCallId"], said["toolName"].as_str(), failed, text)]
        }
        // A command that the user ran through the agent.
        "bashExecution" => {
            let output = said["output"].as_str().unwrap_or_default().to_owned();
            let failed = said["exitCode"].as_i64().is_some_and(|code| code != 0);
            vec![
                reader.call(at, &Value::Null, "bash", said["command"].clone()),
                Entry::Result { at, tool: None, failed, text: output },
            ]
        }
        "compactionSummary" | "branchSummary" => {
            let text = said["summary"].as_str().unwrap_or_default();
            vec![Entry::Note { at, text: format!("summary: {text}") }]
        }
        _ => vec![],
    }
}

fn blocks(
    reader: &mut Reader,
    at: Option<jiff::Timestamp>,
    content: &Value,
    entries: &mut Vec<Entry>,
) {
    let Value::Array(blocks) = content else {
        entries.extend(message(Who::Assistant, at, false, &text_of(content)));
        return;
    };
    for block in blocks {
        match block["type"].as_str().unwrap_or_default() {
            "thinking" => {
                let text = block["thinking"].as_str().unwrap_or_default().to_owned();
                entries.push(Entry::Thinking { at, text });
            }
            "toolCall" => {
                let tool = block["name"].as_str().unwrap_or("?");
                entries.push(reader.call(at, &block["id"], tool, block["arguments"].clone()));
            }
            _ => {
                let text = block["text"].as_str().map(str::to_owned).or_else(|| attachment(block));
                entries.extend(message(Who::Assistant, at, false, &text.unwrap_or_default()));
            }
        }
    }
}

/// Whether a record tells of the session itself.
pub(super) fn is_event(record: &Value) -> bool {
    matches!(
        record["type"].as_str(),
        Some("session" | "compaction" | "branch_summary" | "model_change" | "custom_message")
    )
}

/// The entries of such a record.
pub(super) fn read_event(reader: &mut Reader, record: &Value) -> Vec<Entry> {
    let at = time(&record["timestamp"]);
    let summary = record["summary"].as_str().unwrap_or_default();
    let text = match record["type"].as_str().unwrap_or_default() {
        "compaction" => return vec![compacted(at, summary)],
        "branch_summary" => {
            format!("another branch of the conversation was left; its summary:\n{summary}")
        }
        "model_change" => {
            let model = record["modelId"].as_str().unwrap_or_default();
            return reader.model(at, model).into_iter().collect();
        }
        "custom_message" if record["display"] != false => text_of(&record["content"]),
        _ => return vec![],
    };
    vec![Entry::Note { at, text }]
}
