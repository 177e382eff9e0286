//! The client against sockets that answer as a daemon does, or should not.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tracecraft::api::{Flushed, exit, route};

use super::*;

/// A socket that reads one request and answers with these bytes, then closes.
struct Answering {
    directory: tempfile::TempDir,
    _task: JoinSet<()>,
}

fn answering(answer: impl Into<Vec<u8>>) -> Answering {
    let answer = answer.into();
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("s")).unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(&answer).await.unwrap();
    });
    Answering { directory, _task: task }
}

fn http(status: &str, protocol: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{protocol}content-length: {}\r\n\r\n{body}", body.len())
}

async fn flush(server: &Answering) -> Result<Flushed, Failure> {
    Client::new(server.directory.path().join("s")).post(route::FLUSH, QUICK_TIMEOUT).await
}

const OURS: &str = "tracecraft-protocol: 1\r\n";

#[tokio::test]
async fn an_answer_is_read() {
    let server = answering(http("200 OK", OURS, r#"{"sessions":1,"parts":2,"bytes":3,"new":4}"#));
    assert_eq!(
        flush(&server).await.unwrap(),
        Flushed { sessions: 1, parts: 2, bytes: 3, unfinished_bytes: 0 }
    );
}

#[tokio::test]
async fn no_daemon_is_exit_3_whatever_is_left_of_it() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("s");
    let exit_at = async |path: PathBuf| {
        let result: Result<Flushed, _> = Client::new(path).get(route::STATUS, QUICK_TIMEOUT).await;
        result.unwrap_err().exit()
    };
    assert_eq!(exit_at(path.clone()).await, exit::NOT_RUNNING);
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert_eq!(exit_at(path.clone()).await, exit::NOT_RUNNING);
    assert_eq!(exit_at(path.join("below")).await, exit::NOT_RUNNING);
    assert_eq!(exit_at(scratch.path().join("x".repeat(200))).await, exit::USAGE);
}

#[tokio::test]
async fn another_protocol_is_exit_5_and_says_which_side_is_old() {
    for (header, words) in [
        ("tracecraft-protocol: 99\r\n", "the daemon is newer"),
        ("tracecraft-protocol: 0\r\n", "the daemon is older"),
        ("", "not tracecraftd"),
    ] {
        for status in ["200 OK", "400 Bad Request"] {
            let failure = flush(&answering(http(status, header, "{}"))).await.unwrap_err();
            assert_eq!(failure.exit(), exit::PROTOCOL);
            assert!(failure.text().contains(words), "{}", failure.text());
        }
    }
    let chatter = flush(&answering("220 mail ready\r\n")).await.unwrap_err();
    assert_eq!(chatter.exit(), exit::PROTOCOL);
    let strange = answering(http("200 OK", OURS, r#"{"sessions":"many"}"#));
    assert_eq!(flush(&strange).await.unwrap_err().exit(), exit::PROTOCOL);
}

#[tokio::test]
async fn a_daemon_that_does_not_know_what_is_asked_is_exit_5_and_says_which_side_is_old() {
    let own = env!("CARGO_PKG_VERSION");
    for (version, words, hint) in [
        ("", "the daemon is older", "`tracecraftctl service restart`"),
        ("0.0.9", "the daemon (0.0.9) is older", "`tracecraftctl service restart`"),
        ("99.0.0", "the daemon (99.0.0) is newer", "update tracecraftctl"),
    ] {
        let header = if version.is_empty() {
            OURS.to_owned()
        } else {
            format!("{OURS}tracecraft-version: {version}\r\n")
        };
        for (status, code) in [
            ("404 Not Found", "no_such_route"),
            ("405 Method Not Allowed", "method_not_allowed"),
            ("400 Bad Request", "bad_request"),
        ] {
            let body = format!(r#"{{"code":"{code}","message":"what is /x"}}"#);
            let failure = flush(&answering(http(status, &header, &body))).await.unwrap_err();
            assert_eq!(failure.exit(), exit::PROTOCOL);
            let told = failure.text();
            assert!(told.contains(words) && told.contains("what is /x"), "{told}");
            assert!(told.contains(&format!("\ntry: {hint}")), "{told}");
            assert!(failure.body_for(true).is_some(), "a program reads the daemon's words");
        }
        let body = r#"{"code":"no_such_session","message":"no session x"}"#;
        let failure = flush(&answering(http("404 Not Found", &header, body))).await.unwrap_err();
        assert_eq!(failure.exit(), exit::NO_SUCH_SESSION, "a refusal that any version gives");
    }
    let header = format!("{OURS}tracecraft-version: {own}\r\n");
    let body = r#"{"code":"bad_request","message":"no"}"#;
    let failure = flush(&answering(http("400 Bad Request", &header, body))).await.unwrap_err();
    assert_eq!(failure.exit(), exit::FAILED, "of one version: a restart would not help");
}

#[tokio::test]
async fn a_refusal_is_told_in_the_daemons_words() {
    let body = r#"{"code":"no_such_session","message":"no session x","hint":"look"}"#;
    let failure = flush(&answering(http("404 Not Found", OURS, body))).await.unwrap_err();
    assert_eq!(failure.exit(), exit::NO_SUCH_SESSION);
    assert_eq!(failure.text(), "tracecraftctl: no session x\ntry: look\n");
    let body = r#"{"code":"of_tomorrow","message":"it rains"}"#;
    let failure = flush(&answering(http("418 Teapot", OURS, body))).await.unwrap_err();
    assert_eq!((failure.exit(), failure.text().contains("it rains")), (exit::FAILED, true));
}

#[tokio::test]
async fn a_stream_that_breaks_off_is_an_error_and_not_an_end() {
    let head = format!("HTTP/1.1 200 OK\r\n{OURS}transfer-encoding: chunked\r\n\r\n");
    for (rest, whole) in
        [("3\r\nabc\r\n0\r\n\r\n", true), ("3\r\nabc\r\n", false), ("9\r\nabc", false)]
    {
        let server = answering(format!("{head}{rest}"));
        let client = Client::new(server.directory.path().join("s"));
        let mut stream = client.stream(Method::GET, "/x", QUICK_TIMEOUT).await.unwrap();
        let end = loop {
            match stream.next().await {
                Ok(Some(_)) => {}
                end => break end,
            }
        };
        assert_eq!(end.is_ok(), whole, "{rest:?}");
    }
    let hung_up = flush(&answering("")).await.unwrap_err();
    assert!(hung_up.text().contains("without an answer"), "{}", hung_up.text());
}

#[tokio::test(start_paused = true)]
async fn t65_a_daemon_that_is_there_and_does_not_answer_is_not_waited_for_for_ever() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("s");
    let _listener = UnixListener::bind(&path).unwrap();
    let began = Instant::now();
    let result: Result<Flushed, _> = Client::new(path).get(route::STATUS, STATUS_TIMEOUT).await;
    let failure = result.unwrap_err();
    assert_eq!(failure.exit(), exit::FAILED);
    assert!(failure.text().contains("did not answer within 10 s"), "{}", failure.text());
    assert_eq!(began.elapsed(), STATUS_TIMEOUT);
}

#[tokio::test]
async fn lines_are_put_together_from_pieces() {
    let head = format!("HTTP/1.1 200 OK\r\n{OURS}transfer-encoding: chunked\r\n\r\n");
    let server = answering(format!("{head}2\r\n{{\"\r\n4\r\na\"}}\n\r\n5\r\n\nlast\r\n0\r\n\r\n"));
    let client = Client::new(server.directory.path().join("s"));
    let mut lines = client.stream(Method::GET, "/x", QUICK_TIMEOUT).await.unwrap().lines();
    assert_eq!(lines.next().await.unwrap().unwrap(), b"{\"a\"}");
    assert_eq!(lines.next().await.unwrap().unwrap(), b"");
    assert_eq!(lines.next().await.unwrap(), None);
}
