//! The compactions under way: their steps, their failures, and what a restart finishes.
//!
//! What a step does is in [`compact`]; when one begins by itself is in [`super::automatic`]. From the committed intent on there is
//! no difference between one that was asked for and one that was not.

use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{debug, info};

use super::compact::{self, Plan, Wanted};
use super::manifest::{self, Failure};
use super::pause::rest;
use super::{Done, Engine, chain};
use crate::api::{ErrorBody, ErrorCode, Phase, Progress};
use crate::part::{Manifest, SessionKey};
use crate::state::{Change, Compaction, PendingPart, Record};
use crate::store::ErrorKind;

/// Steps of a compaction that may fail in a row before whoever asked for it is told; what was begun goes on all the same.
const COMPACTION_FAILURES_MAX: u32 = 8;

/// A compaction under way.
#[derive(Debug)]
pub(super) struct Running {
    progress: mpsc::Sender<Progress>,
    parts_before: u64,
    wanted: Wanted,
    stage: Stage,
    /// Somebody asked for a compaction while this one, for which nobody had asked, was under way.
    then: Option<(usize, mpsc::Sender<Progress>)>,
    /// Steps in a row that failed on their way, and until when it rests.
    failures: u32,
    rests_until: Option<Instant>,
}

impl Running {
    fn new(progress: mpsc::Sender<Progress>, wanted: Wanted, stage: Stage) -> Running {
        let (parts_before, then, failures, rests_until) = (0, None, 0, None);
        Running { progress, parts_before, wanted, stage, then, failures, rests_until }
    }

    /// Whether nobody asked for it.
    pub(super) fn is_automatic(&self) -> bool {
        !matches!(self.wanted, Wanted::AllBut(_))
    }

    /// Whether numbers are to begin again after it.
    fn turns(&self) -> bool {
        self.wanted == Wanted::Turn
    }

    /// Whether what is stored is to be named for it. One that began by itself waits until it is.
    pub(super) fn wants_names(&self) -> bool {
        self.stage == Stage::Naming && (self.turns() || !self.is_automatic())
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
    Turned(SessionKey, Result<Option<u32>, Failure>),
}

impl Engine {
    /// Takes the next steps of compactions that waited for the store, or for the manifest to be free.
    pub(super) fn start_compactions(&mut self) {
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

    /// Begins a compaction that somebody asked for.
    pub(super) fn begin_compaction(
        &mut self,
        key: SessionKey,
        keep_tail: usize,
        progress: mpsc::Sender<Progress>,
    ) {
        let is_waiting = |run: &Running| run.is_automatic() && run.stage == Stage::Naming;
        if self.compactions.get(&key).is_some_and(is_waiting) {
            self.end_compaction(&key); // It had not begun.
        }
        match self.compactions.get_mut(&key) {
            Some(run) if run.is_automatic() && run.then.is_none() => {
                run.then = Some((keep_tail, progress));
                return;
            }
            Some(_) => {
                let message = format!("{key} is being compacted already");
                return fail(&progress, ErrorCode::Busy, message);
            }
            None => {}
        }
        let running = Running::new(progress, Wanted::AllBut(keep_tail), Stage::Naming);
        self.compactions.insert(key.clone(), running);
        self.queue_send(&key);
    }

    /// Begins a compaction that nobody asked for.
    pub(super) fn begin_automatic(&mut self, key: SessionKey, wanted: Wanted) {
        let (progress, _) = mpsc::channel(1);
        self.compactions.insert(key.clone(), Running::new(progress, wanted, Stage::Naming));
        self.start_plan(key);
    }

    /// How many are under way that nobody asked for.
    pub(super) fn automatic_compactions(&self) -> usize {
        self.compactions.values().filter(|run| run.is_automatic()).count()
    }

    /// Plans a compaction when everything that is stored is named, or cannot be. Where names may still get lost, the newest
    /// parts stay as they are.
    fn start_plan(&mut self, key: SessionKey) {
        if !self.is_ready_for_plan(&key) {
            return;
        }
        let unsettled = self.state.get(&key).and_then(|record| record.pending.first());
        let unsettled = unsettled.map(|part| part.seq);
        let Some(run) = self.compactions.get_mut(&key) else { return };
        run.stage = Stage::Preparing;
        if let Wanted::Next { below, .. } = &mut run.wanted {
            *below = unsettled;
        }
        let wanted = run.wanted;
        // Where it was refused only a person's wish gets here: somebody may have given the right.
        let (store, try_delete) = (self.tools.store.clone(), self.deletes != Some(true));
        self.jobs.push(Box::pin(async move {
            let plan = compact::plan(&*store, &key, wanted, try_delete).await;
            Done::Compaction(Box::new(Step::Planned(key, plan)))
        }));
    }

    /// Whether what is stored is named. If it is not, it is made so for somebody who asked; otherwise that is waited for.
    fn is_ready_for_plan(&mut self, key: &SessionKey) -> bool {
        let run = self.compactions.get(key);
        if run.is_some_and(Running::turns) {
            let pending = self.state.get(key).is_some_and(|record| !record.pending.is_empty());
            let ready = !pending && !self.live(key).sending;
            if !ready {
                self.queue_send(key);
            }
            return ready;
        }
        if run.is_some_and(Running::is_automatic) {
            return !self.live(key).sending && self.is_settled_for_merging(key);
        }
        let held = self.live.get(key).is_some_and(|live| live.held_until.is_some());
        let sure = !manifest::may_be_overwritten(&*self.tools.store);
        let waits = |p: &PendingPart| if sure { p.stored_at.is_some() } else { p.is_unnamed() };
        let unnamed = |r: &Record| r.pending.iter().any(waits);
        let ready = held || !self.live(key).sending && !self.state.get(key).is_some_and(unnamed);
        if !ready {
            self.queue_send(key);
        }
        ready
    }

    /// Finishes a compaction that a former process began.
    pub(super) fn finish_compaction(&mut self, key: &SessionKey) {
        let (progress, _) = mpsc::channel(1);
        let running = Running::new(progress, Wanted::AllBut(0), Stage::Preparing);
        self.compactions.insert(key.clone(), running);
        self.start_publish(key.clone());
    }

    pub(super) fn compaction_step(&mut self, step: Step) {
        match step {
            Step::Planned(key, Ok(plan)) => {
                self.deletes = Some(true);
                self.clear_problem("compaction_off", "");
                self.planned(key, plan);
            }
            Step::Planned(key, Err(Failure::Store(error)))
                if error.kind == ErrorKind::Denied && error.operation == "delete" =>
            {
                self.deletes = Some(false);
                // Who asked for nothing needs to mend nothing: `status` tells what is known of the store.
                if !self.compactions.get(&key).is_some_and(Running::is_automatic) {
                    let hint = "allow deleting below the project, or leave sessions as they are";
                    let message = "this store refuses to delete: compaction is off";
                    self.problem("compaction_off", "", message, Some(hint));
                }
                self.give_up(&key, Some(Failure::Store(error)));
            }
            Step::Merged(key, Ok(compaction)) => self.merged(key, compaction),
            Step::Published(key, Ok(true)) => {
                if let Some(run) = self.compactions.get_mut(&key) {
                    (run.stage, run.failures) = (Stage::Ready, 0);
                }
            }
            // It is nowhere, so that there is nothing to sweep: what is there later is another recorder's.
            Step::Published(key, Ok(false)) => self.give_up(&key, None),
            Step::Swapped(key, Ok(manifest)) => self.swapped(&key, &manifest),
            Step::Swept(key, Ok(())) => self.give_up(&key, None),
            Step::Turned(key, turned) => self.turned(&key, turned),
            // Nothing has changed yet: it begins again, and whoever asked for it still waits.
            Step::Planned(key, Err(failure)) | Step::Merged(key, Err(failure)) => {
                if self.is_overtaken(&key, &failure) {
                    self.give_up(&key, Some(failure));
                } else if !self.rest_compaction(&key, &failure, Stage::Naming) {
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
        let is_free = !self.live(&key).sending;
        let Some(run) = self.compactions.get_mut(&key) else { return };
        run.parts_before = plan.parts_before as u64;
        if plan.inputs.len() < 2 || self.phase == Phase::Stopping {
            if run.turns() && run.parts_before == 1 && self.phase != Phase::Stopping && is_free {
                return self.start_turn(&key);
            }
            let parts = run.parts_before;
            let done = Progress::Done { parts_before: parts, parts_after: parts, merged_bytes: 0 };
            let _ = run.progress.try_send(done);
            self.end_compaction(&key);
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
        let record = Record { compaction: Some(Box::new(compaction)), ..record.clone() };
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
            self.end_compaction(key);
            return;
        };
        if let Some(run) = self.compactions.get_mut(key) {
            run.stage = Stage::Swapping;
        }
        self.live(key).sending = true; // Nobody else of this process writes the manifest meanwhile.
        let (store, file, key) = (self.tools.store.clone(), self.outbox.merging(key), key.clone());
        self.jobs.push(Box::pin(async move {
            let swapped = compact::swap(&*store, &key, &compaction, file).await.map(Box::new);
            Done::Compaction(Box::new(Step::Swapped(key, swapped)))
        }));
    }

    fn start_sweep(&mut self, key: SessionKey) {
        let Some(compaction) = self.state.get(&key).and_then(|r| r.compaction.clone()) else {
            return;
        };
        let (store, file) = (self.tools.store.clone(), self.outbox.merging(&key));
        self.jobs.push(Box::pin(async move {
            let swept = compact::sweep(&*store, &key, &compaction, file).await;
            Done::Compaction(Box::new(Step::Swept(key, swept)))
        }));
    }

    fn swapped(&mut self, key: &SessionKey, manifest: &Manifest) {
        self.live(key).sending = false;
        let Some(record) = self.state.get(key) else { return };
        let merged_bytes = record.compaction.as_ref().map_or(0, |c| c.merged.uploaded_bytes);
        let totals = self.totals(manifest).above(&record.totals);
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
        if self.compactions.get(key).is_some_and(Running::turns) {
            return self.start_turn(key);
        }
        self.note_mergeable(key);
        if let Some(run) = self.end_compaction(key) {
            let parts_before = run.parts_before;
            match run.is_automatic() {
                true => debug!(session = %key, parts_before, parts_after, "merged some parts"),
                false => {
                    info!(session = %key, before = parts_before, after = parts_after, "compacted")
                }
            }
            let done = Progress::Done { parts_before, parts_after, merged_bytes };
            // The receiver reads at its own pace; the channel has room, or nobody listens.
            let _ = run.progress.try_send(done);
        }
        self.queue_send(key);
    }

    /// Everything is one part: numbers may begin again behind it.
    fn start_turn(&mut self, key: &SessionKey) {
        if let Some(run) = self.compactions.get_mut(key) {
            run.stage = Stage::Swapping;
        }
        self.live(key).sending = true; // Nobody else of this process writes the manifest meanwhile.
        let (store, key) = (self.tools.store.clone(), key.clone());
        self.jobs.push(Box::pin(async move {
            let turned = compact::turn(&*store, &key).await;
            Done::Compaction(Box::new(Step::Turned(key, turned)))
        }));
    }

    /// Killed before the commit: numbers go on where they were, which any manifest takes, and the turn is made again.
    fn turned(&mut self, key: &SessionKey, turned: Result<Option<u32>, Failure>) {
        self.live(key).sending = false;
        let record = self.state.get(key).filter(|record| record.pending.is_empty()).cloned();
        match (turned, record) {
            (Ok(Some(next)), Some(record)) if next < record.next_seq => {
                let before = record.next_seq;
                let record = Box::new(Record { next_seq: next, ..record });
                if self.commit(vec![Change::Session { key: key.clone(), record }]) {
                    self.note_turned(key, next);
                    self.live(key).turn_from = 0;
                    info!(session = %key, before, next, "its sequence numbers begin again");
                }
            }
            (Err(Failure::Store(error)), _) => self.store_failed_if(&error),
            _ => {}
        }
        self.end_compaction(key);
        self.note_mergeable(key);
        self.queue_send(key);
    }

    /// Whether capture waits for the end of a turn: what it captured would get a number that is about to be left behind. It does
    /// not wait for a store, nor at the end.
    pub(super) fn is_turning(&self, key: &SessionKey) -> bool {
        self.phase != Phase::Stopping
            && !self.store_is_away()
            && self.compactions.get(key).is_some_and(|run| run.turns() && run.failures == 0)
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
                let automatic = self.compactions.get(&key).is_some_and(Running::is_automatic);
                if automatic {
                    debug!(session = %key, error = %chain(&other), "a merge is given up");
                } else {
                    let hint = "the session's parts are as they were before the compaction";
                    self.session_problem(&key, "compaction_failed", &chain(&other), Some(hint));
                }
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

    /// Whether an automatic compaction met that somebody else has merged or removed what it planned to merge.
    fn is_overtaken(&self, key: &SessionKey, failure: &Failure) -> bool {
        let run = self.compactions.get(key);
        let gone = matches!(failure, Failure::Store(error) if error.kind == ErrorKind::NotFound);
        run.is_some_and(Running::turns) || gone && run.is_some_and(Running::is_automatic)
    }

    /// Forgets a compaction that is over, and begins the one that somebody asked for meanwhile.
    fn end_compaction(&mut self, key: &SessionKey) -> Option<Running> {
        let mut run = self.compactions.remove(key)?;
        if run.turns() {
            self.mark_dirty(key); // Its looks have waited.
        }
        if let Some((keep_tail, progress)) = run.then.take() {
            self.begin_compaction(key.clone(), keep_tail, progress);
        }
        Some(run)
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
        let automatic = self.compactions.get(key).is_some_and(Running::is_automatic);
        if automatic && self.store_is_away() {
            self.note_mergeable(key); // When it is back.
        }
        if automatic && let Some(failure @ Failure::Damaged { .. }) = &failure {
            let hint = "`tracecraftctl verify ID` tells what is wrong with the session";
            self.session_problem(key, "part_damaged", &chain(failure), Some(hint));
        }
        if let Some(run) = self.end_compaction(key) {
            let why = failure.map_or_else(|| "the merged part was lost".into(), |f| chain(&f));
            fail(&run.progress, ErrorCode::Store, why);
        }
    }
}

fn fail(progress: &mpsc::Sender<Progress>, code: ErrorCode, message: String) {
    let hint = Some("nothing is lost; try again later".to_owned());
    let _ = progress.try_send(Progress::Failed { error: ErrorBody { code, message, hint } });
}
