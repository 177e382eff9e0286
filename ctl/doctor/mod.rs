//! `doctor`: what is wrong with a recorder, found without changing anything, and one thing to do about each finding.
//!
//! Puts together what the library finds out, what the service manager says and what the daemon answers; [`machine`], [`bucket`] and
//! [`recorder`] judge it. The daemon is asked last, and not at all where asking would start it.

mod bucket;
mod check;
mod machine;
mod recorder;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;
use tracecraft::api::{Status, exit, route};
use tracecraft::doctor::{Examination, Lock};
use tracecraft::paths::Environment;
use tracecraft::{ConfigError, Flags};

pub(crate) use self::check::{Check, Checks, Verdict};
use crate::client::{CONNECT_TIMEOUT, Client};
use crate::failure::Failure;
use crate::render;
use crate::service::{Examined, examine};
use crate::terminal::{Output, Terminal};

/// For the service manager: a question or two to a bus.
const SERVICE_MAX: Duration = Duration::from_secs(8);

/// For the daemon. One that is alive answers within milliseconds, and one whose loop hangs says so after 5 s.
const DAEMON_MAX: Duration = Duration::from_secs(7);

/// What is asked with.
pub(crate) struct Asked<'a> {
    pub(crate) environment: Environment,
    /// The flag.
    pub(crate) socket: Option<PathBuf>,
    pub(crate) client: &'a Client,
}

/// What came of asking the daemon.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Daemon {
    /// This.
    Answered(Box<Status>),
    /// It does not run, and the service manager would start it for whoever asks.
    Waits,
    /// Nobody is there.
    Away,
    /// Somebody is there and does not answer, or not as it should: in words.
    Silent(String),
    /// It speaks another protocol: in words.
    Stranger(String),
}

/// All that is judged.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) examination: Result<Examination, ConfigError>,
    /// `None`: the manager did not answer in time.
    pub(crate) service: Option<Examined>,
    pub(crate) daemon: Daemon,
    /// Variables that name a proxy.
    pub(crate) proxies: Vec<&'static str>,
}

/// Looks, tells, and fails if anything is wrong.
pub(crate) async fn run(
    asked: Asked<'_>,
    json: bool,
    terminal: &Terminal,
    out: &mut Output,
) -> Result<(), Failure> {
    let checks = judge(&look(asked).await);
    let text = if json { render::json(&checks) } else { render::doctor::text(&checks, terminal) };
    out.write_all(text.as_bytes())?;
    out.flush()?;
    match checks.checks.iter().filter(|check| check.verdict == Verdict::Wrong).count() {
        0 => Ok(()),
        1 => Err(Failure::failed("one thing is wrong".into())),
        many => Err(Failure::failed(format!("{many} things are wrong"))),
    }
}

async fn look(asked: Asked<'_>) -> Found {
    let Asked { environment, socket, client } = asked;
    let flag = socket.clone().map(PathBuf::into_os_string);
    let flags = Flags { socket: flag, ..Flags::default() };
    // On the heap: the looks of a whole library are large.
    let examined = Box::pin(tracecraft::examine(flags, environment));
    let (examination, service) = tokio::join!(examined, service(socket));
    let held = examination.as_ref().is_ok_and(|found| {
        let own = found.own.as_ref();
        own.is_some_and(|own| matches!(own.lock, Lock::Held { .. }))
    });
    let waits = service.as_ref().is_some_and(|service| service.socket_waits);
    let daemon = if waits && !held { Daemon::Waits } else { ask(client).await };
    Found { examination, service, daemon, proxies: proxies() }
}

/// On a thread that nobody waits for longer than the limit: a bus may hang.
async fn service(socket: Option<PathBuf>) -> Option<Examined> {
    let (reply, answer) = oneshot::channel();
    let work = move || drop(reply.send(examine(socket.as_ref())));
    std::thread::Builder::new().name("service".to_owned()).spawn(work).ok()?;
    timeout(SERVICE_MAX, answer).await.ok()?.ok()
}

async fn ask(client: &Client) -> Daemon {
    let asked = client.get::<Status>(route::STATUS, DAEMON_MAX);
    // A daemon that admits nobody, and one that sends its answer in drops, must not take longer either: with the 18 s that a
    // store may take before, all of it has to end within 30 s.
    let Ok(answer) = timeout(DAEMON_MAX + CONNECT_TIMEOUT, asked).await else {
        return Daemon::Silent(
            "the daemon is there, and its answer did not come in time".to_owned(),
        );
    };
    match answer {
        Ok(status) => Daemon::Answered(Box::new(status)),
        Err(failure) if failure.exit() == exit::NOT_RUNNING => Daemon::Away,
        Err(failure) if failure.exit() == exit::PROTOCOL => {
            Daemon::Stranger(failure.what().to_owned())
        }
        Err(failure) => Daemon::Silent(failure.what().to_owned()),
    }
}

/// Variables that other programs take a proxy from.
const PROXIES: [&str; 6] =
    ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

fn proxies() -> Vec<&'static str> {
    let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    PROXIES.into_iter().filter(is_set).collect()
}

/// What all of it means, in the order in which a person would look.
pub(crate) fn judge(found: &Found) -> Checks {
    let mut checks = Vec::new();
    match &found.examination {
        Err(error) => {
            let chain =
                std::iter::successors(std::error::Error::source(error), |cause| cause.source());
            let message = chain.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
            checks.push(check::wrong(check::Code::Config, message, error.hint()));
        }
        Ok(examination) => {
            checks.extend(machine::settings(&examination.settings));
            checks.extend(machine::agents(examination));
            checks.extend(machine::own(examination, found));
        }
    }
    checks.extend(recorder::daemon(found));
    if let Ok(examination) = &found.examination {
        checks.extend(bucket::store(examination, found));
    }
    checks.extend(recorder::service(found));
    Checks { checks }
}
