//! Against a server of canned answers on a real socket.

use super::*;
use crate::backlog::tests::sample;
use crate::spool::patch_body;
use model::{Fields, Item, Kind, Subject, Value, Version};
use std::fs::OpenOptions;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What was sent, and what the server is to say to it: a status.
type Asked = (Batch, tokio::sync::oneshot::Sender<u16>);

/// A content that the server does not take, whatever it is sent with.
const REFUSED: &[u8] = b"too large for what is in between";

struct Bench {
    outgoing: mpsc::Sender<Outgoing>,
    asked: mpsc::Receiver<Asked>,
    reports: mpsc::Receiver<Report>,
    standings: watch::Receiver<Standing>,
    /// The engine's end, which the outbox holds weakly.
    _engine: mpsc::Sender<Report>,
    _tasks: JoinSet<()>,
    dir: tempfile::TempDir,
}

fn facts(number: i64) -> Facts {
    let fields: Fields = [("n".to_owned(), Value::Int(number))].into();
    [(Subject::escaped(Kind::UNIT, "a.service"), Item::new(&fields))].into_iter().collect()
}

fn step(to: i64) -> Body {
    let (before, after) = (facts(to - 1), facts(to));
    patch_body(before.digest(), after.digest(), model::diff(&before, &after))
}

fn delta(at: i64, body: Body) -> Outgoing {
    Outgoing::Delta { at: Time(at), body, of_first: false }
}

impl Bench {
    /// A whole state and two steps wait in the spool; `harm` comes before they are read.
    async fn start(load: usize, harm: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let open = Spool::open(&dir.path().join("spool"), 1 << 20, || "stream".to_owned());
        let mut spool = open.unwrap().spool;
        assert!(spool.push(Time(0), Body::Keyframe(facts(0)), None).is_none());
        assert!(spool.push(Time(1), step(1), None).is_none());
        assert!(spool.push(Time(2), step(2), None).is_none());
        harm(dir.path());
        let (outgoing, incoming) = mpsc::channel(64);
        for at in 0..load {
            let load = Box::new(sample(i64::try_from(at).unwrap(), 0));
            outgoing.try_send(Outgoing::Load(load)).unwrap();
        }
        let (engine, reports) = mpsc::channel(64);
        let looked = Looked { all: true, ..Looked::default() };
        let (standing, standings) = watch::channel(Standing::default());
        let outbox = Outbox {
            host: HostId::new("n1").unwrap(),
            spool,
            contents: Contents::open(&dir.path().join("contents"), 1 << 20).unwrap(),
            incoming,
            standing,
            new_stream: || "fresh".to_owned(),
            refusals: 0,
            looked: watch::channel(looked).1,
            engine: engine.downgrade(),
            recall: true,
            patient: true,
            is_known: None,
            without_load: false,
            asks_whole: false,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (ask, asked) = mpsc::channel(1);
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(listener, ask));
        tasks.spawn(outbox.run(Client::new(&url, None).unwrap(), CancellationToken::new()));
        Self { outgoing, asked, reports, standings, _engine: engine, _tasks: tasks, dir }
    }

    /// Says this to the next request.
    async fn answer(&mut self, status: u16) -> Batch {
        let (batch, answer) = self.asked.recv().await.unwrap();
        answer.send(status).unwrap();
        batch
    }
}

async fn serve(listener: TcpListener, ask: mpsc::Sender<Asked>) {
    loop {
        let mut stream = listener.accept().await.unwrap().0;
        while let Some(body) = next_body(&mut stream).await {
            if let Ok(wire::Contents(contents)) = wire::decode(&body) {
                let is_refused = contents.iter().any(|content| content == REFUSED);
                let status = if is_refused { 413 } else { 204 };
                let head = format!("HTTP/1.1 {status} -\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                continue;
            }
            let batch: Batch = wire::decode(&body).unwrap();
            let acknowledged = Acknowledged {
                sequence: batch.deltas.last().map_or(0, |delta| delta.sequence),
                version: Version(1),
                missing: Vec::new(),
                told: None,
            };
            let (answer, status) = tokio::sync::oneshot::channel();
            ask.send((batch, answer)).await.unwrap();
            let status = status.await.unwrap();
            let body = if status == 200 { wire::encode(&acknowledged) } else { Vec::new() };
            let head = format!("HTTP/1.1 {status} -\r\nContent-Length: {}\r\n\r\n", body.len());
            stream.write_all(&[head.into_bytes(), body].concat()).await.unwrap();
        }
    }
}

async fn next_body(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let (_, length) = head.split_once("content-length: ").unwrap();
    let mut body = vec![0; length.split("\r\n").next().unwrap().parse().unwrap()];
    stream.read_exact(&mut body).await.unwrap();
    Some(body)
}

#[tokio::test]
async fn load_that_makes_requests_too_large_costs_no_change() {
    let mut bench = Bench::start(3, |_| ()).await;
    let batch = bench.answer(413).await;
    assert_eq!((batch.deltas.len(), batch.load.len()), (3, 3));
    let (batch, answer) = bench.asked.recv().await.unwrap();
    assert_eq!((batch.deltas.len(), batch.load.len()), (3, 0), "without load then");
    for at in 0..3 {
        let load = Box::new(sample(at, 0));
        bench.outgoing.send(Outgoing::Load(load)).await.unwrap();
    }
    bench.outgoing.send(delta(3, step(3))).await.unwrap();
    answer.send(200).unwrap();
    let batch = bench.answer(200).await;
    assert_eq!((batch.stream.as_str(), batch.deltas.len(), batch.load.len()), ("stream", 1, 3));
    assert_eq!((batch.deltas[0].sequence, batch.deltas[0].gap), (4, None));
}

#[tokio::test]
async fn changes_that_are_too_large_become_one_state_whatever_load_there_is() {
    let mut bench = Bench::start(1, |_| ()).await;
    assert_eq!(bench.answer(413).await.load.len(), 1);
    for _ in 0..REFUSALS {
        let load = Box::new(sample(9, 0));
        bench.outgoing.send(Outgoing::Load(load)).await.unwrap();
        let batch = bench.answer(413).await;
        assert_eq!((batch.stream.as_str(), batch.load.len()), ("stream", 0));
    }
    let batch = bench.answer(200).await;
    assert_eq!((batch.stream.as_str(), batch.deltas.len()), ("fresh", 1));
}

#[tokio::test]
async fn what_can_not_be_read_back_is_asked_of_the_engine() {
    let harm = |dir: &Path| {
        let journal = OpenOptions::new().write(true).open(dir.join("spool/journal")).unwrap();
        journal.set_len(20).unwrap();
    };
    let mut bench = Bench::start(0, harm).await;
    assert!(matches!(bench.reports.recv().await.unwrap().seen, Seen::Lost));
    assert!(bench.dir.path().join("spool/stale").exists());
    bench.outgoing.send(delta(3, step(3))).await.unwrap();
    bench.outgoing.send(delta(4, Body::Keyframe(facts(4)))).await.unwrap();
    let batch = bench.answer(200).await;
    assert_eq!((batch.stream.as_str(), batch.deltas.len()), ("fresh", 1));
    let first = &batch.deltas[0];
    assert_eq!(first.body, Body::Keyframe(facts(4)));
    assert_eq!(first.gap.map(|gap| (gap.since, gap.merged)), Some((Time(0), 5)));
    bench.outgoing.send(delta(5, step(5))).await.unwrap();
    assert_eq!(bench.answer(200).await.deltas[0].body, step(5));
}

#[tokio::test]
async fn a_content_that_is_not_taken_holds_up_no_change() {
    let keep = |dir: &Path| {
        let mut contents = Contents::open(&dir.join("contents"), 1 << 20).unwrap();
        for content in [b"before".as_slice(), REFUSED, b"after"] {
            contents.add(content).unwrap();
        }
    };
    let mut bench = Bench::start(2, keep).await;
    // The changes come with nothing left out, and so does the load.
    let mut load = 0;
    let batch = loop {
        let batch = bench.answer(200).await;
        load += batch.load.len();
        if !batch.deltas.is_empty() {
            break batch;
        }
    };
    assert_eq!((batch.stream.as_str(), batch.deltas.len(), load), ("stream", 3, 2));
    // It is kept, to be tried again later, and is no fault yet.
    assert_eq!(std::fs::read_dir(bench.dir.path().join("contents")).unwrap().count(), 1);
    assert_eq!(bench.standings.borrow().contents, None);
    bench.outgoing.send(Outgoing::Content(REFUSED.to_vec())).await.unwrap();
    bench.outgoing.send(delta(3, step(3))).await.unwrap();
    assert_eq!(bench.answer(200).await.deltas.len(), 1);
    assert_eq!(bench.standings.borrow().trouble, None);
}
