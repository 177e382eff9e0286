//! `tracecraftctl doctor`: it finds what is wrong, says one thing to do, ends in time, and changes nothing at all.
//!
//! Stores are stand-ins that give one answer, so that each way of refusing can be had at will.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::daemon::{Daemon, ctl};
use crate::support::home::{Home, run, said};
use crate::support::manager::{SERVICE, beside_a_manager};
use crate::support::{skipped, strace};

/// Twice what the documents promise, whatever hangs: the machine may be busy.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// A secret that no output may repeat. It belongs to nobody.
const SECRET: &str = "n0tTheSecret0123456789abcdefghijklm";

/// All checks with this code: verdict, message, hint.
fn told(output: &Output, code: &str) -> Vec<(String, String, String)> {
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |check: &Value, name: &str| check[name].as_str().unwrap_or_default().to_owned();
    let checks = answer["checks"].as_array().expect("checks").iter();
    checks
        .filter(|check| check["code"] == code)
        .map(|check| (text(check, "verdict"), text(check, "message"), text(check, "hint")))
        .collect()
}

/// The worst of them has this verdict, and says what to do if it is not ok.
fn assert_told(output: &Output, code: &str, verdict: &str) {
    let all = told(output, code);
    let found = all.iter().find(|(is, ..)| is == verdict);
    let (_, _, hint) = found.unwrap_or_else(|| panic!("{code} {verdict}: {}", said(output)));
    assert_eq!(hint.is_empty(), verdict == "ok", "{}", said(output));
    let failed = if verdict == "wrong" { Some(1) } else { output.status.code() };
    assert_eq!(output.status.code(), failed, "{}", said(output));
    assert!(!said(output).contains(SECRET));
}

fn doctor(home: &Home) -> Output {
    ctl(home, &["doctor", "--json"])
}

/// Every file and directory with its rights, size and times.
fn listing(dir: &Path) -> Vec<(PathBuf, u32, u64, i64, i64)> {
    let mut found = Vec::new();
    let mut ahead = vec![dir.to_owned()];
    while let Some(path) = ahead.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            ahead.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.push((path, meta.mode(), meta.size(), meta.mtime_nsec(), meta.ctime_nsec()));
    }
    found.sort();
    found
}

fn with_a_session() -> Home {
    let home = Home::new();
    home.place(&home.claude_code("/w", "a-session"), b"{\"type\":\"user\",\"cwd\":\"/w\"}\n");
    // That a disk of tests is nearly full is no fault of a recorder.
    configure(&home, "min_free_space = \"1MiB\"\n");
    home
}

fn configure(home: &Home, text: &str) -> PathBuf {
    let file = home.path().join(".config/tracecraft/config.toml");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    file
}

#[test]
fn a_new_home_has_nothing_wrong_and_is_as_new_afterwards() {
    let home = with_a_session();
    fs::create_dir_all(home.path().join(".codex/sessions")).unwrap();
    let before = listing(home.path());
    let output = doctor(&home);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_eq!(listing(home.path()), before);
    let awaited = told(&output, "root").into_iter().find(|(_, is, _)| is.contains("awaited"));
    // Codex has one of its two directories.
    assert!(awaited.is_some_and(|(_, is, _)| is.contains("hermes") && !is.contains("codex")));
    for (code, verdict) in
        [("config", "ok"), ("root", "ok"), ("retention", "note"), ("daemon", "warning")]
    {
        assert_told(&output, code, verdict);
    }
    let page = ctl(&home, &["doctor"]);
    let page = String::from_utf8_lossy(&page.stdout);
    assert!(page.starts_with("● nothing is wrong"), "{page}");
    assert!(!page.contains('\u{1b}'), "colours in a pipe: {page}");
}

#[test]
fn nothing_is_written_created_or_locked_while_the_daemon_runs_and_when_it_does_not() {
    let home = with_a_session();
    home.once();
    let before = listing(home.path());
    assert_eq!(doctor(&home).status.code(), Some(0));
    assert_eq!(listing(home.path()), before, "with no daemon");
    let daemon = Daemon::start(&home, &[]);
    let bucket = listing(&home.bucket());
    let output = doctor(&home);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_told(&output, "daemon", "ok");
    assert_told(&output, "version", "ok");
    assert_eq!(listing(&home.bucket()), bucket, "with a daemon");
    if let Err(why) = strace::usable() {
        return skipped("system calls of doctor", &why);
    }
    let mut command = home.tracecraftctl();
    command.arg("doctor");
    let (mut traced, record) = strace::traced(&home, &command, false);
    let output = run(&mut traced);
    assert!(output.status.success(), "{}", said(&output));
    assert!(!record.opens_below(home.path()).is_empty(), "strace saw nothing");
    let changes = record.changes_below(home.path());
    assert_eq!(changes, Vec::<String>::new());
    drop(daemon);
}

#[test]
fn t65_a_daemon_that_is_stopped_is_said_to_be_silent_and_a_killed_one_to_be_gone() {
    let home = with_a_session();
    let mut daemon = Daemon::start(&home, &[]);
    daemon.signal(Signal::STOP);
    let started = Instant::now();
    let output = doctor(&home);
    assert!(started.elapsed() < ENDS_WITHIN, "took {:?}", started.elapsed());
    assert_told(&output, "daemon", "wrong");
    assert_told(&output, "lock", "ok");
    let (_, message, hint) = &told(&output, "daemon")[0];
    assert!(message.contains("did not answer within"), "{message}");
    assert!(hint.contains(&daemon.pid().to_string()), "{hint}");
    daemon.kill9();
    let output = doctor(&home);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert_told(&output, "daemon", "warning");
    assert_told(&output, "socket", "note");
}

#[test]
fn a_configuration_that_cannot_be_used_is_told_with_its_remedy() {
    let home = Home::new();
    let file = configure(&home, "intervall = \"5s\"\n");
    let output = doctor(&home);
    assert_told(&output, "config", "wrong");
    assert!(told(&output, "config")[0].2.contains("did you mean interval"), "{}", said(&output));
    configure(&home, "interval = \"5s\"\n");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    let output = doctor(&home);
    assert_told(&output, "config", "wrong");
    assert!(told(&output, "config")[0].2.contains("chmod go-w"), "{}", said(&output));
}

#[test]
fn own_files_and_directories_that_are_not_as_they_should_be_are_found() {
    let home = with_a_session();
    home.once();
    let state = home.state_dir().join("state.json");
    let intact = fs::read(&state).unwrap();
    let text = String::from_utf8(intact.clone()).unwrap();
    fs::write(&state, text.replacen("\"version\":1", "\"version\":99", 1)).unwrap();
    assert_told(&doctor(&home), "state", "wrong");
    fs::write(&state, "{").unwrap();
    assert_told(&doctor(&home), "state", "warning");
    assert_eq!(fs::read(&state).unwrap(), b"{", "left as it is");
    fs::write(&state, intact).unwrap();
    assert_told(&doctor(&home), "state", "ok");

    fs::set_permissions(home.state_dir(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_told(&doctor(&home), "state_dir", "warning");
    assert_eq!(home.state_dir().metadata().unwrap().mode() & 0o777, 0o755, "left as it is");

    fs::create_dir_all(home.socket().parent().unwrap()).unwrap();
    fs::write(home.socket(), "").unwrap();
    assert_told(&doctor(&home), "socket", "wrong");

    fs::rename(home.bucket(), home.path().join("aside")).unwrap();
    let output = doctor(&home);
    assert_told(&output, "store", "wrong");
    assert!(told(&output, "store")[0].1.contains("is gone"), "{}", said(&output));
    fs::write(home.bucket(), "").unwrap();
    assert_told(&doctor(&home), "store", "wrong");

    fs::create_dir_all(home.path().join(".codex")).unwrap();
    fs::write(home.path().join(".codex/sessions"), "").unwrap();
    assert_told(&doctor(&home), "root", "wrong");
}

#[test]
fn settings_that_cost_something_are_told() {
    let home = with_a_session();
    configure(&home, "redact = false\nmin_free_space = \"1000TiB\"\n");
    let output = doctor(&home);
    assert_told(&output, "redaction", "warning");
    assert_told(&output, "disk_space", "wrong");
    let settings = home.path().join(".claude/settings.json");
    fs::write(settings, "{\"cleanupPeriodDays\": 3650}").unwrap();
    assert_told(&doctor(&home), "retention", "ok");
    configure(&home, "redact = false\nmin_free_space = \"1MiB\"\n");
    let daemon = Daemon::start(&home, &[]);
    let output = doctor(&home);
    assert_told(&output, "redaction", "warning");
    assert_eq!(output.status.code(), Some(0), "a decision is no fault: {}", said(&output));
    let store = format!("file://{}/elsewhere", home.path().display());
    let output =
        run(home.tracecraftctl().args(["doctor", "--json"]).env("TRACECRAFT_STORE", store));
    assert_told(&output, "settings", "warning");
    drop(daemon);
}

#[test]
fn two_programs_of_one_name_are_told() {
    let home = Home::new();
    for dir in ["a", "b"] {
        let program = home.path().join(dir).join("tracecraftd");
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        fs::write(&program, "#!/bin/sh\n").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{0}/a:{0}/b:/usr/bin:/bin", home.path().display());
    let output = run(home.tracecraftctl().args(["doctor", "--json"]).env("PATH", path));
    assert_told(&output, "programs", "warning");
}

/// A stand-in for a store: one answer to whatever is asked, or a listing and no such object where that is empty.
struct Store {
    address: String,
}

impl Store {
    fn new(refusal: &'static str, date: Option<jiff::Timestamp>) -> Store {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        // It ends with the process: a test has few of them, and they only wait.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || serve(stream, refusal, date));
            }
        });
        Store { address }
    }

    fn doctor(&self, home: &Home, more: &[(&str, &str)]) -> Output {
        let mut command = home.tracecraftctl();
        command.args(["doctor", "--json"]);
        command.env("TRACECRAFT_STORE", "s3://flight/agents");
        command.env("AWS_ENDPOINT_URL", format!("http://{}", self.address));
        command.env("AWS_REGION", "us-east-1").env("AWS_EC2_METADATA_DISABLED", "true");
        command.env("AWS_ACCESS_KEY_ID", "AKIDTEST").env("AWS_SECRET_ACCESS_KEY", SECRET);
        run(command.envs(more.iter().copied()))
    }
}

fn serve(stream: TcpStream, refusal: &str, date: Option<jiff::Timestamp>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut request = String::new();
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|read| read > 0) && line != "\r\n" {
            request.push_str(&line);
            line.clear();
        }
        if request.is_empty() {
            return;
        }
        let list = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
        let (status, body) = match refusal.split_once(' ') {
            Some((status, code)) => (status, format!("<Error><Code>{code}</Code></Error>")),
            None if request.contains("list-type=2") => ("200", list.to_owned()),
            None => ("404", "<Error><Code>NoSuchKey</Code></Error>".to_owned()),
        };
        let date = date.map_or(String::new(), |date| {
            let printer = jiff::fmt::rfc2822::DateTimePrinter::new();
            format!("date: {}\r\n", printer.timestamp_to_rfc9110_string(&date).unwrap())
        });
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {status} Said\r\n{date}content-length: {length}\r\n\r\n{body}");
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn hours_ago(hours: i64) -> Option<jiff::Timestamp> {
    Some(jiff::Timestamp::now() - jiff::SignedDuration::from_hours(hours))
}

#[test]
fn a_store_that_lets_us_in_is_well_and_what_only_a_write_could_tell_is_not_tried() {
    let home = with_a_session();
    let before = listing(home.path());
    let output = Store::new("", hours_ago(0)).doctor(&home, &[("HTTPS_PROXY", "http://p:1")]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    for code in ["store", "credentials", "bucket", "list_right", "get_right", "clock"] {
        assert_told(&output, code, "ok");
    }
    for code in ["put_right", "delete_right", "conditions"] {
        assert_told(&output, code, "note");
        assert!(told(&output, code)[0].1.contains("doctor never writes"));
    }
    assert_told(&output, "proxy", "note");
    assert_eq!(listing(home.path()), before);
}

#[test]
fn t39_what_a_store_refuses_is_told_by_what_is_to_be_mended() {
    let home = with_a_session();
    let now = hours_ago(0);
    let minutes_ago = Some(jiff::Timestamp::now() - jiff::SignedDuration::from_mins(5));
    let table = [
        ("403 SignatureDoesNotMatch", now, "credentials", "wrong"),
        ("403 InvalidAccessKeyId", now, "credentials", "wrong"),
        ("404 NoSuchBucket", now, "bucket", "wrong"),
        ("301 PermanentRedirect", now, "bucket", "wrong"),
        ("400 AuthorizationHeaderMalformed", now, "bucket", "wrong"),
        ("403 AccessDenied", now, "list_right", "wrong"),
        ("503 SlowDown", now, "store", "wrong"),
        ("403 RequestTimeTooSkewed", hours_ago(1), "clock", "wrong"),
        ("", hours_ago(1), "clock", "wrong"),
        ("", minutes_ago, "clock", "warning"),
    ];
    for (refusal, date, code, verdict) in table {
        let output = Store::new(refusal, date).doctor(&home, &[]);
        assert_told(&output, code, verdict);
        println!("{refusal}: {:?}", told(&output, code));
    }
}

#[test]
fn a_store_that_is_away_or_hangs_is_told_in_time() {
    let home = with_a_session();
    // It hangs up on everybody. A port that is free again might be another test's in a moment.
    let closing = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closing.local_addr().unwrap().to_string();
    std::thread::spawn(move || closing.incoming().flatten().for_each(drop));
    let output = Store { address }.doctor(&home, &[]);
    assert_told(&output, "store", "wrong");
    // Connections wait in its queue, and nobody ever takes one.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let started = Instant::now();
    let address = silent.local_addr().unwrap().to_string();
    let output = Store { address }.doctor(&home, &[]);
    assert!(started.elapsed() < ENDS_WITHIN, "took {:?}", started.elapsed());
    assert_told(&output, "store", "wrong");
    assert!(told(&output, "store")[0].1.contains("no answer within"), "{}", said(&output));
}

#[test]
fn credentials_that_are_not_there_are_told_by_where_they_were_looked_for() {
    let home = with_a_session();
    let store = Store::new("", hours_ago(0));
    let none = [("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")];
    let output = store.doctor(&home, &none);
    assert_told(&output, "credentials", "wrong");
    assert!(told(&output, "credentials")[0].1.contains("AWS_ACCESS_KEY_ID"), "{}", said(&output));
    let output = store.doctor(&home, &[("AWS_ACCESS_KEY_ID", "")]);
    assert_told(&output, "credentials", "wrong");
    let hf = [("TRACECRAFT_STORE", "hf://me/flight/agents")];
    assert_told(&store.doctor(&home, &hf), "credentials", "wrong");
}

#[test]
fn a_service_is_looked_at_and_not_started_by_looking() {
    beside_a_manager("doctor::a_service_is_looked_at_and_not_started_by_looking", |managed| {
        let home = &managed.home;
        let ctl = managed.bin("tracecraftctl");
        let doctor = || run(home.command(ctl.to_str().unwrap()).args(["doctor", "--json"]));
        assert_told(&doctor(), "service", "note");
        managed.service_ok(&["install"]);
        let output = doctor();
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        assert_told(&output, "service", "ok");
        assert!(told(&output, "unit").is_empty(), "{}", said(&output));
        managed.systemctl(&["stop", SERVICE]);
        let output = doctor();
        assert_told(&output, "daemon", "ok");
        assert_eq!(managed.property(SERVICE, "ActiveState"), "inactive", "looking started it");
        let unit = home.path().join(".config/systemd/user").join(SERVICE);
        let text = fs::read_to_string(&unit).unwrap().replace("LimitCORE=0", "LimitCORE=1");
        fs::write(&unit, text).unwrap();
        assert_told(&doctor(), "unit", "warning");
        managed.service_ok(&["uninstall"]);
    });
}
