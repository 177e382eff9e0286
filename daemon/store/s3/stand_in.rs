//! An S3 server of our own, for what the real ones here do not do: refuse, redirect, lie, break off. For tests.
//!
//! It checks what every request must have (a signature, digests that fit, a length, no trailer) and refuses what the gateway of
//! Hugging Face refuses. It is no judge of signatures: real servers are.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use md5::Md5;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Keys of a page. Few, so that every listing has several.
const PAGE_KEYS: usize = 100;

/// Stands for no answer: the connection is closed.
const LOST: u16 = 0;

/// How this server differs from a good one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Quirks {
    /// Objects are elsewhere: a GET is answered with 302.
    pub(super) redirects: bool,
    /// The answer with 302 tells no version either.
    pub(super) redirects_blindly: bool,
    /// Conditions are read by nobody.
    pub(super) ignores_conditions: bool,
    /// Requests with a condition are answered with 501.
    pub(super) refuses_conditions: bool,
    /// No answer has an ETag.
    pub(super) no_etags: bool,
}

/// An answer that is given once, instead of the right one.
#[derive(Debug, Clone)]
pub(super) struct Canned {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: String,
    /// The request has its effect all the same.
    pub(super) after: bool,
}

impl Canned {
    pub(super) fn new(status: u16, body: impl Into<String>) -> Canned {
        Canned { status, headers: Vec::new(), body: body.into(), after: false }
    }

    /// An error document.
    pub(super) fn error(status: u16, code: &str) -> Canned {
        let xml = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
        Canned::new(
            status,
            format!("{xml}<Error><Code>{code}</Code><Message>Said.</Message></Error>"),
        )
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Canned {
        self.headers.push((name, value.into()));
        self
    }

    /// No answer: the connection is cut.
    pub(super) fn lost() -> Canned {
        Canned::new(LOST, "")
    }

    pub(super) fn after(self) -> Canned {
        Canned { after: true, ..self }
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: BTreeMap<String, String>,
    pub(super) headers: HeaderMap,
    pub(super) length: usize,
}

#[derive(Default)]
struct Kept {
    objects: BTreeMap<String, (Bytes, Option<String>)>,
    uploads: BTreeMap<String, (String, BTreeMap<u32, Bytes>)>,
    begun: usize,
    asked: Vec<Asked>,
    canned: VecDeque<Canned>,
}

/// The server; it ends with its value.
pub(super) struct StandIn {
    pub(super) address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
    task: JoinHandle<()>,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl StandIn {
    pub(super) async fn new(quirks: Quirks) -> StandIn {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let kept: Arc<Mutex<Kept>> = Arc::default();
        let shared = kept.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let kept = shared.clone();
                let service = hyper::service::service_fn(move |request| {
                    let kept = kept.clone();
                    async move { serve(request, address, quirks, &kept).await }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                connections.spawn(connection);
            }
        });
        StandIn { address, kept, task }
    }

    /// Answers the next requests with these.
    pub(super) fn answer(&self, canned: impl IntoIterator<Item = Canned>) {
        self.kept.lock().unwrap().canned.extend(canned);
    }

    /// All requests since the last call of this.
    pub(super) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.kept.lock().unwrap().asked)
    }

    /// Puts an object behind everybody's back.
    pub(super) fn insert(&self, key: &str, bytes: impl Into<Bytes>) {
        self.kept.lock().unwrap().objects.insert(key.into(), (bytes.into(), None));
    }

    pub(super) fn objects(&self) -> BTreeMap<String, Bytes> {
        let kept = self.kept.lock().unwrap();
        kept.objects.iter().map(|(key, (bytes, _))| (key.clone(), bytes.clone())).collect()
    }

    /// Uploads in pieces that are neither completed nor aborted: key and sizes of pieces.
    pub(super) fn uploads(&self) -> Vec<(String, Vec<usize>)> {
        let kept = self.kept.lock().unwrap();
        let sizes = |pieces: &BTreeMap<u32, Bytes>| pieces.values().map(Bytes::len).collect();
        kept.uploads.values().map(|(key, pieces)| (key.clone(), sizes(pieces))).collect()
    }
}

type Answer = Response<Full<Bytes>>;

async fn serve(
    request: Request<hyper::body::Incoming>,
    address: SocketAddr,
    quirks: Quirks,
    kept: &Mutex<Kept>,
) -> io::Result<Answer> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let query = parts.uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    let query = query.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let asked = Asked {
        method: parts.method,
        path: decode(parts.uri.path()),
        query: query.map(|(name, value)| (decode(name), decode(value))).collect(),
        headers: parts.headers,
        length: body.len(),
    };
    let mut kept = kept.lock().unwrap();
    kept.asked.push(asked.clone());
    let canned = kept.canned.pop_front();
    if let Some(canned) = &canned
        && !canned.after
    {
        return made(canned);
    }
    let answer = match flaw(&asked, &body) {
        Some(flaw) => error(400, "InvalidRequest", flaw),
        None => answer(&asked, body, address, quirks, &mut kept),
    };
    canned.map_or(Ok(answer), |canned| made(&canned))
}

/// What is wrong with a request in the eyes of a strict server.
fn flaw(asked: &Asked, body: &[u8]) -> Option<&'static str> {
    let header = |name: &str| asked.headers.get(name).and_then(|value| value.to_str().ok());
    if asked.path.starts_with("/cdn/") {
        let secret = |name: &str| name == "authorization" || name.starts_with("x-amz-");
        let leaked = asked.headers.keys().any(|name| secret(name.as_str()));
        return leaked.then_some("a stranger has no business with your signature");
    }
    let authorization = header("authorization").unwrap_or_default();
    if !authorization.starts_with("AWS4-HMAC-SHA256 Credential=") {
        return Some("not signed");
    }
    let digest: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
    if header("x-amz-content-sha256") != Some(&digest) {
        return Some("the payload is not signed");
    }
    let chunked = ["transfer-encoding", "x-amz-trailer", "x-amz-sdk-checksum-algorithm"];
    if chunked.iter().any(|name| header(name).is_some()) || header("content-encoding").is_some() {
        return Some("trailing checksums and chunks are not supported");
    }
    if asked.method == Method::PUT {
        let md5 = base64::engine::general_purpose::STANDARD.encode(Md5::digest(body));
        if header("content-md5") != Some(&md5) || header("content-length").is_none() {
            return Some("no Content-MD5, or no length");
        }
    }
    None
}

fn answer(
    asked: &Asked,
    body: Bytes,
    address: SocketAddr,
    quirks: Quirks,
    kept: &mut Kept,
) -> Answer {
    if let Some(key) = asked.path.strip_prefix("/cdn/") {
        let (bytes, _) = &kept.objects[key];
        return made_of(200, [("etag", "\"of-the-cache\"".into())], bytes.clone());
    }
    let Some(rest) = asked.path.strip_prefix("/user/") else {
        return error(404, "NoSuchBucket", "no such user");
    };
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket != "bucket" {
        return error(404, "NoSuchBucket", "no such bucket");
    }
    if asked.headers.contains_key("x-amz-copy-source") {
        return error(501, "NotImplemented", "no copies");
    }
    let has = |name: &str| asked.query.contains_key(name);
    match asked.method {
        Method::GET if key.is_empty() && has("uploads") => list_uploads(asked, kept),
        Method::GET if key.is_empty() => list(asked, kept),
        Method::GET | Method::HEAD => get(asked, key, address, quirks, kept),
        Method::PUT if has("uploadId") => put_piece(asked, body, kept),
        Method::PUT => put(asked, key, body, quirks, kept),
        Method::POST => upload(asked, key, kept),
        Method::DELETE => {
            match asked.query.get("uploadId") {
                Some(id) => drop(kept.uploads.remove(id)),
                None => drop(kept.objects.remove(key)),
            }
            made_of(204, [], Bytes::new())
        }
        _ => error(405, "MethodNotAllowed", "no"),
    }
}

fn get(asked: &Asked, key: &str, address: SocketAddr, quirks: Quirks, kept: &Kept) -> Answer {
    let Some((bytes, note)) = kept.objects.get(key) else {
        let missing = error(404, "NoSuchKey", "no such key");
        return if asked.method == Method::HEAD { made_of(404, [], Bytes::new()) } else { missing };
    };
    let mut headers = Vec::new();
    if !quirks.no_etags {
        headers.push(("etag", etag(bytes)));
    }
    if let Some(note) = note {
        headers.push(("x-amz-meta-note", note.clone()));
    }
    if asked.method == Method::HEAD {
        headers.push(("content-length", bytes.len().to_string()));
        return made_of(200, headers, Bytes::new());
    }
    if quirks.redirects || quirks.redirects_blindly {
        let mut headers = if quirks.redirects_blindly { Vec::new() } else { headers };
        headers.push(("location", format!("http://{address}/cdn/{}", encode(key))));
        return made_of(302, headers, Bytes::new());
    }
    made_of(200, headers, bytes.clone())
}

fn put(asked: &Asked, key: &str, body: Bytes, quirks: Quirks, kept: &mut Kept) -> Answer {
    let header = |name: &str| asked.headers.get(name).and_then(|value| value.to_str().ok());
    let (if_match, if_none) = (header("if-match"), header("if-none-match"));
    if quirks.refuses_conditions && (if_match.is_some() || if_none.is_some()) {
        return error(501, "NotImplemented", "no conditions");
    }
    let there = kept.objects.get(key).map(|(bytes, _)| etag(bytes));
    let holds = match (if_match, if_none) {
        (Some(wanted), _) => there.as_deref() == Some(wanted),
        (_, Some(_)) => there.is_none(),
        _ => true,
    };
    if !holds && !quirks.ignores_conditions {
        return error(412, "PreconditionFailed", "no");
    }
    let tag = etag(&body);
    kept.objects.insert(key.into(), (body, header("x-amz-meta-note").map(str::to_owned)));
    if quirks.no_etags {
        made_of(200, [], Bytes::new())
    } else {
        made_of(200, [("etag", tag)], Bytes::new())
    }
}

fn upload(asked: &Asked, key: &str, kept: &mut Kept) -> Answer {
    let Some(id) = asked.query.get("uploadId") else {
        kept.begun += 1;
        let id = format!("upload-{}", kept.begun);
        kept.uploads.insert(id.clone(), (key.into(), BTreeMap::new()));
        return xml("InitiateMultipartUploadResult", &format!("<UploadId>{id}</UploadId>"));
    };
    let Some((_, pieces)) = kept.uploads.remove(id) else {
        return error(404, "NoSuchUpload", "no such upload");
    };
    let whole: Vec<u8> = pieces.into_values().flatten().collect();
    kept.objects.insert(key.into(), (whole.into(), None));
    xml("CompleteMultipartUploadResult", "<ETag>\"many-2\"</ETag>")
}

fn put_piece(asked: &Asked, body: Bytes, kept: &mut Kept) -> Answer {
    let Some((_, pieces)) = kept.uploads.get_mut(&asked.query["uploadId"]) else {
        return error(404, "NoSuchUpload", "no such upload");
    };
    let tag = etag(&body);
    pieces.insert(asked.query["partNumber"].parse().unwrap(), body);
    made_of(200, [("etag", tag)], Bytes::new())
}

fn list_uploads(asked: &Asked, kept: &Kept) -> Answer {
    let prefix = asked.query.get("prefix").map_or("", String::as_str);
    let begun = kept.uploads.iter().filter(|(_, (key, _))| key.starts_with(prefix));
    let text: String = begun
        .map(|(id, (key, _))| format!("<Upload><Key>{key}</Key><UploadId>{id}</UploadId></Upload>"))
        .collect();
    xml("ListMultipartUploadsResult", &text)
}

fn list(asked: &Asked, kept: &Kept) -> Answer {
    let query = |name: &str| asked.query.get(name).map_or("", String::as_str);
    if query("list-type") != "2" {
        return error(501, "NotImplemented", "only ListObjectsV2");
    }
    let (prefix, delimiter, token) =
        (query("prefix"), query("delimiter"), query("continuation-token"));
    let page = query("max-keys").parse().unwrap_or(PAGE_KEYS);
    let encoded = query("encoding-type") == "url";
    let shown = |key: &str| if encoded { encode(key) } else { escape(key) };
    let mut entries: Vec<(String, String)> = Vec::new();
    for (key, (bytes, _)) in kept.objects.iter().filter(|(key, _)| key.starts_with(prefix)) {
        let rest = &key[prefix.len()..];
        let entry = match rest.find('/').filter(|_| !delimiter.is_empty()) {
            Some(end) => {
                let folder = &key[..prefix.len() + end + 1];
                let text =
                    format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", shown(folder));
                (folder.to_owned(), text)
            }
            None => {
                let (key_shown, size) = (shown(key), bytes.len());
                (
                    key.clone(),
                    format!("<Contents><Key>{key_shown}</Key><Size>{size}</Size></Contents>"),
                )
            }
        };
        if entry.0.as_str() > token && entries.last().is_none_or(|last| last.0 != entry.0) {
            entries.push(entry);
        }
    }
    let truncated = entries.len() > page;
    entries.truncate(page);
    let mut text = format!("<IsTruncated>{truncated}</IsTruncated>");
    if truncated {
        text += &format!(
            "<NextContinuationToken>{}</NextContinuationToken>",
            escape(&entries[page - 1].0)
        );
    }
    if encoded {
        text += "<EncodingType>url</EncodingType>";
    }
    text.extend(entries.into_iter().map(|(_, text)| text));
    xml("ListBucketResult", &text)
}

fn etag(bytes: &[u8]) -> String {
    let digits: String = Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("\"{digits}\"")
}

fn made(canned: &Canned) -> io::Result<Answer> {
    if canned.status == LOST {
        return Err(io::Error::other("the answer is lost"));
    }
    Ok(made_of(canned.status, canned.headers.clone(), canned.body.clone().into()))
}

fn made_of(
    status: u16,
    headers: impl IntoIterator<Item = (&'static str, String)>,
    body: Bytes,
) -> Answer {
    let mut answer = Response::builder().status(StatusCode::from_u16(status).unwrap());
    for (name, value) in headers {
        answer = answer.header(name, value);
    }
    answer.body(Full::new(body)).unwrap()
}

fn xml(root: &str, text: &str) -> Answer {
    let space = "http://s3.amazonaws.com/doc/2006-03-01/";
    let body = format!("<?xml version=\"1.0\"?>\n<{root} xmlns=\"{space}\">{text}</{root}>");
    made_of(200, [("content-type", "application/xml".into())], body.into())
}

fn error(status: u16, code: &str, message: &str) -> Answer {
    let body = format!(
        "<?xml version=\"1.0\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    made_of(status, [], body.into())
}

fn escape(text: &str) -> String {
    // A control character has no way into XML: servers write it as if it had.
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    escaped.replace('\u{1}', "&#x1;")
}

fn encode(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    let one =
        |byte: u8| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(one).collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            other => other,
        });
    }
    String::from_utf8(bytes).unwrap()
}
