//! Many simulated hosts that send what they see.
//!
//! Reads commands from standard input, so that one set of hosts goes through several runs in
//! turn with the peers:
//!
//! ```text
//! fill                       every host sends its whole state
//! paced RATE SECONDS         every host in its turn, at a fixed rate in all, one connection
//!                            each, a change and a sample of load in every request
//! closed CLIENTS SECONDS EXPECTED BATCH
//!                            as fast as answers come, each client one connection and one
//!                            request of BATCH changes under way; EXPECTED changes a second are
//!                            prepared beforehand
//! ```

use crate::http::{Connection, post};
use crate::simulated::{Dice, Host, facts};
use crate::{Arguments, percentile};
use anyhow::{Context, Result, bail, ensure};
use model::Time;
use serde_json::json;
use std::io::{BufRead, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::task::JoinSet;

/// States that hosts share.
const TEMPLATES: usize = 64;

struct Load {
    server: SocketAddr,
    hosts: Vec<Host>,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let count: usize = arguments.number("hosts")?;
    let templates: Vec<_> = (0..TEMPLATES as u64).map(facts).collect();
    let hosts = (0..count).map(|number| Host::new(number, &templates[number % TEMPLATES]));
    let mut load = Load { server: arguments.number("server")?, hosts: hosts.collect() };
    if let Some(path) = arguments.maybe("dump") {
        dump(path, &templates[0])?;
    }
    println!("{}", json!({ "ready": count }));
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| -> Result<f64> {
            Ok(words.get(index).context("a number is missing")?.parse()?)
        };
        let answer = match words.first().copied() {
            Some("fill") => load.fill().await?,
            Some("paced") => load.paced(number(1)?, number(2)?).await?,
            Some("closed") => {
                let changes = (number(2)? * number(3)?) as usize;
                load.closed(number(1)? as usize, changes, number(4)? as usize).await?
            }
            other => bail!("no command {other:?}"),
        };
        println!("{answer}");
        std::io::stdout().flush()?;
    }
    Ok(())
}

/// Bodies as the peers store them: each after its length in four bytes.
fn dump(path: &str, template: &model::Facts) -> Result<()> {
    let mut host = Host::new(99_999, template);
    host.keyframe(now());
    let mut bytes = Vec::new();
    for _ in 0..1000 {
        let body = host.changes(now(), 1, false);
        bytes.extend_from_slice(&u32::try_from(body.len())?.to_le_bytes());
        bytes.extend_from_slice(&body);
    }
    Ok(std::fs::write(path, bytes)?)
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(since.as_micros() as i64)
}

impl Load {
    async fn fill(&mut self) -> Result<serde_json::Value> {
        let begin = Instant::now();
        let mut connection = Connection::open(self.server).await?;
        let (mut sent, mut waiting) = (0, Duration::ZERO);
        for host in &mut self.hosts {
            let body = host.keyframe(now());
            sent += body.len();
            let request = post(&host.name, &body);
            let asked = Instant::now();
            check(connection.exchange(&request).await?)?;
            waiting += asked.elapsed();
        }
        Ok(json!({
            "hosts": self.hosts.len(), "seconds": begin.elapsed().as_secs_f64(),
            "bytes": sent / self.hosts.len(), "milliseconds_each": waiting.as_secs_f64() * 1e3 / self.hosts.len() as f64,
        }))
    }

    async fn paced(&mut self, rate: f64, seconds: f64) -> Result<serde_json::Value> {
        let count = (rate * seconds) as usize;
        let hosts = self.hosts.len();
        let mut queues: Vec<Vec<(Duration, Vec<u8>)>> = vec![Vec::new(); hosts];
        let mut bytes = 0;
        for turn in 0..count {
            let host = &mut self.hosts[turn % hosts];
            let body = host.changes(now(), 1, true);
            bytes += body.len();
            let due = Duration::from_secs_f64(turn as f64 / rate);
            queues[turn % hosts].push((due, post(&host.name, &body)));
        }
        let mut tasks = JoinSet::new();
        let mut connections = Vec::new();
        for _ in 0..hosts.min(count) {
            connections.push(Connection::open(self.server).await?);
        }
        let begin = Instant::now();
        for (mut connection, queue) in connections.into_iter().zip(queues) {
            tasks.spawn(async move {
                let mut times = Vec::new();
                for (due, request) in queue {
                    let due = begin + due;
                    tokio::time::sleep_until(due.into()).await;
                    check(connection.exchange(&request).await?)?;
                    times.push(due.elapsed());
                }
                Ok::<_, anyhow::Error>(times)
            });
        }
        let mut times = gathered(tasks).await?;
        Ok(json!({
            "count": times.len(), "seconds": begin.elapsed().as_secs_f64(), "bytes": bytes / count,
            "p50_ms": percentile(&mut times, 50.0), "p99_ms": percentile(&mut times, 99.0),
        }))
    }

    async fn closed(
        &mut self,
        clients: usize,
        changes: usize,
        batch: usize,
    ) -> Result<serde_json::Value> {
        let count = (changes / batch).max(clients);
        ensure!(self.hosts.len() >= clients, "fewer hosts than clients");
        let mut queues: Vec<Vec<Vec<u8>>> = vec![Vec::new(); clients];
        let mut order = Dice(7);
        let mut bytes = 0;
        let at = now();
        let per_client = self.hosts.len() / clients;
        for turn in 0..count {
            // Any of the client's own hosts, so that the order of a host is kept.
            let client = turn % clients;
            let host = &mut self.hosts[client + clients * order.roll(per_client as u64) as usize];
            let body = host.changes(at, batch, false);
            bytes += body.len();
            queues[client].push(post(&host.name, &body));
        }
        let mut tasks = JoinSet::new();
        let mut connections = Vec::new();
        for _ in 0..clients {
            connections.push(Connection::open(self.server).await?);
        }
        let (begin, used) = (Instant::now(), cpu_seconds()?);
        for (mut connection, queue) in connections.into_iter().zip(queues) {
            tasks.spawn(async move {
                let mut times = Vec::with_capacity(queue.len());
                for request in queue {
                    let asked = Instant::now();
                    check(connection.exchange(&request).await?)?;
                    times.push(asked.elapsed());
                }
                Ok::<_, anyhow::Error>(times)
            });
        }
        let mut times = gathered(tasks).await?;
        let (elapsed, used) = (begin.elapsed().as_secs_f64(), cpu_seconds()? - used);
        Ok(json!({
            "count": times.len() * batch, "seconds": elapsed, "own_cores": used / elapsed, "per_second": (times.len() * batch) as f64 / elapsed, "bytes": bytes / count / batch,
            "p50_ms": percentile(&mut times, 50.0), "p99_ms": percentile(&mut times, 99.0),
        }))
    }
}

/// What this program's one thread has used so far.
fn cpu_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/self/schedstat")?;
    let nanoseconds: f64 = text.split(' ').next().context("no time")?.parse()?;
    Ok(nanoseconds / 1e9)
}

async fn gathered(mut tasks: JoinSet<Result<Vec<Duration>>>) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.extend(done??);
    }
    Ok(times)
}

fn check((status, body): (u16, &[u8])) -> Result<()> {
    ensure!(status == 200, "the server answered {status}: {}", String::from_utf8_lossy(body));
    Ok(())
}
