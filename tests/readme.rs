//! README.md as a newcomer reads it: the tour's commands are run in a fresh home, in one shell, and say what the page says they say.
//!
//! Owns what of an output may differ from run to run (`NORMAL`) and which commands of the page are not run (`NOT_RUN`). With
//! `TRACECRAFT_BLESS=1` what the commands said is written into the page; the diff is then for a person to judge.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};

use regex::Regex;

use crate::support::daemon::status;
use crate::support::home::{Home, files_below};
use crate::support::{PATIENCE, skipped, wait_for};

/// The section whose commands are run, in order.
const TOUR: &str = "## Five minutes";

/// Fenced commands of the page that are not run here, by how they begin, and why.
const NOT_RUN: &[(&str, &str)] = &[
    ("tracecraftctl service install", "needs a user manager: tests/service.rs"),
    ("tracecraftd 2> log &", "needs a server: tests/bucket.rs"),
    ("dpkg -i tracecraftd_", "installs for real: packaging/test"),
    ("tracecraftctl doctor", "tells of the machine that it runs on: tests/doctor.rs"),
];

/// What of a block is replaced, and by what.
type Stands = &'static [(&'static str, &'static str)];

/// Blocks of the page that are typed into a shell, by how they begin, and what has to come for that which is another's on each
/// machine. Nothing stands for a block that is not run here.
const TYPED: &[(&str, Option<Stands>)] = &[
    ("cargo run --release", None),   // Builds.
    ("cargo build --release", None), // The tour is run without it.
    ("sessions=300", None),          // Takes minutes: the figures are of such a run.
    (
        "cat ~/.local/share",
        Some(&[("<harness>/<id>", "codex/*"), ("> session.jsonl", "| head -n 1")]),
    ),
    ("sock=", Some(&[])),
    ("curl -sN", Some(&[("v1/events", "v1/events | head -n 1")])),
    ("curl -s ", Some(&[])),
    ("curl -sf", Some(&[("/var/lib/node_exporter/textfile/tracecraft.prom", "page; cat page")])),
];

/// What differs from run to run, and what stands for it when outputs are compared.
const NORMAL: &[(&str, &str)] = &[
    (r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME"),
    (r"\b\d+ (s|min|h) ago", "AGE ago"),
    (r"running   for \d+ (s|min)", "running   for AGE"),
    (r"process \d+|pid=\d+", "PROCESS"),
    (r"uses \S+ \S+ of memory.*", "uses SOME"),
    // A column is as wide as the widest age.
    (r" +AGE", " AGE"),
    (r" +STORED", " STORED"),
];

/// Where the sessions of the tour are.
const HOME: &str = "tests/tour/home";

/// A look that comes by itself would be faster than a command now and then; and how `status` says this one.
const TEST_INTERVAL: (&str, &str) = ("1h", "looks every 1 h");

/// The home that the page shows.
const SHOWN_HOME: &str = "/home/ada";

/// A command of the page, and what it says there.
#[derive(Debug)]
struct Step {
    command: String,
    /// Lines of the page: where the output begins and ends.
    shown: std::ops::Range<usize>,
}

#[test]
fn the_tour_of_the_readme_says_what_it_says_there() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let page = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = page.lines().collect();
    let home = Home::new();
    lay_out(&home);
    let mut shell = Shell::start(&home);
    let (mut wrong, mut blessed, mut copied) = (Vec::new(), Vec::new(), 0);
    let tour = steps(&lines, |section| section == TOUR);
    assert!(tour.len() > 10, "the tour has {} commands", tour.len());
    for step in tour {
        let said = shell.run(&step.command);
        if step.command.ends_with('&') {
            wait_until_safe(&home);
        }
        let shown = lines[step.shown.clone()].join("\n");
        blessed.extend(lines[copied..step.shown.start].iter().map(|&line| line.to_owned()));
        copied = step.shown.end;
        // Of sessions that were stored at the same time any may come first.
        let sorted = |text: &str| {
            let mut lines: Vec<String> = normal(text).lines().map(str::to_owned).collect();
            lines.sort();
            lines.join("\n")
        };
        let listed = step.command == "tracecraftctl list" && sorted(&shown) == sorted(&said);
        if listed || matches(&normal(&shown), &normal(&said)) {
            blessed.push(shown);
        } else {
            wrong.push(format!("$ {}\n--- says\n{said}\n--- and the page\n{shown}", step.command));
            blessed.push(said);
        }
        if step.shown.is_empty() && blessed.last().is_some_and(String::is_empty) {
            blessed.pop();
        }
    }
    if std::env::var_os("TRACECRAFT_BLESS").is_some() {
        blessed.extend(lines[copied..].iter().map(|&line| line.to_owned()));
        fs::write(&path, blessed.join("\n") + "\n").unwrap();
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn every_command_of_the_readme_is_run_or_has_a_reason_why_not() {
    let page = include_str!("../README.md");
    let lines: Vec<&str> = page.lines().collect();
    let others = steps(&lines, |section| section != TOUR);
    let ours = others.iter().filter(|step| step.command.contains("tracecraft"));
    for step in ours {
        let excused = NOT_RUN.iter().any(|(begin, _)| step.command.starts_with(begin));
        assert!(excused, "run `{}` in the tour, or say in NOT_RUN why not", step.command);
    }
    for (begin, why) in NOT_RUN {
        let used = others.iter().any(|step| step.command.starts_with(begin));
        assert!(used, "nothing begins with `{begin}` any more ({why})");
    }
}

#[test]
fn what_the_page_has_a_person_type_into_a_shell_works() {
    let page = include_str!("../README.md");
    let home = Home::new();
    lay_out(&home);
    let mut shell = Shell::start(&home);
    if shell.run("command -v curl").is_empty() {
        return skipped("the blocks of the page", "there is no curl");
    }
    shell.run("tracecraftd 2> /dev/null &");
    wait_until_safe(&home);
    let mut typed = Vec::new();
    for (language, block) in blocks(page) {
        match language {
            "json" => drop(serde_json::from_str::<serde_json::Value>(&block).expect(&block)),
            "toml" | "yaml" | "ini" => {} // Tables of ours are tests/rules.rs's; the others are other programs'.
            _ if block.lines().any(|line| line.starts_with("$ ")) => {}
            _ => {
                let known = TYPED.iter().find(|(begin, _)| block.starts_with(begin));
                let (begin, run) = known.unwrap_or_else(|| panic!("nobody tries this:\n{block}"));
                typed.push(*begin);
                let Some(stands) = run else { continue };
                let line = stands.iter().fold(block, |line, (page, here)| line.replace(page, here));
                let said = shell.run(&line);
                assert!(said.starts_with(['{', '#']), "{line}\nsays\n{said}");
            }
        }
    }
    let unused: Vec<_> = TYPED.iter().filter(|(begin, _)| !typed.contains(begin)).collect();
    assert!(unused.is_empty(), "nothing of the page begins so: {unused:?}");
}

/// The fenced blocks of a page, with their languages.
fn blocks(page: &str) -> Vec<(&str, String)> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let block: Vec<&str> =
                lines.by_ref().take_while(|line| !line.starts_with("```")).collect();
            blocks.push((language, block.join("\n")));
        }
    }
    blocks
}

/// The fenced commands (`$ …`) of some sections.
fn steps(lines: &[&str], wanted: impl Fn(&str) -> bool) -> Vec<Step> {
    let (mut section, mut fenced) = ("", false);
    let mut steps: Vec<Step> = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if line.starts_with("## ") && !fenced {
            section = line;
        } else if let Some(command) = line.strip_prefix("$ ").filter(|_| fenced && wanted(section))
        {
            steps.push(Step { command: command.to_owned(), shown: at + 1..at + 1 });
            continue;
        }
        if let Some(step) = steps.last_mut()
            && fenced
            && step.shown.end == at
        {
            step.shown.end = at + 1;
        }
    }
    // An empty line between two commands belongs to neither.
    for step in &mut steps {
        while !step.shown.is_empty() && lines[step.shown.end - 1].is_empty() {
            step.shown.end -= 1;
        }
    }
    steps
}

fn normal(text: &str) -> String {
    NORMAL.iter().fold(text.trim_end().to_owned(), |text, (pattern, stands)| {
        Regex::new(pattern).unwrap().replace_all(&text, *stands).into_owned()
    })
}

/// Whether an output is the one that is shown, where a line `…` stands for any lines.
fn matches(shown: &str, said: &str) -> bool {
    let shown: Vec<&str> = shown.lines().collect();
    let mut rest: Vec<&str> = said.lines().collect();
    let pieces: Vec<&[&str]> = shown.split(|line| *line == "…").collect();
    for (number, piece) in pieces.iter().enumerate() {
        let (first, last) = (number == 0, number + 1 == pieces.len());
        let found = (0..=rest.len().saturating_sub(piece.len())).find(|at| {
            let end = at + piece.len();
            rest.get(*at..end) == Some(piece)
                && (!first || *at == 0)
                && (!last || end == rest.len())
        });
        let Some(at) = found else { return false };
        rest.drain(..at + piece.len());
    }
    true
}

/// The sessions of the tour, written just now.
fn lay_out(home: &Home) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(HOME);
    let files = files_below(&from);
    assert!(!files.is_empty());
    for (path, content) in files {
        let below = path.strip_prefix(&from).unwrap().to_str().unwrap();
        let to = home.path().join(PathBuf::from(below.replacen("dot-", ".", 1)));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, content).unwrap();
    }
}

/// Until the daemon that was just started has stored everything.
fn wait_until_safe(home: &Home) {
    wait_for("the daemon to have stored everything", || {
        let status = status(home)?;
        let idle = status["pending"]["parts"] == 0 && status["sessions"]["pending"] == 0;
        let stored = status["stored_bytes"].as_u64() > Some(0);
        (status["phase"] == "recording" && idle && stored).then_some(())
    });
}

/// One shell for all commands, as a newcomer has one.
struct Shell {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    home: String,
}

impl Shell {
    fn start(home: &Home) -> Shell {
        let programs = Path::new(env!("CARGO_BIN_EXE_tracecraftd")).parent().unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut child = home
            .command("bash")
            .args(["--norc", "--noprofile"])
            .env("PATH", format!("{}:{path}", programs.display()))
            .env("TZ", "UTC")
            .env("TRACECRAFT_INTERVAL", TEST_INTERVAL.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("bash");
        let (give, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| give.send(line))
        });
        let mut input = child.stdin.take().unwrap();
        // As on a terminal, where both are seen; a daemon in the background says what it says into the same.
        writeln!(input, "exec 2>&1").unwrap();
        Shell { child, input, lines, home: home.path().display().to_string() }
    }

    /// Runs a command and answers with what it said, as it would have been said to Ada.
    fn run(&mut self, command: &str) -> String {
        const END: &str = "--- that was it";
        writeln!(self.input, "{command}\necho; echo '{END}'").unwrap();
        let mut said = Vec::new();
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| {
                panic!("`{command}` did not end; it said {said:?}");
            });
            if line == END {
                break;
            }
            // What a shell that is no terminal's says of a job that was killed.
            if line.starts_with("bash: line ") && line.contains(" Killed ") {
                continue;
            }
            let line = line.replace(&self.home, SHOWN_HOME);
            said.push(line.replace(TEST_INTERVAL.1, "looks every 5 s"));
        }
        said.join("\n").trim_end().to_owned()
    }
}

impl Drop for Shell {
    /// Ends the daemon that it started, and itself.
    fn drop(&mut self) {
        let _ = writeln!(self.input, "kill -9 $(jobs -p); exit");
        let _ = self.child.wait();
    }
}

#[test]
fn a_line_of_dots_stands_for_any_lines() {
    for (shown, said, same) in [
        ("a\nb", "a\nb", true),
        ("a\nb", "a\nb\nc", false),
        ("a\n…\nc", "a\nb\nb\nc", true),
        ("a\n…", "a\nb", true),
        ("…\nb", "a\nb", true),
        ("…\nb", "a\nb\nc", false),
        ("b\n…", "a\nb", false),
    ] {
        assert_eq!(matches(shown, said), same, "{shown:?} {said:?}");
    }
}
