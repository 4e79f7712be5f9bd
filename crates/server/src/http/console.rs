//! A twin's console over a WebSocket: bytes as they are, both ways.

use super::auth::Caller;
use super::error::ApiError;
use super::twins::Name;
use crate::app::App;
use crate::metrics::OpenStream;
use crate::twins::Console;
use axum::Extension;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use std::io::SeekFrom;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// Of what the console said before, so that nobody looks at nothing.
const BEFORE: u64 = 4096;
const CHUNK: usize = 16 << 10;
/// Bytes of one message from whoever types.
const TYPED: usize = 64 << 10;
const PING: Duration = Duration::from_secs(20);

/// The console of a twin that runs: each message is bytes of it. What it said last comes first.
/// One reader at a time. For the role operator, since what is typed acts.
#[utoipa::path(get, path = "/api/v1/twins/{host}/console", tag = "twins", operation_id = "twin_console", params(("host" = String, Path)),
    responses((status = 101), (status = 404, body = api::ErrorBody), (status = 409, body = api::ErrorBody)))]
pub(crate) async fn console(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Name(name): Name,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    let console = app.twins.console(&name).await?;
    let (open, stopping) = (OpenStream::new(&app), app.shutdown.clone());
    let upgrade = upgrade.max_message_size(TYPED);
    let allowed = caller.allowed(&app);
    Ok(upgrade.on_upgrade(move |socket| allowed.only(pass(console, socket, open, stopping))))
}

async fn pass(
    console: Console,
    mut socket: WebSocket,
    _open: OpenStream,
    stopping: CancellationToken,
) {
    let Console { stream, log, turn: _turn } = console;
    let before = last(&log).await.unwrap_or_default();
    if !before.is_empty() && socket.send(Message::Binary(before.into())).await.is_err() {
        return;
    }
    let (mut said, mut typed) = tokio::io::split(stream);
    let mut ping = tokio::time::interval(PING);
    let mut buffer = vec![0; CHUNK];
    loop {
        let sent = tokio::select! {
            read = said.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break,
                Ok(length) => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    socket.send(Message::Binary(Bytes::copy_from_slice(bytes))).await
                }
            },
            message = socket.recv() => {
                let bytes = match message {
                    Some(Ok(Message::Binary(bytes))) => bytes,
                    Some(Ok(Message::Text(text))) => text.into(),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    Some(Ok(_)) => Bytes::new(),
                };
                if typed.write_all(&bytes).await.is_err() {
                    break;
                }
                Ok(())
            }
            _ = ping.tick() => socket.send(Message::Ping(Bytes::new())).await,
            () = stopping.cancelled() => break,
        };
        if sent.is_err() {
            return;
        }
    }
    if let Err(error) = socket.send(Message::Close(None)).await {
        tracing::debug!(%error, "a console ended without farewell");
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
