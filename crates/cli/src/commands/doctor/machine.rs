//! What this machine gives an agent and a server to work with.

use super::Check;
use crate::view::{bytes, count};
use model::Time;
use rustix::fs::Access;
use server::tokens::Tokens;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Configuration that the machine's daemons read, where it is there.
const CONFIGURATIONS: [&str; 5] = [
    "etc/safetytwin/twin.yaml",
    "etc/safetytwin/agent.yaml",
    "etc/digital-twin/vm-bridge.yaml",
    "etc/vm-bridge.yaml",
    "etc/digital-twin/sync.yaml",
];

/// Bytes a configuration file may have.
const MAX_CONFIGURATION: u64 = 1024 * 1024;

/// Free space below which a server soon can't write, and below which somebody should know.
const SPACE: (u64, u64) = (256 << 20, 2 << 30);

/// No machine's clock is right that says it is before this program was written: 2026-01-01.
const EARLIEST: Time = Time(1_767_225_600_000_000);

/// Numbers of the capabilities to follow process events, and to see into others' processes.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_PTRACE: u32 = 19;

/// One machine as its files show it.
pub(super) struct Machine {
    pub(super) root: PathBuf,
    pub(super) data_dir: PathBuf,
    /// Where this user's daemons have their configuration.
    pub(super) configuration: PathBuf,
    pub(super) now: Time,
}

impl Machine {
    pub(super) fn checks(&self) -> Vec<Check> {
        let mut checks =
            vec![self.systemd(), self.docker(), self.rights(), self.cgroups(), self.clock()];
        checks.extend(self.data());
        checks.extend(self.configurations().iter().filter_map(|path| Self::configuration(path)));
        checks
    }

    fn systemd(&self) -> Check {
        const NAME: &str = "systemd";
        if !self.root.join("run/systemd/system").is_dir() {
            let says = "does not run here: there are no units to see; all else is seen";
            let mend = "in a container, run the agent on the machine itself instead";
            return Check::warning(NAME, says, mend);
        }
        match UnixStream::connect(self.root.join("run/dbus/system_bus_socket")) {
            Ok(_) => Check::ok(NAME, "runs, and D-Bus can be reached"),
            Err(error) => {
                let says = format!("runs, but D-Bus can't be reached ({error})");
                Check::error(NAME, says, "sudo systemctl start dbus.socket")
            }
        }
    }

    fn docker(&self) -> Check {
        const NAME: &str = "docker";
        let paths = ["run/docker.sock", "var/run/docker.sock"];
        let Some(path) = paths.iter().map(|path| self.root.join(path)).find(|path| path.exists())
        else {
            return Check::ok(NAME, "not here, which is normal");
        };
        match UnixStream::connect(path) {
            Ok(_) => Check::ok(NAME, "can be reached"),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Check::warning(
                NAME,
                "is here, but this user may not ask it; containers will not be seen",
                "sudo twin up, or: sudo usermod -aG docker $USER (and log in again)",
            ),
            Err(error) => {
                let says = format!("is installed but does not answer ({error})");
                Check::warning(NAME, says, "sudo systemctl start docker")
            }
        }
    }

    /// Of whoever runs this; an agent started by the same user has the same.
    fn rights(&self) -> Check {
        const NAME: &str = "rights";
        let status = std::fs::read_to_string(self.root.join("proc/self/status"));
        let root = rustix::process::geteuid().is_root();
        let effective = status.as_deref().ok().and_then(effective_capabilities).unwrap_or(0);
        let has = |capability: u32| effective >> capability & 1 == 1;
        match (root, has(CAP_NET_ADMIN)) {
            (true, true) if !has(CAP_SYS_PTRACE) => Check::warning(
                NAME,
                "root, but without CAP_SYS_PTRACE: files and sockets of other users' processes go unseen",
                "give the container or service the capability CAP_SYS_PTRACE",
            ),
            (true, true) => Check::ok(NAME, "root, with CAP_NET_ADMIN and CAP_SYS_PTRACE"),
            (true, false) => Check::warning(
                NAME,
                "root, but without CAP_NET_ADMIN: processes that end within seconds go unseen",
                "give the container or service the capability CAP_NET_ADMIN",
            ),
            (false, true) => Check::ok(NAME, "an ordinary user with CAP_NET_ADMIN"),
            (false, false) => Check::warning(
                NAME,
                "an ordinary user: short-lived processes, other users' files and sockets go unseen",
                "sudo twin up",
            ),
        }
    }

    fn cgroups(&self) -> Check {
        const NAME: &str = "cgroups";
        let groups = self.root.join("sys/fs/cgroup");
        if groups.join("cgroup.controllers").exists() {
            Check::ok(NAME, "version 2")
        } else if groups.is_dir() && groups.join("memory").exists() {
            let mend = "boot with: systemd.unified_cgroup_hierarchy=1";
            Check::warning(NAME, "version 1: units have load, but no pressure", mend)
        } else {
            let mend = "mount -t cgroup2 none /sys/fs/cgroup";
            Check::warning(NAME, "not mounted: units have no load of their own", mend)
        }
    }

    fn clock(&self) -> Check {
        const NAME: &str = "clock";
        if self.now < EARLIEST {
            let says = format!("says {}, which can't be", self.now);
            return Check::error(NAME, says, "sudo timedatectl set-ntp true");
        }
        let synchronized = self.root.join("run/systemd/timesync/synchronized").exists()
            || ["run/chrony", "run/chrony.sock", "run/ntpd.sock"]
                .iter()
                .any(|path| self.root.join(path).exists());
        if synchronized {
            Check::ok(NAME, "kept right over the network")
        } else {
            Check::ok(NAME, "plausible; nothing known keeps it right over the network")
        }
    }

    fn data(&self) -> Vec<Check> {
        const NAME: &str = "data";
        let dir = &self.data_dir;
        let shown = dir.display();
        if !dir.exists() {
            let says = format!("{shown} is not there; a server makes it unless told another");
            return vec![Check::ok(NAME, says)];
        }
        if rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK).is_err() {
            if rustix::process::geteuid().is_root() {
                let says = format!("{shown} can't be written, not even by root");
                let mend =
                    format!("mount it to be written, or name another with --data-dir: {shown}");
                return vec![Check::error(NAME, says, mend)];
            }
            let says = format!("{shown} can't be written by this user");
            let mend = "sudo twin …, or name another directory with --data-dir";
            return vec![Check::warning(NAME, says, mend)];
        }
        let mut checks = vec![match rustix::fs::statvfs(dir) {
            Ok(space) => self.space(space.f_bavail.saturating_mul(space.f_frsize)),
            Err(error) => Check::warning(NAME, format!("{shown}: {error}"), format!("df {shown}")),
        }];
        checks.extend(self.tokens());
        checks
    }

    fn space(&self, free: u64) -> Check {
        const NAME: &str = "data";
        let shown = self.data_dir.display();
        let says = format!("{shown} can be written, {} free", bytes(free));
        let mend = format!("make room there, or move it with --data-dir; see: df -h {shown}");
        match free {
            free if free < SPACE.0 => Check::error(NAME, says, mend),
            free if free < SPACE.1 => Check::warning(NAME, says, mend),
            _ => Check::ok(NAME, says),
        }
    }

    fn tokens(&self) -> Vec<Check> {
        const NAME: &str = "tokens";
        let tokens = Tokens::open(&self.data_dir)
            .and_then(|tokens| Ok((tokens.list()?.len(), tokens.path().to_owned())));
        match tokens {
            Ok((number, path)) => {
                let mode = std::fs::metadata(&path).map(|file| file.permissions().mode());
                if mode.is_ok_and(|mode| mode & 0o077 != 0) {
                    let shown = path.display();
                    let says = format!("{shown} can be read by others");
                    return vec![Check::error(NAME, says, format!("chmod 600 {shown}"))];
                }
                vec![Check::ok(NAME, count(number, "token"))]
            }
            Err(error) => {
                let cause = std::error::Error::source(&error);
                let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
                let says = format!("{error}{cause}; nobody is let in by a token");
                vec![Check::error(
                    NAME,
                    says,
                    "restore the file, or move it away and make new tokens",
                )]
            }
        }
    }

    /// This user's, and the machine's.
    fn configurations(&self) -> Vec<PathBuf> {
        let own = ["twin.yaml", "agent.yaml"].map(|file| self.configuration.join(file));
        let others = CONFIGURATIONS.iter().map(|path| self.root.join(path));
        own.iter().cloned().chain(others.filter(|path| !own.contains(path))).collect()
    }

    /// Whether the daemon that reads a file takes it.
    fn configuration(path: &Path) -> Option<Check> {
        const NAME: &str = "configuration";
        let shown = path.display();
        let text = match read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                let says = format!("{shown} can't be read by this user");
                return Some(Check::warning(NAME, says, "sudo twin doctor"));
            }
            Err(error) => {
                let says = format!("{shown} can't be read ({error})");
                return Some(Check::error(NAME, says, format!("ls -l {shown}")));
            }
        };
        Some(match understood(path, &text) {
            Ok(()) => Check::ok(NAME, format!("{shown} is valid")),
            // Such as a token that only the daemon's user may read.
            Err(error) if is_denied(&*error) => {
                let says = format!("{shown}: {}", model::with_causes(&*error));
                Check::warning(NAME, says, "sudo twin doctor")
            }
            Err(error) => {
                let error = model::with_causes(&*error);
                let says = if error.contains(&shown.to_string()) {
                    error
                } else {
                    format!("{shown}: {error}")
                };
                Check::error(NAME, says, format!("edit {shown}"))
            }
        })
    }
}

/// Reads and checks a file as its daemon does when it starts.
fn understood(path: &Path, text: &str) -> Result<(), Box<dyn std::error::Error>> {
    let read = Some(path.to_owned());
    match path.file_name().and_then(|name| name.to_str()) {
        Some("agent.yaml") => {
            let file = agent::config::File::parse(text, path)?;
            agent::config::File { path: read, ..file }.check()?;
        }
        Some("sync.yaml") => {
            server::config::File { sync: read, ..Default::default() }.check()?;
        }
        _ => {
            let file = server::config::File::parse(text, path)?;
            server::config::File { path: read, ..file }.check()?;
        }
    }
    Ok(())
}

fn is_denied(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == ErrorKind::PermissionDenied)
}

fn read(path: &Path) -> std::io::Result<String> {
    if std::fs::metadata(path)?.len() > MAX_CONFIGURATION {
        return Err(std::io::Error::other("it is larger than 1 MiB"));
    }
    std::fs::read_to_string(path)
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_machine() {
        let root = tempfile::tempdir().unwrap();
        let at = |path: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        std::fs::create_dir_all(at("run/systemd/system")).unwrap();
        let _bus = UnixListener::bind(at("run/dbus/system_bus_socket")).unwrap();
        drop(UnixListener::bind(at("run/docker.sock")).unwrap());
        std::fs::write(at("sys/fs/cgroup/cgroup.controllers"), "cpu").unwrap();
        std::fs::write(at("etc/safetytwin/twin.yaml"), "listen: [':8470']\n").unwrap();
        std::fs::write(at("etc/safetytwin/agent.yaml"), "a: [1\n").unwrap();
        std::fs::write(at("etc/vm-bridge.yaml"), "- 1\n").unwrap();
        std::fs::write(at("etc/digital-twin/vm-bridge.yaml"), "max_snapshots: 1\n").unwrap();
        std::fs::write(at("home/twin.yaml"), "").unwrap();
        std::fs::write(at("home/agent.yaml"), "intervall: 5\n").unwrap();
        let data_dir = root.path().join("data");
        std::fs::create_dir(&data_dir).unwrap();
        std::fs::write(data_dir.join("tokens.json"), "[]").unwrap();
        let configuration = root.path().join("home");
        let machine = Machine { root: root.path().into(), data_dir, configuration, now: Time(0) };
        let skipped = ["rights", "data"];
        let shown: Vec<String> = machine
            .checks()
            .into_iter()
            .filter(|check| !skipped.contains(&check.name))
            .map(|check| {
                format!(
                    "{:?} {}: {} | {}\n",
                    check.level,
                    check.name,
                    check.says,
                    check.mend.unwrap_or_default()
                )
            })
            .collect();
        expect![[r#"
            Ok systemd: runs, and D-Bus can be reached | 
            Warning docker: is installed but does not answer (Connection refused (os error 111)) | sudo systemctl start docker
            Ok cgroups: version 2 | 
            Error clock: says 1970-01-01T00:00:00.000Z, which can't be | sudo timedatectl set-ntp true
            Error tokens: ROOT/data/tokens.json can be read by others | chmod 600 ROOT/data/tokens.json
            Ok configuration: ROOT/home/twin.yaml is valid | 
            Error configuration: ROOT/home/agent.yaml: line 1, "intervall: 5": "intervall" is no key; did you mean "interval"? | edit ROOT/home/agent.yaml
            Ok configuration: ROOT/etc/safetytwin/twin.yaml is valid | 
            Error configuration: ROOT/etc/safetytwin/agent.yaml: line 1, "a: [1": "a" is no key; known are interval, bridge_url, server, log_file, state_dir, include_proc, include_processes, include_net, include_network, verbose, host, token_file, legible, track, docker_socket, hand_out_images, systemd_bus, spool_limit_mb, metrics, metrics_token_file | edit ROOT/etc/safetytwin/agent.yaml
            Error configuration: max_snapshots: at least 2: base_state and the current one always stay (from ROOT/etc/digital-twin/vm-bridge.yaml or the flags) | edit ROOT/etc/digital-twin/vm-bridge.yaml
            Error configuration: ROOT/etc/vm-bridge.yaml: line 1, "- 1": expected mapping start | edit ROOT/etc/vm-bridge.yaml
        "#]].assert_eq(&shown.concat().replace(&root.path().display().to_string(), "ROOT"));
    }

    #[test]
    fn capabilities() {
        assert_eq!(
            effective_capabilities("Name:\tx\nCapEff:\t00000000a80425fb\n"),
            Some(0xa804_25fb)
        );
        assert_eq!(effective_capabilities("Name:\tx\n"), None);
    }

    #[test]
    fn space() {
        let machine = Machine {
            root: "/".into(),
            data_dir: "/d".into(),
            configuration: "/c".into(),
            now: EARLIEST,
        };
        let level = |free| machine.space(free).level;
        assert_eq!(
            [level(0), level(1 << 30), level(1 << 40)],
            [super::super::Level::Error, super::super::Level::Warning, super::super::Level::Ok]
        );
    }
}
