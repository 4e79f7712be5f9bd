//! `sync.yaml`, as the older sync service has it, with some keys more. Checked here, once.
//!
//! Without `mongodb`, `redis` or an endpoint, nothing is told to that.

use crate::config::Error;
use inventory::Breaker;
use model::HostId;
use serde::Deserialize;
use sinks::{MongoSettings, Policy, RedisSettings};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vsphere::{Password, Requests, Trust};

/// Sources of one server.
const MAX_SOURCES: usize = 256;
/// Where the older service's clients ask, unless it is said.
const DEFAULT_ADDRESS: (&str, u16) = ("127.0.0.1", 4000);

/// As written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    esxi_hosts: Vec<EsxiHost>,
    mongodb: Option<Mongodb>,
    api_server: Option<ApiServer>,
    #[serde(default)]
    sync: Timing,
    #[serde(default)]
    endpoints: EndpointsFile,
    redis: Option<Redis>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct EsxiHost {
    host: String,
    #[serde(default = "https")]
    port: u16,
    username: String,
    password: Secret,
    ca_file: Option<PathBuf>,
    fingerprint: Option<String>,
    #[serde(default = "yes")]
    verify_tls: bool,
    site: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mongodb {
    host: String,
    #[serde(default = "mongo")]
    port: u16,
    username: Option<String>,
    password: Option<Secret>,
    db: String,
    collection: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Redis {
    host: String,
    #[serde(default = "redis")]
    port: u16,
    username: Option<String>,
    password: Option<Secret>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ApiServer {
    host: String,
    port: u16,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Timing {
    interval: Option<u64>,
    timeout: Option<u64>,
    breaker_share: Option<usize>,
    breaker_count: Option<usize>,
    attempts: Option<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct EndpointsFile {
    #[serde(rename = "vm-group-service-rename-vm")]
    group: Option<String>,
    #[serde(rename = "auth-service-rename-vm")]
    auth: Option<String>,
}

/// Never shown.
#[derive(Clone, Deserialize)]
#[serde(transparent)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

fn https() -> u16 {
    443
}

fn mongo() -> u16 {
    27017
}

fn redis() -> u16 {
    6379
}

fn yes() -> bool {
    true
}

/// Checked, complete.
#[derive(Debug, Clone)]
pub struct Settings {
    pub(crate) sources: Vec<Source>,
    pub(crate) mongo: Option<MongoSettings>,
    pub(crate) redis: Option<RedisSettings>,
    /// URLs of the endpoints that are told of renames.
    pub(crate) group: Option<String>,
    pub(crate) auth: Option<String>,
    /// From one full listing to the next.
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
    /// Calls of an endpoint after which a message is given up.
    pub(crate) attempts: u32,
    /// Unless told, that of all sources of VMs.
    pub(crate) breaker: Option<Breaker>,
    /// Where the routes of the older service are.
    pub(crate) address: (String, u16),
}

/// One ESXi host, or one vCenter.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// What it is called in the inventory.
    pub(crate) node: HostId,
    /// As the configuration has it, and the documents.
    pub(crate) address: String,
    /// VMs do not move from one to another.
    pub(crate) site: Option<String>,
    pub(crate) vsphere: vsphere::Settings,
}

impl Settings {
    /// # Errors
    /// When the file can't be read, is not of this form, or has a value that can't be.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// # Errors
    /// When the text is not of this form, or has a value that can't be.
    pub fn parse(text: &str, path: &Path) -> Result<Self, Error> {
        let file: File = serde_saphyr::from_str(text).map_err(|error| Error::Form {
            path: path.to_owned(),
            message: model::keys::fault(&error.to_string(), &without_passwords(text)),
        })?;
        file.check().map_err(|(key, message)| Error::Value {
            path: Some(path.to_owned()),
            key,
            message,
        })
    }

    /// Where the routes of the older service are.
    #[must_use]
    pub fn address(&self) -> (&str, u16) {
        (&self.address.0, self.address.1)
    }

    /// Says what is against good custom, and was asked for.
    pub(crate) fn warn(&self) {
        for source in &self.sources {
            if source.vsphere.trust == Trust::Anybody {
                tracing::warn!(source = %source.node, "verify_tls is false: whoever answers at its address is believed, and gets the password");
            }
        }
        let (host, port) = self.address();
        let is_loopback = host.parse::<IpAddr>().map_or(host == "localhost", |ip| ip.is_loopback());
        if !is_loopback {
            tracing::warn!(
                host,
                port,
                "api_server: anybody who reaches this address may start a sync; the older service's clients have no token"
            );
        }
    }
}

/// The text as it may be shown: of a line with a password nothing that follows its key.
fn without_passwords(text: &str) -> String {
    let shown = |line: &str| match line.split_once("password") {
        Some((before, _)) => format!("{before}password: …\n"),
        None => format!("{line}\n"),
    };
    text.lines().map(shown).collect()
}

type Wrong = (&'static str, String);

impl File {
    fn check(self) -> Result<Settings, Wrong> {
        let timing = self.sync;
        let interval = within("sync.interval", timing.interval.unwrap_or(120), 5..=86_400)?;
        let timeout = within("sync.timeout", timing.timeout.unwrap_or(30), 1..=600)?;
        let breaker = breaker(timing.breaker_share, timing.breaker_count)?;
        let attempts = timing.attempts.unwrap_or_else(|| Policy::default().max_attempts);
        if !(1..=1000).contains(&attempts) {
            return Err(("sync.attempts", "is from 1 to 1000".to_owned()));
        }
        for url in [&self.endpoints.group, &self.endpoints.auth].into_iter().flatten() {
            sinks::Endpoints::new(Some(url), None, timeout)
                .map_err(|error| ("endpoints", model::with_causes(&error)))?;
        }
        let address = match self.api_server {
            Some(server) => (server.host, server.port),
            None => (DEFAULT_ADDRESS.0.to_owned(), DEFAULT_ADDRESS.1),
        };
        Ok(Settings {
            sources: sources(self.esxi_hosts, timeout)?,
            mongo: self.mongodb.map(|mongo| MongoSettings {
                host: mongo.host,
                port: mongo.port,
                username: mongo.username,
                password: mongo.password.map(|secret| secret.0),
                db: mongo.db,
                collection: mongo.collection,
                timeout,
            }),
            redis: self.redis.map(|redis| RedisSettings {
                host: redis.host,
                port: redis.port,
                username: redis.username,
                password: redis.password.map(|secret| secret.0),
                timeout,
            }),
            group: self.endpoints.group,
            auth: self.endpoints.auth,
            interval,
            timeout,
            attempts,
            breaker,
            address,
        })
    }
}

fn within(
    key: &'static str,
    seconds: u64,
    range: std::ops::RangeInclusive<u64>,
) -> Result<Duration, Wrong> {
    if range.contains(&seconds) {
        return Ok(Duration::from_secs(seconds));
    }
    Err((key, format!("is from {} to {} seconds", range.start(), range.end())))
}

fn breaker(share: Option<usize>, count: Option<usize>) -> Result<Option<Breaker>, Wrong> {
    if share.is_none() && count.is_none() {
        return Ok(None);
    }
    let usual = Breaker::default();
    let breaker = Breaker {
        share: share.unwrap_or(usual.share),
        count: count.unwrap_or(usual.count),
        ..usual
    };
    if !(1..=100).contains(&breaker.share) {
        return Err(("sync.breaker_share", "is a percentage from 1 to 100".to_owned()));
    }
    if breaker.count == 0 {
        return Err(("sync.breaker_count", "is at least 1".to_owned()));
    }
    Ok(Some(breaker))
}

fn sources(hosts: Vec<EsxiHost>, timeout: Duration) -> Result<Vec<Source>, Wrong> {
    if hosts.is_empty() || hosts.len() > MAX_SOURCES {
        return Err(("esxi_hosts", format!("names 1 to {MAX_SOURCES} hosts")));
    }
    let mut addresses = BTreeSet::new();
    let mut nodes = BTreeSet::new();
    let mut sources = Vec::new();
    for host in hosts {
        let trust = trust(&host)?;
        // What the documents name, and so one host each.
        if !addresses.insert(host.host.clone()) {
            return Err(("esxi_hosts", format!("{:?} is there twice", host.host)));
        }
        let plain = host.host.trim_matches(['[', ']']).replace([':', '%'], "-");
        let node =
            HostId::new(plain.trim_matches('-')).ok().filter(|node| nodes.insert(node.clone()));
        let node =
            node.ok_or_else(|| ("esxi_hosts", format!("{:?} is no name or address", host.host)))?;
        sources.push(Source {
            node,
            address: host.host.clone(),
            site: host.site.filter(|site| !site.is_empty()),
            vsphere: vsphere::Settings {
                host: host.host,
                port: host.port,
                username: host.username,
                password: Password(host.password.0),
                trust,
                timeout,
                requests: Requests::default(),
            },
        });
    }
    Ok(sources)
}

fn trust(host: &EsxiHost) -> Result<Trust, Wrong> {
    let wrong = |message: String| ("esxi_hosts", format!("{:?}: {message}", host.host));
    let trust = match (&host.ca_file, &host.fingerprint, host.verify_tls) {
        (None, None, true) => Trust::System,
        (None, None, false) => Trust::Anybody,
        (Some(path), None, true) => Trust::CaFile(path.clone()),
        (None, Some(text), true) => {
            Trust::Fingerprint(text.parse().map_err(|error| wrong(format!("{error}")))?)
        }
        _ => {
            let message = "only one of ca_file, fingerprint and verify_tls: false can be";
            return Err(wrong(message.to_owned()));
        }
    };
    Ok(trust)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: &str = "\
esxi_hosts:
  - host: 192.168.198.17       # IP address of the ESXi host
    port: 443
    username: root
    password: pässwort
mongodb:
  host: localhost
  port: 27017
  username: sync
  password: secret
  db: esxi
  collection: vms
api_server:
  host: 0.0.0.0
  port: 4000
sync:
  interval: 120
  timeout: 30
endpoints:
  vm-group-service-rename-vm: http://vm-group-service/vms/group/rename-vms
  auth-service-rename-vm: http://auth-service/rename/vm
redis:
  host: localhost
  port: 6379
";

    fn check(text: &str, expected: &str) {
        let shown = match Settings::parse(text, Path::new("/etc/sync.yaml")) {
            Ok(settings) => format!("{settings:?}"),
            Err(error) => error.to_string(),
        };
        assert!(shown.contains(expected), "{shown}");
        assert!(!shown.contains("pässwort") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn the_older_file_is_taken_as_it_is() {
        check(SEED, "node: HostId(\"192.168.198.17\")");
        check(SEED, "address: (\"0.0.0.0\", 4000)");
        let settings = Settings::parse(SEED, Path::new("x")).unwrap();
        assert_eq!(settings.interval, Duration::from_secs(120));
        assert_eq!(settings.sources[0].vsphere.password.0, "pässwort");
        assert_eq!(settings.sources[0].vsphere.trust, Trust::System);
        assert!(settings.mongo.is_some() && settings.redis.is_some());
    }

    #[test]
    fn what_may_be_left_out() {
        let least = "esxi_hosts: [{host: esx1, username: u, password: '1234'}]";
        check(least, "mongo: None, redis: None");
        check(least, "address: (\"127.0.0.1\", 4000)");
        check("esxi_hosts: [{host: '::1', username: u, password: p}]", "HostId(\"1\")");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let without = |line: &str| {
            SEED.lines().filter(|one| !one.trim().starts_with(line)).collect::<Vec<_>>().join("\n")
        };
        check(&without("username: root"), "missing field `username`");
        check(&without("username: root"), "/etc/sync.yaml: line 4, \"password: …\"");
        check(&without("collection:"), "missing field `collection`");
        check(&without("password: pässwort"), "missing field `password`");
        check(
            &SEED.replace("port: 6379", "prot: 6379"),
            "line 24, \"prot: 6379\": \"prot\" is no key; did you mean \"port\"?",
        );
        check(&SEED.replace("interval: 120", "interval: 1"), "sync.interval: is from 5 to 86400");
        check(&SEED.replace("http://auth", "htp://auth"), "endpoints: ");
        check("esxi_hosts: []", "esxi_hosts: names 1 to 256 hosts");
        check("mongodb: {}", "missing field");
        let host =
            |more: &str| format!("esxi_hosts: [{{host: a, username: u, password: p{more}}}]");
        check(&host(", fingerprint: abc"), "is no fingerprint");
        check(&host(", ca_file: /x, verify_tls: false"), "only one of ca_file");
        check(&host(", verify_tls: false"), "trust: Anybody");
        check(&host(", site: berlin"), "site: Some(\"berlin\")");
        check(&format!("{}\nsync: {{breaker_share: 0}}", host("")), "sync.breaker_share: is a per");
        check(&format!("{}\nsync: {{attempts: 0}}", host("")), "sync.attempts: is from 1 to 1000");
        check(
            "esxi_hosts: [{host: a, username: u, password: p}, {host: a, username: u, password: p}]",
            "is there twice",
        );
        check("esxi_hosts: [{host: 'a b', username: u, password: p}]", "is no name or address");
    }
}
