//! Names, keys and manifests: what is accepted, what is refused, what is written.

use super::*;

fn entry(seq: u32) -> PartEntry {
    PartEntry {
        seq,
        uuid: "0123abcd".into(),
        cursor_range: Some([u64::from(seq) * 10, u64::from(seq) * 10 + 10]),
        source_bytes: Some(10),
        uploaded_bytes: 10,
        redactions: Counts::new(),
        uploaded_at: "2026-01-01T00:00:00Z".into(),
        compacted_from: None,
        sha256: None,
        other: Map::new(),
    }
}

#[test]
fn ids_from_outside_are_safe_in_a_key() {
    for (raw, want) in [
        ("0a1b-2c", "0a1b-2c"),
        ("main__x y", "main__x y"),
        ("..", "%2E."),
        ("a/../b", "a%2F..%2Fb"),
        ("a~2@b%", "a%7E2%40b%25"),
        ("a\u{1b}[2J\u{e9}", "a%1B[2J%C3%A9"),
        ("", "%00"),
    ] {
        let key = SessionKey::new("codex", raw);
        assert_eq!(key.id(), want, "{raw:?}");
        assert_eq!(key.to_string().parse(), Ok(key), "{raw:?} survives the state file");
    }
    let long = SessionKey::new("codex", &"é".repeat(200));
    assert!(long.id().len() <= ID_BYTES_MAX, "{}", long.id().len());
    assert_ne!(long, SessionKey::new("codex", &"é".repeat(201)));
}

#[test]
fn a_key_from_outside_that_could_be_a_path_is_refused() {
    let long = format!("codex/{}", "x".repeat(251));
    for bad in [
        "",
        "codex",
        "codex/",
        "/x",
        "Codex/x",
        "../x",
        "codex/.",
        "codex/..",
        "codex/.x",
        "codex/a/b",
        "codex/../a",
        "codex/a\\b",
        "codex/a\nb",
        "codex/\u{e9}",
        &long,
    ] {
        assert!(bad.parse::<SessionKey>().is_err(), "{bad:?}");
    }
}

#[test]
fn generations_are_told_by_the_key() {
    let first = SessionKey::new("codex", "x~9");
    let third = first.with_generation(3);
    assert_eq!((first.generation(), third.generation()), (1, 3));
    assert_eq!(third.id(), "x%7E9~3");
    assert_eq!(third.with_generation(1), first);
    assert!(first.at_place(b"/a").id().starts_with("x%7E9@"));
}

#[test]
fn only_names_of_the_grammar_are_parts() {
    assert_eq!("part-00042-0123abcd.jsonl".parse::<PartName>().unwrap().seq, 42);
    for bad in [
        "part-42-0123abcd.jsonl",
        "part-00042-0123ABCD.jsonl",
        "part-00042-0123abc.jsonl",
        "part-+0042-0123abcd.jsonl",
        "part-00042-0123abcd.jsonl.tmp",
        "meta.json",
    ] {
        assert!(bad.parse::<PartName>().is_err(), "{bad}");
    }
}

#[test]
fn naming_a_part_twice_is_naming_it_once() {
    let mut manifest = Manifest::new(&SessionKey::new("codex", "x"));
    assert!(manifest.name_part(entry(0)) && manifest.name_part(entry(1)));
    let once = manifest.clone();
    assert!(manifest.name_part(entry(0)));
    assert_eq!(manifest, once);
    let stranger = PartEntry { uuid: "ffffffff".into(), ..entry(1) };
    assert!(!manifest.name_part(stranger), "another writer's part with the same number");
    assert_eq!((manifest.next_seq, manifest.total_source_bytes), (2, 20));
}

#[test]
fn a_hostile_manifest_is_refused_and_says_why() {
    let key = SessionKey::new("codex", "x");
    let parse = |text: &str| Manifest::parse(&key, text.as_bytes());
    let with = |part: &str| {
        format!(r#"{{"schema_version":1,"harness":"codex","session_id":"x","parts":[{part}]}}"#)
    };
    assert!(parse(&with(r#"{"seq":0,"uuid":"0123abcd"}"#)).is_ok());
    for (part, says) in [
        (r#"{"seq":100000,"uuid":"0123abcd"}"#, "above"),
        (r#"{"seq":-1,"uuid":"0123abcd"}"#, "-1"),
        (r#"{"seq":4294967295,"uuid":"0123abcd"}"#, "above"),
        (r#"{"seq":0,"uuid":"../../x"}"#, "8 hex"),
        (r#"{"seq":0,"uuid":"0123abcd","cursor_range":[9,1]}"#, "ends before"),
        (r#"{"seq":1,"uuid":"0123abcd"},{"seq":1,"uuid":"0123abcd"}"#, "follow"),
    ] {
        let error = parse(&with(part)).unwrap_err().to_string();
        assert!(error.contains(says), "{part}: {error}");
    }
    for (text, says) in [
        ("[2,\"codex\"]", "no schema_version"),
        (r#"{"schema_version":"2"}"#, "no schema_version"),
        (r#"{"schema_version":1,"#, "not JSON"),
        (r#"{"schema_version":1,"harness":"codex","session_id":"x","parts":7}"#, "integer `7`"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
    assert!(matches!(
        parse(r#"{"schema_version":2}"#),
        Err(ManifestError::UnknownVersion { found: 2, .. })
    ));
}

#[test]
fn fields_of_other_writers_are_kept() {
    let key = SessionKey::new("codex", "x");
    let text = r#"{"schema_version":1,"harness":"codex","session_id":"x","mine":[1],"parts":[{"seq":3,"uuid":"0123abcd","uploaded_bytes":5,"theirs":true}]}"#;
    let manifest = Manifest::parse(&key, text.as_bytes()).unwrap();
    let again: Value = serde_json::from_slice(&manifest.to_bytes()).unwrap();
    assert_eq!(again["mine"], serde_json::json!([1]));
    assert_eq!(again["parts"][0]["theirs"], true);
    assert_eq!(manifest.next_seq, 4);
}
