//! No room: on the disk of the state, and on that of a local bucket. What happens is shown, nothing is lost or doubled, and
//! when there is room again everything goes on by itself.
//!
//! On small file systems that are really full (`support/room.rs`); where there can be none, the tests are skipped with a line.

use std::fs;

use crate::support::daemon::{Daemon, status};
use crate::support::home::Home;
use crate::support::judge;
use crate::support::objects::Objects;
use crate::support::oracle::Bucket;
use crate::support::planted::Planted;
use crate::support::room::Room;
use crate::support::writers::Transcript;
use crate::support::{skipped, wait_for, wait_until_ok};

/// Size of the small file system: room for what these tests write, several times.
const ROOM: u64 = 8 << 20;

/// How much a session grows by while there is no room: more than the least that a file system gives out.
const GROWTH: usize = 32 << 10;

/// A home one of whose directories is a small file system, a daemon that keeps no other room free, and sessions.
struct Scene {
    daemon: Daemon,
    transcripts: Vec<Transcript>,
    planted: Planted,
    room: Room,
    objects: Objects,
    home: Home,
}

impl Scene {
    /// `None`: not here.
    fn new(test: &str, in_bucket: bool, min_free_space: &str) -> Option<Scene> {
        let home = Home::new();
        let dir = if in_bucket { home.bucket() } else { home.state_dir() };
        let room = match Room::at(&home, &dir, ROOM) {
            Ok(room) => room,
            Err(why) => {
                skipped(test, &why);
                return None;
            }
        };
        let config = home.path().join(".config/tracecraft/config.toml");
        fs::create_dir_all(config.parent().unwrap()).unwrap();
        // Outside of the small file system: the client does not see that.
        let socket = home.path().join("tracecraftd.sock");
        let text = format!("min_free_space = \"{min_free_space}\"\nsocket = {socket:?}\n");
        crate::service_life::write_private(&config, &text);
        let objects = Objects::Directory(if in_bucket { room.path() } else { home.bucket() });
        let planted = Planted::exact_only(29);
        let harnesses = ["claude-code", "codex", "openclaw"];
        let new = |(number, harness)| Transcript::new(&home, harness, number, 29);
        let mut transcripts: Vec<_> = (0..).zip(harnesses).map(new).collect();
        transcripts.iter_mut().for_each(|one| one.grow(&planted, 3));
        let daemon = start(&home, &room);
        let scene = Scene { daemon, transcripts, planted, room, objects, home };
        wait_until_ok("what was there", || scene.complete());
        Some(scene)
    }

    fn grow(&mut self) {
        for one in &mut self.transcripts {
            one.grow(&self.planted, 1);
            one.grow_by(&"long ".repeat(GROWTH / 5));
        }
    }

    fn complete(&self) -> Result<(), String> {
        let sources: Vec<_> = self.transcripts.iter().map(|t| t.source(&self.planted)).collect();
        judge::verdict(judge::at_rest(&Bucket::read(self.objects.clone()), &sources))
    }

    /// Waits until `status` shows one of these problems.
    fn shows(&self, codes: &[&str]) -> String {
        wait_for("the full disk to be shown", || {
            let status = status(&self.home)?;
            let is_meant = |code: &&str| codes.contains(code);
            let told = status["problems"].as_array()?.iter();
            told.filter_map(|problem| problem["code"].as_str()).find(is_meant).map(str::to_owned)
        })
    }

    /// There is room again: all of it is stored, and nothing is shown any more.
    fn recovers(&mut self) {
        self.room.make_room();
        wait_until_ok("all to be stored", || self.complete());
        wait_for("no problem to be shown", || {
            let problems = status(&self.home)?["problems"].as_array()?.clone();
            let about_room = |code: &str| {
                code.contains("disk") || code.contains("state") || code.contains("store")
            };
            let left = problems.iter().filter_map(|it| it["code"].as_str()).any(about_room);
            (!left).then_some(())
        });
        assert!(self.daemon.exited().is_none(), "{}", self.daemon.said());
    }

    /// Every part is there once, whatever was tried while there was no room.
    fn ends(mut self) {
        self.grow();
        wait_until_ok("what came afterwards", || self.complete());
        assert_eq!(self.daemon.term().code(), Some(0), "{}", self.daemon.said());
        self.complete().unwrap();
        let bucket = Bucket::read(self.objects.clone());
        assert_eq!(bucket.gap_and_overlap(), (0, 0));
        assert!(bucket.litter.is_empty(), "{:?}", bucket.litter);
    }
}

fn start(home: &Home, room: &Room) -> Daemon {
    let mut command = home.tracecraftd();
    command.args(["--interval", "100ms"]);
    let mut daemon = Daemon::spawn_command(home, room.command(home, &command));
    daemon.wait_ready(home);
    daemon
}

#[test]
fn t29_no_room_for_the_state_is_shown_and_capture_goes_on_when_there_is_room() {
    let test = "no room for the state";
    let Some(mut scene) = Scene::new(test, false, "0B") else { return };
    for left in [0, 8 << 10] {
        scene.room.fill(left);
        scene.grow();
        let code = scene.shows(&["disk_full", "state_unwritable", "outbox_unwritable"]);
        println!("{test}: {left} bytes left, shown as {code}");
        scene.recovers();
    }
    scene.ends();
}

#[test]
fn t29_a_kill_while_there_is_no_room_for_the_state_costs_nothing() {
    let test = "a kill without room";
    let Some(mut scene) = Scene::new(test, false, "0B") else { return };
    scene.room.fill(8 << 10);
    scene.grow();
    scene.shows(&["disk_full", "state_unwritable", "outbox_unwritable"]);
    scene.daemon.kill9();
    scene.room.make_room();
    scene.daemon = start(&scene.home, &scene.room);
    wait_until_ok("all to be stored", || scene.complete());
    scene.ends();
}

#[test]
fn t29_below_the_room_to_keep_capture_waits_and_says_so() {
    let test = "the room to keep";
    let Some(mut scene) = Scene::new(test, false, "2MiB") else { return };
    scene.room.fill(1 << 20);
    scene.grow();
    assert_eq!(scene.shows(&["disk_full"]), "disk_full");
    scene.recovers();
    scene.ends();
}

#[test]
fn t44_no_room_in_a_local_bucket_is_shown_and_what_waits_is_stored_once_when_there_is_room() {
    let test = "no room in a local bucket";
    let Some(mut scene) = Scene::new(test, true, "0B") else { return };
    for left in [0, 40 << 10] {
        scene.room.fill(left);
        scene.grow();
        let code = scene.shows(&["store_unavailable"]);
        let waits = || status(&scene.home)?["pending"]["parts"].as_u64().filter(|parts| *parts > 0);
        let parts = wait_for("parts to wait", waits);
        println!("{test}: {left} bytes left, shown as {code}, {parts} parts wait");
        scene.recovers();
    }
    scene.ends();
}
