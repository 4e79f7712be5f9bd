//! Becoming who the server says, and telling how far that is.
//!
//! ```text
//!            ┌──── begin, with an identity ────┐
//!            ▼                                 │
//! unasked ─► pending ─── all was tried ─────► done
//! ```
//!
//! What can't wait is done before the answer. The rest is a task of its own, so that the port goes
//! on answering; a further beginning cuts it off and starts it anew.

use api::guest::{Answer, Fault, Progress, Renew, Renewed, Standing};
use converge::identity::{Settled, at_once, settle};
use host::Root;
use model::Identity;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// For what can't wait. Beyond it a disk hangs: an emulated guest beside many others takes seconds.
const AT_ONCE: Duration = Duration::from_secs(60);

pub(super) struct Renewal {
    root: PathBuf,
    known: watch::Receiver<Known>,
    /// One at most.
    task: JoinSet<()>,
}

/// What is known of the part that takes longer.
#[derive(Debug, Clone)]
struct Known {
    progress: Progress,
    keys: Option<Vec<String>>,
    /// Whether the addresses on the machine are its own.
    has_addresses: bool,
    faults: Vec<Fault>,
}

impl Known {
    fn new(progress: Progress) -> Self {
        let has_addresses = progress != Progress::Pending;
        Self { progress, keys: None, has_addresses, faults: Vec::new() }
    }

    fn add(&mut self, settled: Settled) {
        match settled {
            Settled::HostKeys(keys) => self.keys = Some(keys),
            Settled::Network => self.has_addresses = true,
            Settled::Fault(found) => self.faults.push(fault(&found)),
        }
    }
}

impl Renewal {
    pub(super) fn new(root: &Path) -> Self {
        let (_nobody, known) = watch::channel(Known::new(Progress::Unasked));
        Self { root: root.to_owned(), known, task: JoinSet::new() }
    }

    /// Does what can't wait, and begins with the rest.
    pub(super) async fn begin(&mut self, renew: Renew) -> Answer {
        let Renew { now, entropy, identity } = renew;
        let (root, wanted) = (self.root.clone(), identity.clone());
        let soon = tokio::task::spawn_blocking(move || {
            at_once(&root, now, entropy.bytes(), wanted.as_ref())
        });
        let faults = match tokio::time::timeout(AT_ONCE, soon).await {
            Ok(Ok(faults)) => faults.iter().map(fault).collect(),
            Ok(Err(_panic)) => return Answer::Fault("the renewal broke off".to_owned()),
            Err(_late) => {
                let limit = AT_ONCE.as_secs();
                return Answer::Fault(format!("the renewal hangs for more than {limit} s"));
            }
        };
        if let Some(identity) = identity {
            self.task.shutdown().await;
            let (tell, known) = watch::channel(Known::new(Progress::Pending));
            self.known = known;
            self.task.spawn(go_on(self.root.clone(), identity, tell));
        }
        Answer::Renewed(Renewed { faults })
    }

    pub(super) fn standing(&self) -> Standing {
        let mut known = self.known.borrow().clone();
        if known.progress == Progress::Pending && self.known.has_changed().is_err() {
            let what = "it broke off".to_owned();
            known.faults.push(Fault { part: "all".to_owned(), what });
            known.progress = Progress::Done;
        }
        let shows_addresses = known.has_addresses || known.progress == Progress::Done;
        Standing {
            progress: known.progress,
            hostname: self.first_line(&["proc/sys/kernel/hostname", "etc/hostname"]),
            machine_id: self.first_line(&["etc/machine-id"]),
            host_keys: known.keys,
            addresses: shows_addresses.then(|| self.addresses()).flatten(),
            faults: known.faults,
        }
    }

    /// Of the first of these files that can be read.
    fn first_line(&self, files: &[&str]) -> Option<String> {
        let text = files.iter().find_map(|f| std::fs::read_to_string(self.root.join(f)).ok())?;
        text.lines().next().map(|line| line.trim().to_owned())
    }

    fn addresses(&self) -> Option<BTreeMap<String, Vec<String>>> {
        let network = host::network::read(&Root::at(&self.root)).ok()?;
        Some(network.interfaces.into_iter().map(|i| (i.name, i.addresses)).collect())
    }
}

async fn go_on(root: PathBuf, identity: Identity, tell: watch::Sender<Known>) {
    tracing::info!(hostname = %identity.hostname, "becoming another machine");
    let told = |settled| tell.send_modify(|known| known.add(settled));
    settle(&root, &identity, told).await;
    tell.send_modify(|known| known.progress = Progress::Done);
    let faults = tell.borrow().faults.len();
    tracing::info!(faults, "is the machine it is to be");
}

fn fault(found: &converge::identity::Fault) -> Fault {
    let mut what = found.error.to_string();
    let mut cause = found.error.source();
    while let Some(error) = cause {
        what = format!("{what}: {error}");
        cause = error.source();
    }
    tracing::warn!(part = found.part.as_str(), what, "could not renew");
    Fault { part: found.part.as_str().to_owned(), what }
}
