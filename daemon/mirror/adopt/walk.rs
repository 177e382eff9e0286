//! Walking what is stored along the source: which evidence is enough to go on, and which proves a rewrite.
//!
//! A part of ours is met when the redacted source has its digest. A part without one, or of other rules, is fetched and compared
//! record by record: what it does not hide has to be in the source, and a known range pins every boundary. Where no range is
//! known what the manifest's chain makes of it is asked, and believed only when the bytes agree. Changes nothing.

use std::collections::HashSet;
use std::path::PathBuf;
use std::pin::Pin;

use memchr::memchr;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::same::{has_marker, is_redaction_of};
use super::{AdoptError, Adopter, Held};
use crate::mirror::capture::Tools;
use crate::mirror::find::NewFile;
use crate::mirror::manifest;
use crate::part::{Link, Manifest, PartEntry, PartName, SessionKey, hex};
use crate::redact::Counts;
use crate::source::{Cursor, Encoding, Next, RECORD_BYTES_MAX, Reading, Unfinished};
use crate::state::PendingPart;
use crate::store::{ErrorKind, StoreError};

/// Stored bytes that are compared in one step, off the runtime's threads; one record alone may be more.
const STEP_BYTES: usize = 512 * 1024;

/// Bytes that one read of an object asks for.
const READ_BYTES: usize = 64 * 1024;

/// Why a session is not continued where it is stored, in words for the manifest.
const DIFFERS: &str = "its source is not what is stored";
const SHORTER: &str = "its source is shorter than what is stored";
const UNCLEAR: &str = "where in its source the stored parts end cannot be told";
const GONE: &str = "a part that its manifest names is gone";
const APART: &str = "its stored parts do not follow each other";

/// A walk that agreed to the end.
#[derive(Debug)]
pub(in crate::mirror) struct Walked {
    /// After all that is held.
    pub(super) cursor: Cursor,
    /// Ranges of the objects that no manifest names.
    pub(in crate::mirror) unnamed: Vec<[u64; 2]>,
}

/// Where a walk had to end, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::mirror) struct Departed {
    /// In words for the manifest.
    pub(in crate::mirror) why: &'static str,
    /// The part that was not met, if it was one.
    pub(in crate::mirror) part: Option<PartName>,
    /// Where in the source it should have begun.
    pub(in crate::mirror) from: u64,
}

impl Held {
    /// What was read already; nothing waits.
    pub(in crate::mirror) fn of(
        key: SessionKey,
        manifest: Manifest,
        listed: Vec<(PartName, u64)>,
        unnamed: Vec<PartEntry>,
    ) -> Held {
        let next_seq = manifest.next_seq;
        Held { key, manifest, listed, unnamed, waiting: Vec::new(), next_seq, has_strays: false }
    }
}

/// A stored or captured part, as the walk has to meet it.
#[derive(Debug, Clone)]
struct Expected {
    place: Place,
    bytes: u64,
    range: Option<[u64; 2]>,
    /// Where it may end if no range says it.
    hint: Option<u64>,
    /// SHA-256, or nothing in a part that another writer named at random.
    sha256: Option<String>,
    unnamed: bool,
}

#[derive(Debug, Clone)]
enum Place {
    Stored(PartName),
    Outbox(PathBuf),
}

impl Expected {
    fn of_entry(entry: &PartEntry, unnamed: bool) -> Expected {
        Expected {
            place: Place::Stored(entry.name()),
            bytes: entry.uploaded_bytes,
            range: entry.cursor_range,
            hint: None,
            sha256: entry.sha256.clone(),
            unnamed,
        }
    }

    fn of_part(part: &PendingPart, path: PathBuf) -> Expected {
        Expected {
            place: Place::Outbox(path),
            bytes: part.bytes,
            range: Some(part.range),
            hint: None,
            sha256: Some(part.sha256.clone()),
            unnamed: false,
        }
    }

    fn name(&self) -> Option<&PartName> {
        match &self.place {
            Place::Stored(name) => Some(name),
            Place::Outbox(_) => None,
        }
    }

    fn is(&self, bytes: u64, digest: Sha256) -> bool {
        self.bytes == bytes && self.sha256.as_ref() == Some(&hex(&digest.finalize()))
    }
}

/// The parts that are to be met, in order, each with what is known of its end.
fn expected(held: &Held, tools: &Tools) -> Vec<Expected> {
    let named = held.manifest.chain().into_iter();
    let mut all: Vec<Expected> = named
        .map(|Link { part, range }| Expected {
            hint: range.map(|[_, end]| end),
            ..Expected::of_entry(part, false)
        })
        .collect();
    all.extend(held.unnamed.iter().map(|entry| Expected::of_entry(entry, true)));
    let waiting = held.waiting.iter();
    all.extend(waiting.map(|part| Expected::of_part(part, tools.outbox.path(&held.key, part))));
    for at in 1..all.len() {
        let start = all[at].range.map(|[start, _]| start);
        let before = &mut all[at - 1];
        if before.range.is_none() && before.hint.is_none() {
            before.hint = start;
        }
    }
    all
}

impl Adopter {
    /// Walks what is held along the source. The inner error says why it is not this source's, for people.
    pub(super) async fn walk(
        &self,
        file: &NewFile,
        held: &Held,
    ) -> Result<Result<Walked, &'static str>, AdoptError> {
        Ok(self.follow(file, held).await?.map_err(|departed| departed.why))
    }

    /// As [`Adopter::walk`], telling also where both part.
    pub(in crate::mirror) async fn follow(
        &self,
        file: &NewFile,
        held: &Held,
    ) -> Result<Result<Walked, Departed>, AdoptError> {
        let listed: HashSet<&PartName> = held.listed.iter().map(|(name, _)| name).collect();
        if let Some(gone) = held.manifest.parts.iter().find(|part| !listed.contains(&part.name())) {
            self.unchanged(held).await?;
            let from = gone.cursor_range.map_or(0, |[start, _]| start);
            return Ok(Err(Departed { why: GONE, part: Some(gone.name()), from }));
        }
        // By the same rules the same source has the same digest; only where the manifest tells of others that proves nothing.
        let rules = held.manifest.rules.as_deref();
        let digests_count = rules.is_none_or(|rules| rules == self.tools.redactor.rules_version());
        let mut cursor = Cursor::start(file.stat);
        let mut unnamed = Vec::new();
        for part in expected(held, &self.tools) {
            let from = cursor.offset;
            let source = SourceAt {
                tools: self.tools.clone(),
                path: file.candidate.path.clone(),
                encoding: file.candidate.encoding,
                cursor,
            };
            let met = match self.meets(held, source, &part, digests_count).await? {
                Ok(met) => met,
                Err(why) => {
                    let (range, bytes) = (part.range, part.bytes);
                    tracing::debug!(session = %held.key, from, ?range, bytes, why, "not continued");
                    let part = part.name().cloned();
                    return Ok(Err(Departed { why, part, from }));
                }
            };
            cursor = met;
            if part.unnamed {
                unnamed.push([from, cursor.offset]);
            }
        }
        Ok(Ok(Walked { cursor, unnamed }))
    }

    /// Whether a part is what the source holds at the cursor; where it ends if so.
    async fn meets(
        &self,
        held: &Held,
        source: SourceAt,
        part: &Expected,
        digests_count: bool,
    ) -> Result<Result<Cursor, &'static str>, AdoptError> {
        if part.range.is_some_and(|[start, _]| start != source.cursor.offset) {
            return Ok(Err(APART));
        }
        if part.sha256.is_some() {
            let (mut own, wanted) = (source.clone(), part.clone());
            let exact = move || own.has_digest(&wanted).map(|agrees| agrees.then_some(own.cursor));
            match self.blocking.run(exact).await? {
                Some(cursor) => return Ok(Ok(cursor)),
                None if digests_count => return Ok(Err(DIFFERS)),
                None => {}
            }
        }
        let reader: Pin<Box<dyn AsyncRead + Send>> = match &part.place {
            Place::Stored(name) => match self.store.get(&held.key.part_key(name)).await {
                Ok(object) => object.reader,
                Err(error) if error.kind == ErrorKind::NotFound => {
                    self.unchanged(held).await?;
                    return Ok(Err(GONE));
                }
                Err(error) => return Err(error.into()),
            },
            Place::Outbox(path) => {
                let bytes = self.tools.disk.read(path).map_err(AdoptError::Outbox)?;
                Box::pin(std::io::Cursor::new(bytes))
            }
        };
        self.compare(&held.key, source, part, reader).await
    }

    /// Compares a part's bytes with the source, some records at a time.
    async fn compare(
        &self,
        key: &SessionKey,
        source: SourceAt,
        part: &Expected,
        mut reader: Pin<Box<dyn AsyncRead + Send>>,
    ) -> Result<Result<Cursor, &'static str>, AdoptError> {
        let Some(mut compare) = Compare::open(source, part)? else {
            return Err(AdoptError::Changed); // It agreed a moment ago.
        };
        let mut stored = Vec::new();
        let mut wanted = STEP_BYTES;
        loop {
            let read = read_some(&mut reader, &mut stored).await;
            let is_last = read.map_err(|error| unreadable(key, part, error))? == 0;
            if !is_last && stored.len() < wanted {
                continue;
            }
            if stored.len() > 2 * RECORD_BYTES_MAX {
                return Ok(Err(DIFFERS)); // No record of ours or of anybody's agent is so long.
            }
            let block = std::mem::take(&mut stored);
            let step = move || {
                let outcome = compare.step(&block, is_last);
                (compare, block, outcome)
            };
            let (same, block, outcome) = self.blocking.run(step).await;
            compare = same;
            match outcome? {
                Ok(used) => stored.extend_from_slice(&block[used..]),
                Err(why) => return Ok(Err(why)),
            }
            if is_last {
                return self.blocking.run(move || compare.finish()).await;
            }
            // A huge record is searched for its end as often as it doubles, not with every piece of it.
            wanted = STEP_BYTES.max(2 * stored.len());
        }
    }

    /// That a named object is missing means something only if no compaction has taken it away meanwhile.
    async fn unchanged(&self, held: &Held) -> Result<(), AdoptError> {
        match manifest::read(&*self.store, &held.key).await? {
            Some(now) if now.parts == held.manifest.parts => Ok(()),
            None if held.manifest.parts.is_empty() => Ok(()),
            _ => Err(AdoptError::Changed),
        }
    }
}

async fn read_some(
    reader: &mut Pin<Box<dyn AsyncRead + Send>>,
    into: &mut Vec<u8>,
) -> std::io::Result<usize> {
    let filled = into.len();
    into.resize(filled + READ_BYTES, 0);
    let read = reader.read(&mut into[filled..]).await;
    into.truncate(filled + *read.as_ref().unwrap_or(&0));
    read
}

fn unreadable(key: &SessionKey, part: &Expected, error: std::io::Error) -> StoreError {
    let object = match &part.place {
        Place::Stored(name) => key.part_key(name),
        Place::Outbox(path) => path.display().to_string(),
    };
    StoreError::new(ErrorKind::Unavailable, "get", &object, error)
}

/// A place in the source up to which it agrees with what is stored.
#[derive(Debug, Clone)]
struct SourceAt {
    tools: Tools,
    path: PathBuf,
    encoding: Encoding,
    cursor: Cursor,
}

impl SourceAt {
    fn open(&self) -> Result<Option<Reading>, AdoptError> {
        let opened = Reading::open(&*self.tools.files, &self.path, self.encoding, &self.cursor)?;
        Ok(opened.ok())
    }

    /// Whether the redacted source goes on with a part of ours; then the cursor is behind it.
    fn has_digest(&mut self, part: &Expected) -> Result<bool, AdoptError> {
        match part.range {
            Some([_, end]) => self.along(end, part),
            None => self.until_found(part),
        }
    }

    /// Goes on to `end` and compares what lies between with a part.
    fn along(&mut self, end: u64, part: &Expected) -> Result<bool, AdoptError> {
        let Some(mut reading) = self.open()? else { return Err(AdoptError::Changed) };
        let (mut bytes, mut digest) = (0, Sha256::new());
        let mut redacted = Vec::new();
        while self.cursor.offset < end {
            let chunk = match reading.next_until(end)? {
                Next::Chunk(chunk) => chunk,
                Next::End { .. } => return Ok(false),
                Next::Changed => return Err(AdoptError::Changed),
            };
            redacted.clear();
            let redactor = &self.tools.redactor;
            redactor.redact(&chunk.context, &chunk.bytes, &mut redacted, &mut Counts::new());
            digest.update(&redacted);
            bytes += redacted.len() as u64;
            if bytes > part.bytes {
                return Ok(false);
            }
            self.cursor = chunk.cursor;
        }
        Ok(part.is(bytes, digest))
    }

    /// Goes on record by record until the redacted bytes are as many as the part's, and compares them.
    fn until_found(&mut self, part: &Expected) -> Result<bool, AdoptError> {
        let Some(mut reading) = self.open()? else { return Err(AdoptError::Changed) };
        let (mut bytes, mut at) = (0, self.cursor.offset);
        let mut redacted = Vec::new();
        'source: while bytes < part.bytes {
            let chunk = match reading.next(Unfinished::Take)? {
                Next::Chunk(chunk) => chunk,
                Next::End { .. } => return Ok(false),
                Next::Changed => return Err(AdoptError::Changed),
            };
            let mut context = chunk.context.as_slice();
            for record in chunk.bytes.split_inclusive(|byte| *byte == b'\n') {
                redacted.clear();
                let redactor = &self.tools.redactor;
                redactor.redact(context, record, &mut redacted, &mut Counts::new());
                context = &[];
                let with = bytes + redacted.len() as u64;
                if with > part.bytes {
                    // The part ends inside this record: it was torn when it was taken, and completed later.
                    at += part.bytes - bytes;
                    break 'source;
                }
                bytes = with;
                at += record.len() as u64;
                if bytes == part.bytes {
                    break 'source;
                }
            }
        }
        drop(reading);
        self.along(at, part)
    }

    /// Goes to a position that was read before.
    fn advance(&mut self, to: u64) -> Result<(), AdoptError> {
        let Some(mut reading) = self.open()? else { return Err(AdoptError::Changed) };
        while self.cursor.offset < to {
            match reading.next_until(to)? {
                Next::Chunk(chunk) => self.cursor = chunk.cursor,
                Next::End { .. } | Next::Changed => return Err(AdoptError::Changed),
            }
        }
        Ok(())
    }
}

/// The comparison of one part with the source, which goes on as the part's bytes come.
struct Compare {
    source: SourceAt,
    reading: Reading,
    /// Where the part ends, if its range says so.
    end: Option<u64>,
    hint: Option<u64>,
    /// Read and not compared yet; what is before `used` is.
    buffer: Vec<u8>,
    used: usize,
    /// Position of the buffer's first byte.
    start: u64,
    /// After the buffer.
    cursor: Cursor,
}

impl Compare {
    fn open(source: SourceAt, part: &Expected) -> Result<Option<Compare>, AdoptError> {
        let Some(reading) = source.open()? else { return Ok(None) };
        let cursor = source.cursor.clone();
        Ok(Some(Compare {
            end: part.range.map(|[_, end]| end),
            hint: part.hint,
            start: cursor.offset,
            buffer: Vec::new(),
            used: 0,
            source,
            reading,
            cursor,
        }))
    }

    /// Compares the whole records of `stored`, and what is behind them if it is the last. Answers how many bytes were used.
    fn step(
        &mut self,
        stored: &[u8],
        is_last: bool,
    ) -> Result<Result<usize, &'static str>, AdoptError> {
        let mut used = 0;
        for record in stored.split_inclusive(|byte| *byte == b'\n') {
            let is_whole = record.ends_with(b"\n");
            if !is_whole && !is_last {
                break;
            }
            if let Err(why) = self.record(record, is_whole)? {
                return Ok(Err(why));
            }
            used += record.len();
        }
        Ok(Ok(used))
    }

    /// Compares one stored record, or the piece of one at either end of a part.
    fn record(
        &mut self,
        stored: &[u8],
        is_whole: bool,
    ) -> Result<Result<(), &'static str>, AdoptError> {
        let length = self.find_record()?;
        if length == 0 {
            return Ok(Err(SHORTER));
        }
        let source = &self.buffer[self.used..self.used + length];
        let position = self.start + self.used as u64;
        let taken = if is_whole || self.end.is_some() {
            is_redaction_of(stored, source).then_some(length)
        } else if !has_marker(stored) {
            // It was torn when it was taken, and completed later.
            source.starts_with(stored).then_some(stored.len())
        } else {
            let hint = self.hint.and_then(|end| usize::try_from(end.checked_sub(position)?).ok());
            let Some(piece) = hint.and_then(|bytes| source.get(..bytes)) else {
                return Ok(Err(UNCLEAR));
            };
            is_redaction_of(stored, piece).then_some(piece.len())
        };
        match taken {
            Some(bytes) => {
                self.used += bytes;
                Ok(Ok(()))
            }
            None => Ok(Err(DIFFERS)),
        }
    }

    /// Length of the source's next record, or of what is left of it before the part's end or the source's; 0 at the end.
    fn find_record(&mut self) -> Result<usize, AdoptError> {
        let mut searched = self.used;
        loop {
            if let Some(newline) = memchr(b'\n', &self.buffer[searched..]) {
                return Ok(searched + newline + 1 - self.used);
            }
            searched = self.buffer.len() - self.used;
            let next = match self.end {
                Some(end) if self.cursor.offset >= end => return Ok(searched),
                Some(end) => self.reading.next_until(end)?,
                None => self.reading.next(Unfinished::Take)?,
            };
            match next {
                Next::Chunk(chunk) => {
                    self.start += self.used as u64;
                    if searched == 0 {
                        self.buffer = chunk.bytes;
                    } else {
                        self.buffer.drain(..self.used);
                        self.buffer.extend_from_slice(&chunk.bytes);
                    }
                    self.used = 0;
                    self.cursor = chunk.cursor;
                }
                Next::End { .. } => return Ok(searched),
                Next::Changed => return Err(AdoptError::Changed),
            }
        }
    }

    /// All of the part agreed: the cursor behind it, unless its range says more.
    fn finish(self) -> Result<Result<Cursor, &'static str>, AdoptError> {
        let position = self.start + self.used as u64;
        match self.end {
            Some(end) if end == position && self.cursor.offset == end => Ok(Ok(self.cursor)),
            Some(_) => Ok(Err(DIFFERS)),
            None => {
                let mut source = self.source;
                drop(self.reading);
                source.advance(position)?;
                Ok(Ok(source.cursor))
            }
        }
    }
}
