//! Values as Python wrote them: the right column was made by Python 3.11's own `json`.

use super::*;

fn value(value: ValueRef<'_>) -> String {
    let mut out = String::new();
    push_value(&mut out, value);
    out
}

#[test]
fn floats_are_written_as_python_does() {
    let table = [
        (0.0, "0.0"),
        (-0.0, "-0.0"),
        (1.0, "1.0"),
        (-1.5, "-1.5"),
        (0.1 + 0.2, "0.30000000000000004"),
        (1e15, "1000000000000000.0"),
        (9999999999999998.0, "9999999999999998.0"),
        (1e16, "1e+16"),
        (123456789012345680.0, "1.2345678901234568e+17"),
        (1e22, "1e+22"),
        (0.0001, "0.0001"),
        (0.00012, "0.00012"),
        (1e-5, "1e-05"),
        (5e-324, "5e-324"),
        (f64::MAX, "1.7976931348623157e+308"),
        (1767323045.123456, "1767323045.123456"),
        // Two shortest texts are equally near: the even one.
        (-833_497_737_867_013.2, "-833497737867013.2"),
        (660_768_278_753_849.2, "660768278753849.2"),
        (f64::INFINITY, "Infinity"),
        (f64::NEG_INFINITY, "-Infinity"),
    ];
    for (number, written) in table {
        assert_eq!(value(ValueRef::Real(number)), written);
    }
}

#[test]
fn texts_numbers_and_bytes_are_written_as_python_does() {
    assert_eq!(value(ValueRef::Null), "null");
    assert_eq!(value(ValueRef::Integer(i64::MIN)), "-9223372036854775808");
    let text = "\"\\/\u{8}\u{c}\n\r\t\0\u{1f}\u{7f}ä\u{2028}🦀";
    let written = "\"\\\"\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f\u{7f}ä\u{2028}🦀\"";
    assert_eq!(value(ValueRef::Text(text.as_bytes())), written);
    assert_eq!(value(ValueRef::Text(b"a\xed\xa0\x80b")), "\"a\u{fffd}\u{fffd}\u{fffd}b\"");
    assert_eq!(value(ValueRef::Blob(b"it's")), r#""b\"it's\"""#);
    assert_eq!(value(ValueRef::Blob(b"'\"\\\n\x00\xff")), r#""b'\\'\"\\\\\\n\\x00\\xff'""#);
}

#[test]
fn json_is_written_again_as_python_does_after_reading_it() {
    let table = [
        ("[]", "[]"),
        (" [1, 2.0 ,3e5] ", "[1, 2.0, 300000.0]"),
        ("[1E400,-1e400,-0,-0.0]", "[Infinity, -Infinity, 0, -0.0]"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        (
            r#"{"a":1,"b":{"c":[true,false,null]},"a":2}"#,
            r#"{"a": 2, "b": {"c": [true, false, null]}}"#,
        ),
        (r#"{"x":NaN,"y":Infinity,"z":-Infinity}"#, r#"{"x": NaN, "y": Infinity, "z": -Infinity}"#),
        (r#""\u00e4\ud83e\udd80\n\/\b\f\u0001""#, "\"ä🦀\\n/\\b\\f\\u0001\""),
        ("\t{\"k\" : \"v\" , \"l\":[ ] }\n", r#"{"k": "v", "l": []}"#),
        (r#""\ud800x\udc00\ud800\u0041""#, "\"\u{fffd}x\u{fffd}\u{fffd}A\""),
    ];
    for (read, written) in table {
        assert_eq!(rewritten(read).as_deref(), Some(written), "{read}");
    }
    for bad in [
        "",
        "[1",
        "[1]x",
        r#"{"a" 1}"#,
        "01",
        "1.",
        ".5",
        "\"a\nb\"",
        "\u{feff}[]",
        "{'a':1}",
        "[1,]",
        r#"{"a":1,}"#,
        "nul",
        "-",
        "1e",
        r#""\x""#,
        r#""\u12g4""#,
        "+1",
        "[1 2]",
        r#"{1:2}"#,
        "\"",
    ] {
        assert_eq!(rewritten(bad), None, "{bad}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(rewritten(&deep), None, "it is no reason to overflow a stack");
}
