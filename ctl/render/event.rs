//! What happens, a line an event, and the head of a screen that follows it.

use jiff::Timestamp;
use tracecraft::api::{Event, Phase, Status};

use crate::render;
use crate::terminal::{Ink, Terminal};
use crate::text;

/// An event for a person; `None`: it is nothing that happened. The first column is when it did, in the reader's time.
pub(crate) fn line(event: &Event, terminal: &Terminal) -> Option<String> {
    let (at, ink, words) = match event {
        Event::Status { .. } | Event::Heartbeat | Event::Unknown => return None,
        Event::Phase { at, phase } => {
            let words = match phase {
                Phase::Starting => "starting: looking for sessions",
                Phase::Recording => "recording",
                Phase::Stopping => "stopping: storing what is left",
            };
            (Some(at), Ink::Strong, words.to_owned())
        }
        Event::Found { at, harness, id } => {
            (Some(at), Ink::Plain, format!("found    {}", session(harness, id)))
        }
        Event::Stored { at, harness, id, seq, bytes } => {
            let size = text::bytes(*bytes);
            // A screen cuts what is long at its end: the id, and not the number.
            (
                Some(at),
                Ink::Plain,
                format!("stored   {size} of {}, part {seq}", session(harness, id)),
            )
        }
        Event::Problem { object, problem } => {
            let about = about(object);
            let message = text::line(&problem.message);
            (
                Some(&problem.since),
                Ink::Bad,
                format!("problem  {}{about}: {message}", code(&problem.code)),
            )
        }
        Event::ProblemOver { at, object, code: over } => {
            (Some(at), Ink::Good, format!("over     {}{}", code(over), about(object)))
        }
        Event::Missed { events } => {
            let events = text::count(*events, "event", "events");
            (None, Ink::Warn, format!("missed   {events}: this reader was too slow"))
        }
    };
    Some(stamped(at.map(String::as_str), ink, &words, terminal))
}

/// Something that this program has to say among the events.
pub(crate) fn talk(words: &str, terminal: &Terminal) -> String {
    stamped(None, Ink::Warn, words, terminal)
}

/// What stands above the events: the status, and whether it is still so.
pub(crate) fn head(status: Option<&Status>, away: Option<u64>, terminal: &Terminal) -> String {
    let mut out = String::new();
    if let Some(seconds) = away {
        let words = format!(
            "the daemon does not answer for {}: waiting for it. This is what it said last:",
            text::duration(seconds)
        );
        out.push_str(&format!("{}\n", terminal.paint(Ink::Bad, &words)));
    }
    match status {
        Some(status) => out.push_str(&render::status::text(status, terminal)),
        None => out.push_str("waiting for the daemon's first words\n"),
    }
    out
}

fn stamped(at: Option<&str>, ink: Ink, words: &str, terminal: &Terminal) -> String {
    let at = at.and_then(|at| at.parse::<Timestamp>().ok()).unwrap_or(terminal.now);
    let time = at.to_zoned(terminal.zone.clone()).strftime("%H:%M:%S").to_string();
    format!("{}  {}", terminal.paint(Ink::Faint, &time), terminal.paint(ink, words))
}

fn session(harness: &str, id: &str) -> String {
    format!("{}/{}", text::line(harness), text::line(id))
}

fn code(code: &str) -> String {
    text::line(code)
}

fn about(object: &str) -> String {
    if object.is_empty() { String::new() } else { format!(" ({})", text::line(object)) }
}
