//! Images of containers that the server hands on, for an engine that reaches no registry.
//!
//! Asked in HTTP/1.0, at a port of the machine's loopback, as the engine is at its socket: what
//! comes from the one goes to the other, and nothing is kept here.

use super::Error;
use model::spec::Image;
use std::net::Ipv4Addr;
use std::path::Path;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};

/// Bytes of a head, and of what an engine says of what it loaded.
const HEAD_MAX: u64 = 16 << 10;
const SAID_MAX: u64 = 1 << 20;

/// An image that comes in.
pub(super) struct Offered {
    bytes: u64,
    /// What the host's engine knows it by.
    id: Option<String>,
    body: BufReader<TcpStream>,
}

/// What is looked at of an answer's head.
#[derive(Default)]
struct Head {
    status: u16,
    bytes: Option<u64>,
    id: Option<String>,
}

impl Offered {
    /// Asks the server for an image; nothing where it does not hand it on.
    pub(super) async fn ask(port: u16, image: &Image) -> Result<Option<Self>, Error> {
        let failed = |source| Error::Relay { source };
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.map_err(failed)?;
        let head = format!("GET /images/{image} HTTP/1.0\r\nHost: server\r\n\r\n");
        stream.write_all(head.as_bytes()).await.map_err(failed)?;
        let mut body = BufReader::new(stream);
        let Head { status, bytes, id } = Head::read(&mut body).await.map_err(failed)?;
        match (status, bytes) {
            (200, Some(bytes)) => Ok(Some(Self { bytes, id, body })),
            (502, _) => {
                let mut said = Vec::new();
                body.take(HEAD_MAX).read_to_end(&mut said).await.map_err(failed)?;
                let what = crate::program::plain(&String::from_utf8_lossy(&said));
                Err(Error::Refused { by: "server", doing: format!("hand on {image}"), what })
            }
            _ => Ok(None),
        }
    }

    pub(super) fn id(&self) -> &Option<String> {
        &self.id
    }

    /// Gives it to the engine.
    pub(super) async fn load(self, socket: &Path) -> Result<(), Error> {
        let Self { bytes, body, .. } = self;
        let failed = |source| Error::Engine { path: socket.to_owned(), source };
        let engine = UnixStream::connect(socket).await.map_err(failed)?;
        let (from_engine, mut to_engine) = engine.into_split();
        let head = format!(
            "POST /images/load?quiet=1 HTTP/1.0\r\nHost: docker\r\nContent-Type: application/x-tar\r\nContent-Length: {bytes}\r\n\r\n"
        );
        to_engine.write_all(head.as_bytes()).await.map_err(failed)?;
        let given = tokio::io::copy(&mut body.take(bytes), &mut to_engine).await;
        if given.as_ref().is_ok_and(|all| *all < bytes) {
            return Err(Error::Relay { source: std::io::ErrorKind::UnexpectedEof.into() });
        }
        // One that refuses it may have closed before it had all; it says why.
        let mut from_engine = BufReader::new(from_engine);
        let Head { status, .. } = Head::read(&mut from_engine).await.map_err(failed)?;
        let mut said = Vec::new();
        from_engine.take(SAID_MAX).read_to_end(&mut said).await.map_err(failed)?;
        if let Some(what) = refusal(status, &said) {
            let what = crate::program::plain(&what);
            return Err(Error::Refused { by: "engine", doing: "load the image".to_owned(), what });
        }
        given.map(drop).map_err(|source| Error::Relay { source })
    }
}

impl Head {
    async fn read(answer: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Self> {
        let mut text = answer.take(HEAD_MAX);
        let mut line = String::new();
        text.read_line(&mut line).await?;
        let status = line.split(' ').nth(1).and_then(|status| status.trim().parse().ok());
        let mut head = Self { status: status.unwrap_or(0), ..Self::default() };
        loop {
            line.clear();
            text.read_line(&mut line).await?;
            let Some((name, value)) = line.trim_end().split_once(':') else { return Ok(head) };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "content-length" => head.bytes = value.parse().ok(),
                "image-id" => head.id = Some(value.to_owned()),
                _ => {}
            }
        }
    }
}

/// Why an engine did not take an image: it says so in the answer's body, also with status 200.
fn refusal(status: u16, said: &[u8]) -> Option<String> {
    let answers = serde_json::Deserializer::from_slice(said).into_iter::<serde_json::Value>();
    let text = |answer: serde_json::Value| {
        let why = answer.get("error").or_else(|| answer.get("message"))?;
        why.as_str().map(str::to_owned)
    };
    let why = answers.map_while(Result::ok).find_map(text);
    match (why, status) {
        (Some(why), _) => Some(why),
        (None, 200) => None,
        (None, status) => Some(format!("it answered with status {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, UnixListener};

    #[test]
    fn what_an_engine_says_of_what_it_loaded() {
        let check = |status, said: &str, expected: Option<&str>| {
            assert_eq!(refusal(status, said.as_bytes()).as_deref(), expected, "{said}");
        };
        check(200, "{\"stream\":\"Loaded image: a:1\\n\"}\n", None);
        check(200, "", None);
        check(
            200,
            "{\"stream\":\"x\"}{\"errorDetail\":{},\"error\":\"no space\"}",
            Some("no space"),
        );
        check(500, "{\"message\":\"invalid tar header\"}", Some("invalid tar header"));
        check(0, "nonsense", Some("it answered with status 0"));
    }

    /// Answers the first who connects, when it has said all it wants to.
    async fn relay(answer: &'static [u8]) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        #[expect(clippy::disallowed_methods, reason = "ends with its one connection")]
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 1000];
            let count = stream.read(&mut head).await.unwrap();
            stream.write_all(answer).await.unwrap();
            String::from_utf8(head[..count].to_vec()).unwrap()
        });
        (port, asked)
    }

    #[tokio::test]
    async fn an_image_goes_from_the_server_to_the_engine() {
        let (port, asked) = relay(b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nimage").await;
        let image: Image = "lab/x:1".parse().unwrap();
        let offered = Offered::ask(port, &image).await.unwrap().unwrap();
        assert!(asked.await.unwrap().starts_with("GET /images/lab/x:1 HTTP/1.0\r\n"));
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("docker");
        let engine = UnixListener::bind(&socket).unwrap();
        let answers = async {
            let (mut stream, _) = engine.accept().await.unwrap();
            let mut loaded = Vec::new();
            while !loaded.ends_with(b"image") {
                stream.read_buf(&mut loaded).await.unwrap();
            }
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n{\"stream\":\"x\"}").await.unwrap();
            String::from_utf8(loaded).unwrap()
        };
        let (loaded, asked) = tokio::join!(offered.load(&socket), answers);
        loaded.unwrap();
        assert!(asked.starts_with("POST /images/load?quiet=1 HTTP/1.0\r\n"));
        assert!(asked.contains("Content-Length: 5\r\n"));
    }

    #[tokio::test]
    async fn what_is_not_handed_on_is_told_apart_from_what_failed() {
        let image: Image = "x".parse().unwrap();
        for other in [&b"HTTP/1.0 404 Not Found\r\n\r\nno"[..], b"HTTP/1.0 403 Forbidden\r\n\r\n"] {
            let (port, _asked) = relay(other).await;
            assert!(Offered::ask(port, &image).await.unwrap().is_none());
        }
        let (port, _asked) = relay(b"HTTP/1.0 502 Bad Gateway\r\n\r\nit broke").await;
        let error = Offered::ask(port, &image).await.err().unwrap().to_string();
        assert_eq!(error, "the server refused to hand on x: it broke");
        // Cut short on its way.
        let (port, _asked) = relay(b"HTTP/1.0 200 OK\r\nContent-Length: 99\r\n\r\nim").await;
        let offered = Offered::ask(port, &image).await.unwrap().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("docker");
        let engine = UnixListener::bind(&socket).unwrap();
        let answers = async {
            let (mut stream, _) = engine.accept().await.unwrap();
            let mut loaded = Vec::new();
            stream.read_to_end(&mut loaded).await.unwrap();
            assert!(loaded.ends_with(b"\r\n\r\nim"));
        };
        let (loaded, ()) = tokio::join!(offered.load(&socket), answers);
        let error = loaded.unwrap_err().to_string();
        assert_eq!(error, "the image broke off on its way from the server");
    }
}
