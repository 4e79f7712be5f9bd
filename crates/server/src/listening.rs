//! Takes connections in: so many at once, and none that says nothing.
//!
//! Owns the sockets from their acceptance to their end. What is asked on them is the routers'.
//!
//! # Invariants
//! - There are never more connections than [`Limits::connections`] and [`FOR_PROBES`] together.
//!   Each holds its place until its socket is closed, also as a WebSocket.
//! - Probes are answered when all places are taken; whatever else is asked then is refused at
//!   once. Who then connects and asks nothing makes room for who comes next.
//! - A connection on which no head of a request comes to its end in time is closed, and so is one
//!   whose other side takes nothing of what is written.

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::serve::Listener;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use prometheus_client::metrics::counter::Counter;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Connections that are taken in when all places are taken, to be asked one thing each.
const FOR_PROBES: usize = 16;
/// How long such a one may take in all, since another waits for its place.
const PROBE: Duration = Duration::from_secs(10);
/// How long it keeps its place in any case, if it asks nothing.
const PROBE_BEGIN: Duration = Duration::from_millis(50);
/// How long its head may take.
const PROBE_HEAD: Duration = Duration::from_secs(1);
/// Files that the process may have open where the system lets it. The history, machines and logs
/// take part of them; programs that this one runs inherit it, and some close as many.
const FILES: u64 = 65_536;
/// How often the other side of an HTTP/2 connection is asked whether it is there.
const PING: Duration = Duration::from_secs(20);

/// What connections may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// At once.
    pub connections: usize,
    /// From the begin of a connection to the end of its first request's head.
    pub first_head: Duration,
    /// From an answer to the end of the next head; on HTTP/2, to the next request's begin. Longer
    /// than most proxies keep connections that rest (60 to 120 s), so that it is they who close
    /// them.
    pub next_head: Duration,
    /// How long the other side may take nothing of what is written.
    pub no_reading: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            first_head: Duration::from_secs(30),
            next_head: Duration::from_secs(150),
            no_reading: Duration::from_secs(90),
        }
    }
}

/// The places for connections, of all addresses that are listened on.
#[derive(Debug)]
pub(crate) struct Places {
    limits: Limits,
    free: Arc<Semaphore>,
    for_probes: Arc<Semaphore>,
    /// Connections in places for probes, the oldest first; some have asked or are closed.
    probes: Mutex<VecDeque<Probe>>,
    /// Whether it was said that all are taken, and has not changed much since.
    is_told: AtomicBool,
    /// Connections that came when all were taken.
    pub(crate) beyond: Counter,
}

enum Place {
    Free(OwnedSemaphorePermit),
    ForProbes(OwnedSemaphorePermit, Probe),
}

/// What becomes of a connection in a place for probes.
#[derive(Debug, Clone)]
struct Probe {
    since: Instant,
    /// It has asked, or is closed.
    is_asked: CancellationToken,
    /// Its place is wanted.
    is_wanted: CancellationToken,
}

impl Probe {
    fn new() -> Self {
        let (is_asked, is_wanted) = (CancellationToken::new(), CancellationToken::new());
        Self { since: Instant::now(), is_asked, is_wanted }
    }

    fn is_silent(&self) -> bool {
        !self.is_asked.is_cancelled() && !self.is_wanted.is_cancelled()
    }
}

impl Places {
    pub(crate) fn new(limits: Limits) -> Self {
        let connections =
            limits.connections.min(files_for_connections()).min(Semaphore::MAX_PERMITS);
        if connections < limits.connections {
            tracing::info!(
                connections,
                wanted = limits.connections,
                "fewer connections at once: the process may not have more files open"
            );
        }
        Self {
            limits: Limits { connections, ..limits },
            free: Arc::new(Semaphore::new(connections)),
            for_probes: Arc::new(Semaphore::new(FOR_PROBES)),
            probes: Mutex::default(),
            is_told: AtomicBool::new(false),
            beyond: Counter::default(),
        }
    }

    /// Places of their own for an address that must not take these.
    pub(crate) fn of_another_address(&self, connections: usize) -> Self {
        Self::new(Limits { connections: connections.min(self.most()), ..self.limits })
    }

    /// How many there may be at once.
    pub(crate) fn most(&self) -> usize {
        self.limits.connections
    }

    pub(crate) fn taken(&self) -> usize {
        self.most().saturating_sub(self.free.available_permits())
    }

    /// A place for a connection that is there; waits while there is none of either kind.
    async fn take(&self) -> Place {
        if let Ok(place) = Arc::clone(&self.free).try_acquire_owned() {
            if self.free.available_permits() > self.most() / 10 {
                self.is_told.store(false, Ordering::Relaxed);
            }
            return Place::Free(place);
        }
        self.beyond.inc();
        if !self.is_told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                connections = self.most(),
                "all places for connections are taken: more are answered only what probes ask \
                 (max_connections)"
            );
        }
        let never = "the semaphores are never closed";
        let room_is_made = async {
            self.make_room().await;
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            biased;
            place = Arc::clone(&self.free).acquire_owned() => Place::Free(place.expect(never)),
            place = Arc::clone(&self.for_probes).acquire_owned() => {
                let probe = Probe::new();
                let mut probes = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
                probes.retain(|probe| !probe.is_asked.is_cancelled());
                probes.push_back(probe.clone());
                Place::ForProbes(place.expect(never), probe)
            }
            never = room_is_made => match never {},
        }
    }

    /// Has the oldest probe closed that has asked nothing, once it had the time to.
    async fn make_room(&self) {
        while let Some(probe) = self.oldest_silent() {
            tokio::time::sleep_until(probe.since + PROBE_BEGIN).await;
            if probe.is_silent() {
                return probe.is_wanted.cancel();
            }
        }
    }

    fn oldest_silent(&self) -> Option<Probe> {
        let probes = self.probes.lock().unwrap_or_else(PoisonError::into_inner);
        probes.iter().find(|probe| probe.is_silent()).cloned()
    }
}

/// Lets the process have as many files open as it may give itself, within reason.
pub(crate) fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(FILES, |most| most.min(FILES));
    if limit.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, files = limit.current, "the process may not have more files open");
    }
}

fn files_for_connections() -> usize {
    let Some(files) = getrlimit(Resource::Nofile).current else { return usize::MAX };
    // The store keeps an eighth open, up to 900 (`store`).
    let left = files.saturating_sub((files / 4).clamp(256, 2048)).max(files / 2);
    usize::try_from(left).unwrap_or(usize::MAX)
}

/// What is answered on connections.
#[derive(Debug, Clone)]
pub(crate) struct Answers {
    pub(crate) all: Router,
    /// When all places are taken.
    pub(crate) probes: Router,
}

/// Serves until told to stop; then until what is under way has ended.
pub(crate) async fn listen(
    mut listener: TcpListener,
    answers: Answers,
    places: Arc<Places>,
    stopping: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            Some(_ended) = connections.join_next() => continue,
            accepted = Listener::accept(&mut listener) => accepted,
        };
        let place = stopping.run_until_cancelled(places.take()).await;
        let stopping = stopping.clone();
        match place {
            Some(Place::Free(place)) => {
                let stream = Placed::new(stream, place, places.limits.no_reading);
                let router = answers.all.clone();
                connections.spawn(serve(stream, router, places.limits, stopping));
            }
            Some(Place::ForProbes(place, probe)) => {
                let stream = Placed::new(stream, place, places.limits.no_reading);
                let answering = answer_one(stream, answers.probes.clone(), probe.is_asked.clone());
                connections.spawn(async move {
                    tokio::select! {
                        () = answering => {}
                        () = stopping.cancelled() => {}
                        // One that has asked meanwhile gets its answer, and its time is short.
                        () = probe.is_wanted.cancelled(), if !probe.is_asked.is_cancelled() => {}
                    }
                    probe.is_asked.cancel();
                });
            }
            None => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn serve(stream: Placed, router: Router, limits: Limits, stopping: CancellationToken) {
    let is_asked = CancellationToken::new();
    let asked = is_asked.clone();
    let activity = Arc::new(Activity::default());
    let active = Arc::clone(&activity);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        asked.cancel();
        let under_way = UnderWay::begin(&active);
        let answering = router.clone().oneshot(request);
        async move {
            let answer = answering.await?;
            Ok::<_, Infallible>(answer.map(|body| Answer { body, _under_way: under_way }))
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.next_head);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .enable_connect_protocol();
    let mut connection =
        pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    // The deadlines of the protocols begin when it is clear which one is spoken.
    let mut first = pin!(tokio::time::timeout(limits.first_head, is_asked.cancelled()));
    let (mut is_silent, mut is_ending) = (true, false);
    let mut rest = pin!(tokio::time::sleep(limits.next_head));
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(error, "a connection broke");
                }
                return;
            }
            asked = &mut first, if is_silent => {
                if asked.is_err() {
                    return;
                }
                is_silent = false;
            }
            // HTTP/2 has no such deadline of its own.
            () = rest.as_mut(), if !is_silent && !is_ending => {
                let now = Instant::now();
                let until = activity.rests_since().unwrap_or(now) + limits.next_head;
                if until > now {
                    rest.as_mut().reset(until);
                } else {
                    is_ending = true;
                    connection.as_mut().graceful_shutdown();
                }
            }
            () = stopping.cancelled(), if !is_ending => {
                is_ending = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// How many requests of a connection are under way, and since when none is.
#[derive(Debug, Default)]
struct Activity(Mutex<(usize, Option<Instant>)>);

impl Activity {
    /// Nothing while a request is under way, or before the first one.
    fn rests_since(&self) -> Option<Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

/// A request, from its head to the end of its answer's body.
struct UnderWay(Arc<Activity>);

impl UnderWay {
    fn begin(activity: &Arc<Activity>) -> Self {
        let mut state = activity.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = (state.0 + 1, None);
        drop(state);
        Self(Arc::clone(activity))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 = state.0.saturating_sub(1);
        state.1 = (state.0 == 0).then(Instant::now);
    }
}

struct Answer {
    body: Body,
    _under_way: UnderWay,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// One request, and its answer.
async fn answer_one(stream: Placed, router: Router, is_asked: CancellationToken) {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        is_asked.cancel();
        router.clone().oneshot(request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PROBE_HEAD).keep_alive(false);
    let answering = builder.serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = tokio::time::timeout(PROBE, answering).await {
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection broke");
    }
}

/// A socket in its place, which is free again when the socket is closed.
struct Placed {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
    no_reading: Duration,
    /// Until when the other side is to take something of what is written.
    until: Option<Pin<Box<Sleep>>>,
}

impl Placed {
    fn new(stream: TcpStream, place: OwnedSemaphorePermit, no_reading: Duration) -> Self {
        Self { stream, _place: place, no_reading, until: None }
    }

    /// What a write came to; an error where nothing was taken for too long.
    fn written(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.until = None;
            return written;
        }
        let no_reading = self.no_reading;
        let until = self.until.get_or_insert_with(|| Box::pin(tokio::time::sleep(no_reading)));
        until.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Placed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Placed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.written(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests;
