//! Keys that the surroundings of a process hand out: of its container (ECS, EKS), or of the machine (EC2, IMDSv2).
//!
//! Knows their variables and which addresses are theirs; the calls are the library's.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use reqsign_aws_v4::{ECSCredentialProvider, IMDSv2CredentialProvider};
use reqsign_core::ProvideCredential;

use super::ambient::Tools;
use super::outlet::{Base, Outlet, Plain, Wire};
use super::{CredentialsError, Environment, Keys};

/// Longest wait for a container's endpoint, which is on the same machine.
const CONTAINER_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait for a machine's. Where there is none nobody refuses: everybody else's start waits this long.
const INSTANCE_TIMEOUT: Duration = Duration::from_secs(2);

/// The host that relative addresses of containers are meant for.
const CONTAINER_HOST: &str = "http://169.254.170.2";

const INSTANCE_HOST: &str = "http://169.254.169.254";
const INSTANCE_HOST_IPV6: &str = "http://[fd00:ec2::254]";

const RELATIVE_URI: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
const FULL_URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
const TOKEN: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";
const TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
const INSTANCE_ENDPOINT: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
const INSTANCE_ENDPOINT_MODE: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE";
const INSTANCE_DISABLED: &str = "AWS_EC2_METADATA_DISABLED";

/// The keys of the container. `None`: no variable says that there is one.
pub(super) async fn container(
    environment: &Environment,
    tools: &Tools,
) -> Result<Option<Keys>, CredentialsError> {
    let (setting, url) = match (environment.var(RELATIVE_URI), environment.var(FULL_URI)) {
        (Some(path), _) => (RELATIVE_URI, format!("{CONTAINER_HOST}{path}")),
        (None, Some(url)) => (FULL_URI, url.to_owned()),
        (None, None) => return Ok(None),
    };
    Base::parse(setting, &url, Plain::Container)?;
    let mut provider = ECSCredentialProvider::new().with_endpoint(url);
    // A file is there because its token changes.
    let token = match environment.var(TOKEN_FILE) {
        Some(path) => Some(tools.text_file(Path::new(path)).await?),
        None => environment.var(TOKEN).map(str::to_owned),
    };
    if let Some(token) = token {
        if http::HeaderValue::from_str(&token).is_err() {
            let setting = format!("{TOKEN} or its file");
            return Err(CredentialsError::Endpoint {
                setting,
                flaw: "has more than one line".into(),
            });
        }
        provider = provider.with_auth_token(token);
    }
    let outlet =
        Outlet::new(&tools.wire, "the container's credential service", None, CONTAINER_TIMEOUT);
    let answer = provider.provide_credential(&outlet.context()).await;
    let keys = answer.map_err(|error| outlet.failure(&error))?.ok_or_else(|| outlet.malformed())?;
    Ok(Some(Keys::of_library(keys, "the container's credential service".into())))
}

/// What was found at the machine's metadata service.
pub(super) enum Instance {
    Keys(Keys),
    /// Nothing that anybody promised. In words, for the list of what was looked at.
    Nothing(String),
}

/// The keys of the machine's role. That nobody answers is an error only if `expected` or if the user named an endpoint.
pub(super) async fn instance(
    environment: &Environment,
    wire: &Arc<dyn Wire>,
    expected: bool,
) -> Result<Instance, CredentialsError> {
    if environment.is_true(INSTANCE_DISABLED) {
        return Ok(Instance::Nothing(format!("instance metadata (off by {INSTANCE_DISABLED})")));
    }
    let named = environment.var(INSTANCE_ENDPOINT);
    let ipv6 = environment
        .var(INSTANCE_ENDPOINT_MODE)
        .is_some_and(|mode| mode.eq_ignore_ascii_case("ipv6"));
    let url = named.unwrap_or(if ipv6 { INSTANCE_HOST_IPV6 } else { INSTANCE_HOST });
    let url = url.trim_end_matches('/');
    // It speaks plain text wherever it is.
    Base::parse(INSTANCE_ENDPOINT, url, Plain::Anywhere)?;
    let outlet = Outlet::new(wire, "the instance metadata service", None, INSTANCE_TIMEOUT);
    let provider = IMDSv2CredentialProvider::new().with_endpoint(url);
    let answer = provider.provide_credential(&outlet.context()).await;
    match answer.map_err(|error| outlet.failure(&error)) {
        Ok(Some(keys)) => Ok(Instance::Keys(Keys::of_library(
            keys,
            format!("the instance metadata service at {url}"),
        ))),
        Ok(None) => Err(outlet.malformed()),
        Err(error) if expected || named.is_some() => Err(error),
        Err(CredentialsError::Away { .. }) => {
            Ok(Instance::Nothing(format!("instance metadata ({url} does not answer)")))
        }
        Err(CredentialsError::Refused { status: 404, .. }) => {
            Ok(Instance::Nothing(format!("instance metadata ({url} knows no role)")))
        }
        Err(error) => Err(error),
    }
}
