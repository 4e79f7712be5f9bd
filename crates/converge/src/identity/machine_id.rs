//! `/etc/machine-id`, and the copy of D-Bus where it is one.
//!
//! Programs that have read it keep the old one until they end. systemd and its journal are told
//! (see [`super::init`] and [`super::journal`]); D-Bus's own daemon has the old one until the next
//! boot, because nothing can restart it under those who use it.

use super::{Error, file, is_live};
use model::MachineId;
use rustix::mount::{UnmountFlags, unmount};
use std::fs;
use std::io;
use std::path::Path;

pub(super) fn set(root: &Path, id: &MachineId) -> Result<(), Error> {
    let path = root.join("etc/machine-id");
    let content = format!("{id}\n");
    let mut made = file::ensure(&path, content.as_bytes(), 0o444);
    // A machine that booted with its disk read-only has a mount in its place, from /run.
    if is_live(root) && made.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::ResourceBusy) {
        unmount(&path, UnmountFlags::DETACH).map_err(Error::kernel("uncover /etc/machine-id"))?;
        made = file::ensure(&path, content.as_bytes(), 0o444);
    }
    made?;
    let copy = root.join("var/lib/dbus/machine-id");
    if fs::symlink_metadata(&copy).is_ok_and(|found| found.is_file()) {
        file::ensure(&copy, content.as_bytes(), 0o444)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_follows_and_a_link_stays() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| root.path().join(path);
        fs::create_dir_all(at("etc")).unwrap();
        fs::create_dir_all(at("var/lib/dbus")).unwrap();
        fs::write(at("var/lib/dbus/machine-id"), "old\n").unwrap();
        let id = "0123456789abcdef0123456789abcdef";
        set(root.path(), &id.parse().unwrap()).unwrap();
        for path in ["etc/machine-id", "var/lib/dbus/machine-id"] {
            assert_eq!(fs::read_to_string(at(path)).unwrap(), format!("{id}\n"));
        }
        fs::remove_file(at("var/lib/dbus/machine-id")).unwrap();
        std::os::unix::fs::symlink("../../../etc/machine-id", at("var/lib/dbus/machine-id"))
            .unwrap();
        set(root.path(), &"f".repeat(32).parse().unwrap()).unwrap();
        let link = fs::symlink_metadata(at("var/lib/dbus/machine-id")).unwrap();
        assert!(link.is_symlink());
        let seen = fs::read_to_string(at("var/lib/dbus/machine-id")).unwrap();
        assert_eq!(seen.trim(), "f".repeat(32));
    }
}
