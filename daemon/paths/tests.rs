//! Tables: which path wins, on a platform with and without a runtime directory.

use std::process::Command;

use super::*;

/// An environment below a scratch home, as Linux has it without any `XDG_*` variable and without a login session.
pub(crate) fn environment(home: &Path, vars: &[(&str, &str)]) -> Environment {
    Environment {
        bases: Bases {
            home: home.to_owned(),
            config: home.join(".config"),
            state: Some(home.join(".local/state")),
            data: home.join(".local/share"),
            runtime: None,
        },
        vars: vars.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
    }
}

#[test]
fn the_default_paths_are_those_of_the_platform() {
    let mut linux = environment(Path::new("/h"), &[]);
    assert_eq!(linux.default_config(), Path::new("/h/.config/tracecraft/config.toml"));
    assert_eq!(linux.default_state_dir(), Path::new("/h/.local/state/tracecraft"));
    assert_eq!(linux.default_bucket(), Path::new("/h/.local/share/tracecraft/bucket"));
    assert_eq!(linux.default_socket(Path::new("/s")), Path::new("/s/run/tracecraftd.sock"));
    linux.bases.runtime = Some("/run/user/7".into());
    let socket = linux.default_socket(Path::new("/s"));
    assert_eq!(socket, Path::new("/run/user/7/tracecraft/tracecraftd.sock"));

    let support = PathBuf::from("/Users/u/Library/Application Support");
    let mut mac = environment(Path::new("/Users/u"), &[]);
    mac.bases.config = support.clone();
    mac.bases.data = support.clone();
    mac.bases.state = None;
    assert_eq!(mac.default_state_dir(), support.join("tracecraft/state"));
    assert_eq!(mac.default_bucket(), support.join("tracecraft/bucket"));
}

#[test]
fn a_client_finds_the_socket_by_flag_then_variable_then_file_then_default() {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join(".config/tracecraft/config.toml");
    std::fs::create_dir_all(config.parent().unwrap()).unwrap();
    let write = |text: &str| write(&config, text);
    let at = |flag: Option<&str>, vars: &[(&str, &str)]| {
        socket(flag.map(Path::new), &environment(home.path(), vars)).unwrap()
    };
    let default = home.path().join(".local/state/tracecraft/run/tracecraftd.sock");

    assert_eq!(at(None, &[]), default);
    write("socket = \"/f/s\"\nstate_dir = \"/f/state\"\n");
    assert_eq!(at(None, &[]), Path::new("/f/s"));
    assert_eq!(at(None, &[("TRACECRAFT_SOCKET", "/v/s")]), Path::new("/v/s"));
    assert_eq!(at(Some("/g/s"), &[("TRACECRAFT_SOCKET", "/v/s")]), Path::new("/g/s"));
    write("state_dir = \"~/st\"\n");
    assert_eq!(at(None, &[]), home.path().join("st/run/tracecraftd.sock"));
    let moved = at(None, &[("TRACECRAFT_STATE_DIR", "/v/state")]);
    assert_eq!(moved, Path::new("/v/state/run/tracecraftd.sock"));
    let other = at(None, &[("TRACECRAFT_CONFIG", "/nonexistent/c.toml")]);
    assert_eq!(other, default, "another file is named, and it is not there");
    write("socket = [broken");
    assert_eq!(at(None, &[]), default);
}

#[test]
fn a_socket_path_that_the_kernel_would_cut_is_refused_with_length_limit_and_flag() {
    let path = |bytes: usize| PathBuf::from(format!("/{}", "x".repeat(bytes - 1)));
    assert_eq!(check_socket_path(&path(SOCKET_PATH_BYTES - 1)), Ok(()));
    let error = check_socket_path(&path(SOCKET_PATH_BYTES)).unwrap_err().to_string();
    for word in [SOCKET_PATH_BYTES.to_string(), (SOCKET_PATH_BYTES - 1).to_string()] {
        assert!(error.contains(&word), "{error}");
    }
    assert!(error.contains("--socket"), "{error}");
}

#[test]
fn the_tilde_is_the_home_only_as_a_whole_first_component() {
    let environment = environment(Path::new("/h"), &[]);
    for (given, expected) in
        [("~", "/h"), ("~/a", "/h/a"), ("~//a", "/h/a"), ("~u/a", "~u/a"), ("/a/~", "/a/~")]
    {
        assert_eq!(environment.expand_home(given), Path::new(expected), "{given}");
    }
}

/// Run by the next test in a process of its own, whose environment it may choose.
#[test]
#[ignore = "run by a_relative_xdg_value_is_ignored_and_an_absolute_one_is_honoured"]
fn print_environment() {
    match Environment::of_process() {
        Ok(environment) => println!("={:?}", environment),
        Err(error) => println!("={error}"),
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_relative_xdg_value_is_ignored_and_an_absolute_one_is_honoured() {
    let seen = |vars: &[(&str, &str)]| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "paths::tests::print_environment", "--ignored", "--nocapture"])
            .env_clear()
            .envs(vars.iter().copied())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find_map(|line| line.split_once('=').map(|(_, seen)| seen));
        line.unwrap().to_owned()
    };
    let expected = |config: &str, state: &str, data: &str, runtime: Option<&str>| {
        let mut environment = environment(Path::new("/h"), &[]);
        environment.bases.config = config.into();
        environment.bases.state = Some(state.into());
        environment.bases.data = data.into();
        environment.bases.runtime = runtime.map(PathBuf::from);
        format!("{environment:?}")
    };
    let plain = expected("/h/.config", "/h/.local/state", "/h/.local/share", None);
    assert_eq!(seen(&[("HOME", "/h")]), plain);
    let relative = [
        ("HOME", "/h"),
        ("XDG_CONFIG_HOME", "c"),
        ("XDG_STATE_HOME", "./s"),
        ("XDG_DATA_HOME", ""),
        ("XDG_RUNTIME_DIR", "r"),
        ("TRACECRAFT_STORE", ""),
        ("AWS_SECRET_ACCESS_KEY", "never kept"),
    ];
    assert_eq!(seen(&relative), plain);
    let absolute = [
        ("HOME", "/h"),
        ("XDG_CONFIG_HOME", "/c"),
        ("XDG_STATE_HOME", "/s"),
        ("XDG_DATA_HOME", "/d"),
        ("XDG_RUNTIME_DIR", "/r"),
    ];
    assert_eq!(seen(&absolute), expected("/c", "/s", "/d", Some("/r")));
    assert_eq!(seen(&[("HOME", "not/absolute")]), PathError::NoHome.to_string());
}

/// Writes a file as a user's editor would.
pub(crate) fn write(path: &Path, text: &str) {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path).unwrap().write_all(text.as_bytes()).unwrap();
}
