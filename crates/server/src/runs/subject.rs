//! What a run is done to. One run at a time is on for one subject.

use std::fmt;
use std::str::FromStr;

/// `image:debian`, `twin:web01`: a kind of thing, and the name of one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subject(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not what a run is done to; write KIND:NAME, as image:debian")]
pub struct SubjectError(String);

impl Subject {
    #[must_use]
    pub fn image(name: &vm::image::ImageName) -> Self {
        Self(format!("image:{name}"))
    }

    #[must_use]
    pub fn twin(name: &vm::image::MachineName) -> Self {
        Self(format!("twin:{name}"))
    }

    /// The VMs of all vSpheres.
    #[must_use]
    pub fn sync() -> Self {
        Self("sync:vsphere".to_owned())
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let name = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
        match text.split_once(':') {
            Some((kind, id))
                if !kind.is_empty()
                    && kind.chars().all(|c| c.is_ascii_lowercase())
                    && (1..=300).contains(&id.len())
                    && id.chars().all(name) =>
            {
                Ok(Self(text.to_owned()))
            }
            _ => Err(SubjectError(text.chars().take(80).collect())),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
