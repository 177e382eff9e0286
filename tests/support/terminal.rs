//! A terminal that a program runs in: a pseudo-terminal, and what a person would see on its screen.
//!
//! Knows the few escapes that the program may use and fails at any other, so that nothing is drawn that only some terminals take.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::{skipped, wait_for};

/// A program in a terminal of its own, ended with the test.
pub(crate) struct Terminal {
    child: Child,
    master: OwnedFd,
    written: Arc<Mutex<Vec<u8>>>,
    /// Rows and columns, and after how many bytes they came to be.
    sizes: Vec<(usize, usize, usize)>,
}

impl Terminal {
    /// Starts a program on a screen of this many rows and columns.
    pub(crate) fn start(command: Command, rows: usize, columns: usize) -> Terminal {
        Terminal::start_with(command, rows, columns, None)
    }

    /// … with `NO_COLOR`.
    pub(crate) fn start_without_colours(command: Command, rows: usize, columns: usize) -> Terminal {
        Terminal::start_with(command, rows, columns, Some("1"))
    }

    fn start_with(
        mut command: Command,
        rows: usize,
        columns: usize,
        no_color: Option<&str>,
    ) -> Terminal {
        let (master, slave) = pair().unwrap();
        set_size(&master, rows, columns);
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        command.env("TERM", "xterm-256color").env("NO_COLOR", no_color.unwrap_or_default());
        let child = command.spawn().unwrap();
        drop(command); // It holds the other end open.
        let written = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, kept) = (File::from(master.try_clone().unwrap()), written.clone());
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            // An error tells that nobody has the other end any more.
            while let Ok(bytes @ 1..) = reader.read(&mut piece) {
                kept.lock().unwrap().extend_from_slice(&piece[..bytes]);
            }
        });
        Terminal { child, master, written, sizes: vec![(rows, columns, 0)] }
    }

    /// What can be seen now.
    pub(crate) fn screen(&self) -> Screen {
        let bytes = self.written.lock().unwrap().clone();
        let mut screen = Screen::default();
        let ends = self.sizes.iter().skip(1).map(|size| size.2).chain([bytes.len()]);
        for (&(rows, columns, from), to) in self.sizes.iter().zip(ends) {
            (screen.rows, screen.columns) = (rows, columns);
            // A character that is not whole yet is none.
            screen.take(&String::from_utf8_lossy(&bytes[from..to]));
        }
        screen
    }

    /// Makes it larger or smaller, and says so as a terminal does.
    pub(crate) fn resize(&mut self, rows: usize, columns: usize) {
        let already = self.written.lock().unwrap().len();
        set_size(&self.master, rows, columns);
        self.sizes.push((rows, columns, already));
        self.signal(Signal::WINCH);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.child.id().cast_signed()).unwrap(), signal).unwrap();
    }

    /// Waits until the program ends by itself.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        wait_for("the program to end", || self.child.try_wait().unwrap())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether there are terminals to be had, or it was said that the test is skipped.
pub(crate) fn or_skip(test: &str) -> bool {
    let why = pair().err();
    if let Some(why) = &why {
        skipped(test, &format!("there is no pseudo-terminal: {why}"));
    }
    why.is_none()
}

/// Both ends of a new one.
fn pair() -> std::io::Result<(OwnedFd, File)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let name = name.to_str().map_err(std::io::Error::other)?;
    Ok((master, File::options().read(true).write(true).open(name)?))
}

fn set_size(terminal: &OwnedFd, rows: usize, columns: usize) {
    let (ws_row, ws_col) = (rows.try_into().unwrap(), columns.try_into().unwrap());
    tcsetwinsize(terminal, Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}

/// The screen of a terminal that knows what ours may ask of it.
#[derive(Debug, Default)]
pub(crate) struct Screen {
    rows: usize,
    columns: usize,
    lines: Vec<Vec<char>>,
    row: usize,
    column: usize,
    /// Whether the cursor is hidden.
    pub(crate) hidden: bool,
    /// Whether anything was written in a colour, or bold.
    pub(crate) coloured: bool,
    /// Lines that went out at the top, or were longer than the screen is wide.
    pub(crate) spilt: usize,
}

impl Screen {
    /// Its lines, without what is empty at their ends.
    pub(crate) fn text(&self) -> String {
        let lines: Vec<String> = self.lines.iter().map(|line| line.iter().collect()).collect();
        lines
            .iter()
            .map(|line| line.trim_end())
            .collect::<Vec<_>>()
            .join("\n")
            .trim_end()
            .to_owned()
    }

    fn take(&mut self, text: &str) {
        let mut rest = text.chars();
        while let Some(character) = rest.next() {
            match character {
                '\r' => self.column = 0,
                '\n' => self.down(),
                '\u{1b}' => {
                    assert_eq!(rest.next(), Some('['), "{text:?}");
                    let mut words = String::new();
                    for character in rest.by_ref() {
                        words.push(character);
                        if character.is_ascii_alphabetic() {
                            break;
                        }
                    }
                    self.escape(&words);
                }
                character => self.put(character),
            }
        }
    }

    fn escape(&mut self, words: &str) {
        let (number, what) = words.split_at(words.len() - 1);
        match (number, what) {
            (_, "m") => self.coloured = true,
            ("?25", "l") => self.hidden = true,
            ("?25", "h") => self.hidden = false,
            ("", "K") => {
                let column = self.column;
                self.line().truncate(column);
            }
            ("2", "K") => self.line().clear(),
            ("", "J") => {
                let column = self.column;
                self.line().truncate(column);
                self.lines.truncate(self.row + 1);
            }
            ("2", "J") => self.lines.clear(),
            ("", "H") => (self.row, self.column) = (0, 0),
            (number, "A") => self.row = self.row.saturating_sub(number.parse().unwrap()),
            _ => panic!("an escape that not every terminal knows: {words:?}"),
        }
    }

    fn line(&mut self) -> &mut Vec<char> {
        if self.lines.len() <= self.row {
            self.lines.resize(self.row + 1, Vec::new());
        }
        &mut self.lines[self.row]
    }

    fn put(&mut self, character: char) {
        if self.column >= self.columns {
            self.spilt += 1;
            self.column = 0;
            self.down();
        }
        let column = self.column;
        let line = self.line();
        if line.len() <= column {
            line.resize(column + 1, ' ');
        }
        line[column] = character;
        self.column += 1;
    }

    fn down(&mut self) {
        if self.row + 1 < self.rows {
            self.row += 1;
        } else {
            self.spilt += 1;
            self.lines.remove(0);
        }
    }
}
