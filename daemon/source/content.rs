//! The content of an open source, read in order, whatever its encoding.
//!
//! Knows bytes and zstd frames; knows nothing of records, cursors or paths.

use std::io::{self, BufReader, Read};

use zstd::stream::read::Decoder;

use super::{Encoding, SourceFile};

/// Largest zstd window, as a power of two: 32 MiB. The strongest ordinary level needs 8 MiB; a frame that asks for more could
/// make the daemon exceed its 64 MB.
const ZSTD_WINDOW_LOG_MAX: u32 = 25;

/// A source that is read from front to back. A plain one can also be read again from anywhere.
pub(super) enum Content {
    Plain { file: Box<dyn SourceFile>, position: u64 },
    Zstd { frames: Decoder<'static, BufReader<Compressed>>, position: u64 },
}

impl Content {
    pub(super) fn new(file: Box<dyn SourceFile>, encoding: Encoding) -> io::Result<Content> {
        Ok(match encoding {
            Encoding::Plain | Encoding::Events => Content::Plain { file, position: 0 },
            Encoding::Zstd => {
                let mut frames = Decoder::new(Compressed { file, position: 0 })?;
                frames.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Content::Zstd { frames, position: 0 }
            }
            // Rows that change are not read in order, and their path leads to no file.
            Encoding::Rows => return Err(io::ErrorKind::Unsupported.into()),
        })
    }

    pub(super) fn file(&self) -> &dyn SourceFile {
        match self {
            Content::Plain { file, .. } => file.as_ref(),
            Content::Zstd { frames, .. } => frames.get_ref().get_ref().file.as_ref(),
        }
    }

    /// Whether the content is the file itself. Compressed content is written once and never changed in place.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self, Content::Plain { .. })
    }

    /// Goes to a position of plain content. Compressed content only goes forward, by being read.
    pub(super) fn seek(&mut self, to: u64) {
        match self {
            Content::Plain { position, .. } => *position = to,
            Content::Zstd { position, .. } => {
                debug_assert_eq!(*position, to, "compressed content has no random access");
            }
        }
    }

    /// Whether nothing follows a position. Stays there; compressed content has to be there already, and loses what follows.
    pub(super) fn is_at_end(&mut self, offset: u64) -> io::Result<bool> {
        self.seek(offset);
        let read = self.read(&mut [0])?;
        if self.is_plain() {
            self.seek(offset);
        }
        Ok(read == 0)
    }

    /// Reads what comes next; 0 at the end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Content::Plain { file, position } => {
                let read = read_at(file.as_ref(), buffer, *position)?;
                *position += read as u64;
                Ok(read)
            }
            Content::Zstd { frames, position } => {
                let read = frames.read(buffer).map_err(explained)?;
                *position += read as u64;
                Ok(read)
            }
        }
    }
}

/// What is in a zstd frame, which may have so many bytes and not one more.
pub(crate) fn inflated(frame: &[u8], bytes_max: usize) -> io::Result<Vec<u8>> {
    let mut decoder = Decoder::with_buffer(frame)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
    let mut content = Vec::new();
    decoder.take(bytes_max as u64 + 1).read_to_end(&mut content).map_err(explained)?;
    if content.len() > bytes_max {
        let what = format!("what is in it has more than {bytes_max} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    Ok(content)
}

/// What zstd says of bad frames is no error of the operating system, and callers must be able to tell.
fn explained(error: io::Error) -> io::Error {
    if error.raw_os_error().is_some() {
        return error;
    }
    let what = match error.kind() {
        io::ErrorKind::UnexpectedEof => "the zstd frame is truncated".into(),
        _ => format!("the zstd frame is damaged: {error}"),
    };
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The compressed bytes of a file, in order.
pub(super) struct Compressed {
    file: Box<dyn SourceFile>,
    position: u64,
}

impl Read for Compressed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = read_at(self.file.as_ref(), buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

fn read_at(file: &dyn SourceFile, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    loop {
        match file.read_at(buffer, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}
