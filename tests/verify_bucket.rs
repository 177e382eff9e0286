//! `tracecraftctl verify` on a bucket behind a proxy: damaged around the product, mended by what the objects themselves say,
//! and away.

use std::fs;

use crate::bucket::behind_a_proxy;
use crate::support::bucket::Kind;
use crate::support::daemon::{Daemon, ctl, ctl_ok};
use crate::support::home::said;
use crate::support::judge;
use crate::support::objects::Objects;
use crate::support::oracle::Bucket;
use crate::support::planted::Planted;
use crate::support::proxy::Plan;
use crate::support::writers::Transcript;
use crate::verify::has;

#[test]
fn t36_a_bucket_is_verified_and_mended_from_its_own_objects_and_away_is_not_damaged() {
    let test = "verification of a bucket";
    let Some((proxy, home)) = behind_a_proxy(Kind::S3sFs, test, 11) else { return };
    let Objects::Bucket { client, project } = home.objects() else { unreachable!("it has one") };
    let planted = Planted::exact_only(11);
    let mut transcript = Transcript::new(&home, "codex", 1, 11);
    let daemon = Daemon::start(&home, &["--interval", "10m"]);
    for _ in 0..3 {
        transcript.grow(&planted, 12);
        ctl_ok(&home, &["flush"]);
    }
    let folder = format!("{project}/sessions/codex/{}/", transcript.id);
    let manifest = format!("{folder}meta.json");
    let complaints = |transcript: &Transcript| {
        judge::at_rest(&Bucket::read(home.objects()), &[transcript.source(&planted)])
    };
    ctl_ok(&home, &["verify", "--deep"]);

    // A part that somebody put other bytes under.
    let listed = client.list(&format!("{folder}part-00001")).unwrap();
    client.put(&listed[0].key, b"{\"not\":\"this\"}\n").unwrap();
    let told = ctl(&home, &["verify", "--json"]);
    assert_eq!(told.status.code(), Some(1), "{}", said(&told));
    assert!(has(&told, "part_size", "wrong"), "{}", said(&told));
    let told = ctl(&home, &["verify", "--repair", "--json"]);
    assert_eq!(told.status.code(), Some(0), "{}", said(&told));
    assert_eq!(judge::verdict(complaints(&transcript)), Ok(()));

    // A manifest that is lost, after its source: the objects know their ranges.
    fs::remove_file(&transcript.path).unwrap();
    transcript.gone = true;
    ctl_ok(&home, &["flush"]);
    client.delete(&manifest).unwrap();
    let told = ctl(&home, &["verify", "--json"]);
    assert!(has(&told, "manifest_missing", "wrong"), "{}", said(&told));
    let told = ctl(&home, &["verify", &transcript.id, "--repair", "--json"]);
    assert_eq!(told.status.code(), Some(0), "{}", said(&told));
    assert!(has(&told, "manifest_rebuilt", "mended"), "{}", said(&told));
    assert_eq!(judge::verdict(complaints(&transcript)), Ok(()));

    // A third of all requests fails: what breaks off is asked for again, and nothing is called wrong.
    proxy.fail(Plan::a_third());
    for _ in 0..3 {
        let told = ctl(&home, &["verify", "--deep", "--json"]);
        assert!(said(&told).contains("\"wrong\":0,"), "{}", said(&told));
    }
    proxy.fail(Plan::default());

    proxy.there(false);
    let told = ctl(&home, &["verify", "--repair"]);
    assert_eq!(told.status.code(), Some(1), "{}", said(&told));
    let text = said(&told);
    assert!(text.contains("could not be checked") && !text.contains("WRONG"), "{text}");
    proxy.there(true);
    assert_eq!(judge::verdict(complaints(&transcript)), Ok(()));
    drop(daemon);
}
