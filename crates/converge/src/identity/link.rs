//! One change of a network link, by rtnetlink.

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
};
use std::io;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(5);
const UP: u32 = 1;

/// What to change of it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    Up,
    Down,
    Address([u8; 6]),
}

/// Changes the link with this number; the kernel has done it when this returns.
pub(super) fn change(link: u32, what: Change) -> io::Result<()> {
    // Protocol 0 is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(DEADLINE))?;
    send(&socket, &request(link, what), SendFlags::empty())?;
    let mut answer = [0; 512];
    let (read, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    outcome(answer.get(..read).unwrap_or_default())
}

/// `RTM_NEWLINK`, to be acknowledged.
fn request(link: u32, what: Change) -> Vec<u8> {
    let (flags, changed) = match what {
        Change::Up => (UP, UP),
        Change::Down => (0, UP),
        Change::Address(_) => (0, 0),
    };
    let length: u32 = if matches!(what, Change::Address(_)) { 44 } else { 32 };
    let mut message = Vec::with_capacity(44);
    message.extend(length.to_ne_bytes());
    message.extend(16_u16.to_ne_bytes()); // RTM_NEWLINK
    message.extend(5_u16.to_ne_bytes()); // NLM_F_REQUEST, NLM_F_ACK
    message.extend([0; 8]); // sequence, port
    message.extend([0; 4]); // family, type
    message.extend(link.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(changed.to_ne_bytes());
    if let Change::Address(octets) = what {
        message.extend(10_u16.to_ne_bytes());
        message.extend(1_u16.to_ne_bytes()); // IFLA_ADDRESS
        message.extend(octets);
        message.extend([0; 2]);
    }
    message
}

/// `NLMSG_ERROR`, which is also how the kernel says that all went well.
fn outcome(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(2), Some(0)) => Ok(()),
        (Some(2), Some(code)) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_length_they_say() {
        for what in [Change::Up, Change::Down, Change::Address([2, 0, 0, 0, 0, 1])] {
            let message = request(7, what);
            assert_eq!(
                u32::from_ne_bytes(message[..4].try_into().unwrap()) as usize,
                message.len()
            );
        }
    }

    #[test]
    fn a_link_that_is_not_there_is_an_error() {
        // Whether or not we may: there is no such link.
        let error = change(0x7fff_fff0, Change::Up).unwrap_err();
        assert!(error.raw_os_error().is_some(), "{error:?}");
        assert!(outcome(b"").is_err() && outcome(&[0; 64]).is_err());
    }
}
