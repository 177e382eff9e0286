//! What is stored, against the source that it was read from, where that is still there.
//!
//! The redacted source has to be the replay, byte for byte, as far as both go: a source may have grown since. One that was
//! rewritten or is gone proves nothing, and other rules of redaction make other bytes of the same source: each is said as what
//! it is. Rows are compared by the last line of each, where the row is still what was captured. Changes nothing.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::check::{Contents, Meter, Seen, Subject};
use super::finding::{finding, unreachable, wrong};
use crate::api::{Finding, Weight};
use crate::ledger::Mark;
use crate::mirror::adopt::{AdoptError, Adopter, Held};
use crate::mirror::find::{NewFile, chain};
use crate::mirror::manifest::Failure;
use crate::part::{Manifest, PartEntry, SessionKey};
use crate::source::{self, Depth, Encoding, SourceError, Verdict};
use crate::state::Record;
use crate::store::ErrorKind;

/// How often a comparison begins anew that something changed under.
const TRIES_MAX: u32 = 3;

/// Rows that are named in a finding.
const ROWS_TOLD_MAX: usize = 5;

/// What no set of rules is called: then digests prove nothing, and what is around the marks is compared.
const NO_RULES: &str = "";

/// What a comparison comes to; never an error.
pub(super) async fn compare(
    adopter: &Adopter,
    subject: &Subject,
    mut seen: Seen,
    contents: &mut Contents,
    meter: &mut Meter,
) -> Seen {
    let note = |message: &str| finding("source", Weight::Note, &subject.key.prefix(), message);
    let Some(record) = &subject.record else {
        seen.findings.push(note("not compared: this daemon does not know its source"));
        return seen;
    };
    for _ in 0..TRIES_MAX {
        let Some(manifest) = &seen.manifest else { return seen };
        if seen.findings.iter().any(|f| f.weight == Weight::Wrong && f.code.starts_with("part_")) {
            seen.findings.push(note("not compared with its source before its parts are mended"));
            return seen;
        }
        let manifest = with_pending(manifest, record, &seen);
        let held = Held::of(subject.key.clone(), manifest, seen.listed.clone(), Vec::new());
        match try_compare(adopter, &subject.key, record, held).await {
            Ok(found) => {
                seen.findings.push(found);
                return seen;
            }
            Err(error) if is_passing(&error) => seen = subject.examine(contents, meter).await,
            Err(error) => {
                seen.findings.push(excuse(record, error));
                return seen;
            }
        }
    }
    let message = "could not be compared: it changed while it was read";
    seen.findings.push(of_source(record, "source_busy", Weight::Unchecked, message));
    seen
}

/// What is stored and waits to be named is compared, too.
fn with_pending(manifest: &Manifest, record: &Record, seen: &Seen) -> Manifest {
    let mut manifest = manifest.clone();
    for part in &record.pending {
        let is_there = seen.listed.iter().any(|(name, _)| *name == part.name());
        if !is_there || !manifest.name_part(part.entry()) {
            break;
        }
    }
    manifest
}

/// Whether something moved while it was looked at: the next try meets it at rest.
fn is_passing(error: &AdoptError) -> bool {
    match error {
        AdoptError::Changed => true,
        AdoptError::Store(Failure::Store(error)) => error.kind == ErrorKind::NotFound,
        _ => false,
    }
}

/// Something about the source itself: what is stored is not at fault.
fn of_source(record: &Record, code: &str, weight: Weight, message: &str) -> Finding {
    finding(code, weight, &record.source_file().to_string_lossy(), message)
}

fn excuse(record: &Record, error: AdoptError) -> Finding {
    match error {
        AdoptError::Source(SourceError::Missing(_)) => {
            let message = "is gone: there is no source to compare with";
            of_source(record, "source_gone", Weight::Note, message)
        }
        AdoptError::Store(Failure::Store(error)) => unreachable(&error),
        other => {
            let message = format!("could not be compared: {}", chain(&other));
            of_source(record, "source_unreadable", Weight::Unchecked, &message)
        }
    }
}

async fn try_compare(
    adopter: &Adopter,
    key: &SessionKey,
    record: &Record,
    held: Held,
) -> Result<Finding, AdoptError> {
    let note = |code: &str, message: &str| Ok(of_source(record, code, Weight::Note, message));
    if record.superseded {
        let message = "was rewritten or given up since: there is nothing to compare with";
        return note("source_rewritten", message);
    }
    if record.encoding == Encoding::Rows {
        return compare_rows(adopter, key, record, held).await;
    }
    if record.encoding == Encoding::Events {
        // What was seen of the database at the last capture may be old.
        let (databases, own) = (adopter.tools.databases.clone(), key.clone());
        let path = record.source.clone();
        databases.begin_look();
        adopter.blocking.run(move || databases.untold(own.harness(), &path, false)).await?;
    }
    let (files, path) = (adopter.tools.files.clone(), record.source.clone());
    let cursor = record.cursor.clone();
    let look = move || Ok((files.stat(&path)?, source::is_whole(&*files, &path, &cursor)?));
    let (stat, is_whole) = adopter.blocking.run(look).await.map_err(AdoptError::Source)?;
    let file = NewFile::of_record(record, stat);
    if !is_whole {
        let message = "its agent has put the beginning away: there is not all to compare with";
        return note("source_gone", message);
    }
    let Err(departed) = adopter.follow(&file, &held).await? else {
        let rules = held.manifest.rules.as_deref();
        if rules.is_some_and(|rules| rules != adopter.tools.redactor.rules_version()) {
            return note(
                "source_equal",
                "equals what is stored, but for what was removed: stored by other rules",
            );
        }
        return note("source_equal", "equals what is stored, as far as both go");
    };
    if is_rewritten(adopter, record).await? {
        let message = "was rewritten since it was captured: there is nothing to compare with";
        return note("source_rewritten", message);
    }
    // Another recorder may have seen more of it before it was cut back to where this one stands, and have merged that.
    let more = held.manifest.end().is_some_and(|end| end > record.cursor.offset);
    if more || departed.from >= record.cursor.offset || is_contested(&held.manifest, record) {
        let message = "another writer stores parts of this session too: they are not compared";
        return Ok(finding("source_foreign", Weight::Note, &key.prefix(), message));
    }
    // A manifest names the rules of its last put; parts may be older.
    let mut around = held;
    around.manifest.rules = Some(NO_RULES.to_owned());
    if adopter.follow(&file, &around).await?.is_ok() {
        let message = "equals what is stored, but for what was removed: stored by other rules of redaction, \
                       or changed at a [REDACTED] mark";
        return note("source_equal", message);
    }
    let object = departed.part.map_or(key.manifest_key(), |name| key.part_key(&name));
    let message =
        format!("is not what its source holds from byte {} on: {}", departed.from, departed.why);
    let hint = "the source is as it was when it was captured, so what is stored was changed: restore \
                the object from a copy";
    Ok(wrong("source_differs", &object, &message, None, hint))
}

/// Whether another writer's parts stand where this daemon's should: it moves away as soon as it sends.
fn is_contested(manifest: &Manifest, record: &Record) -> bool {
    let mut manifest = manifest.clone();
    record.pending.iter().any(|part| !manifest.name_part(part.entry()))
}

/// Whether the source is no longer what was captured of it: the daemon's own digests tell, whatever is stored.
async fn is_rewritten(adopter: &Adopter, record: &Record) -> Result<bool, AdoptError> {
    let files = adopter.tools.files.clone();
    let (path, encoding, cursor) = (record.source.clone(), record.encoding, record.cursor.clone());
    let checked = adopter
        .blocking
        .run(move || source::check(&*files, &path, encoding, &cursor, Depth::Whole))
        .await?;
    Ok(matches!(checked, Verdict::Rewritten { .. }))
}

/// Of a row that is as it was captured, the last stored line has to be that row.
async fn compare_rows(
    adopter: &Adopter,
    key: &SessionKey,
    record: &Record,
    held: Held,
) -> Result<Finding, AdoptError> {
    let file = NewFile::of_record(record, record.cursor.stat);
    // What was seen of the database at the last capture may be old.
    adopter.tools.databases.begin_look();
    let stored = adopter.last_states(&file, &held).await?;
    // Of what waits in the outbox no stored line can tell: rows are compared as they were where the stored log ends.
    let last = held.manifest.parts.last().map(PartEntry::name);
    let waits = record.pending.last().is_some_and(|part| Some(part.name()) != last);
    let end = if waits { held.manifest.end() } else { Some(record.cursor.offset) };
    let unclear = || {
        let message = "its rows were not compared: parts of it wait to be sent";
        of_source(record, "source_busy", Weight::Unchecked, message)
    };
    let Some(offset) = end else { return Ok(unclear()) };
    let (tools, own) = (adopter.tools.clone(), key.clone());
    let path = record.source.clone();
    let read = move || -> Result<_, AdoptError> {
        let ledger = tools.ledgers.read(&*tools.disk, &own, offset).map_err(AdoptError::Outbox)?;
        let rows = tools.databases.look_at(own.harness(), &path, |view| {
            let mut rows = BTreeMap::new();
            view.rows(&mut |id, digest, _| {
                rows.insert(id, digest);
                ControlFlow::Continue(())
            })?;
            Ok(rows)
        })?;
        Ok((ledger, rows))
    };
    let (ledger, rows) = adopter.blocking.run(read).await?;
    let Some(ledger) = ledger else {
        if waits {
            return Ok(unclear());
        }
        let message = "its rows were not compared: which of them are captured is being learned";
        return Ok(of_source(record, "source_busy", Weight::Unchecked, message));
    };
    let differs = |id: &i64, mark: &Mark| match mark {
        Mark::Captured(digest) => {
            rows.get(id) == Some(digest) && stored.get(id) != Some(&Mark::Captured(*digest))
        }
        Mark::Gone => !rows.contains_key(id) && stored.get(id) != Some(&Mark::Gone),
        Mark::Unknown => false,
    };
    let wrong_rows: Vec<String> = ledger
        .marks
        .iter()
        .filter(|(id, mark)| differs(id, mark))
        .map(|(id, _)| id.to_string())
        .collect();
    if wrong_rows.is_empty() {
        let message = "equals what is stored: the last state of each row";
        return Ok(of_source(record, "source_equal", Weight::Note, message));
    }
    let shown = wrong_rows.iter().take(ROWS_TOLD_MAX).cloned().collect::<Vec<_>>().join(", ");
    let message = format!(
        "the last stored line of {} rows is not what the row says (ids {shown}{})",
        wrong_rows.len(),
        if wrong_rows.len() > ROWS_TOLD_MAX { ", …" } else { "" }
    );
    let hint = "these rows are as they were captured, so what is stored was changed: restore it from a copy";
    Ok(wrong("source_differs", &key.prefix(), &message, None, hint))
}
