//! What a secret looks like: the table of rules, and their matches in one plain text.
//!
//! Knows letters and their neighbours; knows nothing of JSON, escapes or records. The eight names
//! and replacement texts of the Python tool are kept, and what its rules match is always matched
//! here too: its patterns stand in the table as they are (without word boundaries), and wider
//! ones under the same names beside them.
//!
//! Every rule has two forms. The *trigger* decides cheaply whether a record is looked at at all:
//! it must match whenever the pattern can, at any depth of escapes, may match more, never matches
//! a newline. The *pattern* decides what is replaced. Patterns run on an engine that is linear in
//! its input; none looks further ahead than it matches, so finding all of them is linear too.

use std::sync::LazyLock;

use regex::bytes::Regex;

use super::pem::{self, Body};

/// A part of a text to be replaced, and the rule that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
    /// Index in the table: of two rules the smaller is the more specific.
    pub(crate) rule: usize,
}

impl Span {
    /// The same span, seen from `offset` further left.
    pub(crate) fn moved(self, offset: usize) -> Span {
        Span { start: self.start + offset, end: self.end + offset, ..self }
    }
}

/// One row of the table.
#[derive(Debug)]
struct Row {
    name: &'static str,
    trigger: &'static str,
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// The header line of a private key; [`pem`] finds its end.
    Key(&'static str),
    /// The whole match is the secret, if the check agrees.
    Shape(&'static str, Check),
    /// Only the first group is the secret, if the check agrees.
    Inside(&'static str, Check),
    /// A value without a shape of its own, known by the name it is given. The name is the trigger.
    Named(&'static str),
}

type Check = fn(&[u8]) -> bool;

const PLAIN: Check = |_| true;

/// What stands between a secret's name and its value: assignments of any language, quotes, the
/// tags of XML, the alignment of columns. Bounded, so that a name in prose reaches no further.
const BETWEEN: &str = r#"[\s"'\\`:=>,|()]{1,32}"#;

/// The table, most specific first: where matches overlap, the first name wins.
#[rustfmt::skip]
const TABLE: &[Row] = &[
    Row { name: "private_key", trigger: r"-----BEGIN [A-Z0-9 ]*PRIVATE",
          form: Form::Key(r"-----BEGIN (?:[A-Z0-9]+ ){0,4}PRIVATE KEY(?: BLOCK)?-----") },
    Row { name: "anthropic_key", trigger: r"sk-ant-[A-Za-z0-9_-]{8}",
          form: Form::Shape(r"sk-ant-[A-Za-z0-9_-]{20,}", PLAIN) },
    // A key that a title or a summary cut short is not for others either.
    Row { name: "anthropic_key", trigger: r"sk-ant-[A-Za-z0-9_-]{8}",
          form: Form::Shape(r"\b{start-half}sk-ant-[A-Za-z0-9_-]{12,}", mixed) },
    Row { name: "openrouter_key", trigger: r"sk-or-v1-[0-9a-f]{8}",
          form: Form::Shape(r"\b{start-half}sk-or-v1-[0-9a-f]{32,}", PLAIN) },
    Row { name: "openai_key", trigger: r"sk-[A-Za-z0-9_-]{20}",
          form: Form::Shape(r"sk-(?:proj-|svcacct-)?[A-Za-z0-9]{20,}", PLAIN) },
    // The Python tool's hole: project keys have `_` and `-` anywhere. So have words of CSS and of
    // prose, hence the boundary and the check.
    Row { name: "openai_key", trigger: r"sk-[A-Za-z0-9_-]{20}",
          form: Form::Shape(r"\b{start-half}sk-[A-Za-z0-9_-]{20,}", openai) },
    Row { name: "aws_access_key", trigger: r"AKIA[0-9A-Z]{8}",
          form: Form::Shape(r"AKIA[0-9A-Z]{16}", PLAIN) },
    Row { name: "aws_session_token", trigger: r"ASIA[0-9A-Z]{8}",
          form: Form::Shape(r"ASIA[0-9A-Z]{16}", PLAIN) },
    Row { name: "aws_session_token",
          trigger: r"(?i:session_?-?token|aws_?-?security_?-?token|amz-security-token)",
          form: Form::Named(r"[A-Za-z0-9/+=%]{100,}") },
    Row { name: "aws_secret_key",
          trigger: r"(?i:secret[_ -]?access[_ -]?key|(?:aws|s3|minio|r2)[_ -]?secret[_ -]?key)",
          form: Form::Named(r"[A-Za-z0-9/+=]{32}[A-Za-z0-9/+=_.~%-]*") },
    Row { name: "azure_key",
          trigger: r"(?i:account_?-?key|shared_?-?access_?-?key|azure_storage_(?:access_)?key)",
          form: Form::Named(r"[A-Za-z0-9/+]{40,}={0,2}") },
    Row { name: "azure_key", trigger: r"[?&6;]sig=[A-Za-z0-9%/+\\]{8}",
          form: Form::Inside(r"[?&;]sig=([A-Za-z0-9%/+]{40,}={0,2})", PLAIN) },
    Row { name: "hf_token", trigger: r"hf_[A-Za-z0-9]{8}",
          form: Form::Shape(r"hf_[A-Za-z0-9]{30,}", PLAIN) },
    Row { name: "github_pat", trigger: r"gh[pousr]_[A-Za-z0-9]{8}",
          form: Form::Shape(r"gh[pousr]_[A-Za-z0-9]{30,}", PLAIN) },
    Row { name: "github_pat", trigger: r"gh[ous]_[A-Za-z0-9]+_eyJ",
          form: Form::Shape(r"\b{start-half}gh[ous]_[A-Za-z0-9]+_eyJ[A-Za-z0-9_.-]{20,}", PLAIN) },
    Row { name: "github_pat", trigger: r"github_pat_[A-Za-z0-9_]{8}",
          form: Form::Shape(r"\b{start-half}github_pat_[A-Za-z0-9_]{22,}", PLAIN) },
    Row { name: "slack_token", trigger: r"xox[abprs]-[A-Za-z0-9-]{8}",
          form: Form::Shape(r"xox[abprs]-[A-Za-z0-9-]{10,}", PLAIN) },
    Row { name: "slack_token", trigger: r"(?:xox[a-z.]{1,6}|xapp)-[A-Za-z0-9-]{8}",
          form: Form::Shape(
              r"\b{start-half}(?:xox(?:e\.xox)?[a-z]|xapp)-[A-Za-z0-9%-]*[0-9][A-Za-z0-9%-]{9,}", PLAIN) },
    Row { name: "slack_webhook", trigger: r"hooks\.slack\.com",
          form: Form::Shape(r"hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9+/_-]{20,}", PLAIN) },
    Row { name: "discord_webhook", trigger: r"discord(?:app)?\.com\\*/api\\*/webhooks",
          form: Form::Shape(r"discord(?:app)?\.com/api/webhooks/[0-9]{10,}/[A-Za-z0-9_-]{20,}", PLAIN) },
    Row { name: "google_api_key", trigger: r"AIza[0-9A-Za-z_-]{8}",
          form: Form::Shape(r"\b{start-half}AIza[0-9A-Za-z_-]{35,}", PLAIN) },
    Row { name: "google_oauth", trigger: r"ya29\.[A-Za-z0-9_-]|GOCSPX-|1\\*/\\*/0[A-Za-z0-9_-]{8}",
          form: Form::Shape(
              r"\b{start-half}(?:ya29\.[A-Za-z0-9_.-]{20,}|GOCSPX-[A-Za-z0-9_-]{20,}|1//0[A-Za-z0-9_-]{30,})",
              mixed) },
    Row { name: "stripe_key", trigger: r"[sr]k_(?:live|test|org)_|whsec_",
          form: Form::Shape(
              r"\b{start-half}(?:(?:sk|rk|sk_org)_(?:live|test)_[A-Za-z0-9_]{16,}|whsec_[A-Za-z0-9+/=]{24,})",
              digit_or_upper) },
    Row { name: "gitlab_token", trigger: r"gl[a-z]{2,5}-[A-Za-z0-9_-]{8}|GR1348941",
          form: Form::Shape(
              r"\b{start-half}(?:gl(?:pat|ptt|dt|rt|rtr|cbt|ft|soat|agent|imt|oas|ffct|wt)-|GR1348941)[A-Za-z0-9_.=-]{20,}",
              digit_or_upper) },
    Row { name: "npm_token", trigger: r"npm_[A-Za-z0-9]{8}",
          form: Form::Shape(r"\b{start-half}npm_[A-Za-z0-9]{36,}", digit_or_upper) },
    Row { name: "npm_token", trigger: r"_authToken",
          form: Form::Named(r"[A-Za-z0-9_+/=.-]{20,}") },
    Row { name: "pypi_token", trigger: r"pypi-[A-Za-z0-9_-]{8}",
          form: Form::Shape(r"\b{start-half}pypi-[A-Za-z0-9_-]{50,}", mixed) },
    Row { name: "groq_key", trigger: r"gsk_[A-Za-z0-9]{8}",
          form: Form::Shape(r"\b{start-half}gsk_[A-Za-z0-9]{40,}", digit_or_upper) },
    Row { name: "xai_key", trigger: r"xai-[A-Za-z0-9]{8}",
          form: Form::Shape(r"\b{start-half}xai-[A-Za-z0-9]{60,}", digit_or_upper) },
    Row { name: "sendgrid_key", trigger: r"SG\.[A-Za-z0-9_-]{8}",
          form: Form::Shape(r"\b{start-half}SG\.[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{40,}", PLAIN) },
    Row { name: "vault_token", trigger: r"hv[sbr]\.[A-Za-z0-9_-]{8}",
          form: Form::Shape(r"\b{start-half}hv[sbr]\.[A-Za-z0-9_-]{24,}", digit_or_upper) },
    Row { name: "age_secret_key", trigger: r"AGE-SECRET-KEY-",
          form: Form::Shape(r"AGE-SECRET-KEY-(?:PQ-)?1[A-Z0-9]{40,}", PLAIN) },
    Row { name: "jwt", trigger: r"eyJ[A-Za-z0-9_-]{8}[A-Za-z0-9_-]*\.",
          form: Form::Shape(
              r"\b{start-half}eyJ[A-Za-z0-9_-]{8,}\.(?:eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}|[A-Za-z0-9_-]*\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,})",
              PLAIN) },
    Row { name: "url_credentials", trigger: r#":\\*/\\*/[^\x00-\x20"'`/<>|:@]*:[^\x00-\x20"'`/<>|@]+@"#,
          form: Form::Inside(r#"://([^\x00-\x20"'`/<>|\\:@]*:[^\x00-\x20"'`/<>|\\]+)@"#, credentials) },
    Row { name: "basic_auth", trigger: r"(?i:basic[ \t\\]{1,4}[A-Za-z0-9+/])",
          form: Form::Inside(
              r#"(?i:authorization["'\s\\:=,]{1,12}basic)\s{1,4}([A-Za-z0-9+/_-]{8,}={0,2})"#, PLAIN) },
    Row { name: "bearer_token", trigger: r"Bearer[ \t\r\x0b\x0c\\]",
          form: Form::Shape(r"Bearer\s+[A-Za-z0-9_.\-]{20}[A-Za-z0-9_.~+/=\-]*", PLAIN) },
    Row { name: "bearer_token", trigger: r"(?i:bearer)[ \t\r\x0b\x0c\\]+[A-Za-z0-9_.\-]{8}",
          form: Form::Shape(r"\b{start-half}(?i:bearer)\s+[A-Za-z0-9_.\-]{20}[A-Za-z0-9_.~+/=\-]*", mixed) },
];

/// A secret spelled in escapes shows none of its letters; the escapes of plain ASCII letters are
/// rare enough to look at every record that has one.
const ESCAPED_LETTER: &str = r"\\u00[2-7]";

/// Text in a `data:` URL is as opaque as an image in a field of its own.
const DATA_URL: &str = r"data:(?:image|audio|video|font|application)/[A-Za-z0-9.+-]{1,64}(?:;[A-Za-z0-9=_.-]{1,32}){0,2};base64,([A-Za-z0-9+/]{32,}={0,2})";

/// The longest value that is asked whether it is one secret as a whole. Longer secrets (private
/// keys, JWT) have characters that no opaque value has.
const WHOLE_SECRET_BYTES_MAX: usize = 512;

/// The table, compiled.
#[derive(Debug)]
pub(crate) struct Rules {
    trigger: Regex,
    patterns: Vec<Regex>,
    data_url: Regex,
    names: Vec<(usize, Regex, Regex)>,
}

impl Rules {
    /// The standard rules, compiled at first use.
    pub(crate) fn standard() -> &'static Rules {
        static STANDARD: LazyLock<Rules> = LazyLock::new(Rules::compile);
        &STANDARD
    }

    fn compile() -> Rules {
        let mut triggers: Vec<&str> = TABLE.iter().map(|row| row.trigger).collect();
        triggers.push(ESCAPED_LETTER);
        let mut names = Vec::new();
        let mut patterns = Vec::new();
        for (rule, row) in TABLE.iter().enumerate() {
            patterns.push(match row.form {
                Form::Key(pattern) | Form::Shape(pattern, _) | Form::Inside(pattern, _) => {
                    bytes(pattern)
                }
                Form::Named(value) => {
                    names.push((
                        rule,
                        bytes(&format!("(?:{})$", row.trigger)),
                        bytes(&format!(r"^\s*(?:{value})\s*$")),
                    ));
                    // `AWS Secret Access Key [None]: …` is how the tool of AWS asks for it; in
                    // lists of variables the value is called by that name.
                    bytes(&format!(
                        r"{}(?:\s?\[[A-Za-z0-9*]{{0,24}}\])?{BETWEEN}(?:(?i:value){BETWEEN})?({value})",
                        row.trigger
                    ))
                }
            });
        }
        Rules { trigger: bytes(&triggers.join("|")), patterns, data_url: bytes(DATA_URL), names }
    }

    /// The end of the first (shortest) thing at or after `at` that makes a record worth a look.
    pub(crate) fn trigger_at(&self, text: &[u8], at: usize) -> Option<usize> {
        self.trigger.shortest_match_at(text, at)
    }

    /// The name of a rule.
    pub(crate) fn name(&self, rule: usize) -> &'static str {
        TABLE[rule].name
    }

    /// All matches of all rules in `text`, in no order, overlapping; and whether the text ends
    /// inside a private key.
    pub(crate) fn find(&self, text: &[u8]) -> (Vec<Span>, bool) {
        let mut spans = Vec::new();
        let mut key_open = false;
        if self.trigger_at(text, 0).is_none() {
            return (spans, key_open);
        }
        for (rule, row) in TABLE.iter().enumerate() {
            let pattern = &self.patterns[rule];
            match row.form {
                Form::Key(_) => key_open = self.keys(rule, text, &mut spans),
                Form::Shape(_, check) => spans.extend(
                    pattern
                        .find_iter(text)
                        .filter(|found| check(found.as_bytes()))
                        .map(|found| Span { start: found.start(), end: found.end(), rule }),
                ),
                Form::Inside(..) | Form::Named(_) => {
                    let check = if let Form::Inside(_, check) = row.form { check } else { PLAIN };
                    spans.extend(
                        pattern
                            .captures_iter(text)
                            .filter_map(|captures| captures.get(1))
                            .filter(|inside| check(inside.as_bytes()))
                            .map(|inside| Span { start: inside.start(), end: inside.end(), rule }),
                    );
                }
            }
        }
        self.spare_data_urls(text, &mut spans);
        (spans, key_open)
    }

    /// The rule of secrets that go by this name (`AWS_SECRET_ACCESS_KEY`), if it is one.
    pub(crate) fn secret_named(&self, name: &[u8]) -> Option<usize> {
        // The longest name of a secret is an environment variable with a prefix.
        if name.is_empty() || name.len() > 64 {
            return None;
        }
        self.names.iter().find(|(_, pattern, _)| pattern.is_match(name)).map(|(rule, ..)| *rule)
    }

    /// Whether `value` can be the value of a name that [`Rules::secret_named`] gave `rule` for.
    pub(crate) fn is_value_of(&self, rule: usize, value: &[u8]) -> bool {
        self.names.iter().any(|(named, _, pattern)| *named == rule && pattern.is_match(value))
    }

    /// Whether `value` is one secret from its first to its last character.
    pub(crate) fn is_secret(&self, value: &[u8]) -> bool {
        value.len() <= WHOLE_SECRET_BYTES_MAX
            && self.find(value).0.iter().any(|span| span.start == 0 && span.end == value.len())
    }

    /// The span of a private key whose header line is in another text.
    pub(crate) fn private_key(&self, start: usize, end: usize) -> Span {
        Span { start, end, rule: 0 }
    }

    fn keys(&self, rule: usize, text: &[u8], spans: &mut Vec<Span>) -> bool {
        let mut until = 0;
        let mut open = false;
        for header in self.patterns[rule].find_iter(text) {
            if header.start() < until {
                continue;
            }
            let body = pem::body(text, header.end());
            open = matches!(body, Body::Open(_));
            if let Body::Until(end) | Body::Open(end) = body
                && end > header.end()
            {
                spans.push(Span { start: header.start(), end, rule });
                until = end;
            }
        }
        open
    }

    fn spare_data_urls(&self, text: &[u8], spans: &mut Vec<Span>) {
        if spans.is_empty() || memchr::memmem::find(text, b";base64,").is_none() {
            return;
        }
        let payloads: Vec<_> = self
            .data_url
            .captures_iter(text)
            .filter_map(|captures| captures.get(1).map(|payload| payload.range()))
            .collect();
        spans.retain(|span| {
            let next = payloads.partition_point(|payload| payload.end <= span.start);
            payloads
                .get(next)
                .is_none_or(|payload| span.start < payload.start || payload.end < span.end)
        });
    }
}

/// The names of the table, each once.
#[cfg(test)]
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    let known = |row: usize| TABLE[..row].iter().any(|before| before.name == TABLE[row].name);
    (0..TABLE.len()).filter(move |&row| !known(row)).map(|row| TABLE[row].name)
}

fn bytes(pattern: &str) -> Regex {
    Regex::new(&format!("(?-u){pattern}")).expect("the table is a constant that tests compile")
}

fn has(text: &[u8], kind: fn(&u8) -> bool) -> bool {
    text.iter().any(kind)
}

fn mixed(text: &[u8]) -> bool {
    has(text, u8::is_ascii_digit)
        && has(text, u8::is_ascii_uppercase)
        && has(text, u8::is_ascii_lowercase)
}

/// For shapes with a prefix in small letters: random letters follow, not words.
fn digit_or_upper(text: &[u8]) -> bool {
    has(text, u8::is_ascii_digit) || has(text, u8::is_ascii_uppercase)
}

/// Three letters and a dash are soon found in noise: a run beyond any key of that prefix is
/// noise, and what the narrow rule finds in it is enough. Keys have up to 164 characters today.
const OPENAI_KEY_BYTES_MAX: usize = 256;

fn openai(key: &[u8]) -> bool {
    let known: [&[u8]; 4] = [b"sk-proj-", b"sk-svcacct-", b"sk-admin-", b"sk-None-"];
    match known.iter().find_map(|prefix| key.strip_prefix(*prefix)) {
        Some(rest) => digit_or_upper(rest),
        None => mixed(key) && key.len() <= OPENAI_KEY_BYTES_MAX,
    }
}

/// Whether `user:password` is more than a host with its port, a placeholder or a replacement.
fn credentials(found: &[u8]) -> bool {
    let colon = found.iter().position(|&byte| byte == b':').unwrap_or_default();
    let (user, password) = (&found[..colon], &found[colon + 1..]);
    let digits = password.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let host = user.contains(&b'.') || user == b"localhost" || has(user, |&byte| byte == b'[');
    let port = host && (1..=5).contains(&digits) && {
        password.get(digits).is_some_and(|byte| b")],;?#&}".contains(byte))
    };
    let brackets = |open: u8, close: u8| {
        password.last() == Some(&close)
            && password.iter().position(|&byte| byte == open).is_some_and(|at| at <= 1)
            && password.iter().filter(|&&byte| byte == close).count() <= 2
    };
    let variable = password.first() == Some(&b'$')
        && password[1..].iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_');
    let masked = password.iter().all(|byte| b"*.xX".contains(byte));
    let placeholder = brackets(b'{', b'}') || variable || masked || password == b"%s";
    !(port || placeholder || memchr::memmem::find(found, b"[REDACTED:").is_some())
}
