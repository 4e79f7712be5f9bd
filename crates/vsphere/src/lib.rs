//! Reads which VMs there are on an ESXi host, or of a vCenter, and follows how they change.
//! Changes nothing there.
//!
//! ```text
//!   Session::open ─► list ─────────────────► Objects, whole
//!        └─────────► watch ─► next … next ──► changes of Objects
//!                                                  └─ listing() ─► what the inventory takes
//! ```
//!
//! The SOAP interface is spoken because it is there on hosts and vCenters of all ages. Of it only
//! the few calls are made that a listing needs.
//!
//! # Invariants
//! - Each call has a deadline, each answer a limit in bytes, depth and elements.
//! - The server's certificate is verified, unless it was told not to be.
//! - A password is never part of a text that is shown.
//! - Nothing is a VM of the listing whose UUID is not known.

mod channel;
mod listing;
mod objects;
mod session;
mod soap;
mod tls;
pub mod xml;

pub use listing::{Read, listing, partly, shown};
pub use objects::{Change, Machine, Objects, Place, Thing};
pub use session::{About, PAGE, Session, Updates, Watch};
pub use soap::{answer, updates};
pub use tls::{Fingerprint, FingerprintError, Trust};

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Where a source is, and who asks.
#[derive(Debug, Clone)]
pub struct Settings {
    /// A name or an address.
    pub host: String,
    pub port: u16,
    pub username: String,
    pub password: Password,
    pub trust: Trust,
    /// For a connection and for each call, beside the time that it may wait for changes.
    pub timeout: Duration,
    pub requests: Requests,
}

/// Counts the requests that are made. Clones are the same count.
#[derive(Debug, Clone, Default)]
pub struct Requests(Arc<AtomicU64>);

impl Requests {
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Never shown.
#[derive(Clone)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0:?} is no name or address that a server can have")]
    Host(String),
    #[error("could not read the certificates of {path}")]
    CaFile {
        path: std::path::PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{0} has no certificate; it is to hold those of the CA, as PEM")]
    NoCertificate(std::path::PathBuf),
    #[error("TLS can't be set up")]
    Setup(#[source] rustls::Error),
    #[error("could not connect to {at}; is it on, and is the port right?")]
    Connect {
        at: String,
        #[source]
        source: io::Error,
    },
    #[error(
        "{at} could not prove who it is; name its CA with ca_file, or its certificate with fingerprint"
    )]
    Tls {
        at: String,
        #[source]
        source: io::Error,
    },
    #[error("{at} refused the user name or password; see username and password of this host")]
    Login { at: String },
    #[error("{at} did not answer {call} within {} s", .after.as_secs())]
    Deadline { at: String, call: &'static str, after: Duration },
    #[error("the connection to {at} broke off during {call}")]
    Broken {
        at: String,
        call: &'static str,
        #[source]
        source: hyper::Error,
    },
    #[error("{at} answered {call} with the HTTP status {status}; is it an ESXi host or a vCenter?")]
    Status { at: String, call: &'static str, status: u16 },
    #[error("{at} answered {call} with more than {} MiB, which is refused", .limit >> 20)]
    TooLarge { at: String, call: &'static str, limit: usize },
    #[error("{at} answered {call} with what can't be read")]
    Answer {
        at: String,
        call: &'static str,
        #[source]
        source: xml::Error,
    },
    #[error("{at} answered {call} without {lacks}")]
    Unexpected { at: String, call: &'static str, lacks: &'static str },
    #[error("{at} refused {call}: {message} ({kind})")]
    Fault { at: String, call: &'static str, kind: String, message: String },
}

impl Error {
    /// The session ended there, as it does after a time or when the host is restarted: a new
    /// one is to be begun.
    #[must_use]
    pub fn is_session_over(&self) -> bool {
        matches!(self, Self::Fault { kind, .. } if matches!(kind.as_str(), "NotAuthenticated" | "ManagedObjectNotFound" | "InvalidCollectorVersion"))
    }

    /// More was told at once than is taken: fewer objects are to be asked for.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::TooLarge { .. } | Self::Answer { source: xml::Error::Large, .. })
    }

    /// The same will be answered until somebody changes the configuration. Asked too often with
    /// a wrong password, a host locks the account.
    #[must_use]
    pub fn needs_somebody(&self) -> bool {
        matches!(
            self,
            Self::Login { .. }
                | Self::Host(_)
                | Self::CaFile { .. }
                | Self::NoCertificate(_)
                | Self::Tls { .. }
        )
    }
}
