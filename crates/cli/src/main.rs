//! `twin`: what people and scripts type. Standard output is data, standard error the rest,
//! and exit codes mean something ([`failure::EXIT_CODES`]).
//!
//! A command is a file in [`commands`]: it asks the server through [`remote`] and renders the
//! answer with pure functions. What comes from outside reaches the terminal only through
//! [`model::terminal`].

mod arguments;
mod commands;
mod contents;
mod describe;
mod entry;
mod failure;
mod follow;
mod naming;
mod patience;
mod remote;
mod run_log;
mod session;
mod sse;
mod table;
mod target;
mod values;
mod view;
mod vm_events;

#[cfg(test)]
mod fake_server;

use arguments::{Arguments, Command, Global, SyncCommand};
use clap::Parser;
use failure::Failure;
use remote::Remote;
use session::Session;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use view::View;

/// A server takes deltas apart and puts states together in small pieces, on many threads: with
/// this allocator it stores a third more of them a second than with the C library's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match run(Arguments::parse_from(arguments())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// The words of the command line; those of `twin agent` may be the older agent's.
fn arguments() -> Vec<OsString> {
    let words: Vec<OsString> = std::env::args_os().collect();
    match words.get(1) {
        Some(word) if word == "agent" => agent::options::modern(words),
        _ => words,
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { global, command } = arguments;
    match command {
        Command::Up(arguments) => commands::daemon::up(&arguments),
        Command::Server(arguments) => commands::daemon::server(&arguments),
        Command::Agent(options) => commands::daemon::agent(&options),
        Command::Sync(SyncCommand::Serve(arguments)) => commands::daemon::sync(&arguments),
        Command::Openapi => session::write(&server::openapi()),
        Command::Completions { shell } => commands::manual::completions(shell),
        Command::Man { dir } => commands::manual::pages(dir.as_deref()),
        Command::Token(command) => commands::token::run(command, global.json, &view(&global)),
        asking => wait(ask(asking, &global)),
    }
}

/// The commands that ask a server.
async fn ask(command: Command, global: &Global) -> Result<(), Failure> {
    let remote = Remote::new(&global.server, token(global.token_file.as_deref())?)?;
    let mut session = Session { remote, view: view(global), json: global.json };
    match command {
        Command::List => commands::list::run(&mut session).await,
        Command::Show(arguments) => commands::show::run(&arguments, &mut session).await,
        Command::State(arguments) => commands::state::run(&arguments, &mut session).await,
        Command::Log(arguments) => commands::log::run(&arguments, &mut session).await,
        Command::Diff(arguments) => commands::diff::run(&arguments, &mut session).await,
        Command::Watch(arguments) => commands::watch::run(&arguments, &mut session).await,
        Command::Load(arguments) => commands::load::run(&arguments, &mut session).await,
        Command::Start(arguments) => commands::twin::start(&arguments, &mut session).await,
        Command::Stop(arguments) => commands::twin::stop(&arguments, "stop", &mut session).await,
        Command::Restart(arguments) => {
            commands::twin::stop(&arguments, "restart", &mut session).await
        }
        Command::Ssh(arguments) => commands::ssh::run(&arguments, &mut session).await,
        Command::Console(arguments) => commands::console::run(&arguments, &mut session).await,
        Command::Clone(arguments) => commands::twin::clone(&arguments, &mut session).await,
        Command::Revert(arguments) => commands::twin::revert(&arguments, &mut session).await,
        Command::Delete(arguments) => commands::twin::delete(&arguments, &mut session).await,
        Command::Plan(arguments) => commands::following::plan(&arguments, &mut session).await,
        Command::Verify(arguments) => commands::following::verify(&arguments, &mut session).await,
        Command::Fidelity(arguments) => {
            commands::following::fidelity(&arguments, &mut session).await
        }
        Command::Apply(arguments) => commands::following::apply(&arguments, &mut session).await,
        Command::Hold(arguments) => {
            commands::following::decide(&arguments, "hold", &mut session).await
        }
        Command::Follow(arguments) => {
            commands::following::decide(&arguments, "follow", &mut session).await
        }
        Command::Extras(command) => commands::extras::run(&command, &mut session).await,
        Command::Snapshot(command) => commands::snapshot::run(&command, &mut session).await,
        Command::Run(command) => commands::run::run(&command, &mut session).await,
        Command::Image(command) => commands::image::run(&command, &mut session).await,
        Command::Inventory(command) => commands::inventory::run(&command, &mut session).await,
        Command::Sync(command) => commands::sync::run(&command, &mut session).await,
        Command::Doctor(data) => commands::doctor::run(data, &mut session).await,
        Command::Up(_)
        | Command::Server(_)
        | Command::Agent(_)
        | Command::Openapi
        | Command::Completions { .. }
        | Command::Man { .. }
        | Command::Token(_) => Ok(()),
    }
}

fn view(global: &Global) -> View {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    View::of_stdout(global.color, global.utc, no_color)
}

/// The token: from the file, else from the environment. Never an argument, which every user
/// of the machine could read.
fn token(file: Option<&Path>) -> Result<Option<String>, Failure> {
    let (text, whence) = match file {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| {
                Failure::Configuration(format!("could not read {}: {error}", path.display()))
            })?;
            if agent::config::is_open_to_others(path) {
                let shown = path.display();
                session::note(&format!("{shown} can be read by others; run: chmod 600 {shown}"));
            }
            (text, path.display().to_string())
        }
        None => match std::env::var("SAFETYTWIN_TOKEN") {
            Ok(text) => (text, "SAFETYTWIN_TOKEN".to_owned()),
            Err(_) => return Ok(None),
        },
    };
    match text.trim() {
        "" if file.is_none() => Ok(None),
        text if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Ok(Some(text.to_owned()))
        }
        _ => Err(Failure::Configuration(format!("{whence} does not hold a token"))),
    }
}

/// Runs to the end on this thread.
fn wait(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::Failed(format!("no event loop: {error}")))?;
    runtime.block_on(async {
        let interrupted = tokio::signal::ctrl_c();
        tokio::select! {
            result = Box::pin(work) => result,
            _signal = interrupted => Err(Failure::Interrupted),
        }
    })
}
