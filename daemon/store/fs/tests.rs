//! What only the local store promises: durability, and what a full, foreign or missing directory means.

use std::error::Error;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::Duration;

use super::super::suite::{bytes, read};
use super::*;
use crate::durable::OsDisk;
use crate::durable::memory::{DiskFault, MemoryDisk};

const KEY: &str = "sessions/codex/x/part-00001-0123abcd.jsonl";

fn local(disk: &MemoryDisk) -> FsStore {
    FsStore::new(Arc::new(disk.clone()), "/bucket".into(), Blocking::Inline)
}

fn source() -> PathBuf {
    "/state/outbox/x/part".into()
}

#[tokio::test]
async fn t32_what_was_put_survives_a_power_loss_and_a_taken_file_does_not_come_back() {
    for (seed, mount) in (0..200).map(|seed| (seed, seed % 2 == 0)) {
        let disk = MemoryDisk::new();
        if mount {
            disk.mount(Path::new("/bucket"));
        }
        disk.replace(&source(), b"part").unwrap();
        local(&disk).put(KEY, Body::File(source()), None).await.unwrap();
        local(&disk).put("sessions/codex/x/meta.json", bytes("meta"), None).await.unwrap();
        assert_eq!(disk.size(&source()).unwrap().is_some(), mount, "a copy leaves the source");
        disk.crash(&mut fastrand::Rng::with_seed(seed));
        assert_eq!(read(&local(&disk), KEY).await.unwrap(), b"part");
        assert_eq!(read(&local(&disk), "sessions/codex/x/meta.json").await.unwrap(), b"meta");
        assert_eq!(disk.size(&source()).unwrap().is_some(), mount);
        local(&disk).delete(KEY).await.unwrap();
        disk.crash(&mut fastrand::Rng::with_seed(seed));
        assert_eq!(local(&disk).size(KEY).await.unwrap(), None);
    }
}

/// Kills a put at every step, with a power loss if there is a seed for it, and answers how many steps there are.
async fn kill_everywhere(mount: bool, power_loss: Option<u64>) -> i32 {
    for step in 0.. {
        let disk = MemoryDisk::new();
        if mount {
            disk.mount(Path::new("/bucket"));
        }
        disk.replace(&source(), b"part").unwrap();
        // The session is not new: so its directory cannot take a half written object with it.
        disk.replace(&Path::new("/bucket").join(KEY).with_file_name("meta.json"), b"").unwrap();
        let mut left = step;
        disk.set_hook(Box::new(move |_, _| {
            left -= 1;
            if left < 0 { DiskFault::Dead } else { DiskFault::None }
        }));
        let done = local(&disk).put(KEY, Body::File(source()), None).await.is_ok();
        disk.clear_hook();
        match power_loss {
            Some(seed) => disk.crash(&mut fastrand::Rng::with_seed(seed)),
            None => disk.kill(),
        }
        disk.revive();
        let store = local(&disk);
        let (file, object) = (disk.read(&source()).ok(), read(&store, KEY).await.ok());
        assert!(file.is_some() || object.is_some(), "step {step}: the part is lost");
        for bytes in file.iter().chain(&object) {
            assert_eq!(bytes, b"part", "step {step}");
        }
        assert!(!done || object.is_some());
        // What a restart does: put again; what is gone has become the object.
        match store.put(KEY, Body::File(source()), None).await {
            Err(error) => assert_eq!((error.kind, file), (ErrorKind::NotFound, None)),
            Ok(()) => assert!(file.is_some()),
        }
        disk.crash(&mut fastrand::Rng::with_seed(7));
        assert_eq!(read(&local(&disk), KEY).await.unwrap(), b"part", "step {step}");
        if done {
            return step;
        }
    }
    unreachable!("a put ends");
}

#[tokio::test]
async fn t27_a_kill_at_any_step_of_a_put_leaves_the_file_or_the_whole_object() {
    for power_loss in [None].into_iter().chain((0..50).map(Some)) {
        assert_eq!(kill_everywhere(false, power_loss).await, 5);
        assert!(kill_everywhere(true, power_loss).await > 5);
    }
}

#[tokio::test]
async fn t44_a_full_disk_is_told_and_a_half_copy_removed() {
    let disk = MemoryDisk::new();
    disk.mount(Path::new("/bucket"));
    disk.replace(&source(), &[7; 1000]).unwrap();
    disk.set_capacity(Some(1500));
    let error = local(&disk).put(KEY, Body::File(source()), None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Full);
    assert!(disk.list(Path::new("/bucket")).unwrap().is_empty());
    disk.set_capacity(None);
    local(&disk).put(KEY, Body::File(source()), None).await.unwrap();
}

#[tokio::test]
async fn t42_a_store_that_was_pulled_out_is_away_and_not_empty() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("drive");
    let new = || FsStore::new(Arc::new(OsDisk::new()), root.clone(), Blocking::Pool);
    let store = new();
    assert!(store.list("").await.unwrap().is_empty(), "a new store is empty");
    store.put(KEY, bytes("x"), None).await.unwrap();
    std::fs::remove_dir_all(&root).unwrap();
    let knows = new();
    knows.expect_present();
    for store in [store, knows] {
        assert_eq!(store.list("").await.unwrap_err().kind, ErrorKind::Unavailable);
        assert_eq!(store.size(KEY).await.unwrap_err().kind, ErrorKind::Unavailable);
        assert_eq!(store.get(KEY).await.err().unwrap().kind, ErrorKind::Unavailable);
        assert_eq!(store.delete(KEY).await.unwrap_err().kind, ErrorKind::Unavailable);
        assert_eq!(
            store.put(KEY, bytes("y"), None).await.unwrap_err().kind,
            ErrorKind::Unavailable
        );
    }
    assert!(!root.exists());
}

#[tokio::test]
async fn t42_a_directory_that_cannot_be_read_fails_the_listing() {
    let disk = MemoryDisk::new();
    local(&disk).put(KEY, bytes("x"), None).await.unwrap();
    disk.set_hook(Box::new(|name, _| match name {
        "list" => DiskFault::Error(io::ErrorKind::PermissionDenied),
        _ => DiskFault::None,
    }));
    assert_eq!(local(&disk).list("").await.unwrap_err().kind, ErrorKind::Denied);
    assert_eq!(local(&disk).list_folders("sessions/").await.unwrap_err().kind, ErrorKind::Denied);
}

#[tokio::test]
async fn links_hidden_files_and_temporary_ones_are_no_objects() {
    let scratch = tempfile::tempdir().unwrap();
    let (disk, root) = (Arc::new(OsDisk::new()), scratch.path().join("bucket"));
    let store = FsStore::new(disk.clone(), root.clone(), Blocking::Pool);
    store.put(KEY, bytes("x"), None).await.unwrap();
    for stray in [".DS_Store", "sessions/.1-2.tmp", "sessions/.git/config", "../outside/secret"] {
        disk.replace(&root.join(stray), b"stray").unwrap();
    }
    symlink(scratch.path().join("outside"), root.join("sessions/linked")).unwrap();
    symlink(scratch.path().join("outside/secret"), root.join("sessions/file")).unwrap();
    assert_eq!(store.list("").await.unwrap(), [Listed { key: KEY.into(), size: 1 }]);
    assert_eq!(store.list_folders("sessions/").await.unwrap(), ["codex"]);
    assert!(store.get("sessions/file").await.is_err());
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&root.join(KEY)), mode(&root)), (0o600, 0o700));
}

#[tokio::test]
async fn a_sweep_removes_old_temporary_files_and_nothing_else() {
    let disk = MemoryDisk::new();
    let day = |n: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(n * 24 * 3600);
    disk.set_now(day(1));
    disk.replace(Path::new("/bucket/sessions/.1-0.tmp"), b"old").unwrap();
    disk.replace(Path::new("/bucket/notes.tmp"), b"not ours").unwrap();
    disk.set_now(day(9));
    disk.replace(Path::new("/bucket/sessions/.2-0.tmp"), b"being written").unwrap();
    local(&disk).put(KEY, bytes("x"), None).await.unwrap();
    assert_eq!(local(&disk).sweep(day(2)).await.unwrap(), 1);
    let left: Vec<_> = disk.list(Path::new("/bucket")).unwrap().into_iter().map(|f| f.0).collect();
    let key = Path::new("/bucket").join(KEY);
    assert_eq!(
        left,
        [Path::new("/bucket/notes.tmp"), Path::new("/bucket/sessions/.2-0.tmp"), &key]
    );
}

#[tokio::test]
async fn errors_name_operation_and_key_and_never_repeat_their_source() {
    let disk = MemoryDisk::new();
    local(&disk).put("sessions/a", bytes("x"), None).await.unwrap();
    let below = local(&disk).put("sessions/a/b", bytes("x"), None).await.unwrap_err();
    assert_eq!(below.kind, ErrorKind::Invalid, "an object is no directory");
    let above = local(&disk).put("sessions", bytes("x"), None).await.unwrap_err();
    assert_eq!(above.kind, ErrorKind::Invalid);
    assert_eq!(above.to_string(), "cannot put sessions");
    assert!(!above.to_string().contains(&above.source().unwrap().to_string()));
    for (io, kind) in [
        (io::ErrorKind::StorageFull, ErrorKind::Full),
        (io::ErrorKind::QuotaExceeded, ErrorKind::Full),
        (io::ErrorKind::ReadOnlyFilesystem, ErrorKind::Denied),
        (io::ErrorKind::PermissionDenied, ErrorKind::Denied),
        (io::ErrorKind::NotFound, ErrorKind::NotFound),
        (io::ErrorKind::Other, ErrorKind::Unavailable),
    ] {
        assert_eq!(kind_of(&io.into()), kind);
    }
}
