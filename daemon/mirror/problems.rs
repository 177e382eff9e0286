//! Problems: what a person should know, shown until it is over, logged when it begins and when it ends.
//!
//! Refuses to know what is done about one.

use std::collections::HashSet;
use std::path::PathBuf;

use tokio::time::Instant;
use tracing::{info, warn};

use super::{Engine, Live, ProblemKey};
use crate::api::Problem;
use crate::part::SessionKey;

impl Engine {
    /// Shows a problem until it is cleared; it is logged when it begins.
    pub(super) fn problem(
        &mut self,
        code: &'static str,
        object: &str,
        message: &str,
        hint: Option<&str>,
    ) {
        let key = (code, object.to_owned());
        if let Some(known) = self.problems.get_mut(&key) {
            message.clone_into(&mut known.message);
            return;
        }
        warn!(code, object, message, "problem");
        let problem = self.new_problem(code, message, hint);
        self.tell_problem(object, &problem);
        self.problems.insert(key, problem);
    }

    /// Shows which sources cannot be read: these, and no others any more.
    pub(super) fn show_unreadable(&mut self, problems: Vec<(PathBuf, String)>) {
        let now: HashSet<String> = problems.iter().map(|(p, _)| p.display().to_string()).collect();
        let gone: Vec<String> = self
            .problems
            .keys()
            .filter(|(code, path)| *code == "source_unreadable" && !now.contains(path))
            .map(|(_, path)| path.clone())
            .collect();
        gone.iter().for_each(|path| self.clear_problem("source_unreadable", path));
        for (path, what) in problems {
            self.source_problem(&path, &what);
        }
    }

    pub(super) fn new_problem(&self, code: &str, message: &str, hint: Option<&str>) -> Problem {
        Problem {
            code: code.to_owned(),
            message: message.to_owned(),
            hint: hint.map(str::to_owned),
            since: self.tools.clock.now().to_string(),
            next_try_at: None,
        }
    }

    pub(super) fn clear_problem(&mut self, code: &'static str, object: &str) {
        if self.problems.remove(&(code, object.to_owned())).is_some() {
            info!(code, object, "problem gone");
            self.tell_problem_over(object, code);
        }
    }

    pub(super) fn session_problem(
        &mut self,
        key: &SessionKey,
        code: &str,
        message: &str,
        hint: Option<&str>,
    ) {
        let problem = self.new_problem(code, message, hint);
        let live = self.live.entry(key.clone()).or_default();
        if live.problem.as_ref().is_none_or(|p| p.code != problem.code) {
            warn!(session = %key, code, message, "problem");
            if let Some(before) = live.problem.replace(Box::new(problem.clone())) {
                self.tell_problem_over(&key.to_string(), &before.code);
            }
            self.tell_problem(&key.to_string(), &problem);
        }
    }

    pub(super) fn clear_session_problem(&mut self, key: &SessionKey) {
        if let Some(live) = self.live.get_mut(key)
            && let Some(problem) = live.problem.take()
        {
            info!(session = %key, "problem gone");
            self.tell_problem_over(&key.to_string(), &problem.code);
        }
    }

    /// Problems that are of no session, with what is known of the next try.
    pub(super) fn shown_problems(&self) -> Vec<Problem> {
        let [store, _] = self.store_due();
        let due = |code: &str| match code {
            "store_unavailable" => store,
            "outbox_unwritable" => self.tick_at,
            "state_unwritable" => self.place_at.or(self.tick_at),
            _ => None,
        };
        let shown = |((code, _), problem): (&ProblemKey, &Problem)| Problem {
            next_try_at: self.next_try(due(code)),
            ..problem.clone()
        };
        self.problems.iter().map(shown).collect()
    }

    /// The problem of a session, for a list of all.
    pub(super) fn shown_problem(&self, key: &SessionKey, live: &Live) -> Option<Problem> {
        let problem = live.problem.as_deref().cloned()?;
        let message = format!("{key}: {}", problem.message);
        let next_try_at = self.next_try(live.held_until.max(live.rests_until));
        Some(Problem { message, next_try_at, ..problem })
    }

    /// A time that is still to come as whoever reads it has it, to the second.
    fn next_try(&self, at: Option<Instant>) -> Option<String> {
        let wait = at?.checked_duration_since(Instant::now())?;
        let at = self.tools.clock.now().checked_add(wait).ok()?;
        at.round(jiff::Unit::Second).ok().map(|at| at.to_string())
    }

    /// What kept a session from being sent is over.
    pub(super) fn clear_send_problem(&mut self, key: &SessionKey) {
        let ours = |code: &str| ["manifest_invalid", "part_lost", "not_sent"].contains(&code);
        if self.live.get(key).and_then(|l| l.problem.as_ref()).is_some_and(|p| ours(&p.code)) {
            self.clear_session_problem(key);
        }
    }
}
