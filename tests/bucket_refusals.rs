//! A bucket that cannot be used: wrong keys, wrong region, no such bucket, a wrong clock, a store that has no room or no
//! sense. Each is told so that a person knows what to do, with the exit code of the documents; nothing is lost by any.

use std::process::Output;

use crate::bucket::behind_a_proxy;
use crate::support::bucket::Kind as ServerKind;
use crate::support::daemon::{Daemon, status};
use crate::support::home::{Home, run, said};
use crate::support::judge;
use crate::support::oracle::Bucket;
use crate::support::planted::Planted;
use crate::support::proxy::{Canned, Proxy};
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
        let bucket = Bucket::read(&self.home.objects());
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

#[test]
fn t38_a_wrong_secret_is_told_and_not_echoed() {
    for kind in [ServerKind::S3sFs, ServerKind::Garage] {
        let Some(scene) = Scene::new(kind, "a wrong secret") else { continue };
        let secret = ["n0t", "The", "Secret0123456789abcdefghijklm"].concat();
        let output = scene.once_with(&[("AWS_SECRET_ACCESS_KEY", &secret)]);
        assert_says(&output, FAILED, &[&["signature", "secret"], &["credential", "key"]]);
        assert!(!said(&output).contains(&secret), "the secret was echoed");
        scene.recovers();
    }
}

#[test]
fn t38_an_unknown_access_key_is_told() {
    for kind in [ServerKind::S3sFs, ServerKind::Garage] {
        let Some(scene) = Scene::new(kind, "an unknown key") else { continue };
        let output = scene.once_with(&[("AWS_ACCESS_KEY_ID", "GKffffffffffffffffffffffff")]);
        assert_says(&output, FAILED, &[&["credential", "key"]]);
        scene.recovers();
    }
}

#[test]
fn t38_no_credentials_at_all_are_told() {
    let Some(scene) = Scene::new(ServerKind::S3sFs, "no credentials") else { return };
    let mut command = scene.home.tracecraftd();
    command.arg("--once").env_remove("AWS_ACCESS_KEY_ID").env_remove("AWS_SECRET_ACCESS_KEY");
    // Nobody answers there: a machine of a cloud is not asked who it is.
    command.env("AWS_EC2_METADATA_DISABLED", "true");
    assert_says(&run(&mut command), FAILED, &[&["credential"]]);
    scene.recovers();
}

#[test]
fn t46_a_bucket_that_is_not_there_is_named() {
    for kind in [ServerKind::S3sFs, ServerKind::Moto, ServerKind::Garage] {
        let Some(scene) = Scene::new(kind, "no such bucket") else { continue };
        let output = scene.once_with(&[("TRACECRAFT_STORE", "s3://no-bucket-of-this-name/p")]);
        assert_says(&output, FAILED, &[&["no-bucket-of-this-name"], &["bucket"]]);
        scene.recovers();
    }
}

#[test]
fn t41_a_wrong_region_is_told_with_the_right_one() {
    let Some(scene) = Scene::new(ServerKind::Garage, "a wrong region") else { return };
    let output = scene.once_with(&[("AWS_REGION", "mars-north-1")]);
    assert_says(&output, FAILED, &[&["region"], &["garage"]]);
    scene.recovers();
}

/// What servers say, and what a person must be told of it.
const ANSWERS: &[(u16, &str, &[&[&str]])] = &[
    (403, "RequestTimeTooSkewed", &[&["clock", "time"]]),
    (403, "AccessDenied", &[&["denied", "allowed", "right", "permission"]]),
    (403, "InvalidAccessKeyId", &[&["key", "credential"]]),
    (403, "SignatureDoesNotMatch", &[&["secret", "signature"]]),
    (400, "ExpiredToken", &[&["expired", "credential"]]),
    (404, "NoSuchBucket", &[&["bucket"]]),
    (301, "PermanentRedirect", &[&["region"], &["eu-central-1"]]),
    (400, "AuthorizationHeaderMalformed", &[&["region"]]),
    (507, "InsufficientStorage", &[&["room", "space", "full", "quota", "storage"]]),
];

#[test]
fn t38_t39_t44_t46_what_a_server_refuses_is_told_so_that_a_person_knows_what_to_do() {
    let Some(scene) = Scene::new(ServerKind::S3sFs, "refusals") else { return };
    for (status, code, words) in ANSWERS {
        let headers = vec![("x-amz-bucket-region", "eu-central-1")];
        scene.proxy.say(Some(Canned { status: *status, code, headers }));
        assert_says(&scene.home.once_with(&[]), FAILED, words);
    }
    scene.recovers();
}

#[test]
fn t36_a_success_that_holds_an_error_is_no_success() {
    let Some(scene) = Scene::new(ServerKind::S3sFs, "200 with an error") else { return };
    scene.proxy.say(Some(Canned { status: 200, code: "InternalError", headers: Vec::new() }));
    let output = scene.home.once_with(&[]);
    assert_eq!(output.status.code(), Some(FAILED), "{}", said(&output));
    scene.recovers();
}

#[test]
fn t42_a_listing_that_fails_is_never_an_empty_bucket() {
    let Some(scene) = Scene::new(ServerKind::S3sFs, "a failed listing") else { return };
    scene.home.once();
    let before = scene.home.objects().versions();
    for (status, code) in [(500, "InternalError"), (403, "AccessDenied"), (404, ""), (200, "")] {
        std::fs::remove_dir_all(scene.home.state_dir()).unwrap();
        scene.proxy.say(Some(Canned { status, code, headers: Vec::new() }));
        let output = scene.home.once_with(&[]);
        assert!(!output.status.success(), "{status} {code}: {}", said(&output));
        scene.recovers();
        assert_eq!(before, scene.home.objects().versions(), "{status} {code}: sent twice");
    }
}

#[test]
fn t38_t39_t46_a_daemon_whose_store_refuses_stays_tells_and_goes_on_by_itself() {
    let Some(mut scene) = Scene::new(ServerKind::S3sFs, "a daemon that is refused") else { return };
    let mut daemon = Daemon::start(&scene.home, &["--interval", "200ms"]);
    wait_until_ok("the first parts", || match Bucket::read(&scene.home.objects()).sessions.len() {
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
