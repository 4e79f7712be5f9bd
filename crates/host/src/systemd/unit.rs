//! Turns the properties that systemd gives for a unit into a unit of the model. Pure.
//!
//! # Invariants
//! - Nothing volatile: no counters of use, no next elapse of a timer.
//! - A property of another type than expected is as good as missing.
//! - Lists whose order means nothing are sorted.

use crate::text::{printable, printable_lines};
use model::Time;
use model::entity::Unit;
use model::redact::Redactor;
use model::vm::may_be_microvm;
use serde_json::Value;
use std::collections::BTreeMap;

/// Properties by name, of a unit's interface and the one of its type together.
pub(super) type Properties = BTreeMap<String, Value>;

/// The properties that are kept of an answer. Only a change of one of these is a change of
/// the unit.
pub(super) const READ: [&str; 66] = [
    "ActiveEnterTimestamp",
    "ActiveState",
    "After",
    "Before",
    "BindsTo",
    "CPUQuotaPerSecUSec",
    "CPUWeight",
    "Conflicts",
    "ControlGroup",
    "Description",
    "DropInPaths",
    "Environment",
    "EnvironmentFiles",
    "ExecMainCode",
    "ExecMainStartTimestamp",
    "ExecMainStatus",
    "ExecReload",
    "ExecStart",
    "ExecStartPost",
    "ExecStartPre",
    "ExecStop",
    "ExecStopPost",
    "Following",
    "FragmentPath",
    "Group",
    "IOWeight",
    "Id",
    "LimitAS",
    "LimitCORE",
    "LimitMEMLOCK",
    "LimitNOFILE",
    "LimitNPROC",
    "Listen",
    "LoadState",
    "MainPID",
    "MemoryHigh",
    "MemoryLow",
    "MemoryMax",
    "MemoryMin",
    "MemorySwapMax",
    "NRestarts",
    "NeedDaemonReload",
    "Options",
    "PartOf",
    "Requires",
    "Requisite",
    "Restart",
    "RestartUSec",
    "Result",
    "Slice",
    "SourcePath",
    "StateChangeTimestamp",
    "SubState",
    "TasksMax",
    "TimersCalendar",
    "TimersMonotonic",
    "TriggeredBy",
    "Triggers",
    "Type",
    "UnitFileState",
    "User",
    "Wants",
    "What",
    "Where",
    "WorkingDirectory",
    "RuntimeMaxUSec",
];

/// Limits, and whether zero means that there is none.
const LIMITS: [(&str, bool); 15] = [
    ("CPUQuotaPerSecUSec", false),
    ("CPUWeight", false),
    ("IOWeight", false),
    ("LimitAS", false),
    ("LimitCORE", false),
    ("LimitMEMLOCK", false),
    ("LimitNOFILE", false),
    ("LimitNPROC", false),
    ("MemoryHigh", false),
    ("MemoryLow", true),
    ("MemoryMax", false),
    ("MemoryMin", true),
    ("MemorySwapMax", false),
    ("RuntimeMaxUSec", true),
    ("TasksMax", false),
];

/// What `ExecMainCode` says of a process: it ended, was killed, or was killed and left a core.
const EXITED: i64 = 1;
const KILLED: [i64; 2] = [2, 3];

/// Signals by their numbers, from 1.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// Names and words of one list that are kept.
const LIST_MAX: usize = 4096;

/// Whether it is more than a name that another unit mentions: its file is there, or it runs on
/// without.
pub(super) fn is_there(load_state: &str, active_state: &str) -> bool {
    load_state != "not-found" || !matches!(active_state, "inactive" | "failed" | "")
}

/// The unit; `None` when it is only a name that another unit mentions, or another name of a
/// device.
pub(super) fn unit(
    properties: &Properties,
    redactor: &Redactor,
    owner: Option<&str>,
) -> Option<Unit> {
    let seen = Seen { properties, redactor };
    let name = seen.text("Id")?;
    let load_state = seen.text("LoadState").unwrap_or_default();
    let active_state = seen.text("ActiveState").unwrap_or_default();
    if !is_there(&load_state, &active_state) || seen.text("Following").is_some() {
        return None;
    }
    let active = ["active", "reloading", "refreshing"].contains(&active_state.as_str());
    // Of targets, slices and devices these name whatever else happens to be loaded.
    let ordered = ["service", "socket", "timer", "path", "mount", "automount", "swap"]
        .iter()
        .any(|kind| name.rsplit('.').next() == Some(kind));
    let id = identity(&name, owner);
    let (exit_code, exit_signal) = seen.exit();
    let order = |list: Vec<String>| if ordered { list } else { Vec::new() };
    Some(Unit {
        description: seen.description(),
        load_state,
        sub_state: seen.text("SubState").unwrap_or_default(),
        enablement: seen.text("UnitFileState"),
        result: seen.text("Result"),
        exit_code,
        exit_signal,
        // A unit that was generated names what it was generated from.
        fragment_path: seen
            .text("SourcePath")
            .filter(|path| path.starts_with("/etc/"))
            .or_else(|| seen.text("FragmentPath")),
        drop_ins: seen.list("DropInPaths"),
        service_type: seen.text("Type").filter(|_| is(&name, "service")),
        exec_start: seen.commands("ExecStart"),
        exec_start_pre: seen.commands("ExecStartPre"),
        exec_start_post: seen.commands("ExecStartPost"),
        exec_reload: seen.commands("ExecReload"),
        exec_stop: seen.commands("ExecStop"),
        exec_stop_post: seen.commands("ExecStopPost"),
        user: seen.text("User"),
        group: seen.text("Group"),
        working_directory: seen.text("WorkingDirectory"),
        environment: seen.environment(),
        environment_files: seen.environment_files(),
        restart: seen.text("Restart").filter(|restart| restart != "no"),
        restart_delay_ms: seen.number("RestartUSec").map(|microseconds| microseconds / 1000),
        main_pid: seen.number("MainPID").filter(|&pid| pid > 0),
        restarts: seen.number("NRestarts"),
        since: seen.number("ActiveEnterTimestamp").filter(|&at| at > 0 && active).map(Time),
        boot_ms: seen.boot_ms().filter(|_| active && may_be_microvm(&id)),
        changed_at: seen.number("StateChangeTimestamp").filter(|&at| at > 0).map(Time),
        needs_reload: seen.truth("NeedDaemonReload"),
        limits: seen.limits(),
        cgroup: seen.text("ControlGroup"),
        slice: seen.text("Slice"),
        requires: seen.set("Requires"),
        requisite: seen.set("Requisite"),
        wants: seen.set("Wants"),
        binds_to: seen.set("BindsTo"),
        part_of: seen.set("PartOf"),
        conflicts: seen.set("Conflicts"),
        before: order(seen.set("Before")),
        after: order(seen.set("After")),
        triggers: seen.set("Triggers"),
        triggered_by: seen.set("TriggeredBy"),
        listen: seen.listen(),
        schedule: seen.schedule(),
        mount_what: seen.text("What"),
        mount_where: seen.text("Where"),
        mount_options: seen.mount_options(),
        active_state,
        id,
    })
}

/// A system unit's name, or `USER/NAME`.
pub(super) fn identity(name: &str, owner: Option<&str>) -> String {
    match owner {
        Some(user) => format!("{user}/{name}"),
        None => name.to_owned(),
    }
}

/// A signal's name, or its number where it has none.
fn signal(number: i64) -> String {
    let index = usize::try_from(number - 1).ok();
    let name = index.and_then(|index| SIGNALS.get(index));
    name.map_or_else(|| number.to_string(), |name| (*name).to_owned())
}

fn is(name: &str, kind: &str) -> bool {
    name.rsplit('.').next() == Some(kind)
}

struct Seen<'p> {
    properties: &'p Properties,
    redactor: &'p Redactor,
}

impl Seen<'_> {
    fn text(&self, name: &str) -> Option<String> {
        let text = self.properties.get(name)?.as_str()?;
        (!text.is_empty()).then(|| printable(text.as_bytes()))
    }

    /// A number that is set: the largest means infinity, or not set.
    fn number(&self, name: &str) -> Option<i64> {
        let value = self.properties.get(name)?;
        value.as_u64().and_then(|number| i64::try_from(number).ok()).or_else(|| value.as_i64())
    }

    /// How the main process of a service that failed ended: its exit code, or the signal.
    fn exit(&self) -> (Option<i64>, Option<String>) {
        let failed = self.text("Result").is_some_and(|result| result != "success");
        let status = self.number("ExecMainStatus").filter(|&status| failed && status > 0);
        let (Some(code), Some(status)) = (self.number("ExecMainCode"), status) else {
            return (None, None);
        };
        match code {
            EXITED => (Some(status), None),
            _ if KILLED.contains(&code) => (None, Some(signal(status))),
            _ => (None, None),
        }
    }

    /// From the start of the main process until the unit was active. systemd has the unit leave
    /// `inactive` before the wait for a restart, which is none of it.
    fn boot_ms(&self) -> Option<i64> {
        let at = |name| self.number(name).filter(|&at| at > 0);
        let took = at("ActiveEnterTimestamp")?.checked_sub(at("ExecMainStartTimestamp")?)?;
        (took >= 0).then_some(took / 1000)
    }

    fn truth(&self, name: &str) -> bool {
        self.properties.get(name).and_then(Value::as_bool).unwrap_or_default()
    }

    fn array(&self, name: &str) -> impl Iterator<Item = &Value> {
        let array = self.properties.get(name).and_then(Value::as_array);
        array.into_iter().flatten().take(LIST_MAX)
    }

    fn list(&self, name: &str) -> Vec<String> {
        self.array(name).filter_map(Value::as_str).map(|s| printable(s.as_bytes())).collect()
    }

    fn set(&self, name: &str) -> Vec<String> {
        let mut list = self.list(name);
        list.sort();
        list
    }

    /// A transient unit's description may be its command line.
    fn description(&self) -> String {
        let text = self.text("Description").unwrap_or_default();
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        self.redactor.arguments(&words).join(" ")
    }

    /// Arrays of (path, words, …).
    fn commands(&self, name: &str) -> Vec<Vec<String>> {
        let command = |command: &Value| {
            let path = command.get(0)?.as_str()?;
            let mut words: Vec<String> = command
                .get(1)?
                .as_array()?
                .iter()
                .take(LIST_MAX)
                .filter_map(Value::as_str)
                .map(|word| printable_lines(word.as_bytes()))
                .collect();
            // The first word may be a name that only the process is to have.
            match words.first_mut() {
                Some(first) => *first = printable(path.as_bytes()),
                None => words.push(printable(path.as_bytes())),
            }
            Some(self.redactor.arguments(&words))
        };
        self.array(name).filter_map(command).collect()
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let pair = |assignment: &str| {
            let (name, value) = assignment.split_once('=')?;
            let name = printable(name.as_bytes());
            // Marks are of the value as it is; what stays legible is made printable.
            let value = self.redactor.environment(&name, value);
            Some((name, printable(value.as_bytes())))
        };
        self.array("Environment").filter_map(Value::as_str).filter_map(pair).collect()
    }

    /// Arrays of (path, whether it may be missing); written as in a unit file.
    fn environment_files(&self) -> Vec<String> {
        let file = |file: &Value| {
            let path = printable(file.get(0)?.as_str()?.as_bytes());
            let optional = file.get(1)?.as_bool()?;
            Some(if optional { format!("-{path}") } else { path })
        };
        self.array("EnvironmentFiles").filter_map(file).collect()
    }

    fn limits(&self) -> BTreeMap<String, i64> {
        let limit = |&(name, zero_is_none): &(&str, bool)| {
            let value = self.number(name).filter(|&value| value > 0 || !zero_is_none)?;
            Some((name.to_owned(), value))
        };
        LIMITS.iter().filter_map(limit).collect()
    }

    /// Arrays of (kind, address).
    fn listen(&self) -> Vec<String> {
        let address = |address: &Value| {
            let [kind, address] = [address.get(0)?.as_str()?, address.get(1)?.as_str()?];
            Some(format!("{} {}", printable(kind.as_bytes()), printable(address.as_bytes())))
        };
        self.array("Listen").filter_map(address).collect()
    }

    /// Arrays of (base, specification, next elapse), the last of which is volatile.
    fn schedule(&self) -> Vec<String> {
        let calendar = |timer: &Value| {
            let [base, spec] = [timer.get(0)?.as_str()?, timer.get(1)?.as_str()?];
            Some(format!("{}={}", printable(base.as_bytes()), printable(spec.as_bytes())))
        };
        let monotonic = |timer: &Value| {
            let base = timer.get(0)?.as_str()?;
            let microseconds = timer.get(1)?.as_u64()?;
            // OnBootUSec is what OnBootSec= is called here.
            let base = base.strip_suffix("USec").unwrap_or(base);
            let value = match microseconds % 1_000_000 {
                0 => format!("{}s", microseconds / 1_000_000),
                _ => format!("{microseconds}us"),
            };
            Some(format!("{}Sec={value}", printable(base.as_bytes())))
        };
        let mut schedule: Vec<String> = self.array("TimersCalendar").filter_map(calendar).collect();
        schedule.extend(self.array("TimersMonotonic").filter_map(monotonic));
        schedule
    }

    /// Network filesystems take passwords as options.
    fn mount_options(&self) -> Option<String> {
        let options = self.text("Options")?;
        let words: Vec<String> =
            std::iter::once("mount").chain(options.split(',')).map(str::to_owned).collect();
        self.redactor.arguments(&words).get(1..).map(|words| words.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn redactor() -> Redactor {
        Redactor::new([7; 32], Vec::new())
    }

    /// What `busctl --json=short call … GetAll s ""` wrote of units of the lab's host.
    fn captured() -> Vec<Properties> {
        let text = include_str!("../../tests/fixtures/systemd/units.json");
        let value: Value = serde_json::from_str(text).unwrap();
        let properties = |unit: &Value| {
            let unit = unit.as_object().unwrap().iter();
            unit.map(|(name, value)| (name.clone(), value["data"].clone())).collect()
        };
        value.as_array().unwrap().iter().map(properties).collect()
    }

    fn show(unit: &Unit) -> String {
        use model::entity::Entity;
        let (subject, fields) = unit.to_item();
        let mut out = format!("{subject}\n");
        for (name, value) in fields {
            out.push_str(&format!("  {name}: {}\n", value.to_json()));
        }
        out
    }

    #[test]
    fn captured_units() {
        let units: String = captured()
            .iter()
            .filter_map(|p| unit(p, &redactor(), None))
            .map(|u| show(&u))
            .collect();
        expect_test::expect_file!["../../tests/fixtures/systemd/units.expected"].assert_eq(&units);
        assert!(!units.contains("not-a-real"), "{units}");
    }

    #[test]
    fn what_is_only_mentioned_is_left_out() {
        let mut properties: Properties =
            [("Id".to_owned(), "x.service".into()), ("LoadState".to_owned(), "not-found".into())]
                .into();
        assert_eq!(unit(&properties, &redactor(), None), None);
        properties.insert("ActiveState".to_owned(), "failed".into());
        assert_eq!(unit(&properties, &redactor(), None), None);
        // It runs on without its file.
        properties.insert("ActiveState".to_owned(), "active".into());
        assert_eq!(unit(&properties, &redactor(), None).unwrap().load_state, "not-found");
        properties.insert("LoadState".to_owned(), "loaded".into());
        assert_eq!(unit(&properties, &redactor(), Some("alice")).unwrap().id, "alice/x.service");
        assert_eq!(unit(&Properties::new(), &redactor(), None), None);
    }

    #[test]
    fn how_a_service_ended() {
        let check =
            |result: &str, code: i64, status: i64, expected: (Option<i64>, Option<&str>)| {
                let properties: Properties = [
                    ("Id".to_owned(), "x.service".into()),
                    ("Result".to_owned(), result.into()),
                    ("ExecMainCode".to_owned(), code.into()),
                    ("ExecMainStatus".to_owned(), status.into()),
                ]
                .into();
                let unit = unit(&properties, &redactor(), None).unwrap();
                assert_eq!((unit.exit_code, unit.exit_signal.as_deref()), expected, "{result}");
            };
        check("exit-code", 1, 3, (Some(3), None));
        check("signal", 2, 9, (None, Some("KILL")));
        check("core-dump", 3, 11, (None, Some("SEGV")));
        check("signal", 2, 40, (None, Some("40")));
        // It was stopped as it may be, is running, or its main process had nothing to do with it.
        check("success", 2, 15, (None, None));
        check("success", 0, 0, (None, None));
        check("timeout", 1, 0, (None, None));
        check("resources", 9, i64::MIN, (None, None));
    }

    #[test]
    fn how_long_a_microvm_took_to_be_there() {
        let check = |id: &str, state: &str, started: u64, expected: Option<i64>| {
            let properties: Properties = [
                ("Id".to_owned(), id.into()),
                ("ActiveState".to_owned(), state.into()),
                ("ExecMainStartTimestamp".to_owned(), started.into()),
                ("ActiveEnterTimestamp".to_owned(), 9_000_000.into()),
            ]
            .into();
            let unit = unit(&properties, &redactor(), None).unwrap();
            assert_eq!(unit.boot_ms, expected, "{id} {state} {started}");
        };
        check("microvm@web.service", "active", 4_800_000, Some(4200));
        check("microvm@web.service", "activating", 4_800_000, None);
        check("microvm@web.service", "active", 0, None);
        check("microvm@web.service", "active", 9_000_001, None);
        check("nginx.service", "active", 4_800_000, None);
    }

    #[test]
    fn command_lines_in_descriptions_are_redacted() {
        let properties: Properties = [
            ("Id".to_owned(), "run-1.service".into()),
            ("Description".to_owned(), "/bin/app --password hunter2".into()),
        ]
        .into();
        let unit = unit(&properties, &redactor(), None).unwrap();
        assert!(unit.description.starts_with("/bin/app --password redacted:"));
    }

    /// Any JSON of some depth.
    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop::collection::vec(inner, 0..4).prop_map(Value::from)
        })
    }

    proptest! {
        #[test]
        fn anything_goes_in(values in prop::collection::vec(json(), READ.len())) {
            let mut properties: Properties =
                READ.iter().map(|name| (*name).to_owned()).zip(values).collect();
            unit(&properties, &redactor(), None);
            properties.insert("Id".to_owned(), "x.service".into());
            properties.remove("LoadState");
            properties.remove("Following");
            prop_assert!(unit(&properties, &redactor(), None).is_some());
        }
    }
}
