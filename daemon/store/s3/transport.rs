//! The way to a server and back: connections, TLS, and the limits on both.
//!
//! Knows HTTP; refuses to know S3, signatures and credentials. It never logs what it carries.

use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::time::{Instant, Sleep, sleep_until};
use tower::load_shed::error::Overloaded;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceBuilder, ServiceExt, service_fn};

use super::credentials::{Wire, WireError};
use super::upload::{Pulse, Upload};

/// Requests under way together. Enough for a hundred small sessions a second over a line of a tenth of a second; few enough
/// for stores that take offence at more (R2 is one).
const IN_FLIGHT_MAX: usize = 16;

/// Requests under way and waiting. A recorder sends 32 at a time and reads some; what is more is turned away at once, so that
/// its caller waits and comes back instead of standing in a line that only grows.
const ADMITTED_MAX: usize = 128;

/// From the first packet to the end of the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// No byte moves in either direction for so long: the other side is gone. A whole request has no limit of its own, because
/// 32 MiB over a slow line take as long as they take.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// Idle connections are closed after this. Longer than the usual interval between flushes, shorter than what servers allow.
const IDLE_MAX: Duration = Duration::from_secs(15);

/// Largest answer that is taken into memory at once: a page of a listing with 1,000 of the longest keys, escaped.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// An error of the way, not of the other side.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransportError {
    /// The certificates that were named cannot be used.
    #[error("cannot read the certificates of AWS_CA_BUNDLE")]
    Certificates(#[source] io::Error),
    /// Too many requests wait already.
    #[error("too many requests at a time")]
    Busy,
    /// No connection in time.
    #[error("no connection within {} s", CONNECT_TIMEOUT.as_secs())]
    ConnectTimeout,
    /// Connected, and then nothing moved.
    #[error("no answer: nothing moved for {} s", SILENCE_MAX.as_secs())]
    Silent,
    /// The answer has more than we take.
    #[error("the answer is larger than {} MiB", ANSWER_BYTES_MAX >> 20)]
    TooLarge,
    /// The machine does not trust the server's certificate.
    #[error(
        "the server's certificate is not trusted here: if it is yours, name its authority's file in AWS_CA_BUNDLE"
    )]
    Untrusted(#[source] BoxError),
    /// Refused, reset, cut, or not HTTP.
    #[error("cannot reach the server")]
    Broken(#[source] BoxError),
}

/// Sends requests. Cheap to clone; clones share connections and limits.
#[derive(Clone)]
pub(crate) struct Transport {
    service: BoxCloneSyncService<Request<Upload>, Response<Incoming>, BoxError>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Transport")
    }
}

impl Transport {
    /// A transport that trusts what the machine trusts, or only the certificates in the file `ca_bundle`.
    pub(crate) fn new(ca_bundle: Option<&Path>) -> Result<Transport, TransportError> {
        let mut http = HttpConnector::new();
        // Whether plain HTTP is allowed is decided where the address is known.
        http.enforce_http(false);
        http.set_nodelay(true);
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls(ca_bundle)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let connector = ServiceBuilder::new().timeout(CONNECT_TIMEOUT).service(https);
        let client: Client<_, Upload> = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(IN_FLIGHT_MAX)
            .build(BoxCloneSyncService::new(connector));
        let send = service_fn(move |request: Request<Upload>| {
            let (client, pulse) = (client.clone(), request.body().pulse());
            async move {
                pulse.beat();
                let answer = async { client.request(request).await.map_err(BoxError::from) };
                unless_silent(&pulse, answer).await
            }
        });
        let in_flight = ServiceBuilder::new().concurrency_limit(IN_FLIGHT_MAX).service(send);
        // Shedding looks at the outer limit only: a request that is admitted waits for its turn at the inner one.
        let waiting = service_fn(move |request| in_flight.clone().oneshot(request));
        let admitted =
            ServiceBuilder::new().load_shed().concurrency_limit(ADMITTED_MAX).service(waiting);
        Ok(Transport { service: BoxCloneSyncService::new(admitted) })
    }

    /// Sends a small request and takes the whole answer into memory. For the services that hand out credentials.
    pub(crate) async fn send(
        &self,
        request: Request<Bytes>,
    ) -> Result<Response<Bytes>, TransportError> {
        let answer = self.exchange(request.map(Upload::of)).await?;
        let (parts, body) = answer.into_parts();
        Ok(Response::from_parts(parts, read(body).await?))
    }

    /// Sends a request and answers as soon as the answer begins.
    pub(super) async fn exchange(
        &self,
        request: Request<Upload>,
    ) -> Result<Response<Download>, TransportError> {
        let answer = self.service.clone().oneshot(request).await.map_err(sorted)?;
        Ok(answer.map(Download::new))
    }
}

#[async_trait]
impl Wire for Transport {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, WireError> {
        Ok(Transport::send(self, request).await?)
    }
}

/// The whole of an answer, up to the limit.
pub(super) async fn read(body: Download) -> Result<Bytes, TransportError> {
    match Limited::new(body, ANSWER_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(TransportError::TooLarge),
        Err(error) => Err(TransportError::Broken(error)),
    }
}

/// What the machine trusts. Nothing at all is no error here: a store on the loopback interface needs none.
fn tls(ca_bundle: Option<&Path>) -> Result<rustls::ClientConfig, TransportError> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(file) = ca_bundle {
        let wrong = |error| TransportError::Certificates(io::Error::other(error));
        for certificate in CertificateDer::pem_file_iter(file).map_err(wrong)? {
            let added = roots.add(certificate.map_err(wrong)?);
            added.map_err(|error| TransportError::Certificates(io::Error::other(error)))?;
        }
        if roots.is_empty() {
            let empty = io::Error::other("there is none in the file");
            return Err(TransportError::Certificates(empty));
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has the suites of TLS 1.2 and 1.3");
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// Runs `work` as long as something moves now and then.
async fn unless_silent<T>(
    pulse: &Pulse,
    work: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, BoxError> {
    tokio::pin!(work);
    loop {
        let due = pulse.last() + SILENCE_MAX;
        tokio::select! {
            result = &mut work => return result,
            () = sleep_until(due) => {
                if pulse.last() + SILENCE_MAX <= Instant::now() {
                    return Err(TransportError::Silent.into());
                }
            }
        }
    }
}

fn sorted(error: BoxError) -> TransportError {
    let error = match error.downcast::<TransportError>() {
        Ok(ours) => return *ours,
        Err(error) => error,
    };
    if error.is::<Overloaded>() {
        return TransportError::Busy;
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&*error);
    while let Some(error_here) = cause {
        if error_here.is::<tower::timeout::error::Elapsed>() {
            return TransportError::ConnectTimeout;
        }
        if is_about_trust(error_here) {
            return TransportError::Untrusted(error);
        }
        cause = error_here.source();
    }
    TransportError::Broken(error)
}

/// Whether the server's certificate was the reason. An I/O error hides what it holds from the chain, and may hold another one.
fn is_about_trust(error: &(dyn std::error::Error + 'static)) -> bool {
    if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
        return true;
    }
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    inner.is_some_and(|inner| is_about_trust(inner))
}

/// The body of an answer, which fails when it stops moving.
pub(super) struct Download {
    body: Incoming,
    silence: Pin<Box<Sleep>>,
    /// Somebody waits for the next bytes. What a slow reader does not ask for is no silence of the server's.
    waiting: bool,
}

impl Download {
    fn new(body: Incoming) -> Download {
        Download { body, silence: Box::pin(sleep_until(Instant::now())), waiting: false }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.waiting = false;
            return Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)));
        }
        if !this.waiting {
            this.waiting = true;
            this.silence.as_mut().reset(Instant::now() + SILENCE_MAX);
        }
        let silent = this.silence.as_mut().poll(context);
        silent.map(|()| Some(Err(TransportError::Silent.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn t37_a_request_ends_when_nothing_moves_and_not_because_it_takes_long() {
        let pulse = Upload::of(Bytes::new()).pulse();
        let beats = pulse.clone();
        let slow = async {
            for _ in 0..100 {
                tokio::time::sleep(SILENCE_MAX / 2).await;
                beats.beat();
            }
            Ok(())
        };
        unless_silent(&pulse, slow).await.expect("something moved now and then");
        let began = Instant::now();
        let silent = unless_silent(&pulse, std::future::pending::<Result<(), BoxError>>()).await;
        assert!(matches!(sorted(silent.unwrap_err()), TransportError::Silent));
        assert!(began.elapsed() <= SILENCE_MAX);
    }
}
