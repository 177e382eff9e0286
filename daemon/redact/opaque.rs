//! Values that must come back byte for byte: images, signatures of thinking, encrypted reasoning.
//!
//! A value is opaque because of the object it stands in and of what it is made of, never because
//! of its field's name alone: whoever keeps a key in a field called `signature` elsewhere is still
//! protected. Knows the shapes that agents write; knows no secrets and no offsets.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// What a field's value must be made of to be opaque.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// It really decodes as base64: an image, a document, sound.
    Media,
    /// Letters of a base64 alphabet. A provider's token need not be base64 in the strict sense.
    Token,
}

/// Where a field holds an opaque value: it must have one of these types beside it, or one of these
/// siblings, or stand in an object under one of these keys.
#[derive(Debug)]
struct Place {
    field: &'static [u8],
    types: &'static [&'static [u8]],
    siblings: &'static [&'static [u8]],
    parents: &'static [&'static [u8]],
}

const THOUGHT_TYPES: &[&[u8]] =
    &[b"thinking", b"text", b"toolCall", b"tool_use", b"function", b"functionCall"];
const THOUGHT_SIBLINGS: &[&[u8]] = &[
    b"text",
    b"thought",
    b"functionCall",
    b"functionResponse",
    b"inlineData",
    b"executableCode",
    b"codeExecutionResult",
];

const PLACES: &[Place] = &[
    Place {
        field: b"signature",
        types: &[b"thinking", b"signature_delta", b"reasoning", b"reasoning.text"],
        siblings: &[],
        parents: &[b"reasoningText"],
    },
    Place { field: b"data", types: ENCRYPTED_TYPES, siblings: &[], parents: &[] },
    Place {
        field: b"encrypted_content",
        types: &[
            b"reasoning",
            b"compaction",
            b"compaction_summary",
            b"context_compaction",
            b"web_search_result",
        ],
        siblings: &[],
        parents: &[],
    },
    Place {
        field: b"encrypted_index",
        types: &[b"web_search_result_location"],
        siblings: &[],
        parents: &[],
    },
    Place { field: b"thinkingSignature", types: &[b"thinking"], siblings: &[], parents: &[] },
    Place { field: b"textSignature", types: &[b"text"], siblings: &[], parents: &[] },
    Place {
        field: b"thoughtSignature",
        types: THOUGHT_TYPES,
        siblings: THOUGHT_SIBLINGS,
        parents: &[b"google"],
    },
    Place {
        field: b"thought_signature",
        types: THOUGHT_TYPES,
        siblings: THOUGHT_SIBLINGS,
        parents: &[b"google"],
    },
    Place {
        field: b"reasoningOpaque",
        types: &[],
        siblings: &[b"reasoningText", b"messageId"],
        parents: &[],
    },
];

const ENCRYPTED_TYPES: &[&[u8]] = &[b"redacted_thinking", b"reasoning.encrypted"];

/// Fields that hold media when a media type stands beside them.
const MEDIA_FIELDS: &[&[u8]] = &[b"data", b"base64", b"blob", b"bytes"];
const MEDIA_TYPE_FIELDS: &[&[u8]] = &[b"media_type", b"mediaType", b"mimeType", b"mime_type"];
/// Objects that hold media and name a format in place of a media type.
const MEDIA_PARENTS: &[&[u8]] = &[b"input_audio"];

/// What matters of an object's own fields, collected while it is read.
#[derive(Debug, Default)]
pub(crate) struct Object {
    /// One bit per [`Place`] whose type, sibling or parent has been seen.
    places: u16,
    media: bool,
}

impl Object {
    /// An object that is the value of `key` (empty if it is no field's value).
    pub(crate) fn under(key: &[u8]) -> Object {
        let mut object = Object { places: 0, media: MEDIA_PARENTS.contains(&key) };
        if !key.is_empty() {
            object.mark(|place| place.parents.contains(&key));
        }
        object
    }

    /// Takes notice of a field. `value` is given for strings.
    pub(crate) fn see(&mut self, key: &[u8], value: Option<&[u8]>) {
        match value {
            Some(value) if key == b"type" => {
                self.media |= is_media_type(value);
                self.mark(|place| place.types.contains(&value));
            }
            Some(value) if MEDIA_TYPE_FIELDS.contains(&key) => self.media |= is_media_type(value),
            _ => self.mark(|place| place.siblings.contains(&key)),
        }
    }

    /// The shape that makes the value of the field `candidate` (from [`candidate`]) opaque here.
    pub(crate) fn shape(&self, candidate: Candidate) -> Option<Shape> {
        if candidate.place.is_some_and(|place| self.places & (1 << place) != 0) {
            return Some(Shape::Token);
        }
        (candidate.media && self.media).then_some(Shape::Media)
    }

    fn mark(&mut self, applies: impl Fn(&Place) -> bool) {
        for (bit, place) in PLACES.iter().enumerate() {
            if applies(place) {
                self.places |= 1 << bit;
            }
        }
    }
}

/// A field that may hold an opaque value, if the rest of its object agrees.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    place: Option<u8>,
    media: bool,
}

/// Whether a field of this name may hold an opaque value at all.
pub(crate) fn candidate(key: &[u8]) -> Option<Candidate> {
    let place = PLACES.iter().position(|place| place.field == key).map(|place| place as u8);
    let media = MEDIA_FIELDS.contains(&key);
    (place.is_some() || media).then_some(Candidate { place, media })
}

/// Whether `value` is made of what `shape` asks for. `torn`: its end has not been written yet.
pub(crate) fn has_shape(value: &[u8], shape: Shape, torn: bool) -> bool {
    match shape {
        Shape::Token => value.iter().all(|&byte| is_base64_letter(byte) || byte == b'='),
        Shape::Media if torn => decodes(&value[..value.len() / 4 * 4]),
        Shape::Media => decodes(value),
    }
}

fn is_base64_letter(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"+/-_".contains(&byte)
}

fn is_media_type(value: &[u8]) -> bool {
    let letters = |part: &[u8]| {
        !part.is_empty() && part.iter().all(|b| b.is_ascii_alphanumeric() || b"+.-".contains(b))
    };
    let mut parts = value.splitn(2, |&byte| byte == b'/');
    let bare = |part: &[u8]| letters(part.split(|&byte| byte == b';').next().unwrap_or_default());
    parts.next().is_some_and(letters) && parts.next().is_some_and(bare)
}

/// Characters that are decoded at a time: an image may have tens of megabytes, and only whether
/// it decodes matters. A multiple of four, so that the pieces are base64 by themselves.
const DECODE_PIECE: usize = 4096;

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);

fn decodes(value: &[u8]) -> bool {
    let standard = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
    let url_safe = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);
    let mut buffer = [0; DECODE_PIECE];
    // Padding belongs to the end: taken off here, it cannot pass in the middle of a piece.
    let letters = value.iter().rposition(|&byte| byte != b'=').map_or(0, |last| last + 1);
    if value.len() - letters > 2 {
        return false;
    }
    [standard, url_safe].iter().any(|engine| {
        value[..letters]
            .chunks(DECODE_PIECE)
            .all(|piece| !piece.contains(&b'=') && engine.decode_slice(piece, &mut buffer).is_ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_must_decode_and_tokens_must_look_like_tokens() {
        for good in [&b""[..], b"AAAA", b"AAA=", b"AA==", b"AAA", b"a+/Z", b"a-_Z"] {
            assert!(has_shape(good, Shape::Media, false), "{}", good.escape_ascii());
        }
        for bad in [&b"A"[..], b"AAAAA", b"A===", b"AA==AAAA", b"AA A", b"a+-Z", b"key=AAAA"] {
            assert!(!has_shape(bad, Shape::Media, false), "{}", bad.escape_ascii());
        }
        assert!(has_shape(b"AAAAA", Shape::Media, true));
        assert!(has_shape(b"gAAAAAB-_", Shape::Token, false));
        assert!(!has_shape(b"Bearer abc", Shape::Token, false));
        assert!(is_media_type(b"image/png") && is_media_type(b"image/svg+xml; charset=utf-8"));
        assert!(!is_media_type(b"thinking") && !is_media_type(b"/etc") && !is_media_type(b"a b/c"));
    }
}
