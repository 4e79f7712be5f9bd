//! One look at every process: ours, the floor, and others, in turn, on the same processes.
//!
//! A peer in another language is a command that makes one look for each line it reads, and
//! answers with the seconds it took.

use crate::Arguments;
use anyhow::{Context, Result};
use host::process::Scanner;
use host::{Now, Root};
use model::redact::Redactor;
use serde_json::json;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System, UpdateKind};

/// Ends what it started, whatever happens.
struct Children(Vec<Child>);

impl Drop for Children {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended by itself.
            let _ended = child.kill().and_then(|()| child.wait());
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let processes: usize = arguments.number("processes")?;
    let rounds: usize = arguments.number("rounds")?;
    let mut children = Children(Vec::new());
    for number in 0..processes {
        let sleep = Command::new("sleep").arg((3600 + number).to_string()).spawn();
        children.0.push(sleep.context("could not start sleep")?);
    }
    let mut peer = arguments.maybe("peer").map(Peer::start).transpose()?;
    let redactor = Redactor::new([7; 32], Vec::new());
    let mut scanner = Scanner::new(&Root::live())?;
    let begin = Instant::now();
    let mut system = System::new();
    let kind = ProcessRefreshKind::nothing()
        .with_cpu()
        .with_memory()
        .with_user(UpdateKind::OnlyIfNotSet)
        .with_cmd(UpdateKind::OnlyIfNotSet)
        .with_exe(UpdateKind::OnlyIfNotSet)
        .without_tasks();
    let mut buffer = vec![0; 4096];
    let (mut floor, mut ours, mut sysinfo, mut peers) = (vec![], vec![], vec![], vec![]);
    let mut first = 0.0;
    for round in 0..=rounds {
        let look = Instant::now();
        bare(&mut buffer)?;
        floor.push(look.elapsed());
        let now = Now { clock: begin.elapsed(), ..Now::default() };
        let look = Instant::now();
        scanner.scan(now, &redactor)?;
        ours.push(look.elapsed());
        let look = Instant::now();
        system.refresh_processes_specifics(ProcessesToUpdate::All, true, kind);
        sysinfo.push(look.elapsed());
        if let Some(peer) = &mut peer {
            peers.push(peer.look()?);
        }
        if round == 0 {
            // The first look reads what later ones remember; it is told apart.
            first = ours[0].as_secs_f64() * 1e3;
            for times in [&mut floor, &mut ours, &mut sysinfo, &mut peers] {
                times.clear();
            }
        }
    }
    let median = |times: &mut [Duration]| crate::percentile(times, 50.0);
    println!(
        "{}",
        json!({
            "first_ms": first, "floor_ms": median(&mut floor), "ours_ms": median(&mut ours),
            "sysinfo_ms": median(&mut sysinfo), "peer_ms": median(&mut peers), "groups": scanner.groups().count(),
        })
    );
    Ok(())
}

/// The floor: every `/proc/PID/stat`, read and thrown away.
fn bare(buffer: &mut [u8]) -> Result<usize> {
    let mut bytes = 0;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        if name.as_encoded_bytes().first().is_some_and(u8::is_ascii_digit) {
            let file = File::open(Path::new("/proc").join(name).join("stat"));
            bytes += file.and_then(|mut file| file.read(buffer)).unwrap_or(0);
        }
    }
    Ok(bytes)
}

struct Peer {
    process: Children,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(command: &str) -> Result<Self> {
        let mut words = command.split_whitespace();
        let mut child = Command::new(words.next().context("an empty command")?)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().context("no standard input")?;
        let output = child.stdout.take().context("no standard output")?;
        Ok(Self { process: Children(vec![child]), input, output: BufReader::new(output) })
    }

    fn look(&mut self) -> Result<Duration> {
        self.input.write_all(b"look\n")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let seconds = line.trim().parse();
        let ended = || format!("the peer {} ended", self.process.0[0].id());
        Ok(Duration::from_secs_f64(seconds.with_context(ended)?))
    }
}
