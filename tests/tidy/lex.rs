//! Rust as the rules need it: words and punctuation with their lines, comments apart, literals gone; and the paths in it.
//!
//! Not a parser. It knows enough to tell code from comments and strings, and to expand `use` groups.

/// A word, or one character of punctuation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) line: usize,
    pub(super) text: String,
}

/// A path as it is written, groups expanded: `use a::{b, c::d}` is `a::b` and `a::c::d`. Of one that is called upon in an inline
/// module, `inside` names that module.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) line: usize,
    pub(super) path: Vec<String>,
    pub(super) inside: Vec<String>,
}

/// The words and punctuation of a source, without comments and literals.
pub(super) fn tokens(source: &str) -> Vec<Token> {
    let text: Vec<char> = source.chars().collect();
    let (mut found, mut at, mut line) = (Vec::new(), 0, 1);
    while at < text.len() {
        let end = match text[at] {
            '/' if text[at..].starts_with(&['/', '/']) => end_of_line(&text, at),
            '/' if text[at..].starts_with(&['/', '*']) => end_of_block(&text, at),
            '"' => end_of_string(&text, at),
            '\'' => end_of_char(&text, at),
            c if is_word(c) => {
                let end = at + text[at..].iter().take_while(|&&c| is_word(c)).count();
                match end_of_raw(&text, at, end) {
                    Some(end) => end,
                    None => {
                        found.push(Token { line, text: text[at..end].iter().collect() });
                        end
                    }
                }
            }
            c => {
                if !c.is_whitespace() {
                    found.push(Token { line, text: c.to_string() });
                }
                at + 1
            }
        };
        line += text[at..end].iter().filter(|&&c| c == '\n').count();
        at = end;
    }
    found
}

/// Every path of two or more words.
pub(super) fn paths(tokens: &[Token]) -> Vec<Named> {
    let mut found = Vec::new();
    // Of each open brace: the module that it opens, if it does.
    let mut open: Vec<Option<String>> = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let inside: Vec<String> = open.iter().flatten().cloned().collect();
        match tokens[at].text.as_str() {
            "{" => {
                let module = at.checked_sub(2).filter(|&before| tokens[before].text == "mod");
                open.push(module.map(|_| tokens[at - 1].text.clone()));
                at += 1;
            }
            "}" => {
                open.pop();
                at += 1;
            }
            _ if is_path(tokens, at) => at = tree(tokens, at, &[], &inside, &mut found),
            _ => at += 1,
        }
    }
    found
}

/// Reads a path with its groups from `at`, and answers where it ends.
fn tree(
    tokens: &[Token],
    mut at: usize,
    before: &[String],
    inside: &[String],
    found: &mut Vec<Named>,
) -> usize {
    let line = tokens[at].line;
    let mut path = before.to_vec();
    path.push(tokens[at].text.clone());
    while at + 3 < tokens.len() && tokens[at + 1].text == ":" && tokens[at + 2].text == ":" {
        at += 3;
        let next = &tokens[at].text;
        if next == "{" {
            at += 1;
            while at < tokens.len() && tokens[at].text != "}" {
                let part = &tokens[at].text;
                at = match part.as_str() {
                    "as" => at + 2, // the new name is no path
                    part if part == "*" || part.chars().all(is_word) => {
                        tree(tokens, at, &path, inside, found)
                    }
                    _ => at + 1,
                };
            }
            return at + 1;
        }
        if next != "*" && !next.chars().all(is_word) {
            break; // `::<T>` and the like: what is within is read on its own
        }
        path.push(next.clone());
    }
    found.push(Named { line, path, inside: inside.to_vec() });
    at + 1
}

fn is_path(tokens: &[Token], at: usize) -> bool {
    let colon = |at: usize| tokens.get(at).is_some_and(|token| token.text == ":");
    tokens[at].text.chars().all(is_word) && colon(at + 1) && colon(at + 2)
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn end_of_line(text: &[char], at: usize) -> usize {
    at + text[at..].iter().take_while(|&&c| c != '\n').count()
}

fn end_of_block(text: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < text.len() {
        let (step, change) = match &text[at..] {
            ['/', '*', ..] => (2, 1),
            ['*', '/', ..] => (2, -1),
            _ => (1, 0),
        };
        at += step;
        depth += change;
        if depth == 0 {
            break;
        }
    }
    at
}

fn end_of_string(text: &[char], at: usize) -> usize {
    let mut at = at + 1;
    while at < text.len() && text[at] != '"' {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

/// A character, or the quote of a lifetime.
fn end_of_char(text: &[char], at: usize) -> usize {
    match text[at..] {
        ['\'', '\\', _, ..] => {
            let rest = text[at + 3..].iter().take_while(|&&c| c != '\'').count();
            (at + 3 + rest + 1).min(text.len())
        }
        ['\'', _, '\'', ..] => at + 3,
        _ => at + 1,
    }
}

/// Where a string ends whose prefix (`r`, `br`, `cr` with or without `#`) is the word from `at` to `end`. The other prefixes need
/// nothing: the string comes next.
fn end_of_raw(text: &[char], at: usize, end: usize) -> Option<usize> {
    let prefix: String = text[at..end].iter().collect();
    if !matches!(prefix.as_str(), "r" | "br" | "cr") {
        return None;
    }
    let hashes = text[end..].iter().take_while(|&&c| c == '#').count();
    let begin = end + hashes + 1;
    if text.get(begin - 1) != Some(&'"') {
        return None; // `r#type`, or a name
    }
    let mut close = vec!['"'];
    close.resize(hashes + 1, '#');
    let length = text[begin..].windows(close.len()).position(|window| window == close.as_slice());
    Some(length.map_or(text.len(), |length| begin + length + close.len()))
}
