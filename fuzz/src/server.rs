//! The server's file, its runs' logs, and its requests over a real socket.

use crate::machine::scratch;
use crate::made::{self, MadeFacts, MadePatch};
use ::api::wire::{self, Batch, Body, Delta, Gap};
use ::server::Server;
use ::server::config::File;
use arbitrary::Arbitrary;
use model::{Facts, Time, diff};
use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// YAML of the server's file.
pub fn server_config(text: &str) {
    match File::parse(text, Path::new("twin.yaml")) {
        Ok(file) => {
            // Any other name would be looked up.
            let numeric = |text: &String| {
                text.starts_with(':')
                    || text.parse::<IpAddr>().is_ok()
                    || text.parse::<SocketAddr>().is_ok()
            };
            // A file that it names would be read.
            if file.sync.is_none() && file.listen.iter().flatten().all(numeric) {
                match file.check() {
                    Ok(config) => assert!(
                        config.tokens_required
                            || config.listen.iter().all(|at| at.ip().is_loopback())
                    ),
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            }
        }
        Err(error) => assert!(error.to_string().contains("twin.yaml")),
    }
}

/// YAML of the older sync service's file.
pub fn server_sync(text: &str) {
    if let Err(error) = ::server::sync::Settings::parse(text, Path::new("sync.yaml")) {
        assert!(error.to_string().contains("sync.yaml"));
    }
}

const STATES: [&str; 2] = [
    r#"{"services":[{"name":"nginx","status":"running","pid":7},{"name":"db","type":"docker","image":"mysql:8"}],"processes":[{"name":"nginx","pid":7}],"hardware":{"hostname":"web01"}}"#,
    r#"{"services":[{"name":"nginx","status":"stopped"}],"processes":[],"hardware":{"hostname":"web01"}}"#,
];

/// What takes a query, or a word in its path.
const ROUTES: [&str; 12] = [
    "/api/v1/hosts/web01/log?",
    "/api/v1/hosts/web01/state?",
    "/api/v1/hosts/web01/diff?",
    "/api/v1/hosts/web01/load?",
    "/api/v1/hosts?",
    "/api/v1/history?",
    "/api/v1/hosts/web01/log?subject=",
    "/api/v1/hosts/web01/state?subject=",
    "/api/v1/hosts/web01/contents/",
    "/api/v1/hosts/",
    "/",
    "/api/v1/hosts/web01/log?since=",
];

struct Running {
    address: SocketAddr,
    connection: Option<TcpStream>,
}

impl Running {
    /// A server with a host of two versions.
    fn start() -> Self {
        let file = File {
            data_dir: Some(scratch().join("data")),
            listen: Some(vec!["127.0.0.1:0".to_owned()]),
            ..File::default()
        };
        let config = file.check().expect("this is a configuration");
        let (told, address) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be made").block_on(async {
                let server = Server::bind(config).await.expect("scratch is a data directory");
                told.send(server.addresses()[0]).expect("the fuzzer waits");
                server.run(CancellationToken::new()).await;
            });
        });
        let mut running =
            Self { address: address.recv().expect("the server starts"), connection: None };
        for state in STATES {
            assert_eq!(running.ask("POST", "/api/v1/update_state", state.as_bytes()), Some(200));
        }
        running
    }

    /// The status; `None` when the answer is a stream, or there is none.
    fn ask(&mut self, method: &str, target: &str, body: &[u8]) -> Option<u16> {
        let mut stream = match self.connection.take() {
            Some(stream) => stream,
            None => TcpStream::connect(self.address).expect("the server listens"),
        };
        stream.set_nodelay(true).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body].concat()).ok()?;
        let mut answer = Vec::new();
        let mut chunk = [0; 16 * 1024];
        let (head, length) = loop {
            let count = stream.read(&mut chunk).ok().filter(|&count| count > 0)?;
            answer.extend_from_slice(&chunk[..count]);
            let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else {
                continue;
            };
            let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
            break (head, end + 4 + length?);
        };
        while answer.len() < length {
            let count = stream.read(&mut chunk).ok().filter(|&count| count > 0)?;
            answer.extend_from_slice(&chunk[..count]);
        }
        let status = head.get(9..12)?.parse().ok()?;
        if !head.contains("connection: close") {
            self.connection = Some(stream);
        }
        Some(status)
    }
}

/// Asks the one server of this process.
fn ask(method: &str, target: &str, body: &[u8]) -> Option<u16> {
    thread_local!(static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) });
    let status = RUNNING.with_borrow_mut(|running| {
        running.get_or_insert_with(Running::start).ask(method, target, body)
    });
    assert!(
        status.is_none_or(|status| status < 500),
        "{method} {target} was answered with {status:?}"
    );
    status
}

/// What an agent may send: steps that fit, and whatever else.
#[derive(Debug, Arbitrary)]
pub enum MadeDelta {
    Keyframe { sequence: u64, at: i64, facts: MadeFacts, merged: Option<u64> },
    Step { skip: u8, at: i64, facts: MadeFacts },
    Misfit { sequence: u64, at: i64, patch: MadePatch },
}

/// Batches of a new host, which is then read, and forgotten. No agent makes the server fail.
pub fn server_deltas(batches: Vec<Vec<MadeDelta>>) {
    let mut state = Facts::default();
    let mut last = 0_u64;
    for deltas in batches.into_iter().take(4) {
        let deltas = deltas.into_iter().map(|made| match made {
            MadeDelta::Keyframe { sequence, at, facts, merged } => {
                state = made::facts(facts);
                last = sequence;
                let gap = merged.map(|merged| Gap { since: Time(at), merged });
                Delta { sequence, at: Time(at), body: Body::Keyframe(state.clone()), gap }
            }
            MadeDelta::Step { skip, at, facts } => {
                let next = made::facts(facts);
                let patch = diff(&state, &next);
                last = last.wrapping_add(1).wrapping_add(skip.into());
                let body = Body::Patch { base: state.digest(), next: next.digest(), patch };
                state = next;
                Delta { sequence: last, at: Time(at), body, gap: None }
            }
            MadeDelta::Misfit { sequence, at, patch } => {
                let body = Body::Patch {
                    base: state.digest(),
                    next: Facts::default().digest(),
                    patch: made::patch(patch),
                };
                Delta { sequence, at: Time(at), body, gap: None }
            }
        });
        let batch = Batch {
            stream: "s".to_owned(),
            deltas: deltas.collect(),
            load: Vec::new(),
            agent: String::new(),
            unseen: Vec::new(),
        };
        ask("POST", "/api/v1/hosts/fuzz/deltas", &wire::encode(&batch));
    }
    for target in ["log", "state", "state?at=@1", "diff?from=@1&to=now"] {
        ask("GET", &format!("/api/v1/hosts/fuzz/{target}"), b"");
    }
    ask("DELETE", "/api/v1/hosts/fuzz", b"");
}

/// One request, the first byte being its route. Nothing a reader asks is the server's fault.
pub fn server_requests(data: &[u8]) {
    let Some((&route, asked)) = data.split_first() else { return };
    let mut target = ROUTES[usize::from(route) % ROUTES.len()].to_owned();
    for &byte in asked {
        // The rest would be refused before anybody looks at it.
        if byte.is_ascii_graphic() && !b"#\"<>\\^`{|}".contains(&byte) {
            target.push(char::from(byte));
        } else {
            target.push_str(&format!("%{byte:02x}"));
        }
    }
    // Streams have no end to wait for.
    if target.contains("/events") || target.contains("/ws") {
        return;
    }
    ask("GET", &target, b"");
}

/// A run's log as it may lie on a disk after a crash.
pub fn server_run_log(data: &[u8]) {
    ::server::runs::fuzzing::log(data, &scratch().join("run.log"));
}
