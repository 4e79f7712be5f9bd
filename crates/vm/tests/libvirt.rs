//! Machines by way of a real libvirt daemon, the lab's. Where it comes from is in
//! `SAFETYTWIN_LIBVIRT_URI` and an image's directory in `SAFETYTWIN_GUEST_IMAGE`; without them
//! the test says what is missing and fails.

#![cfg(feature = "libvirt")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of a test")]

use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tokio::time::Instant;
use vm::image::Seed;
use vm::libvirt::{Acceleration, Direct, Error, Kind, Libvirt, Machine, MachineName, State};

fn needed(variable: &str, how: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("MISSING: {variable}; {how}"))
}

fn machine(work: &Path, image: &Path) -> Machine {
    let disk = work.join("disk.qcow2");
    let base = image.join("disk.qcow2");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
        .args([&base, &disk])
        .status();
    assert!(made.unwrap().success());
    let seed = work.join("seed.iso");
    let content = Seed::new("lab-1".parse().unwrap(), "lab".parse().unwrap()).iso().unwrap();
    std::fs::write(&seed, content).unwrap();
    Machine {
        name: "lab-contract".parse().unwrap(),
        memory_bytes: 1 << 30,
        processors: 2,
        acceleration: Acceleration::Tcg,
        direct: Some(Direct {
            kernel: image.join("vmlinuz"),
            initrd: image.join("initrd.img"),
            command_line: "root=LABEL=twin-root rw console=ttyS0 quiet".to_owned(),
        }),
        disk,
        seed: Some(seed),
        mac: "52:54:00:12:34:56".parse().unwrap(),
        forwards: Vec::new(),
        serial_log: work.join("serial.log"),
        channels: Vec::new(),
    }
}

/// The daemon is started and killed by the script it came from.
fn lab(command: &str) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../lab/libvirt");
    assert!(Command::new(script).arg(command).status().unwrap().success(), "lab/libvirt {command}");
}

struct Guest {
    libvirt: Libvirt,
    name: MachineName,
}

impl Guest {
    async fn ask(&self, command: serde_json::Value) -> Result<serde_json::Value, Error> {
        let answer = self.libvirt.ask_guest(&self.name, &command).await?;
        Ok(serde_json::from_str(&answer).unwrap())
    }

    async fn await_agent(&self) {
        let until = Instant::now() + Duration::from_secs(300);
        while let Err(error) = self.ask(json!({"execute": "guest-ping"})).await {
            assert!(Instant::now() < until, "the guest's agent does not answer: {error}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Opens a file in the guest; whether it is there, or could be made.
    async fn open(&self, mode: &str) -> bool {
        let arguments = json!({ "path": "/var/mark", "mode": mode });
        self.ask(json!({ "execute": "guest-file-open", "arguments": arguments })).await.is_ok()
    }
}

#[tokio::test]
async fn a_machine_lives_and_goes_back_in_time() {
    let uri = needed("SAFETYTWIN_LIBVIRT_URI", "lab/libvirt up; lab/libvirt uri");
    let image = PathBuf::from(needed("SAFETYTWIN_GUEST_IMAGE", "lab/guest-image"));
    let work = tempfile::tempdir().unwrap();
    let machine = machine(work.path(), &image);
    let (libvirt, name) = (Libvirt::new(uri.parse().unwrap()), machine.name.clone());
    let guest = Guest { libvirt: libvirt.clone(), name: name.clone() };
    assert!(matches!(libvirt.state(&name).await, Err(Error::Unknown { .. })));
    libvirt.define(&machine).await.unwrap();
    assert_eq!(libvirt.state(&name).await.unwrap(), State::Stopped);
    libvirt.start(&name).await.unwrap();
    assert!(matches!(libvirt.start(&name).await, Err(Error::Refused { .. })));
    guest.await_agent().await;

    let (live, disk) = ("live".parse().unwrap(), "disk".parse().unwrap());
    libvirt.snapshot(&name, &live, Kind::Live).await.unwrap();
    assert!(matches!(libvirt.snapshot(&name, &live, Kind::Live).await, Err(Error::Refused { .. })));
    assert!(guest.open("w").await && guest.open("r").await);
    libvirt.snapshot(&name, &disk, Kind::Disk { quiesce: true }).await.unwrap();
    assert_eq!(libvirt.snapshots(&name).await.unwrap().len(), 2);
    libvirt.revert(&name, &live).await.unwrap();
    assert_eq!(libvirt.state(&name).await.unwrap(), State::Running);
    guest.await_agent().await;
    assert!(!guest.open("r").await, "a file made after the snapshot is still there");
    let gone = "never-made".parse().unwrap();
    assert!(matches!(libvirt.revert(&name, &gone).await, Err(Error::Unknown { .. })));
    libvirt.delete_snapshot(&name, &disk).await.unwrap();
    assert_eq!(libvirt.snapshots(&name).await.unwrap(), ["live"]);

    // The daemon goes away under us: an error, then a new connection finds the machine running.
    lab("kill");
    let error = libvirt.state(&name).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. } | Error::Unreachable { .. }), "{error}");
    assert!(matches!(libvirt.state(&name).await, Err(Error::Unreachable { .. })));
    lab("up");
    assert_eq!(libvirt.state(&name).await.unwrap(), State::Running);

    libvirt.power_off(&name).await.unwrap();
    assert_eq!(libvirt.state(&name).await.unwrap(), State::Stopped);
    libvirt.forget(&name).await.unwrap();
    assert!(!libvirt.list().await.unwrap().contains(&name.to_string()));
}
