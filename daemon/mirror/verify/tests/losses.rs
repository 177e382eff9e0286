//! What is lost: it comes back where something on this machine still has it, and is never forgotten where nothing has.

use super::mending::{Repaired, nothing_wrong};
use super::*;
use crate::durable::Disk;
use crate::mirror::verify::finding::verified;
use crate::source::memory::{Fault, MemoryFiles};
use crate::source::{Next, Reading, Unfinished};

const SOURCE: &str = "/agent/s.jsonl";

/// The session and the source that it was captured from.
async fn with_source() -> (Case, MemoryFiles) {
    let mut case = Case::with_notes().await;
    let files = source_of(&mut case, LINES.concat());
    (case, files)
}

fn source_of(case: &mut Case, content: String) -> MemoryFiles {
    let files = MemoryFiles::new();
    files.create(SOURCE, content);
    let cursor = Cursor::start(crate::source::Files::stat(&files, SOURCE.as_ref()).unwrap());
    let opened = Reading::open(&files, SOURCE.as_ref(), Encoding::Plain, &cursor);
    let mut reading = opened.unwrap().unwrap();
    while let Next::Chunk(chunk) = reading.next(Unfinished::Take).unwrap() {
        case.record().cursor = chunk.cursor;
    }
    files
}

impl Case {
    /// Yesterday's manifest, without the newest parts.
    fn manifest_of(&self, parts: usize) {
        let mut manifest = Manifest::new(&key());
        for entry in &self.entries[..parts] {
            assert!(manifest.name_part(entry.clone()));
        }
        manifest.rules = Some("1".into());
        self.put_manifest(manifest.to_bytes());
    }

    fn lose_manifest(&self) {
        self.store.remove(&key().manifest_key());
    }

    fn has_all(&self) {
        for (at, line) in LINES.iter().enumerate() {
            let there = self.store.objects().get(&self.object(at)).cloned();
            assert_eq!(there.as_deref(), Some(line.as_bytes()), "part {at}");
        }
    }
}

fn is_left_wrong(case: &Case, repaired: &Repaired, code: &str) {
    assert!(repaired.codes(Weight::Wrong).contains(&code), "{:?}", repaired.seen.findings);
    assert!(repaired.codes(Weight::Unchecked).contains(&"manifest_unmended"));
    assert_eq!(repaired.totals, None);
    assert!(case.record.as_ref().unwrap().totals.bytes == 45);
}

#[tokio::test]
async fn a_manifest_that_lacks_a_part_that_is_nowhere_stays_wrong_however_often_it_is_repaired() {
    // An older manifest came back, and its newest part is gone with its source.
    let case = Case::with_notes().await;
    case.manifest_of(2);
    case.store.remove(&case.object(2));
    let before = case.store.objects();
    for _ in 0..2 {
        let repaired = case.repair(MemoryDisk::new()).await;
        is_left_wrong(&case, &repaired, "manifest_behind");
        assert_eq!(case.store.objects(), before);
    }
    // The same without any manifest.
    case.lose_manifest();
    let repaired = case.repair(MemoryDisk::new()).await;
    is_left_wrong(&case, &repaired, "manifest_missing");
    assert!(!case.store.objects().contains_key(&key().manifest_key()));
    // Put back from a copy, it counts again.
    let body = crate::store::Body::Bytes(LINES[2].into());
    case.store.put(&case.object(2), body, Some("37-45")).await.unwrap();
    nothing_wrong(&case.repair(MemoryDisk::new()).await);
    assert_eq!(case.manifest()["parts"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_part_that_the_store_does_not_give_now_is_not_left_out_of_a_manifest() {
    let case = Case::with_notes().await;
    case.lose_manifest();
    let last = case.object(2);
    let failing = case.store.on(Arc::new(MemoryDisk::new()));
    let mut asked = 0;
    failing.set_hook(Box::new(move |op| {
        asked += u32::from(op.kind == OpKind::Get && op.key == last);
        match op.kind == OpKind::Get && op.key == last && asked <= 3 {
            true => StoreFault::FailBefore(ErrorKind::Unavailable),
            false => StoreFault::None,
        }
    }));
    let case = Case { store: failing, ..case };
    case.repair(MemoryDisk::new()).await;
    let named = case.store.objects().get(&key().manifest_key()).cloned();
    assert_eq!(named, None, "nothing was put on half of a look");
    nothing_wrong(&case.repair(MemoryDisk::new()).await);
    assert_eq!(case.manifest()["parts"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn lost_parts_and_their_manifest_come_back_from_the_source() {
    for lost in [&[2][..], &[1], &[0], &[0, 1], &[1, 2], &[0, 1, 2]] {
        for manifest in [false, true] {
            let (case, files) = with_source().await;
            if manifest {
                case.manifest_of(1);
            } else {
                case.lose_manifest();
            }
            lost.iter().for_each(|at| case.store.remove(&case.object(*at)));
            let disk = MemoryDisk::new();
            let repaired = case.repair_from(disk.clone(), files).await;
            nothing_wrong(&repaired);
            let parts = case.manifest()["parts"].as_array().unwrap().clone();
            let stored: Vec<u8> = parts.iter().fold(Vec::new(), |all, part| {
                let (seq, uuid) = (&part["seq"], part["uuid"].as_str().unwrap());
                let seq = u32::try_from(seq.as_u64().unwrap()).unwrap();
                let name = PartName { seq, uuid: uuid.into() };
                [all, case.store.objects()[&key().part_key(&name)].to_vec()].concat()
            });
            assert_eq!(String::from_utf8(stored).unwrap(), LINES.concat(), "{lost:?}");
            assert_eq!(case.manifest()["next_seq"], json!(3));
            assert_eq!(repaired.totals.map(|totals| totals.bytes), Some(45));
            if lost.len() == 1 {
                case.has_all(); // The same bytes have the same name.
            }
            let left = disk.list("/state/outbox".as_ref()).unwrap();
            assert_eq!(left, [], "nothing is left of the repair");
        }
    }
}

#[tokio::test]
async fn a_source_that_is_another_by_now_gives_nothing_back() {
    let (case, files) = with_source().await;
    case.lose_manifest();
    case.store.remove(&case.object(2));
    // As long as it was: the sums would agree.
    files.create(SOURCE, LINES.concat().replace("\"n\":3", "\"n\":9"));
    let before = case.store.objects();
    is_left_wrong(&case, &case.repair_from(MemoryDisk::new(), files).await, "manifest_missing");
    assert_eq!(case.store.objects(), before);
}

#[tokio::test]
async fn a_manifest_of_another_session_is_replaced_by_one_of_this_sessions_parts() {
    let case = Case::with_notes().await;
    let theirs = entry(0, 0, b"{\"x\":1}\n");
    case.change_manifest(|m| {
        m["session_id"] = json!("other");
        m["parts"] = json!([theirs]);
        m["total_uploaded_bytes"] = json!(8);
        m["total_source_bytes"] = json!(8);
        m["redaction_counts"] = json!({});
    });
    let repaired = case.repair(MemoryDisk::new()).await;
    nothing_wrong(&repaired);
    let manifest = case.manifest();
    assert_eq!(manifest["session_id"], json!("s"));
    let uuids: Vec<&str> = manifest["parts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|part| part["uuid"].as_str().unwrap())
        .collect();
    let own: Vec<&str> = case.entries.iter().map(|entry| entry.uuid.as_str()).collect();
    assert_eq!(uuids, own);
    // As many bytes and numbers, none of them there: nothing is put.
    let case = Case::with_notes().await;
    case.entries.iter().for_each(|entry| case.store.remove(&key().part_key(&entry.name())));
    case.change_manifest(|m| m["session_id"] = json!("other"));
    let before = case.store.objects();
    is_left_wrong(&case, &case.repair(MemoryDisk::new()).await, "manifest_foreign");
    assert_eq!(case.store.objects(), before);
}

#[tokio::test]
async fn a_manifest_is_not_corrected_while_parts_that_it_names_are_missing() {
    let case = Case::with_notes().await;
    case.change_manifest(|m| m["total_uploaded_bytes"] = json!(7));
    case.store.remove(&case.object(1));
    let before = case.store.objects();
    is_left_wrong(&case, &case.repair(MemoryDisk::new()).await, "totals");
    assert_eq!(case.store.objects(), before);
}

#[tokio::test]
async fn many_lost_parts_cost_one_reading_of_the_source_and_are_all_put_back() {
    const PARTS: usize = 150;
    let mut case = Case::new();
    let lines: Vec<String> = (0..PARTS).map(|n| format!("{{\"n\":{n:04}}}\n")).collect();
    let mut manifest = Manifest::new(&key());
    let mut start = 0;
    case.store.objects().keys().for_each(|object| case.store.remove(object));
    for (seq, line) in lines.iter().enumerate() {
        assert!(manifest.name_part(entry(seq as u32, start, line.as_bytes())));
        start += line.len() as u64;
    }
    manifest.rules = Some("1".into());
    case.put_manifest(manifest.to_bytes());
    let totals = Totals { parts: PARTS as u64, bytes: manifest.bytes(), ..Totals::default() };
    (case.record().totals, case.record().next_seq) = (totals, PARTS as u32);
    let files = source_of(&mut case, lines.concat());
    // Not more is told, or held in memory, than a person can read.
    let seen = case.seen().await;
    assert_eq!((seen.findings.len(), seen.wrong.len()), (100, PARTS));
    let told = verified(&key(), true, (0, 0), 0, seen.findings);
    assert_eq!((told.findings.len(), told.more_findings), (100, 50));
    let opened = files.counts().opens;
    let repaired = case.repair_from(MemoryDisk::new(), files.clone()).await;
    nothing_wrong(&repaired);
    assert_eq!(files.counts().opens - opened, 1);
    assert_eq!(case.store.objects().len(), PARTS + 1);
}

#[tokio::test]
async fn nothing_is_put_back_for_somebody_who_is_gone() {
    let (case, files) = with_source().await;
    case.store.remove(&case.object(1));
    let before = case.store.objects();
    case.repair_for(MemoryDisk::new(), files, false).await;
    assert_eq!(case.store.objects(), before);
}

#[tokio::test]
async fn why_a_part_was_not_put_back_is_said_as_it_is() {
    let said = async |case: &Case, files: MemoryFiles| {
        let repaired = case.repair_from(MemoryDisk::new(), files).await;
        let of = repaired.seen.findings.iter().find(|f| f.weight == Weight::Unchecked);
        of.expect("it could not be mended").message.clone()
    };
    let (case, files) = with_source().await;
    case.store.remove(&case.object(1));
    files.fail(SOURCE, Fault::Errno(13));
    assert!(said(&case, files.clone()).await.contains("its source could not be read"));
    files.heal(SOURCE);
    case.change_manifest(|m| drop(m["parts"][1].as_object_mut().unwrap().remove("sha256")));
    assert!(said(&case, files).await.contains("no digest"));
    let (mut case, files) = with_source().await;
    case.store.remove(&case.object(1));
    files.create(SOURCE, LINES.concat().replace("\"n\":2", "\"n\":9"));
    assert!(said(&case, files.clone()).await.contains("has other bytes in its place"));
    case.record().gone = true;
    let told = said(&case, files).await;
    assert!(told.contains("the outbox has it no more; its source is gone"), "{told}");
}

#[tokio::test]
async fn a_part_that_is_damaged_before_it_is_named_is_put_back() {
    let (mut case, files) = with_source().await;
    case.manifest_of(2);
    let entry = case.entries[2].clone();
    case.record().pending.push(PendingPart {
        seq: 2,
        sha256: entry.sha256.unwrap(),
        range: [37, 45],
        bytes: 8,
        redactions: Default::default(),
        cut: false,
        captured_at: String::new(),
        stored_at: Some(String::new()),
        named: false,
    });
    let (totals, object) = (Totals { parts: 2, bytes: 37, ..Totals::default() }, case.object(2));
    case.record().totals = totals;
    case.store.insert(&object, &b"{\"n\":4}\n"[..]);
    let hint = case.expect("part_digest", &object).await.hint.unwrap();
    assert!(hint.contains("--repair` puts it back"), "{hint}");
    nothing_wrong(&case.repair_from(MemoryDisk::new(), files).await);
    case.has_all();
    // One that is not known to be stored is put by the next send.
    case.record().pending[0].stored_at = None;
    case.store.insert(&object, &b"{\"n\":4}\n"[..]);
    assert_eq!(case.found().await, [("unnamed_digest".to_owned(), Weight::Note, object)]);
}

#[tokio::test]
async fn what_waits_to_be_named_is_no_leftover_and_is_not_taken_away() {
    // The other writer's part has its number and begins with its bytes.
    let mut case = Case::with_notes().await;
    let held: &[u8] = b"{\"n\":1}\n";
    let sha256 = digest_of(held);
    let object = key().part_key(&PartName::new(2, &sha256));
    case.store.put(&object, crate::store::Body::Bytes(held.into()), Some("0-8")).await.unwrap();
    case.record().totals = Totals { parts: 2, bytes: 37, ..Totals::default() };
    case.record().pending.push(PendingPart {
        seq: 2,
        sha256,
        range: [0, 8],
        bytes: 8,
        redactions: Default::default(),
        cut: false,
        captured_at: String::new(),
        stored_at: Some(String::new()),
        named: false,
    });
    let note = ("leftover".to_owned(), Weight::Note, object.clone());
    assert_eq!(case.found().await, [note]);
    // Also while another leftover is taken away.
    let other = [LINES[0], LINES[1]].concat();
    let leftover = key().part_key(&PartName::new(1, &digest_of(other.as_bytes())));
    case.store.insert(&leftover, other);
    let repaired = case.repair(MemoryDisk::new()).await;
    assert_eq!(repaired.codes(Weight::Mended), ["leftover"]);
    assert!(case.store.objects().contains_key(&object));
    assert!(!case.store.objects().contains_key(&leftover));
}

#[tokio::test]
async fn a_generation_that_is_another_writers_is_not_written_and_no_number_is_given_twice() {
    let mut case = Case::with_notes().await;
    case.change_manifest(|m| {
        m["total_uploaded_bytes"] = json!(7);
        m["next_seq"] = json!(10);
    });
    let before = case.manifest();
    case.record().superseded = true;
    case.record().totals.bytes = 37;
    is_unmended(&case.repair(MemoryDisk::new()).await);
    assert_eq!(case.manifest(), before);
    // All of it is this one's: then it is mended.
    case.record().totals.bytes = 45;
    nothing_wrong(&case.repair(MemoryDisk::new()).await);
    assert_eq!(case.manifest()["next_seq"], json!(10));
}

fn is_unmended(repaired: &Repaired) {
    assert_eq!(repaired.codes(Weight::Unchecked), ["manifest_unmended"]);
}

#[tokio::test]
async fn a_manifest_that_somebody_wrote_since_is_not_written_over_where_conditions_mean_nothing() {
    let mut case = Case::new();
    let local = MemoryStore::local(Arc::new(MemoryDisk::new()));
    for (object, bytes) in case.store.objects() {
        local.insert(&object, bytes);
    }
    case.store = local;
    case.change_manifest(|m| m["total_uploaded_bytes"] = json!(1));
    let (behind, mut theirs) = (case.store.clone(), case.manifest());
    theirs["reason"] = json!("theirs");
    let disk = MemoryDisk::new();
    // While the old one is kept aside.
    disk.set_hook(Box::new(move |_, _| {
        behind.insert(&key().manifest_key(), theirs.to_string());
        crate::durable::memory::DiskFault::None
    }));
    is_unmended(&case.repair(disk).await);
    assert_eq!(case.manifest()["reason"], json!("theirs"));
}

#[tokio::test]
async fn a_leftover_that_was_not_compared_is_not_said_to_be_only_there() {
    let case = Case::new();
    case.change_manifest(|m| {
        m["parts"][1].as_object_mut().unwrap().remove("cursor_range");
    });
    let held = [LINES[0], LINES[1]].concat();
    let leftover = key().part_key(&PartName::new(0, &digest_of(held.as_bytes())));
    case.store.insert(&leftover, held);
    let repaired = case.repair(MemoryDisk::new()).await;
    let told = repaired.seen.findings.iter().find(|f| f.weight == Weight::Unchecked).unwrap();
    assert!(told.message.contains("was not compared"), "{told:?}");
}

#[tokio::test]
async fn a_manifest_that_is_too_large_is_neither_read_nor_replaced() {
    let case = Case::new();
    let size = 64 * 1024 * 1024 + 1;
    case.put_manifest(vec![b' '; size]);
    let repaired = case.repair(MemoryDisk::new()).await;
    assert_eq!(repaired.codes(Weight::Wrong), ["manifest_large"]);
    assert_eq!(case.store.objects()[&key().manifest_key()].len(), size);
    assert_eq!(repaired.disk.list("/state/set-aside".as_ref()).unwrap(), []);
}
