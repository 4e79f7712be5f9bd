//! Where a manager is, and how to connect to it: over a bus, or straight to its own socket.

use super::{Error, private};
use crate::Root;
use crate::users::Accounts;
use std::ffi::OsString;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;
use zbus::Connection;
use zbus::connection::Builder;

/// Messages queued for a watch; beyond that they wait in the bus.
const QUEUE: NonZeroUsize = NonZeroUsize::new(512).expect("512 is not zero");

/// Users whose managers are looked for.
const USERS_MAX: usize = 10_000;

/// A manager of units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bus {
    /// The machine's: over the system bus below the root, or where there is no bus and we are
    /// root, systemd's private socket.
    System(Root),
    /// A user's.
    User { root: Root, uid: u32, name: String },
    /// A bus by its D-Bus address, such as `unix:path=/run/dbus/system_bus_socket`.
    Address(String),
}

impl Bus {
    /// The user whose manager it is; `None` for the machine's.
    #[must_use]
    pub fn owner(&self) -> Option<&str> {
        match self {
            Self::User { name, .. } => Some(name),
            Self::System(_) | Self::Address(_) => None,
        }
    }

    /// Where the machine of the manager lies.
    pub(super) fn root(&self) -> Root {
        match self {
            Self::System(root) | Self::User { root, .. } => root.clone(),
            Self::Address(_) => Root::live(),
        }
    }

    /// For people.
    fn address(&self) -> String {
        match self {
            Self::Address(address) => address.clone(),
            Self::System(_) | Self::User { .. } => {
                let paths: Vec<String> =
                    self.sockets().iter().map(|(path, _)| path.display().to_string()).collect();
                paths.join(" or ")
            }
        }
    }

    /// The sockets to try in turn, and whether it is systemd itself that listens there.
    fn sockets(&self) -> Vec<(PathBuf, bool)> {
        match self {
            Self::System(root) => vec![
                (root.path("/run/dbus/system_bus_socket"), false),
                (root.path("/run/systemd/private"), true),
            ],
            Self::User { root, uid, .. } => vec![
                (root.path(format!("/run/user/{uid}/systemd/private")), true),
                (root.path(format!("/run/user/{uid}/bus")), false),
            ],
            Self::Address(_) => Vec::new(),
        }
    }
}

/// The managers of the users who have one running, in order of uid.
///
/// # Errors
/// When it can't be seen who does: nobody is gone for that.
pub fn user_managers(root: &Root, accounts: &Accounts) -> Result<Vec<Bus>, Error> {
    let path = root.path("/run/user");
    let names = match names_in(&path) {
        // Nobody had one since the machine was started.
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        names => names.map_err(|source| Error::Users { path, source })?,
    };
    let mut uids: Vec<u32> = names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect();
    uids.sort_unstable();
    let bus = |uid| Bus::User { root: root.clone(), uid, name: accounts.user_name(uid) };
    let runs = |bus: &Bus| bus.sockets().iter().any(|(path, _)| path.exists());
    Ok(uids.into_iter().map(bus).filter(runs).collect())
}

fn names_in(path: &Path) -> io::Result<Vec<OsString>> {
    std::fs::read_dir(path)?.take(USERS_MAX).map(|entry| Ok(entry?.file_name())).collect()
}

/// Connects; the flag says whether straight to systemd.
pub(super) async fn connect(bus: &Bus, deadline: Duration) -> Result<(Connection, bool), Error> {
    if let Bus::Address(address) = bus {
        let connection = finish(Builder::address(address.as_str()), deadline).await;
        return connection.map(|connection| (connection, false)).map_err(|source| {
            let address = address.clone();
            if is_nobody(&source) {
                Error::Absent { address }
            } else {
                Error::Connect { address, source }
            }
        });
    }
    let mut refused = None;
    for (path, direct) in bus.sockets() {
        match connect_socket(&path, direct, deadline).await {
            Ok(connection) => return Ok((connection, direct)),
            Err(source) if is_nobody(&source) => {}
            Err(source) => {
                let address = path.display().to_string();
                refused.get_or_insert(Error::Connect { address, source });
            }
        }
    }
    Err(refused.unwrap_or_else(|| Error::Absent { address: bus.address() }))
}

async fn connect_socket(path: &Path, direct: bool, deadline: Duration) -> zbus::Result<Connection> {
    let open = async {
        let stream = tokio::net::UnixStream::connect(path).await?;
        if direct {
            private::builder(stream).await
        } else {
            Ok(Builder::unix_stream(stream.into_std()?))
        }
    };
    let opened = tokio::time::timeout(deadline, open).await;
    let opened = opened.unwrap_or_else(|_late| Err(io::ErrorKind::TimedOut.into()));
    let opened = opened.map_err(|error: io::Error| zbus::Error::InputOutput(error.into()))?;
    finish(opened, deadline).await
}

async fn finish(builder: Builder<'_>, deadline: Duration) -> zbus::Result<Connection> {
    let building = builder.method_timeout(deadline).max_queued(QUEUE).build();
    match tokio::time::timeout(deadline, Box::pin(building)).await {
        Ok(built) => built,
        Err(_late) => {
            Err(zbus::Error::InputOutput(io::Error::from(io::ErrorKind::TimedOut).into()))
        }
    }
}

/// Whether nobody listens there.
fn is_nobody(error: &zbus::Error) -> bool {
    let (zbus::Error::InputOutput(error) | zbus::Error::Connection(error, _)) = error else {
        return false;
    };
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory
    )
}

/// A bus on which nobody is called systemd: a container, or another init.
pub(super) fn absent_if_nobody(bus: &Bus, error: Error) -> Error {
    let Error::Call { source: zbus::Error::FDO(answer), .. } = &error else { return error };
    let nobody = matches!(
        **answer,
        zbus::fdo::Error::ServiceUnknown(_)
            | zbus::fdo::Error::NameHasNoOwner(_)
            | zbus::fdo::Error::SpawnChildExited(_)
            | zbus::fdo::Error::SpawnFailed(_)
    );
    if nobody { Error::Absent { address: bus.address() } } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::systemd::Systemd;
    use model::redact::Redactor;

    async fn connect_to(bus: Bus) -> Error {
        Systemd::connect(&bus, Redactor::new([0; 32], Vec::new())).await.unwrap_err()
    }

    #[tokio::test]
    async fn nobody_there_is_absent_and_anything_else_a_fault() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        assert!(connect_to(Bus::System(root.clone())).await.is_absent());
        let address = format!("unix:path={}/none", directory.path().display());
        assert!(connect_to(Bus::Address(address)).await.is_absent());
        assert!(!connect_to(Bus::Address("nonsense".into())).await.is_absent());
        // A socket whose owner has died.
        std::fs::create_dir_all(directory.path().join("run/dbus")).unwrap();
        let socket = directory.path().join("run/dbus/system_bus_socket");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(connect_to(Bus::System(root)).await.is_absent());
    }

    #[tokio::test(start_paused = true)]
    async fn a_bus_that_says_nothing_meets_the_deadline() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("run/dbus")).unwrap();
        let socket = directory.path().join("run/dbus/system_bus_socket");
        let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let error = connect_to(Bus::System(Root::at(directory.path()))).await;
        assert!(matches!(error, Error::Connect { .. }), "{error:?}");
        assert!(error.is_late());
    }

    #[test]
    fn managers_of_users() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::at(directory.path());
        let accounts = Accounts::default();
        assert!(user_managers(&root, &accounts).unwrap().is_empty());
        for path in ["1000/systemd/private", "33/bus", "7/empty", "evil/bus"] {
            let path = directory.path().join("run/user").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let names: Vec<Option<String>> = user_managers(&root, &accounts)
            .unwrap()
            .iter()
            .map(|b| b.owner().map(str::to_owned))
            .collect();
        assert_eq!(names, [Some("33".to_owned()), Some("1000".to_owned())]);
    }

    #[test]
    fn managers_that_can_not_be_seen_are_not_gone() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("run")).unwrap();
        std::fs::write(directory.path().join("run/user"), "").unwrap();
        let error = user_managers(&Root::at(directory.path()), &Accounts::default()).unwrap_err();
        assert!(matches!(&error, Error::Users { path, .. } if path.ends_with("run/user")));
        assert!(!error.is_absent());
    }
}
