//! Text for people: hostile characters made harmless, lines wrapped, sizes and ages in words. Knows nothing of what is shown.

use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Text of several lines, from a transcript or a bucket, that a terminal can be shown: what would move the cursor, change
/// the terminal or turn the reading direction is replaced by something visible.
pub(crate) fn block(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\n' => clean.push('\n'),
            '\r' if characters.peek() == Some(&'\n') => {}
            '\t' => clean.push_str("    "),
            _ => push_clean(&mut clean, character),
        }
    }
    clean
}

/// The same for what must stay on one line.
pub(crate) fn line(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for character in text.chars() {
        push_clean(&mut clean, if character == '\t' { ' ' } else { character });
    }
    clean
}

/// Whether a terminal might do something else with a character than to show it.
pub(crate) fn is_hostile(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

fn push_clean(clean: &mut String, character: char) {
    match character {
        // The control pictures have one for each of these.
        '\0'..='\u{1f}' => clean
            .push(char::from_u32(0x2400 + u32::from(character)).expect("U+2400 to U+241F exist")),
        '\u{7f}' => clean.push('\u{2421}'),
        _ if is_hostile(character) => {
            clean.push_str(&format!("<U+{:04X}>", u32::from(character)));
        }
        _ => clean.push(character),
    }
}

/// A path as a word of a shell's command: as it is, or in quotes.
pub(crate) fn shell_word(path: &std::path::Path) -> String {
    let path = path.display().to_string();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@%".contains(c);
    if !path.is_empty() && path.chars().all(is_plain) {
        return path;
    }
    format!("'{}'", path.replace('\'', "'\\''"))
}

/// Columns that a terminal needs for a text.
pub(crate) fn columns(text: &str) -> usize {
    text.width()
}

/// The beginning of a text, with `…` if something is left out.
pub(crate) fn shorten(text: &str, columns_max: usize) -> String {
    if columns(text) <= columns_max {
        return text.to_owned();
    }
    let mut room = columns_max.saturating_sub(1);
    let mut kept = String::new();
    for character in text.chars() {
        let needed = character.width().unwrap_or(0);
        if needed > room {
            break;
        }
        room -= needed;
        kept.push(character);
    }
    kept.push('…');
    kept
}

/// The end of a text: of a path, the part that tells.
pub(crate) fn shorten_left(text: &str, columns_max: usize) -> String {
    if columns(text) <= columns_max {
        return text.to_owned();
    }
    let mut room = columns_max.saturating_sub(1);
    let mut start = text.len();
    for (at, character) in text.char_indices().rev() {
        let needed = character.width().unwrap_or(0);
        if needed > room {
            break;
        }
        room -= needed;
        start = at;
    }
    format!("…{}", &text[start..])
}

/// Both ends of a text: of an id that is put together, of each half something.
pub(crate) fn shorten_middle(text: &str, columns_max: usize) -> String {
    if columns(text) <= columns_max {
        return text.to_owned();
    }
    let end = columns_max / 2;
    let kept = shorten_left(text, end);
    let begin = shorten(text, columns_max - columns(&kept) + 1);
    begin + kept.trim_start_matches('…')
}

/// Wraps lines at spaces; what is between code fences stays as it is, and so does a word that is too long, unless it is
/// of a script that needs no spaces.
pub(crate) fn wrap(text: &str, columns_max: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut fenced = false;
    for line in text.split('\n') {
        let fence = line.trim_start().starts_with("```");
        if fence || fenced || columns(line) <= columns_max {
            lines.push(line.trim_end().to_owned());
        } else {
            wrap_line(line, columns_max, &mut lines);
        }
        fenced ^= fence;
    }
    lines
}

fn wrap_line(line: &str, columns_max: usize, lines: &mut Vec<String>) {
    let body = line.trim_start();
    // A paragraph in a list stays below its own beginning; a very deep one gives up, or no room would be left.
    let indent = " ".repeat((line.len() - body.len()).min(columns_max / 3));
    let mut current = indent.clone();
    let mut empty = true;
    for word in body.split(' ').filter(|word| !word.is_empty()) {
        if !empty && columns(&current) + 1 + columns(word) > columns_max {
            lines.push(std::mem::replace(&mut current, indent.clone()));
            empty = true;
        }
        if !empty {
            current.push(' ');
        }
        empty = false;
        if columns(word) + columns(&current) <= columns_max || word.is_ascii() {
            current.push_str(word);
            continue;
        }
        for character in word.chars() {
            if columns(&current) + character.width().unwrap_or(0) > columns_max {
                lines.push(std::mem::replace(&mut current, indent.clone()));
            }
            current.push(character);
        }
    }
    lines.push(current);
}

/// `0 B`, `1.5 KiB`, `118 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    // What would be rounded to 1024 belongs to the next unit.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(value < 99.95);
    format!("{value:.digits$} {}", UNITS[unit])
}

/// The largest unit alone: `4 s`, `3 min`, `2 h`, `5 days`.
pub(crate) fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Two units: `3 h 12 min`, `5 days 2 h`.
pub(crate) fn duration(seconds: u64) -> String {
    match seconds {
        0..3600 => age(seconds),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => {
            format!("{} {} h", count(seconds / 86_400, "day", "days"), seconds % 86_400 / 3600)
        }
    }
}

/// `1 part`, `2 parts`.
pub(crate) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown_instead() {
        assert_eq!(line("a\u{1b}]0;x\u{7}b\n\u{7f}\r\tz"), "a␛]0;x␇b␊␡␍ z");
        assert_eq!(line("\u{9b}2J\u{202e}evil\u{2066}"), "<U+009B>2J<U+202E>evil<U+2066>");
        assert_eq!(block("a\r\nb\rc\n\td\u{1b}[31m"), "a\nb␍c\n    d␛[31m");
        assert_eq!(line("Grüße 数据 🦀 e\u{301}"), "Grüße 数据 🦀 e\u{301}");
    }

    #[test]
    fn nothing_hostile_passes_whatever_the_character() {
        let all: String = (0..=0x0010_ffff).filter_map(char::from_u32).collect();
        assert!(!line(&all).chars().any(is_hostile));
        assert!(!block(&all).chars().any(|c| c != '\n' && is_hostile(c)));
    }

    #[test]
    fn shortened_text_fits_its_columns() {
        assert_eq!(shorten("abcdef", 6), "abcdef");
        assert_eq!(shorten("abcdefg", 6), "abcde…");
        assert_eq!(shorten("数据数据", 6), "数据…");
        assert_eq!(shorten_left("/home/me/project", 8), "…project");
        assert_eq!(shorten_left("数据数据", 6), "…数据");
        assert_eq!(shorten_middle("abcdefgh", 8), "abcdefgh");
        assert_eq!(shorten_middle("abcdefghi", 8), "abcd…ghi");
        for room in 1..12 {
            assert!(columns(&shorten("数据数据数据", room)) <= room);
            assert!(columns(&shorten_left("数据数据数据", room)) <= room);
            assert!(columns(&shorten_middle("数据数据数据", room)) <= room.max(2));
        }
    }

    #[test]
    fn lines_break_at_spaces_and_code_is_left_alone() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("  - one two three", 10), ["  - one", "  two", "  three"]);
        assert_eq!(wrap("https://example.org/long x", 10), ["https://example.org/long", "x"]);
        assert_eq!(wrap("数据数据数据", 8), ["数据数据", "数据"]);
        let code = "```\nlet a = long line of code;\n```\nlong words\n";
        let kept = ["```", "let a = long line of code;", "```", "long", "words", ""];
        assert_eq!(wrap(code, 8), kept);
    }

    #[test]
    fn a_path_in_a_command_is_one_word_whatever_is_in_it() {
        for (path, word) in [
            ("/home/me/.codex", "/home/me/.codex"),
            ("/home/me/a b", "'/home/me/a b'"),
            ("/it's; rm -rf $HOME", "'/it'\\''s; rm -rf $HOME'"),
            ("", "''"),
        ] {
            assert_eq!(shell_word(path.as_ref()), word);
        }
    }

    #[test]
    fn sizes_and_ages_read_well() {
        let sizes = [0, 1023, 1024, 1536, 102_400, 1_048_525, 1_048_576, u64::MAX];
        let words =
            ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "100 KiB", "1.0 MiB", "1.0 MiB", "16.0 EiB"];
        assert_eq!(sizes.map(bytes), words);
        assert_eq!([0, 59, 60, 7199, 172_800].map(age), ["0 s", "59 s", "1 min", "1 h", "2 days"]);
        assert_eq!([61, 11_520, 90_000].map(duration), ["1 min", "3 h 12 min", "1 day 1 h"]);
    }
}
