//! A server with a run that says lines as fast as it is told to, and readers of its log, or of
//! another server's. The product has no such run; the server is linked as it is, and everything
//! that is measured goes through its HTTP interface.
//!
//! Each command answers what it is told with one line of JSON on standard output.

mod follow;
mod frames;
mod serve;

use anyhow::{Context, Result, bail};
use std::collections::HashMap;
use std::str::FromStr;

const USAGE: &str = "\
runs serve  --data DIR                                         on standard input: start; talk COUNT RATE; stop
runs follow --server ADDRESS --path PATH --kind sse|ws --followers N --lines N --leaves N";

fn main() -> std::process::ExitCode {
    match command() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("runs: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn command() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let mut found = HashMap::new();
    while let Some(word) = words.next() {
        let name = word.strip_prefix("--").with_context(|| format!("what is {word:?}?"))?;
        let value = words.next().with_context(|| format!("{word} needs a value"))?;
        found.insert(name.to_owned(), value);
    }
    let arguments = Arguments(found);
    match command.as_str() {
        "serve" => serve::run(&arguments),
        "follow" => follow::run(&arguments),
        _ => bail!("usage:\n{USAGE}"),
    }
}

/// `--NAME VALUE`, several times.
struct Arguments(HashMap<String, String>);

impl Arguments {
    fn text(&self, name: &str) -> Result<&str> {
        self.0.get(name).map(String::as_str).with_context(|| format!("--{name} is missing"))
    }

    fn number<T: FromStr>(&self, name: &str) -> Result<T> {
        let text = self.text(name)?;
        text.parse().ok().with_context(|| format!("--{name}: {text:?} is no such number"))
    }
}

/// Microseconds since 1970: the lines carry it, so that a reader knows how old they are.
fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
