//! The places that AWS's own tools look at for keys, in their order.
//!
//! Knows the order and what a profile leads to; each place is a file of its own. The first place that has something decides:
//! if it cannot give keys, that is told, and no other place is asked in its stead.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;

use super::metadata::{self, Instance};
use super::outlet::{Base, Plain, Wire};
use super::profiles::{Profile, Profiles};
use super::sts::{Role, Sts};
use super::{Clock, CredentialsError, Environment, Keys, Source, process, sso};
use crate::durable::{Blocking, Disk};

/// Longest way from a profile through `source_profile` to one with keys. People have two or three.
const PROFILES_MAX: usize = 8;

/// The region that is asked for the keys of a role if nobody named one. Any region has them.
const STS_REGION: &str = "us-east-1";

/// Longest file with a token. They have a few thousand bytes.
const TOKEN_FILE_BYTES_MAX: u64 = 64 * 1024;

/// What looking at the places takes.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    /// Sends requests to endpoints.
    pub(crate) wire: Arc<dyn Wire>,
    /// Stores a login that was renewed.
    pub(crate) disk: Arc<dyn Disk>,
    /// Where files are read and written.
    pub(crate) blocking: Blocking,
    /// What a login expires by.
    pub(crate) clock: Arc<dyn Clock>,
    /// Whether endpoints that the user named may be asked in plain text on other machines.
    pub(crate) allow_http: bool,
}

impl Tools {
    /// The content of a small file that somebody named, without white space around it.
    pub(super) async fn text_file(&self, path: &Path) -> Result<String, CredentialsError> {
        let owned = path.to_owned();
        let read = self.blocking.run(move || {
            let mut text = Vec::new();
            File::open(owned)?.take(TOKEN_FILE_BYTES_MAX + 1).read_to_end(&mut text)?;
            Ok(text)
        });
        let text = read.await.map_err(|error| CredentialsError::unread(path, &error))?;
        if text.len() as u64 > TOKEN_FILE_BYTES_MAX {
            return Err(CredentialsError::unreadable(path, "it is larger than 64 KiB"));
        }
        let text = String::from_utf8(text);
        let text = text.map_err(|_| CredentialsError::unreadable(path, "it is no text"))?;
        Ok(text.trim().to_owned())
    }
}

/// Keys from the environment, a web identity, a profile, a container or the machine.
#[derive(Debug)]
pub(crate) struct Ambient {
    pub(super) environment: Arc<Environment>,
    /// A profile that our own configuration names. Then no variable with keys is looked at.
    profile: Option<String>,
    pub(super) tools: Tools,
    pub(super) kept: sso::Kept,
    /// Whether a login that is about to expire is renewed, and put back where AWS's tools find it.
    pub(super) renews_logins: bool,
    /// Whether the machine's metadata service ever had keys for us: from then on its silence is an outage.
    on_instance: AtomicBool,
}

#[async_trait]
impl Source for Ambient {
    async fn keys(&self) -> Result<Keys, CredentialsError> {
        let mut looked = Vec::new();
        if self.profile.is_none() {
            if let Some(keys) = self.environment.aws_keys()? {
                return Ok(keys);
            }
            looked.push("AWS_ACCESS_KEY_ID (not set)".to_owned());
        }
        let profiles = self.profiles().await?;
        let profile = profiles.chosen(&self.environment, self.profile.as_deref())?;
        if self.profile.is_none() {
            if let Some(keys) = self.web_identity(&profiles, profile).await? {
                return Ok(keys);
            }
            looked.push("AWS_WEB_IDENTITY_TOKEN_FILE (not set)".to_owned());
        }
        match profile {
            Some(profile) => {
                if let Some(keys) = self.of_profile(&profiles, profile).await? {
                    return Ok(keys);
                }
                if self.profile.is_some() {
                    // Whoever named it for this store meant its keys, and no others that happen to be at hand.
                    return Err(profile.flaw("has no credentials"));
                }
                looked.push(format!("the profile {:?} (has none)", profile.name));
            }
            None => looked.push(format!("the profile \"default\" (not in {})", profiles.places())),
        }
        if let Some(keys) = metadata::container(&self.environment, &self.tools).await? {
            return Ok(keys);
        }
        looked.push("AWS_CONTAINER_CREDENTIALS_FULL_URI (not set)".to_owned());
        match self.instance().await? {
            Instance::Keys(keys) => return Ok(keys),
            Instance::Nothing(why) => looked.push(why),
        }
        Err(CredentialsError::None { looked })
    }
}

impl Ambient {
    /// The places that `environment` leads to. `profile` is the one that our own configuration names, if it does.
    pub(crate) fn new(
        environment: Arc<Environment>,
        profile: Option<String>,
        tools: Tools,
    ) -> Ambient {
        let on_instance = AtomicBool::new(false);
        let (kept, renews_logins) = (sso::Kept::default(), true);
        Ambient { environment, profile, tools, kept, renews_logins, on_instance }
    }

    /// For who may not write: a login that is due for renewal gives no keys.
    pub(crate) fn without_renewals(self) -> Ambient {
        Ambient { renews_logins: false, ..self }
    }

    /// Both files, as they are now: people and tools write to them while we run.
    async fn profiles(&self) -> Result<Profiles, CredentialsError> {
        let environment = self.environment.clone();
        self.tools.blocking.run(move || Profiles::load(&environment)).await
    }

    async fn web_identity(
        &self,
        profiles: &Profiles,
        profile: Option<Profile<'_>>,
    ) -> Result<Option<Keys>, CredentialsError> {
        let var = |name| self.environment.var(name);
        let Some(file) = var("AWS_WEB_IDENTITY_TOKEN_FILE") else { return Ok(None) };
        let (is, is_not) = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN");
        let half = || CredentialsError::Half { place: "the environment".into(), is, is_not };
        let role = Role {
            arn: var(is_not).ok_or_else(half)?.to_owned(),
            session_name: var("AWS_ROLE_SESSION_NAME").map(str::to_owned),
            ..Role::default()
        };
        let token = self.tools.text_file(Path::new(file)).await?;
        let sts = self.sts(profiles, profile)?;
        sts.assume_with_token(&role, &token).await.map(Some)
    }

    /// The keys that a profile leads to. `None`: it says nothing about keys.
    async fn of_profile(
        &self,
        profiles: &Profiles,
        profile: Profile<'_>,
    ) -> Result<Option<Keys>, CredentialsError> {
        let mut roles = Vec::new();
        let mut at = profile;
        // Down to the profile that has keys, then up again through the roles that were passed.
        let first = loop {
            let get = |name| at.section.get(name);
            let is_source = !roles.is_empty();
            if get("role_arn").is_none() || is_source && at.has_pair() {
                break self.of_plain_profile(profiles, at).await?;
            }
            let ways =
                [get("source_profile"), get("credential_source"), get("web_identity_token_file")];
            match ways {
                [Some(source), None, None] => {
                    roles.push(at);
                    if source == at.name {
                        break at.pair()?;
                    }
                    if roles.len() >= PROFILES_MAX || roles.iter().any(|role| role.name == source) {
                        return Err(profile.flaw("never comes to an end through source_profile"));
                    }
                    at = profiles.profile(source)?;
                }
                [None, Some(source), None] => {
                    roles.push(at);
                    break self.named_source(at, source).await?;
                }
                [None, None, Some(file)] => {
                    let token = self.tools.text_file(&self.environment.path(file)).await?;
                    let sts = self.sts(profiles, Some(at))?;
                    break Some(sts.assume_with_token(&role_of(at)?, &token).await?);
                }
                [None, None, None] => {
                    let need = "needs source_profile, credential_source or web_identity_token_file";
                    return Err(at.flaw(format!("has role_arn and {need}")));
                }
                _ => return Err(at.flaw("has more than one way to the keys that role_arn needs")),
            }
        };
        let Some(mut keys) = first else {
            let nothing = || at.flaw("has no credentials, and a role needs them");
            return if roles.is_empty() { Ok(None) } else { Err(nothing()) };
        };
        for with_role in roles.into_iter().rev() {
            let sts = self.sts(profiles, Some(with_role))?;
            keys = sts.assume(&role_of(with_role)?, keys).await?;
        }
        Ok(Some(keys))
    }

    /// The keys of a profile without a role.
    async fn of_plain_profile(
        &self,
        profiles: &Profiles,
        profile: Profile<'_>,
    ) -> Result<Option<Keys>, CredentialsError> {
        let get = |name| profile.section.get(name);
        if ["sso_session", "sso_start_url", "sso_account_id"].iter().any(|name| get(name).is_some())
        {
            return sso::keys(self, profiles, profile).await.map(Some);
        }
        if let Some(keys) = profile.pair()? {
            return Ok(Some(keys));
        }
        match get("credential_process") {
            Some(command) => process::keys(profile, command).await.map(Some),
            None => Ok(None),
        }
    }

    async fn named_source(
        &self,
        profile: Profile<'_>,
        source: &str,
    ) -> Result<Option<Keys>, CredentialsError> {
        match source {
            "Environment" => self.environment.aws_keys(),
            "EcsContainer" => metadata::container(&self.environment, &self.tools).await,
            "Ec2InstanceMetadata" => match self.instance().await? {
                Instance::Keys(keys) => Ok(Some(keys)),
                Instance::Nothing(why) => Err(CredentialsError::None { looked: vec![why] }),
            },
            _ => Err(profile.flaw(
                "has a credential_source that is none of Environment, EcsContainer and Ec2InstanceMetadata",
            )),
        }
    }

    async fn instance(&self) -> Result<Instance, CredentialsError> {
        let expected = self.on_instance.load(Ordering::Relaxed);
        let found = metadata::instance(&self.environment, &self.tools.wire, expected).await?;
        if matches!(found, Instance::Keys(_)) {
            self.on_instance.store(true, Ordering::Relaxed);
        }
        Ok(found)
    }

    fn sts(
        &self,
        profiles: &Profiles,
        profile: Option<Profile<'_>>,
    ) -> Result<Sts, CredentialsError> {
        let named = self
            .environment
            .var("AWS_REGION")
            .or_else(|| self.environment.var("AWS_DEFAULT_REGION"));
        let region = named.or_else(|| profile.and_then(|profile| profile.section.get("region")));
        Ok(Sts {
            wire: self.tools.wire.clone(),
            region: region.unwrap_or(STS_REGION).to_owned(),
            base: self.base(profiles, profile, "AWS_ENDPOINT_URL_STS", "sts")?,
        })
    }

    /// The endpoint that the user named for a service: by its own variable, by the one for all, in the files.
    pub(super) fn base(
        &self,
        profiles: &Profiles,
        profile: Option<Profile<'_>>,
        var: &str,
        service: &str,
    ) -> Result<Option<Base>, CredentialsError> {
        let plain = if self.tools.allow_http { Plain::Anywhere } else { Plain::Loopback };
        if !self.environment.is_true("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS") {
            for name in [var, "AWS_ENDPOINT_URL"] {
                if let Some(url) = self.environment.var(name) {
                    return Base::parse(name, url, plain).map(Some);
                }
            }
        }
        let Some(profile) = profile else { return Ok(None) };
        let url = profiles.endpoint_url(&self.environment, profile, service)?;
        let setting = format!("endpoint_url of the profile {:?}", profile.name);
        url.map(|url| Base::parse(&setting, url, plain)).transpose()
    }
}

fn role_of(profile: Profile<'_>) -> Result<Role, CredentialsError> {
    let get = |name| profile.section.get(name).map(str::to_owned);
    if get("mfa_serial").is_some() {
        return Err(profile.flaw(
            "wants a one-time code (mfa_serial), and nobody is here to type it: use SSO or credential_process",
        ));
    }
    let duration = get("duration_seconds").map(|text| text.parse());
    Ok(Role {
        arn: profile.need("role_arn", "a role")?,
        session_name: get("role_session_name"),
        external_id: get("external_id"),
        duration_seconds: duration
            .transpose()
            .map_err(|_| profile.flaw("has a duration_seconds that is no number"))?,
    })
}
