//! `status`: is it working, is everything safe, what now. The first line answers; the rest explains.

use tracecraft::api::{Coverage, Phase, Remote, Root, Status};

use super::{problem, seconds_since};
use crate::terminal::{Ink, Terminal};
use crate::text;

/// Width of the column of labels.
const LABEL_COLUMNS: usize = 9;

/// The whole answer.
pub(crate) fn text(status: &Status, terminal: &Terminal) -> String {
    let mut out = headline(status, terminal);
    out.push('\n');
    let mut row = |label: &str, value: &str| {
        let label = terminal.paint(Ink::Faint, &format!("{label:<LABEL_COLUMNS$}"));
        let value = super::beside(LABEL_COLUMNS + 3, value, terminal);
        out.push_str(&format!("  {label} {value}\n"));
    };
    row("stored", &stored(status, terminal));
    row("pending", &pending(status, terminal));
    if status.sessions.waiting > 0 {
        let new = text::count(status.sessions.waiting, "new session", "new sessions");
        row("", &format!("{new}, not captured before the store tells what it has of them"));
    }
    if let Some(words) = flushed(status, terminal) {
        row("flushed", &words);
    }
    row("sessions", &sessions(status));
    row("store", &text::line(&terminal.path_in_url(&status.store)));
    for words in status.remote.iter().flat_map(|known| remote(known, terminal)) {
        row("", &words);
    }
    if let Some(words) = compaction(status) {
        row("parts", words);
    }
    for (label, value) in watching(&status.roots, terminal) {
        row(label, &value);
    }
    row("running", &running(status));
    if let Some(words) = usage(status) {
        row("", &words);
    }
    row("state", &text::line(&terminal.path(&status.state_dir)));
    if status.stalled_seconds.is_some() {
        let advice = "try: look at its log for what it waits for, then restart it; what is shown here is from before";
        out.push_str(&format!("\n  {advice}\n"));
    }
    if !status.redact {
        let loud = "REDACTION IS OFF: secrets in transcripts are stored as they are";
        let loud = super::fitted(&format!("  {loud}"), terminal);
        out.push_str(&format!("\n{}\n", terminal.paint(Ink::Bad, &loud)));
    }
    if !status.problems.is_empty() {
        out.push('\n');
        for found in &status.problems {
            out.push_str(&problem(found, "  ", terminal));
        }
        if status.problems_left_out > 0 {
            let more = text::count(status.problems_left_out, "problem", "problems");
            out.push_str(&format!("  and {more} more: `tracecraftctl status` shows all\n"));
        }
    }
    out
}

/// How it stands, in a line.
pub(crate) fn headline(status: &Status, terminal: &Terminal) -> String {
    let version = text::line(&status.version);
    let problems = status.problems.len() as u64 + status.problems_left_out;
    let (ink, words) = match status.phase {
        _ if status.stalled_seconds.is_some() => {
            let since = text::duration(status.stalled_seconds.unwrap_or(0));
            (Ink::Bad, format!("does not get on: its loop has not come round for {since}"))
        }
        Phase::Stopping => (Ink::Warn, "is stopping: it stores what is left".to_owned()),
        _ if problems > 0 => {
            let needs = text::count(problems, "problem needs", "problems need");
            (Ink::Bad, format!("is {}: {needs} attention", phase(status.phase)))
        }
        Phase::Starting => (Ink::Warn, "is starting: it looks for sessions".to_owned()),
        Phase::Recording if status.pending.parts > 0 || status.sessions.waiting > 0 => {
            (Ink::Warn, "is recording: something new is on its way".to_owned())
        }
        Phase::Recording => (Ink::Good, "is recording: everything is safe".to_owned()),
    };
    format!(
        "{} {}\n",
        terminal.paint(ink, "●"),
        terminal.paint(
            Ink::Strong,
            &super::beside(2, &format!("tracecraftd {version} {words}"), terminal)
        )
    )
}

fn phase(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Recording => "recording",
        Phase::Stopping => "stopping",
    }
}

fn stored(status: &Status, terminal: &Terminal) -> String {
    match seconds_since(status.last_stored_at.as_deref(), terminal) {
        Some(seconds) => {
            let age = text::age(seconds);
            format!("{}, the last of it {age} ago", text::bytes(status.stored_bytes))
        }
        None if status.stored_bytes == 0 => "nothing yet".to_owned(),
        None => text::bytes(status.stored_bytes),
    }
}

fn pending(status: &Status, terminal: &Terminal) -> String {
    let pending = &status.pending;
    if pending.parts == 0 {
        return "nothing".to_owned();
    }
    let mut words = format!(
        "{} in {}",
        text::bytes(pending.bytes),
        text::count(pending.parts, "part", "parts")
    );
    if let Some(seconds) = pending.oldest_seconds {
        words.push_str(&format!(", the oldest for {}", text::age(seconds)));
    }
    words.push_str(" (safe on this machine)");
    terminal.paint(Ink::Warn, &words)
}

fn sessions(status: &Status) -> String {
    let counts = &status.sessions;
    let parts = [
        (counts.live, "live"),
        (counts.pending, "with something pending"),
        (counts.stopped, "stopped"),
    ];
    let parts: Vec<String> =
        parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    let mut words = counts.total.to_string();
    if !parts.is_empty() {
        words.push_str(&format!(": {}", parts.join(", ")));
    }
    let decided = counts.excluded.saturating_sub(counts.held_back);
    if decided > 0 {
        words.push_str(&format!("; {decided} left out by your rules"));
    }
    if counts.held_back > 0 {
        let held = counts.held_back;
        words.push_str(&format!(
            "; {held} held back, since a rule asks for a directory that no record names"
        ));
    }
    words
}

/// That parts are not merged by themselves, and why; what the store refuses is said of the store.
fn compaction(status: &Status) -> Option<&'static str> {
    match status.compaction.as_str() {
        "off" => Some("merged only when you ask: compaction is off in the configuration"),
        "billed" => Some("merged only when you ask: the store bills what is deleted early"),
        _ => None,
    }
}

/// What is known of a store that is not on this machine: where it is, what its answers can be trusted for, what it was asked.
fn remote(known: &Remote, terminal: &Terminal) -> Vec<String> {
    let mut rows = Vec::new();
    if !known.endpoint.is_empty() {
        rows.push(format!("at {}", text::line(&known.endpoint)));
    }
    let later = "a second writer is noticed later, and a compaction waits before it deletes";
    rows.push(match known.conditions.as_str() {
        "honoured" => {
            "conditional puts are honoured: a second writer of a session is noticed at once"
                .to_owned()
        }
        "ignored" => format!("conditional puts are ignored: {later}"),
        "unsupported" => format!("conditional puts are not supported: {later}"),
        "unknown" => {
            "conditional puts: not known yet, the next put of a manifest tries it out".to_owned()
        }
        // A newer daemon's word, which its user may know.
        other => format!("conditional puts: {}", text::line(other)),
    });
    if known.deletes == Some(false) {
        let off = "deleting is refused: compaction is off, everything else works";
        rows.push(terminal.paint(Ink::Warn, off));
    }
    let Remote { puts, gets, lists, deletions, failures, .. } = *known;
    let asked = puts.saturating_add(gets).saturating_add(lists).saturating_add(deletions);
    if asked == 0 {
        rows.push("no requests since the start".to_owned());
        return rows;
    }
    let kinds = [
        (puts, "put", "puts"),
        (gets, "get", "gets"),
        (lists, "listing", "listings"),
        (deletions, "delete", "deletes"),
    ];
    let kinds = kinds.iter().filter(|(number, ..)| *number > 0);
    let kinds: Vec<String> =
        kinds.map(|(number, one, many)| text::count(*number, one, many)).collect();
    let failed = match failures {
        0 => "none failed".to_owned(),
        _ => terminal.paint(Ink::Warn, &format!("{failures} failed")),
    };
    let requests = text::count(asked, "request", "requests");
    rows.push(format!("{requests} since the start ({}), {failed}", kinds.join(", ")));
    rows
}

/// One row for each directory that is watched; those that do not exist share one.
fn watching(roots: &[Root], terminal: &Terminal) -> Vec<(&'static str, String)> {
    let there: Vec<&Root> = roots.iter().filter(|r| r.coverage != Coverage::Missing).collect();
    let names: Vec<String> = there.iter().map(|root| text::line(&root.harness)).collect();
    let name_columns = names.iter().map(|name| text::columns(name)).max().unwrap_or(0);
    let mut rows = Vec::new();
    for (root, name) in there.iter().zip(&names) {
        let gap = " ".repeat(name_columns - text::columns(name) + 2);
        let path = text::line(&terminal.path(&root.path));
        let how = match root.coverage {
            Coverage::Events => String::new(),
            Coverage::Polled => terminal.paint(Ink::Faint, "  (polled: no events here)"),
            Coverage::Unreadable => terminal.paint(Ink::Bad, "  (cannot be read)"),
            Coverage::Missing => continue,
        };
        rows.push((
            if rows.is_empty() { "watching" } else { "" },
            format!("{name}{gap}{path}{how}"),
        ));
    }
    // An agent that has one of its directories is there; it makes the others when it needs them.
    let mut missing: Vec<String> = roots
        .iter()
        .filter(|root| root.coverage == Coverage::Missing)
        .filter(|root| !there.iter().any(|other| other.harness == root.harness))
        .map(|root| text::line(&root.harness))
        .collect();
    missing.dedup();
    if !missing.is_empty() {
        let words = format!("not there yet: {}", missing.join(", "));
        rows.push((
            if rows.is_empty() { "watching" } else { "" },
            terminal.paint(Ink::Faint, &words),
        ));
    }
    rows
}

/// When all that was new was last stored. Parts that wait are told of already.
fn flushed(status: &Status, terminal: &Terminal) -> Option<String> {
    let seconds = seconds_since(status.last_flush_at.as_deref(), terminal)?;
    Some(format!("{} ago: all that was new was stored then", text::age(seconds)))
}

/// What the daemon costs its machine.
fn usage(status: &Status) -> Option<String> {
    let usage = status.usage.as_ref()?;
    let mut words: Vec<String> = Vec::new();
    words.extend(usage.resident_bytes.map(|bytes| format!("{} of memory", text::bytes(bytes))));
    let (seconds, percent) = (usage.cpu_seconds, usage.cpu_percent);
    words.push(format!("{seconds:.1} s of CPU ({percent:.2} % of a core)"));
    Some(format!("uses {}", words.join(", ")))
}

fn running(status: &Status) -> String {
    let interval = match status.interval_ms {
        ms if ms % 1000 == 0 => text::age(ms / 1000),
        ms => format!("{ms} ms"),
    };
    format!(
        "for {}, process {}, looks every {interval}",
        text::duration(status.uptime_seconds),
        status.pid
    )
}
