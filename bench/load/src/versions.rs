//! One host with a long history, written through the store as the server writes it, and its
//! states as JSON for those who store them whole.

use crate::Arguments;
use crate::simulated::{Dice, facts, restart};
use anyhow::{Context, Result};
use api::answer::State;
use api::wire::Body;
use model::{HostId, Time, Version};
use serde_json::json;
use std::path::Path;
use std::sync::mpsc;
use std::time::Instant;
use store::{Append, Delta, History, Options};

/// Appends under way at once.
const UNDER_WAY: u64 = 1000;

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let count: u64 = arguments.number("count")?;
    let (every, first): (u64, u64) = (arguments.number("every")?, arguments.number("first")?);
    let spacing = (arguments.number::<f64>("spacing")? * 1e6) as i64;
    let begin_at = arguments.number::<i64>("until")? - spacing * count as i64;
    let directory = Path::new(arguments.text("history")?);
    let dump = Path::new(arguments.text("dump")?);
    let web = HostId::new("web01")?;
    let history = History::open(directory, Options::default())?;
    let mut dice = Dice(42);
    let mut state = facts(1);
    let mut json_bytes = 0;
    let begin = Instant::now();
    let (send, receive) = mpsc::channel();
    for number in 1..=count {
        let at = Time(begin_at + spacing * number as i64);
        let body = if number == 1 {
            store::Body::State(state.clone())
        } else {
            match restart(&mut state, at, &mut dice) {
                Body::Patch { base, next, patch } => store::Body::Patch { base, next, patch },
                Body::Keyframe(facts) => store::Body::State(facts),
            }
        };
        if number <= first || number % every == 0 {
            let state =
                State { host: web.clone(), version: Version(number), at, facts: state.clone() };
            let bytes = serde_json::to_vec(&state)?;
            json_bytes = bytes.len();
            std::fs::write(dump.join(format!("{number:07}.json")), bytes)
                .with_context(|| format!("could not write into {}", dump.display()))?;
        }
        let append = Append {
            host: web.clone(),
            stream: None,
            received: at,
            deltas: vec![Delta { sequence: None, at, body, gap: None, label: None }],
        };
        let send = send.clone();
        history.append(append, move |outcome| {
            // Nobody listens any more once this has failed elsewhere.
            let _unheard = send.send(outcome);
        });
        if number % UNDER_WAY == 0 {
            receive.iter().take(UNDER_WAY as usize).try_for_each(|outcome| outcome.map(drop))?;
        }
    }
    drop(send);
    receive.iter().try_for_each(|outcome| outcome.map(drop))?;
    let seconds = begin.elapsed().as_secs_f64();
    let mut times = Vec::new();
    for _ in 0..2000 {
        let version = Version(1 + dice.roll(count));
        let asked = Instant::now();
        history.state(&web, version)?.context("a version is missing")?;
        times.push(asked.elapsed());
    }
    println!(
        "{}",
        json!({
            "count": count, "seconds": seconds, "json_bytes": json_bytes,
            "p50_ms": crate::percentile(&mut times, 50.0), "p99_ms": crate::percentile(&mut times, 99.0),
        })
    );
    Ok(())
}
