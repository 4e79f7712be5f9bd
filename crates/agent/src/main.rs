//! `twin-agent`: the agent as a program of its own, as it runs on monitored hosts.

use agent::options::{Options, modern};
use agent::program::{run, until_told};
use anyhow::Context;
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = Options::parse_from(modern(std::env::args_os()));
    run("twin-agent", options.file(), async |config| {
        if options.looks_once() {
            let facts = agent::once(config).await?;
            return options.write(&facts).context("could not write the facts");
        }
        until_told(|stop| agent::run(config, stop)).await
    })
}
