//! What standard output and standard error are: a terminal with a width and colours, or a pipe that wants plain text.

use std::env;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Least width that is laid out for; a narrower terminal wraps by itself.
const COLUMNS_MIN: usize = 40;

/// What is known about where the answer goes, and when it is read.
#[derive(Debug, Clone)]
pub(crate) struct Terminal {
    /// Columns of the terminal; `None` in a pipe, where nothing is shortened to fit.
    pub(crate) columns: Option<usize>,
    /// Whether standard output takes colours.
    pub(crate) colour: bool,
    /// Whether standard error is a terminal, so that progress can be shown.
    pub(crate) progress: bool,
    /// Now, for ages.
    pub(crate) now: Timestamp,
    /// The reader's time zone.
    pub(crate) zone: TimeZone,
    /// The reader's home directory, written as `~`.
    pub(crate) home: Option<String>,
}

impl Terminal {
    /// Looks at the process's own output and environment.
    pub(crate) fn detect() -> Terminal {
        let set = |name| env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        let terminal = io::stdout().is_terminal();
        let columns = || {
            let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
            Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
        };
        Terminal {
            columns: terminal.then(|| columns().unwrap_or(80).max(COLUMNS_MIN)),
            colour: terminal && !dumb && !set("NO_COLOR"),
            progress: io::stderr().is_terminal() && !dumb,
            now: Timestamp::now(),
            zone: TimeZone::system(),
            home: env::var("HOME").ok().filter(|home| home.len() > 1),
        }
    }

    /// Text in a colour, where colours are taken. The text must be neutralised already.
    pub(crate) fn paint(&self, ink: Ink, text: &str) -> String {
        if !self.colour || text.is_empty() {
            return text.to_owned();
        }
        let code = match ink {
            Ink::Plain => return text.to_owned(),
            Ink::Strong => "1",
            Ink::Faint => "2",
            Ink::Good => "32",
            Ink::Warn => "33",
            Ink::Bad => "1;31",
            Ink::User => "1;36",
            Ink::Agent => "1;35",
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }

    /// A path with the home directory as `~`; in a pipe as it is, since a program may open it.
    pub(crate) fn path(&self, path: &str) -> String {
        if self.columns.is_none() {
            return path.to_owned();
        }
        let below = self.home.as_deref().and_then(|home| path.strip_prefix(home));
        match below {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("~{rest}"),
            _ => path.to_owned(),
        }
    }
}

impl Terminal {
    /// The URL of a local store as the path that it is; others as they are.
    pub(crate) fn path_in_url(&self, url: &str) -> String {
        match url.strip_prefix("file://") {
            Some(path) if path.starts_with('/') => self.path(path),
            _ => url.to_owned(),
        }
    }
}

/// What a piece of text means; the terminal's own palette decides how that looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ink {
    Plain,
    Strong,
    Faint,
    Good,
    Warn,
    Bad,
    User,
    Agent,
}

/// Standard output. Errors come back as they are: a closed pipe is told apart by whoever ends the program.
pub(crate) struct Output(BufWriter<Stdout>);

impl Output {
    /// Buffered, because a replay is many small pieces; flushed by whoever wants them seen.
    pub(crate) fn stdout() -> Output {
        Output(BufWriter::with_capacity(64 * 1024, io::stdout()))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
