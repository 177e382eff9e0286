//! Private copies under a real writer: what is read is always what was committed, and the database is never touched.

#![allow(clippy::disallowed_methods, reason = "these files belong to an agent that the tests play")]

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use super::copy::sibling;
use super::*;

/// One table, one session for each value of `s`.
#[derive(Debug)]
struct Plain;

impl Tables for Plain {
    fn readable(&self) -> &'static [&'static str] {
        &["t"]
    }

    fn sessions(&self, db: &Connection) -> rusqlite::Result<Vec<SessionRow>> {
        let question = "SELECT s, count(*), max(id) FROM t GROUP BY s";
        let mut statement = db.prepare(question)?;
        let session = |row: &rusqlite::Row<'_>| {
            let (id, rows, last): (String, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            Ok(SessionRow {
                overview: digest_of(&[&rows.to_le_bytes(), &last.to_le_bytes()]),
                id,
                rows: rows.unsigned_abs(),
                last_ns: last,
                ..SessionRow::default()
            })
        };
        statement.query_map([], session)?.collect()
    }

    fn rows(&self, db: &Connection, session: &str, each: EachRow<'_>) -> rusqlite::Result<()> {
        let mut statement = db.prepare("SELECT id, v FROM t WHERE s = ?1 ORDER BY id")?;
        let mut rows = statement.query([session])?;
        while let Some(row) = rows.next()? {
            let (id, value): (i64, String) = (row.get(0)?, row.get(1)?);
            if each(id, digest_of(&[value.as_bytes()]), &|| value.clone().into_bytes()).is_break() {
                break;
            }
        }
        Ok(())
    }
}

struct Scene {
    _dir: tempfile::TempDir,
    path: PathBuf,
    copies: PathBuf,
    databases: Databases,
}

fn scene() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    std::fs::create_dir(root.join("agent")).unwrap();
    let copies = root.join("state/copies");
    let plain: Arc<dyn Tables> = Arc::new(Plain);
    let databases = Databases::new(copies.clone(), 0, [("plain", plain)]);
    Scene { path: root.join("agent/x.db"), _dir: dir, copies, databases }
}

fn writer(path: &Path, journal: &str) -> Connection {
    let db = Connection::open(path).unwrap();
    db.execute_batch(&format!(
        "PRAGMA journal_mode = {journal}; PRAGMA synchronous = OFF; PRAGMA wal_autocheckpoint = 0;
         CREATE TABLE IF NOT EXISTS t (id INTEGER PRIMARY KEY, s TEXT, v TEXT)"
    ))
    .unwrap();
    db
}

fn insert(db: &Connection, session: &str, value: &str) {
    db.execute("INSERT INTO t (s, v) VALUES (?1, ?2)", [session, value]).unwrap();
}

/// The rows of a session, as a new look shows them.
fn rows(scene: &Scene, session: &str) -> Result<Vec<(i64, String)>, SourceError> {
    scene.databases.begin_look();
    let path = session_path(&scene.path, session);
    scene.databases.look_at("plain", &path, |view| {
        let mut rows = Vec::new();
        view.rows(&mut |id, _, line| {
            rows.push((id, String::from_utf8(line()).unwrap()));
            ControlFlow::Continue(())
        })?;
        Ok(rows)
    })
}

fn beside(path: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(path.parent().unwrap()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn t54_a_live_database_is_read_and_left_as_it_is_in_every_journal_mode() {
    for journal in ["WAL", "DELETE", "TRUNCATE", "PERSIST"] {
        let scene = scene();
        let db = writer(&scene.path, journal);
        insert(&db, "a", "one");
        let (files, names) = (inodes(&scene.path), beside(&scene.path));
        assert_eq!(rows(&scene, "a").unwrap(), [(1, "one".into())], "{journal}");
        insert(&db, "a", "two");
        assert_eq!(rows(&scene, "a").unwrap().len(), 2, "{journal}");
        db.execute("UPDATE t SET v = 'other' WHERE id = 1", []).unwrap();
        db.execute_batch("PRAGMA wal_checkpoint(PASSIVE)").unwrap();
        assert_eq!(rows(&scene, "a").unwrap()[0], (1, "other".into()), "{journal}");
        assert_eq!((inodes(&scene.path), beside(&scene.path)), (files, names), "{journal}");
    }
}

fn inodes(path: &Path) -> Vec<Option<u64>> {
    use std::os::unix::fs::MetadataExt;
    let ino = |end| std::fs::metadata(sibling(path, end)).ok().map(|m| m.ino());
    ["", "-wal", "-shm"].map(ino).to_vec()
}

#[test]
fn what_is_not_committed_is_not_read() {
    for journal in ["WAL", "DELETE"] {
        let scene = scene();
        let db = writer(&scene.path, journal);
        insert(&db, "a", "committed");
        // A cache of nothing: rows reach the files before they are committed.
        db.execute_batch("PRAGMA cache_size = 1; BEGIN IMMEDIATE").unwrap();
        for _ in 0..200 {
            insert(&db, "a", &"x".repeat(1000));
        }
        assert_eq!(rows(&scene, "a").unwrap(), [(1, "committed".into())], "{journal}");
        db.execute_batch("ROLLBACK").unwrap();
        insert(&db, "a", "after");
        assert_eq!(rows(&scene, "a").unwrap(), [(1, "committed".into()), (2, "after".into())]);
    }
}

#[test]
fn t54_whatever_a_writer_and_its_checkpoints_do_meanwhile_a_copy_is_of_one_moment() {
    let scene = scene();
    let path = scene.path.clone();
    // Every transaction moves one from one row to another, over many pages: the sum is always the same.
    let db = writer(&path, "WAL");
    db.execute_batch("BEGIN").unwrap();
    for _ in 0..300 {
        insert(&db, "a", &format!("{:0>500}", 100));
    }
    db.execute_batch("COMMIT").unwrap();
    drop(db);
    let over = Arc::new(AtomicBool::new(false));
    let stop = over.clone();
    let thread = std::thread::spawn(move || {
        let (db, mut rng) = (writer(&path, "WAL"), fastrand::Rng::with_seed(3));
        while !stop.load(Ordering::Relaxed) {
            db.execute_batch("BEGIN").unwrap();
            for _ in 0..20 {
                let (from, to) = (rng.u32(1..=300), rng.u32(1..=300));
                let add =
                    "UPDATE t SET v = printf('%0500d', CAST(v AS INTEGER) + ?1) WHERE id = ?2";
                db.execute(add, (-1, from)).unwrap();
                db.execute(add, (1, to)).unwrap();
            }
            db.execute_batch("COMMIT").unwrap();
            let mode = ["PASSIVE", "FULL", "RESTART", "TRUNCATE"][rng.usize(..4)];
            if rng.u8(..3) == 0 {
                let _ = db.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()));
            }
        }
    });
    let mut read = 0;
    for _ in 0..200 {
        match rows(&scene, "a") {
            Ok(rows) => {
                let sum: i64 =
                    rows.iter().map(|(_, v)| v.trim_start_matches('0').parse().unwrap_or(0)).sum();
                assert_eq!((rows.len(), sum), (300, 30_000));
                read += 1;
            }
            Err(SourceError::Busy(_)) => {} // It did not pause; the next look is another try.
            Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
        }
    }
    over.store(true, Ordering::Relaxed);
    thread.join().unwrap();
    assert!(read > 100, "only {read} of 200 looks came through");
}

#[test]
fn a_transaction_whose_writer_died_is_rolled_back_in_the_copy_alone() {
    let scene = scene();
    let db = writer(&scene.path, "DELETE");
    insert(&db, "a", "committed");
    db.execute_batch("PRAGMA cache_size = 1; BEGIN IMMEDIATE").unwrap();
    for _ in 0..200 {
        insert(&db, "a", &"x".repeat(1000));
    }
    // As a kill leaves it: half of a transaction in the main file, and a hot journal.
    let dead = scene.path.with_file_name("dead.db");
    std::fs::copy(&scene.path, &dead).unwrap();
    std::fs::copy(sibling(&scene.path, "-journal"), sibling(&dead, "-journal")).unwrap();
    drop(db);
    let before = std::fs::read(&dead).unwrap();
    let scene = Scene { path: dead, ..scene };
    assert_eq!(rows(&scene, "a").unwrap(), [(1, "committed".into())]);
    assert_eq!(std::fs::read(&scene.path).unwrap(), before);
    assert!(sibling(&scene.path, "-journal").exists());
    assert_eq!(rows(&scene, "a").unwrap(), [(1, "committed".into())], "a second look, too");
}

#[test]
fn an_unchanged_database_costs_no_copy_and_a_quiet_one_keeps_none() {
    let scene = scene();
    let db = writer(&scene.path, "WAL");
    insert(&db, "a", "one");
    drop(db);
    let old = std::time::SystemTime::now() - Duration::from_secs(3600);
    std::fs::File::options().append(true).open(&scene.path).unwrap().set_modified(old).unwrap();
    let sessions = scene.databases.sessions("plain", &scene.path).unwrap();
    assert_eq!(sessions.len(), 1);
    // The change time cannot be set back, so that the first look was one too soon to be trusted.
    let deadline = Instant::now() + Duration::from_secs(60);
    let settled = |e: Evidence| e.is_still(&e);
    while !settled(Evidence::of(&OsFiles, &scene.path).unwrap()) {
        assert!(Instant::now() < deadline, "its times never grew old");
        std::thread::sleep(Duration::from_millis(20));
    }
    scene.databases.sessions("plain", &scene.path).unwrap();
    let made =
        std::fs::metadata(files_of(&scene.copies).pop().unwrap()).unwrap().modified().unwrap();
    for _ in 0..3 {
        scene.databases.sessions("plain", &scene.path).unwrap();
    }
    let kept = std::fs::metadata(files_of(&scene.copies).pop().unwrap()).unwrap();
    assert_eq!(kept.modified().unwrap(), made);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(kept.permissions().mode() & 0o777, 0o600);
    let plain: Arc<dyn Tables> = Arc::new(Plain);
    lock(&scene.databases.database(&scene.path, &plain)).changed_at = Instant::now() - COPY_KEPT;
    scene.databases.sessions("plain", &scene.path).unwrap();
    assert!(files_of(&scene.copies).is_empty(), "the copy of a quiet database is removed");
    assert_eq!(rows(&scene, "a").unwrap().len(), 1, "and made again where it is asked for");
    drop(scene.databases);
    assert!(files_of(&scene.copies).is_empty(), "nothing is left at the end");
}

fn files_of(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let dirs = entries.map(|entry| entry.unwrap().path());
    dirs.flat_map(|dir| std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path())).collect()
}

#[test]
fn t55_what_is_no_database_or_lacks_its_tables_is_an_error_and_not_an_empty_list() {
    let scene = scene();
    std::fs::write(&scene.path, b"this is no database".repeat(1000)).unwrap();
    assert!(matches!(
        scene.databases.sessions("plain", &scene.path),
        Err(SourceError::Database { .. })
    ));
    std::fs::remove_file(&scene.path).unwrap();
    Connection::open(&scene.path).unwrap().execute_batch("CREATE TABLE other (x)").unwrap();
    assert!(matches!(
        scene.databases.sessions("plain", &scene.path),
        Err(SourceError::Database { .. })
    ));
    assert!(
        matches!(
            scene.databases.stat(&session_path(&scene.path, "a")),
            Err(SourceError::Uncopied { .. })
        ),
        "a session is not gone because its database cannot be read"
    );
    std::fs::remove_file(&scene.path).unwrap();
    assert!(matches!(scene.databases.sessions("plain", &scene.path), Err(SourceError::Missing(_))));
    assert!(matches!(
        scene.databases.stat(&session_path(&scene.path, "a")),
        Err(SourceError::Missing(_))
    ));
    let db = writer(&scene.path, "WAL");
    insert(&db, "a", "mended");
    assert_eq!(rows(&scene, "a").unwrap(), [(1, "mended".into())]);
}

#[test]
fn links_fifos_and_full_disks_are_refused() {
    let scene = scene();
    let real = scene.path.with_file_name("real.db");
    drop(writer(&real, "WAL"));
    std::os::unix::fs::symlink(&real, &scene.path).unwrap();
    assert!(matches!(
        scene.databases.sessions("plain", &scene.path),
        Err(SourceError::Unfit { .. })
    ));
    let scene = Scene {
        databases: Databases::new(
            scene.copies.clone(),
            u64::MAX,
            [("plain", Arc::new(Plain) as _)],
        ),
        path: real,
        ..scene
    };
    assert!(matches!(
        scene.databases.sessions("plain", &scene.path),
        Err(SourceError::Uncopied { .. })
    ));
}

#[test]
fn the_path_of_a_session_leads_back_to_it_and_nowhere_else() {
    let ids = [
        "20260102_030405_abcdef",
        "",
        ".",
        "..",
        "...",
        "a/b",
        "/etc/passwd",
        "%",
        "%2F",
        "ä",
        "a b",
        "a\0b",
        ".hidden",
    ];
    let database = Path::new("/h/.hermes/state.db");
    let mut paths = BTreeSet::new();
    for id in ids {
        let path = session_path(database, id);
        assert_eq!(path.parent(), Some(database), "{id:?}");
        assert_eq!(session_of(&path), Some((database, id.to_owned())), "{id:?}");
        assert!(paths.insert(path), "{id:?} has another's path");
    }
}
