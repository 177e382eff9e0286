//! The files of AWS's own tools, `~/.aws/config` and `~/.aws/credentials`: their grammar, and what a profile says.
//!
//! Knows sections and settings; refuses to know what a setting leads to. No message repeats a line: it may be a secret.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{CredentialsError, Environment, Keys};

/// Largest file that is read. One with a thousand profiles has a tenth of it; what is larger is some other file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// More edits than this make another name, and no slip of the hand.
const NEAREST_EDITS: usize = 3;

const KEY_ID: &str = "aws_access_key_id";
const SECRET: &str = "aws_secret_access_key";

/// What is in both files.
#[derive(Debug, Clone, Default)]
pub(crate) struct Profiles {
    profiles: BTreeMap<String, Section>,
    sessions: BTreeMap<String, Section>,
    services: BTreeMap<String, Section>,
    /// Where they were looked for, for messages.
    places: String,
}

/// A section: its settings by their names in small letters.
#[derive(Clone, Default)]
pub(crate) struct Section(BTreeMap<String, Setting>);

#[derive(Clone, Default)]
struct Setting {
    value: String,
    /// What is indented below a setting without a value of its own.
    below: BTreeMap<String, String>,
}

impl Section {
    /// The value of a setting; an empty one counts as not there.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|setting| setting.value.as_str()).filter(|value| !value.is_empty())
    }

    fn get_below(&self, name: &str, below: &str) -> Option<&str> {
        let value = self.0.get(name)?.below.get(below)?;
        Some(value.as_str()).filter(|value| !value.is_empty())
    }
}

/// Names only: among the values are secrets.
impl fmt::Debug for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// A profile that was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Profile<'a> {
    pub(super) name: &'a str,
    pub(super) section: &'a Section,
}

/// What a profile says about the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ProfileSettings {
    /// `region`
    pub(crate) region: Option<String>,
    /// `endpoint_url` for S3: of the profile's `services` section, else of the profile itself.
    pub(crate) endpoint_url: Option<String>,
}

/// What the profile in use says about the store: `profile` if given, else that of the environment. A profile that was named
/// and is not there is an error; without a name, what is not there says nothing. Reads files.
pub(crate) fn profile_settings(
    environment: &Environment,
    profile: Option<&str>,
) -> Result<ProfileSettings, CredentialsError> {
    let profiles = Profiles::load(environment)?;
    let Some(profile) = profiles.chosen(environment, profile)? else {
        return Ok(ProfileSettings::default());
    };
    Ok(ProfileSettings {
        region: profile.section.get("region").map(str::to_owned),
        endpoint_url: profiles.endpoint_url(environment, profile, "s3")?.map(str::to_owned),
    })
}

impl Profiles {
    /// Reads both files. One that is not there is an empty one.
    pub(super) fn load(environment: &Environment) -> Result<Profiles, CredentialsError> {
        let path = |var: &str, usual: &str| match environment.var(var) {
            Some(path) => Some(environment.path(path)),
            None => environment.in_home(usual),
        };
        let config = path("AWS_CONFIG_FILE", ".aws/config");
        let credentials = path("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials");
        let mut profiles =
            Profiles { places: places(&[&credentials, &config]), ..Profiles::default() };
        if let Some(path) = config {
            profiles.add_config(parse(&path, &read(&path)?)?);
        }
        if let Some(path) = credentials {
            // The credentials file has the last word on what both have.
            for (name, section) in parse(&path, &read(&path)?)? {
                profiles.profiles.entry(name).or_default().0.extend(section.0);
            }
        }
        Ok(profiles)
    }

    fn add_config(&mut self, sections: Vec<(String, Section)>) {
        for (title, section) in sections {
            let (kind, name) = title.split_once([' ', '\t']).unwrap_or((&title, ""));
            let name = name.trim().trim_matches(['"', '\'']);
            let (into, name) = match kind {
                "profile" => (&mut self.profiles, name),
                "sso-session" => (&mut self.sessions, name),
                "services" => (&mut self.services, name),
                // Without the word `profile` there is only this one here.
                "default" if name.is_empty() => (&mut self.profiles, "default"),
                _ => continue,
            };
            into.entry(name.to_owned()).or_default().0.extend(section.0);
        }
    }

    /// The profile in use. `None`: nobody named one, and there is no `default`.
    pub(super) fn chosen<'a>(
        &'a self,
        environment: &'a Environment,
        profile: Option<&'a str>,
    ) -> Result<Option<Profile<'a>>, CredentialsError> {
        match profile.or_else(|| named_by(environment)) {
            Some(name) => self.profile(name).map(Some),
            None => Ok(self.profile("default").ok()),
        }
    }

    /// A profile by its name.
    pub(super) fn profile<'a>(&'a self, name: &'a str) -> Result<Profile<'a>, CredentialsError> {
        if let Some(section) = self.profiles.get(name) {
            return Ok(Profile { name, section });
        }
        Err(CredentialsError::NoProfile {
            name: name.escape_debug().to_string(),
            places: self.places.clone(),
            nearest: nearest(name, self.profiles.keys()),
        })
    }

    /// An `sso-session` section by its name.
    pub(super) fn session(&self, name: &str) -> Option<&Section> {
        self.sessions.get(name)
    }

    /// The endpoint that the files name for a service (`s3`, `sts`, `sso`, `sso_oidc`).
    pub(super) fn endpoint_url<'a>(
        &'a self,
        environment: &Environment,
        profile: Profile<'a>,
        service: &str,
    ) -> Result<Option<&'a str>, CredentialsError> {
        let ignore = "ignore_configured_endpoint_urls";
        let ignored =
            profile.section.get(ignore).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        if ignored || environment.is_true("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS") {
            return Ok(None);
        }
        let services = match profile.section.get("services") {
            Some(name) => Some(self.services.get(name).ok_or_else(|| {
                profile.flaw(format!("names services {name:?}, and there is no such section"))
            })?),
            None => None,
        };
        let special = services.and_then(|services| services.get_below(service, "endpoint_url"));
        Ok(special.or_else(|| profile.section.get("endpoint_url")))
    }

    /// The files, for messages.
    pub(super) fn places(&self) -> &str {
        &self.places
    }
}

impl Profile<'_> {
    /// An error about this profile.
    pub(super) fn flaw(self, flaw: impl Into<String>) -> CredentialsError {
        CredentialsError::Profile { name: self.name.escape_debug().to_string(), flaw: flaw.into() }
    }

    /// Whether it has keys of its own.
    pub(super) fn has_pair(self) -> bool {
        self.section.get(KEY_ID).is_some() && self.section.get(SECRET).is_some()
    }

    /// Its own keys, if it has any.
    pub(super) fn pair(self) -> Result<Option<Keys>, CredentialsError> {
        let place = format!("the profile {:?}", self.name);
        match (self.section.get(KEY_ID), self.section.get(SECRET)) {
            (Some(id), Some(secret)) => {
                let token = self.section.get("aws_session_token");
                Ok(Some(Keys::lasting(id, secret, token, &place)))
            }
            (None, None) => Ok(None),
            (Some(_), None) => Err(CredentialsError::Half { place, is: KEY_ID, is_not: SECRET }),
            (None, Some(_)) => Err(CredentialsError::Half { place, is: SECRET, is_not: KEY_ID }),
        }
    }

    /// A setting that has to be there because of `why`.
    pub(super) fn need(self, setting: &str, why: &str) -> Result<String, CredentialsError> {
        let value = self.section.get(setting).map(str::to_owned);
        value.ok_or_else(|| self.flaw(format!("has {why}, but no {setting}")))
    }
}

/// The profile that the environment names.
pub(crate) fn named_by(environment: &Environment) -> Option<&str> {
    environment.var("AWS_PROFILE").or_else(|| environment.var("AWS_DEFAULT_PROFILE"))
}

fn read(path: &Path) -> Result<String, CredentialsError> {
    let mut text = Vec::new();
    let read =
        File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text));
    match read {
        Ok(_) if text.len() as u64 > FILE_BYTES_MAX => {
            Err(CredentialsError::unreadable(path, "it is larger than 1 MiB"))
        }
        Ok(_) => {
            String::from_utf8(text).map_err(|_| CredentialsError::unreadable(path, "it is no text"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(CredentialsError::unread(path, &error)),
    }
}

/// Sections in their order. A setting goes on where the next line is indented.
fn parse(path: &Path, text: &str) -> Result<Vec<(String, Section)>, CredentialsError> {
    let mut sections: Vec<(String, Section)> = Vec::new();
    let mut last: Option<String> = None;
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let bad =
            || CredentialsError::unreadable(path, &format!("line {} is no setting", number + 1));
        let content = line.trim();
        if content.is_empty() || content.starts_with(['#', ';']) {
            continue;
        }
        if let Some(title) = line.strip_prefix('[') {
            let (title, _) = title.split_once(']').ok_or_else(bad)?;
            sections.push((title.trim().to_owned(), Section::default()));
            last = None;
            continue;
        }
        let (_, Section(settings)) = sections.last_mut().ok_or_else(bad)?;
        if line.starts_with([' ', '\t'])
            && let Some(setting) = last.as_ref().and_then(|name| settings.get_mut(name))
        {
            // A second line of a value is of no setting that is read here.
            if let (true, Some((name, value))) = (setting.value.is_empty(), content.split_once('='))
            {
                setting.below.insert(name.trim().to_lowercase(), without_comment(value));
            }
            continue;
        }
        let (name, value) = content.split_once('=').ok_or_else(bad)?;
        let name = name.trim().to_lowercase();
        let setting = Setting { value: without_comment(value), below: BTreeMap::new() };
        settings.insert(name.clone(), setting);
        last = Some(name);
    }
    Ok(sections)
}

/// A comment behind a value begins after white space.
fn without_comment(value: &str) -> String {
    let begins =
        |(at, c): (usize, char)| ['#', ';'].contains(&c) && value[..at].ends_with([' ', '\t']);
    let end = value.char_indices().find(|&found| begins(found)).map_or(value.len(), |(at, _)| at);
    value[..end].trim().to_owned()
}

fn places(paths: &[&Option<PathBuf>]) -> String {
    let shown: Vec<String> =
        paths.iter().filter_map(|path| Some(path.as_ref()?.display().to_string())).collect();
    if shown.is_empty() {
        "no file, for there is no home directory".into()
    } else {
        shown.join(" and ")
    }
}

fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Option<String> {
    let edits =
        |known: &String| strsim::damerau_levenshtein(&name.to_lowercase(), &known.to_lowercase());
    let (edits, found) = known.map(|known| (edits(known), known)).min()?;
    // A word of which more than half must change is another word.
    let alike = edits <= NEAREST_EDITS && edits * 2 <= found.len().max(name.len());
    alike.then(|| found.escape_debug().to_string())
}
