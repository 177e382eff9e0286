//! `tracecraftd`: flags, runtime, exit code.
//!
//! Owns what belongs to the process as a whole; everything else is [`tracecraft::run`].

#[cfg(test)]
#[path = "../packaging/manual/configuration.rs"]
mod configuration;
#[cfg(test)]
#[path = "../packaging/manual.rs"]
mod manual;

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tracecraft::paths::Environment;
use tracecraft::{Config, Flags, Handed, Mode, RunError, start_log};

/// Threads of the runtime. The work waits for disk and network; more threads would only cost memory, since the allocator
/// keeps an arena for each.
const WORKER_THREADS: usize = 2;

/// Threads for file system calls that block. As many as there are captures and sends at a time, and some for the control socket.
const BLOCKING_THREADS_MAX: usize = 8;

/// Time that blocked file system calls get to return at the end. One that hangs (a dead network mount) must not keep the
/// process: what it did is in no state yet, so that nothing depends on it.
const RUNTIME_SHUTDOWN_MAX: Duration = Duration::from_secs(1);

const AFTER_HELP: &str = "\
Examples:
  tracecraftd                                   record every session into the default bucket
  tracecraftd --store file:///mnt/nas/sessions  record into another directory
  tracecraftd --store s3://my-bucket/agents     record into a bucket
  tracecraftd --once                            mirror what is there now, and end
  tracecraftd --check                           show the configuration and where each value is from

Environment (a flag beats it, it beats the configuration file):
  TRACECRAFT_CONFIG  TRACECRAFT_STORE  TRACECRAFT_INTERVAL
  TRACECRAFT_STATE_DIR  TRACECRAFT_SOCKET  TRACECRAFT_LOG  TRACECRAFT_LOG_FORMAT
  AWS_ENDPOINT_URL  AWS_REGION  AWS_PROFILE  and all else that AWS's own tools know, for s3://

Signals:
  TERM, INT  flush and end; a second one ends at once    HUP  read the configuration again
  USR1       flush now

Exit codes:
  0 done   1 failed   2 usage or configuration   3 another tracecraftd runs";

/// Flight recorder for coding agents: every session, redacted, safe in a bucket you own.
#[derive(Debug, Parser)]
#[command(name = "tracecraftd", version, after_help = AFTER_HELP)]
struct Args {
    /// Configuration file [default: tracecraft/config.toml in the user's configuration directory]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Where sessions are kept: file:///absolute/dir, s3://bucket/project or hf://user/bucket/project [default: a directory in
    /// the user's data directory]
    #[arg(long, value_name = "URL")]
    store: Option<OsString>,

    /// Time between flushes: 300ms, 5s, 1m; at least 100ms [default: 5s]
    #[arg(long, value_name = "DURATION")]
    interval: Option<OsString>,

    /// Where the daemon keeps its state [default: tracecraft in the user's state directory]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<OsString>,

    /// Control socket [default: tracecraft/tracecraftd.sock in the user's runtime directory]
    #[arg(long, value_name = "PATH")]
    socket: Option<OsString>,

    /// Mirror everything that is there now, print a summary and end
    #[arg(long, conflicts_with = "check")]
    once: bool,

    /// Print the configuration and where each value came from, and end
    #[arg(long)]
    check: bool,

    /// What is logged: error, warn, info, debug, trace, or target=level with commas [default: info]
    #[arg(long, value_name = "FILTER")]
    log: Option<OsString>,

    /// How it is written: text, or json for programs [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<OsString>,
}

fn main() -> ExitCode {
    harden();
    // Before there is a second thread: it changes the environment.
    let handed = Handed::take();
    match start(Args::parse(), handed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Nothing that we create is for others, and no memory with transcripts in it goes to disk. Done before anything else, in
/// the only thread.
fn harden() {
    use rustix::process::{Resource, Rlimit, setrlimit, umask};
    umask(rustix::fs::Mode::from_raw_mode(0o077));
    // Where the system refuses, the daemon is still worth more running than not.
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let _ = setrlimit(Resource::Core, none);
    // A core file's limit does not bind a handler that the kernel pipes the core to; this does.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

fn start(args: Args, handed: Handed) -> Result<(), RunError> {
    let flags = Flags {
        config: args.config,
        store: args.store,
        interval: args.interval,
        state_dir: args.state_dir,
        socket: args.socket,
        log: args.log,
        log_format: args.log_format,
    };
    let config = Config::resolve(flags, Environment::of_process()?)?;
    if args.check {
        let text = tracecraft::check(&config)?;
        return Ok(say(&text)?);
    }
    let set_log = start_log(&config);
    let mode = if args.once { Mode::Once } else { Mode::Daemon };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("tracecraftd")
        .enable_all()
        .build()
        .map_err(|error| io::Error::new(error.kind(), format!("cannot start threads: {error}")))?;
    let result = runtime.block_on(Box::pin(tracecraft::run(config, mode, handed, set_log)));
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN_MAX);
    if let Some(summary) = result? {
        say(&(printable(&summary) + "\n"))?;
    }
    Ok(())
}

/// Writes what was asked for. A reader that has seen enough and went away is no failure; a disk that is full is one.
fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(io::Error::new(error.kind(), format!("cannot write the answer: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints the chain of an error once, and what to do about it.
fn complain(error: &RunError) {
    let mut text = format!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    if let Some(hint) = error.hint() {
        // A question is no instruction.
        let label = if hint.starts_with("did you mean") { "" } else { "try: " };
        text.push_str(&format!("\n{label}{hint}"));
    }
    let _ = writeln!(io::stderr(), "{}", printable(&text));
}

/// A path may hold what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{FFFD}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_man_page_tells_what_the_help_tells() {
        crate::manual::check(Args::command());
    }
}
