//! How SSH gets into a machine, for programs that are started in a directory of their own.
//!
//! Nothing of the user's configuration counts. Files are named as seen from that directory, since
//! paths would be words of options, which split at spaces and expand percent signs.

use super::Twins;
use super::error::Error;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use vm::image::{MachineName, UserName};
use vm::machine;

/// What SSH has to be told, in the directory it is started in.
pub(super) const CONFIGURATION: &str = "ssh_config";

/// How a machine is reached.
#[derive(Debug, Clone)]
pub struct Reach {
    /// The name that its keys are pinned under.
    pub name: MachineName,
    pub address: IpAddr,
    pub port: u16,
    pub user: UserName,
    /// The file of the key that lets us in, and that of the keys the machine may show.
    pub login: PathBuf,
    pub known_hosts: PathBuf,
}

impl Reach {
    /// Puts into a directory what SSH reads. Blocks.
    pub(super) fn prepare(&self, directory: &Path) -> Result<(), Error> {
        let known_hosts = fs::read_to_string(&self.known_hosts);
        let known_hosts = known_hosts.map_err(Error::file("read", &self.known_hosts))?;
        for (name, text) in [(CONFIGURATION, self.configuration()), ("known_hosts", known_hosts)] {
            let path = directory.join(name);
            fs::write(&path, text).map_err(Error::file("write", path))?;
        }
        let login = std::path::absolute(&self.login).map_err(Error::file("find", &self.login))?;
        let link = directory.join("login");
        symlink(login, &link).map_err(Error::file("make the link", link))
    }

    fn configuration(&self) -> String {
        format!(
            "Host *\n\
             IdentityFile login\n\
             IdentitiesOnly yes\n\
             UserKnownHostsFile known_hosts\n\
             GlobalKnownHostsFile none\n\
             HostKeyAlias {}\n\
             StrictHostKeyChecking yes\n\
             UpdateHostKeys no\n\
             PasswordAuthentication no\n\
             KbdInteractiveAuthentication no\n\
             ConnectTimeout 20\n\
             ServerAliveInterval 15\n\
             ServerAliveCountMax 4\n",
            self.name
        )
    }
}

impl Twins {
    /// How SSH gets into a twin that runs.
    pub(super) async fn way_of_ssh(&self, name: &MachineName) -> Result<Reach, Error> {
        let seen = self.hypervisor().await?.show(name).await?;
        let subject = name.clone();
        let record = self.off_thread(move |this| this.record(&subject)).await?;
        let record = record.ok_or_else(|| Error::Unknown { name: name.clone() })?;
        let port = seen.ssh_port.ok_or_else(|| machine::Error::NotRunning {
            name: name.clone(),
            doing: "reach its SSH",
        })?;
        Ok(Reach {
            name: name.clone(),
            address: Ipv4Addr::LOCALHOST.into(),
            port,
            user: record.user,
            login: self.inner.access.login_file(),
            known_hosts: self.inner.access.known_hosts_file(name),
        })
    }
}
