//! The agent in a twin: answers what the server asks through the machine's virtio-serial port.
//!
//! It sees what the agent on a host sees, with the same code, and changes nothing. The port is
//! there before anybody listens at its other end and stays when they leave; both are waited for.

use crate::config::Config;
use crate::{Error, once};
use api::guest::{Answer, Ask, Health, Reply, Request, receive, send};
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, BufStream, ReadBuf};
use tokio_util::sync::CancellationToken;

/// Between two tries while nobody is at the other end.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers until told to stop.
///
/// # Errors
/// When the port can't be opened, or broke.
pub async fn serve(config: Config, port: &Path, stop: CancellationToken) -> Result<(), Error> {
    let failed = |source| Error::Prepare { path: port.to_owned(), source };
    let mut channel = BufStream::new(Port::open(port).map_err(failed)?);
    tracing::info!(port = %port.display(), "answering for this machine");
    loop {
        let ended = stop.run_until_cancelled(answer_all(&config, &mut channel)).await;
        match ended {
            None => return Ok(()),
            Some(Err(error)) => return Err(failed(error)),
            // Nobody is there, or they have just left.
            Some(Ok(())) => {
                if stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await.is_none() {
                    return Ok(());
                }
            }
        }
    }
}

async fn answer_all(
    config: &Config,
    channel: &mut (impl AsyncBufRead + AsyncWrite + Unpin),
) -> io::Result<()> {
    while let Some(Request { id, ask }) = receive(channel).await? {
        let answer = answer(config, ask).await;
        send(channel, &Reply { id, answer }).await?;
    }
    Ok(())
}

async fn answer(config: &Config, ask: Ask) -> Answer {
    match ask {
        Ask::Hello => Answer::Hello(env!("CARGO_PKG_VERSION").to_owned()),
        Ask::Facts | Ask::Health => match once(config.clone()).await {
            Ok(facts) if ask == Ask::Health => Answer::Health(Health::of(&facts)),
            Ok(facts) => Answer::Facts(facts),
            Err(error) => Answer::Fault(error.to_string()),
        },
    }
}

/// The port as the runtime reads and writes it.
struct Port(AsyncFd<Arc<OwnedFd>>);

impl Port {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let port = rustix::fs::open(path, flags, Mode::empty())?;
        host::readiness::register(Arc::new(port)).map(Self)
    }
}

impl AsyncRead for Port {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            let unfilled = into.initialize_unfilled();
            match ready.try_io(|port| Ok(rustix::io::read(port.get_ref(), &mut *unfilled)?)) {
                Ok(read) => return Poll::Ready(read.map(|read| into.advance(read))),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(context))?;
            match ready.try_io(|port| Ok(rustix::io::write(port.get_ref(), bytes)?)) {
                Ok(written) => return Poll::Ready(written),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
