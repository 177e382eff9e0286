//! `verify`: a line of progress on standard error, sessions with findings as they come, the sums at the end.

use tracecraft::api::{Finding, Verdict, Verified, VerifiedSums, Weight};

use super::{fitted, marked};
use crate::failure::Failure;
use crate::terminal::{Ink, Terminal};
use crate::text;

/// What the bar shows while it works.
pub(crate) const METER: &str = "verifying {wide_bar} {pos} of {len} sessions, {msg} read";

/// A session with what was found. One with which all is well is left out, unless it was asked for by name (`asked`); then
/// notes are told, too.
pub(crate) fn session(session: &Verified, asked: bool, terminal: &Terminal) -> String {
    let is_told = |f: &&Finding| asked || f.weight != Weight::Note;
    let told: Vec<&Finding> = session.findings.iter().filter(is_told).collect();
    if told.is_empty() && !asked {
        return String::new();
    }
    let (ink, verdict) = match session.verdict {
        Verdict::Fine => (Ink::Good, "fine"),
        Verdict::Wrong => (Ink::Bad, "WRONG"),
        Verdict::Unchecked => (Ink::Warn, "could not be checked"),
    };
    let name = match session.harness.as_str() {
        "" => "the bucket's listing".to_owned(),
        harness => format!("{}/{}", text::line(harness), text::line(&session.id)),
    };
    let mut out = format!("{name}: {}", terminal.paint(ink, verdict));
    let mut counts = format!(
        " ({} read, {}",
        text::count(session.parts, "part", "parts"),
        text::bytes(session.bytes)
    );
    if session.waiting_parts > 0 {
        counts.push_str(&format!("; {} in the outbox", session.waiting_parts));
    }
    out.push_str(&terminal.paint(Ink::Faint, &(counts + ")")));
    out.push('\n');
    told.iter().for_each(|found| out.push_str(&finding(found, terminal)));
    if session.more_findings > 0 {
        out.push_str(&format!("  … and {} more\n", session.more_findings));
    }
    out
}

fn finding(found: &Finding, terminal: &Terminal) -> String {
    let mark = match found.weight {
        Weight::Wrong => terminal.paint(Ink::Bad, "!"),
        Weight::Unchecked => terminal.paint(Ink::Warn, "?"),
        Weight::Mended => terminal.paint(Ink::Good, "+"),
        Weight::Note => terminal.paint(Ink::Faint, "-"),
    };
    let (object, message) = (text::line(&found.object), text::line(&found.message));
    let mut out = marked(&mark, &format!("{object} {message}"), "  ", terminal) + "\n";
    let mut below = |words: String| out.push_str(&(fitted(&words, terminal) + "\n"));
    if let (Some(expected), Some(is)) = (&found.expected, &found.found) {
        below(format!("    expected {}, found {}", text::line(expected), text::line(is)));
    }
    if let Some(hint) = &found.hint {
        below(format!("    try: {}", text::line(hint)));
    }
    out
}

/// The last lines.
pub(crate) fn sums(sums: &VerifiedSums, terminal: &Terminal) -> String {
    let VerifiedSums { sessions, fine, wrong, unchecked, unknown, parts, bytes, waiting_parts } =
        *sums;
    let mut out = format!(
        "verified {}: {}, {} read\n",
        text::count(sessions, "session", "sessions"),
        text::count(parts, "part", "parts"),
        text::bytes(bytes),
    );
    if fine == sessions {
        out.push_str(&(terminal.paint(Ink::Good, "nothing is wrong") + "\n"));
    } else {
        let mut words = vec![format!("{fine} fine")];
        if wrong > 0 {
            words.push(terminal.paint(Ink::Bad, &format!("{wrong} wrong")));
        }
        if unchecked > 0 {
            words.push(terminal.paint(Ink::Warn, &format!("{unchecked} could not be checked")));
        }
        out.push_str(&(words.join(", ") + "\n"));
    }
    if unknown > 0 {
        out.push_str(&format!("{unknown} of them are not recorded by this daemon\n"));
    }
    if waiting_parts > 0 {
        let parts = text::count(waiting_parts, "part waits", "parts wait");
        out.push_str(&format!("{parts} in the outbox: captured, not stored yet\n"));
    }
    out
}

/// Why the exit code is not 0; `None`: it is.
pub(crate) fn failure(sums: &VerifiedSums) -> Option<Failure> {
    let VerifiedSums { sessions, wrong, unchecked, .. } = *sums;
    let of = text::count(sessions, "session", "sessions");
    match (wrong, unchecked) {
        (0, 0) => None,
        (0, unchecked) => Some(Failure::failed(format!(
            "{unchecked} of {of} could not be checked; nothing that was checked is wrong"
        ))),
        (wrong, 0) => Some(Failure::failed(format!("something is wrong with {wrong} of {of}"))),
        (wrong, unchecked) => Some(Failure::failed(format!(
            "something is wrong with {wrong} of {of}, and {unchecked} could not be checked"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tracecraft::api::{ErrorBody, ErrorCode, Verifying};

    use crate::render::json_line;
    use crate::render::tests::{golden, terminal};
    use tracecraft::api::exit;

    fn found(weight: Weight, object: &str, message: &str) -> Finding {
        Finding {
            code: "code".into(),
            weight,
            object: object.into(),
            message: message.into(),
            expected: None,
            found: None,
            hint: None,
        }
    }

    fn verified(verdict: Verdict, findings: Vec<Finding>) -> Verified {
        Verified {
            harness: "codex".into(),
            id: "01a2".into(),
            known: true,
            verdict,
            parts: 3,
            bytes: 4096,
            waiting_parts: 1,
            findings,
            more_findings: 0,
        }
    }

    #[test]
    fn a_person_reads_which_object_is_wrong_what_should_be_there_and_what_to_do() {
        let wrong = Finding {
            expected: Some("407 bytes".into()),
            found: Some("400 bytes".into()),
            hint: Some("put it back".into()),
            ..found(Weight::Wrong, "sessions/codex/01a2/part-00000-7dca7a2b.jsonl", "is too short")
        };
        let hostile = found(Weight::Unchecked, "a\u{1b}[2Jb", "could not be checked");
        let mended = found(Weight::Mended, "sessions/codex/01a2/meta.json", "was rebuilt");
        let note = found(Weight::Note, "sessions/codex/01a2/x", "is not ours");
        let all = verified(Verdict::Wrong, vec![wrong, hostile, mended, note.clone()]);
        let more = Verified { more_findings: 12, ..all };
        let fine = verified(Verdict::Fine, vec![note]);
        let sums_of = |fine, wrong, unchecked| VerifiedSums {
            sessions: fine + wrong + unchecked,
            fine,
            wrong,
            unchecked,
            unknown: wrong,
            parts: 20,
            bytes: 1 << 20,
            waiting_parts: unchecked,
        };
        let t = terminal(None);
        assert_eq!(
            session(&fine, false, &t),
            "",
            "what is fine is not told unless it was asked for"
        );
        let told = [session(&more, false, &t), session(&fine, true, &t)].concat()
            + &sums(&sums_of(5, 1, 2), &t)
            + &sums(&sums_of(5, 0, 0), &t);
        golden("verify.txt", &told);
        for columns in [40, 60, 80] {
            let several = |line: &str| line.split_whitespace().count() > 2;
            let long = |line: &&str| text::columns(line) > columns && several(line);
            let narrow = session(&more, false, &terminal(Some(columns)));
            let mut findings = narrow.lines().skip(1);
            assert_eq!(findings.find(long), None, "{columns} columns");
        }
        let events = [
            Verifying::Working { done_sessions: 1, total_sessions: 2, done_bytes: 4096 },
            Verifying::Session { session: more },
            Verifying::Done { sums: sums_of(1, 1, 0) },
            Verifying::Failed {
                error: ErrorBody {
                    code: ErrorCode::Busy,
                    message: "a verification is under way".into(),
                    hint: None,
                },
            },
        ];
        let lines: String = events.iter().map(|event| json_line(event) + "\n").collect();
        golden("verify.jsonl", &lines);
    }

    #[test]
    fn the_exit_code_is_0_only_if_everything_was_checked_and_nothing_is_wrong() {
        let sums = |wrong, unchecked| VerifiedSums {
            sessions: 9,
            wrong,
            unchecked,
            ..VerifiedSums::default()
        };
        assert!(failure(&sums(0, 0)).is_none());
        for (wrong, unchecked, words) in [
            (1, 0, "something is wrong with 1 of 9 sessions"),
            (0, 1, "1 of 9 sessions could not be checked; nothing that was checked is wrong"),
            (2, 3, "something is wrong with 2 of 9 sessions, and 3 could not be checked"),
        ] {
            let failed = failure(&sums(wrong, unchecked)).expect("it fails");
            assert_eq!(failed.exit(), exit::FAILED);
            assert!(failed.text().contains(words), "{}", failed.text());
        }
    }
}
