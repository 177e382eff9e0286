//! The configuration: flags beat environment beats file beats default, and every value remembers where it came from.
//!
//! All defaults are here. A configuration is parsed and validated once; nothing else reads our variables or the file. It
//! refuses to know what the settings do.

mod agents;
mod error;
mod export;
mod file;
mod rules;
mod store_url;
mod values;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::agents::AGENTS;
pub(crate) use self::agents::agent_keys;
pub use self::error::ConfigError;
pub(crate) use self::export::Given;
use self::file::{FileContent, Value};
pub(crate) use self::rules::{Decision, Rules};
pub(crate) use self::store_url::{StoreUrl, endpoint};
use self::values::Bad;
pub(crate) use self::values::{Compaction, LogFormat};
use crate::paths::{self, Environment};

/// Time between flushes. Short enough that little is lost with the laptop, long enough to be idle in between.
const INTERVAL: Duration = Duration::from_secs(5);
/// Log filter. The life-cycle and changes of state, no line per flush.
const LOG: &str = "info";
/// Free disk space that is never touched: what a desktop needs to stay usable.
const MIN_FREE_SPACE: u64 = 1 << 30;
/// Bytes of parts that wait for the store: days of work of one person, and no danger to a disk.
const OUTBOX_MAX: u64 = 256 << 20;
/// Smallest outbox. Below it, one chunk would not fit and every flush would wait for the store.
const OUTBOX_LEAST: u64 = 1 << 20;

/// A key of the configuration file, and the flag and variable that beat it.
#[derive(Debug, PartialEq)]
struct Key {
    name: &'static str,
    flag: Option<&'static str>,
    var: Option<&'static str>,
    /// A value as it is written in the file; it also tells the key's type.
    example: &'static str,
}

const STORE: Key = Key {
    name: "store",
    flag: Some("--store"),
    var: Some("TRACECRAFT_STORE"),
    example: "\"file:///absolute/dir\"",
};
const INTERVAL_KEY: Key = Key {
    name: "interval",
    flag: Some("--interval"),
    var: Some("TRACECRAFT_INTERVAL"),
    example: "\"5s\"",
};
const STATE_DIR: Key = Key {
    name: "state_dir",
    flag: Some("--state-dir"),
    var: Some(paths::STATE_DIR_VAR),
    example: "\"/absolute/dir\"",
};
const SOCKET: Key = Key {
    name: "socket",
    flag: Some("--socket"),
    var: Some(paths::SOCKET_VAR),
    example: "\"/absolute/path.sock\"",
};
const LOG_KEY: Key =
    Key { name: "log", flag: Some("--log"), var: Some("TRACECRAFT_LOG"), example: "\"info\"" };
const LOG_FORMAT: Key = Key {
    name: "log_format",
    flag: Some("--log-format"),
    var: Some("TRACECRAFT_LOG_FORMAT"),
    example: "\"text\"",
};
const ENDPOINT: Key =
    Key { name: "endpoint", flag: None, var: None, example: "\"https://minio.example:9000\"" };
const REGION: Key = Key { name: "region", flag: None, var: None, example: "\"eu-west-1\"" };
const PROFILE: Key = Key { name: "profile", flag: None, var: None, example: "\"backup\"" };
const ALLOW_HTTP: Key = Key { name: "allow_http", flag: None, var: None, example: "true" };
const REDACT: Key = Key { name: "redact", flag: None, var: None, example: "true" };
const MIN_FREE_SPACE_KEY: Key =
    Key { name: "min_free_space", flag: None, var: None, example: "\"1GiB\"" };
const OUTBOX_MAX_KEY: Key =
    Key { name: "outbox_max", flag: None, var: None, example: "\"256MiB\"" };
const COMPACTION: Key = Key { name: "compaction", flag: None, var: None, example: "\"auto\"" };

/// All keys, in the order in which `--check` shows them.
const KEYS: [&Key; 19] = [
    &STORE,
    &ENDPOINT,
    &REGION,
    &PROFILE,
    &ALLOW_HTTP,
    &INTERVAL_KEY,
    &STATE_DIR,
    &SOCKET,
    &LOG_KEY,
    &LOG_FORMAT,
    &REDACT,
    &MIN_FREE_SPACE_KEY,
    &OUTBOX_MAX_KEY,
    &COMPACTION,
    &AGENTS[0].0,
    &AGENTS[1].0,
    &AGENTS[2].0,
    &AGENTS[3].0,
    &AGENTS[4].0,
];

/// What was given on the command line, as text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--store`
    pub store: Option<OsString>,
    /// `--interval`
    pub interval: Option<OsString>,
    /// `--state-dir`
    pub state_dir: Option<OsString>,
    /// `--socket`
    pub socket: Option<OsString>,
    /// `--log`
    pub log: Option<OsString>,
    /// `--log-format`
    pub log_format: Option<OsString>,
}

impl Flags {
    fn get(&self, key: &Key) -> Option<&OsString> {
        match key.name {
            "store" => self.store.as_ref(),
            "interval" => self.interval.as_ref(),
            "state_dir" => self.state_dir.as_ref(),
            "socket" => self.socket.as_ref(),
            "log" => self.log.as_ref(),
            "log_format" => self.log_format.as_ref(),
            _ => None,
        }
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// This flag.
    Flag(&'static str),
    /// This environment variable.
    Variable(&'static str),
    /// This line of this file.
    File(PathBuf, usize),
    /// This profile of AWS's configuration.
    Profile(String),
    /// Nothing else was said.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag(flag) => write!(f, "flag {flag}"),
            Origin::Variable(name) => write!(f, "environment {name}"),
            Origin::File(path, line) => f.write_str(&file::at(path, *line)),
            Origin::Profile(name) => write!(f, "profile {name}"),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// A value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting<T> {
    /// The value.
    pub(crate) value: T,
    /// Its origin.
    pub(crate) origin: Origin,
}

/// The resolved configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where objects go.
    pub(crate) store: Setting<StoreUrl>,
    /// What was said about how a remote store is reached.
    pub(crate) remote: Remote,
    /// Time between flushes.
    pub(crate) interval: Setting<Duration>,
    /// Where the state is kept. Absolute.
    pub(crate) state_dir: Setting<PathBuf>,
    /// The control socket. Absolute, and short enough for the kernel.
    pub(crate) socket: Setting<PathBuf>,
    /// Log filter. Valid.
    pub(crate) log: Setting<String>,
    /// How log lines are written.
    pub(crate) log_format: Setting<LogFormat>,
    /// Whether secrets are removed.
    pub(crate) redact: Setting<bool>,
    /// Bytes of the disk that stay free.
    pub(crate) min_free_space: Setting<u64>,
    /// Bytes that the outbox may hold.
    pub(crate) outbox_max: Setting<u64>,
    /// Whether parts are merged without being asked.
    pub(crate) compaction: Setting<Compaction>,
    /// Which sessions are followed.
    pub(crate) rules: Rules,
    /// Where the file says that agents keep their sessions.
    agents: Vec<(&'static Key, Setting<PathBuf>)>,
    /// The configuration file's path, and whether there is one.
    file: Setting<PathBuf>,
    file_exists: bool,
    flags: Flags,
    environment: Environment,
}

/// What was said about how a remote store is reached: only what this configuration and the environment say. What a profile
/// adds is for who reads profiles.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Remote {
    /// The service's address.
    pub(crate) endpoint: Option<Setting<String>>,
    /// The region that requests are signed for.
    pub(crate) region: Option<Setting<String>>,
    /// The profile to use, whatever the environment says.
    pub(crate) profile: Option<Setting<String>>,
    /// Whether plain HTTP may leave this machine.
    pub(crate) allow_http: Setting<bool>,
    /// A file with the certificates to trust.
    pub(crate) ca_bundle: Option<PathBuf>,
}

impl Config {
    /// Reads the configuration file and decides every setting.
    pub fn resolve(flags: Flags, environment: Environment) -> Result<Config, ConfigError> {
        let file = config_file(&flags, &environment);
        let content = file::read(&file.value, &environment.bases.home)?;
        if content.is_none() && file.origin != Origin::Default {
            let message = format!("there is no configuration {}", file.value.display());
            return Err(ConfigError::new(message, format!("it is named by {}", file.origin)));
        }
        let file_exists = content.is_some();
        let content = content.unwrap_or_default();
        let sources = Sources {
            flags: &flags,
            environment: &environment,
            file: &file.value,
            content: &content,
        };

        let home = &environment.bases.home;
        let state_dir = sources.path(&STATE_DIR, || environment.default_state_dir())?;
        let store = sources.text(
            &STORE,
            |text| StoreUrl::parse(text, home),
            || StoreUrl::File { dir: environment.default_bucket() },
        )?;
        let config = Config {
            remote: sources.remote(&store.value)?,
            store,
            interval: sources.text(&INTERVAL_KEY, values::interval, || INTERVAL)?,
            socket: sources.path(&SOCKET, || environment.default_socket(&state_dir.value))?,
            log: sources.text(&LOG_KEY, values::log_filter, || LOG.to_owned())?,
            log_format: sources.text(&LOG_FORMAT, values::log_format, || LogFormat::Text)?,
            redact: sources.flag(&REDACT, true),
            min_free_space: sources.text(&MIN_FREE_SPACE_KEY, values::size, || MIN_FREE_SPACE)?,
            outbox_max: sources.text(&OUTBOX_MAX_KEY, outbox_max, || OUTBOX_MAX)?,
            compaction: sources.text(&COMPACTION, values::compaction, || Compaction::Auto)?,
            rules: content.rules.clone(),
            agents: sources.agents()?,
            state_dir,
            file,
            file_exists,
            flags: flags.clone(),
            environment: environment.clone(),
        };
        config.check()?;
        Ok(config)
    }

    /// The same flags and environment with the file as it is now.
    pub(crate) fn reload(&self) -> Result<Config, ConfigError> {
        Config::resolve(self.flags.clone(), self.environment.clone())
    }

    /// Settings that differ and that a running daemon cannot change: its state, its lock and its clients depend on them.
    pub(crate) fn changes_needing_restart(&self, new: &Config) -> Vec<&'static str> {
        let changed = [
            (self.store.value != new.store.value, STORE.name),
            (self.remote.endpoint != new.remote.endpoint, ENDPOINT.name),
            (self.remote.region != new.remote.region, REGION.name),
            (self.remote.profile != new.remote.profile, PROFILE.name),
            (self.remote.allow_http.value != new.remote.allow_http.value, ALLOW_HTTP.name),
            (self.state_dir.value != new.state_dir.value, STATE_DIR.name),
            (self.socket.value != new.socket.value, SOCKET.name),
            (self.log_format.value != new.log_format.value, LOG_FORMAT.name),
        ];
        let agents = AGENTS.iter().map(|(key, _)| {
            let of = |config: &Config| {
                let found = config.agents.iter().find(|(known, _)| known.name == key.name);
                found.map(|(_, setting)| setting.value.clone())
            };
            (of(self) != of(new), key.name)
        });
        let changed = changed.into_iter().chain(agents);
        changed.filter(|(differs, _)| *differs).map(|(_, name)| name).collect()
    }

    /// The user's home directory.
    pub(crate) fn home(&self) -> &Path {
        &self.environment.bases.home
    }

    /// The log filter.
    pub fn log(&self) -> &str {
        &self.log.value
    }

    /// Refuses to write below a harness's directory: sources are sacred, and what we wrote there would be captured again.
    pub(crate) fn check_roots(&self, roots: &[(&str, &Path)]) -> Result<(), ConfigError> {
        let mut ours = vec![
            (STATE_DIR.name, &self.state_dir.value, &self.state_dir.origin),
            (SOCKET.name, &self.socket.value, &self.socket.origin),
        ];
        if let StoreUrl::File { dir } = &self.store.value {
            ours.insert(0, (STORE.name, dir, &self.store.origin));
        }
        for (name, path, origin) in ours {
            let real = real(path);
            let root = roots
                .iter()
                .find(|(_, root)| path.starts_with(root) || real.starts_with(self::real(root)));
            if let Some((harness, root)) = root {
                let message = format!(
                    "{name} ({origin}) is inside {}, where {harness} keeps its sessions",
                    root.display()
                );
                return Err(ConfigError::new(message, "choose a directory outside of it"));
            }
        }
        Ok(())
    }

    /// What `--check` prints: key, value and origin of every setting, the rules, and the given roots, aligned.
    /// `store_rows` come right below the store: what is found out about it elsewhere.
    pub(crate) fn describe(&self, store_rows: Vec<Row>, roots: &[(&str, &Path)]) -> String {
        let file = self.file.value.display();
        let file = if self.file_exists { file.to_string() } else { format!("{file} (none)") };
        let path = |setting: &Setting<PathBuf>| setting.value.display().to_string();
        let mut rows = vec![
            ["config".to_owned(), file, self.file.origin.to_string()],
            row(&STORE, &self.store, self.store.value.to_string()),
            row(&INTERVAL_KEY, &self.interval, values::show_duration(self.interval.value)),
            row(&STATE_DIR, &self.state_dir, path(&self.state_dir)),
            row(&SOCKET, &self.socket, path(&self.socket)),
            row(&LOG_KEY, &self.log, self.log.value.clone()),
            row(&LOG_FORMAT, &self.log_format, self.log_format.value.to_string()),
            row(&REDACT, &self.redact, self.redact.value.to_string()),
            row(
                &MIN_FREE_SPACE_KEY,
                &self.min_free_space,
                values::show_size(self.min_free_space.value),
            ),
            row(&OUTBOX_MAX_KEY, &self.outbox_max, values::show_size(self.outbox_max.value)),
        ];
        // What is known of the store decides, if it decides.
        if !store_rows.iter().any(|row| row[0] == COMPACTION.name) {
            rows.push(row(&COMPACTION, &self.compaction, self.compaction.value.to_string()));
        }
        rows.splice(2..2, store_rows);
        rows.extend(self.agents.iter().map(|(key, setting)| row(key, setting, path(setting))));
        for (kind, rules) in [("include", &self.rules.include), ("exclude", &self.rules.exclude)] {
            let file = self.file.value.display();
            rows.extend(rules.iter().map(|r| [kind.to_owned(), r.describe(), file.to_string()]));
        }
        for (harness, root) in roots {
            let found = if root.is_dir() { "found" } else { "not there" };
            let root = format!("{harness} {}", root.display());
            rows.push(["root".to_owned(), root, found.to_owned()]);
        }
        align(&rows)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let bad = |key: &Key, origin: &Origin, problem: String, hint: &str| {
            ConfigError::new(format!("{} ({origin}): {problem}", key.name), hint)
        };
        paths::check_socket_path(&self.socket.value).map_err(|error| {
            bad(&SOCKET, &self.socket.origin, error.to_string(), "choose a shorter path")
        })?;
        if self.state_dir.value == self.environment.bases.home
            || self.state_dir.value.parent().is_none()
        {
            // It is made private to its owner, which nobody wants for a whole home directory.
            let problem =
                format!("{} is not a directory of its own", self.state_dir.value.display());
            return Err(bad(
                &STATE_DIR,
                &self.state_dir.origin,
                problem,
                "name a directory below it",
            ));
        }
        Ok(())
    }
}

fn config_file(flags: &Flags, environment: &Environment) -> Setting<PathBuf> {
    if let Some(path) = &flags.config {
        Setting { value: paths::absolute(path), origin: Origin::Flag("--config") }
    } else if let Some(value) = environment.path_var(paths::CONFIG_VAR) {
        Setting { value, origin: Origin::Variable(paths::CONFIG_VAR) }
    } else {
        Setting { value: environment.default_config(), origin: Origin::Default }
    }
}

fn outbox_max(text: &str) -> Result<u64, Bad> {
    let bytes = values::size(text)?;
    if bytes < OUTBOX_LEAST {
        return Err(Bad::new("is smaller than the least outbox, 1MiB", "write 1MiB or more"));
    }
    Ok(bytes)
}

/// The path with links resolved as far as it exists.
fn real(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let (Ok(real), Ok(rest)) = (ancestor.canonicalize(), path.strip_prefix(ancestor)) {
            return real.join(rest);
        }
    }
    path.to_owned()
}

/// Key, value, origin.
pub(crate) type Row = [String; 3];

fn row<T>(key: &Key, setting: &Setting<T>, value: String) -> Row {
    [key.name.to_owned(), value, setting.origin.to_string()]
}

fn align(rows: &[Row]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let (name_width, value_width) = (width(0).unwrap_or(0), width(1).unwrap_or(0));
    let line = |[name, value, origin]: &Row| {
        format!("{name:name_width$}  {value:value_width$}  {origin}\n")
    };
    rows.iter().map(line).collect()
}

/// The places where a value may be given, in one view.
struct Sources<'a> {
    flags: &'a Flags,
    environment: &'a Environment,
    file: &'a Path,
    content: &'a FileContent,
}

impl Sources<'_> {
    fn text<T>(
        &self,
        key: &Key,
        parse: impl Fn(&str) -> Result<T, Bad>,
        default: impl FnOnce() -> T,
    ) -> Result<Setting<T>, ConfigError> {
        self.pick(key, default, |value, _| {
            let text = value.to_str().ok_or_else(|| {
                Bad::new("is not UTF-8 text", format!("write for example {}", key.example))
            });
            parse(text?)
        })
    }

    fn path(
        &self,
        key: &Key,
        default: impl FnOnce() -> PathBuf,
    ) -> Result<Setting<PathBuf>, ConfigError> {
        self.pick(key, default, |value, origin| {
            let example = format!("write for example {}", key.example);
            if value.is_empty() {
                return Err(Bad::new("is empty", example));
            }
            // The shell expands the tilde of a flag or a variable; in the file it is up to us. And the file is the same in
            // every working directory, so that a relative path in it would mean a different place each time.
            if !matches!(origin, Origin::File(..)) {
                return Ok(paths::absolute(Path::new(value)));
            }
            let path = self.environment.expand_home(&value.to_string_lossy());
            if path.is_absolute() { Ok(path) } else { Err(Bad::new("is not absolute", example)) }
        })
    }

    fn flag(&self, key: &Key, default: bool) -> Setting<bool> {
        match self.content.get(key) {
            Some((Value::Flag(value), line)) => {
                Setting { value: *value, origin: Origin::File(self.file.to_owned(), *line) }
            }
            _ => Setting { value: default, origin: Origin::Default },
        }
    }

    /// What is said about a remote store, in the environment only by the variables that are meant for this kind.
    fn remote(&self, store: &StoreUrl) -> Result<Remote, ConfigError> {
        let is_aws = matches!(store, StoreUrl::S3 { .. });
        let var = |name: &str| self.environment.vars.get(name);
        let ignored = var(paths::AWS_IGNORE_ENDPOINTS_VAR).is_some_and(|v| v == "true");
        let endpoints: &[&'static str] =
            if is_aws && !ignored { &paths::AWS_ENDPOINT_VARS } else { &[] };
        let regions: &[&'static str] = if is_aws { &paths::AWS_REGION_VARS } else { &[] };
        Ok(Remote {
            endpoint: self.among(&ENDPOINT, endpoints, endpoint)?,
            region: self.among(&REGION, regions, store_url::region)?,
            profile: self.among(&PROFILE, &[], store_url::profile)?,
            allow_http: self.flag(&ALLOW_HTTP, false),
            ca_bundle: self.environment.path_var(paths::AWS_CA_BUNDLE_VAR),
        })
    }

    /// The value of a key that other programs' variables beat, if there is one.
    fn among(
        &self,
        key: &Key,
        vars: &[&'static str],
        parse: impl Fn(&str) -> Result<String, Bad>,
    ) -> Result<Option<Setting<String>>, ConfigError> {
        let given = vars.iter().find_map(|&var| {
            Some((self.environment.vars.get(var)?.clone(), Origin::Variable(var)))
        });
        let Some((given, origin)) = given.or_else(|| self.given(key)) else { return Ok(None) };
        match parse(&given.to_string_lossy()) {
            Ok(value) => Ok(Some(Setting { value, origin })),
            // Not repeated: it may carry what should have been a secret.
            Err(bad) => {
                Err(ConfigError::new(format!("{} ({origin}) {}", key.name, bad.problem), bad.hint))
            }
        }
    }

    fn pick<T>(
        &self,
        key: &Key,
        default: impl FnOnce() -> T,
        parse: impl Fn(&OsStr, &Origin) -> Result<T, Bad>,
    ) -> Result<Setting<T>, ConfigError> {
        let Some((given, origin)) = self.given(key) else {
            return Ok(Setting { value: default(), origin: Origin::Default });
        };
        match parse(&given, &origin) {
            Ok(value) => Ok(Setting { value, origin }),
            Err(bad) => {
                // A store's URL is not repeated: it may carry what should have been a secret.
                let shown = if key.name == STORE.name {
                    key.name.to_owned()
                } else {
                    format!("{} = {given:?}", key.name)
                };
                let message = match &origin {
                    Origin::File(..) => format!("{origin}: {shown} {}", bad.problem),
                    _ => format!("{shown} ({origin}) {}", bad.problem),
                };
                Err(ConfigError::new(message, bad.hint))
            }
        }
    }

    fn given(&self, key: &Key) -> Option<(OsString, Origin)> {
        if let (Some(value), Some(flag)) = (self.flags.get(key), key.flag) {
            return Some((value.clone(), Origin::Flag(flag)));
        }
        if let Some(var) = key.var
            && let Some(value) = self.environment.vars.get(var)
        {
            return Some((value.clone(), Origin::Variable(var)));
        }
        match self.content.get(key)? {
            (Value::Text(text), line) => {
                Some((text.into(), Origin::File(self.file.to_owned(), *line)))
            }
            (Value::Flag(_), _) => None,
        }
    }
}

#[cfg(test)]
mod tests;
