//! Where things are: configuration, state, bucket, socket. The only module that asks the platform.
//!
//! Both programs find the same socket because both ask here. Knows names of files and variables; it refuses to know what is
//! in the files, except for the two configuration keys (`socket`, `state_dir`) that move the socket.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use directories::BaseDirs;

/// Our directory's name below each of the platform's directories.
const NAME: &str = "tracecraft";

/// File name of the control socket.
const SOCKET: &str = "tracecraftd.sock";

/// Prefix of the environment variables that are ours.
const PREFIX: &str = "TRACECRAFT_";

/// Bytes of a socket's path, with its closing NUL: the size of `sun_path` in the kernel's interface.
pub const SOCKET_PATH_BYTES: usize = if cfg!(target_os = "macos") { 104 } else { 108 };

/// Largest configuration file in bytes. A real one has a few hundred; what is larger is some other file.
pub(crate) const CONFIG_BYTES_MAX: u64 = 1024 * 1024;

/// Environment variable that names the configuration file.
pub(crate) const CONFIG_VAR: &str = "TRACECRAFT_CONFIG";
/// Environment variable that names the state directory.
pub(crate) const STATE_DIR_VAR: &str = "TRACECRAFT_STATE_DIR";
/// Environment variable that names the control socket.
pub(crate) const SOCKET_VAR: &str = "TRACECRAFT_SOCKET";

/// Variables of AWS's own that name the endpoint of S3, the first one that is set wins.
pub(crate) const AWS_ENDPOINT_VARS: [&str; 2] = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
/// `true` makes AWS's tools ignore the two above and what profiles say about endpoints.
pub(crate) const AWS_IGNORE_ENDPOINTS_VAR: &str = "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS";
/// Variables of AWS's own that name the region, the first one that is set wins.
pub(crate) const AWS_REGION_VARS: [&str; 2] = ["AWS_REGION", "AWS_DEFAULT_REGION"];
/// Variable of AWS's own that names a file with the certificates to trust.
pub(crate) const AWS_CA_BUNDLE_VAR: &str = "AWS_CA_BUNDLE";

/// Whether a variable is kept: ours, and those of AWS that say where a store is. No other one, so that no credential is.
fn is_kept(name: &str) -> bool {
    let aws = [AWS_IGNORE_ENDPOINTS_VAR, AWS_CA_BUNDLE_VAR];
    name.starts_with(PREFIX)
        || AWS_ENDPOINT_VARS.contains(&name)
        || AWS_REGION_VARS.contains(&name)
        || aws.contains(&name)
}

/// What the platform says about this user's directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bases {
    /// Home directory.
    pub home: PathBuf,
    /// Configuration of all programs (`~/.config`).
    pub config: PathBuf,
    /// State of all programs (`~/.local/state`); `None` where the platform has none (macOS).
    pub state: Option<PathBuf>,
    /// Data of all programs (`~/.local/share`).
    pub data: PathBuf,
    /// Sockets and the like (`$XDG_RUNTIME_DIR`); `None` without a login session and on macOS.
    pub runtime: Option<PathBuf>,
}

impl Bases {
    /// What holds for this process. A relative `XDG_*` value is ignored, as its specification demands.
    fn of_process() -> Result<Bases, PathError> {
        let dirs = BaseDirs::new().filter(|dirs| dirs.home_dir().is_absolute());
        let dirs = dirs.ok_or(PathError::NoHome)?;
        Ok(Bases {
            home: dirs.home_dir().to_owned(),
            config: dirs.config_dir().to_owned(),
            state: dirs.state_dir().map(Path::to_owned),
            data: dirs.data_dir().to_owned(),
            runtime: dirs.runtime_dir().map(Path::to_owned),
        })
    }
}

/// All that paths and settings depend on besides flags and the configuration file. Read once, never changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// The platform's directories.
    pub bases: Bases,
    /// The variables whose names start with `TRACECRAFT_`, and those of AWS that say where a store is. An empty one counts as
    /// unset and is not here.
    pub vars: BTreeMap<String, OsString>,
}

impl Environment {
    /// The environment of this process.
    pub fn of_process() -> Result<Environment, PathError> {
        let ours = |(name, value): (OsString, OsString)| {
            let name = name.into_string().ok()?;
            (is_kept(&name) && !value.is_empty()).then_some((name, value))
        };
        let vars = std::env::vars_os().filter_map(ours).collect();
        Ok(Environment { bases: Bases::of_process()?, vars })
    }

    /// The configuration file when neither flag nor variable names one.
    pub fn default_config(&self) -> PathBuf {
        self.bases.config.join(NAME).join("config.toml")
    }

    /// The state directory when nothing names one.
    pub fn default_state_dir(&self) -> PathBuf {
        match &self.bases.state {
            Some(state) => state.join(NAME),
            // Configuration and data share a directory there, so that state gets one of its own below it.
            None => self.bases.data.join(NAME).join("state"),
        }
    }

    /// The directory that is the bucket when no store is named.
    pub fn default_bucket(&self) -> PathBuf {
        self.bases.data.join(NAME).join("bucket")
    }

    /// The control socket when nothing names one. Never in a directory that others share, such as `/tmp`.
    pub fn default_socket(&self, state_dir: &Path) -> PathBuf {
        match &self.bases.runtime {
            Some(runtime) => runtime.join(NAME).join(SOCKET),
            None => state_dir.join("run").join(SOCKET),
        }
    }

    /// A variable's value as a path, relative ones below the working directory.
    pub(crate) fn path_var(&self, name: &str) -> Option<PathBuf> {
        self.vars.get(name).map(|value| absolute(Path::new(value)))
    }

    /// `~` and `~/…` with the home directory in place of the tilde.
    pub(crate) fn expand_home(&self, path: &str) -> PathBuf {
        match path.strip_prefix('~') {
            Some("") => self.bases.home.clone(),
            Some(rest) if rest.starts_with('/') => {
                self.bases.home.join(rest.trim_start_matches('/'))
            }
            _ => PathBuf::from(path),
        }
    }
}

/// Where a client finds the daemon: the flag, else `TRACECRAFT_SOCKET`, else `socket` in the configuration file, else the
/// default, which depends on the state directory (`TRACECRAFT_STATE_DIR`, else `state_dir` in the file) where the
/// platform has no runtime directory. A file that cannot be read or parsed counts as absent: the daemon says what is wrong
/// with it, and a running daemon must stay reachable while its user edits.
pub fn socket(flag: Option<&Path>, environment: &Environment) -> Result<PathBuf, PathError> {
    let path = flag
        .map(absolute)
        .or_else(|| environment.path_var(SOCKET_VAR))
        .unwrap_or_else(|| socket_by_file(environment));
    check_socket_path(&path)?;
    Ok(path)
}

fn socket_by_file(environment: &Environment) -> PathBuf {
    let file = environment.path_var(CONFIG_VAR).unwrap_or_else(|| environment.default_config());
    let keys = read_config(&file).and_then(|text| text.parse::<toml::Table>().ok());
    let key = |name: &str| {
        let path = environment.expand_home(keys.as_ref()?.get(name)?.as_str()?);
        path.is_absolute().then_some(path)
    };
    key("socket").unwrap_or_else(|| {
        let state_dir = environment
            .path_var(STATE_DIR_VAR)
            .or_else(|| key("state_dir"))
            .unwrap_or_else(|| environment.default_state_dir());
        environment.default_socket(&state_dir)
    })
}

fn read_config(file: &Path) -> Option<String> {
    // Asked before opening, because opening a FIFO would wait for its writer.
    std::fs::metadata(file).ok().filter(std::fs::Metadata::is_file)?;
    let mut text = String::new();
    let file = std::fs::File::open(file).ok()?;
    file.take(CONFIG_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The path from the root, without asking the file system. Without a working directory it stays as it is.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Whether the kernel can bind or reach a socket at this path.
pub fn check_socket_path(path: &Path) -> Result<(), PathError> {
    let bytes = path.as_os_str().len();
    // One byte belongs to the closing NUL.
    if bytes < SOCKET_PATH_BYTES {
        Ok(())
    } else {
        Err(PathError::SocketTooLong { path: path.to_owned(), bytes })
    }
}

/// Why there is no path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Neither `HOME` nor the user database names an absolute home directory.
    #[error("no home directory is known; set HOME to an absolute path")]
    NoHome,
    /// The path does not fit into a socket address.
    #[error(
        "the socket's path has {bytes} bytes and the system allows {}: {}; choose a shorter one with --socket",
        SOCKET_PATH_BYTES - 1,
        path.display()
    )]
    SocketTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
}

#[cfg(test)]
pub(crate) mod tests;
