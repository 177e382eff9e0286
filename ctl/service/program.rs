//! Which `tracecraftd` a service runs: the installed one, under a name that an upgrade keeps.
//!
//! Knows files and `PATH`; refuses to run anything.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// File name of the daemon.
const NAME: &str = "tracecraftd";

/// Finds it for this process.
pub(super) fn find() -> Result<PathBuf, Failure> {
    let own = std::env::current_exe().ok();
    let dirs = search_path();
    let found = choose(own.as_deref().and_then(Path::parent), &dirs);
    let found = found.ok_or_else(|| {
        Failure::failed("there is no tracecraftd beside this program, and none in PATH".into())
            .hint("install both programs into one directory")
    })?;
    if found.to_str().is_none_or(|path| path.chars().any(char::is_control)) {
        let what = format!("a unit cannot name {}", found.display());
        return Err(Failure::failed(what).hint("install it under a plainer name"));
    }
    Ok(found)
}

fn search_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).filter(|dir| dir.is_absolute()).collect()
}

/// Every program of this name in the search path; several names of one are one.
pub(super) fn all() -> Vec<PathBuf> {
    different(&search_path())
}

pub(super) fn different(dirs: &[PathBuf]) -> Vec<PathBuf> {
    let mut found: Vec<(PathBuf, PathBuf)> = Vec::new();
    for path in dirs.iter().map(|dir| dir.join(NAME)).filter(|path| is_program(path)) {
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        if !found.iter().any(|(_, known)| *known == real) {
            found.push((path, real));
        }
    }
    found.into_iter().map(|(path, _)| path).collect()
}

/// The one beside this program, so that both are of one version; by its name in `PATH` where it has one: that stays when a
/// package manager puts the next version elsewhere. Else the first one in `PATH`.
pub(super) fn choose(beside: Option<&Path>, dirs: &[PathBuf]) -> Option<PathBuf> {
    let mut named = dirs.iter().map(|dir| dir.join(NAME)).filter(|path| is_program(path));
    let Some(sibling) = beside.map(|dir| dir.join(NAME)).filter(|path| is_program(path)) else {
        return named.next();
    };
    let real = sibling.canonicalize().ok();
    named.find(|path| path.canonicalize().ok() == real).or(Some(sibling))
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// What may be wrong with keeping a service at this program.
pub(super) fn doubts(program: &Path) -> Option<String> {
    let names: Vec<_> = program.components().map(|one| one.as_os_str()).collect();
    let is_build = names
        .windows(2)
        .any(|two| two[0] == "target" && (two[1] == "debug" || two[1] == "release"));
    is_build.then(|| {
        format!(
            "{} is a build in a source tree: the next `cargo clean` takes it away; to install it: cargo install --path .",
            program.display()
        )
    })
}
