//! What is recorded, as it is recorded: server-sent events and WebSocket.
//!
//! ```text
//!   from the asked version ──history──► caught up ──live channel──► …
//!                              ▲                          │
//!                              └── fell behind (channel) ─┘
//! ```
//!
//! A stream of one host is complete and in order, however slow its reader: what the live
//! channel could not hold is read from the history. A stream of all hosts says `lost` instead,
//! since there is no one order to resume in. What is damaged ends neither: the one tells of an
//! entry that it was left out, as the log does, the other says `lost`.

use super::auth::Caller;
use super::error::{ApiError, unknown_host};
use super::extract::{Host, Upgrade};
use super::hosts::off_thread;
use super::log::{pairs, shown, subjects};
use crate::app::{App, Event};
use crate::metrics::OpenStream;
use crate::resolve::fits;
use api::answer::Entry;
use axum::Extension;
use axum::extract::ws::{Message, WebSocket};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, stream};
use model::{HostId, Op, Subject, Time, Version, with_causes};
use serde::Serialize;
use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::broadcast::{self, error::RecvError};

/// Versions read from the history at once while catching up.
const PAGE: usize = 200;
/// Changes told of one version; a reader that wants all reads the state.
const CHANGES: usize = 500;

/// The stream of one host, at its place.
struct Follower {
    app: Arc<App>,
    host: HostId,
    /// What was asked for, and what that stands for so far; no words: everything.
    words: Arc<[String]>,
    only: BTreeSet<Subject>,
    last: Version,
    /// When the host's first version was: another one means that it was forgotten since.
    life: Time,
    live: broadcast::Receiver<Event>,
    caught_up: bool,
    ready: VecDeque<(Time, Entry)>,
    _open: OpenStream,
}

impl Follower {
    async fn start(
        app: Arc<App>,
        host: HostId,
        query: &str,
        resume: Option<Place>,
    ) -> Result<Self, ApiError> {
        // Subscribed before reading where the history ends: nothing falls between.
        let live = app.events.subscribe();
        let mut resume = resume;
        let mut words = Vec::new();
        for (name, value) in pairs(query)? {
            match name.as_str() {
                "from" => {
                    let wrong = "from is a version, as 412, or the id of an event of this stream";
                    let place = Place::parse(&value);
                    let place = place.ok_or_else(|| ApiError::bad("bad_query", wrong))?;
                    resume = resume.or(Some(place));
                }
                "subject" => words.push(value),
                _ => {
                    return Err(ApiError::bad(
                        "bad_query",
                        format!("there is no parameter {name:?}"),
                    ));
                }
            }
        }
        let words: Arc<[String]> = words.into();
        let asked = Arc::clone(&words);
        let (host, last, life, only) = off_thread(&app, move |app| {
            let info = app.history.host(&host).ok_or_else(|| unknown_host(host.as_str()))?;
            let from = resume.map(|place| match place.life {
                // What was seen is forgotten, and all there is comes after it.
                Some(life) if life != info.first_at => Version(0),
                _ => place.version,
            });
            if let Some(from) = from.filter(|from| *from > info.head) {
                // The history was restored or forgotten: what the reader knows is not this one.
                let message = format!(
                    "{host} is at {} and knows no {from}; begin anew without a version",
                    info.head
                );
                return Err(ApiError::new(StatusCode::GONE, "ahead_of_history", message));
            }
            let only = watched(app, &host, &asked)?;
            Ok((host, from.unwrap_or(info.head), info.first_at, only))
        })
        .await?;
        let open = OpenStream::new(&app);
        Ok(Self {
            app,
            host,
            words,
            only,
            last,
            life,
            live,
            caught_up: false,
            ready: VecDeque::new(),
            _open: open,
        })
    }

    /// The next version, and in which life of the host; `None` when the server stops.
    async fn next(&mut self) -> Option<(Time, Entry)> {
        loop {
            if let Some(next) = self.ready.pop_front() {
                return Some(next);
            }
            if !self.caught_up {
                if self.catch_up().await.is_err() {
                    return None;
                }
                continue;
            }
            let shutdown = self.app.shutdown.clone();
            tokio::select! {
                event = self.live.recv() => match event {
                    Ok(event) if event.host == self.host && event.version > self.last => {
                        match &event.entry {
                            Some(entry) => {
                                self.last = entry.version;
                                if self.offer(entry.clone()).await.is_err() {
                                    return None;
                                }
                            }
                            None => self.caught_up = false,
                        }
                    }
                    Ok(event) if event.host == self.host => self.look_for_another_life(),
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => {
                        self.look_for_another_life();
                        self.caught_up = false;
                    }
                    Err(RecvError::Closed) => return None,
                },
                () = shutdown.cancelled() => return None,
            }
        }
    }

    /// A host that was forgotten and seen again begins at its first version.
    fn look_for_another_life(&mut self) {
        let first_at = self.app.history.host(&self.host).map(|info| info.first_at);
        if let Some(life) = first_at {
            self.live_in(life);
        }
    }

    /// Whether it is the life that this is in already.
    fn live_in(&mut self, life: Time) -> bool {
        if life == self.life {
            return true;
        }
        self.life = life;
        self.last = Version(0);
        self.caught_up = false;
        false
    }

    async fn catch_up(&mut self) -> Result<(), ApiError> {
        let (host, after) = (self.host.clone(), self.last);
        let (page, life) = off_thread(&self.app, move |app| {
            let page = app.history.after(&host, after, PAGE)?;
            Ok((page, app.history.host(&host).map(|info| info.first_at)))
        })
        .await?;
        if life.is_some_and(|life| !self.live_in(life)) {
            return Ok(());
        }
        self.caught_up = page.len() < PAGE;
        for entry in page {
            self.last = self.last.max(entry.version);
            self.offer(entry).await?;
        }
        Ok(())
    }

    async fn offer(&mut self, mut entry: store::Entry) -> Result<(), ApiError> {
        if !self.words.is_empty() {
            if self.may_widen(&entry) {
                let (host, words) = (self.host.clone(), Arc::clone(&self.words));
                let look = move |app: &App| watched(app, &host, &words);
                self.only = off_thread(&self.app, look).await?;
            }
            // What could not be read may have been about what is watched.
            let is_left_out = entry.gap.is_some() && entry.patch.is_empty();
            if !is_left_out && !entry.narrow(|subject| self.only.contains(subject)) {
                return Ok(());
            }
        }
        self.ready.push_back((self.life, shown(&self.host, entry, CHANGES)));
        Ok(())
    }

    /// Whether the words may stand for more than before: something came that fits one, or came
    /// with something that is watched.
    fn may_widen(&self, entry: &store::Entry) -> bool {
        let mut came = entry.patch.iter().filter(|(_, op)| matches!(op, Op::Added(_)));
        let is_watched = entry.patch.iter().any(|(subject, _)| self.only.contains(subject));
        came.any(|(subject, _)| {
            !self.only.contains(subject)
                && (is_watched || self.words.iter().any(|word| fits(word, subject)))
        })
    }

    fn entries(self) -> impl Stream<Item = (Time, Entry)> {
        stream::unfold(self, |mut follower| async move {
            let next = follower.next().await?;
            Some((next, follower))
        })
    }
}

/// Where a reader is: the version it has, and of which life of the host.
///
/// Written as in the tags of answers, `412-64ab3c1f2e000`. Without a life it is the present one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    version: Version,
    life: Option<Time>,
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        let (version, life) = match text.trim_start_matches('@').split_once('-') {
            None => (text.trim_start_matches('@'), None),
            Some((version, life)) => {
                let life = u64::from_str_radix(life, 16).ok()?.cast_signed();
                (version, Some(Time(life)))
            }
        };
        Some(Self { version: Version(version.parse().ok()?), life })
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.life {
            Some(life) => write!(f, "{}-{:x}", self.version.0, life.0),
            None => write!(f, "{}", self.version.0),
        }
    }
}

/// What words stand for, as far as it is there. What is written in full, and patterns, may be
/// waited for.
fn watched(app: &App, host: &HostId, words: &[String]) -> Result<BTreeSet<Subject>, ApiError> {
    let mut found = BTreeSet::new();
    for word in words {
        match subjects(app, host, std::slice::from_ref(word), true) {
            Ok(subjects) => found.extend(subjects),
            Err(error) if error.code() == "unknown_subject" => {
                if !word.contains('*') && word.parse::<Subject>().is_err() {
                    return Err(error.and("to wait for it, write what it is: unit:NAME.service"));
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Changes of a host as server-sent events: `id` the version and the host's life (`413-64ab…`),
/// `event` `version`, `data` an entry. `Last-Event-ID` of a life that is over begins the new one.
#[utoipa::path(get, path = "/api/v1/hosts/{host}/events", tag = "live",
    params(("host" = String, Path),
        ("from" = Option<String>, Query, description = "the version after which to begin, or the id of an event; the newest unless told. `Last-Event-ID` goes before it"),
        ("subject" = Option<Vec<String>>, Query)),
    responses((status = 200, content_type = "text/event-stream", body = Entry), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn host_events(
    State(app): State<Arc<App>>,
    Host(host): Host,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let resume = headers.get("last-event-id").map(|id| {
        let wrong = "Last-Event-ID is the id of an event of this stream, or a version: 412";
        let place = id.to_str().ok().and_then(Place::parse);
        place.ok_or_else(|| ApiError::bad("bad_query", wrong))
    });
    let resume = resume.transpose()?;
    let follower = Follower::start(app, host, query.as_deref().unwrap_or_default(), resume).await?;
    let events = futures_util::StreamExt::map(follower.entries(), |(life, entry)| {
        let place = Place { version: entry.version, life: Some(life) };
        sse_event(&entry, place.to_string())
    });
    Ok(Sse::new(events).keep_alive(keep_alive()).into_response())
}

/// What was recorded, read from the history where the event does not carry it.
async fn whole(app: &Arc<App>, event: &Event) -> Result<Option<store::Entry>, store::Error> {
    if let Some(entry) = &event.entry {
        return Ok(Some(entry.clone()));
    }
    let (host, version) = (event.host.clone(), event.version);
    app.read(move |app| app.history.entry(&host, version)).await
}

/// What a stream of all hosts tells of a version; that it is lost to it where that can't be read,
/// or is not there any more.
fn told_of_all(
    event: &Event,
    found: Result<Option<store::Entry>, store::Error>,
) -> Result<sse::Event, Infallible> {
    match found {
        Ok(Some(entry)) => {
            let entry = shown(&event.host, entry, CHANGES);
            sse_event(&entry, format!("{}:{}", event.host, entry.version.0))
        }
        Ok(None) => Ok(lost(1)),
        Err(error) => {
            let (host, version) = (&event.host, event.version);
            tracing::warn!(%host, %version, error = with_causes(&error), "a live stream lost a version");
            Ok(lost(1))
        }
    }
}

fn lost(count: u64) -> sse::Event {
    sse::Event::default().event("lost").data(count.to_string())
}

fn keep_alive() -> KeepAlive {
    KeepAlive::new().interval(Duration::from_secs(15))
}

fn sse_event(entry: &Entry, id: String) -> Result<sse::Event, Infallible> {
    let event = sse::Event::default().id(id).event("version");
    Ok(event.json_data(entry).unwrap_or_else(|_never| sse::Event::default().comment("unencodable")))
}

/// An entry, and where a reader is that has it.
#[derive(Serialize)]
struct Told<'e> {
    id: String,
    #[serde(flatten)]
    entry: &'e Entry,
}

/// Changes of a host over a WebSocket: one entry as JSON in each message. Its `id` is that of the
/// event, for `from`.
#[utoipa::path(get, path = "/api/v1/hosts/{host}/ws", tag = "live",
    params(("host" = String, Path), ("from" = Option<String>, Query, description = "the version after which to begin, or the `id` of a message; the newest unless told"), ("subject" = Option<Vec<String>>, Query)),
    responses((status = 101), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn host_socket(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Host(host): Host,
    RawQuery(query): RawQuery,
    Upgrade(upgrade): Upgrade,
) -> Result<Response, ApiError> {
    let allowed = caller.allowed(&app);
    let follower = Follower::start(app, host, query.as_deref().unwrap_or_default(), None).await?;
    let upgrade = upgrade.max_message_size(4096);
    Ok(upgrade.on_upgrade(move |socket| allowed.only(tell(follower, socket))))
}

async fn tell(mut follower: Follower, mut socket: WebSocket) {
    let mut ping = tokio::time::interval(Duration::from_secs(20));
    loop {
        let sent = tokio::select! {
            entry = follower.next() => {
                let Some((life, entry)) = entry else { break };
                let place = Place { version: entry.version, life: Some(life) };
                let told = Told { id: place.to_string(), entry: &entry };
                let text = serde_json::to_string(&told).unwrap_or_default();
                socket.send(Message::Text(text.into())).await
            }
            // What the other side says does not matter, only whether it is there.
            message = socket.recv() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => Ok(()),
            },
            _ = ping.tick() => socket.send(Message::Ping(Vec::new().into())).await,
        };
        if sent.is_err() {
            return;
        }
    }
    if let Err(error) = socket.send(Message::Close(None)).await {
        tracing::debug!(%error, "a live stream ended without farewell");
    }
}

/// Changes of all hosts as server-sent events, from now on: `id` is `HOST:VERSION`. A reader
/// that is too slow gets the event `lost`, and so does everybody for what can't be read.
#[utoipa::path(get, path = "/api/v1/events", tag = "live",
    responses((status = 200, content_type = "text/event-stream", body = Entry)))]
pub(crate) async fn all_events(State(app): State<Arc<App>>) -> Response {
    let live = app.events.subscribe();
    let open = OpenStream::new(&app);
    let events = stream::unfold((live, app, open), |(mut live, app, open)| async move {
        let shutdown = app.shutdown.clone();
        let event = tokio::select! {
            event = live.recv() => match event {
                Ok(event) => told_of_all(&event, whole(&app, &event).await),
                Err(RecvError::Lagged(count)) => Ok(lost(count)),
                Err(RecvError::Closed) => return None,
            },
            () = shutdown.cancelled() => return None,
        };
        Some((event, (live, app, open)))
    });
    Sse::new(events).keep_alive(keep_alive()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::Recorded;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn what_can_not_be_read_is_said_to_be_lost() {
        let host: HostId = "web01".parse().unwrap();
        let event = Arc::new(Recorded { host, version: Version(7), entry: None });
        for found in [Ok(None), Err(store::Error::Closed)] {
            let events = stream::iter([told_of_all(&event, found)]);
            let body = Sse::new(events).into_response().into_body();
            let text = body.collect().await.unwrap().to_bytes();
            assert_eq!(text, "event: lost\ndata: 1\n\n");
        }
    }
}
