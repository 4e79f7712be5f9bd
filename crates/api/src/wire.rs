//! The agent's side of the wire: batches of deltas, as MessagePack with named fields,
//! compressed with zstd.
//!
//! A delta leads from one state to the next. It carries only the fields that changed, and the
//! digests of both states: the server applies it only to the state it was made from, and
//! keeps it only when it led to the state it should.

use crate::MAX_BODY;
use model::load::Load;
use model::{ContentId, Digest, Facts, Kind, Patch, Time, Version};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::io::Read;
use zstd::bulk::{Compressor, Decompressor};

/// Media type of [`Batch`] and [`Acknowledged`].
pub const MEDIA_TYPE: &str = "application/vnd.safetytwin.delta+msgpack";

/// What an agent sends in one request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// The agent's sequence space: a random name made with its state directory.
    pub stream: String,
    /// In order of sequence.
    #[serde(default)]
    pub deltas: Vec<Delta>,
    #[serde(default)]
    pub load: Vec<Load>,
    /// Version of the agent's program.
    #[serde(default)]
    pub agent: String,
    /// Kinds that the sender could not look at, and has no memory of: it asks what it told of
    /// them before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<Kind>,
}

/// One step of a host's history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// Counts up in a stream, from 1; merged deltas skip numbers.
    pub sequence: u64,
    /// By the host's clock.
    pub at: Time,
    pub body: Body,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<Gap>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Body {
    /// The whole state: at the beginning, and when the server's differs.
    Keyframe(Facts),
    Patch {
        base: Digest,
        next: Digest,
        patch: Patch,
    },
}

/// Says that this delta stands for several that could not be kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// Time of the first that was merged.
    pub since: Time,
    /// How many were merged.
    pub merged: u64,
}

/// Contents of files, sent before the deltas that name them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents(pub Vec<Vec<u8>>);

impl Serialize for Contents {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|content| Bytes(content)))
    }
}

struct Bytes<'a>(&'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de> Deserialize<'de> for Contents {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let contents: Vec<OwnedBytes> = Vec::deserialize(deserializer)?;
        Ok(Self(contents.into_iter().map(|content| content.0).collect()))
    }
}

struct OwnedBytes(Vec<u8>);

impl<'de> Deserialize<'de> for OwnedBytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = OwnedBytes;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<OwnedBytes, E> {
                Ok(OwnedBytes(bytes.to_vec()))
            }

            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<OwnedBytes, E> {
                Ok(OwnedBytes(bytes))
            }
        }

        deserializer.deserialize_byte_buf(Visitor)
    }
}

/// All deltas up to `sequence` are durable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Acknowledged {
    pub sequence: u64,
    pub version: Version,
    /// Contents that the state names and the server does not have.
    #[serde(default)]
    pub missing: Vec<ContentId>,
    /// What the host last told of the kinds it asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<Facts>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the body is not zstd-compressed data")]
    Compression(#[source] std::io::Error),
    #[error("the body is larger than {} MiB when decompressed", MAX_BODY >> 20)]
    TooLarge,
    #[error("the body does not have the form of a batch")]
    Form(#[source] rmp_serde::decode::Error),
}

const LEVEL: i32 = 3;
/// Messages up to this are compressed in a context that is kept, since making one costs more
/// than they do. Those of an agent's whole state are not: what they need would stay in memory.
const SMALL: usize = 4 << 10;
/// Bodies that say they unfold to this or less are unfolded in one step, in a context that is
/// kept. What a body says is no reason to set aside more.
const SMALL_UNFOLDED: u64 = 1 << 20;

thread_local! {
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Encodes and compresses any message of this wire.
#[must_use]
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let packed = rmp_serde::to_vec_named(message).expect("wire types always encode");
    let compressed = if packed.len() <= SMALL {
        COMPRESSOR.with_borrow_mut(|kept| {
            let compressor = match kept {
                Some(compressor) => compressor,
                None => kept.insert(Compressor::new(LEVEL).expect("a valid level")),
            };
            compressor.compress(&packed)
        })
    } else {
        zstd::bulk::compress(&packed, LEVEL)
    };
    compressed.expect("compressing memory into memory can't fail")
}

/// The reverse of [`encode`], for input that nobody vouches for.
///
/// # Errors
/// When it is not compressed, not of the form, or too large.
pub fn decode<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Error> {
    let packed = unfold(body)?;
    let mut decoder = rmp_serde::Deserializer::from_read_ref(&packed);
    decoder.set_max_depth(64);
    T::deserialize(&mut decoder).map_err(Error::Form)
}

fn unfold(body: &[u8]) -> Result<Vec<u8>, Error> {
    if let Some(packed) = unfold_small(body) {
        return Ok(packed);
    }
    let mut packed = Vec::new();
    let limit = u64::try_from(MAX_BODY).unwrap_or(u64::MAX) + 1;
    zstd::Decoder::new(body)
        .and_then(|decoder| decoder.take(limit).read_to_end(&mut packed))
        .map_err(Error::Compression)?;
    if packed.len() > MAX_BODY { Err(Error::TooLarge) } else { Ok(packed) }
}

/// `None` for what is not small, and for what does not unfold to what it says.
fn unfold_small(body: &[u8]) -> Option<Vec<u8>> {
    let size = zstd::decompressed_size(body).filter(|size| *size <= SMALL_UNFOLDED)?;
    let mut packed = Vec::with_capacity(usize::try_from(size).ok()?);
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            None => kept.insert(Decompressor::new().ok()?),
        };
        decompressor.decompress_to_buffer(body, &mut packed).ok()
    })?;
    Some(packed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batch() -> Batch {
        Batch {
            stream: "s".into(),
            deltas: vec![Delta {
                sequence: 1,
                at: Time(5),
                body: Body::Keyframe(Facts::default()),
                gap: Some(Gap { since: Time(1), merged: 3 }),
            }],
            load: vec![Load::default()],
            agent: "0.1.0".into(),
            unseen: vec![Kind::UNIT],
        }
    }

    #[test]
    fn batches_survive_the_wire() {
        assert_eq!(decode::<Batch>(&encode(&batch())).unwrap(), batch());
    }

    #[test]
    fn contents_survive_the_wire() {
        let contents = Contents(vec![b"a".to_vec(), vec![0xff; 300], Vec::new()]);
        assert_eq!(decode::<Contents>(&encode(&contents)).unwrap(), contents);
    }

    #[test]
    fn a_bomb_is_refused_before_it_unfolds() {
        let bomb = zstd::bulk::compress(&vec![0; MAX_BODY * 4], 1).unwrap();
        assert!(matches!(decode::<Batch>(&bomb), Err(Error::TooLarge)));
    }

    #[test]
    fn deep_nesting_is_an_error() {
        let mut deep = vec![0x91; 100_000];
        deep.push(0xc0);
        let body = zstd::bulk::compress(&deep, 1).unwrap();
        assert!(matches!(decode::<model::Value>(&body), Err(Error::Form(_))));
    }

    proptest! {
        #[test]
        fn anything_is_a_batch_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 0..400_usize) {
            let _either = decode::<Batch>(&bytes);
            let _either = decode::<Batch>(&zstd::bulk::compress(&bytes, 1).unwrap());
            let whole = encode(&batch());
            let _either = decode::<Batch>(whole.get(..cut.min(whole.len())).unwrap_or_default());
        }
    }
}
