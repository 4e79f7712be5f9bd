//! A twin as a machine: given power, stopped, removed.

use super::Twins;
use super::create::Plan;
use super::error::Error;
use super::record::Record;
use crate::runs::{self, Cause, Failure, Handle, Kind, RunId};
use api::twin::NewTwin;
use std::time::Duration;
use vm::image::MachineName;
use vm::machine;

/// For starting a machine: its image is read once to see that it is whole, and KVM is tried.
const START: Duration = Duration::from_secs(600);
/// For a guest to power off; the hypervisor says why it did not before that is over.
const STOP: Duration = Duration::from_secs(240);

impl Twins {
    /// Gives a twin power, and makes it first if there is none. One that runs is left alone.
    ///
    /// # Errors
    /// When it can't be made, or something is asked of one that is there.
    pub async fn start(
        &self,
        name: &MachineName,
        wanted: NewTwin,
        cause: Cause,
    ) -> Result<RunId, Error> {
        let plan = match self.seen(name).await? {
            None => Some(self.plan(name, wanted, cause.clone()).await?),
            Some(_) if wanted == NewTwin::default() => None,
            Some(_) => return Err(Error::Made { name: name.clone() }),
        };
        let subject = name.clone();
        let work =
            async move |this: Self, handle: Handle| this.power_on(&subject, plan, &handle).await;
        self.begin((Kind::VmStart, name), cause, work).await
    }

    /// # Errors
    /// When there is no such twin.
    pub async fn stop(
        &self,
        name: &MachineName,
        force: bool,
        cause: Cause,
    ) -> Result<RunId, Error> {
        self.known(name).await?;
        let subject = name.clone();
        let work =
            async move |this: Self, handle: Handle| this.power_off(&subject, force, &handle).await;
        self.begin((Kind::VmStop, name), cause, work).await
    }

    /// # Errors
    /// When there is no such twin.
    pub async fn restart(
        &self,
        name: &MachineName,
        force: bool,
        cause: Cause,
    ) -> Result<RunId, Error> {
        self.known(name).await?;
        let subject = name.clone();
        let work = async move |this: Self, handle: Handle| {
            this.power_off(&subject, force, &handle).await?;
            this.power_on(&subject, None, &handle).await
        };
        self.begin((Kind::VmRestart, name), cause, work).await
    }

    /// Removes a twin with its disk and all its snapshots, also one that can't be read, and lets go
    /// of one whose machine is not there.
    ///
    /// # Errors
    /// When there is none, or something was cloned from it.
    pub async fn delete(&self, name: &MachineName, cause: Cause) -> Result<RunId, Error> {
        if !self.is_made(name).await? && !self.is_lost(name).await? {
            return Err(self.missing(name).await);
        }
        let clones = self.clones_of(name).await?;
        if !clones.is_empty() {
            let (name, clones) = (name.clone(), clones.join(", "));
            return Err(machine::Error::Cloned { name, clones }.into());
        }
        let subject = name.clone();
        let work = async move |this: Self, handle: Handle| {
            handle.step(&format!("Removing {subject}"));
            match this.is_made(&subject).await? {
                true => this.remove(&subject).await,
                false => Ok(this.forget_record(&subject).await?),
            }
        };
        self.begin((Kind::VmDelete, name), cause, work).await
    }

    async fn power_on(
        &self,
        name: &MachineName,
        plan: Option<Plan>,
        handle: &Handle,
    ) -> Result<(), Failure> {
        if let Some(plan) = plan {
            self.make(name, plan, handle).await?;
        }
        self.hypervisor().await?.start(name, &handle.job(START)).await?;
        runs::aside(self.await_boot(name, handle)).await?;
        handle.step(&format!("{name} runs"));
        Ok(())
    }

    async fn power_off(
        &self,
        name: &MachineName,
        force: bool,
        handle: &Handle,
    ) -> Result<(), Failure> {
        let hypervisor = self.hypervisor().await?;
        if force {
            handle.step(&format!("Taking the power from {name}"));
            hypervisor.power_off(name).await?;
        } else {
            if let Some(what) = hypervisor.show(name).await?.state.why_stuck() {
                let text =
                    format!("{name} is stuck: {what}. End it with: twin stop --force {name}");
                return Err(Failure::new(text));
            }
            let job = handle.job(STOP);
            match runs::aside(hypervisor.shut_down(name, &job)).await {
                Err(error @ machine::Error::Silent { .. }) => {
                    let why = model::with_causes(&error);
                    let text = format!("{why}\nTake its power away with: twin stop --force {name}");
                    return Err(Failure::new(text));
                }
                done => done?,
            }
        }
        handle.step(&format!("{name} is stopped"));
        Ok(())
    }

    /// Removes a machine, whatever it does, and what is known of it.
    pub(super) async fn remove(&self, name: &MachineName) -> Result<(), Failure> {
        let hypervisor = self.hypervisor().await?;
        hypervisor.power_off(name).await?;
        let subject = name.clone();
        let before = self.off_thread(move |this| this.mark_leaving(&subject)).await?;
        if let Err(error) = hypervisor.forget(name).await {
            if let Some(record) = before {
                let subject = name.clone();
                self.off_thread(move |this| this.inner.book.put(&subject, &record)).await?;
            }
            return Err(error.into());
        }
        self.forget_record(name).await?;
        Ok(())
    }

    /// Writes down that a machine is being removed. Gives what was known of it before. Blocks.
    fn mark_leaving(&self, name: &MachineName) -> Result<Option<Record>, Error> {
        let before = self.record(name)?;
        if let Some(record) = before.clone() {
            self.inner.book.put(name, &Record { leaving: true, ..record })?;
        }
        Ok(before)
    }

    async fn clones_of(&self, name: &MachineName) -> Result<Vec<String>, Error> {
        let mut clones = Vec::new();
        for other in self.names().await? {
            let seen = match self.seen(&other).await {
                // Whether it began from this one, its disk tells the hypervisor.
                Err(error) if error.is_damage() => continue,
                seen => seen?,
            };
            let origin = seen.and_then(|seen| seen.origin);
            if origin.is_some_and(|(machine, _)| machine == *name) {
                clones.push(other.to_string());
            }
        }
        Ok(clones)
    }
}
