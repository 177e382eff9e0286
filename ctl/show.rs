//! `show`: a session as it comes from the daemon, byte for byte or as a conversation to read.
//!
//! Nothing is held but the record at hand: a session may be larger than memory. A stream that breaks off is an error, after
//! what came has been printed.

use std::io::{self, Write};

use hyper::Method;
use serde::Serialize;
use tracecraft::api::{SESSION_HEADER, Session, route};

use crate::args::Show;
use crate::client::{Client, PIECE_TIMEOUT, Stream};
use crate::failure::Failure;
use crate::lines::{Line, Splitter};
use crate::page::Page;
use crate::render;
use crate::terminal::{Output, Terminal};
use crate::transcript::{Entry, Reader, Record};

/// A record that is larger is named and not read: no person reads it, and reading it would cost its size in memory.
const RECORD_BYTES_MAX: usize = 8 * 1024 * 1024;

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
    let mut path = route::session(&show.id, route::CONTENT);
    if !query.is_empty() {
        path.push_str(&format!("?{}", query.join("&")));
    }
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

/// A line of `show --json`: `{"session": …}`, then `{"entry": …}` for each, then `{"end": …}`.
#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Document<'a> {
    /// Whose conversation it is: the shape of the control API.
    Session(&'a Session),
    Entry(&'a Entry),
    /// How many records there were, how many of them had no conversation or could not be read (or were larger than the
    /// limit), and whether the stream came to its proper end.
    End {
        records: u64,
        silent: u64,
        unreadable: u64,
        whole: bool,
    },
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
        writeln!(self.out, "{}", render::json_line(&Document::Session(session)))
    }

    fn record(&mut self, reader: &mut Reader, line: Line<'_>) -> io::Result<()> {
        self.records += 1;
        match line {
            Line::TooLarge(_) => self.unreadable += 1,
            Line::Whole(bytes) => match reader.read(bytes) {
                Record::Said(entries) => {
                    for entry in entries {
                        writeln!(self.out, "{}", render::json_line(&Document::Entry(&entry)))?;
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
        let end = Document::End {
            records: self.records,
            silent: self.silent,
            unreadable: self.unreadable,
            whole,
        };
        writeln!(self.out, "{}", render::json_line(&end))?;
        self.out.flush()
    }
}

#[cfg(test)]
#[path = "show_tests.rs"]
mod tests;
