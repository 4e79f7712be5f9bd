//! The bridge's machine: the twin of the host whose state came last. Where there is none, the
//! bridge's routes answer as they did before there were twins.

use super::auth::Caller;
use super::error::ApiError;
use crate::app::App;
use crate::runs::{RunId, State as RunIs};
use api::run::Begun;
use api::twin::{Twin, TwinState};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use vm::image::MachineName;

/// Below that of a request.
const PATIENCE: Duration = Duration::from_secs(50);

/// The bridge's machine, if it is there.
pub(super) async fn machine(app: &App) -> Option<MachineName> {
    let newest = app.snapshots.list().snapshots.pop();
    match newest {
        Some(newest) => {
            let name: MachineName = newest.host.as_str().parse().ok()?;
            app.twins.is_there(&name).await.then_some(name)
        }
        // Nobody fed the bridge: the only twin that is no clone.
        None => {
            let twins = app.twins.list().await.ok()?;
            let mut own = twins.twins.into_iter().filter(|twin| twin.origin.is_none());
            match (own.next(), own.next()) {
                (Some(only), None) => only.name.parse().ok(),
                _ => None,
            }
        }
    }
}

fn no_machine() -> ApiError {
    let message = "this server has no virtual machine; make one with: twin start HOST";
    ApiError::new(StatusCode::NOT_FOUND, "no_twin", message)
}

/// Waits for a run, and gives its failure as the answer. Nothing when it takes longer than
/// anybody waits for an answer.
pub(super) async fn done(app: &App, run: RunId) -> Result<Option<()>, ApiError> {
    let mut log = app.runs.follow(run, 0, true)?;
    let over = async {
        while log.next().await?.is_some() {}
        Ok::<_, crate::runs::Error>(())
    };
    match tokio::time::timeout(PATIENCE, over).await {
        Ok(over) => over?,
        Err(_elapsed) => return Ok(None),
    }
    let run = app.runs.show(run)?;
    if run.state == RunIs::Succeeded {
        return Ok(Some(()));
    }
    let message = run.message.unwrap_or_else(|| run.state.to_string());
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    Err(ApiError::new(status, "run_failed", message).with("run", &run.id))
}

/// The bridge's machine, in its words.
#[utoipa::path(get, path = "/api/v1/vm/info", tag = "bridge", operation_id = "vm_info",
    responses((status = 200, body = Object), (status = 404, body = api::ErrorBody, description = "there is no machine")))]
pub(crate) async fn info(State(app): State<Arc<App>>) -> Result<Json<Value>, ApiError> {
    let name = machine(&app).await.ok_or_else(no_machine)?;
    let twin = app.twins.show(&name).await?;
    let address = app.twins.address(&name).await;
    let Twin { state, memory_bytes, processors, ssh, .. } = &twin;
    Ok(Json(json!({
        "status": "ok",
        "vm_name": app.vm_name.clone(),
        "vm_ip": address,
        "vm_running": twin.answers.unwrap_or(false),
        "state": state,
        "memory_mb": memory_bytes >> 20,
        "vcpus": processors,
        "ssh": ssh.as_ref().map(|ssh| json!({ "host": ssh.address, "port": ssh.port, "user": ssh.user })),
        "twin": twin.name,
        "current_snapshot": twin.current_snapshot,
    })))
}

/// Gives the bridge's machine power. One that runs is left alone.
#[utoipa::path(post, path = "/api/v1/vm/start", tag = "bridge", operation_id = "vm_start",
    responses((status = 200, body = Object, description = "it runs already"), (status = 202, body = Begun), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn start(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, ApiError> {
    let name = machine(&app).await.ok_or_else(no_machine)?;
    if app.twins.state(&name).await? == TwinState::Running {
        return Ok(as_asked(&format!("{name} runs already")));
    }
    let run = app.twins.start(&name, api::twin::NewTwin::default(), caller.cause()).await?;
    Ok(on_its_way(run, &format!("{name} is being started")))
}

/// Asks the bridge's machine to power off. A stopped one is left alone.
#[utoipa::path(post, path = "/api/v1/vm/stop", tag = "bridge", operation_id = "vm_stop",
    responses((status = 200, body = Object, description = "it is stopped already"), (status = 202, body = Begun), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn stop(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, ApiError> {
    let name = machine(&app).await.ok_or_else(no_machine)?;
    if app.twins.state(&name).await? == TwinState::Stopped {
        return Ok(as_asked(&format!("{name} is stopped already")));
    }
    let run = app.twins.stop(&name, false, caller.cause()).await?;
    Ok(on_its_way(run, &format!("{name} is being stopped")))
}

/// Stops the bridge's machine and starts it.
#[utoipa::path(post, path = "/api/v1/vm/restart", tag = "bridge", operation_id = "vm_restart",
    responses((status = 202, body = Begun), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn restart(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, ApiError> {
    let name = machine(&app).await.ok_or_else(no_machine)?;
    let run = app.twins.restart(&name, false, caller.cause()).await?;
    Ok(on_its_way(run, &format!("{name} is being restarted")))
}

fn as_asked(message: &str) -> Response {
    Json(json!({ "status": "success", "message": message })).into_response()
}

pub(super) fn on_its_way(run: RunId, message: &str) -> Response {
    let answer = json!({ "status": "success", "message": message, "run": run });
    (StatusCode::ACCEPTED, Json(answer)).into_response()
}
