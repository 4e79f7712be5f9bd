//! Files of the kernel that are read again and again, and rates from counters.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

/// Bytes of one file that are looked at.
const FILE_MAX: usize = 1 << 20;

/// A file that stays open, and is read from its start each time.
#[derive(Debug)]
pub(super) struct KeptFile {
    path: PathBuf,
    file: Option<File>,
}

impl KeptFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, file: None }
    }

    /// Fills `buffer` with what the file says now; `None` when there is no such file.
    pub(super) fn read<'b>(&mut self, buffer: &'b mut Vec<u8>) -> Option<&'b [u8]> {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        match read_whole(self.file.as_ref()?, buffer) {
            Ok(()) => Some(buffer),
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "can't be read");
                self.file = None;
                None
            }
        }
    }
}

fn read_whole(file: &File, buffer: &mut Vec<u8>) -> io::Result<()> {
    const LEAST: usize = 4096;
    let mut length = 0;
    loop {
        if buffer.len() < length + LEAST {
            buffer.resize((2 * buffer.len()).max(2 * LEAST), 0);
        }
        let space = buffer.get_mut(length..).unwrap_or_default();
        match file.read_at(space, length as u64) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if length >= FILE_MAX {
            break;
        }
    }
    buffer.truncate(length);
    Ok(())
}

/// A count that only rises, until what it counts starts anew.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counter(Option<(Duration, u64)>);

impl Counter {
    /// By how much it rises per second; `None` at first, and when it started anew.
    pub(super) fn rate(&mut self, clock: Duration, value: Option<u64>) -> Option<f64> {
        let before = std::mem::replace(&mut self.0, value.map(|value| (clock, value)));
        let (then, was) = before?;
        let span = clock.checked_sub(then).filter(|span| !span.is_zero())?;
        Some(value?.checked_sub(was)? as f64 / span.as_secs_f64())
    }

    pub(super) fn last(&self) -> Option<u64> {
        self.0.map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        let mut counter = Counter::default();
        let mut at = |seconds, value| counter.rate(Duration::from_secs(seconds), value);
        assert_eq!(at(10, Some(100)), None);
        assert_eq!(at(12, Some(110)), Some(5.0));
        assert_eq!(at(12, Some(120)), None, "no time passed");
        assert_eq!(at(14, Some(3)), None, "started anew");
        assert_eq!(at(16, None), None);
        assert_eq!(at(18, Some(3)), None);
        assert_eq!(at(17, Some(4)), None, "a clock that goes back");
    }

    #[test]
    fn kept_files() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stat");
        let mut file = KeptFile::new(path.clone());
        let mut buffer = Vec::new();
        assert_eq!(file.read(&mut buffer), None);
        let long = vec![b'x'; 100_000];
        std::fs::write(&path, &long).unwrap();
        assert_eq!(file.read(&mut buffer), Some(long.as_slice()));
        std::fs::write(&path, "short").unwrap();
        assert_eq!(file.read(&mut buffer), Some(b"short".as_slice()));
    }
}
