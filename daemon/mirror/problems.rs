//! Problems: what a person should know, shown until it is over, logged when it begins and when it ends.
//!
//! Refuses to know what is done about one.

use std::collections::HashSet;
use std::path::PathBuf;

use tracing::{info, warn};

use super::Engine;
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
        }
    }

    pub(super) fn clear_problem(&mut self, code: &'static str, object: &str) {
        if self.problems.remove(&(code, object.to_owned())).is_some() {
            info!(code, object, "problem gone");
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
            live.problem = Some(Box::new(problem));
        }
    }

    pub(super) fn clear_session_problem(&mut self, key: &SessionKey) {
        if let Some(live) = self.live.get_mut(key)
            && live.problem.take().is_some()
        {
            info!(session = %key, "problem gone");
        }
    }

    /// What kept a session from being sent is over.
    pub(super) fn clear_send_problem(&mut self, key: &SessionKey) {
        let ours = |code: &str| ["manifest_invalid", "part_lost", "not_sent"].contains(&code);
        if self.live.get(key).and_then(|l| l.problem.as_ref()).is_some_and(|p| ours(&p.code)) {
            self.clear_session_problem(key);
        }
    }
}
