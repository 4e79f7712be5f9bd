//! Whether an address answers echo requests of this node: by the kernel's socket for that, where
//! the node's `ping_group_range` allows it, or else by a raw one.
//!
//! # Invariants
//! - One request a second, within the limit. An answer counts only with what was sent.

use super::{Answer, unable};
use host::readiness;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, connect, ipproto, recv,
    send, socket_with,
};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// From one request to the next.
const EVERY: Duration = Duration::from_secs(1);
/// Bytes of an answer that are read.
const ANSWER: usize = 256;

/// `token` is what makes an answer one to us.
pub(super) async fn look(address: IpAddr, token: u64, limit: Duration) -> Answer {
    match tokio::time::timeout(limit, echo(address, token)).await {
        Ok(Ok(())) => Answer::passed(),
        Ok(Err(error)) => match Errno::from_io_error(&error) {
            Some(Errno::PERM | Errno::ACCESS) => unable(
                "twin-node may not send echo requests: it needs CAP_NET_RAW, or a group of \
                 net.ipv4.ping_group_range"
                    .to_owned(),
            ),
            Some(Errno::NETUNREACH) => unable(format!("the node has no route to {address}")),
            Some(Errno::HOSTUNREACH) => Answer::failed(format!("nobody has {address} there")),
            _ => unable(format!("echo requests to {address} could not be sent: {error}")),
        },
        Err(_) => {
            let seconds = limit.as_secs();
            Answer::failed(format!("{address} answers no echo request within {seconds} s"))
        }
    }
}

async fn echo(address: IpAddr, token: u64) -> io::Result<()> {
    let socket = readiness::register(Arc::new(open(address)?))?;
    let mut sequence = 0_u16;
    loop {
        sequence = sequence.wrapping_add(1);
        let request = request(address, sequence, token);
        socket
            .async_io(tokio::io::Interest::WRITABLE, |socket| {
                Ok(send(socket, &request, SendFlags::empty())?)
            })
            .await?;
        if let Ok(answered) = tokio::time::timeout(EVERY, answer(&socket, address, token)).await {
            return answered;
        }
    }
}

/// Waits for an answer to us.
async fn answer(socket: &AsyncFd<Arc<OwnedFd>>, address: IpAddr, token: u64) -> io::Result<()> {
    loop {
        let mut bytes = [0; ANSWER];
        let count = socket
            .async_io(tokio::io::Interest::READABLE, |socket| {
                Ok(recv(socket, &mut bytes, RecvFlags::empty())?.0)
            })
            .await?;
        if is_answer(address, bytes.get(..count).unwrap_or_default(), token) {
            return Ok(());
        }
    }
}

fn open(address: IpAddr) -> io::Result<OwnedFd> {
    let (family, protocol) = match address {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
    };
    let of = |kind: SocketType, protocol: Protocol| {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, kind, flags, Some(protocol))?;
        connect(&socket, &SocketAddr::new(address, 0))?;
        Ok::<_, Errno>(socket)
    };
    match of(SocketType::DGRAM, protocol) {
        Err(Errno::ACCESS | Errno::PERM | Errno::PROTONOSUPPORT) => {
            Ok(of(SocketType::RAW, protocol)?)
        }
        socket => Ok(socket?),
    }
}

/// An echo request. The kernel puts in the identifier, or leaves it.
fn request(address: IpAddr, sequence: u16, token: u64) -> Vec<u8> {
    let kind = if address.is_ipv4() { 8 } else { 128 };
    let mut bytes = vec![kind, 0, 0, 0, 0, 0];
    bytes.extend_from_slice(&sequence.to_be_bytes());
    bytes.extend_from_slice(&token.to_be_bytes());
    // Of version 6 the kernel makes it.
    if let (IpAddr::V4(_), [high, low]) = (address, checksum(&bytes).to_be_bytes())
        && let Some(place) = bytes.get_mut(2..4)
    {
        place.copy_from_slice(&[high, low]);
    }
    bytes
}

/// Whether it is an echo reply with the token, behind a header of IP where a raw socket of
/// version 4 gives that, too.
fn is_answer(address: IpAddr, bytes: &[u8], token: u64) -> bool {
    let header = match (address, bytes.first()) {
        (IpAddr::V4(_), Some(first)) if first >> 4 == 4 => usize::from(first & 15) * 4,
        _ => 0,
    };
    let reply = if address.is_ipv4() { 0 } else { 129 };
    let message = bytes.get(header..).unwrap_or_default();
    message.first() == Some(&reply) && message.get(8..) == Some(&token.to_be_bytes()[..])
}

/// Of the internet protocols: the complement of the sum of all pairs of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let pair = |pair: &[u8]| match pair {
        [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
        [high] => u32::from(*high) << 8,
        _ => 0,
    };
    let mut sum: u32 = bytes.chunks(2).map(pair).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::node::Outcome;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    #[test]
    fn requests_and_answers() {
        let sent = request(V4, 1, 7);
        assert_eq!(sent, [8, 0, 0xf7, 0xf7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7]);
        assert_eq!(checksum(&sent), 0, "a sum over its own complement");
        assert_eq!(request(V6, 1, 7).get(..4), Some(&[128, 0, 0, 0][..]));
        let mut reply = sent.clone();
        reply[0] = 0;
        assert!(is_answer(V4, &reply, 7));
        assert!(!is_answer(V4, &reply, 8), "of another");
        assert!(!is_answer(V4, &sent, 7), "a request");
        let mut whole = vec![0x45; 20];
        whole.extend_from_slice(&reply);
        assert!(is_answer(V4, &whole, 7));
        for cut in [&whole[..20], &[0x4f], &[]] {
            assert!(!is_answer(V4, cut, 7));
        }
        reply[0] = 129;
        assert!(is_answer(V6, &reply, 7) && !is_answer(V4, &reply, 7));
    }

    proptest::proptest! {
        #[test]
        fn anything_comes_back(bytes: Vec<u8>, token: u64) {
            is_answer(V4, &bytes, token);
            is_answer(V6, &bytes, token);
        }
    }

    #[tokio::test]
    async fn this_machine_answers_itself_where_it_may_be_asked() {
        let answer = look(V4, 7, Duration::from_secs(5)).await;
        match answer.outcome {
            Outcome::Passed => {}
            _ => assert!(answer.said.is_some_and(|said| said.contains("CAP_NET_RAW"))),
        }
    }
}
