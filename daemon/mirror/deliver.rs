//! What is sent when, what a failing store means, and the steps of a compaction.

use std::cmp::Reverse;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, error, info};

use super::compact::OVERWRITTEN_WITHIN;
use super::compact::{self, Plan};
use super::manifest::{Failure, Header};
use super::pause::rest;
use super::send::{Named, SEND_PARTS_MAX, Send, Sent, send};
use super::{
    Done, Engine, IDLE_AFTER, MANIFEST_EVERY, SENDS_MAX, SENDS_MAX_REMOTE, SESSION_RETRY, chain,
    manifest,
};
use crate::api::{ErrorBody, ErrorCode, Phase, Progress};
use crate::part::{Manifest, ManifestError, PartEntry, SessionKey};
use crate::state::{Change, Compaction, PendingPart, Record};
use crate::store::ErrorKind;

/// Steps of a compaction that may fail in a row before whoever asked for it is told; what was begun goes on all the same.
const COMPACTION_FAILURES_MAX: u32 = 8;

/// A compaction under way.
#[derive(Debug)]
pub(super) struct Running {
    progress: mpsc::Sender<Progress>,
    parts_before: u64,
    keep_tail: usize,
    stage: Stage,
    /// Steps in a row that failed on their way, and until when it rests.
    failures: u32,
    rests_until: Option<Instant>,
}

impl Running {
    fn new(progress: mpsc::Sender<Progress>, keep_tail: usize, stage: Stage) -> Running {
        Running { progress, parts_before: 0, keep_tail, stage, failures: 0, rests_until: None }
    }

    /// Whether it asks the store something now.
    fn is_asking(&self) -> bool {
        matches!(self.stage, Stage::Preparing | Stage::Swapping)
    }

    /// Whether the store is between two manifests.
    pub(super) fn is_swapping(&self) -> bool {
        self.stage == Stage::Swapping
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// What is stored is to be named first, so that it is merged too.
    Naming,
    /// Planning, merging or putting: nothing that readers see has changed.
    Preparing,
    /// The merged part is to be put again when the store answers.
    Unpublished,
    /// Stored; waits until nobody else writes the manifest.
    Ready,
    /// The manifest is being swapped.
    Swapping,
}

/// What a step of a compaction brings back.
#[derive(Debug)]
pub(super) enum Step {
    Planned(SessionKey, Result<Plan, Failure>),
    Merged(SessionKey, Result<Compaction, Failure>),
    Published(SessionKey, Result<bool, Failure>),
    Swapped(SessionKey, Result<Box<Manifest>, Failure>),
    Swept(SessionKey, Result<(), Failure>),
}

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
    fn wants_manifest(&self, key: &SessionKey, record: &Record) -> bool {
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
        let merging = self.compactions.get(key).is_some_and(|run| run.stage == Stage::Naming);
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
            let Some(job) = self.new_send(&key) else { continue };
            self.live(&key).sending = true;
            self.sends += 1;
            let tools = self.tools.clone();
            self.jobs.push(Box::pin(async move { Done::Sent(Box::new(send(tools, job).await)) }));
        }
    }

    /// Takes the next steps of compactions that waited for the store, or for the manifest to be free.
    fn start_compactions(&mut self) {
        let now = Instant::now();
        let waiting: Vec<(SessionKey, Stage)> = self
            .compactions
            .iter()
            .filter(|(_, run)| !run.is_asking() && run.rests_until.is_none_or(|at| at <= now))
            .map(|(key, run)| (key.clone(), run.stage))
            .collect();
        for (key, stage) in waiting {
            // Whether the store is back one of them finds out.
            if self.store_is_away() && self.compactions.values().any(Running::is_asking) {
                return;
            }
            match stage {
                Stage::Naming => self.start_plan(key),
                Stage::Unpublished => self.start_publish(key),
                Stage::Ready if !self.live(&key).sending => self.start_swap(&key),
                _ => {}
            }
        }
    }

    fn new_send(&self, key: &SessionKey) -> Option<Send> {
        let record = self.state.get(key)?;
        let unsent = record.pending.iter().filter(|p| p.stored_at.is_none());
        let parts: Vec<_> = unsent
            .take(SEND_PARTS_MAX)
            .map(|part| (part.clone(), self.outbox.path(key, part)))
            .collect();
        let unnamed: Vec<PartEntry> = record
            .pending
            .iter()
            .filter(|p| p.stored_at.is_some())
            .map(PendingPart::entry)
            .collect();
        let names =
            self.tools.store.is_local() && !parts.is_empty() || self.wants_manifest(key, record);
        let rules = self.settings.redactor.rules_version();
        let header = names.then(|| Header::new(record, rules, &self.now_text()));
        let before = record.named_bytes;
        let key = key.clone();
        let any = !parts.is_empty() || header.is_some();
        any.then_some(Send { key, parts, unnamed, before, header })
    }

    pub(super) fn sent(&mut self, sent: Sent) {
        self.sends -= 1;
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
            self.progress_at = Instant::now();
            // A store elsewhere has left the file to us. Killed here: the next start sweeps it.
            let path = self.outbox.path(key, part);
            if let Err(e) = self.tools.disk.remove(&path) {
                debug!(session = %key, error = %e, "cannot remove a stored part from the outbox");
            }
        }
        if sent.named.is_some() {
            self.live(key).unnamed_since = None;
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

// Compaction.
impl Engine {
    /// Begins a compaction that somebody asked for.
    pub(super) fn begin_compaction(
        &mut self,
        key: SessionKey,
        keep_tail: usize,
        progress: mpsc::Sender<Progress>,
    ) {
        if self.compactions.contains_key(&key) {
            let message = format!("{key} is being compacted already");
            fail(&progress, ErrorCode::Busy, message);
            return;
        }
        if self.deletes == Some(false) {
            fail(&progress, ErrorCode::Store, "this store refuses to delete".to_owned());
            return;
        }
        let running = Running::new(progress, keep_tail, Stage::Naming);
        self.compactions.insert(key.clone(), running);
        self.queue_send(&key);
    }

    /// Plans a compaction when everything that is stored is named, or cannot be. Where names may still get lost, the newest
    /// parts stay as they are.
    fn start_plan(&mut self, key: SessionKey) {
        let held = self.live.get(&key).is_some_and(|live| live.held_until.is_some());
        let sure = !manifest::may_be_overwritten(&*self.tools.store);
        let waits = |p: &PendingPart| if sure { p.stored_at.is_some() } else { p.is_unnamed() };
        let unnamed = |r: &Record| r.pending.iter().any(waits);
        if !held && (self.live(&key).sending || self.state.get(&key).is_some_and(unnamed)) {
            self.queue_send(&key);
            return;
        }
        let Some(run) = self.compactions.get_mut(&key) else { return };
        run.stage = Stage::Preparing;
        let keep_tail = run.keep_tail;
        let (store, try_delete) = (self.tools.store.clone(), self.deletes.is_none());
        self.jobs.push(Box::pin(async move {
            let plan = compact::plan(&*store, &key, keep_tail, try_delete).await;
            Done::Compaction(Box::new(Step::Planned(key, plan)))
        }));
    }

    /// Finishes a compaction that a former process began.
    pub(super) fn finish_compaction(&mut self, key: &SessionKey) {
        let (progress, _) = mpsc::channel(1);
        let running = Running::new(progress, 0, Stage::Preparing);
        self.compactions.insert(key.clone(), running);
        self.start_publish(key.clone());
    }

    pub(super) fn compaction_step(&mut self, step: Step) {
        match step {
            Step::Planned(key, Ok(plan)) => {
                self.deletes = Some(true);
                self.planned(key, plan);
            }
            Step::Planned(key, Err(Failure::Store(error)))
                if error.kind == ErrorKind::Denied && error.operation == "delete" =>
            {
                self.deletes = Some(false);
                let hint = "allow deleting below the project, or leave sessions as they are";
                let message = "this store refuses to delete: compaction is off";
                self.problem("compaction_off", "", message, Some(hint));
                self.give_up(&key, Some(Failure::Store(error)));
            }
            Step::Merged(key, Ok(compaction)) => self.merged(key, compaction),
            Step::Published(key, Ok(true)) => {
                if let Some(run) = self.compactions.get_mut(&key) {
                    (run.stage, run.failures) = (Stage::Ready, 0);
                }
            }
            Step::Published(key, Ok(false)) => self.start_sweep(key),
            Step::Swapped(key, Ok(manifest)) => self.swapped(&key, &manifest),
            Step::Swept(key, Ok(())) => self.give_up(&key, None),
            // Nothing has changed yet: it begins again, and whoever asked for it still waits.
            Step::Planned(key, Err(failure)) | Step::Merged(key, Err(failure)) => {
                if !self.rest_compaction(&key, &failure, Stage::Naming) {
                    self.note_given_up(&key, &failure);
                    self.give_up(&key, Some(failure));
                }
            }
            // Putting and sweeping begin with the same question: is the merged part there?
            Step::Published(key, Err(failure)) | Step::Swept(key, Err(failure)) => {
                self.compaction_failed(key, failure, Stage::Unpublished);
            }
            Step::Swapped(key, Err(failure)) => {
                self.live(&key).sending = false;
                self.queue_send(&key);
                self.compaction_failed(key, failure, Stage::Ready);
            }
        }
    }

    fn planned(&mut self, key: SessionKey, mut plan: Plan) {
        // A part that the state still holds for pending may be named already, by a send whose commit failed. It stays as it is
        // until the state knows: else the next send would look for it in vain.
        let settled = self.state.get(&key).and_then(|r| r.pending.first()).map(|part| part.seq);
        plan.inputs.retain(|part| settled.is_none_or(|seq| part.seq < seq));
        let Some(run) = self.compactions.get_mut(&key) else { return };
        run.parts_before = plan.parts_before as u64;
        if plan.inputs.len() < 2 || self.phase == Phase::Stopping {
            let parts = run.parts_before;
            let done = Progress::Done { parts_before: parts, parts_after: parts, merged_bytes: 0 };
            let _ = run.progress.try_send(done);
            self.compactions.remove(&key);
            return;
        }
        let tools = compact::Tools {
            store: self.tools.store.clone(),
            disk: self.tools.disk.clone(),
            blocking: self.tools.blocking.clone(),
        };
        let (into, now) = (self.outbox.merging(&key), self.now_text());
        let progress = self.compactions[&key].progress.clone();
        self.jobs.push(Box::pin(async move {
            let merged = compact::merge(&tools, &key, &plan.inputs, into, now, &progress).await;
            Done::Compaction(Box::new(Step::Merged(key, merged)))
        }));
    }

    /// The merged file is durable: from here on a restart finishes what was begun.
    fn merged(&mut self, key: SessionKey, compaction: Compaction) {
        let Some(record) = self.state.get(&key) else { return };
        let record = Record { compaction: Some(compaction), ..record.clone() };
        let change = Change::Session { key: key.clone(), record: Box::new(record) };
        if self.commit(vec![change]) {
            self.start_publish(key);
        } else {
            let what = Failure::Damaged {
                key: self.settings.state_dir.display().to_string(),
                what: "not writable now".into(),
            };
            self.give_up(&key, Some(what));
        }
    }

    fn start_publish(&mut self, key: SessionKey) {
        let Some(compaction) = self.state.get(&key).and_then(|r| r.compaction.clone()) else {
            return;
        };
        if let Some(run) = self.compactions.get_mut(&key) {
            run.stage = Stage::Preparing;
        }
        let (store, file) = (self.tools.store.clone(), self.outbox.merging(&key));
        self.jobs.push(Box::pin(async move {
            let published = compact::publish(&*store, &key, &compaction.merged, file).await;
            Done::Compaction(Box::new(Step::Published(key, published.map_err(Failure::from))))
        }));
    }

    fn start_swap(&mut self, key: &SessionKey) {
        let Some(compaction) = self.state.get(key).and_then(|r| r.compaction.clone()) else {
            self.compactions.remove(key);
            return;
        };
        if let Some(run) = self.compactions.get_mut(key) {
            run.stage = Stage::Swapping;
        }
        self.live(key).sending = true; // Nobody else of this process writes the manifest meanwhile.
        let (store, key) = (self.tools.store.clone(), key.clone());
        self.jobs.push(Box::pin(async move {
            let swapped = compact::swap(&*store, &key, &compaction).await.map(Box::new);
            Done::Compaction(Box::new(Step::Swapped(key, swapped)))
        }));
    }

    fn start_sweep(&mut self, key: SessionKey) {
        let Some(compaction) = self.state.get(&key).and_then(|r| r.compaction.clone()) else {
            return;
        };
        let store = self.tools.store.clone();
        self.jobs.push(Box::pin(async move {
            let swept = compact::sweep(&*store, &key, &compaction).await;
            Done::Compaction(Box::new(Step::Swept(key, swept)))
        }));
    }

    fn swapped(&mut self, key: &SessionKey, manifest: &Manifest) {
        self.live(key).sending = false;
        let Some(record) = self.state.get(key) else { return };
        let merged_bytes = record.compaction.as_ref().map_or(0, |c| c.merged.uploaded_bytes);
        let totals = manifest::totals(manifest).above(&record.totals);
        let record = Record { compaction: None, totals, ..record.clone() };
        let change = Change::Session { key: key.clone(), record: Box::new(record) };
        if !self.commit(vec![change]) {
            // Swapping again changes nothing and deletes nothing twice.
            self.hold_store_retry();
            if let Some(run) = self.compactions.get_mut(key) {
                run.stage = Stage::Ready;
            }
            return;
        }
        let _ = self.tools.disk.remove(&self.outbox.merging(key));
        self.outbox.tidy(&*self.tools.disk, key);
        let parts_after = manifest.parts.len() as u64;
        if let Some(run) = self.compactions.remove(key) {
            info!(session = %key, before = run.parts_before, after = parts_after, "compacted");
            let parts_before = run.parts_before;
            let done = Progress::Done { parts_before, parts_after, merged_bytes };
            // The receiver reads at its own pace; the channel has room, or nobody listens.
            let _ = run.progress.try_send(done);
        }
        self.queue_send(key);
    }

    /// A step failed after the intent was committed: the intent stays, and the steps are taken again later.
    fn compaction_failed(&mut self, key: SessionKey, failure: Failure, again: Stage) {
        if !self.rest_compaction(&key, &failure, again)
            && let Some(run) = self.compactions.get(&key)
        {
            fail(&run.progress, ErrorCode::Store, chain(&failure));
        }
        match failure {
            Failure::Store(_) => {}
            other => {
                let hint = "the session's parts are as they were before the compaction";
                self.session_problem(&key, "compaction_failed", &chain(&other), Some(hint));
                self.start_sweep(key);
            }
        }
    }

    /// Lets a compaction rest after a step that the store failed, and take it again. `false`: whoever asked for it is to hear that
    /// it has to wait, because the store is away or this does not pass by itself.
    fn rest_compaction(&mut self, key: &SessionKey, failure: &Failure, again: Stage) -> bool {
        let Failure::Store(error) = failure else { return false };
        self.store_failed_if(error);
        let away = self.store_is_away() || !error.kind.passes();
        let Some(run) = self.compactions.get_mut(key) else { return false };
        run.failures += 1;
        run.stage = again;
        run.rests_until = Some(Instant::now() + rest(key, run.failures));
        !away && run.failures < COMPACTION_FAILURES_MAX
    }

    /// When a compaction has rested.
    pub(super) fn compaction_due(&self) -> Option<Instant> {
        self.compactions
            .values()
            .filter_map(|run| run.rests_until)
            .filter(|at| *at > Instant::now())
            .min()
    }

    /// Ends a compaction without a result; readers never saw it.
    fn give_up(&mut self, key: &SessionKey, failure: Option<Failure>) {
        if let Some(record) = self.state.get(key)
            && record.compaction.is_some()
        {
            let record = Record { compaction: None, ..record.clone() };
            let change = Change::Session { key: key.clone(), record: Box::new(record) };
            let _ = self.commit(vec![change]); // Else the next start gives it up.
        }
        let _ = self.tools.disk.remove(&self.outbox.merging(key));
        if let Some(run) = self.compactions.remove(key) {
            let why = failure.map_or_else(|| "the merged part was lost".into(), |f| chain(&f));
            fail(&run.progress, ErrorCode::Store, why);
        }
    }
}

fn fail(progress: &mpsc::Sender<Progress>, code: ErrorCode, message: String) {
    let hint = Some("nothing is lost; try again later".to_owned());
    let _ = progress.try_send(Progress::Failed { error: ErrorBody { code, message, hint } });
}
