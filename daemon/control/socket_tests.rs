//! What is promised about the socket's file: who may reach it, what is respected, what is taken away.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener as StdListener;

use super::*;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn t72_the_socket_is_for_its_user_alone() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("a/b/daemon.sock");
    let (_listener, _file) = bind(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    assert_eq!(mode(path.parent().unwrap().parent().unwrap()), 0o700);
}

#[tokio::test]
async fn t72_a_directory_of_its_own_is_closed_and_another_one_is_left_as_it_is() {
    let scratch = tempfile::tempdir().unwrap();
    let own = scratch.path().join("run");
    fs::create_dir(&own).unwrap();
    chmod(&own, 0o777);
    drop(bind(&own.join("s")).unwrap());
    assert_eq!(mode(&own), 0o700);

    let home = scratch.path().join("home");
    fs::create_dir_all(home.join("documents")).unwrap();
    chmod(&home, 0o755);
    drop(bind(&home.join("s")).unwrap());
    assert_eq!(mode(&home), 0o755);
    chmod(&home, 0o775);
    assert!(matches!(bind(&home.join("s")), Err(BindError::UnsafeDirectory { .. })));
    assert_eq!(mode(&home), 0o775);
}

#[tokio::test]
async fn t72_a_directory_that_is_a_link_or_of_another_user_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let real = scratch.path().join("real");
    fs::create_dir(&real).unwrap();
    symlink(&real, scratch.path().join("link")).unwrap();
    let error = bind(&scratch.path().join("link/s")).unwrap_err();
    assert!(error.to_string().contains("symbolic link"), "{error}");

    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can make a directory of another user");
        return;
    }
    std::os::unix::fs::chown(&real, Some(65534), Some(65534)).unwrap();
    let error = bind(&real.join("s")).unwrap_err();
    assert!(error.to_string().contains("belongs to another user"), "{error}");
}

#[tokio::test]
async fn t64_a_socket_that_a_kill_left_behind_is_replaced() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("s");
    drop(StdListener::bind(&path).unwrap());
    assert!(path.exists());
    let (_listener, _file) = bind(&path).unwrap();
    tokio::net::UnixStream::connect(&path).await.unwrap();
}

#[tokio::test]
async fn t64_a_socket_that_answers_is_respected() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("s");
    let other = StdListener::bind(&path).unwrap();
    assert!(matches!(bind_first(&path), Err(BindError::AlreadyServing(_))));
    assert!(matches!(bind(&path), Err(BindError::AlreadyServing(_))));
    other.accept().unwrap();
    tokio::net::UnixStream::connect(&path).await.unwrap();
}

#[tokio::test]
async fn t65_a_daemon_that_hangs_with_a_full_queue_is_alive_and_does_not_hang_its_successor() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("s");
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let _waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();
    assert!(matches!(bind(&path), Err(BindError::AlreadyServing(_))));
}

#[tokio::test]
async fn what_is_not_a_socket_is_never_removed() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("s");
    fs::File::create(&path).unwrap();
    assert!(matches!(bind(&path), Err(BindError::NotASocket(_))));
    assert!(path.is_file());
    fs::remove_file(&path).unwrap();
    symlink("/nowhere", &path).unwrap();
    assert!(matches!(bind(&path), Err(BindError::NotASocket(_))));
}

#[tokio::test]
async fn the_file_goes_with_its_guard_unless_it_is_anothers_by_now() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("s");
    let (listener, file) = bind(&path).unwrap();
    assert!(file.is_in_place());
    drop((listener, file));
    assert!(!path.exists());

    let (_listener, file) = bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(!file.is_in_place());
    let _successor = StdListener::bind(&path).unwrap();
    drop(file);
    assert!(path.exists());
}

#[tokio::test]
async fn a_path_that_the_system_cannot_take_is_refused_with_the_flag_that_changes_it() {
    let scratch = tempfile::tempdir().unwrap();
    let room = SOCKET_PATH_BYTES_MAX - scratch.path().as_os_str().len() - 1;
    drop(bind(&scratch.path().join("x".repeat(room))).unwrap());
    let error = bind(&scratch.path().join("x".repeat(room + 1))).unwrap_err();
    assert!(error.to_string().contains("--socket"), "{error}");
}

#[tokio::test]
async fn t69_a_child_does_not_inherit_the_socket() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("s");
    let (listener, _file) = bind(&path).unwrap();
    let client = tokio::net::UnixStream::connect(&path).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let flags = [
        rustix::io::fcntl_getfd(&listener).unwrap(),
        rustix::io::fcntl_getfd(&client).unwrap(),
        rustix::io::fcntl_getfd(&accepted).unwrap(),
    ];
    assert!(flags.iter().all(|flags| flags.contains(rustix::io::FdFlags::CLOEXEC)));
}
