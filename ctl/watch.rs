//! `watch`: the status as it changes, and what happens, until somebody has seen enough.
//!
//! Owns following the daemon through its restarts, and the three ways to show what it says: a screen, lines, JSON. What it
//! looks like is [`crate::render`]'s, how a screen is drawn is [`crate::screen`]'s.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::pin::pin;
use std::time::Duration;

use hyper::Method;
use signal_hook::consts::SIGTSTP;
use signal_hook::low_level::emulate_default_handler;
use tokio::time::{Instant, sleep, timeout};
use tracecraft::api::{ErrorCode, Event, Status, route};

use crate::client::{Client, Lines, STATUS_TIMEOUT};
use crate::failure::Failure;
use crate::render;
use crate::screen::{Screen, Signals, Told};
use crate::service;
use crate::terminal::{Output, Terminal};

/// Three heartbeats of the daemon: one that says nothing for so long is gone, or hangs.
const SILENCE_MAX: Duration = Duration::from_secs(45);

/// Between two looks whether a daemon that went away is back.
const RECONNECT_EVERY: Duration = Duration::from_millis(500);

/// Ages on the screen are told in seconds.
const REDRAW_EVERY: Duration = Duration::from_secs(1);

/// Events that are kept for the screen: more than any screen has lines.
const EVENTS_KEPT: usize = 200;

/// Follows until SIGINT, SIGTERM or SIGHUP, or until nobody reads any more; none of them is a failure.
pub(crate) async fn run(
    client: &Client,
    json: bool,
    terminal: &Terminal,
    out: &mut Output,
) -> Result<(), Failure> {
    // A daemon that is not there at the start is most likely not there at all.
    let lines = connect(client).await?;
    let mut signals = Signals::new()
        .map_err(|error| Failure::failed(format!("cannot listen for signals: {error}")))?;
    // One that knows no escapes cannot be drawn anew.
    let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    let shown = match (json, terminal.columns.filter(|_| !is_dumb)) {
        (true, _) => Shown::Json,
        (false, None) => Shown::Lines(None),
        (false, Some(_)) => Shown::Screen(Box::new(Live::new(Screen::open(out)?))),
    };
    let mut watch = Watch { client, shown, out };
    let ended = watch.follow(lines, &mut signals).await;
    // Also after a failure: the terminal is the user's again.
    watch.close()?;
    ended
}

/// Asks for events; waits for the answer's head only.
async fn connect(client: &Client) -> Result<Lines, Failure> {
    let connected = timeout(STATUS_TIMEOUT, client.stream(Method::GET, route::EVENTS, SILENCE_MAX));
    let failure = match connected.await {
        Ok(Ok(stream)) => return Ok(stream.lines()),
        Ok(Err(failure)) => failure,
        Err(_) => return Err(client.silent(STATUS_TIMEOUT)),
    };
    if failure.is(ErrorCode::NoSuchRoute) {
        let what =
            "the daemon is older than this program: it does not tell what happens".to_owned();
        let hint =
            "restart it, so that it runs the installed version: `tracecraftctl service restart`";
        return Err(Failure::protocol(what).hint(hint));
    }
    Err(failure)
}

/// How what happens is shown.
enum Shown {
    Json,
    /// With the first line of the snapshot that was shown last.
    Lines(Option<String>),
    Screen(Box<Live>),
}

/// What the screen is made of.
struct Live {
    screen: Screen,
    status: Option<(Status, Instant)>,
    events: VecDeque<String>,
    /// Since when the daemon does not answer.
    away: Option<Instant>,
}

struct Watch<'a> {
    client: &'a Client,
    shown: Shown,
    out: &'a mut Output,
}

impl Watch<'_> {
    /// Until a signal, a failure that a restart does not explain, or a reader that is gone.
    async fn follow(&mut self, lines: Lines, signals: &mut Signals) -> Result<(), Failure> {
        let client = self.client;
        let redraw = matches!(self.shown, Shown::Screen(_));
        let mut lines = Some(lines);
        loop {
            let came = {
                // One future for as long as it takes: its limits are not begun anew whenever the screen is drawn.
                let mut coming = pin!(async {
                    match &mut lines {
                        Some(lines) => Came::Line(lines.next().await),
                        None => Came::Connected(Box::new(again(client).await)),
                    }
                });
                loop {
                    tokio::select! {
                        told = signals.next() => match told {
                            Told::End => return Ok(()),
                            Told::Suspended => self.suspend()?,
                            Told::Resized => self.draw(true)?,
                        },
                        came = &mut coming => break came,
                        () = sleep(REDRAW_EVERY), if redraw => self.draw(false)?,
                    }
                }
            };
            match came {
                Came::Line(Ok(Some(line))) => self.show(&line)?,
                Came::Line(Err(failure)) if !failure.may_pass() => return Err(failure),
                // A stream that ends or breaks: the daemon stops, is killed, or hangs.
                Came::Line(_) => {
                    lines = None;
                    self.gone()?;
                }
                Came::Connected(connected) => {
                    lines = Some((*connected)?);
                    self.back()?;
                }
            }
        }
    }

    fn show(&mut self, line: &[u8]) -> Result<(), Failure> {
        let text = String::from_utf8_lossy(line);
        if matches!(self.shown, Shown::Json) {
            // As it came: a newer daemon may know more than this program.
            writeln!(self.out, "{}", render::harmless(&text))?;
            return Ok(self.out.flush()?);
        }
        let event: Event = serde_json::from_str(&text)
            .map_err(|error| Failure::failed(format!("the daemon's event is not JSON: {error}")))?;
        // A snapshot is as old as its clock.
        let terminal = Terminal::detect();
        match &mut self.shown {
            Shown::Screen(live) => {
                if let Some(words) = render::event::line(&event, &terminal) {
                    live.note(words);
                }
                if let Event::Status { status } = event {
                    live.status = Some((*status, Instant::now()));
                }
                self.draw(false)
            }
            Shown::Json => Ok(()),
            Shown::Lines(said) => {
                // Of snapshots, which are for screens, only how it stands, when that is another.
                if let Event::Status { status } = &event {
                    let headline = render::status::headline(status, &terminal);
                    if said.as_ref() != Some(&headline) {
                        writeln!(self.out, "{headline}")?;
                        self.out.flush()?;
                        *said = Some(headline);
                    }
                }
                if let Some(words) = render::event::line(&event, &terminal) {
                    writeln!(self.out, "{words}")?;
                    self.out.flush()?;
                }
                Ok(())
            }
        }
    }

    /// The daemon is not there. That is talk and no data, where there is no screen.
    fn gone(&mut self) -> Result<(), Failure> {
        match &mut self.shown {
            Shown::Screen(live) => {
                live.away = Some(Instant::now());
                live.note(render::event::talk("the daemon went away", &Terminal::detect()));
                self.draw(false)
            }
            _ => talk("the daemon went away: waiting for it"),
        }
    }

    fn back(&mut self) -> Result<(), Failure> {
        match &mut self.shown {
            Shown::Screen(live) => {
                live.away = None;
                live.note(render::event::talk("the daemon is back", &Terminal::detect()));
                self.draw(false)
            }
            _ => talk("the daemon is back"),
        }
    }

    fn draw(&mut self, resized: bool) -> Result<(), Failure> {
        if let Shown::Screen(live) = &mut self.shown {
            live.draw(resized, self.out)?;
        }
        Ok(())
    }

    fn suspend(&mut self) -> Result<(), Failure> {
        match &mut self.shown {
            Shown::Screen(live) => live.screen.suspend(self.out)?,
            _ => emulate_default_handler(SIGTSTP)?,
        }
        self.draw(true)
    }

    fn close(&mut self) -> io::Result<()> {
        match &mut self.shown {
            Shown::Screen(live) => live.screen.close(self.out),
            _ => Ok(()),
        }
    }
}

enum Came {
    Line(Result<Option<Vec<u8>>, Failure>),
    Connected(Box<Result<Lines, Failure>>),
}

/// Tries until the daemon is there again. What no waiting mends (another protocol, another user) is a failure.
async fn again(client: &Client) -> Result<Lines, Failure> {
    loop {
        sleep(RECONNECT_EVERY).await;
        // Whoever stopped the service did not ask for a start, and a connection is one where the manager listens.
        if service::would_start(client.socket()).await {
            continue;
        }
        match connect(client).await {
            Err(failure) if failure.may_pass() => {}
            connected => return connected,
        }
    }
}

fn talk(words: &str) -> Result<(), Failure> {
    // Nobody who reads it is no reason to end.
    let _ = writeln!(io::stderr(), "tracecraftctl: {words}");
    Ok(())
}

impl Live {
    fn new(screen: Screen) -> Live {
        Live { screen, status: None, events: VecDeque::new(), away: None }
    }

    fn note(&mut self, words: String) {
        self.events.push_back(words);
        while self.events.len() > EVENTS_KEPT {
            self.events.pop_front();
        }
    }

    fn draw(&mut self, resized: bool, out: &mut Output) -> io::Result<()> {
        let terminal = Terminal::detect();
        let now = match &self.status {
            // While it is away nobody knows more than it said last.
            Some((status, at)) if self.away.is_none() => Some(later(status, at.elapsed())),
            Some((status, _)) => Some(status.clone()),
            None => None,
        };
        let away = self.away.map(|since| since.elapsed().as_secs());
        let head = render::event::head(now.as_ref(), away, &terminal);
        self.screen.draw(&head, &self.events, resized, out)
    }
}

/// A status as it is some time later if nothing has happened.
fn later(status: &Status, elapsed: Duration) -> Status {
    let mut status = status.clone();
    status.uptime_seconds += elapsed.as_secs();
    if let Some(seconds) = &mut status.stalled_seconds {
        *seconds += elapsed.as_secs();
    }
    if let Some(seconds) = &mut status.pending.oldest_seconds {
        *seconds += elapsed.as_secs();
    }
    status
}
