//! Findings as they are put together: code, weight, object, words. Refuses to know how one comes about.

use super::super::find::chain;
use crate::api::{Finding, Verdict, Verified, Weight};
use crate::part::{SessionKey, printable};
use crate::store::StoreError;

/// Findings that are told of one session: a bucket may be wrong in as many places as it has objects, and a person needs the
/// first few.
const FINDINGS_MAX: usize = 100;

/// What `--repair` can see to.
pub(super) const REPAIR: &str = "`tracecraftctl verify ID --repair` mends it";

/// A finding without particulars. The object may be named by a stranger.
pub(super) fn finding(code: &str, weight: Weight, object: &str, message: &str) -> Finding {
    Finding {
        code: code.to_owned(),
        weight,
        object: printable(object),
        message: message.to_owned(),
        expected: None,
        found: None,
        hint: None,
    }
}

/// Something that is wrong, with what should be there, what is there, and what to do.
pub(super) fn wrong(
    code: &str,
    object: &str,
    message: &str,
    particulars: Option<(String, String)>,
    hint: &str,
) -> Finding {
    let (expected, found) = particulars.unzip();
    let hint = Some(hint.to_owned());
    Finding { expected, found, hint, ..finding(code, Weight::Wrong, object, message) }
}

/// An object of which nothing can be said, because the store did not answer. That is no damage.
pub(super) fn unreachable(error: &StoreError) -> Finding {
    let message = format!("could not be checked: {}", chain(error));
    Finding {
        hint: Some("try again when the store answers; nothing is known to be wrong".to_owned()),
        ..finding("store", Weight::Unchecked, &error.object, &message)
    }
}

/// The findings of one session as they are told.
pub(super) fn verified(
    key: &SessionKey,
    known: bool,
    counted: (u64, u64),
    waiting_parts: u64,
    mut findings: Vec<Finding>,
) -> Verified {
    for hint in findings.iter_mut().filter_map(|finding| finding.hint.as_mut()) {
        *hint = hint.replace("verify ID", &format!("verify {}", key.id()));
    }
    let any = |weight| findings.iter().any(|finding| finding.weight == weight);
    let verdict = match (any(Weight::Wrong), any(Weight::Unchecked)) {
        (true, _) => Verdict::Wrong,
        (false, true) => Verdict::Unchecked,
        (false, false) => Verdict::Fine,
    };
    findings.sort_by_key(|finding| match finding.weight {
        Weight::Wrong => 0,
        Weight::Unchecked => 1,
        Weight::Mended => 2,
        Weight::Note => 3,
    });
    let more_findings = findings.len().saturating_sub(FINDINGS_MAX) as u64;
    findings.truncate(FINDINGS_MAX);
    let (parts, bytes) = counted;
    let (harness, id) = (key.harness().to_owned(), key.id().to_owned());
    Verified { harness, id, known, verdict, parts, bytes, waiting_parts, findings, more_findings }
}
