//! Tracked files: what is in them, whose they are, and what can't be known of them.

use super::{AccountName, FilePath, LinkTarget, Mode, PackageName, Spec};
use crate::entity::{self, Entity};
use crate::{ContentId, Facts, Subject, TextError, Time};
use serde::{Deserialize, Serialize};

/// Where the bytes of a file come from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// What the server keeps under this name.
    Stored(ContentId),
    /// Made for the twin.
    Made(String),
}

impl Source {
    #[must_use]
    pub fn id(&self) -> ContentId {
        match self {
            Self::Stored(id) => *id,
            Self::Made(text) => ContentId::of(text.as_bytes()),
        }
    }
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    Plain {
        source: Source,
        mode: Mode,
        owner: AccountName,
        group: AccountName,
    },
    Link(LinkTarget),
    /// Its bytes do not leave the host.
    Withheld {
        fingerprint: Option<String>,
        why: Withheld,
    },
}

/// Why a file's bytes are not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Withheld {
    /// Some of it, or all, is secret.
    Secret,
    /// For the agent's reason: binary, too large, unreadable.
    Data(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub subject: Subject,
    pub body: Body,
    pub role: String,
    pub package: Option<PackageName>,
    pub modified_at: Option<Time>,
}

impl Spec {
    pub(super) fn take_files(&mut self, facts: &Facts) {
        let looked = facts.entity::<entity::Collector>("files").unwrap_or_default();
        self.directories = looked.directories.iter().filter_map(|path| path.parse().ok()).collect();
        self.missing = looked.missing.iter().filter_map(|path| path.parse().ok()).collect();
        for file in facts.entities::<entity::File>() {
            let (subject, _) = file.to_item();
            // The environment is the twin's own; what masks a unit belongs to the unit.
            if file.path == super::ENVIRONMENT || masks(&file) {
                continue;
            }
            match self::file(subject.clone(), file) {
                Ok((path, file)) => {
                    self.files.insert(path, file);
                }
                Err(error) => self.unsafe_gap(&subject, &error),
            }
        }
    }
}

pub(crate) fn masks(file: &entity::File) -> bool {
    file.link.as_deref() == Some("/dev/null") && is_unit_file(&file.path)
}

/// Whether systemd reads units from where this path is.
pub(crate) fn is_unit_file(path: &str) -> bool {
    const PLACES: [&str; 4] = [
        "/etc/systemd/system/",
        "/lib/systemd/system/",
        "/usr/lib/systemd/system/",
        "/usr/local/lib/systemd/system/",
    ];
    PLACES.iter().any(|place| path.starts_with(place))
}

fn file(subject: Subject, file: entity::File) -> Result<(FilePath, File), TextError> {
    let path = file.path.parse()?;
    let body = match (&file.link, &file.content) {
        (Some(target), _) => Body::Link(target.parse()?),
        (None, Some(_)) if file.redacted => {
            Body::Withheld { fingerprint: file.fingerprint, why: Withheld::Secret }
        }
        (None, Some(content)) => {
            let source = content.parse().map_err(|_hash| TextError::new(content, "a hash"))?;
            Body::Plain {
                source: Source::Stored(source),
                mode: file.mode.unwrap_or_default().parse()?,
                owner: file.owner.unwrap_or_default().parse()?,
                group: file.group.unwrap_or_default().parse()?,
            }
        }
        (None, None) => {
            let why = match file.withheld.as_deref() {
                Some("private") => Withheld::Secret,
                why => Withheld::Data(why.unwrap_or("not read").to_owned()),
            };
            Body::Withheld { fingerprint: file.fingerprint, why }
        }
    };
    let package = file.package.and_then(|name| name.parse().ok());
    Ok((path, File { subject, body, role: file.role, package, modified_at: file.modified_at }))
}
