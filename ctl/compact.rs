//! `compact`: follows the progress of a compaction to its outcome.
//!
//! Knows when one has failed; refuses to judge why, which the daemon did.

use std::io::Write;

use tracecraft::api::{Progress, route};

use crate::client::Client;
use crate::events::Events;
use crate::failure::Failure;
use crate::render;
use crate::render::meter::Meter;
use crate::terminal::{Output, Terminal};

/// Asks, shows how far it is, then what came of it.
pub(crate) async fn run(
    client: &Client,
    id: &str,
    keep_tail: usize,
    json: bool,
    terminal: &Terminal,
    out: &mut Output,
) -> Result<(), Failure> {
    let path = format!("{}?keep_tail={keep_tail}", route::session(id, route::COMPACT));
    let mut events = Events::ask(client, &path, json).await?;
    let meter = Meter::new(terminal.progress && !json, render::compact::METER, String::new());
    while let Some(event) = events.next::<Progress>(out).await? {
        match event {
            Progress::Working { done_bytes, total_bytes } => meter.at(done_bytes, total_bytes),
            Progress::Done { .. } => {
                meter.end();
                if !json {
                    out.write_all(render::compact::outcome(&event).as_bytes())?;
                }
                return Ok(());
            }
            Progress::Failed { error } => {
                meter.end();
                // The stream has shown it to a program already.
                return Err(Failure::refused(error).told(json));
            }
        }
    }
    Err(Failure::failed("the daemon went away before the compaction ended".into())
        .hint("nothing is lost: the daemon finishes or undoes it at its next start"))
}
