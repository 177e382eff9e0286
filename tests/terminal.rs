//! What a person sees who works at a terminal: a screen that is drawn anew and given back, colours, tables that fit.

use rustix::process::Signal;

use crate::support::daemon::{Daemon, ctl_ok};
use crate::support::home::Home;
use crate::support::planted::Planted;
use crate::support::terminal::{self, Screen, Terminal};
use crate::support::wait_for;
use crate::support::writers::Transcript;

fn watch(home: &Home, rows: usize, columns: usize) -> Terminal {
    let mut command = home.tracecraftctl();
    command.arg("watch");
    Terminal::start(command, rows, columns)
}

fn wait_to_see(terminal: &Terminal, words: &str) -> Screen {
    let seen = || Some(terminal.screen()).filter(|screen| screen.text().contains(words));
    wait_for(&format!("{words:?} to be seen"), seen)
}

#[test]
fn watch_draws_its_screen_anew_follows_restarts_and_gives_the_terminal_back() {
    if !terminal::or_skip("what is drawn on a terminal") {
        return;
    }
    let home = Home::new();
    let mut daemon = Daemon::start(&home, &["--interval", "100ms"]);
    let mut terminal = watch(&home, 40, 100);
    let screen = wait_to_see(&terminal, &format!("process {}", daemon.pid()));
    assert!(screen.hidden, "the cursor would jump about");
    let mut one = Transcript::new(&home, "codex", 1, 7);
    one.grow(&Planted::exact_only(1), 3);
    let screen = wait_to_see(&terminal, &format!("of codex/{}", one.id));
    assert_eq!(screen.spilt, 0, "{}", screen.text());
    assert_eq!(daemon.term().code(), Some(0));
    wait_to_see(&terminal, "the daemon does not answer for");
    let again = Daemon::start(&home, &["--interval", "100ms"]);
    let screen = wait_to_see(&terminal, &format!("process {}", again.pid()));
    // One status, whatever was drawn before it.
    assert_eq!(screen.text().matches("process ").count(), 1, "{}", screen.text());
    assert_eq!(screen.spilt, 0, "{}", screen.text());
    terminal.signal(Signal::INT);
    assert_eq!(terminal.ended().code(), Some(0));
    wait_for("the cursor to be given back", || (!terminal.screen().hidden).then_some(()));
    assert!(terminal.screen().text().contains("the daemon is back"), "what was seen stays");
}

#[test]
fn watch_fits_a_small_terminal_and_one_that_changes_its_size() {
    if !terminal::or_skip("what is drawn on a terminal") {
        return;
    }
    let home = Home::new();
    let _daemon = Daemon::start(&home, &["--interval", "100ms"]);
    let planted = Planted::exact_only(1);
    for number in 0..6 {
        Transcript::new(&home, "codex", number, 7).grow(&planted, 2);
    }
    let mut terminal = watch(&home, 6, 44);
    wait_to_see(&terminal, "recording");
    assert_eq!(terminal.screen().spilt, 0, "{}", terminal.screen().text());
    terminal.resize(50, 120);
    wait_to_see(&terminal, "stored");
    let before = terminal.screen();
    assert_eq!(before.spilt, 0, "{}", before.text());
    assert_eq!(before.text().matches("recording").count(), 1, "{}", before.text());
    terminal.signal(Signal::TERM);
    assert_eq!(terminal.ended().code(), Some(0));
}

#[test]
fn a_terminal_gets_colours_and_tables_that_fit_and_no_color_takes_the_colours_away() {
    if !terminal::or_skip("what is drawn on a terminal") {
        return;
    }
    let home = Home::new();
    Transcript::new(&home, "codex", 1, 7).grow(&Planted::exact_only(1), 2);
    let _daemon = Daemon::start(&home, &["--interval", "100ms"]);
    ctl_ok(&home, &["flush"]);
    // Commands and paths are there to be copied, and never cut: what tells them needs more room.
    for (arguments, narrow) in
        [(["status"], 60), (["list"], 60), (["verify"], 60), (["doctor"], 180)]
    {
        for (no_color, columns) in [(false, narrow), (true, narrow), (false, 200)] {
            let mut command = home.tracecraftctl();
            command.args(arguments);
            let mut terminal = match no_color {
                true => Terminal::start_without_colours(command, 200, columns),
                false => Terminal::start(command, 200, columns),
            };
            terminal.ended();
            let screen = wait_to_see(&terminal, "\n");
            let text = screen.text();
            assert_eq!(screen.coloured, !no_color, "{arguments:?}: {text}");
            assert_eq!(screen.spilt, 0, "{arguments:?} in {columns} columns:\n{text}");
        }
        // Nobody who reads a pipe wants them.
        assert!(!String::from_utf8(ctl_ok(&home, &arguments)).unwrap().contains('\u{1b}'));
    }
}
