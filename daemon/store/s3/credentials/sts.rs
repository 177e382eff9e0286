//! Keys of a role, from the security token service (STS): with other keys, or with a web identity.
//!
//! Knows roles; the two calls and their answers are the library's. Refuses to know profiles.

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use reqsign_aws_v4::{
    AssumeRoleCredentialProvider, AssumeRoleWithWebIdentityCredentialProvider, Credential,
    RequestSigner, StaticCredentialProvider,
};
use reqsign_core::{Context, Error, ProvideCredential, SignRequest, Signer};

use super::outlet::{Base, Outlet, Wire};
use super::{CredentialsError, Keys};

/// Longest wait for an answer.
const STS_TIMEOUT: Duration = Duration::from_secs(10);

/// What sessions are called in the account's records if nobody says otherwise.
const SESSION_NAME: &str = "tracecraft";

/// Who is asked, and how.
#[derive(Debug, Clone)]
pub(super) struct Sts {
    pub(super) wire: Arc<dyn Wire>,
    pub(super) region: String,
    /// An endpoint that the user named.
    pub(super) base: Option<Base>,
}

/// A role that is wanted.
#[derive(Debug, Clone, Default)]
pub(super) struct Role {
    pub(super) arn: String,
    pub(super) session_name: Option<String>,
    pub(super) external_id: Option<String>,
    pub(super) duration_seconds: Option<u32>,
}

impl Sts {
    /// The keys of a role that the owner of `keys` may assume.
    pub(super) async fn assume(&self, role: &Role, keys: Keys) -> Result<Keys, CredentialsError> {
        let outlet = self.outlet();
        let source = StaticCredentialProvider::new(&keys.access_key_id, &keys.secret_access_key);
        let source = match &keys.session_token {
            Some(token) => source.with_session_token(token),
            None => source,
        };
        let signer = StsSigner {
            inner: RequestSigner::new("sts", &self.region).with_standard_session_token(),
            base: self.base.clone(),
        };
        let signer = Signer::new(outlet.context(), source, signer);
        let mut provider = AssumeRoleCredentialProvider::new(role.arn.clone(), signer)
            .with_role_session_name(role.session_name())
            .with_region(self.region.clone())
            .with_regional_sts_endpoint();
        if let Some(id) = &role.external_id {
            provider = provider.with_external_id(id.clone());
        }
        if let Some(seconds) = role.duration_seconds {
            provider = provider.with_duration_seconds(seconds);
        }
        let answer = provider.provide_credential(&outlet.context()).await;
        role.keys(&outlet, answer)
    }

    /// The keys of a role that whoever has this token may assume.
    pub(super) async fn assume_with_token(
        &self,
        role: &Role,
        token: &str,
    ) -> Result<Keys, CredentialsError> {
        let outlet = self.outlet();
        let mut provider = AssumeRoleWithWebIdentityCredentialProvider::new()
            .with_role_arn(role.arn.clone())
            .with_subject_token(token)
            .with_role_session_name(role.session_name())
            .with_region(self.region.clone())
            .with_regional_sts_endpoint();
        if let Some(seconds) = role.duration_seconds {
            provider = provider.with_duration_seconds(seconds);
        }
        let answer = provider.provide_credential(&outlet.context()).await;
        role.keys(&outlet, answer)
    }

    fn outlet(&self) -> Outlet {
        Outlet::new(&self.wire, "the token service (STS)", self.base.clone(), STS_TIMEOUT)
    }
}

impl Role {
    fn session_name(&self) -> String {
        self.session_name.clone().unwrap_or_else(|| SESSION_NAME.to_owned())
    }

    fn keys(
        &self,
        outlet: &Outlet,
        answer: Result<Option<Credential>, Error>,
    ) -> Result<Keys, CredentialsError> {
        let keys = answer.map_err(|error| outlet.failure(&error))?;
        let keys = keys.ok_or_else(|| outlet.malformed())?;
        Ok(Keys::of_library(keys, format!("the role {}", self.arn)))
    }
}

/// Signs for the endpoint that is asked in the end: the host is part of what is signed, and the library knows only AWS's own.
#[derive(Debug)]
struct StsSigner {
    inner: RequestSigner,
    base: Option<Base>,
}

impl SignRequest for StsSigner {
    type Credential = Credential;

    async fn sign_request(
        &self,
        context: &Context,
        request: &mut Parts,
        credential: Option<&Credential>,
        expires_in: Option<Duration>,
    ) -> reqsign_core::Result<()> {
        if let Some(base) = &self.base {
            request.uri = base.with_path_of(&request.uri)?;
        }
        self.inner.sign_request(context, request, credential, expires_in).await
    }
}
