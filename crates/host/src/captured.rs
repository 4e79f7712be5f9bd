//! A captured machine, read whole, then cut off, then overwritten with rubbish.

use crate::dependencies::dependencies;
use crate::load::Sampler;
use crate::process::Scanner;
use crate::sockets::{Depth, Sockets};
use crate::workload::Detector;
use crate::{Now, Root};
use expect_test::expect;
use model::Time;
use model::redact::Redactor;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const UNITS: [(&str, &str); 3] = [
    ("nginx.service", "/system.slice/nginx.service"),
    ("redis.service", "/system.slice/redis.service"),
    ("absent.service", "/system.slice/absent.service"),
];

fn busy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/busy")
}

fn now(seconds: u64) -> Now {
    let clock = Duration::from_secs(seconds);
    Now { at: Time::from_seconds(1_790_100_000).plus(clock), clock }
}

/// All that this half of the crate says of a machine, in lines.
fn observe(root: &Root) -> String {
    let redactor = Redactor::new([7; 32], Vec::new());
    let mut out = String::new();
    let mut scanner = Scanner::new(root).unwrap();
    let mut scan = scanner.scan(now(0), &redactor).unwrap();
    scan.changed.clear();
    writeln!(out, "{scan:?}").unwrap();
    scanner.scan(now(10), &redactor).unwrap();
    let mut groups: Vec<_> = scanner.groups().map(|group| group.process).collect();
    groups.sort_by(|a, b| a.pids.cmp(&b.pids));
    for process in groups {
        let user = process.user.or(process.uid.map(|uid| uid.to_string()));
        let owner = process.unit.or(process.container);
        writeln!(
            out,
            "{} {:?} {:?} {:?} {} {} files {:?} since {} by {}",
            process.id,
            process.pids,
            process.executable.unwrap_or_default(),
            process.arguments,
            user.unwrap_or_default(),
            owner.unwrap_or_default(),
            process.open_files,
            process.started_at.map(|at| at.to_string()).unwrap_or_default(),
            process.parent.unwrap_or_default(),
        )
        .unwrap();
    }
    let mut detector = Detector::new(root);
    match Sockets::new(root).unwrap().observe(&scanner, Depth::Connections) {
        Err(error) => writeln!(out, "sockets: {error}").unwrap(),
        Ok(seen) => {
            for socket in &seen.sockets {
                let (process, unit) = (socket.process.as_deref(), socket.unit.as_deref());
                writeln!(out, "{} {process:?} {unit:?} {:?}", socket.id, socket.uid).unwrap();
            }
            for dependency in dependencies(&[], &seen.connections) {
                writeln!(out, "{} {:?}", dependency.id, dependency.observed).unwrap();
            }
            for workload in detector.observe(&scanner, &seen.sockets, &BTreeMap::new()) {
                writeln!(out, "{} {} {:?}", workload.id, workload.runtime, workload.evidence)
                    .unwrap();
            }
        }
    }
    let mut sampler = Sampler::new(root);
    let mut sample = |at| {
        let units = sampler.measure(at, UNITS);
        sampler.sample(at, &scanner, units)
    };
    sample(now(0));
    let mut load = sample(now(10));
    // How full the disk of the test machine is.
    load.filesystems.values_mut().for_each(|filesystem| *filesystem = Default::default());
    // The size of a page differs by architecture.
    load.processes.clear();
    writeln!(out, "{load:?}").unwrap();
    out
}

#[test]
fn a_captured_machine() {
    expect![[r#"
        Scan { processes: 7, kernel_threads: 1, zombies: 1, denied: 0, hidden: false, changed: {} }
        systemd#b931aea1 [1] "/usr/lib/systemd/systemd" ["/sbin/init"] root init.scope files [] since 2026-09-21T14:13:20.030Z by 
        nginx#f090de15 [600] "/usr/sbin/nginx" ["nginx: master process /usr/sbin/nginx -g daemon on;"] root nginx.service files [] since 2026-09-21T14:13:29.000Z by systemd
        nginx#d7fb3149 [601, 602] "/usr/sbin/nginx" ["nginx: worker process"] www-data nginx.service files [] since 2026-09-21T14:13:29.050Z by nginx
        redis-server#b9a03f38 [700] "/usr/bin/redis-check-rdb" ["/usr/bin/redis-server 127.0.0.1:6379"] redis redis.service files ["/var/lib/redis/dump.rdb"] since 2026-09-21T14:13:29.500Z by systemd
        python3#c742829a [800] "/usr/bin/python3.11" ["python3", "/opt/chat/serve.py", "--token", "redacted:b9724048f7337b93"] alice alice/chat.service files ["/srv/models/model.safetensors"] since 2026-09-21T14:13:40.000Z by systemd
        evil) R 1 (x#b2933122 [900] "/tmp/\\x1b[2J" ["/tmp/\\x1b[2J", "a\nb"] alice 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef files [] since 2026-09-21T14:13:50.000Z by systemd
        tcp 0.0.0.0:80 Some("nginx") Some("nginx.service") Some(0)
        tcp 127.0.0.1:6379 Some("redis-server") Some("redis.service") Some(113)
        tcp [::]:80 Some("nginx") Some("nginx.service") Some(0)
        unix /run/redis/redis.sock Some("redis-server") Some("redis.service") Some(113)
        nginx.service -> redis.service ["tcp 127.0.0.1:6379"]
        python3#c742829a torch ["library libtorch_cpu.so", "open model /srv/models/model.safetensors"]
        Load { at: Time(1790100010000000), host: HostLoad { uptime_seconds: Some(3356.82), cpu_percent: None, cpu_per_core_percent: [0.0, 0.0], cpu_user_percent: None, cpu_system_percent: None, cpu_iowait_percent: None, cpu_steal_percent: None, load_average: Some([2.67, 2.13, 1.52]), memory_total_bytes: Some(25274793984), memory_available_bytes: Some(24354758656), memory_free_bytes: Some(14075027456), memory_cached_bytes: Some(9367265280), swap_total_bytes: Some(0), swap_free_bytes: Some(0), pressure: {"cpu": Pressure { some: Some([16.89, 32.07, 28.41]), full: Some([0.0, 0.0, 0.0]) }, "io": Pressure { some: Some([0.65, 0.55, 0.14]), full: Some([0.51, 0.41, 0.1]) }, "memory": Pressure { some: Some([0.0, 0.0, 0.0]), full: Some([0.0, 0.0, 0.0]) }}, processes: Some(8), threads_running: Some(2), forks_per_second: Some(0.0), context_switches_per_second: Some(0.0) }, units: {"nginx.service": UnitLoad { cpu_percent: Some(0.0), memory_bytes: Some(12582912), tasks: Some(3), read_bytes_per_second: Some(0.0), written_bytes_per_second: Some(0.0), pressure: {"cpu": Pressure { some: Some([0.0, 0.12, 0.05]), full: Some([0.0, 0.0, 0.0]) }, "io": Pressure { some: Some([0.0, 0.12, 0.05]), full: Some([0.0, 0.0, 0.0]) }, "memory": Pressure { some: Some([0.0, 0.12, 0.05]), full: Some([0.0, 0.0, 0.0]) }}, vm: None }, "redis.service": UnitLoad { cpu_percent: Some(0.0), memory_bytes: Some(8388608), tasks: Some(5), read_bytes_per_second: Some(0.0), written_bytes_per_second: Some(0.0), pressure: {"cpu": Pressure { some: Some([0.0, 0.12, 0.05]), full: Some([0.0, 0.0, 0.0]) }, "io": Pressure { some: Some([0.0, 0.12, 0.05]), full: Some([0.0, 0.0, 0.0]) }, "memory": Pressure { some: Some([0.0, 0.12, 0.05]), full: Some([0.0, 0.0, 0.0]) }}, vm: None }}, processes: [], filesystems: {"/": FilesystemLoad { size_bytes: None, available_bytes: None, inodes: None, inodes_free: None }}, interfaces: {"eth0": InterfaceLoad { received_bytes_per_second: Some(0.0), sent_bytes_per_second: Some(0.0), received_packets_per_second: Some(0.0), sent_packets_per_second: Some(0.0), errors_per_second: Some(0.0), drops_per_second: Some(0.0) }, "ifb0": InterfaceLoad { received_bytes_per_second: Some(0.0), sent_bytes_per_second: Some(0.0), received_packets_per_second: Some(0.0), sent_packets_per_second: Some(0.0), errors_per_second: Some(0.0), drops_per_second: Some(0.0) }, "lo": InterfaceLoad { received_bytes_per_second: Some(0.0), sent_bytes_per_second: Some(0.0), received_packets_per_second: Some(0.0), sent_packets_per_second: Some(0.0), errors_per_second: Some(0.0), drops_per_second: Some(0.0) }}, disks: {"vda": DiskLoad { read_bytes_per_second: Some(0.0), written_bytes_per_second: Some(0.0), reads_per_second: Some(0.0), writes_per_second: Some(0.0), busy_percent: Some(0.0) }, "zram0": DiskLoad { read_bytes_per_second: Some(0.0), written_bytes_per_second: Some(0.0), reads_per_second: Some(0.0), writes_per_second: Some(0.0), busy_percent: Some(0.0) }}, gpus: {}, collector_age_seconds: {} }
    "#]].assert_eq(&observe(&Root::at(busy())));
}

/// Copies the machine, each file changed.
fn copy_changed(from: &Path, to: &Path, change: &dyn Fn(Vec<u8>) -> Vec<u8>) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            copy_changed(&path, &target, change);
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&path).unwrap(), &target).unwrap();
        } else {
            fs::write(&target, change(fs::read(&path).unwrap())).unwrap();
        }
    }
}

fn observe_changed(change: &dyn Fn(Vec<u8>) -> Vec<u8>) -> String {
    let directory = tempfile::tempdir().unwrap();
    copy_changed(&busy(), directory.path(), change);
    let seen = observe(&Root::at(directory.path()));
    assert!(!seen.replace('\n', "").chars().any(char::is_control), "{seen}");
    seen
}

#[test]
fn files_that_are_cut_off() {
    for part in 0..16 {
        observe_changed(&|bytes| bytes[..bytes.len() * part / 16].to_vec());
    }
}

#[test]
fn files_that_hold_anything() {
    let seen = observe_changed(&|bytes| bytes.iter().map(|byte| byte ^ 0x95).collect());
    assert!(seen.contains("processes: 0"), "{seen}");
    observe_changed(&|bytes| {
        bytes.iter().map(|&b| if b.is_ascii_digit() { b'9' } else { b }).collect()
    });
    observe_changed(&|bytes| {
        let long = |b| if u8::is_ascii_digit(&b) { vec![b; 30] } else { vec![b] };
        bytes.into_iter().flat_map(long).collect()
    });
    observe_changed(&|bytes| bytes.iter().map(|&b| if b == b' ' { 0x1b } else { b }).collect());
    observe_changed(&|bytes| bytes.repeat(50));
    observe_changed(&|bytes| bytes.into_iter().filter(|&b| b != b'\n').collect());
}
