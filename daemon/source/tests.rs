//! What a look at a source and a reading of it promise, case by case.

use std::io;

use rustix::io::Errno;

use super::check::{Source, check_within};
use super::fingerprint::Blocks;
use super::memory::{Fault, MemoryFiles};
use super::record::Limits;
use super::*;

/// Small enough that a line of text has many blocks.
pub(super) const SMALL: Limits = Limits {
    blocks: Blocks { head: 4, block: 8 },
    chunk: 32,
    record: 64,
    context: 8,
    step: 5,
    cut_search: 6,
};

const PLAIN: Encoding = Encoding::Plain;
const ZSTD: Encoding = Encoding::Zstd;

/// Everything from a cursor to the end, as one, and the cursor there.
pub(super) fn read_on(
    files: &dyn Files,
    path: &str,
    encoding: Encoding,
    cursor: &Cursor,
    unfinished: Unfinished,
) -> (Vec<u8>, Cursor) {
    let mut reading = open(files, path, encoding, cursor);
    let (mut bytes, mut cursor) = (Vec::new(), cursor.clone());
    while let Next::Chunk(chunk) = reading.next(unfinished).unwrap() {
        bytes.extend_from_slice(&chunk.bytes);
        cursor = chunk.cursor;
    }
    (bytes, cursor)
}

pub(super) fn open(files: &dyn Files, path: &str, encoding: Encoding, cursor: &Cursor) -> Reading {
    Reading::open(files, Path::new(path), encoding, cursor).unwrap().unwrap()
}

fn open_small(files: &MemoryFiles, cursor: &Cursor) -> Reading {
    Reading::open_within(files, Path::new("a"), PLAIN, cursor, SMALL).unwrap().unwrap()
}

/// Starts at the beginning of `a`.
pub(super) fn start(files: &dyn Files) -> Cursor {
    Cursor::start(files.stat(Path::new("a")).unwrap())
}

fn look(files: &dyn Files, path: &str, cursor: &Cursor, depth: Depth) -> Verdict {
    check(files, Path::new(path), PLAIN, cursor, depth).unwrap()
}

fn why(verdict: Verdict) -> Rewrite {
    match verdict {
        Verdict::Rewritten { why, .. } => why,
        other => panic!("taken for no rewrite: {other:?}"),
    }
}

fn intact(verdict: Verdict) -> Cursor {
    match verdict {
        Verdict::Intact { cursor, .. } => cursor,
        other => panic!("taken for something else: {other:?}"),
    }
}

pub(super) fn chunk(next: Result<Next, SourceError>) -> Chunk {
    match next.unwrap() {
        Next::Chunk(chunk) => chunk,
        other => panic!("no chunk but {other:?}"),
    }
}

/// So many bytes of numbered lines.
pub(super) fn lines(bytes: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(bytes + 32);
    let mut number = 0;
    while text.len() < bytes {
        text.extend_from_slice(format!("{{\"n\":{number:>20}}}\n").as_bytes());
        number += 1;
    }
    text
}

/// A file `a` of some 300 kB that is captured to its end.
pub(super) fn captured() -> (MemoryFiles, Cursor, Vec<u8>) {
    let files = MemoryFiles::new();
    let text = lines(300_000);
    files.create("a", text.clone());
    let (bytes, cursor) = read_on(&files, "a", PLAIN, &start(&files), Unfinished::Wait);
    assert_eq!(bytes, text);
    (files, cursor, text)
}

#[test]
fn an_unchanged_file_is_not_opened() {
    let (files, cursor, _) = captured();
    let before = files.counts();
    assert_eq!(look(&files, "a", &cursor, Depth::Quick), Verdict::Unchanged);
    assert_eq!(files.counts(), before);
    let cursor = intact(look(&files, "a", &cursor, Depth::Whole));
    assert!(cursor.verified, "a whole comparison is remembered");
    let before = files.counts();
    assert_eq!(look(&files, "a", &cursor, Depth::Whole), Verdict::Unchanged);
    assert_eq!(files.counts(), before);
}

#[test]
fn an_append_is_intact_and_costs_one_block() {
    let (files, cursor, _) = captured();
    files.append("a", b"more\n");
    let before = files.counts().bytes_read;
    let verdict = look(&files, "a", &cursor, Depth::Quick);
    assert!(matches!(verdict, Verdict::Intact { more: true, .. }), "{verdict:?}");
    assert!(files.counts().bytes_read - before <= 68 << 10);
    assert_eq!(files.counts().open_now, 0);
    let cursor = intact(verdict);
    assert!(!cursor.verified, "a quick look does not count as a comparison");
    assert_eq!(read_on(&files, "a", PLAIN, &cursor, Unfinished::Wait).0, b"more\n");
}

#[test]
fn t1_truncated_and_regrown_is_a_rewrite_wherever_it_differs() {
    let (files, cursor, mut text) = captured();
    files.rewrite_in_place("a", lines(400_000).repeat(2)[7..].to_vec());
    assert_eq!(why(look(&files, "a", &cursor, Depth::Quick)), Rewrite::HeadDiffers);
    text[290_000] ^= 1;
    text.extend_from_slice(b"more\n");
    files.rewrite_in_place("a", text);
    assert_eq!(why(look(&files, "a", &cursor, Depth::Quick)), Rewrite::TailDiffers);
}

#[test]
fn t2_a_splice_of_the_same_length_is_found_at_once_and_behind_an_append_when_all_is_compared() {
    let (files, cursor, _) = captured();
    files.splice("a", 100_000, b"#");
    assert_eq!(why(look(&files, "a", &cursor, Depth::Quick)), Rewrite::MiddleDiffers);
    files.append("a", b"more\n");
    let fooled = intact(look(&files, "a", &cursor, Depth::Quick));
    assert_eq!(why(look(&files, "a", &fooled, Depth::Whole)), Rewrite::MiddleDiffers);
    // Nor does capturing what was appended hide the splice.
    let (_, fooled) = read_on(&files, "a", PLAIN, &fooled, Unfinished::Wait);
    assert_eq!(why(look(&files, "a", &fooled, Depth::Whole)), Rewrite::MiddleDiffers);
}

#[test]
fn t3_a_replaced_file_is_a_rewrite_exactly_if_its_prefix_is() {
    let (files, cursor, text) = captured();
    let longer = [text.as_slice(), b"more\n"].concat();
    files.create("a", longer.clone());
    let moved = intact(look(&files, "a", &cursor, Depth::Quick));
    assert!(moved.verified, "another inode is compared as a whole");
    assert_eq!(read_on(&files, "a", PLAIN, &moved, Unfinished::Wait).0, b"more\n");
    let dropped = [&longer[..28 * 4000], &longer[28 * 4001..], &longer].concat();
    files.create("a", dropped);
    assert_eq!(why(look(&files, "a", &cursor, Depth::Quick)), Rewrite::MiddleDiffers);
    let opened = Reading::open(&files, Path::new("a"), PLAIN, &cursor).unwrap();
    assert_eq!(why(opened.unwrap_err()), Rewrite::MiddleDiffers);
    assert_eq!(files.counts().open_now, 0);
}

#[test]
fn t4_an_inode_that_is_used_again_does_not_pass_for_the_old_file() {
    let (files, cursor, mut text) = captured();
    text[150_000] ^= 1;
    files.recreate_reusing_inode("a", text.clone(), true);
    assert_eq!(why(look(&files, "a", &cursor, Depth::Quick)), Rewrite::MiddleDiffers);
    files.recreate_reusing_inode("a", [b"other\n", text.as_slice()].concat(), true);
    assert_eq!(why(look(&files, "a", &cursor, Depth::Quick)), Rewrite::HeadDiffers);
}

#[test]
fn t5_a_file_that_is_shorter_than_the_cursor_is_a_rewrite_at_once() {
    let (files, cursor, _) = captured();
    for length in [299_999, 1, 0] {
        files.truncate("a", length);
        assert_eq!(why(look(&files, "a", &cursor, Depth::Quick)), Rewrite::Shorter);
        let opened = Reading::open(&files, Path::new("a"), PLAIN, &cursor).unwrap();
        assert_eq!(why(opened.unwrap_err()), Rewrite::Shorter);
    }
}

#[test]
fn t6_what_was_not_yet_read_of_a_deleted_file_is_still_read_and_then_let_go() {
    let files = MemoryFiles::new();
    files.create("a", "one\ntwo\n");
    let mut reading = open(&files, "a", PLAIN, &start(&files));
    files.append("a", b"three\n");
    files.delete("a");
    assert_eq!(chunk(reading.next(Unfinished::Wait)).bytes, b"one\ntwo\nthree\n");
    assert_eq!(files.counts().open_now, 1);
    drop(reading);
    assert_eq!(files.counts().open_now, 0);
    let gone = check(&files, Path::new("a"), PLAIN, &Cursor::start(STAT), Depth::Quick);
    assert!(matches!(gone, Err(SourceError::Missing(_))));
}

const STAT: Stat = Stat { dev: 0, ino: 0, size: 0, mtime_ns: 0, ctime_ns: 0 };

#[test]
fn t7_a_reading_of_a_replaced_file_says_so_and_gives_nothing_more() {
    let files = MemoryFiles::new();
    files.create("a", "one\n");
    let mut reading = open(&files, "a", PLAIN, &start(&files));
    files.create("a", "one\ntwo\n");
    for _ in 0..3 {
        assert_eq!(reading.next(Unfinished::Wait).unwrap(), Next::Changed);
    }
    files.fail("a", Fault::Unfit("a symbolic link"));
    let mut reading = {
        files.heal("a");
        let reading = open(&files, "a", PLAIN, &start(&files));
        files.fail("a", Fault::Unfit("a symbolic link"));
        reading
    };
    assert_eq!(reading.next(Unfinished::Wait).unwrap(), Next::Changed);
}

#[test]
fn a_file_that_is_rewritten_in_the_middle_of_a_chunk_gives_no_torn_chunk() {
    let old = lines(200_000);
    let new: Vec<u8> = old.iter().map(|byte| if *byte == b'n' { b'm' } else { *byte }).collect();
    for n in 1..=3 {
        let files = MemoryFiles::new();
        files.limit_reads(100_000);
        files.create("a", old.clone());
        let start = start(&files);
        let mut reading = open(&files, "a", PLAIN, &start);
        let other = new.clone();
        files.at_read(n, move |files| files.rewrite_in_place("a", other));
        match reading.next(Unfinished::Wait).unwrap() {
            Next::Changed => {}
            Next::Chunk(chunk) => assert!(n == 1 && chunk.bytes == new[..chunk.bytes.len()]),
            end => panic!("{end:?}"),
        }
    }
}

#[test]
fn t1_a_file_whose_beginning_changes_while_a_chunk_is_read_gives_no_chunk() {
    for back in [300_000, 9] {
        let (files, cursor, text) = captured();
        files.append("a", b"more\n");
        let mut reading = open(&files, "a", PLAIN, &cursor);
        let mut other = [text.as_slice(), b"more\n"].concat();
        other[text.len() - back] ^= 1;
        files.at_read(1, move |files| files.rewrite_in_place("a", other));
        assert_eq!(reading.next(Unfinished::Wait).unwrap(), Next::Changed);
    }
}

#[test]
fn a_file_that_grows_in_the_middle_of_a_chunk_is_read_on() {
    let files = MemoryFiles::new();
    files.create("a", lines(200_000));
    let mut reading = open(&files, "a", PLAIN, &start(&files));
    files.at_read(1, |files| files.append("a", b"more\nand"));
    let first = chunk(reading.next(Unfinished::Wait));
    assert!(first.bytes.ends_with(b"more\n"));
    assert_eq!(reading.next(Unfinished::Wait).unwrap(), Next::End { unfinished_bytes: 3 });
    files.append("a", b" more\n");
    assert_eq!(chunk(reading.next(Unfinished::Wait)).bytes, b"and more\n");
}

#[test]
fn what_was_read_ahead_before_a_change_is_read_again() {
    let files = MemoryFiles::new();
    files.create("a", "first record of 25 bytes.\nsecond\n");
    let mut reading = open_small(&files, &start(&files));
    // The buffer holds bytes of the second record when the first is given away.
    files.at_read(7, |files| files.splice("a", 26, b"SECOND"));
    let first = chunk(reading.next(Unfinished::Wait));
    let mut text = first.bytes;
    while let Next::Chunk(chunk) = reading.next(Unfinished::Wait).unwrap() {
        text.extend_from_slice(&chunk.bytes);
    }
    assert_eq!(Some(text), files.content("a"));
}

#[test]
fn t8_t9_a_move_and_an_archive_are_no_rewrite() {
    let (files, cursor, text) = captured();
    files.rename("a", "a.jsonl.reset.2026");
    let moved = intact(look(&files, "a.jsonl.reset.2026", &cursor, Depth::Quick));
    assert_eq!(moved.stat.ino, cursor.stat.ino);
    files.rename("a.jsonl.reset.2026", "b");
    files.create("a.zst", zstd::encode_all(text.as_slice(), 1).unwrap());
    let archived = check(&files, Path::new("a.zst"), ZSTD, &moved, Depth::Quick).unwrap();
    assert!(matches!(archived, Verdict::Intact { more: false, .. }), "{archived:?}");
    let archived = intact(archived);
    assert!(archived.verified);
    let again = check(&files, Path::new("a.zst"), ZSTD, &archived, Depth::Quick).unwrap();
    assert_eq!(again, Verdict::Unchanged);
    // Resumed: the plain file is back, and grows.
    files.create("a", [text.as_slice(), b"more\n"].concat());
    let back = intact(look(&files, "a", &archived, Depth::Quick));
    assert_eq!(read_on(&files, "a", PLAIN, &back, Unfinished::Wait).0, b"more\n");
}

#[test]
fn t10_a_cursor_survives_being_written_down_and_holds_no_text() {
    let (files, cursor, _) = captured();
    let text = serde_json::to_string(&cursor).unwrap();
    assert_eq!(serde_json::from_str::<Cursor>(&text).unwrap(), cursor);
    assert!(text.len() < 500, "{text}");
    assert_eq!(look(&files, "a", &serde_json::from_str(&text).unwrap(), Depth::Whole), {
        Verdict::Intact { cursor: Cursor { verified: true, ..cursor }, more: false }
    });
    let start = Cursor::start(STAT);
    let text = serde_json::to_string(&start).unwrap();
    assert_eq!(serde_json::from_str::<Cursor>(&text).unwrap(), start);
    for bad in ["+0", "zz", "é"] {
        let bad = format!("{{\"head\":\"{:0>64}\",\"blocks\":\"\",\"tail\":\"\"}}", bad);
        assert!(serde_json::from_str::<Fingerprint>(&bad).is_err());
    }
}

#[test]
fn t15_a_nearly_identical_file_in_its_place_is_a_rewrite() {
    let (files, cursor, mut text) = captured();
    text[270_000] = b'#';
    files.create("a", text);
    why(look(&files, "a", &cursor, Depth::Quick));
}

#[test]
fn t17_an_unfinished_record_waits_or_is_taken_and_then_gives_context() {
    let files = MemoryFiles::new();
    files.create("a", "one\n{\"half");
    let mut reading = open(&files, "a", PLAIN, &start(&files));
    let first = chunk(reading.next(Unfinished::Wait));
    assert_eq!((first.bytes.as_slice(), first.ends_record), (&b"one\n"[..], true));
    assert_eq!(reading.next(Unfinished::Wait).unwrap(), Next::End { unfinished_bytes: 6 });
    let half = chunk(reading.next(Unfinished::Take));
    assert_eq!((half.bytes.as_slice(), half.start), (&b"{\"half"[..], 4));
    assert!(!half.ends_record && !half.cut && half.context.is_empty());
    assert_eq!(reading.next(Unfinished::Take).unwrap(), Next::End { unfinished_bytes: 0 });
    files.append("a", b" done\"}\ntwo\n");
    for mut reading in [reading, open(&files, "a", PLAIN, &half.cursor)] {
        let rest = chunk(reading.next(Unfinished::Wait));
        assert_eq!(rest.context, b"{\"half");
        assert_eq!((rest.bytes.as_slice(), rest.ends_record), (&b" done\"}\ntwo\n"[..], true));
    }
}

#[test]
fn t18_t20_t21_t23_bytes_pass_as_they_are() {
    let cases: [&[u8]; 6] = [
        b"{\"torn\":{\"whole\":1}\nnext\n",
        b"one\n\0\0\0\0\0\0\0\0{\"after\":1}\n",
        b"one\n\0\0\0\0",
        b"\xef\xbb\xbf{}\r\n\xff\xfe\xed\xa0\x80\r\n\r\n\n",
        b"\n\n\n",
        b"the end of a record that began elsewhere\"}\n{}\n",
    ];
    for text in cases {
        let files = MemoryFiles::new();
        files.create("a", text);
        for at in 0..text.len() {
            // As if each prefix had been there first.
            files.create("a", &text[..at]);
            let (mut bytes, cursor) = read_on(&files, "a", PLAIN, &start(&files), Unfinished::Take);
            files.append("a", &text[at..]);
            bytes.extend(read_on(&files, "a", PLAIN, &cursor, Unfinished::Take).0);
            assert_eq!(bytes, text);
        }
    }
}

#[test]
fn t19_a_record_larger_than_a_chunk_is_one_chunk() {
    for length in [1, 100 * 1024 + 1, 3_000_000, 9_000_001] {
        let files = MemoryFiles::new();
        let record = [vec![b'x'; length - 1], b"\n".to_vec()].concat();
        files.create("a", [b"before\n", record.as_slice(), b"after\nhalf"].concat());
        let mut reading = open(&files, "a", PLAIN, &start(&files));
        let mut chunks = Vec::new();
        while let Next::Chunk(chunk) = reading.next(Unfinished::Wait).unwrap() {
            assert!(chunk.ends_record && chunk.context.is_empty());
            assert!(chunk.bytes.capacity() <= chunk.bytes.len().max(CHUNK_BYTES));
            chunks.push(chunk.bytes);
        }
        let expected = if length > CHUNK_BYTES { 3 } else { 1 };
        assert_eq!(chunks.len(), expected, "{length}");
        assert_eq!(chunks.concat().len(), 7 + length + 6);
        assert!(reading.buffer_capacity() <= CHUNK_BYTES, "nothing huge stays behind");
    }
}

#[test]
fn t19_a_record_of_100_mb_is_read_once_and_searched_once() {
    let files = MemoryFiles::new();
    let length = 100_000_000;
    files.create("a", [vec![b'x'; length], b"\n".to_vec()].concat());
    let mut reading = open(&files, "a", PLAIN, &start(&files));
    let record = chunk(reading.next(Unfinished::Wait));
    assert_eq!(record.bytes.len(), length + 1);
    let counts = files.counts();
    assert_eq!(counts.bytes_read, length as u64 + 1);
    assert!(counts.reads < 1000, "{counts:?}");
}

#[test]
fn t19_a_record_beyond_the_limit_is_cut_between_words_and_flagged() {
    let text = [vec![b'x'; 61], b", \"".to_vec(), vec![b'y'; 100], b"\nend\n".to_vec()].concat();
    let files = MemoryFiles::new();
    files.create("a", text.clone());
    let mut reading = open_small(&files, &start(&files));
    let first = chunk(reading.next(Unfinished::Wait));
    assert!(first.cut && !first.ends_record);
    assert_eq!(first.bytes, text[..64]);
    let second = chunk(reading.next(Unfinished::Wait));
    assert!(second.cut, "without a place near, it is cut at the limit");
    assert_eq!((second.bytes.len(), second.context.as_slice()), (64, &b"xxxxx, \""[..]));
    let third = chunk(reading.next(Unfinished::Wait));
    assert!(!third.cut && !third.bytes.is_empty());
    assert_eq!(third.context, b"yyyyyyyy");
    let last = chunk(reading.next(Unfinished::Wait));
    let all = [first.bytes, second.bytes, third.bytes, last.bytes].concat();
    assert_eq!(all, text);
}

#[test]
fn t22_empty_and_tiny_files_are_read_and_are_no_rewrite() {
    let files = MemoryFiles::new();
    files.create("a", "");
    let cursor = start(&files);
    assert_eq!(look(&files, "a", &cursor, Depth::Whole), Verdict::Unchanged);
    files.touch("a");
    let empty = look(&files, "a", &cursor, Depth::Quick);
    assert!(matches!(empty, Verdict::Intact { more: false, .. }), "{empty:?}");
    let mut cursor = intact(empty);
    for _ in 0..3 {
        files.append("a", b"x\n");
        cursor = intact(look(&files, "a", &cursor, Depth::Quick));
        let (bytes, after) = read_on(&files, "a", PLAIN, &cursor, Unfinished::Wait);
        assert_eq!(bytes, b"x\n");
        cursor = after;
    }
    files.splice("a", 0, b"y");
    assert_eq!(why(look(&files, "a", &cursor, Depth::Quick)), Rewrite::HeadDiffers);
}

#[test]
fn t24_a_large_file_takes_one_chunk_of_memory() {
    let files = MemoryFiles::new();
    let text = lines(64 << 20);
    files.create("a", text.clone());
    let mut reading = open(&files, "a", PLAIN, &start(&files));
    let mut at = 0;
    while let Next::Chunk(chunk) = reading.next(Unfinished::Wait).unwrap() {
        assert!(chunk.bytes.capacity() <= CHUNK_BYTES);
        assert!(reading.buffer_capacity() <= CHUNK_BYTES);
        assert!(text[at..].starts_with(&chunk.bytes));
        at += chunk.bytes.len();
    }
    assert_eq!(at, text.len());
    assert_eq!(files.counts().bytes_read, text.len() as u64, "nothing is read twice");
}

#[test]
fn an_error_of_the_system_keeps_its_number_and_ends_the_reading() {
    let (files, cursor, text) = captured();
    files.create("z", zstd::encode_all(text.as_slice(), 1).unwrap());
    let number = |error: SourceError| match error {
        SourceError::Io { source, .. } => io::Error::raw_os_error(&source),
        other => panic!("{other:?}"),
    };
    let number_of = Errno::raw_os_error;
    for errno in [Errno::IO, Errno::MFILE, Errno::NFILE, Errno::ACCESS].map(number_of) {
        for (path, encoding) in [("a", PLAIN), ("z", ZSTD)] {
            files.fail(path, Fault::Errno(errno));
            let failed = check(&files, Path::new(path), encoding, &cursor, Depth::Whole);
            assert_eq!(number(failed.unwrap_err()), Some(errno));
            files.fail(path, Fault::ReadErrno(errno));
            let failed = check(&files, Path::new(path), encoding, &cursor, Depth::Whole);
            assert_eq!(number(failed.unwrap_err()), Some(errno));
            let start = Cursor::start(files.stat(Path::new(path)).unwrap());
            let mut reading = open(&files, path, encoding, &start);
            assert_eq!(number(reading.next(Unfinished::Wait).unwrap_err()), Some(errno));
            assert_eq!(reading.next(Unfinished::Wait).unwrap(), Next::Changed);
        }
    }
    assert_eq!(files.counts().open_now, 0);
}

#[test]
fn a_check_with_small_blocks_finds_every_changed_byte() {
    let text = lines(100);
    let files = MemoryFiles::new();
    for captured in 1..text.len() {
        files.create("a", &text[..captured]);
        let cursor = {
            let mut reading = open_small(&files, &start(&files));
            let mut cursor = None;
            while let Next::Chunk(chunk) = reading.next(Unfinished::Take).unwrap() {
                cursor = Some(chunk.cursor);
            }
            cursor.unwrap()
        };
        for at in 0..captured {
            let mut other = text.clone();
            other[at] ^= 1;
            files.rewrite_in_place("a", other);
            let source =
                Source { files: &files, path: Path::new("a"), encoding: PLAIN, cursor: &cursor };
            let found = check_within(source, Depth::Whole, SMALL).unwrap();
            why(found);
        }
    }
}
