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
//! - The stream of one host resumes after the newest version seen. That of all hosts can't be
//!   resumed, so after every connection the logs are read for what came in between.

use crate::failure::Failure;
use crate::remote::{LogQuery, Query, Remote};
use crate::session::note;
use crate::sse::Parser;
use api::answer::Entry;
use api::client::Body;
use http_body_util::BodyExt;
use model::{HostId, Version};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// A server sends something at least every 15 s; one silent for so long is gone.
pub(crate) const SILENCE: Duration = Duration::from_secs(60);

/// Waits between attempts double from the first to the second.
pub(crate) const WAITS: (Duration, Duration) =
    (Duration::from_millis(250), Duration::from_secs(10));

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
    /// The newest version of each host that was given out or was there at the beginning.
    seen: BTreeMap<HostId, Version>,
    connection: Option<(Body, Parser)>,
    queue: VecDeque<Entry>,
    /// Before the next attempt.
    wait: Duration,
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
        match (&scope, from) {
            (Scope::Host { host, .. }, Some(from)) => {
                seen.insert(host.clone(), from);
            }
            (Scope::Host { host, .. }, None) => {
                let newest = remote.host(host).await?.map_or(Version(0), |host| host.version);
                seen.insert(host.clone(), newest);
            }
            (Scope::All, _) => {
                for host in remote.hosts(MAX_HOSTS).await? {
                    seen.insert(host.host, host.version);
                }
            }
        }
        let mut follow =
            Self { remote, scope, seen, connection: None, queue: VecDeque::new(), wait: WAITS.0 };
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
            while let Some(entry) = self.queue.pop_front() {
                let seen = self.seen.entry(entry.host.clone()).or_insert(Version(0));
                if entry.version > *seen {
                    *seen = entry.version;
                    return Ok(entry);
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

    async fn reconnect(&mut self) -> Result<(), Failure> {
        let mut told = false;
        loop {
            tokio::time::sleep(self.wait).await;
            self.wait = (self.wait * 2).min(WAITS.1);
            match self.connect().await {
                Err(Failure::NoServer { reason, .. }) => {
                    if !told {
                        note(&format!("lost {} ({reason}); trying again", self.remote.url()));
                    }
                    told = true;
                }
                Err(other) => return Err(other),
                Ok(()) => {
                    if told {
                        note(&format!("back at {}", self.remote.url()));
                    }
                    return Ok(());
                }
            }
        }
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        let query = match &self.scope {
            Scope::All => Query::of(&["events"]),
            Scope::Host { host, subjects } => Query::of(&["hosts", host.as_str(), "events"])
                .with_some("from", self.seen.get(host).map(|version| version.0))
                .with_each("subject", subjects),
        };
        let body = self.remote.events(&query).await?;
        self.connection = body.map(|body| (body, Parser::default()));
        if self.scope == Scope::All {
            self.catch_up().await?;
        }
        Ok(())
    }

    /// Reads what came between the newest seen versions and the stream's beginning.
    async fn catch_up(&mut self) -> Result<(), Failure> {
        let mut missed: Vec<Entry> = Vec::new();
        for host in self.remote.hosts(MAX_HOSTS).await? {
            let seen = self.seen.get(&host.host).copied().unwrap_or(Version(0));
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
        self.queue.extend(missed);
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
                    self.wait = WAITS.0;
                    self.queue.push_back(entry);
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
