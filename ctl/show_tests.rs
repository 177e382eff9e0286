//! Conversations as people read them: fixed ones line by line, and real ones by what must hold for each.
use super::*;
use jiff::tz::TimeZone;
use std::path::{Path, PathBuf};

fn terminal(columns: Option<usize>) -> Terminal {
    Terminal {
        columns,
        colour: false,
        progress: false,
        now: "2026-07-02T00:00:00Z".parse().unwrap(),
        zone: TimeZone::UTC,
        home: Some("/home/me".into()),
    }
}
fn page(records: &[u8], columns: Option<usize>) -> String {
    let terminal = terminal(columns);
    let mut out = Vec::new();
    let mut page = Page::new(&mut out, &terminal);
    let mut reader = Reader::default();
    let mut splitter = Splitter::new(RECORD_BYTES_MAX);
    splitter.push(records, |line| page.record(&mut reader, line)).unwrap();
    splitter.finish(|line| page.record(&mut reader, line)).unwrap();
    page.end(true).unwrap();
    String::from_utf8(out).unwrap()
}
#[test]
fn eyes() {
    for f in std::env::var("EYES").unwrap().split(':') {
        println!("=========== {f}\n{}", page(&std::fs::read(f).unwrap(), Some(100)));
    }
}
