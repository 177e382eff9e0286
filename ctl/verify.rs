//! `verify`: follows the stream of findings to its end, and turns it into an exit code.
//!
//! Knows when a verification has failed; refuses to judge what was found, which the daemon did.

use std::io::Write;

use tracecraft::api::{Verifying, route};

use crate::args::Verify;
use crate::client::Client;
use crate::events::Events;
use crate::failure::Failure;
use crate::render;
use crate::render::meter::Meter;
use crate::terminal::{Output, Terminal};
use crate::text;

/// Asks, shows each session that is not fine as it comes, then the sums. Fails when anything is wrong or was not checked.
pub(crate) async fn run(
    client: &Client,
    verify: &Verify,
    json: bool,
    terminal: &Terminal,
    out: &mut Output,
) -> Result<(), Failure> {
    let path = verify
        .id
        .as_ref()
        .map_or(route::VERIFY.into(), |id| route::session(id, route::VERIFY_SESSION));
    let (deep, repair) = (u8::from(verify.deep), u8::from(verify.repair));
    let path = format!("{path}?deep={deep}&repair={repair}");
    let mut events = Events::ask(client, &path, json).await?;
    let meter = Meter::new(terminal.progress && !json, render::verify::METER, text::bytes(0));
    while let Some(event) = events.next::<Verifying>(out).await? {
        match event {
            Verifying::Working { done_sessions, total_sessions, done_bytes } => {
                meter.at(done_sessions, total_sessions);
                meter.say(text::bytes(done_bytes));
            }
            Verifying::Session { session } => {
                if !json {
                    // One that was asked for by name is told of, also when all is well.
                    let told = render::verify::session(&session, verify.id.is_some(), terminal);
                    meter.aside(|| out.write_all(told.as_bytes()).and_then(|()| out.flush()))?;
                }
            }
            Verifying::Done { sums } => {
                meter.end();
                if !json {
                    out.write_all(render::verify::sums(&sums, terminal).as_bytes())?;
                }
                out.flush()?;
                return render::verify::failure(&sums).map_or(Ok(()), Err);
            }
            Verifying::Failed { error } => {
                meter.end();
                // The stream has shown it to a program already.
                return Err(Failure::refused(error).told(json));
            }
        }
    }
    Err(Failure::failed("the daemon went away before the verification ended".into())
        .hint("nothing is lost; try again when it runs"))
}
