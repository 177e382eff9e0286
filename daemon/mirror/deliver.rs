//! What is sent when, and what a failing store means.

use std::cmp::Reverse;

use tokio::time::Instant;
use tracing::{debug, error};

use super::compact::OVERWRITTEN_WITHIN;
use super::compactions::Running;
use super::manifest::Failure;
use super::send::{Named, Sent, send};
use super::{
    Done, Engine, IDLE_AFTER, MANIFEST_EVERY, SENDS_MAX, SENDS_MAX_REMOTE, SESSION_RETRY, chain,
    manifest,
};
use crate::api::{Event, Phase};
use crate::part::{ManifestError, SessionKey};
use crate::state::{Change, PendingPart, Record};

/// Entries of manifests that sends hold in memory at a time: one takes about 2 KB with its text, and after an outage all
/// sessions are named at once. A manifest that has more is put when no other is.
const ENTRIES_HELD_MAX: u64 = 1024;

impl Engine {
    /// Puts a session into the send queue if it has anything to send or to name.
    pub(super) fn queue_send(&mut self, key: &SessionKey) {
        let Some(record) = self.state.get(key) else { return };
        let rank = Reverse(record.cursor.stat.mtime_ns);
        let unsent = record.pending.iter().any(|p| p.stored_at.is_none());
        if !unsent && !self.wants_manifest(key, record) {
            return;
        }
        let live = self.live.entry(key.clone()).or_default();
        if live.sending
            || live.queued.is_some()
            || live.held_until.is_some_and(|at| at > Instant::now())
            || live.rests_until.is_some()
        {
            return;
        }
        live.held_until = None;
        live.queued = Some(rank);
        self.to_send.insert((rank, key.clone()));
    }

    /// Whether the manifest is to be put now. A local one costs nothing; a remote one follows its parts with some delay.
    pub(super) fn wants_manifest(&self, key: &SessionKey, record: &Record) -> bool {
        let unnamed = record.pending.iter().any(PendingPart::is_unnamed);
        let unsure = record.pending.iter().any(|p| p.named);
        let has_objects = record.totals.parts > 0 || unnamed || unsure;
        if !has_objects && !self.tools.store.is_local() {
            return false;
        }
        if record.manifest_due && has_objects {
            return true;
        }
        let live = self.live.get(key);
        let since = |at: Option<Instant>, wait| at.is_some_and(|at| Instant::now() >= at + wait);
        let merging = self.compactions.get(key).is_some_and(Running::wants_names);
        let sure = !manifest::may_be_overwritten(&*self.tools.store);
        if unsure && (merging && sure || since(live.and_then(|l| l.unnamed_since), MANIFEST_EVERY))
        {
            return true;
        }
        unnamed
            && (self.tools.store.is_local()
                || !self.waiters.is_empty()
                || merging
                || self.settings.once
                || self.phase == Phase::Stopping
                || since(live.and_then(|l| l.unnamed_since), MANIFEST_EVERY)
                || since(live.and_then(|l| l.captured_at), IDLE_AFTER)
                || live.is_none_or(|l| l.captured_at.is_none()))
    }

    pub(super) fn start_sends(&mut self) {
        self.wake_rested(false);
        if !self.store_takes_sends() {
            return;
        }
        self.start_leaving();
        self.start_compactions();
        let most = match self.tools.store.is_local() {
            _ if self.store_is_away() => 1,
            true => SENDS_MAX,
            false => SENDS_MAX_REMOTE,
        };
        while self.sends < most
            && let Some(key) = self.next_to_send()
        {
            let live = self.live(&key);
            live.queued = None;
            if live.sending {
                continue; // A swap has begun since it was queued: two writers of one manifest would lose each other's parts.
            }
            let Some(mut job) = self.new_send(&key) else { continue };
            if self.entries_held > 0 && self.entries_held + job.entries > ENTRIES_HELD_MAX {
                if job.parts.is_empty() {
                    self.queue_send(&key);
                    break; // The end of a send that holds a manifest wakes the loop.
                }
                job.put_off_naming();
            }
            self.entries_held += job.entries;
            self.live(&key).sending = true;
            self.sends += 1;
            let tools = self.tools.clone();
            self.jobs.push(Box::pin(async move { Done::Sent(Box::new(send(tools, job).await)) }));
        }
        self.start_automatic();
    }

    pub(super) fn sent(&mut self, sent: Sent) {
        self.sends -= 1;
        self.entries_held -= sent.entries;
        let key = &sent.key;
        self.live(key).sending = false;
        let mut changes: Vec<Change> = Vec::new();
        for (part, at) in &sent.stored {
            changes.push(Change::Stored { key: key.clone(), seq: part.seq, at: at.clone() });
        }
        if let Some(named) = &sent.named {
            // The record may have changed while the manifest was on its way.
            let due = self.state.get(key).is_some_and(|record| !named.header.is_of(record));
            let (next_seq, unsure_from) = (named.next_seq, self.unsure_from(key, named));
            let (key, totals) = (key.clone(), named.totals.clone());
            changes.push(Change::Named { key, next_seq, unsure_from, totals, due });
        }
        if !self.commit(changes) {
            // Nothing has happened as far as we know: the same puts are made again, with the same bytes.
            self.hold_store_retry();
            self.queue_send(key);
            return;
        }
        for (part, at) in &sent.stored {
            self.outbox_bytes = self.outbox_bytes.saturating_sub(part.bytes);
            self.summary.parts += 1;
            self.summary.bytes += part.bytes;
            self.last_stored_at = Some(at.clone());
            self.tell_listeners(|_| Event::Stored {
                at: at.clone(),
                harness: key.harness().to_owned(),
                id: key.id().to_owned(),
                seq: part.seq,
                bytes: part.bytes,
            });
            self.progress_at = Instant::now();
            // A store elsewhere has left the file to us. Killed here: the next start sweeps it.
            let path = self.outbox.path(key, part);
            if let Err(e) = self.tools.disk.remove(&path) {
                debug!(session = %key, error = %e, "cannot remove a stored part from the outbox");
            }
        }
        if sent.named.is_some() {
            self.live(key).unnamed_since = None;
            self.note_mergeable(key);
        }
        self.note_unnamed(key);
        if let Some(part) = sent.lost {
            self.lost(key, part.seq);
        }
        let progress = !sent.stored.is_empty() || sent.named.is_some();
        if progress || sent.error.is_none() {
            self.store_works();
        }
        match sent.error {
            None => {
                self.live(key).failures = 0;
                self.clear_send_problem(key);
            }
            Some(failure) => {
                self.rest_after(key, &failure, progress);
                self.send_failed(key, failure);
            }
        }
        let idle = self.state.get(key).is_some_and(|r| r.pending.is_empty());
        if idle {
            self.outbox.tidy(&*self.tools.disk, key);
        }
        self.queue_send(key);
    }

    /// The first part whose name may still get lost. A write that another writer began before ours may replace it: the reference
    /// tool asks for no condition anywhere, and where conditions mean nothing nor does another recorder. So a name is
    /// trusted when it is read, and read no sooner than such a write can take.
    fn unsure_from(&mut self, key: &SessionKey, named: &Named) -> Option<u32> {
        if self.tools.store.is_local() {
            return None;
        }
        let now = Instant::now();
        let soon = manifest::may_be_overwritten(&*self.tools.store)
            && self.live(key).named_at.is_some_and(|at| now < at + OVERWRITTEN_WITHIN);
        if named.added_from.is_some() {
            self.live(key).named_at = Some(now);
        }
        if soon { named.first } else { named.added_from }
    }

    fn note_unnamed(&mut self, key: &SessionKey) {
        let unnamed =
            self.state.get(key).is_some_and(|r| r.pending.iter().any(|p| p.stored_at.is_some()));
        let now = Instant::now();
        let live = self.live(key);
        match (unnamed, live.unnamed_since) {
            (false, _) => live.unnamed_since = None,
            (true, Some(_)) => {}
            (true, None) => {
                live.unnamed_since = Some(now);
                // `--once` names a part as soon as it is stored, and would wait for a look that has nothing to do.
                if !self.settings.once {
                    self.look_at(key, now + MANIFEST_EVERY);
                }
            }
        }
    }

    pub(super) fn send_failed(&mut self, key: &SessionKey, failure: Failure) {
        match failure {
            Failure::Manifest(error @ ManifestError::UnknownVersion { .. }) => {
                self.fatal = Some(error.into());
            }
            Failure::Store(error) => self.store_failed(&error),
            Failure::Conflict { .. } => {
                self.store_works();
                self.start_retreat(key);
            }
            other => {
                self.store_works(); // It answered: what it holds is the matter.
                let hint = "mend or remove the object; captured parts wait in the outbox";
                self.session_problem(key, "manifest_invalid", &chain(&other), Some(hint));
                let at = Instant::now() + SESSION_RETRY;
                self.live(key).held_until = Some(at);
                self.look_at(key, at);
            }
        }
    }

    /// A part that the state says is captured is nowhere. What is left is kept, and the source is captured anew.
    fn lost(&mut self, key: &SessionKey, seq: u32) {
        error!(session = %key, seq, "a captured part is neither in the outbox nor in the store");
        let Some(record) = self.state.get(key) else { return };
        let mut record = record.clone();
        record.pending.retain(|p| p.seq != seq);
        let superseded = record.superseded;
        let change = Change::Session { key: key.clone(), record: Box::new(record) };
        if self.commit(vec![change]) && !superseded {
            self.next_generation(key, "a captured part was lost from the outbox");
        }
    }
}
