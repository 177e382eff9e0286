//! `service install` and `service restart`: from whatever is there to a service that runs.
//!
//! Decides the order, and what a person is told; the words of each manager are in [`systemd`] and [`launchd`].

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;
use tracecraft::api::{Status, route};
use tracecraft::setup::{Survey, Vars, write_file};

use super::manager::{Manager, linger_advice};
use super::{Told, launchd, program, systemd};
use crate::client::{Client, STATUS_TIMEOUT};
use crate::failure::Failure;
use crate::terminal::Terminal;
use crate::text;

/// Between two questions to a daemon that was just started.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// For how long: launchd does not tell when a program is ready.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);

/// What came of it: the shape of `--json`.
#[derive(Debug, Serialize)]
pub(super) struct Installed {
    pub(super) manager: &'static str,
    /// The units, or the property list.
    pub(super) units: Vec<PathBuf>,
    /// They came with a package.
    pub(super) packaged: bool,
    pub(super) program: Option<PathBuf>,
    pub(super) config: PathBuf,
    /// Keys that were written into the configuration.
    pub(super) written: Vec<&'static str>,
    pub(super) socket: PathBuf,
    pub(super) store: String,
    pub(super) pid: u32,
    pub(super) version: String,
    /// What a person should know.
    pub(super) notes: Vec<String>,
}

/// Installs, enables, starts.
pub(super) async fn run(
    manager: &Manager,
    found: &Survey,
    told: &mut Told<'_>,
) -> Result<(), Failure> {
    check_nobody_else(manager, found).await?;
    let program = program::find()?;
    let mut notes = notes_of(found);
    notes.extend(program::doubts(&program));
    let written = complete_configuration(found)?;
    let mut done = Installed {
        manager: "launchd",
        units: Vec::new(),
        packaged: false,
        program: Some(program.clone()),
        config: found.config_file.clone(),
        written,
        socket: found.socket.clone(),
        store: found.store.clone(),
        pid: 0,
        version: String::new(),
        notes,
    };
    match manager {
        Manager::Systemd(vars) => {
            with_systemd(vars, &program, found, &mut done)?;
            done.notes.extend(linger_advice());
        }
        Manager::Launchd { uid } => {
            let home = home()?;
            let plist = launchd::plist_path(&home);
            let is_new = launchd::write(&plist, &launchd::render(&program, found, &home))?;
            launchd::load(*uid, &plist, is_new || !done.written.is_empty()).await?;
            done.units.push(plist);
            done.notes.push("it runs while you are logged in at the screen".into());
        }
        Manager::None(_) => {}
    }
    let status = answers(&Client::new(found.socket.clone())).await?;
    (done.pid, done.version, done.store) = (status.pid, status.version, status.store);
    if done.version != env!("CARGO_PKG_VERSION") {
        let own = env!("CARGO_PKG_VERSION");
        done.notes.push(format!("the daemon is version {}, this program {own}", done.version));
    }
    told.answer(&done, |terminal| words(&done, terminal))
}

/// A daemon that somebody started by hand holds the lock: a service beside it would only fail.
async fn check_nobody_else(manager: &Manager, found: &Survey) -> Result<(), Failure> {
    // A socket of systemd's would start the service for our question.
    if matches!(manager, Manager::Systemd(_))
        && (systemd::is_active(systemd::SERVICE) || systemd::is_active(systemd::SOCKET))
    {
        return Ok(());
    }
    if let Manager::Launchd { uid } = manager
        && super::report::launchd_runs(*uid)
    {
        return Ok(());
    }
    let other = Client::new(found.socket.clone());
    match other.get::<Status>(route::STATUS, STATUS_TIMEOUT).await {
        Ok(status) => {
            let pid = status.pid;
            let what = format!("tracecraftd runs already, started by hand (process {pid})");
            Err(Failure::failed(what).hint(&format!("end it (kill {pid}), and install again")))
        }
        Err(_) => Ok(()),
    }
}

/// What a person should know about the configuration.
fn notes_of(found: &Survey) -> Vec<String> {
    let mut notes = Vec::new();
    for wanted in &found.wanted {
        if let Some(line) = wanted.line {
            let (key, file, from) = (wanted.key, found.config_file.display(), &wanted.from);
            notes
                .push(format!("{key} stays as {file}:{line} says; {from} is for this shell alone"));
        }
    }
    if !found.credentials.is_empty() {
        let names = found.credentials.join(", ");
        notes.push(format!(
            "credentials are in this shell's environment only ({names}), where the service does not see them: put them into a profile (`aws configure --profile tracecraft`) and write profile = \"tracecraft\" into {}",
            found.config_file.display()
        ));
    }
    for name in &found.unseen {
        notes.push(format!(
            "{name} of this shell is not what the service sees: set it in ~/.config/environment.d/tracecraft.conf, and log in again"
        ));
    }
    if std::env::var_os("SUDO_USER").is_some() {
        notes.push(
            "this is root's service, for root's sessions: without sudo it would be yours".into(),
        );
    }
    notes
}

/// Writes the keys that the file lacks, and says which.
fn complete_configuration(found: &Survey) -> Result<Vec<&'static str>, Failure> {
    let file = &found.config_file;
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(systemd::cannot("read", file, &error)),
    };
    let Some(completed) = found.completed(&text) else { return Ok(Vec::new()) };
    write_file(file, &completed).map_err(|error| systemd::cannot("write", file, &error))?;
    Ok(found.wanted.iter().filter(|one| one.line.is_none()).map(|one| one.key).collect())
}

fn with_systemd(
    vars: &Vars,
    program: &Path,
    found: &Survey,
    done: &mut Installed,
) -> Result<(), Failure> {
    let dir = systemd::unit_dir(vars, &home()?);
    done.manager = "systemd";
    let mut changed = !done.written.is_empty();
    if let Some(packaged) = systemd::packaged(found, vars) {
        // Ours would hide those of the package, and its updates.
        changed |= !systemd::remove(&dir)?.is_empty();
        done.units = vec![packaged.join(systemd::SERVICE), packaged.join(systemd::SOCKET)];
        done.packaged = true;
        done.program = None;
    } else {
        let units = systemd::render(&dir, program, found, vars);
        changed |= systemd::write(&units)?;
        done.units = units.map(|unit| unit.path).into();
    }
    systemd::ask(&["daemon-reload"])?;
    // A crash loop of before is over: somebody is here who wants it to run.
    let _ = systemd::try_ask(&["reset-failed", systemd::SERVICE, systemd::SOCKET]);
    systemd::ask(&["enable", systemd::SERVICE, systemd::SOCKET])?;
    if changed || !systemd::is_active(systemd::SOCKET) {
        // The socket is made by the manager only while the service does not run.
        systemd::ask(&["stop", systemd::SOCKET, systemd::SERVICE])?;
    }
    systemd::ask(&["start", systemd::SOCKET, systemd::SERVICE])?;
    Ok(())
}

/// What came of a restart: the shape of `--json`.
#[derive(Debug, Serialize)]
pub(super) struct Restarted {
    pub(super) pid: u32,
    pub(super) version: String,
}

/// Stops and starts what is installed.
pub(super) async fn restart(
    manager: &Manager,
    client: &Client,
    told: &mut Told<'_>,
) -> Result<(), Failure> {
    let installed = match manager {
        Manager::Systemd(_) => {
            let shown = systemd::show(systemd::SERVICE, &["LoadState"]);
            shown.get("LoadState").is_some_and(|state| state == "loaded")
        }
        _ => launchd::plist_path(&home()?).is_file(),
    };
    if !installed {
        return Err(Failure::failed("the service is not installed".into())
            .hint("`tracecraftctl service install`"));
    }
    match manager {
        Manager::Systemd(_) => {
            // The program and the units may be newer than what the manager has read.
            systemd::ask(&["daemon-reload"])?;
            let _ = systemd::try_ask(&["reset-failed", systemd::SERVICE, systemd::SOCKET]);
            if systemd::is_active(systemd::SOCKET) {
                systemd::ask(&["restart", systemd::SERVICE])?;
            } else {
                systemd::ask(&["stop", systemd::SERVICE])?;
                systemd::ask(&["start", systemd::SOCKET, systemd::SERVICE])?;
            }
        }
        Manager::Launchd { uid } => launchd::run(&launchd::restart(*uid))?,
        Manager::None(_) => {}
    }
    let status = answers(client).await?;
    let done = Restarted { pid: status.pid, version: status.version };
    told.answer(&done, |_| {
        format!("restarted: tracecraftd {}, process {}\n", text::line(&done.version), done.pid)
    })
}

/// The daemon answers: "started" is what a client sees, and not that there is a process (T65).
async fn answers(service: &Client) -> Result<Status, Failure> {
    let deadline = Instant::now() + ANSWERS_WITHIN;
    loop {
        match service.get::<Status>(route::STATUS, STATUS_TIMEOUT).await {
            Ok(status) => return Ok(status),
            Err(failure) if Instant::now() >= deadline => {
                return Err(failure.hint("`tracecraftctl service logs` shows what it said"));
            }
            Err(_) => {}
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// The user's home directory, as both managers know it.
pub(super) fn home() -> Result<PathBuf, Failure> {
    tracecraft::paths::Environment::of_process()
        .map(|environment| environment.bases.home)
        .map_err(|error| Failure::usage(error.to_string()))
}

fn words(done: &Installed, terminal: &Terminal) -> String {
    let mut out = String::new();
    let path = |path: &Path| text::line(&terminal.path(&path.display().to_string()));
    let version = text::line(&done.version);
    let _ =
        writeln!(out, "tracecraftd {version} runs, process {}, and starts at each login", done.pid);
    let _ = writeln!(out);
    for (number, unit) in done.units.iter().enumerate() {
        let label = if number == 0 { done.manager } else { "" };
        let _ = writeln!(out, "  {label:<9} {}", path(unit));
    }
    if let Some(program) = &done.program {
        let _ = writeln!(out, "  {:<9} {}", "program", path(program));
    }
    let keys = match done.written.as_slice() {
        [] => String::new(),
        keys => format!(" (written: {})", keys.join(", ")),
    };
    let _ = writeln!(out, "  {:<9} {}{keys}", "config", path(&done.config));
    let _ = writeln!(out, "  {:<9} {}", "socket", path(&done.socket));
    let _ = writeln!(out, "  {:<9} {}", "store", text::line(&terminal.path_in_url(&done.store)));
    if !done.notes.is_empty() {
        let _ = writeln!(out);
    }
    for note in &done.notes {
        let _ = writeln!(out, "  note: {}", text::line(note));
    }
    out
}
