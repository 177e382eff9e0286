//! Which sessions are followed: include and exclude rules by harness and working directory.
//!
//! A session is followed if no exclude rule matches it and there are no include rules or one of them matches. Knows names and
//! paths; refuses to know how a session's working directory is found.

use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};

use super::values::{Bad, nearest};

/// Harnesses that a rule may name. A misspelt one would silently exclude nothing, hence the list.
const HARNESSES: [&str; 4] = ["claude-code", "codex", "openclaw", "hermes"];

/// What the rules say about a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Followed.
    Follow,
    /// Left out.
    Exclude,
    /// A rule on the working directory would decide, and the directory is not known yet. Nothing may be captured until it is.
    NeedsCwd,
}

/// All rules of a configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Rules {
    pub(super) include: Vec<Rule>,
    pub(super) exclude: Vec<Rule>,
}

/// One `[[include]]` or `[[exclude]]` table. Both conditions hold, or the one that is given.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rule {
    pub(super) harness: Option<&'static str>,
    pub(super) cwd: Option<CwdPattern>,
}

impl Rules {
    /// Whether a session is followed. `cwd` is `None` while it is unknown.
    pub(crate) fn decide(&self, harness: &str, cwd: Option<&str>) -> Decision {
        let excluded = any(&self.exclude, harness, cwd);
        let included =
            if self.include.is_empty() { Some(true) } else { any(&self.include, harness, cwd) };
        match (excluded, included) {
            (Some(true), _) | (_, Some(false)) => Decision::Exclude,
            (Some(false), Some(true)) => Decision::Follow,
            _ => Decision::NeedsCwd,
        }
    }

    /// Whether there is no rule at all.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty()
    }
}

/// Whether any rule matches; `None` when that depends on the directory.
fn any(rules: &[Rule], harness: &str, cwd: Option<&str>) -> Option<bool> {
    let mut answer = Some(false);
    for rule in rules {
        match rule.matches(harness, cwd) {
            Some(true) => return Some(true),
            Some(false) => {}
            None => answer = None,
        }
    }
    answer
}

impl Rule {
    fn matches(&self, harness: &str, cwd: Option<&str>) -> Option<bool> {
        if self.harness.is_some_and(|wanted| wanted != harness) {
            return Some(false);
        }
        match &self.cwd {
            None => Some(true),
            Some(pattern) => cwd.map(|cwd| pattern.covers(cwd)),
        }
    }

    /// The rule as one line for people.
    pub(super) fn describe(&self) -> String {
        let harness = self.harness.map(|name| format!("harness {name}"));
        let cwd = self.cwd.as_ref().map(|pattern| format!("cwd {}", pattern.given));
        [harness, cwd].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// The harness of that name.
pub(super) fn harness(name: &str) -> Result<&'static str, Bad> {
    let known = HARNESSES.into_iter().find(|known| *known == name);
    known.ok_or_else(|| {
        let hint = match nearest(name, &HARNESSES) {
            Some(meant) => format!("did you mean {meant}?"),
            None => format!("write one of {}", HARNESSES.join(", ")),
        };
        Bad::new("is not the name of a harness", hint)
    })
}

/// A glob of directories; each of them and everything below it is covered. Someone who excludes `~/secret/**` also means
/// `~/secret`, and someone who excludes `~/secret` also means what is below it.
#[derive(Debug, Clone)]
pub(crate) struct CwdPattern {
    given: String,
    globs: Vec<GlobMatcher>,
}

impl PartialEq for CwdPattern {
    fn eq(&self, other: &CwdPattern) -> bool {
        self.given == other.given
    }
}

impl CwdPattern {
    /// Parses a pattern. `~/` is the home directory.
    pub(super) fn parse(given: &str, home: &Path) -> Result<CwdPattern, Bad> {
        let example = "write an absolute directory, for example \"~/secret\" or \"/srv/*/private\"";
        let whole = match given.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                format!("{}{rest}", globset::escape(&home.to_string_lossy()))
            }
            _ => given.to_owned(),
        };
        if !whole.starts_with('/') && !whole.starts_with("**/") {
            return Err(Bad::new("is not an absolute directory", example));
        }
        let mut base = whole.as_str();
        while let Some(shorter) = base.strip_suffix("/**").or_else(|| base.strip_suffix('/')) {
            base = shorter;
        }
        let mut globs = vec![base.to_owned()];
        globs.extend(real(base).filter(|real| real != base));
        let mut compiled = Vec::new();
        for glob in globs {
            let itself = if glob.is_empty() { "/".to_owned() } else { glob.clone() };
            for glob in [itself, format!("{glob}/**")] {
                let glob = GlobBuilder::new(&glob).literal_separator(true).build();
                let glob = glob.map_err(|error| Bad::new(error.kind().to_string(), example))?;
                compiled.push(glob.compile_matcher());
            }
        }
        Ok(CwdPattern { given: given.to_owned(), globs: compiled })
    }

    fn covers(&self, cwd: &str) -> bool {
        let cwd = tidy(cwd);
        self.globs.iter().any(|glob| glob.is_match(&cwd))
    }
}

/// The pattern with links resolved in its leading directories: agents record the real path of their working directory, and
/// people write the one with the link. Links that appear later are not seen; a reload sees them.
fn real(pattern: &str) -> Option<String> {
    let special = pattern.find(['*', '?', '[', ']', '{', '}', '\\']).unwrap_or(pattern.len());
    let end = if special == pattern.len() { special } else { pattern[..special].rfind('/')? };
    let (leading, rest) = pattern.split_at(end);
    let real = std::fs::canonicalize(leading).ok()?;
    Some(format!("{}{rest}", globset::escape(real.to_str()?)))
}

/// A path with `//`, `/./`, `/../` and trailing slashes taken out by its text alone, so that no spelling of a directory
/// slips past a rule.
fn tidy(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}
