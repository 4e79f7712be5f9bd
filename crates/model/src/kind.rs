//! Kinds of things a host has, and the names of single ones.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;

/// A kind of item, such as `unit` or `package`: 1 to 16 lower-case letters.
///
/// Open on purpose: a server stores kinds that only a newer agent knows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind([u8; 16]);

impl Kind {
    pub const COLLECTOR: Self = Self::known("collector");
    pub const CONTAINER: Self = Self::known("container");
    pub const CPU: Self = Self::known("cpu");
    pub const DEPENDENCY: Self = Self::known("dependency");
    pub const DISK: Self = Self::known("disk");
    pub const FILE: Self = Self::known("file");
    pub const FILESYSTEM: Self = Self::known("filesystem");
    pub const GPU: Self = Self::known("gpu");
    pub const GROUP: Self = Self::known("group");
    pub const INTERFACE: Self = Self::known("interface");
    pub const MEMORY: Self = Self::known("memory");
    pub const PACKAGE: Self = Self::known("package");
    pub const PLATFORM: Self = Self::known("platform");
    pub const PROCESS: Self = Self::known("process");
    pub const ROUTE: Self = Self::known("route");
    pub const SOCKET: Self = Self::known("socket");
    pub const UNIT: Self = Self::known("unit");
    pub const USER: Self = Self::known("user");
    pub const WORKLOAD: Self = Self::known("workload");

    /// The kinds this version writes, in the order people read them.
    pub const ALL: [Self; 19] = [
        Self::UNIT,
        Self::CONTAINER,
        Self::PROCESS,
        Self::PACKAGE,
        Self::FILE,
        Self::SOCKET,
        Self::DEPENDENCY,
        Self::WORKLOAD,
        Self::USER,
        Self::GROUP,
        Self::PLATFORM,
        Self::CPU,
        Self::MEMORY,
        Self::DISK,
        Self::FILESYSTEM,
        Self::INTERFACE,
        Self::ROUTE,
        Self::GPU,
        Self::COLLECTOR,
    ];

    const fn known(name: &str) -> Self {
        let bytes = name.as_bytes();
        let mut padded = [0; 16];
        let mut i = 0;
        while i < bytes.len() {
            #[expect(clippy::indexing_slicing, reason = "const code; known names are short")]
            {
                padded[i] = bytes[i];
            }
            i += 1;
        }
        Self(padded)
    }

    /// Parses a kind's name; `None` unless it is 1 to 16 lower-case letters.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let ok = (1..=16).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_lowercase());
        ok.then(|| Self::known(name))
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(self.0.len());
        self.0.get(..end).and_then(|b| std::str::from_utf8(b).ok()).unwrap_or_default()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing on a host: `unit:nginx.service`, `file:/etc/hosts`.
///
/// The id is 1 to 1024 bytes without control characters: it can be printed, sorted and put
/// into a key as it is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject {
    kind: Kind,
    id: Box<str>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubjectError {
    #[error("a subject is written KIND:ID, such as unit:nginx.service")]
    Form,
    #[error("an id has 1 to {max} bytes, this one {len}", max = Subject::MAX_ID)]
    Length { len: usize },
    #[error("an id has no control characters")]
    Control,
}

impl Subject {
    /// Bytes an id may have.
    pub const MAX_ID: usize = 1024;

    /// Takes an id as it is.
    ///
    /// # Errors
    /// When it is empty, too long or has control characters.
    pub fn new(kind: Kind, id: &str) -> Result<Self, SubjectError> {
        if id.is_empty() || id.len() > Self::MAX_ID {
            return Err(SubjectError::Length { len: id.len() });
        }
        if id.chars().any(char::is_control) {
            return Err(SubjectError::Control);
        }
        Ok(Self { kind, id: id.into() })
    }

    /// Makes an id of any text the host has: control characters and backslashes before `x`
    /// become `\xNN`, what is too long ends in a hash of the whole, nothing becomes `-`.
    #[must_use]
    pub fn escaped(kind: Kind, raw: &str) -> Self {
        let mut id = String::with_capacity(raw.len());
        for c in raw.chars() {
            if c.is_control() {
                let mut utf8 = [0; 4];
                for byte in c.encode_utf8(&mut utf8).bytes() {
                    id.push_str(&format!("\\x{byte:02x}"));
                }
            } else {
                id.push(c);
            }
        }
        if id.is_empty() {
            id.push('-');
        }
        if id.len() > Self::MAX_ID {
            let hash = blake3::hash(raw.as_bytes()).to_hex();
            let mut end = Self::MAX_ID - 18;
            while !id.is_char_boundary(end) {
                end -= 1;
            }
            id.truncate(end);
            id.push('~');
            id.push_str(hash.get(..16).unwrap_or_default());
        }
        Self { kind, id: id.into() }
    }

    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The least subject of a kind, for ordered ranges.
    #[must_use]
    pub(crate) fn first_of(kind: Kind) -> Self {
        Self { kind, id: "".into() }
    }
}

impl std::str::FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let (kind, id) = text.split_once(':').ok_or(SubjectError::Form)?;
        Self::new(Kind::parse(kind).ok_or(SubjectError::Form)?, id)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.id)
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Kind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("a kind is 1 to 16 lower-case letters"))
    }
}

impl Serialize for Subject {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Subject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// The unit types systemd has.
const UNIT_TYPES: [&str; 11] = [
    "service",
    "socket",
    "device",
    "mount",
    "automount",
    "swap",
    "target",
    "path",
    "timer",
    "slice",
    "scope",
];

/// Whether systemd accepts this as the full name of a unit (`foo@bar.service`, `a\x2db.mount`).
#[must_use]
pub fn unit_name_is_valid(name: &str) -> bool {
    let Some((prefix, suffix)) = name.rsplit_once('.') else { return false };
    let legal = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    name.len() <= 255
        && !prefix.is_empty()
        && !prefix.starts_with('@')
        && UNIT_TYPES.contains(&suffix)
        && prefix.bytes().all(legal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_short_lower_case_words() {
        assert_eq!(Kind::parse("unit"), Some(Kind::UNIT));
        for bad in ["", "Unit", "un it", "seventeenletterss", "ünit"] {
            assert_eq!(Kind::parse(bad), None, "{bad}");
        }
        for kind in Kind::ALL {
            assert_eq!(Kind::parse(kind.as_str()), Some(kind));
        }
    }

    #[test]
    fn subjects_parse_back_from_what_they_print() {
        for text in ["unit:nginx.service", "file:/etc/a:b", "process:naïve", "unit:1000/x.service"]
        {
            assert_eq!(text.parse::<Subject>().unwrap().to_string(), text);
        }
        assert_eq!("unit:".parse::<Subject>(), Err(SubjectError::Length { len: 0 }));
        assert_eq!("nginx.service".parse::<Subject>(), Err(SubjectError::Form));
        assert_eq!("unit:a\x1b[2J".parse::<Subject>(), Err(SubjectError::Control));
    }

    #[test]
    fn hostile_names_become_printable_ids() {
        let subject = Subject::escaped(Kind::PROCESS, "a\nb\x1b[31m\u{85}");
        assert_eq!(subject.id(), "a\\x0ab\\x1b[31m\\xc2\\x85");
        let long = Subject::escaped(Kind::FILE, &"é".repeat(2000));
        assert!(long.id().len() <= Subject::MAX_ID);
        assert_ne!(long, Subject::escaped(Kind::FILE, &"é".repeat(2001)));
        assert_eq!(Subject::escaped(Kind::FILE, "").id(), "-");
    }

    #[test]
    fn unit_names() {
        for good in ["nginx.service", "a@b.service", "foo-\\x2dbar.mount", "-.mount", "a:b_c.timer"]
        {
            assert!(unit_name_is_valid(good), "{good}");
        }
        for bad in
            ["nginx", "../x.service", "a b.service", "@x.service", ".service", "x.exe", "ü.service"]
        {
            assert!(!unit_name_is_valid(bad), "{bad}");
        }
    }
}
