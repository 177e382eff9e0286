//! Other programs, and what they print: how they are run, how their words are read.
//!
//! Knows processes and the quoting of variables; refuses to know what any of it is for.

use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tracecraft::paths::Bases;
use tracecraft::setup::Vars;

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) success: bool,
    pub(super) out: String,
    pub(super) err: String,
}

impl Ended {
    /// The last thing that it said, which is what it says of a failure; not where more is to be read, which `systemctl` adds.
    pub(super) fn said(&self) -> String {
        let last = |text: &str| {
            let mut lines = text.trim().lines().rev().filter(|line| !line.starts_with("See \""));
            lines.next().map(str::to_owned)
        };
        last(&self.err).or_else(|| last(&self.out)).unwrap_or_else(|| "it said nothing".into())
    }
}

/// Runs a program to its end.
pub(super) fn run(words: &[&str]) -> io::Result<Ended> {
    let output = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Ended {
        success: output.status.success(),
        out: text(&output.stdout),
        err: text(&output.stderr),
    })
}

/// Runs a program whose output is for the person who waits, and answers with its exit code.
pub(super) fn show(words: &[&str]) -> io::Result<Option<i32>> {
    let status = Command::new(words[0]).args(&words[1..]).stdin(Stdio::null()).status()?;
    Ok(status.code())
}

/// The variables that `systemctl --user show-environment` prints, one a line, quoted as a shell reads them where they must be.
pub(super) fn variables(printed: &str) -> Vars {
    let variable = |line: &str| {
        let (name, value) = line.split_once('=')?;
        Some((name.to_owned(), unquoted(value)))
    };
    printed.lines().filter_map(variable).collect()
}

/// A value without `$'…'` around it. Other forms of quoting are not printed there.
fn unquoted(value: &str) -> String {
    let Some(inner) = value.strip_prefix("$'").and_then(|rest| rest.strip_suffix('\'')) else {
        return value.to_owned();
    };
    let mut out = String::new();
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            out.push(character);
            continue;
        }
        match characters.next() {
            Some('n') => out.push('\n'),
            Some('t') => out.push('\t'),
            Some('r') => out.push('\r'),
            Some(other) => out.push(other),
            None => {}
        }
    }
    out
}

/// The directories of a process with these variables. Those of ours stand for what only the platform knows.
pub(super) fn bases(ours: Bases, vars: &Vars) -> Bases {
    let absolute = |name: &str| vars.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = absolute("HOME").unwrap_or_else(|| ours.home.clone());
    if cfg!(target_os = "macos") {
        return ours;
    }
    Bases {
        config: absolute("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config")),
        state: Some(absolute("XDG_STATE_HOME").unwrap_or_else(|| home.join(".local/state"))),
        data: absolute("XDG_DATA_HOME").unwrap_or_else(|| home.join(".local/share")),
        runtime: absolute("XDG_RUNTIME_DIR").or(ours.runtime),
        home,
    }
}
