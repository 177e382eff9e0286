//! Outbox → store: puts the parts of one session in order, then names them in its manifest.
//!
//! Changes no state: the mirror commits what comes back. A kill after a put and before that commit costs one more look: the
//! next send finds the file gone and the object there.

use std::path::PathBuf;

use crate::durable::Disk;
use crate::mirror::manifest::{self, Failure, Header};
use crate::mirror::tiers::{self, Tiers};
use crate::mirror::{Engine, Tools};
use crate::part::{PartEntry, SessionKey};
use crate::state::{PendingPart, Totals};
use crate::store::{Body, ErrorKind, Store, StoreError};

/// Parts put by one send before the mirror commits them.
pub(crate) const SEND_PARTS_MAX: usize = 8;

/// What is to be sent of one session.
#[derive(Debug)]
pub(crate) struct Send {
    pub(crate) key: SessionKey,
    /// Captured, not known to be stored; in ascending sequence.
    pub(crate) parts: Vec<(PendingPart, PathBuf)>,
    /// Stored, not known to be named.
    pub(crate) unnamed: Vec<PartEntry>,
    /// Bytes that are named before all of these.
    pub(crate) before: u64,
    /// What the manifest is to say; `None`: the manifest waits.
    pub(crate) header: Option<Header>,
    /// How far parts are merged, if they are.
    pub(crate) tiers: Option<Tiers>,
    /// How many entries that manifest has, as far as is known: what it takes of memory.
    pub(crate) entries: u64,
}

impl Send {
    /// Only the parts are sent: their manifest waits for another one.
    pub(super) fn put_off_naming(&mut self) {
        self.unnamed = Vec::new();
        self.header = None;
        self.entries = 0;
    }
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) key: SessionKey,
    /// As the job said.
    pub(crate) entries: u64,
    /// Parts that are stored now, with the time.
    pub(crate) stored: Vec<(PendingPart, String)>,
    /// A part that is neither in the outbox nor in the store.
    pub(crate) lost: Option<PendingPart>,
    /// What the manifest now says.
    pub(crate) named: Option<Named>,
    /// What stopped the rest.
    pub(crate) error: Option<Failure>,
}

/// What a manifest says after it was put.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) next_seq: u32,
    /// The first part that was named just now, if any was: it was not seen in a manifest yet.
    pub(crate) added_from: Option<u32>,
    /// The first of all parts that were to be named.
    pub(crate) first: Option<u32>,
    pub(crate) totals: Totals,
    /// The header that it got.
    pub(crate) header: Header,
}

impl Engine {
    /// What there is to send of a session; `None`: nothing.
    pub(super) fn new_send(&self, key: &SessionKey) -> Option<Send> {
        let record = self.state.get(key)?;
        let unsent = record.pending.iter().filter(|p| p.stored_at.is_none());
        let parts: Vec<_> = unsent
            .take(SEND_PARTS_MAX)
            .map(|part| (part.clone(), self.outbox.path(key, part)))
            .collect();
        let names =
            self.tools.store.is_local() && !parts.is_empty() || self.wants_manifest(key, record);
        let rules = self.settings.redactor.rules_version();
        let header = names.then(|| Header::new(record, rules, &self.now_text()));
        // After an outage these are thousands: none is copied for a manifest that waits.
        let waits = record.pending.iter().filter(|p| names && p.stored_at.is_some());
        let unnamed: Vec<PartEntry> = waits.map(PendingPart::entry).collect();
        let entries = record.totals.parts + (unnamed.len() + parts.len()) as u64;
        let entries = if names { entries } else { 0 };
        let before = record.named_bytes;
        let key = key.clone();
        let any = !parts.is_empty() || header.is_some();
        let tiers = self.settings.tiers();
        any.then_some(Send { key, parts, unnamed, before, header, entries, tiers })
    }
}

/// Sends; stops at the first failure.
pub(crate) async fn send(tools: Tools, job: Send) -> Sent {
    let Tools { store, disk, clock, .. } = tools;
    let Send { key, parts, mut unnamed, before, header, entries, tiers } = job;
    let mut sent = Sent { key, entries, stored: Vec::new(), lost: None, named: None, error: None };
    for (mut part, path) in parts {
        match put_part(&*store, &*disk, &sent.key, &part, path).await {
            Ok(true) => {
                let at = clock.now().to_string();
                part.stored_at = Some(at.clone());
                unnamed.push(part.entry());
                sent.stored.push((part, at));
            }
            Ok(false) => {
                sent.lost = Some(part);
                break;
            }
            Err(error) => {
                sent.error = Some(error.into());
                break;
            }
        }
    }
    // What could be stored is named even if a later part failed: nothing is gained by waiting.
    if let Some(header) = header
        && (sent.error.is_none() || !sent.stored.is_empty())
    {
        let before = Some(before);
        match manifest::name_parts(&*store, &sent.key, Some(&header), before, &unnamed).await {
            Ok(manifest::Named { manifest, found_below }) => {
                let next_seq = manifest.next_seq;
                let added_from = (found_below < next_seq).then_some(found_below);
                let first = unnamed.first().map(|part| part.seq);
                let totals = tiers::totals(tiers, &manifest);
                sent.named = Some(Named { next_seq, added_from, first, totals, header });
            }
            Err(error) => sent.error = sent.error.or(Some(error)),
        }
    }
    sent
}

/// `false`: the part is neither here nor there.
async fn put_part(
    store: &dyn Store,
    disk: &dyn Disk,
    key: &SessionKey,
    part: &PendingPart,
    path: PathBuf,
) -> Result<bool, StoreError> {
    let name = key.part_key(&part.name());
    let note = manifest::range_note(part.range);
    match store.put(&name, Body::File(path.clone()), Some(&note)).await {
        Ok(()) => Ok(true),
        // The outbox has lost the file: stored before a kill, or lost for good. The name is a digest, so size is proof enough.
        Err(e) if e.kind == ErrorKind::NotFound && matches!(disk.size(&path), Ok(None)) => {
            Ok(store.size(&name).await? == Some(part.bytes))
        }
        Err(e) => Err(e),
    }
}
