//! A call of a tool in one line: what it does, not all that was passed.

use serde_json::{Map, Value};

/// Arguments that tell what a call is about, the most telling first.
const TELLING: [&str; 22] = [
    "command",
    "cmd",
    "file_path",
    "path",
    "notebook_path",
    "absolute_path",
    "filename",
    "query",
    "pattern",
    "url",
    "skill",
    "script",
    "code",
    "description",
    "prompt",
    "subject",
    "message",
    "title",
    "text",
    "input",
    "plan",
    "name",
];

/// What a call is about, on one line; empty where it has no arguments.
pub(crate) fn gist(input: &Value) -> String {
    let gist = match input {
        Value::Null => String::new(),
        Value::Object(fields) if fields.is_empty() => String::new(),
        Value::Object(fields) => {
            let pattern = fields.get("pattern").and_then(plain);
            let place = fields.get("path").and_then(plain);
            match (pattern, place) {
                // A pattern without its place tells half.
                (Some(pattern), Some(place)) => format!("{pattern} in {place}"),
                _ => TELLING
                    .iter()
                    .find_map(|name| fields.get(*name).and_then(plain))
                    .or_else(|| to_do(fields))
                    .unwrap_or_else(|| input.to_string()),
            }
        }
        Value::String(text) => patched(text).unwrap_or_else(|| text.clone()),
        other => other.to_string(),
    };
    one_line(&gist)
}

/// The files of a patch in the form of Codex.
fn patched(text: &str) -> Option<String> {
    let body = text.trim_start().strip_prefix("*** Begin Patch")?;
    let files = body.lines().filter_map(|line| {
        let file = line.strip_prefix("*** ")?;
        ["Update File: ", "Add File: ", "Delete File: "]
            .iter()
            .find_map(|mark| file.strip_prefix(mark))
    });
    let files = files.collect::<Vec<_>>().join(", ");
    (!files.is_empty()).then_some(files)
}

/// Of a list of things to do or to ask: how many, and the one at hand.
fn to_do(fields: &Map<String, Value>) -> Option<String> {
    let items =
        ["todos", "plan", "questions"].iter().find_map(|name| fields.get(*name)?.as_array())?;
    let current = items.iter().find(|item| item["status"] == "in_progress").or(items.first());
    let words = ["question", "content", "step", "text"];
    let current = words.iter().find_map(|name| current?[*name].as_str()).unwrap_or_default();
    let done = items.iter().filter(|item| item["status"] == "completed").count();
    let counted = match (done, items.len()) {
        (0, 1) => return Some(current.to_owned()),
        (0, all) => format!("{all} items"),
        (done, all) if done == all => return Some(format!("all {all} items done")),
        (done, all) => format!("{done} of {all} done"),
    };
    Some(format!("{counted}; {current}"))
}

/// Text, or the words of a command line.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.trim().is_empty() => Some(text.clone()),
        Value::Array(words) => {
            let words: Vec<&str> = words.iter().map(Value::as_str).collect::<Option<_>>()?;
            // `bash -lc SCRIPT` is about the script.
            match words[..] {
                [shell, flag, script] if shell.ends_with("sh") && flag.starts_with('-') => {
                    Some(script.to_owned())
                }
                [] => None,
                _ => Some(words.join(" ")),
            }
        }
        _ => None,
    }
}

/// The first line that says something, and how many follow.
fn one_line(text: &str) -> String {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default().to_owned();
    match lines.count() {
        0 => first,
        1 => format!("{first} … (+1 line)"),
        more => format!("{first} … (+{more} lines)"),
    }
}
