//! The machine's name, its time zone, and the environment that says that it is a twin.

use super::{Cause, FilePath, Spec, TimeZone};
use crate::entity::{Collector, Entity, Platform};
use crate::{Facts, HostName, Subject, Time};

/// What shells in a twin read, so that who is in it knows where.
pub const ENVIRONMENT: &str = "/etc/profile.d/system_profile.sh";

/// What holds of the machine as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct System {
    pub hostname: Option<HostName>,
    pub time_zone: Option<TimeZone>,
    /// Its distribution and version, as `debian 12`.
    pub distribution: Option<String>,
}

impl System {
    /// Where the environment is written down.
    #[must_use]
    pub fn environment_path() -> FilePath {
        ENVIRONMENT.to_owned().try_into().expect("it is a plain path")
    }

    /// The file that says that this is a twin, and of which moment.
    #[must_use]
    pub fn environment(at: Option<Time>) -> String {
        let at = at.map(|at| format!("export DIGITAL_TWIN_TIMESTAMP={at}\n")).unwrap_or_default();
        format!(
            "# Written by SafetyTwin: this machine is the twin of another.\nexport DIGITAL_TWIN=1\n{at}"
        )
    }
}

/// The distribution and its version, in one text.
pub(crate) fn distribution(platform: &Platform) -> Option<String> {
    let name = platform.distribution.as_deref()?;
    Some(match &platform.distribution_version {
        Some(version) => format!("{name} {version}"),
        None => name.to_owned(),
    })
}

impl Spec {
    pub(super) fn take_system(&mut self, facts: &Facts) {
        for collector in facts.entities::<Collector>().filter(|c| c.fault.is_some()) {
            let (subject, _) = collector.to_item();
            let what = "it can't be looked at on the host, and what was seen last may be old";
            self.gap(&subject, Cause::Unseen, what, "look at its fault with: twin show");
        }
        let Some(platform) = facts.entity::<Platform>("host") else { return };
        let subject = Subject::escaped(Platform::KIND, "host");
        self.system.distribution = distribution(&platform);
        match platform.hostname.parse() {
            Ok(name) => self.system.hostname = Some(name),
            Err(_) if platform.hostname.is_empty() => {}
            Err(error) => self.unsafe_gap(&subject, &error),
        }
        self.system.time_zone = platform.time_zone.and_then(|zone| zone.parse().ok());
    }
}
