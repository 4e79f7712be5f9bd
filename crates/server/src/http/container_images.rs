//! Images of containers, as hosts' agents hand them out.

use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Asked, Body, Host, segment};
use crate::app::App;
use crate::container_images::Error;
use api::container_image::{ImageAnswer, ImageNews, ImageTasks};
use axum::extract::{FromRequestParts, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::{Extension, Json};
use model::container_image::BlobDigest;
use model::with_causes;
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// How long an agent waits until it asks again.
const WAIT: Duration = Duration::from_secs(20);

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(work)).routes(routes!(news)).routes(routes!(piece))
}

/// Waits for images that are wanted of a host, for its twin.
#[utoipa::path(post, path = "/api/v1/hosts/{host}/image-work", tag = "agents", operation_id = "image_work", params(("host" = String, Path)),
    responses((status = 200, body = ImageTasks), (status = 403, body = api::ErrorBody)))]
pub(crate) async fn work(
    State(app): State<Arc<App>>,
    Host(host): Host,
    Extension(caller): Extension<Caller>,
) -> Result<Json<ImageTasks>, ApiError> {
    caller.may_work(&host)?;
    app.twins.hands_out_images(&host);
    let tasks = tokio::select! {
        tasks = tokio::time::timeout(WAIT, app.twins.container_images().attend(&host)) => tasks,
        () = app.shutdown.cancelled() => Ok(Vec::new()),
    };
    Ok(Json(ImageTasks { tasks: tasks.unwrap_or_default() }))
}

/// Says how it goes with an image that is wanted.
#[utoipa::path(post, path = "/api/v1/hosts/{host}/image-work/{task}", tag = "agents", operation_id = "image_news", params(("host" = String, Path), ("task" = u64, Path)), request_body = ImageNews,
    responses((status = 200, body = ImageAnswer), (status = 400, body = api::ErrorBody), (status = 403, body = api::ErrorBody), (status = 409, body = api::ErrorBody), (status = 410, body = api::ErrorBody, description = "nobody waits for it any more")))]
pub(crate) async fn news(
    State(app): State<Arc<App>>,
    Host(host): Host,
    Task(task): Task,
    Extension(caller): Extension<Caller>,
    Body(body): Body,
) -> Result<Json<ImageAnswer>, ApiError> {
    caller.may_work(&host)?;
    let news: ImageNews = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad("bad_json", error.to_string()))?;
    Ok(Json(app.twins.container_images().news(&host, task, news).await?))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct PieceQuery {
    /// The byte of the part that the piece begins with; pieces come in order.
    from: u64,
}

/// Takes a piece of a part of an image, of at most 4 MiB.
#[utoipa::path(post, path = "/api/v1/hosts/{host}/image-work/{task}/{digest}", tag = "agents", operation_id = "image_piece", params(("host" = String, Path), ("task" = u64, Path), ("digest" = String, Path), PieceQuery),
    request_body(content_type = "application/octet-stream", content = Vec<u8>),
    responses((status = 204), (status = 400, body = api::ErrorBody), (status = 403, body = api::ErrorBody), (status = 409, body = api::ErrorBody), (status = 410, body = api::ErrorBody), (status = 422, body = api::ErrorBody)))]
pub(crate) async fn piece(
    State(app): State<Arc<App>>,
    Host(host): Host,
    Place { task, digest, from }: Place,
    Extension(caller): Extension<Caller>,
    Body(body): Body,
) -> Result<StatusCode, ApiError> {
    caller.may_work(&host)?;
    app.twins.container_images().piece(&host, task, (digest, from, body)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `{task}` of the path.
pub(crate) struct Task(u64);

impl<S: Send + Sync> FromRequestParts<S> for Task {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let number = segment(parts, state, "task").await?.parse();
        let wrong = |_number| ApiError::bad("bad_path", "a task is named by its number");
        number.map(Self).map_err(wrong)
    }
}

/// Where a piece belongs: `{task}` and `{digest}` of the path, and the query.
pub(crate) struct Place {
    task: u64,
    digest: BlobDigest,
    from: u64,
}

impl<S: Send + Sync> FromRequestParts<S> for Place {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Task(task) = Task::from_request_parts(parts, state).await?;
        let wrong = |error: model::TextError| ApiError::bad("bad_path", error.to_string());
        let digest = segment(parts, state, "digest").await?.parse().map_err(wrong)?;
        let Asked(PieceQuery { from }) = Asked::from_request_parts(parts, state).await?;
        Ok(Self { task, digest, from })
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let message = with_causes(&error);
        let (status, code) = match error {
            Error::Unwanted => (StatusCode::GONE, "unwanted"),
            Error::Order => (StatusCode::CONFLICT, "bad_order"),
            Error::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            Error::Damaged { .. } | Error::Lacking { .. } | Error::Config => {
                (StatusCode::UNPROCESSABLE_ENTITY, "bad_image")
            }
            Error::File { .. } | Error::Broken => (StatusCode::INTERNAL_SERVER_ERROR, "storage"),
        };
        Self::new(status, code, message)
    }
}
