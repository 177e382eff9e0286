//! One `--once` over everything that the agents left: all of it stored, nothing secret in it, and nothing to do again.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::support::daemon::{Daemon, ctl_ok, list};
use crate::support::home::{self, Home, Laid, lay_out_decoys, lay_out_samples, said};
use crate::support::oracle::{Bucket, Stored, snapshot};
use crate::support::planted::{Planted, Rule, header, record};
use crate::support::skipped;

/// Transcripts with every planted secret, three for each harness: as text, in a tool's output, and doubled in one record.
pub(crate) fn lay_out_planted(home: &Home, planted: &Planted) -> Vec<Laid> {
    let mut laid = Vec::new();
    for (harness, number) in [("claude-code", 1), ("codex", 2), ("openclaw", 3)] {
        let own_id = format!("9e2d7c10-0000-4000-8000-{number:012x}");
        let cwd = "/home/dev/works/planted.v2 - odd";
        let mut content = header(harness, &own_id, cwd);
        let mut serial = 0;
        for secret in &planted.secrets {
            serial += 1;
            let text = format!("first {} end\\nof it", secret.whole);
            content.extend(record(harness, &own_id, cwd, serial, &text));
            content.extend(record(harness, &own_id, cwd, serial + 1000, "between two"));
        }
        let (id, path) = match harness {
            "claude-code" => (own_id.clone(), home.claude_code(cwd, &own_id)),
            "codex" => (own_id.clone(), home.codex(&own_id)),
            _ => (format!("main__{own_id}"), home.openclaw(&own_id)),
        };
        home.place(&path, &content);
        laid.push(Laid { harness, id: Some(id), path, content });
    }
    laid
}

/// The one stored session of a source; fails when there is none, or more.
fn stored_of<'a>(bucket: &'a Bucket, laid: &Laid) -> Result<&'a Stored, String> {
    let found = bucket.of_source(laid.harness, &laid.path);
    match found[..] {
        [one] => Ok(one),
        _ => Err(format!("{} is stored as {} sessions", laid.path.display(), found.len())),
    }
}

/// Complaints about one source: its id, its bytes, its counts.
pub(crate) fn complaints_about(bucket: &Bucket, laid: &Laid, planted: &Planted) -> Vec<String> {
    let stored = match stored_of(bucket, laid) {
        Ok(stored) => stored,
        Err(why) => return vec![why],
    };
    let name = format!("{}/{}", stored.harness, stored.id);
    let mut complaints = Vec::new();
    // A session that belongs to another has the other's id, `__`, its own.
    let fits = |id: &String| *id == stored.id || stored.id.ends_with(&format!("__{id}"));
    if !laid.id.as_ref().is_none_or(fits) {
        complaints.push(format!("{name}: the id should be {:?}", laid.id));
    }
    let expected = planted.expected(&laid.content);
    if let Some((at, what)) = expected.difference(&stored.by_manifest) {
        complaints.push(format!("{name}: byte {at}: {what}"));
    }
    let counted = stored.redactions();
    let mut by_name: BTreeMap<&str, u64> = BTreeMap::new();
    let certain = expected.secrets().filter(|secret| secret.rule != Rule::May);
    certain.for_each(|secret| *by_name.entry(secret.name).or_default() += 1);
    for secret in expected.secrets().filter(|secret| secret.rule == Rule::Exact) {
        let says = counted.get(secret.name).copied().unwrap_or_default();
        // A pattern that the documents do not name may share a name with one that they do, so more is allowed.
        if says < expected.count(secret.name) {
            complaints.push(format!("{name}: {} counted {says} times", secret.name));
        }
    }
    let total: u64 = counted.values().sum();
    if total < by_name.values().sum() {
        complaints.push(format!("{name}: {total} redactions counted, planted were {by_name:?}"));
    }
    if stored.text("ended_at").is_some_and(|at| at.is_empty()) {
        complaints.push(format!("{name}: ended_at is empty"));
    }
    complaints
}

pub(crate) fn assert_none(what: &str, complaints: &[String]) {
    let shown = complaints.iter().take(30).cloned().collect::<Vec<_>>().join("\n");
    assert!(complaints.is_empty(), "{what}: {} complaints\n{shown}", complaints.len());
}

/// The program's own files hold none of the secrets, neither do its objects, and neither does what it said.
fn assert_nothing_secret(home: &Home, planted: &Planted, spoken: &[u8]) {
    let mut complaints = Vec::new();
    let files = [".local", ".config"].map(|name| home::files_below(&home.path().join(name)));
    let named = |(path, content): (PathBuf, Vec<u8>)| (path.display().to_string(), content);
    let mut contents: Vec<_> = files.into_iter().flatten().map(named).collect();
    contents.extend(home.objects().read(""));
    assert!(contents.len() >= 7, "only {} files and objects were written", contents.len());
    for (name, content) in contents {
        complaints
            .extend(planted.found_in(&content).iter().map(|found| format!("{name}: {found}")));
    }
    complaints
        .extend(planted.found_in(spoken).iter().map(|name| format!("standard streams: {name}")));
    assert_none("a secret lingers", &complaints);
}

fn all_mirrored(home: &Home, laid: &[Laid], planted: &Planted) {
    let bucket = Bucket::read(home.objects());
    let mut complaints = bucket.faults_at_rest();
    complaints.extend(laid.iter().flat_map(|one| complaints_about(&bucket, one, planted)));
    if bucket.sessions.len() != laid.len() {
        let known: Vec<_> = laid.iter().map(|one| one.path.display().to_string()).collect();
        let strangers = bucket.sessions.iter().map(|s| s.text("source_path").unwrap_or("?"));
        let strangers: Vec<_> = strangers.filter(|path| !known.iter().any(|k| k == path)).collect();
        complaints.push(format!("strangers are stored: {strangers:?}"));
    }
    assert_none("after --once", &complaints);
}

/// Every session is listed, and `show --raw` gives its bytes.
fn all_listed_and_shown(home: &Home, laid: &[Laid], planted: &Planted) {
    let _daemon = Daemon::start(home, &["--interval", "1s"]);
    let sessions = list(home);
    let mut complaints = Vec::new();
    for one in laid {
        let path = one.path.to_str().unwrap();
        let Some(session) = sessions.iter().find(|session| session["source_path"] == path) else {
            complaints.push(format!("{path} is not listed"));
            continue;
        };
        let id =
            format!("{}/{}", session["harness"].as_str().unwrap(), session["id"].as_str().unwrap());
        let replay = ctl_ok(home, &["show", &id, "--raw"]);
        if let Some((at, what)) = planted.expected(&one.content).difference(&replay) {
            complaints.push(format!("show {id} --raw: byte {at}: {what}"));
        }
    }
    assert_eq!(sessions.len(), laid.len(), "listed and laid out");
    assert_none("list and show", &complaints);
}

/// A second run finds nothing to do: bucket and state are what they were, bytes and times. The lock file may be touched.
fn again_changes_nothing(home: &Home, sessions: usize) {
    let leave_out = ["run"];
    let before = (home.objects().versions(), states(home, &leave_out));
    home.once();
    let after = (home.objects().versions(), states(home, &leave_out));
    assert!(before.0.len() >= 2 * sessions, "a part and a manifest of each");
    assert_eq!(before.0, after.0, "the bucket was changed by a run that had nothing to do");
    assert_eq!(before.1, after.1, "the state was changed by a run that had nothing to do");
}

/// The state directory without the directory's own times (a lock file may come and go).
fn states(home: &Home, leave_out: &[&str]) -> BTreeMap<String, String> {
    let entries = std::fs::read_dir(home.state_dir()).unwrap().flatten();
    let mut found = BTreeMap::new();
    for entry in entries.filter(|entry| !entry.file_name().to_string_lossy().contains("lock")) {
        found.extend(snapshot(&entry.path(), leave_out));
    }
    assert!(!found.is_empty(), "there is no state");
    found
}

/// All that was laid out, and some decoys: one run stores it, a second one has nothing to do, a daemon lists and shows it.
pub(crate) fn keeps_its_promises(home: &Home, laid: &[Laid], planted: &Planted) {
    lay_out_decoys(home);
    let spoken = said(&home.once());
    assert_nothing_secret(home, planted, spoken.as_bytes());
    all_mirrored(home, laid, planted);
    again_changes_nothing(home, laid.len());
    all_listed_and_shown(home, laid, planted);
}

#[test]
fn once_stores_planted_sessions_redacted_and_counted_and_a_second_run_changes_nothing() {
    let home = Home::new();
    let planted = Planted::every_pattern(41);
    let laid = lay_out_planted(&home, &planted);
    keeps_its_promises(&home, &laid, &planted);
}

#[test]
fn t14_once_stores_every_sample_transcript_and_a_second_run_changes_nothing() {
    let home = Home::new();
    let Some(mut laid) = lay_out_samples(&home) else {
        return skipped("the sample transcripts", "TRACECRAFT_SAMPLES is not set");
    };
    let planted = Planted::every_pattern(42).with_those_of_samples();
    laid.extend(lay_out_planted(&home, &planted));
    println!("samples: {} transcripts laid out", laid.len());
    keeps_its_promises(&home, &laid, &planted);
}

#[test]
fn once_in_an_empty_home_succeeds_and_says_that_there_is_nothing() {
    let home = Home::new();
    let output = home.once();
    let text = said(&output);
    assert!(text.contains("0 sessions"), "{text}");
    assert!(Bucket::read(&home.bucket()).sessions.is_empty());
}

#[test]
fn t32_own_files_are_0600_and_own_directories_0700() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::new();
    lay_out_planted(&home, &Planted::every_pattern(43));
    home.once();
    let mut dirs = vec![home.state_dir(), home.bucket()];
    let mut seen = 0;
    while let Some(dir) = dirs.pop() {
        assert_eq!(
            std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777,
            0o700,
            "{}",
            dir.display()
        );
        for entry in std::fs::read_dir(&dir).unwrap().flatten() {
            let about = entry.metadata().unwrap();
            if about.is_dir() {
                dirs.push(entry.path());
            } else if about.is_file() {
                assert_eq!(about.permissions().mode() & 0o777, 0o600, "{}", entry.path().display());
                seen += 1;
            }
        }
    }
    assert!(seen >= 6, "only {seen} files");
}
