//! What a signer promises, checked by [`super::reference`] as a store would.

use http::Request;

use super::super::credentials::{Environment, Fixed};
use super::reference::verify;
use super::*;

const ID: &str = "AKIAIOSFODNN7EXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
const REGION: &str = "us-east-1";
/// SHA-256 of nothing.
const NOTHING: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn parts(method: &str, uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn fixed(token: Option<&str>) -> Signer {
    Signer::new(Arc::new(Fixed(Keys::lasting(ID, SECRET, token, "a test"))), REGION)
}

async fn signed(parts: &mut Parts) -> super::reference::Asked {
    fixed(None).sign(parts, NOTHING).await.unwrap();
    verify(parts, SECRET, REGION, SERVICE).unwrap()
}

/// The examples of «Signature Calculations for the Authorization Header: Transferring Payload in a Single Chunk».
#[test]
fn the_reference_agrees_with_the_published_examples() {
    const BODY: &str = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072";
    let host = "https://examplebucket.s3.amazonaws.com";
    let examples = [
        (
            parts("GET", &format!("{host}/test.txt"), &[("range", "bytes=0-9")]),
            "host;range;x-amz-content-sha256;x-amz-date",
            NOTHING,
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            parts(
                "PUT",
                &format!("{host}/test$file.text"),
                &[
                    ("date", "Fri, 24 May 2013 00:00:00 GMT"),
                    ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
                ],
            ),
            "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
            BODY,
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        (
            parts("GET", &format!("{host}/?lifecycle"), &[]),
            "host;x-amz-content-sha256;x-amz-date",
            NOTHING,
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        ),
        (
            parts("GET", &format!("{host}/?max-keys=2&prefix=J"), &[]),
            "host;x-amz-content-sha256;x-amz-date",
            NOTHING,
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ];
    for (mut parts, names, payload, signature) in examples {
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={ID}/20130524/us-east-1/s3/aws4_request, \
             SignedHeaders={names}, Signature={signature}"
        );
        for (name, value) in [
            ("host", "examplebucket.s3.amazonaws.com"),
            ("x-amz-date", "20130524T000000Z"),
            ("x-amz-content-sha256", payload),
            ("authorization", &authorization),
        ] {
            parts.headers.insert(name, value.parse().unwrap());
        }
        let asked = verify(&parts, SECRET, REGION, SERVICE).unwrap();
        assert_eq!(asked.access_key_id, ID);
        assert!(verify(&parts, "another secret", REGION, SERVICE).is_err());
    }
}

#[tokio::test]
async fn a_signature_is_right_whatever_the_key_and_the_query_are_made_of() {
    let keys = [
        "sessions/codex/a~2/x@0123abcd%20y/part-00001-0123abcd.jsonl",
        "with space/and+plus/and%25/and&=?#/and'quote()*!",
        "ünï/日本語/🦀/é",
        "-._~/$,;:@[]{}|\\^`\"<>",
    ];
    let host = "http://127.0.0.1:9000/bucket";
    for key in keys {
        let wire = percent(key, true);
        let value = percent(key, false);
        for uri in [
            format!("{host}/{wire}"),
            format!("{host}?delimiter=%2F&list-type=2&prefix={value}&start-after={value}"),
            format!("{host}/{wire}?uploadId={value}&partNumber=1"),
            format!("{host}/{wire}?uploads"),
        ] {
            let mut parts = parts("PUT", &uri, &[]);
            signed(&mut parts).await;
            assert_eq!(parts.uri.to_string(), uri, "what is sent is what was given");
        }
    }
}

/// As a careful client encodes: everything but what needs none.
fn percent(text: &str, path: bool) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c) || path && c == '/';
    let encoded = |c: char| {
        let mut bytes = [0; 4];
        c.encode_utf8(&mut bytes).bytes().map(|byte| format!("%{byte:02X}")).collect()
    };
    text.chars().map(|c| if plain(c) { c.to_string() } else { encoded(c) }).collect()
}

#[tokio::test]
async fn a_request_that_is_sent_again_is_signed_anew() {
    let mut parts = parts("PUT", "https://127.0.0.1/b/k", &[("x-amz-date", "20130524T000000Z")]);
    parts.headers.insert("x-amz-security-token", "of former keys".parse().unwrap());
    parts.headers.insert("authorization", "AWS4-HMAC-SHA256 of former keys".parse().unwrap());
    signed(&mut parts).await;
    assert_ne!(parts.headers["x-amz-date"], "20130524T000000Z");
    assert!(!parts.headers.contains_key("x-amz-security-token"));
    signed(&mut parts).await;
    assert_eq!(parts.headers.get_all("authorization").iter().count(), 1);
}

#[tokio::test]
async fn a_session_token_is_sent_and_signed_also_where_the_name_looks_like_a_directory_bucket() {
    for uri in
        ["http://127.0.0.1/b/k", "https://b--x-s3.s3express-use1-az4.us-east-1.amazonaws.com/k"]
    {
        let mut parts = parts("GET", uri, &[]);
        fixed(Some("the/token+==")).sign(&mut parts, NOTHING).await.unwrap();
        let asked = verify(&parts, SECRET, REGION, SERVICE).unwrap();
        assert_eq!(
            asked.signed_headers,
            "host;x-amz-content-sha256;x-amz-date;x-amz-security-token"
        );
        assert_eq!(parts.headers["x-amz-security-token"], "the/token+==");
        assert!(parts.headers["x-amz-security-token"].is_sensitive());
    }
}

#[tokio::test]
async fn headers_that_proxies_touch_are_sent_and_not_signed() {
    let mut parts = parts(
        "PUT",
        "http://127.0.0.1/b/k",
        &[
            ("user-agent", "tracecraftd/0"),
            ("content-length", "3"),
            ("content-md5", "rL0Y20zC+Fzt72VPzMSk2A=="),
            ("accept-encoding", "identity"),
            ("accept-encoding", "gzip"),
            ("x-amz-meta-tracecraft", "0-17 one two"),
        ],
    );
    let asked = signed(&mut parts).await;
    assert_eq!(
        asked.signed_headers,
        "content-md5;host;x-amz-content-sha256;x-amz-date;x-amz-meta-tracecraft"
    );
    assert_eq!(parts.headers["user-agent"], "tracecraftd/0");
    assert_eq!(parts.headers["content-length"], "3");
    assert_eq!(parts.headers.get_all("accept-encoding").iter().count(), 2);
}

#[tokio::test]
async fn a_header_that_stores_would_read_differently_is_refused() {
    let mut parts = parts("PUT", "http://127.0.0.1/b/k", &[("x-amz-meta-tracecraft", "one  two")]);
    let error = fixed(None).sign(&mut parts, NOTHING).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot sign the request: a header has two spaces in a row");
}

#[tokio::test]
async fn keys_of_the_environment_sign_and_half_a_pair_is_named() {
    let environment = |vars: &[(&str, &str)]| {
        let vars = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Environment::new(vars, None)
    };
    let whole = environment(&[
        ("AWS_ACCESS_KEY_ID", ID),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_SESSION_TOKEN", "token"),
        ("PATH", "/bin"),
    ]);
    let keys = whole.aws_keys().unwrap().unwrap();
    assert_eq!((keys.access_key_id.as_str(), keys.session_token.as_deref()), (ID, Some("token")));
    assert_eq!(
        format!("{keys:?}"),
        "Keys { origin: \"the environment (AWS_ACCESS_KEY_ID)\", expires: None, .. }"
    );
    let shown = format!("{whole:?}");
    assert!(!shown.contains(SECRET) && !shown.contains(ID) && !shown.contains("PATH"), "{shown}");
    let half = environment(&[("AWS_ACCESS_KEY_ID", ID), ("AWS_SECRET_ACCESS_KEY", "")]);
    assert_eq!(
        half.aws_keys().unwrap_err().to_string(),
        "the environment has AWS_ACCESS_KEY_ID, but not AWS_SECRET_ACCESS_KEY: set both or none"
    );
    assert_eq!(
        whole.hugging_face_keys().unwrap_err().to_string(),
        "found no credentials: set HF_ACCESS_KEY_ID and HF_SECRET_ACCESS_KEY"
    );
    let face = environment(&[("HF_ACCESS_KEY_ID", "HFAK1"), ("HF_SECRET_ACCESS_KEY", "s")]);
    assert_eq!(face.hugging_face_keys().unwrap().access_key_id, "HFAK1");
    assert_eq!(face.aws_keys(), Ok(None));
}
