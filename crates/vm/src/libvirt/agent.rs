//! The guest agent's line where libvirt holds its other end: what is written on it is asked by
//! way of libvirt, one question at a time, and what it answers can be read.

use super::domains::{Domains, Uuid};
use serde_json::{Value, json};
use std::io;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex};

/// Bytes on their way.
const ROOM: usize = 64 << 10;
/// Bytes of one question.
const LINE_BYTES: u64 = 4 << 20;
/// Ends what half a message there may be; no text has it.
const DELIMITER: u8 = 0xff;

/// A line to the guest agent. It is at its end when nobody answers.
pub(super) fn line(domains: Domains, uuid: Uuid) -> DuplexStream {
    let (near, far) = duplex(ROOM);
    crate::job::drive(async move {
        if let Err(error) = pass_on(&domains, &uuid, far).await {
            tracing::debug!(machine = uuid.as_str(), %error, "a line to a guest agent ended");
        }
    });
    near
}

async fn pass_on(domains: &Domains, uuid: &Uuid, far: DuplexStream) -> io::Result<()> {
    let mut far = BufReader::new(far);
    loop {
        let mut line = Vec::new();
        if (&mut far).take(LINE_BYTES).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let begin = line.iter().rposition(|byte| *byte == DELIMITER).map_or(0, |at| at + 1);
        let asked: Value = serde_json::from_slice(line.get(begin..).unwrap_or_default())?;
        let command = asked.get("execute").and_then(Value::as_str).unwrap_or_default();
        let answer = match command {
            // libvirt has a conversation of its own: there is nothing to begin anew, only to
            // find out whether somebody is there.
            "guest-sync" | "guest-sync-delimited" => {
                let ping = json!({ "execute": "guest-ping" });
                domains.ask_guest(uuid, &ping).await.map_err(io::Error::other)?;
                let id = asked.pointer("/arguments/id").cloned().unwrap_or_default();
                let mut answer = vec![DELIMITER];
                answer.extend(json!({ "return": id }).to_string().bytes());
                answer
            }
            _ => match domains.ask_guest(uuid, &asked).await {
                Ok(answer) => answer.into_bytes(),
                Err(error) => {
                    let said = json!({ "class": "GenericError", "desc": error.to_string() });
                    json!({ "error": said }).to_string().into_bytes()
                }
            },
        };
        far.write_all(&answer).await?;
        far.write_all(b"\n").await?;
    }
}
