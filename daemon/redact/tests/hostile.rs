//! Input made to be slow or to be torn apart: everything stays linear, valid and stable.

use std::time::{Duration, Instant};

use super::*;

/// Each is repeated to any length: beginnings of secrets that never end, and endings.
const PIECES: &[&str] = &[
    "sk-",
    "task-",
    "sk-ant-",
    "sk-proj-a1B_",
    "eyJ",
    "eyJabcdefgh.",
    " eyJabcdefgh.eyJabcdefgh.",
    "-----BEGIN ",
    "-----BEGIN A A A A PRIVATE ",
    "-----BEGIN PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----MIIEvQIBADANBgkqhkiG9w0BAQEFAASC",
    "-----END PRIVATE KEY-----",
    "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC a ",
    "://a:",
    "://a:b",
    "://a:b@",
    ":a@",
    "Bearer ",
    "bearer\t\t\t",
    "AKIA",
    "AKIA0123456789ABCDEF",
    "AKIA0123456789ABCDEFsk-a1B2c3D4e5F6g7H8i9J0_",
    "AIza",
    "AIza0123456789012345678901234567890abcd",
    "ghp_",
    "xoxb-",
    "xoxe.xox",
    "hf_",
    "aws_secret_access_key ",
    "aws_secret_access_key=\\\"",
    "aws_secret_access_key = aBcD/aBcD/aBcD/aBcD/aBcD/aBcD/aBcD/aBcDe",
    "AccountKey=",
    "Authorization: Basic ",
    "data:image/png;base64,",
    "data:image/png;base64,AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA ",
    "\\",
    "\\\\",
    "\\u0073k-",
    "\\u0073",
    "\\n\\\\n",
    "\\\\\\\\u0041KIA",
    "[",
    "]",
    "{\\\"a\\\":",
    "\\\"",
    "\0",
    "hooks.slack.com/services/",
    "1//0",
    "SG.",
    "gh_eyJ",
    "ghs_a_eyJ",
    "a_sk-a1B2c3D4e5F6g7H8i9J0",
];

/// Ways in which a piece may fill a record. `@` is the run.
const FRAMES: &[&str] = &[
    "@",
    "{\"a\":\"@\"}",
    "{\"a\":\"@",
    "{\"a\":\"AKIA0123456789ABCDEF\",\"b\":\"@\"}",
    "AKIA0123456789ABCDEF @",
    "\\u0041 @ -----END PRIVATE KEY----- a@b",
    "-----BEGIN PRIVATE KEY-----\\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\\n@",
];

/// Documents whose structure is the attack. `@` is the run.
const STRUCTURES: &[(&str, &str)] = &[
    ("{\"k\":\"AKIA0123456789ABCDEF\",\"a\":@", "["),
    ("{\"k\":\"AKIA0123456789ABCDEF\",\"a\":@", "{\"type\":\"thinking\",\"a\":"),
    ("{\"k\":\"AKIA0123456789ABCDEF\",\"a\":[@", "\"\","),
    ("{\"k\":\"AKIA0123456789ABCDEF\",@", "\"data\":\"AAAAAAAAAAAAAAAAAAAA\","),
    (
        "{\"type\":\"thinking\",\"k\":\"AKIA0123456789ABCDEF\",@",
        "\"signature\":\"AAAAAAAAAAAAAAAAAAAA\",",
    ),
    ("{\"k\":\"AKIA0123456789ABCDEF\",@", "\"secret_access_key\":\"AAAAAAAAAAAAAAAAAAAA\","),
    ("{\"k\":\"-----BEGIN PRIVATE KEY-----\",\"a\":[@", "\"MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\","),
    ("@", "{\"a\":\"AKIA0123456789ABCDEF\"}"),
    ("@", "{\"a\":\"AKIA0123456789ABCDEF\"}\n"),
    ("@", "\"AKIA0123456789ABCDEF\""),
];

fn records(size: usize) -> Vec<String> {
    let fill = |frame: &str, piece: &str| frame.replace('@', &piece.repeat(size / piece.len()));
    let framed = FRAMES.iter().flat_map(|frame| PIECES.iter().map(move |piece| fill(frame, piece)));
    framed.chain(STRUCTURES.iter().map(|(frame, piece)| fill(frame, piece))).collect()
}

fn duration(input: &[u8]) -> Duration {
    let started = Instant::now();
    let (output, _) = redact(input);
    // The shortest secret is a password of one letter in the shortest URL.
    assert!(output.len() <= input.len() * 6);
    started.elapsed()
}

#[test]
fn t63_no_input_takes_more_than_linear_time() {
    let (small, large) = (16 << 10, 256 << 10);
    for (short, long) in records(small).iter().zip(&records(large)) {
        // Sixteen times the input may take sixteen times as long; a square would take 256 times.
        // Only a ratio is judged, up to ten times over, because the machine has other work.
        let linear = (0..10).any(|_| {
            let before = duration(short.as_bytes()) + duration(short.as_bytes());
            duration(long.as_bytes()) < before * 40 + Duration::from_millis(5)
        });
        assert!(linear, "{}…", &short[..short.len().min(120)].escape_default());
    }
}

#[test]
fn hostile_records_come_out_stable_and_parse_if_they_did_before() {
    let python = python();
    for input in records(3000) {
        let output = redact_text(&input);
        let parses = |text: &str| serde_json::from_str::<serde_json::Value>(text).is_ok();
        assert_eq!(parses(&input), parses(&output), "{}", &input[..100]);
        for rule in &python {
            assert!(!rule.is_match(output.as_bytes()), "{rule} in {}", &output[..100]);
        }
    }
}

#[test]
fn t62_a_line_of_a_hundred_megabytes_goes_through() {
    let mut random = fastrand::Rng::with_seed(100);
    let block = letters(&mut random, "abcdefghijklmnop ./\"\n", 1 << 20);
    let block = escaped(&block, 1);
    let key = format!("glpat-{}", token(&mut random, URL_SAFE, 20));
    let blocks = (100 << 20) / block.len() + 1;
    let mut line = String::from("{\"text\":\"");
    for index in 0..blocks {
        line += &block;
        if index == blocks / 2 {
            line += &format!(" {key} ");
        }
    }
    line += "\"}\n";
    let (output, counts) = redact(line.as_bytes());
    assert_eq!(counts, Counts::from([("gitlab_token".to_owned(), 1)]));
    assert_eq!(output.len(), line.len() - key.len() + "[REDACTED:gitlab_token]".len());
    assert!(memchr::memmem::find(&output, key.as_bytes()).is_none());
}

#[test]
#[ignore = "a measurement, not a guarantee"]
fn throughput_of_hostile_records() {
    for input in records(8 << 20) {
        let took = duration(input.as_bytes());
        let speed = input.len() as f64 / 1e6 / took.as_secs_f64();
        println!("{speed:8.1} MB/s {}", &input[..input.len().min(90)].escape_default());
    }
}
