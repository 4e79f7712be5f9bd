//! What a node does for its VMs because the server asks, and because the node's own
//! configuration allows it: the program `twin-node`.
//!
//! ```text
//!   ask ──tasks──► each on its own ───► outcomes ──► tell
//!    ▲               script: sandbox       │
//!    └─ waits there  console: journal      └─ at once, beside the asking
//!                    guest: VMM's sockets
//!                    icmp, arp, tcp, http: network
//!                    restart: systemctl
//! ```
//!
//! # Invariants
//! - Nothing listens. Nothing is started anew that the configuration does not name.
//! - At most [`AT_ONCE`] checks are under way, two of one VM; others wait for their turn, and are
//!   not made when it comes too late. Restarts do not wait for checks.
//! - What was stopped since the server asked is not started.

mod arp;
mod console;
mod guest;
mod icmp;
mod options;
mod script;
mod turns;
mod unit;

pub use options::{Config, Options};

use crate::parts::Parts;
use crate::{Error, identity};
use api::client::{self, Client, segment};
use api::node::{Done, NodeAsks, NodeWork, Outcome, Task, Work};
use api::reach;
use bytes::Bytes;
use host::Root;
use host::users::Accounts;
use hyper::{Method, StatusCode};
use model::vm::{Layer, may_be_microvm};
use model::with_causes;
use script::Account;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
#[cfg(doc)]
use turns::AT_ONCE;
use turns::Turns;

const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// An answer without tasks that came sooner was no waiting.
const SOON: Duration = Duration::from_secs(1);
/// Bytes of an answer.
const MAX_ANSWER: usize = 1 << 20;
const OUTCOMES: usize = 256;

/// What came of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    outcome: Outcome,
    said: Option<String>,
    /// What of the VM is in the way, where that was found out.
    layer: Option<Layer>,
}

impl Answer {
    fn passed() -> Self {
        Self { outcome: Outcome::Passed, said: None, layer: None }
    }

    fn failed(said: String) -> Self {
        Self { outcome: Outcome::Failed, said: Some(said), layer: None }
    }
}

fn unable(why: String) -> Answer {
    Answer { outcome: Outcome::Unable, said: Some(why), layer: None }
}

/// Works until told to stop.
///
/// # Errors
/// When the node has no usable name; and when a part of the work broke off.
pub async fn serve(config: Config, stop: CancellationToken) -> Result<(), Error> {
    let host = identity::name_of(config.host.as_deref())?;
    let path = format!("/api/v1/hosts/{}/vm-work", segment(host.as_str()));
    let client = || {
        let client = Client::new(&config.server, config.token.clone())?;
        Ok::<_, client::Error>(client.with_max_answer(MAX_ANSWER))
    };
    let (outcomes, done) = mpsc::channel(OUTCOMES);
    tracing::info!(%host, server = config.server, restart = ?config.restart, "at work for the VMs of this node");
    crate::notify(sd_notify::NotifyState::Ready);
    // Both end with this.
    let mut parts = Parts::default();
    parts.start_essential("telling outcomes", tell(client()?, path.clone(), done));
    let asking = ask(client()?, path, Arc::new(config.clone()), outcomes);
    parts.start_essential("asking for work", asking);
    let result = crate::keep_watchdog(&stop, &mut parts).await;
    crate::notify(sd_notify::NotifyState::Stopping);
    result
}

/// Asks for work, and begins it.
async fn ask(mut client: Client, path: String, config: Arc<Config>, outcomes: mpsc::Sender<Done>) {
    let turns = Arc::new(Turns::new());
    let mut tasks = JoinSet::new();
    let mut backoff = BACKOFF.0;
    let mut troubled = false;
    // Servers that do not know the word refuse it.
    let mut says_what_it_can = true;
    loop {
        while tasks.try_join_next().is_some() {}
        let begin = Instant::now();
        match send(&mut client, &path, &asks(says_what_it_can)).await {
            Ok((work, unknown)) => {
                if troubled {
                    tracing::info!("the server answers again");
                }
                (troubled, backoff) = (false, BACKOFF.0);
                let is_idle = work.tasks.is_empty() && unknown.is_empty();
                for id in unknown {
                    drop(outcomes.send(not_known(id)).await);
                }
                for task in work.tasks {
                    let (config, outcomes) = (Arc::clone(&config), outcomes.clone());
                    let turns = Arc::clone(&turns);
                    tasks.spawn(async move {
                        let Answer { outcome, said, layer } = match turns.take(&task).await {
                            Some(_turn) => carry_out(&task, &config).await,
                            None => unable("its turn on its node came too late".to_owned()),
                        };
                        tracing::debug!(?task, ?outcome, said, "done");
                        // Nobody to tell: the program ends.
                        drop(outcomes.send(Done { id: task.id, outcome, said, layer }).await);
                    });
                }
                if is_idle && begin.elapsed() < SOON {
                    tokio::time::sleep(SOON).await;
                }
            }
            Err(error) if says_what_it_can && error.status() == Some(StatusCode::BAD_REQUEST) => {
                says_what_it_can = false;
            }
            Err(error) => {
                // It may be another server from now on.
                says_what_it_can = true;
                if !troubled {
                    tracing::warn!(error = with_causes(&error), "the server gives no work");
                }
                troubled = true;
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF.1);
            }
        }
    }
}

fn asks(says_what_it_can: bool) -> NodeAsks {
    let can = if says_what_it_can { Work::KINDS.map(str::to_owned).into() } else { Vec::new() };
    NodeAsks { wait: true, can, done: Vec::new() }
}

/// What is told of a task that a newer server gave.
fn not_known(id: u64) -> Done {
    let why = "twin-node there does not know such work; upgrade it".to_owned();
    tracing::warn!(id, "the server gives work that this version does not know");
    let Answer { outcome, said, layer } = unable(why);
    Done { id, outcome, said, layer }
}

/// Tells what came of tasks. What can't be told is lost: the server asks again.
async fn tell(mut client: Client, path: String, mut outcomes: mpsc::Receiver<Done>) {
    let mut done = Vec::new();
    while outcomes.recv_many(&mut done, OUTCOMES).await > 0 {
        let told = NodeAsks { done: std::mem::take(&mut done), ..NodeAsks::default() };
        if let Err(error) = send(&mut client, &path, &told).await {
            tracing::warn!(error = with_causes(&error), "outcomes could not be told");
        }
    }
}

/// The work that is given, and the ids of tasks that are not known here.
async fn send(
    client: &mut Client,
    path: &str,
    asks: &NodeAsks,
) -> Result<(NodeWork, Vec<u64>), client::Error> {
    let body = serde_json::to_vec(asks).expect("plain data always encodes");
    let answer = client.send(Method::POST, path, "application/json", Bytes::from(body)).await?;
    NodeWork::read(&answer).map_err(|_form| client::Error::Answer {
        server: client.authority().to_owned(),
        status: StatusCode::OK,
    })
}

/// Does one task, if it may be done.
async fn carry_out(task: &Task, config: &Config) -> Answer {
    let limit = Duration::from_secs(task.timeout_seconds.clamp(1, 60).into());
    match &task.work {
        Work::Icmp { address } => icmp::look(*address, task.id, limit).await,
        Work::Arp { address } => arp::look(*address, limit).await,
        Work::Tcp { address } => reached(reach::look(*address, None, limit).await),
        Work::Http { address, path, status } => {
            reached(reach::look(*address, Some((path, *status)), limit).await)
        }
        _ if !is_unit(&task.unit) => {
            unable("the server names a unit that is no microVM's of this node".to_owned())
        }
        Work::Guest { port } => guest::look(&task.unit, *port, task.id, limit).await,
        Work::Script { name } => {
            let arguments = [task.name.as_str(), task.unit.as_str()];
            match account(&config.run_as) {
                Ok(account) => {
                    script::run(&config.scripts, name.as_str(), arguments, account, limit).await
                }
                Err(why) => unable(why),
            }
        }
        Work::Console { text, absent } => console::look(&task.unit, text, *absent, limit).await,
        Work::Restart if config.restart.allows(&task.name) => {
            unit::restart(&task.unit, limit).await
        }
        Work::Restart => unable(format!(
            "twin-node may not start {} anew; name it under restart: in node.yaml",
            task.name
        )),
    }
}

/// What a look at an address comes to: what this node could not do is no fault of the VM.
fn reached(found: Result<(), reach::Failed>) -> Answer {
    match found {
        Ok(()) => Answer::passed(),
        Err((Layer::Node, why)) => unable(why),
        Err((layer, said)) => Answer { layer: Some(layer), ..Answer::failed(said) },
    }
}

/// Whether it is a unit of the system's manager that may run a microVM, plainly written.
fn is_unit(unit: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    may_be_microvm(unit)
        && unit.ends_with(".service")
        && unit.len() <= 256
        && unit.bytes().all(legal)
}

/// Who runs scripts.
fn account(name: &str) -> Result<Account, String> {
    let accounts = Accounts::read(&Root::live()).map_err(|error| with_causes(&error))?;
    let user = accounts.users.iter().find(|user| user.name == name);
    let user = user.ok_or_else(|| format!("there is no user {name} to run scripts as"))?;
    match (user.uid, user.gid) {
        (Some(user), Some(group)) if user > 0 && group > 0 => Ok(Account { user, group }),
        _ => Err(format!("scripts do not run as {name}, who has root's rights")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_that_may_be_touched() {
        for good in ["microvm@web.service", "microvm@a\\x2db.service"] {
            assert!(is_unit(good), "{good}");
        }
        let long = format!("microvm@{}.service", "a".repeat(256));
        for bad in [
            "sshd.service",
            "microvm@web.socket",
            "microvm@*.service",
            "microvm@a b.service",
            "microvm@web.service\n",
            "--help",
            "alice/microvm@web.service",
            &long,
        ] {
            assert!(!is_unit(bad), "{bad}");
        }
    }
}
