//! What a manager hears, told to a datagram socket in a scratch directory.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::*;
use crate::api::{Pending, SessionCounts};
use crate::mirror::handle::Command;

fn status(phase: Phase, parts: u64) -> Status {
    Status {
        version: "0".into(),
        protocol: 1,
        pid: 1,
        uptime_seconds: 0,
        phase,
        store: "file:///s".into(),
        state_dir: "/s".into(),
        interval_ms: 5000,
        redact: true,
        compaction: "auto".into(),
        roots: vec![],
        sessions: SessionCounts { total: 3, ..SessionCounts::default() },
        stored_bytes: 10 - parts.min(10),
        pending: Pending { parts, bytes: parts, oldest_seconds: None },
        last_stored_at: None,
        last_flush_at: None,
        problems_left_out: 0,
        usage: None,
        stalled_seconds: None,
        remote: None,
        problems: vec![],
    }
}

fn notifier(address: &str, more: &[(&str, &str)]) -> Notifier {
    let mut vars: BTreeMap<String, OsString> =
        more.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
    vars.insert("NOTIFY_SOCKET".into(), address.into());
    Notifier::new(|name| vars.get(name).cloned())
}

fn manager(path: &Path) -> UnixDatagram {
    let socket = UnixDatagram::bind(path).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// Everything that was told since the last time.
fn heard(manager: &UnixDatagram) -> Vec<String> {
    let mut buffer = [0; 4096];
    let receive = || {
        let length = manager.recv(&mut buffer).ok()?;
        Some(String::from_utf8(buffer[..length].to_vec()).unwrap())
    };
    std::iter::from_fn(receive).collect()
}

/// A loop that turns when it is asked to, and a mirror whose answers come from a closure.
fn mirror(
    pulse: &Arc<Pulse>,
    mut answer: impl FnMut() -> Status + Send + 'static,
) -> (Mirror, tokio::task::JoinHandle<()>) {
    let (mirror, mut commands): (Mirror, mpsc::Receiver<Command>) = Mirror::new();
    let pulse = pulse.clone();
    let task = tokio::spawn(async move {
        loop {
            pulse.turn();
            tokio::select! {
                () = pulse.asked() => {}
                command = commands.recv() => match command {
                    Some(Command::Status(reply)) => drop(reply.send(Ok(answer()))),
                    _ => return,
                },
            }
        }
    });
    (mirror, task)
}

#[tokio::test(start_paused = true)]
async fn t65_a_mirror_that_turns_gives_signs_of_life_and_one_that_hangs_gives_none() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("notify");
    let manager = manager(&path);
    let pid = std::process::id().to_string();
    let vars = [("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", pid.as_str())];
    let notifier = notifier(path.to_str().unwrap(), &vars);
    let pulse = Arc::new(Pulse::default());
    let (mirror, task) = mirror(&pulse, || status(Phase::Recording, 0));
    let follow = notifier.accompany(&pulse, &mirror);
    tokio::select! {
        () = follow => panic!("it ended"),
        () = tokio::time::sleep(Duration::from_secs(95)) => {}
    }
    let told = heard(&manager);
    assert!(told[0].starts_with("READY=1\n"), "{told:?}");
    let alive = |told: &[String]| told.iter().filter(|one| one.contains("WATCHDOG=1")).count();
    assert_eq!(alive(&told), 10, "{told:?}");
    let lines = told.iter().filter(|one| one.contains("STATUS=recording")).count();
    assert_eq!(lines, 1, "a line is told when it changes: {told:?}");
    task.abort();
    let _ = task.await;
    tokio::select! {
        () = notifier.accompany(&pulse, &mirror) => panic!("it ended"),
        () = tokio::time::sleep(Duration::from_secs(95)) => {}
    }
    assert_eq!(heard(&manager), Vec::<String>::new(), "nothing turns");
}

#[tokio::test(start_paused = true)]
async fn t66_a_drain_that_gets_on_asks_for_time_and_one_that_stalls_does_not() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("notify");
    let manager = manager(&path);
    let notifier = notifier(path.to_str().unwrap(), &[]);
    let pulse = Arc::new(Pulse::default());
    let mut left = 6;
    let (mirror, _task) = mirror(&pulse, move || {
        left = (left - 1).max(2);
        status(Phase::Stopping, left)
    });
    notifier.stopping();
    tokio::select! {
        () = notifier.accompany(&pulse, &mirror) => panic!("it ended"),
        () = tokio::time::sleep(Duration::from_secs(15)) => {}
    }
    let told = heard(&manager);
    assert!(told[0].starts_with("STOPPING=1\n"), "{told:?}");
    let asked = told.iter().filter(|one| one.contains("EXTEND_TIMEOUT_USEC=10000000")).count();
    assert_eq!(asked, 4, "5, 4, 3 and 2 parts: {told:?}");
}

#[tokio::test]
async fn a_manager_is_told_by_path_and_by_abstract_name_and_nobody_is_no_fault() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("notify");
    let manager = manager(&path);
    let there = notifier(path.to_str().unwrap(), &[]);
    there.reloading();
    there.reloaded();
    let told = heard(&manager);
    assert!(told[0].starts_with("RELOADING=1\nMONOTONIC_USEC="), "{told:?}");
    assert_eq!(told[1], "READY=1");
    drop(manager);
    there.reloaded();
    for address in ["/nowhere/at/all", "relative", "vsock:2:1"] {
        let nobody = notifier(address, &[]);
        assert!(nobody.socket.is_none(), "{address}");
        nobody.stopping();
    }
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("tracecraft-test-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        manager.set_nonblocking(true).unwrap();
        notifier(&format!("@{name}"), &[]).reloaded();
        assert_eq!(heard(&manager), ["READY=1"]);
    }
}

#[test]
fn a_watchdog_of_another_process_is_not_ours() {
    let limit = |vars: &[(&str, &str)]| notifier("/nowhere", vars).watchdog;
    let own = std::process::id().to_string();
    assert_eq!(limit(&[("WATCHDOG_USEC", "3000000")]), Some(Duration::from_secs(3)));
    let pid = |pid| [("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", pid)];
    assert_eq!(limit(&pid(&own)), Some(Duration::from_secs(3)));
    for vars in [&pid("1")[..], &pid("")[..], &[("WATCHDOG_USEC", "0")], &[("WATCHDOG_USEC", "x")]]
    {
        assert_eq!(limit(vars), None, "{vars:?}");
    }
}

#[test]
fn the_status_line_says_what_the_mirror_does() {
    let table = [
        (status(Phase::Starting, 0), "looking for sessions"),
        (status(Phase::Recording, 0), "recording, everything is safe (3 sessions)"),
        (status(Phase::Recording, 1), "recording, 1 part waits for the store"),
        (status(Phase::Stopping, 2), "storing what is left: 2 parts wait for the store"),
        (status(Phase::Stopping, 0), "storing what is left"),
    ];
    for (status, line) in table {
        assert_eq!(status_line(&status), line);
    }
}

#[test]
fn the_first_socket_that_will_do_is_taken_and_all_others_are_closed() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let listeners = ["a", "b", "c"].map(|name| UnixListener::bind(path(name)).unwrap());
    let handed = Handed { listeners: listeners.into(), faults: vec!["fd 9 is no socket".into()] };
    let is_b = |listener: UnixListener| match listener.local_addr().unwrap().as_pathname() {
        Some(at) if at == path("b") => Ok(listener),
        _ => Err("not this one".to_owned()),
    };
    let taken = handed.choose(is_b).unwrap();
    assert!(std::os::unix::net::UnixStream::connect(path("b")).is_ok());
    for closed in ["a", "c"] {
        assert!(std::os::unix::net::UnixStream::connect(path(closed)).is_err(), "{closed}");
    }
    drop(taken);
    assert!(Handed::default().choose(is_b).is_none());
}
