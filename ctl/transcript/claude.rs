//! Records of Claude Code, and of the agents that write like it (Qwen Code with `parts` in place of `content`).

use jiff::Timestamp;
use serde_json::Value;

use super::{Entry, Reader, Who, attachment, compacted, message, text_of, time};

/// The entries of one record.
pub(super) fn read(reader: &mut Reader, record: &Value) -> Vec<Entry> {
    let at = time(&record["timestamp"]);
    let said = &record["message"];
    let note = |text: String| vec![Entry::Note { at, text }];
    match record["type"].as_str().unwrap_or_default() {
        "summary" => {
            let text =
                record["summary"].as_str().map_or_else(|| text_of(&said["content"]), str::to_owned);
            if text.is_empty() { vec![] } else { note(format!("summary: {text}")) }
        }
        "system" => system(at, record),
        // Text that the agent put into the user's mouth: caveats, expanded commands.
        "user" if record["isMeta"] == true => vec![],
        "user" if record["isCompactSummary"] == true => {
            vec![compacted(at, &text_of(&said["content"]))]
        }
        kind @ ("user" | "assistant") => {
            let role = said["role"].as_str().unwrap_or(kind);
            let who = if role == "user" { Who::User } else { Who::Assistant };
            let mut entries = Vec::new();
            if who == Who::Assistant {
                let model = said["model"].as_str().filter(|model| !model.starts_with('<'));
                entries.extend(model.and_then(|model| reader.model(at, model)));
            }
            let before = entries.len();
            let aside = record["isSidechain"] == true;
            let content = if said["parts"].is_array() { &said["parts"] } else { &said["content"] };
            blocks(reader, who, at, aside, content, &mut entries);
            // A change of model that nobody says anything with is told with the next words.
            if entries.len() == before && before > 0 {
                reader.model = None;
                return vec![];
            }
            entries
        }
        _ => vec![],
    }
}

fn system(at: Option<Timestamp>, record: &Value) -> Vec<Entry> {
    let text = record["content"].as_str().unwrap_or_default();
    let text = match record["subtype"].as_str().unwrap_or_default() {
        "compact_boundary" => "the conversation was compacted here",
        // Expanded commands and their output, marked up as those of the user.
        "local_command" => return spoken(Who::User, at, false, text),
        _ => text,
    };
    if text.is_empty() { vec![] } else { vec![Entry::Note { at, text: text.to_owned() }] }
}

fn blocks(
    reader: &mut Reader,
    who: Who,
    at: Option<Timestamp>,
    aside: bool,
    content: &Value,
    entries: &mut Vec<Entry>,
) {
    let Value::Array(blocks) = content else {
        entries.extend(spoken(who, at, aside, content.as_str().unwrap_or_default()));
        return;
    };
    for block in blocks {
        let text = block["text"].as_str().or(block.as_str()).unwrap_or_default();
        match block["type"].as_str().unwrap_or_default() {
            "thinking" => {
                let text = block["thinking"].as_str().unwrap_or_default().to_owned();
                entries.push(Entry::Thinking { at, text });
            }
            "redacted_thinking" => entries.push(Entry::Thinking { at, text: String::new() }),
            "tool_use" | "server_tool_use" => {
                let tool = block["name"].as_str().unwrap_or("?");
                entries.push(reader.call(at, &block["id"], tool, block["input"].clone()));
            }
            kind if kind.ends_with("tool_result") => {
                let failed = block["is_error"] == true;
                let text = text_of(&block["content"]);
                entries.push(reader.result(at, &block["tool_use_id"], None, failed, text));
            }
            "" if block["thought"] == true => {
                entries.push(Entry::Thinking { at, text: text.to_owned() });
            }
            "" if block["functionCall"].is_object() => {
                let call = &block["functionCall"];
                let tool = call["name"].as_str().unwrap_or("?");
                entries.push(reader.call(at, &call["id"], tool, call["args"].clone()));
            }
            "" if block["functionResponse"].is_object() => {
                let answer = &block["functionResponse"];
                let response = &answer["response"];
                let text = response["output"].as_str().or(response["error"].as_str());
                let failed = response["error"].is_string();
                let text = text.map_or_else(|| response.to_string(), str::to_owned);
                entries.push(reader.result(
                    at,
                    &answer["id"],
                    answer["name"].as_str(),
                    failed,
                    text,
                ));
            }
            _ => match attachment(block) {
                Some(named) => entries.extend(message(who, at, aside, &named)),
                None => entries.extend(spoken(who, at, aside, text)),
            },
        }
    }
}

/// Words of somebody; the mark-up of slash commands is read as what was typed.
fn spoken(who: Who, at: Option<Timestamp>, aside: bool, text: &str) -> Vec<Entry> {
    if who != Who::User || !text.contains("-command-std") && !text.contains("<command-name>") {
        return message(who, at, aside, text).into_iter().collect();
    }
    if let Some(name) = tagged(text, "command-name") {
        let arguments = tagged(text, "command-args").unwrap_or_default();
        let typed = format!("{} {}", name.trim(), arguments.trim());
        return message(who, at, aside, &typed).into_iter().collect();
    }
    for (tag, failed) in [("local-command-stdout", false), ("local-command-stderr", true)] {
        if let Some(output) = tagged(text, tag) {
            let text = output.trim().to_owned();
            if text.is_empty() {
                return vec![];
            }
            return vec![Entry::Result { at, tool: None, failed, text }];
        }
    }
    message(who, at, aside, text).into_iter().collect()
}

fn tagged<'a>(text: &'a str, tag: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{tag}>"))?;
    Some(rest.split_once(&format!("</{tag}>"))?.0)
}
