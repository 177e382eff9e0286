//! The library behind `tracecraftd` and `tracecraftctl`: see `daemon/ARCHITECTURE.md`.
#![allow(dead_code, reason = "the skeleton is being filled")]

pub mod api;
pub mod paths;

mod config;
mod durable;
mod harness;
mod instance;
mod mirror;
mod outbox;
mod part;
mod redact;
mod shutdown;
mod source;
mod state;
mod store;
mod watch;

use std::error::Error;
use std::fmt;

pub use self::config::{Config, ConfigError, Flags};

/// What `tracecraftd` was started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Record until told to stop.
    Daemon,
    /// Mirror everything that is there now, and end (`--once`).
    Once,
}

/// Changes the log filter of the running process, when the configuration is read again. The filter was validated.
pub type SetLog = Box<dyn Fn(&str) + Send + Sync>;

/// What `--check` prints. Fails where the daemon would refuse to start.
pub fn check(config: &Config) -> Result<String, ConfigError> {
    let roots = [];
    config.check_roots(&roots)?;
    Ok(config.describe(&roots))
}

/// Runs the daemon until it ends. Must be called within a runtime.
pub async fn run(config: Config, mode: Mode, set_log: SetLog) -> Result<(), RunError> {
    let _ = (mode, set_log);
    let _instance = instance::Instance::acquire(&config.state_dir.value)?;
    Ok(())
}

/// Why the daemon ended otherwise than asked. The kind decides the exit code.
#[derive(Debug)]
pub struct RunError {
    code: u8,
    hint: Option<String>,
    source: Box<dyn Error + Send + Sync>,
}

impl RunError {
    /// Failed; a restart may help.
    pub const FAILED: u8 = 1;
    /// Usage or configuration; a restart cannot help.
    pub const CONFIGURATION: u8 = 2;
    /// Another daemon holds the lock.
    pub const LOCKED: u8 = 3;

    /// A failure that is none of the others.
    pub(crate) fn failed(source: impl Into<Box<dyn Error + Send + Sync>>) -> RunError {
        RunError { code: RunError::FAILED, hint: None, source: source.into() }
    }

    /// Exit code of the process.
    pub fn exit_code(&self) -> u8 {
        self.code
    }

    /// What to do about it, where there is something to do.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// Stands for its source and is not a link of the chain of its own.
impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl Error for RunError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.source()
    }
}

impl From<ConfigError> for RunError {
    fn from(error: ConfigError) -> RunError {
        let hint = Some(error.hint().to_owned());
        RunError { code: RunError::CONFIGURATION, hint, source: error.into() }
    }
}

impl From<paths::PathError> for RunError {
    fn from(error: paths::PathError) -> RunError {
        RunError { code: RunError::CONFIGURATION, hint: None, source: error.into() }
    }
}

impl From<instance::InstanceError> for RunError {
    fn from(error: instance::InstanceError) -> RunError {
        let code = match error {
            instance::InstanceError::Held { .. } => RunError::LOCKED,
            instance::InstanceError::Foreign { .. } => RunError::CONFIGURATION,
            instance::InstanceError::Io { .. } => RunError::FAILED,
        };
        RunError { code, hint: Some(error.hint().to_owned()), source: error.into() }
    }
}

impl From<std::io::Error> for RunError {
    fn from(error: std::io::Error) -> RunError {
        RunError::failed(error)
    }
}
