//! What the agent's programs have in common: configuration, log, loop, and how they end.

use crate::config::{Config, Error, File};
use anyhow::Context;
use model::terminal;
use std::path::Path;
use std::process::ExitCode;
use tokio_util::sync::CancellationToken;

/// What a wrong configuration ends with, after sysexits.
const BAD_CONFIGURATION: u8 = 64;

/// Runs a program's work with its configuration, and says on standard error why it failed.
pub fn run<W>(name: &str, file: Result<File, Error>, work: impl FnOnce(Config) -> W) -> ExitCode
where
    W: Future<Output = anyhow::Result<()>>,
{
    let config = file.and_then(File::check);
    let log = config.as_ref().ok().and_then(|config| config.log_file.clone());
    let verbose = config.as_ref().is_ok_and(|config| config.verbose);
    run_with(name, verbose, log.as_deref(), config, work)
}

/// The same for a program with a configuration of its own.
pub fn run_with<C, W>(
    name: &str,
    verbose: bool,
    log: Option<&Path>,
    config: Result<C, Error>,
    work: impl FnOnce(C) -> W,
) -> ExitCode
where
    W: Future<Output = anyhow::Result<()>>,
{
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            say(name, &anyhow::Error::new(error));
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    match turn(verbose, log, config, work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(name, &error);
            ExitCode::FAILURE
        }
    }
}

/// Of an error, also of one that speaks with the words of a file or a server.
fn say(name: &str, error: &anyhow::Error) {
    eprintln!("{name}: {}", terminal::plain(&format!("{error:#}")));
}

fn turn<C, W>(
    verbose: bool,
    log: Option<&Path>,
    config: C,
    work: impl FnOnce(C) -> W,
) -> anyhow::Result<()>
where
    W: Future<Output = anyhow::Result<()>>,
{
    let level = if verbose { "debug" } else { "info" };
    let filter = format!("warn,agent={level},converge={level},host={level}");
    crate::log::start(&filter, log).context("could not open the log file")?;
    crate::memory::be_thrifty();
    // One thread turns the loop; what blocks has its own, and those end when idle.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .thread_stack_size(512 * 1024)
        .build()?;
    let result = runtime.block_on(work(config));
    // A look that hangs in the kernel must not hold up the end.
    runtime.shutdown_background();
    result
}

/// Serves until a signal tells to stop.
///
/// # Errors
/// When signals can't be taken, or as what is served fails.
pub async fn until_told<S>(serve: impl FnOnce(CancellationToken) -> S) -> anyhow::Result<()>
where
    S: Future<Output = Result<(), crate::Error>>,
{
    let stop = CancellationToken::new();
    let signals = crate::signals::cancel_on_signal(stop.clone())?;
    let result = serve(stop).await;
    signals.abort();
    Ok(result?)
}
