//! Where work runs that may wait for a disk: on the runtime's pool of threads, on a thread of its own, or right here in tests
//! that must replay.
//!
//! Knows nothing of what it runs.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{Sender, channel};

use tokio::sync::oneshot;

/// Work for a thread of its own.
type Job = Box<dyn FnOnce() + Send>;

/// How blocking work is run.
#[derive(Debug, Clone)]
pub(crate) enum Blocking {
    /// On the runtime's blocking threads. Work that began is finished even if its caller goes away.
    Pool,
    /// On one thread, one after the other. For work that needs much memory: the allocator keeps an arena for each thread, and
    /// what one capture gave back, the next one on another thread could not have.
    Worker(Sender<Job>),
    /// In place. Only for tests: there every step then has one possible order.
    #[cfg(test)]
    Inline,
}

impl Blocking {
    /// A thread that runs what it is given, and ends with the last handle.
    pub(crate) fn worker(name: &str) -> io::Result<Blocking> {
        let (sender, jobs) = channel::<Job>();
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || jobs.into_iter().for_each(|job| job()))?;
        Ok(Blocking::Worker(sender))
    }

    /// Runs `work` to its end and answers what it answered; a panic in it goes on in the caller.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        match self {
            #[cfg(test)]
            Blocking::Inline => work(),
            Blocking::Worker(sender) => {
                let (reply, answer) = oneshot::channel();
                let job = move || drop(reply.send(catch_unwind(AssertUnwindSafe(work))));
                match (sender.send(Box::new(job)), answer.await) {
                    (Ok(()), Ok(Ok(value))) => value,
                    (Ok(()), Ok(Err(panic))) => resume_unwind(panic),
                    // The process is ending and takes this future with it.
                    _ => std::future::pending().await,
                }
            }
            Blocking::Pool => match tokio::task::spawn_blocking(work).await {
                Ok(value) => value,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => resume_unwind(panic),
                    // The runtime is being dropped and takes this future with it.
                    Err(_) => std::future::pending().await,
                },
            },
        }
    }
}
