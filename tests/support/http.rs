//! HTTP/1.1 for the tests: one runtime that all of them share, one exchange a connection.
//!
//! Knows requests and answers; nothing of S3.

use std::collections::BTreeSet;
use std::error::Error;
use std::net::SocketAddr;
use std::sync::{LazyLock, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};

/// What can go wrong with an exchange; a test only shows it.
pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// Ports that tests listen on: below those that systems give to outgoing connections, so that a port that is left for a while
/// (a store that is away) is still free afterwards.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// The runtime of all proxies and clients. Tests are plain threads and wait for it.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
    });
    &RUNTIME
}

/// A port of 127.0.0.1 on which nobody listens now, and that no other test was given: whoever gets it takes it later.
pub(crate) fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().expect("nobody panics with this lock");
    let mut free = |port: &u16| {
        given.insert(*port) && std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()
    };
    std::iter::repeat_with(|| fastrand::u16(PORTS)).take(1000).find(&mut free).expect("a free port")
}

/// Sends a request over a connection of its own and reads the whole answer.
pub(crate) async fn exchange(
    to: SocketAddr,
    request: Request<Full<Bytes>>,
) -> Result<Response<Bytes>, Failure> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok::<_, Failure>(Response::from_parts(head, body.collect().await?.to_bytes()))
    };
    tokio::pin!(answer);
    // The connection is driven here and not by a task, so that an exchange that is given up takes its connection along.
    tokio::select! {
        answer = &mut answer => answer,
        ended = connection => { ended?; answer.await }
    }
}
