//! The log on standard error: for a person, for a journal, or for a program.
//!
//! Knows where its lines go and what whoever reads them adds by itself; refuses to know what is logged.

use std::fmt;
use std::io::{self, IsTerminal, Stderr};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, SubscriberBuilder};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Registry};

use crate::config::{Config, LogFormat};

/// Changes the log filter of the running process, when the configuration is read again. The filter was validated.
pub type SetLog = Box<dyn Fn(&str) + Send + Sync>;

/// Says as `device:inode` what the service manager connected to its journal.
const JOURNAL_VAR: &str = "JOURNAL_STREAM";

/// Logs to standard error from here on, as the configuration says; colour only where a person sees it, time only where
/// nobody else adds it. To be called once.
pub fn start_log(config: &Config) -> SetLog {
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colour = io::stderr().is_terminal() && !no_colour;
    let journal = std::env::var(JOURNAL_VAR).is_ok_and(|stream| is_stderr(&stream));
    // A log that cannot be written (a full disk, a closed pipe) must not end the recorder: the subscriber's own complaint
    // about it would go to the same place, and panic.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(parse_filter(config.log()))
        .with_writer(io::stderr as fn() -> Stderr)
        .with_ansi(colour && !journal)
        .log_internal_errors(false);
    match (config.log_format.value, journal) {
        (LogFormat::Text, false) => install(builder),
        (LogFormat::Text, true) => {
            let format = Format::default().without_time();
            install(builder.event_format(ForJournal(format)))
        }
        (LogFormat::Json, false) => install(builder.json()),
        (LogFormat::Json, true) => {
            let format = Format::default().json();
            install(builder.json().event_format(ForJournal(format)))
        }
    }
}

/// Whether standard error is the journal's: the variable is inherited also by who has it redirected.
fn is_stderr(stream: &str) -> bool {
    rustix::fs::fstat(io::stderr())
        .is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

fn install<N, E>(builder: SubscriberBuilder<N, E, EnvFilter, fn() -> Stderr>) -> SetLog
where
    N: for<'writer> FormatFields<'writer> + Send + Sync + 'static,
    E: FormatEvent<Registry, N> + Send + Sync + 'static,
{
    let builder = builder.with_filter_reloading();
    let handle = builder.reload_handle();
    tracing::subscriber::set_global_default(builder.finish())
        .expect("this is the only place that installs one, and it runs once");
    Box::new(move |filter| drop(handle.reload(parse_filter(filter))))
}

fn parse_filter(filter: &str) -> EnvFilter {
    EnvFilter::builder().parse_lossy(filter)
}

/// Lines as a journal takes them: a priority before each, and no end of a line within, since what follows one is an entry of
/// its own without a priority.
struct ForJournal<F>(F);

impl<F, S, N> FormatEvent<S, N> for ForJournal<F>
where
    F: FormatEvent<S, N>,
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end_matches('\n').replace('\n', "\\n");
        writeln!(writer, "<{}>{line}", priority(event.metadata().level()))
    }
}

/// The priority of syslog that a level is: ERROR err, WARN warning, INFO info, the others debug.
fn priority(level: &Level) -> u8 {
    match *level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}
