//! Real sockets: silent ones, slow ones, and too many.

use super::*;
use axum::routing::get;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SOON: Duration = Duration::from_secs(10);

struct Bench {
    address: std::net::SocketAddr,
    places: Arc<Places>,
    stop: CancellationToken,
    serving: JoinSet<()>,
}

impl Bench {
    async fn start(limits: Limits) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answers = Answers {
            all: Router::new()
                .route("/", get(async || "all"))
                // More than sockets hold.
                .route("/long", get(async || vec![b'x'; 64 << 20])),
            probes: Router::new().route("/", get(async || "probes")),
        };
        let (places, stop) = (Arc::new(Places::new(limits)), CancellationToken::new());
        let mut serving = JoinSet::new();
        serving.spawn(listen(listener, answers, Arc::clone(&places), stop.clone()));
        Self { address, places, stop, serving }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Until so many places are taken.
    async fn frees(&self, left: usize) {
        let freed = async {
            while self.places.taken() > left {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(SOON, freed).await.expect("its place is free");
    }

    async fn end(mut self) {
        self.stop.cancel();
        let ended = tokio::time::timeout(SOON, self.serving.join_next()).await.unwrap();
        ended.unwrap().unwrap();
        assert_eq!(self.places.taken(), 0);
    }
}

/// The last line of an answer, without waiting for more.
async fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"all") && !answer.ends_with(b"probes") {
        let read = tokio::time::timeout(SOON, stream.read_buf(&mut answer)).await.unwrap();
        assert_ne!(read.unwrap(), 0, "{}", String::from_utf8_lossy(&answer));
    }
    String::from_utf8(answer).unwrap().lines().last().unwrap().to_owned()
}

/// Writes without end, a byte now and then, until the other side has closed.
async fn trickle(mut stream: TcpStream, begin: &[u8]) {
    stream.write_all(begin).await.unwrap();
    let (mut read, mut write) = stream.split();
    let writing = async {
        let mut rhythm = tokio::time::interval(Duration::from_millis(20));
        while write.write_all(b"x").await.is_ok() {
            rhythm.tick().await;
        }
    };
    let closed = async {
        let mut answer = Vec::new();
        // A reset is an end, too.
        let _end = read.read_to_end(&mut answer).await;
    };
    let closed = async { tokio::join!(writing, closed) };
    tokio::time::timeout(SOON, closed).await.expect("the server closes it");
}

#[tokio::test]
async fn what_asks_nothing_in_time_is_closed() {
    let soon = Duration::from_millis(200);
    let bench =
        Bench::start(Limits { first_head: soon, next_head: soon, ..Limits::default() }).await;
    // Nothing at all; the begin of either protocol; a head without end.
    for begin in ["", "PRI * HT", "GET / HTTP/1.1\r\nhost: x\r\nx-long: "] {
        let stream = bench.connect().await;
        match begin {
            "" => {
                let mut stream = stream;
                let read = tokio::time::timeout(SOON, stream.read_u8()).await;
                assert!(read.expect("the server closes it").is_err());
            }
            _ => trickle(stream, begin.as_bytes()).await,
        }
    }
    // A head that never ends, after one that did.
    let mut stream = bench.connect().await;
    assert_eq!(ask(&mut stream).await, "all");
    trickle(stream, b"GET / HTTP/1.1\r\nx: ").await;
    bench.end().await;
}

#[tokio::test]
async fn a_kept_connection_outlives_the_time_for_its_first_head() {
    let first_head = Duration::from_millis(100);
    let bench = Bench::start(Limits { first_head, ..Limits::default() }).await;
    let mut stream = bench.connect().await;
    assert_eq!(ask(&mut stream).await, "all");
    // Past it: a silent one that came later is closed.
    let read = tokio::time::timeout(SOON, bench.connect().await.read_u8()).await;
    assert!(read.expect("the server closes it").is_err());
    assert_eq!(ask(&mut stream).await, "all");
    bench.end().await;
}

#[tokio::test]
async fn beyond_the_limit_only_probes_are_answered() {
    let bench = Bench::start(Limits { connections: 2, ..Limits::default() }).await;
    let mut first = bench.connect().await;
    let mut second = bench.connect().await;
    assert_eq!((ask(&mut first).await, ask(&mut second).await), ("all".into(), "all".into()));
    // More than there are places for probes: each is closed after its answer, and makes room.
    for _ in 0..FOR_PROBES + 2 {
        let mut probe = bench.connect().await;
        assert_eq!(ask(&mut probe).await, "probes");
        assert!(probe.read_u8().await.is_err(), "is closed after one answer");
    }
    assert_eq!(bench.places.beyond.get(), FOR_PROBES as u64 + 2);
    assert_eq!(ask(&mut first).await, "all");
    drop(second);
    bench.frees(1).await;
    assert_eq!(ask(&mut bench.connect().await).await, "all");
    drop(first);
    bench.end().await;
}

#[tokio::test]
async fn silent_probes_make_room_for_those_that_ask() {
    let bench = Bench::start(Limits { connections: 1, ..Limits::default() }).await;
    let mut first = bench.connect().await;
    assert_eq!(ask(&mut first).await, "all");
    let mut silent = Vec::new();
    for _ in 0..FOR_PROBES * 2 {
        silent.push(bench.connect().await);
    }
    let begin = std::time::Instant::now();
    assert_eq!(ask(&mut bench.connect().await).await, "probes");
    // All of them had a second, or five before.
    let ended = async {
        for stream in &mut silent {
            assert!(stream.read_u8().await.is_err());
        }
    };
    tokio::time::timeout(SOON, ended).await.expect("the server closes them");
    assert!(begin.elapsed() < PROBE_HEAD * 4, "{:?}", begin.elapsed());
    drop(first);
    bench.end().await;
}

#[tokio::test]
async fn a_place_is_free_again_where_an_answer_is_not_read() {
    let no_reading = Duration::from_millis(200);
    let bench = Bench::start(Limits { no_reading, ..Limits::default() }).await;
    let mut stream = bench.connect().await;
    stream.write_all(b"GET /long HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut begin = [0; 12];
    stream.read_exact(&mut begin).await.unwrap();
    assert_eq!(bench.places.taken(), 1);
    bench.frees(0).await;
    drop(stream);
    bench.end().await;
}

#[tokio::test]
async fn an_http2_connection_that_rests_is_closed() {
    let next_head = Duration::from_millis(300);
    let bench = Bench::start(Limits { next_head, ..Limits::default() }).await;
    let stream = TokioIo::new(bench.connect().await);
    let executor = TokioExecutor::new();
    let connecting = hyper::client::conn::http2::handshake::<_, _, Body>(executor, stream);
    let (mut sender, connection) = connecting.await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let begin = std::time::Instant::now();
    for _ in 0..4 {
        let request = hyper::Request::get("http://x/").body(Body::empty()).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
        tokio::time::sleep(next_head / 3).await;
    }
    assert!(begin.elapsed() > next_head, "it is kept while it is used");
    let ended = tokio::time::timeout(SOON, tasks.join_next()).await.expect("the server closes it");
    ended.unwrap().unwrap().unwrap();
    drop(sender);
    bench.end().await;
}
