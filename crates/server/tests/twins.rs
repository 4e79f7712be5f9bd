//! Twins over a real socket, as far as no machine has to run: who may, what is refused and why.
//! With machines: `lab/twins`.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of a test")]

use api::client::Client;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::{Value as Json, json};
use server::Server;
use server::config::File;
use server::tokens::{Role, Tokens};
use server::twins::TwinsFile;
use std::path::Path;
use tokio_util::sync::CancellationToken;

struct Bench {
    url: String,
    token: Option<String>,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

impl Bench {
    async fn start(dir: &Path, require_tokens: bool) -> Self {
        let file = File {
            data_dir: Some(dir.to_owned()),
            listen: Some(vec!["127.0.0.1:0".into()]),
            require_tokens: Some(require_tokens),
            twins: TwinsFile { build_image: Some(false), ..TwinsFile::default() },
            ..File::default()
        };
        let server = Server::bind(file.check().unwrap()).await.unwrap();
        let url = format!("http://{}", server.addresses()[0]);
        let stop = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "ended by Bench::end")]
        let running = tokio::spawn(server.run(stop.clone()));
        Self { url, token: None, stop, running }
    }

    async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }

    async fn ask(&self, method: Method, path: &str, body: &Json) -> (u16, Json) {
        let mut client = Client::new(&self.url, self.token.clone()).unwrap();
        let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
        let path = format!("/api/v1/{path}");
        let response = client.open(method, &path, "", body).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap_or(Json::Null))
    }

    /// `STATUS CODE: MESSAGE` of what is refused.
    async fn check(&self, method: Method, path: &str, body: Json, expected: &str) {
        let (status, answer) = self.ask(method, path, &body).await;
        let text = |key: &str| answer[key].as_str().unwrap_or_default().to_owned();
        let shown = format!("{status} {}: {}", text("code"), text("message"));
        assert!(shown.starts_with(expected), "{path} {body}: {shown}");
    }

    async fn feed(&self, host: &str) {
        let state = json!({ "services": [], "processes": [], "hardware": { "hostname": host } });
        assert_eq!(self.ask(Method::POST, "update_state", &state).await.0, 200);
    }
}

#[tokio::test]
async fn what_can_not_be_is_told_before_a_run_begins() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::start(dir.path(), false).await;
    let (status, twins) = bench.ask(Method::GET, "twins", &Json::Null).await;
    assert_eq!((status, twins), (200, json!({ "twins": [] })));
    let none = "404 unknown_twin: there is no twin of web01; make one with: twin start web01";
    for (method, path) in [
        (Method::GET, "twins/web01"),
        (Method::GET, "twins/WEB01"),
        (Method::DELETE, "twins/web01"),
        (Method::POST, "twins/web01/stop"),
        (Method::POST, "twins/web01/restart"),
        (Method::POST, "twins/web01/clone"),
        (Method::POST, "twins/web01/revert"),
        (Method::GET, "twins/web01/plan"),
        (Method::GET, "twins/web01/verify"),
        (Method::GET, "twins/web01/fidelity"),
        (Method::POST, "twins/web01/apply"),
        (Method::POST, "twins/web01/hold"),
        (Method::POST, "twins/web01/follow"),
        (Method::GET, "twins/web01/snapshots"),
        (Method::POST, "twins/web01/snapshots"),
        (Method::GET, "twins/web01/snapshots/a"),
        (Method::DELETE, "twins/web01/snapshots/a"),
        (Method::POST, "twins/web01/snapshots/a/revert"),
    ] {
        bench.check(method, path, Json::Null, none).await;
    }
    for path in ["twins/..%2F..%2Fetc", "twins/a%00b", "twins/-x"] {
        bench.check(Method::GET, path, Json::Null, "404 unknown_twin: ").await;
    }
    let path = "twins/web01/snapshots/..%2Fa";
    bench.check(Method::GET, path, Json::Null, "404 unknown_snapshot: ").await;
    let start = "twins/web01/start";
    bench
        .check(Method::POST, start, Json::Null, "404 unknown_host: the server knows no host")
        .await;
    bench.feed("web01").await;
    let no_image = "409 no_image: there is no image to start from; make one with: twin image build";
    bench.check(Method::POST, start, Json::Null, no_image).await;
    bench.check(Method::PUT, "twins/web01", json!({}), no_image).await;
    let other = json!({ "image": "../x" });
    bench.check(Method::POST, start, other, "404 unknown_image: ").await;
    let odd = json!({ "memory_mb": 3 });
    bench.check(Method::POST, start, odd, "400 bad_twin: memory_mb").await;
    let unknown = json!({ "memory": 3 });
    bench.check(Method::POST, start, unknown, "400 bad_json: unknown field `memory`").await;
    let (_, runs) = bench.ask(Method::GET, "runs", &Json::Null).await;
    assert_eq!(runs["runs"], json!([]));
    assert!(!dir.path().join("twins").exists(), "what was refused left nothing");
    bench.end().await;
}

#[tokio::test]
async fn twins_of_another_hypervisor_are_told() {
    let dir = tempfile::tempdir().unwrap();
    // Where libvirt's were kept before.
    let old = dir.path().join("twins/libvirt/web01");
    std::fs::create_dir_all(&old).unwrap();
    std::fs::write(old.join("machine.json"), "{}").unwrap();
    let bench = Bench::start(dir.path(), false).await;
    bench.feed("web01").await;
    let (status, listed) = bench.ask(Method::GET, "twins", &Json::Null).await;
    let unusable = &listed["unusable"][0];
    assert_eq!((status, &listed["twins"], &unusable["name"]), (200, &json!([]), &json!("web01")));
    assert_eq!(unusable["hypervisor"], "libvirt");
    let there = "409 other_hypervisor: web01 has a twin that libvirt runs, and this server is";
    for (method, path) in [
        (Method::GET, "twins/web01"),
        (Method::PUT, "twins/web01"),
        (Method::POST, "twins/web01/start"),
        (Method::DELETE, "twins/web01"),
    ] {
        bench.check(method, path, Json::Null, there).await;
    }
    assert!(dir.path().join("twins-libvirt/web01/machine.json").is_file());
    bench.end().await;
}

#[tokio::test]
async fn the_bridge_has_no_machine_without_a_twin() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::start(dir.path(), false).await;
    let none = "404 no_twin: this server has no virtual machine";
    bench.check(Method::GET, "vm/info", Json::Null, none).await;
    bench.feed("web01").await;
    for path in ["vm/start", "vm/stop", "vm/restart"] {
        bench.check(Method::POST, path, Json::Null, none).await;
    }
    let (_, status) = bench.ask(Method::GET, "status", &Json::Null).await;
    assert_eq!((&status["vm_running"], &status["vm_ip"]), (&json!(false), &Json::Null));
    let base = "snapshots/base_state";
    bench.check(Method::POST, base, Json::Null, "409 no_twin: base_state is web01@1").await;
    bench.end().await;
}

#[tokio::test]
async fn only_operators_act_on_twins() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = Tokens::open(dir.path()).unwrap();
    let make = |role| tokens.create(role, "laptop", None, model::Time(1)).unwrap().text;
    let (viewer, operator) = (make(Role::Viewer), make(Role::Operator));
    let mut bench = Bench::start(dir.path(), true).await;
    bench.check(Method::GET, "twins", Json::Null, "401 unauthorized").await;
    bench.token = Some(viewer);
    assert_eq!(bench.ask(Method::GET, "twins", &Json::Null).await.0, 200);
    for (method, path) in [
        (Method::POST, "twins/web01/start"),
        (Method::POST, "twins/web01/hold"),
        (Method::POST, "twins/web01/apply"),
        (Method::DELETE, "twins/web01"),
        (Method::GET, "twins/web01/console"),
    ] {
        bench.check(method, path, Json::Null, "403 forbidden").await;
    }
    bench.token = Some(operator);
    bench.check(Method::POST, "twins/web01/start", Json::Null, "404 unknown_host").await;
    bench.end().await;
}

#[tokio::test]
async fn what_is_declared_stays_until_it_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let bench = Bench::start(dir.path(), false).await;
    let unknown = "404 unknown_host: the server knows no host web01";
    bench.check(Method::GET, "twins/web01/extras", Json::Null, unknown).await;
    bench.check(Method::PUT, "twins/web01/extras/service/a", json!({}), unknown).await;
    bench.feed("web01").await;
    let service = "twins/web01/extras/service/nginx";
    let process = "twins/web01/extras/process/probe";
    for (path, body, expected) in [
        ("twins/web01/extras/package/vim", json!({}), "400 bad_extra: \"package\" can't be"),
        ("twins/web01/extras/service/..%2fx", json!({}), "400 bad_extra: "),
        (service, json!({"x": 1}), "400 bad_json: unknown field"),
        (service, json!({"fields": {"main_pid": 1}}), "400 bad_extra: a service has no field"),
        (service, json!({"fields": {"active_state": 1}}), "400 bad_extra: active_state: "),
        (service, json!({"gone": true, "fields": {"user": "a"}}), "400 bad_twin: fields: "),
        (process, json!({}), "400 bad_extra: a new process needs its executable"),
    ] {
        bench.check(Method::PUT, path, body, expected).await;
    }
    let long = json!({ "fields": { "environment": { "A": "x".repeat(70_000) } } });
    bench.check(Method::PUT, service, long, "413 too_large: ").await;
    let stopped = json!({"fields": {"active_state": "inactive"}});
    let (status, answer) = bench.ask(Method::PUT, service, &stopped).await;
    let told = json!({"kind": "service", "name": "nginx.service", "gone": false, "fields": {"active_state": "inactive"}});
    assert_eq!((status, answer), (200, told.clone()));
    let container = "twins/web01/extras/container/web";
    assert_eq!(bench.ask(Method::PUT, container, &json!({"gone": true})).await.0, 200);
    bench.end().await;

    let bench = Bench::start(dir.path(), false).await;
    let (_, listed) = bench.ask(Method::GET, "twins/web01/extras", &Json::Null).await;
    let gone = json!({"kind": "container", "name": "web", "gone": true, "fields": {}});
    assert_eq!(listed, json!({"twin": "web01", "extras": [gone, told]}));
    assert_eq!(
        bench.ask(Method::DELETE, "twins/web01/extras/unit/nginx", &Json::Null).await.0,
        204
    );
    let none = "404 unknown_extra: nothing is declared of unit:nginx.service";
    bench.check(Method::DELETE, service, Json::Null, none).await;
    bench.end().await;
}
