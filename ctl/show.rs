//! `show`: a session as it comes from the daemon, byte for byte or as a conversation to read.
//!
//! Nothing is held but the record at hand: a session may be larger than memory. A stream that breaks off is an error, after
//! what came has been printed.

use std::io::{self, Write};

use hyper::Method;
use jiff::Timestamp;
use jiff::civil::Date;
use serde_json::json;
use tracecraft::api::{SESSION_HEADER, Session, route};

use crate::args::Show;
use crate::client::{Client, PIECE_TIMEOUT, Stream};
use crate::failure::Failure;
use crate::render;
use crate::terminal::{Ink, Output, Terminal};
use crate::text;
use crate::transcript::{Entry, Reader, Record, Who, gist};

/// A record that is larger is named and not read: no person reads it, and reading it would cost its size in memory.
const RECORD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Widest text; longer lines are hard to read, however wide the terminal.
const TEXT_COLUMNS_MAX: usize = 100;

/// Columns for a shortened line where there is no terminal to fit.
const GIST_COLUMNS: usize = 120;

/// Lines of a tool's result that are shown.
const RESULT_LINES_MAX: usize = 3;

/// Lines of a note, which may be a whole summary.
const NOTE_LINES_MAX: usize = 12;

const INDENT: &str = "  ";

/// Asks for the session and prints it as asked.
pub(crate) async fn run(
    client: &Client,
    show: &Show,
    json: bool,
    terminal: &Terminal,
    out: &mut Output,
) -> Result<(), Failure> {
    let query: Vec<String> = [
        show.tail.map(|tail| format!("tail={tail}")),
        show.generation.map(|generation| format!("generation={generation}")),
    ]
    .into_iter()
    .flatten()
    .collect();
    let path = format!("{}?{}", route::session(&show.id, route::CONTENT), query.join("&"));
    // The head comes when the first piece is there.
    let stream = client.stream(Method::GET, &path, PIECE_TIMEOUT).await?;
    if show.raw {
        return raw(stream, out).await;
    }
    let session: Session =
        serde_json::from_str(stream.header(SESSION_HEADER)).map_err(|error| {
            Failure::protocol(format!("the daemon does not say whose bytes these are: {error}"))
        })?;
    if json {
        let printer = JsonPrinter { out, records: 0, silent: 0, unreadable: 0 };
        printed(stream, printer, &session).await
    } else {
        printed(stream, Page::new(out, terminal), &session).await
    }
}

async fn raw(mut stream: Stream, out: &mut Output) -> Result<(), Failure> {
    loop {
        match stream.next().await {
            Ok(Some(bytes)) => out.write_all(&bytes)?,
            Ok(None) => break,
            Err(failure) => {
                out.flush()?;
                return Err(failure);
            }
        }
    }
    out.flush()?;
    Ok(())
}

/// Where records go.
pub(crate) trait Printer {
    /// Before the first record.
    fn begin(&mut self, session: &Session) -> io::Result<()>;
    /// A record, or the size of one that is too large.
    fn record(&mut self, reader: &mut Reader, record: Line<'_>) -> io::Result<()>;
    /// Between two pieces of the stream, which may be far apart: what is there should be seen.
    fn pause(&mut self) -> io::Result<()>;
    /// After the last record, or after a stream that broke off.
    fn end(&mut self, whole: bool) -> io::Result<()>;
}

/// A line of a transcript.
#[derive(Debug, PartialEq)]
pub(crate) enum Line<'a> {
    Whole(&'a [u8]),
    /// Larger than [`RECORD_BYTES_MAX`]: so many bytes.
    TooLarge(u64),
}

async fn printed(
    mut stream: Stream,
    mut printer: impl Printer,
    session: &Session,
) -> Result<(), Failure> {
    let mut reader = Reader::default();
    let mut splitter = Splitter::new(RECORD_BYTES_MAX);
    printer.begin(session)?;
    loop {
        match stream.next().await {
            Ok(Some(bytes)) => {
                splitter.push(&bytes, |line| printer.record(&mut reader, line))?;
                printer.pause()?;
            }
            Ok(None) => break,
            Err(failure) => {
                printer.end(false)?;
                return Err(failure);
            }
        }
    }
    splitter.finish(|line| printer.record(&mut reader, line))?;
    printer.end(true)?;
    Ok(())
}

/// Cuts a stream into lines and keeps no more than one of them.
#[derive(Debug)]
pub(crate) struct Splitter {
    pending: Vec<u8>,
    /// Bytes of the line at hand that were not kept, because it is too large.
    dropped: u64,
    bytes_max: usize,
}

impl Splitter {
    pub(crate) fn new(bytes_max: usize) -> Splitter {
        Splitter { pending: Vec::new(), dropped: 0, bytes_max }
    }

    /// More bytes; each line that they complete is given away.
    pub(crate) fn push(
        &mut self,
        mut bytes: &[u8],
        mut give: impl FnMut(Line<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            self.keep(line);
            self.give(&mut give)?;
        }
        self.keep(bytes);
        Ok(())
    }

    /// What is left without an end is a line, too.
    pub(crate) fn finish(
        mut self,
        mut give: impl FnMut(Line<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.give(&mut give)
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.dropped == 0 && self.pending.len() + bytes.len() <= self.bytes_max {
            self.pending.extend_from_slice(bytes);
            return;
        }
        self.dropped += (self.pending.len() + bytes.len()) as u64;
        self.pending = Vec::new();
    }

    fn give(&mut self, give: &mut impl FnMut(Line<'_>) -> io::Result<()>) -> io::Result<()> {
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            return give(Line::TooLarge(dropped));
        }
        let line = self.pending.strip_suffix(b"\r").unwrap_or(&self.pending);
        if !line.is_empty() {
            give(Line::Whole(line))?;
        }
        self.pending.clear();
        Ok(())
    }
}

/// One JSON document a line: the session, the entries, the counts.
struct JsonPrinter<'a, W> {
    out: &'a mut W,
    records: u64,
    silent: u64,
    unreadable: u64,
}

impl<W: Write> Printer for JsonPrinter<'_, W> {
    fn begin(&mut self, session: &Session) -> io::Result<()> {
        writeln!(self.out, "{}", render::json_line(&json!({ "session": session })))
    }

    fn record(&mut self, reader: &mut Reader, line: Line<'_>) -> io::Result<()> {
        self.records += 1;
        match line {
            Line::TooLarge(_) => self.unreadable += 1,
            Line::Whole(bytes) => match reader.read(bytes) {
                Record::Said(entries) => {
                    for entry in entries {
                        writeln!(self.out, "{}", render::json_line(&json!({ "entry": entry })))?;
                    }
                }
                Record::Silent => self.silent += 1,
                Record::Unreadable => self.unreadable += 1,
            },
        }
        Ok(())
    }

    fn pause(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn end(&mut self, whole: bool) -> io::Result<()> {
        let end = json!({
            "records": self.records,
            "silent": self.silent,
            "unreadable": self.unreadable,
            "whole": whole,
        });
        writeln!(self.out, "{}", render::json_line(&json!({ "end": end })))?;
        self.out.flush()
    }
}

/// A conversation for a person.
pub(crate) struct Page<'a, W> {
    out: &'a mut W,
    terminal: &'a Terminal,
    speaker: Option<(Who, bool)>,
    /// Whether tools were the last thing that was printed: words after them begin a paragraph.
    after_tools: bool,
    /// Calls that were made together; the results of several need their names.
    calls: u32,
    /// Whether a result came since the last call, so that the next call begins anew.
    answered: bool,
    /// Time of the last words: one message may have several pieces.
    spoken_at: Option<Timestamp>,
    /// Working directory of the session: paths below it are shown without it.
    cwd: Option<String>,
    day: Option<Date>,
    records: u64,
    silent: u64,
    /// Thoughts without a readable text: Codex has one for each step, which is too many to show.
    thoughts: u64,
}

impl<'a, W: Write> Page<'a, W> {
    pub(crate) fn new(out: &'a mut W, terminal: &'a Terminal) -> Page<'a, W> {
        Page {
            out,
            terminal,
            speaker: None,
            after_tools: false,
            calls: 0,
            answered: false,
            spoken_at: None,
            cwd: None,
            day: None,
            records: 0,
            silent: 0,
            thoughts: 0,
        }
    }

    fn entry(&mut self, entry: &Entry) -> io::Result<()> {
        match entry {
            Entry::Message { who, at, aside, text } => {
                self.speak(*who, *aside, *at)?;
                self.calls = 0;
                if std::mem::take(&mut self.after_tools) {
                    writeln!(self.out)?;
                }
                self.body(text)
            }
            Entry::Thinking { text, .. } if text.trim().is_empty() => {
                self.thoughts += 1;
                Ok(())
            }
            Entry::Thinking { at, text } => {
                self.speak(Who::Assistant, self.aside(), *at)?;
                let size = text::bytes(text.len() as u64);
                self.faint(&format!("✻ thought ({size}): {}", gist(&json!(text))), "")
            }
            Entry::Call { at, tool, input } => {
                self.speak(Who::Assistant, self.aside(), *at)?;
                self.call(tool, &gist(input))
            }
            Entry::Result { tool, failed, text, .. } => self.result(tool.as_deref(), *failed, text),
            Entry::Note { at, text } => {
                self.day(*at)?;
                self.speaker = None;
                self.note(text)
            }
        }
    }

    fn call(&mut self, tool: &str, gist: &str) -> io::Result<()> {
        let tool = text::line(tool);
        let room = self.columns().saturating_sub(INDENT.len() + 4 + text::columns(&tool));
        let below = self.cwd.as_deref().and_then(|cwd| gist.strip_prefix(cwd)?.strip_prefix('/'));
        let gist = text::line(below.unwrap_or(gist));
        // The end of a path tells more than its beginning; of anything else the beginning does.
        let is_path = gist.starts_with('/') && !gist.contains(' ');
        let gist = if is_path || below.is_some() {
            text::shorten_left(&gist, room)
        } else {
            text::shorten(&gist, room)
        };
        self.after_tools = true;
        self.calls = if std::mem::take(&mut self.answered) { 1 } else { self.calls + 1 };
        let tool = self.terminal.paint(Ink::Strong, &tool);
        let colon = if gist.is_empty() { "" } else { ": " };
        writeln!(self.out, "{INDENT}⚙ {tool}{colon}{gist}")
    }

    /// Who and when, unless the same one goes on.
    fn speak(&mut self, who: Who, aside: bool, at: Option<Timestamp>) -> io::Result<()> {
        self.day(at)?;
        // Each message of a user stands alone; what an agent does until the next one is one turn.
        let goes_on = who == Who::Assistant || at.is_some() && at == self.spoken_at;
        self.spoken_at = at;
        if self.speaker == Some((who, aside)) && goes_on {
            return Ok(());
        }
        self.speaker = Some((who, aside));
        (self.after_tools, self.calls) = (false, 0);
        let (ink, name) = match who {
            Who::User => (Ink::User, "User"),
            Who::Assistant => (Ink::Agent, "Assistant"),
        };
        let name = if aside { format!("{name} (sub-agent)") } else { name.to_owned() };
        let name = self.terminal.paint(ink, &name);
        match at {
            Some(at) => {
                let clock =
                    at.to_zoned(self.terminal.zone.clone()).strftime("%H:%M:%S").to_string();
                writeln!(self.out, "\n{name}  {}", self.terminal.paint(Ink::Faint, &clock))
            }
            None => writeln!(self.out, "\n{name}"),
        }
    }

    fn aside(&self) -> bool {
        self.speaker.is_some_and(|(_, aside)| aside)
    }

    /// A line when another day begins.
    fn day(&mut self, at: Option<Timestamp>) -> io::Result<()> {
        let Some(at) = at else { return Ok(()) };
        let local = at.to_zoned(self.terminal.zone.clone());
        if self.day == Some(local.date()) {
            return Ok(());
        }
        self.day = Some(local.date());
        self.speaker = None;
        let line = local.strftime("── %A, %Y-%m-%d ──").to_string();
        writeln!(self.out, "\n{}", self.terminal.paint(Ink::Faint, &line))
    }

    fn body(&mut self, text: &str) -> io::Result<()> {
        let clean = text::block(text.trim_matches('\n'));
        let lines = match self.terminal.columns {
            Some(_) => text::wrap(&clean, self.columns() - INDENT.len()),
            None => clean.split('\n').map(str::to_owned).collect(),
        };
        for line in lines {
            writeln!(self.out, "{}", format!("{INDENT}{line}").trim_end())?;
        }
        Ok(())
    }

    fn result(&mut self, tool: Option<&str>, failed: bool, text: &str) -> io::Result<()> {
        (self.after_tools, self.answered) = (true, true);
        let clean = text::block(text);
        let lines: Vec<&str> =
            clean.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        let shown = &lines[..lines.len().min(RESULT_LINES_MAX)];
        let margin = shown.iter().map(|line| line.len() - line.trim_start().len()).min();
        let room = self.columns() - 2 * INDENT.len() - 2;
        let size = text::bytes(text.len() as u64);
        let (mark, ink) = if failed { ("✗", Ink::Bad) } else { ("↳", Ink::Faint) };
        let mut mark = self.terminal.paint(ink, mark) + " ";
        let mut room_first = room;
        if let Some(tool) = tool.filter(|_| self.calls > 1) {
            let name = text::line(tool) + ": ";
            room_first = room.saturating_sub(text::columns(&name));
            mark.push_str(&name);
        }
        // One long line has its size beside it, several have it below.
        let suffix = match lines[..] {
            [line] if text::columns(line) > room_first => format!(" ({size})"),
            _ => String::new(),
        };
        let first = shown.first().map_or("(no output)", |line| &line[margin.unwrap_or(0)..]);
        let first = text::shorten(first, room_first.saturating_sub(suffix.len())) + &suffix;
        writeln!(self.out, "{INDENT}{INDENT}{mark}{}", self.terminal.paint(Ink::Faint, &first))?;
        for line in shown.iter().skip(1) {
            self.faint(&line[margin.unwrap_or(0)..], "    ")?;
        }
        if lines.len() > shown.len() {
            let more = text::count((lines.len() - shown.len()) as u64, "line", "lines");
            self.faint(&format!("… {more} more, {size} in all"), "    ")?;
        }
        Ok(())
    }

    fn note(&mut self, text: &str) -> io::Result<()> {
        let clean = text::block(text.trim());
        let lines = text::wrap(&clean, self.columns() - INDENT.len());
        writeln!(self.out)?;
        for (at, line) in lines.iter().take(NOTE_LINES_MAX).enumerate() {
            let mark = if at == 0 { "· " } else { INDENT };
            let line = format!("{mark}{line}");
            writeln!(self.out, "{}", self.terminal.paint(Ink::Faint, line.trim_end()))?;
        }
        if lines.len() > NOTE_LINES_MAX {
            let size = text::bytes(text.len() as u64);
            let more = text::count((lines.len() - NOTE_LINES_MAX) as u64, "line", "lines");
            self.faint(&format!("… {more} more, {size} in all"), "")?;
        }
        Ok(())
    }

    /// A line that is not what anybody said.
    fn faint(&mut self, text: &str, indent: &str) -> io::Result<()> {
        let room = self.columns() - INDENT.len() - indent.len();
        let line = text::shorten(&text::line(text), room);
        writeln!(self.out, "{INDENT}{indent}{}", self.terminal.paint(Ink::Faint, &line))
    }

    fn columns(&self) -> usize {
        self.terminal.columns.map_or(GIST_COLUMNS, |columns| columns.min(TEXT_COLUMNS_MAX))
    }
}

impl<W: Write> Printer for Page<'_, W> {
    fn begin(&mut self, session: &Session) -> io::Result<()> {
        self.cwd = session.cwd.clone().filter(|cwd| cwd.len() > 1);
        self.out.write_all(render::session::head(session, self.terminal).as_bytes())
    }

    fn record(&mut self, reader: &mut Reader, line: Line<'_>) -> io::Result<()> {
        self.records += 1;
        match line {
            Line::TooLarge(bytes) => {
                writeln!(self.out)?;
                self.faint(&format!("(record of {})", text::bytes(bytes)), "")
            }
            Line::Whole(bytes) => match reader.read(bytes) {
                Record::Said(entries) => entries.iter().try_for_each(|entry| self.entry(entry)),
                Record::Silent => {
                    self.silent += 1;
                    Ok(())
                }
                Record::Unreadable => {
                    writeln!(self.out)?;
                    self.faint(
                        &format!("(unreadable record of {})", text::bytes(bytes.len() as u64)),
                        "",
                    )
                }
            },
        }
    }

    fn pause(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn end(&mut self, whole: bool) -> io::Result<()> {
        let mut words = text::count(self.records, "record", "records");
        if self.silent > 0 {
            words.push_str(&format!(", {} of them without conversation", self.silent));
        }
        if self.thoughts > 0 {
            let thoughts = text::count(self.thoughts, "thought", "thoughts");
            words.push_str(&format!("; {thoughts} without a readable text"));
        }
        if !whole {
            words.push_str("; the rest did not come");
        }
        writeln!(self.out, "\n{}", self.terminal.paint(Ink::Faint, &words))?;
        self.out.flush()
    }
}

#[cfg(test)]
#[path = "show_tests.rs"]
mod tests;
