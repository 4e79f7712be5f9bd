//! Containers and images in the words of an engine's HTTP interface, whoever asks it.

use super::containers::{Container, ContainerName, Image, MADE_FROM, Mount, Port, Word};
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
    /// The name and tag by which an engine that is given it knows it; none where it is known by
    /// its own digest already.
    #[must_use]
    pub fn tag(&self) -> Option<String> {
        let text = self.as_str();
        let is_hexadecimal =
            |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        if self.is_of_registry() || is_hexadecimal(text.strip_prefix("sha256:").unwrap_or(text)) {
            return None;
        }
        let last = text.rsplit('/').next().unwrap_or(text);
        Some(if last.contains(':') { text.to_owned() } else { format!("{text}:latest") })
    }

    /// Whether it is named by a digest of a registry's.
    #[must_use]
    pub fn is_of_registry(&self) -> bool {
        self.as_str().contains('@')
    }

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
            .filter(|(name, _)| !self.inherited.contains(*name))
            .map(|(name, value)| {
                format!("{name}={}", value.as_ref().map_or("", |value| value.as_str()))
            })
            .collect();
        let mut labels: BTreeMap<&str, &str> =
            self.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        labels.extend(self.made_from.as_ref().map(|id| (MADE_FROM, id.as_str())));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_an_image_is_given() {
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(name.parse::<Image>().unwrap().tag().as_deref(), expected, "{name}");
        };
        check("nginx", Some("nginx:latest"));
        check("lab/busybox:1", Some("lab/busybox:1"));
        check("registry:5000/a/b", Some("registry:5000/a/b:latest"));
        check("registry:5000/a/b:2", Some("registry:5000/a/b:2"));
        check(&format!("sha256:{}", "ab".repeat(32)), None);
        check(&"ab".repeat(32), None);
        check(&format!("nginx@sha256:{}", "ab".repeat(32)), None);
    }
}
