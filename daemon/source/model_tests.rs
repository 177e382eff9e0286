//! Random writers against a reader: what is captured is compared with everything that the file ever held.
//!
//! Sizes are small, so that a few records have many blocks and chunks. Every byte that a writer puts somewhere is one that was
//! never there before, so that a torn chunk cannot look whole by chance. A failing seed can be run alone: `SOURCE_SEED=n`.

use std::sync::{Arc, Mutex};

use super::check::{Source, check_within};
use super::fingerprint::Walk;
use super::memory::MemoryFiles;
use super::record::Begun;
use super::tests::SMALL;
use super::*;

/// Sequences per run, half a millisecond each without optimisation; a campaign sets `SOURCE_SEQUENCES`.
const SEQUENCES: u64 = 3_000;

/// Looks and readings per sequence.
const STEPS: usize = 14;

/// The agent: changes the file and remembers every state that it had.
#[derive(Clone)]
struct Writer {
    files: MemoryFiles,
    state: Arc<Mutex<Written>>,
}

struct Written {
    random: fastrand::Rng,
    path: &'static str,
    encoding: Encoding,
    serial: u64,
    states: Vec<Vec<u8>>,
}

impl Writer {
    fn new(files: &MemoryFiles, seed: u64) -> Writer {
        files.create("a", "");
        let state = Written {
            random: fastrand::Rng::with_seed(seed ^ 0x5eed),
            path: "a",
            encoding: Encoding::Plain,
            serial: 0,
            states: vec![Vec::new()],
        };
        Writer { files: files.clone(), state: Arc::new(Mutex::new(state)) }
    }

    fn act(&self) {
        let mut state = self.state.lock().unwrap();
        let state = &mut *state;
        state.serial += 1;
        let now = state.states.last().unwrap().clone();
        let (files, random, path) = (&self.files, &mut state.random, state.path);
        if state.encoding == Encoding::Zstd {
            // Only one thing happens to an archived session: it is resumed.
            files.delete("a.zst");
            files.create("a", now);
            (state.path, state.encoding) = ("a", Encoding::Plain);
            return;
        }
        let text = text(state.serial, random);
        match random.u8(..40) {
            0..=15 => files.append(path, &text),
            16..=20 => files.append(path, &text[..text.len() / 2]),
            21..=22 => files.truncate(path, random.usize(..=now.len())),
            23 => files.rewrite_in_place(path, text),
            24..=26 if !now.is_empty() => {
                let at = random.usize(..now.len());
                let length = random.usize(1..=(now.len() - at).min(4));
                files.splice(path, at, &vec![128 + (state.serial % 128) as u8; length]);
            }
            27..=28 => files.create(path, [now.as_slice(), &text].concat()),
            29 => files.create(path, [&text, now.as_slice()].concat()),
            30 => files.recreate_reusing_inode(path, text, random.bool()),
            31 => files.recreate_reusing_inode(path, [now.as_slice(), &text].concat(), true),
            32 if !now.is_empty() => {
                // The same size, the same time, the same inode.
                let mut other = now.clone();
                other[random.usize(..now.len())] = 128 + (state.serial % 128) as u8;
                files.recreate_reusing_inode(path, other, true);
            }
            33..=34 => files.touch(path),
            35..=36 => {
                state.path = if path == "a" { "b" } else { "a" };
                files.rename(path, state.path);
            }
            37 if !now.is_empty() => {
                let mut without = now.clone();
                let at = random.usize(..now.len());
                without.drain(at..(at + 3).min(now.len()));
                files.create(path, without);
            }
            38 if random.u8(..8) == 0 => {
                files.create("a.zst", zstd::encode_all(now.as_slice(), 1).unwrap());
                files.delete(path);
                (state.path, state.encoding) = ("a.zst", Encoding::Zstd);
            }
            _ => {}
        }
        if state.encoding == Encoding::Plain {
            state.states.push(files.content(state.path).unwrap());
        }
    }

    fn place(&self) -> (&'static Path, Encoding) {
        let state = self.state.lock().unwrap();
        (Path::new(state.path), state.encoding)
    }

    fn now(&self) -> Vec<u8> {
        self.state.lock().unwrap().states.last().unwrap().clone()
    }

    /// Whether the file ever was like this, as far as `test` looks.
    fn ever(&self, test: impl Fn(&[u8]) -> bool) -> bool {
        self.state.lock().unwrap().states.iter().any(|state| test(state))
    }
}

/// A record of ASCII that says its number, sometimes larger than a chunk, seldom larger than a record may be.
fn text(serial: u64, random: &mut fastrand::Rng) -> Vec<u8> {
    let length = match random.u8(..20) {
        0 => random.usize(60..200),
        1..=3 => random.usize(20..60),
        _ => random.usize(1..12),
    };
    let word = format!("{serial},");
    let mut text: Vec<u8> = word.bytes().cycle().take(length).collect();
    text.push(b'\n');
    text
}

/// The mirror's part: a generation's bytes and its cursor.
struct Reader {
    captured: Vec<u8>,
    cursor: Cursor,
    /// Whether every rewrite was noticed so far: not so where only a quick look was taken, or the file changed under it.
    sure: bool,
}

impl Reader {
    fn new(stat: Stat) -> Reader {
        Reader { captured: Vec::new(), cursor: Cursor::start(stat), sure: true }
    }

    /// A look at a file that is still, which must see what there is to see.
    fn look(&mut self, files: &MemoryFiles, writer: &Writer, depth: Depth) {
        let (path, encoding) = writer.place();
        let now = writer.now();
        let same = now.starts_with(&self.captured);
        let seen = self.cursor.stat;
        let source = Source { files, path, encoding, cursor: &self.cursor };
        match check_within(source, depth, SMALL).unwrap() {
            Verdict::Unchanged => assert_eq!(files.stat(path).unwrap(), seen),
            Verdict::Intact { cursor, more } => {
                assert!(depth == Depth::Quick || same, "a whole look took a rewrite for none");
                assert!(!cursor.verified || same, "called verified and is not");
                let grown = cursor.stat.same_inode(&seen) && cursor.stat.size > seen.size;
                assert!(same || grown || cursor.stat == seen, "only growth is taken on trust");
                assert!(more || now.len() as u64 == cursor.offset);
                assert_eq!(cursor.stat, files.stat(path).unwrap());
                self.sure |= cursor.verified;
                self.cursor = cursor;
            }
            Verdict::Rewritten { stat, .. } => {
                assert!(!same, "an append or a move was taken for a rewrite");
                *self = Reader::new(stat);
            }
        }
    }

    /// Reads for a while; the file may change under it.
    fn read(&mut self, files: &MemoryFiles, writer: &Writer, random: &mut fastrand::Rng) {
        let (path, encoding) = writer.place();
        let mut reading =
            match Reading::open_within(files, path, encoding, &self.cursor, SMALL).unwrap() {
                Ok(reading) => reading,
                Err(Verdict::Rewritten { stat, .. }) => {
                    assert!(writer.ever(|state| !state.starts_with(&self.captured)));
                    *self = Reader::new(stat);
                    return;
                }
                Err(other) => panic!("{other:?}"),
            };
        for _ in 0..random.usize(1..12) {
            let unfinished = if random.u8(..4) == 0 { Unfinished::Take } else { Unfinished::Wait };
            match reading.next(unfinished).unwrap() {
                Next::Chunk(chunk) => self.take(writer, chunk, unfinished),
                Next::End { unfinished_bytes } => {
                    assert!(unfinished == Unfinished::Wait || unfinished_bytes == 0);
                    return;
                }
                Next::Changed => return,
            }
        }
    }

    fn take(&mut self, writer: &Writer, chunk: Chunk, unfinished: Unfinished) {
        let start = self.captured.len();
        assert_eq!(chunk.start, start as u64);
        let mut begun = Begun::new(SMALL.context);
        begun.push(&self.captured);
        if self.sure {
            assert_eq!(chunk.context, begun.tail());
        }
        self.captured.extend_from_slice(&chunk.bytes);
        assert_eq!(chunk.cursor.offset, self.captured.len() as u64);
        let mut walk = Walk::start(SMALL.blocks);
        walk.push(&self.captured);
        assert_eq!(chunk.cursor.fingerprint, walk.fingerprint(), "digests of what was captured");
        assert!(!chunk.cursor.verified);

        let ended = chunk.bytes.ends_with(b"\n");
        assert_eq!(chunk.ends_record, ended);
        assert!(ended || chunk.cut || unfinished == Unfinished::Take);
        let records = chunk.bytes.split_inclusive(|byte| *byte == b'\n').count();
        assert!(chunk.bytes.len() <= SMALL.chunk || records == 1);
        assert!(chunk.bytes.len() <= SMALL.record + SMALL.step);

        // What a second look covers, together and at one time: the first bytes, the tail and the chunk.
        let head = start.min(SMALL.blocks.head);
        let tail = SMALL.blocks.tail_start(start as u64) as usize;
        let around = |state: &[u8]| {
            state.starts_with(&self.captured[..head])
                && state.get(tail..).is_some_and(|rest| rest.starts_with(&self.captured[tail..]))
        };
        assert!(writer.ever(around), "a torn chunk: the file never was like that");
        if self.sure {
            assert!(writer.ever(|state| state.starts_with(&self.captured)), "states are mixed");
        }
        self.cursor = chunk.cursor;
    }
}

fn run(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let files = MemoryFiles::new();
    files.limit_reads(random.usize(1..20));
    let writer = Writer::new(&files, seed);
    let mut reader = Reader::new(files.stat(Path::new("a")).unwrap());
    let attacked = random.bool();
    for _ in 0..STEPS {
        for _ in 0..random.usize(..4) {
            writer.act();
        }
        if random.u8(..3) > 0 {
            let depth = if random.bool() { Depth::Quick } else { Depth::Whole };
            reader.look(&files, &writer, depth);
        }
        let now = writer.now();
        // What only a quick look was taken at may be a splice under an append.
        reader.sure &= now.starts_with(&reader.captured);
        // Three changes could make a torn chunk look whole by putting back what was there; two cannot.
        if attacked && writer.place().1 == Encoding::Plain {
            for _ in 0..random.usize(..=2) {
                let writer = writer.clone();
                files.at_read(random.u64(1..60), move |_| writer.act());
            }
            reader.sure = false;
        }
        reader.read(&files, &writer, &mut random);
        files.forget_hooks();
        if random.u8(..6) == 0 {
            let text = serde_json::to_string(&reader.cursor).unwrap();
            reader.cursor = serde_json::from_str(&text).unwrap();
        }
        assert_eq!(files.counts().open_now, 0, "a descriptor stays open");
    }
    settle(&files, &writer, &mut reader);
}

/// In the end the writer is still, and the reader gets everything, in at most one more generation.
fn settle(files: &MemoryFiles, writer: &Writer, reader: &mut Reader) {
    reader.look(files, writer, Depth::Whole);
    let (path, encoding) = writer.place();
    let mut reading =
        Reading::open_within(files, path, encoding, &reader.cursor, SMALL).unwrap().unwrap();
    reader.sure = true;
    loop {
        match reading.next(Unfinished::Take).unwrap() {
            Next::Chunk(chunk) => reader.take(writer, chunk, Unfinished::Take),
            Next::End { .. } => break,
            Next::Changed => panic!("nothing changed"),
        }
    }
    assert_eq!(reader.captured, writer.now());
    reader.look(files, writer, Depth::Whole);
    assert_eq!(reader.captured, writer.now());
}

#[test]
fn t1_t2_t3_t4_t7_t9_captured_bytes_are_always_what_the_file_held() {
    if let Ok(seed) = std::env::var("SOURCE_SEED") {
        return run(seed.parse().unwrap());
    }
    let sequences = std::env::var("SOURCE_SEQUENCES").ok().and_then(|n| n.parse().ok());
    for seed in 0..sequences.unwrap_or(SEQUENCES) {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            // The reason was printed; this is how to see it again.
            panic!("seed {seed}: {:?}", panic.downcast_ref::<String>());
        }
    }
}
