//! A reverse proxy between the daemon and a real S3 server: counts what is asked, fails by a seeded plan, goes away and comes
//! back, and holds a request until it is told otherwise.
//!
//! Owns the connections of both sides; knows of S3 only what tells one kind of request from another. Paths, bodies and the
//! Host header pass unchanged, because they are signed.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONNECTION, EXPECT, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::http::{Failure, exchange, free_port, runtime};
use super::{POLL, wait_for};

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    PutPart,
    PutManifest,
    /// Neither part nor manifest: a probe, say.
    PutOther,
    GetPart,
    GetManifest,
    GetOther,
    List,
    Head,
    Delete,
    /// Begin, piece, end or abort of an upload in pieces.
    Multipart,
    Other,
}

impl Kind {
    fn of(method: &Method, path: &str, query: &str) -> Kind {
        let name = path.rsplit('/').next().unwrap_or_default();
        let asks = |what: &str| query.split('&').any(|pair| pair.split('=').next() == Some(what));
        let bucket_only = path.trim_matches('/').split('/').count() < 2;
        match *method {
            _ if asks("uploads") || asks("uploadId") => Kind::Multipart,
            Method::POST if asks("delete") => Kind::Delete,
            Method::GET if bucket_only || asks("list-type") => Kind::List,
            Method::DELETE => Kind::Delete,
            Method::HEAD => Kind::Head,
            Method::PUT if name == "meta.json" => Kind::PutManifest,
            Method::PUT if name.starts_with("part-") => Kind::PutPart,
            Method::PUT => Kind::PutOther,
            Method::GET if name == "meta.json" => Kind::GetManifest,
            Method::GET if name.starts_with("part-") => Kind::GetPart,
            Method::GET => Kind::GetOther,
            _ => Kind::Other,
        }
    }

    /// Whether it changes the bucket.
    pub(crate) fn changes(self) -> bool {
        use Kind::{Delete, Multipart, Other, PutManifest, PutOther, PutPart};
        matches!(self, PutPart | PutManifest | PutOther | Delete | Multipart | Other)
    }
}

/// How often what goes wrong; the sum of the first three is the share of requests that fail.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Plan {
    /// Answered with 503 SlowDown, not forwarded.
    pub(crate) slow_down: f64,
    /// The connection is cut, nothing is forwarded.
    pub(crate) cut_before: f64,
    /// Forwarded, then the connection is cut: no answer, or for a download in one half of the cases half of it.
    pub(crate) lost_after: f64,
    /// Held up before it is forwarded, for a random while up to `delay_max`.
    pub(crate) delayed: f64,
    pub(crate) delay_max: Duration,
}

impl Plan {
    /// A third of all requests fails, in three ways.
    pub(crate) fn a_third() -> Plan {
        Plan::share(1.0 / 3.0)
    }

    /// A share of all requests fails, in three ways.
    pub(crate) fn share(of_all: f64) -> Plan {
        let (share, delay_max) = (of_all / 3.0, Duration::from_millis(80));
        Plan { slow_down: share, cut_before: share, lost_after: share, delayed: 0.1, delay_max }
    }
}

/// What happened to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    Passed,
    SlowedDown,
    CutBefore,
    LostAfter,
    HalfAnswered,
}

/// A request that came in.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) kind: Kind,
    pub(crate) path: String,
    pub(crate) fate: Fate,
    pub(crate) headers: HeaderMap,
}

/// Where a request is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The server has not seen it.
    Before,
    /// The server has done it, the client has no answer.
    After,
}

#[derive(Debug)]
struct Gate {
    /// Requests that still pass before the one that is held.
    countdown: usize,
    kind: Option<Kind>,
    side: Side,
    state: GateState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GateState {
    Waiting,
    Reached,
    /// It goes on as if nothing had been.
    Opened,
}

/// What the proxy says to everything in place of the server.
#[derive(Debug, Clone)]
pub(crate) struct Canned {
    pub(crate) status: u16,
    /// The code in the body, as S3 names errors; none gives an empty body.
    pub(crate) code: &'static str,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
}

#[derive(Debug)]
struct Inner {
    rng: fastrand::Rng,
    plan: Plan,
    canned: Option<Canned>,
    /// Kinds of requests for which its users have no right.
    denied: Vec<Kind>,
    /// Whose buckets it is a gateway to.
    user: Option<&'static str>,
    seen: Vec<Seen>,
    in_flight: usize,
    gate: Option<Gate>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    inner: Mutex<Inner>,
}

/// Whether the proxy is there, and whom to tell when it is so.
type Switch = (bool, oneshot::Sender<()>);

/// A running proxy. Dropping it closes its connections.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    shared: Arc<Shared>,
    switch: mpsc::UnboundedSender<Switch>,
}

impl Proxy {
    /// A proxy before the server at `upstream` that lets everything pass.
    pub(crate) fn start(upstream: SocketAddr, seed: u64) -> Proxy {
        let rng = fastrand::Rng::with_seed(seed);
        let inner = Inner {
            rng,
            plan: Plan::default(),
            canned: None,
            denied: Vec::new(),
            user: None,
            seen: Vec::new(),
            in_flight: 0,
            gate: None,
        };
        let shared = Arc::new(Shared { upstream, inner: Mutex::new(inner) });
        let (switch, switched) = mpsc::unbounded_channel();
        let port = free_port();
        runtime().spawn(listen(port, Arc::clone(&shared), switched));
        let proxy = Proxy { port, shared, switch };
        proxy.there(true);
        proxy
    }

    pub(crate) fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Everything from now on goes wrong by this plan.
    pub(crate) fn fail(&self, plan: Plan) {
        self.shared.inner().plan = plan;
    }

    /// From now on says the same to every request, and asks the server nothing; `None`: the server answers again.
    pub(crate) fn say(&self, canned: Option<Canned>) {
        self.shared.inner().canned = canned;
    }

    /// From now on refuses these kinds of requests, as a policy does.
    pub(crate) fn deny(&self, kinds: &[Kind]) {
        self.shared.inner().denied = kinds.to_vec();
    }

    /// From now on behaves as the gateway of Hugging Face does to one of its users: buckets are below the user's name, and whoever
    /// reads a part is sent elsewhere, without a signature.
    pub(crate) fn be_the_gateway_of(&self, user: &'static str) {
        self.shared.inner().user = Some(user);
    }

    /// Cuts all connections and refuses new ones (`false`), or is there again.
    pub(crate) fn there(&self, there: bool) {
        let (done, is_done) = oneshot::channel();
        self.switch.send((there, done)).expect("the proxy listens until it is dropped");
        runtime().block_on(is_done).expect("the proxy does as it is told");
    }

    /// All requests so far, in the order in which they came.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.inner().seen.clone()
    }

    /// Number of requests so far.
    pub(crate) fn count(&self) -> usize {
        self.shared.inner().seen.len()
    }

    /// Forgets what was seen.
    pub(crate) fn forget(&self) {
        self.shared.inner().seen.clear();
    }

    /// Number of requests so far, by kind.
    pub(crate) fn by_kind(&self) -> BTreeMap<Kind, usize> {
        counted(self.shared.inner().seen.iter().map(|seen| seen.kind))
    }

    /// Number of requests so far, by what happened to them.
    pub(crate) fn by_fate(&self) -> BTreeMap<Fate, usize> {
        counted(self.shared.inner().seen.iter().map(|seen| seen.fate))
    }

    /// Waits until nothing is under way: what a client asked for before it died may still be done.
    pub(crate) fn settle(&self) {
        wait_for("requests under way to end", || {
            (self.shared.inner().in_flight == 0).then_some(())
        });
    }

    /// Holds the request number `number` (from 1) of those that come from now on, of one kind or of any.
    pub(crate) fn hold(&self, number: usize, kind: Option<Kind>, side: Side) {
        let countdown = number.checked_sub(1).expect("requests are counted from 1");
        let state = GateState::Waiting;
        self.shared.inner().gate = Some(Gate { countdown, kind, side, state });
    }

    /// Whether the request that is to be held is there.
    pub(crate) fn holds(&self) -> bool {
        let inner = self.shared.inner();
        inner.gate.as_ref().is_some_and(|gate| gate.state == GateState::Reached)
    }

    /// Lets the held request go on; if it has not come yet, nothing will be held.
    pub(crate) fn release(&self) {
        if let Some(gate) = &mut self.shared.inner().gate {
            gate.state = GateState::Opened;
        }
    }
}

fn counted<T: Ord>(all: impl Iterator<Item = T>) -> BTreeMap<T, usize> {
    let mut counts = BTreeMap::new();
    all.for_each(|one| *counts.entry(one).or_default() += 1);
    counts
}

/// Listens while it is told to be there; ends with the proxy.
async fn listen(port: u16, shared: Arc<Shared>, mut switched: mpsc::UnboundedReceiver<Switch>) {
    let mut listener: Option<TcpListener> = None;
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            told = switched.recv() => {
                let Some((there, done)) = told else { return };
                connections.shutdown().await;
                listener = None;
                if there {
                    let bound = TcpListener::bind(("127.0.0.1", port)).await;
                    listener = Some(bound.expect("the proxy's port is free"));
                }
                let _ = done.send(());
            }
            stream = accepted => {
                let Ok((stream, _)) = stream else { continue };
                let _ = stream.set_nodelay(true);
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    let answer = service_fn(move |request| answer(Arc::clone(&shared), request));
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
                });
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// The connection is to be cut without an answer.
#[derive(Debug, thiserror::Error)]
#[error("cut")]
struct Cut;

type Answer = http_body_util::combinators::BoxBody<Bytes, Cut>;

/// Counts a request as under way until it is dropped.
struct UnderWay(Arc<Shared>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.inner().in_flight -= 1;
    }
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics with the proxy's lock")
    }

    /// Notes a request and decides what happens to it: its fate, its delay, whether it is the one to be held.
    fn note(self: &Arc<Self>, head: &Parts) -> (UnderWay, Fate, Duration, Option<Side>, bool) {
        let mut inner = self.inner();
        let kind = Kind::of(&head.method, head.uri.path(), head.uri.query().unwrap_or_default());
        let plan = inner.plan;
        let (dice, coin) = (inner.rng.f64(), inner.rng.bool());
        let download = matches!(kind, Kind::GetPart | Kind::GetManifest | Kind::List);
        let fate = match dice {
            d if d < plan.slow_down => Fate::SlowedDown,
            d if d < plan.slow_down + plan.cut_before => Fate::CutBefore,
            d if d >= plan.slow_down + plan.cut_before + plan.lost_after => Fate::Passed,
            _ if download && coin => Fate::HalfAnswered,
            _ => Fate::LostAfter,
        };
        let delay = match inner.rng.f64() < plan.delayed {
            true => plan.delay_max.mul_f64(inner.rng.f64()),
            false => Duration::ZERO,
        };
        let held = inner.gate.as_mut().and_then(|gate| gate.meets(kind));
        inner.in_flight += 1;
        let (path, headers) = (head.uri.path().to_owned(), head.headers.clone());
        inner.seen.push(Seen { kind, path, fate, headers });
        (UnderWay(Arc::clone(self)), fate, delay, held, coin)
    }

    /// Waits at the gate until it is opened.
    async fn wait_at_the_gate(&self) {
        if let Some(gate) = &mut self.inner().gate {
            gate.state = GateState::Reached;
        }
        while self.inner().gate.as_ref().is_some_and(|gate| gate.state == GateState::Reached) {
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Gate {
    /// Counts a request; `Some` for the one that is to be held.
    fn meets(&mut self, kind: Kind) -> Option<Side> {
        if self.state != GateState::Waiting || self.kind.is_some_and(|only| only != kind) {
            return None;
        }
        let left = self.countdown.checked_sub(1);
        match left {
            Some(left) => self.countdown = left,
            // The next one must not be taken for this one while this one is still on its way to the gate.
            None => self.kind = Some(Kind::Other),
        }
        left.is_none().then_some(self.side)
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Answer>, Cut> {
    let (mut head, body) = request.into_parts();
    let user = shared.inner().user;
    // Behind the gateway lies what needs no signature; this server wants one, whatever it is.
    let elsewhere = user.and_then(|_| below(&head.uri, ELSEWHERE));
    if let Some(uri) = elsewhere.clone() {
        assert!(!head.headers.contains_key("authorization"), "a signature went elsewhere");
        head.uri = uri;
        head.headers.insert("authorization", HeaderValue::from_static(ANY_SIGNATURE));
    } else if let Some(user) = user {
        match below(&head.uri, user) {
            Some(uri) => head.uri = uri,
            None => return Ok(Canned::error(404, "NoSuchBucket").answer()),
        }
    }
    let (under_way, fate, delay, held, coin) = shared.note(&head);
    if fate == Fate::CutBefore && coin {
        return Err(Cut);
    }
    let body = body.collect().await.map_err(|_| Cut)?.to_bytes();
    tokio::time::sleep(delay).await;
    let canned = shared.inner().canned.clone();
    if let Some(canned) = canned {
        return Ok(canned.answer());
    }
    let kind = Kind::of(&head.method, head.uri.path(), head.uri.query().unwrap_or_default());
    if shared.inner().denied.contains(&kind) {
        return Ok(Canned::error(403, "AccessDenied").answer());
    }
    if user.is_some() && elsewhere.is_none() && kind == Kind::GetPart {
        let location = format!("/{ELSEWHERE}{}", head.uri);
        let answer = Response::builder().status(302).header("location", location);
        let nothing = Full::new(Bytes::new()).map_err(never).boxed();
        return Ok(answer.body(nothing).expect("a plain answer"));
    }
    match fate {
        Fate::SlowedDown => return Ok(Canned::slow_down().answer()),
        Fate::CutBefore => return Err(Cut),
        Fate::Passed | Fate::LostAfter | Fate::HalfAnswered => {}
    }
    if held == Some(Side::Before) {
        shared.wait_at_the_gate().await;
    }
    // A task of its own: what the server has begun goes on when the client is gone.
    let forwarded = tokio::spawn(forward(shared.upstream, head, body, under_way));
    let answer = forwarded.await.map_err(|_| Cut)?.map_err(|_| Cut)?;
    if held == Some(Side::After) {
        shared.wait_at_the_gate().await;
    }
    match fate {
        Fate::LostAfter => Err(Cut),
        Fate::HalfAnswered => Ok(half(answer)),
        _ => Ok(answer.map(|body| Full::new(body).map_err(never).boxed())),
    }
}

async fn forward(
    to: SocketAddr,
    mut head: Parts,
    body: Bytes,
    _under_way: UnderWay,
) -> Result<Response<Bytes>, Failure> {
    remove_hop_by_hop(&mut head.headers);
    let mut answer = exchange(to, Request::from_parts(head, Full::new(body))).await?;
    remove_hop_by_hop(answer.headers_mut());
    Ok(answer)
}

/// Headers that are about one connection and not about the message.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let keep_alive = HeaderName::from_static("keep-alive");
    for name in [CONNECTION, TRANSFER_ENCODING, EXPECT, keep_alive] {
        headers.remove(name);
    }
}

/// Where the gateway sends those who read.
const ELSEWHERE: &str = "elsewhere";

/// A signature that says nothing.
const ANY_SIGNATURE: &str = "AWS4-HMAC-SHA256 Credential=any/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";

/// What is asked for below a user's name.
fn below(uri: &Uri, user: &str) -> Option<Uri> {
    let asked = uri.path_and_query()?.as_str().strip_prefix('/')?.strip_prefix(user)?;
    asked.starts_with('/').then(|| asked.parse().ok())?
}

impl Canned {
    fn error(status: u16, code: &'static str) -> Canned {
        Canned { status, code, headers: Vec::new() }
    }

    fn slow_down() -> Canned {
        Canned::error(503, "SlowDown")
    }

    fn answer(&self) -> Response<Answer> {
        let mut answer = Response::builder().status(self.status);
        for (name, value) in &self.headers {
            answer = answer.header(*name, *value);
        }
        let xml = match self.code {
            "" => String::new(),
            code => format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code>\
                 <Message>As the test wants it.</Message></Error>"
            ),
        };
        let body = Full::new(Bytes::from(xml)).map_err(never).boxed();
        answer.header("content-type", "application/xml").body(body).expect("a plain answer")
    }
}

/// The first half of an answer that promises to be whole.
fn half(answer: Response<Bytes>) -> Response<Answer> {
    let (mut head, body) = answer.into_parts();
    head.headers.insert("content-length", body.len().into());
    let first = body.slice(..body.len() / 2);
    let frames = [Ok(Frame::data(first)), Err(Cut)];
    Response::from_parts(head, BodyExt::boxed(StreamBody::new(stream::iter(frames))))
}

fn never(never: Infallible) -> Cut {
    match never {}
}
