//! A twin's console over a WebSocket: bytes as they are, both ways.

use super::auth::Caller;
use super::error::ApiError;
use super::extract::Upgrade;
use super::twins::Name;
use crate::app::App;
use crate::metrics::OpenStream;
use crate::twins::Console;
use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket};
use axum::response::Response;
use std::io::SeekFrom;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Of what the console said before, so that nobody looks at nothing.
const BEFORE: u64 = 4096;
const CHUNK: usize = 16 << 10;
/// Bytes of one message from whoever types.
const TYPED: usize = 64 << 10;
const PING: Duration = Duration::from_secs(20);
/// For a message to be taken, by either end.
const PATIENCE: Duration = Duration::from_secs(30);

/// The console of a twin that runs: each message is bytes of it. What it said last comes first.
/// One reader at a time. For the role operator, since what is typed acts.
#[utoipa::path(get, path = "/api/v1/twins/{host}/console", tag = "twins", operation_id = "twin_console", params(("host" = String, Path)),
    responses((status = 101), (status = 404, body = api::ErrorBody), (status = 409, body = api::ErrorBody)))]
pub(crate) async fn console(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Name(name): Name,
    Upgrade(upgrade): Upgrade,
) -> Result<Response, ApiError> {
    let console = app.twins.console(&name).await?;
    let (open, stopping) = (OpenStream::new(&app), app.shutdown.clone());
    let upgrade = upgrade.max_message_size(TYPED);
    let allowed = caller.allowed(&app);
    Ok(upgrade.on_upgrade(move |socket| {
        allowed.only(async move {
            let _open = open;
            pass(console, socket, stopping, PATIENCE).await;
        })
    }))
}

async fn pass(
    console: Console,
    mut socket: WebSocket,
    stopping: CancellationToken,
    patience: Duration,
) {
    let Console { stream, log, turn: _turn } = console;
    let before = last(&log).await.unwrap_or_default();
    if !before.is_empty() && !send(&mut socket, Message::Binary(before.into()), patience).await {
        return;
    }
    let (mut said, mut typed) = tokio::io::split(stream);
    let mut ping = tokio::time::interval(PING);
    let mut buffer = vec![0; CHUNK];
    loop {
        let next = tokio::select! {
            read = said.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break,
                Ok(length) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    Message::Binary(Bytes::copy_from_slice(bytes))
                }
            },
            message = socket.recv() => {
                let bytes = match message {
                    Some(Ok(Message::Binary(bytes))) => bytes,
                    Some(Ok(Message::Text(text))) => text.into(),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    Some(Ok(_)) => continue,
                };
                match timeout(patience, typed.write_all(&bytes)).await {
                    Ok(Ok(())) => continue,
                    // A guest that takes nothing more is no reason to wait for ever, either.
                    _ => break,
                }
            }
            _ = ping.tick() => Message::Ping(Bytes::new()),
            () = stopping.cancelled() => break,
        };
        if !send(&mut socket, next, patience).await {
            return;
        }
    }
    send(&mut socket, Message::Close(None), patience).await;
}

/// Whether it could be sent. Whoever does not read for so long is let go of: the console is then
/// another one's.
async fn send(socket: &mut WebSocket, message: Message, patience: Duration) -> bool {
    match timeout(patience, socket.send(message)).await {
        Ok(sent) => sent.is_ok(),
        Err(_elapsed) => {
            tracing::info!("a console's reader did not read, and was let go of");
            false
        }
    }
}

async fn last(log: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = tokio::fs::File::open(log).await?;
    let length = file.metadata().await?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(BEFORE))).await?;
    let mut text = Vec::new();
    file.take(BEFORE).read_to_end(&mut text).await?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::extract::ws::WebSocketUpgrade;
    use axum::routing::any;
    use std::net::Ipv4Addr;
    use std::sync::Mutex;
    use tokio::io::duplex;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::oneshot;
    use tokio::task::JoinSet;

    const PATIENT: Duration = Duration::from_millis(300);
    const ASK: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    #[tokio::test]
    async fn a_reader_that_does_not_read_is_let_go_of() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (near, mut guest) = duplex(CHUNK);
        let (stream, log) = (Box::new(near), "/none".into());
        let turn = crate::twins::ConsoleTurn::of_nobody("web01".parse().unwrap());
        let (tell, told) = oneshot::channel();
        let once = Arc::new(Mutex::new(Some((Console { stream, log, turn }, tell))));
        let route = any(move |upgrade: WebSocketUpgrade| async move {
            let (console, tell) = once.lock().unwrap().take().unwrap();
            upgrade.on_upgrade(async move |socket| {
                pass(console, socket, CancellationToken::new(), PATIENT).await;
                tell.send(()).unwrap();
            })
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(
            async move { drop(axum::serve(listener, Router::new().route("/", route)).await) },
        );
        // The guest says more than all buffers on the way hold.
        tasks.spawn(async move { while guest.write_all(&[b'x'; CHUNK]).await.is_ok() {} });
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(ASK.as_bytes()).await.unwrap();
        timeout(Duration::from_secs(60), told).await.expect("in time").unwrap();
    }
}
