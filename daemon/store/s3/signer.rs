//! Signatures: what a request to the store carries so that the store knows who asks.
//!
//! Knows AWS signature version 4 (through `reqsign`) and keys; where keys come from is `credentials`. Refuses to know what the
//! request is for.

use std::sync::Arc;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use reqsign_aws_v4::RequestSigner;
use reqsign_core::{Context, SignRequest};

use super::credentials::{Cache, CredentialsError, Keys, Source, SystemClock};

#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
mod tests;

/// The name of S3 in a signature, which every S3-compatible store takes.
const SERVICE: &str = "s3";

/// Headers that proxies on the way add to or rewrite. A signature over one of them would break there.
const UNSIGNED: &[HeaderName] = &[
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::TE,
    header::TRANSFER_ENCODING,
    header::USER_AGENT,
];

const AMZ_CONTENT_SHA256: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");
const AMZ_SECURITY_TOKEN: HeaderName = HeaderName::from_static("x-amz-security-token");

/// Signs requests with keys that it renews before they expire.
#[derive(Debug)]
pub(crate) struct Signer {
    keys: Cache,
    signer: RequestSigner,
}

impl Signer {
    /// A signer with keys from `source`, which is first asked when there is something to sign.
    pub(crate) fn new(source: Arc<dyn Source>, region: &str) -> Signer {
        Signer::with_cache(Cache::new(source, Arc::new(SystemClock)), region)
    }

    pub(super) fn with_cache(keys: Cache, region: &str) -> Signer {
        // Only directory buckets have session tokens of their own kind, and a bucket must not be taken for one by its name.
        let signer = RequestSigner::new(SERVICE, region).with_standard_session_token();
        Signer { keys, signer }
    }

    /// Signs a request whose URI is absolute and encoded as it will be sent. Adds `x-amz-date`, `x-amz-content-sha256`,
    /// `x-amz-security-token`, `host` and `authorization`, or replaces them: a request that is sent again is signed again.
    /// Every other header that is there is signed, too, but for those that proxies touch; none may be added after it.
    pub(crate) async fn sign(
        &self,
        parts: &mut Parts,
        payload_sha256: &str,
    ) -> Result<(), CredentialsError> {
        let keys = self.keys.get().await?;
        sign_with(&self.signer, parts, &keys, payload_sha256).await
    }

    /// The store said that the keys are no longer good (`ExpiredToken`, `InvalidToken`, `InvalidAccessKeyId`, …): the next
    /// signature asks their source again. Keys that somebody put into a file may have been replaced there.
    pub(crate) fn expired(&self) {
        self.keys.drop_keys();
    }

    /// Where the keys came from, for the message when the store refuses them. `None`: none were got yet.
    pub(crate) fn origin(&self) -> Option<String> {
        self.keys.origin()
    }
}

/// Signs with these keys at the present time.
async fn sign_with(
    signer: &RequestSigner,
    parts: &mut Parts,
    keys: &Keys,
    payload_sha256: &str,
) -> Result<(), CredentialsError> {
    let payload = HeaderValue::from_str(payload_sha256)
        .map_err(|_| CredentialsError::Unsignable("the digest of its body is none".into()))?;
    // AWS signs one space for several, others sign what is there, and so does the library: no signature is right for all.
    let is_odd = |value: &HeaderValue| value.as_bytes().windows(2).any(|pair| pair == b"  ");
    if parts.headers.iter().any(|(name, value)| !UNSIGNED.contains(name) && is_odd(value)) {
        return Err(CredentialsError::Unsignable("a header has two spaces in a row".into()));
    }
    let mut unsigned = HeaderMap::new();
    for name in UNSIGNED {
        if let header::Entry::Occupied(entry) = parts.headers.entry(name) {
            let (name, values) = entry.remove_entry_mult();
            values.for_each(|value| {
                unsigned.append(&name, value);
            });
        }
    }
    // The library keeps a date that is there and signs another.
    for stale in [AMZ_DATE, AMZ_SECURITY_TOKEN, header::AUTHORIZATION] {
        parts.headers.remove(stale);
    }
    parts.headers.insert(AMZ_CONTENT_SHA256, payload);
    let keys = keys.to_library();
    let outcome = signer.sign_request(&Context::new(), parts, Some(&keys), None).await;
    for (name, value) in unsigned.into_iter().scan(None, name_of_each) {
        parts.headers.append(name, value);
    }
    // Its message may repeat what is signed: only the library's own words are kept, not their cause.
    outcome.map_err(|error| CredentialsError::Unsignable(error.to_string()))
}

/// A header map names only the first value of each name.
fn name_of_each(
    last: &mut Option<HeaderName>,
    (name, value): (Option<HeaderName>, HeaderValue),
) -> Option<(HeaderName, HeaderValue)> {
    if name.is_some() {
        *last = name;
    }
    last.clone().map(|name| (name, value))
}
