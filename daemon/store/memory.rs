//! A store in memory that fails as told: before, after, never answering, or lying. For tests.
//!
//! What it holds survives every crash of the recorder, as a remote store does. It counts what it is asked and remembers
//! everything that was ever put, so that oracles can look.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    Body, Conditions, ErrorKind, Listed, Object, Store, StoreError, Version, check_key,
    check_prefix,
};
use crate::durable::Disk;

/// A kind of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum OpKind {
    /// [`Store::put`].
    Put,
    /// [`Store::get`].
    Get,
    /// [`Store::size`].
    Size,
    /// [`Store::list`].
    List,
    /// [`Store::list_folders`].
    ListFolders,
    /// [`Store::delete`].
    Delete,
}

impl OpKind {
    fn name(self) -> &'static str {
        match self {
            OpKind::Put => "put",
            OpKind::Get => "get",
            OpKind::Size => "size",
            OpKind::List | OpKind::ListFolders => "list",
            OpKind::Delete => "delete",
        }
    }
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Op {
    /// What is asked.
    pub(crate) kind: OpKind,
    /// Key or prefix.
    pub(crate) key: String,
}

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreFault {
    /// It is answered.
    None,
    /// It fails and has no effect.
    FailBefore(ErrorKind),
    /// It has its effect, and the answer is lost.
    FailAfter(ErrorKind),
    /// It has no effect and is never answered.
    Hang,
    /// It has its effect and is never answered.
    HangAfter,
}

/// Sees each request before it is served.
pub(crate) type Hook = Box<dyn FnMut(&Op) -> StoreFault + Send>;

/// Shared: clones are the same store.
#[derive(Clone)]
pub(crate) struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
    hook: Arc<Mutex<Option<Hook>>>,
    /// How long a request may take to arrive: up to some hundred milliseconds, now and then seconds.
    latency: Option<Arc<Mutex<fastrand::Rng>>>,
    disk: Arc<dyn Disk>,
    is_local: bool,
    renames: bool,
    conditions: Conditions,
}

#[derive(Default)]
struct Inner {
    objects: BTreeMap<String, Kept>,
    history: BTreeMap<String, Vec<Bytes>>,
    counts: BTreeMap<OpKind, u64>,
    /// So far; the number of a put is the version of what it put.
    puts: u64,
}

#[derive(Clone)]
struct Kept {
    bytes: Bytes,
    version: u64,
    note: Option<String>,
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemoryStore")
    }
}

impl MemoryStore {
    /// An empty remote store; files to put are read from `disk`.
    pub(crate) fn new(disk: Arc<dyn Disk>) -> MemoryStore {
        MemoryStore {
            inner: Arc::default(),
            hook: Arc::default(),
            latency: None,
            disk,
            is_local: false,
            renames: false,
            conditions: Conditions::Honoured,
        }
    }

    /// A store that calls itself local and takes the files that it is given, as [`super::FsStore`] does.
    pub(crate) fn local(disk: Arc<dyn Disk>) -> MemoryStore {
        MemoryStore {
            is_local: true,
            renames: true,
            conditions: Conditions::Unsupported,
            ..MemoryStore::new(disk)
        }
    }

    /// A remote store that answers to conditions in this way.
    pub(crate) fn with_conditions(self, conditions: Conditions) -> MemoryStore {
        MemoryStore { conditions, ..self }
    }

    /// The same store as another machine sees it: files to put are read from its disk, faults are its own.
    pub(crate) fn on(&self, disk: Arc<dyn Disk>) -> MemoryStore {
        MemoryStore { hook: Arc::default(), disk, ..self.clone() }
    }

    /// The same handle, for files of another disk.
    pub(crate) fn with_disk(&self, disk: Arc<dyn Disk>) -> MemoryStore {
        MemoryStore { disk, ..self.clone() }
    }

    /// Requests take time to arrive, so that those of two writers meet.
    pub(crate) fn with_latency(self, rng: fastrand::Rng) -> MemoryStore {
        MemoryStore { latency: Some(Arc::new(Mutex::new(rng))), ..self }
    }

    /// Asks `hook` before each request through this handle from now on.
    pub(crate) fn set_hook(&self, hook: Hook) {
        *self.hook.lock().unwrap_or_else(PoisonError::into_inner) = Some(hook);
    }

    /// All objects now.
    pub(crate) fn objects(&self) -> BTreeMap<String, Bytes> {
        self.lock().objects.iter().map(|(key, kept)| (key.clone(), kept.bytes.clone())).collect()
    }

    /// The note of an object.
    pub(crate) fn note(&self, key: &str) -> Option<String> {
        self.lock().objects.get(key)?.note.clone()
    }

    /// Every different content that a key ever had, oldest first.
    pub(crate) fn history(&self) -> BTreeMap<String, Vec<Bytes>> {
        self.lock().history.clone()
    }

    /// Requests of a kind so far, failed ones included.
    pub(crate) fn count(&self, kind: OpKind) -> u64 {
        self.lock().counts.get(&kind).copied().unwrap_or(0)
    }

    /// All requests so far.
    pub(crate) fn requests(&self) -> u64 {
        self.lock().counts.values().sum()
    }

    /// Puts an object behind the recorder's back; it is not counted.
    pub(crate) fn insert(&self, key: &str, bytes: impl Into<Bytes>) {
        self.lock().insert(key, bytes.into(), None);
    }

    /// Removes an object behind the recorder's back; it is not counted.
    pub(crate) fn remove(&self, key: &str) {
        self.lock().objects.remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask_hook(&self, op: &Op) -> StoreFault {
        *self.lock().counts.entry(op.kind).or_default() += 1;
        // Taken out while it is asked: it may look at the store.
        let hook = self.hook.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut hook) = hook else { return StoreFault::None };
        let fault = hook(op);
        self.hook.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(hook);
        fault
    }

    async fn travel(&self) {
        let Some(rng) = &self.latency else { return };
        let millis = {
            let mut rng = rng.lock().unwrap_or_else(PoisonError::into_inner);
            if rng.u8(..50) == 0 { rng.u64(..8_000) } else { rng.u64(1..200) }
        };
        tokio::time::sleep(std::time::Duration::from_millis(millis)).await;
    }

    /// Serves a request with the fault that the hook chose for it.
    async fn serve<T>(
        &self,
        kind: OpKind,
        key: &str,
        effect: impl FnOnce(&mut Inner) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let failed =
            |kind_of: ErrorKind| StoreError::new(kind_of, kind.name(), key, "a fault of the test");
        let fault = self.ask_hook(&Op { kind, key: key.to_owned() });
        self.travel().await;
        match fault {
            StoreFault::None => effect(&mut self.lock()),
            StoreFault::FailBefore(kind) => Err(failed(kind)),
            StoreFault::FailAfter(kind) => effect(&mut self.lock()).and(Err(failed(kind))),
            StoreFault::Hang => std::future::pending().await,
            StoreFault::HangAfter => {
                let _ = effect(&mut self.lock());
                std::future::pending().await
            }
        }
    }

    /// The bytes of a body; a file is consumed if this store takes files by rename.
    fn take(
        &self,
        inner: &mut Inner,
        key: &str,
        body: Body,
        note: Option<&str>,
    ) -> std::io::Result<()> {
        // A local store has no place for notes.
        let note = note.filter(|_| !self.is_local);
        match body {
            Body::Bytes(bytes) => inner.insert(key, bytes, note),
            Body::File(path) => {
                inner.insert(key, self.disk.read(&path)?.into(), note);
                if self.renames {
                    self.disk.remove(&path)?;
                    self.disk.sync(&[path.parent().unwrap_or(&path).to_owned()])?;
                }
            }
        }
        Ok(())
    }
}

impl Inner {
    fn insert(&mut self, key: &str, bytes: Bytes, note: Option<&str>) {
        let history = self.history.entry(key.to_owned()).or_default();
        if !history.contains(&bytes) {
            history.push(bytes.clone());
        }
        self.puts += 1;
        let kept = Kept { bytes, version: self.puts, note: note.map(str::to_owned) };
        self.objects.insert(key.to_owned(), kept);
    }

    fn list(&self, prefix: &str) -> Vec<Listed> {
        let from = self.objects.range(prefix.to_owned()..);
        from.take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, kept)| Listed { key: key.clone(), size: kept.bytes.len() as u64 })
            .collect()
    }
}

fn missing(key: &str) -> StoreError {
    StoreError::new(ErrorKind::NotFound, "get", key, "no such object")
}

#[async_trait]
impl Store for MemoryStore {
    fn identity(&self) -> &str {
        if self.is_local { "file:///memory" } else { "s3://memory/project" }
    }

    fn is_local(&self) -> bool {
        self.is_local
    }

    fn conditions(&self) -> Conditions {
        self.conditions
    }

    async fn put(&self, key: &str, body: Body, note: Option<&str>) -> Result<(), StoreError> {
        check_key("put", key)?;
        let effect = |inner: &mut Inner| {
            self.take(inner, key, body, note).map_err(|error| {
                let kind = match error.kind() {
                    std::io::ErrorKind::NotFound => ErrorKind::NotFound,
                    _ => ErrorKind::Unavailable,
                };
                StoreError::new(kind, "put", key, error)
            })
        };
        self.serve(OpKind::Put, key, effect).await
    }

    async fn swap(&self, key: &str, body: Bytes, seen: Option<&Version>) -> Result<(), StoreError> {
        check_key("put", key)?;
        let effect = |inner: &mut Inner| {
            let version = inner.objects.get(key).map(|kept| Version(kept.version.to_string()));
            if self.conditions == Conditions::Honoured && version.as_ref() != seen {
                let why = "the object is another one by now";
                return Err(StoreError::new(ErrorKind::Changed, "put", key, why));
            }
            inner.insert(key, body, None);
            Ok(())
        };
        self.serve(OpKind::Put, key, effect).await
    }

    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        check_key("get", key)?;
        let effect = |inner: &mut Inner| inner.objects.get(key).cloned().ok_or(missing(key));
        let kept = self.serve(OpKind::Get, key, effect).await?;
        let version = (!self.is_local).then(|| Version(kept.version.to_string()));
        Ok(Object { reader: Box::pin(std::io::Cursor::new(kept.bytes)), version, note: kept.note })
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
        check_key("size", key)?;
        let effect =
            |inner: &mut Inner| Ok(inner.objects.get(key).map(|kept| kept.bytes.len() as u64));
        self.serve(OpKind::Size, key, effect).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        check_prefix("list", prefix)?;
        let effect = |inner: &mut Inner| Ok(inner.list(prefix));
        self.serve(OpKind::List, prefix, effect).await
    }

    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        check_prefix("list", prefix)?;
        let effect = |inner: &mut Inner| {
            let listed = inner.list(prefix);
            Ok(folders(prefix, listed.iter().map(|object| object.key.as_str())))
        };
        self.serve(OpKind::ListFolders, prefix, effect).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        check_key("delete", key)?;
        let effect = |inner: &mut Inner| {
            inner.objects.remove(key);
            Ok(())
        };
        self.serve(OpKind::Delete, key, effect).await
    }
}

/// The names directly below `prefix` that have something below them, from an ascending list of keys.
fn folders<'a>(prefix: &str, keys: impl Iterator<Item = &'a str>) -> Vec<String> {
    let below = keys.filter_map(|key| key.strip_prefix(prefix));
    let mut names: Vec<String> =
        below.filter_map(|rest| rest.split_once('/')).map(|(name, _)| name.to_owned()).collect();
    names.sort();
    names.dedup();
    names
}
