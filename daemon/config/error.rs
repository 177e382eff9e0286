//! The one error of the configuration: what is wrong, where, and what would be right.
//!
//! Knows text only; refuses to know settings. Its messages never repeat a store's URL.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

/// The configuration cannot be used. A person has to change it; trying again will not help.
#[derive(Debug)]
pub struct ConfigError {
    message: String,
    hint: String,
    source: Option<io::Error>,
}

impl ConfigError {
    pub(crate) fn new(message: impl Into<String>, hint: impl Into<String>) -> ConfigError {
        ConfigError { message: message.into(), hint: hint.into(), source: None }
    }

    pub(super) fn io(operation: &str, path: &Path, source: io::Error) -> ConfigError {
        let message = format!("{operation} {}", path.display());
        let hint = "check the rights of the file and its directories";
        ConfigError { message, hint: hint.to_owned(), source: Some(source) }
    }

    /// What to do about it.
    pub fn hint(&self) -> &str {
        &self.hint
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for ConfigError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| source as &(dyn Error + 'static))
    }
}
