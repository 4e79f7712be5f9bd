//! Runs and images over a real socket: logs from the first line to the exit code, read again
//! from any record.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of a test")]

use api::client::Client;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use model::Time;
use serde_json::{Value as Json, json};
use server::Server;
use server::config::File;
use server::runs::{Cause, Failure, Handle, Kind, New, RunId, Runs, Stream};
use server::tokens::{Role, Tokens};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

struct Bench {
    client: Client,
    runs: Runs,
    address: SocketAddr,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl Bench {
    async fn start(dir: &Path, require_tokens: bool) -> Self {
        let file = File {
            data_dir: Some(dir.to_owned()),
            listen: Some(vec!["127.0.0.1:0".into()]),
            require_tokens: Some(require_tokens),
            ..File::default()
        };
        let server = Server::bind(file.check().unwrap()).await.unwrap();
        let address = server.addresses()[0];
        let runs = server.runs().clone();
        let stop = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "ended by Bench::end")]
        let running = tokio::spawn(server.run(stop.clone()));
        let client = Client::new(&format!("http://{address}"), None).unwrap();
        Self { client, runs, address, stop, running }
    }

    async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }

    async fn ask(&mut self, method: Method, path: &str, body: &Json) -> (StatusCode, Json) {
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let response = self.client.open(method, path, "", body).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or(Json::Null))
    }

    async fn get(&mut self, path: &str) -> (StatusCode, Json) {
        self.ask(Method::GET, path, &Json::Null).await
    }

    /// Asks until the answer fits.
    async fn until(&mut self, path: &str, fits: impl Fn(&Json) -> bool) -> Json {
        let asking = async {
            loop {
                let (_, answer) = self.get(path).await;
                if fits(&answer) {
                    return answer;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), asking).await.expect("in time")
    }

    /// One request with these headers; everything that is answered until the connection ends.
    async fn raw(&self, path: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let reading = stream.read_to_end(&mut answer);
        tokio::time::timeout(Duration::from_secs(30), reading).await.expect("it ends").unwrap();
        String::from_utf8(answer).unwrap()
    }

    async fn socket(&self, path: &str, origin: &str) -> (String, TcpStream) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\norigin: {origin}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            head.push(char::from(stream.read_u8().await.unwrap()));
        }
        (head.lines().next().unwrap().to_owned(), stream)
    }
}

/// What a server's messages say, until it closes.
async fn messages(mut stream: TcpStream) -> Vec<Json> {
    let mut messages = Vec::new();
    loop {
        let (kind, short) = (stream.read_u8().await.unwrap(), stream.read_u8().await.unwrap());
        let length = match short {
            126 => usize::from(stream.read_u16().await.unwrap()),
            short => usize::from(short),
        };
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        match kind & 0xf {
            1 => messages.push(serde_json::from_slice(&body).unwrap()),
            8 => return messages,
            _ => {}
        }
    }
}

fn new(name: &str) -> New {
    let subject = format!("image:{name}").parse().unwrap();
    New { kind: Kind::ImageBuild, subject, cause: Cause::Local }
}

/// Says so many lines at once, and ends when cancelled.
fn talk(runs: &Runs, name: &str, lines: usize) -> RunId {
    let work = move |handle: Handle| async move {
        for n in 0..lines {
            handle.line(Stream::Stdout, &format!("line {n}"));
        }
        handle.cancelled().cancelled().await;
        Err(Failure::new("told to"))
    };
    runs.start(new(name), work).unwrap()
}

fn ids(events: &str) -> Vec<u64> {
    events.lines().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()).collect()
}

#[tokio::test]
async fn a_run_is_listed_read_and_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path(), false).await;
    let id = talk(&bench.runs, "a", 3);
    let (status, busy) = bench.ask(Method::POST, "/api/v1/images", &json!({"name": "a"})).await;
    assert_eq!((status.as_u16(), &busy["code"]), (409, &json!("run_is_on")));
    assert_eq!(busy["details"]["run"], json!(id.to_string()));
    let path = format!("/api/v1/runs/{id}");
    let run = bench.until(&path, |run| run["records"] == 3).await;
    assert_eq!((&run["state"], &run["kind"]), (&json!("running"), &json!("image_build")));
    assert_eq!((&run["subject"], &run["cause"]), (&json!("image:a"), &json!({"by": "local"})));
    let so_far = bench.raw(&format!("{path}/log?follow=false&from=1"), "").await;
    assert_eq!(ids(&so_far), [1, 2]);
    let page = bench.raw(&format!("{path}/log?limit=2"), "accept: application/json\r\n").await;
    let page: Json = serde_json::from_str(page.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!((page["records"].as_array().unwrap().len(), &page["next"]), (2, &json!(2)));
    assert_eq!(page["records"][1]["text"], "line 1");

    let log = format!("{path}/log");
    let follow = bench.raw(&log, "last-event-id: 0\r\n");
    let (_, socket) = bench.socket(&format!("{path}/ws?from=2"), "http://localhost").await;
    let cancel = bench.runs.clone();
    let (events, said, cancelled) = tokio::join!(follow, messages(socket), async {
        tokio::task::yield_now().await;
        cancel.cancel(id)
    });
    assert!(cancelled.is_ok());
    assert_eq!(ids(&events), [1, 2, 3]);
    assert!(events.contains("event: record\ndata: {\"offset\":3,"), "{events}");
    assert_eq!(said.len(), 2);
    assert_eq!(
        (&said[1]["record"], &said[1]["state"], &said[1]["exit_code"]),
        (&json!("end"), &json!("cancelled"), &json!(6))
    );
    // An EventSource that comes again is told that this was all.
    let again = bench.raw(&format!("{path}/log"), "last-event-id: 3\r\n").await;
    assert!(again.starts_with("HTTP/1.1 204"), "{again}");
    let (status, over) = bench.ask(Method::POST, &format!("{path}/cancel"), &Json::Null).await;
    assert_eq!((status.as_u16(), &over["code"]), (409, &json!("run_is_over")));
    bench.end().await;
}

#[tokio::test]
async fn lists_are_paged_and_filtered() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path(), false).await;
    for name in ["a", "b", "c"] {
        bench.runs.start(new(name), async |_| Ok(())).unwrap();
    }
    let three = |list: &Json| list["runs"].as_array().unwrap().len() == 3;
    bench.until("/api/v1/runs?state=succeeded", three).await;
    let (_, first) = bench.get("/api/v1/runs?limit=2").await;
    assert_eq!(first["runs"][0]["subject"], "image:c");
    let next = first["next"].as_str().unwrap().to_owned();
    let (_, second) = bench.get(&format!("/api/v1/runs?limit=2&before={next}")).await;
    assert_eq!((second["runs"].as_array().unwrap().len(), &second["next"]), (1, &Json::Null));
    let (_, one) = bench.get("/api/v1/runs?subject=image:b&kind=image_build").await;
    assert_eq!(one["runs"].as_array().unwrap().len(), 1);
    for (path, status, code) in [
        ("/api/v1/runs?stat=x", 400, "bad_query"),
        ("/api/v1/runs?state=done", 400, "bad_query"),
        ("/api/v1/runs?subject=x", 400, "bad_subject"),
        ("/api/v1/runs/..%2f..%2fetc", 404, "unknown_run"),
        ("/api/v1/runs/01a1fb8b-ad50-71d5-aa7b-8f9fd442c36b", 404, "unknown_run"),
        ("/api/v1/runs/01a1fb8b-ad50-71d5-aa7b-8f9fd442c36b/log", 404, "unknown_run"),
        (&format!("/api/v1/runs/{next}/log?from=9"), 410, "ahead_of_log"),
    ] {
        let (got, answer) = bench.get(path).await;
        assert_eq!((got.as_u16(), &answer["code"]), (status, &json!(code)), "{path}");
    }
    bench.end().await;
}

#[tokio::test]
async fn foreign_pages_get_no_socket_and_stopping_ends_streams() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::start(dir.path(), false).await;
    let id = talk(&bench.runs, "a", 1);
    let path = format!("/api/v1/runs/{id}/ws");
    let (status, _) = bench.socket(&path, "https://evil.example").await;
    assert_eq!(status, "HTTP/1.1 403 Forbidden");
    let (status, socket) = bench.socket(&path, "http://127.0.0.1:1").await;
    assert_eq!(status, "HTTP/1.1 101 Switching Protocols");
    let (said, ()) = tokio::join!(messages(socket), bench.end());
    assert_eq!((&said[1]["state"], &said[1]["exit_code"]), (&json!("interrupted"), &json!(7)));
}

#[tokio::test]
async fn an_image_is_imported_listed_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk.raw");
    // One partition, of one sector.
    let mut content = vec![0; 1 << 20];
    (content[450], content[454], content[458]) = (0x83, 1, 1);
    content[510..512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(&disk, content).unwrap();
    let mut bench = Bench::start(&dir.path().join("data"), false).await;
    let asked = json!({"name": "small", "from": disk});
    let (status, begun) = bench.ask(Method::POST, "/api/v1/images", &asked).await;
    assert_eq!(status, 202, "{begun}");
    let run = begun["run"].as_str().unwrap().to_owned();
    let log = bench.raw(&format!("/api/v1/runs/{run}/log"), "").await;
    assert!(log.contains("\"record\":\"step\",\"text\":\"Converting the image\""), "{log}");
    assert!(log.contains("\"state\":\"succeeded\",\"exit_code\":0"), "{log}");
    let (_, images) = bench.get("/api/v1/images").await;
    let image = &images["images"][0];
    assert_eq!((&image["names"], &image["disk_bytes"]), (&json!(["small"]), &json!(1 << 20)));
    let id = image["id"].as_str().unwrap().to_owned();
    assert_eq!(bench.get("/api/v1/images/small").await.1["id"], json!(id));
    assert_eq!(bench.ask(Method::DELETE, "/api/v1/images/small", &Json::Null).await.0, 204);
    assert_eq!(bench.get(&format!("/api/v1/images/{id}")).await.1["code"], "unknown_image");

    let missing = json!({"name": "small", "from": dir.path().join("nothing")});
    let (_, begun) = bench.ask(Method::POST, "/api/v1/images", &missing).await;
    let log = format!("/api/v1/runs/{}/log", begun["run"].as_str().unwrap());
    assert!(bench.raw(&log, "").await.contains("\"state\":\"failed\",\"exit_code\":1"));
    bench.end().await;
}

#[tokio::test]
async fn what_is_asked_for_is_checked_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path(), false).await;
    for (asked, code) in [
        (json!({"name": "../x"}), "bad_image"),
        (json!({"name": "x", "suite": "-o"}), "bad_image"),
        (json!({"name": "x", "packages": ["a;b"]}), "bad_image"),
        (json!({"name": "x", "mirror": "ftp://x y"}), "bad_image"),
        (json!({"name": "x", "from": "disk.img"}), "bad_image"),
        (json!({"name": "x", "from": "/x", "suite": "sid"}), "bad_image"),
        (json!({"name": "x", "checksum": "sha256:00"}), "bad_image"),
        (json!({"name": "x", "nmae": "y"}), "bad_json"),
        (json!([1]), "bad_json"),
    ] {
        let (status, answer) = bench.ask(Method::POST, "/api/v1/images", &asked).await;
        assert_eq!((status.as_u16(), &answer["code"]), (400, &json!(code)), "{asked} {answer}");
    }
    assert!(bench.get("/api/v1/runs").await.1["runs"].as_array().unwrap().is_empty());
    bench.end().await;
}

#[tokio::test]
async fn only_admins_have_the_server_read_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = Tokens::open(dir.path()).unwrap();
    let make = |role| tokens.create(role, "laptop", None, Time(1)).unwrap();
    let (viewer, operator, admin) = (make(Role::Viewer), make(Role::Operator), make(Role::Admin));
    let mut bench = Bench::start(dir.path(), true).await;
    let url = format!("http://{}", bench.address);
    let asked = json!({"name": "x", "from": "/nothing"});
    let mirror = json!({"name": "x", "mirror": "file:/srv"});
    for (token, body, expected) in [
        (&viewer, &asked, 403),
        (&operator, &asked, 403),
        (&operator, &mirror, 403),
        (&admin, &asked, 202),
    ] {
        bench.client = Client::new(&url, Some(token.text.clone())).unwrap();
        assert_eq!(bench.ask(Method::POST, "/api/v1/images", body).await.0, expected);
    }
    let (_, runs) = bench.get("/api/v1/runs").await;
    let cause = json!({"by": "token", "id": admin.token.id, "name": "laptop"});
    assert_eq!(runs["runs"][0]["cause"], cause);
    bench.client = Client::new(&url, Some(viewer.text)).unwrap();
    assert_eq!(bench.get("/api/v1/runs").await.0, 200);
    let id = runs["runs"][0]["id"].as_str().unwrap();
    let cancel = format!("/api/v1/runs/{id}/cancel");
    assert_eq!(bench.ask(Method::POST, &cancel, &Json::Null).await.0, 403);
    bench.end().await;
}
