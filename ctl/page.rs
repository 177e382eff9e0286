//! A conversation laid out for a person: who said what and when, tools and thoughts in short.
//!
//! Every text of a transcript goes through [`crate::text`] before it is printed.

use std::io::{self, Write};

use jiff::Timestamp;
use jiff::civil::Date;
use serde_json::json;
use tracecraft::api::Session;

use crate::lines::Line;
use crate::render;
use crate::show::Printer;
use crate::terminal::{Ink, Terminal};
use crate::text;
use crate::transcript::{Entry, Reader, Record, Who, gist};

/// Widest text; longer lines are hard to read, however wide the terminal.
pub(crate) const TEXT_COLUMNS_MAX: usize = 100;

/// Columns for a shortened line where there is no terminal to fit.
const GIST_COLUMNS: usize = 120;

/// Lines of a tool's result that are shown.
const RESULT_LINES_MAX: usize = 3;

/// Lines of a note, which may be a whole summary.
const NOTE_LINES_MAX: usize = 12;

const INDENT: &str = "  ";

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
            Entry::Result { at, tool, failed, text } => {
                // A tail may begin with what somebody called for before.
                if self.speaker.is_none() {
                    self.speak(Who::Assistant, false, *at)?;
                }
                self.result(tool.as_deref(), *failed, text)
            }
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
