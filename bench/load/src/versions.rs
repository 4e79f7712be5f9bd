//! One host with a long history, sent as an agent sends what it could not send before, and its
//! states as JSON for those who store them whole.

use crate::Arguments;
use crate::http::{Connection, post};
use crate::simulated::{Dice, facts, restart};
use anyhow::{Context, Result, ensure};
use api::answer::State;
use api::wire::{self, Batch, Body, Delta};
use model::{HostId, Time, Version};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

/// Deltas in a request.
const TOGETHER: u64 = 500;

pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let count: u64 = arguments.number("count")?;
    let (every, first): (u64, u64) = (arguments.number("every")?, arguments.number("first")?);
    let spacing = (arguments.number::<f64>("spacing")? * 1e6) as i64;
    let begin_at = arguments.number::<i64>("until")? - spacing * count as i64;
    let dump = Path::new(arguments.text("dump")?);
    let web = HostId::new("web01")?;
    let mut connection = Connection::open(arguments.number("server")?).await?;
    let mut dice = Dice(42);
    let mut state = facts(1);
    let (mut json_bytes, mut waited, mut deltas) = (0, Duration::ZERO, Vec::new());
    for sequence in 1..=count {
        let at = Time(begin_at + spacing * sequence as i64);
        let body = match sequence {
            1 => Body::Keyframe(state.clone()),
            _ => restart(&mut state, at, &mut dice),
        };
        deltas.push(Delta { sequence, at, body, gap: None });
        if sequence <= first || sequence % every == 0 {
            let state =
                State { host: web.clone(), version: Version(sequence), at, facts: state.clone() };
            let bytes = serde_json::to_vec(&state)?;
            json_bytes = bytes.len();
            std::fs::write(dump.join(format!("{sequence:07}.json")), bytes)
                .with_context(|| format!("could not write into {}", dump.display()))?;
        }
        if sequence % TOGETHER == 0 || sequence == count {
            let deltas = std::mem::take(&mut deltas);
            let batch =
                Batch { stream: "long".into(), deltas, load: Vec::new(), agent: String::new(), unseen: Vec::new() };
            let request = post(web.as_str(), &wire::encode(&batch));
            let asked = Instant::now();
            let (status, answer) = connection.exchange(&request).await?;
            waited += asked.elapsed();
            ensure!(status == 200, "{status} {}", String::from_utf8_lossy(answer));
            let acknowledged: wire::Acknowledged = wire::decode(answer)?;
            ensure!(acknowledged.version.0 == sequence, "it made {}", acknowledged.version);
        }
    }
    let seconds = waited.as_secs_f64();
    println!("{}", json!({ "count": count, "seconds": seconds, "json_bytes": json_bytes }));
    Ok(())
}
