//! What clients of the control socket may rely on. The mirror is a task that answers commands from a table; most tests need
//! no socket at all.

use std::convert::Infallible;
use std::io::ErrorKind;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::{Method, Request, StatusCode};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower::{Service, ServiceExt};

use super::service::{BODY_BYTES_MAX, LONG_TIMEOUT, QUICK_TIMEOUT, REPLAYS_MAX};
use super::*;
use crate::api::{
    ErrorBody, ErrorCode, Flushed, Flushing, Hinted, PROTOCOL, PROTOCOL_HEADER, Pending, Phase,
    Progress, SESSION_HEADER, Session, SessionCounts, SessionList, SessionState, Status,
    VERSION_HEADER, VerifiedSums, Verifying,
};
use crate::control::body::Reply;
use crate::mirror::handle::{Command, Counts, Measures, Replay};

/// For conditions that hold at once unless something is broken.
const DEADLINE: Duration = Duration::from_secs(20);

pub(super) fn session(harness: &str, id: &str) -> Session {
    Session {
        harness: harness.into(),
        id: id.into(),
        generation: 1,
        state: SessionState::Live,
        source_path: format!("/home/me/{id}.jsonl"),
        cwd: None,
        parts: 3,
        source_bytes: 1000,
        stored_bytes: 900,
        pending_bytes: 0,
        redactions: Default::default(),
        started_at: None,
        last_stored_at: None,
        ended_at: None,
        problem: None,
        excluded: false,
    }
}

pub(super) fn status() -> Status {
    Status {
        version: "0.1.0".into(),
        protocol: PROTOCOL,
        pid: 1,
        uptime_seconds: 2,
        phase: Phase::Recording,
        store: "file:///bucket".into(),
        state_dir: "/state".into(),
        interval_ms: 5000,
        redact: true,
        compaction: "auto".into(),
        roots: vec![],
        sessions: SessionCounts::default(),
        stored_bytes: 0,
        pending: Pending::default(),
        last_stored_at: None,
        last_flush_at: None,
        problems_left_out: 0,
        usage: None,
        stalled_seconds: None,
        remote: None,
        problems: vec![],
    }
}

fn measures() -> Measures {
    Measures {
        status: status(),
        sessions: vec![(SessionState::Live, 1)],
        requests: vec![("put", 3)],
        failures: 0,
        counts: Counts::default(),
        listeners: 0,
    }
}

fn no_such(id: &str) -> ErrorBody {
    ErrorBody { code: ErrorCode::NoSuchSession, message: format!("no session {id:?}"), hint: None }
}

/// A mirror that knows `codex/a`, and sessions whose names say how they go wrong. It keeps what it should never answer.
fn mirror() -> Mirror {
    let (mirror, mut queue) = Mirror::new();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(command) = queue.recv().await {
            match command {
                Command::Status(reply) => drop(reply.send(Ok(status()))),
                Command::Measure(reply) => drop(reply.send(Ok(Box::new(measures())))),
                Command::Listen(reply) => drop(reply.send(Err(no_such("events")))),
                Command::List(reply) => {
                    let sessions = vec![session("codex", "a")];
                    drop(reply.send(Ok(SessionList { sessions })));
                }
                Command::Replay { id, tail, generation, reply } => {
                    tokio::spawn(replay(id, tail, generation, reply));
                }
                Command::Compact { id, keep_tail, progress } => {
                    tokio::spawn(compact(id, keep_tail, progress));
                }
                Command::Verify { id, options: _, events } => {
                    tokio::spawn(verify(id, events));
                }
                Command::Stop { id, reply } if id == "hangs" => kept.push(reply),
                Command::Stop { id, reply } | Command::Start { id, reply } => {
                    let answer = match id.as_str() {
                        "codex/a" => Ok(session("codex", "a")),
                        "many" => Err(ErrorBody {
                            code: ErrorCode::AmbiguousId,
                            message: "many is a prefix of many1 and many2".into(),
                            hint: None,
                        }),
                        "drops" => continue,
                        _ => Err(no_such(&id)),
                    };
                    drop(reply.send(answer));
                }
                Command::Hint { hint, reply } => {
                    let hinted = Hinted { flushing: Flushing::Sessions, sessions: hint.sessions };
                    drop(reply.send(Ok(hinted)));
                }
                Command::Flush { id, reply } => {
                    let sessions = if id.is_some() { 1 } else { 7 };
                    drop(reply.send(Ok(Flushed {
                        sessions,
                        parts: 2,
                        bytes: 3,
                        unfinished_bytes: 0,
                    })));
                }
            }
        }
    });
    mirror
}

async fn replay(
    id: String,
    tail: Option<u64>,
    generation: Option<u32>,
    reply: oneshot::Sender<Result<Replay, ErrorBody>>,
) {
    if id.starts_with("none") {
        drop(reply.send(Err(no_such(&id))));
        return;
    }
    let (sender, bytes) = mpsc::channel(1);
    drop(reply.send(Ok(Replay { session: session("codex", &id), bytes })));
    let line = Bytes::from(format!("{{\"tail\":{tail:?},\"generation\":{generation:?}}}\n"));
    match id.as_str() {
        "refused" => drop(sender.send(Err("the bucket is away".into())).await),
        "broken" => {
            drop(sender.send(Ok(line)).await);
            drop(sender.send(Err("part 2 has another digest".into())).await);
        }
        "endless" => while sender.send(Ok(Bytes::from(vec![b'x'; 1 << 20]))).await.is_ok() {},
        _ => {
            drop(sender.send(Ok(line.clone())).await);
            drop(sender.send(Ok(line)).await);
        }
    }
}

async fn verify(id: Option<String>, events: mpsc::Sender<Verifying>) {
    let event = match id {
        Some(id) => Verifying::Failed { error: no_such(&id) },
        None => Verifying::Done { sums: VerifiedSums { sessions: 7, ..Default::default() } },
    };
    let begun = Verifying::Working { done_sessions: 0, total_sessions: 7, done_bytes: 0 };
    if matches!(event, Verifying::Done { .. }) {
        drop(events.send(begun).await);
    }
    drop(events.send(event).await);
}

async fn compact(id: String, keep_tail: usize, progress: mpsc::Sender<Progress>) {
    if id == "silent" {
        progress.closed().await;
        return;
    }
    if id.starts_with("none") {
        drop(progress.send(Progress::Failed { error: no_such(&id) }).await);
        return;
    }
    drop(progress.send(Progress::Working { done_bytes: 1, total_bytes: 2 }).await);
    if id != "dies" {
        let parts_after = keep_tail as u64 + 1;
        drop(progress.send(Progress::Done { parts_before: 9, parts_after, merged_bytes: 2 }).await);
    }
}

async fn ask(service: ControlService, method: Method, uri: &str) -> Reply {
    let request = Request::builder().method(method).uri(uri).body(Empty::<Bytes>::new()).unwrap();
    service.oneshot(request).await.unwrap()
}

async fn get(uri: &str) -> Reply {
    ask(ControlService::new(mirror()), Method::GET, uri).await
}

async fn post(uri: &str) -> Reply {
    ask(ControlService::new(mirror()), Method::POST, uri).await
}

async fn read<T: DeserializeOwned>(reply: Reply) -> T {
    serde_json::from_slice(&reply.into_body().collect().await.unwrap().to_bytes()).unwrap()
}

async fn expect_error(reply: Reply, status: u16, code: ErrorCode) -> ErrorBody {
    assert_eq!(reply.headers()[PROTOCOL_HEADER], PROTOCOL.to_string().as_str());
    assert_eq!(reply.headers()[VERSION_HEADER], env!("CARGO_PKG_VERSION"));
    assert_eq!(reply.headers()["content-type"], "application/json");
    assert_eq!(reply.status().as_u16(), status);
    let error: ErrorBody = read(reply).await;
    assert_eq!(error.code, code);
    error
}

#[tokio::test]
async fn every_route_answers_in_its_shape_and_names_the_protocol() {
    let reply = get("/v1/status").await;
    assert_eq!(reply.status(), StatusCode::OK);
    assert_eq!(reply.headers()[PROTOCOL_HEADER], PROTOCOL.to_string().as_str());
    let answered = read::<Status>(reply).await;
    assert!(answered.usage.as_ref().is_some_and(|usage| usage.cpu_seconds > 0.0));
    assert_eq!(Status { usage: None, ..answered }, status());
    let list: SessionList = read(get("/v1/sessions").await).await;
    assert_eq!(list.sessions, [session("codex", "a")]);
    for verb in ["stop", "start"] {
        let reply = post(&format!("/v1/sessions/codex%2Fa/{verb}")).await;
        assert_eq!(read::<Session>(reply).await, session("codex", "a"));
    }
    assert_eq!(read::<Flushed>(post("/v1/flush").await).await.sessions, 7);
    assert_eq!(read::<Flushed>(post("/v1/sessions/a/flush").await).await.sessions, 1);
    let reply = post("/v1/hint?session=a&path=%2Fa").await;
    assert_eq!(reply.status(), StatusCode::ACCEPTED);
    assert_eq!(read::<Hinted>(reply).await.sessions, ["a"]);
}

#[tokio::test]
async fn content_is_the_bytes_of_the_session_that_its_header_describes() {
    let reply = get("/v1/sessions/a/content?tail=5&generation=2").await;
    assert_eq!(reply.status(), StatusCode::OK);
    assert_eq!(reply.headers()["content-type"], "application/jsonl");
    let described: Session =
        serde_json::from_slice(reply.headers()[SESSION_HEADER].as_bytes()).unwrap();
    assert_eq!(described, session("codex", "a"));
    let bytes = reply.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(bytes, "{\"tail\":Some(5),\"generation\":Some(2)}\n".repeat(2));
}

#[tokio::test]
async fn every_refusal_has_its_status_its_code_and_a_body() {
    expect_error(get("/").await, 404, ErrorCode::NoSuchRoute).await;
    expect_error(get("/v1/flush").await, 405, ErrorCode::MethodNotAllowed).await;
    expect_error(get("/v1/sessions/%2/content").await, 400, ErrorCode::BadRequest).await;
    expect_error(post("/v1/sessions/none/stop").await, 404, ErrorCode::NoSuchSession).await;
    expect_error(get("/v1/sessions/none/content").await, 404, ErrorCode::NoSuchSession).await;
    expect_error(post("/v1/sessions/none/compact").await, 404, ErrorCode::NoSuchSession).await;
    expect_error(post("/v1/sessions/many/stop").await, 409, ErrorCode::AmbiguousId).await;
    expect_error(post("/v1/sessions/drops/stop").await, 503, ErrorCode::Unavailable).await;
    expect_error(get("/v1/sessions/refused/content").await, 502, ErrorCode::Store).await;
    let (stopped, queue) = Mirror::new();
    drop(queue);
    let reply = ask(ControlService::new(stopped), Method::GET, "/v1/status").await;
    expect_error(reply, 503, ErrorCode::Unavailable).await;
    let reply = ask(ControlService::busy(), Method::GET, "/v1/status").await;
    expect_error(reply, 503, ErrorCode::Unavailable).await;
}

#[tokio::test]
async fn a_client_of_a_newer_protocol_is_told_to_update_the_daemon() {
    let request = Request::get("/v1/status").header(PROTOCOL_HEADER, PROTOCOL + 1);
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let reply = ControlService::new(mirror()).oneshot(request).await.unwrap();
    let error = expect_error(reply, 400, ErrorCode::BadRequest).await;
    assert!(error.hint.unwrap().contains("update tracecraftd"));
}

#[tokio::test]
async fn a_body_is_ignored_up_to_its_limit_and_refused_beyond() {
    for (bytes, expected) in [(BODY_BYTES_MAX, 200), (BODY_BYTES_MAX + 1, 413)] {
        let request = Request::post("/v1/flush").body(Full::new(Bytes::from(vec![b' '; bytes])));
        let reply = ControlService::new(mirror()).oneshot(request.unwrap()).await.unwrap();
        assert_eq!(reply.status().as_u16(), expected);
    }
    // The same for a body that does not say its size beforehand.
    let chunks = (0..2).map(|_| Ok::<_, Infallible>(frame(BODY_BYTES_MAX * 2 / 3)));
    let body = http_body_util::StreamBody::new(futures_util::stream::iter(chunks));
    let reply = ControlService::new(mirror())
        .oneshot(Request::post("/v1/flush").body(body).unwrap())
        .await
        .unwrap();
    expect_error(reply, 413, ErrorCode::TooLarge).await;
}

fn frame(bytes: usize) -> hyper::body::Frame<Bytes> {
    hyper::body::Frame::data(Bytes::from(vec![b' '; bytes]))
}

#[tokio::test(start_paused = true)]
async fn a_mirror_that_never_answers_is_reported_when_the_limit_is_over() {
    let (silent, _queue) = Mirror::new();
    let began = Instant::now();
    let reply = ask(ControlService::new(silent.clone()), Method::GET, "/v1/sessions").await;
    expect_error(reply, 504, ErrorCode::Timeout).await;
    assert_eq!(began.elapsed(), QUICK_TIMEOUT);
    let began = Instant::now();
    let reply = ask(ControlService::new(silent), Method::POST, "/v1/flush").await;
    expect_error(reply, 504, ErrorCode::Timeout).await;
    assert_eq!(began.elapsed(), LONG_TIMEOUT);
}

/// A mirror whose loop comes round once, and never again.
#[tokio::test(start_paused = true)]
async fn a_loop_that_hangs_shows_in_status_and_metrics_which_answer_all_the_same() {
    let (hanging, mut queue) = Mirror::new();
    let service = ControlService::new(hanging.clone());
    let reply = ask(service.clone(), Method::GET, "/v1/status").await;
    let error = expect_error(reply, 504, ErrorCode::Timeout).await;
    assert!(error.message.contains("has not come round for 5 s"), "{error:?}");
    hanging.pulse().turn();
    let (reply, ()) = tokio::join!(ask(service.clone(), Method::GET, "/v1/status"), async {
        while let Some(command) = queue.recv().await {
            // The first one is of the client that has given up.
            if let Command::Status(reply) = command
                && reply.send(Ok(status())).is_ok()
            {
                break;
            }
        }
    });
    assert_eq!(read::<Status>(reply).await.stalled_seconds, None);
    tokio::time::advance(Duration::from_secs(60)).await;
    let reply = ask(service.clone(), Method::GET, "/v1/status").await;
    assert_eq!(reply.status(), StatusCode::OK);
    let said: Status = read(reply).await;
    assert_eq!((said.stalled_seconds, said.sessions), (Some(65), status().sessions));
    let reply = ask(service, Method::GET, "/metrics").await;
    let page = reply.into_body().collect().await.unwrap().to_bytes();
    let page = String::from_utf8(page.to_vec()).unwrap();
    assert!(page.contains("\ntracecraft_up 0\n") && page.contains("loop_age_seconds 70"), "{page}");
}

#[tokio::test(start_paused = true)]
async fn t65_status_answers_while_every_place_for_long_work_is_taken() {
    let service = ControlService::new(mirror());
    let mut waiting = JoinSet::new();
    for _ in 0..service::LONG_MAX {
        waiting.spawn(ask(service.clone(), Method::POST, "/v1/sessions/hangs/stop"));
    }
    // Each of them has its place once all of them have been polled.
    for _ in 0..service::LONG_MAX * 4 {
        tokio::task::yield_now().await;
    }
    let reply = ask(service.clone(), Method::POST, "/v1/sessions/hangs/stop").await;
    expect_error(reply, 503, ErrorCode::Unavailable).await;
    let reply = ask(service, Method::GET, "/v1/status").await;
    assert_eq!(reply.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_replay_that_nobody_reads_is_not_read_ahead_and_keeps_its_place() {
    let service = ControlService::new(mirror());
    let mut replies = Vec::new();
    for _ in 0..REPLAYS_MAX {
        replies.push(ask(service.clone(), Method::GET, "/v1/sessions/endless/content").await);
    }
    let one_more = ask(service.clone(), Method::GET, "/v1/sessions/endless/content").await;
    expect_error(one_more, 503, ErrorCode::Unavailable).await;
    replies.pop();
    let reply = ask(service, Method::GET, "/v1/sessions/endless/content").await;
    assert_eq!(reply.status(), StatusCode::OK);
}

#[tokio::test]
async fn compaction_reports_its_progress_and_always_ends_with_an_outcome() {
    let lines = |reply: Reply| async {
        let bytes = reply.into_body().collect().await.unwrap().to_bytes();
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice::<Progress>(line).unwrap()).collect::<Vec<_>>()
    };
    let working = Progress::Working { done_bytes: 1, total_bytes: 2 };
    let done = Progress::Done { parts_before: 9, parts_after: 5, merged_bytes: 2 };
    let reply = post("/v1/sessions/a/compact?keep_tail=4").await;
    assert_eq!(lines(reply).await, [working.clone(), done]);
    let told = lines(post("/v1/sessions/dies/compact").await).await;
    assert_eq!(told[0], working);
    let Progress::Failed { error } = &told[1] else { panic!("{told:?}") };
    assert_eq!(error.code, ErrorCode::Unavailable);
}

#[tokio::test]
async fn a_verification_streams_to_its_outcome_and_a_refusal_has_its_status() {
    let reply = post("/v1/verify?deep=1").await;
    let bytes = reply.into_body().collect().await.unwrap().to_bytes();
    let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let told: Vec<Verifying> = lines.map(|line| serde_json::from_slice(line).unwrap()).collect();
    let sums = VerifiedSums { sessions: 7, ..Default::default() };
    let begun = Verifying::Working { done_sessions: 0, total_sessions: 7, done_bytes: 0 };
    assert_eq!(told, [begun, Verifying::Done { sums }]);
    expect_error(post("/v1/sessions/nobody/verify").await, 404, ErrorCode::NoSuchSession).await;
}

#[tokio::test(start_paused = true)]
async fn compaction_that_falls_silent_ends_with_a_timeout() {
    let reply = post("/v1/sessions/silent/compact").await;
    expect_error(reply, 504, ErrorCode::Timeout).await;
}

/// A server on a socket of its own, until `stop`.
struct Running {
    directory: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), ServeError>>,
    look: Arc<Notify>,
}

impl Running {
    fn start() -> Running {
        let directory = tempfile::tempdir().unwrap();
        let bound = bind(&directory.path().join("s")).unwrap();
        let (stop, stopped) = oneshot::channel();
        let look = Arc::new(Notify::new());
        let ended = async { drop(stopped.await) };
        let task = tokio::spawn(serve(bound, mirror(), look.clone(), ended));
        Running { directory, stop: Some(stop), task, look }
    }

    fn path(&self) -> std::path::PathBuf {
        self.directory.path().join("s")
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path()).await.unwrap()
    }

    async fn send(&self, request: &str) -> UnixStream {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    async fn end(mut self) {
        drop(self.stop.take());
        timeout(DEADLINE, self.task).await.unwrap().unwrap().unwrap();
    }
}

async fn read_all(mut stream: UnixStream) -> String {
    let mut bytes = Vec::new();
    match timeout(DEADLINE, stream.read_to_end(&mut bytes)).await.unwrap() {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    String::from_utf8(bytes).unwrap()
}

async fn becomes(what: &str, mut so: impl FnMut() -> bool) {
    let wait = async {
        while !so() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("{what} never came"));
}

const ASK: &str = "GET /v1/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn t65_a_socket_that_was_removed_is_made_again_at_the_next_look() {
    let server = Running::start();
    let path = server.path();
    for _ in 0..2 {
        std::fs::remove_file(&path).unwrap();
        server.look.notify_one();
        becomes("the socket", || path.exists()).await;
        let answer = read_all(server.send(ASK).await).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    server.end().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn t65_what_took_the_place_of_the_socket_stays_until_nobody_needs_it() {
    let server = Running::start();
    let path = server.path();
    std::fs::remove_file(&path).unwrap();
    let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    server.look.notify_one();
    other.set_nonblocking(true).unwrap();
    // It is asked whether somebody is there, and left alone.
    becomes("the question", || other.accept().is_ok()).await;
    assert!(path.exists());
    drop(other);
    server.look.notify_one();
    becomes("the socket", || std::os::unix::net::UnixStream::connect(&path).is_ok()).await;
    let answer = read_all(server.send(ASK).await).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server.end().await;
}

#[tokio::test]
async fn a_broken_replay_reaches_the_client_without_a_proper_end() {
    let server = Running::start();
    let request = |id| {
        format!("GET /v1/sessions/{id}/content HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    };
    let whole = read_all(server.send(&request("a")).await).await;
    assert!(whole.ends_with("\r\n0\r\n\r\n"), "{whole}");
    let broken = read_all(server.send(&request("broken")).await).await;
    assert!(broken.contains("\"tail\":None") && !broken.contains("\r\n0\r\n"), "{broken}");
    server.end().await;
}

#[tokio::test]
async fn a_connection_too_many_is_told_so_and_the_next_one_is_served_again() {
    let server = Running::start();
    let mut open = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        // An answered request proves that the connection was admitted.
        let mut stream = server.send("GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let mut start = [0; 12];
        timeout(DEADLINE, stream.read_exact(&mut start)).await.unwrap().unwrap();
        assert_eq!(&start, b"HTTP/1.1 200");
        open.push(stream);
    }
    let request = "GET /v1/status HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let refused = read_all(server.send(request).await).await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    assert!(refused.contains("too many connections"), "{refused}");
    open.clear();
    let deadline = Instant::now() + DEADLINE;
    while !read_all(server.send(request).await).await.starts_with("HTTP/1.1 200") {
        assert!(Instant::now() < deadline, "the closed connections still count");
    }
    server.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_finish_its_head_loses_the_connection() {
    let server = Running::start();
    let began = Instant::now();
    let told = read_all(server.send("GET /v1/sta").await).await;
    assert!(!told.contains("200"), "{told}");
    assert_eq!(began.elapsed().as_secs(), HEADER_TIMEOUT.as_secs());
    server.end().await;
}

#[tokio::test(start_paused = true)]
async fn t66_a_shutdown_waits_for_answers_but_not_for_ever() {
    let server = Running::start();
    let hanging = server.send("POST /v1/sessions/hangs/stop HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let idle = server.send("GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let path = server.directory.path().join("s");
    let began = Instant::now();
    drop(server.connect().await);
    let mut server = server;
    drop(server.stop.take());
    timeout(DEADLINE, &mut server.task).await.unwrap().unwrap().unwrap();
    assert!(began.elapsed() <= SHUTDOWN_TIMEOUT + Duration::from_secs(1));
    assert_eq!(UnixStream::connect(&path).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert!(read_all(hanging).await.is_empty());
    drop(idle);
}

#[tokio::test]
async fn a_hint_reaches_the_mirror_also_when_its_client_is_gone() {
    let (mirror, mut queue) = Mirror::new();
    let mut service = ControlService::new(mirror);
    let request = Request::post("/v1/hint?session=a").body(Empty::<Bytes>::new()).unwrap();
    // As hyper does with a request whose client it finds gone.
    drop(service.call(request));
    let command = queue.try_recv();
    assert!(matches!(command, Ok(Command::Hint { hint, .. }) if hint.sessions == ["a"]));
}
