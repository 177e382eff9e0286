//! The real file system: what is opened, what is refused, and that nothing stays open.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, symlink};

use super::tests::{lines, read_on};
use super::*;

fn refused(path: &Path) -> &'static str {
    let by_stat = OsFiles.stat(path).unwrap_err();
    match (by_stat, OsFiles.open(path).err().unwrap()) {
        (SourceError::Unfit { what, .. }, SourceError::Unfit { what: again, .. }) => {
            assert_eq!(what, again);
            what
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn t13_only_regular_files_are_opened_and_nothing_blocks() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::File::create(at("file")).unwrap();
    symlink(at("file"), at("link")).unwrap();
    assert_eq!(refused(&at("link")), "a symbolic link");
    symlink(at("nowhere"), at("dangling")).unwrap();
    assert_eq!(refused(&at("dangling")), "a symbolic link");
    assert_eq!(refused(dir.path()), "a directory");
    assert_eq!(refused(Path::new("/dev/null")), "a device");
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    assert_eq!(refused(&at("socket")), "a socket");
    #[cfg(target_os = "linux")]
    {
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), mode).unwrap();
        assert_eq!(refused(&at("fifo")), "a FIFO");
    }
    assert!(matches!(OsFiles.open(&at("none")), Err(SourceError::Missing(_))));
    assert!(matches!(OsFiles.stat(&at("file/below")), Err(SourceError::Missing(_))));
    // A directory that is a link of the user is followed.
    symlink(dir.path(), at("dir")).unwrap();
    assert!(OsFiles.open(&at("dir/file")).is_ok());
}

#[test]
fn another_users_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::File::create(&path).unwrap();
    if std::os::unix::fs::chown(&path, Some(65_534), None).is_err() {
        return; // only root can make one
    }
    assert_eq!(refused(&path), "another user's file");
}

#[test]
fn a_real_file_is_followed_through_append_move_and_rewrite() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("session.jsonl");
    let name = path.to_str().unwrap();
    let text = lines(200_000);
    std::fs::File::create(&path).unwrap().write_all(&text).unwrap();
    let atime = std::fs::metadata(&path).unwrap().atime_nsec();
    let start = Cursor::start(OsFiles.stat(&path).unwrap());
    let (bytes, cursor) = read_on(&OsFiles, name, Encoding::Plain, &start, Unfinished::Wait);
    assert!(bytes == text);
    assert_eq!(cursor.stat, OsFiles.stat(&path).unwrap());
    if cfg!(target_os = "linux") {
        assert_eq!(std::fs::metadata(&path).unwrap().atime_nsec(), atime, "no trace of reading");
    }
    let look = |depth| check(&OsFiles, &path, Encoding::Plain, &cursor, depth).unwrap();
    assert_eq!(look(Depth::Quick), Verdict::Unchanged);
    assert!(matches!(look(Depth::Whole), Verdict::Intact { more: false, .. }));

    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"more\n").unwrap();
    drop(file);
    assert!(matches!(look(Depth::Quick), Verdict::Intact { more: true, .. }));
    std::fs::copy(&path, dir.path().join("copy")).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::hard_link(dir.path().join("copy"), &path).unwrap();
    assert!(matches!(look(Depth::Quick), Verdict::Intact { more: true, .. }));
    OpenOptions::new().write(true).open(&path).unwrap().set_len(10).unwrap();
    assert!(matches!(look(Depth::Quick), Verdict::Rewritten { why: Rewrite::Shorter, .. }));
    #[cfg(target_os = "linux")]
    assert!(!holds_open(dir.path()), "no descriptor stays open");
}

#[cfg(target_os = "linux")]
fn holds_open(dir: &Path) -> bool {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .any(|target| target.starts_with(dir))
}
