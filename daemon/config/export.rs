//! What of a configuration was said by flags and variables alone, and would be missing where there is neither.
//!
//! Knows keys and where their values came from; refuses to write: [`crate::setup`] does.

use std::path::Path;

use super::{Config, ConfigError, Origin, Setting, StoreUrl, file};

/// A key that somebody without our flags and variables would have to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Missing {
    /// The key.
    pub(crate) key: &'static str,
    /// Its value, resolved; a text.
    pub(crate) value: String,
    /// The flag or variable.
    pub(crate) from: String,
}

/// What is asked of a resolved configuration.
pub(crate) struct Given<'a>(pub(crate) &'a Config);

impl Given<'_> {
    /// The settings that came from flags or variables.
    pub(crate) fn outside_the_file(&self) -> Vec<Missing> {
        let config = self.0;
        let mut missing = Vec::new();
        let mut add = |key, origin: &Origin, value: String| {
            let from = match origin {
                Origin::Flag(name) | Origin::Variable(name) => (*name).to_owned(),
                _ => return,
            };
            missing.push(Missing { key, value, from });
        };
        let path = |path: &Path| path.display().to_string();
        add(super::STORE.name, &config.store.origin, config.store.value.to_string());
        let remote = [
            (super::ENDPOINT.name, &config.remote.endpoint),
            (super::REGION.name, &config.remote.region),
            (super::PROFILE.name, &config.remote.profile),
        ];
        for (key, setting) in remote {
            if let Some(Setting { value, origin }) = setting {
                add(key, origin, value.clone());
            }
        }
        let interval = super::values::show_duration(config.interval.value);
        add(super::INTERVAL_KEY.name, &config.interval.origin, interval);
        add(super::STATE_DIR.name, &config.state_dir.origin, path(&config.state_dir.value));
        add(super::SOCKET.name, &config.socket.origin, path(&config.socket.value));
        add(super::LOG_KEY.name, &config.log.origin, config.log.value.clone());
        let format = config.log_format.value.to_string();
        add(super::LOG_FORMAT.name, &config.log_format.origin, format);
        missing
    }

    /// The settings that somebody has given, and where each came from.
    pub(crate) fn said(&self) -> Vec<(&'static str, String)> {
        let config = self.0;
        let mut said = vec![(super::STORE.name, &config.store.origin)];
        let remote = [
            (super::ENDPOINT.name, &config.remote.endpoint),
            (super::REGION.name, &config.remote.region),
            (super::PROFILE.name, &config.remote.profile),
        ];
        said.extend(remote.iter().filter_map(|(key, it)| Some((*key, &it.as_ref()?.origin))));
        said.extend([
            (super::ALLOW_HTTP.name, &config.remote.allow_http.origin),
            (super::INTERVAL_KEY.name, &config.interval.origin),
            (super::STATE_DIR.name, &config.state_dir.origin),
            (super::SOCKET.name, &config.socket.origin),
            (super::LOG_KEY.name, &config.log.origin),
            (super::LOG_FORMAT.name, &config.log_format.origin),
            (super::REDACT.name, &config.redact.origin),
            (super::MIN_FREE_SPACE_KEY.name, &config.min_free_space.origin),
            (super::OUTBOX_MAX_KEY.name, &config.outbox_max.origin),
            (super::COMPACTION.name, &config.compaction.origin),
        ]);
        said.extend(config.agents.iter().map(|(key, setting)| (key.name, &setting.origin)));
        let given = said.into_iter().filter(|(_, origin)| **origin != Origin::Default);
        given.map(|(key, origin)| (key, origin.to_string())).collect()
    }

    /// Whether there is a configuration file.
    pub(crate) fn has_file(&self) -> bool {
        self.0.file_exists
    }

    /// The line of a key in the file, if it has it.
    pub(crate) fn line_of(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let content = file::read(&self.0.file.value, self.0.home())?.unwrap_or_default();
        let key = super::KEYS.iter().find(|known| known.name == key);
        Ok(key.and_then(|key| content.get(key)).map(|(_, line)| *line))
    }

    /// The configuration file, and whether it is the default one.
    pub(crate) fn file(&self) -> (&Path, bool) {
        (&self.0.file.value, self.0.file.origin == Origin::Default)
    }

    /// The directory of a local store.
    pub(crate) fn store_dir(&self) -> Option<&Path> {
        match &self.0.store.value {
            StoreUrl::File { dir } => Some(dir),
            StoreUrl::S3 { .. } | StoreUrl::Hf { .. } => None,
        }
    }
}
