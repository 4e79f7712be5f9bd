//! Numbers for the names that occur most. Part of the stored form: only ever append.

use model::Kind;
use std::collections::HashMap;
use std::sync::LazyLock;

/// Field names of the model when this was written; the first 31 take one byte. Others are
/// stored as text.
const FIELDS: [&str; 157] = [
    "main_pid",
    "pids",
    "since",
    "active_state",
    "sub_state",
    "result",
    "restarts",
    "state",
    "started_at",
    "pid",
    "version",
    "fingerprint",
    "content",
    "size",
    "mode",
    "load_state",
    "enablement",
    "health",
    "exit_code",
    "container_id",
    "image",
    "image_digest",
    "user",
    "name",
    "executable",
    "arguments",
    "unit",
    "cgroup",
    "port",
    "process",
    "address",
    "description",
    "fragment_path",
    "drop_ins",
    "service_type",
    "exec_start",
    "exec_start_pre",
    "exec_start_post",
    "exec_reload",
    "exec_stop",
    "exec_stop_post",
    "group",
    "working_directory",
    "environment",
    "environment_files",
    "restart",
    "restart_delay_ms",
    "limits",
    "slice",
    "requires",
    "requisite",
    "wants",
    "binds_to",
    "part_of",
    "conflicts",
    "before",
    "after",
    "triggers",
    "triggered_by",
    "listen",
    "schedule",
    "mount_what",
    "mount_where",
    "mount_options",
    "created_at",
    "command",
    "entrypoint",
    "ports",
    "mounts",
    "networks",
    "labels",
    "links",
    "restart_policy",
    "memory_limit_bytes",
    "cpu_limit_millis",
    "privileged",
    "uid",
    "container",
    "parent",
    "open_files",
    "architecture",
    "manager",
    "owner",
    "link",
    "withheld",
    "package",
    "role",
    "gid",
    "home",
    "shell",
    "comment",
    "members",
    "protocol",
    "from",
    "to",
    "declared",
    "observed",
    "runtime",
    "evidence",
    "model_files",
    "listens",
    "gpus",
    "hostname",
    "machine_id",
    "boot_id",
    "booted_at",
    "distribution",
    "distribution_version",
    "distribution_name",
    "kernel",
    "kernel_command_line",
    "virtualization",
    "vendor",
    "product",
    "time_zone",
    "systemd_version",
    "name_servers",
    "search_domains",
    "model",
    "logical",
    "physical",
    "sockets",
    "flags",
    "total_bytes",
    "kind",
    "priority",
    "size_bytes",
    "serial",
    "rotational",
    "removable",
    "read_only",
    "device",
    "filesystem_type",
    "options",
    "mac",
    "mtu",
    "addresses",
    "speed_mbit",
    "driver",
    "master",
    "link_kind",
    "destination",
    "gateway",
    "interface",
    "metric",
    "uuid",
    "memory_bytes",
    "driver_version",
    "fault",
    "fault_since",
    "changed_at",
    "needs_reload",
    "redacted",
    "modified_at",
    "directories",
    "missing",
    "image_id",
];

/// Kinds of the model when this was written. Others are stored as text.
const KINDS: [Kind; 19] = [
    Kind::UNIT,
    Kind::CONTAINER,
    Kind::PROCESS,
    Kind::PACKAGE,
    Kind::FILE,
    Kind::SOCKET,
    Kind::DEPENDENCY,
    Kind::WORKLOAD,
    Kind::USER,
    Kind::GROUP,
    Kind::PLATFORM,
    Kind::CPU,
    Kind::MEMORY,
    Kind::DISK,
    Kind::FILESYSTEM,
    Kind::INTERFACE,
    Kind::ROUTE,
    Kind::GPU,
    Kind::COLLECTOR,
];

static FIELD_NUMBERS: LazyLock<HashMap<&str, u64>> =
    LazyLock::new(|| FIELDS.into_iter().zip(0..).collect());

pub(crate) fn field_number(name: &str) -> Option<u64> {
    FIELD_NUMBERS.get(name).copied()
}

pub(crate) fn field_name(number: u64) -> Option<&'static str> {
    FIELDS.get(usize::try_from(number).ok()?).copied()
}

pub(crate) fn kind_number(kind: Kind) -> Option<u64> {
    KINDS.iter().zip(0..).find(|(known, _)| **known == kind).map(|(_, number)| number)
}

pub(crate) fn kind(number: u64) -> Option<Kind> {
    KINDS.get(usize::try_from(number).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_never_change_their_meaning() {
        let kinds: Vec<&str> = KINDS.iter().map(Kind::as_str).collect();
        let text = format!("{} {}", FIELDS[..150].join(","), kinds.join(","));
        // After appending, hash the old part only; a changed hash makes stored history unreadable.
        assert_eq!(xxhash_rust::xxh3::xxh3_64(text.as_bytes()), STORED_FORM);
        assert_eq!(FIELD_NUMBERS.len(), FIELDS.len());
    }

    const STORED_FORM: u64 = 10_254_730_353_590_187_724;
}
