//! `twin run` and `twin image` against a real `twin server`, which is also killed.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of a test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);

fn twin(server: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_twin"));
    command.args(["--server", server]).args(arguments).env_remove("SAFETYTWIN_TOKEN");
    command
}

fn run(server: &str, arguments: &[&str]) -> Output {
    twin(server, arguments).output().expect("the program is built")
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

/// A `twin server`, killed with SIGKILL when it goes.
struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(data: &Path, port: u16) -> Self {
        let url = format!("http://127.0.0.1:{port}");
        let mut command = twin(&url, &["server", "--log-level", "error"]);
        command.args(["--data-dir", data.to_str().expect("text"), "--port", &port.to_string()]);
        let child = command.stderr(Stdio::null()).spawn().expect("the program is built");
        let server = Self { child, url };
        let until = Instant::now() + DEADLINE;
        while !run(&server.url, &["run", "list"]).status.success() {
            assert!(Instant::now() < until, "the server does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it was killed");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("loopback").local_addr().expect("bound").port()
}

/// Serves one file to whoever asks: a half at once, the rest when it is let go.
struct Slow {
    url: String,
    go: Arc<(Mutex<bool>, Condvar)>,
}

impl Slow {
    fn start(content: Vec<u8>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let url = format!("http://{}/disk.raw", listener.local_addr().expect("bound"));
        let go = Arc::new((Mutex::new(false), Condvar::new()));
        let (content, gate) = (Arc::new(content), Arc::clone(&go));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (content, gate) = (Arc::clone(&content), Arc::clone(&gate));
                std::thread::spawn(move || serve(stream, &content, &gate));
            }
        });
        Self { url, go }
    }

    fn go(&self) {
        *self.go.0.lock().unwrap() = true;
        self.go.1.notify_all();
    }
}

fn serve(mut stream: TcpStream, content: &[u8], gate: &(Mutex<bool>, Condvar)) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    if lines.find(String::is_empty).is_none() {
        return;
    }
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", content.len());
    let (first, rest) = content.split_at(content.len() / 2);
    // The server may be killed meanwhile.
    if stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(first)).is_err() {
        return;
    }
    let go = gate.0.lock().unwrap();
    drop(gate.1.wait_while(go, |go| !*go).unwrap());
    stream.write_all(rest).ok();
}

/// A raw disk of so many MiB, with one partition of one sector.
fn disk(mib: usize) -> Vec<u8> {
    let mut content = vec![0; mib << 20];
    (content[450], content[454], content[458]) = (0x83, 1, 1);
    (content[510], content[511]) = (0x55, 0xaa);
    content
}

#[test]
fn an_image_is_taken_with_its_log_and_its_exit_code() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), free_port());
    let file = data.path().join("small.raw");
    std::fs::write(&file, disk(1)).unwrap();
    let done = run(&server.url, &["image", "build", "small", "--from", file.to_str().unwrap()]);
    let (out, told) = (text(&done.stdout), text(&done.stderr));
    assert!(out.contains("== Converting the image\n"), "{out}");
    assert!(told.contains(" succeeded after "), "{told}");
    assert_eq!(done.status.code(), Some(0));
    assert!(text(&run(&server.url, &["image", "list"]).stdout).contains("small"));
    let id = told.split("twin run logs -f ").nth(1).unwrap().lines().next().unwrap();
    let log = run(&server.url, &["run", "logs", id, "--from", "1", "--json"]);
    let log: Vec<serde_json::Value> =
        text(&log.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&log[0]["offset"], &log[log.len() - 1]["record"]), (&1.into(), &"end".into()));

    let bad = ["image", "build", "x", "--from", "/nothing/here"];
    let failed = run(&server.url, &bad);
    assert!(text(&failed.stderr).contains(" failed after "), "{}", text(&failed.stderr));
    assert_eq!(failed.status.code(), Some(1));
    let listed = text(&run(&server.url, &["run", "list", "--state", "failed"]).stdout);
    assert!(listed.contains("image_import  image:x"), "{listed}");
    assert_eq!(run(&server.url, &["image", "delete", "small"]).status.code(), Some(0));
    assert_eq!(run(&server.url, &["image", "show", "small"]).status.code(), Some(4));
}

#[test]
fn a_cancelled_run_ends_its_follower() {
    let data = tempfile::tempdir().unwrap();
    let server = Server::start(data.path(), free_port());
    let slow = Slow::start(disk(1));
    let begun = run(&server.url, &["image", "build", "slow", "--from", &slow.url, "--detach"]);
    let id = text(&begun.stdout).trim().to_owned();
    let follower = twin(&server.url, &["run", "logs", "-f", &id])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(run(&server.url, &["run", "cancel", &id]).status.code(), Some(0));
    let output = follower.wait_with_output().unwrap();
    assert!(text(&output.stderr).contains(" was cancelled"), "{}", text(&output.stderr));
    assert_eq!(output.status.code(), Some(6));
    slow.go();
}

/// The server is killed in the middle of a run. The follower waits, comes back, and sees the
/// run end as interrupted, without a line lost or doubled; nothing half-made is left, and the
/// same thing can be done again.
#[test]
fn a_killed_server_leaves_an_interrupted_run() {
    let data = tempfile::tempdir().unwrap();
    let port = free_port();
    let server = Server::start(data.path(), port);
    let slow = Slow::start(disk(32));
    let build = ["image", "build", "slow", "--from", &slow.url, "--detach"];
    let id = text(&run(&server.url, &build).stdout).trim().to_owned();
    let url = server.url.clone();
    let mut follower = twin(&url, &["run", "logs", "-f", &id, "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    assert!(first.contains("\"offset\":0,") && first.contains("Fetching"), "{first}");
    let progress = lines.next().unwrap().unwrap();
    assert!(progress.contains("\"record\":\"progress\""), "{progress}");
    server.kill();

    let server = Server::start(data.path(), port);
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    let last = rest.last().unwrap();
    assert!(last.contains("\"state\":\"interrupted\",\"exit_code\":7"), "{last}");
    for (nth, line) in rest.iter().enumerate() {
        assert!(line.contains(&format!("\"offset\":{},", nth + 2)), "{rest:?}");
    }
    let mut told = String::new();
    follower.stderr.take().unwrap().read_to_string(&mut told).unwrap();
    assert!(told.contains("was interrupted"), "{told}");
    assert_eq!(follower.wait().unwrap().code(), Some(7));
    let left: Vec<_> = std::fs::read_dir(data.path().join("images"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name != ".lock")
        .collect();
    assert!(left.is_empty(), "{left:?}");

    slow.go();
    let again = run(&server.url, &["image", "build", "slow", "--from", &slow.url]);
    assert_eq!(again.status.code(), Some(0), "{}", text(&again.stderr));
}
