//! The grammar of store URLs and endpoints.
//!
//! Knows text and what is wrong with it; refuses to know stores. No message repeats a credential that somebody put into a URL.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::values::{Bad, nearest};
use crate::paths::absolute;

/// Where objects go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoreUrl {
    /// A directory that is bucket and project in one.
    File {
        /// Absolute, without a trailing slash.
        dir: PathBuf,
    },
    /// A bucket behind the S3 protocol.
    S3 {
        /// The bucket's name.
        bucket: String,
        /// What all keys begin with; may have slashes in it.
        project: String,
    },
    /// A bucket of Hugging Face.
    Hf {
        /// Whose bucket it is: a user or an organisation.
        user: String,
        /// The bucket's name.
        bucket: String,
        /// What all keys begin with; may have slashes in it.
        project: String,
    },
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreUrl::File { dir } => f.write_str(&file_url(dir)),
            StoreUrl::S3 { bucket, project } => write!(f, "s3://{bucket}/{project}"),
            StoreUrl::Hf { user, bucket, project } => write!(f, "hf://{user}/{bucket}/{project}"),
        }
    }
}

/// Schemes of the interface.
const SCHEMES: [&str; 3] = ["file", "s3", "hf"];

/// Longest scheme that a message repeats: what is longer is no scheme, and may be half of a credential.
const SCHEME_SHOWN_MAX: usize = 12;

impl StoreUrl {
    /// Parses a store URL. `home` is only for the hint to one who wrote a path with a tilde.
    pub(crate) fn parse(text: &str, home: &Path) -> Result<StoreUrl, Bad> {
        if has_credentials(text) {
            return Err(Bad::new(
                "a store URL must not carry credentials",
                "take them out of the URL, and replace them if others could read it",
            ));
        }
        if text.is_empty() {
            return Err(Bad::new("is empty", "write for example file:///absolute/dir"));
        }
        let Some((scheme, rest)) = text.split_once(':') else {
            let path = match text.strip_prefix("~/") {
                Some(below) => home.join(below),
                None => absolute(Path::new(text)),
            };
            return Err(Bad::new("is not a URL", format!("did you mean {}?", file_url(&path))));
        };
        match (scheme, rest.strip_prefix("//")) {
            ("file", Some(path)) => file_dir(path, home).map(|dir| StoreUrl::File { dir }),
            ("file", None) => {
                let path = if rest.starts_with('/') { rest } else { "/absolute/dir" };
                Err(Bad::new("lacks the two slashes", format!("did you mean file://{path}?")))
            }
            ("s3", Some(rest)) => s3(rest),
            ("hf", Some(rest)) => hf(rest),
            _ => Err(unknown_scheme(scheme)),
        }
    }
}

fn unknown_scheme(scheme: &str) -> Bad {
    let forms = "file:///absolute/dir, s3://bucket/project or hf://user/bucket/project";
    let hint = match nearest(scheme, &SCHEMES) {
        Some(meant) => format!("did you mean {meant}://? A store URL is {forms}"),
        None => format!("write {forms}"),
    };
    let showable = scheme.len() <= SCHEME_SHOWN_MAX
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let problem = if showable {
        format!("does not begin with a known scheme and two slashes, but with \"{scheme}:\"")
    } else {
        "does not begin with a known scheme and two slashes".to_owned()
    };
    Bad::new(problem, hint)
}

/// Whether a URL, well-formed or not, has `user@` or `user:password@` where an authority would be.
fn has_credentials(text: &str) -> bool {
    let (scheme, rest) = text.split_once(':').unwrap_or(("", text));
    // A path of a file URL may have both signs in a directory's name.
    if scheme == "file" && (rest.starts_with("///") || !rest.starts_with("//")) {
        return false;
    }
    let authority = if scheme.is_empty() { "" } else { rest.trim_start_matches('/') };
    let Some(at) = authority.find('@') else { return false };
    // A secret key may contain slashes, so that a colon before the sign counts wherever the sign is.
    let before = &authority[..at];
    before.contains(':') || !before.contains('/')
}

/// Longest project: with it, every key of ours still fits into the 1,024 bytes of S3.
const PROJECT_BYTES_MAX: usize = 255;

/// Lengths that S3 allows for the name of a bucket.
const BUCKET_BYTES: std::ops::RangeInclusive<usize> = 3..=63;

fn s3(rest: &str) -> Result<StoreUrl, Bad> {
    let example = "write for example s3://my-bucket/agents";
    let (bucket, project) = rest.split_once('/').unwrap_or((rest, ""));
    let bucket = name(bucket, "bucket", example)?;
    if !BUCKET_BYTES.contains(&bucket.len()) {
        return Err(Bad::new("has a bucket whose name has not 3 to 63 characters", example));
    }
    let hint = format!("write for example s3://{bucket}/agents");
    Ok(StoreUrl::S3 { project: project_of(project, hint)?, bucket })
}

fn hf(rest: &str) -> Result<StoreUrl, Bad> {
    let example = "write for example hf://user/my-bucket/agents";
    if let Some(own) = rest.strip_prefix("buckets/")
        && own.split('/').filter(|name| !name.is_empty()).count() >= 2
    {
        // The way in which Hugging Face's own tools write it.
        let hint = "leave out \"buckets/\": hf://user/bucket/project";
        return Err(Bad::new("begins with \"buckets/\"", hint));
    }
    let (user, rest) = rest.split_once('/').unwrap_or((rest, ""));
    let (bucket, project) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, bucket) = (name(user, "user", example)?, name(bucket, "bucket", example)?);
    let hint = format!("write for example hf://{user}/{bucket}/agents");
    Ok(StoreUrl::Hf { project: project_of(project, hint)?, user, bucket })
}

/// A name in a URL. What other characters it has is not shown, since nobody knows what it is.
fn name(text: &str, what: &str, example: &str) -> Result<String, Bad> {
    if text.is_empty() {
        return Err(Bad::new(format!("names no {what}"), example));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if !text.chars().all(fits) || !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        let problem =
            format!("has a {what} whose name is not of letters, digits, dots and hyphens");
        return Err(Bad::new(problem, example));
    }
    Ok(text.to_owned())
}

fn project_of(text: &str, hint: String) -> Result<String, Bad> {
    let project = text.strip_suffix('/').unwrap_or(text);
    if project.is_empty() {
        return Err(Bad::new("names no project", hint));
    }
    let bad = |problem: &str| Err(Bad::new(problem, hint.clone()));
    if project.len() > PROJECT_BYTES_MAX {
        return bad("has a project of more than 255 bytes");
    }
    if project.chars().any(|c| c.is_control() || c.is_whitespace() || "?#%\\".contains(c)) {
        return bad("has a project with a space or one of ?#%\\");
    }
    if project.split('/').any(|part| part.is_empty() || part.starts_with('.')) {
        return bad("has a project with an empty name, or one that begins with a dot");
    }
    Ok(project.to_owned())
}

/// The address of a service that speaks S3: `https://host:port/path`, without a slash at the end.
pub(crate) fn endpoint(text: &str) -> Result<String, Bad> {
    let example = "write for example https://minio.example:9000";
    let Some((scheme, rest)) = text.split_once("://") else {
        let host = text.split(['/', ':']).next().unwrap_or_default();
        let plain = !host.is_empty() && !text.contains('@') && name(host, "host", example).is_ok();
        let hint = if plain { format!("did you mean https://{text}?") } else { example.to_owned() };
        return Err(Bad::new("is not a URL", hint));
    };
    if rest.contains('@') {
        return Err(Bad::new(
            "an endpoint must not carry credentials",
            "take them out of the URL, and replace them if others could read it",
        ));
    }
    if !matches!(scheme, "http" | "https") {
        return Err(Bad::new("is not an https:// URL", example));
    }
    let (host, _) = rest.split_once('/').unwrap_or((rest, ""));
    if host.is_empty() || rest.contains(['?', '#']) || text.contains(char::is_whitespace) {
        return Err(Bad::new("is not the address of a server", example));
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// The name of a region, which becomes part of a host name.
pub(crate) fn region(text: &str) -> Result<String, Bad> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if text.is_empty() || !text.chars().all(fits) {
        return Err(Bad::new("is not the name of a region", "write for example \"eu-west-1\""));
    }
    Ok(text.to_owned())
}

/// The name of a profile.
pub(crate) fn profile(text: &str) -> Result<String, Bad> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(Bad::new("is not the name of a profile", "write for example \"backup\""));
    }
    Ok(text.to_owned())
}

fn file_dir(rest: &str, home: &Path) -> Result<PathBuf, Bad> {
    if !rest.starts_with('/') {
        let hint = match rest.strip_prefix("~/") {
            Some(below) => format!("did you mean {}?", file_url(&home.join(below))),
            None => format!("did you mean file:///{rest}? A directory needs three slashes"),
        };
        return Err(Bad::new("does not name an absolute directory", hint));
    }
    if let Some(sign) = rest.chars().find(|c| matches!(c, '?' | '#')) {
        let hint = format!("write %{:02X} if the directory's name has one", u32::from(sign));
        return Err(Bad::new(format!("has a \"{sign}\""), hint));
    }
    let bytes = percent_decode(rest.as_bytes()).filter(|bytes| !bytes.contains(&0));
    let bytes = bytes.ok_or_else(|| {
        Bad::new("has a % that two hexadecimal digits do not follow", "write %25 for a %")
    })?;
    // Rebuilt from its components, so that one directory has one identity: "/a//b/" is "/a/b".
    let dir: PathBuf = Path::new(&OsString::from_vec(bytes)).components().collect();
    if dir.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(Bad::new("has \"..\" in its path", "write the directory's path without it"));
    }
    if dir.parent().is_none() {
        return Err(Bad::new("names the root directory", "name a directory below it"));
    }
    Ok(dir)
}

fn percent_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter().copied();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (high, low) = (digit(rest.next()?)?, digit(rest.next()?)?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    Some(bytes)
}

/// A directory as a URL that parses to the same directory.
fn file_url(dir: &Path) -> String {
    let mut url = String::from("file://");
    for &byte in dir.as_os_str().as_bytes() {
        match byte {
            b'%' | b'?' | b'#' | 0..=b' ' | 0x7f.. => url.push_str(&format!("%{byte:02X}")),
            _ => url.push(char::from(byte)),
        }
    }
    url
}
