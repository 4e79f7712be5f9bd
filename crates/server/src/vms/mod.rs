//! The VM inventory of all nodes, in step with what their agents tell.
//!
//! ```text
//!   facts of a node changed ──► listing ──► reconcile ──► durable ──► table ──► routes
//!   load, probes, time      ──► verdicts ─► health    ──┘         └──► feed ──► SSE
//! ```
//!
//! One task ([`controller`]) changes the inventory; others read the table or send it a
//! [`Message`]. What is decided is decided in the crate `inventory`.
//!
//! # Invariants
//! - Nobody is told of what is not durable, but for measurements.
//! - A node that is silent, and a look that is not complete, make nothing an orphan.

mod book;
mod checking;
pub(crate) mod controller;
mod desk;
mod feed;
mod measured;
mod node;
mod probe;
mod settings;

pub(crate) use feed::Told;
pub use settings::{InventoryFile, Settings};

use api::node::{NodeAsks, Task};
use book::Book;
use feed::Feed;
use inventory::health::{Check, Verdict};
use inventory::recovery::Policy;
use inventory::{Breaker, Listing, Outcome, Usage, Vm};
use model::load::Load;
use model::vm::{CheckName, Layer, VmId, may_be_microvm};
use model::{HostId, Time};
use node::Node;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use store::History;
use tokio::sync::{mpsc, oneshot};

/// Messages that may wait for the controller. Measurements beyond it are dropped.
const INBOX: usize = 1024;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("there is no VM {0:?}; GET /api/v1/vms lists those there are")]
    Unknown(String),
    #[error("several VMs are called {name:?}: {}", .ids.iter().map(VmId::as_str).collect::<Vec<_>>().join(", "))]
    Ambiguous { name: String, ids: Vec<VmId> },
    #[error("{0} is there; only the record of an orphan is removed")]
    NotOrphan(VmId),
    #[error("{0} is a VM of a vSphere; only microVMs are started anew from here")]
    NotOurs(VmId),
    #[error(
        "{check}: {id} is a VM of a vSphere, where no node of ours looks; the server checks an \
         address without from_node"
    )]
    NoNode { id: VmId, check: CheckName },
    #[error("nothing of {0} is held")]
    NothingHeld(HostId),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(transparent)]
    Outbox(#[from] sinks::outbox::Error),
}

/// What is to be made durable with what is decided: of the decisions, and what VMs were before.
pub(crate) type Also =
    Box<dyn FnOnce(&Outcome, &BTreeMap<VmId, Vm>, Time) -> Result<store::Changes, Error> + Send>;

/// What another source than a node lists.
pub(crate) struct Listed {
    listing: Listing,
    /// Nothing is held without.
    breaker: Option<Breaker>,
    also: Option<Also>,
    reply: Reply<Outcome>,
}

impl std::fmt::Debug for Listed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listed").field("nodes", &self.listing.nodes).finish_non_exhaustive()
    }
}

/// What the controller is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// Use of units, by their id.
    Measured(HostId, Vec<(String, Usage)>),
    /// What a probe found, and when; nothing where it could not be known.
    Probed(VmId, CheckName, Option<(Layer, Verdict)>, Time),
    Listed(Box<Listed>),
    /// VMs as somebody else knew them.
    Adopt(Vec<Vm>, Reply<()>),
    /// What a node did, and whether it waits for more.
    Work(HostId, NodeAsks, Reply<Vec<Task>>),
    /// Whether a VM is started anew when it does badly.
    Recover(VmId, Option<Policy>, Reply<()>),
    /// The record of an orphan is to go.
    Forget(VmId, Reply<()>),
    /// The node is not watched any more.
    ForgetNode(HostId),
    /// What is held of a node is indeed gone.
    Confirm(HostId, Reply<Vec<VmId>>),
    Declare(VmId, BTreeMap<CheckName, Check>, Reply<()>),
}

type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What is known at this moment.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) vms: BTreeMap<VmId, Vm>,
    pub(crate) nodes: BTreeMap<HostId, Node>,
}

/// The handle. Clones are handles to the same inventory.
#[derive(Debug, Clone)]
pub(crate) struct Vms {
    table: Arc<RwLock<Table>>,
    feed: Arc<Feed>,
    inbox: mpsc::Sender<Message>,
    book: Book,
    settings: Settings,
}

impl Vms {
    /// Reads what was known. The receiver is the controller's. Blocks.
    pub(crate) fn open(
        history: &History,
        settings: Settings,
        now: Time,
    ) -> Result<(Self, mpsc::Receiver<Message>), store::Error> {
        let book = Book::new(history.records());
        let table = Table { vms: book.all()?, nodes: BTreeMap::new() };
        let (inbox, messages) = mpsc::channel(INBOX);
        let feed = Arc::new(Feed::new(now));
        Ok((Self { table: Arc::new(RwLock::new(table)), feed, inbox, book, settings }, messages))
    }

    pub(crate) fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }

    /// The VM that a text means: its id, or its name where only one has it.
    pub(crate) fn find(&self, text: &str) -> Result<VmId, Error> {
        let table = self.table();
        let shown = || text.chars().take(80).collect::<String>();
        if let Some(id) = text.parse::<VmId>().ok().filter(|id| table.vms.contains_key(id)) {
            return Ok(id);
        }
        let named = table.vms.values().filter(|vm| vm.record.name.as_str() == text);
        let ids: Vec<VmId> = named.map(|vm| vm.record.id.clone()).collect();
        match ids.as_slice() {
            [] => Err(Error::Unknown(shown())),
            [id] => Ok(id.clone()),
            _ => Err(Error::Ambiguous { name: shown(), ids }),
        }
    }

    /// Takes what a node measured. What comes too fast is dropped: the next tells the same.
    pub(crate) fn measured(&self, node: &HostId, load: &Load) {
        let is_vm = |unit: &&String| may_be_microvm(unit);
        let used: Vec<(String, Usage)> = load
            .units
            .keys()
            .filter(is_vm)
            .filter_map(|unit| Some((unit.clone(), measured::usage(load, unit)?)))
            .collect();
        if !used.is_empty()
            && let Err(error) = self.inbox.try_send(Message::Measured(node.clone(), used))
        {
            tracing::debug!(%node, %error, "a measurement of VMs is dropped");
        }
    }

    /// Takes what another source than a node lists; answers when what follows is durable.
    pub(crate) async fn listed(
        &self,
        listing: Listing,
        breaker: Option<Breaker>,
        also: Option<Also>,
    ) -> Result<Outcome, Error> {
        self.ask(|reply| Message::Listed(Box::new(Listed { listing, breaker, also, reply }))).await
    }

    /// Takes VMs as somebody else knew them.
    pub(crate) async fn adopt(&self, vms: Vec<Vm>) -> Result<(), Error> {
        self.ask(|reply| Message::Adopt(vms, reply)).await
    }

    /// What is said of breakers.
    pub(crate) fn breaker(&self) -> Breaker {
        self.settings.breaker
    }

    /// Removes the record of an orphan.
    pub(crate) async fn forget(&self, id: VmId) -> Result<(), Error> {
        self.ask(|reply| Message::Forget(id, reply)).await
    }

    /// Makes what is held of a node orphans; tells which.
    pub(crate) async fn confirm(&self, node: HostId) -> Result<Vec<VmId>, Error> {
        self.ask(|reply| Message::Confirm(node, reply)).await
    }

    /// Says which checks are made of a VM beside those that are made by themselves.
    pub(crate) async fn declare(
        &self,
        id: VmId,
        checks: BTreeMap<CheckName, Check>,
    ) -> Result<(), Error> {
        self.ask(|reply| Message::Declare(id, checks, reply)).await
    }

    /// Says whether a VM is started anew when it does badly.
    pub(crate) async fn recover(&self, id: VmId, policy: Option<Policy>) -> Result<(), Error> {
        self.ask(|reply| Message::Recover(id, policy, reply)).await
    }

    /// Takes what a node did; answers when there is work for it, if it waits for that.
    pub(crate) async fn work(&self, node: HostId, asks: NodeAsks) -> Result<Vec<Task>, Error> {
        self.ask(|reply| Message::Work(node, asks, reply)).await
    }

    /// A node's history was forgotten, and its VMs with it. Blocks.
    pub(crate) fn forget_node(&self, node: &HostId) {
        if self.inbox.blocking_send(Message::ForgetNode(node.clone())).is_err() {
            tracing::debug!(%node, "its VMs are forgotten at the next start");
        }
    }

    async fn ask<T>(&self, message: impl FnOnce(Reply<T>) -> Message) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let closed = || Error::Store(store::Error::Closed);
        self.inbox.send(message(reply)).await.map_err(|_gone| closed())?;
        answer.await.unwrap_or_else(|_gone| Err(closed()))
    }
}
