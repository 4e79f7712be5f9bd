//! Has images of containers come from a host, and opens a way to them into a machine, as the server
//! does it for a twin; with a server for the host's agent.
//!
//! ```text
//! cargo run -p server --example images -- NAME PORT LOGIN KNOWN_HOSTS CONFIGURATION HOST
//! ```
//!
//! The machine is at PORT of 127.0.0.1, and shows a key that KNOWN_HOSTS has for NAME. Each line of
//! the standard input is the file of a plan. For each, a line goes out with the run and the port of
//! the machine's loopback at which its images are had until the next line; or with why there is none.

mod reach;

use model::HostId;
use model::plan::Plan;
use server::Server;
use server::config::File;
use server::runs::{Cause, Failure, Handle, Kind, New};
use server::twins::Twins;
use server::twins::ansible::Reach;
use server::twins::relay::Lent;
use std::error::Error;
use std::io::{self, BufRead, Write};
use std::path::Path;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [name, port, login, known_hosts, configuration, host] = words.as_slice() else {
        return Err("usage: images NAME PORT LOGIN KNOWN_HOSTS CONFIGURATION HOST".into());
    };
    let reach = reach::of_words([name, port, login, known_hosts])?;
    let host = HostId::new(host)?;
    let server = Server::bind(File::read(Path::new(configuration), true)?.check()?).await?;
    let (runs, twins) = (server.runs().clone(), server.twins().clone());
    let stop = CancellationToken::new();
    let mut parts = tokio::task::JoinSet::new();
    parts.spawn(server.run(stop.clone()));
    let mut lent = None;
    while let Some(line) = tokio::task::spawn_blocking(next_line).await?? {
        // The way before is closed.
        drop(lent.take());
        let plan: Plan = serde_json::from_str(&std::fs::read_to_string(line)?)?;
        let (tell, told) = oneshot::channel();
        let (twins, reach, host) = (twins.clone(), reach.clone(), host.clone());
        let work = async move |handle: Handle| -> Result<(), Failure> {
            let opened = open(&twins, &reach, (&host, &plan), &handle).await;
            tell.send(opened).map_err(|_gone| Failure::new("nobody waits for it"))
        };
        let new = New { kind: Kind::Apply, subject: "twin:images".parse()?, cause: Cause::Local };
        let run = runs.start(new, work)?;
        match told.await? {
            Ok(way) => {
                writeln!(io::stdout(), "{run} {}", way.port)?;
                lent = Some(way);
            }
            Err(why) => writeln!(io::stdout(), "{run} none: {why}")?,
        }
    }
    stop.cancel();
    while parts.join_next().await.is_some() {}
    Ok(())
}

async fn open(
    twins: &Twins,
    reach: &Reach,
    wanted: (&HostId, &Plan),
    handle: &Handle,
) -> Result<Lent, String> {
    let lent = twins.lend_images(reach, wanted, handle).await;
    lent.map_err(|failure| failure.message().to_owned())
}

fn next_line() -> io::Result<Option<String>> {
    io::stdin().lock().lines().next().transpose()
}
