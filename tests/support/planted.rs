//! Fake secrets, planted in transcripts, and what a transcript must look like once they are gone.
//!
//! Owns the secrets and the model of redaction; knows no pattern: it looks for the exact text that it planted. Every secret is
//! built at run time from pieces, so that no scanner trips over this repository.

use memchr::memmem;

/// One fake secret.
#[derive(Debug, Clone)]
pub(crate) struct Secret {
    /// Name of the pattern where the documents give it; for the others a name for messages.
    pub(crate) name: &'static str,
    /// How much the documents say about its replacement.
    pub(crate) rule: Rule,
    /// The text as it stands inside a JSON string.
    pub(crate) whole: String,
    /// What must not be found anywhere afterwards.
    pub(crate) core: String,
}

/// How much the documents say about the replacement of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The whole text is replaced by `[REDACTED:name]`.
    Exact,
    /// Within the text, the core is gone and a marker stands in its place.
    Loose,
    /// The piece of a secret: too short for a key, too long to complain when it is taken for one.
    May,
}

/// The set of secrets of one test.
#[derive(Debug, Clone)]
pub(crate) struct Planted {
    pub(crate) secrets: Vec<Secret>,
}

const UPPER: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
const ALNUM: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
const URLSAFE: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-";
const BASE64: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+/";
const DIGITS: &str = "0123456789";

/// Random characters with letters or digits at both ends, so that no word boundary falls inside.
fn random(rng: &mut fastrand::Rng, alphabet: &str, length: usize) -> String {
    let alphabet: Vec<char> = alphabet.chars().collect();
    let ends: Vec<char> = alphabet.iter().copied().filter(char::is_ascii_alphanumeric).collect();
    (0..length)
        .map(|at| if at == 0 || at + 1 == length { &ends } else { &alphabet })
        .map(|from| from[rng.usize(..from.len())])
        .collect()
}

impl Planted {
    /// One secret or more for every pattern, the same for the same seed.
    pub(crate) fn every_pattern(seed: u64) -> Planted {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut secrets = fixed(&mut rng);
        secrets.extend(loose(&mut rng));
        Planted { secrets }
    }

    /// The secrets whose replacement is known to the byte: for campaigns that compare bytes.
    pub(crate) fn exact_only(seed: u64) -> Planted {
        Planted { secrets: fixed(&mut fastrand::Rng::with_seed(seed)) }
    }

    /// Adds those that the sample transcripts hold.
    pub(crate) fn with_those_of_samples(mut self) -> Planted {
        let aws = ["AKIA", "IOSFODNN7", "EXAMPLE"].concat();
        let anthropic = ["sk-ant", "-api03-", "Zq7Rk2Lm9Xv4Tb6Yw1Hs8Jd3Fg5Pn0Cc2Va4Me6B"].concat();
        for (name, text) in [("aws_access_key", aws), ("anthropic_key", anthropic)] {
            self.secrets.push(Secret { name, rule: Rule::Exact, whole: text.clone(), core: text });
        }
        // An agent that was asked to repeat the key was cut off in the middle of it.
        let piece = ["sk-ant", "-api03-", "Zq7Rk2Lm9Xv4"].concat();
        self.secrets.push(Secret {
            name: "piece",
            rule: Rule::May,
            whole: piece.clone(),
            core: piece,
        });
        self
    }

    /// What `source` must be once it is redacted.
    pub(crate) fn expected(&self, source: &[u8]) -> Expected {
        let mut hits: Vec<(usize, &Secret)> = Vec::new();
        for secret in &self.secrets {
            hits.extend(
                memmem::find_iter(source, secret.whole.as_bytes())
                    .map(|position| (position, secret)),
            );
        }
        hits.sort_by_key(|(position, secret)| (*position, std::cmp::Reverse(secret.whole.len())));
        let mut pieces = Vec::new();
        let mut done = 0;
        for (position, secret) in hits {
            if position < done {
                // A piece of the one before.
                continue;
            }
            pieces.push(Piece::Bytes(source[done..position].to_vec()));
            pieces.push(Piece::Secret(secret.clone()));
            done = position + secret.whole.len();
        }
        pieces.push(Piece::Bytes(source[done..].to_vec()));
        Expected { pieces }
    }

    /// Redacts bytes that hold exact secrets only.
    pub(crate) fn redact(&self, source: &[u8]) -> Vec<u8> {
        self.expected(source).bytes()
    }

    /// Names of the secrets that are found in `content`.
    pub(crate) fn found_in(&self, content: &[u8]) -> Vec<&'static str> {
        let found = |secret: &&Secret| {
            secret.rule != Rule::May && memmem::find(content, secret.core.as_bytes()).is_some()
        };
        self.secrets.iter().filter(found).map(|secret| secret.name).collect()
    }
}

fn fixed(rng: &mut fastrand::Rng) -> Vec<Secret> {
    let mut fixed = vec![
        ("aws_access_key", ["AK", "IA", &random(rng, UPPER, 16)].concat()),
        ("aws_session_token", ["AS", "IA", &random(rng, UPPER, 16)].concat()),
        ("anthropic_key", ["sk-", "ant-api03-", &random(rng, URLSAFE, 93)].concat()),
        ("openai_key", ["sk", "-", &random(rng, ALNUM, 48)].concat()),
        ("hf_token", ["hf", "_", &random(rng, ALNUM, 34)].concat()),
        ("github_pat", ["gh", "p_", &random(rng, ALNUM, 36)].concat()),
        (
            "slack_token",
            ["xo", "xb-", &random(rng, DIGITS, 12), "-", &random(rng, ALNUM, 24)].concat(),
        ),
        ("bearer_token", ["Bea", "rer ", &random(rng, ALNUM, 43)].concat()),
    ];
    for (prefix, length) in [("proj-", 148), ("proj-", 60), ("svcacct-", 70)] {
        fixed.push(("openai_key", ["sk", "-", prefix, &random(rng, URLSAFE, length)].concat()));
    }
    let secret = |(name, text): (_, String)| Secret {
        name,
        rule: Rule::Exact,
        whole: text.clone(),
        core: text,
    };
    fixed.into_iter().map(secret).collect()
}

/// Secrets for which the documents name neither the pattern nor exactly what of the text is replaced.
fn loose(rng: &mut fastrand::Rng) -> Vec<Secret> {
    let mut found = Vec::new();
    let mut add = |name, before: &[&str], core: String, after: &str| {
        let whole = [&before.concat(), core.as_str(), after].concat();
        found.push(Secret { name, rule: Rule::Loose, whole, core });
    };
    let pem: Vec<String> = (0..4).map(|_| random(rng, BASE64, 64)).collect();
    let label = ["PRIV", "ATE KEY-----"].concat();
    add(
        "private key",
        &["-----BEGIN ", &label, "\\n"],
        pem.join("\\n"),
        &["\\n-----END ", &label].concat(),
    );
    let claims = random(rng, URLSAFE, 80);
    let signature = random(rng, URLSAFE, 43);
    let jwt =
        ["ey", "JhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.ey", "J", &claims, ".", &signature].concat();
    add("JWT", &[], jwt, "");
    add("Google key", &["AI", "za"], random(rng, URLSAFE, 35), "");
    add("Stripe key", &["sk", "_live", "_"], random(rng, ALNUM, 24), "");
    add("GitLab token", &["gl", "pat-"], random(rng, ALNUM, 20), "");
    add("npm token", &["np", "m_"], random(rng, ALNUM, 36), "");
    add("PyPI token", &["py", "pi-AgEIcHlwaS5vcmc"], random(rng, URLSAFE, 150), "");
    let hook =
        format!("T{}/B{}/{}", random(rng, UPPER, 8), random(rng, UPPER, 8), random(rng, ALNUM, 24));
    add("Slack webhook", &["https://hooks.sl", "ack.com/serv", "ices/"], hook, "");
    add("Azure key", &["Account", "Key="], random(rng, BASE64, 86), "==");
    let fine = format!("{}_{}", random(rng, ALNUM, 22), random(rng, ALNUM, 59));
    add("fine-grained GitHub token", &["github", "_pat_"], fine, "");
    add(
        "URL credentials",
        &["postgres", "://admin:"],
        random(rng, ALNUM, 20),
        "@db.example.net:5432/main",
    );
    add("AWS secret key", &["aws_secret", "_access_key = "], random(rng, BASE64, 40), "");
    found
}

/// The redacted form of a source, as far as the documents fix it.
#[derive(Debug, Clone)]
pub(crate) struct Expected {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone)]
enum Piece {
    Bytes(Vec<u8>),
    Secret(Secret),
}

/// What every marker begins with.
const MARKER: &str = "[REDACTED:";

impl Expected {
    /// The number of secrets with this name.
    pub(crate) fn count(&self, name: &str) -> u64 {
        self.secrets().filter(|secret| secret.name == name).count() as u64
    }

    /// The secrets in order.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &Secret> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Secret(secret) => Some(secret),
            Piece::Bytes(_) => None,
        })
    }

    /// The bytes, where all secrets are exact ones.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in &self.pieces {
            match piece {
                Piece::Bytes(literal) => bytes.extend_from_slice(literal),
                Piece::Secret(secret) => {
                    assert!(secret.rule == Rule::Exact, "{} has no fixed replacement", secret.name);
                    bytes.extend_from_slice(format!("{MARKER}{}]", secret.name).as_bytes());
                }
            }
        }
        bytes
    }

    /// Where `actual` departs from what is expected, and how.
    pub(crate) fn difference(&self, actual: &[u8]) -> Option<(usize, String)> {
        let mut at = 0;
        for (index, piece) in self.pieces.iter().enumerate() {
            match piece {
                Piece::Bytes(literal) => {
                    let same = common_prefix(literal, &actual[at..]);
                    if same < literal.len() {
                        let what = format!(
                            "expected {}, found {}",
                            shown(&literal[same..]),
                            shown(&actual[at + same..])
                        );
                        return Some((at + same, what));
                    }
                    at += same;
                }
                Piece::Secret(secret) => {
                    let Some(Piece::Bytes(next)) = self.pieces.get(index + 1) else { continue };
                    match replaced(secret, &actual[at..], next) {
                        Ok(length) => at += length,
                        Err(why) => return Some((at, why)),
                    }
                }
            }
        }
        (at < actual.len())
            .then(|| (at, format!("more than the source held: {}", shown(&actual[at..]))))
    }
}

/// Length of what stands in place of a secret.
fn replaced(secret: &Secret, actual: &[u8], next: &[u8]) -> Result<usize, String> {
    if secret.rule == Rule::May && actual.starts_with(secret.whole.as_bytes()) {
        return Ok(secret.whole.len());
    }
    if secret.rule == Rule::Exact {
        let marker = format!("{MARKER}{}]", secret.name);
        return match actual.starts_with(marker.as_bytes()) {
            true => Ok(marker.len()),
            false => Err(format!("{marker} expected, found {}", shown(actual))),
        };
    }
    // What follows a planted secret begins with a text of ours, so its first bytes find the end of the replacement.
    let landmark = &next[..next.len().min(12)];
    let end = memmem::find(actual, landmark)
        .filter(|end| *end <= secret.whole.len() + 64)
        .ok_or_else(|| format!("{}: what follows it is gone: {}", secret.name, shown(actual)))?;
    let stands = &actual[..end];
    if secret.rule == Rule::Loose && memmem::find(stands, secret.core.as_bytes()).is_some() {
        return Err(format!("{} was not replaced", secret.name));
    }
    match memmem::find(stands, MARKER.as_bytes()) {
        Some(_) => Ok(end),
        None => Err(format!("{} left no marker, found {}", secret.name, shown(stands))),
    }
}

/// Number of leading bytes that two slices share.
pub(crate) fn common_prefix(one: &[u8], other: &[u8]) -> usize {
    const BLOCK: usize = 4096;
    let limit = one.len().min(other.len());
    let mut at = 0;
    while at + BLOCK <= limit && one[at..at + BLOCK] == other[at..at + BLOCK] {
        at += BLOCK;
    }
    at + one[at..limit].iter().zip(&other[at..limit]).take_while(|(a, b)| a == b).count()
}

/// The first bytes of a slice, readable.
pub(crate) fn shown(bytes: &[u8]) -> String {
    match bytes.is_empty() {
        true => "the end".into(),
        false => format!("{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(60)])),
    }
}

/// A record of a harness with `text` as what the user said.
pub(crate) fn record(harness: &str, id: &str, cwd: &str, serial: u64, text: &str) -> Vec<u8> {
    let stamp =
        format!("2026-01-02T03:{:02}:{:02}.{:03}Z", serial / 60 % 60, serial % 60, serial % 1000);
    let line = match harness {
        "claude-code" => format!(
            r#"{{"type":"user","uuid":"{serial:08x}-0000-4000-8000-000000000000","sessionId":"{id}","cwd":"{cwd}","version":"2.1.330","timestamp":"{stamp}","message":{{"role":"user","content":"{text}"}}}}"#
        ),
        "codex" => format!(
            r#"{{"timestamp":"{stamp}","ordinal":{serial},"type":"response_item","payload":{{"type":"message","role":"user","content":[{{"type":"input_text","text":"{text}"}}]}}}}"#
        ),
        "openclaw" => format!(
            r#"{{"type":"message","id":"{serial:08x}","parentId":null,"timestamp":"{stamp}","message":{{"role":"user","content":[{{"type":"text","text":"{text}"}}]}}}}"#
        ),
        other => panic!("no records for {other}"),
    };
    (line + "\n").into_bytes()
}

/// The first record of a session, where the harness has one.
pub(crate) fn header(harness: &str, id: &str, cwd: &str) -> Vec<u8> {
    let line = match harness {
        "codex" => format!(
            r#"{{"timestamp":"2026-01-02T03:04:05.000Z","ordinal":0,"type":"session_meta","payload":{{"id":"{id}","timestamp":"2026-01-02T03:04:05.000Z","cwd":"{cwd}","originator":"codex_exec","cli_version":"0.169.0","source":"exec"}}}}"#
        ),
        "openclaw" => format!(
            r#"{{"type":"session","version":3,"id":"{id}","timestamp":"2026-01-02T03:04:05.000Z","cwd":"{cwd}"}}"#
        ),
        _ => return Vec::new(),
    };
    (line + "\n").into_bytes()
}
