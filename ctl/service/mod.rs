//! `service`: the daemon as something that is there: installed, started at login, restarted, removed.
//!
//! Puts together what [`manager`] finds, what [`systemd`] and [`launchd`] do, and what the library says about the configuration.
//! Asks the daemon only over its socket, and writes nothing but units and missing keys of the configuration.

mod examine;
mod install;
mod launchd;
mod manager;
mod program;
mod report;
mod shell;
mod systemd;
mod uninstall;

#[cfg(test)]
mod tests;

use std::io::Write;
use std::path::PathBuf;

use tracecraft::Flags;
use tracecraft::paths::Environment;
use tracecraft::setup::{Survey, Vars, survey};

pub(crate) use self::examine::{Service as Examined, examine, would_start};
use self::manager::Manager;
use crate::args::{Install, Service};
use crate::client::Client;
use crate::failure::Failure;
use crate::render;
use crate::terminal::{Output, Terminal};

/// Where an answer goes, and in which form.
pub(crate) struct Told<'a> {
    /// For a program.
    pub(crate) json: bool,
    /// What is known about a person's terminal.
    pub(crate) terminal: &'a Terminal,
    /// Standard output.
    pub(crate) out: &'a mut Output,
}

impl Told<'_> {
    fn answer(
        &mut self,
        value: &impl serde::Serialize,
        text: impl FnOnce(&Terminal) -> String,
    ) -> Result<(), Failure> {
        let text = if self.json { render::json(value) } else { text(self.terminal) };
        self.out.write_all(text.as_bytes())?;
        self.out.flush()?;
        Ok(())
    }
}

/// Does what a verb of `service` says.
pub(crate) async fn run(
    verb: Service,
    socket: Option<PathBuf>,
    client: &Client,
    told: &mut Told<'_>,
) -> Result<(), Failure> {
    let manager = manager::find();
    let manager = match manager {
        Manager::None(absence) => return Err(absence.failure()),
        found => found,
    };
    let vars = shell_vars();
    match verb {
        Service::Install(install) => {
            let found = resolve(&manager, &install, socket.as_ref(), &vars, true)?;
            // The service goes by the file, so that a flag that says something else would only seem to do something.
            let told_twice = found.wanted.iter().find(|one| one.from == "--store");
            if let Some(line) = told_twice.and_then(|one| one.line) {
                let file = Install { store: None, ..install };
                let of_service = resolve(&manager, &file, socket.as_ref(), &vars, false)?;
                if of_service.store != found.store {
                    let at = format!("{}:{line}", found.config_file.display());
                    let (file, flag) = (&of_service.store, &found.store);
                    let what = format!("{at} says store = {file:?}, and --store {flag:?}");
                    let hint = format!("change {at}, or leave --store out");
                    return Err(Failure::usage(what).hint(&hint));
                }
            }
            install::run(&manager, &found, told).await
        }
        Service::Uninstall { purge, force } => {
            let found = resolve(&manager, &Install::default(), socket.as_ref(), &vars, false);
            uninstall::run(&manager, found, uninstall::Purge { purge, force }, client, told).await
        }
        Service::Status => report::status(&manager, told),
        Service::Logs { follow, lines } => report::logs(&manager, follow, lines, told.json),
        Service::Restart => {
            // What runs is not ended for something that cannot start.
            let elsewhere = manager.vars(&vars).contains_key("TRACECRAFT_CONFIG");
            if matches!(manager, Manager::Systemd(_)) && !elsewhere && !report::has_own_settings() {
                resolve(&manager, &Install::default(), socket.as_ref(), &vars, false)?;
            }
            install::restart(&manager, client, told).await
        }
    }
}

/// The variables of this process, as far as they are text.
fn shell_vars() -> Vars {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

/// The configuration as flags and variables of this process make it, or (`as_shell` is false) as the service sees it. Directories are
/// the service's either way: the state of a service is where its manager's variables say.
fn resolve(
    manager: &Manager,
    install: &Install,
    socket: Option<&PathBuf>,
    shell: &Vars,
    as_shell: bool,
) -> Result<Survey, Failure> {
    let usage = |error: &dyn std::fmt::Display| Failure::usage(error.to_string());
    let mut environment = Environment::of_process().map_err(|error| usage(&error))?;
    let service = manager.vars(shell);
    environment.bases = shell::bases(environment.bases, &service);
    if !as_shell {
        environment.vars.retain(|name, _| service.contains_key(name));
        for (name, value) in &mut environment.vars {
            *value = service[name].clone().into();
        }
    }
    let flags = Flags {
        config: install.config.clone(),
        store: install.store.clone(),
        socket: socket.map(|path| path.clone().into_os_string()),
        ..Flags::default()
    };
    survey(flags, environment, if as_shell { shell } else { &service }, &service)
        .map_err(|error| usage(&error).hint(error.hint()))
}
