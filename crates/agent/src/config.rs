//! What the agent is told: its file, its flags, and what follows from them.
//!
//! The keys and flags of the older agent are understood beside ours; flags win over the file.
//! An unknown key or a wrong value is an error that names the file, the key and the nearest
//! known one.

use serde::Deserialize;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    /// Seconds between full looks.
    pub interval: Option<f64>,
    /// `http://HOST:PORT`; the path of `update_state` behind it is accepted.
    #[serde(alias = "server")]
    pub bridge_url: Option<String>,
    pub log_file: Option<PathBuf>,
    pub state_dir: Option<PathBuf>,
    #[serde(alias = "include_proc")]
    pub include_processes: Option<bool>,
    #[serde(alias = "include_net")]
    pub include_network: Option<bool>,
    pub verbose: Option<bool>,
    /// The name this host goes by; its own hostname otherwise.
    pub host: Option<String>,
    /// File with the bearer token, needed by servers beyond loopback.
    pub token_file: Option<PathBuf>,
    /// Names whose values are not redacted.
    pub legible: Vec<String>,
    /// Further files, directories and globs to follow.
    pub track: Vec<String>,
    pub docker_socket: Option<PathBuf>,
    /// Whether the server may have images of containers from this host, for its twin.
    pub hand_out_images: Option<bool>,
    /// The D-Bus address of systemd's bus, where it is not the usual one.
    pub systemd_bus: Option<String>,
    pub spool_limit_mb: Option<u64>,
    /// `ADDRESS:PORT` at which Prometheus asks for figures; nowhere unless told.
    pub metrics: Option<String>,
    /// File with the token that Prometheus has to have, needed beyond loopback.
    pub metrics_token_file: Option<PathBuf>,
}

/// Checked, complete.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub interval: Duration,
    pub server: String,
    pub log_file: Option<PathBuf>,
    pub state_dir: PathBuf,
    pub processes: bool,
    pub network: bool,
    pub verbose: bool,
    pub host: Option<String>,
    pub token: Option<String>,
    /// The file it is in, where others may read that, too.
    pub open_token: Option<PathBuf>,
    pub legible: Vec<String>,
    pub track: Vec<String>,
    pub docker_socket: PathBuf,
    pub hand_out_images: bool,
    pub systemd_bus: Option<String>,
    pub spool_limit: u64,
    pub metrics: Option<SocketAddr>,
    pub metrics_token: Option<String>,
    /// How long one look may take before it counts as hung.
    pub look_deadline: Duration,
}

/// A machine that works does not take longer; only a twin that is emulated may.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);

/// Where the file is looked for when none is named.
#[must_use]
pub fn default_file() -> PathBuf {
    api::places::configuration().join("agent.yaml")
}

/// Where state is kept when no place is named.
#[must_use]
pub fn default_state_dir() -> PathBuf {
    api::places::data().join("agent")
}

impl File {
    /// Reads a file. One that was not asked for by name may be missing.
    ///
    /// # Errors
    /// When it can't be read or has another form.
    pub fn read(path: &Path, asked_for: bool) -> Result<Self, Error> {
        match fs::read_to_string(path) {
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

    /// What the other one says wins.
    #[must_use]
    pub fn overridden_by(self, other: Self) -> Self {
        let or_else =
            |mine: Vec<String>, theirs: Vec<String>| if theirs.is_empty() { mine } else { theirs };
        Self {
            path: self.path.or(other.path),
            interval: other.interval.or(self.interval),
            bridge_url: other.bridge_url.or(self.bridge_url),
            log_file: other.log_file.or(self.log_file),
            state_dir: other.state_dir.or(self.state_dir),
            include_processes: other.include_processes.or(self.include_processes),
            include_network: other.include_network.or(self.include_network),
            verbose: other.verbose.or(self.verbose),
            host: other.host.or(self.host),
            token_file: other.token_file.or(self.token_file),
            legible: or_else(self.legible, other.legible),
            track: or_else(self.track, other.track),
            docker_socket: other.docker_socket.or(self.docker_socket),
            hand_out_images: other.hand_out_images.or(self.hand_out_images),
            systemd_bus: other.systemd_bus.or(self.systemd_bus),
            spool_limit_mb: other.spool_limit_mb.or(self.spool_limit_mb),
            metrics: other.metrics.or(self.metrics),
            metrics_token_file: other.metrics_token_file.or(self.metrics_token_file),
        }
    }

    /// Checks everything and fills in what is not said.
    ///
    /// # Errors
    /// When a value is out of range or a named file can't be read.
    pub fn check(self) -> Result<Config, Error> {
        let path = self.path;
        let wrong = |key, message| Error::Value { path: path.clone(), key, message };
        let interval = self.interval.unwrap_or(10.0);
        if !(0.1..=86_400.0).contains(&interval) {
            let message = format!("{interval} is not a number of seconds from 0.1 to 86400");
            return Err(wrong("interval", message));
        }
        let server =
            self.bridge_url.unwrap_or_else(|| format!("http://127.0.0.1:{}", api::DEFAULT_PORT));
        if let Err(error) = api::client::Client::new(&server, None) {
            return Err(wrong("bridge_url", error.to_string()));
        }
        if let Some(Err(error)) = self.host.as_deref().map(model::HostId::new) {
            return Err(wrong("host", error.to_string()));
        }
        let spool_limit_mb = self.spool_limit_mb.unwrap_or(32);
        if !(1..=4096).contains(&spool_limit_mb) {
            let message = format!("{spool_limit_mb} is not a number of MiB from 1 to 4096");
            return Err(wrong("spool_limit_mb", message));
        }
        for path in &self.track {
            if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
                let message = format!("{path:?} is not an absolute path without '..'");
                return Err(wrong("track", message));
            }
        }
        let metrics_token = self.metrics_token_file.as_deref().map(read_token).transpose()?;
        let metrics = self.metrics.as_deref().map(|text| metrics(text, metrics_token.is_some()));
        let metrics = metrics.transpose().map_err(|message| wrong("metrics", message))?;
        let token = self.token_file.as_deref().map(read_token).transpose()?;
        let open_token = self.token_file.filter(|path| is_open_to_others(path));
        Ok(Config {
            interval: Duration::from_secs_f64(interval),
            server,
            log_file: self.log_file,
            state_dir: self.state_dir.unwrap_or_else(default_state_dir),
            processes: self.include_processes.unwrap_or(true),
            network: self.include_network.unwrap_or(true),
            verbose: self.verbose.unwrap_or(false),
            host: self.host,
            token,
            open_token,
            legible: self.legible,
            track: self.track,
            docker_socket: self.docker_socket.unwrap_or_else(|| "/var/run/docker.sock".into()),
            hand_out_images: self.hand_out_images.unwrap_or(false),
            systemd_bus: self.systemd_bus,
            spool_limit: spool_limit_mb << 20,
            metrics,
            metrics_token,
            look_deadline: LOOK_DEADLINE,
        })
    }
}

/// Where figures are told: to this machine, or to who has the token.
fn metrics(text: &str, has_token: bool) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_address| format!("{text:?} is not ADDRESS:PORT, as 127.0.0.1:8471"))?;
    if !address.ip().is_loopback() && !has_token {
        return Err(format!("{address} is not on loopback, and needs metrics_token_file"));
    }
    Ok(address)
}

/// Whether others may read a file that holds a secret.
#[must_use]
pub fn is_open_to_others(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o077 != 0)
}

pub(crate) fn read_token(path: &Path) -> Result<String, Error> {
    let text =
        fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::Form { path: path.to_owned(), message: "holds no token".to_owned() });
    }
    Ok(token.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let result = File::parse(text, Path::new("agent.yaml")).and_then(File::check);
        let shown = match result {
            Ok(config) => format!("{} {} {:?}", config.server, config.processes, config.interval),
            Err(error) => error.to_string(),
        };
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn old_and_new_keys() {
        check("", "http://127.0.0.1:8470 true 10s");
        check("# nothing\n", "http://127.0.0.1:8470 true 10s");
        check(
            "interval: 5\nbridge_url: http://localhost:5678/api/v1/update_state\ninclude_proc: false\ninclude_net: true\nlog_file: /tmp/x\nstate_dir: /tmp/y\nverbose: true\n",
            "http://localhost:5678/api/v1/update_state false 5s",
        );
        check("server: http://localhost:1\ninclude_processes: false", "http://localhost:1 false");
    }

    #[test]
    fn errors_name_what_is_wrong() {
        check("intervall: 5", "\"intervall\" is no key; did you mean \"interval\"?");
        check("quux_corge: 5", "is no key; known are interval");
        check("interval: 0", "interval: 0 is not a number of seconds");
        check("interval: soon", "agent.yaml: line 1, \"interval: soon\": ");
        check("bridge_url: https://x", "TLS");
        check("bridge_url: localhost", "http://HOST:PORT");
        check("host: ../x", "is not a host name");
        check("track: [etc/x]", "absolute path");
        check("track: [/etc/../shadow]", "absolute path");
        check("token_file: /nonexistent", "could not read");
        check("metrics: 8471", "\"8471\" is not ADDRESS:PORT");
        check("metrics: 0.0.0.0:8471", "is not on loopback, and needs metrics_token_file");
        check("metrics: '[::1]:8471'", "http://127.0.0.1:8470 true");
        check("interval: [", "agent.yaml:");
    }
}
