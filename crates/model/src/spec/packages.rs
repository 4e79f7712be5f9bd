//! Packages by name and version.

use super::{Cause, PackageVersion, Spec};
use crate::Facts;
use crate::entity::{self, Entity};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    pub version: PackageVersion,
}

/// States of dpkg's in which a package is not there any more.
const GONE: [&str; 2] = ["config-files", "not-installed"];

impl Spec {
    pub(super) fn take_packages(&mut self, facts: &Facts) {
        for package in facts.entities::<entity::Package>() {
            let (subject, _) = package.to_item();
            let state = package.state.as_deref().unwrap_or_default();
            if GONE.contains(&state) {
                continue;
            }
            if package.manager != "dpkg" {
                let what = "only packages of dpkg are brought into a twin";
                self.gap(&subject, Cause::System, what, "install it in the twin by hand");
                continue;
            }
            if !state.is_empty() {
                let what = "dpkg has not finished with it on the host";
                self.gap(&subject, Cause::Transient, what, "run on the host: dpkg --configure -a");
                continue;
            }
            match (package.name.parse(), package.version.parse()) {
                (Ok(name), Ok(version)) => {
                    self.packages.insert(name, Package { version });
                }
                (Err(error), _) | (_, Err(error)) => self.unsafe_gap(&subject, &error),
            }
        }
    }
}
