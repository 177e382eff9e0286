//! Verification: what is stored, compared with what it should be, one session after the other, beside all other work.
//!
//! The engine chooses the sessions and gives each job its record by value; a job reads, compares and, if it was asked to,
//! mends. A complaint that a compaction of ours may explain is not believed before the session was looked at once more. A
//! repair has its session to itself, as a send has. One verification runs at a time; it ends when its asker goes away.

mod check;
mod cover;
mod deep;
mod finding;
mod marks;
mod mend;
mod restore;
mod shape;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use tokio::sync::mpsc;

use self::check::{Contents, Meter, Subject};
use self::finding::{Findings, verified};
use self::mend::Mender;
use super::adopt::Adopter;
use super::handle::Options;
use super::{Done, Engine};
use crate::api::{
    ErrorBody, ErrorCode, Finding, Phase, Verdict, Verified, VerifiedSums, Verifying, Weight,
};
use crate::part::SessionKey;
use crate::state::{Change, Record, Totals};
use crate::store::{Store, StoreError};

/// Looks at a session whose leftovers a compaction of ours may explain, before it is said that it could not be checked.
const LOOKS_MAX: u32 = 20;

/// Sessions in a row that the store does not answer for before the others are not asked for: each costs the patience of all
/// its retries.
const AWAY_MAX: u32 = 3;

/// A client that reads nothing for so long has lost its verification: there is only one at a time. As long as the control server
/// waits for a silent client.
const UNREAD_MAX: Duration = Duration::from_secs(600);

/// Where manifests are kept that a repair replaced, below the state directory.
const SET_ASIDE: &str = "set-aside";

/// A verification under way.
#[derive(Debug)]
pub(super) struct Verification {
    options: Options,
    meter: Meter,
    queue: VecDeque<SessionKey>,
    sums: VerifiedSums,
    /// A job of it is under way.
    running: bool,
    /// Looks at the session that is first in the queue.
    looks: u32,
    /// It is to be mended: something is wrong with it.
    mends: bool,
    /// What was read of that session already.
    contents: Contents,
    /// Sessions in a row that the store did not answer for.
    away: u32,
}

/// What a step of a verification brings back.
#[derive(Debug)]
pub(super) enum Step {
    /// Sessions in the bucket, and what of it could not be listed.
    Listed(Vec<SessionKey>, Option<Finding>),
    /// A session was looked at.
    Checked(Box<Checked>),
    /// The asker was told of a session. `false`: they read nothing for too long, or went away.
    Told(bool),
    /// The asker was told of the end.
    Ended,
}

/// What came of one session.
#[derive(Debug)]
pub(super) struct Checked {
    key: SessionKey,
    verified: Verified,
    /// As it was given to the job.
    record: Option<Record>,
    contents: Contents,
    /// It was mended; nobody else sent it meanwhile.
    mended: bool,
    /// What its manifest says in sum, if that was put.
    totals: Option<Totals>,
}

impl Engine {
    /// Begins a verification that somebody asked for.
    pub(super) fn begin_verification(
        &mut self,
        id: Option<&str>,
        options: Options,
        events: mpsc::Sender<Verifying>,
    ) {
        let refuse = |error| drop(events.try_send(Verifying::Failed { error }));
        if self.verification.is_some() {
            return refuse(ErrorBody {
                code: ErrorCode::Busy,
                message: "a verification is under way already".to_owned(),
                hint: Some("try again when it has ended".to_owned()),
            });
        }
        let queue = match id.map(|id| self.generations_meant(id)).transpose() {
            Ok(queue) => queue,
            Err(error) => return refuse(error),
        };
        let total_sessions =
            queue.as_ref().map_or(self.state.state().sessions.len(), VecDeque::len);
        let total_sessions = total_sessions as u64;
        let meter =
            Meter { events, done_sessions: 0, total_sessions, done_bytes: Default::default() };
        meter.add(0); // The first line of the stream: it goes on from here.
        let lists = queue.is_none();
        self.verification = Some(Verification {
            options,
            meter,
            queue: queue.unwrap_or_default(),
            sums: VerifiedSums::default(),
            running: lists,
            looks: 0,
            mends: false,
            contents: Contents::new(),
            away: 0,
        });
        if lists {
            let store = self.tools.store.clone();
            self.verify_by(async move {
                let (found, failed) = list(&*store).await;
                Step::Listed(found, failed.map(|error| finding::unreachable(&error)))
            });
        }
    }

    /// Every generation that the state has of a session, or the one that was typed.
    fn generations_meant(&self, id: &str) -> Result<VecDeque<SessionKey>, ErrorBody> {
        let key = self.meant(id)?;
        let is_meant = |other: &&SessionKey| match id.contains('~') {
            true => **other == key,
            false => other.harness() == key.harness() && other.base() == key.base(),
        };
        Ok(self.state.state().sessions.keys().filter(is_meant).cloned().collect())
    }

    /// Whether a session is being mended: its last parts are sent when that is done.
    pub(super) fn is_mending(&self) -> bool {
        self.verification.as_ref().is_some_and(|run| run.running && run.mends)
    }

    /// Goes on with the verification, if nothing of it is under way.
    pub(super) fn start_verification(&mut self) {
        let Some(run) = self.verification.as_mut().filter(|run| !run.running) else { return };
        if run.meter.events.is_closed() {
            return self.end_verification();
        }
        if self.phase == Phase::Stopping {
            let message = "the daemon is stopping: not all sessions were verified".to_owned();
            let hint = Some("try again when it runs again".to_owned());
            let error = ErrorBody { code: ErrorCode::Busy, message, hint };
            let _ = run.meter.events.try_send(Verifying::Failed { error });
            return self.end_verification();
        }
        if run.away >= AWAY_MAX {
            let rest = run.queue.len() as u64;
            (run.sums.sessions, run.sums.unchecked) =
                (run.sums.sessions + rest, run.sums.unchecked + rest);
            run.queue.clear();
        }
        let Some(key) = run.queue.front().cloned() else {
            let (events, sums) = (run.meter.events.clone(), run.sums.clone());
            self.end_verification();
            self.verify_by(async move {
                let done = events.send(Verifying::Done { sums });
                let _ = tokio::time::timeout(UNREAD_MAX, done).await;
                Step::Ended
            });
            return;
        };
        // A compaction that has begun since has its own hands in the session.
        run.mends &= !self.compactions.contains_key(&key);
        let mends = run.mends;
        if mends && self.live(&key).sending {
            return; // A repair has its session to itself: the end of that send wakes the loop.
        }
        if mends {
            self.live(&key).sending = true;
        }
        self.start_look(key, mends);
    }

    /// Begins to look at a session, and to mend it if nobody else has it in hands.
    fn start_look(&mut self, key: SessionKey, mends: bool) {
        let Some(run) = &mut self.verification else { return };
        run.running = true;
        run.looks += 1;
        let (options, mut meter) = (run.options, run.meter.clone());
        let mut contents = std::mem::take(&mut run.contents);
        let record = self.state.get(&key).cloned();
        let subject = Subject {
            store: self.tools.store.clone(),
            key: key.clone(),
            compacting: self.compactions.contains_key(&key),
            record,
        };
        let adopter = self.verifier();
        let aside = self.settings.state_dir.join(SET_ASIDE);
        self.verify_by(async move {
            let mut seen = subject.examine(&mut contents, &mut meter).await;
            let mut totals = None;
            if mends {
                let mender = Mender { adopter: adopter.clone(), aside };
                (seen, totals) = mender.mend(&subject, seen, &mut contents, &mut meter).await;
            }
            if options.deep {
                seen = deep::compare(&adopter, &subject, seen, &mut contents, &mut meter).await;
            }
            let verified = told(&subject, seen.findings, &contents);
            let (record, mended) = (subject.record, mends);
            let checked = Checked { key, verified, record, contents, mended, totals };
            Step::Checked(Box::new(checked))
        });
    }

    /// What reads sources for a verification: beside the thread that captures, which must not wait for it.
    fn verifier(&self) -> Adopter {
        Adopter { blocking: self.tools.blocking.clone(), ..self.adopter() }
    }

    fn verify_by(&mut self, step: impl Future<Output = Step> + Send + 'static) {
        self.jobs.push(Box::pin(async move { Done::Verification(Box::new(step.await)) }));
    }

    pub(super) fn verification_step(&mut self, step: Step) {
        match step {
            Step::Listed(found, failed) => self.listed_for_verification(found, failed),
            Step::Checked(checked) => self.checked(*checked),
            Step::Told(true) => {
                if let Some(run) = &mut self.verification {
                    run.running = false;
                }
            }
            Step::Told(false) => self.end_verification(),
            Step::Ended => {} // Another one may have begun since.
        }
    }

    fn listed_for_verification(&mut self, found: Vec<SessionKey>, failed: Option<Finding>) {
        let mut all: BTreeSet<SessionKey> = self.state.state().sessions.keys().cloned().collect();
        all.extend(found);
        if failed.is_none() {
            // Of what is there no more nothing is wrong any more.
            self.found_wrong.retain(|key| all.contains(key));
        }
        let Some(run) = &mut self.verification else { return };
        run.queue = all.into_iter().collect();
        run.meter.total_sessions = run.queue.len() as u64;
        run.running = false;
        let Some(failed) = failed else { return };
        // What the state knows is looked at all the same.
        run.running = true;
        run.sums.sessions += 1;
        run.sums.unchecked += 1;
        let verified = Verified {
            harness: String::new(),
            id: String::new(),
            known: false,
            verdict: Verdict::Unchecked,
            parts: 0,
            bytes: 0,
            waiting_parts: 0,
            findings: vec![failed],
            more_findings: 0,
        };
        self.tell(verified);
    }

    /// A session was looked at: what is found is told, unless it may be a compaction that was seen half done.
    fn checked(&mut self, checked: Checked) {
        let Checked { key, mut verified, record, contents, mended, totals } = checked;
        if mended {
            self.live(&key).sending = false;
            self.note_mended(&key, totals);
            finding::after_a_repair(&mut verified);
            if verified.verdict == Verdict::Fine {
                self.clear_session_problem(&key); // Should it still be so, the next send or compaction says it again.
            }
            self.queue_send(&key);
        }
        // While a session is mended nobody compacts it.
        let moves = !mended
            && (self.compactions.contains_key(&key)
                || self.state.get(&key).map(|r| (&r.totals, &r.compaction))
                    != record.as_ref().map(|r| (&r.totals, &r.compaction)));
        let Some(run) = &mut self.verification else { return };
        let doubted = |f: &Finding| f.weight == Weight::Wrong && f.code == "leftover";
        if moves && verified.findings.iter().any(doubted) {
            if run.looks < LOOKS_MAX {
                (run.running, run.contents) = (false, contents);
                return;
            }
            for finding in verified.findings.iter_mut().filter(|f| doubted(f)) {
                finding.weight = Weight::Note;
                finding.message = "is not named (any more): a compaction is under way".to_owned();
                finding.hint = None;
            }
            let mut findings = Findings::default();
            findings.extend(std::mem::take(&mut verified.findings));
            let counted = (verified.parts, verified.bytes);
            let (waiting, more) = (verified.waiting_parts, verified.more_findings);
            verified = finding::verified(&key, verified.known, counted, waiting, findings);
            verified.more_findings += more;
        }
        if run.options.repair && !mended && verified.known && verified.verdict == Verdict::Wrong {
            match self.compactions.contains_key(&key) {
                false => {
                    (run.running, run.mends, run.contents) = (false, true, contents);
                    return;
                }
                true => {
                    let message =
                        "nothing was mended: the session is being compacted; try again later";
                    let note = finding::finding("busy", Weight::Note, &key.prefix(), message);
                    verified.findings.push(note);
                }
            }
        }
        run.queue.pop_front();
        (run.looks, run.mends) = (0, false);
        run.meter.done_sessions += 1;
        let away = verified.findings.iter().any(|finding| finding.code == "store");
        run.away = if away { run.away + 1 } else { 0 };
        add(&mut run.sums, &verified);
        match verified.verdict {
            Verdict::Fine => drop(self.found_wrong.remove(&key)),
            Verdict::Wrong => drop(self.found_wrong.insert(key)),
            Verdict::Unchecked => {}
        }
        self.tell(verified);
    }

    /// What was found wrong is shown until a verification finds it right: `status` is not to call safe what is known to be damaged.
    fn end_verification(&mut self) {
        self.verification = None;
        let Some(first) = self.found_wrong.first() else {
            return self.clear_problem("stored_wrong", "");
        };
        let message = match self.found_wrong.len() {
            1 => format!("{first} is not stored as it should be, says the last verification"),
            n => format!(
                "{n} sessions are not stored as they should be, says the last verification; {first} is one"
            ),
        };
        let hint =
            "`tracecraftctl verify` says what is wrong, and with --repair mends what can be mended";
        self.problem("stored_wrong", "", &message, Some(hint));
    }

    /// A manifest was put beside the state's back: what the state says of it follows.
    fn note_mended(&mut self, key: &SessionKey, totals: Option<Totals>) {
        let Some((record, totals)) = self.state.get(key).zip(totals) else { return };
        let record = Record { totals: totals.above(&record.totals), ..record.clone() };
        // Not committed: the next send that names something learns it.
        self.commit(vec![Change::Session { key: key.clone(), record: Box::new(record) }]);
        self.live(key).held_until = None; // Its manifest may have held it back.
        self.clear_session_problem(key);
    }

    /// A session's findings are not progress: none is dropped, and the next session waits for a slow reader.
    fn tell(&mut self, session: Verified) {
        let Some(run) = &self.verification else { return };
        let events = run.meter.events.clone();
        self.verify_by(async move {
            let told = events.send(Verifying::Session { session });
            Step::Told(matches!(tokio::time::timeout(UNREAD_MAX, told).await, Ok(Ok(()))))
        });
    }
}

fn told(subject: &Subject, findings: Findings, contents: &Contents) -> Verified {
    let mut findings = findings;
    let pending = subject.record.iter().flat_map(|record| &record.pending);
    let waiting = pending.filter(|part| part.stored_at.is_none()).count() as u64;
    if subject.record.is_none() {
        let message = "is not recorded by this daemon: only what is stored was checked";
        findings.push(finding::finding("unknown", Weight::Note, &subject.key.prefix(), message));
    }
    let bytes = contents.values().map(|content| content.bytes).sum();
    let counted = (contents.len() as u64, bytes);
    verified(&subject.key, subject.record.is_some(), counted, waiting, findings)
}

fn add(sums: &mut VerifiedSums, verified: &Verified) {
    sums.sessions += 1;
    match verified.verdict {
        Verdict::Fine => sums.fine += 1,
        Verdict::Wrong => sums.wrong += 1,
        Verdict::Unchecked => sums.unchecked += 1,
    }
    sums.unknown += u64::from(!verified.known);
    sums.parts += verified.parts;
    sums.bytes += verified.bytes;
    sums.waiting_parts += verified.waiting_parts;
}

/// Every session that the bucket has, as far as it can be listed. What is no session's name is left out.
async fn list(store: &dyn Store) -> (Vec<SessionKey>, Option<StoreError>) {
    let mut found = Vec::new();
    let harnesses = match store.list_folders("sessions/").await {
        Ok(harnesses) => harnesses,
        Err(error) => return (found, Some(error)),
    };
    for harness in harnesses {
        match store.list_folders(&format!("sessions/{harness}/")).await {
            Ok(ids) => {
                let key = |id: String| format!("{harness}/{id}").parse::<SessionKey>().ok();
                found.extend(ids.into_iter().filter_map(key));
            }
            Err(error) => return (found, Some(error)),
        }
    }
    (found, None)
}
