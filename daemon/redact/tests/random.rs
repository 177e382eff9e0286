//! Random documents with planted secrets, against what must hold for every one of them.

use serde_json::{Map, Value, json};

use super::shapes::examples;
use super::*;

struct Maker {
    random: fastrand::Rng,
    planted: Vec<String>,
}

impl Maker {
    fn words(&mut self) -> String {
        let words = [
            "the",
            "task-list",
            "\n",
            "\"",
            "\\",
            "C:\\new\\table",
            "é",
            "😀",
            "http://a.b/c",
            "sk-",
            "{\"a\":1}",
            "Bearer",
            "\t",
            "/",
            "\u{7f}",
            "\u{1b}[0m",
            "::",
            "=",
            "'",
            "<b>",
            "[x]",
        ];
        let count = self.random.usize(0..12);
        let words: Vec<&str> =
            (0..count).map(|_| words[self.random.usize(..words.len())]).collect();
        words.join(" ")
    }

    fn string(&mut self, secrets: bool) -> String {
        let mut text = self.words();
        if secrets && self.random.u8(0..4) == 0 {
            let mut all = examples(&mut self.random);
            let (_, secret) = all.swap_remove(self.random.usize(..all.len()));
            text = format!("{text} {secret} {}", self.words());
            // The end of a token is what a short match would leave behind.
            let tail = secret.trim_end_matches("-----");
            let tail = tail.strip_suffix("PRIVATE KEY").map_or(tail, |_| &secret[40..60]);
            self.planted.push(tail[tail.len() - 12..].to_owned());
        }
        if self.random.u8(0..5) == 0 {
            return self.json(0, secrets, text).to_string();
        }
        text
    }

    fn json(&mut self, depth: usize, secrets: bool, leaf: String) -> Value {
        match self.random.u8(0..8) {
            0 if depth < 4 => {
                let count = self.random.usize(0..4);
                let mut items: Vec<Value> =
                    (0..count).map(|_| self.value(depth + 1, secrets)).collect();
                items.push(leaf.into());
                Value::Array(items)
            }
            1..=4 if depth < 4 => {
                let mut map = Map::new();
                for index in 0..self.random.usize(0..5) {
                    let keys = ["type", "data", "signature", "text", "value", "name", "content"];
                    let key = keys[self.random.usize(..keys.len())];
                    let key = if self.random.bool() { key.into() } else { format!("{key}{index}") };
                    let value = self.value(depth + 1, secrets);
                    map.insert(key, value);
                }
                map.insert("leaf".into(), leaf.into());
                Value::Object(map)
            }
            _ => leaf.into(),
        }
    }

    fn value(&mut self, depth: usize, secrets: bool) -> Value {
        match self.random.u8(0..6) {
            0 => json!(self.random.i64(..)),
            1 => json!([null, true, 1.5e-7, ""]),
            _ => {
                let leaf = self.string(secrets);
                self.json(depth, secrets, leaf)
            }
        }
    }

    fn record(&mut self, secrets: bool) -> String {
        let leaf = self.string(secrets);
        json!({ "uuid": letters(&mut self.random, HEX, 32), "m": self.json(0, secrets, leaf) })
            .to_string()
    }
}

/// The document with every string replaced by nothing: what redaction must not change.
fn skeleton(value: &Value) -> Value {
    match value {
        Value::String(_) => Value::String(String::new()),
        Value::Array(items) => items.iter().map(skeleton).collect(),
        Value::Object(map) => {
            Value::Object(map.iter().map(|(key, value)| (key.clone(), skeleton(value))).collect())
        }
        other => other.clone(),
    }
}

#[test]
fn t62_random_documents_keep_everything_but_their_secrets() {
    let mut maker = Maker { random: fastrand::Rng::with_seed(620), planted: Vec::new() };
    let python = python();
    let mut planted = 0;
    for round in 0..3000 {
        maker.planted.clear();
        let secrets = round % 3 != 0;
        let record = maker.record(secrets);
        let output = redact_text(&record);
        let before: Value = serde_json::from_str(&record).unwrap();
        let after: Value = serde_json::from_str(&output).unwrap();
        assert_eq!(skeleton(&before), skeleton(&after));
        if maker.planted.is_empty() {
            assert_eq!(record, output);
        }
        for tail in &maker.planted {
            assert!(!output.contains(tail.as_str()), "{tail} in {output}");
        }
        assert!(python.iter().all(|rule| !rule.is_match(output.as_bytes())), "{output}");
        planted += maker.planted.len();
    }
    assert!(planted > 1000, "{planted}");
}

#[test]
fn the_result_does_not_depend_on_how_records_are_grouped() {
    let mut maker = Maker { random: fastrand::Rng::with_seed(621), planted: Vec::new() };
    for _ in 0..60 {
        let mut chunk = String::new();
        for _ in 0..maker.random.usize(1..40) {
            let record = maker.record(true);
            let torn = record.floor_char_boundary(maker.random.usize(0..record.len()));
            chunk += match maker.random.u8(0..6) {
                0 => &record[..torn],
                1 => "",
                2 => "Bearer ",
                _ => &record,
            };
            chunk += "\n";
        }
        if maker.random.bool() {
            chunk += &maker.record(true);
        }
        let (whole, counts) = redact(chunk.as_bytes());
        let (mut pieces, mut sum) = (Vec::new(), Counts::new());
        let mut rest = chunk.as_bytes();
        while !rest.is_empty() {
            let mut take = 0;
            for _ in 0..maker.random.usize(1..4) {
                take =
                    memchr(b'\n', &rest[take..]).map_or(rest.len(), |newline| take + newline + 1);
            }
            Redactor::standard().redact(&[], &rest[..take], &mut pieces, &mut sum);
            rest = &rest[take..];
        }
        assert_eq!(text(&whole), text(&pieces));
        assert_eq!(counts, sum);
    }
}

#[test]
fn bytes_at_random_change_nothing_but_secrets_and_never_the_lines() {
    let mut random = fastrand::Rng::with_seed(622);
    let (key, alphabet) =
        (format!("npm_{}", token(&mut random, ALPHANUMERIC, 36)), b"\"\\{}[]:,u0n \n\xFFk");
    for _ in 0..5000 {
        let mut noise = |count| -> Vec<u8> {
            (0..count).map(|_| alphabet[random.usize(..alphabet.len())]).collect()
        };
        let (before, after) = (noise(60), noise(60));
        let input = [&before[..], b" ", key.as_bytes(), b" ", &after].concat();
        let expected = [&before[..], b" [REDACTED:npm_token] ", &after].concat();
        let (output, counts) = redact(&input);
        assert_eq!(output.escape_ascii().to_string(), expected.escape_ascii().to_string());
        assert_eq!(counts.values().sum::<u64>(), 1);
    }
}
