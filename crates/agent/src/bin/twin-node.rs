//! `twin-node`: does for the VMs of a node what the server asks and the node allows. What it runs
//! and starts anew there, the agent has no code for.

use agent::node::{Options, serve};
use agent::program::{run_with, until_told};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = Options::parse();
    let log = options.log.clone();
    run_with("twin-node", options.verbose, log.as_deref(), options.config(), async |config| {
        until_told(|stop| serve(config, stop)).await
    })
}
