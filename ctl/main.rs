//! `tracecraftctl`: one request to the daemon, one answer for a person or a program, one exit code.
//!
//! Standard output is data, standard error is talk. Everything that is known about the daemon comes over its socket; this
//! program reads no state, no bucket and no transcript by itself. `doctor`, for which the daemon may be dead, has the library look.

mod args;
mod client;
mod compact;
mod completions;
mod doctor;
mod events;
mod failure;
mod flush;
mod hook;
mod lines;
#[cfg(test)]
#[path = "../packaging/manual.rs"]
mod manual;
mod page;
mod render;
mod screen;
mod service;
mod show;
mod terminal;
mod text;
mod transcript;
mod verify;
mod watch;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use tracecraft::api::{Session, SessionList, Status, exit, route};

use crate::args::{Args, Verb};
use crate::client::{Client, LONG_TIMEOUT, QUICK_TIMEOUT, STATUS_TIMEOUT};
use crate::failure::Failure;
use crate::terminal::{Output, Terminal};

fn main() -> ExitCode {
    let began = Instant::now();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            // clap knows which of its messages are data (help, version) and which are talk.
            let _ = error.print();
            // An agent may take the code of a usage error for an order to stop: a hook's command line has none.
            let usage = error.use_stderr() && !hook::is_meant();
            return ExitCode::from(if usage { exit::USAGE } else { exit::DONE });
        }
    };
    if let Verb::Flush { id, hook: true } = &args.verb {
        hook::run(id.as_deref(), args.socket.as_deref(), began);
        return ExitCode::from(exit::DONE);
    }
    let json = args.json;
    match run(args) {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(failure) => ExitCode::from(report(&failure, json)),
    }
}

fn run(args: Args) -> Result<(), Failure> {
    if let Verb::Completions { shell } = args.verb {
        // Neither a home nor a daemon is needed: a package is built where there are none.
        return completions::run(shell, args.json, &mut Output::stdout());
    }
    // One request at a time: one thread is enough, and the program is there at once.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let done = runtime.block_on(dispatch(args));
    // A name server that hangs holds a thread, and nobody waits for its answer any more.
    runtime.shutdown_background();
    done
}

async fn dispatch(args: Args) -> Result<(), Failure> {
    let environment = tracecraft::paths::Environment::of_process()
        .map_err(|error| Failure::usage(error.to_string()))?;
    let socket = tracecraft::paths::socket(args.socket.as_deref(), &environment)
        .map_err(|error| Failure::usage(error.to_string()))?;
    let flag = args.socket.clone();
    let client = Client::new(socket);
    let terminal = Terminal::detect();
    let mut out = Output::stdout();
    let json = args.json;
    match args.verb {
        Verb::Status => {
            let status: Status = client.get(route::STATUS, STATUS_TIMEOUT).await?;
            print(&mut out, json, &status, || render::status::text(&status, &terminal))?;
        }
        Verb::List => {
            let list: SessionList = client.get(route::SESSIONS, QUICK_TIMEOUT).await?;
            print(&mut out, json, &list, || render::list::text(&list, &terminal))?;
        }
        Verb::Watch => watch::run(&client, json, &terminal, &mut out).await?,
        Verb::Show(show) => show::run(&client, &show, json, &terminal, &mut out).await?,
        Verb::Verify(verify) => verify::run(&client, &verify, json, &terminal, &mut out).await?,
        Verb::Compact { id, keep_tail } => {
            compact::run(&client, &id, keep_tail, json, &terminal, &mut out).await?;
        }
        Verb::Stop { id } => {
            let path = route::session(&id, route::STOP);
            let session: Session = client.post(&path, LONG_TIMEOUT).await?;
            print(&mut out, json, &session, || render::session::stopped(&session, &terminal))?;
        }
        Verb::Start { id } => {
            let path = route::session(&id, route::START);
            let session: Session = client.post(&path, QUICK_TIMEOUT).await?;
            print(&mut out, json, &session, || render::session::started(&session, &terminal))?;
        }
        Verb::Doctor => {
            let asked = doctor::Asked { environment, socket: flag, client: &client };
            doctor::run(asked, json, &terminal, &mut out).await?;
        }
        Verb::Service(verb) => {
            let mut told = service::Told { json, terminal: &terminal, out: &mut out };
            service::run(verb, flag, &client, &mut told).await?;
        }
        Verb::Completions { shell } => completions::run(shell, json, &mut out)?,
        Verb::Flush { id, hook: _ } => {
            let flushed = flush::run(&client, id.as_deref()).await?;
            print(&mut out, json, &flushed, || render::session::flushed(&flushed))?;
        }
    }
    out.flush()?;
    Ok(())
}

fn print(
    out: &mut Output,
    json: bool,
    value: &impl serde::Serialize,
    text: impl FnOnce() -> String,
) -> io::Result<()> {
    let text = if json { render::json(value) } else { text() };
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Says what went wrong and what to do about it; answers with the exit code.
fn report(failure: &Failure, json: bool) -> u8 {
    if failure.is_reader_gone() {
        // `tracecraftctl list | head` did what it was asked to do.
        return exit::DONE;
    }
    if let Some(body) = failure.body_for(json) {
        let mut out = Output::stdout();
        let _ = out.write_all(render::json(body).as_bytes()).and_then(|()| out.flush());
    }
    let _ = io::stderr().write_all(failure.text().as_bytes());
    failure.exit()
}
