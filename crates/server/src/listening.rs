//! Takes connections in: so many at once, and none that says nothing.
//!
//! Owns the sockets from their acceptance to their end. What is asked on them is the routers'.
//!
//! # Invariants
//! - There are never more connections than [`Limits::connections`] and [`FOR_PROBES`] together.
//!   Each holds its place until its socket is closed, also as a WebSocket.
//! - Probes are answered when all places are taken; whatever else is asked then is refused at
//!   once.
//! - A connection on which no head of a request comes to its end in time is closed.

use axum::Router;
use axum::serve::Listener;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use prometheus_client::metrics::counter::Counter;
use rustix::process::{Resource, getrlimit};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// Connections that are taken in when all places are taken, to be asked one thing each.
const FOR_PROBES: usize = 16;
/// How long such a one may take in all, since another waits for its place.
const PROBE: Duration = Duration::from_secs(10);
/// Of the files that the process may have open, so many are for the history, machines and logs.
const OTHER_FILES: u64 = 256;
/// How often the other side of an HTTP/2 connection is asked whether it is there.
const PING: Duration = Duration::from_secs(20);

/// What connections may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// At once.
    pub connections: usize,
    /// From the begin of a connection to the end of its first request's head.
    pub first_head: Duration,
    /// From an answer to the end of the next head. Longer than proxies keep connections, so that
    /// it is they who close them.
    pub next_head: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            first_head: Duration::from_secs(30),
            next_head: Duration::from_secs(90),
        }
    }
}

/// The places for connections, of all addresses that are listened on.
#[derive(Debug)]
pub(crate) struct Places {
    limits: Limits,
    free: Arc<Semaphore>,
    for_probes: Arc<Semaphore>,
    /// Whether it was said that all are taken, and has not changed much since.
    is_told: AtomicBool,
    /// Connections that came when all were taken.
    pub(crate) beyond: Counter,
}

enum Place {
    Free(OwnedSemaphorePermit),
    ForProbes(OwnedSemaphorePermit),
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
            is_told: AtomicBool::new(false),
            beyond: Counter::default(),
        }
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
        tokio::select! {
            biased;
            place = Arc::clone(&self.free).acquire_owned() => Place::Free(place.expect(never)),
            place = Arc::clone(&self.for_probes).acquire_owned() => Place::ForProbes(place.expect(never)),
        }
    }
}

fn files_for_connections() -> usize {
    let Some(files) = getrlimit(Resource::Nofile).current else { return usize::MAX };
    let left = files.saturating_sub(OTHER_FILES).max(files / 2);
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
                let stream = Placed { stream, _place: place };
                let router = answers.all.clone();
                connections.spawn(serve(stream, router, places.limits, stopping));
            }
            Some(Place::ForProbes(place)) => {
                let stream = Placed { stream, _place: place };
                let answering = answer_one(stream, answers.probes.clone());
                connections.spawn(async move {
                    stopping.run_until_cancelled(answering).await;
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
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        asked.cancel();
        router.clone().oneshot(request)
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
            () = stopping.cancelled(), if !is_ending => {
                is_ending = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

/// One request, and its answer.
async fn answer_one(stream: Placed, router: Router) {
    let service =
        service_fn(move |request: hyper::Request<Incoming>| router.clone().oneshot(request));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PROBE / 2).keep_alive(false);
    let answering = builder.serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = tokio::time::timeout(PROBE, answering).await {
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection broke");
    }
}

/// A socket in its place, which is free again when the socket is closed.
struct Placed {
    stream: TcpStream,
    _place: OwnedSemaphorePermit,
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
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
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
