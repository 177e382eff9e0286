//! Hints with the clock paused; the watcher against a scratch directory, waiting for conditions with a deadline.

use std::fs::File;
use std::io::Write;

use notify::Event;
use notify::event::{AccessKind, AccessMode, CreateKind, DataChange, Flag, RemoveKind};

use super::*;

fn paths(names: &[&str]) -> BTreeSet<PathBuf> {
    names.iter().map(PathBuf::from).collect()
}

#[tokio::test(start_paused = true)]
async fn a_hint_is_taken_once_however_often_it_is_given() {
    let hints = Hints::default();
    for path in ["/b", "/a", "/b"] {
        hints.push(path.into());
    }
    hints.changed().await;
    hints.changed().await;
    assert_eq!(hints.take(), Taken { paths: paths(&["/a", "/b"]), rescan: false });
    assert_eq!(hints.take(), Taken::default());
    let idle = tokio::time::timeout(Duration::from_secs(3600), hints.changed()).await;
    assert!(idle.is_err(), "nothing pending, nothing wakes");
}

#[tokio::test(start_paused = true)]
async fn t48_an_overflow_becomes_a_rescan_and_loses_nothing() {
    let hints = Hints::default();
    for number in 0..HINTS_MAX {
        hints.push(format!("/{number}").into());
    }
    assert!(!hints.lock().rescan);
    hints.push("/one more".into());
    hints.push("/and after".into());
    assert_eq!(hints.take(), Taken { paths: BTreeSet::new(), rescan: true });
    hints.push("/a".into());
    assert_eq!(hints.take(), Taken { paths: paths(&["/a"]), rescan: false });
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_wait_loses_no_hint() {
    let hints = Arc::new(Hints::default());
    for _ in 0..3 {
        let pushed = hints.clone();
        let push = async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            pushed.push("/a".into());
        };
        // Both are ready in the same turn, and the wait is dropped.
        tokio::select! {
            biased;
            () = push => {}
            () = hints.changed() => panic!("nothing was pending"),
        }
        tokio::time::timeout(Duration::from_secs(1), hints.changed()).await.unwrap();
        assert_eq!(hints.take().paths, paths(&["/a"]));
    }
}

#[test]
fn t48_t52_own_reads_are_dropped_and_what_is_not_understood_is_a_rescan() {
    let seen = |event: notify::Result<Event>| {
        let (hints, ended) = (Hints::default(), Mutex::default());
        let known = Mutex::new(BTreeSet::from(["/a".into()]));
        on_event(event, &hints, &ended, &known);
        (hints.take(), ended.into_inner().unwrap())
    };
    let event = |kind| Ok(Event::new(kind).add_path("/a".into()));
    let rescan = Taken { paths: BTreeSet::new(), rescan: true };
    let hint = Taken { paths: paths(&["/a"]), rescan: false };
    for access in [
        AccessKind::Open(AccessMode::Any),
        AccessKind::Close(AccessMode::Read),
        AccessKind::Close(AccessMode::Write),
        AccessKind::Read,
    ] {
        assert_eq!(seen(event(EventKind::Access(access))).0, Taken::default());
    }
    let overflow = Event::new(EventKind::Other).set_flag(Flag::Rescan);
    let (taken, ended) = seen(Ok(overflow));
    assert_eq!(taken, rescan);
    assert_eq!(ended, [PathBuf::from("/")], "the end of a watch may be among what was lost");
    assert_eq!(seen(Err(notify::Error::generic("broken"))).0, rescan);
    let written = EventKind::Modify(ModifyKind::Data(DataChange::Any));
    assert_eq!(seen(event(written)), (hint, vec![]));
    assert_eq!(seen(event(EventKind::Create(CreateKind::Folder))).0.paths, paths(&["/a"]));
    let (taken, ended) = seen(event(EventKind::Remove(RemoveKind::Folder)));
    assert_eq!((taken.paths, ended), (paths(&["/a"]), vec![PathBuf::from("/a")]));
}

#[test]
fn t47_a_reached_limit_is_named_by_the_setting_that_raises_it() {
    let watches = notify::Error::new(notify::ErrorKind::MaxFilesWatch);
    assert!(refusal(&watches).ends_with("fs.inotify.max_user_watches"));
    let emfile = std::io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error());
    assert!(refusal(&notify::Error::io(emfile)).contains("fs.inotify.max_user_instances"));
    let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    assert!(is_of_the_directory(&notify::Error::io(denied)));
    assert!(!is_of_the_directory(&watches));
}

#[tokio::test(start_paused = true)]
async fn t47_too_many_directories_are_polled_and_tried_again_later() {
    let scratch = tempfile::tempdir().unwrap();
    let mut watcher = Watcher::start(Arc::default());
    let many: Vec<PathBuf> =
        (0..=WATCHES_MAX).map(|number| scratch.path().join(number.to_string())).collect();
    let Coverage::Polled(reason) = watcher.cover(scratch.path(), &many) else { panic!() };
    assert!(reason.contains("8192"), "{reason}");
    let few = [scratch.path().to_owned()];
    assert_eq!(watcher.cover(scratch.path(), &few), Coverage::Polled(reason));
    assert_eq!(watcher.watches(), 0);
    tokio::time::advance(RETRY_AFTER).await;
    assert_eq!(watcher.cover(scratch.path(), &few), Coverage::Events);
    assert_eq!(watcher.watches(), 1);
}

/// A scratch root, its watcher and its hints.
struct World {
    root: tempfile::TempDir,
    hints: Arc<Hints>,
    watcher: Watcher,
}

impl World {
    fn new() -> World {
        let hints = Arc::new(Hints::default());
        let watcher = Watcher::start(hints.clone());
        World { root: tempfile::tempdir().unwrap(), hints, watcher }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn cover(&mut self, names: &[&str]) -> Taken {
        let directories: Vec<PathBuf> = names.iter().map(|name| self.path(name)).collect();
        let root = self.root.path().to_owned();
        assert_eq!(self.watcher.cover(&root, &directories), Coverage::Events);
        self.hints.take()
    }

    /// Collects hints until one names this path or asks for a rescan.
    async fn hint(&self, name: &str) {
        let wanted = self.path(name);
        let seen = async {
            loop {
                self.hints.changed().await;
                let taken = self.hints.take();
                if taken.rescan || taken.paths.contains(&wanted) {
                    return;
                }
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(20), seen).await;
        assert!(seen.is_ok(), "no hint for {name}");
    }

    fn append(&self, name: &str) {
        let mut file = File::options().create(true).append(true).open(self.path(name)).unwrap();
        file.write_all(b"x\n").unwrap();
    }
}

#[tokio::test]
async fn t50_covering_again_costs_nothing_and_a_new_watch_asks_for_one_more_scan() {
    let mut world = World::new();
    std::fs::create_dir(world.path("a")).unwrap();
    assert!(world.cover(&["", "a"]).rescan, "what happened between scan and watch was not seen");
    assert_eq!(world.cover(&["", "a"]), Taken::default());
    world.append("a/f");
    world.hint("a/f").await;
    assert_eq!(world.watcher.watches(), 2);
    world.cover(&[""]);
    assert_eq!(world.watcher.watches(), 1, "what a scan no longer visits is not watched");
}

#[tokio::test]
async fn a_new_directory_is_hinted_and_watched_from_the_next_scan_on() {
    let mut world = World::new();
    world.cover(&[""]);
    std::fs::create_dir(world.path("new")).unwrap();
    world.hint("new").await;
    assert!(world.cover(&["", "new"]).rescan);
    world.append("new/f");
    world.hint("new/f").await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_directory_that_is_replaced_by_another_of_its_name_is_watched_again() {
    let mut world = World::new();
    std::fs::create_dir(world.path("d")).unwrap();
    world.cover(&["", "d"]);
    for replace in ["remove", "rename"] {
        match replace {
            "remove" => std::fs::remove_dir(world.path("d")).unwrap(),
            _ => rustix::fs::rename(world.path("d"), world.path("elsewhere")).unwrap(),
        }
        world.hint("d").await;
        std::fs::create_dir(world.path("d")).unwrap();
        world.hint("d").await;
        assert!(world.cover(&["", "d"]).rescan, "after {replace}");
        world.append("d/f");
        world.hint("d/f").await;
        std::fs::remove_file(world.path("d/f")).unwrap();
        world.hint("d/f").await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_root_that_is_not_there_is_awaited_step_by_step_and_neighbours_wake_nobody() {
    let mut world = World::new();
    let root = world.path("agent/sessions");
    world.watcher.await_root(&root);
    assert!(world.hints.take().rescan, "it may have come between scan and watch");
    world.watcher.await_root(&root);
    let Watcher { hints, ended, known, .. } = &world.watcher;
    let neighbour = Event::new(EventKind::Create(CreateKind::File)).add_path(world.path("other"));
    on_event(Ok(neighbour), hints, ended, known);
    assert_eq!(hints.take(), Taken::default());
    std::fs::create_dir(world.path("agent")).unwrap();
    world.hint("agent").await;
    world.watcher.await_root(&root);
    assert_eq!((world.hints.take().rescan, world.watcher.watches()), (true, 1));
    std::fs::create_dir(&root).unwrap();
    world.hint("agent/sessions").await;
    assert_eq!(world.watcher.cover(&root, std::slice::from_ref(&root)), Coverage::Events);
    assert_eq!(world.watcher.watches(), 1, "what is above a root that is there is not watched");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn t48_after_an_overflow_every_watch_is_taken_anew() {
    let mut world = World::new();
    world.cover(&[""]);
    let overflow = Event::new(EventKind::Other).set_flag(Flag::Rescan);
    let Watcher { hints, ended, known, .. } = &world.watcher;
    on_event(Ok(overflow), hints, ended, known);
    assert!(world.cover(&[""]).rescan);
    world.append("f");
    world.hint("f").await;
    assert_eq!(world.watcher.watches(), 1);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn t52_reading_what_is_watched_wakes_nobody() {
    let mut world = World::new();
    world.append("f");
    world.cover(&[""]);
    for _ in 0..10 {
        std::fs::read(world.path("f")).unwrap();
        std::fs::read_dir(world.root.path()).unwrap().count();
    }
    // Events come in order, so that with this one all earlier ones were seen.
    world.append("last");
    world.hints.changed().await;
    assert_eq!(world.hints.take().paths, BTreeSet::from([world.path("last")]));
}

#[tokio::test]
async fn a_directory_that_vanished_since_the_scan_is_left_to_the_next_one() {
    let mut world = World::new();
    world.cover(&["", "never-there"]);
    assert_eq!(world.watcher.watches(), 1);
}
