//! Puts a remote store together: what the configuration says, what a profile adds, who signs, over which transport.
//!
//! Knows the three of them; refuses to know what the store is used for. No secret passes through here.

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tower::BoxError;

use crate::config::{Config, ConfigError, Origin, Row, Setting, StoreUrl, endpoint};
use crate::durable::{Blocking, Disk};
use crate::store::credentials::{
    Ambient, Environment, Fixed, Source, SystemClock, Tools, named_by, profile_settings,
};
use crate::store::{S3Settings, S3Store, Signer, Transport, is_loopback};

/// The region of buckets whose region nobody named: where AWS puts them, and what most of its imitators are content with.
const REGION: &str = "us-east-1";

/// Services that bill an object for months also when it is deleted before, so that merging costs more than it saves.
const BILL_EARLY_DELETES: [&str; 1] = ["wasabisys.com"];

/// The gateway of Hugging Face, which has a path for each user.
const HF_ENDPOINT: &str = "https://s3.hf.co";

/// Where a remote store is, and who said so.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    settings: S3Settings,
    endpoint: Origin,
    region: Origin,
    profile: Option<Setting<String>>,
}

impl Place {
    /// The place of the configured store; `None` for a local one. Reads AWS's configuration files.
    pub(crate) fn of(config: &Config) -> Result<Option<Place>, ConfigError> {
        let place = match &config.store.value {
            StoreUrl::File { .. } => return Ok(None),
            StoreUrl::S3 { bucket, project } => of_s3(config, bucket, project)?,
            StoreUrl::Hf { user, bucket, project } => of_hf(config, user, bucket, project),
        };
        check_plain_http(config, &place)?;
        Ok(Some(place))
    }

    /// Whether what is deleted soon is billed all the same.
    pub(crate) fn bills_early_deletes(&self) -> bool {
        let uri: Option<http::Uri> = self.settings.endpoint.parse().ok();
        let host = uri.as_ref().and_then(|uri| uri.host()).unwrap_or_default().to_lowercase();
        BILL_EARLY_DELETES.iter().any(|domain| {
            host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
    }

    /// The identity of the store that is there.
    pub(crate) fn identity(&self) -> String {
        self.settings.identity()
    }

    /// The address of the service.
    pub(crate) fn endpoint(&self) -> &str {
        &self.settings.endpoint
    }

    /// The region that requests are signed for.
    pub(crate) fn region(&self) -> &str {
        &self.settings.region
    }

    /// The bucket.
    pub(crate) fn bucket(&self) -> &str {
        &self.settings.bucket
    }

    /// What `--check` shows of it.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let row = |name: &str, value: &str, origin: &Origin| {
            [name.to_owned(), value.to_owned(), origin.to_string()]
        };
        let mut rows = vec![
            row("endpoint", &self.settings.endpoint, &self.endpoint),
            row("region", &self.settings.region, &self.region),
        ];
        rows.extend(self.profile.as_ref().map(|p| row("profile", &p.value, &p.origin)));
        if self.bills_early_deletes() {
            let why = "the service bills what is deleted early";
            rows.push(["compaction".to_owned(), "off".to_owned(), why.to_owned()]);
        }
        rows
    }
}

fn of_s3(config: &Config, bucket: &str, project: &str) -> Result<Place, ConfigError> {
    let remote = &config.remote;
    let environment = Environment::of_process(config.home());
    let named = remote.profile.as_ref().map(|profile| profile.value.as_str());
    let profile = profile_settings(&environment, named)
        .map_err(|error| ConfigError::new(error.to_string(), "correct it, or set no profile"))?;
    let origin =
        Origin::Profile(named.or_else(|| named_by(&environment)).unwrap_or("default").to_owned());
    let of_profile = |value| Setting { value, origin: origin.clone() };
    let region = remote.region.clone().or(profile.region.map(of_profile));
    let region =
        region.unwrap_or_else(|| Setting { value: REGION.to_owned(), origin: Origin::Default });
    let from_profile = match profile.endpoint_url.map(|url| endpoint(&url)) {
        None => None,
        Some(Ok(value)) => Some(Setting { value, origin: origin.clone() }),
        Some(Err(bad)) => {
            let message = format!("endpoint_url ({origin}) {}", bad.problem);
            return Err(ConfigError::new(message, bad.hint));
        }
    };
    let endpoint = remote
        .endpoint
        .clone()
        .or(from_profile)
        .unwrap_or_else(|| Setting { value: aws_endpoint(&region.value), origin: Origin::Default });
    let settings = S3Settings {
        scheme: "s3",
        endpoint: endpoint.value,
        region: region.value,
        bucket: bucket.to_owned(),
        project: project.to_owned(),
    };
    let profile = remote.profile.clone();
    Ok(Place { settings, endpoint: endpoint.origin, region: region.origin, profile })
}

fn of_hf(config: &Config, user: &str, bucket: &str, project: &str) -> Place {
    let default = |value: &str| Setting { value: value.to_owned(), origin: Origin::Default };
    let base = config.remote.endpoint.clone().unwrap_or_else(|| default(HF_ENDPOINT));
    let region = config.remote.region.clone().unwrap_or_else(|| default(REGION));
    let settings = S3Settings {
        scheme: "hf",
        endpoint: format!("{}/{user}", base.value),
        region: region.value,
        bucket: bucket.to_owned(),
        project: project.to_owned(),
    };
    let profile = config.remote.profile.clone();
    Place { settings, endpoint: base.origin, region: region.origin, profile }
}

/// AWS's own address of a region.
fn aws_endpoint(region: &str) -> String {
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    format!("https://s3.{region}.{domain}")
}

/// Transcripts and signatures do not leave this machine in the clear, unless somebody said so.
fn check_plain_http(config: &Config, place: &Place) -> Result<(), ConfigError> {
    let uri: Option<http::Uri> = place.settings.endpoint.parse().ok();
    let host = uri.as_ref().and_then(|uri| uri.host());
    let Some(host) = host else {
        let message = format!("endpoint ({}) is not the address of a server", place.endpoint);
        return Err(ConfigError::new(message, "write for example https://minio.example:9000"));
    };
    let plain = place.settings.endpoint.starts_with("http://");
    if plain && !is_loopback(host) && !config.remote.allow_http.value {
        let message = format!(
            "endpoint = {:?} ({}) is plain http to another machine: transcripts and signatures could be read on the way",
            place.settings.endpoint, place.endpoint
        );
        let hint = "use https, or write allow_http = true into the configuration file";
        return Err(ConfigError::new(message, hint));
    }
    Ok(())
}

/// The store at a place. Asks nobody anything yet.
pub(crate) fn open(
    config: &Config,
    place: &Place,
    disk: &Arc<dyn Disk>,
    blocking: Blocking,
) -> Result<S3Store, ConfigError> {
    let source = source(config, disk, &blocking, Renewals::Done)?;
    open_with(config, place, source, disk, blocking)
}

/// The same with keys from somewhere.
pub(crate) fn open_with(
    config: &Config,
    place: &Place,
    source: Arc<dyn Source>,
    disk: &Arc<dyn Disk>,
    blocking: Blocking,
) -> Result<S3Store, ConfigError> {
    let transport = transport(config)?;
    let signer = Signer::new(source, &place.settings.region);
    Ok(S3Store::new(place.settings.clone(), transport, signer, disk.clone(), blocking))
}

/// Connections of their own, with limits of their own.
fn transport(config: &Config) -> Result<Transport, ConfigError> {
    Transport::new(config.remote.ca_bundle.as_deref()).map_err(|error| {
        let why = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
        ConfigError::new(format!("{error}: {why}"), "name a file with certificates in PEM form")
    })
}

/// Whether logins in the browser are renewed, which writes them to where AWS's tools look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewals {
    /// When they are about to expire.
    Done,
    /// Never.
    Left,
}

/// Where the keys come from. Asks nobody anything yet.
pub(crate) fn source(
    config: &Config,
    disk: &Arc<dyn Disk>,
    blocking: &Blocking,
    renewals: Renewals,
) -> Result<Arc<dyn Source>, ConfigError> {
    let environment = Arc::new(Environment::of_process(config.home()));
    let profile = config.remote.profile.as_ref().map(|profile| profile.value.clone());
    if let (StoreUrl::Hf { .. }, None) = (&config.store.value, &profile) {
        // What the environment lacks it lacks until the next start, so that this is a mistake and no outage.
        let keys = environment.hugging_face_keys().map_err(|error| {
            let hint = "make an access key in the settings of Hugging Face, or name a profile in the configuration file";
            ConfigError::new(error.to_string(), hint)
        })?;
        return Ok(Arc::new(Fixed(keys)));
    }
    let tools = Tools {
        // Its own connections and limits: a renewal must not stand in line behind the uploads that wait for it.
        wire: Arc::new(transport(config)?),
        disk: disk.clone(),
        blocking: blocking.clone(),
        clock: Arc::new(SystemClock),
        allow_http: config.remote.allow_http.value,
    };
    let ambient = Ambient::new(environment, profile, tools);
    Ok(match renewals {
        Renewals::Done => Arc::new(ambient),
        Renewals::Left => Arc::new(ambient.without_renewals()),
    })
}

/// Asks the server for nothing and without a signature. Whatever it answers, it is there; and most servers tell their time.
pub(crate) async fn greet(config: &Config, place: &Place) -> Result<Option<Timestamp>, BoxError> {
    let request = http::Request::get(format!("{}/", place.settings.endpoint)).body(Bytes::new())?;
    let answer = transport(config)?.send(request).await?;
    let date = answer.headers().get(http::header::DATE).and_then(|date| date.to_str().ok());
    let theirs = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
    Ok(theirs.map(|theirs| theirs.timestamp()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_bills_early_deletes_is_known_by_its_name() {
        let at = |endpoint: &str| Place {
            settings: S3Settings {
                scheme: "s3",
                endpoint: endpoint.to_owned(),
                region: REGION.to_owned(),
                bucket: "flight".to_owned(),
                project: "recorder".to_owned(),
            },
            endpoint: Origin::Default,
            region: Origin::Default,
            profile: None,
        };
        for (endpoint, bills) in [
            ("https://s3.eu-central-1.wasabisys.com", true),
            ("https://S3.WASABISYS.COM:443/", true),
            ("https://notwasabisys.com", false),
            ("https://wasabisys.com.example", false),
            ("https://s3.us-east-1.amazonaws.com", false),
        ] {
            assert_eq!(at(endpoint).bills_early_deletes(), bills, "{endpoint}");
            let says = at(endpoint)
                .rows()
                .iter()
                .any(|[key, value, _]| key == "compaction" && value == "off");
            assert_eq!(says, bills, "{endpoint}");
        }
    }
}
