//! Tells when a process starts another program or ends, by the kernel's process connector.
//!
//! The kernel may drop what we don't take in time: then [`Event::Lost`] comes, and whoever
//! listens must scan. Forks are left out: a fork that matters execs, or shows in the next
//! scan. Threads are left out too.
//!
//! Works only in the machine's first pid and user namespaces, since the kernel speaks of
//! processes by their numbers there; [`ExecEvents::open`] says so when it does not. Before
//! Linux 6.6 it also needs CAP_NET_ADMIN.

use crate::Root;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recvfrom, send,
    socket_with, sockopt,
};
use std::io;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The process runs another program now.
    Exec(u32),
    /// The process ended.
    Exit(u32),
    /// Events were dropped: what is known of any process may be old.
    Lost,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "the kernel has no process connector here (CONFIG_PROC_EVENTS, and the first network namespace)"
    )]
    Unsupported(#[source] io::Error),
    #[error("process events need root or CAP_NET_ADMIN on this kernel")]
    NotPermitted(#[source] io::Error),
    #[error(
        "process events reach only the machine's first pid and user namespaces, and this is \
         another; run outside of containers, or with --pid=host"
    )]
    Namespace,
    #[error("could not read process events")]
    Read(#[source] io::Error),
}

/// A subscription to the events.
#[derive(Debug)]
pub struct ExecEvents {
    socket: AsyncFd<OwnedFd>,
}

/// `CN_IDX_PROC` and `CN_VAL_PROC`, which name the process connector.
const CONNECTOR_ID: (u32, u32) = (1, 1);
const LISTEN: u32 = 1;
const EVENT_NONE: u32 = 0;
const EVENT_FORK: u32 = 1;
const EVENT_EXEC: u32 = 2;
const EVENT_EXIT: u32 = 0x8000_0000;
/// Where a message has the kind of event, and its process and thread group: after `nlmsghdr`
/// (16 bytes) and `cn_msg` (20), and within `proc_event` after what, cpu and time.
const WHAT_AT: u32 = 36;
const PID_AT: u32 = 52;
const TGID_AT: u32 = 56;
/// How long the kernel may take to confirm. It does so within the call that asks.
const CONFIRM_WITHIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// Kernel memory for events that wait; some 4,000 of them.
const RECEIVE_BUFFER_BYTES: usize = 1 << 20;
/// Events taken in one call of [`ExecEvents::read`].
const BATCH_MAX: usize = 1024;

impl ExecEvents {
    /// Subscribes. Must be called within a tokio runtime; waits 0.2 s at most.
    ///
    /// # Errors
    /// Says which of kernel, right or namespace is missing; the caller then scans instead.
    pub fn open(root: &Root) -> Result<Self, Error> {
        // Where /proc numbers processes otherwise than we are numbered, events mean nothing.
        let numbered = std::fs::read_link(root.proc("self")).ok();
        let own = std::process::id().to_string();
        if numbered.is_some_and(|pid| pid.as_os_str() != own.as_str()) {
            return Err(Error::Namespace);
        }
        let socket = subscribe()?;
        #[expect(unsafe_code, reason = "tokio can't check that a descriptor stays open")]
        // SAFETY: an `OwnedFd` is open for as long as it lives, and `AsyncFd` owns it alone.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
        socket.map(|socket| Self { socket }).map_err(|error| Error::Read(error.into()))
    }

    /// Waits for events and appends them, at least one. Nothing is lost when the wait is
    /// dropped.
    ///
    /// # Errors
    /// When the socket fails; open another.
    pub async fn read(&mut self, events: &mut Vec<Event>) -> Result<(), Error> {
        let before = events.len();
        while events.len() == before {
            let mut ready = self.socket.readable().await.map_err(Error::Read)?;
            match ready.try_io(|socket| take_waiting(socket.get_ref(), events)) {
                Ok(taken) => taken.map_err(Error::Read)?,
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

fn subscribe() -> Result<OwnedFd, Error> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(netlink::CONNECTOR),
    )
    .map_err(|errno| Error::Unsupported(errno.into()))?;
    // More than the limit for everyone needs CAP_NET_ADMIN, which we may have.
    if sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES).is_err()
        && let Err(error) = sockopt::set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER_BYTES)
    {
        tracing::debug!(%error, "process events have a small buffer");
    }
    let permitted = |errno: Errno| match errno {
        Errno::PERM | Errno::ACCESS => Error::NotPermitted(errno.into()),
        _ => Error::Unsupported(errno.into()),
    };
    bind(&socket, &SocketAddrNetlink::new(0, CONNECTOR_ID.0)).map_err(permitted)?;
    send(&socket, &request(&[LISTEN]), SendFlags::empty()).map_err(permitted)?;
    confirmed(&socket)?;
    if let Err(error) = drop_threads_and_forks(&socket) {
        // Then they are dropped here, at the price of waking up for each.
        tracing::debug!(%error, "process events are not filtered by the kernel");
    }
    // From Linux 6.6 on the kernel filters; an older one ignores a request of this length.
    send(&socket, &request(&[LISTEN, EVENT_EXEC | EVENT_EXIT]), SendFlags::empty())
        .map_err(permitted)?;
    Ok(socket)
}

/// Has the kernel drop the ends of threads, and forks, before they wake us: a busy machine
/// has thousands of them a second.
fn drop_threads_and_forks(socket: &OwnedFd) -> io::Result<()> {
    const LOAD: u16 = 0x20; // a word of the message, taken as big-endian
    const TO_INDEX: u16 = 0x07;
    const SAME_CONSTANT: u16 = 0x15;
    const SAME_INDEX: u16 = 0x1d;
    const RETURN: u16 = 0x06;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut steps = [
        step(LOAD, 0, 0, WHAT_AT),
        step(SAME_CONSTANT, 6, 0, EVENT_FORK.to_be()), // drop
        step(SAME_CONSTANT, 0, 4, EVENT_EXIT.to_be()), // others pass
        step(LOAD, 0, 0, PID_AT),
        step(TO_INDEX, 0, 0, 0),
        step(LOAD, 0, 0, TGID_AT),
        step(SAME_INDEX, 0, 1, 0),
        step(RETURN, 0, 0, u32::MAX), // pass
        step(RETURN, 0, 0, 0),        // drop
    ];
    let length = u16::try_from(steps.len()).expect("a filter has nine steps");
    let program = libc::sock_fprog { len: length, filter: steps.as_mut_ptr() };
    let size = libc::socklen_t::try_from(size_of_val(&program)).expect("a filter is small");
    #[expect(unsafe_code, reason = "no safe crate of ours attaches socket filters")]
    // SAFETY: the kernel copies `program`, `size` bytes, and its `length` steps during the
    // call; all of them live until its end, and the socket is open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A netlink message that carries a connector message that carries `words`.
fn request(words: &[u32]) -> Vec<u8> {
    let payload = u16::try_from(words.len() * 4).expect("a request has one or two words");
    let mut message = Vec::with_capacity(64);
    message.extend((36 + u32::from(payload)).to_ne_bytes()); // nlmsghdr: length
    message.extend(3_u16.to_ne_bytes()); // NLMSG_DONE
    message.extend([0; 10]); // flags, sequence, port
    message.extend(CONNECTOR_ID.0.to_ne_bytes()); // cn_msg
    message.extend(CONNECTOR_ID.1.to_ne_bytes());
    message.extend([0; 8]); // sequence, acknowledgement
    message.extend(payload.to_ne_bytes());
    message.extend([0; 2]);
    words.iter().for_each(|word| message.extend(word.to_ne_bytes()));
    message
}

/// Waits for the kernel's answer to a request. Outside of the first namespaces there is none.
fn confirmed(socket: &OwnedFd) -> Result<(), Error> {
    for _ in 0..BATCH_MAX {
        match receive(socket) {
            Ok(Some(Message::Answer(0))) => return Ok(()),
            Ok(Some(Message::Answer(code))) => {
                let source = io::Error::from_raw_os_error(i32::try_from(code).unwrap_or_default());
                return Err(Error::NotPermitted(source));
            }
            Ok(_) | Err(Errno::INTR | Errno::NOBUFS) => {}
            Err(Errno::AGAIN) => {
                let mut waiting = [PollFd::new(socket, PollFlags::IN)];
                match poll(&mut waiting, Some(&CONFIRM_WITHIN)) {
                    Ok(0) => return Err(Error::Namespace),
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(errno) => return Err(Error::Read(errno.into())),
                }
            }
            Err(errno) => return Err(Error::Read(errno.into())),
        }
    }
    Err(Error::Namespace)
}

/// Takes what is there, up to a batch. `WouldBlock` when that is nothing.
fn take_waiting(socket: &OwnedFd, events: &mut Vec<Event>) -> io::Result<()> {
    let before = events.len();
    for _ in 0..BATCH_MAX {
        match receive(socket) {
            Ok(Some(Message::Event(event))) => events.push(event),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::NOBUFS) => events.push(Event::Lost),
            Err(Errno::AGAIN) if events.len() > before => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// One datagram. `None` for what is not of interest, or not from the kernel.
fn receive(socket: &OwnedFd) -> Result<Option<Message>, Errno> {
    let mut buffer = [0; 1024];
    let (length, _, sender) = recvfrom(socket, &mut buffer, RecvFlags::empty())?;
    let kernel = sender
        .and_then(|sender| SocketAddrNetlink::try_from(sender).ok())
        .is_some_and(|sender| sender.pid() == 0);
    Ok(buffer.get(..length).filter(|_| kernel).and_then(Message::parse))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    /// To a request: 0, or an error's number.
    Answer(u32),
    Event(Event),
}

impl Message {
    pub(crate) fn parse(datagram: &[u8]) -> Option<Self> {
        let word = |offset: u32| -> Option<u32> {
            let offset = usize::try_from(offset).ok()?;
            let bytes = datagram.get(offset..offset + 4)?;
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        };
        if (word(16)?, word(20)?) != CONNECTOR_ID {
            return None;
        }
        let (what, pid) = (word(WHAT_AT)?, word(PID_AT)?);
        match what {
            EVENT_NONE => Some(Self::Answer(pid)),
            // A thread has a pid of its own and its process's tgid.
            EVENT_EXEC | EVENT_EXIT if word(TGID_AT)? != pid => None,
            EVENT_EXEC => Some(Self::Event(Event::Exec(pid))),
            EVENT_EXIT => Some(Self::Event(Event::Exit(pid))),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::Command;
    use std::time::Duration;

    fn datagram(what: u32, pid: u32, tgid: u32) -> Vec<u8> {
        let mut bytes = request(&[what, 0, 0, 0, pid, tgid]);
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn messages() {
        let check = |bytes: &[u8], expected| assert_eq!(Message::parse(bytes), expected);
        check(&datagram(EVENT_EXEC, 7, 7), Some(Message::Event(Event::Exec(7))));
        check(&datagram(EVENT_EXIT, 7, 7), Some(Message::Event(Event::Exit(7))));
        check(&datagram(EVENT_EXIT, 8, 7), None);
        check(&datagram(1, 7, 7), None);
        check(&datagram(EVENT_NONE, 22, 0), Some(Message::Answer(22)));
        check(&datagram(EVENT_EXEC, 7, 7)[..57], None);
        let mut other = datagram(EVENT_EXEC, 7, 7);
        other[16] = 9;
        check(&other, None);
    }

    #[tokio::test]
    async fn this_machine() {
        let mut events = match ExecEvents::open(&Root::live()) {
            Ok(events) => events,
            Err(error) => {
                assert!(!matches!(error, Error::Read(_)), "{error:?}");
                eprintln!("missing: {error}");
                return;
            }
        };
        let mut child = Command::new("/bin/true").spawn().unwrap();
        let pid = child.id();
        child.wait().unwrap();
        let both = async {
            let mut seen = Vec::new();
            while !(seen.contains(&Event::Exec(pid)) && seen.contains(&Event::Exit(pid))) {
                events.read(&mut seen).await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(10), both).await.unwrap();
    }

    #[test]
    fn threads_do_not_reach_us() {
        let Ok(socket) = subscribe() else { return };
        for _ in 0..200 {
            std::thread::spawn(|| ()).join().unwrap();
        }
        let mut child = Command::new("/bin/true").spawn().unwrap();
        child.wait().unwrap();
        let mut others = 0;
        loop {
            match receive(&socket) {
                Ok(Some(Message::Event(Event::Exit(pid)))) if pid == child.id() => break,
                Ok(Some(_)) => {}
                Ok(None) => others += 1,
                Err(errno) => assert!(matches!(errno, Errno::AGAIN | Errno::NOBUFS), "{errno}"),
            }
        }
        assert!(others < 100, "{others} messages that say nothing");
    }

    #[tokio::test]
    async fn what_is_lost_is_said() {
        let Ok(mut events) = ExecEvents::open(&Root::live()) else { return };
        sockopt::set_socket_recv_buffer_size(events.socket.get_ref(), 1).unwrap();
        for _ in 0..40 {
            Command::new("/bin/true").status().unwrap();
        }
        let mut seen = Vec::new();
        events.read(&mut seen).await.unwrap();
        assert!(seen.contains(&Event::Lost), "{seen:?}");
    }

    proptest! {
        #[test]
        fn anything_goes_in(bytes: Vec<u8>) {
            Message::parse(&bytes);
        }
    }
}
