//! The daemon as a service of a real user manager: it starts, is found, comes back, gives up, is hardened, and goes without a trace.
//!
//! Each test runs beside a manager of its own (`support/manager.rs`), or says why it cannot. What needs no manager is here, too:
//! a socket that was passed, and what a person is told where there is none.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::daemon::{Daemon, ctl_ok, status};
use crate::support::home::{Home, files_below, run, said};
use crate::support::judge;
use crate::support::manager::{Managed, SERVICE, SOCKET, beside_a_manager};
use crate::support::oracle::Bucket;
use crate::support::planted::Planted;
use crate::support::writers::Transcript;
use crate::support::{skipped, wait_for, wait_until_ok};

/// Restarts come soon, so that a test need not wait as long as a machine.
const SOON: &str = "RestartSec=100ms";

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The process that answers at the socket.
fn answering(managed: &Managed) -> Option<u64> {
    status(&managed.home)?["pid"].as_u64()
}

#[test]
fn t64_t65_one_command_and_it_runs_comes_back_after_a_kill_and_starts_for_its_first_client() {
    let name = "service::t64_t65_one_command_and_it_runs_comes_back_after_a_kill_and_starts_for_its_first_client";
    beside_a_manager(name, |managed| {
        managed.drop_in(SOON);
        let done = json(&managed.service_ok(&["install", "--json"]));
        assert_eq!(done["manager"], "systemd");
        assert_eq!(done["program"], managed.bin("tracecraftd").to_str().unwrap());
        assert_eq!(done["pid"].as_u64(), managed.pid().map(u64::from));
        let first = managed.pid().unwrap();
        assert_eq!(answering(&managed), Some(first.into()));
        for unit in [SERVICE, SOCKET] {
            assert_eq!(managed.systemctl(&["is-enabled", unit]), "enabled");
        }
        // Once more is no harm, and no restart.
        managed.service_ok(&["install"]);
        assert_eq!(managed.pid(), Some(first));

        managed.signal(Signal::KILL);
        wait_for("the next one", || managed.pid().filter(|pid| *pid != first));
        let second = wait_for("an answer", || answering(&managed));
        assert_eq!(managed.property(SERVICE, "NRestarts"), "1");
        assert_ne!(second, u64::from(first));

        managed.systemctl(&["stop", SERVICE]);
        assert_eq!(managed.pid(), None);
        let third = answering(&managed).expect("a client waits until the daemon is there");
        assert!(third != second, "it was started for the client");
        assert_eq!(managed.pid().map(u64::from), Some(third));
        wait_for("the daemon to say what it does", || {
            let says = managed.property(SERVICE, "StatusText");
            says.starts_with("recording, everything is safe").then_some(())
        });
        let report = json(&managed.service_ok(&["status", "--json"]));
        assert!(report["active"] == true && report["enabled"] == true, "{report}");
    });
}

#[test]
fn t65_a_daemon_that_hangs_is_restarted_by_the_watchdog() {
    let name = "service::t65_a_daemon_that_hangs_is_restarted_by_the_watchdog";
    beside_a_manager(name, |managed| {
        managed.drop_in(&format!("{SOON}\nWatchdogSec=2s"));
        managed.service_ok(&["install"]);
        let first = managed.pid().unwrap();
        managed.signal(Signal::STOP);
        let next = wait_for("the watchdog", || managed.pid().filter(|pid| *pid != first));
        wait_for("an answer", || answering(&managed).filter(|pid| *pid == u64::from(next)));
        assert_eq!(managed.property(SERVICE, "NRestarts"), "1");
        assert!(!managed.home.path().join("core").exists());
    });
}

#[test]
fn t67_a_crash_loop_is_throttled_given_up_and_ended_by_a_person() {
    let name = "service::t67_a_crash_loop_is_throttled_given_up_and_ended_by_a_person";
    beside_a_manager(name, |managed| {
        managed.service_ok(&["install"]);
        assert_eq!(managed.property(SERVICE, "RestartUSec"), "5s");
        managed.drop_in(&format!("{SOON}\nType=simple\nExecStart=\nExecStart=/bin/false"));
        let output = managed.service(&["restart"]);
        assert!(!output.status.success(), "{}", said(&output));
        wait_for("systemd to give up", || {
            let given_up = managed.property(SERVICE, "Result") == "start-limit-hit"
                || managed.property(SOCKET, "Result") == "service-start-limit-hit";
            given_up.then_some(())
        });
        let restarts: u32 = managed.property(SERVICE, "NRestarts").parse().unwrap();
        assert!((1..=12).contains(&restarts), "{restarts} restarts");
        let output = managed.service(&["status"]);
        assert_eq!(output.status.code(), Some(3), "{}", said(&output));
        assert!(said(&output).contains("try: "), "{}", said(&output));

        managed.no_drop_in();
        managed.service_ok(&["restart"]);
        assert!(answering(&managed).is_some());
        // A configuration that a person has to correct is not tried again.
        let config = managed.home.path().join(".config/tracecraft/config.toml");
        fs::create_dir_all(config.parent().unwrap()).unwrap();
        fs::write(&config, "stroe = \"x\"\n").unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
        managed.systemctl(&["stop", SOCKET, SERVICE]);
        let output = run(managed.home.command("systemctl").args(["--user", "start", SERVICE]));
        assert!(!output.status.success());
        managed.wait_for_state("failed");
        assert_eq!(managed.property(SERVICE, "ExecMainStatus"), "2");
        assert_eq!(managed.property(SERVICE, "NRestarts"), "0");
    });
}

/// Asks for what a service of ours never needs, and for what it does; one line each.
const PROBE: &str = r#"#!/usr/bin/env python3
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *words):
    if getattr(libc, name)(*words) < 0:
        raise OSError(ctypes.get_errno(), name)
def suid():
    path = os.path.join(sys.argv[1], "suid")
    open(path, "w").close()
    os.chmod(path, 0o4700)
asks = {
    "namespace": lambda: call("unshare", 0x10000000),
    "packets": lambda: socket.socket(17, socket.SOCK_RAW),
    "mount": lambda: call("mount", b"x", b"/mnt", b"tmpfs", 0, None),
    "trace": lambda: call("ptrace", 0, 0, None, None),
    "personality": lambda: call("personality", 8),
    "real time": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "suid": suid,
    "inet": lambda: socket.socket().close(),
    "unix": lambda: socket.socket(socket.AF_UNIX).close(),
    "names": lambda: socket.getaddrinfo("localhost", 80),
    "child": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
}
with open(os.path.join(sys.argv[1], "probe"), "w") as out:
    for name, ask in asks.items():
        try:
            ask()
            out.write(f"{name}: yes\n")
        except OSError:
            out.write(f"{name}: no\n")
"#;

#[test]
fn each_line_of_hardening_holds_in_a_user_unit() {
    let name = "service::each_line_of_hardening_holds_in_a_user_unit";
    beside_a_manager(name, |managed| {
        managed.service_ok(&["install"]);
        let of_process = |file: &str| {
            fs::read_to_string(format!("/proc/{}/{file}", managed.pid().unwrap())).unwrap()
        };
        let status = of_process("status");
        for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "Umask:\t0077"] {
            assert!(status.contains(line), "{line}: {status}");
        }
        let limits = of_process("limits");
        let cores = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(cores.split_whitespace().nth(4), Some("0"), "{cores}");
        assert_eq!(of_process("oom_score_adj").trim(), "500");
        assert!(of_process("cgroup").contains("/background.slice/"), "{}", of_process("cgroup"));
        managed.systemctl(&["stop", SOCKET, SERVICE]);

        let python = run(managed.home.command("python3").arg("--version"));
        if !python.status.success() {
            return skipped(name, "there is no python3 for the probe");
        }
        let probe = managed.script("probe.py", PROBE);
        let home = managed.home.path().display();
        let exec = format!("ExecStart={} {home}", probe.display());
        managed.drop_in(&format!("Type=oneshot\nRestart=no\nWatchdogSec=0\nExecStart=\n{exec}"));
        managed.systemctl(&["start", SERVICE]);
        let told = fs::read_to_string(managed.home.path().join("probe")).unwrap();
        let (refused, allowed): (Vec<&str>, Vec<&str>) =
            told.lines().partition(|line| line.ends_with(": no"));
        assert_eq!(allowed, ["inet: yes", "unix: yes", "names: yes", "child: yes"], "{told}");
        assert_eq!(refused.len(), 7, "{told}");
    });
}

#[test]
fn uninstall_leaves_no_file_and_purge_leaves_only_what_is_stored() {
    let name = "service::uninstall_leaves_no_file_and_purge_leaves_only_what_is_stored";
    beside_a_manager(name, |managed| {
        let home = &managed.home;
        let planted = Planted::exact_only(7);
        let mut transcript = Transcript::new(home, "codex", 1, 7);
        transcript.grow(&planted, 3);
        let names = |home: &Home| -> Vec<String> {
            let files = files_below(home.path()).into_iter().map(|(path, _)| path);
            files
                .map(|path| path.strip_prefix(home.path()).unwrap().display().to_string())
                .collect()
        };
        let before = names(home);
        managed.service_ok(&["install"]);
        ctl_ok(home, &["flush"]);
        managed.service_ok(&["uninstall"]);
        assert!(!home.path().join(".config/systemd").exists(), "{:?}", names(home));
        let runtime = std::env::var("XDG_RUNTIME_DIR").unwrap();
        assert!(!std::path::Path::new(&runtime).join("tracecraft").exists());
        wait_for("systemd to forget it", || {
            let known = managed.systemctl(&["list-units", "--all", "--no-legend", "tracecraftd*"]);
            known.is_empty().then_some(())
        });
        let output = managed.service(&["status"]);
        assert_eq!(output.status.code(), Some(3), "{}", said(&output));
        assert!(home.state_dir().join("state.json").exists(), "the state stays");

        managed.service_ok(&["uninstall", "--purge"]);
        let is_new = |name: &&String| !before.contains(name) && !name.contains("/bucket/");
        let left: Vec<String> = names(home).iter().filter(is_new).cloned().collect();
        assert_eq!(left, Vec::<String>::new());
        let sources = [transcript.source(&planted)];
        judge::verdict(judge::at_rest(&Bucket::read(home.objects()), &sources)).unwrap();
    });
}

#[test]
fn uninstall_ends_a_service_whose_files_somebody_removed_before() {
    let name = "service::uninstall_ends_a_service_whose_files_somebody_removed_before";
    beside_a_manager(name, |managed| {
        managed.service_ok(&["install"]);
        let units = managed.home.path().join(".config/systemd/user");
        for unit in [SERVICE, SOCKET] {
            fs::remove_file(units.join(unit)).unwrap();
        }
        managed.systemctl(&["daemon-reload"]);
        assert!(managed.pid().is_some() && units.join("default.target.wants").exists());
        managed.service_ok(&["uninstall"]);
        assert_eq!(managed.pid(), None);
        assert!(!managed.home.path().join(".config/systemd").exists(), "links are left");
    });
}

#[test]
fn t64_a_daemon_by_hand_where_the_manager_listens_says_so_and_starts_no_service() {
    let name =
        "service::t64_a_daemon_by_hand_where_the_manager_listens_says_so_and_starts_no_service";
    beside_a_manager(name, |managed| {
        managed.service_ok(&["install"]);
        managed.systemctl(&["stop", SERVICE]);
        let output = run(&mut managed.home.tracecraftd());
        assert_eq!(output.status.code(), Some(3), "{}", said(&output));
        assert!(
            said(&output).contains("systemctl --user stop tracecraftd.socket"),
            "{}",
            said(&output)
        );
        assert_eq!(managed.pid(), None, "the service was started");
    });
}

#[test]
fn what_runs_is_not_ended_for_a_configuration_that_will_not_do() {
    let name = "service::what_runs_is_not_ended_for_a_configuration_that_will_not_do";
    beside_a_manager(name, |managed| {
        let here = format!("file://{}", managed.home.path().join("here").display());
        let there = format!("file://{}", managed.home.path().join("there").display());
        for _ in 0..2 {
            managed.service_ok(&["install", "--store", &here]);
        }
        let first = managed.pid();
        let output = managed.service(&["install", "--store", &there]);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains("says store = "), "{}", said(&output));
        let config = managed.home.path().join(".config/tracecraft/config.toml");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, format!("{text}stoer = \"x\"\n")).unwrap();
        let output = managed.service(&["restart"]);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains("stoer"), "{}", said(&output));
        assert_eq!((managed.pid(), first.is_some()), (first, true));
        fs::write(&config, text).unwrap();
        managed.service_ok(&["restart"]);
        assert_eq!(status(&managed.home).unwrap()["store"], here);
    });
}

#[test]
fn purge_is_refused_while_parts_wait() {
    let name = "service::purge_is_refused_while_parts_wait";
    beside_a_manager(name, |managed| {
        let home = &managed.home;
        let planted = Planted::exact_only(8);
        let mut transcript = Transcript::new(home, "codex", 1, 8);
        transcript.grow(&planted, 3);
        managed.drop_in("Environment=TRACECRAFT_INTERVAL=100ms");
        managed.service_ok(&["install"]);
        ctl_ok(home, &["flush"]);
        // The disk with the bucket is away, and something else is in its place.
        let away = home.path().join("away");
        fs::rename(home.bucket(), &away).unwrap();
        fs::write(home.bucket(), "").unwrap();
        transcript.grow(&planted, 3);
        let waits = || status(home).filter(|status| status["pending"]["parts"] != 0);
        wait_for("parts that cannot be sent", waits);
        let output = managed.service(&["uninstall", "--purge"]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("nothing was removed"), "{}", said(&output));
        assert!(managed.pid().is_some() && home.state_dir().exists());
        // The same without a daemon that could be asked.
        managed.systemctl(&["stop", SOCKET, SERVICE]);
        let output = managed.service(&["uninstall", "--purge"]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        managed.service_ok(&["uninstall", "--purge", "--force"]);
        assert!(!home.state_dir().exists());
        assert!(away.join("sessions").exists() && transcript.path.exists());
    });
}

/// Prints keys, and keeps what it was given: variables and descriptors.
const KEYS: &str = r#"#!/bin/sh
{ env; ls -l "/proc/$$/fd"; } >"$HOME/seen.new" && mv "$HOME/seen.new" "$HOME/seen"
echo '{"Version": 1, "AccessKeyId": "AKIAIOSFODNN7EXAMPLE", "SecretAccessKey": "abc"}'
"#;

#[test]
fn t69_install_takes_over_what_a_service_does_not_see_and_its_children_see_less() {
    let name =
        "service::t69_install_takes_over_what_a_service_does_not_see_and_its_children_see_less";
    beside_a_manager(name, |managed| {
        let home = &managed.home;
        let codex = home.path().join("elsewhere");
        // A session: without one the bucket is asked for nothing.
        Transcript::new(home, "codex", 1, 69).grow(&Planted::exact_only(69), 1);
        fs::rename(home.path().join(".codex"), &codex).unwrap();
        let secret = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY";
        fs::create_dir(home.path().join(".aws")).unwrap();
        let script = managed.script("keys", KEYS);
        let profile = format!("[profile backup]\ncredential_process = {}\n", script.display());
        fs::write(home.path().join(".aws/config"), profile).unwrap();
        // Nobody listens there.
        let endpoint = "http://127.0.0.1:9";
        let install = |more: &[(&str, &str)]| {
            let mut command = home.command(managed.bin("tracecraftctl").to_str().unwrap());
            command.env("CODEX_HOME", &codex).env("AWS_ENDPOINT_URL", endpoint);
            command.env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE");
            command.env("AWS_SECRET_ACCESS_KEY", secret).envs(more.iter().copied());
            let output =
                run(command.args(["service", "install", "--store", "s3://bucket/project"]));
            assert!(output.status.success(), "{}", said(&output));
            said(&output)
        };
        let told = install(&[]);
        let only = "credentials are in this shell's environment only (AWS_ACCESS_KEY_ID)";
        assert!(told.contains(only), "{told}");
        let told = install(&[("AWS_PROFILE", "backup")]);
        assert!(!told.contains("credentials are"), "{told}");
        assert!(told.contains("store stays as "), "{told}");
        let config = home.path().join(".config/tracecraft/config.toml");
        let config = fs::read_to_string(config).unwrap();
        for line in ["store = \"s3://bucket/project\"", "codex_home = ", "profile = \"backup\""] {
            assert!(config.contains(line), "{line}: {config}");
        }
        assert!(!config.contains(secret) && !config.contains("AKIA"), "{config}");
        let found = status(home).unwrap();
        assert_eq!(found["store"], "s3://bucket/project");
        let watched = || {
            let root = codex.join("sessions");
            let found = status(home)?;
            found["roots"]
                .as_array()?
                .iter()
                .any(|one| one["path"] == root.to_str().unwrap())
                .then_some(())
        };
        wait_for("the service to look where the shell said", watched);
        // What was started for keys has neither the daemon's sockets nor its place with the manager.
        let seen = home.path().join("seen");
        let seen = wait_for("the keys to be asked for", || fs::read_to_string(&seen).ok());
        for name in ["NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "socket:"] {
            assert!(!seen.contains(name), "{name}: {seen}");
        }
        assert!(seen.contains("HOME="), "{seen}");
    });
}

#[test]
fn t70_without_a_manager_the_exit_code_is_6_and_a_person_is_told_what_to_do() {
    let home = Home::new();
    let output = run(home.tracecraftctl().args(["service", "install"]));
    assert_eq!(output.status.code(), Some(6), "{}", said(&output));
    assert!(said(&output).contains("\ntry: "), "{}", said(&output));
    assert_eq!(files_below(home.path()), [], "nothing is written");
}

#[test]
fn t70_with_a_manager_whose_address_is_unknown_the_address_is_told() {
    let name = "service::t70_with_a_manager_whose_address_is_unknown_the_address_is_told";
    beside_a_manager(name, |managed| {
        let mut command = managed.home.command(managed.bin("tracecraftctl").to_str().unwrap());
        let output = run(command.env_remove("XDG_RUNTIME_DIR").args(["service", "status"]));
        assert_eq!(output.status.code(), Some(6), "{}", said(&output));
        let uid = rustix::process::getuid().as_raw();
        let line = format!("export XDG_RUNTIME_DIR=/run/user/{uid}");
        assert!(said(&output).contains(&line), "{}", said(&output));
    });
}

/// A daemon that is handed `listener` as a service manager does it.
fn handed(home: &Home, listener: &UnixListener) -> Daemon {
    let mut command = home.command("sh");
    command.args(["-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" 3<&0 </dev/null"]);
    command.arg(home.tracecraftd().get_program());
    let socket: std::os::fd::OwnedFd = listener.try_clone().unwrap().into();
    Daemon::spawn_with(home, command, Stdio::from(socket))
}

#[test]
fn t64_t69_a_socket_that_was_passed_is_served_and_outlives_the_daemon() {
    let home = Home::new();
    let socket = home.socket();
    let directory = socket.parent().unwrap();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).unwrap();
    let listener = UnixListener::bind(&socket).unwrap();
    let mut daemon = handed(&home, &listener);
    daemon.wait_ready(&home);
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!daemon.said().contains("WARN"), "{}", daemon.said());
    assert_eq!(daemon.term().code(), Some(0), "{}", daemon.said());
    assert!(socket.exists(), "it belongs to who made it");
    UnixStream::connect(&socket).expect("who made it still listens");

    // One that is elsewhere is not what the configuration says: the daemon makes its own.
    drop(listener);
    let listener = UnixListener::bind(home.path().join("elsewhere")).unwrap();
    let mut daemon = handed(&home, &listener);
    daemon.wait_ready(&home);
    assert!(daemon.said().contains("is not used"), "{}", daemon.said());
    assert_eq!(daemon.term().code(), Some(0), "{}", daemon.said());
    assert!(!socket.exists(), "its own goes with it");
    // One whose file was replaced leads nowhere.
    let gone = UnixListener::bind(&socket).unwrap();
    fs::remove_file(&socket).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    let mut daemon = handed(&home, &gone);
    daemon.wait_ready(&home);
    assert!(daemon.said().contains("leads nowhere"), "{}", daemon.said());
}

#[test]
fn a_service_that_runs_by_hand_is_not_doubled() {
    let name = "service::a_service_that_runs_by_hand_is_not_doubled";
    beside_a_manager(name, |managed| {
        let mut daemon = Daemon::start(&managed.home, &[]);
        let output = managed.service(&["install"]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains(&format!("kill {}", daemon.pid())), "{}", said(&output));
        assert_eq!(daemon.term().code(), Some(0));
        wait_until_ok("the service", || match managed.service(&["install"]) {
            output if output.status.success() => Ok(()),
            output => Err(said(&output)),
        });
    });
}
