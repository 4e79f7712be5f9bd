//! A twin for each host: made on demand, given power, saved, put back, cloned.
//!
//! ```text
//!   create ─► power ─► guest: waits until it answers, tells it what time it is and who it is
//!      │        │
//!      └────────┴── snapshots ─► retention          clones          view: as outsiders see it
//!   record: who gets in, by which keys known     access: the keys themselves
//!   follow: brings what changes on the host      channel: what the guest's agent is asked for it
//!   ansible: plans by Ansible, where that is to carry them out
//!   starved: those that a full disk stopped go on when there is room
//!   reach: how SSH gets in     relay: packages and images of containers for those that reach nothing
//! ```
//!
//! The hypervisor knows which machines there are and how they are; machines outlive the server,
//! which finds them again. What takes long is a run, one at a time for each twin.
//!
//! # Invariants
//! - Nothing waits for the hypervisor but what is asked of twins: the server starts without it.
//! - The keys that a machine may show are pinned before it is reached.
//! - A clone that did not become itself is removed, at the latest at the next start.

mod access;
pub mod ansible;
mod base;
mod channel;
mod clones;
pub(crate) mod consoles;
mod create;
mod error;
mod extras;
#[cfg(test)]
pub(crate) mod fake;
pub(crate) mod follow;
mod guest;
mod names;
mod nearest;
mod places;
mod power;
mod reach;
mod record;
pub mod relay;
mod retention;
mod settings;
mod snapshots;
pub(crate) mod starved;
mod view;

pub use error::Error;
pub(crate) use places::settle;
pub use settings::{By, Keep, MadeOf, Saving, Settings, TwinsFile, Way};

use crate::container_images::ContainerImages;
use crate::runs::{self, Cause, Failure, Handle, Kind, New, RunId, Runs, Subject};
use access::Access;
use follow::{Gone, Standings, Wakers};
use model::HostId;
use names::Names;
use places::Places;
use record::{Book, Record};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use store::History;
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use vm::image::{ImageId, Job, MachineName, Store};
use vm::machine::{About, Hypervisor, Line, Seen, State, Stream};
use vm::qemu::Qemu;

/// For putting machines in order after a crash, before the first is asked for.
const OPENING: Duration = Duration::from_secs(600);

/// All twins of a server. Clones are the same twins.
#[derive(Debug, Clone)]
pub struct Twins {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    places: Places,
    /// Of machines that are being made.
    names: Names,
    settings: Settings,
    /// Where what Ansible reads is put.
    ansible: PathBuf,
    /// Where files of repositories are kept.
    repositories: PathBuf,
    relay: OnceCell<relay::Relay>,
    access: Access,
    book: Book,
    images: Store,
    container_images: ContainerImages,
    history: History,
    runs: Runs,
    standings: Standings,
    gone: Gone,
    /// Whose turn it is to talk to which guest.
    turns: channel::Turns,
    wakers: Wakers,
    hypervisor: OnceCell<Arc<dyn Hypervisor>>,
    consoles: Arc<Mutex<BTreeSet<MachineName>>>,
    starved: Mutex<BTreeSet<MachineName>>,
}

/// What twins work with, and others, too.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) images: Store,
    pub(crate) history: History,
    pub(crate) runs: Runs,
    pub(crate) wakers: Wakers,
}

/// A twin's console, which is somebody's as long as this is there.
pub(crate) struct Console {
    pub(crate) stream: Box<dyn Stream>,
    /// Where all it said is kept.
    pub(crate) log: PathBuf,
    pub(crate) turn: ConsoleTurn,
}

/// The right to a console; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct ConsoleTurn {
    name: MachineName,
    taken: Arc<Mutex<BTreeSet<MachineName>>>,
}

#[cfg(test)]
impl ConsoleTurn {
    pub(crate) fn of_nobody(name: MachineName) -> Self {
        Self { name, taken: Arc::default() }
    }
}

impl Drop for ConsoleTurn {
    fn drop(&mut self) {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

impl Twins {
    /// Looks at nothing yet.
    pub(crate) fn new(data_dir: &Path, settings: Settings, shared: Shared) -> Self {
        let Shared { images, history, runs, wakers } = shared;
        let book = Book::new(history.records());
        let container_images = ContainerImages::new(
            data_dir.join("container-images"),
            settings.container_images_bytes,
        );
        let inner = Inner {
            places: Places::new(data_dir, &settings.by),
            names: Names::default(),
            settings,
            ansible: data_dir.join("ansible"),
            repositories: data_dir.join("repositories"),
            relay: OnceCell::new(),
            access: Access::new(data_dir.join("access")),
            standings: Standings::new(book.clone()),
            gone: Gone::default(),
            book,
            images,
            container_images,
            history,
            runs,
            turns: channel::Turns::default(),
            wakers,
            hypervisor: OnceCell::new(),
            consoles: Arc::default(),
            starved: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Finds the machines that the last server left, and puts in order what was cut off. Where
    /// there are none, nothing is done.
    pub(crate) async fn find_again(&self) {
        let is_none = self.is_untouched()
            && self.elsewhere().is_ok_and(|others| others.is_empty())
            && self.all_lost().await.is_ok_and(|lost| lost.is_empty());
        if is_none {
            return;
        }
        match self.list().await {
            Ok(api::twin::Twins { twins, unusable, .. }) => {
                tracing::info!(twins = twins.len(), unusable = unusable.len(), "twins were found");
                for twin in unusable {
                    tracing::warn!(twin = twin.name, why = twin.reason, "a twin can't be used");
                }
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "twins can't be looked at"
                );
            }
        }
    }

    /// Whether there never was a machine here.
    fn is_untouched(&self) -> bool {
        let is_machine = |entry: std::io::Result<std::fs::DirEntry>| {
            entry.and_then(|entry| entry.file_type()).is_ok_and(|kind| kind.is_dir())
        };
        self.inner.hypervisor.get().is_none()
            && match std::fs::read_dir(&self.inner.places.own) {
                Ok(mut entries) => !entries.any(is_machine),
                Err(error) => error.kind() == std::io::ErrorKind::NotFound,
            }
    }

    async fn hypervisor(&self) -> Result<&dyn Hypervisor, Error> {
        Ok(self.inner.hypervisor.get_or_try_init(|| self.open()).await?.as_ref())
    }

    async fn open(&self) -> Result<Arc<dyn Hypervisor>, Error> {
        let (told, deadline) = (Arc::new(|_progress| {}), Instant::now() + OPENING);
        let quiet = Job::new(told, CancellationToken::new(), deadline);
        let (directory, images) = (&self.inner.places.own, self.inner.images.clone());
        let hypervisor: Arc<dyn Hypervisor> = match &self.inner.settings.by {
            By::Qemu => Arc::new(Qemu::open(directory, images, &quiet).await?),
            #[cfg(feature = "libvirt")]
            By::Libvirt(uri) => {
                Arc::new(vm::libvirt::Libvirt::open(directory, images, uri.clone()).await?)
            }
        };
        if let Err(error) = self.off_thread(|this| this.inner.access.sweep()).await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "half-made keys are swept when the server starts again");
        }
        clones::sweep(self, hypervisor.as_ref()).await;
        Ok(hypervisor)
    }

    /// What the twin of a host is called.
    ///
    /// # Errors
    /// Never for a host whose name was checked.
    pub fn name(&self, host: &HostId) -> Result<MachineName, Error> {
        let wrong =
            |error: vm::image::NameError| Error::Value { key: "host", what: error.to_string() };
        host.as_str().parse().map_err(wrong)
    }

    /// What machines run with.
    ///
    /// # Errors
    /// When there is nothing here to run them with.
    pub async fn about(&self) -> Result<About, Error> {
        Ok(self.hypervisor().await?.about().await?)
    }

    /// All machines, by name.
    async fn names(&self) -> Result<Vec<MachineName>, Error> {
        if self.is_untouched() {
            return Ok(Vec::new());
        }
        Ok(self.hypervisor().await?.list().await?)
    }

    /// How a machine is, if it is there.
    async fn seen(&self, name: &MachineName) -> Result<Option<Seen>, Error> {
        if self.is_untouched() {
            return Ok(None);
        }
        match self.hypervisor().await?.show(name).await {
            Ok(seen) => Ok(Some(seen)),
            Err(vm::machine::Error::Unknown { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn known(&self, name: &MachineName) -> Result<Seen, Error> {
        match self.seen(name).await? {
            Some(seen) => Ok(seen),
            None => Err(self.missing(name).await),
        }
    }

    /// Why there is no machine of this name to work with.
    async fn missing(&self, name: &MachineName) -> Error {
        if let Err(elsewhere) = self.not_elsewhere(name) {
            return elsewhere;
        }
        match self.is_lost(name).await {
            Ok(true) => self.lost(name),
            Ok(false) => Error::Unknown { name: name.clone() },
            Err(error) => error,
        }
    }

    /// Whether there is a machine, be it one that can't be read.
    async fn is_made(&self, name: &MachineName) -> Result<bool, Error> {
        match self.seen(name).await {
            Ok(seen) => Ok(seen.is_some()),
            Err(error) if error.is_damage() => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Images that machines begin from, and those machines.
    pub(crate) async fn images_in_use(&self) -> Result<BTreeMap<ImageId, Vec<String>>, Error> {
        let mut used: BTreeMap<ImageId, Vec<String>> = BTreeMap::new();
        if !self.is_untouched() {
            for (image, names) in self.hypervisor().await?.images_in_use().await? {
                used.insert(image, names.iter().map(ToString::to_string).collect());
            }
        }
        for (name, images) in self.elsewhere()? {
            for image in images {
                used.entry(image).or_default().push(name.to_string());
            }
        }
        Ok(used)
    }

    /// The console of a machine that runs.
    pub(crate) async fn console(&self, name: &MachineName) -> Result<Console, Error> {
        let seen = self.known(name).await?;
        if seen.state == State::Stopped {
            let (name, doing) = (name.clone(), "see its console");
            return Err(vm::machine::Error::NotRunning { name, doing }.into());
        }
        let taken = Arc::clone(&self.inner.consoles);
        if !taken.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone()) {
            return Err(Error::ConsoleTaken { name: name.clone() });
        }
        let turn = ConsoleTurn { name: name.clone(), taken };
        let stream = self.hypervisor().await?.connect(name, Line::Console).await?;
        Ok(Console { stream, log: seen.console_log, turn })
    }

    fn record(&self, name: &MachineName) -> Result<Option<Record>, Error> {
        self.inner.book.get(name)
    }

    /// Runs what blocks off the async threads.
    async fn off_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let this = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&this)).await;
        done.unwrap_or(Err(Error::Runs(runs::Error::Closed)))
    }

    /// Begins a run whose subject is this twin.
    async fn begin<F, W>(
        &self,
        of: (Kind, &MachineName),
        cause: Cause,
        work: F,
    ) -> Result<RunId, Error>
    where
        F: FnOnce(Self, Handle) -> W + Send + 'static,
        W: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.begin_then(of, cause, work, async |_this, _end| {}).await
    }

    /// Begins a run whose subject is this twin, and does what follows from how it ended.
    async fn begin_then<F, W, T, N>(
        &self,
        (kind, name): (Kind, &MachineName),
        cause: Cause,
        work: F,
        then: T,
    ) -> Result<RunId, Error>
    where
        F: FnOnce(Self, Handle) -> W + Send + 'static,
        W: Future<Output = Result<(), Failure>> + Send + 'static,
        T: FnOnce(Self, runs::State) -> N + Send + 'static,
        N: Future<Output = ()> + Send + 'static,
    {
        let subject = name.clone();
        // Who follows a host knows of its own runs.
        let is_news = !matches!(cause, Cause::Host { .. });
        let new = New { kind, subject: Subject::twin(name), cause };
        self.off_thread(move |this| {
            let (own, after) = (this.clone(), this.clone());
            let work = async move |handle| work(own, handle).await;
            let then = async move |end| {
                then(after.clone(), end).await;
                if is_news {
                    after.inner.wakers.touch(&subject);
                }
            };
            Ok(this.inner.runs.start_then(new, work, then)?)
        })
        .await
    }

    /// The host of this name, if the server knows it.
    fn known_host(&self, name: &MachineName) -> Result<HostId, Error> {
        self.host(name).ok_or_else(|| match HostId::new(name.as_str()) {
            Ok(host) => Error::UnknownHost { host },
            Err(_) => Error::Unknown { name: name.clone() },
        })
    }

    fn host(&self, name: &MachineName) -> Option<HostId> {
        let host = HostId::new(name.as_str()).ok()?;
        self.inner.history.host(&host).map(|info| info.host)
    }
}
