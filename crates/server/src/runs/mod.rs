//! Whatever takes long is a run: building an image, starting a machine, taking a snapshot.
//!
//! ```text
//!   start ──► One (queue) ──► writer: one thread ──► UUID.log, then Tail, then Head
//!     │          ▲                                        │         │        │ wakes
//!     └─► work ──┴ Handle: lines, steps, progress         └────► Follow ◄────┘ ──► SSE, WebSocket
//! ```
//!
//! [`Runs::start`] answers at once with an id, and the work goes on as a task. Each run has one
//! file, append-only and complete in itself, so that a server that starts finds out from the
//! files alone what was, and marks as interrupted what had no end.
//!
//! # Invariants
//! - For one subject, one run at a time.
//! - Every run ends with an end record: when its work ends, fails, panics, is cancelled, does
//!   not stop when told to, or when the server stops; else at the next start.
//! - What is on at once is what works: whoever only waits does so [`aside`].
//! - Nothing waits for a reader. The number of runs, their logs' lengths, those that are on at
//!   once, those that wait, and their readers have limits ([`Limits`]).

mod chunk;
mod follow;
#[cfg(fuzzing)]
#[path = "../../../../fuzz/inside/runs.rs"]
pub mod fuzzing;
mod handle;
mod log;
mod one;
mod place;
mod registry;
mod subject;
mod writer;

pub use api::run::{RunCause as Cause, RunId, RunKind as Kind, RunState as State};
pub use api::run::{RunEvent as Event, RunStream as Stream};
pub use chunk::Records;
pub use follow::Follow;
pub use handle::{Failure, Handle};
pub(crate) use place::aside;
pub use registry::{Filter, Interrupted};
pub use subject::{Subject, SubjectError};

use crate::clock;
use api::run::Run;
use futures_util::FutureExt;
use log::{FORMAT, Found, Header};
use model::Time;
use one::One;
use place::Place;
use registry::Registry;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use writer::Command;

/// What there may be of runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Runs that are kept once they are over, the newest.
    pub keep: usize,
    /// How long they are kept.
    pub keep_for: Duration,
    /// Bytes of one log.
    pub log_bytes: usize,
    /// Runs that work at once: so many that make images, and so many others.
    pub at_once: usize,
    /// Runs that are on or wait.
    pub waiting: usize,
    /// Readers of all logs together.
    pub followers: usize,
    /// For work that was told to stop. Then it is cut off.
    pub grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            keep: 1000,
            keep_for: Duration::from_secs(30 * 86_400),
            log_bytes: 16 << 20,
            at_once: 2,
            waiting: 100,
            followers: 4000,
            grace: Duration::from_secs(6),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("could not read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("could not write {path}")]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("there is no run {0}; runs are kept for a time: twin run list")]
    Unknown(RunId),
    #[error(
        "run {id} ({kind}) is on for {subject}; wait for it or cancel it: twin run cancel {id}"
    )]
    Busy { id: RunId, kind: Kind, subject: Subject },
    #[error("{0} runs are on or wait; try again when some of them are over")]
    Full(usize),
    #[error("{0} readers follow runs already; try again a little later")]
    Followers(usize),
    #[error("run {id} has {records} records so far and none at {from}")]
    Ahead { id: RunId, from: u64, records: u64 },
    #[error("run {id} is over: {state}")]
    Over { id: RunId, state: State },
    #[error("the log of run {id} is damaged from here on")]
    Damaged { id: RunId },
    #[error("the server is stopping")]
    Closed,
}

/// What to run.
#[derive(Debug, Clone)]
pub struct New {
    pub kind: Kind,
    pub subject: Subject,
    pub cause: Cause,
}

/// All runs of one directory. Clones are the same runs.
#[derive(Debug, Clone)]
pub struct Runs {
    directory: Arc<Path>,
    limits: Arc<Limits>,
    registry: Arc<Registry>,
    wake: Sender<Command>,
    tasks: TaskTracker,
    closing: CancellationToken,
    images: Arc<Semaphore>,
    machines: Arc<Semaphore>,
    syncs: Arc<Semaphore>,
    followers: Arc<AtomicUsize>,
}

/// A reader's place among those there may be.
#[derive(Debug)]
pub(crate) struct Followers(Arc<AtomicUsize>);

impl Drop for Followers {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Runs {
    /// Opens the directory, makes it if need be, and marks as interrupted what has no end.
    /// Nobody else may have it open. Blocks.
    ///
    /// # Errors
    /// When it can't be read or written.
    pub fn open(directory: &Path, limits: Limits) -> Result<Self, Error> {
        let closing = CancellationToken::new();
        let registry = Arc::new(Registry::open(directory, &limits, clock::now())?);
        let (wake, commands) = channel();
        let settled = {
            let (registry, limits) = (Arc::clone(&registry), limits.clone());
            move |one: &Arc<One>| registry.settled(one, &limits)
        };
        std::thread::Builder::new()
            .name("runs".to_owned())
            .spawn(move || writer::run(&commands, settled))
            .map_err(|source| Error::Write { path: directory.to_owned(), source })?;
        Ok(Self {
            directory: directory.into(),
            registry,
            wake,
            tasks: TaskTracker::new(),
            closing,
            images: Arc::new(Semaphore::new(limits.at_once)),
            machines: Arc::new(Semaphore::new(limits.at_once)),
            syncs: Arc::new(Semaphore::new(1)),
            followers: Arc::default(),
            limits: Arc::new(limits),
        })
    }

    /// What the last server did not get to the end of. Its subjects want to be looked at.
    #[must_use]
    pub fn interrupted(&self) -> &[Interrupted] {
        self.registry.interrupted()
    }

    /// Begins a run. Must be called where there is a runtime.
    ///
    /// # Errors
    /// When the subject has a run, there are too many, or its log can't be made.
    pub fn start<F, W>(&self, new: New, work: F) -> Result<RunId, Error>
    where
        F: FnOnce(Handle) -> W + Send + 'static,
        W: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.start_then(new, work, async |_end| {})
    }

    /// Begins a run, and does what follows from how it ended, whatever ended it: also where its
    /// work never began, panicked or was cut off. Until that is done the run is not over.
    pub(crate) fn start_then<F, W, T, N>(&self, new: New, work: F, then: T) -> Result<RunId, Error>
    where
        F: FnOnce(Handle) -> W + Send + 'static,
        W: Future<Output = Result<(), Failure>> + Send + 'static,
        T: FnOnce(State) -> N + Send + 'static,
        N: Future<Output = ()> + Send + 'static,
    {
        if self.closing.is_cancelled() {
            return Err(Error::Closed);
        }
        let id = RunId::new(uuid::Uuid::now_v7().as_u128());
        let New { kind, subject, cause } = new;
        self.registry.claim(id, kind, &subject, self.limits.waiting)?;
        let header = Header {
            format: FORMAT,
            id,
            kind,
            subject: subject.to_string(),
            cause,
            created_at: clock::now(),
        };
        let begun = self.begin(header, subject.clone());
        let one = begun.inspect_err(|_error| self.registry.release(&subject))?;
        let handle = Handle::new(Arc::clone(&one), self.wake.clone());
        let slots = match kind {
            Kind::ImageBuild | Kind::ImageImport => Arc::clone(&self.images),
            Kind::Sync => Arc::clone(&self.syncs),
            _ => Arc::clone(&self.machines),
        };
        let (closing, grace) = (self.closing.clone(), self.limits.grace);
        self.tasks.spawn(async move {
            let outcome = carry_out(&one, &handle, &slots, grace, work).await;
            let (state, message) =
                judge(outcome, one.cancel.is_cancelled(), closing.is_cancelled());
            if guarded(async { then(state).await }).await.is_err() {
                tracing::error!(run = %one.id, "what follows from a run's end was not done");
            }
            one.end(clock::now(), state, message);
            handle.wake();
        });
        Ok(id)
    }

    /// Makes the log, and what is known of the run.
    fn begin(&self, header: Header, subject: Subject) -> Result<Arc<One>, Error> {
        let path = self.directory.join(format!("{}.log", header.id));
        let failed = |source| Error::Write { path: path.clone(), source };
        let mut line = Vec::new();
        let json = serde_json::to_vec(&header).map_err(|error| failed(error.into()))?;
        log::seal(&json, &mut line);
        let file = OpenOptions::new().create_new(true).append(true).mode(0o600).open(&path);
        let mut file = file.map_err(failed)?;
        if let Err(source) = file.write_all(&line) {
            // A log without a whole first line is no log; the next start would remove it, too.
            std::fs::remove_file(&path).ok();
            return Err(failed(source));
        }
        let bytes = line.len() as u64;
        let found = Found { header, subject, records: 0, end: None, bytes };
        let one = One::new(found, path, self.closing.child_token(), &self.limits);
        let one = Arc::new(one);
        let begun = self.wake.send(Command::Begin(Arc::clone(&one), file, bytes));
        begun.map_err(|_gone| Error::Closed)?;
        self.registry.add(&one);
        Ok(one)
    }

    /// The newest first.
    #[must_use]
    pub fn list(&self, filter: &Filter, limit: usize) -> Vec<Run> {
        self.registry.list(filter, limit)
    }

    /// # Errors
    /// When there is no such run.
    pub fn show(&self, id: RunId) -> Result<Run, Error> {
        Ok(self.registry.get(id)?.show())
    }

    /// The run that is on for a subject, or waits.
    #[must_use]
    pub fn on(&self, subject: &Subject) -> Option<RunId> {
        self.registry.on(subject)
    }

    /// Tells a run's work to stop. It has a little time to do so.
    ///
    /// # Errors
    /// When there is no such run, or it is over.
    pub fn cancel(&self, id: RunId) -> Result<Run, Error> {
        let one = self.registry.get(id)?;
        let run = one.show();
        if run.state.is_over() {
            return Err(Error::Over { id, state: run.state });
        }
        one.cancel.cancel();
        Ok(run)
    }

    /// Waits until a run is over, as its log tells it.
    ///
    /// # Errors
    /// When there is no such run.
    pub(crate) async fn until_over(&self, id: RunId) -> Result<(), Error> {
        let mut head = self.registry.get(id)?.head.subscribe();
        // It has an end before its sender goes.
        head.wait_for(|head| head.over).await.map(drop).map_err(|_gone| Error::Unknown(id))
    }

    /// Reads a run's log from a record on: to its end as it comes, or what there is so far.
    ///
    /// # Errors
    /// When there is no such run, it has not come so far, or too many read.
    pub fn follow(&self, id: RunId, from: u64, waits: bool) -> Result<Follow, Error> {
        let one = self.registry.get(id)?;
        let records = one.head.borrow().next;
        if from > records {
            return Err(Error::Ahead { id, from, records });
        }
        let place = Followers(Arc::clone(&self.followers));
        if self.followers.fetch_add(1, Ordering::Relaxed) >= self.limits.followers {
            return Err(Error::Followers(self.limits.followers));
        }
        Ok(Follow::new(one, from, waits, place))
    }

    /// Lets go of runs that are over for too long.
    pub(crate) fn expire(&self, now: Time) {
        self.registry.expire(&self.limits, now);
    }

    /// Ends all runs, as interrupted, within the grace. Nothing begins any more.
    pub async fn close(&self) {
        self.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let (done, written) = oneshot::channel();
        if self.wake.send(Command::Flush(done)).is_ok() && written.await.is_err() {
            tracing::error!("the logs of runs could not be written to their ends");
        }
    }
}

/// Waits for a place, works, and returns when the work is over or was cut off.
async fn carry_out<F, W>(
    one: &One,
    handle: &Handle,
    slots: &Arc<Semaphore>,
    grace: Duration,
    work: F,
) -> Result<(), Failure>
where
    F: FnOnce(Handle) -> W,
    W: Future<Output = Result<(), Failure>>,
{
    let Some(place) = Place::take(slots, &one.cancel).await else {
        return Err(Failure::new("it had not begun"));
    };
    one.begin(clock::now());
    let own = handle.clone();
    let work = place.during(async move { work(own).await });
    let late = async {
        one.cancel.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        outcome = guarded(work) => outcome.and_then(|done| done),
        () = late => Err(Failure::new("it did not stop in time and was cut off")),
    }
}

/// Does work whose panic is a failure.
pub(crate) async fn guarded<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let done = AssertUnwindSafe(work).catch_unwind().await;
    done.map_err(|_panic| Failure::new("the server made a mistake; its log says more"))
}

/// What became of a run whose work ended so.
fn judge(outcome: Result<(), Failure>, cancelled: bool, closing: bool) -> (State, Option<String>) {
    match outcome {
        Ok(()) => (State::Succeeded, None),
        Err(failure) => {
            let state = match (closing, cancelled) {
                (true, _) => State::Interrupted,
                (false, true) => State::Cancelled,
                (false, false) => State::Failed,
            };
            (state, Some(failure.into_message()))
        }
    }
}

#[cfg(test)]
mod tests;
