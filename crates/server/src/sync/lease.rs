//! One of several instances syncs: that which has the lease, in MongoDB, else in Redis. Without
//! either there is nothing that instances share, and each data directory has one server already.
//!
//! # Invariants
//! - Whoever can't tell that it has the lease does not sync: what another did meanwhile would be
//!   told twice.
//! - That another may have had it is noted before the lease is taken, and stays noted, over a kill,
//!   too, until what the other did is known here.

use super::Sync;
use model::with_causes;
use sinks::{MongoSink, RedisSink};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::Records;
use tokio::time::Instant;

/// From one try to take the lease to the next.
pub(super) const PAUSE: Duration = Duration::from_secs(5);
/// It is taken for so long, and taken again well before.
const TTL: Duration = Duration::from_secs(30);
/// Where nobody else could have it.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);
/// Where this instance's name is kept.
const NAME: (&str, &str) = ("sync", "instance");
/// Where it is noted whether this instance knows what was done before it.
const KNOWS: (&str, &str) = ("sync", "knows");

/// Until when this instance certainly has the lease. Whoever decides or tells asks right before:
/// a process may have stood still for any time, and finds out too late that another works.
#[derive(Debug, Clone, Default)]
pub(super) struct Held(Arc<Mutex<Option<Instant>>>);

impl Held {
    pub(super) fn is_so(&self) -> bool {
        self.until().is_some_and(|until| Instant::now() < until)
    }

    fn until(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, until: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

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
    held: Held,
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
        Self { keeper, holder, records: records.clone(), held: sync.held.clone() }
    }

    /// Takes it, or goes on with it; else why not.
    pub(super) async fn take(&self) -> Result<Taken, String> {
        let asked_at = Instant::now();
        let taken = self.ask().await?;
        self.hold(asked_at);
        Ok(taken)
    }

    /// From when it was asked for on. There is time left for what is under way to be given up.
    fn hold(&self, asked_at: Instant) {
        let lasts = match self.keeper {
            Keeper::Nobody => FOR_EVER,
            Keeper::Mongo(_) | Keeper::Redis(_) => TTL - PAUSE,
        };
        self.held.set(Some(asked_at + lasts));
    }

    async fn ask(&self) -> Result<Taken, String> {
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
            Keeper::Mongo(mongo) => mongo.lease(&self.holder, TTL).await,
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
            Keeper::Mongo(mongo) => mongo.renew(&self.holder, TTL).await,
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
        let why = loop {
            tokio::time::sleep(PAUSE).await;
            let asked_at = Instant::now();
            let until = self.held.until().unwrap_or(asked_at);
            match tokio::time::timeout_at(until, self.renew()).await {
                Ok(Ok(true)) => self.hold(asked_at),
                Ok(Ok(false)) => break "another has the lease".to_owned(),
                Ok(Err(why)) if asked_at + PAUSE >= until => break why,
                Ok(Err(why)) => tracing::debug!(why, "the lease could not be renewed"),
                Err(_late) => break "the lease could not be renewed in time".to_owned(),
            }
        };
        self.held.set(None);
        why
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
