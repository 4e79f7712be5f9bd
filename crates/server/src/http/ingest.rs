//! What agents send.

use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Body, Host};
use crate::app::App;
use crate::clock;
use api::wire::{self, Acknowledged, Batch, MEDIA_TYPE};
use axum::Extension;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use model::{ContentId, Facts, HostId, Kind, Op, Value, Version, with_causes};
use std::collections::BTreeSet;
use std::sync::Arc;
use store::{Append, MAX_ITEMS};

/// Deltas in one request.
const MAX_DELTAS: usize = 10_000;

/// Takes deltas and load. Answers when everything is durable.
#[utoipa::path(post, path = "/api/v1/hosts/{host}/deltas", tag = "agents", params(("host" = String, Path)),
    request_body(content_type = "application/vnd.safetytwin.delta+msgpack", description = "A batch, as MessagePack compressed with zstd", content = Vec<u8>),
    responses((status = 200, description = "What is durable, in the same encoding"), (status = 409, body = api::ErrorBody, description = "`base_mismatch`: send the whole state"), (status = 413, body = api::ErrorBody), (status = 507, body = api::ErrorBody)))]
pub(crate) async fn deltas(
    State(app): State<Arc<App>>,
    Host(host): Host,
    Extension(caller): Extension<Caller>,
    Body(body): Body,
) -> Result<Response, ApiError> {
    caller.may_feed(&host)?;
    let mut batch: Batch = decode(&body)?;
    app.metrics.ingested_bytes.inc_by(u64::try_from(body.len()).unwrap_or(0));
    if batch.stream.is_empty()
        || batch.stream.len() > 64
        || !batch.stream.bytes().all(|b| b.is_ascii_graphic())
    {
        return Err(ApiError::bad(
            "bad_stream",
            "a stream is named by 1 to 64 printable ASCII characters",
        ));
    }
    if batch.deltas.len() > MAX_DELTAS {
        return Err(ApiError::bad(
            "too_many",
            format!("a request has at most {MAX_DELTAS} deltas"),
        ));
    }
    if batch.unseen.len() > Kind::ALL.len() {
        return Err(ApiError::bad("too_many", "there are fewer kinds than are asked for"));
    }
    for delta in &batch.deltas {
        if let wire::Body::Keyframe(facts) = &delta.body {
            limit_items(facts)?;
        }
    }
    let now = clock::now();
    let load = std::mem::take(&mut batch.load);
    let acknowledged = if batch.deltas.is_empty() {
        let told = told(&app, &host, &caller, std::mem::take(&mut batch.unseen)).await?;
        Acknowledged { told, ..standing(&app, &host, &batch.stream).await? }
    } else {
        record(&app, &host, batch).await?
    };
    if acknowledged.version.0 > 0 {
        app.saw(&host, now);
    }
    for sample in &load {
        match app.history.append_load(&host, now, sample) {
            // Nothing is known of the host yet; a measurement alone makes no history.
            Ok(()) | Err(store::Error::UnknownHost { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(newest) = load.last() {
        app.vms.measured(&host, newest);
    }
    Ok(packed(&acknowledged))
}

/// Refuses states that no machine has before they are queued. What changes lead to is for the
/// history to refuse.
pub(super) fn limit_items(facts: &Facts) -> Result<(), ApiError> {
    let found = facts.len();
    if found > MAX_ITEMS {
        return Err(store::Error::TooManyItems { limit: MAX_ITEMS, found }.into());
    }
    Ok(())
}

async fn record(app: &Arc<App>, host: &HostId, batch: Batch) -> Result<Acknowledged, ApiError> {
    let named = contents_named(&batch);
    let count = batch.deltas.len();
    let append = Append {
        host: host.clone(),
        stream: Some(batch.stream),
        received: clock::now(),
        deltas: batch.deltas.into_iter().map(delta).collect(),
    };
    let appended = app.append(append).await?;
    app.metrics.deltas.inc_by(u64::try_from(count).unwrap_or(0));
    let missing = if named.is_empty() {
        Vec::new()
    } else {
        app.read(move |app| app.history.missing(&named)).await?
    };
    Ok(Acknowledged {
        sequence: appended.acknowledged.unwrap_or(0),
        version: appended.head,
        missing,
        told: None,
    })
}

/// Where a stream stands, for a request without deltas.
async fn standing(app: &Arc<App>, host: &HostId, stream: &str) -> Result<Acknowledged, ApiError> {
    let (host, stream) = (host.clone(), stream.to_owned());
    let info = app.read(move |app| Ok(app.history.host(&host))).await?;
    let sequence = info
        .as_ref()
        .and_then(|info| info.streams.iter().find(|s| s.id == stream))
        .map_or(0, |s| s.sequence);
    let version = info.map_or(Version(0), |info| info.head);
    Ok(Acknowledged { sequence, version, missing: Vec::new(), told: None })
}

/// What the host last told of these kinds, for an agent that lost its memory. Nothing to tell
/// where that is damaged: a whole state begins anew after it.
async fn told(
    app: &Arc<App>,
    host: &HostId,
    caller: &Caller,
    kinds: Vec<Kind>,
) -> Result<Option<Facts>, ApiError> {
    if kinds.is_empty() || !caller.may_recall(host) {
        return Ok(None);
    }
    let kinds: BTreeSet<Kind> = kinds.into_iter().collect();
    let asked = host.clone();
    let told = app.read(move |app| {
        let mut told = Facts::default();
        for (subject, item) in app.history.head(&asked)?.iter().flat_map(|head| head.facts.iter()) {
            if kinds.contains(&subject.kind()) {
                told.put(subject.clone(), item.clone());
            }
        }
        Ok(told)
    });
    match told.await {
        Ok(told) => Ok(Some(told)),
        Err(error) if error.is_damage() => {
            tracing::warn!(%host, error = with_causes(&error), "what was told before is damaged");
            Ok(Some(Facts::default()))
        }
        Err(error) => Err(error.into()),
    }
}

fn delta(delta: wire::Delta) -> store::Delta {
    store::Delta {
        sequence: Some(delta.sequence),
        at: delta.at,
        body: match delta.body {
            wire::Body::Keyframe(facts) => store::Body::State(facts),
            wire::Body::Patch { base, next, patch } => store::Body::Patch { base, next, patch },
        },
        gap: delta.gap.map(|gap| store::Gap { since: gap.since, merged: gap.merged }),
        label: None,
    }
}

fn contents_named(batch: &Batch) -> Vec<ContentId> {
    let of = |fields: &model::Fields| -> Option<ContentId> {
        fields.get("content").and_then(Value::as_text)?.parse().ok()
    };
    let mut named = Vec::new();
    for delta in &batch.deltas {
        match &delta.body {
            wire::Body::Keyframe(facts) => {
                named.extend(facts.of_kind(Kind::FILE).filter_map(|(_, item)| of(&item.fields())));
            }
            wire::Body::Patch { patch, .. } => {
                named.extend(patch.iter().filter_map(|(subject, op)| match op {
                    Op::Added(fields) | Op::Edited { now: fields, .. }
                        if subject.kind() == Kind::FILE =>
                    {
                        of(fields)
                    }
                    _ => None,
                }));
            }
        }
    }
    named.sort();
    named.dedup();
    named
}

/// Takes contents of files, ahead of the deltas that name them.
#[utoipa::path(post, path = "/api/v1/hosts/{host}/contents", tag = "agents", params(("host" = String, Path)),
    request_body(content_type = "application/vnd.safetytwin.delta+msgpack", description = "A list of byte strings, as MessagePack compressed with zstd", content = Vec<u8>),
    responses((status = 204), (status = 413, body = api::ErrorBody)))]
pub(crate) async fn contents(
    State(app): State<Arc<App>>,
    Host(host): Host,
    Extension(caller): Extension<Caller>,
    Body(body): Body,
) -> Result<StatusCode, ApiError> {
    caller.may_feed(&host)?;
    let contents: wire::Contents = decode(&body)?;
    app.metrics.ingested_bytes.inc_by(u64::try_from(body.len()).unwrap_or(0));
    app.read(move |app| {
        let contents: Vec<&[u8]> = contents.0.iter().map(Vec::as_slice).collect();
        app.history.put_contents(&contents).map(drop)
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn decode<T: for<'de> serde::Deserialize<'de>>(body: &[u8]) -> Result<T, ApiError> {
    wire::decode(body).map_err(|error| match error {
        wire::Error::TooLarge => {
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", error.to_string())
        }
        other => ApiError::bad("bad_batch", with_causes(&other)),
    })
}

fn packed(acknowledged: &Acknowledged) -> Response {
    ([(header::CONTENT_TYPE, MEDIA_TYPE)], wire::encode(acknowledged)).into_response()
}
