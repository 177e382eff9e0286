//! The S3 store: the suite of every store against real servers and against one that misbehaves, and what it says when it fails.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use http::Method;

use super::credentials::{CredentialsError, Fixed, Keys, Source};
use super::multipart::Pieces;
use super::stand_in::{Canned, Quirks, StandIn};
use super::{S3Settings, S3Store, Signer, Transport};
use crate::durable::memory::MemoryDisk;
use crate::durable::{Blocking, Disk, OsDisk};
use crate::store::suite::{bytes, contract, read};
use crate::store::{Body, Conditions, Counted, ErrorKind, Retry, Store, StoreError};

/// Names an S3 endpoint for the suite; the bucket is in `TRACECRAFT_TEST_S3_BUCKET`, the keys are in AWS's variables.
const ENDPOINT_VAR: &str = "TRACECRAFT_TEST_S3_ENDPOINT";

const KEY: &str = "sessions/codex/a/part-00001-0123abcd.jsonl";

fn fixed() -> Arc<dyn Source> {
    Arc::new(Fixed(Keys::lasting("AKIDTEST", "secret", None, "the test")))
}

fn store_at(stand_in: &StandIn, disk: &Arc<dyn Disk>, source: Arc<dyn Source>) -> S3Store {
    let settings = S3Settings {
        scheme: "hf",
        endpoint: format!("http://{}/user", stand_in.address),
        region: "us-east-1".into(),
        bucket: "bucket".into(),
        project: "team/agents".into(),
    };
    let signer = Signer::new(source, &settings.region);
    let transport = Transport::new(None).unwrap();
    S3Store::new(settings, transport, signer, disk.clone(), Blocking::Inline)
}

/// A store with this server behind it.
async fn world(quirks: Quirks) -> (StandIn, S3Store) {
    let stand_in = StandIn::new(quirks).await;
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
    let store = store_at(&stand_in, &disk, fixed());
    (stand_in, store)
}

/// All that an error says, as a person sees it.
fn told(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

async fn keeps_the_contract(quirks: Quirks) -> Conditions {
    let stand_in = StandIn::new(quirks).await;
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
    let store = store_at(&stand_in, &disk, fixed());
    contract(&store, &*disk, Path::new("/outbox")).await;
    store.conditions()
}

#[tokio::test]
async fn t41_a_gateway_that_redirects_and_refuses_as_hugging_face_does_keeps_the_contract() {
    for redirects_blindly in [false, true] {
        let quirks = Quirks { redirects: true, redirects_blindly, ..Quirks::default() };
        assert_eq!(keeps_the_contract(quirks).await, Conditions::Honoured);
    }
}

#[tokio::test]
async fn t41_a_store_that_ignores_or_refuses_conditions_is_known_for_it() {
    let ignores = Quirks { ignores_conditions: true, ..Quirks::default() };
    assert_eq!(keeps_the_contract(ignores).await, Conditions::Ignored);
    let refuses = Quirks { refuses_conditions: true, ..Quirks::default() };
    assert_eq!(keeps_the_contract(refuses).await, Conditions::Unsupported);
}

#[tokio::test]
async fn t41_a_store_without_etags_keeps_the_contract_without_conditions() {
    let quirks = Quirks { no_etags: true, ..Quirks::default() };
    assert_eq!(keeps_the_contract(quirks).await, Conditions::Unsupported);
}

#[tokio::test]
async fn the_first_swap_tries_conditions_out_and_leaves_nothing_behind() {
    for ignores_conditions in [false, true] {
        let (stand_in, store) = world(Quirks { ignores_conditions, ..Quirks::default() }).await;
        store.put("meta.json", bytes("old"), None).await.unwrap();
        let seen = store.get("meta.json").await.unwrap().version;
        assert_eq!(store.conditions(), Conditions::Unknown);
        store.swap("meta.json", "new".into(), seen.as_ref()).await.unwrap();
        assert_ne!(store.conditions(), Conditions::Unknown);
        let objects = stand_in.objects();
        assert_eq!(objects.keys().collect::<Vec<_>>(), ["team/agents/meta.json"]);
        assert_eq!(read(&store, "meta.json").await.unwrap(), b"new");
        assert!(stand_in.asked().iter().all(|asked| asked.method != Method::DELETE));
    }
}

#[tokio::test]
async fn t43_a_swap_whose_answer_was_lost_is_not_taken_for_another_writer() {
    let (stand_in, store) = world(Quirks::default()).await;
    store.swap(KEY, "one".into(), None).await.unwrap();
    let seen = store.get(KEY).await.unwrap().version;
    stand_in.answer([Canned::lost().after()]);
    let lost = store.swap(KEY, "two".into(), seen.as_ref()).await.unwrap_err();
    assert_eq!(lost.kind, ErrorKind::Unavailable);
    store.swap(KEY, "two".into(), seen.as_ref()).await.expect("it was ours");
    let other = store.swap(KEY, "three".into(), seen.as_ref()).await.unwrap_err();
    assert_eq!(other.kind, ErrorKind::Changed);
}

#[tokio::test]
async fn t36_t39_t41_t44_every_refusal_is_sorted_and_says_what_to_do() {
    let (stand_in, store) = world(Quirks::default()).await;
    let region = |code: &str| Canned::error(400, code).with("x-amz-bucket-region", "eu-west-1");
    let early =
        Canned::error(403, "RequestTimeTooSkewed").with("date", "Sun, 01 Jan 2023 00:00:00 GMT");
    for (canned, kind, words) in [
        (
            Canned::error(403, "AccessDenied"),
            ErrorKind::Denied,
            "lacks the right s3:PutObject on bucket, or the key or its secret is wrong",
        ),
        (
            Canned::error(403, "InvalidAccessKeyId"),
            ErrorKind::Denied,
            "does not know the access key from the test",
        ),
        (
            Canned::error(403, "SignatureDoesNotMatch"),
            ErrorKind::Denied,
            "the secret key does not belong",
        ),
        (Canned::error(400, "ExpiredToken"), ErrorKind::Denied, "sign in again"),
        (early, ErrorKind::Denied, "minutes ahead of the store's: set it right"),
        (Canned::error(403, "RequestTimeTooSkewed"), ErrorKind::Denied, "clock"),
        (
            Canned::error(404, "NoSuchBucket"),
            ErrorKind::Denied,
            "there is no bucket bucket at http://127.0.0.1",
        ),
        (region("AuthorizationHeaderMalformed"), ErrorKind::Denied, "set AWS_REGION=eu-west-1"),
        (Canned::error(301, "PermanentRedirect"), ErrorKind::Denied, "is not in region us-east-1"),
        (Canned::error(307, "TemporaryRedirect"), ErrorKind::Unavailable, "the bucket is new"),
        (Canned::error(503, "SlowDown"), ErrorKind::Overloaded, "fewer requests"),
        (Canned::error(500, "InternalError"), ErrorKind::Unavailable, "a problem of its own"),
        (Canned::new(502, "<html>Bad gateway"), ErrorKind::Unavailable, "502"),
        (Canned::new(429, ""), ErrorKind::Overloaded, "429"),
        (Canned::error(400, "RequestTimeout"), ErrorKind::Unavailable, "RequestTimeout"),
        (Canned::error(400, "BadDigest"), ErrorKind::Unavailable, "BadDigest"),
        (Canned::error(501, "NotImplemented"), ErrorKind::Invalid, "cannot do that"),
        (Canned::error(507, "XMinioStorageFull"), ErrorKind::Full, "is full"),
        (Canned::error(403, "QuotaExceeded"), ErrorKind::Full, "is full"),
        (Canned::error(400, "EntityTooLarge"), ErrorKind::Invalid, "EntityTooLarge"),
        (Canned::error(200, "InternalError"), ErrorKind::Unavailable, "a problem of its own"),
        (Canned::new(200, "<half>"), ErrorKind::Unavailable, "cut off"),
        (Canned::lost(), ErrorKind::Unavailable, "cannot reach the server"),
    ] {
        // Those about keys are asked twice, the second time with keys that may be new.
        let twice = canned.body.contains("Token")
            || canned.body.contains("Id")
            || canned.body.contains("Signature");
        stand_in.answer(std::iter::repeat_n(canned.clone(), if twice { 2 } else { 1 }));
        let error = store.put(KEY, bytes("x"), None).await.unwrap_err();
        assert_eq!(error.kind, kind, "{canned:?}: {}", told(&error));
        assert!(told(&error).contains(words), "{canned:?}: {}", told(&error));
        assert!(!told(&error).contains("AKIDTEST"));
    }
    store.put(KEY, bytes("x"), None).await.expect("nothing is left of all that");
}

#[tokio::test]
async fn an_error_shows_no_key_that_a_server_repeats() {
    let (stand_in, store) = world(Quirks::default()).await;
    let body = "<Error><Code>Other</Code><Message>No such key: GK31c2f218a2e44f485b94239e here</Message></Error>";
    stand_in.answer([Canned::new(400, body)]);
    let told = told(&store.put(KEY, bytes("x"), None).await.unwrap_err());
    assert!(told.contains("No such key: …") && !told.contains("GK31"), "{told}");
    assert!(!told.contains(char::is_control), "{told:?}");
}

#[tokio::test]
async fn t46_a_bucket_that_is_gone_is_never_a_missing_object() {
    let (stand_in, store) = world(Quirks::default()).await;
    store.put(KEY, bytes("x"), None).await.unwrap();
    stand_in.answer([Canned::error(404, "NoSuchBucket")]);
    assert_eq!(store.get(KEY).await.err().unwrap().kind, ErrorKind::Denied);
    // An answer to HEAD has no body that could say what is missing.
    stand_in.answer([Canned::new(404, ""), Canned::error(404, "NoSuchBucket")]);
    assert_eq!(store.size(KEY).await.unwrap_err().kind, ErrorKind::Denied);
    // Neither has the page of a proxy.
    stand_in.answer([Canned::new(404, "<html>nothing here</html>")]);
    assert_eq!(store.get(KEY).await.err().unwrap().kind, ErrorKind::Unavailable);
    stand_in.answer([Canned::new(404, "<html>nothing here</html>")]);
    let missing = store.get("sessions/none").await.err().unwrap();
    assert_eq!(missing.kind, ErrorKind::NotFound, "the listing knows");
}

#[tokio::test]
async fn t42_a_listing_is_whole_or_an_error() {
    let (stand_in, store) = world(Quirks::default()).await;
    let list =
        |text: &str| Canned::new(200, format!("<ListBucketResult>{text}</ListBucketResult>"));
    let object =
        |size: &str| format!("<Contents><Key>team/agents/a</Key><Size>{size}</Size></Contents>");
    for canned in [
        Canned::new(200, ""),
        Canned::new(200, "<html><body>Please log in</body></html>"),
        Canned::new(200, "<ListBucketResult><IsTruncated>false</IsTruncated>"),
        Canned::new(200, "no XML"),
        Canned::error(200, "SlowDown"),
        list("<IsTruncated>true</IsTruncated>"),
        list("<IsTruncated>perhaps</IsTruncated>"),
        list(&object("many")),
        list(&object("99999999999999999999999999")),
        list(&object("-1")),
        list("<Contents><Size>1</Size></Contents>"),
        list("<IsTruncated>true</IsTruncated><NextContinuationToken></NextContinuationToken>"),
        Canned::lost(),
    ] {
        // What is no XML is asked for once more in another way.
        stand_in.answer([canned.clone(), canned.clone()]);
        let error = store.list("").await.expect_err(&canned.body);
        assert!(error.kind.passes(), "{}: {}", canned.body, told(&error));
        stand_in.answer([canned.clone(), canned.clone()]);
        store.list_folders("").await.map(drop).unwrap_or_default();
        while store.list("").await.is_err() {}
    }
    let turns =
        list("<IsTruncated>true</IsTruncated><NextContinuationToken>t</NextContinuationToken>");
    stand_in.answer([turns.clone(), turns]);
    assert!(told(&store.list("").await.unwrap_err()).contains("comes back to where it was"));
}

#[tokio::test]
async fn a_key_that_xml_cannot_write_hides_no_other() {
    let (stand_in, store) = world(Quirks::default()).await;
    stand_in.insert("team/agents/a\u{1}b", "foreign");
    stand_in.insert("team/agents/sessions/a b+c", "ours");
    stand_in.insert("team/agents/sessions/", "a marker");
    stand_in.insert("team/agentsmith/x", "another project");
    let keys: Vec<String> =
        store.list("").await.unwrap().into_iter().map(|object| object.key).collect();
    assert_eq!(keys, ["sessions/a b+c"]);
    assert_eq!(store.list_folders("").await.unwrap(), ["sessions"]);
}

/// Keys that a store refuses until they were asked for again.
#[derive(Debug, Default)]
struct Rotating {
    asked: AtomicUsize,
}

#[async_trait]
impl Source for Rotating {
    async fn keys(&self) -> Result<Keys, CredentialsError> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        Ok(Keys::lasting(&format!("AKID{asked}"), "secret", None, "the test"))
    }
}

#[tokio::test]
async fn t38_expired_credentials_are_renewed_and_the_request_is_tried_once_more() {
    let stand_in = StandIn::new(Quirks::default()).await;
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
    let store = store_at(&stand_in, &disk, Arc::new(Rotating::default()));
    stand_in.answer([Canned::error(400, "ExpiredToken")]);
    store.put(KEY, bytes("x"), None).await.expect("renewed");
    let signed: Vec<String> = stand_in
        .asked()
        .iter()
        .map(|asked| asked.headers["authorization"].to_str().unwrap()[28..].to_owned())
        .collect();
    assert!(signed[0].contains("AKID0/") && signed[1].contains("AKID1/"), "{signed:?}");
    assert_eq!(signed.len(), 2);
    // Of a HEAD only the status tells.
    stand_in.answer([Canned::new(400, "")]);
    assert_eq!(store.size(KEY).await.expect("renewed"), Some(1));
    stand_in.answer(std::iter::repeat_n(Canned::error(400, "ExpiredToken"), 2));
    assert_eq!(store.put(KEY, bytes("x"), None).await.unwrap_err().kind, ErrorKind::Denied);
}

#[tokio::test]
async fn t41_redirects_are_followed_for_reading_only_and_never_in_the_clear() {
    let (_stand_in, store) = world(Quirks { redirects: true, ..Quirks::default() }).await;
    store.put(KEY, bytes("x"), None).await.unwrap();
    assert_eq!(read(&store, KEY).await.unwrap(), b"x");
    // Another one, that has not yet been found to redirect.
    let (stand_in, store) = world(Quirks::default()).await;
    let away = |to: &str| Canned::new(302, "").with("location", to.to_owned());
    stand_in.answer([away("http://192.0.2.1/x")]);
    let error = store.get(KEY).await.err().unwrap();
    assert!(told(&error).contains("without TLS"), "{}", told(&error));
    let again = format!("http://{}/cdn/team/agents/{KEY}", stand_in.address);
    stand_in.answer([away(&again), away(&again), away(&again)]);
    assert!(told(&store.get(KEY).await.err().unwrap()).contains("on and on"));
    assert!(!stand_in.asked().is_empty());
    stand_in.answer([away(&again)]);
    assert!(store.put(KEY, bytes("y"), None).await.is_err());
    assert_eq!(stand_in.asked().len(), 1, "a put is not sent elsewhere");
}

/// A store that begins to use pieces at a few bytes, and a file for it.
async fn world_in_pieces() -> (StandIn, S3Store, PathBuf, Bytes) {
    let stand_in = StandIn::new(Quirks::default()).await;
    let disk: Arc<dyn Disk> = Arc::new(MemoryDisk::new());
    let mut store = store_at(&stand_in, &disk, fixed());
    store.pieces = Pieces { above: 1_000, bytes: 400, most: 10_000 };
    let whole: Bytes = (0..2_500_u32).map(|n| n.to_le_bytes()[0]).collect();
    disk.replace(Path::new("/outbox/merged"), &whole).unwrap();
    (stand_in, store, "/outbox/merged".into(), whole)
}

#[tokio::test]
async fn t40_a_large_file_goes_up_in_equal_pieces() {
    let (stand_in, store, file, whole) = world_in_pieces().await;
    stand_in.answer([]);
    store.put(KEY, Body::File(file), Some("note")).await.unwrap();
    assert!(read(&store, KEY).await.unwrap() == whole);
    let pieces = stand_in.asked().into_iter().filter(|a| a.query.contains_key("partNumber"));
    assert_eq!(pieces.map(|a| a.length).collect::<Vec<_>>(), [400, 400, 400, 400, 400, 400, 100]);
    assert_eq!(stand_in.uploads(), []);
}

#[tokio::test]
async fn t40_pieces_that_a_failure_or_a_crash_left_are_removed() {
    let (stand_in, store, file, whole) = world_in_pieces().await;
    let none = "<ListMultipartUploadsResult></ListMultipartUploadsResult>";
    let begun = "<InitiateMultipartUploadResult><UploadId>of-a-crash</UploadId></InitiateMultipartUploadResult>";
    // The first piece is refused for good: the upload is aborted.
    stand_in.answer([
        Canned::new(200, none),
        Canned::new(200, begun),
        Canned::error(403, "AccessDenied"),
    ]);
    let denied = store.put(KEY, Body::File(file.clone()), None).await.unwrap_err();
    assert_eq!(denied.kind, ErrorKind::Denied);
    let last = stand_in.asked().pop().unwrap();
    assert_eq!((last.method, last.query["uploadId"].as_str()), (Method::DELETE, "of-a-crash"));
    // A crash left an upload of this key: its next put removes it first.
    let left = "<ListMultipartUploadsResult><Upload><Key>team/agents/sessions/codex/a/part-00001-0123abcd.jsonl</Key>\
                <UploadId>left</UploadId></Upload><Upload><Key>team/agents/other</Key><UploadId>foreign</UploadId></Upload>\
                </ListMultipartUploadsResult>";
    stand_in.answer([Canned::new(200, left)]);
    store.put(KEY, Body::File(file.clone()), None).await.unwrap();
    store.put(KEY, Body::File(file), None).await.unwrap();
    let aborted: Vec<String> = stand_in
        .asked()
        .into_iter()
        .filter(|asked| asked.method == Method::DELETE)
        .map(|asked| asked.query["uploadId"].clone())
        .collect();
    assert_eq!(aborted, ["left"], "and nobody else's");
    assert!(read(&store, KEY).await.unwrap() == whole);
    assert_eq!(stand_in.uploads(), []);
}

#[tokio::test]
async fn t36_t40_a_completion_that_fails_with_status_200_is_a_failure() {
    let (stand_in, store, file, _) = world_in_pieces().await;
    let fine = |body: &str| Canned::new(200, body).after();
    let begun =
        "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>";
    let none = "<ListMultipartUploadsResult></ListMultipartUploadsResult>";
    let piece = || Canned::new(200, "").with("etag", "\"e\"");
    let mut script = vec![fine(none), Canned::new(200, begun)];
    script.extend(std::iter::repeat_with(piece).take(7));
    script.push(Canned::error(200, "InternalError"));
    stand_in.answer(script);
    let error = store.put(KEY, Body::File(file), None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert_eq!(stand_in.asked().last().unwrap().method, Method::DELETE, "given up");
}

#[tokio::test]
async fn a_server_that_says_yes_to_everything_is_no_store() {
    let (stand_in, store) = world(Quirks::default()).await;
    // A web application: every address has a page.
    let page = || Canned::new(200, "<html/>").with("content-length", "7");
    stand_in.answer([page(), Canned::new(200, "").with("content-length", "7")]);
    assert!(store.put(KEY, bytes("transcript"), None).await.is_err());
}

#[tokio::test]
async fn t36_a_crowd_is_turned_away_and_may_come_back() {
    let (stand_in, store) = world(Quirks::default()).await;
    let keys: Vec<String> = (0..400).map(|n| format!("crowd/{n}")).collect();
    let puts =
        futures_util::future::join_all(keys.iter().map(|key| store.put(key, bytes("x"), None)));
    let (stored, turned_away): (Vec<_>, Vec<_>) = puts.await.into_iter().partition(Result::is_ok);
    assert_eq!(stand_in.objects().len(), stored.len());
    assert!(!stored.is_empty());
    for error in turned_away.into_iter().filter_map(Result::err) {
        assert_eq!(error.kind, ErrorKind::Overloaded);
        assert!(told(&error).contains("too many requests"), "{}", told(&error));
    }
    store.put(KEY, bytes("x"), None).await.expect("the crowd is gone");
}

fn named_store(disk: &Arc<dyn Disk>, project: &str) -> Option<S3Store> {
    let var = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let settings = S3Settings {
        scheme: "s3",
        endpoint: var(ENDPOINT_VAR)?,
        region: var("AWS_REGION").unwrap_or_else(|| "us-east-1".into()),
        bucket: var("TRACECRAFT_TEST_S3_BUCKET").expect("the bucket of the suite"),
        project: project.into(),
    };
    let key = var("AWS_ACCESS_KEY_ID").expect("a key");
    let secret = var("AWS_SECRET_ACCESS_KEY").expect("a secret");
    let keys = Keys::lasting(&key, &secret, None, "the test");
    let signer = Signer::new(Arc::new(Fixed(keys)), &settings.region);
    let transport = Transport::new(None).unwrap();
    Some(S3Store::new(settings, transport, signer, disk.clone(), Blocking::Pool))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t40_t41_t45_a_named_s3_store_keeps_the_contract() {
    let scratch = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::new());
    let outbox = scratch.path().join("outbox");
    let tag = fastrand::u32(..);
    let Some(store) = named_store(&disk, &format!("suite-{tag:08x}/plain")) else {
        println!("not run: name an S3 store for the suite with {ENDPOINT_VAR}");
        return;
    };
    contract(&store, &*disk, &outbox).await;
    println!("conditional puts at {}: {:?}", store.identity(), store.conditions());
    let mut store = named_store(&disk, &format!("suite-{tag:08x}/retried")).unwrap();
    // 5 MiB is the least piece that S3 takes.
    store.pieces = Pieces { above: 6 << 20, bytes: 5 << 20, most: 10_000 };
    let whole: Vec<u8> = (0..13_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    disk.replace(&outbox.join("merged"), &whole).unwrap();
    let store = Counted::new(store, Arc::default());
    let store = Retry::new(store, disk.clone(), Blocking::Pool, fastrand::Rng::with_seed(1));
    store.put(KEY, Body::File(outbox.join("merged")), Some("pieces")).await.unwrap();
    assert!(read(&store, KEY).await.unwrap() == whole);
    store.delete(KEY).await.unwrap();
    contract(&store, &*disk, &outbox).await;
}
