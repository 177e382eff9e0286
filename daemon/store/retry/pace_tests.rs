//! How much a store is asked, and when it asks for less; downloads that are cut off. The clock is paused.

use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::super::memory::{MemoryStore, StoreFault};
use super::super::suite::bytes;
use super::*;
use crate::durable::memory::MemoryDisk;

const KEY: &str = "sessions/codex/x/part-00001-0123abcd.jsonl";

fn over<S: Store + 'static>(inner: S) -> Retry<S> {
    let disk = Arc::new(MemoryDisk::new());
    Retry::new(inner, disk, Blocking::Inline, fastrand::Rng::with_seed(7))
}

fn memory() -> MemoryStore {
    MemoryStore::new(Arc::new(MemoryDisk::new()))
}

#[tokio::test(start_paused = true)]
async fn t36_nothing_fails_for_good_where_every_third_request_does() {
    let store = memory();
    let mut asked = 0;
    store.set_hook(Box::new(move |_| {
        asked += 1;
        let fails = asked % 3 == 0;
        if fails { StoreFault::FailBefore(ErrorKind::Unavailable) } else { StoreFault::None }
    }));
    let (retry, began) = (over(store.clone()), Instant::now());
    for _ in 0..300 {
        retry.put(KEY, bytes("x"), None).await.unwrap();
    }
    assert_eq!(store.requests(), 300 * 3 / 2 - 1);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn t37_a_store_that_answers_nothing_is_soon_asked_once_for_each_operation() {
    let store = memory();
    store.set_hook(Box::new(|_| StoreFault::FailBefore(ErrorKind::Unavailable)));
    let retry = over(store.clone());
    for _ in 0..200 {
        retry.size(KEY).await.unwrap_err();
    }
    assert_eq!(store.requests(), 200 + u64::from(SAVED_MAX));
    // Each answer allows one more.
    store.set_hook(Box::new(|_| StoreFault::None));
    retry.size(KEY).await.unwrap();
    store.set_hook(Box::new(|_| StoreFault::FailBefore(ErrorKind::Unavailable)));
    let before = store.requests();
    retry.size(KEY).await.unwrap_err();
    assert_eq!(store.requests() - before, 2);
}

#[tokio::test(start_paused = true)]
async fn t36_a_store_that_asks_for_fewer_requests_gets_fewer_at_a_time() {
    /// Turns away what comes while this many requests are under way.
    const ROOM: u32 = 4;
    let store =
        Narrow { inner: memory(), under_way: AtomicU32::new(0), refused: AtomicU32::new(0) };
    let retry = over(store);
    let all = (0..24).map(|_| async {
        for _ in 0..40 {
            while retry.size(KEY).await.is_err() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    });
    futures_util::future::join_all(all).await;
    let refused = retry.asked.inner.refused.load(Ordering::Relaxed);
    println!("{refused} of {} requests were turned away", 24 * 40 + refused);
    assert!(refused < 24 * 40 / 4, "{refused} were turned away");
    assert!(retry.asked.pace.limit() < f64::from(3 * ROOM), "{:?}", retry.asked.pace);

    #[derive(Debug)]
    struct Narrow {
        inner: MemoryStore,
        under_way: AtomicU32,
        refused: AtomicU32,
    }

    #[async_trait]
    impl Store for Narrow {
        fn identity(&self) -> &str {
            self.inner.identity()
        }
        fn is_local(&self) -> bool {
            false
        }
        fn conditions(&self) -> Conditions {
            self.inner.conditions()
        }
        async fn put(&self, key: &str, body: Body, note: Option<&str>) -> Result<(), StoreError> {
            self.inner.put(key, body, note).await
        }
        async fn swap(
            &self,
            key: &str,
            body: Bytes,
            s: Option<&Version>,
        ) -> Result<(), StoreError> {
            self.inner.swap(key, body, s).await
        }
        async fn get(&self, key: &str) -> Result<Object, StoreError> {
            self.inner.get(key).await
        }
        async fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
            if self.under_way.fetch_add(1, Ordering::Relaxed) >= ROOM {
                self.under_way.fetch_sub(1, Ordering::Relaxed);
                self.refused.fetch_add(1, Ordering::Relaxed);
                return Err(StoreError::new(ErrorKind::Overloaded, "size", key, "SlowDown"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            self.inner.size(key).await
        }
        async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
            self.inner.list(prefix).await
        }
        async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
            self.inner.list_folders(prefix).await
        }
        async fn delete(&self, key: &str) -> Result<(), StoreError> {
            self.inner.delete(key).await
        }
    }
}

/// Gives some bytes, then fails.
struct Torn(&'static [u8]);

impl AsyncRead for Torn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()));
        }
        let (now, later) = self.0.split_at(self.0.len().min(2).min(buffer.remaining()));
        buffer.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

/// Reads an object whose first answers are cut off after these bytes.
async fn read_torn(mut torn: Vec<(&'static [u8], Option<&str>)>) -> std::io::Result<Vec<u8>> {
    torn.reverse();
    let versions = torn.into_iter().map(|(bytes, v)| (bytes, v.map(|v| Version(v.to_owned()))));
    let answers = Arc::new(Mutex::new(versions.collect::<Vec<_>>()));
    let whole = || Object {
        reader: Box::pin(&b"0123456789"[..]),
        version: Some(Version("a".to_owned())),
        note: None,
    };
    let answer = move || match answers.lock().unwrap().pop() {
        Some((bytes, version)) => Object { reader: Box::pin(Torn(bytes)), version, note: None },
        None => whole(),
    };
    let first = answer();
    let again: Again = Arc::new(move || {
        let object = answer();
        Box::pin(async move { Ok(object) })
    });
    let mut read = Vec::new();
    Resuming::object(first, again).reader.read_to_end(&mut read).await.map(|_| read)
}

#[tokio::test]
async fn t43_a_download_that_is_cut_off_goes_on_where_it_was() {
    let a = Some("a");
    assert_eq!(read_torn(vec![(b"01234", a)]).await.unwrap(), b"0123456789");
    let often = vec![(&b"012"[..], a), (b"", a), (b"0", a), (b"0123456", a)];
    assert_eq!(read_torn(often).await.unwrap(), b"0123456789");
}

#[tokio::test]
async fn t43_only_the_very_same_object_is_gone_on_with_and_not_for_ever() {
    assert!(read_torn(vec![(b"01234", Some("b"))]).await.is_err(), "replaced meanwhile");
    assert!(read_torn(vec![(b"01234", None)]).await.is_err(), "nobody knows");
    assert!(read_torn(vec![(b"0", Some("a")); 50]).await.is_err());
}
