//! A part of the terminal that is drawn again and again, and the signals that matter to it.
//!
//! Owns the cursor between [`Screen::open`] and [`Screen::close`], and what fits; refuses to know what is drawn.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::unix::net::UnixStream as StdStream;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGWINCH};
use signal_hook::low_level::{emulate_default_handler, pipe};
use tokio::net::UnixStream;
use unicode_width::UnicodeWidthChar;

/// Rows and columns of a terminal that does not tell.
const SIZE: (usize, usize) = (24, 80);

const HIDE_CURSOR: &str = "\u{1b}[?25l";
const SHOW_CURSOR: &str = "\u{1b}[?25h";
const CLEAR_TO_END_OF_LINE: &str = "\u{1b}[K";
const CLEAR_BELOW: &str = "\u{1b}[J";
const CLEAR_ALL: &str = "\u{1b}[H\u{1b}[2J";

/// What is drawn now: as many lines as the cursor stands below its beginning.
pub(crate) struct Screen {
    drawn: usize,
}

impl Screen {
    /// Takes the cursor away.
    pub(crate) fn open(out: &mut impl Write) -> io::Result<Screen> {
        out.write_all(HIDE_CURSOR.as_bytes())?;
        out.flush()?;
        Ok(Screen { drawn: 0 })
    }

    /// Draws a head, and below it as many of the newest events as there is room for. One write, so that nothing flickers.
    pub(crate) fn draw(
        &mut self,
        head: &str,
        events: &VecDeque<String>,
        resized: bool,
        out: &mut impl Write,
    ) -> io::Result<()> {
        let text = frame(head, events, self.drawn, resized, size());
        self.drawn = text.matches('\n').count();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// Gives the terminal to the shell until the user comes back (Ctrl-Z, `fg`).
    pub(crate) fn suspend(&mut self, out: &mut impl Write) -> io::Result<()> {
        self.close(out)?;
        // Stops here, and goes on here.
        emulate_default_handler(SIGTSTP)?;
        *self = Screen::open(out)?;
        Ok(())
    }

    /// Gives the cursor back, below what is drawn.
    pub(crate) fn close(&mut self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(SHOW_CURSOR.as_bytes())?;
        out.flush()
    }
}

/// The bytes that replace what was drawn. Where the size changed, the terminal may have wrapped what was there, so that nobody
/// knows where it begins: then all of it is cleared.
fn frame(
    head: &str,
    events: &VecDeque<String>,
    drawn: usize,
    resized: bool,
    (rows, columns): (usize, usize),
) -> String {
    // The last row is the cursor's; a line there would scroll.
    let room = rows.saturating_sub(1).max(1);
    let mut lines: Vec<&str> = head.lines().take(room).collect();
    let left = room - lines.len();
    if left > 1 && !events.is_empty() {
        lines.push("");
        lines.extend(events.iter().skip(events.len().saturating_sub(left - 1)).map(String::as_str));
    }
    let mut text = match (resized, drawn) {
        (true, _) => CLEAR_ALL.to_owned(),
        (false, 0) => "\r".to_owned(),
        (false, drawn) => format!("\r\u{1b}[{drawn}A"),
    };
    for line in lines {
        text.push_str(&clip(line, columns));
        text.push_str(CLEAR_TO_END_OF_LINE);
        text.push('\n');
    }
    text.push_str(CLEAR_BELOW);
    text
}

/// The beginning of a painted line that fits. The codes of colours take no columns and are all kept, so that what was begun ends.
fn clip(line: &str, columns_max: usize) -> String {
    let mut kept = String::with_capacity(line.len());
    let mut columns = 0;
    let mut inside = false;
    let mut full = false;
    for character in line.chars() {
        if inside || character == '\u{1b}' {
            inside = !character.is_ascii_alphabetic();
            kept.push(character);
            continue;
        }
        let width = character.width().unwrap_or(0);
        full |= columns + width > columns_max;
        if !full {
            columns += width;
            kept.push(character);
        }
    }
    kept
}

/// Rows and columns now.
fn size() -> (usize, usize) {
    let Ok(size) = rustix::termios::tcgetwinsize(io::stdout()) else { return SIZE };
    match (usize::from(size.ws_row), usize::from(size.ws_col)) {
        (0, _) | (_, 0) => SIZE,
        size => size,
    }
}

/// What a signal means here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// SIGINT, SIGQUIT, SIGTERM, SIGHUP: give the terminal back and end.
    End,
    /// SIGTSTP: give the terminal back for a while.
    Suspended,
    /// SIGWINCH: the terminal has another size.
    Resized,
}

/// Signals as bytes that wait until somebody reads.
pub(crate) struct Signals {
    end: UnixStream,
    suspended: UnixStream,
    resized: UnixStream,
}

impl Signals {
    /// Takes them over from their default actions. Must be called within a runtime.
    pub(crate) fn new() -> io::Result<Signals> {
        Ok(Signals {
            end: line(&[SIGINT, SIGQUIT, SIGTERM, SIGHUP])?,
            suspended: line(&[SIGTSTP])?,
            resized: line(&[SIGWINCH])?,
        })
    }

    /// The next one; the end goes first. Loses nothing when it is cancelled.
    pub(crate) async fn next(&mut self) -> Told {
        tokio::select! {
            biased;
            () = take(&self.end) => Told::End,
            () = take(&self.suspended) => Told::Suspended,
            () = take(&self.resized) => Told::Resized,
        }
    }
}

fn line(signals: &[i32]) -> io::Result<UnixStream> {
    let (read, write) = StdStream::pair()?;
    read.set_nonblocking(true)?;
    for &signal in signals {
        pipe::register(signal, write.try_clone()?)?;
    }
    UnixStream::from_std(read)
}

async fn take(from: &UnixStream) {
    loop {
        let ready = from.readable().await;
        match ready.and_then(|()| from.try_read(&mut [0; 64])) {
            Ok(taken) if taken > 0 => return,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The other end lives in the handler for as long as this program does.
            _ => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(count: usize) -> VecDeque<String> {
        (0..count).map(|number| format!("event {number}")).collect()
    }

    #[test]
    fn a_frame_fits_its_terminal_whatever_its_size() {
        let head = "\u{1b}[1mstatus of the recorder\u{1b}[0m\n  stored 数据数据数据\n";
        for rows in 1..12 {
            for columns in 1..40 {
                let text = frame(head, &events(20), 3, false, (rows, columns));
                assert!(text.starts_with("\r\u{1b}[3A"), "{text:?}");
                let lines: Vec<&str> = text.lines().collect();
                assert!(lines.len() <= rows.max(2), "{rows}: {text:?}");
                for line in &lines {
                    let shown: String = clip(line, usize::MAX).chars().collect();
                    let plain: String = shown
                        .split('\u{1b}')
                        .map(|piece| {
                            piece
                                .find(|c: char| c.is_ascii_alphabetic())
                                .map_or("", |at| &piece[at + 1..])
                        })
                        .collect();
                    assert!(crate::text::columns(&plain) <= columns, "{columns}: {line:?}");
                }
            }
        }
    }

    #[test]
    fn the_newest_events_are_those_that_are_seen() {
        let text = frame("head\n", &events(9), 0, false, (6, 80));
        assert!(text.starts_with("\rhead\u{1b}[K\n\u{1b}[K\nevent 6"), "{text:?}");
        assert!(text.contains("event 8\u{1b}[K\n\u{1b}[J"), "{text:?}");
        let resized = frame("head\n", &events(0), 5, true, (6, 80));
        assert!(resized.starts_with("\u{1b}[H\u{1b}[2Jhead"), "{resized:?}");
    }

    #[test]
    fn a_line_that_is_cut_keeps_the_end_of_its_colour() {
        assert_eq!(clip("\u{1b}[31mabc\u{1b}[0m", 2), "\u{1b}[31mab\u{1b}[0m");
        assert_eq!(clip("数据", 3), "数");
    }
}
