//! What a store that fails, is away or is full gets to hear, and how soon everything is stored all the same. Time is paused, and
//! requests take none: what is measured is waiting.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::{Play, remote};
use crate::api::Progress;
use crate::mirror::handle::Mirror;
use crate::store::ErrorKind;
use crate::store::memory::{MemoryStore, Op, OpKind, StoreFault};

const SECOND: Duration = Duration::from_secs(1);

/// How often the sessions are looked at.
const INTERVAL: Duration = SECOND;

fn play(test: impl AsyncFnOnce(&mut Play, MemoryStore)) {
    remote::play(INTERVAL, async |play, store| {
        play.world.retries = true;
        test(play, store).await;
    });
}

/// Every third request fails, in turn without effect and with its answer lost.
fn a_third(store: &MemoryStore) {
    let mut asked = 0;
    store.set_hook(Box::new(move |_| {
        asked += 1;
        match asked % 6 {
            0 => StoreFault::FailBefore(ErrorKind::Overloaded),
            3 => StoreFault::FailAfter(ErrorKind::Unavailable),
            _ => StoreFault::None,
        }
    }));
}

fn always(store: &MemoryStore, fault: StoreFault) {
    store.set_hook(Box::new(move |_| fault));
}

async fn live(play: &mut Play, sessions: usize, looks: u32) {
    remote::live(play, INTERVAL, sessions, looks).await;
}

fn parts(store: &MemoryStore) -> usize {
    remote::parts(store).len()
}

/// Parts that wait, as the recorder tells.
async fn pending(play: &mut Play) -> u64 {
    let status = play.ask(SECOND, async |m: Mirror| m.status().await).await;
    status.unwrap().unwrap().unwrap().pending.parts
}

/// Time until nothing waits.
async fn caught_up(play: &mut Play, longest: Duration) -> Duration {
    let began = Instant::now();
    while pending(play).await > 0 {
        assert!(began.elapsed() < longest, "{} parts wait", pending(play).await);
        play.run(SECOND / 4).await.unwrap();
    }
    began.elapsed()
}

#[test]
fn t36_one_session_catches_up_with_many_parts_a_second_while_every_third_request_fails() {
    play(async |play, store| {
        live(play, 1, 3).await;
        always(&store, StoreFault::FailBefore(ErrorKind::Unavailable));
        live(play, 1, 300).await; // Longer than the outbox of the model has room.
        let waiting = pending(play).await;
        assert!(waiting >= 60, "{waiting} parts");
        a_third(&store);
        let before = parts(&store);
        // It is tried once a minute whether the store is back.
        while parts(&store) == before {
            play.run(SECOND / 4).await.unwrap();
        }
        let took = caught_up(play, Duration::from_secs(600)).await;
        let each = waiting as f64 / took.as_secs_f64();
        println!("{waiting} parts of one session in {} s: {each:.1} a second", took.as_secs());
        assert!(each >= 5.0, "{each} parts a second");
    });
}

#[test]
fn t36_live_sessions_are_stored_as_they_grow_while_every_third_request_fails() {
    play(async |play, store| {
        a_third(&store);
        live(play, 10, 60).await;
        let waiting = pending(play).await;
        let stored = parts(&store);
        println!("{stored} parts of ten sessions stored in a minute, {waiting} wait");
        assert!(stored >= 10 * 50, "only {stored} parts");
        caught_up(play, Duration::from_secs(300)).await;
    });
}

#[test]
fn t37_an_outage_of_an_hour_costs_few_requests_and_everything_follows_within_minutes() {
    play(async |play, store| {
        live(play, 10, 3).await;
        always(&store, StoreFault::FailBefore(ErrorKind::Unavailable));
        let before = store.requests();
        live(play, 10, 60).await;
        let minute = store.requests() - before;
        play.run(Duration::from_secs(59 * 60)).await.unwrap();
        let hour = store.requests() - before;
        println!("{minute} requests in the first minute of an outage, {hour} in an hour");
        assert!(hour <= 200, "{hour} requests");
        always(&store, StoreFault::None);
        caught_up(play, Duration::from_secs(200)).await;
    });
}

#[test]
fn t44_a_full_store_is_asked_seldom_and_a_person_is_told() {
    play(async |play, store| {
        live(play, 10, 3).await;
        let before = store.requests();
        store.set_hook(Box::new(|op| match op.kind {
            OpKind::Put => StoreFault::FailBefore(ErrorKind::Full),
            _ => StoreFault::None,
        }));
        live(play, 10, 60).await;
        let status = play.ask(SECOND, async |m: Mirror| m.status().await).await;
        let problems = status.unwrap().unwrap().unwrap().problems;
        assert!(problems.iter().any(|p| p.code == "store_unavailable"), "{problems:?}");
        play.run(Duration::from_secs(59 * 60)).await.unwrap();
        let hour = store.requests() - before;
        println!("{hour} requests to a full store in an hour");
        assert!(hour <= 200, "{hour} requests");
        always(&store, StoreFault::None);
        caught_up(play, Duration::from_secs(200)).await;
    });
}

#[test]
fn t36_a_session_that_the_store_does_not_take_holds_up_no_other_one() {
    for kind in [ErrorKind::Unavailable, ErrorKind::Denied] {
        play(async |play, store| {
            live(play, 5, 3).await;
            let refused = Arc::new(Mutex::new(0));
            let count = refused.clone();
            store.set_hook(Box::new(move |op: &Op| {
                if op.key.contains("/s0/") {
                    *count.lock().unwrap() += 1;
                    return StoreFault::FailBefore(kind);
                }
                StoreFault::None
            }));
            live(play, 5, 120).await;
            let stored = store.objects();
            for number in 1..5 {
                let prefix = format!("/s{number}/part-");
                let own = stored.keys().filter(|key| key.contains(&prefix)).count();
                assert!(own >= 60, "{kind:?}: {own} parts of session {number}");
            }
            play.run(Duration::from_secs(3600)).await.unwrap();
            let refused = *refused.lock().unwrap();
            assert!(refused <= 600, "{kind:?}: {refused} requests for what is not taken");
            always(&store, StoreFault::None);
            caught_up(play, Duration::from_secs(200)).await;
        });
    }
}

#[test]
fn t36_a_compaction_gets_done_while_every_third_request_fails() {
    play(async |play, store| {
        live(play, 1, 100).await;
        assert!(parts(&store) >= 90);
        a_third(&store);
        let began = Instant::now();
        let last = remote::compact(play, Duration::from_secs(600)).await;
        println!("{last:?} after {} s", began.elapsed().as_secs());
        assert!(matches!(last, Some(Progress::Done { .. })), "{last:?}");
        play.run(SECOND).await.unwrap();
        assert!(parts(&store) <= 2, "{} parts", parts(&store));
    });
}
