//! The name of a host, checked.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;

/// A host's name: 1 to 253 of `[A-Za-z0-9._-]`, beginning with a letter or digit, without `..`.
///
/// It is safe as a path segment, a store key and an argument. Compared without regard to case,
/// as DNS does, by being kept in lower case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(Box<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a host name: 1 to 253 of A-Z a-z 0-9 . _ - , beginning with a letter or digit, without '..'"
)]
pub struct HostIdError(String);

impl HostId {
    /// # Errors
    /// When the text is not a host name.
    pub fn new(text: &str) -> Result<Self, HostIdError> {
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let ok = (1..=253).contains(&text.len())
            && text.bytes().all(legal)
            && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            && !text.contains("..");
        if ok {
            Ok(Self(text.to_ascii_lowercase().into()))
        } else {
            Err(HostIdError(text.chars().take(80).collect()))
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for HostId {
    type Err = HostIdError;

    fn from_str(text: &str) -> Result<Self, HostIdError> {
        Self::new(text)
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for HostId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for HostId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_are_hosts() {
        assert_eq!(HostId::new("Web01.example").unwrap().as_str(), "web01.example");
        for bad in ["", "..", "a..b", "/etc", "a/b", "-a", ".a", "a b", "a\n", "ü", "a\0", "a%2f"]
        {
            assert!(HostId::new(bad).is_err(), "{bad:?}");
        }
        assert!(HostId::new(&"a".repeat(254)).is_err());
    }
}
