//! A connection straight to systemd, over the socket that only root may use. There for hosts
//! without a bus, and for the managers of users, whose bus lets in nobody but them.
//!
//! systemd signs what it sends here with its well-known name, where the D-Bus specification
//! wants a unique one, and zbus refuses such messages. So the name is made to look unique on
//! its way in: `org.freedesktop.systemd1` becomes `:rg.freedesktop.systemd1`.
//!
//! # Invariants
//! - Nothing but the sender in a message's header is changed, and no length.
//! - Lengths that systemd claims are bounded before memory is taken for them.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use zbus::connection::Builder;
use zbus::connection::socket::{ReadHalf, Socket, Split, WriteHalf};
use zbus::export::async_trait::async_trait;

/// The fixed part of a message's header.
const FIXED: usize = 16;
/// Bytes of all header fields; systemd's have about a hundred.
const FIELDS_MAX: usize = 64 * 1024;
/// Bytes of the answer to our authentication.
const GREETING_MAX: usize = 256;

/// Authenticates, and hands the connection to zbus.
pub(super) async fn builder(mut stream: UnixStream) -> io::Result<Builder<'static>> {
    // The uid in decimal digits, and those in hexadecimal.
    let uid = rustix::process::geteuid().as_raw().to_string();
    let uid: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
    stream.write_all(format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n").as_bytes()).await?;
    let mut greeting = Vec::new();
    while !greeting.ends_with(b"\r\n") && greeting.len() < GREETING_MAX {
        greeting.push(stream.read_u8().await?);
    }
    let guid = std::str::from_utf8(&greeting).ok().and_then(|line| line.strip_prefix("OK "));
    let guid = guid.ok_or(io::ErrorKind::PermissionDenied)?.trim_end().to_owned();
    Ok(Builder::authenticated_socket(Private(stream), guid).p2p())
}

#[derive(Debug)]
struct Private(UnixStream);

impl Socket for Private {
    type ReadHalf = Reader;
    type WriteHalf = Writer;

    fn split(self) -> Split<Reader, Writer> {
        let (read, write) = self.0.into_split();
        let reader = Reader { socket: read, header: Vec::new(), given: 0, body: 0 };
        Split::new(reader, Writer(write))
    }
}

#[derive(Debug)]
struct Reader {
    socket: OwnedReadHalf,
    /// The header of the current message, and how much of it was handed on.
    header: Vec<u8>,
    given: usize,
    /// Bytes of the current message's body that are still to come.
    body: usize,
}

impl Reader {
    async fn read_header(&mut self) -> io::Result<()> {
        self.header.resize(FIXED, 0);
        self.given = 0;
        self.socket.read_exact(&mut self.header).await?;
        let (fields, body) = lengths(&self.header).ok_or(io::ErrorKind::InvalidData)?;
        self.header.resize(FIXED + fields, 0);
        self.socket.read_exact(self.header.get_mut(FIXED..).unwrap_or_default()).await?;
        make_sender_unique(&mut self.header);
        self.body = body;
        Ok(())
    }
}

/// Bytes of the fields with their padding, and of the body.
fn lengths(fixed: &[u8]) -> Option<(usize, usize)> {
    let word = |at: usize| {
        let bytes: [u8; 4] = fixed.get(at..at + 4)?.try_into().ok()?;
        let number = match fixed.first()? {
            b'l' => u32::from_le_bytes(bytes),
            b'B' => u32::from_be_bytes(bytes),
            _ => return None,
        };
        usize::try_from(number).ok()
    };
    let fields = word(12)?.checked_next_multiple_of(8)?;
    (fields <= FIELDS_MAX).then_some((fields, word(4)?))
}

fn make_sender_unique(header: &mut [u8]) {
    // Field 7 of type `s`; the length between is of either byte order.
    const FIELD: &[u8] = b"\x07\x01s\0";
    const NAME: &[u8] = b"org.freedesktop.systemd1\0";
    let start = header
        .windows(FIELD.len() + 4 + NAME.len())
        .position(|window| window.starts_with(FIELD) && window.ends_with(NAME));
    if let Some(first) = start.and_then(|start| header.get_mut(start + FIELD.len() + 4)) {
        *first = b':';
    }
}

#[async_trait]
impl ReadHalf for Reader {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        if self.given == self.header.len() && self.body > 0 {
            let most = self.body.min(buffer.len());
            let count = self.socket.read(buffer.get_mut(..most).unwrap_or_default()).await?;
            self.body -= count;
            return Ok((count, Vec::new()));
        }
        if self.given == self.header.len() {
            self.read_header().await?;
        }
        let left = self.header.get(self.given..).unwrap_or_default();
        let count = left.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), left.get(..count)) {
            to.copy_from_slice(from);
        }
        self.given += count;
        Ok((count, Vec::new()))
    }
}

#[derive(Debug)]
struct Writer(OwnedWriteHalf);

#[async_trait]
impl WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], _fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        self.0.write(buffer).await
    }

    async fn close(&mut self) -> io::Result<()> {
        self.0.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_the_sender_is_changed() {
        let mut header = b"l\x02\x01\x01\0\0\0\0\x01\0\0\0\x30\0\0\0\
            \x06\x01s\0\x18\0\0\0org.freedesktop.systemd1\0\
            \x07\x01s\0\x18\0\0\0org.freedesktop.systemd1\0"
            .to_vec();
        make_sender_unique(&mut header);
        let text = String::from_utf8_lossy(&header);
        assert_eq!(text.matches("org.freedesktop").count(), 1);
        assert!(text.ends_with(":rg.freedesktop.systemd1\0"));
        assert_eq!(lengths(&header), Some((48, 0)));
    }

    proptest! {
        #[test]
        fn anything_goes_in(mut bytes: Vec<u8>) {
            if let Some((fields, _)) = lengths(&bytes) {
                prop_assert!(fields <= FIELDS_MAX);
            }
            make_sender_unique(&mut bytes);
        }
    }
}
