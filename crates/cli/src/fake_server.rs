//! A server for tests: answers each path as the test says, one thread for each connection.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

pub(crate) struct FakeServer {
    address: SocketAddr,
}

pub(crate) struct Reply {
    status: u16,
    media_type: &'static str,
    body: String,
    /// Whether the connection stays open when the body was sent.
    held: bool,
}

impl Reply {
    pub(crate) fn json<T: serde::Serialize>(answer: &T) -> Self {
        let body = serde_json::to_string(answer).unwrap();
        Self { status: 200, media_type: "application/json", body, held: false }
    }

    pub(crate) fn events(body: String) -> Self {
        Self { status: 200, media_type: "text/event-stream", body, held: false }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self { status, media_type: "text/plain", body: String::new(), held: false }
    }

    pub(crate) fn refused(status: u16, code: &str, message: &str, similar: &str) -> Self {
        let body = api::ErrorBody {
            status: "error".into(),
            code: code.into(),
            message: message.into(),
            details: [("similar".to_owned(), similar.to_owned())].into(),
            request_id: String::new(),
        };
        Self { status, ..Self::json(&body) }
    }

    pub(crate) fn held(self) -> Self {
        Self { held: true, ..self }
    }
}

impl FakeServer {
    /// `answer` gets the path with its query, and how often it was asked for before.
    pub(crate) fn start(answer: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(answer);
        let asked = Arc::new(Mutex::new(BTreeMap::<String, usize>::new()));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (answer, asked) = (Arc::clone(&answer), Arc::clone(&asked));
                std::thread::spawn(move || {
                    let count = |path: &str| {
                        let mut asked = asked.lock().unwrap();
                        let number = asked.entry(path.to_owned()).or_default();
                        *number += 1;
                        *number - 1
                    };
                    serve(stream, |path| answer(path, count(path)));
                });
            }
        });
        Self { address }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// One request, one answer.
fn serve(mut stream: TcpStream, answer: impl Fn(&str) -> Reply) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    let last = lines.find(String::is_empty);
    assert_eq!(last.as_deref(), Some(""), "the head ends");
    let reply = answer(&path);
    let length = if reply.media_type == "text/event-stream" {
        String::new()
    } else {
        format!("content-length: {}\r\n", reply.body.len())
    };
    let head = format!(
        "HTTP/1.1 {} x\r\ncontent-type: {}\r\n{length}connection: close\r\n\r\n",
        reply.status, reply.media_type
    );
    // In small pieces, so that events are cut anywhere.
    stream.write_all(head.as_bytes()).unwrap();
    for piece in reply.body.as_bytes().chunks(97) {
        if stream.write_all(piece).and_then(|()| stream.flush()).is_err() {
            return;
        }
    }
    if reply.held {
        // Until the other side goes.
        drop(lines.next());
    }
}
