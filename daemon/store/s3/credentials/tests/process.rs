//! Programs that print keys: what they may do, and what becomes of those that do something else.

use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, test_kill_process};

use super::stand_in::{World, json_answer, later};

fn world(command: &str) -> World {
    let config = format!("[profile prog]\ncredential_process = {command}\n");
    World::new().profile("prog").file(".aws/config", &config)
}

#[tokio::test]
async fn t38_a_program_prints_keys_and_is_run_again_before_they_expire() {
    let world = World::new();
    let command = format!("cat '{}'", world.path("my keys.json").display());
    let world = world
        .profile("prog")
        .file(".aws/config", &format!("[profile prog]\ncredential_process = {command}\n"))
        .file("my keys.json", "");
    world.write("my keys.json", &json_answer(1, &later(&world.clock, 60)).1);
    let cache = world.cache();
    let keys = cache.get().await.unwrap();
    assert_eq!(keys.access_key_id, "ASIAJSON000000000001");
    assert_eq!(keys.session_token.as_deref(), Some("hush-token-1"));
    assert_eq!(keys.origin, "the profile \"prog\" (credential_process)");
    world.write("my keys.json", &json_answer(2, &later(&world.clock, 120)).1);
    assert_eq!(cache.get().await.unwrap().access_key_id, keys.access_key_id);
    world.clock.forward(56);
    assert_eq!(cache.get().await.unwrap().access_key_id, "ASIAJSON000000000002");
}

#[tokio::test]
async fn keys_without_token_and_end_are_whole() {
    let keys = r#"printf '{"Version":1,"AccessKeyId":"AKIA","SecretAccessKey":"hush"}'"#;
    let keys = world(keys).keys().await.unwrap();
    assert_eq!(
        (keys.access_key_id.as_str(), keys.session_token, keys.expires),
        ("AKIA", None, None)
    );
}

#[tokio::test]
async fn a_program_that_fails_is_named_by_its_profile_and_status_and_never_by_its_words() {
    let cases = [
        ("echo hush; echo hush >&2; exit 3", "failed (exit status: 3)"),
        ("kill -9 $$", "failed (signal: 9 (SIGKILL))"),
        ("echo hush", "printed something else than the JSON that it should"),
        (
            r#"echo '{"Version":1,"AccessKeyId":"hush","SecretAccessKey":"hush","Expiration":"hush"}'"#,
            "printed an Expiration that is no time",
        ),
        (
            r#"echo '{"Version":2,"AccessKeyId":"hush","SecretAccessKey":"hush"}'"#,
            "printed version 2, and only 1 is known",
        ),
        (
            r#"echo '{"Version":1,"AccessKeyId":"hush","SecretAccessKey":""}'"#,
            "printed an empty key",
        ),
        ("yes hush", "printed more than 64 KiB"),
        ("/nowhere/hush", "failed (exit status: 127)"),
    ];
    for (command, flaw) in cases {
        assert_eq!(
            world(command).complaint().await,
            format!(
                "the credential_process of the profile \"prog\" {flaw}; run it by hand to see why"
            )
        );
    }
}

/// The clock stands still but for waits, so this is no wait for anybody.
#[tokio::test(start_paused = true)]
async fn a_program_that_does_not_end_is_given_up() {
    assert_eq!(
        world("sleep 1000").complaint().await,
        "the credential_process of the profile \"prog\" did not end within 30 s; run it by hand to see why"
    );
}

#[tokio::test]
async fn a_program_that_is_given_up_leaves_no_process_behind() {
    let world = World::new();
    let pid = world.path("pid");
    let command =
        format!("sleep 1000 & echo $! > '{0}.part'; mv '{0}.part' '{0}'; wait", pid.display());
    let config = format!("[profile prog]\ncredential_process = {command}\n");
    let world = world.profile("prog").file(".aws/config", &config);
    tokio::select! {
        keys = world.keys() => panic!("{keys:?}"),
        () = until(|| pid.exists()) => {}
    }
    let child = child(&pid);
    until(|| test_kill_process(child).is_err() || is_zombie(child)).await;
}

fn child(pid: &Path) -> Pid {
    let pid = std::fs::read_to_string(pid).unwrap();
    Pid::from_raw(pid.trim().parse().unwrap()).unwrap()
}

/// Killed, and not yet fetched by whoever inherits it.
fn is_zombie(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| stat.contains(") Z "))
}

/// Waits for a condition, with a deadline.
async fn until(condition: impl Fn() -> bool) {
    let look = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), look).await.unwrap();
}
