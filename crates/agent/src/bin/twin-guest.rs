//! `twin-guest`: the agent inside a twin. What it changes there, the host's agent has no code for.

use agent::guest::{Options, serve};
use agent::program::{run, until_told};
use clap::Parser;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = Options::parse();
    run("twin-guest", options.file(), async |config| {
        until_told(|stop| serve(config, Path::new("/"), &options.port, stop)).await
    })
}
