//! Runs, and their logs as they are written: server-sent events, WebSocket, pages of JSON.
//!
//! A stream begins at any record, follows, and ends with the end record, which carries the exit
//! code. Its records are written out once for all readers; here they only pass through.

use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Asked, Upgrade};
use super::hosts::page_limit;
use crate::app::App;
use crate::metrics::OpenStream;
use crate::runs::{Filter, Follow, RunId, Subject};
use api::run::{Run, RunKind, RunLog, RunRecord, RunState, Runs};
use axum::body::{Body, Bytes};
use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::{SinkExt, stream};
use model::with_causes;
use serde::Deserialize;
use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

const PAGE: usize = 100;
const MAX_PAGE: usize = 1000;
/// Records on a page of a log.
const RECORDS: usize = 1000;
const MAX_RECORDS: usize = 10_000;
/// What is sent where nothing happens, so often.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// `{id}` of the path.
pub(crate) struct Id(RunId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(segments): Path<HashMap<String, String>> = Path::from_request_parts(parts, state)
            .await
            .map_err(|_path| ApiError::bad("bad_path", "the path is not valid UTF-8"))?;
        let text = segments.get("id").map(String::as_str).unwrap_or_default();
        // Nothing can be known of what is no id.
        let unknown = |error: api::run::RunIdError| {
            ApiError::new(StatusCode::NOT_FOUND, "unknown_run", error.to_string())
        };
        text.parse().map(Self).map_err(unknown)
    }
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct RunsQuery {
    /// Only those of this subject: `image:debian`.
    subject: Option<String>,
    #[param(inline)]
    kind: Option<RunKind>,
    #[param(inline)]
    state: Option<RunState>,
    /// Runs on a page; at most 1000.
    limit: Option<usize>,
    /// The `next` of the page before.
    before: Option<String>,
}

/// Runs, the newest first.
#[utoipa::path(get, path = "/api/v1/runs", tag = "runs", operation_id = "list_runs", params(RunsQuery),
    responses((status = 200, body = Runs), (status = 400, body = api::ErrorBody)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Asked(query): Asked<RunsQuery>,
) -> Result<Json<Runs>, ApiError> {
    let RunsQuery { subject, kind, state, limit, before } = query;
    let subject = subject.as_deref().map(str::parse::<Subject>).transpose();
    let subject = subject.map_err(|error| ApiError::bad("bad_subject", error.to_string()))?;
    let before = before.as_deref().map(str::parse::<RunId>).transpose();
    let before = before.map_err(|error| ApiError::bad("bad_query", error.to_string()))?;
    let limit = page_limit(limit, PAGE, MAX_PAGE)?;
    let mut runs = app.runs.list(&Filter { subject, kind, state, before }, limit + 1);
    let more = runs.len() > limit;
    runs.truncate(limit);
    let next = runs.last().filter(|_| more).map(|run| run.id);
    Ok(Json(Runs { runs, next }))
}

/// One run.
#[utoipa::path(get, path = "/api/v1/runs/{id}", tag = "runs", operation_id = "show_run", params(("id" = String, Path)),
    responses((status = 200, body = Run), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn show(State(app): State<Arc<App>>, Id(id): Id) -> Result<Json<Run>, ApiError> {
    Ok(Json(app.runs.show(id)?))
}

/// Tells a run to stop. Its log ends when it has.
#[utoipa::path(post, path = "/api/v1/runs/{id}/cancel", tag = "runs", operation_id = "cancel_run", params(("id" = String, Path)),
    responses((status = 202, body = Run), (status = 404, body = api::ErrorBody),
        (status = 409, body = api::ErrorBody, description = "it is over")))]
pub(crate) async fn cancel(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
) -> Result<Response, ApiError> {
    let run = app.runs.cancel(id)?;
    tracing::info!(run = %id, by = ?caller.cause(), "a run is cancelled");
    Ok((StatusCode::ACCEPTED, Json(run)).into_response())
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogQuery {
    /// The first record; 0 unless told. `Last-Event-ID` goes before it, and names the last one seen.
    from: Option<u64>,
    /// `false`: what there is so far, and no more.
    follow: Option<bool>,
    /// Of a page of JSON: how many records; 1000 unless told, at most 10,000.
    limit: Option<usize>,
}

/// A run's log: server-sent events (`id` the record's offset, `event` `record`, `data` a
/// record), until the end record. With `Accept: application/json`, a page of what there is.
/// 204 where the reader has seen the end.
#[utoipa::path(get, path = "/api/v1/runs/{id}/log", tag = "runs", operation_id = "run_log", params(("id" = String, Path), LogQuery),
    responses((status = 200, content((RunRecord = "text/event-stream"), (RunLog = "application/json"))),
        (status = 204), (status = 404, body = api::ErrorBody), (status = 410, body = api::ErrorBody)))]
pub(crate) async fn log(
    State(app): State<Arc<App>>,
    Id(id): Id,
    Asked(query): Asked<LogQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let seen = text(header::HeaderName::from_static("last-event-id"));
    let seen = seen.and_then(|id| id.parse::<u64>().ok()?.checked_add(1));
    let from = seen.or(query.from).unwrap_or(0);
    if text(header::ACCEPT).is_some_and(|accept| accept.starts_with("application/json")) {
        let limit = page_limit(query.limit, RECORDS, MAX_RECORDS)?;
        return Ok(Json(page(&app, id, from, limit).await?).into_response());
    }
    let follow = app.runs.follow(id, from, query.follow.unwrap_or(true))?;
    if follow.is_over() {
        // An EventSource that has seen the end asks again, unless told not to.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    let frames =
        stream::unfold((Some(follow), OpenStream::new(&app)), |(follow, open)| async move {
            let mut follow = follow?;
            let (frames, follow) = match tokio::time::timeout(KEEP_ALIVE, follow.next()).await {
                Ok(Ok(Some(records))) => (records.frames(), Some(follow)),
                Ok(Ok(None)) => return None,
                Ok(Err(error)) => (fault(&error), None),
                Err(_elapsed) => (Bytes::from_static(b":\n\n"), Some(follow)),
            };
            Some((Ok::<_, Infallible>(frames), (follow, open)))
        });
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    Ok((headers, Body::from_stream(frames)).into_response())
}

/// The last event of a stream that can't go on.
fn fault(error: &crate::runs::Error) -> Bytes {
    let message = with_causes(error);
    tracing::warn!(error = message, "a run's log can't be read");
    let text = message.replace(['\n', '\r'], " ");
    format!("event: fault\ndata: {text}\n\n").into()
}

async fn page(app: &App, id: RunId, from: u64, limit: usize) -> Result<RunLog, ApiError> {
    let mut follow = app.runs.follow(id, from, false)?;
    let mut records: Vec<RunRecord> = Vec::new();
    while records.len() < limit
        && let Some(more) = follow.next().await?
    {
        for json in more.json().take(limit - records.len()) {
            let record = serde_json::from_slice(&json);
            records.push(record.map_err(|_form| crate::runs::Error::Damaged { id })?);
        }
    }
    let next = records.last().map_or(from, |last| last.offset + 1);
    let ended = app.runs.show(id)?;
    let over = ended.state.is_over() && next >= ended.records;
    Ok(RunLog { run: id, records, next: (!over).then_some(next) })
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct SocketQuery {
    /// The first record; 0 unless told.
    from: Option<u64>,
}

/// A run's log over a WebSocket: one record as JSON in each message, closed after the end.
#[utoipa::path(get, path = "/api/v1/runs/{id}/ws", tag = "runs", operation_id = "run_socket", params(("id" = String, Path), SocketQuery),
    responses((status = 101), (status = 404, body = api::ErrorBody), (status = 410, body = api::ErrorBody)))]
pub(crate) async fn socket(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Id(id): Id,
    Asked(query): Asked<SocketQuery>,
    Upgrade(upgrade): Upgrade,
) -> Result<Response, ApiError> {
    let follow = app.runs.follow(id, query.from.unwrap_or(0), true)?;
    let (open, allowed) = (OpenStream::new(&app), caller.allowed(&app));
    let upgrade = upgrade.max_message_size(4096);
    Ok(upgrade.on_upgrade(move |socket| allowed.only(tell(follow, socket, open))))
}

async fn tell(mut follow: Follow, mut socket: WebSocket, _open: OpenStream) {
    let mut ping = tokio::time::interval(Duration::from_secs(20));
    loop {
        let sent = tokio::select! {
            records = follow.next() => match records {
                Ok(Some(records)) => pass(&mut socket, records.json()).await,
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(error = with_causes(&error), "a run's log can't be read");
                    break;
                }
            },
            // What the other side says does not matter, only whether it is there.
            message = socket.recv() => match message {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => Ok(()),
            },
            _ = ping.tick() => socket.send(Message::Ping(Bytes::new())).await,
        };
        if sent.is_err() {
            return;
        }
    }
    if let Err(error) = socket.send(Message::Close(None)).await {
        tracing::debug!(%error, "a live stream ended without farewell");
    }
}

/// All of them, then at once onto the wire.
async fn pass(
    socket: &mut WebSocket,
    records: impl Iterator<Item = Bytes>,
) -> Result<(), axum::Error> {
    for json in records {
        if let Ok(text) = Utf8Bytes::try_from(json) {
            socket.feed(Message::Text(text)).await?;
        }
    }
    socket.flush().await
}
