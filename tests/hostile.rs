//! A hostile bucket: manifests that somebody else wrote to hurt whoever reads them. They are named and left alone, nothing
//! outside the bucket is read or written, and all other sessions are mirrored.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::daemon::{Daemon, ctl, status};
use crate::support::home::{Home, said};
use crate::support::judge;
use crate::support::oracle::Bucket;
use crate::support::planted::{Planted, record};
use crate::support::writers::Transcript;

/// The session that the hostile manifest speaks for, and a good one beside it.
const VICTIM: &str = "bad00000-0000-4000-8000-00000000dead";

struct Scene {
    home: Home,
    good: Transcript,
    planted: Planted,
    canary: PathBuf,
}

impl Scene {
    /// The victim's source exists on this machine, and so does a file that the manifest points at.
    fn new() -> Scene {
        let home = Home::new();
        let planted = Planted::exact_only(13);
        let mut good = Transcript::new(&home, "claude-code", 1, 13);
        good.grow(&planted, 3);
        let canary = home.path().join("canary.jsonl");
        fs::write(&canary, b"{\"canary\":\"must not be read\"}\n").unwrap();
        home.place(
            &home.claude_code("/w", VICTIM),
            &record("claude-code", VICTIM, "/w", 1, "hello"),
        );
        Scene { home, good, planted, canary }
    }

    fn plant(&self, manifest: &[u8]) -> PathBuf {
        let path = self.home.bucket().join("sessions/claude-code").join(VICTIM).join("meta.json");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, manifest).unwrap();
        path
    }

    /// Everything but the victim is as it should be.
    fn unharmed(&self, case: &str) {
        let bucket = Bucket::read_one(&self.home.bucket(), "claude-code", &self.good.id);
        let sources = [self.good.source(&self.planted)];
        judge::verdict(judge::at_rest(&bucket, &sources))
            .unwrap_or_else(|why| panic!("{case}: {why}"));
        let canary =
            fs::read(&self.canary).unwrap_or_else(|_| panic!("{case}: the canary is gone"));
        assert_eq!(canary, b"{\"canary\":\"must not be read\"}\n", "{case}");
        let strange = ["escaped", "passwd", "pwned"];
        let files = crate::support::home::files_below(self.home.path());
        let found = files.iter().find(|(path, _)| strange.iter().any(|s| path.ends_with(s)));
        assert!(found.is_none(), "{case}: {found:?}");
    }
}

fn manifest(parts: Value) -> Value {
    json!({"schema_version": 1, "harness": "claude-code", "session_id": VICTIM, "source_path": "/x",
        "cwd": "/w", "started_at": "2026-01-02T03:04:05Z", "last_uploaded_at": "2026-01-02T03:04:05Z",
        "ended_at": null, "total_source_bytes": 10, "total_uploaded_bytes": 10, "redaction_counts": {},
        "next_seq": 1, "parts": parts})
}

fn entry(seq: Value, uuid: Value, range: Value) -> Value {
    json!({"seq": seq, "uuid": uuid, "cursor_range": range, "source_bytes": 10, "uploaded_bytes": 10,
        "redactions": {}, "uploaded_at": "2026-01-02T03:04:05Z"})
}

/// Manifests that are not what they should be, each with a name for messages.
fn hostile() -> Vec<(&'static str, Vec<u8>)> {
    let uuid = || json!("0123abcd");
    let range = || json!([0, 10]);
    let one = |seq, uuid, range| manifest(json!([entry(seq, uuid, range)]));
    let up = json!("../../../../../canary");
    let mut cases: Vec<(&str, Value)> = vec![
        ("seq too large for any name", one(json!(u64::MAX), uuid(), range())),
        ("seq of six digits", one(json!(100_000), uuid(), range())),
        ("negative seq", one(json!(-1), uuid(), range())),
        ("seq that is a text", one(json!("0"), uuid(), range())),
        ("seq that is a fraction", one(json!(0.5), uuid(), range())),
        ("uuid that is a path", one(json!(0), up, range())),
        ("uuid with a slash", one(json!(0), json!("a/../b/c"), range())),
        ("uuid with an escape", one(json!(0), json!("\u{1b}[2J\u{7}ab"), range())),
        ("uuid with a NUL", one(json!(0), json!("0123\u{0}abc"), range())),
        ("uuid that is too long", one(json!(0), json!("a".repeat(100_000)), range())),
        ("uuid that is a number", one(json!(0), json!(12345678), range())),
        ("range that goes back", one(json!(0), uuid(), json!([10, 0]))),
        ("range beyond all numbers", one(json!(0), uuid(), json!([u64::MAX - 1, u64::MAX]))),
        ("range of one number", one(json!(0), uuid(), json!([0]))),
        ("parts that are no list", manifest(json!("none"))),
        (
            "two parts with one number",
            manifest(json!([
                entry(json!(0), uuid(), range()),
                entry(json!(0), json!("89abcdef"), json!([10, 20]))
            ])),
        ),
        ("a list", json!([1, 2, 3])),
    ];
    let mut next = manifest(json!([]));
    next["next_seq"] = json!(u64::MAX);
    cases.push(("next_seq beyond all numbers", next));
    let mut totals = manifest(json!([]));
    totals["total_source_bytes"] = json!(u64::MAX);
    cases.push(("totals beyond all numbers", totals));
    let mut other = manifest(json!([]));
    other["session_id"] = json!("../../escaped");
    cases.push(("another session's id", other));
    let mut cases: Vec<_> =
        cases.into_iter().map(|(name, value)| (name, value.to_string().into_bytes())).collect();
    cases.push(("no JSON", b"{\"schema_version\": 1,".to_vec()));
    cases.push(("nothing", Vec::new()));
    cases.push(("binary", vec![0xff; 1000]));
    cases.push(("deep", [b"[".repeat(100_000), b"]".repeat(100_000)].concat()));
    cases
}

#[test]
fn a_hostile_manifest_is_survived_and_all_others_are_mirrored() {
    let mut unnamed = Vec::new();
    for (case, bytes) in hostile() {
        let scene = Scene::new();
        let path = scene.plant(&bytes);
        let output = scene.home.once_with(&[]);
        let text = said(&output);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{case}: {text}");
        assert!(!text.contains("panicked"), "{case}: {text}");
        assert!(
            !output.stderr.contains(&0x1b) && !output.stdout.contains(&0x1b),
            "{case}: an escape came through"
        );
        assert!(path.exists(), "{case}: the manifest was removed");
        scene.unharmed(case);
        if !text.contains(VICTIM) && fs::read(&path).unwrap() == bytes {
            unnamed.push(case);
        }
    }
    // Whoever cannot use a manifest says so; whoever can has made it whole.
    assert!(unnamed.is_empty(), "passed over without a word: {unnamed:?}");
}

#[test]
fn a_hostile_manifest_does_not_stop_a_daemon_nor_its_client() {
    let scene = Scene::new();
    scene.plant(&hostile()[0].1);
    let escape = "\u{1b}]0;pwned\u{7}";
    let mut foreign = manifest(json!([]));
    foreign["session_id"] = json!("foreign");
    foreign["cwd"] = json!(escape);
    foreign["source_path"] = json!(format!("/x/{escape}"));
    let dir = scene.home.bucket().join("sessions/claude-code/foreign");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("meta.json"), foreign.to_string()).unwrap();
    let mut daemon = Daemon::start(&scene.home, &["--interval", "100ms"]);
    ctl(&scene.home, &["flush"]);
    for verb in
        [&["list"][..], &["status"], &["show", "foreign"], &["show", VICTIM], &["compact", VICTIM]]
    {
        let output = ctl(&scene.home, verb);
        assert!(
            !output.stdout.contains(&0x1b) && !output.stderr.contains(&0x1b),
            "{verb:?}: an escape came through"
        );
        assert!(!said(&output).contains("panicked"), "{verb:?}: {}", said(&output));
    }
    scene.unharmed("live");
    assert!(status(&scene.home).is_some());
    assert_eq!(daemon.term().code(), Some(0), "{}", daemon.said());
}

#[test]
fn strange_objects_in_the_bucket_are_left_alone() {
    let scene = Scene::new();
    let sessions = scene.home.bucket().join("sessions");
    let odd = [
        sessions.join("claude-code").join(VICTIM).join("part-00000-zzzzzzzz.jsonl"),
        sessions.join("claude-code").join(VICTIM).join("part-0-0123abcd.jsonl"),
        sessions.join("claude-code").join(VICTIM).join("notes.txt"),
        sessions.join("claude-code/just-a-file"),
        sessions.join("no-such-harness/some-id/meta.json"),
        scene.home.bucket().join("memory/elsewhere.json"),
    ];
    for path in &odd {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"not ours").unwrap();
    }
    let output = scene.home.once();
    assert!(!said(&output).contains("panicked"));
    scene.unharmed("strange objects");
    for path in &odd {
        assert_eq!(fs::read(path).unwrap(), b"not ours", "{}", path.display());
    }
}
