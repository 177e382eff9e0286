//! What OpenClaw's tables say, in the versions that we know and in those that we do not.

use super::*;

/// The columns of schema 23 that matter here.
const SCHEMA: &str = "
    CREATE TABLE session_windows (session_id TEXT NOT NULL PRIMARY KEY, session_key TEXT NOT NULL, previous_session_id TEXT,
        created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, transcript_updated_at INTEGER DEFAULT NULL,
        started_at INTEGER, ended_at INTEGER, status TEXT, model TEXT, display_name TEXT) STRICT;
    CREATE TABLE session_nodes (session_key TEXT NOT NULL PRIMARY KEY, current_session_id TEXT NOT NULL, label TEXT,
        display_name TEXT) STRICT;
    CREATE TABLE transcript_events (session_id TEXT NOT NULL, seq INTEGER NOT NULL, event_json TEXT, created_at INTEGER NOT NULL,
        event_zstd BLOB, event_utf8_bytes INTEGER, navigation_json TEXT, PRIMARY KEY (session_id, seq)) STRICT;
    CREATE TABLE transcript_rewrite_watermarks (session_id TEXT NOT NULL PRIMARY KEY, generation TEXT NOT NULL) STRICT;
    INSERT INTO session_windows (session_id, session_key, created_at, updated_at) VALUES ('s', 'k', 1767323045500, 1767323046000),
        ('empty', 'k', 1, 1);
    INSERT INTO session_nodes VALUES ('k', 's', NULL, 'a talk');
    INSERT INTO transcript_events (session_id, seq, event_json, created_at) VALUES ('s', 0, '{\"type\":\"session\"}', 1), ('s', 1, '{\"é\":1}', 2);";

fn database(more: &str) -> Connection {
    let db = Connection::open_in_memory().unwrap();
    db.execute_batch(more).unwrap();
    db
}

fn overview(db: &Connection) -> SessionRow {
    OpenClawTables.sessions(db).unwrap().into_iter().find(|session| session.id == "s").unwrap()
}

fn sizes(db: &Connection) -> Vec<(i64, u64)> {
    let mut sizes = Vec::new();
    OpenClawTables.events(db, "s", &mut |number, bytes| sizes.push((number, bytes))).unwrap();
    sizes
}

fn lines(db: &Connection, from: i64) -> (Vec<(i64, String)>, rusqlite::Result<()>) {
    let mut lines = Vec::new();
    let mut each = |number, line| {
        lines.push((number, String::from_utf8(line).unwrap()));
        std::ops::ControlFlow::Continue(())
    };
    let read = OpenClawTables.lines(db, "s", from, &mut each);
    (lines, read)
}

fn compressed(db: &Connection, number: i64, text: &str, told: usize) {
    let frame = zstd::bulk::compress(text.as_bytes(), 1).unwrap();
    let sql = "INSERT INTO transcript_events (session_id, seq, event_zstd, event_utf8_bytes, created_at) VALUES ('s', ?1, ?2, ?3, 3)";
    db.execute(sql, (number, frame, told as i64)).unwrap();
}

#[test]
fn t56_an_event_is_the_line_that_the_file_had_compressed_or_not() {
    let db = database(SCHEMA);
    let large = format!("{{\"text\":\"{}\"}}", "x".repeat(5000));
    compressed(&db, 4, &large, large.len());
    let expected = [
        (0, "{\"type\":\"session\"}\n".to_owned()),
        (1, "{\"é\":1}\n".to_owned()),
        (4, format!("{large}\n")),
    ];
    assert_eq!(lines(&db, 0).0, expected);
    assert_eq!(lines(&db, 2).0, expected[2..]);
    assert_eq!(sizes(&db), expected.map(|(number, line)| (number, line.len() as u64)));
}

#[test]
fn a_frame_that_is_damaged_or_too_large_fails_and_what_is_before_it_is_given() {
    for (frame, why) in [
        (b"no frame".to_vec(), "damaged"),
        (zstd::bulk::compress(&vec![b'x'; INFLATED_BYTES_MAX + 1], 1).unwrap(), "more than"),
        (zstd::bulk::compress(b"torn off", 1).unwrap()[..9].to_vec(), "truncated"),
    ] {
        let db = database(SCHEMA);
        let sql = "INSERT INTO transcript_events (session_id, seq, event_zstd, event_utf8_bytes, created_at) VALUES ('s', 2, ?1, 9, 3)";
        db.execute(sql, [frame]).unwrap();
        let (given, read) = lines(&db, 0);
        assert_eq!(given.len(), 2);
        let said = read.unwrap_err().to_string();
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn the_window_is_told_and_what_matters_shows_in_the_overview() {
    let db = database(SCHEMA);
    let mut seen = vec![overview(&db).overview];
    for change in [
        "UPDATE session_windows SET display_name = 'a title', model = 'm', previous_session_id = 'p' WHERE session_id = 's'",
        "UPDATE session_windows SET ended_at = 1767323050750, status = 'done' WHERE session_id = 's'",
        "UPDATE session_windows SET transcript_updated_at = 1767323060000 WHERE session_id = 's'",
        "INSERT INTO transcript_events (session_id, seq, event_json, created_at) VALUES ('s', 2, '{}', 3)",
        "DELETE FROM transcript_events WHERE seq = 0",
        "INSERT INTO transcript_rewrite_watermarks VALUES ('s', 'abc')",
    ] {
        db.execute(change, []).unwrap();
        let overview = overview(&db).overview;
        assert!(!seen.contains(&overview), "{change}");
        seen.push(overview);
    }
    let told = overview(&db);
    assert_eq!(told.started_at.as_deref(), Some("2026-01-02T03:04:05.5Z"));
    assert_eq!((told.rows, told.rewritten.as_deref()), (2, Some("abc")));
    assert_eq!(told.last_ns, 1_767_323_060_000_000_000);
    let about = About {
        title: Some("a title".into()),
        model: Some("m".into()),
        parent: Some("p".into()),
        git_branch: None,
        ended_at: Some("2026-01-02T03:04:10.75Z".into()),
        end_reason: Some("done".into()),
    };
    assert_eq!(told.about, about);
    assert_eq!(OpenClawTables.sessions(&db).unwrap().len(), 2);
}

#[test]
fn the_name_of_a_conversation_is_the_title_where_its_session_has_none() {
    assert_eq!(overview(&database(SCHEMA)).about.title.as_deref(), Some("a talk"));
}

#[test]
fn columns_and_tables_that_are_not_needed_may_be_missing_and_others_may_be_there() {
    let db = database(
        "CREATE TABLE transcript_events (more TEXT, seq INTEGER, event_json TEXT, session_id TEXT);
         INSERT INTO transcript_events (session_id, seq, event_json) VALUES ('s', 7, '{}');
         CREATE TABLE session_windows (session_id TEXT, novelty TEXT); INSERT INTO session_windows VALUES ('s', 'x')",
    );
    assert_eq!((overview(&db).rows, sizes(&db)), (1, vec![(7, 3)]));
    assert_eq!(lines(&db, 0).0, [(7, "{}\n".into())]);
}

#[test]
fn a_schema_that_we_do_not_know_is_said_and_a_database_without_sessions_is_none() {
    let keys = "CREATE TABLE auth_profile_store (store_json TEXT);";
    assert_eq!(OpenClawTables.sessions(&database(keys)).unwrap(), []);
    for (schema, said) in [
        (
            "CREATE TABLE session_windows (session_id TEXT)",
            "it has sessions, but no table transcript_events",
        ),
        (
            "CREATE TABLE transcript_events (session_id TEXT, seq INTEGER)",
            "its table transcript_events has no column event_json",
        ),
        (
            "CREATE TABLE sessions (id TEXT); CREATE VIEW transcript_events AS SELECT id AS session_id, 1 AS seq, id AS event_json FROM sessions",
            "it has sessions, but no table transcript_events",
        ),
    ] {
        assert_eq!(OpenClawTables.sessions(&database(schema)).unwrap_err().to_string(), said);
    }
    let db = database(SCHEMA);
    db.execute(
        "INSERT INTO transcript_events (session_id, seq, created_at) VALUES ('s', 9, 1)",
        [],
    )
    .unwrap();
    let failed = OpenClawTables.events(&db, "s", &mut |_, _| {}).unwrap_err();
    assert_eq!(failed.to_string(), "event 9 has no text");
}
