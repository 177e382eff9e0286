//! What whoever installs the daemon as a service has to know of its configuration: a service sees no variables of a shell.
//!
//! Resolves the configuration as the daemon would, says what the service would not see of it, and writes that into the file.
//! Refuses to know service managers, and never takes a secret over: of credentials only the names of variables are told.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::{Config, ConfigError, Flags, Given, agent_keys};
use crate::durable::{Disk, OsDisk};
use crate::paths::Environment;

/// Variables that hand out keys for `s3://`, or say where keys are.
const AWS_KEYS: [&str; 4] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/// The same for `hf://`.
const HF_KEYS: [&str; 1] = ["HF_ACCESS_KEY_ID"];

/// Variables that say where AWS's own files are, or how they are read; there is no key for them.
const AWS_FILES: [&str; 4] = [
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CA_BUNDLE",
    crate::paths::AWS_IGNORE_ENDPOINTS_VAR,
];

/// Variables that move directories, and where those are without. A service's are its manager's.
const DIRECTORIES: [(&str, &str); 3] = [
    ("XDG_CONFIG_HOME", ".config"),
    ("XDG_STATE_HOME", ".local/state"),
    ("XDG_DATA_HOME", ".local/share"),
];

/// Variable of AWS's own that names the profile.
const AWS_PROFILE: &str = "AWS_PROFILE";

/// A process's variables, as far as they are text.
pub type Vars = BTreeMap<String, String>;

/// A configuration as it is resolved here, and what of it a service would not see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// The configuration file.
    pub config_file: PathBuf,
    /// Whether a service finds that file without being told.
    pub is_default_file: bool,
    /// Where the state is.
    pub state_dir: PathBuf,
    /// The control socket.
    pub socket: PathBuf,
    /// The store's URL, which has no credentials.
    pub store: String,
    /// The directory of a local store.
    pub store_dir: Option<PathBuf>,
    /// What only flags and variables say.
    pub wanted: Vec<Wanted>,
    /// Variables with credentials that a service would lack.
    pub credentials: Vec<&'static str>,
    /// Other variables that a service would lack, and that no key stands for.
    pub unseen: Vec<&'static str>,
}

/// A key that the configuration file should have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The key.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// The flag or variable that says so here.
    pub from: String,
    /// The line of the file that has the key already, with whatever value: that one stays.
    pub line: Option<usize>,
}

/// Resolves the configuration by flags and an environment. `shell` are the variables of the process that asks, `service` those
/// that a service has anyway.
pub fn survey(
    flags: Flags,
    environment: Environment,
    shell: &Vars,
    service: &Vars,
) -> Result<Survey, ConfigError> {
    let home = environment.bases.home.clone();
    let expand = |value: &str| home.join(environment.expand_home(value));
    let agents: Vec<(&str, &str, String)> = agent_keys()
        .filter_map(|(var, key)| {
            let value = shell.get(var).filter(|value| !value.trim().is_empty())?;
            Some((var, key, expand(value).display().to_string()))
        })
        .collect();
    let config = Config::resolve(flags, environment)?;
    let given = Given(&config);
    let is_seen = |var: &str| shell.get(var) == service.get(var);
    let mut wanted = Vec::new();
    let mut want = |key, value, from: &str| -> Result<(), ConfigError> {
        if shell.contains_key(from) && is_seen(from) {
            return Ok(());
        }
        let line = given.line_of(key)?;
        wanted.push(Wanted { key, value, from: from.to_owned(), line });
        Ok(())
    };
    for missing in given.outside_the_file() {
        want(missing.key, missing.value, &missing.from)?;
    }
    for (var, key, value) in agents {
        want(key, value, var)?;
    }
    let store = config.store.value.to_string();
    let (is_aws, is_hf) = (store.starts_with("s3://"), store.starts_with("hf://"));
    let profile = shell.get(AWS_PROFILE).filter(|name| is_aws && !name.is_empty());
    if let Some(profile) = profile {
        want("profile", profile.clone(), AWS_PROFILE)?;
    }
    let unseen = |names: &[&'static str]| {
        let lacking = |name: &&&str| {
            let set = shell.get(**name).is_some_and(|value| !value.is_empty());
            set && !is_seen(name)
        };
        names.iter().filter(lacking).copied().collect::<Vec<_>>()
    };
    let directory = |vars: &Vars, name: &str, usual: &str| {
        let named = vars.get(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
        named.unwrap_or_else(|| home.join(usual))
    };
    let moved = DIRECTORIES
        .iter()
        .filter(|(name, usual)| directory(shell, name, usual) != directory(service, name, usual));
    let mut lacking: Vec<&'static str> = moved.map(|(name, _)| *name).collect();
    if is_aws || is_hf {
        lacking.extend(unseen(&AWS_FILES));
    }
    let has_profile = profile.is_some() || config.remote.profile.is_some();
    let credentials = match (is_aws, is_hf) {
        _ if has_profile => Vec::new(),
        (true, _) => unseen(&AWS_KEYS),
        (_, true) => unseen(&HF_KEYS),
        _ => Vec::new(),
    };
    let (file, is_default_file) = given.file();
    Ok(Survey {
        config_file: file.to_owned(),
        is_default_file,
        state_dir: config.state_dir.value.clone(),
        socket: config.socket.value.clone(),
        store_dir: given.store_dir().map(Path::to_owned),
        unseen: lacking,
        store,
        wanted,
        credentials,
    })
}

impl Survey {
    /// The configuration's text with the keys that it lacks, or `None` when it lacks none. Nothing that is there is changed: keys
    /// of the file's top must stand before its first table, so that ours go before all else.
    pub fn completed(&self, text: &str) -> Option<String> {
        let lacking: Vec<&Wanted> = self.wanted.iter().filter(|one| one.line.is_none()).collect();
        if lacking.is_empty() {
            return None;
        }
        let mut out = String::from(
            "# Written by `tracecraftctl service install`: a service sees no variables of a shell.\n\
             # These lines are yours now; they are not written again.\n",
        );
        for Wanted { key, value, from, .. } in lacking {
            // TOML's basic strings know the escapes of JSON's.
            let value = serde_json::Value::from(value.as_str());
            out.push_str(&format!("{key} = {value} # {from}\n"));
        }
        if !text.is_empty() {
            out.push('\n');
            out.push_str(text);
        }
        Some(out)
    }
}

/// Replaces a file as a whole, durably, for its user alone. Where its name is a link, what it leads to is replaced.
pub fn write_file(path: &Path, text: &str) -> io::Result<()> {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    OsDisk::new().replace(&path, text.as_bytes())
}

#[cfg(test)]
mod tests;
