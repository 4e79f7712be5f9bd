//! Reads `/proc/net/{tcp,tcp6,udp,udp6,unix}` line by line, and the kernel's messages that say the
//! same of TCP. Pure, but for [`each_line`].
//!
//! A path of a unix socket is whatever its owner chose, newlines included; what then looks
//! like further lines is only taken when it has the form of one.

use crate::netlink::u32_at;
use crate::text::{decimal, printable, words};
use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

/// A socket of the internet families.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) state: u8,
    pub(super) uid: u32,
    /// 0 for what no process holds any more.
    pub(super) inode: u64,
}

/// TCP states as the kernel numbers them; UDP uses two of them.
pub(super) const ESTABLISHED: u8 = 1;
pub(super) const CLOSED: u8 = 7;
pub(super) const LISTENING: u8 = 10;

impl Row {
    /// `None` for the heading, and for what is not a whole line.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = words(line).skip(1);
        let local = address(fields.next()?)?;
        let remote = address(fields.next()?)?;
        let state = u8::try_from(hexadecimal(fields.next()?)?).ok()?;
        let uid = u32::try_from(decimal(fields.nth(3)?)?).ok()?;
        let inode = decimal(fields.nth(1)?)?;
        Some(Self { local, remote, state, uid, inode })
    }

    /// Of the struct `inet_diag_msg`.
    pub(crate) fn of_message(body: &[u8]) -> Option<Self> {
        let is_ipv6 = match *body.first()? {
            2 => false,
            10 => true,
            _ => return None,
        };
        let port = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
        let ip = |at: usize| -> Option<IpAddr> {
            let bytes: [u8; 16] = body.get(at..at + 16)?.try_into().ok()?;
            let [a, b, c, d, ..] = bytes;
            Some(if is_ipv6 {
                Ipv6Addr::from(bytes).into()
            } else {
                Ipv4Addr::new(a, b, c, d).into()
            })
        };
        Some(Self {
            local: SocketAddr::new(ip(8)?, port(4)?),
            remote: SocketAddr::new(ip(24)?, port(6)?),
            state: *body.get(1)?,
            uid: u32_at(body, 64)?,
            inode: u32_at(body, 68)?.into(),
        })
    }
}

/// `0100007F:1F90`: each four bytes of the address as a number of this machine's byte order.
fn address(text: &[u8]) -> Option<SocketAddr> {
    let colon = text.iter().position(|&b| b == b':')?;
    let port = u16::try_from(hexadecimal(text.get(colon + 1..)?)?).ok()?;
    let digits = text.get(..colon)?;
    let mut bytes = [0; 16];
    for (word, space) in digits.chunks(8).zip(bytes.chunks_mut(4)) {
        let word = u32::try_from(hexadecimal(word)?).ok()?;
        space.copy_from_slice(&word.to_ne_bytes());
    }
    let ip = match (digits.len(), bytes) {
        (8, [a, b, c, d, ..]) => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        (32, bytes) => IpAddr::V6(Ipv6Addr::from(bytes)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// A listening unix socket that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnixRow {
    /// Made printable; an abstract name begins with `@`.
    pub(super) path: String,
    pub(super) inode: u64,
}

impl UnixRow {
    /// `Num RefCount Protocol Flags Type St Inode Path`; `None` unless listening and named.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        const ACCEPTS_CONNECTIONS: u64 = 0x0001_0000;
        let mut rest = line;
        let mut field = || {
            rest = rest.trim_ascii_start();
            let end = rest.iter().position(|&b| b == b' ')?;
            let (field, tail) = rest.split_at_checked(end)?;
            rest = tail;
            Some(field)
        };
        field()?.strip_suffix(b":")?;
        field()?;
        field()?;
        let flags = hexadecimal(field()?)?;
        field()?;
        field()?;
        let inode = decimal(field()?)?;
        let path = rest.strip_prefix(b" ")?;
        let listening = flags & ACCEPTS_CONNECTIONS != 0;
        // The kernel's own choice of a name (`@` and five digits) says nothing.
        let chosen = path.len() > 1
            && !(path.len() == 6
                && path.first() == Some(&b'@')
                && path.iter().skip(1).all(u8::is_ascii_hexdigit));
        (listening && chosen).then(|| Self { path: printable(path), inode })
    }
}

/// Calls `each` with every line of a file of any length, in bounded memory.
pub(crate) fn each_line(
    path: &Path,
    buffer: &mut Vec<u8>,
    mut each: impl FnMut(&[u8]) -> bool,
) -> io::Result<()> {
    const CHUNK: usize = 32 * 1024;
    let mut file = File::open(path)?;
    buffer.clear();
    loop {
        let kept = buffer.len();
        // A line that fills the buffer is none of the kernel's.
        let kept = if kept >= CHUNK { 0 } else { kept };
        buffer.resize(kept + CHUNK, 0);
        let count = match file.read(buffer.get_mut(kept..).unwrap_or_default()) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                buffer.truncate(kept);
                continue;
            }
            Err(error) => return Err(error),
        };
        buffer.truncate(kept + count);
        let whole = match buffer.iter().rposition(|&b| b == b'\n') {
            Some(end) if count > 0 => end + 1,
            _ if count == 0 => buffer.len(),
            _ => continue,
        };
        for line in crate::text::lines(buffer.get(..whole).unwrap_or_default()) {
            if !each(line) {
                return Ok(());
            }
        }
        if count == 0 {
            return Ok(());
        }
        buffer.drain(..whole);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn internet_sockets() {
        let check = |line: &str, expected: &str| {
            let row = Row::parse(line.as_bytes()).unwrap();
            let text =
                format!("{} {} {} {} {}", row.local, row.remote, row.state, row.uid, row.inode);
            assert_eq!(text, expected);
        };
        let tail = "00000000:00000000 00:00000000 00000000";
        check(
            &format!("   0: 0100007F:18EB 00000000:0000 0A {tail}   113        0 555 1 0 100"),
            "127.0.0.1:6379 0.0.0.0:0 10 113 555",
        );
        check(
            &format!(
                "  1: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 {tail} 0 0 9"
            ),
            "[::1]:53 [::]:0 7 0 9",
        );
        check(
            &format!(
                "  2: 0000000000000000FFFF00000100007F:0050 0000000000000000FFFF00000100007F:9C40 01 {tail} 33 0 77 1"
            ),
            "[::ffff:127.0.0.1]:80 [::ffff:127.0.0.1]:40000 1 33 77",
        );
    }

    #[test]
    fn lines_that_are_none() {
        for bad in [
            "",
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
            "0: 0100007F:18EB",
            "0: 0100007F:18EB 00000000:0000 0A 0:0 0:0 0 113 0",
            "0: 0100007F:18EB1 00000000:0000 0A 0:0 0:0 0 113 0 5",
            "0: 0100007:18EB 00000000:0000 0A 0:0 0:0 0 113 0 5",
            "0: +100007F:18EB 00000000:0000 0A 0:0 0:0 0 113 0 5",
        ] {
            assert_eq!(Row::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn unix_sockets() {
        let check = |tail: &str, expected: Option<&str>| {
            let line = format!("0000000033ef82c3: 00000002 00000000 {tail}");
            assert_eq!(UnixRow::parse(line.as_bytes()).map(|row| row.path).as_deref(), expected);
        };
        check("00010000 0001 01   552 /run/a.sock", Some("/run/a.sock"));
        check("00010000 0001 01 552 /run/two words", Some("/run/two words"));
        check("00010000 0001 01 552 @/abstract", Some("@/abstract"));
        check("00010000 0001 01 552 /run/\u{1b}[2J", Some("/run/\\x1b[2J"));
        check("00010000 0001 01 552 @0001f", None);
        check("00010000 0001 01 552", None);
        check("00010000 0001 01 552 ", None);
        check("00000000 0001 03 552 /run/a.sock", None);
    }

    #[test]
    fn files_longer_than_the_buffer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("tcp");
        let text: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
        std::fs::write(&path, format!("{text}last")).unwrap();
        let mut seen = Vec::new();
        each_line(&path, &mut Vec::new(), |line| {
            seen.push(String::from_utf8(line.to_vec()).unwrap());
            true
        })
        .unwrap();
        assert_eq!(seen.join("\n"), format!("{text}last"));
        std::fs::write(&path, "x".repeat(1_000_000)).unwrap();
        each_line(&path, &mut Vec::new(), |_| true).unwrap();
    }

    proptest! {
        #[test]
        fn anything_goes_in(bytes: Vec<u8>, line in "[0-9]: [0-9A-F:]{0,40} [0-9A-F:]{0,40} 0A( [0-9]{1,3}){0,8}") {
            Row::parse(&bytes);
            UnixRow::parse(&bytes);
            Row::of_message(&bytes);
            Row::parse(line.as_bytes());
        }
    }
}
