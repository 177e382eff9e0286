//! Why there are no keys to sign with, and what a person can do about it.
//!
//! Knows words; refuses to know values: an error names places, never what was found there.

use std::io;
use std::path::Path;
use std::time::Duration;

/// Why a request cannot be signed. One failure is told to everybody who waited for it, so it can be cloned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CredentialsError {
    /// Nobody has keys.
    #[error(
        "found no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile with AWS_PROFILE \
         (looked at {})", looked.join("; ")
    )]
    None {
        /// Each place, with what was found there.
        looked: Vec<String>,
    },
    /// A pair of variables that has to be set is not.
    #[error("found no credentials: set {id} and {secret}")]
    NoPair {
        /// One variable.
        id: &'static str,
        /// The other one.
        secret: &'static str,
    },
    /// One half of a pair is there.
    #[error("{place} has {is}, but not {is_not}: set both or none")]
    Half {
        /// The environment, or a profile.
        place: String,
        /// What is there.
        is: &'static str,
        /// What is not.
        is_not: &'static str,
    },
    /// A profile was named, and no file has it.
    #[error(
        "there is no profile {name:?} in {places}{}",
        nearest.as_ref().map(|near| format!("; did you mean {near:?}?")).unwrap_or_default()
    )]
    NoProfile {
        /// Its name.
        name: String,
        /// The files.
        places: String,
        /// A profile of a similar name.
        nearest: Option<String>,
    },
    /// A profile cannot be used as it is.
    #[error("the profile {name:?} {flaw}")]
    Profile {
        /// Its name.
        name: String,
        /// What is wrong, as the end of a sentence.
        flaw: String,
    },
    /// A login in the browser is over.
    #[error(
        "the login of the profile {profile:?} is over: run `aws sso login --profile {profile}`"
    )]
    Login {
        /// The profile.
        profile: String,
    },
    /// A login in the browser would have to be renewed, and whoever asks may not.
    #[error(
        "the login of the profile {profile:?} is due for renewal, which only the recorder does"
    )]
    Due {
        /// The profile.
        profile: String,
    },
    /// The program that a profile names gave no keys.
    #[error("the credential_process of the profile {profile:?} {flaw}; run it by hand to see why")]
    Process {
        /// The profile.
        profile: String,
        /// What is wrong, as the end of a sentence.
        flaw: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {reason}")]
    Unreadable {
        /// Whether there is none.
        missing: bool,
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// An endpoint did not answer.
    #[error("{party} at {endpoint} did not answer: {reason}")]
    Away {
        /// Who should have answered.
        party: String,
        /// Where.
        endpoint: String,
        /// Why.
        reason: String,
    },
    /// An endpoint said no.
    #[error("{party} at {endpoint} refused: {}", format!("{status} {answer}").trim_end())]
    Refused {
        /// Who.
        party: String,
        /// Where.
        endpoint: String,
        /// HTTP status.
        status: u16,
        /// Its code and message, as far as they can be shown.
        answer: String,
    },
    /// An endpoint said something else.
    #[error("{party} at {endpoint} answered with something that is no credentials")]
    Malformed {
        /// Who.
        party: String,
        /// Where.
        endpoint: String,
    },
    /// An endpoint that must not be asked.
    #[error("{setting} {flaw}")]
    Endpoint {
        /// The variable or the setting that names it.
        setting: String,
        /// What is wrong, as the end of a sentence.
        flaw: String,
    },
    /// The source hands out keys that are of no use any more.
    #[error(
        "{origin} hands out credentials that have expired: renew them there, or set the clock of this machine"
    )]
    Stale {
        /// Whence.
        origin: String,
    },
    /// The source took too long.
    #[error("no credentials came within {} s", limit.as_secs())]
    Slow {
        /// The limit.
        limit: Duration,
    },
    /// The request cannot be signed, whatever the keys.
    #[error("cannot sign the request: {0}")]
    Unsignable(String),
}

impl CredentialsError {
    /// Whether it may pass by itself.
    pub(crate) fn is_temporary(&self) -> bool {
        match self {
            CredentialsError::Slow { .. } | CredentialsError::Away { .. } => true,
            // Overload and what is out of order at the other end.
            CredentialsError::Refused { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }

    /// A file that is not what it should be.
    pub(super) fn unreadable(path: &Path, reason: &str) -> CredentialsError {
        let (path, reason) = (path.display().to_string(), reason.to_owned());
        CredentialsError::Unreadable { missing: false, path, reason }
    }

    /// A file that cannot be read.
    pub(super) fn unread(path: &Path, error: &io::Error) -> CredentialsError {
        let (path, reason) = (path.display().to_string(), error.to_string());
        let missing = error.kind() == io::ErrorKind::NotFound;
        CredentialsError::Unreadable { missing, path, reason }
    }
}
