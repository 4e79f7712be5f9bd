//! Follows the changes of one host, or of all, over any number of connections.
//!
//! ```text
//!            ┌─────────── broke, ended, silent, lost ◄──────────┐
//!            ▼                                                  │
//!   wait ─► connect ─► catch up (all hosts only) ─► read events ┘
//!     ▲        │ no server
//!     └────────┘           a refusal ends it
//! ```
//!
//! # Invariants
//! - Of each host, versions come in rising order, each at most once, and none is left out:
//!   whatever a connection brings again is dropped, and what none brought is asked for.
//! - A host that was deleted and came back counts from 1 again: that is another life of it, of
//!   which nothing was seen before, however far the last one went.
//! - The stream of one host resumes after the newest version seen. That of all hosts can't be
//!   resumed, so after every connection the logs are read for what came in between.

use crate::failure::Failure;
use crate::patience::Patience;
use crate::remote::{ALL_CHANGES, LogQuery, Query, Remote};
use crate::sse::Parser;
use api::answer::{Entry, Host};
use api::client::Body;
use http_body_util::BodyExt;
use model::{HostId, Time, Version};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// A server sends something at least every 15 s; one silent for so long is gone.
pub(crate) const SILENCE: Duration = Duration::from_secs(60);

/// Entries asked for at once when catching up.
const PAGE: usize = 200;

/// Hosts that are followed together.
const MAX_HOSTS: usize = 100_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Scope {
    All,
    Host { host: HostId, subjects: Vec<String> },
}

pub(crate) struct Follow {
    remote: Remote,
    scope: Scope,
    seen: BTreeMap<HostId, Seen>,
    connection: Option<(Body, Parser)>,
    /// The last version of each host that this connection brought.
    brought: BTreeMap<HostId, Version>,
    queue: VecDeque<Told>,
    patience: Patience,
}

/// The newest of a host that was given out or was there at the beginning, as far as known.
#[derive(Debug, Clone)]
struct Seen {
    version: Version,
    at: Option<Time>,
    /// The latest that the server had any of it.
    received_at: Option<Time>,
    /// When the host's first version was, which differs between its lives.
    first_at: Option<Time>,
    /// What the stream calls the life.
    life: Option<String>,
}

impl Default for Seen {
    fn default() -> Self {
        Self { version: Version(0), at: None, received_at: None, first_at: None, life: None }
    }
}

impl Seen {
    /// All that the server has of it now.
    fn all_of(host: &Host) -> Self {
        let (at, first_at) = (Some(host.changed_at), Some(host.first_at));
        Self { version: host.version, at, first_at, ..Self::default() }
    }

    /// Nothing yet, if the host began anew.
    fn look_for_another_life(&mut self, first_at: Time) {
        if self.first_at.is_some_and(|known| known != first_at) {
            *self = Self::default();
        }
        self.first_at = Some(first_at);
    }

    /// Whether it is of another life, and not of what was seen.
    fn is_another_life(&self, told: &Told) -> bool {
        let entry = &told.entry;
        if let (Some(ours), Some(theirs)) = (&self.life, &told.life) {
            return ours != theirs;
        }
        if entry.version > self.version {
            return false;
        }
        // In one life, what came later is neither of an earlier version nor of an earlier time.
        told.steps_back
            || self.at.is_some_and(|at| entry.at > at)
            || self.received_at.is_some_and(|at| entry.received_at > at)
            || entry.version == Version(1) && self.first_at.is_some_and(|at| entry.at != at)
    }

    /// Whether this was not given out before; from now on it was.
    fn take(&mut self, told: &Told) -> bool {
        let entry = &told.entry;
        if self.is_another_life(told) {
            let first_at = (entry.version == Version(1)).then_some(entry.at);
            *self = Self { first_at, ..Self::default() };
        }
        let is_new = entry.version > self.version;
        if is_new {
            self.version = entry.version;
            self.at = Some(entry.at);
            self.received_at = self.received_at.max(Some(entry.received_at));
            self.life.clone_from(&told.life);
        }
        is_new
    }
}

/// An entry as it came.
#[derive(Debug)]
struct Told {
    entry: Entry,
    /// From the event's id.
    life: Option<String>,
    /// Its stream had brought this version or a later one: streams do that for another life only.
    steps_back: bool,
}

/// `7d` of an event's id: `412-7d`, `web01:412-7d`. Without lives, an id is a version alone.
fn life(id: &str) -> Option<&str> {
    let version = id.rsplit(':').next().unwrap_or(id);
    version.split_once('-').map(|(_, life)| life).filter(|life| !life.is_empty())
}

/// Why a connection is of no more use.
enum Broken {
    /// A new one may do better.
    Connection,
    Refused(Failure),
}

impl Follow {
    /// Follows from what is newest now, or from after `from`.
    pub(crate) async fn new(
        mut remote: Remote,
        scope: Scope,
        from: Option<Version>,
    ) -> Result<Self, Failure> {
        let mut seen = BTreeMap::new();
        match &scope {
            Scope::Host { host, .. } => {
                let newest = remote.host(host).await?.as_ref().map(Seen::all_of);
                let newest = newest.unwrap_or_default();
                let begin = match from {
                    Some(version) => Seen { version, at: None, ..newest },
                    None => newest,
                };
                seen.insert(host.clone(), begin);
            }
            Scope::All => {
                for host in remote.hosts(MAX_HOSTS).await? {
                    seen.insert(host.host.clone(), Seen::all_of(&host));
                }
            }
        }
        let (brought, queue) = (BTreeMap::new(), VecDeque::new());
        let mut follow = Self {
            remote,
            scope,
            seen,
            connection: None,
            brought,
            queue,
            patience: Patience::new(),
        };
        // A server that refuses at once is told at once, and so is one that is not there.
        follow.connect().await?;
        Ok(follow)
    }

    /// Whether only some of a version's changes are asked for.
    pub(crate) fn is_filtered(&self) -> bool {
        matches!(&self.scope, Scope::Host { subjects, .. } if !subjects.is_empty())
    }

    pub(crate) fn is_of_all(&self) -> bool {
        self.scope == Scope::All
    }

    /// The next entry, as soon as there is one.
    pub(crate) async fn next(&mut self) -> Result<Entry, Failure> {
        loop {
            while let Some(told) = self.queue.pop_front() {
                if self.seen.entry(told.entry.host.clone()).or_default().take(&told) {
                    return Ok(told.entry);
                }
            }
            match self.read().await {
                Ok(()) => {}
                Err(Broken::Refused(failure)) => return Err(failure),
                // What it brought before it broke is given out first.
                Err(Broken::Connection) if self.connection.take().is_some() => {}
                Err(Broken::Connection) => self.reconnect().await?,
            }
        }
    }

    /// The entry with all its changes, of which a stream brings only so many. As it is where
    /// the rest is not there any more.
    pub(crate) async fn whole(&mut self, entry: Entry) -> Entry {
        if entry.changes.len() >= entry.total_changes {
            return entry;
        }
        let subjects = match &self.scope {
            Scope::All => Vec::new(),
            Scope::Host { subjects, .. } => subjects.clone(),
        };
        let part = LogQuery {
            related: !subjects.is_empty(),
            subjects,
            before: Some(Version(entry.version.0 + 1)),
            limit: 1,
            changes: Some(ALL_CHANGES),
            ..LogQuery::default()
        };
        let is_it = |one: &Entry| {
            (one.version, one.at) == (entry.version, entry.at)
                && one.changes.len() >= entry.changes.len()
        };
        match self.remote.log(&entry.host, &part).await {
            Ok(log) => log.entries.into_iter().find(is_it).unwrap_or(entry),
            Err(_not_now) => entry,
        }
    }

    async fn reconnect(&mut self) -> Result<(), Failure> {
        loop {
            self.patience.pause().await;
            let tried = self.resume().await;
            if let Some(done) = self.patience.judge(self.remote.url(), tried) {
                return done;
            }
        }
    }

    /// Goes on where it stopped; from the beginning, if the host has another life meanwhile.
    async fn resume(&mut self) -> Result<(), Failure> {
        if let Scope::Host { host, .. } = &self.scope {
            match self.remote.host(host).await {
                Ok(Some(now)) => {
                    let seen = self.seen.entry(now.host.clone()).or_default();
                    seen.look_for_another_life(now.first_at);
                }
                Err(missing @ Failure::NoServer { .. }) => return Err(missing),
                // The stream itself is refused for the same reason, or is not.
                Ok(None) | Err(_) => {}
            }
        }
        self.connect().await
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        let query = match &self.scope {
            Scope::All => Query::of(&["events"]),
            Scope::Host { host, subjects } => Query::of(&["hosts", host.as_str(), "events"])
                .with_some("from", self.seen.get(host).map(|seen| seen.version.0))
                .with_each("subject", subjects),
        };
        let body = self.remote.events(&query).await?;
        self.connection = body.map(|body| (body, Parser::default()));
        self.brought.clear();
        if self.scope == Scope::All {
            self.catch_up().await?;
        }
        Ok(())
    }

    /// Reads what came between the newest seen versions and the stream's beginning.
    async fn catch_up(&mut self) -> Result<(), Failure> {
        let mut missed: Vec<Entry> = Vec::new();
        for host in self.remote.hosts(MAX_HOSTS).await? {
            let seen = self.seen.entry(host.host.clone()).or_default();
            seen.look_for_another_life(host.first_at);
            let seen = seen.version;
            let mut before = None;
            let mut more = host.version > seen;
            while more {
                let part = LogQuery { before, limit: PAGE, ..LogQuery::default() };
                let page = self.remote.log(&host.host, &part).await?;
                let old = page.entries.iter().any(|entry| entry.version <= seen);
                let further = page.next.filter(|next| before.is_none_or(|before| *next < before));
                more = !old && further.is_some();
                before = further;
                missed.extend(page.entries.into_iter().filter(|entry| entry.version > seen));
            }
        }
        missed.sort_by_key(|entry| (entry.at, entry.version));
        let told = |entry| Told { entry, life: None, steps_back: false };
        self.queue.extend(missed.into_iter().map(told));
        Ok(())
    }

    /// Waits for bytes and queues the events they complete.
    async fn read(&mut self) -> Result<(), Broken> {
        let Some((body, parser)) = &mut self.connection else { return Err(Broken::Connection) };
        let Ok(Some(Ok(frame))) = tokio::time::timeout(SILENCE, body.frame()).await else {
            return Err(Broken::Connection);
        };
        let Ok(bytes) = frame.into_data() else { return Ok(()) };
        let refused = |text: String| Broken::Refused(Failure::Failed(text));
        let events = parser.feed(&bytes).map_err(|error| refused(error.to_string()))?;
        for event in events {
            match event.name.as_str() {
                "version" => {
                    let entry: Entry = serde_json::from_str(&event.data).map_err(|error| {
                        refused(format!("an event is not understood ({error}); compare versions with: twin doctor"))
                    })?;
                    self.patience.restore();
                    let before = self.brought.insert(entry.host.clone(), entry.version);
                    let steps_back = before.is_some_and(|before| entry.version <= before);
                    let life = life(&event.id).map(str::to_owned);
                    self.queue.push_back(Told { entry, life, steps_back });
                }
                // The server had to leave some out: they come when this resumes.
                "lost" => return Err(Broken::Connection),
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
