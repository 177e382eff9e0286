//! When a session is compacted without being asked: after what it has was named, when nothing more urgent is to be done.
//!
//! Knows when and whose; which parts is for [`tiers`], how for [`compactions`](super::compactions). It has no
//! timer: whatever makes a session ready for it (a manifest that was put, a rest that began, a store that is back)
//! wakes the loop anyway.

use tokio::time::Instant;

use super::compact::Wanted;
use super::{Engine, IDLE_AFTER, Numbers, Tiers, manifest, tiers};
use crate::api::Phase;
use crate::part::{Manifest, SessionKey};
use crate::state::{Record, Totals};
use crate::store::Conditions;

/// Compactions at a time that nobody asked for: they have time, and sends go first.
const AUTOMATIC_MAX: usize = 2;

/// Parts between two tries to begin a session's numbers again: each rewrites all of it.
const TURN_AGAIN: u32 = 100;

impl Engine {
    /// The sums of a manifest, and what is to be merged of it.
    pub(super) fn totals(&self, manifest: &Manifest) -> Totals {
        tiers::totals(self.settings.tiers(), manifest)
    }

    /// Notes whether a session has parts to be merged, as its record says.
    pub(super) fn note_mergeable(&mut self, key: &SessionKey) {
        let is_due = |record: &Record| record.totals.mergeable > 0 || self.is_to_turn(key, record);
        if self.state.get(key).is_some_and(is_due) {
            self.to_merge.insert(key.clone());
        } else {
            self.to_merge.remove(key);
        }
    }

    /// Begins what may begin now.
    pub(super) fn start_automatic(&mut self) {
        let Some(tiers) = self.settings.tiers() else { return };
        if self.to_merge.is_empty() || !self.has_leisure() {
            return;
        }
        while self.automatic_compactions() < AUTOMATIC_MAX
            && let Some(key) = self.to_merge.iter().find(|key| self.may_merge(key, tiers)).cloned()
        {
            // The merged file lies in the outbox for a while.
            let Some(record) = self.state.get(&key).cloned() else { return };
            let turns = self.is_to_turn(&key, &record);
            let bytes = if turns { record.totals.bytes } else { tiers.bytes_max };
            let room = self.settings.free_bytes_min.saturating_add(bytes);
            let free = self.tools.disk.free_bytes(&self.settings.state_dir).unwrap_or(u64::MAX);
            if free < room {
                return;
            }
            // Seen again when its manifest is next put, or at the next start, should nothing come of this.
            self.to_merge.remove(&key);
            if turns {
                self.live(&key).turn_from = record.next_seq + TURN_AGAIN;
                self.begin_automatic(key, Wanted::Turn);
            } else {
                self.begin_automatic(key, Wanted::Next { tiers, below: None });
            }
        }
    }

    /// Whether nothing more urgent is to be done: a stop never begins a compaction, `--once` is in a hurry, and a store that
    /// failed is left alone.
    fn has_leisure(&self) -> bool {
        self.phase == Phase::Recording
            && !self.settings.once
            && self.deletes != Some(false)
            && self.waiters.is_empty()
            && self.verification.is_none()
            && self.to_send.is_empty()
            && self.store_is_open()
            && !self.store_is_away()
    }

    /// Whether a session's parts may be merged now: they are settled, and nobody works on it.
    fn may_merge(&self, key: &SessionKey, tiers: Tiers) -> bool {
        let Some(record) = self.state.get(key) else { return false };
        let Some(live) = self.live.get(key) else { return false };
        let is_free = !live.sending
            && live.queued.is_none()
            && live.held_until.is_none()
            && live.rests_until.is_none()
            && live.rewriting.is_none()
            && !live.excluded
            && !live.relearning
            && !self.adopting.contains(key)
            && !self.compactions.contains_key(key);
        // An earlier generation may have been left to another writer, and is not ours any more.
        let is_ours = !record.superseded && record.leaving.is_none() && record.compaction.is_none();
        if self.is_to_turn(key, record) {
            let stored = record.pending.iter().all(|part| part.stored_at.is_some());
            return is_free && is_ours && stored && !live.looking;
        }
        is_free && is_ours && self.is_settled_for_merging(key) && self.is_worth(key, record, tiers)
    }

    /// Whether all that was captured is stored. What is not named yet, or not seen named, is left alone by the plan; an idle
    /// session waits until there is no such thing any more, if that is looked for at all.
    pub(super) fn is_settled_for_merging(&self, key: &SessionKey) -> bool {
        let Some(record) = self.state.get(key) else { return false };
        let is_checked = self.live.get(key).is_some_and(|live| live.unnamed_since.is_some());
        let waits = is_checked && self.is_idle(key);
        match manifest::may_be_overwritten(&*self.tools.store) || waits {
            true => record.pending.is_empty(),
            false => record.pending.iter().all(|part| part.stored_at.is_some()),
        }
    }

    /// Why a session has to go on as a new generation, if its numbers are the reason.
    pub(super) fn numbers_end(&self, record: &Record) -> Option<&'static str> {
        let Numbers { turn, last } = self.settings.numbers;
        match record.next_seq {
            _ if record.superseded => None,
            next if next >= last => Some("its sequence numbers are used up"),
            next if next < turn => None,
            _ if self.deletes == Some(false) => Some(
                "its sequence numbers are used up, and its store refuses to delete what could be merged",
            ),
            _ if self.settings.tiers().is_none() => {
                Some("its sequence numbers are used up, and compaction is off")
            }
            _ => None,
        }
    }

    /// Whether all of a session is to be merged, so that its numbers can begin again.
    fn is_to_turn(&self, key: &SessionKey, record: &Record) -> bool {
        let from = self.live.get(key).map_or(0, |live| live.turn_from);
        record.next_seq >= self.settings.numbers.turn.max(from)
            && !record.superseded
            && self.numbers_end(record).is_none()
    }

    fn is_idle(&self, key: &SessionKey) -> bool {
        let captured = self.live.get(key).and_then(|live| live.captured_at);
        captured.is_none_or(|at| Instant::now() >= at + IDLE_AFTER)
    }

    fn is_worth(&self, key: &SessionKey, record: &Record, tiers: Tiers) -> bool {
        let store = &self.tools.store;
        let honoured = store.conditions() == Conditions::Honoured;
        let many = honoured && record.totals.mergeable >= tiers.live_inputs_min;
        store.is_local() || many || self.is_idle(key)
    }
}
