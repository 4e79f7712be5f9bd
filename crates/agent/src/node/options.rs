//! The command line and the configuration of `twin-node`.

use crate::config::{Error, read_token};
use clap::Parser;
use model::vm::VmName;
use model::{HostId, keys};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Does for the VMs of this node what the server asks: runs check scripts, looks for a text on
/// their consoles, and, for VMs that the configuration names, starts them anew.
///
/// It asks the server for work, and listens nowhere. Scripts are those in its own folder; they run
/// as another user, without rights, with limits of time, memory and output.
#[derive(Debug, Parser)]
#[command(
    name = "twin-node",
    version,
    after_help = "Exit status: 0 ended in order, 1 failed, 2 wrong usage, 64 wrong configuration."
)]
pub struct Options {
    /// Configuration file [default: /etc/safetytwin/node.yaml]
    #[arg(long = "config", value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Write the log to a file instead of standard error
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Say more
    #[arg(long, short)]
    pub verbose: bool,
}

/// The file as written. Every key is optional.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    server: Option<String>,
    token_file: Option<PathBuf>,
    host: Option<String>,
    scripts: Option<PathBuf>,
    run_as: Option<String>,
    restart: Vec<String>,
}

/// Checked, complete.
#[derive(Debug, Clone)]
pub struct Config {
    pub(super) server: String,
    pub(super) token: Option<String>,
    /// Its own hostname otherwise.
    pub(super) host: Option<String>,
    /// Where check scripts are.
    pub(super) scripts: PathBuf,
    /// Who runs them.
    pub(super) run_as: String,
    pub(super) restart: Restart,
}

/// Which VMs may be started anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Restart {
    All,
    /// None, unless somebody named them.
    Only(Vec<VmName>),
}

impl Restart {
    pub(super) fn allows(&self, name: &VmName) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(name),
        }
    }
}

impl Options {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// When it can't be read, or says what it can't.
    pub fn config(&self) -> Result<Config, Error> {
        let usual = api::places::configuration().join("node.yaml");
        let path = self.file.clone().unwrap_or(usual);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.file.is_none() => {
                String::new()
            }
            Err(source) => return Err(Error::Read { path, source }),
        };
        parse(&text, &path)
    }
}

fn parse(text: &str, path: &Path) -> Result<Config, Error> {
    let is_blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    let file: File = if text.lines().all(is_blank) {
        File::default()
    } else {
        serde_saphyr::from_str(text).map_err(|error| Error::Form {
            path: path.to_owned(),
            message: keys::fault(&error.to_string(), text),
        })?
    };
    let wrong = |key, message| Error::Value { path: Some(path.to_owned()), key, message };
    let server = file.server.unwrap_or_else(|| format!("http://127.0.0.1:{}", api::DEFAULT_PORT));
    api::client::Client::new(&server, None).map_err(|error| wrong("server", error.to_string()))?;
    if let Some(Err(error)) = file.host.as_deref().map(HostId::new) {
        return Err(wrong("host", error.to_string()));
    }
    let scripts = file.scripts.unwrap_or_else(|| api::places::configuration().join("checks"));
    if !scripts.is_absolute() {
        return Err(wrong("scripts", format!("{} is no absolute path", scripts.display())));
    }
    let run_as = file.run_as.unwrap_or_else(|| "nobody".to_owned());
    if run_as == "root" {
        return Err(wrong("run_as", "scripts do not run as root".to_owned()));
    }
    let restart = if file.restart.iter().any(|name| name == "*") {
        Restart::All
    } else {
        let names: Result<_, _> = file.restart.iter().map(|name| name.parse()).collect();
        Restart::Only(names.map_err(|error: model::TextError| wrong("restart", error.to_string()))?)
    };
    let token = file.token_file.as_deref().map(read_token).transpose()?;
    Ok(Config { server, token, host: file.host, scripts, run_as, restart })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let shown = match parse(text, Path::new("node.yaml")) {
            Ok(config) => format!("{} {:?} {}", config.server, config.restart, config.run_as),
            Err(error) => error.to_string(),
        };
        assert!(shown.contains(expected), "{shown}");
    }

    #[test]
    fn what_is_said_and_what_is_not() {
        check("", "http://127.0.0.1:8470 Only([]) nobody");
        check("# nothing", "Only([])");
        check("restart: [web, '*']", "All");
        check("restart: [web]\nrun_as: checks", "Only([VmName(\"web\")]) checks");
        check("restart: [../x]", "restart: \"../x\" is not the name of a VM");
        check("run_as: root", "run_as: scripts do not run as root");
        check("scripts: checks", "scripts: checks is no absolute path");
        check("server: localhost", "http://HOST:PORT");
        check("script: /x", "\"script\" is no key; did you mean \"scripts\"?");
        check("host: ../x", "is not a host name");
    }
}
