//! That the rules can be broken: small inputs for each.

use super::*;

/// The rules that a source breaks, with the faults T1 and T17 known.
fn broken(file: &str, source: &str) -> Vec<(usize, String)> {
    let faults = ["T1".to_owned(), "T17".to_owned()];
    let found = check(file, &format!("//! It.\n{source}"), &faults);
    found.into_iter().map(|violation| (violation.line, violation.rule)).collect()
}

fn assert_broken(file: &str, source: &str, line: usize, rule: &str) {
    let found = broken(file, source);
    let [(at, told)] = &found[..] else { panic!("{file}: {source:?} breaks {found:?}") };
    assert!(*at == line && told.contains(rule), "{file}: {source:?} breaks line {at}: {told}");
}

#[test]
fn imports_that_go_upwards_are_found_however_they_are_written() {
    let rule = "`store` names `part::";
    for (source, line) in [
        ("use crate::part::Manifest;", 2),
        ("\nuse crate::part::{self};", 3),
        ("use crate::{\n    durable::Disk,\n    part::{Manifest as M},\n};", 4),
        ("use super::super::part::*;", 2),
        ("fn f() -> crate::part::Manifest {}", 2),
        ("fn f<T: Into<crate::part::Manifest>>() {}", 2),
        ("/* a\n */ fn f() { let _ = ('\"', '\\'', \"//\"); crate::part::digest() }", 3),
        ("mod tests {\n    use super::super::super::part::X;\n}", 3),
        ("pub(in crate::part::x) fn f() {}", 2),
    ] {
        assert_broken("daemon/store/fs.rs", source, line, rule);
    }
    assert_broken("daemon/store/mod.rs", "use super::part::X;", 2, rule);
    assert_broken("daemon/store/fs.rs", "use crate::part;", 2, "`store` names `part`");
    assert_broken("daemon/source/mod.rs", "use crate::{redact};", 2, "it may name nothing");
    assert_broken("daemon/control/body.rs", "use crate::mirror::chain;", 2, "mirror::handle");
    assert_broken("daemon/state.rs", "use crate::run;", 2, "`state` names `run`");
    assert_broken("daemon/knew.rs", "", 1, "`knew` has no row");
}

#[test]
fn imports_that_go_downwards_and_what_is_no_import_are_not() {
    for (file, source) in [
        ("daemon/store/fs.rs", "use crate::durable::Disk;\nuse super::Body;\nuse std::part::X;"),
        ("daemon/store/fs.rs", "use crate::store::{Body, part::X};"),
        (
            "daemon/store/fs.rs",
            "mod tests {\n    use super::part;\n    use super::super::part::X;\n}",
        ),
        (
            "daemon/store/fs.rs",
            "// crate::part::X\n/// [`crate::part::X`]\n/* /* */ crate::part */",
        ),
        ("daemon/store/fs.rs", "const X: &str = \"crate::part\\\"::X\";"),
        ("daemon/store/fs.rs", "const X: &str = r#\"crate::part\"::X\"#;"),
        ("daemon/control/mod.rs", "use crate::mirror::handle::{Command, Mirror};"),
        ("daemon/lib.rs", "use crate::part::X;"),
        ("daemon/main.rs", "use tracecraft::run;"),
    ] {
        assert_eq!(broken(file, source), [], "{file}: {source}");
    }
}

#[test]
fn outside_of_the_library_little_of_it_is_named() {
    assert_broken(
        "ctl/main.rs",
        "use tracecraft::Config;",
        2,
        "it may name ConfigError, Flags, api, doctor, examine, paths, setup",
    );
    assert_broken("ctl/main.rs", "use tracecraft::{api::X, run};", 2, "`tracecraft::run`");
    assert_broken("tests/kill.rs", "use tracecraft::api::X;", 2, "it may name nothing");
    assert_eq!(broken("ctl/a/b.rs", "use tracecraft::{api, paths::socket};\nuse crate::x;"), []);
}

#[test]
fn what_has_one_place_is_found_elsewhere() {
    assert_broken("daemon/store/fs.rs", "fn f() { std::fs::rename(a, b) }", 2, "durable/os.rs");
    assert_broken("daemon/state.rs", "fn f() { rustix::fs::renameat(a) }", 2, "durable/os.rs");
    assert_broken("ctl/main.rs", "fn f() { fs::rename(a, b) }", 2, "durable/os.rs");
    assert_broken("daemon/store/retry.rs", "use rusoto_s3::S3;", 2, "store/s3/");
    assert_eq!(broken("daemon/durable/os.rs", "fn f() { std::fs::rename(a, b) }"), []);
    assert_eq!(broken("daemon/watch/tests.rs", "fn f() { std::fs::rename(a, b) }"), []);
    assert_eq!(broken("daemon/store/s3/list.rs", "use rusoto_s3::S3;"), []);
}

#[test]
fn the_text_of_a_file_is_looked_at() {
    let found = check("daemon/part.rs", "use std::fmt;\n", &[]);
    let told: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        ["daemon/part.rs:1: a file begins with `//!`: what it owns and what it refuses to know"]
    );
    for word in UNFINISHED {
        assert_broken("daemon/part.rs", &format!("// {word}: later"), 2, word);
        assert_broken("daemon/part.rs", &format!("\n/* {word}(me) */"), 3, word);
        assert_eq!(broken("daemon/part.rs", &format!("// \\u{word}S")), []);
    }
    assert_broken("daemon/part.rs", &"\n".repeat(LINES_MAX), LINES_MAX + 1, "at most 600");
    assert_eq!(broken("daemon/part.rs", &"\n".repeat(LINES_MAX - 1)), []);
}

#[test]
fn a_fault_that_no_list_has_is_found() {
    assert_broken("tests/kill.rs", "fn t2_a_kill() {}", 2, "T2 is not in the list");
    assert_broken("daemon/part.rs", "async fn t1_t18_t17_torn() {}", 2, "T18 is not in the list");
    assert_eq!(broken("tests/kill.rs", "fn t1_t17_a_t2() {}\nfn t() {}\nfn the_t2() {}"), []);
    assert_eq!(faults("# Faults\nT1\ta\nT17\tb T2\treason\n"), ["T1", "T17"]);
}

#[test]
fn a_dependency_without_a_reason_is_found() {
    let manifest = "[package]\nname = \"x\"\n[dependencies]\n# All good.\na = \"1\" # for a\nb = { version = \"1\" }\n\n\
                    [dev-dependencies]\nc = \"1\" # \n[lints.rust]\nd = \"warn\"\n";
    let told: Vec<String> =
        check_dependencies("Cargo.toml", manifest).iter().map(ToString::to_string).collect();
    let rule = "a dependency has its reason behind it";
    assert_eq!(told, [format!("Cargo.toml:6: `b`: {rule}"), format!("Cargo.toml:9: `c`: {rule}")]);
}

#[test]
fn a_name_on_the_page_that_no_source_has_is_found() {
    let mut symbols = Symbols::default();
    symbols.read("daemon/a/b.rs", "struct T { f: u8 }\nimpl T { fn go() {} }\nenum E { One(u8) }");
    symbols.read("daemon/c.rs", "const LONG_MAX: u8 = 1; // T::gone");
    let page =
        "`T::go` `T::f` `E::One` `b::go` `a::b` `LONG_MAX` `T`\n`T::gone`\n`SHORT_MAX` `go` `a: b`";
    let found = symbols::check("page", page, &symbols);
    let lines: Vec<usize> = found.iter().map(|violation| violation.line).collect();
    assert_eq!(lines, [2, 3], "{found:?}");
}
