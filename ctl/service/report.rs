//! `service status` and `service logs`: what the manager knows, as it says it.
//!
//! Asks managers and journals; whether everything is safe is asked of the daemon by `status`, not here.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;

use super::manager::{Manager, linger_advice};
use super::{Told, launchd, shell, systemd};
use crate::failure::Failure;
use crate::terminal::{Ink, Terminal};
use crate::text;

/// What is known: the shape of `--json`.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    pub(super) manager: &'static str,
    pub(super) installed: bool,
    /// Starts at login.
    pub(super) enabled: bool,
    pub(super) active: bool,
    /// The manager's own words.
    pub(super) state: String,
    /// Why it ended last, in the manager's word; `success` if nothing is wrong.
    pub(super) result: String,
    pub(super) pid: u32,
    /// Starts that a failure made necessary.
    pub(super) restarts: u64,
    pub(super) unit: Option<PathBuf>,
    /// What the daemon told the manager.
    pub(super) says: String,
    pub(super) notes: Vec<String>,
}

/// Tells; not running is exit code 3.
pub(super) fn status(manager: &Manager, told: &mut Told<'_>) -> Result<(), Failure> {
    let report = match manager {
        Manager::Launchd { uid } => of_launchd(*uid)?,
        _ => of_systemd(),
    };
    told.answer(&report, |terminal| words(&report, terminal))?;
    if report.active {
        return Ok(());
    }
    let hint = match (report.installed, report.result.as_str()) {
        (false, _) => "`tracecraftctl service install`",
        (true, "success") => "`tracecraftctl service restart` starts it",
        (true, _) => {
            "`tracecraftctl doctor` and `tracecraftctl service logs` say why; `tracecraftctl service restart` tries again"
        }
    };
    let what =
        if report.installed { "the service does not run" } else { "the service is not installed" };
    Err(Failure::service_down(what).hint(hint))
}

pub(super) fn of_systemd() -> Report {
    let properties = [
        "LoadState",
        "ActiveState",
        "SubState",
        "UnitFileState",
        "MainPID",
        "NRestarts",
        "Result",
        "FragmentPath",
        "StatusText",
    ];
    let shown = systemd::show(systemd::SERVICE, &properties);
    let get = |name: &str| shown.get(name).cloned().unwrap_or_default();
    let installed = get("LoadState") == "loaded";
    let socket = systemd::show(systemd::SOCKET, &["ActiveState", "Result"]);
    let mut notes = Vec::new();
    if socket.get("ActiveState").is_some_and(|state| state == "failed") {
        let why = socket.get("Result").cloned().unwrap_or_default();
        notes.push(format!("its socket has failed, too ({why}): clients find nobody"));
    }
    if get("Result") == "start-limit-hit" {
        notes.push("it failed so often in a row that systemd has given up".into());
    }
    notes.extend(linger_advice().filter(|_| installed));
    Report {
        manager: "systemd",
        installed,
        enabled: get("UnitFileState") == "enabled",
        active: matches!(get("ActiveState").as_str(), "active" | "reloading"),
        state: format!("{} ({})", get("ActiveState"), get("SubState")),
        result: get("Result"),
        pid: get("MainPID").parse().unwrap_or(0),
        restarts: get("NRestarts").parse().unwrap_or(0),
        unit: Some(get("FragmentPath")).filter(|path| !path.is_empty()).map(PathBuf::from),
        says: get("StatusText"),
        notes,
    }
}

pub(super) fn of_launchd(uid: u32) -> Result<Report, Failure> {
    let plist = launchd::plist_path(&super::install::home()?);
    let printed = launchd::print(uid)?;
    let active = printed.as_deref().is_some_and(|text| text.contains("state = running"));
    Ok(Report {
        manager: "launchd",
        installed: plist.is_file(),
        enabled: printed.is_some(),
        active,
        state: if active { "running".into() } else { "not running".into() },
        result: if active { "success".into() } else { String::new() },
        pid: printed.as_deref().map_or(0, pid_in),
        unit: Some(plist).filter(|plist| plist.is_file()),
        ..Report::default()
    })
}

/// Whether the unit, or a drop-in of it, gives the service settings that this program does not see.
pub(super) fn has_own_settings() -> bool {
    let shown = systemd::show(systemd::SERVICE, &["ExecStart", "Environment", "EnvironmentFiles"]);
    let says = |name: &str, what: &str| shown.get(name).is_some_and(|it| it.contains(what));
    let file = shown.get("EnvironmentFiles").is_some_and(|files| !files.is_empty());
    file || says("ExecStart", "--config") || says("Environment", "TRACECRAFT_")
}

/// The process number in what `launchctl print` says.
pub(super) fn pid_in(printed: &str) -> u32 {
    let mut lines = printed.lines().map(str::trim);
    lines.find_map(|line| line.strip_prefix("pid = ")?.parse().ok()).unwrap_or(0)
}

/// Whether launchd keeps the agent running.
pub(super) fn launchd_runs(uid: u32) -> bool {
    launchd::print(uid).is_ok_and(|text| text.is_some_and(|text| text.contains("state = running")))
}

fn words(report: &Report, terminal: &Terminal) -> String {
    let mut out = String::new();
    let ink = if report.active { Ink::Good } else { Ink::Bad };
    let state = match (report.installed, report.active) {
        (false, _) => "is not installed".to_owned(),
        (true, true) => format!("runs, process {}", report.pid),
        (true, false) => format!("does not run: {}, {}", report.state, report.result),
    };
    let _ = writeln!(out, "{} the service {}", terminal.paint(ink, "●"), text::line(&state));
    if report.installed {
        let login = if report.enabled { "starts at each login" } else { "does NOT start at login" };
        let _ = writeln!(
            out,
            "  {login}; {}",
            text::count(report.restarts, "restart", "restarts") + " after a failure"
        );
    }
    if !report.says.is_empty() && report.active {
        let _ = writeln!(out, "  says: {}", text::line(&report.says));
    }
    if let Some(unit) = &report.unit {
        let _ = writeln!(out, "  {}", text::line(&terminal.path(&unit.display().to_string())));
    }
    for note in &report.notes {
        let _ = writeln!(out, "  note: {}", text::line(note));
    }
    out
}

/// Hands over to the program that keeps the words. As JSON they are the journal's own, one entry a line; launchd keeps plain text
/// and nothing else.
pub(super) fn logs(manager: &Manager, follow: bool, lines: u32, json: bool) -> Result<(), Failure> {
    let lines = lines.to_string();
    let log = launchd::log_path(&super::install::home()?).display().to_string();
    let mut words = match manager {
        Manager::Launchd { .. } => vec!["tail", "-n", &lines],
        _ => vec!["journalctl", "--user", "--unit", systemd::SERVICE, "--lines", &lines],
    };
    if follow {
        words.push("-f");
    }
    match manager {
        Manager::Launchd { .. } => words.push(&log),
        _ => words.extend(["--no-pager", "--output", if json { "json" } else { "short" }]),
    }
    match shell::show(&words) {
        Ok(Some(0)) => Ok(()),
        // A person ended it, as one does with -f.
        Ok(None) => Ok(()),
        Ok(Some(code)) => Err(Failure::failed(format!("{} ended with {code}", words[0]))
            .hint("without a journal the words of the service go where your system's log goes")),
        Err(error) => Err(Failure::failed(format!("{} cannot be run: {error}", words[0]))),
    }
}
