//! What went wrong, what to do about it, and the exit code that says it to a script.

use std::io;

use tracecraft::api::{ErrorBody, ErrorCode, exit};

use crate::text;

/// A verb that was not done.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: u8,
    what: String,
    hint: Option<String>,
    steps: Vec<String>,
    /// Apart, because it is large and seldom there.
    body: Option<Box<ErrorBody>>,
    reader_gone: bool,
}

impl Failure {
    fn new(exit: u8, what: String) -> Failure {
        Failure { exit, what, hint: None, steps: Vec::new(), body: None, reader_gone: false }
    }

    /// Exit code 1.
    pub(crate) fn failed(what: String) -> Failure {
        Failure::new(exit::FAILED, what)
    }

    /// Exit code 2.
    pub(crate) fn usage(what: String) -> Failure {
        Failure::new(exit::USAGE, what)
    }

    /// Exit code 3.
    pub(crate) fn not_running(socket: &std::path::Path, why: &str) -> Failure {
        let start = if cfg!(target_os = "macos") {
            "`tracecraftctl service install` (once, for good), or `tracecraftd` in a terminal"
        } else {
            "`tracecraftctl service install` (once, for good), or `tracecraftd` in a terminal. Already installed? `tracecraftctl doctor` says why it does not run"
        };
        let what = format!("the daemon is not running ({why} at {})", socket.display());
        Failure::new(exit::NOT_RUNNING, what).hint(start)
    }

    /// Exit code 5.
    pub(crate) fn protocol(what: String) -> Failure {
        Failure::new(exit::PROTOCOL, what)
    }

    /// Exit code 5, for a daemon that does not know what was asked; a program still gets the daemon's own words.
    pub(crate) fn outdated(what: String, body: ErrorBody) -> Failure {
        Failure { body: Some(Box::new(body)), ..Failure::protocol(what) }
    }

    /// The daemon's own refusal.
    pub(crate) fn refused(body: ErrorBody) -> Failure {
        let code = match body.code {
            ErrorCode::AmbiguousId => exit::USAGE,
            ErrorCode::NoSuchSession => exit::NO_SUCH_SESSION,
            _ => exit::FAILED,
        };
        let hint = body.hint.clone().or_else(|| {
            let usual = match body.code {
                ErrorCode::AmbiguousId => "give more of the id, or the whole key HARNESS/ID",
                ErrorCode::NoSuchSession => {
                    "`tracecraftctl list` shows the sessions that are known"
                }
                ErrorCode::Busy => "try again when the other work has ended",
                _ => return None,
            };
            Some(usual.to_owned())
        });
        Failure { hint, body: Some(Box::new(body.clone())), ..Failure::new(code, body.message) }
    }

    /// Exit code 3, of the service and not of the socket.
    pub(crate) fn service_down(what: &str) -> Failure {
        Failure::new(exit::NOT_RUNNING, what.to_owned())
    }

    /// Exit code 6.
    pub(crate) fn no_manager(what: String) -> Failure {
        Failure::new(exit::NO_SERVICE_MANAGER, what)
    }

    /// With lines that a person may copy.
    pub(crate) fn steps(mut self, steps: Vec<String>) -> Failure {
        self.steps = steps;
        self
    }

    /// With advice.
    pub(crate) fn hint(mut self, hint: &str) -> Failure {
        self.hint = Some(hint.to_owned());
        self
    }

    /// Whether the daemon's words were given to a program already.
    pub(crate) fn told(mut self, told: bool) -> Failure {
        if told {
            self.body = None;
        }
        self
    }

    /// The reader of our output has had enough, which is no failure.
    pub(crate) fn is_reader_gone(&self) -> bool {
        self.reader_gone
    }

    /// What went wrong, in a sentence.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    /// Whether the daemon refused with this code.
    pub(crate) fn is(&self, code: ErrorCode) -> bool {
        self.body.as_ref().is_some_and(|body| body.code == code)
    }

    /// Whether the daemon may be there in a moment: it is not running, or was just being stopped or started.
    pub(crate) fn may_pass(&self) -> bool {
        let refused = self.body.as_ref().is_none_or(|body| body.code == ErrorCode::Unavailable);
        refused && [exit::NOT_RUNNING, exit::FAILED].contains(&self.exit)
    }

    /// For the shell.
    pub(crate) fn exit(&self) -> u8 {
        self.exit
    }

    /// What a program reads on standard output.
    pub(crate) fn body_for(&self, json: bool) -> Option<&ErrorBody> {
        self.body.as_deref().filter(|_| json)
    }

    /// What a person reads on standard error. The words may quote a bucket or a path, so they are neutralised.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("tracecraftctl: {}\n", text::line(&self.what));
        if let Some(hint) = &self.hint {
            text.push_str(&format!("try: {}\n", text::line(hint)));
        }
        for step in &self.steps {
            text.push_str(&format!("  {}\n", text::line(step)));
        }
        text
    }
}

impl From<io::Error> for Failure {
    /// Of our own output; errors of the connection are worded where they happen.
    fn from(error: io::Error) -> Failure {
        let reader_gone = error.kind() == io::ErrorKind::BrokenPipe;
        Failure { reader_gone, ..Failure::failed(format!("cannot write the answer: {error}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(code: ErrorCode, hint: Option<&str>) -> ErrorBody {
        ErrorBody { code, message: "it\u{1b}[2J failed".into(), hint: hint.map(str::to_owned) }
    }

    #[test]
    fn each_refusal_has_the_exit_code_of_the_contract() {
        let table = [
            (ErrorCode::AmbiguousId, exit::USAGE),
            (ErrorCode::NoSuchSession, exit::NO_SUCH_SESSION),
            (ErrorCode::NoSuchRoute, exit::FAILED),
            (ErrorCode::BadRequest, exit::FAILED),
            (ErrorCode::MethodNotAllowed, exit::FAILED),
            (ErrorCode::Busy, exit::FAILED),
            (ErrorCode::TooLarge, exit::FAILED),
            (ErrorCode::Unavailable, exit::FAILED),
            (ErrorCode::Timeout, exit::FAILED),
            (ErrorCode::Store, exit::FAILED),
            (ErrorCode::Internal, exit::FAILED),
        ];
        for (code, expected) in table {
            assert_eq!(Failure::refused(body(code, None)).exit(), expected, "{code:?}");
        }
        assert_eq!(Failure::not_running("/s".as_ref(), "no socket").exit(), exit::NOT_RUNNING);
        assert_eq!(Failure::protocol(String::new()).exit(), exit::PROTOCOL);
        assert_eq!(Failure::usage(String::new()).exit(), exit::USAGE);
    }

    #[test]
    fn a_person_reads_what_went_wrong_and_what_to_try() {
        let told = Failure::refused(body(ErrorCode::Store, Some("look at the bucket")));
        assert_eq!(told.text(), "tracecraftctl: it␛[2J failed\ntry: look at the bucket\n");
        let told = Failure::refused(body(ErrorCode::NoSuchSession, None)).text();
        assert!(told.contains("\ntry: `tracecraftctl list`"), "{told}");
        let told = Failure::not_running("/run/s".as_ref(), "no socket").text();
        assert!(
            told.contains("no socket at /run/s)\ntry: `tracecraftctl service install`"),
            "{told}"
        );
    }

    #[test]
    fn a_closed_pipe_is_no_failure_and_a_full_disk_is() {
        assert!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).is_reader_gone());
        let full = Failure::from(io::Error::from(io::ErrorKind::StorageFull));
        assert!(!full.is_reader_gone() && full.exit() == exit::FAILED);
    }
}
