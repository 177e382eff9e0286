//! Whether a manifest agrees with itself and with what the state knows of it: order, ranges, sums. Pure: asks no store.

use std::collections::BTreeSet;

use super::finding::{Findings, REPAIR, finding, wrong};
use crate::api::{Finding, Weight};
use crate::part::{Manifest, Outline, PartEntry, SessionKey};
use crate::redact::Counts;
use crate::state::Record;

/// Everything that the document itself shows to be wrong.
pub(super) fn faults(
    key: &SessionKey,
    bytes: &[u8],
    manifest: &Manifest,
    record: Option<&Record>,
    findings: &mut Findings,
) {
    identity(key, manifest, findings);
    next_seq(key, bytes, manifest, findings);
    // The reference tool may store bytes twice and say no ranges: what it wrote is checked as far as it says.
    if manifest.parts.iter().all(|part| part.sha256.is_some()) {
        ranges(key, manifest, findings);
        sums(key, manifest, findings);
    } else {
        chained_ranges(key, manifest, findings);
    }
    if let Some(record) = record {
        behind(key, manifest, record, findings);
    }
}

/// The number below which this daemon has named everything that it stored.
pub(super) fn named_below(record: &Record) -> u32 {
    record.pending.first().map_or(record.next_seq, |part| part.seq)
}

/// Whether a manifest says that it is this session's.
pub(super) fn is_own(key: &SessionKey, manifest: &Manifest) -> bool {
    manifest.harness == key.harness() && manifest.session_id == key.id()
}

fn identity(key: &SessionKey, manifest: &Manifest, findings: &mut Findings) {
    if !is_own(key, manifest) {
        let says = format!("{}/{}", manifest.harness, manifest.session_id);
        findings.push(wrong(
            "manifest_foreign",
            &key.manifest_key(),
            "is the manifest of another session",
            Some((key.to_string(), crate::part::printable(&says))),
            REPAIR,
        ));
    }
}

/// Reading takes a `next_seq` that is too low for one above the last number; here it is told.
fn next_seq(key: &SessionKey, bytes: &[u8], manifest: &Manifest, findings: &mut Findings) {
    let outline = Outline::of(bytes).unwrap_or_default();
    let after_last = manifest.parts.last().map_or(0, |part| part.seq + 1);
    if let Some(says) = outline.next_seq
        && says < u64::from(after_last)
    {
        let message = "next_seq is not above all numbers that are given";
        let particulars = Some((format!("at least {after_last}"), says.to_string()));
        findings.push(wrong("next_seq", &key.manifest_key(), message, particulars, REPAIR));
    }
}

/// Parts of ours abut, from 0 on.
fn ranges(key: &SessionKey, manifest: &Manifest, findings: &mut Findings) {
    let mut end = Some(0);
    for part in &manifest.parts {
        let Some([start, to]) = part.cursor_range else {
            findings.push(no_range(key, part));
            end = None;
            continue;
        };
        if part.source_bytes.is_some_and(|bytes| bytes != to - start) {
            let bytes = part.source_bytes.unwrap_or_default().to_string();
            let message = "its source_bytes are not the length of its range";
            let particulars = Some(((to - start).to_string(), bytes));
            findings.push(wrong("source_bytes", &name(key, part), message, particulars, REPAIR));
        }
        let is_first = part.seq == manifest.parts[0].seq;
        match end {
            Some(end) if start > end && is_first && manifest.generation > 1 => {
                let message = format!(
                    "begins at byte {start} of the source: what is before is in an earlier generation"
                );
                findings.push(finding("begins_later", Weight::Note, &name(key, part), &message));
            }
            Some(end) if start > end => findings.push(gap(key, part, end, start)),
            Some(end) if start < end => {
                let message = format!(
                    "overlap of {} bytes: it begins before the part before it ends",
                    end - start
                );
                let particulars = Some((format!("byte {end}"), format!("byte {start}")));
                let hint = "two parts say that they hold these bytes: `tracecraftctl verify ID --repair` \
                            mends it if its source tells which one does";
                findings.push(wrong("overlap", &name(key, part), &message, particulars, hint));
            }
            _ => {}
        }
        end = Some(to);
    }
}

/// Of parts of the reference tool those count that a reader replays.
fn chained_ranges(key: &SessionKey, manifest: &Manifest, findings: &mut Findings) {
    let links = manifest.chain();
    let mut end = Some(0);
    for link in &links {
        let Some([start, to]) = link.range else {
            findings.push(no_range(key, link.part));
            end = None;
            continue;
        };
        if let Some(end) = end.filter(|end| start > *end) {
            findings.push(gap(key, link.part, end, start));
        }
        end = Some(to);
    }
    let replayed: BTreeSet<u32> = links.iter().map(|link| link.part.seq).collect();
    for part in &manifest.parts {
        if !replayed.contains(&part.seq) {
            let message = "holds bytes that other parts hold too: readers leave it out";
            findings.push(finding("twice", Weight::Note, &name(key, part), message));
        }
    }
}

fn gap(key: &SessionKey, part: &PartEntry, end: u64, start: u64) -> Finding {
    let message = format!("gap of {} bytes before it: no part holds them", start - end);
    let particulars = Some((format!("byte {end}"), format!("byte {start}")));
    let hint = "`tracecraftctl verify ID --repair` mends it if its source tells; else only a copy of the \
                bucket has these bytes";
    wrong("gap", &name(key, part), &message, particulars, hint)
}

fn no_range(key: &SessionKey, part: &PartEntry) -> Finding {
    let message = "says no range: whether it abuts cannot be told";
    finding("no_range", Weight::Note, &name(key, part), message)
}

/// What a manifest says in sum: merges change none of it.
fn sums(key: &SessionKey, manifest: &Manifest, findings: &mut Findings) {
    let mut differs = |field: &str, sum: String, says: String| {
        if sum != says {
            let message = format!("{field} is not the sum of its parts");
            let particulars = Some((sum, says));
            findings.push(wrong("totals", &key.manifest_key(), &message, particulars, REPAIR));
        }
    };
    let Some((source, redactions)) = summed(manifest) else { return };
    let says = manifest.total_uploaded_bytes.to_string();
    differs("total_uploaded_bytes", manifest.bytes().to_string(), says);
    differs("total_source_bytes", source.to_string(), manifest.total_source_bytes.to_string());
    let count = |counts: &Counts| counts.values().fold(0u64, |sum, n| sum.saturating_add(*n));
    let says = &manifest.redaction_counts;
    if redactions != *says {
        let told = |counts| format!("{} of {} kinds", count(counts), counts.len());
        differs("redaction_counts", told(&redactions), told(says) + ", differently");
    }
}

/// Source bytes and secrets of all entries; `None` where one says no source bytes. Of what the reference tool merged nobody
/// says either, also not after a merge of ours took it in, and the totals need not count it: it may have been merged unnamed.
pub(super) fn summed(manifest: &Manifest) -> Option<(u64, Counts)> {
    let parts = manifest.parts.iter();
    let source =
        parts.clone().try_fold(0u64, |sum, p| Some(sum.saturating_add(p.source_bytes?)))?;
    let mut redactions = Counts::new();
    for (name, count) in parts.flat_map(|part| &part.redactions) {
        let sum = redactions.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*count);
    }
    Some((source, redactions))
}

/// How many bytes this daemon knows to be named below [`named_below`]: merges keep them.
pub(super) fn named_bytes(record: &Record) -> u64 {
    // What was named and not seen named yet is named again by the daemon itself, should it be lost.
    let unsure = record.pending.iter().filter(|part| part.named).map(|part| part.bytes).sum();
    record.totals.bytes.saturating_sub(unsure)
}

/// Whether a manifest names less than this daemon once wrote into it. A generation that was left to another writer is theirs.
pub(super) fn is_behind(manifest: &Manifest, record: &Record) -> bool {
    !record.superseded && manifest.bytes() < named_bytes(record)
}

fn behind(key: &SessionKey, manifest: &Manifest, record: &Record, findings: &mut Findings) {
    if is_behind(manifest, record) {
        let (had, names) = (named_bytes(record), manifest.bytes());
        findings.push(wrong(
            "manifest_behind",
            &key.manifest_key(),
            "names fewer bytes than when this daemon last wrote it: it is an old one, or was changed",
            Some((format!("at least {had} bytes"), format!("{names} bytes"))),
            REPAIR,
        ));
    }
}

fn name(key: &SessionKey, part: &PartEntry) -> String {
    key.part_key(&part.name())
}
