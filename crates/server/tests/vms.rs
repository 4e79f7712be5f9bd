//! The VM inventory over a real socket, fed as agents do.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of a test")]

use api::client::Client;
use api::wire::{self, Batch, Body, Delta};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use model::entity::{Collector, Process, Unit};
use model::load::{InterfaceLoad, JournalErrors, Load, UnitLoad, VmDiskLoad, VmLoad, VmmLoad};
use model::{Facts, Time};
use serde_json::{Value as Json, json};
use server::Server;
use server::config::File;
use server::vms::InventoryFile;
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long something may take until it shows.
const PATIENCE: Duration = Duration::from_secs(20);

struct Bench {
    client: Client,
    stop: CancellationToken,
    running: tokio::task::JoinHandle<()>,
    url: String,
    sequence: u64,
}

impl Bench {
    async fn start(dir: &Path) -> Self {
        Self::with(dir, InventoryFile::default()).await
    }

    async fn with(dir: &Path, inventory: InventoryFile) -> Self {
        let file = File {
            data_dir: Some(dir.to_owned()),
            listen: Some(vec!["127.0.0.1:0".into()]),
            inventory,
            ..File::default()
        };
        let server = Server::bind(file.check().unwrap()).await.unwrap();
        let url = format!("http://{}", server.addresses()[0]);
        let stop = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "ended by Bench::end")]
        let running = tokio::spawn(server.run(stop.clone()));
        Self { client: Client::new(&url, None).unwrap(), stop, running, url, sequence: 0 }
    }

    async fn end(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }

    async fn ask(&mut self, method: Method, path: &str, body: &str) -> (u16, Json) {
        let body = Bytes::from(body.to_owned());
        let response = self.client.open(method, path, "application/json", body).await.unwrap();
        let status = response.status();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status.as_u16(), serde_json::from_slice(&bytes).unwrap_or(Json::Null))
    }

    async fn get(&mut self, path: &str) -> Json {
        self.ask(Method::GET, path, "").await.1
    }

    /// What a host's agent sees now, and measured.
    async fn tell(&mut self, host: &str, facts: &Facts, load: Vec<Load>) {
        self.sequence += 1;
        let body = Body::Keyframe(facts.clone());
        let at = Time::from_seconds(1_000 + i64::try_from(self.sequence).unwrap());
        let batch = Batch {
            stream: host.into(),
            deltas: vec![Delta { sequence: self.sequence, at, body, gap: None }],
            load,
            agent: String::new(),
            unseen: Vec::new(),
        };
        let path = format!("/api/v1/hosts/{host}/deltas");
        let body = wire::encode(&batch);
        let sent =
            self.client.open(Method::POST, &path, wire::MEDIA_TYPE, body.into()).await.unwrap();
        assert_eq!(sent.status(), StatusCode::OK);
        sent.into_body().collect().await.unwrap();
    }

    /// Waits until an answer is as it should be.
    async fn until(&mut self, path: &str, is_so: impl Fn(&Json) -> bool) -> Json {
        let begin = tokio::time::Instant::now();
        loop {
            let answer = self.get(path).await;
            if is_so(&answer) {
                return answer;
            }
            assert!(begin.elapsed() < PATIENCE, "{path} still answers {answer:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// `ID STATE PRESENCE HEALTH` of each VM.
    async fn until_listed(&mut self, expected: &[&str]) {
        self.until("/api/v1/vms", |answer| listed(answer) == expected).await;
    }
}

fn listed(answer: &Json) -> Vec<String> {
    let text = |vm: &Json, field: &str| vm[field].as_str().unwrap_or("-").to_owned();
    let vms = answer["vms"].as_array().cloned().unwrap_or_default();
    let words = ["id", "state", "presence", "health"];
    vms.iter().map(|vm| words.map(|field| text(vm, field)).join(" ")).collect()
}

fn unit(id: &str, state: &str) -> Unit {
    let (active, sub) = state.split_once('/').unwrap();
    Unit {
        id: id.into(),
        active_state: active.into(),
        sub_state: sub.into(),
        result: (active == "failed").then(|| "signal".to_owned()),
        limits: [("MemoryMax".to_owned(), 100 << 20)].into(),
        ..Unit::default()
    }
}

/// Facts of a host: `NAME STATE` of its microVMs.
fn facts(vms: &[(&str, &str)], fault: Option<&str>) -> Facts {
    let mut facts = Facts::default();
    let name = "units".to_owned();
    facts.put_entity(&Collector { name, fault: fault.map(str::to_owned), ..Collector::default() });
    facts.put_entity(&unit("nginx.service", "active/running"));
    for (name, state) in vms {
        facts.put_entity(&unit(&format!("microvm@{name}.service"), state));
    }
    facts
}

/// Reads events until one has the text.
async fn until_told(body: &mut hyper::body::Incoming, wanted: &str) -> String {
    let mut text = String::new();
    let reading = async {
        while !text.contains(wanted) {
            let frame = body.frame().await.unwrap().unwrap();
            text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
    };
    let told = tokio::time::timeout(PATIENCE, reading).await;
    assert!(told.is_ok(), "no {wanted} in {text}");
    text
}

const RUNNING: &str = "active/running";

#[tokio::test]
async fn what_agents_see_is_the_inventory() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    assert_eq!(bench.get("/api/v1/vms").await, json!({"vms": []}));
    let mut reader = Client::new(&bench.url, None).unwrap();
    let stream = reader.open(Method::GET, "/api/v1/vms/events", "", Bytes::new()).await.unwrap();
    let mut stream = stream.into_body();
    until_told(&mut stream, "event: begin").await;
    bench.tell("n1", &facts(&[("web", RUNNING), ("db", "inactive/dead")], None), vec![]).await;
    bench.tell("n2", &facts(&[("web", RUNNING)], None), vec![]).await;
    bench
        .until_listed(&[
            "db@n1 stopped present unknown",
            "web@n1 running present healthy",
            "web@n2 running present healthy",
        ])
        .await;
    until_told(&mut stream, "\"web@n2\"").await;
    let one = bench.get("/api/v1/vms/db").await;
    assert_eq!((&one["id"], &one["reference"]), (&json!("db@n1"), &json!("microvm@db.service")));
    // Its VMM is killed.
    bench
        .tell("n1", &facts(&[("web", "failed/failed"), ("db", "inactive/dead")], None), vec![])
        .await;
    let told = until_told(&mut stream, "\"kind\":\"health\"").await;
    assert!(told.contains("\"from\":\"running\",\"to\":\"failed\""), "{told}");
    let web = bench.until("/api/v1/vms/web@n1", |vm| vm["health"] == "unhealthy").await;
    assert_eq!(web["cause"]["layer"], "vmm", "{web}");
    assert_eq!(web["cause"]["message"], "the VMM was killed by a signal");
    let health = bench.get("/api/v1/vms/web@n1/health").await;
    assert_eq!(health["transitions"][0]["to"], "unhealthy", "{health}");
    assert_eq!(health["checks"][0]["name"], "state");
    let page = bench.get("/api/v1/vms?limit=1&after=db%40n1").await;
    assert_eq!((listed(&page).len(), &page["next"]), (1, &json!("web@n1")));
    for (query, count) in [
        ("node=n1", 2),
        ("state=running", 1),
        ("health=unhealthy", 1),
        ("presence=orphan", 0),
        ("source=microvm", 3),
    ] {
        let answer = bench.get(&format!("/api/v1/vms?{query}")).await;
        assert_eq!(answer["vms"].as_array().unwrap().len(), count, "{query}");
    }
    // It is known to the next server.
    bench.end().await;
    let mut bench = Bench::start(dir.path()).await;
    let again = bench.get("/api/v1/vms/web@n1").await;
    assert_eq!((&again["state"], &again["first_seen"]), (&json!("failed"), &web["first_seen"]));
    bench.end().await;
}

#[tokio::test]
async fn what_is_not_listed_is_judged_with_care() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    let names = ["a", "b", "c", "d", "e", "f"];
    let all: Vec<(&str, &str)> = names.iter().map(|name| (*name, RUNNING)).collect();
    let health = |presence: &str, name: &str| match presence {
        "orphan" => format!("{name}@n1 stopped orphan unknown"),
        "stale" => format!("{name}@n1 running stale unknown"),
        _ => format!("{name}@n1 running present healthy"),
    };
    let are = |presences: [&str; 6]| -> Vec<String> {
        presences.iter().zip(names).map(|(presence, name)| health(presence, name)).collect()
    };
    let present = are(["present"; 6]);
    bench.tell("n1", &facts(&all, None), vec![]).await;
    bench.until("/api/v1/vms", |answer| listed(answer) == present).await;
    // A look that is not complete loses nothing.
    bench.tell("n1", &facts(&all[..1], Some("D-Bus hangs")), vec![]).await;
    let stale = are(["present", "stale", "stale", "stale", "stale", "stale"]);
    let answer = bench.until("/api/v1/vms", |answer| listed(answer) == stale).await;
    let doubt = "the node's units can't be seen: D-Bus hangs";
    assert_eq!(answer["nodes"][0]["incomplete"], doubt, "{answer}");
    bench.tell("n1", &facts(&all, None), vec![]).await;
    let answer = bench.until("/api/v1/vms", |answer| listed(answer) == present).await;
    assert_eq!(answer["nodes"], Json::Null);
    // One is gone.
    bench.tell("n1", &facts(&all[..5], None), vec![]).await;
    let one = are(["present", "present", "present", "present", "present", "orphan"]);
    bench.until("/api/v1/vms", |answer| listed(answer) == one).await;
    // All others at once is a mistake until somebody says that it is none.
    bench.tell("n1", &facts(&[], None), vec![]).await;
    let held = are(["stale", "stale", "stale", "stale", "stale", "orphan"]);
    let answer = bench.until("/api/v1/vms", |answer| listed(answer) == held).await;
    assert_eq!(answer["nodes"][0]["held"].as_array().map(Vec::len), Some(5), "{answer}");
    let (status, answer) = bench.ask(Method::DELETE, "/api/v1/vms/a@n1", "").await;
    assert_eq!((status, &answer["code"]), (409, &json!("not_orphan")));
    let (status, answer) = bench.ask(Method::POST, "/api/v1/vms/confirm", r#"{"node":"n1"}"#).await;
    assert_eq!((status, answer["orphans"].as_array().map(Vec::len)), (200, Some(5)));
    let (status, answer) = bench.ask(Method::POST, "/api/v1/vms/confirm", r#"{"node":"n1"}"#).await;
    assert_eq!((status, &answer["code"]), (409, &json!("nothing_held")));
    assert_eq!(listed(&bench.get("/api/v1/vms").await), are(["orphan"; 6]));
    assert_eq!(bench.ask(Method::DELETE, "/api/v1/vms/a@n1", "").await.0, 204);
    assert_eq!(bench.ask(Method::GET, "/api/v1/vms/a@n1", "").await.0, 404);
    // One comes back.
    bench.tell("n1", &facts(&all[1..2], None), vec![]).await;
    let back = are(["orphan", "present", "orphan", "orphan", "orphan", "orphan"]);
    bench.until("/api/v1/vms", |answer| listed(answer) == back[1..]).await;
    // The node itself is forgotten.
    assert_eq!(bench.ask(Method::DELETE, "/api/v1/hosts/n1", "").await.0, 204);
    bench.until_listed(&[]).await;
    bench.end().await;
}

#[tokio::test]
async fn silence_is_not_death() {
    let dir = tempfile::tempdir().unwrap();
    let inventory = InventoryFile { stale_after_seconds: Some(5), ..InventoryFile::default() };
    let mut bench = Bench::with(dir.path(), inventory).await;
    let one = facts(&[("web", RUNNING)], None);
    bench.tell("n1", &one, vec![]).await;
    bench.until_listed(&["web@n1 running present healthy"]).await;
    bench.until_listed(&["web@n1 running stale unknown"]).await;
    let web = bench.get("/api/v1/vms/web").await;
    assert_eq!(web["cause"]["layer"], "node", "{web}");
    let reason = web["presence_reason"].as_str().unwrap();
    assert!(reason.starts_with("nothing was heard of the node since "), "{web}");
    // The same as before, and so no version: that it was heard of is enough.
    bench.tell("n1", &one, vec![]).await;
    bench.until_listed(&["web@n1 running present healthy"]).await;
    bench.end().await;
}

#[tokio::test]
async fn use_beyond_limits_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    let one = facts(&[("web", RUNNING)], None);
    bench.tell("n1", &one, vec![]).await;
    bench.until_listed(&["web@n1 running present healthy"]).await;
    let rate = |rate: f64| Some(rate);
    let disk = VmDiskLoad { read_bytes_per_second: rate(5.0), written_bytes_per_second: rate(6.0) };
    let tap = InterfaceLoad {
        received_bytes_per_second: rate(100.0),
        sent_bytes_per_second: rate(200.0),
        ..InterfaceLoad::default()
    };
    for second in 0..3 {
        let used = UnitLoad {
            cpu_percent: Some(42.0),
            memory_bytes: Some(99 << 20),
            vm: Some(Box::new(VmLoad {
                taps: Some(vec!["vm-web".to_owned()]),
                boot_ms: Some(4200),
                memory_peak_bytes: Some(100 << 20),
                disks: [("vda".to_owned(), disk)].into(),
                ..VmLoad::default()
            })),
            ..UnitLoad::default()
        };
        let units = [("microvm@web.service".to_owned(), used)].into();
        let interfaces = [("vm-web".to_owned(), tap.clone())].into();
        let at = Time::from_seconds(2_000_000_000 + second);
        bench.tell("n1", &one, vec![Load { at, units, interfaces, ..Load::default() }]).await;
    }
    let web = bench.until("/api/v1/vms/web", |vm| vm["health"] == "degraded").await;
    assert_eq!(web["score"], 0.5, "{web}");
    assert_eq!(web["usage"]["cpu_percent"], 42.0);
    assert_eq!(web["usage"]["memory_limit_bytes"], 100 << 20);
    assert_eq!(web["usage"]["memory_peak_bytes"], 100 << 20);
    let traffic =
        |into: f64, out: f64| json!({"in_bytes_per_second": into, "out_bytes_per_second": out});
    assert_eq!(web["usage"]["disks"], json!({"vda": traffic(5.0, 6.0)}));
    // What the tap receives is what the VM sends.
    assert_eq!(web["usage"]["interfaces"], json!({"vm-web": traffic(200.0, 100.0)}));
    let message = "memory is near its limit: 99 MiB of 100 MiB";
    assert_eq!(web["cause"], json!({"layer": "vmm", "check": "memory", "message": message}));
    let response = bench.client.open(Method::GET, "/metrics", "", Bytes::new()).await.unwrap();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(text.to_vec()).unwrap();
    for line in [
        "safetytwin_vms{state=\"running\",health=\"degraded\",presence=\"present\"} 1",
        "safetytwin_vm_state{vm=\"web@n1\",node=\"n1\"} 3",
        "safetytwin_vm_health_score{vm=\"web@n1\",node=\"n1\"} 0.5",
        "safetytwin_vm_memory_bytes{vm=\"web@n1\",node=\"n1\"} 103809024",
        "safetytwin_vm_boot_seconds{vm=\"web@n1\",node=\"n1\"} 4.2",
        "safetytwin_vm_memory_peak_bytes{vm=\"web@n1\",node=\"n1\"} 104857600",
    ] {
        assert!(text.lines().any(|one| one == line), "{line} in {text}");
    }
    bench.end().await;
}

#[tokio::test]
async fn errors_in_the_journal_and_kills_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    let one = facts(&[("web", RUNNING)], None);
    bench.tell("n1", &one, vec![]).await;
    bench.until_listed(&["web@n1 running present healthy"]).await;
    let begin = Time::from_seconds(2_000_000_000);
    let load = |seconds: u64, vm: VmLoad| {
        let used = UnitLoad { vm: Some(Box::new(vm)), ..UnitLoad::default() };
        let units = [("microvm@web.service".to_owned(), used)].into();
        vec![Load { at: begin.plus(Duration::from_secs(seconds)), units, ..Load::default() }]
    };
    let said = |critical| JournalErrors { critical, errors: 2, last: Some(begin) };
    let vm = VmLoad { journal: Some(said(1)), ..VmLoad::default() };
    bench.tell("n1", &one, load(0, vm)).await;
    let web = bench.until("/api/v1/vms/web", |vm| vm["health"] == "degraded").await;
    let message = "in the journal of the last hour: 1 critical, 2 errors";
    assert_eq!(web["cause"], json!({"layer": "vmm", "check": "journal", "message": message}));
    assert_eq!(web["usage"]["journal"]["critical"], 1, "{web}");
    let vm = VmLoad { journal: Some(said(0)), oom_kills: Some(1), ..VmLoad::default() };
    bench.tell("n1", &one, load(1, vm)).await;
    let web = bench.until("/api/v1/vms/web", |vm| vm["cause"]["check"] == "oom").await;
    let message = "memory ran out, and the kernel killed 1 of its processes";
    assert_eq!(web["cause"]["message"], message, "{web}");
    let vm = VmLoad { journal: Some(said(0)), oom_kills: Some(0), ..VmLoad::default() };
    bench.tell("n1", &one, load(2, vm)).await;
    bench.until_listed(&["web@n1 running present healthy"]).await;
    bench.end().await;
}

#[tokio::test]
async fn what_vmms_say_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    let one = facts(&[("web", RUNNING)], None);
    bench.tell("n1", &one, vec![]).await;
    bench.until_listed(&["web@n1 running present healthy"]).await;
    let begin = Time::from_seconds(2_000_000_000);
    let load = |seconds: u64, vmm: &VmmLoad| {
        let vm = VmLoad { vmm: Some(vmm.clone()), ..VmLoad::default() };
        let used = UnitLoad { vm: Some(Box::new(vm)), ..UnitLoad::default() };
        let units = [("microvm@web.service".to_owned(), used)].into();
        vec![Load { at: begin.plus(Duration::from_secs(seconds)), units, ..Load::default() }]
    };
    let said = VmmLoad {
        at: Some(begin),
        runs: Some(true),
        status: Some("running".into()),
        vcpus: Some(2),
        memory_bytes: Some(1024),
        balloon_memory_bytes: Some(512),
        guest_agent: Some(true),
        fault: None,
    };
    bench.tell("n1", &one, load(0, &said)).await;
    let web = bench.until("/api/v1/vms/web", |vm| vm["usage"]["vmm"]["vcpus"] == 2).await;
    assert_eq!(web["usage"]["vmm"]["guest_agent"], true, "{web}");
    // The unit has a limit of memory, and none of processor time.
    assert_eq!(web["usage"]["memory_limit_bytes"], 100 << 20, "{web}");
    assert_eq!(web["usage"]["cpu_limit_percent"], 200, "{web}");
    let response = bench.client.open(Method::GET, "/metrics", "", Bytes::new()).await.unwrap();
    let text = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(text.to_vec()).unwrap();
    for figure in ["vm_vmm_answers", "vm_guest_agent"] {
        let line = format!("safetytwin_{figure}{{vm=\"web@n1\",node=\"n1\"}} 1");
        assert!(text.lines().any(|one| one == line), "{line} in {text}");
    }
    // It takes a while to count, and what was said before stays.
    let silent = VmmLoad { fault: Some("its VMM does not answer".into()), ..said };
    for second in 1..=6 {
        bench.tell("n1", &one, load(second, &silent)).await;
    }
    let web = bench.until("/api/v1/vms/web", |vm| vm["health"] == "degraded").await;
    let message = "its VMM does not answer";
    assert_eq!(web["cause"], json!({"layer": "vmm", "check": "vmm-socket", "message": message}));
    assert_eq!(web["usage"]["vmm"]["vcpus"], 2, "{web}");
    bench.end().await;
}

#[tokio::test]
async fn declared_checks_are_made() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    bench.tell("n1", &facts(&[("web", RUNNING)], None), vec![]).await;
    bench.until_listed(&["web@n1 running present healthy"]).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = async {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { break };
            let mut buffer = [0; 1024];
            let length = stream.read(&mut buffer).await.unwrap_or(0);
            let asked = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let status = if asked.starts_with("GET /health ") { "204 x" } else { "500 x" };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            // A check of the port alone does not wait for it.
            drop(stream.write_all(answer.as_bytes()).await);
        }
    };
    let often = json!({"interval_seconds": 1, "initial_delay_seconds": 0, "failure_threshold": 1,
        "success_threshold": 1, "address": address.to_string()});
    let with = |more: Json| {
        let mut check = often.clone();
        check.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        check
    };
    let checks = json!({"checks": {
        "port": often,
        "http": with(json!({"path": "/health", "status": 204})),
        "wrong": with(json!({"path": "/other", "weight": 2})),
    }});
    let declared = async {
        let (status, answer) =
            bench.ask(Method::PUT, "/api/v1/vms/web/checks", &checks.to_string()).await;
        assert_eq!((status, &answer["checks"]["wrong"]["status"]), (200, &json!(200)), "{answer}");
        assert_eq!(bench.get("/api/v1/vms/web/checks").await, answer);
        // State, port and http pass; the other counts twice.
        let web = bench.until("/api/v1/vms/web", |vm| vm["score"] == 0.6).await;
        assert_eq!(
            (&web["health"], &web["cause"]["layer"]),
            (&json!("degraded"), &json!("service"))
        );
        let said = web["cause"]["message"].as_str().unwrap();
        assert!(said.ends_with("/other answered 500 instead of 200"), "{said}");
        bench
    };
    let mut bench = tokio::select! {
        bench = declared => bench,
        () = serving => unreachable!("it listens"),
    };
    // Nobody listens any more: the guest refuses, and so answers.
    drop(listener);
    let report = bench.until("/api/v1/vms/web/health", |report| report["score"] == 0.2).await;
    assert_eq!(report["health"], "unhealthy", "{report}");
    assert!(report["checks"].as_array().unwrap().iter().all(|check| check["layer"] != "guest"));
    let declared = bench.get("/api/v1/vms/web/checks").await;
    bench.end().await;
    let mut bench = Bench::start(dir.path()).await;
    assert_eq!(bench.get("/api/v1/vms/web/checks").await, declared, "they survive a restart");
    assert_eq!(bench.ask(Method::PUT, "/api/v1/vms/web/checks", r#"{"checks":{}}"#).await.0, 200);
    bench.until_listed(&["web@n1 running present healthy"]).await;
    bench.end().await;
}

const CHECKS: &str = "/api/v1/vms/web@n1/checks";
const RECOVERY: &str = "/api/v1/vms/web@n1/recovery";

impl Bench {
    /// Asks for work as `twin-node` does, until there is some.
    async fn work(&mut self, node: &str) -> Json {
        let path = format!("/api/v1/hosts/{node}/vm-work");
        let begin = tokio::time::Instant::now();
        loop {
            let asks = r#"{"wait":true,"can":["tcp","http","script","console","guest","icmp","arp","restart","later"]}"#;
            let (status, answer) = self.ask(Method::POST, &path, asks).await;
            assert_eq!(status, 200, "{answer}");
            match answer["tasks"].as_array().unwrap().first() {
                Some(task) => return task.clone(),
                None => assert!(begin.elapsed() < PATIENCE * 3, "no work for {node}"),
            }
        }
    }

    async fn done(&mut self, node: &str, task: &Json, outcome: &str, said: &str) {
        let path = format!("/api/v1/hosts/{node}/vm-work");
        let done = json!({"done": [{"id": task["id"], "outcome": outcome, "said": said}]});
        let (status, answer) = self.ask(Method::POST, &path, &done.to_string()).await;
        assert_eq!((status, answer), (200, json!({"tasks": []})));
    }
}

fn often(check: &Json) -> String {
    let mut check = check.clone();
    let more = json!({"interval_seconds": 1, "initial_delay_seconds": 0, "failure_threshold": 1,
        "success_threshold": 1});
    check.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"checks": {"own": check}}).to_string()
}

#[tokio::test]
async fn nodes_make_checks_that_only_they_can() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    bench.tell("n1", &facts(&[("web", RUNNING)], None), vec![]).await;
    bench.until_listed(&["web@n1 running present healthy"]).await;
    let script = often(&json!({"script": "disk"}));
    assert_eq!(bench.ask(Method::PUT, CHECKS, &script).await.0, 200);
    let task = bench.work("n1").await;
    assert_eq!(task["work"], json!({"script": {"name": "disk"}}), "{task}");
    assert_eq!(task["unit"], "microvm@web.service");
    // What another node says of it, or what is said of nothing, counts for nothing.
    bench.done("n2", &task, "passed", "").await;
    bench.done("n1", &json!({"id": 7}), "failed", "").await;
    bench.done("n1", &task, "failed", "disk is\u{7} full").await;
    let web = bench.until("/api/v1/vms/web", |vm| vm["health"] == "degraded").await;
    let cause = json!({"layer": "service", "check": "own", "message": "disk is full"});
    assert_eq!(web["cause"], cause);
    let task = bench.work("n1").await;
    bench.done("n1", &task, "unable", "there is no such script").await;
    let web = bench.until("/api/v1/vms/web", |vm| vm["cause"]["layer"] == "node").await;
    assert_eq!(web["cause"]["message"], "there is no such script");
    let task = bench.work("n1").await;
    bench.done("n1", &task, "passed", "").await;
    bench.until_listed(&["web@n1 running present healthy"]).await;
    // What comes of a check that is another by then counts for nothing.
    let of_before = bench.work("n1").await;
    let console = often(&json!({"console": "panic", "absent": true}));
    assert_eq!(bench.ask(Method::PUT, CHECKS, &console).await.0, 200);
    bench.done("n1", &of_before, "failed", "disk is full").await;
    assert_eq!(bench.get("/api/v1/vms/web").await["health"], "healthy");
    let task = bench.work("n1").await;
    assert_eq!(task["work"]["console"]["text"], "panic", "{task}");
    bench.done("n1", &task, "failed", "it is on the console").await;
    bench.until("/api/v1/vms/web", |vm| vm["cause"]["layer"] == "guest").await;
    bench.end().await;
}

#[tokio::test]
async fn a_node_says_what_is_in_the_way_of_a_guest() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    bench.tell("n1", &facts(&[("web", RUNNING)], None), vec![]).await;
    bench.until_listed(&["web@n1 running present healthy"]).await;
    let path = "/api/v1/hosts/n1/vm-work";
    let failed = |task: &Json, layer: Option<&str>| {
        let mut done = json!({"id": task["id"], "outcome": "failed", "said": "no answer"});
        if let Some(layer) = layer {
            done["layer"] = json!(layer);
        }
        json!({ "done": [done] }).to_string()
    };
    let guest = often(&json!({"guest_agent": true, "vsock_port": 9001}));
    assert_eq!(bench.ask(Method::PUT, CHECKS, &guest).await.0, 200);
    let declared = bench.get(CHECKS).await;
    assert_eq!(declared["checks"]["own"]["vsock_port"], 9001, "{declared}");
    for (layer, health) in [("guest", "unresponsive"), ("vmm", "degraded")] {
        let task = bench.work("n1").await;
        assert_eq!(task["work"], json!({"guest": {"port": 9001}}), "{task}");
        assert_eq!(bench.ask(Method::POST, path, &failed(&task, Some(layer))).await.0, 200);
        let web = bench.until("/api/v1/vms/web", |vm| vm["cause"]["layer"] == layer).await;
        assert_eq!(web["health"], health, "{web}");
    }
    for (check, work) in [
        (json!({"icmp": "10.0.0.5"}), json!({"icmp": {"address": "10.0.0.5"}})),
        (json!({"arp": "10.0.0.5"}), json!({"arp": {"address": "10.0.0.5"}})),
    ] {
        assert_eq!(bench.ask(Method::PUT, CHECKS, &often(&check)).await.0, 200);
        let task = bench.work("n1").await;
        assert_eq!(task["work"], work, "{task}");
        assert_eq!(bench.ask(Method::POST, path, &failed(&task, None)).await.0, 200);
        bench.until("/api/v1/vms/web", |vm| vm["health"] == "unresponsive").await;
    }
    // An address that the node alone reaches.
    let address = "192.0.2.9:80";
    for (mut check, work) in [
        (json!({"address": address}), json!({"tcp": {"address": address}})),
        (
            json!({"address": address, "path": "/health", "status": 204}),
            json!({"http": {"address": address, "path": "/health", "status": 204}}),
        ),
    ] {
        check["from_node"] = json!(true);
        assert_eq!(bench.ask(Method::PUT, CHECKS, &often(&check)).await.0, 200);
        assert_eq!(bench.get(CHECKS).await["checks"]["own"]["from_node"], true);
        for layer in ["guest", "service"] {
            let task = bench.work("n1").await;
            assert_eq!(task["work"], work, "{task}");
            assert_eq!(bench.ask(Method::POST, path, &failed(&task, Some(layer))).await.0, 200);
            bench.until("/api/v1/vms/web", |vm| vm["cause"]["layer"] == layer).await;
        }
    }
    // An older twin-node asks, which does not know such work: it gets all other, and is named.
    let script = often(&json!({"script": "disk"})).replace("own", "other");
    assert_eq!(bench.ask(Method::PUT, CHECKS, &script).await.0, 200);
    let (status, answer) = bench.ask(Method::POST, path, r#"{"wait":true}"#).await;
    assert_eq!((status, answer["tasks"].as_array().map(Vec::len)), (200, Some(1)), "{answer}");
    assert_eq!(answer["tasks"][0]["work"], json!({"script": {"name": "disk"}}), "{answer}");
    let tcp = often(&json!({"address": address, "from_node": true})).replace("own", "third");
    assert_eq!(bench.ask(Method::PUT, CHECKS, &tcp).await.0, 200);
    let web = bench.until("/api/v1/vms/web", |vm| vm["cause"]["check"] == "third").await;
    let message = "twin-node of n1 is too old to make this check (tcp); upgrade it";
    assert_eq!(web["cause"], json!({"layer": "node", "check": "third", "message": message}));
    bench.end().await;
}

#[tokio::test]
async fn processes_are_looked_for_in_the_facts() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    let mut one = facts(&[("web", RUNNING)], None);
    bench.tell("n1", &one, vec![]).await;
    bench.until_listed(&["web@n1 running present healthy"]).await;
    let process = often(&json!({"process": "virtiofsd"}));
    assert_eq!(bench.ask(Method::PUT, CHECKS, &process).await.0, 200);
    // Before processes were looked at nothing is known of them.
    let name = "processes".to_owned();
    one.put_entity(&Collector { name, ..Collector::default() });
    bench.tell("n1", &one, vec![]).await;
    let web = bench.until("/api/v1/vms/web", |vm| vm["health"] == "degraded").await;
    let message = "no process virtiofsd runs in its unit";
    assert_eq!(web["cause"], json!({"layer": "vmm", "check": "own", "message": message}));
    one.put_entity(&Process {
        id: "virtiofsd#1".into(),
        name: "other".into(),
        executable: Some("/usr/libexec/virtiofsd".into()),
        unit: Some("microvm@web.service".into()),
        ..Process::default()
    });
    bench.tell("n1", &one, vec![]).await;
    bench.until_listed(&["web@n1 running present healthy"]).await;
    bench.end().await;
}

#[tokio::test]
async fn what_does_badly_is_started_anew_where_that_is_wanted() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    bench.tell("n1", &facts(&[("web", RUNNING)], None), vec![]).await;
    bench.until_listed(&["web@n1 running present healthy"]).await;
    assert_eq!(bench.get(RECOVERY).await, json!({"restart": false}));
    let policy = json!({"restart": true, "restarts": 1, "delay_seconds": 1}).to_string();
    let (status, answer) = bench.ask(Method::PUT, RECOVERY, &policy).await;
    assert_eq!((status, &answer["cap_seconds"]), (200, &json!(300)), "{answer}");
    bench.tell("n1", &facts(&[("web", "failed/failed")], None), vec![]).await;
    let task = bench.work("n1").await;
    assert_eq!((&task["work"], &task["name"]), (&json!("restart"), &json!("web")));
    bench.done("n1", &task, "passed", "").await;
    let report = bench
        .until("/api/v1/vms/web/health", |report| report["transitions"][0]["of"] == "recovery")
        .await;
    let last = &report["transitions"][0];
    assert_eq!((&last["from"], &last["to"]), (&json!("none"), &json!("restart 1")), "{report}");
    assert_eq!(last["reason"], "vmm: state: the VMM was killed by a signal");
    // It did not help.
    let answer = bench.until(RECOVERY, |answer| answer["given_up"] == true).await;
    assert_eq!(answer["tried"], 1, "{answer}");
    bench.end().await;
    let mut bench = Bench::start(dir.path()).await;
    assert_eq!(bench.get(RECOVERY).await, answer, "it survives a restart");
    assert_eq!(bench.ask(Method::PUT, RECOVERY, r#"{"restart":false}"#).await.0, 200);
    assert_eq!(bench.get(RECOVERY).await, json!({"restart": false}));
    bench.end().await;
}

#[tokio::test]
async fn bad_input_gets_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    let mut odd = facts(&[("web", RUNNING)], None);
    odd.put_entity(&unit("microvm@..%2f.service", RUNNING));
    odd.put_entity(&unit("microvm@web\\x2d1.service", RUNNING));
    odd.put_entity(&unit("microvm@web-1.service", RUNNING));
    odd.put_entity(&unit("microvm-virtiofsd@web.service", RUNNING));
    bench.tell("n1", &odd, vec![]).await;
    bench.tell("n2", &facts(&[("web", RUNNING)], None), vec![]).await;
    let healthy = |id: &str| format!("{id} running present healthy");
    let expected = ["web-1@n1", "web@n1", "web@n2"].map(healthy);
    let answer = bench.until("/api/v1/vms", |answer| listed(answer) == expected).await;
    let ignored = &answer["nodes"][0]["ignored"];
    assert_eq!(ignored.as_array().map(Vec::len), Some(2), "{answer}");
    let check = |spec: Json| json!({"checks": {"web": spec}}).to_string();
    for (method, path, body, status, code) in [
        ("GET", "/api/v1/vms/nothing", String::new(), 404, "unknown_vm"),
        ("GET", "/api/v1/vms/..%2fetc", String::new(), 404, "unknown_vm"),
        ("GET", "/api/v1/vms/web", String::new(), 400, "ambiguous"),
        ("GET", "/api/v1/vms?state=dead", String::new(), 400, "bad_query"),
        ("GET", "/api/v1/vms?stat=failed", String::new(), 400, "bad_query"),
        ("GET", "/api/v1/vms?limit=0", String::new(), 400, "bad_query"),
        ("GET", "/api/v1/vms/events?from=x", String::new(), 400, "bad_query"),
        ("POST", "/api/v1/vms/confirm", String::new(), 400, "bad_json"),
        ("POST", "/api/v1/vms/confirm", r#"{"node":"../x"}"#.to_owned(), 400, "bad_json"),
        ("POST", "/api/v1/vms/confirm", r#"{"node":"n9"}"#.to_owned(), 409, "nothing_held"),
        ("PUT", "/api/v1/vms/web@n1/checks", "{".to_owned(), 400, "bad_json"),
        ("PUT", "/api/v1/vms/web@n1/checks", check(json!({"adress": "x"})), 400, "bad_json"),
        ("PUT", "/api/v1/vms/web@n1/checks", check(json!({"address": "db:80"})), 400, "bad_check"),
        (
            "PUT",
            "/api/v1/vms/web@n1/checks",
            check(json!({"address": "10.0.0.5:80", "path": "/a b"})),
            400,
            "bad_check",
        ),
        (
            "PUT",
            "/api/v1/vms/web@n1/checks",
            check(json!({"address": "10.0.0.5:80", "weight": 0})),
            400,
            "bad_check",
        ),
        (
            "PUT",
            "/api/v1/vms/web@n1/checks",
            json!({"checks": {"state": {"address": "10.0.0.5:80"}}}).to_string(),
            400,
            "bad_check",
        ),
    ] {
        let method = method.parse().unwrap();
        let (seen, answer) = bench.ask(method, path, &body).await;
        assert_eq!((seen, answer["code"].as_str()), (status, Some(code)), "{path} {body} {answer}");
    }
    bench.end().await;
}

#[tokio::test]
async fn checks_and_recoveries_that_are_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut bench = Bench::start(dir.path()).await;
    bench.tell("n1", &facts(&[("web", RUNNING)], None), vec![]).await;
    bench.until_listed(&["web@n1 running present healthy"]).await;
    let check = |spec: Json| json!({"checks": {"web": spec}}).to_string();
    for (method, path, body, status, code) in [
        ("PUT", CHECKS, check(json!({})), 400, "bad_check"),
        ("PUT", CHECKS, check(json!({"script": "../x"})), 400, "bad_check"),
        ("PUT", CHECKS, check(json!({"process": "/bin/x"})), 400, "bad_check"),
        ("PUT", CHECKS, check(json!({"console": "a\nb"})), 400, "bad_check"),
        ("PUT", CHECKS, check(json!({"script": "x", "absent": true})), 400, "bad_check"),
        ("PUT", CHECKS, check(json!({"script": "x", "process": "y"})), 400, "bad_check"),
        ("PUT", CHECKS, check(json!({"guest_agent": false})), 400, "bad_check"),
        ("PUT", CHECKS, check(json!({"icmp": "10.0.0.5", "vsock_port": 1})), 400, "bad_check"),
        ("PUT", CHECKS, check(json!({"guest_agent": true, "arp": "10.0.0.5"})), 400, "bad_check"),
        ("PUT", CHECKS, check(json!({"icmp": "10.0.0.5", "from_node": true})), 400, "bad_check"),
        ("PUT", CHECKS, check(json!({"icmp": "web"})), 400, "bad_check"),
        ("PUT", CHECKS, check(json!({"icmp": "224.0.0.1"})), 400, "bad_check"),
        ("PUT", CHECKS, check(json!({"icmp": "fe80::1"})), 400, "bad_check"),
        ("PUT", CHECKS, check(json!({"arp": "fd00::5"})), 400, "bad_check"),
        ("PUT", CHECKS, check(json!({"arp": "0.0.0.0"})), 400, "bad_check"),
        ("PUT", RECOVERY, json!({"restart": true, "restarts": 0}).to_string(), 400, "bad_recovery"),
        (
            "PUT",
            RECOVERY,
            json!({"restart": true, "cap_seconds": 1}).to_string(),
            400,
            "bad_recovery",
        ),
        ("PUT", RECOVERY, json!({"restart": true, "tried": 1}).to_string(), 400, "bad_recovery"),
        ("POST", "/api/v1/hosts/n1/vm-work", json!({"done": 1}).to_string(), 400, "bad_json"),
    ] {
        let method = method.parse().unwrap();
        let (seen, answer) = bench.ask(method, path, &body).await;
        assert_eq!((seen, answer["code"].as_str()), (status, Some(code)), "{path} {body} {answer}");
    }
    bench.end().await;
}
