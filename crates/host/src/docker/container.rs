//! Turns what Docker says of a container into a container of the model. Pure.
//!
//! # Invariants
//! - Any field may be missing or null: then it is absent.
//! - Ports are those somebody asked for; ones that Docker chose are added while it runs.

use crate::text::{printable, printable_lines};
use model::Time;
use model::entity::Container;
use model::redact::Redactor;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What Docker calls what a container can be made with, `docker run`, and what it is for most.
const OPTIONS: [(&str, &str, &[&str]); 24] = [
    ("CapAdd", "cap-add", &[]),
    ("CapDrop", "cap-drop", &[]),
    ("CgroupParent", "cgroup-parent", &[]),
    ("CpuShares", "cpu-shares", &[]),
    ("CpusetCpus", "cpuset-cpus", &[]),
    ("DeviceRequests", "gpus", &[]),
    ("Devices", "device", &[]),
    ("Dns", "dns", &[]),
    ("DnsOptions", "dns-option", &[]),
    ("DnsSearch", "dns-search", &[]),
    ("ExtraHosts", "add-host", &[]),
    ("GroupAdd", "group-add", &[]),
    ("Init", "init", &[]),
    ("IpcMode", "ipc", &["private", "shareable"]),
    ("MemoryReservation", "memory-reservation", &[]),
    ("OomKillDisable", "oom-kill-disable", &[]),
    ("PidMode", "pid", &[]),
    ("ReadonlyRootfs", "read-only", &[]),
    ("Runtime", "runtime", &["runc", "io.containerd.runc.v2"]),
    ("SecurityOpt", "security-opt", &[]),
    ("Sysctls", "sysctl", &[]),
    ("Ulimits", "ulimit", &[]),
    ("UsernsMode", "userns", &[]),
    ("VolumesFrom", "volumes-from", &[]),
];

/// One line of the list of containers.
#[derive(Debug, Deserialize)]
pub(super) struct Summary {
    #[serde(rename = "Id")]
    pub(super) id: String,
    #[serde(rename = "Names", default, deserialize_with = "or_default")]
    names: Vec<String>,
}

impl Summary {
    /// Its own name, which the container has as well. Others are those of links to it.
    pub(super) fn name(&self) -> String {
        let names = self.names.iter().map(|name| name.strip_prefix('/').unwrap_or(name));
        let name = names.filter(|name| !name.is_empty()).find(|name| !name.contains('/'));
        printable(name.unwrap_or(&self.id).as_bytes())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Image {
    #[serde(deserialize_with = "or_default")]
    id: String,
    #[serde(deserialize_with = "or_default")]
    repo_digests: Vec<String>,
    size: Option<u64>,
    #[serde(deserialize_with = "or_default")]
    config: ImageConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct ImageConfig {
    #[serde(deserialize_with = "or_default")]
    env: Vec<String>,
}

impl Image {
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Bytes of its layers, as far as the engine knows.
    pub(super) fn bytes(&self) -> u64 {
        self.size.unwrap_or_default()
    }

    /// One of which nothing else is known.
    pub(super) fn of_id(id: &str) -> Self {
        Self { id: id.to_owned(), ..Self::default() }
    }

    /// `sha256:…`, by which the registry knows it.
    pub(super) fn digest(&self) -> Option<String> {
        let mut digests: Vec<&str> =
            self.repo_digests.iter().filter_map(|name| Some(name.split_once('@')?.1)).collect();
        digests.sort_unstable();
        digests.first().map(|digest| printable(digest.as_bytes()))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct Inspected {
    #[serde(deserialize_with = "or_default")]
    id: String,
    #[serde(deserialize_with = "or_default")]
    name: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) image: String,
    created: Option<String>,
    restart_count: Option<i64>,
    #[serde(deserialize_with = "or_default")]
    state: State,
    #[serde(deserialize_with = "or_default")]
    config: Config,
    #[serde(deserialize_with = "or_default")]
    host_config: HostConfig,
    #[serde(deserialize_with = "or_default")]
    network_settings: NetworkSettings,
    #[serde(deserialize_with = "or_default")]
    mounts: Vec<Mount>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct State {
    status: Option<String>,
    pid: Option<i64>,
    exit_code: Option<i64>,
    started_at: Option<String>,
    health: Option<Health>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Health {
    status: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Config {
    image: Option<String>,
    hostname: Option<String>,
    user: Option<String>,
    working_dir: Option<String>,
    #[serde(deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "words")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "words")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct HostConfig {
    memory: Option<i64>,
    nano_cpus: Option<i64>,
    cpu_quota: Option<i64>,
    cpu_period: Option<i64>,
    privileged: Option<bool>,
    #[serde(deserialize_with = "or_default")]
    restart_policy: RestartPolicy,
    #[serde(deserialize_with = "or_default")]
    links: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    tmpfs: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    port_bindings: Ports,
    network_mode: Option<String>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct RestartPolicy {
    name: Option<String>,
    maximum_retry_count: Option<i64>,
}

/// By `80/tcp`.
type Ports = BTreeMap<String, Option<Vec<Binding>>>;

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Binding {
    host_ip: Option<String>,
    host_port: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct NetworkSettings {
    #[serde(deserialize_with = "or_default")]
    ports: Ports,
    #[serde(deserialize_with = "or_default")]
    networks: BTreeMap<String, Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Mount {
    #[serde(rename = "Type")]
    kind: Option<String>,
    name: Option<String>,
    source: Option<String>,
    destination: Option<String>,
    #[serde(rename = "RW")]
    writable: Option<bool>,
}

impl Inspected {
    /// The id of the image it was made from, if that was asked for by this name.
    pub(super) fn made_from(&self, name: &str) -> Option<&str> {
        (self.config.image.as_deref() == Some(name)).then_some(self.image.as_str())
    }
}

/// Null is as good as missing.
fn or_default<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// A list of words; some engines write a single word as itself.
fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        Many(Vec<String>),
        One(String),
    }
    Ok(match Option::deserialize(deserializer)? {
        Some(Words::Many(words)) => words,
        Some(Words::One(word)) => vec![word],
        None => Vec::new(),
    })
}

pub(super) fn container(seen: Inspected, image: Option<&Image>, redactor: &Redactor) -> Container {
    // Its id where it is in no registry.
    let image_digest = image.map(|image| image.digest().unwrap_or_else(|| seen.image.clone()));
    let of_image = image.map(|image| &*image.config.env).unwrap_or_default();
    let (entrypoint, command) = command(&seen.config, redactor);
    let options = options(&seen.host_config, &seen.config, &seen.id);
    let ports = ports(&seen.host_config.port_bindings, &seen.network_settings.ports);
    let text = |text: Option<String>| {
        text.filter(|text| !text.is_empty()).map(|text| printable(text.as_bytes()))
    };
    let state = text(seen.state.status).unwrap_or_default();
    let ended = ["exited", "dead"].contains(&state.as_str());
    let name = seen.name.strip_prefix('/').unwrap_or(&seen.name);
    Container {
        name: printable(if name.is_empty() { seen.id.as_bytes() } else { name.as_bytes() }),
        container_id: printable(seen.id.as_bytes()),
        image: text(seen.config.image).unwrap_or_default(),
        image_digest,
        image_id: text(Some(seen.image)),
        health: seen.state.health.and_then(|health| text(health.status)).filter(|h| h != "none"),
        exit_code: seen.state.exit_code.filter(|_| ended),
        pid: seen.state.pid.filter(|&pid| pid > 0),
        started_at: time(seen.state.started_at.as_deref()),
        created_at: time(seen.created.as_deref()),
        command,
        entrypoint,
        user: text(seen.config.user),
        working_directory: text(seen.config.working_dir),
        ports,
        mounts: mounts(&seen.mounts, &seen.host_config.tmpfs),
        environment: environment(&seen.config.env, redactor),
        inherited: inherited(&seen.config.env, of_image),
        networks: networks(&seen.host_config, &seen.network_settings),
        options,
        labels: labels(&seen.config.labels, redactor),
        links: seen.host_config.links.iter().map(|link| self::link(link)).collect(),
        restart_policy: restart_policy(&seen.host_config.restart_policy),
        restarts: seen.restart_count,
        memory_limit_bytes: seen.host_config.memory.filter(|&bytes| bytes > 0),
        cpu_limit_millis: cpu_limit_millis(
            seen.host_config.nano_cpus,
            seen.host_config.cpu_quota,
            seen.host_config.cpu_period,
        ),
        privileged: seen.host_config.privileged.unwrap_or(false),
        state,
    }
}

/// Docker writes year 1 for "never".
fn time(text: Option<&str>) -> Option<Time> {
    text?.parse().ok().filter(|time: &Time| time.0 > 0)
}

/// Entry point and command are one command line: the redactor must see the program's name.
fn command(config: &Config, redactor: &Redactor) -> (Vec<String>, Vec<String>) {
    let line = config.entrypoint.iter().chain(&config.cmd);
    let line: Vec<String> = line.map(|word| printable_lines(word.as_bytes())).collect();
    let mut entrypoint = redactor.arguments(&line);
    let command = entrypoint.split_off(config.entrypoint.len().min(entrypoint.len()));
    (entrypoint, command)
}

fn environment(assignments: &[String], redactor: &Redactor) -> BTreeMap<String, String> {
    let pair = |assignment: &String| {
        let (name, value) = assignment.split_once('=')?;
        let name = printable(name.as_bytes());
        let value = redactor.environment(&name, value);
        Some((name, printable(value.as_bytes())))
    };
    assignments.iter().filter_map(pair).collect()
}

/// Variables that nobody set for it: they are as its image has them.
fn inherited(assignments: &[String], of_image: &[String]) -> Vec<String> {
    let same = assignments.iter().filter(|assignment| of_image.contains(assignment));
    let names = same.filter_map(|assignment| Some(assignment.split_once('=')?.0));
    names.map(|name| printable(name.as_bytes())).collect::<BTreeSet<_>>().into_iter().collect()
}

/// One that is in the network of another has none itself, and names that.
fn networks(made: &HostConfig, settings: &NetworkSettings) -> Vec<String> {
    let of_another = made.network_mode.as_deref().filter(|mode| mode.starts_with("container:"));
    let own = settings.networks.keys().map(String::as_str);
    let all: BTreeSet<_> = own.chain(of_another).map(|name| printable(name.as_bytes())).collect();
    all.into_iter().collect()
}

/// What it was made with that the fields of a container don't have, as `docker run` calls it.
fn options(made: &HostConfig, config: &Config, id: &str) -> Vec<String> {
    let is_set = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) => true,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    };
    let set = OPTIONS.iter().filter(|(key, ..)| made.rest.get(*key).is_some_and(is_set));
    let mut options: BTreeSet<&str> = set
        .filter(|(key, _, usual)| {
            let text = made.rest.get(*key).and_then(Value::as_str);
            !text.is_some_and(|text| usual.contains(&text))
        })
        .map(|(_, option, _)| *option)
        .collect();
    // One that nobody named is called after its id.
    let hostname = config.hostname.as_deref().unwrap_or_default();
    if !hostname.is_empty()
        && !id.starts_with(hostname)
        && made.network_mode.as_deref() != Some("host")
    {
        options.insert("hostname");
    }
    options.into_iter().map(str::to_owned).collect()
}

/// A label is judged like a line of a configuration file, so that its name counts.
fn labels(labels: &BTreeMap<String, String>, redactor: &Redactor) -> BTreeMap<String, String> {
    let label = |(name, value): (&String, &String)| {
        let name = printable(name.as_bytes());
        let line = redactor.text(&format!("{name}={value}"));
        let value = match line.strip_prefix(&format!("{name}=")) {
            Some(value) => printable_lines(value.as_bytes()),
            None => redactor.mark(value),
        };
        (name, value)
    };
    labels.iter().map(label).collect()
}

fn ports(declared: &Ports, actual: &Ports) -> Vec<String> {
    let mut ports = BTreeSet::new();
    let is_fixed = |binding: &Binding| {
        binding.host_port.as_deref().is_some_and(|port| !port.is_empty() && port != "0")
    };
    let shown = |port: &str, binding: &Binding| {
        let ip = binding.host_ip.as_deref().filter(|ip| !ip.is_empty()).unwrap_or("0.0.0.0");
        let ip = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        let host_port = binding.host_port.as_deref().unwrap_or_default();
        printable(format!("{ip}:{host_port}->{port}").as_bytes())
    };
    let bindings = |ports: &Ports| -> Vec<(String, Binding)> {
        let all = ports.iter().flat_map(|(port, bindings)| {
            bindings.iter().flatten().map(|binding| (port.clone(), binding.clone()))
        });
        all.collect()
    };
    let mut settled = BTreeSet::new();
    for (port, binding) in bindings(declared) {
        if is_fixed(&binding) {
            ports.insert(shown(&port, &binding));
            settled.insert(port);
        }
    }
    for (port, binding) in bindings(actual) {
        if !settled.contains(&port) && is_fixed(&binding) {
            ports.insert(shown(&port, &binding));
        }
    }
    ports.into_iter().collect()
}

fn mounts(mounts: &[Mount], tmpfs: &BTreeMap<String, String>) -> Vec<String> {
    let tmpfs = tmpfs.keys().map(|path| printable(format!("tmpfs -> {path}").as_bytes()));
    let all: BTreeSet<String> = mounts.iter().filter_map(mount).chain(tmpfs).collect();
    all.into_iter().collect()
}

/// `bind /src -> /dst ro`; of a volume its name.
fn mount(mount: &Mount) -> Option<String> {
    let kind = mount.kind.as_deref().unwrap_or("bind");
    let name = mount.name.as_deref().filter(|name| !name.is_empty());
    let source = name.or(mount.source.as_deref()).unwrap_or_default();
    let destination = mount.destination.as_deref()?;
    let access = if mount.writable.unwrap_or(true) { "" } else { " ro" };
    let source = if source.is_empty() { String::new() } else { format!(" {source}") };
    Some(printable(format!("{kind}{source} -> {destination}{access}").as_bytes()))
}

/// `/redis:/app/cache` is redis, called cache.
fn link(link: &str) -> String {
    let (target, alias) = link.split_once(':').unwrap_or((link, ""));
    let target = target.strip_prefix('/').unwrap_or(target);
    let alias = crate::text::base_name(alias);
    let link = if alias.is_empty() { target.to_owned() } else { format!("{target}:{alias}") };
    printable(link.as_bytes())
}

fn restart_policy(policy: &RestartPolicy) -> Option<String> {
    let name = policy.name.as_deref().filter(|name| !name.is_empty() && *name != "no")?;
    let name = printable(name.as_bytes());
    match policy.maximum_retry_count {
        Some(count) if count > 0 => Some(format!("{name}:{count}")),
        _ => Some(name),
    }
}

/// Thousandths of a processor.
fn cpu_limit_millis(nano: Option<i64>, quota: Option<i64>, period: Option<i64>) -> Option<i64> {
    if let Some(nano) = nano.filter(|&nano| nano > 0) {
        return Some(nano / 1_000_000);
    }
    let quota = quota.filter(|&quota| quota > 0)?;
    let period = period.filter(|&period| period > 0).unwrap_or(100_000);
    quota.checked_mul(1000)?.checked_div(period)
}
