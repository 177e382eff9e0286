//! A bucket that cannot be used: wrong keys, wrong region, no such bucket, a wrong clock, a store that has no room or no
//! sense. Each is told so that a person knows what to do, with the exit code of the documents; nothing is lost by any.

use std::process::Output;

use crate::bucket::behind_a_proxy;
use crate::support::bucket::Kind as ServerKind;
use crate::support::daemon::{Daemon, ctl, ctl_ok, status};
use crate::support::home::{Home, run, said};
use crate::support::judge;
use crate::support::oracle::Bucket;
use crate::support::planted::Planted;
use crate::support::proxy::{Canned, Kind, Proxy};
use crate::support::writers::Transcript;
use crate::support::{wait_for, wait_until_ok};

const FAILED: i32 = 1;
const USAGE: i32 = 2;

/// A home with one session whose bucket is behind a proxy.
struct Scene {
    home: Home,
    proxy: Proxy,
    planted: Planted,
    transcript: Transcript,
}

impl Scene {
    fn new(kind: ServerKind, test: &str) -> Option<Scene> {
        let (proxy, home) = behind_a_proxy(kind, test, 4)?;
        let planted = Planted::exact_only(61);
        let mut transcript = Transcript::new(&home, "claude-code", 1, 61);
        transcript.grow(&planted, 4);
        Some(Scene { home, proxy, planted, transcript })
    }

    /// `--once` with other variables than those of the bucket.
    fn once_with(&self, variables: &[(&str, &str)]) -> Output {
        run(self.home.tracecraftd().arg("--once").envs(variables.iter().copied()))
    }

    fn complete(&self) -> Result<(), String> {
        let bucket = Bucket::read(self.home.objects());
        judge::verdict(judge::at_rest(&bucket, &[self.transcript.source(&self.planted)]))
    }

    /// After what was wrong is right again, everything is stored.
    fn recovers(&self) {
        self.proxy.say(None);
        self.home.once();
        self.complete().unwrap();
    }
}

/// The program ended with `code`, and said one word of each group on its standard error.
fn assert_says(output: &Output, code: i32, words: &[&[&str]]) {
    let text = said(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    let spoken = String::from_utf8_lossy(&output.stderr).to_lowercase();
    for group in words {
        assert!(group.iter().any(|word| spoken.contains(word)), "not said: {group:?}\n{text}");
    }
    assert!(!text.contains("panicked"), "{text}");
    println!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
}

/// A server, what is wrong with the settings, and what must be said of it.
struct Wrong {
    what: &'static str,
    kind: ServerKind,
    /// Variables that are set to something else, or taken away.
    variables: &'static [(&'static str, Option<&'static str>)],
    words: &'static [&'static [&'static str]],
}

/// A secret that must not be echoed. It belongs to nobody.
const SECRET: &str = "n0tTheSecret0123456789abcdefghijklm";

const SECRET_WORDS: &[&[&str]] = &[&["signature", "secret"], &["credential", "key"]];
/// What a server says that has one word for a wrong secret, an unknown key and a right that is not given: all are named.
const EITHER_WORDS: &[&[&str]] = &[
    &["s3:listbucket"],
    &["the key or its secret is wrong"],
    &["environment (aws_access_key_id)"],
    &["invalid signature", "no such key"],
];
const BUCKET_WORDS: &[&[&str]] = &[&["no-bucket-of-this-name"], &["bucket"]];
const NO_BUCKET: &[(&str, Option<&str>)] =
    &[("TRACECRAFT_STORE", Some("s3://no-bucket-of-this-name/p"))];
const WRONG_SECRET: &[(&str, Option<&str>)] = &[("AWS_SECRET_ACCESS_KEY", Some(SECRET))];
const WRONG_KEY: &[(&str, Option<&str>)] =
    &[("AWS_ACCESS_KEY_ID", Some("GKffffffffffffffffffffffff"))];

const WRONGS: &[Wrong] = &[
    Wrong {
        what: "a wrong secret",
        kind: ServerKind::S3sFs,
        variables: WRONG_SECRET,
        words: SECRET_WORDS,
    },
    Wrong {
        what: "a wrong secret",
        kind: ServerKind::Garage,
        variables: WRONG_SECRET,
        words: EITHER_WORDS,
    },
    Wrong {
        what: "an unknown key",
        kind: ServerKind::S3sFs,
        variables: WRONG_KEY,
        words: &[&["credential", "key"]],
    },
    Wrong {
        what: "an unknown key",
        kind: ServerKind::Garage,
        variables: WRONG_KEY,
        words: EITHER_WORDS,
    },
    Wrong {
        what: "no such bucket",
        kind: ServerKind::S3sFs,
        variables: NO_BUCKET,
        words: BUCKET_WORDS,
    },
    Wrong {
        what: "no such bucket",
        kind: ServerKind::Moto,
        variables: NO_BUCKET,
        words: BUCKET_WORDS,
    },
    Wrong {
        what: "no such bucket",
        kind: ServerKind::Garage,
        variables: NO_BUCKET,
        words: BUCKET_WORDS,
    },
    Wrong {
        what: "a wrong region",
        kind: ServerKind::Garage,
        variables: &[("AWS_REGION", Some("mars-north-1"))],
        words: &[&["region"], &["garage"]],
    },
    Wrong {
        what: "no credentials",
        kind: ServerKind::S3sFs,
        // A machine of a cloud is not asked who it is.
        variables: &[
            ("AWS_ACCESS_KEY_ID", None),
            ("AWS_SECRET_ACCESS_KEY", None),
            ("AWS_EC2_METADATA_DISABLED", Some("true")),
        ],
        words: &[&["credential", "key"]],
    },
];

fn is_told(wrong: &Wrong) {
    let Some(scene) = Scene::new(wrong.kind, wrong.what) else { return };
    let mut command = scene.home.tracecraftd();
    command.arg("--once");
    for (name, value) in wrong.variables {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let output = run(&mut command);
    println!("{} ({:?}):", wrong.what, wrong.kind);
    assert_says(&output, FAILED, wrong.words);
    assert!(!said(&output).contains(SECRET), "the secret was echoed");
    scene.recovers();
}

/// All cases at a time: most of the time is waiting.
fn all_at_a_time<T: Sync>(cases: &[T], check: impl Fn(&T) + Sync) {
    std::thread::scope(|scope| {
        cases.iter().for_each(|case| drop(scope.spawn(|| check(case))));
    });
}

#[test]
fn t38_t41_t46_wrong_settings_are_told_so_that_a_person_knows_what_to_do() {
    all_at_a_time(WRONGS, is_told);
}

/// What a server says, and what a person must be told of it.
type Refusal = (u16, &'static str, &'static [&'static [&'static str]]);

const REFUSALS: &[Refusal] = &[
    (403, "RequestTimeTooSkewed", &[&["clock", "time"]]),
    (403, "AccessDenied", &[&["lacks the right"], &["secret is wrong"]]),
    (403, "InvalidAccessKeyId", &[&["key", "credential"]]),
    (403, "SignatureDoesNotMatch", &[&["secret", "signature"]]),
    (400, "ExpiredToken", &[&["expired", "credential"]]),
    (404, "NoSuchBucket", &[&["bucket"]]),
    (301, "PermanentRedirect", &[&["region"], &["eu-central-1"]]),
    (400, "AuthorizationHeaderMalformed", &[&["region"]]),
    (507, "InsufficientStorage", &[&["room", "space", "full", "quota", "storage"]]),
    // A success that holds an error is none.
    (200, "InternalError", &[&["store"]]),
];

#[test]
fn t36_t38_t39_t44_t46_what_a_server_refuses_is_told_so_that_a_person_knows_what_to_do() {
    all_at_a_time(REFUSALS, |(status, code, words)| {
        let Some(scene) = Scene::new(ServerKind::S3sFs, "refusals") else { return };
        let headers = vec![("x-amz-bucket-region", "eu-central-1")];
        scene.proxy.say(Some(Canned { status: *status, code, headers }));
        let output = scene.home.once_with(&[]);
        println!("{status} {code}:");
        assert_says(&output, FAILED, words);
        scene.recovers();
    });
}

#[test]
fn t42_a_listing_that_fails_is_never_an_empty_bucket() {
    let answers = [(500, "InternalError"), (403, "AccessDenied"), (404, ""), (200, "")];
    all_at_a_time(&answers, |(status, code)| {
        let Some(scene) = Scene::new(ServerKind::S3sFs, "a failed listing") else { return };
        scene.home.once();
        let before = scene.home.objects().versions();
        std::fs::remove_dir_all(scene.home.state_dir()).unwrap();
        scene.proxy.say(Some(Canned { status: *status, code, headers: Vec::new() }));
        let output = scene.home.once_with(&[]);
        assert!(!output.status.success(), "{status} {code}: {}", said(&output));
        scene.recovers();
        assert_eq!(before, scene.home.objects().versions(), "{status} {code}: sent twice");
    });
}

#[test]
fn t38_t39_t46_a_daemon_whose_store_refuses_stays_tells_and_goes_on_by_itself() {
    let Some(mut scene) = Scene::new(ServerKind::S3sFs, "a daemon that is refused") else { return };
    let mut daemon = Daemon::start(&scene.home, &["--interval", "200ms"]);
    wait_until_ok("the first parts", || match Bucket::read(scene.home.objects()).sessions.len() {
        1 => Ok(()),
        count => Err(format!("{count} sessions")),
    });
    for (status_code, code) in
        [(403, "ExpiredToken"), (403, "RequestTimeTooSkewed"), (404, "NoSuchBucket")]
    {
        let headers = Vec::new();
        scene.proxy.say(Some(Canned { status: status_code, code, headers }));
        scene.transcript.grow(&scene.planted, 2);
        let problem = wait_for("a problem in status", || {
            let problems = status(&scene.home)?["problems"].clone();
            let store = problems.as_array()?.iter().find(|problem| {
                problem["code"].as_str().is_some_and(|code| code.starts_with("store"))
            })?;
            Some(store.to_string())
        });
        println!("{code}: {problem}");
        scene.proxy.say(None);
        wait_for("the problem to go", || {
            let status = status(&scene.home)?;
            let gone = status["problems"].as_array()?.is_empty() && status["pending"]["parts"] == 0;
            gone.then_some(())
        });
    }
    assert_eq!(daemon.term().code(), Some(0));
    scene.complete().unwrap();
}

#[test]
fn t37_a_new_session_that_waits_for_a_store_that_is_away_is_not_called_safe() {
    let Some(scene) = Scene::new(ServerKind::S3sFs, "a start without a store") else { return };
    scene.proxy.there(false);
    let mut daemon = Daemon::spawn(&scene.home, &["--interval", "100ms"]);
    wait_for("the session to be counted", || {
        (status(&scene.home)?["sessions"]["waiting"] == 1).then_some(())
    });
    let said = String::from_utf8(ctl_ok(&scene.home, &["status"])).unwrap();
    assert!(said.contains("1 new session, not captured") && !said.contains("is safe"), "{said}");
    scene.proxy.there(true);
    wait_for("the session to be taken up", || {
        (status(&scene.home)?["sessions"]["waiting"] == 0).then_some(())
    });
    ctl_ok(&scene.home, &["flush"]);
    scene.complete().unwrap();
    assert_eq!(daemon.term().code(), Some(0));
}

#[test]
fn the_rights_to_list_get_and_put_suffice_for_everything_but_compaction() {
    let Some(mut scene) = Scene::new(ServerKind::S3sFs, "least rights") else { return };
    scene.proxy.deny(&[Kind::Delete]);
    let mut daemon = Daemon::start(&scene.home, &["--interval", "100ms"]);
    for _ in 0..4 {
        scene.transcript.grow(&scene.planted, 2);
        ctl_ok(&scene.home, &["flush"]);
    }
    let before = scene.home.objects().versions();
    let output = ctl(&scene.home, &["compact", &scene.transcript.id]);
    assert_eq!(output.status.code(), Some(FAILED), "{}", said(&output));
    assert!(said(&output).contains("s3:DeleteObject"), "{}", said(&output));
    let parts = |versions: &std::collections::BTreeMap<String, _>| {
        versions.keys().filter(|key| key.contains("/part-")).cloned().collect::<Vec<_>>()
    };
    assert_eq!(parts(&before), parts(&scene.home.objects().versions()), "nothing is left over");
    let told = status(&scene.home).unwrap();
    assert_eq!(told["remote"]["deletes"], false, "{told}");
    // With the right it is done at once, and nothing is said of it any more.
    scene.proxy.deny(&[]);
    ctl_ok(&scene.home, &["compact", &scene.transcript.id]);
    assert!(parts(&scene.home.objects().versions()).len() < parts(&before).len());
    let told = status(&scene.home).unwrap();
    assert!(told["problems"].as_array().unwrap().is_empty(), "{told}");
    scene.proxy.deny(&[Kind::Delete]);
    // It goes on, also after the next start, and what it does without a delete is right.
    scene.transcript.grow(&scene.planted, 2);
    ctl_ok(&scene.home, &["flush"]);
    ctl_ok(&scene.home, &["verify", "--deep"]);
    assert_eq!(daemon.term().code(), Some(0));
    scene.transcript.grow(&scene.planted, 2);
    scene.home.once();
    scene.complete().unwrap();
}

#[test]
fn plain_http_to_another_host_and_credentials_in_urls_are_refused() {
    let Some(scene) = Scene::new(ServerKind::S3sFs, "refused settings") else { return };
    let output = scene.once_with(&[("AWS_ENDPOINT_URL", "http://store.invalid:9000")]);
    assert_says(&output, USAGE, &[&["http"], &["allow_http"]]);
    let password = ["hunter", "22secret"].concat();
    let endpoint = format!("https://key:{password}@store.invalid");
    let output = scene.once_with(&[("AWS_ENDPOINT_URL", &endpoint)]);
    assert_says(&output, USAGE, &[&["credential"]]);
    assert!(!said(&output).contains(&password), "the credential was echoed");
    let store = format!("s3://key:{password}@bucket/project");
    let output = scene.once_with(&[("TRACECRAFT_STORE", &store)]);
    assert_says(&output, USAGE, &[&["credential"]]);
    assert!(!said(&output).contains(&password), "the credential was echoed");
    assert_eq!(scene.proxy.count(), 0, "somebody was asked all the same");
}
