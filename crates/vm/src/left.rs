//! Machines of a directory that no hypervisor has open: who they are, and what they need.

use crate::image::{ImageId, MachineName};
use crate::machine::Error;
use crate::qemu::home::{DEFINITION, LAYERS, entries};
use crate::qemu::layer::image_below;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The machines of a hypervisor's directory, whichever hypervisor's it is, and the images that
/// their disks lie over. None where there is no such directory. Blocks.
///
/// # Errors
/// When the directory can't be read.
pub fn left_in(root: &Path) -> Result<BTreeMap<MachineName, BTreeSet<ImageId>>, Error> {
    let mut found = BTreeMap::new();
    if !root.exists() {
        return Ok(found);
    }
    for name in entries(root)? {
        let dir = root.join(&name);
        if let Ok(name) = name.parse::<MachineName>()
            && is_machine(&dir)
        {
            let disks = [dir.clone(), dir.join(LAYERS)].into_iter().flat_map(|dir| {
                let names = entries(&dir).unwrap_or_default().into_iter();
                names.map(move |name| dir.join(name)).collect::<Vec<_>>()
            });
            found.insert(name, disks.filter_map(|disk| image_below(&disk)).collect());
        }
    }
    Ok(found)
}

/// Whether there is a machine, be it one that can't be read. Somebody may have put it elsewhere,
/// and a link here.
pub(crate) fn is_machine(dir: &Path) -> bool {
    dir.join(DEFINITION).is_file() || fs::symlink_metadata(dir).is_ok_and(|found| found.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::layer;

    #[test]
    fn machines_of_either_hypervisor_are_found_with_their_images() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("twins");
        assert!(left_in(&root).unwrap().is_empty());
        let id = "0a".repeat(32);
        let image = format!("../../../images/{id}/disk.qcow2");
        for disk in ["one/layers/1.qcow2", "two/disk.qcow2"] {
            let disk = root.join(disk);
            fs::create_dir_all(disk.parent().unwrap()).unwrap();
            layer::create(&disk, Path::new("/none"), Path::new(&image), Some(1 << 30)).unwrap();
        }
        fs::create_dir(root.join("three")).unwrap();
        fs::create_dir(root.join(".partial-four")).unwrap();
        std::os::unix::fs::symlink("one", root.join("five")).unwrap();
        fs::write(root.join(".kvm.json"), "{}").unwrap();
        let shown: Vec<(String, usize)> = left_in(&root)
            .unwrap()
            .into_iter()
            .map(|(name, images)| (name.to_string(), images.len()))
            .collect();
        assert_eq!(shown, [("one".into(), 1), ("three".into(), 0), ("two".into(), 1)]);
    }
}
