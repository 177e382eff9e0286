//! Hermes: sessions that are rows of a database, written by a real SQLite in this process while the real daemon looks.
//!
//! The writer here imitates what Hermes does to its tables; Hermes' own code does it in `tests/agents/hermes`. Here the bucket
//! is the local one; `hermes_bucket.rs` has the same writer and the same judge with real servers.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::daemon::{Daemon, ctl_ok};
use crate::support::home::Home;
use crate::support::oracle::Bucket;
use crate::support::strace;
use crate::support::{skipped, wait_for};

/// The columns of Hermes 0.19 that are told or changed, in their order.
const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    CREATE TABLE IF NOT EXISTS sessions (id TEXT PRIMARY KEY, source TEXT NOT NULL, model TEXT, system_prompt TEXT,
        parent_session_id TEXT, started_at REAL NOT NULL, ended_at REAL, end_reason TEXT,
        message_count INTEGER DEFAULT 0, cwd TEXT, git_branch TEXT, title TEXT);
    CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY AUTOINCREMENT, session_id TEXT NOT NULL,
        role TEXT NOT NULL, content TEXT, timestamp REAL NOT NULL, active INTEGER NOT NULL DEFAULT 1,
        compacted INTEGER NOT NULL DEFAULT 0, api_content TEXT);";

pub(crate) const SESSION: &str = "20260102_030405_abcdef";

/// A writer to the database of a profile.
#[derive(Debug)]
pub(crate) struct Hermes {
    pub(crate) path: PathBuf,
    pub(crate) db: Connection,
}

impl Hermes {
    pub(crate) fn new(home: &Home, profile: Option<&str>) -> Hermes {
        let root = home.path().join(".hermes");
        let dir = profile.map_or(root.clone(), |name| root.join("profiles").join(name));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("state.db");
        let db = Connection::open(&path).unwrap();
        db.execute_batch(SCHEMA).unwrap();
        Hermes { path, db }
    }

    pub(crate) fn session(&self, id: &str, cwd: &str) {
        let sql = "INSERT INTO sessions (id, source, model, started_at, cwd) VALUES (?1, 'cli', 'stub', 1767323045.5, ?2)";
        self.db.execute(sql, [id, cwd]).unwrap();
    }

    pub(crate) fn say(&self, id: &str, role: &str, content: &str) {
        let sql = "INSERT INTO messages (session_id, role, content, timestamp) VALUES (?1, ?2, ?3, 1767323046.25)";
        self.db.execute(sql, [id, role, content]).unwrap();
    }

    pub(crate) fn run(&self, sql: &str) {
        self.db.execute_batch(sql).unwrap();
    }

    /// Does one step to the tables; some of them answer with rows, which nobody wants.
    pub(crate) fn step(&self, sql: &str) {
        let answered = |_| self.db.query_row(sql, [], |_| Ok(()));
        self.db.execute_batch(sql).or_else(answered).unwrap();
    }

    /// What is there of a session: content and mark by id.
    pub(crate) fn rows(&self, id: &str) -> BTreeMap<i64, Value> {
        let sql = "SELECT id, content, active, compacted, api_content FROM messages WHERE session_id = ?1";
        let mut statement = self.db.prepare(sql).unwrap();
        let rows = statement.query_map([id], |row| {
            let told = json!([
                row.get::<_, String>(1)?,
                row.get::<_, i64>(2)?,
                row.get::<_, i64>(3)?,
                row.get::<_, Option<String>>(4)?,
            ]);
            Ok((row.get(0)?, told))
        });
        rows.unwrap().map(Result::unwrap).collect()
    }

    pub(crate) fn inodes(&self) -> Vec<Option<u64>> {
        let ino = |end: &str| std::fs::metadata(format!("{}{end}", self.path.display()));
        ["", "-wal", "-shm"].map(|end| ino(end).ok().map(|m| m.ino())).to_vec()
    }
}

/// What Hermes does to [`SESSION`] in the course of its life, after it has one row.
pub(crate) fn steps() -> Vec<String> {
    let marks = format!("WHERE session_id = '{SESSION}'");
    vec![
        "INSERT INTO messages (session_id, role, content, timestamp) SELECT session_id, 'assistant', 'two', 5.5 FROM messages LIMIT 1".to_owned(),
        format!("UPDATE messages SET api_content = 'sent' {marks} AND id = 2"),
        "PRAGMA wal_checkpoint(PASSIVE)".to_owned(),
        format!("UPDATE messages SET active = 0, compacted = 1 {marks}; INSERT INTO messages (session_id, role, content, timestamp) VALUES ('{SESSION}', 'user', 'summary', 6)"),
        format!("BEGIN; DELETE FROM messages {marks}; INSERT INTO messages (session_id, role, content, timestamp) VALUES ('{SESSION}', 'user', 'again', 7); COMMIT"),
        "PRAGMA wal_checkpoint(TRUNCATE)".to_owned(),
        format!("UPDATE messages SET active = 0 {marks}"),
        format!("UPDATE messages SET active = 1 {marks}; UPDATE sessions SET title = 'a title', git_branch = 'main'"),
        "VACUUM".to_owned(),
        format!("INSERT INTO messages (session_id, role, content, timestamp) VALUES ('{SESSION}', 'user', 'last', 8)"),
    ]
}

/// One of the things that Hermes does to a session that has rows: writes, marks, deletes and replaces.
pub(crate) fn any_step(rng: &mut fastrand::Rng, session: &str, number: usize) -> String {
    let is = format!("WHERE session_id = '{session}'");
    let insert = "INSERT INTO messages (session_id, role, content, timestamp)";
    let add = format!("{insert} VALUES ('{session}', 'assistant', 'n{number}', {number}.5);");
    let newest = format!("{is} AND id = (SELECT max(id) FROM messages {is})");
    match rng.u8(0..10) {
        0..5 => add,
        5 => format!("UPDATE messages SET api_content = 'sent {number}' {newest}"),
        6 => format!("UPDATE messages SET active = 1 - active {newest}"),
        7 => format!("BEGIN; UPDATE messages SET active = 0, compacted = 1 {is}; {add} COMMIT"),
        8 => format!("BEGIN; DELETE FROM messages {is}; {add} {add} COMMIT"),
        _ => "PRAGMA wal_checkpoint(TRUNCATE)".to_owned(),
    }
}

/// What a line of a log says of its row, as [`Hermes::rows`] has it; `None` of a tombstone.
pub(crate) fn told(line: &str) -> (i64, Option<Value>) {
    let row: Value = serde_json::from_str(line).unwrap();
    let state = json!([row["content"], row["active"], row["compacted"], row["api_content"]]);
    (row["id"].as_i64().unwrap(), (row["deleted"] != true).then_some(state))
}

/// The log of a session's newest generation. No byte of it may be missing or doubled.
pub(crate) fn log(home: &Home, id: &str) -> String {
    let bucket = Bucket::read_one(home.objects(), "hermes", id);
    assert_eq!(bucket.gap_and_overlap(), (0, 0));
    let stored = bucket.generations("hermes", id);
    let content = &stored.last().unwrap_or_else(|| panic!("{id} is not mirrored")).by_manifest;
    String::from_utf8(content.clone()).unwrap()
}

/// A mirrored session, folded: the last line of an id wins. No line may say what was known already.
pub(crate) fn folded(home: &Home, id: &str) -> BTreeMap<i64, Value> {
    let mut rows = BTreeMap::new();
    for line in log(home, id).lines() {
        match told(line) {
            (number, None) => {
                assert!(rows.remove(&number).is_some(), "a tombstone for no row: {line}")
            }
            (number, Some(state)) => assert_ne!(
                rows.insert(number, state.clone()),
                Some(state),
                "the same state twice: {line}"
            ),
        }
    }
    rows
}

fn manifest(home: &Home, id: &str) -> Value {
    let (base, _) = id.split_once('~').unwrap_or((id, ""));
    let bucket = Bucket::read_one(home.objects(), "hermes", base);
    let stored = bucket.sessions.into_iter().find(|stored| stored.id == id);
    stored.and_then(|stored| stored.manifest).unwrap_or_else(|| panic!("{id} has no manifest"))
}

#[test]
fn t52_t54_t57_a_live_database_is_mirrored_row_by_row_and_only_ever_read() {
    let home = Home::new();
    let hermes = Hermes::new(&home, None);
    let work = Hermes::new(&home, Some("work"));
    hermes.session(SESSION, "/home/you/app");
    hermes.say(SESSION, "user", "first");
    let mut command = home.tracecraftd();
    command.args(["--interval", "100ms"]);
    let traced = strace::usable().map(|()| strace::traced(&home, &command, false));
    let (command, record) = match traced {
        Ok((command, record)) => (command, Some(record)),
        Err(why) => {
            skipped("the trace of a live database", &why);
            (command, None)
        }
    };
    let mut daemon = Daemon::spawn_command(&home, command);
    daemon.wait_ready(&home);
    let inodes = hermes.inodes();
    for step in steps() {
        hermes.step(&step);
        ctl_ok(&home, &["flush"]);
        assert_eq!(folded(&home, SESSION), hermes.rows(SESSION), "after {step}");
        assert_eq!(hermes.inodes(), inodes, "after {step}");
    }
    // Another profile, and what its row about the session says.
    work.session("20260102_030406_b", "/home/you/b");
    work.say("20260102_030406_b", "user", "elsewhere");
    work.run("UPDATE sessions SET parent_session_id = 'p', ended_at = 1767323050.75, end_reason = 'branched'");
    ctl_ok(&home, &["flush"]);
    let told = manifest(&home, "20260102_030406_b");
    assert_eq!(told["ended_at"], "2026-01-02T03:04:10.75Z");
    assert_eq!((&told["parent"], &told["end_reason"]), (&json!("p"), &json!("branched")));
    assert_eq!(told["source_path"], work.path.to_str().unwrap());
    let told = manifest(&home, SESSION);
    assert_eq!(
        (&told["title"], &told["model"], &told["git_branch"]),
        (&json!("a title"), &json!("stub"), &json!("main"))
    );
    assert_eq!((&told["cwd"], &told["ended_at"]), (&json!("/home/you/app"), &Value::Null));
    let shown = String::from_utf8(ctl_ok(&home, &["show", SESSION])).unwrap();
    assert!(shown.contains("again") && shown.contains("messages were removed"), "{shown}");
    assert_eq!(daemon.term().code(), Some(0), "{}", daemon.said());
    assert!(!home.state_dir().join("copies").exists(), "the private copy ends with the daemon");
    if let Some(record) = record {
        let root = home.path().join(".hermes");
        let changes = record.changes_below(&root);
        assert!(changes.is_empty(), "{}", changes.join("\n"));
        let opens = record.opens_below(&root);
        let opens: Vec<_> = opens.iter().filter(|line| line.contains("state.db")).collect();
        assert!(!opens.is_empty());
        for line in opens {
            let harmless = ["O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_RDONLY"];
            assert!(harmless.iter().all(|flag| line.contains(flag)), "{line}");
        }
    }
}

#[test]
fn t31_t57_without_ledger_and_without_state_a_session_goes_on_and_nothing_comes_twice() {
    let home = Home::new();
    let hermes = Hermes::new(&home, None);
    hermes.session(SESSION, "/home/you/app");
    let secret = ["ghp_", "16C7e42F292c6912E7710c838347Ae178B4a"].concat();
    for number in 0..5 {
        hermes.say(SESSION, "user", &format!("{number} {secret}"));
    }
    home.once();
    for lost in ["rows", "."] {
        let mut daemon = Daemon::start(&home, &[]);
        hermes.run("UPDATE messages SET active = 1 - active WHERE id = 2");
        ctl_ok(&home, &["flush"]);
        assert!(daemon.term().success());
        let path = home.state_dir().join(lost);
        std::fs::remove_dir_all(path.canonicalize().unwrap()).unwrap();
        hermes.run("DELETE FROM messages WHERE id = (SELECT max(id) FROM messages)");
        hermes.say(SESSION, "user", "after the loss");
        let said = String::from_utf8(home.once().stdout).unwrap();
        assert!(said.contains("stored 1 part,"), "{said}");
        let bucket = Bucket::read(&home.bucket());
        assert_eq!(bucket.generations("hermes", SESSION).len(), 1, "no new generation");
        assert!(
            !String::from_utf8_lossy(&bucket.generations("hermes", SESSION)[0].by_manifest)
                .contains(&secret)
        );
        let (mirrored, rows) = (folded(&home, SESSION), hermes.rows(SESSION));
        assert_eq!(mirrored.keys().collect::<Vec<_>>(), rows.keys().collect::<Vec<_>>());
        assert!(mirrored.iter().all(|(id, row)| row[1] == rows[id][1]));
    }
}

#[test]
fn t31_t57_a_part_that_is_lost_with_the_state_is_captured_again_from_its_rows() {
    let home = Home::new();
    let hermes = Hermes::new(&home, None);
    hermes.session(SESSION, "/home/you/app");
    for text in ["one", "two", "three"] {
        hermes.say(SESSION, "user", text);
        home.once();
    }
    let folder = home.bucket().join("sessions/hermes").join(SESSION);
    let lost = manifest(&home, SESSION)["parts"][1]["uuid"].as_str().unwrap().to_owned();
    std::fs::remove_file(folder.join(format!("part-00001-{lost}.jsonl"))).unwrap();
    std::fs::remove_dir_all(home.state_dir()).unwrap();
    hermes.say(SESSION, "user", "four");
    home.once();
    // What is left of the log, folded, is all rows again; of those that were not lost none comes twice.
    let mut lines: Vec<Value> = Vec::new();
    let mut names: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|it| it.unwrap().path()).collect();
    names.sort();
    for part in names.iter().filter(|path| path.extension().is_some_and(|it| it == "jsonl")) {
        let text = std::fs::read_to_string(part).unwrap();
        lines.extend(text.lines().map(|line| serde_json::from_str(line).unwrap()));
    }
    let said: Vec<_> = lines.iter().map(|line| line["content"].as_str().unwrap()).collect();
    assert_eq!(said, ["one", "three", "two", "four"]);
}

#[test]
fn t55_a_damaged_database_is_shown_and_one_in_its_place_begins_a_new_generation() {
    let home = Home::new();
    let hermes = Hermes::new(&home, None);
    hermes.session(SESSION, "/home/you/app");
    (0..5).for_each(|n| hermes.say(SESSION, "user", &n.to_string()));
    hermes.run("PRAGMA journal_mode = DELETE");
    let path = hermes.path.clone();
    drop(hermes);
    let good = std::fs::read(&path).unwrap();
    let daemon = Daemon::start(&home, &["--interval", "100ms"]);
    ctl_ok(&home, &["flush"]);
    let is_shown = || {
        ctl_ok(&home, &["flush"]);
        let status = crate::support::daemon::status(&home)?;
        Some(status["problems"].as_array()?.iter().any(|p| p["code"] == "source_unreadable"))
    };
    std::fs::write(&path, b"this is no database".repeat(1000)).unwrap();
    wait_for("the damage to be shown", || is_shown()?.then_some(()));
    std::fs::write(&path, good).unwrap();
    wait_for("the damage to be forgotten", || (!is_shown()?).then_some(()));
    assert_eq!(Bucket::read(&home.bucket()).generations("hermes", SESSION).len(), 1);
    let before = folded(&home, SESSION);
    std::fs::remove_file(&path).unwrap();
    let hermes = Hermes::new(&home, None);
    hermes.session(SESSION, "/home/you/app");
    hermes.say(SESSION, "user", "a new life");
    wait_for("a new generation", || {
        ctl_ok(&home, &["flush"]);
        let bucket = Bucket::read(&home.bucket());
        (bucket.generations("hermes", SESSION).len() == 2).then_some(())
    });
    assert_eq!(folded(&home, SESSION), hermes.rows(SESSION));
    let told = manifest(&home, &format!("{SESSION}~2"));
    assert_eq!(told["reason"], "its database was replaced: row ids began again");
    assert_eq!(before.len(), 5);
    drop(daemon);
}

#[test]
fn a_session_that_the_reference_tool_began_goes_on_at_its_last_row() {
    for merged in [false, true] {
        let home = Home::new();
        let hermes = Hermes::new(&home, None);
        hermes.session(SESSION, "/home/you/app");
        let secret = ["sk-ant-", "api03-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"].concat();
        ["one", &format!("two {secret} end"), "three"]
            .iter()
            .for_each(|t| hermes.say(SESSION, "user", t));
        let folder = home.bucket().join("sessions/hermes").join(SESSION);
        std::fs::create_dir_all(&folder).unwrap();
        let line = |id: i64, text: &str| {
            format!(
                "{{\"id\": {id}, \"session_id\": \"{SESSION}\", \"role\": \"user\", \"content\": \"{text}\", \
                 \"timestamp\": 1767323046.25, \"active\": 1, \"compacted\": 0, \"api_content\": null}}\n"
            )
        };
        // Its rules gave the secret another name.
        let lines = line(1, "one") + &line(2, "two [REDACTED:anthropic] end");
        std::fs::write(folder.join("part-00000-0a1b2c3d.jsonl"), &lines).unwrap();
        let mut entry = json!({"seq": 0, "uuid": "0a1b2c3d", "cursor_range": [0, 2], "source_bytes": 2,
            "uploaded_bytes": lines.len(), "redactions": {"anthropic": 1}, "uploaded_at": "2026-01-02T03:04:05Z"});
        if merged {
            entry.as_object_mut().unwrap().remove("cursor_range");
            entry["compacted_from"] = json!(2);
        }
        let began = json!({"schema_version": 1, "harness": "hermes", "session_id": SESSION, "source_path": null,
            "cwd": null, "agent_id": "a1", "started_at": "2026-01-02T03:04:05Z",
            "last_uploaded_at": "2026-01-02T03:04:05Z", "ended_at": null, "total_source_bytes": 2,
            "total_uploaded_bytes": lines.len(), "redaction_counts": {"anthropic": 1}, "parts": [entry]});
        std::fs::write(folder.join("meta.json"), began.to_string()).unwrap();

        home.once();
        let told = manifest(&home, SESSION);
        let parts = told["parts"].as_array().unwrap();
        assert_eq!(parts.len(), 2, "one more");
        let added = line(3, "three");
        assert_eq!(parts[1]["cursor_range"], json!([2, 2 + added.len()]));
        let name = format!("part-00001-{}.jsonl", parts[1]["uuid"].as_str().unwrap());
        assert_eq!(
            std::fs::read_to_string(folder.join(name)).unwrap(),
            added,
            "the third row and no other"
        );
        assert_eq!(told["agent_id"], "a1");
        hermes.run("UPDATE messages SET active = 0 WHERE id = 1");
        home.once();
        assert_eq!(manifest(&home, SESSION)["parts"].as_array().unwrap().len(), 3);
    }
}
