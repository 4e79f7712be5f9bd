//! cloud-init sets up a machine at its first boot, and keeps some of it up at each. The seed still
//! names the machine that this one was cloned from, and so it is told to leave the rest alone.

use super::{Error, file};
use std::path::Path;

const TOLD: &str = "\
# Who this machine is was decided when it was cloned.
preserve_hostname: true
manage_etc_hosts: false
ssh_deletekeys: false
";

pub(super) fn leave_alone(root: &Path) -> Result<(), Error> {
    let directory = root.join("etc/cloud/cloud.cfg.d");
    if !directory.is_dir() {
        return Ok(());
    }
    Ok(file::ensure(&directory.join("99_safetytwin-identity.cfg"), TOLD.as_bytes(), 0o644)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_where_there_is_one() {
        let root = tempfile::tempdir().unwrap();
        leave_alone(root.path()).unwrap();
        assert_eq!(file::names(root.path()).unwrap(), [""; 0]);
        let directory = root.path().join("etc/cloud/cloud.cfg.d");
        std::fs::create_dir_all(&directory).unwrap();
        leave_alone(root.path()).unwrap();
        let told = std::fs::read_to_string(directory.join("99_safetytwin-identity.cfg")).unwrap();
        assert!(told.contains("\npreserve_hostname: true\n"));
    }
}
