//! What a remote bucket is asked, counted: requests cost money, and a store that refuses something is respected.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Mirror, Play, remote};
use crate::api::Progress;
use crate::store::Conditions;
use crate::store::ErrorKind;
use crate::store::memory::{MemoryStore, Op, OpKind, StoreFault};

/// Live sessions of the acceptance test.
const SESSIONS: usize = 10;

/// How often each is written to, and looked at.
const INTERVAL: Duration = Duration::from_secs(5);

/// Requests since they were last taken.
#[derive(Clone, Default)]
struct Requests(Arc<Mutex<Vec<Op>>>);

impl Requests {
    fn of(store: &MemoryStore) -> Requests {
        let requests = Requests::default();
        let seen = requests.clone();
        store.set_hook(Box::new(move |op| {
            seen.0.lock().unwrap().push(op.clone());
            StoreFault::None
        }));
        requests
    }

    fn take(&self) -> Vec<Op> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

fn play(test: impl AsyncFnOnce(&mut Play, MemoryStore)) {
    remote::play(INTERVAL, test);
}

/// On a store that takes every put, whatever its condition.
fn play_without_conditions(test: impl AsyncFnOnce(&mut Play, MemoryStore)) {
    play(async |play, store| {
        let store = store.with_conditions(Conditions::Ignored);
        play.world.memory_store = Some(store.clone());
        test(play, store).await;
    });
}

async fn live(play: &mut Play, sessions: usize, intervals: u32) {
    remote::live(play, INTERVAL, sessions, intervals).await;
}

#[test]
fn ten_live_sessions_cost_one_request_per_part_and_idle_ones_none() {
    play(async |play, store| {
        let requests = Requests::of(&store);
        live(play, SESSIONS, 120).await; // Ten minutes.
        let asked = requests.take();
        let is_part = |op: &&Op| op.kind == OpKind::Put && op.key.contains("/part-");
        let parts = asked.iter().filter(is_part).count();
        assert!(parts >= SESSIONS * 110, "{parts} parts");
        let each = asked.len() as f64 / parts as f64;
        assert!(each <= 1.15, "{} requests for {parts} parts: {each:.3}", asked.len());
        println!("{} requests for {parts} parts: {each:.3} each", asked.len());
        play.run(Duration::from_secs(600)).await.unwrap();
        requests.take();
        play.run(Duration::from_secs(3600)).await.unwrap();
        assert_eq!(requests.take(), [], "an idle hour");
    });
}

#[test]
fn t31_a_start_with_an_intact_state_asks_the_store_nothing() {
    play(async |play, store| {
        live(play, 300, 2).await;
        play.run(Duration::from_secs(600)).await.unwrap();
        play.drain().await.unwrap();
        let requests = Requests::of(&store);
        play.run(Duration::from_secs(600)).await.unwrap();
        assert_eq!(requests.take(), []);
    });
}

#[test]
fn where_deleting_is_refused_compaction_is_off_and_says_so() {
    play(async |play, store| {
        live(play, 1, 30).await;
        store.set_hook(Box::new(|op| match op.kind {
            OpKind::Delete => StoreFault::FailBefore(ErrorKind::Denied),
            _ => StoreFault::None,
        }));
        let before = remote::parts(&store);
        for _ in 0..2 {
            let last = remote::compact(play, Duration::from_secs(60)).await;
            assert!(matches!(last, Some(Progress::Failed { .. })), "{last:?}");
        }
        assert_eq!(before, remote::parts(&store));
        let status = play.ask(Duration::from_secs(5), async |m: Mirror| m.status().await).await;
        let status = status.unwrap().unwrap().unwrap();
        assert_eq!(status.remote.unwrap().deletes, Some(false));
        assert!(
            status.problems.iter().any(|p| p.code == "compaction_off"),
            "{:?}",
            status.problems
        );
    });
}

#[test]
fn a_compaction_takes_in_what_no_manifest_names_yet() {
    play(async |play, store| {
        live(play, 1, 4).await;
        let unnamed = remote::parts(&store).len();
        assert!(unnamed >= 3, "{unnamed} parts");
        assert!(!store.objects().contains_key("sessions/codex/s0/meta.json"), "not named yet");
        remote::compact(play, Duration::from_secs(60)).await;
        let left = remote::parts(&store).len();
        assert_eq!(left, 1, "{:?}", store.objects().keys());
    });
}

fn parts_of(store: &MemoryStore, number: usize) -> usize {
    let prefix = format!("sessions/codex/s{number}/part-");
    store.objects().keys().filter(|key| key.starts_with(&prefix)).count()
}

async fn status(play: &mut Play) -> crate::api::Status {
    let status = play.ask(Duration::from_secs(5), async |m: Mirror| m.status().await).await;
    status.unwrap().unwrap().unwrap()
}

#[test]
fn idle_sessions_are_compacted_for_two_requests_a_part_and_then_cost_nothing() {
    play(async |play, store| {
        live(play, SESSIONS, 120).await;
        let parts: usize = (0..SESSIONS).map(|number| parts_of(&store, number)).sum();
        let requests = Requests::of(&store);
        play.run(Duration::from_secs(600)).await.unwrap();
        let asked = requests.take();
        let each = asked.len() as f64 / parts as f64;
        let of = |kind| asked.iter().filter(|op| op.kind == kind).count();
        println!(
            "{} requests to compact {parts} parts ({} gets, {} deletes, {} puts): {each:.2} each",
            asked.len(),
            of(OpKind::Get),
            of(OpKind::Delete),
            of(OpKind::Put)
        );
        for number in 0..SESSIONS {
            let left = parts_of(&store, number);
            assert!(left <= 16, "{left} parts of session {number}");
        }
        assert!(each <= 2.3, "{} requests for {parts} parts", asked.len());
        assert!(of(OpKind::Put) <= 5 * SESSIONS, "{} puts", of(OpKind::Put));
        play.run(Duration::from_secs(3600)).await.unwrap();
        assert_eq!(requests.take(), [], "an idle hour");
    });
}

#[test]
fn a_session_that_is_never_idle_is_compacted_when_it_has_hundreds_of_parts() {
    play(async |play, store| {
        let requests = Requests::of(&store);
        let mut most = 0;
        for _ in 0..24 {
            live(play, 1, 50).await;
            most = most.max(parts_of(&store, 0));
        }
        let asked = requests.take();
        let is_new = |op: &&Op| op.kind == OpKind::Put && op.key.contains("/part-");
        let stored = asked.iter().filter(is_new).count();
        let each = asked.len() as f64 / stored as f64;
        println!(
            "{stored} parts in 100 minutes: at most {most} at a time, {each:.2} requests each"
        );
        assert!(most < 400, "{most} parts");
        assert!(parts_of(&store, 0) < 350, "{} parts in the end", parts_of(&store, 0));
        assert!(each <= 3.3, "{each} requests for each part");
    });
}

#[test]
fn in_a_local_store_a_live_session_has_few_parts_at_any_time() {
    play(async |play, _| {
        let store = MemoryStore::local(Arc::new(play.world.disk.clone()));
        play.world.memory_store = Some(store.clone());
        for _ in 0..60 {
            live(play, 1, 10).await;
            let parts = parts_of(&store, 0);
            assert!(parts <= 16 + 15 * 2, "{parts} parts");
        }
        println!("{} parts after 600 looks", parts_of(&store, 0));
    });
}

#[test]
fn where_conditions_mean_nothing_only_idle_sessions_are_compacted() {
    play_without_conditions(async |play, store| {
        live(play, 1, 400).await;
        assert!(parts_of(&store, 0) >= 390, "{} parts", parts_of(&store, 0));
        play.run(Duration::from_secs(900)).await.unwrap();
        assert!(parts_of(&store, 0) <= 32, "{} parts", parts_of(&store, 0));
    });
}

#[test]
fn what_a_stop_named_is_seen_named_after_the_next_start() {
    play_without_conditions(async |play, store| {
        live(play, 1, 20).await;
        play.drain().await.unwrap();
        let before = parts_of(&store, 0);
        assert!(before >= 16, "{before} parts");
        // Nobody writes any more. Parts are merged only when all of them were seen named.
        play.run(Duration::from_secs(1200)).await.unwrap();
        let after = parts_of(&store, 0);
        assert!(after < before / 2, "{after} of {before} parts");
    });
}

#[test]
fn where_deleting_is_refused_nothing_is_merged_by_itself_and_status_says_so() {
    play(async |play, store| {
        let deletes = Arc::new(Mutex::new(0));
        let count = deletes.clone();
        store.set_hook(Box::new(move |op| match op.kind {
            OpKind::Delete => {
                *count.lock().unwrap() += 1;
                StoreFault::FailBefore(ErrorKind::Denied)
            }
            _ => StoreFault::None,
        }));
        live(play, 3, 60).await;
        assert_eq!(status(play).await.compaction, "auto");
        play.run(Duration::from_secs(1800)).await.unwrap();
        for number in 0..3 {
            assert!(parts_of(&store, number) >= 55, "{}", parts_of(&store, number));
        }
        let status = status(play).await;
        assert_eq!(status.compaction, "refused");
        assert_eq!(status.remote.unwrap().deletes, Some(false));
        assert_eq!(status.problems, [], "everything is safe");
        // Tried by each that began before the first one was answered, and then never again.
        assert!(*deletes.lock().unwrap() <= 2, "{}", deletes.lock().unwrap());
    });
}

#[test]
fn a_compaction_that_is_asked_for_waits_for_one_that_began_by_itself() {
    play_without_conditions(async |play, store| {
        live(play, 1, 40).await;
        // Its manifest is put, and it waits whether somebody overwrites that.
        let merging = |store: &MemoryStore| {
            store.objects().keys().filter(|k| k.contains("/part-00000-")).count() == 2
        };
        for _ in 0..600 {
            if merging(&store) {
                break;
            }
            play.run(Duration::from_secs(1)).await.unwrap();
        }
        assert!(merging(&store), "{:?}", store.objects().keys());
        let last = remote::compact(play, Duration::from_secs(600)).await;
        assert!(matches!(last, Some(Progress::Done { parts_after: 1, .. })), "{last:?}");
        assert_eq!(parts_of(&store, 0), 1);
    });
}

#[test]
fn t27_a_start_goes_on_where_automatic_compaction_was_stopped_without_asking_first() {
    play(async |play, store| {
        live(play, 1, 60).await;
        play.drain().await.unwrap();
        assert!(parts_of(&store, 0) >= 55, "a stop begins no compaction");
        play.run(Duration::from_secs(600)).await.unwrap();
        assert!(parts_of(&store, 0) <= 16, "{} parts", parts_of(&store, 0));
    });
}
