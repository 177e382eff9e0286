//! Real records of real agents, read from `TRACECRAFT_SAMPLES`, and how fast they go through.

use std::path::{Path, PathBuf};

use super::*;

fn samples() -> Option<Vec<PathBuf>> {
    let Some(root) = std::env::var_os("TRACECRAFT_SAMPLES") else {
        println!("skipped: TRACECRAFT_SAMPLES is not set, no real record was looked at");
        return None;
    };
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::from(root)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => folders.push(entry.path()),
                kind if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files.sort();
    assert!(!files.is_empty());
    Some(files)
}

fn is_text(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind == "jsonl" || kind == "json" || kind == "md")
}

#[test]
fn t62_every_record_of_the_samples_parses_after_redaction_and_only_planted_secrets_are_gone() {
    let Some(files) = samples() else { return };
    let rules = python();
    let mut records = 0;
    for path in files.iter().filter(|path| is_text(path)) {
        let input = std::fs::read(path).unwrap();
        let (output, counts) = redact(&input);
        if !counts.is_empty() {
            let shown: Vec<&str> = counts.keys().map(String::as_str).collect();
            println!("{}: {counts:?}", path.display());
            let planted = ["aws_access_key", "anthropic_key"];
            assert!(shown.iter().all(|name| planted.contains(name)), "{}", path.display());
        }
        assert!(redact(&output).1.is_empty());
        for rule in &rules {
            assert!(!rule.is_match(&output), "{}", path.display());
        }
        let lines =
            |bytes: &[u8]| bytes.split(|&b| b == b'\n').map(<[u8]>::to_vec).collect::<Vec<_>>();
        let (before, after) = (lines(&input), lines(&output));
        assert_eq!(before.len(), after.len());
        for (before, after) in before.iter().zip(&after) {
            let parses = |line: &[u8]| serde_json::from_slice::<serde_json::Value>(line).is_ok();
            assert_eq!(parses(before), parses(after), "{}", path.display());
            let touched = after.windows(10).any(|window| window == b"[REDACTED:");
            assert!(before == after || touched, "{}", path.display());
            records += 1;
        }
    }
    println!("{records} records");
}

/// Not a test of speed (machines differ) but the way to measure it:
/// `cargo test --release --lib redact -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, not a guarantee"]
fn throughput() {
    let Some(files) = samples() else { return };
    let mut clean = Vec::new();
    let mut dirty = Vec::new();
    for path in files.iter().filter(|path| path.extension().is_some_and(|kind| kind == "jsonl")) {
        let input = std::fs::read(path).unwrap();
        if redact(&input).1.is_empty() { &mut clean } else { &mut dirty }.extend_from_slice(&input);
    }
    let mut random = fastrand::Rng::with_seed(0);
    let image = format!(
        "{{\"type\":\"image\",\"source\":{{\"type\":\"base64\",\"media_type\":\"image/png\",\"data\":\"{}\"}}}}\n",
        letters(&mut random, BASE64, 100 << 20)
    );
    for (what, input) in [("clean", clean), ("planted", dirty), ("one line", image.into_bytes())] {
        let rounds = ((256 << 20) / input.len()).max(1);
        let started = std::time::Instant::now();
        let mut output = Vec::with_capacity(input.len() * 2);
        for _ in 0..rounds {
            output.clear();
            Redactor::standard().redact(&[], &input, &mut output, &mut Counts::new());
        }
        let megabytes = (input.len() * rounds) as f64 / 1e6;
        println!(
            "{what}: {:.0} MB/s over {megabytes:.0} MB",
            megabytes / started.elapsed().as_secs_f64()
        );
    }
}
