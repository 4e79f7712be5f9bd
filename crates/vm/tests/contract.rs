//! The contract of [`Hypervisor`], the same for each: machines that really boot.
//!
//! The image's directory is in `SAFETYTWIN_GUEST_IMAGE` (`lab/guest-image` makes it); without
//! it the test says what is missing and fails.

#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of a test")]

use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vm::image::{ImageId, Job, MachineName, Progress, Seed, SnapshotName, Store};
use vm::machine::{Error, Hypervisor, Kind, Line, Machine, Network, NewClone, NewSnapshot, State};
use vm::qemu::Qemu;
use vm::{GuestAgent, await_guest};

const BOOT: Duration = Duration::from_secs(300);

fn job() -> Job {
    let told = |progress: Progress| eprintln!("      {progress:?}");
    // Of a whole contract: the machine boots, and its clone may.
    Job::new(Arc::new(told), CancellationToken::new(), Instant::now() + BOOT * 3)
}

fn image() -> (Store, ImageId) {
    let variable = "SAFETYTWIN_GUEST_IMAGE";
    let path =
        std::env::var(variable).unwrap_or_else(|_| panic!("MISSING: {variable}; lab/guest-image"));
    let path = PathBuf::from(path);
    let id = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
    (Store::open(path.parent().unwrap()).unwrap(), id)
}

fn name(text: &str) -> MachineName {
    text.parse().unwrap()
}

fn seed(of: &str) -> Vec<u8> {
    Seed::new(of.parse().unwrap(), of.parse().unwrap()).iso().unwrap()
}

fn machine(of: &str, image: &ImageId) -> Machine {
    Machine {
        name: name(of),
        image: image.clone(),
        memory_bytes: 1 << 30,
        processors: 2,
        disk_bytes: 10 << 30,
        mac: "52:54:00:12:34:56".parse().unwrap(),
        network: Network::Isolated,
        seed: seed(of),
    }
}

fn wish(called: &str, kind: Kind) -> NewSnapshot {
    let labels = BTreeMap::from([("version".to_owned(), "7".to_owned())]);
    NewSnapshot { name: called.parse().unwrap(), kind, at: model::Time(1), labels }
}

/// Opens a file in the guest, and closes it.
async fn open(
    hypervisor: &dyn Hypervisor,
    of: &str,
    path: &str,
    mode: &str,
) -> std::io::Result<()> {
    let stream = hypervisor.connect(&name(of), Line::GuestAgent).await.unwrap();
    let mut agent = GuestAgent::open(stream, Duration::from_secs(20)).await?;
    let handle = agent.call("guest-file-open", json!({ "path": path, "mode": mode })).await?;
    agent.call("guest-file-close", json!({ "handle": handle })).await.map(drop)
}

async fn mark(hypervisor: &dyn Hypervisor, of: &str, path: &str) {
    open(hypervisor, of, path, "w").await.unwrap();
}

async fn is_marked(hypervisor: &dyn Hypervisor, of: &str, path: &str) -> bool {
    open(hypervisor, of, path, "r").await.is_ok()
}

/// Only to an address of the machine's own network.
async fn leads_ssh(hypervisor: &dyn Hypervisor, of: &MachineName) {
    let port = hypervisor.show(of).await.unwrap().ssh_port;
    let (foreign, own) = ([172, 17, 0, 1].into(), [10, 0, 2, 15].into());
    let nowhere = hypervisor.lead_ssh(of, &[foreign]).await;
    assert!(matches!(nowhere, Err(Error::Refused { .. })), "{nowhere:?}");
    hypervisor.lead_ssh(of, &[foreign, own]).await.unwrap();
    assert_eq!(hypervisor.show(of).await.unwrap().ssh_port, port);
}

/// All of the contract, with one machine that boots once.
async fn contract(hypervisor: &dyn Hypervisor, image: &ImageId) {
    let (one, job) = (name("one"), job());
    let snapshot = |text: &str| text.parse::<SnapshotName>().unwrap();
    hypervisor.define(machine("one", image), &job).await.unwrap();
    let twice = hypervisor.define(machine("one", image), &job).await;
    assert!(matches!(twice, Err(Error::Exists { .. })), "{twice:?}");
    assert_eq!(hypervisor.list().await.unwrap(), std::slice::from_ref(&one));
    assert_eq!(hypervisor.show(&one).await.unwrap().state, State::Stopped);
    let none = hypervisor.show(&name("other")).await;
    assert!(matches!(none, Err(Error::Unknown { .. })), "{none:?}");
    let live = hypervisor.snapshot(&one, wish("live", Kind::Live), &job).await;
    assert!(matches!(live, Err(Error::NotRunning { .. })), "{live:?}");
    let off = hypervisor.snapshot(&one, wish("off", Kind::Disk), &job).await.unwrap();
    assert_eq!((off.kind, off.labels.get("version").unwrap().as_str()), (Kind::Disk, "7"));

    hypervisor.start(&one, &job).await.unwrap();
    hypervisor.start(&one, &job).await.unwrap();
    await_guest(hypervisor, &one, BOOT, &job).await.unwrap();
    assert_eq!(hypervisor.show(&one).await.unwrap().state, State::Running);
    let removed = hypervisor.forget(&one).await;
    assert!(matches!(removed, Err(Error::Running { .. })), "{removed:?}");

    leads_ssh(hypervisor, &one).await;
    mark(hypervisor, "one", "/var/before").await;
    let a = hypervisor.snapshot(&one, wish("a", Kind::Live), &job).await.unwrap();
    assert_eq!(a.kind, Kind::Live);
    await_guest(hypervisor, &one, BOOT, &job).await.unwrap();
    let again = hypervisor.snapshot(&one, wish("a", Kind::Live), &job).await;
    assert!(matches!(again, Err(Error::SnapshotExists { .. })), "{again:?}");
    mark(hypervisor, "one", "/var/after").await;
    hypervisor.snapshot(&one, wish("b", Kind::Live), &job).await.unwrap();
    hypervisor.snapshot(&one, wish("c", Kind::Disk), &job).await.unwrap();

    // Gone after a revert, there again after reverting forward.
    for (to, wanted) in [("a", false), ("b", true), ("a", false)] {
        hypervisor.revert(&one, &snapshot(to), &job).await.unwrap();
        await_guest(hypervisor, &one, BOOT, &job).await.unwrap();
        assert!(is_marked(hypervisor, "one", "/var/before").await);
        assert_eq!(is_marked(hypervisor, "one", "/var/after").await, wanted, "at {to}");
        assert_eq!(hypervisor.show(&one).await.unwrap().current, Some(snapshot(to)));
    }
    let nowhere = hypervisor.revert(&one, &snapshot("nowhere"), &job).await;
    assert!(matches!(nowhere, Err(Error::UnknownSnapshot { .. })), "{nowhere:?}");

    let listed = hypervisor.snapshots(&one).await.unwrap();
    let names: Vec<_> = listed.iter().map(|listed| listed.name.to_string()).collect();
    assert_eq!(names, ["a", "b", "c", "off"]);

    // One in the middle goes, the others stay whole.
    hypervisor.delete_snapshot(&one, &snapshot("a"), &job).await.unwrap();
    let gone = hypervisor.delete_snapshot(&one, &snapshot("a"), &job).await;
    assert!(matches!(gone, Err(Error::UnknownSnapshot { .. })), "{gone:?}");
    hypervisor.revert(&one, &snapshot("b"), &job).await.unwrap();
    await_guest(hypervisor, &one, BOOT, &job).await.unwrap();
    assert!(is_marked(hypervisor, "one", "/var/after").await);

    let new = NewClone {
        name: name("two"),
        mac: "52:54:00:00:00:02".parse().unwrap(),
        seed: seed("two"),
    };
    hypervisor.clone_at(&one, &snapshot("b"), new, &job).await.unwrap();
    await_guest(hypervisor, &name("two"), BOOT, &job).await.unwrap();
    assert!(is_marked(hypervisor, "two", "/var/after").await);
    mark(hypervisor, "two", "/var/clone").await;
    assert!(!is_marked(hypervisor, "one", "/var/clone").await);

    hypervisor.power_off(&one).await.unwrap();
    hypervisor.power_off(&one).await.unwrap();
    assert_eq!(hypervisor.show(&one).await.unwrap().state, State::Stopped);
    let held = hypervisor.forget(&one).await;
    assert!(matches!(held, Err(Error::Cloned { .. })), "{held:?}");
    hypervisor.power_off(&name("two")).await.unwrap();
    hypervisor.forget(&name("two")).await.unwrap();
    hypervisor.forget(&one).await.unwrap();
    assert!(hypervisor.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn qemu() {
    let (images, id) = image();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("twins");
    let qemu = Qemu::open(&root, images.clone(), &job()).await.unwrap();
    let second = Qemu::open(&root, images, &job()).await;
    assert!(matches!(second, Err(Error::Taken { .. })), "{second:?}");
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn({
        let qemu = qemu.clone();
        async move { contract(&qemu, &id).await }
    });
    let ended = tasks.join_next().await.unwrap();
    // No machine outlives the test, whatever became of it.
    for name in qemu.list().await.unwrap() {
        qemu.power_off(&name).await.unwrap();
    }
    ended.unwrap();
}

#[cfg(feature = "libvirt")]
mod by_libvirt {
    use super::*;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::process::Command;
    use vm::libvirt::Libvirt;

    /// The daemon is started and killed by the script it came from.
    fn lab(command: &str) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../lab/libvirt");
        assert!(Command::new(script).arg(command).status().unwrap().success(), "{command}");
    }

    async fn open(root: &Path, images: Store) -> Libvirt {
        let variable = "SAFETYTWIN_LIBVIRT_URI";
        let uri = std::env::var(variable)
            .unwrap_or_else(|_| panic!("MISSING: {variable}; lab/libvirt up; lab/libvirt uri"));
        Libvirt::open(root, images, uri.parse().unwrap()).await.unwrap()
    }

    async fn in_the_end(libvirt: &Libvirt, mut tasks: tokio::task::JoinSet<()>) {
        let ended = tasks.join_next().await.unwrap();
        for name in libvirt.list().await.unwrap() {
            libvirt.power_off(&name).await.unwrap();
            // In whichever order they began from each other.
            drop(libvirt.forget(&name).await);
        }
        for name in libvirt.list().await.unwrap() {
            libvirt.forget(&name).await.unwrap();
        }
        ended.unwrap();
    }

    #[tokio::test]
    async fn libvirt() {
        let (images, id) = image();
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("twins");
        let libvirt = open(&root, images).await;
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn({
            let libvirt = libvirt.clone();
            async move {
                contract(&libvirt, &id).await;
                refuses_a_damaged_disk(&libvirt, &id).await;
                goes_on_without_its_daemon(&libvirt, &id).await;
            }
        });
        in_the_end(&libvirt, tasks).await;
    }

    /// Of one that is stopped neither a revert nor a clone begins.
    async fn refuses_a_damaged_disk(libvirt: &Libvirt, image: &ImageId) {
        let (one, job) = (name("one"), job());
        libvirt.define(machine("one", image), &job).await.unwrap();
        let saved = libvirt.snapshot(&one, wish("off", Kind::Disk), &job).await.unwrap().name;
        libvirt.revert(&one, &saved, &job).await.unwrap();
        let disk = libvirt.console_log(&one).with_file_name("disk.qcow2");
        let file = std::fs::File::options().read(true).write(true).open(disk).unwrap();
        // The table of tables, whose place is in the header, leads out of the file.
        let mut place = [0; 8];
        file.read_exact_at(&mut place, 40).unwrap();
        let nowhere: u64 = (1 << 63) | (1 << 40);
        file.write_all_at(&nowhere.to_be_bytes(), u64::from_be_bytes(place)).unwrap();
        let new = NewClone {
            name: name("two"),
            mac: "52:54:00:00:00:02".parse().unwrap(),
            seed: seed("two"),
        };
        let reverted = libvirt.revert(&one, &saved, &job).await.unwrap_err();
        let cloned = libvirt.clone_at(&one, &saved, new, &job).await.unwrap_err();
        for error in [reverted, cloned] {
            assert!(error.to_string().contains("disk.qcow2 is damaged"), "{error}");
        }
        libvirt.forget(&one).await.unwrap();
    }

    /// The daemon goes away under us: an error, then a new connection finds the machine running.
    async fn goes_on_without_its_daemon(libvirt: &Libvirt, image: &ImageId) {
        let (one, job) = (name("one"), job());
        libvirt.define(machine("one", image), &job).await.unwrap();
        libvirt.start(&one, &job).await.unwrap();
        let port = libvirt.show(&one).await.unwrap().ssh_port;
        assert!(port.is_some());
        lab("kill");
        for _ in 0..2 {
            let error = libvirt.show(&one).await.unwrap_err();
            assert!(matches!(error, Error::Libvirt(_)), "{error}");
        }
        lab("up");
        let seen = libvirt.show(&one).await.unwrap();
        assert_eq!((seen.state, seen.ssh_port), (State::Running, port));
        libvirt.power_off(&one).await.unwrap();
        libvirt.forget(&one).await.unwrap();
    }
}
