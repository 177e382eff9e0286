//! The page against a golden file, and against the grammar of its format. With `TRACECRAFT_BLESS=1` the file is written anew.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use super::*;
use crate::api::{Pending, Problem, SessionCounts};

fn status() -> Status {
    let problem = |code: &str| Problem {
        code: code.into(),
        message: "cannot put sessions/codex/0123/part-00001-0123abcd.jsonl".into(),
        hint: None,
        since: "2026-07-02T09:57:00Z".into(),
        next_try_at: None,
    };
    Status {
        version: "0.1.0".into(),
        protocol: PROTOCOL,
        pid: 1,
        uptime_seconds: 61,
        phase: Phase::Recording,
        store: "s3://flight/recorder".into(),
        state_dir: "/state".into(),
        interval_ms: 5000,
        redact: true,
        compaction: "auto".into(),
        roots: vec![],
        sessions: SessionCounts {
            total: 5,
            live: 1,
            pending: 2,
            stopped: 0,
            excluded: 3,
            ..Default::default()
        },
        stored_bytes: 4096,
        pending: Pending { parts: 2, bytes: 700, oldest_seconds: Some(42) },
        last_stored_at: Some("2026-07-02T09:59:56.25Z".into()),
        last_flush_at: None,
        problems_left_out: 0,
        usage: None,
        stalled_seconds: None,
        remote: None,
        problems: vec![
            problem("store_unavailable"),
            problem("not_sent"),
            problem("not_sent"),
            problem("a\"b\\c\nd"),
        ],
    }
}

fn measures() -> Measures {
    let mut counts = Counts { stored_parts: 7, stored_bytes: 4000, scans: 2, ..Counts::default() };
    counts.captures = 9;
    counts.captured_parts = 9;
    counts.captured_bytes = 4700;
    counts.redactions.insert("aws_access_key".into(), 2);
    Measures {
        status: status(),
        sessions: vec![(SessionState::Live, 1), (SessionState::Idle, 4), (SessionState::Gone, 0)],
        requests: vec![("put", 14), ("get", 3)],
        failures: 1,
        counts,
        listeners: 1,
    }
}

fn usage() -> Usage {
    Usage {
        resident_bytes: Some(17 << 20),
        cpu: Duration::from_millis(1250),
        descriptors: Some(21),
        descriptors_max: None,
    }
}

/// The grammar of the format, in short: a family is its help, its type and its samples, in one piece; values are numbers.
fn check(page: &str) -> Result<(), String> {
    let is_name = |name: &str| {
        name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
            && name.starts_with("tracecraft_")
    };
    let (mut families, mut samples) = (BTreeSet::new(), BTreeSet::new());
    let (mut helped, mut family, mut kind) = (String::new(), String::new(), String::new());
    for line in page.lines() {
        let wrong = |why: &str| Err(format!("{why}: {line}"));
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
            if !is_name(name) || help.is_empty() || !families.insert(name.to_owned()) {
                return wrong("a bad help");
            }
            helped = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, of) = rest.split_once(' ').unwrap_or_default();
            if name != helped || !["gauge", "counter"].contains(&of) {
                return wrong("a bad type");
            }
            if (of == "counter") != name.ends_with("_total") {
                return wrong("only counters end in _total, and all of them do");
            }
            (family, kind) = (name.to_owned(), of.to_owned());
        } else {
            let Some((series, value)) = line.rsplit_once(' ') else { return wrong("no value") };
            let number: f64 = value.parse().map_err(|_| format!("no number: {line}"))?;
            if kind == "counter" && number < 0.0 {
                return wrong("a counter below zero");
            }
            let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
            if name != family || !samples.insert(series.to_owned()) {
                return wrong("a sample of another family, or twice");
            }
            labels_of(labels).map_err(|why| format!("{why}: {line}"))?;
        }
    }
    if page.ends_with('\n') { Ok(()) } else { Err("the last line has no end".into()) }
}

/// `name="value",…}` with the three escapes that there are.
fn labels_of(mut text: &str) -> Result<(), &'static str> {
    while text != "}" {
        let (name, rest) = text.split_once("=\"").ok_or("a label without a value")?;
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_') {
            return Err("a bad name of a label");
        }
        let mut escaped = false;
        let end = rest.find(|c: char| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        text = &rest[end.ok_or("a value without an end")? + 1..];
        text = text.strip_prefix(',').unwrap_or(text);
    }
    Ok(())
}

#[test]
fn the_page_is_that_of_the_golden_file_and_keeps_the_grammar() {
    let actual = page(Some(&measures()), Duration::from_millis(1500), &usage());
    let actual = actual.replace(env!("CARGO_PKG_VERSION"), "VERSION");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/metrics.txt");
    if std::env::var_os("TRACECRAFT_BLESS").is_some() {
        File::create(&path).unwrap().write_all(actual.as_bytes()).unwrap();
    }
    assert_eq!(fs::read_to_string(&path).unwrap_or_default(), actual);
    assert_eq!(check(&actual), Ok(()));
    assert!(!actual.contains("0123"), "an object's name is on the page");
}

#[test]
fn a_mirror_that_hangs_is_said_to_be_down_beside_what_the_process_uses() {
    let actual = page(None, Duration::from_secs(90), &usage());
    assert_eq!(check(&actual), Ok(()));
    assert!(actual.contains("\ntracecraft_up 0\n"), "{actual}");
    assert!(actual.contains("\ntracecraft_process_open_fds 21\n"), "{actual}");
    assert!(!actual.contains("tracecraft_sessions"), "{actual}");
}

#[test]
fn the_check_of_the_grammar_notices_what_is_wrong() {
    let family = "# HELP tracecraft_a A.\n# TYPE tracecraft_a gauge\n";
    for good in ["", "tracecraft_a 1\n", "tracecraft_a{b=\"c\",d=\"\\\"}\"} 1.5\n"] {
        assert_eq!(check(&format!("{family}{good}")), Ok(()));
    }
    for bad in [
        "tracecraft_a\n",
        "tracecraft_a one\n",
        "tracecraft_b 1\n",
        "tracecraft_a 1\ntracecraft_a 2\n",
        "tracecraft_a{b} 1\n",
        "tracecraft_a{b=\"c} 1\n",
        "# TYPE tracecraft_b gauge\n",
        "# HELP tracecraft_c_total C.\n# TYPE tracecraft_c_total gauge\n",
        "# HELP tracecraft_a A.\n",
    ] {
        assert!(check(&format!("{family}{bad}")).is_err(), "{bad}");
    }
}
