//! Why the program ended otherwise than asked, and the exit code that says so.

use std::error::Error;
use std::fmt;

use crate::config::ConfigError;
use crate::{control, instance, mirror, paths, state};

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

    /// With what to do about it.
    pub(crate) fn with_hint(self, hint: &str) -> RunError {
        RunError { hint: Some(hint.to_owned()), ..self }
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

impl From<control::BindError> for RunError {
    fn from(error: control::BindError) -> RunError {
        let (code, hint) = match error {
            control::BindError::TooLong { .. } => (RunError::CONFIGURATION, None),
            control::BindError::AlreadyServing(_) => {
                let stop = "`systemctl --user stop tracecraftd.socket tracecraftd.service` where it is the service's";
                (RunError::LOCKED, Some(format!("end it ({stop}), or choose another --socket")))
            }
            _ => (RunError::FAILED, None),
        };
        RunError { code, hint, source: error.into() }
    }
}

impl From<mirror::Fatal> for RunError {
    fn from(error: mirror::Fatal) -> RunError {
        let newer = "use the newer tracecraftd that wrote it";
        let hint = match &error {
            mirror::Fatal::State(state::StateError::UnknownVersion { .. })
            | mirror::Fatal::Manifest(_) => newer,
            mirror::Fatal::State(_) => "check rights and free space of the state directory",
        };
        RunError { code: RunError::FAILED, hint: Some(hint.to_owned()), source: error.into() }
    }
}
