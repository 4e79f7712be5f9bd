//! Finds out whether KVM really boots a guest here: a device that opens is no proof of it.
//!
//! What came out is remembered in a file of the machines' directory, so that a server that starts
//! again does not try anew. It counts as long as nothing changed that it could hang on: this boot
//! of the machine (and with it the kernel), the device, QEMU. A no counts for a day: a machine
//! that was busy, or is set up at this moment, may answer otherwise tomorrow.

use super::process::TOOL;
use crate::content::write_json;
use crate::image::DirectBoot;
use crate::job::{Job, Tool};
use crate::machine::{Acceleration, Error};
use rustix::fs::Access;
use serde::{Deserialize, Serialize};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEVICE: &str = "/dev/kvm";
/// A kernel gets to its end in a second with KVM, and in three without it.
const LIMIT: Duration = Duration::from_secs(8);
const DAY: Duration = Duration::from_secs(86_400);

/// What machines run with, and why it is not KVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    pub(crate) acceleration: Acceleration,
    pub(crate) reason: Option<String>,
}

impl Found {
    pub(super) fn slow(reason: impl Into<String>) -> Self {
        Self { acceleration: Acceleration::Tcg, reason: Some(reason.into()) }
    }
}

/// What a trial hangs on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Circumstances {
    /// Of the machine: with another kernel it is another.
    boot: String,
    /// Which device node, and which device. A module that is loaded anew makes another node.
    device: (u64, u64),
    qemu: String,
}

impl Circumstances {
    fn of(qemu: &str) -> std::io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let device = fs::metadata(DEVICE)?;
        let device = (device.ino(), device.rdev());
        Ok(Self { boot, device, qemu: qemu.to_owned() })
    }
}

/// When it was is when its file was written.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Trial {
    circumstances: Circumstances,
    found: Found,
}

/// Where the last trial is remembered. Calls block; one that can't be read or written is as none.
#[derive(Debug, Clone)]
pub(crate) struct Trials(PathBuf);

impl Trials {
    /// In a directory of machines.
    pub(crate) fn of(root: &Path) -> Self {
        Self(root.join(".kvm.json"))
    }

    /// What came out with this QEMU, and how long ago.
    pub(super) fn recall(&self, qemu: &str) -> Option<(Found, Duration)> {
        let trial: Trial = serde_json::from_slice(&fs::read(&self.0).ok()?).ok()?;
        // A clock that was put back makes it look as if it were new, which is true enough.
        let age = fs::metadata(&self.0).ok()?.modified().ok()?.elapsed().unwrap_or_default();
        let is_slow = trial.found.acceleration == Acceleration::Tcg;
        let same = trial.circumstances == Circumstances::of(qemu).ok()?;
        (same && !(is_slow && age > DAY)).then_some((trial.found, age))
    }

    fn keep(&self, qemu: &str, found: &Found) {
        let kept = Circumstances::of(qemu).and_then(|circumstances| {
            write_json(&self.0, &Trial { circumstances, found: found.clone() }, 0o644)
        });
        if let Err(error) = kept {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "whether KVM boots a guest is tried again at the next start");
        }
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

/// What was found out before, else by a boot; `None` without a kernel to boot.
pub(super) async fn remembered_or_tried(
    trials: &Trials,
    qemu: &str,
    kernel: impl FnOnce() -> Result<Option<DirectBoot>, Error> + Send + 'static,
    job: &Job,
) -> Result<Option<Found>, Error> {
    let (before, version) = (trials.clone(), qemu.to_owned());
    if let Some((found, _)) = job.block(move || Ok::<_, Error>(before.recall(&version))).await? {
        return Ok(Some(found));
    }
    let Some(direct) = job.block(kernel).await? else { return Ok(None) };
    job.step("Finding out whether KVM boots a guest here");
    let found = boot(&direct, job).await?;
    let (trials, version, kept) = (trials.clone(), qemu.to_owned(), found.clone());
    job.block(move || {
        trials.keep(&version, &kept);
        Ok::<_, Error>(())
    })
    .await?;
    Ok(Some(found))
}

/// Boots a kernel with nothing to mount, which gives up and restarts; that ends QEMU.
pub(super) async fn boot(direct: &DirectBoot, job: &Job) -> Result<Found, Error> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(
        found: Found,
        age: Duration,
        change: impl FnOnce(&mut Circumstances),
    ) -> Option<Found> {
        let dir = tempfile::tempdir().unwrap();
        let trials = Trials::of(dir.path());
        let mut circumstances = Circumstances::of("10.0").ok()?;
        change(&mut circumstances);
        write_json(&trials.0, &Trial { circumstances, found }, 0o644).unwrap();
        let file = fs::File::options().write(true).open(&trials.0).unwrap();
        let written = file.metadata().unwrap().modified().unwrap();
        file.set_modified(written - age).unwrap();
        trials.recall("10.0").map(|(found, _)| found)
    }

    #[test]
    fn a_trial_counts_until_something_changed() {
        if !Path::new(DEVICE).exists() {
            // Then nothing is ever tried.
            assert!(look().is_some());
            return;
        }
        let (slow, hour) = (Found::slow("it hung"), Duration::from_secs(3600));
        let fast = Found { acceleration: Acceleration::Kvm, reason: None };
        assert_eq!(trial(slow.clone(), hour, |_| {}), Some(slow.clone()));
        assert_eq!(trial(slow.clone(), DAY + hour, |_| {}), None);
        assert_eq!(trial(fast.clone(), DAY + hour, |_| {}), Some(fast.clone()));
        assert_eq!(trial(fast.clone(), hour, |was| was.boot.push('x')), None);
        assert_eq!(trial(fast.clone(), hour, |was| was.device.0 += 1), None);
        assert_eq!(trial(fast, hour, |was| was.qemu.push('x')), None);
    }

    #[tokio::test]
    async fn an_image_without_a_kernel_goes_by_the_trial_there_was() {
        let dir = tempfile::tempdir().unwrap();
        let trials = Trials::of(dir.path());
        let job = crate::qemu::fake::job();
        let find = async || remembered_or_tried(&trials, "10.0", || Ok(None), &job).await.unwrap();
        assert_eq!(find().await, None, "nothing says how it is");
        let fast = Found { acceleration: Acceleration::Kvm, reason: None };
        trials.keep("10.0", &fast);
        assert_eq!(find().await, Path::new(DEVICE).exists().then_some(fast));
    }

    #[test]
    fn what_is_kept_is_recalled_and_half_of_it_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let trials = Trials::of(dir.path());
        let slow = Found::slow("it hung");
        trials.keep("10.0", &slow);
        let recalled = trials.recall("10.0").map(|(found, _)| found);
        assert_eq!(recalled, Path::new(DEVICE).exists().then_some(slow));
        fs::write(&trials.0, "{").unwrap();
        assert_eq!(trials.recall("10.0"), None);
    }
}
