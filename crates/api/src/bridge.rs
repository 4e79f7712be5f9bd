//! The bridge's `update_state`: the full state of a host as older agents, or a shell with
//! curl, send it; and the bridge's answers.
//!
//! Fields are taken leniently: unknown ones are ignored, missing ones absent, numbers may be
//! texts. One of another type is absent, too, and said to be in the facts themselves, as what
//! this client can't see (`collector:update_state`), and so is a thing whose name is none. What
//! is not told at all stays as it was ([`State::upon`]).
//! Volatile ones (usage, times that move by themselves) never become facts. Secrets are
//! redacted on arrival, since these clients do not do it.

mod shape;

use crate::json;
use model::entity::{
    Collector, Container, Cpu, Entity, Filesystem, Interface, Memory, Platform, Process, Unit,
    Workload,
};
use model::redact::Redactor;
use model::{Facts, HostId, HostIdError, Item, Kind};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What these clients are called among the parts of an agent's sight.
const CLIENT: &str = "update_state";

/// The name of a host that does not tell its own.
pub const UNNAMED: &str = "unnamed";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the body is empty; send the host's state as a JSON object")]
    Empty,
    #[error("the body is not JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{field} is not {expected}")]
    Type { field: String, expected: &'static str },
    #[error(transparent)]
    Host(#[from] HostIdError),
}

/// A host's state, as facts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub host: HostId,
    pub facts: Facts,
    /// Kinds of which the client says nothing, which is not the same as that there are none.
    pub untold: Vec<Kind>,
    /// Beginnings of the names of fields, of the same.
    untold_fields: Vec<&'static str>,
}

impl State {
    /// Notes what the client says nothing of.
    fn leave_out(&mut self, has_services: bool, has_processes: bool, hardware: &Value) {
        if !has_services {
            self.untold.extend([Kind::UNIT, Kind::CONTAINER]);
            self.untold_fields.push("services[]");
        }
        if !has_processes {
            self.untold.push(Kind::PROCESS);
            self.untold_fields.push("processes[]");
        }
        if !has_services || !has_processes {
            // Either list can name some of them.
            self.untold.extend([Kind::WORKLOAD, Kind::COLLECTOR]);
        }
        if hardware.is_null() {
            self.untold.push(Kind::PLATFORM);
            self.untold_fields.push("hardware.");
        }
        for (part, kind, fields) in [
            ("cpu", Kind::CPU, "hardware.cpu"),
            ("memory", Kind::MEMORY, "hardware.memory"),
            ("disks", Kind::FILESYSTEM, "hardware.disks"),
            ("network", Kind::INTERFACE, "hardware.network"),
        ] {
            if told(hardware, part).is_none() {
                self.untold.push(kind);
                self.untold_fields.push(fields);
            }
        }
    }

    /// The facts, with what the client says nothing of as it was before.
    #[must_use]
    pub fn upon(self, before: &Facts) -> Facts {
        let Self { mut facts, untold, untold_fields, .. } = self;
        let limits_of = |facts: &Facts| {
            facts.entity::<Collector>(CLIENT).map(|client| client.limits).unwrap_or_default()
        };
        let mut limits: BTreeSet<String> = limits_of(&facts).into_iter().collect();
        limits.extend(
            limits_of(before)
                .into_iter()
                .filter(|limit| untold_fields.iter().any(|field| limit.starts_with(field))),
        );
        for (subject, item) in untold.into_iter().flat_map(|kind| before.of_kind(kind)) {
            if facts.get(subject).is_none() {
                facts.put(subject.clone(), item.clone());
            }
        }
        put_limits(&mut facts, limits);
        facts
    }
}

/// What this client can't see; nothing where it sees all.
fn put_limits(facts: &mut Facts, limits: BTreeSet<String>) {
    let limits: Vec<String> = limits.into_iter().collect();
    let client = Collector { name: CLIENT.to_owned(), limits, ..Collector::default() };
    if client.limits.is_empty() {
        facts.remove(&client.to_item().0);
    } else {
        put(facts, &client);
    }
}

/// Answer to `update_state`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Updated {
    Updated { snapshot: String, state_id: u64, changes: Vec<String> },
    NoChanges,
}

/// Answer to `GET /api/v1/snapshots`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Snapshots {
    pub current: Option<String>,
    pub history: Vec<String>,
}

/// Answer to `GET /api/v1/status` once there is a state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Status {
    pub status: String,
    pub vm_name: String,
    pub vm_ip: Option<String>,
    pub vm_running: bool,
    pub current_snapshot: Option<String>,
    pub snapshot_count: usize,
}

/// Reads a body of `update_state`.
///
/// # Errors
/// When it is empty, not JSON, not an object of the expected lists, or names no legal host.
pub fn parse(body: &[u8], redactor: &Redactor) -> Result<State, Error> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(Error::Empty);
    }
    let tree = json::parse(body)?;
    let Value::Object(top) = &tree else {
        return Err(Error::Type { field: "the body".to_owned(), expected: "a JSON object" });
    };
    if top.is_empty() {
        return Err(Error::Empty);
    }
    let hardware = match top.get("hardware") {
        None | Some(Value::Null) => &Value::Null,
        Some(object @ Value::Object(_)) => object,
        Some(_) => {
            return Err(Error::Type { field: "hardware".to_owned(), expected: "an object" });
        }
    };
    let host = match hardware.get("hostname") {
        None | Some(Value::Null) => UNNAMED.to_owned(),
        Some(_) => text(hardware, "hostname").ok_or_else(|| Error::Type {
            field: "hardware.hostname".to_owned(),
            expected: "a text that names it",
        })?,
    };
    let host = HostId::new(&host)?;
    let mut facts = Facts::default();
    let services = list(top.get("services"), "services")?;
    for one in services.unwrap_or_default() {
        service(one, redactor, &mut facts);
    }
    let mut grouped: BTreeMap<String, Process> = BTreeMap::new();
    let processes = list(top.get("processes"), "processes")?;
    for one in processes.unwrap_or_default() {
        process(one, redactor, &mut grouped);
    }
    for process in grouped.values() {
        put(&mut facts, process);
    }
    for one in [services, processes].into_iter().flatten().flatten() {
        workload(one, &mut facts);
    }
    if !hardware.is_null() {
        machine(hardware, &host, &mut facts);
    }
    let misfits =
        shape::misfits(services.unwrap_or_default(), processes.unwrap_or_default(), hardware);
    put_limits(&mut facts, misfits);
    let mut state = State { host, facts, untold: Vec::new(), untold_fields: Vec::new() };
    state.leave_out(services.is_some(), processes.is_some(), hardware);
    Ok(state)
}

/// A part of an object, unless it is null.
fn told<'v>(object: &'v Value, name: &str) -> Option<&'v Value> {
    object.get(name).filter(|value| !value.is_null())
}

/// `None` when the client says nothing of it.
fn list<'v>(value: Option<&'v Value>, field: &str) -> Result<Option<&'v [Value]>, Error> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(list)) if list.iter().all(Value::is_object) => Ok(Some(list)),
        Some(_) => Err(Error::Type { field: field.to_owned(), expected: "a list of objects" }),
    }
}

fn put<T: Entity>(facts: &mut Facts, entity: &T) {
    let (subject, fields) = entity.to_item();
    facts.put(subject, Item::new(&fields));
}

/// A text, or a number as text; control characters are made visible by whoever prints.
fn text(object: &Value, name: &str) -> Option<String> {
    match object.get(name)? {
        Value::String(s) if !s.is_empty() => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        _ => None,
    }
}

/// A whole number, also when it came as text or as a fraction; one that is beyond what a number
/// can be here is taken for absent, as other nonsense is.
fn int(object: &Value, name: &str) -> Option<i64> {
    /// Up to here every whole number is exact as a fraction, too.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match object.get(name)? {
        #[expect(clippy::cast_possible_truncation, reason = "looked at before")]
        Value::Number(n) => {
            n.as_i64().or_else(|| n.as_f64().filter(|f| f.abs() <= EXACT).map(|f| f as i64))
        }
        Value::String(s) => s.trim().parse().ok(),
        _ => None,
    }
}

/// Words given as a list, or as one text.
fn words(object: &Value, name: &str) -> Vec<String> {
    match object.get(name) {
        Some(Value::Array(list)) => list.iter().filter_map(as_text).collect(),
        Some(Value::String(s)) => s.split_whitespace().map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(s) => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        _ => None,
    }
}

/// `{"A": "x"}`, `["A=x"]` or `[{"name": "A", "value": "x"}]`.
fn environment(object: &Value, redactor: &Redactor) -> BTreeMap<String, String> {
    let pairs: Vec<(String, String)> = match object.get("environment") {
        Some(Value::Object(map)) => {
            map.iter().filter_map(|(k, v)| Some((k.clone(), as_text(v)?))).collect()
        }
        Some(Value::Array(list)) => list
            .iter()
            .filter_map(|one| match one {
                Value::String(s) => s.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())),
                _ => Some((text(one, "name")?, text(one, "value").unwrap_or_default())),
            })
            .collect(),
        _ => Vec::new(),
    };
    pairs.into_iter().map(|(k, v)| (k.clone(), redactor.environment(&k, &v))).collect()
}

/// What a service is.
enum Service {
    Container(String),
    /// A unit of systemd.
    Unit(String),
}

/// `None` when its name is none, or not one that such a thing can have.
fn service_of(one: &Value) -> Option<Service> {
    let name = text(one, "name")?;
    if text(one, "type").as_deref() == Some("docker") {
        return Some(Service::Container(name));
    }
    let id = if model::unit_name_is_valid(&name) { name } else { format!("{name}.service") };
    model::unit_name_is_valid(&id).then_some(Service::Unit(id))
}

fn service(one: &Value, redactor: &Redactor, facts: &mut Facts) {
    let id = match service_of(one) {
        Some(Service::Unit(id)) => id,
        Some(Service::Container(name)) => return put(facts, &container(one, name, redactor)),
        None => return,
    };
    let status = text(one, "status").unwrap_or_default();
    put(
        facts,
        &Unit {
            id,
            load_state: "loaded".into(),
            active_state: match status.as_str() {
                "running" => "active".into(),
                "stopped" | "exited" => "inactive".into(),
                _ => status,
            },
            main_pid: int(one, "pid").filter(|&pid| pid > 0),
            restart: text(one, "restart_policy"),
            environment: environment(one, redactor),
            ..Unit::default()
        },
    );
}

fn container(one: &Value, name: String, redactor: &Redactor) -> Container {
    Container {
        name,
        container_id: text(one, "id").unwrap_or_default(),
        image: text(one, "image").map(|image| redactor.text(&image)).unwrap_or_default(),
        state: text(one, "status").map(container_state).unwrap_or_default(),
        pid: int(one, "pid").filter(|&pid| pid > 0),
        ports: ports(one),
        mounts: volumes(one),
        environment: environment(one, redactor),
        links: words(one, "links"),
        restart_policy: text(one, "restart_policy"),
        ..Container::default()
    }
}

/// The state alone of what Docker tells people: `Up 5 minutes` would be a change every minute.
fn container_state(status: String) -> String {
    let states = [
        ("Up", "running"),
        ("Exited", "exited"),
        ("Restarting", "restarting"),
        ("Created", "created"),
        ("Dead", "dead"),
    ];
    let word = status.split_whitespace().next().unwrap_or_default();
    if word == "Up" && status.ends_with("(Paused)") {
        return "paused".to_owned();
    }
    let known = states.into_iter().find(|(begin, _)| *begin == word);
    known.map_or(status, |(_, state)| state.to_owned())
}

/// What the client itself says runs a language model.
fn workload(one: &Value, facts: &mut Facts) {
    let (Some(Value::Bool(true)), Some(name)) = (one.get("is_llm_related"), text(one, "name"))
    else {
        return;
    };
    put(
        facts,
        &Workload {
            id: name.clone(),
            name,
            runtime: "unknown".to_owned(),
            evidence: vec!["the client says is_llm_related".to_owned()],
            ..Workload::default()
        },
    );
}

/// `{container_port: 3306 | "3306/tcp", host_port, host_ip}`, or texts as they are.
fn ports(one: &Value) -> Vec<String> {
    let Some(Value::Array(list)) = one.get("ports") else { return Vec::new() };
    let port = |value: &Value| -> Option<String> {
        if let Some(text) = as_text(value) {
            return Some(text);
        }
        let inner = text(value, "container_port")?;
        let inner = if inner.contains('/') { inner } else { format!("{inner}/tcp") };
        Some(match (text(value, "host_ip"), text(value, "host_port")) {
            (Some(address), Some(outer)) => format!("{address}:{outer}->{inner}"),
            (None, Some(outer)) => format!("0.0.0.0:{outer}->{inner}"),
            (_, None) => inner,
        })
    };
    let mut ports: Vec<String> = list.iter().filter_map(port).collect();
    ports.sort();
    ports
}

fn volumes(one: &Value) -> Vec<String> {
    let Some(Value::Array(list)) = one.get("volumes") else { return Vec::new() };
    let volume = |value: &Value| -> Option<String> {
        if let Some(text) = as_text(value) {
            return Some(mount(&text));
        }
        let destination = text(value, "destination").or_else(|| text(value, "target"))?;
        let source = text(value, "source").unwrap_or_default();
        let mode = match value.get("read_only") {
            Some(Value::Bool(true)) => " ro",
            _ => "",
        };
        Some(format!("bind {source} -> {destination}{mode}"))
    };
    list.iter().filter_map(volume).collect()
}

/// `/src:/dst:ro` as Docker is told it, `data:/dst` for a volume; what is neither stays as it is.
fn mount(text: &str) -> String {
    let mut parts = text.splitn(3, ':');
    let (Some(source), Some(destination)) = (parts.next(), parts.next()) else {
        return text.to_owned();
    };
    if source.is_empty() || !destination.starts_with('/') {
        return text.to_owned();
    }
    let kind = if source.starts_with('/') { "bind" } else { "volume" };
    let mut options = parts.next().unwrap_or_default().split(',');
    let access = if options.any(|option| option == "ro") { " ro" } else { "" };
    format!("{kind} {source} -> {destination}{access}")
}

fn process(one: &Value, redactor: &Redactor, processes: &mut BTreeMap<String, Process>) {
    let Some(name) = text(one, "name") else { return };
    let arguments = redactor.arguments(&words(one, "cmdline"));
    let user = text(one, "username");
    let pid = int(one, "pid").filter(|&pid| pid > 0);
    let working_directory = text(one, "cwd");
    let key = format!("{name}\0{arguments:?}\0{user:?}\0{working_directory:?}");
    let hash = model::ContentId::of(key.as_bytes()).to_string();
    let id = format!("{name}#{}", hash.get(..8).unwrap_or_default());
    // The first word is what was run, where it says all of it.
    let executable = arguments.first().filter(|word| word.starts_with('/')).cloned();
    let group = processes.entry(id.clone()).or_insert_with(|| Process {
        id,
        name,
        executable,
        arguments,
        user,
        working_directory,
        ..Process::default()
    });
    group.pids.extend(pid);
    group.pids.sort_unstable();
}

fn machine(hardware: &Value, host: &HostId, facts: &mut Facts) {
    put(
        facts,
        &Platform {
            id: "host".into(),
            hostname: host.to_string(),
            distribution: text(hardware, "platform").or_else(|| text(hardware, "os")),
            distribution_version: text(hardware, "platform_version"),
            kernel: text(hardware, "kernel_version"),
            ..Platform::default()
        },
    );
    if let Some(cpu) = told(hardware, "cpu") {
        put(
            facts,
            &Cpu {
                id: "cpu".into(),
                model: text(cpu, "model"),
                logical: int(cpu, "count_logical")
                    .or_else(|| int(cpu, "logical_cores"))
                    .or_else(|| int(cpu, "count")),
                physical: int(cpu, "cores_physical").or_else(|| int(cpu, "physical_cores")),
                ..Cpu::default()
            },
        );
    }
    if let Some(memory) = told(hardware, "memory") {
        put(
            facts,
            &Memory {
                id: "ram".into(),
                total_bytes: gigabytes(memory, "total_gb"),
                ..Memory::default()
            },
        );
        if let Some(total) = gigabytes(memory, "swap_total_gb").filter(|&total| total > 0) {
            put(
                facts,
                &Memory { id: "swap".into(), total_bytes: Some(total), ..Memory::default() },
            );
        }
    }
    for disk in hardware.get("disks").and_then(Value::as_array).into_iter().flatten() {
        let Some(mount_point) = text(disk, "mountpoint") else { continue };
        put(
            facts,
            &Filesystem {
                mount_point,
                device: text(disk, "device").unwrap_or_default(),
                filesystem_type: text(disk, "fstype").unwrap_or_default(),
                size_bytes: gigabytes(disk, "total_gb"),
                ..Filesystem::default()
            },
        );
    }
    for (name, one) in hardware.get("network").and_then(Value::as_object).into_iter().flatten() {
        put(
            facts,
            &Interface {
                name: name.clone(),
                mac: text(one, "mac"),
                addresses: words(one, "addresses"),
                flags: words(one, "flags"),
                ..Interface::default()
            },
        );
    }
}

fn gigabytes(object: &Value, name: &str) -> Option<i64> {
    size_of(object.get(name)?)
}

/// Bytes of so many gigabytes, unless that is beyond what a number can be here.
fn size_of(value: &Value) -> Option<i64> {
    /// 2^63.
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    let gigabytes: f64 = match value {
        Value::Number(n) => n.as_f64()?,
        Value::String(s) => s.trim().parse().ok()?,
        _ => return None,
    };
    let bytes = (gigabytes * f64::from(1_u32 << 30)).round();
    #[expect(clippy::cast_possible_truncation, reason = "looked at before")]
    (0.0..BEYOND).contains(&bytes).then_some(bytes as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn redactor() -> Redactor {
        Redactor::new([0; 32], Vec::new())
    }

    fn check(body: &str, expected: &str) {
        let state = parse(body.as_bytes(), &redactor()).unwrap();
        let items: Vec<String> = state
            .facts
            .iter()
            .map(|(subject, item)| {
                format!("{subject} {:?}", item.fields().keys().collect::<Vec<_>>())
            })
            .collect();
        assert_eq!(format!("{}: {}", state.host, items.join("; ")), expected);
    }

    #[test]
    fn states() {
        check(
            r#"{"services":[],"processes":[],"hardware":{"hostname":"server1"}}"#,
            r#"server1: platform:host ["hostname"]"#,
        );
        check(
            r#"{"services":[{"name":"nginx"}],"novel":{"x":1}}"#,
            r#"unnamed: unit:nginx.service ["load_state"]"#,
        );
        check(
            r#"{"services":[{"name":"db","type":"docker","image":"mysql:8","ports":[{"container_port":"3306/tcp","host_port":"3306"}, 80], "cpu_percent": 9.5}]}"#,
            r#"unnamed: container:db ["image", "ports"]"#,
        );
    }

    #[test]
    fn volumes_and_programs_are_told_as_agents_tell_them() {
        let body = br#"{"services":[{"name":"db","type":"docker","volumes":["/srv:/data:ro,z","data:/v","/anon",
            {"source":"/a","destination":"/b","read_only":true}]}],
            "processes":[{"name":"p","pid":7,"cmdline":["/usr/bin/p","-x"]},{"name":"q","pid":8,"cmdline":["q"]}]}"#;
        let facts = parse(body, &redactor()).unwrap().facts;
        let mounts: Vec<_> = facts.entities::<Container>().flat_map(|one| one.mounts).collect();
        assert_eq!(
            mounts,
            ["bind /srv -> /data ro", "volume data -> /v", "/anon", "bind /a -> /b ro"]
        );
        let programs: Vec<_> = facts.entities::<Process>().map(|one| one.executable).collect();
        assert_eq!(programs, [Some("/usr/bin/p".to_owned()), None]);
    }

    #[test]
    fn numbers_that_are_none_are_absent() {
        for (pid, expected) in [
            ("1e300", None),
            ("99999999999999999999", None),
            ("7.0", Some(7)),
            ("\"7\"", Some(7)),
            ("-1", None),
        ] {
            let body = format!(r#"{{"services":[{{"name":"a","pid":{pid}}}]}}"#);
            let facts = parse(body.as_bytes(), &redactor()).unwrap().facts;
            let pids: Vec<Option<i64>> =
                facts.entities::<Unit>().map(|unit| unit.main_pid).collect();
            assert_eq!(pids, [expected], "{pid}");
        }
    }

    #[test]
    fn what_is_of_another_type_is_said_to_be() {
        let body = br#"{"services":[{"name":"a","pid":"x","environment":3,"ports":[80]},
            {"name":"b","type":"docker","ports":"80","restart_policy":["no"]}],
            "processes":[{"name":"p","pid":7,"cmdline":[1,"a"],"cwd":false}],
            "hardware":{"hostname":"h","cpu":[],"memory":{"total_gb":"lots"},"disks":[{"mountpoint":"/","total_gb":null}]}}"#;
        let state = parse(body, &redactor()).unwrap();
        let told: Vec<Collector> = state.facts.entities().collect();
        assert_eq!(told.len(), 1);
        assert_eq!(
            told[0].limits,
            [
                "hardware.cpu is not an object",
                "hardware.memory.total_gb is not a size that can be",
                "processes[].cwd is not a text",
                "services[].environment is not a map or list",
                "services[].pid is not a whole number",
                "services[].ports is not a list",
                "services[].restart_policy is not a text",
            ]
        );
    }

    fn limits(facts: &Facts) -> Vec<String> {
        facts.entity::<Collector>(CLIENT).map(|client| client.limits).unwrap_or_default()
    }

    #[test]
    fn what_is_said_to_be_does_not_depend_on_the_order() {
        let of = |services: &str| {
            let body = format!(r#"{{"services":[{services}],"processes":[{{"pid":1}}]}}"#);
            parse(body.as_bytes(), &redactor()).unwrap().facts
        };
        let (a, b) = (r#"{"name":"a","pid":[]}"#, r#"{"name":"b"}"#);
        let (bad, none) = (r#"{"name":"x/y","pid":[]}"#, r#"{"name":""}"#);
        let one = of(&[a, b, bad, none].join(","));
        assert_eq!(one, of(&[bad, a, none, bad, b].join(",")));
        assert_eq!(
            limits(&one),
            [
                "processes[].name is missing",
                "services[].name is missing",
                "services[].name is not one a unit can have",
                "services[].pid is not a whole number",
            ]
        );
        let units: Vec<String> = one.entities::<Unit>().map(|unit| unit.id).collect();
        assert_eq!(units, ["a.service", "b.service"]);
        let docker = of(r#"{"name":"x/y","type":"docker"}"#);
        assert_eq!(docker.of_kind(Kind::CONTAINER).count(), 1);
    }

    #[test]
    fn sizes_beyond_what_fits_are_absent() {
        for (size, expected, named) in [
            ("1e308", None, true),
            ("1e999", None, true),
            ("-1", None, true),
            ("8589934592", None, true),
            ("\"NaN\"", None, true),
            ("\"\"", None, false),
            ("7.5", Some(15 << 29), false),
            ("\"2\"", Some(2 << 30), false),
        ] {
            let body = format!(r#"{{"hardware":{{"memory":{{"total_gb":{size}}}}}}}"#);
            let Ok(state) = parse(body.as_bytes(), &redactor()) else {
                // Too large for JSON itself.
                assert_eq!(size, "1e999");
                continue;
            };
            let memory: Memory = state.facts.entity("ram").unwrap();
            assert_eq!(memory.total_bytes, expected, "{size}");
            assert_eq!(!limits(&state.facts).is_empty(), named, "{size}");
        }
    }

    #[test]
    fn what_is_not_told_is_not_gone() {
        let untold = |body: &str| parse(body.as_bytes(), &redactor()).unwrap().untold;
        let parts = [Kind::CPU, Kind::MEMORY, Kind::FILESYSTEM, Kind::INTERFACE];
        let whole = r#""hardware":{"hostname":"a","cpu":{},"memory":{},"disks":[],"network":{}}"#;
        let check = |lists: &str, expected: &[Kind]| {
            assert_eq!(untold(&format!("{{{lists}{whole}}}")), expected, "{lists}");
        };
        let both = [Kind::WORKLOAD, Kind::COLLECTOR];
        check(r#""services":[],"processes":[],"#, &[]);
        check(r#""services":[],"#, &[&[Kind::PROCESS], &both[..]].concat());
        check(r#""processes":[],"#, &[&[Kind::UNIT, Kind::CONTAINER], &both[..]].concat());
        assert_eq!(
            untold(r#"{"services":[],"processes":[],"hardware":{"hostname":"a","cpu":null}}"#),
            parts
        );
        assert_eq!(
            untold(r#"{"services":[],"processes":[]}"#),
            [&[Kind::PLATFORM], &parts[..]].concat()
        );
        assert_eq!(untold(r#"{"hardware":{"hostname":"a"}}"#).len(), 9);
    }

    #[test]
    fn what_is_not_told_stays_with_what_was_said_of_it() {
        let upon =
            |before: &Facts, body: &str| parse(body.as_bytes(), &redactor()).unwrap().upon(before);
        let first = upon(
            &Facts::default(),
            r#"{"services":[{"name":"a","pid":[]}],"processes":[{"name":"ollama","is_llm_related":true,"cwd":[]}],
                "hardware":{"kernel_version":"6","os":[],"cpu":{"model":"m"},"memory":{"total_gb":"x"},"disks":[{"mountpoint":"/"}],"network":{"lo":{}}}}"#,
        );
        assert_eq!(limits(&first).len(), 4);
        assert_eq!(upon(&first, r#"{"novel":1}"#), first);
        // What is told takes the place of what was, and of what was said of it.
        let next = upon(&first, r#"{"services":[{"name":"b"}],"hardware":{"cpu":[],"disks":[]}}"#);
        assert_eq!(
            limits(&next),
            [
                "hardware.cpu is not an object",
                "hardware.memory.total_gb is not a size that can be",
                "processes[].cwd is not a text"
            ]
        );
        let kinds: BTreeSet<Kind> = next.iter().map(|(subject, _)| subject.kind()).collect();
        assert!(!kinds.contains(&Kind::FILESYSTEM) && kinds.contains(&Kind::INTERFACE));
        assert!(kinds.contains(&Kind::WORKLOAD) && kinds.contains(&Kind::MEMORY));
        assert_eq!(next.of_kind(Kind::UNIT).count(), 1);
    }

    #[test]
    fn what_runs_a_language_model_stays_known() {
        let body = br#"{"processes":[{"name":"ollama","is_llm_related":true},{"name":"cat","is_llm_related":false}]}"#;
        let state = parse(body, &redactor()).unwrap();
        let names: Vec<String> =
            state.facts.entities::<Workload>().map(|workload| workload.name).collect();
        assert_eq!(names, ["ollama"]);
    }

    #[test]
    fn volatile_fields_are_no_facts() {
        let one = r#"{"timestamp":1,"services":[{"name":"a","status":"active","uptime_seconds":1,"cpu_percent":1}],"processes":[{"name":"p","pid":3,"cpu_percent":1,"status":"running"}],"hardware":{"hostname":"h","uptime":1,"cpu":{"model":"m","cores_physical":2,"usage_percent":1},"memory":{"total_gb":8,"percent":1}}}"#;
        let two = r#"{"timestamp":2,"services":[{"name":"a","status":"active","uptime_seconds":2,"cpu_percent":2}],"processes":[{"name":"p","pid":3,"cpu_percent":2,"status":"sleeping"}],"hardware":{"hostname":"h","uptime":2,"cpu":{"model":"m","physical_cores":2,"usage_percent":2},"memory":{"total_gb":8.0,"percent":2}}}"#;
        assert_eq!(
            parse(one.as_bytes(), &redactor()).unwrap(),
            parse(two.as_bytes(), &redactor()).unwrap()
        );
    }

    #[test]
    fn errors_are_clear() {
        let check = |body: &[u8], expected: &str| {
            let error = parse(body, &redactor()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(b"", "empty");
        check(b"{}", "empty");
        check(b"[1]", "the body is not a JSON object");
        check(b"{\"services\":{}}", "services is not a list of objects");
        check(b"{\"services\":[1]}", "services is not a list of objects");
        check(b"{\"hardware\":[]}", "hardware is not an object");
        check(b"{\"hardware\":{\"hostname\":[1]}}", "hardware.hostname is not a text");
        check(b"{\"services\":[],\"services\":[]}", "there twice");
        check(b"{\"services\":[", "EOF");
        check(b"{\"a\":\"\xff\"}", "unicode");
        check("[".repeat(100_000).as_bytes(), "recursion");
        check(b"{\"hardware\":{\"hostname\":\"../etc\"}}", "not a host name");
    }

    proptest! {
        #[test]
        fn nothing_panics(body in ".{0,200}") {
            let _either = parse(body.as_bytes(), &redactor());
        }
    }
}
