//! A plain S3 client for the tests: makes a bucket, lists, reads. Signs by itself, so that it owes nothing to the product.
//!
//! Knows the protocol and one bucket; nothing of sessions. Speaks plain http, path style, signature version 4.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode};
use sha2::{Digest, Sha256};
use tokio::task::JoinHandle;

use super::http::{Failure, exchange, runtime};

/// Reads at a time: enough to keep a server on this machine busy.
const READS_MAX: usize = 8;

/// Where a bucket is and who may use it.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    /// Host and port as in the URL.
    pub(crate) authority: String,
    pub(crate) bucket: String,
    pub(crate) region: String,
    pub(crate) access_key: String,
    pub(crate) secret_key: String,
}

/// An entry of a listing.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// ETag and time of the last change, as the store tells them.
    pub(crate) version: String,
}

impl Client {
    /// The address behind the endpoint.
    pub(crate) fn address(&self) -> SocketAddr {
        self.authority.to_socket_addrs().unwrap().next().expect("the endpoint has an address")
    }

    /// Makes the bucket; one that is there already is fine.
    pub(crate) fn make_bucket(&self) -> Result<(), Failure> {
        let answer = self.send(Method::PUT, "", &[], Bytes::new())?;
        match answer.status() {
            StatusCode::OK | StatusCode::CONFLICT => Ok(()),
            status => Err(format!("making the bucket: {status}").into()),
        }
    }

    /// Stores an object.
    pub(crate) fn put(&self, key: &str, body: &[u8]) -> Result<(), Failure> {
        let answer = self.send(Method::PUT, key, &[], Bytes::copy_from_slice(body))?;
        expect_ok(&answer, key)
    }

    /// Begins to store an object; the task can be aborted in the middle of it.
    pub(crate) fn begin_put(&self, key: &str, body: &[u8]) -> JoinHandle<bool> {
        let request = self.request(&Method::PUT, key, &[], Bytes::copy_from_slice(body));
        let put = exchange(self.address(), request);
        runtime().spawn(async { put.await.is_ok_and(|answer| answer.status().is_success()) })
    }

    /// Deletes an object.
    pub(crate) fn delete(&self, key: &str) -> Result<(), Failure> {
        let answer = self.send(Method::DELETE, key, &[], Bytes::new())?;
        expect_ok(&answer, key)
    }

    /// The bytes of an object; `None` when there is none (any more).
    pub(crate) fn get(&self, key: &str) -> Result<Option<Bytes>, Failure> {
        let answer = self.send(Method::GET, key, &[], Bytes::new())?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        expect_ok(&answer, key)?;
        Ok(Some(answer.into_body()))
    }

    /// The bytes of many objects, several at a time, in no order; those that are gone are left out.
    pub(crate) fn get_all(&self, keys: Vec<String>) -> Result<Vec<(String, Bytes)>, Failure> {
        let one = |key: String| async move {
            let request = self.request(&Method::GET, &key, &[], Bytes::new());
            let answer = exchange(self.address(), request).await?;
            if answer.status() == StatusCode::NOT_FOUND {
                return Ok(None);
            }
            expect_ok(&answer, &key)?;
            Ok(Some((key, answer.into_body())))
        };
        let reads = stream::iter(keys.into_iter().map(one)).buffer_unordered(READS_MAX);
        runtime().block_on(reads.try_filter_map(|read| async { Ok(read) }).try_collect())
    }

    /// All objects whose key begins with `prefix`, by key.
    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<Entry>, Failure> {
        let mut found = Vec::new();
        let mut token = None;
        loop {
            let mut query = vec![("list-type", "2"), ("prefix", prefix)];
            query.extend(token.as_deref().map(|token| ("continuation-token", token)));
            let answer = self.send(Method::GET, "", &query, Bytes::new())?;
            expect_ok(&answer, prefix)?;
            let text = String::from_utf8(answer.into_body().to_vec())?;
            for entry in text.split("<Contents>").skip(1) {
                let field = |name| element(entry, name).unwrap_or_default();
                let version = format!("{} {}", field("ETag"), field("LastModified"));
                found.push(Entry { key: field("Key"), version });
            }
            token = element(&text, "NextContinuationToken");
            if element(&text, "IsTruncated").as_deref() != Some("true") || token.is_none() {
                return Ok(found);
            }
        }
    }

    /// Sends a signed request and waits for the answer, whatever its status.
    pub(crate) fn send(
        &self,
        method: Method,
        key: &str,
        query: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Response<Bytes>, Failure> {
        runtime().block_on(exchange(self.address(), self.request(&method, key, query, body)))
    }

    fn request(
        &self,
        method: &Method,
        key: &str,
        query: &[(&str, &str)],
        body: Bytes,
    ) -> Request<Full<Bytes>> {
        let query: BTreeMap<String, String> = query
            .iter()
            .map(|(name, value)| (encoded(name, false), encoded(value, false)))
            .collect();
        let pairs: Vec<_> = query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let path = encoded(&format!("/{}/{key}", self.bucket), true);
        // Some servers take a slash at the end for a part of the bucket's name.
        let path = if key.is_empty() { path.trim_end_matches('/').to_owned() } else { path };
        self.signed(method, &path, &pairs.join("&"), body)
    }

    fn signed(
        &self,
        method: &Method,
        path: &str,
        query: &str,
        body: Bytes,
    ) -> Request<Full<Bytes>> {
        let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        let (day, payload) = (&time[..8], hex(&Sha256::digest(&body)));
        let headers = "host;x-amz-content-sha256;x-amz-date";
        let canonical = format!(
            "{method}\n{path}\n{query}\nhost:{}\nx-amz-content-sha256:{payload}\nx-amz-date:{time}\n\n{headers}\n{payload}",
            self.authority
        );
        let scope = format!("{day}/{}/s3/aws4_request", self.region);
        let digest = hex(&Sha256::digest(canonical.as_bytes()));
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{digest}");
        let secret = format!("AWS4{}", self.secret_key).into_bytes();
        let key = [day, &self.region, "s3", "aws4_request"]
            .iter()
            .fold(secret, |key, step| hmac(&key, step.as_bytes()));
        let signature = hex(&hmac(&key, text.as_bytes()));
        let credential = format!("{}/{scope}", self.access_key);
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={headers}, Signature={signature}"
        );
        let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        Request::builder()
            .method(method)
            .uri(target)
            .header("host", &self.authority)
            .header("x-amz-date", time)
            .header("x-amz-content-sha256", payload)
            .header("authorization", authorization)
            .body(Full::new(body))
            .expect("a request of parts that were encoded")
    }
}

fn expect_ok(answer: &Response<Bytes>, object: &str) -> Result<(), Failure> {
    if answer.status().is_success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(answer.body()).into_owned();
    Err(format!("{object}: {} {text}", answer.status()).into())
}

/// The text of the first element of a name.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    let plain = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
    Some(plain.replace("&#34;", "\"").replace("&apos;", "'").replace("&amp;", "&"))
}

/// Percent-encoded as the signature wants it.
fn encoded(text: &str, keep_slash: bool) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let one = |byte: u8| match byte {
        b'/' if keep_slash => "/".to_owned(),
        _ if plain(byte) => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// HMAC with SHA-256.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut block = [0; 64];
    let key = if key.len() > 64 { Sha256::digest(key).to_vec() } else { key.to_vec() };
    block[..key.len()].copy_from_slice(&key);
    let with = |pad: u8, text: &[u8]| {
        Sha256::new().chain_update(block.map(|byte| byte ^ pad)).chain_update(text).finalize()
    };
    with(0x5c, &with(0x36, text)).to_vec()
}
