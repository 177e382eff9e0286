//! What Hermes' tables say, and lines that Python wrote.

use super::*;

/// The columns of version 0.19 that matter here, in their order.
const SCHEMA: &str = "
    CREATE TABLE sessions (id TEXT PRIMARY KEY, source TEXT NOT NULL, model TEXT, system_prompt TEXT,
        parent_session_id TEXT, started_at REAL NOT NULL, ended_at REAL, end_reason TEXT,
        message_count INTEGER DEFAULT 0, cwd TEXT, git_branch TEXT, title TEXT);
    CREATE TABLE messages (id INTEGER PRIMARY KEY AUTOINCREMENT, session_id TEXT NOT NULL, role TEXT NOT NULL,
        content TEXT, timestamp REAL NOT NULL, active INTEGER NOT NULL DEFAULT 1);
    INSERT INTO sessions (id, source, started_at) VALUES ('s', 'cli', 1767323045.5), ('empty', 'cli', 1);
    INSERT INTO messages (session_id, role, content, timestamp) VALUES
        ('s', 'user', 'hello', 1767323046), ('s', 'user', 'key AKIAIOSFODNN7EXAMPLE end', 1767323047.25);";

fn database(more: &str) -> Connection {
    let db = Connection::open_in_memory().unwrap();
    db.execute_batch(SCHEMA).unwrap();
    db.execute_batch(more).unwrap();
    db
}

fn lines(db: &Connection) -> Vec<(i64, RowDigest, String)> {
    let mut lines = Vec::new();
    let mut each = |id, digest, line: &dyn Fn() -> Vec<u8>| {
        lines.push((id, digest, String::from_utf8(line()).unwrap()));
        std::ops::ControlFlow::Continue(())
    };
    HermesTables.rows(db, "s", &mut each).unwrap();
    lines
}

fn overview(db: &Connection) -> SessionRow {
    HermesTables.sessions(db).unwrap().into_iter().find(|session| session.id == "s").unwrap()
}

#[test]
fn a_row_is_the_line_that_the_reference_tool_writes() {
    let db = database(
        r#"UPDATE messages SET content = char(0) || 'json:[{"type":"text","text":"hi"}]' WHERE id = 1"#,
    );
    let lines = lines(&db);
    let first = r#"{"id": 1, "session_id": "s", "role": "user", "content": [{"type": "text", "text": "hi"}], "timestamp": 1767323046.0, "active": 1}"#;
    assert_eq!(lines[0].2, format!("{first}\n"));
    assert_eq!(
        String::from_utf8(HermesTables.tombstone("s \"x\"", 7)).unwrap(),
        "{\"id\": 7, \"session_id\": \"s \\\"x\\\"\", \"deleted\": true}\n"
    );
    assert_eq!(HermesTables.read_line(first.as_bytes()), Some(Line::Row(1)));
    assert_eq!(HermesTables.read_line(&HermesTables.tombstone("s", 7)), Some(Line::Gone(7)));
    assert_eq!(HermesTables.read_line(br#"{"id": 3, "x": Infinity}"#), Some(Line::Row(3)));
    assert_eq!(HermesTables.read_line(b"[1]"), None);
}

#[test]
fn the_sessions_row_is_told_and_every_change_shows_in_the_overview() {
    let db = database("");
    let mut seen = vec![overview(&db).overview];
    for change in [
        "UPDATE messages SET active = 0 WHERE id = 2",
        "UPDATE sessions SET title = 'a title', model = 'm', cwd = '/w', git_branch = 'main' WHERE id = 's'",
        "UPDATE sessions SET ended_at = 1767323050.75, end_reason = 'branched', parent_session_id = 'p' WHERE id = 's'",
        "UPDATE sessions SET message_count = 5 WHERE id = 's'",
        "INSERT INTO messages (session_id, role, content, timestamp) VALUES ('s', 'user', 'x', 1767323060)",
        "DELETE FROM messages WHERE id = 1",
    ] {
        db.execute(change, []).unwrap();
        let overview = overview(&db).overview;
        assert!(!seen.contains(&overview), "{change}");
        seen.push(overview);
    }
    let told = overview(&db);
    assert_eq!(told.started_at.as_deref(), Some("2026-01-02T03:04:05.5Z"));
    assert_eq!((told.cwd.as_deref(), told.rows), (Some("/w"), 2));
    assert_eq!(told.last_ns, 1_767_323_060_000_000_000);
    let about = About {
        title: Some("a title".into()),
        model: Some("m".into()),
        parent: Some("p".into()),
        git_branch: Some("main".into()),
        ended_at: Some("2026-01-02T03:04:10.75Z".into()),
        end_reason: Some("branched".into()),
    };
    assert_eq!(told.about, about);
    assert_eq!(HermesTables.last_id(&db).unwrap(), Some(3));
}

#[test]
fn a_column_that_a_newer_hermes_adds_changes_no_row() {
    let db = database("");
    let before: Vec<RowDigest> = lines(&db).into_iter().map(|(_, digest, _)| digest).collect();
    let stored = lines(&db)[0].2.clone();
    db.execute_batch(
        "ALTER TABLE messages ADD COLUMN extra TEXT; ALTER TABLE messages ADD COLUMN n INTEGER DEFAULT 0;
         ALTER TABLE messages ADD COLUMN t TEXT NOT NULL DEFAULT 'it''s'",
    )
    .unwrap();
    let after: Vec<RowDigest> = lines(&db).into_iter().map(|(_, digest, _)| digest).collect();
    assert_eq!(before, after);
    assert_eq!(HermesTables.is_row(&db, "s", stored.as_bytes()).unwrap(), Some(before[0]));
    db.execute("UPDATE messages SET n = 1 WHERE id = 1", []).unwrap();
    assert_ne!(lines(&db)[0].1, before[0]);
    assert_eq!(HermesTables.is_row(&db, "s", stored.as_bytes()).unwrap(), None);
}

#[test]
fn a_stored_line_is_known_again_whoever_took_the_secrets_out() {
    let db = database("");
    let row = &lines(&db)[1];
    let is = |line: &str| HermesTables.is_row(&db, "s", line.as_bytes()).unwrap() == Some(row.1);
    assert!(is(&row.2));
    assert!(is(&row.2.replace("AKIAIOSFODNN7EXAMPLE", "[REDACTED:aws_access_key]")));
    assert!(is(&row.2.replace("AKIAIOSFODNN7EXAMPLE", "AKIA[REDACTED:something]EXAMPLE")));
    assert!(is(&row.2.replace("key AKIAIOSFODNN7EXAMPLE end", "[REDACTED:a][REDACTED:b] end")));
    assert!(is(&row.2.replace("key ", "[REDACTED:a] ")));
    for other in [
        row.2.replace("key AKIAIOSFODNN7EXAMPLE end", "key AKIAIOSFODNN7EXAMPLE"),
        row.2.replace("key AKIAIOSFODNN7EXAMPLE end", "[REDACTED:a] and"),
        row.2.replace("\"active\": 1", "\"active\": 0"),
        row.2.replace("\"id\": 2", "\"id\": 1"),
        "{\"id\": 2}".into(),
        "not JSON".into(),
    ] {
        assert!(!is(&other), "{other}");
    }
}

#[test]
fn what_is_no_table_is_not_asked() {
    let db = Connection::open_in_memory().unwrap();
    db.execute_batch(
        "CREATE VIEW messages AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n)
         SELECT id, 's' AS session_id FROM n; CREATE TABLE sessions (id TEXT)",
    )
    .unwrap();
    assert!(HermesTables.sessions(&db).is_err());
    assert!(HermesTables.rows(&db, "s", &mut |_, _, _| unreachable!()).is_err());
}

#[test]
fn every_profile_is_found_and_nothing_beside_it() {
    let env = |vars: &[(&str, &str)]| Env {
        home: "/h".into(),
        vars: vars.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
    };
    let root = |vars: &[(&str, &str)]| Hermes.roots(&env(vars))[0].path.clone();
    assert_eq!(root(&[]), Path::new("/h/.hermes"));
    assert_eq!(root(&[("HERMES_HOME", "/x")]), Path::new("/x"));
    assert_eq!(root(&[("HERMES_HOME", "/x/profiles/work")]), Path::new("/x"));
    let root = Root { harness: "hermes", path: "/r".into() };
    for (path, found) in [
        ("/r/state.db", true),
        ("/r/profiles/work/state.db", true),
        ("/r/state.db-wal", false),
        ("/r/state.db.bak", false),
        ("/r/profiles/state.db", false),
        ("/r/profiles/.x/state.db", false),
        ("/r/sessions/state.db", false),
    ] {
        let candidate = Hermes.classify(&root, Path::new(path));
        assert_eq!(candidate.is_some(), found, "{path}");
        assert!(candidate.is_none_or(|c| c.encoding == Encoding::Rows));
    }
    let entered = |path: &str| Hermes.descend(Path::new(path));
    assert!(entered("") && entered("profiles") && entered("profiles/work"));
    assert!(!entered("sessions") && !entered("profiles/work/logs") && !entered("profiles/.x"));
}
