//! The variables of the environment that sources of keys read, taken once and given to them.
//!
//! Knows names of variables; refuses to look at the process again, so that a test has an environment of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::{CredentialsError, Keys};

const ACCESS_KEY_ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET_ACCESS_KEY: &str = "AWS_SECRET_ACCESS_KEY";
const SESSION_TOKEN: &str = "AWS_SESSION_TOKEN";

/// A bucket of Hugging Face has keys of its own kind. Under AWS's names they would be sent to AWS, and AWS's to them.
const HF_ACCESS_KEY_ID: &str = "HF_ACCESS_KEY_ID";
const HF_SECRET_ACCESS_KEY: &str = "HF_SECRET_ACCESS_KEY";

/// What the environment says to sources of keys.
#[derive(Clone, Default)]
pub(crate) struct Environment {
    vars: BTreeMap<String, String>,
    home: Option<PathBuf>,
}

impl Environment {
    /// The environment of this process. `home` is where `~/.aws` is.
    pub(crate) fn of_process(home: &Path) -> Environment {
        // A value that is no text names no key, no file and no endpoint.
        let vars = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Environment::new(vars, Some(home))
    }

    /// An environment of these variables; those that concern no source of keys are left out, and empty ones count as unset.
    pub(crate) fn new(
        vars: impl IntoIterator<Item = (String, String)>,
        home: Option<&Path>,
    ) -> Environment {
        let concerns = |name: &str| {
            name.starts_with("AWS_") || [HF_ACCESS_KEY_ID, HF_SECRET_ACCESS_KEY].contains(&name)
        };
        let vars = vars.into_iter().filter(|(name, value)| concerns(name) && !value.is_empty());
        Environment { vars: vars.collect(), home: home.map(Path::to_owned) }
    }

    /// The value of a variable; an empty one counts as unset.
    pub(crate) fn var(&self, name: &str) -> Option<&str> {
        self.vars.get(name).map(String::as_str)
    }

    /// Whether a variable says yes.
    pub(super) fn is_true(&self, name: &str) -> bool {
        self.var(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// A file below the home directory.
    pub(super) fn in_home(&self, below: &str) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(below))
    }

    /// A path that may begin with `~/`.
    pub(super) fn path(&self, text: &str) -> PathBuf {
        let expanded = text.strip_prefix("~/").and_then(|below| self.in_home(below));
        expanded.unwrap_or_else(|| PathBuf::from(text))
    }

    /// The keys in the usual variables, if there are any.
    pub(crate) fn aws_keys(&self) -> Result<Option<Keys>, CredentialsError> {
        let token = self.var(SESSION_TOKEN);
        self.pair(ACCESS_KEY_ID, SECRET_ACCESS_KEY, token)
    }

    /// The keys for Hugging Face, if there are any. No variable of AWS is looked at.
    pub(crate) fn hugging_face_keys(&self) -> Result<Keys, CredentialsError> {
        let pair = self.pair(HF_ACCESS_KEY_ID, HF_SECRET_ACCESS_KEY, None)?;
        pair.ok_or(CredentialsError::NoPair { id: HF_ACCESS_KEY_ID, secret: HF_SECRET_ACCESS_KEY })
    }

    fn pair(
        &self,
        id: &'static str,
        secret: &'static str,
        token: Option<&str>,
    ) -> Result<Option<Keys>, CredentialsError> {
        let half =
            |is, is_not| CredentialsError::Half { place: "the environment".into(), is, is_not };
        match (self.var(id), self.var(secret)) {
            (Some(found), Some(pass)) => {
                Ok(Some(Keys::lasting(found, pass, token, &format!("the environment ({id})"))))
            }
            (None, None) => Ok(None),
            (Some(_), None) => Err(half(id, secret)),
            (None, Some(_)) => Err(half(secret, id)),
        }
    }
}

/// Names only: among the values are secrets.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("vars", &self.vars.keys())
            .field("home", &self.home)
            .finish()
    }
}
