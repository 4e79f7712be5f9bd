//! Where the log goes: standard error, or a file.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging, for the program as a whole. `RUST_LOG` goes before `filter`.
///
/// # Errors
/// When the log file can't be opened.
pub fn start(filter: &str, file: Option<&Path>) -> io::Result<()> {
    // By target and level alone: patterns would make the agent a fifth larger.
    let wanted = std::env::var("RUST_LOG").ok().and_then(|wanted| wanted.parse::<Targets>().ok());
    let targets = wanted.unwrap_or_else(|| filter.parse().unwrap_or_default());
    // No colours, on a terminal neither: the library has none without a feature that the agent
    // leaves out for its size, and would say so.
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_target(false)
        .log_internal_errors(false);
    match file {
        Some(path) => {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            let layer = layer.with_writer(Mutex::new(file));
            tracing_subscriber::registry().with(layer.with_filter(targets)).init();
        }
        None => {
            let layer = layer.with_writer(io::stderr);
            tracing_subscriber::registry().with(layer.with_filter(targets)).init();
        }
    }
    Ok(())
}
