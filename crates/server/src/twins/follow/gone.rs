//! Versions of packages that no repository has which a twin reaches: distributions drop old ones.
//! They are gaps of its plans, and are asked for again after a while.

use crate::lacks::{Again, Lacks};
use crate::twins::Twins;
use crate::twins::channel::CarriedOut;
use model::plan::{Action, Outcome, Plan, apt};
use model::spec::{PackageName, PackageVersion};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;
use vm::image::MachineName;

/// Repositories change a few times a day at most, and each try has all their lists come.
const AGAIN: Again =
    Again { first: Duration::from_secs(600), longest: Duration::from_secs(6 * 3600) };

/// Those of all twins.
#[derive(Debug)]
pub(in crate::twins) struct Gone(Lacks<(MachineName, PackageName, PackageVersion), ()>);

impl Default for Gone {
    fn default() -> Self {
        Self(Lacks::new(AGAIN))
    }
}

impl Gone {
    /// What is known of a twin.
    pub(super) fn of(&self, name: &MachineName) -> BTreeSet<(PackageName, PackageVersion)> {
        let known = self.0.known(|(twin, _, _)| twin == name).into_iter();
        known.map(|((_, package, version), ())| (package, version)).collect()
    }

    /// Learns from a plan that was carried out.
    pub(super) fn learn(&self, name: &MachineName, plan: &Plan, done: &CarriedOut) {
        for (step, outcome) in plan.steps().iter().zip(&done.outcomes) {
            let Action::PutPackage { name: package, version } = &step.action else { continue };
            let key = (name.clone(), package.clone(), version.clone());
            match outcome {
                Outcome::Failed(why) if apt::is_gone(&step.action, why) => {
                    self.0.note(key, (), Instant::now());
                }
                outcome if outcome.is_success() => self.0.forget(&key),
                _ => {}
            }
        }
    }

    /// Whether some of them are worth another try from now on.
    pub(super) fn pardon(&self, name: &MachineName) -> bool {
        self.0.pardon(|(twin, _, _), ()| twin == name, Instant::now())
    }

    /// The twin is gone.
    pub(in crate::twins) fn forget(&self, name: &MachineName) {
        self.0.forget_those(|(twin, _, _), ()| twin == name);
    }
}

impl Twins {
    /// What did not come to a twin is asked for again from now on, where its time has come; whether
    /// there is any.
    pub(super) fn pardon_what_lacks(&self, name: &MachineName, host: &model::HostId) -> bool {
        let images = self.inner.container_images.pardon(host);
        self.inner.gone.pardon(name) || images
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::plan::Step;
    use model::{Kind, Subject};

    #[test]
    fn a_version_that_no_repository_has_is_remembered_until_it_comes() {
        let (gone, name, other) =
            (Gone::default(), "web01".parse().unwrap(), "web02".parse().unwrap());
        let step = |package: &str| Step {
            subject: Subject::escaped(Kind::PACKAGE, package),
            action: Action::PutPackage {
                name: package.parse().unwrap(),
                version: "1.0-1".parse().unwrap(),
            },
            why: String::new(),
            needs: vec![],
            after: vec![],
        };
        let plan = Plan::new(vec![step("a"), step("b"), step("c")], vec![]).unwrap();
        let learn = |outcomes: [Outcome; 3]| {
            gone.learn(&name, &plan, &CarriedOut { outcomes: outcomes.into(), said: [].into() });
            let known = gone.of(&name).into_iter();
            known.map(|(package, version)| format!("{package}={version}")).collect::<Vec<_>>()
        };
        let why = format!("{}: a=1.0-1", apt::GONE);
        let broken = Outcome::Failed("apt-get: E: no space".to_owned());
        assert_eq!(learn([Outcome::Failed(why), broken, Outcome::Changed]), ["a=1.0-1"]);
        assert!(gone.of(&other).is_empty());
        assert!(!gone.pardon(&name), "it was asked for just now");
        assert_eq!(
            learn([Outcome::Cancelled, Outcome::Cancelled, Outcome::Cancelled]),
            ["a=1.0-1"]
        );
        assert!(learn([Outcome::Changed, Outcome::Changed, Outcome::Changed]).is_empty());
        let why = format!("{}: a=1.0-1", apt::GONE);
        learn([Outcome::Failed(why), Outcome::Changed, Outcome::Changed]);
        gone.forget(&name);
        assert!(gone.of(&name).is_empty());
    }
}
