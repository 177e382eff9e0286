//! Details of records that the golden conversations do not show.

use serde_json::json;

use super::*;

fn one(record: &Value) -> Entry {
    match Reader::default().read(record.to_string().as_bytes()) {
        Record::Said(mut entries) if entries.len() == 1 => entries.remove(0),
        other => panic!("{record}: {other:?}"),
    }
}

#[test]
fn times_of_all_agents_are_understood_and_nonsense_is_no_time() {
    let expected: Option<Timestamp> = "2026-07-01T08:00:01.5Z".parse().ok();
    for value in [
        json!("2026-07-01T08:00:01.5Z"),
        json!("2026-07-01T10:00:01.500+02:00"),
        json!(1_782_892_801.5),
        json!(1_782_892_801_500_u64),
    ] {
        assert_eq!(time(&value), expected, "{value}");
    }
    for value in [json!(null), json!("yesterday"), json!(1e300), json!([1]), json!("")] {
        assert_eq!(time(&value), None, "{value}");
    }
}

#[test]
fn a_call_is_told_by_what_it_is_about() {
    let table = [
        (json!({"command": "cargo test", "description": "Run"}), "cargo test"),
        (json!({"command": ["bash", "-lc", "ls | wc"]}), "ls | wc"),
        (json!({"command": ["git", "status"]}), "git status"),
        (json!({"cmd": "a\n\n  b\nc"}), "a … (+2 lines)"),
        (json!({"pattern": "fn", "path": "src"}), "fn in src"),
        (json!({"pattern": "*.rs"}), "*.rs"),
        (json!({"file_path": "/a/b", "limit": 3}), "/a/b"),
        (
            json!({"todos": [{"content": "x", "status": "completed"}, {"content": "y", "status": "in_progress"}]}),
            "1 of 2 done; y",
        ),
        (json!({"plan": [{"step": "x", "status": "completed"}]}), "all 1 items done"),
        (json!({"questions": [{"question": "Which?"}]}), "Which?"),
        (json!("*** Begin Patch\n*** Add File: a\n+x\n*** Delete File: b\n*** End Patch"), "a, b"),
        (json!({"unknown": 1}), r#"{"unknown":1}"#),
        (json!({}), ""),
        (json!(null), ""),
    ];
    for (input, expected) in table {
        assert_eq!(gist(&input), expected, "{input}");
    }
}

#[test]
fn records_of_old_and_of_borrowed_formats_are_read() {
    let text = |record| match one(&record) {
        Entry::Message { who, text, .. } => (who, text),
        other => panic!("{other:?}"),
    };
    let said = |who, text: &str| (who, text.to_owned());
    assert_eq!(
        text(
            json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": "old codex"}]})
        ),
        said(Who::User, "old codex")
    );
    assert_eq!(
        text(
            json!({"payload": {"role": "assistant", "content": [{"text": "no type"}]}, "type": "response_item"})
        ),
        said(Who::Assistant, "no type")
    );
    assert_eq!(
        text(json!({"type": "user", "message": {"role": "user", "parts": [{"text": "qwen"}]}})),
        said(Who::User, "qwen")
    );
    assert_eq!(
        text(json!({"type": "user", "message": {"content": ["bare"]}})),
        said(Who::User, "bare")
    );
    let output = json!({"type": "user", "message": {"role": "user", "content": "<local-command-stdout>3 files</local-command-stdout>"}});
    assert!(matches!(one(&output), Entry::Result { text, tool: None, .. } if text == "3 files"));
}

#[test]
fn what_is_no_conversation_is_silent_and_what_is_no_json_unreadable() {
    let mut reader = Reader::default();
    for record in [
        "{}",
        "[]",
        "1",
        "null",
        "\"text\"",
        r#"{"type":"user","message":"error"}"#,
        r#"{"type":"user","message":{"content":"  \n"}}"#,
        r#"{"type":"event_msg","payload":{"type":"agent_message","message":"twice"}}"#,
        r#"{"type":"response_item","payload":{"type":"message","role":"developer","content":[{"text":"x"}]}}"#,
        r#"{"type":"message","message":{"role":"future","content":"x"}}"#,
        r#"{"role":"system","content":"x"}"#,
        r#"{"type":"assistant","message":{"model":"m","content":[]}}"#,
    ] {
        assert_eq!(reader.read(record.as_bytes()), Record::Silent, "{record}");
    }
    for record in [&b"{"[..], b"\xff", b"{} {}"] {
        assert_eq!(reader.read(record), Record::Unreadable);
    }
    // The model is told with the first words that it says.
    let record = r#"{"type":"assistant","message":{"model":"m","content":"hi"}}"#;
    assert!(matches!(reader.read(record.as_bytes()), Record::Said(entries) if entries.len() == 2));
}

#[test]
fn a_result_has_the_name_of_the_tool_that_was_called() {
    let mut reader = Reader::default();
    for n in 0..2 * CALLS_MAX {
        reader.call(None, &json!(n.to_string()), "t", Value::Null);
    }
    assert!(reader.calls.len() <= CALLS_MAX);
    let last = json!((2 * CALLS_MAX - 1).to_string());
    let named = reader.result(None, &last, None, false, String::new());
    assert!(matches!(named, Entry::Result { tool: Some(tool), .. } if tool == "t"));
}

#[test]
fn pictures_and_files_are_named_and_not_printed() {
    let picture = json!({"type": "image", "mimeType": "image/png", "data": "A".repeat(4096)});
    assert_eq!(
        text_of(&json!([{"type": "text", "text": "see"}, picture])),
        "see\n[image/png, 3.0 KiB]"
    );
    assert_eq!(text_of(&json!([{"type": "input_image"}])), "[image]");
}

#[test]
fn a_row_that_comes_again_is_told_as_what_happened_to_it() {
    let mut reader = Reader::default();
    let mut read = |row: Value| match reader.read(row.to_string().as_bytes()) {
        Record::Said(entries) => entries
            .into_iter()
            .map(|entry| match entry {
                Entry::Note { text, .. } => format!("({text})"),
                Entry::Message { text, .. } => text,
                other => panic!("{other:?}"),
            })
            .collect::<Vec<_>>()
            .join(" "),
        Record::Silent => String::new(),
        Record::Unreadable => panic!("it is JSON"),
    };
    let row = |id: i64, text: &str, active: i64, compacted: i64| {
        json!({"id": id, "session_id": "s", "role": "user", "content": text, "timestamp": 5.5,
               "active": active, "compacted": compacted, "api_content": null})
    };
    let gone = |id: i64| json!({"id": id, "session_id": "s", "deleted": true});
    assert_eq!(read(row(1, "one", 1, 0)), "one");
    assert_eq!(read(row(2, "two", 1, 0)), "two");
    assert_eq!(read(row(3, "three", 1, 0)), "three");
    assert_eq!(read(row(2, "two", 0, 0)), "(messages were taken back)");
    assert_eq!(read(row(3, "three", 0, 0)), "", "it is told once");
    assert_eq!(read(row(2, "two", 1, 0)), "(messages were restored)");
    let mut backfilled = row(1, "one", 1, 0);
    backfilled["api_content"] = json!("sent");
    assert_eq!(read(backfilled), "", "of no interest to a reader");
    assert_eq!(read(row(1, "uno", 1, 0)), "(a message was changed to) uno");
    assert_eq!(read(row(1, "uno", 0, 1)), "(messages were compacted away)");
    assert_eq!(read(row(2, "two", 0, 1)), "");
    assert_eq!(read(row(4, "summary", 1, 0)), "summary");
    assert_eq!(read(gone(4)), "(messages were removed)");
    assert_eq!(read(gone(2)), "");
}
