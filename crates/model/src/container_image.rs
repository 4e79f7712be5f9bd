//! What an image of containers consists of, as engines hand it out: a description, and layers,
//! each known by its digest.

use crate::checked;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;

checked!(
    /// The digest of a part of an image, or of an image, as engines write it: `sha256:…`.
    BlobDigest,
    "a digest of the form sha256: and 64 digits of hexadecimal, in lower case",
    is_digest
);

/// Layers of one image. Engines have at most some more than a hundred.
pub const LAYERS_MAX: usize = 512;
/// Bytes of a description.
pub const CONFIG_MAX: u64 = 4 << 20;
/// Bytes of one layer: what the head of an archive can say.
pub const LAYER_MAX: u64 = (1 << 33) - 1;

/// A part of an image: these bytes, and so many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub digest: BlobDigest,
    pub bytes: u64,
}

/// All of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Said")]
pub struct Parts {
    config: Part,
    layers: Vec<Part>,
}

/// The same before it was checked.
#[derive(Deserialize)]
struct Said {
    config: Part,
    layers: Vec<Part>,
}

/// Why parts are no image's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PartsError {
    #[error("an image has at most {LAYERS_MAX} layers")]
    Layers,
    #[error("the description of an image has at most {CONFIG_MAX} bytes")]
    Config,
    #[error("a layer of an image has at most {LAYER_MAX} bytes")]
    Layer,
    #[error("two parts of the image have the same digest, and not the same number of bytes")]
    Unequal,
}

impl BlobDigest {
    /// Of the 32 bytes that SHA-256 gives.
    #[must_use]
    pub fn of_sum(sum: &[u8]) -> Option<Self> {
        let mut text = String::from("sha256:");
        for byte in sum {
            write!(text, "{byte:02x}").ok()?;
        }
        text.parse().ok()
    }

    /// The digits alone.
    #[must_use]
    pub fn digits(&self) -> &str {
        self.as_str().strip_prefix("sha256:").unwrap_or_default()
    }
}

fn is_digest(text: &str) -> bool {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.strip_prefix("sha256:").is_some_and(|rest| rest.len() == 64 && rest.bytes().all(digit))
}

impl Parts {
    /// # Errors
    /// When no image has such parts.
    pub fn new(config: Part, layers: Vec<Part>) -> Result<Self, PartsError> {
        if layers.len() > LAYERS_MAX {
            return Err(PartsError::Layers);
        }
        if config.bytes > CONFIG_MAX {
            return Err(PartsError::Config);
        }
        if layers.iter().any(|layer| layer.bytes > LAYER_MAX) {
            return Err(PartsError::Layer);
        }
        let parts = Self { config, layers };
        let distinct = parts.distinct();
        let is_one = |part: &Part| distinct.get(&part.digest) == Some(&part.bytes);
        if !parts.each().all(is_one) {
            return Err(PartsError::Unequal);
        }
        Ok(parts)
    }

    #[must_use]
    pub fn config(&self) -> &Part {
        &self.config
    }

    /// From the lowest on; the same one may be there twice.
    #[must_use]
    pub fn layers(&self) -> &[Part] {
        &self.layers
    }

    /// All of them, as often as they are there.
    pub fn each(&self) -> impl Iterator<Item = &Part> {
        std::iter::once(&self.config).chain(&self.layers)
    }

    /// Each once, with its bytes.
    #[must_use]
    pub fn distinct(&self) -> BTreeMap<BlobDigest, u64> {
        self.each().map(|part| (part.digest.clone(), part.bytes)).collect()
    }

    /// Bytes of all, each once.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.distinct().values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }
}

impl TryFrom<Said> for Parts {
    type Error = PartsError;

    fn try_from(Said { config, layers }: Said) -> Result<Self, PartsError> {
        Self::new(config, layers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(digit: char, bytes: u64) -> Part {
        let digest = format!("sha256:{}", digit.to_string().repeat(64)).parse().unwrap();
        Part { digest, bytes }
    }

    #[test]
    fn digests() {
        let digest = BlobDigest::of_sum(&[0xab; 32]).unwrap();
        assert_eq!(digest.digits(), "ab".repeat(32));
        assert_eq!(BlobDigest::of_sum(&[1; 31]), None);
        let long = "a".repeat(64);
        for bad in ["", "sha256:", "sha256:ab", &long, &format!("sha256:{}", "A".repeat(64))] {
            assert!(bad.parse::<BlobDigest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn parts_that_an_image_can_have() {
        let check = |config: Part, layers: Vec<Part>, expected: Result<u64, PartsError>| {
            let text = serde_json::json!({"config": config, "layers": layers}).to_string();
            let made = Parts::new(config, layers);
            assert_eq!(serde_json::from_str::<Parts>(&text).ok(), made.clone().ok());
            assert_eq!(made.map(|parts| parts.bytes()), expected);
        };
        check(part('0', 2), vec![], Ok(2));
        check(part('0', 2), vec![part('1', 3), part('2', 5), part('1', 3)], Ok(10));
        check(part('0', 2), vec![part('1', 3), part('1', 4)], Err(PartsError::Unequal));
        check(part('0', CONFIG_MAX + 1), vec![], Err(PartsError::Config));
        check(part('0', 2), vec![part('1', LAYER_MAX + 1)], Err(PartsError::Layer));
        check(part('0', 2), vec![part('1', 3); LAYERS_MAX + 1], Err(PartsError::Layers));
    }
}
