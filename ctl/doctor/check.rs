//! What a check is: a code that stays, a verdict, a sentence, and one thing to do.
//!
//! The shape of `doctor --json`. Codes are added, and neither renamed nor given another meaning. Each has a row in the README.

use serde::Serialize;

/// All checks of a run: the document of `--json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Checks {
    pub(crate) checks: Vec<Check>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    pub(crate) code: Code,
    pub(crate) verdict: Verdict,
    /// What was found.
    pub(crate) message: String,
    /// A command, or an edit. Whatever is not ok has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hint: Option<String>,
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// Good to know.
    Note,
    /// It works, and something may go wrong.
    Warning,
    /// Something is not recorded, not safe, or will not work.
    Wrong,
}

macro_rules! codes {
    ($($code:ident = $name:literal),* $(,)?) => {
        /// What is checked.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        pub(crate) enum Code {
            $(#[serde(rename = $name)] $code),*
        }

        impl Code {
            /// Each of them, as programs read it.
            #[cfg(test)]
            pub(crate) const NAMES: &[&str] = &[$($name),*];

            /// As programs read it.
            pub(crate) fn name(self) -> &'static str {
                match self {
                    $(Code::$code => $name),*
                }
            }
        }
    };
}

codes! {
    Config = "config",
    Redaction = "redaction",
    Root = "root",
    Retention = "retention",
    StateDir = "state_dir",
    State = "state",
    Lock = "lock",
    DiskSpace = "disk_space",
    Outbox = "outbox",
    Watches = "watches",
    Descriptors = "descriptors",
    Socket = "socket",
    Daemon = "daemon",
    Version = "version",
    Settings = "settings",
    Problem = "problem",
    Store = "store",
    Credentials = "credentials",
    Bucket = "bucket",
    ListRight = "list_right",
    GetRight = "get_right",
    PutRight = "put_right",
    DeleteRight = "delete_right",
    Conditions = "conditions",
    Clock = "clock",
    Proxy = "proxy",
    Service = "service",
    Restarts = "restarts",
    Unit = "unit",
    Variables = "variables",
    Lingering = "lingering",
    Programs = "programs",
    Wsl = "wsl",
    Unfinished = "unfinished",
}

/// What is as it should be.
pub(crate) fn ok(code: Code, message: impl Into<String>) -> Check {
    Check { code, verdict: Verdict::Ok, message: message.into(), hint: None }
}

/// What is good to know.
pub(crate) fn note(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Check {
    found(Verdict::Note, code, message, hint)
}

/// What may go wrong.
pub(crate) fn warning(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Check {
    found(Verdict::Warning, code, message, hint)
}

/// What is wrong.
pub(crate) fn wrong(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Check {
    found(Verdict::Wrong, code, message, hint)
}

fn found(
    verdict: Verdict,
    code: Code,
    message: impl Into<String>,
    hint: impl Into<String>,
) -> Check {
    Check { code, verdict, message: message.into(), hint: Some(hint.into()) }
}
