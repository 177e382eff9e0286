//! `service uninstall`: nothing of the service is left; with `--purge`, nothing of the program but what it stored.
//!
//! Removes only what it knows for its own, and never a bucket. Parts that wait in the outbox are asked about before anything is
//! touched, and looked for again before the state goes.

use std::fmt::Write as _;
use std::fs::{self, File, TryLockError};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tracecraft::api::{Status, route};
use tracecraft::setup::Survey;

use super::manager::Manager;
use super::systemd::cannot;
use super::{Told, launchd, systemd};
use crate::client::{Client, STATUS_TIMEOUT};
use crate::failure::Failure;
use crate::terminal::Terminal;
use crate::text;

/// The daemon's lock: a directory without it was never a state directory of ours.
const LOCK: &str = "tracecraftd.lock";

/// How far state and configuration go, too.
#[derive(Debug, Clone, Copy)]
pub(super) struct Purge {
    pub(super) purge: bool,
    /// Also if parts wait.
    pub(super) force: bool,
}

/// What came of it: the shape of `--json`.
#[derive(Debug, Serialize)]
pub(super) struct Uninstalled {
    pub(super) manager: &'static str,
    pub(super) removed: Vec<PathBuf>,
    /// What is still there, and why.
    pub(super) kept: Vec<Kept>,
}

#[derive(Debug, Serialize)]
pub(super) struct Kept {
    pub(super) what: &'static str,
    pub(super) path: String,
}

/// Stops, disables, removes. A configuration that cannot be read keeps nobody from removing the service; it is needed to purge.
pub(super) async fn run(
    manager: &Manager,
    found: Result<Survey, Failure>,
    purge: Purge,
    client: &Client,
    told: &mut Told<'_>,
) -> Result<(), Failure> {
    let found = match found {
        Ok(found) => Some(found),
        Err(failure) if purge.purge => return Err(failure),
        Err(_) => None,
    };
    if let Some(found) = found.as_ref().filter(|_| purge.purge) {
        check_purge(manager, found, purge, client).await?;
    }
    let mut done = Uninstalled { manager: "launchd", removed: Vec::new(), kept: Vec::new() };
    match manager {
        Manager::Systemd(vars) => {
            done.manager = "systemd";
            without_systemd(&systemd::unit_dir(vars, &super::install::home()?), &mut done)?;
        }
        Manager::Launchd { uid } => {
            launchd::unload(*uid).await?;
            let home = super::install::home()?;
            for (path, stays) in
                [(launchd::plist_path(&home), false), (launchd::log_path(&home), !purge.purge)]
            {
                if stays {
                    keep(&mut done, "what it said", &path);
                } else if remove_if_there(&path)? {
                    done.removed.push(path);
                }
            }
        }
        Manager::None(_) => {}
    }
    let socket = match (&found, manager) {
        (Some(found), _) => Some(found.socket.clone()),
        (None, Manager::Systemd(vars)) => systemd::default_socket(vars),
        (None, _) => None,
    };
    if let Some(socket) = socket {
        remove_socket(&socket, &mut done)?;
    }
    if let Some(found) = &found {
        if purge.purge {
            remove_state(found, purge, &mut done)?;
        } else {
            keep(&mut done, "state", &found.state_dir);
            keep(&mut done, "configuration", &found.config_file);
        }
        match &found.store_dir {
            Some(dir) => keep(&mut done, "what is stored", dir),
            None => done.kept.push(Kept { what: "what is stored", path: found.store.clone() }),
        }
    }
    told.answer(&done, |terminal| words(&done, terminal))
}

fn without_systemd(dir: &Path, done: &mut Uninstalled) -> Result<(), Failure> {
    // The socket first: a client that asks meanwhile must not start the service again.
    let all = [systemd::SOCKET, systemd::SERVICE];
    let units = |are: fn(&systemd::Standing) -> bool| -> Vec<&str> {
        all.iter().filter(|unit| are(&systemd::standing(unit))).copied().collect()
    };
    // What runs may have lost its file: a package was removed, or somebody did it by hand.
    let running = units(|unit| unit.is_loaded || unit.is_running);
    if !running.is_empty() {
        systemd::ask(&[&["stop"], &running[..]].concat())?;
    }
    let loaded = units(|unit| unit.is_loaded);
    if !loaded.is_empty() {
        systemd::ask(&[&["disable"], &loaded[..]].concat())?;
    }
    done.removed.extend(systemd::remove(dir)?);
    done.removed.extend(systemd::remove_links(dir)?);
    systemd::ask(&["daemon-reload"])?;
    // A unit that failed is remembered, and would be listed as one that is missing.
    let _ = systemd::try_ask(&["reset-failed", systemd::SOCKET, systemd::SERVICE]);
    for unit in [systemd::SERVICE, systemd::SOCKET] {
        let own = dir.join(format!("{unit}.d"));
        keep(done, "your own changes to the unit", &own);
    }
    Ok(())
}

/// The socket and its directory, which the manager made. One that somebody listens on is another daemon's.
fn remove_socket(socket: &Path, done: &mut Uninstalled) -> Result<(), Failure> {
    let is_socket = socket.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(socket).is_err() {
        fs::remove_file(socket).map_err(|error| cannot("remove", socket, &error))?;
        done.removed.push(socket.to_owned());
    }
    if let Some(dir) =
        socket.parent().filter(|dir| dir.ends_with("tracecraft") || dir.ends_with("run"))
    {
        // Only if it is empty.
        let _ = fs::remove_dir(dir);
    }
    Ok(())
}

fn keep(done: &mut Uninstalled, what: &'static str, path: &Path) {
    if path.exists() {
        done.kept.push(Kept { what, path: path.display().to_string() });
    }
}

/// Whether everything that was captured is stored, and the state can go without anything else.
async fn check_purge(
    manager: &Manager,
    found: &Survey,
    purge: Purge,
    client: &Client,
) -> Result<(), Failure> {
    let (state, real) =
        (&found.state_dir, |path: &Path| path.canonicalize().unwrap_or(path.into()));
    if let Some(bucket) = &found.store_dir
        && (real(bucket).starts_with(real(state)) || real(state).starts_with(real(bucket)))
    {
        let what =
            format!("{} and the bucket {} lie in one another", state.display(), bucket.display());
        return Err(
            Failure::failed(what).hint("a bucket is never removed: move it elsewhere first")
        );
    }
    if state.exists() && !state.join(LOCK).is_file() {
        let what = format!("{} is no state directory of tracecraftd", state.display());
        return Err(Failure::failed(what).hint("look at it, and remove it by hand"));
    }
    if purge.force {
        return Ok(());
    }
    let runs = !matches!(manager, Manager::Systemd(_)) || systemd::is_active(systemd::SERVICE);
    let waiting = if runs {
        // What a daemon has only just captured is sent when it ends; what it cannot send now it will not then.
        let status = client.get::<Status>(route::STATUS, STATUS_TIMEOUT).await;
        status.map_or_else(|_| waiting(state), |status| status.pending.parts)
    } else {
        waiting(state)
    };
    if waiting > 0 { Err(refused(waiting, "nothing was removed")) } else { Ok(()) }
}

fn refused(waiting: u64, what: &str) -> Failure {
    let parts = text::count(waiting, "part waits", "parts wait");
    Failure::failed(format!("{parts} that the store does not have yet: {what}"))
        .hint("`tracecraftctl flush` while the daemon runs; or --force, which loses them where their sources are gone")
}

/// Files in the outboxes of a state directory, those of former stores included.
pub(super) fn waiting(state: &Path) -> u64 {
    let files = |dir: &Path| {
        let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
        entries.flatten().map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let mut dirs = vec![state.join("outbox")];
    dirs.extend(files(&state.join("stores")).iter().map(|store| store.join("outbox")));
    let mut count = 0;
    while let Some(dir) = dirs.pop() {
        for path in files(&dir) {
            // A link is a file here: nothing behind it is ours.
            match path.symlink_metadata() {
                Ok(meta) if meta.is_dir() => dirs.push(path),
                _ => count += 1,
            }
        }
    }
    count
}

/// The state and the configuration, once nobody uses them and nothing waits in them.
fn remove_state(found: &Survey, purge: Purge, done: &mut Uninstalled) -> Result<(), Failure> {
    let state = &found.state_dir;
    if state.exists() {
        let lock = File::open(state.join(LOCK))
            .map_err(|error| cannot("open the lock in", state, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let what = format!("another tracecraftd uses {}: the state stays", state.display());
                return Err(Failure::failed(what).hint("end that one, and say it again"));
            }
            Err(TryLockError::Error(error)) => return Err(cannot("lock", state, &error)),
        }
        let left = waiting(state);
        if left > 0 && !purge.force {
            return Err(refused(left, "the service is removed, the state stays"));
        }
        fs::remove_dir_all(state).map_err(|error| cannot("remove", state, &error))?;
        done.removed.push(state.clone());
    }
    let file = &found.config_file;
    if found.is_default_file {
        if remove_if_there(file)? {
            done.removed.push(file.clone());
        }
        // Only if it is empty.
        let _ = file.parent().map(fs::remove_dir);
    } else {
        // It may be part of something else: somebody put it there by another name.
        keep(done, "configuration", file);
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<bool, Failure> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(cannot("remove", path, &error)),
    }
}

fn words(done: &Uninstalled, terminal: &Terminal) -> String {
    let mut out = String::from("the service is gone: it does not run and is not started again\n");
    for path in &done.removed {
        let _ =
            writeln!(out, "  removed  {}", text::line(&terminal.path(&path.display().to_string())));
    }
    for Kept { what, path } in &done.kept {
        let _ = writeln!(
            out,
            "  kept     {} ({what})",
            text::line(&terminal.path_in_url(&terminal.path(path)))
        );
    }
    out
}
