//! Plays in a world with a remote store, step by step: how such a play begins, and what several of them do and count.
//!
//! Knows of no fault: what the store answers is for each test to say.

use std::time::Duration;

use super::world::World;
use super::{Mirror, Play};
use crate::api::Progress;
use crate::store::memory::MemoryStore;

/// Plays a test in a world whose sessions are looked at each `interval`; time is paused.
pub(super) fn play(interval: Duration, test: impl AsyncFnOnce(&mut Play, MemoryStore)) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without drivers");
    runtime.block_on(async {
        let (world, store) = World::remote(interval);
        let mut play = Play { world, process: None, second: None, log: vec![], verbose: false };
        test(&mut play, store).await;
    });
}

/// Each session gets a record before each look.
pub(super) async fn live(play: &mut Play, interval: Duration, sessions: usize, looks: u32) {
    for _ in 0..looks {
        (0..sessions).for_each(|number| play.world.append_to(number));
        play.run(interval).await.unwrap();
    }
}

/// Has the first session compacted; the last that is said of it, `None` if nobody answered in time.
pub(super) async fn compact(play: &mut Play, within: Duration) -> Option<Progress> {
    let compact = async |mirror: Mirror| {
        let mut progress = mirror.compact("s0".into(), 0).await;
        let mut last = None;
        while let Some(step) = progress.recv().await {
            last = Some(step);
        }
        last
    };
    play.ask(within, compact).await.unwrap().flatten()
}

/// The keys of the parts that are stored.
pub(super) fn parts(store: &MemoryStore) -> Vec<String> {
    store.objects().into_keys().filter(|key| key.contains("/part-")).collect()
}
