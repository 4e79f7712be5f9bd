//! Hosts that are not there: states of a realistic size, small changes to them, and the bytes
//! an agent would send.

use api::wire::{Batch, Body, Delta};
use model::entity::{Package, Platform, Process, Unit};
use model::load::{Load, ProcessLoad, UnitLoad};
use model::{Facts, Fields, Op, Patch, Subject, Time};

const UNITS: u64 = 60;

/// Pseudorandom numbers, the same in each run.
#[derive(Debug, Clone)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }

    fn hex(&mut self, digits: usize) -> String {
        (0..digits).filter_map(|_| char::from_digit(self.roll(16) as u32, 16)).collect()
    }
}

fn unit_name(number: u64) -> String {
    format!("service-{number:03}.service")
}

/// A host of 60 units, 40 processes and 200 packages: about 65 KB as JSON.
pub(crate) fn facts(seed: u64) -> Facts {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut facts = Facts::default();
    for number in 0..UNITS {
        facts.put_entity(&unit(number, &mut dice));
    }
    for number in 0..40u64 {
        facts.put_entity(&Process {
            id: format!("worker-{number}#{}", dice.hex(8)),
            name: format!("worker-{number}"),
            executable: Some(format!("/usr/bin/worker-{number}")),
            arguments: vec![
                format!("worker-{number}"),
                "--verbose".into(),
                format!("--port={}", 8000 + number),
            ],
            user: Some("www-data".into()),
            uid: Some(33),
            unit: Some(unit_name(number)),
            pids: vec![dice.roll(32_768) as i64],
            started_at: Some(Time(1_700_000_000_000_000 + dice.roll(10_000_000_000) as i64)),
            ..Process::default()
        });
    }
    for number in 0..200u64 {
        let [major, minor, patch] = [9, 30, 9].map(|below| dice.roll(below));
        facts.put_entity(&Package {
            name: format!("library-{number}-{}", dice.hex(4)),
            version: format!("{major}.{minor}.{patch}-{}ubuntu{}", dice.roll(5), dice.roll(4)),
            architecture: Some("amd64".into()),
            manager: "dpkg".into(),
            state: None,
        });
    }
    facts
}

fn unit(number: u64, dice: &mut Dice) -> Unit {
    Unit {
        id: unit_name(number),
        description: format!("Service number {number} of this host, does what it does"),
        load_state: "loaded".into(),
        active_state: "active".into(),
        sub_state: "running".into(),
        enablement: Some("enabled".into()),
        result: Some("success".into()),
        fragment_path: Some(format!("/usr/lib/systemd/system/service-{number:03}.service")),
        service_type: Some("notify".into()),
        exec_start: vec![vec![
            format!("/usr/sbin/service-{number}"),
            "--config".into(),
            format!("/etc/service-{number}/main.conf"),
        ]],
        environment: [("TOKEN".to_owned(), format!("redacted:{}", dice.hex(16)))].into(),
        restart: Some("on-failure".into()),
        main_pid: Some(dice.roll(32_768) as i64),
        since: Some(Time(1_700_000_000_000_000 + dice.roll(10_000_000_000) as i64)),
        cgroup: Some(format!("/system.slice/service-{number:03}.service")),
        slice: Some("system.slice".into()),
        requires: vec!["sysinit.target".into(), "system.slice".into()],
        after: vec!["network.target".into(), "basic.target".into(), "sysinit.target".into()],
        ..Unit::default()
    }
}

/// Restarts one unit: other main process, other time.
pub(crate) fn restart(facts: &mut Facts, at: Time, dice: &mut Dice) -> Body {
    let base = facts.digest();
    let id = unit_name(dice.roll(UNITS));
    let subject: Subject = format!("unit:{id}").parse().expect("the name of a unit");
    let before = facts.get(&subject).expect("every host has it").fields();
    let mut unit: Unit = facts.entity(&id).expect("every host has it");
    // Never the same number again: a change is a change.
    unit.main_pid = unit.main_pid.map(|pid| (pid + 1 + dice.roll(30_000) as i64) % 32_768);
    unit.since = Some(at);
    facts.put_entity(&unit);
    let after = facts.get(&subject).expect("just put there").fields();
    let differing = |one: &Fields, other: &Fields| -> Fields {
        let of_one = one.iter().filter(|(name, value)| other.get(*name) != Some(value));
        of_one.map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    let (was, now) = (differing(&before, &after), differing(&after, &before));
    let patch = Patch([(subject, Op::Edited { was, now })].into());
    Body::Patch { base, next: facts.digest(), patch }
}

/// What an agent measures every ten seconds on such a host.
pub(crate) fn load(at: Time, dice: &mut Dice) -> Load {
    let mut load = Load { at, ..Load::default() };
    load.host.cpu_percent = Some(dice.roll(1000) as f64 / 10.0);
    load.host.memory_total_bytes = Some(8 << 30);
    load.host.memory_available_bytes = Some(dice.roll(8 << 30));
    load.host.load_average = Some([0.5, 0.4, 0.3]);
    for number in 0..UNITS {
        let unit = UnitLoad {
            cpu_percent: Some(dice.roll(100) as f64 / 10.0),
            memory_bytes: Some(dice.roll(1 << 30)),
            tasks: Some(dice.roll(20)),
            ..UnitLoad::default()
        };
        load.units.insert(unit_name(number), unit);
    }
    for number in 0..20 {
        load.processes.push(ProcessLoad {
            pid: dice.roll(32_768) as i64,
            name: format!("worker-{number}"),
            unit: Some(unit_name(number)),
            cpu_percent: Some(dice.roll(100) as f64 / 10.0),
            memory_bytes: Some(dice.roll(1 << 30)),
            threads: Some(4),
        });
    }
    load
}

/// A simulated host and where its history is.
pub(crate) struct Host {
    pub(crate) name: String,
    facts: Facts,
    sequence: u64,
    dice: Dice,
}

impl Host {
    /// Many hosts share the items of one template, as hosts of one image do.
    pub(crate) fn new(number: usize, template: &Facts) -> Self {
        let name = format!("host-{number:05}");
        let mut facts = template.clone();
        facts.put_entity(&Platform {
            id: "host".into(),
            hostname: name.clone(),
            ..Platform::default()
        });
        Self { name, facts, sequence: 0, dice: Dice(number as u64 * 2 + 1) }
    }

    pub(crate) fn keyframe(&mut self, at: Time) -> Vec<u8> {
        let delta = self.delta(at, Body::Keyframe(self.facts.clone()));
        self.encode(vec![delta], Vec::new())
    }

    /// The next changes in one request, with or without a sample of load beside them.
    pub(crate) fn changes(&mut self, at: Time, count: usize, with_load: bool) -> Vec<u8> {
        let mut deltas = Vec::new();
        for _ in 0..count {
            let body = restart(&mut self.facts, at, &mut self.dice);
            deltas.push(self.delta(at, body));
        }
        let load = if with_load { vec![load(at, &mut self.dice)] } else { Vec::new() };
        self.encode(deltas, load)
    }

    fn delta(&mut self, at: Time, body: Body) -> Delta {
        self.sequence += 1;
        Delta { sequence: self.sequence, at, body, gap: None }
    }

    fn encode(&self, deltas: Vec<Delta>, load: Vec<Load>) -> Vec<u8> {
        let stream = format!("simulated-{}", self.name);
        api::wire::encode(&Batch { stream, deltas, load, agent: "0.1.0".into(), unseen: Vec::new() })
    }
}
