//! The formats that others read: bucket, state directory, outbox. The program writes them, golden files show them,
//! `daemon/FORMAT.md` explains them; these tests keep the three the same.
//!
//! What differs from run to run (times, inode numbers, the scratch home) is replaced by fixed values before the comparison;
//! everything else, digests and the order of fields included, has to be equal. `TRACECRAFT_BLESS=1` writes the golden files
//! anew and then the examples in the document: run it twice, because the tests run side by side.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::hermes::{Hermes, SESSION};
use crate::support::daemon::{Daemon, ctl_ok};
use crate::support::home::{Home, age, files_below};
use crate::support::oracle::Bucket;
use crate::support::wait_for;

/// The session of all examples.
const ID: &str = "3f2a5c1e-8d4b-4c7a-9e21-5b6f7a8c9d0e";
const CWD: &str = "/home/you/app";

/// In place of everything that is a time of the run.
const TIME: &str = "2026-01-02T03:05:06.123456789Z";
/// The home in the examples.
const HOME: &str = "/home/you";

/// Two records of a session, and one that came later and has a secret in it.
fn first_records() -> String {
    record("user", "u1", "2026-01-02T03:04:05.000Z", "Why does the test fail?")
        + &record("assistant", "a1", "2026-01-02T03:04:09.000Z", "It has no token.")
}

fn later_record() -> String {
    // Put together here, so that no scanner takes this file for a leak.
    let secret = ["ghp_", "16C7e42F292c6912E7710c838347Ae178B4a"].concat();
    record("user", "u2", "2026-01-02T03:04:30.000Z", &format!("Use {secret} then."))
}

fn record(kind: &str, uuid: &str, time: &str, text: &str) -> String {
    format!(
        "{{\"type\":\"{kind}\",\"uuid\":\"{uuid}\",\"sessionId\":\"{ID}\",\"timestamp\":\"{time}\",\"cwd\":\"{CWD}\",\
         \"message\":{{\"role\":\"{kind}\",\"content\":\"{text}\"}}}}\n"
    )
}

/// A home whose session has been stored in two parts.
fn home_with_two_parts() -> Home {
    let home = Home::new();
    let source = source(&home);
    home.place(&source, first_records().as_bytes());
    home.once();
    append(&source, &later_record());
    home.once();
    home
}

fn source(home: &Home) -> PathBuf {
    home.claude_code(CWD, ID)
}

fn append(source: &Path, text: &str) {
    let mut content = fs::read(source).unwrap();
    content.extend_from_slice(text.as_bytes());
    fs::write(source, content).unwrap();
    age(source);
}

#[test]
fn a_session_of_two_parts_is_written_as_its_golden_files_show() {
    let home = home_with_two_parts();
    check("two-parts", &home, &bucket(&home));
    let state = fs::read_to_string(home.state_dir().join("state.json")).unwrap();
    check("state", &home, &BTreeMap::from([("state.json".to_owned(), state)]));
}

#[test]
fn a_compacted_session_is_written_as_its_golden_files_show() {
    let home = home_with_two_parts();
    let mut daemon = Daemon::start(&home, &[]);
    ctl_ok(&home, &["compact", ID]);
    assert!(daemon.term().success());
    check("compacted", &home, &bucket(&home));
}

#[test]
fn a_second_generation_is_written_as_its_golden_files_show() {
    let home = home_with_two_parts();
    home.place(&source(&home), later_record().as_bytes());
    home.once();
    check("second-generation", &home, &bucket(&home));
}

#[test]
fn rows_of_a_database_are_written_as_their_golden_files_show() {
    let home = Home::new();
    let hermes = Hermes::new(&home, None);
    hermes.session(SESSION, CWD);
    hermes.say(SESSION, "user", "Why does the test fail?");
    hermes.say(SESSION, "assistant", "\0json:[{\"type\":\"text\",\"text\":\"It has no token.\"}]");
    home.once();
    hermes.run("UPDATE messages SET active = 0 WHERE id = 1; DELETE FROM messages WHERE id = 2;");
    hermes.run("UPDATE sessions SET title = 'The failing test', git_branch = 'main'");
    home.once();
    check("rows", &home, &bucket(&home));
    let ledger = home.state_dir().join(format!("rows/hermes/{SESSION}.ledger"));
    let ledger = fs::read_to_string(ledger).unwrap();
    check("ledger", &home, &BTreeMap::from([("ledger.txt".to_owned(), ledger)]));
}

#[test]
fn a_journal_is_written_as_its_golden_lines_show() {
    let home = Home::new();
    let mut daemon = Daemon::start(&home, &[]);
    place_at_once(&home);
    ctl_ok(&home, &["flush"]);
    daemon.kill9();
    let journal = wait_for("a journal", || only_journal(&home));
    // One line of each kind, in the order in which they first come: how often a file is looked at is a matter of timing.
    let mut kinds = Vec::new();
    let first_of_kind = |line: &&str| {
        let kind = line.split('"').nth(3).unwrap_or_default().to_owned();
        let new = !kinds.contains(&kind);
        kinds.push(kind);
        new
    };
    let lines: String =
        journal.lines().filter(first_of_kind).map(|line| format!("{line}\n")).collect();
    check("journal", &home, &BTreeMap::from([("journal.jsonl".to_owned(), lines)]));
}

#[test]
fn an_outbox_is_laid_out_as_its_golden_list_shows() {
    let home = Home::new();
    // A file in the place of a directory: nothing can be stored, whoever the user is.
    fs::create_dir_all(home.bucket()).unwrap();
    fs::write(home.bucket().join("sessions"), b"").unwrap();
    let daemon = Daemon::spawn(&home, &[]);
    place_at_once(&home);
    let outbox = home.state_dir().join("outbox");
    let waiting = wait_for("a part that waits", || {
        let files = files_below(&outbox);
        (files.len() == 1 && !files[0].1.is_empty()).then_some(files)
    });
    drop(daemon);
    let list: String = waiting
        .iter()
        .map(|(path, _)| format!("{}\n", path.strip_prefix(home.state_dir()).unwrap().display()))
        .collect();
    check("outbox", &home, &BTreeMap::from([("files.txt".to_owned(), list)]));
}

#[test]
fn the_golden_buckets_keep_every_promise_of_the_format() {
    if blessing() {
        return; // Others are writing them right now.
    }
    for name in ["two-parts", "compacted", "second-generation", "rows"] {
        let bucket = Bucket::read(&golden(name));
        assert!(!bucket.sessions.is_empty(), "{name} has no session");
        assert_eq!(bucket.faults_at_rest(), Vec::<String>::new(), "{name}");
        assert_eq!(bucket.gap_and_overlap(), (0, 0), "{name}");
    }
}

#[test]
fn the_format_document_shows_the_golden_files() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("daemon/FORMAT.md");
    let document = fs::read_to_string(&path).unwrap();
    let (with_golden_files, shown) = fill_in(&document);
    assert!(shown.len() >= 5, "only {shown:?} are shown");
    if blessing() {
        fs::write(&path, with_golden_files).unwrap();
    } else if document != with_golden_files {
        let differing =
            document.lines().zip(with_golden_files.lines()).find(|(is, should)| is != should);
        panic!("FORMAT.md differs from its golden files, first here: {differing:?}");
    }
}

/// The document with the content of every block replaced that follows a line `<!-- golden: PATH -->`; and those paths.
fn fill_in(document: &str) -> (String, Vec<String>) {
    let (mut filled, mut shown) = (String::new(), Vec::new());
    let mut lines = document.lines();
    while let Some(line) = lines.next() {
        filled.push_str(line);
        filled.push('\n');
        let name = line.strip_prefix("<!-- golden: ").and_then(|rest| rest.strip_suffix(" -->"));
        let Some(name) = name else { continue };
        let fence = lines.next().unwrap_or_default();
        assert!(fence.starts_with("```"), "{name}: no block follows");
        let end = lines.by_ref().find(|line| *line == "```");
        assert!(end.is_some(), "{name}: its block has no end");
        let content = fs::read_to_string(golden(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        filled.push_str(&format!("{fence}\n{content}```\n"));
        shown.push(name.to_owned());
    }
    (filled, shown)
}

/// Puts the session where it is looked for, whole from the first moment.
fn place_at_once(home: &Home) {
    let (aside, source) = (home.path().join("aside"), source(home));
    home.place(&aside, first_records().as_bytes());
    fs::create_dir_all(source.parent().unwrap()).unwrap();
    fs::rename(&aside, &source).unwrap();
}

fn only_journal(home: &Home) -> Option<String> {
    let files = files_below(&home.state_dir());
    let is_journal =
        |path: &Path| path.file_name().unwrap().to_string_lossy().starts_with("journal-");
    let mut journals = files.into_iter().filter(|(path, _)| is_journal(path));
    match (journals.next(), journals.next()) {
        (Some((_, bytes)), None) => Some(String::from_utf8(bytes).unwrap()),
        _ => None,
    }
}

fn bucket(home: &Home) -> BTreeMap<String, String> {
    let files = files_below(&home.bucket()).into_iter();
    let name =
        |path: &Path| path.strip_prefix(home.bucket()).unwrap().to_string_lossy().into_owned();
    files.map(|(path, bytes)| (name(&path), String::from_utf8(bytes).unwrap())).collect()
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/format").join(name)
}

fn blessing() -> bool {
    std::env::var_os("TRACECRAFT_BLESS").is_some()
}

/// Compares files that the program wrote with a golden directory, name by name.
fn check(name: &str, home: &Home, written: &BTreeMap<String, String>) {
    let dir = golden(name);
    let shown: BTreeMap<String, String> =
        written.iter().map(|(file, text)| (file.clone(), shown_form(home, file, text))).collect();
    if blessing() {
        let _ = fs::remove_dir_all(&dir);
        for (file, text) in &shown {
            fs::create_dir_all(dir.join(file).parent().unwrap()).unwrap();
            fs::write(dir.join(file), text).unwrap();
        }
        return;
    }
    let golden: BTreeMap<String, String> = files_below(&dir)
        .into_iter()
        .map(|(path, bytes)| {
            let file = path.strip_prefix(&dir).unwrap().to_string_lossy().into_owned();
            (file, String::from_utf8(bytes).unwrap())
        })
        .collect();
    let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&shown), names(&golden), "{name}: other files");
    for (file, text) in &shown {
        assert_eq!(text, &golden[file], "{name}/{file}: TRACECRAFT_BLESS=1 accepts this");
    }
}

/// Parts stay as they are. Manifest and state, one line each in reality, are laid out for reading.
fn shown_form(home: &Home, file: &str, text: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    match name {
        "meta.json" | "state.json" => {
            assert!(text.ends_with("}\n"), "{file} does not end its line");
            assert_eq!(text.lines().count(), 1, "{file} has more than one line");
            Layout::new(home, text, true).document()
        }
        "journal.jsonl" => {
            text.lines().map(|line| Layout::new(home, line, false).document()).collect()
        }
        _ => text.to_owned(),
    }
}

/// JSON laid out anew with its order of fields, in which volatile values are replaced.
struct Layout<'a> {
    home: &'a str,
    rest: &'a str,
    /// Over several lines.
    wide: bool,
    out: String,
}

impl<'a> Layout<'a> {
    fn new(home: &'a Home, text: &'a str, wide: bool) -> Layout<'a> {
        let home = home.path().to_str().unwrap();
        Layout { home, rest: text.trim_end(), wide, out: String::new() }
    }

    fn document(mut self) -> String {
        self.value("", 0);
        assert_eq!(self.rest, "", "text behind the document");
        self.out.push('\n');
        self.out
    }

    fn value(&mut self, field: &str, depth: usize) {
        match self.rest.as_bytes()[0] {
            b'{' => self.members('}', depth, |layout| {
                let name = layout.string();
                layout.out.push_str(&name);
                layout.take(":");
                layout.out.push_str(if layout.wide { ": " } else { ":" });
                layout.value(name.trim_matches('"'), depth + 1);
            }),
            b'[' if field.ends_with("range") => {
                let (range, rest) = self.rest.split_once(']').unwrap();
                self.out.push_str(&range.replace(',', if self.wide { ", " } else { "," }));
                self.out.push(']');
                self.rest = rest;
            }
            b'[' => self.members(']', depth, |layout| layout.value("", depth + 1)),
            b'"' => {
                let text = self.string();
                let text = self.settled_text(field, &text);
                self.out.push_str(&text);
            }
            _ => {
                let end = self.rest.find([',', '}', ']']).unwrap_or(self.rest.len());
                let (plain, rest) = self.rest.split_at(end);
                self.rest = rest;
                self.out.push_str(settled_number(field, plain));
            }
        }
    }

    /// What stands between two brackets, item by item.
    fn members(&mut self, close: char, depth: usize, mut item: impl FnMut(&mut Self)) {
        self.out.push_str(&self.rest[..1]);
        self.rest = &self.rest[1..];
        let mut first = true;
        while !self.rest.starts_with(close) {
            if !first {
                self.take(",");
                self.out.push(',');
            }
            first = false;
            self.new_line(depth + 1);
            item(self);
        }
        if !first {
            self.new_line(depth);
        }
        self.rest = &self.rest[1..];
        self.out.push(close);
    }

    fn new_line(&mut self, depth: usize) {
        if self.wide {
            self.out.push('\n');
            self.out.push_str(&"  ".repeat(depth));
        }
    }

    fn take(&mut self, what: &str) {
        self.rest =
            self.rest.strip_prefix(what).unwrap_or_else(|| panic!("no {what:?} at {}", self.rest));
    }

    /// The string that stands here, with its quotes.
    fn string(&mut self) -> String {
        let mut escaped = false;
        let end = self.rest[1..].find(|c: char| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let (string, rest) = self.rest.split_at(end.unwrap() + 2);
        self.rest = rest;
        string.to_owned()
    }

    fn settled_text(&self, field: &str, text: &str) -> String {
        let is_time = field.ends_with("_at") || field == "at";
        // What the records tell is the same in every run.
        if is_time && !text.starts_with("\"2026-01-02T") {
            let plausible = text.len() > 20 && text.ends_with("Z\"") && text.as_bytes()[11] == b'T';
            assert!(plausible, "{field} is {text}, no time");
            return format!("\"{TIME}\"");
        }
        let version = concat!("tracecraftd/", env!("CARGO_PKG_VERSION"));
        text.replace(self.home, HOME).replace(version, "tracecraftd/0.1.0")
    }
}

fn settled_number<'a>(field: &str, text: &'a str) -> &'a str {
    match field {
        "dev" => "2049",
        "ino" => "1234567",
        "mtime_ns" => "1767323070000000000",
        "ctime_ns" => "1767323070123456789",
        _ => text,
    }
}
