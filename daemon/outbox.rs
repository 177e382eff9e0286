//! Parts that are captured and not yet stored, as files that say what they are.
//!
//! `<outbox>/<harness>/<id>/<start>-<end>.<part name>`: a part survives the loss of the state, because its path tells session,
//! source range, sequence and digest. Knows paths; knows nothing of when a part is written or sent.

use std::io;
use std::path::{Path, PathBuf};

use crate::durable::Disk;
use crate::part::{PartName, SessionKey};
use crate::state::{PendingPart, State};

/// Name of the file in which a compaction puts its merged part together.
const MERGING: &str = "merging";

/// Name of the file in which a repair puts a lost part together.
const MENDING: &str = "mending";

/// Where captured parts wait.
#[derive(Debug, Clone)]
pub(crate) struct Outbox {
    dir: PathBuf,
}

/// A file in the outbox, as its path tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// Whose part.
    pub(crate) key: SessionKey,
    /// Its name in the store.
    pub(crate) name: PartName,
    /// Source positions.
    pub(crate) range: [u64; 2],
    /// Size of the file.
    pub(crate) bytes: u64,
    /// The file.
    pub(crate) path: PathBuf,
}

impl Outbox {
    /// The outbox in a state directory.
    pub(crate) fn new(state_dir: &Path) -> Outbox {
        Outbox { dir: state_dir.join("outbox") }
    }

    /// Where a part waits.
    pub(crate) fn path(&self, key: &SessionKey, part: &PendingPart) -> PathBuf {
        let [start, end] = part.range;
        self.folder(key).join(format!("{start}-{end}.{}", part.name()))
    }

    /// Where the merged part of a compaction is put together. Never taken for a waiting part.
    pub(crate) fn merging(&self, key: &SessionKey) -> PathBuf {
        self.folder(key).join(MERGING)
    }

    /// Where a part that is lost is put together again. Never taken for a waiting part, and swept as a remnant.
    pub(crate) fn mending(&self, key: &SessionKey) -> PathBuf {
        self.folder(key).join(MENDING)
    }

    fn folder(&self, key: &SessionKey) -> PathBuf {
        self.dir.join(key.harness()).join(key.id())
    }

    /// Makes renames out of a session's folder durable, as far as they depend on this side.
    pub(crate) fn persist(&self, disk: &dyn Disk, key: &SessionKey) -> io::Result<()> {
        let folder = self.folder(key);
        if disk.is_dir(&folder)? { disk.sync(&[folder]) } else { Ok(()) }
    }

    /// Everything that lies here and is of the outbox's form, sorted by session and range.
    pub(crate) fn waiting(&self, disk: &dyn Disk) -> io::Result<Vec<Waiting>> {
        let mut all: Vec<Waiting> = disk
            .list(&self.dir)?
            .into_iter()
            .filter_map(|(path, bytes)| self.parse(path, bytes))
            .collect();
        all.sort_by(|a, b| (&a.key, a.range, &a.name).cmp(&(&b.key, b.range, &b.name)));
        Ok(all)
    }

    fn parse(&self, path: PathBuf, bytes: u64) -> Option<Waiting> {
        let relative = path.strip_prefix(&self.dir).ok()?.to_str()?;
        let (folder, file) = relative.rsplit_once('/')?;
        let (range, name) = file.split_once('.')?;
        let (start, end) = range.split_once('-')?;
        Some(Waiting {
            key: folder.parse().ok()?,
            name: name.parse().ok()?,
            range: [start.parse().ok()?, end.parse().ok()?],
            bytes,
            path,
        })
    }

    /// Removes every file that an intact state does not name as pending: remnants of captures that were never committed,
    /// parts that are known to be stored, unfinished merges. What is removed is captured again, or stored already. A session is
    /// committed before anything of it is captured: parts of one that the state does not know are from a state that was lost
    /// and wait to be adopted, so they stay.
    pub(crate) fn sweep(&self, disk: &dyn Disk, state: &State) -> io::Result<()> {
        for (path, bytes) in disk.list(&self.dir)? {
            let pending = self.parse(path.clone(), bytes).is_some_and(|waiting| {
                state.sessions.get(&waiting.key).is_none_or(|record| {
                    record.pending.iter().any(|part| {
                        part.stored_at.is_none()
                            && part.name() == waiting.name
                            && part.range == waiting.range
                    })
                })
            });
            if !pending && !self.is_merge_of(state, &path) {
                disk.remove(&path)?;
            }
        }
        Ok(())
    }

    fn is_merge_of(&self, state: &State, path: &Path) -> bool {
        let folder =
            path.strip_prefix(&self.dir).ok().and_then(Path::parent).and_then(Path::to_str);
        let record = folder.and_then(|f| state.sessions.get(&f.parse().ok()?));
        path.ends_with(MERGING) && record.is_some_and(|r| r.compaction.is_some())
    }

    /// Removes a session's folder when nothing waits in it any more.
    pub(crate) fn tidy(&self, disk: &dyn Disk, key: &SessionKey) {
        // An empty folder that stays behind does no harm.
        let _ = disk.remove_dir(&self.folder(key));
    }
}
