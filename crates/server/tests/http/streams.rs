//! Events as they happen: resumed, waited for, ended with their token.

use super::{Bench, facts, follows, item, keyframe, patch, with};
use api::client::Client;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Method;
use model::{Kind, Time};
use serde_json::{Value as Json, json};
use server::config::File;

#[tokio::test]
async fn a_live_stream_resumes_without_loss() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    bench.send("web01", vec![keyframe(1, 1, "s0")]).await;
    let mut reader = Client::new(&bench.url, None).unwrap();
    let mut seen = Vec::new();
    for round in 0..4_u64 {
        let from = seen.last().copied().unwrap_or(0_u64);
        let response = reader
            .open(Method::GET, &format!("/api/v1/hosts/web01/events?from={from}"), "", Bytes::new())
            .await
            .unwrap();
        let mut body = response.into_body();
        let first = round * 5 + 1;
        for n in first..first + 5 {
            let (before, after) = (format!("s{}", n - 1), format!("s{n}"));
            assert_eq!(
                bench
                    .send("web01", vec![patch(n + 1, i64::try_from(n).unwrap(), &before, &after)])
                    .await
                    .0,
                200
            );
        }
        // The reader leaves in the middle of each round, and comes back where it was.
        let stop = first + 3;
        let mut text = String::new();
        while seen.last().copied().unwrap_or(0) < stop {
            let frame = body.frame().await.unwrap().unwrap();
            text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
            while let Some(end) = text.find("\n\n") {
                let event: String = text.drain(..end + 2).collect();
                let id = event.lines().find_map(|line| line.strip_prefix("id: "));
                let id = id.and_then(|id| id.split_once('-')?.0.parse::<u64>().ok());
                seen.extend(id.filter(|id| *id <= stop));
            }
        }
        reader = Client::new(&bench.url, None).unwrap();
    }
    let last = *seen.last().unwrap();
    assert_eq!(seen, (1..=last).collect::<Vec<_>>());
    bench.end().await;
}

#[tokio::test]
async fn a_resumed_stream_begins_a_new_life_at_its_first_version() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    bench.send("web01", vec![keyframe(1, 1, "s0"), patch(2, 2, "s0", "s1")]).await;
    let url = bench.url.clone();
    let resumed = async |id: &str, wanted: &str| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let address = url.strip_prefix("http://").unwrap();
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!(
            "GET /api/v1/hosts/web01/events HTTP/1.1\r\nHost: {address}\r\nLast-Event-ID: {id}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let (mut text, mut buffer) = (String::new(), [0; 4096]);
        while !text.contains(wanted) {
            let length = stream.read(&mut buffer).await.unwrap();
            assert!(length > 0, "{text}");
            text.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
        }
        text.lines().filter_map(|line| line.strip_prefix("id: ")).map(str::to_owned).collect()
    };
    let ids: Vec<String> = resumed("1", "\n\n").await;
    let life = ids[0].strip_prefix("2-").unwrap().to_owned();
    let ids: Vec<String> = resumed(&format!("1-{life}"), "\n\n").await;
    assert_eq!(ids, [format!("2-{life}")]);
    let _: Vec<String> = resumed(&format!("3-{life}"), "ahead_of_history").await;
    let _: Vec<String> = resumed("1-x", "bad_query").await;
    assert_eq!(bench.ask(Method::DELETE, "/api/v1/hosts/web01", "", "").await.0, 204);
    let again = vec![keyframe(1, 5, "t0"), patch(2, 6, "t0", "t1"), patch(3, 7, "t1", "t2")];
    bench.send("web01", again).await;
    let ids: Vec<String> = resumed(&format!("2-{life}"), "id: 3-").await;
    assert_eq!(ids.len(), 3, "{ids:?}");
    assert!(ids[0].starts_with("1-") && !ids[0].ends_with(&life), "{ids:?} {life}");
    let ids: Vec<String> = resumed("2", "id: 3-").await;
    assert_eq!(ids.len(), 1, "{ids:?}");
    bench.end().await;
}

#[tokio::test]
async fn a_socket_resumes_in_the_life_it_was_in() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    bench.send("web01", vec![keyframe(1, 1, "s0"), patch(2, 2, "s0", "s1")]).await;
    let address = bench.url.strip_prefix("http://").unwrap().to_owned();
    // The ids of messages, until there are so many.
    let read = async |from: &str, count: usize| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        let request = format!(
            "GET /api/v1/hosts/web01/ws?from={from} HTTP/1.1\r\nHost: {address}\r\n\
             Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let (mut told, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let text = String::from_utf8_lossy(&told);
            let ids = text.split("{\"id\":\"").skip(1);
            let ids: Vec<String> =
                ids.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())).collect();
            if ids.len() >= count {
                return ids;
            }
            let length = stream.read(&mut buffer).await.unwrap();
            assert!(length > 0, "{text}");
            told.extend_from_slice(&buffer[..length]);
        }
    };
    let ids = read("0", 2).await;
    assert_eq!(read(&ids[0], 1).await, ids[1..]);
    assert_eq!(bench.ask(Method::DELETE, "/api/v1/hosts/web01", "", "").await.0, 204);
    let again = vec![keyframe(1, 5, "t0"), patch(2, 6, "t0", "t1"), patch(3, 7, "t1", "t2")];
    bench.send("web01", again).await;
    let anew = read(&ids[1], 3).await;
    let versions: Vec<&str> = anew.iter().map(|id| id.split_once('-').unwrap().0).collect();
    assert_eq!(versions, ["1", "2", "3"]);
    // A version alone is of the life that is on.
    assert_eq!(read("2", 1).await, anew[2..]);
    bench.end().await;
}

/// Reads events until one has the text.
async fn until(body: &mut hyper::body::Incoming, wanted: &str) -> String {
    let mut text = String::new();
    while !text.contains(wanted) {
        let frame = body.frame().await.unwrap().unwrap();
        text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
    text
}

#[tokio::test]
async fn a_watch_waits_for_what_is_not_there_yet() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    bench.send("web01", vec![keyframe(1, 1, "active")]).await;
    let watch = async |query: &str| {
        let mut client = Client::new(&bench.url, None).unwrap();
        let path = format!("/api/v1/hosts/web01/events?{query}");
        let response = client.open(Method::GET, &path, "", Bytes::new()).await.unwrap();
        (response.status(), response.into_body(), client)
    };
    // A slip of the pen is told at once, with what helps.
    let (status, body, _) = watch("subject=later").await;
    let told: Json = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!((status.as_u16(), &told["code"]), (404, &json!("unknown_subject")));
    assert!(told["message"].as_str().unwrap().contains("unit:NAME.service"), "{told}");
    let (_, mut exact, _one) = watch("subject=unit:later.service").await;
    let (_, mut pattern, _two) = watch("subject=file:/etc/later/*").await;
    let before = facts("active");
    let unit = with(&before, [item(Kind::UNIT, "later.service", "active_state", "active")]);
    let file = with(&unit, [item(Kind::FILE, "/etc/later/one", "fingerprint", "1")]);
    let deltas = vec![follows(2, &before, &unit), follows(3, &unit, &file)];
    assert_eq!(bench.send("web01", deltas).await.0, 200);
    let told = until(&mut exact, "later.service").await;
    assert!(!told.contains("/etc/later/one"), "{told}");
    let told = until(&mut pattern, "/etc/later/one").await;
    assert!(!told.contains("later.service"), "{told}");
    drop((exact, pattern));
    bench.end().await;
}

#[tokio::test]
async fn an_open_stream_ends_when_its_token_is_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = server::tokens::Tokens::open(dir.path()).unwrap();
    let make = |role| tokens.create(role, "test", None, Time(1)).unwrap();
    let (admin, viewer) = (make(server::tokens::Role::Admin), make(server::tokens::Role::Viewer));
    let file = File {
        data_dir: Some(dir.path().to_owned()),
        listen: Some(vec!["127.0.0.1:0".into()]),
        require_tokens: Some(true),
        ..File::default()
    };
    let mut bench = Bench::with(file, Some(admin.text.clone())).await;
    bench.send("web01", vec![keyframe(1, 1, "s0")]).await;
    let url = bench.url.clone();
    let open = async |token: &str, path: &str, headers: &str| {
        use tokio::io::AsyncWriteExt;
        let address = url.strip_prefix("http://").unwrap();
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{headers}");
        let request = format!("{head}Authorization: Bearer {token}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    };
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let host = "/api/v1/hosts/web01/events?from=0";
    let mut kept = open(&admin.text, host, "").await;
    let mut ended = vec![
        open(&viewer.text, host, "").await,
        open(&viewer.text, "/api/v1/events", "").await,
        open(&viewer.text, "/api/v1/hosts/web01/ws?from=0", upgrade).await,
    ];
    // Until something came: the streams are open.
    for stream in &mut ended {
        stream.readable().await.unwrap();
    }
    tokens.revoke(&viewer.token.id).unwrap();
    let within = std::time::Duration::from_secs(5);
    for stream in &mut ended {
        use tokio::io::AsyncReadExt;
        let mut told = Vec::new();
        // The events' connections are kept open for other requests; their answers end.
        let end = async {
            let mut buffer = [0; 4096];
            while !told.ends_with(b"0\r\n\r\n") {
                match stream.read(&mut buffer).await.unwrap_or(0) {
                    0 => break,
                    length => told.extend_from_slice(&buffer[..length]),
                }
            }
        };
        let ended = tokio::time::timeout(within, end).await;
        ended.unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&told)));
        assert!(told.starts_with(b"HTTP/1.1 200") || told.starts_with(b"HTTP/1.1 101"));
    }
    // Another's goes on.
    bench.send("web01", vec![patch(2, 2, "s0", "later")]).await;
    use tokio::io::AsyncReadExt;
    let (mut told, mut buffer) = (String::new(), [0; 4096]);
    while !told.contains("later") {
        let length = kept.read(&mut buffer).await.unwrap();
        assert!(length > 0, "{told}");
        told.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
    drop(kept);
    bench.end().await;
}
