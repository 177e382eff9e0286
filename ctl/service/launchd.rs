//! The agent of launchd: its property list, and what `launchctl` is asked.
//!
//! Knows the text and the commands; refuses to know what the daemon does. Written by launchd's manual and checked by rendering
//! alone: nobody has run it on a Mac.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;
use tracecraft::setup::{Survey, write_file};

use super::shell;
use super::systemd::cannot;
use crate::failure::Failure;

/// The agent's name in launchd.
pub(super) const LABEL: &str = "tracecraft.tracecraftd";

/// The daemon's last flush takes 20 s at most, and launchd kills it after 30 (`ExitTimeOut`).
const GONE_WITHIN: Duration = Duration::from_secs(40);

/// Between two looks whether it is gone.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

const TEXT: &str = include_str!("../../packaging/tracecraft.tracecraftd.plist");

/// Where the agents of this user lie.
pub(super) fn plist_path(home: &Path) -> PathBuf {
    home.join("Library/LaunchAgents").join(format!("{LABEL}.plist"))
}

/// Where the daemon's words go: launchd has no journal.
pub(super) fn log_path(home: &Path) -> PathBuf {
    home.join("Library/Logs/tracecraftd.log")
}

/// The property list for this program and configuration.
pub(super) fn render(program: &Path, found: &Survey, home: &Path) -> String {
    let mut arguments = vec![program.display().to_string()];
    if !found.is_default_file {
        arguments.extend(["--config".into(), found.config_file.display().to_string()]);
    }
    let string = |text: &String| format!("        <string>{}</string>\n", escaped(text));
    let arguments: String = arguments.iter().map(string).collect();
    TEXT.replace("        <string>/usr/local/bin/tracecraftd</string>\n", &arguments).replace(
        "/Users/you/Library/Logs/tracecraftd.log",
        &escaped(&log_path(home).display().to_string()),
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A command, and whether its failure matters.
pub(super) type Step = (Vec<String>, bool);

/// What makes a written agent run, now and at each login.
pub(super) fn load_steps(uid: u32, plist: &Path) -> Vec<Step> {
    let (domain, agent) = (format!("gui/{uid}"), format!("gui/{uid}/{LABEL}"));
    let plist = plist.display().to_string();
    vec![
        (words(&["enable", &agent]), true),
        (words(&["bootstrap", &domain, &plist]), true),
        (words(&["kickstart", &agent]), true),
    ]
}

/// Makes a written agent run. Launchd reads a list once, and the daemon most of its configuration: what ran by others is ended first
/// (`is_new`), what runs by these goes on.
pub(super) async fn load(uid: u32, plist: &Path, is_new: bool) -> Result<(), Failure> {
    let agent = format!("gui/{uid}/{LABEL}");
    if print(uid)?.is_some() {
        if !is_new {
            return run(&[
                (words(&["enable", &agent]), true),
                (words(&["kickstart", &agent]), true),
            ]);
        }
        unload(uid).await?;
    }
    run(&load_steps(uid, plist))
}

/// What ends the agent for good.
pub(super) fn unload_step(uid: u32) -> Step {
    (words(&["bootout", &format!("gui/{uid}/{LABEL}")]), false)
}

/// Ends the agent and waits until it is gone: its last flush may take a while, and until then launchd takes no other.
pub(super) async fn unload(uid: u32) -> Result<(), Failure> {
    run(&[unload_step(uid)])?;
    let deadline = Instant::now() + GONE_WITHIN;
    while print(uid)?.is_some() {
        if Instant::now() >= deadline {
            let what =
                format!("{LABEL} is told to end and still runs after {} s", GONE_WITHIN.as_secs());
            return Err(Failure::failed(what).hint("say it again in a moment"));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

/// What launchd tells of the agent; `None`: it does not know it.
pub(super) fn print(uid: u32) -> Result<Option<String>, Failure> {
    let look = words(&["print", &format!("gui/{uid}/{LABEL}")]);
    let command: Vec<&str> = look.iter().map(String::as_str).collect();
    let ended = shell::run(&command)
        .map_err(|error| Failure::failed(format!("{} cannot be run: {error}", look[0])))?;
    Ok(ended.success.then_some(ended.out))
}

/// What ends the process and starts it again.
pub(super) fn restart(uid: u32) -> Vec<Step> {
    vec![(words(&["kickstart", "-k", &format!("gui/{uid}/{LABEL}")]), true)]
}

fn words(words: &[&str]) -> Vec<String> {
    std::iter::once(&"launchctl").chain(words).map(|&word| word.to_owned()).collect()
}

/// Runs commands in their order.
pub(super) fn run(steps: &[Step]) -> Result<(), Failure> {
    for (words, matters) in steps {
        let command: Vec<&str> = words.iter().map(String::as_str).collect();
        let ended = shell::run(&command)
            .map_err(|error| Failure::failed(format!("{} cannot be run: {error}", words[0])))?;
        if *matters && !ended.success {
            let what = format!("`{}` failed: {}", words.join(" "), ended.said());
            return Err(Failure::failed(what)
                .hint("log in at the screen: an agent runs in that session, and not over ssh"));
        }
    }
    Ok(())
}

/// Writes the list, if it is not there as it should be; answers whether it was written.
pub(super) fn write(path: &Path, text: &str) -> Result<bool, Failure> {
    if std::fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(false);
    }
    write_file(path, text).map_err(|error| cannot("write", path, &error))?;
    Ok(true)
}
