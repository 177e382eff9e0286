//! What the disks promise, and that the one in memory forgets the way a real one may.

use std::io::ErrorKind;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};

use super::group::{GroupCommit, Request};
use super::memory::{DiskFault, MemoryDisk};
use super::{Blocking, Disk, OsDisk, PieceReader, is_temp};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn put(disk: &dyn Disk, path: &Path, bytes: &[u8]) {
    disk.create(path).unwrap().write_all(bytes).unwrap();
}

fn names(disk: &dyn Disk, dir: &Path) -> Vec<String> {
    let files = disk.list(dir).unwrap();
    files.iter().map(|(path, _)| path.strip_prefix(dir).unwrap().display().to_string()).collect()
}

/// Both disks, each with a directory to play in.
fn each_disk(test: impl Fn(&dyn Disk, &Path)) {
    let scratch = tempfile::tempdir().unwrap();
    test(&OsDisk::new(), scratch.path());
    test(&MemoryDisk::new(), Path::new("/scratch"));
}

#[test]
fn both_disks_read_back_what_was_written_and_list_it_sorted() {
    each_disk(|disk, dir| {
        put(disk, &dir.join("b/two"), b"22");
        put(disk, &dir.join("a"), b"1");
        disk.append(&dir.join("log/journal"), b"one\n").unwrap();
        disk.append(&dir.join("log/journal"), b"two\n").unwrap();
        disk.replace(&dir.join("state"), b"old").unwrap();
        disk.replace(&dir.join("state"), b"new").unwrap();
        disk.sync(&[dir.join("a"), dir.join("b/two"), dir.join("log")]).unwrap();
        assert_eq!(names(disk, dir), ["a", "b/two", "log/journal", "state"]);
        assert_eq!(disk.read(&dir.join("log/journal")).unwrap(), b"one\ntwo\n");
        assert_eq!(disk.read(&dir.join("state")).unwrap(), b"new");
        assert_eq!(disk.size(&dir.join("b/two")).unwrap(), Some(2));
        assert!(disk.modified(&dir.join("a")).unwrap().is_some());
        put(disk, &dir.join("a"), b"");
        assert_eq!(disk.size(&dir.join("a")).unwrap(), Some(0), "create truncates");
    });
}

#[test]
fn both_disks_say_the_same_about_what_is_not_there() {
    each_disk(|disk, dir| {
        put(disk, &dir.join("file"), b"x");
        let missing = dir.join("no/such");
        assert_eq!(disk.size(&missing).unwrap(), None);
        assert_eq!(disk.size(dir).unwrap(), None, "a directory is no file");
        assert_eq!(disk.size(&dir.join("file/below")).unwrap(), None);
        assert_eq!(disk.modified(&missing).unwrap(), None);
        assert!(disk.is_dir(dir).unwrap() && !disk.is_dir(&dir.join("file")).unwrap());
        assert!(disk.list(&missing).unwrap().is_empty());
        assert!(disk.list(&dir.join("file")).unwrap().is_empty());
        assert_eq!(disk.read(&missing).unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(disk.rename(&missing, &dir.join("x")).unwrap_err().kind(), ErrorKind::NotFound);
        let nowhere = disk.rename(&dir.join("file"), &missing).unwrap_err();
        assert_eq!(nowhere.kind(), ErrorKind::NotFound, "a rename makes no directories");
        disk.remove(&missing).unwrap();
        disk.remove_dir(&missing).unwrap();
        disk.remove_dir(dir).unwrap();
        assert!(disk.is_dir(dir).unwrap(), "not empty");
        assert!(disk.free_bytes(&missing).unwrap() > 0);
    });
}

#[test]
fn both_disks_sync_what_was_renamed_or_removed_meanwhile() {
    each_disk(|disk, dir| {
        let (from, to) = (dir.join("outbox/s/part"), dir.join("bucket/part"));
        put(disk, &from, b"x");
        disk.create_dirs(&dir.join("bucket")).unwrap();
        disk.rename(&from, &to).unwrap();
        disk.remove_dir(&dir.join("outbox/s")).unwrap();
        disk.sync(&[from.clone(), to.clone(), dir.join("outbox/s")]).unwrap();
        assert_eq!(names(disk, dir), ["bucket/part"]);
    });
}

#[test]
fn own_files_are_0600_and_own_directories_0700() {
    let scratch = tempfile::tempdir().unwrap();
    let (disk, dir) = (OsDisk::new(), scratch.path().join("new/deep"));
    put(&disk, &dir.join("created"), b"x");
    disk.append(&dir.join("appended"), b"x").unwrap();
    disk.replace(&dir.join("replaced"), b"x").unwrap();
    std::fs::set_permissions(dir.join("replaced"), PermissionsExt::from_mode(0o644)).unwrap();
    std::fs::set_permissions(dir.join("appended"), PermissionsExt::from_mode(0o644)).unwrap();
    disk.replace(&dir.join("replaced"), b"y").unwrap();
    disk.append(&dir.join("appended"), b"y").unwrap();
    for file in ["created", "appended", "replaced"] {
        assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
    }
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&scratch.path().join("new")), 0o700);
}

#[test]
fn a_link_or_a_socket_in_place_of_an_own_file_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let (disk, dir) = (OsDisk::new(), scratch.path());
    put(&disk, &dir.join("target"), b"kept");
    symlink(dir.join("target"), dir.join("link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
    for name in ["link", "socket"] {
        assert!(disk.read(&dir.join(name)).is_err(), "{name}");
        assert!(disk.create(&dir.join(name)).is_err(), "{name}");
        assert!(disk.append(&dir.join(name), b"x").is_err(), "{name}");
        assert_eq!(disk.size(&dir.join(name)).unwrap(), None, "{name}");
    }
    assert_eq!(disk.read(&dir.join("target")).unwrap(), b"kept");
    assert_eq!(names(&disk, dir), ["target"]);
}

#[test]
fn a_directory_that_is_a_link_is_as_good_as_its_target() {
    let scratch = tempfile::tempdir().unwrap();
    let disk = OsDisk::new();
    disk.create_dirs(&scratch.path().join("elsewhere")).unwrap();
    symlink(scratch.path().join("elsewhere"), scratch.path().join("state")).unwrap();
    let file = scratch.path().join("state/file");
    disk.replace(&file, b"x").unwrap();
    disk.sync(&[file.clone(), scratch.path().join("state")]).unwrap();
    assert_eq!(disk.read(&file).unwrap(), b"x");
}

#[test]
fn a_replacement_leaves_no_temporary_file_behind() {
    let scratch = tempfile::tempdir().unwrap();
    let disk = OsDisk::new();
    disk.create_dirs(&scratch.path().join("taken")).unwrap();
    assert!(disk.replace(&scratch.path().join("taken"), b"x").is_err(), "a directory stays");
    disk.replace(&scratch.path().join("n".repeat(255)), b"x").unwrap();
    assert_eq!(disk.list(scratch.path()).unwrap().len(), 1);
}

#[test]
fn concurrent_syncs_share_their_waits() {
    const MEMBERS: usize = 31;
    let (group, rounds) = (GroupCommit::default(), AtomicU64::new(0));
    let (started, is_started) = mpsc::channel();
    let (release, is_released) = mpsc::channel::<()>();
    let wanted = |n: usize| Request { files: [n.to_string().into()].into(), ..Request::default() };
    std::thread::scope(|scope| {
        let (group, rounds) = (&group, &rounds);
        scope.spawn(move || {
            group.commit(wanted(0), |_| {
                started.send(()).unwrap();
                is_released.recv().unwrap();
                Ok(())
            })
        });
        is_started.recv().unwrap();
        let members: Vec<_> = (1..=MEMBERS)
            .map(|n| {
                scope.spawn(move || {
                    group.commit(wanted(n), |request| {
                        rounds.fetch_add(1, Ordering::Relaxed);
                        assert_eq!(request.files.len(), MEMBERS);
                        Err(ErrorKind::StorageFull.into())
                    })
                })
            })
            .collect();
        while group.gathered() < MEMBERS {
            std::thread::yield_now();
        }
        release.send(()).unwrap();
        for member in members {
            let error = member.join().unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::StorageFull, "every member is told");
        }
    });
    assert_eq!(rounds.load(Ordering::Relaxed), 1);
    group.commit(wanted(0), |_| Ok(())).expect("the failure was the group's own");
}

#[test]
fn a_leader_that_panics_does_not_strand_the_next() {
    let group = GroupCommit::default();
    let panics = || group.commit(Request::default(), |_| panic!("on purpose"));
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
    group.commit(Request::default(), |_| Ok(())).unwrap();
}

#[test]
fn many_files_cost_one_round_and_threads_fewer_than_their_number() {
    let scratch = tempfile::tempdir().unwrap();
    let disk = Arc::new(OsDisk::new());
    let paths: Vec<PathBuf> = (0..300).map(|n| scratch.path().join(format!("{n}/part"))).collect();
    paths.iter().for_each(|path| put(&*disk, path, b"x"));
    disk.sync(&paths).unwrap();
    assert_eq!(disk.sync_rounds(), 1);
    std::thread::scope(|scope| {
        for path in &paths[..32] {
            scope.spawn(|| disk.sync(std::slice::from_ref(path)).unwrap());
        }
    });
    assert!(disk.sync_rounds() <= 33);
    assert_eq!(disk.gathered(), 0);
}

/// What `work` may leave after a power loss, over many seeds.
fn outcomes<T: Ord>(
    work: impl Fn(&MemoryDisk),
    look: impl Fn(&MemoryDisk) -> T,
) -> std::collections::BTreeSet<T> {
    (0..400)
        .map(|seed| {
            let disk = MemoryDisk::new();
            work(&disk);
            disk.crash(&mut fastrand::Rng::with_seed(seed));
            disk.revive();
            look(&disk)
        })
        .collect()
}

fn content(disk: &MemoryDisk, path: &str) -> Option<String> {
    disk.read(Path::new(path)).ok().map(|bytes| String::from_utf8(bytes).unwrap())
}

#[test]
fn t32_unsynced_bytes_are_lost_torn_or_kept_and_synced_ones_kept() {
    let log = Path::new("/d/log");
    let seen = outcomes(
        |disk| {
            disk.append(log, b"safe").unwrap();
            disk.sync(&[log.into()]).unwrap();
            disk.append(log, b"ab").unwrap();
        },
        |disk| content(disk, "/d/log").unwrap(),
    );
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["safe", "safea", "safeab"]);
}

#[test]
fn t32_a_replacement_survives_and_a_bare_rewrite_may_be_empty() {
    let path = Path::new("/d/f");
    let replaced = outcomes(
        |disk| {
            disk.replace(path, b"old").unwrap();
            disk.replace(path, b"new").unwrap();
        },
        |disk| (content(disk, "/d/f"), names(disk, Path::new("/d"))),
    );
    let kept = (Some("new".to_owned()), vec!["f".to_owned()]);
    assert_eq!(replaced.into_iter().collect::<Vec<_>>(), [kept]);
    let rewritten = outcomes(
        |disk| {
            disk.replace(path, b"old").unwrap();
            put(disk, path, b"new");
        },
        |disk| content(disk, "/d/f").unwrap(),
    );
    assert!(rewritten.contains("") && rewritten.contains("old") && rewritten.contains("new"));
}

#[test]
fn t32_an_unsynced_rename_leaves_the_old_name_or_the_new_and_never_both_or_none() {
    let (from, to) = (Path::new("/d/out/a"), Path::new("/d/in/a"));
    let work = |disk: &MemoryDisk, synced: &[&Path]| {
        disk.replace(from, b"x").unwrap();
        disk.replace(to, b"y").unwrap();
        disk.rename(from, to).unwrap();
        synced.iter().for_each(|path| disk.sync(&[path.to_path_buf()]).unwrap());
    };
    let look = |disk: &MemoryDisk| (content(disk, "/d/out/a"), content(disk, "/d/in/a"));
    let text = |text: &str| Some(text.to_owned());
    let either = [(None, text("x")), (text("x"), text("y"))];
    for synced in [&[][..], &[to], &[Path::new("/d/out")]] {
        assert!(outcomes(|disk| work(disk, synced), look).iter().eq(&either), "{synced:?}");
    }
    let both = outcomes(|disk| work(disk, &[to, Path::new("/d/out")]), look);
    assert!(both.iter().eq(&either[..1]));
}

#[test]
fn t32_a_synced_file_is_there_with_every_directory_above_it() {
    let seen = outcomes(
        |disk| {
            put(disk, Path::new("/a/b/c/file"), b"x");
            put(disk, Path::new("/a/other"), b"x");
            disk.sync(&["/a/b/c/file".into()]).unwrap();
            disk.remove(Path::new("/a/b/c/file")).unwrap();
            disk.remove_dir(Path::new("/a/b/c")).unwrap();
        },
        |disk| (content(disk, "/a/b/c/file").is_some(), disk.is_dir(Path::new("/a/b/c")).unwrap()),
    );
    assert!(seen.into_iter().eq([(false, false), (false, true), (true, true)]));
}

#[test]
fn t27_a_killed_process_leaves_what_it_wrote_and_does_nothing_more() {
    let disk = MemoryDisk::new();
    let mut handle = disk.create(Path::new("/d/f")).unwrap();
    handle.write_all(b"written").unwrap();
    disk.kill();
    assert!(handle.write_all(b"!").is_err(), "its handles are closed");
    assert_eq!(content(&disk, "/d/f").as_deref(), Some("written"));
}

#[test]
fn t27_a_kill_at_every_step_of_a_replacement_leaves_the_old_or_the_new_file() {
    for step in 0.. {
        let disk = MemoryDisk::new();
        disk.replace(Path::new("/d/f"), b"old").unwrap();
        let mut left = step;
        disk.set_hook(Box::new(move |_, _| {
            left -= 1;
            if left < 0 { DiskFault::Dead } else { DiskFault::None }
        }));
        let result = disk.replace(Path::new("/d/f"), b"new");
        assert_eq!(result.is_err(), disk.is_dead());
        assert!(result.is_ok() || disk.size(Path::new("/d/f")).is_err(), "dead is dead");
        disk.clear_hook();
        disk.kill();
        disk.revive();
        let now = content(&disk, "/d/f").unwrap();
        assert!(now == "old" || now == "new");
        for name in names(&disk, Path::new("/d")) {
            assert!(name == "f" || is_temp(name.as_ref()), "{name}");
        }
        if result.is_ok() {
            assert_eq!((step, now.as_str()), (5, "new"));
            break;
        }
    }
}

#[test]
fn t29_an_append_without_room_leaves_the_former_length() {
    let (disk, log) = (MemoryDisk::new(), Path::new("/d/log"));
    disk.append(log, b"12345").unwrap();
    disk.set_capacity(Some(8));
    assert_eq!(disk.append(log, b"6789").unwrap_err().kind(), ErrorKind::StorageFull);
    assert_eq!(content(&disk, "/d/log").as_deref(), Some("12345"));
    assert_eq!(disk.free_bytes(log).unwrap(), 3);
    let replaced = disk.replace(Path::new("/d/state"), b"much too long").unwrap_err();
    assert_eq!(replaced.kind(), ErrorKind::StorageFull);
    assert_eq!(names(&disk, Path::new("/d")), ["log"], "no temporary file");
    let mut file = disk.create(Path::new("/d/part")).unwrap();
    assert_eq!(file.write(b"abcdef").unwrap(), 3, "what fits is written");
    assert_eq!(file.write(b"def").unwrap_err().kind(), ErrorKind::StorageFull);
    disk.set_capacity(None);
    disk.append(log, b"6789").unwrap();
    assert_eq!(content(&disk, "/d/log").as_deref(), Some("123456789"));
}

#[test]
fn a_failed_step_has_no_effect_and_the_next_is_taken() {
    let disk = MemoryDisk::new();
    disk.set_hook(Box::new(|name, path| match name {
        "rename" if path.ends_with("b") => DiskFault::Error(ErrorKind::PermissionDenied),
        _ => DiskFault::None,
    }));
    put(&disk, Path::new("/d/a"), b"x");
    let error = disk.rename(Path::new("/d/a"), Path::new("/d/b")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    disk.rename(Path::new("/d/a"), Path::new("/d/c")).unwrap();
    assert_eq!(names(&disk, Path::new("/d")), ["c"]);
    assert_eq!(disk.steps(), 5, "create, write, two renames, list");
}

#[tokio::test]
async fn a_file_is_streamed_in_pieces_and_a_broken_one_says_so() {
    use tokio::io::AsyncReadExt;
    let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    for blocking in [Blocking::Pool, Blocking::Inline] {
        let source = std::io::Cursor::new(bytes.clone());
        let mut read = Vec::new();
        PieceReader::new(blocking.clone(), Box::new(source)).read_to_end(&mut read).await.unwrap();
        assert!(read == bytes);
        let scratch = tempfile::tempdir().unwrap();
        let broken = std::fs::File::open(scratch.path()).unwrap();
        let error = PieceReader::new(blocking, Box::new(broken)).read_to_end(&mut read).await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::IsADirectory);
    }
}

/// Cheap enough for 100,000 sequences of the model test: this many cost well under a second even without optimisation.
#[test]
fn a_short_sequence_with_a_crash_is_cheap() {
    let mut rng = fastrand::Rng::with_seed(1);
    for _ in 0..2_000 {
        let disk = MemoryDisk::new();
        for n in 0..4 {
            let part = PathBuf::from(format!("/state/outbox/s/part-{n}"));
            put(&disk, &part, b"part");
            disk.append(Path::new("/state/journal"), b"line").unwrap();
            disk.sync(&[part.clone(), "/state/journal".into()]).unwrap();
            let target = PathBuf::from(format!("/bucket/s/part-{n}"));
            disk.create_dirs(Path::new("/bucket/s")).unwrap();
            disk.rename(&part, &target).unwrap();
            disk.sync(&[target, "/state/outbox/s".into()]).unwrap();
        }
        disk.crash(&mut rng);
        assert_eq!(disk.list(Path::new("/bucket")).unwrap().len(), 4);
    }
}
