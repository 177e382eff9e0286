//! `list`: a table that fits the terminal. In a pipe nothing is shortened.

use std::collections::BTreeSet;

use tracecraft::api::{Session, SessionList, SessionState};

use super::{problem, seconds_since};
use crate::terminal::{Ink, Terminal};
use crate::text;

/// Shortest prefix of an id: shorter ones would be unique today and not tomorrow.
const PREFIX_CHARS_MIN: usize = 8;

/// Least room for the working directory; with less its column is left out.
const CWD_COLUMNS_MIN: usize = 10;

/// An id that no short text stands for takes no more room than this; a pipe and `--json` have it whole.
const ID_COLUMNS_MAX: usize = 44;

/// Between columns.
const GAP: &str = "  ";

struct Column {
    title: &'static str,
    right: bool,
    /// What is left out first where the terminal is narrow; 0 never.
    rank: u8,
    cells: Vec<String>,
}

/// The table, and below it what is wrong with single sessions.
pub(crate) fn text(list: &SessionList, terminal: &Terminal) -> String {
    let mut sessions: Vec<&Session> = list.sessions.iter().collect();
    if sessions.is_empty() {
        return "no sessions yet\n".to_owned();
    }
    // RFC 3339 of one zone sorts as text, but a daemon may write fractions or not: compare times. What was never stored is new.
    sessions.sort_by_cached_key(|session| {
        let stored = session.last_stored_at.as_deref().and_then(|time| time.parse().ok());
        std::cmp::Reverse(stored.unwrap_or(jiff::Timestamp::MAX))
    });
    let mut columns = columns(&sessions, terminal);
    if let Some(room) = terminal.columns {
        fit(&mut columns, room);
    }
    let mut out = table(&columns, &sessions, terminal);
    for session in sessions {
        if let Some(found) = &session.problem {
            out.push_str(&format!(
                "\n{}/{}\n",
                text::line(&session.harness),
                text::line(&session.id)
            ));
            out.push_str(&problem(found, "  ", terminal));
        }
    }
    out
}

fn columns(sessions: &[&Session], terminal: &Terminal) -> Vec<Column> {
    let column = |title, right, rank, cell: &dyn Fn(&Session) -> String| Column {
        title,
        right,
        rank,
        cells: sessions.iter().map(|session| cell(session)).collect(),
    };
    let ids = match terminal.columns {
        Some(_) => prefixes(sessions),
        None => sessions.iter().map(|session| session.id.clone()).collect(),
    };
    let stored = |session: &Session| {
        seconds_since(session.last_stored_at.as_deref(), terminal)
            .map_or("never".to_owned(), |seconds| format!("{} ago", text::age(seconds)))
    };
    let cwd = |session: &Session| {
        session.cwd.as_deref().map_or(String::new(), |cwd| text::line(&terminal.path(cwd)))
    };
    let mut columns = vec![
        column("HARNESS", false, 2, &|session| text::line(&session.harness)),
        Column {
            title: "ID",
            right: false,
            rank: 0,
            cells: ids.iter().map(|id| shown(id, terminal)).collect(),
        },
        column("STATE", false, 0, &|session| state(session)),
        column("SIZE", true, 0, &|session| text::bytes(session.stored_bytes)),
        column("PARTS", true, 3, &|session| session.parts.to_string()),
        column("STORED", true, 1, &stored),
        column("DIRECTORY", false, 4, &cwd),
    ];
    if sessions.iter().any(|session| session.pending_bytes > 0) {
        let pending = |session: &Session| match session.pending_bytes {
            0 => String::new(),
            bytes => text::bytes(bytes),
        };
        columns.insert(4, column("PENDING", true, 0, &pending));
    }
    columns
}

/// Shortens the last column, then leaves columns out, until a line fits.
fn fit(columns: &mut Vec<Column>, room: usize) {
    loop {
        let others: usize =
            columns.iter().filter(|c| c.title != "DIRECTORY").map(|c| c.width() + GAP.len()).sum();
        let left = room.saturating_sub(others);
        match columns.last_mut() {
            Some(last) if last.title == "DIRECTORY" && left >= CWD_COLUMNS_MIN => {
                for cell in &mut last.cells {
                    *cell = text::shorten_left(cell, left);
                }
                return;
            }
            // Without the last column its gap is not needed either.
            Some(last) if last.title != "DIRECTORY" && others <= room + GAP.len() => return,
            _ => {}
        }
        let Some(least) = (0..columns.len()).max_by_key(|at| columns[*at].rank) else { return };
        if columns[least].rank == 0 {
            return;
        }
        columns.remove(least);
    }
}

impl Column {
    fn width(&self) -> usize {
        let cells = self.cells.iter().map(|cell| text::columns(cell));
        cells.max().unwrap_or(0).max(self.title.len())
    }
}

fn table(columns: &[Column], sessions: &[&Session], terminal: &Terminal) -> String {
    let line = |cell: &dyn Fn(&Column) -> (Ink, String)| {
        let mut line = String::new();
        for (at, column) in columns.iter().enumerate() {
            let (ink, cell) = cell(column);
            let fill = " ".repeat(column.width() - text::columns(&cell));
            let cell = terminal.paint(ink, &cell);
            let last = at + 1 == columns.len();
            match (column.right, last) {
                (true, _) => line.push_str(&format!("{fill}{cell}")),
                (false, false) => line.push_str(&format!("{cell}{fill}")),
                (false, true) => line.push_str(&cell),
            }
            if !last {
                line.push_str(GAP);
            }
        }
        line.truncate(line.trim_end().len());
        line + "\n"
    };
    let mut out = line(&|column| (Ink::Faint, column.title.to_owned()));
    for (at, session) in sessions.iter().enumerate() {
        out.push_str(&line(&|column| (ink(column, session), column.cells[at].clone())));
    }
    out
}

fn ink(column: &Column, session: &Session) -> Ink {
    match (column.title, session.state) {
        ("STATE", _) if session.problem.is_some() => Ink::Bad,
        ("STATE", _) if session.excluded => Ink::Faint,
        ("STATE", SessionState::Live) => Ink::Good,
        ("PENDING", _) => Ink::Warn,
        (_, SessionState::Superseded) => Ink::Faint,
        ("ID", _) => Ink::Strong,
        _ => Ink::Plain,
    }
}

fn state(session: &Session) -> String {
    let mark = if session.problem.is_some() { " !" } else { "" };
    format!("{}{mark}", super::session::standing(session))
}

/// For each session the shortest text that the daemon takes for this one and no other.
///
/// Generations and sub-agents count only when they are typed: they make no prefix ambiguous. Of theirs, what stands before the
/// mark is shortened, and the sub-agent's own half. An OpenClaw id is known by what follows its agent, too. An id that two
/// harnesses have is shown as a key.
fn prefixes(sessions: &[&Session]) -> Vec<String> {
    let ids: BTreeSet<&str> = sessions.iter().map(|session| session.id.as_str()).collect();
    let mut names: Vec<(&str, &str)> = ids.iter().map(|id| (*id, *id)).collect();
    names.extend(sessions.iter().filter_map(|session| Some((stem(session)?, session.id.as_str()))));
    names.sort_unstable();
    names.dedup();
    let mut halves: Vec<(&str, &str)> = ids.iter().filter_map(|id| self::halves(id)).collect();
    halves.sort_unstable();
    let short = |session: &&Session| {
        let id = session.id.as_str();
        if sessions.iter().filter(|other| other.id == id).count() > 1 {
            return format!("{}/{id}", session.harness);
        }
        let (base, number) = match id.split_once('~') {
            Some((base, _)) => id.split_at(base.len()),
            None => (id, ""),
        };
        let name = stem(session).unwrap_or(base);
        let prefix = match self::halves(base).filter(|_| session.harness != "openclaw") {
            Some(own) => short_halves(own, &halves),
            None if is_of_another(base, &ids) => None,
            None => short_name(name, base, &names),
        };
        prefix.map_or(id.to_owned(), |prefix| prefix + number)
    };
    sessions.iter().map(short).collect()
}

/// The shortest beginning of a name that no other session's has.
fn short_name(name: &str, id: &str, names: &[(&str, &str)]) -> Option<String> {
    let at = names.partition_point(|(other, _)| *other < name);
    let foreign = |(_, owner): &&(&str, &str)| *owner != id && !is_offspring(owner, id);
    // Sorted, so the names that share the longest beginning are the next ones to either side.
    let before = names[..at].iter().rev().find(foreign);
    let after = names[at..].iter().find(foreign);
    let shared = before.into_iter().chain(after).map(|(other, _)| shared_chars(name, other));
    let wanted = (shared.max().unwrap_or(0) + 1).max(PREFIX_CHARS_MIN);
    if wanted > name.chars().count() {
        return None;
    }
    let prefix: String = name.chars().take(wanted).collect();
    // A prefix that has the marks of a generation or a sub-agent might be taken for one.
    (!prefix.contains(['~', '@']) && !prefix.contains("__") && !prefix.ends_with('_'))
        .then_some(prefix)
}

/// The beginning of a sub-agent's parent, and of its own half the shortest that no other of such parents has.
fn short_halves((parent, own): (&str, &str), halves: &[(&str, &str)]) -> Option<String> {
    let at = halves.partition_point(|other| *other < (parent, own));
    let kin = |(other, _): &&(&str, &str)| *other == parent;
    let before = halves[..at].iter().rev().take_while(kin).find(|(_, other)| *other != own);
    let after = halves[at..].iter().take_while(kin).find(|(_, other)| *other != own);
    let shared = before.into_iter().chain(after).map(|(_, other)| shared_chars(own, other));
    let wanted = shared.max().unwrap_or(0) + 1;
    // Two parents that begin alike may have sub-agents of one name, and one name may begin with another.
    let twice = halves[at..].iter().take_while(|other| **other == (parent, own)).count() > 1;
    if twice || wanted > own.chars().count() {
        return None;
    }
    let prefix: String = own.chars().take(wanted.max(PREFIX_CHARS_MIN)).collect();
    (!prefix.contains(['~', '@']) && !prefix.ends_with('_')).then(|| format!("{parent}__{prefix}"))
}

/// The beginning of a sub-agent's parent, and its own half.
fn halves(id: &str) -> Option<(&str, &str)> {
    let (parent, own) = id.rsplit_once("__").filter(|_| !id.contains('~'))?;
    let end = parent.char_indices().nth(PREFIX_CHARS_MIN).map_or(parent.len(), |(at, _)| at);
    let parent = &parent[..end];
    (!own.is_empty() && !parent.contains(['_', '@'])).then_some((parent, own))
}

/// An id in its column: both ends of one that is very long. A key stays, since nothing shorter can be typed.
fn shown(id: &str, terminal: &Terminal) -> String {
    let id = text::line(id);
    match terminal.columns {
        Some(_) if !id.contains('/') => text::shorten_middle(&id, ID_COLUMNS_MAX),
        _ => id,
    }
}

/// What follows the agent in the id of an OpenClaw session.
fn stem(session: &Session) -> Option<&str> {
    (session.harness == "openclaw").then(|| Some(session.id.split_once("__")?.1)).flatten()
}

/// Whether an id is a generation, or a sub-agent of another one of the list.
fn is_of_another(id: &str, ids: &BTreeSet<&str>) -> bool {
    id.contains('~') || id.match_indices("__").any(|(at, _)| ids.contains(&id[..at]))
}

fn is_offspring(id: &str, parent: &str) -> bool {
    id.strip_prefix(parent).is_some_and(|rest| rest.starts_with('~') || rest.starts_with("__"))
}

fn shared_chars(one: &str, other: &str) -> usize {
    one.chars().zip(other.chars()).take_while(|(a, b)| a == b).count()
}
