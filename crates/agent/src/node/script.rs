//! Runs a check script, shut in: as a user without rights, in process and mount namespaces of its
//! own that end with it, with limits of time, memory, processes, files and output.
//!
//! # Invariants
//! - Only a file of the folder runs that nobody but its owner, root or whoever runs this, can
//!   change. Nothing that the server says is part of a path, but a checked name.
//! - When the time is over, or this program ends, so does everything that the script started.

use super::{Answer, unable};
use api::node::MAX_SAID;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

/// Bytes of what a script says that are read. After that its output is closed.
const OUTPUT: u64 = 4096;
/// Address space, in bytes.
const MEMORY: &str = "--as=536870912";
/// Bytes of a file that it writes.
const FILE: &str = "--fsize=1048576";
/// Of the user, on the whole node.
const PROCESSES: &str = "--nproc=256";

/// A user's and a group's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) user: i64,
    pub(super) group: i64,
}

/// Runs a script, with the VM's name and its unit as arguments.
pub(super) async fn run(
    folder: &Path,
    name: &str,
    arguments: [&str; 2],
    account: Account,
    limit: Duration,
) -> Answer {
    let script = match find(folder, name) {
        Ok(script) => script,
        Err(why) => return unable(why),
    };
    let mut command = command(&script, account, limit);
    command.args(arguments);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return unable(format!("unshare could not be started: {error}")),
    };
    let mut said = Vec::new();
    let work = async {
        if let Some(stdout) = child.stdout.take() {
            stdout.take(OUTPUT).read_to_end(&mut said).await?;
        }
        child.wait().await
    };
    // Dropping the child ends it, and its namespaces with it.
    let Ok(ended) = tokio::time::timeout(limit, work).await else {
        return Answer::failed(format!("it did not end within {} s", limit.as_secs()));
    };
    match ended {
        Ok(status) if status.success() => Answer::passed(),
        Ok(status) => {
            let first = said.split(|&b| b == b'\n').find(|line| !line.trim_ascii().is_empty());
            let said = first.map(plain);
            let said = said.unwrap_or_else(|| format!("it ended with {status}"));
            Answer::failed(said)
        }
        Err(error) => unable(format!("it could not be read: {error}")),
    }
}

/// A line as it can be shown.
fn plain(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line.trim_ascii());
    text.chars().filter(|c| !c.is_control()).take(MAX_SAID).collect()
}

/// The script, if it may run.
fn find(folder: &Path, name: &str) -> Result<PathBuf, String> {
    let path = folder.join(name);
    let shown = path.display();
    let own = rustix::process::geteuid().as_raw();
    for (path, is_script) in [(folder, false), (&path, true)] {
        let shown = path.display();
        let file = fs::symlink_metadata(path).map_err(|error| format!("{shown}: {error}"))?;
        if is_script && (!file.is_file() || file.mode() & 0o111 == 0) {
            return Err(format!("{shown} is no program"));
        }
        if (file.uid() != 0 && file.uid() != own) || file.mode() & 0o022 != 0 {
            return Err(format!("{shown} can be changed by others; run: chmod go-w {shown}"));
        }
    }
    if own != 0 {
        return Err(format!("{shown} does not run: only root can give up all rights"));
    }
    Ok(path)
}

/// The programs that shut it in, each of which becomes the next.
fn command(script: &Path, account: Account, limit: Duration) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--ipc", "--", "setpriv"])
        .args([format!("--reuid={}", account.user), format!("--regid={}", account.group)])
        .args(["--clear-groups", "--no-new-privs", "--inh-caps=-all"])
        // Who changes the user is not ended with unshare any more, unless told.
        .args(["--pdeathsig", "keep", "--", "prlimit"])
        .args([MEMORY, FILE, PROCESSES, "--nofile=256", "--core=0"])
        .arg(format!("--cpu={}", limit.as_secs().max(1)))
        .arg("--")
        .arg(script)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn put(folder: &Path, name: &str, mode: u32, text: &str) {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_may_run() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path();
        put(folder, "good", 0o755, "");
        put(folder, "open", 0o777, "");
        put(folder, "text", 0o644, "");
        std::os::unix::fs::symlink("good", folder.join("link")).unwrap();
        let is_root = rustix::process::geteuid().is_root();
        let check = |name: &str, expected: &str| {
            let found = find(folder, name).map(|path| path.display().to_string());
            let text = found.unwrap_or_else(|why| why);
            assert!(text.contains(expected), "{text}");
        };
        check("good", if is_root { "/good" } else { "only root can give up all rights" });
        check("open", "open can be changed by others");
        check("text", "text is no program");
        check("link", "link is no program");
        check("none", "No such file");
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
        check("good", "can be changed by others");
    }
}
