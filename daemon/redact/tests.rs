//! Guarantees of redaction, by subject; here is what the subjects share. Secrets are made from
//! seeded random letters, never written down: a scanner of this repository has nothing to find.

mod hostile;
mod places;
mod random;
mod samples;
mod shapes;

use super::*;

const ALPHANUMERIC: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const URL_SAFE: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const BASE64: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const UPPER: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
const HEX: &str = "0123456789abcdef";

/// The Python tool's rules, to hold ours against.
const PYTHON: &[&str] = &[
    r"AKIA[0-9A-Z]{16}",
    r"ASIA[0-9A-Z]{16}",
    r"sk-ant-[A-Za-z0-9_-]{20,}",
    r"sk-(?:proj-|svcacct-)?[A-Za-z0-9]{20,}",
    r"hf_[A-Za-z0-9]{30,}",
    r"gh[pousr]_[A-Za-z0-9]{30,}",
    r"xox[abprs]-[A-Za-z0-9-]{10,}",
    r"Bearer\s+[A-Za-z0-9_.\-]{20,}",
];

fn python() -> Vec<regex::bytes::Regex> {
    let compile =
        |pattern: &&str| regex::bytes::Regex::new(&format!("(?-u){pattern}")).expect("a constant");
    PYTHON.iter().map(compile).collect()
}

fn letters(random: &mut fastrand::Rng, alphabet: &str, count: usize) -> String {
    let alphabet = alphabet.as_bytes();
    (0..count).map(|_| alphabet[random.usize(..alphabet.len())] as char).collect()
}

/// Letters as a generator of tokens gives them: never all of one kind.
fn token(random: &mut fastrand::Rng, alphabet: &str, count: usize) -> String {
    loop {
        let text = letters(random, alphabet, count);
        let small = alphabet == UPPER || text.bytes().any(|b| b.is_ascii_lowercase());
        let large = alphabet == HEX || text.bytes().any(|b| b.is_ascii_uppercase());
        if small && large && text.bytes().any(|b| b.is_ascii_digit()) {
            return text;
        }
    }
}

fn pem(random: &mut fastrand::Rng, kind: &str, lines: usize) -> String {
    let body: Vec<String> = (0..lines).map(|_| letters(random, BASE64, 64)).collect();
    let last = letters(random, BASE64, 10);
    format!(
        "-----BEGIN {kind}PRIVATE KEY-----\n{}\n{last}==\n-----END {kind}PRIVATE KEY-----",
        body.join("\n")
    )
}

fn redact(input: &[u8]) -> (Vec<u8>, Counts) {
    let (mut output, mut counts) = (Vec::new(), Counts::new());
    Redactor::standard().redact(&[], input, &mut output, &mut counts);
    (output, counts)
}

/// Redacts, and checks what holds for any input: redacting again changes and counts nothing, and
/// the number of lines stays.
fn redact_text(input: &str) -> String {
    let (output, counts) = redact(input.as_bytes());
    let (again, none) = redact(&output);
    assert_eq!(text(&again), text(&output), "redacting twice is redacting once");
    assert!(none.is_empty(), "{none:?} in {}", text(&output));
    assert_eq!(counts.is_empty(), output == input.as_bytes());
    let lines = |bytes: &[u8]| bytes.iter().filter(|&&byte| byte == b'\n').count();
    assert_eq!(lines(&output), lines(input.as_bytes()));
    text(&output).into_owned()
}

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// `text` as JSON writes it inside quotes, `levels` times.
fn escaped(text: &str, levels: usize) -> String {
    (0..levels).fold(text.to_owned(), |text, _| {
        let quoted = serde_json::to_string(&text).expect("a string is JSON");
        quoted[1..quoted.len() - 1].to_owned()
    })
}

#[test]
fn switched_off_every_byte_passes_and_the_manifest_can_say_so() {
    let input = format!("sk-ant-{}\n", "a1".repeat(20));
    let (mut output, mut counts) = (Vec::new(), Counts::new());
    Redactor::off().redact(b"x", input.as_bytes(), &mut output, &mut counts);
    assert_eq!(text(&output), input);
    assert!(counts.is_empty());
    assert_eq!(Redactor::off().rules_version(), "off");
    assert_eq!(Redactor::standard().rules_version(), "1");
}

#[test]
fn the_names_of_the_python_tool_are_kept_and_every_name_comes_once() {
    let names: Vec<&str> = pattern_names().collect();
    for name in [
        "aws_access_key",
        "aws_session_token",
        "anthropic_key",
        "openai_key",
        "hf_token",
        "github_pat",
        "slack_token",
        "bearer_token",
    ] {
        assert!(names.contains(&name), "{name}");
    }
    let mut unique = names.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), names.len());
}
