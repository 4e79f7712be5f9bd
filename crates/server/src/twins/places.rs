//! Where each hypervisor keeps its machines. What is there of the one that is not asked is told,
//! and neither used nor forgotten. So is a machine that was there and is not: its place may be on
//! a disk that is not mounted.
//!
//! ```text
//! twins/NAME           machines of QEMU
//! twins-libvirt/NAME   machines by way of libvirt
//! ```
//!
//! # Invariants
//! - Whatever a machine is called, its place is nobody else's.

use super::Twins;
use super::error::Error;
use super::settings::By;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use vm::image::{ImageId, MachineName};

const OF_QEMU: &str = "twins";
const OF_LIBVIRT: &str = "twins-libvirt";
/// Within QEMU's, where libvirt's machines were before: a machine may be called so.
const BEFORE: &str = "libvirt";

/// The directory of those machines that are worked with, and that of the others.
#[derive(Debug)]
pub(super) struct Places {
    pub(super) own: PathBuf,
    others: PathBuf,
    by: &'static str,
    others_by: &'static str,
}

impl Places {
    pub(super) fn new(data_dir: &Path, by: &By) -> Self {
        let (qemu, libvirt) = (data_dir.join(OF_QEMU), data_dir.join(OF_LIBVIRT));
        match by {
            By::Qemu => Self { own: qemu, others: libvirt, by: "qemu", others_by: "libvirt" },
            #[cfg(feature = "libvirt")]
            By::Libvirt(_) => Self { own: libvirt, others: qemu, by: "libvirt", others_by: "qemu" },
        }
    }
}

impl Twins {
    /// Machines that the other hypervisor was given, and the images they begin from.
    pub(super) fn elsewhere(&self) -> Result<BTreeMap<MachineName, BTreeSet<ImageId>>, Error> {
        Ok(vm::left_in(&self.inner.places.others)?)
    }

    /// # Errors
    /// When the other hypervisor has a machine of this name.
    pub(super) fn not_elsewhere(&self, name: &MachineName) -> Result<(), Error> {
        match self.elsewhere()?.contains_key(name) {
            true => Err(self.of_the_other(name)),
            false => Ok(()),
        }
    }

    pub(super) fn of_the_other(&self, name: &MachineName) -> Error {
        let Places { by, others_by, .. } = self.inner.places;
        Error::Elsewhere { name: name.clone(), by: others_by, configured: by }
    }

    /// Machines that were made, that nobody removed, and that are not there.
    pub(super) async fn all_lost(&self) -> Result<Vec<MachineName>, Error> {
        // Before the machines: one that is made meanwhile is there as soon as its record says so.
        let records = self.off_thread(|this| this.inner.book.all()).await?;
        let (here, elsewhere) = (self.names().await?, self.elsewhere()?);
        let mut lost = Vec::new();
        for name in records.into_keys() {
            let is_there = here.contains(&name) || elsewhere.contains_key(&name);
            // And after them: one may be removed meanwhile.
            if !is_there && self.is_settled(&name).await? {
                lost.push(name);
            }
        }
        Ok(lost)
    }

    pub(super) async fn is_lost(&self, name: &MachineName) -> Result<bool, Error> {
        let was_made = self.is_settled(name).await? && !self.elsewhere()?.contains_key(name);
        Ok(was_made && !self.is_made(name).await? && self.is_settled(name).await?)
    }

    pub(super) fn lost(&self, name: &MachineName) -> Error {
        Error::Lost { name: name.clone(), place: self.inner.places.own.clone() }
    }

    /// Whether it was made, and is not about to go.
    async fn is_settled(&self, name: &MachineName) -> Result<bool, Error> {
        let name = name.clone();
        let record = self.off_thread(move |this| this.record(&name)).await?;
        Ok(record.is_some_and(|record| !record.half_made && !record.leaving))
    }

    /// The hypervisor that is asked.
    pub(super) fn own_hypervisor(&self) -> &'static str {
        self.inner.places.by
    }

    /// The hypervisor that is not asked.
    pub(super) fn other_hypervisor(&self) -> &'static str {
        self.inner.places.others_by
    }
}

/// Moves libvirt's machines to their place from where they were kept before. A link stays: saved
/// moments name their files by it. Blocks.
pub(crate) fn settle(data_dir: &Path) -> io::Result<()> {
    let (before, place) = (data_dir.join(OF_QEMU).join(BEFORE), data_dir.join(OF_LIBVIRT));
    if !is_of_libvirt(&before)? {
        return Ok(());
    }
    fs::rename(&before, &place)?;
    std::os::unix::fs::symlink(Path::new("..").join(OF_LIBVIRT), &before)?;
    tracing::info!(from = %before.display(), to = %place.display(), "libvirt's twins were moved");
    Ok(())
}

/// Whether the directory holds machines, and is none itself.
fn is_of_libvirt(dir: &Path) -> io::Result<bool> {
    let is_directory = fs::symlink_metadata(dir).is_ok_and(|found| found.is_dir());
    if !is_directory || dir.join("machine.json").is_file() {
        return Ok(false);
    }
    let (mut is_empty, mut has_its_own) = (true, dir.join(".kvm.json").is_file());
    for entry in fs::read_dir(dir)? {
        is_empty = false;
        has_its_own |= entry?.path().join("machine.json").is_file();
    }
    Ok(is_empty || has_its_own)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is at these places afterwards.
    fn check(before: &[&str], expected: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        for path in before {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "{}").unwrap();
        }
        for _again in 0..2 {
            settle(dir.path()).unwrap();
            for path in expected {
                assert!(dir.path().join(path).is_file(), "{before:?}: {path}");
            }
        }
        let moved = dir.path().join(OF_LIBVIRT).exists();
        assert_eq!(moved, expected.iter().any(|path| path.starts_with(OF_LIBVIRT)), "{before:?}");
    }

    #[test]
    fn the_machines_of_libvirt_are_moved_and_one_that_is_called_so_stays() {
        let old = "twins/libvirt/web01/machine.json";
        check(&[old], &["twins-libvirt/web01/machine.json", old]);
        // A host may be called as a file of a machine.
        let odd = "twins/libvirt/machine.json/machine.json";
        check(&[odd], &["twins-libvirt/machine.json/machine.json"]);
        check(&["twins/libvirt/.kvm.json"], &["twins-libvirt/.kvm.json"]);
        let own = ["twins/libvirt/machine.json", "twins/libvirt/layers/1.qcow2"];
        check(&own, &own);
        let half = ["twins/libvirt/layers/1.qcow2"];
        check(&half, &half);
        check(&["twins/web01/machine.json"], &["twins/web01/machine.json"]);
    }
}
