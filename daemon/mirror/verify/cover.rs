//! Which parts a manifest that lost entries has to name: those that are there, if they are all; else those whose places are
//! known, and between them what the source still has, stored again.
//!
//! The state knows how many bytes were named. A set of parts with fewer of them is not all of the session, however well it abuts:
//! naming only that would hide the loss. So nothing is answered that has not exactly these bytes. Knows entries and ranges;
//! refuses to write a manifest.

use std::collections::HashMap;

use super::check::{Content, Contents, Meter, Seen, Subject};
use super::mend::{Mended, Mender};
use super::restore::sourceless;
use super::shape::{named_below, named_bytes};
use crate::mirror::find::chain;
use crate::part::{Manifest, PartEntry, PartName};
use crate::source::{self, Depth, Verdict};
use crate::state::Record;

/// What can stay, and what is lost: ranges, each with a number for the part that is to hold it.
type Cover = (Vec<PartEntry>, Vec<(u32, [u64; 2])>);

/// Entries of what is there.
struct There {
    entries: Vec<PartEntry>,
    /// Why they cannot be all of the parts just as they are.
    doubt: Option<String>,
}

impl Mender {
    /// The entries of a manifest that lost some, in order. An `Err` says why they cannot be told.
    pub(super) async fn covered(
        &self,
        (subject, record): (&Subject, &Record),
        seen: &Seen,
        (usable, old): (Option<&Manifest>, &Manifest),
        contents: &mut Contents,
        meter: &Meter,
        mended: &mut Mended,
    ) -> Result<Vec<PartEntry>, String> {
        let There { mut entries, doubt } = self.there(record, seen, usable, old, contents)?;
        let (bytes, had) = (stored_bytes(&entries), named_bytes(record));
        let differs = || match bytes == had {
            true => None,
            false => Some(format!("there are parts of {bytes} bytes, and {had} were named")),
        };
        let Some(doubt) = doubt.or_else(differs) else {
            let intact = usable.map_or(0, |manifest| manifest.parts.len());
            self.give_ranges((subject, record), seen, &mut entries, intact).await?;
            return Ok(entries);
        };
        if entries.iter().any(|entry| entry.cursor_range.is_none())
            && let Some(ranges) = self.ranges(subject, record, seen, &entries).await
        {
            place(&mut entries, ranges);
        }
        let (kept, gaps) = cover(record, entries).ok_or_else(|| doubt.clone())?;
        let enough = stored_bytes(&kept) == had;
        if gaps.is_empty() && enough {
            return Ok(kept);
        }
        if enough || gaps.is_empty() {
            return Err(doubt);
        }
        let lost = |why: String| format!("{doubt}; what is missing cannot be stored again: {why}");
        self.is_intact(record).await.map_err(lost)?;
        let lost_parts = self.measured(record, gaps, meter).await.map_err(lost)?;
        let with = stored_bytes(&kept) + stored_bytes(&lost_parts);
        if with != had {
            let why = format!("with what its source holds now they would be {with}");
            return Err(lost(why));
        }
        // What is damaged under one of these names is read again.
        lost_parts.iter().for_each(|part| drop(contents.remove(&part.name())));
        self.store_again((subject, record), kept, lost_parts, meter, mended).await.map_err(lost)
    }

    /// Stores parts that are nowhere, and puts their entries among the others.
    async fn store_again(
        &self,
        (subject, record): (&Subject, &Record),
        mut kept: Vec<PartEntry>,
        lost: Vec<PartEntry>,
        meter: &Meter,
        mended: &mut Mended,
    ) -> Result<Vec<PartEntry>, String> {
        let restored = self.put_again(subject, record, lost, meter).await;
        for (part, found) in restored.map_err(|error| chain(&error))? {
            let from = found?;
            let [start, end] = part.cursor_range.unwrap_or_default();
            let object = subject.key.part_key(&part.name());
            let message = format!("was stored again, {from}: bytes {start} to {end}");
            mended.did("part_missing", &object, &message);
            kept.push(part);
        }
        kept.sort_by_key(|part| part.seq);
        Ok(kept)
    }

    /// The parts that are there and that the manifest should name.
    fn there(
        &self,
        record: &Record,
        seen: &Seen,
        usable: Option<&Manifest>,
        old: &Manifest,
        contents: &Contents,
    ) -> Result<There, String> {
        let named = usable.map(|manifest| manifest.parts.clone()).unwrap_or_default();
        let count = named.len();
        let mut entries: Vec<PartEntry> =
            named.into_iter().filter(|part| !seen.wrong.contains(&part.name())).collect();
        let mut doubt = (entries.len() < count)
            .then(|| "parts that it names are not what they should be".into());
        let said: HashMap<PartName, &PartEntry> =
            old.parts.iter().map(|part| (part.name(), part)).collect();
        let from = usable.map_or(0, |manifest| manifest.next_seq);
        let wanted = |name: &PartName| name.seq >= from && name.seq < named_below(record);
        for (name, _) in seen.listed.iter().filter(|(name, _)| wanted(name)) {
            // One that the store did not give now may be as good as any.
            let content = contents.get(name).ok_or_else(|| format!("{name} could not be read"))?;
            match entry_of(name, content, said.get(name).copied(), &self.adopter.now) {
                Some(entry) => entries.push(entry),
                None => doubt = Some(format!("{name} is not what its name says")),
            }
        }
        if entries.windows(2).any(|pair| pair[0].seq >= pair[1].seq) {
            let why = "two parts have the same number, and which of them counts cannot be told";
            doubt = Some(why.into());
        }
        Ok(There { entries, doubt })
    }

    /// Whether everything before the cursor is in the source as it was when it was captured.
    async fn is_intact(&self, record: &Record) -> Result<(), String> {
        if let Some(why) = sourceless(record) {
            return Err(why.into());
        }
        let (files, record) = (self.adopter.tools.files.clone(), record.clone());
        let (encoding, cursor) = (record.encoding, record.cursor);
        let check = move || source::check(&*files, &record.source, encoding, &cursor, Depth::Whole);
        match self.adopter.blocking.run(check).await {
            Ok(Verdict::Rewritten { why, .. }) => Err(format!("its source was rewritten: {why}")),
            Ok(_) => Ok(()),
            Err(error) => Err(chain(&error)),
        }
    }
}

/// The parts that can stay, in order, and the ranges between them that none holds, each with a number for it: the last of
/// those that were given to what is lost. `None`: there is no number between two parts.
fn cover(record: &Record, entries: Vec<PartEntry>) -> Option<Cover> {
    let mut placed: Vec<([u64; 2], PartEntry)> =
        entries.into_iter().filter_map(|entry| Some((entry.cursor_range?, entry))).collect();
    // Of those that begin at the same byte the longest: the others were merged into it.
    placed.sort_by_key(|([start, end], _)| (*start, std::cmp::Reverse(*end)));
    let end_of_all = record.pending.first().map_or(record.cursor.offset, |part| part.range[0]);
    let (mut kept, mut gaps): (Vec<PartEntry>, _) = (Vec::new(), Vec::new());
    let (mut at, mut after) = (0, None);
    let mut gap = |at: u64, start: u64, after: Option<u32>, below: u32| {
        let seq = below.checked_sub(1).filter(|seq| after.is_none_or(|after| *seq > after))?;
        gaps.push((seq, [at, start]));
        Some(())
    };
    for ([start, end], entry) in placed {
        if start < at || end > end_of_all || after.is_some_and(|after| entry.seq <= after) {
            continue;
        }
        if start > at {
            gap(at, start, after, entry.seq)?;
        }
        (at, after) = (end, Some(entry.seq));
        kept.push(entry);
    }
    if at < end_of_all {
        gap(at, end_of_all, after, named_below(record))?;
    }
    Some((kept, gaps))
}

/// Says where entries are.
pub(super) fn place(entries: &mut [PartEntry], ranges: Vec<[u64; 2]>) {
    for (entry, range) in entries.iter_mut().zip(ranges) {
        entry.cursor_range = Some(range);
        entry.source_bytes = Some(range[1] - range[0]);
    }
}

fn stored_bytes(entries: &[PartEntry]) -> u64 {
    entries.iter().map(|entry| entry.uploaded_bytes).sum()
}

/// The entry of a part that is there; what the old manifest says of it counts where it fits. `None`: it may be damaged, since
/// neither its name nor the manifest says that these are its bytes.
fn entry_of(
    name: &PartName,
    content: &Content,
    said: Option<&PartEntry>,
    now: &str,
) -> Option<PartEntry> {
    let fits = |entry: &&PartEntry| {
        let length = entry.cursor_range.map(|[start, end]| end.checked_sub(start));
        entry.uploaded_bytes == content.bytes
            && entry.sha256.as_ref().is_none_or(|says| *says == content.sha256)
            && length.is_none_or(|length| length.is_some() && length == entry.source_bytes)
    };
    if let Some(entry) = said.filter(fits) {
        return Some(entry.clone());
    }
    let sha256 = Some(content.sha256.clone()).filter(|sha256| sha256.starts_with(&name.uuid))?;
    let range = content.range;
    Some(PartEntry {
        seq: name.seq,
        uuid: name.uuid.clone(),
        cursor_range: range,
        source_bytes: range.map(|[start, end]| end - start),
        uploaded_bytes: content.bytes,
        redactions: content.redactions.clone(),
        uploaded_at: now.to_owned(),
        compacted_from: None,
        sha256: Some(sha256),
        other: serde_json::Map::new(),
    })
}
