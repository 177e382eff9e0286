//! A ledger against kills at every step: what counts is what the cursor says.

use super::*;
use crate::durable::memory::MemoryDisk;

fn key() -> SessionKey {
    SessionKey::new("hermes", "20260102_030405_abcdef")
}

fn captured(byte: u8) -> Mark {
    Mark::Captured([byte; DIGEST_BYTES])
}

#[test]
fn what_was_added_counts_from_the_position_that_was_committed() {
    let (disk, ledgers) = (MemoryDisk::new(), Ledgers::new(Path::new("/state")));
    let mut ledger = ledgers.read(&disk, &key(), 0).unwrap().unwrap();
    ledgers.add(&disk, &key(), &mut ledger, &[(1, captured(1)), (2, captured(2))], 100).unwrap();
    let path =
        ledgers.add(&disk, &key(), &mut ledger, &[(2, captured(3)), (1, Mark::Gone)], 150).unwrap();
    disk.sync(&[path.unwrap()]).unwrap();

    let at = |position| ledgers.read(&disk, &key(), position).unwrap().map(|l| l.marks);
    assert_eq!(at(100), Some([(1, captured(1)), (2, captured(2))].into()));
    assert_eq!(at(150), Some([(1, Mark::Gone), (2, captured(3))].into()));
    assert_eq!(at(120), None, "a position that no capture ended at is another session's");
    assert_eq!(at(0), Some(BTreeMap::new()), "nothing was ever committed");
}

#[test]
fn a_capture_that_was_never_committed_leaves_no_trace_in_the_next() {
    let (disk, ledgers) = (MemoryDisk::new(), Ledgers::new(Path::new("/state")));
    let mut ledger = ledgers.read(&disk, &key(), 0).unwrap().unwrap();
    ledgers.add(&disk, &key(), &mut ledger, &[(1, captured(1))], 100).unwrap();
    ledgers.add(&disk, &key(), &mut ledger, &[(2, captured(2))], 170).unwrap();

    let mut again = ledgers.read(&disk, &key(), 100).unwrap().unwrap();
    ledgers.add(&disk, &key(), &mut again, &[(3, captured(3))], 180).unwrap();
    let read = ledgers.read(&disk, &key(), 180).unwrap().unwrap();
    assert_eq!(read.marks, [(1, captured(1)), (3, captured(3))].into());
    let before = ledgers.read(&disk, &key(), 100).unwrap().unwrap();
    assert_eq!(before.marks, [(1, captured(1))].into(), "and that one may not be committed either");
}

#[test]
fn a_row_that_changes_often_does_not_make_its_ledger_grow_for_ever() {
    let (disk, ledgers) = (MemoryDisk::new(), Ledgers::new(Path::new("/state")));
    let mut ledger = ledgers.read(&disk, &key(), 0).unwrap().unwrap();
    for position in 1..5000 {
        ledgers
            .add(&disk, &key(), &mut ledger, &[(1, captured(position as u8))], position)
            .unwrap();
    }
    let size = disk.size(&ledgers.path(&key())).unwrap().unwrap();
    assert!(size < 40 * 300, "{size} bytes");
    assert_eq!(ledgers.read(&disk, &key(), 4999).unwrap().unwrap(), ledger);
}

#[test]
fn a_torn_or_damaged_line_is_no_row() {
    let digest = "ab".repeat(DIGEST_BYTES);
    let intact = format!("rows 1 5\n5 1 {digest}\n9 2 -\n");
    assert_eq!(parse(intact.as_bytes(), 9).unwrap().marks.len(), 2);
    assert_eq!(parse(&intact.as_bytes()[..intact.len() - 1], 9), None);
    for broken in
        ["", "rows 2 0\n", "rows 1 x\n", "rows 1 5\n5 1 zz\n9 2 -\n", "rows 1 5\n5 1 - -\n9 2 -\n"]
    {
        assert_eq!(parse(broken.as_bytes(), 9), None, "{broken:?}");
    }
}

#[test]
fn ledgers_of_sessions_that_are_not_followed_are_removed() {
    let (disk, ledgers) = (MemoryDisk::new(), Ledgers::new(Path::new("/state")));
    let ledger = Ledger::of([(1, Mark::Unknown)].into(), 7);
    ledgers.replace(&disk, &key(), &ledger).unwrap();
    assert_eq!(ledgers.read(&disk, &key(), 7).unwrap().unwrap().marks, ledger.marks);
    let (state, _) = crate::state::StateFile::open(
        std::sync::Arc::new(disk.clone()),
        Path::new("/state"),
        "file:///bucket",
    )
    .unwrap();
    ledgers.sweep(&disk, state.state()).unwrap();
    assert_eq!(ledgers.read(&disk, &key(), 7).unwrap(), None);
}
