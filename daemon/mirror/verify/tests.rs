//! What a verification has to find, each in a store in memory: what is damaged, what only moves, what is merely away.

mod losses;
mod mending;

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::check::{Contents, Meter, Seen, Subject};
use super::*;
use crate::durable::memory::MemoryDisk;
use crate::part::{Manifest, PartEntry, PartName, digest_of};
use crate::source::{Cursor, Encoding, Stat};
use crate::state::{Compaction, Leaving, PendingPart, Totals};
use crate::store::ErrorKind;
use crate::store::memory::{MemoryStore, OpKind, StoreFault};

const LINES: [&str; 3] = ["{\"n\":1}\n", "{\"n\":2,\"k\":\"[REDACTED:jwt]\"}\n", "{\"n\":3}\n"];

fn key() -> SessionKey {
    SessionKey::new("codex", "s")
}

fn entry(seq: u32, start: u64, bytes: &[u8]) -> PartEntry {
    let sha256 = digest_of(bytes);
    let end = start + bytes.len() as u64;
    PartEntry {
        seq,
        uuid: sha256[..8].to_owned(),
        cursor_range: Some([start, end]),
        source_bytes: Some(end - start),
        uploaded_bytes: bytes.len() as u64,
        redactions: Default::default(),
        uploaded_at: "2026-01-02T03:04:05Z".into(),
        compacted_from: None,
        sha256: Some(sha256),
        other: serde_json::Map::new(),
    }
}

/// A session of three parts, and what its recorder knows of it.
struct Case {
    store: MemoryStore,
    record: Option<Record>,
    entries: Vec<PartEntry>,
    compacting: bool,
}

impl Case {
    fn new() -> Case {
        let store = MemoryStore::new(Arc::new(MemoryDisk::new()));
        let mut manifest = Manifest::new(&key());
        let mut start = 0;
        for (seq, line) in LINES.iter().enumerate() {
            let entry = entry(seq as u32, start, line.as_bytes());
            start += line.len() as u64;
            store.insert(&key().part_key(&entry.name()), line.as_bytes());
            assert!(manifest.name_part(entry));
        }
        manifest.rules = Some("1".into());
        let stat = Stat { dev: 0, ino: 0, size: 0, mtime_ns: 0, ctime_ns: 0 };
        let began = "2026-01-02T03:04:05Z".to_owned();
        let record = Record {
            next_seq: 3,
            totals: Totals { parts: 3, bytes: manifest.bytes(), ..Totals::default() },
            named_bytes: manifest.bytes(),
            ..Record::new(
                std::path::Path::new("/agent/s.jsonl").into(),
                Encoding::Plain,
                began,
                stat,
            )
        };
        let entries = manifest.parts.clone();
        let case = Case { store, record: Some(record), entries, compacting: false };
        case.put_manifest(manifest.to_bytes());
        case
    }

    fn put_manifest(&self, bytes: impl Into<Bytes>) {
        self.store.insert(&key().manifest_key(), bytes);
    }

    fn manifest(&self) -> Value {
        serde_json::from_slice(&self.store.objects()[&key().manifest_key()]).unwrap()
    }

    fn change_manifest(&self, change: impl FnOnce(&mut Value)) {
        let mut manifest = self.manifest();
        change(&mut manifest);
        self.put_manifest(manifest.to_string());
    }

    fn object(&self, at: usize) -> String {
        key().part_key(&self.entries[at].name())
    }

    fn record(&mut self) -> &mut Record {
        self.record.as_mut().unwrap()
    }

    async fn seen(&self) -> Seen {
        self.seen_by(Arc::new(self.store.clone())).await
    }

    async fn seen_by(&self, store: Arc<dyn Store>) -> Seen {
        let (events, _listening) = mpsc::channel(1);
        let mut meter =
            Meter { events, done_sessions: 0, total_sessions: 1, done_bytes: Default::default() };
        let (record, compacting) = (self.record.clone(), self.compacting);
        let subject = Subject { store, key: key(), record, compacting };
        subject.examine(&mut Contents::new(), &mut meter).await
    }

    /// Codes, weights and objects of all findings.
    async fn found(&self) -> Vec<(String, Weight, String)> {
        let found = self.seen().await.findings.into_iter();
        found.map(|f| (f.code, f.weight, f.object)).collect()
    }

    async fn expect(&self, code: &str, object: &str) -> Finding {
        let found = self.seen().await.findings;
        assert_eq!(found.len(), 1, "{found:?}");
        let finding = found.into_iter().next().unwrap();
        assert_eq!((finding.code.as_str(), finding.weight), (code, Weight::Wrong), "{finding:?}");
        assert_eq!(finding.object, object);
        assert!(finding.hint.is_some(), "{finding:?}");
        finding
    }
}

#[tokio::test]
async fn a_session_that_is_as_it_should_be_has_no_findings() {
    let mut case = Case::new();
    assert_eq!(case.found().await, []);
    case.record = None;
    assert_eq!(case.found().await, []);
}

#[tokio::test]
async fn a_part_that_is_missing_is_named_by_its_key() {
    let case = Case::new();
    case.store.remove(&case.object(1));
    let found = case.expect("part_missing", &case.object(1)).await;
    assert_eq!(found.expected.as_deref(), Some("29 bytes"));
}

#[tokio::test]
async fn a_part_of_another_size_or_with_a_flipped_byte_is_told_with_both_digests() {
    let case = Case::new();
    case.store.insert(&case.object(2), &LINES[2].as_bytes()[1..]);
    let found = case.expect("part_size", &case.object(2)).await;
    assert_eq!(
        (found.expected.as_deref(), found.found.as_deref()),
        (Some("8 bytes"), Some("7 bytes"))
    );
    case.store.insert(&case.object(2), &b"{\"n\":4}\n"[..]);
    let found = case.expect("part_digest", &case.object(2)).await;
    assert_eq!(found.expected, Some(format!("sha256 {}", digest_of(LINES[2].as_bytes()))));
    assert_eq!(found.found, Some(format!("sha256 {}", digest_of(b"{\"n\":4}\n"))));
}

#[tokio::test]
async fn gaps_overlaps_and_wrong_sums_are_told_of_manifests_that_hold_together_otherwise() {
    let case = Case::new();
    case.change_manifest(|m| {
        m["parts"][1]["cursor_range"] = json!([10, 39]);
        m["parts"][2]["cursor_range"] = json!([39, 47]);
    });
    case.expect("gap", &case.object(1)).await;

    let case = Case::new();
    case.change_manifest(|m| {
        m["parts"][1]["cursor_range"] = json!([6, 35]);
        m["parts"][2]["cursor_range"] = json!([35, 43]);
    });
    case.expect("overlap", &case.object(1)).await;

    let case = Case::new();
    case.change_manifest(|m| m["total_uploaded_bytes"] = json!(44));
    let found = case.expect("totals", &key().manifest_key()).await;
    assert_eq!((found.expected.as_deref(), found.found.as_deref()), (Some("45"), Some("44")));

    let case = Case::new();
    case.change_manifest(|m| m["next_seq"] = json!(2));
    case.expect("next_seq", &key().manifest_key()).await;
}

#[tokio::test]
async fn a_manifest_that_cannot_be_used_is_damaged_and_one_of_a_newer_program_is_only_that() {
    let case = Case::new();
    case.change_manifest(|m| m["parts"][1]["seq"] = json!(0));
    let found = case.seen().await.findings;
    let told = found.iter().find(|f| f.code == "manifest_invalid").expect("it is damaged");
    assert!(told.message.contains("seq 0"), "{told:?}");

    let case = Case::new();
    case.put_manifest(&b"{\"schema_version\": 1, \"par"[..]);
    case.expect("manifest_invalid", &key().manifest_key()).await;

    case.store.remove(&key().manifest_key());
    case.expect("manifest_missing", &key().manifest_key()).await;

    let case = Case::new();
    case.change_manifest(|m| m["schema_version"] = json!(2));
    let found = case.expect("manifest_version", &key().manifest_key()).await;
    assert_eq!(found.found.as_deref(), Some("2"));

    let case = Case::new();
    case.change_manifest(|m| m["session_id"] = json!("other"));
    case.expect("manifest_foreign", &key().manifest_key()).await;
}

#[tokio::test]
async fn a_session_whose_objects_are_all_gone_is_wrong_and_one_that_has_stored_nothing_is_not() {
    let mut case = Case::new();
    case.store.objects().keys().for_each(|object| case.store.remove(object));
    case.expect("session_missing", &key().manifest_key()).await;
    case.record().totals = Totals::default();
    assert_eq!(case.found().await, []);
}

#[tokio::test]
async fn parts_that_wait_to_be_named_are_fine_and_those_that_nobody_will_name_are_not() {
    let mut case = Case::new();
    let fourth = entry(3, 45, b"{\"n\":4}\n");
    let object = key().part_key(&fourth.name());
    case.store.insert(&object, &b"{\"n\":4}\n"[..]);
    // Captured and stored since the record was handed over.
    assert_eq!(case.found().await, []);
    // Its number was given away by this daemon, which knows of no more bytes than are named.
    case.record().next_seq = 4;
    assert_eq!(case.found().await, [("stray".to_owned(), Weight::Note, object.clone())]);
    case.record().totals.bytes += 8;
    let found: Vec<String> = case.found().await.into_iter().map(|(code, ..)| code).collect();
    assert_eq!(found, ["manifest_behind", "unnamed"]);
    case.record().totals.bytes -= 8;
    case.record().pending.push(PendingPart {
        seq: 3,
        sha256: digest_of(b"{\"n\":4}\n"),
        range: [45, 53],
        bytes: 8,
        redactions: Default::default(),
        cut: false,
        captured_at: String::new(),
        stored_at: Some(String::new()),
        named: false,
    });
    assert_eq!(case.found().await, []);
    // Nobody names it, and its bytes are not its name's.
    case.store.insert(&object, &b"{\"n\":5}\n"[..]);
    case.expect("part_digest", &object).await;
}

#[tokio::test]
async fn leftovers_are_wrong_unless_somebody_sees_to_them() {
    let mut case = Case::new();
    let old: &[u8] = b"{\"n\":1}\n{\"n\":2}\n";
    let name = PartName::new(0, &digest_of(old));
    let object = key().part_key(&name);
    case.store.insert(&object, old);
    case.expect("leftover", &object).await;
    let note = [("leftover".to_owned(), Weight::Note, object.clone())];
    case.compacting = true;
    assert_eq!(case.found().await, note);
    case.compacting = false;
    let merged = entry(0, 0, old);
    case.record().compaction = Some(Box::new(Compaction { inputs: vec![], merged }));
    assert_eq!(case.found().await, note);
    case.record().compaction = None;
    let leaving = Leaving { parts: vec![name], to: key().with_generation(2), below: 1 };
    case.record().leaving = Some(Box::new(leaving));
    assert_eq!(case.found().await, note);
    case.record = None;
    assert_eq!(case.found().await, note);
}

#[tokio::test]
async fn what_is_no_object_of_ours_is_told_and_no_fault() {
    let case = Case::new();
    let object = format!("{}notes.txt", key().prefix());
    case.store.insert(&object, &b"mine"[..]);
    assert_eq!(case.found().await, [("foreign".to_owned(), Weight::Note, object)]);
}

#[tokio::test]
async fn a_manifest_that_is_an_old_one_is_told() {
    let mut case = Case::new();
    case.record().totals.bytes += 8;
    case.expect("manifest_behind", &key().manifest_key()).await;
}

#[tokio::test]
async fn parts_of_the_reference_tool_are_checked_as_far_as_they_say() {
    let mut case = Case::new();
    case.record = None;
    case.change_manifest(|m| {
        for part in m["parts"].as_array_mut().unwrap() {
            part.as_object_mut().unwrap().remove("sha256");
        }
        m["total_uploaded_bytes"] = json!(4711);
        m.as_object_mut().unwrap().remove("next_seq");
    });
    assert_eq!(case.found().await, []);
    // Bytes that are there twice are left out by readers; a size is a size.
    case.change_manifest(|m| {
        m["parts"][0]["cursor_range"] = json!([0, 5]);
        m["parts"][1]["cursor_range"] = json!([0, 37]);
    });
    let twice = ("twice".to_owned(), Weight::Note, case.object(0));
    assert_eq!(case.found().await, [twice]);
    case.store.insert(&case.object(2), &b"short"[..]);
    assert!(case.found().await.iter().any(|(code, ..)| code == "part_size"));
}

#[tokio::test]
async fn a_store_that_does_not_answer_is_neither_fine_nor_damaged() {
    for (asked, part) in [(OpKind::List, false), (OpKind::Get, false), (OpKind::Get, true)] {
        for kind in [ErrorKind::Unavailable, ErrorKind::Denied] {
            let case = Case::new();
            let object = case.object(1);
            let store = case.store.on(Arc::new(MemoryDisk::new()));
            store.set_hook(Box::new(move |op| {
                match op.kind == asked && (!part || op.key == object) {
                    true => StoreFault::FailBefore(kind),
                    false => StoreFault::None,
                }
            }));
            let found = case.seen_by(Arc::new(store)).await.findings;
            let [finding] = &found[..] else { panic!("{found:?}") };
            assert_eq!((finding.code.as_str(), finding.weight), ("store", Weight::Unchecked));
            assert!(finding.message.starts_with("could not be checked"), "{finding:?}");
        }
    }
}

#[tokio::test]
async fn what_is_compacted_between_two_looks_is_not_complained_about() {
    let case = Case::new();
    let whole: Vec<u8> = LINES.concat().into_bytes();
    let merged = PartEntry { compacted_from: Some(3), ..entry(0, 0, &whole) };
    let inputs: Vec<String> = (0..3).map(|at| case.object(at)).collect();
    let mut after = case.manifest();
    after["parts"] = json!([merged]);
    let behind = case.store.clone();
    let store = case.store.on(Arc::new(MemoryDisk::new()));
    let mut gets = 0;
    store.set_hook(Box::new(move |op| {
        gets += u32::from(op.kind == OpKind::Get);
        // After the manifest and the first part were read.
        if gets == 3 {
            behind.insert(&key().part_key(&merged.name()), whole.clone());
            behind.insert(&key().manifest_key(), after.to_string());
            inputs.iter().for_each(|object| behind.remove(object));
        }
        StoreFault::None
    }));
    assert_eq!(case.seen_by(Arc::new(store)).await.findings[..], []);
}

#[tokio::test]
async fn a_manifest_that_changes_without_end_is_said_to_be_busy() {
    let case = Case::new();
    case.store.remove(&case.object(1));
    let behind = case.store.clone();
    let store = case.store.on(Arc::new(MemoryDisk::new()));
    let mut serial = 0;
    let manifest = case.manifest();
    store.set_hook(Box::new(move |op| {
        if op.kind == OpKind::List {
            serial += 1;
            let mut next = manifest.clone();
            next["reason"] = json!(format!("{serial}"));
            behind.insert(&key().manifest_key(), next.to_string());
        }
        StoreFault::None
    }));
    let found = case.seen_by(Arc::new(store)).await.findings;
    assert_eq!((found[0].code.as_str(), found[0].weight), ("busy", Weight::Unchecked));
}
