//! `twin-agent`: the agent as a program of its own, as it runs on monitored hosts.

use agent::options::{Options, modern};
use anyhow::Context;
use clap::Parser;
use std::io::Write;
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

/// What a wrong configuration ends with, after sysexits.
const BAD_CONFIGURATION: u8 = 64;

fn main() -> ExitCode {
    let options = Options::parse_from(modern(std::env::args_os()));
    let config = match options.file().and_then(agent::config::File::check) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("twin-agent: {:#}", anyhow::Error::new(error));
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    match serve(&options, config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("twin-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: &Options, config: agent::config::Config) -> anyhow::Result<()> {
    agent::log::start(&config)?;
    // One thread turns the loop; what blocks has its own, and those end when idle.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .thread_stack_size(512 * 1024)
        .build()?;
    let result = runtime.block_on(async {
        if options.once || options.output.is_some() {
            let facts = agent::once(config).await?;
            return print(options, &facts);
        }
        let stop = CancellationToken::new();
        let signals = agent::signals::cancel_on_signal(stop.clone())?;
        let result = agent::run(config, stop).await;
        signals.abort();
        Ok(result?)
    });
    // A look that hangs in the kernel must not hold up the end.
    runtime.shutdown_background();
    result
}

fn print(options: &Options, facts: &model::Facts) -> anyhow::Result<()> {
    let text = if options.pretty {
        serde_json::to_string_pretty(facts)?
    } else {
        serde_json::to_string(facts)?
    };
    match options.output.as_deref().filter(|path| path.as_os_str() != "-") {
        Some(path) => std::fs::write(path, text)
            .with_context(|| format!("could not write {}", path.display())),
        None => {
            let mut out = std::io::stdout().lock();
            writeln!(out, "{text}").or_else(|error| match error.kind() {
                // The reader has seen enough.
                std::io::ErrorKind::BrokenPipe => Ok(()),
                _ => Err(error),
            })?;
            Ok(())
        }
    }
}
