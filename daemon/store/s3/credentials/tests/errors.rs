//! What a person is told when there are no keys, and that it never is a secret.

use super::stand_in::{ID, SECRET, StandIn, World, later};
use crate::store::s3::credentials::{CredentialsError, Source};

const ROLE: &str = "arn:aws:iam::123456789012:role/recorder";

/// A world where STS is asked with a web identity, and answers this.
async fn at_sts(status: u16, body: &str) -> (World, StandIn) {
    let body = body.to_owned();
    let service = StandIn::new(move |_, _| (status, body.clone())).await;
    let world = World::new();
    let token = world.path("token");
    let world = world
        .file("token", "hush-jwt")
        .var("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap())
        .var("AWS_ROLE_ARN", ROLE)
        .var("AWS_ENDPOINT_URL_STS", service.url());
    (world, service)
}

#[tokio::test]
async fn t38_no_credentials_at_all_names_every_place_and_what_to_set() {
    let mut world = World::new();
    let (config, credentials) = (world.path(".aws/config"), world.path(".aws/credentials"));
    let expected = |instance: &str| {
        format!(
            "found no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile with AWS_PROFILE \
             (looked at AWS_ACCESS_KEY_ID (not set); AWS_WEB_IDENTITY_TOKEN_FILE (not set); the profile \"default\" \
             (not in {} and {}); AWS_CONTAINER_CREDENTIALS_FULL_URI (not set); instance metadata ({instance}))",
            credentials.display(),
            config.display()
        )
    };
    assert_eq!(world.complaint().await, expected("off by AWS_EC2_METADATA_DISABLED"));
    // Where nothing listens, as on a machine that is none of Amazon's.
    let nobody = StandIn::new(|_, _| (404, String::new())).await;
    world = world.var("AWS_EC2_METADATA_DISABLED", "false");
    world.reroute = Some(nobody.address);
    assert_eq!(world.complaint().await, expected("http://169.254.169.254 knows no role"));
    drop(nobody);
    assert!(
        world
            .complaint()
            .await
            .ends_with("instance metadata (http://169.254.169.254 does not answer))")
    );
    assert!(!world.keys().await.unwrap_err().is_temporary());
}

#[tokio::test]
async fn a_machine_that_had_keys_and_is_silent_is_an_outage() {
    let world = World::new();
    let expires = later(&world.clock, 60);
    let service = StandIn::new(move |request, _| match request.uri().path() {
        "/latest/meta-data/iam/security-credentials/" => (200, "web".into()),
        path if path.ends_with("web") => super::stand_in::json_answer(1, &expires),
        _ => (200, "hush".into()),
    })
    .await;
    let mut world = world.var("AWS_EC2_METADATA_DISABLED", "false");
    world.reroute = Some(service.address);
    let source = world.source();
    source.keys().await.unwrap();
    drop(service);
    let error = source.keys().await.unwrap_err();
    assert!(error.is_temporary());
    let told = error.to_string();
    let expected =
        "the instance metadata service at http://169.254.169.254/latest/api/token did not answer: ";
    assert!(told.starts_with(expected), "{told}");
}

#[tokio::test]
async fn a_profile_that_is_not_there_is_named_with_its_files_and_its_neighbour() {
    let world = World::new()
        .file(".aws/config", "[profile Development]\nregion = eu-west-3\n[default]\n")
        .var("AWS_PROFILE", "developmnt");
    let places = format!(
        "{} and {}",
        world.path(".aws/credentials").display(),
        world.path(".aws/config").display()
    );
    assert_eq!(
        world.complaint().await,
        format!("there is no profile \"developmnt\" in {places}; did you mean \"Development\"?")
    );
    let world = world.profile("x");
    assert_eq!(world.complaint().await, format!("there is no profile \"x\" in {places}"));
}

#[tokio::test]
async fn a_profile_that_cannot_work_says_what_is_wrong_with_it() {
    let role = format!("role_arn = {ROLE}");
    let cases = [
        (
            role.clone(),
            "has role_arn and needs source_profile, credential_source or web_identity_token_file",
        ),
        (
            format!("{role}\nsource_profile = b\ncredential_source = Environment"),
            "has more than one way to the keys that role_arn needs",
        ),
        (
            format!("{role}\nsource_profile = a\n[profile b]\n"),
            "has no credentials, and a role needs them",
        ),
        (
            format!("{role}\nsource_profile = b\n[profile b]\n{role}\nsource_profile = a"),
            "never comes to an end through source_profile",
        ),
        (
            format!("{role}\ncredential_source = hush"),
            "has a credential_source that is none of Environment, EcsContainer and Ec2InstanceMetadata",
        ),
        (
            format!(
                "{role}\nsource_profile = b\nduration_seconds = hush\n[profile b]\naws_access_key_id = {ID}\naws_secret_access_key = {SECRET}"
            ),
            "has a duration_seconds that is no number",
        ),
        (
            format!(
                "{role}\nsource_profile = b\nmfa_serial = m\n[profile b]\naws_access_key_id = {ID}\naws_secret_access_key = {SECRET}"
            ),
            "wants a one-time code (mfa_serial), and nobody is here to type it: use SSO or credential_process",
        ),
        (
            "sso_session = nowhere".into(),
            "names sso_session \"nowhere\", and there is no such section",
        ),
        (
            "sso_session = s\n[sso-session s]\nx = y".into(),
            "names sso_session \"s\", which has no sso_region",
        ),
        ("sso_account_id = 1".into(), "has a setting of SSO, but no sso_start_url"),
        ("sso_start_url = u\nsso_region = evil.example/".into(), "has an sso_region that is none"),
    ];
    for (config, flaw) in cases {
        let world =
            World::new().profile("a").file(".aws/config", &format!("[profile a]\n{config}\n"));
        assert_eq!(world.complaint().await, format!("the profile \"a\" {flaw}"));
    }
    let half = format!("[a]\naws_secret_access_key = {SECRET}\n");
    let world = World::new().profile("a").file(".aws/credentials", &half);
    assert_eq!(
        world.complaint().await,
        "the profile \"a\" has aws_secret_access_key, but not aws_access_key_id: set both or none"
    );
    let missing = World::new()
        .profile("a")
        .file(".aws/config", &format!("[profile a]\n{role}\nsource_profile=hidden"));
    assert!(missing.complaint().await.starts_with("there is no profile \"hidden\" in "));
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named_with_the_line_and_never_with_its_words() {
    let world = World::new().file(".aws/credentials", &format!("[default]\n\n{SECRET}\n"));
    let path = world.path(".aws/credentials").display().to_string();
    assert_eq!(world.complaint().await, format!("cannot read {path}: line 3 is no setting"));
    world.write(".aws/credentials", "aws_access_key_id = hush");
    assert_eq!(world.complaint().await, format!("cannot read {path}: line 1 is no setting"));
    world.write(".aws/credentials", &"#".repeat(1024 * 1024 + 1));
    assert_eq!(world.complaint().await, format!("cannot read {path}: it is larger than 1 MiB"));
    let (world, _service) = at_sts(200, "").await;
    std::fs::remove_file(world.path("token")).unwrap();
    let path = world.path("token").display().to_string();
    assert!(world.complaint().await.starts_with(&format!("cannot read {path}: No such file")));
}

#[tokio::test]
async fn a_service_that_refuses_is_quoted_but_for_secrets() {
    let refusal = |code: &str, message: &str| {
        format!(
            "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"
        )
    };
    let (world, service) =
        at_sts(403, &refusal("AccessDenied", "Not authorized to perform sts:AssumeRole\u{1b}[31m"))
            .await;
    assert_eq!(
        world.complaint().await,
        format!(
            "the token service (STS) at {}/ refused: 403 AccessDenied: Not authorized to perform sts:AssumeRole [31m",
            service.url()
        )
    );
    let (world, service) =
        at_sts(400, &refusal("InvalidIdentityToken", "hush-jwt is no token")).await;
    assert_eq!(
        world.complaint().await,
        format!(
            "the token service (STS) at {}/ refused: 400 InvalidIdentityToken: (its message repeats a secret)",
            service.url()
        )
    );
    let (world, service) = at_sts(503, "hush-jwt is overloaded").await;
    assert_eq!(
        world.complaint().await,
        format!("the token service (STS) at {}/ refused: 503", service.url())
    );
    assert!(world.keys().await.unwrap_err().is_temporary());
}

#[tokio::test]
async fn a_service_that_answers_something_else_or_nothing_is_named() {
    for body in ["", "hush", "<html>hush</html>", "<AssumeRoleWithWebIdentityResponse/>"] {
        let (world, service) = at_sts(200, body).await;
        assert_eq!(
            world.complaint().await,
            format!(
                "the token service (STS) at {}/ answered with something that is no credentials",
                service.url()
            ),
            "{body}"
        );
    }
    let (world, service) = at_sts(200, &"hush".repeat(100_000)).await;
    let told = world.complaint().await;
    assert!(told.ends_with("/ did not answer: its answer is too long"), "{told}");
    let url = service.url();
    drop(service);
    let error = world.keys().await.unwrap_err();
    assert!(error.is_temporary());
    assert!(
        error
            .to_string()
            .starts_with(&format!("the token service (STS) at {url}/ did not answer: "))
    );
}

#[tokio::test]
async fn keys_that_have_expired_already_are_no_keys() {
    let world = World::new();
    let past = later(&world.clock, -1);
    let command = format!("printf '{}'", super::stand_in::json_answer(1, &past).1);
    let world = world
        .profile("p")
        .file(".aws/config", &format!("[profile p]\ncredential_process = {command}\n"));
    let error = world.cache().get().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "the profile \"p\" (credential_process) hands out credentials that have expired: renew them there, or set the \
         clock of this machine"
    );
    assert!(matches!(error, CredentialsError::Stale { .. }));
}

#[tokio::test]
async fn an_endpoint_that_would_show_credentials_is_not_asked() {
    let container = |url: &str| World::new().var("AWS_CONTAINER_CREDENTIALS_FULL_URI", url);
    let setting = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
    for (url, flaw) in [
        (
            "http://example.com/keys",
            "is plain http to another machine, which would show credentials: use https",
        ),
        (
            "http://169.254.169.254/keys",
            "is plain http to another machine, which would show credentials: use https",
        ),
        ("http://user:hush@127.0.0.1/keys", "has credentials in its URL: remove them"),
        ("ftp://127.0.0.1/keys", "is neither https nor http"),
        ("/keys", "is no URL of the form https://host"),
        ("http://", "is no URL"),
    ] {
        assert_eq!(container(url).complaint().await, format!("{setting} {flaw}"), "{url}");
    }
    let (world, _service) = at_sts(503, "").await;
    let mut world = world.var("AWS_ENDPOINT_URL_STS", "http://sts.example.com");
    assert_eq!(
        world.complaint().await,
        "AWS_ENDPOINT_URL_STS is plain http to another machine, which would show credentials: use https"
    );
    world.allow_http = true;
    world.reroute = Some(_service.address);
    assert!(world.complaint().await.contains("refused: 503"), "a person may say that it is fine");
}

#[tokio::test]
async fn a_role_that_is_none_is_not_asked_for() {
    let (world, service) = at_sts(200, "").await;
    let world = world
        .profile("a")
        .file(".aws/config", "[profile a]\nrole_arn = hush\ncredential_source = Environment\n")
        .var("AWS_ACCESS_KEY_ID", ID)
        .var("AWS_SECRET_ACCESS_KEY", SECRET);
    assert_eq!(
        world.complaint().await,
        "the token service (STS) cannot be asked: AWS STS AssumeRole role ARN is invalid"
    );
    assert_eq!(service.asked().len(), 0);
}

#[tokio::test]
async fn a_profile_of_our_configuration_gives_its_own_keys_or_none() {
    let world = World::new().profile("a").file(".aws/config", "[profile a]\nregion = eu-west-3\n");
    assert_eq!(world.complaint().await, "the profile \"a\" has no credentials");
}
