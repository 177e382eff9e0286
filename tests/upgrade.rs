//! What a new version owes to the released ones: their state, their outbox and their answers are read without loss.
//!
//! `tests/golden/released/VERSION` is what that version left, written once by the released program and never anew: a home whose
//! daemon was killed while its store was away (`@HOME@` stands for the home), and its answers on the control socket. Knows
//! the documented interface only, as all tests here.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::support::daemon::sessions_of;
use crate::support::home::{Home, age, files_below, run, said};
use crate::support::oracle::Bucket;

/// In place of the home in the files of a release.
const HOME: &str = "@HOME@";

/// Where the folders of a released home belong.
const PLACES: [(&str, &str); 4] = [
    ("claude", ".claude"),
    ("codex", ".codex"),
    ("state", ".local/state/tracecraft"),
    ("bucket", ".local/share/tracecraft/bucket"),
];

fn releases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/released");
    let found: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(!found.is_empty());
    found
}

/// A home as a release left it. Inode numbers and times are others, as after a restored backup.
fn home_of(release: &Path) -> Home {
    let home = Home::new();
    for (folder, place) in PLACES {
        let from = release.join("home").join(folder);
        for (path, bytes) in files_below(&from) {
            let text = String::from_utf8(bytes).unwrap();
            let text = text.replace(HOME, home.path().to_str().unwrap());
            let to = home.path().join(place).join(path.strip_prefix(&from).unwrap());
            home.place(&to, text.as_bytes());
        }
    }
    home
}

#[test]
fn the_state_journal_and_outbox_of_each_release_go_on_without_loss() {
    for release in releases() {
        let home = home_of(&release);
        let before = Bucket::read(home.objects());
        let waiting = files_below(&home.state_dir().join("outbox"));
        assert_eq!(waiting.len(), 1, "the release left a part that waits");
        let told = home.once();
        assert!(said(&told).contains("stored 1 part,"), "{}", said(&told));
        let bucket = Bucket::read(home.objects());
        assert_eq!(bucket.faults_at_rest(), Vec::<String>::new());
        assert_eq!(bucket.gap_and_overlap(), (0, 0));
        assert_eq!(bucket.sessions.len(), before.sessions.len(), "no new generation");
        assert!(files_below(&home.state_dir().join("outbox")).is_empty());
        // Nothing was set aside under a telling name, and the old journal is folded in.
        let set_aside = |path: &Path| path.to_string_lossy().contains("damaged");
        assert!(!files_below(&home.state_dir()).iter().any(|(path, _)| set_aside(path)));
        goes_on(&home);
    }
}

/// What is written from now on follows what the release stored; who was stopped stays so.
fn goes_on(home: &Home) {
    let sources = [".claude/projects", ".codex/sessions"];
    for source in sources {
        let [(path, mut content)] =
            files_below(&home.path().join(source)).try_into().expect("one transcript");
        content.extend_from_slice(b"{\"type\":\"note\",\"timestamp\":\"2026-02-02T00:00:00Z\"}\n");
        home.place(&path, &content);
        age(&path);
    }
    let told = home.once();
    assert!(said(&told).contains("stored 1 part,"), "one goes on: {}", said(&told));
    let bucket = Bucket::read(home.objects());
    assert_eq!(bucket.faults_at_rest(), Vec::<String>::new());
    let claude = bucket.sessions.iter().find(|session| session.harness == "claude-code").unwrap();
    let [(_, source)] = files_below(&home.path().join(".claude/projects")).try_into().unwrap();
    assert_eq!(claude.by_manifest, source, "byte for byte, old parts and new");
}

/// Runs `tracecraftctl` against a daemon that answers one request with this document.
fn told(arguments: &[&str], headers: &str, body: &[u8]) -> Output {
    let home = Home::new();
    let socket = home.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let length = body.len();
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\ntracecraft-protocol: 1\r\n{headers}content-length: {length}\r\n\r\n"
    )
    .into_bytes();
    answer.extend_from_slice(body);
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
            head.push(byte[0]);
        }
        // A client that has read enough may be gone.
        let _ = stream.write_all(&answer);
    });
    let output = run(home.tracecraftctl().arg("--socket").arg(&socket).args(arguments));
    server.join().unwrap();
    output
}

#[test]
fn the_answers_of_each_release_are_read_as_they_were_meant() {
    for release in releases() {
        let read = |name: &str| fs::read(release.join("answers").join(name)).unwrap();
        for (name, arguments) in [
            ("status.json", &["status", "--json"][..]),
            ("status-remote.json", &["status", "--json"]),
            ("sessions.json", &["list", "--json"]),
            ("flushed.json", &["flush", "--json"]),
        ] {
            let output = told(arguments, "", &read(name));
            assert!(output.status.success(), "{name}: {}", said(&output));
            let meant: Value = serde_json::from_slice(&read(name)).unwrap();
            let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(without_additions(&shown, &meant), meant, "{name}");
        }
        let output = told(&["compact", "a", "--json"], "", &until_done(&read("progress.jsonl")));
        assert!(output.status.success(), "{}", said(&output));
    }
}

#[test]
fn the_answers_of_a_later_version_are_read_past_what_is_new_in_them() {
    for release in releases() {
        let text = fs::read(release.join("answers/sessions.json")).unwrap();
        let mut later: Value = serde_json::from_slice(&text).unwrap();
        later["of_tomorrow"] = Value::from("x");
        for session in later["sessions"].as_array_mut().unwrap() {
            session["of_tomorrow"] = serde_json::json!({"nested": [1, 2]});
        }
        let header = "tracecraft-version: 99.0.0\r\n";
        let output = told(&["list", "--json"], header, later.to_string().as_bytes());
        assert!(output.status.success(), "{}", said(&output));
        let known: Value = serde_json::from_slice(&text).unwrap();
        let shown = Value::from(sessions_of(&output.stdout));
        assert!(!shown.to_string().contains("of_tomorrow"), "{shown}");
        assert_eq!(without_additions(&shown, &known["sessions"]), known["sessions"]);
    }
}

/// The stream up to its end: the file shows every kind of line.
fn until_done(lines: &[u8]) -> Vec<u8> {
    let text = std::str::from_utf8(lines).unwrap();
    text.lines()
        .filter(|line| !line.contains("failed"))
        .map(|line| format!("{line}\n"))
        .collect::<String>()
        .into_bytes()
}

/// What was shown, less the fields that the release did not have: those have a default.
fn without_additions(shown: &Value, meant: &Value) -> Value {
    match (shown, meant) {
        (Value::Object(shown), Value::Object(meant)) => shown
            .iter()
            .filter_map(|(name, value)| {
                Some((name.clone(), without_additions(value, meant.get(name)?)))
            })
            .collect(),
        (Value::Array(shown), Value::Array(meant)) if shown.len() == meant.len() => {
            shown.iter().zip(meant).map(|(shown, meant)| without_additions(shown, meant)).collect()
        }
        _ => shown.clone(),
    }
}
