//! Hosts for tests: states of a realistic size, and small changes to them.
#![allow(clippy::allow_attributes, reason = "what is unused differs by test")]
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "each test uses a part"
)]

use model::entity::{Package, Process, Unit};
use model::{Facts, HostId, Time, Version, diff};
use std::time::Duration;
use store::{Append, Appended, Body, Delta, Error, History, Options};

pub const NOON: Time = Time(1_795_176_000_000_000);

pub fn host(name: &str) -> HostId {
    HostId::new(name).unwrap()
}

/// In memory where there is such a place, for tests that sync often and survive no crash.
pub fn directory_in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_none| tempfile::tempdir()).unwrap()
}

/// Options for small disks.
pub fn options() -> Options {
    Options { reserve_bytes: 0, ..Options::default() }
}

/// A pseudorandom number below a limit.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }

    pub fn hex(&mut self, digits: usize) -> String {
        (0..digits).map(|_| char::from_digit(self.roll(16) as u32, 16).unwrap()).collect()
    }
}

pub fn unit(number: u64, dice: &mut Dice) -> Unit {
    Unit {
        id: format!("service-{number:03}.service"),
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
        since: Some(Time(NOON.0 - dice.roll(10_000_000_000) as i64)),
        cgroup: Some(format!("/system.slice/service-{number:03}.service")),
        slice: Some("system.slice".into()),
        requires: vec!["sysinit.target".into(), "system.slice".into()],
        after: vec!["network.target".into(), "basic.target".into(), "sysinit.target".into()],
        ..Unit::default()
    }
}

/// About 65 KB as JSON, as a host of 60 units, 40 processes and 150 packages has.
pub fn large(seed: u64) -> Facts {
    let mut dice = Dice(seed | 1);
    let mut facts = Facts::default();
    for number in 0..60 {
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
            unit: Some(format!("service-{number:03}.service")),
            pids: vec![dice.roll(32_768) as i64],
            started_at: Some(Time(NOON.0 - dice.roll(10_000_000_000) as i64)),
            ..Process::default()
        });
    }
    for number in 0..150u64 {
        facts.put_entity(&Package {
            name: format!("library-{number}-{}", dice.hex(4)),
            version: format!(
                "{}.{}.{}-{}ubuntu{}",
                dice.roll(9),
                dice.roll(30),
                dice.roll(9),
                dice.roll(5),
                dice.roll(4)
            ),
            architecture: Some("amd64".into()),
            manager: "dpkg".into(),
            state: None,
        });
    }
    facts
}

/// The same with one unit restarted.
pub fn restarted(facts: &Facts, number: u64, dice: &mut Dice) -> Facts {
    let mut next = facts.clone();
    let mut unit: Unit = next.entity(&format!("service-{number:03}.service")).unwrap();
    unit.main_pid = Some(dice.roll(32_768) as i64);
    unit.since = Some(Time(NOON.0 + dice.roll(1_000_000_000) as i64));
    next.put_entity(&unit);
    next
}

/// A state of one unit with a number, and one without.
pub fn small(number: i64) -> Facts {
    let mut facts = Facts::default();
    facts.put_entity(&Unit { id: "a.service".into(), main_pid: Some(number), ..Unit::default() });
    facts.put_entity(&Unit {
        id: "b.service".into(),
        active_state: "active".into(),
        ..Unit::default()
    });
    facts
}

pub fn delta(sequence: Option<u64>, at: Time, body: Body) -> Delta {
    Delta { sequence, at, body, gap: None, label: None }
}

pub fn patch(before: &Facts, after: &Facts) -> Body {
    Body::Patch { base: before.digest(), next: after.digest(), patch: diff(before, after) }
}

pub fn append(host: &HostId, at: Time, body: Body) -> Append {
    Append { host: host.clone(), stream: None, received: at, deltas: vec![delta(None, at, body)] }
}

pub fn streamed(host: &HostId, at: Time, deltas: Vec<Delta>) -> Append {
    Append { host: host.clone(), stream: Some("spool".into()), received: at, deltas }
}

/// For appends whose outcome is not looked at otherwise.
pub fn must_work(outcome: Result<Appended, Error>) {
    outcome.unwrap();
}

/// Records a state, a second after the one before.
pub fn record(
    history: &History,
    host: &HostId,
    at: Time,
    facts: &Facts,
) -> Result<Appended, Error> {
    history.append_and_wait(append(host, at, Body::State(facts.clone())))
}

pub fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub fn days(n: u64) -> Duration {
    seconds(n * 86_400)
}

pub fn version(n: u64) -> Version {
    Version(n)
}

/// Waits for a condition.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + seconds(20);
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

/// Bytes that the files under a directory take.
pub fn disk_usage(directory: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let mut sum = 0;
    for file in std::fs::read_dir(directory).unwrap() {
        let file = file.unwrap();
        // Files may go while the engine works.
        let Ok(metadata) = file.metadata() else { continue };
        sum += if metadata.is_dir() { disk_usage(&file.path()) } else { metadata.blocks() * 512 };
    }
    sum
}
