//! Volatile measurements. Sampled, kept for a while, never a change.

use crate::time::Time;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One sample of a host's load. Rates are per second since the sample before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[derive(Default)]
pub struct Load {
    pub at: Time,
    pub host: HostLoad,
    /// By the id of the unit.
    pub units: BTreeMap<String, UnitLoad>,
    /// The busiest and the largest processes.
    pub processes: Vec<ProcessLoad>,
    /// By mount point.
    pub filesystems: BTreeMap<String, FilesystemLoad>,
    /// By interface.
    pub interfaces: BTreeMap<String, InterfaceLoad>,
    /// By block device.
    pub disks: BTreeMap<String, DiskLoad>,
    /// By the id of the GPU.
    pub gpus: BTreeMap<String, GpuLoad>,
    /// Seconds since each collector last completed.
    pub collector_age_seconds: BTreeMap<String, f64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostLoad {
    pub uptime_seconds: Option<f64>,
    /// Of all processors together, 0 to 100.
    pub cpu_percent: Option<f64>,
    pub cpu_per_core_percent: Vec<f64>,
    pub cpu_user_percent: Option<f64>,
    pub cpu_system_percent: Option<f64>,
    pub cpu_iowait_percent: Option<f64>,
    pub cpu_steal_percent: Option<f64>,
    pub load_average: Option<[f64; 3]>,
    pub memory_total_bytes: Option<u64>,
    pub memory_available_bytes: Option<u64>,
    pub memory_free_bytes: Option<u64>,
    pub memory_cached_bytes: Option<u64>,
    pub swap_total_bytes: Option<u64>,
    pub swap_free_bytes: Option<u64>,
    /// `cpu`, `memory`, `io`.
    pub pressure: BTreeMap<String, Pressure>,
    pub processes: Option<u64>,
    pub threads_running: Option<u64>,
    pub forks_per_second: Option<f64>,
    pub context_switches_per_second: Option<f64>,
}

/// Pressure stall information: percent of time stalled, averaged over 10, 60 and 300 s.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pressure {
    pub some: Option<[f64; 3]>,
    pub full: Option<[f64; 3]>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnitLoad {
    /// Of one processor: 200 is two processors busy.
    pub cpu_percent: Option<f64>,
    /// Of a unit that runs a microVM without what the kernel takes back first: files that nobody
    /// used for a while.
    pub memory_bytes: Option<u64>,
    pub tasks: Option<u64>,
    pub read_bytes_per_second: Option<f64>,
    pub written_bytes_per_second: Option<f64>,
    pub pressure: BTreeMap<String, Pressure>,
    /// What is looked at only of units that run a microVM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<Box<VmLoad>>,
}

/// Of a unit that runs a microVM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VmLoad {
    /// Tap interfaces that its processes hold open; absent where they can't be looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub taps: Option<Vec<String>>,
    /// By block device.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub disks: BTreeMap<String, VmDiskLoad>,
    /// From the start of its VMM until its unit was active.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_ms: Option<u64>,
    /// The most memory that it had since it was started, what it has of files included. Absent
    /// where the kernel does not keep it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_peak_bytes: Option<u64>,
    /// Processes of it that were killed because memory ran out, since it was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    /// Absent while its journal is not followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub journal: Option<JournalErrors>,
    /// Absent where its VMM has no socket that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vmm: Option<VmmLoad>,
}

/// What a VMM says of its VM at its API socket.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VmmLoad {
    /// When it answered last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
    /// Why it does not answer now. The rest is what it said when it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Whether the guest's processors run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs: Option<bool>,
    /// In the VMM's own word: `running`, `paused`, `io-error`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u64>,
    /// That the guest was started with, or got later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The same, less what its balloon took back. Absent where it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balloon_memory_bytes: Option<u64>,
    /// Whether the guest's agent holds its channel open. Absent where there is none, or where
    /// the VMM does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_agent: Option<bool>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VmDiskLoad {
    pub read_bytes_per_second: Option<f64>,
    pub written_bytes_per_second: Option<f64>,
}

/// What a unit said in the journal within the last hour.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JournalErrors {
    /// Entries of priority 0 to 2: emergency, alert, critical.
    pub critical: u64,
    /// Entries of priority 3: error.
    pub errors: u64,
    /// When it said the last of them.
    pub last: Option<Time>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessLoad {
    pub pid: i64,
    pub name: String,
    pub unit: Option<String>,
    /// Of one processor.
    pub cpu_percent: Option<f64>,
    pub memory_bytes: Option<u64>,
    pub threads: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FilesystemLoad {
    pub size_bytes: Option<u64>,
    pub available_bytes: Option<u64>,
    pub inodes: Option<u64>,
    pub inodes_free: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InterfaceLoad {
    pub received_bytes_per_second: Option<f64>,
    pub sent_bytes_per_second: Option<f64>,
    pub received_packets_per_second: Option<f64>,
    pub sent_packets_per_second: Option<f64>,
    pub errors_per_second: Option<f64>,
    pub drops_per_second: Option<f64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskLoad {
    pub read_bytes_per_second: Option<f64>,
    pub written_bytes_per_second: Option<f64>,
    pub reads_per_second: Option<f64>,
    pub writes_per_second: Option<f64>,
    /// Part of the time in which the device was busy.
    pub busy_percent: Option<f64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GpuLoad {
    pub busy_percent: Option<f64>,
    pub memory_used_bytes: Option<u64>,
    pub temperature_celsius: Option<f64>,
}
