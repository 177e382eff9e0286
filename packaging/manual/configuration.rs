//! The man page of the configuration file: what the README says of it, table for table, so that there is one place to keep true.
//! `TRACECRAFT_BLESS=1` makes it anew. Knows as much of Markdown as those tables need.

use std::path::Path;

use clap_mangen::roff::{Inline, Roff, bold, roman};

use crate::manual::{page, same, see_also, title, verbatim};

/// Sections of the README, and the line with which the part of each ends that is about the file.
const PARTS: [(&str, &str); 2] =
    [("## Configuration", "SIGHUP "), ("## Buckets", "The recorder needs ")];

#[test]
fn the_page_of_the_configuration_tells_what_the_readme_tells() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let mut head = title("tracecraft-config", "5");
    head.control("SH", ["NAME"]);
    head.text([roman("tracecraft-config - configuration file of tracecraftd")]);
    let mut body = Roff::new();
    for (begin, end) in PARTS {
        let (_, after) = readme.split_once(&format!("{begin}\n")).expect(begin);
        let (part, _) = after.split_once(&format!("\n{end}")).expect(end);
        let heading = if begin == PARTS[0].0 { "DESCRIPTION" } else { "BUCKETS" };
        body.control("SH", [heading]);
        let mut first = true;
        // Every second piece between two fences is code, which keeps its empty lines.
        for (at, piece) in part.trim().split("```").enumerate() {
            if at % 2 == 1 {
                body.control("PP", []);
                verbatim(&mut body, piece.lines().skip(1));
                continue;
            }
            let blocks = piece.split("\n\n").map(str::trim);
            for block in blocks.filter(|block| !block.is_empty()) {
                render(&mut body, block, first);
                first = false;
            }
        }
    }
    let others = see_also(&["tracecraftd(1)", "tracecraftctl(1)"]);
    let text = page(&[head, body, others]);
    for key in ["store", "interval", "outbox_max", "endpoint", "TRACECRAFT_STORE"] {
        let key = key.replace('-', "\\-");
        assert!(text.contains(&format!("\\fB{key}\\fR")), "{key} is in no table that was found");
    }
    same("tracecraft-config.5", &text);
}

/// One paragraph or table; a section's first one needs no space before it.
fn render(roff: &mut Roff, block: &str, first: bool) {
    if block.starts_with('|') {
        table(roff, block);
    } else {
        if !first {
            roff.control("PP", []);
        }
        for line in block.lines() {
            roff.text(inline(line));
        }
    }
}

/// The first cell of a row is what is explained. A cell in between is named after its column.
fn table(roff: &mut Roff, block: &str) {
    let mut rows = block.lines().map(|row| row.trim_matches('|').split('|').map(str::trim));
    let columns: Vec<&str> = rows.next().into_iter().flatten().collect();
    // The table of buckets is in a section of its own already.
    if columns[0] == "variable" {
        roff.control("SH", ["ENVIRONMENT"]);
    } else if columns.contains(&"default") {
        roff.control("SH", ["KEYS"]);
    }
    // The line below the header.
    for row in rows.skip(1) {
        let cells: Vec<&str> = row.collect();
        roff.control("TP", []);
        roff.text(inline(cells[0]));
        let last = cells.len() - 1;
        for (column, cell) in columns.iter().zip(&cells).skip(1) {
            if *column == columns[last] {
                roff.text(inline(cell));
            } else if !cell.is_empty() {
                roff.text(inline(&format!("({column}: {cell})")));
            }
        }
    }
}

/// Code is bold; a link is its text, or the section's name where that is on this page.
fn inline(text: &str) -> Vec<Inline> {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("](") {
        let (before, link) = before.rsplit_once('[').expect("a link has a beginning");
        plain += before;
        let (to, after) = after.split_once(')').expect("a link has an end");
        // Its section is on this page, too, under a heading in capitals.
        let here =
            PARTS.iter().any(|(section, _)| to == section.to_lowercase().replace("## ", "#"));
        plain += &if here { format!("see {}", link.to_uppercase()) } else { link.to_owned() };
        rest = after;
    }
    plain += rest;
    let pieces = plain.split('`').enumerate();
    pieces.map(|(at, piece)| if at % 2 == 1 { bold(piece) } else { roman(piece) }).collect()
}
