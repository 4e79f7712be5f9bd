//! Docker's answers: the JSON by itself, and whole answers from a socket.

#[allow(dead_code, reason = "asking is left out here")]
#[path = "../../../crates/host/src/docker/container.rs"]
mod container;

use super::printable;
use crate::machine::{parts, scratch};
use crate::redactor;
use ::host::docker::Docker;
use ::host::docker::archive::{Contents, Fault, Listing, Reader};
use container::{Image, Inspected, Summary};
use std::cell::LazyCell;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::runtime::Runtime;

/// Answers to `/containers/ID/json`, `/containers/json` and `/images/ID/json`.
pub fn host_docker(data: &[u8]) {
    let [inspected, listed, image] = parts(data);
    if let Ok(seen) = serde_json::from_slice::<Inspected>(inspected) {
        let image = serde_json::from_slice::<Image>(image).ok();
        printable(&[container::container(seen, image.as_ref(), &redactor())]);
    }
    let _ids: Option<Vec<Summary>> = serde_json::from_slice(listed).ok();
}

/// An engine that says the same to every question.
struct Engine {
    socket: PathBuf,
    answer: Arc<Mutex<Vec<u8>>>,
    runtime: Runtime,
}

impl Engine {
    fn start() -> Self {
        let socket = scratch().join("docker.sock");
        let _stale = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).expect("a socket can be made in scratch");
        let answer = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&answer);
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let _request = stream.read(&mut [0; 4096]);
                let answer = told.lock().expect("nobody panics while telling").clone();
                let _gone = stream.write_all(&answer);
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Self { socket, answer, runtime: runtime.expect("a runtime can be made") }
    }
}

/// The stream of events, or, when the input begins with `HTTP`, the whole answer.
pub fn host_docker_socket(data: &[u8]) {
    thread_local!(static ENGINE: LazyCell<Engine> = LazyCell::new(Engine::start));
    ENGINE.with(|engine| {
        let whole = data.starts_with(b"HTTP");
        let head: &[u8] = if whole { b"" } else { b"HTTP/1.1 200 OK\r\n\r\n" };
        *engine.answer.lock().expect("nobody panics while telling") = [head, data].concat();
        let docker = Docker::new(&engine.socket, redactor());
        engine.runtime.block_on(async {
            if whole {
                let _answer = docker.containers().await;
                let _answer = docker.container("abc").await;
            }
            let Ok(mut watch) = docker.watch().await else { return };
            // The stream ends with the answer.
            while watch.next().await.is_ok() {}
        });
    });
}

/// The archive of an image, which is the same whole and in chunks.
pub fn host_image_archive(data: &[u8]) {
    let Some((chunk, archive)) = data.split_first() else { return };
    let archive = sealed(archive);
    let shown = |listed: Result<Contents, Fault>| listed.map_err(|fault| fault.to_string());
    let whole = shown(list(&archive, archive.len().max(1)));
    assert_eq!(whole, shown(list(&archive, usize::from(*chunk).max(1))));
    if let Ok(Contents { parts, files }) = whole {
        assert!(files.len() <= parts.each().count());
        assert!(parts.bytes() <= archive.len().try_into().expect("it is in memory"));
        let elsewhere = |name: &String| name.starts_with('/') || name.split('/').any(|p| p == "..");
        assert!(!files.keys().any(elsewhere));
    }
}

fn list(archive: &[u8], chunk: usize) -> Result<Contents, Fault> {
    let (mut reader, mut listing) = (Reader::new(1 << 20), Listing::default());
    for mut input in archive.chunks(chunk) {
        while let Some(piece) = reader.next(&mut input)? {
            listing.take(piece)?;
        }
    }
    reader.finish()?;
    listing.finish()
}

/// With the sums that heads have to have, which are not found by chance.
fn sealed(archive: &[u8]) -> Vec<u8> {
    let mut archive = archive.to_vec();
    let mut at = 0;
    while let Some(head) = archive.get_mut(at..at + 512) {
        if head.iter().all(|byte| *byte == 0) {
            break;
        }
        head[148..156].copy_from_slice(b"        ");
        let sum: u64 = head.iter().map(|byte| u64::from(*byte)).sum();
        head[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let bytes = String::from_utf8_lossy(&head[124..135]).into_owned();
        let bytes = usize::from_str_radix(&bytes, 8).unwrap_or(0);
        at = at.saturating_add(512).saturating_add(bytes.next_multiple_of(512));
    }
    archive
}
