//! Group commit: callers that want something durable at the same time wait once, together.
//!
//! Knows which paths are wanted and who waits; knows nothing of how they are made durable.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// What is to be made durable.
#[derive(Debug, Default)]
pub(super) struct Request {
    /// Bytes of these files.
    pub(super) files: BTreeSet<PathBuf>,
    /// Entries of these directories.
    pub(super) dirs: BTreeSet<PathBuf>,
}

/// An error that can be told to more than one caller.
#[derive(Debug)]
struct Failure {
    kind: io::ErrorKind,
    code: Option<i32>,
    text: String,
}

impl Failure {
    fn new(error: &io::Error) -> Failure {
        Failure { kind: error.kind(), code: error.raw_os_error(), text: error.to_string() }
    }

    fn error(&self) -> io::Error {
        match self.code {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(self.kind, self.text.clone()),
        }
    }
}

/// What became of a group; set once, by its leader.
type Outcome = Arc<OnceLock<Result<(), Failure>>>;

#[derive(Debug, Default)]
struct State {
    /// A leader is at work for an earlier group.
    busy: bool,
    /// What the group that is still gathering wants.
    open: Request,
    /// Its outcome to be.
    outcome: Outcome,
    /// Its members.
    members: usize,
}

/// The place where callers meet.
#[derive(Debug, Default)]
pub(super) struct GroupCommit {
    state: Mutex<State>,
    changed: Condvar,
}

impl GroupCommit {
    /// Returns when everything in `wanted` was made durable by one call of some member's `work`, which began after this call.
    /// One member leads at a time; who comes meanwhile gathers for the next round, so that a round grows with the load and
    /// nobody waits for company that does not come.
    pub(super) fn commit(
        &self,
        mut wanted: Request,
        work: impl FnOnce(&Request) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut state = self.lock();
        state.open.files.append(&mut wanted.files);
        state.open.dirs.append(&mut wanted.dirs);
        state.members += 1;
        let outcome = Arc::clone(&state.outcome);
        while state.busy && outcome.get().is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(result) = outcome.get() {
            return result.as_ref().copied().map_err(Failure::error);
        }
        // Nobody leads and this group has no outcome: it is the one that gathers, and this caller leads it.
        let request = std::mem::take(&mut state.open);
        state.outcome = Outcome::default();
        state.members = 0;
        state.busy = true;
        drop(state);
        let lead = Lead { commit: self, outcome };
        let result = work(&request);
        // Only the leader sets the outcome, so it cannot be set already.
        let _ = lead.outcome.set(result.as_ref().copied().map_err(Failure::new));
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many callers wait in the group that gathers.
    #[cfg(test)]
    pub(super) fn gathered(&self) -> usize {
        self.lock().members
    }
}

/// The leader's duty, done however it ends: the group gets an outcome, and the next leader its turn.
struct Lead<'a> {
    commit: &'a GroupCommit,
    outcome: Outcome,
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let _ = self.outcome.set(Err(Failure::new(&io::Error::other("the sync was abandoned"))));
        self.commit.lock().busy = false;
        self.commit.changed.notify_all();
    }
}
