//! When a source is looked at, and what follows from what was seen.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info};

use super::capture::{self, BATCH_LOOKS_MAX, Batch, Care, Look, Seen};
use super::databases::changed_by;
use super::find::Looked;
use super::live::Rewriting;
use super::{DISK_RETRY, Done, Engine, IDLE_AFTER, chain};
use crate::api::{Coverage, Phase};
use crate::part::SessionKey;
use crate::source::{Cursor, SourceError, Stat, Unfinished};
use crate::state::{Change, PendingPart, Record};

/// Events are taken together for this long: a busy agent writes many times a second.
const HINTS_EVERY: Duration = Duration::from_millis(200);

/// A file that is being rewritten is left alone until it has been as it is for this long…
const QUIET_AFTER: Duration = Duration::from_secs(2);

/// … or until this long after the rewrite was noticed.
const QUIET_MAX: Duration = Duration::from_secs(30);

/// A record without its newline is taken when its file has not changed for this long: its writer is gone.
const UNFINISHED_AFTER: Duration = Duration::from_secs(600);

/// The same with `--once`, which does not come back.
const UNFINISHED_AFTER_ONCE: Duration = Duration::from_secs(10);

impl Engine {
    /// Asks for a look at the next tick.
    pub(super) fn mark_dirty(&mut self, key: &SessionKey) {
        let Some(record) = self.state.get(key) else { return };
        if record.superseded || record.stopped {
            return;
        }
        self.dirty.insert(key.clone());
        let captured = self.live.get(key).is_some_and(|live| live.captured_at.is_some());
        self.ask_for_tick(captured);
    }

    /// Looks are due, as soon as the interval allows: `captured` says whether something was captured since the start of what is to
    /// be looked at.
    pub(super) fn ask_for_tick(&mut self, captured: bool) {
        let now = Instant::now();
        let at = self.last_tick.map_or(now, |last| now.max(last + self.settings.interval));
        let at = if self.settings.once || self.is_urgent(captured) { now } else { at };
        self.tick_at = Some(self.tick_at.map_or(at, |tick| tick.min(at)));
    }

    /// Whether somebody waits for a flush, or nothing of the session was captured since the start, so that the interval does
    /// not count. A start may last as long as the store is away: what was captured once keeps to the interval all the same.
    fn is_urgent(&self, captured: bool) -> bool {
        (self.phase == Phase::Starting && !captured)
            || !self.waiters.is_empty()
            || self.drain_until.is_some()
    }

    /// Asks for a look at a time.
    pub(super) fn look_at(&mut self, key: &SessionKey, at: Instant) {
        self.timers.insert((at, key.clone()));
    }

    pub(super) fn fire_timers(&mut self) {
        let now = Instant::now();
        while self.timers.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.timers.pop_first() else { return };
            let idle = self
                .live
                .get(&key)
                .and_then(|l| l.captured_at)
                .is_some_and(|at| now >= at + IDLE_AFTER);
            let live = self.live(&key);
            live.verify |= idle;
            self.queue_send(&key); // An idle session's manifest is brought up to date.
            self.mark_dirty(&key);
        }
    }

    pub(super) fn take_hints(&mut self) {
        let taken = self.tools.hints.take();
        self.hints_at = Instant::now() + HINTS_EVERY.min(self.settings.interval);
        if taken.rescan {
            self.scan_at = Instant::now();
        }
        let mut unknown = Vec::new();
        for path in taken.paths {
            match self.by_path.get(path.as_path()).cloned() {
                Some(key) if self.is_undecided(&key) => unknown.push(path),
                Some(key) => self.mark_dirty(&key),
                None if self.note_database(&path) => {}
                None if self.excluded.contains(&path) || self.placing.contains(&path) => {}
                None => unknown.push(path),
            }
        }
        if unknown.is_empty() {
            return;
        }
        self.look_for_sessions(unknown);
    }

    /// Asks what is at some paths.
    pub(super) fn look_for_sessions(&mut self, paths: Vec<PathBuf>) {
        let (finder, blocking) = (self.tools.finder.clone(), self.tools.blocking.clone());
        self.jobs.push(Box::pin(async move {
            let look =
                move || paths.into_iter().map(|path| (path.clone(), finder.look(&path))).collect();
            Done::Hinted(blocking.run(look).await)
        }));
    }

    pub(super) fn hinted(&mut self, looked: Vec<(PathBuf, Looked)>) {
        for (path, looked) in looked {
            match looked {
                Looked::Session(file) => self.found_new(*file),
                Looked::Sessions(files) => files.into_iter().for_each(|file| self.found_new(file)),
                Looked::Unreadable(what) => self.source_problem(&path, &what),
                Looked::Unclear => self.scan_at = self.scan_at.min(Instant::now()),
                Looked::Nothing => {}
            }
        }
    }

    pub(super) fn source_problem(&mut self, path: &std::path::Path, what: &str) {
        let hint = "nothing else is affected; remove it or correct its rights";
        let path = path.display().to_string();
        self.problem("source_unreadable", &path, &format!("{path}: {what}"), Some(hint));
    }

    pub(super) fn show_roots(&mut self, roots: Vec<crate::api::Root>) {
        self.polled = !self.settings.once && roots.iter().any(|r| r.coverage == Coverage::Polled);
        if self.polled {
            self.scan_at = self.scan_at.min(Instant::now() + self.settings.interval);
        }
        for root in &roots {
            if root.coverage == Coverage::Unreadable {
                let message = format!("{} cannot be read", root.path);
                let hint = "correct its rights; sessions below it are not recorded";
                self.problem("root_unreadable", &root.path, &message, Some(hint));
            } else {
                self.clear_problem("root_unreadable", &root.path);
            }
        }
        self.roots = roots;
    }

    pub(super) fn start_capture(&mut self) {
        if self.capturing {
            return;
        }
        let now = Instant::now();
        if self.pass.is_empty()
            && (!self.dirty.is_empty() || !self.dirty_databases.is_empty())
            && self.tick_at.is_some_and(|at| at <= now)
        {
            self.look_into_databases();
            self.last_tick = Some(now);
            self.tick_at = None;
            let state = &self.state;
            let mut keys: Vec<SessionKey> = std::mem::take(&mut self.dirty).into_iter().collect();
            // The sessions that are worked on now come first: theirs is what would be missed.
            keys.sort_by_key(|k| state.get(k).map(|r| std::cmp::Reverse(r.cursor.stat.mtime_ns)));
            self.pass.extend(keys);
        }
        if self.pass.is_empty() {
            return;
        }
        if self.tick_at.is_some_and(|at| at > now && self.last_tick.is_none()) || !self.has_room() {
            return;
        }
        let mut looks = Vec::new();
        while looks.len() < BATCH_LOOKS_MAX
            && let Some(key) = self.pass.pop_front()
        {
            looks.extend(self.new_look(key));
        }
        if looks.is_empty() {
            return;
        }
        self.capturing = true;
        let tools = self.capture_tools();
        let blocking = self.tools.reading.clone();
        self.jobs.push(Box::pin(async move {
            Done::Captured(blocking.run(move || capture::capture(&tools, looks)).await)
        }));
    }

    /// What reading and redacting needs, by value.
    pub(super) fn capture_tools(&self) -> capture::Tools {
        capture::Tools {
            files: self.tools.files.clone(),
            disk: self.tools.disk.clone(),
            redactor: self.settings.redactor.clone(),
            outbox: self.outbox.clone(),
            finder: self.tools.finder.clone(),
            databases: self.tools.databases.clone(),
            ledgers: self.ledgers.clone(),
        }
    }

    /// Whether capture may write: the outbox has a limit, and the disk keeps some room for its owner.
    fn has_room(&mut self) -> bool {
        if let Err(e) = self.state.resolve() {
            self.state_unwritable(&chain(&e));
            self.postpone_pass();
            return false;
        }
        if self.outbox_bytes >= self.settings.outbox_bytes_max {
            let message = format!(
                "the outbox holds {} MiB that the store has not taken: sources keep the rest",
                self.outbox_bytes >> 20
            );
            self.problem("outbox_full", "", &message, None);
            return false; // A send that ends makes room, and wakes the loop.
        }
        self.clear_problem("outbox_full", "");
        let path = self.settings.state_dir.clone();
        let object = path.display().to_string();
        let free = self.tools.disk.free_bytes(&path).unwrap_or(u64::MAX);
        if free < self.settings.free_bytes_min {
            let message = format!(
                "{} MiB are free at {object}, less than min_free_space: capture waits",
                free >> 20
            );
            self.problem("disk_full", &object, &message, Some("make room"));
            self.postpone_pass();
            return false;
        }
        self.clear_problem("disk_full", &object);
        true
    }

    fn postpone_pass(&mut self) {
        self.dirty.extend(std::mem::take(&mut self.pass));
        self.tick_at = Some(Instant::now() + DISK_RETRY);
    }

    fn new_look(&mut self, key: SessionKey) -> Option<Look> {
        let now = self.now_text();
        let unfinished = {
            let record = self.state.get(&key)?;
            let age = self.age(&record.cursor.stat);
            let limit = self.unfinished_after(record);
            if age >= limit { Unfinished::Take } else { Unfinished::Wait }
        };
        if let Some(why) = self.state.get(&key).and_then(|record| self.numbers_end(record)) {
            // Readers sort by five digits. What is stored stays as it is, complete up to here.
            self.next_generation(&key, why);
            return None;
        }
        if self.is_turning(&key) {
            return None; // Its end asks for a look.
        }
        let live = self.live.entry(key.clone()).or_default();
        if live.looking || live.relearning || live.excluded {
            return None;
        }
        let record = self.state.get(&key).filter(|r| !r.superseded && !r.stopped)?;
        let care = match (live.verify, live.trusted) {
            (true, _) => Care::Whole,
            // What happened while nobody looked may have been more than an append.
            (false, false) => Care::WholeIfChanged,
            (false, true) => Care::Quick,
        };
        live.looking = true;
        Some(Look {
            path: record.source.to_path_buf(),
            encoding: record.encoding,
            cursor: record.cursor.clone(),
            next_seq: record.next_seq,
            care,
            unfinished,
            wants_cwd: record.cwd.is_none(),
            now,
            key,
        })
    }

    /// How long ago the file was last touched, by its own times. Clocks that disagree only delay.
    pub(super) fn age(&self, stat: &Stat) -> Duration {
        let touched = i128::from(stat.mtime_ns.max(stat.ctime_ns));
        let age = self.tools.clock.now().as_nanosecond() - touched;
        Duration::from_nanos(u64::try_from(age.max(0)).unwrap_or(u64::MAX))
    }

    fn unfinished_after(&self, record: &Record) -> Duration {
        match (record.archived, self.settings.once) {
            (true, _) => QUIET_AFTER, // Its agent has ended it.
            (false, true) => UNFINISHED_AFTER_ONCE,
            (false, false) => UNFINISHED_AFTER,
        }
    }

    pub(super) fn captured(&mut self, batch: Batch) {
        self.capturing = false;
        for key in batch.rest {
            self.live(&key).looking = false;
            self.pass.push_front(key);
        }
        for (key, _) in &batch.seen {
            self.live(key).looking = false;
        }
        // Another writer was noticed while these were read: they go on as another generation, which has read none of it.
        let left = |key: &SessionKey| self.state.get(key).is_none_or(|record| record.superseded);
        let (late, seen): (Vec<_>, Vec<_>) = batch.seen.into_iter().partition(|(key, _)| left(key));
        self.sweep_due |= !late.is_empty();
        if let Some(error) = batch.error {
            let path = self.settings.state_dir.join("outbox").display().to_string();
            let hint = "make room, or check the rights of the directory";
            self.problem("outbox_unwritable", &path, &chain(&error), Some(hint));
            self.sweep_due = true;
            self.pass.extend(seen.into_iter().map(|(key, _)| key));
            self.postpone_pass();
            return;
        }
        let path = self.settings.state_dir.join("outbox").display().to_string();
        self.clear_problem("outbox_unwritable", &path);
        let cwd = |key: &SessionKey| batch.cwds.get(key).map(String::as_str);
        let found = seen.iter();
        let changes = found.flat_map(|(key, seen)| self.changes_of(key, seen, cwd(key))).collect();
        if !self.commit(changes) {
            for (key, _) in seen {
                self.live(&key).verify = true; // What was told with this look is not told again of itself.
                self.pass.push_back(key);
            }
            self.postpone_pass();
            return;
        }
        self.counts.captures += 1;
        self.flushing = true;
        batch.cwds.keys().for_each(|key| self.apply_rules(key));
        for (key, seen) in seen {
            self.follow_up(&key, seen);
        }
    }

    /// What a look changes in the state.
    fn changes_of(&self, key: &SessionKey, seen: &Seen, cwd: Option<&str>) -> Vec<Change> {
        let Some(record) = self.state.get(key) else { return Vec::new() };
        let mut changes = Vec::new();
        let parts = seen.parts();
        if let Some(record) = changed_by(record, seen, cwd) {
            changes.push(Change::Session { key: key.clone(), record: Box::new(record) });
        }
        for (part, cursor) in parts {
            changes.push(Change::Captured {
                key: key.clone(),
                part: part.clone(),
                cursor: cursor.clone(),
            });
        }
        if let Seen::Read { cursor, .. } = seen {
            let last = parts.last().map_or(&record.cursor, |(_, cursor)| cursor);
            // That the prefix was compared is known while the daemon runs; an idle session must not cost a write.
            let compared = Cursor { verified: last.verified, ..cursor.clone() };
            if *last != compared {
                changes.push(Change::Looked { key: key.clone(), cursor: cursor.clone() });
            }
        }
        changes
    }

    fn follow_up(&mut self, key: &SessionKey, seen: Seen) {
        let now = Instant::now();
        self.note_parts(key, seen.parts());
        match seen {
            Seen::Read { cursor, unfinished_bytes, .. } => {
                self.read_to_end(key, &cursor, unfinished_bytes);
                self.note_told(key);
                self.queue_send(key); // What is told about it may have changed alone.
                self.note_looked(key);
            }
            Seen::More { .. } => self.pass.push_back(key.clone()),
            Seen::Changed { .. } => {
                // Nothing before this was wrong, only this look: the next one starts over.
                self.dirty.insert(key.clone());
                let at = now + self.settings.interval;
                self.tick_at = Some(self.tick_at.map_or(at, |tick| tick.min(at)));
            }
            Seen::Rewritten { stat, why } => self.rewritten(key, stat, &why.to_string()),
            Seen::Unledgered => self.relearn(key),
            Seen::Failed { error: SourceError::Missing(_), .. } => {
                // Gone or moved: the scan tells.
                self.scan_at = self.scan_at.min(now);
                self.note_looked(key);
            }
            Seen::Failed { error, .. } if self.is_of_database(key, &error) => {}
            Seen::Failed { error, .. } => {
                let hint = "correct the file's rights; what was captured before is safe";
                self.session_problem(key, "source_unreadable", &chain(&error), Some(hint));
                self.note_looked(key);
            }
        }
    }

    fn note_parts(&mut self, key: &SessionKey, parts: &[(PendingPart, Cursor)]) {
        if parts.is_empty() {
            return;
        }
        let now = Instant::now();
        self.progress_at = now;
        for (part, _) in parts {
            self.outbox_bytes += part.bytes;
            self.summary.redactions += part.redactions.iter().map(|(_, count)| count).sum::<u64>();
            self.counts.add(part.bytes, part.redactions.iter());
            debug!(session = %key, part = %part.name(), bytes = part.bytes, "captured");
        }
        self.live(key).captured_at = Some(now);
        if !self.settings.once {
            self.look_at(key, now + IDLE_AFTER);
        }
        self.queue_send(key);
    }

    fn read_to_end(&mut self, key: &SessionKey, cursor: &Cursor, unfinished_bytes: u64) {
        let live = self.live(key);
        live.trusted = true;
        live.verify = false;
        live.rewriting = None;
        self.clear_session_problem(key);
        let Some(record) = self.state.get(key) else { return };
        if unfinished_bytes > 0 {
            let limit = self.unfinished_after(record);
            let wait = limit.saturating_sub(self.age(&cursor.stat)).max(Duration::from_millis(100));
            self.look_at(key, Instant::now() + wait);
        }
    }

    /// The source is not what was captured: once it holds still, the next generation begins.
    fn rewritten(&mut self, key: &SessionKey, stat: Stat, why: &str) {
        let now = Instant::now();
        let ancient = self.age(&stat) >= QUIET_AFTER;
        let live = self.live(key);
        let rewriting = live
            .rewriting
            .get_or_insert_with(|| Box::new(Rewriting { first: now, since: now, stat }));
        if rewriting.stat != stat {
            rewriting.stat = stat;
            rewriting.since = now;
        }
        let settled =
            ancient || now >= rewriting.since + QUIET_AFTER || now >= rewriting.first + QUIET_MAX;
        if !settled {
            let at = (rewriting.since + QUIET_AFTER).min(rewriting.first + QUIET_MAX);
            self.look_at(key, at);
            return;
        }
        live.rewriting = None;
        info!(session = %key, why, "the source was rewritten: a new generation begins");
        self.next_generation(key, why);
    }

    /// Closes a generation and opens the next one over the same source. A failed commit leaves all as it was.
    pub(super) fn next_generation(&mut self, key: &SessionKey, why: &str) {
        let Some(old) = self.state.get(key).cloned() else { return };
        let Ok(stat) = self.tools.files.stat(&old.source) else {
            self.scan_at = self.scan_at.min(Instant::now());
            self.note_looked(key);
            return;
        };
        let (source, archived) = (old.source.clone(), old.archived);
        let fresh = Record { source, archived, ..self.fresh_record(&old, stat, why) };
        if !self.supersede(key, fresh) {
            self.look_at(key, Instant::now() + DISK_RETRY);
        }
    }

    /// A record for the next generation of a session.
    pub(super) fn fresh_record(&self, old: &Record, stat: Stat, why: &str) -> Record {
        Record {
            cursor: Cursor::start(stat),
            next_seq: 0,
            pending: Vec::new(),
            totals: Default::default(),
            named_bytes: 0,
            started_at: self.now_text(),
            ended_at: None,
            gone: false,
            superseded: false,
            reason: Some(why.to_owned()),
            manifest_due: false,
            compaction: None,
            leaving: None,
            ..old.clone()
        }
    }

    /// Commits the end of a generation and the start of the next, which is looked at soon. `false`: the commit failed.
    pub(super) fn supersede(&mut self, key: &SessionKey, fresh: Record) -> bool {
        let Some(mut old) = self.state.get(key).cloned() else { return false };
        old.superseded = true;
        old.ended_at.get_or_insert_with(|| self.now_text());
        old.manifest_due = true;
        let next = key.with_generation(self.newest_number(key) + 1);
        let changes = vec![
            Change::Session { key: key.clone(), record: Box::new(old.clone()) },
            Change::Session { key: next.clone(), record: Box::new(fresh.clone()) },
        ];
        if !self.commit(changes) {
            return false;
        }
        self.dirty.remove(key);
        if old.source == fresh.source || !old.archived {
            self.by_path.remove(&old.source);
        }
        self.queue_send(key);
        self.adopt_record(&next);
        self.mark_dirty(&next);
        self.note_superseded(key);
        true
    }
}
