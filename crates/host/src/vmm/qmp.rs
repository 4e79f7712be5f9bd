//! QEMU's machine protocol, which stratovirt speaks in part: a greeting, then questions and answers, with events in between.

use super::lines::Lines;
use super::word;
use model::load::VmmLoad;
use serde_json::{Value, json};
use std::io;
use tokio::net::UnixStream;

/// Asks how the VM is. `channel` is what QEMU calls the guest agent's.
pub(super) async fn ask(stream: UnixStream, channel: Option<&str>) -> io::Result<VmmLoad> {
    let mut lines = Lines::new(stream);
    if lines.value().await?.get("QMP").is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it does not speak QMP"));
    }
    execute(&mut lines, "qmp_capabilities").await?;
    let status = execute(&mut lines, "query-status").await?;
    let processors = match execute(&mut lines, "query-cpus-fast").await? {
        None => execute(&mut lines, "query-cpus").await?,
        processors => processors,
    };
    let memory = execute(&mut lines, "query-memory-size-summary").await?;
    // An error where there is no balloon.
    let balloon = execute(&mut lines, "query-balloon").await?;
    let channels = match channel {
        Some(_) => execute(&mut lines, "query-chardev").await?,
        None => None,
    };
    let part = |name: &str| memory.as_ref()?.get(name)?.as_u64();
    Ok(VmmLoad {
        runs: status.as_ref().and_then(|status| status.get("running")?.as_bool()),
        status: status.as_ref().and_then(|status| status.get("status")?.as_str()).map(word),
        vcpus: processors.as_ref().and_then(Value::as_array).map(|all| all.len() as u64),
        memory_bytes: part("base-memory")
            .map(|base| base.saturating_add(part("plugged-memory").unwrap_or(0))),
        balloon_memory_bytes: balloon.and_then(|balloon| balloon.get("actual")?.as_u64()),
        guest_agent: channel.and_then(|id| is_open(channels.as_ref()?, id)),
        ..VmmLoad::default()
    })
}

/// What a command returns; nothing where it is refused.
async fn execute(lines: &mut Lines, command: &str) -> io::Result<Option<Value>> {
    let mut text = json!({ "execute": command }).to_string();
    text.push('\n');
    lines.say(text.as_bytes()).await?;
    loop {
        let mut answer = lines.value().await?;
        if let Some(returned) = answer.get_mut("return") {
            return Ok(Some(returned.take()));
        }
        if answer.get("error").is_some() {
            return Ok(None);
        }
        // An event.
    }
}

/// Whether the guest has opened its end of a channel.
fn is_open(channels: &Value, id: &str) -> Option<bool> {
    let label = |channel: &&Value| channel.get("label").and_then(Value::as_str) == Some(id);
    channels.as_array()?.iter().find(label)?.get("frontend-open")?.as_bool()
}
