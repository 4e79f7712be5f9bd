//! What files hold, told by digests; and writing and locking so that a crash leaves the old or
//! the new, never half of it.

use crate::image::ImageId;
use crate::image::id_of;
use rustix::fs::{FlockOperation, SeekFrom, seek};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Digested at a time; a block of zeros is as good as none.
const BLOCK: usize = 64 << 10;
/// Copied at a time.
const COPIED: u64 = 16 << 20;

/// What a file was when it was finished.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    pub length_bytes: u64,
    /// Of its length and of its blocks that are not all zeros: BLAKE3, in hexadecimal.
    pub digest: ImageId,
}

impl FileRecord {
    /// Reads the file; `go_on` is asked every few megabytes.
    pub(crate) fn of(path: &Path, go_on: impl FnMut() -> io::Result<()>) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let length_bytes = file.metadata()?.len();
        Ok(Self { length_bytes, digest: digest(&mut file, length_bytes, go_on)? })
    }
}

/// Files whose contents were found as they should be. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verified(Arc<Mutex<HashMap<PathBuf, Stamp>>>);

/// What tells that a file is still the one that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Verified {
    /// Compares a file with its record; says in words what is wrong. It is read once in a
    /// process, and again when it was touched. `go_on` is asked as it is read; whoever says no
    /// takes the answer for none.
    pub(crate) fn check(
        &self,
        path: &Path,
        record: &FileRecord,
        go_on: impl FnMut() -> io::Result<()>,
    ) -> Result<(), String> {
        let name = path.file_name().unwrap_or_default().display();
        let found = fs::symlink_metadata(path)
            .map_err(|error| format!("its {name} can't be read: {error}"))?;
        if !found.is_file() || found.len() != record.length_bytes {
            let (is, was) = (found.len(), record.length_bytes);
            return Err(format!("its {name} has {is} bytes and had {was}"));
        }
        let stamp = Stamp::of(&found);
        let is_known = self.files().get(path) == Some(&stamp);
        if is_known {
            return Ok(());
        }
        let read = FileRecord::of(path, go_on)
            .map_err(|error| format!("its {name} can't be read: {error}"))?;
        if read != *record {
            return Err(format!("the content of its {name} has changed"));
        }
        self.files().insert(path.to_owned(), stamp);
        Ok(())
    }

    /// A file that was just digested need not be read again.
    pub(crate) fn know(&self, path: &Path) -> io::Result<()> {
        let stamp = Stamp::of(&fs::symlink_metadata(path)?);
        self.files().insert(path.to_owned(), stamp);
        Ok(())
    }

    fn files(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, Stamp>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The same for a file with holes as for its copy without. Holes are not read.
fn digest(
    file: &mut File,
    length: u64,
    mut go_on: impl FnMut() -> io::Result<()>,
) -> io::Result<ImageId> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&length.to_be_bytes());
    let mut buffer = vec![0; 64 * BLOCK];
    let block = BLOCK as u64;
    let mut at = 0;
    while at < length {
        at = match seek(&*file, SeekFrom::Data(at)) {
            Ok(data) => data / block * block,
            Err(rustix::io::Errno::NXIO) => break,
            // A file system that does not know holes.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => at,
            Err(error) => return Err(error.into()),
        };
        file.seek(io::SeekFrom::Start(at))?;
        let read = fill(file, &mut buffer)?;
        if read == 0 {
            break;
        }
        for part in buffer.get(..read).unwrap_or_default().chunks(BLOCK) {
            if part.iter().any(|byte| *byte != 0) {
                hasher.update(&at.to_be_bytes()).update(part);
            }
            at += part.len() as u64;
        }
        go_on()?;
    }
    Ok(id_of(&hasher.finalize()))
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

/// Copies a file into a new one of the same rights; `go_on` is asked every few megabytes.
pub(crate) fn copy(
    from: &Path,
    to: &Path,
    mut go_on: impl FnMut() -> io::Result<()>,
) -> io::Result<()> {
    let from = File::open(from)?;
    let mut to = File::create(to)?;
    to.set_permissions(from.metadata()?.permissions())?;
    while io::copy(&mut (&from).take(COPIED), &mut to)? > 0 {
        go_on()?;
    }
    Ok(())
}

/// The first words of the names of documents that are being written.
const NEW: &str = ".new-";

/// Writes a document: after a crash it is the old one or the new one. What a crash left of the
/// other one is removed by [`sweep_new`].
pub(crate) fn write_json(path: &Path, document: &impl Serialize, mode: u32) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = tempfile::Builder::new().prefix(NEW).tempfile_in(directory)?;
    serde_json::to_writer_pretty(&mut file, document)?;
    file.write_all(b"\n")?;
    file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_directory(directory)
}

/// Removes documents that were not written to their end. Nobody else may write there.
pub(crate) fn sweep_new(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(NEW.as_bytes()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Gives a directory that is done its name, which is free. A link may lie there.
pub(crate) fn name_directory(done: &Path, name: &Path) -> io::Result<()> {
    if fs::symlink_metadata(name).is_ok_and(|found| found.is_symlink()) {
        fs::remove_file(name)?;
    }
    fs::rename(done, name)?;
    name.parent().map_or(Ok(()), sync_directory)
}

/// Locks a directory for this process; `None` when another has it or it is gone.
pub(crate) fn hold(path: &Path) -> io::Result<Option<File>> {
    let directory = match File::open(path) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(directory)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Bytes on disk of the files in a directory, and in those below it.
pub(crate) fn used(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => used(&entry.path()),
        Ok(found) => found.blocks() * 512,
        Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_crash_left_of_a_document_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine.json");
        write_json(&path, &1, 0o600).unwrap();
        // As a process that was killed before it gave the new one its name.
        let half = tempfile::Builder::new().prefix(NEW).tempfile_in(dir.path()).unwrap();
        let half = half.into_temp_path().keep().unwrap();
        sweep_new(dir.path()).unwrap();
        assert!(!half.exists() && path.exists());
    }

    fn record(content: &[u8], hole: u64) -> FileRecord {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut file = File::create(&path).unwrap();
        file.seek(io::SeekFrom::Start(hole)).unwrap();
        file.write_all(content).unwrap();
        FileRecord::of(&path, || Ok(())).unwrap()
    }

    #[test]
    fn holes_are_zeros() {
        let whole = [vec![0; 300_000], vec![9; 5]].concat();
        assert_eq!(record(&whole, 0), record(&[9; 5], 300_000));
        assert_ne!(record(&[9; 5], 300_001).digest, record(&[9; 5], 300_000).digest);
        assert_ne!(record(b"", 0).digest, record(b"\0", 0).digest);
    }

    #[test]
    fn what_was_touched_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        fs::write(&path, b"one").unwrap();
        let record = FileRecord::of(&path, || Ok(())).unwrap();
        let verified = Verified::default();
        let stopped = verified.check(&path, &record, || Err(io::Error::other("cancelled")));
        assert!(stopped.unwrap_err().contains("cancelled"));
        verified.check(&path, &record, || Ok(())).unwrap();
        fs::write(&path, b"two").unwrap();
        assert!(verified.check(&path, &record, || Ok(())).unwrap_err().contains("has changed"));
        fs::write(&path, b"longer").unwrap();
        assert!(verified.check(&path, &record, || Ok(())).unwrap_err().contains("6 bytes"));
    }
}
