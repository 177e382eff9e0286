//! When a store is asked again, how often, and what a lost answer means. The clock is paused: waits cost nothing.

use super::super::memory::{MemoryStore, OpKind, StoreFault};
use super::super::suite::{bytes, read};
use super::*;
use crate::durable::memory::{DiskFault, MemoryDisk};
use crate::store::FsStore;

const KEY: &str = "sessions/codex/x/part-00001-0123abcd.jsonl";

fn retry<S: Store + 'static>(inner: S, disk: &MemoryDisk, seed: u64) -> Retry<S> {
    let rng = fastrand::Rng::with_seed(seed);
    Retry::new(inner, Arc::new(disk.clone()), Blocking::Inline, rng)
}

/// A fake store that fails the first `count` requests of a kind.
fn failing(count: u32, kind: OpKind, fault: StoreFault) -> (MemoryStore, MemoryDisk) {
    let disk = MemoryDisk::new();
    let store = MemoryStore::local(Arc::new(disk.clone()));
    let mut left = count;
    store.set_hook(Box::new(move |op| {
        if op.kind != kind || left == 0 {
            return StoreFault::None;
        }
        left -= 1;
        fault
    }));
    (store, disk)
}

const AWAY: StoreFault = StoreFault::FailBefore(ErrorKind::Unavailable);

#[tokio::test(start_paused = true)]
async fn t36_every_operation_is_asked_again_while_the_store_is_away() {
    for kind in [OpKind::Put, OpKind::Get, OpKind::Size, OpKind::List, OpKind::ListFolders] {
        let (store, disk) = failing(ATTEMPTS_MAX - 1, kind, AWAY);
        let retry = retry(store.clone(), &disk, 1);
        retry.put(KEY, bytes("x"), None).await.unwrap();
        assert_eq!(read(&retry, KEY).await.unwrap(), b"x");
        assert_eq!(retry.size(KEY).await.unwrap(), Some(1));
        assert_eq!(retry.list("").await.unwrap().len(), 1);
        assert_eq!(retry.list_folders("sessions/").await.unwrap(), ["codex"]);
        retry.delete(KEY).await.unwrap();
        assert_eq!(store.count(kind), u64::from(ATTEMPTS_MAX), "{kind:?}");
        assert_eq!(store.requests(), 6 + u64::from(ATTEMPTS_MAX) - 1);
    }
    let (store, disk) = failing(1, OpKind::Delete, AWAY);
    store.insert(KEY, "x");
    retry(store.clone(), &disk, 1).delete(KEY).await.unwrap();
    assert!(store.objects().is_empty());
}

#[tokio::test(start_paused = true)]
async fn t37_an_outage_is_handed_to_the_caller_within_the_limits() {
    for seed in 0..50 {
        let (store, disk) = failing(u32::MAX, OpKind::List, AWAY);
        let began = Instant::now();
        let error = retry(store.clone(), &disk, seed).list("").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable, "T42: not an empty list");
        assert_eq!(store.count(OpKind::List), u64::from(ATTEMPTS_MAX));
        assert!(began.elapsed() >= BACKOFF_MIN * (ATTEMPTS_MAX - 1), "no hammering");
        assert!(began.elapsed() <= ELAPSED_MAX);
    }
}

/// Each attempt takes this long in the test below.
const SLOW: Duration = Duration::from_secs(4);

#[derive(Debug)]
struct Slow(MemoryStore);

#[async_trait]
impl Store for Slow {
    fn identity(&self) -> &str {
        self.0.identity()
    }
    fn is_local(&self) -> bool {
        false
    }
    async fn put(&self, key: &str, body: Body, note: Option<&str>) -> Result<(), StoreError> {
        self.0.put(key, body, note).await
    }
    fn conditions(&self) -> Conditions {
        self.0.conditions()
    }
    async fn swap(&self, key: &str, body: Bytes, seen: Option<&Version>) -> Result<(), StoreError> {
        self.0.swap(key, body, seen).await
    }
    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        self.0.get(key).await
    }
    async fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
        tokio::time::sleep(SLOW).await;
        self.0.size(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        self.0.list(prefix).await
    }
    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.0.list_folders(prefix).await
    }
    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.0.delete(key).await
    }
}

#[tokio::test(start_paused = true)]
async fn t37_no_attempt_begins_after_the_time_is_up() {
    let (store, disk) = failing(u32::MAX, OpKind::Size, AWAY);
    let began = Instant::now();
    retry(Slow(store.clone()), &disk, 1).size(KEY).await.unwrap_err();
    assert_eq!(store.count(OpKind::Size), 3);
    assert!(began.elapsed() <= ELAPSED_MAX + SLOW);
}

#[tokio::test(start_paused = true)]
async fn t44_what_will_not_pass_by_itself_is_told_at_once() {
    for kind in [ErrorKind::Full, ErrorKind::Denied, ErrorKind::Invalid, ErrorKind::NotFound] {
        let (store, disk) = failing(1, OpKind::Put, StoreFault::FailBefore(kind));
        let began = Instant::now();
        let error = retry(store.clone(), &disk, 1).put(KEY, bytes("x"), None).await.unwrap_err();
        assert_eq!((error.kind, store.requests()), (kind, 1));
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn t43_a_put_whose_answer_was_lost_is_done_once_and_succeeds() {
    let file = std::path::Path::new("/outbox/part");
    let lost = StoreFault::FailAfter(ErrorKind::Unavailable);
    for body in [bytes("part"), Body::File(file.into())] {
        let (store, disk) = failing(2, OpKind::Put, lost);
        disk.replace(file, b"part").unwrap();
        retry(store.clone(), &disk, 1).put(KEY, body, None).await.unwrap();
        assert_eq!(store.objects()[KEY], "part");
        assert_eq!(store.history()[KEY].len(), 1, "a key never gets two contents");
    }
}

#[tokio::test(start_paused = true)]
async fn t43_a_file_that_is_gone_is_no_success_unless_the_object_is_all_there() {
    let file = std::path::Path::new("/outbox/part");
    let (store, disk) = failing(0, OpKind::Put, AWAY);
    store.insert(KEY, "part");
    let gone = retry(store, &disk, 1).put(KEY, Body::File(file.into()), None).await.unwrap_err();
    assert_eq!(gone.kind, ErrorKind::NotFound, "nobody knows the size that it had");
    let (store, disk) = failing(0, OpKind::Put, AWAY);
    disk.replace(file, b"part").unwrap();
    let (other, mut puts) = (store.clone(), 0);
    store.set_hook(Box::new(move |op| {
        match op.kind {
            // Somebody else puts something shorter as soon as the file is taken.
            OpKind::Size => other.insert(KEY, "pa"),
            _ => puts += 1,
        }
        if puts == 1 { StoreFault::FailAfter(ErrorKind::Unavailable) } else { StoreFault::None }
    }));
    let torn = retry(store, &disk, 1).put(KEY, Body::File(file.into()), None).await.unwrap_err();
    assert_eq!(torn.kind, ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn t43_a_local_put_that_failed_after_its_rename_is_synced_before_it_succeeds() {
    for seed in 0..20 {
        let (disk, file) = (MemoryDisk::new(), std::path::Path::new("/outbox/part"));
        disk.replace(file, b"part").unwrap();
        let mut failures = 2;
        disk.set_hook(Box::new(move |name, _| {
            if name != "sync" || failures == 0 {
                return DiskFault::None;
            }
            failures -= 1;
            DiskFault::Error(std::io::ErrorKind::Other)
        }));
        let new = || FsStore::new(Arc::new(disk.clone()), "/bucket".into(), Blocking::Inline);
        retry(new(), &disk, seed).put(KEY, Body::File(file.into()), None).await.unwrap();
        disk.crash(&mut fastrand::Rng::with_seed(seed));
        assert_eq!(read(&new(), KEY).await.unwrap(), b"part");
        assert_eq!(disk.size(file).unwrap(), None);
    }
}

#[test]
fn waits_stay_between_their_limits_and_differ() {
    let disk = MemoryDisk::new();
    let retry = retry(MemoryStore::new(Arc::new(disk.clone())), &disk, 3);
    let mut waits: Vec<Duration> = vec![BACKOFF_MIN];
    for _ in 0..1_000 {
        waits.push(retry.asked.next_wait(waits[waits.len() - 1], ErrorKind::Unavailable));
        let [last, now] = waits[waits.len() - 2..] else { unreachable!() };
        assert!(now >= BACKOFF_MIN && now <= BACKOFF_MAX.min(last * BACKOFF_GROWTH));
    }
    waits.sort();
    waits.dedup();
    assert!(waits.len() > 900);
}
