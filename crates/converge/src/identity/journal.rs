//! The journal's files. They lie in a directory called after the machine, and name it inside:
//! `journalctl` looks only there, and journald writes to no file that names another machine.

use super::{Error, file, is_live, program};
use model::MachineId;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What is being written.
const CURRENT: &str = "system.journal";
/// Where the file's header has the machine's id.
const ID_AT: u64 = 40;
/// For journald to come back.
const RESTART: Duration = Duration::from_secs(60);

pub(super) async fn rename(root: &Path, id: &MachineId) -> Result<(), Error> {
    let mut written = Vec::new();
    for base in ["run/log/journal", "var/log/journal"] {
        written.extend(called(&root.join(base), id)?.map(|directory| directory.join(CURRENT)));
    }
    let others = |files: &[PathBuf]| files.iter().find(|path| !names(path, id)).cloned();
    if !is_live(root) || others(&written).is_none() {
        return Ok(());
    }
    // It hands its connections to systemd and gets them back: no line is lost.
    let restart = ["restart", "systemd-journald.service"].map(OsStr::new);
    program::run("systemctl", &restart, RESTART).await?;
    match others(&written) {
        None => Ok(()),
        Some(path) => Err(Error::Unchanged(path.display().to_string())),
    }
}

/// The journal's directory below `base`, called after this machine from now on.
fn called(base: &Path, id: &MachineId) -> Result<Option<PathBuf>, Error> {
    let new = base.join(id.as_str());
    let is_current = |directory: &Path| directory.join(CURRENT).is_file();
    if is_current(&new) {
        return Ok(Some(new));
    }
    let directories = file::names(base)?;
    let old = directories
        .iter()
        .filter(|name| name.parse::<MachineId>().is_ok() && is_current(&base.join(name)));
    // Several are other machines' (containers'), and nobody says which: journald begins a new one.
    let [old] = old.collect::<Vec<_>>()[..] else { return Ok(None) };
    let old = base.join(old);
    fs::rename(&old, &new).map_err(file::Error::of("rename", &old))?;
    Ok(Some(new))
}

/// Whether the journal's file is this machine's.
fn names(path: &Path, id: &MachineId) -> bool {
    let mut header = Vec::new();
    let read = fs::File::open(path).and_then(|f| f.take(ID_AT + 16).read_to_end(&mut header));
    let bytes = header.iter().skip(usize::try_from(ID_AT).unwrap_or(0));
    let text: String = bytes.map(|byte| format!("{byte:02x}")).collect();
    read.is_ok() && text == id.as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "00000000000000000000000000000001";
    const NEW: &str = "00000000000000000000000000000002";

    async fn check(before: &[&str], after: &[&str]) {
        let root = tempfile::tempdir().unwrap();
        let base = root.path().join("var/log/journal");
        for path in before {
            let path = base.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        rename(root.path(), &NEW.parse().unwrap()).await.unwrap();
        rename(root.path(), &NEW.parse().unwrap()).await.unwrap();
        assert_eq!(file::names(&base).unwrap(), after);
    }

    #[tokio::test]
    async fn directories() {
        check(&[], &[]).await;
        let old = format!("{OLD}/{CURRENT}");
        let (remote, another) =
            ("remote/system.journal", format!("{}/user-1000.journal", "3".repeat(32)));
        check(&[&old, remote, &another], &[NEW, &"3".repeat(32), "remote"]).await;
        let third = format!("{}/{CURRENT}", "3".repeat(32));
        check(&[&old, &third], &[OLD, &"3".repeat(32)]).await;
        check(&[&old, &format!("{NEW}/{CURRENT}")], &[OLD, NEW]).await;
    }

    #[test]
    fn a_header_names_its_machine() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut header = vec![0; 56];
        header[55] = 2;
        let id = NEW.parse().unwrap();
        for (content, expected) in [(&header[..], true), (&header[..55], false), (&[], false)] {
            fs::write(file.path(), content).unwrap();
            assert_eq!(names(file.path(), &id), expected);
        }
        header[40] = 1;
        fs::write(file.path(), &header).unwrap();
        assert!(!names(file.path(), &id));
    }
}
