//! What is written and asked, by rendering; which manager is found, by tables.

#![allow(clippy::disallowed_methods, reason = "these files belong to the tests")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tracecraft::setup::{Survey, Vars};

use crate::render::json;
use crate::render::tests::golden;

use super::manager::{Facts, Manager, decide};
use super::{examine, install, launchd, manager, program, report, shell, systemd, uninstall};

fn vars(all: &[(&str, &str)]) -> Vars {
    all.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

fn survey(socket: &str) -> Survey {
    Survey {
        config_file: "/home/ada/.config/tracecraft/config.toml".into(),
        is_default_file: true,
        state_dir: "/home/ada/.local/state/tracecraft".into(),
        socket: socket.into(),
        store: "file:///b".into(),
        store_dir: Some("/b".into()),
        wanted: vec![],
        credentials: vec![],
        unseen: vec![],
    }
}

#[test]
fn the_shapes_of_json_are_those_of_the_golden_files() {
    let units = ["/home/ada/.config/systemd/user/tracecraftd.service".into()];
    let installed = install::Installed {
        manager: "systemd",
        units: units.to_vec(),
        packaged: false,
        program: Some("/home/ada/bin/tracecraftd".into()),
        config: "/home/ada/.config/tracecraft/config.toml".into(),
        written: vec!["codex_home"],
        socket: RUN.into(),
        store: "file:///b".into(),
        pid: 67,
        version: "0.1.0".into(),
        notes: vec!["it ends when you log out".into()],
    };
    golden("service-install.json", &json(&installed));
    let report = report::Report {
        manager: "systemd",
        installed: true,
        enabled: true,
        active: false,
        state: "failed (failed)".into(),
        result: "exit-code".into(),
        pid: 0,
        restarts: 3,
        unit: Some(units[0].clone()),
        says: "recording: everything is safe".into(),
        notes: vec!["its socket has failed, too".into()],
    };
    golden("service-status.json", &json(&report));
    golden("service-restart.json", &json(&install::Restarted { pid: 68, version: "0.1.0".into() }));
    let state = "/home/ada/.local/state/tracecraft".into();
    let kept = vec![uninstall::Kept { what: "state", path: state }];
    let removed = units.to_vec();
    let done = uninstall::Uninstalled { manager: "systemd", removed, kept };
    golden("service-uninstall.json", &json(&done));
}

const RUN: &str = "/run/user/7/tracecraft/tracecraftd.sock";

#[test]
fn units_name_the_program_and_the_socket_of_this_machine_and_keep_all_else() {
    let vars = vars(&[("XDG_RUNTIME_DIR", "/run/user/7")]);
    let dir = Path::new("/u");
    let [service, socket] =
        systemd::render(dir, Path::new("/opt/t/tracecraftd"), &survey(RUN), &vars);
    assert_eq!(service.path, Path::new("/u/tracecraftd.service"));
    assert!(service.text.starts_with(systemd::MARK), "{}", service.text);
    assert!(service.text.contains("\nExecStart=/opt/t/tracecraftd\n"), "{}", service.text);
    for line in ["Type=notify", "NotifyAccess=main", "LimitCORE=0", "WantedBy=default.target"] {
        assert!(service.text.contains(&format!("\n{line}\n")), "{line}");
    }
    assert!(socket.text.contains("\nListenStream=%t/tracecraft/tracecraftd.sock\n"));

    let mut other = survey("/srv/100% mine/s");
    other.is_default_file = false;
    other.config_file = "/srv/my $config.toml".into();
    let odd = Path::new("/opt/Ada's \"tools\"/100%/tracecraftd");
    let [service, socket] = systemd::render(dir, odd, &other, &vars);
    let exec =
        r#"ExecStart="/opt/Ada's \"tools\"/100%%/tracecraftd" --config "/srv/my $$config.toml""#;
    assert!(service.text.contains(&format!("\n{exec}\n")), "{}", service.text);
    assert!(socket.text.contains("\nListenStream=/srv/100%% mine/s\n"), "{}", socket.text);
}

#[test]
fn a_unit_is_out_of_date_by_its_lines_and_not_by_what_install_was_given() {
    let vars = vars(&[("XDG_RUNTIME_DIR", "/run/user/7")]);
    let [is, socket] =
        systemd::render(Path::new("/u"), Path::new("/opt/tracecraftd"), &survey(RUN), &vars);
    let mut given = survey("/run/mine.sock");
    (given.is_default_file, given.config_file) = (false, "/srv/c.toml".into());
    let [told, told_socket] =
        systemd::render(Path::new("/u"), Path::new("/opt/tracecraftd"), &given, &vars);
    assert!(is.text != told.text && !examine::is_outdated(&told.text, &is.text));
    assert!(!examine::is_outdated(&told_socket.text, &socket.text));
    let [moved, _] =
        systemd::render(Path::new("/u"), Path::new("/usr/bin/tracecraftd"), &survey(RUN), &vars);
    assert!(examine::is_outdated(&is.text, &moved.text));
    assert!(examine::is_outdated(&is.text.replace("LimitCORE=0\n", ""), &is.text));
}

#[test]
fn several_names_of_one_program_are_one() {
    let scratch = tempfile::tempdir().unwrap();
    let dirs = ["a", "b", "c"].map(|name| scratch.path().join(name));
    for dir in &dirs {
        std::fs::create_dir_all(dir).unwrap();
    }
    for dir in &dirs[..2] {
        let path = dir.join("tracecraftd");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let first = dirs[0].join("tracecraftd");
    std::os::unix::fs::symlink(&first, dirs[2].join("tracecraftd")).unwrap();
    assert_eq!(program::different(&dirs), [first.clone(), dirs[1].join("tracecraftd")]);
    assert_eq!(program::different(&[dirs[2].clone(), dirs[0].clone()]).len(), 1);
}

#[test]
fn a_unit_of_somebody_else_is_neither_replaced_nor_removed() {
    let scratch = tempfile::tempdir().unwrap();
    let vars = vars(&[]);
    let units = systemd::render(scratch.path(), Path::new("/t"), &survey(RUN), &vars);
    assert!(systemd::write(&units).unwrap());
    assert!(!systemd::write(&units).unwrap(), "again is no change");
    std::fs::write(&units[0].path, "[Service]\nExecStart=/mine\n").unwrap();
    assert!(systemd::write(&units).is_err());
    assert_eq!(systemd::remove(scratch.path()).unwrap(), [units[1].path.clone()]);
    assert!(units[0].path.exists() && !units[1].path.exists());
}

#[test]
fn units_of_a_package_are_used_where_both_are_there() {
    let scratch = tempfile::tempdir().unwrap();
    let dirs = ["etc", "lib"].map(|name| scratch.path().join(name));
    assert_eq!(systemd::packaged_in(&dirs), None);
    for name in [systemd::SERVICE, systemd::SOCKET] {
        std::fs::create_dir_all(&dirs[1]).unwrap();
        std::fs::write(dirs[1].join(name), "").unwrap();
    }
    std::fs::create_dir_all(&dirs[0]).unwrap();
    std::fs::write(dirs[0].join(systemd::SERVICE), "").unwrap();
    assert_eq!(systemd::packaged_in(&dirs), Some(dirs[1].clone()));
}

#[test]
fn the_program_is_the_one_beside_us_under_its_name_in_path() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = |name: &str| {
        let dir = scratch.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    };
    let place = |dir: &Path| {
        let path = dir.join("tracecraftd");
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    };
    let (cellar, bin, other) = (dir("cellar/1.0"), dir("bin"), dir("other"));
    let path = [other.clone(), bin.clone()];
    assert_eq!(program::choose(Some(&cellar), &path), None);
    let elsewhere = place(&other);
    assert_eq!(program::choose(Some(&cellar), &path), Some(elsewhere));
    let own = place(&cellar);
    assert_eq!(
        program::choose(Some(&cellar), &path),
        Some(own.clone()),
        "the other is another one"
    );
    std::os::unix::fs::symlink(&own, bin.join("tracecraftd")).unwrap();
    assert_eq!(program::choose(Some(&cellar), &path), Some(bin.join("tracecraftd")));
    assert!(program::doubts(Path::new("/home/ada/t/target/release/tracecraftd")).is_some());
    assert!(program::doubts(Path::new("/usr/bin/tracecraftd")).is_none());
}

fn facts() -> Facts {
    Facts {
        is_macos: false,
        uid: 1000,
        user: "ada".into(),
        booted: true,
        is_wsl: false,
        runtime_dir: Some("/run/user/1000".into()),
        has_run_user: true,
        answer: Err("Failed to connect to bus: No medium found".into()),
    }
}

#[test]
fn t70_without_a_user_bus_a_person_is_told_how_to_get_one() {
    let told = |facts: Facts| match decide(facts) {
        Manager::None(absence) => {
            let failure = absence.failure();
            assert_eq!(failure.exit(), 6);
            failure.text()
        }
        found => panic!("{found:?}"),
    };
    let table = [
        (Facts { runtime_dir: None, ..facts() }, "export XDG_RUNTIME_DIR=/run/user/1000"),
        (
            Facts { runtime_dir: Some("/run/user/0".into()), ..facts() },
            "export XDG_RUNTIME_DIR=/run/user/1000",
        ),
        (
            Facts { runtime_dir: None, has_run_user: false, ..facts() },
            "sudo loginctl enable-linger ada",
        ),
        (facts(), "sudo systemctl start user@1000.service"),
        (Facts { booted: false, is_wsl: true, ..facts() }, "systemd=true"),
        (Facts { booted: false, ..facts() }, "*/5 * * * * tracecraftd --once"),
    ];
    for (facts, expected) in table {
        let text = told(facts.clone());
        assert!(text.contains(expected), "{facts:?}: {text}");
        assert!(text.contains("\ntry: "), "{text}");
    }
    let answer = Ok("HOME=/h\nA=$'x y\\'z'\n".to_owned());
    let found = decide(Facts { answer, booted: false, ..facts() });
    assert_eq!(found, Manager::Systemd(vars(&[("HOME", "/h"), ("A", "x y'z")])));
}

#[test]
fn t70_lingering_is_spoken_of_where_a_session_would_end_the_service() {
    let root = tempfile::tempdir().unwrap();
    let words = || manager::linger_words("ada", root.path());
    assert_eq!(words(), None, "nothing ends sessions here");
    std::fs::create_dir_all(root.path().join("run/systemd/seats")).unwrap();
    assert!(words().unwrap().ends_with("loginctl enable-linger ada"));
    let kept = root.path().join("var/lib/systemd/linger/ada");
    std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
    std::fs::File::create(kept).unwrap();
    assert_eq!(words(), None, "it is so already");
}

#[test]
fn directories_are_those_of_the_manager() {
    let ours = tracecraft::paths::Bases {
        home: "/h".into(),
        config: "/shell/config".into(),
        state: Some("/shell/state".into()),
        data: "/shell/data".into(),
        runtime: None,
    };
    let service = vars(&[
        ("HOME", "/h"),
        ("XDG_STATE_HOME", "/m/state"),
        ("XDG_DATA_HOME", "relative"),
        ("XDG_RUNTIME_DIR", "/run/user/7"),
    ]);
    if cfg!(target_os = "macos") {
        return;
    }
    let found = shell::bases(ours, &service);
    assert_eq!(found.state, Some("/m/state".into()));
    assert_eq!((found.config, found.data), ("/h/.config".into(), "/h/.local/share".into()));
    assert_eq!(found.runtime, Some("/run/user/7".into()));
    assert_eq!(
        systemd::unit_dir(&service, Path::new("/h")),
        PathBuf::from("/h/.config/systemd/user")
    );
}

#[test]
fn t71_an_agent_of_launchd_starts_at_login_and_stores_what_is_left_at_its_end() {
    let home = Path::new("/Users/ada & co");
    let mut found = survey("/s");
    found.is_default_file = false;
    let plist = launchd::render(Path::new("/opt/homebrew/bin/tracecraftd"), &found, home);
    for part in [
        "<array>\n        <string>/opt/homebrew/bin/tracecraftd</string>\n        <string>--config</string>\n        <string>/home/ada/.config/tracecraft/config.toml</string>\n    </array>",
        "<key>RunAtLoad</key>\n    <true/>",
        "<key>SuccessfulExit</key>\n        <false/>",
        "<key>ThrottleInterval</key>\n    <integer>5</integer>",
        "<key>ExitTimeOut</key>\n    <integer>30</integer>",
        "<key>Core</key>\n        <integer>0</integer>",
        "<string>/Users/ada &amp; co/Library/Logs/tracecraftd.log</string>",
    ] {
        assert!(plist.contains(part), "{part}\n{plist}");
    }
    let said: Vec<String> = launchd::load_steps(501, Path::new("/p"))
        .iter()
        .map(|(words, _)| words.join(" "))
        .collect();
    let agent = "gui/501/tracecraft.tracecraftd";
    assert_eq!(
        said,
        [
            format!("launchctl enable {agent}"),
            "launchctl bootstrap gui/501 /p".to_owned(),
            format!("launchctl kickstart {agent}"),
        ]
    );
    assert_eq!(launchd::restart(501)[0].0.join(" "), format!("launchctl kickstart -k {agent}"));
    assert_eq!(launchd::unload_step(501).0.join(" "), format!("launchctl bootout {agent}"));
    assert_eq!(report::pid_in("gui/501/x = {\n\tstate = running\n\tpid = 4711\n}"), 4711);
}

#[test]
fn what_waits_is_counted_in_the_outboxes_of_all_stores() {
    let scratch = tempfile::tempdir().unwrap();
    let state = scratch.path();
    assert_eq!(uninstall::waiting(state), 0);
    for file in ["outbox/a", "outbox/codex/x/b", "stores/01ab/outbox/c", "stores/01ab/state.json"] {
        let path = state.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "").unwrap();
    }
    assert_eq!(uninstall::waiting(state), 3);
}
