//! Bad input: wrong flags and files, unreadable places, and transcripts that are none. Each gets a clear word and its exit
//! code, and all other sessions are mirrored all the same.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::support::daemon::{Daemon, ctl, ctl_ok, list, status};
use crate::support::home::{Home, age, files_below, run, said, try_run};
use crate::support::judge;
use crate::support::oracle::Bucket;
use crate::support::planted::{Planted, record};
use crate::support::skipped;
use crate::support::writers::Transcript;

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const CTL_USAGE: i32 = 2;
const CTL_NO_SUCH_SESSION: i32 = 4;

/// A home with one good session, which must be mirrored whatever else lies there.
struct Good {
    home: Home,
    transcript: Transcript,
    planted: Planted,
}

impl Good {
    fn new() -> Good {
        let home = Home::new();
        let planted = Planted::exact_only(11);
        let mut transcript = Transcript::new(&home, "claude-code", 1, 11);
        transcript.grow(&planted, 4);
        Good { home, transcript, planted }
    }

    /// The good session is complete, and there is nothing but it.
    fn alone(&self) {
        let bucket = Bucket::read(&self.home.bucket());
        judge::verdict(judge::at_rest(&bucket, &[self.transcript.source(&self.planted)])).unwrap();
    }

    /// The good session is complete; others may be there too.
    fn mirrored(&self) {
        let bucket = Bucket::read_one(&self.home.bucket(), "claude-code", &self.transcript.id);
        judge::verdict(judge::at_rest(&bucket, &[self.transcript.source(&self.planted)])).unwrap();
    }

    fn near(&self, name: impl AsRef<Path>) -> PathBuf {
        self.transcript.path.parent().unwrap().join(name)
    }
}

/// The program ended with `code` and said all these words.
fn assert_says(output: &Output, code: i32, words: &[&str]) {
    let text = said(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    let spoken = String::from_utf8_lossy(&output.stderr).into_owned();
    for word in words {
        assert!(spoken.contains(word), "standard error does not say {word:?}:\n{text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

fn private(path: &Path, text: &str) -> String {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    path.display().to_string()
}

#[test]
fn an_unknown_configuration_key_is_named_with_its_file_and_the_nearest_key() {
    let good = Good::new();
    let file = private(&good.home.path().join("odd.toml"), "stroe = \"file:///tmp/x\"\n");
    let output = good.home.once_with(&["--config", &file]);
    assert_says(&output, USAGE, &["stroe", "odd.toml", "store"]);
    assert!(!good.home.bucket().exists());
}

#[test]
fn a_bad_value_a_missing_file_and_broken_toml_are_named() {
    let good = Good::new();
    let file = private(&good.home.path().join("odd.toml"), "interval = \"soon\"\n");
    assert_says(
        &good.home.once_with(&["--config", &file]),
        USAGE,
        &["interval", "soon", "odd.toml"],
    );
    let file = private(&good.home.path().join("broken.toml"), "interval = = 5\n");
    assert_says(&good.home.once_with(&["--config", &file]), USAGE, &["broken.toml"]);
    assert_says(
        &good.home.once_with(&["--config", "/no/such/file.toml"]),
        USAGE,
        &["/no/such/file.toml"],
    );
}

#[test]
fn a_configuration_that_others_can_write_is_refused() {
    let good = Good::new();
    let path = good.home.path().join(".config/tracecraft/config.toml");
    private(&path, "interval = \"1s\"\n");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    assert_says(&good.home.once_with(&[]), USAGE, &["config.toml"]);
}

#[test]
fn a_store_url_with_a_typo_is_named_and_a_credential_in_it_is_not() {
    let good = Good::new();
    assert_says(&good.home.once_with(&["--store", "flie:///tmp/x"]), USAGE, &["flie", "file"]);
    assert_says(&good.home.once_with(&["--store", "file://relative/x"]), USAGE, &["file://"]);
    let password = ["hunter", "22secret"].concat();
    let output = good.home.once_with(&["--store", &format!("s3://key:{password}@bucket/project")]);
    assert_says(&output, USAGE, &["redential"]);
    assert!(!said(&output).contains(&password), "the credential was echoed");
}

#[test]
fn bad_flags_exit_2() {
    let home = Home::new();
    assert_says(&home.once_with(&["--interval", "5"]), USAGE, &["interval"]);
    assert_says(&home.once_with(&["--interval", "99ms"]), USAGE, &["100"]);
    assert_says(&home.once_with(&["--no-such-flag"]), USAGE, &["--no-such-flag"]);
    assert_says(&ctl(&home, &["no-such-verb"]), CTL_USAGE, &["no-such-verb"]);
    assert_says(
        &home.once_with(&["--log", "loud"]),
        USAGE,
        &["loud", "not a level", "target=level"],
    );
    assert_says(&ctl(&home, &["status"]), 3, &["not running"]);
    for verb in ["show", "verify", "compact", "stop", "start", "flush"] {
        assert_says(&ctl(&home, &[verb, ""]), CTL_USAGE, &["an id is never empty"]);
    }
}

#[test]
fn a_configuration_that_cannot_be_shown_is_a_failure_and_a_reader_that_left_is_none() {
    let home = Home::new();
    let check = || {
        let mut command = home.tracecraftd();
        command.arg("--check");
        command
    };
    let full = check().stdout(fs::File::create("/dev/full").unwrap()).output().unwrap();
    assert_says(&full, FAILED, &["cannot write the answer"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let left = check().stdout(writer).output().unwrap();
    assert_eq!(left.status.code(), Some(0), "{}", said(&left));
}

#[test]
fn a_socket_path_that_is_too_long_is_named_with_the_limit() {
    let good = Good::new();
    let path = good.home.path().join("s".repeat(120)).display().to_string();
    let output = run(good.home.tracecraftd().args(["--socket", &path]));
    assert_says(&output, USAGE, &["socket", "bytes", "--socket"]);
}

#[test]
fn t30_state_or_manifest_of_an_unknown_version_stops_the_daemon_and_is_left_alone() {
    let good = Good::new();
    good.home.once();
    let state = good.home.state_dir().join("state.json");
    let mut content: Value =
        serde_json::from_slice(&fs::read(&state).expect("state.json exists")).unwrap();
    let fields = content.as_object_mut().unwrap();
    let version =
        fields.iter_mut().find(|(name, value)| name.contains("version") && value.is_u64());
    *version.expect("state.json has a version").1 = Value::from(999);
    let text = content.to_string();
    fs::write(&state, &text).unwrap();
    let output = good.home.once_with(&[]);
    let code = output.status.code().unwrap();
    assert!(code == FAILED || code == USAGE, "{}", said(&output));
    assert_says(&output, code, &["state.json", "999"]);
    assert_eq!(fs::read_to_string(&state).unwrap(), text, "the state was changed");
    good.alone();
}

#[test]
fn t30_a_manifest_of_an_unknown_version_is_named_and_left_alone() {
    let good = Good::new();
    good.home.once();
    let id = &good.transcript.id;
    let path = good.home.bucket().join("sessions/claude-code").join(id).join("meta.json");
    let text = fs::read_to_string(&path).unwrap();
    let mut manifest: Value = serde_json::from_str(&text).unwrap();
    manifest["schema_version"] = Value::from(999);
    fs::write(&path, manifest.to_string()).unwrap();
    fs::remove_dir_all(good.home.state_dir()).unwrap();
    let output = good.home.once_with(&[]);
    assert!(!output.status.success(), "{}", said(&output));
    assert_says(&output, output.status.code().unwrap(), &["999", id.as_str()]);
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        manifest.to_string(),
        "the manifest was changed"
    );
}

#[test]
fn an_id_that_matches_two_sessions_names_both_and_one_that_matches_none_exits_4() {
    let good = Good::new();
    let ids = ["abcd1234-0000-4000-8000-000000000001", "abcd1234-0000-4000-8000-000000000002"];
    for id in ids {
        good.home
            .place(&good.home.claude_code("/w", id), &record("claude-code", id, "/w", 1, "hello"));
    }
    let _daemon = Daemon::start(&good.home, &["--interval", "10m"]);
    ctl_ok(&good.home, &["flush"]);
    for verb in ["show", "compact", "stop", "start", "flush"] {
        assert_says(&ctl(&good.home, &[verb, "abcd"]), CTL_USAGE, &ids);
        assert_says(&ctl(&good.home, &[verb, "zzzz"]), CTL_NO_SUCH_SESSION, &["zzzz"]);
    }
    ctl_ok(&good.home, &["show", "abcd1234-0000-4000-8000-000000000001"]);
    ctl_ok(&good.home, &["show", ids[1], "--raw"]);
    let later = ctl(&good.home, &["show", ids[1], "--generation", "7"]);
    assert_says(&later, CTL_NO_SUCH_SESSION, &["has 1 generation", "leave --generation out"]);
}

/// Contents that are odd and must be stored byte for byte (there is no secret in them).
fn odd_contents() -> Vec<(&'static str, Vec<u8>)> {
    let line = |text: &str| record("claude-code", "odd", "/w", 1, text);
    let mut nul_tail = line("before the power went");
    nul_tail.extend(vec![0; 4096]);
    let mut nul_inside = line("one");
    nul_inside.extend(b"{\"a\":\"x\x00y\"}\n\x00\x00\x00\n");
    nul_inside.extend(line("two"));
    let mut invalid = line("one");
    invalid.extend(b"{\"a\":\"\xff\xfe\xc3(\"}\n\xed\xa0\x80\n");
    invalid.extend(line("two \\ud800 lone"));
    let mut no_newline = line("one");
    no_newline.extend(b"{\"type\":\"user\",\"cut\":\"in the mid");
    let mut windows = b"\xef\xbb\xbf".to_vec();
    windows
        .extend(line("bom and crlf").split(|b| *b == b'\n').collect::<Vec<_>>().join(&b"\r\n"[..]));
    let mut torn = b"{\"type\":\"user\",\"torn\":".to_vec();
    torn.extend(line("full line on the same row"));
    vec![
        ("t20-nul-tail", nul_tail),
        ("t20-nul-inside", nul_inside),
        ("t21-invalid-utf8", invalid),
        ("t17-no-final-newline", no_newline),
        ("t21-bom-and-crlf", windows),
        ("t18-torn-line", torn),
        ("t22-one-byte", b"\n".to_vec()),
        ("blank-lines", b"\n\n\n{}\n\n".to_vec()),
        ("t19-100-kib-and-one", [vec![b'x'; 100 * 1024 + 1], b"\n".to_vec()].concat()),
        ("t19-3-mb", line(&"y".repeat(3 << 20))),
        ("t19-12-mb", line(&"z ".repeat(6 << 20))),
        ("deep-json", [b"[".repeat(200_000), b"\n".to_vec()].concat()),
    ]
}

fn stores_byte_for_byte(contents: Vec<(&'static str, Vec<u8>)>) {
    let good = Good::new();
    for (name, content) in &contents {
        good.home.place(&good.home.claude_code("/w/odd", name), content);
    }
    good.home.place(&good.home.claude_code("/w/odd", "t22-empty"), b"");
    let output = good.home.once();
    good.mirrored();
    let bucket = Bucket::read(&good.home.bucket());
    for (name, content) in contents {
        let stored = bucket.generations("claude-code", name);
        assert_eq!(
            stored.len(),
            1,
            "{name} is stored in {} generations: {}",
            stored.len(),
            said(&output)
        );
        let at = crate::support::planted::common_prefix(&stored[0].by_manifest, &content);
        assert!(
            stored[0].by_manifest == content,
            "{name}: departs at byte {at} of {}",
            content.len()
        );
    }
    assert_eq!(bucket.faults_at_rest(), Vec::<String>::new());
}

#[test]
fn t17_t18_t19_t20_t21_t22_odd_transcripts_are_stored_byte_for_byte() {
    stores_byte_for_byte(odd_contents());
}

#[test]
#[ignore = "a line of 100 MB; .ci runs it"]
fn t19_a_line_of_100_mb_is_stored_byte_for_byte() {
    let line = record("claude-code", "odd", "/w", 1, &"w ".repeat(50 << 20));
    stores_byte_for_byte(vec![("t19-100-mb", line)]);
}

#[test]
fn t17_an_unfinished_record_waits_for_its_end() {
    let good = Good::new();
    let path = good.transcript.path.clone();
    let whole = fs::read(&path).unwrap();
    let cut = whole.len() - 20;
    fs::write(&path, &whole[..cut]).unwrap();
    let _daemon = Daemon::start(&good.home, &["--interval", "100ms"]);
    ctl_ok(&good.home, &["flush"]);
    let bucket = Bucket::read(&good.home.bucket());
    let stored = &bucket.generations("claude-code", &good.transcript.id)[0].by_manifest;
    assert!(stored.ends_with(b"\n") && stored.len() < cut, "a part ends inside a record");
    use std::io::Write;
    fs::File::options().append(true).open(&path).unwrap().write_all(&whole[cut..]).unwrap();
    ctl_ok(&good.home, &["flush"]);
    good.alone();
}

/// Things named like transcripts that are none. None may be read, none may stop the rest.
#[test]
fn things_that_are_no_files_are_passed_over() {
    let good = Good::new();
    let outside = good.home.path().join("outside.jsonl");
    good.home.place(&outside, &record("claude-code", "o", "/w", 1, "not below a root"));
    fs::create_dir(good.near("directory.jsonl")).unwrap();
    symlink(&outside, good.near("link-outside.jsonl")).unwrap();
    symlink("/dev/zero", good.near("link-device.jsonl")).unwrap();
    symlink("/no/such/file", good.near("link-dangling.jsonl")).unwrap();
    symlink("link-loop.jsonl", good.near("link-loop.jsonl")).unwrap();
    symlink(".", good.near("directory-loop")).unwrap();
    symlink("../..", good.near("directory-up")).unwrap();
    let mkfifo = good.home.command("mkfifo").arg(good.near("fifo.jsonl")).status();
    assert!(mkfifo.unwrap().success());
    let device =
        good.home.command("mknod").arg(good.near("device.jsonl")).args(["c", "1", "5"]).output();
    if !device.unwrap().status.success() {
        skipped("the device named x.jsonl", "making one needs more rights");
    }
    let _listener = std::os::unix::net::UnixListener::bind(good.near("socket.jsonl")).unwrap();
    let output = good.home.once();
    good.alone();
    assert!(!said(&output).contains("panicked"));
}

#[test]
fn t13_a_linked_project_directory_of_the_user_is_followed_once() {
    let good = Good::new();
    let elsewhere = good.home.path().join("elsewhere");
    let id = "11112222-0000-4000-8000-000000000013";
    let line = record("claude-code", id, "/linked", 1, "behind a link");
    good.home.place(&elsewhere.join(format!("{id}.jsonl")), &line);
    let projects = good.home.path().join(".claude/projects");
    symlink(&elsewhere, projects.join("-linked")).unwrap();
    symlink(&elsewhere, projects.join("-linked-twice")).unwrap();
    symlink("..", elsewhere.join("up")).unwrap();
    symlink(&projects, elsewhere.join("back")).unwrap();
    good.home.once();
    good.mirrored();
    let bucket = Bucket::read(&good.home.bucket());
    let with = |s: &&crate::support::oracle::Stored| s.id.starts_with(id);
    assert_eq!(bucket.sessions.iter().filter(with).count(), 1, "once, not once for each link");
    assert_eq!(bucket.generations("claude-code", id)[0].by_manifest, line);
    assert_eq!(bucket.sessions.len(), 2);
}

#[test]
fn names_with_dots_controls_and_foreign_letters_stay_inside_the_bucket() {
    let good = Good::new();
    let names = [
        "a..b",
        "..",
        "..hidden",
        "x\u{1b}[31mred",
        "tab\tnew\nline",
        "é𝄞",
        "a~2",
        "a@b",
        "%41",
        "p\u{7f}q",
    ];
    let line = record("claude-code", "x", "/w", 1, "hello");
    for name in names {
        good.home.place(&good.near(format!("{name}.jsonl")), &line);
    }
    let long = "n".repeat(240);
    good.home.place(&good.near(format!("{long}.jsonl")), &line);
    let not_utf8: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"raw\xff\xfe.jsonl");
    good.home.place(&good.near(not_utf8), &line);
    let before: usize = files_below(good.home.path()).len();
    let output = good.home.once();
    good.mirrored();
    let bucket = Bucket::read(&good.home.bucket());
    assert_eq!(bucket.faults_at_rest(), Vec::<String>::new());
    for stored in &bucket.sessions {
        let plain = stored.id.bytes().all(|b| (b' '..0x7f).contains(&b) && b != b'/');
        assert!(plain && !stored.id.starts_with('.') && stored.id.len() <= 200, "{:?}", stored.id);
    }
    for name in ["a..b", "x\u{1b}[31mred", "tab\tnew\nline", "é𝄞", "a~2", "a@b", "%41", &long] {
        let path = good.near(format!("{name}.jsonl"));
        let found = bucket.of_source("claude-code", &path);
        assert_eq!(found.len(), 1, "{name:?} is stored {} times: {}", found.len(), said(&output));
        assert_eq!(found[0].by_manifest, line, "{name:?}");
    }
    assert!(
        !output.stderr.contains(&0x1b) && !output.stdout.contains(&0x1b),
        "an escape reached the terminal"
    );
    let own = files_below(&good.home.path().join(".local")).len();
    assert_eq!(files_below(good.home.path()).len() - own, before, "a file was written outside");
    let _daemon = Daemon::start(&good.home, &["--interval", "10m"]);
    let human = ctl(&good.home, &["list"]);
    assert!(!human.stdout.contains(&0x1b), "an escape reached the terminal by `list`");
    assert_eq!(list(&good.home).len(), bucket.sessions.len());
}

/// Runs as a user without rights where the tests run as root, since nothing is unreadable to root.
fn as_a_plain_user(home: &Home, arguments: &[&str]) -> Option<Output> {
    const NOBODY: u32 = 65534;
    let mut command = home.tracecraftd();
    command.args(arguments);
    if rustix::process::geteuid().is_root() {
        let mut pending = vec![home.path().to_path_buf()];
        while let Some(path) = pending.pop() {
            chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
            if path.is_dir() {
                pending.extend(fs::read_dir(&path).unwrap().flatten().map(|entry| entry.path()));
            }
        }
        command.uid(NOBODY).gid(NOBODY);
    }
    try_run(&mut command).ok()
}

#[test]
fn an_unreadable_root_is_named_and_the_other_harnesses_are_mirrored() {
    let good = Good::new();
    let root = good.home.path().join(".codex/sessions");
    let locked = good.home.codex("22223333-0000-4000-8000-000000000001");
    good.home.place(&locked, b"{}\n");
    fs::set_permissions(&root, fs::Permissions::from_mode(0o000)).unwrap();
    let output = as_a_plain_user(&good.home, &["--once"]);
    fs::set_permissions(&root, fs::Permissions::from_mode(0o700)).unwrap();
    let Some(output) = output else {
        return skipped("an_unreadable_root", "the binary cannot be run by a plain user from here");
    };
    let text = said(&output);
    assert!(text.contains(&root.display().to_string()), "the root is not named: {text}");
    assert!(matches!(output.status.code(), Some(0 | FAILED)), "{text}");
    good.alone();
}

#[test]
fn a_root_that_is_a_file_or_a_link_to_itself_is_no_reason_to_stop() {
    let good = Good::new();
    fs::create_dir_all(good.home.path().join(".codex")).unwrap();
    fs::write(good.home.path().join(".codex/sessions"), b"a file").unwrap();
    symlink("agents", good.home.path().join(".openclaw-link")).unwrap();
    fs::create_dir_all(good.home.path().join(".openclaw")).unwrap();
    symlink("agents", good.home.path().join(".openclaw/agents")).unwrap();
    let _daemon = Daemon::start(&good.home, &["--interval", "100ms"]);
    ctl_ok(&good.home, &["flush"]);
    good.alone();
    let status = status(&good.home).unwrap();
    let roots = status["roots"].as_array().unwrap();
    let codex =
        roots.iter().find(|root| root["path"].as_str().unwrap().ends_with(".codex/sessions"));
    let coverage = &codex.expect("the root is in the status")["coverage"];
    assert!(coverage == "unreadable" || coverage == "missing", "{coverage}");
}

#[test]
fn a_store_that_cannot_be_written_loses_nothing_and_is_named() {
    let good = Good::new();
    let blocked = good.home.path().join("a-file");
    fs::write(&blocked, b"in the way").unwrap();
    let store = format!("file://{}/bucket", blocked.display());
    let mut daemon = Daemon::start(&good.home, &["--interval", "100ms", "--store", &store]);
    let problems = || {
        let status = status(&good.home)?;
        let problems = status["problems"].as_array()?.clone();
        problems
            .iter()
            .any(|problem| problem["message"].as_str().is_some_and(|m| m.contains("a-file")))
            .then_some(())
    };
    crate::support::wait_for("the store to be named as a problem", problems);
    fs::remove_file(&blocked).unwrap();
    crate::support::wait_until_ok("the store to be used when it is back", || {
        let bucket = Bucket::read(&blocked.join("bucket"));
        judge::verdict(judge::at_rest(&bucket, &[good.transcript.source(&good.planted)]))
    });
    assert_eq!(daemon.term().code(), Some(0));
}

#[test]
fn t16_one_id_in_two_places_is_two_sessions() {
    let good = Good::new();
    let id = "33334444-0000-4000-8000-000000000016";
    let contents = [("/w/one", "first"), ("/w/two", "second")].map(|(cwd, text)| {
        let (path, line) =
            (good.home.claude_code(cwd, id), record("claude-code", id, cwd, 1, text));
        good.home.place(&path, &line);
        age(&path);
        (path, line)
    });
    good.home.once();
    good.mirrored();
    let bucket = Bucket::read(&good.home.bucket());
    for (path, line) in contents {
        let stored = bucket.of_source("claude-code", &path);
        assert_eq!(stored.len(), 1, "{}", path.display());
        assert_eq!(stored[0].by_manifest, line);
        let (exact, suffixed) = (stored[0].id == id, stored[0].id.starts_with(&format!("{id}@")));
        assert!(exact || suffixed, "{}", stored[0].id);
    }
}
