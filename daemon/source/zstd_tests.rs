//! Compressed sources: all their frames, positions inside them, and what is done with damage.

use std::io::{self, ErrorKind};

use super::memory::MemoryFiles;
use super::tests::{captured, chunk, lines, open, read_on, start};
use super::*;

const PLAIN: Encoding = Encoding::Plain;
const ZSTD: Encoding = Encoding::Zstd;

#[test]
fn t26_all_frames_of_a_zstd_file_are_read_and_reading_goes_on_inside() {
    let text = lines(300_000);
    let (first, second) = text.split_at(100_001);
    let frames = [first, b"", second].map(|part| zstd::encode_all(part, 1).unwrap()).concat();
    let files = MemoryFiles::new();
    files.create("a", frames);
    let start = start(&files);
    let (bytes, end) = read_on(&files, "a", ZSTD, &start, Unfinished::Wait);
    assert!(bytes == text);
    assert_eq!(super::head(&files, Path::new("a"), ZSTD, 10).unwrap(), text[..10]);
    // A cursor somewhere in the middle, as of the plain file before it was archived.
    files.create("b", first);
    let b = Cursor::start(files.stat(Path::new("b")).unwrap());
    let (_, middle) = read_on(&files, "b", PLAIN, &b, Unfinished::Take);
    let more = check(&files, Path::new("a"), ZSTD, &middle, Depth::Quick).unwrap();
    assert!(matches!(more, Verdict::Intact { more: true, .. }));
    let mut reading = open(&files, "a", ZSTD, &middle);
    let rest = chunk(reading.next(Unfinished::Wait));
    assert!(rest.bytes == second && rest.cursor.offset == end.offset);
    assert!(first.ends_with(&rest.context) && !rest.context.is_empty());
    assert_eq!(rest.cursor.fingerprint, end.fingerprint);
}

#[test]
fn t26_a_damaged_zstd_file_is_an_error_and_never_a_rewrite() {
    let text = lines(300_000);
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    io::Write::write_all(&mut encoder, &text).unwrap();
    let whole = encoder.finish().unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0xff;
    let truncated = whole[..whole.len() - 5].to_vec();
    // A frame that asks for a window of 128 MiB and holds nothing.
    let hungry = b"\x28\xb5\x2f\xfd\x00\x88\x01\x00\x00".to_vec();
    let garbage = [whole.as_slice(), b"garbage"].concat();
    let (_, cursor, _) = captured();
    for bad in [truncated, flipped, hungry, garbage, b"no zstd".to_vec(), b"\x28\xb5".to_vec()] {
        let files = MemoryFiles::new();
        files.create("a", bad);
        let mut reading = open(&files, "a", ZSTD, &start(&files));
        let failed = loop {
            match reading.next(Unfinished::Wait) {
                Ok(Next::Chunk(_)) => {}
                other => break other.unwrap_err(),
            }
        };
        let SourceError::Io { source, .. } = failed else { panic!("{failed:?}") };
        assert_eq!(source.kind(), ErrorKind::InvalidData);
        assert!(source.to_string().starts_with("the zstd frame is "), "{source}");
        match check(&files, Path::new("a"), ZSTD, &cursor, Depth::Quick) {
            Err(_) | Ok(Verdict::Intact { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}
