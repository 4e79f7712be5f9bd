//! What makes this agent this one: its key for secrets, its name, its streams.

use crate::Error;
use crate::config::Config;
use model::HostId;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

pub(crate) struct Identity {
    /// The key of the redaction: stays on the host, and stays the same.
    pub(crate) key: [u8; 32],
}

impl Identity {
    /// Reads the key from the state directory, or makes both.
    pub(crate) fn open(dir: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Prepare { path: dir.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let path = dir.join("redaction.key");
        let mut key = [0; 32];
        match fs::File::open(&path) {
            Ok(mut file) => match file.read_exact(&mut key) {
                Ok(()) => return Ok(Self { key }),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(Error::Key { path });
                }
                Err(error) => return Err(failed(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let fresh = Self::passing()?;
        let half = dir.join("redaction.key.new");
        let write = || {
            let mut options = OpenOptions::new();
            let mut file =
                options.write(true).create(true).truncate(true).mode(0o600).open(&half)?;
            file.write_all(&fresh.key)?;
            file.sync_all()?;
            fs::rename(&half, &path)
        };
        write().map_err(failed)?;
        Ok(fresh)
    }

    /// One that is not kept.
    pub(crate) fn passing() -> Result<Self, Error> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(Error::Random)?;
        Ok(Self { key })
    }
}

/// The name this host goes by.
///
/// # Errors
/// When the machine's hostname can't be one.
pub fn host_name(config: &Config) -> Result<HostId, Error> {
    name_of(config.host.as_deref())
}

/// The name that a configuration gives, or the hostname.
pub(crate) fn name_of(host: Option<&str>) -> Result<HostId, Error> {
    if let Some(name) = host {
        return Ok(HostId::new(name)?);
    }
    let name = rustix::system::uname();
    let name = name.nodename().to_string_lossy().into_owned();
    Ok(HostId::new(&name)?)
}

/// A new name for a sequence space.
pub(crate) fn new_stream() -> String {
    let mut bytes = [0; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => format!("{:032x}", u128::from_le_bytes(bytes)),
        // The name must only differ from the last; the time does.
        Err(_) => format!("t{:x}-{:x}", crate::clock::now().0, std::process::id()),
    }
}
