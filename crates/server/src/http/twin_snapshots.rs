//! Snapshots of a twin: its saved moments.

use super::auth::Caller;
use super::error::ApiError;
use super::extract::Body;
use super::twins::{Moment, Name, begun, document};
use crate::app::App;
use api::run::Begun;
use api::twin::{NewSnapshot, Snapshot, TwinSnapshots};
use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json};
use std::sync::Arc;

/// The snapshots of a twin, the oldest first.
#[utoipa::path(get, path = "/api/v1/twins/{host}/snapshots", tag = "twins", operation_id = "list_twin_snapshots", params(("host" = String, Path)),
    responses((status = 200, body = TwinSnapshots), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Name(name): Name,
) -> Result<Json<TwinSnapshots>, ApiError> {
    Ok(Json(app.twins.snapshots(&name).await?))
}

/// Saves a twin as it is now; then lets go of snapshots that are too many.
#[utoipa::path(post, path = "/api/v1/twins/{host}/snapshots", tag = "twins", operation_id = "create_twin_snapshot", params(("host" = String, Path)), request_body = Option<NewSnapshot>,
    responses((status = 202, body = Begun), (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody), (status = 409, body = api::ErrorBody)))]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Name(name): Name,
    body: Body,
) -> Result<Response, ApiError> {
    let NewSnapshot { name: called, kind } = document(&body)?;
    let called = called.map(|text| text.parse()).transpose();
    let called = called.map_err(|error: vm::image::NameError| {
        ApiError::bad("bad_snapshot", format!("name: {error}"))
    })?;
    let (run, _name) = app.twins.save(&name, called, kind, caller.cause()).await?;
    Ok(begun(run))
}

/// One snapshot.
#[utoipa::path(get, path = "/api/v1/twins/{host}/snapshots/{name}", tag = "twins", operation_id = "show_twin_snapshot", params(("host" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = Snapshot), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Moment(name, snapshot): Moment,
) -> Result<Json<Snapshot>, ApiError> {
    Ok(Json(app.twins.snapshot(&name, &snapshot).await?))
}

/// Deletes a snapshot; the others stay whole. `base_state` and the current one stay.
#[utoipa::path(delete, path = "/api/v1/twins/{host}/snapshots/{name}", tag = "twins", operation_id = "delete_twin_snapshot", params(("host" = String, Path), ("name" = String, Path)),
    responses((status = 202, body = Begun), (status = 404, body = api::ErrorBody), (status = 409, body = api::ErrorBody)))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Moment(name, snapshot): Moment,
) -> Result<Response, ApiError> {
    Ok(begun(app.twins.delete_snapshot(&name, &snapshot, caller.cause()).await?))
}

/// Puts a twin back to a snapshot. What it was before is lost, unless it was saved.
#[utoipa::path(post, path = "/api/v1/twins/{host}/snapshots/{name}/revert", tag = "twins", operation_id = "revert_twin_snapshot", params(("host" = String, Path), ("name" = String, Path)),
    responses((status = 202, body = Begun), (status = 404, body = api::ErrorBody), (status = 409, body = api::ErrorBody)))]
pub(crate) async fn revert(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Moment(name, snapshot): Moment,
) -> Result<Response, ApiError> {
    Ok(begun(app.twins.revert(&name, &snapshot, caller.cause()).await?))
}
