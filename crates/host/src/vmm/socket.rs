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

/// How a connection of ours fares at a socket that takes one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It was let in, or gave up waiting.
    Served,
    /// It waits behind another.
    Behind,
    /// It waits, and nobody is let in.
    Ignored,
}

pub(super) async fn turn(root: &Root, path: &Path) -> Turn {
    let table = root.proc("self/net/unix");
    let path = path.as_os_str().as_encoded_bytes().to_vec();
    let look = move || turn_in(&bounded::read(&table, TABLE_MAX).unwrap_or_default(), &path);
    tokio::task::spawn_blocking(look).await.unwrap_or(Turn::Served)
}

/// `Num RefCount Protocol Flags Type St Inode Path`: of connections to a path, those that were
/// taken are in state 3, those that wait in state 2.
fn turn_in(table: &[u8], path: &[u8]) -> Turn {
    let (mut taken, mut waiting) = (false, false);
    for line in lines(table) {
        let mut fields = words(line);
        let state = fields.nth(5);
        if fields.nth(1) == Some(path) {
            taken |= state == Some(b"03");
            waiting |= state == Some(b"02");
        }
    }
    match (taken, waiting) {
        (_, false) => Turn::Served,
        (true, true) => Turn::Behind,
        (false, true) => Turn::Ignored,
    }
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
        for (states, turn) in [
            (&["01"][..], Turn::Served),
            (&["01", "02"], Turn::Ignored),
            (&["01", "03"], Turn::Served),
            (&["01", "03", "02"], Turn::Behind),
        ] {
            assert_eq!(turn_in(table(states).as_bytes(), b"/run/q"), turn, "{states:?}");
            assert_eq!(turn_in(table(states).as_bytes(), b"/run"), Turn::Served);
        }
        assert_eq!(turn_in(b"x\n\n0: 1 2 3 4", b""), Turn::Served);
    }

    proptest::proptest! {
        #[test]
        fn anything_goes_in(table: Vec<u8>, text in "(0: |[0-9]{1,8} |/run/q|\n){0,40}") {
            turn_in(&table, b"/run/q");
            turn_in(text.as_bytes(), b"/run/q");
        }
    }
}
