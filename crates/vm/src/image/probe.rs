//! Says what a disk image is by looking into it, before any program opens it.
//!
//! A qcow2 file can name other files (a backing file, a data file) that whoever opens it would
//! read. Such an image is refused here, from its header alone; programs are then told the
//! format and never guess it.
//!
//! # Invariants
//! - Reads a few sectors, changes nothing, never follows what the file says.
//! - The file's name plays no part.

use std::io::{self, Read, Seek, SeekFrom};

/// The largest disk an image may describe: 16 TiB.
const DISK_BYTES: u64 = 16 << 40;
/// The start of the file that is looked at: headers, partition table, ISO descriptor.
const HEAD_BYTES: usize = 40 << 10;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Qcow2,
    Raw,
}

impl Format {
    /// As qemu-img names it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Qcow2 => "qcow2",
            Self::Raw => "raw",
        }
    }
}

/// What was found in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub format: Format,
    /// The disk as a guest sees it.
    pub virtual_size_bytes: u64,
}

/// Why a file is no image to start a machine from.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("it could not be read: {0}")]
    Read(#[from] io::Error),
    #[error("it is {0}; a qcow2 or raw disk image is needed")]
    Other(&'static str),
    #[error("it is neither qcow2 nor a raw disk: no partition table and no file system is in it")]
    Unknown,
    #[error("it is cut off: {0}")]
    Truncated(String),
    #[error("it refers to another file ({0}), which would be read along with it")]
    Refers(&'static str),
    #[error("its header is not sound: {0}")]
    Unsound(&'static str),
    #[error("it is encrypted")]
    Encrypted,
    #[error("its disk of {0} bytes is larger than the 16 TiB allowed")]
    TooLarge(u64),
}

/// Looks at an image from its first byte to its last. `length` is how long the file is.
pub fn probe(file: &mut (impl Read + Seek), length: u64) -> Result<Found, ProbeError> {
    let mut head = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.by_ref().take(HEAD_BYTES as u64).read_to_end(&mut head)?;
    let head = Bytes(&head);
    if head.is_at(0, b"QFI\xfb") {
        return qcow2(head, length);
    }
    if let Some(other) = other(head) {
        return Err(ProbeError::Other(other));
    }
    if head.0.is_empty() {
        return Err(ProbeError::Truncated("it is empty".to_owned()));
    }
    raw(head, length)
}

/// Numbers at offsets, absent where the file ends before.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn is_at(self, at: usize, magic: &[u8]) -> bool {
        self.0.get(at..).is_some_and(|rest| rest.starts_with(magic))
    }

    fn array<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..)?.first_chunk().copied()
    }

    fn big32(self, at: usize) -> Result<u32, ProbeError> {
        self.array(at).map(u32::from_be_bytes).ok_or_else(short_header)
    }

    fn big64(self, at: usize) -> Result<u64, ProbeError> {
        self.array(at).map(u64::from_be_bytes).ok_or_else(short_header)
    }

    fn little16(self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn little32(self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn little64(self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }
}

fn short_header() -> ProbeError {
    ProbeError::Truncated("it ends within its header".to_owned())
}

/// Formats people also have, named so that the answer helps.
fn other(head: Bytes<'_>) -> Option<&'static str> {
    const KNOWN: &[(usize, &[u8], &str)] = &[
        (0, b"KDMV", "a VMDK image"),
        (0, b"# Disk DescriptorFile", "a VMDK descriptor"),
        (0, b"COWD", "a VMDK image"),
        (0, b"conectix", "a VHD image"),
        (0, b"vhdxfile", "a VHDX image"),
        (0x40, b"\x7f\x10\xda\xbe", "a VDI image"),
        (0, b"QED\0", "a QED image"),
        (0, b"LUKS\xba\xbe", "an encrypted disk"),
        (0, b"\x1f\x8b", "compressed with gzip, unpack it first"),
        (0, b"\xfd7zXZ\0", "compressed with xz, unpack it first"),
        (0, b"\x28\xb5\x2f\xfd", "compressed with zstd, unpack it first"),
        (0, b"BZh", "compressed with bzip2, unpack it first"),
        (0, b"PK\x03\x04", "a ZIP archive, unpack it first"),
        (257, b"ustar", "a tar archive, unpack it first"),
        (0, b"<", "a page of text; was it fetched from the right address?"),
        (0, b"{", "a text"),
    ];
    let known = KNOWN.iter().find(|(at, magic, _)| head.is_at(*at, magic));
    known.map(|(_, _, what)| *what)
}

/// The header of qcow2, versions 2 and 3, as its specification lays it out.
fn qcow2(head: Bytes<'_>, length: u64) -> Result<Found, ProbeError> {
    let version = head.big32(4)?;
    if !(2..=3).contains(&version) {
        return Err(ProbeError::Unsound("a qcow2 version other than 2 and 3"));
    }
    if head.big64(8)? != 0 || head.big32(16)? != 0 {
        return Err(ProbeError::Refers("a backing file"));
    }
    let cluster_bits = head.big32(20)?;
    let virtual_size_bytes = head.big64(24)?;
    if head.big32(32)? != 0 {
        return Err(ProbeError::Encrypted);
    }
    if !(9..=21).contains(&cluster_bits) {
        return Err(ProbeError::Unsound("a cluster size out of range"));
    }
    let mut header_length = 72;
    if version == 3 {
        let incompatible = head.big64(72)?;
        if incompatible & 4 != 0 {
            return Err(ProbeError::Refers("a data file"));
        }
        if incompatible & 2 != 0 {
            return Err(ProbeError::Unsound("it is marked corrupt"));
        }
        if incompatible & !0b1_1111 != 0 {
            return Err(ProbeError::Unsound("features that are not known here"));
        }
        header_length = head.big32(100)? as usize;
    }
    extensions(head, header_length)?;
    size(virtual_size_bytes)?;
    let (entries, at) = (u64::from(head.big32(36)?), head.big64(40)?);
    within("its table of clusters", at, entries.saturating_mul(8), length)?;
    let (clusters, at) = (u64::from(head.big32(56)?), head.big64(48)?);
    within("its table of references", at, clusters << cluster_bits, length)?;
    // One entry of the first table covers as many bytes as a second table has clusters.
    let covered = u128::from(entries) << (2 * cluster_bits - 3);
    if covered < u128::from(virtual_size_bytes) {
        return Err(ProbeError::Unsound("its tables are smaller than its disk"));
    }
    Ok(Found { format: Format::Qcow2, virtual_size_bytes })
}

/// Header extensions, up to the end marker: one of them may name a data file.
fn extensions(head: Bytes<'_>, mut at: usize) -> Result<(), ProbeError> {
    const DATA_FILE: u32 = 0x4441_5441;
    const LIMIT: usize = 64;
    for _ in 0..LIMIT {
        // Older writers end the header without a marker, where the cluster ends.
        let (Ok(kind), Ok(length)) = (head.big32(at), head.big32(at + 4)) else { return Ok(()) };
        match kind {
            0 => return Ok(()),
            DATA_FILE => return Err(ProbeError::Refers("a data file")),
            _ => at += 8 + (length as usize).next_multiple_of(8),
        }
    }
    Err(ProbeError::Unsound("endless header extensions"))
}

fn within(what: &str, at: u64, bytes: u64, length: u64) -> Result<(), ProbeError> {
    match at.checked_add(bytes) {
        Some(end) if end <= length => Ok(()),
        _ => Err(ProbeError::Truncated(format!("{what} lies beyond its {length} bytes"))),
    }
}

fn size(bytes: u64) -> Result<(), ProbeError> {
    match bytes {
        0 => Err(ProbeError::Unsound("a disk of no bytes")),
        1..=DISK_BYTES => Ok(()),
        _ => Err(ProbeError::TooLarge(bytes)),
    }
}

/// A raw disk has a partition table or a file system; what they describe must be there.
fn raw(head: Bytes<'_>, length: u64) -> Result<Found, ProbeError> {
    size(length)?;
    let found = Ok(Found { format: Format::Raw, virtual_size_bytes: length });
    if head.is_at(512, b"EFI PART") {
        let last = head.little64(512 + 32).unwrap_or(u64::MAX);
        within("its second partition table", last.saturating_mul(512), 512, length)?;
        return found;
    }
    if head.little16(0x438) == Some(0xef53) {
        let blocks = u64::from(head.little32(0x404).unwrap_or(0));
        let shift = head.little32(0x418).filter(|shift| *shift <= 6);
        let shift = shift.ok_or(ProbeError::Unsound("a block size out of range"))?;
        within("its file system", 0, blocks << (10 + shift), length)?;
        return found;
    }
    if head.is_at(0, b"XFSB") || head.is_at(0x8001, b"CD001") {
        return found;
    }
    if head.is_at(510, b"\x55\xaa") {
        let mut partitions = 0;
        for at in (446..510).step_by(16) {
            let kind = head.0.get(at + 4).copied().unwrap_or(0);
            let first = head.little32(at + 8).map_or(0, u64::from);
            let sectors = head.little32(at + 12).map_or(0, u64::from);
            // 0xee only guards a GPT, and covers as much as the field can hold.
            if kind != 0 && kind != 0xee && sectors != 0 {
                within("one of its partitions", first * 512, sectors * 512, length)?;
                partitions += 1;
            }
        }
        if partitions > 0 {
            return found;
        }
    }
    Err(ProbeError::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    fn look(bytes: &[u8]) -> Result<Found, ProbeError> {
        probe(&mut Cursor::new(bytes), bytes.len() as u64)
    }

    fn check(bytes: &[u8], wanted: &str) {
        let answer = match look(bytes) {
            Ok(found) => format!("{} {}", found.format.as_str(), found.virtual_size_bytes),
            Err(error) => error.to_string(),
        };
        assert!(answer.contains(wanted), "{answer:?} is not {wanted:?}");
    }

    /// A qcow2 of 1 GiB whose tables lie in its first clusters.
    fn sound() -> Vec<u8> {
        let mut image = vec![0; 4 << 16];
        image[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        image[20..24].copy_from_slice(&16_u32.to_be_bytes());
        image[24..32].copy_from_slice(&(1_u64 << 30).to_be_bytes());
        image[36..40].copy_from_slice(&2_u32.to_be_bytes());
        image[40..48].copy_from_slice(&(3_u64 << 16).to_be_bytes());
        image[48..56].copy_from_slice(&(1_u64 << 16).to_be_bytes());
        image[56..60].copy_from_slice(&1_u32.to_be_bytes());
        image[96..100].copy_from_slice(&4_u32.to_be_bytes());
        image[100..104].copy_from_slice(&104_u32.to_be_bytes());
        image
    }

    fn edited(at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut image = sound();
        image[at..at + bytes.len()].copy_from_slice(bytes);
        image
    }

    #[test]
    fn qcow2_headers() {
        check(&sound(), "qcow2 1073741824");
        check(&edited(8, &600_u64.to_be_bytes()), "backing file");
        check(&edited(16, &4_u32.to_be_bytes()), "backing file");
        check(&edited(72, &4_u64.to_be_bytes()), "data file");
        check(&edited(104, b"DATA\0\0\0\x05/etc/"), "data file");
        check(&edited(104, b"\0\0\0\x01\0\0\0\x03abc\0\0\0\0\0DATA\0\0\0\x01"), "data file");
        check(&edited(32, &1_u32.to_be_bytes()), "encrypted");
        check(&edited(4, &9_u32.to_be_bytes()), "version");
        check(&edited(24, &u64::MAX.to_be_bytes()), "larger than");
        check(&edited(36, &1_u32.to_be_bytes()), "smaller than its disk");
        check(&edited(72, &(1_u64 << 40).to_be_bytes()), "not known");
        check(&sound()[..3 << 16], "cut off");
        check(&sound()[..60], "cut off");
        check(&sound()[..6], "cut off");
    }

    #[test]
    fn what_is_no_disk_is_named() {
        check(b"", "empty");
        check(b"KDMV....", "VMDK");
        check(b"\x1f\x8b\x08", "gzip");
        check(b"<!DOCTYPE html><html>", "right address");
        check(&[7; 100_000], "neither");
        check(&[0; 100_000], "neither");
    }

    #[test]
    fn raw_disks() {
        let mut disk = vec![0; 1 << 20];
        disk[510..512].copy_from_slice(b"\x55\xaa");
        disk[450] = 0x83;
        disk[454..458].copy_from_slice(&64_u32.to_le_bytes());
        disk[458..462].copy_from_slice(&1000_u32.to_le_bytes());
        check(&disk, "raw 1048576");
        check(&disk[..100 << 10], "cut off");
        disk[512..520].copy_from_slice(b"EFI PART");
        disk[544..552].copy_from_slice(&2047_u64.to_le_bytes());
        check(&disk, "raw");
        check(&disk[..1 << 19], "cut off");
        let mut disk = vec![0; 1 << 20];
        disk[0x438..0x43a].copy_from_slice(&0xef53_u16.to_le_bytes());
        disk[0x404..0x408].copy_from_slice(&1024_u32.to_le_bytes());
        check(&disk, "raw");
        check(&disk[..1 << 19], "cut off");
        disk[0x418..0x41c].copy_from_slice(&60_u32.to_le_bytes());
        check(&disk, "out of range");
    }

    proptest! {
        #[test]
        fn no_header_is_too_strange(
            at in 0_usize..200, bytes in prop::collection::vec(any::<u8>(), 0..64), cut in 0_usize..70_000
        ) {
            let mut image = edited(at, &bytes);
            image.truncate(cut);
            if let Ok(found) = look(&image) {
                prop_assert!(found.virtual_size_bytes <= DISK_BYTES);
            }
        }
    }
}
