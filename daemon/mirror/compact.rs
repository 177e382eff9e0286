//! Merging a session's parts into one, byte for byte, while the session may be live.
//!
//! Order: merged file durable in the outbox, intent committed, merged part put, manifest put and read back, inputs deleted. A
//! kill before the manifest leaves a part that readers do not use; a kill after it leaves inputs that the manifest does not
//! name. Either way the intent in the state says how to finish, and finishing twice is finishing once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

use crate::api::Progress;
use crate::durable::{Blocking, Disk};
use crate::mirror::manifest::{self, Failure};
use crate::mirror::tiers::{self, Tiers};
use crate::part::{Manifest, PartEntry, SessionKey, hex};
use crate::redact::Counts;
use crate::state::Compaction;
use crate::store::{Body, ErrorKind, Object, Store, StoreError};

/// How often a manifest may turn out to be another writer's before the compaction is given up.
const SWAPS_MAX: u32 = 8;

/// Where conditions mean nothing, a write of another writer may replace a manifest this long after it was put: it had read the
/// one before, which may take as long as a put that is asked again.
pub(super) const OVERWRITTEN_WITHIN: Duration = Duration::from_secs(45);

/// Inputs that are asked for, or deleted, at a time: a merge of hundreds of small parts waits for answers and not for bytes.
const INPUTS_AT_A_TIME: usize = 4;

/// Bytes copied at a time.
const COPY_BYTES: usize = 256 * 1024;

/// What is deleted to learn whether deleting is allowed: no part and no manifest ever has this name.
const NEVER_WAS: &str = "never-was";

/// The operation of an error of our own disk, which is no failure of the store.
pub(super) const OUTBOX_WRITE: &str = "write";

/// What a compaction works with.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) blocking: Blocking,
}

/// Which parts are to be merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All but so many of the newest.
    AllBut(usize),
    /// The next run of adjacent ones, of those below a number if there is one.
    Next { tiers: Tiers, below: Option<u32> },
    /// All of them, so that numbers can begin again behind the one that is left.
    Turn,
}

/// What to merge, as the manifest names it.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) inputs: Vec<PartEntry>,
    pub(crate) parts_before: usize,
}

/// Reads the manifest and chooses what to merge. Fewer than two inputs: nothing to do.
pub(crate) async fn plan(
    store: &dyn Store,
    key: &SessionKey,
    wanted: Wanted,
    try_delete: bool,
) -> Result<Plan, Failure> {
    if try_delete {
        // Where inputs cannot be deleted, merging them would leave everything there twice.
        store.delete(&format!("{}{NEVER_WAS}", key.prefix())).await?;
    }
    let manifest = manifest::read(store, key).await?.unwrap_or_else(|| Manifest::new(key));
    // What another writer stored a second time is not to be merged in for good.
    let parts: Vec<PartEntry> = manifest.chain().iter().map(|link| link.part.clone()).collect();
    let parts_before = parts.len();
    let run = match wanted {
        Wanted::AllBut(keep_tail) => 0..parts_before.saturating_sub(keep_tail),
        // Another writer's part has sums that are not known: it is merged for who asks, and not by itself.
        Wanted::Turn if parts.iter().all(tiers::is_ours) => 0..parts_before,
        Wanted::Turn => 0..0,
        Wanted::Next { tiers, below } => tiers.next(&manifest, below).unwrap_or(0..0),
    };
    let inputs = parts.into_iter().take(run.end).skip(run.start).collect();
    Ok(Plan { inputs, parts_before })
}

/// Streams the inputs into a durable file, checking each against what the manifest says of it.
pub(crate) async fn merge(
    tools: &Tools,
    key: &SessionKey,
    inputs: &[PartEntry],
    into: PathBuf,
    now: String,
    progress: &mpsc::Sender<Progress>,
) -> Result<Compaction, Failure> {
    let total_bytes = inputs.iter().map(|p| p.uploaded_bytes).sum();
    let at_outbox = |e: std::io::Error| outbox_error(&into, e);
    let mut out = tools.disk.create(&into).map_err(at_outbox)?;
    let mut whole = Sha256::new();
    let mut done_bytes = 0;
    let mut asked: Vec<BoxFuture<'_, Result<(String, Object), StoreError>>> = Vec::new();
    for input in inputs {
        let name = key.part_key(&input.name());
        asked.push(Box::pin(async move {
            let object = tools.store.get(&name).await?;
            Ok((name, object))
        }));
    }
    let mut opened = stream::iter(asked).buffered(INPUTS_AT_A_TIME);
    for input in inputs {
        let Some(next) = opened.next().await else { break };
        let (name, Object { mut reader, .. }) = next?;
        let mut own = Sha256::new();
        let mut size = 0;
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let n = reader.read(&mut buffer).await.map_err(|e| read_error(&name, e))?;
            if n == 0 {
                break;
            }
            own.update(&buffer[..n]);
            whole.update(&buffer[..n]);
            size += n as u64;
            done_bytes += n as u64;
            out.write_all(&buffer[..n]).map_err(at_outbox)?;
            // Progress that nobody reads in time is dropped: it is only progress.
            let _ = progress.try_send(Progress::Working { done_bytes, total_bytes });
        }
        let digest = hex(&own.finalize());
        if size != input.uploaded_bytes {
            let what = format!("{size} bytes long, its manifest says {}", input.uploaded_bytes);
            return Err(Failure::Damaged { key: name, what });
        }
        if input.sha256.as_ref().is_some_and(|sha| *sha != digest) {
            return Err(Failure::Damaged { key: name, what: "not what its digest says".into() });
        }
    }
    out.flush().map_err(at_outbox)?;
    drop(out);
    let (disk, path) = (tools.disk.clone(), into.clone());
    tools.blocking.run(move || disk.sync(&[path])).await.map_err(at_outbox)?;
    let merged = merged_entry(inputs, hex(&whole.finalize()), done_bytes, now);
    Ok(Compaction { inputs: inputs.iter().map(PartEntry::name).collect(), merged })
}

/// The merged part's manifest entry: the number of its first input, the ranges of all.
fn merged_entry(inputs: &[PartEntry], sha256: String, bytes: u64, now: String) -> PartEntry {
    let ranges: Option<Vec<[u64; 2]>> = inputs.iter().map(|p| p.cursor_range).collect();
    let abutting = ranges
        .filter(|all| all.windows(2).all(|pair| pair[0][1] == pair[1][0]))
        .and_then(|all| Some([all.first()?[0], all.last()?[1]]));
    let mut redactions = Counts::new();
    for (name, count) in inputs.iter().flat_map(|p| &p.redactions) {
        *redactions.entry(name.clone()).or_default() += count;
    }
    let cut = inputs.iter().filter_map(|p| p.other.get("cut")).next().cloned();
    PartEntry {
        seq: inputs.first().map_or(0, |p| p.seq),
        uuid: sha256[..8].to_owned(),
        cursor_range: abutting,
        source_bytes: inputs.iter().map(|p| p.source_bytes).sum(),
        uploaded_bytes: bytes,
        redactions,
        uploaded_at: now,
        compacted_from: Some(inputs.len() as u32),
        sha256: Some(sha256),
        other: cut.map(|cut| ("cut".to_owned(), cut)).into_iter().collect(),
    }
}

/// Stores the merged part. `false`: it is neither in the outbox nor in the store, and the inputs stay as they are.
pub(crate) async fn publish(
    store: &dyn Store,
    key: &SessionKey,
    merged: &PartEntry,
    file: PathBuf,
) -> Result<bool, StoreError> {
    let name = key.part_key(&merged.name());
    let note = merged.cursor_range.map(manifest::range_note);
    match store.put(&name, Body::File(file), note.as_deref()).await {
        Ok(()) => Ok(true),
        Err(e) if e.kind == ErrorKind::NotFound => {
            Ok(store.size(&name).await? == Some(merged.uploaded_bytes))
        }
        Err(e) => Err(e),
    }
}

/// Puts the manifest that names the merged part instead of its inputs, reads it back, then deletes the inputs. The caller
/// sees to it that nobody else of this process writes the manifest meanwhile. `file` is the merged part in the outbox, where it
/// is still there.
pub(crate) async fn swap(
    store: &dyn Store,
    key: &SessionKey,
    compaction: &Compaction,
    file: PathBuf,
) -> Result<Manifest, Failure> {
    let gone = || Failure::Damaged { key: key.manifest_key(), what: "gone".into() };
    let merged = &compaction.merged;
    let is_input = |part: &PartEntry| compaction.inputs.contains(&part.name());
    let mut number = 1;
    let manifest = loop {
        let mut seen = manifest::see(store, key).await?;
        let mut manifest = seen.manifest.take().ok_or_else(gone)?;
        if manifest.parts.iter().any(|part| part.name() == merged.name()) {
            break manifest;
        }
        if manifest.parts.iter().filter(|part| is_input(part)).count() != compaction.inputs.len() {
            let what = "no longer naming what was merged: another writer changed it".into();
            return Err(Failure::Damaged { key: key.manifest_key(), what });
        }
        let name = key.part_key(&merged.name());
        if store.size(&name).await? != Some(merged.uploaded_bytes) {
            return Err(Failure::Damaged { key: name, what: "not stored as it was put".into() });
        }
        manifest.parts.retain(|part| !is_input(part));
        let at = manifest.parts.partition_point(|part| part.seq < merged.seq);
        manifest.parts.insert(at, merged.clone());
        // Inputs are the only copy until the store shows the manifest that does without them: it is read back, and where a
        // write of another writer that had begun before may still replace it, a while later.
        if manifest::write(store, key, &seen, &manifest, number).await?
            && manifest::may_be_overwritten(store)
        {
            tokio::time::sleep(OVERWRITTEN_WITHIN).await;
        }
        number += 1;
        if number > SWAPS_MAX {
            let what = "replaced again and again by another writer".into();
            return Err(Failure::Damaged { key: key.manifest_key(), what });
        }
    };
    // Before it was named another recorder may have taken it for a leftover, or for its own stray, if it had cut the same bytes
    // as one part: whoever looks from now on finds it named, and inputs are still there.
    let name = key.part_key(&merged.name());
    if store.size(&name).await? != Some(merged.uploaded_bytes)
        && !publish(store, key, merged, file).await?
    {
        return Err(Failure::Damaged { key: name, what: "gone".into() });
    }
    // A former process may have put both and died before they were durable; inputs are deleted for good.
    store.persist(&key.part_key(&merged.name())).await?;
    store.persist(&key.manifest_key()).await?;
    let mut deletes: Vec<BoxFuture<'_, Result<(), StoreError>>> = Vec::new();
    for input in compaction.inputs.iter().filter(|name| **name != merged.name()) {
        let name = key.part_key(input);
        deletes.push(Box::pin(async move { store.delete(&name).await }));
    }
    let mut deleted = stream::iter(deletes).buffer_unordered(INPUTS_AT_A_TIME);
    while let Some(result) = deleted.next().await {
        result?;
    }
    Ok(manifest)
}

/// Lets numbers begin again behind the last named part. `None`: something else is there, which a number given twice might be
/// taken for, or another writer was faster.
pub(crate) async fn turn(store: &dyn Store, key: &SessionKey) -> Result<Option<u32>, Failure> {
    let seen = manifest::see(store, key).await?;
    let Some(mut manifest) = seen.manifest.clone() else { return Ok(None) };
    let named = manifest.parts.iter().map(PartEntry::name);
    let listed = manifest::list_parts(store, key).await?.into_iter().map(|(name, _)| name);
    if !named.eq(listed) {
        return Ok(None);
    }
    let next = manifest.parts.last().map_or(0, |part| part.seq + 1);
    manifest.next_seq = next;
    let written = manifest::write(store, key, &seen, &manifest, 1).await?;
    Ok(written.then_some(next))
}

/// Deletes a merged part that no manifest names: the compaction is given up.
pub(crate) async fn sweep(
    store: &dyn Store,
    key: &SessionKey,
    compaction: &Compaction,
    file: PathBuf,
) -> Result<(), Failure> {
    let name = compaction.merged.name();
    let named = manifest::read(store, key)
        .await?
        .is_some_and(|m| m.parts.iter().any(|part| part.name() == name));
    if !named {
        let range = compaction.merged.cursor_range;
        manifest::delete_unnamed(store, key, &name, Body::File(file), range).await?;
    }
    Ok(())
}

pub(super) fn outbox_error(path: &Path, source: std::io::Error) -> Failure {
    Failure::Store(StoreError {
        kind: ErrorKind::Full,
        operation: OUTBOX_WRITE,
        object: path.display().to_string(),
        source: source.into(),
    })
}

fn read_error(name: &str, source: std::io::Error) -> StoreError {
    StoreError {
        kind: ErrorKind::Unavailable,
        operation: "get",
        object: name.to_owned(),
        source: source.into(),
    }
}
