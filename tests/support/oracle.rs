//! The reader of a bucket that owes nothing to the product: its own names, its own JSON, its own arithmetic.
//!
//! It reads every session twice: as a reader of manifests does and as one that only lists keys does, and notes what breaks
//! the format. What the sessions should hold is for [`super::judge`].

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::objects::Objects;

/// One session directory (one generation) as two readers see it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stored {
    pub(crate) harness: String,
    /// Directory name.
    pub(crate) id: String,
    /// The manifest, where there is a readable one.
    pub(crate) manifest: Option<Value>,
    /// The manifest's parts in order, then listed parts from `next_seq` on.
    pub(crate) by_manifest: Vec<u8>,
    /// All listed parts in order of name.
    pub(crate) by_listing: Vec<u8>,
    /// Listed parts below `next_seq` that the manifest does not name.
    pub(crate) leftovers: Vec<String>,
    /// Listed parts from `next_seq` on: stored, not yet named.
    pub(crate) unnamed: Vec<String>,
    /// Number of parts that the manifest names.
    pub(crate) named: usize,
    /// Source bytes missing between neighbours, and source bytes that two neighbours share.
    pub(crate) gap: u64,
    pub(crate) overlap: u64,
    /// What breaks the format.
    pub(crate) faults: Vec<String>,
}

/// A bucket as it stands.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bucket {
    pub(crate) sessions: Vec<Stored>,
    /// Files that are neither parts nor manifests, relative to the bucket.
    pub(crate) litter: Vec<String>,
}

#[derive(Debug)]
struct Part {
    name: String,
    seq: u64,
    body: Vec<u8>,
}

/// Parts and manifest of one session directory, unread.
type Folder = (Vec<Part>, Option<Vec<u8>>);

impl Stored {
    /// The id without a generation, and the generation.
    pub(crate) fn base(&self) -> (&str, u32) {
        let split = self.id.rsplit_once('~').and_then(|(base, n)| Some((base, n.parse().ok()?)));
        split.unwrap_or((&self.id, 1))
    }

    /// A text field of the manifest.
    pub(crate) fn text(&self, field: &str) -> Option<&str> {
        self.manifest.as_ref()?.get(field)?.as_str()
    }

    /// Secrets removed, by pattern, as the manifest counts them.
    pub(crate) fn redactions(&self) -> BTreeMap<String, u64> {
        let counts = self.manifest.as_ref().and_then(|m| m.get("redaction_counts"));
        counts.map(counts_of).unwrap_or_default()
    }

    fn fault(&mut self, text: String) {
        self.faults.push(format!("{}/{}: {text}", self.harness, self.id));
    }
}

impl Bucket {
    /// Reads all that a place holds.
    pub(crate) fn read(place: impl Into<Objects>) -> Bucket {
        Bucket::of_objects(place.into().read(""))
    }

    /// Reads only the generations of one session.
    pub(crate) fn read_one(place: impl Into<Objects>, harness: &str, id: &str) -> Bucket {
        let mut objects = place.into().read(&format!("sessions/{harness}/{id}"));
        let is = |name: &str| {
            name == id || name.strip_prefix(id).is_some_and(|rest| rest.starts_with('~'))
        };
        objects.retain(|(key, _)| key.split('/').nth(2).is_some_and(is));
        Bucket::of_objects(objects)
    }

    fn of_objects(objects: Vec<(String, Vec<u8>)>) -> Bucket {
        let mut bucket = Bucket::default();
        let mut folders: BTreeMap<(String, String), Folder> = BTreeMap::new();
        for (relative, body) in objects {
            let names: Vec<&str> = relative.split('/').collect();
            let ["sessions", harness, id, name] = names[..] else {
                bucket.litter.push(relative);
                continue;
            };
            let folder = folders.entry((harness.into(), id.into())).or_default();
            if name == "meta.json" {
                folder.1 = Some(body);
            } else if let Some(seq) = sequence(name) {
                folder.0.push(Part { name: name.into(), seq, body });
            } else {
                bucket.litter.push(relative);
            }
        }
        for ((harness, id), (parts, manifest)) in folders {
            bucket.sessions.push(read_session(harness, id, parts, manifest));
        }
        bucket
    }

    /// The generations of a session in order.
    pub(crate) fn generations(&self, harness: &str, id: &str) -> Vec<&Stored> {
        let mut found: Vec<&Stored> =
            self.sessions.iter().filter(|s| s.harness == harness && s.base().0 == id).collect();
        found.sort_by_key(|stored| stored.base().1);
        found
    }

    /// The one whose manifest names this source.
    pub(crate) fn of_source(&self, harness: &str, path: &Path) -> Vec<&Stored> {
        let path = path.to_string_lossy();
        let is = |s: &&Stored| s.harness == harness && s.text("source_path") == Some(&path);
        self.sessions.iter().filter(is).collect()
    }

    /// Everything that breaks the format at any time, a kill included.
    pub(crate) fn faults(&self) -> Vec<String> {
        self.sessions.iter().flat_map(|stored| stored.faults.clone()).collect()
    }

    /// Everything that breaks the promises for a bucket whose daemon has finished its work.
    pub(crate) fn faults_at_rest(&self) -> Vec<String> {
        let mut faults = self.faults();
        faults.extend(self.litter.iter().map(|name| format!("{name}: neither part nor manifest")));
        for stored in &self.sessions {
            let name = format!("{}/{}", stored.harness, stored.id);
            faults.extend(
                stored.leftovers.iter().map(|part| format!("{name}: {part} was left over")),
            );
            faults.extend(
                stored.unnamed.iter().map(|part| format!("{name}: {part} is in no manifest")),
            );
            if stored.manifest.is_none() {
                faults.push(format!("{name}: no manifest"));
            }
        }
        faults
    }

    /// Source bytes missing and doubled, over all sessions.
    pub(crate) fn gap_and_overlap(&self) -> (u64, u64) {
        (
            self.sessions.iter().map(|stored| stored.gap).sum(),
            self.sessions.iter().map(|stored| stored.overlap).sum(),
        )
    }
}

/// The sequence number in `part-NNNNN-<8 hex>.jsonl`.
fn sequence(name: &str) -> Option<u64> {
    let (seq, digest) = name.strip_prefix("part-")?.strip_suffix(".jsonl")?.split_once('-')?;
    let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    let fits = seq.len() == 5 && digest.len() == 8 && digest.bytes().all(hex);
    fits.then(|| seq.parse().ok()).flatten()
}

fn hex_digest(body: &[u8]) -> String {
    Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn counts_of(value: &Value) -> BTreeMap<String, u64> {
    let entries = value.as_object().into_iter().flatten();
    entries.filter_map(|(name, count)| Some((name.clone(), count.as_u64()?))).collect()
}

fn read_session(
    harness: String,
    id: String,
    mut parts: Vec<Part>,
    manifest: Option<Vec<u8>>,
) -> Stored {
    let mut stored = Stored { harness, id, ..Stored::default() };
    parts.sort_by(|one, other| one.name.cmp(&other.name));
    for part in &parts {
        let digest = hex_digest(&part.body);
        if part.name[11..19] != digest[..8] {
            stored.fault(format!("{} holds bytes with the digest {}", part.name, &digest[..8]));
        }
        stored.by_listing.extend_from_slice(&part.body);
    }
    let mut named = BTreeSet::new();
    let mut next_seq = 0;
    if let Some(bytes) = manifest {
        match serde_json::from_slice::<Value>(&bytes) {
            Ok(manifest) => {
                next_seq = read_manifest(&mut stored, &manifest, &parts, &mut named);
                stored.manifest = Some(manifest);
            }
            Err(why) => stored.fault(format!("meta.json is not JSON: {why}")),
        }
    }
    stored.named = named.len();
    let mut newest = None;
    for part in parts.iter().filter(|part| !named.contains(&part.name)) {
        if part.seq < next_seq {
            stored.leftovers.push(part.name.clone());
            continue;
        }
        if newest == Some(part.seq) {
            stored.fault(format!("two parts have the sequence number {}", part.seq));
        }
        newest = Some(part.seq);
        stored.by_manifest.extend_from_slice(&part.body);
        stored.unnamed.push(part.name.clone());
    }
    compare_readers(&mut stored);
    stored
}

/// Reads the parts that a manifest names, in order, and returns its `next_seq`.
fn read_manifest(
    stored: &mut Stored,
    manifest: &Value,
    parts: &[Part],
    named: &mut BTreeSet<String>,
) -> u64 {
    check_head(stored, manifest);
    let mut totals = Totals::default();
    let entries = manifest.get("parts").and_then(Value::as_array).cloned().unwrap_or_default();
    for entry in &entries {
        let number = |field: &str| entry.get(field).and_then(Value::as_u64);
        let (Some(seq), Some(uuid)) = (number("seq"), entry.get("uuid").and_then(Value::as_str))
        else {
            stored.fault(format!("an entry without seq or uuid: {entry}"));
            continue;
        };
        let name = format!("part-{seq:05}-{uuid}.jsonl");
        if totals.last_seq.is_some_and(|last| seq <= last) {
            stored.fault(format!("{name} is out of order or doubled"));
        }
        totals.last_seq = Some(seq);
        let Some(part) = parts.iter().find(|part| part.name == name) else {
            stored.fault(format!("{name} is named and not there, at source byte {}", totals.end));
            continue;
        };
        check_entry(stored, entry, part, &mut totals);
        stored.by_manifest.extend_from_slice(&part.body);
        named.insert(name);
    }
    check_totals(stored, manifest, &totals);
    let after_last = totals.last_seq.map_or(0, |last| last + 1);
    match manifest.get("next_seq").and_then(Value::as_u64) {
        Some(next) if next >= after_last => next,
        other => {
            stored.fault(format!(
                "next_seq is {other:?}, the last part's number is {:?}",
                totals.last_seq
            ));
            after_last
        }
    }
}

#[derive(Debug, Default)]
struct Totals {
    last_seq: Option<u64>,
    /// End of the last range.
    end: u64,
    source: u64,
    uploaded: u64,
    redactions: BTreeMap<String, u64>,
}

fn check_head(stored: &mut Stored, manifest: &Value) {
    let fields = [
        ("schema_version", Value::from(1)),
        ("harness", Value::from(stored.harness.clone())),
        ("session_id", Value::from(stored.id.clone())),
    ];
    for (field, expected) in fields {
        if manifest.get(field) != Some(&expected) {
            stored.fault(format!("{field} is {:?}, expected {expected}", manifest.get(field)));
        }
    }
    for field in [
        "last_uploaded_at",
        "total_source_bytes",
        "total_uploaded_bytes",
        "source_path",
        "started_at",
    ] {
        if manifest.get(field).is_none_or(Value::is_null) {
            stored.fault(format!("{field} is missing or null"));
        }
    }
}

fn check_entry(stored: &mut Stored, entry: &Value, part: &Part, totals: &mut Totals) {
    let name = &part.name;
    let number = |field: &str| entry.get(field).and_then(Value::as_u64);
    if number("uploaded_bytes") != Some(part.body.len() as u64) {
        let says = number("uploaded_bytes");
        stored.fault(format!("{name} has {} bytes, uploaded_bytes says {says:?}", part.body.len()));
    }
    if let Some(digest) = entry.get("sha256").and_then(Value::as_str)
        && digest != hex_digest(&part.body)
    {
        stored.fault(format!("{name} does not have the digest that the manifest names"));
    }
    totals.uploaded += part.body.len() as u64;
    for (pattern, count) in entry.get("redactions").map(counts_of).unwrap_or_default() {
        *totals.redactions.entry(pattern).or_default() += count;
    }
    let range = entry.get("cursor_range").and_then(Value::as_array).cloned().unwrap_or_default();
    let [Some(from), Some(to)] = [0, 1].map(|at| range.get(at).and_then(Value::as_u64)) else {
        stored.fault(format!("{name} has no cursor_range of two numbers"));
        return;
    };
    if from > totals.end {
        stored.gap += from - totals.end;
        stored.fault(format!(
            "gap of {} bytes at source byte {} before {name}",
            from - totals.end,
            totals.end
        ));
    }
    if from < totals.end {
        stored.overlap += totals.end - from;
        stored.fault(format!(
            "overlap of {} bytes at source byte {from} in {name}",
            totals.end - from
        ));
    }
    if to <= from {
        stored.fault(format!("{name} has the empty range {from}..{to}"));
    }
    let source = number("source_bytes");
    if source != to.checked_sub(from) {
        stored.fault(format!("{name} spans {from}..{to}, source_bytes says {source:?}"));
    }
    totals.source += source.unwrap_or_default();
    totals.end = to;
}

fn check_totals(stored: &mut Stored, manifest: &Value, totals: &Totals) {
    let sums = [("total_source_bytes", totals.source), ("total_uploaded_bytes", totals.uploaded)];
    for (field, sum) in sums {
        let says = manifest.get(field).and_then(Value::as_u64);
        if says != Some(sum) {
            stored.fault(format!("{field} says {says:?}, the parts have {sum}"));
        }
    }
    let says = manifest.get("redaction_counts").map(counts_of).unwrap_or_default();
    if says != totals.redactions {
        stored.fault(format!(
            "redaction_counts says {says:?}, the parts have {:?}",
            totals.redactions
        ));
    }
}

/// A reader that only lists keys sees every record at least once, and exactly once when nothing is left over.
fn compare_readers(stored: &mut Stored) {
    if stored.leftovers.is_empty() {
        if stored.by_listing != stored.by_manifest {
            let at = super::planted::common_prefix(&stored.by_listing, &stored.by_manifest);
            stored.fault(format!(
                "the listing's reader departs from the manifest's at stored byte {at}"
            ));
        }
        return;
    }
    let records: BTreeSet<&[u8]> = stored.by_listing.split_inclusive(|b| *b == b'\n').collect();
    let mut at = 0;
    for record in stored.by_manifest.split_inclusive(|b| *b == b'\n') {
        if !records.contains(record) {
            let text = format!("the listing's reader misses the record at stored byte {at}");
            return stored.fault(text);
        }
        at += record.len();
    }
}

/// The names and bytes of all parts of a bucket: what must not change when nothing is new.
pub(crate) fn parts(place: impl Into<Objects>) -> BTreeMap<String, String> {
    let is_part = |key: &str| key.rsplit('/').next().is_some_and(|name| sequence(name).is_some());
    let objects = place.into().read("").into_iter().filter(|(key, _)| is_part(key));
    objects.map(|(key, body)| (key, hex_digest(&body))).collect()
}

/// Path, size, digest and modification time of every file below a directory, and of the directories.
pub(crate) fn snapshot(dir: &Path, leave_out: &[&str]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(path) = pending.pop() {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Ok(about) = fs::symlink_metadata(&path) else { continue };
        if leave_out.contains(&name.as_str()) {
            continue;
        }
        let modified = about.modified().ok();
        let digest = if about.is_file() {
            hex_digest(&fs::read(&path).unwrap_or_default())
        } else {
            String::new()
        };
        let mode = std::os::unix::fs::MetadataExt::mode(&about);
        found.insert(
            path.display().to_string(),
            format!("{mode:o} {} {modified:?} {digest}", about.len()),
        );
        if about.is_dir() {
            pending.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|e| e.path()));
        }
    }
    found
}
