//! Random writes by a real SQLite, random looks, kills and power losses in between, against a plain model of the rows.
//!
//! The oracle: after a look the log of a session, folded, is its rows; no line says what was known already; a new generation
//! begins where the database was replaced, and nowhere else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::Connection;
use serde_json::Value;

use crate::durable::Disk;
use crate::durable::memory::MemoryDisk;
use crate::ledger::Ledgers;
use crate::mirror::capture::{Care, Look, Seen, Tools, capture};
use crate::mirror::find::RootsFinder;
use crate::outbox::Outbox;
use crate::part::SessionKey;
use crate::redact::Redactor;
use crate::source::database::{Databases, session_path};
use crate::source::{Cursor, Encoding, Rewrite, Unfinished};

const SESSIONS: [&str; 3] = ["s0", "s1", "s2"];

/// What a bucket and a state would hold of one session.
#[derive(Default)]
struct Mirrored {
    generation: u32,
    cursor: Option<Cursor>,
    next_seq: u32,
    rows: BTreeMap<i64, String>,
    lines: usize,
}

impl Mirrored {
    fn key(&self, id: &str) -> SessionKey {
        SessionKey::new("hermes", id).with_generation(self.generation + 1)
    }

    /// Takes in lines that were committed.
    fn take(&mut self, log: &[u8]) {
        assert!(log.ends_with(b"\n"), "a part ends at the end of a line");
        for line in std::str::from_utf8(log).unwrap().lines() {
            let row: Value = serde_json::from_str(line).unwrap();
            let id = row["id"].as_i64().unwrap();
            self.lines += 1;
            if row["deleted"] == true {
                assert!(self.rows.remove(&id).is_some(), "a tombstone for no row: {line}");
            } else {
                let before = self.rows.insert(id, line.to_owned());
                assert_ne!(before.as_deref(), Some(line), "the same state twice");
            }
        }
    }
}

struct World {
    rng: fastrand::Rng,
    _dir: tempfile::TempDir,
    home: PathBuf,
    disk: MemoryDisk,
    tools: Tools,
    writer: Option<Connection>,
    mirrored: BTreeMap<&'static str, Mirrored>,
    replaced: bool,
    told: Vec<String>,
}

fn databases(home: &Path) -> Arc<Databases> {
    let tables = crate::harness::all().into_iter().filter_map(|h| Some((h.name(), h.tables()?)));
    Arc::new(Databases::new(home.join("state/copies"), 0, tables))
}

impl World {
    fn new(seed: u64) -> World {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        std::fs::create_dir(home.join("agent")).unwrap();
        let disk = MemoryDisk::new();
        let databases = databases(&home);
        let finder = RootsFinder::new(databases.clone(), vec![], vec![], None);
        let tools = Tools {
            files: Arc::new(crate::source::OsFiles),
            disk: Arc::new(disk.clone()),
            redactor: Arc::new(Redactor::standard()),
            outbox: Outbox::new(Path::new("/state")),
            finder: Arc::new(finder),
            databases,
            ledgers: Ledgers::new(Path::new("/state")),
        };
        let mut world = World {
            rng: fastrand::Rng::with_seed(seed),
            _dir: dir,
            home,
            disk,
            tools,
            writer: None,
            mirrored: SESSIONS.iter().map(|id| (*id, Mirrored::default())).collect(),
            replaced: false,
            told: Vec::new(),
        };
        world.open();
        world
    }

    fn path(&self) -> PathBuf {
        self.home.join("agent/state.db")
    }

    fn open(&mut self) {
        let db = Connection::open(self.path()).unwrap();
        let journal = ["WAL", "WAL", "WAL", "DELETE", "PERSIST"][self.rng.usize(..5)];
        db.execute_batch(&format!(
            "PRAGMA journal_mode = {journal}; PRAGMA synchronous = OFF; PRAGMA page_size = 512;
             CREATE TABLE IF NOT EXISTS sessions (id TEXT PRIMARY KEY, title TEXT, started_at REAL, message_count INTEGER);
             CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY AUTOINCREMENT, session_id TEXT, role TEXT,
                 content TEXT, timestamp REAL, active INTEGER DEFAULT 1, api_content TEXT);
             CREATE INDEX IF NOT EXISTS i ON messages(session_id, active, timestamp);
             INSERT OR IGNORE INTO sessions VALUES ('s0', NULL, 1, 0), ('s1', NULL, 1, 0), ('s2', NULL, 1, 0);"
        ))
        .unwrap();
        self.writer = Some(db);
    }

    fn act(&mut self) {
        let what = self.change();
        self.told.push(what);
    }

    fn change(&mut self) -> String {
        let session = SESSIONS[self.rng.usize(..3)];
        let kind = self.rng.u8(..40);
        let text = "x".repeat(self.rng.usize(..900)) + &self.rng.u32(..).to_string();
        let Some(db) = &self.writer else {
            self.open();
            return "opened".into();
        };
        let run = |sql: &str| {
            let named = sql.contains(":t");
            let mut statement = db.prepare(sql).unwrap();
            let done = match named {
                true => {
                    statement.execute(&[(":s", session), (":t", text.as_str())] as &[(&str, &str)])
                }
                false => statement.execute(&[(":s", session)] as &[(&str, &str)]),
            };
            done.unwrap();
        };
        const INSERT: &str = "INSERT INTO messages (session_id, role, content, timestamp) VALUES (:s, 'user', :t, 5)";
        match kind {
            0..=14 => run(INSERT),
            15..=18 => {
                run("UPDATE messages SET active = 1 - active WHERE session_id = :s AND id % 3 = 0")
            }
            19..=21 => run(
                "UPDATE messages SET api_content = :t WHERE id = (SELECT max(id) FROM messages WHERE session_id = :s)",
            ),
            22..=23 => run("DELETE FROM messages WHERE session_id = :s AND id % 4 = 1"),
            24..=25 => {
                db.execute_batch("BEGIN").unwrap();
                run("DELETE FROM messages WHERE session_id = :s");
                run(INSERT);
                run(INSERT);
                db.execute_batch(["COMMIT", "ROLLBACK"][usize::from(kind == 25)]).unwrap();
            }
            26 => run("UPDATE sessions SET title = :t WHERE id = :s"),
            27 => db.execute_batch("VACUUM").unwrap(),
            28..=31 => {
                let mode = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][usize::from(kind - 28)];
                let _ = db.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()));
            }
            32 => run("DELETE FROM messages WHERE session_id = :s"),
            33..=34 => {
                self.writer = None;
                return "closed".into();
            }
            35 if self.rng.u8(..3) == 0 => {
                // A new database in its place, by a rename.
                self.writer = None;
                for end in ["", "-wal", "-shm", "-journal"] {
                    let _ = std::fs::remove_file(format!("{}{end}", self.path().display()));
                }
                self.replaced = true;
                self.open();
                return "replaced".into();
            }
            _ => run(INSERT),
        }
        format!("{kind} {session}")
    }

    fn rows_now(&self) -> BTreeMap<String, BTreeMap<i64, Value>> {
        let db = Connection::open(self.path()).unwrap();
        let mut statement = db
            .prepare("SELECT id, session_id, content, active, api_content FROM messages")
            .unwrap();
        let mut rows = statement.query([]).unwrap();
        let mut all = BTreeMap::<String, BTreeMap<i64, Value>>::new();
        while let Some(row) = rows.next().unwrap() {
            let values = serde_json::json!([
                row.get::<_, String>(2).unwrap(),
                row.get::<_, i64>(3).unwrap(),
                row.get::<_, Option<String>>(4).unwrap(),
            ]);
            all.entry(row.get(1).unwrap()).or_default().insert(row.get(0).unwrap(), values);
        }
        all
    }

    fn looks(&mut self) -> Vec<Look> {
        let path = self.path();
        let whole = self.rng.u8(..8) == 0;
        let look = |(id, one): (&&'static str, &Mirrored)| {
            let cursor = one.cursor.clone().unwrap_or_else(|| Cursor::start(no_stat()));
            Look {
                key: one.key(id),
                path: session_path(&path, id),
                encoding: Encoding::Rows,
                cursor,
                next_seq: one.next_seq,
                care: if whole { Care::Whole } else { Care::Quick },
                unfinished: Unfinished::Wait,
                wants_cwd: false,
                now: "2026-01-02T03:04:05Z".into(),
            }
        };
        self.mirrored.iter().map(look).collect()
    }

    /// A look at all sessions, and then a commit, a failed commit, a kill, or a power loss.
    fn look(&mut self) {
        let looks = self.looks();
        let batch = capture(&self.tools, looks);
        assert!(batch.error.is_none() && batch.rest.is_empty());
        let fate = self.rng.u8(..10);
        self.told.push(format!("look, fate {fate}"));
        match fate {
            0 => return, // The commit failed; the process goes on.
            1 => {
                self.tools.databases = databases(&self.home); // Killed.
                return;
            }
            2 => {
                self.disk.crash(&mut self.rng);
                self.tools.databases = databases(&self.home);
                return;
            }
            _ => {}
        }
        let rows = self.rows_now();
        for (key, seen) in batch.seen {
            self.committed(&key, seen, &rows);
        }
        if fate == 3 {
            self.disk.crash(&mut self.rng); // What a commit relies on is durable.
            self.tools.databases = databases(&self.home);
        }
    }

    fn committed(
        &mut self,
        key: &SessionKey,
        seen: Seen,
        rows: &BTreeMap<String, BTreeMap<i64, Value>>,
    ) {
        let one = self.mirrored.get_mut(key.base()).unwrap();
        for (part, cursor) in seen.parts() {
            assert_eq!(
                part.range[0],
                one.cursor.as_ref().map_or(0, |cursor| cursor.offset),
                "ranges abut"
            );
            assert_eq!(part.range[1], cursor.offset);
            let path = self.tools.outbox.path(key, part);
            one.take(&self.disk.read(&path).unwrap());
            self.disk.remove(&path).unwrap();
            one.cursor = Some(cursor.clone());
            one.next_seq = part.seq + 1;
        }
        match seen {
            Seen::Read { cursor, told, .. } => {
                assert!(told.is_some());
                one.cursor = Some(cursor);
                let now = rows.get(key.base()).cloned().unwrap_or_default();
                let row = |line: &String| {
                    let row: Value = serde_json::from_str(line).unwrap();
                    serde_json::json!([row["content"], row["active"], row["api_content"]])
                };
                let folded: BTreeMap<i64, Value> =
                    one.rows.iter().map(|(id, l)| (*id, row(l))).collect();
                assert_eq!(folded, now, "{key}: folded, the log is not the rows");
            }
            Seen::Rewritten { why, .. } => {
                assert_eq!(why, Rewrite::IdsAgain);
                assert!(self.replaced, "a new generation that nothing asked for");
                *one = Mirrored { generation: one.generation + 1, ..Mirrored::default() };
            }
            other => panic!("{key}: {other:?}"),
        }
    }
}

fn no_stat() -> crate::source::Stat {
    crate::source::Stat { dev: 0, ino: 0, size: 0, mtime_ns: 0, ctime_ns: 0 }
}

fn play(seed: u64) -> (usize, bool) {
    let mut world = World::new(seed);
    let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for _ in 0..60 {
            for _ in 0..world.rng.usize(..5) {
                world.act();
            }
            world.look();
        }
    }));
    if let Err(panic) = run {
        println!("seed {seed}: {}", world.told.join("; "));
        std::panic::resume_unwind(panic);
    }
    (world.mirrored.values().map(|one| one.lines).sum(), world.replaced)
}

#[test]
fn t55_t57_folded_the_log_is_the_rows_whatever_a_writer_a_kill_or_a_power_loss_does() {
    let sequences = std::env::var("TRACECRAFT_MODEL_SEQUENCES").ok().and_then(|n| n.parse().ok());
    // Each costs some syncs of a real disk; the long run is the release step's.
    let sequences: u64 = sequences.map_or(12, |n: u64| n.div_ceil(50));
    let first =
        std::env::var("TRACECRAFT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let played: Vec<_> = (first..first + sequences).map(play).collect();
    let lines: usize = played.iter().map(|(lines, _)| lines).sum();
    assert!(lines as u64 > 40 * sequences, "only {lines} lines");
    assert!(sequences < 20 || played.iter().any(|(_, replaced)| *replaced));
}

#[test]
fn a_lost_ledger_is_said_and_nothing_is_captured_twice_without_it() {
    let mut world = World::new(1);
    world.change();
    while world.rows_now().get("s0").is_none_or(|rows| rows.len() < 3) {
        world.act();
    }
    let looks = world.looks();
    let batch = capture(&world.tools, looks);
    let rows = world.rows_now();
    batch.seen.into_iter().for_each(|(key, seen)| world.committed(&key, seen, &rows));
    let key = world.mirrored["s0"].key("s0");
    for (path, _) in world.disk.list(Path::new("/state/rows")).unwrap() {
        world.disk.remove(&path).unwrap();
    }
    world.tools.databases = databases(&world.home);
    let looks = world.looks();
    let batch = capture(&world.tools, looks);
    let (_, seen) = batch.seen.into_iter().find(|(k, _)| *k == key).unwrap();
    assert!(matches!(seen, Seen::Unledgered), "{seen:?}");
}
