//! Connecting to a socket as a VMM sees it: below its root, or the directory it runs in.

use super::{Error, Monitor};
use crate::Root;
use crate::bounded;
use crate::text::{lines, words};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, openat};
use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::Instant;

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

/// Who waits where, at a moment.
type Queues = HashMap<Box<[u8]>, Turn>;

#[derive(Debug)]
struct Look {
    at: Instant,
    queues: Queues,
}

/// Looks at who waits where. The kernel's table tells of all sockets at once and costs as much as
/// there are, so VMMs that are silent at the same time share one look.
#[derive(Debug, Clone, Default)]
pub(super) struct Looks(Arc<Mutex<Option<Look>>>);

impl Looks {
    /// How connections of ours to a path fare, or fared at some moment since.
    pub(super) async fn turn(&self, root: &Root, path: &Path, since: Instant) -> Turn {
        let mut last = self.0.lock().await;
        if last.as_ref().is_none_or(|look| look.at < since) {
            let (at, table) = (Instant::now(), root.proc("self/net/unix"));
            let look = move || queues(&bounded::read(&table, TABLE_MAX).unwrap_or_default());
            let queues = tokio::task::spawn_blocking(look).await.unwrap_or_default();
            *last = Some(Look { at, queues });
        }
        let path = path.as_os_str().as_encoded_bytes();
        last.as_ref().and_then(|look| look.queues.get(path)).copied().unwrap_or(Turn::Served)
    }
}

/// `Num RefCount Protocol Flags Type St Inode Path`: of connections to a path, those that were
/// taken are in state 3, those that wait in state 2. Only paths at which somebody waits.
fn queues(table: &[u8]) -> Queues {
    let rows = |state: &'static [u8]| {
        lines(table).filter_map(move |line| {
            let mut fields = words(line);
            (fields.nth(5)? == state).then(|| fields.nth(1)).flatten()
        })
    };
    let mut queues: Queues = rows(b"02").map(|path| (path.into(), Turn::Ignored)).collect();
    if !queues.is_empty() {
        for path in rows(b"03") {
            if let Some(turn) = queues.get_mut(path) {
                *turn = Turn::Behind;
            }
        }
    }
    queues
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
            let queues = queues(table(states).as_bytes());
            let expected = (turn != Turn::Served).then_some(&turn);
            assert_eq!(queues.get(&b"/run/q"[..]), expected, "{states:?}");
            assert_eq!(queues.len(), expected.iter().len(), "{states:?}");
        }
        assert_eq!(queues(b"x\n\n0: 1 2 3 4"), Queues::new());
    }

    #[tokio::test]
    async fn a_look_is_shared_until_it_is_too_old() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        std::fs::create_dir_all(root.proc("self/net")).unwrap();
        let write = |path: &str| {
            let table = format!("0: 00000002 00000000 00000000 0001 02 7 {path}\n");
            std::fs::write(root.proc("self/net/unix"), table).unwrap();
        };
        let looks = Looks::default();
        let (a, b) = (Path::new("/run/a"), Path::new("/run/b"));
        write("/run/a");
        let since = Instant::now();
        assert_eq!(looks.turn(&root, a, since).await, Turn::Ignored);
        write("/run/b");
        assert_eq!(looks.clone().turn(&root, b, since).await, Turn::Served, "not read again");
        assert_eq!(looks.turn(&root, b, Instant::now()).await, Turn::Ignored);
        assert_eq!(looks.turn(&root, a, since).await, Turn::Served);
    }

    proptest::proptest! {
        #[test]
        fn anything_goes_in(table: Vec<u8>, text in "(0: |[0-9]{1,8} |/run/q|\n){0,40}") {
            queues(&table);
            queues(text.as_bytes());
        }
    }
}
