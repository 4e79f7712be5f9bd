//! `twin console`: a twin's serial console on this terminal, over a WebSocket.

use super::twin::{named, of};
use crate::arguments::ConsoleArguments;
use crate::failure::Failure;
use crate::session::{Session, note};
use futures_util::{SinkExt, StreamExt};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use std::io::{Read, Write};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, header};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

/// Ctrl-].
const LEAVE: u8 = 0x1d;
const CHUNK: usize = 4096;

pub(crate) async fn run(
    arguments: &ConsoleArguments,
    session: &mut Session,
) -> Result<(), Failure> {
    let name = named(&mut session.remote, "twin console", arguments.name.as_ref()).await?;
    let socket = connect(of(&name).and("console").as_str(), session).await?;
    note(&format!("the console of {name}; leave it with Ctrl-]"));
    let raw = Raw::begin();
    let ended = pass(socket).await;
    drop(raw);
    eprintln!();
    ended
}

async fn connect(path: &str, session: &mut Session) -> Result<WebSocketStream<TcpStream>, Failure> {
    let authority = session.remote.authority().to_owned();
    let failed = |error: &dyn std::fmt::Display| Failure::Failed(format!("no console: {error}"));
    let request = format!("ws://{authority}{path}").into_client_request();
    let mut request = request.map_err(|error| failed(&error))?;
    if let Some(token) = session.remote.token() {
        let value = HeaderValue::from_str(&format!("Bearer {token}"));
        let value = value.map_err(|error| failed(&error))?;
        request.headers_mut().insert(header::AUTHORIZATION, value);
    }
    let stream = TcpStream::connect(&authority).await.map_err(|error| Failure::NoServer {
        server: session.remote.url().to_owned(),
        reason: error.to_string(),
    })?;
    match client_async(request, stream).await {
        Ok((socket, _response)) => Ok(socket),
        // Asked for as an ordinary page, the server says why.
        Err(Error::Http(response)) => {
            let refused =
                session.remote.refused(response.status().as_u16(), response.body().as_ref());
            Err(refused)
        }
        Err(error) => Err(failed(&error)),
    }
}

async fn pass(mut socket: WebSocketStream<TcpStream>) -> Result<(), Failure> {
    let mut typed = keys();
    let mut is_typing = true;
    loop {
        tokio::select! {
            keys = typed.recv(), if is_typing => match keys {
                Some(bytes) => {
                    let leaves = bytes.iter().position(|byte| *byte == LEAVE);
                    let sent = bytes.get(..leaves.unwrap_or(bytes.len())).unwrap_or_default();
                    if !sent.is_empty() && socket.send(Message::binary(sent.to_vec())).await.is_err() {
                        return Err(Failure::Failed("the console went away".to_owned()));
                    }
                    if leaves.is_some() {
                        return socket.close(None).await.or(Ok(()));
                    }
                }
                // What was to be typed came from a file, which is over.
                None => is_typing = false,
            },
            message = socket.next() => match message {
                Some(Ok(Message::Binary(bytes))) => show(&bytes)?,
                Some(Ok(Message::Text(text))) => show(text.as_bytes())?,
                Some(Ok(Message::Close(_))) | None => return Ok(()),
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    return Err(Failure::Failed(format!("the console went away: {error}")));
                }
            },
        }
    }
}

/// A console is a terminal's equal: what it says goes there as it is.
fn show(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(Failure::Output)
}

/// What is typed. Its thread ends with the process: nothing else ends a read of a terminal.
fn keys() -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0; CHUNK];
        while let Ok(read) = std::io::stdin().lock().read(&mut buffer) {
            let bytes = buffer.get(..read).unwrap_or_default().to_vec();
            if read == 0 || send.blocking_send(bytes).is_err() {
                return;
            }
        }
    });
    receive
}

/// The terminal passes on every key, until this is dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn begin() -> Self {
        let input = std::io::stdin();
        if !isatty(&input) {
            return Self(None);
        }
        let before = tcgetattr(&input).ok();
        if let Some(mut raw) = before.clone() {
            raw.make_raw();
            if tcsetattr(&input, OptionalActions::Now, &raw).is_err() {
                return Self(None);
            }
        }
        Self(before)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0
            && let Err(error) = tcsetattr(std::io::stdin(), OptionalActions::Now, before)
        {
            note(&format!("the terminal could not be put back ({error}); type: reset"));
        }
    }
}
