//! Keys by a login in the browser (`aws sso login`, IAM Identity Center).
//!
//! Knows the token that AWS's tools leave in `~/.aws/sso/cache`, how it is renewed, and how keys are got with it. A token that
//! was renewed is put back there, as the tools do, or else they would find one that is of no use any more.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use jiff::{SignedDuration, Timestamp};
use reqsign_core::hash::hex_sha1;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tracing::warn;

use super::ambient::Ambient;
use super::outlet::{Base, Outlet};
use super::profiles::{Profile, Profiles};
use super::{CredentialsError, Keys};

/// Longest wait for an answer.
const SSO_TIMEOUT: Duration = Duration::from_secs(10);

/// A token is renewed this long before it expires, as AWS's tools do.
const RENEW_BEFORE: SignedDuration = SignedDuration::from_mins(5);

/// A token that was renewed and could not be put back; its file, and what would be in it.
pub(super) type Kept = Mutex<Option<(PathBuf, Token)>>;

/// What a profile says about its login.
struct Login {
    /// What the file of the token is named after.
    name: String,
    region: String,
    account_id: String,
    role_name: String,
}

/// The content of a token's file. Fields that are not known here are kept.
#[derive(Clone)]
pub(super) struct Token(Map<String, Value>);

/// Nothing: all of it is secret.
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

/// The keys that the login of a profile gives.
pub(super) async fn keys(
    ambient: &Ambient,
    profiles: &Profiles,
    profile: Profile<'_>,
) -> Result<Keys, CredentialsError> {
    let login = Login::of(profiles, profile)?;
    let over = || CredentialsError::Login { profile: profile.name.escape_debug().to_string() };
    let path = ambient.environment.in_home(".aws/sso/cache").ok_or_else(over)?;
    let path = path.join(format!("{}.json", hex_sha1(login.name.as_bytes())));
    let now = ambient.tools.clock.now();
    let mut token = found(ambient, &path).await?.ok_or_else(over)?;
    let is_due = token.expires() < now + RENEW_BEFORE;
    if is_due && !ambient.renews_logins {
        if token.expires() <= now {
            let profile = profile.name.escape_debug().to_string();
            let is_over = !token.is_renewable(now);
            return Err(if is_over { over() } else { CredentialsError::Due { profile } });
        }
    } else if is_due {
        match renewed(ambient, profiles, profile, &login, &token, now).await {
            Ok(Some(new)) => {
                keep(ambient, &path, &new).await;
                token = new;
            }
            // It is good for a while yet; by then the endpoint may answer again.
            _ if now < token.expires() => {}
            Err(error) if error.is_temporary() => return Err(error),
            _ => return Err(over()),
        }
    }
    let base = ambient.base(profiles, Some(profile), "AWS_ENDPOINT_URL_SSO", "sso")?;
    let base = base.map_or_else(|| login.usual("portal.sso"), Ok)?;
    let outlet = Outlet::new(&ambient.tools.wire, "the login service (SSO)", None, SSO_TIMEOUT);
    match outlet.ask(login.question(&base, &token)?).await {
        Ok(answer) => read_keys(&answer, profile).ok_or_else(|| outlet.malformed()),
        // The token was taken back: logged out elsewhere.
        Err(CredentialsError::Refused { status: 401, .. }) => Err(over()),
        Err(error) => Err(error),
    }
}

impl Login {
    fn of(profiles: &Profiles, profile: Profile<'_>) -> Result<Login, CredentialsError> {
        let session = profile.section.get("sso_session");
        let (name, region) = match session {
            Some(name) => {
                let section = profiles.session(name).ok_or_else(|| {
                    profile
                        .flaw(format!("names sso_session {name:?}, and there is no such section"))
                })?;
                let region = section.get("sso_region").map(str::to_owned);
                let flaw =
                    || profile.flaw(format!("names sso_session {name:?}, which has no sso_region"));
                (name.to_owned(), region.ok_or_else(flaw)?)
            }
            None => (
                profile.need("sso_start_url", "a setting of SSO")?,
                profile.need("sso_region", "a setting of SSO")?,
            ),
        };
        if !region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(profile.flaw("has an sso_region that is none"));
        }
        let account_id = profile.need("sso_account_id", "a setting of SSO")?;
        let role_name = profile.need("sso_role_name", "a setting of SSO")?;
        Ok(Login { name, region, account_id, role_name })
    }

    /// The endpoint of a service if the user named no other.
    fn usual(&self, service: &str) -> Result<Base, CredentialsError> {
        let suffix =
            if self.region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let url = format!("https://{service}.{}.{suffix}", self.region);
        Base::parse("sso_region", &url, super::outlet::Plain::Loopback)
    }

    fn question(&self, base: &Base, token: &Token) -> Result<Request<Bytes>, CredentialsError> {
        let role = percent_encode(&self.role_name);
        let account = percent_encode(&self.account_id);
        let path = format!("/federation/credentials?role_name={role}&account_id={account}");
        let bad = |_| CredentialsError::Unsignable("the stored login token is none".into());
        Request::builder()
            .uri(base.join(&path).map_err(bad)?)
            .header("x-amz-sso_bearer_token", token.text("accessToken"))
            .body(Bytes::new())
            .map_err(bad)
    }
}

/// What a token needs to be renewed.
const RENEWAL: [&str; 3] = ["clientId", "clientSecret", "refreshToken"];

impl Token {
    /// Whether another one can be had for it without a person.
    fn is_renewable(&self, now: Timestamp) -> bool {
        let registered = self.time("registrationExpiresAt").is_none_or(|until| now < until);
        registered && RENEWAL.iter().all(|name| !self.text(name).is_empty())
    }

    fn text(&self, name: &str) -> &str {
        self.0.get(name).and_then(Value::as_str).unwrap_or_default()
    }

    /// When it expires; if it does not say, it has.
    fn expires(&self) -> Timestamp {
        self.time("expiresAt").unwrap_or(Timestamp::MIN)
    }

    fn time(&self, name: &str) -> Option<Timestamp> {
        // Older tools wrote the zone in letters.
        self.text(name).replace("UTC", "Z").parse().ok()
    }
}

/// The token of the last login: the one in the file, or one that was renewed here and could not be put there.
async fn found(ambient: &Ambient, path: &Path) -> Result<Option<Token>, CredentialsError> {
    let in_file = match ambient.tools.text_file(path).await {
        Ok(text) => serde_json::from_str(&text).ok().map(Token),
        Err(CredentialsError::Unreadable { missing: true, .. }) => None,
        Err(error) => return Err(error),
    };
    let kept = ambient.kept.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = kept.as_ref().filter(|(of, _)| of == path).map(|(_, token)| token.clone());
    Ok([in_file, kept].into_iter().flatten().max_by_key(Token::expires))
}

/// A new token for an old one. `None`: this login has none to give.
async fn renewed(
    ambient: &Ambient,
    profiles: &Profiles,
    profile: Profile<'_>,
    login: &Login,
    token: &Token,
    now: Timestamp,
) -> Result<Option<Token>, CredentialsError> {
    let parts = RENEWAL.map(|name| token.text(name));
    let [id, secret, refresh] = parts;
    if !token.is_renewable(now) {
        return Ok(None);
    }
    let base = ambient.base(profiles, Some(profile), "AWS_ENDPOINT_URL_SSO_OIDC", "sso_oidc")?;
    let base = base.map_or_else(|| login.usual("oidc"), Ok)?;
    let body = json!({
        "clientId": id, "clientSecret": secret, "refreshToken": refresh, "grantType": "refresh_token",
    });
    let bad = |_| CredentialsError::Unsignable("the stored login token is none".into());
    let request = Request::builder()
        .method(Method::POST)
        .uri(base.join("/token").map_err(bad)?)
        .header("content-type", "application/json")
        .body(body.to_string().into())
        .map_err(bad)?;
    let outlet =
        Outlet::new(&ambient.tools.wire, "the login service (SSO OIDC)", None, SSO_TIMEOUT);
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        access_token: String,
        expires_in: i64,
        refresh_token: Option<String>,
    }
    let answer = outlet.ask(request).await?;
    let answer: Answer = serde_json::from_slice(&answer).map_err(|_| outlet.malformed())?;
    let expires = now
        .checked_add(SignedDuration::from_secs(answer.expires_in))
        .map_err(|_| outlet.malformed())?;
    let mut new = token.clone();
    new.0.insert("accessToken".into(), answer.access_token.into());
    new.0.insert("expiresAt".into(), format!("{:.0}", expires).into());
    if let Some(refresh) = answer.refresh_token {
        new.0.insert("refreshToken".into(), refresh.into());
    }
    Ok(Some(new))
}

/// Puts a renewed token where it came from. Where that cannot be done it is kept in memory.
async fn keep(ambient: &Ambient, path: &Path, token: &Token) {
    let (disk, file) = (ambient.tools.disk.clone(), path.to_owned());
    let bytes = Value::Object(token.0.clone()).to_string().into_bytes();
    let put = ambient.tools.blocking.run(move || disk.replace(&file, &bytes)).await;
    let mut kept = ambient.kept.lock().unwrap_or_else(PoisonError::into_inner);
    *kept = match put {
        Ok(()) => None,
        Err(error) => {
            warn!(%error, path = %path.display(), "a renewed login could not be stored: other tools may have to log in again");
            Some((path.to_owned(), token.clone()))
        }
    };
}

fn read_keys(answer: &[u8], profile: Profile<'_>) -> Option<Keys> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Answer {
        role_credentials: RoleCredentials,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct RoleCredentials {
        access_key_id: String,
        secret_access_key: String,
        session_token: String,
        /// In milliseconds.
        expiration: i64,
    }
    let Answer { role_credentials: keys } = serde_json::from_slice(answer).ok()?;
    Some(Keys {
        access_key_id: keys.access_key_id,
        secret_access_key: keys.secret_access_key,
        session_token: Some(keys.session_token),
        expires: Some(Timestamp::from_millisecond(keys.expiration).ok()?),
        origin: format!("the profile {:?} (SSO)", profile.name),
    })
}

fn percent_encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let encode = |byte| if plain(byte) { char::from(byte).into() } else { format!("%{byte:02X}") };
    text.bytes().map(encode).collect()
}
