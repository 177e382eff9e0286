//! What the mirror answers, and how it ends: status, lists, replays, stops and starts; the drain and its summary.

use std::collections::BTreeSet;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{info, warn};

use super::handle::{Answer, Command, Replay};
use super::replay::{PIECES_MAX, replay};
use super::wait::Reply;
use super::{
    Automatic, DRAIN_MAX, Done, Engine, IDLE_AFTER, ONCE_REFUSALS_MAX, ONCE_STALL, Summary,
};
use crate::api::{
    self, ErrorBody, ErrorCode, PROTOCOL, Pending, Phase, Session, SessionCounts, SessionList,
    SessionState, Status,
};
use crate::part::{SessionKey, printable};
use crate::state::{Change, Record};
use crate::store::Conditions;

impl Engine {
    pub(super) fn command(&mut self, command: Command) {
        // An asker that has gone away is no fault of ours: a failed reply is dropped.
        match command {
            Command::Status(reply) => drop(reply.send(Ok(self.status()))),
            Command::Measure(reply) => drop(reply.send(Ok(Box::new(self.measures())))),
            Command::Listen(reply) => drop(reply.send(self.listen())),
            Command::List(reply) => drop(reply.send(Ok(self.list()))),
            Command::Replay { id, generation, tail, reply } => {
                drop(reply.send(self.begin_replay(&id, generation, tail)));
            }
            Command::Compact { id, keep_tail, progress } => self.compact(&id, keep_tail, progress),
            Command::Verify { id, options, events } => {
                self.begin_verification(id.as_deref(), options, events);
            }
            Command::Stop { id, reply } => self.stop(&id, reply),
            Command::Start { id, reply } => drop(reply.send(self.start(&id))),
            Command::Hint { hint, reply } => drop(reply.send(Ok(self.hint(&hint)))),
            Command::Flush { id: None, reply } => self.flush_all(Some(reply)),
            Command::Flush { id: Some(id), reply } => match self.current(&id) {
                Ok(key) => match self.unfollowed(&key) {
                    Some(error) => drop(reply.send(Err(error))),
                    None => {
                        self.mark_dirty(&key);
                        self.wait_for(Some(key), Reply::Flushed(reply));
                    }
                },
                Err(error) => drop(reply.send(Err(error))),
            },
        }
    }

    /// Why a session is not looked at, if it is not: its flush would have nothing to wait for, and say that all is safe.
    fn unfollowed(&self, key: &SessionKey) -> Option<ErrorBody> {
        let (message, hint) = if self.state.get(key)?.stopped {
            (format!("{key} is stopped: it is not looked at"), "tracecraftctl start ID")
        } else if self.live.get(key)?.excluded {
            let hint = "change the include and exclude rules of the configuration";
            (format!("{key} is left out by your rules: it is not looked at"), hint)
        } else {
            return None;
        };
        Some(ErrorBody { code: ErrorCode::Busy, message, hint: Some(hint.to_owned()) })
    }

    fn stop(&mut self, id: &str, reply: oneshot::Sender<Answer<Session>>) {
        match self.current(id) {
            Ok(key) => {
                let done = self.state.get(&key).is_some_and(|r| r.stopped || r.gone);
                self.mark_dirty(&key);
                self.wait_for(Some(key.clone()), Reply::Stopped(reply));
                if done || self.live.get(&key).is_some_and(|l| l.excluded) {
                    self.note_unwatched(&key);
                }
            }
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    pub(super) fn end_stopped(
        &mut self,
        key: SessionKey,
        mut record: Record,
        reply: oneshot::Sender<Answer<Session>>,
    ) {
        record.stopped = true;
        record.ended_at.get_or_insert_with(|| self.now_text());
        record.manifest_due = true;
        if self.commit(vec![Change::Session { key: key.clone(), record: Box::new(record) }]) {
            info!(session = %key, "stopped");
            self.dirty.remove(&key);
            self.wait_for(Some(key.clone()), Reply::Stopped(reply));
            self.note_unwatched(&key);
        } else {
            drop(reply.send(Err(error(ErrorCode::Internal, "the state cannot be written now"))));
        }
    }

    fn start(&mut self, id: &str) -> Answer<Session> {
        let key = self.current(id)?;
        let Some(record) = self.state.get(&key) else { return Err(no_such(id)) };
        // A stop that still waits for its last flush would come after this and win.
        self.waiters.retain(|waiter| {
            !(matches!(waiter.reply, Reply::Stopped(_)) && waiter.only.as_ref() == Some(&key))
        });
        let record =
            Record { stopped: false, ended_at: None, manifest_due: true, ..record.clone() };
        let change = Change::Session { key: key.clone(), record: Box::new(record.clone()) };
        if !self.commit(vec![change]) {
            return Err(error(ErrorCode::Internal, "the state cannot be written now"));
        }
        self.live(&key).trusted = false;
        self.mark_dirty(&key);
        self.queue_send(&key);
        Ok(self.session(&key, &record))
    }

    fn compact(&mut self, id: &str, keep_tail: usize, progress: mpsc::Sender<api::Progress>) {
        match self.current(id) {
            Ok(key) => self.begin_compaction(key, keep_tail, progress),
            Err(error) => drop(progress.try_send(api::Progress::Failed { error })),
        }
    }

    fn begin_replay(
        &mut self,
        id: &str,
        generation: Option<u32>,
        tail: Option<u64>,
    ) -> Answer<Replay> {
        let mut key = self.current(id)?;
        if let Some(generation) = generation {
            key = key.with_generation(generation);
        }
        let Some(record) = self.state.get(&key) else {
            let first = key.with_generation(1);
            let newest = self.newest(&first).map_or(1, |(newest, _)| newest.generation());
            return Err(match generation {
                Some(asked) if asked > newest => no_generation(&first, newest),
                _ => no_such(&format!("{id}, generation {}", key.generation())),
            });
        };
        let session = self.session(&key, record);
        let (to, bytes) = mpsc::channel(PIECES_MAX);
        let store = self.tools.store.clone();
        self.jobs.push(Box::pin(async move {
            replay(store, key, tail, to).await;
            Done::Replayed
        }));
        Ok(Replay { session, bytes })
    }

    /// The session that somebody means: exact ids win, then unique prefixes. Without a typed `~`, its newest generation.
    fn current(&self, typed: &str) -> Answer<SessionKey> {
        let key = self.meant(typed)?;
        if typed.contains('~') {
            return Ok(key);
        }
        Ok(self.newest(&key.with_generation(1)).map_or(key, |(newest, _)| newest.clone()))
    }

    pub(super) fn meant(&self, typed: &str) -> Answer<SessionKey> {
        let (harness, id) = match typed.split_once('/') {
            Some((harness, id)) => (Some(harness), id),
            None => (None, typed),
        };
        let wanted = |key: &&SessionKey| harness.is_none_or(|h| h == key.harness());
        let sessions = &self.state.state().sessions;
        let exact: Vec<&SessionKey> = sessions
            .keys()
            .filter(wanted)
            .filter(|key| key.id() == id || (!id.contains('~') && key.base() == id))
            .collect();
        let prefix =
            || sessions.keys().filter(wanted).filter(|key| is_short_for(id, key)).collect();
        let matches: Vec<&SessionKey> =
            if exact.is_empty() && !id.is_empty() { prefix() } else { exact };
        let bases: BTreeSet<SessionKey> = matches
            .iter()
            .map(|key| if id.contains('~') { (*key).clone() } else { key.with_generation(1) })
            .collect();
        let mut bases = bases.into_iter();
        match (bases.next(), bases.next()) {
            (None, _) => Err(no_such(typed)),
            (Some(key), None) => Ok(key),
            (Some(first), Some(second)) => {
                let more = bases.count();
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                Err(ErrorBody {
                    code: ErrorCode::AmbiguousId,
                    message: format!(
                        "{:?} matches several sessions: {first}, {second}{more}",
                        printable(typed)
                    ),
                    hint: Some("type more of the id, or the harness before it".to_owned()),
                })
            }
        }
    }

    pub(super) fn status(&self) -> Status {
        let mut counts = SessionCounts {
            excluded: (self.excluded.len() + self.undecided.len()) as u64,
            held_back: self.undecided.len() as u64,
            waiting: (self.unplaced.len() + self.placing.len()) as u64,
            ..Default::default()
        };
        let mut pending = Pending::default();
        let mut oldest: Option<&str> = None;
        let mut stored_bytes = 0;
        let mut problems = self.shown_problems();
        for (key, record) in &self.state.state().sessions {
            let live = self.live.get(key);
            let unnamed = record.pending.iter().filter(|p| p.is_unnamed()).map(|p| p.bytes);
            stored_bytes += record.totals.bytes + unnamed.sum::<u64>();
            if !record.superseded {
                counts.total += 1;
                counts.live += u64::from(self.session_state(key, record) == SessionState::Live);
                counts.stopped += u64::from(record.stopped);
                counts.excluded += u64::from(live.is_some_and(|l| l.excluded));
                counts.held_back += u64::from(live.is_some_and(|l| l.undecided.is_some()));
            }
            let unsent = record.pending.iter().filter(|p| p.stored_at.is_none());
            let mut any = false;
            for part in unsent {
                any = true;
                pending.parts += 1;
                pending.bytes += part.bytes;
                let at = part.captured_at.as_str();
                oldest = Some(oldest.map_or(at, |o| o.min(at)));
            }
            counts.pending += u64::from(any);
            problems.extend(live.and_then(|live| self.shown_problem(key, live)));
        }
        pending.oldest_seconds =
            oldest.and_then(|at| at.parse::<jiff::Timestamp>().ok()).map(|at| {
                u64::try_from(self.tools.clock.now().as_second() - at.as_second()).unwrap_or(0)
            });
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: PROTOCOL,
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            phase: self.phase,
            store: self.settings.store_url.clone(),
            state_dir: self.settings.state_dir.display().to_string(),
            interval_ms: u64::try_from(self.settings.interval.as_millis()).unwrap_or(u64::MAX),
            redact: self.settings.redact,
            compaction: self.compaction().to_owned(),
            roots: self.roots.clone(),
            sessions: counts,
            stored_bytes,
            pending,
            last_stored_at: self.last_stored_at.clone(),
            last_flush_at: self.last_flush_at.clone(),
            // Of the process and not of the sessions: whoever asks adds them.
            usage: None,
            stalled_seconds: None,
            remote: (!self.tools.store.is_local()).then(|| self.remote()),
            problems,
            problems_left_out: 0,
        }
    }

    /// Whether sessions are compacted without being asked, in a word.
    fn compaction(&self) -> &'static str {
        match self.settings.compaction {
            Automatic::Off => "off",
            Automatic::Billed => "billed",
            Automatic::On(_) if self.deletes == Some(false) => "refused",
            Automatic::On(_) => "auto",
        }
    }

    fn remote(&self) -> api::Remote {
        let conditions = match self.tools.store.conditions() {
            Conditions::Unknown => "unknown",
            Conditions::Honoured => "honoured",
            Conditions::Ignored => "ignored",
            Conditions::Unsupported => "unsupported",
        };
        let asked = self.tools.tally.requests();
        // Scheme, endpoint, and what the URL says of the bucket.
        let (_, place) = self.tools.store.identity().split_once("://").unwrap_or_default();
        let (_, bucket) = self.settings.store_url.split_once("://").unwrap_or_default();
        let endpoint = place.strip_suffix(bucket).unwrap_or(place).trim_end_matches('/');
        api::Remote {
            endpoint: endpoint.to_owned(),
            conditions: conditions.to_owned(),
            deletes: self.deletes,
            puts: asked.puts,
            gets: asked.gets,
            lists: asked.lists,
            deletions: asked.deletes,
            failures: asked.failures,
        }
    }

    fn list(&self) -> SessionList {
        let records = self.state.state().sessions.iter();
        let mut sessions: Vec<Session> = records
            .map(|(key, record)| self.session(key, record))
            .chain(self.held_back_files())
            .collect();
        sessions.sort_by(|a, b| b.last_stored_at.cmp(&a.last_stored_at));
        SessionList { sessions }
    }

    pub(super) fn session(&self, key: &SessionKey, record: &Record) -> Session {
        let live = self.live.get(key);
        let unsent = record.pending.iter().filter(|p| p.stored_at.is_none());
        let stored: Vec<_> = record.pending.iter().filter(|p| p.is_unnamed()).collect();
        let mut redactions = record.totals.redactions.clone();
        let uncounted = record.pending.iter().filter(|p| !p.named);
        for (name, count) in uncounted.flat_map(|p| p.redactions.iter()) {
            *redactions.entry(name.to_owned()).or_default() += count;
        }
        Session {
            harness: key.harness().to_owned(),
            id: key.id().to_owned(),
            generation: key.generation(),
            state: self.session_state(key, record),
            source_path: record.source_file().to_string_lossy().into_owned(),
            cwd: record.cwd.clone(),
            parts: record.totals.parts + stored.len() as u64,
            source_bytes: record.cursor.offset,
            stored_bytes: record.totals.bytes + stored.iter().map(|p| p.bytes).sum::<u64>(),
            pending_bytes: unsent.map(|p| p.bytes).sum(),
            redactions,
            started_at: Some(record.started_at.clone()),
            last_stored_at: stored
                .last()
                .and_then(|p| p.stored_at.clone())
                .or(record.totals.last_stored_at.clone()),
            ended_at: record.ended_at.clone(),
            problem: live.and_then(|l| l.problem.as_deref().or(l.undecided.as_deref())).cloned(),
            excluded: live.is_some_and(|l| l.excluded),
        }
    }

    pub(super) fn session_state(&self, key: &SessionKey, record: &Record) -> SessionState {
        let captured = self.live.get(key).and_then(|l| l.captured_at);
        match record {
            r if r.superseded => SessionState::Superseded,
            r if r.stopped => SessionState::Stopped,
            r if r.gone => SessionState::Gone,
            r if r.archived || r.ended_at.is_some() => SessionState::Ended,
            // Captured lately and written lately: a backlog is not live.
            _ if captured.is_some_and(|at| at.elapsed() < IDLE_AFTER)
                && self.age(&record.cursor.stat) < IDLE_AFTER =>
            {
                SessionState::Live
            }
            _ => SessionState::Idle,
        }
    }
}

// The end.
impl Engine {
    /// Last flush: looks at whatever may have something new, then says in the manifests that the sessions ended.
    pub(super) fn begin_drain(&mut self) {
        if !self.settings.once {
            info!("draining: a second signal ends at once");
        }
        self.enter(Phase::Stopping);
        self.drain_until = Some(Instant::now() + DRAIN_MAX);
        let taken = self.tools.hints.take();
        let mut keys: Vec<SessionKey> = taken
            .paths
            .iter()
            .filter_map(|path| self.by_path.get(path.as_path()).cloned())
            .collect();
        // Events can be late; whoever wrote since the start may have written just now.
        let touched = self.live.iter().filter(|(_, live)| live.captured_at.is_some());
        keys.extend(touched.map(|(key, _)| key.clone()));
        if taken.rescan {
            keys = self.state.state().sessions.keys().cloned().collect();
        }
        keys.iter().for_each(|key| self.mark_dirty(key));
        self.timers.clear();
        self.unplaced.clear();
        self.tick_at = Some(Instant::now());
    }

    /// Between the last look and the end: once nothing is being captured, sessions are said to have ended.
    pub(super) fn drain_step(&mut self) {
        if self.phase != Phase::Stopping {
            return;
        }
        let captured = !self.capturing && self.pass.is_empty() && self.dirty.is_empty();
        if captured && !self.ends_said {
            self.ends_said = true;
            let now = self.now_text();
            let live = &self.live;
            let sessions = self.state.state().sessions.iter();
            let changes = sessions
                .filter(|(key, r)| {
                    let touched = live.get(key).is_some_and(|l| l.captured_at.is_some());
                    touched && !r.superseded && r.ended_at.is_none()
                })
                .map(|(key, record)| {
                    let ended_at = Some(now.clone());
                    let record = Record { ended_at, manifest_due: true, ..(**record).clone() };
                    Change::Session { key: key.clone(), record: Box::new(record) }
                })
                .collect::<Vec<_>>();
            if !self.settings.once {
                self.commit(changes);
            }
            let keys: Vec<SessionKey> = self.state.state().sessions.keys().cloned().collect();
            self.wake_rested(true);
            keys.iter().for_each(|key| self.queue_send(key));
            self.start_sends();
        }
    }

    pub(super) fn is_finished(&mut self) -> bool {
        if self.settings.once && self.phase != Phase::Stopping {
            // What can be captured is, before: it is safe from its agent then.
            let captured = !self.capturing && self.pass.is_empty() && self.dirty.is_empty();
            if captured && self.standing.refusals >= ONCE_REFUSALS_MAX {
                warn!("the store refuses: giving up");
                return true;
            }
            let stalled = self.progress_at.elapsed() >= ONCE_STALL;
            if stalled {
                warn!("no progress for {} s: giving up", ONCE_STALL.as_secs());
            }
            return stalled;
        }
        if self.phase != Phase::Stopping {
            return false;
        }
        // What failed once is tried again before the end; a store that is away is not waited for.
        let waiting = !self.to_send.is_empty() && self.store_takes_sends()
            || !self.resting.is_empty() && !self.store_is_away();
        let sending = self.sends > 0 || waiting || self.is_mending();
        let merging = self.compactions.values().any(super::compactions::Running::is_swapping);
        let late = self.drain_until.is_some_and(|until| until <= Instant::now());
        late || (self.ends_said && !self.capturing && !sending && !merging)
    }

    /// Whether `--once` has nothing left to wait for.
    pub(super) fn is_settled(&self) -> bool {
        let unsafe_pending = self.state.state().sessions.iter().any(|(key, record)| {
            let held = self.live.get(key).is_some_and(|l| l.held_until.is_some());
            !held && record.pending.iter().any(|part| !part.named)
        });
        self.scan_done > 0
            && self.nothing_to_place()
            && (self.orphans.is_empty() || self.orphans_scan > self.scan_done)
            && self.dirty.is_empty()
            && self.pass.is_empty()
            && self.jobs.is_empty()
            && self
                .timers
                .iter()
                .all(|(_, key)| self.live.get(key).is_some_and(|l| l.held_until.is_some()))
            && self.compactions.is_empty()
            && !unsafe_pending
    }

    pub(super) fn sum_up(&self) -> Summary {
        let mut summary = self.summary.clone();
        summary.waiting = (self.unplaced.len() + self.placing.len()) as u64;
        for (key, record) in &self.state.state().sessions {
            summary.sessions += u64::from(!record.superseded);
            summary.unsent_parts +=
                record.pending.iter().filter(|p| p.stored_at.is_none()).count() as u64;
            let problem = self.live.get(key).and_then(|l| l.problem.as_ref());
            summary.failures.extend(problem.map(|p| format!("{key}: {}", p.message)));
        }
        for ((code, _), problem) in &self.problems {
            // A file that was never a session is worth a word; everything else means that something is not safe.
            let harmless = ["source_unreadable", "redaction_off", "two_writers"].contains(code);
            let list = if harmless { &mut summary.problems } else { &mut summary.failures };
            list.push(problem.message.clone());
        }
        summary
    }
}

/// Whether what was typed is a prefix that may stand for the session: generations and sub-agents only when typed, OpenClaw's
/// ids also after `agent__`.
fn is_short_for(typed: &str, key: &SessionKey) -> bool {
    let id = key.id();
    // A number is whole, what stands before it may be short.
    if let (Some((typed, number)), Some((base, own))) = (typed.split_once('~'), id.split_once('~'))
        && number == own
    {
        return is_prefix(typed, base, key.harness());
    }
    // Of a session with generations, its base stands for all of them.
    is_prefix(typed, id, key.harness())
        || (!typed.contains('~') && is_prefix(typed, key.base(), key.harness()))
}

fn is_prefix(typed: &str, id: &str, harness: &str) -> bool {
    let short = |id: &str| {
        id.strip_prefix(typed).is_some_and(|rest| {
            !rest.contains("__") && (!rest.contains('~') || typed.contains('~'))
        })
    };
    // Of a sub-agent both halves may be short.
    let halves = || {
        let (typed_parent, typed_own) = typed.rsplit_once("__")?;
        let (parent, own) = id.rsplit_once("__")?;
        let parent_rest = parent.strip_prefix(typed_parent)?;
        let own_rest = own.strip_prefix(typed_own)?;
        let typed = !typed_parent.is_empty() && !typed_own.is_empty();
        Some(typed && !parent_rest.contains("__") && !own_rest.contains('~'))
    };
    if harness == "openclaw"
        && let Some((agent, own)) = id.split_once("__")
        && (short(own) || agent.starts_with(typed))
    {
        return true;
    }
    short(id) || halves() == Some(true)
}

fn no_generation(session: &SessionKey, newest: u32) -> ErrorBody {
    let (generations, hint) = match newest {
        1 => ("1 generation".to_owned(), "leave --generation out".to_owned()),
        _ => (format!("{newest} generations"), format!("--generation 1 to {newest}")),
    };
    ErrorBody {
        code: ErrorCode::NoSuchSession,
        message: format!("{session} has {generations}"),
        hint: Some(hint),
    }
}

pub(super) fn no_such(typed: &str) -> ErrorBody {
    ErrorBody {
        code: ErrorCode::NoSuchSession,
        message: format!("no session matches {:?}", printable(typed)),
        hint: Some("`tracecraftctl list` shows all".to_owned()),
    }
}

pub(super) fn error(code: ErrorCode, message: &str) -> ErrorBody {
    ErrorBody { code, message: message.to_owned(), hint: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_short_for_what_begins_so_and_sub_agents_and_generations_only_where_their_marks_are_typed()
     {
        for (typed, key, short) in [
            ("01a2", "codex/01a202ff", true),
            ("a202", "codex/01a202ff", false),
            ("01a2", "codex/01a202ff__agent-7", false),
            ("01a2__agent", "codex/01a202ff__agent-7", true),
            ("01a202ff__a", "codex/01a202ff__agent-7", true),
            ("01a2__gent", "codex/01a202ff__agent-7", false),
            ("__agent", "codex/01a202ff__agent-7", false),
            ("01a202ff__", "codex/01a202ff__agent-7", true),
            ("01a2__agent", "codex/01a202ff__agent-7__deeper", false),
            ("01a2", "codex/01a202ff~2", true),
            ("01a2~2", "codex/01a202ff~2", true),
            ("01a2~2", "codex/01a202ff~3", false),
            ("01a2~2", "codex/01a202ff", false),
            ("01a2__ag~2", "codex/01a202ff__agent-7~2", true),
            ("4c2c", "openclaw/main__4c2c0f6c", true),
            ("mai", "openclaw/main__4c2c0f6c", true),
            ("main__4c2c", "openclaw/main__4c2c0f6c", true),
            ("4c2c~2", "openclaw/main__4c2c0f6c~2", true),
            ("main__4c2c", "openclaw/main__4c2c0f6c__sub", false),
        ] {
            let key: SessionKey = key.parse().unwrap();
            assert_eq!(is_short_for(typed, &key), short, "{typed} {key}");
        }
    }
}
