//! Hashes: of a whole state, and of a file's content.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;

/// The hash of a set of items: the sum, lane by lane, of the BLAKE3 hashes of its items.
///
/// A sum, so that adding or removing one item costs one hash and not one of the whole state.
/// It detects divergence; it is no defence against someone who can choose items at will, who
/// by then can choose the state itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Digest([u64; 4]);

impl Digest {
    pub(crate) fn add(&mut self, item: &blake3::Hash) {
        for (lane, part) in self.0.iter_mut().zip(Self::lanes(item)) {
            *lane = lane.wrapping_add(part);
        }
    }

    pub(crate) fn subtract(&mut self, item: &blake3::Hash) {
        for (lane, part) in self.0.iter_mut().zip(Self::lanes(item)) {
            *lane = lane.wrapping_sub(part);
        }
    }

    fn lanes(hash: &blake3::Hash) -> impl Iterator<Item = u64> {
        hash.as_bytes().as_chunks::<8>().0.iter().map(|chunk| u64::from_le_bytes(*chunk))
    }

    /// The lanes one after the other, little-endian.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 32] {
        let mut bytes = [0; 32];
        for (chunk, lane) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *chunk = lane.to_le_bytes();
        }
        bytes
    }

    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let mut lanes = [0; 4];
        for (lane, chunk) in lanes.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *lane = u64::from_le_bytes(*chunk);
        }
        Self(lanes)
    }
}

/// The name of some content: its BLAKE3 hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentId([u8; 32]);

impl ContentId {
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self(*blake3::hash(content).as_bytes())
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a hash is 64 hexadecimal digits")]
pub struct NotAHash;

fn parse(text: &str) -> Result<[u8; 32], NotAHash> {
    blake3::Hash::from_hex(text).map(Into::into).map_err(|_hex| NotAHash)
}

macro_rules! hex_text {
    ($name:ident, $bytes:expr, $make:expr) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let bytes: [u8; 32] = $bytes(self);
                f.write_str(&blake3::Hash::from(bytes).to_hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }

        impl std::str::FromStr for $name {
            type Err = NotAHash;

            fn from_str(text: &str) -> Result<Self, NotAHash> {
                parse(text).map($make)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    serializer.serialize_bytes(&$bytes(self))
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    return text.parse().map_err(de::Error::custom);
                }
                deserializer.deserialize_bytes(HashBytes).map($make)
            }
        }
    };
}

struct HashBytes;

impl de::Visitor<'_> for HashBytes {
    type Value = [u8; 32];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("32 bytes")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<[u8; 32], E> {
        bytes.try_into().map_err(|_length| E::invalid_length(bytes.len(), &self))
    }
}

hex_text!(Digest, |d: &Digest| d.to_bytes(), Digest::from_bytes);
hex_text!(ContentId, |c: &ContentId| c.0, ContentId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_bytes_round_trip() {
        let id = ContentId::of(b"hello");
        assert_eq!(id.to_string().parse(), Ok(id));
        let packed = rmp_serde::to_vec_named(&id).unwrap();
        assert_eq!(packed.len(), 34);
        assert_eq!(rmp_serde::from_slice::<ContentId>(&packed).unwrap(), id);
        assert!(rmp_serde::from_slice::<ContentId>(&packed[..20]).is_err());
        assert_eq!("zz".parse::<ContentId>(), Err(NotAHash));
    }

    #[test]
    fn a_digest_is_a_sum() {
        let (a, b) = (blake3::hash(b"a"), blake3::hash(b"b"));
        let mut left = Digest::default();
        left.add(&a);
        left.add(&b);
        let mut right = Digest::default();
        right.add(&b);
        right.add(&a);
        assert_eq!(left, right);
        right.subtract(&a);
        right.subtract(&b);
        assert_eq!(right, Digest::default());
    }
}
