//! Rules by working directory, and how the directory of a session becomes known when its first records do not name it.
//!
//! Knows how Claude Code and Codex name a directory; everything else is asked of the real programs.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::daemon::{Daemon, ctl_ok, list, status};
use crate::support::home::{Home, said};
use crate::support::oracle::Bucket;
use crate::support::wait_for;

const ID: &str = "9e2d7c10-0000-4000-8000-00000000c3d1";

/// Where the session says that it runs, once it says so.
const CWD: &str = "/home/dev/works/late.one";

/// More than the program reads of a file before it captures it.
const HEAD_BYTES: usize = 300 * 1024;

struct Scene {
    home: Home,
    path: PathBuf,
    content: Vec<u8>,
}

impl Scene {
    /// A session whose first `bytes` bytes name no directory.
    fn new(bytes: usize) -> Scene {
        let home = Home::new();
        let path = home.claude_code(CWD, ID);
        let mut scene = Scene { home, path, content: Vec::new() };
        while scene.content.len() < bytes {
            scene.say(None);
        }
        scene
    }

    fn say(&mut self, cwd: Option<&str>) {
        let mut record = serde_json::json!({
            "type": "user",
            "sessionId": ID,
            "timestamp": "2026-01-02T03:04:05.000Z",
            "message": { "role": "user", "content": "x".repeat(1000) },
        });
        if let Some(cwd) = cwd {
            record["cwd"] = Value::from(cwd);
        }
        let line = format!("{record}\n").into_bytes();
        self.content.extend(&line);
        fs::create_dir_all(self.path.parent().unwrap()).unwrap();
        let file = fs::File::options().append(true).create(true).open(&self.path);
        file.unwrap().write_all(&line).unwrap();
    }

    fn configure(&self, rules: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = self.home.path().join(".config/tracecraft/config.toml");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, rules).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn stored(&self) -> Vec<u8> {
        let bucket = Bucket::read(&self.home.bucket());
        let generations = bucket.generations("claude-code", ID);
        assert!(generations.len() <= 1, "{} generations", generations.len());
        generations.first().map(|one| one.by_manifest.clone()).unwrap_or_default()
    }

    fn manifest_cwd(&self) -> Value {
        let bucket = Bucket::read(&self.home.bucket());
        bucket.generations("claude-code", ID)[0].manifest.as_ref().unwrap()["cwd"].clone()
    }
}

fn exclude(cwd: &str) -> String {
    format!("[[exclude]]\ncwd = \"{cwd}\"\n")
}

#[test]
fn a_directory_that_only_later_records_name_is_learned_from_them() {
    let mut scene = Scene::new(1);
    scene.home.once();
    assert_eq!(scene.manifest_cwd(), Value::Null);
    scene.say(None);
    scene.say(Some(CWD));
    scene.home.once();
    assert_eq!(scene.manifest_cwd(), CWD);
    // The first one counts: a session that changes its directory stays the session that it was.
    scene.say(Some("/elsewhere"));
    scene.home.once();
    assert_eq!(scene.manifest_cwd(), CWD);
    assert_eq!(scene.stored(), scene.content);
}

#[test]
fn a_directory_beyond_the_head_of_a_file_is_known_to_list_and_manifest() {
    let mut scene = Scene::new(HEAD_BYTES);
    scene.say(Some(CWD));
    let _daemon = Daemon::start(&scene.home, &["--interval", "100ms"]);
    ctl_ok(&scene.home, &["flush"]);
    assert_eq!(list(&scene.home)[0]["cwd"], CWD);
    assert_eq!(scene.manifest_cwd(), CWD);
    assert_eq!(scene.stored(), scene.content);
}

#[test]
fn a_directory_beyond_the_head_of_a_file_is_excluded_or_included_by_rule() {
    let mut scene = Scene::new(HEAD_BYTES);
    scene.say(Some(CWD));
    scene.configure(&exclude(CWD));
    scene.home.once();
    assert!(scene.stored().is_empty(), "an excluded session was stored");
    scene.configure(&exclude("/elsewhere"));
    scene.home.once();
    assert_eq!(scene.stored(), scene.content);
}

#[test]
fn a_new_session_that_does_not_name_its_directory_waits_and_is_listed_as_held_back() {
    let mut scene = Scene::new(1);
    scene.configure(&exclude("/elsewhere"));
    let _daemon = Daemon::start(&scene.home, &["--interval", "100ms"]);
    ctl_ok(&scene.home, &["flush"]);
    let counts = status(&scene.home).unwrap()["sessions"].clone();
    assert_eq!((&counts["excluded"], &counts["held_back"]), (&Value::from(1), &Value::from(1)));
    let told = list(&scene.home);
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["excluded"], &told[0]["parts"]), (&Value::from(true), &Value::from(0)));
    assert_eq!(told[0]["problem"]["code"], "directory_unknown");
    assert!(scene.stored().is_empty());
    scene.say(Some(CWD));
    ctl_ok(&scene.home, &["flush"]);
    assert_eq!(status(&scene.home).unwrap()["sessions"]["excluded"], 0);
    assert_eq!(scene.stored(), scene.content);
}

#[test]
fn a_rule_that_asks_for_an_unknown_directory_holds_a_known_session_back_and_says_so() {
    let mut scene = Scene::new(1);
    scene.home.once();
    let before = scene.stored();
    scene.configure(&exclude("/elsewhere"));
    scene.say(None);
    let output = scene.home.once(); // Held back by rule is no failure.
    assert_eq!(scene.stored(), before, "captured although the rule could not be decided");
    assert!(said(&output).contains("1 session;"), "{}", said(&output));

    let _daemon = Daemon::start(&scene.home, &["--interval", "100ms"]);
    ctl_ok(&scene.home, &["flush"]);
    let session = &list(&scene.home)[0];
    assert_eq!(session["problem"]["code"], "directory_unknown", "{session}");
    assert_eq!(scene.stored(), before);
    // A record names it, by an event or at the next scan: all that waited is captured.
    scene.say(Some(CWD));
    ctl_ok(&scene.home, &["flush"]);
    wait_for("what was held back", || (scene.stored() == scene.content).then_some(()));
    let session = &list(&scene.home)[0];
    assert_eq!((&session["cwd"], &session["problem"]), (&Value::from(CWD), &Value::Null));
}

#[test]
fn a_known_session_whose_directory_turns_out_to_be_excluded_is_captured_no_further() {
    let mut scene = Scene::new(1);
    scene.home.once();
    let before = scene.stored();
    scene.configure(&exclude(CWD));
    scene.say(Some(CWD));
    let _daemon = Daemon::start(&scene.home, &["--interval", "100ms"]);
    ctl_ok(&scene.home, &["flush"]);
    scene.say(None);
    ctl_ok(&scene.home, &["flush"]);
    let told = list(&scene.home).remove(0);
    assert_eq!((&told["cwd"], &told["excluded"]), (&Value::from(CWD), &Value::from(true)));
    assert_eq!(scene.stored(), before, "an excluded session was stored");
}
