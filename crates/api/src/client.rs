//! A small HTTP client on one kept connection.
//!
//! Plain HTTP/1.1: the server is on loopback, or behind something that speaks TLS. A request
//! that meets a connection closed meanwhile is tried once more on a new one.

use crate::ErrorBody;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::time::Duration;
use tokio::net::TcpStream;

/// Bytes an answer may have.
const MAX_ANSWER: usize = 256 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0:?} is not a server's address; write http://HOST:PORT")]
    Url(String),
    #[error(
        "{0:?} asks for TLS, which this client does not speak; use http:// through a tunnel or proxy that does"
    )]
    Tls(String),
    #[error("could not reach the server at {server}")]
    Connect {
        server: String,
        #[source]
        source: std::io::Error,
    },
    #[error("the connection to {server} broke")]
    Connection {
        server: String,
        #[source]
        source: hyper::Error,
    },
    #[error("{server} did not answer within {} s", .deadline.as_secs())]
    Deadline { server: String, deadline: Duration },
    #[error("{}", .0.message)]
    Refused(Box<ErrorBody>, StatusCode),
    #[error("{server} answered {status} and nothing this client understands")]
    Answer { server: String, status: StatusCode },
    #[error("the request can't be sent")]
    Request(#[from] hyper::http::Error),
}

impl Error {
    /// The status the server refused with.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Refused(_, status) | Self::Answer { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// The stable code the server refused with.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        if let Self::Refused(body, _) = self { Some(&body.code) } else { None }
    }

    /// A detail of the refusal.
    #[must_use]
    pub fn detail(&self, name: &str) -> Option<&str> {
        if let Self::Refused(body, _) = self {
            body.details.get(name).map(String::as_str)
        } else {
            None
        }
    }
}

/// An open stream of body bytes, such as server-sent events.
pub type Body = hyper::body::Incoming;

/// One server, one connection.
#[derive(Debug)]
pub struct Client {
    /// `HOST:PORT`.
    authority: String,
    token: Option<String>,
    deadline: Duration,
    max_answer: usize,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// `url` is `http://HOST[:PORT]`; a path is ignored, since older configurations give that
    /// of `update_state`.
    ///
    /// # Errors
    /// When it isn't such an address.
    pub fn new(url: &str, token: Option<String>) -> Result<Self, Error> {
        let unclear = || Error::Url(url.chars().take(200).collect());
        let uri: Uri = url.parse().map_err(|_uri| unclear())?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(Error::Tls(url.to_owned())),
            _ => return Err(unclear()),
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(unclear)?;
        let port = match uri.authority().map(|authority| authority.as_str().rsplit_once(':')) {
            // A port that is none must not become another one.
            Some(Some((_, port))) if !port.contains(']') => {
                port.parse().map_err(|_port| unclear())?
            }
            _ => 80,
        };
        Ok(Self {
            authority: format!("{host}:{port}"),
            token,
            deadline: Duration::from_secs(30),
            max_answer: MAX_ANSWER,
            connection: None,
        })
    }

    /// How long a whole request may take.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How many bytes an answer may have.
    #[must_use]
    pub fn with_max_answer(mut self, bytes: usize) -> Self {
        self.max_answer = bytes;
        self
    }

    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Sends a request and reads its whole answer.
    ///
    /// # Errors
    /// When the server can't be reached in time, or refuses.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        media_type: &str,
        body: Bytes,
    ) -> Result<Bytes, Error> {
        let deadline = self.deadline;
        let answer = tokio::time::timeout(deadline, async {
            let response = self.open(method, path, media_type, body).await?;
            let status = response.status();
            let bytes = Limited::new(response.into_body(), self.max_answer)
                .collect()
                .await
                .map(http_body_util::Collected::to_bytes)
                .map_err(|_read| self.unclear(status))?;
            Ok::<_, Error>((status, bytes))
        })
        .await;
        let Ok(answer) = answer else {
            self.connection = None;
            return Err(Error::Deadline { server: self.authority.clone(), deadline });
        };
        let (status, bytes) = answer?;
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(bytes);
        }
        match serde_json::from_slice::<ErrorBody>(&bytes) {
            Ok(body) => Err(Error::Refused(Box::new(body), status)),
            Err(_) => Err(self.unclear(status)),
        }
    }

    /// Gets JSON.
    ///
    /// # Errors
    /// As [`Client::send`], and when the answer is of another form.
    pub async fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Error> {
        let bytes = self.send(Method::GET, path, "", Bytes::new()).await?;
        serde_json::from_slice(&bytes).map_err(|_form| self.unclear(StatusCode::OK))
    }

    /// Sends a request and hands out the answer while it still comes in.
    ///
    /// # Errors
    /// When the server can't be reached.
    pub async fn open(
        &mut self,
        method: Method,
        path: &str,
        media_type: &str,
        body: Bytes,
    ) -> Result<Response<Body>, Error> {
        for attempt in 0.. {
            let fresh = self.connection.as_ref().is_none_or(SendRequest::is_closed);
            if fresh {
                self.connection = Some(self.connect().await?);
            }
            let request = self.request(method.clone(), path, media_type, body.clone())?;
            let Some(connection) = &mut self.connection else { continue };
            let result = match connection.ready().await {
                Ok(()) => connection.send_request(request).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(response) => return Ok(response),
                Err(source) => {
                    self.connection = None;
                    if fresh || attempt > 0 {
                        return Err(Error::Connection { server: self.authority.clone(), source });
                    }
                }
            }
        }
        Err(self.unclear(StatusCode::BAD_GATEWAY))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        media_type: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Error> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.authority);
        if !media_type.is_empty() {
            request = request.header(CONTENT_TYPE, media_type);
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        Ok(request.body(Full::new(body))?)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Error> {
        let failed = |source| Error::Connect { server: self.authority.clone(), source };
        let attempt =
            tokio::time::timeout(Duration::from_secs(5), TcpStream::connect(&self.authority));
        let stream = match attempt.await {
            Ok(stream) => stream.map_err(failed)?,
            Err(_) => return Err(failed(std::io::ErrorKind::TimedOut.into())),
        };
        stream.set_nodelay(true).map_err(failed)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|source| Error::Connection { server: self.authority.clone(), source })?;
        #[expect(
            clippy::disallowed_methods,
            reason = "ends by itself when the sender is dropped or the peer closes"
        )]
        drop(tokio::spawn(connection));
        Ok(sender)
    }

    fn unclear(&self, status: StatusCode) -> Error {
        Error::Answer { server: self.authority.clone(), status }
    }
}

/// Percent-encodes one segment of a path or one value of a query.
#[must_use]
pub fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let authority = |url: &str| Client::new(url, None).map(|c| c.authority);
        assert_eq!(
            authority("http://localhost:5678/api/v1/update_state").unwrap(),
            "localhost:5678"
        );
        assert_eq!(authority("http://[::1]:80").unwrap(), "[::1]:80");
        assert!(matches!(authority("https://x"), Err(Error::Tls(_))));
        for bad in ["", "x", "ftp://x", "http://", "http:// x"] {
            assert!(matches!(authority(bad), Err(Error::Url(_))), "{bad}");
        }
    }

    #[test]
    fn segments() {
        assert_eq!(segment("unit:a@b.service/../ü"), "unit%3Aa%40b.service%2F..%2F%C3%BC");
    }
}
