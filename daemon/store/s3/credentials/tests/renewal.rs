//! When keys are renewed, by whom, and what happens when they cannot be.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::join_all;
use http::{Request, Response};
use jiff::SignedDuration;
use tokio::sync::Notify;

use super::stand_in::{PlainWire, StandIn, TestClock};
use crate::durable::{Blocking, OsDisk};
use crate::store::s3::credentials::{Cache, Clock, CredentialsError, Keys, Source, Wire};
use crate::store::s3::signer::Signer;
use crate::store::s3::signer::reference::verify;
use crate::store::s3::{S3Settings, S3Store, Transport};
use crate::store::{Body, Store};

/// SHA-256 of nothing.
const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

type Outcome = Result<Keys, CredentialsError>;

/// A source that answers what it was told to, one after the other, and may be held at its gate.
#[derive(Debug, Default)]
struct Scripted {
    answers: Mutex<VecDeque<Outcome>>,
    asked: AtomicUsize,
    gate: Option<Notify>,
}

#[async_trait]
impl Source for Scripted {
    async fn keys(&self) -> Outcome {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if let Some(gate) = &self.gate {
            gate.notified().await;
        }
        self.answers.lock().unwrap().pop_front().expect("an answer")
    }
}

/// Keys that live for some minutes from the clock's now.
fn keys(id: &str, clock: &TestClock, minutes: i64) -> Outcome {
    let mut keys = Keys::lasting(id, "hush", None, "a test");
    keys.expires = Some(clock.now() + SignedDuration::from_mins(minutes));
    Ok(keys)
}

fn away() -> Outcome {
    Err(CredentialsError::Away { party: "it".into(), endpoint: "x".into(), reason: "gone".into() })
}

fn world(
    answers: impl IntoIterator<Item = Outcome>,
    gated: bool,
) -> (Arc<Scripted>, Arc<TestClock>, Cache) {
    let source = Scripted {
        answers: Mutex::new(answers.into_iter().collect()),
        gate: gated.then(Notify::new),
        ..Scripted::default()
    };
    let (source, clock) = (Arc::new(source), Arc::<TestClock>::default());
    let cache = Cache::new(source.clone(), clock.clone());
    (source, clock, cache)
}

async fn id(cache: &Cache) -> String {
    cache.get().await.unwrap().access_key_id.clone()
}

#[tokio::test]
async fn t38_all_who_need_keys_wait_for_one_renewal() {
    let clock = TestClock::default();
    let (source, _, cache) = world([keys("one", &clock, 60)], true);
    let mut waiting = Box::pin(join_all((0..100).map(|_| id(&cache))));
    assert!((&mut waiting).now_or_never().is_none());
    source.gate.as_ref().unwrap().notify_waiters();
    assert!(waiting.await.iter().all(|id| id == "one"));
    assert_eq!(source.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_renewal_goes_on_when_the_one_who_began_it_goes_away_and_ends_with_the_last() {
    let clock = TestClock::default();
    let (source, _, cache) = world([keys("one", &clock, 60)], true);
    let mut first = Box::pin(cache.get());
    let mut second = Box::pin(cache.get());
    assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
    drop(first);
    source.gate.as_ref().unwrap().notify_waiters();
    assert_eq!(second.await.unwrap().access_key_id, "one");
    assert_eq!(source.asked.load(Ordering::SeqCst), 1);
    // All went away: whoever comes next is not handed a question that was left lying.
    cache.drop_keys();
    assert!(cache.get().now_or_never().is_none());
    source.answers.lock().unwrap().push_back(keys("two", &clock, 60));
    let mut third = Box::pin(cache.get());
    assert!((&mut third).now_or_never().is_none());
    source.gate.as_ref().unwrap().notify_waiters();
    assert_eq!(third.await.unwrap().access_key_id, "two");
    assert_eq!(source.asked.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn t38_keys_that_are_good_yet_outlive_failing_renewals() {
    let clock = TestClock::default();
    let answers = [keys("one", &clock, 60), away(), away(), away(), keys("two", &clock, 120)];
    let (source, clock, cache) = world(answers, false);
    assert_eq!(id(&cache).await, "one");
    clock.forward(56);
    assert_eq!(
        id(&cache).await,
        "one",
        "the renewal failed, and they are good for four minutes yet"
    );
    assert_eq!(id(&cache).await, "one");
    assert_eq!(source.asked.load(Ordering::SeqCst), 2, "a source that just failed is left alone");
    clock.forward(1);
    assert_eq!(id(&cache).await, "one");
    clock.forward(3);
    assert_eq!(cache.get().await.unwrap_err(), away().unwrap_err(), "now they are not");
    assert_eq!(cache.get().await.unwrap_err(), away().unwrap_err());
    assert_eq!(source.asked.load(Ordering::SeqCst), 4);
    clock.forward(1);
    assert_eq!(id(&cache).await, "two");
    assert_eq!(cache.origin().as_deref(), Some("a test"));
}

#[tokio::test]
async fn keys_of_a_short_life_are_renewed_after_half_of_it() {
    let clock = TestClock::default();
    let (source, clock, cache) = world([keys("one", &clock, 4), keys("two", &clock, 8)], false);
    for _ in 0..5 {
        assert_eq!(id(&cache).await, "one");
    }
    assert_eq!(source.asked.load(Ordering::SeqCst), 1);
    clock.forward(2);
    assert_eq!(id(&cache).await, "two");
}

/// The clock stands still but for waits, so this is no wait for anybody.
#[tokio::test(start_paused = true)]
async fn a_source_that_never_answers_is_given_up() {
    let (_, _, cache) = world([], true);
    let error = cache.get().await.unwrap_err();
    assert_eq!(error.to_string(), "no credentials came within 60 s");
    assert!(error.is_temporary());
}

#[tokio::test]
async fn t38_a_request_that_the_store_refuses_for_expired_keys_succeeds_with_renewed_ones() {
    let store = StandIn::new(|request, _| {
        let parts = request.clone().into_parts().0;
        match verify(&parts, "hush", "eu-west-3", "s3") {
            Ok(asked) if asked.access_key_id == "new" => (200, String::new()),
            Ok(_) => (400, "<Error><Code>ExpiredToken</Code></Error>".into()),
            Err(wrong) => (403, wrong),
        }
    })
    .await;
    let clock = TestClock::default();
    // By its own word the first key is good for hours: the store knows better.
    let (source, _, cache) = world([keys("old", &clock, 600), keys("new", &clock, 600)], false);
    let signer = Signer::with_cache(cache, "eu-west-3");
    let url = format!("{}/bucket/sessions/codex/a~2/x@0123abcd%2520y", store.url());
    let send = async || -> Response<bytes::Bytes> {
        let (mut parts, ()) = Request::put(&url).body(()).unwrap().into_parts();
        signer.sign(&mut parts, NOTHING).await.unwrap();
        PlainWire::default().send(Request::from_parts(parts, bytes::Bytes::new())).await.unwrap()
    };
    assert_eq!(send().await.status(), 400);
    signer.expired();
    assert_eq!(send().await.status(), 200);
    assert_eq!(send().await.status(), 200);
    assert_eq!(source.asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn t38_a_put_is_done_although_the_store_calls_the_keys_expired_in_between() {
    let part = r#"{"type":"user"}"#;
    let bucket = StandIn::new(move |request, _| {
        let parts = request.clone().into_parts().0;
        match (verify(&parts, "hush", "eu-west-3", "s3"), request.method().as_str()) {
            (Ok(asked), _) if asked.access_key_id != "new" => {
                (400, "<Error><Code>ExpiredToken</Code><Message>hush</Message></Error>".into())
            }
            // Without an ETag the store looks whether it is there.
            (Ok(_), "PUT" | "HEAD") => {
                (200, if request.method() == "PUT" { "" } else { part }.into())
            }
            (Ok(_), method) => (405, method.into()),
            (Err(wrong), _) => (403, wrong),
        }
    })
    .await;
    let clock = TestClock::default();
    let (source, _, cache) = world([keys("old", &clock, 600), keys("new", &clock, 600)], false);
    let settings = S3Settings {
        scheme: "s3",
        endpoint: bucket.url(),
        region: "eu-west-3".into(),
        bucket: "bucket".into(),
        project: "agents".into(),
    };
    let signer = Signer::with_cache(cache, "eu-west-3");
    let transport = Transport::new(None).unwrap();
    let disk = Arc::new(OsDisk::new());
    let store = S3Store::new(settings, transport, signer, disk, Blocking::Inline);
    let key = "sessions/codex/a~2/x@0123abcd%20y/part-00001-0123abcd.jsonl";
    store.put(key, Body::Bytes(part.into()), Some("0-15")).await.unwrap();
    assert_eq!(source.asked.load(Ordering::SeqCst), 2);
    let paths: Vec<String> = bucket
        .asked()
        .iter()
        .map(|asked| format!("{} {}", asked.method(), asked.uri().path()))
        .collect();
    let path = "/bucket/agents/sessions/codex/a~2/x%400123abcd%2520y/part-00001-0123abcd.jsonl";
    assert_eq!(paths, [format!("PUT {path}"), format!("PUT {path}"), format!("HEAD {path}")]);
}
