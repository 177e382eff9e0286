//! Requests to answers: one tower service, matched on method and path, that needs no socket to be tested.
//!
//! Every answer that is not 2xx has an [`ErrorBody`]; every answer names the protocol. What a request may cost is bounded
//! here: how many at once, for how long, with how large a body.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::Request;
use hyper::body::Body;
use hyper::header::HeaderValue;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tower::load_shed::error::Overloaded;
use tower::timeout::error::Elapsed;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};

use super::body::{self, Reply};
use super::health::Health;
use super::metrics;
use super::request::{self, Route};
use crate::api::{ErrorBody, ErrorCode, PROTOCOL, PROTOCOL_HEADER, VERSION_HEADER, route};
use crate::mirror::handle::Mirror;

/// Requests that answer at once and are under way together. They have their own count, so that `status` answers also when
/// every place for long work is taken.
const QUICK_MAX: usize = 16;

/// A mirror that has not answered for so long is not well, and the client should say so.
pub(super) const QUICK_TIMEOUT: Duration = Duration::from_secs(30);

/// Long requests under way together: flush, compact, verify, stop. Hooks of agents that all end at once are the usual crowd.
pub(super) const LONG_MAX: usize = 32;

/// A flush may have an outbox of 256 MiB to send over a slow line; the work goes on when the client gives up.
pub(super) const LONG_TIMEOUT: Duration = Duration::from_secs(600);

/// Replays under way together. Each holds some chunks in memory for as long as its reader likes (a pager, for instance).
pub(super) const REPLAYS_MAX: usize = 8;

/// For the first bytes of a replay, which may have to be found in a bucket far away. The client waits a little longer.
const REPLAY_TIMEOUT: Duration = Duration::from_secs(100);

/// Largest body of a request. No route needs one; this is what is read and ignored.
pub(super) const BODY_BYTES_MAX: usize = 16 * 1024;

/// For the body of a request to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers the requests of the control socket. Cheap to clone; clones share their limits.
#[derive(Clone)]
pub(crate) struct ControlService {
    stacks: Option<Stacks>,
}

/// The mirror behind the limits of each class of requests.
#[derive(Clone)]
struct Stacks {
    quick: Stack,
    replay: Stack,
    long: Stack,
}

type Stack = BoxCloneSyncService<Route, Reply, BoxError>;

impl ControlService {
    /// The service in front of a mirror.
    pub(crate) fn new(mirror: Mirror) -> ControlService {
        let replays = Arc::new(Semaphore::new(REPLAYS_MAX));
        let health = Arc::new(Health::new(mirror.clone()));
        let stack = |requests_max, limit| {
            let (mirror, replays, health) = (mirror.clone(), replays.clone(), health.clone());
            let inner = ServiceBuilder::new()
                .load_shed()
                .concurrency_limit(requests_max)
                .timeout(limit)
                .service(service_fn(move |route| {
                    answer(mirror.clone(), health.clone(), replays.clone(), route)
                }));
            BoxCloneSyncService::new(inner)
        };
        let stacks = Stacks {
            quick: stack(QUICK_MAX, QUICK_TIMEOUT),
            replay: stack(REPLAYS_MAX, REPLAY_TIMEOUT),
            long: stack(LONG_MAX, LONG_TIMEOUT),
        };
        ControlService { stacks: Some(stacks) }
    }

    /// The service of a connection that is one too many: it only says so.
    pub(crate) fn busy() -> ControlService {
        ControlService { stacks: None }
    }

    async fn respond<B>(self, request: Request<B>) -> Result<Reply, ErrorBody>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        let Some(stacks) = self.stacks else { return Err(too_many("connections")) };
        request::check_protocol(request.headers())?;
        let route = Route::parse(request.method(), request.uri())?;
        drain(request.into_body()).await?;
        let (stack, limit) = match route {
            Route::Compact { .. }
            | Route::Verify { .. }
            | Route::Stop { .. }
            | Route::Flush { .. } => (stacks.long, LONG_TIMEOUT),
            Route::Content { .. } => (stacks.replay, REPLAY_TIMEOUT),
            Route::Status
            | Route::List
            | Route::Events
            | Route::Metrics
            | Route::Start { .. }
            | Route::Hint(_) => (stacks.quick, QUICK_TIMEOUT),
        };
        stack.oneshot(route).await.map_err(|error| limited(&error, limit))
    }
}

impl<B> Service<Request<B>> for ControlService
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Reply;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Reply, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // Always: who is too many is told so by an answer.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let service = self.clone();
        let is_hint = request.uri().path() == route::HINT;
        let mut answer: Self::Future = Box::pin(async move {
            let mut reply = match service.respond(request).await {
                Ok(reply) => reply,
                Err(error) => body::failure(&error),
            };
            let headers = reply.headers_mut();
            headers.insert(PROTOCOL_HEADER, HeaderValue::from(PROTOCOL));
            headers.insert(VERSION_HEADER, HeaderValue::from_static(env!("CARGO_PKG_VERSION")));
            Ok(reply)
        });
        // Who hints may be gone already (its time is up before a busy daemon reads), and hyper drops the answer to such a request
        // without a look at it. So a hint reaches the mirror, which its first step brings about, here and now.
        match is_hint.then(|| (&mut answer).now_or_never()).flatten() {
            Some(done) => Box::pin(std::future::ready(done)),
            None => answer,
        }
    }
}

/// Asks the mirror. A refusal is an answer too: only the layers around it fail.
async fn answer(
    mirror: Mirror,
    health: Arc<Health>,
    replays: Arc<Semaphore>,
    route: Route,
) -> Result<Reply, BoxError> {
    let reply = match route {
        Route::Status => health.status().await.map(|status| body::document(&status)),
        Route::Metrics => {
            health.metrics().await.map(|page| body::text(metrics::CONTENT_TYPE, page))
        }
        Route::Events => mirror.listen().await.map(|feed| body::events(feed, health)),
        Route::List => mirror.list().await.map(|list| body::document(&list)),
        Route::Content { id, generation, tail } => match replays.try_acquire_owned() {
            Err(_) => Err(too_many("replays")),
            Ok(permit) => match mirror.replay(id, generation, tail).await {
                Ok(replay) => Ok(body::replay(replay, permit).await),
                Err(error) => Err(error),
            },
        },
        Route::Compact { id, keep_tail } => {
            Ok(body::progress(mirror.compact(id, keep_tail).await).await)
        }
        Route::Verify { id, options } => Ok(body::progress(mirror.verify(id, options).await).await),
        Route::Stop { id } => mirror.stop(id).await.map(|session| body::document(&session)),
        Route::Start { id } => mirror.start(id).await.map(|session| body::document(&session)),
        Route::Flush { id } => mirror.flush(id).await.map(|flushed| body::document(&flushed)),
        Route::Hint(hint) => mirror.hint(hint).await.map(|hinted| body::accepted(&hinted)),
    };
    Ok(reply.unwrap_or_else(|error| body::failure(&error)))
}

/// Reads what came with the request and forgets it, so that the connection can take the next one.
async fn drain<B>(body: B) -> Result<(), ErrorBody>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let too_large = || ErrorBody {
        code: ErrorCode::TooLarge,
        message: format!("the request's body is larger than {BODY_BYTES_MAX} bytes"),
        hint: Some("no request of this interface needs a body".into()),
    };
    // A body that says how large it is need not be read to be refused.
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    let mut body = std::pin::pin!(Limited::new(body, BODY_BYTES_MAX));
    let drained = timeout(BODY_TIMEOUT, async {
        while let Some(frame) = body.frame().await {
            frame?;
        }
        Ok::<(), BoxError>(())
    });
    match drained.await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(error)) => Err(request::bad(format!("the request's body broke off: {error}"))),
        Err(_) => Err(request::bad(format!(
            "the request's body did not come within {} s",
            BODY_TIMEOUT.as_secs()
        ))),
    }
}

/// What a layer said, in the words of the contract.
fn limited(error: &BoxError, limit: Duration) -> ErrorBody {
    if error.is::<Overloaded>() {
        too_many("requests")
    } else if error.is::<Elapsed>() {
        ErrorBody {
            code: ErrorCode::Timeout,
            message: format!(
                "no answer within {} s; the work goes on in the daemon",
                limit.as_secs()
            ),
            hint: Some("see the daemon's log for what it is waiting for".into()),
        }
    } else {
        ErrorBody { code: ErrorCode::Internal, message: error.to_string(), hint: None }
    }
}

fn too_many(what: &str) -> ErrorBody {
    ErrorBody {
        code: ErrorCode::Unavailable,
        message: format!("too many {what} at once"),
        hint: Some("try again in a moment".into()),
    }
}
