//! Measures what a scan of many processes costs, against a bare loop that reads every
//! `/proc/PID/stat`; and what a sample of many units costs.
//!
//! `cargo run --release -p host --example scan_cost -- [PROCESSES] [UNITS]`. Starts that many
//! `sleep`, and ends them. As root, makes that many control groups, and removes them.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use host::load::Sampler;
use host::process::Scanner;
use host::sockets::{Depth, Sockets};
use host::{Now, Root};
use model::redact::Redactor;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const ROUNDS: usize = 40;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let processes = arguments.next().transpose()?.unwrap_or(1000);
    let units = arguments.next().transpose()?.unwrap_or(200);
    let mut children = Vec::new();
    for number in 0..processes {
        children.push(Command::new("sleep").arg(format!("{}", 3600 + number)).spawn()?);
    }
    let outcome = measure(units);
    end(children);
    outcome
}

fn measure(units: usize) -> Result<(), Box<dyn std::error::Error>> {
    let root = Root::live();
    let redactor = Redactor::new([7; 32], Vec::new());
    let begin = Instant::now();
    let now = || Now { clock: begin.elapsed(), ..Now::default() };
    let before = resident_kib();
    let mut scanner = Scanner::new(&root)?;
    let (first, scan) = timed(|| scanner.scan(now(), &redactor));
    println!(
        "first scan      {first:>9.1?}  {} processes, {} groups",
        scan?.processes,
        scanner.groups().count()
    );
    println!("memory          {} KiB more", resident_kib() - before);
    let (mut bare, mut scans, mut buffer) = (Vec::new(), Vec::new(), vec![0; 4096]);
    for _ in 0..ROUNDS {
        bare.push(timed(|| bare_loop(&mut buffer)).0);
        let (took, scan) = timed(|| scanner.scan(now(), &redactor));
        scan?;
        scans.push(took);
    }
    let (bare, scan) = (median(bare), median(scans));
    println!("bare loop       {bare:>9.1?}");
    println!(
        "scan            {scan:>9.1?}  {:.2} times the bare loop",
        scan.as_secs_f64() / bare.as_secs_f64()
    );
    println!(
        "refresh of one  {:>9.1?}",
        timed(|| scanner.refresh(&[std::process::id()], now(), &redactor)).0
    );
    println!("items           {:>9.1?}", timed(|| scanner.groups().count()).0);

    let mut sockets = Sockets::new(&root)?;
    println!(
        "first sockets   {:>9.1?}",
        timed(|| sockets.observe(&scanner, Depth::Connections).is_ok()).0
    );
    println!(
        "sockets         {:>9.1?}",
        timed(|| sockets.observe(&scanner, Depth::Connections).is_ok()).0
    );

    let groups = Groups::make(units);
    let names = || groups.names.iter().map(|name| (name.as_str(), name.as_str()));
    let mut sampler = Sampler::new(&root);
    let mut sample = || {
        let units = sampler.measure(now(), names());
        sampler.sample(now(), &scanner, units)
    };
    let (first, load) = timed(&mut sample);
    println!("first sample    {first:>9.1?}  {} units", load.units.len());
    let idle = (0..ROUNDS).map(|_| timed(&mut sample).0).collect();
    println!("sample          {:>9.1?}", median(idle));
    Ok(())
}

fn bare_loop(buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut bytes = 0;
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit) {
            let file = File::open(Path::new("/proc").join(entry.file_name()).join("stat"));
            bytes += file.and_then(|mut file| file.read(buffer)).unwrap_or(0);
        }
    }
    Ok(bytes)
}

fn timed<T>(run: impl FnOnce() -> T) -> (Duration, T) {
    let begin = Instant::now();
    let result = run();
    (begin.elapsed(), result)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn resident_kib() -> i64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

/// Control groups that stand for units.
struct Groups {
    names: Vec<String>,
    made: Vec<PathBuf>,
}

impl Groups {
    fn make(count: usize) -> Self {
        let base = Path::new("/sys/fs/cgroup");
        let hierarchies = match base.join("cgroup.controllers").exists() {
            true => vec![base.to_owned()],
            false => {
                ["unified", "cpuacct", "memory", "pids", "blkio"].map(|h| base.join(h)).to_vec()
            }
        };
        let mut groups = Self { names: Vec::new(), made: Vec::new() };
        for number in 0..count {
            let name = format!("safetytwin-cost/{number}.service");
            for hierarchy in &hierarchies {
                let path = hierarchy.join(&name);
                if fs::create_dir_all(&path).is_ok() {
                    groups.made.push(path);
                }
            }
            groups.names.push(name);
        }
        groups
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        for path in &self.made {
            let removed = fs::remove_dir(path);
            // The last of them takes the folder with it.
            let folder = path.parent().map(fs::remove_dir);
            if let (Err(error), _) = (removed, folder) {
                println!("could not remove {}: {error}", path.display());
            }
        }
    }
}

fn end(children: Vec<Child>) {
    for mut child in children {
        if let Err(error) = child.kill().and_then(|()| child.wait()) {
            println!("could not end {}: {error}", child.id());
        }
    }
}
