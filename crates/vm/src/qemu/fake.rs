//! A QEMU for tests that no machine has to boot for: a process that sleeps, with a monitor and a
//! guest agent that answer as they are told to.

use super::command;
use super::home::{Below, Definition, Hardware, Home};
use super::{Qemu, layer, process};
use crate::content;
use crate::image::Store;
use crate::job::{Job, Progress, drive};
use crate::machine::Network;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What was asked of it, in order.
pub(super) type Asked = Arc<Mutex<Vec<String>>>;

/// Without a look at which QEMU is installed.
pub(super) fn qemu(root: &Path) -> Qemu {
    std::fs::create_dir_all(root).unwrap();
    Qemu {
        root: root.to_owned(),
        images: Store::at(&root.join("images")),
        version: "10.0".to_owned(),
        verified: content::Verified::default(),
        acceleration: Arc::default(),
        turns: crate::turn::Turns::default(),
        _lock: Arc::new(content::hold(root).unwrap().unwrap()),
    }
}

pub(super) fn job() -> Job {
    job_told(|_| {})
}

pub(super) fn job_told(sink: impl Fn(Progress) + Send + Sync + 'static) -> Job {
    let deadline = Instant::now() + Duration::from_secs(60);
    Job::new(Arc::new(sink), CancellationToken::new(), deadline)
}

pub(super) const IMAGE: &str = "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a";

/// A machine with one layer, which may be over an image that is not there.
pub(super) fn machine(qemu: &Qemu, name: &str, below: Below) -> Home {
    let home = qemu.home(&name.parse().unwrap());
    home.make().unwrap();
    let hardware = Hardware {
        image: IMAGE.parse().unwrap(),
        memory_bytes: 1 << 30,
        processors: 1,
        mac: "52:54:00:00:00:01".parse().unwrap(),
    };
    let called = match &below {
        Below::Image => format!("../../../images/{IMAGE}/disk.qcow2"),
        Below::Layer(number) => format!("{number}.qcow2"),
        Below::Of { machine, layer } => format!("../../{machine}/layers/{layer}.qcow2"),
    };
    let called = Path::new(&called);
    layer::create(&home.layer(1), called, called, Some(1 << 30)).unwrap();
    home.store(&Definition::new(hardware, Network::Isolated, below)).unwrap();
    home
}

/// The machine runs, as far as anybody can tell; the process ends with what is returned.
pub(super) fn give_power(home: &Home) -> Child {
    let run = home.run(1);
    process::make(&run).unwrap();
    let child = Command::new("sleep").arg("1000").kill_on_drop(true).spawn().unwrap();
    process::write_down(&run, child.id()).unwrap();
    home.change(|definition| definition.run = Some(1)).unwrap();
    child
}

/// Answers on a socket of the first run; what gets no answer is waited for in vain.
pub(super) fn answer(
    home: &Home,
    name: &'static str,
    mut by: impl FnMut(&str, &Value) -> Option<Value> + Send + 'static,
) -> Asked {
    let asked = Asked::default();
    let (listener, heard) = {
        let (_dir, path) = process::socket(&home.run(1), name).unwrap();
        (UnixListener::bind(path).unwrap(), Arc::clone(&asked))
    };
    drive(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // One at a time, as QEMU does.
            talk(stream, name, &heard, &mut by).await;
        }
    });
    asked
}

async fn talk(
    stream: UnixStream,
    name: &str,
    heard: &Asked,
    by: &mut impl FnMut(&str, &Value) -> Option<Value>,
) {
    let mut stream = BufReader::new(stream);
    let is_monitor = name == command::MONITOR || name == command::LOOK;
    if is_monitor && stream.write_all(b"{\"QMP\": {}}\n").await.is_err() {
        return;
    }
    let mut line = Vec::new();
    while let Ok(1..) = stream.read_until(b'\n', &mut line).await {
        let begin = line.iter().rposition(|byte| *byte == 0xff).map_or(0, |at| at + 1);
        let message: Value = serde_json::from_slice(&line[begin..]).unwrap();
        line.clear();
        let command = message["execute"].as_str().unwrap();
        heard.lock().unwrap().push(command.to_owned());
        if let Some(value) = by(command, &message["arguments"]) {
            let answer = format!("{}\n", json!({ "return": value }));
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

/// A guest agent that does as it is told.
pub(super) fn guest_agent(command: &str, arguments: &Value) -> Option<Value> {
    match command {
        "guest-sync-delimited" => Some(arguments["id"].clone()),
        _ => Some(json!(1)),
    }
}

/// Waits until this was asked.
pub(super) async fn until_asked(asked: &Asked, command: &str) {
    let until = Instant::now() + Duration::from_secs(30);
    while !asked.lock().unwrap().iter().any(|one| one == command) {
        assert!(Instant::now() < until, "{command} was not asked in time: {asked:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
