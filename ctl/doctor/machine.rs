//! Judges what is on this machine: configuration, agents' directories, the recorder's own files, what the kernel grants.

use tracecraft::doctor::{
    Agents, Directory, Examination, Lock, Own, Retention, Root, RootState, Settings, Snapshot,
    Socket, Watches,
};

use super::check::{Check, Code, note, ok, warning, wrong};
use super::{Daemon, Found};
use crate::text;

/// Days from which a purge is none to speak of.
const RETENTION_DAYS_LONG: u64 = 365;

/// Descriptors that the recorder should be allowed: those of a busy one with room for as many clients as it admits.
const DESCRIPTORS_MIN: u64 = 256;

/// The directories that the recorder watches at most; its own limit, named in the table of limits.
const WATCHES_MAX: u64 = 8192;

/// Tenths of the outbox from which it is nearly full.
const OUTBOX_TENTHS: u64 = 8;

/// The configuration, and whether secrets are removed.
pub(super) fn settings(settings: &Settings) -> Vec<Check> {
    let file = settings.config_file.display();
    let mut message =
        if settings.has_file { file.to_string() } else { format!("defaults: there is no {file}") };
    let elsewhere = settings.said.iter().filter(|(_, from)| !from.contains('/'));
    let elsewhere: Vec<String> = elsewhere.map(|(key, from)| format!("{key} ({from})")).collect();
    if !elsewhere.is_empty() {
        message.push_str(&format!("; from elsewhere: {}", elsewhere.join(", ")));
    }
    let redaction = if settings.redact {
        ok(Code::Redaction, "secrets are removed before anything is stored")
    } else {
        let from = settings.said.iter().find(|(key, _)| *key == "redact");
        let from = from.map_or_else(|| file.to_string(), |(_, from)| from.clone());
        let what = "redact = false: secrets in transcripts are stored as they are";
        warning(Code::Redaction, what, format!("take the line out: {from}"))
    };
    vec![ok(Code::Config, message), redaction]
}

/// Where sessions are looked for, and when an agent deletes them.
pub(super) fn agents(examination: &Examination) -> Vec<Check> {
    let Some(agents) = &examination.agents else {
        return vec![unfinished("the agents' directories", "ls -d ~/.claude ~/.codex")];
    };
    let mut checks: Vec<Check> = agents.roots.iter().filter_map(root).collect();
    // Some agents have several directories, of which one is enough.
    let is_found = |harness: &str| {
        agents.roots.iter().any(|it| it.harness == harness && it.state != RootState::Missing)
    };
    let is_missing = |root: &&Root| !is_found(root.harness);
    let mut missing: Vec<&str> =
        agents.roots.iter().filter(is_missing).map(|root| root.harness).collect();
    missing.dedup();
    if agents.roots.iter().all(|root| root.state == RootState::Missing) {
        let what = "no agent has a directory here yet: nothing to record";
        let hint = "if yours keeps sessions elsewhere, set CLAUDE_CONFIG_DIR, CODEX_HOME, OPENCLAW_STATE_DIR or HERMES_HOME";
        checks.push(note(Code::Root, what, hint));
    } else if !missing.is_empty() {
        let names = missing.join(", ");
        checks.push(ok(Code::Root, format!("not there yet, and awaited: {names}")));
    }
    checks.extend(agents.retention.as_ref().map(retention));
    checks
}

fn root(root: &Root) -> Option<Check> {
    let Root { harness, path, state } = root;
    let (path, word) = (path.display(), text::shell_word(path));
    match state {
        RootState::Missing => None,
        RootState::There => Some(ok(Code::Root, format!("{harness} {path}"))),
        RootState::Foreign(uid) => Some(wrong(
            Code::Root,
            format!(
                "{harness} {path} belongs to another user (uid {uid}): nothing of it is recorded"
            ),
            format!("sudo chown -R \"$(id -u)\" {word}"),
        )),
        RootState::Unreadable(why) => Some(wrong(
            Code::Root,
            format!("{harness} {path} cannot be read: {why}"),
            format!("chmod u+rwx {word}"),
        )),
    }
}

fn retention(found: &Retention) -> Check {
    let Retention { days, settings, said } = found;
    let whose = if *said { "as its settings say" } else { "its default" };
    let message = format!(
        "Claude Code deletes a session {days} days after its last word ({whose}); what is stored stays"
    );
    if *days >= RETENTION_DAYS_LONG {
        return ok(Code::Retention, message);
    }
    let hint = format!(
        "to keep them longer, write \"cleanupPeriodDays\": 365 into {}",
        settings.display()
    );
    note(Code::Retention, message, hint)
}

/// The recorder's own files, and what the machine grants it.
pub(super) fn own(examination: &Examination, found: &Found) -> Vec<Check> {
    let settings = &examination.settings;
    let Some(own) = &examination.own else {
        let dir = text::shell_word(&settings.state_dir);
        return vec![unfinished("the state directory", &format!("ls -ld {dir}"))];
    };
    let mut checks = vec![
        state_dir(own, settings),
        snapshot(own),
        lock(own, settings),
        socket(own, settings, found),
        disk_space(own, settings),
        outbox(own, settings),
    ];
    checks.extend(own.watches.map(|granted| watches(granted, examination.agents.as_ref(), found)));
    checks.extend(own.descriptors.map(descriptors));
    checks
}

fn state_dir(own: &Own, settings: &Settings) -> Check {
    let (dir, word) = (settings.state_dir.display(), text::shell_word(&settings.state_dir));
    match &own.directory {
        Directory::Missing => {
            ok(Code::StateDir, format!("{dir} is not there yet: the first start makes it"))
        }
        Directory::Private => ok(Code::StateDir, format!("{dir} is yours alone")),
        Directory::Open(mode) => warning(
            Code::StateDir,
            format!("{dir} is open to other users ({mode:o}); the next start closes it"),
            format!("chmod 700 {word}"),
        ),
        Directory::Foreign(uid) => wrong(
            Code::StateDir,
            format!("{dir} belongs to another user (uid {uid}): the daemon does not start"),
            format!("sudo chown -R \"$(id -u)\" {word}"),
        ),
        Directory::Unusable(why) => wrong(
            Code::StateDir,
            format!("{dir} cannot be used: {why}"),
            format!("ls -ld {word}, and make it a directory of your own"),
        ),
    }
}

fn snapshot(own: &Own) -> Check {
    let file = own.state_dir.join("state.json");
    let (file, word) = (file.display(), text::shell_word(&file));
    match &own.snapshot {
        Snapshot::Missing => ok(Code::State, "nothing was recorded yet"),
        Snapshot::Fine => ok(Code::State, format!("{file} is intact")),
        Snapshot::Damaged => warning(
            Code::State,
            format!(
                "{file} is damaged; the next start sets it aside and rebuilds it from the store: nothing is lost"
            ),
            "tracecraftctl service restart",
        ),
        Snapshot::Newer(why) => wrong(
            Code::State,
            why.clone(),
            "install the newer tracecraftd that wrote it, and `tracecraftctl service restart`",
        ),
        Snapshot::Unreadable(why) => {
            wrong(Code::State, why.clone(), format!("sudo chown \"$(id -u)\" {word}"))
        }
    }
}

fn lock(own: &Own, settings: &Settings) -> Check {
    match &own.lock {
        Lock::Free => ok(Code::Lock, "nobody holds it: no daemon runs on this state"),
        Lock::Held { pid, since } => {
            let who = pid.map_or("a process".to_owned(), |pid| format!("process {pid}"));
            let since = since.as_ref().map_or(String::new(), |since| format!(", since {since}"));
            ok(Code::Lock, format!("{who} holds it{since}"))
        }
        Lock::Unknown(why) => wrong(
            Code::Lock,
            format!("it cannot be looked at: {why}"),
            // There is one for all stores, above their own directories.
            format!("ls -l {}", text::shell_word(&settings.state_dir.join("tracecraftd.lock"))),
        ),
    }
}

fn socket(own: &Own, settings: &Settings, found: &Found) -> Check {
    let (path, word) = (settings.socket.display(), text::shell_word(&settings.socket));
    let held = matches!(own.lock, Lock::Held { .. });
    if let Some(fault) = &own.socket_fault {
        let dir = settings.socket.parent().unwrap_or(&settings.socket);
        let what = format!("{} {fault}: the daemon makes no socket there", dir.display());
        let dir = text::shell_word(dir);
        return wrong(
            Code::Socket,
            what,
            format!("chmod 700 {dir}, or set socket to another place"),
        );
    }
    match own.socket {
        Socket::NotASocket => wrong(
            Code::Socket,
            format!("{path} is no socket: the daemon cannot listen there"),
            format!("mv {word} {}", text::shell_word(&settings.socket.with_extension("aside"))),
        ),
        Socket::Listened | Socket::There => ok(Code::Socket, format!("{path} is listened on")),
        // Whoever holds the lock listens, or will in a moment: the network namespace may be another one.
        _ if held && matches!(found.daemon, Daemon::Answered(_)) => {
            ok(Code::Socket, format!("{path} is listened on"))
        }
        Socket::Missing if held => wrong(
            Code::Socket,
            format!(
                "a daemon runs, and there is no {path}: it listens elsewhere, or somebody removed it"
            ),
            "tracecraftctl service restart",
        ),
        Socket::Left if held => wrong(
            Code::Socket,
            format!("a daemon runs, and nobody listens on {path}"),
            "tracecraftctl service restart",
        ),
        Socket::Missing => ok(Code::Socket, format!("no {path}: the daemon makes it")),
        Socket::Left => note(
            Code::Socket,
            format!(
                "nobody listens on {path}: a killed daemon left it, and the next start replaces it"
            ),
            "tracecraftctl service restart",
        ),
    }
}

fn disk_space(own: &Own, settings: &Settings) -> Check {
    let dir = own.state_dir.display();
    let keep = text::bytes(settings.min_free_space);
    match &own.free_bytes {
        Err(why) => wrong(
            Code::DiskSpace,
            format!("the free space of {dir} cannot be told: {why}"),
            format!("df -h {}", text::shell_word(&own.state_dir)),
        ),
        Ok(free) => {
            let is = format!("{} free for {dir}", text::bytes(*free));
            if *free < settings.min_free_space {
                let what =
                    format!("{is}, less than the {keep} that stay free: nothing is captured");
                let hint = format!(
                    "make room, or lower min_free_space in {}",
                    settings.config_file.display()
                );
                wrong(Code::DiskSpace, what, hint)
            } else if *free < settings.min_free_space.saturating_mul(2) {
                let what = format!("{is}; below {keep} nothing is captured any more");
                warning(Code::DiskSpace, what, "make room on that disk")
            } else {
                ok(Code::DiskSpace, format!("{is}, {keep} of it are left alone"))
            }
        }
    }
}

fn outbox(own: &Own, settings: &Settings) -> Check {
    let (parts, bytes) = own.outbox;
    let max = text::bytes(settings.outbox_max);
    if parts == 0 {
        return ok(Code::Outbox, "nothing waits for the store");
    }
    let is = format!(
        "{} in {} for the store, of at most {max}",
        text::bytes(bytes),
        if parts == 1 { "1 part waits".to_owned() } else { format!("{parts} parts wait") },
    );
    if bytes >= settings.outbox_max {
        let what = format!("{is}: it is full, and the sources keep the rest");
        wrong(Code::Outbox, what, "tracecraftctl flush, once the store is well")
    } else if bytes >= settings.outbox_max / 10 * OUTBOX_TENTHS {
        warning(Code::Outbox, is, "tracecraftctl flush, once the store is well")
    } else {
        ok(Code::Outbox, is)
    }
}

fn watches(granted: Watches, agents: Option<&Agents>, found: &Found) -> Check {
    let directories = agents.map_or(0, |agents| agents.directories);
    let Watches { watches_max, instances_max, instances } = granted;
    let needed = text::count(directories, "directory", "directories");
    let is = format!(
        "{needed} to watch, of {watches_max} for all your programs; {instances} of {instances_max} watchers in use"
    );
    let polled = "sessions are found by polling, which costs more";
    // A file for each, so that one does not undo the other; and never less than there is.
    let raise = |what: &str, to: u64, granted: u64| {
        let to = to.max(granted.saturating_mul(2));
        format!(
            "echo fs.inotify.max_user_{what}={to} | sudo tee /etc/sysctl.d/60-tracecraft-{what}.conf && sudo sysctl --system"
        )
    };
    let runs = matches!(found.daemon, Daemon::Answered(_));
    if directories > watches_max {
        warning(Code::Watches, format!("{is}: {polled}"), raise("watches", 524_288, watches_max))
    } else if directories > WATCHES_MAX {
        let what = format!("{is}; the recorder takes at most {WATCHES_MAX}: {polled}");
        note(Code::Watches, what, "move old sessions out of the agent's directory: they are stored")
    } else if instances >= instances_max && !runs {
        let what = format!("{is}: none is left, and {polled}");
        warning(Code::Watches, what, raise("instances", 1024, instances_max))
    } else {
        ok(Code::Watches, is)
    }
}

fn descriptors(granted: u64) -> Check {
    let is = format!("{granted} files may be open at a time");
    if granted < DESCRIPTORS_MIN {
        let what = format!("{is}; a busy recorder needs up to {DESCRIPTORS_MIN}");
        warning(Code::Descriptors, what, "ulimit -n 1024, and start it again")
    } else {
        ok(Code::Descriptors, is)
    }
}

fn unfinished(what: &str, hint: &str) -> Check {
    let message = format!("{what} could not be looked at in time: a disk hangs");
    wrong(Code::Unfinished, message, hint)
}
