//! Containers of Docker: read once, then followed by its events.
//!
//! No Docker, or one that is stopped, is normal: there are no containers then. One that had
//! containers and does not answer is a fault for as long as its socket is there: its containers
//! may well run.
//!
//! # Invariants
//! - A container that can't be read stays as it was, is named in the limits, and holds up no other.

use super::{Context, Sink, item, items, until};
use crate::engine::Scope;
use host::docker::{ContainerEvent, Docker, Error, Listing};
use model::entity::Container;
use model::{Kind, Subject, with_causes};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// A full look in spite of the events, should one have been missed.
const RESYNC: Duration = Duration::from_secs(900);
/// The same where a container could not be read.
const RETRY: Duration = Duration::from_secs(60);
/// Containers that can't be read and are named.
const NAMED: usize = 16;
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(15));

struct Follower {
    context: Context,
    sink: Sink,
    docker: Docker,
    /// Names by id, to know what goes when an id is gone.
    names: BTreeMap<String, String>,
    /// What is wrong with those that can't be read, by id.
    unread: BTreeMap<String, String>,
    /// When all is looked at again for them.
    retry: Option<Instant>,
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
    let mut follower = Follower::new(context, sink, docker, had);
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
    fn new(context: Context, sink: Sink, docker: Docker, had: bool) -> Self {
        let (names, unread) = (BTreeMap::new(), BTreeMap::new());
        Self { context, sink, docker, names, unread, retry: None, had, asked: 0 }
    }

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
                () = until(self.retry) => ContainerEvent::Resync,
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
                ContainerEvent::Changed(id) => match self.docker.container(&id).await {
                    Ok(Some(container)) => self.put(id, container).await,
                    Ok(None) => self.remove(&id).await,
                    Err(error) if error.is_of_one() => self.leave(id, &error).await,
                    Err(error) => return Err(error),
                },
            }
        }
    }

    async fn read_all(&mut self) -> Result<(), Error> {
        let Listing { containers, unread } = self.docker.containers().await?;
        let wrong = unread.iter().map(|one| (one.id.clone(), limit(&one.name, &one.error)));
        self.unread = wrong.collect();
        self.retry = (!unread.is_empty()).then(|| Instant::now() + RETRY);
        let left = unread.iter().map(|one| Subject::escaped(Kind::CONTAINER, &one.name));
        let scopes = vec![Scope::ContainersBut(left.collect())];
        self.sink.all(scopes, items(&containers), self.limits()).await;
        let names = containers.into_iter().map(|one| (one.container_id, one.name));
        self.names = names.chain(unread.into_iter().map(|one| (one.id, one.name))).collect();
        self.had = !self.names.is_empty();
        self.publish();
        Ok(())
    }

    /// Leaves one as it was, since it can't be read.
    async fn leave(&mut self, id: String, error: &Error) {
        let limit = limit(self.names.get(&id).unwrap_or(&id), error);
        self.unread.insert(id, limit);
        self.retry.get_or_insert_with(|| Instant::now() + RETRY);
        self.tell_limits().await;
    }

    /// One is read, or gone.
    async fn take_back(&mut self, id: &str) {
        if self.unread.remove(id).is_some() {
            self.tell_limits().await;
        }
    }

    async fn tell_limits(&self) {
        self.sink.all(Vec::new(), Vec::new(), self.limits()).await;
    }

    fn limits(&self) -> Vec<String> {
        let mut limits: Vec<String> = self.unread.values().take(NAMED).cloned().collect();
        let more = self.unread.len() - limits.len();
        if more > 0 {
            limits.push(format!("{more} more containers can't be read"));
        }
        limits
    }

    async fn put(&mut self, id: String, container: Container) {
        self.take_back(&id).await;
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
        self.take_back(id).await;
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

fn limit(name: &str, error: &Error) -> String {
    format!("container {name} can't be read: {}", with_causes(error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, File};
    use crate::engine::{Report, Seen};
    use std::path::PathBuf;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{UnixListener, UnixStream};
    use tokio::sync::{mpsc, watch};
    use tokio::task::JoinSet;

    const LIST: &str = r#"[{"Id":"c1","Names":["/web"]},{"Id":"c2","Names":["/db"]}]"#;
    const WEB: &str = r#"{"Id":"c1","Name":"/web"}"#;
    const DB: &str = r#"{"Id":"c2","Name":"/db"}"#;

    /// An engine that can't tell of the one container before it is mended.
    struct Engine {
        listener: UnixListener,
        events: mpsc::Receiver<&'static str>,
        is_mended: watch::Receiver<bool>,
    }

    impl Engine {
        async fn run(mut self) {
            let mut watching: Option<UnixStream> = None;
            loop {
                tokio::select! {
                    taken = self.listener.accept() => {
                        let mut stream = taken.unwrap().0;
                        let path = asked_for(&mut stream).await;
                        stream.write_all(self.answer(&path).as_bytes()).await.unwrap();
                        if path.starts_with("/events") {
                            assert!(watching.replace(stream).is_none(), "it asks for events again");
                        }
                    }
                    id = self.events.recv() => {
                        let Some(id) = id else { return };
                        let event = format!(
                            "{{\"Type\":\"container\",\"Action\":\"start\",\"Actor\":{{\"ID\":\"{id}\"}}}}\n"
                        );
                        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                        watching.as_mut().unwrap().write_all(chunk.as_bytes()).await.unwrap();
                    }
                }
            }
        }

        fn answer(&self, path: &str) -> String {
            let body = match path {
                "/containers/json?all=1" => LIST,
                "/containers/c1/json" => WEB,
                "/containers/c2/json" if *self.is_mended.borrow() => DB,
                "/containers/c2/json" => {
                    return "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".to_owned();
                }
                _ => return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            };
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        }
    }

    async fn asked_for(stream: &mut UnixStream) -> String {
        let mut request = vec![0; 4096];
        let count = stream.read(&mut request).await.unwrap();
        let request = String::from_utf8_lossy(&request[..count]).into_owned();
        request.split(' ').nth(1).unwrap_or_default().to_owned()
    }

    fn context(docker_socket: PathBuf) -> (Context, mpsc::Receiver<Report>) {
        let file = File { docker_socket: Some(docker_socket), ..File::default() };
        let config: Config = file.check().unwrap();
        let (reports, seen) = mpsc::channel(64);
        (Context::new(config, [7; 32], reports, watch::channel(Vec::new()).1), seen)
    }

    #[tokio::test]
    async fn a_container_that_can_not_be_read_stays_and_the_others_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let ((happen, events), (mend, is_mended)) = (mpsc::channel(8), watch::channel(false));
        let (context, mut reports) = context(socket);
        let mut tasks = JoinSet::new();
        tasks.spawn(Engine { listener, events, is_mended }.run());
        tasks.spawn(run(context));
        let mut next = async || match reports.recv().await.unwrap().seen {
            Seen::All { scopes, items, limits } => (scopes, items.len(), limits),
            Seen::Some { put, gone } => (Vec::new(), put.len() + gone.len(), Vec::new()),
            other => panic!("{other:?}"),
        };
        let path = "GET /containers/c2/json";
        let limit = format!("container db can't be read: Docker answered {path} with status 500");
        let but_db = Scope::ContainersBut([Subject::escaped(Kind::CONTAINER, "db")].into());
        assert_eq!(next().await, (vec![but_db], 1, vec![limit.clone()]));
        happen.send("c2").await.unwrap();
        assert_eq!(next().await, (vec![], 0, vec![limit]), "nothing is gone");
        happen.send("c1").await.unwrap();
        assert_eq!(next().await, (vec![], 1, vec![]), "the other is followed");
        mend.send_replace(true);
        happen.send("c2").await.unwrap();
        assert_eq!(next().await, (vec![], 0, vec![]), "it has no limit any more");
        assert_eq!(next().await, (vec![], 1, vec![]), "and is there");
    }
}
