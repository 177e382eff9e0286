//! Which adjacent parts of a session are merged next, so that it has tens of parts and each byte is rewritten a few times.
//!
//! Knows numbers and sizes; refuses to know stores and time. A part's tier is how often it can be divided by the
//! fan-in into what it stands for: 0 for a part as it was captured, 1 for what stands for 16 of them, 2 for 256. A run of parts
//! is merged if that lifts every one of them into a higher tier, or fills the merged part, or is the last thing that can happen
//! to them: so each of these happens to a byte a bounded number of times.

use std::ops::Range;

use super::manifest;
use crate::part::{Manifest, PartEntry};
use crate::state::Totals;

/// Parts of one tier that make one of the next. Fewer would rewrite each byte more often, more would leave more parts.
const FAN_IN: u64 = 16;

/// Largest part that is made: it is read, checked and stored again in seconds, also on a slow line, and goes up in one request.
const MERGED_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Most inputs of one merge: its intent names them all in one line of the journal.
const INPUTS_MAX: usize = 1024;

/// Parts that a live session in a remote store has before they are merged. Each costs a get and a delete then, so they are taken
/// in one go; an idle session is compacted with fewer.
const LIVE_INPUTS_MIN: u32 = 256;

/// How far parts are merged, and from when on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tiers {
    /// At least 2.
    pub(crate) fan_in: u64,
    /// Largest merged part. What has half of it is full and stays as it is, so that any two others fit into one.
    pub(crate) bytes_max: u64,
    /// Most inputs of one merge. At least the fan-in.
    pub(crate) inputs_max: usize,
    /// Inputs that a live session in a remote store has to have.
    pub(crate) live_inputs_min: u32,
}

impl Default for Tiers {
    fn default() -> Tiers {
        Tiers {
            fan_in: FAN_IN,
            bytes_max: MERGED_BYTES_MAX,
            inputs_max: INPUTS_MAX,
            live_inputs_min: LIVE_INPUTS_MIN,
        }
    }
}

/// A part as the policy sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Its size.
    pub(crate) bytes: u64,
    /// How many numbers it stands for: its own and those of the parts that were merged into it.
    pub(crate) span: u64,
    /// It is never merged: another writer's, or not known well enough.
    pub(crate) fixed: bool,
}

/// The manifest's sums, and how many of its parts would be merged next.
pub(crate) fn totals(tiers: Option<Tiers>, manifest: &Manifest) -> Totals {
    let next = tiers.and_then(|tiers| tiers.next(manifest, None));
    let mergeable = next.map_or(0, |run| u32::try_from(run.len()).unwrap_or(u32::MAX));
    Totals { mergeable, ..manifest::totals(manifest) }
}

/// Whether all is known of a part that a merge needs: then one of ours has stored or merged it.
pub(crate) fn is_ours(part: &PartEntry) -> bool {
    part.sha256.is_some() && part.cursor_range.is_some()
}

impl Tiers {
    /// The next run to merge of a session's parts, all of them in order, as places in the manifest. Only parts below a number
    /// are taken, if there is one: those from it on are not settled.
    pub(crate) fn next(&self, manifest: &Manifest, below: Option<u32>) -> Option<Range<usize>> {
        // Where bytes are there twice, a merge would make one object of both copies.
        if manifest.chain().len() != manifest.parts.len() {
            return None;
        }
        let ends = manifest.parts.iter().skip(1).map(|part| part.seq).chain([manifest.next_seq]);
        let pieces: Vec<Piece> = manifest
            .parts
            .iter()
            .zip(ends)
            .take_while(|(part, _)| below.is_none_or(|below| part.seq < below))
            .map(|(part, end)| Piece {
                bytes: part.uploaded_bytes,
                span: u64::from(end.saturating_sub(part.seq)).max(1),
                fixed: !is_ours(part),
            })
            .collect();
        self.run(&pieces)
    }

    /// The next run to merge: at least two pieces, none of them fixed or full.
    pub(crate) fn run(&self, pieces: &[Piece]) -> Option<Range<usize>> {
        let mut start = 0;
        for (at, piece) in pieces.iter().enumerate() {
            if self.stays(piece) {
                if at - start >= 2 {
                    // Nothing is ever added to these, so that this happens to them once.
                    return Some(self.fitting(pieces, start..at));
                }
                start = at + 1;
            }
        }
        self.lifted(pieces, start)
    }

    /// Of the pieces behind the last one that stays: a run that is lifted above the tier of each of its pieces. The highest tier
    /// first, so that what would be merged again at once is merged once.
    fn lifted(&self, pieces: &[Piece], start: usize) -> Option<Range<usize>> {
        let tiers: Vec<u32> =
            pieces[start..].iter().map(|piece| piece.span.max(1).ilog(self.fan_in)).collect();
        let highest = tiers.iter().copied().max()?;
        (0..=highest).rev().find_map(|tier| {
            let wanted = self.fan_in.saturating_pow(tier + 1);
            let mut at = 0;
            while at < tiers.len() {
                let length = tiers[at..].iter().take_while(|own| **own <= tier).count();
                let run = self.fitting(pieces, start + at..start + at + length);
                let of_run = &pieces[run.clone()];
                let span: u64 = of_run.iter().map(|piece| piece.span).sum();
                let is_full = of_run.iter().map(|piece| piece.bytes).sum::<u64>() >= self.full();
                if of_run.len() >= 2 && (span >= wanted || is_full) {
                    return Some(run);
                }
                at += length + 1;
            }
            None
        })
    }

    /// As many pieces from the first on as may go into one part.
    fn fitting(&self, pieces: &[Piece], run: Range<usize>) -> Range<usize> {
        let mut bytes: u64 = 0;
        let fits = |piece: &&Piece| {
            bytes = bytes.saturating_add(piece.bytes);
            bytes <= self.bytes_max
        };
        let count = pieces[run.clone()].iter().take(self.inputs_max).take_while(fits).count();
        run.start..run.start + count
    }

    fn stays(&self, piece: &Piece) -> bool {
        piece.fixed || piece.bytes >= self.full()
    }

    fn full(&self) -> u64 {
        self.bytes_max / 2
    }
}

#[cfg(test)]
mod tests;
