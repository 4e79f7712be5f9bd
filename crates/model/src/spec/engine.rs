//! Containers and images in the words of an engine's HTTP interface, whoever asks it.

use super::containers::{Container, ContainerName, Image, Mount, Port, Word};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Networks that every engine has.
const GIVEN: [&str; 3] = ["bridge", "host", "none"];

impl ContainerName {
    /// Whether every engine has a network of this name.
    #[must_use]
    pub fn is_given_network(&self) -> bool {
        GIVEN.contains(&self.as_str())
    }
}

impl Image {
    /// What an engine is asked to POST, to fetch it.
    #[must_use]
    pub fn path_to_fetch(&self) -> String {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
        let escaped: String = self
            .as_str()
            .bytes()
            .map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
            .collect();
        format!("/images/create?fromImage={escaped}")
    }
}

impl Container {
    /// What an engine is told, to create it.
    #[must_use]
    pub fn form(&self) -> Value {
        let texts =
            |words: &[Word]| words.iter().map(|w| w.as_str().to_owned()).collect::<Vec<_>>();
        let inside =
            |port: &Port| format!("{}/{}", port.inside, if port.udp { "udp" } else { "tcp" });
        let mut bindings: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for port in &self.ports {
            let binding =
                json!({"HostIp": port.address.to_string(), "HostPort": port.outside.to_string()});
            bindings.entry(inside(port)).or_default().push(binding);
        }
        let exposed: BTreeMap<String, Value> =
            bindings.keys().map(|port| (port.clone(), json!({}))).collect();
        let environment: Vec<String> = self
            .environment
            .iter()
            .map(|(name, value)| {
                format!("{name}={}", value.as_ref().map_or("", |value| value.as_str()))
            })
            .collect();
        let labels: BTreeMap<&str, &str> =
            self.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let policy = self.restart_policy.as_ref().map_or("no", |policy| policy.as_str());
        let (policy, retries) = policy.split_once(':').unwrap_or((policy, "0"));
        let mut host = json!({
            "PortBindings": bindings,
            "Mounts": self.mounts.iter().map(mount).collect::<Vec<_>>(),
            "RestartPolicy": {"Name": policy, "MaximumRetryCount": retries.parse::<u32>().unwrap_or_default()},
            "Privileged": self.privileged,
            "Memory": self.memory_bytes.unwrap_or_default(),
            "NanoCpus": self.cpu_millis.unwrap_or_default().saturating_mul(1_000_000),
        });
        if let (Some(host), Some(network)) = (host.as_object_mut(), self.networks.first()) {
            host.insert("NetworkMode".to_owned(), network.as_str().into());
        }
        json!({
            "Image": self.image.as_str(),
            "Entrypoint": texts(&self.entrypoint),
            "Cmd": texts(&self.command),
            "User": self.user.as_ref().map_or("", |user| user.as_str()),
            "WorkingDir": self.working_directory.as_ref().map_or("", |place| place.as_str()),
            "Env": environment,
            "Labels": labels,
            "ExposedPorts": exposed,
            "HostConfig": host,
        })
    }
}

fn mount(mount: &Mount) -> Value {
    match mount {
        Mount::Bind { source, destination, read_only } => json!({
            "Type": "bind", "Source": source.as_str(), "Target": destination.as_str(),
            // What is in it is not followed; without it the container would not start.
            "ReadOnly": read_only, "BindOptions": {"CreateMountpoint": true},
        }),
        Mount::Volume { name, destination, read_only } => json!({
            "Type": "volume", "Source": name.as_str(), "Target": destination.as_str(),
            "ReadOnly": read_only,
        }),
        Mount::Memory { destination } => json!({"Type": "tmpfs", "Target": destination.as_str()}),
    }
}
