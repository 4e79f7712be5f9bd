//! What changed: the log of a host or of single things, differences, load, contents.

use super::error::{ApiError, unknown_host};
use super::extract::{Asked, Host, Segments};
use super::hosts::{
    expired, is_known, located, moment, off_thread, page_limit, rendered, state_at, tag, version_at,
};
use crate::app::App;
use crate::clock;
use crate::rendered::{Key, Life};
use crate::resolve::{related, resolve};
use api::answer::{self, Around, Change};
use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use model::{ContentId, HostId, Kind, Moment, Patch, Significance, Subject, Time, Version};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use store::{Entry, Filter};

const PAGE: usize = 50;
const MAX_PAGE: usize = 500;
/// Changes shown of one version unless more are asked for.
const CHANGES: usize = 100;
/// Past versions of a unit in which to look for what belonged to it.
const BEFORE: usize = 12;
/// Neighbours in time shown with one version.
const AROUND: usize = 12;
/// Versions between two ends up to which their patches are put together, rather than two states
/// made and compared.
const NEAR: u64 = 500;

/// The query of a log. `subject` may be given several times.
#[derive(Debug, Default)]
pub(crate) struct LogQuery {
    pub(crate) subjects: Vec<String>,
    since: Option<Moment>,
    until: Option<Moment>,
    before: Option<Version>,
    limit: usize,
    changes: usize,
    significance: Option<Significance>,
    around: Option<Duration>,
    related: bool,
}

impl LogQuery {
    pub(crate) fn parse(query: &str) -> Result<Self, ApiError> {
        let mut asked = Self { limit: PAGE, changes: CHANGES, ..Self::default() };
        for (name, value) in pairs(query)? {
            let wrong =
                || ApiError::bad("bad_query", format!("{name}: {value:?} is not what it can be"));
            match name.as_str() {
                "subject" => asked.subjects.push(value),
                "since" => asked.since = Some(moment(Some(&value))?),
                "until" => asked.until = Some(moment(Some(&value))?),
                "before" => {
                    asked.before =
                        Some(Version(value.trim_start_matches('@').parse().map_err(|_n| wrong())?));
                }
                "limit" => {
                    let limit = value.parse::<usize>().map_err(|_n| wrong())?;
                    asked.limit = page_limit(Some(limit), PAGE, MAX_PAGE)?;
                }
                "changes" => asked.changes = value.parse().map_err(|_n| wrong())?,
                "around" => {
                    asked.around = Some(Duration::from_secs(
                        value.parse::<u32>().map_err(|_n| wrong())?.into(),
                    ));
                }
                "related" => asked.related = value == "true",
                "significance" => {
                    asked.significance = Some(match value.as_str() {
                        "major" => Significance::Major,
                        "minor" => Significance::Minor,
                        _ => return Err(wrong()),
                    });
                }
                _ => {
                    return Err(ApiError::bad(
                        "bad_query",
                        format!("there is no parameter {name:?}"),
                    ));
                }
            }
        }
        Ok(asked)
    }
}

/// The pairs of a query, decoded.
pub(crate) fn pairs(query: &str) -> Result<Vec<(String, String)>, ApiError> {
    let decode = |text: &str| -> Option<String> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.bytes();
        while let Some(byte) = rest.next() {
            bytes.push(match byte {
                b'+' => b' ',
                b'%' => {
                    let digits = [rest.next()?, rest.next()?];
                    u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
                }
                other => other,
            });
        }
        String::from_utf8(bytes).ok()
    };
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode(name)?, decode(value)?))
        })
        .collect::<Option<_>>()
        .ok_or_else(|| ApiError::bad("bad_query", "the query is not percent-encoded UTF-8"))
}

/// Nothing where it is damaged: what belongs to a subject is then not known, its changes are.
fn unless_damaged<T>(found: Result<Option<T>, store::Error>) -> Result<Option<T>, store::Error> {
    match found {
        Err(error) if error.is_damage() => Ok(None),
        found => found,
    }
}

/// What words stand for on a host; an error that helps when they stand for nothing.
pub(crate) fn subjects(
    app: &App,
    host: &HostId,
    words: &[String],
    with_related: bool,
) -> Result<Vec<Subject>, ApiError> {
    if words.is_empty() {
        return Ok(Vec::new());
    }
    let known = app.history.subjects(host)?;
    let mut found = Vec::new();
    for word in words {
        found.extend(resolve(word, &known).map_err(|similar| {
            let shown: String = word.chars().take(80).collect();
            let hint = if similar.is_empty() {
                String::new()
            } else {
                format!("; near are {}", similar.join(", "))
            };
            ApiError::new(
                StatusCode::NOT_FOUND,
                "unknown_subject",
                format!("{host} never had a {shown:?}{hint}"),
            )
            .with("similar", &similar.join(","))
        })?);
    }
    if with_related && let Some(head) = unless_damaged(app.history.head(host))? {
        let mut more = related(&found, &head.facts);
        // What belonged to it before its last changes belongs to its story, too.
        let units: Vec<Subject> =
            found.iter().filter(|subject| subject.kind() == Kind::UNIT).cloned().collect();
        if !units.is_empty() {
            let filter = Filter { subjects: units.clone(), ..Filter::default() };
            for entry in app.history.log(host, &filter, None, BEFORE)? {
                let before = Version(entry.version.0.saturating_sub(1));
                if let Some(facts) = unless_damaged(app.history.state(host, before))? {
                    more.extend(related(&units, &facts));
                }
            }
        }
        found.extend(more);
    }
    Ok(found)
}

/// The history of a host, or of single things on it, newest first.
#[utoipa::path(get, path = "/api/v1/hosts/{host}/log", tag = "history",
    params(
        ("host" = String, Path),
        ("subject" = Option<Vec<String>>, Query, description = "`unit:nginx.service`, or a word that stands for it; may be repeated"),
        ("since" = Option<String>, Query, description = "RFC 3339, an age (`-10m`) or a version (`@412`)"),
        ("until" = Option<String>, Query),
        ("before" = Option<u64>, Query, description = "the `next` of the page before"),
        ("limit" = Option<usize>, Query, description = "versions on a page; at most 500"),
        ("changes" = Option<usize>, Query, description = "changes shown of one version"),
        ("significance" = Option<String>, Query, description = "`major`: only what matters"),
        ("around" = Option<u32>, Query, description = "seconds before and after in which to look for what else changed"),
        ("related" = Option<bool>, Query, description = "of a unit also its processes, sockets, files and package"),
    ),
    responses((status = 200, body = answer::Log), (status = 304), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn log(
    State(app): State<Arc<App>>,
    Host(host): Host,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let asked = LogQuery::parse(query.as_deref().unwrap_or_default())?;
    // An age is another time with each request, without a new version.
    let ages = [asked.since, asked.until].into_iter().flatten();
    let ages = ages.filter(|moment| matches!(moment, Moment::Ago(_))).count();
    let (life, head) = located(&app, &host, Moment::Now).await?;
    let tag = (ages == 0).then(|| tag(&[(&life, head)]));
    if let Some(tag) = tag.as_deref().filter(|tag| is_known(&headers, tag)) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    let log = off_thread(&app, move |app| page(app, &host, &asked)).await?;
    let mut response = Json(log).into_response();
    let tag = tag.and_then(|tag| header::HeaderValue::from_str(&tag).ok());
    response.headers_mut().extend(tag.map(|tag| (header::ETAG, tag)));
    Ok(response)
}

fn page(app: &App, host: &HostId, asked: &LogQuery) -> Result<answer::Log, ApiError> {
    app.history.host(host).ok_or_else(|| unknown_host(host.as_str()))?;
    let now = clock::now();
    let filter = Filter {
        subjects: subjects(app, host, &asked.subjects, asked.related)?,
        since: bound(app, host, asked.since, now)?,
        until: bound(app, host, asked.until, now)?,
        significance: asked.significance,
        ..Filter::default()
    };
    let mut found = app.history.log(host, &filter, asked.before, asked.limit + 1)?;
    let more = found.len() > asked.limit;
    found.truncate(asked.limit);
    let next = found.last().filter(|_| more).map(|entry| entry.version);
    let mut entries = Vec::with_capacity(found.len());
    for entry in found {
        let around = match asked.around {
            Some(window) if !filter.subjects.is_empty() => {
                around(app, host, &entry, window, &filter.subjects)?
            }
            _ => Vec::new(),
        };
        entries.push(answer::Entry { around, ..shown(host, entry, asked.changes) });
    }
    Ok(answer::Log { host: host.clone(), subjects: filter.subjects, entries, next })
}

fn bound(
    app: &App,
    host: &HostId,
    moment: Option<Moment>,
    now: Time,
) -> Result<Option<Time>, ApiError> {
    Ok(match moment {
        None | Some(Moment::Now) => None,
        Some(Moment::At(time)) => Some(time),
        Some(Moment::Ago(age)) => Some(now.minus(age)),
        Some(moment @ Moment::Version(_)) => {
            let version = version_at(app, host, moment, now)?;
            app.history.entry(host, version)?.map(|entry| entry.at)
        }
    })
}

/// The changes of an entry. Everything in the first version had been there before.
fn changes_of(version: Version, mut first_looks: BTreeSet<Kind>, patch: Patch) -> Vec<Change> {
    first_looks.extend(patch.first_looks());
    answer::changes(patch, |kind| version == Version(1) || first_looks.contains(&kind))
}

/// A stored entry as it is told.
pub(crate) fn shown(host: &HostId, entry: Entry, changes: usize) -> answer::Entry {
    let total_changes = entry.patch.len();
    let mut all = changes_of(entry.version, entry.first_looks, entry.patch);
    all.truncate(changes);
    answer::Entry {
        host: host.clone(),
        version: entry.version,
        at: entry.at,
        host_time: entry.host_time,
        received_at: entry.received,
        significance: entry.significance,
        changes: all,
        total_changes,
        around: Vec::new(),
        gap: entry.gap.map(|gap| api::wire::Gap { since: gap.since, merged: gap.merged }),
        label: entry.label,
    }
}

/// What else of significance changed about that time, the nearest first.
fn around(
    app: &App,
    host: &HostId,
    entry: &Entry,
    window: Duration,
    own: &[Subject],
) -> Result<Vec<Around>, ApiError> {
    if entry.version == Version(1) {
        // Everything is new in the first version; that is no coincidence worth telling.
        return Ok(Vec::new());
    }
    let filter = Filter {
        since: Some(entry.at.minus(window)),
        until: Some(entry.at.plus(window)),
        significance: Some(Significance::Major),
        ..Filter::default()
    };
    let mut found = Vec::new();
    for near in app.history.log(host, &filter, None, 100)? {
        if near.version == Version(1) {
            continue;
        }
        let (version, at) = (near.version, near.at);
        let changes = changes_of(version, near.first_looks, near.patch).into_iter();
        let others = changes.filter(|c: &Change| {
            c.significance == Significance::Major && !c.first_seen && !own.contains(&c.subject)
        });
        found.extend(others.map(|change| Around { version, at, change }));
    }
    found.sort_by_key(|around| around.at.since(entry.at).max(entry.at.since(around.at)));
    found.truncate(AROUND);
    Ok(found)
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiffQuery {
    /// A moment of the host.
    from: Option<String>,
    /// A moment of the host, or of the one named by `with`.
    to: Option<String>,
    /// Another host.
    with: Option<String>,
}

/// What differs between two moments, or between two hosts.
#[utoipa::path(get, path = "/api/v1/hosts/{host}/diff", tag = "history", params(("host" = String, Path), DiffQuery),
    responses((status = 200, body = answer::Diff), (status = 304), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn diff(
    State(app): State<Arc<App>>,
    Host(host): Host,
    Asked(query): Asked<DiffQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (from, to) = (moment(query.from.as_deref())?, moment(query.to.as_deref())?);
    let other = match query.with.as_deref() {
        Some(name) => HostId::new(name).map_err(|_name| unknown_host(name))?,
        None => host.clone(),
    };
    let from = located(&app, &host, from).await?;
    let to = located(&app, &other, to).await?;
    let tag = tag(&[(&from.0, from.1), (&to.0, to.1)]);
    if is_known(&headers, &tag) {
        return Ok((StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response());
    }
    let key = Key::Diff { from: from.clone(), to: to.clone() };
    let body = rendered(&app, key, move |app| {
        let from = end(app, from)?;
        let to = end(app, to)?;
        let patch = match near(app, &from, &to)? {
            Some(patch) => patch,
            None => {
                let before = state_at(app, &from.host, from.version)?.0;
                let after = state_at(app, &to.host, to.version)?.0;
                model::diff(&before, &after)
            }
        };
        Ok(answer::Diff { from, to, changes: answer::changes(patch, |_| false) })
    })
    .await?;
    let json = (header::CONTENT_TYPE, "application/json".to_owned());
    Ok(([(header::ETAG, tag), json], body).into_response())
}

fn end(app: &App, (Life(host, _), version): (Life, Version)) -> Result<answer::End, ApiError> {
    let entry = app.history.entry(&host, version)?;
    let at = entry.ok_or_else(|| expired(&host, version))?.at;
    Ok(answer::End { host, version, at })
}

/// What leads from one end to the other, if they are the same host's and not far apart.
fn near(app: &App, from: &answer::End, to: &answer::End) -> Result<Option<Patch>, ApiError> {
    if from.host != to.host || from.version.0.abs_diff(to.version.0) > NEAR {
        return Ok(None);
    }
    let (first, last) = (from.version.min(to.version), from.version.max(to.version));
    let patch = app.history.between(&from.host, first, last)?;
    Ok(patch.map(|patch| if from.version <= to.version { patch } else { patch.inverse() }))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct LoadQuery {
    from: Option<String>,
    to: Option<String>,
    /// Samples at most, spread evenly; 300 unless told otherwise.
    points: Option<usize>,
}

/// Samples of a host's load, oldest first: all of a day, one in five minutes of a month.
#[utoipa::path(get, path = "/api/v1/hosts/{host}/load", tag = "hosts", params(("host" = String, Path), LoadQuery),
    responses((status = 200, body = answer::Loads), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn load(
    State(app): State<Arc<App>>,
    Host(host): Host,
    Asked(query): Asked<LoadQuery>,
) -> Result<Json<answer::Loads>, ApiError> {
    let from = moment(Some(query.from.as_deref().unwrap_or("-1h")))?;
    let to = moment(query.to.as_deref())?;
    let points = query.points.unwrap_or(300).clamp(1, 10_000);
    off_thread(&app, move |app| {
        app.history.host(&host).ok_or_else(|| unknown_host(host.as_str()))?;
        let now = clock::now();
        let from = bound(app, &host, Some(from), now)?.unwrap_or(now);
        let to = bound(app, &host, Some(to), now)?.unwrap_or(now);
        let samples = app.history.load(&host, from, to, points)?;
        Ok(answer::Loads { host, samples })
    })
    .await
    .map(Json)
}

/// The (redacted) content of a file, by its name in the facts.
#[utoipa::path(get, path = "/api/v1/hosts/{host}/contents/{id}", tag = "history",
    params(("host" = String, Path), ("id" = String, Path)),
    responses((status = 200, content_type = "text/plain"), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn content(
    State(app): State<Arc<App>>,
    Segments((_host, id)): Segments<(String, String)>,
) -> Result<Response, ApiError> {
    let id: ContentId = id
        .parse()
        .map_err(|_hex| ApiError::bad("bad_id", "a content is named by 64 hexadecimal digits"))?;
    let content = app.read(move |app| app.history.content(&id)).await?;
    let content = content.ok_or_else(|| ApiError::not_found("there is no such content"))?;
    // As plain text and never sniffed: it comes from monitored machines.
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    Ok((headers, content).into_response())
}
