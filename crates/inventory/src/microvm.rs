//! MicroVMs: the units of a node that run one. Turns the node's facts into a listing. Pure.
//!
//! A microVM is `microvm@NAME.service`, of the system's manager or a user's, or a user's
//! `microvm-NAME.service`. What microvm.nix brings beside it (`microvm-virtiofsd@NAME`, …) is none.
//!
//! ```text
//!   ActiveState       SubState       state
//!   active            running, …     running; after two restarts failed (looping), until it holds for 30 s
//!   activating        auto-restart   failed (looping)
//!   activating        start, …       starting
//!   deactivating                     stopping
//!   inactive                         stopped
//!   none: not loaded  none, let-go   stopped
//!   failed                           failed
//! ```

use crate::given::Given;
use crate::record::{Completeness, Condition, Limits, Listing, Loop, Refused, Seen};
use model::entity::{Collector, Entity, Process, Unit};
use model::vm::{LET_GO, Layer, VmId, VmName, VmSource, VmState, Vmm, may_be_microvm};
use model::{Facts, HostId, Kind, Time, Value};
use std::collections::BTreeMap;
use std::time::Duration;

/// For so long a VM has to run until it is believed not to fail again.
const SETTLED: Duration = Duration::from_secs(30);
/// VMs of one node that are kept.
const MAX_VMS: usize = 10_000;

/// Why it failed, of one that the kernel ended.
const OUT_OF_MEMORY: &str = "the VMM was killed because memory ran out";

/// Units that are templates of microvm.nix and not VMs, as their names begin in a user's manager.
const HELPERS: [&str; 5] =
    ["tap-interfaces", "macvtap-interfaces", "pci-devices", "virtiofsd", "set-booted"];

/// The VMs of a node. `before` is what is known of one already.
#[must_use]
pub fn listing<'v>(
    node: &HostId,
    facts: &Facts,
    before: impl Fn(&VmId) -> Option<&'v Condition>,
    now: Time,
) -> Listing {
    let mut listing = Listing {
        source: VmSource::Microvm,
        nodes: BTreeMap::new(),
        elsewhere: BTreeMap::new(),
        seen: Vec::new(),
        refused: Vec::new(),
        unidentified: Vec::new(),
        gone: VmState::Stopped,
    };
    let monitors = monitors(facts);
    let mut completeness = completeness(facts);
    for (subject, item) in facts.of_kind(Kind::UNIT) {
        if !may_be_microvm(subject.id()) {
            continue;
        }
        let Some(unit) = Unit::from_fields(subject.id(), item.fields()) else { continue };
        let (monitor, given) = monitors.get(&unit.id).copied().unzip();
        match seen(node, &unit, monitor, &before, now) {
            Ok(None) => {}
            Ok(Some(_)) if listing.seen.len() >= MAX_VMS => {
                completeness =
                    Completeness::Incomplete(format!("there are more than {MAX_VMS} VMs"));
                break;
            }
            Ok(Some(seen)) => {
                let limits = seen.limits.or(given.unwrap_or_default().limits());
                listing.seen.push(Seen { limits, ..seen });
            }
            Err(refused) => listing.refused.push(refused),
        }
    }
    listing.nodes.insert(node.clone(), completeness);
    listing
}

/// The VM that a unit of a node runs; nothing for what is no VM's. `monitor` is the VMM that runs
/// there, where the unit does not say so itself.
///
/// # Errors
/// When its name is none that can be kept.
pub fn seen<'v>(
    node: &HostId,
    unit: &Unit,
    monitor: Option<Vmm>,
    before: impl Fn(&VmId) -> Option<&'v Condition>,
    now: Time,
) -> Result<Option<Seen>, Refused> {
    let refused = |reason| Refused { reference: unit.id.clone(), reason };
    let Some((owner, name)) = named(&unit.id).map_err(refused)? else { return Ok(None) };
    let Some(id) = id(owner, &name, node) else { return Ok(None) };
    let condition = condition(unit, before(&id), now);
    let mut labels = BTreeMap::new();
    labels.extend(owner.map(|owner| ("owner".to_owned(), owner.to_owned())));
    let (started, given) = started_by(unit).unzip();
    let monitor = started.or(monitor);
    labels.extend(monitor.map(|monitor| ("vmm".to_owned(), monitor.to_string())));
    Ok(Some(Seen {
        id,
        node: node.clone(),
        name: name.into(),
        reference: unit.id.clone(),
        labels,
        limits: limits(unit).or(given.unwrap_or_default().limits()),
        condition,
    }))
}

/// The listing of a node of which nothing is heard.
#[must_use]
pub fn silence(node: &HostId, reason: String) -> Listing {
    Listing {
        source: VmSource::Microvm,
        nodes: [(node.clone(), Completeness::Incomplete(reason))].into(),
        elsewhere: BTreeMap::new(),
        seen: Vec::new(),
        refused: Vec::new(),
        unidentified: Vec::new(),
        gone: VmState::Stopped,
    }
}

/// Whose VM a unit runs, and what it is called; nothing for what is no VM's.
fn named(unit: &str) -> Result<Option<(Option<&str>, VmName)>, String> {
    if !may_be_microvm(unit) {
        return Ok(None);
    }
    let (owner, name) = match unit.split_once('/') {
        Some((owner, name)) => (Some(owner), name),
        None => (None, unit),
    };
    let Some(name) = name.strip_suffix(".service") else { return Ok(None) };
    let instance = match name.strip_prefix("microvm@") {
        // The template itself.
        Some("") => return Ok(None),
        Some(instance) => instance,
        None => name.strip_prefix("microvm-").unwrap_or_default(),
    };
    if name.starts_with("microvm-") {
        let stem = instance.split('@').next().unwrap_or_default();
        if instance.contains('@') || HELPERS.contains(&stem) {
            return Ok(None);
        }
    }
    let name = unescaped(instance).ok_or("its name is no text once unescaped")?;
    let name = VmName::try_from(name).map_err(|error| error.to_string())?;
    Ok(Some((owner, name)))
}

/// With `\xNN` as the byte it stands for. A dash stays one: microvm.nix means it so.
fn unescaped(instance: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(instance.len());
    let mut rest = instance;
    while let Some((plain, escaped)) = rest.split_once("\\x") {
        bytes.extend_from_slice(plain.as_bytes());
        let digits = escaped.get(..2)?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = escaped.get(2..)?;
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).ok()
}

fn id(owner: Option<&str>, name: &VmName, node: &HostId) -> Option<VmId> {
    let id = match owner {
        Some(owner) => format!("{owner}:{name}@{node}"),
        None => format!("{name}@{node}"),
    };
    id.parse().ok()
}

/// Whether all units of the node were seen.
fn completeness(facts: &Facts) -> Completeness {
    let collectors: Vec<Collector> = facts
        .entities::<Collector>()
        .filter(|collector| matches!(collector.name.as_str(), "units" | Collector::USER_UNITS))
        .collect();
    if !collectors.iter().any(|collector| collector.name == "units") {
        return Completeness::Incomplete("no agent there lists all units".to_owned());
    }
    let fault = collectors.into_iter().find_map(|collector| {
        let fault = collector.fault?;
        Some(format!("the node's {} can't be seen: {fault}", collector.name))
    });
    if let Some(fault) = fault {
        return Completeness::Incomplete(fault);
    }
    if facts.of_kind(Kind::UNIT).next().is_none() {
        return Completeness::Incomplete("not one unit is seen there".to_owned());
    }
    Completeness::Complete
}

/// Whether systemd itself said that it has let its unit go. That a unit is not loaded is another
/// matter: its file is there, until it is deleted.
#[must_use]
pub fn was_let_go(condition: &Condition) -> bool {
    let (_, detail) = condition.detail.rsplit_once('/').unwrap_or(("", &condition.detail));
    matches!(condition.state, VmState::Stopped | VmState::Failed) && detail == LET_GO
}

fn condition(unit: &Unit, before: Option<&Condition>, now: Time) -> Condition {
    let restarts = unit.restarts.unwrap_or(0).max(0);
    let state = match unit.active_state.as_str() {
        // A program that did its work and is over counts as there for systemd, and so here.
        "active" | "reloading" | "refreshing" => VmState::Running,
        "activating" => VmState::Starting,
        "deactivating" => VmState::Stopping,
        "inactive" | "maintenance" => VmState::Stopped,
        "failed" => VmState::Failed,
        // There is its file, and systemd has no need of it; or it was let go.
        "" if unit.load_state == "not-loaded" => VmState::Stopped,
        _ => VmState::Unknown,
    };
    let looping = looping(unit, state, restarts, before, now);
    let state = match (looping, state) {
        (Some(_), VmState::Starting) => VmState::Failed,
        // Once is an accident, of which it may have recovered.
        (Some(Loop { before, .. }), VmState::Running) if restarts - before > 1 => VmState::Failed,
        (_, state) => state,
    };
    let fault = fault(unit).filter(|_| state == VmState::Failed).or_else(|| {
        // While it runs in between, systemd does not tell why it failed.
        let known = before.and_then(|before| before.fault.clone());
        known.filter(|_| looping.is_some())
    });
    // What is not loaded any more says nothing of when it was stopped.
    let known = before.filter(|before| before.state == state).and_then(|before| before.since);
    let detail = match unit.active_state.as_str() {
        "" if unit.sub_state == LET_GO => LET_GO.to_owned(),
        "" => unit.load_state.clone(),
        active => format!("{active}/{}", unit.sub_state),
    };
    Condition {
        state,
        detail,
        since: unit.changed_at.or(unit.since).or(known),
        fault,
        restarts,
        looping,
    }
}

/// Whether it fails again and again, although it may be running at the moment.
fn looping(
    unit: &Unit,
    state: VmState,
    restarts: i64,
    before: Option<&Condition>,
    now: Time,
) -> Option<Loop> {
    let known = before.and_then(|before| before.looping);
    let restarted = before.is_some_and(|before| restarts > before.restarts);
    let waits = unit.sub_state.starts_with("auto-restart");
    // Where the node's clock is ahead, it is young when it is seen first.
    let is_known = before.is_some_and(|before| before.since == unit.changed_at.or(unit.since));
    let is_young =
        unit.since.is_none_or(|since| now.since(since) < SETTLED && (since <= now || !is_known));
    let goes_on = match state {
        VmState::Starting => waits || known.is_some() || restarted,
        VmState::Running => (known.is_some() || restarted) && is_young,
        // It was not started anew: it has failed for good, or was stopped.
        _ => false,
    };
    let begin = || Loop {
        since: now,
        before: before.map_or(restarts - 1, |before| before.restarts.min(restarts)).max(0),
    };
    goes_on.then(|| known.filter(|known| known.before <= restarts).unwrap_or_else(begin))
}

/// Whether the kernel ended its VMM. Its control group went with it, and so the count of that.
#[must_use]
pub fn ran_out_of_memory(condition: &Condition) -> bool {
    condition.fault.as_ref().is_some_and(|(_, text)| text == OUT_OF_MEMORY)
}

/// Why a unit failed, by what systemd calls its result, and how its VMM ended.
fn fault(unit: &Unit) -> Option<(Layer, String)> {
    let (layer, text) = match unit.result.as_deref()? {
        "success" => return None,
        "oom-kill" => return Some((Layer::Vmm, OUT_OF_MEMORY.to_owned())),
        "signal" => (Layer::Vmm, "the VMM was killed by a signal"),
        "core-dump" => (Layer::Vmm, "the VMM crashed"),
        "exit-code" => (Layer::Vmm, "the VMM ended with an error"),
        "watchdog" => (Layer::Vmm, "the VMM stopped to report to its watchdog"),
        "timeout" => (Layer::Unit, "the unit did not start or stop in time"),
        "start-limit-hit" => (Layer::Unit, "the unit was started too often"),
        "resources" => (Layer::Unit, "the node could not give the unit what it needs"),
        "dependency" => (Layer::Unit, "what the unit requires failed"),
        other => return Some((Layer::Unit, format!("the unit failed: {other}"))),
    };
    let text = match (unit.exit_code, &unit.exit_signal) {
        (Some(code), _) => format!("{text} (exit-code {code})"),
        (None, Some(signal)) => format!("{text} (SIG{signal})"),
        (None, None) => text.to_owned(),
    };
    Some((layer, text))
}

fn limits(unit: &Unit) -> Limits {
    let limit = |name: &str| unit.limits.get(name).and_then(|value| u64::try_from(*value).ok());
    Limits {
        memory_bytes: limit("MemoryMax").or_else(|| limit("MemoryHigh")),
        // Microseconds of each second.
        cpu_percent: limit("CPUQuotaPerSecUSec").map(|micros| micros / 10_000),
    }
}

/// What the unit's own command says of its VMM.
fn started_by(unit: &Unit) -> Option<(Vmm, Given)> {
    unit.exec_start.iter().find_map(|words| {
        let vmm = words.iter().find_map(|word| Vmm::of_program(word))?;
        Some((vmm, Given::asked(vmm, words)))
    })
}

/// The VMMs that run, by the unit that they run in.
fn monitors(facts: &Facts) -> BTreeMap<String, (Vmm, Given)> {
    let mut monitors = BTreeMap::new();
    for (subject, item) in facts.of_kind(Kind::PROCESS) {
        let fields = item.fields();
        let unit = fields.get("unit").and_then(Value::as_text).filter(|unit| may_be_microvm(unit));
        let Some(unit) = unit.map(str::to_owned) else { continue };
        let Some(process) = Process::from_fields(subject.id(), fields) else { continue };
        let program = process.executable.as_deref().unwrap_or(&process.name);
        let Some(vmm) = Vmm::of_program(program) else { continue };
        monitors.insert(unit, (vmm, Given::asked(vmm, &process.arguments)));
    }
    monitors
}

#[cfg(test)]
mod tests;
