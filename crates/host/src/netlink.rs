//! Netlink: one question, and the messages of its answer. The network by rtnetlink, sockets by
//! `sock_diag`.
//!
//! # Invariants
//! - No slice of an answer is taken on trust: lengths that don't fit end the iteration.
//! - What is kept of an answer has at most [`ANSWER_MAX`] bytes; each part comes within [`DEADLINE`].

use rustix::fd::OwnedFd;
use rustix::io::retry_on_intr;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send,
    socket_with,
    sockopt::{Timeout, set_socket_timeout},
};
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

pub(crate) const NEW_LINK: u16 = 16;
pub(crate) const NEW_ADDRESS: u16 = 20;
pub(crate) const NEW_ROUTE: u16 = 24;

const DEADLINE: Duration = Duration::from_secs(5);
const ANSWER_MAX: usize = 64 * 1024 * 1024;
const HEADER: usize = 16;
const REQUEST_DUMP: u16 = 0x301;
/// Protocol 0.
const ROUTE: Option<Protocol> = None;

/// What to ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Dump {
    Links,
    Addresses,
    Routes,
}

/// All messages of the answer, one after the other.
pub(crate) fn dump(what: Dump) -> io::Result<Vec<u8>> {
    // The kernel marks a dump during which things changed. A third attempt is as good as it
    // gets on a machine that is never still.
    let mut answer = Vec::new();
    for _ in 0..3 {
        let interrupted;
        (answer, interrupted) = dump_once(what)?;
        if !interrupted {
            break;
        }
    }
    Ok(answer)
}

/// The message that says how the kernel would reach an address.
pub(crate) fn route(address: Ipv4Addr) -> io::Result<Vec<u8>> {
    let socket = open(ROUTE)?;
    send(&socket, &route_request(address), SendFlags::empty())?;
    let mut answer = vec![0; 8192];
    let (count, _) = recv(&socket, answer.as_mut_slice(), RecvFlags::empty())?;
    answer.truncate(count);
    scan(&answer)?;
    Ok(answer)
}

fn route_request(address: Ipv4Addr) -> Vec<u8> {
    const DESTINATION: u16 = 1;
    // A struct of 12 bytes: the family, the bits of the address that count, and nothing else.
    let mut body = vec![2, 32];
    body.resize(12, 0);
    body.extend_from_slice(&8_u16.to_ne_bytes());
    body.extend_from_slice(&DESTINATION.to_ne_bytes());
    body.extend_from_slice(&address.octets());
    message(26, 1, &body)
}

/// Calls `each` with the message of every TCP socket of a family that is in one of the states, as
/// bits by the kernel's numbers, until it says `false`.
///
/// The tables in `/proc` say the same, and take the kernel twenty times as long.
pub(crate) fn tcp_sockets(
    family: AddressFamily,
    states: u32,
    mut each: impl FnMut(&[u8]) -> bool,
) -> io::Result<()> {
    const BY_FAMILY: u16 = 20;
    const TCP: u8 = 6;
    let [family, _] = family.as_raw().to_le_bytes();
    // A struct of 56 bytes: these, and a socket's addresses, which are not asked for.
    let mut body = vec![family, TCP, 0, 0];
    body.extend_from_slice(&states.to_ne_bytes());
    body.resize(56, 0);
    ask(Some(netlink::SOCK_DIAG), &message(BY_FAMILY, REQUEST_DUMP, &body), |part| {
        messages(part).filter(|(kind, _)| *kind == BY_FAMILY).all(|(_, body)| each(body))
    })
    .map(drop)
}

fn open(protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(DEADLINE))?;
    Ok(socket)
}

fn dump_once(what: Dump) -> io::Result<(Vec<u8>, bool)> {
    let mut answer = Vec::new();
    let interrupted = ask(ROUTE, &request(what), |part| {
        answer.extend_from_slice(part);
        answer.len() <= ANSWER_MAX
    })?;
    if answer.len() > ANSWER_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((answer, interrupted))
}

/// Hands on the parts of an answer as they come, until `take` says `false`; whether things changed
/// meanwhile.
fn ask(
    protocol: Option<Protocol>,
    request: &[u8],
    mut take: impl FnMut(&[u8]) -> bool,
) -> io::Result<bool> {
    let socket = open(protocol)?;
    send(&socket, request, SendFlags::empty())?;
    let mut interrupted = false;
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let received = retry_on_intr(|| recv(&socket, chunk.as_mut_slice(), RecvFlags::empty()));
        let (count, _) = received?;
        let part = chunk.get(..count).unwrap_or_default();
        let seen = scan(part)?;
        interrupted |= seen.interrupted;
        if !take(part) || seen.done {
            return Ok(interrupted);
        }
        if count == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}

#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) done: bool,
    interrupted: bool,
}

/// Looks for the end of the answer, or the error in its place.
pub(crate) fn scan(part: &[u8]) -> io::Result<Scan> {
    const ERROR: u16 = 2;
    const DONE: u16 = 3;
    const INTERRUPTED: u16 = 0x10;
    let mut interrupted = false;
    let mut rest = part;
    while let Some((header, body, tail)) = split(rest) {
        interrupted |= header.flags & INTERRUPTED != 0;
        // A dump that fails may say so only at its end.
        let code = u32_at(body, 0).map_or(0, u32::cast_signed);
        match header.kind {
            DONE if code >= 0 => return Ok(Scan { done: true, interrupted }),
            DONE | ERROR => return Err(io::Error::from_raw_os_error(code.saturating_neg())),
            _ => rest = tail,
        }
    }
    Ok(Scan { done: false, interrupted })
}

fn request(what: Dump) -> Vec<u8> {
    // The body is a struct of its own size, all zero for "everything".
    let (kind, size): (u16, usize) = match what {
        Dump::Links => (18, 16),
        Dump::Addresses => (22, 8),
        Dump::Routes => (26, 12),
    };
    message(kind, REQUEST_DUMP, &vec![0; size])
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + body.len());
    let length = u32::try_from(HEADER + body.len()).unwrap_or(0);
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    message
}

struct Header {
    kind: u16,
    flags: u16,
}

/// The first message: its header, its body, and what comes after it.
fn split(bytes: &[u8]) -> Option<(Header, &[u8], &[u8])> {
    let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let header = Header { kind: u16_at(bytes, 4)?, flags: u16_at(bytes, 6)? };
    let body = bytes.get(HEADER..length)?;
    let tail = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((header, body, tail))
}

/// The messages of an answer, each with its type.
pub(crate) fn messages(answer: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = answer;
    std::iter::from_fn(move || {
        let (header, body, tail) = split(rest)?;
        rest = tail;
        Some((header.kind, body))
    })
}

/// The attributes of a message, by their codes.
pub(crate) struct Attributes<'m>(&'m [u8]);

impl<'m> Attributes<'m> {
    /// Those that follow a struct of `size` bytes.
    pub(crate) fn after(body: &'m [u8], size: usize) -> Self {
        Self(body.get(size..).unwrap_or_default())
    }

    pub(crate) fn get(&self, code: u16) -> Option<&'m [u8]> {
        let mut rest = self.0;
        while let (Some(length), Some(found)) = (u16_at(rest, 0), u16_at(rest, 2)) {
            let length = usize::from(length);
            let value = rest.get(4..length)?;
            // The two highest bits are flags.
            if found & 0x3fff == code {
                return Some(value);
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        None
    }
}

/// Of a route with several ways: the interface of each, and its attributes.
pub(crate) fn next_hops(value: &[u8]) -> impl Iterator<Item = (u32, Attributes<'_>)> {
    let mut rest = value;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let hop = rest.get(..length).filter(|hop| hop.len() >= 8)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u32_at(hop, 4)?, Attributes::after(hop, 8)))
    })
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let end = at.checked_add(2)?;
    Some(u16::from_ne_bytes(bytes.get(at..end)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let end = at.checked_add(4)?;
    Some(u32::from_ne_bytes(bytes.get(at..end)?.try_into().ok()?))
}

/// The bytes before the terminating zero.
pub(crate) fn c_string(bytes: &[u8]) -> &[u8] {
    bytes.split(|&b| b == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DONE: u16 = 3;

    #[test]
    fn how_an_answer_ends() {
        let check = |parts: &[(u16, i32)], expected: Result<bool, i32>| {
            let part: Vec<u8> = parts
                .iter()
                .flat_map(|(kind, code)| message(*kind, 2, &code.to_ne_bytes()))
                .collect();
            let seen = scan(&part).map(|scan| scan.done);
            assert_eq!(seen.map_err(|error| error.raw_os_error().unwrap_or(0)), expected);
        };
        check(&[(20, 7), (20, -7)], Ok(false));
        check(&[(20, 7), (DONE, 0)], Ok(true));
        // What can't be asked about, since a module of the kernel is missing.
        check(&[(DONE, -2)], Err(2));
        check(&[(20, 7), (DONE, -12)], Err(12));
        check(&[(2, -95)], Err(95));
        check(&[], Ok(false));
        assert!(scan(&message(DONE, 2, &[])).unwrap().done);
    }

    proptest! {
        #[test]
        fn anything_goes_in(bytes: Vec<u8>, kind in 0_u16..40, body: Vec<u8>) {
            for answer in [bytes.clone(), message(kind, 2, &body)] {
                drop(scan(&answer));
                for (_, body) in messages(&answer) {
                    let attributes = Attributes::after(body, 12);
                    attributes.get(1).into_iter().flat_map(next_hops).for_each(drop);
                }
            }
        }
    }
}
