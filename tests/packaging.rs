//! What packages bring beside the programs: completions that complete, man pages that nothing complains about, and an install
//! script that does what it says and takes it back. The packages themselves are tried by `packaging/test`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::daemon::Daemon;
use crate::support::home::{Home, run, said, try_run};
use crate::support::oracle::snapshot;
use crate::support::skipped;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn bash_completes_verbs_flags_and_shells_with_the_printed_script() {
    let home = Home::new();
    let script = run(home.tracecraftctl().args(["completions", "bash"]));
    assert!(script.status.success(), "{}", said(&script));
    let path = home.path().join("completion");
    fs::write(&path, &script.stdout).unwrap();
    // What bash does when a person presses the key: it sets these variables, and calls what the script has registered.
    let press = "source \"$1\"; shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
                 registered=$(complete -p tracecraftctl); registered=${registered#*-F }; \
                 ${registered%% *} tracecraftctl \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD-1]}\"; \
                 printf '%s\\n' \"${COMPREPLY[@]}\"";
    for (words, expected) in [
        (&["tracecraftctl", "veri"][..], &["verify"][..]),
        (&["tracecraftctl", "st"], &["status", "stop", "start"]),
        (&["tracecraftctl", "verify", "--de"], &["--deep"]),
        (&["tracecraftctl", "service", "ins"], &["install"]),
        (&["tracecraftctl", "completions", "f"], &["fish"]),
    ] {
        let mut bash = home.command("bash");
        bash.args(["--norc", "-c", press, "bash"]).arg(&path).args(words);
        let output = run(&mut bash);
        assert!(output.status.success(), "{}", said(&output));
        let offered = String::from_utf8(output.stdout).unwrap();
        let mut offered: Vec<&str> = offered.lines().collect();
        offered.sort_unstable();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(offered, expected, "{words:?}");
    }
}

#[test]
fn nobody_complains_about_the_man_pages() {
    let checkers: [&[&str]; 2] =
        [&["mandoc", "-Tlint", "-Wwarning"], &["groff", "-ww", "-man", "-Tutf8", "-z"]];
    for checker in checkers {
        for page in fs::read_dir(repository().join("packaging/man")).unwrap() {
            let mut command = Command::new(checker[0]);
            command.args(&checker[1..]).arg(page.unwrap().path());
            let Ok(output) = try_run(&mut command) else {
                skipped("nobody_complains_about_the_man_pages", &format!("no {}", checker[0]));
                break;
            };
            // The one tells its findings as its output, the other as talk.
            assert!(output.status.success() && output.stdout.is_empty(), "{}", said(&output));
            assert!(output.stderr.is_empty(), "{}", said(&output));
        }
    }
}

/// An archive as a release has it, unpacked.
fn archive(home: &Home) -> PathBuf {
    let root = home.path().join("archive");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir_all(root.join("man")).unwrap();
    let put = |from: &Path, to: PathBuf| {
        // A link where that is possible: debug builds are large.
        if fs::hard_link(from, &to).is_err() {
            fs::copy(from, &to).unwrap();
        }
    };
    put(Path::new(env!("CARGO_BIN_EXE_tracecraftd")), root.join("bin/tracecraftd"));
    put(Path::new(env!("CARGO_BIN_EXE_tracecraftctl")), root.join("bin/tracecraftctl"));
    for page in fs::read_dir(repository().join("packaging/man")).unwrap() {
        let page = page.unwrap();
        fs::copy(page.path(), root.join("man").join(page.file_name())).unwrap();
    }
    fs::copy(repository().join("packaging/install.sh"), root.join("install.sh")).unwrap();
    let sums =
        "find . -type f ! -name SHA256SUMS -exec sha256sum {} + > ../sums && mv ../sums SHA256SUMS";
    let output = run(home.command("sh").current_dir(&root).args(["-c", sums]));
    assert!(output.status.success(), "{}", said(&output));
    root
}

fn install(home: &Home, archive: &Path, arguments: &[&str]) -> Output {
    install_with(home, archive, None, &[], arguments)
}

/// The same with variables, and with a directory of programs that come before all others.
fn install_with(
    home: &Home,
    archive: &Path,
    first: Option<&Path>,
    variables: &[(&str, &str)],
    arguments: &[&str],
) -> Output {
    let mut command = home.command("sh");
    command.envs(variables.iter().copied()).arg(archive.join("install.sh")).args(arguments);
    if let Some(first) = first {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", first.display()));
    }
    run(&mut command)
}

/// All that is in the home beside the archive.
fn beside_the_archive(home: &Home) -> BTreeMap<String, String> {
    snapshot(home.path(), &["archive"])
}

#[test]
fn the_install_script_installs_below_a_prefix_and_takes_all_of_it_away() {
    let home = Home::new();
    let archive = archive(&home);
    let before = beside_the_archive(&home);
    let output = install(&home, &archive, &[]);
    assert!(output.status.success(), "{}", said(&output));
    let told = String::from_utf8(output.stdout).unwrap();
    let prefix = home.path().join(".local");
    let written: Vec<String> = beside_the_archive(&home).into_keys().collect();
    for name in &written {
        let path = home.path().join(name);
        if path.is_file() {
            assert!(told.contains(&format!("installed {}\n", path.display())), "{name}: {told}");
        }
    }
    for (name, mode) in [
        ("bin/tracecraftd", 0o755),
        ("bin/tracecraftctl", 0o755),
        ("share/man/man1/tracecraftctl-verify.1", 0o644),
        ("share/man/man5/tracecraft-config.5", 0o644),
        ("share/bash-completion/completions/tracecraftctl", 0o644),
        ("share/zsh/site-functions/_tracecraftctl", 0o644),
        ("share/fish/vendor_completions.d/tracecraftctl.fish", 0o644),
    ] {
        let meta = fs::metadata(prefix.join(name)).expect(name);
        assert_eq!(meta.permissions().mode() & 0o777, mode, "{name}");
        assert!(meta.len() > 0, "{name}");
    }
    assert!(told.ends_with("tracecraftctl service install\n"), "{told}");
    let again = install(&home, &archive, &[]);
    assert!(again.status.success(), "{}", said(&again));
    assert_eq!(beside_the_archive(&home).into_keys().collect::<Vec<_>>(), written);
    let output = install(&home, &archive, &["--uninstall"]);
    assert!(output.status.success(), "{}", said(&output));
    let left = beside_the_archive(&home);
    let new: Vec<_> = left.keys().filter(|name| !before.contains_key(*name)).collect();
    assert_eq!(new, [&prefix.display().to_string()], "only the prefix itself is left");
}

#[test]
fn the_install_script_writes_nothing_when_a_file_is_not_what_its_digest_says() {
    let home = Home::new();
    let archive = archive(&home);
    let before = beside_the_archive(&home);
    fs::write(archive.join("man/tracecraftd.1"), "another page").unwrap();
    let output = install(&home, &archive, &[]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("SHA256SUMS says\ntry: "), "{told}");
    // The archive's own list may be the forged one: then the one that was had elsewhere tells.
    fs::remove_file(archive.join("SHA256SUMS")).unwrap();
    let list = home.path().join("archive/list");
    for (text, words) in [
        (format!("{}  man/tracecraftd.1\n", "0".repeat(64)), "are not what"),
        (String::new(), "no SHA-256 digests"),
    ] {
        fs::write(&list, text).unwrap();
        let output = install(&home, &archive, &["--checksums", list.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(String::from_utf8_lossy(&output.stderr).contains(words), "{}", said(&output));
    }
    assert_eq!(beside_the_archive(&home), before);
}

#[test]
fn the_install_script_replaces_nothing_by_a_program_that_does_not_run_here() {
    let home = Home::new();
    let archive = archive(&home);
    assert!(install(&home, &archive, &[]).status.success());
    let before = beside_the_archive(&home);
    fs::remove_file(archive.join("SHA256SUMS")).unwrap();
    for name in ["tracecraftd", "tracecraftctl"] {
        let program = archive.join("bin").join(name);
        let good = archive.join("good");
        fs::rename(&program, &good).unwrap();
        // The head of a program for a machine that this is not.
        fs::write(&program, b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xff\xff").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let output = install(&home, &archive, &[]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains(&format!("{name} does not run here")), "{told}");
        assert!(told.contains("\ntry: "), "{told}");
        assert_eq!(beside_the_archive(&home), before);
        fs::rename(&good, &program).unwrap();
    }
}

#[test]
fn the_install_script_leaves_no_half_of_a_file_where_writing_fails() {
    let home = Home::new();
    let archive = archive(&home);
    // A copier that fails halfway, as on a full disk.
    let fake = home.path().join("archive/fake");
    fs::create_dir(&fake).unwrap();
    fs::write(fake.join("cp"), "#!/bin/sh\nprintf half >\"$2\"\nexit 1\n").unwrap();
    fs::set_permissions(fake.join("cp"), fs::Permissions::from_mode(0o755)).unwrap();
    let output = install_with(&home, &archive, Some(&fake), &[], &[]);
    assert!(!output.status.success(), "{}", said(&output));
    let left = beside_the_archive(&home);
    let half: Vec<_> = left.keys().filter(|name| name.contains("tracecraft")).collect();
    assert!(half.is_empty(), "{half:?}");
}

#[test]
fn the_install_script_takes_no_program_from_another_users_service() {
    let home = Home::new();
    let archive = archive(&home);
    assert!(install(&home, &archive, &[]).status.success());
    let program = home.path().join(".local/bin/tracecraftd");
    // With sudo: the unit is in the home of whoever asked, not in root's.
    let ada = home.path().join("archive/ada");
    let unit = ada.join(".config/systemd/user/tracecraftd.service");
    fs::create_dir_all(unit.parent().unwrap()).unwrap();
    fs::write(&unit, format!("[Service]\nExecStart={}\n", program.display())).unwrap();
    let fake = home.path().join("archive/fake");
    fs::create_dir(&fake).unwrap();
    let answer = format!(
        "#!/bin/sh\n[ \"$*\" = 'passwd ada' ] && echo ada:x:1:1::{}:/bin/sh\n",
        ada.display()
    );
    fs::write(fake.join("getent"), answer).unwrap();
    fs::set_permissions(fake.join("getent"), fs::Permissions::from_mode(0o755)).unwrap();
    let sudo = [("SUDO_USER", "ada")];
    let output = install_with(&home, &archive, Some(&fake), &sudo, &["--uninstall"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(String::from_utf8_lossy(&output.stderr).contains(unit.to_str().unwrap()));
    assert!(program.is_file());
    fs::remove_file(&unit).unwrap();
    // A process is one too, whoever's unit it is of.
    if Path::new("/proc/self/exe").exists() {
        let mut command = home.command(program.to_str().unwrap());
        command.args(["--interval", "1h"]);
        let mut daemon = Daemon::spawn_command(&home, command);
        daemon.wait_ready(&home);
        let output = install(&home, &archive, &["--uninstall"]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains(&format!("process {} still runs", daemon.pid())), "{told}");
        assert!(program.is_file());
        daemon.kill9();
    }
    let output = install_with(&home, &archive, Some(&fake), &sudo, &["--uninstall"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(!program.exists());
}

#[test]
fn the_install_script_refuses_what_makes_no_sense_and_a_program_that_a_service_runs() {
    let home = Home::new();
    let archive = archive(&home);
    for arguments in [&["--prefix"][..], &["--prefix", "here"], &["--no-such"]] {
        let output = install(&home, &archive, arguments);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(String::from_utf8_lossy(&output.stderr).contains("\ntry: "), "{}", said(&output));
    }
    assert!(install(&home, &archive, &[]).status.success());
    let unit = home.path().join(".config/systemd/user/tracecraftd.service");
    fs::create_dir_all(unit.parent().unwrap()).unwrap();
    let program = home.path().join(".local/bin/tracecraftd");
    fs::write(&unit, format!("[Service]\nExecStart={}\n", program.display())).unwrap();
    let output = install(&home, &archive, &["--uninstall"]);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("tracecraftctl service uninstall"), "{told}");
    assert!(program.is_file());
}
