//! The log of what a guest wrote to its console: it is cut when it becomes long, and keeps its end.
//!
//! Whoever writes it (QEMU, or libvirt's log daemon) only ever appends to it, and does not notice.
//! What is written in the very moment of the cut is lost.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A log that is longer is cut.
const MOST_BYTES: u64 = 16 << 20;
/// What is left of it then.
const KEPT_BYTES: u64 = 1 << 20;

/// Cuts a log that has become too long. One that is not there is short enough. Blocks.
///
/// # Errors
/// When it can't be read or written.
pub fn bound(log: &Path) -> io::Result<()> {
    bound_to(log, MOST_BYTES, KEPT_BYTES)
}

fn bound_to(log: &Path, most: u64, kept: u64) -> io::Result<()> {
    let mut file = match OpenOptions::new().read(true).append(true).open(log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let length = file.metadata()?.len();
    if length <= most {
        return Ok(());
    }
    let mut end = vec![0; usize::try_from(kept.min(length)).map_err(io::Error::other)?];
    file.read_exact_at(&mut end, length - kept.min(length))?;
    file.set_len(0)?;
    // From the first whole line on.
    let begin = end.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    file.write_all(end.get(begin..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_log_that_is_written_on_is_bounded_and_keeps_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        bound_to(&log, 1000, 100).unwrap();
        assert!(!log.exists());
        // As QEMU opens it, with `logappend=on`.
        let mut guest = OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let mut longest = 0;
        for line in 0..1000 {
            guest.write_all(format!("line {line}\n").as_bytes()).unwrap();
            bound_to(&log, 1000, 100).unwrap();
            longest = longest.max(fs::metadata(&log).unwrap().len());
        }
        assert!(longest <= 1000, "{longest}");
        let text = fs::read_to_string(&log).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() > 5 && text.ends_with("line 998\nline 999\n"), "{text}");
        let first: usize = lines[0].strip_prefix("line ").unwrap().parse().unwrap();
        for (line, number) in lines.iter().zip(first..) {
            assert_eq!(*line, format!("line {number}"));
        }
    }

    #[test]
    fn one_endless_line_is_bounded_too() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        fs::write(&log, [b'x'; 2000]).unwrap();
        bound_to(&log, 1000, 100).unwrap();
        assert_eq!(fs::metadata(&log).unwrap().len(), 100);
    }
}
