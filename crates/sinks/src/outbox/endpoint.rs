//! The two endpoints that are told of renames, and one call of one.

use super::{Entry, Policy, Target};
use crate::call;
use crate::error::Error;
use crate::session::SessionChange;
use bytes::Bytes;
use futures_util::future::{Either, select};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use std::pin::pin;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The same for each attempt of one call.
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Who is told of renames.
#[derive(Debug, Clone)]
pub struct Endpoints {
    group: Option<Endpoint>,
    auth: Option<Endpoint>,
    timeout: Duration,
    policy: Policy,
}

#[derive(Debug, Clone)]
struct Endpoint {
    host: String,
    port: u16,
    /// As the endpoint is called: `HOST` or `HOST:PORT`.
    authority: String,
    path: String,
    is_secure: bool,
}

impl Endpoints {
    /// By their URLs; `timeout` is for a whole call.
    ///
    /// # Errors
    /// When one is no URL that can be called.
    pub fn new(group: Option<&str>, auth: Option<&str>, timeout: Duration) -> Result<Self, Error> {
        let endpoint = |what, url: Option<&str>| {
            url.map(|url| Endpoint::read(url).map_err(|why| Error::Settings { what, why }))
                .transpose()
        };
        Ok(Self {
            group: endpoint("the endpoint of the groups", group)?,
            auth: endpoint("the endpoint of the sessions' service", auth)?,
            timeout,
            policy: Policy::default(),
        })
    }

    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    pub(super) fn policy(&self) -> Policy {
        self.policy
    }

    pub(super) fn has(&self, target: Target) -> bool {
        self.endpoint(target).is_some()
    }

    fn endpoint(&self, target: Target) -> Option<&Endpoint> {
        match target {
            Target::Sessions => None,
            Target::Group => self.group.as_ref(),
            Target::Auth => self.auth.as_ref(),
        }
    }

    /// Tells of one rename. The error is the reason, in words.
    pub(super) async fn call(&self, entry: &Entry) -> Result<(), String> {
        let endpoint = self.endpoint(entry.target).ok_or("it has no endpoint")?;
        let SessionChange::Rename { old, new } = &entry.change else {
            return Err("it is no rename".to_owned());
        };
        let body = if entry.target == Target::Group {
            call::group(old, new)
        } else {
            call::auth(old, new)
        };
        match timeout(self.timeout, endpoint.post(body, &entry.id)).await {
            Ok(Ok(status)) if status.is_success() => Ok(()),
            Ok(Ok(status)) if status.is_redirection() => Err(format!(
                "the endpoint answered {status}; redirects are not followed, give its own address"
            )),
            Ok(Ok(status)) => Err(format!("the endpoint answered {status}")),
            Ok(Err(reason)) => Err(reason),
            Err(_elapsed) => {
                Err(format!("the endpoint did not answer within {} s", self.timeout.as_secs_f32()))
            }
        }
    }
}

impl Endpoint {
    fn read(url: &str) -> Result<Self, String> {
        let shown: String = url.chars().take(200).collect();
        let unclear = || format!("{shown:?} is no address; write http://HOST[:PORT]/PATH");
        let uri: Uri = url.parse().map_err(|_uri| unclear())?;
        let is_secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") if cfg!(feature = "https") => true,
            Some("https") => {
                return Err(
                    "this program was built without https; build it with the feature `https`"
                        .to_owned(),
                );
            }
            _ => return Err(unclear()),
        };
        let authority = uri.authority().ok_or_else(unclear)?.as_str().to_owned();
        if authority.contains('@') {
            // What is shown of it must not be a password.
            return Err("an endpoint's address can't have a user in it".to_owned());
        }
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = match uri.port() {
            Some(port) => port.as_u16(),
            // What stands behind the host is no port.
            None if uri.host() != Some(authority.as_str()) => return Err(unclear()),
            None if is_secure => 443,
            None => 80,
        };
        if host.is_empty() {
            return Err(unclear());
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { host, port, authority, path, is_secure })
    }

    async fn post(&self, body: String, key: &str) -> Result<StatusCode, String> {
        let request = Request::post(&self.path)
            .header(HOST, &self.authority)
            .header(CONTENT_TYPE, "application/json")
            .header(USER_AGENT, "safetytwin")
            .header(IDEMPOTENCY_KEY, key)
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| format!("the call can't be written: {error}"))?;
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream = stream.map_err(|error| format!("could not connect: {error}"))?;
        if self.is_secure {
            self.encrypted(stream, request).await
        } else {
            exchange(stream, request).await
        }
    }

    #[cfg(feature = "https")]
    async fn encrypted(
        &self,
        stream: TcpStream,
        request: Request<Full<Bytes>>,
    ) -> Result<StatusCode, String> {
        use std::sync::Arc;
        let mut roots = rustls::RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS does not work here: {error}"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = rustls::pki_types::ServerName::try_from(self.host.clone())
            .map_err(|error| format!("TLS can't name the endpoint: {error}"))?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect(name, stream).await;
        exchange(stream.map_err(|error| format!("TLS failed: {error}"))?, request).await
    }

    #[cfg(not(feature = "https"))]
    async fn encrypted(
        &self,
        _stream: TcpStream,
        _request: Request<Full<Bytes>>,
    ) -> Result<StatusCode, String> {
        Err("this program was built without https".to_owned())
    }
}

/// One request on one connection. What the answer says beside its status is not read.
async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<StatusCode, String> {
    let broke = |error: hyper::Error| format!("the connection broke: {error}");
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
    let answer = pin!(sender.send_request(request));
    match select(answer, pin!(connection)).await {
        Either::Left((answer, _)) => answer.map(|answer| answer.status()).map_err(broke),
        // The end of the connection may bring the answer.
        Either::Right((_, answer)) => answer.await.map(|answer| answer.status()).map_err(broke),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        let read = |url| Endpoints::new(Some(url), None, Duration::from_secs(1));
        for url in [
            "",
            "vm-group-service",
            "vm-group-service/vms",
            "ftp://a/b",
            "http://",
            "http:///x",
            "http://a:port/",
            "http://user:hidden-word@a/",
        ] {
            let error = read(url).unwrap_err();
            assert!(!error.is_retriable(), "{url}");
            assert!(!error.to_string().contains("hidden-word"), "{error}");
        }
        let endpoints = read("http://vm-group-service/vms/group/rename-vms?a=b").unwrap();
        let endpoint = endpoints.group.unwrap();
        assert_eq!((endpoint.host.as_str(), endpoint.port), ("vm-group-service", 80));
        assert_eq!(endpoint.path, "/vms/group/rename-vms?a=b");
        let endpoint = read("http://[::1]:8081").unwrap().group.unwrap();
        assert_eq!((endpoint.host.as_str(), endpoint.port), ("::1", 8081));
        assert_eq!((endpoint.authority.as_str(), endpoint.path.as_str()), ("[::1]:8081", "/"));
        assert_eq!(read("https://a/b").is_ok(), cfg!(feature = "https"));
    }
}
