//! Reads files whose size is not ours to choose: never more than a limit, never a device.
//!
//! # Invariants
//! - No call blocks on a FIFO or a device, and none returns more than its limit.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Bytes read of a small text file of the system, such as `/etc/os-release`.
pub(crate) const SMALL: u64 = 64 * 1024;

/// The first `limit` bytes of a regular file (which files of `/proc` and `/sys` are, too).
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    read_open(&file, metadata.len().min(limit), limit)
}

/// The first `limit` bytes of an open file; `expected` is only a guess.
pub(crate) fn read_open(file: &File, expected: u64, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(expected.min(limit)).unwrap_or(0));
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The first line of a small file, trimmed and printable; `None` when there is none.
pub(crate) fn line(path: &Path) -> Option<String> {
    let bytes = read(path, SMALL).ok()?;
    let first = bytes.split(|&b| b == b'\n').next()?.trim_ascii();
    (!first.is_empty()).then(|| crate::text::printable(first))
}

/// A small file that holds one decimal number.
pub(crate) fn number(path: &Path) -> Option<i64> {
    line(path)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_are_bounded_and_never_block() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("f");
        std::fs::write(&file, " 42 \nrest").unwrap();
        assert_eq!(read(&file, 3).unwrap(), b" 42");
        assert_eq!(line(&file).as_deref(), Some("42"));
        assert_eq!(number(&file), Some(42));
        assert!(read(directory.path(), 10).is_err());
        assert_eq!(line(&directory.path().join("missing")), None);
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        assert!(read(&fifo, 10).is_err());
    }
}
