//! kill -9 at every request to a real S3 server: before the server has seen it, and after it has done it and before the answer
//! is there.
//!
//! Owns the gates of the network; those of the disk are in `kill.rs`, and so are the scenes and the verdicts. A scenario is run
//! once to count its requests, then again and again with a kill at one gate each.

use std::process::{Child, Stdio};
use std::sync::Arc;

use rustix::process::Signal;

use crate::kill::{Scene, assert_swept, chosen, many_parts};
use crate::support::bucket::{Kind as ServerKind, Server};
use crate::support::daemon::Daemon;
use crate::support::home::{Home, Remote, age};
use crate::support::proxy::{Proxy, Side};
use crate::support::{PATIENCE, seed, try_wait_for, wait_for};

/// A server with a proxy before it, and as many homes as a scenario needs.
struct Bench {
    server: Arc<Server>,
    proxy: Proxy,
    seed: u64,
}

impl Bench {
    fn new(name: &str) -> Option<Bench> {
        let server = Arc::new(Server::start_or_skip(ServerKind::S3sFs, name)?);
        let proxy = Proxy::start(server.client.address(), 1);
        Some(Bench { server, proxy, seed: seed(name) })
    }

    /// A scene with a project of its own.
    fn scene(&self) -> Scene {
        let remote = Remote::new(&self.server).through(&self.proxy);
        Scene::in_home(Home::with(remote), self.seed)
    }

    /// Waits until the proxy holds the request of the gate, or the work is over; then kills.
    fn kill_at_the_gate(&self, daemon: &mut Daemon, mut over: impl FnMut() -> bool) -> bool {
        try_wait_for(PATIENCE, || {
            (self.proxy.holds() || over() || daemon.exited().is_some()).then_some(())
        });
        let held = self.proxy.holds();
        daemon.kill9();
        // The held request is dropped with its client's connection; only then may the gate be taken away.
        self.proxy.settle();
        self.proxy.release();
        held
    }
}

/// A gate: the number of a request, counted from the start of the work, and the side.
fn gate(number: usize) -> (usize, Side) {
    (number.div_ceil(2), if number % 2 == 1 { Side::Before } else { Side::After })
}

/// A scenario of one `--once` that `prepare` makes ready.
fn once_at_every_request(name: &str, prepare: impl Fn(&Bench) -> Scene) {
    let Some(bench) = Bench::new(name) else { return };
    let scene = prepare(&bench);
    bench.proxy.forget();
    scene.home.once();
    let gates = 2 * bench.proxy.count();
    println!("{name}: {:?}", bench.proxy.by_kind());
    let mut litter = scene.recovered(&format!("{name}: unharmed"));
    for number in chosen(name, gates, bench.seed) {
        let scene = prepare(&bench);
        let (request, side) = gate(number);
        bench.proxy.hold(request, None, side);
        let mut daemon = Daemon::spawn(&scene.home, &["--once"]);
        let held = bench.kill_at_the_gate(&mut daemon, || false);
        let seed = bench.seed;
        let when = format!("{name}: request {request}, {side:?} (held: {held}, seed {seed})");
        scene.interrupted(&when);
        litter.extend(scene.recovered(&when));
    }
    assert_swept(&litter);
}

#[test]
fn t27_t43_kill_at_every_request_of_capture_and_send() {
    once_at_every_request("bucket: capture and send", Bench::scene);
}

#[test]
fn t27_t43_kill_at_every_request_of_growth() {
    once_at_every_request("bucket: growth", |bench| {
        let mut scene = bench.scene();
        scene.home.once();
        scene.grow(3);
        scene
    });
}

#[test]
fn t27_t43_kill_at_every_request_of_a_rewrite() {
    once_at_every_request("bucket: rewrite", |bench| {
        let mut scene = bench.scene();
        scene.home.once();
        scene.transcripts[0].replace(&scene.planted);
        scene.transcripts[2].truncate();
        scene.transcripts[2].grow(&scene.planted, 2);
        scene.transcripts.iter().for_each(|one| age(&one.path));
        scene
    });
}

#[test]
fn t27_t31_t43_kill_at_every_request_of_rebuilding_a_lost_state() {
    once_at_every_request("bucket: rebuilding", |bench| {
        let mut scene = bench.scene();
        scene.home.once();
        std::fs::remove_dir_all(scene.home.state_dir()).unwrap();
        scene.grow(2);
        scene
    });
}

/// A scenario of a running daemon: `act` makes it work, and returns the client that waits for it, if there is one.
fn daemon_at_every_request(
    name: &str,
    prepare: impl Fn(Scene) -> Scene,
    act: impl Fn(&mut Scene, &Daemon) -> Option<Child>,
) {
    let Some(bench) = Bench::new(name) else { return };
    let mut litter = Vec::new();
    let mut left = vec![usize::MAX];
    let mut counted = false;
    while let Some(number) = left.pop() {
        let mut scene = prepare(bench.scene());
        let mut daemon = Daemon::start(&scene.home, &["--interval", "10m"]);
        bench.proxy.forget();
        let (request, side) = gate(number);
        if counted {
            bench.proxy.hold(request, None, side);
        }
        let mut work = act(&mut scene, &daemon);
        let mut over = || work.as_mut().is_some_and(|work| work.try_wait().unwrap().is_some());
        let held = if counted {
            bench.kill_at_the_gate(&mut daemon, over)
        } else {
            wait_for("the unharmed work", || (over() || daemon.exited().is_some()).then_some(()));
            println!("{name}: {:?}", bench.proxy.by_kind());
            left = chosen(name, 2 * bench.proxy.count(), bench.seed);
            counted = true;
            daemon.kill9();
            false
        };
        work.iter_mut().for_each(|work| drop(work.wait()));
        let seed = bench.seed;
        let when = format!("{name}: request {request}, {side:?} (held: {held}, seed {seed})");
        bench.proxy.settle();
        scene.interrupted(&when);
        litter.extend(scene.recovered(&when));
    }
    assert_swept(&litter);
}

#[test]
fn t27_t40_t43_kill_at_every_request_of_compaction() {
    daemon_at_every_request("bucket: compaction", many_parts, |scene, _| {
        let id = scene.transcripts[0].id.clone();
        let mut command = scene.home.tracecraftctl();
        command.args(["compact", &id, "--keep-tail", "1"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Some(command.spawn().unwrap())
    });
}

#[test]
fn t27_t43_kill_at_every_request_of_the_drain() {
    let prepare = |scene: Scene| {
        scene.home.once();
        scene
    };
    daemon_at_every_request("bucket: drain", prepare, |scene, daemon| {
        scene.grow(3);
        daemon.signal(Signal::TERM);
        None
    });
}
