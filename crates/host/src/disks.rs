//! Block devices from `/sys/block`, and mounted filesystems from the mount table.
//!
//! # Invariants
//! - Only what holds data of the machine: no pseudo filesystems, no mounts that a container
//!   runtime makes for its containers, no unused loop devices.
//! - How full something is belongs to load; sizes are of the whole.
//! - No filesystem is asked for its size that may answer from elsewhere, and so may hang.

use crate::Root;
use crate::bounded;
use crate::text::{lines, printable, unescape_octal};
use model::entity::{Disk, Filesystem};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Bytes read of the mount table: about 50,000 mounts.
const MOUNTS_MAX: u64 = 8 * 1024 * 1024;
/// Block devices listed.
const DISKS_MAX: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The block devices and their partitions, in order of name. A machine without `/sys/block`
/// has none.
///
/// # Errors
/// When the directory is there and can't be listed.
pub fn disks(root: &Root) -> Result<Vec<Disk>, Error> {
    let path = root.sys("block");
    let entries = match std::fs::read_dir(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(|source| Error::Read { path, source })?,
    };
    let mut disks = Vec::new();
    for entry in entries.flatten().take(DISKS_MAX) {
        let directory = entry.path();
        let name = printable(entry.file_name().as_bytes());
        let disk = disk(&directory, &name);
        if is_noise(&disk) {
            continue;
        }
        disks.extend(partitions(&directory, &name));
        disks.push(disk);
    }
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(disks)
}

fn disk(directory: &Path, name: &str) -> Disk {
    let line = |path: &str| bounded::line(&directory.join(path));
    let flag = |path: &str| bounded::number(&directory.join(path)).map(|n| n != 0);
    let backing = line("loop/backing_file");
    Disk {
        name: name.to_owned(),
        size_bytes: size(directory),
        model: line("device/model").or(backing).or_else(|| line("dm/name")),
        serial: line("device/serial").or_else(|| line("serial")),
        rotational: flag("queue/rotational"),
        removable: flag("removable"),
        read_only: flag("ro"),
        parent: only_entry(&directory.join("slaves")),
    }
}

fn partitions(directory: &Path, parent: &str) -> Vec<Disk> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let is_partition = |entry: &std::fs::DirEntry| entry.path().join("partition").exists();
    let entries = entries.flatten().filter(is_partition).take(256);
    let partition = |entry: std::fs::DirEntry| Disk {
        name: printable(entry.file_name().as_bytes()),
        size_bytes: size(&entry.path()),
        read_only: bounded::number(&entry.path().join("ro")).map(|n| n != 0),
        parent: Some(parent.to_owned()),
        ..Disk::default()
    };
    entries.map(partition).collect()
}

/// The kernel counts sectors of 512 bytes, whatever the device's own are.
fn size(directory: &Path) -> Option<i64> {
    bounded::number(&directory.join("size"))?.checked_mul(512)
}

/// Of a mapped device with one device below it, that one.
fn only_entry(directory: &Path) -> Option<String> {
    let mut entries = std::fs::read_dir(directory).ok()?.flatten();
    let first = entries.next()?;
    entries.next().is_none().then(|| printable(first.file_name().as_bytes()))
}

/// Devices that exist because the kernel has a driver, and images that packages mount.
fn is_noise(disk: &Disk) -> bool {
    let virtual_device = ["loop", "ram", "zram", "nbd", "fd"].iter().any(|prefix| {
        disk.name.strip_prefix(prefix).is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
    });
    let empty = disk.size_bytes.unwrap_or(0) == 0;
    let packaged = disk.model.as_deref().is_some_and(|file| file.starts_with("/var/lib/snapd/"));
    virtual_device && (empty || packaged || disk.name.starts_with("ram"))
}

/// The mounted filesystems, in order of mount point. Where several lie on top of each other,
/// the one that is seen.
///
/// # Errors
/// When the mount table can't be read.
pub fn filesystems(root: &Root) -> Result<Vec<Filesystem>, Error> {
    // The view of PID 1 is the machine's; our own may be narrowed by our unit's settings.
    let own = root.proc("self/mountinfo");
    let table = bounded::read(&root.proc("1/mountinfo"), MOUNTS_MAX)
        .or_else(|_not_ours| bounded::read(&own, MOUNTS_MAX))
        .map_err(|source| Error::Read { path: own, source })?;
    let mut filesystems = parse_mounts(&table);
    for filesystem in &mut filesystems {
        if is_local(&filesystem.filesystem_type) {
            filesystem.size_bytes = capacity(&root.path(&filesystem.mount_point));
        }
    }
    Ok(filesystems)
}

fn parse_mounts(table: &[u8]) -> Vec<Filesystem> {
    let mut seen = BTreeMap::new();
    for line in lines(table) {
        let Some(filesystem) = parse_mount(line) else { continue };
        seen.insert(filesystem.mount_point.clone(), filesystem);
    }
    seen.retain(|_, filesystem| !is_pseudo(filesystem));
    seen.into_values().collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`.
fn parse_mount(line: &[u8]) -> Option<Filesystem> {
    let text = |bytes: &[u8]| printable(&unescape_octal(bytes));
    let mut fields = line.split(|&b| b == b' ');
    let mount_point = text(fields.nth(4)?);
    let options = fields.next()?;
    // Optional fields end at a lone dash.
    fields.by_ref().find(|field| *field == b"-")?;
    let filesystem_type = text(fields.next()?);
    let device = text(fields.next()?);
    let of_the_whole = fields.next().unwrap_or_default();
    let words = options.split(|&b| b == b',').chain(of_the_whole.split(|&b| b == b','));
    let options: BTreeSet<String> = words.filter(|word| !word.is_empty()).map(text).collect();
    mount_point.starts_with('/').then(|| Filesystem {
        mount_point,
        device,
        filesystem_type,
        options: options.into_iter().collect(),
        size_bytes: None,
    })
}

/// Filesystems without data of the machine, or that come and go with containers.
fn is_pseudo(filesystem: &Filesystem) -> bool {
    const PSEUDO: [&str; 26] = [
        "autofs",
        "binder",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "devtmpfs",
        "efivarfs",
        "fuse.gvfsd-fuse",
        "fuse.lxcfs",
        "fuse.portal",
        "fusectl",
        "hugetlbfs",
        "mqueue",
        "nsfs",
        "proc",
        "pstore",
        "ramfs",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "sysfs",
        "tracefs",
    ];
    const RUNTIME: [&str; 11] = [
        "/dev",
        "/proc",
        "/run",
        "/snap",
        "/sys",
        "/var/lib/containerd",
        "/var/lib/containers",
        "/var/lib/docker",
        "/var/lib/kubelet/pods",
        "/var/lib/lxcfs",
        "/var/run",
    ];
    let below = |directory: &&str| {
        filesystem.mount_point.strip_prefix(*directory).is_some_and(|rest| rest.starts_with('/'))
    };
    let exactly = ["/dev", "/proc", "/run", "/sys"].contains(&filesystem.mount_point.as_str());
    PSEUDO.contains(&filesystem.filesystem_type.as_str()) || RUNTIME.iter().any(below) || exactly
}

/// Filesystems that answer from memory or a disk of this machine.
fn is_local(filesystem_type: &str) -> bool {
    const LOCAL: [&str; 14] = [
        "bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "iso9660",
        "overlay", "squashfs", "tmpfs", "vfat", "xfs",
    ];
    LOCAL.contains(&filesystem_type)
}

fn capacity(path: &Path) -> Option<i64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    i64::try_from(stat.f_blocks.checked_mul(stat.f_frsize)?).ok().filter(|&size| size > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOUNTS: &str = include_str!("../tests/fixtures/mountinfo");

    #[test]
    fn mounts_without_the_noise() {
        let line = |filesystem: &Filesystem| {
            let Filesystem { mount_point, device, filesystem_type, options, .. } = filesystem;
            format!("{mount_point} {device} {filesystem_type} {}\n", options.join(","))
        };
        let seen: String = parse_mounts(MOUNTS.as_bytes()).iter().map(line).collect();
        expect_test::expect![[r"
            / /dev/vda1 ext4 errors=remount-ro,relatime,rw
            /boot/efi /dev/vda15 vfat relatime,rw,umask=0077
            /mnt/with space\x0aand line //nas/share cifs ro,username=backup
            /srv/data /dev/mapper/vg-data xfs noatime,rw
            /tmp tmpfs tmpfs nodev,rw,size=1048576k
        "]]
        .assert_eq(&seen);
    }

    #[test]
    fn disks_and_partitions() {
        let directory = tempfile::tempdir().unwrap();
        let block = directory.path().join("sys/block");
        let put = |path: &str, text: &str| {
            let path = block.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        put("vda/size", "2048\n");
        put("vda/queue/rotational", "1\n");
        put("vda/ro", "0\n");
        put("vda/serial", "lab\u{1b}1\n");
        put("vda/vda1/size", "1024\n");
        put("vda/vda1/partition", "1\n");
        put("loop0/size", "0\n");
        put("loop1/size", "8\n");
        put("loop1/loop/backing_file", "/srv/image\n");
        put("loop2/size", "8\n");
        put("loop2/loop/backing_file", "/var/lib/snapd/snaps/core.snap\n");
        put("ram0/size", "8\n");
        put("dm-0/size", "9223372036854775807\n");
        put("dm-0/dm/name", "vg-data\n");
        put("dm-0/slaves/vda1/x", "");
        let disks = disks(&Root::at(directory.path())).unwrap();
        let names: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
        assert_eq!(names, ["dm-0", "loop1", "vda", "vda1"]);
        assert_eq!(disks[0].size_bytes, None, "what overflows is absent");
        assert_eq!(disks[0].parent.as_deref(), Some("vda1"));
        assert_eq!(disks[2].size_bytes, Some(1_048_576));
        assert_eq!(disks[2].rotational, Some(true));
        assert_eq!(disks[2].serial.as_deref(), Some("lab\\x1b1"));
        assert_eq!(disks[3].parent.as_deref(), Some("vda"));
    }

    #[test]
    fn nothing_there() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        assert!(disks(&root).unwrap().is_empty());
        assert!(filesystems(&root).is_err(), "no mount table is a fault, not an empty machine");
    }

    #[test]
    fn this_machine() {
        let root = Root::live();
        let seen = filesystems(&root).unwrap();
        let slash = seen.iter().find(|filesystem| filesystem.mount_point == "/").unwrap();
        assert!(!slash.filesystem_type.is_empty());
        disks(&root).unwrap();
    }

    proptest! {
        #[test]
        fn anything_goes_in(bytes: Vec<u8>, text in "([0-9]{1,3} ){3}/ /[ -~]{0,30} - [ -~]{0,30}\n") {
            parse_mounts(&bytes);
            parse_mounts(text.as_bytes());
        }
    }
}
