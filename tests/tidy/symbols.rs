//! Names of code in `daemon/ARCHITECTURE.md`: a page that names what is gone misleads whoever reads it.
//!
//! Finds names in backticks and asks whether the sources have them. Knows nothing of what they mean: a method counts as a
//! type's when one file defines the one and names the other.

use std::collections::BTreeSet;

use super::Violation;
use super::lex::{Token, tokens};

/// Words that begin a definition.
const KEYWORDS: &[&str] = &["fn", "struct", "enum", "trait", "const", "mod", "type", "static"];

/// What the sources have.
#[derive(Debug, Default)]
pub(super) struct Symbols {
    words: BTreeSet<String>,
    files: Vec<File>,
}

#[derive(Debug)]
struct File {
    /// Its words, and the names of the modules that it is in.
    named: BTreeSet<String>,
    defined: BTreeSet<String>,
}

impl Symbols {
    pub(super) fn read(&mut self, file: &str, source: &str) {
        let tokens = tokens(source);
        let modules = file.strip_suffix(".rs").unwrap_or(file).split('/').map(str::to_owned);
        let words: BTreeSet<String> = tokens.iter().map(|token| token.text.clone()).collect();
        self.words.extend(words.iter().cloned());
        let defined = tokens.windows(3).filter(|next| defines(next)).map(|next| &next[1].text);
        // A file is a module, too.
        let defined = defined.cloned().chain(modules.clone()).collect();
        self.files.push(File { named: words.into_iter().chain(modules).collect(), defined });
    }

    fn has(&self, path: &[&str]) -> bool {
        match path {
            [word] => self.words.contains(*word),
            [.., of, name] => {
                let has = |file: &File| file.named.contains(*of) && file.defined.contains(*name);
                self.files.iter().any(has)
            }
            [] => true,
        }
    }
}

/// Whether the one in the middle is defined there: an item, a field, or a variant.
fn defines(next: &[Token]) -> bool {
    let [before, _, after] = next else { return false };
    KEYWORDS.contains(&before.text.as_str())
        || after.text == ":"
        || (["{", ",", "]"].contains(&before.text.as_str())
            && ["(", "{", ","].contains(&after.text.as_str()))
}

/// Names on a page that no source has.
pub(super) fn check(file: &str, page: &str, symbols: &Symbols) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut fenced = false;
    for (number, line) in page.lines().enumerate() {
        fenced ^= line.starts_with("```");
        // Every second piece stands between backticks.
        for span in line.split('`').skip(1).step_by(2).filter(|_| !fenced) {
            let path: Vec<&str> = span.split("::").collect();
            if is_symbol(&path) && !symbols.has(&path) {
                let rule = format!("`{span}` is in no source any more");
                found.push(Violation { file: file.to_owned(), line: number + 1, rule });
            }
        }
    }
    found
}

/// A path, a type, or a constant. A lone word in lower case may be anything.
fn is_symbol(path: &[&str]) -> bool {
    let is_word = |word: &&str| {
        word.starts_with(|c: char| c.is_ascii_alphabetic())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let [word] = path else { return path.iter().all(is_word) };
    let big = word.starts_with(|c: char| c.is_ascii_uppercase());
    is_word(word) && big && (word.contains('_') || word.contains(|c: char| c.is_lowercase()))
}
