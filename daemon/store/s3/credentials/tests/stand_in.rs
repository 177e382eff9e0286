//! A world for sources of keys: an endpoint on this machine that says what a test wants, a home, an environment, a clock.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::durable::{Blocking, Disk, OsDisk};
use crate::store::s3::credentials::{
    Ambient, Cache, Clock, CredentialsError, Environment, Keys, Source, Tools, Wire, WireError,
};

pub(super) const ID: &str = "AKIAIOSFODNN7EXAMPLE";
pub(super) const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";

type Answer = (u16, String);
type Script = dyn Fn(&Request<Bytes>, usize) -> Answer + Send + Sync;

/// An HTTP server on 127.0.0.1 that ends with its value.
pub(super) struct StandIn {
    pub(super) address: SocketAddr,
    asked: Arc<Mutex<Vec<Request<Bytes>>>>,
    task: JoinHandle<()>,
}

impl StandIn {
    /// `script` gets each request and how many came before it.
    pub(super) async fn new(
        script: impl Fn(&Request<Bytes>, usize) -> Answer + Send + Sync + 'static,
    ) -> StandIn {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, script): (_, Arc<Script>) = (asked.clone(), Arc::new(script));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (log, script) = (log.clone(), script.clone());
                let service = hyper::service::service_fn(move |request| {
                    let (log, script) = (log.clone(), script.clone());
                    async move { Ok::<_, Infallible>(answer(request, &log, &*script).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                // One question a connection: nobody waits for this one meanwhile.
                let _ = connection.await;
            }
        });
        StandIn { address, asked, task }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All requests until now.
    pub(super) fn asked(&self) -> Vec<Request<Bytes>> {
        self.asked.lock().unwrap().clone()
    }

    /// How many requests had this path.
    pub(super) fn count(&self, path: &str) -> usize {
        self.asked().iter().filter(|request| request.uri().path() == path).count()
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(
    request: Request<hyper::body::Incoming>,
    log: &Mutex<Vec<Request<Bytes>>>,
    script: &Script,
) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let request = Request::from_parts(parts, body.collect().await.unwrap().to_bytes());
    let before = {
        let mut log = log.lock().unwrap();
        log.push(request.clone());
        log.len() - 1
    };
    let (status, body) = script(&request, before);
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

/// Sends requests as the store's transport does; or all of them to one address, whatever their host.
#[derive(Debug, Default)]
pub(super) struct PlainWire {
    pub(super) reroute: Option<SocketAddr>,
}

#[async_trait]
impl Wire for PlainWire {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, WireError> {
        let (mut parts, body) = request.into_parts();
        let authority = parts.uri.authority().expect("absolute").clone();
        if self.reroute.is_none() && parts.uri.scheme_str() != Some("http") {
            return Err("this test has no TLS".into());
        }
        let stream = match self.reroute {
            Some(address) => TcpStream::connect(address).await?,
            None => TcpStream::connect(authority.as_str()).await?,
        };
        parts.headers.entry("host").or_insert(authority.as_str().parse()?);
        parts.uri = Uri::from(parts.uri.path_and_query().expect("a path").clone());
        let request = Request::from_parts(parts, Full::<Bytes>::from(body));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // The sender goes with the exchange, and the connection with it.
        let exchange = async move {
            let (parts, body) = sender.send_request(request).await?.into_parts();
            Ok::<_, WireError>(Response::from_parts(parts, body.collect().await?.to_bytes()))
        };
        tokio::join!(exchange, connection).0
    }
}

/// A clock that a test moves.
#[derive(Debug)]
pub(super) struct TestClock(Mutex<Timestamp>);

impl TestClock {
    pub(super) fn forward(&self, minutes: i64) {
        *self.0.lock().unwrap() += SignedDuration::from_mins(minutes);
    }
}

impl Default for TestClock {
    /// Now: the library looks at the time of the machine, too.
    fn default() -> TestClock {
        TestClock(Mutex::new(Timestamp::now()))
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
}

/// Everything that a source of keys sees.
pub(super) struct World {
    pub(super) home: tempfile::TempDir,
    pub(super) clock: Arc<TestClock>,
    pub(super) allow_http: bool,
    pub(super) reroute: Option<SocketAddr>,
    vars: Vec<(String, String)>,
    profile: Option<String>,
}

impl World {
    /// No keys anywhere, and no machine that may have any.
    pub(super) fn new() -> World {
        let world = World {
            home: tempfile::tempdir().unwrap(),
            clock: Arc::default(),
            allow_http: false,
            reroute: None,
            vars: Vec::new(),
            profile: None,
        };
        world.var("AWS_EC2_METADATA_DISABLED", "true")
    }

    pub(super) fn var(mut self, name: &str, value: impl Into<String>) -> World {
        self.vars.retain(|(known, _)| known != name);
        self.vars.push((name.to_owned(), value.into()));
        self
    }

    /// As our own configuration names one.
    pub(super) fn profile(mut self, name: &str) -> World {
        self.profile = Some(name.to_owned());
        self
    }

    /// A file below the home directory.
    pub(super) fn file(self, below: &str, text: &str) -> World {
        self.write(below, text);
        self
    }

    pub(super) fn write(&self, below: &str, text: &str) {
        let path = self.path(below);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        #[expect(
            clippy::disallowed_methods,
            reason = "a file of somebody else's, in a scratch directory"
        )]
        std::fs::write(path, text).unwrap();
    }

    pub(super) fn path(&self, below: &str) -> PathBuf {
        self.home.path().join(below)
    }

    pub(super) fn environment(&self) -> Environment {
        Environment::new(self.vars.clone(), Some(self.home.path()))
    }

    pub(super) fn source(&self) -> Ambient {
        self.source_on(Arc::new(OsDisk::new()))
    }

    pub(super) fn source_on(&self, disk: Arc<dyn Disk>) -> Ambient {
        self.source_with(disk, Arc::new(PlainWire { reroute: self.reroute }))
    }

    pub(super) fn source_with(&self, disk: Arc<dyn Disk>, wire: Arc<dyn Wire>) -> Ambient {
        let tools = Tools {
            wire,
            disk,
            blocking: Blocking::Inline,
            clock: self.clock.clone(),
            allow_http: self.allow_http,
        };
        Ambient::new(Arc::new(self.environment()), self.profile.clone(), tools)
    }

    pub(super) fn cache(&self) -> Cache {
        Cache::new(Arc::new(self.source()), self.clock.clone())
    }

    /// The keys that are found, once.
    pub(super) async fn keys(&self) -> Result<Keys, CredentialsError> {
        self.source().keys().await
    }

    /// Why none are found. Whatever it says, it says no secret.
    pub(super) async fn complaint(&self) -> String {
        let error = self.keys().await.unwrap_err();
        let told = format!("{error} {error:?}");
        assert!(!told.contains(SECRET) && !told.contains("hush"), "{told}");
        error.to_string()
    }
}

/// A time from the clock's now, as endpoints write it.
pub(super) fn later(clock: &TestClock, minutes: i64) -> String {
    format!("{:.0}", clock.now() + SignedDuration::from_mins(minutes))
}

/// What STS answers to one who may: keys with this number.
pub(super) fn sts_answer(action: &str, number: usize, expires: &str) -> Answer {
    let body = format!(
        "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><{action}Result>\
         <AssumedRoleUser><Arn>a</Arn><AssumedRoleId>b</AssumedRoleId></AssumedRoleUser>\
         <Credentials><AccessKeyId>ASIAROLE{number:012}</AccessKeyId>\
         <SecretAccessKey>hush{number}</SecretAccessKey><SessionToken>hush-token-{number}</SessionToken>\
         <Expiration>{expires}</Expiration></Credentials></{action}Result></{action}Response>"
    );
    (200, body)
}

/// What containers, machines and programs answer: keys with this number.
pub(super) fn json_answer(number: usize, expires: &str) -> Answer {
    let body = format!(
        "{{\"Version\":1,\"Code\":\"Success\",\"AccessKeyId\":\"ASIAJSON{number:012}\",\
         \"SecretAccessKey\":\"hush{number}\",\"Token\":\"hush-token-{number}\",\
         \"SessionToken\":\"hush-token-{number}\",\"Expiration\":\"{expires}\"}}"
    );
    (200, body)
}
