//! Judges the daemon's answer, or its silence, and what keeps it running.

use tracecraft::api::{Phase, Status};
use tracecraft::doctor::{Lock, Settings};

use super::check::{Check, Code, note, ok, warning, wrong};
use super::{Daemon, Found};
use crate::service::Examined;
use crate::text;

/// What brings a daemon up to date, or back.
const RESTART: &str = "tracecraftctl service restart";

/// Seconds from which a daemon that is still starting is slow. A first start with tens of thousands of sessions takes less.
const STARTING_SECONDS_MAX: u64 = 600;

/// Restarts from which somebody should look.
const RESTARTS_MANY: u64 = 3;

/// Whether it runs, answers and is the right one; and what it says of itself.
pub(super) fn daemon(found: &Found) -> Vec<Check> {
    let pid = match found.examination.as_ref().ok().and_then(|it| it.own.as_ref()) {
        Some(own) => match &own.lock {
            Lock::Held { pid, .. } => Some(*pid),
            Lock::Free | Lock::Unknown(_) => None,
        },
        None => None,
    };
    match &found.daemon {
        Daemon::Answered(status) => answered(status, found),
        Daemon::Waits => vec![ok(Code::Daemon, "it does not run; the first who asks starts it")],
        Daemon::Away => vec![match pid {
            Some(pid) => wrong(
                Code::Daemon,
                format!("{} runs, and cannot be reached at its socket", process(pid)),
                restart(found, pid),
            ),
            None => warning(
                Code::Daemon,
                "it does not run: nothing is recorded, unless something calls `tracecraftd --once`",
                if installed(found) { RESTART } else { "tracecraftctl service install" },
            ),
        }],
        Daemon::Silent(what) => {
            vec![wrong(Code::Daemon, what.clone(), restart(found, pid.flatten()))]
        }
        Daemon::Stranger(what) => vec![wrong(Code::Version, what.clone(), RESTART)],
    }
}

fn process(pid: Option<u32>) -> String {
    pid.map_or("a daemon".to_owned(), |pid| format!("a daemon (process {pid})"))
}

fn installed(found: &Found) -> bool {
    found.service.as_ref().is_some_and(|service| service.installed)
}

/// The one way to get it going again. SIGKILL ends also what is stopped, and costs nothing: all that was captured is on the disk.
fn restart(found: &Found, pid: Option<u32>) -> String {
    match pid {
        Some(pid) if !installed(found) => format!("kill -9 {pid}; tracecraftd &"),
        _ => RESTART.to_owned(),
    }
}

fn answered(status: &Status, found: &Found) -> Vec<Check> {
    let mut checks = Vec::new();
    let Status { version, pid, uptime_seconds, .. } = status;
    let since = text::duration(*uptime_seconds);
    checks.push(match status.phase {
        _ if status.stalled_seconds.is_some() => {
            let stalled = text::duration(status.stalled_seconds.unwrap_or_default());
            let what =
                format!("process {pid} answers, and its loop has not come round for {stalled}");
            wrong(Code::Daemon, what, restart(found, Some(*pid)))
        }
        Phase::Starting if *uptime_seconds > STARTING_SECONDS_MAX => warning(
            Code::Daemon,
            format!("process {pid} answers, and has been looking for sessions for {since}"),
            "tracecraftctl service logs",
        ),
        _ => ok(Code::Daemon, format!("process {pid} answers and makes progress, for {since}")),
    });
    let own = env!("CARGO_PKG_VERSION");
    checks.push(if version == own {
        ok(Code::Version, format!("daemon and client are both {own}"))
    } else {
        let what = format!("the daemon is version {version}, this program {own}");
        warning(Code::Version, what, RESTART)
    });
    if let Ok(examination) = &found.examination {
        checks.push(settings(status, &examination.settings));
    }
    // Told already, as what it is: somebody's decision.
    let is_told = |code: &str| code == "redaction_off";
    let problems = status.problems.iter().filter(|problem| !is_told(&problem.code));
    checks.extend(problems.map(|problem| {
        let hint = problem.hint.clone().unwrap_or_else(|| "tracecraftctl service logs".to_owned());
        wrong(Code::Problem, format!("{} ({})", problem.message, problem.code), hint)
    }));
    checks
}

/// Whether the daemon goes by the configuration that was looked at here.
fn settings(status: &Status, settings: &Settings) -> Check {
    if status.store != settings.store {
        let (theirs, ours) = (&status.store, &settings.store);
        let what = format!("the daemon stores to {theirs}, and the configuration here says {ours}");
        return warning(Code::Settings, what, RESTART);
    }
    if status.redact != settings.redact {
        let what = format!(
            "the daemon runs with redact = {}, and the configuration here says {}",
            status.redact, settings.redact
        );
        return warning(Code::Settings, what, format!("kill -HUP {}", status.pid));
    }
    ok(Code::Settings, "the daemon goes by this configuration")
}

/// What keeps it running.
pub(super) fn service(found: &Found) -> Vec<Check> {
    let Some(service) = &found.service else {
        let what = "the service manager did not answer in time";
        return vec![wrong(Code::Unfinished, what, "systemctl --user status tracecraftd")];
    };
    let mut checks = vec![state(service, found)];
    if service.installed {
        checks.extend(kept(service));
    }
    if let [first, others @ ..] = service.programs.as_slice()
        && !others.is_empty()
    {
        let others: Vec<String> = others.iter().map(|path| path.display().to_string()).collect();
        checks.push(warning(
            Code::Programs,
            format!("{} comes before {} in PATH", first.display(), others.join(", ")),
            format!(
                "remove the older one: {} --version; {} --version",
                text::shell_word(first),
                text::shell_word(&service.programs[1])
            ),
        ));
    }
    if service.is_wsl {
        checks.push(note(
            Code::Wsl,
            "this is WSL: files of Windows (/mnt/c) send no events, and it ends with its last window",
            "keep the agents' directories in the Linux home",
        ));
    }
    checks
}

fn state(service: &Examined, found: &Found) -> Check {
    let runs = matches!(found.daemon, Daemon::Answered(_));
    if let Some(why) = &service.absence {
        // It says what can be done here, in some lines, and writes nothing where it cannot do more.
        let hint = "tracecraftctl service install, which tells how to get one, or to do without";
        return note(Code::Service, format!("no service can be kept: {why}"), hint);
    }
    let Examined { state, result, .. } = service;
    match (service.installed, service.active) {
        (false, _) if runs => note(
            Code::Service,
            "not installed: the daemon was started by hand, and ends with this session",
            "tracecraftctl service install",
        ),
        (false, _) => note(Code::Service, "not installed", "tracecraftctl service install"),
        (true, false) if service.socket_waits && result == "success" => {
            ok(Code::Service, "installed; it starts when it is asked for")
        }
        (true, false) => wrong(
            Code::Service,
            format!("installed, and does not run: {state}, {result}"),
            if result == "success" { RESTART } else { "tracecraftctl service logs" },
        ),
        (true, true) if !service.enabled => warning(
            Code::Service,
            "it runs, and does not start at the next login",
            "tracecraftctl service install",
        ),
        (true, true) => ok(Code::Service, "installed, enabled and running"),
    }
}

/// How well an installed service is kept.
fn kept(service: &Examined) -> Vec<Check> {
    let mut checks = Vec::new();
    let restarts = text::count(service.restarts, "restart", "restarts");
    match service.restarts {
        0 => {}
        few if few < RESTARTS_MANY => checks.push(note(
            Code::Restarts,
            format!("{restarts} after a failure"),
            "tracecraftctl service logs",
        )),
        _ => checks.push(warning(
            Code::Restarts,
            format!("{restarts} after failures"),
            "tracecraftctl service logs",
        )),
    }
    if !service.outdated.is_empty() {
        let units: Vec<String> =
            service.outdated.iter().map(|path| path.display().to_string()).collect();
        let what = format!("not what this version writes: {}", units.join(", "));
        checks.push(warning(Code::Unit, what, "tracecraftctl service install"));
    }
    if !service.unseen.is_empty() {
        let what =
            format!("this shell's {} are not seen by the service", service.unseen.join(", "));
        checks.push(note(Code::Variables, what, "tracecraftctl service install"));
    }
    if let Some(command) = &service.linger {
        let what = "the service runs while you are logged in, and not in between";
        checks.push(note(Code::Lingering, what, command.clone()));
    }
    checks
}
