//! What may reach a terminal.
//!
//! Names, command lines, file contents and messages come from other machines, and whoever
//! controls those controls every byte of them. A terminal obeys escape sequences, and people
//! believe what they see. So each such text passes through [`plain`] or [`json`] first.

use serde::Serialize;
use std::borrow::Cow;
use std::fmt::Write;

/// Makes visible what would command the terminal or hide from the reader: control characters,
/// line ends, direction overrides, characters without width.
#[must_use]
pub fn plain(text: &str) -> Cow<'_, str> {
    if !text.chars().any(hidden) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if hidden(c) && u32::from(c) < 0x100 => {
                write!(out, "\\x{:02x}", u32::from(c)).expect("writing to a string");
            }
            c if hidden(c) => {
                write!(out, "\\u{{{:x}}}", u32::from(c)).expect("writing to a string");
            }
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// At most so many characters, the last of them an ellipsis where some are left out.
#[must_use]
pub fn shorten(text: &str, limit: usize) -> Cow<'_, str> {
    if text.chars().count() <= limit {
        return Cow::Borrowed(text);
    }
    let kept: String = text.chars().take(limit.saturating_sub(1)).collect();
    Cow::Owned(format!("{kept}…"))
}

/// A document of JSON over several lines, ending in one.
#[must_use]
pub fn json<T: Serialize>(value: &T) -> String {
    let text = serde_json::to_string_pretty(value).expect("answers are plain data");
    escape(&text) + "\n"
}

/// A document of JSON in one line.
#[must_use]
pub fn json_line<T: Serialize>(value: &T) -> String {
    let text = serde_json::to_string(value).expect("answers are plain data");
    escape(&text) + "\n"
}

/// JSON leaves characters beyond ASCII's first 32 as they are. What hides among them can only
/// be inside texts, where `\uXXXX` means the same.
fn escape(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\n' || !hidden(c) {
            out.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            write!(out, "\\u{unit:04x}").expect("writing to a string");
        }
    }
    out
}

/// Controls, line ends that are none, what changes direction, and what Unicode lets programs ignore:
/// it has no width, or none that is seen.
fn hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_commands_or_hides_becomes_visible() {
        let check = |text: &str, expected: &str| assert_eq!(plain(text), expected);
        check("nginx.service naïve 日本", "nginx.service naïve 日本");
        check("a\x1b[31mred\x07", "a\\x1b[31mred\\x07");
        check("one\ntwo\r\n\tthree", "one\\ntwo\\r\\n\\tthree");
        check("\u{9b}2J \u{7f}", "\\x9b2J \\x7f");
        check("abc\u{202e}fdp.exe", "abc\\u{202e}fdp.exe");
        check("a\u{200b}b\u{feff}\u{e0041}", "a\\u{200b}b\\u{feff}\\u{e0041}");
        check("a\u{2028}b\u{2066}c", "a\\u{2028}b\\u{2066}c");
        // As one sees them, these are all the same name.
        check("x\u{fe00}x\u{e0100}x\u{3164}", "x\\u{fe00}x\\u{e0100}x\\u{3164}");
    }

    #[test]
    fn json_is_escaped_and_still_the_same() {
        let text = "a\x1b[2J\u{9b}\u{202e}\u{e0041}ü\n";
        let written = json(&text);
        assert_eq!(written, "\"a\\u001b[2J\\u009b\\u202e\\udb40\\udc41ü\\n\"\n");
        assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
        assert_eq!(json_line(&[1, 2]), "[1,2]\n");
    }

    #[test]
    fn long_texts_end_in_an_ellipsis() {
        assert_eq!(shorten("abcdef", 6), "abcdef");
        assert_eq!(shorten("äbcdefg", 6), "äbcde…");
        assert_eq!(shorten("ab", 0), "…");
    }

    proptest! {
        #[test]
        fn nothing_hidden_is_left(text in any::<String>()) {
            prop_assert!(!plain(&text).chars().any(hidden));
            let written = json(&text);
            prop_assert!(!written.trim_end().chars().any(hidden));
            prop_assert_eq!(serde_json::from_str::<String>(&written).unwrap(), text);
        }
    }
}
