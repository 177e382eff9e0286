//! Cases that a defect once needed, played step by step in the model's world: too rare to be left to chance.
//!
//! Each says what is to happen; what has to be true in the end is the oracle's.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Play, oracle, remote};
use crate::api::Progress;
use crate::durable::Disk;
use crate::mirror::handle::Mirror;
use crate::mirror::{Automatic, Numbers};
use crate::part::{Manifest, SessionKey, digest_of};
use crate::state::PendingPart;
use crate::store::memory::{MemoryStore, OpKind, StoreFault};
use crate::store::{Conditions, ErrorKind};

/// Long enough for scans, back-offs and retries.
const A_WHILE: Duration = Duration::from_secs(200);

fn played(case: impl AsyncFnOnce(&mut Play) -> Result<(), String>) {
    remote::play(Duration::from_secs(1), async |play, _| case(play).await.unwrap());
}

fn store(play: &Play) -> MemoryStore {
    play.world.memory_store.clone().expect("the world has one")
}

/// Every request fails, or none, and without any effect.
fn is_away(play: &Play, away: bool) {
    let fault =
        if away { StoreFault::FailBefore(ErrorKind::Unavailable) } else { StoreFault::None };
    store(play).set_hook(Box::new(move |_| fault));
}

/// The parts of all sessions that wait in the outbox.
fn waiting(play: &Play) -> Vec<String> {
    let outbox = std::path::Path::new(super::STATE).join("outbox");
    let files = play.world.disk.list(&outbox).unwrap_or_default();
    files.into_iter().map(|(path, _)| path.display().to_string()).collect()
}

/// The names of the parts that are stored.
fn parts(play: &Play) -> Vec<String> {
    let objects = play.world.objects().into_keys();
    objects.filter(|key| !key.ends_with("meta.json")).collect()
}

#[test]
fn t31_orphans_of_a_lost_state_survive_an_intact_restart() {
    played(async |play| {
        let number = play.world.new_source();
        play.run(A_WHILE).await?;
        assert_eq!(parts(play).len(), 1);
        is_away(play, true);
        play.world.grow(number);
        play.run(A_WHILE).await?;
        let orphans = waiting(play);
        assert_eq!(orphans.len(), 1, "{orphans:?}");
        // Now the outbox has the only copy, and no state knows it.
        play.bury();
        play.world.delete(number);
        play.lose_state(false);
        // Each start finds the state that the one before made, whole and ignorant.
        for _ in 0..3 {
            play.run(A_WHILE).await?;
            assert_eq!(waiting(play), orphans);
            play.bury();
        }
        is_away(play, false);
        play.run(A_WHILE).await?;
        assert_eq!(parts(play).len(), 2);
        assert_eq!(waiting(play), Vec::<String>::new());
        let held = &play.world.sources[number].held;
        let stored: Vec<u8> = play
            .world
            .objects()
            .into_iter()
            .filter(|(key, _)| !key.ends_with("meta.json"))
            .flat_map(|(_, bytes)| bytes)
            .collect();
        assert_eq!(Some(&stored), held.last());
        oracle::check(&play.world, None)
    });
}

/// A session of three parts, whose compaction meets a store that fails as `fault` says whenever the merged part is put, so many
/// times.
async fn compact_without_merged_part(
    play: &mut Play,
    fault: StoreFault,
    times: u32,
) -> Result<(), String> {
    let number = play.world.new_source();
    for _ in 0..2 {
        play.run(A_WHILE).await?;
        play.world.grow(number);
    }
    play.run(A_WHILE).await?;
    let inputs = parts(play);
    assert_eq!(inputs.len(), 3, "{inputs:?}");
    let failed = Arc::new(Mutex::new(0));
    let (count, known) = (failed.clone(), inputs.clone());
    store(play).set_hook(Box::new(move |op| {
        let first = op.kind == OpKind::Put && op.key.contains("/part-00000-");
        let merged = first && !known.contains(&op.key);
        let mut count = count.lock().unwrap();
        if !merged || *count == times {
            return StoreFault::None;
        }
        *count += 1;
        fault
    }));
    let compact = async |mirror: Mirror| {
        let mut progress = mirror.compact("s0".into(), 0).await;
        let mut last = None;
        while let Some(news) = progress.recv().await {
            last = Some(news);
        }
        last
    };
    let answer = play.ask(Duration::from_secs(1), compact).await?;
    assert!(matches!(answer, None | Some(Some(Progress::Failed { .. }))), "{answer:?}");
    assert!(*failed.lock().unwrap() > 0, "the merged part was never put");
    // Whatever was stored of it, no reader may miss a record now.
    for input in &inputs {
        assert!(parts(play).contains(input), "{input} is gone before the merged part is named");
    }
    // The session goes on meanwhile, and its manifest with it.
    play.world.grow(number);
    play.run(A_WHILE).await?;
    let flush = async |mirror: Mirror| mirror.flush(None).await;
    let flushed = play.ask(A_WHILE, flush).await?;
    assert!(matches!(flushed, Some(Ok(_))), "{flushed:?}");
    Ok(())
}

#[test]
fn t43_a_merged_part_whose_put_fails_is_put_again_and_costs_no_input_before() {
    for fault in [
        StoreFault::FailBefore(ErrorKind::Unavailable),
        StoreFault::FailAfter(ErrorKind::Unavailable),
    ] {
        played(async |play| {
            compact_without_merged_part(play, fault, 3).await?;
            assert_eq!(parts(play).len(), 2, "merged, and what came after: {:?}", parts(play));
            oracle::check(&play.world, None)
        });
    }
}

#[test]
fn a_compaction_whose_merged_part_is_never_taken_leaves_all_inputs_and_the_manifest() {
    played(async |play| {
        compact_without_merged_part(play, StoreFault::FailBefore(ErrorKind::Denied), u32::MAX)
            .await?;
        assert_eq!(parts(play).len(), 4, "{:?}", parts(play));
        // Nor does a kill make more of it.
        play.bury();
        play.run(A_WHILE).await?;
        assert_eq!(parts(play).len(), 4, "{:?}", parts(play));
        oracle::check(&play.world, None)
    });
}

#[test]
fn t34_a_clock_that_jumps_loses_nothing_and_starts_no_generation() {
    let year = jiff::SignedDuration::from_hours(24 * 365);
    for jumps in [[-year, year * 2], [year * 10, -year * 11]] {
        played(async |play| {
            let number = play.world.new_source();
            play.run(A_WHILE).await?;
            for by in jumps {
                play.world.set_time_of_day(by);
                play.world.grow(number);
                play.run(A_WHILE).await?;
                // Asleep in the middle of it, and no process is the same after it.
                play.world.grow(number);
                play.world.set_time_of_day(-by / 2);
                play.bury();
                play.run(A_WHILE).await?;
            }
            let flushed =
                play.ask(A_WHILE, async |mirror: Mirror| mirror.flush(None).await).await?;
            assert!(matches!(flushed, Some(Ok(_))), "{flushed:?}");
            let sessions: BTreeSet<String> = parts(play)
                .iter()
                .filter_map(|key| key.rsplit_once('/').map(|(session, _)| session.to_owned()))
                .collect();
            assert_eq!(sessions.len(), 1, "{sessions:?}");
            assert_eq!(parts(play).len(), 5, "{:?}", parts(play));
            oracle::check(&play.world, None)
        });
    }
}

/// Another recorder of the same file stores and names these as parts of one record each, just before the manifest is read for
/// the `asked`th time from now on.
fn other_names_meanwhile(play: &Play, records: [Vec<u8>; 2], asked: u32) {
    let store = store(play);
    let key: SessionKey = "codex/s0".parse().unwrap();
    let mut manifest = Manifest::new(&key);
    let (mut objects, mut start) = (Vec::new(), 0);
    for (seq, bytes) in (0..).zip(records) {
        let end = start + bytes.len() as u64;
        let part = PendingPart {
            seq,
            sha256: digest_of(&bytes),
            range: [start, end],
            bytes: bytes.len() as u64,
            redactions: Default::default(),
            cut: false,
            captured_at: "1970-01-01T00:00:00Z".into(),
            stored_at: None,
            named: false,
        };
        assert!(manifest.name_part(part.entry()));
        objects.push((key.part_key(&part.name()), bytes));
        start = end;
    }
    let (there, mut gets) = (store.clone(), 0);
    store.set_hook(Box::new(move |op| {
        gets += u32::from(op.kind == OpKind::Get && op.key == key.manifest_key());
        if gets == asked {
            gets += 1;
            objects.drain(..).for_each(|(key, bytes)| there.insert(&key, bytes));
            there.insert(&key.manifest_key(), manifest.to_bytes());
        }
        StoreFault::None
    }));
}

#[test]
fn t31_what_another_recorder_names_while_a_lost_state_is_rebuilt_is_not_what_ours_goes_on_behind() {
    played(async |play| {
        let number = play.world.new_source();
        let named = "codex/s0".parse::<SessionKey>().unwrap().manifest_key();
        store(play).set_hook(Box::new(move |op| match op.key == named {
            true => StoreFault::FailBefore(ErrorKind::Unavailable),
            false => StoreFault::None,
        }));
        play.run(A_WHILE).await?;
        assert_eq!(parts(play).len(), 1, "stored, and not named");
        play.bury();
        play.lose_state(false);
        let first = play.world.sources[number].held[0].clone();
        play.world.grow(number);
        let second = play.world.sources[number].held[1][first.len()..].to_vec();
        play.world.grow(number);
        other_names_meanwhile(play, [first, second], 2);
        play.run(A_WHILE).await?;
        // Both have a part 1; ours came second, and moved to a generation that has all of the session.
        let mut ours = Vec::new();
        for (key, bytes) in play.world.objects() {
            if key.starts_with("sessions/codex/s0~2/part-") {
                ours.extend(bytes);
            }
        }
        assert_eq!(Some(&ours), play.world.sources[number].held.last(), "{:?}", parts(play));
        assert_eq!(parts(play).iter().filter(|key| key.contains("/s0~")).count(), 2);
        Ok(())
    });
}

/// A session that is written to again and again, in a world whose numbers end soon.
async fn many_parts(play: &mut Play, parts: usize) -> Result<Vec<u8>, String> {
    play.world.numbers = Numbers { turn: 40, last: 80 };
    let number = play.world.new_source();
    for _ in 0..parts {
        play.run(Duration::from_secs(2)).await?;
        play.world.grow(number);
    }
    play.run(A_WHILE * 3).await?;
    Ok(play.world.sources[number].held.last().expect("it grew").clone())
}

/// What the parts of a session hold by the order of their names, and the highest of their numbers.
fn listed(play: &Play, id: &str) -> (Vec<u8>, u32) {
    let prefix = format!("sessions/codex/{id}/part-");
    let objects = play.world.objects().into_iter();
    let own: Vec<_> = objects.filter(|(key, _)| key.starts_with(&prefix)).collect();
    let numbers = own.iter().map(|(key, _)| key[prefix.len()..][..5].parse().unwrap());
    (own.iter().flat_map(|(_, bytes)| bytes.clone()).collect(), numbers.max().unwrap_or(0))
}

#[test]
fn t45_near_the_end_of_its_numbers_a_session_is_merged_and_they_begin_again() {
    for kind in [Some(Conditions::Honoured), Some(Conditions::Ignored), None] {
        played(async |play| {
            play.world.memory_store = Some(match kind {
                Some(conditions) => store(play).with_conditions(conditions),
                None => MemoryStore::local(Arc::new(play.world.disk.clone())),
            });
            let held = many_parts(play, 300).await?;
            let (stored, highest) = listed(play, "s0");
            assert!(stored == held, "{kind:?}: {} of {} bytes", stored.len(), held.len());
            assert!(highest < 80, "{kind:?}: {highest}");
            assert!(listed(play, "s0~2").0.is_empty(), "{kind:?}: a generation began");
            // Nor does a lost state make more of it.
            play.bury();
            play.lose_state(false);
            play.world.grow(0);
            play.run(A_WHILE).await?;
            oracle::check(&play.world, None)
        });
    }
}

#[test]
fn t45_where_nothing_can_be_deleted_or_merged_a_new_generation_says_why() {
    for (refuses, why) in [(true, "its store refuses to delete"), (false, "compaction is off")] {
        played(async |play| {
            if refuses {
                store(play).set_hook(Box::new(|op| match op.kind {
                    OpKind::Delete => StoreFault::FailBefore(ErrorKind::Denied),
                    _ => StoreFault::None,
                }));
            } else {
                play.world.compaction = Automatic::Off;
            }
            let held = many_parts(play, 60).await?;
            assert!(held.starts_with(&listed(play, "s0").0));
            assert_eq!(listed(play, "s0~2").0, held);
            let manifest = play.world.objects()["sessions/codex/s0~2/meta.json"].clone();
            let manifest = String::from_utf8(manifest).unwrap();
            assert!(manifest.contains(why), "{manifest}");
            Ok(())
        });
    }
}

#[test]
fn t27_t45_a_kill_at_any_step_of_a_turn_costs_nothing() {
    for steps in 0..40 {
        played(async |play| {
            play.world.numbers = Numbers { turn: 6, last: 80 };
            let number = play.world.new_source();
            for _ in 0..5 {
                play.run(Duration::from_secs(2)).await?;
                play.world.grow(number);
            }
            play.world.faults.lock().unwrap().dies_in = Some(8 + steps * 2);
            play.run(A_WHILE).await?;
            for _ in 0..4 {
                play.world.grow(number);
                play.run(A_WHILE).await?;
            }
            assert!(listed(play, "s0~2").0.is_empty(), "{steps}");
            let (stored, _) = listed(play, "s0");
            assert!(Some(&stored) == play.world.sources[number].held.last(), "{steps}");
            oracle::check(&play.world, None)
        });
    }
}
