//! The status as clients see it: the mirror's words, what the process uses, and what is said while the mirror does not get on.
//!
//! Health is that the mirror's loop comes round, not that a process answers. Refuses to know what hangs, and to do anything about it:
//! that is for the service manager's watchdog.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::timeout;

use super::metrics;
use crate::api::{self, ErrorBody, ErrorCode, Event, Status};
use crate::mirror::handle::{Answer, Mirror};
use crate::usage::Usage;

/// The mirror answers between two pieces of work, each of which takes a moment. Below what the client waits for a status, so
/// that it learns what is wrong.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// The mirror, and its last words.
#[derive(Debug)]
pub(super) struct Health {
    mirror: Mirror,
    /// Never held over a wait.
    last: Mutex<Option<Status>>,
}

impl Health {
    pub(super) fn new(mirror: Mirror) -> Health {
        Health { mirror, last: Mutex::new(None) }
    }

    /// The status; of a mirror that does not get on the last one that is known, with that said.
    pub(super) async fn status(&self) -> Answer<Status> {
        let status = match timeout(PATIENCE, self.mirror.status()).await {
            Ok(answer) => return Ok(self.heard(answer?)),
            Err(_) => self.last_known().ok_or_else(|| self.stalled())?,
        };
        Ok(with_usage(status))
    }

    /// What the mirror says of itself unasked.
    pub(super) fn heard(&self, status: Status) -> Status {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(status.clone());
        with_usage(status)
    }

    /// For a listener who has heard nothing for a while: a heartbeat only when the mirror's loop comes round, or else the last status with
    /// what is wrong. `stalled`: that was said, and has to be taken back.
    pub(super) async fn sign_of_life(&self, stalled: bool) -> Event {
        let turned = timeout(PATIENCE, self.mirror.pulse().next_turn()).await.is_ok();
        let status = match (turned, stalled) {
            (true, false) => None,
            (true, true) => self.status().await.ok(),
            (false, _) => self.last_known().map(with_usage),
        };
        status.map_or(Event::Heartbeat, |status| Event::Status { status: Box::new(status) })
    }

    fn last_known(&self) -> Option<Status> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        let stalled_seconds = Some(self.mirror.pulse().still_for().as_secs());
        Some(Status { stalled_seconds, ..last })
    }

    /// The page for monitoring.
    pub(super) async fn metrics(&self) -> Answer<String> {
        let still = self.mirror.pulse().still_for();
        match timeout(PATIENCE, self.mirror.measure()).await {
            Ok(measures) => Ok(metrics::page(Some(&*measures?), still, &Usage::now())),
            // What is known without the mirror is said all the same: that it does not get on is what monitoring is for.
            Err(_) => Ok(metrics::page(None, self.mirror.pulse().still_for(), &Usage::now())),
        }
    }

    fn stalled(&self) -> ErrorBody {
        let seconds = self.mirror.pulse().still_for().as_secs();
        ErrorBody {
            code: ErrorCode::Timeout,
            message: format!("the daemon's loop has not come round for {seconds} s: something hangs"),
            hint: Some("look at its log for what it waits for (a disk, a mount), then restart it: nothing that is captured is lost".into()),
        }
    }
}

/// A status with what the process uses now.
fn with_usage(status: Status) -> Status {
    let usage = Usage::now();
    let cpu_seconds = usage.cpu.as_secs_f64();
    let round = |number: f64, digits: f64| (number * digits).round() / digits;
    let usage = api::Usage {
        resident_bytes: usage.resident_bytes,
        cpu_seconds: round(cpu_seconds, 1000.0),
        // In its first second a process is all start.
        cpu_percent: round(100.0 * cpu_seconds / (status.uptime_seconds.max(1) as f64), 100.0),
        descriptors: usage.descriptors,
    };
    Status { usage: Some(usage), ..status }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::tests::status;
    use crate::mirror::handle::Command;

    fn told(event: Event) -> Option<Option<u64>> {
        match event {
            Event::Status { status } => Some(status.stalled_seconds),
            Event::Heartbeat => None,
            event => panic!("{event:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn t65_who_listens_is_told_that_the_loop_hangs_and_that_it_goes_on() {
        let (mirror, mut queue) = Mirror::new();
        let health = Health::new(mirror.clone());
        assert_eq!(told(health.sign_of_life(false).await), None, "there is nothing to say it with");
        mirror.pulse().turn();
        assert_eq!(health.heard(status()).stalled_seconds, None);
        assert_eq!(told(health.sign_of_life(false).await), Some(Some(5)));
        assert_eq!(told(health.sign_of_life(true).await), Some(Some(10)), "it grows");
        // The loop comes round whenever it is asked, and answers.
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = mirror.pulse().asked() => mirror.pulse().turn(),
                    Some(Command::Status(reply)) = queue.recv() => drop(reply.send(Ok(status()))),
                }
            }
        });
        assert_eq!(told(health.sign_of_life(true).await), Some(None), "it is taken back");
        assert_eq!(told(health.sign_of_life(false).await), None);
    }
}
