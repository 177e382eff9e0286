//! `flush --hook`: what an agent's hook says, passed on to the daemon within a moment that no agent notices.
//!
//! Owns what of a hook's JSON counts and how long that may take. Refuses to fail, to print and to wait for the flush: some agents
//! take what a hook prints for instructions and its exit code for an order. A hint that gets lost costs nothing, since the
//! daemon looks by itself.

use std::ffi::OsStr;
use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;
use tracecraft::api::{Hinted, route};
use tracecraft::paths::{self, Environment};

use crate::client::Client;

/// From the start of the program to its end. Agents wait for each of their hooks; what is left of 100 ms is for the system, which
/// starts and ends it.
const HOOK_TIME_MAX: Duration = Duration::from_millis(80);

/// Of that, for the hook's words to come; the rest is for the daemon. Agents write them before the program runs.
const HOOK_INPUT_TIME_MAX: Duration = Duration::from_millis(50);

/// For the daemon to be told, also where a busy machine has eaten up the time: a daemon that is well takes a few milliseconds.
const HOOK_TELL_TIME_MIN: Duration = Duration::from_millis(20);

/// Of a hook's words. They may quote a whole tool result before they come to the session; what does not fit is not known.
const HOOK_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Names that are longer than any path of the system are passed over.
const NAME_BYTES_MAX: usize = 4096;

/// The words of a hook that name its session. Whatever else there is, and of whatever type these are, is no error.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Said {
    /// Claude Code, Codex, Hermes.
    session_id: Value,
    /// Codex' `notify`.
    #[serde(rename = "thread-id")]
    thread_id: Value,
    /// Claude Code, Codex; may be null.
    transcript_path: Value,
    /// Of a sub-agent that ended, beside that of its parent.
    agent_transcript_path: Value,
}

/// Whether a command line that is wrong was one for a hook.
pub(crate) fn is_meant() -> bool {
    std::env::args_os().any(|argument| argument == OsStr::new("--hook"))
}

/// Reads what the hook says, from its argument or from standard input, and tells the daemon.
pub(crate) fn run(argument: Option<&str>, socket: Option<&Path>, began: Instant) {
    let said = match argument {
        Some(json) => serde_json::from_str(json).unwrap_or_default(),
        None => heard(began),
    };
    let Ok(environment) = Environment::of_process() else { return };
    let Ok(socket) = paths::socket(socket, &environment) else { return };
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return;
    };
    runtime.block_on(async {
        let client = Client::new(socket);
        let left = HOOK_TIME_MAX.saturating_sub(began.elapsed()).max(HOOK_TELL_TIME_MIN);
        let path = said.path();
        let told = client.post::<Hinted>(&path, left);
        // Whatever comes of it, there is nobody to tell; the daemon shows what is wrong with itself in `status`.
        let _ = tokio::time::timeout(left, told).await;
    });
}

/// The first JSON document of standard input, as far as it comes in time. Not to its end: some agents leave it open.
fn heard(began: Instant) -> Said {
    if io::stdin().is_terminal() {
        return Said::default();
    }
    let (tell, told) = mpsc::sync_channel(1);
    // It may read for ever; it ends with the process, which is soon.
    let reading = std::thread::Builder::new().spawn(move || {
        let input = io::BufReader::new(io::stdin().lock().take(HOOK_BYTES_MAX));
        let mut documents = serde_json::Deserializer::from_reader(input).into_iter();
        let _ = tell.send(documents.next().and_then(Result::ok).unwrap_or_default());
    });
    let left = HOOK_INPUT_TIME_MAX.saturating_sub(began.elapsed());
    reading.ok().and_then(|_| told.recv_timeout(left).ok()).unwrap_or_default()
}

impl Said {
    /// The request that passes it on.
    fn path(&self) -> String {
        fn names(values: [&Value; 2]) -> impl Iterator<Item = &str> {
            let fits = |name: &&str| {
                let plain = !name.chars().any(char::is_control);
                !name.is_empty() && name.len() <= NAME_BYTES_MAX && plain
            };
            values.into_iter().filter_map(Value::as_str).filter(fits)
        }
        let sessions = names([&self.session_id, &self.thread_id]);
        route::hint(sessions, names([&self.transcript_path, &self.agent_transcript_path]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(json: &str) -> String {
        serde_json::from_str::<Said>(json).unwrap_or_default().path()
    }

    #[test]
    fn what_the_agents_hooks_say_names_the_session() {
        let claude_code = r#"{"session_id":"3f2a","transcript_path":"/h/.claude/projects/-x/3f2a.jsonl","cwd":"/x","hook_event_name":"Stop","stop_hook_active":false}"#;
        let asks = "/v1/hint?session=3f2a&path=%2Fh%2F.claude%2Fprojects%2F-x%2F3f2a.jsonl";
        assert_eq!(asked(claude_code), asks);
        let sub_agent = r#"{"session_id":"3f2a","transcript_path":"/p.jsonl","agent_id":"a1","agent_transcript_path":"/p/a1.jsonl","hook_event_name":"SubagentStop"}"#;
        assert_eq!(asked(sub_agent), "/v1/hint?session=3f2a&path=%2Fp.jsonl&path=%2Fp%2Fa1.jsonl");
        let codex = r#"{"session_id":"01a2","transcript_path":null,"cwd":"/x","hook_event_name":"SessionEnd","reason":"other"}"#;
        assert_eq!(asked(codex), "/v1/hint?session=01a2");
        let notify = r#"{"type":"agent-turn-complete","thread-id":"01a2","turn-id":"1","cwd":"/x","input-messages":["{\"session_id\":\"no\"}"],"last-assistant-message":"x"}"#;
        assert_eq!(asked(notify), "/v1/hint?session=01a2");
        let hermes = r#"{"hook_event_name":"on_session_end","tool_name":null,"tool_input":null,"session_id":"20260101_1","cwd":"/x","extra":{}}"#;
        assert_eq!(asked(hermes), "/v1/hint?session=20260101_1");
    }

    #[test]
    fn garbage_names_nothing() {
        let deep = "[".repeat(100_000);
        let long = format!(r#"{{"session_id":"{}"}}"#, "a".repeat(NAME_BYTES_MAX + 1));
        for json in
            ["", "{", "[]", "7", r#"{"session_id":7}"#, r#"{"session_id":""}"#, &deep, &long]
        {
            assert_eq!(asked(json), "/v1/hint");
        }
        assert_eq!(asked("{\"session_id\":\"a\\u001b\",\"transcript_path\":{}}"), "/v1/hint");
    }
}
