//! An empty layer over another disk, as QEMU's format qcow2 has it. `qemu-img` makes the same, and
//! takes as long to start as a guest needs to go on.
//!
//! ```text
//! cluster 0   header, name and format of the disk below
//!         1   table of blocks of reference counts: one block
//!         2   reference counts: one for each cluster of this file
//!         3…  the table of what the layer holds: nothing
//! ```
//!
//! The layout is that of QEMU's `docs/interop/qcow2.rst`, version 3.

use super::home::remove;
use crate::image::{self, ImageId};
use crate::machine::Error;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const MAGIC: [u8; 4] = *b"QFI\xfb";
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// One entry of the table is a cluster of entries, each of which is a cluster.
const PER_ENTRY: u64 = CLUSTER / 8 * CLUSTER;
const HEADER_BYTES: u32 = 104;
/// Reference counts of 2 to this power of bits.
const COUNT_ORDER: u32 = 4;
const BELOW_FORMAT: u32 = 0xe279_2aca;
const FORMAT: &[u8] = b"qcow2";
/// The header ends the list of extensions with these.
const END: [u8; 8] = [0; 8];
/// The longest name that QEMU takes.
const NAME_BYTES: usize = 1023;
/// No disk of ours is larger: 64 TiB.
const MOST_BYTES: u64 = 1 << 46;

/// Makes a layer that is not there yet over the disk `below`, which is called `called` from where
/// the layer lies. Without a size it is as large as that disk.
pub(crate) fn create(
    path: &Path,
    below: &Path,
    called: &Path,
    bytes: Option<u64>,
) -> Result<(), Error> {
    let size = match bytes {
        Some(bytes) => bytes,
        None => size_of(below)?,
    };
    let content = empty(called.as_os_str().as_bytes(), size);
    let content = content.map_err(Error::file("describe a layer over", below))?;
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = opened.map_err(Error::file("make", path))?;
    let written = file.write_all(&content).and_then(|()| file.sync_all());
    if written.is_err() {
        remove(path)?;
    }
    written.map_err(Error::file("write", path))
}

/// The size of the disk that an image holds.
fn size_of(path: &Path) -> Result<u64, Error> {
    let mut head = [0; 32];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    read.map_err(Error::file("read", path))?;
    let size = head.last_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    if !head.starts_with(&MAGIC) || size == 0 {
        let what = "it is not a disk of the format qcow2".to_owned();
        return Err(Error::Damaged { path: path.to_owned(), what });
    }
    Ok(size)
}

/// What a layer's own header calls the disk below it.
pub(super) fn below(path: &Path) -> Option<PathBuf> {
    let file = File::open(path).ok()?;
    let mut head = [0; 20];
    file.read_exact_at(&mut head, 0).ok()?;
    let (at, length) = (head.get(8..)?.first_chunk()?, head.get(16..)?.first_chunk()?);
    let (at, length) = (u64::from_be_bytes(*at), usize::try_from(u32::from_be_bytes(*length)));
    let length = length.ok().filter(|length| (1..=NAME_BYTES).contains(length))?;
    let mut name = vec![0; length];
    file.read_exact_at(&mut name, at).ok()?;
    (head.starts_with(&MAGIC) && at > 0).then(|| PathBuf::from(OsString::from_vec(name)))
}

/// The image that a layer lies over, by its own header.
pub(crate) fn image_below(path: &Path) -> Option<ImageId> {
    let below = below(path)?;
    let is_image = below.file_name().is_some_and(|name| name == image::DISK);
    below.parent()?.file_name()?.to_str()?.parse().ok().filter(|_| is_image)
}

fn empty(below: &[u8], size: u64) -> io::Result<Vec<u8>> {
    if below.is_empty() || below.len() > NAME_BYTES || size > MOST_BYTES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let entries = u32::try_from(size.div_ceil(PER_ENTRY)).map_err(io::Error::other)?;
    let clusters = 3 + (u64::from(entries) * 8).div_ceil(CLUSTER);
    let counted = usize::try_from(clusters).map_err(io::Error::other)?;
    let mut extension = Vec::new();
    extension.extend(BELOW_FORMAT.to_be_bytes());
    extension.extend(u32::try_from(FORMAT.len()).map_err(io::Error::other)?.to_be_bytes());
    extension.extend(FORMAT);
    extension.resize(extension.len().next_multiple_of(8), 0);
    extension.extend(END);
    let name_at = u64::from(HEADER_BYTES) + extension.len() as u64;

    let mut content = Vec::new();
    content.extend(MAGIC);
    content.extend(3_u32.to_be_bytes());
    content.extend(name_at.to_be_bytes());
    content.extend(u32::try_from(below.len()).map_err(io::Error::other)?.to_be_bytes());
    content.extend(CLUSTER_BITS.to_be_bytes());
    content.extend(size.to_be_bytes());
    // Not encrypted.
    content.extend(0_u32.to_be_bytes());
    content.extend(entries.to_be_bytes());
    content.extend((3 * CLUSTER).to_be_bytes());
    content.extend(CLUSTER.to_be_bytes());
    content.extend(1_u32.to_be_bytes());
    // No internal snapshots and no features.
    content.extend([0; 4 + 8 + 3 * 8]);
    content.extend(COUNT_ORDER.to_be_bytes());
    content.extend(HEADER_BYTES.to_be_bytes());
    content.extend(extension);
    content.extend(below);
    let mut put = |at: u64, bytes: &[u8]| {
        content.resize(usize::try_from(at).unwrap_or(usize::MAX), 0);
        content.extend(bytes);
    };
    put(CLUSTER, &(2 * CLUSTER).to_be_bytes());
    put(2 * CLUSTER, &1_u16.to_be_bytes().repeat(counted));
    put(clusters * CLUSTER, &[]);
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn qemu_img(words: &[&str], path: &Path) -> serde_json::Value {
        let done = Command::new("qemu-img").args(words).arg(path).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        serde_json::from_slice(&done.stdout).unwrap_or_default()
    }

    fn check(bytes: Option<u64>, of_below: &str, expected: u64) {
        let dir = tempfile::tempdir().unwrap();
        let (below, path) = (dir.path().join("below.qcow2"), dir.path().join("layer.qcow2"));
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .args([below.as_os_str(), of_below.as_ref()])
            .status();
        assert!(made.unwrap().success());
        create(&path, &below, Path::new("below.qcow2"), bytes).unwrap();
        assert!(create(&path, &below, Path::new("below.qcow2"), bytes).is_err(), "it is there");
        let info = qemu_img(&["info", "--output=json"], &path);
        assert_eq!(info["virtual-size"], expected);
        assert_eq!(info["backing-filename"], "below.qcow2");
        assert_eq!(info["backing-filename-format"], "qcow2");
        let found = qemu_img(&["check", "--output=json"], &path);
        assert_eq!((&found["check-errors"], found.get("leaks")), (&0.into(), None));
    }

    #[test]
    fn qemu_takes_it_for_an_empty_layer() {
        check(None, "8G", 8 << 30);
        check(None, "1M", 1 << 20);
        check(Some(10 << 30), "8G", 10 << 30);
        check(Some(MOST_BYTES), "8G", MOST_BYTES);
    }

    #[test]
    fn a_layer_says_itself_what_it_lies_over() {
        let dir = tempfile::tempdir().unwrap();
        let (path, id) = (dir.path().join("layer.qcow2"), "0a".repeat(32));
        let called = format!("../../../images/{id}/disk.qcow2");
        create(&path, Path::new("/none"), Path::new(&called), Some(1 << 30)).unwrap();
        assert_eq!(below(&path).unwrap(), Path::new(&called));
        assert_eq!(image_below(&path).unwrap().as_str(), id);
        for hostile in [vec![], vec![0xff; 200], [MAGIC.as_slice(), &[0xff; 60]].concat()] {
            std::fs::write(&path, hostile).unwrap();
            assert_eq!(below(&path), None);
        }
    }

    #[test]
    fn what_is_no_disk_or_too_large_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (below, path) = (dir.path().join("below"), dir.path().join("layer"));
        std::fs::write(&below, [0; 64]).unwrap();
        let refused = create(&path, &below, Path::new("below"), None);
        assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
        let refused = create(&path, &below, Path::new("below"), Some(MOST_BYTES + 1));
        assert!(matches!(refused, Err(Error::File { .. })), "{refused:?}");
        assert!(!path.exists());
    }
}
