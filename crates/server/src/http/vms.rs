//! The VMs of all nodes: how they are, how well they do, and what becomes of them.

use super::auth::Caller;
use super::error::ApiError;
use super::extract::{Asked, Body, Host};
use super::hosts::page_limit;
use super::twins::document;
use super::vm_checks::{checked, declared, number};
use crate::app::App;
use crate::metrics::OpenStream;
use crate::vms::Told;
use api::node::{MAX_DONE, NodeAsks, NodeWork};
use api::vm::{
    self, ConfirmOrphans, ConfirmedOrphans, MAX_CHECKS, VmChecks, VmEvent, VmHealthReport,
    VmRecovery,
};
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures_util::stream;
use inventory::health::{Cause, OWN_CHECKS};
use inventory::recovery::Policy;
use inventory::{Limits, Presence, Traffic, Usage, Vm};
use model::load::{JournalErrors, VmmLoad};
use model::vm::{CheckName, Layer, VmHealth, VmId, VmSource, VmState};
use model::{HostId, Time};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

const PAGE: usize = 100;
const MAX_PAGE: usize = 1000;
/// How long a node waits for work until it asks again.
const WAIT: Duration = Duration::from_secs(20);

/// `{vm}` of the path: an id, or a name that only one has.
pub(crate) struct Which(VmId);

impl FromRequestParts<Arc<App>> for Which {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, app).await;
        let Path(text) =
            path.map_err(|_path| ApiError::bad("bad_path", "the path is not valid UTF-8"))?;
        Ok(Self(app.vms.find(&text)?))
    }
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct VmsQuery {
    /// VMs on a page; at most 1000.
    limit: Option<usize>,
    /// The `next` of the page before.
    after: Option<String>,
    /// Only those of this node.
    node: Option<String>,
    /// Only those of this source: `microvm` or `vsphere`.
    source: Option<String>,
    /// Only those in this state.
    state: Option<String>,
    /// Only those that do so well.
    health: Option<String>,
    /// Only those that are `present`, `stale` or an `orphan`.
    presence: Option<String>,
}

/// What a page is to hold.
struct Wanted {
    node: Option<HostId>,
    source: Option<VmSource>,
    state: Option<VmState>,
    health: Option<VmHealth>,
    presence: Option<vm::Presence>,
}

impl Wanted {
    fn of(query: &VmsQuery) -> Result<Self, ApiError> {
        fn word<T: std::str::FromStr<Err: ToString>>(
            text: Option<&String>,
        ) -> Result<Option<T>, ApiError> {
            let bad = |error: T::Err| ApiError::bad("bad_query", error.to_string());
            text.map(|text| text.parse().map_err(bad)).transpose()
        }
        Ok(Self {
            node: word(query.node.as_ref())?,
            source: word(query.source.as_ref())?,
            state: word(query.state.as_ref())?,
            health: word(query.health.as_ref())?,
            presence: word(query.presence.as_ref())?,
        })
    }

    fn takes(&self, vm: &Vm) -> bool {
        self.node.as_ref().is_none_or(|node| *node == vm.record.node)
            && self.source.is_none_or(|source| source == vm.record.source)
            && self.state.is_none_or(|state| state == vm.condition.state)
            && self.health.is_none_or(|health| health == vm.health.state)
            && self.presence.is_none_or(|one| one == presence(&vm.record.presence))
    }
}

/// All VMs, by id, and the nodes of which not everything is known.
#[utoipa::path(get, path = "/api/v1/vms", tag = "vms", operation_id = "list_vms", params(VmsQuery),
    responses((status = 200, body = vm::Vms), (status = 400, body = api::ErrorBody)))]
pub(crate) async fn list(
    State(app): State<Arc<App>>,
    Asked(query): Asked<VmsQuery>,
) -> Result<Json<vm::Vms>, ApiError> {
    let limit = page_limit(query.limit, PAGE, MAX_PAGE)?;
    let wanted = Wanted::of(&query)?;
    let table = app.vms.table();
    let after = query.after.as_deref();
    let mut vms: Vec<vm::Vm> = table
        .vms
        .values()
        .filter(|vm| after.is_none_or(|after| vm.record.id.as_str() > after) && wanted.takes(vm))
        .take(limit + 1)
        .map(|vm| shown(vm, heard(&app, &vm.record.node)))
        .collect();
    let more = vms.len() > limit;
    vms.truncate(limit);
    let next = vms.last().filter(|_| more).map(|vm| vm.id.to_string());
    // A machine without microVMs need not have an agent that lists its units.
    let has_vms: BTreeSet<&HostId> = table.vms.values().map(|vm| &vm.record.node).collect();
    let doubtful = table.nodes.iter().filter(|(name, node)| {
        wanted.node.as_ref().is_none_or(|wanted| wanted == *name)
            && (!node.ignored.is_empty() || (node.is_in_doubt() && has_vms.contains(name)))
    });
    let nodes = doubtful.map(|(name, node)| vm::VmNode {
        node: name.clone(),
        incomplete: node.incomplete.clone(),
        held: node.held.clone(),
        ignored: node.ignored.clone(),
    });
    Ok(Json(vm::Vms { vms, next, nodes: nodes.collect() }))
}

/// One VM.
#[utoipa::path(get, path = "/api/v1/vms/{vm}", tag = "vms", operation_id = "show_vm", params(("vm" = String, Path, description = "an id, or a name that only one has")),
    responses((status = 200, body = vm::Vm), (status = 400, body = api::ErrorBody, description = "several have the name"), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn show(
    State(app): State<Arc<App>>,
    Which(id): Which,
) -> Result<Json<vm::Vm>, ApiError> {
    with(&app, &id, |vm| shown(vm, heard(&app, &vm.record.node))).map(Json)
}

/// Removes the record of an orphan.
#[utoipa::path(delete, path = "/api/v1/vms/{vm}", tag = "vms", operation_id = "forget_vm", params(("vm" = String, Path)),
    responses((status = 204), (status = 404, body = api::ErrorBody), (status = 409, body = api::ErrorBody, description = "it is no orphan")))]
pub(crate) async fn forget(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Which(id): Which,
) -> Result<StatusCode, ApiError> {
    app.vms.forget(id.clone()).await?;
    tracing::info!(vm = %id, by = ?caller.cause(), "the record of an orphan was removed");
    Ok(StatusCode::NO_CONTENT)
}

/// How well a VM does: its checks, and what became of it.
#[utoipa::path(get, path = "/api/v1/vms/{vm}/health", tag = "vms", operation_id = "vm_health", params(("vm" = String, Path)),
    responses((status = 200, body = VmHealthReport), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn health(
    State(app): State<Arc<App>>,
    Which(id): Which,
) -> Result<Json<VmHealthReport>, ApiError> {
    with(&app, &id, report).map(Json)
}

/// The checks that were asked for.
#[utoipa::path(get, path = "/api/v1/vms/{vm}/checks", tag = "vms", operation_id = "vm_checks", params(("vm" = String, Path)),
    responses((status = 200, body = VmChecks), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn checks(
    State(app): State<Arc<App>>,
    Which(id): Which,
) -> Result<Json<VmChecks>, ApiError> {
    with(&app, &id, declared).map(Json)
}

/// Says which checks the server makes of a VM beside those that are made by themselves. It
/// replaces what was said before.
#[utoipa::path(put, path = "/api/v1/vms/{vm}/checks", tag = "vms", operation_id = "declare_vm_checks", params(("vm" = String, Path)), request_body = VmChecks,
    responses((status = 200, body = VmChecks), (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody), (status = 409, body = api::ErrorBody, description = "no node of ours can make one of them")))]
pub(crate) async fn declare(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Which(id): Which,
    body: Body,
) -> Result<Json<VmChecks>, ApiError> {
    let asked: VmChecks = document(&body)?;
    if asked.checks.len() > MAX_CHECKS {
        let message = format!("a VM has at most {MAX_CHECKS} checks of its own");
        return Err(ApiError::bad("bad_check", message));
    }
    let mut checks = BTreeMap::new();
    for (name, spec) in &asked.checks {
        if OWN_CHECKS.contains(&name.as_str()) {
            let message = format!("{name}: a check of this name is made by itself");
            return Err(ApiError::bad("bad_check", message));
        }
        let check = checked(spec)
            .map_err(|message| ApiError::bad("bad_check", format!("{name}: {message}")))?;
        checks.insert(name.clone(), check);
    }
    let names: Vec<&str> = checks.keys().map(CheckName::as_str).collect();
    tracing::info!(vm = %id, by = ?caller.cause(), checks = names.join(","), "checks were declared");
    app.vms.declare(id.clone(), checks).await?;
    with(&app, &id, declared).map(Json)
}

/// Whether a VM is started anew when it does badly, and what was tried.
#[utoipa::path(get, path = "/api/v1/vms/{vm}/recovery", tag = "vms", operation_id = "vm_recovery", params(("vm" = String, Path)),
    responses((status = 200, body = VmRecovery), (status = 404, body = api::ErrorBody)))]
pub(crate) async fn recovery(
    State(app): State<Arc<App>>,
    Which(id): Which,
) -> Result<Json<VmRecovery>, ApiError> {
    with(&app, &id, recovers).map(Json)
}

/// Says whether a VM is started anew when it does badly. What was tried is forgotten.
#[utoipa::path(put, path = "/api/v1/vms/{vm}/recovery", tag = "vms", operation_id = "declare_vm_recovery", params(("vm" = String, Path)), request_body = VmRecovery,
    responses((status = 200, body = VmRecovery), (status = 400, body = api::ErrorBody), (status = 404, body = api::ErrorBody), (status = 409, body = api::ErrorBody, description = "it is no microVM")))]
pub(crate) async fn recover(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Which(id): Which,
    body: Body,
) -> Result<Json<VmRecovery>, ApiError> {
    let asked: VmRecovery = document(&body)?;
    let policy = policy(&asked).map_err(|message| ApiError::bad("bad_recovery", message))?;
    tracing::info!(vm = %id, by = ?caller.cause(), ?policy, "recovery was declared");
    app.vms.recover(id.clone(), policy).await?;
    with(&app, &id, recovers).map(Json)
}

/// Tells what a node did for its VMs, and asks for more: `twin-node` does. With `wait` it answers
/// when there is something to do, or after 20 s.
#[utoipa::path(post, path = "/api/v1/hosts/{host}/vm-work", tag = "agents", operation_id = "vm_work", params(("host" = String, Path)), request_body = NodeAsks,
    responses((status = 200, body = NodeWork), (status = 400, body = api::ErrorBody), (status = 403, body = api::ErrorBody)))]
pub(crate) async fn work(
    State(app): State<Arc<App>>,
    Host(host): Host,
    Extension(caller): Extension<Caller>,
    body: Body,
) -> Result<Json<NodeWork>, ApiError> {
    caller.may_work(&host)?;
    let asks: NodeAsks = document(&body)?;
    if asks.done.len() > MAX_DONE {
        let message = format!("a request tells of at most {MAX_DONE} tasks");
        return Err(ApiError::bad("too_many", message));
    }
    let work = tokio::time::timeout(WAIT, app.vms.work(host, asks));
    let tasks = tokio::select! {
        work = work => match work {
            Ok(Ok(tasks)) => tasks,
            // Another asks for the same node.
            Ok(Err(crate::vms::Error::Store(store::Error::Closed))) | Err(_) => Vec::new(),
            Ok(Err(error)) => return Err(error.into()),
        },
        () = app.shutdown.cancelled() => Vec::new(),
    };
    Ok(Json(NodeWork { tasks }))
}

/// Says that the VMs that are held of a node are orphans indeed.
#[utoipa::path(post, path = "/api/v1/vms/confirm", tag = "vms", operation_id = "confirm_orphans", request_body = ConfirmOrphans,
    responses((status = 200, body = ConfirmedOrphans), (status = 400, body = api::ErrorBody), (status = 409, body = api::ErrorBody, description = "nothing is held")))]
pub(crate) async fn confirm(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Body(body): Body,
) -> Result<Json<ConfirmedOrphans>, ApiError> {
    let asked: ConfirmOrphans = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad("bad_json", error.to_string()))?;
    let orphans = match &app.sync {
        Some(sync) if sync.speaks_for(&asked.node) => sync.confirm(asked.node.clone()).await?,
        _ => app.vms.confirm(asked.node.clone()).await?,
    };
    tracing::info!(node = %asked.node, by = ?caller.cause(), count = orphans.len(), "orphans were confirmed");
    Ok(Json(ConfirmedOrphans { orphans }))
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct EventsQuery {
    /// The event after which to begin; the newest unless told. `Last-Event-ID` goes before it.
    from: Option<u64>,
}

/// What becomes of VMs, as it becomes so: `id` the event's number, `event` `vm`, `data` an event.
/// `begin` comes first, with the number of the one before; where what comes after that is not kept
/// any more, `lost`.
#[utoipa::path(get, path = "/api/v1/vms/events", tag = "vms", operation_id = "vm_events", params(EventsQuery),
    responses((status = 200, content_type = "text/event-stream", body = VmEvent), (status = 400, body = api::ErrorBody)))]
pub(crate) async fn events(
    State(app): State<Arc<App>>,
    Asked(query): Asked<EventsQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let newest = app.vms.feed().newest();
    let wrong = || ApiError::bad("bad_query", "Last-Event-ID is the id of an event of this stream");
    let last = match headers.get("last-event-id") {
        Some(id) => id.to_str().ok().and_then(|id| id.parse().ok()).ok_or_else(wrong)?,
        None => query.from.unwrap_or(*newest.borrow()),
    };
    let open = OpenStream::new(&app);
    let begin = (app, newest, last, open, true);
    let events = stream::unfold(begin, |(app, mut newest, last, open, begins)| async move {
        if begins {
            // So that a reader who goes away before the first one knows where it was.
            let number = last.to_string();
            let event = sse::Event::default().event("begin").id(&number).data(&number);
            return Some((Ok(event), (app, newest, last, open, false)));
        }
        let shutdown = app.shutdown.clone();
        loop {
            newest.mark_unchanged();
            if let Some(told) = app.vms.feed().after(last) {
                let (event, last) = match told {
                    Told::Event(event) => (sse_event(&event), event.sequence),
                    Told::Lost(on) => {
                        let lost = sse::Event::default().event("lost").id(on.to_string());
                        (Ok(lost.data("some events are not kept any more")), on)
                    }
                };
                return Some((event, (app, newest, last, open, false)));
            }
            tokio::select! {
                changed = newest.changed() => if changed.is_err() { return None },
                () = shutdown.cancelled() => return None,
            }
        }
    });
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(15));
    Ok(Sse::new(events).keep_alive(keep_alive).into_response())
}

fn sse_event(event: &VmEvent) -> Result<sse::Event, Infallible> {
    let sent = sse::Event::default().id(event.sequence.to_string()).event("vm");
    Ok(sent.json_data(event).unwrap_or_else(|_never| sse::Event::default().comment("unencodable")))
}

/// Something of a VM, which may have gone since it was found.
fn with<T>(app: &App, id: &VmId, read: impl FnOnce(&Vm) -> T) -> Result<T, ApiError> {
    let table = app.vms.table();
    let vm = table.vms.get(id).ok_or_else(|| crate::vms::Error::Unknown(id.to_string()))?;
    Ok(read(vm))
}

fn heard(app: &App, node: &HostId) -> Option<Time> {
    app.seen_at(node)
}

fn presence(presence: &Presence) -> vm::Presence {
    match presence {
        Presence::Present => vm::Presence::Present,
        Presence::Stale { .. } => vm::Presence::Stale,
        Presence::Orphan { .. } => vm::Presence::Orphan,
    }
}

fn cause(cause: &Cause) -> vm::VmCause {
    let Cause { layer, check, message } = cause.clone();
    vm::VmCause { layer, check, message }
}

/// One VM as it is told; `heard` is when its node was last heard of.
fn shown(one: &Vm, heard: Option<Time>) -> vm::Vm {
    let Vm { record, condition, last_seen, health, usage, .. } = one;
    let (presence_since, presence_reason) = match &record.presence {
        Presence::Present => (None, None),
        Presence::Stale { since, reason, .. } => (Some(*since), Some(reason.clone())),
        Presence::Orphan { since } => (Some(*since), None),
    };
    let is_listed = record.presence == Presence::Present;
    let seen = heard.filter(|_| is_listed).map_or(*last_seen, |heard| heard.max(*last_seen));
    vm::Vm {
        id: record.id.clone(),
        name: record.name.clone(),
        source: record.source,
        node: record.node.clone(),
        reference: record.reference.clone(),
        state: condition.state,
        detail: condition.detail.clone(),
        loops: condition.loops().filter(|_| condition.state == VmState::Failed),
        restarts: condition.restarts,
        fault: condition.failure().map(str::to_owned),
        since: condition.since,
        presence: presence(&record.presence),
        presence_since,
        presence_reason,
        health: health.state,
        score: health.score,
        cause: health.cause.as_ref().map(cause),
        usage: usage.as_ref().map(|usage| used(usage, one.limits())),
        labels: record.labels.clone(),
        first_seen: record.first_seen,
        last_seen: seen,
    }
}

fn used(usage: &Usage, limits: Limits) -> vm::VmUsage {
    let traffic = |(name, traffic): (&String, &Traffic)| {
        let Traffic { in_bytes_per_second, out_bytes_per_second } = *traffic;
        (name.clone(), vm::VmTraffic { in_bytes_per_second, out_bytes_per_second })
    };
    let journal = |journal: JournalErrors| {
        let JournalErrors { critical, errors, last } = journal;
        vm::VmJournal { critical, errors, last }
    };
    vm::VmUsage {
        at: usage.at,
        cpu_percent: usage.cpu_percent,
        cpu_limit_percent: limits.cpu_percent,
        memory_bytes: usage.memory_bytes,
        boot_ms: usage.boot_ms,
        memory_peak_bytes: usage.memory_peak_bytes,
        memory_limit_bytes: limits.memory_bytes,
        memory_pressure_percent: usage.memory_pressure_percent,
        tasks: usage.tasks,
        read_bytes_per_second: usage.read_bytes_per_second,
        written_bytes_per_second: usage.written_bytes_per_second,
        disks: usage.disks.iter().map(traffic).collect(),
        interfaces: usage.interfaces.as_ref().map(|all| all.iter().map(traffic).collect()),
        oom_kills: usage.oom_kills,
        journal: usage.journal.map(journal),
        vmm: usage.vmm.as_ref().map(monitor),
    }
}

fn monitor(vmm: &VmmLoad) -> vm::VmMonitor {
    let VmmLoad { at, fault, runs, status, vcpus, memory_bytes, balloon_memory_bytes, guest_agent } =
        vmm.clone();
    vm::VmMonitor {
        at,
        fault,
        runs,
        status,
        vcpus,
        memory_bytes,
        balloon_memory_bytes,
        guest_agent,
    }
}

fn report(one: &Vm) -> VmHealthReport {
    let Vm { record, health, transitions, .. } = one;
    let judged = health.checks.iter().map(|(name, tally)| vm::VmCheck {
        name: name.clone(),
        layer: tally.layer,
        passing: Some(tally.passing),
        failures: tally.failures,
        failure_threshold: tally.rule.failure_threshold,
        passes: tally.passes,
        success_threshold: tally.rule.success_threshold,
        weight: tally.rule.weight,
        critical: tally.rule.critical,
        at: Some(tally.at),
        message: tally.message.clone(),
    });
    let awaited = record.checks.iter().filter(|(name, _)| !health.checks.contains_key(name));
    let awaited = awaited.map(|(name, check)| vm::VmCheck {
        name: name.clone(),
        layer: Layer::Service,
        passing: None,
        failures: 0,
        failure_threshold: check.rule.failure_threshold,
        passes: 0,
        success_threshold: check.rule.success_threshold,
        weight: check.rule.weight,
        critical: check.rule.critical,
        at: None,
        message: None,
    });
    let mut checks: Vec<vm::VmCheck> = judged.chain(awaited).collect();
    checks.sort_by(|a, b| (a.layer, &a.name).cmp(&(b.layer, &b.name)));
    let transitions = transitions.iter().rev().cloned().map(|one| {
        let inventory::Transition { at, of, from, to, reason } = one;
        vm::VmTransition { at, of, from, to, reason }
    });
    VmHealthReport {
        id: record.id.clone(),
        health: health.state,
        since: health.since,
        score: health.score,
        cause: health.cause.as_ref().map(cause),
        checks,
        transitions: transitions.collect(),
    }
}

fn recovers(one: &Vm) -> VmRecovery {
    let Some(policy) = one.record.recovery else { return VmRecovery::default() };
    let seconds = |time: Duration| Some(u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
    let given_up = one.tried.is_given_up(Some(policy));
    VmRecovery {
        restart: true,
        restarts: Some(policy.restarts),
        delay_seconds: seconds(policy.delay),
        cap_seconds: seconds(policy.cap),
        tried: Some(one.tried.restarts.min(policy.restarts)),
        given_up: given_up.then_some(true),
    }
}

fn policy(asked: &VmRecovery) -> Result<Option<Policy>, String> {
    let VmRecovery { restart, restarts, delay_seconds, cap_seconds, tried, given_up } = asked;
    if tried.is_some() || given_up.is_some() {
        return Err("tried and given_up are told, and can't be said".to_owned());
    }
    let seconds = |number: u32| Duration::from_secs(number.into());
    let policy = Policy {
        restarts: number("restarts", *restarts, 3, (1, 100))?,
        delay: seconds(number("delay_seconds", *delay_seconds, 5, (1, 3600))?),
        cap: seconds(number("cap_seconds", *cap_seconds, 300, (1, 86_400))?),
    };
    if policy.cap < policy.delay {
        return Err("cap_seconds is at least delay_seconds".to_owned());
    }
    Ok(restart.then_some(policy))
}
