//! Sessions in a Redis that is others'.
//!
//! Sessions are found by `SCAN`, a few at a time, and read. What changes ([`crate::session`])
//! is written by a script that compares: a session that is not as it was read is read anew.
//!
//! A pass may break off, and be done again with more changes. A change of names must not reach a
//! session twice then. So the script notes, in the same step, up to which change it brought a
//! session, in a hash of ours (`safetytwin:sync:pass`). It is there while a pass is, and goes
//! when the outbox has recorded that all changes arrived.
//!
//! # Invariants
//! - Only strings under keys of 30 letters and digits are read, and of these only what is a
//!   session is written.
//! - A key that has gone is not made anew; how long a key lives stays as it is.
//! - No command looks at the whole of Redis.

use crate::error::Error;
use crate::lease::Lease;
use crate::session::Edit;
use std::fmt;
use std::time::Duration;

#[cfg(feature = "redis")]
mod driver;
#[cfg(not(feature = "redis"))]
#[path = "redis/absent.rs"]
mod driver;

/// Where the sessions are.
#[derive(Clone)]
pub struct RedisSettings {
    pub host: String,
    pub port: u16,
    pub username: Option<String>,
    pub password: Option<String>,
    /// For a connection, and for each answer.
    pub timeout: Duration,
}

impl fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, username, password: _, timeout } = self;
        f.debug_struct("RedisSettings")
            .field("host", host)
            .field("port", port)
            .field("username", username)
            .field("timeout", timeout)
            .finish_non_exhaustive()
    }
}

/// What a pass came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// That were looked at.
    pub sessions: usize,
    pub changed: usize,
    /// Keys with the form of a session's that hold none, and why; keys are cut short.
    pub skipped: Vec<String>,
}

/// One Redis. Clones share a connection.
#[derive(Debug, Clone)]
pub struct RedisSink(driver::Driver);

impl RedisSink {
    /// Connects when something is asked of it.
    ///
    /// # Errors
    /// When the settings can't be right, or the program was built without Redis.
    pub fn new(settings: RedisSettings) -> Result<Self, Error> {
        driver::Driver::new(settings).map(Self)
    }

    /// Carries changes out on each session, once, in the order of their ids. To be called again
    /// with the same ones, and perhaps more, until it succeeds; then [`Self::forget`].
    ///
    /// # Errors
    /// When not every session has them.
    pub async fn apply(&self, edits: &[Edit]) -> Result<Applied, Error> {
        self.0.apply(edits).await
    }

    /// That nobody will ask again for what was applied.
    ///
    /// # Errors
    /// When it could not be forgotten; then it is with the next pass.
    pub async fn forget(&self) -> Result<(), Error> {
        self.0.forget().await
    }

    /// Goes on with the lease for `ttl`. False: another had it last, or nobody.
    ///
    /// # Errors
    /// When nobody knows who has it.
    pub async fn renew(&self, holder: &str, ttl: Duration) -> Result<bool, Error> {
        self.0.renew(holder, ttl).await
    }

    /// Takes the lease for `holder`, or goes on with it, for `ttl`.
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

    fn settings() -> RedisSettings {
        RedisSettings {
            host: "127.0.0.1".to_owned(),
            port: 1,
            username: Some("sync".to_owned()),
            password: Some("hidden-word".to_owned()),
            timeout: Duration::from_secs(1),
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let shown = format!("{:?}", settings());
        assert!(shown.contains("sync") && !shown.contains("hidden-word"), "{shown}");
    }

    #[cfg(not(feature = "redis"))]
    #[test]
    fn without_the_driver_it_says_so() {
        let error = RedisSink::new(settings()).unwrap_err();
        assert!(matches!(error, Error::NotBuilt("redis")) && !error.is_retriable());
    }
}
