//! Packages, by apt: those that can change together in one transaction.
//!
//! ```text
//! all ─► again, with what was half done finished and new lists ─► in halves, down to the one that can't be had
//! ```
//!
//! # Invariants
//! - Nothing is removed that no step of the plan removes.

use super::{Ended, Error, Machine, Tell};
use crate::{file, program};
use model::plan::{Action, Event, Plan, apt};
use model::spec::PackageName;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const ANSWER: Duration = Duration::from_secs(60);
const UPDATE: Duration = Duration::from_secs(300);

pub(super) fn is_one(action: &Action) -> bool {
    matches!(action, Action::PutPackage { .. } | Action::RemovePackage(_))
}

/// Changes all of these, and says for each what came of it.
pub(super) async fn change(
    machine: &Machine,
    plan: &Plan,
    steps: Vec<(usize, &Action)>,
    tell: Tell<'_>,
) -> Ended {
    let Some(first) = steps.first().map(|(at, _)| *at) else { return Vec::new() };
    let leaving = plan.leaving_packages().map(PackageName::as_str).collect();
    let change = Change { machine, tell, first, leaving };
    let before = match change.installed().await {
        Ok(installed) => installed,
        Err(error) => return change.all_failed(&steps, &model::with_causes(&error)),
    };
    let (done, open): (Vec<_>, Vec<_>) =
        steps.into_iter().partition(|(_, action)| is_so(&before, action));
    let mut ended: Ended = done.into_iter().map(|(at, _)| (at, Ok(false))).collect();
    if open.is_empty() {
        return ended;
    }
    let policy = Policy::put(&machine.root);
    change.finish().await;
    let failed = change.together(&open).await;
    drop(policy);
    match change.installed().await {
        Ok(after) => ended.extend(open.into_iter().map(|(at, action)| {
            let result = match (is_so(&after, action), failed.get(&at)) {
                (true, _) => Ok(true),
                (false, Some(what)) => Err(Error::Unclear(what.clone())),
                (false, None) => Err(Error::Unchanged(action.to_string())),
            };
            (at, result)
        })),
        Err(error) => ended.extend(change.all_failed(&open, &model::with_causes(&error))),
    }
    ended
}

/// Versions by name, with and without the architecture.
type Installed = BTreeMap<String, String>;

fn is_so(installed: &Installed, action: &Action) -> bool {
    match action {
        Action::PutPackage { name, version } => {
            installed.get(name.as_str()).is_some_and(|there| there == version.as_str())
        }
        Action::RemovePackage(name) => !installed.contains_key(name.as_str()),
        _ => false,
    }
}

struct Change<'c> {
    machine: &'c Machine,
    tell: Tell<'c>,
    /// The step under which what is said is told.
    first: usize,
    /// Those that a step of the plan removes.
    leaving: BTreeSet<&'c str>,
}

impl Change<'_> {
    fn all_failed(&self, steps: &[(usize, &Action)], what: &str) -> Ended {
        steps.iter().map(|(at, _)| (*at, Err(Error::Unclear(what.to_owned())))).collect()
    }

    async fn installed(&self) -> Result<Installed, Error> {
        let root = &self.machine.root;
        if !crate::is_live(root) {
            return Err(Error::Unclear("this machine is not running".to_owned()));
        }
        let format = "--showformat=${Package} ${Architecture} ${Version} ${db:Status-Status}\n";
        let words = [OsStr::new("--show"), OsStr::new(format)];
        // The list is longer than what is kept of a program's answer; so it is told by lines.
        let lines = Mutex::new(Installed::new());
        let take = |line: &str| {
            let mut fields = line.split(' ');
            if let (Some(name), Some(architecture), Some(version), Some("installed")) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            {
                let mut all = lines.lock().unwrap_or_else(PoisonError::into_inner);
                all.insert(format!("{name}:{architecture}"), version.to_owned());
                all.entry(name.to_owned()).or_insert_with(|| version.to_owned());
            }
        };
        program::follow("dpkg-query", &words, ANSWER, &take).await?;
        Ok(lines.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does the rest of what was cut off before.
    async fn finish(&self) {
        let (program, words) = apt::FINISH;
        if let Err(error) = self.follow(program, words.to_vec(), apt::WITHIN).await {
            self.say(&error.to_string());
        }
    }

    /// What failed, and why.
    async fn together(&self, steps: &[(usize, &Action)]) -> BTreeMap<usize, String> {
        let Err(_first) = self.transaction(steps).await else { return BTreeMap::new() };
        // One that was cut off has left its work half done, and apt refuses to go on.
        let mut has_new_lists = false;
        for (program, words) in apt::REPAIR {
            let done = self.follow(program, words.to_vec(), UPDATE).await;
            // The last of them makes the lists.
            has_new_lists = done.is_ok();
            if let Err(error) = done {
                self.say(&error.to_string());
            }
        }
        let gone = if has_new_lists { self.gone(steps).await } else { BTreeMap::new() };
        let there: Vec<_> =
            steps.iter().copied().filter(|(at, _)| !gone.contains_key(at)).collect();
        let mut failed = gone;
        let mut open = vec![there.as_slice()];
        while let Some(part) = open.pop().filter(|part| !part.is_empty()) {
            let Err(error) = self.transaction(part).await else { continue };
            match part {
                [(at, _)] => {
                    failed.insert(*at, model::with_causes(&error));
                }
                _ => {
                    let (one, other) = part.split_at(part.len() / 2);
                    open.extend([other, one]);
                }
            }
        }
        failed
    }

    /// Those whose version no repository has, by the lists there are.
    async fn gone(&self, steps: &[(usize, &Action)]) -> BTreeMap<usize, String> {
        let put = |action: &Action| match action {
            Action::PutPackage { name, .. } => Some(name.to_string()),
            _ => None,
        };
        let names: Vec<String> = steps.iter().filter_map(|(_, action)| put(action)).collect();
        let words = apt::VERSIONS.into_iter().chain(names.iter().map(String::as_str)).collect();
        let lines = match self.lines("apt-cache", words, ANSWER).await {
            Ok(lines) => lines,
            Err(error) => {
                self.say(&error.to_string());
                return BTreeMap::new();
            }
        };
        let versions = apt::versions(lines.iter().map(String::as_str));
        let gone = steps.iter().filter(|(_, action)| !apt::is_among(&versions, action));
        gone.filter_map(|(at, action)| {
            Some((*at, format!("{}: {}", apt::GONE, apt::word(action)?)))
        })
        .collect()
    }

    async fn transaction(&self, steps: &[(usize, &Action)]) -> Result<(), Error> {
        let words: Vec<String> = steps.iter().filter_map(|(_, action)| apt::word(action)).collect();
        self.simulate(&words).await?;
        let all = apt::TRANSACTION.into_iter().chain(words.iter().map(String::as_str));
        self.follow("apt-get", all.collect(), apt::WITHIN).await
    }

    /// Looks what would be removed.
    async fn simulate(&self, words: &[String]) -> Result<(), Error> {
        let all = [apt::SIMULATE].into_iter().chain(apt::TRANSACTION);
        let all: Vec<&str> = all.chain(words.iter().map(String::as_str)).collect();
        let lines = self.lines("apt-get", all, apt::WITHIN).await?;
        let Some(removed) = apt::removed(lines.iter().map(String::as_str)) else {
            return Err(Error::Unclear("apt does not say what it would remove".to_owned()));
        };
        let others: Vec<&str> = removed.difference(&self.leaving).copied().collect();
        if others.is_empty() { Ok(()) } else { Err(Error::Removes(others.join(", "))) }
    }

    async fn follow(
        &self,
        program: &'static str,
        words: Vec<&str>,
        within: Duration,
    ) -> Result<(), Error> {
        self.run(program, words, within, &|text: &str| self.say(text)).await
    }

    /// What a program says.
    async fn lines(
        &self,
        program: &'static str,
        words: Vec<&str>,
        within: Duration,
    ) -> Result<Vec<String>, Error> {
        let lines = Mutex::new(Vec::new());
        let take = |line: &str| {
            lines.lock().unwrap_or_else(PoisonError::into_inner).push(line.to_owned());
        };
        self.run(program, words, within, &take).await?;
        Ok(lines.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    async fn run(
        &self,
        program: &'static str,
        mut words: Vec<&str>,
        within: Duration,
        tell: &(impl Fn(&str) + Sync),
    ) -> Result<(), Error> {
        let relay = apt::through(program, self.machine.relay);
        words.splice(0..0, relay.as_deref());
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        Ok(program::follow(program, &words, within, tell).await?)
    }

    fn say(&self, text: &str) {
        (self.tell)(Event::Said { step: self.first, text: text.to_owned() });
    }
}

/// The policy, as long as this is there.
struct Policy(Option<PathBuf>);

impl Policy {
    /// One that somebody else has written stays.
    fn put(root: &Path) -> Self {
        let path = root.join(apt::POLICY_PATH.trim_start_matches('/'));
        let there = file::read(&path).ok().flatten();
        let is_free = there.is_none_or(|there| there == apt::POLICY.as_bytes());
        let written = is_free && file::put(&path, apt::POLICY.as_bytes(), 0o755, None).is_ok();
        Self(written.then_some(path))
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // What is left of it here is removed by the next one.
            let _left = file::remove(path);
        }
    }
}
