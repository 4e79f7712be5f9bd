//! The bridge's routes, with its answers: any client that fed it feeds this server.

use super::auth::Caller;
use super::bridge_twin;
use super::error::ApiError;
use super::extract::{Asked, Body, Segments};
use super::hosts::page_limit;
use super::ingest::limit_items;
use crate::app::App;
use crate::clock;
use crate::replays::{Asking, Known, MAX_KEY};
use crate::snapshots::{Deleted, Snapshot};
use api::bridge::{self, Snapshots, Status, Updated};
use api::twin::BegunRevert;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use model::{ContentId, Facts, Time, with_causes};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use store::{Append, Delta, Filter};
use vm::image::{MachineName, SnapshotName};

/// Changes named in an answer.
const CHANGES: usize = 200;

/// Takes the full state of a host as JSON. Unknown fields are ignored; volatile ones (usage,
/// uptime) are never a change. With an `Idempotency-Key`, a request sent again gets the first
/// answer.
#[utoipa::path(post, path = "/api/v1/update_state", tag = "bridge", request_body = Object,
    params(("Idempotency-Key" = Option<String>, Header, description = "names this request")),
    responses((status = 200, description = "`updated` with the changes, or `no_changes`", body = Object), (status = 400, body = api::ErrorBody), (status = 413, body = api::ErrorBody), (status = 415, body = api::ErrorBody, description = "the body is compressed"), (status = 422, body = api::ErrorBody, description = "the key was used for another request")))]
pub(crate) async fn update_state(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Json<Updated>, ApiError> {
    as_it_is(&headers)?;
    let state = bridge::parse(&body, &app.redactor).map_err(|error| {
        let code = match error {
            bridge::Error::Empty => "empty_body",
            bridge::Error::Json(_) => "bad_json",
            bridge::Error::Type { .. } => "bad_type",
            bridge::Error::Host(_) => "bad_host",
        };
        ApiError::bad(code, error.to_string())
    })?;
    caller.may_feed(&state.host)?;
    limit_items(&state.facts)?;
    let asked = asked(&headers, &caller, &body)?;
    app.metrics.ingested_bytes.inc_by(u64::try_from(body.len()).unwrap_or(0));
    // A key is looked up and its answer kept within one turn: the same request at the same time
    // gets the same answer.
    let turn = app.snapshots.turn().await;
    match asked.as_ref().map_or(Known::Nothing, |asked| app.replays.find(asked)) {
        Known::Answer(answer) => return Ok(Json(answer)),
        Known::Reused => {
            return Err(ApiError::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "key_reused",
                "this idempotency key was used for another request",
            ));
        }
        Known::Nothing => {}
    }
    // Goes on when the client hangs up: a version is not left without its name.
    let recording = Arc::clone(&app);
    let recorded = app.recordings.spawn(async move {
        let answer = record(&recording, state).await?;
        if let Some(asked) = asked {
            recording.replays.keep(asked, answer.clone());
        }
        drop(turn);
        Ok(answer)
    });
    recorded.await.unwrap_or_else(|_ended| Err(store::Error::Closed.into())).map(Json)
}

/// Refuses bodies in an encoding.
fn as_it_is(headers: &HeaderMap) -> Result<(), ApiError> {
    let encoding = headers.get(header::CONTENT_ENCODING).map(|value| value.as_bytes());
    if encoding.is_none_or(|encoding| encoding.eq_ignore_ascii_case(b"identity")) {
        return Ok(());
    }
    let message = "this route takes no compressed body; send the JSON as it is, without \
                   Content-Encoding";
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "compressed", message))
}

/// The request by its `Idempotency-Key`, where it has one.
fn asked(headers: &HeaderMap, caller: &Caller, body: &[u8]) -> Result<Option<Asking>, ApiError> {
    let Some(key) = headers.get("idempotency-key") else { return Ok(None) };
    let key = key.to_str().ok().filter(|key| (1..=MAX_KEY).contains(&key.len()));
    let key = key.ok_or_else(|| {
        ApiError::bad("bad_key", format!("an idempotency key has 1 to {MAX_KEY} ASCII characters"))
    })?;
    let caller = caller.token().map(|token| token.id.clone());
    Ok(Some(Asking { caller, key: key.to_owned(), request: ContentId::of(body) }))
}

/// Records the state, and puts its name on the list. The caller has the turn.
async fn record(app: &Arc<App>, state: bridge::State) -> Result<Updated, ApiError> {
    let now = clock::now();
    let name = app.snapshots.next_name(now);
    let host = state.host.clone();
    let facts = store::Body::State(with_untold(app, state).await?);
    let delta =
        Delta { sequence: None, at: now, body: facts, gap: None, label: Some(name.clone()) };
    let append = Append { host: host.clone(), stream: None, received: now, deltas: vec![delta] };
    let appended = app.append(append).await?;
    app.saw(&host, now);
    let Some(version) = appended.recorded.last().copied() else { return Ok(Updated::NoChanges) };
    let (snapshot, changes) = app
        .read(move |app| {
            app.snapshots.add(Snapshot {
                name: name.clone(),
                host: host.clone(),
                version,
                at: now,
            })?;
            let entry = app.history.entry(&host, version)?;
            let subjects = entry.map(|entry| entry.patch.0.into_keys()).into_iter().flatten();
            Ok((name, subjects.take(CHANGES).map(|subject| subject.to_string()).collect()))
        })
        .await?;
    Ok(Updated::Updated { snapshot, state_id: version.0, changes })
}

/// The facts, with what the client says nothing of as it was.
async fn with_untold(app: &Arc<App>, state: bridge::State) -> Result<Facts, ApiError> {
    if state.untold.is_empty() {
        return Ok(state.facts);
    }
    let host = state.host.clone();
    match app.read(move |app| app.history.head(&host)).await {
        Ok(head) => Ok(state.upon(&head.map(|head| head.facts).unwrap_or_default())),
        // Nothing can be told of before; a whole state begins anew after the damage.
        Err(error) if error.is_damage() => {
            let error = with_causes(&error);
            tracing::warn!(host = %state.host, error, "what was known of a host is damaged");
            Ok(state.upon(&Facts::default()))
        }
        Err(error) => Err(error.into()),
    }
}

/// The names of saved states: of the host's versions, and of its twin where there is one. The
/// twin's own current one goes before the newest state.
#[utoipa::path(get, path = "/api/v1/snapshots", tag = "bridge", responses((status = 200, body = Snapshots)))]
pub(crate) async fn snapshots(State(app): State<Arc<App>>) -> Result<Json<Snapshots>, ApiError> {
    Ok(Json(saved(&app).await?))
}

async fn saved(app: &App) -> Result<Snapshots, ApiError> {
    let list = app.snapshots.list();
    let mut named: Vec<_> = list.snapshots.into_iter().map(|s| (s.at, s.name)).collect();
    let mut current = list.current;
    if let Some(name) = bridge_twin::machine(app).await {
        let twin = app.twins.snapshots(&name).await?;
        for one in twin.snapshots {
            if !named.iter().any(|(_, name)| *name == one.name) {
                named.push((one.at.unwrap_or(Time(0)), one.name));
            }
        }
        named.sort_by_key(|(at, _)| *at);
        current = twin.current.or(current);
    }
    Ok(Snapshots { current, history: named.into_iter().map(|(_, name)| name).collect() })
}

/// Reverts the machine to its snapshot of this name, or else to the version that the name stands
/// for, and answers when it is done. 202 where that takes longer than an answer may. Where there
/// is no machine, or it is another host's, it is refused, after the name is looked up.
#[utoipa::path(post, path = "/api/v1/snapshots/{name}", tag = "bridge", params(("name" = String, Path)),
    responses((status = 200, body = Object), (status = 202, body = api::run::Begun), (status = 404, body = api::ErrorBody), (status = 409, body = api::ErrorBody)))]
pub(crate) async fn revert(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Segments(name): Segments<String>,
) -> Result<Response, ApiError> {
    if let Some((twin, snapshot)) = of_machine(&app, &name).await? {
        let run = app.twins.revert(&twin, &snapshot, caller.cause()).await?;
        return Ok(match bridge_twin::done(&app, run).await? {
            Some(()) => Json(json!({ "status": "reverted", "snapshot": snapshot, "run": run }))
                .into_response(),
            None => bridge_twin::on_its_way(run, &format!("still reverting to {snapshot}")),
        });
    }
    let found = app.snapshots.list().snapshots.into_iter().find(|snapshot| snapshot.name == name);
    let Some(snapshot) = found else { return Err(no_snapshot(&name)) };
    let Snapshot { name, host, version, .. } = snapshot;
    let message = match bridge_twin::machine(&app).await {
        Some(twin) if twin.as_str() == host.as_str() => {
            let (wanted, cause) = (version.to_string(), caller.cause());
            let BegunRevert { run, nearest, .. } =
                app.twins.revert_to(&twin, Some(&wanted), cause).await?;
            let answer =
                json!({ "status": "reverted", "snapshot": name, "run": run, "nearest": nearest });
            return Ok(match bridge_twin::done(&app, run).await? {
                Some(()) => Json(answer).into_response(),
                None => bridge_twin::on_its_way(run, &format!("still reverting to {name}")),
            });
        }
        Some(twin) => format!(
            "{name} is {host}{version}, of which the machine {twin} has no snapshot; \
             read it with GET /api/v1/hosts/{host}/state?at={version}"
        ),
        None => format!(
            "{name} is {host}{version}, but this server has no virtual machine to revert to it; \
             read it with GET /api/v1/hosts/{host}/state?at={version}"
        ),
    };
    Err(ApiError::new(StatusCode::CONFLICT, "no_twin", message))
}

/// The bridge's machine, and its snapshot of this name.
async fn of_machine(
    app: &App,
    name: &str,
) -> Result<Option<(MachineName, SnapshotName)>, ApiError> {
    let (Some(twin), Ok(wanted)) = (bridge_twin::machine(app).await, name.parse()) else {
        return Ok(None);
    };
    let snapshots = app.twins.snapshots(&twin).await?.snapshots;
    Ok(snapshots.iter().any(|one| one.name == name).then_some((twin, wanted)))
}

/// Takes a name off the list, and deletes the machine's snapshot of that name. `base_state` and
/// the current one stay.
#[utoipa::path(delete, path = "/api/v1/snapshots/{name}", tag = "bridge", params(("name" = String, Path)),
    responses((status = 200, body = Object), (status = 202, body = api::run::Begun), (status = 404, body = api::ErrorBody), (status = 409, body = api::ErrorBody)))]
pub(crate) async fn delete(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Segments(name): Segments<String>,
) -> Result<Response, ApiError> {
    let wanted = name.clone();
    if let Some((twin, snapshot)) = of_machine(&app, &name).await? {
        let run = app.twins.delete_snapshot(&twin, &snapshot, caller.cause()).await?;
        let done = bridge_twin::done(&app, run).await?;
        // The name of a version that may be there, too; the newest one of these stays.
        app.read(move |app| app.snapshots.delete(&wanted)).await?;
        return Ok(match done {
            Some(()) => deleted(&name),
            None => bridge_twin::on_its_way(run, &format!("still deleting {name}")),
        });
    }
    match app.read(move |app| app.snapshots.delete(&wanted)).await? {
        Deleted::Done => Ok(deleted(&name)),
        Deleted::Unknown => Err(no_snapshot(&name)),
        Deleted::Kept => {
            let message = format!("{name} is the base or the current state, which stay");
            Err(ApiError::new(StatusCode::CONFLICT, "kept", message))
        }
    }
}

fn deleted(name: &str) -> Response {
    let message = format!("snapshot {name} deleted");
    Json(json!({ "status": "success", "message": message })).into_response()
}

fn no_snapshot(name: &str) -> ApiError {
    let shown: String = name.chars().take(80).collect();
    ApiError::not_found(format!(
        "there is no snapshot {shown:?}; GET /api/v1/snapshots lists those there are"
    ))
}

/// How the bridge stands.
#[utoipa::path(get, path = "/api/v1/status", tag = "bridge",
    responses((status = 200, description = "`not_initialized` before the first state", body = Status)))]
pub(crate) async fn status(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let (machine, saved) = (bridge_twin::machine(&app).await, saved(&app).await?);
    if machine.is_none() && saved.history.is_empty() {
        let message = "no state was received yet; POST one to /api/v1/update_state";
        let answer = json!({ "status": "not_initialized", "message": message });
        return Ok(Json(answer).into_response());
    }
    let (mut vm_ip, mut vm_running) = (None, false);
    if let Some(machine) = &machine {
        vm_running = app.twins.answers(machine).await;
        if vm_running {
            vm_ip = app.twins.address(machine).await;
        }
    }
    let status = Status {
        status: "ok".to_owned(),
        vm_name: app.vm_name.clone(),
        vm_ip,
        vm_running,
        current_snapshot: saved.current,
        snapshot_count: saved.history.len(),
    };
    Ok(Json(status).into_response())
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct HistoryQuery {
    /// States at most, newest first; 10 unless told.
    limit: Option<usize>,
}

/// The log of the host whose state came last, newest first: what others recorded of it, too.
#[utoipa::path(get, path = "/api/v1/history", tag = "bridge", params(HistoryQuery), responses((status = 200, body = Object)))]
pub(crate) async fn history(
    State(app): State<Arc<App>>,
    Asked(query): Asked<HistoryQuery>,
) -> Result<Json<Value>, ApiError> {
    let limit = page_limit(query.limit, 10, 1000)?;
    let Some(newest) = app.snapshots.list().snapshots.pop() else {
        return Ok(Json(json!({ "history": [] })));
    };
    let host = newest.host.clone();
    let entries =
        app.read(move |app| app.history.log(&host, &Filter::default(), None, limit)).await?;
    let states: Vec<Value> = entries
        .into_iter()
        .map(|entry| {
            let changes: Vec<String> = entry.patch.0.into_keys().take(CHANGES).map(|subject| subject.to_string()).collect();
            json!({ "state_id": entry.version, "timestamp": entry.at, "snapshot": entry.label, "changes": changes })
        })
        .collect();
    Ok(Json(json!({ "host": newest.host, "history": states })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Server;
    use crate::config::File;
    use crate::twins::TwinsFile;
    use crate::twins::fake::{Fake, give, known, tell};
    use axum::body::to_bytes;
    use model::{HostId, Version};

    #[tokio::test]
    async fn a_name_of_a_version_is_gone_back_to_by_the_nearest_snapshot() {
        let (dir, fake) = (tempfile::tempdir().unwrap(), Fake::new());
        let file = File {
            data_dir: Some(dir.path().to_owned()),
            listen: Some(vec!["127.0.0.1:0".into()]),
            twins: TwinsFile { build_image: Some(false), ..TwinsFile::default() },
            ..File::default()
        };
        let app = Server::bind(file.check().unwrap()).await.unwrap().app();
        give(&app.twins, &fake);
        known(&app.twins, &fake, "web01");
        fake.has_saved("saved", Some(1));
        let (newest, at) = ("state_20261120_090000", Time(1));
        for (name, hostname, version) in [("base_state", "old", 1), (newest, "web01", 2)] {
            tell(&app.twins, "web01", hostname);
            let (name, host) = (name.to_owned(), HostId::new("web01").unwrap());
            app.snapshots.add(Snapshot { name, host, version: Version(version), at }).unwrap();
        }
        let ask = async |name: &str| {
            let (caller, name) = (Extension(Caller::Local), Segments(name.to_owned()));
            let response = match revert(State(Arc::clone(&app)), caller, name).await {
                Ok(response) => response,
                Err(error) => error.into_response(),
            };
            let status = response.status().as_u16();
            let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
            (status, serde_json::from_slice::<Value>(&body).unwrap())
        };
        let (status, answer) = ask(newest).await;
        assert_eq!((status, &answer["status"]), (200, &json!("reverted")), "{answer}");
        assert_eq!(
            (&answer["snapshot"], &answer["nearest"]["snapshot"]),
            (&json!(newest), &json!("saved"))
        );
        let (status, answer) = ask("saved").await;
        assert_eq!((status, &answer["snapshot"]), (200, &json!("saved")), "{answer}");
        // The newest state's host has a machine; this is another's.
        let (name, host) = ("state_20261119_090000".to_owned(), HostId::new("db01").unwrap());
        tell(&app.twins, "db01", "db01");
        app.snapshots.add(Snapshot { name, host, version: Version(1), at }).unwrap();
        let (name, host) = ("state_20261121_090000".to_owned(), HostId::new("web01").unwrap());
        app.snapshots.add(Snapshot { name, host, version: Version(2), at }).unwrap();
        let (status, answer) = ask("state_20261119_090000").await;
        assert_eq!((status, &answer["code"]), (409, &json!("no_twin")), "{answer}");
        assert_eq!(ask("nothing").await.0, 404);
        app.runs.close().await;
    }
}
