//! The handle that everything outside the mirror holds: commands in, answers out.
//!
//! The mirror's task owns the state; nothing else touches it. A command that is dropped by a stopping mirror answers
//! [`ErrorCode::Unavailable`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

pub(crate) use super::feed::Feed;
use super::pulse::Pulse;
use crate::api::{
    ErrorBody, ErrorCode, Flushed, Hinted, Progress, Session, SessionList, SessionState, Status,
    Verifying,
};

/// What a command answers when it fails: the wire form at once, since only the control socket asks.
pub(crate) type Answer<T> = Result<T, ErrorBody>;

/// Commands waiting for the mirror; more make the sender wait (the control server has its own limit and timeout).
pub(crate) const COMMANDS_MAX: usize = 64;

/// A request to the mirror. Session ids are what the user typed: a key `harness/id`, an id, or a unique prefix of one.
#[derive(Debug)]
pub(crate) enum Command {
    /// [`Status`] now.
    Status(oneshot::Sender<Answer<Status>>),
    /// What monitoring wants to know, now.
    Measure(oneshot::Sender<Answer<Box<Measures>>>),
    /// What goes on from now on.
    Listen(oneshot::Sender<Answer<Arc<Feed>>>),
    /// All sessions.
    List(oneshot::Sender<Answer<SessionList>>),
    /// The stored bytes of a session, in order.
    Replay {
        id: String,
        generation: Option<u32>,
        tail: Option<u64>,
        reply: oneshot::Sender<Answer<Replay>>,
    },
    /// Merge parts; progress until `Done` or `Failed`.
    Compact { id: String, keep_tail: usize, progress: mpsc::Sender<Progress> },
    /// Compare what is stored with what it should be; events until `Done` or `Failed`.
    Verify { id: Option<String>, options: Options, events: mpsc::Sender<Verifying> },
    /// Last flush, `ended_at`, not followed again.
    Stop { id: String, reply: oneshot::Sender<Answer<Session>> },
    /// Followed again.
    Start { id: String, reply: oneshot::Sender<Answer<Session>> },
    /// Everything that is there now is stored and named by a manifest when this answers.
    Flush { id: Option<String>, reply: oneshot::Sender<Answer<Flushed>> },
    /// An agent's hook has said something; answers before anything is done.
    Hint { hint: Hint, reply: oneshot::Sender<Answer<Hinted>> },
}

/// What a hook said of its session. Hostile: see `hint`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Hint {
    /// Ids as the agent has them.
    pub(crate) sessions: Vec<String>,
    /// Paths of transcripts.
    pub(crate) paths: Vec<PathBuf>,
}

/// How far a verification goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// Compare with the sources, too.
    pub(crate) deep: bool,
    /// Mend what can be mended.
    pub(crate) repair: bool,
}

/// What monitoring wants to know.
#[derive(Debug)]
pub(crate) struct Measures {
    /// As anybody may ask for it.
    pub(crate) status: Status,
    /// Sessions, each generation for itself, by state; every state is there.
    pub(crate) sessions: Vec<(SessionState, u64)>,
    /// Requests to the store since the start by kind, each try for itself.
    pub(crate) requests: Vec<(&'static str, u64)>,
    /// How many of those failed.
    pub(crate) failures: u64,
    pub(crate) counts: Counts,
    /// Who listens to events.
    pub(crate) listeners: u64,
}

/// What happened since the start.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts {
    pub(crate) captured_parts: u64,
    pub(crate) captured_bytes: u64,
    pub(crate) stored_parts: u64,
    pub(crate) stored_bytes: u64,
    /// Batches of sessions that were looked at.
    pub(crate) captures: u64,
    pub(crate) scans: u64,
    /// Secrets removed, by the pattern's name.
    pub(crate) redactions: BTreeMap<String, u64>,
}

impl Counts {
    /// A part was captured.
    pub(super) fn add<'a>(&mut self, bytes: u64, redactions: impl Iterator<Item = (&'a str, u64)>) {
        self.captured_parts += 1;
        self.captured_bytes += bytes;
        for (name, count) in redactions {
            *self.redactions.entry(name.to_owned()).or_default() += count;
        }
    }
}

/// The stored bytes of one generation.
#[derive(Debug)]
pub(crate) struct Replay {
    /// Whose bytes.
    pub(crate) session: Session,
    /// The bytes in order; an `Err` is the last item and says what failed.
    pub(crate) bytes: mpsc::Receiver<Result<Bytes, String>>,
}

/// Cheap to clone; outlives the mirror harmlessly.
#[derive(Debug, Clone)]
pub(crate) struct Mirror {
    commands: mpsc::Sender<Command>,
    pulse: Arc<Pulse>,
}

impl Mirror {
    /// A handle and the queue that the mirror's task reads.
    pub(crate) fn new() -> (Mirror, mpsc::Receiver<Command>) {
        let (commands, queue) = mpsc::channel(COMMANDS_MAX);
        (Mirror { commands, pulse: Arc::default() }, queue)
    }

    /// What the mirror's loop shows that it comes round with.
    pub(crate) fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// See [`Command::Measure`].
    pub(crate) async fn measure(&self) -> Answer<Box<Measures>> {
        self.ask(Command::Measure).await
    }

    /// See [`Command::Listen`].
    pub(crate) async fn listen(&self) -> Answer<Arc<Feed>> {
        self.ask(Command::Listen).await
    }

    /// See [`Command::Status`].
    pub(crate) async fn status(&self) -> Answer<Status> {
        self.ask(Command::Status).await
    }

    /// See [`Command::List`].
    pub(crate) async fn list(&self) -> Answer<SessionList> {
        self.ask(Command::List).await
    }

    /// See [`Command::Replay`].
    pub(crate) async fn replay(
        &self,
        id: String,
        generation: Option<u32>,
        tail: Option<u64>,
    ) -> Answer<Replay> {
        self.ask(|reply| Command::Replay { id, generation, tail, reply }).await
    }

    /// See [`Command::Compact`].
    pub(crate) async fn compact(&self, id: String, keep_tail: usize) -> mpsc::Receiver<Progress> {
        let (progress, receiver) = mpsc::channel(16);
        let failed = progress.clone();
        if self.commands.send(Command::Compact { id, keep_tail, progress }).await.is_err() {
            let _ = failed.try_send(Progress::Failed { error: stopping() });
        }
        receiver
    }

    /// See [`Command::Verify`].
    pub(crate) async fn verify(
        &self,
        id: Option<String>,
        options: Options,
    ) -> mpsc::Receiver<Verifying> {
        let (events, receiver) = mpsc::channel(16);
        let failed = events.clone();
        if self.commands.send(Command::Verify { id, options, events }).await.is_err() {
            let _ = failed.try_send(Verifying::Failed { error: stopping() });
        }
        receiver
    }

    /// See [`Command::Stop`].
    pub(crate) async fn stop(&self, id: String) -> Answer<Session> {
        self.ask(|reply| Command::Stop { id, reply }).await
    }

    /// See [`Command::Start`].
    pub(crate) async fn start(&self, id: String) -> Answer<Session> {
        self.ask(|reply| Command::Start { id, reply }).await
    }

    /// See [`Command::Flush`].
    pub(crate) async fn flush(&self, id: Option<String>) -> Answer<Flushed> {
        self.ask(|reply| Command::Flush { id, reply }).await
    }

    /// See [`Command::Hint`].
    pub(crate) async fn hint(&self, hint: Hint) -> Answer<Hinted> {
        self.ask(|reply| Command::Hint { hint, reply }).await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Answer<T>>) -> Command,
    ) -> Answer<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| stopping())?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }
}

fn stopping() -> ErrorBody {
    ErrorBody { code: ErrorCode::Unavailable, message: "the daemon is stopping".into(), hint: None }
}
