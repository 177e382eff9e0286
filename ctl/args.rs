//! The command line: verbs, flags, help. Knows nothing of what the verbs do.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand};
use clap_complete::Shell;

const EXAMPLES: &str = "\
Examples:
  tracecraftctl status                 is it working, is everything safe
  tracecraftctl watch                  the same, live
  tracecraftctl list                   every session, the last stored first
  tracecraftctl show 3f2a --tail 20    the end of a conversation
  tracecraftctl flush                  store now what is not stored yet
  tracecraftctl verify                 is all that is stored as it should be
  tracecraftctl doctor                 what is wrong, and what to do about it

An ID is a session's id, its key HARNESS/ID, or any prefix of the id that no other session has.

Exit codes: 0 done, 1 failed, 2 usage, 3 daemon not running, 4 no such session,
5 daemon and client do not speak the same protocol, 6 no service manager here.";

/// Ask the flight recorder of your coding agents.
#[derive(Debug, Parser)]
#[command(name = "tracecraftctl", version, after_help = EXAMPLES, max_term_width = 100)]
#[command(disable_help_subcommand = true, infer_subcommands = false)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) verb: Verb,

    /// Print the answer as JSON, for programs; an error of the daemon is then JSON on standard output, too
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// Socket of the daemon [env: TRACECRAFT_SOCKET] [default: the daemon's own]
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Is it working, is everything safe, what now
    #[command(after_help = "\
Exits with 0 whenever the daemon answered, also when it has problems to report.

Examples:
  tracecraftctl status
  tracecraftctl status --json | jq '.problems[].message'")]
    Status,

    /// The status as it changes, and what happens, until you end it
    #[command(after_help = "\
On a terminal: the status, drawn again in place, and below it the newest events.
Elsewhere: a line for each event. With --json: the daemon's stream as it comes,
one JSON document a line, which begins with a snapshot of the status. A daemon
that restarts is waited for. Ctrl-C ends it with exit code 0.

Examples:
  tracecraftctl watch
  tracecraftctl watch | grep problem
  tracecraftctl watch --json | jq -r 'select(.event == \"stored\").id'")]
    Watch,

    /// Every session that is known, the last stored first
    #[command(after_help = "\
On a terminal, ids are shortened to what `show` and the others still understand.

Examples:
  tracecraftctl list
  tracecraftctl list --json | jq -r '.sessions[] | select(.state == \"live\") | .id'")]
    List,

    /// Read a session: the conversation, or with --raw the stored bytes
    Show(Show),

    /// Compare what is stored with what it should be
    Verify(Verify),

    /// Merge the stored parts of a session into one
    #[command(after_help = "\
The session may be live. Nothing is deleted before what replaces it is stored and read back.

Examples:
  tracecraftctl compact 3f2a
  tracecraftctl compact 3f2a --keep-tail 10")]
    Compact {
        /// Session: id, key, or a unique prefix of the id
        #[arg(value_parser = typed_id)]
        id: String,
        /// Leave the newest N parts as they are
        #[arg(long, value_name = "N", default_value_t = 0)]
        keep_tail: usize,
    },

    /// Store what a session has, then follow it no more
    #[command(after_help = "\
What is stored stays stored. `tracecraftctl start ID` follows the session again.

Examples:
  tracecraftctl stop 3f2a
  tracecraftctl stop codex/01a202ff-e959-7981-a12a-3e16776f6a97")]
    Stop {
        /// Session: id, key, or a unique prefix of the id
        #[arg(value_parser = typed_id)]
        id: String,
    },

    /// Follow a stopped session again
    #[command(after_help = "\
What was written meanwhile is stored, too.

Examples:
  tracecraftctl start 3f2a")]
    Start {
        /// Session: id, key, or a unique prefix of the id
        #[arg(value_parser = typed_id)]
        id: String,
    },

    /// Store now what is not stored yet, of one session or of all
    #[command(after_help = "\
Returns when everything that was there at the call is stored and named by a manifest,
and waits for that for ten minutes at most. If it takes long, it says on standard error
what it waits for; Ctrl-C costs nothing, the daemon goes on.

With --hook it is a command for agents' hooks: it reads what a hook says on
standard input (or as its argument), has the session stored that this names, and
is back within 100 ms, without waiting for that. It prints nothing and always
exits with 0, daemon or no daemon; only a wrong command line is said on standard
error, with 0, too. README.md has what to write where, by agent.

Examples:
  tracecraftctl flush
  tracecraftctl flush 3f2a && echo safe
  echo '{\"session_id\": \"3f2a9c1e-0a5b-4c7d-9e8f-112233445566\"}' | tracecraftctl flush --hook")]
    Flush {
        /// Session: id, key, or a unique prefix of the id; all when left out. With --hook: what the hook says, as JSON
        id: Option<String>,
        /// For agents' hooks: what to store is told on standard input; never waits, fails or prints
        #[arg(long, conflicts_with = "json")]
        hook: bool,
    },

    /// Look for what is wrong: configuration, store, service, machine
    #[command(after_help = "\
Works whether the daemon runs, hangs or does not run, writes nothing anywhere, and
ends within half a minute. Each line is ok, a note, a warning, or wrong; what is not
ok has one thing to try. The README has a table of all findings.

Exits with 0 if nothing is wrong (notes and warnings are allowed), else with 1.

Examples:
  tracecraftctl doctor
  tracecraftctl doctor --json | jq '.checks[] | select(.verdict != \"ok\")'
  TRACECRAFT_STORE=s3://my-bucket/agents tracecraftctl doctor   # before it is used")]
    Doctor,

    /// Keep the daemon running: at login, after a crash, after an upgrade
    #[command(subcommand)]
    Service(Service),

    /// Print a script that makes a shell complete verbs and flags
    #[command(after_help = COMPLETIONS_HELP)]
    Completions {
        /// The shell that the script is for
        #[arg(value_enum)]
        shell: Shell,
    },
}

const COMPLETIONS_HELP: &str = "\
Packages put these scripts in their places. By hand, for yourself:
  bash        ~/.local/share/bash-completion/completions/tracecraftctl
  fish        ~/.config/fish/completions/tracecraftctl.fish
  zsh         a file _tracecraftctl in a directory of your $fpath
  elvish      at the end of ~/.config/elvish/rc.elv
  powershell  at the end of the file that $PROFILE names

Ids of sessions are not completed; any unique prefix of one is enough.

Examples:
  tracecraftctl completions bash > ~/.local/share/bash-completion/completions/tracecraftctl
  source <(tracecraftctl completions bash)";

/// Keep the daemon running: at login, after a crash, after an upgrade.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
A user unit of systemd on Linux, an agent of launchd on macOS. Where there is
neither, it exits with 6 and says how to do without.

Examples:
  tracecraftctl service install
  tracecraftctl service status")]
pub(crate) enum Service {
    /// Install, enable and start it; again is no harm
    #[command(after_help = "\
A service sees no variables of your shell. What they, or these flags, say about
stores and directories is written into the configuration file if that has no
such key yet; nothing in it is changed, and no secret is ever written.

Examples:
  tracecraftctl service install
  tracecraftctl service install --store s3://my-bucket/agents
  CODEX_HOME=~/codex tracecraftctl service install")]
    Install(Install),

    /// Stop and remove it; what is stored stays, and so do state and configuration
    #[command(after_help = "\
--purge also removes the state and the configuration. It never touches what is
stored, and refuses while parts wait that the store does not have yet.

Examples:
  tracecraftctl service uninstall
  tracecraftctl service uninstall --purge")]
    Uninstall {
        /// Remove the state and the configuration, too; never the bucket
        #[arg(long)]
        purge: bool,
        /// With --purge: also if parts wait that the store does not have yet. They are lost then, unless their sources are still there
        #[arg(long, requires = "purge")]
        force: bool,
    },

    /// Whether it is installed, enabled and running
    #[command(after_help = "\
Exits with 0 if it runs, and with 3 if it does not.

Examples:
  tracecraftctl service status
  tracecraftctl service status --json | jq -r .active")]
    Status,

    /// What it said
    #[command(after_help = "\
--json has the journal's own entries, one a line; launchd's log is plain text.

Examples:
  tracecraftctl service logs
  tracecraftctl service logs -f")]
    Logs {
        /// Go on as more is said
        #[arg(short, long)]
        follow: bool,
        /// Lines to begin with
        #[arg(short = 'n', long, value_name = "N", default_value_t = 200)]
        lines: u32,
    },

    /// Stop and start it: after an upgrade, or a change that needs it
    #[command(after_help = "\
Nothing is lost: the daemon stores what is left before it ends.

Examples:
  tracecraftctl service restart")]
    Restart,
}

/// What of the configuration is to be said for good.
#[derive(Debug, Clone, Default, ClapArgs)]
pub(crate) struct Install {
    /// Configuration file that the service reads [env: TRACECRAFT_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where sessions are kept [env: TRACECRAFT_STORE]
    #[arg(long, value_name = "URL")]
    pub(crate) store: Option<std::ffi::OsString>,
}

/// Read a session: the conversation, or with --raw the stored bytes.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
The conversation is printed as it comes, shortened where it is long (tool
results, thinking). --raw has every byte as it is stored and escapes nothing,
not even on a terminal. --json prints one JSON document a line: the session,
then the entries of the conversation in full, then the counts.

Examples:
  tracecraftctl show 3f2a | less
  tracecraftctl show 3f2a --tail 20
  tracecraftctl show 3f2a --raw > session.jsonl")]
pub(crate) struct Show {
    /// Session: id, key, or a unique prefix of the id
    #[arg(value_parser = typed_id)]
    pub(crate) id: String,
    /// Only the last N records
    #[arg(long, value_name = "N")]
    pub(crate) tail: Option<u64>,
    /// The stored bytes, exactly
    #[arg(long, conflicts_with = "json")]
    pub(crate) raw: bool,
    /// An earlier life of a session whose file was rewritten, 1 being the first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) generation: Option<u32>,
}

/// Compare what is stored with what it should be.
#[derive(Debug, ClapArgs)]
#[command(after_help = "\
Every part that a manifest names is read and hashed; ranges, numbers and sums
have to agree. Sessions may be live. Without an ID: all that the bucket holds,
also what this daemon does not record. With one: all generations of it.

A finding begins with ! (wrong), ? (could not be checked), + (mended) or - (a
note, no fault).

--deep also compares with the agents' own files, where they are still there.
--repair puts parts back that the outbox or a source still has, puts a damaged
or missing manifest together anew (the old one is kept in the state directory)
and deletes leftovers that named parts hold. Nothing is done on a guess, and
never the only copy of anything deleted. What is told then is what is left.

Exits with 0 if nothing is wrong, and with 1 if something is, or could not be
checked.

Examples:
  tracecraftctl verify
  tracecraftctl verify 3f2a --deep
  tracecraftctl verify 3f2a --repair
  tracecraftctl verify --json | jq 'select(.event == \"session\").session.findings[]'")]
pub(crate) struct Verify {
    /// Session: id, key, or a unique prefix of the id; all when left out
    #[arg(value_parser = typed_id)]
    pub(crate) id: Option<String>,
    /// Compare with the sources, too
    #[arg(long)]
    pub(crate) deep: bool,
    /// Mend what can be mended
    #[arg(long)]
    pub(crate) repair: bool,
}

/// What was typed as an id. Nothing is the beginning of every id, and what somebody means who has lost a variable is no session.
fn typed_id(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("an id is never empty; `tracecraftctl list` shows all".into()),
        _ => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_verb_has_examples() {
        Args::command().debug_assert();
        let command = Args::command();
        let mut verbs = vec![&command];
        let mut seen = 0;
        while let Some(verb) = verbs.pop() {
            seen += 1;
            let help = verb.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:\n  tracecraftctl "), "{}", verb.get_name());
            verbs.extend(verb.get_subcommands());
        }
        assert!(seen > 12, "verbs below verbs were looked at, too: {seen}");
    }

    #[test]
    fn the_man_pages_tell_what_the_help_tells() {
        crate::manual::check(Args::command());
    }

    #[test]
    fn flags_for_all_verbs_may_stand_before_or_after_the_verb() {
        for line in ["c --json --socket /s status", "c status --json --socket /s"] {
            let args = Args::try_parse_from(line.split(' ')).unwrap();
            assert!(args.json && args.socket == Some("/s".into()));
        }
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for line in [
            "c",
            "c show",
            "c show a --raw --json",
            "c show a --generation 0",
            "c show ",
            "c verify ",
            "c stop ",
            "c list a",
            "c stat",
            "c service",
            "c completions",
            "c completions csh",
            "c service uninstall --force",
            "c flush --hook --json",
        ] {
            let error = Args::try_parse_from(line.split(' ')).unwrap_err();
            assert!(error.use_stderr(), "{line}");
        }
    }
}
