//! What can be found out about a recorder from outside: its configuration, its files, the agents' directories, the store.
//!
//! Findings are data; the words for people are the client's. Writes nothing anywhere, and asks the recorder itself nothing: it
//! may run, hang, be of another version or not be there. Each look has a limit, so that a disk or a store that hangs costs
//! that look and no other.

mod agents;
mod bucket;
mod own;

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

pub use self::agents::{Agents, Retention, Root, RootState};
pub use self::bucket::{Bucket, Keys, Tried};
pub use self::own::{Directory, Lock, Own, Snapshot, Socket, Watches};
use crate::config::{Config, Given, StoreUrl};
use crate::durable::Disk;
use crate::harness;
use crate::remote::Place;
pub use crate::store::About;

/// For everything that is asked of file systems. A large tree of transcripts on a slow disk takes seconds.
const FILES_MAX: Duration = Duration::from_secs(10);

/// All that was found. What is `None` did not come within its limit.
#[derive(Debug)]
pub struct Examination {
    /// What the configuration says.
    pub settings: Settings,
    /// The recorder's own files, and what the machine grants.
    pub own: Option<Own>,
    /// The agents' directories.
    pub agents: Option<Agents>,
    /// The store, where it is a directory.
    pub local: Option<Local>,
    /// The store, where it is none.
    pub bucket: Option<Bucket>,
}

/// The settings that findings are measured by, and who gave them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The configuration file.
    pub config_file: PathBuf,
    /// Whether it is there.
    pub has_file: bool,
    /// Each setting that somebody has given, and where: `flag --store`, `environment TRACECRAFT_STORE`, `config.toml:3`.
    pub said: Vec<(&'static str, String)>,
    /// The control socket.
    pub socket: PathBuf,
    /// The state directory.
    pub state_dir: PathBuf,
    /// The store's URL, which has no credentials.
    pub store: String,
    /// Whether secrets are removed.
    pub redact: bool,
    /// Bytes of the state's disk that stay free.
    pub min_free_space: u64,
    /// Bytes that may wait for the store.
    pub outbox_max: u64,
}

/// A store that is a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// The directory.
    pub path: PathBuf,
    /// How it was found; `None`: not within the limit.
    pub found: Option<LocalState>,
}

/// How the directory of a local store was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LocalState {
    /// It is there, and may be read and written.
    Fine,
    /// It is not there, and nothing was stored yet.
    NotYet,
    /// It is not there, and the state says that something was stored in it.
    Gone,
    /// This user may not read or write it; or it is no directory.
    Unusable(String),
}

/// How state directories are named: by configured directory and identity of the store.
pub(crate) type StateDirOf = fn(&dyn Disk, &std::path::Path, &str) -> PathBuf;

/// Looks at everything.
pub(crate) async fn examine(
    config: &Config,
    place: Option<Place>,
    roots: Vec<harness::Root>,
    state_dir_of: StateDirOf,
) -> Examination {
    let settings = settings(config);
    let identity = match (&place, &config.store.value) {
        (Some(place), _) => place.identity(),
        (None, StoreUrl::File { dir }) => format!("file://{}", dir.display()),
        (None, _) => String::new(),
    };
    let (asked, in_dir) = (settings.clone(), identity.clone());
    let own = aside(move || own::look(&asked, &in_dir, state_dir_of));
    let agents = aside(move || agents::look(&roots));
    let dir = match &config.store.value {
        StoreUrl::File { dir } => Some(dir.clone()),
        StoreUrl::S3 { .. } | StoreUrl::Hf { .. } => None,
    };
    let (path, state_dir) = (dir.clone(), settings.state_dir.clone());
    let local =
        aside(move || path.map(|path| own::local(&path, &state_dir, &identity, state_dir_of)));
    let bucket = async {
        match &place {
            Some(place) => Some(bucket::look(config, place).await),
            None => None,
        }
    };
    let (own, agents, local, bucket) = tokio::join!(own, agents, local, bucket);
    let local = dir.map(|path| Local { path, found: local.flatten() });
    Examination { settings, own, agents, local, bucket }
}

fn settings(config: &Config) -> Settings {
    let given = Given(config);
    Settings {
        config_file: given.file().0.to_owned(),
        has_file: given.has_file(),
        said: given.said(),
        socket: config.socket.value.clone(),
        state_dir: config.state_dir.value.clone(),
        store: config.store.value.to_string(),
        redact: config.redact.value,
        min_free_space: config.min_free_space.value,
        outbox_max: config.outbox_max.value,
    }
}

/// Runs what may wait for a disk on a thread that nobody waits for longer than the limit: the process ends without it.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    let named = std::thread::Builder::new().name("doctor".to_owned());
    named.spawn(move || drop(reply.send(work()))).ok()?;
    timeout(FILES_MAX, answer).await.ok()?.ok()
}
