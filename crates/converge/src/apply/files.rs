//! Files, links, and the machine's name.

use super::{Contents, Error};
use crate::file;
use crate::identity::hostname;
use model::HostName;
use model::plan::PutFile;
use model::spec::{FilePath, LinkTarget, Source};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A path of the machine, as we reach it.
pub(super) fn below(root: &Path, path: &FilePath) -> PathBuf {
    root.join(path.as_str().trim_start_matches('/'))
}

pub(super) fn set_hostname(root: &Path, name: &HostName) -> Result<bool, Error> {
    hostname::set(root, name)?;
    Ok(true)
}

pub(super) fn put(root: &Path, wanted: &PutFile, contents: &Contents) -> Result<bool, Error> {
    let path = below(root, &wanted.path);
    let content = match &wanted.source {
        Source::Made(text) => text.clone().into_bytes(),
        Source::Stored(id) => contents(id).ok_or(Error::NoContent(*id))?,
    };
    let user = number(root, "etc/passwd", "user", wanted.owner.as_str())?;
    let group = number(root, "etc/group", "group", wanted.group.as_str())?;
    let mode = wanted.mode.bits();
    let is_so = || -> Result<bool, Error> {
        let there = look(&path)?.filter(fs::Metadata::is_file);
        let there = there.is_some_and(|there| {
            (there.mode() & 0o7777, there.uid(), there.gid()) == (mode, user, group)
        });
        Ok(there && file::read(&path)?.as_deref() == Some(content.as_slice()))
    };
    if is_so()? {
        return Ok(false);
    }
    make_directory(&path)?;
    file::put(&path, &content, mode, Some((user, group)))?;
    if is_so()? { Ok(true) } else { Err(Error::Unchanged(wanted.path.to_string())) }
}

pub(super) fn link(path: &Path, target: &LinkTarget) -> Result<bool, Error> {
    let is_so = || fs::read_link(path).is_ok_and(|there| there.as_os_str() == target.as_str());
    if is_so() {
        return Ok(false);
    }
    make_directory(path)?;
    file::link(path, target.as_str())?;
    if is_so() { Ok(true) } else { Err(Error::Unchanged(path.display().to_string())) }
}

pub(super) fn remove(path: &Path) -> Result<bool, Error> {
    if look(path)?.is_none() {
        return Ok(false);
    }
    file::remove(path)?;
    Ok(true)
}

fn make_directory(path: &Path) -> Result<(), Error> {
    let Some(directory) = path.parent() else { return Ok(()) };
    Ok(fs::create_dir_all(directory).map_err(file::Error::of("make", directory))?)
}

/// What lies there, without following a link.
fn look(path: &Path) -> Result<Option<fs::Metadata>, Error> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => Ok(Some(found.map_err(file::Error::of("look at", path))?)),
    }
}

/// The number of a user or a group, by the machine's own files; a number is its own.
fn number(root: &Path, list: &str, kind: &'static str, name: &str) -> Result<u32, Error> {
    let content = file::read(&root.join(list))?.unwrap_or_default();
    let text = String::from_utf8_lossy(&content);
    let found = text.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    found.ok_or_else(|| Error::Nobody { kind, name: name.to_owned() })
}
