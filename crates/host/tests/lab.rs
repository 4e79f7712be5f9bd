//! The parts of this crate that talk to others, against real ones: a systemd and a Docker
//! engine of the lab, and a QEMU. Compiled with the feature `lab` only.
//!
//! `SAFETYTWIN_LAB_BUS` is the D-Bus address of a lab host's system bus, and
//! `SAFETYTWIN_LAB_DOCKER` the path of a lab engine's socket.

use host::Root;
use host::docker::{ContainerEvent, Docker};
use host::systemd::{Bus, Systemd, UnitEvent};
use host::vmm::{self, Asker};
use model::entity::Unit;
use model::redact::Redactor;
use rustix::process::{Pid, Signal};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How long anything in the lab may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Below a system's root.
const SOCKET: &str = "/run/dbus/system_bus_socket";

fn variable(name: &str, how: &str) -> String {
    let value = std::env::var(name).unwrap_or_default();
    assert!(!value.is_empty(), "{name} is not set: {how}");
    value
}

fn redactor() -> Redactor {
    Redactor::new([7; 32], Vec::new())
}

fn bus_address() -> String {
    variable(
        "SAFETYTWIN_LAB_BUS",
        "lab/host up, then unix:path=$(lab/host root)/run/dbus/system_bus_socket",
    )
}

async fn systemd() -> Systemd {
    let bus = Bus::Address(bus_address());
    Systemd::connect(&bus, redactor()).await.expect("the lab's systemd answers")
}

async fn unit(systemd: &Systemd, id: &str) -> Unit {
    systemd.unit(id).await.expect("the lab's systemd answers").expect("the lab has the unit")
}

/// Makes systemd do something, which the crate itself never does.
async fn order(method: &str, unit: Option<&str>) {
    let connection = zbus::connection::Builder::address(bus_address().as_str())
        .build()
        .await
        .expect("the lab's bus is there");
    let (to, path, interface) = (
        Some("org.freedesktop.systemd1"),
        "/org/freedesktop/systemd1",
        Some("org.freedesktop.systemd1.Manager"),
    );
    match unit {
        Some(unit) => {
            let body = (unit, "replace");
            connection.call_method(to, path, interface, method, &body).await.expect(method);
        }
        None => {
            connection.call_method(to, path, interface, method, &()).await.expect(method);
        }
    }
}

#[tokio::test]
async fn all_units_once() {
    let systemd = systemd().await;
    assert!(!systemd.version().is_empty());
    let units = systemd.units().await.unwrap();
    let nginx = units.iter().find(|unit| unit.id == "nginx.service").unwrap();
    assert_eq!(nginx.active_state, "active");
    assert_eq!(nginx.exec_start[0][0], "/usr/sbin/nginx");
    assert!(nginx.main_pid.is_some() && nginx.since.is_some());
    assert!(nginx.drop_ins.iter().any(|path| path.ends_with("lab.conf")));
    let socket = units.iter().find(|unit| unit.id == "echo.socket").unwrap();
    assert_eq!(socket.listen, ["Stream 127.0.0.1:7777"]);
    let timer = units.iter().find(|unit| unit.id == "tidy.timer").unwrap();
    assert!(timer.schedule[0].starts_with("OnCalendar="), "{:?}", timer.schedule);
    assert!(units.iter().all(|unit| unit.load_state != "not-found"));
    assert!(!format!("{units:?}").contains("not-a-real"), "the lab's secrets are redacted");
}

#[tokio::test]
async fn one_unit_is_the_same_as_in_the_list() {
    let systemd = systemd().await;
    for id in ["billing.service", "system.slice", "-.mount", "broken.service"] {
        let listed = systemd.units().await.unwrap().into_iter().find(|unit| unit.id == id);
        assert_eq!(systemd.unit(id).await.unwrap(), listed, "{id}");
    }
    for none in ["nowhere.service", "../x.service", "", "x\n.service"] {
        assert_eq!(systemd.unit(none).await.unwrap(), None, "{none}");
    }
}

/// What comes of files: of the rest signals tell.
fn of_files(units: &BTreeMap<String, Unit>, id: &str) -> Option<Unit> {
    let unit = units.get(id)?.clone();
    Some(Unit {
        active_state: String::new(),
        sub_state: String::new(),
        result: None,
        main_pid: None,
        restarts: None,
        since: None,
        changed_at: None,
        cgroup: None,
        ..unit
    })
}

/// What is asked for because of what changed is all that became another.
#[tokio::test]
async fn what_became_of_units_is_what_a_whole_look_finds() {
    let address = bus_address();
    let root = address.strip_prefix("unix:path=").and_then(|path| path.strip_suffix(SOCKET));
    let root = Path::new(root.expect("the socket is where a system's bus has it"));
    let system = root.join("etc/systemd/system");
    let bus = Bus::System(Root::at(root));
    let systemd = Systemd::connect(&bus, redactor()).await.expect("the lab's systemd answers");
    let all = async || -> BTreeMap<String, Unit> {
        let units = systemd.units().await.unwrap().into_iter();
        units.map(|unit| (unit.id.clone(), unit)).collect()
    };
    let mut catalog = systemd.catalog().await.unwrap();
    let mut known = all().await;
    let write = |name: &str, text: &str| {
        let path = system.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let unit = "[Unit]\nDescription=x\n[Service]\nExecStart=/usr/bin/sleep 9\n[Install]\nWantedBy=multi-user.target\n";
    let wanted = system.join("multi-user.target.wants/t-new.service");
    let changes: [(&str, &dyn Fn(), usize); 6] = [
        ("nothing", &|| {}, 0),
        ("a new file", &|| write("t-new.service", unit), 1),
        ("enabled", &|| symlink("../t-new.service", &wanted).unwrap(), 2),
        (
            "named by another",
            &|| write("nginx.service.d/t.conf", "[Unit]\nAfter=t-new.service\n"),
            2,
        ),
        (
            "a drop-in for all services",
            &|| write("service.d/t.conf", "[Service]\nLimitNOFILE=4567\n"),
            10,
        ),
        (
            "as before",
            &|| {
                fs::remove_file(&wanted).unwrap();
                fs::remove_file(system.join("t-new.service")).unwrap();
                fs::remove_file(system.join("nginx.service.d/t.conf")).unwrap();
                fs::remove_dir_all(system.join("service.d")).unwrap();
            },
            10,
        ),
    ];
    for (what, change, least) in changes {
        change();
        order("Reload", None).await;
        let (put, gone) = systemd.renew(&known, &mut catalog).await.unwrap();
        assert!(put.len() + gone.len() >= least, "{what}: {} and {gone:?}", put.len());
        for id in gone {
            known.remove(&id);
        }
        known.extend(put.into_iter().map(|unit| (unit.id.clone(), unit)));
        let found = all().await;
        for id in known.keys().chain(found.keys()) {
            assert_eq!(of_files(&known, id), of_files(&found, id), "{what}: {id}");
        }
    }
}

#[tokio::test]
async fn a_restart_and_a_reload_are_noticed() {
    let systemd = systemd().await;
    let mut watch = systemd.watch().await.unwrap();
    let before = unit(&systemd, "cron.service").await;
    order("RestartUnit", Some("cron.service")).await;
    let mut now = before.clone();
    let restarted = async {
        while now.main_pid == before.main_pid || now.active_state != "active" {
            let event = watch.next().await.unwrap();
            if event == UnitEvent::Changed("cron.service".to_owned()) {
                now = unit(&systemd, "cron.service").await;
            }
        }
    };
    tokio::time::timeout(PATIENCE, restarted).await.expect("the restart is noticed");
    assert!(now.since > before.since);
    order("Reload", None).await;
    let reloaded = async { while watch.next().await.unwrap() != UnitEvent::Resync {} };
    tokio::time::timeout(PATIENCE, reloaded).await.expect("the reload is noticed");
}

fn docker_socket() -> String {
    variable("SAFETYTWIN_LAB_DOCKER", "lab/docker up, then $(lab/docker socket)")
}

fn docker_client(arguments: &[&str]) -> String {
    let host = format!("unix://{}", docker_socket());
    let mut client = Command::new("docker");
    let output = client.args(["--host", &host]).args(arguments).output().expect("docker runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[tokio::test]
async fn the_life_of_a_container() {
    let docker = Docker::new(docker_socket(), redactor());
    let mut watch = docker.watch().await.unwrap();
    let name = format!("host-test-{}", std::process::id());
    let id = docker_client(&[
        "run",
        "-d",
        "--name",
        &name,
        "-e",
        "PASSWORD=hunter2",
        "-p",
        "127.0.0.1::80",
        "lab/busybox:1",
        "sleep",
        "1000",
    ]);
    let running = async {
        loop {
            let event = watch.next().await.unwrap();
            if event == ContainerEvent::Changed(id.clone())
                && let Some(container) = docker.container(&id).await.unwrap()
                && container.state == "running"
            {
                break container;
            }
        }
    };
    let container = tokio::time::timeout(PATIENCE, running).await.expect("the start is noticed");
    assert_eq!(container.name, name);
    assert!(container.pid.is_some() && container.image_digest.is_some());
    assert!(!format!("{container:?}").contains("hunter2"));
    let listing = docker.containers().await.unwrap();
    assert!(listing.containers.iter().any(|other| other.name == name));
    docker_client(&["rm", "-f", &name]);
    let removed =
        async { while watch.next().await.unwrap() != ContainerEvent::Removed(id.clone()) {} };
    tokio::time::timeout(PATIENCE, removed).await.expect("the removal is noticed");
    assert_eq!(docker.container(&id).await.unwrap(), None);
}

/// A real QEMU, with a balloon and a channel to a guest agent, whose guest is nothing but its
/// firmware.
struct Qemu {
    child: std::process::Child,
    directory: tempfile::TempDir,
}

impl Qemu {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let child = Command::new("qemu-system-x86_64")
            .current_dir(directory.path())
            .args([
                "-M",
                "q35,accel=tcg",
                "-m",
                "64",
                "-smp",
                "2",
                "-display",
                "none",
                "-nodefaults",
            ])
            .args(["-device", "virtio-balloon", "-device", "virtio-serial"])
            .args(["-chardev", "socket,path=agent,server=on,wait=off,id=a"])
            .args(["-device", "virtserialport,chardev=a,name=org.qemu.guest_agent.0"])
            .args(["-qmp", "unix:qmp,server=on,wait=off"])
            .spawn()
            .expect("qemu-system-x86 is installed");
        let group = directory.path().join("sys/fs/cgroup/vm.service");
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
        symlink("/proc", directory.path().join("proc")).unwrap();
        Self { child, directory }
    }

    fn root(&self) -> Root {
        Root::at(self.directory.path())
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[tokio::test]
async fn a_real_qemu_is_asked() {
    const LIMIT: Duration = Duration::from_secs(2);
    let qemu = Qemu::start();
    let asker = Asker::new(qemu.root());
    let begin = tokio::time::Instant::now();
    let (monitor, said) = loop {
        let found = asker.find("/vm.service");
        if let Some(monitor) = found
            && let Ok(said) = monitor.ask(&asker, LIMIT).await
            && said.runs == Some(true)
        {
            break (monitor, said);
        }
        assert!(begin.elapsed() < PATIENCE, "QEMU does not answer");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(said.status.as_deref(), Some("running"));
    assert_eq!((said.vcpus, said.memory_bytes), (Some(2), Some(64 << 20)));
    assert_eq!((said.balloon_memory_bytes, said.guest_agent), (Some(64 << 20), Some(false)));
    let guest = monitor.guest(&asker, None, 1, LIMIT).await;
    assert!(matches!(guest, Err(vmm::Error::NoAgent)), "{guest:?}");
    // Another has its socket: that is no fault of the VM.
    let path = qemu.directory.path().join("qmp");
    let mut other = tokio::net::UnixStream::connect(&path).await.unwrap();
    let mut greeting = [0];
    tokio::io::AsyncReadExt::read_exact(&mut other, &mut greeting).await.unwrap();
    let taken = monitor.ask(&asker, LIMIT).await;
    assert!(matches!(taken, Err(vmm::Error::Taken { .. })), "{taken:?}");
    drop(other);
    monitor.ask(&asker, PATIENCE).await.expect("it is free again");
    // It hangs: what it does not say is told in time.
    qemu.signal(Signal::STOP);
    let silent = monitor.guest(&asker, None, 1, LIMIT).await;
    assert!(matches!(silent, Err(vmm::Error::Silent { .. })), "{silent:?}");
    qemu.signal(Signal::CONT);
    monitor.ask(&asker, PATIENCE).await.expect("it goes on");
}
