//! GET over a Unix socket. Each request has its own connection, driven by whoever waits for
//! the answer: nothing runs in the background.

use super::Error;
use futures_util::future::{Either, select};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::io;
use std::path::Path;
use std::pin::{Pin, pin};
use tokio::net::UnixStream;

/// Bytes of an answer: about a thousand containers in a list.
const ANSWER_MAX: usize = 16 * 1024 * 1024;

/// What moves the bytes of a connection. It must be polled as long as an answer is read.
pub(super) type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// The body of the answer to a GET.
pub(super) async fn get(socket: &Path, path: &str) -> Result<Vec<u8>, Error> {
    let (response, mut driver) = open(socket, path).await?;
    let collect = pin!(collect(response.into_body(), path));
    drive(&mut driver, collect).await
}

/// The answer to a GET, its body yet to come.
pub(super) async fn open(socket: &Path, path: &str) -> Result<(Response<Incoming>, Driver), Error> {
    let failed = |source| Error::Request { request: format!("GET {path}"), source };
    let stream = UnixStream::connect(socket).await.map_err(|source| not_there(socket, source))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let mut driver: Driver = Box::pin(connection);
    let request = Request::get(path)
        .header(hyper::header::HOST, "docker")
        .header(hyper::header::USER_AGENT, "safetytwin")
        .body(Empty::<Bytes>::new())
        .map_err(|_invalid| Error::Status { request: format!("GET {path}"), status: 400 })?;
    let answer = drive(&mut driver, pin!(sender.send_request(request))).await.map_err(failed)?;
    match answer.status() {
        StatusCode::OK => Ok((answer, driver)),
        status => Err(Error::Status { request: format!("GET {path}"), status: status.as_u16() }),
    }
}

/// Waits for something that comes over the connection. When the connection has done its part
/// and ended, what it received is still to be taken.
pub(super) async fn drive<F: Future + Unpin>(driver: &mut Driver, wanted: F) -> F::Output {
    match select(wanted, &mut *driver).await {
        Either::Left((output, _)) => output,
        Either::Right((_ended, wanted)) => {
            // A future that has ended must not be polled again.
            *driver = Box::pin(std::future::pending());
            wanted.await
        }
    }
}

async fn collect(mut body: Incoming, path: &str) -> Result<Vec<u8>, Error> {
    let request = || format!("GET {path}");
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|source| Error::Request { request: request(), source })?;
        let data = frame.into_data().unwrap_or_default();
        if bytes.len() + data.len() > ANSWER_MAX {
            return Err(Error::TooLarge { request: request(), limit: ANSWER_MAX });
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

fn not_there(socket: &Path, source: io::Error) -> Error {
    let path = socket.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => Error::Absent { path },
        io::ErrorKind::ConnectionRefused => Error::Stopped { path },
        _ => Error::Connect { path, source },
    }
}
