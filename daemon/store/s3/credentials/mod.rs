//! Where the keys come from that sign requests to the store.
//!
//! Knows sources of keys and when keys expire; refuses to know buckets and signatures. No message and no `Debug` output of
//! anything below here shows a secret.

mod ambient;
mod cache;
mod environment;
mod error;
mod metadata;
mod outlet;
mod process;
mod profiles;
mod sso;
mod sts;
#[cfg(test)]
mod tests;

use std::fmt;

use async_trait::async_trait;
use jiff::Timestamp;
use reqsign_aws_v4::Credential;
use reqsign_core::time::Timestamp as LibraryTimestamp;

pub(crate) use self::ambient::{Ambient, Tools};
pub(crate) use self::cache::Cache;
pub(crate) use self::environment::Environment;
pub(crate) use self::error::CredentialsError;
pub(crate) use self::outlet::{Wire, WireError};
pub(crate) use self::profiles::{named_by, profile_settings};

/// What a request is signed with.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Keys {
    /// Names the key; goes out with every request.
    pub(crate) access_key_id: String,
    /// The secret.
    pub(crate) secret_access_key: String,
    /// Keys for a limited time come with one.
    pub(crate) session_token: Option<String>,
    /// From when on the store refuses them. `None`: nobody said, or never.
    pub(crate) expires: Option<Timestamp>,
    /// Where they came from, in words for a message.
    pub(crate) origin: String,
}

impl Keys {
    /// Keys that do not expire, or whose expiry nobody knows.
    pub(crate) fn lasting(id: &str, secret: &str, token: Option<&str>, origin: &str) -> Keys {
        Keys {
            access_key_id: id.to_owned(),
            secret_access_key: secret.to_owned(),
            session_token: token.map(str::to_owned),
            expires: None,
            origin: origin.to_owned(),
        }
    }

    /// As the library takes them. Their expiry stays here: it is judged by our clock, before, and not again by the library's.
    pub(super) fn to_library(&self) -> Credential {
        Credential {
            access_key_id: self.access_key_id.clone(),
            secret_access_key: self.secret_access_key.clone(),
            session_token: self.session_token.clone(),
            expires_in: None,
        }
    }

    /// As the library gives them.
    fn of_library(keys: Credential, origin: String) -> Keys {
        Keys {
            access_key_id: keys.access_key_id,
            secret_access_key: keys.secret_access_key,
            session_token: keys.session_token,
            expires: keys.expires_in.map(of_library_time),
            origin,
        }
    }
}

/// Nothing of the keys themselves: even the library's own output shows the ends of a secret.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys")
            .field("origin", &self.origin)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

fn of_library_time(time: LibraryTimestamp) -> Timestamp {
    // Both count the same nanoseconds in the same range, so the other value never stands in.
    Timestamp::new(time.as_second(), time.subsec_nanosecond()).unwrap_or(Timestamp::MAX)
}

/// Somebody who can be asked for keys, again and again.
#[async_trait]
pub(crate) trait Source: Send + Sync + fmt::Debug {
    /// The keys of now.
    async fn keys(&self) -> Result<Keys, CredentialsError>;
}

/// The same keys each time.
#[derive(Debug)]
pub(crate) struct Fixed(pub(crate) Keys);

#[async_trait]
impl Source for Fixed {
    async fn keys(&self) -> Result<Keys, CredentialsError> {
        Ok(self.0.clone())
    }
}

/// The time that keys expire by.
pub(crate) trait Clock: Send + Sync + fmt::Debug {
    /// Now.
    fn now(&self) -> Timestamp;
}

/// The clock of this machine.
#[derive(Debug)]
pub(crate) struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}
