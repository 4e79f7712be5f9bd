//! How much a change matters.
//!
//! Major changes are those after which the machine does something else: they are kept when
//! history is thinned, and they are what a twin is snapshotted for. Minor ones are the
//! ordinary movement of a healthy machine: pids, short-lived processes, usage-driven figures.

use crate::kind::{Kind, Subject};
use crate::patch::{Op, Patch};
use crate::value::{Fields, Value};
use serde::{Deserialize, Serialize};

/// Ordered: minor < major.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Significance {
    Minor,
    Major,
}

/// Fields whose change alone is minor, whatever they belong to.
const MINOR_FIELDS: [&str; 19] = [
    "main_pid",
    "pids",
    "forked",
    "count",
    "since",
    "changed_at",
    "boot_ms",
    "needs_reload",
    "restarts",
    "started_at",
    "pid",
    "modified_at",
    "fault_since",
    // Of a unit: grow and shrink as other units that name it are loaded and unloaded.
    "before",
    "after",
    "conflicts",
    "triggered_by",
    "cgroup",
    "slice",
];

/// How much one change matters.
#[must_use]
pub fn significance(subject: &Subject, op: &Op) -> Significance {
    let kind = subject.kind();
    if [Kind::PROCESS, Kind::DEPENDENCY, Kind::COLLECTOR, Kind::DISK].contains(&kind) {
        return Significance::Minor;
    }
    if kind == Kind::SOCKET && ephemeral(op) {
        return Significance::Minor;
    }
    if kind == Kind::UNIT && transient_unit(subject.id()) {
        return Significance::Minor;
    }
    match op {
        Op::Added(_) | Op::Removed(_) => Significance::Major,
        Op::Edited { was, now } => {
            let minor =
                was.keys().chain(now.keys()).all(|name| MINOR_FIELDS.contains(&name.as_str()))
                    || kind == Kind::UNIT && passing_state(was, now);
            if minor { Significance::Minor } else { Significance::Major }
        }
    }
}

/// The greatest significance in a patch; minor when it is empty.
#[must_use]
pub fn significance_of(patch: &Patch) -> Significance {
    patch.iter().map(|(subject, op)| significance(subject, op)).max().unwrap_or(Significance::Minor)
}

/// Ports a kernel hands out by itself say nothing about the machine's purpose.
fn ephemeral(op: &Op) -> bool {
    let fields = match op {
        Op::Added(fields) | Op::Removed(fields) => fields,
        Op::Edited { now, .. } => now,
    };
    matches!(fields.get("port"), Some(Value::Int(port)) if *port >= 32768)
}

/// Units that come and go with sessions and mounts rather than by anyone's decision.
fn transient_unit(id: &str) -> bool {
    let name = id.rsplit('/').next().unwrap_or(id);
    name.ends_with(".scope")
        || name.ends_with(".device")
        || name.starts_with("run-")
        || name.starts_with("session-")
        || name.starts_with("user-runtime-dir@")
}

/// A unit on its way (activating, deactivating, a timer's elapsed oneshot) is not yet a result.
fn passing_state(was: &Fields, now: &Fields) -> bool {
    let passing = |fields: &Fields| {
        matches!(
            fields.get("active_state").and_then(Value::as_text),
            Some("activating" | "deactivating" | "reloading")
        )
    };
    let state_only = was.keys().chain(now.keys()).all(|name| {
        ["active_state", "sub_state", "result", "exit_code", "exit_signal"].contains(&name.as_str())
            || MINOR_FIELDS.contains(&name.as_str())
    });
    state_only && passing(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(subject: &str, was: &[(&str, &str)], now: &[(&str, &str)], expected: Significance) {
        let fields = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), Value::from(*v))).collect()
        };
        let op = Op::Edited { was: fields(was), now: fields(now) };
        assert_eq!(significance(&subject.parse().unwrap(), &op), expected, "{subject} {op:?}");
    }

    #[test]
    fn what_matters() {
        use Significance::{Major, Minor};
        check(
            "unit:nginx.service",
            &[("active_state", "active")],
            &[("active_state", "inactive")],
            Major,
        );
        check(
            "unit:nginx.service",
            &[("active_state", "active")],
            &[("active_state", "deactivating")],
            Minor,
        );
        check(
            "unit:nginx.service",
            &[("active_state", "active"), ("result", "success")],
            &[("active_state", "activating"), ("result", "exit-code"), ("exit_code", "3")],
            Minor,
        );
        check("unit:nginx.service", &[("main_pid", "1")], &[("main_pid", "2")], Minor);
        check("unit:session-3.scope", &[("active_state", "a")], &[("active_state", "b")], Minor);
        check("package:nginx", &[("version", "1")], &[("version", "2")], Major);
        check("process:sleep#1", &[("count", "1")], &[("count", "2")], Minor);
        check(
            "file:/etc/nginx/nginx.conf",
            &[("modified_at", "1")],
            &[("modified_at", "2")],
            Minor,
        );
    }
}
