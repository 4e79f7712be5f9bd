//! The keys by which an SSH server is recognised.
//!
//! ```text
//! new pairs in a directory apart ─► renamed over the old ones ─► the server reads them
//! ```

use super::{Error, file, is_live, program};
use model::HostName;
use rustix::time::{ClockId, clock_gettime};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

/// For one pair; RSA takes seconds where the processor is emulated.
const MAKE: Duration = Duration::from_secs(120);
const RELOAD: Duration = Duration::from_secs(60);

/// The kinds that are made, the quickest first.
const KINDS: [&str; 3] = ["ed25519", "ecdsa", "rsa"];
/// How the directories begin in which they are made.
const APART: &str = ".safetytwin-";
/// Whose unit it may be.
const UNITS: [&str; 2] = ["ssh.service", "sshd.service"];

/// Makes new keys of the kinds there are, and returns their public halves.
pub(super) async fn renew(root: &Path, name: &HostName) -> Result<Vec<String>, Error> {
    let directory = root.join("etc/ssh");
    let old: Vec<String> = file::names(&directory)?.into_iter().filter(|f| is_key(f)).collect();
    if old.is_empty() && !directory.join("sshd_config").exists() {
        return Ok(Vec::new());
    }
    let has = |kind: &str| old.iter().any(|file| *file == private(kind));
    let mut kinds: Vec<&str> = KINDS.into_iter().filter(|kind| has(kind)).collect();
    if kinds.is_empty() {
        kinds.push("ed25519");
    }
    clear(&directory)?;
    // Another name each time: a program that was cut off may still write to its own.
    let time = clock_gettime(ClockId::Monotonic);
    let apart = directory.join(format!("{APART}{}-{}", time.tv_sec, time.tv_nsec));
    let made = make(&apart, &kinds, name).await;
    let public = match made {
        Ok(()) => put(&apart, &directory, &kinds, &old),
        Err(error) => Err(error),
    };
    clear(&directory)?;
    let public = public?;
    if is_live(root) {
        reload(root).await?;
    }
    Ok(public)
}

async fn make(apart: &Path, kinds: &[&str], name: &HostName) -> Result<(), Error> {
    let made = fs::DirBuilder::new().mode(0o700).create(apart);
    made.map_err(file::Error::of("make", apart))?;
    let comment = format!("root@{name}");
    for kind in kinds {
        let path = apart.join(private(kind));
        let words = ["-q", "-t", kind, "-N", "", "-C", &comment, "-f"];
        let mut arguments: Vec<&OsStr> = words.map(OsStr::new).to_vec();
        arguments.push(path.as_os_str());
        program::run("ssh-keygen", &arguments, MAKE).await?;
    }
    Ok(())
}

/// Puts the new pairs in place of the old ones, and removes those of which there is no new one:
/// they are the other machine's.
fn put(from: &Path, to: &Path, kinds: &[&str], old: &[String]) -> Result<Vec<String>, Error> {
    let mut public = Vec::new();
    let mut put = Vec::new();
    for kind in kinds {
        let (key, half) = (private(kind), format!("{}.pub", private(kind)));
        let content = file::read(&from.join(&half))?.unwrap_or_default();
        if file::read(&to.join(&half))?.as_ref() == Some(&content) {
            return Err(Error::Unchanged(half));
        }
        public.push(String::from_utf8_lossy(&content).trim().to_owned());
        for name in [key, half] {
            let place = to.join(&name);
            fs::rename(from.join(&name), &place).map_err(file::Error::of("replace", &place))?;
            put.push(name);
        }
    }
    for name in old.iter().filter(|name| !put.contains(name)) {
        file::remove(&to.join(name))?;
    }
    Ok(public)
}

async fn reload(root: &Path) -> Result<(), Error> {
    let places = ["etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"];
    let is_there = |unit: &&&str| places.iter().any(|at| root.join(at).join(unit).exists());
    // A server that is started for each connection reads them then.
    let Some(unit) = UNITS.iter().find(is_there) else { return Ok(()) };
    let arguments = ["try-reload-or-restart", unit].map(OsStr::new);
    program::run("systemctl", &arguments, RELOAD).await?;
    Ok(())
}

fn private(kind: &str) -> String {
    format!("ssh_host_{kind}_key")
}

/// A key, its public half or its certificate.
fn is_key(file: &str) -> bool {
    let Some(rest) = file.strip_prefix("ssh_host_") else { return false };
    ["_key", "_key.pub", "_key-cert.pub"].iter().any(|end| rest.ends_with(end))
}

/// Removes what was begun.
fn clear(directory: &Path) -> Result<(), Error> {
    for name in file::names(directory)?.iter().filter(|name| name.starts_with(APART)) {
        let path = directory.join(name);
        fs::remove_dir_all(&path).map_err(file::Error::of("remove", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    async fn check(before: &[&str], after: &[&str]) {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("etc/ssh");
        for name in before {
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(name), "old").unwrap();
        }
        let public = renew(root.path(), &"web01".parse().unwrap()).await.unwrap();
        assert_eq!(file::names(&directory).unwrap(), after);
        let halves = after.iter().filter(|name| name.ends_with(".pub"));
        let mut seen: Vec<String> = halves
            .map(|name| fs::read_to_string(directory.join(name)).unwrap().trim().to_owned())
            .collect();
        seen.sort();
        let mut told = public.clone();
        told.sort();
        assert_eq!(told, seen);
        for name in after.iter().filter(|name| name.ends_with("_key")) {
            let found = fs::metadata(directory.join(name)).unwrap();
            assert_eq!(found.permissions().mode() & 0o777, 0o600);
            assert_ne!(fs::read(directory.join(name)).unwrap(), b"old");
        }
        assert!(public.iter().all(|key| key.starts_with("ssh-") || key.starts_with("ecdsa-")));
        assert!(public.iter().all(|key| key.ends_with(" root@web01")));
    }

    #[tokio::test]
    async fn keys() {
        check(&[], &[]).await;
        check(&["ssh_config"], &["ssh_config"]).await;
        let first = ["ssh_host_ed25519_key", "ssh_host_ed25519_key.pub", "sshd_config"];
        check(&["sshd_config"], &first).await;
        check(
            &[
                "ssh_host_dsa_key",
                "ssh_host_ecdsa_key",
                "ssh_host_ecdsa_key-cert.pub",
                "ssh_host_ed25519_key",
                "ssh_host_ed25519_key.pub",
                "ssh_host_key.txt",
            ],
            &[
                "ssh_host_ecdsa_key",
                "ssh_host_ecdsa_key.pub",
                "ssh_host_ed25519_key",
                "ssh_host_ed25519_key.pub",
                "ssh_host_key.txt",
            ],
        )
        .await;
    }
}
