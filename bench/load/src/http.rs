//! HTTP/1.1 with as little work as possible, so that the cores are the server's: requests are
//! bytes made beforehand, answers are read and only counted or handed on.

use anyhow::{Context, Result, bail};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One kept connection.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(128 * 1024) })
    }

    /// Sends a whole request; gives the status and the body of the answer.
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> Result<(u16, &[u8])> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        loop {
            if let Some((status, begin, length)) = head(&self.buffer)? {
                while self.buffer.len() < begin + length {
                    if self.stream.read_buf(&mut self.buffer).await? == 0 {
                        bail!("the connection ended within an answer");
                    }
                }
                return Ok((status, &self.buffer[begin..begin + length]));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the connection ended");
            }
        }
    }
}

/// Status, begin and length of the body, once the head is there.
fn head(buffer: &[u8]) -> Result<Option<(u16, usize, usize)>> {
    let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let text = std::str::from_utf8(&buffer[..end])?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("no status")?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map_or(Ok(0), |(_, value)| value.trim().parse())?;
    Ok(Some((status.parse()?, end + 4, length)))
}

/// The bytes of a GET.
pub(crate) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes()
}

/// The bytes of a POST of the agent's wire.
pub(crate) fn post(host: &str, body: &[u8]) -> Vec<u8> {
    let mut request = format!(
        "POST /api/v1/hosts/{host}/deltas HTTP/1.1\r\nHost: localhost\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n",
        api::wire::MEDIA_TYPE,
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}
