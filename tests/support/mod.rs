//! What the tests stand on: a scratch home, the running daemon, writers that imitate agents, and the oracle that judges.
//!
//! Nothing here calls the product's library: what the tests believe about a bucket they read themselves.

use std::time::{Duration, Instant};

pub(crate) mod bucket;
mod bucket_tests;
pub(crate) mod daemon;
pub(crate) mod home;
pub(crate) mod http;
pub(crate) mod judge;
pub(crate) mod manager;
pub(crate) mod objects;
pub(crate) mod oracle;
pub(crate) mod planted;
pub(crate) mod proxy;
pub(crate) mod room;
pub(crate) mod s3;
pub(crate) mod strace;
pub(crate) mod terminal;
mod tests;
pub(crate) mod writers;

/// Time between two looks at a condition: short beside every deadline, long beside what a look costs.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// How long a test waits for something that should take a moment. Generous, because debug builds share two cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Looks until `probe` answers, at most for `limit`.
pub(crate) fn try_wait_for<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(POLL);
    }
}

/// Looks until `probe` answers; a test that waits in vain fails and says for what.
pub(crate) fn wait_for<T>(what: &str, probe: impl FnMut() -> Option<T>) -> T {
    try_wait_for(PATIENCE, probe)
        .unwrap_or_else(|| panic!("waited {} s in vain for {what}", PATIENCE.as_secs()))
}

/// Looks until `probe` is content; a test that waits in vain fails with the last complaint.
pub(crate) fn wait_until_ok(what: &str, mut probe: impl FnMut() -> Result<(), String>) {
    let mut complaint = String::new();
    let met = try_wait_for(PATIENCE, || match probe() {
        Ok(()) => Some(()),
        Err(why) => {
            complaint = why;
            None
        }
    });
    assert!(met.is_some(), "waited {} s in vain for {what}:\n{complaint}", PATIENCE.as_secs());
}

/// Waits until a time is over. Not a way to wait for anything: for campaigns that measure a time, or take one.
pub(crate) fn wait_for_the_end_of(started: Instant, length: Duration) {
    std::thread::sleep(length.saturating_sub(started.elapsed()));
}

/// Lets a random while pass between two actions of a campaign. Not a way to wait for anything.
pub(crate) fn pace(rng: &mut fastrand::Rng, longest: Duration) {
    std::thread::sleep(Duration::from_micros(rng.u64(0..=longest.as_micros() as u64)));
}

/// The seed of a campaign: `TRACECRAFT_SEED`, or a fresh one. Printed, so that a failure can be repeated.
pub(crate) fn seed(campaign: &str) -> u64 {
    let seed = std::env::var("TRACECRAFT_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| fastrand::u64(0..1_000_000_000));
    println!("{campaign}: TRACECRAFT_SEED={seed}");
    seed
}

/// Says in one line that a test did not run, and why.
pub(crate) fn skipped(test: &str, why: &str) {
    println!("SKIPPED {test}: {why}");
}
