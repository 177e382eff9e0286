//! A store behind S3: keys, the way to it, the bucket, the rights that can be tried by reading, and its clock.
//!
//! Asks for nothing but a greeting, one listing of names and one object that never was. Keys are told by where they came from
//! and until when they are good, never shown.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;

use super::About;
use crate::config::Config;
use crate::durable::{Blocking, Disk, OsDisk};
use crate::remote::{self, Place, Renewals};
use crate::store::credentials::{CredentialsError, Fixed};
use crate::store::{ErrorKind, Store, StoreError};

/// For the keys: a program or a service that hands them out may take some seconds.
const KEYS_MAX: Duration = Duration::from_secs(6);

/// For each question to the store, of which three follow each other. A connection alone may take longer where nobody answers.
const ANSWER_MAX: Duration = Duration::from_secs(6);

/// The names directly below it are the harnesses: a listing of one page, however many sessions there are.
const LISTED: &str = "sessions/";

/// Never stored by anybody. Whoever may read is told that there is none.
const NEVER_STORED: &str = "sessions/doctor/never-stored";

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// The address of the service.
    pub endpoint: String,
    /// The region that requests are signed for.
    pub region: String,
    /// The bucket's name.
    pub name: String,
    /// What requests are signed with.
    pub keys: Keys,
    /// Whether the service answers at all, or why not.
    pub answers: Result<(), String>,
    /// Seconds that this machine's clock is ahead of the service's; `None`: it does not tell.
    pub ahead_seconds: Option<i64>,
    /// Listing, which also tells whether the bucket is there.
    pub list: Tried,
    /// Getting.
    pub get: Tried,
}

/// What was found of credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// There are some.
    Found {
        /// Where they came from.
        origin: String,
        /// From when on they are refused, RFC 3339.
        expires: Option<String>,
    },
    /// A login is due for renewal, which would write to the user's files; in words.
    Due(String),
    /// There are none that could be used; why, and what to do where that is known.
    Missing(String, Option<String>),
}

/// What came of a right that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// It is there.
    Fine,
    /// It was refused, or could not be tried; why.
    Failed(About, String),
    /// What comes before it had failed already.
    Not,
}

/// Asks.
pub(super) async fn look(config: &Config, place: &Place) -> Bucket {
    let (keys, greeted) = tokio::join!(keys(config), greet(config, place));
    let mut found = Bucket {
        endpoint: place.endpoint().to_owned(),
        region: place.region().to_owned(),
        name: place.bucket().to_owned(),
        keys: Keys::Due(String::new()),
        answers: greeted.as_ref().map(|_| ()).map_err(Clone::clone),
        ahead_seconds: greeted.ok().flatten(),
        list: Tried::Not,
        get: Tried::Not,
    };
    let held = match keys {
        Ok(held) => held,
        Err(keys) => return Bucket { keys, ..found },
    };
    found.keys = Keys::Found {
        origin: held.origin.clone(),
        expires: held.expires.map(|expires| format!("{expires:.0}")),
    };
    if found.answers.is_err() {
        return found;
    }
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::new());
    let source = Arc::new(Fixed(held));
    let store = match remote::open_with(config, place, source, &disk, Blocking::Pool) {
        Ok(store) => store,
        Err(error) => {
            found.answers = Err(error.to_string());
            return found;
        }
    };
    found.list = tried(store.list_folders(LISTED)).await;
    if found.list == Tried::Fine {
        found.get = tried(async {
            match store.get(NEVER_STORED).await {
                Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
                other => other.map(drop),
            }
        })
        .await;
    }
    found
}

async fn keys(config: &Config) -> Result<crate::store::credentials::Keys, Keys> {
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::new());
    let missing = |error: &dyn std::fmt::Display| Keys::Missing(error.to_string(), None);
    // A thread of its own, since the end of a runtime waits for its pool, and a file may be on a disk that hangs.
    let blocking = Blocking::worker("doctor").map_err(|error| missing(&error))?;
    let source = remote::source(config, &disk, &blocking, Renewals::Left)
        .map_err(|error| Keys::Missing(error.to_string(), Some(error.hint().to_owned())))?;
    match timeout(KEYS_MAX, source.keys()).await {
        Ok(Ok(keys)) if keys.expires.is_some_and(|expires| expires <= Timestamp::now()) => {
            Err(missing(&CredentialsError::Stale { origin: keys.origin }))
        }
        Ok(Ok(keys)) => Ok(keys),
        Ok(Err(error @ CredentialsError::Due { .. })) => Err(Keys::Due(error.to_string())),
        Ok(Err(error)) => Err(missing(&error)),
        Err(_) => Err(missing(&CredentialsError::Slow { limit: KEYS_MAX })),
    }
}

/// Whether anybody answers, and how far its clock is behind ours.
async fn greet(config: &Config, place: &Place) -> Result<Option<i64>, String> {
    match timeout(ANSWER_MAX, remote::greet(config, place)).await {
        Ok(Ok(theirs)) => {
            Ok(theirs.map(|theirs| Timestamp::now().as_second() - theirs.as_second()))
        }
        Ok(Err(error)) => Err(chain(&*error)),
        Err(_) => Err(silence()),
    }
}

async fn tried<T>(asked: impl Future<Output = Result<T, StoreError>>) -> Tried {
    match timeout(ANSWER_MAX, asked).await {
        Ok(Ok(_)) => Tried::Fine,
        Ok(Err(error)) => Tried::Failed(About::of(&error), chain(&*error.source)),
        Err(_) => Tried::Failed(About::Way, silence()),
    }
}

fn silence() -> String {
    format!("no answer within {} s", ANSWER_MAX.as_secs())
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
