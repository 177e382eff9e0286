//! The store in a local directory: the directory is the project, an object is a file.
//!
//! Knows files through [`Disk`] only, so that the model test runs it over a disk that forgets; knows nothing of what is in
//! them. What is put is durable when the put returns: bytes, name and the directories above.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    Body, Conditions, ErrorKind, Listed, Object, Store, StoreError, Version, check_key,
    check_prefix, flaw_of,
};
use crate::durable::{Blocking, Disk, PieceReader, Temps, is_temp};

/// Bytes copied at once between two file systems.
const COPY_BYTES: usize = 256 << 10;

/// A `file://` store.
#[derive(Debug)]
pub(crate) struct FsStore {
    files: Arc<Files>,
    identity: String,
    blocking: Blocking,
}

/// What blocking work shares.
#[derive(Debug)]
struct Files {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    temps: Temps,
    /// The directory was there once: that it is gone is then a disk that was pulled out, and no empty store.
    seen: AtomicBool,
}

impl FsStore {
    /// The store in the directory `root`, which is created by the first put. The state directory may be on another disk; a
    /// file is then copied.
    pub(crate) fn new(disk: Arc<dyn Disk>, root: PathBuf, blocking: Blocking) -> FsStore {
        let identity = format!("file://{}", root.display());
        let files = Files { disk, root, temps: Temps::new(), seen: AtomicBool::new(false) };
        FsStore { files: Arc::new(files), identity, blocking }
    }

    /// From now on a missing directory is an error: the caller knows of objects that were stored here.
    pub(crate) fn expect_present(&self) {
        self.files.seen.store(true, Ordering::Relaxed);
    }

    /// Removes temporary files that nobody wrote to since `before` and answers how many. A kill within
    /// a put leaves one; younger ones may belong to another program that writes to this directory.
    pub(crate) async fn sweep(&self, before: SystemTime) -> Result<usize, StoreError> {
        self.run("sweep", "", move |files, _| files.sweep(before)).await
    }

    async fn run<T: Send + 'static>(
        &self,
        operation: &'static str,
        key: &str,
        work: impl FnOnce(&Files, &Path) -> io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let files = Arc::clone(&self.files);
        let path = files.root.join(key);
        let result = self.blocking.run(move || work(&files, &path)).await;
        result.map_err(|error| StoreError::new(kind_of(&error), operation, key, error))
    }
}

#[async_trait]
impl Store for FsStore {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn is_local(&self) -> bool {
        true
    }

    /// Two daemons on one directory are kept apart by nothing but the numbers that they find.
    fn conditions(&self) -> Conditions {
        Conditions::Unsupported
    }

    /// A file that is gone is [`ErrorKind::NotFound`] even if the object is there: only the caller knows whether it is the one
    /// that an earlier put, whose answer was lost, made of it. If so, it is durable by now.
    async fn put(&self, key: &str, body: Body, _note: Option<&str>) -> Result<(), StoreError> {
        check_key("put", key)?;
        self.run("put", key, move |files, target| {
            files.check_root()?;
            match body {
                Body::Bytes(bytes) => files.disk.replace(target, &bytes)?,
                Body::File(source) => files.take(&source, target)?,
            }
            files.seen.store(true, Ordering::Relaxed);
            Ok(())
        })
        .await
    }

    async fn swap(&self, key: &str, body: Bytes, _: Option<&Version>) -> Result<(), StoreError> {
        self.put(key, Body::Bytes(body), None).await
    }

    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        check_key("get", key)?;
        let reader = self.run("get", key, Files::open).await?;
        let reader = Box::pin(PieceReader::new(self.blocking.clone(), reader));
        Ok(Object { reader, version: None, note: None })
    }

    async fn persist(&self, key: &str) -> Result<(), StoreError> {
        check_key("sync", key)?;
        self.run("sync", key, |files, path| files.disk.sync(&[path.to_owned()])).await
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
        check_key("size", key)?;
        self.run("size", key, |files, path| {
            files.check_root()?;
            files.disk.size(path)
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        check_prefix("list", prefix)?;
        let wanted = prefix.to_owned();
        self.run("list", prefix, move |files, _| files.list(&wanted)).await
    }

    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        check_prefix("list", prefix)?;
        self.run("list", prefix, Files::folders).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        check_key("delete", key)?;
        self.run("delete", key, |files, path| {
            files.check_root()?;
            let dir = parent(path);
            if !files.disk.is_dir(&dir)? {
                return Ok(());
            }
            // A power loss between the two brings the object back, as if the delete had not been asked for yet. The sync
            // happens even if there is nothing to remove: an earlier delete may have ended right here.
            files.disk.remove(path)?;
            files.disk.sync(&[dir])
        })
        .await
    }
}

impl Files {
    /// Fails if the directory was there and is gone: writing would begin an empty store in the place of the real one.
    fn check_root(&self) -> io::Result<()> {
        if self.disk.is_dir(&self.root)? {
            self.seen.store(true, Ordering::Relaxed);
        } else if self.seen.load(Ordering::Relaxed) {
            return Err(io::Error::other("the directory of the store is gone"));
        }
        Ok(())
    }

    /// Makes a durable file the object `target`. A kill before the rename leaves the file, after it the object; a power loss
    /// before the sync, one of the two.
    fn take(&self, source: &Path, target: &Path) -> io::Result<()> {
        self.disk.create_dirs(&parent(target))?;
        match self.disk.rename(source, target) {
            Ok(()) => self.disk.sync(&[target.to_owned(), parent(source)]),
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                self.copy(source, target)
            }
            Err(error) => {
                if error.kind() == io::ErrorKind::NotFound && self.disk.size(target)?.is_some() {
                    // An earlier put may have ended between its rename and its sync.
                    self.disk.sync(&[target.to_owned(), parent(source)])?;
                }
                Err(error)
            }
        }
    }

    /// Copies, leaving the source for the caller. A kill before the rename leaves a temporary file for [`FsStore::sweep`].
    fn copy(&self, source: &Path, target: &Path) -> io::Result<()> {
        let temp = self.temps.beside(target);
        let copied = self.copy_to(&temp, source).and_then(|()| self.disk.rename(&temp, target));
        if let Err(error) = copied {
            // The first error is the one that matters.
            let _ = self.disk.remove(&temp);
            return Err(error);
        }
        self.disk.sync(&[target.to_owned()])
    }

    fn copy_to(&self, temp: &Path, source: &Path) -> io::Result<()> {
        let mut from = self.disk.open(source)?;
        let mut to = self.disk.create(temp)?;
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => to.write_all(&buffer[..length])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        to.flush()?;
        self.disk.sync(&[temp.to_owned()])
    }

    /// Opens an object. What is no regular file is none; looking first keeps a FIFO from being waited for.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Read + Send>> {
        self.check_root()?;
        self.disk.size(path)?.ok_or(io::ErrorKind::NotFound)?;
        self.disk.open(path)
    }

    /// What is no key (hidden, temporary, not UTF-8, with control characters) is no object.
    fn list(&self, prefix: &str) -> io::Result<Vec<Listed>> {
        self.check_root()?;
        let dir = prefix.rsplit_once('/').map_or(self.root.clone(), |(dir, _)| self.root.join(dir));
        let mut listed: Vec<Listed> = self
            .disk
            .list(&dir)?
            .into_iter()
            .filter_map(|(path, size)| {
                let key = path.strip_prefix(&self.root).ok()?.to_str()?.to_owned();
                Some(Listed { key, size })
            })
            .filter(|object| object.key.starts_with(prefix) && flaw_of(&object.key).is_none())
            .collect();
        // Paths sort by component, keys byte by byte: `a.b` comes before `a/b`.
        listed.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(listed)
    }

    /// The directories in one that hold an object. None is walked further than to the first: a bucket may have a million.
    fn folders(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.check_root()?;
        let mut names = Vec::new();
        for (path, is_dir) in self.disk.entries(dir)? {
            if is_dir
                && self.holds_object(&path)?
                && let Some(name) = path.file_name().and_then(|name| name.to_str())
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn holds_object(&self, dir: &Path) -> io::Result<bool> {
        let is_key = |path: &Path| {
            let key = path.strip_prefix(&self.root).ok().and_then(Path::to_str);
            key.is_some_and(|key| flaw_of(key).is_none())
        };
        let entries = self.disk.entries(dir)?;
        if entries.iter().any(|(path, is_dir)| !is_dir && is_key(path)) {
            return Ok(true);
        }
        for (path, _) in entries.iter().filter(|(_, is_dir)| *is_dir) {
            if self.holds_object(path)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn sweep(&self, before: SystemTime) -> io::Result<usize> {
        let mut swept = 0;
        for (path, _) in self.disk.list(&self.root)? {
            if path.file_name().is_some_and(is_temp)
                && self.disk.modified(&path)?.is_some_and(|modified| modified < before)
            {
                self.disk.remove(&path)?;
                swept += 1;
            }
        }
        Ok(swept)
    }
}

fn kind_of(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Full,
        io::ErrorKind::InvalidFilename
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::NotADirectory => ErrorKind::Invalid,
        _ => ErrorKind::Unavailable,
    }
}

/// The directory of a path that has one: a source in the outbox, or a key below the root.
fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).to_owned()
}

#[cfg(test)]
mod tests;
