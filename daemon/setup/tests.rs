//! What a service is told of a shell's variables, and what never.

use super::*;
use crate::paths::tests::environment;

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

struct Scene {
    home: tempfile::TempDir,
}

impl Scene {
    fn new(config: Option<&str>) -> Scene {
        let scene = Scene { home: tempfile::tempdir().unwrap() };
        if let Some(text) = config {
            write_file(&scene.config(), text).unwrap();
        }
        scene
    }

    fn config(&self) -> PathBuf {
        self.home.path().join(".config/tracecraft/config.toml")
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.config()).unwrap_or_default()
    }

    fn survey(&self, shell: &[(&str, &str)], service: &[(&str, &str)]) -> Survey {
        let vars = |all: &[(&str, &str)]| {
            all.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect::<Vars>()
        };
        let environment = environment(self.home.path(), shell);
        survey(Flags::default(), environment, &vars(shell), &vars(service)).unwrap()
    }
}

#[test]
fn what_only_variables_say_is_written_before_all_else_and_means_the_same_without_them() {
    let scene = Scene::new(Some("interval = \"2s\"\n\n[[exclude]]\ncwd = \"~/clients\"\n"));
    let shell = [
        ("TRACECRAFT_STORE", "s3://bucket/project"),
        ("TRACECRAFT_INTERVAL", "9s"),
        ("CODEX_HOME", "~/co\"dex"),
        ("HERMES_HOME", " "),
        ("AWS_REGION", "eu-west-1"),
        ("AWS_PROFILE", "backup"),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
    ];
    let found = scene.survey(&shell, &[]);
    let keys: Vec<_> = found.wanted.iter().map(|one| (one.key, one.line)).collect();
    let expected = [
        ("store", None),
        ("region", None),
        ("interval", Some(1)),
        ("codex_home", None),
        ("profile", None),
    ];
    assert_eq!(keys, expected);
    let completed = found.completed(&scene.text()).unwrap();
    assert!(completed.ends_with(&scene.text()), "{completed}");
    assert!(completed.starts_with("# Written by `tracecraftctl service install`"), "{completed}");
    assert!(!completed.contains(SECRET) && !completed.contains("9s"), "{completed}");
    write_file(&scene.config(), &completed).unwrap();

    let config = Config::resolve(Flags::default(), environment(scene.home.path(), &[])).unwrap();
    assert_eq!(config.store.value.to_string(), "s3://bucket/project");
    let codex = scene.home.path().join("co\"dex");
    assert_eq!(config.agent_vars().collect::<Vec<_>>(), [("CODEX_HOME", &codex)]);
    // Once more: nothing is wanted that is not there.
    assert_eq!(scene.survey(&shell, &[]).completed(&completed), None);
}

#[test]
fn credentials_are_told_by_name_and_only_when_the_service_lacks_them() {
    let scene = Scene::new(None);
    let s3 = ("TRACECRAFT_STORE", "s3://bucket/project");
    let key = ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE");
    let credentials = |shell: &[(&str, &str)], service: &[(&str, &str)]| {
        let found = scene.survey(shell, service);
        assert!(!format!("{found:?}").contains("AKIA"));
        found.credentials
    };
    assert_eq!(credentials(&[s3, key], &[]), ["AWS_ACCESS_KEY_ID"]);
    assert!(credentials(&[s3, key], &[key]).is_empty(), "the service has it, too");
    assert!(credentials(&[s3, key, ("AWS_PROFILE", "p")], &[]).is_empty(), "a profile is for it");
    assert!(credentials(&[key], &[]).is_empty(), "a local store needs none");
    let hf = ("TRACECRAFT_STORE", "hf://user/bucket/project");
    assert_eq!(credentials(&[hf, key, ("HF_ACCESS_KEY_ID", "x")], &[]), ["HF_ACCESS_KEY_ID"]);
    let files = scene.survey(&[s3, ("AWS_CONFIG_FILE", "/x")], &[]);
    assert_eq!(files.unseen, ["AWS_CONFIG_FILE"]);
    let usual = scene.home.path().join(".config").display().to_string();
    let moved = [("XDG_CONFIG_HOME", usual.as_str()), ("XDG_STATE_HOME", "/s")];
    assert_eq!(scene.survey(&moved, &[]).unseen, ["XDG_STATE_HOME"], "the other is as without");
    assert!(scene.survey(&moved, &moved).unseen.is_empty());
}

#[test]
fn what_the_service_sees_anyway_is_not_written() {
    let scene = Scene::new(None);
    let vars = [("TRACECRAFT_STATE_DIR", "/s/state"), ("CODEX_HOME", "/c")];
    assert_eq!(scene.survey(&vars, &vars).wanted, []);
    let other = [("TRACECRAFT_STATE_DIR", "/other"), ("CODEX_HOME", "/c")];
    let keys: Vec<_> = scene.survey(&vars, &other).wanted.iter().map(|one| one.key).collect();
    assert_eq!(keys, ["state_dir"]);
}

#[test]
fn a_configuration_behind_a_link_stays_behind_it() {
    let scene = Scene::new(None);
    let real = scene.home.path().join("dotfiles.toml");
    write_file(&real, "").unwrap();
    std::fs::create_dir_all(scene.config().parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(&real, scene.config()).unwrap();
    write_file(&scene.config(), "log = \"warn\"\n").unwrap();
    assert!(scene.config().is_symlink());
    assert_eq!(std::fs::read_to_string(&real).unwrap(), "log = \"warn\"\n");
}
