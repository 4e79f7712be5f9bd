//! What is answered about VMs of vSpheres, with a source that nobody answers at.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of a test")]

use api::client::Client;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use serde_json::{Value as Json, json};
use server::Server;
use server::config::File;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

struct Bench {
    /// Of the server's own address, and of the older service's.
    clients: [Client; 2],
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

const OWN: usize = 0;
const OLDER: usize = 1;

impl Bench {
    async fn start(dir: &Path, require_tokens: bool) -> Self {
        let sync = dir.join("sync.yaml");
        let text = "esxi_hosts: [{host: 127.0.0.1, port: 1, username: u, password: p}]\napi_server: {host: 127.0.0.1, port: 0}\n";
        std::fs::write(&sync, text).unwrap();
        if require_tokens {
            let tokens = server::tokens::Tokens::open(dir).unwrap();
            let admin = server::tokens::Role::Admin;
            tokens.create(admin, "a", None, model::Time(0)).unwrap();
        }
        let file = File {
            data_dir: Some(dir.to_owned()),
            listen: Some(vec!["127.0.0.1:0".into()]),
            require_tokens: Some(require_tokens),
            sync: Some(sync),
            ..File::default()
        };
        let server = Server::bind(file.check().unwrap()).await.unwrap();
        let own = format!("http://{}", server.addresses()[0]);
        let older = format!("http://{}", server.sync_address().unwrap());
        let stop = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "ended by Bench::end")]
        let running = tokio::spawn(server.run(stop.clone()));
        let clients = [own, older].map(|url| Client::new(&url, None).unwrap());
        Self { clients, stop, running }
    }

    async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }

    async fn ask(
        &mut self,
        at: usize,
        method: Method,
        path: &str,
        body: &Json,
    ) -> (StatusCode, Json) {
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let client = &mut self.clients[at];
        let response = client.open(method, path, "application/json", body).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or(Json::Null))
    }

    async fn get(&mut self, at: usize, path: &str) -> (StatusCode, Json) {
        self.ask(at, Method::GET, path, &Json::Null).await
    }

    /// Asks until it is so.
    async fn until(&mut self, path: &str, is_so: impl Fn(&Json) -> bool) -> Json {
        let begin = Instant::now();
        loop {
            let (_, answer) = self.get(OWN, path).await;
            if is_so(&answer) {
                return answer;
            }
            assert!(begin.elapsed() < Duration::from_secs(20), "{answer}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn a_source_that_does_not_answer_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path(), false).await;
    let is_over = |answer: &Json| !answer["last"].is_null() && answer["in_process"] == false;
    let standing = bench.until("/api/v1/sync", is_over).await;
    assert_eq!(standing["sources"][0]["node"], "127.0.0.1");
    let fault = standing["sources"][0]["fault"].as_str().unwrap();
    assert!(fault.starts_with("could not connect to 127.0.0.1:1; is it on"), "{fault}");
    assert_eq!(standing["last"]["results"][0]["ok"], false);
    // The first pass failed, and so has a run.
    let run = standing["last"]["run"].as_str().unwrap().to_owned();
    let is_failed = |answer: &Json| answer["state"] == "failed";
    let run = bench.until(&format!("/api/v1/runs/{run}"), is_failed).await;
    assert_eq!((&run["kind"], &run["subject"]), (&json!("sync"), &json!("sync:vsphere")));
    assert!(run["message"].as_str().unwrap().contains("could not connect"), "{run}");

    let begin = Instant::now();
    let begun = loop {
        let (status, begun) = bench.ask(OWN, Method::POST, "/api/v1/sync/now", &json!({})).await;
        if status == StatusCode::ACCEPTED {
            break begun;
        }
        // The log of the one before is being ended.
        assert_eq!(begun["code"], "already_syncing");
        assert!(begin.elapsed() < Duration::from_secs(20));
    };
    let path = format!("/api/v1/runs/{}", begun["run"].as_str().unwrap());
    bench.until(&path, is_failed).await;

    let (_, plan) = bench.get(OWN, "/api/v1/sync/plan").await;
    assert!(plan["faults"]["127.0.0.1"].is_string() && plan["decisions"] == json!([]), "{plan}");
    assert_eq!(bench.get(OWN, "/api/v1/sync/outbox").await.1, json!({"entries": []}));
    for (method, path) in [
        (Method::DELETE, "/api/v1/sync/outbox/none"),
        (Method::POST, "/api/v1/sync/outbox/none/retry"),
    ] {
        let (status, answer) = bench.ask(OWN, method, path, &Json::Null).await;
        assert_eq!((status, &answer["code"]), (StatusCode::NOT_FOUND, &json!("unknown_entry")));
    }
    let (status, answer) =
        bench.ask(OWN, Method::POST, "/api/v1/vms/confirm", &json!({"node": "127.0.0.1"})).await;
    assert_eq!((status, &answer["code"]), (StatusCode::CONFLICT, &json!("nothing_held")));
    bench.end().await;
}

#[tokio::test]
async fn the_older_services_clients_get_its_answers() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path(), true).await;
    // They have no token, and get to nothing else.
    let (status, answer) = bench.get(OWN, "/sync/status").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED, "{answer}");
    for path in ["/api/v1/vms", "/api/v1/sync", "/metrics", "/docs"] {
        assert_eq!(bench.get(OLDER, path).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    let (status, answer) = bench.get(OLDER, "/sync/status").await;
    assert_eq!((status, &answer["ok"]), (StatusCode::OK, &json!(true)));
    assert!(answer["data"]["sync_in_process"].is_boolean(), "{answer}");
    let (status, answer) = bench.get(OLDER, "/sync/now").await;
    assert_eq!(status, StatusCode::OK);
    let message = answer["message"].as_str().unwrap();
    assert!(matches!(message, "sync triggered" | "already syncing"), "{answer}");
    let wanted = json!({"vms": ["web"]});
    let (status, answer) = bench.ask(OLDER, Method::POST, "/sync/vms", &wanted).await;
    assert_eq!((status, &answer["ok"]), (StatusCode::OK, &json!(false)));
    let host = &answer["data"][0]["127.0.0.1"];
    assert_eq!((&host["matched"], &host["ok"]), (&json!(0), &json!(false)), "{answer}");
    for bad in [json!({"vms": []}), json!({"vm": ["a"]}), json!([1]), Json::Null] {
        let (status, answer) = bench.ask(OLDER, Method::POST, "/sync/vms", &bad).await;
        assert_eq!((status, &answer["ok"]), (StatusCode::OK, &json!(false)), "{bad}");
    }
    bench.end().await;
}

#[tokio::test]
async fn without_a_file_there_is_nothing_to_sync() {
    let dir = tempfile::tempdir().unwrap();
    let file = File {
        data_dir: Some(dir.path().to_owned()),
        listen: Some(vec!["127.0.0.1:0".into()]),
        ..File::default()
    };
    let server = Server::bind(file.check().unwrap()).await.unwrap();
    assert!(server.sync_address().is_none());
    let url = format!("http://{}", server.addresses()[0]);
    let stop = CancellationToken::new();
    #[expect(clippy::disallowed_methods, reason = "ended below")]
    let running = tokio::spawn(server.run(stop.clone()));
    let mut client = Client::new(&url, None).unwrap();
    let response = client.open(Method::GET, "/api/v1/sync", "", Bytes::new()).await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    let response = client.open(Method::GET, "/sync/now", "", Bytes::new()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(serde_json::from_slice::<Json>(&bytes).unwrap()["ok"], false);
    stop.cancel();
    running.await.unwrap();
}
