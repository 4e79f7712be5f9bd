//! What can go wrong, and which of it the sender can mend.

use model::{ApplyError, Digest, HostId, Version};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Cloned to everyone whose append shared a failed commit, therefore the shared causes.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("{path} is in use by another process")]
    InUse { path: PathBuf },
    #[error("could not open the history in {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: Arc<fjall::Error>,
    },
    /// A file of the engine's is damaged, and it does not say which.
    #[error(
        "a file of the history in {directory} is lost or damaged. Restore it from a backup; or, to \
         begin anew without what it has, run: mv {directory} {directory}.damaged"
    )]
    Unreadable {
        directory: PathBuf,
        #[source]
        source: Arc<fjall::Error>,
    },
    /// The engine would make up an empty one, and what was acknowledged would be gone.
    #[error(
        "{path} is lost, and what it held of the history. Restore {directory} from a backup; or, to \
         begin anew without what it has, run: mv {directory} {directory}.damaged"
    )]
    Lost { path: PathBuf, directory: PathBuf },
    #[error("could not read or prepare {path}")]
    Prepare {
        path: PathBuf,
        #[source]
        source: Arc<std::io::Error>,
    },
    /// Records follow the damage, so cutting it off would lose what was acknowledged.
    #[error(
        "{path} is damaged at byte {offset}, and intact records follow. Restore it from a backup; \
         or, to give up everything from there on, run: truncate -s {offset} {path}"
    )]
    Damaged { path: PathBuf, offset: u64 },
    #[error("the history is closed")]
    Closed,
    /// The queue is at its limit; nothing was taken. Try again a little later.
    #[error("the history takes no more for now: its queue is full")]
    Busy,
    /// The disk is full. Nothing of the request was stored.
    #[error("no space left for the history in {path}")]
    Full { path: PathBuf },
    /// The sender's picture of the head is not the head. What came before in the same request
    /// is stored. The sender sends a full state, or continues after `sequence`.
    #[error("the delta does not follow the head {version}")]
    BaseMismatch { digest: Digest, version: Version, sequence: Option<u64> },
    /// The delta leads elsewhere than it says. It is not stored.
    #[error("the delta for {host} leads to {found}, not to {expected}")]
    DigestMismatch { host: HostId, expected: Digest, found: Digest },
    /// The delta does not fit the state it names as its base. It is not stored.
    #[error("the delta does not apply to the head of {host}")]
    Inapplicable {
        host: HostId,
        #[source]
        source: ApplyError,
    },
    /// The delta leads to more items than a host may have. It is not stored.
    #[error("a host has at most {limit} items, this one {found}")]
    TooManyItems { limit: usize, found: usize },
    #[error("no history of {host}")]
    UnknownHost { host: HostId },
    #[error("{what} is larger than the {limit} bytes allowed")]
    TooLarge { what: &'static str, limit: usize },
    #[error("stored data is damaged: {what}{}", of(host.as_ref(), *version))]
    Corrupt { host: Option<HostId>, version: Option<Version>, what: String },
    #[error("could not {doing}")]
    Storage {
        doing: &'static str,
        #[source]
        source: Arc<fjall::Error>,
    },
    #[error("could not encode a record of {collection}")]
    Encode {
        collection: String,
        #[source]
        source: Arc<rmp_serde::encode::Error>,
    },
    #[error(
        "{0:?} can't be the name of a collection or record: it is empty, too long or has a zero byte"
    )]
    Name(String),
    /// A blocking write from within a callback would wait for itself.
    #[error("a callback of the history must not wait for a write")]
    InCallback,
}

impl Error {
    pub(crate) fn storage(doing: &'static str) -> impl FnOnce(fjall::Error) -> Self {
        move |source| Self::Storage { doing, source: Arc::new(source) }
    }

    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt { host: None, version: None, what: what.into() }
    }

    /// The engine could not be opened.
    pub(crate) fn open(path: &Path, source: fjall::Error) -> Self {
        let is_missing = |error: &std::io::Error| {
            use std::io::ErrorKind::{InvalidInput, NotFound, UnexpectedEof};
            matches!(error.kind(), InvalidInput | NotFound | UnexpectedEof)
        };
        let is_lost = match &source {
            fjall::Error::Locked => return Self::InUse { path: path.to_owned() },
            fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
                is_missing(error)
            }
            fjall::Error::Unrecoverable | fjall::Error::InvalidVersion(_) => true,
            other => is_damage(other),
        };
        if is_lost {
            return Self::unreadable(path, source);
        }
        Self::Open { path: path.to_owned(), source: Arc::new(source) }
    }

    /// The engine could not read what every start needs.
    pub(crate) fn unreadable(path: &Path, source: fjall::Error) -> Self {
        Self::Unreadable { directory: path.to_owned(), source: Arc::new(source) }
    }

    /// Whether what is stored is damaged, which trying again does not mend.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Corrupt { .. } => true,
            Self::Storage { source, .. } => is_damage(source),
            _ => false,
        }
    }

    /// Adds whose record it was, and turns the engine's own checksum failures into damage.
    pub(crate) fn of(self, of_host: &HostId, of_version: Option<Version>) -> Self {
        match self {
            Self::Corrupt { host: None, version, what } => {
                Self::Corrupt { host: Some(of_host.clone()), version: version.or(of_version), what }
            }
            Self::Storage { source, .. } if is_damage(&source) => Self::Corrupt {
                host: Some(of_host.clone()),
                version: of_version,
                what: source.to_string(),
            },
            other => other,
        }
    }

    /// A failed write, with a full disk told apart.
    pub(crate) fn write(path: &Path, doing: &'static str, source: fjall::Error) -> Self {
        if is_full(&source) {
            return Self::Full { path: path.to_owned() };
        }
        Self::Storage { doing, source: Arc::new(source) }
    }
}

fn of(host: Option<&HostId>, version: Option<Version>) -> String {
    match (host, version) {
        (Some(host), Some(version)) => format!(" ({host} {version})"),
        (Some(host), None) => format!(" ({host})"),
        (None, _) => String::new(),
    }
}

fn is_damage(error: &fjall::Error) -> bool {
    match error {
        fjall::Error::Decompress(_)
        | fjall::Error::InvalidTrailer
        | fjall::Error::InvalidTag(_) => true,
        fjall::Error::Storage(error) => !matches!(error, fjall::LsmError::Io(_)),
        _ => false,
    }
}

fn is_full(error: &fjall::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, StorageFull};
    match error {
        fjall::Error::Io(io) | fjall::Error::Storage(fjall::LsmError::Io(io)) => {
            matches!(io.kind(), StorageFull | QuotaExceeded)
        }
        _ => false,
    }
}
