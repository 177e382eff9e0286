//! A long answer of the daemon: one event a line, shown to a program as they come, until one of them ends it.
//!
//! Owns reading the stream and the talk of one that breaks; what an event means is the verb's.

use std::io::Write;

use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::client::{Client, LONG_TIMEOUT, Lines};
use crate::failure::Failure;
use crate::render;
use crate::terminal::Output;

/// The events that a request is answered with.
pub(crate) struct Events {
    lines: Lines,
    json: bool,
}

impl Events {
    /// Asks for something that takes long. With `json`, every event is printed as it comes.
    pub(crate) async fn ask(client: &Client, path: &str, json: bool) -> Result<Events, Failure> {
        let lines = client.stream(Method::POST, path, LONG_TIMEOUT).await?.lines();
        Ok(Events { lines, json })
    }

    /// The next event; `None`: the daemon went away before it sent the one that is the last.
    pub(crate) async fn next<E>(&mut self, out: &mut Output) -> Result<Option<E>, Failure>
    where
        E: Serialize + DeserializeOwned,
    {
        let Some(line) = self.lines.next().await? else { return Ok(None) };
        let event: E = serde_json::from_slice(&line).map_err(|error| {
            Failure::failed(format!("the daemon's progress is not JSON: {error}"))
        })?;
        if self.json {
            writeln!(out, "{}", render::json_line(&event))?;
            out.flush()?;
        }
        Ok(Some(event))
    }
}
