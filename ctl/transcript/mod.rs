//! What a record of a transcript says, whichever agent wrote it: one line of JSON in, entries of a conversation out.
//!
//! A record is recognised by its shape, not by the harness's name: agents borrow each other's formats. What is not
//! recognised is counted, never guessed at. Nothing here prints, shortens or neutralises.

mod claude;
mod codex;
mod pi;
mod rows;
mod tools;

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::Value;

pub(crate) use self::tools::gist;

/// Calls whose tool is remembered for their result; a transcript with more open calls than that shows results without a name.
const CALLS_MAX: usize = 4096;

/// One thing that happened in a conversation.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Entry {
    /// Somebody said something.
    Message {
        who: Who,
        #[serde(serialize_with = "as_text")]
        at: Option<Timestamp>,
        /// Part of a sub-agent's work that is kept in the same file.
        aside: bool,
        text: String,
    },
    /// The model thought; empty where the text is not readable (encrypted or left out by the agent).
    Thinking {
        #[serde(serialize_with = "as_text")]
        at: Option<Timestamp>,
        text: String,
    },
    /// The model called a tool.
    Call {
        #[serde(serialize_with = "as_text")]
        at: Option<Timestamp>,
        tool: String,
        input: Value,
    },
    /// What the tool answered.
    Result {
        #[serde(serialize_with = "as_text")]
        at: Option<Timestamp>,
        tool: Option<String>,
        failed: bool,
        text: String,
    },
    /// Something about the conversation: compacted, another model, interrupted.
    Note {
        #[serde(serialize_with = "as_text")]
        at: Option<Timestamp>,
        text: String,
    },
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Who {
    User,
    Assistant,
}

/// What a line was.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Record {
    /// A part of the conversation.
    Said(Vec<Entry>),
    /// JSON with nothing to read in it: bookkeeping, or a kind that is not known.
    Silent,
    /// Not JSON.
    Unreadable,
}

/// Reads records in order; remembers just enough to name tools and to see that the model changed.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    calls: HashMap<String, String>,
    model: Option<String>,
    rows: rows::Rows,
}

impl Reader {
    /// Reads one line, without its end.
    pub(crate) fn read(&mut self, line: &[u8]) -> Record {
        let Ok(value) = serde_json::from_slice::<Value>(line) else { return Record::Unreadable };
        let entries = if value["payload"].is_object() {
            codex::read(self, &value)
        } else if value["type"] == "message" && value["message"].is_object() {
            pi::read(self, &value)
        } else if codex::is_bare(&value) {
            codex::read_item(self, time(&value["timestamp"]), &value)
        } else if pi::is_event(&value) {
            pi::read_event(self, &value)
        } else if value["message"].is_object() || value["type"].is_string() {
            claude::read(self, &value)
        } else {
            rows::read(self, &value)
        };
        if entries.is_empty() { Record::Silent } else { Record::Said(entries) }
    }

    /// A call of a tool, remembered for its result.
    fn call(&mut self, at: Option<Timestamp>, id: &Value, tool: &str, input: Value) -> Entry {
        if let Some(id) = id.as_str() {
            if self.calls.len() >= CALLS_MAX {
                self.calls.clear();
            }
            self.calls.insert(id.to_owned(), tool.to_owned());
        }
        Entry::Call { at, tool: tool.to_owned(), input }
    }

    /// The result of a call; the record's own name of the tool wins.
    fn result(
        &mut self,
        at: Option<Timestamp>,
        id: &Value,
        tool: Option<&str>,
        failed: bool,
        text: String,
    ) -> Entry {
        let called = id.as_str().and_then(|id| self.calls.remove(id));
        Entry::Result { at, tool: tool.map(str::to_owned).or(called), failed, text }
    }

    /// A note if the model is another one than before.
    fn model(&mut self, at: Option<Timestamp>, model: &str) -> Option<Entry> {
        if model.is_empty() || self.model.as_deref() == Some(model) {
            return None;
        }
        self.model = Some(model.to_owned());
        Some(Entry::Note { at, text: format!("model {model}") })
    }
}

/// A message, unless it is empty.
fn message(who: Who, at: Option<Timestamp>, aside: bool, text: &str) -> Option<Entry> {
    let text = text.trim_end();
    let said = !text.trim_start().is_empty();
    said.then(|| Entry::Message { who, at, aside, text: text.to_owned() })
}

/// The agent replaced what was said by a summary, in so far as it tells.
fn compacted(at: Option<Timestamp>, summary: &str) -> Entry {
    let colon = if summary.trim().is_empty() { "" } else { " to:\n" };
    Entry::Note { at, text: format!("the conversation so far was compacted{colon}{summary}") }
}

/// A time as agents write it: RFC 3339, or seconds or milliseconds since 1970.
fn time(value: &Value) -> Option<Timestamp> {
    /// Seconds of the year 5138; whatever is larger counts milliseconds.
    const SECONDS_MAX: f64 = 1e11;
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => {
            let number = number.as_f64()?;
            let millis = if number.abs() < SECONDS_MAX { number * 1000.0 } else { number };
            // A float that is no number or out of range saturates, and is no time then.
            Timestamp::from_millisecond(millis as i64).ok()
        }
        _ => None,
    }
}

/// The text of a content that is a string, or blocks of which some have text; pictures and files are named.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(blocks) => {
            let texts = blocks.iter().filter_map(|block| match block {
                Value::String(text) => Some(text.clone()),
                _ => block["text"].as_str().map(str::to_owned).or_else(|| attachment(block)),
            });
            texts.collect::<Vec<_>>().join("\n")
        }
        Value::Object(_) => content["text"].as_str().map(str::to_owned).unwrap_or_default(),
        _ => String::new(),
    }
}

/// A picture or a file inside a message, by kind and size.
fn attachment(block: &Value) -> Option<String> {
    let kind = block["type"].as_str().unwrap_or("");
    if !matches!(
        kind,
        "image" | "input_image" | "image_url" | "document" | "file" | "input_file" | "audio"
    ) {
        return None;
    }
    let source = if block["source"].is_object() { &block["source"] } else { block };
    let media = source["media_type"].as_str().or(source["mimeType"].as_str());
    let data = source["data"].as_str().or(source["image_url"].as_str()).unwrap_or("");
    let name = media.unwrap_or(kind.trim_start_matches("input_"));
    // Base64 has four characters for three bytes.
    let size = crate::text::bytes(data.len() as u64 / 4 * 3);
    Some(if data.is_empty() { format!("[{name}]") } else { format!("[{name}, {size}]") })
}

fn as_text<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => serializer.collect_str(at),
        None => serializer.serialize_none(),
    }
}
