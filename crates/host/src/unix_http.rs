//! GET over a Unix socket. Each request has its own connection, driven by whoever waits for
//! the answer: nothing runs in the background.

use futures_util::future::{Either, select};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::future::Future;
use std::pin::{Pin, pin};
use tokio::net::UnixStream;

/// What moves the bytes of a connection. It must be polled as long as an answer is read.
pub(crate) type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

/// A GET of a path.
pub(crate) fn request(host: &str, path: &str) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
    Request::get(path)
        .header(hyper::header::HOST, host)
        .header(hyper::header::USER_AGENT, "safetytwin")
        .body(Empty::new())
}

/// The answer to a request, its body yet to come.
pub(crate) async fn open(
    stream: UnixStream,
    request: Request<Empty<Bytes>>,
) -> hyper::Result<(Response<Incoming>, Driver)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut driver: Driver = Box::pin(connection);
    let answer = drive(&mut driver, pin!(sender.send_request(request))).await?;
    Ok((answer, driver))
}

/// Waits for something that comes over the connection. When the connection has done its part
/// and ended, what it received is still to be taken.
pub(crate) async fn drive<F: Future + Unpin>(driver: &mut Driver, wanted: F) -> F::Output {
    match select(wanted, &mut *driver).await {
        Either::Left((output, _)) => output,
        Either::Right((_ended, wanted)) => {
            // A future that has ended must not be polled again.
            *driver = Box::pin(std::future::pending());
            wanted.await
        }
    }
}

/// All of a body; nothing where that is more than the limit.
pub(crate) async fn body(
    mut body: Incoming,
    driver: &mut Driver,
    limit: usize,
) -> hyper::Result<Option<Vec<u8>>> {
    let collect = async {
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let data = frame?.into_data().unwrap_or_default();
            if bytes.len() + data.len() > limit {
                return Ok(None);
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Some(bytes))
    };
    drive(driver, pin!(collect)).await
}
