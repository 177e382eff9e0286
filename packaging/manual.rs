//! Man pages: what a program's command line says, as `packaging/man` has it for packages.
//!
//! Both programs have this file among their tests: each compares the pages of its own command line with the committed ones, and
//! `TRACECRAFT_BLESS=1` writes them anew. So a page is never older than the flags, and no program carries what makes pages.
//! Knows roff and clap; nothing of what a flag does.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

/// Beside the version, because that is what a reader wants to know of a page: when what it tells was so.
const DATE: &str = "2026-11-29";
const SOURCE: &str = concat!("tracecraft ", env!("CARGO_PKG_VERSION"));
/// In the middle of the first line: short, because the longest name of a page stands on both sides of it in 80 columns.
const MANUAL: &str = "Tracecraft";

/// Words before a colon that make a section of a help text and no sentence.
const HEADING_WORDS_MAX: usize = 2;

/// Compares the pages of a program, one for each of its verbs, with the committed ones.
pub(crate) fn check(mut command: Command) {
    command.build();
    let mut pages = Vec::new();
    collect(&command, &mut pages);
    if blessing() {
        // A verb that is gone takes its page with it.
        let own = |name: &str| name == format!("{}.1", command.get_name());
        for name in committed(command.get_name()).into_iter().filter(|name| !own(name)) {
            fs::remove_file(folder().join(name)).unwrap();
        }
    }
    for (name, text) in &pages {
        same(name, text);
    }
    let mut names: Vec<_> = pages.into_iter().map(|(name, _)| name).collect();
    names.sort();
    assert_eq!(committed(command.get_name()), names, "pages of verbs that are gone");
}

/// Compares a page with the committed one.
pub(crate) fn same(name: &str, text: &str) {
    let path = folder().join(name);
    if blessing() {
        #[allow(clippy::disallowed_methods, reason = "a file of the repository, written by hand")]
        return fs::write(path, text).unwrap();
    }
    let committed = fs::read_to_string(path).unwrap_or_default();
    assert_eq!(text, committed, "{name} tells something else: TRACECRAFT_BLESS=1 accepts this");
}

/// The first line of a page.
pub(crate) fn title(name: &str, section: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("TH", [name, section, DATE, SOURCE, MANUAL]);
    roff
}

/// References to other pages.
pub(crate) fn see_also(pages: &[&str]) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman(pages.join(", "))]);
    roff
}

/// Lines that stay lines.
pub(crate) fn verbatim<'a>(roff: &mut Roff, lines: impl IntoIterator<Item = &'a str>) {
    roff.control("RS", ["4"]).control("nf", []);
    for line in lines {
        roff.text([roman(line)]);
    }
    roff.control("fi", []).control("RE", []);
}

/// Pieces of a page put together: each brings the same definitions, which are wanted once.
pub(crate) fn page(pieces: &[Roff]) -> String {
    let mut texts = pieces.iter().map(Roff::render);
    let first = texts.next().unwrap_or_default();
    let definitions = Roff::new().render();
    texts.fold(first, |page, text| page + text.strip_prefix(&definitions).unwrap_or(&text))
}

fn collect(command: &Command, pages: &mut Vec<(String, String)>) {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let man = Man::new(command.clone());
    let mut text = title(&name, "1").render().into_bytes();
    man.render_name_section(&mut text).unwrap();
    man.render_synopsis_section(&mut text).unwrap();
    man.render_description_section(&mut text).unwrap();
    man.render_options_section(&mut text).unwrap();
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text).unwrap();
    }
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let rest = page(&[notes(&help), see_also(&related(&name))]);
    let definitions = Roff::new().render();
    // As above.
    let text = String::from_utf8(text).unwrap() + &rest;
    let text = definitions.clone() + &text.replace(&definitions, "");
    // An empty line is space enough before the values of a flag.
    let text = text.replace("\n.br\n\n.br\n", "\n.sp\n");
    pages.push((format!("{name}.1"), text));
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
        collect(verb, pages);
    }
}

fn related(name: &str) -> Vec<&'static str> {
    match name {
        "tracecraftd" => vec!["tracecraftctl(1)", "tracecraft-config(5)"],
        "tracecraftctl" => vec!["tracecraftd(1)", "tracecraft-config(5)"],
        _ if name.starts_with("tracecraftctl-service-") => {
            vec!["tracecraftctl-service(1)", "tracecraftctl(1)", "tracecraftd(1)"]
        }
        _ => vec!["tracecraftctl(1)", "tracecraftd(1)"],
    }
}

/// What a help text says below the flags: blocks with a heading of their own become sections, others are notes.
fn notes(help: &str) -> Roff {
    let mut roff = Roff::new();
    let mut section = String::new();
    for block in help.trim().split("\n\n").filter(|block| !block.is_empty()) {
        let (heading, text) = heading(block);
        if heading == section {
            roff.control("PP", []);
        } else {
            roff.control("SH", [heading.as_str()]);
        }
        section = heading;
        let mut lines = text.lines().filter(|line| !line.trim().is_empty()).peekable();
        while let Some(line) = lines.next() {
            if !line.starts_with("  ") {
                roff.text([roman(line.trim())]);
                continue;
            }
            let mut kept = vec![&line[2..]];
            while let Some(next) = lines.next_if(|next| next.starts_with("  ")) {
                kept.push(&next[2..]);
            }
            verbatim(&mut roff, kept);
        }
    }
    roff
}

/// The section that a block belongs to, and its text.
fn heading(block: &str) -> (String, String) {
    let plain = ("NOTES".to_owned(), block.to_owned());
    if block.starts_with("Exits with ") {
        return ("EXIT STATUS".to_owned(), block.to_owned());
    }
    let Some((head, rest)) = block.split_once(':') else { return plain };
    let (head, aside) = head.split_once(" (").unwrap_or((head, ""));
    if head.contains('\n') || head.split(' ').count() > HEADING_WORDS_MAX {
        return plain;
    }
    let heading = match head {
        "Exit codes" => "EXIT STATUS".to_owned(),
        other => other.to_uppercase(),
    };
    let aside = aside.trim_end_matches(')');
    let begun = if aside.is_empty() { String::new() } else { format!("({aside})\n") };
    (heading, begun + rest)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/man")
}

/// Names of the committed pages of a program.
fn committed(program: &str) -> Vec<String> {
    let files = fs::read_dir(folder()).unwrap();
    let mut names: Vec<String> = files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.split(['.', '-']).next() == Some(program))
        .collect();
    names.sort();
    names
}

fn blessing() -> bool {
    std::env::var_os("TRACECRAFT_BLESS").is_some()
}
