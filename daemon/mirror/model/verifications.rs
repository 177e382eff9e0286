//! A verification among all else that the engine does: with a client that reads nothing, while the daemon stops, beside a
//! compaction that meets damage, and after an older manifest came back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::remote::{self, compact, live};
use super::{Mirror, Play};
use crate::api::{ErrorCode, Progress, Status, Verified, Verifying, Weight};
use crate::mirror::Signal;
use crate::mirror::handle::Options;
use crate::store::memory::{MemoryStore, OpKind, StoreFault};

const INTERVAL: Duration = Duration::from_secs(5);

fn play(test: impl AsyncFnOnce(&mut Play, MemoryStore)) {
    remote::play(INTERVAL, test);
}

/// So many sessions, each of several parts that its manifest names.
async fn recorded(play: &mut Play, sessions: usize) {
    live(play, INTERVAL, sessions, 4).await;
    flush(play).await;
}

async fn flush(play: &mut Play) {
    let flush = async |mirror: Mirror| mirror.flush(None).await;
    play.ask(Duration::from_secs(60), flush).await.unwrap().unwrap().unwrap();
}

async fn status(play: &mut Play) -> Status {
    let status = play.ask(INTERVAL, async |mirror: Mirror| mirror.status().await).await;
    status.unwrap().unwrap().unwrap()
}

async fn begun(play: &mut Play, options: Options) -> mpsc::Receiver<Verifying> {
    let verify = async |mirror: Mirror| mirror.verify(None, options).await;
    play.ask(INTERVAL, verify).await.unwrap().unwrap()
}

/// Reads the rest of a stream: its sessions, and how it ended.
async fn all(mut events: mpsc::Receiver<Verifying>) -> (Vec<Verified>, Verifying) {
    let (mut sessions, mut last) = (Vec::new(), None);
    while let Some(event) = events.recv().await {
        match event {
            Verifying::Session { session } => sessions.push(session),
            event => last = Some(event),
        }
    }
    (sessions, last.expect("there is a first line"))
}

async fn read(play: &mut Play, events: mpsc::Receiver<Verifying>) -> (Vec<Verified>, Verifying) {
    let within = Duration::from_secs(600);
    play.ask(within, async |_: Mirror| all(events).await).await.unwrap().expect("it ends")
}

fn manifest_of(store: &MemoryStore, id: &str) -> Value {
    serde_json::from_slice(&store.objects()[&format!("sessions/codex/{id}/meta.json")]).unwrap()
}

fn put_manifest(store: &MemoryStore, id: &str, manifest: &Value) {
    store.insert(&format!("sessions/codex/{id}/meta.json"), manifest.to_string());
}

#[test]
fn a_client_that_reads_nothing_keeps_no_verification_for_itself() {
    play(async |play, _| {
        recorded(play, 40).await;
        let unread = begun(play, Options::default()).await;
        play.run(Duration::from_secs(60)).await.unwrap();
        let events = begun(play, Options::default()).await;
        let (_, last) = read(play, events).await;
        let Verifying::Failed { error } = last else { panic!("{last:?}") };
        assert_eq!(error.code, ErrorCode::Busy);
        play.run(Duration::from_secs(900)).await.unwrap();
        let events = begun(play, Options::default()).await;
        let (sessions, last) = read(play, events).await;
        assert!(matches!(last, Verifying::Done { .. }), "{last:?}");
        assert_eq!(sessions.len(), 40);
        drop(unread);
    });
}

#[test]
fn a_daemon_that_stops_waits_for_a_repair_that_began_and_begins_no_other() {
    play(async |play, store| {
        // Requests take time, so that the signal finds the repair at work.
        let slow = store.clone().with_latency(fastrand::Rng::with_seed(7));
        play.world.memory_store = Some(slow.clone());
        recorded(play, 2).await;
        // After a restart nothing but the repair's session has anything to send.
        play.drain().await.unwrap();
        play.run(Duration::from_secs(600)).await.unwrap();
        for id in ["s0", "s1"] {
            let mut manifest = manifest_of(&store, id);
            manifest["total_uploaded_bytes"] = json!(7);
            put_manifest(&store, id, &manifest);
        }
        let lists = Arc::new(AtomicU32::new(0));
        let counted = lists.clone();
        slow.set_hook(Box::new(move |op| {
            let lists = op.kind == OpKind::List && op.key.starts_with("sessions/codex/s0/");
            counted.fetch_add(u32::from(lists), Ordering::Relaxed);
            StoreFault::None
        }));
        let events = begun(play, Options { repair: true, deep: false }).await;
        let reader = tokio::spawn(all(events));
        // The second look is the repair's.
        while lists.load(Ordering::Relaxed) < 2 {
            play.run(Duration::from_millis(5)).await.unwrap();
        }
        play.world.append_to(0);
        let process = play.process.as_ref().unwrap();
        process.signals.try_send(Signal::Drain).unwrap();
        play.run(Duration::from_secs(30)).await.unwrap();
        assert!(play.process.is_none(), "it ended");
        reader.await.unwrap();
        let (first, second) = (manifest_of(&store, "s0"), manifest_of(&store, "s1"));
        assert_ne!(first["total_uploaded_bytes"], json!(7), "the repair was finished");
        assert_eq!(first["parts"].as_array().unwrap().len(), 5, "its last part is named");
        assert_ne!(first["ended_at"], Value::Null);
        assert_eq!(second["parts"].as_array().unwrap().len(), 4);
        assert_eq!(second["total_source_bytes"], json!(sum_of(&second, "source_bytes")));
        assert_ne!(second["total_uploaded_bytes"], json!(sum_of(&second, "uploaded_bytes")));
    });
}

fn sum_of(manifest: &Value, field: &str) -> u64 {
    let parts = manifest["parts"].as_array().unwrap();
    parts.iter().map(|part| part[field].as_u64().unwrap()).sum()
}

#[test]
fn a_part_that_a_compaction_misses_is_its_sessions_matter_and_no_outage() {
    play(async |play, store| {
        recorded(play, 2).await;
        let uuid = manifest_of(&store, "s0")["parts"][1]["uuid"].as_str().unwrap().to_owned();
        store.remove(&format!("sessions/codex/s0/part-00001-{uuid}.jsonl"));
        let last = compact(play, Duration::from_secs(60)).await;
        assert!(matches!(last, Some(Progress::Failed { .. })), "{last:?}");
        let told = status(play).await;
        let codes: Vec<&str> = told.problems.iter().map(|p| p.code.as_str()).collect();
        assert!(!codes.contains(&"store_unavailable"), "{codes:?}");
        assert!(codes.contains(&"compaction_failed"), "{codes:?}");
        // A repair puts it back from the source, and nothing is said any more.
        let events = begun(play, Options { repair: true, deep: true }).await;
        let (sessions, last) = read(play, events).await;
        assert!(matches!(last, Verifying::Done { .. }), "{last:?}");
        let of =
            |weight| sessions.iter().flat_map(|s| &s.findings).filter(move |f| f.weight == weight);
        assert_eq!((of(Weight::Wrong).count(), of(Weight::Mended).count()), (0, 1));
        assert!(status(play).await.problems.is_empty());
    });
}

#[test]
fn an_older_manifest_stays_told_when_it_is_put_again_with_new_words() {
    play(async |play, store| {
        recorded(play, 1).await;
        // What was named is seen named by then, and not named again by itself.
        play.run(Duration::from_secs(600)).await.unwrap();
        let newest = manifest_of(&store, "s0");
        let mut older = newest.clone();
        let lost = older["parts"].as_array_mut().unwrap().pop().unwrap();
        older["next_seq"] = lost["seq"].clone();
        for (total, own) in
            [("total_uploaded_bytes", "uploaded_bytes"), ("total_source_bytes", "source_bytes")]
        {
            older[total] = json!(older[total].as_u64().unwrap() - lost[own].as_u64().unwrap());
        }
        put_manifest(&store, "s0", &older);
        // A stop writes nothing but a time.
        let stop = async |mirror: Mirror| mirror.stop("s0".into()).await;
        play.ask(Duration::from_secs(60), stop).await.unwrap().unwrap().unwrap();
        assert_eq!(manifest_of(&store, "s0")["followed"], json!(false));
        let events = begun(play, Options::default()).await;
        let (sessions, _) = read(play, events).await;
        let behind = sessions[0].findings.iter().any(|f| f.code == "manifest_behind");
        assert!(behind, "{:?}", sessions[0].findings);
        let events = begun(play, Options { repair: true, deep: true }).await;
        let (sessions, _) = read(play, events).await;
        let wrong = sessions[0].findings.iter().filter(|f| f.weight == Weight::Wrong);
        assert_eq!(wrong.count(), 0, "{:?}", sessions[0].findings);
        assert_eq!(manifest_of(&store, "s0")["parts"].as_array().unwrap().len(), 4);
        assert_eq!(manifest_of(&store, "s0")["followed"], json!(false));
    });
}
