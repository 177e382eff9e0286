//! The house rules that no compiler and no clippy lint checks, kept by reading the sources.
//!
//! The rules are the tables below; what checks them follows. A new top-level module needs a row, a new fault number needs a row
//! in `faults.tsv`. What clippy can check is in `Cargo.toml` and `clippy.toml` and not here.

mod lex;
mod symbols;
mod tests;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use lex::{Named, Token, paths, tokens};
use symbols::Symbols;

/// What each module of the library may name of its siblings: `daemon/ARCHITECTURE.md` says why. An entry with `::` allows only
/// what is below that path. Arrows point downwards: a module may not name one that may name it.
const IMPORTS: &[(&str, &[&str])] = &[
    ("control", &["api", "listening", "mirror::handle", "usage"]),
    (
        "mirror",
        &[
            "api", "config", "durable", "harness", "ledger", "outbox", "part", "redact", "source",
            "state", "store", "watch",
        ],
    ),
    ("outbox", &["durable", "part", "state"]),
    ("ledger", &["durable", "part", "state"]),
    ("state", &["durable", "part", "redact", "source"]),
    ("part", &["redact"]),
    ("config", &["paths"]),
    // A store keeps keys and bytes; that they are parts of sessions is nothing to it.
    ("store", &["durable"]),
    // A harness knows where sessions are and says how they are to be read; reading is not its work.
    ("harness", &["source"]),
    // Reading ends where the bytes are in memory: what happens to them then would make reading depend on it.
    ("source", &[]),
    ("redact", &[]),
    ("durable", &[]),
    ("watch", &[]),
    ("instance", &[]),
    ("listening", &[]),
    // Where the log goes is a setting.
    ("log", &["config"]),
    // What the process uses; who wants to know is nothing to it.
    ("usage", &[]),
    ("shutdown", &[]),
    ("paths", &[]),
    ("api", &[]),
    // What a service manager's installer needs to know of the configuration.
    ("setup", &["config", "durable", "paths"]),
    // Only looks: at what these modules own, and never through the mirror.
    (
        "doctor",
        &[
            "config",
            "durable",
            "harness",
            "instance",
            "listening",
            "outbox",
            "remote",
            "source",
            "state",
            "store",
        ],
    ),
    // Puts a remote store together; what is stored is nothing to it.
    ("remote", &["config", "durable", "store"]),
    // Tells a service manager how the mirror gets on.
    ("systemd", &["api", "mirror::Pulse", "mirror::handle"]),
    // Names the failure of every part, for the exit code.
    ("error", &["config", "control", "instance", "mirror", "paths", "state"]),
];

/// The file that wires the modules together: the only one of the library that may name them all.
const WIRING: &str = "daemon/lib.rs";

/// What a program outside the library may name of it, by folder. The daemon's `main.rs` may name all that is public.
const OUTSIDE: &[(&str, &[&str])] = &[
    ("ctl/", &["ConfigError", "Flags", "api", "doctor", "examine", "paths", "setup"]),
    // What the tests believe about a bucket they read themselves.
    ("tests/", &[]),
];

/// Paths that have one place. The product may not name them elsewhere; its tests may.
const PLACES: &[Place] = &[
    Place {
        begin: "rusoto",
        only: &["daemon/store/s3/"],
        why: "one folder knows the S3 library, so that it can be replaced",
    },
    Place {
        begin: "Connection::open",
        only: &["daemon/source/database/copy.rs"],
        why: "SQLite opens nothing but private copies: an agent's own database it would lock, and clean up after",
    },
    Place {
        begin: "std::fs::rename",
        only: &["daemon/durable/os.rs"],
        why: "renames go through `durable`, which syncs the directory",
    },
    Place {
        begin: "fs::rename",
        only: &["daemon/durable/os.rs"],
        why: "renames go through `durable`, which syncs the directory",
    },
    Place {
        begin: "rustix::fs::rename",
        only: &["daemon/durable/os.rs"],
        why: "renames go through `durable`, which syncs the directory",
    },
];

/// Lines of a file. More are two nouns in one file.
const LINES_MAX: usize = 600;

/// Words of unfinished work. Put together here, so that this file may be read, too.
const UNFINISHED: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("X", "XX")];

/// The list of the faults that tests name: number, tab, what happens.
const FAULTS: &str = "tests/faults.tsv";

/// The page that names symbols, so that an editor finds them.
const ARCHITECTURE: &str = "daemon/ARCHITECTURE.md";

/// Folders with sources.
const SOURCES: &[&str] = &["ctl", "daemon", "packaging", "tests"];

struct Place {
    /// Words that begin with this are meant; each whole, only the last may go on.
    begin: &'static str,
    /// Files, and folders with a slash at their end.
    only: &'static [&'static str],
    why: &'static str,
}

/// A line that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
struct Violation {
    file: String,
    line: usize,
    rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.rule)
    }
}

#[test]
fn the_sources_keep_the_house_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| fs::read_to_string(root.join(name)).expect(name);
    let faults = faults(&read(FAULTS));
    let mut files = Vec::new();
    for folder in SOURCES {
        collect(&root.join(folder), &mut files);
    }
    assert!(files.len() > 100, "found only {} sources", files.len());
    let mut violations = check_dependencies("Cargo.toml", &read("Cargo.toml"));
    let mut symbols = Symbols::default();
    for path in files {
        let file = path.strip_prefix(root).expect("it was found below").to_str().expect("ASCII");
        let source = fs::read_to_string(&path).expect(file);
        violations.extend(check(file, &source, &faults));
        symbols.read(file, &source);
    }
    violations.extend(symbols::check(ARCHITECTURE, &read(ARCHITECTURE), &symbols));
    let told: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(told.is_empty(), "{} lines break rules:\n{}", told.len(), told.join("\n"));
}

/// Everything that is wrong with a source file. `file` is relative to the repository.
fn check(file: &str, source: &str, faults: &[String]) -> Vec<Violation> {
    let mut report = Report { file, violations: Vec::new() };
    let tokens = tokens(source);
    let paths = paths(&tokens);
    check_text(source, &mut report);
    check_faults(&tokens, faults, &mut report);
    check_imports(&paths, &mut report);
    check_outside(&paths, &mut report);
    check_places(&paths, &mut report);
    report.violations.sort_by_key(|violation| violation.line);
    report.violations
}

struct Report<'a> {
    file: &'a str,
    violations: Vec<Violation>,
}

impl Report<'_> {
    fn add(&mut self, line: usize, rule: String) {
        self.violations.push(Violation { file: self.file.to_owned(), line, rule });
    }
}

fn check_text(source: &str, report: &mut Report<'_>) {
    if !source.starts_with("//! ") {
        report.add(1, "a file begins with `//!`: what it owns and what it refuses to know".into());
    }
    let lines = source.lines().count();
    if lines > LINES_MAX {
        report.add(LINES_MAX + 1, format!("{lines} lines; a file has at most {LINES_MAX}"));
    }
    for (number, line) in source.lines().enumerate() {
        let mut words = line.split(|c: char| !c.is_alphanumeric());
        if let Some(word) = words.find(|word| UNFINISHED.contains(word)) {
            report.add(number + 1, format!("{word}: finish it, or open an issue"));
        }
    }
}

/// Tests say in their names which faults they cover: `t17_t18_…`.
fn check_faults(tokens: &[Token], faults: &[String], report: &mut Report<'_>) {
    for pair in tokens.windows(2) {
        let [keyword, name] = pair else { continue };
        if keyword.text != "fn" {
            continue;
        }
        for number in name.text.split('_').map_while(fault_number) {
            if !faults.contains(&number) {
                report.add(name.line, format!("{number} is not in the list of faults, {FAULTS}"));
            }
        }
    }
}

fn fault_number(word: &str) -> Option<String> {
    let digits = word.strip_prefix('t')?;
    let number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    number.then(|| format!("T{digits}"))
}

fn check_imports(paths: &[Named], report: &mut Report<'_>) {
    let Some(own) = library_path(report.file) else { return };
    if report.file == WIRING {
        return;
    }
    let Some((module, allowed)) = IMPORTS.iter().find(|(name, _)| *name == own[0]) else {
        return report.add(1, format!("`{}` has no row in the table of imports", own[0]));
    };
    for named in paths {
        let Some(target) = absolute(&own, named) else { continue };
        if target.is_empty() || target[0] == *module {
            continue;
        }
        let target = target.join("::");
        // A path into the library's root names what lib.rs wires or makes public.
        if !allowed.iter().any(|allowed| is_below(&target, allowed)) {
            let may = if allowed.is_empty() { "nothing".into() } else { allowed.join(", ") };
            report.add(named.line, format!("`{module}` names `{target}`; it may name {may}"));
        }
    }
}

fn check_outside(paths: &[Named], report: &mut Report<'_>) {
    let Some((folder, allowed)) = OUTSIDE.iter().find(|(name, _)| report.file.starts_with(name))
    else {
        return;
    };
    for named in paths.iter().filter(|named| named.path[0] == "tracecraft") {
        let target = named.path[1..].join("::");
        if !allowed.iter().any(|allowed| is_below(&target, allowed)) {
            let may = if allowed.is_empty() { "nothing".into() } else { allowed.join(", ") };
            let rule = format!("`{folder}` names `tracecraft::{target}`; of it, it may name {may}");
            report.add(named.line, rule);
        }
    }
}

fn check_places(paths: &[Named], report: &mut Report<'_>) {
    if is_test(report.file) {
        return;
    }
    for named in paths {
        let path = named.path.join("::");
        let place = PLACES.iter().find(|place| path.starts_with(place.begin));
        let is_meant = |only: &&str| match only.strip_suffix('/') {
            Some(_) => report.file.starts_with(only),
            None => report.file == *only,
        };
        if let Some(place) = place.filter(|place| !place.only.iter().any(is_meant)) {
            let only = place.only.join(", ");
            report.add(named.line, format!("`{path}` is for {only} alone: {}", place.why));
        }
    }
}

/// Every dependency says behind it what it is for.
fn check_dependencies(file: &str, manifest: &str) -> Vec<Violation> {
    let mut report = Report { file, violations: Vec::new() };
    let mut inside = false;
    for (number, line) in manifest.lines().enumerate() {
        if line.starts_with('[') {
            inside = line.contains("dependencies");
            continue;
        }
        let key = line.split('=').next().map(str::trim).unwrap_or_default();
        let begins = line.contains('=') && !key.is_empty() && !line.starts_with([' ', '#']);
        if inside && begins && line.split_once(" # ").is_none_or(|(_, why)| why.is_empty()) {
            report.add(number + 1, format!("`{key}`: a dependency has its reason behind it"));
        }
    }
    report.violations
}

/// The numbers in the first column of the list.
fn faults(list: &str) -> Vec<String> {
    let cell = |line: &str| line.split('\t').next().map(str::to_owned);
    let is_number = |cell: &String| fault_number(&cell.to_lowercase()).is_some();
    list.lines().filter_map(cell).filter(is_number).collect()
}

/// The module that a file of the library is. `None`: it is no such file.
fn library_path(file: &str) -> Option<Vec<String>> {
    let path = file.strip_prefix("daemon/")?.strip_suffix(".rs")?;
    let path = path.strip_suffix("/mod").unwrap_or(path);
    // A binary beside the library.
    (path != "main").then(|| path.split('/').map(str::to_owned).collect())
}

/// A path from the library's root. `None`: it leads out of the library, or down from where it stands.
fn absolute(own: &[String], named: &Named) -> Option<Vec<String>> {
    let mut at: Vec<String> = own.iter().chain(&named.inside).cloned().collect();
    let mut words = named.path.iter().peekable();
    if words.next_if(|word| *word == "crate").is_some() {
        at.clear();
    } else {
        words.peek().filter(|word| **word == "super")?;
        while words.next_if(|word| *word == "super").is_some() {
            at.pop();
        }
    }
    at.extend(words.cloned());
    Some(at)
}

fn is_below(path: &str, allowed: &str) -> bool {
    path.strip_prefix(allowed).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Whether a file is compiled for tests only.
fn is_test(file: &str) -> bool {
    let name = file.strip_suffix(".rs").unwrap_or(file);
    name.split('/').any(|part| part == "tests" || part.ends_with("_tests"))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("it").path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
