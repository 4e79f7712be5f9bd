//! One connection to a libvirt daemon, and calls that can't hang their caller.
//!
//! ```text
//! none ── first call: open ──► open ── daemon gone, or a call overdue: forget ──► none
//! ```

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use virt::connect::Connect;
use virt::error::ErrorNumber;

/// Calls at a time. A hung daemon can hold as many threads, and no more.
const CALLS: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was done.
    #[error("could not reach libvirt at {uri}: {what}; is its daemon running?")]
    Unreachable { uri: Uri, what: String },
    /// The daemon went away meanwhile: it may have been done, or not.
    #[error("libvirt at {uri} went away while asked to {doing}; look before trying again")]
    Lost { uri: Uri, doing: &'static str },
    #[error("libvirt at {uri} did not {doing} within {seconds} s; look before trying again")]
    TimedOut { uri: Uri, doing: &'static str, seconds: u64 },
    #[error("libvirt at {uri} has not answered {CALLS} earlier calls yet")]
    Busy { uri: Uri },
    #[error(
        "libvirt at {uri} runs machines as user {user}, who may not work in {directory}; have it \
         run them as the server's user, with user and group in /etc/libvirt/qemu.conf and a \
         restart of libvirtd, or use qemu:///session"
    )]
    Stranger { uri: Uri, user: u32, directory: PathBuf },
    #[error("no such machine or snapshot: {what}")]
    Unknown { what: String },
    #[error(
        "{disk} is damaged: {what}. It is not used, nor are the snapshots in it; while the machine \
         is stopped try: qemu-img check -r all {disk}"
    )]
    Corrupt { disk: PathBuf, what: String },
    #[error("libvirt could not {doing}: {what}")]
    Refused { doing: &'static str, what: String },
}

/// Where a daemon of this machine is, as libvirt writes it. QEMU's alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri(String);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    #[error("{0:?} is no libvirt URI of QEMU on this machine: qemu:///system or qemu:///session")]
    Form(String),
    /// Its daemon would be given paths of this machine.
    #[error(
        "{0:?} leads to another machine, and the disks of twins are files of this one; run a \
         server of SafetyTwin on that machine with qemu:///system, and point the agents at it"
    )]
    Remote(String),
}

impl FromStr for Uri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let shown = || text.chars().take(200).collect();
        let wrong = || UriError::Form(shown());
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let (driver, transport) = scheme.split_once('+').unwrap_or((scheme, "unix"));
        let (host, path) = rest.split_once('/').ok_or_else(wrong)?;
        // Also by a name of this machine's own: libvirt would not use its files as they are.
        let is_remote = !host.is_empty() || matches!(transport, "ssh" | "tls" | "tcp");
        let is_remote = is_remote || matches!(transport, "libssh" | "libssh2");
        if driver == "qemu" && is_remote {
            return Err(UriError::Remote(shown()));
        }
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        // `command` and `netcat` name programs to run; nobody needs them here.
        let programs = query
            .split('&')
            .any(|part| ["command=", "netcat="].iter().any(|key| part.starts_with(key)));
        let plain = text.chars().all(|c| c.is_ascii_graphic()) && text.len() <= 1000;
        let is_known = driver == "qemu" && transport == "unix";
        if is_known && plain && !programs && matches!(path, "system" | "session") {
            Ok(Self(text.to_owned()))
        } else {
            Err(wrong())
        }
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Clones share the connection.
#[derive(Clone)]
pub(super) struct Connection {
    uri: Uri,
    cached: Arc<Mutex<Option<Connect>>>,
    calls: Arc<Semaphore>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("uri", &self.uri).finish_non_exhaustive()
    }
}

/// What a call came to, on its thread.
enum Outcome<T> {
    Done(T),
    Unreachable(virt::error::Error),
    Lost,
    Failed(virt::error::Error),
}

impl Connection {
    #[must_use]
    pub(super) fn new(uri: Uri) -> Self {
        static QUIET: Once = Once::new();
        // The library prints errors by default; they are returned here.
        QUIET.call_once(virt::error::clear_error_callback);
        Self { uri, cached: Arc::default(), calls: Arc::new(Semaphore::new(CALLS)) }
    }

    pub(super) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// To libvirt's own driver for tests.
    #[cfg(test)]
    pub(super) fn of_tests() -> Self {
        Self::new(Uri("test:///default".to_owned()))
    }

    /// Does `work` on a blocking thread. Past the deadline the connection is given up; the
    /// thread ends when libvirt lets it go.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        doing: &'static str,
        deadline: Duration,
        work: impl FnOnce(&Connect) -> Result<T, virt::error::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let uri = || self.uri.clone();
        let permit = self.calls.clone().try_acquire_owned();
        let permit = permit.map_err(|_full| Error::Busy { uri: uri() })?;
        let (address, cached) = (self.uri.0.clone(), self.cached.clone());
        let call = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            perform(&address, &cached, work)
        });
        let Ok(outcome) = tokio::time::timeout(deadline, call).await else {
            drop(self.take());
            return Err(Error::TimedOut { uri: uri(), doing, seconds: deadline.as_secs() });
        };
        match outcome {
            Ok(Outcome::Done(value)) => Ok(value),
            Ok(Outcome::Unreachable(error)) => {
                Err(Error::Unreachable { uri: uri(), what: error.message().to_owned() })
            }
            Ok(Outcome::Failed(error)) => Err(refused(doing, &error)),
            // A thread that ended without an answer tells as little as a daemon that did.
            Ok(Outcome::Lost) | Err(_) => Err(Error::Lost { uri: uri(), doing }),
        }
    }

    fn take(&self) -> Option<Connect> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// With the connection there is, or a new one; the lock is not held during calls.
fn perform<T>(
    address: &str,
    cached: &Mutex<Option<Connect>>,
    work: impl FnOnce(&Connect) -> Result<T, virt::error::Error>,
) -> Outcome<T> {
    let slot = || cached.lock().unwrap_or_else(PoisonError::into_inner);
    let kept = slot().clone();
    let alive = kept.filter(|connect| connect.is_alive().unwrap_or(false));
    let connect = match alive {
        Some(connect) => connect,
        None => match Connect::open(Some(address)) {
            Ok(connect) => {
                *slot() = Some(connect.clone());
                connect
            }
            Err(error) => return Outcome::Unreachable(error),
        },
    };
    match work(&connect) {
        Ok(value) => Outcome::Done(value),
        Err(_) if !connect.is_alive().unwrap_or(false) => {
            *slot() = None;
            Outcome::Lost
        }
        Err(error) => Outcome::Failed(error),
    }
}

fn refused(doing: &'static str, error: &virt::error::Error) -> Error {
    let what = error.message().to_owned();
    match error.code().known() {
        Some(ErrorNumber::NoDomain | ErrorNumber::NoDomainSnapshot) => Error::Unknown { what },
        _ => Error::Refused { doing, what },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_uris_of_qemu_are_taken() {
        for text in ["qemu:///system", "qemu:///session", "qemu+unix:///system?socket=/run/x"] {
            assert!(text.parse::<Uri>().is_ok(), "{text}");
        }
        for text in [
            "",
            "test:///default",
            "xen:///",
            "qemu+ext:///system?command=/bin/sh",
            "qemu:///x",
            "qemu:///system ",
            "qemu+unix:///system?a=b&netcat=x",
        ] {
            assert!(matches!(text.parse::<Uri>(), Err(UriError::Form(_))), "{text}");
        }
    }

    #[test]
    fn a_daemon_elsewhere_is_refused_with_the_reason() {
        for text in [
            "qemu+ssh://root@host/system",
            "qemu+ssh:///system",
            "qemu+ssh://localhost/system",
            "qemu+tls://host/system",
            "qemu+tcp://host/system",
            "qemu+libssh2://host/session",
            "qemu://h/system",
            "qemu+ssh://-oProxyCommand=x/system",
        ] {
            let refused = text.parse::<Uri>().unwrap_err();
            assert!(matches!(refused, UriError::Remote(_)), "{text}");
            assert!(refused.to_string().contains("run a server of SafetyTwin on that machine"));
        }
    }

    #[tokio::test]
    async fn a_daemon_that_is_not_there_is_named() {
        let uri: Uri = "qemu+unix:///system?socket=/no/such/socket".parse().unwrap();
        let connection = Connection::new(uri);
        let call = connection.call("ask", Duration::from_secs(5), Connect::lib_version);
        let error = call.await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
        assert!(error.to_string().contains("/no/such/socket"), "{error}");
    }

    #[tokio::test]
    async fn a_call_that_hangs_ends_at_its_deadline() {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let connection = Connection::new("qemu:///system".parse().unwrap());
        connection.cached.lock().unwrap().replace(Connect::open(Some("test:///default")).unwrap());
        let hang = move |_: &Connect| {
            receiver.recv().ok();
            Ok(())
        };
        let error = connection.call("hang", Duration::from_millis(100), hang).await.unwrap_err();
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        assert!(connection.take().is_none());
        drop(sender);
    }
}
