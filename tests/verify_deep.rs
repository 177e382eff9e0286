//! `tracecraftctl verify --deep`: what is stored against the agents' own files and rows, and what is said where these prove
//! nothing: grown, rewritten, gone, redacted by other rules.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::hermes::{Hermes, SESSION};
use crate::support::daemon::{Daemon, ctl, ctl_ok};
use crate::support::home::{Home, said};
use crate::support::planted::Planted;
use crate::support::writers::Transcript;
use crate::verify::{Case, findings, has, hex};

/// Changes one word of a part, and its name and its manifest with it, so that everything that is stored agrees. The word
/// keeps its length.
fn forge(folder: &Path, seq: usize, word: &str, other: &str) -> String {
    let path = folder.join("meta.json");
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let entry = &mut manifest["parts"][seq];
    let name = |uuid: &serde_json::Value| format!("part-{seq:05}-{}.jsonl", uuid.as_str().unwrap());
    let part = folder.join(name(&entry["uuid"]));
    let text = fs::read_to_string(&part).unwrap();
    assert!(text.contains(word), "{text}");
    let text = text.replacen(word, other, 1);
    fs::remove_file(&part).unwrap();
    let digest = hex(text.as_bytes());
    (entry["uuid"], entry["sha256"]) = (json!(digest[..8]), json!(digest));
    let name = name(&entry["uuid"]);
    fs::write(folder.join(&name), text).unwrap();
    fs::write(path, manifest.to_string() + "\n").unwrap();
    name
}

#[test]
fn a_deep_verification_finds_what_agrees_with_itself_and_not_with_its_source() {
    let mut case = Case::new("codex");
    // Somebody who changes a part and its manifest fools every digest.
    let name = forge(&case.folder(), 1, "lorem", "Lorem");
    let told = ctl(&case.home, &["verify", "--json"]);
    assert_eq!(told.status.code(), Some(0), "{}", said(&told));
    let told = ctl(&case.home, &["verify", "--deep", "--json"]);
    assert_eq!(told.status.code(), Some(1), "{}", said(&told));
    let found = findings(&told);
    let is = |(code, _, object): &(String, String, String)| {
        code == "source_differs" && object.ends_with(&name)
    };
    assert!(found.iter().any(is), "{found:?}");

    // A source that grows is fine, one that is gone is said, one that was rewritten proves nothing.
    case.restore();
    case.transcript.grow(&case.planted, 2);
    let told = ctl(&case.home, &["verify", "--deep", "--json"]);
    assert_eq!(told.status.code(), Some(0), "{}", said(&told));
    assert!(has(&told, "source_equal", "note"), "{}", said(&told));
    ctl_ok(&case.home, &["flush"]);
    case.transcript.replace(&case.planted);
    ctl_ok(&case.home, &["flush"]);
    let told = ctl(&case.home, &["verify", "--deep", "--json"]);
    assert_eq!(told.status.code(), Some(0), "{}", said(&told));
    assert!(has(&told, "source_rewritten", "note") && has(&told, "source_equal", "note"));
    fs::remove_file(&case.transcript.path).unwrap();
    let told = ctl(&case.home, &["verify", "--deep", "--json"]);
    assert_eq!(told.status.code(), Some(0), "{}", said(&told));
    assert!(has(&told, "source_gone", "note"), "{}", said(&told));
}

#[test]
fn what_was_stored_by_other_rules_is_said_to_be_that_and_no_damage() {
    let home = Home::new();
    let planted = Planted::exact_only(7);
    let mut transcript = Transcript::new(&home, "codex", 1, 7);
    transcript.grow(&planted, 40);
    let mut daemon = Daemon::start(&home, &["--interval", "200ms"]);
    ctl_ok(&home, &["flush"]);
    assert!(!planted.found_in(&fs::read(&transcript.path).unwrap()).is_empty(), "it has secrets");
    daemon.term();
    let config = home.path().join("config.toml");
    fs::write(&config, "redact = false\n").unwrap();
    let _daemon =
        Daemon::start(&home, &["--interval", "200ms", "--config", config.to_str().unwrap()]);
    ctl_ok(&home, &["flush"]);
    let told = ctl(&home, &["verify", &transcript.id, "--deep"]);
    assert_eq!(told.status.code(), Some(0), "{}", said(&told));
    assert!(said(&told).contains("stored by other rules"), "{}", said(&told));
}

#[test]
fn of_rows_the_last_state_of_each_is_compared() {
    let home = Home::new();
    let hermes = Hermes::new(&home, None);
    hermes.session(SESSION, "/home/you/app");
    for text in ["first", "second", "third"] {
        hermes.say(SESSION, "user", text);
    }
    let _daemon = Daemon::start(&home, &["--interval", "60s"]);
    ctl_ok(&home, &["flush"]);
    hermes.run(
        "UPDATE messages SET content = 'changed' WHERE id = 1; DELETE FROM messages WHERE id = 2",
    );
    ctl_ok(&home, &["flush"]);
    let deep = || ctl(&home, &["verify", SESSION, "--deep", "--json"]);
    let told = deep();
    assert_eq!(told.status.code(), Some(0), "{}", said(&told));
    assert!(has(&told, "source_equal", "note"), "{}", said(&told));
    // Not captured yet: no fault of what is stored.
    hermes.run(
        "UPDATE messages SET content = 'later' WHERE id = 1; DELETE FROM messages WHERE id = 3",
    );
    let told = deep();
    assert_eq!(told.status.code(), Some(0), "{}", said(&told));
    ctl_ok(&home, &["flush"]);

    // An earlier state of a row is not compared, its last one is.
    let folder = home.bucket().join("sessions/hermes").join(SESSION);
    forge(&folder, 0, "first", "FIRST");
    assert_eq!(deep().status.code(), Some(0));
    forge(&folder, 2, "later", "LATER");
    let told = deep();
    assert_eq!(told.status.code(), Some(1), "{}", said(&told));
    assert!(has(&told, "source_differs", "wrong"), "{}", said(&told));
    assert!(said(&told).contains("(ids 1)"), "{}", said(&told));
    for end in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{end}", hermes.path.display()));
    }
    let told = deep();
    assert_eq!(told.status.code(), Some(0), "{}", said(&told));
    assert!(has(&told, "source_gone", "note"), "{}", said(&told));
}
