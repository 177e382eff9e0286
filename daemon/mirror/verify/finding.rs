//! Findings as they are put together: code, weight, object, words. Refuses to know how one comes about.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use super::super::find::chain;
use crate::api::{Finding, Verdict, Verified, Weight};
use crate::part::{SessionKey, printable};
use crate::store::StoreError;

/// Findings that are told of one session: a bucket may be wrong in as many places as it has objects, and a person needs the
/// first few.
const FINDINGS_MAX: usize = 100;

/// What `--repair` can see to.
pub(super) const REPAIR: &str = "`tracecraftctl verify ID --repair` mends it";

/// What `--repair` can see to as long as the bytes are on this machine.
pub(super) const PUTS_BACK: &str =
    "`tracecraftctl verify ID --repair` puts it back if the outbox or the source still has it";

/// The findings of a session: of each kind the first ones, and how many more there were. What is wrong in a bucket may be
/// wrong in each of a session's parts.
#[derive(Debug, Default)]
pub(super) struct Findings {
    told: Vec<Finding>,
    counts: BTreeMap<String, usize>,
    more: u64,
}

impl Findings {
    pub(super) fn push(&mut self, finding: Finding) {
        let count = self.counts.entry(finding.code.clone()).or_default();
        *count += 1;
        match *count > FINDINGS_MAX {
            true => self.more += 1,
            false => self.told.push(finding),
        }
    }

    pub(super) fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        findings.into_iter().for_each(|finding| self.push(finding));
    }

    /// Takes those of a further step, and how many more these were.
    pub(super) fn absorb(&mut self, others: Findings) {
        self.more += others.more;
        self.extend(others);
    }

    pub(super) fn has(&self, code: &str) -> bool {
        self.told.iter().any(|finding| finding.code == code)
    }
}

impl From<Finding> for Findings {
    fn from(finding: Finding) -> Findings {
        let mut findings = Findings::default();
        findings.push(finding);
        findings
    }
}

impl Deref for Findings {
    type Target = Vec<Finding>;
    fn deref(&self) -> &Vec<Finding> {
        &self.told
    }
}

impl DerefMut for Findings {
    fn deref_mut(&mut self) -> &mut Vec<Finding> {
        &mut self.told
    }
}

impl IntoIterator for Findings {
    type Item = Finding;
    type IntoIter = std::vec::IntoIter<Finding>;
    fn into_iter(self) -> Self::IntoIter {
        self.told.into_iter()
    }
}

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

/// Of what a repair did not find anywhere it is no use to say that a repair puts it back. Where the store did not answer, it may yet.
pub(super) fn after_a_repair(verified: &mut Verified) {
    if verified.findings.iter().any(|finding| finding.code == "store") {
        return;
    }
    for hint in verified.findings.iter_mut().filter_map(|finding| finding.hint.as_mut()) {
        if hint.contains("--repair` puts it back") {
            *hint = "neither outbox, source nor store has it as it was: only a copy of the bucket can bring it back".to_owned();
        }
    }
}

/// The findings of one session as they are told.
pub(super) fn verified(
    key: &SessionKey,
    known: bool,
    counted: (u64, u64),
    waiting_parts: u64,
    findings: Findings,
) -> Verified {
    let Findings { told: mut findings, more, .. } = findings;
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
    let more_findings = more + findings.len().saturating_sub(FINDINGS_MAX) as u64;
    findings.truncate(FINDINGS_MAX);
    let (parts, bytes) = counted;
    let (harness, id) = (key.harness().to_owned(), key.id().to_owned());
    Verified { harness, id, known, verdict, parts, bytes, waiting_parts, findings, more_findings }
}
