//! Turns what QEMU's migration wrote (capability `mapped-ram`) into a saved moment that is
//! running again at once.
//!
//! ```text
//! as QEMU wrote it                          what is made of it
//! ┌ header ┐                                devices: the same file, but the machine's memory is
//! ├ block "ram": bitmap, pages ┤            left out and its bitmap says "no page": a new QEMU
//! ├ small blocks (firmware)    ┤            reads 1 MB instead of all
//! └ devices ┘                               memory: the file itself, whose pages lie one after
//!                                           another from an offset on, mapped copy-on-write as
//!                                           the new QEMU's memory
//! ```
//!
//! So no page is copied twice, and machines from one moment share the pages they don't write to.
//! The layout is the one that QEMU documents in `docs/devel/migration/mapped-ram.rst`, and every
//! number in it is checked here.
//!
//! # Invariants
//! - A page whose bit is not set is a hole in the memory file: it was zero at the end, whatever
//!   had been written there before.

use crate::machine::Error;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

const PAGE: u64 = 4096;
/// The memory's record is near the beginning of the file.
const HEAD_BYTES: usize = 4096;
/// Of the record behind the block's name and length: version, page size, two offsets.
const RECORD_BYTES: usize = 28;
/// The most that is left beside the memory; it is about 1 MB.
const DEVICE_BYTES: u64 = 256 << 20;

/// Splits the file. Afterwards it is the memory, from the offset returned on. Neither is on the
/// disk for certain yet.
pub(super) fn split(path: &Path, devices: &Path, memory_bytes: u64) -> Result<u64, Error> {
    let damaged = |what: &str| Error::Damaged { path: path.to_owned(), what: what.to_owned() };
    let opened = File::options().read(true).write(true).open(path);
    let mut file = opened.map_err(Error::file("open", path))?;
    let failed = || Error::file("read", path);
    let mut head = vec![0; HEAD_BYTES];
    file.read_exact(&mut head).map_err(failed())?;
    let record = find(&head, memory_bytes).map_err(damaged)?;
    let length = file.metadata().map_err(failed())?.len();
    let end = record.pages + memory_bytes;
    if length <= end {
        return Err(damaged("it ends within the memory"));
    }
    let mut bitmap = vec![0; usize::try_from(memory_bytes / PAGE / 8).unwrap_or(usize::MAX)];
    file.read_exact_at(&mut bitmap, record.bitmap).map_err(failed())?;
    clear(&file, &record, memory_bytes, &bitmap).map_err(Error::file("clear pages in", path))?;

    let begin = usize::try_from(record.bitmap).ok().and_then(|at| head.get(..at));
    let begin = begin.ok_or_else(|| damaged("its header is too long"))?;
    let mut small = File::create(devices).map_err(Error::file("make", devices))?;
    let written = small.write_all(begin).and_then(|()| small.set_len(length));
    written.map_err(Error::file("write", devices))?;
    let mut rest = 0;
    for (from, to) in extents(&file, end, length).map_err(failed())? {
        rest += to - from;
        if rest > DEVICE_BYTES {
            return Err(damaged("there is more beside the memory than devices are"));
        }
        file.seek(io::SeekFrom::Start(from)).map_err(failed())?;
        small.seek(io::SeekFrom::Start(from)).map_err(Error::file("write", devices))?;
        let part = &mut (&file).take(to - from);
        io::copy(part, &mut small).map_err(Error::file("write", devices))?;
    }
    Ok(record.pages)
}

/// Where the memory's bitmap and pages begin.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    bitmap: u64,
    pages: u64,
}

/// Finds the record of the block whose length is the memory's. It says itself where it is, so
/// nothing else is taken for it.
fn find(head: &[u8], memory_bytes: u64) -> Result<Record, &'static str> {
    if !head.starts_with(b"QEVM\0\0\0\x03") {
        return Err("it is not what a migration of QEMU writes");
    }
    let length = memory_bytes.to_be_bytes();
    let starts = head.windows(length.len()).enumerate().filter(|(_, bytes)| **bytes == length);
    for (at, _) in starts {
        let Some(record) = head.get(at + length.len()..at + length.len() + RECORD_BYTES) else {
            continue;
        };
        let number = |at: usize| {
            let bytes = record.get(at..).and_then(|rest| rest.first_chunk::<8>());
            bytes.map_or(0, |bytes| u64::from_be_bytes(*bytes))
        };
        let (page, bitmap, pages) = (number(4), number(12), number(20));
        let behind = (at + length.len() + RECORD_BYTES) as u64;
        let room = memory_bytes / PAGE / 8;
        if record.starts_with(&[0, 0, 0, 1])
            && page == PAGE
            && bitmap == behind
            && pages % PAGE == 0
            && pages.checked_sub(bitmap).is_some_and(|space| space >= room)
            && pages.checked_add(memory_bytes).is_some()
        {
            return Ok(Record { bitmap, pages });
        }
    }
    Err("the machine's memory is not in it")
}

/// Punches out what is there of pages that the bitmap says were zero.
fn clear(file: &File, record: &Record, memory_bytes: u64, bitmap: &[u8]) -> io::Result<()> {
    let is_set = |page: u64| {
        let byte = usize::try_from(page / 8).ok().and_then(|at| bitmap.get(at));
        byte.is_some_and(|byte| byte >> (page % 8) & 1 == 1)
    };
    for (from, to) in extents(file, record.pages, record.pages + memory_bytes)? {
        let (mut page, last) = ((from - record.pages) / PAGE, (to - record.pages).div_ceil(PAGE));
        while page < last {
            let run = (page..last).take_while(|page| !is_set(*page)).count() as u64;
            if run > 0 {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(file, flags, record.pages + page * PAGE, run * PAGE)?;
            }
            page += run.max(1);
        }
    }
    Ok(())
}

/// Where there is data between two offsets, as far as the file system tells.
fn extents(file: &File, from: u64, to: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    let mut at = from;
    while at < to {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < to => start,
            Ok(_) | Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(to);
        found.push((start, end));
        at = end;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMORY: u64 = 64 * PAGE;

    /// A file as QEMU writes it, its pages at 1 MiB, with these pages' bits set.
    fn written(set: &[u64]) -> Vec<u8> {
        let mut file = b"QEVM\0\0\0\x03\x07\0\0\0\x02pc".to_vec();
        file.extend(b"\x03ram");
        file.extend(MEMORY.to_be_bytes());
        file.extend(1_u32.to_be_bytes());
        file.extend(PAGE.to_be_bytes());
        let bitmap = file.len() as u64 + 16;
        file.extend(bitmap.to_be_bytes());
        file.extend((1_u64 << 20).to_be_bytes());
        let mut bits = [0_u8; 8];
        for page in set {
            bits[usize::try_from(page / 8).unwrap()] |= 1 << (page % 8);
        }
        file.extend(bits);
        file.resize((1 << 20) + usize::try_from(MEMORY).unwrap(), 0);
        for page in 0..8 {
            let at = (1 << 20) + page * 4096;
            file[at..at + 4096].fill(7);
        }
        file.extend(b"devices");
        file
    }

    fn check(content: &[u8], expected: Result<u64, &str>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        std::fs::write(&path, content).unwrap();
        let split = split(&path, &dir.path().join("devices"), MEMORY);
        match (split, expected) {
            (Ok(offset), Ok(wanted)) => assert_eq!(offset, wanted),
            (Err(error), Err(wanted)) => assert!(error.to_string().contains(wanted), "{error}"),
            (found, wanted) => panic!("{found:?} is not {wanted:?}"),
        }
        dir
    }

    #[test]
    fn pages_that_became_zero_are_zero_and_devices_lie_apart() {
        let dir = check(&written(&[0, 3]), Ok(1 << 20));
        let memory = std::fs::read(dir.path().join("memory")).unwrap();
        for page in 0..8 {
            let wanted = if page == 0 || page == 3 { 7 } else { 0 };
            let at = (1 << 20) + page * 4096;
            assert!(memory[at..at + 4096].iter().all(|byte| *byte == wanted), "page {page}");
        }
        let devices = std::fs::read(dir.path().join("devices")).unwrap();
        assert_eq!(devices.len(), memory.len());
        assert!(devices.ends_with(b"devices") && devices.starts_with(b"QEVM"));
        assert!(devices[60..(1 << 20)].iter().all(|byte| *byte == 0), "no page is claimed");
    }

    #[test]
    fn what_is_not_such_a_file_is_refused() {
        let sound = written(&[0]);
        check(b"short", Err("read"));
        check(&[0; 8192], Err("not what a migration"));
        check(&sound[..sound.len() - 7], Err("ends within"));
        check(&sound[..1 << 19], Err("ends within"));
        let mut other = sound.clone();
        other[36] ^= 1;
        check(&other, Err("not in it"));
    }
}
