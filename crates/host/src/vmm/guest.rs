//! QEMU's guest agent, through a channel of QEMU's or a port of the guest's vsock device: it has
//! to say again what it is told.

use super::lines::Lines;
use super::socket::Turn;
use super::{Asker, Error, Monitor, broken, rest, socket};
use crate::Root;
use serde_json::{Value, json};
use std::io;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::Instant;

/// By QEMU's channel.
pub(super) async fn at_channel(
    asker: &Asker,
    monitor: &Monitor,
    token: u64,
    limit: Duration,
) -> Result<(), Error> {
    let Asker { root, looks } = asker;
    let Some(channel) = &monitor.sockets.agent else { return Err(Error::NoChannel(monitor.vmm)) };
    let late = Instant::now() + limit / 2;
    let work = async {
        let stream = socket::connect(root, monitor, &channel.path).await?;
        sync(Lines::new(stream), token).await.map_err(Error::BrokenAgent)
    };
    if let Ok(done) = tokio::time::timeout(limit, work).await {
        return done;
    }
    let path = channel.path.clone();
    Err(match looks.turn(root, &path, late).await {
        Turn::Behind => Error::Taken { path },
        // It is QEMU that lets nobody in.
        Turn::Ignored => Error::Silent { path, limit },
        Turn::Served => Error::SilentAgent { limit },
    })
}

/// By a port of the vsock device, as cloud-hypervisor and firecracker lead there.
pub(super) async fn at_port(
    root: &Root,
    monitor: &Monitor,
    port: u32,
    token: u64,
    limit: Duration,
) -> Result<(), Error> {
    let work = async {
        let path = rest::vsock(root, monitor).await?;
        let lines = lead(socket::connect(root, monitor, &path).await?, port)
            .await
            .map_err(|error| broken(&path, error))?
            .ok_or(Error::NobodyAtPort(port))?;
        sync(lines, token).await.map_err(Error::BrokenAgent)
    };
    tokio::time::timeout(limit, work).await.unwrap_or(Err(Error::SilentAgent { limit }))
}

/// Leads a connection on into the guest; nothing where nobody listens.
async fn lead(stream: UnixStream, port: u32) -> io::Result<Option<Lines>> {
    let mut lines = Lines::new(stream);
    lines.say(format!("CONNECT {port}\n").as_bytes()).await?;
    let leads = lines.line().await.map(|line| line.starts_with(b"OK "));
    match leads {
        Ok(true) => Ok(Some(lines)),
        Ok(false) => Err(io::Error::new(io::ErrorKind::InvalidData, "it does not lead to a port")),
        // Closed: so it says that nobody is there.
        Err(_closed) => Ok(None),
    }
}

/// Who answers again what it is told is there.
async fn sync(mut lines: Lines, token: u64) -> io::Result<()> {
    let ask = json!({"execute": "guest-sync-delimited", "arguments": {"id": token}});
    // The first byte makes the agent forget what somebody before had begun to say.
    let mut bytes = vec![0xff];
    bytes.extend_from_slice(ask.to_string().as_bytes());
    bytes.push(b'\n');
    lines.say(&bytes).await?;
    loop {
        match lines.value().await {
            Ok(answer) if answer.get("return").and_then(Value::as_u64) == Some(token) => {
                return Ok(());
            }
            // It answers somebody before.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
            Err(error) => return Err(error),
        }
    }
}
