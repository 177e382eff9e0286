//! `doctor`: the answer first, then a line for each check, and below what is not ok the one thing to try.

use crate::doctor::{Check, Checks, Verdict};
use crate::terminal::{Ink, Terminal};
use crate::text;

/// Width of the column of verdicts.
const VERDICT_COLUMNS: usize = 7;

/// Least width of the column of what was found; a narrower terminal wraps by itself.
const MESSAGE_COLUMNS_MIN: usize = 20;

/// The whole answer.
pub(crate) fn text(checks: &Checks, terminal: &Terminal) -> String {
    let mut out = headline(checks, terminal);
    out.push('\n');
    let code_columns = checks.checks.iter().map(|check| check.code.name().len()).max().unwrap_or(0);
    for check in &checks.checks {
        out.push_str(&line(check, code_columns, terminal));
    }
    out
}

fn headline(checks: &Checks, terminal: &Terminal) -> String {
    let count = |verdict| checks.checks.iter().filter(|it| it.verdict == verdict).count() as u64;
    let (wrong, warnings) = (count(Verdict::Wrong), count(Verdict::Warning));
    let notes = count(Verdict::Note);
    let worst = checks.checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok);
    let said = match worst {
        Verdict::Ok | Verdict::Note => "nothing is wrong".to_owned(),
        Verdict::Warning => "nothing is wrong, but look at what may be".to_owned(),
        Verdict::Wrong => text::count(wrong, "thing is wrong", "things are wrong"),
    };
    let mut rest = Vec::new();
    if warnings > 0 {
        rest.push(text::count(warnings, "warning", "warnings"));
    }
    if notes > 0 {
        rest.push(text::count(notes, "note", "notes"));
    }
    let rest = if rest.is_empty() { String::new() } else { format!(" ({})", rest.join(", ")) };
    let said = terminal.paint(Ink::Strong, &said);
    format!("{} {said}{rest}\n", terminal.paint(ink(worst), "●"))
}

fn ink(verdict: Verdict) -> Ink {
    match verdict {
        Verdict::Ok => Ink::Good,
        Verdict::Note => Ink::Faint,
        Verdict::Warning => Ink::Warn,
        Verdict::Wrong => Ink::Bad,
    }
}

fn line(check: &Check, code_columns: usize, terminal: &Terminal) -> String {
    let word = match check.verdict {
        Verdict::Ok => "ok",
        Verdict::Note => "note",
        Verdict::Warning => "warning",
        Verdict::Wrong => "wrong",
    };
    let word = terminal.paint(ink(check.verdict), &format!("{word:<VERDICT_COLUMNS$}"));
    let code = format!("{:<code_columns$}", check.code.name());
    let indent = 2 + VERDICT_COLUMNS + 2 + code_columns + 2;
    let message = text::line(&check.message);
    let lines = match terminal.columns {
        Some(columns) => {
            let room = columns.saturating_sub(indent).max(MESSAGE_COLUMNS_MIN);
            text::wrap(&message, room)
        }
        None => vec![message],
    };
    let gap = " ".repeat(indent);
    let mut out = format!("  {word}  {code}  {}\n", lines.first().map_or("", String::as_str));
    for more in lines.iter().skip(1) {
        out.push_str(&format!("{gap}{more}\n"));
    }
    if let Some(hint) = &check.hint {
        // Never wrapped here: a terminal's own wrapping leaves a command whole for whoever copies it.
        out.push_str(&format!("{gap}try: {}\n", text::line(hint)));
    }
    out
}
