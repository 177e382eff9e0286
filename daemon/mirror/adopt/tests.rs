//! What the reference tool leaves in a bucket, case by case, and where a session of it is continued.

use serde_json::{Value, json};

use super::*;
use crate::durable::memory::MemoryDisk;
use crate::ledger::Ledgers;
use crate::mirror::capture::{Care, Look, Seen, capture};
use crate::mirror::find::RootsFinder;
use crate::outbox::Outbox;
use crate::redact::Redactor;
use crate::source::database::Databases;
use crate::source::memory::MemoryFiles;
use crate::source::{Files, Unfinished};
use crate::store::memory::MemoryStore;

const PATH: &str = "/agent/s.jsonl";

/// A token that both tools know, and one that only ours does.
const BOTH: &str = "hf_abcdefghijklmnopqrstuvwxyzABCDEFGHIJ";
const OURS: &str = "glpat-Xy3kQ9mZpL7vT2nR8sWd";

/// What an opaque payload holds that the reference tool takes for a key, and ours does not.
const PAYLOAD: &str = "gAAAAABmsk-0123456789abcdefghijklmnopqrstuv";

/// What the reference tool makes of bytes that it uploads at once: its eight rules, as it applies them.
fn redacted_by_peer(bytes: &[u8]) -> Vec<u8> {
    let rules = [
        ("aws_access_key", "AKIA[0-9A-Z]{16}"),
        ("anthropic_key", "sk-ant-[A-Za-z0-9_-]{20,}"),
        ("openai_key", "sk-(?:proj-|svcacct-)?[A-Za-z0-9]{20,}"),
        ("hf_token", "hf_[A-Za-z0-9]{30,}"),
    ];
    rules.into_iter().fold(bytes.to_vec(), |bytes, (name, rule)| {
        let rule = regex::bytes::Regex::new(rule).unwrap();
        rule.replace_all(&bytes, format!("[REDACTED:{name}]").as_bytes()).into_owned()
    })
}

/// Writes a session as the reference tool does.
struct Peer {
    store: MemoryStore,
    key: SessionKey,
    meta: Option<Value>,
    cursor: usize,
    redacts: bool,
    uuids: u32,
}

impl Peer {
    fn part_key(&mut self, seq: u64) -> (String, String) {
        self.uuids += 1;
        let uuid = format!("{:08x}", 0xabcd_0000 + self.uuids);
        (format!("{}part-{seq:05}-{uuid}.jsonl", self.key.prefix()), uuid)
    }

    fn listed(&self) -> Vec<(String, u64)> {
        let of = |key: &String| -> Option<u64> {
            key.strip_prefix(&self.key.prefix())?.strip_prefix("part-")?[..5].parse().ok()
        };
        let keys = self.store.objects().into_keys();
        keys.filter_map(|key| of(&key).map(|seq| (key, seq))).collect()
    }

    /// Uploads the next part, up to a position, and does not come to name it.
    fn upload(&mut self, content: &[u8], end: usize) -> Value {
        let chunk = &content[self.cursor..end];
        let stored = if self.redacts { redacted_by_peer(chunk) } else { chunk.to_vec() };
        let seq = self.listed().iter().map(|(_, seq)| seq + 1).max().unwrap_or(0);
        let (key, uuid) = self.part_key(seq);
        self.store.insert(&key, stored.clone());
        json!({
            "seq": seq, "uuid": uuid, "cursor_range": [self.cursor, end], "source_bytes": chunk.len(),
            "uploaded_bytes": stored.len(), "redactions": {}, "uploaded_at": "2026-01-02T03:04:05+00:00",
        })
    }

    /// `session mirror`, when the file ends there.
    fn mirror(&mut self, content: &[u8], end: usize) {
        let entry = self.upload(content, end);
        self.cursor = end;
        let old = self.meta.take().unwrap_or(json!({}));
        let sum = |field: &str, more: &str| {
            old[field].as_u64().unwrap_or(0) + entry[more].as_u64().unwrap()
        };
        let mut parts = old["parts"].as_array().cloned().unwrap_or_default();
        parts.push(entry.clone());
        self.put(json!({
            "schema_version": 1, "harness": self.key.harness(), "session_id": self.key.id(),
            "source_path": PATH, "cwd": null, "agent_id": "a1",
            "started_at": "2026-01-02T03:04:05+00:00", "last_uploaded_at": "2026-01-02T03:04:05+00:00",
            "ended_at": old["ended_at"],
            "total_source_bytes": sum("total_source_bytes", "source_bytes"),
            "total_uploaded_bytes": sum("total_uploaded_bytes", "uploaded_bytes"),
            "redaction_counts": {}, "parts": parts,
        }));
    }

    /// `session compact`.
    fn compact(&mut self, keep_tail: usize) {
        let mut targets = self.listed();
        let kept = targets.split_off(targets.len() - keep_tail);
        let objects = self.store.objects();
        let body: Vec<u8> = targets.iter().flat_map(|(key, _)| objects[key].to_vec()).collect();
        let (key, uuid) = self.part_key(0);
        self.store.insert(&key, body.clone());
        let mut meta = self.meta.take().unwrap();
        let named = meta["parts"].as_array().unwrap().clone();
        let survives = |part: &Value| kept.iter().any(|(_, seq)| part["seq"] == json!(seq));
        let merged = json!({
            "seq": 0, "uuid": uuid, "compacted_from": targets.len(), "uploaded_bytes": body.len(),
            "uploaded_at": "2026-01-02T03:04:05+00:00",
        });
        let parts = std::iter::once(merged).chain(named.into_iter().filter(survives));
        meta["parts"] = parts.collect();
        meta["last_compacted_at"] = json!("2026-01-02T03:04:05+00:00");
        self.put(meta);
        targets.iter().for_each(|(key, _)| self.store.remove(key));
    }

    /// `session stop`: the end is said, and its own cursor is forgotten.
    fn stop(&mut self) {
        let mut meta = self.meta.take().unwrap();
        meta["ended_at"] = json!("2026-01-02T03:04:05+00:00");
        self.put(meta);
        self.cursor = 0;
    }

    fn put(&mut self, meta: Value) {
        self.store.insert(&self.key.manifest_key(), serde_json::to_vec_pretty(&meta).unwrap());
        self.meta = Some(meta);
    }
}

/// A source, a bucket that the reference tool writes to, and ours that comes later.
struct Case {
    files: MemoryFiles,
    peer: Peer,
    adopter: Adopter,
    harness: &'static str,
}

impl Case {
    fn new() -> Case {
        Case::of("claude-code", "s")
    }

    fn of(harness: &'static str, id: &str) -> Case {
        let disk: Arc<dyn crate::durable::Disk> = Arc::new(MemoryDisk::new());
        let store = MemoryStore::new(disk.clone());
        let files = MemoryFiles::new();
        let databases = Arc::new(Databases::new("/nowhere/copies".into(), 0, []));
        let adopter = Adopter {
            store: Arc::new(store.clone()),
            tools: Tools {
                files: Arc::new(files.clone()),
                disk,
                redactor: Arc::new(Redactor::standard()),
                outbox: Outbox::new("/state".as_ref()),
                finder: Arc::new(RootsFinder::new(databases.clone(), vec![], vec![], None)),
                databases,
                ledgers: Ledgers::new("/state".as_ref()),
            },
            blocking: Blocking::Inline,
            now: "2026-02-03T04:05:06Z".into(),
        };
        let key = SessionKey::new(harness, id);
        let peer = Peer { store, key, meta: None, cursor: 0, redacts: true, uuids: 0 };
        Case { files, peer, adopter, harness }
    }

    /// Adopts the session for what the file holds now.
    async fn adopt(&self, content: &[u8]) -> Adopted {
        self.files.create(PATH, content);
        let file = NewFile {
            candidate: Candidate {
                harness: self.harness,
                path: PATH.into(),
                id: self.peer.key.id().into(),
                id_from_records: false,
                encoding: Encoding::Plain,
                standing: Standing::Live,
            },
            stat: self.files.stat(PATH.as_ref()).unwrap(),
            facts: Facts::default(),
        };
        let keys = vec![self.peer.key.clone()];
        self.adopter.adopt(&file, keys, Vec::new()).await.unwrap()
    }

    /// The session goes on in its first generation, at this position.
    async fn continues(&self, content: &[u8], at: usize) -> Record {
        let adopted = self.adopt(content).await;
        let [(key, record)] = &adopted.records[..] else { panic!("{:?}", adopted.records) };
        assert_eq!(*key, self.peer.key);
        assert!(!record.superseded);
        assert_eq!(record.cursor.offset, at as u64);
        let above = self.peer.listed().iter().all(|(_, seq)| *seq < u64::from(record.next_seq));
        assert!(above, "{}", record.next_seq);
        record.clone()
    }

    /// A second generation begins; its reason.
    async fn begins_anew(&self, content: &[u8]) -> String {
        let adopted = self.adopt(content).await;
        let [(_, old), (key, record)] = &adopted.records[..] else {
            panic!("{:?}", adopted.records)
        };
        assert!(old.superseded && !record.superseded);
        assert_eq!((key.generation(), record.cursor.offset, record.next_seq), (2, 0, 0));
        record.reason.clone().unwrap()
    }

    /// What is captured from there on, as the outbox has it.
    fn captured(&self, record: Record) -> Vec<u8> {
        let look = Look {
            key: self.peer.key.clone(),
            path: PATH.into(),
            encoding: Encoding::Plain,
            cursor: record.cursor,
            next_seq: record.next_seq,
            care: Care::WholeIfChanged,
            unfinished: Unfinished::Take,
            wants_cwd: false,
            now: String::new(),
        };
        let tools = &self.adopter.tools;
        let batch = capture(tools, vec![look]);
        let (_, seen @ Seen::Read { .. }) = &batch.seen[0] else { panic!("{:?}", batch.seen) };
        let path = |part: &PendingPart| tools.outbox.path(&self.peer.key, part);
        let bytes = |(part, _): &(PendingPart, Cursor)| tools.disk.read(&path(part)).unwrap();
        seen.parts().iter().flat_map(bytes).collect()
    }

    /// What a reader sees that only lists.
    fn by_listing(&self) -> Vec<u8> {
        let objects = self.peer.store.objects();
        self.peer.listed().iter().flat_map(|(key, _)| objects[key].to_vec()).collect()
    }
}

/// Records of all kinds, and where each of them ends.
fn records() -> (Vec<u8>, Vec<usize>) {
    let mut content = Vec::new();
    let mut ends = Vec::new();
    for (number, text) in ["plain", BOTH, OURS, "[REDACTED:hf_token] was seen", PAYLOAD, "", "last"]
        .iter()
        .enumerate()
    {
        content.extend(format!("{{\"n\":{number},\"encrypted_content\":\"{text}\"}}\n").bytes());
        ends.push(content.len());
    }
    (content, ends)
}

fn find(content: &[u8], text: &str) -> usize {
    memchr::memmem::find(content, text.as_bytes()).unwrap()
}

#[tokio::test]
async fn what_the_reference_tool_mirrored_is_continued_at_its_end_for_each_harness() {
    for (harness, id) in [("claude-code", "s"), ("codex", "01a2-s"), ("openclaw", "main__s")] {
        for redacts in [true, false] {
            let (content, ends) = records();
            let mut case = Case::of(harness, id);
            case.peer.redacts = redacts;
            for end in &ends {
                case.peer.mirror(&content, *end);
            }
            let record = case.continues(&content, content.len()).await;
            assert_eq!(case.captured(record), b"", "nothing is sent twice");
            let grown = [&content[..], b"{\"n\":8}\n"].concat();
            let record = case.continues(&grown, content.len()).await;
            assert_eq!(record.next_seq, 7);
            assert_eq!(case.captured(record), b"{\"n\":8}\n");
        }
    }
}

#[tokio::test]
async fn t23_a_part_that_ends_anywhere_inside_a_record_is_continued_right_there() {
    let (content, ends) = records();
    for redacts in [true, false] {
        // Every position of the record with the secret, and some before it.
        for end in ends[0] - 3..ends[1] {
            let mut case = Case::new();
            case.peer.redacts = redacts;
            case.peer.mirror(&content, ends[0] - 5);
            case.peer.mirror(&content, end);
            let record = case.continues(&content, end).await;
            let ours = case.captured(record);
            let whole = [case.by_listing(), ours.clone()].concat();
            let lines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count();
            assert_eq!(lines(&whole), 7, "{end}");
            // What was stored before it was ours to say holds what its writer left in it; nothing of the secret comes from us.
            let at = find(&content, BOTH);
            if end <= at {
                let mut expected = content[..end].to_vec();
                let mut counts = Counts::new();
                let redactor = Redactor::standard();
                redactor.redact(
                    &content[ends[0]..end.max(ends[0])],
                    &content[end..],
                    &mut expected,
                    &mut counts,
                );
                if end >= ends[0] {
                    assert_eq!(whole, expected, "{end}");
                }
            } else if end < at + BOTH.len() {
                let rest = &BOTH.as_bytes()[end - at..];
                assert!(!ours.starts_with(rest), "{end}");
                assert!(ours.starts_with(b"[REDACTED:hf_token]\"}\n"), "{end}");
            }
        }
    }
}

#[tokio::test]
async fn t60_a_secret_across_the_end_of_a_part_is_seen_with_its_beginning() {
    let record = format!("{{\"text\":\"{} {OURS}\"}}\n", "x".repeat(70_000));
    let content = record.as_bytes();
    let end = find(content, OURS) + 6;
    let mut case = Case::new();
    case.peer.mirror(content, end);
    let record = case.continues(content, end).await;
    assert_eq!(case.captured(record), b"[REDACTED:gitlab_token]\"}\n");
}

#[tokio::test]
async fn t19_a_part_that_ends_inside_a_record_larger_than_a_chunk_is_continued_there() {
    let text = "y".repeat(3 << 20);
    let content = format!("{{\"n\":1}}\n{{\"text\":\"{text}\"}}\n{{\"n\":2}}\n").into_bytes();
    for end in [2 << 20, (1 << 20) + 5] {
        let mut case = Case::new();
        case.peer.mirror(&content, end);
        let record = case.continues(&content, end).await;
        assert_eq!([&content[..end], &case.captured(record)].concat(), content);
    }
}

#[tokio::test]
async fn what_the_reference_tool_compacted_is_continued_by_its_sums_and_its_bytes() {
    let (content, ends) = records();
    let cut = find(&content, BOTH) + 10;
    for (keep_tail, end) in [(0, ends[5]), (2, ends[5]), (0, cut), (1, cut), (0, ends[2] + 4)] {
        let mut case = Case::new();
        for at in [ends[0] - 4, ends[0], (ends[0] + cut) / 2].into_iter().filter(|at| *at < end) {
            case.peer.mirror(&content, at);
        }
        case.peer.mirror(&content, end);
        case.peer.compact(keep_tail);
        case.continues(&content, end).await;
        // Compacted, then mirrored on; and all of that compacted once more.
        case.peer.mirror(&content, ends[6]);
        case.continues(&content, ends[6]).await;
        case.peer.compact(0);
        case.continues(&content, ends[6]).await;
    }
}

#[tokio::test]
async fn t31_a_lost_manifest_is_no_reason_to_begin_anew_while_the_bytes_tell_where_the_parts_end() {
    let (content, ends) = records();
    let mut case = Case::new();
    for end in [ends[0] + 7, ends[2], ends[4] + 3, ends[5]] {
        case.peer.mirror(&content, end);
    }
    case.peer.store.remove(&case.peer.key.manifest_key());
    case.continues(&content, ends[5]).await;
    let bytes = case.peer.store.objects()[&case.peer.key.manifest_key()].clone();
    let manifest = Manifest::parse(&case.peer.key, &bytes).unwrap();
    let ranges: Vec<_> = manifest.parts.iter().filter_map(|part| part.cursor_range).collect();
    let to = |end: usize| end as u64;
    assert_eq!(
        ranges,
        [
            [0, to(ends[0] + 7)],
            [to(ends[0] + 7), to(ends[2])],
            [to(ends[2]), to(ends[4] + 3)],
            [to(ends[4] + 3), to(ends[5])]
        ]
    );
}

#[tokio::test]
async fn an_end_that_nothing_tells_is_no_place_to_continue() {
    let (content, ends) = records();
    let mut case = Case::new();
    // The last piece has a marker, so that its length says nothing about the source.
    case.peer.mirror(&content, ends[1] - 1);
    case.continues(&content, ends[1] - 1).await;
    case.peer.store.remove(&case.peer.key.manifest_key());
    assert_eq!(
        case.begins_anew(&content).await,
        "where in its source the stored parts end cannot be told"
    );
}

#[tokio::test]
async fn t27_a_part_that_the_reference_tool_did_not_come_to_name_is_taken_along() {
    let (content, ends) = records();
    let mut case = Case::new();
    case.peer.mirror(&content, ends[1]);
    case.peer.upload(&content, ends[3]);
    let record = case.continues(&content, ends[3]).await;
    assert_eq!((record.totals.parts, record.next_seq), (2, 2));
    // Its next run would upload the same again. It has, before ours came: then the first one is nobody's, and left alone.
    let mut case = Case::new();
    case.peer.mirror(&content, ends[1]);
    case.peer.upload(&content, ends[3]);
    case.peer.mirror(&content, ends[4]);
    let record = case.continues(&content, ends[4]).await;
    assert_eq!(record.totals.parts, 2);
}

#[tokio::test]
async fn fields_of_the_other_writer_stay_and_its_stop_is_an_end() {
    let (content, ends) = records();
    let mut case = Case::new();
    case.peer.mirror(&content, ends[1]);
    case.peer.stop();
    case.peer.cursor = ends[1];
    let mut meta = case.peer.meta.take().unwrap();
    meta["colour"] = json!({ "of": "hope" });
    case.peer.put(meta);
    case.peer.upload(&content, ends[3]);
    let record = case.continues(&content, ends[3]).await;
    assert!(record.ended_at.is_some() && !record.stopped);
    let bytes = case.peer.store.objects()[&case.peer.key.manifest_key()].clone();
    let meta: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(meta["colour"]["of"], "hope");
    assert_eq!(meta["agent_id"], "a1");
    assert_eq!(meta["parts"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_session_that_the_reference_tool_stored_twice_is_continued_behind_its_last_copy() {
    let (content, ends) = records();
    let mut case = Case::new();
    case.peer.mirror(&content, ends[1]);
    case.peer.mirror(&content, ends[3]);
    case.peer.stop();
    case.peer.mirror(&content, ends[5]);
    case.continues(&content, ends[5]).await;
    // Compacted before that, the merged part's end follows from the sums.
    let mut case = Case::new();
    case.peer.mirror(&content, ends[1]);
    case.peer.mirror(&content, ends[3]);
    case.peer.compact(0);
    case.peer.stop();
    case.peer.mirror(&content, ends[5]);
    case.continues(&content, ends[5]).await;
    // Compacted after that, one object holds everything twice: that is no source's, and what is stored stays as it is.
    case.peer.compact(0);
    assert_eq!(case.begins_anew(&content).await, "its source is not what is stored");
}

#[tokio::test]
async fn t1_t2_t3_a_source_that_was_rewritten_begins_anew_and_says_why() {
    let (content, ends) = records();
    let differs = "its source is not what is stored";
    let shorter = "its source is shorter than what is stored";
    for compacts in [false, true] {
        let mut case = Case::new();
        for end in [ends[2], ends[3] + 5, ends[5]] {
            case.peer.mirror(&content, end);
        }
        if compacts {
            case.peer.compact(0);
        }
        for at in [3, ends[2] + 6, ends[4] + 5] {
            let mut spliced = content.clone();
            spliced[at] ^= 1;
            assert_eq!(case.begins_anew(&spliced).await, differs, "{at}");
        }
        let cut = case.begins_anew(&content[..ends[4]]).await;
        assert!(cut == shorter || cut == differs, "{cut}");
        assert_eq!(case.begins_anew(&content[ends[0]..]).await, differs);
        let longer = [b"{\"n\":-1}\n", &content[..]].concat();
        assert_eq!(case.begins_anew(&longer).await, differs);
    }
}

#[tokio::test]
async fn t46_a_named_part_that_is_gone_is_stored_again_with_its_session() {
    let (content, ends) = records();
    let mut case = Case::new();
    case.peer.mirror(&content, ends[1]);
    case.peer.mirror(&content, ends[3]);
    let (gone, _) = case.peer.listed()[0].clone();
    case.peer.store.remove(&gone);
    assert_eq!(case.begins_anew(&content).await, "a part that its manifest names is gone");
}
