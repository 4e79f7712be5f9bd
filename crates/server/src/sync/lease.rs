//! One of several instances syncs: that which has the lease, in MongoDB, else in Redis. Without
//! either there is nothing that instances share, and each data directory has one server already.
//!
//! # Invariants
//! - Whoever can't tell that it has the lease does not sync: what another did meanwhile would be
//!   told twice.

use super::Sync;
use crate::clock;
use model::with_causes;
use sinks::{MongoSink, RedisSink};
use std::time::Duration;
use store::Records;

/// From one try to take the lease to the next.
pub(super) const PAUSE: Duration = Duration::from_secs(5);
/// It is taken for so long, and taken again well before.
const TTL: Duration = Duration::from_secs(30);
/// Where this instance's name is kept.
const NAME: (&str, &str) = ("sync", "instance");

#[derive(Debug)]
enum Keeper {
    Mongo(MongoSink),
    Redis(RedisSink),
    Nobody,
}

#[derive(Debug)]
pub(super) struct Lease {
    keeper: Keeper,
    holder: String,
}

/// How the lease was come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// Nobody else had it since this instance did.
    Again,
    /// Another may have had it.
    Over,
}

impl Lease {
    pub(super) async fn new(sync: &Sync, records: &Records) -> Self {
        let keeper = match (&sync.mongo, &sync.redis) {
            (Some(mongo), _) => Keeper::Mongo(mongo.clone()),
            (None, Some(redis)) => Keeper::Redis(redis.clone()),
            (None, None) => Keeper::Nobody,
        };
        let records = records.clone();
        let name = tokio::task::spawn_blocking(move || name(&records)).await;
        let holder = match name {
            Ok(Ok(name)) => name,
            // Then it is another instance after each start, which costs a reading of documents.
            _ => uuid::Uuid::now_v7().to_string(),
        };
        Self { keeper, holder }
    }

    /// Takes it, or goes on with it; else why not.
    pub(super) async fn take(&self) -> Result<Taken, String> {
        let lease = match &self.keeper {
            Keeper::Mongo(mongo) => mongo.lease(&self.holder, clock::now(), TTL).await,
            Keeper::Redis(redis) => redis.lease(&self.holder, TTL).await,
            Keeper::Nobody => return Ok(Taken::Again),
        };
        match lease {
            Ok(sinks::Lease::Ours) => Ok(Taken::Again),
            Ok(sinks::Lease::TakenOver) => Ok(Taken::Over),
            Ok(sinks::Lease::Others(other)) => {
                let other: String = other.chars().filter(|c| !c.is_control()).take(80).collect();
                Err(format!("another instance does, {other}"))
            }
            Err(error) => {
                Err(format!("whether another does can't be told: {}", with_causes(&error)))
            }
        }
    }

    /// Goes on with it; returns when it is lost, and why.
    pub(super) async fn keep(&self) -> String {
        if matches!(self.keeper, Keeper::Nobody) {
            return std::future::pending().await;
        }
        let mut taken_at = tokio::time::Instant::now();
        loop {
            tokio::time::sleep(PAUSE).await;
            let asked_at = tokio::time::Instant::now();
            // Time for what is under way to be given up before it runs out.
            let until = taken_at + TTL - PAUSE;
            match tokio::time::timeout_at(until, self.take()).await {
                Ok(Ok(Taken::Again)) => taken_at = asked_at,
                Ok(Ok(Taken::Over)) => return "another had the lease for a time".to_owned(),
                Ok(Err(why)) if asked_at + PAUSE >= until => return why,
                Ok(Err(why)) => tracing::debug!(why, "the lease could not be renewed"),
                Err(_late) => return "the lease could not be renewed in time".to_owned(),
            }
        }
    }

    pub(super) async fn release(&self) {
        let released = match &self.keeper {
            Keeper::Mongo(mongo) => mongo.release(&self.holder).await,
            Keeper::Redis(redis) => redis.release(&self.holder).await,
            Keeper::Nobody => Ok(()),
        };
        if let Err(error) = released {
            tracing::debug!(error = with_causes(&error), "the lease runs out by itself");
        }
    }
}

/// What this instance is called, the same after each start.
fn name(records: &Records) -> Result<String, store::Error> {
    if let Some(name) = records.get::<String>(NAME.0, NAME.1)? {
        return Ok(name);
    }
    let name = uuid::Uuid::now_v7().to_string();
    records.put(NAME.0, NAME.1, &name)?;
    Ok(name)
}
