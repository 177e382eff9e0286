//! The `tracecraftctl` program as a script sees it: standard output, standard error, exit code. The daemon is a socket with
//! canned answers, so that each way of going wrong can be had at will.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// For a program that answers at once.
const DEADLINE: Duration = Duration::from_secs(30);

/// Runs `tracecraftctl` against a socket that answers one request; also what was asked.
fn ask(arguments: &[&str], answer: &[u8]) -> (Output, String) {
    let scratch = tempfile::tempdir().unwrap();
    let socket = scratch.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let answer = answer.to_vec();
    let (asked, question) = mpsc::channel();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        asked.send(read_head(&mut stream)).unwrap();
        // A client that has read enough may be gone.
        let _ = stream.write_all(&answer);
    });
    let output = ctl(scratch.path()).arg("--socket").arg(&socket).args(arguments).output().unwrap();
    let question = question.recv_timeout(DEADLINE).unwrap();
    server.join().unwrap();
    (output, question.lines().next().unwrap_or_default().to_owned())
}

fn read_head(stream: &mut UnixStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// The program with nothing of the real user's environment.
fn ctl(home: &std::path::Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tracecraftctl"));
    command.env_clear().env("HOME", home).stdin(Stdio::null());
    command
}

fn http(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ntracecraft-protocol: 1\r\n{headers}content-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

const SESSION: &str = r#"{"harness":"codex","id":"01a2","generation":1,"state":"live","source_path":"/s","cwd":null,"parts":1,"source_bytes":1,"stored_bytes":1,"pending_bytes":0,"redactions":{},"started_at":null,"last_stored_at":null,"ended_at":null,"problem":null}"#;

fn replay(chunks: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ntracecraft-protocol: 1\r\ntracecraft-session: {SESSION}\r\ntransfer-encoding: chunked\r\n\r\n{chunks}").into_bytes()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn each_verb_asks_for_its_route() {
    let refusal = http("503 Service Unavailable", "", r#"{"code":"unavailable","message":"no"}"#);
    let table: [(&[&str], &str); 10] = [
        (&["status"], "GET /v1/status HTTP/1.1"),
        (&["list"], "GET /v1/sessions HTTP/1.1"),
        (&["watch"], "GET /v1/events HTTP/1.1"),
        (&["show", "codex/a%~@"], "GET /v1/sessions/codex%2Fa%25~@/content HTTP/1.1"),
        (
            &["show", "a", "--raw", "--tail", "3", "--generation", "2"],
            "GET /v1/sessions/a/content?tail=3&generation=2 HTTP/1.1",
        ),
        (&["compact", "a", "--keep-tail", "4"], "POST /v1/sessions/a/compact?keep_tail=4 HTTP/1.1"),
        (&["stop", "a"], "POST /v1/sessions/a/stop HTTP/1.1"),
        (&["start", "a"], "POST /v1/sessions/a/start HTTP/1.1"),
        (&["flush"], "POST /v1/flush HTTP/1.1"),
        (&["flush", "a"], "POST /v1/sessions/a/flush HTTP/1.1"),
    ];
    for (arguments, expected) in table {
        let (output, asked) = ask(arguments, &refusal);
        assert_eq!(asked, expected);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert_eq!(text(&output.stdout), "");
        assert_eq!(text(&output.stderr), "tracecraftctl: no\n");
    }
}

#[test]
fn an_answer_is_data_on_standard_output_and_nothing_else() {
    let (output, _) = ask(&["flush"], &http("200 OK", "", r#"{"sessions":3,"parts":0,"bytes":0}"#));
    assert_eq!(text(&output.stdout), "everything was stored already (3 sessions looked at)\n");
    let (output, _) = ask(&["stop", "a", "--json"], &http("200 OK", "", SESSION));
    assert!(text(&output.stdout).contains("\"id\": \"01a2\""));
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}

#[test]
fn failures_have_their_exit_codes_and_say_what_to_try() {
    let no_such =
        http("404 Not Found", "", r#"{"code":"no_such_session","message":"no session x"}"#);
    let (output, _) = ask(&["show", "x"], &no_such);
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).starts_with("tracecraftctl: no session x\ntry: "));
    let ambiguous = http("409 Conflict", "", r#"{"code":"ambiguous_id","message":"x1, x2"}"#);
    let (output, _) = ask(&["stop", "x", "--json"], &ambiguous);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stdout).contains("\"code\": \"ambiguous_id\""));
    let newer =
        b"HTTP/1.1 400 Bad Request\r\ntracecraft-protocol: 9\r\ncontent-length: 2\r\n\r\n{}";
    let (output, _) = ask(&["status"], newer);
    assert_eq!(output.status.code(), Some(5));
    assert!(text(&output.stderr).contains("newer"));

    let scratch = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| ctl(scratch.path()).args(arguments).output().unwrap();
    let nobody = scratch.path().join("none").display().to_string();
    let output = run(&["status", "--socket", &nobody]);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        text(&output.stderr).contains("\ntry: `tracecraftctl service install`"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(run(&["--frobnicate"]).status.code(), Some(2));
    let help = run(&["show", "--help"]);
    assert_eq!((help.status.code(), text(&help.stderr)), (Some(0), ""));
}

#[test]
fn a_replay_is_byte_for_byte_and_a_broken_one_is_a_failure() {
    let (output, _) =
        ask(&["show", "a", "--raw"], &replay("4\r\n{\"\u{1b}\n\r\n2\r\n\n\n\r\n0\r\n\r\n"));
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"{\"\x1b\n\n\n"[..]));
    let (output, _) = ask(&["show", "a", "--raw"], &replay("4\r\nabc\n\r\n"));
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(1), &b"abc\n"[..]));
    assert!(text(&output.stderr).contains("not the whole"));
    let (output, _) = ask(&["show", "a"], &replay("3\r\n{}\n\r\n"));
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("the rest did not come"));
}

#[test]
fn compaction_streams_its_progress_and_exits_by_its_outcome() {
    let working = r#"{"event":"working","done_bytes":1,"total_bytes":2}"#;
    let done = r#"{"event":"done","parts_before":3,"parts_after":1,"merged_bytes":1024}"#;
    let both = format!("{working}\n{done}\n");
    let (output, _) = ask(&["compact", "a"], &http("200 OK", "", &both));
    assert_eq!(text(&output.stdout), "merged 1.0 KiB from 3 parts into 1 part\n");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    let (output, _) = ask(&["compact", "a", "--json"], &http("200 OK", "", &both));
    assert_eq!(text(&output.stdout), both);
    let failed = r#"{"event":"failed","error":{"code":"store","message":"it is full"}}"#;
    let (output, _) = ask(&["compact", "a", "--json"], &http("200 OK", "", &format!("{failed}\n")));
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), &*format!("{failed}\n")));
    let (output, _) = ask(&["compact", "a"], &http("200 OK", "", working));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_reader_that_has_had_enough_is_no_failure() {
    let scratch = tempfile::tempdir().unwrap();
    let socket = scratch.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut child = ctl(scratch.path())
        .args(["show", "a", "--raw", "--socket"])
        .arg(&socket)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let (mut stream, _) = listener.accept().unwrap();
    read_head(&mut stream);
    let line = "x".repeat(0x10000) + "\n";
    let chunk = format!("10001\r\n{line}\r\n");
    let mut sent = stream.write_all(&replay(""));
    // More than all the buffers between here and there.
    for _ in 0..256 {
        sent = sent.and_then(|()| stream.write_all(chunk.as_bytes()));
    }
    drop(stream);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}
