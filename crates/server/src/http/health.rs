//! For probes and monitoring.

use super::error::ApiError;
use crate::app::App;
use crate::metrics::{Form, render};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use std::time::Duration;

/// How long the history may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Metrics for Prometheus; as OpenMetrics where `Accept` names it.
#[utoipa::path(get, path = "/metrics", tag = "health",
    responses((status = 200, content((String = "text/plain"), (String = "application/openmetrics-text")))))]
pub(crate) async fn metrics(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let form = Form::asked(&headers);
    let text = app.read(move |app| render(app, form)).await?;
    Ok(([(header::CONTENT_TYPE, form.media_type())], text).into_response())
}

/// Whether the process lives.
#[utoipa::path(get, path = "/healthz", tag = "health", responses((status = 200, body = String)))]
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether it can do its work: the history answers and writes, and it is not stopping.
#[utoipa::path(get, path = "/readyz", tag = "health", responses((status = 200, body = String), (status = 503, body = api::ErrorBody)))]
pub(crate) async fn readyz(State(app): State<Arc<App>>) -> Result<&'static str, ApiError> {
    let not_ready =
        |message: &str| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_ready", message);
    if app.shutdown.is_cancelled() {
        return Err(not_ready("the server is stopping"));
    }
    let stats = tokio::time::timeout(PATIENCE, app.read(|app| Ok(app.history.stats()))).await;
    let stats = stats.map_err(|_elapsed| not_ready("the history does not answer"))??;
    if stats.failing {
        let message = "the history can't be written; the log says why (is the disk full?)";
        return Err(not_ready(message));
    }
    if stats.queue >= stats.queue_limit {
        return Err(not_ready("the history's queue is full"));
    }
    if !app.pulse.beats(&app.history, PATIENCE).await {
        return Err(not_ready("the history takes nothing: its writer has ended, or hangs"));
    }
    Ok("ready\n")
}
