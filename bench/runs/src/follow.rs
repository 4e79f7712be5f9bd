//! Many readers of one log. Each counts what it gets, leaves and comes back as often as it is
//! told to, and asks for what comes after the last line it has.

use crate::frames::{Frames, Kind};
use crate::{Arguments, now};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Barrier, Semaphore};
use tokio::task::JoinSet;

/// Connections made at once.
const AT_ONCE: usize = 64;
/// For everything.
const DEADLINE: Duration = Duration::from_secs(300);

struct Plan {
    server: SocketAddr,
    /// `{}` stands for the line that comes next, `{+}` for the same counted from 1.
    path: String,
    kind: Kind,
    lines: u64,
    /// How often each reader leaves.
    leaves: u64,
    begin: Barrier,
    doors: Semaphore,
}

/// What one reader saw.
#[derive(Default)]
struct Seen {
    lost: u64,
    doubled: u64,
    reconnects: u64,
    ages: Vec<u64>,
    /// From asking again to the first line.
    returns: Vec<Duration>,
    first: Option<Instant>,
    last: Option<Instant>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    // One thread: the other core is the server's.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(all(arguments))
}

async fn all(arguments: &Arguments) -> Result<()> {
    let followers: u64 = arguments.number("followers")?;
    let leaves: u64 = arguments.number("leaves")?;
    let plan = Arc::new(Plan {
        server: arguments.number("server")?,
        path: arguments.text("path")?.to_owned(),
        kind: match arguments.text("kind")? {
            "sse" => Kind::Sse,
            "ws" => Kind::Ws,
            other => bail!("--kind: {other:?}"),
        },
        lines: arguments.number("lines")?,
        leaves: leaves.div_ceil(followers),
        begin: Barrier::new(usize::try_from(followers)? + 1),
        doors: Semaphore::new(AT_ONCE),
    });
    let mut readers = JoinSet::new();
    for number in 0..followers {
        let plan = Arc::clone(&plan);
        readers.spawn(async move { tokio::time::timeout(DEADLINE, read(number, &plan)).await? });
    }
    tokio::time::timeout(DEADLINE, plan.begin.wait()).await.context("not all could connect")?;
    println!("{}", json!({"connected": followers}));
    let mut all: Vec<Seen> = Vec::new();
    while let Some(done) = readers.join_next().await {
        all.push(done??);
    }
    let sum = |of: fn(&Seen) -> u64| all.iter().map(of).sum::<u64>();
    let first = all.iter().filter_map(|seen| seen.first).min().context("nothing came")?;
    let last = all.iter().filter_map(|seen| seen.last).max().context("nothing came")?;
    let mut ages: Vec<u64> = all.iter().flat_map(|seen| seen.ages.iter().copied()).collect();
    let returns = all.iter().flat_map(|seen| seen.returns.iter());
    let mut returns: Vec<u64> =
        returns.map(|t| u64::try_from(t.as_micros()).unwrap_or(0)).collect();
    println!(
        "{}",
        json!({
            "seconds": last.duration_since(first).as_secs_f64(),
            "lost": sum(|seen| seen.lost), "doubled": sum(|seen| seen.doubled), "reconnects": sum(|seen| seen.reconnects),
            "age_p50_ms": percentile(&mut ages, 50), "age_p99_ms": percentile(&mut ages, 99),
            "return_p50_ms": percentile(&mut returns, 50), "return_p99_ms": percentile(&mut returns, 99),
        })
    );
    Ok(())
}

fn percentile(micros: &mut [u64], percent: usize) -> f64 {
    micros.sort_unstable();
    let index = (micros.len() * percent / 100).min(micros.len().saturating_sub(1));
    micros.get(index).map_or(0.0, |micros| *micros as f64 / 1e3)
}

async fn read(number: u64, plan: &Plan) -> Result<Seen> {
    let mut seen = Seen::default();
    let mut next = 0;
    for visit in 0..=plan.leaves {
        // Spread without pattern over the lines there are.
        let spread = (number * (plan.leaves + 1) + visit).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33;
        let part = plan.lines / (plan.leaves + 1);
        let until = if visit == plan.leaves { plan.lines } else { part * visit + spread % part };
        if visit > 0 {
            seen.reconnects += 1;
        }
        let asked = Instant::now();
        let (mut stream, mut frames, rest) = connect(plan, next).await?;
        if visit == 0 {
            plan.begin.wait().await;
        }
        let mut buffer = rest;
        let mut returned = visit == 0;
        loop {
            let (time, instant) = (now(), Instant::now());
            let mut lines = 0;
            frames.feed(&buffer, |line| {
                lines += 1;
                // What a connection still carried when its reader left does not count.
                if next > until && next < plan.lines {
                    return;
                }
                seen.lost += line.number.saturating_sub(next);
                seen.doubled += u64::from(line.number < next);
                next = next.max(line.number + 1);
                if line.number % 16 == 0 {
                    seen.ages.push(time.saturating_sub(line.at));
                }
            })?;
            if lines > 0 {
                seen.first.get_or_insert(instant);
                seen.last = Some(instant);
                if !std::mem::replace(&mut returned, true) {
                    seen.returns.push(asked.elapsed());
                }
            }
            if next > until || next >= plan.lines {
                break;
            }
            buffer.clear();
            buffer.reserve(64 << 10);
            if stream.read_buf(&mut buffer).await? == 0 {
                bail!("the connection ended at line {next}");
            }
        }
    }
    Ok(seen)
}

/// Asks for a line and those after it. With what came behind the answer's head.
async fn connect(plan: &Plan, next: u64) -> Result<(TcpStream, Frames, Vec<u8>)> {
    let _door = plan.doors.acquire().await?;
    let mut stream = TcpStream::connect(plan.server).await?;
    let path = plan.path.replace("{+}", &(next + 1).to_string()).replace("{}", &next.to_string());
    let upgrade = match plan.kind {
        Kind::Sse => "",
        Kind::Ws => {
            "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
             sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        }
    };
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{upgrade}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut buffer = Vec::with_capacity(64 << 10);
    let end = loop {
        if stream.read_buf(&mut buffer).await? == 0 {
            bail!("no answer to {path}");
        }
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
    };
    if !buffer.starts_with(b"HTTP/1.1 200") && !buffer.starts_with(b"HTTP/1.1 101") {
        bail!("{path}: {}", String::from_utf8_lossy(&buffer));
    }
    let rest = buffer.split_off(end);
    Ok((stream, Frames::new(plan.kind), rest))
}
