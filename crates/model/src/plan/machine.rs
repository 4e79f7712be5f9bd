//! The machine as a whole: its name and time zone, and what a virtual machine has its own of.

use super::draft::Draft;
use super::step::{Action, PutFile};
use crate::entity::{Entity, File, Platform};
use crate::spec::{AccountName, Cause, ENVIRONMENT, Mode, Source, System, distribution};
use crate::{Kind, Subject};

/// Fields that differ between any two machines, or are small beside what is told.
const BESIDE: [&str; 3] = ["options", "state", "flags"];

impl Draft<'_> {
    /// Tells where the twin's machine is another.
    pub(super) fn machine(&mut self) {
        let spec = self.spec;
        for (subject, item) in spec.machine.iter() {
            let there = self.twin.get(subject).map(|item| item.fields());
            let fields = item.fields();
            let differs = there.as_ref().is_none_or(|there| {
                fields
                    .iter()
                    .any(|(name, v)| !BESIDE.contains(&name.as_str()) && there.get(name) != Some(v))
            });
            if !differs {
                continue;
            }
            let (cause, what, remedy) = match subject.kind() {
                Kind::INTERFACE | Kind::ROUTE => {
                    (Cause::Network, "a twin has its own network", "nothing: it is to be so")
                }
                Kind::GPU => (
                    Cause::Hardware,
                    "a twin has no graphics processor",
                    "test what needs it on the host",
                ),
                Kind::FILESYSTEM => (
                    Cause::Data,
                    "a twin has its own disk; what is on others is not followed",
                    "track the files that matter with `track:`",
                ),
                _ => (
                    Cause::Hardware,
                    "a twin has that of its virtual machine",
                    "give it more with `twins:` in the server's configuration",
                ),
            };
            self.gap(subject, cause, what, remedy);
        }
    }

    pub(super) fn system(&mut self) {
        let spec = self.spec;
        let subject = Subject::escaped(Kind::PLATFORM, "host");
        let Some(twin) = self.twin.entity::<Platform>("host") else { return };
        if let Some(name) = spec.system.hostname.as_ref().filter(|n| n.as_str() != twin.hostname) {
            self.add(&subject, Action::SetHostname(name.clone()), "the host is called so");
        }
        if let Some(zone) = &spec.system.time_zone
            && twin.time_zone.as_deref() != Some(zone.as_str())
        {
            let path = "/etc/localtime".parse().expect("it is a plain path");
            let target = format!("/usr/share/zoneinfo/{zone}");
            let target = target.parse().expect("a time zone has no control characters");
            self.add(&subject, Action::PutLink { path, target }, "the host is in this time zone");
        }
        let here = distribution(&twin);
        if spec.system.distribution.is_some() && spec.system.distribution != here {
            let there = spec.system.distribution.as_deref().unwrap_or_default();
            let here = here.as_deref().unwrap_or("another");
            let what = format!("the host is {there}, and the twin {here}");
            let remedy = "give the twin an image of the host's distribution";
            self.gap(&subject, Cause::System, &what, remedy);
        }
    }

    /// Written whenever something else changes, or where it is missing: the moment alone is no
    /// reason to touch a twin.
    pub(super) fn environment(&mut self) {
        let subject = Subject::escaped(File::KIND, ENVIRONMENT);
        if self.spec.at.is_none() || (self.is_empty() && self.twin.get(&subject).is_some()) {
            return;
        }
        let root: AccountName = "root".parse().expect("root is a plain name");
        let file = PutFile {
            path: System::environment_path(),
            source: Source::Made(System::environment(self.spec.at)),
            mode: Mode::PLAIN,
            owner: root.clone(),
            group: root,
        };
        self.add(&subject, Action::PutFile(file), "says that this is a twin, and of which moment");
    }
}
