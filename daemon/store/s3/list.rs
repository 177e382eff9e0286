//! Listings, page by page.
//!
//! A listing is whole or it is an error: a page that is missing, is another document or does not end must never look like an
//! empty bucket.

use rusoto_s3::{ListObjectsV2Output, ListObjectsV2Request, S3, S3Client};

use super::S3Store;
use super::errors::Failure;
use super::requests::{Answer, Call};
use crate::store::{ErrorKind, Listed, flaw_of};

/// Pages of one listing: ten million keys. More is no project of ours, and would not fit into memory.
const PAGES_MAX: usize = 10_000;

impl S3Store {
    /// Everything whose key begins with `prefix`, ascending. What is no key of ours (the marker of a folder, for instance) is
    /// no object.
    pub(super) async fn list_all(&self, prefix: &str) -> Result<Vec<Listed>, Failure> {
        let mut listed = Vec::new();
        let mut request = self.list_request(prefix);
        for _ in 0..PAGES_MAX {
            let page = self.page(&request).await?;
            let encoded = is_encoded(&page);
            for object in page.contents.into_iter().flatten() {
                let key = object.key.ok_or_else(|| Failure::odd("an object has no key"))?;
                let size = object.size.and_then(|size| u64::try_from(size).ok());
                let size = size.ok_or_else(|| Failure::odd("an object has no size"))?;
                if let Some(key) = self.own(decoded(key, encoded)?)
                    && flaw_of(&key).is_none()
                {
                    listed.push(Listed { key, size });
                }
            }
            let next = next_page(&request, page.is_truncated, page.next_continuation_token)?;
            let Some(token) = next else {
                // Not every imitator sorts byte by byte.
                listed.sort_by(|a, b| a.key.cmp(&b.key));
                listed.dedup_by(|a, b| a.key == b.key);
                return Ok(listed);
            };
            request.continuation_token = Some(token);
        }
        Err(endless())
    }

    /// The names directly below `prefix` that have something below them, ascending.
    pub(super) async fn folders_below(&self, prefix: &str) -> Result<Vec<String>, Failure> {
        let mut names = Vec::new();
        let mut request =
            ListObjectsV2Request { delimiter: Some("/".to_owned()), ..self.list_request(prefix) };
        for _ in 0..PAGES_MAX {
            let page = self.page(&request).await?;
            let encoded = is_encoded(&page);
            for folder in page.common_prefixes.into_iter().flatten() {
                let folder = folder.prefix.ok_or_else(|| Failure::odd("a folder has no name"))?;
                let folder = self.own(decoded(folder, encoded)?);
                let name = folder.as_deref().and_then(|folder| folder.strip_prefix(prefix));
                let name = name.and_then(|name| name.strip_suffix('/'));
                names.extend(name.filter(|name| flaw_of(name).is_none()).map(str::to_owned));
            }
            let next = next_page(&request, page.is_truncated, page.next_continuation_token)?;
            let Some(token) = next else {
                names.sort();
                names.dedup();
                return Ok(names);
            };
            request.continuation_token = Some(token);
        }
        Err(endless())
    }

    /// The size of one object as the listing has it. Unlike an answer to HEAD, it tells a missing object from a missing bucket.
    pub(super) async fn listed(&self, key: &str) -> Result<Option<u64>, Failure> {
        // The key itself is the first that begins with it.
        let request = ListObjectsV2Request { max_keys: Some(1), ..self.list_request(key) };
        let page = self.page(&request).await?;
        let encoded = is_encoded(&page);
        let Some(object) = page.contents.into_iter().flatten().next() else { return Ok(None) };
        let found = object.key.map(|found| decoded(found, encoded)).transpose()?;
        let size = object.size.and_then(|size| u64::try_from(size).ok());
        Ok(size.filter(|_| found.and_then(|found| self.own(found)).as_deref() == Some(key)))
    }

    fn list_request(&self, prefix: &str) -> ListObjectsV2Request {
        ListObjectsV2Request {
            bucket: self.settings.bucket.clone(),
            prefix: Some(self.full(prefix)),
            ..ListObjectsV2Request::default()
        }
    }

    /// One page. XML has no way to write some characters that others may have in their keys, and one such key must not hide all
    /// of ours: a page that cannot be read is asked for again with its keys encoded. Not at once, because a store has been seen
    /// that says it encodes, and does not.
    async fn page(&self, request: &ListObjectsV2Request) -> Result<ListObjectsV2Output, Failure> {
        match self.page_as_is(request.clone()).await {
            Err(failure) if failure.is_unreadable() => {
                let encoding_type = Some("url".to_owned());
                self.page_as_is(ListObjectsV2Request { encoding_type, ..request.clone() }).await
            }
            page => page,
        }
    }

    async fn page_as_is(
        &self,
        request: ListObjectsV2Request,
    ) -> Result<ListObjectsV2Output, Failure> {
        let asked_for = request.encoding_type.clone();
        let call = Call::new("s3:ListBucket", Answer::Document("ListBucketResult"));
        let work = |s3: S3Client| async move { s3.list_objects_v2(request).await };
        let (mut page, _) = self.requests.call(call, work).await?;
        page.encoding_type = page.encoding_type.filter(|_| asked_for.is_some());
        Ok(page)
    }

    /// The key within the project of a key in the bucket.
    fn own(&self, full: String) -> Option<String> {
        let below = full.strip_prefix(self.settings.project.as_str())?;
        below.strip_prefix('/').map(str::to_owned)
    }
}

fn is_encoded(page: &ListObjectsV2Output) -> bool {
    page.encoding_type.as_deref() == Some("url")
}

/// A key as it is. A plus is a space, as in the query of a form.
fn decoded(key: String, encoded: bool) -> Result<String, Failure> {
    if !encoded {
        return Ok(key);
    }
    let odd = || Failure::odd("a key is not encoded as it says");
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.bytes();
    while let Some(byte) = rest.next() {
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let (high, low) = (digit(rest.next()), digit(rest.next()));
                let value = high.zip(low).map(|(high, low)| high * 16 + low);
                value.and_then(|value| u8::try_from(value).ok()).ok_or_else(odd)?
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| odd())
}

/// How to ask for the next page, if there is one.
fn next_page(
    request: &ListObjectsV2Request,
    truncated: Option<bool>,
    token: Option<String>,
) -> Result<Option<String>, Failure> {
    match token.filter(|token| !token.is_empty()) {
        _ if truncated == Some(false) => Ok(None),
        None if truncated == Some(true) => {
            Err(Failure::odd("there is more, and no way to ask for it"))
        }
        None => Ok(None),
        Some(token) if request.continuation_token.as_ref() == Some(&token) => {
            Err(Failure::odd("a listing comes back to where it was"))
        }
        Some(token) => Ok(Some(token)),
    }
}

fn endless() -> Failure {
    Failure::new(ErrorKind::Invalid, "the listing has no end: more than ten million keys")
}
