//! Keys that are kept as long as they are good, and renewed before they are not.
//!
//! Knows times of expiry; refuses to know where keys come from. There is no task: whoever needs keys when it is time renews
//! them, and all others who need them wait for the same renewal.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use jiff::{SignedDuration, Timestamp};
use tracing::{info, warn};

use super::{Clock, CredentialsError, Keys, Source};

/// How long before their expiry keys are renewed: metadata services have the next ones by then, and an endpoint may be away
/// for some minutes without anybody noticing. Keys that live shorter than twice this are renewed after half of their life.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_mins(5);

/// Keys are not used this short before their expiry: the request still has to get there, and clocks differ a little.
const LAST_MOMENT: SignedDuration = SignedDuration::from_secs(10);

/// The least time between a failed renewal and the next: sends that follow each other must not each wait for an endpoint
/// that is away, nor start the same failing program.
const FAILURE_PAUSE: SignedDuration = SignedDuration::from_secs(10);

/// Longest renewal. Above the limits of single steps; a chain of roles has several.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(60);

type Outcome = Result<Arc<Keys>, CredentialsError>;
type Renewal = Shared<BoxFuture<'static, Outcome>>;

/// The keys of one source.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    shared: Arc<CacheShared>,
}

#[derive(Debug)]
struct CacheShared {
    source: Arc<dyn Source>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: Option<Held>,
    failed: Option<(CredentialsError, Timestamp)>,
    /// The renewal under way. Weak: when all who wait for it went away it ends, and whoever comes next begins anew instead of
    /// going on with a request that was left lying.
    renewal: Option<WeakShared<BoxFuture<'static, Outcome>>>,
    /// Where the last keys came from, also when they are held no more.
    origin: Option<String>,
}

#[derive(Debug)]
struct Held {
    keys: Arc<Keys>,
    renew_at: Option<Timestamp>,
}

/// What is to be done for somebody who needs keys.
enum Step {
    Done(Outcome),
    Wait(Renewal),
}

impl Cache {
    /// No keys yet; `source` is asked when they are needed.
    pub(crate) fn new(source: Arc<dyn Source>, clock: Arc<dyn Clock>) -> Cache {
        Cache { shared: Arc::new(CacheShared { source, clock, state: Mutex::default() }) }
    }

    /// Keys that are good now.
    pub(crate) async fn get(&self) -> Outcome {
        match self.step() {
            Step::Done(outcome) => outcome,
            Step::Wait(renewal) => renewal.await,
        }
    }

    /// The held keys are not good, whatever they say of themselves. A renewal under way brings newer ones.
    pub(crate) fn drop_keys(&self) {
        self.shared.lock().held = None;
    }

    /// Where the last keys came from.
    pub(crate) fn origin(&self) -> Option<String> {
        self.shared.lock().origin.clone()
    }

    fn step(&self) -> Step {
        let now = self.shared.clock.now();
        let mut state = self.shared.lock();
        if let Some(held) = &state.held
            && held.renew_at.is_none_or(|at| now < at)
        {
            return Step::Done(Ok(held.keys.clone()));
        }
        if let Some((error, at)) = &state.failed
            // A clock that was put back must not keep an old failure alive.
            && (*at..*at + FAILURE_PAUSE).contains(&now)
        {
            return Step::Done(state.usable(now).ok_or_else(|| error.clone()));
        }
        if let Some(renewal) = state.renewal.as_ref().and_then(WeakShared::upgrade) {
            return Step::Wait(renewal);
        }
        let renewal = self.shared.clone().renew().boxed().shared();
        state.renewal = renewal.downgrade();
        Step::Wait(renewal)
    }
}

impl CacheShared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held; what is inside is whole at every moment anyway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn renew(self: Arc<Self>) -> Outcome {
        let answer = tokio::time::timeout(RENEWAL_TIMEOUT, self.source.keys()).await;
        let now = self.clock.now();
        let result = match answer {
            Ok(Ok(keys)) if !is_good(&keys, now) => {
                Err(CredentialsError::Stale { origin: keys.origin })
            }
            Ok(result) => result,
            Err(_) => Err(CredentialsError::Slow { limit: RENEWAL_TIMEOUT }),
        };
        let mut state = self.lock();
        state.renewal = None;
        match result {
            Ok(keys) => Ok(state.hold(keys, now)),
            Err(error) => {
                state.failed = Some((error.clone(), now));
                let usable = state.usable(now);
                if usable.is_some() {
                    warn!(%error, "credentials could not be renewed; those that are there are still good");
                }
                usable.ok_or(error)
            }
        }
    }
}

impl State {
    fn hold(&mut self, keys: Keys, now: Timestamp) -> Arc<Keys> {
        if self.failed.take().is_some() || self.origin.as_ref() != Some(&keys.origin) {
            info!(origin = keys.origin, expires = ?keys.expires, "credentials found");
        }
        let renew_at = keys.expires.map(|expires| {
            let left = expires.duration_since(now);
            expires - RENEW_BEFORE.min(left / 2)
        });
        self.origin = Some(keys.origin.clone());
        let keys = Arc::new(keys);
        self.held = Some(Held { keys: keys.clone(), renew_at });
        keys
    }

    /// The held keys, if they are good yet.
    fn usable(&self, now: Timestamp) -> Option<Arc<Keys>> {
        let held = self.held.as_ref().filter(|held| is_good(&held.keys, now));
        held.map(|held| held.keys.clone())
    }
}

fn is_good(keys: &Keys, now: Timestamp) -> bool {
    keys.expires.is_none_or(|expires| now + LAST_MOMENT < expires)
}
