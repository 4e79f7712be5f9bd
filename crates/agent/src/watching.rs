//! Keeps a picture of this machine, to be asked for.
//!
//! ```text
//! ask ─► machine, units, packages … look ─► all caught up ─► files, processes look ─► facts
//! ```
//!
//! What a look costs is what changed since the one before: what was read stays known, and the
//! managers of units and containers tell what happens to them. Between two looks nothing else is
//! read.
//!
//! # Invariants
//! - A look shows everything that was so when it was asked for, or says what it could not see.
//! - Looks are answered in turn.

use crate::Error;
use crate::QUEUE;
use crate::collect::{self, Asked, Context};
use crate::config::Config;
use crate::engine::{Engine, Report, Seen};
use crate::identity::Identity;
use model::Facts;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Looks that nobody asked for; they catch what no look should need.
const SELDOM: Duration = Duration::from_secs(86_400);

/// For a collector to say that it hangs.
const MARGIN: Duration = Duration::from_secs(5);

/// Ends with this.
pub(crate) struct Watching {
    looks: mpsc::Sender<oneshot::Sender<Facts>>,
    paths: watch::Sender<Vec<String>>,
    _tasks: JoinSet<()>,
}

/// Owns what is seen.
struct Picture {
    engine: Engine,
    reports: mpsc::Receiver<Report>,
    early: Ask,
    late: Ask,
    number: u64,
    /// Longer than any collector may take.
    deadline: Duration,
}

/// Some collectors that are asked together.
struct Ask {
    ask: watch::Sender<u64>,
    /// Up to which look each of them is through.
    through: BTreeMap<&'static str, u64>,
}

impl Ask {
    fn of(collectors: &[&'static str]) -> Self {
        let through = collectors.iter().map(|name| (*name, 0)).collect();
        Self { ask: watch::Sender::new(0), through }
    }

    fn note(&mut self, collector: &str, number: u64) {
        if let Some(through) = self.through.get_mut(collector) {
            *through = number.max(*through);
        }
    }

    fn lacking(&self, number: u64) -> BTreeSet<&'static str> {
        let lacking = self.through.iter().filter(|(_, through)| **through < number);
        lacking.map(|(name, _)| *name).collect()
    }
}

impl Watching {
    /// Starts the collectors; the first look takes as long as reading everything does.
    pub(crate) fn begin(config: Config) -> Result<Self, Error> {
        let identity =
            Identity::open(&config.state_dir).or_else(|_unwritable| Identity::passing())?;
        let mut early =
            vec!["machine", "users", "disks", "units", "user-units", "containers", "packages"];
        if config.network {
            early.push("network");
        }
        let (early, late) = (Ask::of(&early), Ask::of(&["files", "processes"]));
        let (reports, received) = mpsc::channel(QUEUE);
        let (_missing, wanted) = watch::channel(Vec::new());
        // The slowest gives itself twice the deadline.
        let deadline = config.look_deadline * 2 + MARGIN;
        let config = Config { interval: SELDOM, ..config };
        let mut context = Context::new(config, identity.key, reports, wanted);
        context.asked = Asked::by(early.ask.subscribe());
        context.asked_last = Asked::by(late.ask.subscribe());
        let (paths, tracked) = watch::channel(Vec::new());
        context.paths = tracked;
        let mut tasks = collect::start(&context);
        let engine = Engine::new(Facts::default(), [], [], watch::Sender::default());
        let picture = Picture { engine, reports: received, early, late, number: 0, deadline };
        let (looks, asked) = mpsc::channel(1);
        tasks.spawn(picture.keep(asked));
        Ok(Self { looks, paths, _tasks: tasks })
    }

    /// All that is seen now, and these files.
    ///
    /// # Errors
    /// When the task that watches broke off.
    pub(crate) async fn look(&self, paths: Vec<String>) -> Result<Facts, Error> {
        self.paths.send_replace(paths);
        let (sender, facts) = oneshot::channel();
        self.looks.send(sender).await.map_err(|_ended| Error::Watching)?;
        facts.await.map_err(|_ended| Error::Watching)
    }
}

impl Picture {
    async fn keep(mut self, mut asked: mpsc::Receiver<oneshot::Sender<Facts>>) {
        loop {
            tokio::select! {
                look = asked.recv() => {
                    let Some(answer) = look else { return };
                    // Who asked may have left.
                    let _left = answer.send(self.look().await);
                }
                report = self.reports.recv() => {
                    let Some(report) = report else { return };
                    self.take(report).await;
                }
            }
        }
    }

    async fn take(&mut self, report: Report) {
        if let Seen::CaughtUp(number) = report.seen {
            self.early.note(report.collector, number);
            self.late.note(report.collector, number);
        } else {
            self.engine.absorb(report).await;
        }
    }

    async fn look(&mut self) -> Facts {
        self.number += 1;
        self.early.ask.send_replace(self.number);
        self.wait(|this| &this.early).await;
        self.late.ask.send_replace(self.number);
        self.wait(|this| &this.late).await;
        self.engine.facts().clone()
    }

    /// Until all of these are through. Those that hang are faulty.
    async fn wait(&mut self, these: impl Fn(&Self) -> &Ask) {
        // One that hangs takes no time from those that are asked after it.
        let until = Instant::now() + self.deadline;
        while !these(self).lacking(self.number).is_empty() {
            match tokio::time::timeout_at(until, self.reports.recv()).await {
                Ok(Some(report)) => self.take(report).await,
                Ok(None) | Err(_) => {
                    for collector in these(self).lacking(self.number) {
                        let fault = "it did not look again in time".to_owned();
                        let seen = Seen::Fault(fault);
                        self.engine.absorb(Report { collector, part: None, seen }).await;
                    }
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::File;
    use model::ContentId;
    use model::entity::{Collector, File as Tracked};

    #[tokio::test]
    async fn a_look_shows_what_was_so_when_it_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let asked_for = path.to_str().unwrap().to_owned();
        let nobody = dir.path().join("no").to_str().unwrap().to_owned();
        let file = File {
            state_dir: Some(dir.path().to_owned()),
            docker_socket: Some(dir.path().join("docker")),
            systemd_bus: Some(format!("unix:path={nobody}")),
            ..File::default()
        };
        let config = Config { look_deadline: Duration::from_secs(30), ..file.check().unwrap() };
        let watching = Watching::begin(config).unwrap();
        for n in 0..20 {
            let text = format!("{n}");
            std::fs::write(&path, &text).unwrap();
            let facts = watching.look(vec![asked_for.clone()]).await.unwrap();
            let seen: Tracked = facts.entity(&asked_for).unwrap();
            let content = ContentId::of(text.as_bytes()).to_string();
            assert_eq!(seen.content.as_deref(), Some(content.as_str()), "{n}");
            let units: Collector = facts.entity("units").unwrap();
            assert!(units.fault.is_some(), "a bus that is not there is told");
        }
        std::fs::remove_file(&path).unwrap();
        let facts = watching.look(vec![asked_for.clone()]).await.unwrap();
        assert!(facts.entity::<Tracked>(&asked_for).is_none());
    }
}
