//! Whether somebody on a network of this node has an address: asked for by ARP, which a guest
//! answers whatever its services and its filters do.
//!
//! # Invariants
//! - One question a second, within the limit, on the link that the node's routes name.

use super::{Answer, unable};
use host::Root;
use host::network::{Way, way_to};
use host::readiness;
use model::with_causes;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrAny, SocketFlags, SocketType, bind, recv,
    sendto, socket_with,
};
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// From one question to the next.
const EVERY: Duration = Duration::from_secs(1);
/// The numbers of `AF_PACKET` and `ETH_P_ARP`.
const PACKET: u16 = 17;
const ARP: u16 = 0x0806;
const LINK_BYTES: u32 = 20;
const _: () = assert!(size_of::<libc::sockaddr_ll>() == 20, "an address of a link has no gaps");
const ETHERNET: u16 = 1;
const IP: u16 = 0x0800;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

pub(super) async fn look(address: Ipv4Addr, limit: Duration) -> Answer {
    let way = tokio::task::spawn_blocking(move || way_to(&Root::live(), address)).await;
    let way = match way {
        Ok(Ok(way)) => way,
        Ok(Err(error)) => {
            return unable(format!("no way to {address} is known: {}", with_causes(&error)));
        }
        Err(error) => return unable(format!("the node's routes could not be read: {error}")),
    };
    let Some(hardware) = way.hardware.filter(|_| !way.is_far) else {
        return unable(format!("{address} is on no network of the node that has ARP"));
    };
    match tokio::time::timeout(limit, ask(address, &way, hardware)).await {
        Ok(Ok(())) => Answer::passed(),
        Ok(Err(error)) if Errno::from_io_error(&error) == Some(Errno::PERM) => {
            unable("twin-node may not ask by ARP: it needs CAP_NET_RAW".to_owned())
        }
        Ok(Err(error)) => unable(format!("{address} could not be asked for: {error}")),
        Err(_) => {
            let seconds = limit.as_secs();
            Answer::failed(format!("nobody says within {seconds} s to have {address}"))
        }
    }
}

async fn ask(address: Ipv4Addr, way: &Way, hardware: [u8; 6]) -> io::Result<()> {
    let all = link(way.interface, [0xff; 6]);
    let socket = readiness::register(Arc::new(open(way.interface)?))?;
    let question = message(REQUEST, (hardware, way.source), ([0; 6], address));
    loop {
        socket
            .async_io(tokio::io::Interest::WRITABLE, |socket| {
                Ok(sendto(socket, &question, SendFlags::empty(), &all)?)
            })
            .await?;
        if let Ok(told) = tokio::time::timeout(EVERY, hear(&socket, address)).await {
            return told;
        }
    }
}

/// Waits until somebody says to have the address.
async fn hear(socket: &AsyncFd<Arc<OwnedFd>>, address: Ipv4Addr) -> io::Result<()> {
    loop {
        let mut bytes = [0; 64];
        let count = socket
            .async_io(tokio::io::Interest::READABLE, |socket| {
                Ok(recv(socket, &mut bytes, RecvFlags::empty())?.0)
            })
            .await?;
        if is_of(bytes.get(..count).unwrap_or_default(), address) {
            return Ok(());
        }
    }
}

fn open(interface: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // The protocol's number is in the order of the network. Nothing comes before it is bound.
    let socket = socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, None)?;
    bind(&socket, &link(interface, [0; 6]))?;
    Ok(socket)
}

/// An address on a link, for ARP.
#[expect(unsafe_code, reason = "no safe crate of ours has addresses of links")]
fn link(interface: u32, hardware: [u8; 6]) -> SocketAddrAny {
    let [a, b, c, d, e, f] = hardware;
    let link = libc::sockaddr_ll {
        sll_family: PACKET,
        sll_protocol: ARP.to_be(),
        sll_ifindex: interface.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [a, b, c, d, e, f, 0, 0],
    };
    // SAFETY: it is a whole sockaddr_ll, without gaps, and as many bytes are copied out of it.
    unsafe { SocketAddrAny::read((&raw const link).cast(), LINK_BYTES) }
}

/// Who asks or says, and who is meant: each a hardware address and one of IP.
fn message(
    kind: u16,
    (hardware, address): ([u8; 6], Ipv4Addr),
    (of, wanted): ([u8; 6], Ipv4Addr),
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    bytes.extend_from_slice(&ETHERNET.to_be_bytes());
    bytes.extend_from_slice(&IP.to_be_bytes());
    bytes.extend_from_slice(&[6, 4]);
    bytes.extend_from_slice(&kind.to_be_bytes());
    for (hardware, address) in [(hardware, address), (of, wanted)] {
        bytes.extend_from_slice(&hardware);
        bytes.extend_from_slice(&address.octets());
    }
    bytes
}

/// Whether somebody says to have the address.
fn is_of(bytes: &[u8], address: Ipv4Addr) -> bool {
    let begin = message(REPLY, ([0; 6], address), ([0; 6], address));
    bytes.get(..8) == begin.get(..8) && bytes.get(14..18) == Some(&address.octets()[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_to_have_an_address() {
        let guest = Ipv4Addr::new(10, 0, 0, 5);
        let node = Ipv4Addr::new(10, 0, 0, 1);
        let (ours, theirs) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 5]);
        let asked = message(REQUEST, (ours, node), ([0; 6], guest));
        assert_eq!(asked.len(), 28);
        assert_eq!(asked[..8], [0, 1, 8, 0, 6, 4, 0, 1]);
        assert!(!is_of(&asked, guest), "that is the question");
        let told = message(REPLY, (theirs, guest), (ours, node));
        assert!(is_of(&told, guest) && !is_of(&told, node));
        let mut padded = told.clone();
        padded.resize(46, 0);
        assert!(is_of(&padded, guest));
        assert!(!is_of(&told[..17], guest) && !is_of(&[], guest));
    }
}
