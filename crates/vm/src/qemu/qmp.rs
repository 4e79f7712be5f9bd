//! QEMU's monitor protocol: commands and answers as JSON lines, events in between.
//!
//! # Invariants
//! - Nothing is waited for longer than its deadline, and no line is longer than a limit.
//! - What was cut off is reported as such; the monitor is then closed, so that a late answer
//!   is never taken for that of another command.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

/// For commands that answer at once.
const CALL: Duration = Duration::from_secs(20);
const LINE_BYTES: u64 = 16 << 20;
/// What begins a conversation.
const GREET: &str = "qmp_capabilities";
/// Events kept that nobody asked for yet.
const EVENTS: usize = 256;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the monitor can't be reached")]
    Unreachable(#[source] io::Error),
    #[error("the monitor was closed")]
    Closed,
    #[error("{command}: {text}")]
    Refused { command: &'static str, text: String },
    #[error("{command} was not answered within {} s", CALL.as_secs())]
    Overdue { command: &'static str },
}

/// What happened in QEMU, and when by its clock.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Event {
    pub(super) event: String,
    #[serde(default)]
    pub(super) data: Value,
    timestamp: Timestamp,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Timestamp {
    seconds: u64,
    microseconds: u64,
}

impl Event {
    /// Since the epoch.
    pub(super) fn at(&self) -> Duration {
        Duration::from_secs(self.timestamp.seconds)
            + Duration::from_micros(self.timestamp.microseconds)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Message {
    Event(Event),
    Return {
        #[serde(rename = "return")]
        value: Value,
    },
    Error {
        error: Fault,
    },
}

#[derive(Deserialize)]
struct Fault {
    desc: String,
}

/// A connection to a monitor. A monitor has one at a time; others wait to be greeted.
pub(super) struct Qmp {
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    events: VecDeque<Event>,
    /// The beginning of a line.
    partial: Vec<u8>,
    broken: bool,
}

impl Qmp {
    pub(super) async fn connect(socket: &Path, limit: Duration) -> Result<Self, Error> {
        let greet = async {
            let mut qmp = Self::open(socket).await?;
            qmp.act(GREET, json!({})).await?;
            Ok(qmp)
        };
        timeout(limit, greet).await.unwrap_or_else(|_| Err(late()))
    }

    /// One question to a monitor, asked in one breath with what begins a conversation: while its
    /// guest runs each answer is waited for.
    pub(super) async fn ask<T: DeserializeOwned>(
        socket: &Path,
        limit: Duration,
        command: &'static str,
    ) -> Result<T, Error> {
        let asked = async {
            let mut qmp = Self::open(socket).await?;
            let none = json!({});
            let requests = [request(GREET, &none), request(command, &none)].concat();
            qmp.say(&requests).await?;
            qmp.answer(GREET).await?;
            read(command, qmp.answer(command).await?)
        };
        timeout(limit, asked).await.unwrap_or_else(|_| Err(late()))
    }

    async fn open(socket: &Path) -> Result<Self, Error> {
        let stream = UnixStream::connect(socket).await.map_err(Error::Unreachable)?;
        let (reader, writer) = stream.into_split();
        let reader = BufReader::new(reader);
        let (events, partial) = (VecDeque::new(), Vec::new());
        Ok(Self { reader, writer, events, partial, broken: false })
    }

    pub(super) async fn call<T: DeserializeOwned>(
        &mut self,
        command: &'static str,
        arguments: Value,
    ) -> Result<T, Error> {
        if self.broken {
            return Err(Error::Closed);
        }
        // Until the answer is here, a caller that goes away leaves the monitor out of step.
        self.broken = true;
        let exchange = async {
            self.say(&request(command, &arguments)).await?;
            self.answer(command).await
        };
        let answer = timeout(CALL, exchange).await;
        let answer = answer.unwrap_or(Err(Error::Overdue { command }));
        self.broken = !matches!(answer, Ok(_) | Err(Error::Refused { .. }));
        read(command, answer?)
    }

    /// For commands whose answer says nothing.
    pub(super) async fn act(
        &mut self,
        command: &'static str,
        arguments: Value,
    ) -> Result<(), Error> {
        self.call::<Value>(command, arguments).await.map(drop)
    }

    async fn say(&mut self, requests: &str) -> Result<(), Error> {
        self.writer.write_all(requests.as_bytes()).await.map_err(|_broken| Error::Closed)
    }

    /// The next answer, which is that of the oldest command that has none.
    async fn answer(&mut self, command: &'static str) -> Result<Value, Error> {
        loop {
            match self.line().await? {
                Message::Event(event) => self.keep(event),
                Message::Return { value } => return Ok(value),
                Message::Error { error } => {
                    return Err(Error::Refused { command, text: error.desc });
                }
            }
        }
    }

    /// The first event that is one of those looked for, of those since the last that was.
    /// May be dropped at any time, and has no deadline of its own.
    pub(super) async fn event<T>(
        &mut self,
        mut pick: impl FnMut(&Event) -> Option<T>,
    ) -> Result<T, Error> {
        loop {
            while let Some(event) = self.events.pop_front() {
                if let Some(found) = pick(&event) {
                    return Ok(found);
                }
            }
            if let Message::Event(event) = self.line().await? {
                self.keep(event);
            }
        }
    }

    fn keep(&mut self, event: Event) {
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// The next line that is a message; the greeting is none. What was read of a line stays
    /// when this is dropped.
    async fn line(&mut self) -> Result<Message, Error> {
        loop {
            let room = LINE_BYTES.saturating_sub(self.partial.len() as u64);
            let mut limited = (&mut self.reader).take(room);
            let read = limited.read_until(b'\n', &mut self.partial).await;
            if read.map_err(|_broken| Error::Closed)? == 0 {
                return Err(Error::Closed);
            }
            if self.partial.ends_with(b"\n") {
                let line = std::mem::take(&mut self.partial);
                if let Ok(message) = serde_json::from_slice(&line) {
                    return Ok(message);
                }
            }
        }
    }
}

/// A line of the protocol.
fn request(command: &str, arguments: &Value) -> String {
    format!("{}\n", json!({ "execute": command, "arguments": arguments }))
}

fn read<T: DeserializeOwned>(command: &'static str, answer: Value) -> Result<T, Error> {
    serde_json::from_value(answer)
        .map_err(|error| Error::Refused { command, text: error.to_string() })
}

fn late() -> Error {
    Error::Unreachable(io::ErrorKind::TimedOut.into())
}
