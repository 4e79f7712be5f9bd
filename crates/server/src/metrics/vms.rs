//! What is known of VMs, with its age: no VM is asked, and so none is waited for.

use super::HostLabel;
use crate::app::App;
use crate::clock;
use inventory::{Presence, Traffic, Usage, Vm, microvm};
use model::Time;
use model::load::VmmLoad;
use model::vm::{Layer, VmHealth, VmSource, VmState};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::hash::Hash;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VmLabels {
    vm: String,
    node: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InfoLabels {
    vm: String,
    node: String,
    name: String,
    source: &'static str,
    vmm: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CountLabels {
    state: &'static str,
    health: &'static str,
    presence: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeviceLabels {
    vm: String,
    node: String,
    device: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckLabels {
    vm: String,
    node: String,
    check: String,
    layer: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PriorityLabels {
    vm: String,
    node: String,
    priority: &'static str,
}

type Counts<L = VmLabels> = Family<L, Gauge>;
type Figures<L = VmLabels> = Family<L, Gauge<f64, AtomicU64>>;

/// Of each VM.
#[derive(Default)]
struct Metrics {
    count: Counts<CountLabels>,
    info: Counts<InfoLabels>,
    state: Counts,
    health: Counts,
    presence: Counts,
    looping: Counts,
    restarts: Counts,
    tried: Counts,
    score: Figures,
    passing: Counts<CheckLabels>,
    age: Figures,
    boot: Figures,
    processor: Figures,
    processor_limit: Counts,
    memory: Counts,
    memory_peak: Counts,
    memory_limit: Counts,
    memory_pressure: Figures,
    tasks: Counts,
    disk_read: Figures<DeviceLabels>,
    disk_written: Figures<DeviceLabels>,
    received: Figures<DeviceLabels>,
    sent: Figures<DeviceLabels>,
    oom_kills: Counts,
    oom_killed: Counts,
    journal: Counts<PriorityLabels>,
    answers: Counts,
    answer_age: Figures,
    vcpus: Counts,
    guest_memory: Counts,
    balloon_memory: Counts,
    guest_agent: Counts,
}

pub(super) fn register(app: &App, registry: &mut Registry) {
    let metrics = Metrics::default();
    let held: Family<HostLabel, Gauge> = Family::default();
    {
        let now = clock::now();
        let table = app.vms.table();
        for vm in table.vms.values() {
            metrics.tell(vm);
            metrics.tell_usage(vm, now);
        }
        for (name, node) in table.nodes.iter().filter(|(_, node)| !node.held.is_empty()) {
            held.get_or_create(&HostLabel { host: name.to_string() }).set(count(node.held.len()));
        }
    }
    metrics.register(registry);
    registry.register("vms_held", "VMs that are gone at once, which somebody has to confirm", held);
}

impl Metrics {
    fn tell(&self, vm: &Vm) {
        let Vm { record, condition, health, .. } = vm;
        let labels = labels(vm);
        let words = CountLabels {
            state: condition.state.as_str(),
            health: health.state.as_str(),
            presence: record.presence.in_words(),
        };
        self.count.get_or_create(&words).inc();
        // Of ten thousand VMs of a vCenter no series each.
        if record.source != VmSource::Microvm {
            return;
        }
        let info = InfoLabels {
            vm: labels.vm.clone(),
            node: labels.node.clone(),
            name: record.name.to_string(),
            source: record.source.as_str(),
            vmm: record.labels.get("vmm").cloned().unwrap_or_default(),
        };
        self.info.get_or_create(&info).set(1);
        self.state.get_or_create(&labels).set(condition.state.number());
        self.health.get_or_create(&labels).set(health_number(health.state));
        self.presence.get_or_create(&labels).set(match record.presence {
            Presence::Present => 0,
            Presence::Stale { .. } => 1,
            Presence::Orphan { .. } => 2,
        });
        let loops = condition.looping.is_some() && condition.state == VmState::Failed;
        self.looping.get_or_create(&labels).set(loops.into());
        self.restarts.get_or_create(&labels).set(condition.restarts);
        let is_killed = microvm::ran_out_of_memory(condition);
        self.oom_killed.get_or_create(&labels).set(is_killed.into());
        if record.recovery.is_some() {
            self.tried.get_or_create(&labels).set(vm.tried.restarts.into());
        }
        let Some(score) = health.score else { return };
        self.score.get_or_create(&labels).set(score);
        for (check, tally) in &health.checks {
            let VmLabels { vm, node } = labels.clone();
            let layer = Layer::as_str(tally.layer);
            let labels = CheckLabels { vm, node, check: check.to_string(), layer };
            self.passing.get_or_create(&labels).set(tally.passing.into());
        }
    }

    /// What one used that does not run, or that nobody sees, was long ago and is not told.
    fn tell_usage(&self, vm: &Vm, now: Time) {
        let runs =
            vm.condition.state == VmState::Running && vm.record.presence == Presence::Present;
        let Some(usage) = vm.usage.as_ref().filter(|_| runs) else { return };
        let labels = labels(vm);
        self.age.get_or_create(&labels).set(now.since(usage.at).as_secs_f64());
        self.tell_figures(vm, &labels, usage);
        if let Some(vmm) = &usage.vmm {
            self.tell_vmm(&labels, vmm, now);
        }
    }

    fn tell_figures(&self, vm: &Vm, labels: &VmLabels, usage: &Usage) {
        let limits = vm.limits();
        let boot = usage.boot_ms.map(|ms| Duration::from_millis(ms).as_secs_f64());
        put(&self.boot, labels, boot);
        put(&self.processor, labels, usage.cpu_percent);
        put(&self.memory_pressure, labels, usage.memory_pressure_percent);
        for (family, known) in [
            (&self.memory, usage.memory_bytes),
            (&self.memory_peak, usage.memory_peak_bytes),
            (&self.tasks, usage.tasks),
            (&self.oom_kills, usage.oom_kills),
            (&self.memory_limit, limits.memory_bytes),
            (&self.processor_limit, limits.cpu_percent),
        ] {
            if let Some(known) = known {
                family.get_or_create(labels).set(count(known));
            }
        }
        let devices = |of: &str| DeviceLabels {
            vm: labels.vm.clone(),
            node: labels.node.clone(),
            device: of.to_owned(),
        };
        for (disk, Traffic { in_bytes_per_second, out_bytes_per_second }) in &usage.disks {
            put(&self.disk_read, &devices(disk), *in_bytes_per_second);
            put(&self.disk_written, &devices(disk), *out_bytes_per_second);
        }
        for (tap, Traffic { in_bytes_per_second, out_bytes_per_second }) in
            usage.interfaces.iter().flatten()
        {
            put(&self.received, &devices(tap), *in_bytes_per_second);
            put(&self.sent, &devices(tap), *out_bytes_per_second);
        }
        for (priority, known) in [
            ("critical", usage.journal.map(|journal| journal.critical)),
            ("error", usage.journal.map(|journal| journal.errors)),
        ] {
            if let Some(known) = known {
                let VmLabels { vm, node } = labels.clone();
                let labels = PriorityLabels { vm, node, priority };
                self.journal.get_or_create(&labels).set(count(known));
            }
        }
    }

    fn tell_vmm(&self, labels: &VmLabels, vmm: &VmmLoad, now: Time) {
        self.answers.get_or_create(labels).set(vmm.fault.is_none().into());
        put(&self.answer_age, labels, vmm.at.map(|at| now.since(at).as_secs_f64()));
        for (family, known) in [
            (&self.vcpus, vmm.vcpus),
            (&self.guest_memory, vmm.memory_bytes),
            (&self.balloon_memory, vmm.balloon_memory_bytes),
            (&self.guest_agent, vmm.guest_agent.map(u64::from)),
        ] {
            if let Some(known) = known {
                family.get_or_create(labels).set(count(known));
            }
        }
    }

    fn register(self, registry: &mut Registry) {
        let states =
            "0 unknown, 1 creating, 2 starting, 3 running, 4 stopping, 5 stopped, 6 failed";
        let healths = "0 unknown, 1 healthy, 2 degraded, 3 unhealthy, 4 unresponsive, 5 critical";
        registry.register("vms", "VMs by state, health and presence", self.count);
        registry.register("vm_info", "1 for what a VM is", self.info);
        registry.register("vm_state", states, self.state);
        registry.register("vm_health", healths, self.health);
        registry.register("vm_presence", "0 present, 1 stale, 2 orphan", self.presence);
        registry.register("vm_looping", "1 for a VM in a crash loop", self.looping);
        let help = "Restarts since it was last started on purpose";
        registry.register("vm_restarts", help, self.restarts);
        let help = "Restarts that recovery tried since it did well";
        registry.register("vm_recovery_restarts", help, self.tried);
        let help = "The weight of checks that pass, 0 to 1";
        registry.register("vm_health_score", help, self.score);
        registry.register("vm_check_passing", "1 for a check that passes", self.passing);
        registry.register("vm_usage_age_seconds", "Since use was measured", self.age);
        let help = "From the start of its VMM until its unit was active";
        registry.register("vm_boot_seconds", help, self.boot);
        let help = "Of one processor, when last measured";
        registry.register("vm_cpu_percent", help, self.processor);
        registry.register("vm_cpu_limit_percent", "Of one processor", self.processor_limit);
        registry.register("vm_memory_bytes", "Memory when last measured", self.memory);
        let help = "The most memory that it had since it was started";
        registry.register("vm_memory_peak_bytes", help, self.memory_peak);
        registry.register("vm_memory_limit_bytes", "Memory that it may use", self.memory_limit);
        let help = "Of 10 s, in which some of it waited for memory";
        registry.register("vm_memory_pressure_percent", help, self.memory_pressure);
        registry.register("vm_tasks", "Threads of its unit", self.tasks);
        let help = "By block device of the node";
        registry.register("vm_disk_read_bytes_per_second", help, self.disk_read);
        registry.register("vm_disk_written_bytes_per_second", help, self.disk_written);
        let help = "By tap interface of the node";
        registry.register("vm_interface_received_bytes_per_second", help, self.received);
        registry.register("vm_interface_sent_bytes_per_second", help, self.sent);
        let help = "Processes that were killed because memory ran out, since it was started";
        registry.register("vm_oom_kills", help, self.oom_kills);
        let help = "1 for a VM whose VMM was killed because memory ran out, until it runs again";
        registry.register("vm_oom_killed", help, self.oom_killed);
        let help = "Errors in the journal of its node within the last hour";
        registry.register("vm_journal_entries", help, self.journal);
        registry.register("vm_vmm_answers", "1 for a VMM that answers", self.answers);
        registry.register("vm_vmm_age_seconds", "Since its VMM answered", self.answer_age);
        registry.register("vm_vcpus", "Processors of the guest", self.vcpus);
        let help = "Memory that the guest was given";
        registry.register("vm_guest_memory_bytes", help, self.guest_memory);
        let help = "The same, less what its balloon took back";
        registry.register("vm_balloon_memory_bytes", help, self.balloon_memory);
        let help = "1 where the guest's agent has its channel open";
        registry.register("vm_guest_agent", help, self.guest_agent);
    }
}

fn labels(vm: &Vm) -> VmLabels {
    VmLabels { vm: vm.record.id.to_string(), node: vm.record.node.to_string() }
}

fn health_number(health: VmHealth) -> i64 {
    match health {
        VmHealth::Unknown => 0,
        VmHealth::Healthy => 1,
        VmHealth::Degraded => 2,
        VmHealth::Unhealthy => 3,
        VmHealth::Unresponsive => 4,
        VmHealth::Critical => 5,
    }
}

fn count(number: impl TryInto<i64>) -> i64 {
    number.try_into().unwrap_or(i64::MAX)
}

fn put<L: Clone + Eq + Hash>(figures: &Figures<L>, labels: &L, known: Option<f64>) {
    if let Some(known) = known {
        figures.get_or_create(labels).set(known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inventory::health::{Health, Rule, Verdict};
    use inventory::recovery::Tried;
    use inventory::{Condition, Limits, Record};
    use model::HostId;
    use std::collections::{BTreeMap, VecDeque};

    fn vm(state: VmState, presence: Presence) -> Vm {
        let condition = Condition {
            state,
            detail: String::new(),
            since: None,
            fault: None,
            restarts: 0,
            looping: None,
        };
        let record = Record {
            id: "web@n1".parse().unwrap(),
            source: VmSource::Microvm,
            node: HostId::new("n1").unwrap(),
            name: "web".parse().unwrap(),
            reference: "microvm@web.service".to_owned(),
            labels: BTreeMap::new(),
            limits: Limits { memory_bytes: Some(100), cpu_percent: None },
            first_seen: Time(0),
            presence,
            checks: BTreeMap::new(),
            recovery: None,
        };
        let mut health = Health::default();
        let failed = Verdict::Fail("near".to_owned());
        let memory = "memory".parse().unwrap();
        health.judge(&memory, Rule::default(), (Layer::Vmm, &failed), Time(1));
        health.assess(&record.presence, &condition, Time(1));
        let usage = Some(Usage {
            memory_bytes: Some(99),
            oom_kills: Some(1),
            vmm: Some(VmmLoad::default()),
            ..Usage::default()
        });
        let (tried, transitions) = (Tried::default(), VecDeque::new());
        Vm { record, condition, last_seen: Time(1), health, usage, tried, transitions }
    }

    #[test]
    fn what_does_not_run_uses_nothing() {
        let stale = Presence::Stale { since: Time(1), reason: "silent".to_owned(), is_held: false };
        for (state, presence, is_told) in [
            (VmState::Running, Presence::Present, true),
            (VmState::Stopped, Presence::Present, false),
            (VmState::Failed, Presence::Present, false),
            (VmState::Running, stale, false),
            (VmState::Running, Presence::Orphan { since: Time(1) }, false),
        ] {
            let (metrics, mut registry) = (Metrics::default(), Registry::default());
            let vm = vm(state, presence);
            metrics.tell(&vm);
            metrics.tell_usage(&vm, Time(2));
            metrics.register(&mut registry);
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            for figure in ["memory_bytes", "memory_limit_bytes", "oom_kills", "vmm_answers"] {
                assert_eq!(text.contains(&format!("vm_{figure}{{")), is_told, "{state} {text}");
            }
            assert!(text.contains("vm_state{"), "{text}");
        }
    }
}
