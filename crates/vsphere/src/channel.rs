//! One kept connection to a server: a request, an answer, within a deadline and a size.
//!
//! # Invariants
//! - After whatever went wrong the connection is let go of; the next call makes a new one.

use crate::soap::{self, Reply};
use crate::xml::Element;
use crate::{Error, Requests, Settings, tls, xml};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, COOKIE, HOST, SET_COOKIE, USER_AGENT};
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// An answer that is larger is refused: pages are asked for that have a tenth of it.
const MAX_ANSWER: usize = 32 << 20;
/// A session's cookie that is longer is none.
const MAX_COOKIE: usize = 4096;

type Driven = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Open {
    sender: SendRequest<Full<Bytes>>,
    /// What moves bytes while somebody waits for them.
    driven: Driven,
}

/// A server, and the connection there is to it.
pub(crate) struct Channel {
    /// `HOST:PORT`, for messages and requests.
    at: String,
    host: String,
    port: u16,
    config: Arc<ClientConfig>,
    timeout: Duration,
    cookie: Option<String>,
    open: Option<Open>,
    requests: Requests,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("at", &self.at).finish_non_exhaustive()
    }
}

impl Channel {
    pub(crate) fn new(settings: &Settings) -> Result<Self, Error> {
        let host = settings.host.trim_start_matches('[').trim_end_matches(']');
        let shown = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        Ok(Self {
            at: format!("{shown}:{}", settings.port),
            host: host.to_owned(),
            port: settings.port,
            config: tls::config(&settings.trust)?,
            timeout: settings.timeout,
            cookie: None,
            open: None,
            requests: settings.requests.clone(),
        })
    }

    /// Another connection of the same session.
    pub(crate) fn beside(&self) -> Self {
        Self {
            at: self.at.clone(),
            host: self.host.clone(),
            port: self.port,
            config: Arc::clone(&self.config),
            timeout: self.timeout,
            cookie: self.cookie.clone(),
            open: None,
            requests: self.requests.clone(),
        }
    }

    pub(crate) fn at(&self) -> &str {
        &self.at
    }

    /// Makes a call; the element that answers it.
    pub(crate) async fn call(&mut self, call: &'static str, body: &str) -> Result<Element, Error> {
        self.call_within(call, body, Duration::ZERO).await
    }

    /// Makes a call that may wait for so long before it answers.
    pub(crate) async fn call_within(
        &mut self,
        call: &'static str,
        body: &str,
        waits: Duration,
    ) -> Result<Element, Error> {
        let after = self.timeout + waits;
        // A connection that was let go of stays so, whatever comes.
        let open = self.open.take();
        let envelope = Bytes::from(soap::envelope(body));
        let work = async {
            let was_kept = open.is_some();
            match self.exchange(open, call, envelope.clone()).await {
                // It was closed while nobody looked.
                Err(Error::Broken { .. }) if was_kept => self.exchange(None, call, envelope).await,
                done => done,
            }
        };
        let done = timeout(after, work).await;
        let late = |_elapsed| Error::Deadline { at: self.at.clone(), call, after };
        let (bytes, open) = done.map_err(late)??;
        self.open = open;
        let unread = |source| Error::Answer { at: self.at.clone(), call, source };
        let root = xml::parse(&bytes).map_err(unread)?;
        match soap::reply(root) {
            Some(Reply::Answer(answer)) => Ok(answer),
            Some(Reply::Fault { kind, .. }) if kind == "InvalidLogin" => {
                Err(Error::Login { at: self.at.clone() })
            }
            Some(Reply::Fault { kind, message }) => {
                Err(Error::Fault { at: self.at.clone(), call, kind, message })
            }
            None => Err(Error::Unexpected { at: self.at.clone(), call, lacks: "a SOAP body" }),
        }
    }

    async fn exchange(
        &mut self,
        open: Option<Open>,
        call: &'static str,
        envelope: Bytes,
    ) -> Result<(Bytes, Option<Open>), Error> {
        let mut open = match open {
            Some(open) if open.sender.is_ready() => open,
            _ => self.connect().await?,
        };
        self.requests.add();
        let mut request = Request::post("/sdk")
            .header(HOST, &self.at)
            .header(USER_AGENT, concat!("safetytwin/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, "text/xml; charset=utf-8")
            .header("SOAPAction", "urn:vim25/6.0");
        if let Some(cookie) = &self.cookie {
            request = request.header(COOKIE, cookie);
        }
        let request =
            request.body(Full::new(envelope)).map_err(|_request| Error::Host(self.host.clone()))?;
        let broken = |source| Error::Broken { at: self.at.clone(), call, source };
        let sent = open.sender.send_request(request);
        let response = beside(&mut open.driven, sent).await.map_err(broken)?;
        if let Some(cookie) = session_cookie(&response) {
            self.cookie = Some(cookie);
        }
        let status = response.status().as_u16();
        // A fault comes as 500.
        if !matches!(status, 200 | 500) {
            return Err(Error::Status { at: self.at.clone(), call, status });
        }
        let bytes = self.body(call, response, &mut open.driven).await?;
        Ok((bytes, Some(open).filter(|open| !open.sender.is_closed())))
    }

    async fn body(
        &mut self,
        call: &'static str,
        response: Response<Incoming>,
        driven: &mut Driven,
    ) -> Result<Bytes, Error> {
        let too_large = || Error::TooLarge { at: self.at.clone(), call, limit: MAX_ANSWER };
        let announced = response.headers().get(CONTENT_LENGTH);
        let announced = announced.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if announced.is_some_and(|announced| announced > MAX_ANSWER) {
            return Err(too_large());
        }
        let mut body = response.into_body();
        let mut bytes = BytesMut::new();
        while let Some(frame) = beside(driven, body.frame()).await {
            let frame =
                frame.map_err(|source| Error::Broken { at: self.at.clone(), call, source })?;
            let Some(piece) = frame.data_ref() else { continue };
            if bytes.len() + piece.len() > MAX_ANSWER {
                return Err(too_large());
            }
            bytes.extend_from_slice(piece);
        }
        Ok(bytes.freeze())
    }

    async fn connect(&mut self) -> Result<Open, Error> {
        let name = ServerName::try_from(self.host.clone())
            .map_err(|_name| Error::Host(self.host.clone()))?;
        let unreached = |source| Error::Connect { at: self.at.clone(), source };
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream = stream.map_err(unreached)?;
        stream.set_nodelay(true).map_err(unreached)?;
        let connector = TlsConnector::from(Arc::clone(&self.config));
        let stream = connector.connect(name, stream).await.map_err(|source| {
            // What it says of itself is refused; anything else is a connection that failed.
            let refused = source.kind() == io::ErrorKind::InvalidData;
            let at = self.at.clone();
            if refused { Error::Tls { at, source } } else { Error::Connect { at, source } }
        })?;
        let hands = handshake(TokioIo::new(stream)).await;
        let (sender, connection) = hands.map_err(|source| Error::Broken {
            at: self.at.clone(),
            call: "a connection",
            source,
        })?;
        Ok(Open { sender, driven: Box::pin(until_ended(connection)) })
    }
}

/// What ends it, those who wait for an answer learn themselves.
async fn until_ended<S>(connection: Connection<TokioIo<S>, Full<Bytes>>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to a vSphere ended");
    }
}

/// Works while the connection is driven. When that ends there may still be something to read.
async fn beside<T>(driven: &mut Driven, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    tokio::select! {
        biased;
        done = &mut work => return done,
        () = &mut *driven => {}
    }
    *driven = Box::pin(std::future::pending());
    work.await
}

/// `vmware_soap_session="…"`, without its attributes.
fn session_cookie(response: &Response<Incoming>) -> Option<String> {
    let set = response.headers().get_all(SET_COOKIE).iter();
    let mut pairs = set.filter_map(|value| value.to_str().ok()?.split(';').next());
    let found = pairs.find(|pair| pair.trim_start().starts_with("vmware_soap_session="))?;
    Some(found.trim().to_owned()).filter(|cookie| cookie.len() <= MAX_COOKIE)
}
