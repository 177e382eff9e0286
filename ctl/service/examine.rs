//! The service as `doctor` looks at it: which manager, what it knows, whether the units and the programs are those of now.
//!
//! Asks managers and files; refuses to write, and to judge what it finds.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tracecraft::setup::Vars;

use super::manager::{self, Manager};
use super::{Install, program, report, resolve, shell_vars, systemd};

/// How long a manager is waited for that is asked again and again.
const WOULD_START_MAX: Duration = Duration::from_secs(2);

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Service {
    /// Why there is no manager.
    pub(crate) absence: Option<String>,
    pub(crate) installed: bool,
    pub(crate) enabled: bool,
    pub(crate) active: bool,
    /// The manager's own words.
    pub(crate) state: String,
    /// Why it ended last, in the manager's word.
    pub(crate) result: String,
    /// Starts that a failure made necessary.
    pub(crate) restarts: u64,
    /// The manager listens for the daemon, and starts it when somebody connects.
    pub(crate) socket_waits: bool,
    /// How to have it run without a session, where it does not.
    pub(crate) linger: Option<String>,
    /// Units that we wrote, and would write otherwise now.
    pub(crate) outdated: Vec<PathBuf>,
    /// Variables of this shell that the service does not see.
    pub(crate) unseen: Vec<String>,
    /// Different programs of the daemon's name in the search path, first the one that a shell starts.
    pub(crate) programs: Vec<PathBuf>,
    pub(crate) is_wsl: bool,
}

/// Looks.
pub(crate) fn examine(socket: Option<&PathBuf>) -> Service {
    let manager = manager::find();
    let vars = shell_vars();
    let mut found = match &manager {
        Manager::None(absence) => {
            Service { absence: Some(absence.why.clone()), ..Service::default() }
        }
        Manager::Systemd(seen) => of_systemd(&manager, seen, socket, &vars),
        Manager::Launchd { uid } => {
            report::of_launchd(*uid).map_or_else(|_| Service::default(), reported)
        }
    };
    found.programs = program::all();
    found.is_wsl = manager::is_wsl();
    if found.installed
        && let Ok(survey) = resolve(&manager, &Install::default(), socket, &vars, true)
    {
        let wanted = survey.wanted.iter().filter(|one| one.line.is_none());
        found.unseen.extend(wanted.map(|one| one.from.clone()));
        found.unseen.extend(survey.credentials.iter().map(ToString::to_string));
        found.unseen.extend(survey.unseen.iter().map(ToString::to_string));
    }
    found
}

/// Whether a connection to this socket would have the service manager start a daemon that does not run.
pub(crate) async fn would_start(socket: &Path) -> bool {
    let socket = socket.to_owned();
    let looked = tokio::task::spawn_blocking(move || {
        let listens = systemd::show(systemd::SOCKET, &["ActiveState", "Listen"]);
        let is_there = listens.get("Listen").is_some_and(|it| {
            it.strip_suffix(" (Stream)").is_some_and(|path| Path::new(path) == socket)
        });
        is_there && systemd::is_active(systemd::SOCKET) && !systemd::is_active(systemd::SERVICE)
    });
    // A manager that hangs starts nothing either.
    tokio::time::timeout(WOULD_START_MAX, looked).await.is_ok_and(|it| it.unwrap_or(false))
}

fn reported(report: report::Report) -> Service {
    let report::Report { installed, enabled, active, state, result, restarts, .. } = report;
    Service { installed, enabled, active, state, result, restarts, ..Service::default() }
}

fn of_systemd(manager: &Manager, seen: &Vars, socket: Option<&PathBuf>, vars: &Vars) -> Service {
    let report = report::of_systemd();
    let unit = report.unit.clone();
    let mut found = reported(report);
    found.socket_waits = !found.active && systemd::is_active(systemd::SOCKET);
    found.linger = manager::linger_command().filter(|_| found.installed);
    let survey = resolve(manager, &Install::default(), socket, vars, false);
    if let (Some(unit), Ok(survey), Ok(program)) = (unit, survey, program::find())
        && systemd::is_ours(&unit)
    {
        let dir = unit.parent().unwrap_or(Path::new("/"));
        let units = systemd::render(dir, &program, &survey, seen);
        let is_old = |unit: &systemd::Unit| {
            std::fs::read_to_string(&unit.path).is_ok_and(|text| is_outdated(&text, &unit.text))
        };
        found.outdated =
            units.iter().filter(|unit| is_old(unit)).map(|it| it.path.clone()).collect();
    }
    found
}

/// Whether a unit says something else than the one that would be written now. Of the command only the program counts, and the
/// place of the socket not at all: `install` may have been given a configuration and a socket that nobody names here.
pub(super) fn is_outdated(is: &str, should_be: &str) -> bool {
    fn lines(text: &str) -> impl Iterator<Item = &str> {
        text.lines().filter(|line| !line.starts_with("ListenStream=")).map(|line| {
            if line.starts_with("ExecStart=") {
                line.split_once(" --config ").map_or(line, |(command, _)| command)
            } else {
                line
            }
        })
    }
    !lines(is).eq(lines(should_be))
}
