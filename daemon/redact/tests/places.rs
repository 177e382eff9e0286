//! Where a secret may stand, and where a value must not be touched: opaque fields, torn records,
//! cuts, escapes and files that were never JSON.

use super::shapes::examples;
use super::*;

/// Base64 with secrets inside that no reader of it would see.
fn noise(random: &mut fastrand::Rng, url_safe: bool) -> String {
    let alphabet = if url_safe { URL_SAFE } else { BASE64 };
    let planted = [
        format!("AKIA{}", letters(random, UPPER, 16)),
        format!("hf{}", letters(random, ALPHANUMERIC, 18)),
        if url_safe {
            format!("sk-ant-api03-{}", letters(random, ALPHANUMERIC, 31))
        } else {
            String::new()
        },
    ];
    let mut text = String::new();
    for secret in planted {
        text += &letters(random, alphabet, 40);
        text += &secret;
    }
    let rest = text.len() % 4;
    text + &letters(random, alphabet, 44 - rest)
}

const OPAQUE: &[&str] = &[
    r#"{"type":"image","source":{"type":"base64","media_type":"image/png","data":"@"}}"#,
    r#"{"type":"image","source":{"data":"@","type":"base64","media_type":"image/png"}}"#,
    r#"{"type":"document","source":{"type":"base64","media_type":"application/pdf","data":"@"}}"#,
    r#"{"toolUseResult":{"type":"image","file":{"base64":"@","type":"image/png","size":7}}}"#,
    r#"{"type":"image","data":"@","mimeType":"image/jpeg"}"#,
    r#"{"parts":[{"inlineData":{"mimeType":"image/png","data":"@"}}]}"#,
    r#"{"type":"input_audio","input_audio":{"data":"@","format":"wav"}}"#,
    r#"{"type":"thinking","thinking":"hm","signature":"@"}"#,
    r#"{"signature" : "@" , "thinking":"hm","type" : "thinking"}"#,
    r#"{"type":"redacted_thinking","data":"@"}"#,
    r#"{"type":"signature_delta","signature":"@"}"#,
    r#"{"type":"thinking","thinking":"","thinkingSignature":"@"}"#,
    r#"{"text":"x","thoughtSignature":"@"}"#,
    r#"{"functionCall":{"name":"f","args":{}},"thoughtSignature":"@"}"#,
    r#"{"extra_content":{"google":{"thought_signature":"@"}}}"#,
    r#"{"type":"toolCall","id":"1","thoughtSignature":"@"}"#,
    r#"{"payload":{"type":"reasoning","summary":[],"content":null,"encrypted_content":"@"}}"#,
    r#"{"type":"reasoning.encrypted","data":"@","format":"x"}"#,
    r#"{"type":"compaction","encrypted_content":"@"}"#,
    r#"{"type":"input_image","image_url":"data:image/png;base64,@"}"#,
    r#"{"type":"image_url","image_url":{"url":"data:image/png;base64,@"}}"#,
    r#"{"text":"<img src=\"data:image/png;base64,@\"> and ![a](data:image/jpeg;base64,@)"}"#,
];

#[test]
fn t58_opaque_values_stay_byte_identical_whatever_is_inside_them() {
    let mut random = fastrand::Rng::with_seed(58);
    for shape in OPAQUE {
        let url_safe = !shape.contains("data:image");
        for _ in 0..20 {
            let record = shape.replace('@', &noise(&mut random, url_safe));
            assert_eq!(redact_text(&record), record);
            let inside = format!(r#"{{"result":"{}"}}"#, escaped(&record, 1));
            assert_eq!(redact_text(&inside), inside, "a record within a record");
            let key = format!("ghp_{}", letters(&mut random, ALPHANUMERIC, 36));
            let both = format!(r#"{{"a":{record},"b":"{key}"}}"#);
            let expected = format!(r#"{{"a":{record},"b":"[REDACTED:github_pat]"}}"#);
            assert_eq!(redact_text(&both), expected, "beside a secret");
        }
    }
}

#[test]
fn t58_megabytes_of_random_letters_in_opaque_fields_stay_byte_identical() {
    let mut random = fastrand::Rng::with_seed(580);
    for shape in &OPAQUE[..19] {
        let record = shape.replace('@', &letters(&mut random, URL_SAFE, 4 << 20));
        let (output, counts) = redact(record.as_bytes());
        assert!(output == record.as_bytes() && counts.is_empty(), "{counts:?} in {shape}");
    }
}

#[test]
fn a_secret_in_a_field_that_only_has_an_opaque_name_is_replaced() {
    let mut random = fastrand::Rng::with_seed(5);
    for (name, secret) in examples(&mut random) {
        let secret = escaped(&secret, 1);
        for shape in [
            r#"{"signature":"@"}"#,
            r#"{"data":"@"}"#,
            r#"{"type":"commit","signature":"@"}"#,
            r#"{"encrypted_content":"@"}"#,
            r#"{"thoughtSignature":"@"}"#,
            r#"{"thinking":{"type":"thinking"},"signature":"@"}"#,
            r#"{"type":"base64","data":"@"}"#,
            r#"{"mimeType":"image/png","data":"a @ b"}"#,
            r#"{"mimeType":"image/png","data":"@"}"#,
            r#"{"type":"thinking","thinking":"@","signature":"AAAA"}"#,
            r#"{"type":"thinking","signature":"key @"}"#,
            r#"{"type":"thinking","signature":"@"}"#,
            r#"{"text":"data:image/png;base64,AAAA @"}"#,
            r#"{"@":1}"#,
        ] {
            let expected = shape.replace('@', &format!("[REDACTED:{name}]"));
            assert_eq!(redact_text(&shape.replace('@', &secret)), expected);
        }
    }
}

#[test]
fn t60_a_secret_is_found_however_it_is_escaped() {
    let mut random = fastrand::Rng::with_seed(60);
    let spell = |text: &str, random: &mut fastrand::Rng, share: u32| -> String {
        let spelled = |c: char| format!("\\u{:04x}", c as u32);
        text.chars()
            .map(|c| match c {
                '\n' => "\\n".to_owned(),
                _ if random.u32(0..100) < share => spelled(c),
                c => c.to_string(),
            })
            .collect()
    };
    for (name, secret) in examples(&mut random) {
        for share in [2, 30, 100] {
            for levels in 0..=2 {
                let inside = escaped(&spell(&secret, &mut random, share), levels);
                let before = escaped("a\n\"", levels + 1);
                let after = escaped("\n\"", levels + 1);
                let input = format!(r#"{{"x":"{before}{inside}{after}"}}"#);
                let expected = format!(r#"{{"x":"{before}[REDACTED:{name}]{after}"}}"#);
                assert_eq!(redact_text(&input), expected, "{input}");
            }
        }
    }
}

#[test]
fn t60_private_keys_are_found_in_patches_listings_source_and_cut_off() {
    let mut random = fastrand::Rng::with_seed(600);
    let key = pem(&mut random, "RSA ", 12);
    let gone = |input: String| {
        let left = redact_text(&input);
        for line in key.lines().filter(|line| !line.starts_with('-') && line.len() > 20) {
            assert!(!left.contains(&line[..20]), "{left}");
        }
        let parsed: Result<serde_json::Value, _> = serde_json::from_str(&left);
        assert!(parsed.is_ok(), "{left}");
        left
    };
    let lines: Vec<&str> = key.lines().collect();
    let json = |text: &str| format!(r#"{{"t":"{}","u":"after"}}"#, escaped(text, 1));
    let numbered: Vec<String> =
        lines.iter().enumerate().map(|(n, line)| format!("{n:6}\u{2192}{line}")).collect();
    gone(json(&numbered.join("\n")));
    let quoted: Vec<String> = lines.iter().map(|line| format!("    \"{line}\\n\" +")).collect();
    gone(json(&quoted.join("\n")));
    gone(json(&lines[..9].join("\n")));
    let added: Vec<String> = lines.iter().map(|line| format!("+{line}")).collect();
    gone(json(&added.join("\n")));
    let patch = serde_json::json!({ "structuredPatch": [{ "lines": added, "oldStart": 1 }] });
    let left = gone(patch.to_string());
    assert!(left.contains("oldStart"));
    let encrypted = key.replacen(
        '\n',
        "\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,A0B1C2D3E4F5A6B7\n\n",
        1,
    );
    assert_eq!(gone(json(&encrypted)), r#"{"t":"[REDACTED:private_key]","u":"after"}"#);
}

#[test]
fn t60_a_secret_cut_by_two_calls_loses_its_tail_at_any_cut() {
    let mut random = fastrand::Rng::with_seed(601);
    for (name, secret) in examples(&mut random) {
        let secret = if secret.len() > 400 { continue } else { escaped(&secret, 1) };
        let spelled = secret.replacen('A', "\\u0041", 1);
        for secret in [secret, spelled] {
            let record = format!("{{\"text\":\"key: {secret} end\",\"n\":1}}");
            let start = record.find(&secret).unwrap();
            let end = start + secret.len();
            for cut in 1..record.len() {
                let (context, rest) = record.as_bytes().split_at(cut);
                let (mut output, mut counts) = (Vec::new(), Counts::new());
                let input = [rest, b"\n{\"next\":true}\n"].concat();
                Redactor::standard().redact(context, &input, &mut output, &mut counts);
                let whole = [context, &output].concat();
                let left = text(&whole);
                let first = left.lines().next().unwrap();
                if (end - 5..end).contains(&cut) && secret.ends_with("\\u0041") {
                    // All but the end of the last character's escape has left already.
                    assert_eq!(first, record);
                } else if cut < end {
                    assert!(
                        first.ends_with(&format!("[REDACTED:{name}] end\",\"n\":1}}")),
                        "{first}"
                    );
                    assert_eq!(counts.values().sum::<u64>(), 1);
                } else {
                    assert_eq!(first, record);
                    assert!(counts.is_empty());
                }
                assert!(serde_json::from_str::<serde_json::Value>(first).is_ok(), "{first}");
                assert!(left.ends_with("\n{\"next\":true}\n"));
                // The caller may keep no more than the last of what it gave: here, from just
                // before the secret on.
                if (start..end).contains(&cut) {
                    let (mut same, mut counts) = (Vec::new(), Counts::new());
                    let context = &context[start - 3..];
                    Redactor::standard().redact(context, &input, &mut same, &mut counts);
                    assert_eq!(text(&same), text(&output));
                }
            }
        }
    }
}

#[test]
fn opaque_values_survive_a_cut_when_the_context_is_whole() {
    let mut random = fastrand::Rng::with_seed(602);
    for shape in OPAQUE {
        let record = shape.replace('@', &noise(&mut random, !shape.contains("data:image")));
        for cut in 1..record.len() {
            let (context, rest) = record.as_bytes().split_at(cut);
            let mut output = Vec::new();
            Redactor::standard().redact(context, rest, &mut output, &mut Counts::new());
            assert_eq!(text(&output), text(rest));
        }
    }
}

#[test]
fn records_that_are_no_json_lose_their_secrets_too() {
    let mut random = fastrand::Rng::with_seed(8);
    for (name, secret) in examples(&mut random) {
        let (marker, secret) = (format!("[REDACTED:{name}]"), secret.replace('\n', "\\n"));
        for (before, after) in [
            ("{\"a\":\"torn ", ""),
            ("{\"a\":\"torn ", " and more"),
            ("{\"a\":\"x\",\"b\":[\"torn\\n", ""),
            ("{\"a\":1}{\"b\":\"two on a line ", "\"}"),
            ("{\"torn\":\"he{\"type\":\"x\",\"text\":\"\\n", "\"}"),
            ("\0\0\0{\"a\":\"", "\"}"),
            ("\0\0\0", "\0\0"),
            ("#### /run KEY=", ""),
            ("> token `", "` \\n"),
            ("{ key: '", "' }"),
            ("]]]]", "[[[["),
            ("\"", "\""),
            ("", "\r"),
        ] {
            let input = format!("{before}{secret}{after}");
            assert_eq!(redact_text(&input), format!("{before}{marker}{after}"), "{input:?}");
        }
        let input = [b"\xFF\xFE{\"a\":\"\xC3", secret.as_bytes(), b"\x80\"}\n\xFF"].concat();
        let expected = [b"\xFF\xFE{\"a\":\"\xC3", marker.as_bytes(), b"\x80\"}\n\xFF"].concat();
        assert_eq!(text(&redact(&input).0), text(&expected));
        assert!(redact(&input).0 == expected);
    }
}

#[test]
fn a_replacement_in_a_torn_record_divides_no_escape() {
    let mut random = fastrand::Rng::with_seed(9);
    let rest = letters(&mut random, ALPHANUMERIC, 36);
    let record = format!("{{\"a\":\"x\\npm_{rest} b");
    let output = redact_text(&record) + "\"}";
    assert!(serde_json::from_str::<serde_json::Value>(&output).is_ok(), "{output}");
}

#[test]
fn t61_a_header_that_is_only_mentioned_takes_nothing_along() {
    for line in [
        r#"{"cmd":"grep -r '-----BEGIN PRIVATE KEY-----' /home/dev/project/source/folder"}"#,
        r#"{"argv":["grep","-----BEGIN RSA PRIVATE KEY-----","/home/dev/project/source/folder"]}"#,
        r#"{"a":"starts with -----BEGIN PRIVATE KEY-----","sha":"0123456789abcdef0123456789abcdef"}"#,
    ] {
        assert_eq!(redact_text(line), line);
    }
}

#[test]
fn t18_t60_a_secret_outside_of_strings_in_a_record_that_was_damaged_is_found() {
    for secret in ["AKIAIOSFODNN7EXAMPLE", "xxxAKIA0000000000000005"] {
        for record in [
            // One quote is damaged: what was inside of strings stands between them.
            format!(r##"{{"n#:5,"text":"{secret}"}}"}}"##),
            format!(r#"{{"a":{secret}}}"#),
            format!(r#"{{"a":[1,{secret},true]}}"#),
        ] {
            let redacted = redact_text(&record);
            assert!(redacted.contains("[REDACTED:aws_access_key]"), "{record}: {redacted}");
            assert!(!redacted.contains("AKIA"), "{record}: {redacted}");
        }
    }
    for whole in [r#"{"a":-1.5e+7,"b":[true,false,null,NaN,-Infinity]}"#, "{\"a\": 1 }"] {
        assert_eq!(redact_text(whole), whole);
    }
}
