//! Images that are wanted of hosts: each waits here until the host's agent asks, and what the agent
//! says of it then finds its way to whoever waits for the image.
//!
//! # Invariants
//! - Each task is given out once, and is open as long as somebody waits for it.

use super::{Error, Message};
use api::container_image::ImageTask;
use model::HostId;
use model::spec::{ContainerName, Image};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

/// An agent that asked within this time is there.
const ATTENDED: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Desk {
    last: AtomicU64,
    seats: Mutex<BTreeMap<HostId, Arc<Seat>>>,
}

/// What is wanted of one host.
#[derive(Debug)]
struct Seat {
    asked: watch::Sender<Option<Instant>>,
    work: Notify,
    tasks: Mutex<Tasks>,
}

#[derive(Debug, Default)]
struct Tasks {
    queue: Vec<ImageTask>,
    open: BTreeMap<u64, mpsc::Sender<Message>>,
}

/// A task as its giver has it; nobody waits for it any more when this is dropped.
#[derive(Debug)]
pub(super) struct Given {
    id: u64,
    seat: Arc<Seat>,
    messages: mpsc::Receiver<Message>,
}

impl Given {
    /// The next that is said of it.
    pub(super) async fn next(&mut self) -> Option<Message> {
        self.messages.recv().await
    }

    /// Waits until the host's agent is there; whether it is.
    pub(super) async fn is_attended(&self, limit: Duration) -> bool {
        let mut asked = self.seat.asked.subscribe();
        let fresh = |at: &Option<Instant>| at.is_some_and(|at| at.elapsed() < ATTENDED);
        tokio::time::timeout(limit, asked.wait_for(fresh)).await.is_ok_and(|asked| asked.is_ok())
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        let mut tasks = self.seat.tasks();
        tasks.queue.retain(|task| task.id != self.id);
        tasks.open.remove(&self.id);
    }
}

impl Seat {
    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self) -> bool {
        let now = Instant::now();
        let before = self.asked.send_replace(Some(now));
        before.is_none_or(|before| now.duration_since(before) >= ATTENDED)
    }
}

impl Desk {
    /// Numbers begin with the time, so that none is one of a server before.
    pub(super) fn new(begin: u64) -> Self {
        Self { last: AtomicU64::new(begin), seats: Mutex::default() }
    }

    fn seat(&self, host: &HostId) -> Arc<Seat> {
        let mut seats = self.seats.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Seat {
            asked: watch::Sender::new(None),
            work: Notify::new(),
            tasks: Mutex::default(),
        };
        Arc::clone(seats.entry(host.clone()).or_insert_with(|| Arc::new(new())))
    }

    /// Wants an image of a host.
    pub(super) fn give(
        &self,
        host: &HostId,
        (image, container): (Image, Option<ContainerName>),
        bytes_max: u64,
    ) -> Given {
        let (seat, id) = (self.seat(host), self.last.fetch_add(1, Ordering::Relaxed) + 1);
        let (sender, messages) = mpsc::channel(1);
        let mut tasks = seat.tasks();
        tasks.queue.push(ImageTask { id, image, container, bytes_max });
        tasks.open.insert(id, sender);
        drop(tasks);
        seat.work.notify_one();
        Given { id, seat, messages }
    }

    /// The host's agent asks; whether it was not there before.
    pub(super) fn note(&self, host: &HostId) -> bool {
        self.seat(host).note()
    }

    /// Waits for something to be wanted of a host.
    pub(super) async fn attend(&self, host: &HostId) -> Vec<ImageTask> {
        let seat = self.seat(host);
        loop {
            let work = seat.work.notified();
            let tasks = std::mem::take(&mut seat.tasks().queue);
            if !tasks.is_empty() {
                return tasks;
            }
            work.await;
        }
    }

    /// Says something of a task to who waits for it.
    pub(super) async fn say(&self, host: &HostId, id: u64, message: Message) -> Result<(), Error> {
        let seat = self.seat(host);
        seat.note();
        let waiting = seat.tasks().open.get(&id).cloned();
        let waiting = waiting.ok_or(Error::Unwanted)?;
        waiting.send(message).await.map_err(|_closed| Error::Unwanted)
    }
}
