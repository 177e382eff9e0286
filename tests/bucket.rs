//! The bucket behind a real S3 server: everything that is promised of a local one, with a store that fails, is away, or is not
//! what it should be; and what it costs in requests.
//!
//! Servers are those of `support/bucket.rs`; what is not there is skipped with a line. The campaigns are `#[ignore]`d:
//! `TRACECRAFT_LIVE_SECONDS` (120), `TRACECRAFT_AWAY_SECONDS` (30) and `TRACECRAFT_COUNT_SECONDS` (245) set their lengths.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::live::{self, Setting, seconds};
use crate::memory::IDLE_IN_BUCKET_AFTER;
use crate::once;
use crate::service_life::write_private;
use crate::support::bucket::{Kind as ServerKind, Server};
use crate::support::daemon::{Daemon, ctl, ctl_ok};
use crate::support::home::{Home, Remote, lay_out_samples, run, said};
use crate::support::judge;
use crate::support::oracle::Bucket;
use crate::support::planted::Planted;
use crate::support::proxy::{Kind, Plan, Proxy};
use crate::support::writers::Transcript;
use crate::support::{wait_for_the_end_of, wait_until_ok};

/// The most memory that a daemon may take while its store fails.
pub(crate) const RESIDENT_MAX: u64 = 64 << 20;

/// The live sessions whose requests are counted, and their flush interval: the default.
const COUNTED_SESSIONS: u64 = 10;
const COUNTED_INTERVAL: Duration = Duration::from_secs(5);

/// Requests a part that is sent, manifests included.
const REQUESTS_A_PART: f64 = 1.15;

/// How long an idle daemon is watched.
const WATCHED: Duration = Duration::from_secs(30);

/// A proxy before a server, and a home whose programs go through it.
pub(crate) fn behind_a_proxy(kind: ServerKind, test: &str, seed: u64) -> Option<(Proxy, Home)> {
    let server = Arc::new(Server::start_or_skip(kind, test)?);
    let proxy = Proxy::start(server.client.address(), seed);
    let home = Home::with(Remote::new(&server).through(&proxy));
    Some((proxy, home))
}

/// All samples and all planted secrets, to one server: exact, and sent once.
fn once_to(kind: ServerKind, test: &str) {
    let Some((proxy, home)) = behind_a_proxy(kind, test, 1) else { return };
    let planted = Planted::every_pattern(51).with_those_of_samples();
    let mut laid = lay_out_samples(&home).unwrap_or_default();
    laid.extend(once::lay_out_planted(&home, &planted));
    once::keeps_its_promises(&home, &laid, &planted);
    println!("{test}: {} transcripts, requests {:?}", laid.len(), proxy.by_kind());
    let named: usize = Bucket::read(home.objects()).sessions.iter().map(|one| one.named).sum();
    assert_eq!(proxy.by_kind()[&Kind::PutPart], named, "{test}: a part was put twice");
    proxy.forget();
    home.once();
    let again = proxy.by_kind();
    println!("{test}: a second --once asked {again:?}");
    assert!(!again.keys().any(|kind| kind.changes()), "{test}: a second --once sent {again:?}");
}

#[test]
fn t41_once_to_s3s_fs_stores_every_transcript_exactly_and_a_second_run_sends_nothing() {
    once_to(ServerKind::S3sFs, "--once to s3s-fs");
}

#[test]
fn t41_once_to_moto_stores_every_transcript_exactly_and_a_second_run_sends_nothing() {
    once_to(ServerKind::Moto, "--once to moto");
}

#[test]
fn t41_once_to_garage_stores_every_transcript_exactly_and_a_second_run_sends_nothing() {
    once_to(ServerKind::Garage, "--once to Garage");
}

#[test]
fn t41_once_to_the_named_endpoint_stores_every_transcript_exactly_and_a_second_run_sends_nothing() {
    once_to(ServerKind::Environment, "--once to the named endpoint");
}

/// `hf://` in the program itself: bucket below the user, keys of its own and no other, reads that are sent elsewhere.
#[test]
fn t41_once_and_a_daemon_to_a_bucket_behind_a_gateway_as_hugging_face_has_one() {
    let test = "hf://";
    let Some(server) = Server::start_or_skip(ServerKind::Moto, test) else { return };
    let server = Arc::new(server);
    let proxy = Proxy::start(server.client.address(), 7);
    proxy.be_the_gateway_of("ada");
    let remote = Remote::new(&server);
    let project = remote.project.clone();
    let home = Home::with(remote);
    let planted = Planted::exact_only(77);
    let mut transcript = Transcript::new(&home, "claude-code", 1, 77);
    transcript.grow(&planted, 20);
    let config = home.path().join(".config/tracecraft/config.toml");
    std::fs::create_dir_all(config.parent().unwrap()).unwrap();
    write_private(&config, &format!("endpoint = \"http://{}\"\n", proxy.authority()));
    let to_the_gateway = || {
        let mut command = home.tracecraftd();
        for name in ["AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
        {
            command.env_remove(name);
        }
        let (bucket, project) = (&server.client.bucket, &project);
        command.env("TRACECRAFT_STORE", format!("hf://ada/{bucket}/{project}"));
        command.env("HF_ACCESS_KEY_ID", "HFAK").env("HF_SECRET_ACCESS_KEY", "no-secret");
        command
    };
    let complete = |transcript: &Transcript| {
        judge::verdict(judge::at_rest(
            &Bucket::read(home.objects()),
            &[transcript.source(&planted)],
        ))
    };
    let output = run(to_the_gateway().arg("--once"));
    assert!(output.status.success(), "{}", said(&output));
    complete(&transcript).unwrap();
    let mut daemon = Daemon::spawn_with(&home, to_the_gateway(), std::process::Stdio::null());
    daemon.wait_ready(&home);
    transcript.grow(&planted, 5);
    ctl_ok(&home, &["flush"]);
    ctl_ok(&home, &["verify", "--deep"]);
    let shown = ctl_ok(&home, &["show", &transcript.id, "--raw"]);
    assert_eq!(planted.found_in(&shown), [""; 0]);
    assert_eq!(shown, Bucket::read(home.objects()).sessions[0].by_manifest);
    assert_eq!(daemon.term().code(), Some(0));
    complete(&transcript).unwrap();
    println!("{test}: {:?}", proxy.by_kind());
}

/// What S3-compatible stores refuse or ignore is in no request: pieces, trailing checksums, unsigned payloads.
#[test]
fn t41_every_request_is_plain_signed_and_whole() {
    let test = "the form of requests";
    let Some((proxy, home)) = behind_a_proxy(ServerKind::S3sFs, test, 1) else { return };
    let planted = Planted::exact_only(52);
    let mut transcript = Transcript::new(&home, "codex", 1, 52);
    for _ in 0..3 {
        transcript.grow(&planted, 3);
        home.once();
    }
    let seen = proxy.seen();
    assert!(seen.len() > 6, "{seen:?}");
    for request in seen {
        let header =
            |name: &str| request.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
        let payload = header("x-amz-content-sha256").unwrap_or_default();
        let digest = payload.len() == 64 && payload.bytes().all(|b| b.is_ascii_hexdigit());
        assert!(digest, "{}: x-amz-content-sha256 is {payload:?}", request.path);
        assert!(header("authorization").is_some(), "{}: not signed", request.path);
        for absent in ["x-amz-trailer", "x-amz-decoded-content-length", "transfer-encoding"] {
            assert_eq!(header(absent), None, "{}: {absent}", request.path);
        }
        assert!(!header("content-encoding").is_some_and(|it| it.contains("aws-chunked")));
        if matches!(request.kind, Kind::PutPart | Kind::PutManifest) {
            assert!(header("content-md5").is_some(), "{}: no content-md5", request.path);
        }
    }
}

/// A live run through a proxy that fails a third of all requests. What fails is tried again after a while, so such a store
/// takes some twenty parts a second: the interval leaves it room to catch up.
fn failing(name: &'static str, kind: ServerKind, length: Duration, kills: u32) -> Option<Setting> {
    let (proxy, home) = behind_a_proxy(kind, name, 2)?;
    proxy.fail(Plan::a_third());
    let (proxy, resident_max) = (Some(proxy), Some(RESIDENT_MAX));
    Some(Setting { name, length, kills, interval: "2s", home, proxy, away: None, resident_max })
}

#[test]
fn t36_t43_live_run_short_with_a_store_that_fails_a_third_of_all_requests() {
    let length = Duration::from_secs(20);
    let setting = failing("bucket_live_run_short", ServerKind::S3sFs, length, 4);
    setting.into_iter().for_each(live::run);
}

#[test]
#[ignore = "the campaign of some minutes; .ci runs it"]
fn t37_bucket_live_run_with_a_store_that_is_away_for_a_while() {
    let length = seconds("TRACECRAFT_LIVE_SECONDS", 120);
    let setting = failing("bucket_away", ServerKind::S3sFs, length, 20);
    let away = seconds("TRACECRAFT_AWAY_SECONDS", 30);
    let away = |setting| Setting { away: Some(away), interval: "5s", ..setting };
    setting.map(away).into_iter().for_each(live::run);
}

#[test]
fn t36_t43_compaction_gets_done_with_a_store_that_fails_a_third_of_all_requests() {
    let test = "compaction with failures";
    let Some((proxy, home)) = behind_a_proxy(ServerKind::S3sFs, test, 5) else { return };
    let planted = Planted::exact_only(54);
    let mut transcript = Transcript::new(&home, "codex", 1, 54);
    let mut daemon = Daemon::start(&home, &["--interval", "10m"]);
    for _ in 0..6 {
        transcript.grow(&planted, 2);
        ctl_ok(&home, &["flush"]);
    }
    let named = || Bucket::read(home.objects()).sessions[0].named;
    assert!(named() >= 5, "{} parts before", named());
    proxy.fail(Plan::a_third());
    // What fails is told and can be asked for again; a few times are enough.
    let done = (0..5).find(|_| {
        let output = ctl(&home, &["compact", &transcript.id]);
        println!("{test}: {}", said(&output).replace('\n', " "));
        output.status.success()
    });
    assert!(done.is_some(), "no compaction got done:\n{}", daemon.said());
    proxy.fail(Plan::default());
    ctl_ok(&home, &["flush"]);
    assert_eq!(daemon.term().code(), Some(0));
    home.once();
    assert_eq!(named(), 1);
    let sources = [transcript.source(&planted)];
    judge::verdict(judge::at_rest(&Bucket::read(home.objects()), &sources)).unwrap();
}

/// Ten sessions that write before each flush.
struct Counted {
    home: Home,
    planted: Planted,
    transcripts: Vec<Transcript>,
}

impl Counted {
    fn new(home: Home) -> Counted {
        let new = |number| Transcript::new(&home, "claude-code", number, 53);
        let transcripts = (0..COUNTED_SESSIONS).map(new).collect();
        Counted { planted: Planted::exact_only(53), transcripts, home }
    }

    /// Lets all sessions grow several times an interval, for a while.
    fn write_for(&mut self, length: Duration) {
        let started = Instant::now();
        while started.elapsed() < length {
            let step = Instant::now();
            self.transcripts.iter_mut().for_each(|one| one.grow(&self.planted, 1));
            wait_for_the_end_of(step, COUNTED_INTERVAL / 3);
        }
    }

    fn complete(&self) -> Result<(), String> {
        let sources: Vec<_> = self.transcripts.iter().map(|t| t.source(&self.planted)).collect();
        judge::verdict(judge::at_rest(&Bucket::read(self.home.objects()), &sources))
    }
}

#[test]
#[ignore = "counts for some minutes; .ci runs it"]
fn t50_requests_are_one_a_part_and_an_idle_daemon_makes_none() {
    let test = "the count of requests";
    let Some((proxy, home)) = behind_a_proxy(ServerKind::S3sFs, test, 3) else { return };
    let mut counted = Counted::new(home);
    counted.transcripts.iter_mut().for_each(|one| one.grow(&counted.planted, 2));
    let mut daemon = Daemon::start(&counted.home, &[]);
    ctl_ok(&counted.home, &["flush"]);
    proxy.forget();
    let length = seconds("TRACECRAFT_COUNT_SECONDS", 245);
    counted.write_for(length);
    let kinds = proxy.by_kind();
    let (requests, parts) = (proxy.count(), kinds.get(&Kind::PutPart).copied().unwrap_or(0));
    let share = requests as f64 / parts as f64;
    println!(
        "{test}: {requests} requests for {parts} parts of {COUNTED_SESSIONS} sessions in {} s: {share:.3} a part; {kinds:?}",
        length.as_secs()
    );
    let flushes = length.as_secs() / COUNTED_INTERVAL.as_secs();
    assert!(parts as u64 >= COUNTED_SESSIONS * flushes * 8 / 10, "too few parts: {parts}");
    assert!(kinds.get(&Kind::PutManifest) >= Some(&(COUNTED_SESSIONS as usize)), "{kinds:?}");
    assert!(share <= REQUESTS_A_PART, "{share:.3} requests a part");
    // Nobody asks for it: a session without news gets its manifest by itself, and what it names is seen once more.
    proxy.forget();
    wait_for_the_end_of(Instant::now(), IDLE_IN_BUCKET_AFTER);
    wait_until_ok("all manifests to name all parts", || counted.complete());
    println!("{test}: until all was named and seen {:?}", proxy.by_kind());
    proxy.forget();
    wait_for_the_end_of(Instant::now(), WATCHED);
    println!("{test}: {} requests in {} s without news", proxy.count(), WATCHED.as_secs());
    assert_eq!(proxy.count(), 0, "an idle daemon asked {:?}", proxy.by_kind());
    assert!(daemon.exited().is_none());
    assert_eq!(daemon.term().code(), Some(0));
}
