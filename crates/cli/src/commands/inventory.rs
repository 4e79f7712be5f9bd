//! `twin inventory`: the VMs of all nodes.

use crate::arguments::{InventoryCommand, ListVmsArguments, WatchVmsArguments};
use crate::failure::Failure;
use crate::remote::{Query, Remote};
use crate::session::{Session, note, write};
use crate::table::{Cell, Table};
use crate::view::{Paint, View, bytes, clock, duration};
use crate::vm_events::VmEvents;
use api::vm::{
    ConfirmOrphans, ConfirmedOrphans, Presence, Vm, VmCause, VmCheckSpec, VmChecks, VmEvent,
    VmHealthReport, VmJournal, VmMonitor, VmRecovery, VmTraffic, VmUsage, Vms,
};
use model::terminal;
use model::vm::{VmHealth, VmSource, VmState};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// VMs in one page of the list.
const PAGE: usize = 1000;
/// Checks that a file may say take no more.
const MAX_FILE: u64 = 1 << 20;

pub(crate) async fn run(command: &InventoryCommand, session: &mut Session) -> Result<(), Failure> {
    match command {
        InventoryCommand::List(arguments) => {
            let answer = all(arguments, &mut session.remote).await?;
            if answer.vms.is_empty() {
                note("no such VMs; units microvm@NAME.service are seen where an agent runs");
            }
            for doubt in doubts(&answer) {
                note(&doubt);
            }
            session.answer(&answer, table)
        }
        InventoryCommand::Show { vm } => {
            let answer: Vm = session.remote.get(&of(vm)).await?;
            session.answer(&answer, glance)
        }
        InventoryCommand::Health { vm } => {
            let answer: VmHealthReport = session.remote.get(&of(vm).and("health")).await?;
            session.answer(&answer, health)
        }
        InventoryCommand::Watch(arguments) => watch(arguments, session).await,
        InventoryCommand::Checks { vm, file } => {
            let query = of(vm).and("checks");
            let answer: VmChecks = match file {
                Some(file) => session.remote.put(&query, &read(file)?).await?,
                None => session.remote.get(&query).await?,
            };
            if answer.checks.is_empty() {
                note("no checks of its own; say which with: twin inventory checks VM --file FILE");
            }
            session.answer(&answer, checks)
        }
        InventoryCommand::Recovery(arguments) => {
            let query = of(&arguments.vm).and("recovery");
            let answer: VmRecovery = match arguments.asked() {
                Some(asked) => session.remote.put(&query, &asked).await?,
                None => session.remote.get(&query).await?,
            };
            session.answer(&answer, recovery)
        }
        InventoryCommand::Confirm { node } => {
            let asked = ConfirmOrphans { node: node.clone() };
            let query = Query::of(&["vms", "confirm"]);
            let answer: ConfirmedOrphans = session.remote.post(&query, &asked).await?;
            session.answer(&answer, |answer, view| {
                let line = |id: &model::vm::VmId| view.paint(Paint::None, id.as_str()) + "\n";
                answer.orphans.iter().map(line).collect()
            })
        }
        InventoryCommand::Forget { vm } => session.remote.delete(&of(vm)).await,
    }
}

fn of(vm: &str) -> Query {
    Query::of(&["vms", vm])
}

async fn all(arguments: &ListVmsArguments, remote: &mut Remote) -> Result<Vms, Failure> {
    let mut all = Vms { vms: Vec::new(), next: None, nodes: Vec::new() };
    loop {
        let query = Query::of(&["vms"])
            .with("limit", PAGE)
            .with_some("node", arguments.node.as_ref())
            .with_some("state", arguments.state)
            .with_some("health", arguments.health)
            .with_some("presence", arguments.presence)
            .with_some("after", all.next.take());
        let page: Vms = remote.get(&query).await?;
        // A page without VMs would make this loop endless.
        all.next = page.next.filter(|_| !page.vms.is_empty());
        all.vms.extend(page.vms);
        all.nodes = page.nodes;
        if all.next.is_none() {
            return Ok(all);
        }
    }
}

/// The checks that a file says.
fn read(file: &Path) -> Result<VmChecks, Failure> {
    let shown = file.display();
    let mut text = String::new();
    let read = if file == Path::new("-") {
        std::io::stdin().lock().take(MAX_FILE).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text))
    };
    read.map_err(|error| Failure::Failed(format!("could not read {shown}: {error}")))?;
    serde_saphyr::from_str(&text).map_err(|error| {
        Failure::Usage(format!("{shown}: {}", model::keys::fault(&error.to_string(), &text)))
    })
}

async fn watch(arguments: &WatchVmsArguments, session: &mut Session) -> Result<(), Failure> {
    let only = match &arguments.vm {
        Some(vm) => Some(session.remote.get::<Vm>(&of(vm)).await?.id),
        None => None,
    };
    let mut events = VmEvents::new(session.remote.another()?).await?;
    let printing = async {
        let mut left = arguments.count;
        while left != Some(0) {
            let event = events.next().await?;
            if only.as_ref().is_some_and(|only| *only != event.id) {
                continue;
            }
            left = left.map(|left| left - 1);
            // An event a few milliseconds ahead of this machine's clock is not from the future.
            let view = session.view.at(clock().max(event.at.minus(Duration::from_millis(1))));
            let json = session.json.then(|| terminal::json_line(&event));
            write(&json.unwrap_or_else(|| line(&event, &view)))?;
        }
        Ok(())
    };
    match arguments.time {
        Some(time) => tokio::time::timeout(time, Box::pin(printing)).await.unwrap_or(Ok(())),
        None => Box::pin(printing).await,
    }
}

/// Why the list may not be the whole truth.
fn doubts(answer: &Vms) -> Vec<String> {
    let mut doubts = Vec::new();
    for node in &answer.nodes {
        let name = &node.node;
        doubts.extend(node.incomplete.as_ref().map(|reason| format!("{name}: {reason}")));
        if !node.held.is_empty() {
            let count = node.held.len();
            doubts.push(format!(
                "{name}: {count} VMs are gone at once; if that is so, run: twin inventory confirm {name}"
            ));
        }
        doubts.extend(node.ignored.iter().map(|reason| format!("{name}: ignored {reason}")));
    }
    doubts
}

fn state(vm: &Vm) -> (String, Paint) {
    let paint = match vm.state {
        VmState::Running => Paint::Green,
        VmState::Failed => Paint::Red,
        VmState::Stopped | VmState::Unknown => Paint::Dim,
        VmState::Creating | VmState::Starting | VmState::Stopping => Paint::Yellow,
    };
    let loops = vm.loops.map(|loops| format!(" (looping, {loops} times)"));
    let text = format!("{}{}", vm.state, loops.unwrap_or_default());
    // Of one that nobody can see it is what was true last.
    if vm.presence == Presence::Stale { (format!("{text}?"), Paint::Dim) } else { (text, paint) }
}

fn paint(health: VmHealth) -> Paint {
    match health {
        VmHealth::Unknown => Paint::Dim,
        VmHealth::Healthy => Paint::Green,
        VmHealth::Degraded => Paint::Yellow,
        VmHealth::Unhealthy | VmHealth::Unresponsive | VmHealth::Critical => Paint::Red,
    }
}

fn said(cause: &VmCause) -> String {
    match &cause.check {
        Some(check) => format!("{}: {check}: {}", cause.layer, cause.message),
        None => format!("{}: {}", cause.layer, cause.message),
    }
}

/// `1.0 GiB of 2.0 GiB`.
fn memory(usage: &VmUsage) -> Option<String> {
    let used = bytes(usage.memory_bytes?);
    Some(
        usage
            .memory_limit_bytes
            .map_or(used.clone(), |limit| format!("{used} of {}", bytes(limit))),
    )
}

fn table(answer: &Vms, view: &View) -> String {
    if answer.vms.is_empty() {
        return String::new();
    }
    let heading = ["VM", "STATE", "SINCE", "HEALTH", "CPU", "MEMORY", "VMM", "CAUSE"];
    let mut table = Table::new(view, &heading);
    for vm in &answer.vms {
        let (said_state, state_paint) = state(vm);
        let usage = vm.usage.as_ref();
        let none = || "-".to_owned();
        let health = match vm.presence {
            Presence::Orphan => Cell::painted("orphan", Paint::Yellow),
            Presence::Present | Presence::Stale => {
                Cell::painted(vm.health.as_str(), paint(vm.health))
            }
        };
        // Nobody knows a VM by its UUID.
        let called = match vm.source {
            VmSource::Microvm => vm.id.as_str(),
            VmSource::Vsphere => vm.name.as_str(),
        };
        table.row([
            Cell::painted(called, Paint::Bold),
            Cell::painted(said_state, state_paint),
            Cell::from(vm.since.map_or_else(none, |since| view.age(since.min(view.now)))),
            health,
            Cell::number(
                usage.and_then(|u| u.cpu_percent).map_or_else(none, |cpu| format!("{cpu:.0} %")),
            ),
            Cell::number(usage.and_then(memory).unwrap_or_else(none)),
            Cell::from(vm.labels.get("vmm").cloned().unwrap_or_else(none)),
            Cell::from(vm.cause.as_ref().map_or_else(none, said)),
        ]);
    }
    table.render("")
}

/// `1.0 KiB/s`.
fn rate(rate: Option<f64>) -> Option<String> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates; rates are no fractions of bytes"
    )]
    rate.map(|rate| format!("{}/s", bytes(rate as u64)))
}

/// `vda read 1.0 KiB/s, written 0 B/s` of each.
fn moved(all: &BTreeMap<String, VmTraffic>, words: [&str; 2]) -> Option<String> {
    let none = || "-".to_owned();
    let one = |(name, traffic): (&String, &VmTraffic)| {
        let [into, out] = words;
        let received = rate(traffic.in_bytes_per_second).unwrap_or_else(none);
        let sent = rate(traffic.out_bytes_per_second).unwrap_or_else(none);
        format!("{name} {into} {received}, {out} {sent}")
    };
    let all: Vec<String> = all.iter().map(one).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

fn network(usage: &VmUsage) -> Option<String> {
    let taps = usage.interfaces.as_ref()?;
    Some(moved(taps, ["received", "sent"]).unwrap_or_else(|| "no tap interface".to_owned()))
}

/// What was said in the last hour.
fn journal(said: VmJournal, view: &View) -> Option<String> {
    let last = said.last.map(|last| format!(", the last {}", view.age(last.min(view.now))));
    let VmJournal { critical, errors, .. } = said;
    (critical + errors > 0).then(|| {
        let last = last.unwrap_or_default();
        format!("{critical} critical and {errors} errors within an hour{last}")
    })
}

/// `running, 2 processors, 512.0 MiB of 1.0 GiB, the guest's agent is there, asked 3 s ago`.
fn monitor(said: &VmMonitor, view: &View) -> String {
    let memory = said.memory_bytes.map(|all| match said.balloon_memory_bytes {
        Some(left) if left != all => format!("{} of {}", bytes(left), bytes(all)),
        _ => bytes(all),
    });
    let agent = said.guest_agent.map(|is_there| {
        if is_there { "the guest's agent is there" } else { "no agent in the guest" }.to_owned()
    });
    let parts = [
        said.fault.clone(),
        said.status.clone(),
        said.vcpus.map(|count| format!("{count} processors")),
        memory,
        agent,
        said.at.map(|at| format!("said {}", view.age(at.min(view.now)))),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// `4.2 s`.
fn boot(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

fn glance(vm: &Vm, view: &View) -> String {
    let mut table = Table::new(view, &[]);
    let usage = vm.usage.as_ref();
    let (said_state, _) = state(vm);
    let presence = vm.presence_since.map(|since| {
        let reason = vm.presence_reason.as_ref().map(|reason| format!(": {reason}"));
        format!(
            "{} for {}{}",
            vm.presence,
            duration(view.now.since(since)),
            reason.unwrap_or_default()
        )
    });
    let rows = [
        ("vm", Some(vm.id.to_string())),
        ("name", Some(vm.name.to_string())),
        ("node", Some(vm.node.to_string())),
        ("unit", Some(vm.reference.clone())),
        ("state", Some(format!("{said_state}, {}", vm.detail))),
        ("since", vm.since.map(|at| view.time(at))),
        ("boot", usage.and_then(|u| u.boot_ms).map(boot)),
        ("presence", presence),
        ("fault", vm.fault.clone()),
        ("restarts", Some(vm.restarts.to_string())),
        ("health", Some(vm.health.to_string())),
        ("score", vm.score.map(|score| format!("{score:.2}"))),
        ("cause", vm.cause.as_ref().map(said)),
        ("vmm", vm.labels.get("vmm").cloned()),
        ("vmm says", usage.and_then(|u| u.vmm.as_ref()).map(|said| monitor(said, view))),
        ("owner", vm.labels.get("owner").cloned()),
        ("cpu", usage.and_then(|u| u.cpu_percent).map(|cpu| format!("{cpu:.1} %"))),
        ("memory", usage.and_then(memory)),
        ("peak", usage.and_then(|u| u.memory_peak_bytes).map(bytes)),
        ("read", rate(usage.and_then(|u| u.read_bytes_per_second))),
        ("written", rate(usage.and_then(|u| u.written_bytes_per_second))),
        ("disks", usage.and_then(|u| moved(&u.disks, ["read", "written"]))),
        ("network", usage.and_then(network)),
        ("oom kills", usage.and_then(|u| u.oom_kills).map(|kills| kills.to_string())),
        ("journal", usage.and_then(|u| journal(u.journal?, view))),
        ("measured", usage.map(|u| view.age(u.at.min(view.now)))),
        ("first seen", Some(view.time(vm.first_seen))),
        ("last seen", Some(view.age(vm.last_seen.min(view.now)))),
    ];
    for (name, value) in rows {
        if let Some(value) = value {
            table.row([Cell::painted(name, Paint::Dim), Cell::from(value)]);
        }
    }
    table.render("")
}

fn health(report: &VmHealthReport, view: &View) -> String {
    let score = report.score.map(|score| format!(", score {score:.2}"));
    let mut text = format!(
        "{} is {}{} since {}\n",
        view.paint(Paint::Bold, report.id.as_str()),
        view.paint(paint(report.health), report.health.as_str()),
        score.unwrap_or_default(),
        view.time(report.since)
    );
    if let Some(cause) = &report.cause {
        text.push_str(&format!("cause: {}\n", view.paint(Paint::None, &said(cause))));
    }
    if !report.checks.is_empty() {
        let heading = ["CHECK", "LAYER", "VERDICT", "FAILURES", "WEIGHT", "LOOKED", "SAID"];
        let mut table = Table::new(view, &heading);
        for check in &report.checks {
            let verdict = match check.passing {
                None => Cell::painted("awaited", Paint::Dim),
                Some(true) if check.failures > 0 => Cell::painted("passes still", Paint::Yellow),
                Some(true) => Cell::painted("passes", Paint::Green),
                Some(false) if check.passes > 0 => Cell::painted("fails still", Paint::Yellow),
                Some(false) => Cell::painted("fails", Paint::Red),
            };
            let critical = if check.critical { " critical" } else { "" };
            table.row([
                Cell::painted(check.name.as_str(), Paint::Bold),
                Cell::from(check.layer.as_str()),
                verdict,
                Cell::from(format!("{} of {}", check.failures, check.failure_threshold)),
                Cell::from(format!("{}{critical}", check.weight)),
                Cell::from(check.at.map_or_else(|| "-".into(), |at| view.age(at.min(view.now)))),
                Cell::from(check.message.as_deref().unwrap_or("-")),
            ]);
        }
        text.push('\n');
        text.push_str(&table.render(""));
    }
    if !report.transitions.is_empty() {
        let mut table = Table::new(view, &["WHEN", "OF", "FROM", "TO", "REASON"]);
        for one in &report.transitions {
            table.row([
                Cell::from(view.time(one.at)),
                Cell::from(one.of.as_str()),
                Cell::from(one.from.as_str()),
                Cell::from(one.to.as_str()),
                Cell::from(one.reason.as_deref().unwrap_or("-")),
            ]);
        }
        text.push('\n');
        text.push_str(&table.render(""));
    }
    text
}

fn checks(answer: &VmChecks, view: &View) -> String {
    if answer.checks.is_empty() {
        return String::new();
    }
    let heading = ["CHECK", "ASKS", "EVERY", "FAILS AFTER", "WEIGHT"];
    let mut table = Table::new(view, &heading);
    for (name, check) in &answer.checks {
        let number = |number: Option<u32>| number.map_or_else(|| "-".into(), |n| n.to_string());
        let critical = if check.critical { " critical" } else { "" };
        table.row([
            Cell::painted(name.as_str(), Paint::Bold),
            Cell::from(asks(check)),
            Cell::from(format!("{} s", number(check.interval_seconds))),
            Cell::from(format!("{} failures", number(check.failure_threshold))),
            Cell::from(format!("{}{critical}", number(check.weight))),
        ]);
    }
    table.render("")
}

/// What a check looks at, in words.
fn asks(check: &VmCheckSpec) -> String {
    let VmCheckSpec { address, path, status, process, script, console, absent, .. } = check;
    let VmCheckSpec { guest_agent, vsock_port, icmp, arp, from_node, .. } = check;
    if let Some(address) = address {
        let from = if from_node.unwrap_or(false) { " from its node" } else { "" };
        let status = status.map_or_else(String::new, |status| format!(" ({status})"));
        return match path {
            Some(path) => format!("http {address}{path}{status}{from}"),
            None => format!("tcp {address}{from}"),
        };
    }
    let absent = if absent.unwrap_or(false) { " not" } else { "" };
    let port = vsock_port.map_or_else(String::new, |port| format!(" at vsock port {port}"));
    let asked = [
        process.as_ref().map(|name| format!("process {name}")),
        script.as_ref().map(|name| format!("script {name}")),
        console.as_ref().map(|text| format!("console{absent} {text:?}")),
        guest_agent.filter(|&asked| asked).map(|_| format!("guest agent{port}")),
        icmp.as_ref().map(|address| format!("icmp {address}")),
        arp.as_ref().map(|address| format!("arp {address}")),
    ];
    asked.into_iter().flatten().next().unwrap_or_else(|| "-".to_owned())
}

fn recovery(answer: &VmRecovery, view: &View) -> String {
    if !answer.restart {
        return "off: it is not started anew when it does badly\n".to_owned();
    }
    let number = |number: Option<u32>| number.map_or_else(|| "-".into(), |n| n.to_string());
    let tried = number(answer.tried);
    let given_up = answer.given_up.unwrap_or(false);
    let given_up = if given_up { "; that did not help, and nobody tries any more" } else { "" };
    let mut table = Table::new(view, &[]);
    for (name, value) in [
        ("restarts", format!("{}, {tried} of them tried{given_up}", number(answer.restarts))),
        ("delay", format!("{} s, doubling", number(answer.delay_seconds))),
        ("cap", format!("{} s", number(answer.cap_seconds))),
    ] {
        table.row([Cell::painted(name, Paint::Dim), Cell::from(value)]);
    }
    table.render("")
}

/// `09:00:00  web@n1  state running → failed (…)`.
fn line(event: &VmEvent, view: &View) -> String {
    let what = match (event.decision, &event.from, &event.to) {
        (Some(decision), _, _) => format!("record: {decision}"),
        (None, Some(from), Some(to)) => format!("{}: {from} → {to}", event.kind),
        (None, _, _) => event.kind.to_string(),
    };
    let reason = event.reason.as_ref().map(|reason| view.dim(&format!("  ({reason})")));
    format!(
        "{}  {}  {}{}\n",
        view.dim(&view.time(event.at)),
        view.paint(Paint::Bold, event.id.as_str()),
        view.paint(Paint::None, &what),
        reason.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests;
