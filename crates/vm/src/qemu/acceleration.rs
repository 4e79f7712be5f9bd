//! Finds out whether KVM really boots a guest here: a device that opens is no proof of it.

use super::process::TOOL;
use crate::image::DirectBoot;
use crate::job::{Job, Tool};
use crate::machine::{Acceleration, Error};
use rustix::fs::Access;
use std::path::Path;
use std::time::Duration;

const DEVICE: &str = "/dev/kvm";
/// A kernel gets to its end in a second with KVM, and in three without it.
const LIMIT: Duration = Duration::from_secs(8);

/// What machines run with, and why it is not KVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) acceleration: Acceleration,
    pub(crate) reason: Option<String>,
}

impl Found {
    fn slow(reason: impl Into<String>) -> Self {
        Self { acceleration: Acceleration::Tcg, reason: Some(reason.into()) }
    }
}

/// What can be told without booting anything; `None` when only a boot tells.
pub(super) fn look() -> Option<Found> {
    match rustix::fs::access(DEVICE, Access::READ_OK | Access::WRITE_OK) {
        Ok(()) => None,
        Err(rustix::io::Errno::NOENT) => {
            Some(Found::slow("this machine has no /dev/kvm: no virtualisation, or not passed on"))
        }
        Err(_) => Some(Found::slow("/dev/kvm is not this user's to open; join the group kvm")),
    }
}

/// Boots a kernel with nothing to mount, which gives up and restarts; that ends QEMU.
pub(super) async fn boot(direct: &DirectBoot, job: &Job) -> Result<Found, Error> {
    if let Some(found) = look() {
        return Ok(found);
    }
    let tool = Tool::new(TOOL.0, TOOL.1)
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-machine", "pc", "-accel", "kvm", "-cpu", "host", "-m", "256M"])
        .args(["-append", "panic=-1 quiet", "-kernel"])
        .arg(Path::new(&direct.kernel));
    let booted = tokio::time::timeout(LIMIT, job.run(tool)).await;
    Ok(match booted {
        Ok(Ok(())) => Found { acceleration: Acceleration::Kvm, reason: None },
        Ok(Err(crate::job::Error::Failed { last, .. })) => {
            Found::slow(format!("KVM did not start a guest: {last}"))
        }
        Ok(Err(error)) => return Err(error.into()),
        Err(_) => Found::slow(format!(
            "/dev/kvm is there, but a kernel did not boot with it within {} s",
            LIMIT.as_secs()
        )),
    })
}
