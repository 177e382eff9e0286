//! Signs requests. A first version with fixed keys.

use http::request::Parts;
use reqsign_aws_v4::{Credential, RequestSigner};
use reqsign_core::{Context, SignRequest};

#[derive(Debug, thiserror::Error)]
#[error("no credentials")]
pub(crate) struct CredentialsError;

pub(crate) struct Signer {
    signer: RequestSigner,
    credential: Credential,
}

impl Signer {
    pub(crate) fn fixed(region: &str, key: &str, secret: &str) -> Signer {
        Signer {
            signer: RequestSigner::new("s3", region),
            credential: Credential {
                access_key_id: key.to_owned(),
                secret_access_key: secret.to_owned(),
                ..Credential::default()
            },
        }
    }

    pub(crate) async fn sign(
        &self,
        parts: &mut Parts,
        payload_sha256: &str,
    ) -> Result<(), CredentialsError> {
        let value = payload_sha256.parse().map_err(|_| CredentialsError)?;
        parts.headers.insert("x-amz-content-sha256", value);
        self.signer
            .sign_request(&Context::new(), parts, Some(&self.credential), None)
            .await
            .map_err(|_| CredentialsError)
    }

    pub(crate) fn expired(&self) {}
}
