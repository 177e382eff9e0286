//! A scan, and what follows from it: each minute the truth about which sources there are, and which of them changed.
//!
//! Knows paths and what was captured of them; refuses to read any: a source that differs is marked for a look (`super::look`).

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use tokio::time::Instant;

use super::find::{Findings, Known, Met};
use super::{Done, Engine, SCAN_EVERY};
use crate::part::SessionKey;
use crate::source::{Encoding, SourceError, Stat};
use crate::state::{Change, Record};

impl Engine {
    pub(super) fn start_scan(&mut self) {
        if self.scanning || Instant::now() < self.scan_at {
            return;
        }
        self.tools.scan_began.notify_one();
        self.scanning = true;
        self.scans += 1;
        let serial = self.scans;
        let decided = self.by_path.iter().filter(|(_, key)| !self.is_undecided(key));
        let decided = decided.map(|(path, key)| (path.clone(), self.as_captured(key)));
        let others = self.excluded.iter().chain(&self.placing);
        let known: Known =
            decided.chain(others.map(|path| (path.as_path().into(), None))).collect();
        let (finder, blocking) = (self.tools.finder.clone(), self.tools.blocking.clone());
        self.jobs.push(Box::pin(async move {
            Done::Scanned(serial, blocking.run(move || finder.scan(&known)).await)
        }));
        self.scan_at = Instant::now() + SCAN_EVERY; // Sooner where a root has to be polled: `show_roots`.
    }

    /// How a file was when all of it was captured, if nothing is left to be seen of it: an idle session costs a scan no look.
    /// What waits to be stored or named, and who waits for a flush, is looked after with each look.
    fn as_captured(&self, key: &SessionKey) -> Option<(Stat, bool)> {
        let live = self.live.get(key)?;
        let record = self.state.get(key)?;
        let is_done =
            live.trusted && !live.verify && live.rewriting.is_none() && live.problem.is_none();
        let is_whole = record.encoding == Encoding::Plain
            && record.cursor.offset == record.cursor.stat.size
            && record.pending.is_empty()
            && !record.gone
            && self.waiters.is_empty();
        (is_done && is_whole).then_some((record.cursor.stat, record.archived))
    }

    pub(super) fn scanned(&mut self, serial: u64, findings: Findings) {
        self.scanning = false;
        self.scan_done = serial;
        self.show_roots(findings.roots);
        self.show_unreadable(findings.problems);
        let mut present = HashSet::new();
        let mut changes = Vec::new();
        for Met { path, archived, changed } in findings.known {
            present.insert(Arc::as_ptr(&path).addr());
            if changed && let Some(key) = self.by_path.get(&path).cloned() {
                self.mark_dirty(&key);
                if let Some(record) = self.state.get(&key).filter(|r| r.archived != archived) {
                    let record = Box::new(Record { archived, ..record.clone() });
                    changes.push(Change::Session { key, record });
                }
            }
        }
        self.undecided.clear(); // A scan meets again those that are still there.
        for file in findings.new {
            self.found_new(file);
        }
        if findings.unclear {
            self.scan_again();
        }
        self.place_all();
        self.flushing |= self.dirty.is_empty() && self.nothing_to_place(); // What is as it was is stored.
        changes.extend(self.vanished(&present));
        let ended: Vec<SessionKey> = changes.iter().filter_map(|c| c.session()).cloned().collect();
        if self.commit(changes) {
            ended.iter().for_each(|key| self.queue_send(key));
        }
    }

    /// Sessions whose source is not there any more, and has not turned up elsewhere. `present` are the places in memory of paths
    /// of [`Engine::by_path`] that were met: thousands of paths are not worth being compared once more.
    fn vanished(&mut self, present: &HashSet<usize>) -> Vec<Change> {
        let moving = |key: &SessionKey| self.live.get(key).is_some_and(|live| live.looking);
        let missed = |(path, key): (&Arc<Path>, &SessionKey)| {
            let is_met = present.contains(&Arc::as_ptr(path).addr());
            (!is_met && !moving(key)).then(|| key.clone())
        };
        let mut keys: Vec<SessionKey> = self.by_path.iter().filter_map(missed).collect();
        keys.sort();
        let now = self.now_text();
        let gone = keys.into_iter().filter_map(|key| {
            let record = self.state.get(&key).filter(|r| !r.superseded && !r.gone)?;
            let missing =
                matches!(self.tools.files.stat(&record.source), Err(SourceError::Missing(_)));
            if !missing {
                return None;
            }
            let mut record = Box::new(record.clone());
            record.gone = true;
            record.ended_at.get_or_insert_with(|| now.clone());
            record.manifest_due = true;
            Some(Change::Session { key, record })
        });
        gone.collect()
    }
}
