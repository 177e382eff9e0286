//! Where agents keep their sessions, as keys of the configuration: for a service, which sees no variables of a shell.
//!
//! Knows which variable of an agent's own each key stands for; refuses to know what an agent keeps where.

use std::path::PathBuf;

use super::{Config, ConfigError, Key, Setting, Sources};

/// The keys, and the variables that beat them.
pub(super) const AGENTS: [(Key, &str); 5] = [
    (key("claude_config_dir"), "CLAUDE_CONFIG_DIR"),
    (key("codex_home"), "CODEX_HOME"),
    (key("openclaw_state_dir"), "OPENCLAW_STATE_DIR"),
    (key("openclaw_home"), "OPENCLAW_HOME"),
    (key("hermes_home"), "HERMES_HOME"),
];

const fn key(name: &'static str) -> Key {
    // The variables are read by who knows the agents: what is relative means another place to them than to us.
    Key { name, flag: None, var: None, example: "\"/absolute/dir\"" }
}

impl Sources<'_> {
    /// The keys that the file has.
    pub(super) fn agents(&self) -> Result<Vec<(&'static Key, Setting<PathBuf>)>, ConfigError> {
        let given = AGENTS.iter().filter(|(key, _)| self.content.get(key).is_some());
        given.map(|(key, _)| Ok((key, self.path(key, PathBuf::new)?))).collect()
    }
}

impl Config {
    /// What the file says in place of the agents' own variables.
    pub(crate) fn agent_vars(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        self.agents.iter().filter_map(|(key, setting)| {
            let (_, var) = AGENTS.iter().find(|(known, _)| known.name == key.name)?;
            Some((*var, &setting.value))
        })
    }
}

/// The variables of agents that have a key here, with the key.
pub(crate) fn agent_keys() -> impl Iterator<Item = (&'static str, &'static str)> {
    AGENTS.iter().map(|(key, var)| (*var, key.name))
}
