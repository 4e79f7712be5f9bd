//! The server, and the run that talks.

use crate::{Arguments, now};
use anyhow::{Context, Result, bail};
use serde_json::json;
use server::Server;
use server::config::{File, RunsFile};
use server::runs::{Cause, Handle, Kind, New, Runs, Stream};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Bytes of a line beside its number and time.
const FILLING: &str = "some words that a program says about what it does at the moment";

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let data = arguments.text("data")?.into();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let file = File {
            data_dir: Some(data),
            listen: Some(vec!["127.0.0.1:0".to_owned()]),
            runs: RunsFile { log_mb: Some(1024), ..RunsFile::default() },
            ..File::default()
        };
        let server = Server::bind(file.check()?).await?;
        let address = *server.addresses().first().context("it listens")?;
        let runs = server.runs().clone();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(server.run(stop.clone()));
        println!("{}", json!({"port": address.port()}));
        obey(&runs).await?;
        stop.cancel();
        Ok(serving.await?)
    })
}

async fn obey(runs: &Runs) -> Result<()> {
    let mut talking = None;
    let mut number = 0;
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["start"] => {
                number += 1;
                let (go, gone) = oneshot::channel::<(u64, u64)>();
                let subject = format!("image:bench{number}").parse()?;
                let new = New { kind: Kind::ImageBuild, subject, cause: Cause::Local };
                let id = runs.start(new, |handle| async move {
                    let (count, rate) = gone.await?;
                    talk(&handle, count, rate).await;
                    Ok(())
                })?;
                talking = Some(go);
                println!("{}", json!({"run": id.to_string()}));
            }
            ["talk", count, rate] => {
                let go = talking.take().context("nothing was started")?;
                if go.send((count.parse()?, rate.parse()?)).is_err() {
                    bail!("the run is over");
                }
                println!("{}", json!({}));
            }
            ["stop"] => return Ok(()),
            _ => bail!("what is {line:?}?"),
        }
    }
    Ok(())
}

/// So many lines, so many a second; 0 for all at once.
async fn talk(handle: &Handle, count: u64, rate: u64) {
    let begin = Instant::now();
    for n in 0..count {
        if let Some(micros) = (n * 1_000_000).checked_div(rate) {
            tokio::time::sleep_until((begin + Duration::from_micros(micros)).into()).await;
        }
        handle.line(Stream::Stdout, &format!("{n:08} {:016} {FILLING}", now()));
    }
}
