//! What is declared of a twin, on top of what is observed on its host.

use super::error::ApiError;
use super::extract::Body;
use super::twins::{Name, Thing, document};
use crate::app::App;
use api::extras::{MAX_EXTRA, NewExtra, TwinExtra, TwinExtras};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use std::sync::Arc;

/// What was declared of a twin.
#[utoipa::path(get, path = "/api/v1/twins/{host}/extras", tag = "twins", operation_id = "list_twin_extras", params(("host" = String, Path)),
    responses((status = 200, body = TwinExtras), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Name(name): Name,
) -> Result<Json<TwinExtras>, ApiError> {
    let extras = app.twins.extras(&name).await?;
    Ok(Json(TwinExtras { twin: name.to_string(), extras }))
}

/// Declares a service, process, container or dependency: one that the host does not have, some
/// fields of one that it has, or that it is not to be in the twin.
#[utoipa::path(put, path = "/api/v1/twins/{host}/extras/{kind}/{name}", tag = "twins", operation_id = "declare_twin_extra", params(("host" = String, Path), ("kind" = String, Path), ("name" = String, Path)), request_body = Option<NewExtra>,
    responses((status = 200, body = TwinExtra), (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody), (status = 413, body = api::ErrorBody)))]
pub(crate) async fn declare(
    State(app): State<Arc<App>>,
    Thing(name, kind, thing): Thing,
    body: Body,
) -> Result<Json<TwinExtra>, ApiError> {
    if body.0.len() > MAX_EXTRA {
        let message = format!("a declaration has {MAX_EXTRA} bytes at most");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message));
    }
    let wanted: NewExtra = document(&body)?;
    Ok(Json(app.twins.declare(&name, (kind, &thing), wanted).await?))
}

/// Takes back what was declared of one thing: it is as on the host again.
#[utoipa::path(delete, path = "/api/v1/twins/{host}/extras/{kind}/{name}", tag = "twins", operation_id = "undeclare_twin_extra", params(("host" = String, Path), ("kind" = String, Path), ("name" = String, Path)),
    responses((status = 204), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn undeclare(
    State(app): State<Arc<App>>,
    Thing(name, kind, thing): Thing,
) -> Result<StatusCode, ApiError> {
    app.twins.undeclare(&name, (kind, &thing)).await?;
    Ok(StatusCode::NO_CONTENT)
}
