//! What the tests of delivery share: an outbox on a disk, endpoints that behave as told.
#![allow(clippy::allow_attributes, reason = "what is unused differs by test")]
#![allow(dead_code, clippy::unwrap_used, clippy::panic, reason = "each test uses a part")]

use model::Time;
use sinks::{Draft, Entry, Outbox, SessionChange, Target};
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use store::{Changes, History, Options, Records};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// The time, as deliver is given it.
#[expect(clippy::disallowed_methods, reason = "the tests' own clock")]
pub(crate) fn clock() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Time(i64::try_from(since.as_micros()).unwrap())
}

/// Waits until it is so, for 20 s at most.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let begin = Instant::now();
    while !is_so().await {
        assert!(begin.elapsed() < Duration::from_secs(20), "it never came to this: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A history on disk, and its outbox.
pub(crate) struct Kept {
    _history: History,
    records: Records,
    pub(crate) outbox: Outbox,
}

impl Kept {
    pub(crate) async fn open(directory: &Path) -> Self {
        let begin = Instant::now();
        let history = loop {
            match History::open(directory, Options::default()) {
                Ok(history) => break history,
                // What was cut off has it for a moment more. It may need this thread to end.
                Err(_held) if begin.elapsed() < Duration::from_secs(5) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                Err(error) => panic!("{error}"),
            }
        };
        let records = history.records();
        let outbox = Outbox::open(records.clone(), clock()).unwrap();
        Self { _history: history, records, outbox }
    }

    pub(crate) fn put(&self, drafts: &[Draft]) -> Vec<Entry> {
        let mut changes = Changes::default();
        let entries = self.outbox.enqueue(&mut changes, drafts, clock()).unwrap();
        self.records.write(changes).unwrap();
        self.outbox.added(entries.clone());
        entries
    }

    pub(crate) async fn empty(&self) {
        until("the outbox is empty", || async { self.outbox.depth() == (0, 0) }).await;
    }
}

pub(crate) fn rename(vm: &str, target: Target, old: &str, new: &str) -> Draft {
    let change = SessionChange::Rename { old: old.to_owned(), new: new.to_owned() };
    Draft { vm: vm.to_owned(), target, change }
}

/// A call that an endpoint received.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Call {
    pub(crate) path: String,
    pub(crate) key: String,
    pub(crate) body: serde_json::Value,
}

/// What it answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Reply {
    Status(u16),
    Never,
    HangUp,
}

type Behaviour = Box<dyn FnMut(&Call) -> Reply + Send>;

/// An endpoint.
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    _tasks: JoinSet<()>,
}

struct State {
    received: Mutex<Vec<(Call, Reply)>>,
    behaviour: Mutex<Behaviour>,
    /// Calls that are not answered yet, and the most there were.
    open: Mutex<(usize, usize)>,
}

impl Peer {
    pub(crate) async fn start(behaviour: impl FnMut(&Call) -> Reply + Send + 'static) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), behaviour).await
    }

    pub(crate) async fn at(
        address: SocketAddr,
        behaviour: impl FnMut(&Call) -> Reply + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            received: Mutex::default(),
            behaviour: Mutex::new(Box::new(behaviour)),
            open: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        let shared = state.clone();
        tasks.spawn(async move {
            let mut calls = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                calls.spawn(serve(stream, shared.clone()));
            }
        });
        Self { address, state, _tasks: tasks }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn received(&self) -> Vec<Call> {
        self.state.received.lock().unwrap().iter().map(|(call, _)| call.clone()).collect()
    }

    /// Those that it answered with a success.
    pub(crate) fn accepted(&self) -> Vec<Call> {
        let received = self.state.received.lock().unwrap();
        let is_fine = |reply: &Reply| matches!(reply, Reply::Status(200..=299));
        received.iter().filter(|(_, reply)| is_fine(reply)).map(|(call, _)| call.clone()).collect()
    }

    pub(crate) fn most_open(&self) -> usize {
        self.state.open.lock().unwrap().1
    }

    pub(crate) fn behave(&self, behaviour: impl FnMut(&Call) -> Reply + Send + 'static) {
        *self.state.behaviour.lock().unwrap() = Box::new(behaviour);
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let mut stream = BufReader::new(stream);
    let Some(call) = read(&mut stream).await else { return };
    let reply = (state.behaviour.lock().unwrap())(&call);
    state.received.lock().unwrap().push((call, reply));
    {
        let mut open = state.open.lock().unwrap();
        open.0 += 1;
        open.1 = open.1.max(open.0);
    }
    match reply {
        Reply::HangUp => {}
        Reply::Never => {
            // Until the caller goes.
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.ok();
        }
        Reply::Status(status) => {
            // So long that calls which may go side by side do.
            tokio::time::sleep(Duration::from_millis(2)).await;
            let answer = format!("HTTP/1.1 {status} It\r\ncontent-length: 2\r\n\r\n{{}}");
            stream.get_mut().write_all(answer.as_bytes()).await.ok();
        }
    }
    state.open.lock().unwrap().0 -= 1;
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Call> {
    let (mut path, mut key, mut length) = (String::new(), String::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let line = line.trim_end();
        if let Some(rest) = line.strip_prefix("POST ") {
            path = rest.split(' ').next()?.to_owned();
        } else if let Some((name, value)) = line.split_once(": ") {
            match name.to_ascii_lowercase().as_str() {
                "idempotency-key" => key = value.to_owned(),
                "content-length" => length = value.parse().ok()?,
                "content-type" => assert_eq!(value, "application/json"),
                _ => {}
            }
        } else if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Call { path, key, body: serde_json::from_slice(&body).ok()? })
}
