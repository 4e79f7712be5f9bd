//! What the work of a run says, and how it learns that it must stop.

use super::one::One;
use super::writer::Command;
use crate::clock;
use api::run::{RunCause, RunEvent, RunStream};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;
use vm::image::{Job, Progress};

/// Between two records of progress.
const PROGRESS: Duration = Duration::from_millis(500);

/// Why a run's work did not get to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    message: String,
}

impl Failure {
    /// What happened and what to do, for people.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }

    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn into_message(self) -> String {
        self.message
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let text = model::with_causes(&error);
        // Whatever it was that was written, and by whom.
        let is_full = text.contains("No space left on device") && !text.contains("make room");
        Self::new(if is_full { format!("{text}; make room, and try it again") } else { text })
    }
}

/// A run as its work has it. Cheap to clone; nothing here blocks or fails.
#[derive(Debug, Clone)]
pub struct Handle {
    one: Arc<One>,
    wake: Sender<Command>,
    told: Arc<Mutex<Option<Instant>>>,
}

impl Handle {
    pub(super) fn new(one: Arc<One>, wake: Sender<Command>) -> Self {
        Self { one, wake, told: Arc::default() }
    }

    fn say(&self, event: RunEvent) {
        if self.one.say(clock::now(), event) {
            self.wake();
        }
    }

    pub(super) fn wake(&self) {
        // The writer goes after everybody else; if it went, there is nobody to tell.
        self.wake.send(Command::More(Arc::clone(&self.one))).ok();
    }

    /// One line; a very long one is cut.
    pub fn line(&self, stream: RunStream, text: &str) {
        self.say(RunEvent::Line { stream, text: text.to_owned() });
    }

    /// The work goes on to its next step.
    pub fn step(&self, text: &str) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.say(RunEvent::Step { text: text.to_owned() });
    }

    /// Bytes of the step that are done. Told twice a second, however often it is called, and
    /// when all are done.
    pub fn progress(&self, done: u64, total: Option<u64>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= PROGRESS) || total == Some(done) {
            *told = Some(Instant::now());
            drop(told);
            self.say(RunEvent::Progress { done, total });
        }
    }

    /// Whether nobody asked for the work but a host, by what changed there.
    #[must_use]
    pub fn is_unasked(&self) -> bool {
        matches!(self.one.cause, RunCause::Host { .. })
    }

    /// Cancelled when the work must stop, by whoever wants it to.
    #[must_use]
    pub fn cancelled(&self) -> CancellationToken {
        self.one.cancel.clone()
    }

    /// A job of `vm` that tells what it does here, and stops with the run.
    #[must_use]
    pub fn job(&self, deadline: Duration) -> Job {
        let handle = self.clone();
        let tell = move |progress: Progress| match progress {
            Progress::Step(text) => handle.step(&text),
            Progress::Line(text) => handle.line(RunStream::Stdout, &text),
            Progress::Bytes { done, total } => handle.progress(done, total),
        };
        Job::new(Arc::new(tell), self.cancelled(), tokio::time::Instant::now() + deadline)
    }
}
