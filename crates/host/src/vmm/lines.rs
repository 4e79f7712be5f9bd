//! JSON objects, one a line, out of a socket; never more than a limit.

use serde_json::Value;
use std::io;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Take};
use tokio::net::UnixStream;

/// Bytes of all answers of one conversation.
const BYTES: u64 = 1 << 20;

#[derive(Debug)]
pub(super) struct Lines {
    stream: BufReader<Take<UnixStream>>,
    line: Vec<u8>,
}

impl Lines {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream: BufReader::new(stream.take(BYTES)), line: Vec::new() }
    }

    pub(super) async fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().get_mut().write_all(bytes).await
    }

    /// The next line, without its end. What went before the last 0xff of it is another's.
    pub(super) async fn line(&mut self) -> io::Result<&[u8]> {
        self.line.clear();
        self.stream.read_until(b'\n', &mut self.line).await?;
        if !self.line.ends_with(b"\n") {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let own = self.line.rsplit(|&b| b == 0xff).next().unwrap_or_default();
        Ok(own.trim_ascii())
    }

    /// The next that is JSON.
    pub(super) async fn value(&mut self) -> io::Result<Value> {
        let line = self.line().await?;
        serde_json::from_slice(line)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}
