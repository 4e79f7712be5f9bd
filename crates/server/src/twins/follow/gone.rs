//! What does not come true in a twin, and is no fault: versions of packages that no repository has
//! which it reaches, as distributions drop old ones, and units that do not start on such a machine.
//! They are gaps of its plans, and are tried again after a while.

use crate::lacks::{Again, Lacks};
use crate::twins::Twins;
use crate::twins::channel::CarriedOut;
use model::plan::{Action, Outcome, Own, Plan, apt, conditions};
use model::spec::{PackageName, PackageVersion, UnitName};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::Instant;
use vm::image::MachineName;

/// Repositories change a few times a day at most, and each try has all their lists come.
const AGAIN: Again =
    Again { first: Duration::from_secs(600), longest: Duration::from_secs(6 * 3600) };

/// What can't be there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Version(PackageName, PackageVersion),
    Running(UnitName),
}

/// Those of all twins.
#[derive(Debug)]
pub(in crate::twins) struct Gone(Lacks<(MachineName, What), ()>);

impl Default for Gone {
    fn default() -> Self {
        Self(Lacks::new(AGAIN))
    }
}

impl Gone {
    /// What a twin keeps, with what is known of it here.
    pub(super) fn known_of(&self, name: &MachineName, own: Own) -> Own {
        let (mut gone, mut unmet) = (BTreeSet::new(), BTreeSet::new());
        for ((_, what), ()) in self.0.known(|(twin, _)| twin == name) {
            match what {
                What::Version(package, version) => drop(gone.insert((package, version))),
                What::Running(unit) => drop(unmet.insert(unit)),
            }
        }
        own.without_versions(gone).without_units(unmet)
    }

    /// Learns from a plan that was carried out.
    pub(super) fn learn(&self, name: &MachineName, plan: &Plan, done: &CarriedOut) {
        for (step, outcome) in plan.steps().iter().zip(&done.outcomes) {
            let what = match &step.action {
                Action::PutPackage { name, version } => {
                    What::Version(name.clone(), version.clone())
                }
                Action::Start(unit) | Action::Restart(unit) => What::Running(unit.clone()),
                _ => continue,
            };
            let key = (name.clone(), what);
            match outcome {
                Outcome::Failed(why) if is_no_fault(&step.action, why) => {
                    self.0.note(key, (), Instant::now());
                }
                outcome if outcome.is_success() => self.0.forget(&key),
                _ => {}
            }
        }
    }

    /// Whether some of them are worth another try from now on.
    pub(super) fn pardon(&self, name: &MachineName) -> bool {
        self.0.pardon(|(twin, _), ()| twin == name, Instant::now())
    }

    /// The twin is gone.
    pub(in crate::twins) fn forget(&self, name: &MachineName) {
        self.0.forget_those(|(twin, _), ()| twin == name);
    }
}

/// Whether a step failed since what it is for can't be there.
pub(super) fn is_no_fault(action: &Action, why: &str) -> bool {
    apt::is_gone(action, why) || conditions::is_unmet(action, why)
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
    fn what_can_not_be_there_is_remembered_until_it_is() {
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
        let known = |twin: &MachineName| {
            let all = gone.0.known(|(one, _)| one == twin).into_iter();
            let text = |((_, what), ())| match what {
                What::Version(package, version) => format!("{package}={version}"),
                What::Running(unit) => unit.to_string(),
            };
            all.map(text).collect::<Vec<_>>()
        };
        let plan = Plan::new(vec![step("a"), step("b"), step("c")], vec![]).unwrap();
        let learn = |outcomes: [Outcome; 3]| {
            gone.learn(&name, &plan, &CarriedOut { outcomes: outcomes.into(), said: [].into() });
            known(&name)
        };
        let why = format!("{}: a=1.0-1", apt::GONE);
        let broken = Outcome::Failed("apt-get: E: no space".to_owned());
        assert_eq!(learn([Outcome::Failed(why), broken, Outcome::Changed]), ["a=1.0-1"]);
        assert!(known(&other).is_empty());
        assert!(!gone.pardon(&name), "it was asked for just now");
        assert_eq!(
            learn([Outcome::Cancelled, Outcome::Cancelled, Outcome::Cancelled]),
            ["a=1.0-1"]
        );
        assert!(learn([Outcome::Changed, Outcome::Changed, Outcome::Changed]).is_empty());
        let why = format!("{}: a=1.0-1", apt::GONE);
        learn([Outcome::Failed(why), Outcome::Changed, Outcome::Changed]);
        gone.forget(&name);
        assert!(known(&name).is_empty());
        let unit: UnitName = "x.service".parse().unwrap();
        let start = Step { action: Action::Start(unit), ..step("x") };
        let plan = Plan::new(vec![start], vec![]).unwrap();
        let learn = |why: &str| {
            let outcomes = [Outcome::Failed(why.to_owned())];
            gone.learn(&name, &plan, &CarriedOut { outcomes: outcomes.into(), said: [].into() });
            known(&name)
        };
        assert!(learn("it was done, and is not so: failed").is_empty());
        assert_eq!(learn(&format!("{}: so", conditions::UNMET)), ["x.service"]);
    }
}
