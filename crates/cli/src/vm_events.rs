//! Follows what becomes of VMs, over any number of connections.
//!
//! # Invariants
//! - Events come in order, each once; what the server does not keep any more is said to be lost.

use crate::failure::Failure;
use crate::follow::SILENCE;
use crate::patience::Patience;
use crate::remote::{Query, Remote};
use crate::session::note;
use crate::sse::Parser;
use api::client::Body;
use api::vm::VmEvent;
use http_body_util::BodyExt;
use std::collections::VecDeque;

pub(crate) struct VmEvents {
    remote: Remote,
    /// The last event seen, or the one before the first.
    last: Option<u64>,
    connection: Option<(Body, Parser)>,
    queue: VecDeque<VmEvent>,
    patience: Patience,
}

impl VmEvents {
    /// From now on. A server that refuses is told at once, and so is one that is not there.
    pub(crate) async fn new(remote: Remote) -> Result<Self, Failure> {
        let queue = VecDeque::new();
        let mut events =
            Self { remote, last: None, connection: None, queue, patience: Patience::new() };
        events.connect().await?;
        Ok(events)
    }

    pub(crate) async fn next(&mut self) -> Result<VmEvent, Failure> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Ok(event);
            }
            if !self.read().await? {
                self.connection = None;
                self.reconnect().await?;
            }
        }
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        let query = Query::of(&["vms", "events"]).with_some("from", self.last);
        self.connection = self.remote.events(&query).await?.map(|body| (body, Parser::default()));
        Ok(())
    }

    async fn reconnect(&mut self) -> Result<(), Failure> {
        loop {
            self.patience.pause().await;
            let tried = self.connect().await;
            if let Some(done) = self.patience.judge(self.remote.url(), tried) {
                return done;
            }
        }
    }

    /// Queues what comes in; `false` when the connection is of no more use.
    async fn read(&mut self) -> Result<bool, Failure> {
        let Some((body, parser)) = &mut self.connection else { return Ok(false) };
        let Ok(Some(Ok(frame))) = tokio::time::timeout(SILENCE, body.frame()).await else {
            return Ok(false);
        };
        let Ok(bytes) = frame.into_data() else { return Ok(true) };
        self.patience.restore();
        let events = parser.feed(&bytes).map_err(|error| Failure::Failed(error.to_string()))?;
        for event in events {
            self.last = event.id.parse().ok().or(self.last);
            match event.name.as_str() {
                "vm" => self
                    .queue
                    .push_back(serde_json::from_str(&event.data).map_err(|error| {
                    Failure::Failed(format!(
                        "an event is not understood ({error}); compare versions with: twin doctor"
                    ))
                })?),
                "lost" => note(
                    "what became of VMs meanwhile is not known any more; see: twin inventory list",
                ),
                _ => {}
            }
        }
        Ok(true)
    }
}
