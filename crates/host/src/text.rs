//! Numbers and names out of the kernel's text files: bytes in, checked values out.
//!
//! # Invariants
//! - No function panics or loops on any bytes.
//! - What [`printable`] returns has no control characters, so that it can't steer a terminal.

use std::borrow::Cow;
use std::fmt::Write;

/// Bytes of one name or word that are kept; what is longer is cut and ends in `…`.
pub(crate) const WORD_MAX: usize = 4096;

/// A name as text: what is not UTF-8, and control characters, become `\xNN`.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let (bytes, cut) = match bytes.get(..WORD_MAX) {
        Some(head) if bytes.len() > WORD_MAX => (head, true),
        _ => (bytes, false),
    };
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() {
                let mut utf8 = [0; 4];
                c.encode_utf8(&mut utf8).bytes().for_each(|byte| escape(&mut out, byte));
            } else {
                out.push(c);
            }
        }
        chunk.invalid().iter().for_each(|&byte| escape(&mut out, byte));
    }
    if cut {
        out.push('…');
    }
    out
}

/// A word that may have lines, such as a script given to `sh -c`: keeps newlines and tabs.
pub(crate) fn printable_lines(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().min(WORD_MAX));
    for part in
        bytes.get(..WORD_MAX).unwrap_or(bytes).split_inclusive(|&b| b == b'\n' || b == b'\t')
    {
        match part.split_last() {
            Some((&last @ (b'\n' | b'\t'), head)) => {
                out.push_str(&printable(head));
                out.push(char::from(last));
            }
            _ => out.push_str(&printable(part)),
        }
    }
    if bytes.len() > WORD_MAX {
        out.push('…');
    }
    out
}

fn escape(out: &mut String, byte: u8) {
    write!(out, "\\x{byte:02x}").expect("writing to a String does not fail");
}

/// An unsigned decimal number, and nothing but it.
pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, digit| {
        let value = digit.checked_sub(b'0').filter(|&value| value < 10)?;
        sum.checked_mul(10)?.checked_add(u64::from(value))
    })
}

/// A number with a fraction, such as `0.25`; finite.
pub(crate) fn fraction(text: &[u8]) -> Option<f64> {
    let number: f64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    number.is_finite().then_some(number)
}

/// The words of a line.
pub(crate) fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// The lines of a file, without the empty ones.
pub(crate) fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|&b| b == b'\n').filter(|line| !line.is_empty())
}

/// Undoes the `\040` by which mount tables write spaces.
pub(crate) fn unescape_octal(bytes: &[u8]) -> Cow<'_, [u8]> {
    if !bytes.contains(&b'\\') {
        return Cow::Borrowed(bytes);
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'))
            }
            _ => None,
        };
        out.push(octal.unwrap_or(first));
        rest = match octal {
            Some(_) => tail.get(3..).unwrap_or_default(),
            None => tail,
        };
    }
    Cow::Owned(out)
}

/// The last component of a path.
pub(crate) fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_made_printable() {
        assert_eq!(printable(b"nginx: worker"), "nginx: worker");
        assert_eq!(printable(b"a\x1b[2Jb\n"), "a\\x1b[2Jb\\x0a");
        assert_eq!(printable("größe".as_bytes()), "größe");
        assert_eq!(printable(b"\xff\xc3ok"), "\\xff\\xc3ok");
        assert_eq!(printable("\u{9b}x".as_bytes()), "\\xc2\\x9bx");
        assert!(printable(&[b'a'; 2 * WORD_MAX]).ends_with("a…"));
        assert_eq!(printable_lines(b"a\n\tb\x1b\nc"), "a\n\tb\\x1b\nc");
    }

    #[test]
    fn numbers() {
        assert_eq!(decimal(b"0"), Some(0));
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        for bad in ["", "18446744073709551616", "-1", "+1", "1 ", "x", "0x1"] {
            assert_eq!(decimal(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(fraction(b"1.50"), Some(1.5));
        assert_eq!(fraction(b"inf"), None);
        assert_eq!(fraction(b"NaN"), None);
    }

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(&*unescape_octal(b"/a\\040b\\134"), b"/a b\\");
        assert_eq!(&*unescape_octal(b"/a\\04"), b"/a\\04");
        assert_eq!(&*unescape_octal(b"\\777"), b"\\777");
    }

    proptest! {
        #[test]
        fn anything_goes_in(bytes: Vec<u8>) {
            prop_assert!(!printable(&bytes).chars().any(char::is_control));
            printable_lines(&bytes);
            decimal(&bytes);
            fraction(&bytes);
            unescape_octal(&bytes);
        }
    }
}
