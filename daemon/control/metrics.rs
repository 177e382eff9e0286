//! The page for monitoring, in the text format of Prometheus (0.0.4). Pure: measures in, text out.
//!
//! Names begin with `tracecraft_`, units are seconds and bytes, counters end in `_total`. Labels have few values, all of them our
//! own words: no session, no path, nothing of a transcript.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::time::Duration;

use jiff::Timestamp;

use crate::api::{PROTOCOL, Phase, SessionState, Status};
use crate::mirror::handle::{Counts, Measures};
use crate::usage::Usage;

/// What the page is, for a client.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The page. Without measures (the mirror does not get on) it says that, and what the process uses.
pub(super) fn page(measures: Option<&Measures>, still: Duration, usage: &Usage) -> String {
    let mut page = Page::default();
    let version = env!("CARGO_PKG_VERSION");
    let protocol = PROTOCOL.to_string();
    page.family("build_info", "gauge", "What runs.");
    page.sample("build_info", &[("version", version), ("protocol", &protocol)], 1);
    page.gauge("up", "Whether the recorder's loop comes round.", u8::from(measures.is_some()));
    let since = "Time since the loop last came round before this question; an idle one rests up to a minute.";
    page.gauge("loop_age_seconds", since, still.as_secs_f64());
    if let Some(measures) = measures {
        life(&mut page, &measures.status);
        sessions(&mut page, measures);
        safety(&mut page, &measures.status);
        work(&mut page, &measures.counts);
        store(&mut page, measures);
        problems(&mut page, &measures.status);
    }
    process(&mut page, usage);
    page.0
}

fn life(page: &mut Page, status: &Status) {
    page.gauge("uptime_seconds", "Time since the start.", status.uptime_seconds);
    page.family("phase", "gauge", "1 for the phase that the recorder is in.");
    let phases = [
        (Phase::Starting, "starting"),
        (Phase::Recording, "recording"),
        (Phase::Stopping, "stopping"),
    ];
    for (phase, name) in phases {
        page.sample("phase", &[("phase", name)], u8::from(status.phase == phase));
    }
    page.gauge(
        "redaction_enabled",
        "Whether secrets are removed before anything is stored.",
        u8::from(status.redact),
    );
}

fn sessions(page: &mut Page, measures: &Measures) {
    page.family(
        "sessions",
        "gauge",
        "Sessions that are known, each generation for itself, by state.",
    );
    for (state, count) in &measures.sessions {
        let name = match state {
            SessionState::Live => "live",
            SessionState::Idle => "idle",
            SessionState::Ended => "ended",
            SessionState::Gone => "gone",
            SessionState::Stopped => "stopped",
            SessionState::Superseded => "superseded",
        };
        page.sample("sessions", &[("state", name)], count);
    }
    let counts = &measures.status.sessions;
    page.gauge("sessions_pending", "Sessions with something that is not stored.", counts.pending);
    page.gauge("sessions_excluded", "Sessions left out by rules.", counts.excluded);
    page.gauge("event_listeners", "Clients that follow events.", measures.listeners);
}

/// What is captured and not yet stored, and when something last was.
fn safety(page: &mut Page, status: &Status) {
    let pending = &status.pending;
    page.gauge("pending_parts", "Parts that are captured and not stored.", pending.parts);
    page.gauge("pending_bytes", "Bytes of those parts.", pending.bytes);
    page.gauge(
        "pending_oldest_age_seconds",
        "Age of the oldest of them, 0 without any.",
        pending.oldest_seconds.unwrap_or(0),
    );
    page.gauge(
        "store_size_bytes",
        "Bytes that manifests name, of all sessions that are known.",
        status.stored_bytes,
    );
    let times = [
        ("last_stored_timestamp_seconds", "When a part was last stored.", &status.last_stored_at),
        (
            "last_flush_timestamp_seconds",
            "When a look at what was new last ended with everything stored.",
            &status.last_flush_at,
        ),
    ];
    for (name, help, at) in times {
        page.family(name, "gauge", help);
        if let Some(at) = at.as_deref().and_then(|at| at.parse::<Timestamp>().ok()) {
            page.sample(name, &[], at.as_duration().as_secs_f64());
        }
    }
}

fn work(page: &mut Page, counts: &Counts) {
    page.counter("captured_parts", "Parts captured.", counts.captured_parts);
    page.counter("captured_bytes", "Bytes captured, after redaction.", counts.captured_bytes);
    page.counter("stored_parts", "Parts stored.", counts.stored_parts);
    page.counter("stored_bytes", "Bytes of stored parts.", counts.stored_bytes);
    page.counter("captures", "Batches of sessions that were looked at.", counts.captures);
    page.counter("scans", "Scans of the agents' directories.", counts.scans);
    page.family("redactions_total", "counter", "Secrets removed, by pattern.");
    for (name, count) in &counts.redactions {
        page.sample("redactions_total", &[("pattern", name.as_str())], count);
    }
}

fn store(page: &mut Page, measures: &Measures) {
    page.family("store_requests_total", "counter", "Requests to the store, each try for itself.");
    for (kind, count) in &measures.requests {
        page.sample("store_requests_total", &[("kind", *kind)], count);
    }
    page.counter("store_request_failures", "Requests to the store that failed.", measures.failures);
}

fn problems(page: &mut Page, status: &Status) {
    let mut codes: BTreeMap<&str, u64> = BTreeMap::new();
    for problem in &status.problems {
        *codes.entry(&problem.code).or_default() += 1;
    }
    page.family("problems", "gauge", "What is wrong now, by code.");
    for (code, count) in codes {
        page.sample("problems", &[("code", code)], count);
    }
}

fn process(page: &mut Page, usage: &Usage) {
    page.counter("process_cpu_seconds", "Processor time of the daemon.", usage.cpu.as_secs_f64());
    let rest = [
        ("process_resident_memory_bytes", "Memory of the daemon in RAM.", usage.resident_bytes),
        ("process_open_fds", "Open descriptors of the daemon.", usage.descriptors),
        ("process_max_fds", "How many there may be.", usage.descriptors_max),
    ];
    for (name, help, value) in rest {
        if let Some(value) = value {
            page.gauge(name, help, value);
        }
    }
}

/// Text that grows by families and their samples.
#[derive(Debug, Default)]
struct Page(String);

impl Page {
    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    /// The name is without its end.
    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        let name = format!("{name}_total");
        self.family(&name, "counter", help);
        self.sample(&name, &[], value);
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        self.line(format_args!("# HELP tracecraft_{name} {help}"));
        self.line(format_args!("# TYPE tracecraft_{name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escape(value))).collect();
        let labels =
            if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        self.line(format_args!("tracecraft_{name}{labels} {value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("a string takes what is written to it");
    }
}

/// A label's value as the format has it.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
