//! One session in a line or a few: the answers of `stop`, `start` and `flush`, and the head of `show`.

use tracecraft::api::{Flushed, Session, SessionState};

use super::{problem, seconds_since};
use crate::terminal::{Ink, Terminal};
use crate::text;

/// A state in one word.
fn state(state: SessionState) -> &'static str {
    match state {
        SessionState::Live => "live",
        SessionState::Idle => "idle",
        SessionState::Ended => "ended",
        SessionState::Gone => "gone",
        SessionState::Stopped => "stopped",
        SessionState::Superseded => "superseded",
    }
}

/// What a session is doing, in one word; that the rules leave it out says more than what its file does.
pub(crate) fn standing(session: &Session) -> &'static str {
    match session.state {
        SessionState::Live | SessionState::Idle | SessionState::Ended if session.excluded => {
            "excluded"
        }
        other => state(other),
    }
}

/// What `stop` did.
pub(crate) fn stopped(session: &Session, terminal: &Terminal) -> String {
    let key = key(session);
    let size = text::bytes(session.stored_bytes);
    let parts = text::count(session.parts, "part", "parts");
    let mut out = format!("stopped {key}: {size} stored in {parts}\n");
    if session.pending_bytes > 0 {
        let pending = text::bytes(session.pending_bytes);
        out.push_str(&format!("{pending} more are captured and wait for the store\n"));
    }
    if let Some(found) = &session.problem {
        out.push_str(&problem(found, "", terminal));
    }
    out
}

/// What `start` did.
pub(crate) fn started(session: &Session, terminal: &Terminal) -> String {
    let mut out = format!("following {} again: {}\n", key(session), standing(session));
    if let Some(found) = &session.problem {
        out.push_str(&problem(found, "", terminal));
    }
    out
}

/// What `flush` did.
pub(crate) fn flushed(flushed: &Flushed) -> String {
    let sessions = text::count(flushed.sessions, "session", "sessions");
    let parts = text::count(flushed.parts, "part", "parts");
    let mut words = match flushed.parts {
        0 => format!("everything was stored already ({sessions} looked at)\n"),
        _ => format!("stored {} in {parts} ({sessions} looked at)\n", text::bytes(flushed.bytes)),
    };
    if flushed.unfinished_bytes > 0 {
        let rest = text::bytes(flushed.unfinished_bytes);
        words.push_str(&format!(
            "  but for {rest} of records that have no end yet: they follow when it comes\n"
        ));
    }
    words
}

/// The head of a conversation.
pub(crate) fn head(session: &Session, terminal: &Terminal) -> String {
    let title = format!("{} · {}", text::line(&session.harness), text::line(&session.id));
    let mut out = terminal.paint(Ink::Strong, &title) + "\n";
    let mut row = |label: &str, value: String| {
        let label = terminal.paint(Ink::Faint, &format!("{label:<10}"));
        let value = super::beside(11, &value, terminal);
        out.push_str(&format!("{label} {value}\n"));
    };
    if let Some(cwd) = &session.cwd {
        row("directory", text::line(&terminal.path(cwd)));
    }
    let started = session.started_at.as_deref().and_then(|at| at.parse::<jiff::Timestamp>().ok());
    let mut times = Vec::new();
    if let Some(started) = started {
        let local = started.to_zoned(terminal.zone.clone());
        times.push(local.strftime("%Y-%m-%d %H:%M").to_string());
    }
    times.push(standing(session).to_owned());
    row("started", times.join(", "));
    let mut stored = format!(
        "{} in {}",
        text::bytes(session.stored_bytes),
        text::count(session.parts, "part", "parts")
    );
    if let Some(seconds) = seconds_since(session.last_stored_at.as_deref(), terminal) {
        stored.push_str(&format!(", the last {} ago", text::age(seconds)));
    }
    row("stored", stored);
    if !session.redactions.is_empty() {
        let removed: u64 = session.redactions.values().sum();
        let names = session.redactions.iter();
        let names: Vec<String> =
            names.map(|(name, count)| format!("{} {count}", text::line(name))).collect();
        let words = text::count(removed, "secret removed", "secrets removed");
        row("redacted", terminal.paint(Ink::Warn, &format!("{words}: {}", names.join(", "))));
    }
    if session.generation > 1 {
        row("generation", format!("{} (its file was rewritten)", session.generation));
    }
    if let Some(found) = &session.problem {
        out.push_str(&problem(found, "", terminal));
    }
    out
}

fn key(session: &Session) -> String {
    format!("{}/{}", text::line(&session.harness), text::line(&session.id))
}
