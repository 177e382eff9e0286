//! Where work runs that may wait for a disk: on the runtime's pool of threads, or right here in tests that must replay.
//!
//! Knows nothing of what it runs.

/// How blocking work is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blocking {
    /// On the runtime's blocking threads. Work that began is finished even if its caller goes away.
    Pool,
    /// In place: there every step has one possible order.
    #[cfg(test)]
    Inline,
}

impl Blocking {
    /// Runs `work` to its end and answers what it answered; a panic in it goes on in the caller.
    pub(crate) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        match self {
            #[cfg(test)]
            Blocking::Inline => work(),
            Blocking::Pool => match tokio::task::spawn_blocking(work).await {
                Ok(value) => value,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime is being dropped and takes this future with it.
                    Err(_) => std::future::pending().await,
                },
            },
        }
    }
}
