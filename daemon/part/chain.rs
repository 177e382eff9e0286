//! Which of a manifest's parts make up the session, where a writer has stored bytes twice.
//!
//! The reference tool begins again at 0 after its `stop`, after its state was lost, and beside a recorder that already follows
//! the session. Its parts then start before the end of those before them. Ranges say so. Knows ranges only.

use std::collections::BTreeMap;

use super::{Manifest, PartEntry};

/// A part in its place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Link<'a> {
    /// The entry.
    pub(crate) part: &'a PartEntry,
    /// Its range, or what the entries around it and the sums make of it: then it is a hint.
    pub(crate) range: Option<[u64; 2]>,
}

/// The harness of which the reference tool's ranges are row ids while its sums are bytes: a range that is reckoned from the sums
/// would reach over everything that follows.
const RANGES_ARE_ROWS: &str = "hermes";

impl Manifest {
    /// The parts to replay, in order: all of them, unless ranges say that bytes are there twice. Then those that lead from 0
    /// without gap and overlap as far as any do, and what is behind a gap.
    pub(crate) fn chain(&self) -> Vec<Link<'_>> {
        let ranges = self.ranges();
        let link = |at: usize| Link { part: &self.parts[at], range: ranges[at] };
        // Where a range is not known nothing can be told; order is then all there is.
        let Some(known) = ranges.iter().copied().collect::<Option<Vec<[u64; 2]>>>() else {
            return (0..ranges.len()).map(link).collect();
        };
        let abut = known.windows(2).all(|pair| pair[0][1] == pair[1][0]);
        if abut && known.first().is_none_or(|first| first[0] == 0) {
            return (0..ranges.len()).map(link).collect();
        }
        path(&known).into_iter().map(link).collect()
    }

    /// The range of each part. A compaction of the reference tool says none of its merged part, but leaves the sums as they were:
    /// what they have beyond all others is that part's, if the stored bytes add up. Ranges that are row ids have nothing to do
    /// with sums of bytes.
    fn ranges(&self) -> Vec<Option<[u64; 2]>> {
        let mut ranges: Vec<_> = self.parts.iter().map(|part| part.cursor_range).collect();
        let unknown: Vec<usize> = (0..ranges.len()).filter(|at| ranges[*at].is_none()).collect();
        let known = ranges.iter().flatten();
        let known = known.fold(0u64, |sum, [start, end]| sum.saturating_add(end - start));
        let sums = unknown.len() == 1
            && self.bytes() == self.total_uploaded_bytes
            && self.harness != RANGES_ARE_ROWS;
        for at in unknown {
            let start = if at == 0 { Some(0) } else { ranges[at - 1].map(|[_, end]| end) };
            let beyond = self.total_source_bytes.checked_sub(known).filter(|_| sums);
            let by_sums = start.zip(beyond).and_then(|(start, bytes)| start.checked_add(bytes));
            // Sums that know nothing of it (the manifest was rebuilt) do not make it empty. Where the next one begins, it ends.
            let by_next = self.parts.get(at + 1).and_then(|next| next.cursor_range);
            let range = |end: Option<u64>| start.zip(end).filter(|(start, end)| start < end);
            let found = range(by_sums).or(range(by_next.map(|[start, _]| start)));
            ranges[at] = found.map(|(start, end)| [start, end]);
        }
        ranges
    }
}

/// How a position is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// It is where everything begins.
    Start,
    /// Something was lost between that position and this one. What is behind a gap is better than nothing.
    Gap(u64),
    /// This range ends here.
    Range(usize),
}

/// Indices of ranges that lead from 0 to the furthest end. Of two ways to a position the later part's counts: it was written
/// when more was known.
fn path(ranges: &[[u64; 2]]) -> Vec<usize> {
    let some = |at: &usize| ranges[*at][0] < ranges[*at][1];
    let mut by_start: Vec<usize> = (0..ranges.len()).filter(some).collect();
    by_start.sort_by_key(|at| ranges[*at][0]);
    let mut reached = BTreeMap::from([(0, By::Start)]);
    for at in by_start {
        let [start, end] = ranges[at];
        let furthest = reached.last_key_value().map_or(0, |(position, _)| *position);
        if start > furthest {
            reached.insert(start, By::Gap(furthest));
        }
        if reached.contains_key(&start) {
            let by = reached.entry(end).or_insert(By::Range(at));
            *by = match *by {
                By::Range(other) => By::Range(other.max(at)),
                By::Start | By::Gap(_) => By::Range(at),
            };
        }
    }
    let mut found = Vec::new();
    let mut last = reached.last_key_value().map(|(_, by)| *by);
    while let Some(by) = last {
        last = match by {
            By::Start => None,
            By::Gap(before) => reached.get(&before).copied(),
            By::Range(at) => {
                found.push(at);
                reached.get(&ranges[at][0]).copied()
            }
        };
    }
    found.reverse();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::part::SessionKey;
    use crate::redact::Counts;

    /// Parts of one stored byte each; the sums are those of their sources.
    fn manifest(total_source_bytes: u64, ranges: &[Option<[u64; 2]>]) -> Manifest {
        let part = |(seq, range): (usize, &Option<[u64; 2]>)| PartEntry {
            seq: seq as u32,
            uuid: "00000000".into(),
            cursor_range: *range,
            source_bytes: None,
            uploaded_bytes: 1,
            redactions: Counts::new(),
            uploaded_at: String::new(),
            compacted_from: None,
            sha256: None,
            other: serde_json::Map::new(),
        };
        Manifest {
            parts: ranges.iter().enumerate().map(part).collect(),
            total_source_bytes,
            total_uploaded_bytes: ranges.len() as u64,
            ..Manifest::new(&SessionKey::new("codex", "x"))
        }
    }

    fn chained(manifest: &Manifest) -> Vec<(u32, Option<[u64; 2]>)> {
        manifest.chain().iter().map(|link| (link.part.seq, link.range)).collect()
    }

    #[test]
    fn bytes_that_are_there_twice_are_replayed_once() {
        let table: [(&[[u64; 2]], &[u32]); 8] = [
            (&[], &[]),
            (&[[0, 5], [5, 9]], &[0, 1]),
            // Mirrored, stopped, mirrored again.
            (&[[0, 5], [0, 9]], &[1]),
            (&[[0, 5], [0, 5], [5, 9]], &[1, 2]),
            // A second writer beside ours, ahead of it, behind it.
            (&[[0, 5], [0, 7], [5, 9]], &[0, 2]),
            (&[[0, 5], [0, 7], [5, 9], [7, 12]], &[1, 3]),
            (&[[0, 5], [3, 9], [5, 7]], &[0, 2]),
            (&[[0, 5], [6, 9], [7, 8]], &[0, 1]),
        ];
        for (ranges, expected) in table {
            let known: Vec<_> = ranges.iter().copied().map(Some).collect();
            let seqs: Vec<u32> =
                chained(&manifest(0, &known)).iter().map(|(seq, _)| *seq).collect();
            assert_eq!(seqs, expected, "{ranges:?}");
        }
    }

    #[test]
    fn a_merged_part_without_a_range_gets_what_sums_and_neighbours_leave() {
        let all = |ranges: &[Option<[u64; 2]>]| -> Vec<(u32, Option<[u64; 2]>)> {
            ranges.iter().enumerate().map(|(seq, range)| (seq as u32, *range)).collect()
        };
        assert_eq!(chained(&manifest(9, &[None])), all(&[Some([0, 9])]));
        let merged_then_mirrored = [None, Some([5, 9])];
        assert_eq!(
            chained(&manifest(9, &merged_then_mirrored)),
            all(&[Some([0, 5]), Some([5, 9])])
        );
        // Merged, stopped, mirrored anew from 0: the second one has it all.
        assert_eq!(chained(&manifest(14, &[None, Some([0, 9])])), [(1, Some([0, 9]))]);
        // The manifest was rebuilt from a listing, and its sums are those of what was named since.
        assert_eq!(
            chained(&manifest(4, &merged_then_mirrored)),
            all(&[Some([0, 5]), Some([5, 9])])
        );
        assert_eq!(chained(&manifest(0, &[None])), all(&[None]));
        // The sums are not those of the parts.
        let doubtful = Manifest { total_uploaded_bytes: 7, ..manifest(9, &merged_then_mirrored) };
        assert_eq!(chained(&doubtful), all(&[Some([0, 5]), Some([5, 9])]));
        let doubtful = Manifest { total_uploaded_bytes: 7, ..manifest(9, &[None]) };
        assert_eq!(chained(&doubtful), all(&[None]));
        assert_eq!(chained(&manifest(9, &[None, None])), all(&[None, None]));
    }

    #[test]
    fn t57_merged_rows_end_where_the_next_part_begins_whatever_the_sums_say() {
        let rows = Manifest::new(&SessionKey::new("hermes", "x"));
        let rows = |ranges| Manifest { harness: rows.harness.clone(), ..manifest(900, ranges) };
        let merged = rows(&[None, Some([12, 700])]);
        assert_eq!(chained(&merged), [(0, Some([0, 12])), (1, Some([12, 700]))]);
        assert_eq!(chained(&rows(&[None])), [(0, None)]);
    }
}
