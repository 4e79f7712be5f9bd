//! Whether a twin follows its host, how near it is, and what would lead it there.

use crate::run::RunId;
use model::{Time, Version, plan, spec};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

words!(
    /// How near a twin is to its host.
    FollowState, "a state":
    /// Nobody has looked at the twin yet.
    Unknown = "unknown",
    /// All that can be reproduced of the host's newest version was seen in it.
    Current = "current",
    /// The host has changed since.
    Behind = "behind",
    /// Something did not come true in it; that is tried again.
    Degraded = "degraded",
    /// It stays in its moment.
    Held = "held",
);

/// How a twin follows its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Following {
    pub state: FollowState,
    /// Why it is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The version of the host that was last seen to be in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The host's newest.
    pub host_version: u64,
    /// How long the host's first change is past that is not in the twin; 0 where all are. Absent
    /// as long as no version was seen in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag_ms: Option<u64>,
    /// From the host's change until it was seen in the twin, of the last change brought to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub took_ms: Option<u64>,
    /// When the twin was last looked at and compared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub looked_at: Option<Time>,
    /// Thousandths of the host's things that were in the twin then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fidelity_per_mille: Option<u32>,
    /// Steps that were to be done then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps_left: Option<usize>,
    /// Things that can't be reproduced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gaps: Option<usize>,
    /// What did not come true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FollowFailure>,
    /// The run that changes it now, or waits to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub run: Option<RunId>,
}

/// What did not come true in a twin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FollowFailure {
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub at: Time,
    /// The first step that failed; absent where it came to none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// What it said, the end of it.
    pub output: Vec<String>,
    /// How often in a row.
    pub tries: u32,
    /// When it is tried again, unless the host changes before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub retry_at: Option<Time>,
}

/// What would be done in a twin, were a plan carried out now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TwinPlan {
    pub twin: String,
    /// The version of the host that it leads to.
    pub version: u64,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub looked_at: Time,
    /// In an order in which they can be done one after the other.
    pub steps: Vec<PlannedStep>,
    pub gaps: Vec<TwinGap>,
    /// Thousandths of the host's things in the twin, once the steps are done.
    pub fidelity_per_mille: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PlannedStep {
    pub subject: String,
    /// In words: `start nginx.service`.
    pub action: String,
    pub why: String,
    /// Earlier steps, by their place, that must have succeeded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub needs: Vec<usize>,
    /// Earlier steps that must have ended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<usize>,
}

/// What is not reproduced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TwinGap {
    pub subject: String,
    /// `hardware`, `system`, `network`, `data`, `secret`, `unpackaged`, `user_manager`,
    /// `transient`, `name`, `isolated`, `gone`, `own` or `unseen`; `pending` where a step is there
    /// for it.
    pub cause: String,
    pub why: String,
    /// What somebody can do.
    pub remedy: String,
}

/// A twin was looked at and compared with its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TwinVerified {
    pub twin: String,
    /// The version of the host that it was compared with.
    pub version: u64,
    /// Whether all that can be reproduced of it is in the twin.
    pub is_current: bool,
    /// What is not.
    pub steps: Vec<PlannedStep>,
    pub following: Following,
}

/// What of a host is in its twin, and what is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TwinFidelity {
    pub twin: String,
    pub version: u64,
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub looked_at: Time,
    /// Thousandths of the host's things that are in the twin.
    pub per_mille: u32,
    /// By kind.
    pub kinds: BTreeMap<String, Reproduced>,
    /// What is not, in order of subject.
    pub missing: Vec<TwinGap>,
}

/// How many things of a kind a host has, and how many of them its twin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Reproduced {
    pub of: usize,
    pub reproduced: usize,
}

impl From<&plan::Step> for PlannedStep {
    fn from(step: &plan::Step) -> Self {
        Self {
            subject: step.subject.to_string(),
            action: step.action.to_string(),
            why: step.why.clone(),
            needs: step.needs.clone(),
            after: step.after.clone(),
        }
    }
}

impl From<&spec::Gap> for TwinGap {
    fn from(gap: &spec::Gap) -> Self {
        Self {
            subject: gap.subject.to_string(),
            cause: gap.cause.as_str().to_owned(),
            why: gap.what.clone(),
            remedy: gap.remedy.clone(),
        }
    }
}

/// A plan as outsiders read it.
#[must_use]
pub fn planned(
    twin: &str,
    version: Version,
    looked_at: Time,
    (spec, plan): (&spec::Spec, &plan::Plan),
) -> TwinPlan {
    TwinPlan {
        twin: twin.to_owned(),
        version: version.0,
        looked_at,
        steps: plan.steps().iter().map(PlannedStep::from).collect(),
        gaps: plan.gaps().iter().map(TwinGap::from).collect(),
        fidelity_per_mille: plan::Fidelity::after(spec, plan).per_mille(),
    }
}

/// What a plan tells of what is in the twin now: all that it neither changes nor leaves out.
#[must_use]
pub fn fidelity(
    twin: &str,
    version: Version,
    looked_at: Time,
    (spec, plan): (&spec::Spec, &plan::Plan),
) -> TwinFidelity {
    let fidelity = plan::Fidelity::now(spec, plan);
    let kinds = fidelity.0.iter().map(|(kind, seen)| {
        let plan::Reproduced { of, reproduced } = *seen;
        (kind.to_string(), Reproduced { of, reproduced })
    });
    let pending = plan.steps().iter().map(|step| TwinGap {
        subject: step.subject.to_string(),
        cause: "pending".to_owned(),
        why: format!("to be done: {}; {}", step.action, step.why),
        remedy: format!("twin apply {twin}"),
    });
    let mut missing: Vec<TwinGap> = plan.gaps().iter().map(TwinGap::from).chain(pending).collect();
    missing.sort_by(|a, b| (&a.subject, &a.cause).cmp(&(&b.subject, &b.cause)));
    TwinFidelity {
        twin: twin.to_owned(),
        version: version.0,
        looked_at,
        per_mille: fidelity.per_mille(),
        kinds: kinds.collect(),
        missing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::entity::{Package, Unit};
    use model::plan::{Own, plan};
    use model::spec::{Extras, Spec};
    use model::{Facts, Version};

    #[test]
    fn what_is_in_a_twin_is_what_a_plan_leaves_alone() {
        let package = |name: &str| Package {
            name: name.into(),
            version: "1".into(),
            manager: "dpkg".into(),
            ..Package::default()
        };
        let unit = |active: &str| Unit {
            id: "cron.service".into(),
            active_state: active.into(),
            load_state: "loaded".into(),
            ..Unit::default()
        };
        let (mut host, mut twin) = (Facts::default(), Facts::default());
        for name in ["a", "b"] {
            host.put_entity(&package(name));
        }
        twin.put_entity(&package("a"));
        host.put_entity(&unit("active"));
        twin.put_entity(&unit("inactive"));
        let spec = Spec::of(&host, &Extras::default(), None);
        let plan = plan(&spec, &twin, &Own::default().without_packages().without_images());
        let told = fidelity("web01", Version(7), Time(0), (&spec, &plan));
        assert_eq!(told.per_mille, 333);
        let half = Reproduced { of: 2, reproduced: 1 };
        let none = Reproduced { of: 1, reproduced: 0 };
        assert_eq!(told.kinds, [("package".into(), half), ("unit".into(), none)].into());
        let causes: Vec<_> =
            told.missing.iter().map(|gap| format!("{} {}", gap.subject, gap.cause)).collect();
        assert_eq!(causes, ["package:b isolated", "unit:cron.service pending"]);
        let planned = planned("web01", Version(7), Time(0), (&spec, &plan));
        assert_eq!(
            (planned.steps.len(), planned.gaps.len(), planned.fidelity_per_mille),
            (1, 1, 666)
        );
    }
}
