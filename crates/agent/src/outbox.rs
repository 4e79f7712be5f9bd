//! Brings deltas to the server, in order, over one kept connection. Owns the spool.
//!
//! ```text
//!             ┌── nothing waits ──┐
//!             ▼                   │
//!   idle ──delta──► sending ──acknowledged
//!                     │  └── base_mismatch ──► resync: whole state, new stream ──► sending
//!                     └── anything else ──► waiting (backoff) ──► sending
//! ```
//!
//! A delta is in the spool before it is sent and leaves it when the server has said that it is
//! durable. Load rides along, waits in memory while the server is away ([`Backlog`]), and is no
//! reason to keep anything on disk.
//!
//! What the spool can't read back is given up, and the engine tells the whole state instead.

use crate::backlog::Backlog;
use crate::clock;
use crate::contents::Contents;
use crate::engine::{LOOKS, Looked, Report, Seen};
use crate::spool::{self, Spool};
use api::client::{Client, Error, segment};
use api::wire::{self, Acknowledged, Batch, Body, Delta};
use bytes::Bytes;
use hyper::{Method, StatusCode};
use model::load::Load;
use model::{ContentId, Facts, HostId, Time, with_causes};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(15));
/// Refusals after which what waits is sent in another form.
const REFUSALS: u32 = 5;

/// What goes out.
#[derive(Debug)]
pub(crate) enum Outgoing {
    Delta {
        at: Time,
        body: Body,
        /// Tells of what was there before, not of what happened.
        of_first: bool,
    },
    /// Comes before the delta that names it.
    Content(Vec<u8>),
    Load(Box<Load>),
}

/// How it stands, for whoever wants to know.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Standing {
    /// Why the last request was not successful.
    pub(crate) trouble: Option<String>,
    /// Why the spool could not be written.
    pub(crate) spool: Option<String>,
    /// Why the server did not take a content, the last that was given up.
    pub(crate) contents: Option<String>,
    pub(crate) waiting: usize,
    /// The version the server last gave.
    pub(crate) version: Option<u64>,
    /// Contents that the server lacks and the spool does not hold.
    pub(crate) missing: Vec<ContentId>,
}

pub(crate) struct Outbox {
    pub(crate) host: HostId,
    pub(crate) spool: Spool,
    pub(crate) contents: Contents,
    pub(crate) incoming: mpsc::Receiver<Outgoing>,
    pub(crate) standing: watch::Sender<Standing>,
    pub(crate) new_stream: fn() -> String,
    /// How often in a row the server refused for good.
    pub(crate) refusals: u32,
    /// How much of this host was looked at; what was seen came here.
    pub(crate) looked: watch::Receiver<Looked>,
    /// To tell what the server remembers.
    pub(crate) engine: mpsc::WeakSender<Report>,
    /// Whether the server is worth asking for that.
    pub(crate) recall: bool,
    /// Whether it is worth waiting for that.
    pub(crate) patient: bool,
    /// Whether the server knows this host; `None` before it was asked.
    pub(crate) is_known: Option<bool>,
    /// Whether what goes out next has no load: with some it was too large.
    pub(crate) without_load: bool,
    /// Whether the engine is still to be asked for the whole state.
    pub(crate) asks_whole: bool,
}

/// Why a request brought nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Server(#[from] Error),
    /// Nothing else was sent.
    #[error("contents were not taken")]
    Contents(Vec<ContentId>, #[source] Error),
    #[error(transparent)]
    Spool(#[from] spool::Error),
}

impl Failure {
    fn is_too_large(&self) -> bool {
        matches!(self, Self::Server(error) if error.status() == Some(StatusCode::PAYLOAD_TOO_LARGE))
    }
}

/// A finished request: the client to use for the next, the contents that were delivered, the
/// load that went along, and what became of the deltas.
struct Sent {
    client: Client,
    contents: Vec<ContentId>,
    /// A content that went alone and was not taken; the rest went on without it.
    refused: Option<(ContentId, Error)>,
    load: Vec<Load>,
    /// The newest number there was when it was made.
    newest: u64,
    /// Whether the server was asked what it remembers.
    recalls: bool,
    result: Result<Acknowledged, Failure>,
}

type Flight = std::pin::Pin<Box<dyn Future<Output = Sent> + Send>>;

impl Outbox {
    /// Runs until cancelled and a last try at what waits is made, or until nothing can come.
    pub(crate) async fn run(mut self, client: Client, shutdown: CancellationToken) {
        let mut idle = Some(client);
        let mut load = Backlog::default();
        let mut backoff = BACKOFF.0;
        let mut flight: Option<Flight> = None;
        let wait = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(wait);
        let mut resting = false;
        let patience = tokio::time::sleep(LOOKS);
        tokio::pin!(patience);
        loop {
            let asks = self.holds_back() && (self.is_known.is_none() || self.recalls());
            let deltas = asks || !self.spool.is_empty() && !self.holds_back();
            let work = deltas || self.contents.is_due(Instant::now()) || !load.is_empty();
            let again = self.contents.again();
            if flight.is_none()
                && !resting
                && work
                && let Some(client) = idle.take()
            {
                flight = Some(Box::pin(self.request(client, &mut load)));
            }
            tokio::select! {
                biased;
                outgoing = self.incoming.recv() => match outgoing {
                    Some(outgoing) => self.keep(outgoing, &mut load),
                    None => break,
                },
                sent = async { match &mut flight { Some(sending) => sending.await, None => std::future::pending().await } } => {
                    flight = None;
                    if sent.result.is_ok() {
                        backoff = BACKOFF.0;
                    }
                    let (client, goes_on) = self.settle(sent, &mut load);
                    idle = Some(client);
                    if !goes_on {
                        resting = true;
                        wait.as_mut().reset(Instant::now() + backoff);
                        backoff = (backoff * 2).min(BACKOFF.1);
                    }
                }
                () = &mut wait, if resting => resting = false,
                () = tokio::time::sleep_until(again.unwrap_or_else(Instant::now)),
                    if again.is_some() && flight.is_none() && !resting => {}
                looked = self.looked.changed(), if !self.looked.borrow().all && self.patient => {
                    // Without an engine nothing more will be seen.
                    self.patient = looked.is_ok();
                }
                () = &mut patience, if self.patient => self.patient = false,
                () = shutdown.cancelled() => break,
            }
        }
        self.last_try(idle, flight).await;
    }

    /// A whole state replaces all that the server knows of a host: what was not looked at yet
    /// would be taken for removed. A host that the server does not know has nothing to lose.
    fn holds_back(&self) -> bool {
        self.spool.begins_whole()
            && self.is_known != Some(false)
            && (self.waits() || self.recalls())
    }

    /// Whether collectors are about to have looked.
    fn waits(&self) -> bool {
        self.patient && !self.looked.borrow().all
    }

    /// Whether there are kinds that nobody here knows of, and the server does.
    fn recalls(&self) -> bool {
        let looked = self.looked.borrow();
        self.recall
            && self.spool.begins_whole()
            && self.is_known != Some(false)
            && !looked.recalled
            && !looked.unseen.is_empty()
            && !self.waits()
    }

    /// On the way out: two seconds for what is under way and for one more request.
    async fn last_try(mut self, idle: Option<Client>, flight: Option<Flight>) {
        while let Ok(outgoing) = self.incoming.try_recv() {
            self.keep(outgoing, &mut Backlog::default());
        }
        let finish = async {
            let client = match (flight, idle) {
                (Some(sending), _) => self.settle(sending.await, &mut Backlog::default()).0,
                (None, Some(client)) => client,
                (None, None) => return,
            };
            if !self.spool.is_empty() && !self.holds_back() {
                let sent = self.request(client, &mut Backlog::default()).await;
                self.settle(sent, &mut Backlog::default());
            }
        };
        if tokio::time::timeout(Duration::from_secs(2), finish).await.is_err() {
            tracing::info!("the server did not answer; what waits is in the spool");
        }
    }

    fn keep(&mut self, outgoing: Outgoing, load: &mut Backlog) {
        match outgoing {
            Outgoing::Delta { at, body, of_first } => {
                let trouble = if of_first {
                    self.spool.push_first(at, body)
                } else {
                    self.spool.push(at, body, None)
                };
                match trouble {
                    Some(error) => self.spool_failed(&error),
                    None => self.tell_of_spool(None),
                }
            }
            Outgoing::Content(content) => {
                if let Err(error) = self.contents.add(&content) {
                    tracing::warn!(%error, "a file's content is not kept");
                }
            }
            Outgoing::Load(sample) => load.push(*sample),
        }
        if self.asks_whole {
            self.ask_whole();
        }
    }

    /// What can't be read back now will not be read later either, and nothing that comes after it
    /// can be delivered without it.
    fn spool_failed(&mut self, error: &spool::Error) {
        self.tell_of_spool(Some(with_causes(error)));
        if !error.is_unreadable() || self.spool.is_lost() {
            return;
        }
        tracing::error!(
            error = with_causes(error),
            "the changes that wait can't be read back; sending the state they lead to"
        );
        if let Err(error) = self.spool.give_up() {
            tracing::warn!(%error, "could not note that the spool lacks something");
        }
        self.ask_whole();
    }

    /// Asks the engine for the whole state. Where there is no room for that, something is about
    /// to come from there, and is the time to ask again.
    fn ask_whole(&mut self) {
        let lost = Report { collector: "spool", part: None, seen: Seen::Lost };
        let asked = self.engine.upgrade().map(|engine| engine.try_send(lost));
        self.asks_whole = matches!(asked, Some(Err(_)));
    }

    fn tell_of_spool(&self, trouble: Option<String>) {
        self.standing.send_if_modified(|standing| {
            let news = standing.spool != trouble;
            standing.spool = trouble;
            news
        });
    }

    /// A server that can't take what waits (it is older, or something in it is broken) will not
    /// take it later either: after some tries all of it becomes one whole state, marked as a gap.
    fn note_refusal(&mut self, error: &Error) {
        if !is_for_good(error) {
            return;
        }
        self.refusals += 1;
        if self.refusals.is_multiple_of(REFUSALS) && !self.spool.is_empty() {
            tracing::error!(
                error = with_causes(error),
                "the server can't take the changes that wait; sending the state they lead to"
            );
            if let Err(error) = self.spool.collapse((self.new_stream)(), clock::now()) {
                tracing::error!(error = with_causes(&error), "could not start a new stream");
                self.spool_failed(&error);
            }
        }
    }

    /// Deltas wait for contents: one that the server, or what is in between, does not take must
    /// not hold them up. Which one it is shows when each goes alone.
    fn contents_failed(&mut self, ids: &[ContentId], error: &Error) {
        if is_for_good(error) {
            self.contents.send_singly();
        } else {
            self.contents.not_refused(ids);
        }
        self.tell(Some(with_causes(error)));
    }

    fn content_refused(&mut self, id: ContentId, error: &Error) {
        let is_given_up = self.contents.refuse(id, Instant::now());
        let error = with_causes(error);
        if !is_given_up {
            return tracing::warn!(error, %id, "a file's content was refused; it is tried again");
        }
        tracing::error!(error, %id, "the server can't take a file's content; it is given up");
        let fault = format!(
            "the text of files was refused for ten minutes, and is missing at their changes: {error}; mend what refuses it, and restart the agent"
        );
        self.standing.send_modify(|standing| standing.contents = Some(fault));
    }

    fn tell(&self, trouble: Option<String>) {
        let waiting = self.spool.len();
        self.standing.send_if_modified(|standing| {
            let before = standing.clone();
            standing.trouble = trouble;
            standing.waiting = waiting;
            *standing != before
        });
    }

    fn request(
        &mut self,
        mut client: Client,
        load: &mut Backlog,
    ) -> impl Future<Output = Sent> + Send + use<> {
        // In this order: what was passed on before it was said to be complete is in the spool now.
        let (holds_back, recalls) = (self.holds_back(), self.recalls());
        while let Ok(outgoing) = self.incoming.try_recv() {
            self.keep(outgoing, load);
        }
        let contents = self.contents.batch(Instant::now());
        // Contents go first, and deltas wait while some are left: a version is not to name
        // what the server can't show. For what it refused they don't wait.
        let whole = contents.len() >= self.contents.unrefused();
        let deltas = if whole && !holds_back { self.next() } else { Ok(Vec::new()) };
        let batch = deltas.map(|deltas| Batch {
            stream: self.spool.stream().to_owned(),
            deltas,
            load: if self.without_load { Vec::new() } else { load.batch() },
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            unseen: if recalls { self.looked.borrow().unseen.clone() } else { Vec::new() },
        });
        let host = segment(self.host.as_str());
        let newest = self.spool.newest();
        async move {
            let batch = match batch {
                Ok(batch) => batch,
                Err(error) => {
                    let (contents, refused, load) = (Vec::new(), None, Vec::new());
                    let result = Err(error.into());
                    return Sent { client, contents, refused, load, newest, recalls, result };
                }
            };
            let (mut ids, bytes): (Vec<ContentId>, Vec<Vec<u8>>) = contents.into_iter().unzip();
            let mut refused = None;
            if !ids.is_empty() {
                let path = format!("/api/v1/hosts/{host}/contents");
                let body = Bytes::from(wire::encode(&wire::Contents(bytes)));
                let sent = client.send(Method::POST, &path, wire::MEDIA_TYPE, body).await;
                match (sent, ids.as_slice()) {
                    (Ok(_), _) => {}
                    (Err(error), [id]) if is_for_good(&error) => {
                        refused = Some((*id, error));
                        ids.clear();
                    }
                    (Err(error), _) => {
                        let (load, result) = (batch.load, Err(Failure::Contents(ids, error)));
                        let contents = Vec::new();
                        return Sent { client, contents, refused, load, newest, recalls, result };
                    }
                }
            }
            let path = format!("/api/v1/hosts/{host}/deltas");
            let body = Bytes::from(wire::encode(&batch));
            let answer = client.send(Method::POST, &path, wire::MEDIA_TYPE, body).await;
            let result = answer.and_then(|answer| {
                wire::decode::<Acknowledged>(&answer).map_err(|_form| Error::Answer {
                    server: client.authority().to_owned(),
                    status: StatusCode::OK,
                })
            });
            let result = result.map_err(Failure::from);
            Sent { client, contents: ids, refused, load: batch.load, newest, recalls, result }
        }
    }

    /// A journal that was put back, with the machine or from a copy, counts anew what the server
    /// has under these numbers, and what it begins with is long over.
    fn was_put_back(&mut self, server: u64) {
        let here = self.spool.newest();
        tracing::warn!(
            server,
            here,
            "the server knows later changes than this spool; sending the whole state, once it was seen"
        );
        self.is_known = Some(true);
        if let Err(error) = self.spool.mark_stale() {
            tracing::warn!(%error, "could not note that the spool was put back");
        }
        self.tell(Some("the spool was put back; resynchronising".to_owned()));
    }

    /// Tells the engine what the server remembers; whether that is to be waited for.
    fn remember(&mut self, told: Option<Facts>) -> bool {
        match (told, self.engine.upgrade()) {
            (Some(told), Some(engine)) => {
                let report = Report { collector: "spool", part: None, seen: Seen::Recalled(told) };
                if engine.try_send(report).is_err() {
                    tracing::debug!("what the server remembers found no room; asking again");
                }
                true
            }
            // A server from before it could be asked; or nobody is left to tell.
            _ => {
                self.recall = false;
                false
            }
        }
    }

    fn next(&mut self) -> Result<Vec<Delta>, spool::Error> {
        if self.spool.is_lost() {
            return Ok(Vec::new());
        }
        // A host that the server does not know can't lose what comes a moment later.
        if self.is_known != Some(false) {
            self.spool.condense()?;
        }
        if self.spool.is_stale() {
            self.spool.collapse((self.new_stream)(), clock::now())?;
        }
        self.spool.batch()
    }

    /// Takes note of an answer; whether the next request may follow at once.
    fn settle(&mut self, sent: Sent, load: &mut Backlog) -> (Client, bool) {
        let Sent { client, contents, refused, load: samples, newest, recalls, result } = sent;
        self.contents.delivered(&contents);
        if let Some((id, error)) = refused {
            self.content_refused(id, &error);
        }
        match result {
            Ok(acknowledged) => {
                self.without_load = false;
                if acknowledged.sequence > newest {
                    self.was_put_back(acknowledged.sequence);
                    return (client, false);
                }
                let told = self.acknowledged(acknowledged);
                // The engine takes a moment to pass on what it is told.
                (client, !(recalls && self.remember(told)))
            }
            // Before anything else is given up of what waits.
            Err(failure) if failure.is_too_large() && !samples.is_empty() => {
                tracing::warn!(samples = samples.len(), "load made a request too large; dropped");
                self.without_load = true;
                self.tell(Some(with_causes(&failure)));
                (client, false)
            }
            Err(failure) => {
                load.put_back(samples);
                match failure {
                    Failure::Server(error) => self.refused(&error),
                    Failure::Contents(ids, error) => self.contents_failed(&ids, &error),
                    Failure::Spool(error) => {
                        self.spool_failed(&error);
                        self.tell(Some(with_causes(&error)));
                    }
                }
                (client, false)
            }
        }
    }

    /// Takes note of what is durable; what the server remembers, where it was asked.
    fn acknowledged(&mut self, acknowledged: Acknowledged) -> Option<Facts> {
        self.refusals = 0;
        self.is_known = Some(acknowledged.version.0 > 0);
        if let Err(error) = self.spool.acknowledged(acknowledged.sequence) {
            tracing::warn!(error = with_causes(&error), "what is durable could not be noted");
            self.spool_failed(&error);
        }
        self.standing.send_modify(|standing| {
            standing.version = Some(acknowledged.version.0);
            standing.missing = acknowledged.missing;
        });
        self.tell(None);
        acknowledged.told
    }

    fn refused(&mut self, error: &Error) {
        if error.code() != Some("base_mismatch") {
            let waiting = self.spool.len();
            tracing::debug!(error = with_causes(error), waiting, "not delivered");
            self.note_refusal(error);
            return self.tell(Some(with_causes(error)));
        }
        if let Some(has) = server_has(error).filter(|has| *has > self.spool.acked()) {
            return self.was_put_back(has);
        }
        tracing::warn!("the server knows another state of this host; sending the whole one");
        if let Err(error) = self.spool.resync((self.new_stream)(), clock::now()) {
            tracing::error!(error = with_causes(&error), "could not start a new stream");
            self.spool_failed(&error);
        }
        // Not at once: two agents under one name would otherwise chase each other.
        self.tell(Some("the server knew another state; resynchronising".to_owned()));
    }
}

/// Whether the same will be answered to the same again.
fn is_for_good(error: &Error) -> bool {
    matches!(error.status().map(|status| status.as_u16()), Some(400 | 413 | 422))
}

/// The last number that the server has of the stream, by its refusal.
fn server_has(error: &Error) -> Option<u64> {
    error.detail("sequence")?.parse().ok()
}

#[cfg(test)]
mod tests;
