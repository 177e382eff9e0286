//! The stores behind the S3 protocol: `s3://` and `hf://`.
//!
//! Knows keys, bytes and the operations of S3; refuses to know parts and sessions. Only the files of this folder name rusoto, and
//! they use it for shapes and XML alone: connections and TLS are in [`transport`], signatures in [`signer`], what is common to
//! all requests in [`requests`], words for failures in [`errors`].

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use http::StatusCode;
use rusoto_s3::{DeleteObjectRequest, GetObjectRequest, HeadObjectRequest, PutObjectRequest, S3};

pub use self::errors::About;
use self::errors::Failure;
use self::multipart::{PIECES, Pieces};
use self::requests::{Answer, Call, Requests};
pub(crate) use self::signer::Signer;
use self::swap::Probe;
pub(crate) use self::transport::Transport;
use self::upload::Payload;
use super::{
    Body, Conditions, ErrorKind, Listed, Object, Store, StoreError, Version, check_key,
    check_prefix,
};
use crate::durable::{Blocking, Disk};

pub(crate) mod credentials;
mod errors;
mod list;
mod multipart;
mod requests;
mod signer;
#[cfg(test)]
mod stand_in;
mod swap;
#[cfg(test)]
mod tests;
mod transport;
mod upload;

/// Name of the object metadata that holds the note of a put: `x-amz-meta-note`.
const NOTE: &str = "note";

/// Where a store is. Parsed and checked by the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct S3Settings {
    /// `s3` or `hf`: part of the identity.
    pub(crate) scheme: &'static str,
    /// `https://host:port/path`, without a slash at the end.
    pub(crate) endpoint: String,
    /// The region that requests are signed for.
    pub(crate) region: String,
    /// The bucket.
    pub(crate) bucket: String,
    /// What all keys begin with, without slashes at its ends.
    pub(crate) project: String,
}

impl S3Settings {
    /// [`Store::identity`] of the store that is there.
    pub(crate) fn identity(&self) -> String {
        let S3Settings { scheme, endpoint, bucket, project, .. } = self;
        let host = endpoint.split_once("://").map_or(endpoint.as_str(), |(_, host)| host);
        format!("{scheme}://{host}/{bucket}/{project}")
    }

    /// Whether the endpoint is this machine, over plain HTTP.
    fn is_loopback(&self) -> bool {
        let uri: Option<http::Uri> = self.endpoint.parse().ok();
        uri.is_some_and(|uri| {
            uri.scheme_str() == Some("http") && uri.host().is_some_and(is_loopback)
        })
    }
}

/// Whether a host is this machine.
pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// A store that speaks S3.
pub(crate) struct S3Store {
    requests: Requests,
    settings: S3Settings,
    identity: String,
    disk: Arc<dyn Disk>,
    blocking: Blocking,
    probe: Probe,
    pieces: Pieces,
    /// Held by the put that goes up in pieces.
    in_pieces: tokio::sync::Mutex<()>,
    /// A read was redirected: what answers then is no store and tells no version.
    redirects: AtomicBool,
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Store").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl S3Store {
    /// The store that `settings` name. Asks it nothing yet. `disk` is where the files of [`Body::File`] are.
    pub(crate) fn new(
        settings: S3Settings,
        transport: Transport,
        signer: Signer,
        disk: Arc<dyn Disk>,
        blocking: Blocking,
    ) -> S3Store {
        let identity = settings.identity();
        let requests = Requests::new(settings.clone(), transport, signer);
        S3Store {
            requests,
            settings,
            identity,
            disk,
            blocking,
            probe: Probe::default(),
            pieces: PIECES,
            in_pieces: tokio::sync::Mutex::new(()),
            redirects: AtomicBool::new(false),
        }
    }

    /// The key in the bucket of a key in the project.
    fn full(&self, key: &str) -> String {
        format!("{}/{key}", self.settings.project)
    }

    async fn put_body(&self, key: &str, body: Body, note: Option<&str>) -> Result<(), Failure> {
        let unread = |error: std::io::Error| {
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            let kind = if missing { ErrorKind::NotFound } else { ErrorKind::Unavailable };
            Failure::new(kind, "cannot read the file to put").because(error)
        };
        let payload = match body {
            Body::Bytes(bytes) => Payload::bytes(bytes),
            Body::File(path) => {
                let (disk, file) = (self.disk.clone(), path.clone());
                let size = self.blocking.run(move || disk.size(&file)).await.map_err(unread)?;
                let size = size.ok_or_else(|| unread(std::io::ErrorKind::NotFound.into()))?;
                if size > self.pieces.above {
                    return self.put_in_pieces(key, &path, size, note).await;
                }
                let read = Payload::file(self.disk.clone(), self.blocking.clone(), path).await;
                read.map_err(unread)?
            }
        };
        let call = Call::new("s3:PutObject", Answer::Plain).carrying(payload);
        self.put_object(key, call, note).await
    }

    /// One put. A store that does not confirm it with an ETag may be no store at all, so the object is then looked for.
    async fn put_object(&self, key: &str, call: Call, note: Option<&str>) -> Result<(), Failure> {
        let length = call.payload.length();
        let request = PutObjectRequest {
            bucket: self.settings.bucket.clone(),
            key: self.full(key),
            metadata: metadata(note),
            ..PutObjectRequest::default()
        };
        let work = |s3: rusoto_s3::S3Client| async move { s3.put_object(request).await };
        let (put, _) = self.requests.call(call, work).await?;
        if put.e_tag.is_none() && self.size_of(key).await? != Some(length) {
            return Err(Failure::odd("it confirms a put, and the object is not there"));
        }
        Ok(())
    }

    /// What is known of an object without reading it. An answer without a body cannot say whether the object or the bucket is
    /// missing, so absence is confirmed by a listing.
    async fn head(&self, key: &str) -> Result<Option<Head>, Failure> {
        let request = HeadObjectRequest {
            bucket: self.settings.bucket.clone(),
            key: self.full(key),
            ..HeadObjectRequest::default()
        };
        let work = |s3: rusoto_s3::S3Client| async move { s3.head_object(request).await };
        match self.requests.call(Call::new("s3:GetObject", Answer::Plain), work).await {
            Ok((head, _)) => {
                let size = head.content_length.and_then(|size| u64::try_from(size).ok());
                let size = size.ok_or_else(|| Failure::odd("it tells no size"))?;
                let note = head.metadata.and_then(|mut all| all.remove(NOTE));
                let version = self.told(head.e_tag);
                Ok(Some(Head { size, version, note }))
            }
            Err(failure) if failure.status == Some(StatusCode::NOT_FOUND) => {
                let found = self.listed(key).await?;
                // It has come in between. Its version is for the next look.
                Ok(found.map(|size| Head { size, version: None, note: None }))
            }
            Err(failure) => Err(failure),
        }
    }

    /// An ETag as a version. A store that tells none has no use for conditions: a swap without a version would be refused for ever.
    fn told(&self, etag: Option<String>) -> Option<Version> {
        let version = etag.and_then(version);
        if version.is_none() {
            self.probe.set(Conditions::Unsupported);
        }
        version
    }

    async fn size_of(&self, key: &str) -> Result<Option<u64>, Failure> {
        Ok(self.head(key).await?.map(|head| head.size))
    }

    async fn get_object(&self, key: &str) -> Result<Object, Failure> {
        // Where reads are redirected, what answers is no store: version and note are asked for beside it, and first. If the object
        // changes in between, the version is the older one, and a swap with it fails as it should.
        let beside =
            if self.redirects.load(Ordering::Relaxed) { self.head(key).await? } else { None };
        let request = GetObjectRequest {
            bucket: self.settings.bucket.clone(),
            key: self.full(key),
            ..GetObjectRequest::default()
        };
        let work = |s3: rusoto_s3::S3Client| async move { s3.get_object(request).await };
        let (got, redirected) =
            match self.requests.call(Call::new("s3:GetObject", Answer::Stream), work).await {
                Ok(got) => got,
                // Something on the way may have said so, and what is not there is begun anew: the listing decides.
                Err(failure)
                    if failure.status == Some(StatusCode::NOT_FOUND)
                        && failure.kind != ErrorKind::NotFound
                        && failure.kind != ErrorKind::Denied =>
                {
                    return match self.listed(key).await? {
                        None => Err(Failure::new(ErrorKind::NotFound, "no such object")),
                        Some(_) => Err(failure),
                    };
                }
                Err(failure) => return Err(failure),
            };
        if redirected && !self.redirects.swap(true, Ordering::Relaxed) {
            return Box::pin(self.get_object(key)).await;
        }
        let body = got.body.ok_or_else(|| Failure::odd("it has no body"))?;
        let reader = Box::pin(body.into_async_read());
        if redirected {
            let (version, note) = beside.map_or((None, None), |head| (head.version, head.note));
            return Ok(Object { reader, version, note });
        }
        let version = self.told(got.e_tag);
        let note = got.metadata.and_then(|mut all| all.remove(NOTE));
        Ok(Object { reader, version, note })
    }
}

/// What is told about an object without reading it.
struct Head {
    size: u64,
    version: Option<Version>,
    note: Option<String>,
}

/// The note of a put as metadata.
fn metadata(note: Option<&str>) -> Option<HashMap<String, String>> {
    note.map(|note| HashMap::from([(NOTE.to_owned(), note.to_owned())]))
}

/// An ETag as a version. Where a proxy compressed something it calls the tag weak, and a condition on a weak one never holds.
fn version(etag: String) -> Option<Version> {
    let strong = etag.strip_prefix("W/").unwrap_or(&etag);
    (!strong.is_empty()).then(|| Version(strong.to_owned()))
}

#[async_trait]
impl Store for S3Store {
    fn identity(&self) -> &str {
        &self.identity
    }

    fn is_local(&self) -> bool {
        false
    }

    fn conditions(&self) -> Conditions {
        self.probe.verdict()
    }

    async fn put(&self, key: &str, body: Body, note: Option<&str>) -> Result<(), StoreError> {
        check_key("put", key)?;
        self.put_body(key, body, note).await.map_err(|failure| failure.of("put", key))
    }

    async fn swap(&self, key: &str, body: Bytes, seen: Option<&Version>) -> Result<(), StoreError> {
        check_key("put", key)?;
        self.swap_object(key, body, seen).await.map_err(|failure| failure.of("put", key))
    }

    async fn get(&self, key: &str) -> Result<Object, StoreError> {
        check_key("get", key)?;
        self.get_object(key).await.map_err(|failure| failure.of("get", key))
    }

    async fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
        check_key("size", key)?;
        self.size_of(key).await.map_err(|failure| failure.of("size", key))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Listed>, StoreError> {
        check_prefix("list", prefix)?;
        self.list_all(prefix).await.map_err(|failure| failure.of("list", prefix))
    }

    async fn list_folders(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        check_prefix("list", prefix)?;
        self.folders_below(prefix).await.map_err(|failure| failure.of("list", prefix))
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        check_key("delete", key)?;
        let request = DeleteObjectRequest {
            bucket: self.settings.bucket.clone(),
            key: self.full(key),
            ..DeleteObjectRequest::default()
        };
        let work = |s3: rusoto_s3::S3Client| async move { s3.delete_object(request).await };
        match self.requests.call(Call::new("s3:DeleteObject", Answer::Plain), work).await {
            Ok(_) => Ok(()),
            // Some imitators say so.
            Err(failure) if failure.kind == ErrorKind::NotFound => Ok(()),
            Err(failure) => Err(failure.of("delete", key)),
        }
    }
}
