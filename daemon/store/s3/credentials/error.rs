//! Why there are no keys to sign with, and what a person can do about it.
//!
//! Knows words; refuses to know values: an error names places, never what was found there.

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
        matches!(self, CredentialsError::Slow { .. })
    }
}
