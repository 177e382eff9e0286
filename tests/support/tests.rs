//! Tests of the tests: the oracle, the judge, the planted secrets, the writers and the gates must notice what they are for.

#![cfg(test)]

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::home::Home;
use super::judge::{self, Source};
use super::oracle::Bucket;
use super::planted::{Planted, Rule, record};
use super::strace;
use super::writers::Transcript;

const ONE: &[u8] = b"{\"n\":1}\n";
const TWO: &[u8] = b"{\"n\":22}\n";
const THREE: &[u8] = b"{\"n\":333}\n";

/// A bucket made by hand with one session `codex/a` of three parts, which a case then spoils.
struct Made {
    home: Home,
    manifest: Value,
}

impl Made {
    fn sound() -> Made {
        let home = Home::new();
        let mut made = Made { home, manifest: Value::Null };
        let mut entries = Vec::new();
        let mut end = 0;
        for (seq, body) in [(0, ONE), (1, TWO), (2, THREE)] {
            made.put(seq, body);
            let to = end + body.len();
            entries.push(json!({"seq": seq, "uuid": digest(body), "cursor_range": [end, to],
                "source_bytes": body.len(), "uploaded_bytes": body.len(), "redactions": {},
                "uploaded_at": "2026-01-02T03:04:05Z"}));
            end = to;
        }
        made.manifest = json!({"schema_version": 1, "harness": "codex", "session_id": "a",
            "source_path": "/x", "started_at": "2026-01-02T03:04:05Z",
            "last_uploaded_at": "2026-01-02T03:04:05Z", "ended_at": null, "total_source_bytes": end,
            "total_uploaded_bytes": end, "redaction_counts": {}, "next_seq": 3, "parts": entries});
        made
    }

    fn dir(&self) -> PathBuf {
        self.home.bucket().join("sessions/codex/a")
    }

    fn name(seq: u64, body: &[u8]) -> String {
        format!("part-{seq:05}-{}.jsonl", digest(body))
    }

    fn put(&self, seq: u64, body: &[u8]) {
        fs::create_dir_all(self.dir()).unwrap();
        fs::write(self.dir().join(Made::name(seq, body)), body).unwrap();
    }

    fn remove(&self, seq: u64, body: &[u8]) {
        fs::remove_file(self.dir().join(Made::name(seq, body))).unwrap();
    }

    fn read(&self) -> Bucket {
        fs::write(self.dir().join("meta.json"), self.manifest.to_string()).unwrap();
        Bucket::read(&self.home.bucket())
    }

    /// Complaints at rest and between kill and restart.
    fn complaints(&self) -> (String, String) {
        let bucket = self.read();
        let sources = [source(&[&[ONE, TWO, THREE].concat()])];
        (
            judge::at_rest(&bucket, &sources).join("\n"),
            judge::interrupted(&bucket, &sources).join("\n"),
        )
    }
}

fn digest(body: &[u8]) -> String {
    Sha256::digest(body).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}

fn source(lives: &[&[u8]]) -> Source {
    let generations = lives.iter().map(|life| life.to_vec()).collect();
    Source { harness: "codex", id: "a".into(), generations, gone: false }
}

#[test]
fn the_oracle_has_no_complaint_about_a_sound_bucket() {
    assert_eq!(Made::sound().complaints(), (String::new(), String::new()));
}

#[test]
fn the_oracle_sees_a_gap_an_overlap_and_their_bytes() {
    let mut made = Made::sound();
    made.manifest["parts"][1]["cursor_range"] = json!([9, 18]);
    assert_eq!(made.read().gap_and_overlap(), (1, 1));
    assert!(made.complaints().1.contains("codex/a: gap of 1 bytes at source byte 8"));
    made.manifest["parts"][1]["cursor_range"] = json!([7, 17]);
    assert_eq!(made.read().gap_and_overlap(), (0, 1));
    assert!(made.complaints().1.contains("overlap of 1 bytes at source byte 7"));
}

#[test]
fn the_oracle_sees_a_named_part_that_is_missing() {
    let made = Made::sound();
    made.remove(1, TWO);
    assert!(made.complaints().1.contains("is named and not there, at source byte 8"));
}

#[test]
fn the_oracle_sees_an_entry_that_is_doubled_or_out_of_order() {
    let mut made = Made::sound();
    let doubled = made.manifest["parts"][2].clone();
    made.manifest["parts"].as_array_mut().unwrap().push(doubled);
    assert!(made.complaints().1.contains("out of order or doubled"));
}

#[test]
fn the_oracle_sees_a_part_whose_bytes_are_not_those_of_its_name() {
    let made = Made::sound();
    fs::write(made.dir().join(Made::name(1, TWO)), b"{\"n\":23}\n").unwrap();
    assert!(made.complaints().1.contains("holds bytes with the digest"));
}

#[test]
fn the_oracle_sees_totals_and_counts_that_do_not_add_up() {
    for (field, value) in [
        ("total_source_bytes", json!(1)),
        ("total_uploaded_bytes", json!(1)),
        ("redaction_counts", json!({"hf_token": 1})),
        ("next_seq", json!(2)),
        ("session_id", json!("b")),
        ("last_uploaded_at", Value::Null),
    ] {
        let mut made = Made::sound();
        made.manifest[field] = value;
        assert!(made.complaints().1.contains(field), "{field} was not noticed");
    }
}

#[test]
fn a_part_stored_before_its_manifest_is_read_and_is_no_rest() {
    let mut made = Made::sound();
    made.manifest["parts"].as_array_mut().unwrap().pop();
    made.manifest["next_seq"] = json!(2);
    made.manifest["total_source_bytes"] = json!(17);
    made.manifest["total_uploaded_bytes"] = json!(17);
    let (at_rest, interrupted) = made.complaints();
    assert_eq!(interrupted, "");
    assert!(at_rest.contains("is in no manifest"));
}

#[test]
fn a_leftover_is_allowed_between_kill_and_restart_only() {
    let mut made = Made::sound();
    let merged = [ONE, TWO].concat();
    made.put(0, &merged);
    let entries = made.manifest["parts"].as_array_mut().unwrap();
    entries.remove(0);
    entries[0] = json!({"seq": 0, "uuid": digest(&merged), "cursor_range": [0, 17], "compacted_from": 2,
        "source_bytes": 17, "uploaded_bytes": 17, "redactions": {}});
    let (at_rest, interrupted) = made.complaints();
    assert_eq!(interrupted, "");
    assert!(at_rest.contains("was left over"));
    made.remove(0, ONE);
    made.remove(1, TWO);
    assert_eq!(made.complaints(), (String::new(), String::new()));
}

#[test]
fn the_listing_reader_notices_a_merge_in_the_wrong_place() {
    let mut made = Made::sound();
    let merged = [ONE, TWO].concat();
    made.remove(0, ONE);
    made.remove(1, TWO);
    made.put(3, &merged);
    let entries = made.manifest["parts"].as_array_mut().unwrap();
    entries.truncate(0);
    entries.push(
        json!({"seq": 3, "uuid": digest(&merged), "cursor_range": [0, 17], "compacted_from": 2,
        "source_bytes": 17, "uploaded_bytes": 17, "redactions": {}}),
    );
    entries.push(
        json!({"seq": 2, "uuid": digest(THREE), "cursor_range": [17, 27], "source_bytes": 10,
        "uploaded_bytes": 10, "redactions": {}}),
    );
    made.manifest["next_seq"] = json!(4);
    assert!(made.complaints().1.contains("out of order"));
    assert!(made.complaints().1.contains("listing's reader departs"));
}

#[test]
fn the_judge_sees_missing_doubled_and_foreign_content() {
    let bucket = Made::sound().read();
    let whole = [ONE, TWO, THREE].concat();
    let complaint = |source: Source| judge::at_rest(&bucket, &[source]).join("\n");
    assert!(
        complaint(source(&[&[ONE, TWO, THREE, ONE].concat()])).contains("up to stored byte 27")
    );
    assert!(complaint(source(&[&[ONE, THREE].concat()])).contains("up to stored byte"));
    assert!(complaint(source(&[&whole, &whole])).contains("1 generations stored"));
    let mut other = source(&[&whole]);
    other.id = "b".into();
    assert!(complaint(other.clone()).contains("codex/b: not in the bucket"));
    assert!(complaint(other).contains("codex/a: no source has this id"));
}

#[test]
fn the_judge_takes_only_record_aligned_pieces_for_an_earlier_life() {
    let bucket = Made::sound().read();
    let more = [ONE, TWO, THREE, ONE].concat();
    assert_eq!(judge::interrupted(&bucket, &[source(&[&more])]), Vec::<String>::new());
    let torn = [ONE, TWO, b"{\"n\":333}\n,,,\n"].concat();
    assert_eq!(judge::interrupted(&bucket, &[source(&[&torn])]), Vec::<String>::new());
    let cut = [&b"{\"n\":1}\n{\"n\":22}\n{\"n\":333}"[..], b"   \n"].concat();
    assert!(!judge::interrupted(&bucket, &[source(&[&cut])]).is_empty());
}

#[test]
fn every_planted_secret_is_noticed_when_it_stays() {
    let planted = Planted::every_pattern(7);
    for secret in &planted.secrets {
        let line = record("claude-code", "id", "/w", 1, &format!("x {} end", secret.whole));
        let expected = planted.expected(&line);
        assert_eq!(expected.secrets().count(), 1, "{}", secret.name);
        assert!(expected.difference(&line).is_some(), "{} stayed unnoticed", secret.name);
        assert_eq!(planted.found_in(&line), [secret.name]);
        let marker =
            format!("[REDACTED:{}]", if secret.rule == Rule::Exact { secret.name } else { "any" });
        let text = String::from_utf8(line).unwrap();
        let good = text.replace(&secret.whole, &marker);
        assert_eq!(expected.difference(good.as_bytes()), None, "{}", secret.name);
        let broken = good.replace("end", "End");
        assert!(expected.difference(broken.as_bytes()).is_some());
        assert!(
            serde_json::from_str::<Value>(&text).is_ok()
                && !planted.found_in(text.as_bytes()).is_empty()
        );
    }
}

#[test]
fn writers_log_exactly_what_their_files_hold() {
    let home = Home::new();
    let planted = Planted::exact_only(3);
    for (number, harness) in ["claude-code", "codex", "openclaw"].into_iter().enumerate() {
        let mut transcript = Transcript::new(&home, harness, number as u64, 3);
        let same =
            |t: &Transcript| assert_eq!(&fs::read(&t.path).unwrap(), t.lives.last().unwrap());
        transcript.grow(&planted, 20);
        transcript.burst(&planted, 5, Duration::ZERO);
        same(&transcript);
        transcript.truncate();
        transcript.grow(&planted, 2);
        same(&transcript);
        transcript.replace(&planted);
        same(&transcript);
        transcript.move_to(&home.claude_code("/elsewhere", "x"));
        same(&transcript);
        assert_eq!(transcript.lives.len(), 3);
        let lines = transcript.lives.concat();
        let lines = lines.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        lines.for_each(|line| drop(serde_json::from_slice::<Value>(line).unwrap()));
        assert!(!planted.found_in(&transcript.lives[0]).is_empty());
        assert!(planted.found_in(&transcript.source(&planted).generations[0]).is_empty());
        transcript.delete();
        assert!(!transcript.path.exists());
    }
}

#[test]
fn keys_of_working_directories_are_those_of_claude_code() {
    let home = Home::new();
    let path = home.claude_code("/Users/x/.config/a_b é𝄞", "s");
    assert!(path.ends_with("projects/-Users-x--config-a-b----/s.jsonl"), "{}", path.display());
}

#[test]
fn a_gate_is_a_call_that_changes_something_below_the_directory() {
    for (line, gate) in [
        ("12 openat(AT_FDCWD</x>, \"/h/.local/a\", O_WRONLY|O_CREAT, 0600", true),
        ("12 openat(AT_FDCWD</x>, \"/h/.local/a\", O_RDONLY|O_CLOEXEC) = 3", false),
        ("12 openat(AT_FDCWD</x>, \"/elsewhere\", O_WRONLY|O_CREAT, 0600) = 4", false),
        ("12 write(4</h/.local/a>, \"\"..., 12 <unfinished ...>", true),
        ("12 <... write resumed>) = 12", false),
        ("12 rename(\"/h/.local/a\", \"/h/.local/b\") = 0", true),
        ("12 --- SIGCHLD {si_signo=SIGCHLD} ---", false),
        ("", false),
    ] {
        assert_eq!(strace::is_gate(line, "/h/.local"), gate, "{line}");
    }
}

#[test]
fn a_program_is_killed_at_the_gate_that_was_asked_for() {
    if let Err(why) = strace::usable() {
        return super::skipped("a_program_is_killed_at_the_gate_that_was_asked_for", &why);
    }
    let home = Home::new();
    let dir = home.path().join(".local");
    fs::create_dir_all(&dir).unwrap();
    let mut shell = home.command("sh");
    let script = "for n in 1 2 3 4 5 6 7 8 9; do mkdir $HOME/.local/$n; done";
    shell.args(["-c", script]);
    let (mut command, mut record) = strace::traced(&home, &shell, true);
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    super::wait_for("the fourth gate", || (record.gates() >= 4).then_some(()));
    // The shell's own process is what was spawned; the child that waits at the gate is ended with its directory not made.
    child.kill().unwrap();
    child.wait().unwrap();
    let made = fs::read_dir(&dir).unwrap().count();
    assert!(
        (3..=5).contains(&made),
        "{made} directories were made before the kill at the fourth gate"
    );
}
