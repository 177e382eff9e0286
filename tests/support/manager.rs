//! A real user manager of systemd around a test: the test's own program is run once more, beside a manager that lives as long
//! as it does.
//!
//! `TRACECRAFT_USER_SYSTEMD` names the program that starts a manager, in namespaces of its own, and then a command; it needs root.
//! Knows `systemctl`; nothing of the daemon but its unit's name.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use rustix::process::{Pid, Signal, kill_process};

use super::home::{Home, run, said};
use super::{skipped, wait_for};

/// Set inside: the scratch home that is the manager's, too.
const INSIDE: &str = "TRACECRAFT_TEST_INSIDE";

/// What a server for the tests is found by, inside as outside.
const PASSED_ON: [&str; 5] =
    ["PATH", "TRACECRAFT_S3S_FS", "TRACECRAFT_MOTO", "TRACECRAFT_GARAGE", "TRACECRAFT_SEED"];

pub(crate) const SERVICE: &str = "tracecraftd.service";
pub(crate) const SOCKET: &str = "tracecraftd.socket";

/// A home whose user manager runs, with both programs installed in its `bin`.
#[derive(Debug)]
pub(crate) struct Managed {
    pub(crate) home: Home,
}

/// Runs `body` beside a manager of its own. `name` is the whole path of the test, as the test program lists it.
pub(crate) fn beside_a_manager(name: &str, body: impl FnOnce(Managed)) {
    if let Some(home) = std::env::var_os(INSIDE) {
        return body(Managed::new(home.into()));
    }
    let Some(tool) = std::env::var_os("TRACECRAFT_USER_SYSTEMD") else {
        return skipped(
            name,
            "TRACECRAFT_USER_SYSTEMD names no program that starts a user manager",
        );
    };
    if !rustix::process::geteuid().is_root() {
        return skipped(name, "only root can start a user manager of its own");
    }
    let _alone = alone(Path::new(&tool));
    let outer = Home::new();
    let mut command = Command::new(tool);
    command.env_clear().env("HOME", outer.path()).env(INSIDE, outer.path());
    command.envs(PASSED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    command.arg(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]);
    let output = run(&mut command);
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().filter(|line| line.starts_with("SKIPPED ")).for_each(|line| println!("{line}"));
    assert!(output.status.success(), "{}", said(&output));
    assert!(text.contains("1 passed"), "{name} is not the name of this test: {text}");
}

/// Waits until no other test has a manager. Each has its own mounts and processes, but the kernel has one tree of control groups: the
/// units of two managers would be one group, which one removes while the other starts its service in it.
fn alone(tool: &Path) -> File {
    let file = File::open(tool).unwrap();
    file.lock().unwrap();
    file
}

impl Managed {
    fn new(path: PathBuf) -> Managed {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").unwrap();
        let managed = Managed { home: Home::at(path, runtime.into()) };
        fs::create_dir_all(managed.bin("")).unwrap();
        managed.put_programs();
        managed
    }

    pub(crate) fn bin(&self, name: &str) -> PathBuf {
        self.home.path().join("bin").join(name)
    }

    /// Puts both programs where a package would, as a package does: the old file stays what it was for who runs it.
    pub(crate) fn put_programs(&self) {
        let programs = [
            ("tracecraftd", env!("CARGO_BIN_EXE_tracecraftd")),
            ("tracecraftctl", env!("CARGO_BIN_EXE_tracecraftctl")),
        ];
        for (name, from) in programs {
            let fresh = self.bin(&format!(".{name}.new"));
            fs::copy(from, &fresh).unwrap();
            fs::rename(&fresh, self.bin(name)).unwrap();
        }
    }

    /// `tracecraftctl service …`, the installed one.
    pub(crate) fn service(&self, arguments: &[&str]) -> Output {
        let mut command = self.home.command(self.bin("tracecraftctl").to_str().unwrap());
        run(command.arg("service").args(arguments))
    }

    pub(crate) fn service_ok(&self, arguments: &[&str]) -> String {
        let output = self.service(arguments);
        assert!(output.status.success(), "service {arguments:?}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// `systemctl --user …`, which must succeed.
    pub(crate) fn systemctl(&self, arguments: &[&str]) -> String {
        let output = run(self.home.command("systemctl").arg("--user").args(arguments));
        assert!(output.status.success(), "systemctl {arguments:?}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A property of a unit.
    pub(crate) fn property(&self, unit: &str, name: &str) -> String {
        self.systemctl(&["show", "--value", "--property", name, unit])
    }

    /// The service's process; `None` while there is none.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.property(SERVICE, "MainPID").parse().ok().filter(|pid| *pid != 0)
    }

    /// Sends a signal to the service's process.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().unwrap().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    pub(crate) fn wait_for_state(&self, state: &str) {
        wait_for(&format!("the service to be {state}"), || {
            (self.property(SERVICE, "ActiveState") == state).then_some(())
        });
    }

    /// Lines for the unit that only a test wants; read when the units are.
    pub(crate) fn drop_in(&self, lines: &str) {
        let path = self.drop_in_path();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("[Service]\n{lines}\n")).unwrap();
        self.systemctl(&["daemon-reload"]);
    }

    pub(crate) fn no_drop_in(&self) {
        fs::remove_dir_all(self.drop_in_path().parent().unwrap()).unwrap();
        self.systemctl(&["daemon-reload"]);
    }

    fn drop_in_path(&self) -> PathBuf {
        self.home.path().join(".config/systemd/user").join(format!("{SERVICE}.d/test.conf"))
    }

    /// A script that a unit can run.
    pub(crate) fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.bin(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        path
    }
}
