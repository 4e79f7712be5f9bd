//! Twins: the machine that mirrors a host, its saved moments, and its clones.

use crate::following::Following;
use crate::run::RunId;
use model::Time;
use serde::{Deserialize, Serialize};

/// Clones made by one request.
pub const MAX_CLONES: u32 = 32;

words!(
    /// What a twin reaches.
    TwinNetwork, "a network":
    /// Nothing: neither the server's machine nor anything beyond.
    Isolated = "isolated",
    /// What the server's machine reaches, but not that machine itself.
    Nat = "nat",
    /// As `nat`, and what listens on the loopback of the server's machine.
    Open = "open",
);

words!(
    /// How a twin is as a machine.
    TwinState, "a state":
    Running = "running",
    Stopped = "stopped",
    /// It has power and does not go on.
    Stuck = "stuck",
);

words!(
    /// What a snapshot holds.
    SnapshotKind, "a kind":
    /// Memory, devices and disk: the twin goes on from there.
    Live = "live",
    /// The disk alone.
    Disk = "disk",
);

words!(
    /// How much a snapshot matters when some have to go.
    SnapshotWeight, "a weight":
    /// Nothing significant changed on the host since the one before.
    Minor = "minor",
    /// Something significant did.
    Major = "major",
    /// Somebody gave it its name.
    Named = "named",
);

/// What a twin is made of; what is absent is as the server is configured.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewTwin {
    /// A base image, by name or digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// In MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processors: Option<u32>,
    /// In GiB; at least that of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_gb: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<TwinNetwork>,
}

/// How to stop, or to begin anew.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Stop {
    /// Take the power away instead of asking the guest.
    #[serde(default)]
    pub force: bool,
}

/// One twin, or a clone of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Twin {
    /// That of its host; a clone has one of its own.
    pub name: String,
    pub state: TwinState,
    /// Why it is stuck.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether its SSH or its guest agent answers; absent in a list, where nobody asks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<bool>,
    /// The digest of its base image.
    pub image: String,
    pub memory_bytes: u64,
    pub processors: u32,
    pub mac: String,
    pub network: TwinNetwork,
    /// `qemu` or `libvirt`.
    pub hypervisor: String,
    /// `kvm` or `tcg`, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acceleration: Option<String>,
    /// Of a clone: where it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// The snapshot it goes back to, the last taken or reverted to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_snapshot: Option<String>,
    /// On disk, of its own.
    pub used_bytes: u64,
    /// The way in, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<Ssh>,
    /// How it follows its host; a clone follows nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub following: Option<Following>,
    /// What is being done to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub run: Option<RunId>,
}

/// A moment of another twin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Origin {
    pub twin: String,
    pub snapshot: String,
}

/// How SSH gets in, from the server's machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Ssh {
    /// An address of the server's machine.
    pub address: String,
    pub port: u16,
    pub user: String,
    /// The keys it may show, each in one line.
    pub host_keys: Vec<String>,
    /// The key that opens it: a file on the server's machine.
    pub key: String,
    /// The host keys as a file of that machine, under the twin's name.
    pub known_hosts: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Twins {
    /// By name, clones among them.
    pub twins: Vec<Twin>,
    /// Those that are there and can't be worked with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unusable: Vec<UnusableTwin>,
    /// Give it as `after` for the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A twin that is there and can't be worked with. The others can.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UnusableTwin {
    pub name: String,
    /// `qemu` or `libvirt`.
    pub hypervisor: String,
    /// Why not, and what to do.
    pub reason: String,
}

/// A snapshot to take.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewSnapshot {
    /// `state_YYYYMMDD_HHMMSS` unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Live of a twin that runs, else of the disk, unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<SnapshotKind>,
}

/// A saved moment of a twin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Snapshot {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<SnapshotKind>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub at: Option<Time>,
    /// The version of the host at that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<SnapshotWeight>,
    /// How long the guest stood still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// The twin goes back to it, or went on from it.
    pub is_current: bool,
    /// Why it can't be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TwinSnapshots {
    pub twin: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// The oldest first.
    pub snapshots: Vec<Snapshot>,
}

/// Clones to make.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewClones {
    /// The moment they begin in; the present one unless told, which is saved for it. A snapshot's
    /// name, or a moment of the host: `-5m`, `@412`, `2026-11-20T09:00Z`. That is the newest
    /// snapshot at or before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// How many; 1 unless told, at most 32.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// What they are called, with `-1`, `-2`, … behind it where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// Clones are being made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BegunClones {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub run: RunId,
    /// What they will be called.
    pub twins: Vec<String>,
    /// Where they begin, if a moment was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<Nearest>,
}

/// Where to go back to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Revert {
    /// A snapshot's name, or a moment as for a clone; the current snapshot unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
}

/// A twin goes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BegunRevert {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub run: RunId,
    pub snapshot: String,
    /// How that was found, if a moment was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<Nearest>,
}

/// The newest snapshot at or before a moment, or the oldest where there is none, and how far that
/// is from it. What the host did between the two is brought to it where an agent sees that host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Nearest {
    pub snapshot: String,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub at: Time,
    /// The version of the host when it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The moment that was asked for; of a version, when it began, as long as that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub wanted_at: Option<Time>,
    /// The version of the host at that moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted_version: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_same_everywhere() {
        for network in [TwinNetwork::Isolated, TwinNetwork::Nat, TwinNetwork::Open] {
            let json = serde_json::to_string(&network).unwrap();
            assert_eq!(json, format!("{:?}", network.as_str()));
            assert_eq!(network.as_str().parse(), Ok(network));
        }
        let wrong = "bridged".parse::<TwinNetwork>().unwrap_err();
        assert_eq!(wrong, "a network is one of isolated, nat, open");
        let wrong = serde_json::from_str::<NewTwin>(r#"{"memory": 5}"#).unwrap_err().to_string();
        assert!(wrong.contains("unknown field `memory`"), "{wrong}");
    }
}
