//! Waits that end when all that was there at a call is safe: flushes and stops.
//!
//! Knows what somebody waits for and whether it is so; refuses to make it so: looks and sends come from the mirror's other work.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Engine;
use super::answer::no_such;
use super::handle::Answer;
use crate::api::{ErrorBody, ErrorCode, Flushed, Session};
use crate::part::SessionKey;
use crate::state::Record;

/// A flush that a signal asked for is over after this, whatever is left.
const SIGNALLED_MAX: Duration = Duration::from_secs(60);

/// Somebody who waits until sessions are safe.
#[derive(Debug)]
pub(super) struct Waiter {
    /// A scan that began after the call has to end first.
    scan: u64,
    /// Sessions that are to be looked at; `None` until that scan is done.
    unlooked: Option<BTreeSet<SessionKey>>,
    /// Of these a look was under way already, which may have passed what was there at the call.
    stale: BTreeSet<SessionKey>,
    /// One session, or all.
    pub(super) only: Option<SessionKey>,
    /// Parts below these numbers are to be stored and named.
    targets: BTreeMap<SessionKey, u32>,
    parts_before: u64,
    bytes_before: u64,
    /// When it was asked for.
    since: Instant,
    pub(super) reply: Reply,
}

/// Whom to tell, and what.
#[derive(Debug)]
pub(super) enum Reply {
    /// A signal asked.
    Nobody,
    /// What a flush stored.
    Flushed(oneshot::Sender<Answer<Flushed>>),
    /// The session that is stopped now.
    Stopped(oneshot::Sender<Answer<Session>>),
}

impl Engine {
    /// Looks everywhere and at everything, at once.
    pub(super) fn flush_all(&mut self, reply: Option<oneshot::Sender<Answer<Flushed>>>) {
        self.scan_at = Instant::now();
        self.held.clear(); // Somebody may have mended what held them back.
        self.wait_for(None, reply.map_or(Reply::Nobody, Reply::Flushed));
    }

    pub(super) fn wait_for(&mut self, only: Option<SessionKey>, reply: Reply) {
        let unlooked = only.clone().map(|key| BTreeSet::from([key]));
        let stale = unlooked.iter().flatten().filter(|key| self.is_looking(key)).cloned().collect();
        self.waiters.push(Waiter {
            // A scan that is under way may have passed the newest file already.
            scan: if only.is_some() { 0 } else { self.scans + 1 },
            unlooked,
            stale,
            only: only.clone(),
            targets: BTreeMap::new(),
            parts_before: self.summary.parts,
            bytes_before: self.summary.bytes,
            since: Instant::now(),
            reply,
        });
        self.tick_at = self.tick_at.map(|_| Instant::now());
        // Somebody may have mended what held them back: what is said of it is to be true now.
        for (_, live) in self.live.iter_mut().filter(|(key, _)| of(only.as_ref(), key)) {
            live.held_until = live.held_until.map(|_| Instant::now());
        }
        self.wake_rested(true);
        let keys: Vec<SessionKey> = self.state.state().sessions.keys().cloned().collect();
        keys.iter().for_each(|key| self.queue_send(key));
    }

    /// A file is gone or was replaced before it was placed: the next scan tells. What waits in the outbox and who waits for a
    /// flush wait for that scan.
    pub(super) fn leave_to_scan(&mut self) {
        self.scan_at = self.scan_at.min(Instant::now());
        self.orphans_scan = self.scans + 1;
        for waiter in self.waiters.iter_mut().filter(|waiter| waiter.unlooked.is_none()) {
            waiter.scan = self.scans + 1;
        }
    }

    /// A session was looked at to its end, or cannot be looked at.
    pub(super) fn note_looked(&mut self, key: &SessionKey) {
        for waiter in &mut self.waiters {
            if let Some(unlooked) = &mut waiter.unlooked
                && !waiter.stale.remove(key)
            {
                unlooked.remove(key);
            }
        }
    }

    /// Nobody waits for a look at a session that is not looked at any more.
    pub(super) fn note_unwatched(&mut self, key: &SessionKey) {
        for waiter in &mut self.waiters {
            waiter.stale.remove(key);
            if let Some(unlooked) = &mut waiter.unlooked {
                unlooked.remove(key);
            }
        }
    }

    fn is_looking(&self, key: &SessionKey) -> bool {
        self.live.get(key).is_some_and(|live| live.looking)
    }

    /// A generation ended: who waits for the session waits for the next one.
    pub(super) fn note_superseded(&mut self, key: &SessionKey) {
        let next = self.newest(key).map(|(next, _)| next.clone());
        for waiter in &mut self.waiters {
            if let Some(unlooked) = &mut waiter.unlooked
                && unlooked.remove(key)
            {
                unlooked.extend(next.clone().filter(|next| next != key));
            }
        }
    }

    /// A generation was left to another writer, with everything that it held: who waits for it waits for the next one.
    pub(super) fn note_moved(&mut self, from: &SessionKey, to: &SessionKey, below: u32) {
        for waiter in &mut self.waiters {
            if let Some(unlooked) = &mut waiter.unlooked
                && unlooked.remove(from)
            {
                unlooked.insert(to.clone());
            }
            if waiter.targets.remove(from).is_some() {
                waiter.targets.insert(to.clone(), below);
            }
        }
    }

    /// A source is captured once more from its beginning: who waits for what was moved waits for that, too.
    pub(super) fn note_anew(&mut self, moved: &SessionKey, anew: &SessionKey) {
        for waiter in &mut self.waiters {
            let waits = waiter.targets.contains_key(moved);
            if let Some(unlooked) = &mut waiter.unlooked
                && (waits || unlooked.contains(moved))
            {
                unlooked.insert(anew.clone());
            }
        }
    }

    /// The numbers of a session begin again: who waits for what was captured before has it.
    pub(super) fn note_turned(&mut self, key: &SessionKey, next: u32) {
        for waiter in &mut self.waiters {
            if let Some(target) = waiter.targets.get_mut(key) {
                *target = next.min(*target);
            }
        }
    }

    /// Answers whoever waits for something that is now so.
    pub(super) fn answer_waiters(&mut self) {
        let mut waiting = Vec::new();
        // An answer may begin another wait (the end of a stop), which may be over at once: nothing else would wake the loop.
        while !self.waiters.is_empty() {
            for mut waiter in std::mem::take(&mut self.waiters) {
                if self.is_answered(&mut waiter) {
                    self.reply(waiter);
                } else {
                    waiting.push(waiter);
                }
            }
        }
        self.waiters = waiting;
    }

    fn is_answered(&mut self, waiter: &mut Waiter) -> bool {
        // Where nobody waits, nothing is kept for a store that fails: what is left follows when it is back, asked for or not.
        // As long as somebody waits the interval does not count, and nothing is merged.
        let signalled = matches!(waiter.reply, Reply::Nobody);
        if signalled && (self.store_is_away() || waiter.since.elapsed() >= SIGNALLED_MAX) {
            return true;
        }
        if waiter.unlooked.is_none() {
            let scanned = self.scan_done >= waiter.scan && self.nothing_to_place();
            if !scanned {
                return false;
            }
            let followed = |(key, record): (&SessionKey, &Record)| {
                let excluded = self.live.get(key).is_some_and(|live| live.excluded);
                // One that is gone, too: its file may be back since.
                (!record.superseded && !record.stopped && !excluded).then(|| key.clone())
            };
            let keys: BTreeSet<SessionKey> = self
                .state
                .state()
                .sessions
                .iter()
                .map(|(key, record)| (key, &**record))
                .filter_map(followed)
                .collect();
            keys.iter().for_each(|key| self.mark_dirty(key));
            waiter.stale = keys.iter().filter(|key| self.is_looking(key)).cloned().collect();
            waiter.unlooked = Some(keys);
        }
        if waiter.unlooked.as_ref().is_some_and(|keys| !keys.is_empty()) {
            return false;
        }
        if waiter.targets.is_empty() {
            let sessions = self.state.state().sessions.iter();
            waiter.targets = sessions
                .filter(|(key, _)| of(waiter.only.as_ref(), key))
                .map(|(key, record)| (key.clone(), record.next_seq))
                .collect();
        }
        // Nobody waits for a person to mend a manifest: the answer is an error that says which.
        waiter
            .targets
            .iter()
            .all(|(key, target)| self.is_safe(key, *target) || self.held_back(key).is_some())
    }

    /// What holds a session's parts back, if something does that time does not mend.
    fn held_back(&self, key: &SessionKey) -> Option<&str> {
        let live = self.live.get(key).filter(|live| live.held_until.is_some())?;
        live.problem.as_ref().map(|problem| problem.message.as_str())
    }

    /// Why not all is safe that somebody waited for.
    fn unflushed(&self, waiter: &Waiter) -> Option<ErrorBody> {
        let sent = waiter.targets.iter().find_map(|(key, target)| {
            let why = self.held_back(key).filter(|_| !self.is_safe(key, *target))?;
            Some(format!("{key}: {why}"))
        });
        let unadopted = self.problems.iter().filter(|_| waiter.only.is_none());
        let message = sent.or_else(|| {
            unadopted
                .filter(|((code, _), _)| *code == "manifest_invalid")
                .map(|((_, object), problem)| format!("{object}: {}", problem.message))
                .next()
        })?;
        let hint = Some("mend or remove the object; everything else is stored".to_owned());
        Some(ErrorBody { code: ErrorCode::Store, message, hint })
    }

    /// Whether all parts below a number are stored and named, and the manifest says what the record says.
    fn is_safe(&self, key: &SessionKey, below: u32) -> bool {
        self.state.get(key).is_none_or(|record| {
            let due = record.manifest_due && record.totals.parts > 0;
            !due && !record.pending.iter().any(|part| part.seq < below && !part.named)
        })
    }

    fn reply(&mut self, waiter: Waiter) {
        let failure = self.unflushed(&waiter);
        match waiter.reply {
            Reply::Nobody => {}
            Reply::Flushed(reply) => {
                if let Some(error) = failure {
                    return drop(reply.send(Err(error)));
                }
                let rest = |key| {
                    let excluded = self.live.get(key).is_some_and(|live| live.excluded);
                    let followed = |r: &&Record| !(r.superseded || r.stopped || r.gone || excluded);
                    self.state.get(key).filter(followed)?.cursor.rest
                };
                let flushed = Flushed {
                    unfinished_bytes: waiter.targets.keys().filter_map(rest).sum(),
                    sessions: waiter.targets.len() as u64,
                    parts: self.summary.parts - waiter.parts_before,
                    bytes: self.summary.bytes - waiter.bytes_before,
                };
                drop(reply.send(Ok(flushed)));
            }
            Reply::Stopped(reply) => {
                let Some(key) = waiter.only else { return };
                match self.state.get(&key) {
                    // It is not followed any more, whatever its manifest says.
                    Some(record) if record.stopped => drop(reply.send(match failure {
                        Some(error) => Err(not_said(error)),
                        None => Ok(self.session(&key, record)),
                    })),
                    // The last flush is done: now it is ended, and the manifest has to say so too.
                    Some(record) => self.end_stopped(key.clone(), record.clone(), reply),
                    None => drop(reply.send(Err(no_such(key.id())))),
                }
            }
        }
    }
}

/// Whether a wait for one session, or for all, is about this one or an earlier generation of it.
fn of(only: Option<&SessionKey>, key: &SessionKey) -> bool {
    only.is_none_or(|only| only.harness() == key.harness() && only.base() == key.base())
}

/// The answer to a stop whose manifest cannot be put.
fn not_said(error: ErrorBody) -> ErrorBody {
    let message = format!("stopped, but the store cannot be told: {}", error.message);
    let hint = "mend or remove the object: what waits for it follows within a minute".to_owned();
    ErrorBody { message, hint: Some(hint), ..error }
}
