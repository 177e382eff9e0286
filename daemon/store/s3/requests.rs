//! From a request of rusoto's to an answer of the store's: signed, sent, redirected where that is allowed, and looked at before
//! rusoto reads it.
//!
//! Knows what every request of S3 has in common; refuses to know which operation it is. Nothing in here outlives a call.

use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, TryStreamExt};
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyStream;
use rusoto_core::request::{
    DispatchSignedRequest, DispatchSignedRequestFuture, HttpDispatchError, HttpResponse,
};
use rusoto_core::signature::{SignedRequest, SignedRequestPayload};
use rusoto_core::{ByteStream, Client, Region, RusotoError};
use rusoto_s3::S3Client;

use super::S3Settings;
use super::errors::{Asked, Failure, refused, root_of};
use super::signer::Signer;
use super::transport::{Download, Transport, read};
use super::upload::{Payload, Upload};
use crate::store::ErrorKind;

/// Redirects that are followed. One leads to where the bytes are, a second one to where those have moved.
const REDIRECTS_MAX: usize = 2;

/// Attempts with fresh credentials. More than one renewal is not going to help.
const SIGNATURES_MAX: usize = 2;

/// What we are called in the logs of a store.
const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("tracecraftd/", env!("CARGO_PKG_VERSION")));

/// What a call asks for beside what rusoto says.
#[derive(Debug, Clone)]
pub(super) struct Call {
    /// The right that it needs, for the message to one who lacks it.
    pub(super) right: &'static str,
    /// What goes up, unless rusoto has made something of its own.
    pub(super) payload: Payload,
    /// A header that is younger than rusoto: a condition.
    pub(super) condition: Option<(HeaderName, HeaderValue)>,
    /// How its answer is read.
    pub(super) answer: Answer,
}

/// How the body of an answer is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It says nothing that matters, but it may hold an error.
    Plain,
    /// A document with this root. Anything else, nothing for instance, would be read as an empty result.
    Document(&'static str),
    /// It is the object, handed on as it comes.
    Stream,
}

impl Call {
    pub(super) fn new(right: &'static str, answer: Answer) -> Call {
        Call { right, payload: Payload::empty(), condition: None, answer }
    }

    pub(super) fn carrying(self, payload: Payload) -> Call {
        Call { payload, ..self }
    }
}

/// What a call learned beside its result.
#[derive(Debug, Default)]
struct Seen {
    failure: Option<Failure>,
    redirected: bool,
}

/// Sends requests to one store.
#[derive(Debug, Clone)]
pub(super) struct Requests {
    inner: Arc<Inner>,
}

struct Inner {
    settings: S3Settings,
    region: Region,
    transport: Transport,
    signer: Signer,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Requests").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Requests {
    pub(super) fn new(settings: S3Settings, transport: Transport, signer: Signer) -> Requests {
        // Always a custom region: rusoto's own table of addresses ends in 2022.
        let region =
            Region::Custom { name: settings.region.clone(), endpoint: settings.endpoint.clone() };
        Requests { inner: Arc::new(Inner { settings, region, transport, signer }) }
    }

    /// Runs one operation of rusoto's; answers its result, and whether a redirect was followed on the way.
    pub(super) async fn call<T, E, F, W>(&self, call: Call, work: W) -> Result<(T, bool), Failure>
    where
        W: FnOnce(S3Client) -> F,
        F: Future<Output = Result<T, RusotoError<E>>>,
    {
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let dispatcher = Dispatcher { inner: self.inner.clone(), call, seen: seen.clone() };
        let client = Client::new_not_signing(dispatcher);
        let s3 = S3Client::new_with_client(client, self.inner.region.clone());
        // rusoto panics on a number that is none. That is one strange answer, and no reason to end the recorder.
        let result = AssertUnwindSafe(work(s3)).catch_unwind().await;
        let seen = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
        match (result, seen.failure) {
            (_, Some(failure)) => Err(failure),
            (Ok(Ok(value)), None) => Ok((value, seen.redirected)),
            // What rusoto says here may repeat the answer, and the answer may hold anything.
            (Ok(Err(_)), None) => Err(Failure::odd("it is not what was asked for")),
            (Err(_), None) => Err(Failure::odd("a number in it is none")),
        }
    }
}

/// Takes one request from rusoto.
struct Dispatcher {
    inner: Arc<Inner>,
    call: Call,
    seen: Arc<Mutex<Seen>>,
}

impl DispatchSignedRequest for Dispatcher {
    fn dispatch(
        &self,
        request: SignedRequest,
        _timeout: Option<Duration>,
    ) -> DispatchSignedRequestFuture {
        let (inner, call, seen) = (self.inner.clone(), self.call.clone(), self.seen.clone());
        Box::pin(async move {
            let (result, redirected) = match inner.exchange(request, call).await {
                Ok((response, redirected)) => (Ok(response), redirected),
                Err(failure) => (Err(failure), false),
            };
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.redirected = redirected;
            result.map_err(|failure| {
                seen.failure = Some(failure);
                HttpDispatchError::new("the reason is kept beside".to_owned())
            })
        })
    }
}

impl Inner {
    /// The failure that an answer tells.
    fn refused(&self, call: &Call, parts: &http::response::Parts, body: &[u8]) -> Failure {
        let keys = self.signer.origin();
        let S3Settings { endpoint, region, bucket, .. } = &self.settings;
        let keys = keys.as_deref().unwrap_or("its source");
        let asked = Asked { endpoint, region, bucket, right: call.right, keys };
        refused(asked, parts.status, &parts.headers, body)
    }

    async fn exchange(
        &self,
        request: SignedRequest,
        mut call: Call,
    ) -> Result<(HttpResponse, bool), Failure> {
        let mut request = request;
        if let Some(SignedRequestPayload::Buffer(bytes)) = request.payload.take() {
            call.payload = Payload::bytes(bytes);
        }
        let template = self.template(&request, &call)?;
        let is_head = template.method() == Method::HEAD;
        let mut signatures = 1;
        loop {
            match self.attempt(&template, &call).await {
                Err(failure)
                    if (failure.is_about_keys() || is_head && failure.is_without_a_word())
                        && signatures < SIGNATURES_MAX =>
                {
                    self.signer.expired();
                    signatures += 1;
                }
                result => return result,
            }
        }
    }

    /// Method, address and headers, before the signature.
    fn template(&self, request: &SignedRequest, call: &Call) -> Result<Request<()>, Failure> {
        let wrong = |error: http::Error| {
            Failure::new(ErrorKind::Invalid, "the request cannot be written").because(error)
        };
        let mut uri =
            format!("{}://{}{}", request.scheme(), request.hostname(), request.canonical_path());
        if !request.canonical_query_string().is_empty() {
            uri.push('?');
            uri.push_str(request.canonical_query_string());
        }
        let mut template = Request::builder().method(request.method()).uri(uri);
        for (name, values) in request.headers() {
            // The connection adds these itself, and some servers take a length of zero on a GET for an attack.
            if ["host", "content-length", "content-type"].contains(&name.as_str()) {
                continue;
            }
            for value in values {
                template = template.header(name.as_str(), value.as_slice());
            }
        }
        if let Some((name, value)) = &call.condition {
            template = template.header(name, value);
        }
        if request.method() == "PUT" || call.payload.length() > 0 {
            template = template.header("content-md5", call.payload.md5());
        }
        template.body(()).map_err(wrong)
    }

    /// Signs, sends, follows redirects.
    async fn attempt(
        &self,
        template: &Request<()>,
        call: &Call,
    ) -> Result<(HttpResponse, bool), Failure> {
        let (mut parts, ()) = template.clone().into_parts();
        self.signer.sign(&mut parts, call.payload.sha256()).await.map_err(|error| {
            let temporary = error.is_temporary();
            let kind = if temporary { ErrorKind::Unavailable } else { ErrorKind::Denied };
            Failure::new(kind, "cannot sign the request").because(error)
        })?;
        // Not signed, because proxies change it.
        parts.headers.insert(header::USER_AGENT, USER_AGENT);
        if parts.method == Method::PUT || parts.method == Method::POST {
            // The connection says nothing about the length of an empty body, and S3 wants to be told.
            parts.headers.insert(header::CONTENT_LENGTH, call.payload.length().into());
        }
        let (method, uri) = (parts.method.clone(), parts.uri.clone());
        let body = call.payload.open().await.map_err(|error| {
            Failure::new(ErrorKind::Unavailable, "cannot read the file to put").because(error)
        })?;
        let answer = self.transport.exchange(Request::from_parts(parts, body)).await?;
        if method != Method::GET || !is_redirect(answer.status()) {
            return self.take(answer, call, false).await;
        }
        let answer = self.follow(uri, answer, call).await?;
        self.take(answer, call, true).await
    }

    /// Asks where the store sends us, without saying who we are.
    async fn follow(
        &self,
        mut uri: Uri,
        mut answer: Response<Download>,
        call: &Call,
    ) -> Result<Response<Download>, Failure> {
        for _ in 0..REDIRECTS_MAX {
            let Some(target) = answer.headers().get(header::LOCATION) else {
                // AWS says in this way that the bucket is elsewhere.
                let (parts, body) = answer.into_parts();
                let body = read(body).await?;
                return Err(self.refused(call, &parts, &body));
            };
            uri = self.target(&uri, target)?;
            let request = Request::get(uri.clone()).header(header::USER_AGENT, USER_AGENT);
            let request = request
                .body(Upload::of(Bytes::new()))
                .map_err(|error| Failure::odd("it sends us to no address").because(error))?;
            answer = self.transport.exchange(request).await?;
            if !is_redirect(answer.status()) {
                return Ok(answer);
            }
        }
        Err(Failure::odd("it sends us on and on"))
    }

    /// The address of a redirect, if it may be followed.
    fn target(&self, from: &Uri, location: &HeaderValue) -> Result<Uri, Failure> {
        let odd = || Failure::odd("it sends us to no address");
        let location = location.to_str().map_err(|_| odd())?;
        let target: Uri = location.parse().map_err(|_| odd())?;
        let mut parts = target.into_parts();
        if parts.authority.is_none() {
            parts.scheme = from.scheme().cloned();
            parts.authority = from.authority().cloned();
        }
        let target = Uri::from_parts(parts).map_err(|_| odd())?;
        let secure = target.scheme_str() == Some("https");
        // A store that is itself on this machine, over plain HTTP, is one under test.
        let local = self.settings.is_loopback() && target.host().is_some_and(super::is_loopback);
        if secure || local {
            Ok(target)
        } else {
            Err(Failure::new(
                ErrorKind::Denied,
                "the store sends us to an address without TLS: not followed",
            ))
        }
    }

    /// Makes of an answer what rusoto reads, or the failure that it tells.
    async fn take(
        &self,
        answer: Response<Download>,
        call: &Call,
        redirected: bool,
    ) -> Result<(HttpResponse, bool), Failure> {
        let (parts, body) = answer.into_parts();
        let body = if parts.status.is_success() && call.answer == Answer::Stream {
            let frames = BodyStream::new(body).map_err(std::io::Error::other);
            ByteStream::new(frames.try_filter_map(|frame| async { Ok(frame.into_data().ok()) }))
        } else {
            let body = read(body).await?;
            if !parts.status.is_success() {
                return Err(self.refused(call, &parts, &body));
            }
            self.check(call, &parts, &body)?;
            ByteStream::from(body.to_vec())
        };
        // Types of an older crate `http`, which only rusoto names.
        let status = parts.status.as_u16().try_into();
        let status = status.map_err(|_| Failure::odd("it has no such status"))?;
        let texts = parts.headers.iter().filter_map(|(name, value)| {
            Some((name.as_str().parse().ok()?, value.to_str().ok()?.to_owned()))
        });
        Ok((HttpResponse { status, body, headers: texts.collect() }, redirected))
    }

    /// Looks at a body that came with a status of success.
    fn check(
        &self,
        call: &Call,
        parts: &http::response::Parts,
        body: &[u8],
    ) -> Result<(), Failure> {
        match (root_of(body), call.answer) {
            (Some(root), _) if root == "Error" => Err(self.refused(call, parts, body)),
            (Some(root), Answer::Document(wanted)) if root == wanted => Ok(()),
            (None, _) => Err(Failure::unreadable()),
            (_, Answer::Document(_)) => Err(Failure::odd("it is another document")),
            (Some(_), _) => Ok(()),
        }
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    )
}
