//! What this machine gives a server to run twins with.

use super::Check;
use crate::view::{bytes, duration};
use server::virtualisation::{About, Acceleration, Found, look};
use std::path::Path;
use std::time::Duration;

/// Below it a twin with a few snapshots has no room.
const ROOM: u64 = 8 << 30;

pub(super) async fn checks(data_dir: &Path) -> Vec<Check> {
    let free = rustix::fs::statvfs(data_dir).ok();
    let free = free.map(|space| space.f_bavail.saturating_mul(space.f_frsize));
    findings(&look(data_dir).await, free, data_dir)
}

fn findings(found: &Found, free: Option<u64>, data_dir: &Path) -> Vec<Check> {
    const NAME: &str = "twins";
    let about = match &found.hypervisor {
        Ok(about) => about,
        Err(error) => {
            let says = format!("none can run here: {}", model::with_causes(error));
            let mend = "sudo apt-get install qemu-system-x86 qemu-utils openssh-client \
                        (on Debian 12 with -t bookworm-backports)";
            return vec![Check::warning(NAME, says, mend)];
        }
    };
    let mut checks = vec![acceleration(about, found.tried)];
    checks.push(match found.images.as_slice() {
        [] => Check::warning(
            NAME,
            "there is no image to start from, or this user may not read them",
            "the first start of a twin builds one, from packages; or do it now: twin image build debian",
        ),
        [newest, ..] => {
            let number = crate::view::count(found.images.len(), "image");
            Check::ok(NAME, format!("{number} to start from, the newest is {newest}"))
        }
    });
    if let Some(free) = free.filter(|free| *free < ROOM) {
        let says = format!("{} are free, and snapshots hold memory and disk", bytes(free));
        let mend = format!("make room in {}, or move it with --data-dir", data_dir.display());
        checks.push(Check::warning(NAME, says, mend));
    }
    checks
}

fn acceleration(about: &About, tried: Option<Duration>) -> Check {
    const NAME: &str = "virtualisation";
    let About { hypervisor, version, acceleration, reason } = about;
    let mut reason = reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
    if let Some(age) = tried {
        reason += &format!(" (tried {} ago)", duration(age));
    }
    match acceleration {
        Acceleration::Kvm => Check::ok(NAME, format!("{hypervisor} {version} with KVM{reason}")),
        Acceleration::Tcg => Check::warning(
            NAME,
            format!("{hypervisor} {version} without KVM, several times slower{reason}"),
            "switch on virtualisation in the firmware, or nested virtualisation where this is a \
             virtual machine; twins run without it, too",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(acceleration: Acceleration, images: &[&str], free: u64, expected: &Expect) {
        let slow = acceleration == Acceleration::Tcg;
        let about = About {
            hypervisor: "qemu",
            version: "10.0.2".into(),
            acceleration,
            reason: slow.then(|| "this machine has no /dev/kvm".into()),
        };
        let images = images.iter().map(|&name| name.to_owned()).collect();
        let found = Found {
            hypervisor: Ok(about),
            tried: slow.then_some(Duration::from_secs(7200)),
            images,
        };
        let shown: Vec<String> = findings(&found, Some(free), Path::new("/d"))
            .into_iter()
            .map(|check| {
                let mend = check.mend.unwrap_or_default();
                format!("{:?} {}: {} | {mend}\n", check.level, check.name, check.says)
            })
            .collect();
        expected.assert_eq(&shown.concat());
    }

    #[test]
    fn what_twins_need() {
        check(
            Acceleration::Kvm,
            &["debian", "older"],
            1 << 40,
            &expect![[r#"
            Ok virtualisation: qemu 10.0.2 with KVM | 
            Ok twins: 2 images to start from, the newest is debian | 
        "#]],
        );
        check(
            Acceleration::Tcg,
            &[],
            1 << 30,
            &expect![[r#"
            Warning virtualisation: qemu 10.0.2 without KVM, several times slower: this machine has no /dev/kvm (tried 2 h ago) | switch on virtualisation in the firmware, or nested virtualisation where this is a virtual machine; twins run without it, too
            Warning twins: there is no image to start from, or this user may not read them | the first start of a twin builds one, from packages; or do it now: twin image build debian
            Warning twins: 1.0 GiB are free, and snapshots hold memory and disk | make room in /d, or move it with --data-dir
        "#]],
        );
    }
}
