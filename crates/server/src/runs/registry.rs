//! Which runs there are, which subjects have one, and which are kept.

use super::log::{self, Found, Unusable};
use super::one::One;
use super::{Error, Kind, Limits, RunId, State, Subject};
use api::run::{Run, RunEvent, RunRecord};
use model::Time;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio_util::sync::CancellationToken;

/// Runs that are over whose newest records stay in memory, for those who read them now.
const WARM: usize = 8;

/// Which runs are asked for; all that fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    pub subject: Option<Subject>,
    pub kind: Option<Kind>,
    pub state: Option<State>,
    /// Only older ones than this.
    pub before: Option<RunId>,
}

/// A run that the last server did not get to the end of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interrupted {
    pub id: RunId,
    pub kind: Kind,
    pub subject: Subject,
}

#[derive(Debug)]
pub(super) struct Registry {
    interrupted: Vec<Interrupted>,
    runs: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// By age.
    all: BTreeMap<RunId, Arc<One>>,
    /// Those that are on or wait.
    on: HashMap<Subject, (RunId, Kind)>,
    warm: VecDeque<Arc<One>>,
}

impl Registry {
    pub(super) fn open(directory: &Path, limits: &Limits, now: Time) -> Result<Self, Error> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(|source| Error::Write { path: directory.to_owned(), source })?;
        let unread = |source| Error::Read { path: directory.to_owned(), source };
        let (mut held, mut interrupted) = (Held::default(), Vec::new());
        for entry in fs::read_dir(directory).map_err(unread)? {
            let name = entry.map_err(unread)?.file_name();
            let id =
                name.to_str().and_then(|name| name.strip_suffix(".log")?.parse::<RunId>().ok());
            let Some(id) = id else { continue };
            let path = directory.join(&name);
            let Some((found, ended)) = recover(&path, id, now)? else { continue };
            if ended {
                let (kind, subject) = (found.header.kind, found.subject.clone());
                interrupted.push(Interrupted { id, kind, subject });
            }
            let one = One::new(found, path, CancellationToken::new(), limits);
            held.all.insert(id, Arc::new(one));
        }
        interrupted.sort_by_key(|run| run.id);
        let registry = Self { interrupted, runs: Mutex::new(held) };
        registry.trim(limits, None);
        Ok(registry)
    }

    pub(super) fn interrupted(&self) -> &[Interrupted] {
        &self.interrupted
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the subject for a run that is about to begin.
    pub(super) fn claim(
        &self,
        id: RunId,
        kind: Kind,
        subject: &Subject,
        most: usize,
    ) -> Result<(), Error> {
        let mut held = self.held();
        if let Some(&(id, kind)) = held.on.get(subject) {
            return Err(Error::Busy { id, kind, subject: subject.clone() });
        }
        if held.on.len() >= most {
            return Err(Error::Full(most));
        }
        held.on.insert(subject.clone(), (id, kind));
        Ok(())
    }

    /// The run that is on for a subject.
    pub(super) fn on(&self, subject: &Subject) -> Option<RunId> {
        self.held().on.get(subject).map(|(id, _)| *id)
    }

    pub(super) fn release(&self, subject: &Subject) {
        self.held().on.remove(subject);
    }

    pub(super) fn add(&self, one: &Arc<One>) {
        self.held().all.insert(one.id, Arc::clone(one));
    }

    /// A run is over: its subject is free, and an older one may have to go.
    pub(super) fn settled(&self, one: &Arc<One>, limits: &Limits) {
        let mut held = self.held();
        held.on.remove(&one.subject);
        held.warm.push_back(Arc::clone(one));
        if held.warm.len() > WARM
            && let Some(cold) = held.warm.pop_front()
        {
            cold.tail().clear();
        }
        drop(held);
        self.trim(limits, None);
    }

    pub(super) fn expire(&self, limits: &Limits, now: Time) {
        self.trim(limits, Some(now));
    }

    /// Lets go of what is more than is kept, or older. Ages count where a time is given.
    fn trim(&self, limits: &Limits, now: Option<Time>) {
        let mut kept = 0;
        let old = |ended: Time| now.is_some_and(|now| now.since(ended) > limits.keep_for);
        let mut gone = Vec::new();
        let mut held = self.held();
        for (id, one) in held.all.iter().rev() {
            let Some(ended) = one.ended_at() else { continue };
            kept += 1;
            if kept > limits.keep || old(ended) {
                gone.push(*id);
            }
        }
        let gone: Vec<Arc<One>> = gone.iter().filter_map(|id| held.all.remove(id)).collect();
        drop(held);
        for one in gone {
            if let Err(error) = fs::remove_file(&one.path) {
                tracing::warn!(path = %one.path.display(), %error, "could not remove an old run's log");
            }
        }
    }

    pub(super) fn get(&self, id: RunId) -> Result<Arc<One>, Error> {
        self.held().all.get(&id).cloned().ok_or(Error::Unknown(id))
    }

    pub(super) fn list(&self, filter: &Filter, limit: usize) -> Vec<Run> {
        let held = self.held();
        let all = match filter.before {
            Some(before) => held.all.range(..before),
            None => held.all.range::<RunId, _>(..),
        };
        let fits = |one: &&Arc<One>| {
            filter.kind.is_none_or(|kind| kind == one.kind)
                && filter.subject.as_ref().is_none_or(|subject| *subject == one.subject)
        };
        let runs = all.rev().map(|(_, one)| one).filter(fits).map(|one| one.show());
        runs.filter(|run| filter.state.is_none_or(|state| state == run.state)).take(limit).collect()
    }
}

/// Reads a log, and gives it an end if it has none; `true` then. Nothing where there is no run.
fn recover(path: &Path, id: RunId, now: Time) -> Result<Option<(Found, bool)>, Error> {
    let unread = |source| Error::Read { path: path.to_owned(), source };
    let unwritten = |source| Error::Write { path: path.to_owned(), source };
    let inspected = File::open(path).map_err(unread).map(|mut file| log::inspect(&mut file))?;
    let mut found = match inspected {
        Ok(found) if found.header.id == id => found,
        Ok(_) => {
            tracing::warn!(path = %path.display(), "a log of another run; it is left alone");
            return Ok(None);
        }
        Err(Unusable::Unbegun) => {
            fs::remove_file(path).map_err(unwritten)?;
            return Ok(None);
        }
        Err(Unusable::Damaged(what)) => {
            tracing::warn!(path = %path.display(), what, "a run's log is damaged; it is left alone");
            return Ok(None);
        }
        Err(Unusable::Read(source)) => return Err(unread(source)),
    };
    if found.end.is_some() {
        return Ok(Some((found, false)));
    }
    let state = State::Interrupted;
    let message = Some("the server ended before it did".to_owned());
    let exit_code = state.exit_code().unwrap_or_default();
    let event = RunEvent::End { state, exit_code, message, started_at: None };
    let end = RunRecord { offset: found.records, at: now, event };
    append(path, found.bytes, &end).map_err(unwritten)?;
    found.records += 1;
    found.end = Some(end);
    Ok(Some((found, true)))
}

/// Cuts off what is not believed, and writes a record behind what is.
fn append(path: &Path, bytes: u64, record: &RunRecord) -> io::Result<()> {
    let mut line = Vec::new();
    log::seal(&serde_json::to_vec(record)?, &mut line);
    let mut file = OpenOptions::new().append(true).open(path)?;
    file.set_len(bytes)?;
    file.write_all(&line)?;
    file.sync_all()
}
