//! How full the filesystems are.
//!
//! # Invariants
//! - Never asks a filesystem that may wait for a network or for another process to answer,
//!   nor one below such a mount point: a dead server would hold us for ever.

use crate::Root;
use crate::text::{lines, printable, unescape_octal, words};
use model::load::FilesystemLoad;
use rustix::fs::statvfs;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// Filesystems that are looked at.
const FILESYSTEMS_MAX: usize = 256;

/// Filesystems that answer from memory or a disk of their own. All others are left alone.
const LOCAL: [&str; 22] = [
    "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "reiserfs", "nilfs2", "bcachefs",
    "vfat", "exfat", "msdos", "ntfs3", "iso9660", "udf", "squashfs", "erofs", "tmpfs", "overlay",
    "ramfs",
];

/// Filesystems of the kernel's own, which hold nothing and never wait.
const OF_THE_KERNEL: [&str; 18] = [
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "cgroup",
    "cgroup2",
    "mqueue",
    "hugetlbfs",
    "debugfs",
    "tracefs",
    "securityfs",
    "pstore",
    "bpf",
    "configfs",
    "efivarfs",
    "binfmt_misc",
    "rootfs",
    "selinuxfs",
];

/// The mount points, unescaped, that are safe to ask about.
fn askable(table: &[u8]) -> BTreeSet<Vec<u8>> {
    let mut points = BTreeSet::new();
    let mut risky = Vec::new();
    for line in lines(table).take(16 * FILESYSTEMS_MAX) {
        let mut fields = words(line).skip(1);
        let (Some(point), Some(kind)) = (fields.next(), fields.next()) else { continue };
        let point = unescape_octal(point).into_owned();
        if !point.starts_with(b"/") || point.contains(&0) {
            continue;
        }
        let kind = std::str::from_utf8(kind).unwrap_or_default();
        if LOCAL.contains(&kind) {
            points.insert(point);
        } else if !OF_THE_KERNEL.contains(&kind) {
            // Also when another is mounted over it: which of both answers is not known here.
            risky.push(point);
        }
    }
    points
        .retain(|point| !of_a_container(point) && !risky.iter().any(|risk| is_below(point, risk)));
    points
}

/// Whether the way to a mount point leads through another. All ways lead through `/`, and
/// with a dead one nothing works anyway.
fn is_below(point: &[u8], above: &[u8]) -> bool {
    match point.strip_prefix(above) {
        Some(rest) if above == b"/" => rest.is_empty(),
        Some(rest) => rest.is_empty() || rest.starts_with(b"/"),
        None => false,
    }
}

/// Layers of containers are as full as the filesystem they lie on.
fn of_a_container(point: &[u8]) -> bool {
    [b"/var/lib/docker/".as_slice(), b"/var/lib/containers/", b"/run/docker/", b"/run/containerd/"]
        .iter()
        .any(|above| point.starts_with(above))
}

/// How full each filesystem of a mount table is.
pub(super) fn load(table: &[u8], root: &Root) -> BTreeMap<String, FilesystemLoad> {
    let mut filesystems = BTreeMap::new();
    for point in askable(table).into_iter().take(FILESYSTEMS_MAX) {
        let Ok(answer) = statvfs(root.path(OsStr::from_bytes(&point))) else { continue };
        if answer.f_blocks == 0 {
            continue;
        }
        let bytes = |blocks: u64| Some(blocks.saturating_mul(answer.f_frsize));
        // Some filesystems make inodes as needed, and count none.
        let inodes = (answer.f_files > 0).then_some((answer.f_files, answer.f_ffree));
        let load = FilesystemLoad {
            size_bytes: bytes(answer.f_blocks),
            available_bytes: bytes(answer.f_bavail),
            inodes: inodes.map(|(all, _)| all),
            inodes_free: inodes.map(|(_, free)| free),
        };
        filesystems.insert(printable(&point), load);
    }
    filesystems
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(table: &str, expected: &[&str]) {
        let points: Vec<String> = askable(table.as_bytes()).iter().map(|p| printable(p)).collect();
        assert_eq!(points, expected, "{table}");
    }

    #[test]
    fn only_what_answers_at_once_is_asked() {
        check(
            "/dev/vda / ext4 rw 0 0\nproc /proc proc rw 0 0\ntmpfs /run tmpfs rw 0 0\n",
            &["/", "/run"],
        );
        check("/dev/vda /a\\040b xfs rw 0 0", &["/a b"]);
        check(
            "nas:/x /mnt nfs4 rw 0 0\n/dev/sdb /mnt/local ext4 rw 0 0\n/dev/sdc /mnt2 ext4 rw 0 0",
            &["/mnt2"],
        );
        check("x /data fuse.sshfs rw 0 0\nx /d autofs rw 0 0\nx /d ext4 rw 0 0", &[]);
        check("nas:/root / nfs rw 0 0\n/dev/sdb /data ext4 rw 0 0", &["/data"]);
        check("overlay /var/lib/docker/overlay2/abc/merged overlay rw 0 0", &[]);
        check("/dev/vda\n/dev/vda relative ext4\n\n", &[]);
    }

    #[test]
    fn this_machine() {
        let table = std::fs::read("/proc/self/mounts").unwrap();
        let filesystems = load(&table, &Root::live());
        let root = &filesystems["/"];
        assert!(root.size_bytes > root.available_bytes);
    }

    proptest! {
        #[test]
        fn anything_goes_in(bytes: Vec<u8>) {
            askable(&bytes);
        }
    }
}
