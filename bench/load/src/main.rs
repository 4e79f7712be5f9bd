//! What puts the product under load and reads what comes of it. The scripts beside this package
//! start it; each command ends with one line of JSON on standard output.
//!
//! Owns: simulated hosts, paces, latencies. Leaves to the scripts: starting servers and peers,
//! comparing, judging.

mod get;
mod http;
mod ingest;
mod kills;
mod scan;
mod simulated;
mod versions;

use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::str::FromStr;
use std::time::Duration;

const USAGE: &str = "\
load ingest   --server ADDRESS --hosts N --dump FILE          commands on standard input
load get      --server ADDRESS --path PATH --rate N --seconds N --connections N
load versions --server ADDRESS --count N --spacing SECONDS --until MICROSECONDS --dump DIR --every N --first N
load scan     --processes N --rounds N [--peer COMMAND]
load kills    --twin FILE --agent FILE --count N --dir DIR --seed N";

fn main() -> std::process::ExitCode {
    match command() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            // With its causes, without a backtrace.
            eprintln!("load: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn command() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let arguments = Arguments::read(words)?;
    match command.as_str() {
        "ingest" => runtime()?.block_on(ingest::run(&arguments)),
        "get" => runtime()?.block_on(get::run(&arguments)),
        "versions" => runtime()?.block_on(versions::run(&arguments)),
        "scan" => scan::run(&arguments),
        "kills" => runtime()?.block_on(kills::run(&arguments)),
        _ => bail!("usage:\n{USAGE}"),
    }
}

/// One thread: the other cores are the server's.
fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// `--NAME VALUE`, several times.
pub(crate) struct Arguments(HashMap<String, String>);

impl Arguments {
    fn read(mut words: impl Iterator<Item = String>) -> Result<Self> {
        let mut found = HashMap::new();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").with_context(|| format!("what is {word:?}?"))?;
            let value = words.next().with_context(|| format!("{word} needs a value"))?;
            found.insert(name.to_owned(), value);
        }
        Ok(Self(found))
    }

    pub(crate) fn text(&self, name: &str) -> Result<&str> {
        self.maybe(name).with_context(|| format!("--{name} is missing"))
    }

    pub(crate) fn maybe(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(crate) fn number<T: FromStr>(&self, name: &str) -> Result<T> {
        let text = self.text(name)?;
        text.parse().ok().with_context(|| format!("--{name}: {text:?} is no such number"))
    }
}

/// The time below which a share of the times lies, in milliseconds.
pub(crate) fn percentile(times: &mut [Duration], percent: f64) -> f64 {
    times.sort_unstable();
    let index = (times.len() as f64 * percent / 100.0) as usize;
    times.get(index.min(times.len().saturating_sub(1))).map_or(0.0, |t| t.as_secs_f64() * 1e3)
}
