//! What this machine gives a server to run twins with.

use super::Check;
use crate::view::{bytes, duration};
use server::virtualisation::{About, Acceleration, Found, look};
use std::path::Path;
use std::time::Duration;

/// What else twins are made and reached with: the program, its package, what for, and whether only
/// images need it.
const PROGRAMS: [(&str, &str, &str, bool); 5] = [
    ("qemu-img", "qemu-utils", "makes disks", false),
    ("ssh-keygen", "openssh-client", "makes the keys to get in", false),
    ("passt", "passt", "is the network of twins with nat or open", false),
    ("mmdebstrap", "mmdebstrap", "builds images", true),
    ("mke2fs", "e2fsprogs", "builds images", true),
];

/// Below it a twin with a few snapshots has no room.
const ROOM: u64 = 8 << 30;

pub(super) async fn checks(data_dir: &Path) -> Vec<Check> {
    let free = rustix::fs::statvfs(data_dir).ok();
    let free = free.map(|space| space.f_bavail.saturating_mul(space.f_frsize));
    let found = look(data_dir).await;
    let mut checks = findings(&found, free, data_dir);
    if found.hypervisor.is_ok() {
        checks.extend(programs(&found, is_installed));
    }
    checks
}

/// Whether there is such a program where servers look for it.
fn is_installed(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&paths).chain(["/usr/sbin".into(), "/sbin".into()]);
    places.into_iter().any(|place| place.join(program).is_file())
}

fn programs(found: &Found, is_installed: impl Fn(&str) -> bool) -> Option<Check> {
    let wanted = PROGRAMS.iter().filter(|(.., builds)| !builds || found.images.is_empty());
    let missing: Vec<_> = wanted.filter(|(program, ..)| !is_installed(program)).collect();
    if missing.is_empty() {
        return None;
    }
    let says: Vec<_> =
        missing.iter().map(|(program, _, what, _)| format!("{program}, which {what}")).collect();
    let packages: Vec<_> = missing.iter().map(|(_, package, ..)| *package).collect();
    let mend = format!("sudo apt-get install {}", packages.join(" "));
    Some(Check::warning("twins", format!("missing: {}", says.join("; ")), mend))
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
    fn programs_that_are_missing_are_told_with_their_packages() {
        let check = |images: &[&str], there: &[&str], expected: &Expect| {
            let images = images.iter().map(|&name| name.to_owned()).collect();
            let hypervisor = Err(server::twins::Error::NoKeygen);
            let found = Found { hypervisor, tried: None, images };
            let found = programs(&found, |program| there.contains(&program));
            let told = found.map(|check| {
                format!("{:?} {} | {}", check.level, check.says, check.mend.unwrap_or_default())
            });
            expected.assert_eq(&told.unwrap_or_default());
        };
        let most = ["qemu-img", "ssh-keygen"];
        check(&["debian"], &["qemu-img", "ssh-keygen", "passt"], &expect![[""]]);
        check(
            &["debian"],
            &most,
            &expect![
                "Warning missing: passt, which is the network of twins with nat or open | sudo apt-get install passt"
            ],
        );
        check(
            &[],
            &most,
            &expect![
                "Warning missing: passt, which is the network of twins with nat or open; mmdebstrap, which builds images; mke2fs, which builds images | sudo apt-get install passt mmdebstrap e2fsprogs"
            ],
        );
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
