//! `twin-agent`: the agent as a program of its own, as it runs on monitored hosts.

use agent::options::{Options, modern};
use anyhow::Context;
use clap::Parser;
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
    let level = if config.verbose { "debug" } else { "info" };
    agent::log::start(&format!("warn,agent={level},host={level}"), config.log_file.as_deref())
        .context("could not open the log file")?;
    agent::memory::be_thrifty();
    // One thread turns the loop; what blocks has its own, and those end when idle.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .thread_stack_size(512 * 1024)
        .build()?;
    let result = runtime.block_on(async {
        if options.looks_once() {
            let facts = agent::once(config).await?;
            return options.write(&facts).context("could not write the facts");
        }
        let stop = CancellationToken::new();
        let signals = agent::signals::cancel_on_signal(stop.clone())?;
        let result = options.serve(config, stop).await;
        signals.abort();
        Ok(result?)
    });
    // A look that hangs in the kernel must not hold up the end.
    runtime.shutdown_background();
    result
}
