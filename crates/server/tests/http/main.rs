//! The routes, over a real socket, with a real history in a folder of the test's own.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of a test")]

mod streams;

use api::client::Client;
use api::wire::{self, Acknowledged, Batch, Body, Delta};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use model::{Facts, Fields, Item, Kind, Subject, Time, Value, diff};
use serde_json::{Value as Json, json};
use server::Server;
use server::config::{Config, File};
use std::path::Path;
use tokio_util::sync::CancellationToken;

struct Bench {
    client: Client,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
    url: String,
}

impl Bench {
    async fn start(dir: &Path) -> Self {
        Self::with(
            File {
                data_dir: Some(dir.to_owned()),
                listen: Some(vec!["127.0.0.1:0".into()]),
                ..File::default()
            },
            None,
        )
        .await
    }

    async fn with(file: File, token: Option<String>) -> Self {
        let config: Config = file.check().unwrap();
        let server = Server::bind(config).await.unwrap();
        let url = format!("http://{}", server.addresses()[0]);
        let stop = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "ended by Bench::end")]
        let running = tokio::spawn(server.run(stop.clone()));
        Self { client: Client::new(&url, token).unwrap(), stop, running, url }
    }

    async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }

    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        media: &str,
        body: impl Into<Bytes>,
    ) -> (StatusCode, Json) {
        let response = self.client.open(method, path, media, body.into()).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or(Json::Null))
    }

    async fn get(&mut self, path: &str) -> (StatusCode, Json) {
        self.ask(Method::GET, path, "", Bytes::new()).await
    }

    async fn update(&mut self, body: &str) -> (StatusCode, Json) {
        self.ask(Method::POST, "/api/v1/update_state", "application/json", body.to_owned()).await
    }

    async fn send(&mut self, host: &str, deltas: Vec<Delta>) -> (StatusCode, Json) {
        let batch = Batch {
            stream: "test".into(),
            deltas,
            load: Vec::new(),
            agent: String::new(),
            unseen: Vec::new(),
        };
        let path = format!("/api/v1/hosts/{host}/deltas");
        self.ask(Method::POST, &path, wire::MEDIA_TYPE, wire::encode(&batch)).await
    }
}

fn facts(state: &str) -> Facts {
    let fields: Fields = [("active_state".to_owned(), Value::from(state))].into();
    [(Subject::escaped(Kind::UNIT, "nginx.service"), Item::new(&fields))].into_iter().collect()
}

fn keyframe(sequence: u64, at: i64, state: &str) -> Delta {
    Delta { sequence, at: Time::from_seconds(at), body: Body::Keyframe(facts(state)), gap: None }
}

fn patch(sequence: u64, at: i64, from: &str, to: &str) -> Delta {
    let (before, after) = (facts(from), facts(to));
    let body =
        Body::Patch { base: before.digest(), next: after.digest(), patch: diff(&before, &after) };
    Delta { sequence, at: Time::from_seconds(at), body, gap: None }
}

#[tokio::test]
async fn the_bridges_calls_get_the_bridges_answers() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    let state = |status: &str| {
        json!({"services":[{"name":"nginx","type":"systemd","status":status}],"processes":[],"hardware":{"hostname":"server1"}}).to_string()
    };
    assert_eq!(bench.get("/api/v1/status").await.1["status"], "not_initialized");
    let (status, first) = bench.update(&state("active")).await;
    assert_eq!(status, 200);
    assert_eq!(
        (&first["status"], &first["snapshot"], &first["state_id"]),
        (&json!("updated"), &json!("base_state"), &json!(1))
    );
    assert_eq!(bench.update(&state("active")).await.1, json!({"status":"no_changes"}));
    let (_, second) = bench.update(&state("inactive")).await;
    let name = second["snapshot"].as_str().unwrap().to_owned();
    assert!(name.starts_with("state_") && name.len() == "state_20261120_090000".len(), "{name}");
    assert_eq!(second["changes"], json!(["unit:nginx.service"]));
    assert_eq!(
        bench.get("/api/v1/snapshots").await.1,
        json!({"current": name, "history": ["base_state", name]})
    );
    let (_, now) = bench.get("/api/v1/status").await;
    assert_eq!(
        (&now["status"], &now["vm_name"], &now["vm_running"]),
        (&json!("ok"), &json!("digital-twin"), &json!(false))
    );
    assert_eq!((&now["current_snapshot"], &now["snapshot_count"]), (&json!(name), &json!(2)));
    let (status, error) = bench.update("").await;
    assert_eq!((status.as_u16(), &error["status"]), (400, &json!("error")));
    assert!(error["message"].is_string() && error["request_id"].is_string());
    assert_eq!(bench.ask(Method::POST, "/api/v1/snapshots/nothing", "", "").await.0, 404);
    assert_eq!(
        bench.ask(Method::POST, "/api/v1/snapshots/base_state", "", "").await.1["code"],
        "no_twin"
    );
    assert_eq!(bench.ask(Method::DELETE, "/api/v1/snapshots/base_state", "", "").await.0, 409);
    bench.end().await;
    let mut bench = Bench::start(dir.path()).await;
    assert_eq!(
        bench.get("/api/v1/snapshots").await.1["current"],
        json!(name),
        "names survive a restart"
    );
    assert_eq!(bench.get("/api/v1/hosts/server1").await.1["version"], 2);
    bench.end().await;
}

/// Posts to `update_state` with headers that the client does not send.
async fn post_with(url: &str, headers: &str, body: &[u8]) -> (u16, Json) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /api/v1/update_state HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

/// A body of `update_state`.
fn nginx(host: &str, status: &str) -> String {
    json!({"services":[{"name":"nginx","status":status}],"processes":[],
        "hardware":{"hostname":host,"cpu":{},"memory":{},"disks":[],"network":{}}})
    .to_string()
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_no_version_without_its_name() {
    use tokio::io::AsyncWriteExt;
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::with(
        File {
            data_dir: Some(dir.path().to_owned()),
            listen: Some(vec!["127.0.0.1:0".into()]),
            max_snapshots: Some(1000),
            ..File::default()
        },
        None,
    )
    .await;
    for n in 0..60_u64 {
        let body = nginx("web01", &format!("state {n}"));
        let address = bench.url.strip_prefix("http://").unwrap();
        let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!(
            "POST /api/v1/update_state HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        client.write_all(request.as_bytes()).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_micros(n * 50)).await;
        drop(client);
    }
    assert_eq!(bench.update(&nginx("web01", "the end")).await.0, 200);
    let versions = bench.get("/api/v1/hosts/web01").await.1["version"].clone();
    let (_, names) = bench.get("/api/v1/snapshots").await;
    assert!(versions.as_u64().unwrap() > 1, "{versions}");
    assert_eq!(json!(names["history"].as_array().unwrap().len()), versions, "{names}");
    bench.end().await;
}

#[tokio::test]
async fn a_damaged_head_does_not_refuse_what_leaves_something_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    for n in 0..40 {
        bench.update(&nginx("web01", &format!("state {n}"))).await;
    }
    bench.end().await;
    // Those of versions; before them are the ones that every start needs.
    for keyspace in std::fs::read_dir(dir.path().join("history/keyspaces")).unwrap() {
        let path = keyspace.unwrap().path();
        let number: u32 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let table = path.join("tables/0");
        if number > 5 && table.exists() {
            let mut bytes = std::fs::read(&table).unwrap();
            bytes[60] ^= 0x55;
            std::fs::write(&table, bytes).unwrap();
        }
    }
    let mut bench = Bench::start(dir.path()).await;
    assert_eq!(bench.get("/api/v1/hosts/web01/state").await.1["code"], "corrupt");
    let metrics = bench.client.send(Method::GET, "/metrics", "", Bytes::new()).await.unwrap();
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    assert!(metrics.contains("safetytwin_host_faults{host=\"web01\"} 1"), "{metrics}");
    let part = r#"{"services":[{"name":"later"}],"hardware":{"hostname":"web01"}}"#;
    let (status, answer) = bench.update(part).await;
    assert_eq!((status.as_u16(), &answer["state_id"]), (200, &json!(41)), "{answer}");
    let (_, state) = bench.get("/api/v1/hosts/web01/state").await;
    assert!(state["facts"]["unit:later.service"].is_object(), "{state}");
    bench.end().await;
}

#[tokio::test]
async fn one_key_has_one_answer_for_its_caller_alone() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = server::tokens::Tokens::open(dir.path()).unwrap();
    let make = |host: &str| {
        let host = Some(model::HostId::new(host).unwrap());
        tokens.create(server::tokens::Role::Agent, "test", host, Time(1)).unwrap().text
    };
    let (one, other) = (make("web01"), make("web02"));
    let file = File {
        data_dir: Some(dir.path().to_owned()),
        listen: Some(vec!["127.0.0.1:0".into()]),
        require_tokens: Some(true),
        ..File::default()
    };
    let bench = Bench::with(file, None).await;
    let post = async |token: &str, body: String| {
        let headers = format!("Authorization: Bearer {token}\r\nIdempotency-Key: the key\r\n");
        post_with(&bench.url, &headers, body.as_bytes()).await
    };
    let first = nginx("web01", "active");
    let all = futures_util::future::join_all((0..8).map(|_| post(&one, first.clone()))).await;
    assert_eq!(all[0].1["status"], "updated");
    assert!(all.iter().all(|answer| *answer == all[0]), "{all:?}");
    assert_eq!(post(&one, nginx("web01", "failed")).await.1["code"], "key_reused");
    // Another caller learns nothing of it, and has the key for its own.
    assert_eq!(post(&other, first).await.1["code"], "forbidden");
    assert_eq!(post(&other, nginx("web02", "active")).await.1["status"], "updated");
    bench.end().await;
}

#[tokio::test]
async fn bad_input_gets_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    let checks: &[(&str, &[u8], u16, &str)] = &[
        ("/api/v1/update_state", b"[", 400, "bad_json"),
        ("/api/v1/update_state", b"{\"a\":1,\"a\":2}", 400, "bad_json"),
        ("/api/v1/update_state", b"{\"a\":\"\xff\"}", 400, "bad_json"),
        ("/api/v1/update_state", b"[1]", 400, "bad_type"),
        ("/api/v1/update_state", b"{\"services\":7}", 400, "bad_type"),
        ("/api/v1/update_state", b"{\"hardware\":{\"hostname\":\"../../etc\"}}", 400, "bad_host"),
        ("/api/v1/hosts/a/deltas", b"garbage", 400, "bad_batch"),
        ("/api/v1/hosts/..%2fetc/deltas", b"", 400, "bad_host"),
        ("/api/v1/hosts/a%00b/deltas", b"", 400, "bad_host"),
        ("/api/v1/hosts/a/contents", b"garbage", 400, "bad_batch"),
        ("/api/v1/nothing", b"", 404, "not_found"),
        ("/api/v1/hosts", b"", 405, "method_not_allowed"),
    ];
    for (path, body, status, code) in checks {
        let (got, answer) = bench.ask(Method::POST, path, "", Bytes::from_static(body)).await;
        assert_eq!(
            (got.as_u16(), &answer["code"]),
            (*status, &json!(code)),
            "{path} {}",
            String::from_utf8_lossy(body)
        );
    }
    let (status, answer) =
        post_with(&bench.url, "Content-Encoding: gzip\r\n", b"\x1f\x8b\x08\0\0").await;
    assert_eq!((status, &answer["code"]), (415, &json!("compressed")));
    assert!(answer["message"].as_str().unwrap().contains("Content-Encoding"), "{answer}");
    let deep = format!("{{\"a\":{}", "[".repeat(200_000));
    assert_eq!(bench.update(&deep).await.1["code"], "bad_json");
    let huge = vec![b' '; api::MAX_BODY + 1];
    let (status, answer) = bench.ask(Method::POST, "/api/v1/update_state", "", huge).await;
    assert_eq!((status.as_u16(), &answer["code"]), (413, &json!("too_large")));
    for (path, status, code) in [
        ("/api/v1/hosts/nobody", 404, "unknown_host"),
        ("/api/v1/hosts/nobody/state", 404, "unknown_host"),
        ("/api/v1/hosts/nobody/log", 404, "unknown_host"),
        ("/api/v1/hosts/nobody/events", 404, "unknown_host"),
        ("/api/v1/hosts/..%2f..", 404, "unknown_host"),
        ("/api/v1/hosts?limt=3", 400, "bad_query"),
    ] {
        let (got, answer) = bench.get(path).await;
        assert_eq!((got.as_u16(), &answer["code"]), (status, &json!(code)), "{path}");
    }
    assert!(
        bench.get("/api/v1/hosts").await.1["hosts"].as_array().unwrap().is_empty(),
        "nothing was stored"
    );
    bench.end().await;
}

#[tokio::test]
async fn deltas_are_recorded_once_and_read_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    assert_eq!(bench.send("web01", vec![keyframe(1, 1000, "active")]).await.0, 200);
    assert_eq!(bench.send("web01", vec![patch(2, 2000, "active", "failed")]).await.0, 200);
    assert_eq!(
        bench.send("web01", vec![patch(2, 2000, "active", "failed")]).await.0,
        200,
        "a replay is acknowledged"
    );
    let (status, error) = bench.send("web01", vec![patch(3, 3000, "active", "failed")]).await;
    assert_eq!((status.as_u16(), &error["code"]), (409, &json!("base_mismatch")));
    assert_eq!(
        bench.send("web01", vec![patch(7, 4000, "failed", "active")]).await.0,
        200,
        "a merged delta may skip numbers"
    );
    let state = |json: &Json| json["facts"]["unit:nginx.service"]["active_state"].clone();
    for (at, expected) in [
        ("@1", "active"),
        ("@2", "failed"),
        ("1970-01-01T00:40:00Z", "failed"),
        ("now", "active"),
        ("@3", "active"),
    ] {
        let (_, json) = bench.get(&format!("/api/v1/hosts/web01/state?at={at}")).await;
        assert_eq!(state(&json), expected, "{at}: {json}");
    }
    assert_eq!(bench.get("/api/v1/hosts/web01/state?at=@9").await.1["code"], "unknown_version");
    assert_eq!(
        bench.get("/api/v1/hosts/web01/state?at=1970-01-01T00:00:01Z").await.1["code"],
        "before_history"
    );
    assert_eq!(bench.get("/api/v1/hosts/web01/state?at=yesterday").await.1["code"], "bad_moment");
    let (_, log) = bench.get("/api/v1/hosts/web01/log?subject=nginx&limit=2").await;
    let versions: Vec<u64> =
        log["entries"].as_array().unwrap().iter().map(|e| e["version"].as_u64().unwrap()).collect();
    assert_eq!((versions, &log["next"]), (vec![3, 2], &json!(2)));
    assert_eq!(
        log["entries"][1]["changes"][0]["edited"],
        json!({"was":{"active_state":"active"},"now":{"active_state":"failed"}})
    );
    let (_, missing) = bench.get("/api/v1/hosts/web01/log?subject=ngimx.service").await;
    assert_eq!(
        (&missing["code"], &missing["details"]["similar"]),
        (&json!("unknown_subject"), &json!("unit:nginx.service"))
    );
    let (_, diff) = bench.get("/api/v1/hosts/web01/diff?from=@1&to=@2").await;
    assert_eq!(diff["changes"][0]["edited"]["now"]["active_state"], "failed");
    bench.send("web02", vec![keyframe(1, 1000, "failed")]).await;
    let (_, diff) = bench.get("/api/v1/hosts/web01/diff?with=web02").await;
    assert_eq!(
        (&diff["to"]["host"], diff["changes"].as_array().unwrap().len()),
        (&json!("web02"), 1)
    );
    bench.end().await;
}

#[tokio::test]
async fn probes_are_answered_when_all_connections_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let file = File {
        data_dir: Some(dir.path().to_owned()),
        listen: Some(vec!["127.0.0.1:0".into()]),
        max_connections: Some(1),
        ..File::default()
    };
    let mut bench = Bench::with(file, None).await;
    assert_eq!(bench.get("/api/v1/hosts").await.0, 200);
    let beyond = async |path: &str| {
        let mut client = Client::new(&bench.url, None).unwrap();
        let response = client.open(Method::GET, path, "", Bytes::new()).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    };
    assert_eq!(beyond("/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(beyond("/readyz").await, (200, "ready\n".to_owned()));
    let (_, metrics) = beyond("/metrics").await;
    for line in ["connections 1", "connections_limit 1", "connections_beyond_limit_total 3"] {
        assert!(metrics.contains(&format!("\nsafetytwin_{line}\n")), "{metrics}");
    }
    let (status, refused) = beyond("/api/v1/hosts").await;
    assert!(status == 503 && refused.contains("too_many_connections"), "{status} {refused}");
    assert_eq!(bench.get("/api/v1/hosts").await.0, 200);
    bench.end().await;
}

/// One item, with one field.
fn item(kind: Kind, id: &str, field: &str, value: &str) -> (Subject, Item) {
    let fields: Fields = [(field.to_owned(), Value::from(value))].into();
    (Subject::escaped(kind, id), Item::new(&fields))
}

fn with(facts: &Facts, more: impl IntoIterator<Item = (Subject, Item)>) -> Facts {
    facts.iter().map(|(subject, item)| (subject.clone(), item.clone())).chain(more).collect()
}

fn follows(sequence: u64, before: &Facts, after: &Facts) -> Delta {
    let body =
        Body::Patch { base: before.digest(), next: after.digest(), patch: diff(before, after) };
    let at = Time::from_seconds(i64::try_from(sequence).unwrap());
    Delta { sequence, at, body, gap: None }
}

#[tokio::test]
async fn what_a_first_look_finds_had_been_there() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    bench.send("web01", vec![keyframe(1, 1, "active")]).await;
    let before = facts("active");
    let found = [
        item(Kind::COLLECTOR, "files", "limits", "none"),
        item(Kind::FILE, "/etc/old", "fingerprint", "1"),
        item(Kind::PACKAGE, "new", "version", "1"),
    ];
    let looked = with(&before, found);
    let later = with(&looked, [item(Kind::FILE, "/etc/new", "fingerprint", "2")]);
    bench.send("web01", vec![follows(2, &before, &looked), follows(3, &looked, &later)]).await;
    for (subject, had_been) in [
        ("unit:nginx.service", Some(true)),
        ("file:/etc/old", Some(true)),
        ("package:new", None),
        ("file:/etc/new", None),
    ] {
        let (_, log) = bench.get(&format!("/api/v1/hosts/web01/log?subject={subject}")).await;
        let change = &log["entries"][0]["changes"][0];
        assert_eq!(change["subject"], subject);
        assert_eq!(change["first_seen"].as_bool(), had_been, "{subject}");
    }
    bench.end().await;
}

#[tokio::test]
async fn roles_decide_beyond_loopback() {
    let dir = tempfile::tempdir().unwrap();
    let file = || File {
        data_dir: Some(dir.path().to_owned()),
        listen: Some(vec!["127.0.0.1:0".into()]),
        require_tokens: Some(true),
        ..File::default()
    };
    let refused = Server::bind(file().check().unwrap()).await.unwrap_err();
    assert!(refused.to_string().contains("twin token create"), "{refused}");
    let tokens = server::tokens::Tokens::open(dir.path()).unwrap();
    let make = |role, host: Option<&str>| {
        let host = host.map(|name| model::HostId::new(name).unwrap());
        tokens.create(role, "test", host, Time(1)).unwrap()
    };
    use server::tokens::Role;
    let agent = make(Role::Agent, Some("web01"));
    let viewer = make(Role::Viewer, None);
    let mut bench = Bench::with(file(), None).await;
    assert_eq!(bench.get("/healthz").await.0, 200);
    assert_eq!(bench.get("/api/v1/hosts").await.0, 401);
    let url = bench.url.clone();
    let mut with = |token: &str| bench.client = Client::new(&url, Some(token.to_owned())).unwrap();
    with("twt_wrong");
    assert_eq!(bench.get("/api/v1/hosts").await.0, 401);
    bench.client = Client::new(&url, Some(agent.text.clone())).unwrap();
    assert_eq!(bench.send("web01", vec![keyframe(1, 1, "x")]).await.0, 200);
    assert_eq!(
        bench.send("web02", vec![keyframe(1, 1, "x")]).await.0,
        403,
        "another host's history"
    );
    assert_eq!(bench.get("/api/v1/hosts").await.0, 403, "agents read nothing");
    bench.client = Client::new(&url, Some(viewer.text.clone())).unwrap();
    assert_eq!(bench.get("/api/v1/hosts").await.0, 200);
    assert_eq!(bench.send("web01", vec![]).await.0, 403);
    tokens.revoke(&viewer.token.id).unwrap();
    assert_eq!(bench.get("/api/v1/hosts").await.0, 401, "revoked at once");
    bench.end().await;
}

#[tokio::test]
async fn an_agent_without_memory_is_told_what_its_own_host_told() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = server::tokens::Tokens::open(dir.path()).unwrap();
    let make = |host: Option<&str>| {
        let host = host.map(|host| host.parse().unwrap());
        tokens.create(server::tokens::Role::Agent, "test", host, Time(1)).unwrap().text
    };
    let (own, unbound) = (make(Some("web01")), make(None));
    let file = File {
        data_dir: Some(dir.path().to_owned()),
        listen: Some(vec!["127.0.0.1:0".into()]),
        require_tokens: Some(true),
        ..File::default()
    };
    let mut bench = Bench::with(file, Some(own.clone())).await;
    assert_eq!(bench.send("web01", vec![keyframe(1, 1, "active")]).await.0, 200);
    let url = bench.url.clone();
    let ask = async |token: &str, unseen: Vec<Kind>| {
        let mut client = Client::new(&url, Some(token.to_owned())).unwrap();
        let batch = Batch {
            stream: "new".into(),
            deltas: Vec::new(),
            load: Vec::new(),
            agent: String::new(),
            unseen,
        };
        let body = wire::encode(&batch).into();
        let path = "/api/v1/hosts/web01/deltas";
        let response = client.open(Method::POST, path, wire::MEDIA_TYPE, body).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, wire::decode::<Acknowledged>(&bytes).ok().and_then(|answer| answer.told))
    };
    let told = |facts: Facts| (StatusCode::OK, Some(facts));
    assert_eq!(ask(&own, vec![Kind::UNIT, Kind::FILE]).await, told(facts("active")));
    assert_eq!(ask(&own, vec![Kind::FILE]).await, told(Facts::default()));
    assert_eq!(ask(&own, Vec::new()).await, (StatusCode::OK, None));
    assert_eq!(ask(&unbound, vec![Kind::UNIT]).await, (StatusCode::OK, None));
    assert_eq!(ask(&own, vec![Kind::UNIT; 1_000_000]).await, (StatusCode::BAD_REQUEST, None));
    bench.end().await;
}

#[tokio::test]
async fn images_are_taken_from_the_agent_of_their_host_alone() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = server::tokens::Tokens::open(dir.path()).unwrap();
    let token = |host: Option<&str>| {
        let host = host.map(|host| model::HostId::new(host).unwrap());
        tokens.create(server::tokens::Role::Agent, "test", host, Time(1)).unwrap().text
    };
    let file = File {
        data_dir: Some(dir.path().to_owned()),
        listen: Some(vec!["127.0.0.1:0".into()]),
        require_tokens: Some(true),
        ..File::default()
    };
    let mut bench = Bench::with(file, Some(token(Some("web01")))).await;
    let path = |host: &str, rest: &str| format!("/api/v1/hosts/{host}/image-work{rest}");
    let part = format!("/1/sha256:{}?from=0", "ab".repeat(32));
    let mut check = async |path: &str, body: &str, expected: (u16, &str)| {
        let (status, answer) =
            bench.ask(Method::POST, path, "application/json", body.to_owned()).await;
        assert_eq!((status.as_u16(), answer["code"].as_str().unwrap()), expected, "{path}");
    };
    check(&path("web02", ""), "null", (403, "forbidden")).await;
    check(&path("web02", "/1"), "\"working\"", (403, "forbidden")).await;
    check(&path("web02", &part), "x", (403, "forbidden")).await;
    check(&path("web01", "/1"), "\"working\"", (410, "unwanted")).await;
    check(&path("web01", "/1"), "\"resting\"", (400, "bad_json")).await;
    check(&path("web01", "/one"), "\"working\"", (400, "bad_path")).await;
    check(&path("web01", &part), "x", (410, "unwanted")).await;
    check(&path("web01", "/1/sha256:ab?from=0"), "x", (400, "bad_path")).await;
    check(&path("web01", &part.replace("=0", "=-1")), "x", (400, "bad_query")).await;
    // A token of every host's is no host's own.
    bench.client = Client::new(&bench.url, Some(token(None))).unwrap();
    let (status, _) = bench.ask(Method::POST, &path("web01", ""), "", Bytes::new()).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(!dir.path().join("container-images").exists(), "nothing was written");
    bench.end().await;
}

#[tokio::test]
async fn a_second_server_on_the_same_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::start(dir.path()).await;
    let file = File {
        data_dir: Some(dir.path().to_owned()),
        listen: Some(vec!["127.0.0.1:0".into()]),
        ..File::default()
    };
    let error = Server::bind(file.check().unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
    bench.end().await;
}

#[tokio::test]
async fn probes_metrics_and_documents_answer() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    bench.send("web01", vec![keyframe(1, 1, "x")]).await;
    for path in ["/healthz", "/readyz", "/docs/", "/openapi.json", "/metrics"] {
        assert_eq!(bench.get(path).await.0, 200, "{path}");
    }
    let metrics = bench.client.send(Method::GET, "/metrics", "", Bytes::new()).await.unwrap();
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    assert!(metrics.contains("safetytwin_host_version{host=\"web01\"} 1"), "{metrics}");
    assert!(metrics.contains("# TYPE safetytwin_ingested_deltas_total counter"), "{metrics}");
    bench.end().await;
}
