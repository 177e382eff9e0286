//! Parts that are lost, put again from what this machine still has: the outbox, or the source, redacted as it is now.
//!
//! A part is put only where its digest says that these are its bytes. The source is read once, along the sorted ranges of all
//! parts, some megabytes at a time, so that progress is told and the end of whoever asked is noticed. A part is put together in a
//! file: it may be as large as a merge. Killed anywhere in here, the file is a remnant that the next start sweeps.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::check::{Meter, Subject};
use super::mend::Mender;
use crate::durable::Disk;
use crate::mirror::capture::Tools;
use crate::mirror::find::chain;
use crate::mirror::manifest;
use crate::part::{PartEntry, PartName, hex};
use crate::redact::Counts;
use crate::source::{Cursor, Encoding, Next, Reading};
use crate::state::{PendingPart, Record};
use crate::store::{Body, StoreError};

/// Bytes of the source that are read before the asker is looked for again.
const STEP_BYTES: u64 = 8 * 1024 * 1024;

/// Bytes copied at a time.
const COPY_BYTES: usize = 256 * 1024;

/// Where a part was found again, or why it was not, for people.
pub(super) type Restored = Result<&'static str, String>;

/// The source, read from range to range.
struct Along {
    tools: Tools,
    record: Record,
    reading: Option<Reading>,
    at: u64,
}

/// What a range of the source comes to.
struct Run {
    range: [u64; 2],
    bytes: u64,
    digest: Sha256,
    redactions: Counts,
    cut: bool,
    into: Option<Box<dyn Write + Send>>,
}

impl Run {
    fn over(range: [u64; 2], into: Option<Box<dyn Write + Send>>) -> Run {
        let (bytes, digest, redactions) = (0, Sha256::new(), Counts::new());
        Run { range, bytes, digest, redactions, cut: false, into }
    }
}

impl Along {
    /// Reads on. `true`: the end of the range is reached. An `Err` says why it cannot be.
    fn step(&mut self, run: &mut Run) -> Result<bool, String> {
        let [start, end] = run.range;
        let reading = match &mut self.reading {
            Some(reading) => reading,
            None => {
                self.at = 0;
                let opened = self.open()?;
                self.reading.insert(opened)
            }
        };
        let until = |at: u64| if at < start { start } else { end };
        let stop = self.at.saturating_add(STEP_BYTES);
        let mut redacted = Vec::new();
        while self.at < end && self.at < stop {
            let chunk = match reading.next_until(until(self.at)) {
                Ok(Next::Chunk(chunk)) => chunk,
                Ok(Next::End { .. }) => return Err("its source ends before it".into()),
                Ok(Next::Changed) => return Err("its source changed while it was read".into()),
                Err(error) => return Err(unreadable(&error)),
            };
            self.at = chunk.cursor.offset;
            if chunk.start < start {
                continue;
            }
            redacted.clear();
            let redactor = &self.tools.redactor;
            redactor.redact(&chunk.context, &chunk.bytes, &mut redacted, &mut run.redactions);
            run.digest.update(&redacted);
            run.bytes += redacted.len() as u64;
            run.cut |= chunk.cut;
            if let Some(into) = &mut run.into {
                into.write_all(&redacted).map_err(|error| unwritable(&error))?;
            }
        }
        Ok(self.at >= end)
    }

    fn open(&self) -> Result<Reading, String> {
        let (files, path) = (&*self.tools.files, &self.record.source);
        let stat = files.stat(path).map_err(|error| unreadable(&error))?;
        let cursor = Cursor::start(stat);
        match Reading::open(files, path, self.record.encoding, &cursor) {
            Ok(Ok(reading)) => Ok(reading),
            Ok(Err(_)) => Err("its source changed while it was read".into()),
            Err(error) => Err(unreadable(&error)),
        }
    }
}

fn unreadable(error: &(dyn std::error::Error + 'static)) -> String {
    format!("its source could not be read ({}); try again when it can", chain(error))
}

fn unwritable(error: &std::io::Error) -> String {
    format!("it could not be put together here ({error}); try again when it can")
}

/// Why no source can have bytes of this session.
pub(super) fn sourceless(record: &Record) -> Option<&'static str> {
    if record.encoding == Encoding::Rows {
        return Some("rows change, so that its source has no lines that were captured once");
    }
    (record.superseded || record.gone).then_some("its source is gone, or was rewritten")
}

impl Mender {
    /// Puts parts again, each if its bytes are found, in ascending order of range. Answers what came of each.
    pub(super) async fn put_again(
        &self,
        subject: &Subject,
        record: &Record,
        mut lost: Vec<PartEntry>,
        meter: &Meter,
    ) -> Result<Vec<(PartEntry, Restored)>, StoreError> {
        if lost.is_empty() {
            return Ok(Vec::new());
        }
        lost.sort_by_key(|part| part.cursor_range);
        let waiting = self.waiting(subject).await;
        let mut along = self.along(record);
        let into = self.adopter.tools.outbox.mending(&subject.key);
        let mut restored = Vec::new();
        for part in lost {
            let object = subject.key.part_key(&part.name());
            meter.is_watched(&object)?;
            meter.add(0);
            let (back, found) = self.find(&part, &waiting, along, &into, meter, &object).await?;
            along = back;
            if found.is_ok() {
                let note = part.cursor_range.map(manifest::range_note);
                subject.store.put(&object, Body::File(into.clone()), note.as_deref()).await?;
            }
            restored.push((part, found));
        }
        let (disk, outbox, key) = (
            self.adopter.tools.disk.clone(),
            self.adopter.tools.outbox.clone(),
            subject.key.clone(),
        );
        let tidy = move || {
            let _ = disk.remove(&into); // Else the next start sweeps it.
            outbox.tidy(&*disk, &key);
        };
        self.adopter.blocking.run(tidy).await;
        Ok(restored)
    }

    /// What ranges of the source would be as parts, without any being put.
    pub(super) async fn measured(
        &self,
        record: &Record,
        gaps: Vec<(u32, [u64; 2])>,
        meter: &Meter,
    ) -> Result<Vec<PartEntry>, String> {
        let mut along = self.along(record);
        let mut parts = Vec::new();
        for (seq, range) in gaps {
            let (back, run) = self.run(along, Run::over(range, None), meter).await;
            along = back;
            let run = run?;
            let now = self.adopter.now.clone();
            let part = PendingPart {
                seq,
                sha256: hex(&run.digest.finalize()),
                range,
                bytes: run.bytes,
                redactions: run.redactions.into(),
                cut: run.cut,
                stored_at: None,
                captured_at: now,
                named: false,
            };
            parts.push(part.entry());
        }
        Ok(parts)
    }

    fn along(&self, record: &Record) -> Along {
        let (tools, record) = (self.adopter.tools.clone(), record.clone());
        Along { tools, record, reading: None, at: 0 }
    }

    /// The session's files in the outbox.
    async fn waiting(&self, subject: &Subject) -> Result<HashMap<PartName, PathBuf>, String> {
        let (tools, key) = (self.adopter.tools.clone(), subject.key.clone());
        let list = move || tools.outbox.waiting(&*tools.disk);
        let waiting = self.adopter.blocking.run(list).await.map_err(|error| {
            format!("the outbox could not be read ({error}); try again when it can")
        })?;
        let own = waiting.into_iter().filter(|one| one.key == key);
        Ok(own.map(|one| (one.name, one.path)).collect())
    }

    /// Puts the bytes of a part together in a file, if they are anywhere.
    async fn find(
        &self,
        part: &PartEntry,
        waiting: &Result<HashMap<PartName, PathBuf>, String>,
        along: Along,
        into: &Path,
        meter: &Meter,
        object: &str,
    ) -> Result<(Along, Restored), StoreError> {
        let Some(sha256) = &part.sha256 else {
            let why = "its manifest says no digest by which its bytes could be known";
            return Ok((along, Err(why.into())));
        };
        let disk = self.adopter.tools.disk.clone();
        if let Some(path) = waiting.as_ref().ok().and_then(|paths| paths.get(&part.name())) {
            let (disk, from, to) = (disk.clone(), path.clone(), into.to_owned());
            let copied = self.adopter.blocking.run(move || copy(&*disk, &from, &to)).await;
            if copied.is_ok_and(|digest| digest == *sha256) {
                return Ok((along, Ok("from the outbox")));
            }
        }
        if let Some(why) = sourceless(&along.record) {
            let outbox = waiting.as_ref().err().map_or("the outbox has it no more", String::as_str);
            return Ok((along, Err(format!("{outbox}; {why}"))));
        }
        let Some(range) = part.cursor_range else {
            let why = "its manifest says no range, so that its place in the source is not known";
            return Ok((along, Err(why.into())));
        };
        let file = match disk.create(into) {
            Ok(file) => file,
            Err(error) => return Ok((along, Err(unwritable(&error)))),
        };
        let (along, run) = self.run(along, Run::over(range, Some(file)), meter).await;
        meter.is_watched(object)?;
        let finish = move |mut run: Run, to: PathBuf| {
            // Closed before it is synced: what is in the writer has to be in the file.
            let flushed = run.into.take().map_or(Ok(()), |mut file| file.flush());
            flushed.and_then(|()| disk.sync(&[to])).map_err(|error| unwritable(&error))?;
            Ok(hex(&run.digest.finalize()))
        };
        let found = match run {
            Ok(run) => {
                let to = into.to_owned();
                self.adopter.blocking.run(move || finish(run, to)).await
            }
            Err(why) => Err(why),
        };
        let differs = "its source, redacted as it is now, has other bytes in its place: it was rewritten, or \
                       the rules of redaction are others";
        let found = found.and_then(|digest| match digest == *sha256 {
            true => Ok("from its source"),
            false => Err(differs.to_owned()),
        });
        Ok((along, found))
    }

    /// Goes along the source to the end of a range.
    async fn run(&self, along: Along, run: Run, meter: &Meter) -> (Along, Result<Run, String>) {
        let mut both = (along, run);
        if both.0.at > both.1.range[0] {
            both.0.reading = None; // Ranges that overlap: once more from the beginning.
        }
        loop {
            let (mut along, mut run) = both;
            let step = move || {
                let stepped = along.step(&mut run);
                (along, run, stepped)
            };
            let (mut along, run, stepped) = self.adopter.blocking.run(step).await;
            match stepped {
                Ok(true) => return (along, Ok(run)),
                Ok(false) if meter.events.is_closed() => {
                    return (along, Err("nobody waits for it any more".into()));
                }
                Ok(false) => meter.add(0),
                Err(why) => {
                    along.reading = None;
                    return (along, Err(why));
                }
            }
            both = (along, run);
        }
    }
}

/// Copies a file durably and answers the digest of its bytes.
fn copy(disk: &dyn Disk, from: &Path, to: &Path) -> std::io::Result<String> {
    let (mut from, mut into) = (disk.open(from)?, disk.create(to)?);
    let (mut digest, mut buffer) = (Sha256::new(), vec![0; COPY_BYTES]);
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            read => {
                digest.update(&buffer[..read]);
                into.write_all(&buffer[..read])?;
            }
        }
    }
    into.flush()?;
    drop(into);
    disk.sync(&[to.to_owned()])?;
    Ok(hex(&digest.finalize()))
}
