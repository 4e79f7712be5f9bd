//! How VMs are kept in step with vSpheres, and the three routes of the older sync service.
//!
//! Those three answer 200 and an envelope whatever happens. On the address that `sync.yaml`
//! names they are alone, and ask for no token: the older service's clients have none.

use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Asked, Segments};
use crate::app::App;
use crate::clock;
use crate::runs::Cause;
use crate::sync::{Error, Sync};
use api::sync::{
    Envelope, InProcess, Outbox, OutboxEntry, OutboxRetried, SelectedResult, SelectedVms,
    SyncBegun, SyncPlan, SyncStanding,
};
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json, Router};
use serde::Deserialize;
use sinks::SessionChange;
use std::collections::BTreeMap;
use std::sync::Arc;

/// VMs of one request.
const MAX_SELECTED: usize = 10_000;
/// Entries of an answer.
const PAGE: usize = 1000;

fn sync(app: &App) -> Result<&Sync, Error> {
    app.sync.as_ref().ok_or(Error::Off)
}

/// How it stands: sources, the last pass, what waits.
#[utoipa::path(get, path = "/api/v1/sync", tag = "sync", operation_id = "sync_standing",
    responses((status = 200, body = SyncStanding), (status = 404, body = api::ErrorBody, description = "no vSphere is followed")))]
pub(crate) async fn standing(State(app): State<Arc<App>>) -> Result<Json<SyncStanding>, ApiError> {
    Ok(Json(sync(&app)?.standing()))
}

/// Begins a full pass over all sources.
#[utoipa::path(post, path = "/api/v1/sync/now", tag = "sync", operation_id = "sync_now",
    responses((status = 202, body = SyncBegun), (status = 409, body = api::ErrorBody, description = "one is on")))]
pub(crate) async fn now(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
) -> Result<(StatusCode, Json<SyncBegun>), ApiError> {
    let run = sync(&app)?.now(caller.cause()).await?;
    Ok((StatusCode::ACCEPTED, Json(SyncBegun { run })))
}

/// What a full pass would decide at this moment, and why. Changes nothing.
#[utoipa::path(get, path = "/api/v1/sync/plan", tag = "sync", operation_id = "sync_plan",
    responses((status = 200, body = SyncPlan), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn plan(State(app): State<Arc<App>>) -> Result<Json<SyncPlan>, ApiError> {
    Ok(Json(sync(&app)?.plan().await?))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct OutboxQuery {
    /// Only those that nobody tries any more.
    #[serde(default)]
    dead: bool,
}

/// What waits for the sessions and the endpoints, by age; at most 1000.
#[utoipa::path(get, path = "/api/v1/sync/outbox", tag = "sync", operation_id = "sync_outbox", params(OutboxQuery),
    responses((status = 200, body = Outbox), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn outbox(
    State(app): State<Arc<App>>,
    Asked(query): Asked<OutboxQuery>,
) -> Result<Json<Outbox>, ApiError> {
    let entries = sync(&app)?.outbox().list().into_iter();
    let wanted = entries.filter(|entry| entry.dead || !query.dead).take(PAGE);
    Ok(Json(Outbox { entries: wanted.map(shown).collect() }))
}

/// Tries one entry again now.
#[utoipa::path(post, path = "/api/v1/sync/outbox/{id}/retry", tag = "sync", operation_id = "sync_outbox_retry", params(("id" = String, Path)),
    responses((status = 200, body = OutboxRetried), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn retry(
    State(app): State<Arc<App>>,
    Segments(id): Segments<String>,
) -> Result<Json<OutboxRetried>, ApiError> {
    let (outbox, wanted) = (sync(&app)?.outbox().clone(), id.clone());
    if !apart(move || outbox.retry(&wanted, clock::now())).await? {
        return Err(no_entry(&id).into());
    }
    Ok(Json(OutboxRetried { count: 1 }))
}

/// Tries all entries again that nobody tries any more.
#[utoipa::path(post, path = "/api/v1/sync/outbox/retry", tag = "sync", operation_id = "sync_outbox_retry_dead",
    responses((status = 200, body = OutboxRetried), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn retry_dead(
    State(app): State<Arc<App>>,
) -> Result<Json<OutboxRetried>, ApiError> {
    let outbox = sync(&app)?.outbox().clone();
    let count = apart(move || outbox.retry_dead(clock::now())).await?;
    Ok(Json(OutboxRetried { count }))
}

/// Lets go of an entry: whom it was for is never told.
#[utoipa::path(delete, path = "/api/v1/sync/outbox/{id}", tag = "sync", operation_id = "sync_outbox_discard", params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn discard(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Segments(id): Segments<String>,
) -> Result<StatusCode, ApiError> {
    let (outbox, wanted) = (sync(&app)?.outbox().clone(), id.clone());
    if !apart(move || outbox.discard(&wanted)).await? {
        return Err(no_entry(&id).into());
    }
    tracing::info!(id, by = ?caller.cause(), "an entry of the outbox was discarded");
    Ok(StatusCode::NO_CONTENT)
}

/// The older service's: whether a full pass is on.
#[utoipa::path(get, path = "/sync/status", tag = "sync", operation_id = "older_sync_status",
    responses((status = 200, body = Envelope<InProcess>)))]
pub(crate) async fn older_status(State(app): State<Arc<App>>) -> Json<Envelope<InProcess>> {
    let standing = match sync(&app) {
        Ok(sync) => sync.standing(),
        Err(error) => return refused(&error),
    };
    let sync_in_process = standing.in_process;
    let message = match (standing.stands_by, sync_in_process) {
        (Some(why), _) => format!("this instance does not sync: {why}"),
        (None, true) => "sync in process".to_owned(),
        (None, false) => "no sync in process".to_owned(),
    };
    Json(Envelope { ok: true, message, data: Some(InProcess { sync_in_process }) })
}

/// The older service's: begins a full pass, unless one is on.
#[utoipa::path(get, path = "/sync/now", tag = "sync", operation_id = "older_sync_now",
    responses((status = 200, body = Envelope<SyncBegun>)))]
pub(crate) async fn older_now(
    State(app): State<Arc<App>>,
    caller: Option<Extension<Caller>>,
) -> Json<Envelope<SyncBegun>> {
    // Nobody in particular, where no token is asked for.
    let cause = caller.map_or(Cause::Local, |Extension(caller)| caller.cause());
    let begun = match sync(&app) {
        Ok(sync) => sync.now(cause).await,
        Err(error) => Err(error),
    };
    match begun {
        Ok(run) => Json(Envelope {
            ok: true,
            message: "sync triggered".to_owned(),
            data: Some(SyncBegun { run }),
        }),
        Err(Error::Already) => {
            Json(Envelope { ok: false, message: "already syncing".to_owned(), data: None })
        }
        Err(error) => refused(&error),
    }
}

/// The older service's: brings some VMs in step, by UUID or name, and answers when their documents
/// say so. Orphans nothing.
#[utoipa::path(post, path = "/sync/vms", tag = "sync", operation_id = "older_sync_vms", request_body = SelectedVms,
    responses((status = 200, body = Envelope<Vec<BTreeMap<String, SelectedResult>>>)))]
pub(crate) async fn older_vms(
    State(app): State<Arc<App>>,
    body: Bytes,
) -> Json<Envelope<Vec<BTreeMap<String, SelectedResult>>>> {
    let wrong = |message: String| Json(Envelope { ok: false, message, data: None });
    let wanted = match serde_json::from_slice::<SelectedVms>(&body) {
        Ok(wanted) => wanted.vms,
        Err(error) => return wrong(format!("{{\"vms\":[UUID or name]}} is wanted: {error}")),
    };
    if wanted.is_empty() || wanted.len() > MAX_SELECTED {
        return wrong(format!("1 to {MAX_SELECTED} VMs are named at once"));
    }
    let done = match sync(&app) {
        Ok(sync) => sync.selected(wanted).await,
        Err(error) => Err(error),
    };
    match done {
        Ok(results) => {
            let ok = results.iter().all(|result| result.ok);
            let message = if ok { "sync completed" } else { "not all hosts are in step" };
            let one = |result: SelectedResult| [(result.host.clone(), result)].into();
            let data = results.into_iter().map(one).collect();
            Json(Envelope { ok, message: message.to_owned(), data: Some(data) })
        }
        Err(error) => refused(&error),
    }
}

/// The routes of the older service alone.
pub(super) fn older(app: &Arc<App>) -> Router {
    use axum::routing::{get, post};
    Router::new()
        .route("/sync/status", get(older_status))
        .route("/sync/now", get(older_now))
        .route("/sync/vms", post(older_vms))
        .fallback(|| async {
            ApiError::not_found("only /sync/status, /sync/now and /sync/vms are here")
        })
        .with_state(Arc::clone(app))
}

fn refused<T>(error: &Error) -> Json<Envelope<T>> {
    Json(Envelope { ok: false, message: model::with_causes(error), data: None })
}

fn no_entry(id: &str) -> Error {
    Error::NoEntry(id.chars().take(80).collect())
}

/// What blocks, off the async threads.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, sinks::outbox::Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or(Err(store::Error::Closed.into())).map_err(Error::from)
}

fn shown(entry: sinks::Entry) -> OutboxEntry {
    let what = match &entry.change {
        SessionChange::Orphan { name, .. } => format!("orphan {name}"),
        SessionChange::Reactivate { name } => format!("reactivate {name}"),
        SessionChange::Rename { old, new } => format!("rename {old} to {new}"),
    };
    OutboxEntry {
        id: entry.id,
        vm: entry.vm,
        target: entry.target.to_string(),
        what,
        created_at: entry.created_at,
        attempts: entry.attempts,
        next_at: entry.next_at,
        last_error: entry.last_error,
        dead: entry.dead,
    }
}
