//! What goes on can be followed: the stream of events, `tracecraftctl watch`, the page for monitoring, and the log in its forms.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::daemon::{Daemon, ctl, ctl_ok, status};
use crate::support::home::Home;
use crate::support::planted::Planted;
use crate::support::wait_for;
use crate::support::writers::Transcript;

/// `tracecraftctl watch` with its output in files, ended with the test.
struct Watch {
    child: Child,
    said: PathBuf,
}

impl Watch {
    fn start(home: &Home, name: &str, arguments: &[&str]) -> Watch {
        let said = home.path().join(name);
        let mut command = home.tracecraftctl();
        command.arg("watch").args(arguments).stdin(Stdio::null());
        command.stdout(File::create(&said).unwrap()).stderr(Stdio::null());
        Watch { child: command.spawn().unwrap(), said }
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    /// The whole lines so far, of `--json`.
    fn events(&self) -> Vec<Value> {
        let text = self.text();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    fn wait_for(&self, what: &str, matches: impl Fn(&Value) -> bool) -> Value {
        wait_for(what, || self.events().into_iter().find(|event| matches(event)))
    }

    fn signal(&mut self, signal: Signal) -> Option<i32> {
        kill_process(Pid::from_raw(self.child.id().cast_signed()).unwrap(), signal).unwrap();
        wait_for("watch to end", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks the daemon by hand; answers head and body.
fn get(home: &Home, path: &str) -> (String, String) {
    let mut stream = UnixStream::connect(home.socket()).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_lowercase(), body.to_owned())
}

/// A metric's value on a page.
fn value(page: &str, series: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in:\n{page}")).parse().unwrap()
}

fn is(event: &Value, kind: &str) -> bool {
    event["event"] == kind
}

#[test]
fn what_happens_is_told_as_it_happens_and_the_stream_ends_with_the_daemon() {
    let home = Home::new();
    let planted = Planted::exact_only(1);
    let mut daemon = Daemon::start(&home, &["--interval", "100ms"]);
    let mut watch = Watch::start(&home, "watch.jsonl", &["--json"]);
    let first = watch.wait_for("a snapshot", |event| is(event, "status"));
    assert_eq!(first["status"]["pid"], daemon.pid());
    assert!(first["status"]["usage"]["resident_bytes"].as_u64().unwrap() > 1 << 20);
    let mut one = Transcript::new(&home, "codex", 1, 7);
    one.grow(&planted, 3);
    let mine = |event: &Value, kind: &str| is(event, kind) && event["id"] == one.id.as_str();
    watch.wait_for("the session to be found", |event| mine(event, "found"));
    let stored = watch.wait_for("a part to be stored", |event| mine(event, "stored"));
    assert_eq!(stored["harness"], "codex");
    assert!(stored["seq"].is_u64() && stored["bytes"].as_u64() > Some(0), "{stored}");
    watch.wait_for("a snapshot that knows of it", |event| {
        let status = &event["status"];
        status["sessions"]["total"] == 1 && status["last_flush_at"].is_string()
    });
    assert_eq!(daemon.term().code(), Some(0));
    watch.wait_for("the end to be told", |event| event["phase"] == "stopping");
    // Another daemon is followed as the first was.
    let mut again = Daemon::start(&home, &["--interval", "100ms"]);
    watch.wait_for("a snapshot of the next one", |event| event["status"]["pid"] == again.pid());
    assert_eq!(watch.signal(Signal::INT), Some(0));
    assert_eq!(again.term().code(), Some(0));
    assert_eq!(planted.found_in(watch.text().as_bytes()), [""; 0]);
}

#[test]
fn a_store_that_is_away_is_told_with_the_next_try_and_so_is_its_return() {
    let home = Home::new();
    let planted = Planted::exact_only(1);
    let mut one = Transcript::new(&home, "codex", 1, 7);
    one.grow(&planted, 1);
    home.once();
    let away = home.bucket().with_extension("away");
    fs::rename(home.bucket(), &away).unwrap();
    one.grow(&planted, 1);
    let _daemon = Daemon::start(&home, &["--interval", "100ms"]);
    let watch = Watch::start(&home, "watch.jsonl", &["--json"]);
    watch.wait_for("the problem to be shown, with what waits", |event| {
        let problems = event["status"]["problems"].as_array();
        let is_it = |problem: &Value| {
            problem["code"] == "store_unavailable" && problem["next_try_at"].is_string()
        };
        problems.is_some_and(|all| all.iter().any(is_it))
            && event["status"]["pending"]["parts"].as_u64() > Some(0)
    });
    fs::rename(&away, home.bucket()).unwrap();
    watch.wait_for("its end to be told", |event| {
        is(event, "problem_over") && event["code"] == "store_unavailable"
    });
    watch.wait_for("everything to be stored", |event| {
        is(event, "status") && event["status"]["pending"]["parts"] == 0
    });
}

#[test]
fn without_a_terminal_watch_prints_a_line_an_event() {
    let home = Home::new();
    let _daemon = Daemon::start(&home, &["--interval", "100ms"]);
    let mut watch = Watch::start(&home, "watch.txt", &[]);
    // It listens once the daemon counts it.
    wait_for("watch to listen", || {
        (value(&get(&home, "/metrics").1, "tracecraft_event_listeners") > 0.0).then_some(())
    });
    let mut one = Transcript::new(&home, "claude-code", 1, 7);
    one.grow(&Planted::exact_only(1), 1);
    wait_for("the part", || watch.text().contains(" of claude-code/").then_some(()));
    let text = watch.text();
    assert!(text.contains(&format!("found    claude-code/{}\n", one.id)), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
    assert_eq!(watch.signal(Signal::TERM), Some(0));
}

#[test]
fn watch_ends_with_3_when_no_daemon_is_there_at_the_start() {
    let home = Home::new();
    let output = ctl(&home, &["watch"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("\ntry: `tracecraftctl service install`")
    );
}

#[test]
fn a_reader_of_watch_that_goes_away_is_no_failure() {
    let home = Home::new();
    let _daemon = Daemon::start(&home, &["--interval", "100ms"]);
    let mut command = home.tracecraftctl();
    command.args(["watch", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    reader.read_line(&mut String::new()).unwrap();
    drop(reader);
    Transcript::new(&home, "codex", 1, 7).grow(&Planted::exact_only(1), 1);
    let status = wait_for("watch to end", || child.try_wait().unwrap());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((status.code(), said.as_str()), (Some(0), ""));
}

#[test]
fn listeners_are_few_and_a_place_is_free_again_when_one_goes() {
    let home = Home::new();
    let _daemon = Daemon::start(&home, &[]);
    let path = home.socket();
    let listen = || {
        let mut stream = UnixStream::connect(&path).unwrap();
        write!(stream, "GET /v1/events HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        let mut head = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut head).unwrap();
        (stream, head.contains(" 200 "))
    };
    let mut held = Vec::new();
    let refused = (0..64).find(|_| {
        let (stream, admitted) = listen();
        held.push(stream);
        !admitted
    });
    assert_eq!(refused, Some(16), "every one was admitted");
    held.clear();
    wait_for("a place", || listen().1.then_some(()));
    assert!(status(&home).is_some());
}

#[test]
fn monitoring_reads_what_was_done_and_nothing_of_whom() {
    let home = Home::new();
    let planted = Planted::exact_only(1);
    let mut one = Transcript::new(&home, "codex", 1, 7);
    one.grow(&planted, 40);
    let _daemon = Daemon::start(&home, &["--interval", "100ms"]);
    ctl_ok(&home, &["flush"]);
    let (head, page) = get(&home, "/metrics");
    assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    assert_eq!(value(&page, "tracecraft_up"), 1.0);
    assert_eq!(value(&page, "tracecraft_phase{phase=\"recording\"}"), 1.0);
    assert_eq!(value(&page, "tracecraft_pending_parts"), 0.0);
    let stored = value(&page, "tracecraft_stored_parts_total");
    assert!(stored >= 1.0 && stored == value(&page, "tracecraft_captured_parts_total"), "{page}");
    assert!(value(&page, "tracecraft_stored_bytes_total") > 100.0);
    assert!(value(&page, "tracecraft_scans_total") >= 1.0);
    assert!(value(&page, "tracecraft_store_requests_total{kind=\"put\"}") >= 2.0);
    assert!(value(&page, "tracecraft_process_resident_memory_bytes") > 1e6);
    assert!(value(&page, "tracecraft_process_open_fds") > 3.0);
    assert!(!page.contains(&one.id) && !page.contains(&*home.path().to_string_lossy()), "{page}");
}

/// Runs the daemon once with its log in a file, as a manager that has a journal would if `journal` says so.
fn log_of(home: &Home, arguments: &[&str], journal: impl Fn(&Path) -> Option<String>) -> String {
    let path = home.path().join("log");
    let file = File::create(&path).unwrap();
    let mut command: Command = home.tracecraftd();
    command.args(["--log", "debug", "--once"]).args(arguments).stdout(Stdio::null());
    command.stderr(file);
    command.env_remove("JOURNAL_STREAM");
    if let Some(stream) = journal(&path) {
        command.env("JOURNAL_STREAM", stream);
    }
    assert!(command.status().unwrap().success());
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_journal_gets_priorities_and_no_times_and_only_if_it_is_the_journal() {
    let home = Home::new();
    Transcript::new(&home, "codex", 1, 7).grow(&Planted::exact_only(1), 1);
    let stream = |path: &Path| {
        let meta = fs::metadata(path).unwrap();
        Some(format!("{}:{}", meta.dev(), meta.ino()))
    };
    let log = log_of(&home, &[], stream);
    assert!(log.lines().count() > 0);
    for line in log.lines() {
        let (priority, rest) = line.split_at(3);
        assert!(["<3>", "<4>", "<6>", "<7>"].contains(&priority), "{line}");
        assert!(!rest.starts_with(|c: char| c.is_ascii_digit()), "a time: {line}");
    }
    // Inherited by a process whose output goes elsewhere.
    let log = log_of(&home, &[], |_| Some("1:2".to_owned()));
    assert!(log.lines().all(|line| line.starts_with(|c: char| c.is_ascii_digit())), "{log}");
}

#[test]
fn a_log_for_programs_is_a_json_document_a_line() {
    let home = Home::new();
    Transcript::new(&home, "codex", 1, 7).grow(&Planted::exact_only(1), 1);
    let log = log_of(&home, &["--log-format", "json"], |_| None);
    assert!(log.lines().count() > 0);
    for line in log.lines() {
        let entry: Value = serde_json::from_str(line).expect(line);
        assert!(entry["level"].is_string() && entry["timestamp"].is_string(), "{line}");
        assert!(entry["fields"]["message"].is_string(), "{line}");
    }
}

#[test]
fn a_log_format_that_is_none_is_refused_with_what_to_write() {
    let home = Home::new();
    let output = home.tracecraftd().args(["--log-format", "jsno", "--check"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("is neither text nor json") && said.contains("did you mean json?"),
        "{said}"
    );
    let checked = home.tracecraftd().env("TRACECRAFT_LOG_FORMAT", "json").arg("--check").output();
    let checked = String::from_utf8(checked.unwrap().stdout).unwrap();
    let row = checked.lines().find(|line| line.starts_with("log_format ")).unwrap();
    assert!(row.ends_with("environment TRACECRAFT_LOG_FORMAT"), "{row}");
}
