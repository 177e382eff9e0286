//! What every store promises, as one suite that each of them runs: real, fake, and wrapped.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::io::AsyncReadExt;

use super::memory::MemoryStore;
use super::{Body, Conditions, Counted, ErrorKind, FsStore, Retry, Store, StoreError, Version};
use crate::durable::memory::MemoryDisk;
use crate::durable::{Blocking, Disk, OsDisk};

/// More than one page of any listing (S3: 1,000 keys).
const MANY: usize = 1_100;

/// Puts at a time, as many as a busy recorder has.
const AT_ONCE: usize = 32;

/// Runs the whole suite on an empty store. `outbox` is a directory on `disk` for files to put.
pub(super) async fn contract(store: &dyn Store, disk: &dyn Disk, outbox: &Path) {
    Box::pin(objects_come_back(store)).await;
    Box::pin(files_are_taken(store, disk, outbox)).await;
    Box::pin(listings_tell_what_is_there(store)).await;
    Box::pin(bad_keys_are_refused(store)).await;
    Box::pin(notes_come_back_or_not_at_all(store)).await;
    Box::pin(a_swap_is_conditional_or_says_that_it_is_not(store)).await;
    Box::pin(many_objects(store)).await;
    assert!(store.list("").await.unwrap().is_empty(), "every test cleans up");
}

/// The whole object.
pub(super) async fn read(store: &dyn Store, key: &str) -> Result<Vec<u8>, StoreError> {
    let mut object = store.get(key).await?;
    let mut bytes = Vec::new();
    object.reader.read_to_end(&mut bytes).await.unwrap();
    Ok(bytes)
}

pub(super) fn bytes(text: &'static str) -> Body {
    Body::Bytes(Bytes::from_static(text.as_bytes()))
}

async fn keys(store: &dyn Store, prefix: &str) -> Vec<String> {
    store.list(prefix).await.unwrap().into_iter().map(|object| object.key).collect()
}

async fn clear(store: &dyn Store) {
    for chunk in keys(store, "").await.chunks(AT_ONCE) {
        for result in join_all(chunk.iter().map(|key| store.delete(key))).await {
            result.unwrap();
        }
    }
}

async fn objects_come_back(store: &dyn Store) {
    let key = "sessions/codex/a~2/part-00001-0123abcd.jsonl";
    assert_eq!(store.get(key).await.err().unwrap().kind, ErrorKind::NotFound);
    assert_eq!(store.size(key).await.unwrap(), None);
    store.delete(key).await.expect("that there is none is no error");
    store.put(key, bytes("one"), None).await.unwrap();
    store.put(key, bytes("one"), None).await.expect("the same again is the same");
    assert_eq!(read(store, key).await.unwrap(), b"one");
    store.put(key, bytes("replaced"), None).await.unwrap();
    assert_eq!(read(store, key).await.unwrap(), b"replaced");
    assert_eq!(store.size(key).await.unwrap(), Some(8));
    let beside = "sessions/open%20claw/main__x@0123abcd/meta.json";
    store.put(beside, Body::Bytes(Bytes::new()), None).await.unwrap();
    assert_eq!(read(store, beside).await.unwrap(), b"", "an empty object is an object");
    assert_eq!(store.size(beside).await.unwrap(), Some(0));
    let big: Bytes = (0..5_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    store.put(key, Body::Bytes(big.clone()), None).await.unwrap();
    assert!(read(store, key).await.unwrap() == big);
    store.delete(key).await.unwrap();
    assert_eq!(store.size(key).await.unwrap(), None);
    assert_eq!(keys(store, "").await, [beside]);
    clear(store).await;
}

async fn files_are_taken(store: &dyn Store, disk: &dyn Disk, outbox: &Path) {
    let (file, key) = (outbox.join("s/part"), "sessions/hermes/x/part-00001-0123abcd.jsonl");
    for content in [Vec::new(), b"first".to_vec(), vec![7; 3_000_000], b"last".to_vec()] {
        disk.replace(&file, &content).unwrap();
        store.put(key, Body::File(file.clone()), None).await.unwrap();
        assert!(read(store, key).await.unwrap() == content);
        disk.remove(&file).expect("what may be left is the caller's");
    }
    let gone = store.put(key, Body::File(file), None).await.unwrap_err();
    assert_eq!(gone.kind, ErrorKind::NotFound);
    assert_eq!(read(store, key).await.unwrap(), b"last", "a failed put changes nothing");
    clear(store).await;
}

async fn listings_tell_what_is_there(store: &dyn Store) {
    assert!(store.list_folders("sessions/").await.unwrap().is_empty());
    let all = ["a.b", "a/b/c", "a/b/d", "a/x", "ab/c", "b-1/d/e", "b/e"];
    for key in all {
        store.put(&format!("sessions/{key}"), bytes(key), None).await.unwrap();
    }
    let list = async |prefix: &str| -> Vec<String> {
        let all = keys(store, prefix).await;
        all.iter().map(|key| key.strip_prefix("sessions/").unwrap().to_owned()).collect()
    };
    assert_eq!(list("").await, all, "ascending, byte by byte");
    assert_eq!(list("sessions/").await, all);
    assert_eq!(list("sessions/a/").await, ["a/b/c", "a/b/d", "a/x"], "not ab/");
    assert_eq!(list("sessions/a").await, ["a.b", "a/b/c", "a/b/d", "a/x", "ab/c"]);
    assert_eq!(list("sessions/a/x").await, ["a/x"]);
    assert!(list("sessions/a/x/").await.is_empty());
    assert!(list("sessions/none/").await.is_empty());
    let sizes: Vec<u64> = store.list("sessions/a/").await.unwrap().iter().map(|o| o.size).collect();
    assert_eq!(sizes, [5, 5, 3]);
    assert_eq!(store.list_folders("sessions/").await.unwrap(), ["a", "ab", "b", "b-1"]);
    assert_eq!(store.list_folders("sessions/a/").await.unwrap(), ["b"]);
    assert_eq!(store.list_folders("").await.unwrap(), ["sessions"]);
    store.delete("sessions/ab/c").await.unwrap();
    assert_eq!(store.list_folders("sessions/").await.unwrap(), ["a", "b", "b-1"], "none is empty");
    clear(store).await;
}

async fn bad_keys_are_refused(store: &dyn Store) {
    let long = format!("sessions/{}", "n".repeat(256));
    let deep = ["d"; 600].join("/");
    let bad = [
        "",
        "/",
        "/etc/passwd",
        "a//b",
        "a/",
        "../a",
        "a/../b",
        "a/./b",
        "a/..",
        ".hidden",
        "a/.b.tmp",
        "a\nb",
        "a/\u{1b}[31m",
        "a\0b",
        &long,
        &deep,
    ];
    for key in bad {
        let errors = [
            store.put(key, bytes("x"), None).await.err(),
            store.get(key).await.err(),
            store.size(key).await.err(),
            store.delete(key).await.err(),
        ];
        for error in errors {
            let error = error.unwrap_or_else(|| panic!("{key:?} was accepted"));
            assert_eq!(error.kind, ErrorKind::Invalid, "{key:?}");
            assert!(!error.to_string().contains(char::is_control));
        }
    }
    for prefix in ["/", "../", "a/../", "a//", "a\n"] {
        assert_eq!(store.list(prefix).await.unwrap_err().kind, ErrorKind::Invalid, "{prefix:?}");
        let folders = store.list_folders(prefix).await.unwrap_err();
        assert_eq!(folders.kind, ErrorKind::Invalid, "{prefix:?}");
    }
}

async fn notes_come_back_or_not_at_all(store: &dyn Store) {
    let key = "sessions/codex/a/part-00001-0123abcd.jsonl";
    store.put(key, bytes("one"), Some("17-20")).await.unwrap();
    let kept = if store.is_local() { None } else { Some("17-20".to_owned()) };
    assert_eq!(store.get(key).await.unwrap().note, kept);
    store.put(key, bytes("one"), None).await.unwrap();
    assert_eq!(store.get(key).await.unwrap().note, None, "an object has the note of its last put");
    clear(store).await;
}

async fn a_swap_is_conditional_or_says_that_it_is_not(store: &dyn Store) {
    let key = "sessions/codex/a/meta.json";
    let swap = async |content: &'static str, seen: Option<&Version>| {
        store.swap(key, Bytes::from_static(content.as_bytes()), seen).await
    };
    swap("one", None).await.unwrap();
    let first = store.get(key).await.unwrap().version;
    swap("two", first.as_ref()).await.unwrap();
    assert_eq!(read(store, key).await.unwrap(), b"two");
    let outcomes = [swap("three", None).await, swap("three", first.as_ref()).await];
    match store.conditions() {
        Conditions::Honoured => {
            for outcome in outcomes {
                assert_eq!(outcome.unwrap_err().kind, ErrorKind::Changed);
            }
            assert_eq!(read(store, key).await.unwrap(), b"two");
            let gone = first.as_ref();
            store.delete(key).await.unwrap();
            assert_eq!(swap("three", gone).await.unwrap_err().kind, ErrorKind::Changed);
            swap("three", None).await.unwrap();
        }
        Conditions::Ignored | Conditions::Unsupported => {
            assert!(outcomes.iter().all(Result::is_ok));
        }
        Conditions::Unknown => panic!("a swap finds out"),
    }
    assert_eq!(read(store, key).await.unwrap(), b"three");
    clear(store).await;
}

async fn many_objects(store: &dyn Store) {
    let wanted: Vec<String> =
        (0..MANY).map(|n| format!("sessions/many/{}/part-{n:05}", n % 7)).collect();
    for chunk in wanted.chunks(AT_ONCE) {
        let puts = chunk.iter().map(|key| store.put(key, Body::Bytes(key.clone().into()), None));
        for result in join_all(puts).await {
            result.unwrap();
        }
    }
    let mut sorted = wanted.clone();
    sorted.sort();
    assert_eq!(keys(store, "sessions/many/").await, sorted, "T45: no page is missing");
    assert_eq!(store.list_folders("sessions/many/").await.unwrap().len(), 7);
    assert_eq!(read(store, &wanted[MANY - 1]).await.unwrap(), wanted[MANY - 1].as_bytes());
    let same = join_all((0..AT_ONCE).map(|_| store.put(&wanted[0], bytes("same"), None))).await;
    assert!(same.iter().all(Result::is_ok), "one key, many writers");
    assert_eq!(read(store, &wanted[0]).await.unwrap(), b"same");
    clear(store).await;
}

/// In all decorators, as the program has it.
fn wrapped(store: impl Store + 'static, disk: &Arc<dyn Disk>) -> impl Store {
    let store = Counted::new(store, Arc::default());
    Retry::new(store, Arc::clone(disk), Blocking::Pool, fastrand::Rng::with_seed(1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t45_the_local_store_keeps_the_contract() {
    let scratch = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::new());
    let store = || FsStore::new(Arc::clone(&disk), scratch.path().join("bucket"), Blocking::Pool);
    contract(&store(), &*disk, &scratch.path().join("outbox")).await;
    contract(&wrapped(store(), &disk), &*disk, &scratch.path().join("outbox")).await;
}

#[tokio::test]
async fn t45_the_local_store_keeps_the_contract_on_a_disk_in_memory() {
    let memory = MemoryDisk::new();
    let disk: Arc<dyn Disk> = Arc::new(memory.clone());
    for bucket in ["/bucket", "/elsewhere"] {
        memory.mount(Path::new("/elsewhere"));
        let store = || FsStore::new(Arc::clone(&disk), bucket.into(), Blocking::Inline);
        contract(&store(), &*disk, Path::new("/outbox")).await;
        contract(&wrapped(store(), &disk), &*disk, Path::new("/outbox")).await;
    }
}

#[tokio::test]
async fn t45_the_fakes_keep_the_contract() {
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
    for new in [MemoryStore::new, MemoryStore::local] {
        contract(&new(Arc::clone(&disk)), &*disk, Path::new("/outbox")).await;
        let retry = wrapped(new(Arc::clone(&disk)), &disk);
        contract(&retry, &*disk, Path::new("/outbox")).await;
    }
}
