//! One of several instances syncs: that which has the lease, in MongoDB, else in Redis. Without
//! either there is nothing that instances share, and each data directory has one server already.
//!
//! # Invariants
//! - Whoever can't tell that it has the lease does not sync: what another did meanwhile would be
//!   told twice.
//! - That another may have had it is noted before the lease is taken, and stays noted, over a kill,
//!   too, until what the other did is known here.

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
/// Where it is noted whether this instance knows what was done before it.
const KNOWS: (&str, &str) = ("sync", "knows");

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
    records: Records,
}

/// How the lease was come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// What was done before is known here.
    Again,
    /// Another may have had it, and what it did has to be learned.
    Over,
}

impl Lease {
    pub(super) async fn new(sync: &Sync, records: &Records) -> Self {
        let keeper = match (&sync.mongo, &sync.redis) {
            (Some(mongo), _) => Keeper::Mongo(mongo.clone()),
            (None, Some(redis)) => Keeper::Redis(redis.clone()),
            (None, None) => Keeper::Nobody,
        };
        let holder = match off_thread(records, name).await {
            Ok(name) => name,
            // Then it is another instance after each start, which costs a reading of documents.
            Err(_unreadable) => uuid::Uuid::now_v7().to_string(),
        };
        Self { keeper, holder, records: records.clone() }
    }

    /// Takes it, or goes on with it; else why not.
    pub(super) async fn take(&self) -> Result<Taken, String> {
        let is_ours = self.renew().await?;
        let knows = off_thread(&self.records, |records| records.get(KNOWS.0, KNOWS.1)).await?;
        if is_ours {
            return Ok(if knows.unwrap_or(true) { Taken::Again } else { Taken::Over });
        }
        // Who stands by asks again and again.
        if knows != Some(false) {
            self.note(false).await?;
        }
        let lease = match &self.keeper {
            Keeper::Mongo(mongo) => mongo.lease(&self.holder, clock::now(), TTL).await,
            Keeper::Redis(redis) => redis.lease(&self.holder, TTL).await,
            Keeper::Nobody => return Ok(Taken::Again),
        };
        match lease.map_err(|error| unclear(&error))? {
            sinks::Lease::Ours | sinks::Lease::TakenOver => Ok(Taken::Over),
            sinks::Lease::Others(other) => {
                let other: String = other.chars().filter(|c| !c.is_control()).take(80).collect();
                Err(format!("another instance does, {other}"))
            }
        }
    }

    /// Notes that what was done before is known here.
    pub(super) async fn learned(&self) -> Result<(), String> {
        self.note(true).await
    }

    async fn note(&self, knows: bool) -> Result<(), String> {
        off_thread(&self.records, move |records| records.put(KNOWS.0, KNOWS.1, &knows)).await
    }

    /// Goes on with it, if this instance had it last.
    async fn renew(&self) -> Result<bool, String> {
        let renewed = match &self.keeper {
            Keeper::Mongo(mongo) => mongo.renew(&self.holder, clock::now(), TTL).await,
            Keeper::Redis(redis) => redis.renew(&self.holder, TTL).await,
            Keeper::Nobody => Ok(true),
        };
        renewed.map_err(|error| unclear(&error))
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
            match tokio::time::timeout_at(until, self.renew()).await {
                Ok(Ok(true)) => taken_at = asked_at,
                Ok(Ok(false)) => return "another has the lease".to_owned(),
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

fn unclear(error: &sinks::Error) -> String {
    format!("whether another does can't be told: {}", with_causes(error))
}

/// Asks the records, which block.
async fn off_thread<T: Send + 'static>(
    records: &Records,
    ask: impl FnOnce(&Records) -> Result<T, store::Error> + Send + 'static,
) -> Result<T, String> {
    let records = records.clone();
    match tokio::task::spawn_blocking(move || ask(&records)).await {
        Ok(answer) => answer.map_err(|error| with_causes(&error)),
        Err(error) => Err(with_causes(&error)),
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
