//! The library behind `tracecraftd` and `tracecraftctl`: see `daemon/ARCHITECTURE.md`.

pub mod api;
pub mod doctor;
pub mod paths;
pub mod setup;

mod config;
mod control;
mod durable;
mod error;
mod harness;
mod instance;
mod ledger;
mod listening;
mod log;
mod mirror;
mod outbox;
mod part;
mod redact;
mod remote;
mod shutdown;
mod source;
mod state;
mod store;
mod systemd;
mod usage;
mod watch;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use self::config::{Compaction, StoreUrl};
pub use self::config::{Config, ConfigError, Flags};
use self::durable::{Blocking, Disk, OsDisk};
pub use self::error::RunError;
use self::harness::{Env, Harness, Root};
use self::instance::{Instance, InstanceError};
pub use self::log::{SetLog, start_log};
use self::mirror::handle::{Command, Mirror};
use self::mirror::{
    Automatic, Engine, Numbers, RootsFinder, Settings, Signal, Summary, SystemClock, Tiers, Tools,
};
use self::paths::Environment;
use self::redact::Redactor;
use self::remote::Place;
use self::shutdown::Signals;
use self::source::database::Databases;
use self::state::Owner;
use self::store::{Counted, FsStore, Retry, Store, Tally};
pub use self::systemd::Handed;
use self::systemd::Notifier;
use self::watch::{Hints, Watcher};

/// What `tracecraftd` was started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Record until told to stop.
    Daemon,
    /// Mirror everything that is there now, and end (`--once`).
    Once,
}

/// Signals that wait for the mirror: a person sends a few.
const SIGNALS_MAX: usize = 8;

/// What `--check` prints. Fails where the daemon would refuse to start.
pub fn check(config: &Config) -> Result<String, ConfigError> {
    let roots = roots(config);
    let shown: Vec<(&str, &Path)> = roots.iter().map(|r| (r.harness, r.path.as_path())).collect();
    config.check_roots(&shown)?;
    let rows = Place::of(config)?.map(|place| place.rows()).unwrap_or_default();
    Ok(config.describe(rows, &shown))
}

/// Looks at everything that the configuration leads to, and writes nothing: what `tracecraftctl doctor` tells. Fails where the
/// daemon would refuse to start.
pub async fn examine(
    flags: Flags,
    environment: Environment,
) -> Result<doctor::Examination, ConfigError> {
    let config = Config::resolve(flags, environment)?;
    check(&config)?;
    let place = Place::of(&config)?;
    Ok(doctor::examine(&config, place, roots(&config), state_dir_of).await)
}

/// Runs until it is told to stop, or with [`Mode::Once`] until all is done; answers what is to be told about the run. Must be
/// called within a runtime.
pub async fn run(
    config: Config,
    mode: Mode,
    handed: Handed,
    set_log: SetLog,
) -> Result<Option<String>, RunError> {
    let signals = Signals::new()?;
    check(&config)?;
    let _instance = match Instance::acquire(&config.state_dir.value) {
        Ok(instance) => instance,
        // The daemon that holds the lock does what `--once` is for.
        Err(error @ InstanceError::Held { .. }) if mode == Mode::Once => {
            return control::ask::flush(&config.socket.value).await.map(Some).map_err(|asked| {
                let why = mirror::chain(&asked);
                RunError::failed(format!("{error}, and it cannot be asked to flush: {why}"))
            });
        }
        Err(error) => return Err(error.into()),
    };
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::new());
    let tally = Arc::new(Tally::default());
    let (store, state_dir) = open_store(&config, &disk, &tally).await?;
    let hints = Arc::new(Hints::default());
    let tables = harness::all().into_iter().filter_map(|h| Some((h.name(), h.tables()?)));
    let free_bytes_min = config.min_free_space.value;
    let databases = Arc::new(Databases::new(state_dir.join("copies"), free_bytes_min, tables));
    let watcher = (mode == Mode::Daemon).then(|| Watcher::start(hints.clone()));
    let roots = roots(&config);
    let finder = RootsFinder::new(databases.clone(), harness::all(), roots.clone(), watcher);
    let (mirror, commands) = Mirror::new();
    let tools = Tools {
        store,
        tally,
        disk,
        files: databases.clone(),
        databases,
        finder: Arc::new(finder),
        clock: Arc::new(SystemClock),
        hints,
        blocking: Blocking::Pool,
        reading: Blocking::worker("capture")?,
        scan_began: Arc::default(),
        pulse: mirror.pulse().clone(),
    };
    let settings = settings(&config, mode, state_dir);
    if !settings.redact {
        warn!("redact = false: secrets are stored as they are");
    }
    match mode {
        Mode::Once => {
            let engine = Engine::open(tools, settings)?;
            let nobody = Notifier::silent();
            let summary = drive(engine, commands, signals, config, mode, set_log, &nobody).await?;
            report(summary, &roots)
        }
        Mode::Daemon => {
            let notifier = Notifier::of_process();
            let socket = &config.socket.value;
            let is_passed = handed.has_listeners();
            let bound = match handed.choose(|listener| control::take_over(listener, socket)) {
                Some(bound) => bound,
                None if is_passed => control::bind(socket)?,
                None => control::bind_first(socket)?,
            };
            let (scan_began, pulse) = (tools.scan_began.clone(), tools.pulse.clone());
            let asked = mirror.clone();
            let engine = Engine::open(tools, settings)?;
            announce(&config);
            let (stop, stopped) = oneshot::channel::<()>();
            let serve = control::serve(bound, mirror, scan_began, async {
                // An error means that the mirror has ended: that is the signal, too.
                let _ = stopped.await;
            });
            let drive = async {
                let ended =
                    drive(engine, commands, signals, config, mode, set_log, &notifier).await;
                drop(stop);
                ended
            };
            let tell = async {
                notifier.accompany(&pulse, &asked).await;
                std::future::pending::<Infallible>().await
            };
            // Telling ends with the mirror, whatever it waits for just then.
            let mirror = async {
                tokio::select! {
                    ended = drive => ended,
                    never = tell => match never {},
                }
            };
            let (served, ended) = tokio::join!(serve, mirror);
            ended?;
            served.map_err(RunError::failed)?;
            Ok(None)
        }
    }
}

/// Runs the mirror and hands it the signals of the process.
async fn drive(
    engine: Engine,
    commands: mpsc::Receiver<Command>,
    mut signals: Signals,
    mut config: Config,
    mode: Mode,
    set_log: SetLog,
    notifier: &Notifier,
) -> Result<Summary, RunError> {
    let (sender, receiver) = mpsc::channel(SIGNALS_MAX);
    let state_dir = engine.state_dir().to_owned();
    // A task of its own, so that a second signal is obeyed even while the mirror waits for a disk that hangs.
    let mut mirror = tokio::spawn(Box::pin(engine.run(commands, receiver)));
    loop {
        let signal = tokio::select! {
            ended = &mut mirror => return Ok(ended.map_err(RunError::failed)??),
            signal = signals.next() => signal,
        };
        let signal = match signal {
            shutdown::Signal::Drain => {
                notifier.stopping();
                Signal::Drain
            }
            shutdown::Signal::Flush => Signal::Flush,
            shutdown::Signal::Abandon => {
                warn!("ending now: what is pending is in the outbox");
                mirror.abort();
                return Ok(Summary::default());
            }
            shutdown::Signal::Reload => {
                notifier.reloading();
                let read = match reload(&mut config, &set_log) {
                    Ok(new) => Signal::Reload(Box::new(settings(new, mode, state_dir.clone()))),
                    Err(why) => Signal::Misconfigured(why),
                };
                notifier.reloaded();
                read
            }
        };
        // A full channel means that the mirror has not come to the earlier ones: one more of them says nothing new.
        let _ = sender.try_send(signal);
    }
}

/// Reads the configuration again. One that is wrong changes nothing.
fn reload<'a>(config: &'a mut Config, set_log: &SetLog) -> Result<&'a Config, String> {
    let new = config.reload().map_err(|error| {
        let why = mirror::chain(&error);
        error!(error = %why, "the configuration is wrong: the old one stays");
        why
    })?;
    for name in config.changes_needing_restart(&new) {
        warn!(setting = name, "changed in the configuration: restart tracecraftd to use it");
    }
    set_log(new.log());
    *config = new;
    Ok(config)
}

/// What the environment and the agents' own variables say about where sessions are.
fn roots(config: &Config) -> Vec<Root> {
    let mut vars: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    for (name, dir) in config.agent_vars() {
        // A blank variable counts as none, as the agents read it.
        if vars.get(name).is_none_or(|value| value.trim().is_empty())
            && let Some(dir) = dir.to_str()
        {
            vars.insert(name.to_owned(), dir.to_owned());
        }
    }
    let env = Env { home: config.home().to_owned(), vars };
    harness::all().iter().flat_map(|harness: &Arc<dyn Harness>| harness.roots(&env)).collect()
}

/// The store, and the directory of its state.
async fn open_store(
    config: &Config,
    disk: &Arc<dyn Disk>,
    tally: &Arc<Tally>,
) -> Result<(Arc<dyn Store>, PathBuf), RunError> {
    let state_dir = |identity: &str| state_dir_of(&**disk, &config.state_dir.value, identity);
    if let Some(place) = Place::of(config)? {
        let store = remote::open(config, &place, disk, Blocking::Pool)?;
        let state_dir = state_dir(store.identity());
        let store = Counted::new(store, tally.clone());
        let store = Retry::new(store, disk.clone(), Blocking::Pool, fastrand::Rng::new());
        return Ok((Arc::new(store), state_dir));
    }
    let StoreUrl::File { dir } = &config.store.value else {
        return Err(RunError::failed("the store is neither local nor remote"));
    };
    let store = FsStore::new(disk.clone(), dir.clone(), Blocking::Pool);
    let state_dir = state_dir(store.identity());
    if Owner::of(&**disk, &state_dir).is_some_and(|owner| owner.has_stored()) {
        store.expect_present(); // A disk that was pulled out is not an empty bucket.
    }
    // A kill within a put leaves a temporary file. Should another program be within one just now, its put fails and is tried
    // again.
    if let Err(e) = store.sweep(SystemTime::now()).await {
        warn!(error = %mirror::chain(&e), "cannot sweep old temporary files from the store");
    }
    let store = Counted::new(store, tally.clone());
    let store = Retry::new(store, disk.clone(), Blocking::Pool, fastrand::Rng::new());
    Ok((Arc::new(store), state_dir))
}

/// State belongs to one store. The first one has the state directory; any other has its own below it, so that pointing the
/// daemon at another bucket and back again loses nothing.
fn state_dir_of(disk: &dyn Disk, dir: &Path, identity: &str) -> PathBuf {
    let digest = part::digest_of(identity.as_bytes());
    let own = dir.join("stores").join(&digest[..8]);
    let elsewhere = Owner::of(disk, dir).is_some_and(|owner| owner.store != identity);
    if elsewhere || Owner::of(disk, &own).is_some() { own } else { dir.to_owned() }
}

fn settings(config: &Config, mode: Mode, state_dir: PathBuf) -> Settings {
    let redact = config.redact.value;
    let billed = Place::of(config).ok().flatten().is_some_and(|place| place.bills_early_deletes());
    let compaction = match config.compaction.value {
        Compaction::Auto if billed => Automatic::Billed,
        Compaction::Auto => Automatic::On(Tiers::default()),
        Compaction::Off => Automatic::Off,
    };
    Settings {
        interval: config.interval.value,
        rules: config.rules.clone(),
        redactor: Arc::new(if redact { Redactor::standard() } else { Redactor::off() }),
        redact,
        outbox_bytes_max: config.outbox_max.value,
        free_bytes_min: config.min_free_space.value,
        compaction,
        numbers: Numbers::default(),
        once: mode == Mode::Once,
        store_url: config.store.value.to_string(),
        state_dir,
    }
}

/// A few lines for whoever started it: what is recorded, where it goes, how to look.
fn announce(config: &Config) {
    info!(version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "tracecraftd records");
    for root in roots(config) {
        let there = root.path.is_dir();
        info!(harness = root.harness, path = %root.path.display(), there, "looking for sessions");
    }
    info!(store = %config.store.value, redact = config.redact.value, "sessions go to");
    info!(socket = %config.socket.value.display(), "look with: tracecraftctl status, list, show ID");
}

/// `1 part`, `2 parts`.
fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// What `--once` tells at its end. Anything that is not safe makes it a failure.
fn report(summary: Summary, roots: &[Root]) -> Result<Option<String>, RunError> {
    let mut text = format!(
        "{}; stored {}, {}; {} removed",
        count(summary.sessions, "session"),
        count(summary.parts, "part"),
        count(summary.bytes, "byte"),
        count(summary.redactions, "secret"),
    );
    if summary.unsent_parts > 0 || summary.waiting > 0 || !summary.failures.is_empty() {
        let are = |number| if number == 1 { "is" } else { "are" };
        let unsent = summary.unsent_parts;
        let mut what = format!("{text}; {} {} not stored", count(unsent, "part"), are(unsent));
        if summary.waiting > 0 {
            let sessions = count(summary.waiting, "session");
            what.push_str(&format!(", {sessions} {} not captured", are(summary.waiting)));
        }
        for failure in &summary.failures {
            what.push_str("\n  ");
            what.push_str(failure);
        }
        return Err(RunError::failed(what)
            .with_hint("`tracecraftctl doctor` says what to mend; then run it again"));
    }
    if summary.sessions == 0 {
        let looked: Vec<String> = roots.iter().map(|r| r.path.display().to_string()).collect();
        text.push_str(&format!("\nno sessions yet; looked in {}", looked.join(", ")));
    }
    for problem in &summary.problems {
        text.push_str("\nnote: ");
        text.push_str(problem);
    }
    Ok(Some(text))
}
