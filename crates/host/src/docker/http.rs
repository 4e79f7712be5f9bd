//! What is asked of Docker, in its words for what went wrong.

use super::Error;
use crate::unix_http::{self, Driver};
use hyper::body::Incoming;
use hyper::{Response, StatusCode};
use std::io;
use std::path::Path;
use tokio::net::UnixStream;

/// Bytes of an answer: about a thousand containers in a list.
const ANSWER_MAX: usize = 16 * 1024 * 1024;

/// The body of the answer to a GET.
pub(super) async fn get(socket: &Path, path: &str) -> Result<Vec<u8>, Error> {
    let request = || format!("GET {path}");
    let (response, mut driver) = open(socket, path).await?;
    let body = unix_http::body(response.into_body(), &mut driver, ANSWER_MAX).await;
    body.map_err(|source| Error::Request { request: request(), source })?
        .ok_or_else(|| Error::TooLarge { request: request(), limit: ANSWER_MAX })
}

/// The answer to a GET, its body yet to come.
pub(super) async fn open(socket: &Path, path: &str) -> Result<(Response<Incoming>, Driver), Error> {
    let failed = |source| Error::Request { request: format!("GET {path}"), source };
    let stream = UnixStream::connect(socket).await.map_err(|source| not_there(socket, source))?;
    let request = unix_http::request("docker", path)
        .map_err(|_invalid| Error::Status { request: format!("GET {path}"), status: 400 })?;
    let (answer, driver) = unix_http::open(stream, request).await.map_err(failed)?;
    match answer.status() {
        StatusCode::OK => Ok((answer, driver)),
        status => Err(Error::Status { request: format!("GET {path}"), status: status.as_u16() }),
    }
}

fn not_there(socket: &Path, source: io::Error) -> Error {
    let path = socket.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => Error::Absent { path },
        io::ErrorKind::ConnectionRefused => Error::Stopped { path },
        _ => Error::Connect { path, source },
    }
}
