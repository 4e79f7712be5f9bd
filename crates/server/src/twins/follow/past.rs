//! The rest of the way to a moment that no snapshot holds: what the host was then is brought, by
//! a plan, to a machine that is in the snapshot nearest to it.
//!
//! # Invariants
//! - A clone stays itself: what it is called, and what only it has, is not its host's.
//! - Only a host that an agent sees whole is led by; for others it is told what is missing.

use crate::runs::{Failure, Handle, Stream as Says};
use crate::twins::Twins;
use crate::twins::guest::within;
use model::Version;
use std::sync::Arc;
use vm::image::MachineName;

impl Twins {
    /// Leads a machine to what the host of a twin was at a version; the machine is that twin, or
    /// a clone of it. Whether there is an agent to lead by.
    pub(in crate::twins) async fn lead_to(
        &self,
        machine: &MachineName,
        twin: &MachineName,
        version: Version,
        handle: &Handle,
    ) -> Result<bool, Failure> {
        let mut goal = self.goal_at(twin, Some(version)).await?;
        if let Some(why) = goal.unsafe_because {
            handle.line(Says::Server, &format!("what the host did meanwhile is not in it: {why}"));
            return Ok(false);
        }
        if machine != twin {
            let of_clone = Arc::make_mut(&mut goal);
            of_clone.spec.system.hostname = None;
        }
        handle.step(&format!("Leading {machine} to version {version} of its host"));
        let seen = within(handle, self.compare(machine, goal, None)).await??;
        match self.come_true(machine, seen, handle).await? {
            (_, None) => Ok(true),
            (_, Some(trouble)) => Err(Failure::new(trouble.text())),
        }
    }

    /// Whether a twin's host was seen whole at a version.
    pub(in crate::twins) async fn can_be_led_to(
        &self,
        twin: &MachineName,
        version: Version,
    ) -> bool {
        let goal = self.goal_at(twin, Some(version)).await;
        goal.is_ok_and(|goal| goal.unsafe_because.is_none())
    }
}
