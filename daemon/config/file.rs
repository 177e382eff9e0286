//! The configuration file: read with suspicion, parsed strictly, every value with its line.
//!
//! Knows TOML, keys and tables; leaves the grammar of values to [`super::values`] and precedence to [`super`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::rules::{self, CwdPattern, Rule, Rules};
use super::values::{Bad, nearest};
use super::{ConfigError, KEYS, Key};
use crate::paths::CONFIG_BYTES_MAX;

/// Names of the two kinds of rule tables.
const RULE_TABLES: [&str; 2] = ["include", "exclude"];

/// Keys of a rule.
const RULE_KEYS: [&str; 2] = ["harness", "cwd"];

/// A configuration file's content, keys known, values not yet parsed.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct FileContent {
    /// Value and line by key.
    values: BTreeMap<&'static str, (Value, usize)>,
    /// The rules.
    pub(super) rules: Rules,
}

/// A value of a type that some key has.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// A string.
    Text(String),
    /// `true` or `false`.
    Flag(bool),
}

impl FileContent {
    /// Value and line of a key.
    pub(super) fn get(&self, key: &Key) -> Option<&(Value, usize)> {
        self.values.get(key.name)
    }
}

/// Reads and parses a file; `None` when there is none.
pub(super) fn read(path: &Path, home: &Path) -> Result<Option<FileContent>, ConfigError> {
    match read_text(path)? {
        Some(text) => Parser { path, text: &text, home }.parse().map(Some),
        None => Ok(None),
    }
}

fn read_text(path: &Path) -> Result<Option<String>, ConfigError> {
    let cannot_read =
        |error: io::Error| ConfigError::io("cannot read the configuration", path, error);
    // Asked before opening, because opening a FIFO would wait for its writer. What counts is asked of the open file.
    match std::fs::metadata(path) {
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(cannot_read(error)),
        Ok(meta) if !meta.is_file() => {
            let message = format!("the configuration {} is not a regular file", path.display());
            return Err(ConfigError::new(message, "name a file with --config"));
        }
        Ok(_) => {}
    }
    let file = File::open(path).map_err(cannot_read)?;
    check_writers(path, &file.metadata().map_err(cannot_read)?)?;
    let mut bytes = Vec::new();
    file.take(CONFIG_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(cannot_read)?;
    if bytes.len() as u64 > CONFIG_BYTES_MAX {
        let message = format!("the configuration {} is larger than 1 MiB", path.display());
        return Err(ConfigError::new(message, "name the right file with --config"));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| {
        let message = format!("the configuration {} is not UTF-8 text", path.display());
        ConfigError::new(message, "save it as UTF-8")
    })
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Whoever can write the configuration chooses where transcripts go and whether secrets are removed. Root may anyway, and
/// owns the files of some package managers.
fn check_writers(path: &Path, meta: &std::fs::Metadata) -> Result<(), ConfigError> {
    let shown = path.display();
    let owner = meta.uid();
    if owner != rustix::process::geteuid().as_raw() && owner != 0 {
        let message = format!("the configuration {shown} belongs to another user (uid {owner})");
        return Err(ConfigError::new(message, "use a file of your own"));
    }
    if meta.mode() & 0o022 != 0 {
        let message = format!("other users can write the configuration {shown}");
        return Err(ConfigError::new(message, format!("run: chmod go-w {shown}")));
    }
    Ok(())
}

struct Parser<'a> {
    path: &'a Path,
    text: &'a str,
    home: &'a Path,
}

impl Parser<'_> {
    fn parse(&self) -> Result<FileContent, ConfigError> {
        let table = DeTable::parse(self.text).map_err(|error| {
            // The error's own display would repeat the line, and the line may hold what should not be repeated.
            let line = error.span().map_or(1, |span| self.line(span.start));
            let message = format!("{}: {}", self.at(line), error.message());
            ConfigError::new(message, "see https://toml.io for the syntax")
        })?;
        let mut content = FileContent::default();
        for (name, value) in table.get_ref() {
            let line = self.line(name.span().start);
            if let Some(key) = KEYS.iter().find(|key| key.name == name.get_ref().as_ref()) {
                content.values.insert(key.name, (self.value(key, line, value)?, line));
                continue;
            }
            match name.get_ref().as_ref() {
                "include" => content.rules.include = self.rules("include", line, value)?,
                "exclude" => content.rules.exclude = self.rules("exclude", line, value)?,
                other => {
                    let known: Vec<&str> =
                        KEYS.iter().map(|key| key.name).chain(RULE_TABLES).collect();
                    return Err(self.unknown_key(line, other, &known));
                }
            }
        }
        Ok(content)
    }

    fn value(
        &self,
        key: &Key,
        line: usize,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Value, ConfigError> {
        let wants_flag = matches!(key.example, "true" | "false");
        match value.get_ref() {
            DeValue::String(text) if !wants_flag => Ok(Value::Text(text.to_string())),
            DeValue::Boolean(flag) if wants_flag => Ok(Value::Flag(*flag)),
            other => {
                let wanted = if wants_flag { "true or false" } else { "text in quotes" };
                Err(self.wrong_type(line, key.name, other, wanted, key.example))
            }
        }
    }

    fn rules(
        &self,
        kind: &str,
        line: usize,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Vec<Rule>, ConfigError> {
        let tables = value.get_ref().as_array().ok_or_else(|| {
            let message = format!("{}: {kind} is not a list of tables", self.at(line));
            ConfigError::new(message, format!("begin each rule with a line [[{kind}]]"))
        })?;
        tables.iter().map(|table| self.rule(kind, table)).collect()
    }

    fn rule(&self, kind: &str, value: &Spanned<DeValue<'_>>) -> Result<Rule, ConfigError> {
        let line = self.line(value.span().start);
        let empty = || {
            let message = format!("{}: [[{kind}]] has neither harness nor cwd", self.at(line));
            ConfigError::new(
                message,
                "give it one or both: harness = \"codex\", cwd = \"~/secret\"",
            )
        };
        let mut rule = Rule { harness: None, cwd: None };
        for (name, value) in value.get_ref().as_table().ok_or_else(empty)? {
            let line = self.line(name.span().start);
            let name = name.get_ref().as_ref();
            if !RULE_KEYS.contains(&name) {
                return Err(self.unknown_key(line, name, &RULE_KEYS));
            }
            let text = value.get_ref().as_str().ok_or_else(|| {
                let example = if name == "cwd" { "\"~/secret\"" } else { "\"codex\"" };
                self.wrong_type(line, name, value.get_ref(), "text in quotes", example)
            })?;
            let bad = |bad: Bad| {
                let message = format!("{}: {name} = {text:?} {}", self.at(line), bad.problem);
                ConfigError::new(message, bad.hint)
            };
            match name {
                "harness" => rule.harness = Some(rules::harness(text).map_err(bad)?),
                _ => rule.cwd = Some(CwdPattern::parse(text, self.home).map_err(bad)?),
            }
        }
        if rule.harness.is_none() && rule.cwd.is_none() { Err(empty()) } else { Ok(rule) }
    }

    fn wrong_type(
        &self,
        line: usize,
        name: &str,
        value: &DeValue<'_>,
        wanted: &str,
        example: &str,
    ) -> ConfigError {
        let kind = value.type_str();
        let message = format!("{}: {name} is of type {kind}, not {wanted}", self.at(line));
        ConfigError::new(message, format!("write for example {name} = {example}"))
    }

    fn unknown_key(&self, line: usize, name: &str, known: &[&str]) -> ConfigError {
        let hint = match nearest(name, known) {
            Some(meant) => format!("did you mean {meant}?"),
            None => format!("the keys are {}", known.join(", ")),
        };
        ConfigError::new(format!("{}: unknown key {name:?}", self.at(line)), hint)
    }

    fn at(&self, line: usize) -> String {
        at(self.path, line)
    }

    fn line(&self, offset: usize) -> usize {
        1 + self.text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
    }
}

/// A place in a file, as editors and compilers write it.
pub(super) fn at(path: &Path, line: usize) -> String {
    format!("{}:{line}", path.display())
}
