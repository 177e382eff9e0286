//! A second reading of AWS signature version 4, for tests: what a store computes to see whether a signature is right.
//!
//! Written from the published description and held to the published examples; refuses to use the code that signs.

use http::request::Parts;
use reqsign_core::hash::{hex_hmac_sha256, hex_sha256, hmac_sha256};

/// Who asked, as a store finds out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The key that it was signed with.
    pub(crate) access_key_id: String,
    /// The headers that were signed, joined by `;`.
    pub(crate) signed_headers: String,
}

/// Checks the signature of a request as a store does. `Err` says what is wrong.
pub(crate) fn verify(
    parts: &Parts,
    secret: &str,
    region: &str,
    service: &str,
) -> Result<Asked, String> {
    let header = |name: &str| {
        let value = parts.headers.get(name).ok_or(format!("no {name}"))?;
        value.to_str().map_err(|_| format!("{name} is no text"))
    };
    let authorization = header("authorization")?;
    let rest = authorization.strip_prefix("AWS4-HMAC-SHA256 ").ok_or("another scheme")?;
    let field = |name: &str| {
        let found = rest.split(", ").find_map(|field| field.strip_prefix(name)?.strip_prefix('='));
        found.ok_or(format!("no {name}"))
    };
    let (id, scope) = field("Credential")?.split_once('/').ok_or("no scope")?;
    let date = header("x-amz-date")?;
    let day = date.split('T').next().unwrap_or_default();
    if scope != format!("{day}/{region}/{service}/aws4_request") {
        return Err(format!("another scope: {scope}"));
    }
    let signed = field("SignedHeaders")?;
    let canonical = canonical(parts, signed, header("x-amz-content-sha256")?)?;
    let to_sign =
        format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex_sha256(canonical.as_bytes()));
    let mut key = format!("AWS4{secret}").into_bytes();
    for word in scope.split('/') {
        key = hmac_sha256(&key, word.as_bytes());
    }
    if field("Signature")? != hex_hmac_sha256(&key, to_sign.as_bytes()) {
        return Err(format!("the signature is not that of {canonical:?}"));
    }
    Ok(Asked { access_key_id: id.to_owned(), signed_headers: signed.to_owned() })
}

fn canonical(parts: &Parts, signed: &str, payload: &str) -> Result<String, String> {
    let mut text = format!("{}\n{}\n", parts.method, encode(&decode(parts.uri.path()), true));
    let query = parts.uri.query().unwrap_or_default();
    let mut pairs: Vec<(String, String)> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        // A plus sign in a query is a space to whoever reads a query as a form, as stores do.
        .map(|(name, value)| (name.replace('+', " "), value.replace('+', " ")))
        .map(|(name, value)| (encode(&decode(&name), false), encode(&decode(&value), false)))
        .collect();
    pairs.sort();
    let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    text += &format!("{}\n", pairs.join("&"));
    for name in signed.split(';') {
        let value = parts.headers.get(name).ok_or(format!("{name} is signed and not there"))?;
        let words = value.to_str().map_err(|_| format!("{name} is no text"))?.split_whitespace();
        text += &format!("{name}:{}\n", words.collect::<Vec<_>>().join(" "));
    }
    Ok(text + &format!("\n{signed}\n{payload}"))
}

fn decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = (*first == b'%').then(|| after.get(..2)).flatten();
        let hex = hex.and_then(|hex| u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(hex.unwrap_or(*first));
        rest = if hex.is_some() { &after[2..] } else { after };
    }
    bytes
}

fn encode(bytes: &[u8], path: bool) -> String {
    let mut text = String::new();
    for &byte in bytes {
        let plain = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || path && byte == b'/';
        if plain { text.push(char::from(byte)) } else { text += &format!("%{byte:02X}") }
    }
    text
}
