//! The other writers of a bucket: a second recorder with its own disk and state, on the same files or on copies of them; and
//! one that does to a session what the reference tool's commands do, without asking for any condition.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Process;
use super::world::{STATE, World};
use crate::durable::Disk;
use crate::mirror::handle::Mirror;
use crate::part::{PartName, SessionKey};
use crate::store::memory::MemoryStore;

/// Fields of a manifest that the reference tool does not know.
const OURS: [&str; 7] =
    ["writer", "generation", "previous", "reason", "next_seq", "followed", "rules"];

/// Who else writes in a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Others {
    /// Nobody.
    Nobody,
    /// The reference tool, now and then.
    Reference,
    /// A recorder of copies of the same sources.
    Diverging,
    /// A recorder of the very same sources.
    Sharing,
}

/// A second recorder.
pub(super) struct Second {
    pub(super) world: World,
    pub(super) process: Option<Process>,
}

impl Second {
    /// Begins with copies of the first one's sources or with the same ones; perhaps with a copy of its state.
    pub(super) fn new(first: &mut World, others: Others) -> Second {
        let world = first.second(others == Others::Sharing);
        if first.rng.bool() {
            // A home that was copied while its recorder ran: state and outbox as they were at that moment.
            for (path, _) in first.disk.list(Path::new(STATE)).unwrap_or_default() {
                if let Ok(bytes) = first.disk.read(&path) {
                    let _ = world.disk.replace(&path, &bytes);
                }
            }
        }
        Second { world, process: None }
    }

    /// Its process is gone, and starts again when time passes.
    pub(super) fn kill(&mut self) {
        self.process = None;
        self.world.disk.kill();
        self.world.disk.revive();
    }

    /// A handle to its process.
    pub(super) fn mirror(&self) -> Option<Mirror> {
        self.process.as_ref().map(|process| process.mirror.clone())
    }
}

/// What the reference tool does to a session, at once; `None`: nothing to do there now.
pub(super) fn reference_acts(
    store: &MemoryStore,
    rng: &mut fastrand::Rng,
    number: usize,
) -> Option<String> {
    let key: SessionKey = format!("codex/s{number}").parse().ok()?;
    let objects = store.objects();
    let mut meta: Value = serde_json::from_slice(objects.get(&key.manifest_key())?).ok()?;
    if rng.bool() {
        let fields = meta.as_object_mut()?;
        OURS.iter().for_each(|field| drop(fields.remove(*field)));
        store.insert(&key.manifest_key(), meta.to_string().into_bytes());
        return Some(format!("the reference tool rebuilds the top level of {key}"));
    }
    let prefix = key.prefix();
    let parts: Vec<(PartName, &bytes::Bytes)> = objects
        .iter()
        .filter_map(|(name, bytes)| Some((name.strip_prefix(&prefix)?.parse().ok()?, bytes)))
        .collect();
    let named: Vec<(u64, &str)> = meta["parts"]
        .as_array()?
        .iter()
        .filter_map(|part| Some((part["seq"].as_u64()?, part["uuid"].as_str()?)))
        .collect();
    let last = named.last().map_or(0, |(seq, _)| *seq);
    let is_named = |name: &PartName| {
        named.iter().any(|(seq, uuid)| *seq == u64::from(name.seq) && *uuid == name.uuid)
    };
    // It merges whatever is listed, also what a compaction of ours, which is under way, is about to delete: that session
    // would hold those records twice, and nothing of ours could tell.
    let outstanding = parts.iter().any(|(name, _)| u64::from(name.seq) <= last && !is_named(name))
        || named.len() > parts.len();
    // Nor can it tell a part that was put again, because the answer was lost, after it had merged it.
    let content: Vec<u8> =
        parts.iter().filter(|(name, _)| is_named(name)).flat_map(|(_, b)| b.to_vec()).collect();
    let again = parts
        .iter()
        .any(|(name, bytes)| !is_named(name) && memchr::memmem::find(&content, bytes).is_some());
    if outstanding || again || parts.len() < 2 {
        return None;
    }
    let merged: Vec<u8> = parts.iter().flat_map(|(_, bytes)| bytes.iter().copied()).collect();
    let into = PartName { seq: 0, uuid: format!("{:08x}", rng.u32(..)) };
    let fields = meta.as_object_mut()?;
    fields.remove("next_seq");
    fields.insert(
        "parts".into(),
        json!([{ "seq": 0, "uuid": into.uuid, "compacted_from": parts.len(),
            "uploaded_bytes": merged.len(), "uploaded_at": "1970-01-01T00:00:00Z" }]),
    );
    store.insert(&key.part_key(&into), merged);
    store.insert(&key.manifest_key(), meta.to_string().into_bytes());
    parts.iter().for_each(|(name, _)| store.remove(&key.part_key(name)));
    Some(format!("the reference tool compacts {} parts of {key}", parts.len()))
}

impl World {
    /// The world of another recorder of the same bucket.
    fn second(&self, sharing: bool) -> World {
        let disk = crate::durable::memory::MemoryDisk::new();
        let store = self.memory_store.as_ref().map(|store| store.on(Arc::new(disk.clone())));
        let world = self.beside(disk, store, sharing);
        if !sharing {
            for source in self.sources.iter().filter(|source| source.exists) {
                let content = self.files.content(&source.path).unwrap_or_default();
                world.files.create(&source.path, content);
            }
        }
        world
    }
}
