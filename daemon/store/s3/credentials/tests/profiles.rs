//! The files of AWS's own tools, in the forms in which people have them.

use super::stand_in::World;
use crate::store::s3::credentials::profile_settings;
use crate::store::s3::credentials::profiles::ProfileSettings;

fn settings(region: Option<&str>, endpoint_url: Option<&str>) -> ProfileSettings {
    ProfileSettings {
        region: region.map(str::to_owned),
        endpoint_url: endpoint_url.map(str::to_owned),
    }
}

#[test]
fn a_profile_says_region_and_endpoint_of_the_store() {
    let config = "\u{feff}# mine\r\n[default]\r\nregion = eu-west-3 ; near\r\n\r\n\
                  [ profile  \"my garage\" ]\nregion=garage\nendpoint_url = http://127.0.0.1:3900 # local\n\
                  [profile r2]\nREGION = auto\nservices = cloud\nendpoint_url = https://all.example\n\
                  s3 =\n  max_concurrent_requests = 2\n  region = not-this-one\n\
                  [services cloud]\nsts =\n  endpoint_url = https://sts.example\ns3 =\n    endpoint_url = https://r2.example;x\n\
                  [profile off]\nservices = cloud\nignore_configured_endpoint_urls = true\n\
                  [profile bad]\nservices = clown\n[work]\nregion = ignored\n";
    let world = World::new().file(".aws/config", config);
    let of = |profile: Option<&str>| profile_settings(&world.environment(), profile);
    assert_eq!(of(None), Ok(settings(Some("eu-west-3"), None)));
    assert_eq!(of(Some("my garage")), Ok(settings(Some("garage"), Some("http://127.0.0.1:3900"))));
    assert_eq!(of(Some("r2")), Ok(settings(Some("auto"), Some("https://r2.example;x"))));
    assert_eq!(of(Some("off")), Ok(settings(None, None)));
    assert_eq!(
        of(Some("bad")).unwrap_err().to_string(),
        "the profile \"bad\" names services \"clown\", and there is no such section"
    );
    assert!(of(Some("work")).is_err(), "without the word `profile` it is none in this file");
}

#[test]
fn the_environment_says_which_profile_and_which_files() {
    let world = World::new()
        .file("elsewhere/c", "[profile a]\nregion = one\n[profile b]\nregion = two\n")
        .file("elsewhere/k", "[a]\nregion = from credentials\n");
    let (config, credentials) = (world.path("elsewhere/c"), world.path("elsewhere/k"));
    let world = world
        .var("AWS_CONFIG_FILE", config.to_str().unwrap())
        .var("AWS_SHARED_CREDENTIALS_FILE", credentials.to_str().unwrap())
        .var("AWS_PROFILE", "a");
    let of =
        |profile: Option<&str>| profile_settings(&world.environment(), profile).unwrap().region;
    assert_eq!(
        of(None).as_deref(),
        Some("from credentials"),
        "the credentials file has the last word"
    );
    assert_eq!(of(Some("b")).as_deref(), Some("two"), "our configuration has the last word of all");
    let world = World::new()
        .file("c", "[profile d]\nregion=three")
        .var("AWS_CONFIG_FILE", "~/c")
        .var("AWS_DEFAULT_PROFILE", "d");
    assert_eq!(
        profile_settings(&world.environment(), None).unwrap().region.as_deref(),
        Some("three")
    );
}

#[test]
fn without_files_a_profile_says_nothing() {
    let world = World::new();
    assert_eq!(profile_settings(&world.environment(), None), Ok(ProfileSettings::default()));
    let world = world.file(".aws/config", "[profile other]\nregion = x\n");
    assert_eq!(profile_settings(&world.environment(), None), Ok(ProfileSettings::default()));
}
