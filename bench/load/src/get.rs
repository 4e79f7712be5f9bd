//! Reads at a fixed rate. A time counts from when the request was due, not from when it could
//! be sent, so that a server that falls behind shows it.

use crate::http::{Connection, get};
use crate::{Arguments, percentile};
use anyhow::{Result, ensure};
use serde_json::json;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let server: SocketAddr = arguments.number("server")?;
    let (rate, seconds): (f64, f64) = (arguments.number("rate")?, arguments.number("seconds")?);
    let connections: usize = arguments.number("connections")?;
    // `{}` stands for a number that changes, up to `--below`.
    let path = arguments.text("path")?.to_owned();
    let below: u64 = arguments.maybe("below").map_or(Ok(1), str::parse)?;
    let count = (rate * seconds) as u64;
    let next = Arc::new(AtomicU64::new(0));
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(Connection::open(server).await?);
    }
    let begin = Instant::now();
    let mut tasks = JoinSet::new();
    for mut connection in open {
        let (next, path) = (Arc::clone(&next), path.clone());
        tasks.spawn(async move {
            let (mut times, mut bytes) = (Vec::new(), 0);
            loop {
                let turn = next.fetch_add(1, Ordering::Relaxed);
                if turn >= count {
                    return Ok::<_, anyhow::Error>((times, bytes));
                }
                // Spread without pattern over the numbers there are.
                let number = 1 + turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) % below;
                let request = get(&path.replace("{}", &number.to_string()));
                let due = begin + Duration::from_secs_f64(turn as f64 / rate);
                tokio::time::sleep_until(due.into()).await;
                let (status, body) = connection.exchange(&request).await?;
                ensure!(status == 200, "{path}: {status} {}", String::from_utf8_lossy(body));
                bytes = body.len();
                times.push(due.elapsed());
            }
        });
    }
    let (mut times, mut bytes) = (Vec::new(), 0);
    while let Some(done) = tasks.join_next().await {
        let (some, size) = done??;
        times.extend(some);
        bytes = bytes.max(size);
    }
    println!(
        "{}",
        json!({
            "count": times.len(), "per_second": times.len() as f64 / begin.elapsed().as_secs_f64(), "bytes": bytes,
            "p50_ms": percentile(&mut times, 50.0), "p99_ms": percentile(&mut times, 99.0), "max_ms": percentile(&mut times, 100.0),
        })
    );
    Ok(())
}
