//! Every kind of source yields its keys, and yields new ones before the old ones expire.

use std::sync::Arc;

use http::{Method, Request};

use super::stand_in::{ID, SECRET, StandIn, TestClock, World, json_answer, later, sts_answer};
use crate::durable::OsDisk;
use crate::store::s3::Transport;
use crate::store::s3::credentials::{Keys, Source};
use crate::store::s3::signer::reference::verify;

const ROLE: &str = "arn:aws:iam::123456789012:role/recorder";

/// Keys live this long in these tests.
const LIFE_MINUTES: i64 = 60;

/// Asks twice while the first keys are good, and once more shortly before they expire.
async fn renews(world: &World, first: &str, second: &str) -> Keys {
    let cache = world.cache();
    let keys = cache.get().await.unwrap();
    assert_eq!(keys.access_key_id, first);
    assert_eq!(cache.get().await.unwrap().access_key_id, first, "they are good yet");
    world.clock.forward(LIFE_MINUTES - 4);
    assert_eq!(
        cache.get().await.unwrap().access_key_id,
        second,
        "they are renewed before they expire"
    );
    (*keys).clone()
}

/// A token service that checks who asks, and numbers the keys that it gives.
async fn token_service(clock: Arc<TestClock>) -> StandIn {
    StandIn::new(move |request, number| {
        let parts = request.clone().into_parts().0;
        let sts = |action| sts_answer(action, number, &later(&clock, LIFE_MINUTES));
        if request.method() == Method::POST {
            return sts("AssumeRoleWithWebIdentity");
        }
        let id = authorization(request);
        let secret = match id.strip_prefix("ASIAROLE") {
            Some(number) => format!("hush{}", number.parse::<usize>().unwrap()),
            None => SECRET.to_owned(),
        };
        match verify(&parts, &secret, "eu-west-3", "sts") {
            Ok(_) => sts("AssumeRole"),
            Err(wrong) => {
                (403, format!("<ErrorResponse><Error><Code>{wrong}</Code></Error></ErrorResponse>"))
            }
        }
    })
    .await
}

fn authorization(request: &Request<bytes::Bytes>) -> String {
    let value = request.headers()["authorization"].to_str().unwrap();
    value.split_once("Credential=").unwrap().1.split('/').next().unwrap().to_owned()
}

fn with_token_service(world: World, service: &StandIn) -> World {
    world.var("AWS_ENDPOINT_URL_STS", service.url()).var("AWS_REGION", "eu-west-3")
}

fn static_profile(name: &str) -> String {
    format!("[{name}]\naws_access_key_id = {ID}\naws_secret_access_key = {SECRET}\n")
}

#[tokio::test]
async fn the_environment_comes_first_unless_our_configuration_names_a_profile() {
    let world = World::new()
        .var("AWS_ACCESS_KEY_ID", "AKIAENV")
        .var("AWS_SECRET_ACCESS_KEY", "hush")
        .var("AWS_PROFILE", "work")
        .file(".aws/credentials", &static_profile("work"));
    assert_eq!(world.keys().await.unwrap().access_key_id, "AKIAENV");
    let keys = world.profile("work").keys().await.unwrap();
    assert_eq!((keys.access_key_id.as_str(), keys.secret_access_key.as_str()), (ID, SECRET));
    assert_eq!(keys.origin, "the profile \"work\"");
}

#[tokio::test]
async fn t38_a_web_identity_of_the_environment_becomes_a_role_and_its_token_is_read_each_time() {
    let world = World::new();
    let service = token_service(world.clock.clone()).await;
    let token = world.path("run/token");
    let world = with_token_service(world, &service)
        .file("run/token", "hush-first\n")
        .var("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap())
        .var("AWS_ROLE_ARN", ROLE)
        .var("AWS_ROLE_SESSION_NAME", "laptop");
    let keys = renews(&world, "ASIAROLE000000000000", "ASIAROLE000000000001").await;
    assert_eq!(keys.session_token.as_deref(), Some("hush-token-0"));
    assert_eq!(keys.origin, format!("the role {ROLE}"));
    world.write("run/token", "hush-second");
    world.keys().await.unwrap();
    let bodies: Vec<String> =
        service.asked().iter().map(|asked| String::from_utf8_lossy(asked.body()).into()).collect();
    assert!(
        bodies[0].contains("WebIdentityToken=hush-first&")
            && bodies[0].contains("RoleSessionName=laptop")
    );
    assert!(bodies[2].contains("WebIdentityToken=hush-second&"), "{}", bodies[2]);
}

#[tokio::test]
async fn t38_keys_in_a_file_are_found_and_read_anew_when_the_store_refuses_them() {
    let world = World::new().file(".aws/credentials", &static_profile("default"));
    let cache = world.cache();
    assert_eq!(cache.get().await.unwrap().access_key_id, ID);
    let new =
        "[default]\naws_access_key_id=AKIANEW\naws_secret_access_key=hush\naws_session_token=hush";
    world.write(".aws/credentials", new);
    world.clock.forward(10_000);
    assert_eq!(cache.get().await.unwrap().access_key_id, ID, "they say nothing of an end");
    cache.drop_keys();
    let keys = cache.get().await.unwrap();
    assert_eq!(
        (keys.access_key_id.as_str(), keys.session_token.as_deref()),
        ("AKIANEW", Some("hush"))
    );
}

#[tokio::test]
async fn t38_a_profile_assumes_its_role_with_the_keys_of_its_source() {
    let world = World::new();
    let service = token_service(world.clock.clone()).await;
    let config = format!(
        "[profile app]\nrole_arn = {ROLE}\nsource_profile = base\nexternal_id = e=1:2\n\
         role_session_name = app@laptop\nduration_seconds = 3600\n"
    );
    let world = with_token_service(world, &service)
        .var("AWS_PROFILE", "app")
        .file(".aws/config", &config)
        .file(".aws/credentials", &static_profile("base"));
    renews(&world, "ASIAROLE000000000000", "ASIAROLE000000000001").await;
    let query = service.asked()[0].uri().query().unwrap().to_owned();
    for part in [
        "Action=AssumeRole&",
        "RoleArn=arn%3Aaws%3Aiam%3A%3A123456789012%3Arole%2Frecorder",
        "ExternalId=e%3D1%3A2",
        "RoleSessionName=app%40laptop",
        "DurationSeconds=3600",
    ] {
        assert!(query.contains(part), "{query}");
    }
}

#[tokio::test]
async fn roles_follow_each_other_and_each_signs_with_the_keys_of_the_one_before() {
    let world = World::new();
    let service = token_service(world.clock.clone()).await;
    let config = format!(
        "[profile last]\nrole_arn = {ROLE}-last\nsource_profile = middle\n\
         [profile middle]\nrole_arn = {ROLE}-middle\nsource_profile = middle\n{}",
        static_profile("profile middle").split_once('\n').unwrap().1,
    );
    let world = with_token_service(world, &service).profile("last").file(".aws/config", &config);
    // As a source, `middle` gives the keys it has and not its role, as AWS's tools have it.
    assert_eq!(world.keys().await.unwrap().access_key_id, "ASIAROLE000000000000");
    let config = format!(
        "[profile last]\nrole_arn = {ROLE}-last\nsource_profile = middle\n\
         [profile middle]\nrole_arn = {ROLE}-middle\nsource_profile = first\n{}",
        static_profile("profile first"),
    );
    world.write(".aws/config", &config);
    let keys = world.keys().await.unwrap();
    assert_eq!(keys.access_key_id, "ASIAROLE000000000002");
    assert_eq!(keys.origin, format!("the role {ROLE}-last"));
    let asked = service.asked();
    assert_eq!([authorization(&asked[1]), authorization(&asked[2])], [ID, "ASIAROLE000000000001"]);
}

#[tokio::test]
async fn a_profile_assumes_its_own_role_with_its_own_keys_or_a_named_source_or_a_web_identity() {
    let world = World::new();
    let service = token_service(world.clock.clone()).await;
    let token = world.path("token");
    let own = static_profile("profile own");
    let config = format!(
        "{own}role_arn = {ROLE}\nsource_profile = own\n\
         [profile env]\nrole_arn = {ROLE}\ncredential_source = Environment\n\
         [profile web]\nrole_arn = {ROLE}\nweb_identity_token_file = {}\n",
        token.display()
    );
    let mut world = with_token_service(world, &service)
        .file(".aws/config", &config)
        .file("token", "hush-jwt")
        .var("AWS_ACCESS_KEY_ID", ID)
        .var("AWS_SECRET_ACCESS_KEY", SECRET);
    for (number, profile) in ["own", "env", "web"].into_iter().enumerate() {
        world = world.profile(profile);
        let keys = world.keys().await.unwrap();
        assert_eq!(keys.access_key_id, format!("ASIAROLE{number:012}"), "{profile}");
    }
}

#[tokio::test]
async fn t38_a_container_gives_keys_at_the_address_and_with_the_token_of_the_environment() {
    let world = World::new();
    let clock = world.clock.clone();
    let service = StandIn::new(move |request, number| {
        match request.headers().get("authorization").map(|value| value.to_str().unwrap()) {
            Some("hush-pod") => json_answer(number, &later(&clock, LIFE_MINUTES)),
            _ => (403, "no".into()),
        }
    })
    .await;
    let token = world.path("pod-token");
    let world = world
        .var("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/v1/credentials?x=1", service.url()))
        .var("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().unwrap())
        .file("pod-token", "hush-pod\n");
    let keys = renews(&world, "ASIAJSON000000000000", "ASIAJSON000000000001").await;
    assert_eq!(keys.origin, "the container's credential service");
    assert_eq!(service.asked()[0].uri(), "/v1/credentials?x=1");
    // ECS names a path alone, and the token itself.
    let mut world = World::new()
        .var("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/credentials/task")
        .var("AWS_CONTAINER_AUTHORIZATION_TOKEN", "hush-pod");
    world.reroute = Some(service.address);
    world.keys().await.unwrap();
    assert_eq!(service.asked()[2].uri(), "/v2/credentials/task");
    assert_eq!(service.asked()[2].headers()["host"], "169.254.170.2");
}

#[tokio::test]
async fn t38_a_machine_gives_the_keys_of_its_role_to_one_who_holds_a_session_token() {
    let world = World::new();
    let clock = world.clock.clone();
    let service = StandIn::new(move |request, number| {
        let token = request.headers().get("x-aws-ec2-metadata-token");
        let has_token = token.is_some_and(|token| token == "hush-session");
        match (request.method().as_str(), request.uri().path()) {
            ("PUT", "/latest/api/token") => (200, "hush-session".into()),
            ("GET", "/latest/meta-data/iam/security-credentials/") if has_token => {
                (200, "web".into())
            }
            ("GET", "/latest/meta-data/iam/security-credentials/web") if has_token => {
                json_answer(number, &later(&clock, LIFE_MINUTES))
            }
            _ => (401, String::new()),
        }
    })
    .await;
    let named = world
        .var("AWS_EC2_METADATA_DISABLED", "false")
        .var("AWS_EC2_METADATA_SERVICE_ENDPOINT", format!("{}/", service.url()));
    let keys = renews(&named, "ASIAJSON000000000002", "ASIAJSON000000000005").await;
    assert_eq!(keys.origin, format!("the instance metadata service at {}", service.url()));
    let mut usual = World::new().var("AWS_EC2_METADATA_DISABLED", "False");
    usual.reroute = Some(service.address);
    assert_eq!(
        usual.keys().await.unwrap().origin,
        "the instance metadata service at http://169.254.169.254"
    );
}

#[tokio::test]
async fn the_stores_own_transport_asks_for_keys_too() {
    let world = World::new();
    let service = token_service(world.clock.clone()).await;
    let config = format!("[profile app]\nrole_arn = {ROLE}\nsource_profile = base\n");
    let world = with_token_service(world, &service)
        .profile("app")
        .file(".aws/config", &config)
        .file(".aws/credentials", &static_profile("base"));
    let source =
        world.source_with(Arc::new(OsDisk::new()), Arc::new(Transport::new(None).unwrap()));
    assert_eq!(source.keys().await.unwrap().access_key_id, "ASIAROLE000000000000");
    drop(service);
    let error = source.keys().await.unwrap_err();
    assert!(error.is_temporary());
    assert!(error.to_string().contains("did not answer: cannot reach the server: "), "{error}");
}
