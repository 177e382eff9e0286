//! What went wrong, in words that say what to do about it.
//!
//! Knows the codes of S3 and of its imitators; refuses to repeat what a server sent beyond its code and a cleaned sentence,
//! because some servers echo keys.

use std::fmt;

use http::{HeaderMap, StatusCode};
use tower::BoxError;
use xml::reader::{EventReader, XmlEvent};

use super::transport::TransportError;
use crate::store::{ErrorKind, StoreError};

/// Characters of a server's own sentence that are shown.
const SAID_CHARS_MAX: usize = 200;

/// Length from which a word with digits may be a key, and is not shown.
const KEY_CHARS_MIN: usize = 16;

/// Minutes between our clock and the store's from which it refuses signatures.
const SKEW_MINUTES_MAX: i64 = 15;

/// Why an operation failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: ErrorKind,
    /// Of the answer, if there was one.
    pub(super) status: Option<StatusCode>,
    /// The store's own word for it.
    pub(super) code: String,
    text: String,
    unreadable: bool,
    source: Option<BoxError>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}

impl Failure {
    pub(super) fn new(kind: ErrorKind, text: impl Into<String>) -> Failure {
        let (text, code) = (text.into(), String::new());
        Failure { kind, status: None, code, text, unreadable: false, source: None }
    }

    /// With what caused it.
    pub(super) fn because(self, source: impl Into<BoxError>) -> Failure {
        Failure { source: Some(source.into()), ..self }
    }

    /// The answer is none that S3 would give. Asked again: a proxy or a store in trouble gives such.
    pub(super) fn odd(what: &str) -> Failure {
        Failure::new(ErrorKind::Unavailable, format!("the store's answer makes no sense: {what}"))
    }

    /// The answer is no XML, or it is cut off.
    pub(super) fn unreadable() -> Failure {
        let unreadable = true;
        Failure { unreadable, ..Failure::odd("it is cut off, or no XML") }
    }

    /// Whether the answer was no XML.
    pub(super) fn is_unreadable(&self) -> bool {
        self.unreadable
    }

    /// Whether other keys may help: these have expired, or somebody has replaced them meanwhile.
    pub(super) fn is_about_keys(&self) -> bool {
        matches!(
            self.code.as_str(),
            "ExpiredToken"
                | "ExpiredTokenException"
                | "TokenRefreshRequired"
                | "InvalidToken"
                | "InvalidTokenId"
                | "InvalidAccessKeyId"
                | "SignatureDoesNotMatch"
        )
    }

    /// Whether it may be about keys and has no word to say so: of a HEAD there is no more than a status. A missing right is a 403, expired
    /// keys are none.
    pub(super) fn is_without_a_word(&self) -> bool {
        let refusals = [StatusCode::BAD_REQUEST, StatusCode::UNAUTHORIZED];
        self.code.is_empty() && self.status.is_some_and(|status| refusals.contains(&status))
    }

    /// As the error of an operation on an object.
    pub(super) fn of(self, operation: &'static str, object: &str) -> StoreError {
        StoreError::new(self.kind, operation, object, self)
    }
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Failure {
        let kind = match error {
            TransportError::Certificates(_) | TransportError::Untrusted(_) => ErrorKind::Denied,
            TransportError::Busy => ErrorKind::Overloaded,
            _ => ErrorKind::Unavailable,
        };
        let text = error.to_string();
        let source = match error {
            TransportError::Certificates(source) => Some(source.into()),
            TransportError::Untrusted(source) | TransportError::Broken(source) => Some(source),
            _ => None,
        };
        Failure { source, ..Failure::new(kind, text) }
    }
}

/// What a failure is about: where a person has to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// The keys, or how long they are good.
    Keys,
    /// The bucket's name, its place or its region.
    Bucket,
    /// A right that the keys do not have. Some stores say the same of wrong keys.
    Right,
    /// This machine's clock.
    Clock,
    /// The way to the store, or the store's own trouble.
    Way,
}

impl About {
    pub(crate) fn of(error: &StoreError) -> About {
        let failure = error.source.downcast_ref::<Failure>();
        let status = failure.and_then(|failure| failure.status);
        match failure.map_or("", |failure| failure.code.as_str()) {
            "NoSuchBucket"
            | "PermanentRedirect"
            | "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException"
            | "IncorrectEndpoint" => About::Bucket,
            "RequestTimeTooSkewed" => About::Clock,
            _ if failure.is_some_and(Failure::is_about_keys) => About::Keys,
            _ if status == Some(StatusCode::MOVED_PERMANENTLY) => About::Bucket,
            _ if status.is_some() && error.kind == ErrorKind::Denied => About::Right,
            _ => About::Way,
        }
    }
}

/// Where and for what a request was, as far as words need it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) endpoint: &'a str,
    pub(super) region: &'a str,
    pub(super) bucket: &'a str,
    /// The right that the request needs: `s3:PutObject`.
    pub(super) right: &'static str,
    /// Where the keys came from.
    pub(super) keys: &'a str,
}

/// What an error document says.
#[derive(Debug, Default)]
struct Said {
    code: String,
    message: String,
    region: String,
}

/// The failure that an answer with a status other than 2xx tells, or one with an error in its body.
pub(super) fn refused(
    asked: Asked<'_>,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
) -> Failure {
    let mut said = parse(body);
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(region) = header("x-amz-bucket-region").filter(|_| said.region.is_empty()) {
        said.region = printable(region);
    }
    let (kind, text) = judge(asked, status, &said, headers);
    Failure { status: Some(status), code: said.code, ..Failure::new(kind, text) }
}

fn judge(
    asked: Asked<'_>,
    status: StatusCode,
    said: &Said,
    headers: &HeaderMap,
) -> (ErrorKind, String) {
    use ErrorKind::{Changed, Denied, Full, NotFound, Overloaded, Unavailable};
    let Asked { endpoint, bucket, right, keys, .. } = asked;
    let text = |text: &str| text.to_owned();
    match said.code.as_str() {
        "InvalidAccessKeyId" => (
            Denied,
            format!(
                "{endpoint} does not know the access key from {keys}: correct it, or the endpoint"
            ),
        ),
        "SignatureDoesNotMatch" => (
            Denied,
            format!("the secret key does not belong to the access key: correct what is in {keys}"),
        ),
        "RequestTimeTooSkewed" => (Denied, skewed(headers)),
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => (
            Denied,
            format!(
                "the credentials from {keys} have expired: sign in again, or put new ones there"
            ),
        ),
        "InvalidToken" | "InvalidTokenId" => {
            (Denied, format!("the session token from {keys} is not valid here: correct it"))
        }
        "NoSuchBucket" => (
            Denied,
            format!(
                "there is no bucket {bucket} at {endpoint}: create it, or correct store or endpoint"
            ),
        ),
        "NoSuchKey" => (NotFound, text("no such object")),
        "PermanentRedirect"
        | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException"
        | "IncorrectEndpoint" => (Denied, wrong_region(asked, said)),
        "TemporaryRedirect" => {
            (Unavailable, text("the bucket is new, and its name is not known everywhere yet"))
        }
        "PreconditionFailed" => (Changed, text("the object is another one by now")),
        "QuotaExceeded"
        | "XMinioStorageFull"
        | "XMinioAdminBucketQuotaExceeded"
        | "StorageFull"
        | "InsufficientStorage"
        | "StorageLimitExceeded" => (Full, format!("the bucket {bucket} is full: {}", shown(said))),
        // Garage says nothing else to a key that it does not know and to a wrong secret.
        "AccessDenied" | "AllAccessDisabled" | "AccountProblem" | "UnauthorizedAccess"
        | "Forbidden" => (
            Denied,
            format!(
                "not allowed: the key from {keys} lacks the right {right} on {bucket}, or the key or its secret is wrong ({})",
                shown(said)
            ),
        ),
        // Something between the two changed or lost bytes.
        "BadDigest"
        | "XAmzContentSHA256Mismatch"
        | "IncompleteBody"
        | "RequestTimeout"
        | "RequestCanceled"
        | "ConditionalRequestConflict"
        | "OperationAborted"
        | "NoSuchUpload" => (Unavailable, format!("{status}: {}", shown(said))),
        "SlowDown"
        | "SlowDownRead"
        | "SlowDownWrite"
        | "ServiceUnavailable"
        | "Busy"
        | "TooManyRequests"
        | "ThrottlingException"
        | "RequestLimitExceeded" => (Overloaded, text("the store asks for fewer requests")),
        "InternalError" => (Unavailable, text("the store has a problem of its own")),
        _ => by_status(asked, status, said),
    }
}

fn by_status(asked: Asked<'_>, status: StatusCode, said: &Said) -> (ErrorKind, String) {
    let Asked { bucket, right, .. } = asked;
    let shown = shown(said);
    match status {
        _ if status.is_success() => {
            (ErrorKind::Unavailable, format!("an error in the answer: {shown}"))
        }
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => (
            ErrorKind::Denied,
            format!(
                "not allowed: check the credentials, and the right {right} on {bucket} ({status}: {shown})"
            ),
        ),
        StatusCode::MOVED_PERMANENTLY => (ErrorKind::Denied, wrong_region(asked, said)),
        StatusCode::PRECONDITION_FAILED => {
            (ErrorKind::Changed, "the object is another one by now".to_owned())
        }
        StatusCode::INSUFFICIENT_STORAGE => {
            (ErrorKind::Full, format!("the bucket {bucket} is full: {shown}"))
        }
        StatusCode::NOT_IMPLEMENTED => {
            (ErrorKind::Invalid, format!("the store cannot do that: {shown}"))
        }
        StatusCode::TOO_MANY_REQUESTS => {
            (ErrorKind::Overloaded, format!("the store asks for fewer requests: {status}"))
        }
        StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT | StatusCode::NOT_FOUND => {
            (ErrorKind::Unavailable, format!("{status}: {shown}"))
        }
        _ if status.is_server_error() || status.is_redirection() => {
            (ErrorKind::Unavailable, format!("{status}: {shown}"))
        }
        _ => (ErrorKind::Invalid, format!("{status}: {shown}")),
    }
}

fn wrong_region(asked: Asked<'_>, said: &Said) -> String {
    let Asked { endpoint, region, bucket, .. } = asked;
    if said.region.is_empty() {
        format!(
            "the bucket {bucket} is not in region {region} at {endpoint}: set AWS_REGION and the endpoint to where it is"
        )
    } else {
        format!(
            "the bucket {bucket} is in region {}, not {region}: set AWS_REGION={}",
            said.region, said.region
        )
    }
}

/// Says how far the clocks are apart, where the answer has the store's time.
fn skewed(headers: &HeaderMap) -> String {
    let date = headers.get(http::header::DATE).and_then(|date| date.to_str().ok());
    let theirs = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
    let minutes = theirs
        .map(|theirs| (jiff::Timestamp::now().as_second() - theirs.timestamp().as_second()) / 60);
    match minutes {
        Some(minutes) if minutes.abs() >= SKEW_MINUTES_MAX => {
            let way = if minutes > 0 { "ahead of" } else { "behind" };
            format!(
                "this machine's clock is {} minutes {way} the store's: set it right",
                minutes.abs()
            )
        }
        _ => "this machine's clock differs too much from the store's: set it right".to_owned(),
    }
}

/// Code and sentence of a server, or that there were none.
fn shown(said: &Said) -> String {
    match (said.code.is_empty(), said.message.is_empty()) {
        (true, true) => "no reason given".to_owned(),
        (false, true) => said.code.clone(),
        (true, false) => said.message.clone(),
        (false, false) => format!("{}: {}", said.code, said.message),
    }
}

/// Reads an error document; what is none says nothing.
fn parse(body: &[u8]) -> Said {
    let mut said = Said::default();
    let mut path: Vec<String> = Vec::new();
    for event in EventReader::new(body) {
        match event {
            Ok(XmlEvent::StartElement { name, .. }) => path.push(name.local_name),
            Ok(XmlEvent::EndElement { .. }) => drop(path.pop()),
            Ok(XmlEvent::Characters(text) | XmlEvent::CData(text)) => {
                match path.iter().map(String::as_str).collect::<Vec<_>>()[..] {
                    ["Error", "Code"] => said.code = printable(&text),
                    ["Error", "Message"] => said.message = printable(&text),
                    ["Error", "Region"] => said.region = printable(&text),
                    _ => {}
                }
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    said
}

/// The text of a server without what a terminal would obey and without what may be a key, at a bearable length.
fn printable(text: &str) -> String {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric());
    let mut clean = text.to_owned();
    for word in words.filter(|word| word.len() >= KEY_CHARS_MIN) {
        if word.chars().any(|c| c.is_ascii_digit()) {
            clean = clean.replace(word, "…");
        }
    }
    clean.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SAID_CHARS_MAX).collect()
}

/// The name of the outermost element of an answer, empty for an empty body; `None` for what is no XML or does not end: the
/// parser that reads the answer after this look would wait for the end for ever.
pub(super) fn root_of(body: &[u8]) -> Option<String> {
    let mut root = None;
    if body.is_empty() {
        return Some(String::new());
    }
    for event in EventReader::new(body) {
        match event {
            Ok(XmlEvent::StartElement { name, .. }) if root.is_none() => {
                root = Some(name.local_name)
            }
            Ok(_) => {}
            Err(_) => return None,
        }
    }
    root
}
