//! `kill -9`, many times, and what is left afterwards.
//!
//! ```text
//!   server   writers ──batches──► server   killed at any moment, started again; a writer
//!                                          sends what was not acknowledged again, as agents do
//!   agent    files that change ──► agent   killed at any moment, started again ──► server
//! ```
//!
//! Every delta makes one version and each host has one sender, so the version of a delta is its
//! sequence number: a lost one leaves a hole, one stored twice moves all that follow.

use crate::Arguments;
use crate::simulated::{Dice, restart};
use anyhow::{Context, Result, bail, ensure};
use api::answer::{Host, State};
use api::client::{Client, Error};
use api::wire::{self, Acknowledged, Batch, Body, Delta};
use model::entity::{File, Unit};
use model::{ContentId, Digest, Facts, Time};
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::task::JoinSet;

const WRITERS: usize = 8;
const FILES: usize = 4;
/// How long a server may take to answer after its start, and the last changes to arrive.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let count: usize = arguments.number("count")?;
    let dir = PathBuf::from(arguments.text("dir")?);
    let twin = PathBuf::from(arguments.text("twin")?);
    let agent = PathBuf::from(arguments.text("agent")?);
    let mut dice = Dice(arguments.number::<u64>("seed")? | 1);
    let server = Server::new(&twin, &dir.join("server"))?;
    let mut tally = server_kills(server, count, &mut dice).await?;
    let server = Server::new(&twin, &dir.join("beside-agent"))?;
    let of_agent = agent_kills(server, &agent, &dir, count, &mut dice).await?;
    tally.acknowledged += of_agent.acknowledged;
    tally.lost += of_agent.lost;
    println!(
        "kills server={count} agent={count} acknowledged={} lost={}",
        tally.acknowledged, tally.lost
    );
    if tally.lost > 0 {
        bail!("{} acknowledged versions are lost or differ", tally.lost);
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Tally {
    acknowledged: u64,
    lost: u64,
}

impl Tally {
    fn lose(&mut self, what: &str) {
        self.lost += 1;
        if self.lost <= 10 {
            eprintln!("lost: {what}");
        }
    }
}

/// A process that ends with its owner.
struct Running(Child);

impl Running {
    fn kill(&mut self) -> Result<()> {
        self.0.kill().context("could not kill")?;
        self.0.wait().map(drop).context("could not wait")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.kill();
    }
}

struct Server {
    twin: PathBuf,
    data: PathBuf,
    address: String,
    running: Option<Running>,
}

impl Server {
    fn new(twin: &Path, data: &Path) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let mut server =
            Self { twin: twin.to_owned(), data: data.to_owned(), address, running: None };
        server.start()?;
        Ok(server)
    }

    fn start(&mut self) -> Result<()> {
        let child = Command::new(&self.twin)
            .args(["server", "--log-level", "error", "--listen", &self.address, "--data-dir"])
            .arg(&self.data)
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("could not start {}", self.twin.display()))?;
        self.running = Some(Running(child));
        Ok(())
    }

    fn client(&self) -> Result<Client> {
        Ok(Client::new(&format!("http://{}", self.address), None)?.with_deadline(PATIENCE))
    }

    async fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut client = self.client()?;
        while client.open(hyper::Method::GET, "/readyz", "", Vec::new().into()).await.is_err() {
            let ended = self.running.as_mut().and_then(|r| r.0.try_wait().ok().flatten());
            if let Some(status) = ended {
                bail!("the server ended with {status} instead of starting");
            }
            ensure!(Instant::now() < deadline, "the server did not come back");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(since.as_micros() as i64)
}

/// What one writer has done: the digest of each version, and how many are acknowledged.
#[derive(Debug, Default)]
struct Written {
    digests: Vec<Digest>,
    acknowledged: u64,
    trouble: Option<String>,
}

async fn server_kills(mut server: Server, count: usize, dice: &mut Dice) -> Result<Tally> {
    server.wait().await?;
    let written: Vec<Arc<Mutex<Written>>> = (0..WRITERS).map(|_| Arc::default()).collect();
    let mut writers = JoinSet::new();
    for (number, written) in written.iter().enumerate() {
        let client = server.client()?.with_deadline(Duration::from_secs(5));
        writers.spawn(write(client, number, Arc::clone(written), dice.roll(u64::MAX)));
    }
    let mut tally = Tally::default();
    for kill in 1..=count {
        tokio::time::sleep(Duration::from_millis(20 + dice.roll(150))).await;
        if let Some(running) = &mut server.running {
            running.kill()?;
        }
        let standing: Vec<u64> = written.iter().map(|w| lock(w).acknowledged).collect();
        server.start()?;
        server.wait().await?;
        let mut client = server.client()?;
        for (number, acknowledged) in standing.into_iter().enumerate() {
            // The newest acknowledged one: what a crash would take first.
            check(&mut client, number, acknowledged, &written[number], &mut tally).await?;
        }
        if kill % 100 == 0 {
            eprintln!("{kill} of {count} kills of the server");
        }
    }
    writers.shutdown().await;
    let mut client = server.client()?;
    for (number, written) in written.iter().enumerate() {
        let acknowledged = lock(written).acknowledged;
        tally.acknowledged += acknowledged;
        for version in 1..=acknowledged {
            check(&mut client, number, version, written, &mut tally).await?;
        }
        if let Some(trouble) = &lock(written).trouble {
            tally.lose(&format!("host kill-{number} {trouble}"));
        }
    }
    ensure!(tally.acknowledged > 0, "nothing was acknowledged at all");
    Ok(tally)
}

fn lock(written: &Mutex<Written>) -> std::sync::MutexGuard<'_, Written> {
    written.lock().expect("no writer panics while it holds it")
}

async fn check(
    client: &mut Client,
    number: usize,
    version: u64,
    written: &Mutex<Written>,
    tally: &mut Tally,
) -> Result<()> {
    let Some(index) = version.checked_sub(1) else { return Ok(()) };
    let expected = lock(written).digests[index as usize];
    match client.get::<State>(&format!("/api/v1/hosts/kill-{number}/state?at=@{version}")).await {
        Ok(state) if state.facts.digest() == expected && state.version.0 == version => {}
        Ok(_) => tally.lose(&format!("host kill-{number} @{version} differs")),
        Err(Error::Refused(body, _)) => {
            tally.lose(&format!("host kill-{number} @{version}: {}", body.message));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Sends changes without end; one batch until it is acknowledged, then the next.
async fn write(mut client: Client, number: usize, written: Arc<Mutex<Written>>, seed: u64) {
    let mut dice = Dice(seed | 1);
    let mut facts = small(&mut dice);
    let path = format!("/api/v1/hosts/kill-{number}/deltas");
    let mut sequence = 0;
    loop {
        let mut deltas = Vec::new();
        for _ in 0..1 + dice.roll(4) {
            sequence += 1;
            let body = match sequence {
                1 => Body::Keyframe(facts.clone()),
                _ => restart(&mut facts, now(), &mut dice),
            };
            lock(&written).digests.push(facts.digest());
            deltas.push(Delta { sequence, at: now(), body, gap: None });
        }
        let batch = Batch {
            stream: format!("stream-{number}"),
            deltas,
            load: Vec::new(),
            agent: String::new(),
            unseen: Vec::new(),
        };
        let body = bytes::Bytes::from(wire::encode(&batch));
        loop {
            let sent = client.send(hyper::Method::POST, &path, wire::MEDIA_TYPE, body.clone());
            match sent.await {
                Ok(answer) => {
                    if let Ok(Acknowledged { sequence: stored, version, .. }) =
                        wire::decode(&answer)
                        && (stored, version.0) != (sequence, sequence)
                    {
                        let trouble = format!(
                            "sent up to {sequence}, acknowledged {stored} as version {version}"
                        );
                        lock(&written).trouble.get_or_insert(trouble);
                    }
                    lock(&written).acknowledged = sequence;
                    break;
                }
                Err(Error::Refused(body, status)) if status.as_u16() < 500 => {
                    lock(&written).trouble.get_or_insert(format!("was refused: {}", body.message));
                    return;
                }
                // Killed, or starting: the same again.
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }
}

/// The units that `restart` changes, and little else, so that many versions are read quickly.
fn small(dice: &mut Dice) -> Facts {
    let mut facts = Facts::default();
    for number in 0..60 {
        facts.put_entity(&Unit {
            id: format!("service-{number:03}.service"),
            active_state: "active".into(),
            main_pid: Some(dice.roll(32_768) as i64),
            ..Unit::default()
        });
    }
    facts
}

/// The files that change while the agent is killed.
struct Tracked {
    dir: PathBuf,
    contents: Vec<String>,
}

impl Tracked {
    fn new(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir)?;
        // The agent tells of paths without symbolic links.
        let dir = dir.canonicalize()?;
        let mut tracked = Self { dir, contents: vec![String::new(); FILES] };
        (0..FILES as u64).try_for_each(|number| tracked.change(number, 0))?;
        Ok(tracked)
    }

    fn path(&self, index: usize) -> String {
        self.dir.join(format!("file-{index}.conf")).to_string_lossy().into_owned()
    }

    fn change(&mut self, number: u64, turn: u64) -> Result<()> {
        let index = number as usize % FILES;
        self.contents[index] = format!("turn = {turn}\n");
        Ok(std::fs::write(self.path(index), &self.contents[index])?)
    }

    /// The files of which a state says something else than what they hold.
    fn behind(&self, facts: &Facts) -> Vec<String> {
        let says = |index: &usize| {
            let file: Option<File> = facts.entity(&self.path(*index));
            let expected = ContentId::of(self.contents[*index].as_bytes()).to_string();
            file.and_then(|file| file.content).as_deref() != Some(&expected)
        };
        (0..FILES).filter(says).map(|index| self.path(index)).collect()
    }
}

async fn agent_kills(
    mut server: Server,
    agent: &Path,
    dir: &Path,
    count: usize,
    dice: &mut Dice,
) -> Result<Tally> {
    server.wait().await?;
    let mut tracked = Tracked::new(&dir.join("tracked"))?;
    let configuration = dir.join("agent.yaml");
    let text = format!(
        "server: http://{}\nhost: killed-agent\nstate_dir: {}\ninterval: 1\ntrack: [{}/*]\n",
        server.address,
        dir.join("agent").display(),
        tracked.dir.display(),
    );
    std::fs::write(&configuration, text)?;
    let log = std::fs::File::create(dir.join("agent.log"))?;
    let start = || -> Result<Running> {
        let mut command = Command::new(agent);
        let command = command.arg("--config").arg(&configuration).stdin(Stdio::null());
        let command = command.stdout(Stdio::null()).stderr(log.try_clone()?);
        Ok(Running(command.spawn().context("could not start the agent")?))
    };
    let mut client = server.client()?;
    let mut seen: BTreeMap<u64, Digest> = BTreeMap::new();
    let mut tally = Tally::default();
    let mut turn = 0;
    for kill in 1..=count {
        let mut running = start()?;
        // Before its first delta, while it sends that, and while it sends others.
        let head = seen.keys().next_back().copied().unwrap_or(0);
        let mut end = Instant::now() + Duration::from_millis(50 + dice.roll(500));
        let mut reached = dice.roll(3) == 0;
        while !reached || Instant::now() < end {
            turn += 1;
            tracked.change(turn, turn)?;
            tokio::time::sleep(Duration::from_millis(5 + dice.roll(60))).await;
            if !reached && Instant::now() > end {
                let path = "/api/v1/hosts/killed-agent";
                reached = client.get::<Host>(path).await.is_ok_and(|host| host.version.0 > head);
                if reached {
                    end = Instant::now() + Duration::from_millis(dice.roll(300));
                }
                ensure!(end.elapsed() < PATIENCE, "the agent brings nothing to the server");
            }
        }
        running.kill()?;
        // A change that no agent saw as it happened.
        turn += 1;
        tracked.change(turn, turn)?;
        note_head(&mut client, &mut seen, &mut tally).await?;
        if kill % 100 == 0 {
            eprintln!("{kill} of {count} kills of the agent");
        }
    }
    let _running = start()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let state = client.get::<State>("/api/v1/hosts/killed-agent/state").await;
        let behind = state.as_ref().map_or(Vec::new(), |state| tracked.behind(&state.facts));
        if state.is_ok() && behind.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            tally.lose(&format!("after the last start the server does not know {behind:?}"));
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    note_head(&mut client, &mut seen, &mut tally).await?;
    read_all(&mut client, &seen, &tracked, &mut tally).await?;
    Ok(tally)
}

/// The head now: never behind one seen before.
async fn note_head(
    client: &mut Client,
    seen: &mut BTreeMap<u64, Digest>,
    tally: &mut Tally,
) -> Result<()> {
    match client.get::<State>("/api/v1/hosts/killed-agent/state").await {
        Ok(state) => {
            if seen.keys().next_back().is_some_and(|newest| *newest > state.version.0) {
                tally.lose(&format!("the head went back to {}", state.version));
            }
            seen.insert(state.version.0, state.facts.digest());
        }
        Err(Error::Refused(body, _)) if seen.is_empty() && body.code == "unknown_host" => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Every version there is, from the first: readable, as it was seen, its contents there.
async fn read_all(
    client: &mut Client,
    seen: &BTreeMap<u64, Digest>,
    tracked: &Tracked,
    tally: &mut Tally,
) -> Result<()> {
    let newest = *seen.keys().next_back().context("the agent never reached the server")?;
    let mut contents = std::collections::BTreeSet::new();
    for version in 1..=newest {
        let path = format!("/api/v1/hosts/killed-agent/state?at=@{version}");
        match client.get::<State>(&path).await {
            Ok(state) => {
                if seen.get(&version).is_some_and(|digest| *digest != state.facts.digest()) {
                    tally.lose(&format!("killed-agent @{version} is no longer what it was"));
                }
                let files = (0..FILES).filter_map(|i| state.facts.entity::<File>(&tracked.path(i)));
                contents.extend(files.filter_map(|file| file.content));
            }
            Err(error) => tally.lose(&format!("killed-agent @{version}: {error}")),
        }
    }
    for id in &contents {
        let path = format!("/api/v1/hosts/killed-agent/contents/{id}");
        if let Err(error) = client.send(hyper::Method::GET, &path, "", bytes::Bytes::new()).await {
            tally.lose(&format!("content {id}: {error}"));
        }
    }
    eprintln!("agent: {newest} versions, {} contents", contents.len());
    tally.acknowledged += newest;
    Ok(())
}
