//! What waits in the outbox for a session whose state is lost: which of it goes on where the store ends, and which was driven
//! out of its number by another writer.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::{AdoptError, Adopter, Held};
use crate::mirror::contents;
use crate::outbox::Waiting;
use crate::part::{PartEntry, hex};
use crate::state::{FewCounts, PendingPart};

impl Adopter {
    /// Takes the outbox's parts that abut, in order. Others were stored already, or never committed.
    pub(super) fn take_waiting(
        &self,
        held: &mut Held,
        waiting: &[Waiting],
    ) -> Result<(), AdoptError> {
        // Where stored objects have no known range, the number alone says that nothing is missing between them.
        let last = held.manifest.parts.iter().chain(&held.unnamed).last();
        let mut end = last.map_or(Some(0), |last| last.cursor_range.map(|[_, end]| end));
        for one in waiting {
            let follows =
                end.is_none_or(|end| end == one.range[0]) && one.name.seq == held.next_seq;
            if !follows || held.is_stored(one) {
                continue;
            }
            let Some(part) = self.waiting_part(one)? else { continue };
            end = Some(one.range[1]);
            held.next_seq = one.name.seq + 1;
            held.waiting.push(part);
        }
        self.persist_waiting(held)
    }

    /// What waits behind parts of this writer's own whose numbers another writer has given to other content: no state knows of
    /// these any more, but their ranges and numbers lead from what is named to what waits. All of them together wait to be
    /// named, which is refused, and then they move away as in every conflict. Nothing is taken that the named parts hold.
    pub(super) async fn take_driven_out(
        &self,
        held: &mut Held,
        waiting: &[Waiting],
    ) -> Result<(), AdoptError> {
        let Some(first) = waiting.iter().position(|one| !held.is_stored(one)) else {
            return Ok(());
        };
        let mut own = Vec::new();
        for one in &waiting[first..] {
            let follows = own.last().is_none_or(|last: &PendingPart| {
                last.range[1] == one.range[0] && last.seq + 1 == one.name.seq
            });
            if follows && let Some(part) = self.waiting_part(one)? {
                own.push(part);
            }
        }
        loop {
            let Some(next) = own.first() else { return Ok(()) };
            let (seq, start) = (next.seq, next.range[0]);
            if held.leads_to(seq, start) {
                break;
            }
            let Some(before) = self.stored_before(held, seq, start).await? else { return Ok(()) };
            own.insert(0, before);
        }
        // Without a part that is stored and driven out it may as well be what a kill left of a capture that was never committed.
        if own.iter().all(|part| part.stored_at.is_none()) {
            return Ok(());
        }
        let before = held.bytes_before(&own);
        let store = &*self.store;
        let shared = contents::shared(store, &held.key, &held.manifest, before, &own).await?;
        if shared == own.len() {
            return Ok(());
        }
        held.unnamed.retain(|entry| !own.iter().any(|part| part.seq <= entry.seq));
        held.next_seq = held.next_seq.max(own.last().map_or(0, |last| last.seq + 1));
        held.waiting = own;
        self.persist_waiting(held)
    }

    /// The listed part of this number that ends where the next one begins and that no manifest names.
    async fn stored_before(
        &self,
        held: &Held,
        seq: u32,
        end: u64,
    ) -> Result<Option<PendingPart>, AdoptError> {
        for (name, size) in held.listed.iter().filter(|(name, _)| name.seq + 1 == seq) {
            if held.manifest.parts.iter().any(|part| part.name() == *name) {
                continue;
            }
            let entry = self.unnamed_entry(&held.key, name, *size).await?;
            let range = entry.cursor_range.filter(|[start, last]| *last == end && start < last);
            let (Some(range), Some(sha256)) = (range, entry.sha256) else { continue };
            return Ok(Some(PendingPart {
                seq: name.seq,
                sha256,
                range,
                bytes: *size,
                redactions: FewCounts::default(),
                cut: false,
                captured_at: self.now.clone(),
                stored_at: Some(self.now.clone()),
                named: false,
            }));
        }
        Ok(None)
    }

    /// A part that waits, unless it was torn by a power loss before it was committed.
    fn waiting_part(&self, one: &Waiting) -> Result<Option<PendingPart>, AdoptError> {
        let bytes = self.tools.disk.read(&one.path).map_err(AdoptError::Outbox)?;
        let sha256 = hex(&Sha256::digest(&bytes));
        Ok(sha256.starts_with(&one.name.uuid).then(|| PendingPart {
            seq: one.name.seq,
            sha256,
            range: one.range,
            bytes: one.bytes,
            redactions: FewCounts::default(),
            cut: false,
            captured_at: self.now.clone(),
            stored_at: None,
            named: false,
        }))
    }

    /// Whoever wrote what waits may have died before it was durable.
    fn persist_waiting(&self, held: &Held) -> Result<(), AdoptError> {
        let waiting = held.waiting.iter().filter(|part| part.stored_at.is_none());
        let paths: Vec<PathBuf> =
            waiting.map(|part| self.tools.outbox.path(&held.key, part)).collect();
        if paths.is_empty() {
            return Ok(());
        }
        self.tools.disk.sync(&paths).map_err(AdoptError::Outbox)
    }
}

impl Held {
    /// Bytes that are stored, and named or to be named, before parts that wait to be named.
    pub(super) fn bytes_before(&self, waiting: &[PendingPart]) -> u64 {
        let first = waiting.first().map_or(u64::MAX, |part| part.range[0]);
        let is_before =
            |part: &&PartEntry| part.cursor_range.is_none_or(|[start, _]| start < first);
        let stored = self.manifest.parts.iter().chain(&self.unnamed);
        // Saturating: what a bucket says of itself may be beyond all numbers.
        stored.take_while(is_before).fold(0, |sum, part| sum.saturating_add(part.uploaded_bytes))
    }
}
