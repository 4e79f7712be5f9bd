//! Files that are replaced as a whole.

use rustix::fs::{Gid, Mode, OFlags, Uid};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes of a file that is read to be changed.
const MAX: u64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
#[error("could not {doing} {}", .path.display())]
pub struct Error {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Error {
    pub(crate) fn of(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self { doing, path, source }
    }

    pub(crate) fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }
}

/// The file's content; `None` if there is none.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let whole = || -> io::Result<_> {
        let mut content = Vec::new();
        File::open(path)?.take(MAX + 1).read_to_end(&mut content)?;
        let small = content.len() as u64 <= MAX;
        if small { Ok(Some(content)) } else { Err(io::ErrorKind::FileTooLarge.into()) }
    };
    match whole() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map_err(Error::of("read", path)),
    }
}

/// Makes the file have this content. One that is new has these permission bits; one that is
/// there keeps its own and its owner.
pub(crate) fn ensure(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    if read(path)?.as_deref() == Some(content) {
        return Ok(());
    }
    replace(path, content, mode)
}

/// Replaces the file. Nothing is waited for to be on the disk: see `keep`.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let (mode, owner) = match fs::metadata(path) {
        Ok(old) => (old.mode() & 0o7777, Some((old.uid(), old.gid()))),
        Err(_new) => (mode, None),
    };
    put(path, content, mode, owner)
}

/// Puts a file with these permission bits in place; `owner` is a user's and a group's number.
pub(crate) fn put(
    path: &Path,
    content: &[u8],
    mode: u32,
    owner: Option<(u32, u32)>,
) -> Result<(), Error> {
    let half = beside(path);
    let make = || {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::open(&half, flags, Mode::empty())?;
        if let Some((user, group)) = owner {
            rustix::fs::fchown(&file, Some(Uid::from_raw(user)), Some(Gid::from_raw(group)))?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        File::from(file).write_all(content)?;
        fs::rename(&half, path)
    };
    remove(&half)?;
    let made = make().map_err(Error::of("write", path));
    if made.is_err() {
        remove(&half)?;
    }
    made
}

/// Makes the path a symbolic link to this target, in place of whatever file is there.
pub(crate) fn link(path: &Path, target: &str) -> Result<(), Error> {
    let half = beside(path);
    remove(&half)?;
    let made = std::os::unix::fs::symlink(target, &half).and_then(|()| fs::rename(&half, path));
    if made.is_err() {
        remove(&half)?;
    }
    made.map_err(Error::of("make the link", path))
}

/// Waits until all that was written below a root is on the disk.
pub(crate) fn keep(root: &Path) -> Result<(), Error> {
    let etc = root.join("etc");
    let directory = File::open(&etc).map_err(Error::of("open", &etc))?;
    rustix::fs::syncfs(&directory)
        .map_err(|errno| Error::of("write to the disk", &etc)(errno.into()))
}

/// Removes the file, if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(Error::of("remove", path)),
    }
}

/// Where the new one is made: in the same directory, hidden.
fn beside(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".safetytwin");
    path.with_file_name(name)
}

/// The names in a directory, in order; none if it is not there.
pub(crate) fn names(directory: &Path) -> Result<Vec<String>, Error> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(Error::of("list", directory))?,
    };
    let mut names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_keeps_its_mode_and_leaves_nothing_beside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("name");
        fs::write(beside(&path), "of one who was cut off").unwrap();
        ensure(&path, b"one", 0o640).unwrap();
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(), 0o640);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
        let before = fs::metadata(&path).unwrap().ino();
        ensure(&path, b"one", 0o640).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), before);
        ensure(&path, b"two", 0o640).unwrap();
        assert_eq!((mode(), fs::read(&path).unwrap().as_slice()), (0o604, b"two".as_slice()));
        assert_eq!(names(directory.path()).unwrap(), ["name"]);
    }

    #[test]
    fn what_cannot_be_replaced_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("name");
        fs::create_dir(&path).unwrap();
        assert!(replace(&path, b"x", 0o600).is_err());
        assert_eq!(names(directory.path()).unwrap(), ["name"]);
        fs::write(directory.path().join("large"), vec![0; 2 << 20]).unwrap();
        let error = read(&directory.path().join("large")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read(&directory.path().join("none")).unwrap(), None);
    }
}
