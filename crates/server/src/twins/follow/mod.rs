//! A twin follows its host: what changed there is brought to it, and seen in it.
//!
//! ```text
//! history: a new version ─► controller ─► run: look ─► plan ─┬─► nothing to do ─────────┐
//!  (coalesced, one each)       ▲                             └─► save ─► apply ─► look ─┤
//!                              └── standing: reached, degraded, held ◄──────────────────┘
//! ```
//!
//! `cycle` does it once, `controller` again and again, `pace` says when, `standing` is what is
//! known of it all, and `past` leads to a moment before. Why it is so: ADR 0017.
//!
//! # Invariants
//! - A twin is changed by one run at a time. Versions that come meanwhile are one: the newest.
//! - A version counts as reached only when a look at the guest after it left nothing to do.
//! - A held twin is not changed, whatever its host does, unless somebody asks for just that.

mod controller;
mod cycle;
mod gone;
mod pace;
mod past;
mod standing;
#[cfg(test)]
mod tests;

pub(crate) use controller::{Wakers, run};
pub(super) use gone::Gone;
pub(super) use standing::{Standing, Standings};

use super::Twins;
use super::error::Error;
use crate::clock;
use crate::runs::{self, Cause, Handle, Kind, RunId, Subject};
use api::following::{self, Following, TwinFidelity, TwinPlan, TwinVerified};
use cycle::Comparison;
use model::{Facts, Version};
use standing::Mode;
use std::time::Duration;
use tokio::sync::oneshot;
use vm::image::MachineName;
use vm::machine::{self, State};

/// For what is under way in a twin that is to be held.
const HOLDING: Duration = Duration::from_secs(5);

impl Twins {
    /// What would be done in a twin now.
    ///
    /// # Errors
    /// When there is no such twin, it does not run, or something is being done to it.
    pub async fn planned(&self, name: &MachineName) -> Result<TwinPlan, Error> {
        let seen = self.looked_at(name).await?;
        let parts = (&seen.goal.spec, &seen.plan);
        Ok(following::planned(name.as_str(), seen.goal.version, seen.looked_at, parts))
    }

    /// Looks at a twin, compares it with its host, and writes down how near it is.
    ///
    /// # Errors
    /// As for [`Twins::planned`].
    pub async fn verify(&self, name: &MachineName) -> Result<TwinVerified, Error> {
        let newest = self.newest_run(name);
        let seen = self.looked_at(name).await?;
        let (noted, this, subject) = (seen.noted(), self.clone(), name.clone());
        self.change_standing(name, move |standing| {
            // A run that began since knows better, and writes down more than this.
            if this.newest_run(&subject) == newest {
                noted(standing);
            }
        })
        .await?;
        let following = self.following(name).await?.ok_or(Error::Clone { name: name.clone() })?;
        Ok(TwinVerified {
            twin: name.to_string(),
            version: seen.goal.version.0,
            is_current: seen.plan.is_empty(),
            steps: seen.plan.steps().iter().map(Into::into).collect(),
            following,
        })
    }

    /// What of the host is in its twin, and what is not.
    ///
    /// # Errors
    /// As for [`Twins::planned`].
    pub async fn fidelity(&self, name: &MachineName) -> Result<TwinFidelity, Error> {
        let seen = self.looked_at(name).await?;
        let parts = (&seen.goal.spec, &seen.plan);
        Ok(following::fidelity(name.as_str(), seen.goal.version, seen.looked_at, parts))
    }

    /// Brings a twin to the newest version of its host, once; also one that is held.
    ///
    /// # Errors
    /// As for [`Twins::planned`].
    pub async fn apply(&self, name: &MachineName, cause: Cause) -> Result<RunId, Error> {
        self.can_follow(name).await?;
        self.begin_to_bring(name, None, cause).await.map(|(id, _told)| id)
    }

    /// Begins a run that leads a twin to the newest version of its host. If that comes true, it
    /// tells what it saw then.
    async fn begin_to_bring(
        &self,
        name: &MachineName,
        known: Option<Facts>,
        cause: Cause,
    ) -> Result<(RunId, oneshot::Receiver<Comparison>), Error> {
        let (tell, told) = oneshot::channel();
        let (subject, brought) = (name.clone(), name.clone());
        let work = async move |this: Self, handle: Handle| {
            let seen = this.bring(&subject, known, &handle).await?;
            // Not everybody waits for it.
            let _gone = tell.send(seen);
            Ok(())
        };
        let then = async move |this: Self, end| this.brought(&brought, end).await;
        Ok((self.begin_then((Kind::Apply, name), cause, work, then).await?, told))
    }

    /// Leaves a twin as it is, from now on. What is being carried out in it is finished, and
    /// waited for a little; the answer names the run if it still goes on.
    ///
    /// # Errors
    /// When there is no such twin, or it is a clone.
    pub async fn hold(&self, name: &MachineName) -> Result<Following, Error> {
        let following = self.decide(name, Mode::Held("somebody holds it".to_owned())).await?;
        let Some(run) = following.run else { return Ok(following) };
        let runs = &self.inner.runs;
        let shown = runs.show(run)?;
        if let (Cause::Host { .. }, runs::State::Queued) = (shown.cause, shown.state) {
            // It would find the twin held, and do nothing; it may be over already.
            runs.cancel(run).ok();
        }
        let over = tokio::time::timeout(HOLDING, runs.until_over(run)).await;
        if over.is_err() {
            tracing::info!(twin = %name, %run, "it is held, and a change of it still goes on");
        }
        self.following(name).await?.ok_or(Error::Clone { name: name.clone() })
    }

    /// Lets a twin follow its host, from now on.
    ///
    /// # Errors
    /// As for [`Twins::hold`].
    pub async fn follow(&self, name: &MachineName) -> Result<Following, Error> {
        self.decide(name, Mode::Follows).await
    }

    async fn decide(&self, name: &MachineName, mode: Mode) -> Result<Following, Error> {
        let seen = self.known(name).await?;
        if seen.origin.is_some() {
            return Err(Error::Clone { name: name.clone() });
        }
        self.change_standing(name, move |standing| {
            standing.failure = None;
            standing.mode = mode;
        })
        .await?;
        self.inner.wakers.wake(name.as_str());
        self.following(name).await?.ok_or(Error::Clone { name: name.clone() })
    }

    /// How a twin follows its host; nothing of a clone, and where there is no host.
    pub(super) async fn following(&self, name: &MachineName) -> Result<Option<Following>, Error> {
        let name = name.clone();
        let now = clock::now();
        self.off_thread(move |this| {
            let Some(host) = this.host(&name) else { return Ok(None) };
            let history = &this.inner.history;
            let Some(info) = history.host(&host) else { return Ok(None) };
            let standing = this.inner.standings.get(&name)?;
            let first = match &standing.reached {
                Some(reached) if reached.version < info.head => {
                    history.after(&host, reached.version, 1)?.first().map(|entry| entry.at)
                }
                _ => None,
            };
            let run = this.inner.runs.on(&Subject::twin(&name));
            let is_change =
                |id: &RunId| this.inner.runs.show(*id).is_ok_and(|run| run.kind == Kind::Apply);
            let run = run.filter(is_change);
            Ok(Some(Following { run, ..standing.told(info.head, first, now) }))
        })
        .await
    }

    /// The newest run of a twin, over or not.
    fn newest_run(&self, name: &MachineName) -> Option<RunId> {
        let filter = runs::Filter { subject: Some(Subject::twin(name)), ..runs::Filter::default() };
        self.inner.runs.list(&filter, 1).first().map(|run| run.id)
    }

    /// Every twin that follows or is held, and how. Blocks.
    pub(crate) fn followings(&self) -> Vec<(MachineName, Following)> {
        let now = clock::now();
        let told = |name: MachineName| {
            let info = self.host(&name).and_then(|host| self.inner.history.host(&host))?;
            let standing = self.inner.standings.get(&name).ok()?;
            let first = standing.reached.as_ref().and_then(|reached| {
                let entries = self.inner.history.after(&info.host, reached.version, 1).ok()?;
                entries.first().map(|entry| entry.at)
            });
            Some((name, standing.told(info.head, first, now)))
        };
        self.inner.book.followers().unwrap_or_default().into_iter().filter_map(told).collect()
    }

    /// A twin that can be led to its host: one that runs, and is no clone.
    async fn can_follow(&self, name: &MachineName) -> Result<(), Error> {
        let seen = self.known(name).await?;
        if seen.origin.is_some() {
            return Err(Error::Clone { name: name.clone() });
        }
        match seen.state {
            State::Running => Ok(()),
            _ => {
                let (name, doing) = (name.clone(), "look at it");
                Err(machine::Error::NotRunning { name, doing }.into())
            }
        }
    }

    async fn looked_at(&self, name: &MachineName) -> Result<Comparison, Error> {
        self.can_follow(name).await?;
        if let Some(id) = self.inner.runs.on(&Subject::twin(name)) {
            let (kind, subject) = (self.inner.runs.show(id)?.kind, Subject::twin(name));
            return Err(runs::Error::Busy { id, kind, subject }.into());
        }
        let goal = self.goal(name).await?;
        self.compare(name, goal, None).await
    }

    /// The version of the host that a twin was last seen to be at.
    pub(super) fn reached(&self, name: &MachineName) -> Option<Version> {
        self.inner.standings.get(name).ok()?.reached.map(|reached| reached.version)
    }

    /// Whether a twin is between two versions of its host.
    pub(super) fn is_mixed(&self, name: &MachineName) -> bool {
        self.inner.standings.get(name).is_ok_and(|standing| standing.is_mixed)
    }
}
