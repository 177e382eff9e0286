//! A crowd of agents at work: some sessions at a time grow, are rewritten, moved, archived and deleted, and others follow them.
//!
//! Owns the threads of the agents and what their sessions ever held. Knows neither daemon nor kills; it looks into the bucket
//! only to learn when a session may be rewritten so that the number of its generations stays known.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::hermes::{Hermes, any_step};
use crate::support::home::Home;
use crate::support::oracle::Bucket;
use crate::support::pace;
use crate::support::planted::Planted;
use crate::support::writers::Transcript;

/// Agents with files that work at a time: eight of Claude Code, six of Codex, six of OpenClaw.
const AGENTS: u64 = 20;

/// The longest pause between two bursts of one agent. All together write some twenty bursts a second: more than one in each
/// life of a daemon, and so few that the bucket of a thousand kills can still be judged within a minute.
const BETWEEN_BURSTS: Duration = Duration::from_millis(2000);

/// The longest pause between two writes of one record.
const BETWEEN_WRITES: Duration = Duration::from_millis(15);

/// The longest pause between two steps of Hermes.
const BETWEEN_STEPS: Duration = Duration::from_millis(400);

/// The longest pause between two looks into the bucket whether a session is all there.
const BETWEEN_LOOKS: Duration = Duration::from_millis(800);

/// How large one life of a session grows, at least and at most. What a session has stays small beside the number of sessions,
/// so that the last kill of a campaign meets as much as the first.
const LIFE_BYTES: (usize, usize) = (4 << 10, 24 << 10);

/// Lives of one session at most; and steps of one session of Hermes.
const LIVES_MAX: usize = 4;
const STEPS_MAX: usize = 60;

/// One session with files.
pub(crate) type Session = Arc<Mutex<Transcript>>;

/// What the threads share.
#[derive(Debug)]
struct Shared {
    home: Arc<Home>,
    planted: Planted,
    seed: u64,
    ending: AtomicBool,
    /// All sessions that there ever were. The last [`AGENTS`] or so of them are worked on.
    sessions: Mutex<Vec<Session>>,
}

/// The agents. They work until [`Crowd::end`].
pub(crate) struct Crowd {
    shared: Arc<Shared>,
    agents: Vec<JoinHandle<()>>,
    hermes: JoinHandle<(Hermes, Vec<String>)>,
}

/// What is left of a crowd that has stopped.
pub(crate) struct Quiet {
    pub(crate) sessions: Vec<Session>,
    pub(crate) hermes: Hermes,
    /// Sessions of Hermes.
    pub(crate) ids: Vec<String>,
}

impl Crowd {
    /// Agents in a home, the same for the same seed as far as threads can be.
    pub(crate) fn start(home: &Arc<Home>, planted: &Planted, seed: u64) -> Crowd {
        let (home, planted) = (Arc::clone(home), planted.clone());
        let (ending, sessions) = (AtomicBool::new(false), Mutex::new(Vec::new()));
        let shared = Arc::new(Shared { home, planted, seed, ending, sessions });
        let agent = |slot| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || work(&shared, slot))
        };
        let agents = (0..AGENTS).map(agent).collect();
        let of_hermes = Arc::clone(&shared);
        let hermes = std::thread::spawn(move || work_as_hermes(&of_hermes));
        Crowd { shared, agents, hermes }
    }

    /// All sessions with files so far.
    pub(crate) fn sessions(&self) -> Vec<Session> {
        self.shared.sessions.lock().unwrap().clone()
    }

    /// Some sessions: mostly such as are worked on or were a moment ago.
    pub(crate) fn some(&self, rng: &mut fastrand::Rng, count: usize) -> Vec<Session> {
        let all = self.sessions();
        let recent = all.len().saturating_sub(2 * AGENTS as usize);
        let from = |rng: &mut fastrand::Rng| if rng.u8(0..8) == 0 { 0 } else { recent };
        let mut picked: Vec<usize> = Vec::new();
        for _ in 0..count.min(all.len()) {
            let from = from(rng);
            picked.push(rng.usize(from..all.len()));
        }
        picked.sort_unstable();
        picked.dedup();
        picked.into_iter().map(|at| Arc::clone(&all[at])).collect()
    }

    /// Stops all agents where they are.
    pub(crate) fn end(self) -> Quiet {
        self.shared.ending.store(true, Ordering::Relaxed);
        self.agents.into_iter().for_each(|agent| agent.join().unwrap());
        let (hermes, ids) = self.hermes.join().unwrap();
        let sessions = self.shared.sessions.lock().unwrap().clone();
        Quiet { sessions, hermes, ids }
    }
}

impl Shared {
    fn ended(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    fn begin(&self, number: u64) -> Session {
        let harness = match number % AGENTS {
            0..8 => "claude-code",
            8..14 => "codex",
            _ => "openclaw",
        };
        let session = Transcript::new(&self.home, harness, number, self.seed);
        let session = Arc::new(Mutex::new(session));
        self.sessions.lock().unwrap().push(Arc::clone(&session));
        session
    }

    /// Waits until the bucket holds all that the present life of a session holds; says no if the crowd is to stop before.
    fn mirrored(&self, session: &Session, rng: &mut fastrand::Rng) -> bool {
        let source = session.lock().unwrap().source(&self.planted);
        let (life, content) =
            (source.generations.len(), &source.generations[source.generations.len() - 1]);
        while !self.ended() {
            let bucket = Bucket::read_one(self.home.objects(), source.harness, &source.id);
            let stored = bucket.generations(source.harness, &source.id);
            if stored.len() == life && stored[life - 1].by_manifest == *content {
                return true;
            }
            pace(rng, BETWEEN_LOOKS);
        }
        false
    }
}

/// One agent: one session after the other.
fn work(shared: &Shared, slot: u64) {
    let mut rng = fastrand::Rng::with_seed(shared.seed.wrapping_mul(31).wrapping_add(slot));
    let mut number = slot;
    while !shared.ended() {
        pace(&mut rng, BETWEEN_BURSTS);
        let session = shared.begin(number);
        live(shared, &session, number, &mut rng);
        number += AGENTS;
    }
}

/// A session: it grows; when it is large, it is rewritten and grows again, or is moved, or ends in one of several ways.
fn live(shared: &Shared, session: &Session, number: u64, rng: &mut fastrand::Rng) {
    let lives = rng.usize(1..=LIVES_MAX);
    let mut large = rng.usize(LIFE_BYTES.0..LIFE_BYTES.1);
    let mut is_moved = false;
    // A session that has begun says something, whoever ends meanwhile: without a file there is none.
    loop {
        session.lock().unwrap().burst(&shared.planted, 4, BETWEEN_WRITES);
        pace(rng, BETWEEN_BURSTS);
        if shared.ended() {
            return;
        }
        let (size, life) = {
            let session = session.lock().unwrap();
            (session.size(), session.lives.len())
        };
        if size > large / 2 && !is_moved {
            is_moved = true;
            move_about(shared, session, number, rng);
        }
        if size < large {
            continue;
        }
        let is_last = life == lives;
        // A session that is left as it is may have news that nobody has captured yet.
        if is_last && rng.bool() {
            return;
        }
        if !shared.mirrored(session, rng) {
            return;
        }
        let mut session = session.lock().unwrap();
        match (is_last, rng.bool()) {
            (true, _) => return session.delete(),
            (false, true) => session.truncate(),
            (false, false) => session.replace(&shared.planted),
        }
        large = rng.usize(LIFE_BYTES.0..LIFE_BYTES.1) + session.size();
    }
}

/// Moves a session's file as its agent would: to another project, or into the archive and back.
fn move_about(shared: &Shared, session: &Session, number: u64, rng: &mut fastrand::Rng) {
    let (harness, path) = {
        let session = session.lock().unwrap();
        (session.harness, session.path.clone())
    };
    let name = path.file_name().unwrap();
    match harness {
        "claude-code" => {
            let stem = path.file_stem().unwrap().to_str().unwrap();
            let elsewhere = shared.home.claude_code(&format!("/home/dev/else/{number}"), stem);
            session.lock().unwrap().move_to(&elsewhere);
        }
        "codex" => {
            let archived = shared.home.path().join(".codex/archived_sessions").join(name);
            session.lock().unwrap().move_to(&archived);
            pace(rng, BETWEEN_BURSTS);
            session.lock().unwrap().move_to(&path);
        }
        _ => {}
    }
}

/// Hermes: writes, marks, deletes and replaces rows, in one session after the other.
fn work_as_hermes(shared: &Shared) -> (Hermes, Vec<String>) {
    let mut rng = fastrand::Rng::with_seed(shared.seed.wrapping_add(77));
    let hermes = Hermes::new(&shared.home, None);
    let mut ids = Vec::new();
    while !shared.ended() {
        let id = format!("20260102_030405_{:06x}", ids.len());
        hermes.session(&id, "/home/dev/works/hermes");
        hermes.say(&id, "user", "first");
        for number in 0..rng.usize(2..STEPS_MAX) {
            if shared.ended() {
                break;
            }
            hermes.step(&any_step(&mut rng, &id, number));
            pace(&mut rng, BETWEEN_STEPS);
        }
        ids.push(id);
    }
    (hermes, ids)
}
