//! One run: what is known of it, and what its log has that is not written yet.
//!
//! ```text
//!   queued ──a place is free──► running ──► succeeded | failed
//!      └──────────cancel───────────┴──────► cancelled
//!      └─────the server ends───────┴──────► interrupted
//! ```
//!
//! # Invariants
//! - Records are numbered as they come, under one lock; after the end there are none.
//! - What the log holds is bounded: at the limit one line says so, and only the end follows.
//! - A run is over when its end is on the disk, and not before: what was told as over is over
//!   after a crash, too.

use super::chunk::Tail;
use super::log::{Found, Header, MAX_LINE, Marks};
use super::{Limits, Subject};
use api::run::{Run, RunCause, RunEvent, RunId, RunKind, RunRecord, RunState, RunStream};
use model::Time;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Bytes a text may have. JSON may need six for one of them, and the line has its limit.
const MAX_TEXT: usize = 8 << 10;
const _: () = assert!(6 * MAX_TEXT as u64 + 512 < MAX_LINE);

/// How far the log has come that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) next: u64,
    /// The record before is the end.
    pub(super) over: bool,
}

/// Records that are not written yet: their JSON, one behind the other.
#[derive(Debug, Default)]
pub(super) struct Pending {
    json: Vec<u8>,
    ends: Vec<usize>,
    /// What the last of them, the end, says.
    pub(super) end: Option<Status>,
}

impl Pending {
    pub(super) fn records(&self) -> impl Iterator<Item = &[u8]> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins.zip(&self.ends).map(|(begin, &end)| self.json.get(begin..end).unwrap_or_default())
    }
}

#[derive(Debug)]
struct Queue {
    pending: Pending,
    next: u64,
    /// That the log may still take.
    left_bytes: usize,
    left_out: u64,
    over: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Status {
    pub(super) state: RunState,
    pub(super) message: Option<String>,
    pub(super) started_at: Option<Time>,
    pub(super) ended_at: Option<Time>,
}

#[derive(Debug)]
pub(super) struct One {
    pub(super) id: RunId,
    pub(super) kind: RunKind,
    pub(super) subject: Subject,
    pub(super) cause: RunCause,
    created_at: Time,
    pub(super) path: PathBuf,
    pub(super) cancel: CancellationToken,
    pub(super) head: watch::Sender<Head>,
    status: Mutex<Status>,
    queue: Mutex<Queue>,
    tail: Mutex<Tail>,
    marks: Mutex<Marks>,
}

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl One {
    /// A run whose log has a header alone, or one that was found.
    pub(super) fn new(
        found: Found,
        path: PathBuf,
        cancel: CancellationToken,
        limits: &Limits,
    ) -> Self {
        let Found { header, subject, records, end, .. } = found;
        let Header { id, kind, cause, created_at, .. } = header;
        let over = end.is_some();
        let status = match end {
            Some(RunRecord {
                at, event: RunEvent::End { state, message, started_at, .. }, ..
            }) => Status { state, message, started_at, ended_at: Some(at) },
            _ => {
                Status { state: RunState::Queued, message: None, started_at: None, ended_at: None }
            }
        };
        let queue = Queue {
            pending: Pending::default(),
            next: records,
            left_bytes: limits.log_bytes,
            left_out: 0,
            over,
        };
        Self {
            id,
            kind,
            subject,
            cause,
            created_at,
            path,
            cancel,
            head: watch::Sender::new(Head { next: records, over }),
            status: Mutex::new(status),
            queue: Mutex::new(queue),
            tail: Mutex::default(),
            marks: Mutex::default(),
        }
    }

    pub(super) fn show(&self) -> Run {
        let Status { state, message, started_at, ended_at } = held(&self.status).clone();
        Run {
            id: self.id,
            kind: self.kind,
            subject: self.subject.to_string(),
            state,
            exit_code: state.exit_code(),
            message,
            cause: self.cause.clone(),
            created_at: self.created_at,
            started_at,
            ended_at,
            records: self.head.borrow().next,
        }
    }

    pub(super) fn ended_at(&self) -> Option<Time> {
        held(&self.status).ended_at
    }

    pub(super) fn begin(&self, now: Time) {
        let mut status = held(&self.status);
        status.state = RunState::Running;
        status.started_at = Some(now);
    }

    pub(super) fn settle(&self, end: Status) {
        *held(&self.status) = end;
    }

    /// Adds a record; true when it is the first that waits.
    pub(super) fn say(&self, at: Time, event: RunEvent) -> bool {
        let mut queue = held(&self.queue);
        if queue.over {
            return false;
        }
        if queue.left_out > 0 {
            queue.left_out += 1;
            return false;
        }
        let json = queue.encode(at, event);
        let waiting = !queue.pending.ends.is_empty();
        match queue.left_bytes.checked_sub(json.len()) {
            Some(left) => {
                queue.left_bytes = left;
                queue.push(&json);
            }
            None => {
                queue.left_out = 1;
                let text = "the log is as long as it may be; what comes is left out".to_owned();
                let json = queue.encode(at, RunEvent::Line { stream: RunStream::Server, text });
                queue.push(&json);
            }
        }
        !waiting
    }

    /// Adds the end, after which there is nothing more.
    pub(super) fn end(&self, at: Time, state: RunState, message: Option<String>) {
        let started_at = held(&self.status).started_at;
        let message = message.map(cut);
        let mut queue = held(&self.queue);
        if queue.left_out > 0 {
            let text = format!("{} records were left out", queue.left_out);
            let json = queue.encode(at, RunEvent::Line { stream: RunStream::Server, text });
            queue.push(&json);
        }
        let exit_code = state.exit_code().unwrap_or_default();
        let end = RunEvent::End { state, exit_code, message: message.clone(), started_at };
        let json = queue.encode(at, end);
        queue.push(&json);
        queue.pending.end = Some(Status { state, message, started_at, ended_at: Some(at) });
        queue.over = true;
    }

    pub(super) fn take(&self) -> Pending {
        std::mem::take(&mut held(&self.queue).pending)
    }

    pub(super) fn tail(&self) -> MutexGuard<'_, Tail> {
        held(&self.tail)
    }

    pub(super) fn marks(&self) -> MutexGuard<'_, Marks> {
        held(&self.marks)
    }
}

impl Queue {
    fn encode(&self, at: Time, event: RunEvent) -> Vec<u8> {
        let event = match event {
            RunEvent::Line { stream, text } => RunEvent::Line { stream, text: cut(text) },
            RunEvent::Step { text } => RunEvent::Step { text: cut(text) },
            other => other,
        };
        let record = RunRecord { offset: self.next, at, event };
        serde_json::to_vec(&record).unwrap_or_default()
    }

    fn push(&mut self, json: &[u8]) {
        self.pending.json.extend_from_slice(json);
        self.pending.ends.push(self.pending.json.len());
        self.next += 1;
    }
}

/// At most [`MAX_TEXT`] bytes, and how many are missing.
fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let whole = text.len();
        let mut end = MAX_TEXT - 64;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(&format!(" … {} bytes more", whole - end));
    }
    text
}
