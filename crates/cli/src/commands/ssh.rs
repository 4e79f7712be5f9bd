//! `twin ssh`: the system's ssh, with the twin's pinned host key and the key that opens it.

use super::twin::of;
use crate::arguments::SshArguments;
use crate::failure::{Failure, is_here};
use crate::session::Session;
use api::twin::{Ssh, Twin};
use model::HostId;
use std::ffi::OsString;
use std::net::IpAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Becomes ssh; comes back only when that fails.
pub(crate) async fn run(arguments: &SshArguments, session: &mut Session) -> Result<(), Failure> {
    let name = &arguments.name;
    if !is_here(session.remote.url()) {
        return Err(Failure::Usage(format!(
            "SSH of twins is open to the server's own machine alone; there: twin ssh {name}"
        )));
    }
    let twin: Twin = session.remote.get(&of(name)).await?;
    let Some(ssh) = &twin.ssh else {
        let text = format!("{name} does not run; start it with: twin start {name}");
        return Err(Failure::Failed(text));
    };
    let place = place(ssh, name)?;
    std::fs::File::open(place.join("login")).map_err(|error| {
        let text = format!("could not read the key that opens twins, in {}", place.display());
        let advice = "run it as the user the server runs as: sudo twin ssh";
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => Failure::NotAllowed { message: text, advice },
            _ => Failure::Failed(format!("{text}: {error}")),
        }
    })?;
    let error = Command::new("ssh")
        .args(options(ssh, name)?)
        .args(&arguments.command)
        .current_dir(&place)
        .exec();
    Err(Failure::Failed(match error.kind() {
        std::io::ErrorKind::NotFound => {
            "ssh is not installed; it is in the package openssh-client".to_owned()
        }
        _ => format!("could not start ssh: {error}"),
    }))
}

/// Where the keys are. ssh is started there, since paths would be words of its options, which
/// split at spaces and expand percent signs.
fn place(ssh: &Ssh, name: &HostId) -> Result<PathBuf, Failure> {
    let (key, known) = (Path::new(&ssh.key), Path::new(&ssh.known_hosts));
    let place = key.parent().filter(|place| {
        key.is_absolute()
            && key.ends_with("login")
            && known == place.join("known_hosts").join(name.as_str())
    });
    let unclear = || {
        Failure::Failed(
            "the server names no keys this program understands; compare versions with: twin doctor"
                .to_owned(),
        )
    };
    place.map(Path::to_owned).ok_or_else(unclear)
}

/// Everything before the command. Nothing of the user's configuration counts.
fn options(ssh: &Ssh, name: &HostId) -> Result<Vec<OsString>, Failure> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c);
    let is_user = !ssh.user.is_empty() && !ssh.user.starts_with('-') && ssh.user.chars().all(plain);
    let (Ok(address), true) = (ssh.address.parse::<IpAddr>(), is_user) else {
        return Err(Failure::Failed("the server names no address or user this program understands; compare versions with: twin doctor".to_owned()));
    };
    let mut words: Vec<OsString> = ["-F", "none", "-i", "login"].map(OsString::from).into();
    for option in [
        format!("UserKnownHostsFile=known_hosts/{name}"),
        "GlobalKnownHostsFile=none".to_owned(),
        format!("HostKeyAlias={name}"),
        "StrictHostKeyChecking=yes".to_owned(),
        "UpdateHostKeys=no".to_owned(),
        "IdentitiesOnly=yes".to_owned(),
        "PasswordAuthentication=no".to_owned(),
        "KbdInteractiveAuthentication=no".to_owned(),
    ] {
        words.extend(["-o".into(), option.into()]);
    }
    words.extend(["-p".into(), ssh.port.to_string().into()]);
    words.extend(["-l".into(), ssh.user.as_str().into()]);
    words.extend(["--".into(), address.to_string().into()]);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::twin::tests::example;

    #[test]
    fn nothing_but_what_is_understood_reaches_ssh() {
        let name = HostId::new("web01").unwrap();
        let good = example().ssh.unwrap();
        let words = options(&good, &name).unwrap();
        let words: Vec<_> = words.iter().map(|word| word.to_str().unwrap()).collect();
        assert!(words.contains(&"HostKeyAlias=web01") && words.contains(&"40022"), "{words:?}");
        assert!(words.ends_with(&["--", "127.0.0.1"]), "{words:?}");
        assert_eq!(place(&good, &name).unwrap(), Path::new("/d/access"));
        for user in ["", "-oProxyCommand=x", "a b", "a;b"] {
            assert!(options(&Ssh { user: user.into(), ..good.clone() }, &name).is_err(), "{user}");
        }
        let address = "localhost -oX".into();
        assert!(options(&Ssh { address, ..good.clone() }, &name).is_err());
        for key in ["login", "/d/other", "/e/login"] {
            assert!(place(&Ssh { key: key.into(), ..good.clone() }, &name).is_err(), "{key}");
        }
    }
}
