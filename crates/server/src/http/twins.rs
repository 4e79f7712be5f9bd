//! Twins: the machine that mirrors a host. What takes long is a run, whose id is the answer.

use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Asked, Body};
use super::hosts::page_limit;
use crate::app::App;
use crate::runs::RunId;
use api::run::Begun;
use api::twin::{self, BegunClones, BegunRevert, NewClones, NewTwin, Revert, Stop};
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use model::spec::{ExtraError, ExtraKind};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::sync::Arc;
use vm::image::{MachineName, SnapshotName};

/// `{host}` of the path: a host's twin, or a clone of one.
pub(crate) struct Name(pub(crate) MachineName);

/// `{host}` and `{name}` of the path: a snapshot of a twin.
pub(crate) struct Moment(pub(crate) MachineName, pub(crate) SnapshotName);

/// `{host}`, `{kind}` and `{name}` of the path: something that is declared of a twin.
pub(crate) struct Thing(pub(crate) MachineName, pub(crate) ExtraKind, pub(crate) String);

async fn segments<S: Send + Sync>(
    parts: &mut Parts,
    state: &S,
) -> Result<HashMap<String, String>, ApiError> {
    let path = Path::<HashMap<String, String>>::from_request_parts(parts, state).await;
    let bad = |_path| ApiError::bad("bad_path", "the path is not valid UTF-8");
    path.map(|Path(segments)| segments).map_err(bad)
}

/// Hosts' names are kept in lower case, and so are their twins'.
fn machine(segments: &HashMap<String, String>) -> Result<MachineName, ApiError> {
    let text = segments.get("host").map(String::as_str).unwrap_or_default();
    // Nothing can be known of what is no name.
    let unknown = |error: vm::image::NameError| {
        ApiError::new(StatusCode::NOT_FOUND, "unknown_twin", error.to_string())
    };
    text.to_ascii_lowercase().parse().map_err(unknown)
}

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        machine(&segments(parts, state).await?).map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Moment {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let segments = segments(parts, state).await?;
        let text = segments.get("name").map(String::as_str).unwrap_or_default();
        let unknown = |error: vm::image::NameError| {
            ApiError::new(StatusCode::NOT_FOUND, "unknown_snapshot", error.to_string())
        };
        Ok(Self(machine(&segments)?, text.parse().map_err(unknown)?))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Thing {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let segments = segments(parts, state).await?;
        let text = |name: &str| segments.get(name).map(String::as_str).unwrap_or_default();
        let kind = text("kind").parse();
        let kind =
            kind.map_err(|error: ExtraError| ApiError::bad("bad_extra", error.to_string()))?;
        Ok(Self(machine(&segments)?, kind, text("name").to_owned()))
    }
}

/// A document that may be left out.
pub(super) fn document<T: DeserializeOwned + Default>(Body(body): &Body) -> Result<T, ApiError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(T::default());
    }
    serde_json::from_slice(body).map_err(|error| ApiError::bad("bad_json", error.to_string()))
}

/// The answer that a run was begun.
pub(super) fn begun(run: RunId) -> Response {
    accepted(run, Begun { run })
}

fn accepted(run: RunId, answer: impl serde::Serialize) -> Response {
    let place = format!("/api/v1/runs/{run}");
    (StatusCode::ACCEPTED, [(header::LOCATION, place)], Json(answer)).into_response()
}

const PAGE: usize = 100;
const MAX_PAGE: usize = 1000;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct TwinsQuery {
    /// Twins on a page; at most 1000.
    limit: Option<usize>,
    /// The `next` of the page before.
    after: Option<String>,
}

/// All twins and their clones, by name.
#[utoipa::path(get, path = "/api/v1/twins", tag = "twins", operation_id = "list_twins", params(TwinsQuery),
    responses((status = 200, body = twin::Twins), (status = 400, body = api::ErrorBody), (status = 503, body = api::ErrorBody, description = "there is nothing here to run them with")))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Asked(query): Asked<TwinsQuery>,
) -> Result<Json<twin::Twins>, ApiError> {
    let limit = page_limit(query.limit, PAGE, MAX_PAGE)?;
    Ok(Json(app.twins.page(query.after.as_deref(), limit).await?))
}

/// One twin, and whether it answers.
#[utoipa::path(get, path = "/api/v1/twins/{host}", tag = "twins", operation_id = "show_twin", params(("host" = String, Path)),
    responses((status = 200, body = twin::Twin), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Name(name): Name,
) -> Result<Json<twin::Twin>, ApiError> {
    Ok(Json(app.twins.show(&name).await?))
}

/// Makes the twin of a host, stopped. What is left out is as the server is configured.
#[utoipa::path(put, path = "/api/v1/twins/{host}", tag = "twins", operation_id = "create_twin", params(("host" = String, Path)), request_body = NewTwin,
    responses((status = 202, body = Begun), (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody),
        (status = 409, body = api::ErrorBody, description = "it has one, or there is no image")))]
pub(crate) async fn create(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Name(name): Name,
    body: Body,
) -> Result<Response, ApiError> {
    let wanted: NewTwin = document(&body)?;
    Ok(begun(app.twins.create(&name, wanted, caller.cause()).await?))
}

/// Removes a twin with its disk and all its snapshots. It may run.
#[utoipa::path(delete, path = "/api/v1/twins/{host}", tag = "twins", operation_id = "delete_twin", params(("host" = String, Path)),
    responses((status = 202, body = Begun), (status = 404, body = api::ErrorBody),
        (status = 409, body = api::ErrorBody, description = "something was cloned from it, or a run is on")))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Name(name): Name,
) -> Result<Response, ApiError> {
    Ok(begun(app.twins.delete(&name, caller.cause()).await?))
}

/// Gives a twin power and waits until it answers. Where a host has no twin it is made, of what
/// the body says. One that runs is left alone.
#[utoipa::path(post, path = "/api/v1/twins/{host}/start", tag = "twins", operation_id = "start_twin", params(("host" = String, Path)), request_body = Option<NewTwin>,
    responses((status = 202, body = Begun), (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody), (status = 409, body = api::ErrorBody)))]
pub(crate) async fn start(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Name(name): Name,
    body: Body,
) -> Result<Response, ApiError> {
    let wanted: NewTwin = document(&body)?;
    Ok(begun(app.twins.start(&name, wanted, caller.cause()).await?))
}

/// Asks the guest to power off, or takes its power away. A stopped twin is left alone.
#[utoipa::path(post, path = "/api/v1/twins/{host}/stop", tag = "twins", operation_id = "stop_twin", params(("host" = String, Path)), request_body = Option<Stop>,
    responses((status = 202, body = Begun), (status = 404, body = api::ErrorBody), (status = 409, body = api::ErrorBody)))]
pub(crate) async fn stop(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Name(name): Name,
    body: Body,
) -> Result<Response, ApiError> {
    let Stop { force } = document(&body)?;
    Ok(begun(app.twins.stop(&name, force, caller.cause()).await?))
}

/// Stops a twin and starts it.
#[utoipa::path(post, path = "/api/v1/twins/{host}/restart", tag = "twins", operation_id = "restart_twin", params(("host" = String, Path)), request_body = Option<Stop>,
    responses((status = 202, body = Begun), (status = 404, body = api::ErrorBody), (status = 409, body = api::ErrorBody)))]
pub(crate) async fn restart(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Name(name): Name,
    body: Body,
) -> Result<Response, ApiError> {
    let Stop { force } = document(&body)?;
    Ok(begun(app.twins.restart(&name, force, caller.cause()).await?))
}

/// Makes further machines that begin in a moment of this one, each with an identity of its own
/// and cut off from everything.
#[utoipa::path(post, path = "/api/v1/twins/{host}/clone", tag = "twins", operation_id = "clone_twin", params(("host" = String, Path)), request_body = Option<NewClones>,
    responses((status = 202, body = BegunClones), (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody), (status = 409, body = api::ErrorBody)))]
pub(crate) async fn clone(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Name(name): Name,
    body: Body,
) -> Result<Response, ApiError> {
    let wanted: NewClones = document(&body)?;
    let begun = app.twins.clone_twin(&name, wanted, caller.cause()).await?;
    Ok(accepted(begun.run, begun))
}

/// Puts a twin back to a snapshot, or to the newest at or before a moment. What it was before is
/// lost, unless it was saved.
#[utoipa::path(post, path = "/api/v1/twins/{host}/revert", tag = "twins", operation_id = "revert_twin", params(("host" = String, Path)), request_body = Option<Revert>,
    responses((status = 202, body = BegunRevert), (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody), (status = 409, body = api::ErrorBody)))]
pub(crate) async fn revert(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Name(name): Name,
    body: Body,
) -> Result<Response, ApiError> {
    let Revert { snapshot } = document(&body)?;
    let begun = app.twins.revert_to(&name, snapshot.as_deref(), caller.cause()).await?;
    Ok(accepted(begun.run, begun))
}
