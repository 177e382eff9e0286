//! Stands in for the crate `hyper-tls`, so that `rusoto_core` builds without OpenSSL.
//!
//! `rusoto_core` does not compile without one of its TLS features. One brings a rustls of 2021 with open advisories; the other
//! brings OpenSSL, whose headers every build would then need. Neither would ever run: each request goes through the dispatcher
//! in `daemon/store/s3`, over hyper 1 and rustls 0.23. So the second feature is chosen and gets this connector, which exists
//! for the compiler alone and refuses to connect. The `[patch]` section of the root's `Cargo.toml` puts it in place.

use std::future::{Ready, ready};
use std::io;
use std::marker::PhantomData;
use std::task::{Context, Poll};

use hyper::Uri;
use hyper::service::Service;
use tokio::net::TcpStream;

/// What `rusoto_core` names as the type of its own connector. It never connects.
#[derive(Debug)]
pub struct HttpsConnector<T>(PhantomData<fn() -> T>);

impl<T> HttpsConnector<T> {
    /// As the real one: takes nothing, cannot fail.
    #[allow(clippy::new_without_default, reason = "rusoto_core asks for `new` only")]
    pub fn new() -> HttpsConnector<T> {
        HttpsConnector(PhantomData)
    }
}

impl<T> Clone for HttpsConnector<T> {
    fn clone(&self) -> HttpsConnector<T> {
        HttpsConnector::new()
    }
}

impl<T> Service<Uri> for HttpsConnector<T> {
    type Response = TcpStream;
    type Error = io::Error;
    type Future = Ready<io::Result<TcpStream>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(Err(io::Error::other("requests of rusoto go through the dispatcher of the store")))
    }
}
