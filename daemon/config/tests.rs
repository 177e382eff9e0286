//! Tables: every form of every value, every mistake and what is said about it, and who wins.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::paths::tests::{environment, write};

struct Home {
    dir: tempfile::TempDir,
}

impl Home {
    fn new() -> Home {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join(".config/tracecraft")).unwrap();
        Home { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn config(&self) -> PathBuf {
        self.path().join(".config/tracecraft/config.toml")
    }

    fn resolve(
        &self,
        flags: Flags,
        vars: &[(&str, &str)],
        text: Option<&str>,
    ) -> Result<Config, ConfigError> {
        match text {
            Some(text) => write(&self.config(), text),
            None => {
                let _ = std::fs::remove_file(self.config());
            }
        }
        Config::resolve(flags, environment(self.path(), vars))
    }

    /// Message and hint of the error that a file with this text causes, the file's path shortened.
    fn complaint(&self, text: &str) -> String {
        let error = self.resolve(Flags::default(), &[], Some(text)).expect_err(text);
        let said = format!("{error} | {}", error.hint());
        said.replace(&self.config().display().to_string(), "F")
    }
}

#[test]
fn it_works_without_any_configuration() {
    let home = Home::new();
    let config = home.resolve(Flags::default(), &[], None).unwrap();
    let bucket = home.path().join(".local/share/tracecraft/bucket");
    assert_eq!(config.store.value, StoreUrl::File { dir: bucket });
    assert_eq!(config.interval.value, Duration::from_secs(5));
    assert_eq!(config.state_dir.value, home.path().join(".local/state/tracecraft"));
    assert_eq!(config.socket.value, config.state_dir.value.join("run/tracecraftd.sock"));
    assert_eq!(config.log(), "info");
    assert!(config.redact.value);
    assert_eq!((config.min_free_space.value, config.outbox_max.value), (1 << 30, 256 << 20));
    assert_eq!(config.compaction.value, Compaction::Auto);
    assert!(config.rules.is_empty());
    assert_eq!(config.store.origin, Origin::Default);
}

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let home = Home::new();
    let text = "# comment\ninterval = \"3s\"\nlog = \"debug\"\nstate_dir = \"~/st\"\n";
    let flags = |interval: Option<&str>| Flags {
        interval: interval.map(OsString::from),
        ..Flags::default()
    };
    let var = [("TRACECRAFT_INTERVAL", "2s")];
    let file = Origin::File(home.config(), 2);
    for (flag, vars, text, seconds, origin) in [
        (Some("1s"), &var[..], Some(text), 1, Origin::Flag("--interval")),
        (None, &var[..], Some(text), 2, Origin::Variable("TRACECRAFT_INTERVAL")),
        (None, &[][..], Some(text), 3, file),
        (None, &[][..], None, 5, Origin::Default),
    ] {
        let config = home.resolve(flags(flag), vars, text).unwrap();
        let expected = Setting { value: Duration::from_secs(seconds), origin };
        assert_eq!(config.interval, expected);
    }
    let config = home.resolve(Flags::default(), &[], Some(text)).unwrap();
    assert_eq!(config.log(), "debug");
    assert_eq!(config.state_dir.value, home.path().join("st"));
    assert_eq!(config.socket.value, home.path().join("st/run/tracecraftd.sock"));
}

#[test]
fn a_named_file_that_is_missing_is_an_error_and_a_missing_default_is_none() {
    let home = Home::new();
    let flags = Flags { config: Some("/nonexistent/c.toml".into()), ..Flags::default() };
    let error = home.resolve(flags, &[], None).unwrap_err();
    assert_eq!(error.to_string(), "there is no configuration /nonexistent/c.toml");
    assert_eq!(error.hint(), "it is named by flag --config");
    let var = [("TRACECRAFT_CONFIG", "/nonexistent/c.toml")];
    let error = home.resolve(Flags::default(), &var, None).unwrap_err();
    assert_eq!(error.hint(), "it is named by environment TRACECRAFT_CONFIG");
    assert!(home.resolve(Flags::default(), &[], None).is_ok());
}

#[test]
fn a_configuration_that_others_can_write_is_refused_with_the_command_that_helps() {
    let home = Home::new();
    write(&home.config(), "");
    for mode in [0o620, 0o602, 0o666] {
        std::fs::set_permissions(home.config(), PermissionsExt::from_mode(mode)).unwrap();
        let error = Config::resolve(Flags::default(), environment(home.path(), &[])).unwrap_err();
        assert!(error.hint().starts_with("run: chmod go-w /"), "{}", error.hint());
    }
    std::fs::set_permissions(home.config(), PermissionsExt::from_mode(0o644)).unwrap();
    assert!(Config::resolve(Flags::default(), environment(home.path(), &[])).is_ok());
    std::fs::remove_file(home.config()).unwrap();
    std::fs::create_dir(home.config()).unwrap();
    let error = Config::resolve(Flags::default(), environment(home.path(), &[])).unwrap_err();
    assert!(error.to_string().ends_with("is not a regular file"), "{error}");
}

#[test]
fn a_mistake_in_the_file_names_line_key_problem_and_the_nearest_right_thing() {
    let home = Home::new();
    for (text, expected) in [
        ("\nintervall = \"5s\"", "F:2: unknown key \"intervall\" | did you mean interval?"),
        ("state-dir = \"/x\"", "F:1: unknown key \"state-dir\" | did you mean state_dir?"),
        (
            "colour = 1",
            "F:1: unknown key \"colour\" | the keys are store, endpoint, region, profile, allow_http, interval, state_dir, socket, log, log_format, redact, \
             min_free_space, outbox_max, compaction, claude_config_dir, codex_home, openclaw_state_dir, openclaw_home, hermes_home, include, exclude",
        ),
        (
            "interval = 5",
            "F:1: interval is of type integer, not text in quotes | write for example interval = \"5s\"",
        ),
        (
            "redact = \"no\"",
            "F:1: redact is of type string, not true or false | write for example redact = true",
        ),
        (
            "interval = \"5\"",
            "F:1: interval = \"5\" has no unit | write 5s for seconds or 5ms for milliseconds",
        ),
        (
            "interval = \"99ms\"",
            "F:1: interval = \"99ms\" is shorter than the least interval, 100ms | write 100ms or more",
        ),
        (
            "outbox_max = \"256MB\"",
            "F:1: outbox_max = \"256MB\" has a unit that is not B, KiB, MiB, GiB or TiB | did you mean 256MiB?",
        ),
        (
            "compaction = \"of\"",
            "F:1: compaction = \"of\" is neither auto nor off | did you mean off?",
        ),
        (
            "compaction = \"automatic\"",
            "F:1: compaction = \"automatic\" is neither auto nor off | did you mean auto?",
        ),
        (
            "compaction = \"weekly\"",
            "F:1: compaction = \"weekly\" is neither auto nor off | write auto or off",
        ),
        (
            "compaction = false",
            "F:1: compaction is of type boolean, not text in quotes | write for example compaction = \"auto\"",
        ),
        (
            "outbox_max = \"1KiB\"",
            "F:1: outbox_max = \"1KiB\" is smaller than the least outbox, 1MiB | write 1MiB or more",
        ),
        (
            "socket = \"run/s\"",
            "F:1: socket = \"run/s\" is not absolute | write for example \"/absolute/path.sock\"",
        ),
        (
            "log = \"inof\"",
            "F:1: log = \"inof\" has \"inof\", which is not a level | did you mean info?",
        ),
        (
            "log = \"warn,loud\"",
            "F:1: log = \"warn,loud\" has \"loud\", which is not a level | \
             write a level (error, warn, info, debug, trace) or target=level, with commas",
        ),
        (
            "log = \"tracecraft::mirror\"",
            "F:1: log = \"tracecraft::mirror\" has \"tracecraft::mirror\", which is not a level | \
             write a level (error, warn, info, debug, trace) or target=level, with commas",
        ),
        (
            "log = \" \"",
            "F:1: log = \" \" is empty | \
             write a level (error, warn, info, debug, trace) or target=level, with commas",
        ),
        (
            "exclude = \"codex\"",
            "F:1: exclude is not a list of tables | begin each rule with a line [[exclude]]",
        ),
        (
            "[[exclude]]\nharness = \"claude\"",
            "F:2: harness = \"claude\" is not the name of a harness | did you mean claude-code?",
        ),
        (
            "[[exclude]]\nharness = \"emacs\"",
            "F:2: harness = \"emacs\" is not the name of a harness | write one of claude-code, codex, openclaw, hermes",
        ),
        (
            "[[include]]\n",
            "F:1: [[include]] has neither harness nor cwd | \
             give it one or both: harness = \"codex\", cwd = \"~/secret\"",
        ),
        ("[[include]]\ncdw = \"/x\"", "F:2: unknown key \"cdw\" | did you mean cwd?"),
        (
            "[[include]]\ncwd = \"x/**\"",
            "F:2: cwd = \"x/**\" is not an absolute directory | \
             write an absolute directory, for example \"~/secret\" or \"/srv/*/private\"",
        ),
        (
            "store = \"fiel:///x\"",
            "F:1: store does not begin with a known scheme and two slashes, but with \"fiel:\" | \
             did you mean file://? A store URL is file:///absolute/dir, s3://bucket/project or hf://user/bucket/project",
        ),
    ] {
        assert_eq!(home.complaint(text), expected);
    }
    let syntax = home.complaint("store = \"file:///x\"\nlog = [\"s3cr3t\n");
    assert!(syntax.starts_with("F:2: "), "{syntax}");
    assert!(!syntax.contains("s3cr3t"), "{syntax}");
}

#[test]
fn the_message_says_which_flag_or_variable_is_wrong() {
    let home = Home::new();
    let flags = Flags { interval: Some("soon".into()), ..Flags::default() };
    let error = home.resolve(flags, &[], None).unwrap_err();
    assert_eq!(error.to_string(), "interval = \"soon\" (flag --interval) is not a duration");
    let error = home.resolve(Flags::default(), &[("TRACECRAFT_STORE", "s3://bucket")], None);
    assert_eq!(
        error.unwrap_err().to_string(),
        "store (environment TRACECRAFT_STORE) names no project"
    );
    let long = format!("/{}", "x".repeat(200));
    let error = home.resolve(Flags::default(), &[("TRACECRAFT_SOCKET", &long)], None);
    let error = error.unwrap_err().to_string();
    assert!(error.starts_with("socket (environment TRACECRAFT_SOCKET): "), "{error}");
    let flags = Flags { state_dir: Some(home.path().into()), ..Flags::default() };
    assert!(home.resolve(flags, &[], None).unwrap_err().to_string().contains("--state-dir"));
}

#[test]
fn durations_and_sizes_are_read_and_shown_in_one_grammar() {
    for (text, milliseconds) in
        [("100ms", 100), ("300ms", 300), ("5s", 5_000), ("1m", 60_000), ("2h", 7_200_000)]
    {
        assert_eq!(values::interval(text), Ok(Duration::from_millis(milliseconds)));
        assert_eq!(values::show_duration(Duration::from_millis(milliseconds)), text);
    }
    let overflow = format!("{}h", u64::MAX);
    for text in ["", "s", "5", "-5s", "5 s", "1.5s", "5S", "5s5s", "0ms", "25h", &overflow] {
        assert!(values::interval(text).is_err(), "{text}");
    }
    for (text, bytes) in [("0B", 0), ("512MiB", 512 << 20), ("1GiB", 1 << 30), ("3B", 3)] {
        assert_eq!(values::size(text), Ok(bytes));
        assert_eq!(values::show_size(bytes), text);
    }
    let overflow = format!("{}KiB", u64::MAX);
    for text in ["", "1", "1GB", "MiB", "1.5GiB", &overflow] {
        assert!(values::size(text).is_err(), "{text}");
    }
}

#[test]
fn a_store_url_names_one_absolute_directory_however_it_is_spelt() {
    let home = Path::new("/h");
    for (text, dir, shown) in [
        ("file:///a/b", "/a/b", "file:///a/b"),
        ("file:///a//b/./c/", "/a/b/c", "file:///a/b/c"),
        ("file:///a%20b/%C3%A9", "/a b/é", "file:///a%20b/%C3%A9"),
        ("file:///a%23%25", "/a#%", "file:///a%23%25"),
        ("file:///x:y@z", "/x:y@z", "file:///x:y@z"),
    ] {
        let store = StoreUrl::parse(text, home).unwrap();
        assert_eq!(store, StoreUrl::File { dir: dir.into() });
        assert_eq!(store.to_string(), shown);
        assert_eq!(StoreUrl::parse(shown, home), Ok(store), "what is shown parses to the same");
    }
    for (text, hint) in [
        ("", "write for example file:///absolute/dir"),
        ("/srv/bucket", "did you mean file:///srv/bucket?"),
        ("~/my bucket", "did you mean file:///h/my%20bucket?"),
        ("file:/a/b", "did you mean file:///a/b?"),
        ("file://a/b", "did you mean file:///a/b? A directory needs three slashes"),
        ("file://~/b", "did you mean file:///h/b?"),
        ("file:///a#b", "write %23 if the directory's name has one"),
        ("file:///a%2", "write %25 for a %"),
        ("file:///a%00b", "write %25 for a %"),
        ("file:///a/../b", "write the directory's path without it"),
        ("file:///", "name a directory below it"),
        ("s3://", "write for example s3://my-bucket/agents"),
        ("s3://bucket", "write for example s3://bucket/agents"),
        ("s3://bucket/", "write for example s3://bucket/agents"),
        ("s3://bucket/a//b", "write for example s3://bucket/agents"),
        ("s3://bucket/.a", "write for example s3://bucket/agents"),
        ("s3://bucket/a b", "write for example s3://bucket/agents"),
        ("s3:///project", "write for example s3://my-bucket/agents"),
        ("s3://b/project", "write for example s3://my-bucket/agents"),
        ("s3://minio:9000/bucket/project", "write for example s3://my-bucket/agents"),
        ("hf://user/bucket", "write for example hf://user/bucket/agents"),
        ("hf://user", "write for example hf://user/my-bucket/agents"),
        ("hf://buckets/user/bucket/p", "leave out \"buckets/\": hf://user/bucket/project"),
    ] {
        assert_eq!(StoreUrl::parse(text, home).expect_err(text).hint, hint, "{text}");
    }
    for (text, scheme) in [("S3:/x", "s3"), ("fiel://x", "file"), ("FILE:///x", "file")] {
        let hint = StoreUrl::parse(text, home).expect_err(text).hint;
        assert!(hint.starts_with(&format!("did you mean {scheme}://?")), "{hint}");
    }
}

#[test]
fn a_remote_store_is_a_bucket_and_a_project_in_it() {
    let parse = |text| StoreUrl::parse(text, Path::new("/h"));
    let s3 = |bucket: &str, project: &str| {
        Ok(StoreUrl::S3 { bucket: bucket.into(), project: project.into() })
    };
    assert_eq!(parse("s3://my.bucket/agents"), s3("my.bucket", "agents"));
    assert_eq!(parse("s3://bucket/team/agents/"), s3("bucket", "team/agents"));
    let (user, bucket, project) = ("some_one".into(), "b".into(), "p".into());
    assert_eq!(parse("hf://some_one/b/p"), Ok(StoreUrl::Hf { user, bucket, project }));
    for shown in ["s3://bucket/team/agents", "hf://user/bucket/agents"] {
        assert_eq!(parse(shown).unwrap().to_string(), shown);
    }
}

#[test]
fn an_endpoint_is_an_address_and_says_so_if_it_is_none() {
    for (text, value) in [
        ("https://minio.example:9000/", "https://minio.example:9000"),
        ("http://[::1]:9000", "http://[::1]:9000"),
        ("https://host/s3", "https://host/s3"),
    ] {
        assert_eq!(endpoint(text), Ok(value.to_owned()));
    }
    for (text, hint) in [
        ("minio.example:9000", "did you mean https://minio.example:9000?"),
        ("ftp://host", "write for example https://minio.example:9000"),
        ("https://", "write for example https://minio.example:9000"),
        ("https://host?x=y", "write for example https://minio.example:9000"),
    ] {
        assert_eq!(endpoint(text).expect_err(text).hint, hint, "{text}");
    }
    for text in ["https://AKIAKEY:s3cr3t@host", "AKIAKEY:s3cr3t@host"] {
        let home = Home::new();
        let bad = home.resolve(
            Flags { store: Some("s3://bucket/p".into()), ..Flags::default() },
            &[("AWS_ENDPOINT_URL", text)],
            None,
        );
        let bad = bad.unwrap_err();
        let said = format!("{bad} {}", bad.hint());
        assert!(said.contains("AWS_ENDPOINT_URL") && !said.contains("cr3t"), "{said}");
    }
}

#[test]
fn the_variables_of_aws_are_for_s3_alone_and_beat_the_file() {
    let home = Home::new();
    let file =
        "endpoint = \"https://file.example\"\nregion = \"eu-file-1\"\nprofile = \"backup\"\n";
    let vars = [
        ("AWS_ENDPOINT_URL", "https://general.example"),
        ("AWS_ENDPOINT_URL_S3", "https://special.example"),
        ("AWS_REGION", "eu-var-1"),
    ];
    let of = |store: &str, vars: &[(&str, &str)]| {
        let flags = Flags { store: Some(store.into()), ..Flags::default() };
        let remote = home.resolve(flags, vars, Some(file)).unwrap().remote;
        assert_eq!(remote.profile.unwrap().value, "backup");
        (remote.endpoint.unwrap().value, remote.region.unwrap().value)
    };
    let pair = |endpoint: &str, region: &str| (endpoint.to_owned(), region.to_owned());
    assert_eq!(of("s3://bucket/p", &vars), pair("https://special.example", "eu-var-1"));
    assert_eq!(of("s3://bucket/p", &vars[..1]), pair("https://general.example", "eu-file-1"));
    assert_eq!(of("s3://bucket/p", &[]), pair("https://file.example", "eu-file-1"));
    assert_eq!(of("hf://user/bucket/p", &vars), pair("https://file.example", "eu-file-1"));
}

#[test]
fn credentials_in_a_url_are_refused_and_never_repeated() {
    for text in [
        "s3://AKIAKEY:s3cr3t@bucket/project",
        "s3://AKIAKEY:s3/cr3t@bucket/project",
        "s3://s3cr3t@bucket/project",
        "s3:/AKIAKEY:s3cr3t@bucket",
        "fiel://u:s3cr3t@host/x",
        "file://u:s3cr3t@host/x",
        "AKIAKEY:s3cr3t@bucket",
    ] {
        let home = Home::new();
        let flags = Flags { store: Some(text.into()), ..Flags::default() };
        let error = home.resolve(flags, &[], None).unwrap_err();
        let said = format!("{error} {}", error.hint());
        assert!(said.contains("must not carry credentials"), "{text}: {said}");
        assert!(!said.contains("cr3t") && !said.contains("AKIAKEY"), "{said}");
    }
    let said = StoreUrl::parse("AKIASECRETSECRET:x", Path::new("/h")).unwrap_err();
    assert!(!said.problem.contains("AKIA"), "{}", said.problem);
}

#[test]
fn a_rule_on_the_directory_covers_it_and_what_is_below_in_every_spelling() {
    let home = Path::new("/h");
    for (pattern, cwd, covered) in [
        ("~/secret/**", "/h/secret", true),
        ("~/secret/**", "/h/secret/a/b", true),
        ("~/secret", "/h/secret/a", true),
        ("~/secret/", "/h/secrets", false),
        ("~/secret", "/h//x/../secret/./", true),
        ("~", "/h/a", true),
        ("/srv/*/private", "/srv/a/private/x", true),
        ("/srv/*/private", "/srv/a/b/private", false),
        ("**/secret", "/a/b/secret/c", true),
        ("/srv/{a,b}", "/srv/b/c", true),
        ("/**", "/", true),
        ("/", "/anything", true),
    ] {
        let pattern = rules::CwdPattern::parse(pattern, home).unwrap();
        let rule = rules::Rule { harness: None, cwd: Some(pattern.clone()) };
        let rules = Rules { include: vec![], exclude: vec![rule] };
        let expected = if covered { Decision::Exclude } else { Decision::Follow };
        assert_eq!(rules.decide("codex", Some(cwd)), expected, "{pattern:?} {cwd}");
    }
}

#[test]
fn a_rule_written_with_a_link_covers_the_directory_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap().join("real");
    std::fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
    let given = format!("{}/link/*", dir.path().display());
    let rule = rules::CwdPattern::parse(&given, Path::new("/h")).unwrap();
    let rules =
        Rules { include: vec![], exclude: vec![rules::Rule { harness: None, cwd: Some(rule) }] };
    let inside = real.join("project");
    assert_eq!(rules.decide("codex", inside.to_str()), Decision::Exclude);
}

#[test]
fn a_session_whose_directory_is_unknown_is_held_back_only_while_that_matters() {
    let home = Home::new();
    let text =
        "[[exclude]]\nharness = \"openclaw\"\n[[exclude]]\nharness = \"codex\"\ncwd = \"/s\"\n";
    let rules = home.resolve(Flags::default(), &[], Some(text)).unwrap().rules;
    assert_eq!(rules.decide("openclaw", None), Decision::Exclude);
    assert_eq!(rules.decide("claude-code", None), Decision::Follow);
    assert_eq!(rules.decide("codex", None), Decision::NeedsCwd);
    assert_eq!(rules.decide("codex", Some("/s/x")), Decision::Exclude);
    assert_eq!(rules.decide("codex", Some("/t")), Decision::Follow);

    let text = "[[include]]\nharness = \"codex\"\n[[include]]\ncwd = \"/w\"\n[[exclude]]\ncwd = \"/w/s\"\n";
    let rules = home.resolve(Flags::default(), &[], Some(text)).unwrap().rules;
    assert_eq!(rules.decide("codex", None), Decision::NeedsCwd);
    assert_eq!(rules.decide("codex", Some("/elsewhere")), Decision::Follow);
    assert_eq!(rules.decide("openclaw", Some("/elsewhere")), Decision::Exclude);
    assert_eq!(rules.decide("openclaw", Some("/w")), Decision::Follow);
    assert_eq!(rules.decide("codex", Some("/w/s")), Decision::Exclude);
}

#[test]
fn t35_a_reload_reads_the_file_again_and_names_what_needs_a_restart() {
    let home = Home::new();
    let flags = Flags { log: Some("warn".into()), ..Flags::default() };
    let old = home.resolve(flags, &[], Some("interval = \"1s\"\n")).unwrap();
    write(&home.config(), "interval = \"2s\"\nlog = \"debug\"\n");
    let new = old.reload().unwrap();
    assert_eq!(new.interval.value, Duration::from_secs(2));
    assert_eq!(new.log(), "warn", "the flag still wins");
    assert_eq!(old.changes_needing_restart(&new), Vec::<&str>::new());
    write(&home.config(), "store = \"file:///elsewhere\"\nstate_dir = \"/st\"\n");
    let new = old.reload().unwrap();
    assert_eq!(old.changes_needing_restart(&new), ["store", "state_dir", "socket"]);
    write(&home.config(), "interval = broken");
    assert!(old.reload().is_err());
}

#[test]
fn nothing_of_ours_may_be_inside_a_harness_root() {
    let home = Home::new();
    let root = home.path().join(".claude/projects");
    std::fs::create_dir_all(&root).unwrap();
    std::os::unix::fs::symlink(&root, home.path().join("link")).unwrap();
    let with = |store: &str| {
        let store = format!("file://{}/{store}", home.path().display());
        let flags = Flags { store: Some(store.into()), ..Flags::default() };
        let config = home.resolve(flags, &[], None).unwrap();
        config.check_roots(&[("claude-code", &root)])
    };
    assert!(with("bucket").is_ok());
    assert!(with(".claude/projects-of-mine").is_ok());
    for inside in [".claude/projects", ".claude/projects/a/b", "link/not/yet/there"] {
        let error = with(inside).unwrap_err().to_string();
        assert!(error.starts_with("store (flag --store) is inside /"), "{error}");
        assert!(error.ends_with("where claude-code keeps its sessions"), "{error}");
    }
}

#[test]
fn check_shows_every_value_with_its_origin_in_columns() {
    let home = Home::new();
    let text = "redact = false\n[[exclude]]\ncwd = \"~/secret\"\n";
    let flags = Flags { store: Some("file:///b".into()), ..Flags::default() };
    let config = home.resolve(flags, &[("TRACECRAFT_LOG", "debug")], Some(text)).unwrap();
    let shown =
        config.describe(Vec::new(), &[("codex", Path::new("/nonexistent/.codex/sessions"))]);
    let shown = shown.replace(&home.path().display().to_string(), "~");
    let words: Vec<String> =
        shown.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        words,
        [
            "config ~/.config/tracecraft/config.toml default",
            "store file:///b flag --store",
            "interval 5s default",
            "state_dir ~/.local/state/tracecraft default",
            "socket ~/.local/state/tracecraft/run/tracecraftd.sock default",
            "log debug environment TRACECRAFT_LOG",
            "log_format text default",
            "redact false ~/.config/tracecraft/config.toml:1",
            "min_free_space 1GiB default",
            "outbox_max 256MiB default",
            "compaction auto default",
            "exclude cwd ~/secret ~/.config/tracecraft/config.toml",
            "root codex /nonexistent/.codex/sessions not there",
        ]
    );
}
