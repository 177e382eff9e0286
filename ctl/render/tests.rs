//! What people and programs read, held against golden files in `tests/golden/ctl/`. With `TRACECRAFT_BLESS=1` the files are
//! written anew; the diff is then for a person to judge.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use jiff::tz::TimeZone;
use serde::de::DeserializeOwned;
use tracecraft::api::{
    Coverage, ErrorBody, ErrorCode, Event, Flushed, Flushing, Hinted, PROTOCOL, Pending, Phase,
    Problem, Progress, Remote, Root, Session, SessionCounts, SessionList, SessionState, Status,
    Usage,
};

use super::*;

/// A reader in Berlin on the second of July.
pub(crate) fn terminal(columns: Option<usize>) -> Terminal {
    Terminal {
        columns,
        colour: false,
        progress: false,
        now: "2026-07-02T10:00:00Z".parse().unwrap(),
        zone: TimeZone::fixed(jiff::tz::offset(2)),
        home: Some("/home/me".into()),
    }
}

/// Compares with a golden file.
pub(crate) fn golden(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/ctl").join(name);
    if std::env::var_os("TRACECRAFT_BLESS").is_some() {
        File::create(&path).unwrap().write_all(actual.as_bytes()).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(expected == actual, "{name} is now:\n{actual}\nbut was:\n{expected}");
}

fn trouble(code: &str, message: &str, hint: Option<&str>) -> Problem {
    Problem {
        code: code.into(),
        message: message.into(),
        hint: hint.map(str::to_owned),
        since: "2026-07-02T09:57:00Z".into(),
        next_try_at: None,
    }
}

fn root(harness: &str, path: &str, coverage: Coverage) -> Root {
    Root { harness: harness.into(), path: path.into(), coverage }
}

pub(crate) fn status() -> Status {
    Status {
        version: "0.1.0".into(),
        protocol: PROTOCOL,
        pid: 4242,
        uptime_seconds: 11_520,
        phase: Phase::Recording,
        store: "file:///home/me/.local/share/tracecraft/bucket".into(),
        state_dir: "/home/me/.local/state/tracecraft".into(),
        interval_ms: 5000,
        redact: true,
        compaction: "auto".into(),
        roots: vec![
            root("claude-code", "/home/me/.claude/projects", Coverage::Events),
            root("codex", "/mnt/net/codex/sessions", Coverage::Polled),
            root("openclaw", "/home/me/.openclaw/agents", Coverage::Missing),
        ],
        sessions: SessionCounts {
            total: 42,
            live: 2,
            pending: 0,
            stopped: 1,
            excluded: 3,
            ..Default::default()
        },
        stored_bytes: 124_151_234,
        pending: Pending::default(),
        last_stored_at: Some("2026-07-02T09:59:56Z".into()),
        problems_left_out: 0,
        last_flush_at: Some("2026-07-02T09:59:57Z".into()),
        usage: Some(Usage {
            resident_bytes: Some(19_293_798),
            cpu_seconds: 4.25,
            cpu_percent: 0.04,
            descriptors: Some(21),
        }),
        stalled_seconds: None,
        remote: None,
        problems: vec![],
    }
}

pub(crate) fn troubled_status() -> Status {
    Status {
        redact: false,
        store: "s3://flight/recorder".into(),
        interval_ms: 300,
        roots: vec![root("codex", "/home/me/.codex/sessions", Coverage::Unreadable)],
        sessions: SessionCounts {
            total: 7,
            live: 1,
            pending: 2,
            stopped: 0,
            excluded: 2,
            held_back: 1,
            waiting: 1,
        },
        pending: Pending { parts: 12, bytes: 3_145_728, oldest_seconds: Some(200) },
        last_stored_at: None,
        last_flush_at: None,
        problems: vec![
            Problem {
                next_try_at: Some("2026-07-02T10:00:12Z".into()),
                ..trouble(
                    "store_unavailable",
                    "s3://flight/recorder does not answer",
                    Some("look at the network; what is captured is kept and sent later"),
                )
            },
            trouble("redaction_off", "secrets are stored as they are", None),
        ],
        ..status()
    }
}

/// A bucket that does with conditions what is said.
fn remote_status(conditions: &str) -> Status {
    let remote = Remote {
        endpoint: "garage.example:3900".into(),
        conditions: conditions.into(),
        deletes: None,
        puts: 1_204,
        gets: 61,
        lists: 4,
        deletions: 1,
        failures: 3,
    };
    Status { store: "s3://flight/recorder".into(), remote: Some(remote), ..status() }
}

fn session(harness: &str, id: &str, stored: Option<&str>) -> Session {
    Session {
        harness: harness.into(),
        id: id.into(),
        generation: 1,
        state: SessionState::Idle,
        source_path: format!("/home/me/sessions/{id}.jsonl"),
        cwd: Some("/home/me/work/parser".into()),
        parts: 14,
        source_bytes: 1_300_000,
        stored_bytes: 1_258_291,
        pending_bytes: 0,
        redactions: BTreeMap::new(),
        started_at: Some("2026-07-02T08:00:00Z".into()),
        last_stored_at: stored.map(str::to_owned),
        ended_at: None,
        problem: None,
        excluded: false,
    }
}

fn list() -> SessionList {
    let live = Session {
        state: SessionState::Live,
        pending_bytes: 2048,
        cwd: Some("/home/me/a/very/long/way/down/to/the/project-数据/checkout".into()),
        ..session(
            "claude-code",
            "3f2a9c1e-0a5b-4c7d-9e8f-112233445566",
            Some("2026-07-02T09:59:58Z"),
        )
    };
    let broken = Session {
        problem: Some(trouble("source_unreadable", "the file cannot be read", Some("chmod u+r"))),
        cwd: None,
        ..session("codex", "01a202ff-e959-7981-a12a-3e16776f6a97", Some("2026-06-01T00:00:00Z"))
    };
    let sibling =
        session("codex", "01a202ff-ee6e-7b72-a57d-3277c66a60d7", Some("2026-07-02T07:00:00.5Z"));
    let left_out = Session { excluded: true, ..sibling };
    let claw = session("openclaw", "main__4c2c0f6c-4499-446f-920e-03b0709a0505", None);
    SessionList { sessions: vec![broken, live, left_out, claw] }
}

#[test]
fn status_answers_whether_all_is_safe_and_what_to_do() {
    golden("status.txt", &status::text(&status(), &terminal(Some(80))));
    golden("status-trouble.txt", &status::text(&troubled_status(), &terminal(Some(80))));
}

#[test]
fn a_narrow_terminal_cuts_no_word_of_status() {
    for status in [status(), troubled_status(), remote_status("ignored")] {
        for line in status::text(&status, &terminal(Some(40))).lines() {
            let words = line.split("  ").map(str::trim).filter(|words| !words.is_empty());
            let last = words.clone().last().unwrap_or_default();
            let left_alone = words.count() > 2 || !last.contains(' ');
            assert!(text::columns(line) <= 40 || left_alone, "{line}");
        }
    }
}

#[test]
fn status_of_a_bucket_says_what_its_conditional_puts_mean_and_what_it_was_asked() {
    golden("status-remote.txt", &status::text(&remote_status("ignored"), &terminal(Some(80))));
    let says = |status: Status, words: &str| {
        let text = status::text(&status, &terminal(None));
        assert!(text.contains(words), "{words}: {text}");
    };
    says(
        remote_status("honoured"),
        "are honoured: a second writer of a session is noticed at once",
    );
    says(remote_status("unsupported"), "are not supported: a second writer is noticed later");
    says(remote_status("unknown"), "not known yet");
    says(remote_status("\u{1b}[2Jsometimes"), "conditional puts: ");
    let refusing = Remote { deletes: Some(false), failures: 0, ..Remote::default() };
    let refusing = Status { remote: Some(refusing), ..remote_status("") };
    says(refusing.clone(), "compaction is off");
    let off = |why: &str| Status { compaction: why.into(), ..status() };
    says(off("off"), "merged only when you ask: compaction is off in the configuration");
    says(off("billed"), "merged only when you ask: the store bills what is deleted early");
    says(refusing, "no requests since the start");
    let local = status::text(&status(), &terminal(None));
    assert!(!local.contains("conditional"), "{local}");
}

#[test]
fn the_first_line_of_status_is_the_verdict() {
    let first = |status: Status| {
        status::text(&status, &terminal(None)).lines().next().unwrap_or_default().to_owned()
    };
    assert!(first(status()).ends_with("is recording: everything is safe"));
    let starting = Status { phase: Phase::Starting, ..status() };
    assert!(first(starting).ends_with("is starting: it looks for sessions"));
    let stopping = Status { phase: Phase::Stopping, ..troubled_status() };
    assert!(first(stopping).ends_with("is stopping: it stores what is left"));
    let stalled = Status { stalled_seconds: Some(185), ..status() };
    assert!(first(stalled).ends_with("does not get on: its loop has not come round for 3 min"));
    let pending = Pending { parts: 1, bytes: 1, oldest_seconds: None };
    assert!(!first(Status { pending, ..status() }).contains("safe"));
    assert!(first(troubled_status()).ends_with("is recording: 2 problems need attention"));
}

fn events() -> Vec<Event> {
    let at = || "2026-07-02T09:59:58Z".to_owned();
    let (harness, id) = (|| "codex".to_owned(), || "01a202ff".to_owned());
    let problem = trouble("store_unavailable", "s3://flight/recorder does not answer", None);
    vec![
        Event::Status { status: Box::new(status()) },
        Event::Phase { at: at(), phase: Phase::Recording },
        Event::Found { at: at(), harness: harness(), id: id() },
        Event::Stored { at: at(), harness: harness(), id: id(), seq: 3, bytes: 2048 },
        Event::Problem { object: String::new(), problem },
        Event::ProblemOver { at: at(), object: "codex/01a202ff".into(), code: "not_sent".into() },
        Event::Missed { events: 17 },
        Event::Heartbeat,
    ]
}

#[test]
fn events_are_lines_for_people_and_documents_for_programs() {
    let lines = |event: &Event| Some(event::line(event, &terminal(None))? + "\n");
    golden("events.txt", &events().iter().filter_map(lines).collect::<String>());
    let json: Vec<String> = events().iter().map(json_line).collect();
    golden("events.jsonl", &(json.join("\n") + "\n"));
    for (line, event) in json.iter().zip(events()) {
        assert_eq!(serde_json::from_str::<Event>(line).unwrap(), event);
    }
    let newer = r#"{"event":"restored","at":"2026-07-02T09:59:58Z","what":{"is":"new"}}"#;
    assert_eq!(serde_json::from_str::<Event>(newer).unwrap(), Event::Unknown);
}

#[test]
fn the_head_of_the_screen_says_when_nobody_answers() {
    let terminal = terminal(Some(80));
    let head = event::head(Some(&status()), Some(61), &terminal);
    assert!(head.starts_with("the daemon does not answer for 1 min: waiting for it."), "{head}");
    assert!(head.ends_with(&status::text(&status(), &terminal)), "{head}");
}

#[test]
fn a_status_of_an_older_daemon_is_read_without_what_it_does_not_say() {
    let mut old = serde_json::to_value(troubled_status()).unwrap();
    let whole = old.as_object_mut().unwrap();
    for name in ["usage", "last_flush_at", "stalled_seconds"] {
        whole.remove(name);
    }
    let old: Status = serde_json::from_value(old).unwrap();
    assert_eq!((&old.usage, &old.last_flush_at, old.stalled_seconds), (&None, &None, None));
    assert!(!status::text(&old, &terminal(None)).contains("of memory"));
}

#[test]
fn a_list_fits_its_terminal_and_is_whole_in_a_pipe() {
    golden("list.txt", &list::text(&list(), &terminal(None)));
    golden("list-100.txt", &list::text(&list(), &terminal(Some(100))));
    golden("list-60.txt", &list::text(&list(), &terminal(Some(60))));
    for columns in 46..160 {
        for line in list::text(&list(), &terminal(Some(columns))).lines().take(5) {
            assert!(text::columns(line) <= columns, "{columns}: {line}");
        }
    }
    assert_eq!(list::text(&SessionList { sessions: vec![] }, &terminal(None)), "no sessions yet\n");
}

/// What the contract says about short ids, in the simplest words: exact, else the one id that begins with what was typed;
/// generations and sub-agents only where their marks are typed; OpenClaw also behind its agent; keys.
fn resolve<'a>(list: &'a SessionList, typed: &str) -> Vec<&'a Session> {
    let exact = |session: &&Session| {
        session.id == typed || format!("{}/{}", session.harness, session.id) == typed
    };
    let found: Vec<_> = list.sessions.iter().filter(exact).collect();
    if !found.is_empty() {
        return found;
    }
    let begins = |session: &&Session| {
        let id = session.id.as_str();
        let offspring = list.sessions.iter().any(|parent| {
            id.strip_prefix(&parent.id)
                .is_some_and(|rest| rest.starts_with("__") || rest.starts_with('~'))
        });
        let stem =
            id.split_once("__").filter(|_| session.harness == "openclaw").map(|(_, stem)| stem);
        let both =
            typed.split_once("__").zip(id.rsplit_once("__")).is_some_and(|(short, whole)| {
                let long_enough = !short.0.is_empty() && !short.1.is_empty();
                long_enough && whole.0.starts_with(short.0) && whole.1.starts_with(short.1)
            });
        let (short, number) = typed.split_once('~').unwrap_or((typed, ""));
        if let Some((base, own)) = id.split_once('~') {
            return number == own && base.starts_with(short);
        }
        if session.harness != "openclaw" && id.contains("__") {
            return both;
        }
        !offspring && (id.starts_with(typed) || stem.is_some_and(|stem| stem.starts_with(typed)))
    };
    list.sessions.iter().filter(begins).collect()
}

#[test]
fn every_short_id_of_a_list_names_its_session_and_no_other() {
    let ids = [
        ("codex", "01a202ff-e959-7981-a12a-3e16776f6a97"),
        ("codex", "01a202ff-e959-7981-a12a-3e16776f6a97__agent-01a2"),
        ("codex", "01a202ff-e959-7981-a12a-3e16776f6a97__agent-01b3"),
        ("codex", "01a202ff-ee6e-7b72-a57d-3277c66a60d7"),
        ("codex", "01a202ff-ee6e-7b72-a57d-3277c66a60d7_01a20301-77aa-7b72-a57d-3277c66a60d7"),
        ("codex", "77a202ff-e959-7981-b000-000000000000__0a1b2c3d-1111"),
        ("codex", "01a202ff-e959-7981-a12a-3e16776f6a97~2"),
        ("codex", "01a202ff-e959-7981-b000-000000000000"),
        ("codex", "01a202ff-e959-7981-a12a-3e16776f6a97@0f0f0f0f"),
        ("claude-code", "same-id-in-two-places"),
        ("hermes", "same-id-in-two-places"),
        ("hermes", "short"),
        ("hermes", "shorter"),
        ("openclaw", "main__01a202ff-e959-7981-c000-000000000000"),
        ("openclaw", "main__01a202ff-e959-7981-c000-000000000000__sub"),
        ("openclaw", "other__4c2c0f6c-4499-446f-920e-03b0709a0505"),
        ("openclaw", "main__4c2c0f6c-4499-446f-920e-03b0709a0505"),
        ("claude-code", "4c2c0f6c-0000-0000-0000-000000000000"),
        ("claude-code", "数据数据数据数据数据一"),
        ("claude-code", "数据数据数据数据数据二"),
    ];
    let sessions = ids.map(|(harness, id)| session(harness, id, None)).to_vec();
    let list = SessionList { sessions };
    let text = list::text(&list, &terminal(Some(200)));
    let shown: Vec<&str> =
        text.lines().skip(1).map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    assert_eq!(shown.len(), ids.len());
    for (session, typed) in list.sessions.iter().zip(&shown) {
        // What cannot be typed says so.
        if !typed.contains('…') {
            assert_eq!(resolve(&list, typed), [session], "{typed}");
        }
    }
    assert!(shown.iter().all(|id| text::columns(id) < 45), "{shown:?}");
    let cut = shown.iter().filter(|id| id.contains('…'));
    assert_eq!(cut.count(), 3, "{shown:?}");
}

#[test]
fn the_small_verbs_say_what_they_did() {
    let terminal = terminal(None);
    let one = session("codex", "01a2", None);
    let stopped = session::stopped(&Session { pending_bytes: 10, ..one.clone() }, &terminal);
    assert!(stopped.starts_with("stopped codex/01a2: 1.2 MiB stored in 14 parts\n10 B more"));
    assert_eq!(session::started(&one, &terminal), "following codex/01a2 again: idle\n");
    let flushed = |sessions, parts, bytes| {
        session::flushed(&Flushed { sessions, parts, bytes, ..Default::default() })
    };
    assert_eq!(flushed(3, 1, 2048), "stored 2.0 KiB in 1 part (3 sessions looked at)\n");
    assert_eq!(flushed(1, 0, 0), "everything was stored already (1 session looked at)\n");
    let done = |parts_before, parts_after, merged_bytes| {
        compact::outcome(&Progress::Done { parts_before, parts_after, merged_bytes })
    };
    assert_eq!(done(9, 2, 4096), "merged 4.0 KiB from 9 parts into 2 parts\n");
    assert_eq!(done(1, 1, 0), "nothing to merge: 1 part\n");
}

#[test]
fn the_wire_shapes_are_those_of_the_golden_files() {
    fn check<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, value: &T) {
        golden(name, &json(value));
        assert_eq!(&serde_json::from_str::<T>(&json(value)).unwrap(), value);
    }
    let mut one = list().sessions.remove(1);
    one.redactions.insert("aws-access-key".into(), 2);
    check("status.json", &troubled_status());
    check("status-remote.json", &remote_status("honoured"));
    check("sessions.json", &SessionList { sessions: vec![one, list().sessions.remove(0)] });
    check("session.json", &list().sessions.remove(1));
    let hinted = Hinted { flushing: Flushing::Sessions, sessions: vec!["codex/01a2".into()] };
    check("hinted.json", &hinted);
    check("flushed.json", &Flushed { sessions: 3, parts: 2, bytes: 4096, unfinished_bytes: 17 });
    let hint = Some("give more of the id".to_owned());
    let message = "01 is a prefix of 01a2 and 01b3".to_owned();
    let error = ErrorBody { code: ErrorCode::AmbiguousId, message, hint };
    check("error.json", &error);
    let error = ErrorBody { hint: None, ..error };
    let progress = [
        Progress::Working { done_bytes: 1024, total_bytes: 4096 },
        Progress::Done { parts_before: 9, parts_after: 1, merged_bytes: 4096 },
        Progress::Failed { error },
    ];
    let lines: String = progress.iter().map(|event| json_line(event) + "\n").collect();
    golden("progress.jsonl", &lines);
}

#[test]
fn no_text_from_outside_reaches_a_terminal_as_a_command() {
    let evil = "\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}\r\n\u{7f}";
    let evil_problem = Problem {
        code: evil.into(),
        message: evil.into(),
        hint: Some(evil.into()),
        since: evil.into(),
        next_try_at: Some(evil.into()),
    };
    let evil_session = Session {
        source_path: evil.into(),
        cwd: Some(evil.into()),
        redactions: BTreeMap::from([(evil.to_owned(), 1)]),
        started_at: Some(evil.into()),
        last_stored_at: Some(evil.into()),
        problem: Some(evil_problem.clone()),
        generation: 2,
        ..session(evil, evil, None)
    };
    let evil_remote = Remote { endpoint: evil.into(), ..Remote::default() };
    let evil_status = Status {
        remote: Some(Remote { conditions: evil.into(), ..evil_remote }),
        version: evil.into(),
        store: evil.into(),
        state_dir: evil.into(),
        roots: [Coverage::Events, Coverage::Polled, Coverage::Missing, Coverage::Unreadable]
            .map(|coverage| root(evil, evil, coverage))
            .to_vec(),
        last_stored_at: Some(evil.into()),
        problems: vec![evil_problem],
        ..status()
    };
    let text = || evil.to_owned();
    let evil_events = [
        Event::Found { at: text(), harness: text(), id: text() },
        Event::Stored { at: text(), harness: text(), id: text(), seq: 1, bytes: 1 },
        Event::Problem { object: text(), problem: evil_status.problems[0].clone() },
        Event::ProblemOver { at: text(), object: text(), code: text() },
    ];
    let evil_list = SessionList { sessions: vec![evil_session.clone(), evil_session.clone()] };
    for columns in [None, Some(80)] {
        let terminal = terminal(columns);
        for text in [
            status::text(&evil_status, &terminal),
            list::text(&evil_list, &terminal),
            session::stopped(&evil_session, &terminal),
            session::started(&evil_session, &terminal),
            session::head(&evil_session, &terminal),
            event::head(Some(&evil_status), Some(1), &terminal),
            evil_events.iter().filter_map(|event| event::line(event, &terminal)).collect(),
            json(&evil_status),
            json(&evil_list),
        ] {
            let bad = text.chars().find(|c| *c != '\n' && text::is_hostile(*c));
            assert_eq!(bad, None, "{text}");
        }
    }
    assert_eq!(serde_json::from_str::<SessionList>(&json(&evil_list)).unwrap(), evil_list);
}

#[test]
fn colours_are_for_terminals_that_take_them() {
    let coloured = Terminal { colour: true, ..terminal(Some(80)) };
    let text = status::text(&troubled_status(), &coloured);
    assert!(text.contains("\u{1b}[1;31m"));
    let plain: String = {
        let mut rest = text.as_str();
        let mut plain = String::new();
        while let Some((before, after)) = rest.split_once('\u{1b}') {
            plain.push_str(before);
            rest = after.split_once('m').unwrap().1;
        }
        plain + rest
    };
    assert_eq!(plain, status::text(&troubled_status(), &terminal(Some(80))));
}
