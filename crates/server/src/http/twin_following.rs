//! Whether a twin follows its host, and how near it is. Each look at a guest is made anew.

use super::auth::Caller;
use super::error::ApiError;
use super::twins::{Name, begun};
use crate::app::App;
use api::following::{Following, TwinFidelity, TwinPlan, TwinVerified};
use api::run::Begun;
use axum::extract::State;
use axum::response::Response;
use axum::{Extension, Json};
use std::sync::Arc;

/// What would be done in a twin now, to bring it to the newest version of its host.
#[utoipa::path(get, path = "/api/v1/twins/{host}/plan", tag = "twins", operation_id = "plan_twin", params(("host" = String, Path)),
    responses((status = 200, body = TwinPlan), (status = 404, body = api::ErrorBody),
        (status = 409, body = api::ErrorBody, description = "it does not run, its agent does not answer, a run is on, or it is a clone")))]
pub(crate) async fn plan(
    State(app): State<Arc<App>>,
    Name(name): Name,
) -> Result<Json<TwinPlan>, ApiError> {
    Ok(Json(app.twins.planned(&name).await?))
}

/// Looks at a twin, and says how near it is to its host; what comes out is kept.
#[utoipa::path(get, path = "/api/v1/twins/{host}/verify", tag = "twins", operation_id = "verify_twin", params(("host" = String, Path)),
    responses((status = 200, body = TwinVerified), (status = 404, body = api::ErrorBody), (status = 409, body = api::ErrorBody)))]
pub(crate) async fn verify(
    State(app): State<Arc<App>>,
    Name(name): Name,
) -> Result<Json<TwinVerified>, ApiError> {
    Ok(Json(app.twins.verify(&name).await?))
}

/// What of the host is in its twin; what is not, why, and what to do.
#[utoipa::path(get, path = "/api/v1/twins/{host}/fidelity", tag = "twins", operation_id = "twin_fidelity", params(("host" = String, Path)),
    responses((status = 200, body = TwinFidelity), (status = 404, body = api::ErrorBody), (status = 409, body = api::ErrorBody)))]
pub(crate) async fn fidelity(
    State(app): State<Arc<App>>,
    Name(name): Name,
) -> Result<Json<TwinFidelity>, ApiError> {
    Ok(Json(app.twins.fidelity(&name).await?))
}

/// Brings a twin to the newest version of its host, once; also one that is held.
#[utoipa::path(post, path = "/api/v1/twins/{host}/apply", tag = "twins", operation_id = "apply_twin", params(("host" = String, Path)),
    responses((status = 202, body = Begun), (status = 404, body = api::ErrorBody), (status = 409, body = api::ErrorBody)))]
pub(crate) async fn apply(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Name(name): Name,
) -> Result<Response, ApiError> {
    Ok(begun(app.twins.apply(&name, caller.cause()).await?))
}

/// Leaves a twin as it is, whatever its host does. A plan that is being carried out in it is
/// finished, and none is begun after it. The answer waits for that up to 5 s, and names the `run`
/// that still goes on.
#[utoipa::path(post, path = "/api/v1/twins/{host}/hold", tag = "twins", operation_id = "hold_twin", params(("host" = String, Path)),
    responses((status = 200, body = Following), (status = 404, body = api::ErrorBody), (status = 409, body = api::ErrorBody, description = "it is a clone")))]
pub(crate) async fn hold(
    State(app): State<Arc<App>>,
    Name(name): Name,
) -> Result<Json<Following>, ApiError> {
    Ok(Json(app.twins.hold(&name).await?))
}

/// Lets a twin follow its host from now on.
#[utoipa::path(post, path = "/api/v1/twins/{host}/follow", tag = "twins", operation_id = "follow_twin", params(("host" = String, Path)),
    responses((status = 200, body = Following), (status = 404, body = api::ErrorBody), (status = 409, body = api::ErrorBody, description = "it is a clone")))]
pub(crate) async fn follow(
    State(app): State<Arc<App>>,
    Name(name): Name,
) -> Result<Json<Following>, ApiError> {
    Ok(Json(app.twins.follow(&name).await?))
}
