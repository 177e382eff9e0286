//! `flush`: asks, and tells a person who waits long what for.
//!
//! Knows when waiting needs a word; refuses to judge why it takes so long, which the daemon's status says.

use std::io::{self, Write};
use std::pin::pin;
use std::time::Duration;

use tokio::time::timeout;
use tracecraft::api::{Flushed, Status, route};

use crate::client::{Client, LONG_TIMEOUT, STATUS_TIMEOUT};
use crate::failure::Failure;
use crate::text;

/// Without a word for so long, a person wonders whether it hangs.
const TALK_AFTER: Duration = Duration::from_secs(5);

/// Asks, and answers with what was stored.
pub(crate) async fn run(client: &Client, id: Option<&str>) -> Result<Flushed, Failure> {
    if id.is_some_and(str::is_empty) {
        return Err(Failure::usage("an id is never empty".into())
            .hint("`tracecraftctl list` shows all; without an id, all sessions are flushed"));
    }
    let path = id.map_or(route::FLUSH.into(), |id| route::session(id, route::FLUSH_SESSION));
    let mut answer = pin!(client.post::<Flushed>(&path, LONG_TIMEOUT));
    if let Ok(answer) = timeout(TALK_AFTER, &mut answer).await {
        return answer;
    }
    tokio::select! {
        answer = &mut answer => return answer,
        () = talk(client) => {}
    }
    answer.await
}

/// Says on standard error what is waited for. A daemon that does not say how it is will be told of by the flush itself.
async fn talk(client: &Client) {
    let status = client.get::<Status>(route::STATUS, STATUS_TIMEOUT).await;
    if let Ok(status) = status {
        let _ = io::stderr().write_all(waiting(&status).as_bytes());
    }
}

/// What a person reads who waits.
fn waiting(status: &Status) -> String {
    let mut words = match status.pending.parts {
        0 => "tracecraftctl: still waiting: the daemon looks for what is new\n".to_owned(),
        parts => format!(
            "tracecraftctl: still waiting: {} in {} captured, safe on this machine, and not in the store yet\n",
            text::bytes(status.pending.bytes),
            text::count(parts, "part is", "parts are"),
        ),
    };
    for problem in &status.problems {
        words.push_str(&format!("  ! {}\n", text::line(&problem.message)));
    }
    words + "it goes on waiting; Ctrl-C costs nothing: the daemon stores it by itself\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::tests::{status, troubled_status};

    #[test]
    fn who_waits_is_told_what_is_safe_already_and_why_the_rest_is_not() {
        let told = waiting(&troubled_status());
        assert!(
            told.contains("captured, safe on this machine, and not in the store yet"),
            "{told}"
        );
        assert!(told.contains("\n  ! "), "{told}");
        let told = waiting(&status());
        assert!(told.contains("the daemon looks for what is new"), "{told}");
        assert!(told.ends_with("the daemon stores it by itself\n"), "{told}");
    }
}
