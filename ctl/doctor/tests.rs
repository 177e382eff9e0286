//! What findings mean, on recorders that are made up; the shape for programs and the page for people against golden files; and
//! the README's table against the codes.

use std::path::Path;

use tracecraft::api::{Coverage, PROTOCOL, Pending, Phase, Problem, Remote, SessionCounts, Status};
use tracecraft::doctor::{
    About, Agents, Bucket, Directory, Examination, Keys, Local, LocalState, Lock, Own, Retention,
    Root, RootState, Settings, Snapshot, Socket, Tried, Watches,
};

use super::check::Code;
use super::{Checks, Daemon, Found, Verdict, judge};
use crate::render;
use crate::render::tests::{golden, terminal};
use crate::service::Examined;

/// A recorder with which all is well.
fn well() -> Found {
    Found {
        examination: Ok(examination()),
        service: Some(Examined {
            installed: true,
            enabled: true,
            active: true,
            state: "active (running)".into(),
            result: "success".into(),
            ..Examined::default()
        }),
        daemon: Daemon::Answered(Box::new(status())),
        proxies: vec![],
    }
}

fn examination() -> Examination {
    Examination {
        settings: Settings {
            config_file: "/home/me/.config/tracecraft/config.toml".into(),
            has_file: true,
            said: vec![("interval", "environment TRACECRAFT_INTERVAL".into())],
            socket: "/run/user/7/tracecraft/tracecraftd.sock".into(),
            state_dir: "/home/me/.local/state/tracecraft".into(),
            store: "file:///home/me/bucket".into(),
            redact: true,
            min_free_space: 1 << 30,
            outbox_max: 256 << 20,
        },
        own: Some(Own {
            state_dir: "/home/me/.local/state/tracecraft".into(),
            directory: Directory::Private,
            snapshot: Snapshot::Fine,
            lock: Lock::Held { pid: Some(4242), since: Some("2026-07-02T08:00:00Z".into()) },
            socket: Socket::Listened,
            socket_fault: None,
            free_bytes: Ok(64 << 30),
            outbox: (0, 0),
            watches: Some(Watches { watches_max: 65_536, instances_max: 128, instances: 9 }),
            descriptors: Some(1024),
        }),
        agents: Some(Agents {
            roots: vec![
                Root {
                    harness: "claude-code",
                    path: "/home/me/.claude/projects".into(),
                    state: RootState::There,
                },
                Root {
                    harness: "codex",
                    path: "/home/me/.codex/sessions".into(),
                    state: RootState::Missing,
                },
            ],
            retention: Some(Retention {
                days: 400,
                settings: "/home/me/.claude/settings.json".into(),
                said: true,
            }),
            directories: 31,
        }),
        local: Some(Local { path: "/home/me/bucket".into(), found: Some(LocalState::Fine) }),
        bucket: None,
    }
}

fn bucket() -> Bucket {
    Bucket {
        endpoint: "https://s3.example".into(),
        region: "us-east-1".into(),
        name: "flight".into(),
        keys: Keys::Found { origin: "the profile \"backup\"".into(), expires: None },
        answers: Ok(()),
        ahead_seconds: Some(2),
        list: Tried::Fine,
        get: Tried::Fine,
    }
}

fn status() -> Status {
    Status {
        version: env!("CARGO_PKG_VERSION").into(),
        protocol: PROTOCOL,
        pid: 4242,
        uptime_seconds: 11_520,
        phase: Phase::Recording,
        store: "file:///home/me/bucket".into(),
        state_dir: "/home/me/.local/state/tracecraft".into(),
        interval_ms: 5000,
        redact: true,
        compaction: "auto".into(),
        roots: vec![tracecraft::api::Root {
            harness: "claude-code".into(),
            path: "/home/me/.claude/projects".into(),
            coverage: Coverage::Events,
        }],
        sessions: SessionCounts::default(),
        stored_bytes: 9,
        pending: Pending::default(),
        last_stored_at: Some("2026-07-02T09:59:00Z".into()),
        last_flush_at: None,
        problems_left_out: 0,
        stalled_seconds: None,
        usage: None,
        remote: None,
        problems: vec![],
    }
}

/// What is not as it should be.
fn found(checks: &Checks) -> Vec<(Code, Verdict)> {
    let is_found = checks.checks.iter().filter(|check| check.verdict != Verdict::Ok);
    is_found.map(|check| (check.code, check.verdict)).collect()
}

/// What is found of a recorder with which all is well but for one thing.
fn with(change: impl FnOnce(&mut Found, &mut Examination)) -> Vec<(Code, Verdict)> {
    let (mut it, mut examined) = (well(), examination());
    change(&mut it, &mut examined);
    it.examination = it.examination.map(|_| examined);
    let checks = judge(&it);
    for check in &checks.checks {
        assert_eq!(check.hint.is_none(), check.verdict == Verdict::Ok, "{check:?}");
    }
    found(&checks)
}

fn own(change: impl FnOnce(&mut Own)) -> Vec<(Code, Verdict)> {
    with(|_, examined| change(examined.own.as_mut().unwrap()))
}

fn remote(change: impl FnOnce(&mut Bucket, &mut Remote)) -> Vec<(Code, Verdict)> {
    with(|it, examined| {
        let mut remote = Remote {
            conditions: "honoured".into(),
            deletes: Some(true),
            puts: 4,
            ..Remote::default()
        };
        let mut place = bucket();
        change(&mut place, &mut remote);
        examined.settings.store = "s3://flight/agents".into();
        (examined.local, examined.bucket) = (None, Some(place));
        let status =
            Status { store: "s3://flight/agents".into(), remote: Some(remote), ..status() };
        it.daemon = Daemon::Answered(Box::new(status));
    })
}

fn service(change: impl FnOnce(&mut Examined)) -> Vec<(Code, Verdict)> {
    with(|it, _| change(it.service.as_mut().unwrap()))
}

fn problems() -> Found {
    let mut it = well();
    let mut examined = examination();
    examined.settings.redact = false;
    examined.settings.said.push(("redact", "/home/me/.config/tracecraft/config.toml:3".into()));
    examined.own.as_mut().unwrap().free_bytes = Ok(300 << 20);
    examined.agents.as_mut().unwrap().retention.as_mut().unwrap().days = 30;
    it.examination = Ok(examined);
    it.daemon =
        Daemon::Silent("the daemon at /run/s is there but did not answer within 5 s".into());
    it
}

#[test]
fn with_a_recorder_that_is_well_nothing_is_found() {
    assert_eq!(with(|_, _| ()), []);
    assert_eq!(remote(|_, _| ()), []);
}

#[test]
fn programs_and_people_read_what_the_golden_files_show() {
    let checks = judge(&problems());
    golden("doctor.json", &render::json(&checks));
    golden("doctor.txt", &render::doctor::text(&checks, &terminal(Some(80))));
    golden("doctor-well.txt", &render::doctor::text(&judge(&well()), &terminal(None)));
}

#[test]
fn a_message_fits_its_width_and_a_command_stays_whole() {
    let page = render::doctor::text(&judge(&problems()), &terminal(Some(60)));
    for line in page.lines().filter(|line| !line.contains("try: ")) {
        // A word that is longer than the column is not cut.
        let is_one_word = line.trim().split(' ').count() == 1;
        assert!(crate::text::columns(line) <= 60 || is_one_word || line.contains('/'), "{line}");
    }
}

#[test]
fn the_recorders_own_files_are_judged_by_what_they_cost() {
    use Verdict::{Note, Warning, Wrong};
    let table = [
        (own(|own| own.directory = Directory::Open(0o755)), Code::StateDir, Warning),
        (own(|own| own.directory = Directory::Foreign(9)), Code::StateDir, Wrong),
        (own(|own| own.directory = Directory::Unusable("no".into())), Code::StateDir, Wrong),
        (own(|own| own.snapshot = Snapshot::Damaged), Code::State, Warning),
        (own(|own| own.snapshot = Snapshot::Newer("v9".into())), Code::State, Wrong),
        (own(|own| own.snapshot = Snapshot::Unreadable("no".into())), Code::State, Wrong),
        (own(|own| own.lock = Lock::Unknown("no".into())), Code::Lock, Wrong),
        (own(|own| own.socket = Socket::NotASocket), Code::Socket, Wrong),
        (own(|own| own.socket_fault = Some("is a link".into())), Code::Socket, Wrong),
        (own(|own| own.free_bytes = Ok(1)), Code::DiskSpace, Wrong),
        (own(|own| own.free_bytes = Ok((1 << 30) + 1)), Code::DiskSpace, Warning),
        (own(|own| own.free_bytes = Err("no".into())), Code::DiskSpace, Wrong),
        (own(|own| own.outbox = (9, 256 << 20)), Code::Outbox, Wrong),
        (own(|own| own.outbox = (9, 250 << 20)), Code::Outbox, Warning),
        (own(|own| own.descriptors = Some(64)), Code::Descriptors, Warning),
        (own(|own| own.watches.as_mut().unwrap().watches_max = 30), Code::Watches, Warning),
        (with(|_, it| it.agents.as_mut().unwrap().directories = 9000), Code::Watches, Note),
        (with(|_, it| it.own = None), Code::Unfinished, Wrong),
        (with(|_, it| it.agents = None), Code::Unfinished, Wrong),
        (with(|_, it| it.settings.redact = false), Code::Redaction, Warning),
        (
            with(|_, it| it.agents.as_mut().unwrap().retention.as_mut().unwrap().days = 30),
            Code::Retention,
            Note,
        ),
        (
            with(|_, it| it.agents.as_mut().unwrap().roots[0].state = RootState::Foreign(9)),
            Code::Root,
            Wrong,
        ),
        (
            with(|_, it| it.agents.as_mut().unwrap().roots[0].state = RootState::Missing),
            Code::Root,
            Note,
        ),
    ];
    for (is, code, verdict) in table {
        assert!(is.contains(&(code, verdict)), "{code:?} {verdict:?} is not among {is:?}");
    }
}

/// All the commands that are told.
fn hints(change: impl FnOnce(&mut Examination)) -> String {
    let (mut it, mut examined) = (well(), examination());
    change(&mut examined);
    it.examination = Ok(examined);
    let checks = judge(&it).checks;
    checks.into_iter().filter_map(|check| check.hint).map(|hint| hint + "\n").collect()
}

#[test]
fn a_path_with_a_space_is_one_word_of_every_command() {
    let odd = std::path::PathBuf::from("/home/me/my files");
    let all = [
        hints(|it| {
            let own = it.own.as_mut().unwrap();
            (own.state_dir, it.settings.state_dir) = (odd.clone(), odd.clone());
            it.settings.socket = odd.join("s");
            own.directory = Directory::Foreign(9);
            own.snapshot = Snapshot::Unreadable("no".into());
            own.lock = Lock::Unknown("no".into());
            own.socket = Socket::NotASocket;
            own.free_bytes = Err("no".into());
        }),
        hints(|it| {
            it.settings.state_dir = odd.clone();
            it.settings.socket = odd.join("s");
            let own = it.own.as_mut().unwrap();
            (own.directory, own.socket_fault) = (Directory::Open(0o755), Some("is open".into()));
            it.local = Some(Local { path: odd.clone(), found: Some(LocalState::Gone) });
            let roots = &mut it.agents.as_mut().unwrap().roots;
            roots[0].path = odd.clone();
            roots[0].state = RootState::Foreign(9);
            (roots[1].path, roots[1].state) = (odd.clone(), RootState::Unreadable("no".into()));
        }),
        hints(|it| {
            it.local =
                Some(Local { path: odd.clone(), found: Some(LocalState::Unusable("no".into())) });
        }),
    ];
    let all = all.concat();
    assert_eq!(all.matches("my files").count(), all.matches("'/home/me/my files").count(), "{all}");
    assert!(all.matches("my files").count() >= 12, "{all}");
}

#[test]
fn what_raises_one_limit_of_the_kernel_keeps_the_other_and_never_lowers_it() {
    let hint = |change: fn(&mut Watches, &mut Agents)| {
        let mut it = well();
        let mut examined = examination();
        it.daemon = Daemon::Away;
        change(
            examined.own.as_mut().unwrap().watches.as_mut().unwrap(),
            examined.agents.as_mut().unwrap(),
        );
        it.examination = Ok(examined);
        let checks = judge(&it).checks;
        checks.into_iter().find(|it| it.code == Code::Watches).unwrap().hint.unwrap()
    };
    let watches = hint(|it, agents| {
        (it.watches_max, agents.directories) = (600_000, 700_000);
    });
    assert!(watches.contains("max_user_watches=1200000 "), "{watches}");
    let instances = hint(|it, _| it.instances = it.instances_max);
    assert!(instances.contains("max_user_instances=1024 "), "{instances}");
    let file = |hint: &str| {
        hint.split(' ').find(|it| it.starts_with("/etc/sysctl.d/")).unwrap().to_owned()
    };
    assert_ne!(file(&watches), file(&instances));
}

#[test]
fn a_daemon_that_is_silent_strange_or_gone_is_each_told_so() {
    use Verdict::{Warning, Wrong};
    let daemon = |daemon: Daemon| with(|it, _| it.daemon = daemon);
    assert_eq!(daemon(Daemon::Silent("no answer".into())), [(Code::Daemon, Wrong)]);
    assert_eq!(daemon(Daemon::Stranger("another".into())), [(Code::Version, Wrong)]);
    // The lock is held: it runs, and cannot be reached.
    assert_eq!(daemon(Daemon::Away), [(Code::Daemon, Wrong)]);
    let gone = with(|it, examined| {
        it.daemon = Daemon::Away;
        let own = examined.own.as_mut().unwrap();
        (own.lock, own.socket) = (Lock::Free, Socket::Left);
    });
    assert_eq!(gone, [(Code::Socket, Verdict::Note), (Code::Daemon, Warning)]);
    let waits = with(|it, examined| {
        it.daemon = Daemon::Waits;
        examined.own.as_mut().unwrap().lock = Lock::Free;
        let service = it.service.as_mut().unwrap();
        (service.active, service.socket_waits) = (false, true);
    });
    assert_eq!(waits, []);
    let answered = |change: fn(&mut Status)| {
        with(|it, _| {
            let mut status = status();
            change(&mut status);
            it.daemon = Daemon::Answered(Box::new(status));
        })
    };
    assert_eq!(answered(|it| it.version = "0.0.9".into()), [(Code::Version, Warning)]);
    assert_eq!(answered(|it| it.store = "file:///b".into()), [(Code::Settings, Warning)]);
    assert_eq!(answered(|it| it.redact = false), [(Code::Settings, Warning)]);
    assert_eq!(answered(|it| it.phase = Phase::Starting), [(Code::Daemon, Warning)]);
    assert_eq!(answered(|it| it.stalled_seconds = Some(40)), [(Code::Daemon, Wrong)]);
    fn problem(it: &mut Status) {
        let (code, message) = ("disk_full".to_owned(), "no room".to_owned());
        it.problems =
            vec![Problem { code, message, hint: None, since: String::new(), next_try_at: None }];
    }
    assert_eq!(answered(problem), [(Code::Problem, Wrong)]);
    let told_already = |it: &mut Status| {
        problem(it);
        it.problems[0].code = "redaction_off".to_owned();
    };
    assert_eq!(answered(told_already), []);
}

#[test]
fn what_keeps_a_store_from_being_used_has_a_code_of_its_own() {
    use Verdict::{Note, Warning, Wrong};
    let failed = |about| {
        remote(|bucket, _| {
            (bucket.list, bucket.get) = (Tried::Failed(about, "no".into()), Tried::Not);
        })
    };
    assert_eq!(failed(About::Keys), [(Code::Credentials, Wrong)]);
    assert_eq!(failed(About::Bucket), [(Code::Bucket, Wrong)]);
    assert_eq!(failed(About::Right), [(Code::ListRight, Wrong)]);
    assert_eq!(failed(About::Clock), [(Code::Clock, Wrong)]);
    assert_eq!(failed(About::Way), [(Code::Store, Wrong)]);
    let get = |it: &mut Bucket| it.get = Tried::Failed(About::Right, "no".into());
    assert_eq!(remote(|it, _| get(it)), [(Code::GetRight, Wrong)]);
    // A store that is away for a moment, or keys that ran out, are no missing right.
    let get = |about| remote(|it, _| it.get = Tried::Failed(about, "no".into()));
    assert_eq!(get(About::Way), [(Code::Store, Wrong)]);
    assert_eq!(get(About::Keys), [(Code::Credentials, Wrong)]);
    assert_eq!(remote(|it, _| it.answers = Err("no".into())), [(Code::Store, Wrong)]);
    assert_eq!(
        remote(|it, _| it.keys = Keys::Missing("none".into(), None)),
        [(Code::Credentials, Wrong)]
    );
    assert_eq!(remote(|it, _| it.keys = Keys::Due("due".into())), [(Code::Credentials, Note)]);
    for (seconds, expected) in [
        (60, vec![]),
        (-61, vec![(Code::Clock, Warning)]),
        (900, vec![(Code::Clock, Warning)]),
        (-901, vec![(Code::Clock, Wrong)]),
        (i64::MIN + 1, vec![(Code::Clock, Wrong)]),
    ] {
        assert_eq!(remote(|it, _| it.ahead_seconds = Some(seconds)), expected, "{seconds}");
    }
    assert_eq!(remote(|_, it| it.deletes = Some(false)), [(Code::DeleteRight, Note)]);
    assert_eq!(remote(|_, it| it.deletes = None), [(Code::DeleteRight, Note)]);
    assert_eq!(remote(|_, it| it.puts = 0), [(Code::PutRight, Note)]);
    for word in ["ignored", "unsupported", "unknown", "new"] {
        assert_eq!(remote(|_, it| it.conditions = word.into()), [(Code::Conditions, Note)]);
    }
    let local = |state: Option<LocalState>| with(|_, it| it.local.as_mut().unwrap().found = state);
    assert_eq!(local(Some(LocalState::Gone)), [(Code::Store, Wrong)]);
    assert_eq!(local(Some(LocalState::Unusable("no".into()))), [(Code::Store, Wrong)]);
    assert_eq!(local(None), [(Code::Unfinished, Wrong)]);
    assert_eq!(local(Some(LocalState::NotYet)), []);
}

#[test]
fn a_service_is_judged_by_whether_it_will_be_there() {
    use Verdict::{Note, Warning, Wrong};
    assert_eq!(service(|it| it.installed = false), [(Code::Service, Note)]);
    assert_eq!(service(|it| it.active = false), [(Code::Service, Wrong)]);
    assert_eq!(service(|it| it.enabled = false), [(Code::Service, Warning)]);
    assert_eq!(service(|it| it.restarts = 1), [(Code::Restarts, Note)]);
    assert_eq!(service(|it| it.restarts = 9), [(Code::Restarts, Warning)]);
    assert_eq!(service(|it| it.outdated = vec!["/u".into()]), [(Code::Unit, Warning)]);
    assert_eq!(service(|it| it.unseen = vec!["CODEX_HOME".into()]), [(Code::Variables, Note)]);
    let linger = |it: &mut Examined| it.linger = Some("loginctl enable-linger me".into());
    assert_eq!(service(linger), [(Code::Lingering, Note)]);
    let two = |it: &mut Examined| it.programs = vec!["/a/tracecraftd".into(), "/b/t".into()];
    assert_eq!(service(two), [(Code::Programs, Warning)]);
    assert_eq!(service(|it| it.is_wsl = true), [(Code::Wsl, Note)]);
    let absent = |it: &mut Examined| {
        *it = Examined { absence: Some("none".into()), ..Examined::default() };
    };
    assert_eq!(service(absent), [(Code::Service, Note)]);
    assert_eq!(with(|it, _| it.service = None), [(Code::Unfinished, Wrong)]);
}

#[test]
fn each_code_has_one_row_in_the_readmes_table_and_each_row_a_code() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let section = readme.split("\n## When something is wrong\n").nth(1).expect("the section");
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let mut rows: Vec<&str> = rows.collect();
    let mut codes = Code::NAMES.to_vec();
    rows.sort_unstable();
    codes.sort_unstable();
    assert_eq!(rows, codes);
}
