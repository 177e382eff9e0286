//! Which service manager keeps this user's services, and what to do where none does (T70).
//!
//! Knows how managers are recognised and reached; refuses to know what they are asked.

use std::path::{Path, PathBuf};

use tracecraft::setup::Vars;

use super::{program, shell};
use crate::failure::Failure;
use crate::text;

/// Where systemd, once it is the init of a machine, keeps what all may know.
const BOOTED: &str = "/run/systemd/system";

/// Which manager there is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Manager {
    /// A user manager of systemd, and the variables that its services see.
    Systemd(Vars),
    /// launchd, in the domain of this user.
    Launchd { uid: u32 },
    /// None that could be reached.
    None(Absence),
}

/// Why there is no manager, and what a person can do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Absence {
    pub(super) why: String,
    pub(super) hint: String,
    pub(super) steps: Vec<String>,
}

/// What is looked at.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) is_macos: bool,
    pub(super) uid: u32,
    pub(super) user: String,
    /// systemd is this machine's init.
    pub(super) booted: bool,
    /// Microsoft's kernel.
    pub(super) is_wsl: bool,
    /// `XDG_RUNTIME_DIR`.
    pub(super) runtime_dir: Option<PathBuf>,
    /// Whether the user's own `/run/user/<uid>` is there.
    pub(super) has_run_user: bool,
    /// What the manager answered to the question for its variables; an `Err` is why it did not.
    pub(super) answer: Result<String, String>,
}

impl Manager {
    /// The variables that a service sees. launchd gives its agents few, and none that matter here.
    pub(super) fn vars(&self, shell: &Vars) -> Vars {
        match self {
            Manager::Systemd(vars) => vars.clone(),
            _ => shell.iter().filter(|(name, _)| *name == "HOME").map(pair).collect(),
        }
    }
}

fn pair((name, value): (&String, &String)) -> (String, String) {
    (name.clone(), value.clone())
}

/// Looks.
pub(super) fn find() -> Manager {
    let uid = rustix::process::getuid().as_raw();
    let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let asked = || match shell::run(&["systemctl", "--user", "show-environment"]) {
        Ok(ended) if ended.success => Ok(ended.out),
        Ok(ended) => Err(ended.said()),
        Err(error) => Err(format!("systemctl cannot be run: {error}")),
    };
    let is_macos = cfg!(target_os = "macos");
    decide(Facts {
        is_macos,
        uid,
        user: var("USER").or_else(|| var("LOGNAME")).unwrap_or_else(|| uid.to_string()),
        booted: Path::new(BOOTED).is_dir(),
        is_wsl: is_wsl(),
        runtime_dir: var("XDG_RUNTIME_DIR").map(PathBuf::from),
        has_run_user: Path::new(&format!("/run/user/{uid}")).is_dir(),
        answer: if is_macos { Err(String::new()) } else { asked() },
    })
}

/// Whether the kernel is Microsoft's.
pub(super) fn is_wsl() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.is_ok_and(|release| release.to_lowercase().contains("microsoft"))
}

/// Whoever answers is the manager. Otherwise: what is nearest to an answer, and how to get one.
pub(super) fn decide(facts: Facts) -> Manager {
    if facts.is_macos {
        return Manager::Launchd { uid: facts.uid };
    }
    match &facts.answer {
        Ok(printed) => Manager::Systemd(shell::variables(printed)),
        Err(why) if facts.booted => Manager::None(unreachable(&facts, why)),
        Err(_) if facts.is_wsl => Manager::None(Absence {
            why: "systemd does not run in this WSL distribution".into(),
            hint: "add these two lines to /etc/wsl.conf, run `wsl --shutdown` in Windows, and install again".into(),
            steps: [vec!["[boot]".into(), "systemd=true".into()], by_hand()].concat(),
        }),
        Err(_) => Manager::None(Absence {
            why: "neither systemd nor launchd keeps services here".into(),
            hint: "start it yourself; these lines do what can be done without".into(),
            steps: by_hand(),
        }),
    }
}

/// systemd is there and this user's manager does not answer.
fn unreachable(facts: &Facts, why: &str) -> Absence {
    let Facts { uid, user, .. } = facts;
    let what =
        |rest: &str| format!("systemd runs, but your own service manager does not answer: {rest}");
    match &facts.runtime_dir {
        // `su`, `sudo -u`, cron: the manager runs, and only its address is missing.
        None if facts.has_run_user => Absence {
            why: what("XDG_RUNTIME_DIR is not set, as after `su`, or in cron"),
            hint: "set it, and install again".into(),
            steps: vec![format!("export XDG_RUNTIME_DIR=/run/user/{uid}")],
        },
        Some(dir) if facts.has_run_user && *dir != Path::new(&format!("/run/user/{uid}")) => {
            Absence {
                why: what(&format!("XDG_RUNTIME_DIR names {}", dir.display())),
                hint: "set it to your own, and install again".into(),
                steps: vec![format!("export XDG_RUNTIME_DIR=/run/user/{uid}")],
            }
        }
        _ if !facts.has_run_user => Absence {
            why: what("you have no session here, so that it was never started"),
            hint:
                "log in directly (not by `su` or `sudo`), or have it run always, and install again"
                    .into(),
            steps: vec![
                format!("sudo loginctl enable-linger {user}"),
                format!("export XDG_RUNTIME_DIR=/run/user/{uid}"),
            ],
        },
        _ => Absence {
            why: what(why),
            hint: "start it, and install again; `loginctl user-status` says more".into(),
            steps: vec![format!("sudo systemctl start user@{uid}.service")],
        },
    }
}

/// What does without a manager what can be done.
fn by_hand() -> Vec<String> {
    // cron looks for programs in two directories of the system only.
    let program = program::find().ok();
    let program = program.map_or_else(|| "tracecraftd".to_owned(), |path| text::shell_word(&path));
    let lines = [
        (
            format!("setsid {program} </dev/null >>~/tracecraftd.log 2>&1 &"),
            "now, in the background",
        ),
        (
            format!("@reboot {program} 2>>~/tracecraftd.log"),
            "with each boot: a line for `crontab -e`",
        ),
        (format!("*/5 * * * * {program} --once"), "or without a daemon: each five minutes"),
    ];
    let width = lines.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
    lines.iter().map(|(line, what)| format!("{line:<width$}   # {what}")).collect()
}

impl Absence {
    /// For the person who asked.
    pub(super) fn failure(self) -> Failure {
        Failure::no_manager(self.why).hint(&self.hint).steps(self.steps)
    }
}

/// Whether this user's services run without a session, and how to have it so. `None` where it is so, or is not known.
pub(super) fn linger_advice() -> Option<String> {
    linger_words(&user()?, Path::new("/"))
}

/// The command alone.
pub(super) fn linger_command() -> Option<String> {
    let user = user()?;
    lacks_linger(&user, Path::new("/")).then(|| enable_linger(&user))
}

fn user() -> Option<String> {
    let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    var("USER").or_else(|| var("LOGNAME"))
}

fn enable_linger(user: &str) -> String {
    format!("loginctl enable-linger {user}")
}

/// Whether a user's services end with the last session, with the system's files below `root`.
fn lacks_linger(user: &str, root: &Path) -> bool {
    let kept = root.join("var/lib/systemd/linger");
    // Without logind sessions do not end services.
    root.join("run/systemd/seats").is_dir() && !kept.join(user).exists()
}

/// The advice for a user.
pub(super) fn linger_words(user: &str, root: &Path) -> Option<String> {
    lacks_linger(user, root).then(|| {
        format!(
            "it runs while you are logged in; to record also when you are not (tmux, ssh, a server): {}",
            enable_linger(user)
        )
    })
}
