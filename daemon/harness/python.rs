//! JSON as Python's `json.dumps(value, ensure_ascii=False, default=str)` writes it, byte for byte.
//!
//! The reference tool writes a row so, and a session that one of the two began the other one continues. Knows values; knows
//! nothing of rows.

use std::fmt::Write as _;

use rusqlite::types::ValueRef;

/// Nesting that is followed; Python gives up a little later.
const DEPTH_MAX: usize = 500;

/// Writes a column's value.
pub(super) fn push_value(out: &mut String, value: ValueRef<'_>) {
    match value {
        ValueRef::Null => out.push_str("null"),
        ValueRef::Integer(number) => write!(out, "{number}").expect("a string takes everything"),
        ValueRef::Real(number) => push_float(out, number),
        ValueRef::Text(text) => push_text(out, &String::from_utf8_lossy(text)),
        ValueRef::Blob(bytes) => push_text(out, &repr_of_bytes(bytes)),
    }
}

/// Writes a string.
pub(super) fn push_text(out: &mut String, text: &str) {
    out.push('"');
    text.chars().for_each(|c| push_char(out, c));
    out.push('"');
}

fn push_char(out: &mut String, c: char) {
    match c {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        '\u{8}' => out.push_str("\\b"),
        '\u{c}' => out.push_str("\\f"),
        c if c < ' ' => write!(out, "\\u{:04x}", u32::from(c)).expect("a string takes everything"),
        c => out.push(c),
    }
}

/// As Python's `repr` of a float: the shortest digits that give the number back, with an exponent from 16 digits on.
fn push_float(out: &mut String, number: f64) {
    if number.is_nan() {
        return out.push_str("NaN");
    }
    if number.is_infinite() {
        return out.push_str(if number > 0.0 { "Infinity" } else { "-Infinity" });
    }
    // Of two shortest texts that are equally near Python takes the even one, as Rust does where the length is given.
    let shortest = format!("{number:e}");
    let digits = shortest.bytes().take_while(|b| *b != b'e').filter(u8::is_ascii_digit).count();
    let even = format!("{number:.*e}", digits.saturating_sub(1));
    let text = if even.parse() == Ok(number) { even } else { shortest };
    let (mantissa, exponent) = text.split_once('e').expect("this format has an exponent");
    let exponent: i32 = exponent.parse().expect("it is a small number");
    if !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        let exponent = exponent.unsigned_abs();
        write!(out, "{mantissa}e{sign}{exponent:02}").expect("a string takes everything");
        return;
    }
    out.push_str(if mantissa.starts_with('-') { "-" } else { "" });
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    match usize::try_from(exponent) {
        Ok(whole) => {
            let (before, after) = digits.split_at(digits.len().min(whole + 1));
            let zeros = whole + 1 - before.len();
            let after = if after.is_empty() { "0" } else { after };
            write!(out, "{before}{:0<zeros$}.{after}", "").expect("a string takes everything");
        }
        Err(_) => {
            let zeros = exponent.unsigned_abs() as usize - 1;
            write!(out, "0.{:0<zeros$}{digits}", "").expect("a string takes everything");
        }
    }
}

/// As Python's `str` of bytes.
fn repr_of_bytes(bytes: &[u8]) -> String {
    let quote = if bytes.contains(&b'\'') && !bytes.contains(&b'"') { '"' } else { '\'' };
    let mut text = format!("b{quote}");
    for byte in bytes {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b'\t' => text.push_str("\\t"),
            b'\n' => text.push_str("\\n"),
            b'\r' => text.push_str("\\r"),
            byte if char::from(*byte) == quote => {
                text.push('\\');
                text.push(quote);
            }
            0x20..0x7f => text.push(char::from(*byte)),
            byte => write!(text, "\\x{byte:02x}").expect("a string takes everything"),
        }
    }
    text.push(quote);
    text
}

/// What Python writes for a JSON text after having read it; `None` where it cannot read it.
pub(super) fn rewritten(text: &str) -> Option<String> {
    let mut parser = Parser { rest: text.as_bytes(), text };
    parser.skip_space();
    let value = parser.value(0)?;
    parser.skip_space();
    parser.rest.is_empty().then(|| {
        let mut out = String::with_capacity(text.len());
        value.push(&mut out);
        out
    })
}

/// A value that was read; scalars are already as they are written.
enum Value {
    Scalar(String),
    Array(Vec<Value>),
    /// A key that comes again keeps its place and gets the later value.
    Object(Vec<(String, Value)>),
}

impl Value {
    fn push(&self, out: &mut String) {
        match self {
            Value::Scalar(text) => out.push_str(text),
            Value::Array(values) => {
                out.push('[');
                for (at, value) in values.iter().enumerate() {
                    out.push_str(if at > 0 { ", " } else { "" });
                    value.push(out);
                }
                out.push(']');
            }
            Value::Object(members) => {
                out.push('{');
                for (at, (key, value)) in members.iter().enumerate() {
                    out.push_str(if at > 0 { ", " } else { "" });
                    out.push_str(key);
                    out.push_str(": ");
                    value.push(out);
                }
                out.push('}');
            }
        }
    }
}

/// Reads what Python's `json.loads` reads.
struct Parser<'a> {
    text: &'a str,
    rest: &'a [u8],
}

impl Parser<'_> {
    fn skip_space(&mut self) {
        while let [b' ' | b'\t' | b'\n' | b'\r', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    fn take(&mut self, word: &str) -> bool {
        match self.rest.strip_prefix(word.as_bytes()) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        for (word, written) in [
            ("null", "null"),
            ("true", "true"),
            ("false", "false"),
            ("NaN", "NaN"),
            ("Infinity", "Infinity"),
            ("-Infinity", "-Infinity"),
        ] {
            if self.take(word) {
                return Some(Value::Scalar(written.to_owned()));
            }
        }
        match self.rest.first()? {
            b'"' => self.string().map(Value::Scalar),
            b'[' if depth < DEPTH_MAX => self.array(depth),
            b'{' if depth < DEPTH_MAX => self.object(depth),
            _ => self.number().map(Value::Scalar),
        }
    }

    fn array(&mut self, depth: usize) -> Option<Value> {
        let mut values = Vec::new();
        self.take("[");
        self.skip_space();
        if self.take("]") {
            return Some(Value::Array(values));
        }
        loop {
            self.skip_space();
            values.push(self.value(depth + 1)?);
            self.skip_space();
            if self.take("]") {
                return Some(Value::Array(values));
            }
            if !self.take(",") {
                return None;
            }
        }
    }

    fn object(&mut self, depth: usize) -> Option<Value> {
        let mut members: Vec<(String, Value)> = Vec::new();
        let mut places = std::collections::HashMap::new();
        self.take("{");
        self.skip_space();
        if self.take("}") {
            return Some(Value::Object(members));
        }
        loop {
            self.skip_space();
            let key = self.string()?;
            self.skip_space();
            if !self.take(":") {
                return None;
            }
            self.skip_space();
            let value = self.value(depth + 1)?;
            match places.get(&key) {
                Some(at) => {
                    let (_, old): &mut (String, Value) = &mut members[*at];
                    *old = value;
                }
                None => {
                    places.insert(key.clone(), members.len());
                    members.push((key, value));
                }
            }
            self.skip_space();
            if self.take("}") {
                return Some(Value::Object(members));
            }
            if !self.take(",") {
                return None;
            }
        }
    }

    fn number(&mut self) -> Option<String> {
        let digits = |bytes: &[u8]| bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let bytes = self.rest;
        let mut end = usize::from(bytes.first() == Some(&b'-'));
        let whole = match bytes.get(end)? {
            b'0' => 1,
            _ => digits(&bytes[end..]),
        };
        if whole == 0 {
            return None;
        }
        end += whole;
        let integer = end;
        if bytes.get(end) == Some(&b'.') && digits(&bytes[end + 1..]) > 0 {
            end += 1 + digits(&bytes[end + 1..]);
        }
        if let Some(b'e' | b'E') = bytes.get(end) {
            let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
            let exponent = bytes.get(end + 1 + sign..).map_or(0, digits);
            if exponent > 0 {
                end += 1 + sign + exponent;
            }
        }
        let text = std::str::from_utf8(&bytes[..end]).expect("these are ASCII");
        self.rest = &bytes[end..];
        let mut out = String::new();
        match end == integer {
            true if text == "-0" => out.push('0'),
            true => out.push_str(text),
            false => push_float(&mut out, text.parse().ok()?),
        }
        Some(out)
    }

    /// A string, as it is written. Half of a pair of surrogates, which Python can read and cannot write, becomes what Hermes
    /// itself puts in its place.
    fn string(&mut self) -> Option<String> {
        self.rest = self.rest.strip_prefix(b"\"")?;
        let mut out = String::from("\"");
        loop {
            let plain = self.rest.iter().position(|byte| *byte < 0x20 || b"\"\\".contains(byte))?;
            let from = self.text.len() - self.rest.len();
            out.push_str(&self.text[from..from + plain]);
            self.rest = &self.rest[plain..];
            match self.rest {
                [b'"', rest @ ..] => {
                    self.rest = rest;
                    out.push('"');
                    return Some(out);
                }
                [b'\\', b'u', ..] => {
                    let first = self.unit()?;
                    self.push_unit(&mut out, first);
                }
                [b'\\', escape, rest @ ..] => {
                    let c = match escape {
                        b'"' | b'\\' | b'/' => char::from(*escape),
                        b'b' => '\u{8}',
                        b'f' => '\u{c}',
                        b'n' => '\n',
                        b'r' => '\r',
                        b't' => '\t',
                        _ => return None,
                    };
                    push_char(&mut out, c);
                    self.rest = rest;
                }
                _ => return None, // A control character, or the end.
            }
        }
    }

    /// `\uXXXX`
    fn unit(&mut self) -> Option<u16> {
        let digits =
            self.rest.get(2..6).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
        let unit = u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        self.rest = &self.rest[6..];
        Some(unit)
    }

    fn push_unit(&mut self, out: &mut String, first: u16) {
        if (0xd800..0xdc00).contains(&first) && self.rest.starts_with(b"\\u") {
            let before = self.rest;
            match self.unit() {
                Some(second) if (0xdc00..0xe000).contains(&second) => {
                    let pair = char::decode_utf16([first, second]).next();
                    pair.and_then(Result::ok).into_iter().for_each(|c| push_char(out, c));
                    return;
                }
                _ => self.rest = before,
            }
        }
        push_char(out, char::from_u32(u32::from(first)).unwrap_or(char::REPLACEMENT_CHARACTER));
    }
}

#[cfg(test)]
mod tests;
