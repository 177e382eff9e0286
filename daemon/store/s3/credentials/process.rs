//! `credential_process`: a program of the user's that prints keys.
//!
//! Knows how it is run and what it may print; refuses to show any of that. It gets no input, and what it says on standard
//! error is dropped: it may be anything.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::profiles::Profile;
use super::{CredentialsError, Keys};

/// Longest run. A program that asks a remote service takes seconds; one that waits for a person would wait for ever here.
const PROCESS_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest output. Keys have a few thousand bytes.
const OUTPUT_BYTES_MAX: u64 = 64 * 1024;

/// What a service manager tells its service alone: a child must not speak for it.
const MANAGER_VARS: [&str; 8] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
];

/// What the program prints.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Output {
    version: u32,
    access_key_id: String,
    secret_access_key: String,
    session_token: Option<String>,
    expiration: Option<String>,
}

/// Runs the command of a profile, as the shell understands it.
pub(super) async fn keys(profile: Profile<'_>, command: &str) -> Result<Keys, CredentialsError> {
    keys_within(profile, command, PROCESS_TIMEOUT).await
}

async fn keys_within(
    profile: Profile<'_>,
    command: &str,
    limit: Duration,
) -> Result<Keys, CredentialsError> {
    let flaw = |flaw: String| CredentialsError::Process {
        profile: profile.name.escape_debug().to_string(),
        flaw,
    };
    let (status, output) = match tokio::time::timeout(limit, run(command)).await {
        Ok(Ok(ended)) => ended,
        Ok(Err(error)) => return Err(flaw(format!("cannot be run: {error}"))),
        Err(_) => return Err(flaw(format!("did not end within {} s", limit.as_secs()))),
    };
    if output.len() as u64 > OUTPUT_BYTES_MAX {
        return Err(flaw(format!("printed more than {} KiB", OUTPUT_BYTES_MAX / 1024)));
    }
    if !status.success() {
        return Err(flaw(format!("failed ({status})")));
    }
    // What the parser says about it may repeat it.
    let output: Output = serde_json::from_slice(&output)
        .map_err(|_| flaw("printed something else than the JSON that it should".into()))?;
    if output.version != 1 {
        return Err(flaw(format!("printed version {}, and only 1 is known", output.version)));
    }
    if output.access_key_id.is_empty() || output.secret_access_key.is_empty() {
        return Err(flaw("printed an empty key".into()));
    }
    let expires = output.expiration.filter(|time| !time.is_empty()).map(|time| time.parse());
    let expires: Option<Timestamp> =
        expires.transpose().map_err(|_| flaw("printed an Expiration that is no time".into()))?;
    Ok(Keys {
        access_key_id: output.access_key_id,
        secret_access_key: output.secret_access_key,
        session_token: output.session_token.filter(|token| !token.is_empty()),
        expires,
        origin: format!("the profile {:?} (credential_process)", profile.name),
    })
}

async fn run(command: &str) -> std::io::Result<(ExitStatus, Vec<u8>)> {
    let mut shell = Command::new("/bin/sh");
    for name in MANAGER_VARS {
        shell.env_remove(name);
    }
    let mut child = shell
        .args(["-c", command])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // A group of its own, so that what the shell started ends with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)));
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        read_limited(stdout, &mut output).await?;
    }
    if output.len() as u64 > OUTPUT_BYTES_MAX {
        // It may go on printing for ever; nobody waits for its end.
        return Ok((ExitStatus::default(), output));
    }
    let status = child.wait().await?;
    // It ended by itself: what it may have left running is meant to, and its number may already be somebody else's.
    group.0 = None;
    Ok((status, output))
}

async fn read_limited(from: impl AsyncRead + Unpin, into: &mut Vec<u8>) -> std::io::Result<usize> {
    from.take(OUTPUT_BYTES_MAX + 1).read_to_end(into).await
}

/// The processes of one command: a run that is given up leaves none of them behind.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // That there is none any more is the usual case.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}
