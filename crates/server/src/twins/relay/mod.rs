//! Packages and images of containers for a twin that reaches nothing: while a plan is carried out,
//! apt in the guest asks this server, which asks the repositories that its own machine has packages
//! from; and the guest's agent asks it for the images that came from the host.
//!
//! ```text
//! apt in the guest ─► 127.0.0.1 there ─► SSH (-R) ─► socket ─► allowed? ─► kept? ─► apt-helper here
//! the guest's agent ───────┘                           └─────► an image of this plan
//! ```
//!
//! The way leads over the SSH connection that the server makes, into the guest's loopback, and is
//! there only as long as a [`Lent`] is. Files are fetched by the machine's own apt, so that its
//! proxies, certificates and passwords are used, and the guest learns none of them. Whether a
//! package is what it says it is, apt in the guest decides by the repository's signatures.
//!
//! # Invariants
//! - Nothing is fetched but files of those repositories, by GET.
//! - Of images a guest gets those of the plan that is carried out in it.
//! - Each file, all that is kept, and each fetch are bounded.

pub(crate) mod images;
mod kept;
mod repositories;

use super::Twins;
use super::reach::{CONFIGURATION, Reach};
use crate::runs::{Failure, Handle, Stream as Says};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use images::Gathered;
use kept::Kept;
use model::plan::{Action, Plan};
pub use repositories::Repositories;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tempfile::TempDir;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use vm::image::MachineName;
use vm::job::{self, Job, Progress, Tool};
use vm::machine::Network;

/// Bytes of one file.
const FILE_BYTES: u64 = 2 << 30;
/// Bytes that are kept of all.
const KEPT_BYTES: u64 = 4 << 30;
/// For one file, and between two looks at how large it is by now.
const FETCH: Duration = Duration::from_secs(900);
const LOOK: Duration = Duration::from_millis(100);
/// Files that are fetched at once; others wait.
const AT_ONCE: usize = 4;
/// For SSH to open the way.
const OPENING: Duration = Duration::from_secs(60);
/// A way is closed with what it is for; this is its end if that forgets it.
const OPEN: Duration = Duration::from_secs(24 * 3600);
const HELPER: &str = "/usr/lib/apt/apt-helper";
const SOCKET: &str = "relay";

/// What hands files of repositories on. Clones are the same.
#[derive(Debug, Clone)]
pub struct Relay {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    repositories: Repositories,
    kept: Kept,
    fetches: Semaphore,
}

/// A way into one guest, as long as this is there.
#[derive(Debug)]
pub struct Lent {
    /// Of the guest's loopback.
    pub port: u16,
    _tasks: JoinSet<()>,
    _directory: TempDir,
}

impl Relay {
    /// What is fetched is kept in this directory, which is made when it is needed.
    #[must_use]
    pub fn new(directory: PathBuf, repositories: Repositories) -> Self {
        let kept = Kept::new(directory, KEPT_BYTES);
        let fetches = Semaphore::new(AT_ONCE);
        Self { inner: Arc::new(Inner { repositories, kept, fetches }) }
    }

    /// Opens a way into a machine.
    ///
    /// # Errors
    /// When its SSH does not let us in, or does not forward.
    pub async fn lend(&self, reach: &Reach) -> Result<Lent, Failure> {
        self.lend_with(reach, Gathered::default()).await
    }

    /// The same, with images for the guest's engine.
    async fn lend_with(&self, reach: &Reach, images: Gathered) -> Result<Lent, Failure> {
        // The path of a socket is short, so it is not below the data directory.
        let directory = tempfile::Builder::new().prefix("safetytwin-relay").tempdir()?;
        reach.prepare(directory.path())?;
        let listener = UnixListener::bind(directory.path().join(SOCKET))?;
        let (tell, mut told) = watch::channel(None);
        let last = Arc::new(Mutex::new(String::new()));
        let sink = {
            let last = Arc::clone(&last);
            move |said: Progress| {
                let Progress::Line(line) = said else { return };
                match allocated(&line) {
                    Some(port) => tell.send_modify(|known| *known = Some(port)),
                    None => *last.lock().unwrap_or_else(PoisonError::into_inner) = line,
                }
            }
        };
        let job = Job::new(Arc::new(sink), CancellationToken::new(), Instant::now() + OPEN);
        let ssh = ssh(reach, directory.path());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            // How it ended shows in that it is over.
            let _ended = job.run(ssh).await;
        });
        let router = Router::new().fallback(answer).with_state((self.clone(), Arc::new(images)));
        tasks.spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::warn!(%error, "packages and images can't be handed on");
            }
        });
        let opened = async {
            tokio::select! {
                port = told.wait_for(Option::is_some) => port.ok().and_then(|port| *port),
                _ended = tasks.join_next() => None,
            }
        };
        match timeout(OPENING, opened).await.ok().flatten() {
            Some(port) => Ok(Lent { port, _tasks: tasks, _directory: directory }),
            None => {
                let last = last.lock().unwrap_or_else(PoisonError::into_inner).clone();
                Err(Failure::new(format!("SSH opened no way for packages and images: {last}")))
            }
        }
    }

    async fn file(&self, uri: &Uri) -> Result<File, Refused> {
        let inner = &self.inner;
        let wanted = inner.repositories.source(uri).ok_or(Refused::Foreign)?;
        if let Some(file) = inner.kept.open(&wanted).await {
            return Ok(file);
        }
        let _turn = inner.fetches.acquire().await.map_err(|_closed| Refused::Unclear)?;
        // Somebody else may have fetched it meanwhile.
        if let Some(file) = inner.kept.open(&wanted).await {
            return Ok(file);
        }
        let place = inner.kept.place().await.map_err(Refused::disk)?;
        let target = place.path().join("file");
        fetch(&wanted, &target).await?;
        inner.kept.keep(&wanted, &target).await.map_err(Refused::disk)
    }
}

/// Why there is no file.
#[derive(Debug)]
enum Refused {
    Foreign,
    Missing,
    TooLarge,
    Upstream(String),
    Disk(std::io::Error),
    Unclear,
}

impl Refused {
    fn disk(error: std::io::Error) -> Self {
        Self::Disk(error)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        match self {
            Self::Foreign => {
                let what = "it is in no repository that the server's own apt has packages from";
                (StatusCode::FORBIDDEN, what.to_owned())
            }
            Self::Missing => (StatusCode::NOT_FOUND, "the repository does not have it".to_owned()),
            Self::TooLarge => {
                (StatusCode::BAD_GATEWAY, format!("it is larger than {FILE_BYTES} bytes"))
            }
            Self::Upstream(what) => (StatusCode::BAD_GATEWAY, what),
            Self::Disk(error) => {
                (StatusCode::INSUFFICIENT_STORAGE, format!("the server can't keep it: {error}"))
            }
            Self::Unclear => (StatusCode::SERVICE_UNAVAILABLE, "the server ends".to_owned()),
        }
        .into_response()
    }
}

async fn answer(
    State((relay, images)): State<(Relay, Arc<Gathered>)>,
    request: Request,
) -> Response {
    if request.method() != Method::GET {
        return (StatusCode::METHOD_NOT_ALLOWED, "files alone, by GET; no https").into_response();
    }
    // A proxy is asked for a whole address.
    if request.uri().authority().is_none()
        && let Some(answer) = images.answer(request.uri().path())
    {
        return answer;
    }
    let file = match relay.file(request.uri()).await {
        Ok(file) => file,
        Err(refused) => return refused.into_response(),
    };
    match file.metadata().await {
        Ok(about) => {
            let head = [
                (CONTENT_LENGTH, about.len().to_string()),
                (CONTENT_TYPE, "application/octet-stream".to_owned()),
            ];
            (head, Body::from_stream(chunks(file))).into_response()
        }
        Err(error) => Refused::Disk(error).into_response(),
    }
}

fn chunks(file: File) -> impl stream::Stream<Item = std::io::Result<Bytes>> {
    stream::try_unfold(file, async |mut file| {
        let mut chunk = vec![0; 64 << 10];
        let read = file.read(&mut chunk).await?;
        chunk.truncate(read);
        Ok((read > 0).then(|| (Bytes::from(chunk), file)))
    })
}

/// Fetches a file by the machine's own apt.
async fn fetch(wanted: &str, target: &Path) -> Result<(), Refused> {
    let tool = Tool::new(HELPER, "apt")
        // A directory of ours alone is none of the user that apt becomes otherwise.
        .args(["-o", "APT::Sandbox::User=", "-o", "Acquire::Retries=2", "download-file", wanted])
        .arg(target);
    let quiet = Arc::new(|_said: Progress| {});
    let job = Job::new(quiet, CancellationToken::new(), Instant::now() + FETCH);
    let grown = async {
        loop {
            tokio::time::sleep(LOOK).await;
            if tokio::fs::metadata(target).await.is_ok_and(|about| about.len() > FILE_BYTES) {
                return;
            }
        }
    };
    tokio::select! {
        ended = job.run(tool) => match ended {
            Ok(()) => Ok(()),
            Err(job::Error::Failed { last, .. }) if last.contains("  404  ") => Err(Refused::Missing),
            Err(error) => Err(Refused::Upstream(model::with_causes(&error))),
        },
        () = grown => Err(Refused::TooLarge),
    }
}

fn ssh(reach: &Reach, directory: &Path) -> Tool {
    let forward = format!("127.0.0.1:0:./{SOCKET}");
    let (port, address) = (reach.port.to_string(), reach.address.to_string());
    Tool::new("ssh", "openssh-client")
        .args(["-F", CONFIGURATION, "-N", "-T", "-o", "ExitOnForwardFailure=yes"])
        .args(["-o", "LogLevel=INFO", "-R", &forward])
        .args(["-p", &port, "-l", reach.user.as_str(), "--", &address])
        .within_directory(directory)
}

/// The port of the guest, of the line in which SSH tells it.
fn allocated(line: &str) -> Option<u16> {
    line.strip_prefix("Allocated port ")?.split(' ').next()?.parse().ok()
}

impl Twins {
    /// Opens a way into a twin that needs packages or images for a plan.
    pub(super) async fn lend_way(
        &self,
        name: &MachineName,
        (plan, images): (&Plan, Gathered),
        handle: &Handle,
    ) -> Result<Option<Lent>, Failure> {
        let is_package = |action: &Action| matches!(action, Action::PutPackage { .. });
        let packages = self.inner.settings.relays
            && plan.steps().iter().any(|step| is_package(&step.action))
            && self.known(name).await?.network == Network::Isolated;
        if !packages && images.is_empty() {
            return Ok(None);
        }
        let lent = async {
            let relay = match packages {
                true => self.packages_relay().await?.clone(),
                false => Relay::new(self.inner.repositories.clone(), Repositories::default()),
            };
            relay.lend_with(&self.way_of_ssh(name).await?, images).await
        };
        match lent.await {
            Ok(lent) => Ok(Some(lent)),
            Err(failure) => {
                // What needs it will say so; all else is done.
                handle.line(Says::Stderr, failure.message());
                Ok(None)
            }
        }
    }

    async fn packages_relay(&self) -> Result<&Relay, Failure> {
        let relay = self.inner.relay.get_or_try_init(async || {
            let repositories = Repositories::of_this_machine().await?;
            let relay = Relay::new(self.inner.repositories.clone(), repositories);
            relay.inner.kept.sweep().await?;
            Ok::<_, Failure>(relay)
        });
        relay.await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_the_one_that_ssh_tells() {
        let line = "Allocated port 40123 for remote forward to ./relay:-2";
        assert_eq!(allocated(line), Some(40123));
        assert_eq!(allocated("Allocated port 999999 for remote forward"), None);
        assert_eq!(allocated("Warning: Allocated port 1 for remote forward"), None);
    }
}
