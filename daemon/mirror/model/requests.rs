//! What a remote bucket is asked, counted: requests cost money, and a store that refuses something is respected.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Mirror, Play, remote};
use crate::api::Progress;
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
