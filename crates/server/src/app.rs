//! What every request works with.

use crate::listening::Places;
use crate::metrics::Metrics;
use crate::pulse::Pulse;
use crate::rendered::Rendered;
use crate::replays::Replays;
use crate::runs::Runs;
use crate::snapshots::Snapshots;
use crate::sync::Sync;
use crate::tokens::Tokens;
use crate::twins::Twins;
use crate::vms::Vms;
use model::redact::Redactor;
use model::{HostId, Time, Version};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use store::{Append, Appended, Committed, Entry, History};
use tokio::sync::{broadcast, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Events a live stream may fall behind before it reads the history instead.
const EVENTS: usize = 4096;

/// Changes of a version that are carried in the channel. Larger versions are read from the
/// history, so that what the channel holds has a limit in bytes, too.
const CARRIED: usize = 100;

/// A version was recorded.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) host: HostId,
    pub(crate) version: Version,
    /// Unless it is large.
    pub(crate) entry: Option<Entry>,
}

pub(crate) type Event = Arc<Recorded>;

impl From<&Committed> for Recorded {
    fn from(committed: &Committed) -> Self {
        let Committed { host, entry, .. } = committed;
        let small = entry.patch.len() <= CARRIED;
        Self { host: host.clone(), version: entry.version, entry: small.then(|| entry.clone()) }
    }
}

#[derive(Debug)]
pub(crate) struct App {
    pub(crate) history: History,
    pub(crate) pulse: Pulse,
    pub(crate) places: Arc<Places>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) tokens: Tokens,
    pub(crate) tokens_required: bool,
    pub(crate) server_names: Vec<String>,
    /// The bridge's name for its machine.
    pub(crate) vm_name: String,
    pub(crate) snapshots: Snapshots,
    pub(crate) runs: Runs,
    pub(crate) images: vm::image::Store,
    pub(crate) twins: Twins,
    pub(crate) vms: Vms,
    /// Where vSpheres are followed.
    pub(crate) sync: Option<Sync>,
    /// For clients that do not redact themselves.
    pub(crate) redactor: Redactor,
    pub(crate) metrics: Metrics,
    pub(crate) replays: Replays,
    /// What goes on being recorded when its client has gone; waited for at the end.
    pub(crate) recordings: TaskTracker,
    pub(crate) rendered: Rendered,
    /// When hosts were last heard of; losing it at a restart costs nothing.
    pub(crate) seen: Mutex<HashMap<HostId, Time>>,
    pub(crate) shutdown: CancellationToken,
}

/// The channel of what was recorded.
pub(crate) fn events() -> broadcast::Sender<Event> {
    broadcast::channel(EVENTS).0
}

impl App {
    /// Stores deltas; returns when they are durable.
    pub(crate) async fn append(&self, append: Append) -> Result<Appended, store::Error> {
        let (reply, answer) = oneshot::channel();
        self.history.append(append, move |result| {
            // A client that went away does not need the answer.
            let _gone = reply.send(result);
        });
        answer.await.unwrap_or(Err(store::Error::Closed))
    }

    /// Runs what reads the history off the async threads.
    pub(crate) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Self) -> Result<T, store::Error> + Send + 'static,
    ) -> Result<T, store::Error> {
        let app = Arc::clone(self);
        let task = tokio::task::spawn_blocking(move || read(&app));
        task.await.unwrap_or(Err(store::Error::Closed))
    }

    pub(crate) fn saw(&self, host: &HostId, now: Time) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match seen.get_mut(host) {
            Some(at) => *at = now,
            None => {
                seen.insert(host.clone(), now);
            }
        }
    }

    pub(crate) fn seen_at(&self, host: &HostId) -> Option<Time> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).get(host).copied()
    }
}
