//! What the server is told, by its file and its flags; the bridge's keys are understood.
//!
//! Unknown keys are errors that name the nearest known one. Beyond loopback the server listens
//! only when `listen` says so, and then wants tokens.

use crate::listening;
use crate::runs::Limits;
use crate::sync;
use crate::twins::{Settings, TwinsFile};
use crate::vms::{self, InventoryFile};
use serde::Deserialize;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;
use store::Retention;

const DAY: Duration = Duration::from_secs(86_400);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not read the configuration {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{path}: {message}")]
    Form { path: PathBuf, message: String },
    #[error("{key}: {message}{}", from(.path.as_deref()))]
    Value { path: Option<PathBuf>, key: &'static str, message: String },
}

/// A value may come from the file or from a flag that was laid over it.
fn from(path: Option<&Path>) -> String {
    path.map_or_else(String::new, |path| format!(" (from {} or the flags)", path.display()))
}

/// The file as written. Every key is optional.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct File {
    /// Where this was read.
    #[serde(skip)]
    pub path: Option<PathBuf>,
    pub data_dir: Option<PathBuf>,
    /// `HOST:PORT`, one or several.
    pub listen: Option<Vec<String>>,
    /// Names under which the server may be asked for beside its addresses.
    pub server_names: Vec<String>,
    /// Ask for tokens also on loopback.
    pub require_tokens: Option<bool>,
    /// At once, over all addresses.
    pub max_connections: Option<usize>,
    pub retention: RetentionFile,
    pub runs: RunsFile,
    pub twins: TwinsFile,
    pub inventory: InventoryFile,
    /// `sync.yaml`: which vSpheres are followed, and who is told.
    pub sync: Option<PathBuf>,
    pub log_level: Option<String>,
    pub log_file: Option<PathBuf>,
    pub max_snapshots: Option<usize>,
    /// The bridge's name for its machine.
    pub vm_name: Option<String>,
    /// Who SSH gets into twins as.
    pub vm_user: Option<String>,
    /// Of the daemon, where `twins.hypervisor` is `libvirt`.
    pub libvirt_uri: Option<String>,
    /// What Ansible plays, where `twins.apply` is `ansible`, if it is not ours.
    pub ansible_playbook: Option<PathBuf>,
    // Keys of the bridge's file that speak of its machine: understood, and without effect:
    // twins have keys of their own.
    pub vm_password: Option<String>,
    pub vm_key_path: Option<PathBuf>,
    pub ansible_inventory: Option<PathBuf>,
    pub state_dir: Option<PathBuf>,
    pub templates_dir: Option<PathBuf>,
    pub bridge_url: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetentionFile {
    pub full_days: Option<u32>,
    pub keep_days: Option<u32>,
    pub load_hours: Option<u32>,
    pub load_days: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunsFile {
    pub keep: Option<usize>,
    pub keep_days: Option<u32>,
    pub log_mb: Option<usize>,
    pub at_once: Option<usize>,
    pub followers: Option<usize>,
}

impl RunsFile {
    fn check(&self) -> Result<Limits, &'static str> {
        let defaults = Limits::default();
        let limits = Limits {
            keep: self.keep.unwrap_or(defaults.keep),
            keep_for: self.keep_days.map_or(defaults.keep_for, |days| DAY * days),
            log_bytes: self.log_mb.map_or(defaults.log_bytes, |mb| mb.saturating_mul(1 << 20)),
            at_once: self.at_once.unwrap_or(defaults.at_once),
            followers: self.followers.unwrap_or(defaults.followers),
            ..defaults
        };
        match &limits {
            Limits { keep: 0, .. } => Err("keep is at least 1"),
            Limits { log_bytes, .. } if !(1 << 20..=1 << 30).contains(log_bytes) => {
                Err("log_mb is between 1 and 1024")
            }
            Limits { at_once, .. } if !(1..=64).contains(at_once) => {
                Err("at_once is between 1 and 64")
            }
            Limits { followers: 0, .. } => Err("followers is at least 1"),
            _ => Ok(limits),
        }
    }
}

/// Checked, complete.
#[derive(Debug, Clone)]
pub struct Config {
    pub data_dir: PathBuf,
    pub listen: Vec<SocketAddr>,
    pub server_names: Vec<String>,
    pub tokens_required: bool,
    pub connections: listening::Limits,
    pub retention: Retention,
    pub runs: Limits,
    pub max_snapshots: usize,
    pub twins: Settings,
    pub inventory: vms::Settings,
    pub sync: Option<sync::Settings>,
    pub vm_name: String,
}

/// Where the file is looked for when none is named, the first that is there. The bridge's are
/// read where there is none of ours.
#[must_use]
pub fn default_files() -> Vec<PathBuf> {
    let mut files = vec![api::places::configuration().join("twin.yaml")];
    if rustix::process::geteuid().is_root() {
        files.push("/etc/digital-twin/vm-bridge.yaml".into());
        files.push("/etc/vm-bridge.yaml".into());
    }
    files
}

impl File {
    /// Reads a file. One that was not asked for by name may be missing.
    ///
    /// # Errors
    /// When it can't be read or has another form.
    pub fn read(path: &Path, asked_for: bool) -> Result<Self, Error> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound && !asked_for => {
                Ok(Self::default())
            }
            Err(source) => Err(Error::Read { path: path.to_owned(), source }),
        }
        .map(|file| Self { path: Some(path.to_owned()), ..file })
    }

    /// # Errors
    /// When the text is not YAML of the known keys.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(text).map_err(|error| Error::Form {
            path: path.to_owned(),
            message: model::keys::fault(&error.to_string(), text),
        })
    }

    /// Checks everything and fills in what is not said.
    ///
    /// # Errors
    /// When a value is out of range.
    pub fn check(self) -> Result<Config, Error> {
        let path = self.path;
        let wrong = |key, message| Error::Value { path: path.clone(), key, message };
        let listen = match &self.listen {
            None => vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), api::DEFAULT_PORT)],
            Some(texts) => {
                let found: Result<Vec<_>, _> = texts.iter().map(|text| addresses(text)).collect();
                found.map_err(|message| wrong("listen", message))?.concat()
            }
        };
        if listen.is_empty() {
            return Err(wrong("listen", "names no address; leave it out for loopback".to_owned()));
        }
        let beyond = listen.iter().any(|address| !address.ip().is_loopback());
        let defaults = Retention::default();
        let retention = Retention {
            full_days: self.retention.full_days.unwrap_or(defaults.full_days),
            keep_days: self.retention.keep_days.unwrap_or(defaults.keep_days),
            load_hours: self.retention.load_hours.unwrap_or(defaults.load_hours),
            load_days: self.retention.load_days.unwrap_or(defaults.load_days),
        };
        if retention.full_days == 0 || retention.keep_days < retention.full_days {
            let message = "full_days is at least 1, and keep_days at least full_days".to_owned();
            return Err(wrong("retention", message));
        }
        let connections = listening::Limits::default();
        let connections = listening::Limits {
            connections: self.max_connections.unwrap_or(connections.connections),
            ..connections
        };
        if connections.connections == 0 {
            return Err(wrong("max_connections", "at least 1".to_owned()));
        }
        let runs = self.runs.check().map_err(|message| wrong("runs", message.to_owned()))?;
        let max_snapshots = self.max_snapshots.unwrap_or(10);
        if max_snapshots < 2 {
            let message = "at least 2: base_state and the current one always stay".to_owned();
            return Err(wrong("max_snapshots", message));
        }
        let twins =
            self.twins.check(self.vm_user.as_deref(), self.libvirt_uri.as_deref(), max_snapshots);
        let mut twins = twins.map_err(|(key, message)| wrong(key, message))?;
        twins.playbook = self.ansible_playbook;
        let inventory = self.inventory.check().map_err(|message| wrong("inventory", message))?;
        let sync = self.sync.as_deref().map(sync::Settings::read).transpose()?;
        Ok(Config {
            data_dir: self.data_dir.unwrap_or_else(api::places::data),
            listen,
            server_names: self.server_names,
            tokens_required: beyond || self.require_tokens.unwrap_or(false),
            connections,
            retention,
            runs,
            max_snapshots,
            twins,
            inventory,
            sync,
            vm_name: self.vm_name.unwrap_or_else(|| "digital-twin".to_owned()),
        })
    }
}

/// The addresses that `HOST:PORT`, `HOST` or `:PORT` stands for.
fn addresses(text: &str) -> Result<Vec<SocketAddr>, String> {
    let wrong = || format!("{text:?} is not an address; write HOST:PORT, as 127.0.0.1:8470");
    let with_port = match text.parse::<IpAddr>() {
        Ok(ip) => return Ok(vec![SocketAddr::new(ip, api::DEFAULT_PORT)]),
        Err(_) if text.starts_with(':') => format!("127.0.0.1{text}"),
        Err(_) if text.contains(':') => text.to_owned(),
        Err(_) => format!("{text}:{}", api::DEFAULT_PORT),
    };
    let found: Vec<SocketAddr> = with_port.to_socket_addrs().map_err(|_resolve| wrong())?.collect();
    if found.is_empty() { Err(wrong()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let result = File::parse(text, Path::new("twin.yaml")).and_then(File::check);
        let shown = match result {
            Ok(config) => format!("{:?} tokens={}", config.listen, config.tokens_required),
            Err(error) => error.to_string(),
        };
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn configurations() {
        check("", "[127.0.0.1:8470] tokens=false");
        check("listen: [0.0.0.0:5678, '127.0.0.1:1']", "[0.0.0.0:5678, 127.0.0.1:1] tokens=true");
        check("listen: [':5678']", "[127.0.0.1:5678] tokens=false");
        check("require_tokens: true", "tokens=true");
        check(
            "vm_name: x\nlibvirt_uri: qemu:///system\nvm_user: u\nvm_password: p\nvm_key_path: /k\nansible_inventory: /i\nansible_playbook: /p\nstate_dir: /s\ntemplates_dir: /t\nmax_snapshots: 5\nbridge_url: http://x\n",
            "[127.0.0.1:8470]",
        );
        check("listn: [x]", "\"listn\" is no key; did you mean \"listen\"?");
        check("retention: {full_day: 3}", "did you mean \"full_days\"?");
        check("retention: {full_days: 30, keep_days: 3}", "keep_days at least full_days");
        check("max_snapshots: 1", "at least 2");
        check("max_connections: 0", "max_connections: at least 1");
        check("runs: {keep: 5, keep_days: 1, log_mb: 2, at_once: 1}", "tokens=false");
        check("runs: {at_once: 0}", "runs: at_once is between 1 and 64");
        check("runs: {log_mb: 5000000000}", "runs: log_mb is between 1 and 1024");
        check("runs: {keep_day: 3}", "did you mean \"keep_days\"?");
        check("twins: {image: debian, memory_mb: 2048, network: nat}", "tokens=false");
        check("twins: {follow: false, snapshot_before: disk}", "tokens=false");
        check("twins: {snapshot_before: often}", "twin.yaml: line 1");
        check("twins: {imag: debian}", "did you mean \"image\"?");
        check("twins: {memory_mb: 3}", "twins: memory_mb is an even number");
        check("twins: {network: bridged}", "twin.yaml: line 1");
        check("inventory: {breaker_share: 30, stale_after_seconds: 60}", "tokens=false");
        check("inventory: {breaker_share: 0}", "inventory: breaker_share is a percentage");
        check("inventory: {breaker_count: 0}", "inventory: breaker_count is at least 1");
        check("inventory: {stale_after_seconds: 1}", "stale_after_seconds is between 5 and");
        check("inventory: {breaker_shar: 30}", "did you mean \"breaker_share\"?");
        check("vm_user: 'a b'", "vm_user: \"a b\" is not a user name");
        check("listen: ['nonsense:99999']", "is not an address");
        check("listen: {", "twin.yaml:");
        check("listen: []", "listen: names no address");
        check("max_snapshots: x", "twin.yaml: line 1, \"max_snapshots: x\": ");
        check("vm_name: a\nvm_name: b", "twin.yaml: line 2, \"vm_name: b\": duplicate mapping key");
    }
}
