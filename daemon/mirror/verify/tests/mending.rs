//! Repairs, on a store that keeps notes and honours conditions.

use super::*;
use crate::durable::memory::DiskFault;
use crate::durable::{Blocking, Disk};
use crate::ledger::Ledgers;
use crate::mirror::capture::Tools;
use crate::mirror::find::RootsFinder;
use crate::outbox::Outbox;
use crate::redact::Redactor;
use crate::source::database::Databases;
use crate::source::memory::MemoryFiles;
use crate::store::Body;

/// What a repair came to.
pub(super) struct Repaired {
    pub(super) seen: Seen,
    pub(super) totals: Option<Totals>,
    pub(super) disk: MemoryDisk,
}

impl Repaired {
    pub(super) fn codes(&self, weight: Weight) -> Vec<&str> {
        let of = self.seen.findings.iter().filter(|f| f.weight == weight);
        of.map(|f| f.code.as_str()).collect()
    }
}

impl Case {
    /// The same session, its parts put with their notes.
    pub(super) async fn with_notes() -> Case {
        let case = Case::new();
        for (at, entry) in case.entries.iter().enumerate() {
            let note = entry.cursor_range.map(crate::mirror::manifest::range_note);
            let body = Body::Bytes(LINES[at].into());
            case.store.put(&case.object(at), body, note.as_deref()).await.unwrap();
        }
        case
    }

    pub(super) async fn repair(&self, disk: MemoryDisk) -> Repaired {
        self.repair_from(disk, MemoryFiles::new()).await
    }

    /// With these files for its source.
    pub(super) async fn repair_from(&self, disk: MemoryDisk, files: MemoryFiles) -> Repaired {
        self.repair_for(disk, files, true).await
    }

    /// For somebody who waits for the answer, or does not.
    pub(super) async fn repair_for(
        &self,
        disk: MemoryDisk,
        files: MemoryFiles,
        waits: bool,
    ) -> Repaired {
        let files = Arc::new(files);
        let store: Arc<dyn Store> = Arc::new(self.store.with_disk(Arc::new(disk.clone())));
        let databases = Arc::new(Databases::new("/nowhere/copies".into(), 0, []));
        let tools = Tools {
            files,
            disk: Arc::new(disk.clone()),
            redactor: Arc::new(Redactor::standard()),
            outbox: Outbox::new("/state".as_ref()),
            finder: Arc::new(RootsFinder::new(databases.clone(), Vec::new(), Vec::new(), None)),
            databases,
            ledgers: Ledgers::new("/state".as_ref()),
        };
        let adopter = Adopter {
            store: store.clone(),
            tools,
            blocking: Blocking::Inline,
            now: "2026-01-02T03:04:06Z".into(),
        };
        let (events, listening) = mpsc::channel(1);
        let _listening = waits.then_some(listening);
        let mut meter =
            Meter { events, done_sessions: 0, total_sessions: 1, done_bytes: Default::default() };
        let subject =
            Subject { store, key: key(), record: self.record.clone(), compacting: self.compacting };
        let mut contents = Contents::new();
        let seen = subject.examine(&mut contents, &mut meter).await;
        let mender = Mender { adopter, aside: "/state/set-aside".into() };
        let (seen, totals) = mender.mend(&subject, seen, &mut contents, &mut meter).await;
        Repaired { seen, totals, disk }
    }
}

pub(super) fn nothing_wrong(repaired: &Repaired) {
    assert_eq!(repaired.codes(Weight::Wrong), Vec::<&str>::new(), "{:?}", repaired.seen.findings);
    assert_eq!(repaired.codes(Weight::Unchecked), Vec::<&str>::new());
}

#[tokio::test]
async fn a_lost_manifest_is_rebuilt_from_the_notes_of_its_parts() {
    let case = Case::with_notes().await;
    let before = case.manifest();
    case.store.remove(&key().manifest_key());
    let repaired = case.repair(MemoryDisk::new()).await;
    nothing_wrong(&repaired);
    assert_eq!(repaired.codes(Weight::Mended), ["manifest_rebuilt"]);
    let after = case.manifest();
    for field in ["next_seq", "total_source_bytes", "total_uploaded_bytes", "session_id"] {
        assert_eq!(after[field], before[field], "{field}");
    }
    for (at, part) in after["parts"].as_array().unwrap().iter().enumerate() {
        for field in ["seq", "uuid", "cursor_range", "source_bytes", "uploaded_bytes", "sha256"] {
            assert_eq!(part[field], before["parts"][at][field], "{at} {field}");
        }
    }
    // What was removed is counted by what stands for it.
    assert_eq!(after["redaction_counts"], json!({"jwt": 1}));
    assert_eq!(repaired.totals.map(|totals| totals.bytes), Some(45));
}

#[tokio::test]
async fn a_damaged_manifest_is_kept_before_it_is_replaced_and_stays_if_it_cannot_be_kept() {
    let case = Case::with_notes().await;
    case.put_manifest(&b"{\"torn"[..]);
    let disk = MemoryDisk::new();
    disk.set_hook(Box::new(|_, _| DiskFault::Error(std::io::ErrorKind::StorageFull)));
    let repaired = case.repair(disk).await;
    assert_eq!(repaired.codes(Weight::Wrong), ["manifest_invalid"]);
    assert_eq!(&case.store.objects()[&key().manifest_key()][..], b"{\"torn");

    let repaired = case.repair(MemoryDisk::new()).await;
    nothing_wrong(&repaired);
    let name = format!("/state/set-aside/codex/s/meta-{}.json", &digest_of(b"{\"torn")[..8]);
    assert_eq!(repaired.disk.read(name.as_ref()).unwrap(), b"{\"torn");
}

#[tokio::test]
async fn a_manifest_is_not_rebuilt_where_its_parts_cannot_be_told_apart() {
    // Inputs and merged part, no notes, no source: the sum says that this is too much.
    let case = Case::new();
    let whole = LINES.concat();
    let merged = key().part_key(&PartName::new(0, &digest_of(whole.as_bytes())));
    case.store.insert(&merged, whole.clone());
    case.store.remove(&key().manifest_key());
    let repaired = case.repair(MemoryDisk::new()).await;
    assert!(repaired.codes(Weight::Wrong).contains(&"manifest_missing"));
    assert_eq!(repaired.codes(Weight::Unchecked), ["manifest_unmended"]);
    case.store.remove(&case.object(0));
    let repaired = case.repair(MemoryDisk::new()).await;
    assert_eq!(repaired.codes(Weight::Unchecked), ["manifest_unmended"]);
    assert!(!case.store.objects().contains_key(&key().manifest_key()));
    // A part is missing, and no note tells where it was.
    case.store.remove(&merged);
    let repaired = case.repair(MemoryDisk::new()).await;
    assert_eq!(repaired.codes(Weight::Unchecked), ["manifest_unmended"]);
    assert!(!case.store.objects().contains_key(&key().manifest_key()));
}

#[tokio::test]
async fn parts_without_notes_or_source_follow_each_other_as_long_as_nothing_was_removed_from_them()
{
    let case = Case::new();
    case.store.remove(&key().manifest_key());
    let repaired = case.repair(MemoryDisk::new()).await;
    nothing_wrong(&repaired);
    let parts = case.manifest()["parts"].clone();
    assert_eq!(parts[0]["cursor_range"], json!([0, 8]));
    // How long the secret was is not known any more, nor is what comes behind it.
    assert_eq!(
        (&parts[1]["cursor_range"], &parts[2]["cursor_range"]),
        (&Value::Null, &Value::Null)
    );
}

#[tokio::test]
async fn a_missing_part_is_put_back_from_the_outbox_with_its_note() {
    let case = Case::with_notes().await;
    let entry = &case.entries[1];
    let file = format!("/state/outbox/codex/s/8-37.{}", entry.name());
    let disk = MemoryDisk::new();
    disk.create_dirs("/state/outbox/codex/s".as_ref()).unwrap();
    disk.replace(file.as_ref(), LINES[1].as_bytes()).unwrap();
    case.store.remove(&case.object(1));
    let repaired = case.repair(disk).await;
    nothing_wrong(&repaired);
    assert_eq!(repaired.codes(Weight::Mended), ["part_missing"]);
    assert_eq!(&case.store.objects()[&case.object(1)][..], LINES[1].as_bytes());
    assert_eq!(case.store.note(&case.object(1)).as_deref(), Some("8-37"));
    assert_eq!(repaired.disk.read(file.as_ref()).unwrap(), LINES[1].as_bytes());
    // What the outbox has is not these bytes: nothing is put.
    case.store.remove(&case.object(1));
    repaired.disk.replace(file.as_ref(), b"torn").unwrap();
    let repaired = case.repair(repaired.disk).await;
    assert_eq!(repaired.codes(Weight::Wrong), ["part_missing"]);
    assert!(!case.store.objects().contains_key(&case.object(1)));
}

#[tokio::test]
async fn leftovers_go_only_if_sound_named_parts_hold_them() {
    let case = Case::with_notes().await;
    let held = [LINES[0], LINES[1]].concat();
    let leftover = key().part_key(&PartName::new(0, &digest_of(held.as_bytes())));
    case.store.insert(&leftover, held.clone());
    // The part that holds its second half is damaged: it may be the only copy.
    case.store.insert(&case.object(1), &b"damaged"[..]);
    let repaired = case.repair(MemoryDisk::new()).await;
    assert!(repaired.codes(Weight::Wrong).contains(&"leftover"));
    assert!(case.store.objects().contains_key(&leftover));
    case.store.insert(&case.object(1), LINES[1]);
    let repaired = case.repair(MemoryDisk::new()).await;
    nothing_wrong(&repaired);
    assert_eq!(repaired.codes(Weight::Mended), ["leftover"]);
    assert!(!case.store.objects().contains_key(&leftover));
    // A session that is compacted, or is somebody else's, is left alone.
    case.store.insert(&leftover, held);
    let case = Case { compacting: true, ..case };
    case.repair(MemoryDisk::new()).await;
    let case = Case { compacting: false, record: None, ..case };
    case.repair(MemoryDisk::new()).await;
    assert!(case.store.objects().contains_key(&leftover));
}

#[tokio::test]
async fn another_writer_who_comes_between_is_not_written_over() {
    let case = Case::with_notes().await;
    case.change_manifest(|m| m["total_uploaded_bytes"] = json!(1));
    let (behind, manifest) = (case.store.clone(), case.manifest());
    let theirs = case.store.on(Arc::new(MemoryDisk::new()));
    let mut done = false;
    theirs.set_hook(Box::new(move |op| {
        if op.kind == OpKind::Put && op.key == key().manifest_key() && !done {
            done = true;
            let mut next = manifest.clone();
            next["reason"] = json!("theirs");
            behind.insert(&key().manifest_key(), next.to_string());
        }
        StoreFault::None
    }));
    let case = Case { store: theirs, ..case };
    let repaired = case.repair(MemoryDisk::new()).await;
    assert_eq!(case.manifest()["reason"], json!("theirs"));
    assert_eq!(repaired.codes(Weight::Wrong), ["totals"]);
    // That somebody else wrote is said, and no store is called away.
    assert_eq!(repaired.codes(Weight::Unchecked), ["manifest_unmended"]);
    assert_eq!(repaired.totals, None);
}

#[tokio::test]
async fn damage_is_not_named_anew_when_its_manifest_is_lost() {
    let case = Case::with_notes().await;
    case.store.remove(&key().manifest_key());
    // As long as it should be, and not what its name says.
    let forged = LINES[1].replace("\"n\":2", "\"n\":9");
    case.store.put(&case.object(1), Body::Bytes(forged.into()), Some("8-37")).await.unwrap();
    let repaired = case.repair(MemoryDisk::new()).await;
    assert_eq!(repaired.codes(Weight::Unchecked), ["manifest_unmended"]);
    assert_eq!(repaired.codes(Weight::Wrong), ["manifest_missing", "part_digest"]);
    assert!(!case.store.objects().contains_key(&key().manifest_key()));
}
