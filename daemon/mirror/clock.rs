//! The time of day, which only names things: order and waiting are the runtime's.

use std::fmt;

/// The time of day, for names in manifests; never for order or for waiting.
pub(crate) trait Clock: Send + Sync + fmt::Debug {
    /// Now.
    fn now(&self) -> jiff::Timestamp;
}

/// The system's clock.
#[derive(Debug)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }
}
