//! Walks over real trees in scratch directories, and over the sample trees where they are given.

use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::harness::{Env, all};

/// A scratch directory that is the root of one harness.
struct Tree {
    scratch: tempfile::TempDir,
    harness: std::sync::Arc<dyn Harness>,
    root: Root,
}

impl Tree {
    fn new(harness: &'static str) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let root = Root { harness, path: scratch.path().join("root") };
        std::fs::create_dir(&root.path).unwrap();
        Self { scratch, harness: named(harness), root }
    }

    fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.root.path.join(below)
    }

    fn folder(&self, below: impl AsRef<Path>) -> PathBuf {
        std::fs::create_dir_all(self.path(&below)).unwrap();
        self.path(below)
    }

    fn file(&self, below: impl AsRef<Path>) -> PathBuf {
        put(&self.path(&below), b"");
        self.path(below)
    }

    fn scan(&self) -> Scan {
        self.scan_within(Limits::default())
    }

    fn scan_within(&self, limits: Limits) -> Scan {
        scan(&*self.harness, &self.root, limits)
    }
}

fn named(name: &str) -> std::sync::Arc<dyn Harness> {
    all().into_iter().find(|harness| harness.name() == name).unwrap()
}

fn put(path: &Path, content: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::File::create(path).unwrap().write_all(content).unwrap();
}

fn ids(scan: &Scan) -> Vec<&str> {
    scan.candidates.iter().map(|candidate| candidate.id.as_str()).collect()
}

fn problem(path: PathBuf, what: Obstacle) -> ScanProblem {
    ScanProblem { path, what }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The folder name that Claude Code makes of a working directory: each UTF-16 unit that is not an ASCII letter or digit is one
/// `-`, and what is longer than 200 units ends in a hash of the whole.
fn project_key(cwd: &str) -> String {
    let plain = |unit: u16| u8::try_from(unit).ok().filter(u8::is_ascii_alphanumeric);
    let key: String = cwd.encode_utf16().map(|unit| plain(unit).map_or('-', char::from)).collect();
    if key.len() <= 200 {
        return key;
    }
    let hash = cwd
        .encode_utf16()
        .fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)));
    let (mut rest, mut digits) = (hash.unsigned_abs(), String::new());
    while rest > 0 {
        digits.insert(0, char::from_digit(rest % 36, 36).unwrap());
        rest /= 36;
    }
    format!("{}-{digits}", &key[..200])
}

#[test]
fn the_test_makes_project_folders_as_the_agent_does() {
    assert_eq!(project_key("/Users/x/.config"), "-Users-x--config");
    assert_eq!(project_key("C:\\veri\\.claude"), "C--veri--claude");
    assert_eq!(project_key("/a/😀"), "-a---");
    let long = project_key(&format!("/a/{}", "b".repeat(210)));
    assert_eq!(long, format!("-a-{}-iun1i5", "b".repeat(197)));
}

#[test]
fn a_root_that_is_not_there_is_absent_and_no_problem() {
    let mut tree = Tree::new("claude-code");
    tree.root.path.push("never");
    let scan = tree.scan();
    assert!(!scan.present && scan.candidates.is_empty());
    assert!(scan.problems.is_empty() && scan.directories.is_empty());
}

#[test]
fn a_root_that_is_a_file_is_a_problem() {
    let mut tree = Tree::new("claude-code");
    tree.root.path = tree.file("projects");
    let scan = tree.scan();
    assert!(scan.present);
    let expected = Obstacle::Unreadable(io::ErrorKind::NotADirectory);
    assert_eq!(scan.problems, [problem(tree.root.path.clone(), expected)]);
}

#[test]
fn t14_sessions_are_found_whatever_their_working_directory_was_called() {
    let tree = Tree::new("claude-code");
    let cwds =
        ["/w/.claude/x__y", "/w/a - b", "/w/日本語/ü", "/", &format!("/{}", "long/".repeat(80))];
    for (number, cwd) in cwds.iter().enumerate() {
        let path = tree.path(project_key(cwd)).join(format!("s{number}.jsonl"));
        put(&path, format!("{{\"cwd\":\"{cwd}\"}}\n").as_bytes());
    }
    let scan = tree.scan();
    assert_eq!(ids(&scan), ["s0", "s1", "s2", "s3", "s4"]);
    for (candidate, cwd) in scan.candidates.iter().zip(cwds) {
        let head = std::fs::read(&candidate.path).unwrap();
        assert_eq!(tree.harness.facts(candidate, &head).cwd.as_deref(), Some(cwd));
    }
}

#[test]
fn t16_one_id_in_two_projects_is_passed_on_twice() {
    let tree = Tree::new("claude-code");
    let paths = [tree.file("-a/s.jsonl"), tree.file("-b/s.jsonl")];
    let scan = tree.scan();
    assert_eq!(ids(&scan), ["s", "s"]);
    let found: Vec<_> = scan.candidates.iter().map(|candidate| &candidate.path).collect();
    assert_eq!(found, paths.iter().collect::<Vec<_>>());
}

#[test]
fn the_walk_enters_what_may_hold_transcripts_and_names_what_it_entered() {
    let tree = Tree::new("claude-code");
    tree.file("-h/s.jsonl");
    tree.file("-h/s/subagents/workflows/w/agent-a.jsonl");
    for aside in ["-h/s/tool-results/x.jsonl", "-h/memory/x.jsonl", "-h/.git/x", ".h/s.jsonl"] {
        tree.file(aside);
    }
    let scan = tree.scan();
    assert_eq!(ids(&scan), ["s", "s__agent-a"]);
    assert!(scan.present && scan.problems.is_empty());
    let entered = [
        "",
        "-h",
        "-h/s",
        "-h/s/subagents",
        "-h/s/subagents/workflows",
        "-h/s/subagents/workflows/w",
    ];
    assert_eq!(
        scan.directories,
        entered.map(|below| tree.path(below).components().collect::<PathBuf>())
    );
}

#[test]
fn what_only_looks_like_a_transcript_is_reported_once_and_not_passed_on() {
    let tree = Tree::new("claude-code");
    tree.file("-h/real.jsonl");
    let folder = tree.folder("-h/folder.jsonl");
    tree.file("-h/folder.jsonl/subagents/agent-a.jsonl");
    let (link, socket) = (tree.path("-h/link.jsonl"), tree.path("-h/socket.jsonl"));
    symlink(tree.path("-h/real.jsonl"), &link).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut expected = vec![
        problem(folder, Obstacle::NotRegular("a directory")),
        problem(link, Obstacle::NotRegular("a link")),
        problem(socket, Obstacle::NotRegular("a socket")),
    ];
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, FileType, Mode, mknodat};
        let fifo = tree.path("-h/fifo.jsonl");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        expected.insert(0, problem(fifo, Obstacle::NotRegular("a FIFO")));
    }
    let scan = tree.scan();
    assert_eq!(ids(&scan), ["real"]);
    assert_eq!(scan.problems, expected);
    // Not a transcript by name, so nobody's concern.
    symlink("nowhere", tree.path("-h/notes.txt")).unwrap();
    symlink("nowhere", tree.path("-dangling")).unwrap();
    assert_eq!(tree.scan().problems, expected);
}

#[test]
fn t13_links_to_directories_are_followed_and_cycles_end() {
    let tree = Tree::new("claude-code");
    let outside = tree.scratch.path().join("outside");
    put(&outside.join("far.jsonl"), b"");
    tree.file("-z/near.jsonl");
    tree.file("-z/near/subagents/agent-a.jsonl");
    symlink(&outside, tree.path("-moved")).unwrap();
    symlink(&outside, tree.path("-moved-again")).unwrap();
    // Sorts before the real folder, and still the real path is the one that is told.
    symlink(tree.path("-z"), tree.path("-a")).unwrap();
    symlink(tree.path(""), tree.path("-z/near/subagents/up")).unwrap();
    symlink("..", tree.path("-z/near/subagents/loop")).unwrap();
    symlink(tree.path("-self"), tree.path("-self")).unwrap();
    let scan = tree.scan();
    let found: Vec<_> = scan.candidates.iter().map(|candidate| candidate.path.clone()).collect();
    let expected = ["-moved/far.jsonl", "-z/near.jsonl", "-z/near/subagents/agent-a.jsonl"];
    assert_eq!(found, expected.map(|below| tree.path(below)));
    assert_eq!(scan.problems.len(), 1, "the link to itself: {:?}", scan.problems);
    assert_eq!(scan.problems[0].path, tree.path("-self"));
}

#[test]
fn t13_a_root_that_is_a_link_is_walked() {
    let mut tree = Tree::new("codex");
    tree.file("2026/11/22/rollout-2026-11-22T11-24-15-t.jsonl");
    let link = tree.scratch.path().join("sessions");
    symlink(&tree.root.path, &link).unwrap();
    tree.root.path = link.clone();
    let scan = tree.scan();
    assert_eq!(ids(&scan), ["t"]);
    assert!(scan.candidates[0].path.starts_with(&link));
    std::fs::remove_dir_all(tree.scratch.path().join("root")).unwrap();
    let scan = tree.scan();
    assert!(scan.candidates.is_empty() && scan.problems.is_empty());
}

#[test]
fn a_link_of_another_user_is_not_followed() {
    if !is_root() {
        return println!("skipped: only root can give a link to another user");
    }
    let tree = Tree::new("claude-code");
    let outside = tree.scratch.path().join("outside");
    put(&outside.join("far.jsonl"), b"");
    symlink(&outside, tree.path("-theirs")).unwrap();
    std::os::unix::fs::lchown(tree.path("-theirs"), Some(12345), None).unwrap();
    let scan = tree.scan();
    assert!(scan.candidates.is_empty());
    assert_eq!(scan.problems, [problem(tree.path("-theirs"), Obstacle::ForeignLink)]);
}

#[test]
fn a_directory_that_cannot_be_read_costs_only_itself() {
    if is_root() {
        return println!("skipped: root can read every directory");
    }
    let tree = Tree::new("claude-code");
    tree.file("-a/s.jsonl");
    let shut = tree.folder("-shut");
    std::fs::set_permissions(&shut, std::fs::Permissions::from_mode(0o000)).unwrap();
    let scan = tree.scan();
    std::fs::set_permissions(&shut, std::fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(ids(&scan), ["s"]);
    let expected = Obstacle::Unreadable(io::ErrorKind::PermissionDenied);
    assert_eq!(scan.problems, [problem(shut, expected)]);
}

/// A harness that changes the tree while it is asked, as an agent may.
#[derive(Debug)]
struct Purging(std::sync::Arc<dyn Harness>, PathBuf);

impl Harness for Purging {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn roots(&self, env: &Env) -> Vec<Root> {
        self.0.roots(env)
    }
    fn descend(&self, relative: &Path) -> bool {
        let _ = std::fs::remove_dir_all(&self.1);
        self.0.descend(relative)
    }
    fn classify(&self, root: &Root, path: &Path) -> Option<Candidate> {
        self.0.classify(root, path)
    }
    fn facts(&self, candidate: &Candidate, head: &[u8]) -> crate::harness::Facts {
        self.0.facts(candidate, head)
    }
    fn cwd(&self, records: &[u8], from_start: bool) -> Option<String> {
        self.0.cwd(records, from_start)
    }
}

#[test]
fn what_vanishes_during_the_walk_is_no_problem() {
    let tree = Tree::new("claude-code");
    tree.file("-a/s.jsonl");
    let purged = tree.folder("-b");
    let scan = scan(&Purging(tree.harness.clone(), purged.clone()), &tree.root, Limits::default());
    assert_eq!(ids(&scan), ["s"]);
    assert!(!purged.exists() && scan.problems.is_empty());
}

#[test]
fn limits_are_kept_and_reported_once_each() {
    let tree = Tree::new("claude-code");
    for number in 0..9 {
        tree.file(format!("-a/s{number}.jsonl"));
        tree.file(format!("-d{number}/t.jsonl"));
    }
    tree.file("-a/s0/subagents/1/2/3/agent-x.jsonl");
    let kinds = |limits| {
        let scan = tree.scan_within(limits);
        assert!(scan.candidates.len() <= limits.files);
        assert!(scan.directories.len() <= limits.directories);
        scan.problems.iter().map(|problem| problem.what).collect::<Vec<_>>()
    };
    let limits = Limits::default();
    assert_eq!(kinds(limits), []);
    assert_eq!(kinds(Limits { files: 4, ..limits }), [Obstacle::TooManyFiles]);
    assert_eq!(kinds(Limits { directories: 4, ..limits }), [Obstacle::TooManyDirectories]);
    assert_eq!(kinds(Limits { depth: 4, ..limits }), [Obstacle::TooDeep]);
}

#[test]
fn problems_have_a_limit_too() {
    let tree = Tree::new("claude-code");
    for number in 0..PROBLEMS_MAX + 20 {
        tree.folder(format!("-a/s{number}.jsonl"));
    }
    assert_eq!(tree.scan().problems.len(), PROBLEMS_MAX);
}

#[test]
fn t9_a_rollout_that_is_there_twice_is_passed_on_once() {
    let scratch = tempfile::tempdir().unwrap();
    let name = |id: &str| format!("rollout-2026-11-22T11-24-15-{id}.jsonl");
    let (live, gone) = ("sessions/2026/11/22", "archived_sessions");
    let file = |tree: &str, id: &str, ending: &str| {
        put(&scratch.path().join(tree).join(name(id) + ending), b"");
    };
    for (tree, id, ending) in [
        (live, "a", ""),
        (live, "a", ".zst"),
        (live, "b", ".zst"),
        (gone, "b", ""),
        (live, "c", ""),
        (gone, "c", ""),
        (live, "d", ".zst"),
        (gone, "d", ".zst"),
        (gone, "e", ".zst"),
        (live, "f", ""),
        (live, "f_r", ""),
    ] {
        file(tree, id, ending);
    }
    let vars = [("CODEX_HOME".to_owned(), scratch.path().display().to_string())].into();
    let harness = named("codex");
    let roots = harness.roots(&Env { home: "/nowhere".into(), vars });
    let scans = roots.iter().map(|root| scan(&*harness, root, Limits::default()));
    let together = without_twins(scans.flat_map(|scan| scan.candidates).collect());
    let found: Vec<_> = together
        .iter()
        .map(|one| (one.id.as_str(), one.encoding, one.standing == Standing::Live))
        .collect();
    let (plain, packed) = (Encoding::Plain, Encoding::Zstd);
    let expected = [
        ("a", plain, true),
        ("b", plain, false),
        ("c", plain, true),
        ("d", packed, true),
        ("e", packed, false),
        ("f", plain, true),
        ("f_r", plain, true),
    ];
    assert_eq!(found, expected);
}

#[test]
fn t8_the_lives_of_a_session_come_in_the_order_in_which_they_were_lived() {
    let tree = Tree::new("openclaw");
    let [first, second] = ["2026-01-01T00-00-00.000Z", "2026-02-01T00-00-00.000Z"];
    tree.file("main/sessions/s.jsonl");
    tree.file(format!("main/sessions/s.jsonl.reset.{second}"));
    tree.file(format!("main/sessions/s.jsonl.deleted.{first}.zst"));
    tree.file(format!("main/sessions/s.jsonl.reset.{second}.zst"));
    let scan = tree.scan();
    assert_eq!(ids(&scan), ["main__s"; 3]);
    let standings: Vec<_> = scan.candidates.into_iter().map(|one| one.standing).collect();
    let archived = |time: &str| Standing::Archived(time.to_owned());
    assert_eq!(standings, [archived(first), archived(second), Standing::Live]);
}

#[cfg(target_os = "linux")] // Other systems refuse such names.
#[test]
fn names_that_are_not_utf_8_are_found_under_ids_of_their_own() {
    use std::os::unix::ffi::OsStringExt;
    let tree = Tree::new("openclaw");
    for byte in [0xfe_u8, 0xff] {
        let agent = std::ffi::OsString::from_vec(vec![b'a', byte]);
        tree.file(Path::new(&agent).join("sessions/s.jsonl"));
    }
    let scan = tree.scan();
    assert_eq!(ids(&scan), ["a\u{fffd}fe__s", "a\u{fffd}ff__s"]);
    assert!(scan.candidates.iter().all(|candidate| candidate.path.exists()));
}

#[test]
fn t25_ten_thousand_sessions_are_found_at_once() {
    let tree = Tree::new("claude-code");
    for project in 0..10 {
        let folder = tree.folder(format!("-p{project}"));
        for number in 0..1000 {
            std::fs::File::create(folder.join(format!("s{project}-{number}.jsonl"))).unwrap();
        }
    }
    let began = std::time::Instant::now();
    let scan = tree.scan();
    let took = began.elapsed();
    println!("10,000 files in {took:?}");
    assert_eq!((scan.candidates.len(), scan.directories.len()), (10_000, 11));
    // A hundred times what it takes: this is to notice a walk that opens files, not a busy machine.
    assert!(took.as_secs() < 5, "{took:?}");
}

#[test]
fn the_samples_of_real_agents_are_found_with_their_ids_and_directories() {
    let Some(samples) = std::env::var_os("TRACECRAFT_SAMPLES").map(PathBuf::from) else {
        return println!("skipped: TRACECRAFT_SAMPLES is not set");
    };
    let harness = named("codex");
    let home = samples.join("real/codex").display().to_string();
    let roots = harness
        .roots(&Env { home: "/nowhere".into(), vars: [("CODEX_HOME".to_owned(), home)].into() });
    let mut found = std::collections::BTreeMap::new();
    for root in &roots {
        let scan = scan(&*harness, root, Limits::default());
        assert!(scan.present && scan.problems.is_empty(), "{:?}", scan.problems);
        for candidate in scan.candidates {
            let file = std::fs::File::open(&candidate.path).unwrap();
            let mut head = Vec::new();
            match candidate.encoding {
                Encoding::Plain => file.take(262_144).read_to_end(&mut head).unwrap(),
                Encoding::Zstd => {
                    let content = zstd::stream::read::Decoder::new(file).unwrap();
                    content.take(262_144).read_to_end(&mut head).unwrap()
                }
                Encoding::Rows | Encoding::Events => panic!("a rollout is no database"),
            };
            let facts = harness.facts(&candidate, &head);
            assert_eq!(facts.cwd.as_deref(), Some("/home/dev/works/cx.work"));
            assert!(facts.started_at.unwrap().starts_with("2026-11-22T11:2"));
            found.insert(facts.id.unwrap(), candidate.standing == Standing::Live);
        }
    }
    let (forked, first) =
        ("01a202ff-8c4c-7bb2-8291-9315766f9abf", "01a202fe-ee6e-7b72-a57d-3277c66a60d7");
    let parent = "01a202ff-e8d8-7890-813a-5187db727b8e";
    let expected = [
        (first.to_owned(), true),
        (format!("{first}_01a20301-8119-7d30-b8be-168066dc1dd0"), true),
        (forked.to_owned(), true),
        ("01a202ff-8d44-7cb0-84fd-d2f4322bd9ff".to_owned(), false),
        (parent.to_owned(), true),
        (format!("{parent}__01a202ff-e959-7981-a12a-3e16776f6a97"), true),
        ("01a20300-ccec-73e1-9f8d-5edbeb63b965".to_owned(), true),
    ];
    assert_eq!(found, expected.into());
}

#[test]
fn t21_first_records_of_every_sample_are_read_without_complaint() {
    let Some(samples) = std::env::var_os("TRACECRAFT_SAMPLES").map(PathBuf::from) else {
        return println!("skipped: TRACECRAFT_SAMPLES is not set");
    };
    let heads = |folder: &str| {
        let mut folders = vec![samples.join(folder)];
        let mut heads = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else if entry.path().extension() == Some(OsStr::new("jsonl")) {
                    heads.push(std::fs::read(entry.path()).unwrap());
                }
            }
        }
        heads
    };
    for (name, below, folder, with_cwd) in [
        ("claude-code", "-h/s.jsonl", "claude-code", 36),
        ("codex", "rollout-2026-11-22T11-24-15-t.jsonl", "codex", 6),
        ("openclaw", "main/sessions/s.jsonl", "real/openclaw", 1),
    ] {
        let harness = named(name);
        let root = Root { harness: harness.name(), path: "/r".into() };
        let candidate = harness.classify(&root, &root.path.join(below)).unwrap();
        let facts: Vec<_> =
            heads(folder).iter().map(|head| harness.facts(&candidate, head)).collect();
        let found = facts.iter().filter(|facts| facts.cwd.is_some()).count();
        let timed = facts.iter().filter(|facts| facts.started_at.is_some()).count();
        println!("{name}: {} samples, {found} with a directory, {timed} with a time", facts.len());
        assert!(found >= with_cwd && timed >= found, "{name}: {found} and {timed}");
    }
}
