//! The command line of the agent in a twin.

use crate::config::{Error, File, default_file};
use clap::Parser;
use std::path::PathBuf;

/// Answers for this virtual machine through its virtio-serial port: the agent inside a twin.
///
/// It tells what it sees, as twin-agent does on a host, and carries out what the server's plan
/// says. It runs as root, and listens nowhere but at the port.
#[derive(Debug, Parser)]
#[command(
    name = "twin-guest",
    version,
    after_help = "Exit status: 0 ended in order, 1 failed, 2 wrong usage, 64 wrong configuration."
)]
pub struct Options {
    /// The port to the server
    #[arg(long, value_name = "PATH", default_value = api::guest::PORT)]
    pub port: PathBuf,
    /// Configuration file, as twin-agent's [default: /etc/safetytwin/agent.yaml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write the log to a file instead of standard error
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Say more
    #[arg(long, short)]
    pub verbose: bool,
}

impl Options {
    /// Reads the file, and lets the flags win.
    ///
    /// # Errors
    /// When the file can't be read or has another form.
    pub fn file(&self) -> Result<File, Error> {
        let path = self.config.clone().unwrap_or_else(default_file);
        let file = File::read(&path, self.config.is_some())?;
        Ok(file.overridden_by(File {
            log_file: self.log.clone(),
            verbose: self.verbose.then_some(true),
            ..File::default()
        }))
    }
}
