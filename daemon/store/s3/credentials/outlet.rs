//! Questions to endpoints that hand out keys: where they are sent, what may be asked in plain text, and what became of one.
//!
//! Knows addresses and answers; refuses to know what keys are. What an error tells of an answer never has a secret in it.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri};
use reqsign_core::{Context, Error, ErrorKind, HttpSend};
use serde_json::Value;

use super::CredentialsError;

/// Largest answer. Keys have a few thousand bytes.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// What is shown of a message that an endpoint sent.
const MESSAGE_CHARS_MAX: usize = 300;

/// Headers of a request that are secrets.
const SECRET_HEADERS: &[&str] = &[
    "authorization",
    "x-amz-security-token",
    "x-amz-sso_bearer_token",
    "x-aws-ec2-metadata-token",
];

/// Addresses where containers get their keys: of ECS, and of EKS in both families.
const CONTAINER_HOSTS: &[&str] = &["169.254.170.2", "169.254.170.23", "[fd00:ec2::23]"];

/// Why a request had no answer.
pub(crate) type WireError = Box<dyn std::error::Error + Send + Sync>;

/// What sends a request: the transport of the store, seen from here.
#[async_trait]
pub(crate) trait Wire: Send + Sync + std::fmt::Debug {
    /// Sends one small request and reads its whole answer. Does not follow redirects.
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, WireError>;
}

/// Where plain text is good enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plain {
    /// On this machine.
    Loopback,
    /// On this machine and at the fixed addresses for containers.
    Container,
    /// Anywhere: a person said so, or there is nothing else.
    Anywhere,
}

/// The address of an endpoint: scheme, authority, and a path that all its paths begin with.
#[derive(Debug, Clone)]
pub(super) struct Base {
    scheme: Scheme,
    authority: Authority,
    path: String,
}

impl Base {
    /// An address that `setting` names.
    pub(super) fn parse(setting: &str, url: &str, plain: Plain) -> Result<Base, CredentialsError> {
        let bad =
            |flaw: &str| CredentialsError::Endpoint { setting: setting.into(), flaw: flaw.into() };
        let uri: Uri = url.parse().map_err(|_| bad("is no URL"))?;
        let uri = uri.into_parts();
        let (Some(scheme), Some(authority)) = (uri.scheme, uri.authority) else {
            return Err(bad("is no URL of the form https://host"));
        };
        if authority.as_str().contains('@') {
            return Err(bad("has credentials in its URL: remove them"));
        }
        match scheme.as_str() {
            "https" => {}
            "http" if may_be_plain(authority.host(), plain) => {}
            "http" => {
                return Err(bad(
                    "is plain http to another machine, which would show credentials: use https",
                ));
            }
            _ => return Err(bad("is neither https nor http")),
        }
        let path = uri.path_and_query.as_ref().map_or("", PathAndQuery::as_str);
        Ok(Base { scheme, authority, path: path.trim_end_matches('/').to_owned() })
    }

    /// The same path and query at this address.
    pub(super) fn with_path_of(&self, uri: &Uri) -> Result<Uri, http::Error> {
        self.join(uri.path_and_query().map_or("/", PathAndQuery::as_str))
    }

    /// A path, with its query, at this address.
    pub(super) fn join(&self, path: &str) -> Result<Uri, http::Error> {
        let path = format!("{}{path}", self.path);
        Uri::builder()
            .scheme(self.scheme.clone())
            .authority(self.authority.clone())
            .path_and_query(path)
            .build()
    }
}

fn may_be_plain(host: &str, plain: Plain) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let loopback = host.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match plain {
        Plain::Anywhere => true,
        Plain::Container => loopback || CONTAINER_HOSTS.contains(&host),
        Plain::Loopback => loopback,
    }
}

/// The way to one party, for one question or a few that belong together.
#[derive(Debug, Clone)]
pub(super) struct Outlet(Arc<OutletShared>);

#[derive(Debug)]
struct OutletShared {
    wire: Arc<dyn Wire>,
    party: &'static str,
    /// Where to ask instead of where the library would.
    instead: Option<Base>,
    timeout: Duration,
    last: Mutex<Last>,
}

/// What became of the last request.
#[derive(Debug, Clone, Default)]
enum Last {
    #[default]
    NotAsked,
    Silent {
        endpoint: String,
        reason: String,
    },
    Answered {
        endpoint: String,
        status: u16,
        answer: String,
    },
}

impl Outlet {
    /// A way to `party`, whose every answer has to come within `timeout`.
    pub(super) fn new(
        wire: &Arc<dyn Wire>,
        party: &'static str,
        instead: Option<Base>,
        timeout: Duration,
    ) -> Outlet {
        let (wire, last) = (wire.clone(), Mutex::default());
        Outlet(Arc::new(OutletShared { wire, party, instead, timeout, last }))
    }

    /// What the library asks through. It is given neither files nor variables: what it has to know it is told.
    pub(super) fn context(&self) -> Context {
        Context::new().with_http_send(self.clone())
    }

    /// Sends a request of our own. Only a good answer is one.
    pub(super) async fn ask(&self, request: Request<Bytes>) -> Result<Bytes, CredentialsError> {
        match self.send(request).await {
            Some(response) if response.status().is_success() => Ok(response.into_body()),
            _ => Err(self.refusal().unwrap_or_else(|| self.malformed())),
        }
    }

    /// What went wrong when the library says that something did. Its own words may repeat an answer and are not kept.
    pub(super) fn failure(&self, error: &Error) -> CredentialsError {
        self.refusal().unwrap_or_else(|| match (self.last(), error.kind()) {
            // Nothing came from outside yet: these are fixed words about what it was given.
            (Last::NotAsked, _) => CredentialsError::Endpoint {
                setting: self.0.party.into(),
                flaw: format!("cannot be asked: {error}"),
            },
            (_, ErrorKind::CredentialInvalid) => {
                CredentialsError::Stale { origin: self.0.party.into() }
            }
            _ => self.malformed(),
        })
    }

    /// The last answer is nothing that can be used.
    pub(super) fn malformed(&self) -> CredentialsError {
        let endpoint = match self.last() {
            Last::NotAsked => String::new(),
            Last::Silent { endpoint, .. } | Last::Answered { endpoint, .. } => endpoint,
        };
        CredentialsError::Malformed { party: self.0.party.into(), endpoint }
    }

    fn refusal(&self) -> Option<CredentialsError> {
        let party = self.0.party.to_owned();
        match self.last() {
            Last::Silent { endpoint, reason } => {
                Some(CredentialsError::Away { party, endpoint, reason })
            }
            Last::Answered { endpoint, status, answer } if !(200..300).contains(&status) => {
                Some(CredentialsError::Refused { party, endpoint, status, answer })
            }
            _ => None,
        }
    }

    fn last(&self) -> Last {
        self.0.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn send(&self, mut request: Request<Bytes>) -> Option<Response<Bytes>> {
        let shared = &self.0;
        if let Some(uri) = shared.instead.as_ref().map(|base| base.with_path_of(request.uri())) {
            *request.uri_mut() = uri.ok()?;
        }
        let endpoint = shown(request.uri());
        let secrets = secrets(&request);
        let response = tokio::time::timeout(shared.timeout, shared.wire.send(request)).await;
        let silent = |reason: String| Last::Silent { endpoint: endpoint.clone(), reason };
        let (last, response) = match response {
            Ok(Ok(response)) if response.body().len() > ANSWER_BYTES_MAX => {
                (silent("its answer is too long".into()), None)
            }
            Ok(Ok(response)) => {
                let (status, answer) =
                    (response.status().as_u16(), answer(response.body(), &secrets));
                (Last::Answered { endpoint: endpoint.clone(), status, answer }, Some(response))
            }
            Ok(Err(error)) => (silent(presentable(&chain(&*error), &secrets)), None),
            Err(_) => (silent(format!("nothing came within {} s", shared.timeout.as_secs())), None),
        };
        *shared.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
        response
    }
}

impl HttpSend for Outlet {
    async fn http_send(&self, request: Request<Bytes>) -> reqsign_core::Result<Response<Bytes>> {
        self.send(request).await.ok_or_else(|| Error::unexpected("no answer"))
    }
}

/// The address without its query, which may be long.
fn shown(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", Authority::as_str);
    format!("{}://{authority}{}", uri.scheme_str().unwrap_or_default(), uri.path())
}

/// What a request carries that no message may repeat.
fn secrets(request: &Request<Bytes>) -> Vec<String> {
    let headers =
        SECRET_HEADERS.iter().filter_map(|name| request.headers().get(*name)?.to_str().ok());
    let mut secrets: Vec<String> = headers.map(str::to_owned).collect();
    let body = String::from_utf8_lossy(request.body());
    let form = body.split('&').find_map(|pair| pair.strip_prefix("WebIdentityToken="));
    secrets.extend(form.map(str::to_owned));
    if let Ok(Value::Object(fields)) = serde_json::from_str(&body) {
        let texts = fields.into_values().filter_map(|value| value.as_str().map(str::to_owned));
        secrets.extend(texts);
    }
    secrets.retain(|secret| !secret.is_empty());
    secrets
}

/// Code and message of an answer that refuses: XML of STS, JSON of all others.
fn answer(body: &[u8], secrets: &[String]) -> String {
    let body = String::from_utf8_lossy(body);
    let json: Option<Value> = serde_json::from_str(&body).ok();
    let field = |names: [&str; 3], tag: &str| {
        let in_json =
            json.as_ref().and_then(|json| names.iter().find_map(|name| json.get(name)?.as_str()));
        in_json.or_else(|| {
            body.split_once(&format!("<{tag}>"))?.1.split_once("</").map(|(text, _)| text)
        })
    };
    let code = field(["Code", "code", "error"], "Code");
    let message = field(["Message", "message", "error_description"], "Message");
    let told: Vec<String> =
        [code, message].into_iter().flatten().map(|text| presentable(text, secrets)).collect();
    told.join(": ")
}

/// A text from outside as part of a message.
fn presentable(text: &str, secrets: &[String]) -> String {
    if secrets.iter().any(|secret| text.contains(secret.as_str())) {
        return "(its message repeats a secret)".into();
    }
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(MESSAGE_CHARS_MAX).collect::<String>().trim().to_owned()
}

fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}
