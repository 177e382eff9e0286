//! Events of a database read like a file, through all that is done with files: checks, chunks, rewrites; and keys that are not.

#![allow(clippy::disallowed_methods, reason = "these files belong to an agent that the tests play")]

use super::*;
use crate::source::{
    Chunk, Depth, Encoding, Next, Reading, Rewrite, Unfinished, Verdict, check, is_whole,
};

/// A table with the lines of each session, and one with keys.
#[derive(Debug)]
struct Log;

impl Tables for Log {
    fn readable(&self) -> &'static [&'static str] {
        &["e"]
    }

    fn sessions(&self, db: &Connection) -> rusqlite::Result<Vec<SessionRow>> {
        let mut statement = db.prepare("SELECT s, count(*), max(mark) FROM e GROUP BY s")?;
        let session = |row: &rusqlite::Row<'_>| {
            let (id, rows, mark): (String, i64, Option<String>) =
                (row.get(0)?, row.get(1)?, row.get(2)?);
            let overview = digest_of(&[&rows.to_le_bytes()]);
            let rows = rows.unsigned_abs();
            Ok(SessionRow { id, rows, rewritten: mark, overview, ..SessionRow::default() })
        };
        statement.query_map([], session)?.collect()
    }

    fn events(
        &self,
        db: &Connection,
        session: &str,
        each: &mut dyn FnMut(i64, u64),
    ) -> rusqlite::Result<()> {
        let mut statement =
            db.prepare("SELECT seq, length(line) FROM e WHERE s = ?1 ORDER BY seq")?;
        let mut rows = statement.query([session])?;
        while let Some(row) = rows.next()? {
            each(row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs() + 1);
        }
        Ok(())
    }

    fn lines(
        &self,
        db: &Connection,
        session: &str,
        from: i64,
        each: EachLine<'_>,
    ) -> rusqlite::Result<()> {
        let question = "SELECT seq, line FROM e WHERE s = ?1 AND seq >= ?2 ORDER BY seq";
        let mut statement = db.prepare(question)?;
        let mut rows = statement.query((session, from))?;
        while let Some(row) = rows.next()? {
            if each(row.get(0)?, format!("{}\n", row.get::<_, String>(1)?).into_bytes()).is_break()
            {
                break;
            }
        }
        Ok(())
    }
}

struct Scene {
    _dir: tempfile::TempDir,
    session: PathBuf,
    databases: Databases,
    agent: Connection,
}

impl Scene {
    /// A session of so many events, of some 100 bytes each.
    fn new(events: i64) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let path = root.join("x.db");
        let agent = Connection::open(&path).unwrap();
        agent
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF;
                 CREATE TABLE e (s TEXT, seq INTEGER, line TEXT, mark TEXT, PRIMARY KEY (s, seq));
                 CREATE TABLE keys (secret TEXT); INSERT INTO keys VALUES ('a secret')",
            )
            .unwrap();
        let log: Arc<dyn Tables> = Arc::new(Log);
        let databases = Databases::new(root.join("copies"), 0, [("log", log)]);
        let session = session_path(&path, "s");
        let scene = Scene { _dir: dir, session, databases, agent };
        scene.say_all(0..events);
        scene
    }

    fn say(&self, number: i64) {
        let line = format!("{{\"n\":{number},\"text\":\"{}\"}}", "x".repeat(90));
        self.run(&format!("INSERT INTO e (s, seq, line) VALUES ('s', {number}, '{line}')"));
    }

    fn say_all(&self, numbers: std::ops::Range<i64>) {
        self.run("BEGIN");
        numbers.for_each(|number| self.say(number));
        self.run("COMMIT");
    }

    fn run(&self, sql: &str) {
        self.agent.execute_batch(sql).unwrap();
    }

    fn look(&self) {
        self.databases.begin_look();
        self.databases.untold("log", &self.session, false).unwrap();
    }

    fn all(&self) -> String {
        let mut statement = self.agent.prepare("SELECT line FROM e ORDER BY seq").unwrap();
        let lines = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        lines.map(|line| line.unwrap() + "\n").collect()
    }

    fn start(&self) -> Cursor {
        self.look();
        Cursor::start(self.databases.stat(&self.session).unwrap())
    }

    fn check(&self, cursor: &Cursor, depth: Depth) -> Verdict {
        self.look();
        check(&self.databases, &self.session, Encoding::Events, cursor, depth).unwrap()
    }

    /// What is read from a cursor on, and the cursor behind it.
    fn read(&self, cursor: &Cursor) -> (String, Cursor) {
        self.look();
        let opened = Reading::open(&self.databases, &self.session, Encoding::Events, cursor);
        let mut reading = opened.unwrap().unwrap();
        let (mut all, mut cursor) = (Vec::new(), cursor.clone());
        while let Next::Chunk(Chunk { bytes, cursor: after, start, .. }) =
            reading.next(Unfinished::Wait).unwrap()
        {
            assert_eq!(start, cursor.offset);
            all.extend(bytes);
            cursor = after;
        }
        (String::from_utf8(all).unwrap(), cursor)
    }
}

fn why(verdict: Verdict) -> Rewrite {
    match verdict {
        Verdict::Rewritten { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

fn intact(verdict: Verdict) -> (Cursor, bool) {
    match verdict {
        Verdict::Intact { cursor, more } => (cursor, more),
        other => panic!("{other:?}"),
    }
}

#[test]
fn t56_events_are_read_in_chunks_and_go_on_at_the_cursor() {
    let scene = Scene::new(30_000);
    let (first, cursor) = scene.read(&scene.start());
    assert!(first.len() > 3 << 20);
    assert_eq!(first, scene.all());
    let mark = EventMark { first: 0, last: 29_999, end: first.len() as u64 };
    assert_eq!(cursor.events, Some(mark));
    assert_eq!(scene.check(&cursor, Depth::Quick), Verdict::Unchanged);
    scene.say(40_000);
    let (cursor, more) = intact(scene.check(&cursor, Depth::Quick));
    assert!(more);
    let (next, _) = scene.read(&cursor);
    assert_eq!(first + &next, scene.all());
}

#[test]
fn t56_a_cursor_that_was_made_on_a_file_of_the_same_lines_goes_on_among_the_events() {
    let scene = Scene::new(2000);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("s.jsonl");
    let lines = scene.all();
    std::fs::write(&file, &lines).unwrap();
    let mut cursor = Cursor::start(OsFiles.stat(&file).unwrap());
    let mut reading = Reading::open(&OsFiles, &file, Encoding::Plain, &cursor).unwrap().unwrap();
    while let Next::Chunk(chunk) = reading.next(Unfinished::Wait).unwrap() {
        cursor = chunk.cursor;
    }
    assert_eq!(cursor.events, None);
    scene.say(2000);
    let (cursor, more) = intact(scene.check(&cursor, Depth::Quick));
    assert!(more && cursor.verified, "another inode: all of it was compared");
    assert_eq!(cursor.events.unwrap().end, lines.len() as u64);
    assert_eq!(lines + &scene.read(&cursor).0, scene.all());
}

#[test]
fn t56_events_that_were_changed_taken_back_or_written_anew_are_a_rewrite() {
    let changes = [
        ("UPDATE e SET line = replace(line, 'x', 'y') WHERE seq = 0", Rewrite::HeadDiffers),
        ("UPDATE e SET line = replace(line, 'x', 'y') WHERE seq = 1999", Rewrite::TailDiffers),
        ("DELETE FROM e WHERE seq > 1000", Rewrite::Shorter),
        ("DELETE FROM e WHERE seq = 1999", Rewrite::Shorter),
        ("DELETE FROM e; INSERT INTO e (s, seq, line) VALUES ('s', 0, '{}')", Rewrite::Shorter),
    ];
    for (change, expected) in changes {
        let scene = Scene::new(2000);
        let (_, cursor) = scene.read(&scene.start());
        scene.run(change);
        assert_eq!(why(scene.check(&cursor, Depth::Whole)), expected, "{change}");
    }
    // In the middle: told by its agent's mark, else by a look at all of it.
    let scene = Scene::new(2000);
    let (_, cursor) = scene.read(&scene.start());
    scene.run("UPDATE e SET line = replace(line, 'x', 'y') WHERE seq = 700");
    scene.say(2000);
    assert!(intact(scene.check(&cursor, Depth::Quick)).1);
    assert_eq!(why(scene.check(&cursor, Depth::Whole)), Rewrite::MiddleDiffers);
    scene.run("UPDATE e SET mark = 'other'");
    assert_eq!(why(scene.check(&cursor, Depth::Quick)), Rewrite::MiddleDiffers);
}

#[test]
fn a_mark_alone_is_no_rewrite() {
    let scene = Scene::new(2000);
    let (_, cursor) = scene.read(&scene.start());
    scene.run("UPDATE e SET mark = 'other'");
    let (cursor, more) = intact(scene.check(&cursor, Depth::Quick));
    assert!(cursor.verified && !more);
}

#[test]
fn t56_events_that_were_put_away_are_no_rewrite_and_what_follows_goes_on() {
    let scene = Scene::new(2000);
    let (_, cursor) = scene.read(&scene.start());
    scene.run("DELETE FROM e WHERE seq < 800");
    scene.say(2000);
    scene.look();
    assert!(!is_whole(&scene.databases, &scene.session, &cursor).unwrap());
    let (cursor, more) = intact(scene.check(&cursor, Depth::Whole));
    assert!(more);
    let (next, cursor) = scene.read(&cursor);
    assert!(next.starts_with("{\"n\":2000,") && next.lines().count() == 1, "{next}");
    assert_eq!(cursor.events.map(|mark| (mark.first, mark.last)), Some((0, 2000)));
    // What is left is still compared.
    scene.run("UPDATE e SET line = replace(line, 'x', 'y') WHERE seq = 2000");
    assert_eq!(why(scene.check(&cursor, Depth::Whole)), Rewrite::TailDiffers);
}

#[test]
fn t56_a_session_without_its_events_is_as_it_was_until_others_come() {
    let scene = Scene::new(2000);
    scene.run("INSERT INTO e (s, seq, line) VALUES ('other', 0, '{}')");
    let (lines, cursor) = scene.read(&scene.start());
    // All but an event that is no longer than to tell that the session is there.
    scene.run("DELETE FROM e WHERE s = 's' AND seq < 1999");
    let (kept, more) = intact(scene.check(&cursor, Depth::Whole));
    assert!(!more && kept.fingerprint == cursor.fingerprint && kept.offset == cursor.offset);
    scene.say(2000);
    assert_eq!(why(scene.check(&kept, Depth::Quick)), Rewrite::PutAway);
    // They come back: all is as it was.
    scene.say_all(0..1999);
    let (whole, more) = intact(scene.check(&kept, Depth::Whole));
    assert!(more);
    assert_eq!(scene.read(&whole).0.lines().count(), 1);
    assert_eq!(lines.len() as u64, whole.offset);
}

#[test]
fn a_database_that_changes_while_it_is_read_is_a_file_that_changes() {
    let scene = Scene::new(30_000);
    let cursor = scene.start();
    let opened = Reading::open(&scene.databases, &scene.session, Encoding::Events, &cursor);
    let mut reading = opened.unwrap().unwrap();
    let Next::Chunk(first) = reading.next(Unfinished::Wait).unwrap() else { panic!("no chunk") };
    scene.say(30_000);
    scene.look();
    let Next::Chunk(second) = reading.next(Unfinished::Wait).unwrap() else { panic!("no chunk") };
    assert_eq!(first.cursor.offset, second.start);
    scene.run("UPDATE e SET line = replace(line, 'x', 'y'), mark = 'other'");
    scene.look();
    assert!(matches!(reading.next(Unfinished::Wait), Ok(Next::Changed)));
}

#[test]
fn t56_keys_in_the_database_cannot_be_asked_for() {
    let scene = Scene::new(1);
    scene.look();
    let log: Arc<dyn Tables> = Arc::new(Log);
    let (path, _) = session_of(&scene.session).unwrap();
    let database = scene.databases.database(path, &log);
    let ask = |question: &'static str| {
        lock(&database).ask(|db| db.query_row(question, [], |row| row.get::<_, String>(0)))
    };
    assert!(ask("SELECT line FROM e").is_ok());
    for question in ["SELECT secret FROM keys", "SELECT (SELECT secret FROM keys) FROM e"] {
        let failed = format!("{:?}", ask(question).unwrap_err());
        assert!(failed.contains("prohibited"), "{failed}");
    }
}

#[test]
fn a_session_whose_database_did_not_change_costs_no_copy() {
    let scene = Scene::new(2000);
    let (path, _) = session_of(&scene.session).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let settled = |e: Evidence| e.is_still(&e);
    while !settled(Evidence::of(&OsFiles, path).unwrap()) {
        assert!(Instant::now() < deadline, "its times never grew old");
        std::thread::sleep(Duration::from_millis(20));
    }
    let (_, cursor) = scene.read(&scene.start());
    let (cursor, _) = intact(scene.check(&cursor, Depth::Whole));
    let log: Arc<dyn Tables> = Arc::new(Log);
    lock(&scene.databases.database(path, &log)).changed_at = Instant::now() - COPY_KEPT;
    scene.databases.sessions("log", path).unwrap();
    let copies = || scene.databases.dir.read_dir().map_or(0, Iterator::count);
    assert_eq!(copies(), 0, "the copy of a quiet database is removed");
    assert_eq!(scene.check(&cursor, Depth::Quick), Verdict::Unchanged);
    assert_eq!(scene.check(&cursor, Depth::Whole), Verdict::Unchanged);
    assert_eq!(copies(), 0);
}
