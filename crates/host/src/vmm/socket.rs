//! Connecting to a socket as a VMM sees it: below its root, or the directory it runs in.

use super::{Error, Monitor};
use crate::Root;
use crate::bounded;
use crate::text::{lines, words};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::io;
use std::path::Path;
use tokio::net::UnixStream;

/// Bytes of the kernel's table of sockets.
const TABLE_MAX: u64 = 8 << 20;

/// A connection, if a process of the VM's unit listens there.
pub(super) async fn connect(
    root: &Root,
    monitor: &Monitor,
    path: &Path,
) -> Result<UnixStream, Error> {
    let failed = |source| Error::Connect { path: path.to_owned(), source };
    let (base, place) = (root.proc(monitor.pid.to_string()), path.to_owned());
    let file = tokio::task::spawn_blocking(move || open(&base, &place)).await;
    let file = file.map_err(|ended| failed(io::Error::other(ended)))?;
    let file = file.map_err(|error| failed(error.into()))?;
    // By its descriptor: nobody puts another in its place meanwhile, and no path is too long.
    let place = format!("/proc/self/fd/{}", file.as_raw_fd());
    let stream = UnixStream::connect(place).await;
    let stream = match stream {
        // More wait already than it takes: nobody is let in any more.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::future::pending().await,
        stream => stream.map_err(failed)?,
    };
    let peer = stream.peer_cred().map_err(failed)?.pid();
    match peer.and_then(|pid| u32::try_from(pid).ok()) {
        Some(pid) if monitor.unit.contains(&pid) => Ok(stream),
        _ => Err(Error::Foreign { path: path.to_owned() }),
    }
}

/// As a process sees a path, which is given by its directory below `/proc`; but a link that is
/// absolute leads on from our own root. Blocks.
fn open(process: &Path, path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let base = if path.is_absolute() { "root" } else { "cwd" };
    let base = openat(CWD, process.join(base), flags | OFlags::DIRECTORY, Mode::empty())?;
    openat(base, path.strip_prefix("/").unwrap_or(path), flags, Mode::empty())
}

/// Whether a socket that takes one connection at a time has one, and we wait behind it.
pub(super) async fn is_taken(root: &Root, path: &Path) -> bool {
    let table = root.proc("self/net/unix");
    let path = path.as_os_str().as_encoded_bytes().to_vec();
    let look = move || bounded::read(&table, TABLE_MAX).is_ok_and(|table| is_busy(&table, &path));
    tokio::task::spawn_blocking(look).await.unwrap_or(false)
}

/// `Num RefCount Protocol Flags Type St Inode Path`: of connections to a path, those that were
/// taken are in state 3, those that wait in state 2.
fn is_busy(table: &[u8], path: &[u8]) -> bool {
    let (mut taken, mut waiting) = (false, false);
    for line in lines(table) {
        let mut fields = words(line);
        let state = fields.nth(5);
        if fields.nth(1) == Some(path) {
            taken |= state == Some(b"03");
            waiting |= state == Some(b"02");
        }
    }
    taken && waiting
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_behind_another() {
        let table = |states: &[&str]| {
            let row =
                |state: &&str| format!("0: 00000002 00000000 00000000 0001 {state} 7 /run/q\n");
            states.iter().map(row).collect::<String>()
        };
        for (states, busy) in [
            (&["01"][..], false),
            (&["01", "02"], false),
            (&["01", "03"], false),
            (&["01", "03", "02"], true),
        ] {
            assert_eq!(is_busy(table(states).as_bytes(), b"/run/q"), busy, "{states:?}");
            assert!(!is_busy(table(states).as_bytes(), b"/run"));
        }
        assert!(!is_busy(b"x\n\n0: 1 2 3 4", b""));
    }

    proptest::proptest! {
        #[test]
        fn anything_goes_in(table: Vec<u8>, text in "(0: |[0-9]{1,8} |/run/q|\n){0,40}") {
            is_busy(&table, b"/run/q");
            is_busy(text.as_bytes(), b"/run/q");
        }
    }
}
