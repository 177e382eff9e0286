//! `tracecraftctl flush --hook` as an agent runs it: it stores, and it never holds the agent up, fails or prints, whatever it is
//! given and whatever the daemon does. Times are printed and not judged: the machine may be busy.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::daemon::{Daemon, list, status};
use crate::support::home::{Home, files_below};
use crate::support::{skipped, strace, try_wait_for, wait_for};

/// Looks that come by themselves would hide what a hook does.
const SELDOM: &[&str] = &["--interval", "1h"];

/// Far more than a hook may take, also a program without optimisation that reads a large document on a busy machine, and less
/// than the limits of what is no hook.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// More than a flush takes once its hook has run, also the second one of everything.
const HINT_TAKES: Duration = Duration::from_secs(8);

const ID: &str = "3f2a9c1e-0a5b-4c7d-9e8f-112233445566";

/// Runs the hook with a standard input. It has to end soon, with 0 and without a word.
fn hook(home: &Home, what: &str, arguments: &[&str], input: Stdio) {
    let mut out = tempfile::tempfile().unwrap();
    let mut err = tempfile::tempfile().unwrap();
    let began = Instant::now();
    let mut child = home
        .tracecraftctl()
        .args(["flush", "--hook"])
        .args(arguments)
        .stdin(input)
        .stdout(out.try_clone().unwrap())
        .stderr(err.try_clone().unwrap())
        .spawn()
        .unwrap();
    let status = try_wait_for(ENDS_WITHIN, || child.try_wait().unwrap());
    println!("{what}: {} ms", began.elapsed().as_millis());
    if status.is_none() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert_eq!(status.map(|status| status.code()), Some(Some(0)), "{what}");
    for stream in [&mut out, &mut err] {
        assert_eq!(stream.seek(SeekFrom::End(0)).unwrap(), 0, "{what} said something");
    }
}

/// A file with these words, to be read from its beginning.
fn words(text: &str) -> Stdio {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.into()
}

fn append(path: &Path, text: &str) {
    File::options().append(true).open(path).unwrap().write_all(line(text).as_bytes()).unwrap();
}

fn line(text: &str) -> String {
    format!("{{\"type\":\"user\",\"cwd\":\"/home/ada\",\"message\":{{\"content\":\"{text}\"}}}}\n")
}

fn wait_stored(home: &Home, text: &str) {
    wait_for(text, || {
        let objects = files_below(&home.bucket());
        objects.iter().any(|(_, bytes)| String::from_utf8_lossy(bytes).contains(text)).then_some(())
    });
}

/// Runs the hook until its session is stored: on a machine that stalls, one may end before it has told anybody.
fn hook_stores(home: &Home, what: &str, arguments: &[&str], says: &str, text: &str) {
    let stored = || {
        let objects = files_below(&home.bucket());
        objects.iter().any(|(_, bytes)| String::from_utf8_lossy(bytes).contains(text))
    };
    wait_for(text, || {
        hook(home, what, arguments, words(says));
        try_wait_for(HINT_TAKES, || stored().then_some(()))
    });
}

fn claude_code_says(path: &Path) -> String {
    format!(
        r#"{{"session_id":"{ID}","transcript_path":"{}","cwd":"/home/ada","hook_event_name":"Stop"}}"#,
        path.display()
    )
}

#[test]
fn a_hook_has_its_session_stored_at_once_and_one_that_nobody_knew_too() {
    let home = Home::new();
    let path = home.claude_code("/home/ada", ID);
    home.place(&path, line("the beginning").as_bytes());
    let _daemon = Daemon::start(&home, SELDOM);
    wait_stored(&home, "the beginning");

    append(&path, "said before the hook");
    hook_stores(&home, "by path and id", &[], &claude_code_says(&path), "said before the hook");
    append(&path, "said before the second hook");
    let by_id = format!(r#"{{"session_id":"{ID}"}}"#);
    hook_stores(&home, "by id alone", &[], &by_id, "said before the second hook");
    append(&path, "said before a turn was complete");
    let notify = format!(r#"{{"type":"agent-turn-complete","thread-id":"{ID}"}}"#);
    hook_stores(&home, "as an argument", &[&notify], "", "said before a turn was complete");

    let new = home.codex("01a202ff-e959-7981-a12a-3e16776f6a97");
    home.place(&new, line("a new session").as_bytes());
    let says = format!(r#"{{"session_id":"x","transcript_path":"{}"}}"#, new.display());
    hook_stores(&home, "a new session", &[], &says, "a new session");
    wait_for("both to be listed", || (list(&home).len() == 2).then_some(()));
}

#[test]
fn a_path_from_a_hook_is_never_opened_and_names_of_others_do_nothing() {
    let home = Home::new();
    let path = home.claude_code("/home/ada", ID);
    home.place(&path, line("the beginning").as_bytes());
    let stranger = home.path().join("not-a-session.jsonl");
    fs::write(&stranger, line("must not be stored")).unwrap();
    let mut command = home.tracecraftd();
    command.args(SELDOM);
    let traced = strace::usable().map(|()| strace::traced(&home, &command, false));
    let (command, record) = match traced {
        Ok((command, record)) => (command, Some(record)),
        Err(why) => {
            skipped("whether a path from a hook is opened", &why);
            (command, None)
        }
    };
    let mut daemon = Daemon::spawn_command(&home, command);
    daemon.wait_ready(&home);
    wait_stored(&home, "the beginning");
    let below = home.path().join(".claude/projects/x/../../../not-a-session.jsonl");
    for hostile in [&stranger, &below, Path::new("/dev/zero"), Path::new("/")] {
        let says = format!(r#"{{"session_id":"x","transcript_path":"{}"}}"#, hostile.display());
        hook(&home, "a path of something else", &[], words(&says));
    }
    // What comes after it is done after it.
    append(&path, "and on it goes");
    hook_stores(&home, "the session", &[], &claude_code_says(&path), "and on it goes");
    assert_eq!(list(&home).len(), 1);
    assert_eq!(daemon.term().code(), Some(0), "{}", daemon.said());
    for (name, bytes) in files_below(&home.bucket()) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        assert!(!text.contains("must not be stored"), "{} has a stranger's words", name.display());
    }
    if let Some(record) = record {
        assert!(!record.opens_below(&path).is_empty(), "strace saw the session opened");
        // The daemon has reasons of its own to open the root directory.
        for name in ["not-a-session.jsonl", "\"/dev/zero\""] {
            let opened = record.opens_below(Path::new(name));
            assert!(opened.is_empty(), "{name} was opened:\n{}", opened.join("\n"));
        }
    }
}

/// A hook at every step of an agent, with the store away: looks keep a distance, of its session as of others.
#[test]
fn t37_hooks_do_not_make_the_interval_forgotten_while_the_store_is_away() {
    let home = Home::new();
    let path = home.claude_code("/home/ada", ID);
    home.place(&path, line("the beginning").as_bytes());
    let other = home.codex("01a202ff-e959-7981-a12a-3e16776f6a97");
    home.place(&other, line("another beginning").as_bytes());
    let _daemon = Daemon::start(&home, SELDOM);
    wait_stored(&home, "the beginning");
    wait_stored(&home, "another beginning");
    let away = home.path().join("away");
    fs::rename(home.bucket(), &away).unwrap();
    fs::write(home.bucket(), "").unwrap();
    let unknown = home.claude_code("/home/ada", "3f2a9c1e-0a5b-4c7d-9e8f-aaaaaaaaaaaa");
    home.place(&unknown, line("a session that nobody has placed").as_bytes());
    let began = Instant::now();
    for number in 0..40 {
        append(&path, &format!("step {number}"));
        append(&other, &format!("step {number}"));
        let says = if number % 2 == 0 { &path } else { &unknown };
        hook(&home, "a step", &[], words(&claude_code_says(says)));
    }
    wait_for("the steps to be captured", || pending(&home));
    // One look each two seconds, and one behind each scan, which are five seconds apart; two sessions, and the new one.
    let looks = began.elapsed().as_secs() / 2 + began.elapsed().as_secs() / 5 + 2;
    let captured = status(&home).unwrap()["pending"]["parts"].as_u64().unwrap();
    assert!(captured <= 2 * looks + 1, "{captured} parts of at most {looks} looks");
    fs::remove_file(home.bucket()).unwrap();
    fs::rename(&away, home.bucket()).unwrap();
    wait_stored(&home, "step 39");
}

fn pending(home: &Home) -> Option<()> {
    (status(home)?["pending"]["parts"].as_u64()? > 0).then_some(())
}

#[test]
fn without_a_daemon_a_hook_ends_at_once_and_in_peace() {
    let home = Home::new();
    hook(&home, "no daemon", &[], words(&claude_code_says(Path::new("/x.jsonl"))));
    // A socket that a kill left behind.
    fs::create_dir_all(home.socket().parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(home.socket()).unwrap());
    hook(&home, "a dead socket", &[], words(&claude_code_says(Path::new("/x.jsonl"))));
    hook(&home, "no such directory", &["--socket", "/does/not/exist"], Stdio::null());
}

#[test]
fn a_stopped_daemon_does_not_hold_a_hook_up() {
    let home = Home::new();
    let path = home.claude_code("/home/ada", ID);
    home.place(&path, line("the beginning").as_bytes());
    let daemon = Daemon::start(&home, SELDOM);
    wait_stored(&home, "the beginning");
    daemon.signal(Signal::STOP);
    append(&path, "said to a wedged daemon");
    for _ in 0..3 {
        hook(&home, "a wedged daemon", &[], words(&claude_code_says(&path)));
    }
    daemon.signal(Signal::CONT);
    hook_stores(&home, "a daemon that is back", &[], &claude_code_says(&path), "said to a wedged");
}

#[test]
fn whatever_a_hook_is_given_it_ends_with_0_and_without_a_word() {
    let home = Home::new();
    home.place(&home.claude_code("/home/ada", ID), line("the beginning").as_bytes());
    let _daemon = Daemon::start(&home, SELDOM);
    let deep = "[".repeat(200_000);
    let long = format!(r#"{{"a":"{}","session_id":"x"}}"#, "a".repeat(8 << 20));
    for garbage in ["", "\0\u{1b}[2J", "{", "[]", "null", r#"{"session_id":[1]}"#, &deep, &long] {
        hook(&home, "garbage", &[], words(garbage));
    }
    hook(&home, "garbage as an argument", &["}{"], Stdio::null());
    hook(&home, "endless input", &[], File::open("/dev/zero").unwrap().into());
    // An agent that writes its words and leaves the pipe open, and one that never writes any.
    for text in [r#"{"session_id":"x"}"#, ""] {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(text.as_bytes()).unwrap();
        hook(&home, "a pipe that stays open", &[], reader.into());
        drop(writer);
    }
    let directory = File::open(home.path()).unwrap();
    hook(&home, "a directory as input", &[], directory.into());
}

#[test]
fn a_wrong_command_line_of_a_hook_is_told_and_is_no_order_to_stop() {
    let home = Home::new();
    let output = crate::support::daemon::ctl(&home, &["flush", "--hook", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout.is_empty() && !output.stderr.is_empty());
}
