//! Where a home's objects are, for the oracle: a directory, or a bucket that is read around the product and its proxy.
//!
//! Owns reading; knows neither parts nor manifests.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::home::files_below_where;
use super::http::Failure;
use super::oracle::snapshot;
use super::s3::Client;
use super::wait_until_ok;

/// A `<bucket>/<project>`.
#[derive(Debug, Clone)]
pub(crate) enum Objects {
    Directory(PathBuf),
    Bucket { client: Client, project: String },
}

impl From<&PathBuf> for Objects {
    fn from(path: &PathBuf) -> Objects {
        Objects::Directory(path.clone())
    }
}

impl Objects {
    /// All objects whose key (relative to the project) begins with `prefix`, with their bytes, by key. One that is deleted
    /// meanwhile is left out.
    pub(crate) fn read(&self, prefix: &str) -> Vec<(String, Vec<u8>)> {
        match self {
            Objects::Directory(root) => {
                // Only whole names can be looked up in a directory; the rest of the prefix is compared, before anything is read.
                let (below, _) = prefix.rsplit_once('/').unwrap_or_default();
                let name =
                    |path: &Path| path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
                let files = files_below_where(&root.join(below), |path| {
                    let name = name(path);
                    name.starts_with(prefix) || prefix.starts_with(&name)
                });
                files.into_iter().map(|(path, body)| (name(&path), body)).collect()
            }
            Objects::Bucket { client, project } => {
                let whole = format!("{project}/{prefix}");
                // A server may fail while something is deleted below what it lists.
                let mut read = Vec::new();
                wait_until_ok("the bucket to be listed and read", || {
                    let said = |why: Failure| why.to_string();
                    let listed = client.list(&whole).map_err(said)?;
                    let keys = listed.into_iter().map(|entry| entry.key).collect();
                    read = client.get_all(keys).map_err(said)?;
                    Ok(())
                });
                let mut objects: Vec<_> = read
                    .into_iter()
                    .map(|(key, body)| (key[project.len() + 1..].to_owned(), body.to_vec()))
                    .collect();
                objects.sort();
                objects
            }
        }
    }

    /// What changes when an object is put again, also with the same bytes.
    pub(crate) fn versions(&self) -> BTreeMap<String, String> {
        match self {
            Objects::Directory(root) => snapshot(root, &[]),
            Objects::Bucket { client, project } => {
                let listed = client.list(&format!("{project}/")).expect("the bucket can be listed");
                listed.into_iter().map(|entry| (entry.key, entry.version)).collect()
            }
        }
    }
}
