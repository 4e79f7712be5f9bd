//! Where the log goes: standard error, or a file.

use crate::config::Config;
use anyhow::Context;
use std::fs::OpenOptions;
use std::sync::Mutex;
use tracing_subscriber::EnvFilter;

/// Starts logging. `RUST_LOG` goes before `verbose`.
///
/// # Errors
/// When the log file can't be opened.
pub fn start(config: &Config) -> anyhow::Result<()> {
    let level = if config.verbose { "debug" } else { "info" };
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_unset| EnvFilter::new(format!("warn,agent={level},host={level}")));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false);
    match &config.log_file {
        Some(path) => {
            let open = OpenOptions::new().create(true).append(true).open(path);
            let file =
                open.with_context(|| format!("could not open the log file {}", path.display()))?;
            builder.with_ansi(false).with_writer(Mutex::new(file)).init();
        }
        None => {
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.with_ansi(terminal).with_writer(std::io::stderr).init();
        }
    }
    Ok(())
}
