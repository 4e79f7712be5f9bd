//! One GET of a connection, and its answer.
//!
//! # Invariants
//! - A request has a limit of bytes and of time, and so has its answer.
//! - With a token, who does not have it is told nothing.

use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Bytes of a request.
const HEAD_MAX: usize = 8 * 1024;
const DEADLINE: Duration = Duration::from_secs(10);
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How figures are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Prometheus,
    OpenMetrics,
}

/// A connection, and what has to be known to be answered.
pub(super) struct Asked<'t> {
    pub(super) stream: TcpStream,
    pub(super) token: Option<&'t str>,
}

/// What a request comes to.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    Page(Form),
    Refused(&'static str, &'static str),
}

impl Asked<'_> {
    pub(super) async fn answer<F>(mut self, page: impl FnOnce(Form) -> F) -> io::Result<()>
    where
        F: Future<Output = String>,
    {
        let head = tokio::time::timeout(DEADLINE, head(&mut self.stream)).await??;
        let (status, kind, body) = match request(&head, self.token) {
            Request::Page(form) => {
                let kind = match form {
                    Form::Prometheus => PROMETHEUS,
                    Form::OpenMetrics => OPEN_METRICS,
                };
                ("200 OK", kind, page(form).await)
            }
            Request::Refused(status, why) => (status, "text/plain", format!("{why}\n")),
        };
        let challenge = if status.starts_with("401") { "WWW-Authenticate: Bearer\r\n" } else { "" };
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
             {challenge}Connection: close\r\n\r\n{body}"
        );
        let write = async {
            self.stream.write_all(answer.as_bytes()).await?;
            self.stream.shutdown().await
        };
        tokio::time::timeout(DEADLINE, write).await?
    }
}

/// Everything up to the empty line.
async fn head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    let mut part = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = stream.read(&mut part).await?;
        if count == 0 || head.len() + count > HEAD_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.extend_from_slice(part.get(..count).unwrap_or_default());
    }
    Ok(head)
}

fn request(head: &[u8], token: Option<&str>) -> Request {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (mut form, mut given) = (Form::Prometheus, None);
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { continue };
        if name.eq_ignore_ascii_case("accept") && value.contains("application/openmetrics-text") {
            form = Form::OpenMetrics;
        } else if name.eq_ignore_ascii_case("authorization") {
            given = value.trim().strip_prefix("Bearer ").map(str::trim);
        }
    }
    if token.is_some_and(|token| !given.is_some_and(|given| is_same(given, token))) {
        return Request::Refused("401 Unauthorized", "this needs the agent's metrics token");
    }
    match (method, target.split('?').next().unwrap_or_default()) {
        ("GET", "/metrics") => Request::Page(form),
        (_, "/metrics") => Request::Refused("405 Method Not Allowed", "ask by GET"),
        _ => Request::Refused("404 Not Found", "there is /metrics, and nothing else"),
    }
}

/// Takes as long wherever they differ.
fn is_same(given: &str, token: &str) -> bool {
    let pairs = given.bytes().zip(token.bytes());
    given.len() == token.len() && pairs.fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn anything_is_asked(bytes: Vec<u8>, text in "(GET|/metrics|HTTP/1.1|\r\n|Accept|Authorization|Bearer|:| ){0,12}") {
            request(&bytes, None);
            request(text.as_bytes(), Some("secret"));
        }
    }

    #[test]
    fn requests() {
        let check = |head: &str, token: Option<&str>, expected: &str| {
            let head = head.replace('\n', "\r\n");
            let told = match request(head.as_bytes(), token) {
                Request::Page(form) => format!("{form:?}"),
                Request::Refused(status, _) => status.to_owned(),
            };
            assert!(told.starts_with(expected), "{head}: {told}");
        };
        check("GET /metrics HTTP/1.1\n\n", None, "Prometheus");
        check("GET /metrics?x=1 HTTP/1.1\n\n", None, "Prometheus");
        let accept =
            "GET /metrics HTTP/1.1\nAccept: application/openmetrics-text;version=1.0.0\n\n";
        check(accept, None, "OpenMetrics");
        check("POST /metrics HTTP/1.1\n\n", None, "405");
        check("GET / HTTP/1.1\n\n", None, "404");
        check("\n\n", None, "404");
        let with =
            |token: &str| format!("GET /metrics HTTP/1.1\nauthorization: Bearer {token}\n\n");
        check(&with("secret"), Some("secret"), "Prometheus");
        for wrong in ["secreT", "secret1", "", "secre"] {
            check(&with(wrong), Some("secret"), "401");
        }
        check("GET /metrics HTTP/1.1\n\n", Some("secret"), "401");
        check("GET / HTTP/1.1\n\n", Some("secret"), "401");
    }
}
