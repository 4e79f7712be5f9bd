//! Captured trees of machines, and hostile text in every parser.

use super::*;
use proptest::prelude::*;
use std::path::Path;

fn fixture() -> Root {
    Root::at(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/machine"))
}

#[test]
fn a_virtual_machine() {
    let redactor = Redactor::new([1; 32], Vec::new());
    let mut seen = platform(&fixture(), &redactor);
    assert_eq!(seen.architecture.take().as_deref(), Some(std::env::consts::ARCH));
    let line = seen.kernel_command_line.take().unwrap();
    assert!(
        line.starts_with("BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro rd.luks.key=redacted:"),
        "{line}"
    );
    assert!(line.ends_with(" quiet") && !line.contains("A7fK"), "{line}");
    expect_test::expect![[r#"
        Platform {
            id: "host",
            hostname: "web01",
            machine_id: Some(
                "00000000000000000000000000000001",
            ),
            boot_id: Some(
                "00000000-0000-4000-8000-000000000002",
            ),
            booted_at: Some(
                Time(
                    1795165200000000,
                ),
            ),
            distribution: Some(
                "debian",
            ),
            distribution_version: Some(
                "12",
            ),
            distribution_name: Some(
                "Debian GNU/Linux 12 (bookworm)",
            ),
            kernel: Some(
                "6.1.0-18-amd64",
            ),
            kernel_command_line: None,
            architecture: None,
            virtualization: Some(
                "kvm",
            ),
            vendor: Some(
                "QEMU",
            ),
            product: Some(
                "Standard PC (Q35 + ICH9, 2009)",
            ),
            time_zone: Some(
                "Europe/Berlin",
            ),
            systemd_version: None,
            name_servers: [
                "192.0.2.53",
                "2001:db8::53",
            ],
            search_domains: [
                "example.org",
            ],
        }
    "#]]
    .assert_debug_eq(&seen);
}

#[test]
fn processors_and_memory() {
    let cpu = cpu(&fixture());
    assert_eq!(cpu.model.as_deref(), Some("AMD EPYC Processor"));
    assert_eq!((cpu.logical, cpu.physical, cpu.sockets), (Some(4), Some(2), Some(1)));
    assert_eq!(cpu.flags, ["aes", "avx2", "hypervisor", "lm", "nx", "svm"]);
    let memory = memory(&fixture());
    let ids: Vec<(&str, Option<i64>, Option<i64>)> =
        memory.iter().map(|m| (m.id.as_str(), m.total_bytes, m.priority)).collect();
    assert_eq!(
        ids,
        [
            ("ram", Some(2_014_232 * 1024), None),
            ("/dev/dm-1", Some(999_420 * 1024), Some(-2)),
            ("/swap file", Some(1024 * 1024), Some(5)),
        ]
    );
}

#[test]
fn the_time_of_boot_does_not_waver() {
    let redactor = Redactor::new([1; 32], Vec::new());
    let mut before = platform(&fixture(), &redactor);
    let real = before.booted_at.unwrap();
    let mut check = |micros: i64, boot_id: &str, kept: bool| {
        before.booted_at = Some(Time(real.0 + micros));
        before.boot_id = Some(boot_id.to_owned());
        let after = platform_after(&fixture(), &redactor, Some(&before)).booted_at;
        assert_eq!(after, if kept { before.booted_at } else { Some(real) }, "{micros} {boot_id}");
    };
    let this = "00000000-0000-4000-8000-000000000002";
    check(1_000_000, this, true);
    check(-2_000_000, this, true);
    check(60_000_000, this, false);
    check(1_000_000, "another", false);
}

#[test]
fn a_machine_that_shows_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::at(directory.path());
    let seen = platform(&root, &Redactor::new([1; 32], Vec::new()));
    assert_eq!(seen.hostname, "");
    assert_eq!((seen.kernel, seen.virtualization, seen.time_zone), (None, None, None));
    assert_eq!(cpu(&root).logical, None);
    assert!(memory(&root).is_empty());
}

#[test]
fn containers_are_recognised_before_their_machine() {
    let directory = tempfile::tempdir().unwrap();
    let root = Root::at(directory.path());
    std::fs::write(directory.path().join(".dockerenv"), "").unwrap();
    assert_eq!(virtualization(&root).as_deref(), Some("docker"));
    std::fs::create_dir_all(directory.path().join("run/systemd")).unwrap();
    std::fs::write(directory.path().join("run/systemd/container"), "lxc\n").unwrap();
    assert_eq!(virtualization(&root).as_deref(), Some("lxc"));
}

proptest! {
    #[test]
    fn anything_goes_in(bytes: Vec<u8>, text in "([a-zA-Z_ ]{0,12}[=:\t ][ -~]{0,20}\n){0,10}") {
        for input in [bytes.as_slice(), text.as_bytes()] {
            parse_os_release(input);
            parse_resolver(input);
            parse_cpu(input);
            parse_memory(input, input);
        }
    }
}
