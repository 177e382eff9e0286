//! Logins in the browser: the token that they leave, its renewal, and its end.

use std::io::ErrorKind;
use std::sync::Arc;

use http::Request;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::stand_in::{StandIn, World, later};
use crate::durable::memory::{DiskFault, MemoryDisk};
use crate::store::s3::credentials::{CredentialsError, Source};

/// SHA-1 of `corp`, the name of the session, and of the start URL, which name the files of their tokens.
const SESSION_TOKEN: &str = ".aws/sso/cache/ee0bfd2552fbd840c02cc48b6e823320543c450f.json";
const URL: &str = "https://corp.awsapps.com/start";

const SESSION: &str = "[profile dev]\nsso_session = corp\nsso_account_id = 123456789012\nsso_role_name = Read Only\n\
                       [sso-session corp]\nsso_region = eu-west-3\nsso_start_url = https://corp.awsapps.com/start\n";

async fn service(world: &World) -> StandIn {
    let clock = world.clock.clone();
    StandIn::new(move |request, number| match request.uri().path() {
        "/token" => {
            let asked: Value = serde_json::from_slice(request.body()).unwrap();
            let good =
                asked["refreshToken"] == "hush-refresh-0" && asked["grantType"] == "refresh_token";
            let answer = json!({
                "accessToken": "hush-new", "expiresIn": 3600, "refreshToken": "hush-refresh-1",
            });
            if good {
                (200, answer.to_string())
            } else {
                (400, r#"{"error":"invalid_grant"}"#.into())
            }
        }
        "/federation/credentials" if bearer(request).starts_with("hush-") => {
            let expiration: Timestamp = later(&clock, 60).parse().unwrap();
            let keys = json!({"roleCredentials": {
                "accessKeyId": format!("ASIASSO{number}"), "secretAccessKey": "hush",
                "sessionToken": "hush-token", "expiration": expiration.as_millisecond(),
            }});
            (200, keys.to_string())
        }
        _ => (
            401,
            r#"{"message":"Session token not found or invalid","__type":"Unauthorized"}"#.into(),
        ),
    })
    .await
}

fn bearer(request: &Request<bytes::Bytes>) -> String {
    request.headers()["x-amz-sso_bearer_token"].to_str().unwrap().to_owned()
}

fn token(access: &str, expires: &str) -> Value {
    json!({"accessToken": access, "expiresAt": expires, "region": "eu-west-3", "startUrl": URL})
}

fn renewable(access: &str, expires: &str, registered: &str) -> Value {
    let mut token = token(access, expires);
    token["clientId"] = "client".into();
    token["clientSecret"] = "hush-client".into();
    token["refreshToken"] = "hush-refresh-0".into();
    token["registrationExpiresAt"] = registered.into();
    token
}

async fn world() -> (World, StandIn) {
    let world = World::new();
    let service = service(&world).await;
    let world = world
        .var("AWS_PROFILE", "dev")
        .var("AWS_ENDPOINT_URL_SSO", service.url())
        .var("AWS_ENDPOINT_URL_SSO_OIDC", service.url())
        .file(".aws/config", SESSION);
    (world, service)
}

#[tokio::test]
async fn t38_a_login_gives_the_keys_of_a_role_and_new_ones_before_they_expire() {
    let (world, service) = world().await;
    world.write(SESSION_TOKEN, &token("hush-a", &later(&world.clock, 480)).to_string());
    let cache = world.cache();
    let keys = cache.get().await.unwrap();
    assert_eq!(
        (keys.access_key_id.as_str(), keys.origin.as_str()),
        ("ASIASSO0", "the profile \"dev\" (SSO)")
    );
    assert!(keys.expires.is_some());
    let asked = &service.asked()[0];
    assert_eq!(
        asked.uri(),
        "/federation/credentials?role_name=Read%20Only&account_id=123456789012"
    );
    assert_eq!(bearer(asked), "hush-a");
    world.clock.forward(56);
    assert_eq!(cache.get().await.unwrap().access_key_id, "ASIASSO1");
}

#[tokio::test]
async fn a_login_of_the_older_kind_is_found_by_its_url() {
    let (world, _service) = world().await;
    let config = format!(
        "[profile dev]\nsso_start_url = {URL}\nsso_region = eu-west-3\nsso_account_id = 1\nsso_role_name = r\n"
    );
    let file = format!(".aws/sso/cache/{}.json", reqsign_core::hash::hex_sha1(URL.as_bytes()));
    let world = world.file(".aws/config", &config);
    // Older tools wrote the zone like this.
    let expires = later(&world.clock, 480).replace('Z', "UTC");
    world.write(&file, &token("hush-a", &expires).to_string());
    assert_eq!(world.keys().await.unwrap().access_key_id, "ASIASSO0");
}

#[tokio::test]
async fn t38_a_token_is_renewed_before_it_expires_and_put_back_for_the_tools_that_share_it() {
    let (world, service) = world().await;
    let old = renewable("hush-old", &later(&world.clock, 4), &later(&world.clock, 10_000));
    world.write(SESSION_TOKEN, &old.to_string());
    world.keys().await.unwrap();
    assert_eq!(bearer(&service.asked()[1]), "hush-new");
    let stored: Value =
        serde_json::from_slice(&std::fs::read(world.path(SESSION_TOKEN)).unwrap()).unwrap();
    assert_eq!(stored["accessToken"], "hush-new");
    assert_eq!(stored["refreshToken"], "hush-refresh-1");
    assert_eq!(stored["expiresAt"], later(&world.clock, 60).as_str());
    assert_eq!(stored["startUrl"], URL, "what is not ours stays as it was");
    world.keys().await.unwrap();
    assert_eq!(service.count("/token"), 1, "the renewed token is found");
}

#[tokio::test]
async fn who_may_not_write_renews_no_login_and_says_so() {
    let (world, service) = world().await;
    let looks = || world.source().without_renewals();
    let due = renewable("hush-old", &later(&world.clock, 4), &later(&world.clock, 10_000));
    world.write(SESSION_TOKEN, &due.to_string());
    looks().keys().await.unwrap();
    assert_eq!(bearer(&service.asked()[0]), "hush-old", "it is good for a while yet");
    let ended = renewable("hush-old", &later(&world.clock, -4), &later(&world.clock, 10_000));
    world.write(SESSION_TOKEN, &ended.to_string());
    let error = looks().keys().await.unwrap_err();
    assert!(matches!(error, CredentialsError::Due { .. }), "{error}");
    world.write(SESSION_TOKEN, &token("hush-a", &later(&world.clock, -1)).to_string());
    let error = looks().keys().await.unwrap_err();
    assert!(matches!(error, CredentialsError::Login { .. }), "{error}");
    assert_eq!(service.count("/token"), 0);
}

#[tokio::test]
async fn a_renewed_token_that_cannot_be_put_back_is_kept_in_memory() {
    let (world, service) = world().await;
    let old = renewable("hush-old", &later(&world.clock, -4), &later(&world.clock, 10_000));
    world.write(SESSION_TOKEN, &old.to_string());
    let disk = MemoryDisk::new();
    disk.set_hook(Box::new(|_, _| DiskFault::Error(ErrorKind::ReadOnlyFilesystem)));
    let source = world.source_on(Arc::new(disk));
    source.keys().await.unwrap();
    source.keys().await.unwrap();
    assert_eq!(service.count("/token"), 1);
    assert_eq!(bearer(service.asked().last().unwrap()), "hush-new");
}

#[tokio::test]
async fn a_token_that_cannot_be_renewed_is_used_to_its_end() {
    let (world, service) = world().await;
    let mut old = renewable("hush-old", &later(&world.clock, 4), &later(&world.clock, 10_000));
    old["refreshToken"] = "hush-taken-back".into();
    world.write(SESSION_TOKEN, &old.to_string());
    world.keys().await.unwrap();
    assert_eq!(bearer(&service.asked()[1]), "hush-old");
}

#[tokio::test]
async fn t38_a_login_that_is_over_says_how_to_log_in_again() {
    let over = "the login of the profile \"dev\" is over: run `aws sso login --profile dev`";
    let (world, service) = world().await;
    assert_eq!(world.complaint().await, over, "there never was one");
    world.write(SESSION_TOKEN, &token("hush-a", &later(&world.clock, -1)).to_string());
    assert_eq!(world.complaint().await, over);
    let gone = renewable("hush-a", &later(&world.clock, -1), &later(&world.clock, -1));
    world.write(SESSION_TOKEN, &gone.to_string());
    assert_eq!(world.complaint().await, over, "not even the registration is good");
    assert_eq!(service.asked().len(), 0, "nobody is asked for what cannot be had");
    world.write(SESSION_TOKEN, "hush, no JSON");
    assert_eq!(world.complaint().await, over);
    let mut refused = renewable("hush-a", &later(&world.clock, -1), &later(&world.clock, 9));
    refused["refreshToken"] = "hush-taken-back".into();
    world.write(SESSION_TOKEN, &refused.to_string());
    assert_eq!(world.complaint().await, over);
    world.write(SESSION_TOKEN, &token("logged-out-elsewhere", &later(&world.clock, 9)).to_string());
    assert_eq!(world.complaint().await, over);
}
