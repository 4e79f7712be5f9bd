//! A machine as a machine: giving it power, taking it away, looking how it is.
//!
//! ```text
//! power_on: run/N made ─► network ─► QEMU, running or waiting for a saved moment ─► a port to SSH
//! ```

use super::command::{self, Command, Memory};
use super::home::{Below, Definition, Home, entries, remove};
use super::process::{self, Process};
use super::qmp::{self, Qmp};
use super::recover::put_right;
use super::{Qemu, network};
use crate::console;
use crate::content;
use crate::guest_agent::last_of;
use crate::image::Image;
use crate::job::Job;
use crate::machine::{Acceleration, Error, Network, Seen, State};
use serde::Deserialize;
use serde_json::json;
use std::net::Ipv4Addr;
use std::time::Duration;

/// A monitor that is free answers at once.
const GREETING: Duration = Duration::from_secs(5);
/// How long a guest may take to power off.
const SHUTDOWN: Duration = Duration::from_secs(180);

/// As which it stands still while an operation is on, and else never.
const STANDS: [&str; 7] =
    ["paused", "inmigrate", "prelaunch", "postmigrate", "finish-migrate", "save-vm", "restore-vm"];

/// What a QEMU is started as.
pub(super) struct Start<'a> {
    pub(super) definition: &'a Definition,
    pub(super) image: &'a Image,
    pub(super) run: u64,
    pub(super) layer: u64,
    pub(super) machine_type: &'a str,
    pub(super) acceleration: Acceleration,
    pub(super) memory: Memory,
    pub(super) network: Network,
}

/// A QEMU that was started, and the port to its SSH if that is open by now.
pub(super) struct Started {
    pub(super) qmp: Qmp,
    pub(super) ssh_port: Option<u16>,
}

#[derive(Deserialize)]
struct Status {
    status: String,
}

impl Qemu {
    pub(super) async fn image(&self, definition: &Definition, job: &Job) -> Result<Image, Error> {
        self.images.acquire_for(&definition.hardware.image, job).await
    }

    pub(super) async fn power_on(&self, home: &Home, job: &Job) -> Result<(), Error> {
        let definition = home.load()?;
        match self.look(home).await?.state {
            State::Stopped => {}
            _ => return self.go_on(home, definition).await,
        }
        self.check_disk(home, &definition, job).await?;
        let image = self.image(&definition, job).await?;
        let found = self.acceleration(&image, job).await?;
        job.step(format!("Starting {} with {}", home.name, found.acceleration.as_str()));
        if let Some(reason) = &found.reason {
            job.line(reason.clone());
        }
        let definition = home.change(|definition| {
            definition.run = Some(definition.number());
            definition.guest = None;
        })?;
        let start = Start {
            definition: &definition,
            image: &image,
            run: definition.run.unwrap_or_default(),
            layer: definition.active,
            machine_type: "pc",
            acceleration: found.acceleration,
            memory: Memory::Fresh,
            network: definition.network,
        };
        let mut started = self.spawn(home, start, job).await?;
        self.open_way_in(home, &mut started, job).await?;
        home.sweep(&home.load()?)
    }

    /// Compares what its disk stands on, of itself and of others, with what it was when it was
    /// saved: what is damaged is not booted.
    async fn check_disk(
        &self,
        home: &Home,
        definition: &Definition,
        job: &Job,
    ) -> Result<(), Error> {
        let (this, at, definition) = (self.clone(), home.clone(), definition.clone());
        let job_ = job.clone();
        job.block(move || {
            // What it writes to has no digest.
            let written = definition.unsealed(definition.active);
            let top = written.last().copied().unwrap_or(definition.active);
            match definition.layers.get(&top).map(|layer| &layer.below) {
                Some(Below::Layer(below)) => this.verify(&at, &definition, *below, &job_),
                Some(Below::Of { machine, layer }) => {
                    this.verify_origin(&this.home(machine), *layer, &job_)
                }
                Some(Below::Image) | None => Ok(()),
            }
        })
        .await
    }

    /// Starts a QEMU in a run's directory. When that fails, nothing of it is left.
    pub(super) async fn spawn(
        &self,
        home: &Home,
        start: Start<'_>,
        job: &Job,
    ) -> Result<Started, Error> {
        let run = home.run(start.run);
        process::make(&run)?;
        let log = home.console_log();
        console::bound(&log).map_err(Error::file("cut", &log))?;
        let command = Command {
            hardware: &start.definition.hardware,
            image: start.image,
            network: start.network,
            acceleration: start.acceleration,
            machine_type: start.machine_type,
            memory: start.memory,
            layer: (start.layer, home.layer(start.layer)),
            seed: home.seed(),
            console_log: log,
        };
        let begin = async {
            let wanted = start.definition.ssh_port;
            let ssh_port = network::before(start.network, &run, wanted, job).await?;
            let qmp = process::start(&command, &run, job).await?;
            Ok(Started { qmp, ssh_port })
        };
        match begin.await {
            Ok(started) => Ok(started),
            Err(error) => {
                abandon(home, start.run).await?;
                Err(error)
            }
        }
    }

    /// Lets SSH in, and writes down where.
    pub(super) async fn open_way_in(
        &self,
        home: &Home,
        started: &mut Started,
        job: &Job,
    ) -> Result<(), Error> {
        let Definition { ssh_port: wanted, guest, .. } = home.load()?;
        let port = match started.ssh_port {
            Some(port) => port,
            None => network::after(&mut started.qmp, &home.name, wanted, guest).await?,
        };
        if let Some(taken) = wanted.filter(|wanted| *wanted != port) {
            job.line(format!("port {taken} is taken: SSH is at {port} now"));
        }
        if wanted != Some(port) {
            home.change(|definition| definition.ssh_port = Some(port))?;
        }
        Ok(())
    }

    /// Leads SSH to another address of the guest. Where passt is the network there is but one.
    pub(super) async fn move_way_in(&self, home: &Home, to: &[Ipv4Addr]) -> Result<(), Error> {
        let (definition, doing) = (home.load()?, "lead SSH to it");
        let Some((run, _)) = running(home, &definition)? else {
            return Err(Error::NotRunning { name: home.name.clone(), doing });
        };
        let Some(port) = definition.ssh_port.filter(|_| definition.network == Network::Isolated)
        else {
            return Ok(());
        };
        let mut qmp = monitor(home, run, doing).await?;
        let guest = network::move_to(&mut qmp, &home.name, port, to).await?;
        if definition.guest != Some(guest) {
            home.change(|definition| definition.guest = Some(guest))?;
        }
        Ok(())
    }

    pub(super) async fn power_down(&self, home: &Home, job: &Job) -> Result<(), Error> {
        let definition = home.load()?;
        let doing = "power off";
        let Some((run, process)) = running(home, &definition)? else { return Ok(()) };
        job.step(format!("Asking {} to power off", home.name));
        let mut qmp = monitor(home, run, doing).await?;
        qmp.act("system_powerdown", json!({})).await.map_err(refused(home, doing))?;
        // The monitor would keep others out while the guest takes its time.
        drop(qmp);
        let ended = tokio::time::timeout(SHUTDOWN, job.within(process.ended())).await;
        match ended {
            Ok(ended) => ended,
            Err(_) => {
                let (name, console) = (home.name.clone(), last_of(&home.console_log()));
                Err(Error::Silent { name, doing, limit: SHUTDOWN, console })
            }
        }
    }

    pub(super) async fn cut_power(&self, home: &Home) -> Result<(), Error> {
        for process in processes(home)? {
            process.kill().await?;
        }
        for run in runs(home)? {
            end_network(home, run).await?;
        }
        Ok(())
    }

    /// Lets a machine that stands still go on. One that runs is left alone.
    async fn go_on(&self, home: &Home, definition: Definition) -> Result<(), Error> {
        let doing = "go on";
        let Some((run, _)) = running(home, &definition)? else { return Ok(()) };
        if ask(home, run).await.is_ok_and(|status| status == "running") {
            return Ok(());
        }
        let mut qmp = monitor(home, run, doing).await?;
        put_right(home, &mut qmp, definition).await?;
        qmp.act("cont", json!({})).await.map_err(refused(home, doing))
    }

    pub(super) async fn look(&self, home: &Home) -> Result<Seen, Error> {
        let definition = home.load()?;
        let mut acceleration = None;
        let state = match running(home, &definition)? {
            None => State::Stopped,
            Some((run, process)) => {
                acceleration = process::acceleration(&home.run(run));
                let worked_with = self.turns.is_taken(&home.name);
                match ask(home, run).await {
                    Ok(status)
                        if STANDS.contains(&status.as_str())
                            && !worked_with
                            && !self.turns.is_taken(&home.name) =>
                    {
                        State::Stuck(
                            "an operation that was cut off left it standing still; start it"
                                .to_owned(),
                        )
                    }
                    Ok(status) => state(&status),
                    // It may have ended just now.
                    Err(_) if running(home, &definition)?.is_none() => State::Stopped,
                    Err(error) => {
                        drop(process);
                        State::Stuck(format!("QEMU does not answer: {error}"))
                    }
                }
            }
        };
        let is_stopped = state == State::Stopped;
        Ok(Seen {
            state,
            image: definition.hardware.image,
            memory_bytes: definition.hardware.memory_bytes,
            processors: definition.hardware.processors,
            mac: definition.hardware.mac,
            network: definition.network,
            acceleration,
            ssh_port: definition.ssh_port.filter(|_| !is_stopped),
            origin: definition.origin.map(|origin| (origin.machine, origin.snapshot)),
            current: definition.current,
            used_bytes: content::used(&home.dir),
            console_log: home.console_log(),
        })
    }
}

/// The status of QEMU.
async fn ask(home: &Home, run: u64) -> Result<String, qmp::Error> {
    let opened = process::socket(&home.run(run), command::LOOK);
    let (_dir, path) = opened.map_err(|_gone| qmp::Error::Closed)?;
    let status: Status = Qmp::ask(&path, GREETING, "query-status").await?;
    Ok(status.status)
}

fn state(status: &str) -> State {
    match status {
        "running" | "suspended" => State::Running,
        passed if STANDS.contains(&passed) => State::Running,
        "shutdown" => State::Stopped,
        "io-error" => State::Starved,
        "guest-panicked" => State::Stuck("its kernel panicked".to_owned()),
        other => State::Stuck(format!("QEMU says {other}")),
    }
}

/// The run that is on, and its process.
pub(super) fn running(
    home: &Home,
    definition: &Definition,
) -> Result<Option<(u64, Process)>, Error> {
    let Some(run) = definition.run else { return Ok(None) };
    Ok(process::find(&home.run(run))?.map(|process| (run, process)))
}

/// All that has power in a machine's directory, whether or not its definition can be read.
pub(super) fn processes(home: &Home) -> Result<Vec<Process>, Error> {
    if !home.exists() {
        return Err(Error::Unknown { name: home.name.clone() });
    }
    let found = runs(home)?.into_iter().map(|run| process::find(&home.run(run)));
    found.filter_map(Result::transpose).collect()
}

/// The runs that a machine's directory has something of.
pub(super) fn runs(home: &Home) -> Result<Vec<u64>, Error> {
    let runs = home.dir.join("run");
    if !runs.exists() {
        return Ok(Vec::new());
    }
    Ok(entries(&runs)?.iter().filter_map(|name| name.parse().ok()).collect())
}

pub(super) async fn monitor(home: &Home, run: u64, doing: &'static str) -> Result<Qmp, Error> {
    let (_dir, path) = process::socket(&home.run(run), command::MONITOR)?;
    Qmp::connect(&path, GREETING).await.map_err(refused(home, doing))
}

/// What the monitor said, as an error of this machine.
pub(super) fn refused(home: &Home, doing: &'static str) -> impl Fn(qmp::Error) -> Error + use<> {
    let name = home.name.clone();
    move |error| match error {
        qmp::Error::Closed => Error::Gone { name: name.clone(), doing },
        error => Error::Refused { name: name.clone(), doing, what: error.to_string() },
    }
}

/// Ends what was begun in a run's directory, and removes that.
pub(super) async fn abandon(home: &Home, run: u64) -> Result<(), Error> {
    let dir = home.run(run);
    if let Some(process) = process::find(&dir)? {
        process.kill().await?;
    }
    end_network(home, run).await?;
    remove(&dir)
}

/// Ends what is the network of a run that has no power any more.
pub(super) async fn end_network(home: &Home, run: u64) -> Result<(), Error> {
    match process::find_network(&home.run(run))? {
        Some(network) => network.kill().await,
        None => Ok(()),
    }
}
