//! Judges the store: whether it is there, lets us in, and does what a recorder needs of it.
//!
//! What would have to be written is told only as far as the running daemon has seen it.

use tracecraft::api::{Remote, Status};
use tracecraft::doctor::{About, Bucket, Examination, Keys, Local, LocalState, Tried};

use super::check::{Check, Code, note, ok, warning, wrong};
use super::{Daemon, Found};
use crate::text;

/// Seconds between the clocks from which somebody should look.
const SKEW_SECONDS: i64 = 60;

/// Seconds between the clocks from which S3 refuses what is signed.
const SKEW_SECONDS_MAX: i64 = 15 * 60;

/// What is said of whatever only a write could tell.
const NOT_TRIED: &str = "not tried: doctor never writes";

/// The store, of whichever kind.
pub(super) fn store(examination: &Examination, found: &Found) -> Vec<Check> {
    let status = match &found.daemon {
        Daemon::Answered(status) if status.store == examination.settings.store => Some(&**status),
        _ => None,
    };
    let mut checks = Vec::new();
    checks.extend(examination.local.as_ref().map(local));
    if let Some(bucket) = &examination.bucket {
        checks.extend(remote(bucket));
        checks.extend(seen(status));
        if !found.proxies.is_empty() {
            checks.push(note(
                Code::Proxy,
                format!(
                    "{} is not looked at: requests go straight to the store",
                    found.proxies.join(", ")
                ),
                format!("curl -sI --noproxy '*' {} | head -1", bucket.endpoint),
            ));
        }
    }
    checks
}

fn local(local: &Local) -> Check {
    let (path, word) = (local.path.display(), text::shell_word(&local.path));
    match &local.found {
        Some(LocalState::Fine) => ok(Code::Store, format!("{path} can be read and written")),
        Some(LocalState::NotYet) => {
            ok(Code::Store, format!("{path} is not there yet: the first session makes it"))
        }
        Some(LocalState::Gone) => wrong(
            Code::Store,
            format!("{path} is gone, and sessions were stored in it: a disk that is not there?"),
            format!("bring it back, and look: ls {word}"),
        ),
        Some(LocalState::Unusable(why)) => wrong(
            Code::Store,
            format!("{path} cannot be used: {why}"),
            format!("chmod u+rwx {word}"),
        ),
        None => wrong(
            Code::Unfinished,
            format!("{path} could not be looked at in time: a disk hangs"),
            format!("ls -d {word}"),
        ),
    }
}

fn remote(bucket: &Bucket) -> Vec<Check> {
    let mut checks = vec![way(bucket)];
    // Told once: keys that are there and are refused are no good ones.
    if !matches!(bucket.list, Tried::Failed(About::Keys, _)) {
        checks.push(keys(&bucket.keys));
    }
    checks.extend(bucket.ahead_seconds.map(clock));
    let name = &bucket.name;
    match &bucket.list {
        Tried::Not => {}
        Tried::Fine => {
            checks.push(ok(Code::Bucket, format!("{name} is there")));
            checks.push(ok(Code::ListRight, "listing is allowed"));
        }
        Tried::Failed(about, why) => {
            checks.push(refused(bucket, *about, why, (Code::ListRight, "s3:ListBucket")));
        }
    }
    match &bucket.get {
        Tried::Not => {}
        Tried::Fine => checks.push(ok(Code::GetRight, "reading is allowed")),
        Tried::Failed(about, why) => {
            checks.push(refused(bucket, *about, why, (Code::GetRight, "s3:GetObject")));
        }
    }
    checks
}

/// What failed, by what is to be mended. Only a missing right is the right's own code.
fn refused(bucket: &Bucket, about: About, why: &str, (code, right): (Code, &str)) -> Check {
    let Bucket { name, endpoint, region, .. } = bucket;
    match about {
        About::Keys => wrong(Code::Credentials, why, correct(&bucket.keys)),
        About::Bucket => wrong(
            Code::Bucket,
            why,
            format!(
                "tracecraftd --check shows {endpoint} and {region}: set store, endpoint and region to where the bucket is"
            ),
        ),
        About::Clock => wrong(Code::Clock, why, SET_CLOCK),
        About::Right => wrong(code, why, policy(right, name)),
        About::Way => wrong(Code::Store, why, format!("curl -sI {endpoint} | head -1")),
    }
}

/// The edit that mends keys which a store refuses.
fn correct(keys: &Keys) -> String {
    let origin = match keys {
        Keys::Found { origin, .. } => origin.as_str(),
        Keys::Due(_) | Keys::Missing(..) => "the place where they are",
    };
    format!("put a pair of keys that belong together into {origin}")
}

fn policy(right: &str, bucket: &str) -> String {
    format!("add {right} on {bucket} to the policy of these keys (README, Buckets)")
}

fn way(bucket: &Bucket) -> Check {
    let Bucket { endpoint, region, .. } = bucket;
    match &bucket.answers {
        Ok(()) => ok(Code::Store, format!("{endpoint} answers (region {region})")),
        Err(why) => wrong(
            Code::Store,
            format!("{endpoint} cannot be reached: {why}"),
            format!("curl -sI {endpoint} | head -1"),
        ),
    }
}

fn keys(keys: &Keys) -> Check {
    match keys {
        Keys::Found { origin, expires: None } => {
            ok(Code::Credentials, format!("from {origin}; they do not say that they expire"))
        }
        Keys::Found { origin, expires: Some(at) } => {
            ok(Code::Credentials, format!("from {origin}, good until {at}"))
        }
        Keys::Due(why) => note(Code::Credentials, why.clone(), "tracecraftctl flush"),
        Keys::Missing(why, hint) => {
            let usual = || {
                "aws configure --profile tracecraft, and profile = \"tracecraft\" in the configuration".to_owned()
            };
            wrong(Code::Credentials, why.clone(), hint.clone().unwrap_or_else(usual))
        }
    }
}

/// How a clock is set on most systems that have a service manager.
const SET_CLOCK: &str = "sudo timedatectl set-ntp true";

fn clock(ahead_seconds: i64) -> Check {
    let apart = ahead_seconds.unsigned_abs();
    let way = if ahead_seconds > 0 { "ahead of" } else { "behind" };
    let is = format!("this machine's clock is {} {way} the store's", text::age(apart));
    if ahead_seconds.abs() > SKEW_SECONDS_MAX {
        wrong(Code::Clock, format!("{is}: requests are refused"), SET_CLOCK)
    } else if ahead_seconds.abs() > SKEW_SECONDS {
        warning(Code::Clock, format!("{is}; above 15 min requests are refused"), SET_CLOCK)
    } else {
        ok(Code::Clock, "this machine's clock and the store's agree")
    }
}

/// What the running daemon has seen of the store.
fn seen(status: Option<&Status>) -> Vec<Check> {
    let not_tried =
        |code: Code| note(code, NOT_TRIED, "tracecraftctl flush, with something new to store");
    let Some((status, remote)) = status.and_then(|it| Some((it, it.remote.as_ref()?))) else {
        return vec![
            not_tried(Code::PutRight),
            not_tried(Code::DeleteRight),
            not_tried(Code::Conditions),
        ];
    };
    let put = if status.last_stored_at.is_some() && remote.puts > 0 {
        ok(Code::PutRight, "the daemon has stored something since its start")
    } else {
        not_tried(Code::PutRight)
    };
    vec![put, deletes(remote), conditions(remote)]
}

fn deletes(remote: &Remote) -> Check {
    match remote.deletes {
        Some(true) => ok(Code::DeleteRight, "the daemon was allowed to delete"),
        Some(false) => note(
            Code::DeleteRight,
            "deleting is refused: compaction is off, everything else works",
            "add s3:DeleteObject to the policy of these keys, or leave it so",
        ),
        None => note(
            Code::DeleteRight,
            NOT_TRIED,
            "the first compaction tries it: tracecraftctl compact ID",
        ),
    }
}

fn conditions(remote: &Remote) -> Check {
    let later = "a second writer of a session is noticed later, and nothing depends on it";
    match remote.conditions.as_str() {
        "honoured" => ok(Code::Conditions, "conditional puts are honoured"),
        "unknown" => {
            note(Code::Conditions, NOT_TRIED, "tracecraftctl flush, with something new to store")
        }
        word => note(
            Code::Conditions,
            format!("conditional puts are {}: {later}", text::line(word)),
            "let one machine record each session, as is usual",
        ),
    }
}
