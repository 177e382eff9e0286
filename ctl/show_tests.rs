//! Conversations as people read them: fixed ones line by line, and real ones by what must hold for each.

use std::path::{Path, PathBuf};

use super::*;
use crate::page::TEXT_COLUMNS_MAX;
use crate::render::tests::{golden, terminal};
use crate::text;

fn page(records: &[u8], columns: Option<usize>) -> String {
    let terminal = terminal(columns);
    let mut out = Vec::new();
    let mut page = Page::new(&mut out, &terminal);
    let mut reader = Reader::default();
    let mut splitter = Splitter::new(RECORD_BYTES_MAX);
    splitter.push(records, |line| page.record(&mut reader, line)).unwrap();
    splitter.finish(|line| page.record(&mut reader, line)).unwrap();
    page.end(true).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_conversation_of_each_agent_is_shown_as_its_golden_file_has_it() {
    for agent in ["claude-code", "codex", "openclaw", "hermes"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/ctl");
        let records = std::fs::read(path.join(format!("show-{agent}.jsonl"))).unwrap();
        golden(&format!("show-{agent}.txt"), &page(&records, Some(80)));
    }
}

#[test]
fn a_conversation_fits_its_terminal_but_for_words_and_code_that_do_not() {
    let words = "many short words ".repeat(40);
    let calls = format!(
        r#"{{"role":"assistant","content":"{words}","tool_calls":[{{"function":{{"name":"run","arguments":"{{\"command\":\"{words}\"}}"}}}}]}}
{{"role":"tool","content":"{words}\n{words}\n{words}\n{words}"}}
{{"type":"summary","summary":"{words}"}}"#
    );
    for columns in 40..120 {
        for line in page(calls.as_bytes(), Some(columns)).lines() {
            assert!(text::columns(line) <= columns.min(TEXT_COLUMNS_MAX), "{columns}: {line}");
        }
    }
}

#[test]
fn what_cannot_be_read_is_named_by_its_size_and_what_says_nothing_is_counted() {
    let records = b"{\"role\":\"user\",\"content\":\"hi\"}\n{\"x\":1}\n\n{broken\n42\n";
    let shown = page(records, None);
    assert!(shown.contains("(unreadable record of 7 B)"), "{shown}");
    assert!(shown.ends_with("\n4 records, 2 of them without conversation\n"), "{shown}");
}

#[test]
fn no_record_reaches_a_terminal_as_a_command() {
    let evil = r"\u001b]0;owned\u0007\u009b2J\u202e\r\u007f";
    let records = [
        format!(r#"{{"role":"user","content":"{evil}"}}"#),
        format!(r#"{{"role":"tool","tool_name":"{evil}","content":"{evil}\n{evil}"}}"#),
        format!(r#"{{"type":"summary","summary":"{evil}"}}"#),
        format!(
            r#"{{"type":"assistant","message":{{"model":"{evil}","content":[
            {{"type":"thinking","thinking":"{evil}"}},{{"type":"text","text":"{evil}"}},
            {{"type":"tool_use","name":"{evil}","input":{{"command":"{evil}"}}}},
            {{"type":"tool_use","name":"x","input":{{"{evil}":"{evil}"}}}},
            {{"type":"image","source":{{"media_type":"{evil}"}}}}]}}}}"#
        )
        .replace('\n', " "),
    ];
    for columns in [None, Some(60)] {
        let shown = page(records.join("\n").as_bytes(), columns);
        assert!(shown.contains('␛') && !shown.contains("unreadable"), "{shown}");
        assert_eq!(shown.chars().find(|c| *c != '\n' && text::is_hostile(*c)), None, "{shown}");
    }
}

#[test]
fn json_has_the_session_the_entries_in_full_and_the_counts() {
    let mut out = Vec::new();
    let mut printer = JsonPrinter { out: &mut out, records: 0, silent: 0, unreadable: 0 };
    let mut reader = Reader::default();
    for record in
        [r#"{"role":"user","content":"hi\u009b","timestamp":1782000000}"#, r#"{"x":1}"#, "nonsense"]
    {
        printer.record(&mut reader, Line::Whole(record.as_bytes())).unwrap();
    }
    printer.end(false).unwrap();
    let lines = String::from_utf8(out).unwrap();
    let expected = concat!(
        r#"{"entry":{"kind":"message","who":"user","at":"2026-06-21T00:00:00Z","aside":false,"text":"hi\u009b"}}"#,
        "\n",
        r#"{"end":{"records":3,"silent":1,"unreadable":1,"whole":false}}"#,
        "\n"
    );
    assert_eq!(lines, expected);
}

fn split(pieces: &[&[u8]], bytes_max: usize) -> Vec<Result<Vec<u8>, u64>> {
    let mut lines = Vec::new();
    let mut splitter = Splitter::new(bytes_max);
    let mut give = |line: Line<'_>| {
        lines.push(match line {
            Line::Whole(bytes) => Ok(bytes.to_vec()),
            Line::TooLarge(bytes) => Err(bytes),
        });
        Ok(())
    };
    for piece in pieces {
        splitter.push(piece, &mut give).unwrap();
        assert!(splitter.pending.len() <= bytes_max);
    }
    splitter.finish(&mut give).unwrap();
    lines
}

#[test]
fn lines_are_the_same_however_the_stream_is_cut() {
    let stream = b"one\ntwo\r\n\nthis one is too large\nfour\nlast";
    let whole = split(&[stream], 10);
    let expected = [Ok(&b"one"[..]), Ok(b"two"), Err(21), Ok(b"four"), Ok(b"last")]
        .map(|l| l.map(<[u8]>::to_vec));
    assert_eq!(whole, expected);
    for size in 1..stream.len() {
        let pieces: Vec<&[u8]> = stream.chunks(size).collect();
        assert_eq!(split(&pieces, 10), whole, "pieces of {size}");
    }
}

fn transcripts(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            transcripts(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "jsonl") {
            found.push(path);
        }
    }
}

#[test]
fn real_transcripts_are_readable() {
    let Some(samples) = std::env::var_os("TRACECRAFT_SAMPLES") else {
        eprintln!("skipped: TRACECRAFT_SAMPLES names no directory of real transcripts");
        return;
    };
    let samples = PathBuf::from(samples);
    let mut found = Vec::new();
    for agent in ["claude-code", "codex", "pi", "real/codex/sessions", "real/openclaw"] {
        transcripts(&samples.join(agent), &mut found);
    }
    assert!(found.len() > 20, "the samples are not all there");
    let (mut records, mut said, mut quiet) = (0, 0, Vec::new());
    for path in &found {
        let bytes = std::fs::read(path).unwrap();
        let mut reader = Reader::default();
        let mut spoken = 0;
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            records += 1;
            spoken += usize::from(matches!(reader.read(line), Record::Said(_)));
        }
        said += spoken;
        if spoken == 0 {
            quiet.push(path.file_name().unwrap_or_default().to_owned());
        }
        for columns in [None, Some(72)] {
            let shown = page(&bytes, columns);
            let bad = shown.chars().find(|c| *c != '\n' && text::is_hostile(*c));
            assert_eq!(bad, None, "{}", path.display());
        }
    }
    eprintln!(
        "{records} records of {} files, {said} with conversation; none in {quiet:?}",
        found.len()
    );
    assert!(said * 10 > records * 6, "too little was recognised");
}
