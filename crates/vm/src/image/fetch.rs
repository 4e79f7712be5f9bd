//! Brings a disk image from elsewhere into a file, counting and hashing on the way.
//!
//! The workspace's own small HTTP client (hyper) is used and not one more: what is needed is
//! one GET that can be dropped at any moment, which blocking clients can't. TLS is behind the
//! feature `https`, with the machine's certificates. Proxies are not known here.
//!
//! # Invariants
//! - A file that came whole has the length that was announced; else it is an error.
//! - Never from https to http, and at most five redirects.

use super::names::ImageId;
use super::{Error, manifest};
use crate::job::Job;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HOST, LOCATION, USER_AGENT};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use sha2::{Digest as _, Sha256, Sha512};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const REDIRECTS: usize = 5;
/// For a connection, an answer's head, and each piece of its body.
const PATIENCE: Duration = Duration::from_secs(60);
/// Progress is told at most this often.
const TOLD_BYTES: u64 = 8 << 20;
/// The longest file taken: 256 GiB.
const LIMIT_BYTES: u64 = 256 << 30;

/// Where a disk image is. Parsed from a path, or a URL of file, http or https.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    File(PathBuf),
    Url(Box<Uri>),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a path nor a URL of http, https or file")]
pub struct SourceError(String);

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let wrong = || SourceError(text.chars().take(200).collect());
        if text.is_empty() || text.contains('\0') {
            return Err(wrong());
        }
        if let Some(path) = text.strip_prefix("file://") {
            let path = path.strip_prefix("localhost").unwrap_or(path);
            return match decode(path) {
                Some(path) if path.starts_with('/') => Ok(Self::File(path.into())),
                _ => Err(wrong()),
            };
        }
        if !text.contains("://") {
            return Ok(Self::File(text.into()));
        }
        let uri: Uri = text.parse().map_err(|_invalid| wrong())?;
        match uri.scheme_str() {
            Some("http" | "https") if uri.host().is_some() => Ok(Self::Url(Box::new(uri))),
            _ => Err(wrong()),
        }
    }
}

/// Without user, password and query, which may be secret.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Url(uri) => f.write_str(&public(uri)),
        }
    }
}

fn public(uri: &Uri) -> String {
    let port = uri.port().map(|port| format!(":{port}")).unwrap_or_default();
    let scheme = uri.scheme_str().unwrap_or_default();
    format!("{scheme}://{}{port}{}", uri.host().unwrap_or_default(), uri.path())
}

/// `%20` and the like; `None` when it is no text afterwards.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first == b'%' {
            let (digits, tail) = tail.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

/// What the publisher says an image's digest is: `sha256:…`, `sha512:…`, or the digits alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checksum {
    Sha256(String),
    Sha512(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no checksum: 64 hexadecimal digits of SHA-256 or 128 of SHA-512 are")]
pub struct ChecksumError(String);

impl FromStr for Checksum {
    type Err = ChecksumError;

    fn from_str(text: &str) -> Result<Self, ChecksumError> {
        let digits = text.split_once(':').map_or(text, |(_, digits)| digits).to_ascii_lowercase();
        let kind = text.split_once(':').map(|(kind, _)| kind);
        let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        match (kind, digits.len()) {
            (None | Some("sha256"), 64) if plain => Ok(Self::Sha256(digits)),
            (None | Some("sha512"), 128) if plain => Ok(Self::Sha512(digits)),
            _ => Err(ChecksumError(text.chars().take(150).collect())),
        }
    }
}

/// The sums that are kept while a file passes.
struct Sums {
    content: blake3::Hasher,
    published: Option<Published>,
}

enum Published {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Sums {
    fn new(checksum: Option<&Checksum>) -> Self {
        let published = checksum.map(|checksum| match checksum {
            Checksum::Sha256(_) => Published::Sha256(Sha256::new()),
            Checksum::Sha512(_) => Published::Sha512(Sha512::new()),
        });
        Self { content: blake3::Hasher::new(), published }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.content.update(bytes);
        match &mut self.published {
            Some(Published::Sha256(sum)) => sum.update(bytes),
            Some(Published::Sha512(sum)) => sum.update(bytes),
            None => {}
        }
    }

    fn finish(self, source: &Source, checksum: Option<&Checksum>) -> Result<ImageId, Error> {
        let found = match self.published {
            Some(Published::Sha256(sum)) => hex(&sum.finalize()),
            Some(Published::Sha512(sum)) => hex(&sum.finalize()),
            None => String::new(),
        };
        match checksum {
            Some(Checksum::Sha256(expected)) => equal(source, "sha256", expected, found)?,
            Some(Checksum::Sha512(expected)) => equal(source, "sha512", expected, found)?,
            None => {}
        }
        Ok(manifest::id_of(&self.content.finalize()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn equal(
    source: &Source,
    algorithm: &'static str,
    expected: &str,
    found: String,
) -> Result<(), Error> {
    if expected == found {
        return Ok(());
    }
    Err(Error::Checksum {
        what: source.to_string(),
        algorithm,
        expected: expected.to_owned(),
        found,
    })
}

/// Copies the source into a new file and returns the digest of what came.
pub(super) async fn fetch(
    job: &Job,
    source: &Source,
    checksum: Option<&Checksum>,
    to: &Path,
) -> Result<ImageId, Error> {
    let mut sums = Sums::new(checksum);
    let work = async {
        let mut out = File::create_new(to).await.map_err(Error::file("make", to))?;
        match source {
            Source::File(path) => copy(job, path, &mut out, to, &mut sums).await?,
            Source::Url(uri) => download(job, uri, &mut out, to, &mut sums).await?,
        }
        out.flush().await.map_err(Error::file("write", to))
    };
    job.within(work).await?;
    sums.finish(source, checksum)
}

/// Bytes on their way into a file.
struct Sink<'a> {
    job: &'a Job,
    out: &'a mut File,
    to: &'a Path,
    sums: &'a mut Sums,
    done: u64,
    told: u64,
    total: Option<u64>,
}

impl Sink<'_> {
    async fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.sums.update(bytes);
        self.out.write_all(bytes).await.map_err(Error::file("write", self.to))?;
        self.done += bytes.len() as u64;
        if self.done - self.told >= TOLD_BYTES || Some(self.done) == self.total {
            self.told = self.done;
            self.job.bytes(self.done, self.total);
        }
        Ok(())
    }
}

async fn copy(
    job: &Job,
    from: &Path,
    out: &mut File,
    to: &Path,
    sums: &mut Sums,
) -> Result<(), Error> {
    let mut file = File::open(from).await.map_err(Error::file("open", from))?;
    let found = file.metadata().await.map_err(Error::file("look at", from))?;
    if !found.is_file() {
        let what = "it is no regular file".to_owned();
        return Err(Error::NotAnImage { path: from.to_owned(), what });
    }
    let mut sink = Sink { job, out, to, sums, done: 0, told: 0, total: Some(found.len()) };
    let mut buffer = vec![0; 1 << 20];
    loop {
        let length = file.read(&mut buffer).await.map_err(Error::file("read", from))?;
        if length == 0 {
            return Ok(());
        }
        sink.put(buffer.get(..length).unwrap_or_default()).await?;
    }
}

async fn download(
    job: &Job,
    uri: &Uri,
    out: &mut File,
    to: &Path,
    sums: &mut Sums,
) -> Result<(), Error> {
    let failed = |what: String| Error::Fetch { url: public(uri), what };
    let response = answer(uri).await.map_err(failed)?;
    let length = response.headers().get("content-length");
    let total = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if total.is_some_and(|total| total > LIMIT_BYTES) {
        return Err(failed("it is larger than the 256 GiB allowed".to_owned()));
    }
    let mut body = response.into_body();
    let mut sink = Sink { job, out, to, sums, done: 0, told: 0, total };
    loop {
        let frame = timeout(PATIENCE, body.frame()).await;
        let frame = frame.map_err(|_elapsed| failed("nothing comes any more".to_owned()))?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| failed(format!("it broke off: {error}")))?;
        if let Some(bytes) = frame.data_ref() {
            sink.put(bytes).await?;
        }
        if sink.done > LIMIT_BYTES {
            return Err(failed("it is larger than the 256 GiB allowed".to_owned()));
        }
    }
    match total {
        Some(total) if total != sink.done => {
            Err(failed(format!("{} of {total} bytes came", sink.done)))
        }
        _ => Ok(()),
    }
}

/// The answer that has the content, after redirects.
async fn answer(uri: &Uri) -> Result<Response<Incoming>, String> {
    let mut uri = uri.clone();
    for _ in 0..=REDIRECTS {
        let response = timeout(PATIENCE, request(&uri)).await;
        let response = response.map_err(|_elapsed| "no answer came".to_owned())??;
        if !response.status().is_redirection() {
            return match response.status().as_u16() {
                200 => Ok(response),
                status => Err(format!("the server answered {status}")),
            };
        }
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        uri = redirect(&uri, location.ok_or("a redirect to nowhere")?)?;
    }
    Err("too many redirects".to_owned())
}

fn redirect(from: &Uri, location: &str) -> Result<Uri, String> {
    let absolute = if location.starts_with('/') && !location.starts_with("//") {
        let authority = from.authority().map_or("", |authority| authority.as_str());
        format!("{}://{authority}{location}", from.scheme_str().unwrap_or("http"))
    } else {
        location.to_owned()
    };
    match absolute.parse::<Source>() {
        Ok(Source::Url(to))
            if from.scheme_str() == Some("https") && to.scheme_str() != Some("https") =>
        {
            Err("a redirect from https to http is not followed".to_owned())
        }
        Ok(Source::Url(to)) => Ok(*to),
        _ => Err("a redirect that is no URL of http or https".to_owned()),
    }
}

async fn request(uri: &Uri) -> Result<Response<Incoming>, String> {
    let host = uri.host().unwrap_or_default();
    let name = host.trim_start_matches('[').trim_end_matches(']');
    let secure = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let stream = TcpStream::connect((name, port)).await;
    let stream = stream.map_err(|error| format!("could not connect: {error}"))?;
    if secure { encrypted(uri, name, stream).await } else { exchange(uri, stream).await }
}

#[cfg(feature = "https")]
async fn encrypted(uri: &Uri, name: &str, stream: TcpStream) -> Result<Response<Incoming>, String> {
    use std::sync::Arc;
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS does not work here: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = rustls::pki_types::ServerName::try_from(name.to_owned())
        .map_err(|error| format!("TLS can't name the server: {error}"))?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(name, stream).await;
    exchange(uri, stream.map_err(|error| format!("TLS failed: {error}"))?).await
}

#[cfg(not(feature = "https"))]
async fn encrypted(
    _uri: &Uri,
    _name: &str,
    _plain: TcpStream,
) -> Result<Response<Incoming>, String> {
    Err("this program was built without https; fetch the file and name its path".to_owned())
}

/// One request on one connection. The connection is driven by a task that ends with the
/// response's body, or when that is dropped.
async fn exchange(
    uri: &Uri,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<Response<Incoming>, String> {
    let broken = |error: hyper::Error| format!("the connection failed: {error}");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path)
        .header(HOST, host.rsplit('@').next().unwrap_or_default())
        .header(USER_AGENT, concat!("safetytwin/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("the request can't be made: {error}"))?;
    crate::job::drive(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended");
        }
    });
    sender.send_request(request).await.map_err(broken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources() {
        let shown = |text: &str| text.parse::<Source>().map(|source| source.to_string());
        assert_eq!(shown("/a/b.qcow2").unwrap(), "/a/b.qcow2");
        assert_eq!(shown("json:{}").unwrap(), "json:{}");
        assert_eq!(shown("file:///a%20b").unwrap(), "/a b");
        assert_eq!(shown("https://u:p@host:1/x?token=1").unwrap(), "https://host:1/x");
        for text in
            ["", "ftp://host/x", "http://", "file://host/x", "file:///%zz", "nbd://x", "a\0"]
        {
            assert!(shown(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn checksums() {
        assert!("ab".repeat(32).parse::<Checksum>().is_ok());
        assert!(format!("sha512:{}", "AB".repeat(64)).parse::<Checksum>().is_ok());
        for text in
            ["", "sha256:", "md5:00", &"g".repeat(64), &format!("sha256:{}", "a".repeat(128))]
        {
            assert!(text.parse::<Checksum>().is_err(), "{text}");
        }
    }

    #[test]
    fn redirects() {
        let from: Uri = "https://a/x".parse().unwrap();
        assert_eq!(redirect(&from, "/y").unwrap().to_string(), "https://a/y");
        assert!(redirect(&from, "http://a/y").is_err());
        assert!(redirect(&from, "file:///etc/passwd").is_err());
        assert!(redirect(&from, "//b/y").is_err());
    }
}
