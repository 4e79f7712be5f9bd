//! The one thread that writes logs, in batches, and tells readers what can be read.
//!
//! What a run says waits in the run until this thread comes by. A batch is everything that
//! waits: it is written to the file, then put where readers take it from, then announced.
//!
//! # Invariants
//! - Nothing is shown that is not in the file.
//! - What can't be written waits, in order, and is tried again; a run never waits for it.
//! - No reader is waited for.

use super::chunk::{Chunk, Chunks};
use super::log::seal;
use super::one::{Head, One, Status};
use api::run::RunId;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Between batches: lines that come one after the other are written and sent together.
const GATHER: Duration = Duration::from_millis(4);

/// Before what could not be written is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Bytes of frames in one chunk.
const CHUNK: usize = 64 << 10;

pub(super) enum Command {
    /// A run with a file that has its header, of so many bytes.
    Begin(Arc<One>, File, u64),
    /// Something waits to be written.
    More(Arc<One>),
    /// Answered when everything before it was dealt with.
    Flush(oneshot::Sender<()>),
}

/// A log that is being written.
struct Log {
    one: Arc<One>,
    file: File,
    /// Written, and whole.
    bytes: u64,
    next: u64,
    /// What follows in the file, and the same for readers.
    unwritten: Vec<u8>,
    chunks: Vec<Chunk>,
    end: Option<Status>,
    /// The last record of it all is among what was taken.
    ended: bool,
    failing: bool,
}

/// Writes until nobody can send any more. `settled` is told of each run that is over.
pub(super) fn run(commands: &Receiver<Command>, settled: impl Fn(&Arc<One>)) {
    let mut logs: HashMap<RunId, Log> = HashMap::new();
    loop {
        let failing = logs.values().any(|log| log.failing);
        let first = if failing {
            match commands.recv_timeout(RETRY) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            }
        } else {
            let Ok(command) = commands.recv() else { return };
            Some(command)
        };
        for command in first.into_iter().chain(commands.try_iter()) {
            match command {
                Command::Begin(one, file, bytes) => {
                    logs.insert(one.id, Log::new(one, file, bytes));
                }
                Command::More(one) => step(&mut logs, one.id, &settled),
                // Whoever asked may have gone.
                Command::Flush(done) => drop(done.send(())),
            }
        }
        let failed: Vec<RunId> =
            logs.iter().filter(|(_, log)| log.failing).map(|(id, _)| *id).collect();
        for id in failed {
            step(&mut logs, id, &settled);
        }
        std::thread::sleep(GATHER);
    }
}

/// Writes what a run has to say, and lets go of it after its end.
fn step(logs: &mut HashMap<RunId, Log>, id: RunId, settled: &impl Fn(&Arc<One>)) {
    let Some(log) = logs.get_mut(&id) else { return };
    log.add();
    let written = log.write();
    match &written {
        Ok(()) => log.failing = false,
        Err(error) if !log.failing => {
            log.failing = true;
            tracing::error!(run = %id, %error, "a run's log can't be written; it is tried again");
        }
        Err(_) => {}
    }
    // Where not even the end can be written, what it is the end of is free all the same.
    if let Some(end) = log.end.take() {
        log.one.settle(end);
        settled(&log.one);
    }
    if written.is_ok() {
        log.publish();
        if log.ended {
            logs.remove(&id);
        }
    }
}

impl Log {
    fn new(one: Arc<One>, file: File, bytes: u64) -> Self {
        Self {
            one,
            file,
            bytes,
            next: 0,
            unwritten: Vec::new(),
            chunks: Vec::new(),
            end: None,
            ended: false,
            failing: false,
        }
    }

    /// Takes what waits in the run.
    fn add(&mut self) {
        let batch = self.one.take();
        let mut position = self.bytes + self.unwritten.len() as u64;
        let mut chunk = Chunks::new(self.next, position);
        for json in batch.records() {
            if chunk.bytes() > CHUNK {
                let full = std::mem::replace(&mut chunk, Chunks::new(self.next, position));
                self.chunks.extend(full.finish());
            }
            chunk.push(json);
            let before = self.unwritten.len();
            seal(json, &mut self.unwritten);
            position += (self.unwritten.len() - before) as u64;
            self.next += 1;
        }
        self.chunks.extend(chunk.finish());
        self.ended |= batch.end.is_some();
        self.end = self.end.take().or(batch.end);
    }

    fn write(&mut self) -> io::Result<()> {
        let written = self
            .file
            .write_all(&self.unwritten)
            .and_then(|()| if self.ended { sync(&self.file, &self.one.path) } else { Ok(()) });
        if written.is_err() {
            // A part of it may be there; it comes again as a whole.
            self.file.set_len(self.bytes)?;
            return written;
        }
        self.bytes += self.unwritten.len() as u64;
        self.unwritten.clear();
        Ok(())
    }

    fn publish(&mut self) {
        if self.chunks.is_empty() {
            return;
        }
        for chunk in self.chunks.drain(..) {
            self.one.marks().add(chunk.first(), chunk.position());
            self.one.tail().push(chunk);
        }
        self.one.head.send_replace(Head { next: self.next, over: self.ended });
    }
}

/// The file's content, and that it is there.
fn sync(file: &File, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    path.parent().map_or(Ok(()), |directory| File::open(directory)?.sync_all())
}
