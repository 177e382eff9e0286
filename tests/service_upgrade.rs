//! What a service's end must not cost: an upload that is in flight, and a session that goes on while the program is replaced.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::bucket::{Kind as ServerKind, Server};
use crate::support::daemon::{ctl_ok, status};
use crate::support::home::Remote;
use crate::support::judge;
use crate::support::manager::{SERVICE, SOCKET, beside_a_manager};
use crate::support::oracle::Bucket;
use crate::support::planted::Planted;
use crate::support::proxy::{Kind, Proxy, Side};
use crate::support::writers::Transcript;
use crate::support::{wait_for, wait_until_ok};

/// How often the program is replaced.
const UPGRADES: usize = 3;

/// Between two writes of one record.
const PAUSE: Duration = Duration::from_millis(2);

#[test]
fn t68_an_upgrade_with_live_sessions_loses_and_doubles_nothing() {
    let name = "service_upgrade::t68_an_upgrade_with_live_sessions_loses_and_doubles_nothing";
    beside_a_manager(name, |managed| {
        let home = &managed.home;
        let planted = Planted::exact_only(68);
        let mut transcripts: Vec<_> = ["claude-code", "codex", "openclaw"]
            .into_iter()
            .zip(0..)
            .map(|(harness, number)| Transcript::new(home, harness, number, 68))
            .collect();
        transcripts.iter_mut().for_each(|one| one.grow(&planted, 2));
        managed.drop_in("Environment=TRACECRAFT_INTERVAL=100ms");
        managed.service_ok(&["install"]);
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let writers: Vec<_> = transcripts
                .iter_mut()
                .map(|one| {
                    let (over, planted) = (&over, &planted);
                    scope.spawn(move || {
                        while !over.load(Ordering::Relaxed) {
                            one.burst(planted, 4, PAUSE);
                        }
                    })
                })
                .collect();
            let mut before = managed.pid().unwrap();
            for _ in 0..UPGRADES {
                let seen = || status(home).and_then(|status| status["stored_bytes"].as_u64());
                let stored = seen().unwrap();
                managed.put_programs();
                managed.service_ok(&["restart"]);
                let now = managed.pid().unwrap();
                assert_ne!(now, before);
                before = now;
                let program = fs::read_link(format!("/proc/{now}/exe")).unwrap();
                assert_eq!(program, managed.bin("tracecraftd"), "it runs the new one");
                wait_for("the new one to store", || seen().filter(|bytes| *bytes > stored));
            }
            over.store(true, Ordering::Relaxed);
            writers.into_iter().for_each(|writer| writer.join().unwrap());
        });
        ctl_ok(home, &["flush"]);
        let sources: Vec<_> = transcripts.iter().map(|one| one.source(&planted)).collect();
        // What the daemon merges by itself may be under way yet.
        wait_until_ok("the bucket to come to rest", || {
            judge::verdict(judge::at_rest(&Bucket::read(home.objects()), &sources))
        });
        assert_eq!(managed.property(SERVICE, "NRestarts"), "0");
    });
}

#[test]
fn t28_t66_a_stop_with_an_upload_in_flight_waits_for_it() {
    let name = "service_upgrade::t28_t66_a_stop_with_an_upload_in_flight_waits_for_it";
    beside_a_manager(name, |mut managed| {
        let Some(server) = Server::start_or_skip(ServerKind::S3sFs, name) else { return };
        let server = Arc::new(server);
        let proxy = Proxy::start(server.client.address(), 28);
        let keys = format!(
            "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            server.client.access_key, server.client.secret_key
        );
        managed.home = managed.home.and(Remote::new(&server).through(&proxy));
        let home = &managed.home;
        fs::create_dir(home.path().join(".aws")).unwrap();
        fs::write(home.path().join(".aws/credentials"), keys).unwrap();
        let planted = Planted::exact_only(28);
        let mut transcript = Transcript::new(home, "codex", 1, 28);
        transcript.grow(&planted, 3);
        proxy.hold(1, Some(Kind::PutPart), Side::Before);
        managed.service_ok(&["install"]);
        wait_for("the upload", || proxy.holds().then_some(()));
        managed.systemctl(&["stop", "--no-block", SOCKET, SERVICE]);
        wait_for("the drain", || {
            (managed.property(SERVICE, "StatusText").starts_with("storing")).then_some(())
        });
        proxy.release();
        managed.wait_for_state("inactive");
        assert_eq!(managed.property(SERVICE, "Result"), "success");
        assert_eq!(managed.property(SERVICE, "ExecMainStatus"), "0");
        let sources = [transcript.source(&planted)];
        judge::verdict(judge::at_rest(&Bucket::read(home.objects()), &sources)).unwrap();
    });
}
