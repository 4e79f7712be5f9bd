//! Documents of VMs in a collection of MongoDB that others use, too.
//!
//! A batch of documents is read by their uuids, or that of many by one look at all; what differs
//! ([`crate::document`]) is set, each document by one atomic update. One that is not there is
//! inserted under an id that follows from its uuid: a batch that is sent again, since its answer
//! was lost, makes no second document.
//!
//! # Invariants
//! - No document is deleted, and no field but ours is set. What is ours alone is in collections
//!   of ours.
//! - What is sent at once has a limit.

use crate::document::VmDocument;
use crate::error::Error;
use crate::lease::Lease;
use crate::outbox::Known;
use std::fmt;
use std::time::Duration;

#[cfg(feature = "mongodb")]
mod driver;
#[cfg(not(feature = "mongodb"))]
#[path = "mongo/absent.rs"]
mod driver;

/// Where the documents are.
#[derive(Clone)]
pub struct MongoSettings {
    pub host: String,
    pub port: u16,
    pub username: Option<String>,
    pub password: Option<String>,
    pub db: String,
    pub collection: String,
    /// For a server to be found, and for each command.
    pub timeout: Duration,
}

impl fmt::Debug for MongoSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, username, password: _, db, collection, timeout } = self;
        f.debug_struct("MongoSettings")
            .field("host", host)
            .field("port", port)
            .field("username", username)
            .field("db", db)
            .field("collection", collection)
            .field("timeout", timeout)
            .finish_non_exhaustive()
    }
}

/// The documents there are.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Loaded {
    pub documents: Vec<VmDocument>,
    /// Documents that can't be those of VMs: which, and what is wrong.
    pub unreadable: Vec<String>,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Written {
    pub added: usize,
    /// Were there, and were written.
    pub updated: usize,
    /// Those of `updated` in which more than `last_sync_time` differed.
    pub changed: usize,
    /// The uuid, and why.
    pub failed: Vec<(String, String)>,
}

/// One collection. Clones are the same one.
#[derive(Debug, Clone)]
pub struct MongoSink(driver::Driver);

impl MongoSink {
    /// Connects when something is asked of it. Called within a runtime of tokio.
    ///
    /// # Errors
    /// When the settings can't be right, or the program was built without MongoDB.
    pub fn new(settings: MongoSettings) -> Result<Self, Error> {
        driver::Driver::new(settings).map(Self)
    }

    /// The documents that say one of these hosts.
    ///
    /// # Errors
    /// When they can't be read.
    pub async fn load(&self, hosts: &[String]) -> Result<Loaded, Error> {
        self.0.load(hosts).await
    }

    /// Makes documents say so. Of one uuid the last document counts.
    ///
    /// # Errors
    /// When not all could be tried; it is to be done again then.
    pub async fn write(&self, documents: &[VmDocument]) -> Result<Written, Error> {
        self.0.write(documents).await
    }

    /// As what those who are told know VMs.
    ///
    /// # Errors
    /// When it can't be read.
    pub async fn known(&self) -> Result<Vec<Known>, Error> {
        self.0.known().await
    }

    /// Notes as what VMs are known now.
    ///
    /// # Errors
    /// When not all could be noted; it is to be done again then.
    pub async fn note(&self, known: &[Known]) -> Result<(), Error> {
        self.0.note(known, false).await
    }

    /// Notes it of those of which nothing is noted.
    ///
    /// # Errors
    /// As [`Self::note`].
    pub async fn note_first(&self, known: &[Known]) -> Result<(), Error> {
        self.0.note(known, true).await
    }

    /// Goes on with the lease for `ttl` from now on. False: another had it last, or nobody.
    ///
    /// # Errors
    /// When nobody knows who has it.
    pub async fn renew(&self, holder: &str, ttl: Duration) -> Result<bool, Error> {
        self.0.renew(holder, ttl).await
    }

    /// Takes the lease for `holder`, or goes on with it, for `ttl` from now on.
    ///
    /// # Errors
    /// When nobody knows who has it.
    pub async fn lease(&self, holder: &str, ttl: Duration) -> Result<Lease, Error> {
        self.0.lease(holder, ttl).await
    }

    /// Gives the lease back, if `holder` has it. That it was the last stays known.
    ///
    /// # Errors
    /// When it can't be; it ends by itself then.
    pub async fn release(&self, holder: &str) -> Result<(), Error> {
        self.0.release(holder).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        let settings = MongoSettings {
            host: "127.0.0.1".to_owned(),
            port: 1,
            username: Some("sync".to_owned()),
            password: Some("hidden-word".to_owned()),
            db: "esxi".to_owned(),
            collection: "vms".to_owned(),
            timeout: Duration::from_secs(1),
        };
        let shown = format!("{settings:?}");
        assert!(shown.contains("sync") && !shown.contains("hidden-word"), "{shown}");
    }

    #[cfg(not(feature = "mongodb"))]
    #[test]
    fn without_the_driver_it_says_so() {
        let settings = MongoSettings {
            host: "127.0.0.1".to_owned(),
            port: 1,
            username: None,
            password: None,
            db: "esxi".to_owned(),
            collection: "vms".to_owned(),
            timeout: Duration::from_secs(1),
        };
        let error = MongoSink::new(settings).unwrap_err();
        assert!(matches!(error, Error::NotBuilt("mongodb")) && !error.is_retriable());
    }
}
