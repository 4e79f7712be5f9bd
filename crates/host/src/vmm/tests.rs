use super::*;
use serde_json::{Value, json};
use std::os::unix::fs::symlink;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

const LIMIT: Duration = Duration::from_millis(400);

/// A machine on which this process is a VMM, with sockets in its directory.
struct Place {
    directory: tempfile::TempDir,
    servers: JoinSet<()>,
}

impl Place {
    fn new(words: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let own = std::process::id().to_string();
        let process = directory.path().join("proc").join(&own);
        fs::create_dir_all(&process).unwrap();
        fs::write(process.join("cmdline"), words.join("\0") + "\0").unwrap();
        symlink(directory.path(), process.join("root")).unwrap();
        symlink(directory.path(), process.join("cwd")).unwrap();
        fs::create_dir_all(directory.path().join("proc/self")).unwrap();
        symlink("/proc/self/net", directory.path().join("proc/self/net")).unwrap();
        let group = directory.path().join("sys/fs/cgroup/system.slice/vm");
        fs::create_dir_all(&group).unwrap();
        fs::write(group.join("cgroup.procs"), format!("{own}\nx\n")).unwrap();
        Self { directory, servers: JoinSet::new() }
    }

    fn root(&self) -> Root {
        Root::at(self.directory.path())
    }

    fn asker(&self) -> Asker {
        Asker::new(self.root())
    }

    fn monitor(&self) -> Monitor {
        self.asker().find("/system.slice/vm").unwrap()
    }

    /// Whoever connects is served by a closure, one after the other.
    fn listen<F>(&mut self, name: &str, serve: impl Fn(UnixStream) -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send,
    {
        let listener = UnixListener::bind(self.directory.path().join(name)).unwrap();
        self.servers.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serve(stream).await;
            }
        });
    }

    async fn ask(&self) -> Result<VmmLoad, Error> {
        self.monitor().ask(&self.asker(), LIMIT).await
    }

    async fn guest(&self, port: Option<u32>) -> Result<(), Error> {
        self.monitor().guest(&self.asker(), port, 4711, LIMIT).await
    }
}

/// Speaks QMP, as QEMU's documentation has it; events come in between.
async fn qmp(stream: UnixStream, status: &'static str, agent: bool) {
    let mut stream = BufReader::new(stream);
    let greeting = json!({"QMP": {"version": {}, "capabilities": []}});
    stream.write_all(format!("{greeting}\r\n").as_bytes()).await.unwrap();
    let mut line = String::new();
    while stream.read_line(&mut line).await.is_ok_and(|count| count > 0) {
        let asked: Value = serde_json::from_str(&line).unwrap();
        let answer = match asked["execute"].as_str().unwrap() {
            "qmp_capabilities" => json!({"return": {}}),
            "query-status" => json!({"return": {"status": status, "running": status == "running"}}),
            "query-cpus-fast" => json!({"return": [{"cpu-index": 0}, {"cpu-index": 1}]}),
            "query-memory-size-summary" => {
                json!({"return": {"base-memory": 64 << 20, "plugged-memory": 1 << 20}})
            }
            "query-balloon" => json!({"return": {"actual": 32 << 20}}),
            "query-chardev" => json!({"return": [{"label": "x", "frontend-open": true},
                {"label": "a", "frontend-open": agent}]}),
            _ => json!({"error": {"class": "CommandNotFound", "desc": ""}}),
        };
        let event = json!({"event": "RTC_CHANGE", "data": {}});
        stream.write_all(format!("{event}\r\n{answer}\r\n").as_bytes()).await.unwrap();
        line.clear();
    }
}

/// Says again what it is told, behind the rest of an answer to somebody before.
async fn agent(stream: UnixStream) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).await.unwrap();
    assert_eq!(line.first(), Some(&0xff));
    let asked: Value = serde_json::from_slice(line.get(1..).unwrap()).unwrap();
    assert_eq!(asked["execute"], "guest-sync-delimited");
    let answer = json!({"return": asked["arguments"]["id"]});
    let mut bytes = b"{\"ret\xff".to_vec();
    bytes.extend_from_slice(format!("{answer}\n").as_bytes());
    stream.write_all(&bytes).await.unwrap();
}

async fn hang(stream: UnixStream) {
    std::future::pending::<()>().await;
    drop(stream);
}

const QEMU: [&str; 9] = [
    "/usr/bin/qemu-system-x86_64",
    "-qmp",
    "unix:/qmp,server=on,wait=off",
    "-chardev",
    "socket,path=/agent,server=on,wait=off,id=a",
    "-device",
    "virtserialport,chardev=a,name=org.qemu.guest_agent.0",
    "-m",
    "64",
];

#[tokio::test]
async fn what_qemu_says() {
    let mut place = Place::new(&QEMU);
    place.listen("qmp", |stream| qmp(stream, "running", true));
    let said = VmmLoad {
        runs: Some(true),
        status: Some("running".into()),
        vcpus: Some(2),
        memory_bytes: Some(65 << 20),
        balloon_memory_bytes: Some(32 << 20),
        guest_agent: Some(true),
        ..VmmLoad::default()
    };
    assert_eq!(place.ask().await.unwrap(), said);
    place.listen("agent", agent);
    place.guest(None).await.unwrap();
    assert!(matches!(place.guest(Some(9)).await, Err(Error::NoChannel(Vmm::Qemu))));
}

/// Speaks as much QMP as stratovirt's documentation has.
async fn stratovirt(stream: UnixStream) {
    let mut stream = BufReader::new(stream);
    let greeting = json!({"QMP": {"version": {"StratoVirt": {"major": 2}}, "capabilities": []}});
    stream.write_all(format!("{greeting}\r\n").as_bytes()).await.unwrap();
    let mut line = String::new();
    while stream.read_line(&mut line).await.is_ok_and(|count| count > 0) {
        let asked: Value = serde_json::from_str(&line).unwrap();
        let answer = match asked["execute"].as_str().unwrap() {
            "qmp_capabilities" => json!({"return": {}}),
            "query-status" => json!({"return": {"status": "paused", "running": false}}),
            "query-cpus" => json!({"return": [{"CPU": 0, "thread_id": 7}]}),
            "query-balloon" => json!({"return": {"actual": 256 << 20}}),
            _ => json!({"error": {"class": "CommandNotFound", "desc": ""}}),
        };
        stream.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
        line.clear();
    }
}

#[tokio::test]
async fn what_stratovirt_says() {
    let mut place = Place::new(&["/usr/bin/stratovirt", "-qmp", "unix:/qmp,server,nowait"]);
    place.listen("qmp", stratovirt);
    let said = VmmLoad {
        runs: Some(false),
        status: Some("paused".into()),
        vcpus: Some(1),
        balloon_memory_bytes: Some(256 << 20),
        ..VmmLoad::default()
    };
    assert_eq!(place.ask().await.unwrap(), said);
}

#[tokio::test]
async fn what_is_in_the_way_of_a_guest() {
    let check = |error: Result<(), Error>, layer: Layer, text: &str| {
        let error = error.unwrap_err();
        let shown = model::with_causes(&error);
        assert_eq!(error.layer(), layer, "{shown}");
        assert!(shown.contains(text), "{shown}");
    };
    // The VMM hangs, or is away, or something else is in its place.
    let mut place = Place::new(&QEMU);
    check(place.guest(None).await, Layer::Node, "could not connect to /qmp");
    place.listen("qmp", hang);
    check(place.guest(None).await, Layer::Vmm, "does not answer at /qmp within 0.2 s");
    let mut place = Place::new(&QEMU);
    place
        .listen("qmp", |mut stream| async move { stream.write_all(b"220 hello\n").await.unwrap() });
    check(place.guest(None).await, Layer::Vmm, "broke off at /qmp");
    let mut place = Place::new(&QEMU);
    place.listen("qmp", |stream| qmp(stream, "io-error", true));
    check(place.guest(None).await, Layer::Vmm, "has the guest stopped: io-error");
    // The guest's agent is not there, or hangs.
    let mut place = Place::new(&QEMU);
    place.listen("qmp", |stream| qmp(stream, "running", false));
    check(place.guest(None).await, Layer::Guest, "nothing in the guest has its agent's channel");
    let mut place = Place::new(&QEMU);
    place.listen("qmp", |stream| qmp(stream, "running", true));
    place.listen("agent", hang);
    check(place.guest(None).await, Layer::Guest, "its guest agent does not answer within");
    let place = Place::new(&["qemu-system-x86_64", "-m", "64"]);
    check(place.guest(None).await, Layer::Node, "has no channel to a guest agent");
}

#[tokio::test]
async fn a_socket_that_serves_another_is_no_fault() {
    let mut place = Place::new(&QEMU);
    place.listen("qmp", hang);
    let path = place.directory.path().join("qmp");
    let other = UnixStream::connect(&path).await.unwrap();
    // It is served, or this test would wait for nothing.
    while Looks::default().turn(&place.root(), &path, Instant::now()).await != Turn::Behind {
        let waits = UnixStream::connect(&path).await.unwrap();
        tokio::task::yield_now().await;
        drop(waits);
    }
    drop(other);
}

#[tokio::test]
async fn a_socket_of_somebody_else_is_left_alone() {
    let mut place = Place::new(&QEMU);
    place.listen("qmp", |stream| qmp(stream, "running", true));
    let mut monitor = place.monitor();
    monitor.unit = vec![1];
    let asked = monitor.ask(&place.asker(), LIMIT * 50).await;
    assert!(matches!(asked, Err(Error::Foreign { .. })), "{asked:?}");
}

/// Answers GETs out of a table; what is not in it is refused.
async fn http(mut stream: UnixStream, answers: &'static [(&'static str, &'static str)]) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte).await.unwrap_or(0) == 0 {
            return;
        }
        head.extend_from_slice(&byte);
    }
    let head = String::from_utf8(head).unwrap();
    let path = head.split(' ').nth(1).unwrap();
    let (status, body) = match answers.iter().find(|(of, _)| *of == path) {
        Some((_, body)) => ("200 OK", *body),
        None => ("400 Bad Request", "{\"fault_message\":\"none\"}"),
    };
    let length = body.len();
    let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
    // Who asked may have gone.
    drop(stream.write_all(answer.as_bytes()).await);
}

#[tokio::test]
async fn what_cloud_hypervisor_says() {
    let mut place = Place::new(&["cloud-hypervisor", "--api-socket", "path=api"]);
    place.listen("api", |stream| {
        let info = r#"{"config":{"cpus":{"boot_vcpus":4,"max_vcpus":8},
            "memory":{"size":536870912,"zones":null},"balloon":{"size":0},
            "vsock":{"cid":3,"socket":"/vsock"}},
            "state":"Paused","memory_actual_size":268435456}"#;
        http(stream, Box::leak(Box::new([("/api/v1/vm.info", info)])))
    });
    let said = VmmLoad {
        runs: Some(false),
        status: Some("paused".into()),
        vcpus: Some(4),
        memory_bytes: Some(512 << 20),
        balloon_memory_bytes: Some(256 << 20),
        ..VmmLoad::default()
    };
    assert_eq!(place.ask().await.unwrap(), said);
    let error = place.guest(None).await.unwrap_err();
    assert!(matches!(error, Error::Stopped(status) if status == "paused"));
}

#[tokio::test]
async fn what_firecracker_says() {
    let answers = &[
        ("/", r#"{"id":"a","state":"Running","vmm_version":"1.7.0","app_name":"Firecracker"}"#),
        ("/machine-config", r#"{"vcpu_count":2,"mem_size_mib":128,"smt":false}"#),
        ("/vm/config", r#"{"vsock":{"guest_cid":3,"uds_path":"/vsock"}}"#),
    ];
    let mut place = Place::new(&["firecracker", "--api-sock", "/api"]);
    place.listen("api", |stream| http(stream, answers));
    let said = VmmLoad {
        runs: Some(true),
        status: Some("running".into()),
        vcpus: Some(2),
        memory_bytes: Some(128 << 20),
        ..VmmLoad::default()
    };
    assert_eq!(place.ask().await.unwrap(), said);
    assert!(matches!(place.guest(None).await, Err(Error::NoChannel(Vmm::Firecracker))));
    place.listen("vsock", |stream| async move {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        // Only one port has somebody.
        if line == "CONNECT 9001\n" {
            stream.write_all(b"OK 1073741824\n").await.unwrap();
            agent(stream.into_inner()).await;
        }
    });
    place.guest(Some(9001)).await.unwrap();
    assert!(matches!(place.guest(Some(9002)).await, Err(Error::NobodyAtPort(9002))));
}

#[test]
fn units_without_a_vmm() {
    let place = Place::new(&["python3", "/usr/bin/qemu-system-x86_64"]);
    for group in ["/system.slice/vm", "/system.slice/other", "", "/", "/../etc", "a\0b"] {
        assert_eq!(place.asker().find(group), None, "{group:?}");
    }
}
