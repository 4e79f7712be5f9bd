//! Measures what the history costs: `measure versions [N] [bulk]`, `measure appends [HOSTS] [SECONDS]`.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::panic,
    reason = "a measuring tool"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Dice, NOON, append, host, large, must_work, patch, restarted, seconds};
use model::{Time, Version};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use store::{Body, Filter, History, Options};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |index: usize, default: u64| arguments.get(index).map_or(default, |n| n.parse().unwrap());
    match arguments.first().map(String::as_str) {
        Some("versions") => versions(number(1, 100_000)),
        Some("appends") => appends(number(1, 10_000), number(2, 10)),
        Some("days") => days(number(1, 400), number(2, 20)),
        Some("heads") => heads(number(1, 10_000)),
        _ => panic!(
            "measure days [DAYS] [HOSTS] | heads [HOSTS] | versions [N] | appends [HOSTS] [SECONDS]"
        ),
    }
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() * percent / 100).min(times.len() - 1)]
}

/// Bytes per version of a 65 KB state with one small change, and times to read.
fn versions(count: u64) {
    let directory = tempfile::tempdir_in(".").unwrap();
    let web = host("web01");
    let mut dice = Dice(42);
    let mut state = large(1);
    let json = serde_json_length(&state);
    println!("state: {} items, {json} bytes of JSON", state.len());
    {
        let history = History::open(directory.path(), Options::default()).unwrap();
        history.append_and_wait(append(&web, NOON, Body::State(state.clone()))).unwrap();
        let begun = Instant::now();
        let (send, receive) = mpsc::channel();
        for n in 1..count {
            let unit = dice.roll(60);
            let next = restarted(&state, unit, &mut dice);
            // All of it within one day, so that one bucket has it.
            let at = Time(NOON.0 + (n * 400_000 % 40_000_000_000) as i64);
            let one = append(&web, at, patch(&state, &next));
            state = next;
            let send = send.clone();
            history.append(one, move |outcome| send.send(outcome).unwrap());
            if n % 1000 == 0 {
                receive.iter().take(1000).for_each(must_work);
            }
        }
        drop(send);
        receive.iter().for_each(must_work);
        println!("appended {count} in {:?}", begun.elapsed());
        println!("open: {} bytes per version", common::disk_usage(directory.path()) / count);
    }
    let closed = common::disk_usage(directory.path());
    println!("closed: {} bytes per version ({closed})", closed / count);
    let begun = Instant::now();
    let history = History::open(directory.path(), Options::default()).unwrap();
    println!("opened in {:?}", begun.elapsed());
    for round in ["cold", "warm"] {
        let mut times: Vec<Duration> = (0..2000)
            .map(|_| {
                let version = Version(1 + dice.roll(count));
                let begun = Instant::now();
                assert!(history.state(&web, version).unwrap().is_some());
                begun.elapsed()
            })
            .collect();
        let [p50, p99, max] = [50, 99, 100].map(|percent| percentile(&mut times, percent));
        println!("state at a version, {round}: p50 {p50:?} p99 {p99:?} max {max:?}");
    }
    let head = history.head(&web).unwrap().unwrap();
    assert_eq!(head.facts, state);
    let time = |what: &str, act: &dyn Fn() -> usize| {
        let begun = Instant::now();
        let found = act();
        println!("{what}: {found} in {:?}", begun.elapsed());
    };
    let of =
        |subject: &str| Filter { subjects: vec![subject.parse().unwrap()], ..Filter::default() };
    time("log, 60 newest", &|| history.log(&web, &Filter::default(), None, 60).unwrap().len());
    time("log of one of 60 units, 60 newest", &|| {
        history.log(&web, &of("unit:service-007.service"), None, 60).unwrap().len()
    });
    time("log of a package never changed", &|| {
        let packages = history.head(&web).unwrap().unwrap().facts;
        let package = packages.of_kind(model::Kind::PACKAGE).next().unwrap().0.to_string();
        history.log(&web, &of(&package), None, 60).unwrap().len()
    });
    time("version at a time", &|| {
        history.version_at(&web, NOON.plus(seconds(9000))).unwrap().unwrap().0 as usize
    });
    println!("{:?}", history.stats());
}

fn serde_json_length(facts: &model::Facts) -> usize {
    // Close to JSON: quotes, colons, commas.
    facts
        .iter()
        .map(|(subject, item)| subject.to_string().len() + 6 + item.len() + item.fields().len() * 4)
        .sum()
}

/// Restarts a unit in place, at the cost of the change.
fn restart(state: &mut model::Facts, number: u64, dice: &mut Dice) -> Body {
    let base = state.digest();
    let id = format!("service-{number:03}.service");
    let subject: model::Subject = format!("unit:{id}").parse().unwrap();
    let before = state.get(&subject).unwrap().fields();
    let mut unit: model::entity::Unit = state.entity(&id).unwrap();
    unit.main_pid = Some(dice.roll(32_768) as i64);
    unit.since = Some(Time(NOON.0 + dice.roll(1_000_000_000) as i64));
    state.put_entity(&unit);
    let (mut was, mut now) = (before, state.get(&subject).unwrap().fields());
    was.retain(|name, value| now.get(name) != Some(value));
    now.retain(|name, _| was.contains_key(name));
    let patch = model::Patch([(subject, model::Op::Edited { was, now })].into());
    Body::Patch { base, next: state.digest(), patch }
}

/// A year of a few hosts: opening, and expiring.
fn days(days: u64, hosts: u64) {
    let directory = tempfile::tempdir_in(".").unwrap();
    let mut dice = Dice(7);
    {
        let history = History::open(directory.path(), Options::default()).unwrap();
        let mut states: Vec<_> =
            (0..hosts).map(|n| (host(&format!("host-{n}")), large(n + 1))).collect();
        for (name, state) in &states {
            history.append_and_wait(append(name, NOON, Body::State(state.clone()))).unwrap();
        }
        let begun = Instant::now();
        for n in 1..=days * 10 {
            let at = NOON.plus(seconds(n * 8640));
            for (name, state) in &mut states {
                while history.stats().queue > 4000 {
                    std::thread::yield_now();
                }
                let one = append(name, at, restart(state, dice.roll(60), &mut dice));
                history.append(one, must_work);
            }
        }
        println!("{days} days of {hosts} hosts in {:?}", begun.elapsed());
    }
    println!("closed: {} bytes", common::disk_usage(directory.path()));
    let begun = Instant::now();
    let history = History::open(directory.path(), Options::default()).unwrap();
    println!("opened in {:?}, resident {} MB", begun.elapsed(), resident_bytes() >> 20);
    let name = host("host-3");
    let mut times: Vec<Duration> = (0..1000)
        .map(|_| {
            let begun = Instant::now();
            assert!(history.state(&name, Version(1 + dice.roll(days * 10))).unwrap().is_some());
            begun.elapsed()
        })
        .collect();
    let [p50, p99] = [50, 99].map(|percent| percentile(&mut times, percent));
    println!("state at a version: p50 {p50:?} p99 {p99:?}");
    let begun = Instant::now();
    let filter =
        Filter { subjects: vec!["unit:service-007.service".parse().unwrap()], ..Filter::default() };
    let found = history.log(&name, &filter, None, 1000).unwrap().len();
    println!("log of a unit over all days: {found} in {:?}", begun.elapsed());
    let begun = Instant::now();
    let report = history.expire(NOON.plus(seconds(days * 86_400))).unwrap();
    println!("expired in {:?}: {report:?}", begun.elapsed());
    drop(history);
    println!("closed: {} bytes", common::disk_usage(directory.path()));
}

/// Memory that the heads of many hosts take.
fn heads(hosts: u64) {
    let directory = tempfile::tempdir_in(".").unwrap();
    let history = History::open(directory.path(), Options::default()).unwrap();
    let before = resident_bytes();
    for n in 0..hosts {
        while history.stats().queue > 100 {
            std::thread::yield_now();
        }
        let name = host(&format!("host-{n}"));
        history.append(append(&name, NOON, Body::State(large(n + 1))), must_work);
    }
    while history.stats().appends < hosts {
        std::thread::yield_now();
    }
    let per_host = (resident_bytes() - before) / hosts;
    println!(
        "resident: {} MB, {per_host} bytes per host; {:?}",
        resident_bytes() >> 20,
        history.stats()
    );
}

/// Durable appends per second of many hosts at once.
fn appends(hosts: u64, duration: u64) {
    let directory = tempfile::tempdir_in(".").unwrap();
    let history = History::open(directory.path(), Options::default()).unwrap();
    let mut dice = Dice(7);
    let mut states = Vec::new();
    let begun = Instant::now();
    for n in 0..hosts {
        let name = host(&format!("host-{n}"));
        let state = large(n / 4 + 1);
        // Without waiting for each, as long as there is room.
        while history.stats().queue > 100 {
            std::thread::yield_now();
        }
        history.append(append(&name, NOON, Body::State(state.clone())), must_work);
        states.push((name, state));
    }
    while history.stats().appends < hosts {
        std::thread::yield_now();
    }
    println!("{hosts} hosts in {:?}, resident {} MB", begun.elapsed(), resident_bytes() >> 20);
    // Prepared beforehand: the senders are other machines.
    let done = Arc::new(AtomicU64::new(0));
    let busy = Arc::new(AtomicU64::new(0));
    let mut sent = 0u64;
    let mut prepare = Duration::ZERO;
    let begun = Instant::now();
    let cpu = cpu_time();
    'all: loop {
        for (name, state) in &mut states {
            if begun.elapsed() > Duration::from_secs(duration) {
                break 'all;
            }
            let preparing = Instant::now();
            let at = Time(NOON.0 + sent as i64 * 1000);
            let one = append(name, at, restart(state, dice.roll(60), &mut dice));
            prepare += preparing.elapsed();
            while sent - done.load(Ordering::Relaxed) > 4000 {
                std::thread::yield_now();
            }
            let (done, busy) = (done.clone(), busy.clone());
            history.append(one, move |outcome| {
                if outcome.is_err() {
                    busy.fetch_add(1, Ordering::Relaxed);
                }
                done.fetch_add(1, Ordering::Relaxed);
            });
            sent += 1;
        }
    }
    while done.load(Ordering::Relaxed) < sent {
        std::thread::yield_now();
    }
    let elapsed = begun.elapsed();
    println!(
        "{sent} durable appends in {elapsed:?}: {:.0}/s, {} failed; preparing took {prepare:?} of one core; CPU {:?}",
        sent as f64 / elapsed.as_secs_f64(),
        busy.load(Ordering::Relaxed),
        cpu_time() - cpu
    );
    println!("{:?}", history.stats());
    println!("resident: {} MB", resident_bytes() >> 20);
}

fn resident_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

fn cpu_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = text.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}
