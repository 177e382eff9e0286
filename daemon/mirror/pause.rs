//! When the store is left alone, and which session has to wait: an outage is the store's, a failure is one session's.
//!
//! Knows how operations ended and when to come back; refuses to know what they were. One failure among answers says nothing of
//! the store: its session rests for a moment and the others go on. Several in a row with nothing done in between, or a refusal
//! that time does not mend, mean that everything waits; then one send at a time finds out whether that is over.

use std::time::Duration;

use tokio::time::Instant;

use super::compact::OUTBOX_WRITE;
use super::manifest::Failure;
use super::{Engine, STORE_RETRY, chain};
use crate::part::SessionKey;
use crate::store::{ErrorKind, StoreError};

/// Failures in a row, with nothing done in between, that make an outage. Each has been asked again by the retry before.
const AWAY_AFTER: u32 = 3;

/// First and longest rest of a session, or of a compaction, after one of its operations failed.
const REST: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

/// What the last operations say of the store.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// Failures since something was done.
    failures: u32,
    /// How many of the last ones were refusals, which do not pass by themselves.
    pub(super) refusals: u32,
    /// How often everything has waited since something was done.
    pauses: u32,
    /// It is away, and is asked again then.
    retry_at: Option<Instant>,
    /// What is not a send (listings, adoptions) waits for this after any failure: nothing else would hold it back.
    calm_at: Option<Instant>,
}

impl Standing {
    fn works(&mut self) {
        *self = Standing { calm_at: self.calm_at, ..Standing::default() };
    }

    /// Whether the store counts as away now.
    fn failed(&mut self, kind: ErrorKind) -> bool {
        self.failures = self.failures.saturating_add(1);
        let refused = matches!(kind, ErrorKind::Denied | ErrorKind::Invalid);
        self.refusals = if refused { self.refusals + 1 } else { 0 };
        self.calm_at = Some(Instant::now() + STORE_RETRY.0);
        if self.failures >= AWAY_AFTER || !kind.passes() {
            self.pause();
        }
        self.is_away()
    }

    /// Lets everything wait, longer each time. What was under way when it began is no second outage.
    fn pause(&mut self) {
        let now = Instant::now();
        if self.retry_at.is_some_and(|at| at > now) {
            return;
        }
        let (first, longest) = STORE_RETRY;
        self.pauses = self.pauses.saturating_add(1);
        let wait = first.saturating_mul(1 << self.pauses.min(10)).min(longest);
        self.retry_at = Some(now + wait);
    }

    fn is_away(&self) -> bool {
        self.retry_at.is_some()
    }

    fn may_be_asked(&self) -> bool {
        self.retry_at.is_none_or(|at| at <= Instant::now())
    }
}

/// How long something rests after `failures` of its operations failed in a row: longer each time, and never in step with others.
pub(super) fn rest(key: &SessionKey, failures: u32) -> Duration {
    let (first, longest) = REST;
    let most = first.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(longest);
    let id = key.id().bytes().fold(u64::from(failures), |n, b| n.rotate_left(7) ^ u64::from(b));
    most.mul_f64(0.5 + fastrand::Rng::with_seed(id).f64() / 2.0)
}

/// Whether a failure says that the store is not there, or refuses.
fn is_of_store(error: &StoreError) -> bool {
    let of_object = matches!(error.kind, ErrorKind::NotFound | ErrorKind::Changed);
    !of_object && error.operation != OUTBOX_WRITE
}

impl Engine {
    /// Whether something other than a send may be asked.
    pub(super) fn store_is_open(&self) -> bool {
        let calm = self.standing.calm_at.is_none_or(|at| at <= Instant::now());
        self.standing.may_be_asked() && calm
    }

    /// Whether sends may be asked; while it counts as away, one at a time.
    pub(super) fn store_takes_sends(&self) -> bool {
        self.standing.may_be_asked()
    }

    /// Whether the last operations failed, so that it is only tried whether it is back.
    pub(super) fn store_is_away(&self) -> bool {
        self.standing.is_away()
    }

    /// When something that waits for the store may go on.
    pub(super) fn store_due(&self) -> [Option<Instant>; 2] {
        [self.standing.retry_at, self.standing.calm_at]
    }

    pub(super) fn store_works(&mut self) {
        self.standing.works();
        self.clear_problem("store_unavailable", "");
    }

    pub(super) fn store_failed(&mut self, error: &StoreError) {
        if !self.standing.failed(error.kind) {
            tracing::debug!(error = %chain(error), "the store failed once");
            return;
        }
        let hint = "`tracecraftctl doctor` says what to mend; what is captured waits in the outbox and follows by itself";
        // The object alone does not tell a person which disk or server to look at.
        let message = format!("{}: {}", self.settings.store_url, chain(error));
        self.problem("store_unavailable", "", &message, Some(hint));
    }

    /// As [`Engine::store_failed`], for what a compaction met: an object that is missing, or our own disk that is full, says
    /// nothing of the store, and others are not to wait for it.
    pub(super) fn store_failed_if(&mut self, error: &StoreError) {
        if is_of_store(error) {
            self.store_failed(error);
        }
    }

    /// Shows why a compaction ended that a person has to see to.
    pub(super) fn note_given_up(&mut self, key: &SessionKey, failure: &Failure) {
        if let Failure::Store(error) = failure
            && !is_of_store(error)
        {
            let hint =
                "the session's parts are as they were; `tracecraftctl verify` tells what is wrong";
            self.session_problem(key, "compaction_failed", &chain(error), Some(hint));
        }
    }

    /// Our own disk failed on what the store did: it is done again a while later.
    pub(super) fn hold_store_retry(&mut self) {
        self.standing.pause();
    }

    /// Nothing of a session is sent for a while if its send failed on its way, after some `progress` or at once.
    pub(super) fn rest_after(&mut self, key: &SessionKey, failure: &Failure, progress: bool) {
        let Failure::Store(error) = failure else { return };
        let live = self.live(key);
        live.failures = if progress { 1 } else { live.failures.saturating_add(1) };
        let until = Instant::now() + rest(key, live.failures);
        live.rests_until = Some(until);
        let stuck = live.failures >= AWAY_AFTER;
        self.resting.insert((until, key.clone()));
        // While the store is away that is said once, of the store.
        if stuck && !self.store_is_away() {
            let hint = "what waits is safe in the outbox; it is tried again";
            self.session_problem(key, "not_sent", &chain(error), Some(hint));
        }
    }

    /// Sessions that have rested are sent again.
    pub(super) fn wake_rested(&mut self, everybody: bool) {
        let now = Instant::now();
        while self.resting.first().is_some_and(|(until, _)| everybody || *until <= now) {
            let Some((_, key)) = self.resting.pop_first() else { return };
            self.live(&key).rests_until = None;
            self.queue_send(&key);
        }
    }

    /// Takes the session that is to be sent next: the newest, or while the store is away the one that failed least. The newest
    /// may be the only one that the store does not take, and the others would never find out that it is back.
    pub(super) fn next_to_send(&mut self) -> Option<SessionKey> {
        if !self.store_is_away() {
            return self.to_send.pop_first().map(|(_, key)| key);
        }
        let failures = |key: &SessionKey| self.live.get(key).map_or(0, |live| live.failures);
        let next = self.to_send.iter().min_by_key(|(_, key)| failures(key)).cloned()?;
        self.to_send.remove(&next);
        Some(next.1)
    }
}
