//! The keys that let the server's machine into twins, and by which twins are known.
//!
//! ```text
//! access/
//!   login, login.pub     the one key that opens all twins; made once
//!   known_hosts/NAME     the host keys of a twin, under its name: pinned before it was ever seen
//! ```
//!
//! # Invariants
//! - Nobody but the owner of the directory reads it.
//! - A private host key is nowhere but in its twin's seed, and in the twin.

use super::error::Error;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use vm::image::seed::HostKey;
use vm::image::{MachineName, PublicKey};

const LOGIN: &str = "login";
const PUBLIC: &str = "pub";
const KNOWN_HOSTS: &str = "known_hosts";
/// What files and directories begin with that are being made.
const HALF: &str = ".partial-";

#[derive(Debug, Clone)]
pub(super) struct Access {
    directory: PathBuf,
    /// Held while the key that opens all twins is looked for or made: two first twins at once would
    /// each be given another.
    login: Arc<Mutex<()>>,
}

impl Access {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory, login: Arc::default() }
    }

    /// The file of the key that opens all twins.
    pub(super) fn login_file(&self) -> PathBuf {
        self.directory.join(LOGIN)
    }

    pub(super) fn known_hosts_file(&self, name: &MachineName) -> PathBuf {
        self.directory.join(KNOWN_HOSTS).join(name.as_str())
    }

    /// The public half of the key that opens all twins, which is made if need be. Blocks.
    pub(super) fn login(&self) -> Result<PublicKey, Error> {
        let _turn = self.login.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.login_file().with_extension(PUBLIC);
        match fs::read_to_string(&path) {
            Ok(text) => return public(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file("read", path)(error)),
        }
        let made = self.make("safetytwin")?;
        // The public half comes last: where it is, the private one is.
        for (name, text) in [(LOGIN, &made.private), ("login.pub", &made.public.to_string())] {
            self.write(&self.directory.join(name), text)?;
        }
        Ok(made.public)
    }

    /// A new key for a machine to show. Blocks.
    pub(super) fn host_key(&self, name: &MachineName) -> Result<HostKey, Error> {
        self.make(name.as_str())
    }

    /// Writes down which keys a machine may show. Blocks.
    pub(super) fn pin(&self, name: &MachineName, keys: &[PublicKey]) -> Result<(), Error> {
        self.prepare()?;
        let lines: String = keys.iter().map(|key| format!("{name} {key}\n")).collect();
        self.write(&self.known_hosts_file(name), &lines)
    }

    /// Blocks.
    pub(super) fn unpin(&self, name: &MachineName) -> Result<(), Error> {
        let path = self.known_hosts_file(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::file("remove", path)(error))
            }
            _ => Ok(()),
        }
    }

    /// Removes keys that a killed server was about to make. Nobody may make one meanwhile. Blocks.
    pub(super) fn sweep(&self) -> Result<(), Error> {
        let failed = || Error::file("look for half-made keys in", &self.directory);
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed()(error)),
        };
        for entry in entries {
            let entry = entry.map_err(failed())?;
            if !entry.file_name().to_string_lossy().starts_with(HALF) {
                continue;
            }
            let is_directory = entry.file_type().map_err(failed())?.is_dir();
            let path = entry.path();
            let removed =
                if is_directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(Error::file("remove", path))?;
        }
        Ok(())
    }

    fn prepare(&self) -> Result<(), Error> {
        let innermost = self.directory.join(KNOWN_HOSTS);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&innermost);
        made.map_err(Error::file("make the directory", innermost))
    }

    fn make(&self, comment: &str) -> Result<HostKey, Error> {
        self.prepare()?;
        let place = tempfile::Builder::new()
            .prefix(HALF)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(&self.directory)
            .map_err(Error::file("make a directory in", &self.directory))?;
        let path = place.path().join("key");
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"])
            .arg(&path)
            .stdin(Stdio::null())
            .output();
        match made {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                return Err(Error::Keygen { said });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::NoKeygen),
            Err(error) => return Err(Error::Keygen { said: error.to_string() }),
        }
        let read = |path: &Path| fs::read_to_string(path).map_err(Error::file("read", path));
        Ok(HostKey { private: read(&path)?, public: public(&read(&path.with_extension(PUBLIC))?)? })
    }

    /// Replaces a file whole.
    fn write(&self, path: &Path, text: &str) -> Result<(), Error> {
        let half = tempfile::Builder::new()
            .prefix(HALF)
            .make_in(&self.directory, |path| {
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
            })
            .map_err(Error::file("make a file in", &self.directory))?;
        let failed = || Error::file("write", path);
        let mut file = half.as_file();
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed())?;
        half.persist(path).map_err(|error| failed()(error.error))?;
        let directory = fs::File::open(path.parent().unwrap_or(path)).map_err(failed())?;
        directory.sync_all().map_err(failed())
    }
}

fn public(text: &str) -> Result<PublicKey, Error> {
    text.trim()
        .parse()
        .map_err(|error: vm::image::NameError| Error::Keygen { said: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twins_that_are_made_at_once_are_opened_by_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let access = Access::new(dir.path().join("access"));
        let keys: Vec<PublicKey> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| access.login().unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    }

    #[test]
    fn keys_are_made_once_and_are_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let access = Access::new(dir.path().join("access"));
        let login = access.login().unwrap();
        assert_eq!(access.login().unwrap(), login);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&access.login_file()), 0o600);
        assert_eq!(mode(&dir.path().join("access")), 0o700);
        let name = "web01".parse().unwrap();
        let key = access.host_key(&name).unwrap();
        assert!(key.private.starts_with("-----BEGIN "));
        assert_ne!(key.public, login);
        access.pin(&name, &[key.public.clone(), login]).unwrap();
        let known = fs::read_to_string(access.known_hosts_file(&name)).unwrap();
        assert!(known.starts_with(&format!("web01 {}\nweb01 ssh-ed25519 ", key.public)), "{known}");
        let left: Vec<_> = fs::read_dir(dir.path().join("access")).unwrap().collect();
        assert_eq!(left.len(), 3, "{left:?}");
        fs::create_dir(dir.path().join("access/.partial-a")).unwrap();
        fs::write(dir.path().join("access/.partial-a/key"), "").unwrap();
        fs::write(dir.path().join("access/.partial-b"), "").unwrap();
        access.sweep().unwrap();
        assert_eq!(fs::read_dir(dir.path().join("access")).unwrap().count(), 3);
        access.unpin(&name).unwrap();
        access.unpin(&name).unwrap();
        assert!(!access.known_hosts_file(&name).exists());
    }
}
