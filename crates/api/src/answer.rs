//! What the server answers in JSON.

use model::{Facts, HostId, Kind, Op, Patch, Significance, Subject, Time, Version, significance};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The one error body. `status` and `message` are the bridge's; the rest stands beside them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// Always `error`.
    pub status: String,
    /// Stable, for programs: `not_found`, `base_mismatch`, …
    pub code: String,
    /// For people: what happened and what to do.
    pub message: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
    #[serde(default)]
    pub request_id: String,
}

/// One host, in short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Host {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub host: HostId,
    /// The newest version.
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub version: Version,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub first_at: Time,
    /// When the newest version was.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub changed_at: Time,
    /// When the host was last heard of, by this server since its start.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub seen_at: Option<Time>,
    /// How many items of each kind.
    pub items: BTreeMap<String, u64>,
    /// Parts of the picture that are stale, and why.
    pub faults: BTreeMap<String, String>,
    /// Parts of the picture that lack something, such as what the agent has no right to see.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub limits: BTreeMap<String, Vec<String>>,
    /// The newest change, in a few words.
    pub last_change: Option<String>,
    /// `systemd 252 on debian 12`, from the facts.
    pub system: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Hosts {
    pub hosts: Vec<Host>,
    /// Give it as `after` for the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A host's facts at one version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct State {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub host: HostId,
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub version: Version,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub at: Time,
    /// By subject (`unit:nginx.service`), its fields.
    #[cfg_attr(feature = "openapi", schema(value_type = BTreeMap<String, Object>))]
    pub facts: Facts,
}

/// One change, as people and programs read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Change {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub subject: Subject,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub significance: Significance,
    /// Of what was added: it had been there before anyone looked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub first_seen: bool,
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub op: Op,
}

/// The changes of a patch, the significant ones first. What was added of some kinds had been
/// there before.
#[must_use]
pub fn changes(patch: Patch, had_been: impl Fn(Kind) -> bool) -> Vec<Change> {
    let change = |(subject, op): (Subject, Op)| Change {
        significance: significance(&subject, &op),
        first_seen: matches!(op, Op::Added(_)) && had_been(subject.kind()),
        subject,
        op,
    };
    let mut changes: Vec<Change> = patch.0.into_iter().map(change).collect();
    changes.sort_by_key(|change| std::cmp::Reverse(change.significance));
    changes
}

/// One version in a log or a live stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Entry {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub host: HostId,
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub version: Version,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub at: Time,
    /// What the host's clock said, where that was not believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub host_time: Option<Time>,
    /// When the server had it.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub received_at: Time,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub significance: Significance,
    pub changes: Vec<Change>,
    /// How many items changed in all, where `changes` holds only the asked-for ones or the first.
    pub total_changes: usize,
    /// What else changed at that time, where asked for: `package:nginx`, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub around: Vec<Around>,
    /// This version stands for several that could not be kept apart since then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub gap: Option<crate::wire::Gap>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

/// Something that changed about the same time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Around {
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub version: Version,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub at: Time,
    pub change: Change,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Log {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub host: HostId,
    /// What the log is of; empty: everything.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub subjects: Vec<Subject>,
    /// Newest first.
    pub entries: Vec<Entry>,
    /// Give it as `before` for the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub next: Option<Version>,
}

/// One end of a diff.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct End {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub host: HostId,
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub version: Version,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub at: Time,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Diff {
    pub from: End,
    pub to: End,
    pub changes: Vec<Change>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Loads {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub host: HostId,
    /// Oldest first.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Object>))]
    pub samples: Vec<model::load::Load>,
}

/// A base image that machines start from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Image {
    /// 64 hexadecimal digits over its inputs and files.
    pub id: String,
    /// What people call it.
    pub names: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub created_at: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub architecture: Option<String>,
    /// `bookworm`, or the path or URL it was taken from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Of the disk as a guest sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Of all its files.
    pub used_bytes: u64,
    /// Installed packages and their versions, where they are known and one image is asked for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub packages: BTreeMap<String, String>,
    /// Why it can't be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Images {
    /// Newest first.
    pub images: Vec<Image>,
}

/// Which image to make: of packages, or `from` elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewImage {
    pub name: String,
    /// A release of Debian; `bookworm` unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suite: Option<String>,
    /// Where packages come from; what the server's own machine uses unless told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<String>,
    /// Beyond those every image has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<String>,
    /// A disk image (qcow2, raw): a URL, or an absolute path on the server's machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// `sha256:…` or `sha512:…` of it, as its publisher says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checksum: Option<String>,
}
