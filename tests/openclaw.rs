//! OpenClaw: sessions that were files and go on as rows of a database, written by a real SQLite in this process while the real
//! daemon looks.
//!
//! The writer here imitates what OpenClaw does to its tables, and has keys beside them, as OpenClaw does.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rusqlite::Connection;
use serde_json::Value;

use crate::support::daemon::{Daemon, ctl_ok, status};
use crate::support::home::{Home, files_below};
use crate::support::oracle::{Bucket, snapshot};
use crate::support::planted::{Planted, header, record};
use crate::support::{skipped, wait_for};

/// The columns of schema 23 that matter here.
const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    CREATE TABLE IF NOT EXISTS auth_profile_store (store_key TEXT NOT NULL PRIMARY KEY, store_json TEXT NOT NULL) STRICT;
    CREATE TABLE IF NOT EXISTS session_windows (session_id TEXT NOT NULL PRIMARY KEY, session_key TEXT NOT NULL,
        previous_session_id TEXT, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
        transcript_updated_at INTEGER DEFAULT NULL, started_at INTEGER, ended_at INTEGER, status TEXT, model TEXT,
        display_name TEXT) STRICT;
    CREATE TABLE IF NOT EXISTS transcript_events (session_id TEXT NOT NULL, seq INTEGER NOT NULL, event_json TEXT,
        created_at INTEGER NOT NULL, event_zstd BLOB, event_utf8_bytes INTEGER, navigation_json TEXT,
        PRIMARY KEY (session_id, seq),
        FOREIGN KEY (session_id) REFERENCES session_windows(session_id) ON DELETE CASCADE) STRICT;
    CREATE TABLE IF NOT EXISTS transcript_rewrite_watermarks (session_id TEXT NOT NULL PRIMARY KEY,
        generation TEXT NOT NULL, updated_at INTEGER NOT NULL) STRICT;";

/// Something that no rule would know as a secret: it may not come out at all.
fn key() -> String {
    ["unknown-kind", "of-key", "4711"].join("-")
}

const SESSION: &str = "4c2c0f6c-4499-446f-920e-03b0709a0505";

/// A writer to the database of an agent.
pub(crate) struct OpenClaw {
    path: PathBuf,
    db: Connection,
}

impl OpenClaw {
    pub(crate) fn new(home: &Home, state: &str, agent: &str) -> OpenClaw {
        let dir = home.path().join(state).join("agents").join(agent).join("agent");
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("openclaw-agent.sqlite");
        let db = Connection::open(&path).unwrap();
        db.execute_batch(SCHEMA).unwrap();
        let keys = format!("{{\"key\":\"{}\"}}", key());
        db.execute("INSERT OR REPLACE INTO auth_profile_store VALUES ('default', ?1)", [keys])
            .unwrap();
        OpenClaw { path, db }
    }

    /// Appends lines to a session as OpenClaw does: in one transaction, the large ones compressed.
    pub(crate) fn append(&self, id: &str, lines: &[u8]) {
        let text = std::str::from_utf8(lines).unwrap();
        self.run("BEGIN");
        let sql = "INSERT OR IGNORE INTO session_windows (session_id, session_key, created_at, updated_at, model, display_name)
                   VALUES (?1, 'agent:main:main', 1767323045500, 1767323045500, 'stub', 'a talk')";
        self.db.execute(sql, [id]).unwrap();
        for line in text.lines() {
            let compressed = zstd::bulk::compress(line.as_bytes(), 1).unwrap();
            let is_compressed = line.len() >= 1024;
            let sql = "INSERT INTO transcript_events (session_id, seq, event_json, created_at, event_zstd, event_utf8_bytes)
                       SELECT ?1, coalesce(max(seq), -1) + 1, ?2, 0, ?3, ?4 FROM transcript_events WHERE session_id = ?1";
            let (plain, frame) = match is_compressed {
                true => (None, Some(compressed)),
                false => (Some(line), None),
            };
            self.db.execute(sql, (id, plain, frame, line.len() as i64)).unwrap();
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let sql = "UPDATE session_windows SET updated_at = ?2, transcript_updated_at = ?2 WHERE session_id = ?1";
        self.db.execute(sql, (id, now.as_millis() as i64)).unwrap();
        self.run("COMMIT");
    }

    pub(crate) fn run(&self, sql: &str) {
        self.db.execute_batch(sql).unwrap();
    }
}

/// The lines of a session: a header, then records with secrets in them, some of them large.
struct Lines {
    planted: Planted,
    id: String,
    all: Vec<u8>,
    serial: u64,
}

impl Lines {
    fn new(id: &str, cwd: &str) -> Lines {
        let all = header("openclaw", id, cwd);
        Lines { planted: Planted::exact_only(56), id: id.to_owned(), all, serial: 0 }
    }

    /// So many more.
    fn more(&mut self, count: u64) -> Vec<u8> {
        let mut new = Vec::new();
        for _ in 0..count {
            self.serial += 1;
            let secrets = &self.planted.secrets;
            let secret = &secrets[self.serial as usize % secrets.len()].whole;
            let filling =
                "so it goes on. ".repeat(if self.serial.is_multiple_of(3) { 200 } else { 4 });
            let text = format!("{} {secret} {filling}", self.serial);
            new.extend(record("openclaw", &self.id, "/home/you/app", self.serial, &text));
        }
        self.all.extend(&new);
        new
    }

    fn redacted(&self) -> Vec<u8> {
        self.planted.redact(&self.all)
    }
}

/// The bucket's content of each session, which has to be whole.
fn stored(home: &Home) -> BTreeMap<String, Vec<u8>> {
    let bucket = Bucket::read(&home.bucket());
    assert_eq!(bucket.faults_at_rest(), Vec::<String>::new());
    assert_eq!(bucket.gap_and_overlap(), (0, 0));
    let sessions = bucket.sessions.into_iter().filter(|stored| stored.harness == "openclaw");
    sessions
        .map(|stored| {
            assert_eq!(stored.by_manifest, stored.by_listing, "{}", stored.id);
            (stored.id, stored.by_manifest)
        })
        .collect()
}

fn assert_stored(home: &Home, expected: &[(&str, &Lines)]) {
    let stored = stored(home);
    let ids: Vec<&String> = stored.keys().collect();
    assert_eq!(stored.len(), expected.len(), "{ids:?}");
    for (id, lines) in expected {
        let (found, lines) = (&stored[*id], lines.redacted());
        assert!(*found == lines, "{id}: {} bytes instead of {}", found.len(), lines.len());
    }
}

fn manifest(home: &Home, id: &str) -> Value {
    let bucket = Bucket::read(&home.bucket());
    let stored = bucket.sessions.into_iter().find(|stored| stored.id == id);
    stored.and_then(|stored| stored.manifest).unwrap_or_else(|| panic!("{id} has no manifest"))
}

/// Keys are neither stored nor left behind.
fn assert_no_keys(home: &Home) {
    for dir in [home.bucket(), home.state_dir()] {
        for (path, content) in files_below(&dir) {
            let found = memchr::memmem::find(&content, key().as_bytes());
            assert!(found.is_none(), "a key is in {}", path.display());
        }
    }
    assert!(!home.state_dir().join("copies").exists(), "the private copy ends with the daemon");
}

#[test]
fn t56_a_session_that_was_a_file_goes_on_in_the_database_through_kills_and_a_lost_state() {
    for live in [false, true] {
        let home = Home::new();
        let [moved, left, new] = [SESSION, "left-behind", "only-rows"];
        let [mut moving, mut staying, mut rows] =
            [moved, left, new].map(|id| Lines::new(id, "/home/you/app"));
        moving.more(60);
        staying.more(3);
        rows.more(5);
        let file = home.openclaw(moved);
        home.place(&file, &moving.all);
        home.place(&home.openclaw(left), &staying.all);
        let arguments = ["--interval", "100ms"];
        let mut daemon = live.then(|| Daemon::start(&home, &arguments));
        match live {
            true => drop(ctl_ok(&home, &["flush"])),
            false => drop(home.once()),
        }
        // Its last line as a file nobody has seen; then its agent is a newer one, and the file stays as an archive.
        moving.more(1);
        home.place(&file, &moving.all);
        let openclaw = OpenClaw::new(&home, ".openclaw", "main");
        openclaw.append(moved, &moving.all);
        openclaw.append(new, &rows.all);
        openclaw.append(moved, &moving.more(2));
        let mut daemon = daemon.take().unwrap_or_else(|| Daemon::start(&home, &arguments));
        let agents = home.path().join(".openclaw");
        let before = snapshot(&agents, &[]);
        ctl_ok(&home, &["flush"]);
        assert_eq!(snapshot(&agents, &[]), before, "sources are sacred");
        let (one, two, three) =
            ("main__4c2c0f6c-4499-446f-920e-03b0709a0505", "main__left-behind", "main__only-rows");
        assert_stored(&home, &[(one, &moving), (two, &staying), (three, &rows)]);
        let told = manifest(&home, one);
        assert_eq!(told["source_path"], openclaw.path.to_str().unwrap());
        assert_eq!((&told["cwd"], &told["model"]), (&"/home/you/app".into(), &"stub".into()));
        assert_eq!((&told["title"], &told["ended_at"]), (&"a talk".into(), &Value::Null));
        assert_eq!(told["started_at"], "2026-01-02T03:04:05.000Z");
        // Live, and with a kill between.
        for round in 0..4 {
            openclaw.append(moved, &moving.more(7));
            if round == 1 {
                ctl_ok(&home, &["flush"]);
                openclaw.append(moved, &moving.more(7));
            }
            if round % 2 == 1 {
                daemon.kill9();
                openclaw.append(moved, &moving.more(7));
                daemon = Daemon::start(&home, &arguments);
            }
            ctl_ok(&home, &["flush"]);
            assert_stored(&home, &[(one, &moving), (two, &staying), (three, &rows)]);
        }
        // The archive is touched, and one that was left behind is taken over late.
        crate::support::home::age(&file);
        openclaw.append(left, &staying.all);
        openclaw.append(left, &staying.more(1));
        ctl_ok(&home, &["flush"]);
        assert_stored(&home, &[(one, &moving), (two, &staying), (three, &rows)]);
        let shown = String::from_utf8(ctl_ok(&home, &["show", one, "--tail", "3"])).unwrap();
        assert!(shown.contains("so it goes on"), "{shown}");
        ctl_ok(&home, &["verify", "--deep"]);
        assert!(daemon.term().success(), "{}", daemon.said());
        assert_no_keys(&home);
        // All that is known is lost; the archives are still there.
        std::fs::remove_dir_all(home.state_dir()).unwrap();
        openclaw.append(moved, &moving.more(2));
        home.once();
        assert_stored(&home, &[(one, &moving), (two, &staying), (three, &rows)]);
        assert_no_keys(&home);
        home.once();
        assert_stored(&home, &[(one, &moving), (two, &staying), (three, &rows)]);
    }
}

#[test]
fn t56_a_transcript_that_is_rewritten_begins_a_new_generation_and_one_that_is_put_away_does_not() {
    let home = Home::new();
    let openclaw = OpenClaw::new(&home, ".openclaw", "main");
    let mut lines = Lines::new(SESSION, "/home/you/app");
    lines.more(200);
    openclaw.append(SESSION, &lines.all);
    let id = format!("main__{SESSION}");
    let second = format!("{id}~2");
    let mut daemon = Daemon::start(&home, &["--interval", "100ms"]);
    ctl_ok(&home, &["flush"]);
    // The oldest events go to cold storage, and others come.
    openclaw.run("DELETE FROM transcript_events WHERE seq < 50");
    openclaw.append(SESSION, &lines.more(3));
    ctl_ok(&home, &["flush"]);
    assert_stored(&home, &[(&id, &lines)]);
    // A mark that changes alone says nothing.
    openclaw
        .run(&format!("INSERT INTO transcript_rewrite_watermarks VALUES ('{SESSION}', 'b', 1)"));
    openclaw.append(SESSION, &lines.more(1));
    ctl_ok(&home, &["flush"]);
    ctl_ok(&home, &["verify", "--deep"]);
    assert_stored(&home, &[(&id, &lines)]);
    // All of it is written anew, as a branch is.
    let mut branch = Lines::new(SESSION, "/home/you/app");
    branch.more(30);
    openclaw.run(&format!(
        "DELETE FROM transcript_events; UPDATE transcript_rewrite_watermarks SET generation = 'c' WHERE session_id = '{SESSION}'"
    ));
    openclaw.append(SESSION, &branch.all);
    wait_for("a new generation", || {
        ctl_ok(&home, &["flush"]);
        (Bucket::read(&home.bucket()).sessions.len() == 2).then_some(())
    });
    ctl_ok(&home, &["flush"]);
    assert_stored(&home, &[(&id, &lines), (&second, &branch)]);
    // Deleted: what was stored stays.
    openclaw.run("DELETE FROM transcript_events; DELETE FROM session_windows");
    wait_for("its end", || {
        ctl_ok(&home, &["flush"]);
        manifest(&home, &second)["ended_at"].is_string().then_some(())
    });
    assert_stored(&home, &[(&id, &lines), (&second, &branch)]);
    assert!(daemon.term().success(), "{}", daemon.said());
    assert_no_keys(&home);
}

#[test]
fn t56_agents_and_profiles_have_their_own_sessions_and_a_schema_that_is_not_known_is_shown() {
    let home = Home::new();
    let mut expected = Vec::new();
    for (state, agent) in
        [(".openclaw", "main"), (".openclaw", "other"), (".openclaw-work", "main")]
    {
        let mut lines = Lines::new("one", &format!("/home/you/{state}/{agent}"));
        lines.more(2);
        OpenClaw::new(&home, state, agent).append("one", &lines.all);
        expected.push(lines);
    }
    // An agent of a version that had the database for its keys alone, and one of a version that is not known.
    let keys = OpenClaw::new(&home, ".openclaw", "keys");
    keys.run("DROP TABLE transcript_events; DROP TABLE session_windows");
    let odd = OpenClaw::new(&home, ".openclaw", "odd");
    odd.run("DROP TABLE transcript_events");
    let mut daemon = Daemon::start(&home, &[]);
    ctl_ok(&home, &["flush"]);
    let problems = status(&home).unwrap()["problems"].as_array().unwrap().clone();
    assert_eq!(problems.len(), 1, "{problems:?}");
    let said = problems[0]["message"].as_str().unwrap();
    assert_eq!(problems[0]["code"], "source_unreadable");
    assert!(said.contains("odd/agent/openclaw-agent.sqlite"), "{said}");
    assert!(said.contains("it has sessions, but no table transcript_events"), "{said}");
    assert!(daemon.term().success());
    let stored = stored(&home);
    let mut contents: Vec<_> = stored.values().cloned().collect();
    let mut lines: Vec<_> = expected.iter().map(Lines::redacted).collect();
    contents.sort();
    lines.sort();
    assert_eq!(contents, lines);
    let ids: Vec<&str> = stored.keys().map(|id| id.split('@').next().unwrap()).collect();
    assert_eq!(ids, ["main__one", "main__one", "other__one"]);
    assert_no_keys(&home);
}

#[test]
fn t56_an_event_that_is_damaged_is_shown_and_holds_up_nothing_but_what_follows_it() {
    let home = Home::new();
    let openclaw = OpenClaw::new(&home, ".openclaw", "main");
    let [mut lines, mut others] = ["one", "two"].map(|id| Lines::new(id, "/home/you/app"));
    lines.more(2);
    openclaw.append("one", &lines.all);
    openclaw.run(
        "INSERT INTO transcript_events (session_id, seq, created_at, event_zstd, event_utf8_bytes) VALUES ('one', 9, 0, x'00010203', 77)",
    );
    openclaw.append("two", &others.all);
    let mut daemon = Daemon::start(&home, &["--interval", "100ms"]);
    ctl_ok(&home, &["flush"]);
    assert_stored(&home, &[("main__one", &lines), ("main__two", &others)]);
    let shown = String::from_utf8(ctl_ok(&home, &["status"])).unwrap();
    let listed = String::from_utf8(ctl_ok(&home, &["list", "--json"])).unwrap();
    assert!(listed.contains("zstd frame is damaged"), "{shown}\n{listed}");
    // It is mended: all goes on.
    openclaw.run("DELETE FROM transcript_events WHERE session_id = 'one' AND seq = 9");
    openclaw.append("one", &lines.more(1));
    openclaw.append("two", &others.more(1));
    ctl_ok(&home, &["flush"]);
    assert_stored(&home, &[("main__one", &lines), ("main__two", &others)]);
    assert!(daemon.term().success());
}

#[test]
fn t8_t56_a_session_that_is_deleted_stays_one_whatever_its_agent_leaves_behind() {
    let home = Home::new();
    let mut lines = Lines::new(SESSION, "/home/you/app");
    lines.more(40);
    let file = home.openclaw(SESSION);
    home.place(&file, &lines.all);
    home.once();
    let openclaw = OpenClaw::new(&home, ".openclaw", "main");
    openclaw.append(SESSION, &lines.all);
    openclaw.append(SESSION, &lines.more(3));
    let id = format!("main__{SESSION}");
    let mut daemon = Daemon::start(&home, &["--interval", "100ms"]);
    ctl_ok(&home, &["flush"]);
    assert_stored(&home, &[(&id, &lines)]);
    // It is written to an archive, and then deleted.
    let archive =
        file.with_file_name(format!("{SESSION}.jsonl.deleted.2026-01-02T03-04-05.000Z.zst"));
    std::fs::write(&archive, zstd::bulk::compress(&lines.all, 1).unwrap()).unwrap();
    ctl_ok(&home, &["flush"]);
    assert_stored(&home, &[(&id, &lines)]);
    openclaw.run("DELETE FROM transcript_events; DELETE FROM session_windows");
    wait_for("the archive to be its source", || {
        ctl_ok(&home, &["flush"]);
        let source = manifest(&home, &id)["source_path"].clone();
        source.as_str().unwrap().ends_with(".zst").then_some(())
    });
    ctl_ok(&home, &["flush"]);
    assert_stored(&home, &[(&id, &lines)]);
    std::fs::remove_file(&archive).unwrap();
    wait_for("its end", || {
        ctl_ok(&home, &["flush"]);
        manifest(&home, &id)["ended_at"].is_string().then_some(())
    });
    assert!(daemon.term().success(), "{}", daemon.said());
    home.once();
    assert!(file.exists(), "the file of the time before the database is still there");
    assert_stored(&home, &[(&id, &lines)]);
}

#[test]
fn t56_the_database_of_a_real_openclaw_goes_on_where_its_file_ended() {
    let Some(samples) = std::env::var_os("TRACECRAFT_SAMPLES") else {
        return skipped("the database of a real OpenClaw", "TRACECRAFT_SAMPLES is not set");
    };
    let real = PathBuf::from(samples).join("real/openclaw");
    let home = Home::new();
    let before = std::fs::read(real.join("session-as-jsonl.jsonl")).unwrap();
    home.place(&home.openclaw(SESSION), &before);
    home.once();
    let database = "agents/main/agent/openclaw-agent.sqlite";
    let content = std::fs::read(real.join(database)).unwrap();
    home.place(&home.path().join(".openclaw").join(database), &content);
    home.once();
    let stored = stored(&home);
    let (id, content) = stored.first_key_value().unwrap();
    assert_eq!((stored.len(), id.as_str()), (1, format!("main__{SESSION}").as_str()));
    assert!(content.starts_with(&before) && content.len() > before.len());
    for line in content.split_inclusive(|byte| *byte == b'\n') {
        serde_json::from_slice::<Value>(line).unwrap();
    }
    assert_eq!(manifest(&home, id)["model"], "stub-model");
}
