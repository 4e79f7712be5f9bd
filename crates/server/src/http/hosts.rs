//! Hosts, and the facts of one at any moment.

use super::error::{ApiError, unknown_host};
use super::extract::{Asked, Host};
use crate::app::App;
use crate::clock;
use crate::rendered::{Key, Life};
use api::answer;
use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use model::entity::{Collector, Platform};
use model::{Facts, HostId, Kind, Moment, Subject, Time, Version};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{Filter, HostInfo};

const PAGE: usize = 100;
const MAX_PAGE: usize = 1000;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct HostsQuery {
    /// Hosts on a page; at most 1000.
    limit: Option<usize>,
    /// The `next` of the page before.
    after: Option<String>,
}

/// All hosts, by name.
#[utoipa::path(get, path = "/api/v1/hosts", tag = "hosts", params(HostsQuery),
    responses((status = 200, body = answer::Hosts), (status = 400, body = api::ErrorBody)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Asked(query): Asked<HostsQuery>,
) -> Result<Json<answer::Hosts>, ApiError> {
    let limit = page_limit(query.limit, PAGE, MAX_PAGE)?;
    let page = app
        .read(move |app| {
            let mut infos = app.history.hosts();
            infos.sort_by(|a, b| a.host.cmp(&b.host));
            if let Some(after) = query.after.as_deref() {
                infos.retain(|info| info.host.as_str() > after);
            }
            let more = infos.len() > limit;
            infos.truncate(limit);
            let next = infos.last().filter(|_| more).map(|info| info.host.to_string());
            let hosts = infos.iter().map(|info| describe(app, info)).collect::<Result<_, _>>()?;
            Ok(answer::Hosts { hosts, next })
        })
        .await?;
    Ok(Json(page))
}

/// How many there are on a page. More than there may be are as many as there may be.
pub(crate) fn page_limit(
    asked: Option<usize>,
    usual: usize,
    most: usize,
) -> Result<usize, ApiError> {
    match asked {
        Some(0) => Err(ApiError::bad("bad_query", format!("limit is a number from 1 to {most}"))),
        Some(limit) => Ok(limit.min(most)),
        None => Ok(usual),
    }
}

/// One host, in short.
#[utoipa::path(get, path = "/api/v1/hosts/{host}", tag = "hosts", params(("host" = String, Path)),
    responses((status = 200, body = answer::Host), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Host(host): Host,
) -> Result<Response, ApiError> {
    let found = app
        .read(move |app| match app.history.host(&host) {
            Some(info) => describe(app, &info),
            None => Err(store::Error::UnknownHost { host }),
        })
        .await?;
    // Weak: when it was last heard of moves on without a version.
    Ok(([(ETAG, format!("W/\"{}\"", found.version.0))], Json(found)).into_response())
}

/// Forgets a host and its whole history.
#[utoipa::path(delete, path = "/api/v1/hosts/{host}", tag = "hosts", params(("host" = String, Path)),
    responses((status = 204), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn forget(
    State(app): State<Arc<App>>,
    Host(host): Host,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let expected = headers.get(IF_MATCH).and_then(|value| value.to_str().ok()).map(str::to_owned);
    off_thread(&app, move |app| {
        let info = app.history.host(&host).ok_or_else(|| unknown_host(host.as_str()))?;
        let head = info.head.0.to_string();
        let matches =
            |tag: &str| tag == "*" || tag.trim_start_matches("W/").trim_matches('"') == head;
        if expected.is_some_and(|tags| !tags.split(',').any(|tag| matches(tag.trim()))) {
            let message =
                format!("{host} has moved on to @{head}; look at it again before you forget it");
            return Err(ApiError::new(StatusCode::PRECONDITION_FAILED, "moved_on", message));
        }
        app.history.forget(&host)?;
        app.rendered.forget(&host);
        app.snapshots.forget(&host)?;
        app.vms.forget_node(&host);
        Ok(())
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A damaged history is a fault of the host, and no reason to be silent about it and the others.
fn describe(app: &App, info: &HostInfo) -> Result<answer::Host, store::Error> {
    let mut damage = None;
    let facts = app.history.head(&info.host).map(|head| head.map(|head| head.facts));
    let facts = unless_damaged(facts, &mut damage)?.unwrap_or_default();
    let last_change = unless_damaged(last_change(app, &info.host), &mut damage)?;
    let mut items: BTreeMap<String, u64> = BTreeMap::new();
    for (subject, _) in facts.iter() {
        *items.entry(subject.kind().to_string()).or_default() += 1;
    }
    let (mut faults, mut limits) = (BTreeMap::new(), BTreeMap::new());
    for collector in facts.entities::<Collector>() {
        faults.extend(collector.fault.map(|fault| (collector.name.clone(), fault)));
        if !collector.limits.is_empty() {
            limits.insert(collector.name, collector.limits);
        }
    }
    faults.extend(damage.map(|damage| ("history".to_owned(), damage)));
    let system =
        facts.entity::<Platform>("host").and_then(|p| p.distribution_name.or(p.distribution));
    Ok(answer::Host {
        host: info.host.clone(),
        version: info.head,
        first_at: info.first_at,
        changed_at: info.head_at,
        seen_at: Some(app.seen_at(&info.host).map_or(info.seen_at, |seen| seen.max(info.seen_at))),
        items,
        faults,
        limits,
        last_change,
        system,
    })
}

/// `None` when it is damaged, and then `damage` says what.
fn unless_damaged<T>(
    read: Result<Option<T>, store::Error>,
    damage: &mut Option<String>,
) -> Result<Option<T>, store::Error> {
    match read {
        Err(error) if error.is_damage() => {
            damage.get_or_insert(model::with_causes(&error));
            Ok(None)
        }
        other => other,
    }
}

/// `unit:nginx.service and 2 more`, of the newest version.
fn last_change(app: &App, host: &HostId) -> Result<Option<String>, store::Error> {
    let newest = app.history.log(host, &Filter::default(), None, 1)?;
    let Some(entry) = newest.into_iter().next() else { return Ok(None) };
    let total = entry.patch.len();
    let changes = answer::changes(entry.patch, |_| false);
    Ok(changes.first().map(|first| match total {
        1 => first.subject.to_string(),
        more => format!("{} and {} more", first.subject, more - 1),
    }))
}

/// What a moment means for a host.
pub(crate) fn version_at(
    app: &App,
    host: &HostId,
    moment: Moment,
    now: Time,
) -> Result<Version, ApiError> {
    let info = app.history.host(host).ok_or_else(|| unknown_host(host.as_str()))?;
    let time = match moment {
        Moment::Now => return Ok(info.head),
        Moment::Version(version) if version.0 >= 1 && version <= info.head => return Ok(version),
        Moment::Version(version) => {
            let message = format!("{host} has no version {version}; its newest is {}", info.head);
            return Err(ApiError::new(StatusCode::NOT_FOUND, "unknown_version", message));
        }
        Moment::Ago(age) => now.minus(age),
        Moment::At(time) => time,
    };
    match app.history.version_at(host, time)? {
        Some(version) => Ok(version),
        // Before its first version nothing is known of it; the nearest truth is the first.
        None => {
            let message = format!(
                "nothing is known of {host} at {time}; its history begins at {}",
                info.first_at
            );
            Err(ApiError::new(StatusCode::NOT_FOUND, "before_history", message)
                .with("first_at", &info.first_at))
        }
    }
}

/// A host's life, and what a moment means in it. Only times need the disk.
pub(crate) async fn located(
    app: &Arc<App>,
    host: &HostId,
    moment: Moment,
) -> Result<(Life, Version), ApiError> {
    let locate = move |app: &App, host: &HostId| {
        let info = app.history.host(host).ok_or_else(|| unknown_host(host.as_str()))?;
        let version = version_at(app, host, moment, clock::now())?;
        Ok((Life(info.host, info.first_at), version))
    };
    if matches!(moment, Moment::Now | Moment::Version(_)) {
        return locate(app, host);
    }
    let host = host.clone();
    off_thread(app, move |app| locate(app, &host)).await
}

/// An answer as it is sent: one that was made before, or a new one.
pub(crate) async fn rendered<T: Serialize>(
    app: &Arc<App>,
    key: Key,
    make: impl FnOnce(&App) -> Result<T, ApiError> + Send + 'static,
) -> Result<Bytes, ApiError> {
    if let Some(body) = app.rendered.get(&key) {
        return Ok(body);
    }
    off_thread(app, move |app| {
        let body = Bytes::from(serde_json::to_vec(&make(app)?).unwrap_or_default());
        app.rendered.put(key, body.clone());
        Ok(body)
    })
    .await
}

/// The facts at a version, and its time.
pub(crate) fn state_at(
    app: &App,
    host: &HostId,
    version: Version,
) -> Result<(Facts, Time), ApiError> {
    let gone = || expired(host, version);
    let facts = app.history.state(host, version)?.ok_or_else(gone)?;
    let at = app.history.entry(host, version)?.map(|entry| entry.at).ok_or_else(gone)?;
    Ok((facts, at))
}

pub(crate) fn expired(host: &HostId, version: Version) -> ApiError {
    let message = format!("{host} {version} is no longer kept");
    ApiError::new(StatusCode::GONE, "expired", message)
}

/// The tag of what is made of these versions alone.
pub(crate) fn tag(versions: &[(&Life, Version)]) -> String {
    let parts: Vec<String> =
        versions.iter().map(|(life, version)| format!("{}-{:x}", version.0, life.1.0)).collect();
    format!("\"{}\"", parts.join("."))
}

/// Whether the client has what the tag is of.
pub(crate) fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let known = headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let mut tags = known.unwrap_or_default().split(',');
    tags.any(|one| one.trim() == "*" || one.trim().trim_start_matches("W/") == tag)
}

/// Runs what can also answer with an error of its own off the async threads.
pub(crate) async fn off_thread<T: Send + 'static>(
    app: &Arc<App>,
    work: impl FnOnce(&App) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let app = Arc::clone(app);
    let task = tokio::task::spawn_blocking(move || work(&app));
    task.await.unwrap_or_else(|_panic| Err(store::Error::Closed.into()))
}

/// A moment from a query; absent means now.
pub(crate) fn moment(text: Option<&str>) -> Result<Moment, ApiError> {
    text.map_or(Ok(Moment::Now), str::parse)
        .map_err(|error: model::MomentError| ApiError::bad("bad_moment", error.to_string()))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct StateQuery {
    /// RFC 3339, an age (`-10m`), a version (`@412`) or `now`.
    at: Option<String>,
    /// Only items of this kind.
    kind: Option<String>,
    /// Only this item.
    subject: Option<String>,
}

/// The facts of a host at a moment.
#[utoipa::path(get, path = "/api/v1/hosts/{host}/state", tag = "hosts", params(("host" = String, Path), StateQuery),
    responses((status = 200, body = answer::State), (status = 304), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn state(
    State(app): State<Arc<App>>,
    Host(host): Host,
    Asked(query): Asked<StateQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let moment = moment(query.at.as_deref())?;
    let kind = match query.kind.as_deref() {
        Some(name) => {
            Some(Kind::parse(name).filter(|kind| Kind::ALL.contains(kind)).ok_or_else(|| {
                let kinds: Vec<String> = Kind::ALL.iter().map(Kind::to_string).collect();
                ApiError::bad(
                    "bad_kind",
                    format!("there is no kind {name:?}; there are {}", kinds.join(", ")),
                )
            })?)
        }
        None => None,
    };
    let subject = query.subject.as_deref().map(str::parse::<Subject>).transpose();
    let subject = subject.map_err(|error| ApiError::bad("bad_subject", error.to_string()))?;
    let (life, version) = located(&app, &host, moment).await?;
    // Of this life of the host: forgotten and seen again, it begins at version 1 again.
    let tag = tag(&[(&life, version)]);
    if is_known(&headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, tag)]).into_response());
    }
    let key = Key::State { host: life, version, kind, subject: subject.clone() };
    let body = rendered(&app, key, move |app| {
        let (mut facts, at) = state_at(app, &host, version)?;
        if kind.is_some() || subject.is_some() {
            facts = facts
                .iter()
                .filter(|(s, _)| {
                    kind.is_none_or(|kind| s.kind() == kind)
                        && subject.as_ref().is_none_or(|one| one == *s)
                })
                .map(|(s, item)| (s.clone(), item.clone()))
                .collect();
        }
        Ok(answer::State { host, version, at, facts })
    })
    .await?;
    Ok(([(ETAG, tag), (CONTENT_TYPE, "application/json".to_owned())], body).into_response())
}
