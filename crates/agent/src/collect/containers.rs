//! Containers of Docker: read once, then followed by its events.
//!
//! No Docker, or one that is stopped, is normal: there are no containers then. One that had
//! containers and does not answer is a fault for as long as its socket is there: its containers
//! may well run.

use super::{Context, Sink, item, items};
use crate::engine::Scope;
use host::docker::{ContainerEvent, Docker, Error};
use model::entity::Container;
use model::{Kind, Subject};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{MissedTickBehavior, interval};

/// A full look in spite of the events, should one have been missed.
const RESYNC: Duration = Duration::from_secs(900);
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

struct Follower {
    context: Context,
    sink: Sink,
    docker: Docker,
    /// Names by id, to know what goes when an id is gone.
    names: BTreeMap<String, String>,
    /// Whether there were containers when it was last seen, by this agent or the one before.
    had: bool,
    /// The look asked for that the present one answers.
    asked: u64,
}

pub(crate) async fn run(context: Context) {
    let sink = context.sink("containers");
    let docker = Docker::new(context.config.docker_socket.clone(), context.redactor.clone())
        .within(context.deadline());
    let had = context.had_containers;
    let mut follower = Follower { context, sink, docker, names: BTreeMap::new(), had, asked: 0 };
    let mut backoff = BACKOFF.0;
    loop {
        match follower.follow(&mut backoff).await {
            Ok(()) => return,
            Err(error) if error.is_absent() || error.is_stopped() && !follower.had => {
                follower.had = false;
                follower.names.clear();
                follower.publish();
                follower.sink.all(vec![Scope::Kind(Kind::CONTAINER)], Vec::new(), Vec::new()).await;
            }
            Err(error) => follower.sink.fault(&error).await,
        }
        follower.sink.caught_up(follower.asked).await;
        if !follower.context.pause(backoff).await {
            return;
        }
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

impl Follower {
    async fn follow(&mut self, backoff: &mut Duration) -> Result<(), Error> {
        self.asked = self.context.asked.take_up();
        if self.context.once {
            return self.read_all().await;
        }
        let mut watch = self.docker.watch().await?;
        self.read_all().await?;
        self.sink.caught_up(self.asked).await;
        *backoff = BACKOFF.0;
        let shutdown = self.context.shutdown.clone();
        // Silence is not health: an engine that hangs sends no events either.
        let mut alive = interval(self.context.config.interval);
        let mut resync = interval(RESYNC);
        for timer in [&mut alive, &mut resync] {
            timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
            timer.reset();
        }
        loop {
            let event = tokio::select! {
                event = watch.next() => event?,
                _ = alive.tick() => {
                    self.docker.answers().await?;
                    continue;
                }
                _ = resync.tick() => ContainerEvent::Resync,
                () = self.context.asked.next() => {
                    self.asked = self.context.asked.take_up();
                    self.read_all().await?;
                    self.sink.caught_up(self.asked).await;
                    continue;
                }
                () = shutdown.cancelled() => return Ok(()),
            };
            match event {
                ContainerEvent::Resync => self.read_all().await?,
                ContainerEvent::Removed(id) => self.remove(&id).await,
                ContainerEvent::Changed(id) => match self.docker.container(&id).await? {
                    Some(container) => self.put(id, container).await,
                    None => self.remove(&id).await,
                },
            }
        }
    }

    async fn read_all(&mut self) -> Result<(), Error> {
        let containers = self.docker.containers().await?;
        self.sink.all(vec![Scope::Kind(Kind::CONTAINER)], items(&containers), Vec::new()).await;
        self.had = !containers.is_empty();
        self.names = containers.into_iter().map(|c| (c.container_id, c.name)).collect();
        self.publish();
        Ok(())
    }

    async fn put(&mut self, id: String, container: Container) {
        let (subject, now) = item(&container);
        // Renamed: the old name has no container any more.
        let before =
            self.names.insert(id, container.name.clone()).filter(|name| *name != container.name);
        let gone = before.map(|name| Subject::escaped(Kind::CONTAINER, &name));
        self.had = true;
        self.sink.some(vec![(subject, now)], gone.into_iter().collect()).await;
        self.publish();
    }

    async fn remove(&mut self, id: &str) {
        if let Some(name) = self.names.remove(id) {
            self.had = !self.names.is_empty();
            self.sink.some(Vec::new(), vec![Subject::escaped(Kind::CONTAINER, &name)]).await;
            self.publish();
        }
    }

    fn publish(&self) {
        self.context.containers.send_if_modified(|known| {
            let news = *known != self.names;
            if news {
                known.clone_from(&self.names);
            }
            news
        });
    }
}
